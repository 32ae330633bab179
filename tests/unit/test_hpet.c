/* The HPET, against a clock that stands still. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "bus/irq.h"
#include "chipset/hpet.h"
#include "chipset/pace.h"
#include "chipset/pit.h"
#include "tests/unit/fixture.h"

#define CAP 0x000
#define CONFIG 0x010
#define STATUS 0x020
#define COUNTER 0x0f0
#define TN(n) (0x100u + 0x20u * (n))
#define CMP(n) (0x108u + 0x20u * (n))
#define LEVEL 0x02u
#define ENABLE 0x04u
#define PERIODIC 0x08u
#define VAL_SET 0x40u
#define MODE32 0x100u
#define ROUTE(gsi) ((gsi) << 9)
#define TICKS_PER_MS 10000u

struct board {
	struct fixture *f;
	struct device *hpet;
};

static int setup(void **state)
{
	static struct board b;

	b.f = fixture_create();
	fixture_watch_lines(b.f);
	b.hpet = fixture_device(b.f, &hpet_class, NULL);
	*state = &b;
	return 0;
}

static int teardown(void **state)
{
	fixture_destroy(((struct board *)*state)->f);
	return 0;
}

static uint64_t rd(struct board *b, uint64_t reg)
{
	return fixture_read(b->f, HPET_BASE + reg, 8);
}

static void wr(struct board *b, uint64_t reg, uint64_t value)
{
	fixture_write(b->f, HPET_BASE + reg, 8, value);
}

static void wr32(struct board *b, uint64_t reg, uint32_t value)
{
	fixture_write(b->f, HPET_BASE + reg, 4, value);
}

static unsigned rises(struct board *b, unsigned gsi)
{
	return b->f->rises[gsi];
}

static void ms(struct board *b, uint64_t n)
{
	fixture_advance(b->f, n * NS_PER_MS);
}

static void test_registers(void **state)
{
	struct board *b = *state;

	assert_int_equal(rd(b, CAP), 0x05f5e1008086a201ull); /* 100 ns, 3 timers, 64 bits */
	assert_int_equal(fixture_read(b->f, HPET_BASE + 4, 4), 100000000);
	assert_int_equal((uint32_t)rd(b, CAP), HPET_BLOCK_ID);
	wr(b, CAP, 0);
	assert_int_equal((uint32_t)rd(b, CAP), HPET_BLOCK_ID);
	wr(b, CONFIG, ~0ull);
	assert_int_equal(rd(b, CONFIG), 3);
	for (unsigned n = 0; n < HPET_TIMERS; n++) {
		assert_int_equal(rd(b, TN(n)), 0x00f0000000000030ull);
		assert_int_equal(rd(b, CMP(n)), ~0ull);
	}
	wr(b, TN(0), ROUTE(21));
	wr(b, TN(0), ROUTE(3)); /* a route it does not have: the old one stays */
	assert_int_equal(rd(b, TN(0)) >> 9 & 31, 21);
	assert_int_equal(rd(b, TN(HPET_TIMERS)), 0);
	/* Other than aligned 32 and 64 bits. */
	assert_int_equal(fixture_read(b->f, HPET_BASE + 1, 1), 0xa2);
	fixture_write(b->f, HPET_BASE + CONFIG, 1, 0);
	assert_int_equal(rd(b, CONFIG), 3);
}

static void test_counter(void **state)
{
	struct board *b = *state;

	ms(b, 5);
	assert_int_equal(rd(b, COUNTER), 0); /* halted */
	wr(b, CONFIG, 1);
	ms(b, 7);
	assert_int_equal(rd(b, COUNTER), 7 * TICKS_PER_MS);
	wr(b, CONFIG, 0);
	ms(b, 7);
	assert_int_equal(rd(b, COUNTER), 7 * TICKS_PER_MS);
	wr(b, COUNTER, 0xfffffff0);
	wr(b, CONFIG, 1);
	fixture_advance(b->f, 3200);
	assert_int_equal(rd(b, COUNTER), 0x100000010ull);
	assert_int_equal(fixture_read(b->f, HPET_BASE + COUNTER + 4, 4), 1);
	wr(b, CONFIG, 0);
	wr32(b, COUNTER + 4, 0x1234);
	assert_int_equal(rd(b, COUNTER), 0x123400000010ull);
}

