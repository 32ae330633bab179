/*
 * virtio as a driver meets it, good or hostile: a driver of our own on a machine without CPUs, talking to virtio-rnd and
 * virtio-blk by the modern and the legacy interface.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "bus/pci.h"
#include "debug/testdev.h"
#include "devices/virtio/virtio.h"
#include "tests/unit/driver.h"

/* Set: other threads do not come to virtqueue_signal(). */
static _Atomic(pthread_t) only_signaller;

void __real_virtqueue_signal(struct virtqueue *vq);
void __wrap_virtqueue_signal(struct virtqueue *vq);

void __wrap_virtqueue_signal(struct virtqueue *vq)
{
	pthread_t only = atomic_load(&only_signaller);

	if (!only || pthread_equal(only, pthread_self()))
		__real_virtqueue_signal(vq);
}

static int set_up_as(void **state, const char *name, const char *options, bool msix)
{
	char image[64] = "/tmp/skep-test-virtio-XXXXXX", list[128];
	struct driver *d;
	int fd, rc;

	if (strcmp(name, "virtio-blk") != 0)
		return driver_set_up(state, name, NULL, msix);
	fd = mkstemp(image);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	close(fd);
	snprintf(list, sizeof(list), "%s%s%s", image, options ? "," : "", options ? options : "");
	rc = driver_set_up(state, name, list, msix);
	d = *state;
	strcpy(d->image, image);
	return rc;
}

static int set_up_rnd(void **state)
{
	return set_up_as(state, "virtio-rnd", NULL, true);
}

static int set_up_msi(void **state)
{
	return set_up_as(state, "virtio-rnd", NULL, false);
}

static int set_up_blk(void **state)
{
	return set_up_as(state, "virtio-blk", NULL, true);
}

static int set_up_queues(void **state)
{
	return set_up_as(state, "virtio-blk", "queues=4", true);
}

static int set_up_unreadable(void **state)
{
	return set_up_as(state, "virtio-blk", "fault=read:EIO:2:1", true);
}

static int set_up_full(void **state)
{
	return set_up_as(state, "virtio-blk", "fault=write:ENOSPC:2:1", true);
}

static int set_up_unflushable(void **state)
{
	return set_up_as(state, "virtio-blk", "fault=flush:EIO:1:1", true);
}

static void buffers_are_filled(void **state)
{
	struct driver *d = *state;
	uint8_t bytes[300] = {0}, zeros[300] = {0};

	bring_up(d, VIRTIO_F_VERSION_1);
	descriptor(d, DESC, 0, BUFFER, 100, 3, 1);
	descriptor(d, DESC, 1, BUFFER + 100, 200, 2, 0);
	offer(d, 0, 3);
	notify(d);
	assert_int_equal(await(d, 3), 300);
	peek(d, BUFFER, bytes, sizeof(bytes));
	assert_memory_not_equal(bytes, zeros, 100);
	assert_memory_not_equal(bytes + 100, zeros, 200);
	assert_false(is_broken(d));
}

static void indirect_tables_work_if_negotiated(void **state)
{
	struct driver *d = *state;

	bring_up(d, VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC);
	descriptor(d, DESC, 0, BUFFER, 32, 4, 0);
	descriptor(d, BUFFER, 0, BUFFER + 0x1000, 10, 3, 1);
	descriptor(d, BUFFER, 1, BUFFER + 0x2000, 20, 2, 0);
	offer(d, 0, 1);
	notify(d);
	assert_int_equal(await(d, 1), 30);
	bring_up(d, VIRTIO_F_VERSION_1);
	offer(d, 0, 1);
	notify(d);
	await_broken(d);
}

