/* AHCI as a driver meets it, good or hostile: commands in memory, registers, on a machine without CPUs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bus/pci.h"
#include "tests/unit/fixture.h"

#define RAM (4ull << 20)
#define LIST 0x10000u
#define FISES 0x11000u
#define TABLE 0x12000u
#define BUFFER 0x20000u
#define WAIT_MS 20000
#define PORT 0x100
#define DISK_SECTORS 2048u

struct driver {
	struct fixture *f;
	struct device *device;
	struct config *config;
	char image[64];
	uint64_t bar;
};

static uint64_t pci_ecam(unsigned reg)
{
	return PCI_ECAM_BASE + (3 << 15) + reg;
}

static void reg_write(struct driver *d, unsigned offset, uint32_t value)
{
	fixture_write(d->f, d->bar + offset, 4, value);
}

static uint32_t reg_read(struct driver *d, unsigned offset)
{
	return (uint32_t)fixture_read(d->f, d->bar + offset, 4);
}

static void poke(struct driver *d, uint64_t gpa, const void *bytes, size_t len)
{
	assert_int_equal(memory_write(&d->f->vm.memory, gpa, bytes, len), 0);
}

static void peek(struct driver *d, uint64_t gpa, void *bytes, size_t len)
{
	assert_int_equal(memory_read(&d->f->vm.memory, gpa, bytes, len), 0);
}

static void bring_up(struct driver *d)
{
	reg_write(d, 0x04, 1);
	assert_int_equal(reg_read(d, 0x04), 0x80000000);
	reg_write(d, PORT + 0x00, LIST);
	reg_write(d, PORT + 0x08, FISES);
	reg_write(d, PORT + 0x18, 0x16);
	reg_write(d, PORT + 0x18, 0x17);
}

static void prd(struct driver *d, unsigned n, uint64_t addr, uint32_t len)
{
	const struct {
		uint64_t addr;
		uint32_t reserved, count;
	} entry = {addr, 0, len - 1};

	poke(d, TABLE + 0x80 + 16 * n, &entry, sizeof(entry));
}

static void issue(struct driver *d, unsigned slot, const uint8_t *fis, unsigned prds)
{
	const struct {
		uint16_t flags, prds;
		uint32_t count;
		uint64_t table, reserved[2];
	} header = {5, (uint16_t)prds, 0, TABLE, {0}};

	poke(d, TABLE, fis, 20);
	poke(d, LIST + 32 * slot, &header, sizeof(header));
	if (fis[2] == 0x60 || fis[2] == 0x61)
		reg_write(d, PORT + 0x34, 1u << slot);
	reg_write(d, PORT + 0x38, 1u << slot);
}

/* The task file when the command has ended, well or not. */
static uint32_t await(struct driver *d, unsigned slot)
{
	unsigned ms = 0;

	while (((reg_read(d, PORT + 0x38) | reg_read(d, PORT + 0x34)) >> slot & 1) &&
	       !(reg_read(d, PORT + 0x10) & 1u << 30) && ms++ < WAIT_MS)
		usleep(1000);
	assert_true(ms < WAIT_MS);
	return reg_read(d, PORT + 0x20);
}

static uint32_t command(struct driver *d, uint8_t code, uint64_t lba, unsigned sectors,
			unsigned prds)
{
	const uint8_t fis[20] = {0x27,
				 0x80,
				 code,
				 0,
				 (uint8_t)lba,
				 (uint8_t)(lba >> 8),
				 (uint8_t)(lba >> 16),
				 0x40,
				 (uint8_t)(lba >> 24),
				 (uint8_t)(lba >> 32),
				 (uint8_t)(lba >> 40),
				 0,
				 (uint8_t)sectors,
				 (uint8_t)(sectors >> 8)};

	issue(d, 0, fis, prds);
	return await(d, 0);
}

static int set_up(void **state)
{
	const struct device_class *cls = device_class_find(DEVICE_PCI, "ahci-hd");
	struct driver *d = calloc(1, sizeof(*d));
	struct fixture *f = fixture_create();
	struct error err = {0};
	struct config *node;
	int fd;

	assert_non_null(d);
	d->f = f;
	d->config = f->vm.config = config_create();
	if (memory_create(&f->vm.memory, &f->vm, RAM, false, false, &err))
		fail_msg("%s", err.text);
	fixture_device(f, &pci_bus_class, NULL);
	node = config_make(f->vm.config, "pci.0.3.0", &err);
	strcpy(d->image, "/tmp/skep-test-ahci-XXXXXX");
	fd = mkstemp(d->image);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, DISK_SECTORS * 512), 0);
	close(fd);
	assert_int_equal(config_set(node, "path", d->image, &err), 0);
	if (device_create(cls, &f->vm, node, &d->device, &err))
		fail_msg("%s", err.text);
	fixture_write(f, pci_ecam(PCI_COMMAND), 2, 7);
	d->bar = fixture_read(f, pci_ecam(PCI_BAR(5)), 4) & ~15ull;
	*state = d;
	return 0;
}