static void test_one_shot(void **state)
{
	struct board *b = *state;

	wr(b, CONFIG, 1);
	wr(b, TN(2), ENABLE | ROUTE(22));
	wr(b, CMP(2), 10 * TICKS_PER_MS);
	fixture_advance(b->f, 10 * NS_PER_MS - 100);
	assert_int_equal(rises(b, 22), 0);
	fixture_advance(b->f, 100);
	assert_int_equal(rises(b, 22), 1);
	assert_int_equal(b->f->falls[22], 1);
	assert_int_equal(rd(b, STATUS), 0);
	assert_int_equal(rd(b, CMP(2)), 10 * TICKS_PER_MS);
	ms(b, 1000000);
	assert_int_equal(rises(b, 22), 1);
	wr(b, CMP(2),
	   rd(b, COUNTER) - 1500 * TICKS_PER_MS); /* gone by: not before the counter wraps */
	ms(b, 1000);
	assert_int_equal(rises(b, 22), 1);
	wr(b, CMP(2), rd(b, COUNTER) + 100);
	wr(b, TN(2), ROUTE(22)); /* disabled */
	ms(b, 1);
	assert_int_equal(rises(b, 22), 1);
}

static void test_32_bit(void **state)
{
	struct board *b = *state;

	wr(b, COUNTER, 0x5fffffff0ull);
	wr(b, TN(1), ENABLE | MODE32 | ROUTE(20));
	wr32(b, CMP(1), 0x10);
	assert_int_equal(rd(b, CMP(1)), 0x10);
	wr(b, CONFIG, 1);
	fixture_advance(b->f, 3200);
	assert_int_equal(rises(b, 20), 1);
	fixture_advance(b->f, (1ull << 32) * 100); /* and by again */
	assert_int_equal(rises(b, 20), 2);
}

static void test_periodic(void **state)
{
	struct board *b = *state;

	/* As Linux does it: 32 bits, VAL_SET, the first match, then the period. */
	wr(b, CONFIG, 1);
	ms(b, 3);
	wr32(b, TN(0), ENABLE | PERIODIC | VAL_SET | MODE32 | ROUTE(20));
	assert_int_equal(rd(b, TN(0)) & VAL_SET, 0);
	wr32(b, CMP(0), 5 * TICKS_PER_MS);
	wr32(b, CMP(0), TICKS_PER_MS);
	ms(b, 2);
	assert_int_equal(rises(b, 20), 1);
	assert_int_equal(rd(b, CMP(0)), 6 * TICKS_PER_MS); /* the accumulator */
	fixture_advance(b->f, 100 * NS_PER_SEC);
	assert_int_equal(rises(b, 20), 1 + 100000);
	/* A single write sets both (the specification's own example). */
	wr(b, CONFIG, 0);
	wr(b, COUNTER, 0);
	wr(b, TN(1), ENABLE | PERIODIC | VAL_SET | ROUTE(21));
	wr(b, CMP(1), 0x123 * 1000);
	wr(b, TN(0), 0);
	wr(b, CONFIG, 1);
	fixture_advance(b->f, 0x123 * 1000 * 100ull * 7);
	assert_int_equal(rises(b, 21), 7);
	assert_int_equal(rd(b, CMP(1)), 0x123 * 1000 * 8);
	/* Halted in the middle of a period and run on. */
	fixture_advance(b->f, 1000 * 100);
	wr(b, CONFIG, 0);
	ms(b, 1000);
	assert_int_equal(rises(b, 21), 7);
	wr(b, CONFIG, 1);
	fixture_advance(b->f, 0x123 * 1000 * 100ull - 1000 * 100 - 100);
	assert_int_equal(rises(b, 21), 7);
	fixture_advance(b->f, 100);
	assert_int_equal(rises(b, 21), 8);
}

