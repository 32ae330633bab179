/* PCI configuration space as a guest sees it, by ports and by ECAM. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bus/pci.h"
#include "tests/unit/fixture.h"

#define ADDRESS 0xcf8
#define DATA 0xcfc

static int setup(void **state)
{
	struct fixture *f = fixture_create();

	f->vm.config = config_create();
	assert_non_null(f->vm.config);
	fixture_device(f, &pci_bus_class, NULL);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	struct config *config = f->vm.config;

	fixture_destroy(f);
	config_destroy(config);
	return 0;
}

/* Makes a PCI device by its name; the config node is made on the way. */
static int add(struct fixture *f, const char *name, const char *path, struct device **out,
	       struct error *err)
{
	const struct device_class *cls = device_class_find(DEVICE_PCI, name);
	struct config *node = config_make(f->vm.config, path, err);

	assert_non_null(cls);
	assert_non_null(node);
	return device_create(cls, &f->vm, node, out, err);
}

static struct device *add_ok(struct fixture *f, const char *name, const char *path)
{
	struct device *device = NULL;
	struct error err = {0};

	if (add(f, name, path, &device, &err))
		fail_msg("%s", err.text);
	return device;
}

static void point(struct fixture *f, unsigned bus, unsigned slot, unsigned func, unsigned reg)
{
	fixture_out(f, ADDRESS, 4, 0x80000000u | bus << 16 | slot << 11 | func << 8 | (reg & 0xfc));
}

static uint32_t config_in(struct fixture *f, unsigned slot, unsigned func, unsigned reg,
			  unsigned size)
{
	point(f, 0, slot, func, reg);
	return (uint32_t)fixture_in(f, (uint16_t)(DATA + (reg & 3)), size);
}

static void config_out(struct fixture *f, unsigned slot, unsigned func, unsigned reg, unsigned size,
		       uint32_t value)
{
	point(f, 0, slot, func, reg);
	fixture_out(f, (uint16_t)(DATA + (reg & 3)), size, value);
}

static uint64_t ecam(unsigned bus, unsigned slot, unsigned func, unsigned reg)
{
	return PCI_ECAM_BASE + (bus << 20 | slot << 15 | func << 12 | reg);
}

static void address_register_is_a_dword(void **state)
{
	struct fixture *f = *state;

	fixture_out(f, ADDRESS, 4, 0xffffffff);
	assert_int_equal(fixture_in(f, ADDRESS, 4), 0x80fffffc);
	fixture_out(f, ADDRESS, 4, 0x80001234);
	fixture_out(f, ADDRESS, 1, 0x55);
	fixture_out(f, ADDRESS, 2, 0x5555);
	fixture_out(f, ADDRESS + 3, 1, 0x55);
	fixture_out(f, ADDRESS + 2, 2, 0x5555);
	assert_int_equal(fixture_in(f, ADDRESS, 4), 0x80001234);
	assert_int_equal(fixture_in(f, ADDRESS, 1), 0xff);
}

static uint8_t control;

static uint8_t control_read(struct device *reset)
{
	(void)reset;
	return control;
}

static void control_write(struct device *reset, uint8_t value)
{
	(void)reset;
	control = value;
}

static void reset_control_shares_the_dword(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(fixture_inb(f, 0xcf9), 0xff);
	control = 0x02;
	pci_set_reset_control(f->vm.pci, f->vm.devices, control_read, control_write);
	fixture_out(f, ADDRESS, 4, 0x80000604); /* 06 lies in the byte of 0xCF9 */
	assert_int_equal(control, 0x02);
	assert_int_equal(fixture_inb(f, 0xcf9), 0x02);
	fixture_outb(f, 0xcf9, 0x06);
	assert_int_equal(control, 0x06);
	assert_int_equal(fixture_in(f, ADDRESS, 4), 0x80000604);
}

