#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "chipset/calendar.h"
#include "chipset/rtc.h"
#include "tests/unit/fixture.h"

#define SEC 0x00
#define MIN 0x02
#define HOUR 0x04
#define WDAY 0x06
#define DAY 0x07
#define MONTH 0x08
#define YEAR 0x09
#define REG_A 0x0a
#define REG_B 0x0b
#define REG_C 0x0c
#define REG_D 0x0d
#define SET 0x80
#define PIE 0x40
#define AIE 0x20
#define UIE 0x10
#define BINARY 0x04
#define H24 0x02

struct machine {
	struct fixture *f;
	struct device *rtc;
};

/* `base`: Thursday 2024-02-29 12:34:56 if not told otherwise; NULL: the host's clock. */
#define BASE "1709210096"

static struct machine machine_create(const char *base, const char *local)
{
	struct machine m = {.f = fixture_create()};

	m.f->vm.config = config_create();
	assert_non_null(m.f->vm.config);
	if (base)
		assert_int_equal(config_set(m.f->vm.config, "rtc.base", base, NULL), 0);
	if (local)
		assert_int_equal(config_set(m.f->vm.config, "rtc.use_localtime", local, NULL), 0);
	m.f->vm.memory.low = 3ull << 30;
	m.f->vm.memory.high = 0x12345ull << 16;
	fixture_watch_lines(m.f);
	m.rtc = fixture_device(m.f, &rtc_class, NULL);
	return m;
}

static void machine_destroy(struct machine *m)
{
	struct config *config = m->f->vm.config;

	fixture_destroy(m->f);
	config_destroy(config);
}

/* Saves the clock and goes on with it in another machine, which was set up otherwise. */
static void machine_move(struct machine *m)
{
	uint64_t now = vclock_now(m->f->vm.clock);
	struct error err = {0};
	uint8_t *bytes;
	size_t len;

	devices_quiesce(&m->f->vm);
	assert_int_equal(device_save(m->rtc, &bytes, &len), 0);
	machine_destroy(m);
	*m = machine_create("86399", NULL);
	fixture_outb(m->f, 0x70, 0x0b);
	fixture_outb(m->f, 0x71, 0xc4);
	fixture_late(m->f, now);
	assert_int_equal(device_restore(m->rtc, bytes, len, &err), 0);
	free(bytes);
	devices_resume(&m->f->vm);
}

static uint8_t get(struct machine *m, uint8_t index)
{
	fixture_outb(m->f, 0x70, index);
	return fixture_inb(m->f, 0x71);
}

static void put(struct machine *m, uint8_t index, uint8_t value)
{
	fixture_outb(m->f, 0x70, index);
	fixture_outb(m->f, 0x71, value);
}

static bool line(struct machine *m)
{
	return irq_line_level(&m->f->vm.irq, 8);
}

/* CCYYMMDDhhmmss as the registers show it, in hexadecimal digits. */
static uint64_t shown(struct machine *m)
{
	static const uint8_t order[] = {0x32, YEAR, MONTH, DAY, HOUR, MIN, SEC};
	uint64_t all = 0;

	for (unsigned n = 0; n < sizeof(order); n++)
		all = all << 8 | get(m, order[n]);
	return all;
}

/* As a careful OS does it: SET, divider reset, the bytes, SET off, divider on. */
static void set_clock(struct machine *m, uint64_t digits, uint8_t wday)
{
	static const uint8_t order[] = {SEC, MIN, HOUR, DAY, MONTH, YEAR, 0x32};
	uint8_t b = get(m, REG_B), a = get(m, REG_A) & 0x7f;

	put(m, REG_B, b | SET);
	put(m, REG_A, a | 0x70);
	for (unsigned n = 0; n < sizeof(order); n++, digits >>= 8)
		put(m, order[n], (uint8_t)digits);
	put(m, WDAY, wday);
	put(m, REG_B, b);
	put(m, REG_A, a);
}

