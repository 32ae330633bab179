/* The 8254 and port 61, against a clock that stands still: 1 PIT clock = 838.1 ns. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "chipset/pace.h"
#include "chipset/pit.h"
#include "tests/unit/fixture.h"

#define CTL 0x43
#define P61 0x61
#define OUT2 0x20

struct board {
	struct fixture *f;
	struct device *pit;
};

static int setup(void **state)
{
	static struct board b;

	b.f = fixture_create();
	fixture_watch_lines(b.f);
	b.pit = fixture_device(b.f, &pit_class, NULL);
	*state = &b;
	return 0;
}

static int teardown(void **state)
{
	fixture_destroy(((struct board *)*state)->f);
	return 0;
}

/* To the beginning of the n-th clock from now. */
static void clocks(struct board *b, uint64_t n)
{
	uint64_t now = vclock_now(b->f->vm.clock);
	uint64_t clock = mul_div_u64(now, PIT_HZ, NS_PER_SEC) + n;

	fixture_advance(b->f, mul_div_u64_up(clock, NS_PER_SEC, PIT_HZ) - now);
}

static void program(struct board *b, unsigned n, unsigned mode, unsigned count)
{
	fixture_outb(b->f, CTL, n << 6 | 0x30 | mode << 1);
	fixture_outb(b->f, 0x40 + n, count);
	fixture_outb(b->f, 0x40 + n, count >> 8);
}

static unsigned latched(struct board *b, unsigned n)
{
	unsigned low;

	fixture_outb(b->f, CTL, n << 6);
	low = fixture_inb(b->f, 0x40 + n);
	return low | fixture_inb(b->f, 0x40 + n) << 8;
}

static uint8_t status(struct board *b, unsigned n)
{
	fixture_outb(b->f, CTL, 0xe0 | 2 << n);
	return fixture_inb(b->f, 0x40 + n);
}

static bool out2(struct board *b)
{
	return fixture_inb(b->f, P61) & OUT2;
}

static unsigned ticks(struct board *b)
{
	return b->f->rises[2];
}

static void test_periodic_rate(void **state)
{
	struct board *b = *state;

	/* 100 Hz as Linux programs it; over 100 s the ticks are as many as the frequency says. */
	program(b, 0, 2, 11932);
	fixture_advance(b->f, 100 * NS_PER_SEC);
	assert_int_equal(ticks(b), 100 * PIT_HZ / 11932);
	fixture_forget(b->f);
	program(b, 0, 3, 0); /* 18.2 Hz, as a PC's firmware does */
	fixture_advance(b->f, 100 * NS_PER_SEC);
	assert_int_equal(ticks(b), 100 * PIT_HZ / 65536);
	assert_int_equal(b->f->rises[2], b->f->falls[2]);
}

static void test_mode0(void **state)
{
	struct board *b = *state;

	program(b, 0, 0, 1000);
	assert_int_equal(status(b, 0), 0x40 | 0x30); /* out low, not loaded yet */
	clocks(b, 1);
	assert_int_equal(status(b, 0), 0x30);
	assert_int_equal(latched(b, 0), 1000);
	clocks(b, 999);
	assert_int_equal(latched(b, 0), 1);
	assert_int_equal(ticks(b), 0);
	clocks(b, 1);
	assert_int_equal(ticks(b), 1);
	assert_int_equal(status(b, 0), 0xb0);
	clocks(b, 1); /* goes on from ffff, says no more */
	assert_int_equal(latched(b, 0), 0xffff);
	clocks(b, 200000);
	assert_int_equal(ticks(b), 1);
	/* The first byte of a new count stops it. */
	program(b, 0, 0, 1000);
	clocks(b, 500);
	fixture_outb(b->f, 0x40, 100);
	clocks(b, 5000);
	assert_int_equal(ticks(b), 1);
	fixture_outb(b->f, 0x40, 0);
	clocks(b, 100);
	assert_int_equal(ticks(b), 1);
	clocks(b, 1);
	assert_int_equal(ticks(b), 2);
}

