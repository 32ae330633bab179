/* AHCI as a driver meets it, good or hostile: commands in memory, registers, on a machine without CPUs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
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
	FILE *log;
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

static int set_up_as(void **state, const char *name, const char *fault)
{
	const struct device_class *cls = device_class_find(DEVICE_PCI, name);
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
	if (fault)
		assert_int_equal(config_set(node, "fault", fault, &err), 0);
	d->log = tmpfile();
	assert_non_null(d->log);
	log_init(&f->log, fileno(d->log), LOG_WARN);
	if (device_create(cls, &f->vm, node, &d->device, &err))
		fail_msg("%s", err.text);
	fixture_write(f, pci_ecam(PCI_COMMAND), 2, 7);
	d->bar = fixture_read(f, pci_ecam(PCI_BAR(5)), 4) & ~15ull;
	*state = d;
	return 0;
}

static int set_up(void **state)
{
	return set_up_as(state, "ahci-hd", NULL);
}

static int set_up_cd(void **state)
{
	return set_up_as(state, "ahci-cd", NULL);
}

static int set_up_bad_cd(void **state)
{
	return set_up_as(state, "ahci-cd", "read:EIO:1:1");
}

static int set_up_bad_disk(void **state)
{
	return set_up_as(state, "ahci-hd", "read:EIO:2:1");
}

static int set_up_full_disk(void **state)
{
	return set_up_as(state, "ahci-hd", "write:ENOSPC:1:1");
}

static int set_up_unflushable(void **state)
{
	return set_up_as(state, "ahci-hd", "flush:EIO");
}

static int tear_down(void **state)
{
	struct driver *d = *state;
	struct memory memory = d->f->vm.memory;

	fixture_destroy(d->f);
	memory_destroy(&memory);
	config_destroy(d->config);
	unlink(d->image);
	fclose(d->log);
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

/* Without the right to access memory a command waits. */
static void bus_mastering_can_be_taken(void **state)
{
	const uint8_t fis[20] = {0x27, 0x80, 0xec};
	struct driver *d = *state;
	uint16_t id[256] = {0};

	bring_up(d);
	prd(d, 0, BUFFER, 512);
	poke(d, BUFFER, id, sizeof(id));
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 3);
	issue(d, 0, fis, 1);
	usleep(20000);
	peek(d, BUFFER, id, sizeof(id));
	assert_int_equal(id[60], 0);
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 7);
	await(d, 0);
	peek(d, BUFFER, id, sizeof(id));
	assert_int_equal(id[60] | id[61] << 16, DISK_SECTORS);
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

static void assert_logged(struct driver *d, const char *text)
{
	char bytes[1024] = "";

	assert_true(pread(fileno(d->log), bytes, sizeof(bytes) - 1, 0) >= 0);
	if (!strstr(bytes, text))
		fail_msg("'%s' lacks '%s'", bytes, text);
}

/* What the host cannot do is an I/O error of the disk, and a line in the log; the disk goes on. */
static void host_errors_are_io_errors(void **state)
{
	struct driver *d = *state;
	uint8_t fis[20] = {0x27, 0x80, 0x60, 1, 9, 0, 0, 0x40, [12] = 7 << 3};
	uint8_t page[512];

	bring_up(d);
	prd(d, 0, BUFFER, 512);
	assert_int_equal(command(d, 0x25, 3, 1, 1) & 1, 0);
	issue(d, 7, fis, 1); /* queued */
	assert_int_equal(await(d, 7), 0x4051);
	assert_int_equal(reg_read(d, PORT + 0x34), 1u << 7); /* it failed: still set (5.4.1.4) */
	assert_logged(d, "read of 512 bytes at 4608: Input/output error");
	/* The driver stops the port, starts it again and reads which one it was. */
	reg_write(d, PORT + 0x10, UINT32_MAX);
	reg_write(d, PORT + 0x18, 0x16);
	reg_write(d, PORT + 0x18, 0x17);
	assert_int_equal(command(d, 0x2f, 0x10, 1, 1) & 1, 0);
	peek(d, BUFFER, page, sizeof(page));
	assert_int_equal(page[0], 7);
	assert_int_equal(page[2], 0x51);
	assert_int_equal(page[3], 0x40);
	assert_int_equal(page[4], 9);
	assert_int_equal(command(d, 0x25, 9, 1, 1) & 1, 0);
}

static void full_host_is_an_io_error(void **state)
{
	struct driver *d = *state;

	bring_up(d);
	prd(d, 0, BUFFER, 512);
	assert_int_equal(command(d, 0x35, 3, 1, 1), 0x4051);
	assert_logged(d, "write of 512 bytes at 1536: No space left on device");
	bring_up(d);
	prd(d, 0, BUFFER, 512);
	assert_int_equal(command(d, 0x35, 3, 1, 1) & 1, 0);
}