/* With EVENT_IDX the device interrupts only when the driver's event is passed. */
static void event_index_is_kept(void **state)
{
	struct driver *d = *state;
	uint16_t event = 2;

	fixture_write(d->f, pci_ecam(0x10 + 4), 4, fixture_read(d->f, pci_ecam(0x14), 4));
	bring_up(d, VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
	poke(d, AVAIL + 4 + 2 * SIZE, &event, 2);
	descriptor(d, DESC, 0, BUFFER, 8, 2, 0);
	for (unsigned i = 0; i < 3; i++) {
		bool pending;

		offer(d, 0, 1);
		notify(d);
		await(d, 1);
		for (unsigned ms = 0; ms < (i == 2 ? WAIT_MS : 20); ms++) {
			pending = fixture_read(d->f, pci_ecam(PCI_STATUS), 2) & PCI_STATUS_INTX;
			if (pending)
				break;
			usleep(1000);
		}
		assert_int_equal(pending, i == 2);
	}
	assert_true(irq_line_level(&d->f->vm.irq, PCI_INTX_GSI_BASE + pci_intx_wire(3, 1)));
	assert_int_equal(reg_read(d, 0x1000, 1), 1); /* reading the ISR takes the interrupt back */
	assert_false(irq_line_level(&d->f->vm.irq, PCI_INTX_GSI_BASE + pci_intx_wire(3, 1)));
}

static void features_are_refused(void **state)
{
	struct driver *d = *state;

	bring_up(d, 0); /* modern, without VERSION_1 */
	assert_int_equal(reg_read(d, STATUS, 1), 3);
	bring_up(d, VIRTIO_F_VERSION_1 | 1ull << 40);
	assert_int_equal(reg_read(d, STATUS, 1), 3);
	bring_up(d, VIRTIO_F_VERSION_1);
	assert_int_equal(reg_read(d, STATUS, 1), 15);
}

/* Once the device runs, nothing that is written changes what was agreed on; nor does one interface what the other began. */
static void features_stay(void **state)
{
	struct driver *d = *state;
	uint64_t ports = fixture_read(d->f, pci_ecam(PCI_BAR(0)), 4) & ~3ull;

	bring_up(d, VIRTIO_F_VERSION_1);
	reg_write(d, STATUS, 1, 3); /* FEATURES_OK and DRIVER_OK taken back */
	reg_write(d, 0x08, 4, 1);
	reg_write(d, 0x0c, 4, 0xffffffff);
	reg_write(d, 0x08, 4, 0);
	reg_write(d, 0x0c, 4, 0xffffffff);
	assert_int_equal(reg_read(d, 0x0c, 4), 0);
	reg_write(d, STATUS, 1, 0);
	reg_write(d, 0x08, 4, 1);
	reg_write(d, 0x0c, 4, 1); /* VERSION_1, then an old driver comes */
	fixture_out(d->f, (uint16_t)(ports + 0x12), 1, 3);
	assert_int_equal(reg_read(d, 0x0c, 4), 0);
	reg_write(d, 0x0c, 4, 1);
	assert_int_equal(reg_read(d, 0x0c, 4), 0);
	fixture_out(d->f, (uint16_t)(ports + 4), 4, 0xffffffff);
	assert_int_equal(fixture_in(d->f, (uint16_t)(ports + 4), 4),
			 fixture_in(d->f, (uint16_t)ports, 4));
}

/* `n` more are offered, and it stays at `done`. */
static void stands_still(struct driver *d, unsigned n, uint16_t done)
{
	uint16_t used;

	offer(d, 0, n);
	notify(d);
	usleep(20000);
	peek(d, USED + 2, &used, 2);
	assert_int_equal(used, done);
}

/* Without the right to access memory nothing is done, and with it again all that was asked for meanwhile. */
static void bus_mastering_can_be_taken(void **state)
{
	struct driver *d = *state;

	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 7);
	bring_up(d, VIRTIO_F_VERSION_1);
	descriptor(d, DESC, 0, BUFFER, 8, 2, 0);
	offer(d, 0, 1);
	notify(d);
	await(d, 1);
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 3);
	stands_still(d, 2, 1);
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 7);
	assert_int_equal(await(d, 2), 8);
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 3);
	bring_up(d, VIRTIO_F_VERSION_1); /* a reset gives no right */
	stands_still(d, 1, 0);
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 7);
	await(d, 1);
}

/* NetBSD's order: the queues first, then the features, then DRIVER_OK. */
static void old_drivers_choose_late(void **state)
{
	struct driver *d = *state;
	uint16_t ports = (uint16_t)(fixture_read(d->f, pci_ecam(PCI_BAR(0)), 4) & ~3ull);
	uint32_t features = (uint32_t)VIRTIO_F_INDIRECT_DESC;
	uint64_t size = fixture_in(d->f, ports + 0x0c, 2), avail = DESC + 16 * size;
	uint64_t used = (avail + 6 + 2 * size + 4095) & ~4095ull;
	uint16_t index = 0;

	fixture_out(d->f, ports + 0x12, 1, 3);
	fixture_out(d->f, ports + 0x08, 4, DESC / 4096);
	fixture_out(d->f, ports + 4, 4, features);
	assert_int_equal(fixture_in(d->f, ports + 4, 4), features);
	fixture_out(d->f, ports + 0x12, 1, 7);
	fixture_out(d->f, ports + 4, 4, 0);
	assert_int_equal(fixture_in(d->f, ports + 4, 4), features);
	descriptor(d, DESC, 0, BUFFER, 16, 4, 0);
	descriptor(d, BUFFER, 0, BUFFER + 0x1000, 10, 2, 0);
	poke(d, avail + 2, &(uint16_t){1}, 2);
	fixture_out(d->f, ports + 0x10, 2, 0);
	for (unsigned ms = 0; ms < WAIT_MS && index == 0; ms++) {
		usleep(1000);
		peek(d, used + 2, &index, 2);
	}
	assert_int_equal(index, 1);
	assert_false(is_broken(d));
}

