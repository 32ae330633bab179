#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "chipset/pm.h"
#include "tests/unit/fixture.h"

#define STATUS 0x400
#define ENABLE 0x402
#define CONTROL 0x404
#define TIMER 0x408
#define GPE0 0x40c
#define SMI 0xb2

/* 2^31 ticks of the PM timer: 599.9 s */
static const uint64_t HALF = ((1ull << 31) * NS_PER_SEC + PM_TIMER_HZ - 1) / PM_TIMER_HZ;

static struct fixture *machine(struct device **pm)
{
	struct fixture *f = fixture_create();

	fixture_watch_lines(f);
	*pm = fixture_device(f, &pm_class, NULL);
	return f;
}

/* Saves the block and goes on with it in another machine. */
static void machine_move(struct fixture **f, struct device **pm)
{
	uint64_t now = vclock_now((*f)->vm.clock);
	struct error err = {0};
	uint8_t *bytes;
	size_t len;

	devices_quiesce(&(*f)->vm);
	assert_int_equal(device_save(*pm, &bytes, &len), 0);
	fixture_destroy(*f);
	*f = machine(pm);
	fixture_late(*f, now);
	assert_int_equal(device_restore(*pm, bytes, len, &err), 0);
	free(bytes);
	devices_resume(&(*f)->vm);
}

static bool sci(struct fixture *f)
{
	return irq_line_level(&f->vm.irq, 9);
}

static void test_acpi_enable(void **unused)
{
	struct device *pm;
	struct fixture *f = machine(&pm);

	(void)unused;
	assert_int_equal(fixture_in(f, CONTROL, 2), 0);
	fixture_out(f, CONTROL, 2, 0x0003); /* SCI_EN is not the OS's to set */
	assert_int_equal(fixture_in(f, CONTROL, 2), 2);
	fixture_outb(f, SMI, 0xa0);
	assert_int_equal(fixture_in(f, CONTROL, 2), 3);
	assert_int_equal(fixture_inb(f, SMI), 0xa0);
	fixture_out(f, CONTROL, 2, 0);
	assert_int_equal(fixture_in(f, CONTROL, 2), 1);
	fixture_outb(f, SMI, 0xa1);
	assert_int_equal(fixture_in(f, CONTROL, 2), 0);
	fixture_destroy(f);
}

static void test_power_button(void **unused)
{
	struct device *pm;
	struct fixture *f = machine(&pm);

	(void)unused;
	assert_non_null(f->vm.power_button);
	fixture_out(f, ENABLE, 2, 0x0100);
	assert_false(f->vm.power_button(f->vm.power_button_arg));
	assert_int_equal(fixture_in(f, STATUS, 2), 0);
	fixture_outb(f, SMI, 0xa0);
	assert_false(sci(f));
	assert_true(f->vm.power_button(f->vm.power_button_arg));
	assert_true(sci(f));
	machine_move(&f, &pm);
	assert_true(sci(f));
	assert_int_equal(fixture_in(f, STATUS, 2), 0x0100);
	fixture_outb(f, SMI, 0xa1);
	assert_false(sci(f));
	fixture_outb(f, SMI, 0xa0);
	assert_true(sci(f));
	/* The line is level: it is up as long as an enabled event is pending. */
	fixture_out(f, ENABLE, 2, 0);
	assert_false(sci(f));
	fixture_out(f, ENABLE, 2, 0x0100);
	assert_true(sci(f));
	fixture_out(f, STATUS, 2, 0x0001);
	assert_true(sci(f));
	fixture_outb(f, STATUS + 1, 0x01); /* by bytes too */
	assert_false(sci(f));
	assert_int_equal(fixture_in(f, STATUS, 4), 0x01000000);
	fixture_destroy(f);
}

static void test_power_off(void **unused)
{
	struct device *pm;
	struct fixture *f = machine(&pm);

	(void)unused;
	fixture_out(f, CONTROL, 2, 0x2000 | 1 << 10); /* another sleep state */
	fixture_out(f, CONTROL, 2, 5 << 10);
	assert_int_equal(f->end, VM_END_NONE);
	fixture_outb(f, CONTROL, 0x20); /* the low byte has no SLP_EN */
	assert_int_equal(f->end, VM_END_NONE);
	fixture_out(f, CONTROL, 2, 0x2000 | 5 << 10);
	assert_int_equal(f->end, VM_END_POWEROFF);
	assert_int_equal(fixture_in(f, CONTROL, 2), 5 << 10); /* SLP_EN reads 0 */
	fixture_destroy(f);

	f = machine(&pm);
	fixture_outb(f, CONTROL + 1, 0x34);
	assert_int_equal(f->end, VM_END_POWEROFF);
	fixture_destroy(f);
}