static int tear_down(void **state)
{
	struct driver *d = *state;
	struct memory memory = d->f->vm.memory;

	fixture_destroy(d->f);
	memory_destroy(&memory);
	config_destroy(d->config);
	unlink(d->image);
	free(d);
	return 0;
}

static void disk_says_what_it_is(void **state)
{
	struct driver *d = *state;
	uint16_t id[256];
	uint8_t sum = 0;

	bring_up(d);
	prd(d, 0, BUFFER, 512);
	assert_int_equal(command(d, 0xec, 0, 0, 1) & 1, 0);
	peek(d, BUFFER, id, sizeof(id));
	assert_int_equal(id[60] | id[61] << 16, DISK_SECTORS);
	for (unsigned i = 0; i < 512; i++)
		sum = (uint8_t)(sum + ((uint8_t *)id)[i]);
	assert_int_equal(sum, 0);
}

static void disk_keeps_what_is_written(void **state)
{
	struct driver *d = *state;
	uint8_t in[2048], out[2048];
	uint8_t fis[20] = {0x27, 0x80, 0x60, 4, 9, 0, 0, 0x40, [12] = 5 << 3};

	for (unsigned i = 0; i < sizeof(in); i++)
		in[i] = (uint8_t)(i * 13 >> 2);
	bring_up(d);
	poke(d, BUFFER, in, sizeof(in));
	prd(d, 0, BUFFER, 100);
	prd(d, 1, BUFFER + 100, 1948);
	assert_int_equal(command(d, 0x35, 9, 4, 2) & 1, 0);
	assert_int_equal(command(d, 0xea, 0, 0, 0) & 1, 0);
	prd(d, 0, BUFFER + 0x1000, 2048);
	issue(d, 5, fis, 1); /* queued */
	assert_int_equal(await(d, 5) & 1, 0);
	peek(d, BUFFER + 0x1000, out, sizeof(out));
	assert_memory_equal(in, out, sizeof(in));
}

static void bad_commands_are_aborted(void **state)
{
	static const struct {
		uint8_t code;
		uint64_t lba;
		unsigned sectors;
		uint64_t addr;
		uint32_t len;
	} bad[] = {
		{0x25, DISK_SECTORS, 1, BUFFER, 512},	   /* behind the end */
		{0x25, DISK_SECTORS - 1, 2, BUFFER, 1024}, /* over it */
		{0x35, 0xffffffffffff, 1, BUFFER, 512},
		{0x25, 0, 1, RAM, 512}, /* not memory */
		{0x25, 0, 1, RAM - 256, 512},
		{0x35, 0, 1, UINT64_MAX - 255, 512},
		{0x25, 0, 1, BUFFER, 100},	/* too short */
		{0x25, 0, 0, BUFFER, 0x400000}, /* 32 MiB of a disk that has one */
		{0xff, 0, 0, BUFFER, 512},
		{0xa0, 0, 0, BUFFER, 512}, /* a packet for a disk */
	};
	struct driver *d = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		bring_up(d);
		prd(d, 0, bad[i].addr, bad[i].len);
		assert_int_equal(command(d, bad[i].code, bad[i].lba, bad[i].sectors, 1) & 1, 1);
	}
	disk_keeps_what_is_written(state);
}

/* Lists, tables and registers full of noise. */
static void noise_is_survived(void **state)
{
	struct driver *d = *state;
	uint64_t seed = 5;

	for (unsigned round = 0; round < 300; round++) {
		bring_up(d);
		for (unsigned i = 0; i < 0x400; i += 8) {
			uint64_t r = fixture_random(&seed);

			if (i % 32 == 8)
				r = TABLE + (r & 0x380);
			poke(d, LIST + i, &r, 8);
			r = fixture_random(&seed);
			if (r & 1)
				r = BUFFER + (r >> 8 & 0xffff);
			poke(d, TABLE + i, &r, 8);
			if (i % 128 == 0)
				poke(d, TABLE + i,
				     (uint8_t[3]){0x27, 0x80, (uint8_t)(r & 16 ? 0x60 : r >> 32)},
				     3);
		}
		reg_write(d, PORT + 0x34, (uint32_t)fixture_random(&seed));
		reg_write(d, PORT + 0x38, UINT32_MAX);
		if (round % 4 == 0)
			fixture_fuzz_mmio(d->f, d->bar, 0x180, 100, round + 1);
	}
	fixture_fuzz_state(d->f, d->device, 200, 9);
	fixture_write(d->f, pci_ecam(PCI_BAR(5)), 4, (uint32_t)d->bar);
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 7);
	reg_write(d, PORT + 0x04, 0);
	reg_write(d, PORT + 0x0c, 0);
	disk_keeps_what_is_written(state);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(disk_says_what_it_is),
		TEST(disk_keeps_what_is_written),
		TEST(bad_commands_are_aborted),
		TEST(noise_is_survived),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