/* Each of these breaks the device, none of them anything else, and a reset mends it. */
static void bad_chains_break_the_device(void **state)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} bad[] = {
		{BUFFER, 16, 3, 0},	    /* a loop */
		{BUFFER, 16, 3, SIZE},	    /* the next is out of range */
		{BUFFER, 0, 2, 0},	    /* empty */
		{RAM - 8, 16, 2, 0},	    /* over the end of RAM */
		{RAM, 16, 2, 0},	    /* behind it */
		{UINT64_MAX - 8, 16, 2, 0}, /* wraps */
		{BUFFER, UINT32_MAX, 2, 0}, /* gigabytes */
		{PCI_MEM32_BASE, 16, 2, 0}, /* MMIO */
		{BUFFER, 17, 4, 0},	    /* an indirect table of no whole entries */
		{BUFFER, 0, 4, 0},	    /* of none */
		{DESC, 16, 4, 0},	    /* of an indirect one */
		{RAM - 16, 32, 4, 0},	    /* outside of RAM */
		{BUFFER, 16, 5, 0},	    /* indirect and next */
	};
	struct driver *d = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		bring_up(d, VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC);
		descriptor(d, DESC, 0, bad[i].addr, bad[i].len, bad[i].flags, bad[i].next);
		offer(d, 0, 1);
		notify(d);
		await_broken(d);
	}
	bring_up(d, VIRTIO_F_VERSION_1);
	offer(d, SIZE, 1); /* a head out of range */
	notify(d);
	await_broken(d);
	bring_up(d, VIRTIO_F_VERSION_1);
	descriptor(d, DESC, 0, BUFFER, 8, 2, 0);
	offer(d, 0, SIZE + 1); /* more than the ring holds */
	notify(d);
	await_broken(d);
	buffers_are_filled(state);
}

static void bad_rings_break_the_device(void **state)
{
	static const uint64_t bad[] = {RAM, RAM - 16, PCI_MEM32_BASE, UINT64_MAX - 15, DESC + 1};
	struct driver *d = *state;

	for (unsigned ring = 0; ring < 3; ring++) {
		for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
			reg_write(d, STATUS, 1, 0);
			reg_write(d, STATUS, 1, 3);
			reg_write(d, 0x08, 4, 1);
			reg_write(d, 0x0c, 4, 1);
			reg_write(d, STATUS, 1, 11);
			reg_write(d, 0x20, 4, DESC);
			reg_write(d, 0x28, 4, AVAIL);
			reg_write(d, 0x30, 4, USED);
			reg_write(d, 0x20 + 8 * ring, 4, bad[i] & UINT32_MAX);
			reg_write(d, 0x24 + 8 * ring, 4, bad[i] >> 32);
			reg_write(d, 0x1c, 2, 1);
			reg_write(d, STATUS, 1, 15);
			assert_true(is_broken(d));
		}
	}
	buffers_are_filled(state);
}

/* 64 KiB of rings, tables and buffers full of noise, registers hit at random. */
static void noise_is_survived(void **state)
{
	struct driver *d = *state;
	uint64_t seed = 7;

	for (unsigned round = 0; round < 400; round++) {
		bring_up(d, VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC |
				    (round & 1 ? VIRTIO_F_EVENT_IDX : 0));
		for (unsigned i = 0; i < SIZE; i++) {
			uint64_t r = fixture_random(&seed);
			uint64_t addr = r & 7 ? BUFFER + (r >> 8 & 0xfff) : r;

			descriptor(d, DESC, i, addr, (uint32_t)(r >> 20 & (r & 8 ? 0x3ff : 0xf0)),
				   (uint16_t)(r >> 40 & (r & 0x30 ? 3 : 7)),
				   (uint16_t)(r >> 50 & (r & 0xc0 ? 63 : 0xff)));
		}
		for (unsigned i = 0; i < 8; i++)
			offer(d, (uint16_t)(fixture_random(&seed) % (SIZE + 1)), 1);
		notify(d);
		if (round % 8 == 0)
			fixture_fuzz_mmio(d->f, d->bar, 0x4000, 200, round + 1);
	}
	fixture_fuzz_state(d->f, d->device, 200, 9);
	fixture_write(d->f, pci_ecam(PCI_BAR(4)), 4, (uint32_t)d->bar);
	fixture_write(d->f, pci_ecam(PCI_BAR(5)), 4, 0);
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 7);
	bring_up(d, VIRTIO_F_VERSION_1);
	assert_int_equal(reg_read(d, STATUS, 1), 15);
}

/* --- a disk ---------------------------------------------------------------------------------------- */

static uint8_t disk_request(struct driver *d, uint32_t type, uint64_t sector, uint32_t len,
			    bool to_guest)
{
	const struct {
		uint32_t type, reserved;
		uint64_t sector;
	} header = {type, 0, sector};
	uint8_t status = 0xaa;

	poke(d, BUFFER, &header, sizeof(header));
	poke(d, BUFFER + 0x100, &status, 1);
	descriptor(d, DESC, 0, BUFFER, 16, 1, len ? 1 : 2);
	descriptor(d, DESC, 1, BUFFER + 0x1000, len, to_guest ? 3 : 1, 2);
	descriptor(d, DESC, 2, BUFFER + 0x100, 1, 2, 0);
	offer(d, 0, 1);
	notify(d);
	await(d, 1);
	peek(d, BUFFER + 0x100, &status, 1);
	return status;
}

