/*
 * virtio-net as a driver meets it, good or hostile, with the other end of its wire in our hands: a UNIX socket on which each
 * frame follows its length.
 */
#include <endian.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/loop.h"
#include "bus/pci.h"
#include "devices/virtio/virtio.h"
#include "tests/unit/driver.h"

#define RX 0
#define TX 1
#define CONTROL 2
#define HEADER 12

#define F_CSUM (1ull << 0)
#define F_GUEST_CSUM (1ull << 1)
#define F_MTU (1ull << 3)
#define F_MAC (1ull << 5)
#define F_MRG_RXBUF (1ull << 15)
#define F_CTRL_VQ (1ull << 17)
#define F_HOST_TSO4 (1ull << 11)
#define F_USUAL (VIRTIO_F_VERSION_1 | F_MAC | F_MRG_RXBUF | F_CTRL_VQ | F_CSUM)

static int wire = -1; /* of the test that runs */
static pthread_t loop_thread;

static void *run_loop(void *arg)
{
	loop_run(arg);
	return NULL;
}

static int set_up(void **state)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char list[160];
	struct driver *d;

	snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/skep-test-nic-%d", getpid());
	snprintf(list, sizeof(list), "unix:%s,listen,mac=02:00:00:00:00:01,mtu=9000",
		 address.sun_path);
	driver_set_up(state, "virtio-net", list, true);
	d = *state;
	d->queues = 3;
	pthread_create(&loop_thread, NULL, run_loop, d->f->vm.loop);
	wire = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(connect(wire, (struct sockaddr *)&address, sizeof(address)), 0);
	for (unsigned ms = 0; ms < WAIT_MS && !reg_read(d, CONFIG + 6, 2); ms++)
		usleep(1000); /* the link comes up */
	return 0;
}

static int tear_down(void **state)
{
	struct driver *d = *state;

	loop_stop(d->f->vm.loop);
	pthread_join(loop_thread, NULL);
	close(wire);
	return driver_tear_down(state);
}

/* ---- our end of the wire ---- */

static void wire_take(void *bytes, size_t n)
{
	struct pollfd p = {.fd = wire, .events = POLLIN};

	for (size_t done = 0; done < n;) {
		ssize_t got;

		assert_int_equal(poll(&p, 1, WAIT_MS), 1);
		got = recv(wire, (uint8_t *)bytes + done, n - done, 0);
		assert_true(got > 0);
		done += (size_t)got;
	}
}

static size_t wire_frame(uint8_t *frame, size_t size)
{
	uint32_t length;

	wire_take(&length, 4);
	length = be32toh(length);
	assert_true(length <= size);
	wire_take(frame, length);
	return length;
}

static void wire_send(const uint8_t *frame, size_t length)
{
	uint32_t prefix = htobe32((uint32_t)length);

	assert_int_equal(send(wire, &prefix, 4, 0), 4);
	assert_int_equal(send(wire, frame, length, 0), length);
}

/* ---- the driver's ---- */

/* A frame to the NIC's address, which says in its last byte which one it is. */
static void make_frame(uint8_t *frame, size_t length, uint8_t mark)
{
	static const uint8_t head[14] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5};

	for (size_t i = 0; i < length; i++)
		frame[i] = (uint8_t)(i * 7 + mark);
	memcpy(frame, head, sizeof(head));
	frame[length - 1] = mark;
}

/* Puts a header and a frame to BUFFER and offers them as one chain of descriptor 0. */
static void transmit(struct driver *d, const uint8_t *header, const uint8_t *frame, size_t length)
{
	static const uint8_t zeros[HEADER];

	d->queue = TX;
	poke(d, BUFFER, header != NULL ? header : zeros, HEADER);
	poke(d, BUFFER + HEADER, frame, length);
	descriptor(d, DESC + TX * RINGS, 0, BUFFER, HEADER + (uint32_t)length, 0, 0);
	offer(d, 0, 1);
	notify(d);
	await(d, 1);
}

/* The next frame on the wire is this one: whatever was offered before was dropped. */
static void comes_next(struct driver *d, uint8_t mark)
{
	uint8_t frame[100], got[100];

	make_frame(frame, sizeof(frame), mark);
	transmit(d, NULL, frame, sizeof(frame));
	assert_int_equal(wire_frame(got, sizeof(got)), sizeof(frame));
	assert_memory_equal(got, frame, sizeof(frame));
	assert_false(is_broken(d));
}

/* ---- tests ---- */

