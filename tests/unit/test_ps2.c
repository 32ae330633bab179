#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "chipset/ps2.h"
#include "chipset/scancode.h"
#include "tests/unit/fixture.h"

#define DATA 0x60
#define COMMAND 0x64
#define FULL 0x01
#define AUX 0x20
#define TIMEOUT 0x40

static struct fixture *machine(struct device **ps2)
{
	struct fixture *f = fixture_create();

	fixture_watch_lines(f);
	*ps2 = fixture_device(f, &ps2_class, NULL);
	return f;
}

/* The next byte in the output buffer, -1 if there is none. */
static int get(struct fixture *f)
{
	if (!(fixture_inb(f, COMMAND) & FULL))
		return -1;
	return fixture_inb(f, DATA);
}

#define assert_bytes(f, ...)                                                       \
	do {                                                                       \
		const int want_[] = {__VA_ARGS__, -1};                             \
                                                                                   \
		for (unsigned n_ = 0; n_ < sizeof(want_) / sizeof(want_[0]); n_++) \
			assert_int_equal(get(f), want_[n_]);                       \
	} while (0)

static void set_command_byte(struct fixture *f, uint8_t value)
{
	fixture_outb(f, COMMAND, 0x60);
	fixture_outb(f, DATA, value);
}

/* As Linux's i8042 driver finds out what it has. */
static void test_controller(void **unused)
{
	struct device *ps2;
	struct fixture *f = machine(&ps2);

	(void)unused;
	assert_int_equal(get(f), -1);
	assert_int_equal(fixture_inb(f, COMMAND), 0x14);
	fixture_outb(f, COMMAND, 0xaa);
	assert_int_equal(fixture_inb(f, COMMAND) & 0x09, 0x09);
	assert_bytes(f, 0x55);
	fixture_outb(f, COMMAND, 0x20);
	assert_bytes(f, 0x65);
	fixture_outb(f, COMMAND, 0xab);
	assert_bytes(f, 0x00);
	set_command_byte(f, 0x74); /* no interrupts, keyboard off */
	fixture_outb(f, COMMAND, 0x20);
	fixture_save_restore(f);
	assert_bytes(f, 0x74);
	assert_int_equal(ps2_key(ps2, 0x1e, true), 0);
	assert_int_equal(get(f), -1);
	fixture_outb(f, COMMAND, 0xae);
	assert_bytes(f, 0x1e);
	/* The rest of its memory. */
	fixture_outb(f, COMMAND, 0x7f);
	fixture_outb(f, DATA, 0xc7);
	fixture_outb(f, COMMAND, 0x3f);
	assert_bytes(f, 0xc7);
	fixture_destroy(f);
}

static void test_aux_port(void **unused)
{
	struct device *ps2;
	struct fixture *f = machine(&ps2);

	(void)unused;
	fixture_outb(f, COMMAND, 0xa7);
	fixture_outb(f, COMMAND, 0x20);
	assert_int_equal(get(f) & 0x20, 0x20);
	fixture_outb(f, COMMAND, 0xa8);
	fixture_outb(f, COMMAND, 0x20);
	assert_int_equal(get(f) & 0x20, 0);
	fixture_outb(f, COMMAND, 0xa9);
	assert_bytes(f, 0x00);
	set_command_byte(f, 0x47);
	fixture_outb(f, COMMAND, 0xd3);
	fixture_outb(f, DATA, 0xa5);
	assert_true(irq_line_level(&f->vm.irq, 12));
	assert_false(irq_line_level(&f->vm.irq, 1));
	assert_int_equal(fixture_inb(f, COMMAND) & (FULL | AUX | TIMEOUT), FULL | AUX);
	fixture_save_restore(f);
	assert_int_equal(fixture_inb(f, COMMAND) & (FULL | AUX | TIMEOUT), FULL | AUX);
	assert_bytes(f, 0xa5);
	assert_false(irq_line_level(&f->vm.irq, 12));
	/* No mouse: a time-out. */
	fixture_outb(f, COMMAND, 0xd4);
	fixture_outb(f, DATA, 0xff);
	assert_int_equal(fixture_inb(f, COMMAND) & (FULL | AUX | TIMEOUT), FULL | AUX | TIMEOUT);
	assert_bytes(f, 0xfe);
	assert_int_equal(fixture_inb(f, COMMAND) & (FULL | AUX | TIMEOUT), 0);
	fixture_destroy(f);
}