/* Of the last request. */
static uint32_t used_length(struct driver *d)
{
	uint32_t length;

	peek(d, USED + 4 + 8 * ((d->used[0] - 1) % SIZE) + 4, &length, sizeof(length));
	return length;
}

static void disk_keeps_what_is_written(void **state)
{
	struct driver *d = *state;
	const uint64_t zeroes[2] = {7, 1};
	uint8_t in[1024], out[1024];

	bring_up(d, VIRTIO_F_VERSION_1 | 1 << 9 | 1 << 14);
	for (unsigned i = 0; i < sizeof(in); i++)
		in[i] = (uint8_t)(i * 7);
	poke(d, BUFFER + 0x1000, in, sizeof(in));
	assert_int_equal(disk_request(d, 1, 6, 1024, false), 0);
	assert_int_equal(disk_request(d, 4, 0, 0, false), 0);
	poke(d, BUFFER + 0x1000, zeroes, sizeof(zeroes));
	assert_int_equal(disk_request(d, 13, 0, 16, false), 0);
	assert_int_equal(disk_request(d, 0, 6, 1024, true), 0);
	peek(d, BUFFER + 0x1000, out, sizeof(out));
	memset(in + 512, 0, 512);
	assert_memory_equal(in, out, sizeof(in));
}

/* 2.7.8.2: all bytes that a used length covers were written, from the first one on. */
static void used_lengths_have_no_gaps(void **state)
{
	struct driver *d = *state;

	bring_up(d, VIRTIO_F_VERSION_1 | 1 << 9);
	assert_int_equal(disk_request(d, 0, 0, 512, true), 0);
	assert_int_equal(used_length(d), 513);
	assert_int_equal(disk_request(d, 0, 1 << 20, 512, true), 1);
	assert_int_equal(used_length(d), 0);
	assert_int_equal(disk_request(d, 1, 0, 512, false), 0);
	assert_int_equal(used_length(d), 1);
	assert_int_equal(disk_request(d, 8, 0, 64, true), 0);
	assert_int_equal(used_length(d), 20);
}

static void disk_has_an_end(void **state)
{
	struct driver *d = *state;
	const uint64_t sectors = (1 << 20) / 512;

	bring_up(d, VIRTIO_F_VERSION_1);
	assert_int_equal(disk_request(d, 0, sectors - 1, 512, true), 0);
	assert_int_equal(disk_request(d, 0, sectors, 512, true), 1);
	assert_int_equal(disk_request(d, 0, sectors - 1, 1024, true), 1);
	assert_int_equal(disk_request(d, 1, UINT64_MAX, 512, false), 1);
	assert_int_equal(disk_request(d, 1, 1ull << 55, 512, false), 1);
	assert_int_equal(disk_request(d, 0, 0, 100, true), 1); /* no whole sector */
	assert_int_equal(disk_request(d, 99, 0, 512, true), 2);
	assert_false(is_broken(d));
}

static void assert_logged(struct driver *d, const char *text)
{
	char bytes[1024] = "";

	assert_true(pread(fileno(d->log), bytes, sizeof(bytes) - 1, 0) >= 0);
	if (!strstr(bytes, text))
		fail_msg("'%s' lacks '%s'", bytes, text);
}

/* What the host cannot do is an I/O error of the disk, and a line in the log; the disk goes on. */
static void unreadable_sectors_are_io_errors(void **state)
{
	struct driver *d = *state;

	bring_up(d, VIRTIO_F_VERSION_1 | 1 << 9);
	assert_int_equal(disk_request(d, 0, 0, 512, true), 0);
	assert_int_equal(disk_request(d, 0, 8, 512, true), 1);
	assert_logged(d, "read of 512 bytes at 4096: Input/output error");
	assert_int_equal(disk_request(d, 0, 8, 512, true), 0);
	assert_false(is_broken(d));
}

static void full_hosts_are_io_errors(void **state)
{
	struct driver *d = *state;

	bring_up(d, VIRTIO_F_VERSION_1 | 1 << 9);
	assert_int_equal(disk_request(d, 1, 0, 512, false), 0);
	assert_int_equal(disk_request(d, 1, 8, 512, false), 1);
	assert_logged(d, "write of 512 bytes at 4096: No space left on device");
	assert_int_equal(disk_request(d, 1, 8, 512, false), 0);
	assert_false(is_broken(d));
}

/* A flush that failed, and a write that a driver without FLUSH takes for flushed. */
static void failed_flushes_are_io_errors(void **state)
{
	struct driver *d = *state;

	bring_up(d, VIRTIO_F_VERSION_1 | 1 << 9);
	assert_int_equal(disk_request(d, 1, 0, 512, false), 0);
	assert_int_equal(disk_request(d, 4, 0, 0, false), 1);
	assert_logged(d, "flush of 0 bytes at 0: Input/output error");
	assert_false(is_broken(d));
}