static void frames_go_out(void **state)
{
	static uint8_t frame[9014], got[9014];
	struct driver *d = *state;

	assert_int_equal(reg_read(d, CONFIG + 10, 2), 9000);
	assert_int_equal(reg_read(d, CONFIG + 6, 2), 1);
	bring_up(d, F_USUAL);
	for (unsigned i = 0; i < 3 * SIZE; i++) {
		size_t length = 14 + (i * 997) % 9001;

		make_frame(frame, length, (uint8_t)i);
		transmit(d, NULL, frame, length);
		assert_int_equal(wire_frame(got, sizeof(got)), length);
		assert_memory_equal(got, frame, length);
	}
	/* The header in pieces, the frame in others. */
	make_frame(frame, 300, 1);
	poke(d, BUFFER, (uint8_t[HEADER]){0}, HEADER);
	poke(d, BUFFER + HEADER, frame, 300);
	descriptor(d, DESC + TX * RINGS, 0, BUFFER, 5, 1, 1);
	descriptor(d, DESC + TX * RINGS, 1, BUFFER + 5, 20, 1, 2);
	descriptor(d, DESC + TX * RINGS, 2, BUFFER + 25, HEADER + 300 - 25, 0, 0);
	offer(d, 0, 1);
	notify(d);
	await(d, 1);
	assert_int_equal(wire_frame(got, sizeof(got)), 300);
	assert_memory_equal(got, frame, 300);
}

