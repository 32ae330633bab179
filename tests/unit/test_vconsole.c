/*
 * virtio-console as a driver meets it, good or hostile, with its ports on UNIX sockets: a driver of our own on a machine
 * without CPUs, the event loop in a thread.
 */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "bus/pci.h"
#include "devices/virtio/virtio.h"
#include "tests/unit/fixture.h"

#define RAM (4ull << 20)
#define RINGS(q) (0x10000u + 0x4000u * (q))
#define AVAIL(q) (RINGS(q) + 0x2000u)
#define USED(q) (RINGS(q) + 0x3000u)
#define BUFFER 0x200000u
#define SIZE 64u
#define WAIT_MS 20000
#define STATUS 0x14

#define CONTROL_RX 2
#define CONTROL_TX 3
/* Of the second port, which is port 1: the config tree keeps names in the order in which they were given. */
#define PORT_RX 4
#define PORT_TX 5

enum {
	DEVICE_READY,
	PORT_ADD,
	PORT_REMOVE,
	PORT_READY,
	CONSOLE_PORT,
	RESIZE,
	PORT_OPEN,
	PORT_NAME
};

struct driver {
	struct fixture *f;
	struct device *device;
	pthread_t loop;
	char directory[32];
	uint64_t bar;
	uint16_t avail[8], used[8];
};

static uint64_t pci_ecam(unsigned reg)
{
	return PCI_ECAM_BASE + (3 << 15) + reg;
}

static void reg_write(struct driver *d, unsigned offset, unsigned size, uint64_t value)
{
	fixture_write(d->f, d->bar + offset, size, value);
}

static bool is_broken(struct driver *d)
{
	return fixture_read(d->f, d->bar + STATUS, 1) & VIRTIO_STATUS_NEEDS_RESET;
}

static void poke(struct driver *d, uint64_t gpa, const void *bytes, size_t len)
{
	assert_int_equal(memory_write(&d->f->vm.memory, gpa, bytes, len), 0);
}

static void peek(struct driver *d, uint64_t gpa, void *bytes, size_t len)
{
	assert_int_equal(memory_read(&d->f->vm.memory, gpa, bytes, len), 0);
}

static void descriptor(struct driver *d, unsigned q, unsigned n, uint64_t addr, uint32_t len,
		       uint16_t flags, uint16_t next)
{
	struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} desc = {addr, len, flags, next};

	poke(d, RINGS(q) + 16 * n, &desc, sizeof(desc));
}

static void offer(struct driver *d, unsigned q, uint16_t head)
{
	poke(d, AVAIL(q) + 4 + 2 * (d->avail[q]++ % SIZE), &head, 2);
	poke(d, AVAIL(q) + 2, &d->avail[q], 2);
	reg_write(d, 0x3000 + 4 * q, 2, q);
}

/* Until the device has used one chain more than at the last call; its length. */
static uint32_t await(struct driver *d, unsigned q)
{
	uint32_t entry[2];
	uint16_t want = ++d->used[q], used = want - 1;

	for (unsigned ms = 0; ms < WAIT_MS && (int16_t)(used - want) < 0; ms++) {
		peek(d, USED(q) + 2, &used, 2);
		usleep(1000);
	}
	assert_true((int16_t)(used - want) >= 0);
	peek(d, USED(q) + 4 + 8 * ((want - 1u) % SIZE), entry, 8);
	return entry[1];
}

static void await_broken(struct driver *d)
{
	for (unsigned ms = 0; ms < WAIT_MS && !is_broken(d); ms++)
		usleep(1000);
	assert_true(is_broken(d));
}

static void send_text(struct driver *d, unsigned q, const char *text)
{
	poke(d, BUFFER, text, strlen(text));
	descriptor(d, q, 0, BUFFER, (uint32_t)strlen(text), 0, 0);
	offer(d, q, 0);
}

static void control(struct driver *d, uint32_t id, uint16_t event, uint16_t value)
{
	const struct {
		uint32_t id;
		uint16_t event, value;
	} message = {id, event, value};

	poke(d, BUFFER + 0x1000, &message, sizeof(message));
	descriptor(d, CONTROL_TX, 0, BUFFER + 0x1000, sizeof(message), 0, 0);
	offer(d, CONTROL_TX, 0);
	await(d, CONTROL_TX);
}

/* The device's next message; the name behind it. */
static void expect(struct driver *d, uint32_t id, uint16_t event, const char *name)
{
	struct {
		uint32_t id;
		uint16_t event, value;
		char name[33];
	} message = {.name = ""};
	uint32_t len;

	descriptor(d, CONTROL_RX, 1, BUFFER + 0x2000, 40, 2, 0);
	offer(d, CONTROL_RX, 1);
	len = await(d, CONTROL_RX);
	assert_int_equal(len, 8 + strlen(name));
	peek(d, BUFFER + 0x2000, &message, len);
	assert_int_equal(message.id, id);
	assert_int_equal(message.event, event);
	assert_int_equal(message.value, 1);
	assert_string_equal(message.name, name);
}

