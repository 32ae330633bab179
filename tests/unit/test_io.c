/* The I/O bus: which handler sees what, and the table changing under accesses. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bus/io.h"

static char seen[512]; /* what the handlers saw: "r4@8 w1@0=12 " */

static void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *fmt, ...)
{
	size_t len = strlen(seen);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(seen + len, sizeof(seen) - len, fmt, ap);
	va_end(ap);
}

/* Byte n of a range reads as n, with garbage above the size asked for. */
static uint64_t count_read(void *arg, uint64_t offset, unsigned size)
{
	uint64_t value = 0x0101010101010101ull * (uint8_t)offset + 0x0706050403020100ull;

	note("%sr%u@%llu ", arg ? (const char *)arg : "", size, (unsigned long long)offset);
	return value;
}

static void count_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	note("%sw%u@%llu=%llx ", arg ? (const char *)arg : "", size, (unsigned long long)offset,
	     (unsigned long long)value);
}

static const struct io_ops bytes_ops = {IO_1, count_read, count_write};
static const struct io_ops dword_ops = {IO_4, count_read, count_write};
static const struct io_ops most_ops = {IO_1 | IO_2 | IO_4, count_read, count_write};
static const struct io_ops silent_ops = {IO_1, NULL, NULL};

static struct io_bus bus;

static int setup(void **state)
{
	(void)state;
	io_thread_enter();
	seen[0] = '\0';
	return io_bus_init(&bus, "port", 0xffff);
}

static int teardown(void **state)
{
	(void)state;
	io_bus_destroy(&bus);
	io_thread_leave();
	return 0;
}

static void expect_read(uint64_t addr, unsigned size, uint64_t want, bool claimed,
			const char *calls)
{
	uint64_t value = 0x5555;
	bool got = io_bus_read(&bus, addr, size, &value);

	if (got != claimed || value != want || strcmp(seen, calls) != 0)
		fail_msg("read %llx/%u: %d %llx '%s'", (unsigned long long)addr, size, got,
			 (unsigned long long)value, seen);
	seen[0] = '\0';
}

static void expect_write(uint64_t addr, unsigned size, uint64_t value, bool claimed,
			 const char *calls)
{
	bool got = io_bus_write(&bus, addr, size, value);

	if (got != claimed || strcmp(seen, calls) != 0)
		fail_msg("write %llx/%u: %d '%s'", (unsigned long long)addr, size, got, seen);
	seen[0] = '\0';
}

static void add(struct io_range *range)
{
	struct error err;

	if (io_range_add(&bus, range, &err))
		fail_msg("%s", err.text);
}

static void test_sizes(void **state)
{
	struct io_range bytes = {"bytes", 0x100, 8, &bytes_ops, NULL};
	struct io_range dwords = {"dwords", 0x200, 16, &dword_ops, NULL};
	struct io_range most = {"most", 0x300, 8, &most_ops, NULL};
	struct io_range silent = {"silent", 0x400, 4, &silent_ops, NULL};
	struct io_range odd = {"odd", 0x500, 6, &dword_ops, NULL};

	(void)state;
	add(&most);
	add(&bytes);
	add(&silent);
	add(&dwords);
	add(&odd);
	expect_read(0x101, 1, 1, true, "r1@1 ");
	expect_read(0x100, 4, 0x03020100, true, "r1@0 r1@1 r1@2 r1@3 ");
	expect_write(0x104, 2, 0xbbaa, true, "w1@4=aa w1@5=bb ");
	expect_read(0x300, 8, 0x0706050403020100, true, "r4@0 r4@4 ");
	expect_read(0x301, 2, 0x0201, true, "r2@1 ");
	expect_write(0x300, 8, 0x8877665544332211, true, "w4@0=44332211 w4@4=88776655 ");
	/* Narrow reads take their part of the unit around, narrow writes are dropped. */
	expect_read(0x206, 1, 6, true, "r4@4 ");
	expect_read(0x206, 2, 0x0706, true, "r4@4 ");
	expect_read(0x203, 2, 0x0403, true, "r4@0 r4@4 ");
	expect_write(0x206, 1, 9, true, "");
	expect_read(0x204, 8, 0x0b0a090807060504, true, "r4@4 r4@8 ");
	/* The unit would reach over the end of the range. */
	expect_read(0x504, 2, 0xffff, true, "");
	expect_read(0x400, 2, 0xffff, true, "");
	expect_write(0x400, 2, 1, true, "");
	assert_int_equal(bus.unclaimed, 0);
}