static void ids_by_every_size(void **state)
{
	struct fixture *f = *state;

	add_ok(f, "hostbridge", "pci.0.0.0");
	add_ok(f, "amd_hostbridge", "pci.0.1.0");
	add_ok(f, "lpc", "pci.0.31.0");
	assert_int_equal(config_in(f, 0, 0, 0, 4), 0x12751275);
	assert_int_equal(config_in(f, 1, 0, 0, 4), 0x74321022);
	assert_int_equal(config_in(f, 31, 0, 0, 4), 0x70008086);
	assert_int_equal(config_in(f, 31, 0, PCI_DEVICE_ID, 2), 0x7000);
	assert_int_equal(config_in(f, 31, 0, 1, 1), 0x80);
	assert_int_equal(config_in(f, 31, 0, 3, 1), 0x70);
	assert_int_equal(config_in(f, 31, 0, PCI_REVISION_ID, 4), 0x06010000);
	assert_int_equal(config_in(f, 0, 0, PCI_REVISION_ID, 4), 0x06000000);
	assert_int_equal(config_in(f, 0, 0, PCI_HEADER_TYPE, 1), 0);
}

static void nobody_is_all_ones(void **state)
{
	struct fixture *f = *state;

	add_ok(f, "hostbridge", "pci.0.0.0");
	assert_int_equal(config_in(f, 1, 0, 0, 4), 0xffffffff);
	assert_int_equal(config_in(f, 0, 1, 0, 2), 0xffff);
	assert_int_equal(fixture_read(f, ecam(7, 0, 0, 0), 4), 0xffffffff);
	config_out(f, 1, 0, PCI_COMMAND, 2, 7);
	/* without the enable bit */
	fixture_out(f, ADDRESS, 4, 0);
	assert_int_equal(fixture_in(f, DATA, 4), 0xffffffff);
	fixture_out(f, DATA, 4, 0);
	assert_int_equal(config_in(f, 0, 0, 0, 4), 0x12751275);
}

static void masks_hold(void **state)
{
	struct fixture *f = *state;
	struct device *device = add_ok(f, "lpc", "pci.0.31.0");

	config_out(f, 31, 0, PCI_VENDOR_ID, 4, 0);
	assert_int_equal(config_in(f, 31, 0, 0, 4), 0x70008086);
	config_out(f, 31, 0, PCI_COMMAND, 2, 0xffff);
	assert_int_equal(config_in(f, 31, 0, PCI_COMMAND, 2), 0x0547);
	config_out(f, 31, 0, PCI_COMMAND + 1, 1, 0);
	assert_int_equal(config_in(f, 31, 0, PCI_COMMAND, 2), 0x0047);

	for (unsigned i = 0; i < 8; i++) {
		unsigned reg = i < 4 ? 0x60 + i : 0x64 + i;

		assert_int_equal(config_in(f, 31, 0, reg, 1), 0x80);
		config_out(f, 31, 0, reg, 1, 0x7a);
		assert_int_equal(config_in(f, 31, 0, reg, 1), 0x0a);
	}
	assert_int_equal(config_in(f, 31, 0, 0x64, 4), 0);
	devices_reset(&f->vm);
	assert_int_equal(config_in(f, 31, 0, 0x68, 4), 0x80808080);
	assert_int_equal(config_in(f, 31, 0, PCI_COMMAND, 2), 0);
	assert_int_equal(((uint8_t *)device_state(device))[0], 0x86);
}

static void capability_list(void **state)
{
	struct fixture *f = *state;
	unsigned cap;

	add_ok(f, "hostbridge", "pci.0.0.0");
	assert_int_equal(config_in(f, 0, 0, PCI_STATUS, 2), PCI_STATUS_CAPABILITIES);
	cap = config_in(f, 0, 0, PCI_CAPABILITY_POINTER, 1);
	assert_int_equal(cap, 0x40);
	assert_int_equal(config_in(f, 0, 0, cap, 2), PCI_CAP_EXPRESS);
	assert_int_equal(config_in(f, 0, 0, cap + 2, 2), 0x42);
}

static void ecam_sees_the_same(void **state)
{
	struct fixture *f = *state;

	add_ok(f, "hostbridge", "pci.0.0.0");
	add_ok(f, "amd_hostbridge", "pci.255.31.7");
	assert_int_equal(fixture_read(f, ecam(0, 0, 0, 0), 4), 0x12751275);
	assert_int_equal(fixture_read(f, ecam(255, 31, 7, 0), 2), 0x1022);
	fixture_write(f, ecam(0, 0, 0, PCI_COMMAND), 2, 0x0007);
	assert_int_equal(config_in(f, 0, 0, PCI_COMMAND, 2), 7);
	assert_int_equal(fixture_read(f, ecam(0, 0, 0, 0), 8), 0x0010000712751275ull);
	assert_int_equal(fixture_read(f, ecam(0, 0, 0, 1), 4), 0x07127512);
	/* a conventional function has no extended configuration space */
	assert_int_equal(fixture_read(f, ecam(0, 0, 0, 0x100), 4), 0xffffffff);
	assert_int_equal(fixture_read(f, ecam(255, 31, 7, 0xffc), 8), ~0ull);
}

