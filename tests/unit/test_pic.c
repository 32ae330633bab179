/* The 8259 pair, programmed as PC firmware and operating systems do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "bus/irq.h"
#include "chipset/pic.h"
#include "tests/unit/fixture.h"

#define M_CMD 0x20
#define M_DATA 0x21
#define S_CMD 0xa0
#define S_DATA 0xa1
#define EOI 0x20

struct pair {
	struct fixture *f;
	struct device *pic;
	struct irq_source irq[16]; /* by ISA number */
};

static void pair_init(struct pair *p, uint8_t icw4_master, uint8_t icw4_slave)
{
	fixture_outb(p->f, M_CMD, 0x11);
	fixture_outb(p->f, M_DATA, 0x20);
	fixture_outb(p->f, M_DATA, 0x04);
	fixture_outb(p->f, M_DATA, icw4_master);
	fixture_outb(p->f, S_CMD, 0x11);
	fixture_outb(p->f, S_DATA, 0x28);
	fixture_outb(p->f, S_DATA, 0x02);
	fixture_outb(p->f, S_DATA, icw4_slave);
}

static int setup(void **state)
{
	static struct pair p;

	p.f = fixture_create();
	p.pic = fixture_device(p.f, &pic_class, NULL);
	for (unsigned n = 0; n < 16; n++)
		irq_source_init(&p.irq[n], &p.f->vm.irq, n == 2 ? 23 : irq_isa_gsi(n));
	pair_init(&p, 0x01, 0x01);
	*state = &p;
	return 0;
}

static int teardown(void **state)
{
	fixture_destroy(((struct pair *)*state)->f);
	return 0;
}

static bool intr(struct pair *p)
{
	return p->f->vm.extint.level;
}

static uint8_t isr(struct pair *p, uint16_t port)
{
	fixture_outb(p->f, port, 0x0b);
	return fixture_inb(p->f, port);
}

static uint8_t irr(struct pair *p, uint16_t port)
{
	fixture_outb(p->f, port, 0x0a);
	return fixture_inb(p->f, port);
}

static void test_quiet_until_programmed(void **state)
{
	struct fixture *f = fixture_create();
	struct irq_source irq;

	(void)state;
	fixture_device(f, &pic_class, NULL);
	irq_source_init(&irq, &f->vm.irq, 4);
	irq_source_pulse(&irq);
	assert_false(f->vm.extint.level);
	/* Linux looks for a PIC by its mask register, before it programs it. */
	fixture_outb(f, M_DATA, 0xfb);
	assert_int_equal(fixture_inb(f, M_DATA), 0xfb);
	fixture_destroy(f);
}

static void test_edge(void **state)
{
	struct pair *p = *state;

	irq_source_pulse(&p->irq[4]);
	assert_true(intr(p));
	assert_int_equal(irr(p, M_CMD), 0x10);
	assert_int_equal(fixture_intack(p->f), 0x24);
	assert_false(intr(p));
	assert_int_equal(irr(p, M_CMD), 0);
	assert_int_equal(isr(p, M_CMD), 0x10);
	irq_source_pulse(&p->irq[4]); /* in service: waits */
	assert_false(intr(p));
	fixture_outb(p->f, M_CMD, EOI);
	assert_true(intr(p));
	assert_int_equal(fixture_intack(p->f), 0x24);
	fixture_outb(p->f, M_CMD, 0x60 | 4);
	assert_int_equal(isr(p, M_CMD), 0);
}

static void test_timer_is_gsi_2(void **state)
{
	struct pair *p = *state;
	struct irq_source gsi0;

	irq_source_pulse(&p->irq[0]);
	assert_int_equal(fixture_intack(p->f), 0x20);
	fixture_outb(p->f, M_CMD, EOI);
	irq_source_init(&gsi0, &p->f->vm.irq, 0);
	irq_source_pulse(&gsi0);
	irq_source_pulse(&p->irq[2]); /* the cascade has no line */
	assert_false(intr(p));
}

static void test_priority_and_nesting(void **state)
{
	struct pair *p = *state;

	irq_source_pulse(&p->irq[7]);
	irq_source_pulse(&p->irq[3]);
	assert_int_equal(fixture_intack(p->f), 0x23);
	assert_false(intr(p)); /* 7 is less urgent */
	irq_source_pulse(&p->irq[1]);
	assert_int_equal(fixture_intack(p->f), 0x21); /* nests */
	assert_int_equal(isr(p, M_CMD), 0x0a);
	fixture_outb(p->f, M_CMD, EOI);
	assert_int_equal(isr(p, M_CMD), 0x08);
	fixture_outb(p->f, M_CMD, EOI);
	assert_int_equal(fixture_intack(p->f), 0x27);
}

