/* The I/O APIC, programmed as operating systems do; what it sends is looked at as the MSI it becomes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "bus/irq.h"
#include "chipset/ioapic.h"
#include "tests/unit/fixture.h"

#define LEVEL 0x8000u
#define MASKED 0x10000u
#define REMOTE_IRR 0x4000u

struct board {
	struct fixture *f;
	struct device *apic;
	struct irq_source line[IRQ_LINES];
};

static int setup(void **state)
{
	static struct board b;

	b.f = fixture_create();
	b.apic = fixture_device(b.f, &ioapic_class, NULL);
	for (unsigned n = 0; n < IRQ_LINES; n++)
		irq_source_init(&b.line[n], &b.f->vm.irq, n);
	*state = &b;
	return 0;
}

static int teardown(void **state)
{
	fixture_destroy(((struct board *)*state)->f);
	return 0;
}

static uint32_t reg(struct board *b, uint8_t index)
{
	fixture_write(b->f, IOAPIC_BASE, 4, index);
	return fixture_read(b->f, IOAPIC_BASE + 0x10, 4);
}

static void set_reg(struct board *b, uint8_t index, uint32_t value)
{
	fixture_write(b->f, IOAPIC_BASE, 4, index);
	fixture_write(b->f, IOAPIC_BASE + 0x10, 4, value);
}

static void set_pin(struct board *b, unsigned pin, uint8_t dest, uint32_t low)
{
	set_reg(b, 0x11 + 2 * pin, (uint32_t)dest << 24);
	set_reg(b, 0x10 + 2 * pin, low);
}

static void eoi(struct board *b, uint8_t vector)
{
	b->f->vm.ioapic_eoi(b->f->vm.ioapic_eoi_arg, vector);
}

static void test_registers(void **state)
{
	struct board *b = *state;

	assert_int_equal(reg(b, 0), 0);
	assert_int_equal(reg(b, 1), 0x00170011);
	for (unsigned pin = 0; pin < 24; pin++) {
		assert_int_equal(reg(b, 0x10 + 2 * pin), MASKED);
		assert_int_equal(reg(b, 0x11 + 2 * pin), 0);
	}
	set_reg(b, 0, 0xffffffff);
	assert_int_equal(reg(b, 0), 0x0f000000);
	assert_int_equal(reg(b, 2), 0x0f000000);
	set_reg(b, 1, 0);
	assert_int_equal(reg(b, 1), 0x00170011);
	set_reg(b, 0x10, 0xffffffff); /* neither delivery status nor remote IRR can be written */
	assert_int_equal(reg(b, 0x10), 0x1afff);
	set_reg(b, 0x11, 0xffffffff);
	assert_int_equal(reg(b, 0x11), 0xff000000);
	assert_int_equal(reg(b, 0x40), 0); /* past the last pin */
	set_reg(b, 0x40, 0xffffffff);
	/* The index may be written as a byte; the window only whole. */
	fixture_write(b->f, IOAPIC_BASE, 1, 0x01);
	assert_int_equal(fixture_read(b->f, IOAPIC_BASE + 0x10, 4), 0x00170011);
	assert_int_equal(fixture_read(b->f, IOAPIC_BASE + 0x12, 1), 0x17);
	fixture_write(b->f, IOAPIC_BASE, 4, 0x12);
	fixture_write(b->f, IOAPIC_BASE + 0x10, 1, 0x55);
	assert_int_equal(reg(b, 0x12), MASKED);
	/* No EOI register in this version. */
	fixture_write(b->f, IOAPIC_BASE + 0x40, 4, 0x55);
	assert_int_equal(fixture_read(b->f, IOAPIC_BASE + 0x40, 4), 0);
}

static void test_edge(void **state)
{
	struct board *b = *state;

	irq_source_pulse(&b->line[4]); /* masked: lost */
	set_pin(b, 4, 3, 0x35);
	assert_int_equal(b->f->msis, 0);
	irq_source_set(&b->line[4], true);
	irq_source_set(&b->line[4], false);
	assert_int_equal(b->f->msis, 1);
	assert_int_equal(b->f->msi[0].addr, 0xfee03000);
	assert_int_equal(b->f->msi[0].data, 0x35);
	irq_source_pulse(&b->line[4]);
	assert_int_equal(b->f->msis, 2);
	assert_true(b->f->route[4].present);
	assert_false(b->f->route[4].level);
	set_pin(b, 4, 3, 0x35 | MASKED);
	assert_false(b->f->route[4].present);
	irq_source_set(&b->line[4], true);
	set_pin(b, 4, 3, 0x35); /* up already: no edge */
	assert_int_equal(b->f->msis, 2);
}

static void test_destination_modes(void **state)
{
	struct board *b = *state;

	set_pin(b, 1, 0xff, 0x0800 | 0x0100 | 0x41); /* logical, lowest priority */
	irq_source_pulse(&b->line[1]);
	assert_int_equal(b->f->msi[0].addr, 0xfeeff00c);
	assert_int_equal(b->f->msi[0].data, 0x141);
	set_pin(b, 2, 1, 0x0400 | LEVEL); /* an NMI is an edge whatever it says */
	irq_source_pulse(&b->line[2]);
	irq_source_pulse(&b->line[2]);
	assert_int_equal(b->f->msis, 3);
	assert_int_equal(b->f->msi[2].addr, 0xfee01000);
	assert_int_equal(b->f->msi[2].data, 0x400);
}