static void test_output_port(void **unused)
{
	struct device *ps2;
	struct fixture *f = machine(&ps2);

	(void)unused;
	fixture_outb(f, COMMAND, 0xd1);
	fixture_outb(f, DATA, 0xdd);
	fixture_outb(f, COMMAND, 0xd0);
	assert_int_equal(get(f) & 3, 1);
	fixture_outb(f, COMMAND, 0xdf);
	fixture_outb(f, COMMAND, 0xd0);
	assert_int_equal(get(f) & 3, 3);
	fixture_outb(f, COMMAND, 0xd2);
	fixture_outb(f, DATA, 0x1c); /* as it is: not translated */
	assert_true(irq_line_level(&f->vm.irq, 1));
	assert_bytes(f, 0x1c);
	fixture_outb(f, COMMAND, 0xff);
	fixture_outb(f, COMMAND, 0xfd);
	assert_int_equal(f->end, VM_END_NONE);
	fixture_outb(f, COMMAND, 0xfe);
	assert_int_equal(f->end, VM_END_RESET);
	fixture_destroy(f);

	f = machine(&ps2);
	fixture_outb(f, COMMAND, 0xd1);
	fixture_outb(f, DATA, 0x02);
	assert_int_equal(f->end, VM_END_RESET);
	fixture_destroy(f);
}

static void test_keyboard_commands(void **unused)
{
	struct device *ps2;
	struct fixture *f = machine(&ps2);

	(void)unused;
	set_command_byte(f, 0x05); /* no translation */
	fixture_outb(f, DATA, 0xff);
	assert_bytes(f, 0xfa, 0xaa);
	fixture_outb(f, DATA, 0xf2);
	assert_bytes(f, 0xfa, 0xab, 0x83);
	fixture_outb(f, DATA, 0xee);
	assert_bytes(f, 0xee);
	fixture_outb(f, DATA, 0xed);
	assert_bytes(f, 0xfa);
	fixture_save_restore(f);
	fixture_outb(f, DATA, 0x07);
	assert_bytes(f, 0xfa);
	fixture_outb(f, DATA, 0xf3);
	fixture_outb(f, DATA, 0x00);
	assert_bytes(f, 0xfa, 0xfa);
	/* A command where an argument was due is a command. */
	fixture_outb(f, DATA, 0xed);
	fixture_outb(f, DATA, 0xf2);
	assert_bytes(f, 0xfa, 0xfa, 0xab, 0x83);
	fixture_outb(f, DATA, 0x00); /* no command */
	assert_bytes(f, 0xfe);
	fixture_outb(f, DATA, 0xf0);
	fixture_outb(f, DATA, 0x03);
	fixture_outb(f, DATA, 0xf0);
	fixture_outb(f, DATA, 0x00);
	assert_bytes(f, 0xfa, 0xfa, 0xfa, 0xfa, 0x03);
	fixture_outb(f, DATA, 0xfe);
	assert_bytes(f, 0x03);
	fixture_outb(f, DATA, 0xf0);
	fixture_outb(f, DATA, 0x04);
	assert_bytes(f, 0xfa, 0xfe);
	/* The identity is translated too, as an OS that left translation on expects. */
	set_command_byte(f, 0x45);
	fixture_outb(f, DATA, 0xf2);
	assert_bytes(f, 0xfa, 0xab, 0x41);
	/* Disabled: what is typed is lost. */
	fixture_outb(f, DATA, 0xf5);
	assert_bytes(f, 0xfa);
	ps2_key(ps2, 0x1e, true);
	assert_int_equal(get(f), -1);
	fixture_outb(f, DATA, 0xf4);
	assert_bytes(f, 0xfa);
	ps2_key(ps2, 0x1e, true);
	assert_bytes(f, 0x1e);
	fixture_destroy(f);
}