/* What is no frame, or asks for what was not agreed on, is lost, and nothing else happens. */
static void nonsense_is_not_sent(void **state)
{
	static const uint8_t headers[][HEADER] = {
		{0, 1, 54, 0, 0xb4, 5}, /* TCP segments to be cut: no TSO here */
		{0, 3, 54, 0, 0xb4, 5}, /* UDP's */
		{0, 0xff},
		{1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, /* a checksum far behind the frame */
		{1, 0, 0, 0, 0, 0, 90, 0, 9, 0},	    /* half behind it */
	};
	static uint8_t frame[100];
	struct driver *d = *state;

	bring_up(d, F_USUAL | VIRTIO_F_INDIRECT_DESC);
	make_frame(frame, sizeof(frame), 1);
	for (size_t i = 0; i < sizeof(headers) / HEADER; i++)
		transmit(d, headers[i], frame, sizeof(frame));
	for (uint32_t n = 1; n < HEADER + 14; n += n < 11 ? 10 : 1) { /* no header, no frame */
		descriptor(d, DESC + TX * RINGS, 0, BUFFER, n, 0, 0);
		offer(d, 0, 1);
		notify(d);
		await(d, 1);
	}
	descriptor(d, DESC + TX * RINGS, 0, BUFFER, 200, 2, 0); /* nothing to be read */
	offer(d, 0, 1);
	notify(d);
	assert_int_equal(await(d, 1), 0);
	for (unsigned i = 0; i < 128; i++) /* megabytes */
		descriptor(d, BUFFER + 0x10000, i, 0, 3 << 20, i < 127, (uint16_t)(i + 1));
	descriptor(d, DESC + TX * RINGS, 0, BUFFER + 0x10000, 128 * 16, 4, 0);
	offer(d, 0, 1);
	notify(d);
	await(d, 1);
	comes_next(d, 2);
}

static uint16_t reference_sum(const uint8_t *bytes, size_t n)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += (uint32_t)bytes[i] << (i % 2 ? 0 : 8);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* Wherever it stands, and however the frame is cut. What is in the guest's memory stays. */
static void checksums_are_made(void **state)
{
	static uint8_t frame[1000], got[1000];
	struct driver *d = *state;

	bring_up(d, F_USUAL);
	d->queue = TX;
	for (unsigned i = 0; i < 200; i++) {
		uint16_t start = (uint16_t)(14 + i % 50), offset = (uint16_t)(i % 37 * 2);
		uint8_t header[HEADER] = {1, 0, 0, 0, 0, 0, (uint8_t)start, 0, (uint8_t)offset};
		size_t length = 200 + i * 3, cut = HEADER + start + offset - 3 + i % 7;

		make_frame(frame, length, (uint8_t)i);
		poke(d, BUFFER, header, HEADER);
		poke(d, BUFFER + HEADER, frame, length);
		descriptor(d, DESC + TX * RINGS, 0, BUFFER, (uint32_t)cut, 1, 1);
		descriptor(d, DESC + TX * RINGS, 1, BUFFER + cut, 1, 1, 2);
		descriptor(d, DESC + TX * RINGS, 2, BUFFER + cut + 1,
			   (uint32_t)(HEADER + length - cut - 1), 0, 0);
		offer(d, 0, 1);
		notify(d);
		await(d, 1);
		assert_int_equal(wire_frame(got, sizeof(got)), length);
		/* With what stood at its place summed in, as the pseudo header's sum does. */
		assert_int_equal((got[start + offset] << 8 | got[start + offset + 1]) ^ 0xffff,
				 reference_sum(frame + start, length - start));
		memcpy(got + start + offset, frame + start + offset, 2);
		assert_memory_equal(got, frame, length);
		peek(d, BUFFER + HEADER, got, length);
		assert_memory_equal(got, frame, length);
	}
}

/* `n` receive buffers of this many bytes, from BUFFER on. */
static void give_buffers(struct driver *d, unsigned n, uint32_t bytes)
{
	d->queue = RX;
	for (unsigned i = 0; i < n; i++) {
		descriptor(d, DESC, i, BUFFER + i * bytes, bytes, 2, 0);
		offer(d, (uint16_t)i, 1);
	}
	notify(d);
}

static void frames_come_in(void **state)
{
	static uint8_t frame[1500], got[1600];
	struct driver *d = *state;

	bring_up(d, F_USUAL);
	give_buffers(d, 8, 400);
	make_frame(frame, sizeof(frame), 9);
	wire_send(frame, sizeof(frame));
	assert_int_equal(await(d, 4), HEADER + sizeof(frame) - 3 * 400);
	peek(d, BUFFER, got, sizeof(got));
	assert_int_equal(got[0], 0);
	assert_int_equal(got[10], 4);
	assert_memory_equal(got + HEADER, frame, sizeof(frame));
	/* There is no room for this one until there is. */
	make_frame(frame, sizeof(frame), 10);
	wire_send(frame, sizeof(frame));
	wire_send(frame, 100);
	assert_int_equal(await(d, 4), HEADER + sizeof(frame) - 3 * 400);
	usleep(20000);
	give_buffers(d, 1, 400);
	assert_int_equal(await(d, 1), HEADER + 100);
	assert_false(is_broken(d));
}

/* Who sees the first buffer of a frame sees all of them: Linux counts the frame as lost otherwise. */
static void buffers_come_together(void **state)
{
	static uint8_t frame[1500];
	struct driver *d = *state;
	const unsigned bytes = 64, n = (HEADER + sizeof(frame) + bytes - 1) / bytes;
	const volatile uint16_t *index;
	uint16_t before, after;

	bring_up(d, F_USUAL);
	index = memory_read_ptr(&d->f->vm.memory, USED + 2, 2);
	make_frame(frame, sizeof(frame), 1);
	for (unsigned i = 0; i < 500; i++) {
		time_t end = time(NULL) + WAIT_MS / 1000;

		give_buffers(d, n, bytes);
		before = *index;
		wire_send(frame, sizeof(frame));
		do {
			after = *index;
		} while (after == before && time(NULL) < end);
		assert_int_equal((uint16_t)(after - before), n);
	}
}

/* Buffers that a frame does not fit into lose it; those that cannot be written break the device, or are of no use. */
static void bad_buffers(void **state)
{
	static uint8_t frame[1500];
	struct driver *d = *state;

	make_frame(frame, sizeof(frame), 1);
	bring_up(d, VIRTIO_F_VERSION_1); /* not mergeable */
	give_buffers(d, 1, 400);
	wire_send(frame, sizeof(frame));
	wire_send(frame, 50);
	assert_int_equal(await(d, 1), HEADER + 50);

	bring_up(d, F_USUAL);
	descriptor(d, DESC, 0, BUFFER, 100, 0, 0); /* all for reading */
	d->queue = RX;
	offer(d, 0, SIZE);
	notify(d);
	wire_send(frame, 100);
	usleep(20000);
	assert_false(is_broken(d));

	bring_up(d, F_USUAL);
	descriptor(d, DESC, 0, BUFFER, 20, 3, 0); /* a loop */
	offer(d, 0, 1);
	notify(d);
	wire_send(frame, 100);
	await_broken(d);

	bring_up(d, F_USUAL);
	descriptor(d, DESC, 0, RAM - 20, 100, 2, 0);
	offer(d, 0, 1);
	notify(d);
	wire_send(frame, 100);
	await_broken(d);

	bring_up(d, F_USUAL);
	give_buffers(d, 2, 1600);
	wire_send(frame, 60);
	await(d, 1);
}

/* One command; what the device answers, 2: nothing. */
static uint8_t command(struct driver *d, const void *bytes, uint32_t length, uint32_t room)
{
	uint8_t ack = 2;

	d->queue = CONTROL;
	poke(d, BUFFER, bytes, length);
	poke(d, BUFFER + 0x1000, &ack, 1);
	descriptor(d, DESC + CONTROL * RINGS, 0, BUFFER, length, room ? 1 : 0, 1);
	descriptor(d, DESC + CONTROL * RINGS, 1, BUFFER + 0x1000, room, 2, 0);
	offer(d, 0, 1);
	notify(d);
	assert_int_equal(await(d, 1), room ? 1 : 0);
	peek(d, BUFFER + 0x1000, &ack, 1);
	return ack;
}

static void commands_good_and_bad(void **state)
{
	static const uint8_t other[6] = {2, 0, 0, 0, 0, 7};
	static uint8_t frame[100];
	uint8_t bytes[600] = {0};
	struct driver *d = *state;

	bring_up(d, F_USUAL);
	assert_int_equal(command(d, "\0\0\1", 3, 1), 0); /* promiscuous */
	assert_int_equal(command(d, "\0\0\0", 3, 1), 0);
	assert_int_equal(command(d, "\0\0", 2, 1), 1); /* on or off? */
	assert_int_equal(command(d, "\0", 1, 1), 1);
	assert_int_equal(command(d, "\0\7\1", 3, 1), 1);
	assert_int_equal(command(d, "\7\0\1", 3, 1), 1);
	assert_int_equal(command(d, "\377\377\377", 3, 1), 1);
	assert_int_equal(command(d, "\0\0\1", 3, 0), 2); /* no place for the answer */
	assert_int_equal(command(d, "\0\0\0", 3, 1), 0);
	/* Tables: cut off, of four billion entries, of the most that we keep, of more. */
	bytes[0] = 1;
	assert_int_equal(command(d, bytes, 2, 1), 1);
	assert_int_equal(command(d, bytes, 5, 1), 1);
	assert_int_equal(command(d, bytes, 9, 1), 1);
	assert_int_equal(command(d, bytes, 10, 1), 0);
	memset(bytes + 2, 0xff, 4);
	assert_int_equal(command(d, bytes, 600, 1), 1);
	memcpy(bytes + 2, (uint32_t[]){0x2aaaaaab}, 4); /* times 6 is 2 in 32 bits */
	assert_int_equal(command(d, bytes, 12, 1), 1);
	memcpy(bytes + 2, (uint32_t[]){16}, 4);
	assert_int_equal(command(d, bytes, 2 + 4 + 96 + 4, 1), 0);
	memcpy(bytes + 2, (uint32_t[]){60}, 4);
	assert_int_equal(command(d, bytes, 2 + 4 + 360 + 4, 1), 0);
	memcpy(bytes + 2, (uint32_t[]){0}, 4);
	assert_int_equal(command(d, bytes, 10, 1), 0);
	/* The address changes what is for us, and what the configuration says. */
	assert_int_equal(command(d, "\1\1\2\0\0\0\0", 7, 1), 1);
	assert_int_equal(command(d, "\1\1\2\0\0\0\0\7", 8, 1), 0);
	assert_int_equal(reg_read(d, CONFIG + 5, 1), 7);
	give_buffers(d, 4, 400);
	make_frame(frame, sizeof(frame), 1);
	wire_send(frame, 60); /* to the old address */
	memcpy(frame, other, 6);
	wire_send(frame, 70);
	d->queue = RX;
	assert_int_equal(await(d, 1), HEADER + 70);
	/* A chain that loops. */
	d->queue = CONTROL;
	descriptor(d, DESC + CONTROL * RINGS, 0, BUFFER, 2, 1, 0);
	offer(d, 0, 1);
	notify(d);
	await_broken(d);
	bring_up(d, F_USUAL);
	assert_int_equal(reg_read(d, CONFIG + 5, 1), 1);
	comes_next(d, 3);
}

static void features_go_together(void **state)
{
	struct driver *d = *state;

	bring_up(d, VIRTIO_F_VERSION_1 | F_HOST_TSO4); /* a UNIX socket has no TSO */
	assert_int_equal(reg_read(d, STATUS, 1), 3);
	bring_up(d, VIRTIO_F_VERSION_1 | F_GUEST_CSUM);
	assert_int_equal(reg_read(d, STATUS, 1), 3);
	bring_up(d, VIRTIO_F_VERSION_1 | F_CSUM | F_MTU);
	assert_int_equal(reg_read(d, STATUS, 1), 15);
}

/* Larger than the MTU that the driver was told is not for the driver. */
static void mtu_is_kept(void **state)
{
	static uint8_t frame[9100];
	struct driver *d = *state;

	make_frame(frame, sizeof(frame), 1);
	bring_up(d, F_USUAL | F_MTU);
	give_buffers(d, 4, 12000);
	wire_send(frame, 9019);
	wire_send(frame, 9014);
	assert_int_equal(await(d, 1), HEADER + 9014);
}

/* A frame that all of the buffers there can be have no room for does not keep the next one waiting. */
static void small_rings_lose_large_frames(void **state)
{
	static uint8_t frame[9000];
	struct driver *d = *state;

	make_frame(frame, sizeof(frame), 1);
	bring_up(d, 0); /* clears the rings; no device runs without VERSION_1 */
	reg_write(d, STATUS, 1, 0);
	reg_write(d, STATUS, 1, 3);
	for (unsigned i = 0; i < 2; i++) {
		reg_write(d, 0x08, 4, i);
		reg_write(d, 0x0c, 4, (F_USUAL) >> (32 * i) & UINT32_MAX);
	}
	reg_write(d, STATUS, 1, 11);
	reg_write(d, 0x18, 2, 32);
	reg_write(d, 0x20, 4, DESC);
	reg_write(d, 0x28, 4, AVAIL);
	reg_write(d, 0x30, 4, USED);
	reg_write(d, 0x1c, 2, 1);
	reg_write(d, STATUS, 1, 15);
	give_buffers(d, 32, 100);
	wire_send(frame, sizeof(frame));
	wire_send(frame, 60);
	d->queue = RX;
	assert_int_equal(await(d, 1), HEADER + 60);
}

/* A driver that has an address of its own cannot say so. */
static void no_mac_takes_all(void **state)
{
	static uint8_t frame[100];
	struct driver *d = *state;

	bring_up(d, VIRTIO_F_VERSION_1);
	give_buffers(d, 1, 400);
	make_frame(frame, sizeof(frame), 1);
	frame[5] = 9;
	wire_send(frame, 70);
	assert_int_equal(await(d, 1), HEADER + 70);
}

/* Only drivers of the legacy interface set the address in the configuration. */
static void mac_is_written_by_old_drivers(void **state)
{
	struct driver *d = *state;
	uint64_t ports = fixture_read(d->f, pci_ecam(PCI_BAR(0)), 4) & ~3ull;
	unsigned header = fixture_read(d->f, pci_ecam(PCI_COMMAND), 2) ? 0x14 : 0;

	bring_up(d, F_USUAL);
	reg_write(d, CONFIG + 5, 1, 9);
	assert_int_equal(reg_read(d, CONFIG + 5, 1), 1);
	reg_write(d, STATUS, 1, 0);
	fixture_out(d->f, (uint16_t)(ports + 0x12), 1, 3);
	fixture_out(d->f, (uint16_t)(ports + header + 5), 1, 9);
	assert_int_equal(fixture_in(d->f, (uint16_t)(ports + header + 5), 1), 9);
}

/* A peer that ends its half of the connection has gone, and another may come. */
static void half_closed_peers_are_gone(void **state)
{
	struct driver *d = *state;
	uint8_t byte;

	bring_up(d, F_USUAL);
	shutdown(wire, SHUT_WR);
	for (unsigned ms = 0; ms < WAIT_MS && reg_read(d, CONFIG + 6, 2); ms++)
		usleep(1000);
	assert_int_equal(reg_read(d, CONFIG + 6, 2), 0);
	assert_int_equal(recv(wire, &byte, 1, 0), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(frames_go_out),
		TEST(nonsense_is_not_sent),
		TEST(checksums_are_made),
		TEST(frames_come_in),
		TEST(buffers_come_together),
		TEST(bad_buffers),
		TEST(commands_good_and_bad),
		TEST(features_go_together),
		TEST(mtu_is_kept),
		TEST(small_rings_lose_large_frames),
		TEST(no_mac_takes_all),
		TEST(mac_is_written_by_old_drivers),
		TEST(half_closed_peers_are_gone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