/* Without its cache a write has ended when it is flushed, and a flush that fails is the write's error. */
static void write_cache_can_be_off(void **state)
{
	struct driver *d = *state;
	uint8_t fis[20] = {0x27, 0x80, 0xef, 0x82};
	uint16_t id[256];

	bring_up(d);
	prd(d, 0, BUFFER, 512);
	assert_int_equal(command(d, 0x35, 3, 1, 1) & 1, 0);
	issue(d, 0, fis, 0);
	assert_int_equal(await(d, 0) & 1, 0);
	assert_int_equal(command(d, 0xec, 0, 0, 1) & 1, 0);
	peek(d, BUFFER, id, sizeof(id));
	assert_int_equal(id[82] & 1 << 5, 1 << 5);
	assert_int_equal(id[85] & 1 << 5, 0);
	fis[3] = 0x02; /* on */
	issue(d, 0, fis, 0);
	assert_int_equal(await(d, 0) & 1, 0);
	assert_int_equal(command(d, 0x35, 3, 1, 1) & 1, 0);
	fis[3] = 0x82;
	issue(d, 0, fis, 0);
	assert_int_equal(await(d, 0) & 1, 0);
	assert_int_equal(command(d, 0x35, 3, 1, 1), 0x4051);
	assert_logged(d, "flush of 0 bytes at 0: Input/output error");
	bring_up(d); /* an HBA's reset turns it on */
	assert_int_equal(command(d, 0x35, 3, 1, 1) & 1, 0);
	assert_int_equal(command(d, 0xe7, 0, 0, 0), 0x4051);
	bring_up(d);
	fis[3] = 0x77;
	issue(d, 0, fis, 0);
	assert_int_equal(await(d, 0), 0x0451);
}

/* A function-level reset: all is as after power-on, also what an HBA's reset leaves alone (PCI Express 3.0, 6.6.2). */
static void function_is_reset(void **state)
{
	struct driver *d = *state;
	unsigned at = (unsigned)fixture_read(d->f, pci_ecam(PCI_CAPABILITY_POINTER), 1);

	bring_up(d);
	prd(d, 0, BUFFER, 512);
	assert_int_equal(command(d, 0xec, 0, 0, 1) & 1, 0);
	while (at && fixture_read(d->f, pci_ecam(at), 1) != PCI_CAP_EXPRESS)
		at = (unsigned)fixture_read(d->f, pci_ecam(at + 1), 1);
	assert_int_not_equal(at, 0);
	assert_true(fixture_read(d->f, pci_ecam(at + 4), 4) & 1u << 28);
	fixture_write(d->f, pci_ecam(PCI_INTERRUPT_LINE), 1, 11);
	fixture_write(d->f, pci_ecam(at + 8), 2, 0x8000);
	assert_int_equal(fixture_read(d->f, pci_ecam(PCI_INTERRUPT_LINE), 1), 0xff);
	assert_int_equal(fixture_read(d->f, pci_ecam(PCI_BAR(5)), 4), d->bar);
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 7);
	assert_int_equal(reg_read(d, PORT + 0x18) & 0x11, 0);
	bring_up(d);
	assert_int_equal(command(d, 0xec, 0, 0, 1) & 1, 0);
}

/* --- the CD drive ---------------------------------------------------------------------------------- */

#define CD_SECTORS (DISK_SECTORS / 4)

#define ABORTED 16

/* 0, or the sense key that the error register tells, or ABORTED without one. */
static unsigned packet(struct driver *d, const uint8_t *bytes, unsigned len, unsigned prds)
{
	const uint8_t fis[20] = {0x27, 0x80, 0xa0};
	uint8_t command_bytes[12] = {0};
	uint32_t task;

	memcpy(command_bytes, bytes, len);
	poke(d, TABLE + 0x40, command_bytes, sizeof(command_bytes));
	issue(d, 0, fis, prds);
	task = await(d, 0);
	if (!(task & 1))
		return 0;
	/* as a driver does after an error */
	reg_write(d, PORT + 0x10, UINT32_MAX);
	reg_write(d, PORT + 0x18, 0x16);
	reg_write(d, PORT + 0x18, 0x17);
	return task >> 12 & 15 ? task >> 12 & 15 : ABORTED;
}

#define PACKET(d, prds, ...) \
	packet(d, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}), prds)