/* A device of the test's own, with hooks and 4096 bytes. */
struct probe {
	struct device device;
	struct probe_state {
		uint8_t config[PCI_CONFIG_EXTENDED_SIZE];
	} state;
	struct pci_function fn;
	unsigned writes;
	uint32_t old;
};

static uint32_t probe_read(struct pci_function *fn, unsigned offset, unsigned size, uint32_t value)
{
	(void)fn;
	return offset == 0x80 && size == 4 ? ~value : value;
}

static void probe_write(struct pci_function *fn, unsigned offset, unsigned size, uint32_t old)
{
	struct probe *probe = (struct probe *)fn->device;

	(void)offset;
	(void)size;
	probe->writes++;
	probe->old = old;
}

static void probe_destroy(struct device *device)
{
	struct probe *probe = (struct probe *)device;

	pci_function_del(&probe->fn);
	pci_function_destroy(&probe->fn);
	device_free(device);
}

static const struct device_class probe_class;

static int probe_create(struct vm *vm, struct config *config, struct device **out,
			struct error *err)
{
	static const struct pci_function_ops ops = {.read = probe_read, .write = probe_write};
	struct probe *probe = device_alloc(&probe_class, vm, sizeof(*probe), "probe");

	(void)config;
	assert_non_null(probe);
	assert_int_equal(pci_function_init(&probe->fn, &probe->device,
					   (struct pci_address){0, 5, 0}, &ops, probe->state.config,
					   sizeof(probe->state.config), err),
			 0);
	pci_set16(&probe->fn, PCI_STATUS, 0xf900);
	pci_set32(&probe->fn, 0x80, 0x12345678);
	pci_set_writable(&probe->fn, 0x80, 4, 0x0000ffff);
	pci_set_writable(&probe->fn, 0xffc, 4, 0xffffffff);
	assert_int_equal(pci_function_add(&probe->fn, err), 0);
	pci_function_reset(&probe->fn);
	*out = &probe->device;
	return 0;
}

static const struct device_class probe_class = {
	.name = "probe",
	.kind = DEVICE_PCI,
	.create = probe_create,
	.destroy = probe_destroy,
};

static void hooks_and_clear_by_one(void **state)
{
	struct fixture *f = *state;
	struct probe *probe = (struct probe *)fixture_device(f, &probe_class, NULL);

	assert_int_equal(config_in(f, 5, 0, PCI_STATUS, 2), 0xf900);
	config_out(f, 5, 0, PCI_STATUS, 2, 0x8100);
	assert_int_equal(config_in(f, 5, 0, PCI_STATUS, 2), 0x7800);
	assert_int_equal(probe->writes, 1);
	assert_int_equal(probe->old, 0xf900);
	assert_int_equal(config_in(f, 5, 0, 0x80, 4), ~0x12345678u);
	config_out(f, 5, 0, 0x80, 4, 0xaaaabbbb);
	assert_int_equal(config_in(f, 5, 0, 0x80, 2), 0xbbbb);
	assert_int_equal(config_in(f, 5, 0, 0x82, 2), 0x1234);
	fixture_write(f, ecam(0, 5, 0, 0xffc), 8, 0x1122334455667788ull);
	assert_int_equal(fixture_read(f, ecam(0, 5, 0, 0xffc), 4), 0x55667788);
	assert_int_equal(pci_get32(&probe->fn, 0xffc), 0x55667788);
}

static void multi_function_bit_follows(void **state)
{
	struct fixture *f = *state;
	struct device *second;

	add_ok(f, "hostbridge", "pci.0.3.0");
	assert_int_equal(config_in(f, 3, 0, PCI_HEADER_TYPE, 1), 0);
	second = add_ok(f, "amd_hostbridge", "pci.0.3.4");
	assert_int_equal(config_in(f, 3, 0, PCI_HEADER_TYPE, 1), 0x80);
	assert_int_equal(config_in(f, 3, 0, PCI_CACHE_LINE_SIZE, 4), 0x00800000);
	assert_int_equal(config_in(f, 3, 4, 0, 4), 0x74321022);
	device_destroy(second);
	assert_int_equal(config_in(f, 3, 0, PCI_HEADER_TYPE, 1), 0);
	assert_int_equal(config_in(f, 3, 4, 0, 4), 0xffffffff);
}