static void test_level(void **state)
{
	struct board *b = *state;

	set_pin(b, 17, 0, 0x2000 | LEVEL | 0x51); /* active low, as PCI has it */
	assert_true(b->f->route[17].level);
	irq_source_set(&b->line[17], true);
	assert_int_equal(b->f->msis, 1);
	assert_int_equal(b->f->msi[0].data, 0xc051);
	assert_int_equal(reg(b, 0x10 + 34), 0x2000 | LEVEL | REMOTE_IRR | 0x51);
	irq_source_set(&b->line[17], false);
	irq_source_set(&b->line[17], true);
	assert_int_equal(b->f->msis, 1); /* not before EOI */
	eoi(b, 0x50);
	assert_int_equal(b->f->msis, 1);
	eoi(b, 0x51);
	assert_int_equal(b->f->msis, 2);
	irq_source_set(&b->line[17], false);
	eoi(b, 0x51);
	assert_int_equal(b->f->msis, 2);
	assert_int_equal(reg(b, 0x10 + 34), 0x2000 | LEVEL | 0x51);
}

static void test_mask_in_service(void **state)
{
	struct board *b = *state;

	set_pin(b, 16, 0, LEVEL | 0x60);
	irq_source_set(&b->line[16], true);
	/* Linux masks, ends the interrupt, unmasks: the EOI must find its way. */
	set_pin(b, 16, 0, LEVEL | MASKED | 0x60);
	assert_true(b->f->route[16].present);
	eoi(b, 0x60);
	assert_int_equal(b->f->msis, 1);
	assert_false(b->f->route[16].present);
	set_pin(b, 16, 0, LEVEL | 0x60);
	assert_int_equal(b->f->msis, 2);
	/* The other way to end it, without an EOI: to edge and back. */
	set_pin(b, 16, 0, MASKED | 0x60);
	assert_int_equal(reg(b, 0x10 + 32), MASKED | 0x60);
	set_pin(b, 16, 0, LEVEL | 0x60);
	assert_int_equal(b->f->msis, 3);
}

static void test_shared_vector_and_line(void **state)
{
	struct board *b = *state;
	struct irq_source second;

	irq_source_init(&second, &b->f->vm.irq, 18);
	set_pin(b, 18, 0, LEVEL | 0x70);
	set_pin(b, 19, 0, LEVEL | 0x70);
	irq_source_set(&b->line[18], true);
	irq_source_set(&second, true);
	irq_source_set(&b->line[19], true);
	assert_int_equal(b->f->msis, 2);
	irq_source_set(&b->line[18], false);
	eoi(b, 0x70);
	assert_int_equal(b->f->msis, 4); /* both are still up */
	irq_source_set(&second, false);
	irq_source_set(&b->line[19], false);
	eoi(b, 0x70);
	assert_int_equal(b->f->msis, 4);
}

static void test_save_restore(void **state)
{
	struct board *b = *state;

	set_pin(b, 4, 2, 0x35);
	set_pin(b, 17, 0, LEVEL | 0x51);
	set_pin(b, 18, 0, LEVEL | 0x52);
	irq_source_set(&b->line[4], true);
	irq_source_set(&b->line[17], true);
	assert_int_equal(b->f->msis, 2);
	fixture_write(b->f, IOAPIC_BASE, 4, 0x01);
	fixture_save_restore(b->f);
	assert_int_equal(fixture_read(b->f, IOAPIC_BASE + 0x10, 4), 0x00170011);
	assert_int_equal(b->f->msis, 2); /* nothing is sent twice */
	assert_true(b->f->route[4].present);
	assert_int_equal(b->f->route[4].msi.addr, 0xfee02000);
	assert_true(b->f->route[17].level);
	assert_false(b->f->route[5].present);
	eoi(b, 0x51);
	assert_int_equal(b->f->msis, 3); /* still up */
	irq_source_set(&b->line[4], false);
	irq_source_set(&b->line[4], true);
	assert_int_equal(b->f->msis, 4);
}

static void test_reset(void **state)
{
	struct board *b = *state;

	set_pin(b, 17, 0, LEVEL | 0x51);
	irq_source_set(&b->line[17], true);
	irq_source_set(&b->line[17], false);
	devices_reset(&b->f->vm);
	assert_int_equal(reg(b, 0x10 + 34), MASKED);
	assert_false(b->f->route[17].present);
}

static void test_hostile(void **state)
{
	struct board *b = *state;
	unsigned taken = 0;

	for (unsigned round = 0; round < 30; round++) {
		fixture_fuzz_mmio(b->f, IOAPIC_BASE, 0x20, 500, round + 1);
		fixture_fuzz_mmio(b->f, IOAPIC_BASE, 0x1000, 100, round + 101);
		for (unsigned n = 0; n < IRQ_LINES; n++)
			irq_source_set(&b->line[n], (round + n) & 1);
		for (unsigned v = 0; v < 256; v++)
			eoi(b, v);
		taken += fixture_fuzz_state(b->f, b->apic, 20, round + 201);
	}
	assert_in_range(taken, 50, UINT32_MAX); /* the test reaches the device */
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_registers),	      TEST(test_edge),
		TEST(test_destination_modes), TEST(test_level),
		TEST(test_mask_in_service),   TEST(test_shared_vector_and_line),
		TEST(test_save_restore),      TEST(test_reset),
		TEST(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