/* Key and code, as REQUEST SENSE tells them. */
static unsigned sense(struct driver *d)
{
	uint8_t reply[18];

	prd(d, 0, BUFFER + 0x8000, sizeof(reply));
	assert_int_equal(PACKET(d, 1, 0x03, 0, 0, 0, sizeof(reply)), 0);
	peek(d, BUFFER + 0x8000, reply, sizeof(reply));
	assert_int_equal(reply[0], 0x70);
	return (unsigned)reply[2] << 8 | reply[12];
}

static void reply_of(struct driver *d, uint8_t *out, unsigned len)
{
	peek(d, BUFFER, out, len);
	memset(out + len, 0, 64 - len);
	poke(d, BUFFER, (uint8_t[64]){0}, 64);
	prd(d, 0, BUFFER, 64);
}

static void drive_says_what_it_is(void **state)
{
	struct driver *d = *state;
	uint8_t r[64];

	bring_up(d);
	assert_int_equal(reg_read(d, PORT + 0x24), 0xeb140101);
	prd(d, 0, BUFFER, 512);
	assert_int_equal(command(d, 0xa1, 0, 0, 1) & 1, 0);
	reply_of(d, r, 2);
	assert_int_equal(r[1], 0x85);
	assert_int_equal(PACKET(d, 1, 0x12, 0, 0, 0, 36), 0);
	reply_of(d, r, 36);
	assert_int_equal(r[0], 5);
	assert_memory_equal(r + 16, "CD-ROM", 6);
	assert_int_equal(PACKET(d, 1, 0x12, 0, 0, 0, 5), 0); /* no more than it asks for */
	reply_of(d, r, 36);
	assert_int_equal(r[4], 31);
	assert_int_equal(r[8], 0);
	assert_int_equal(PACKET(d, 1, 0x25), 0);
	reply_of(d, r, 8);
	assert_int_equal(r[2] << 8 | r[3], CD_SECTORS - 1);
	assert_int_equal(r[6], 8);
	assert_int_equal(PACKET(d, 1, 0x43, 0, 0, 0, 0, 0, 1, 0, 64), 0);
	reply_of(d, r, 20);
	assert_int_equal(r[18] << 8 | r[19], CD_SECTORS); /* the lead-out */
	assert_int_equal(PACKET(d, 1, 0x43, 2, 0, 0, 0, 0, 1, 0, 64), 0);
	reply_of(d, r, 20);
	assert_int_equal(r[17] * 60 * 75 + r[18] * 75 + r[19], CD_SECTORS + 150);
	assert_int_equal(PACKET(d, 1, 0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 64), 0);
	reply_of(d, r, 30);
	assert_int_equal(r[8], 0x2a);
	assert_int_equal(PACKET(d, 1, 0x46, 0, 0, 0, 0, 0, 0, 0, 64), 0);
	reply_of(d, r, 8);
	assert_int_equal(r[7], 8);
	assert_int_equal(PACKET(d, 1, 0x51, 0, 0, 0, 0, 0, 0, 0, 64), 0);
}

static void disc_is_read(void **state)
{
	struct driver *d = *state;
	static uint8_t in[3 * 2048], out[3 * 2048];
	FILE *image = fopen(d->image, "r+");

	for (unsigned i = 0; i < sizeof(in); i++)
		in[i] = (uint8_t)(i * 11 >> 3);
	assert_int_equal(fseek(image, 5 * 2048, SEEK_SET), 0);
	assert_int_equal(fwrite(in, sizeof(in), 1, image), 1);
	fclose(image);
	bring_up(d);
	prd(d, 0, BUFFER, 1000);
	prd(d, 1, BUFFER + 1000, sizeof(in) - 1000);
	assert_int_equal(PACKET(d, 2, 0x28, 0, 0, 0, 0, 5, 0, 0, 3), 0);
	peek(d, BUFFER, out, sizeof(out));
	assert_memory_equal(in, out, sizeof(in));
	prd(d, 0, BUFFER, 2048);
	assert_int_equal(PACKET(d, 1, 0xa8, 0, 0, 0, 0, 7, 0, 0, 0, 1), 0);
	peek(d, BUFFER, out, 2048);
	assert_memory_equal(in + 4096, out, 2048);
}