static void test_mode2_and_new_count(void **state)
{
	struct board *b = *state;

	program(b, 0, 2, 1000);
	clocks(b, 1);
	assert_int_equal(latched(b, 0), 1000);
	clocks(b, 999);
	assert_int_equal(latched(b, 0), 1);
	assert_int_equal(status(b, 0), 0x34); /* low for the last clock */
	assert_int_equal(ticks(b), 0);
	clocks(b, 1);
	assert_int_equal(latched(b, 0), 1000);
	assert_int_equal(status(b, 0), 0xb4);
	assert_int_equal(ticks(b), 1);
	/* A new count waits for the end of the period. */
	clocks(b, 300);
	fixture_outb(b->f, 0x40, 500 & 0xff);
	fixture_outb(b->f, 0x40, 500 >> 8);
	assert_int_equal(status(b, 0), 0xf4);
	clocks(b, 699);
	assert_int_equal(latched(b, 0), 1);
	assert_int_equal(ticks(b), 1);
	clocks(b, 1);
	assert_int_equal(latched(b, 0), 500);
	assert_int_equal(ticks(b), 2);
	clocks(b, 500);
	assert_int_equal(ticks(b), 3);
}

static void test_mode3(void **state)
{
	struct board *b = *state;
	unsigned high = 0;

	fixture_outb(b->f, P61, 1);
	program(b, 2, 3, 1000);
	clocks(b, 1);
	assert_int_equal(latched(b, 2), 1000);
	clocks(b, 10);
	assert_int_equal(latched(b, 2), 980); /* by twos */
	assert_true(out2(b));
	clocks(b, 490);
	assert_false(out2(b));
	assert_int_equal(latched(b, 2), 1000);
	clocks(b, 500);
	assert_true(out2(b));
	/* Odd: one clock more high than low. */
	program(b, 2, 3, 5);
	clocks(b, 1);
	for (unsigned n = 0; n < 50; n++, clocks(b, 1))
		high += out2(b);
	assert_int_equal(high, 30);
	/* A new count is taken at the end of the half. */
	program(b, 2, 3, 1000);
	clocks(b, 1 + 100);
	fixture_outb(b->f, 0x42, 100);
	fixture_outb(b->f, 0x42, 0);
	clocks(b, 399);
	assert_true(out2(b));
	clocks(b, 1);
	assert_false(out2(b));
	clocks(b, 49);
	assert_false(out2(b));
	clocks(b, 1);
	assert_true(out2(b));
}

static void test_mode3_longer_count_soon_after_power_on(void **state)
{
	struct board *b = *state;

	fixture_outb(b->f, P61, 1);
	program(b, 2, 3, 100);
	clocks(b, 11);
	fixture_outb(b->f, 0x42, 60000 & 0xff);
	fixture_outb(b->f, 0x42, 60000 >> 8);
	clocks(b, 40);
	assert_false(out2(b));
	clocks(b, 100);
	assert_int_equal(latched(b, 2), 60000 - 200);
	assert_false(out2(b));
	clocks(b, 29900);
	assert_true(out2(b));
}

static void test_gate_and_one_shots(void **state)
{
	struct board *b = *state;

	/* Mode 0 stands still without its gate, as the Linux TSC calibration uses it. */
	program(b, 2, 0, 100);
	clocks(b, 1000);
	assert_false(out2(b));
	fixture_outb(b->f, P61, 1);
	clocks(b, 50);
	fixture_outb(b->f, P61, 0);
	clocks(b, 1000);
	assert_int_equal(latched(b, 2), 50);
	fixture_outb(b->f, P61, 1);
	clocks(b, 49);
	assert_false(out2(b));
	clocks(b, 1);
	assert_true(out2(b));

	/* Mode 1: the gate triggers, and triggers again. */
	fixture_outb(b->f, P61, 0);
	program(b, 2, 1, 100);
	clocks(b, 200);
	assert_true(out2(b));
	fixture_outb(b->f, P61, 1);
	clocks(b, 1);
	assert_false(out2(b));
	clocks(b, 60);
	fixture_outb(b->f, P61, 0);
	fixture_outb(b->f, P61, 1);
	clocks(b, 100);
	assert_false(out2(b));
	clocks(b, 1);
	assert_true(out2(b));

	/* Mode 2: without the gate high, at its return from the start. */
	program(b, 2, 2, 100);
	clocks(b, 51);
	assert_int_equal(latched(b, 2), 50);
	fixture_outb(b->f, P61, 0);
	clocks(b, 49);
	assert_true(out2(b));
	fixture_outb(b->f, P61, 1);
	clocks(b, 1);
	assert_int_equal(latched(b, 2), 100);
	/* A new count that the gate keeps waiting. */
	clocks(b, 30);
	fixture_outb(b->f, 0x42, 50);
	fixture_outb(b->f, 0x42, 0);
	fixture_outb(b->f, P61, 0);
	clocks(b, 1000);
	assert_int_equal(latched(b, 2), 70);
	fixture_outb(b->f, P61, 1);
	clocks(b, 1);
	assert_int_equal(latched(b, 2), 50);
}