static void test_edges(void **state)
{
	struct io_range a = {"a", 0x10, 4, &bytes_ops, "a"}, b = {"b", 0x14, 4, &most_ops, "b"};
	struct io_range end = {"end", 0xfff8, 8, &bytes_ops, "e"};

	(void)state;
	add(&a);
	add(&b);
	add(&end);
	expect_read(0x12, 4, 0x01000302, true, "ar1@2 ar1@3 br1@0 br1@1 ");
	expect_write(0x13, 2, 0x2211, true, "aw1@3=11 bw1@0=22 ");
	expect_read(0x0e, 4, 0x0100ffff, true, "ar1@0 ar1@1 ");
	expect_read(0x16, 4, 0xffff0302, true, "br1@2 br1@3 ");
	expect_read(0x18, 8, UINT64_MAX, false, "");
	expect_read(0x18, 1, 0xff, false, "");
	expect_write(0x0f, 1, 1, false, "");
	assert_int_equal(bus.unclaimed, 3);
	/* Over the end of the address space, and far beyond it. */
	expect_read(0xfffe, 4, 0xffff0706, true, "er1@6 er1@7 ");
	expect_read(0xffffffffffffffff, 8, UINT64_MAX, false, "");
	expect_write(0xfffffffffffffffc, 8, 0, false, "");
}

static void test_whole_space(void **state)
{
	struct io_range all = {"all", 0, 0, &bytes_ops, NULL};
	struct io_range top = {"top", 0xffffffffffffff00, 0x100, &bytes_ops, NULL};
	struct error err;

	(void)state;
	io_bus_destroy(&bus);
	assert_int_equal(io_bus_init(&bus, "memory", UINT64_MAX), 0);
	assert_int_equal(io_range_add(&bus, &all, &err), -EINVAL);
	add(&top);
	expect_read(UINT64_MAX, 1, 0xff, true, "r1@255 ");
	expect_read(UINT64_MAX, 8, UINT64_MAX, true, "r1@255 ");
	all.size = UINT64_MAX - 0xff;
	add(&all);
	expect_read(0xfffffffffffffeff, 2, 0x00ff, true, "r1@18446744073709551359 r1@0 ");
}

static void test_refused(void **state)
{
	static const struct io_ops no_sizes = {0, count_read, count_write};
	struct io_range com1 = {"com1", 0x3f8, 8, &bytes_ops, NULL};
	struct error err = {0};
	static const struct {
		uint64_t base, size;
		int rc;
	} cases[] = {
		{0x3f8, 8, -EEXIST},
		{0x3ff, 1, -EEXIST},
		{0x3f0, 9, -EEXIST},
		{0, 0x10000, -EEXIST},
		{0x3fa, 2, -EEXIST},
		{0x3f0, 8, 0},
		{0x400, 8, 0},
		{0x3f0, 0, -EINVAL},
		{0xffff, 2, -EINVAL},
		{0x10000, 1, -EINVAL},
		{1, 0x10000, -EINVAL},
		{UINT64_MAX, 1, -EINVAL},
		{UINT64_MAX, UINT64_MAX, -EINVAL},
	};

	(void)state;
	add(&com1);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct io_range range = {"new", cases[i].base, cases[i].size, &bytes_ops, NULL};

		if (io_range_add(&bus, &range, &err) != cases[i].rc)
			fail_msg("case %zu: %s", i, err.text);
		if (cases[i].rc == 0)
			io_range_del(&bus, &range);
	}
	assert_int_equal(io_range_add(&bus, &com1, &err), -EEXIST);
	assert_non_null(strstr(err.text, "overlaps that of com1 at 0x3f8-0x3ff"));
	com1.ops = &no_sizes;
	com1.base = 0x100;
	assert_int_equal(io_range_add(&bus, &com1, &err), -EINVAL);
}