static void places_are_checked(void **state)
{
	static const char *const bad[] = {"pci.0.32.0",	 "pci.256.0.0", "pci.0.0.8", "pci.0.0",
					  "pci.0.0.0.1", "pci.0.x.0",	"lpc"};
	struct fixture *f = *state;
	struct device *device;
	struct error err = {0};

	add_ok(f, "hostbridge", "pci.0.0.0");
	assert_int_equal(add(f, "amd_hostbridge", "pci.0.0.0", &device, &err), -EEXIST);
	assert_non_null(strstr(err.text, "slot 0"));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		/* nodes that are in the way of each other */
		config_remove(f->vm.config, "pci");
		assert_int_equal(add(f, "hostbridge", bad[i], &device, &err), -EINVAL);
		assert_non_null(strstr(err.text, bad[i]));
	}
	assert_int_equal(add(f, "lpc", "pci.1.31.0", &device, &err), -EINVAL);
	assert_non_null(strstr(err.text, "bus 0"));
	add_ok(f, "lpc", "pci.0.31.0");
	assert_int_equal(add(f, "lpc", "pci.0.30.0", &device, &err), -EEXIST);
	assert_non_null(strstr(err.text, "pci.0.31.0"));
}

static void ids_can_be_configured(void **state)
{
	struct fixture *f = *state;
	struct device *device;
	struct error err = {0};

	assert_int_equal(config_set(f->vm.config, "pci.0.0.0.pcireg.vendor", "0x8086", &err), 0);
	assert_int_equal(config_set(f->vm.config, "pci.0.0.0.pcireg.device", "0x1237", &err), 0);
	add_ok(f, "hostbridge", "pci.0.0.0");
	assert_int_equal(config_in(f, 0, 0, 0, 4), 0x12378086);
	assert_int_equal(config_set(f->vm.config, "pci.0.1.0.pcireg.vendor", "0x10000", &err), 0);
	assert_int_equal(add(f, "hostbridge", "pci.0.1.0", &device, &err), -EINVAL);
	assert_non_null(strstr(err.text, "pcireg.vendor"));
}

static void state_survives(void **state)
{
	struct fixture *f = *state;

	add_ok(f, "hostbridge", "pci.0.0.0");
	add_ok(f, "lpc", "pci.0.31.0");
	config_out(f, 31, 0, 0x61, 1, 0x0b);
	config_out(f, 0, 0, PCI_INTERRUPT_LINE, 1, 0x5a);
	point(f, 0, 31, 0, 0x60);
	fixture_save_restore(f);
	assert_int_equal(fixture_in(f, DATA, 4), 0x80800b80); /* the address register too */
	assert_int_equal(config_in(f, 0, 0, PCI_INTERRUPT_LINE, 1), 0x5a);
}

static void restore_cannot_change_what_is_fixed(void **state)
{
	struct fixture *f = *state;
	struct device *device = add_ok(f, "lpc", "pci.0.31.0");

	devices_quiesce(&f->vm);
	memset(device_state(device), 0xff, PCI_CONFIG_SIZE);
	devices_resume(&f->vm);
	assert_int_equal(config_in(f, 31, 0, 0, 4), 0x70008086);
	assert_int_equal(config_in(f, 31, 0, 0x60, 4), 0x8f8f8f8f);
	assert_int_equal(config_in(f, 31, 0, PCI_HEADER_TYPE, 1), 0);
}