static void test_keys(void **unused)
{
	struct device *ps2;
	struct fixture *f = machine(&ps2);

	(void)unused;
	ps2_key(ps2, 0x1e, true);
	ps2_key(ps2, 0x1e, false);
	ps2_key(ps2, 0xe048, true);
	ps2_key(ps2, 0xe048, false);
	fixture_save_restore(f);
	assert_bytes(f, 0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8);
	ps2_key(ps2, PS2_KEY_PAUSE, true);
	ps2_key(ps2, PS2_KEY_PAUSE, false);
	assert_bytes(f, 0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5);
	set_command_byte(f, 0x05);
	ps2_key(ps2, 0x1e, true);
	ps2_key(ps2, 0x1e, false);
	ps2_key(ps2, 0x41, true); /* F7 */
	ps2_key(ps2, 0xe01d, false);
	assert_bytes(f, 0x1c, 0xf0, 0x1c, 0x83, 0xe0, 0xf0, 0x14);
	fixture_outb(f, DATA, 0xf0);
	fixture_outb(f, DATA, 0x03);
	ps2_key(ps2, 0xe048, true);
	ps2_key(ps2, 0xe048, false);
	assert_bytes(f, 0xfa, 0xfa, 0x63, 0xf0, 0x63);
	fixture_outb(f, DATA, 0xf0);
	fixture_outb(f, DATA, 0x01);
	ps2_key(ps2, 0x39, true);
	ps2_key(ps2, 0x39, false);
	assert_bytes(f, 0xfa, 0xfa, 0x39, 0xb9);
	assert_int_equal(ps2_key(ps2, 0, true), -EINVAL);
	assert_int_equal(ps2_key(ps2, 0x59, true), -EINVAL);
	assert_int_equal(ps2_key(ps2, 0xe01e, true), -EINVAL);
	assert_int_equal(get(f), -1);
	fixture_destroy(f);
}

/* Each key's set 2 code, put through the controller, is its set 1 code: the tables agree. */
static void test_all_keys(void **unused)
{
	struct device *ps2;
	struct fixture *f = machine(&ps2);
	unsigned keys = 0;

	(void)unused;
	for (unsigned key = 0; key <= 0xffff; key++) {
		uint8_t bytes[SCANCODE_MAX];
		unsigned n = scancode_sequence(1, (uint16_t)key, true, bytes);

		if (!n) {
			assert_int_equal(ps2_key(ps2, (uint16_t)key, true), -EINVAL);
			continue;
		}
		keys++;
		assert_int_equal(ps2_key(ps2, (uint16_t)key, true), 0);
		for (unsigned i = 0; i < n; i++)
			assert_int_equal(get(f), bytes[i]);
		assert_int_equal(get(f), -1);
		n = scancode_sequence(1, (uint16_t)key, false, bytes);
		ps2_key(ps2, (uint16_t)key, false);
		for (unsigned i = 0; i < n; i++)
			assert_int_equal(get(f), bytes[i]);
		assert_int_equal(get(f), -1);
	}
	assert_int_equal(keys, 106);
	fixture_destroy(f);
}

