#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "bus/pci.h"
#include "chipset/reset.h"
#include "debug/testdev.h"
#include "tests/unit/fixture.h"

static void test_exit(void **unused)
{
	static const struct {
		uint32_t value;
		unsigned size, status;
	} cases[] = {{0, 1, 1}, {1, 1, 3}, {0x10, 4, 0x21}, {0xff, 1, 0xff}, {0x80, 2, 1}};

	(void)unused;
	for (unsigned n = 0; n < sizeof(cases) / sizeof(cases[0]); n++) {
		struct fixture *f = fixture_create();

		fixture_device(f, &testdev_class, NULL);
		assert_int_equal(fixture_in(f, 0xf4, 4), 0);
		assert_int_equal(f->end, VM_END_NONE);
		fixture_out(f, 0xf4, cases[n].size, cases[n].value);
		assert_int_equal((int)f->end, VM_END_STATUS | (int)cases[n].status);
		fixture_destroy(f);
	}
}

static void test_register(void **unused)
{
	struct fixture *f = fixture_create();

	(void)unused;
	fixture_device(f, &testdev_class, NULL);
	fixture_out(f, 0xe0, 4, 0x12345678);
	assert_int_equal(fixture_in(f, 0xe0, 4), 0x12345678);
	assert_int_equal(fixture_in(f, 0xe1, 2), 0x3456);
	assert_int_equal(fixture_in(f, 0xe8, 4), 0x12345678);
	fixture_out(f, 0xe2, 1, 0xab);
	fixture_out(f, 0xe8, 2, 0x9876);
	fixture_save_restore(f);
	assert_int_equal(fixture_in(f, 0xe0, 4), 0x12ab9876);
	fixture_out(f, 0xe4, 4, 0x1000); /* no memory there: nothing to flush */
	fixture_write(f, 0xff000000, 8, 0x1122334455667788);
	fixture_write(f, 0xff00fffc, 4, 0xdeadbeef);
	assert_true(fixture_read(f, 0xff000002, 4) == 0x33445566);
	fixture_save_restore(f);
	assert_true(fixture_read(f, 0xff00fffc, 4) == 0xdeadbeef);
	assert_true(fixture_read(f, 0xff00fffe, 8) == 0xffffffffffffdead);
	fixture_destroy(f);
}

static void test_lines(void **unused)
{
	struct fixture *f = fixture_create();

	(void)unused;
	fixture_device(f, &testdev_class, NULL);
	for (unsigned n = 0; n < IRQ_LINES; n++) {
		fixture_outb(f, (uint16_t)(0x2000 + n), 1);
		assert_true(irq_line_level(&f->vm.irq, irq_isa_gsi(n)));
		fixture_save_restore(f);
		assert_true(irq_line_level(&f->vm.irq, irq_isa_gsi(n)));
		fixture_outb(f, (uint16_t)(0x2000 + n), 0);
		assert_false(irq_line_level(&f->vm.irq, irq_isa_gsi(n)));
	}
	fixture_outb(f, 0x200e, 1);
	devices_reset(&f->vm);
	assert_false(irq_line_level(&f->vm.irq, 14));
	fixture_destroy(f);
}

static void test_reset_control(void **unused)
{
	struct fixture *f = fixture_create();
	struct device *reset;

	(void)unused;
	fixture_device(f, &pci_bus_class, NULL);
	reset = fixture_device(f, &reset_class, NULL);
	pci_set_reset_control(f->vm.pci, reset, reset_control_read, reset_control_write);
	fixture_outb(f, 0xcf9, 0x02);
	assert_int_equal(f->end, VM_END_NONE);
	fixture_save_restore(f);
	assert_int_equal(fixture_inb(f, 0xcf9), 0x02);
	fixture_outb(f, 0xcf9, 0x06);
	assert_int_equal(f->end, VM_END_RESET);
	assert_int_equal(fixture_inb(f, 0xcf9), 0x06);
	f->end = VM_END_NONE;
	fixture_outb(f, 0xcf9, 0x0e);	      /* no edge */
	fixture_out(f, 0xcf8, 4, 0x80000400); /* a PCI address */
	assert_int_equal(f->end, VM_END_NONE);
	devices_reset(&f->vm);
	assert_int_equal(fixture_inb(f, 0xcf9), 0);
	fixture_destroy(f);
}

static void test_odd_ports(void **unused)
{
	struct fixture *f = fixture_create();
	struct device *reset = fixture_device(f, &reset_class, NULL);

	(void)unused;
	fixture_outb(f, 0x80, 0x5a);
	devices_reset(&f->vm);
	assert_int_equal(fixture_inb(f, 0x80), 0x5a);
	assert_int_equal(reset_post_code(reset), 0x5a);
	fixture_outb(f, 0x84, 0x11);
	assert_int_equal(fixture_inb(f, 0x84), 0xff);
	assert_int_equal(fixture_inb(f, 0x92), 0x02);
	fixture_outb(f, 0x92, 0x00);
	fixture_save_restore(f);
	assert_int_equal(fixture_inb(f, 0x92), 0x00);
	fixture_outb(f, 0x92, 0x02);
	assert_int_equal(f->end, VM_END_NONE);
	fixture_outb(f, 0x92, 0x03);
	assert_int_equal(f->end, VM_END_RESET);
	fixture_destroy(f);
}

static void test_hostile(void **unused)
{
	struct fixture *f = fixture_create();
	struct device *reset = fixture_device(f, &reset_class, NULL);
	struct device *testdev = fixture_device(f, &testdev_class, NULL);

	(void)unused;
	fixture_fuzz_pio(f, 0x80, 0x80, 20000, 1);
	fixture_fuzz_pio(f, 0x2000, 24, 20000, 2);
	fixture_fuzz_mmio(f, 0xff000000, 0x10000, 20000, 3);
	fixture_fuzz_mmio(f, 0xff00fff0, 0x10, 20000, 4);
	assert_true(fixture_fuzz_state(f, testdev, 200, 5) > 10);
	assert_true(fixture_fuzz_state(f, reset, 1000, 6) > 10);
	fixture_destroy(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_exit),	  cmocka_unit_test(test_register),
		cmocka_unit_test(test_lines),	  cmocka_unit_test(test_reset_control),
		cmocka_unit_test(test_odd_ports), cmocka_unit_test(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