static void test_mask(void **state)
{
	struct pair *p = *state;

	fixture_outb(p->f, M_DATA, 0x10);
	assert_int_equal(fixture_inb(p->f, M_DATA), 0x10);
	irq_source_pulse(&p->irq[4]);
	assert_false(intr(p));
	fixture_outb(p->f, M_DATA, 0);
	assert_true(intr(p));
}

static void test_cascade(void **state)
{
	struct pair *p = *state;

	irq_source_pulse(&p->irq[12]);
	assert_int_equal(irr(p, M_CMD), 0x04);
	assert_int_equal(fixture_intack(p->f), 0x2c);
	assert_int_equal(isr(p, M_CMD), 0x04);
	assert_int_equal(isr(p, S_CMD), 0x10);
	irq_source_pulse(&p->irq[8]);
	assert_false(intr(p)); /* the master serves its IR2 */
	irq_source_pulse(&p->irq[1]);
	assert_int_equal(fixture_intack(p->f), 0x21);
	fixture_outb(p->f, M_CMD, EOI);
	fixture_outb(p->f, S_CMD, EOI);
	fixture_outb(p->f, M_CMD, EOI);
	assert_int_equal(fixture_intack(p->f), 0x28);
}

static void test_special_fully_nested(void **state)
{
	struct pair *p = *state;

	pair_init(p, 0x11, 0x01);
	irq_source_pulse(&p->irq[12]);
	assert_int_equal(fixture_intack(p->f), 0x2c);
	irq_source_pulse(&p->irq[3]); /* below the slave */
	assert_false(intr(p));
	irq_source_pulse(&p->irq[8]); /* above IRQ 12, in the same slave */
	assert_true(intr(p));
	assert_int_equal(fixture_intack(p->f), 0x28);
	assert_int_equal(isr(p, S_CMD), 0x11);
}

static void test_spurious(void **state)
{
	struct pair *p = *state;

	/* The line was there, the mask closed before the CPU came. */
	irq_source_pulse(&p->irq[4]);
	fixture_outb(p->f, M_DATA, 0xff);
	assert_int_equal(fixture_intack(p->f), 0x27);
	assert_int_equal(isr(p, M_CMD), 0);
	fixture_outb(p->f, M_DATA, 0);
	fixture_intack(p->f);
	fixture_outb(p->f, M_CMD, EOI);
	/* A level that fell in the slave: the master saw a request and has it in service. */
	fixture_outb(p->f, 0x4d1, 0x02);
	irq_source_set(&p->irq[9], true);
	assert_true(intr(p));
	irq_source_set(&p->irq[9], false);
	assert_false(intr(p));
	assert_int_equal(fixture_intack(p->f), 0x27);
}

static void test_level(void **state)
{
	struct pair *p = *state;

	fixture_outb(p->f, 0x4d0, 0xff);
	fixture_outb(p->f, 0x4d1, 0xff);
	assert_int_equal(fixture_in(p->f, 0x4d0, 2), 0xdef8);
	irq_source_set(&p->irq[11], true);
	assert_int_equal(fixture_intack(p->f), 0x2b);
	fixture_outb(p->f, S_CMD, EOI);
	fixture_outb(p->f, M_CMD, EOI);
	assert_true(intr(p)); /* still up: again */
	assert_int_equal(fixture_intack(p->f), 0x2b);
	irq_source_set(&p->irq[11], false);
	fixture_outb(p->f, S_CMD, EOI);
	fixture_outb(p->f, M_CMD, EOI);
	assert_false(intr(p));
}

static void test_auto_eoi_rotates(void **state)
{
	struct pair *p = *state;

	pair_init(p, 0x03, 0x01);
	fixture_outb(p->f, M_CMD, 0x80); /* rotate in automatic EOI: on */
	irq_source_pulse(&p->irq[3]);
	assert_int_equal(fixture_intack(p->f), 0x23);
	assert_int_equal(isr(p, M_CMD), 0);
	/* 3 is lowest now, so 4 is highest. */
	irq_source_pulse(&p->irq[1]);
	irq_source_pulse(&p->irq[3]);
	irq_source_pulse(&p->irq[5]);
	assert_int_equal(fixture_intack(p->f), 0x25);
	assert_int_equal(fixture_intack(p->f), 0x21);
	fixture_outb(p->f, M_CMD, 0x00);
	assert_int_equal(fixture_intack(p->f), 0x23);
}

static void test_rotation_commands(void **state)
{
	struct pair *p = *state;

	fixture_outb(p->f, M_CMD, 0xc0 | 4); /* set priority: 4 lowest, 5 highest */
	irq_source_pulse(&p->irq[0]);
	irq_source_pulse(&p->irq[6]);
	assert_int_equal(fixture_intack(p->f), 0x26);
	fixture_outb(p->f, M_CMD, 0xa0); /* rotate on non-specific EOI: 6 lowest */
	irq_source_pulse(&p->irq[7]);
	irq_source_pulse(&p->irq[6]);
	assert_int_equal(fixture_intack(p->f), 0x27);
	fixture_outb(p->f, M_CMD, 0xe0 | 7); /* rotate on specific EOI: 7 lowest */
	assert_int_equal(fixture_intack(p->f), 0x20);
	fixture_outb(p->f, M_CMD, EOI);
	assert_int_equal(fixture_intack(p->f), 0x26);
}