static void test_calendar(void **unused)
{
	struct calendar cal, next;
	int64_t seconds;

	(void)unused;
	/* Every day from year 0 to 9999 has its own number, and each follows the one before. */
	cal = (struct calendar){.year = 0, .month = 1, .day = 1};
	assert_true(calendar_to_seconds(&cal, &seconds));
	for (long day = 0; day < 3652425; day++) {
		int64_t back;

		calendar_from_seconds(seconds + 86399, &next);
		if (next.year != cal.year || next.month != cal.month || next.day != cal.day ||
		    next.hour != 23 || next.min != 59 || next.sec != 59)
			fail_msg("day %ld is %d-%d-%d", day, next.year, next.month, next.day);
		next.hour = next.min = next.sec = 0;
		assert_true(calendar_to_seconds(&next, &back));
		assert_true(back == seconds);
		seconds += 86400;
		cal.day++;
		if (!calendar_to_seconds(&cal, &back)) {
			cal.day = 1;
			cal.month = cal.month % 12 + 1;
			cal.year += cal.month == 1;
		}
	}
	calendar_from_seconds(seconds, &cal);
	assert_int_equal(cal.year, 0);
	calendar_from_seconds(1709210096, &cal);
	assert_int_equal(cal.wday, 4);
	assert_int_equal(cal.day, 29);
	cal.month = 2;
	cal.day = 29;
	cal.year = 1900;
	assert_false(calendar_to_seconds(&cal, &seconds));
}

/* Against the definition: try every second. */
static void test_next_match(void **unused)
{
	uint64_t seed = 7;

	(void)unused;
	for (unsigned round = 0; round < 300; round++) {
		int64_t from = (int64_t)(fixture_random(&seed) % 200000) - 100000, t = from;
		int want[3];
		struct calendar cal;

		for (unsigned n = 0; n < 3; n++) {
			uint64_t r = fixture_random(&seed) >> 8;

			want[n] = r & 1 ? -1 : (int)(r / 2 % (n ? 60 : 24));
		}
		do {
			calendar_from_seconds(++t, &cal);
		} while ((want[0] >= 0 && want[0] != cal.hour) ||
			 (want[1] >= 0 && want[1] != cal.min) ||
			 (want[2] >= 0 && want[2] != cal.sec));
		assert_true(calendar_next_match(from, want) == t);
	}
}

static void test_time_of_day(void **unused)
{
	struct machine m = machine_create(BASE, NULL);

	(void)unused;
	assert_true(shown(&m) == 0x20240229123456);
	assert_int_equal(get(&m, WDAY), 5);
	assert_int_equal(get(&m, REG_D), 0x80);
	fixture_advance(m.f, NS_PER_SEC - 1);
	assert_int_equal(get(&m, SEC), 0x56);
	fixture_advance(m.f, 1);
	assert_int_equal(get(&m, SEC), 0x57);
	fixture_advance(m.f, 11ull * 3600 * NS_PER_SEC + 1503 * NS_PER_SEC);
	assert_true(shown(&m) == 0x20240301000000);
	assert_int_equal(get(&m, WDAY), 6);

	put(&m, REG_B, BINARY | H24);
	fixture_advance(m.f, 13ull * 3600 * NS_PER_SEC);
	assert_int_equal(get(&m, HOUR), 13);
	assert_int_equal(get(&m, YEAR), 24);
	assert_int_equal(get(&m, 0x32), 20);
	put(&m, REG_B, 0);
	assert_int_equal(get(&m, HOUR), 0x81);
	fixture_advance(m.f, 11ull * 3600 * NS_PER_SEC);
	assert_int_equal(get(&m, HOUR), 0x12);
	fixture_advance(m.f, 12ull * 3600 * NS_PER_SEC);
	assert_int_equal(get(&m, HOUR), 0x92);
	machine_destroy(&m);
}

static void test_set_time(void **unused)
{
	struct machine m = machine_create(BASE, NULL);

	(void)unused;
	fixture_advance(m.f, 123456789);
	put(&m, REG_B, get(&m, REG_B) | SET);
	fixture_advance(m.f, 5 * NS_PER_SEC);
	assert_true(shown(&m) == 0x20240229123456); /* held */
	machine_move(&m);
	assert_true(shown(&m) == 0x20240229123456);
	put(&m, REG_B, get(&m, REG_B) & ~SET);
	assert_true(shown(&m) == 0x20240229123456);

	/* The first update comes half a second after the divider was let go. */
	set_clock(&m, 0x19991231235959, 3);
	fixture_advance(m.f, NS_PER_SEC / 2 - 1);
	assert_true(shown(&m) == 0x19991231235959);
	assert_int_equal(get(&m, WDAY), 3);
	fixture_advance(m.f, 1);
	assert_true(shown(&m) == 0x20000101000000);
	assert_int_equal(get(&m, WDAY), 4); /* the guest's own count of days goes on */
	machine_move(&m);
	assert_int_equal(get(&m, WDAY), 4);
	fixture_advance(m.f, NS_PER_SEC);
	assert_true(shown(&m) == 0x20000101000001);

	/* A byte can be written without SET too. */
	put(&m, MIN, 0x42);
	assert_true(shown(&m) == 0x20000101004201);
	fixture_advance(m.f, NS_PER_SEC);
	assert_true(shown(&m) == 0x20000101004202);

	/* No date: the bytes stay until they are one. */
	put(&m, MONTH, 0x77);
	fixture_advance(m.f, 10 * NS_PER_SEC);
	assert_true(shown(&m) == 0x20007701004202);
	put(&m, MONTH, 0x02);
	put(&m, DAY, 0x30);
	put(&m, DAY, 0x29);
	fixture_advance(m.f, NS_PER_SEC);
	assert_true(shown(&m) == 0x20000229004203);
	machine_destroy(&m);
}

