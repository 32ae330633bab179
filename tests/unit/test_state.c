/* Saved-state tables: reset, save, load; and the loader against damaged streams. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/state.h"

struct toy {
	void *outside; /* not in the table */
	uint8_t lcr, fifo[16];
	bool on;
	uint16_t divisor;
	int32_t level;
	uint64_t deadline, counts[3];
	uint8_t cmos;
	uint32_t head;
};

static const struct state_field fields[] = {
	STATE_AT(struct toy, lcr, 0x60),
	STATE_ARRAY(struct toy, fifo),
	STATE_AT(struct toy, on, true),
	STATE_AT(struct toy, divisor, 12),
	STATE(struct toy, level),
	STATE_AT(struct toy, deadline, UINT64_MAX),
	STATE_ARRAY_OPT(struct toy, counts, 7, 0),
	STATE_OPT(struct toy, cmos, 0, STATE_KEEP),
	STATE(struct toy, head),
};

static bool toy_check(const void *state)
{
	const struct toy *toy = state;

	return toy->head < 16;
}

static const struct state_table table = STATE_TABLE("toy", struct toy, fields, 3, toy_check);

static const struct toy sample = {
	.lcr = 3,
	.fifo = {1, 2, 3, [15] = 0xff},
	.on = true,
	.divisor = 0xabcd,
	.level = -5,
	.deadline = 0x0123456789abcdefull,
	.counts = {1, UINT64_MAX, 3},
	.cmos = 0x5b,
	.head = 15,
};

/* Field by field: padding may differ. */
static bool same(const struct toy *a, const struct toy *b)
{
	return a->outside == b->outside && a->lcr == b->lcr && !memcmp(a->fifo, b->fifo, 16) &&
	       a->on == b->on && a->divisor == b->divisor && a->level == b->level &&
	       a->deadline == b->deadline && !memcmp(a->counts, b->counts, 24) &&
	       a->cmos == b->cmos && a->head == b->head;
}

static uint8_t *save(const struct toy *toy, size_t *len)
{
	uint8_t *bytes;

	*len = state_size(&table);
	bytes = malloc(*len);
	state_save(&table, toy, bytes);
	return bytes;
}

static void test_reset(void **state)
{
	struct toy toy = sample;
	const struct toy want = {.lcr = 0x60,
				 .on = true,
				 .divisor = 12,
				 .deadline = UINT64_MAX,
				 .counts = {7, 7, 7},
				 .cmos = 0x5b};

	(void)state;
	state_reset(&table, &toy);
	assert_true(same(&toy, &want));
}

static void test_round_trip(void **state)
{
	struct toy toy = {.outside = &toy};
	struct toy want = sample;
	struct error err = {0};
	size_t len, used;
	uint8_t *bytes = save(&sample, &len);

	(void)state;
	want.outside = &toy;
	assert_int_equal(state_load(&table, &toy, bytes, len, &used, &err), 0);
	assert_int_equal(used, len);
	assert_true(same(&toy, &want));
	/* Little-endian, whatever the host: the name, then the version. */
	assert_memory_equal(bytes, "\3toy\3\0\0\0\11\0\0\0\3lcr\1\0\1\0\0\0\3", 23);
	free(bytes);
}

/* What comes behind the first field is put in another order. */
static void test_fields_by_name(void **state)
{
	const size_t header = 12, first = 1 + 3 + 2 + 4 + 1;
	struct toy toy = {0};
	struct error err;
	size_t len, used;
	uint8_t *bytes = save(&sample, &len), *moved = malloc(len);

	(void)state;
	memcpy(moved, bytes, header);
	memcpy(moved + header, bytes + header + first, len - header - first);
	memcpy(moved + len - first, bytes + header, first);
	assert_int_equal(state_load(&table, &toy, moved, len, &used, &err), 0);
	assert_true(same(&toy, &sample));
	/* The same field twice, another one missing. */
	memcpy(moved, bytes, len);
	memcpy(moved + header + first + 1, "lcr", 3);
	assert_true(state_load(&table, &toy, moved, len, &used, &err) < 0);
	free(bytes);
	free(moved);
}