static void test_special_mask(void **state)
{
	struct pair *p = *state;

	irq_source_pulse(&p->irq[1]);
	fixture_intack(p->f);
	irq_source_pulse(&p->irq[6]);
	assert_false(intr(p));
	fixture_outb(p->f, M_CMD, 0x68); /* special mask mode */
	assert_false(intr(p));
	fixture_outb(p->f, M_DATA, 0x02); /* masks what is in service: all others may come */
	assert_int_equal(fixture_intack(p->f), 0x26);
	fixture_outb(p->f, M_CMD, EOI);
	assert_int_equal(isr(p, M_CMD), 0x02); /* not cleared by a non-specific EOI */
	fixture_outb(p->f, M_CMD, 0x61);
	assert_int_equal(isr(p, M_CMD), 0);
	fixture_outb(p->f, M_CMD, 0x48);
}

static void test_poll(void **state)
{
	struct pair *p = *state;

	fixture_outb(p->f, M_CMD, 0x0c);
	assert_int_equal(fixture_inb(p->f, M_CMD), 0);
	irq_source_pulse(&p->irq[5]);
	fixture_outb(p->f, M_CMD, 0x0c);
	assert_int_equal(fixture_inb(p->f, M_CMD), 0x85);
	assert_false(intr(p));
	assert_int_equal(isr(p, M_CMD), 0x20);
}

static void test_icw1_forgets(void **state)
{
	struct pair *p = *state;

	irq_source_set(&p->irq[4], true);
	fixture_intack(p->f);
	irq_source_pulse(&p->irq[5]);
	pair_init(p, 0x01, 0x01);
	assert_int_equal(isr(p, M_CMD), 0);
	assert_false(intr(p)); /* an edge is needed, the level is no request */
	irq_source_set(&p->irq[4], false);
	irq_source_set(&p->irq[4], true);
	assert_int_equal(fixture_intack(p->f), 0x24);
}

static void test_save_restore(void **state)
{
	struct pair *p = *state;

	fixture_outb(p->f, 0x4d1, 0x08);
	irq_source_set(&p->irq[4], true);
	assert_int_equal(fixture_intack(p->f), 0x24); /* in service, its line up */
	irq_source_pulse(&p->irq[6]);		      /* pending */
	fixture_outb(p->f, S_CMD, 0x11);	      /* between ICW1 and ICW2 */
	fixture_save_restore(p->f);
	assert_false(intr(p));
	assert_int_equal(isr(p, M_CMD), 0x10);
	fixture_outb(p->f, S_DATA, 0x70);
	fixture_outb(p->f, S_DATA, 0x02);
	fixture_outb(p->f, S_DATA, 0x01);
	irq_source_set(&p->irq[11], true);
	assert_int_equal(fixture_intack(p->f), 0x73);
	fixture_save_restore(p->f);
	fixture_outb(p->f, S_CMD, EOI);
	fixture_outb(p->f, M_CMD, EOI);
	assert_int_equal(fixture_intack(p->f), 0x73); /* a level, still up */
	irq_source_set(&p->irq[11], false);
	fixture_outb(p->f, S_CMD, EOI);
	fixture_outb(p->f, M_CMD, EOI);
	assert_false(intr(p)); /* no second edge of 4 came of it */
	fixture_outb(p->f, M_CMD, EOI);
	assert_int_equal(fixture_intack(p->f), 0x26);
}

static void test_hostile(void **state)
{
	struct pair *p = *state;
	unsigned taken = 0;

	for (unsigned round = 0; round < 50; round++) {
		irq_source_set(&p->irq[round % 16], round & 16);
		fixture_fuzz_pio(p->f, 0x20, 2, 200, round + 1);
		fixture_fuzz_pio(p->f, 0xa0, 2, 200, round + 101);
		fixture_fuzz_pio(p->f, 0x4d0, 2, 50, round + 201);
		taken += fixture_fuzz_state(p->f, p->pic, 20, round + 301);
	}
	assert_in_range(taken, 50, UINT32_MAX); /* the test reaches the device */
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_quiet_until_programmed),
		TEST(test_edge),
		TEST(test_timer_is_gsi_2),
		TEST(test_priority_and_nesting),
		TEST(test_mask),
		TEST(test_cascade),
		TEST(test_special_fully_nested),
		TEST(test_spurious),
		TEST(test_level),
		TEST(test_auto_eoi_rotates),
		TEST(test_rotation_commands),
		TEST(test_special_mask),
		TEST(test_poll),
		TEST(test_icw1_forgets),
		TEST(test_save_restore),
		TEST(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