static void hostile_accesses(void **state)
{
	struct fixture *f = *state;
	struct device *device;

	add_ok(f, "hostbridge", "pci.0.0.0");
	device = add_ok(f, "lpc", "pci.0.31.0");
	fixture_device(f, &probe_class, NULL);
	fixture_fuzz_pio(f, ADDRESS, 8, 100000, 1);
	fixture_fuzz_mmio(f, PCI_ECAM_BASE, 0x1000, 50000, 2);
	fixture_fuzz_mmio(f, ecam(0, 31, 0, 0), 0x1000, 50000, 3);
	fixture_fuzz_mmio(f, ecam(0, 5, 0, 0), 0x1000, 50000, 4);
	fixture_fuzz_mmio(f, PCI_ECAM_BASE + PCI_ECAM_SIZE - 8, 16, 10000, 5);
	assert_int_equal(config_in(f, 31, 0, 0, 4), 0x70008086);
	fixture_fuzz_state(f, device, 500, 6);
	assert_int_equal(config_in(f, 31, 0, 0, 4), 0x70008086);
}

static void search_goes_in_order(void **state)
{
	struct fixture *f = *state;
	struct pci_address addr = {0, 0, 0};
	unsigned n = 0;

	add_ok(f, "hostbridge", "pci.3.2.1");
	add_ok(f, "lpc", "pci.0.31.0");
	add_ok(f, "hostbridge", "pci.0.0.0");
	assert_null(pci_function_search(f->vm.pci, &addr, PCI_CLASS_DISPLAY, 0));
	addr = (struct pci_address){0, 0, 0};
	do {
		struct pci_function *fn = pci_function_search(f->vm.pci, &addr, -1, -1);

		if (!fn)
			break;
		assert_int_equal(addr.bus << 16 | addr.slot << 8 | addr.func, n == 0   ? 0
									      : n == 1 ? 0x1f00
										       : 0x30201);
		n++;
	} while (pci_address_next(&addr));
	assert_int_equal(n, 3);
}

struct windows {
	struct pci_window window[16];
	unsigned bus[16], n;
	unsigned number;
};

static void keep_window(void *arg, const struct pci_window *window)
{
	struct windows *w = arg;

	assert_true(w->n < 16);
	assert_true(window->base <= window->last);
	for (unsigned i = 0; i < w->n; i++)
		assert_true(w->window[i].space != window->space ||
			    window->last < w->window[i].base || w->window[i].last < window->base);
	w->window[w->n] = *window;
	w->bus[w->n++] = w->number;
}

static bool in_a_window(const struct windows *w, unsigned bus, enum pci_space space, uint64_t base,
			uint64_t size)
{
	for (unsigned i = 0; i < w->n; i++)
		if (w->bus[i] == bus && w->window[i].space == space && base >= w->window[i].base &&
		    base + size - 1 <= w->window[i].last)
			return true;
	return false;
}

/* A guest believes a BAR only where _CRS of its bus's own bridge has a window. */
static void each_bus_has_windows(void **state)
{
	static const char *const places[] = {"pci.0.3.0", "pci.1.3.0", "pci.0.4.0", "pci.200.0.0",
					     "pci.1.4.1", "pci.1.5.0", "pci.1.6.0", "pci.1.7.0"};
	struct fixture *f = *state;
	struct windows w = {0};

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		add_ok(f, "virtio-rnd", places[i]);
	for (w.number = 0; w.number < PCI_BUSES; w.number++)
		pci_windows(f->vm.pci, (uint8_t)w.number, keep_window, &w);
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		unsigned bus, slot, func;

		assert_int_equal(sscanf(places[i], "pci.%u.%u.%u", &bus, &slot, &func), 3);
		for (unsigned bar = 0; bar < 5; bar += bar ? 3 : 1) {
			uint64_t at = fixture_read(f, ecam(bus, slot, func, PCI_BAR(bar)), 4);
			bool io = at & 1;

			assert_true(in_a_window(&w, bus, io ? PCI_SPACE_IO : PCI_SPACE_MEM32,
						at & ~15ull, io ? 256 : 4096));
		}
	}
	assert_false(in_a_window(&w, 2, PCI_SPACE_IO, PCI_IO_BASE, 1));
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(address_register_is_a_dword),
		TEST(reset_control_shares_the_dword),
		TEST(ids_by_every_size),
		TEST(nobody_is_all_ones),
		TEST(masks_hold),
		TEST(capability_list),
		TEST(ecam_sees_the_same),
		TEST(hooks_and_clear_by_one),
		TEST(multi_function_bit_follows),
		TEST(places_are_checked),
		TEST(ids_can_be_configured),
		TEST(state_survives),
		TEST(restore_cannot_change_what_is_fixed),
		TEST(hostile_accesses),
		TEST(search_goes_in_order),
		TEST(each_bus_has_windows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