static void test_update_in_progress(void **unused)
{
	struct machine m = machine_create(BASE, NULL);

	(void)unused;
	assert_int_equal(get(&m, REG_A), 0x26);
	fixture_advance(m.f, NS_PER_SEC - 2228000 - 1);
	assert_int_equal(get(&m, REG_A), 0x26);
	fixture_advance(m.f, 1);
	assert_int_equal(get(&m, REG_A), 0xa6);
	put(&m, REG_B, SET | H24);
	assert_int_equal(get(&m, REG_A), 0x26);
	put(&m, REG_B, H24);
	fixture_advance(m.f, 2228000);
	assert_int_equal(get(&m, REG_A), 0x26);
	put(&m, REG_A, 0xa6); /* UIP is read-only */
	assert_int_equal(get(&m, REG_A), 0x26);
	machine_destroy(&m);
}

static void test_update_ended(void **unused)
{
	struct machine m = machine_create(BASE, NULL);

	(void)unused;
	fixture_advance(m.f, NS_PER_SEC);
	assert_int_equal(get(&m, REG_C) & 0x90, 0x10); /* polled */
	assert_int_equal(get(&m, REG_C), 0);
	put(&m, REG_B, H24 | UIE);
	for (unsigned n = 1; n <= 3; n++) {
		fixture_advance(m.f, NS_PER_SEC - 1);
		assert_false(line(&m));
		fixture_advance(m.f, 1);
		assert_true(line(&m));
		machine_move(&m);
		assert_true(line(&m));
		assert_int_equal(get(&m, REG_C) & 0x90, 0x90);
		assert_false(line(&m));
		machine_move(&m);
		assert_int_equal(get(&m, REG_C), 0);
	}
	/* Not taken: the line stays up, once, however long. */
	fixture_forget(m.f);
	fixture_advance(m.f, 100 * NS_PER_SEC);
	assert_int_equal(m.f->rises[8], 1);
	get(&m, REG_C);
	/* SET clears the enable. */
	put(&m, REG_B, H24 | UIE | SET);
	assert_int_equal(get(&m, REG_B), H24 | SET);
	machine_destroy(&m);
}

/* Interrupts in a time, each taken at once. */
static unsigned count_interrupts(struct machine *m, uint64_t ns, uint64_t step, uint8_t flag)
{
	unsigned count = 0;

	for (uint64_t t = 0; t < ns; t += step) {
		fixture_advance(m->f, step);
		if (line(m)) {
			assert_int_equal(get(m, REG_C) & (flag | 0x80), flag | 0x80);
			count++;
		}
		assert_false(line(m));
	}
	return count;
}