static void bring_up(struct driver *d, unsigned queues)
{
	const uint8_t zeros[0x4000] = {0};
	uint64_t features = VIRTIO_F_VERSION_1 | 2;

	reg_write(d, STATUS, 1, 0);
	reg_write(d, STATUS, 1, 3);
	for (unsigned i = 0; i < 2; i++) {
		reg_write(d, 0x08, 4, i);
		reg_write(d, 0x0c, 4, features >> (32 * i) & UINT32_MAX);
	}
	reg_write(d, STATUS, 1, 11);
	memset(d->avail, 0, sizeof(d->avail));
	memset(d->used, 0, sizeof(d->used));
	for (unsigned q = 0; q < queues; q++) {
		poke(d, RINGS(q), zeros, sizeof(zeros));
		reg_write(d, 0x16, 2, q);
		reg_write(d, 0x18, 2, SIZE);
		reg_write(d, 0x20, 4, RINGS(q));
		reg_write(d, 0x28, 4, AVAIL(q));
		reg_write(d, 0x30, 4, USED(q));
		reg_write(d, 0x1c, 2, 1);
	}
	reg_write(d, STATUS, 1, 15);
}

static int client(struct driver *d, const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", d->directory, name);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static void client_expects(int fd, const char *text)
{
	char bytes[64] = "";
	size_t got = 0;

	while (got < strlen(text)) {
		struct pollfd poll_fd = {fd, POLLIN, 0};
		ssize_t n;

		assert_int_equal(poll(&poll_fd, 1, WAIT_MS), 1);
		n = recv(fd, bytes + got, strlen(text) - got, 0);
		assert_true(n > 0);
		got += (size_t)n;
	}
	assert_string_equal(bytes, text);
}

static void *run_loop(void *arg)
{
	loop_run(arg);
	return NULL;
}

static int set_up(void **state)
{
	struct driver *d = calloc(1, sizeof(*d));
	struct fixture *f = fixture_create();
	struct error err = {0};
	struct config *node;
	char path[64];

	assert_non_null(d);
	d->f = f;
	strcpy(d->directory, "/tmp/skep-test-XXXXXX");
	assert_non_null(mkdtemp(d->directory));
	f->vm.config = config_create();
	if (memory_create(&f->vm.memory, &f->vm, RAM, false, false, &err))
		fail_msg("%s", err.text);
	fixture_device(f, &pci_bus_class, NULL);
	node = config_make(f->vm.config, "pci.0.3.0", &err);
	snprintf(path, sizeof(path), "%s/console", d->directory);
	config_set(node, "console", path, &err);
	snprintf(path, sizeof(path), "%s/org.skep.test", d->directory);
	config_set(node, "agent", path, &err);
	if (device_create(device_class_find(DEVICE_PCI, "virtio-console"), &f->vm, node, &d->device,
			  &err))
		fail_msg("%s", err.text);
	d->bar = fixture_read(f, pci_ecam(PCI_BAR(4)), 4) & ~15ull;
	fixture_write(f, pci_ecam(PCI_COMMAND), 2, 7);
	pthread_create(&d->loop, NULL, run_loop, f->vm.loop);
	*state = d;
	return 0;
}

static int tear_down(void **state)
{
	struct driver *d = *state;
	struct memory memory = d->f->vm.memory;
	struct config *config = d->f->vm.config;

	loop_stop(d->f->vm.loop);
	pthread_join(d->loop, NULL);
	fixture_destroy(d->f);
	memory_destroy(&memory);
	config_destroy(config);
	rmdir(d->directory); /* empty: the sockets went with the device */
	assert_int_equal(access(d->directory, F_OK), -1);
	free(d);
	return 0;
}

/* 5.3.5 and 5.3.6.2: the driver is told of both ports, which of them is the console, and their names. */
static void ports_have_names(void **state)
{
	struct driver *d = *state;

	bring_up(d, 6);
	assert_int_equal(fixture_read(d->f, d->bar + 0x2004, 4), 2);
	control(d, 0, DEVICE_READY, 1);
	expect(d, 0, PORT_ADD, "");
	expect(d, 1, PORT_ADD, "");
	control(d, 0, PORT_READY, 1);
	expect(d, 0, CONSOLE_PORT, "");
	expect(d, 0, PORT_OPEN, "");
	expect(d, 0, PORT_NAME, "console");
	control(d, 1, PORT_READY, 1);
	expect(d, 1, PORT_OPEN, "");
	expect(d, 1, PORT_NAME, "agent");
	/* Ports that are not there, and events that mean nothing, are no more than that. */
	control(d, 2, PORT_READY, 1);
	control(d, UINT32_MAX, PORT_READY, 1);
	control(d, 0, 99, 1);
	assert_false(is_broken(d));
}

static void text_goes_both_ways(void **state)
{
	static const unsigned rx[2] = {0, PORT_RX}, tx[2] = {1, PORT_TX};
	static const char *const names[2] = {"console", "org.skep.test"};
	struct driver *d = *state;
	char bytes[6] = "";

	bring_up(d, 6);
	for (unsigned i = 0; i < 2; i++) {
		int fd = client(d, names[i]);

		assert_int_equal(send(fd, "hello", 5, 0), 5);
		/* In two buffers: the first is full, the second holds the rest. */
		descriptor(d, rx[i], 0, BUFFER + 0x3000, 3, 3, 1);
		descriptor(d, rx[i], 1, BUFFER + 0x3003, 100, 2, 0);
		offer(d, rx[i], 0);
		assert_int_equal(await(d, rx[i]), 5);
		peek(d, BUFFER + 0x3000, bytes, 5);
		assert_string_equal(bytes, "hello");
		send_text(d, tx[i], "and back");
		await(d, tx[i]);
		client_expects(fd, "and back");
		close(fd);
	}
}

/* With nobody at the socket output is dropped, as if a cable were not plugged in; the driver never waits. */
static void nobody_need_be_there(void **state)
{
	struct driver *d = *state;

	bring_up(d, 6);
	send_text(d, PORT_TX, "lost");
	await(d, PORT_TX);
	assert_false(is_broken(d));
}

/* A client that does not read stops the driver, not the machine; nothing is lost or doubled. */
static void slow_clients_are_waited_for(void **state)
{
	enum { PART = 0x4000, PARTS = 60 };
	static uint8_t bytes[PART];
	struct driver *d = *state;
	int fd;
	size_t got = 0;

	bring_up(d, 6);
	fd = client(d, "org.skep.test");
	usleep(50000); /* until the loop has accepted it: before that output is dropped */
	for (unsigned i = 0; i < PARTS; i++) {
		memset(bytes, (int)i, PART);
		poke(d, BUFFER + i * PART, bytes, PART);
		descriptor(d, PORT_TX, i, BUFFER + i * PART, PART, 0, 0);
		offer(d, PORT_TX, (uint16_t)i);
	}
	while (got < PART * PARTS) {
		struct pollfd poll_fd = {fd, POLLIN, 0};
		ssize_t n;

		assert_int_equal(poll(&poll_fd, 1, WAIT_MS), 1);
		n = recv(fd, bytes, PART - got % PART, 0);
		assert_true(n > 0);
		for (ssize_t k = 0; k < n; k++)
			assert_int_equal(bytes[k], got / PART);
		got += (size_t)n;
	}
	for (unsigned i = 0; i < PARTS; i++)
		await(d, PORT_TX);
	close(fd);
}

/* Input waits for a buffer; one without room would be offered for ever. */
static void buffers_need_room(void **state)
{
	struct driver *d = *state;
	int fd;

	bring_up(d, 6);
	fd = client(d, "org.skep.test");
	descriptor(d, PORT_RX, 0, BUFFER, 16, 0, 0);
	offer(d, PORT_RX, 0);
	assert_int_equal(send(fd, "hello", 5, 0), 5);
	await_broken(d);
	/* What was sent is still there for a driver that does better. */
	bring_up(d, 6);
	descriptor(d, PORT_RX, 0, BUFFER, 16, 2, 0);
	offer(d, PORT_RX, 0);
	assert_int_equal(await(d, PORT_RX), 5);
	close(fd);
}

static void control_is_checked(void **state)
{
	struct driver *d = *state;

	bring_up(d, 6);
	/* too short for a message */
	descriptor(d, CONTROL_TX, 0, BUFFER, 7, 0, 0);
	offer(d, CONTROL_TX, 0);
	await(d, CONTROL_TX);
	/* no room for the whole of one */
	control(d, 1, PORT_READY, 1);
	descriptor(d, CONTROL_RX, 0, BUFFER + 0x3000, 3, 2, 0);
	offer(d, CONTROL_RX, 0);
	assert_int_equal(await(d, CONTROL_RX), 3);
	/* the name, cut off */
	descriptor(d, CONTROL_RX, 0, BUFFER + 0x3000, 10, 2, 0);
	offer(d, CONTROL_RX, 0);
	assert_int_equal(await(d, CONTROL_RX), 10);
	assert_false(is_broken(d));
	/* a loop of descriptors */
	descriptor(d, CONTROL_RX, 0, BUFFER, 8, 3, 0);
	offer(d, CONTROL_RX, 0);
	control(d, 0, DEVICE_READY, 1);
	await_broken(d);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(ports_have_names),	    TEST(text_goes_both_ways),
		TEST(nobody_need_be_there), TEST(slow_clients_are_waited_for),
		TEST(buffers_need_room),    TEST(control_is_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