static void write_through_tells_of_failed_flushes(void **state)
{
	struct driver *d = *state;

	bring_up(d, VIRTIO_F_VERSION_1);
	assert_int_equal(disk_request(d, 1, 0, 512, false), 1);
	assert_int_equal(disk_request(d, 1, 0, 512, false), 0);
}

static void truncated_images_are_io_errors(void **state)
{
	struct driver *d = *state;

	bring_up(d, VIRTIO_F_VERSION_1 | 1 << 9);
	assert_int_equal(truncate(d->image, 4096), 0);
	assert_int_equal(disk_request(d, 0, 0, 4096, true), 0);
	assert_int_equal(disk_request(d, 0, 7, 1024, true), 1);
	assert_logged(d, "Input/output error");
	assert_false(is_broken(d));
}

static void disk_survives_reset_under_load(void **state)
{
	struct driver *d = *state;

	for (unsigned i = 0; i < 50; i++) {
		bring_up(d, VIRTIO_F_VERSION_1);
		descriptor(d, DESC, 0, BUFFER, 16, 1, 1);
		descriptor(d, DESC, 1, BUFFER + 0x1000, 0x10000, 3, 2);
		descriptor(d, DESC, 2, BUFFER + 0x100, 1, 2, 0);
		poke(d, BUFFER, (uint64_t[2]){0, 0}, 16);
		offer(d, 0, SIZE);
		notify(d);
	}
	bring_up(d, VIRTIO_F_VERSION_1);
	assert_int_equal(disk_request(d, 0, 0, 512, true), 0);
}

/* --- PCI ------------------------------------------------------------------------------------------- */

static void bars_move_and_vanish(void **state)
{
	struct driver *d = *state;
	uint64_t old = d->bar;

	assert_int_equal(reg_read(d, 0x12, 2), 1);
	fixture_write(d->f, pci_ecam(PCI_BAR(4)), 4, UINT32_MAX);
	assert_int_equal(fixture_read(d->f, pci_ecam(PCI_BAR(4)), 4), 0xffffc00c);
	fixture_write(d->f, pci_ecam(PCI_BAR(4)), 4, 0xd0000000);
	assert_int_equal(fixture_read(d->f, old + 0x12, 2), 0xffff);
	assert_int_equal(fixture_read(d->f, 0xd0000012, 2), 1);
	/* onto the MSI-X BAR: there it waits */
	fixture_write(d->f, pci_ecam(PCI_BAR(4)), 4,
		      (uint32_t)fixture_read(d->f, pci_ecam(PCI_BAR(1)), 4));
	assert_int_equal(fixture_read(d->f, 0xd0000012, 2), 0xffff);
	d->bar = fixture_read(d->f, pci_ecam(PCI_BAR(4)), 4) & ~15ull;
	assert_int_not_equal(reg_read(d, 0x12, 2), 1);
	fixture_write(d->f, pci_ecam(PCI_BAR(1)), 4, 0xd1000000);
	assert_int_equal(reg_read(d, 0x12, 2), 1);
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 0);
	assert_int_equal(reg_read(d, 0x12, 2), 0xffff);
}

/* Engines may ring by themselves: at the registers where they are now, and nowhere when they are not decoded. */
static void engines_ring_the_doorbells(void **state)
{
	struct driver *d = *state;
	struct fixture *f = d->f;
	uint64_t ports = fixture_read(f, pci_ecam(PCI_BAR(0)), 4) & ~3ull;

	bring_up(d, VIRTIO_F_VERSION_1);
	descriptor(d, DESC, 0, BUFFER, 100, 2, 0);
	offer(d, 0, 1);
	assert_true(fixture_ring(f, false, d->bar + NOTIFY, 2, 0));
	assert_int_equal(await(d, 1), 100);
	offer(d, 0, 1);
	assert_true(fixture_ring(f, true, ports + 0x10, 2, 0));
	assert_int_equal(await(d, 1), 100);
	assert_false(fixture_ring(f, true, ports + 0x10, 2, 1)); /* there is no queue 1 */
	assert_false(fixture_ring(f, true, ports + 0x10, 4, 0));
	assert_false(fixture_ring(f, false, d->bar + NOTIFY + 4, 2, 0));
	fixture_write(f, pci_ecam(PCI_BAR(4)), 4, 0xd0000000);
	assert_false(fixture_ring(f, false, d->bar + NOTIFY, 2, 0));
	d->bar = 0xd0000000;
	offer(d, 0, 1);
	assert_true(fixture_ring(f, false, d->bar + NOTIFY, 2, 0));
	assert_int_equal(await(d, 1), 100);
	fixture_write(f, pci_ecam(PCI_COMMAND), 2, PCI_COMMAND_IO | PCI_COMMAND_MASTER);
	assert_int_equal(f->doorbells, 1);
	fixture_write(f, pci_ecam(PCI_COMMAND), 2, 0);
	assert_int_equal(f->doorbells, 0);
}