/* Random ranges against an array of owners. */
static void test_random(void **state)
{
	enum { RANGES = 40, SPACE = 256 };
	struct io_range range[RANGES];
	bool on[RANGES] = {false};
	uint64_t value;

	(void)state;
	srandom(3);
	for (int i = 0; i < RANGES; i++)
		range[i] = (struct io_range){"r", 0, 0, &bytes_ops, NULL};
	for (int round = 0; round < 20000; round++) {
		int i = (int)(random() % RANGES), owner[SPACE];
		uint64_t addr = (uint64_t)random() % SPACE;

		memset(owner, -1, sizeof(owner));
		for (int k = 0; k < RANGES; k++)
			for (uint64_t at = 0; on[k] && at < range[k].size; at++)
				owner[range[k].base + at] = k;
		if (on[i]) {
			io_range_del(&bus, &range[i]);
			on[i] = false;
			continue;
		}
		range[i].base = (uint64_t)random() % (SPACE - 16);
		range[i].size = 1 + (uint64_t)random() % 16;
		on[i] = true;
		for (uint64_t at = 0; at < range[i].size; at++)
			on[i] = on[i] && owner[range[i].base + at] < 0;
		assert_int_equal(io_range_add(&bus, &range[i], NULL), on[i] ? 0 : -EEXIST);
		if (!on[i] || random() % 2)
			assert_int_equal(io_bus_read(&bus, addr, 1, &value),
					 owner[addr] >= 0 ||
						 (on[i] && addr - range[i].base < range[i].size));
		seen[0] = '\0';
	}
}

struct mover {
	struct io_range range;
	uint64_t next;
};

/* A BAR that moves when it is written to. */
static void mover_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct mover *m = arg;

	(void)offset;
	(void)size;
	io_range_del(&bus, &m->range);
	m->range.base = value;
	io_range_add(&bus, &m->range, NULL);
}

static const struct io_ops mover_ops = {IO_2, NULL, mover_write};

static void test_handler_moves_itself(void **state)
{
	struct mover m = {.range = {"mover", 0x1000, 16, &mover_ops, &m}};

	(void)state;
	add(&m.range);
	for (uint64_t i = 0; i < 5000; i++) {
		uint64_t to = 0x1000 + (i % 7) * 0x100;

		assert_true(io_bus_write(&bus, m.range.base, 2, to));
		assert_int_equal(m.range.base, to);
	}
	/* The second half of a wide access still goes where the access began. */
	assert_true(io_bus_write(&bus, m.range.base, 4, 0x20003000));
	assert_int_equal(m.range.base, 0x2000);
	io_bus_synchronize(&bus);
	io_range_del(&bus, &m.range);
	io_range_del(&bus, &m.range);
}

struct busy {
	_Atomic bool stop, wrong;
	_Atomic uint64_t hits, misses;
};

static uint64_t alive_read(void *arg, uint64_t offset, unsigned size)
{
	(void)offset;
	(void)size;
	return *(uint32_t *)arg;
}

static const struct io_ops alive_ops = {IO_4, alive_read, NULL};

static void *busy_thread(void *arg)
{
	struct busy *busy = arg;
	uint64_t value;

	io_thread_enter();
	while (!busy->stop) {
		if (!io_bus_read(&bus, 0x80, 4, &value))
			busy->misses++;
		else if (value == 0x600d)
			busy->hits++;
		else
			busy->wrong = true;
	}
	io_thread_leave();
	return NULL;
}

/* Waits until the counter has moved twice, so that one whole access lies in between. */
static void wait_accesses(struct busy *busy, _Atomic uint64_t *count)
{
	uint64_t from = *count;

	while (*count < from + 2 && !busy->wrong)
		sched_yield();
}

/* Two threads read while a range comes and goes; after synchronize its memory may be freed. An access
 * meets the whole range or none of it. */
static void test_comes_and_goes(void **state)
{
	pthread_t thread[2];
	struct busy busy = {0};

	(void)state;
	for (int i = 0; i < 2; i++)
		pthread_create(&thread[i], NULL, busy_thread, &busy);
	for (int round = 0; round < 400 && !busy.wrong; round++) {
		struct io_range *range = malloc(sizeof(*range));
		uint32_t *device = malloc(sizeof(*device));

		*device = 0x600d;
		*range = (struct io_range){"alive", 0x80, 4, &alive_ops, device};
		add(range);
		if (round % 16 == 0)
			wait_accesses(&busy, &busy.hits);
		io_range_del(&bus, range);
		io_bus_synchronize(&bus);
		memset(range, 0xdd, sizeof(*range));
		*device = 0xbad;
		free(range);
		free(device);
		if (round % 16 == 8)
			wait_accesses(&busy, &busy.misses);
	}
	busy.stop = true;
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	assert_false(busy.wrong);
	assert_true(busy.hits && busy.misses);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_sizes),		T(test_edges),	T(test_whole_space),
		T(test_refused),	T(test_random), T(test_handler_moves_itself),
		T(test_comes_and_goes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