static void test_alarm(void **unused)
{
	struct machine m = machine_create(BASE, NULL);

	(void)unused;
	put(&m, 0x01, 0x10);
	put(&m, 0x03, 0x35);
	put(&m, 0x05, 0x12);
	put(&m, REG_B, H24 | AIE);
	fixture_advance(m.f, 14 * NS_PER_SEC - 1);
	assert_false(line(&m));
	machine_move(&m);
	fixture_advance(m.f, 1);
	assert_true(line(&m));
	assert_int_equal(get(&m, REG_C) & 0xb0, 0xb0);
	/* once a day; every hour; every minute; every second */
	assert_int_equal(count_interrupts(&m, 2 * 86400 * NS_PER_SEC, 60 * NS_PER_SEC, 0x20), 2);
	put(&m, 0x05, 0xc0);
	assert_int_equal(count_interrupts(&m, 86400 * NS_PER_SEC, 60 * NS_PER_SEC, 0x20), 24);
	put(&m, 0x03, 0xff);
	assert_int_equal(count_interrupts(&m, 3600 * NS_PER_SEC, 20 * NS_PER_SEC, 0x20), 60);
	put(&m, 0x01, 0xfe);
	assert_int_equal(count_interrupts(&m, 60 * NS_PER_SEC, NS_PER_SEC, 0x20), 60);
	/* An alarm that is no time never goes off; 12 hours in binary: 11 pm. */
	put(&m, 0x01, 0x7a);
	assert_int_equal(count_interrupts(&m, 3600 * NS_PER_SEC, 20 * NS_PER_SEC, 0x20), 0);
	put(&m, REG_B, BINARY | AIE);
	put(&m, 0x01, 59);
	put(&m, 0x03, 58);
	put(&m, 0x05, 0x80 | 11);
	while (!line(&m))
		fixture_advance(m.f, NS_PER_SEC);
	assert_int_equal(get(&m, HOUR), 0x80 | 11);
	assert_int_equal(get(&m, MIN), 58);
	assert_int_equal(get(&m, SEC), 59);
	machine_destroy(&m);
}

static void test_periodic(void **unused)
{
	static const unsigned hz[16] = {0,   256, 128, 8192, 4096, 2048, 1024, 512,
					256, 128, 64,  32,   16,   8,	 4,    2};
	struct machine m = machine_create(BASE, NULL);

	(void)unused;
	put(&m, REG_B, H24 | PIE);
	for (unsigned rate = 0; rate < 16; rate++) {
		put(&m, REG_A, (uint8_t)(0x20 | rate));
		get(&m, REG_C);
		assert_int_equal(count_interrupts(&m, NS_PER_SEC, NS_PER_SEC / 20000, 0x40),
				 hz[rate]);
	}
	/* It ticks on with SET, not without a divider; and across a save, in step. */
	put(&m, REG_A, 0x2f);
	put(&m, REG_B, H24 | PIE | SET);
	get(&m, REG_C);
	fixture_advance(m.f, 499 * NS_PER_MS);
	assert_false(line(&m));
	machine_move(&m);
	assert_false(line(&m));
	assert_int_equal(get(&m, REG_A), 0x2f);
	fixture_advance(m.f, NS_PER_MS);
	assert_true(line(&m));
	get(&m, REG_C);
	put(&m, REG_A, 0x7f);
	fixture_advance(m.f, 10 * NS_PER_SEC);
	assert_false(line(&m));
	/* The HPET takes the line over. */
	put(&m, REG_A, 0x2f);
	put(&m, REG_B, H24 | PIE);
	irq_router_replace(&m.f->vm.irq, true);
	fixture_advance(m.f, NS_PER_SEC);
	assert_false(line(&m));
	irq_router_replace(&m.f->vm.irq, false);
	assert_true(line(&m));
	machine_destroy(&m);
}

static void test_memory(void **unused)
{
	struct machine m = machine_create(BASE, NULL);
	uint16_t sum = 0;

	(void)unused;
	assert_int_equal(get(&m, 0x34) | get(&m, 0x35) << 8, ((3u << 30) - (16u << 20)) >> 16);
	assert_int_equal(get(&m, 0x5b) | get(&m, 0x5c) << 8 | get(&m, 0x5d) << 16, 0x12345);
	assert_int_equal(get(&m, 0x15) | get(&m, 0x16) << 8, 640);
	assert_int_equal(get(&m, 0x17) | get(&m, 0x18) << 8, 0xfc00);
	for (uint8_t n = 0x10; n <= 0x2d; n++)
		sum += get(&m, n);
	assert_int_equal(get(&m, 0x2e) << 8 | get(&m, 0x2f), sum);
	/* Memory, and the time, outlive a reset; enabled interrupts don't. */
	machine_move(&m);
	assert_int_equal(get(&m, 0x5b), 0x45);
	put(&m, 0x8f, 0x0a); /* NMI mask bit and shutdown code */
	fixture_outb(m.f, 0x72, 0x7f);
	fixture_outb(m.f, 0x73, 0x5a);
	put(&m, REG_B, H24 | BINARY | UIE | AIE | PIE | 0x08);
	fixture_advance(m.f, 2 * NS_PER_SEC);
	assert_true(line(&m));
	devices_reset(&m.f->vm);
	assert_false(line(&m));
	assert_int_equal(get(&m, 0x0f), 0x0a);
	assert_int_equal(get(&m, REG_B), H24 | BINARY);
	assert_int_equal(get(&m, SEC), 58);
	fixture_outb(m.f, 0x72, 0x7f);
	fixture_outb(m.f, 0x70, 0x0f);
	machine_move(&m);
	assert_int_equal(fixture_inb(m.f, 0x71), 0x0a);
	assert_int_equal(fixture_inb(m.f, 0x73), 0x5a);
	/* Index and data in one word, as hardware cuts it. */
	fixture_out(m.f, 0x70, 2, 0x3340);
	assert_int_equal(get(&m, 0x40), 0x33);
	machine_destroy(&m);
}