static void test_timer(void **unused)
{
	struct device *pm;
	struct fixture *f = machine(&pm);
	uint32_t value;

	(void)unused;
	assert_int_equal(fixture_in(f, TIMER, 4), 0);
	fixture_advance(f, NS_PER_SEC);
	assert_int_equal(fixture_in(f, TIMER, 4), PM_TIMER_HZ);
	fixture_out(f, TIMER, 4, 0); /* read-only */
	value = (uint32_t)fixture_in(f, TIMER, 4);
	assert_int_equal(value, PM_TIMER_HZ);
	assert_int_equal(fixture_in(f, TIMER + 1, 2), value >> 8 & 0xffff);
	machine_move(&f, &pm);
	fixture_advance(f, 9 * NS_PER_SEC);
	assert_int_equal(fixture_in(f, TIMER, 4), 10 * PM_TIMER_HZ);
	fixture_destroy(f);
}

static void test_timer_status(void **unused)
{
	struct device *pm;
	struct fixture *f = machine(&pm);

	(void)unused;
	fixture_advance(f, HALF - 1);
	assert_int_equal(fixture_in(f, STATUS, 2), 0);
	fixture_advance(f, 1);
	assert_int_equal(fixture_in(f, TIMER, 4), 0x80000000);
	assert_int_equal(fixture_in(f, STATUS, 2), 1);
	assert_false(sci(f));
	fixture_out(f, STATUS, 2, 1);
	assert_int_equal(fixture_in(f, STATUS, 2), 0);
	machine_move(&f, &pm); /* the change is not seen twice */
	assert_int_equal(fixture_in(f, STATUS, 2), 0);
	/* The other way, with the interrupt. */
	fixture_outb(f, SMI, 0xa0);
	fixture_out(f, ENABLE, 2, 1);
	fixture_advance(f, HALF - NS_PER_MS);
	assert_false(sci(f));
	machine_move(&f, &pm);
	fixture_advance(f, NS_PER_MS);
	assert_true(sci(f));
	assert_true(fixture_in(f, TIMER, 4) < 10000);
	fixture_out(f, STATUS, 2, 1);
	assert_false(sci(f));
	fixture_forget(f);
	fixture_advance(f, 100 * HALF);
	assert_int_equal(f->rises[9], 1); /* not acknowledged, once */
	fixture_destroy(f);
}

static void test_reset(void **unused)
{
	struct device *pm;
	struct fixture *f = machine(&pm);

	(void)unused;
	fixture_outb(f, SMI, 0xa0);
	fixture_outb(f, SMI + 1, 0x77);
	assert_int_equal(fixture_inb(f, SMI + 1), 0x77);
	fixture_out(f, ENABLE, 2, 0xffff);
	assert_int_equal(fixture_in(f, ENABLE, 2),
			 0x0521); /* timer, global lock, power button, RTC */
	fixture_out(f, GPE0, 4, 0xffffffff);
	assert_int_equal(fixture_in(f, GPE0, 4), 0xffff0000); /* no status */
	fixture_advance(f, 3 * HALF);
	assert_true(sci(f));
	devices_reset(&f->vm);
	assert_false(sci(f));
	assert_int_equal(fixture_in(f, STATUS, 4), 0);
	assert_int_equal(fixture_in(f, CONTROL, 2), 0);
	assert_int_equal(fixture_in(f, GPE0, 4), 0);
	device_destroy(pm);
	assert_null(f->vm.power_button);
	fixture_destroy(f);
}

static void test_hostile(void **unused)
{
	struct device *pm;
	struct fixture *f = machine(&pm);

	(void)unused;
	fixture_fuzz_pio(f, 0x400, 16, 20000, 1);
	fixture_fuzz_pio(f, SMI, 2, 2000, 2);
	assert_true(fixture_fuzz_state(f, pm, 3000, 3) > 10);
	fixture_destroy(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_acpi_enable),  cmocka_unit_test(test_power_button),
		cmocka_unit_test(test_power_off),    cmocka_unit_test(test_timer),
		cmocka_unit_test(test_timer_status), cmocka_unit_test(test_reset),
		cmocka_unit_test(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