/* One worker serves all queues of a disk: any of its doorbells makes it look at each. */
static void each_queue_has_a_doorbell(void **state)
{
	struct driver *d = *state;

	d->queues = 4;
	bring_up(d, VIRTIO_F_VERSION_1);
	for (d->queue = 4; d->queue-- > 0;) {
		unsigned at = d->queue * RINGS;
		uint64_t header[2] = {8, 0}; /* GET_ID */
		uint8_t status = 0xff;

		poke(d, BUFFER, header, sizeof(header));
		poke(d, BUFFER + 0x200, &status, 1);
		descriptor(d, DESC + at, 0, BUFFER, 16, 1, 1);
		descriptor(d, DESC + at, 1, BUFFER + 0x100, 20, 3, 2);
		descriptor(d, DESC + at, 2, BUFFER + 0x200, 1, 2, 0);
		offer(d, 0, 1);
		assert_true(fixture_ring(d->f, false, d->bar + NOTIFY + 4 * d->queue, 2, d->queue));
		await(d, 1);
		peek(d, BUFFER + 0x200, &status, 1);
		assert_int_equal(status, 0);
	}
	assert_int_equal(d->f->doorbells, 8);
}

/* kvm-unit-tests fix the ports of their device, and the first BAR of all keeps clear of them. */
static void there_is_room_for_the_test_device(void **state)
{
	struct driver *d = *state;
	uint64_t ports = fixture_read(d->f, pci_ecam(PCI_BAR(0)), 4) & ~3ull;

	fixture_device(d->f, &testdev_class, NULL);
	fixture_outb(d->f, TESTDEV_IRQ_PORT + 5, 1);
	assert_true(irq_line_level(&d->f->vm.irq, 5));
	assert_int_not_equal(fixture_in(d->f, (uint16_t)ports, 4), UINT32_MAX);
}

static unsigned find_capability(struct driver *d, uint8_t id)
{
	unsigned at = (unsigned)fixture_read(d->f, pci_ecam(PCI_CAPABILITY_POINTER), 1);

	while (at && fixture_read(d->f, pci_ecam(at), 1) != id)
		at = (unsigned)fixture_read(d->f, pci_ecam(at + 1), 1);
	assert_int_not_equal(at, 0);
	return at;
}

static void await_msis(struct driver *d, unsigned n)
{
	for (unsigned ms = 0; ms < WAIT_MS && __atomic_load_n(&d->f->msis, __ATOMIC_ACQUIRE) < n;
	     ms++)
		usleep(1000);
	assert_int_equal(d->f->msis, n);
}

static void masked_messages_wait(void **state)
{
	struct driver *d = *state;
	uint64_t table = fixture_read(d->f, pci_ecam(PCI_BAR(1)), 4);
	unsigned cap = find_capability(d, PCI_CAP_MSIX);

	fixture_write(d->f, pci_ecam(cap + 2), 2, 0x8000);
	bring_up(d, VIRTIO_F_VERSION_1);
	reg_write(d, 0x16, 2, 0);
	reg_write(d, 0x1a, 2, 99);
	assert_int_equal(reg_read(d, 0x1a, 2), VIRTIO_NO_VECTOR);
	reg_write(d, 0x1a, 2, 1);
	fixture_write(d->f, table + 16, 4, 0xfee01000);
	fixture_write(d->f, table + 24, 4, 0x55);
	descriptor(d, DESC, 0, BUFFER, 8, 2, 0);
	offer(d, 0, 1);
	notify(d);
	await(d, 1);
	for (unsigned ms = 0; ms < WAIT_MS && fixture_read(d->f, table + 0x800, 4) != 2; ms++)
		usleep(1000);
	assert_int_equal(fixture_read(d->f, table + 0x800, 4), 2); /* pending */
	assert_int_equal(d->f->msis, 0);
	fixture_write(d->f, table + 28, 4, 0);
	await_msis(d, 1);
	assert_int_equal(d->f->msi[0].addr, 0xfee01000);
	assert_int_equal(d->f->msi[0].data, 0x55);
	assert_int_equal(fixture_read(d->f, table + 0x800, 4), 0);
	/* So do those of a function that may not write to memory. */
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 3);
	pthread_mutex_lock(&d->device->lock);
	pci_message(&((struct virtio_device *)d->device)->fn, 1);
	pthread_mutex_unlock(&d->device->lock);
	assert_int_equal(fixture_read(d->f, table + 0x800, 4), 2);
	fixture_write(d->f, pci_ecam(PCI_COMMAND), 2, 7);
	await_msis(d, 2);
	assert_int_equal(fixture_read(d->f, table + 0x800, 4), 0);
	/* 6.6.2 of PCI Express: the function is as after power-on */
	fixture_write(d->f, pci_ecam(find_capability(d, PCI_CAP_EXPRESS) + 8), 2, 0x8000);
	assert_int_equal(fixture_read(d->f, pci_ecam(cap + 2), 2), 1);
	assert_int_equal(fixture_read(d->f, table + 28, 4), 1);
	assert_int_equal(reg_read(d, STATUS, 1), 0);
}