static void test_strobes(void **state)
{
	struct board *b = *state;

	fixture_outb(b->f, P61, 1);
	program(b, 2, 4, 100);
	clocks(b, 100);
	assert_true(out2(b));
	clocks(b, 1);
	assert_false(out2(b));
	clocks(b, 1);
	assert_true(out2(b));
	program(b, 2, 5, 100);
	clocks(b, 500);
	assert_true(out2(b));
	fixture_outb(b->f, P61, 0);
	fixture_outb(b->f, P61, 1);
	clocks(b, 101);
	assert_false(out2(b));
	clocks(b, 1);
	assert_true(out2(b));
	program(b, 0, 4, 100);
	clocks(b, 101);
	assert_int_equal(ticks(b), 0);
	clocks(b, 1);
	assert_int_equal(ticks(b), 1);
	program(b, 0, 1, 100); /* counter 0 has no gate to trigger it */
	clocks(b, 100000);
	assert_int_equal(ticks(b), 1);
}

static void test_access(void **state)
{
	struct board *b = *state;
	struct fixture *f = b->f;

	fixture_outb(f, CTL, 0x14); /* low byte only, mode 2 */
	fixture_outb(f, 0x40, 200);
	clocks(b, 1);
	assert_int_equal(fixture_inb(f, 0x40), 200);
	clocks(b, 1);
	assert_int_equal(fixture_inb(f, 0x40), 199);
	fixture_outb(f, CTL, 0x24); /* high byte only */
	fixture_outb(f, 0x40, 2);
	clocks(b, 1);
	assert_int_equal(fixture_inb(f, 0x40), 2);
	clocks(b, 1);
	assert_int_equal(fixture_inb(f, 0x40), 1);
	/* A latch keeps its value until it was read whole; a second latch is ignored. */
	program(b, 0, 2, 0x1234);
	clocks(b, 1);
	fixture_outb(f, CTL, 0x00);
	clocks(b, 0x100);
	fixture_outb(f, CTL, 0x00);
	assert_int_equal(fixture_inb(f, 0x40), 0x34);
	assert_int_equal(fixture_inb(f, 0x40), 0x12);
	assert_int_equal(fixture_inb(f, 0x40), 0x34);
	assert_int_equal(fixture_inb(f, 0x40), 0x11);
	/* Read-back of status and count of two counters: the status is read first. */
	program(b, 1, 3, 18);
	clocks(b, 1);
	fixture_outb(f, CTL, 0xc6);
	clocks(b, 5);
	assert_int_equal(fixture_inb(f, 0x41), 0xb6);
	assert_int_equal(fixture_inb(f, 0x41), 18);
	assert_int_equal(fixture_inb(f, 0x41), 0);
	assert_int_equal(fixture_inb(f, 0x40), 0xb4);
	assert_int_equal(fixture_inb(f, CTL), 0xff);
	/* A guest that reads 16 bits at once gets two byte accesses of two ports. */
	assert_int_equal(fixture_in(f, 0x42, 2) >> 8, 0xff);
}

static void test_bcd(void **state)
{
	struct board *b = *state;

	fixture_outb(b->f, CTL, 0x31); /* mode 0, BCD */
	fixture_outb(b->f, 0x40, 0x00);
	fixture_outb(b->f, 0x40, 0x10); /* 1000 */
	clocks(b, 1 + 1);
	assert_int_equal(latched(b, 0), 0x0999);
	clocks(b, 998);
	assert_int_equal(ticks(b), 0);
	clocks(b, 1);
	assert_int_equal(ticks(b), 1);
	clocks(b, 1);
	assert_int_equal(latched(b, 0), 0x9999);
	fixture_outb(b->f, CTL, 0x35); /* mode 2; 0 is 10000 */
	fixture_outb(b->f, 0x40, 0);
	fixture_outb(b->f, 0x40, 0);
	fixture_forget(b->f);
	clocks(b, 100001);
	assert_int_equal(ticks(b), 10);
}

static void test_port61(void **state)
{
	struct board *b = *state;
	unsigned toggles = 0;
	uint8_t last = fixture_inb(b->f, P61);

	assert_int_equal(last & 0xcf, 0);
	fixture_outb(b->f, P61, 0xff);
	assert_int_equal(fixture_inb(b->f, P61) & 0xcf, 0x0f);
	for (unsigned n = 0; n < 1000; n++) {
		uint8_t now;

		fixture_advance(b->f, NS_PER_US);
		now = fixture_inb(b->f, P61);
		toggles += (now ^ last) >> 4 & 1;
		last = now;
	}
	assert_in_range(toggles, 65, 67); /* each 15.085 us */
}