/* A guest's CPU can lose the host's between the read of the counter and the writes that follow. */
static void test_slow_guest(void **state)
{
	struct board *b = *state;

	ms(b, 50);
	wr(b, CONFIG, 1);
	ms(b, 50);
	wr(b, TN(2), ENABLE | ROUTE(22));
	wr(b, CMP(2), rd(b, COUNTER) - 7 * TICKS_PER_MS);
	ms(b, 0);
	assert_int_equal(rises(b, 22), 1);
	wr(b, TN(2), ENABLE | ROUTE(22)); /* that comparator has had its match */
	ms(b, 1000);
	assert_int_equal(rises(b, 22), 1);
	wr(b, TN(2), ROUTE(22));
	wr(b, CMP(2), rd(b, COUNTER) - 7 * TICKS_PER_MS);
	wr(b, TN(2), ENABLE | ROUTE(22)); /* it was not enabled then */
	ms(b, 1000);
	assert_int_equal(rises(b, 22), 1);
	wr(b, TN(1), ENABLE | MODE32 | ROUTE(21));
	wr32(b, CMP(1), (uint32_t)rd(b, COUNTER) - 7 * TICKS_PER_MS);
	fixture_advance(b->f, (1ull << 32) * 100 - 7 * NS_PER_MS - 100);
	assert_int_equal(rises(b, 21), 1);
	fixture_advance(b->f, 100);
	assert_int_equal(rises(b, 21), 2);

	/* The accumulator's match comes, and goes by for long, before the period is written. */
	fixture_forget(b->f);
	wr(b, TN(0), ENABLE | PERIODIC | VAL_SET | ROUTE(20));
	wr(b, CMP(0), rd(b, COUNTER) + 3 * TICKS_PER_MS);
	ms(b, 2);
	fixture_save_restore(b->f);
	ms(b, 10);
	assert_int_equal(rises(b, 20), 1);
	wr(b, CMP(0), 3 * TICKS_PER_MS);
	ms(b, 90);
	assert_int_equal(rises(b, 20), 31);
	/* Another period later on leaves the match that comes next where it is. */
	wr(b, CMP(0), 50 * TICKS_PER_MS);
	fixture_forget(b->f);
	ms(b, 4);
	assert_int_equal(rises(b, 20), 1);
	ms(b, 40);
	assert_int_equal(rises(b, 20), 1);
	/* Even the accumulator came late. */
	fixture_forget(b->f);
	wr(b, TN(0), ENABLE | PERIODIC | VAL_SET | ROUTE(20));
	wr(b, CMP(0), rd(b, COUNTER) - 3 * TICKS_PER_MS);
	wr(b, CMP(0), 3 * TICKS_PER_MS);
	ms(b, 30);
	assert_in_range(rises(b, 20), 10, 11);
	/* A single write set both; the period changes later. */
	fixture_forget(b->f);
	wr(b, TN(0), ENABLE | PERIODIC | VAL_SET | ROUTE(20));
	wr(b, CMP(0), rd(b, COUNTER) + TICKS_PER_MS);
	ms(b, 30000);
	wr(b, CMP(0), TICKS_PER_MS);
	ms(b, 30);
	assert_in_range(rises(b, 20), 30, 40);
}

static void test_level(void **state)
{
	struct board *b = *state;

	wr(b, CONFIG, 1);
	wr(b, TN(0), ENABLE | LEVEL | ROUTE(23));
	wr(b, CMP(0), TICKS_PER_MS);
	ms(b, 1);
	assert_int_equal(rd(b, STATUS), 1);
	assert_true(irq_line_level(&b->f->vm.irq, 23));
	wr(b, STATUS, 2);
	assert_true(irq_line_level(&b->f->vm.irq, 23));
	wr(b, STATUS, 1);
	assert_false(irq_line_level(&b->f->vm.irq, 23));
	assert_int_equal(rd(b, STATUS), 0);
	/* Polled: the status comes without the interrupt, even if the loop is late. */
	wr(b, TN(0), LEVEL | ROUTE(23));
	wr(b, CMP(0), 3 * TICKS_PER_MS);
	fixture_late(b->f, 10 * NS_PER_MS);
	assert_int_equal(rd(b, STATUS), 1);
	assert_false(irq_line_level(&b->f->vm.irq, 23));
	wr(b, TN(0), LEVEL | ENABLE | ROUTE(23));
	assert_true(irq_line_level(&b->f->vm.irq, 23));
	/* Another route takes the line along. */
	wr(b, TN(0), LEVEL | ENABLE | ROUTE(22));
	assert_false(irq_line_level(&b->f->vm.irq, 23));
	assert_true(irq_line_level(&b->f->vm.irq, 22));
	/* A timer that becomes an edge has no status. */
	wr(b, TN(0), ENABLE | ROUTE(22));
	assert_int_equal(rd(b, STATUS), 0);
	assert_false(irq_line_level(&b->f->vm.irq, 22));
	wr(b, TN(0), LEVEL | ENABLE | ROUTE(22));
	wr(b, CMP(0), rd(b, COUNTER) + TICKS_PER_MS);
	ms(b, 1);
	assert_true(irq_line_level(&b->f->vm.irq, 22));
	devices_reset(&b->f->vm);
	assert_false(irq_line_level(&b->f->vm.irq, 22));
}