/* 4.1.4.5.1: with MSI-X the ISR tells of a change of the configuration, not of queues, and no wire follows it. */
static void changes_are_in_the_isr(void **state)
{
	struct driver *d = *state;

	fixture_write(d->f, pci_ecam(find_capability(d, PCI_CAP_MSIX) + 2), 2, 0x8000);
	bring_up(d, VIRTIO_F_VERSION_1);
	descriptor(d, DESC, 0, BUFFER, 8, 2, 0);
	offer(d, 0, 1);
	notify(d);
	await(d, 1);
	assert_int_equal(reg_read(d, 0x1000, 1), 0);
	virtio_broken((struct virtio_device *)d->device, "a test");
	assert_false(irq_line_level(&d->f->vm.irq, PCI_INTX_GSI_BASE + pci_intx_wire(3, 1)));
	assert_int_equal(reg_read(d, 0x1000, 1), 2);
	assert_int_equal(reg_read(d, 0x1000, 1), 0);
}

/* As if the worker, which has put a request into the used ring, did not come to its interrupt before the device stops. */
static void a_stop_brings_the_last_interrupt(void **state)
{
	struct driver *d = *state;
	uint64_t table = fixture_read(d->f, pci_ecam(PCI_BAR(1)), 4);

	fixture_write(d->f, pci_ecam(find_capability(d, PCI_CAP_MSIX) + 2), 2, 0x8000);
	fixture_write(d->f, table + 16, 4, 0xfee01000);
	fixture_write(d->f, table + 28, 4, 0);
	bring_up(d, VIRTIO_F_VERSION_1);
	reg_write(d, 0x16, 2, 0);
	reg_write(d, 0x1a, 2, 1);
	atomic_store(&only_signaller, pthread_self());
	assert_int_equal(disk_request(d, 0, 0, 512, true), 0);
	assert_int_equal(d->f->msis, 0);
	virtio_quiesce(d->device);
	atomic_store(&only_signaller, (pthread_t)0);
	assert_int_equal(d->f->msis, 1);
	virtio_resume(d->device);
}

/* With -W there are no MSI-X: one message for everything, and the ISR says what it was about. */
static void msi_instead_of_msix(void **state)
{
	struct driver *d = *state;
	unsigned cap = find_capability(d, PCI_CAP_MSI), at;

	at = (unsigned)fixture_read(d->f, pci_ecam(PCI_CAPABILITY_POINTER), 1);
	for (; at; at = (unsigned)fixture_read(d->f, pci_ecam(at + 1), 1))
		assert_int_not_equal(fixture_read(d->f, pci_ecam(at), 1), PCI_CAP_MSIX);
	fixture_write(d->f, pci_ecam(cap + 4), 4, 0xfee02000);
	fixture_write(d->f, pci_ecam(cap + 12), 2, 0x66);
	fixture_write(d->f, pci_ecam(cap + 2), 2, 1);
	bring_up(d, VIRTIO_F_VERSION_1);
	reg_write(d, 0x1a, 2, 0); /* there are no vectors to choose from */
	assert_int_equal(reg_read(d, 0x1a, 2), VIRTIO_NO_VECTOR);
	descriptor(d, DESC, 0, BUFFER, 8, 2, 0);
	offer(d, 0, 1);
	notify(d);
	await(d, 1);
	await_msis(d, 1);
	assert_int_equal(d->f->msi[0].addr, 0xfee02000);
	assert_int_equal(d->f->msi[0].data, 0x66);
	assert_false(irq_line_level(&d->f->vm.irq, PCI_INTX_GSI_BASE + pci_intx_wire(3, 1)));
	assert_int_equal(reg_read(d, 0x1000, 1), 1);
	/* masked: it waits */
	fixture_write(d->f, pci_ecam(cap + 16), 4, 1);
	offer(d, 0, 1);
	notify(d);
	await(d, 1);
	for (unsigned ms = 0; ms < WAIT_MS && !fixture_read(d->f, pci_ecam(cap + 20), 4); ms++)
		usleep(1000);
	assert_int_equal(d->f->msis, 1);
	fixture_write(d->f, pci_ecam(cap + 16), 4, 0);
	await_msis(d, 2);
}

/* --- workers that look before they sleep --------------------------------------------------------------- */