/* Saves by one table, loads by another: every difference is refused, and told. */
static void refuse(const struct state_table *other, int want, const char *text)
{
	struct toy toy = {.lcr = 9}, before = toy;
	struct error err = {0};
	size_t len, used;
	uint8_t *bytes = save(&sample, &len);
	int rc = state_load(other, &toy, bytes, len, &used, &err);

	if (rc != want || !strstr(err.text, text))
		fail_msg("%d '%s' where '%s' was expected", rc, err.text, text);
	assert_true(same(&toy, &before));
	free(bytes);
}

static bool never(const void *state)
{
	(void)state;
	return false;
}

static void test_differences(void **state)
{
	struct state_field changed[sizeof(fields) / sizeof(fields[0])];
	struct state_table other = table;

	(void)state;
	other.name = "uart";
	refuse(&other, -EPROTO, "uart");
	other = table;
	other.version = 2;
	refuse(&other, -EPROTO, "version 3, this skep takes 2");
	other = table;
	other.check = never;
	refuse(&other, -EINVAL, "toy");
	other = table;
	other.nfields--;
	refuse(&other, -EPROTO, "9 fields instead of 8");
	other = table;
	other.fields = changed;
	memcpy(changed, fields, sizeof(fields));
	changed[3].name = "brand_new";
	refuse(&other, -EPROTO, "unknown");
	memcpy(changed, fields, sizeof(fields));
	changed[1].count = 8;
	refuse(&other, -EPROTO, "toy.fifo");
	memcpy(changed, fields, sizeof(fields));
	changed[3].size = 1;
	refuse(&other, -EPROTO, "toy.divisor");
	memcpy(changed, fields, sizeof(fields));
	changed[0].is_bool = true;
	refuse(&other, -EINVAL, "toy.lcr");
}

/* Cut anywhere: refused, nothing touched, nothing read beyond the end (malloc'ed to the byte, for the
 * sanitizer). */
static void test_cut(void **state)
{
	struct toy toy = {.lcr = 9}, before = toy;
	size_t len, used;
	uint8_t *bytes = save(&sample, &len);

	(void)state;
	for (size_t cut = 0; cut < len; cut++) {
		uint8_t *part = malloc(cut ? cut : 1);

		memcpy(part, bytes, cut);
		assert_int_equal(state_load(&table, &toy, part, cut, &used, NULL), -EPROTO);
		assert_true(same(&toy, &before));
		free(part);
	}
	free(bytes);
}

/* Random damage never crashes, and what is refused changes nothing. What is taken obeys the table. */
static void test_damage(void **state)
{
	size_t len, used;
	uint8_t *bytes = save(&sample, &len), *bad = malloc(len);
	unsigned taken = 0;

	(void)state;
	srandom(7);
	for (int round = 0; round < 200000; round++) {
		struct toy toy = {.lcr = 9}, before = toy;

		memcpy(bad, bytes, len);
		for (long n = 1 + random() % 4; n; n--) {
			size_t at = (size_t)random() % len;

			bad[at] = random() & 1 ? (uint8_t)random()
					       : bad[at] ^ (uint8_t)(1u << (random() % 8));
		}
		if (state_load(&table, &toy, bad, len, &used, NULL)) {
			assert_true(same(&toy, &before));
			continue;
		}
		taken++;
		assert_int_equal(used, len);
		assert_true(toy.head < 16);
		assert_true(*(uint8_t *)&toy.on <= 1);
	}
	assert_in_range(taken, 1000, 199000); /* both ways were taken */
	free(bytes);
	free(bad);
}

static void test_print(void **state)
{
	char *text;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	(void)state;
	state_print(&table, &sample, out);
	fclose(out);
	assert_non_null(strstr(text, "toy.lcr = 0x3\n"));
	assert_non_null(strstr(text, "toy.level = 0xfffffffb\n"));
	assert_non_null(strstr(text, "toy.counts = 0x1 0xffffffffffffffff 0x3\n"));
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reset),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_fields_by_name),
		cmocka_unit_test(test_differences),
		cmocka_unit_test(test_cut),
		cmocka_unit_test(test_damage),
		cmocka_unit_test(test_print),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