static void bad_packets_are_refused(void **state)
{
	struct driver *d = *state;

	bring_up(d);
	prd(d, 0, BUFFER, 4096);
	assert_int_equal(PACKET(d, 1, 0xff), 5);
	assert_int_equal(sense(d), 0x520);
	assert_int_equal(PACKET(d, 1, 0x28, 0, 0, 0, CD_SECTORS >> 8, 0xff, 0, 0, 2), 5);
	assert_int_equal(sense(d), 0x521);
	assert_int_equal(PACKET(d, 1, 0xa8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), 5);
	assert_int_equal(sense(d), 0x521);
	assert_int_equal(PACKET(d, 1, 0x12, 1, 0x80, 0, 36), 5); /* no vital product data */
	assert_int_equal(PACKET(d, 1, 0x43, 0, 5, 0, 0, 0, 0, 0, 64), 5);
	assert_int_equal(sense(d), 0x524);
	/* less room than the sectors take, or none at all, or not in memory: no sense, an abort of the transport's */
	prd(d, 0, BUFFER, 1024);
	assert_int_equal(PACKET(d, 1, 0x28, 0, 0, 0, 0, 0, 0, 0, 1), ABORTED);
	assert_int_equal(PACKET(d, 0, 0x28, 0, 0, 0, 0, 0, 0, 0, 1), ABORTED);
	prd(d, 0, RAM - 512, 2048);
	assert_int_equal(PACKET(d, 1, 0x28, 0, 0, 0, 0, 0, 0, 0, 1), ABORTED);
	assert_int_equal(PACKET(d, 1, 0x12, 0, 0, 0, 0xff), 0);
	/* it is a CD: nothing writes, and a disk's commands are none of its */
	assert_int_equal(PACKET(d, 1, 0x2a, 0, 0, 0, 0, 0, 0, 0, 1), 5);
	assert_int_equal(command(d, 0x35, 0, 1, 1) & 1, 1);
	disc_is_read(state);
}

static void disc_goes_out_and_in(void **state)
{
	struct driver *d = *state;
	uint8_t r[64];

	bring_up(d);
	assert_int_equal(PACKET(d, 0, 0x00), 0);
	assert_int_equal(PACKET(d, 0, 0x1e, 0, 0, 0, 1), 0); /* locked */
	assert_int_equal(PACKET(d, 0, 0x1b, 0, 0, 0, 2), 5);
	assert_int_equal(sense(d), 0x553);
	assert_int_equal(PACKET(d, 0, 0x1e), 0);
	assert_int_equal(PACKET(d, 0, 0x1b, 0, 0, 0, 2), 0);
	assert_int_equal(PACKET(d, 0, 0x00), 2);
	assert_int_equal(sense(d), 0x23a);
	prd(d, 0, BUFFER, 2048);
	assert_int_equal(PACKET(d, 1, 0x28, 0, 0, 0, 0, 0, 0, 0, 1), 2);
	reply_of(d, r, 0);
	assert_int_equal(PACKET(d, 1, 0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8), 0);
	reply_of(d, r, 8);
	assert_int_equal(r[4], 3); /* it was removed */
	assert_int_equal(r[5], 1); /* the tray is open */
	fixture_save_restore(d->f);
	assert_int_equal(PACKET(d, 0, 0x00), 2);
	assert_int_equal(PACKET(d, 0, 0x1b, 0, 0, 0, 3), 0);
	assert_int_equal(PACKET(d, 1, 0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8), 0);
	reply_of(d, r, 8);
	assert_int_equal(r[4], 2); /* a new one */
	assert_int_equal(r[5], 2);
	assert_int_equal(PACKET(d, 0, 0x00), 6); /* told once */
	assert_int_equal(sense(d), 0x628);
	assert_int_equal(PACKET(d, 0, 0x00), 0);
	disc_is_read(state);
}

static void bad_sectors_are_medium_errors(void **state)
{
	struct driver *d = *state;

	bring_up(d);
	prd(d, 0, BUFFER, 2048);
	assert_int_equal(PACKET(d, 1, 0x28, 0, 0, 0, 0, 0, 0, 0, 1), 3);
	assert_int_equal(sense(d), 0x311);
	assert_logged(d, "Input/output error");
	disc_is_read(state);
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
#define WITH(fn, set_up_fn) cmocka_unit_test_setup_teardown(fn, set_up_fn, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(disk_says_what_it_is),
		TEST(disk_keeps_what_is_written),
		TEST(bus_mastering_can_be_taken),
		TEST(bad_commands_are_aborted),
		TEST(noise_is_survived),
		WITH(host_errors_are_io_errors, set_up_bad_disk),
		WITH(full_host_is_an_io_error, set_up_full_disk),
		WITH(write_cache_can_be_off, set_up_unflushable),
		TEST(function_is_reset),
		WITH(drive_says_what_it_is, set_up_cd),
		WITH(disc_is_read, set_up_cd),
		WITH(bad_packets_are_refused, set_up_cd),
		WITH(disc_goes_out_and_in, set_up_cd),
		WITH(bad_sectors_are_medium_errors, set_up_bad_cd),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