/* A read of a sector, by a driver that notifies only when it is asked to (2.7.10). */
static void quiet_request(struct driver *d, bool event_idx)
{
	uint16_t old = d->avail[0], event = 0, flags = 0;

	offer(d, 0, 1);
	atomic_thread_fence(memory_order_seq_cst);
	peek(d, USED, &flags, 2);
	peek(d, USED + 4 + 8 * SIZE, &event, 2);
	if (event_idx ? (uint16_t)(d->avail[0] - event - 1) < (uint16_t)(d->avail[0] - old)
		      : !(flags & 1))
		notify(d);
}

static void await_quietly(struct driver *d)
{
	uint16_t used;
	time_t end = time(NULL) + WAIT_MS / 1000;

	d->used[0]++;
	for (unsigned i = 1;; i++) {
		peek(d, USED + 2, &used, 2);
		if (used == d->used[0] || time(NULL) >= end)
			break;
		if (i % 1024 == 0)
			usleep(50); /* the worker may want this CPU */
	}
	assert_int_equal(used, d->used[0]);
}

static void wait_us(unsigned us)
{
	struct timespec from, now;

	clock_gettime(CLOCK_MONOTONIC, &from);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - from.tv_sec) * 1000000 + (now.tv_nsec - from.tv_nsec) / 1000 < us);
}

static void bring_up_reader(struct driver *d, bool event_idx)
{
	const uint64_t header[2] = {0, 0};

	bring_up(d, VIRTIO_F_VERSION_1 | 1 << 9 | (event_idx ? VIRTIO_F_EVENT_IDX : 0));
	poke(d, BUFFER, header, sizeof(header));
	descriptor(d, DESC, 0, BUFFER, 16, 1, 1);
	descriptor(d, DESC, 1, BUFFER + 0x1000, 512, 3, 2);
	descriptor(d, DESC, 2, BUFFER + 0x100, 1, 2, 0);
}

/* Requests meet the worker while it looks, as it goes to sleep and in its sleep. */
static void no_request_is_overlooked(struct driver *d, bool event_idx)
{
	uint64_t seed = 3;

	bring_up_reader(d, event_idx);
	for (unsigned i = 0; i < 1000; i++) {
		uint64_t r = fixture_random(&seed);

		quiet_request(d, event_idx);
		await_quietly(d);
		wait_us(r % 16 ? (r >> 8) % 32 : (r >> 8) % 400);
	}
	assert_false(is_broken(d));
}

static void no_request_is_overlooked_by_event(void **state)
{
	no_request_is_overlooked(*state, true);
}

static void no_request_is_overlooked_by_flag(void **state)
{
	no_request_is_overlooked(*state, false);
}

/* What comes during a pause is done after it. */
static void pauses_and_resets_end_a_look(void **state)
{
	struct driver *d = *state;
	const struct device_class *cls = d->device->cls;

	for (unsigned round = 0; round < 60; round++) {
		bool event_idx = round & 1;

		bring_up_reader(d, event_idx);
		for (unsigned i = 0; i < 8; i++) {
			quiet_request(d, event_idx);
			await_quietly(d);
		}
		wait_us(round % 50);
		cls->quiesce(d->device);
		quiet_request(d, event_idx);
		assert_int_equal(d->used[0], 8);
		cls->resume(d->device);
		await_quietly(d);
	}
	assert_false(is_broken(d));
}

#define RND(fn) cmocka_unit_test_setup_teardown(fn, set_up_rnd, driver_tear_down)
#define WITH(fn, set_up_fn) cmocka_unit_test_setup_teardown(fn, set_up_fn, driver_tear_down)
#define BLK(fn) cmocka_unit_test_setup_teardown(fn, set_up_blk, driver_tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		RND(buffers_are_filled),
		RND(indirect_tables_work_if_negotiated),
		RND(event_index_is_kept),
		RND(features_are_refused),
		RND(features_stay),
		RND(old_drivers_choose_late),
		RND(bus_mastering_can_be_taken),
		RND(bad_chains_break_the_device),
		RND(bad_rings_break_the_device),
		RND(noise_is_survived),
		RND(bars_move_and_vanish),
		RND(engines_ring_the_doorbells),
		WITH(each_queue_has_a_doorbell, set_up_queues),
		RND(there_is_room_for_the_test_device),
		RND(masked_messages_wait),
		RND(changes_are_in_the_isr),
		BLK(disk_keeps_what_is_written),
		BLK(used_lengths_have_no_gaps),
		BLK(a_stop_brings_the_last_interrupt),
		BLK(disk_has_an_end),
		BLK(disk_survives_reset_under_load),
		BLK(truncated_images_are_io_errors),
		WITH(unreadable_sectors_are_io_errors, set_up_unreadable),
		WITH(full_hosts_are_io_errors, set_up_full),
		WITH(failed_flushes_are_io_errors, set_up_unflushable),
		WITH(write_through_tells_of_failed_flushes, set_up_unflushable),
		WITH(msi_instead_of_msix, set_up_msi),
		BLK(noise_is_survived),
		BLK(no_request_is_overlooked_by_event),
		BLK(no_request_is_overlooked_by_flag),
		BLK(pauses_and_resets_end_a_look),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