static int64_t seconds_shown(struct machine *m)
{
	struct calendar cal;
	int64_t seconds;

	put(m, REG_B, H24 | BINARY);
	cal = (struct calendar){.year = get(m, 0x32) * 100 + get(m, YEAR),
				.month = get(m, MONTH),
				.day = get(m, DAY),
				.hour = get(m, HOUR),
				.min = get(m, MIN),
				.sec = get(m, SEC)};
	assert_true(calendar_to_seconds(&cal, &seconds));
	return seconds;
}

static void assert_near(int64_t a, int64_t b)
{
	if (a < b - 2 || a > b + 2)
		fail_msg("%lld is not near %lld", (long long)a, (long long)b);
}

static void test_host_clock(void **unused)
{
	struct machine m;

	(void)unused;
	setenv("TZ", "XYZ-5:30", 1);
	tzset();
	m = machine_create(NULL, "false");
	assert_near(seconds_shown(&m), time(NULL));
	machine_destroy(&m);
	m = machine_create(NULL, NULL);
	assert_near(seconds_shown(&m), time(NULL) + 19800);
	/* Virtual time went an hour ahead: resume brings it back. */
	fixture_advance(m.f, 3600 * NS_PER_SEC);
	assert_near(seconds_shown(&m), time(NULL) + 19800 + 3600);
	devices_quiesce(&m.f->vm);
	devices_resume(&m.f->vm);
	assert_near(seconds_shown(&m), time(NULL) + 19800);
	/* What the guest set is kept as a distance. */
	put(&m, REG_B, H24);
	set_clock(&m, 0x20300506070809, 1);
	fixture_advance(m.f, 7200 * NS_PER_SEC);
	machine_move(&m); /* which resumes */
	assert_int_equal(shown(&m) >> 8, 0x203005060708);
	machine_destroy(&m);

	/* A clock of its own never looks. */
	m = machine_create(BASE, NULL);
	fixture_advance(m.f, 4 * NS_PER_SEC);
	rtc_resync(m.rtc);
	assert_true(shown(&m) == 0x20240229123500);
	machine_destroy(&m);
	unsetenv("TZ");
	tzset();
}

static void test_bad_base(void **unused)
{
	struct fixture *f = fixture_create();
	struct device *device;
	struct error err = {0};

	(void)unused;
	f->vm.config = config_create();
	config_set(f->vm.config, "rtc.base", "yesterday", NULL);
	assert_true(device_create(&rtc_class, &f->vm, NULL, &device, &err) < 0);
	assert_string_not_equal(err.text, "");
	assert_false(io_bus_read(&f->vm.pio, 0x71, 1, &(uint64_t){0}));
	config_destroy(f->vm.config);
	f->vm.config = NULL;
	fixture_destroy(f);
}

static void test_hostile(void **unused)
{
	struct machine m = machine_create(BASE, NULL);
	uint64_t seed = 99;

	(void)unused;
	fixture_fuzz_pio(m.f, 0x70, 4, 20000, 1);
	for (unsigned n = 0; n < 20000; n++) {
		put(&m, (uint8_t)(fixture_random(&seed) >> 9 & 0x0f),
		    (uint8_t)fixture_random(&seed));
		get(&m, (uint8_t)(fixture_random(&seed) >> 9 & 0x0f));
		fixture_advance(m.f, fixture_random(&seed) % 1000000);
	}
	assert_true(fixture_fuzz_state(m.f, m.rtc, 3000, 3) > 10);
	machine_destroy(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_calendar),
		cmocka_unit_test(test_next_match),
		cmocka_unit_test(test_time_of_day),
		cmocka_unit_test(test_set_time),
		cmocka_unit_test(test_update_in_progress),
		cmocka_unit_test(test_update_ended),
		cmocka_unit_test(test_alarm),
		cmocka_unit_test(test_periodic),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_host_clock),
		cmocka_unit_test(test_bad_base),
		cmocka_unit_test(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