static void test_late_loop(void **state)
{
	struct board *b = *state;

	program(b, 0, 2, 1193); /* 1 kHz */
	fixture_advance(b->f, 10 * NS_PER_MS + 500 * NS_PER_US);
	assert_int_equal(ticks(b), 10);
	/* 20 ms late: one tick at once, the others at twice the rate, none lost. */
	fixture_late(b->f, 20 * NS_PER_MS);
	fixture_advance(b->f, 0);
	assert_int_equal(ticks(b), 11);
	fixture_advance(b->f, 10 * NS_PER_MS);
	assert_in_range(ticks(b), 30, 32);
	fixture_advance(b->f, 59 * NS_PER_MS + 500 * NS_PER_US);
	assert_int_equal(ticks(b), 100);
	/* Hours late: what is made up for is bounded. */
	fixture_forget(b->f);
	fixture_late(b->f, 3600 * NS_PER_SEC);
	fixture_advance(b->f, 1000 * NS_PER_MS);
	assert_in_range(ticks(b), 1000 + PACE_BACKLOG - 2, 1000 + PACE_BACKLOG + 3);
}

static void test_fast_guest_is_bounded(void **state)
{
	struct board *b = *state;

	program(b, 0, 2, 1);
	fixture_advance(b->f, NS_PER_SEC);
	assert_in_range(ticks(b), 9000, 10100);
}

static void test_save_restore(void **state)
{
	struct board *b = *state;

	program(b, 0, 2, 1000);
	program(b, 2, 0, 5000);
	fixture_outb(b->f, P61, 1);
	clocks(b, 1 + 600);
	fixture_outb(b->f, 0x40, 500 & 0xff); /* a new count that waits, */
	fixture_outb(b->f, 0x40, 500 >> 8);
	fixture_outb(b->f, CTL, 0x80); /* a latch half read */
	assert_int_equal(fixture_inb(b->f, 0x42), (5000 - 600) & 0xff);
	fixture_save_restore(b->f);
	assert_int_equal(fixture_inb(b->f, 0x42), (5000 - 600) >> 8);
	clocks(b, 399);
	assert_int_equal(ticks(b), 0);
	clocks(b, 1);
	assert_int_equal(ticks(b), 1);
	fixture_save_restore(b->f);
	clocks(b, 500);
	assert_int_equal(ticks(b), 2);
	clocks(b, 5000 - 600 - 400 - 500 - 1);
	assert_false(out2(b));
	fixture_save_restore(b->f);
	clocks(b, 1);
	assert_true(out2(b));
	/* A tick that the loop owed when the VM was stopped comes afterwards. */
	program(b, 0, 0, 1000);
	fixture_forget(b->f);
	fixture_late(b->f, NS_PER_SEC);
	fixture_save_restore(b->f);
	fixture_advance(b->f, 0);
	assert_int_equal(ticks(b), 1);
}

static void test_reset(void **state)
{
	struct board *b = *state;

	program(b, 0, 2, 1000);
	fixture_outb(b->f, P61, 3);
	devices_reset(&b->f->vm);
	fixture_advance(b->f, NS_PER_SEC);
	assert_int_equal(ticks(b), 0);
	assert_int_equal(fixture_inb(b->f, P61) & 0xcf, 0);
}

static void test_hostile(void **state)
{
	struct board *b = *state;
	unsigned taken = 0;

	for (unsigned round = 0; round < 20; round++) {
		fixture_fuzz_pio(b->f, 0x40, 4, 1000, round + 1);
		fixture_fuzz_pio(b->f, P61, 1, 50, round + 101);
		taken += fixture_fuzz_state(b->f, b->pit, 50, round + 201);
	}
	assert_in_range(taken, 50, UINT32_MAX); /* the test reaches the device */
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_periodic_rate),
		TEST(test_mode0),
		TEST(test_mode2_and_new_count),
		TEST(test_mode3),
		TEST(test_mode3_longer_count_soon_after_power_on),
		TEST(test_gate_and_one_shots),
		TEST(test_strobes),
		TEST(test_access),
		TEST(test_bcd),
		TEST(test_port61),
		TEST(test_late_loop),
		TEST(test_fast_guest_is_bounded),
		TEST(test_save_restore),
		TEST(test_reset),
		TEST(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