static void test_legacy_replacement(void **state)
{
	struct board *b = *state;
	struct irq_source rtc;

	fixture_device(b->f, &pit_class, NULL);
	irq_source_init_replaceable(&rtc, &b->f->vm.irq, 8);
	fixture_outb(b->f, 0x43, 0x34); /* the PIT at 1 kHz */
	fixture_outb(b->f, 0x40, 1193 & 0xff);
	fixture_outb(b->f, 0x40, 1193 >> 8);
	ms(b, 100);
	assert_in_range(rises(b, 2), 99, 101);
	wr(b, TN(0), ENABLE);
	wr(b, CMP(0), 10 * TICKS_PER_MS);
	wr(b, TN(1), ENABLE);
	wr(b, CMP(1), 20 * TICKS_PER_MS);
	fixture_forget(b->f);
	wr(b, CONFIG, 3);
	irq_source_set(&rtc, true);
	ms(b, 100);
	assert_int_equal(rises(b, 2), 1); /* the HPET's, none of the PIT */
	assert_int_equal(rises(b, 8), 1);
	assert_int_equal(b->f->falls[8], 1);
	fixture_save_restore(b->f);
	ms(b, 100);
	assert_int_equal(rises(b, 2), 1);
	wr(b, CONFIG, 1);
	assert_true(irq_line_level(&b->f->vm.irq, 8)); /* the RTC holds it still */
	ms(b, 100);
	assert_in_range(rises(b, 2), 100, 102);
}

static void test_late_loop(void **state)
{
	struct board *b = *state;

	wr(b, TN(0), ENABLE | PERIODIC | VAL_SET | ROUTE(20));
	wr(b, CMP(0), TICKS_PER_MS);
	wr(b, CONFIG, 1);
	ms(b, 10);
	assert_int_equal(rises(b, 20), 10);
	fixture_late(b->f, 20 * NS_PER_MS);
	assert_int_equal(rd(b, CMP(0)), 31 * TICKS_PER_MS);
	fixture_advance(b->f, 0);
	assert_int_equal(rises(b, 20), 11);
	for (unsigned n = 0; n < 100; n++)
		rd(b, STATUS); /* a guest that reads gets no burst either */
	assert_int_equal(rises(b, 20), 11);
	ms(b, 70);
	assert_int_equal(rises(b, 20), 100);
	fixture_late(b->f, 3600 * NS_PER_SEC);
	fixture_forget(b->f);
	ms(b, 1000);
	assert_in_range(rises(b, 20), 1000 + PACE_BACKLOG - 2, 1000 + PACE_BACKLOG + 3);
	/* However short a period a guest asks for. */
	wr(b, TN(1), ENABLE | PERIODIC | VAL_SET | ROUTE(21));
	wr(b, CMP(1), rd(b, COUNTER) + 10);
	wr(b, CMP(1), 1);
	ms(b, 1000);
	assert_in_range(rises(b, 21), 9000, 10100);
}

static void test_save_restore(void **state)
{
	struct board *b = *state;

	wr(b, TN(0), ENABLE | PERIODIC | VAL_SET | ROUTE(20));
	wr(b, CMP(0), 10 * TICKS_PER_MS);
	wr(b, TN(1), ENABLE | LEVEL | ROUTE(21));
	wr(b, CMP(1), 1 * TICKS_PER_MS);
	wr(b, TN(2), ENABLE | ROUTE(22));
	wr(b, CMP(2), 17 * TICKS_PER_MS);
	wr(b, CONFIG, 1);
	ms(b, 15);
	assert_int_equal(rises(b, 20), 1);
	fixture_save_restore(b->f);
	assert_int_equal(rd(b, COUNTER), 15 * TICKS_PER_MS);
	assert_true(irq_line_level(&b->f->vm.irq, 21));
	ms(b, 4);
	assert_int_equal(rises(b, 20), 1);
	assert_int_equal(rises(b, 22), 1);
	ms(b, 1);
	assert_int_equal(rises(b, 20), 2);
	/* A match that the loop owed when the VM was stopped comes afterwards. */
	wr(b, CMP(2), 21 * TICKS_PER_MS);
	fixture_late(b->f, 5 * NS_PER_MS);
	fixture_save_restore(b->f);
	fixture_advance(b->f, 0);
	assert_int_equal(rises(b, 22), 2);
}

static void test_hostile(void **state)
{
	struct board *b = *state;
	unsigned taken = 0;

	for (unsigned round = 0; round < 20; round++) {
		fixture_fuzz_mmio(b->f, HPET_BASE, HPET_SIZE, 300, round + 1);
		fixture_fuzz_mmio(b->f, HPET_BASE + TN(0), 0x60, 700, round + 101);
		fixture_fuzz_mmio(b->f, HPET_BASE + CONFIG, 8, 5, round + 201);
		taken += fixture_fuzz_state(b->f, b->hpet, 50, round + 301);
	}
	assert_in_range(taken, 50, UINT32_MAX); /* the test reaches the device */
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_registers), TEST(test_counter),
		TEST(test_one_shot),  TEST(test_32_bit),
		TEST(test_periodic),  TEST(test_slow_guest),
		TEST(test_level),     TEST(test_legacy_replacement),
		TEST(test_late_loop), TEST(test_save_restore),
		TEST(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