static void test_interrupts(void **unused)
{
	struct device *ps2;
	struct fixture *f = machine(&ps2);

	(void)unused;
	fixture_forget(f);
	ps2_key(ps2, 0x1e, true);
	ps2_key(ps2, 0x1e, false);
	assert_int_equal(f->rises[1], 1);
	assert_int_equal(fixture_inb(f, DATA), 0x1e);
	assert_int_equal(f->rises[1], 2); /* an edge for each byte */
	fixture_save_restore(f);
	assert_true(irq_line_level(&f->vm.irq, 1));
	assert_int_equal(fixture_inb(f, DATA), 0x9e);
	assert_false(irq_line_level(&f->vm.irq, 1));
	assert_int_equal(fixture_inb(f, DATA), 0x9e); /* empty: the last one stays */
	set_command_byte(f, 0x64);
	ps2_key(ps2, 0x1e, true);
	assert_false(irq_line_level(&f->vm.irq, 1));
	set_command_byte(f, 0x65);
	assert_true(irq_line_level(&f->vm.irq, 1));
	devices_reset(&f->vm);
	assert_false(irq_line_level(&f->vm.irq, 1));
	assert_int_equal(get(f), -1);
	fixture_destroy(f);
}

static void test_overrun(void **unused)
{
	struct device *ps2;
	struct fixture *f = machine(&ps2);
	int byte, last = -1;
	unsigned n = 0;

	(void)unused;
	for (unsigned i = 0; i < 1000; i++)
		ps2_key(ps2, 0xe048, i & 1);
	for (; (byte = get(f)) != -1; n++)
		last = byte;
	assert_in_range(n, 8, 18);
	assert_int_equal(last, 0xff); /* set 2's 00, translated */
	ps2_key(ps2, 0x1e, true);
	assert_bytes(f, 0x1e);
	fixture_destroy(f);
}

static void test_hostile(void **unused)
{
	struct device *ps2;
	struct fixture *f = machine(&ps2);
	uint64_t seed = 5;

	(void)unused;
	fixture_fuzz_pio(f, 0x60, 1, 20000, 1);
	fixture_fuzz_pio(f, 0x64, 1, 20000, 2);
	for (unsigned n = 0; n < 50000; n++) {
		fixture_outb(f, fixture_random(&seed) >> 60 & 1 ? DATA : COMMAND,
			     (uint8_t)fixture_random(&seed));
		if (!(fixture_random(&seed) & 3))
			ps2_key(ps2, fixture_random(&seed) % 0x60, fixture_random(&seed) & 1);
		if (!(fixture_random(&seed) & 3))
			fixture_inb(f, DATA);
	}
	assert_true(fixture_fuzz_state(f, ps2, 3000, 3) > 10);
	fixture_destroy(f);
}

/* A snapshot with one byte changed, queues full: refused, or it works. */
static void test_hostile_queues(void **unused)
{
	struct device *ps2;
	struct fixture *f = machine(&ps2);
	unsigned taken = 0, refused = 0;
	uint8_t *bytes;
	size_t len;

	(void)unused;
	for (unsigned n = 0; n < 6; n++) {
		ps2_key(ps2, 0x1e, n & 1);
		fixture_outb(f, DATA, 0xee);
		fixture_outb(f, COMMAND, 0x20);
	}
	assert_int_equal(device_save(ps2, &bytes, &len), 0);
	for (size_t at = 0; at < len; at++) {
		for (unsigned bit = 0; bit < 8; bit++) {
			struct error err = {0};

			bytes[at] ^= 1 << bit;
			if (device_restore(ps2, bytes, len, &err) == 0) {
				taken++;
				devices_resume(&f->vm);
				for (unsigned n = 0; get(f) != -1; n++)
					assert_in_range(n, 0, 60);
			} else {
				refused++;
			}
			bytes[at] ^= 1 << bit;
		}
	}
	assert_true(taken > 100);
	assert_true(refused > 100);
	free(bytes);
	fixture_destroy(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_controller),  cmocka_unit_test(test_aux_port),
		cmocka_unit_test(test_output_port), cmocka_unit_test(test_keyboard_commands),
		cmocka_unit_test(test_keys),	    cmocka_unit_test(test_all_keys),
		cmocka_unit_test(test_interrupts),  cmocka_unit_test(test_overrun),
		cmocka_unit_test(test_hostile),	    cmocka_unit_test(test_hostile_queues),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
