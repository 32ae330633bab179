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
#include "tests/unit/driver.h"

#define TABLE(q) (DESC + (q)*RINGS)
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

struct console {
	struct driver *d;
	pthread_t loop;
	char directory[32];
};

static void offer_to(struct driver *d, unsigned q, uint16_t head)
{
	d->queue = q;
	offer(d, head, 1);
	notify(d);
}

static uint32_t await_of(struct driver *d, unsigned q, unsigned n)
{
	d->queue = q;
	return await(d, n);
}

static void send_text(struct driver *d, unsigned q, const char *text)
{
	poke(d, BUFFER, text, strlen(text));
	descriptor(d, TABLE(q), 0, BUFFER, (uint32_t)strlen(text), 0, 0);
	offer_to(d, q, 0);
}

static void control_send(struct driver *d, uint32_t id, uint16_t event, uint16_t value)
{
	const struct {
		uint32_t id;
		uint16_t event, value;
	} message = {id, event, value};

	poke(d, BUFFER + 0x1000, &message, sizeof(message));
	descriptor(d, TABLE(CONTROL_TX), 0, BUFFER + 0x1000, sizeof(message), 0, 0);
	offer_to(d, CONTROL_TX, 0);
}

static void control(struct driver *d, uint32_t id, uint16_t event, uint16_t value)
{
	control_send(d, id, event, value);
	await_of(d, CONTROL_TX, 1);
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

	descriptor(d, TABLE(CONTROL_RX), 1, BUFFER + 0x2000, 40, 2, 0);
	offer_to(d, CONTROL_RX, 1);
	len = await_of(d, CONTROL_RX, 1);
	assert_int_equal(len, 8 + strlen(name));
	peek(d, BUFFER + 0x2000, &message, len);
	assert_int_equal(message.id, id);
	assert_int_equal(message.event, event);
	assert_int_equal(message.value, 1);
	assert_string_equal(message.name, name);
}

static void bring_up_ports(struct driver *d)
{
	d->queues = 6;
	bring_up(d, VIRTIO_F_VERSION_1 | 2); /* MULTIPORT */
	control(d, 0, PORT_OPEN, 1);
	control(d, 1, PORT_OPEN, 1);
}

static int client(const struct console *c, const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", c->directory, name);
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
	struct console *c = calloc(1, sizeof(*c));
	char list[128];

	assert_non_null(c);
	strcpy(c->directory, "/tmp/skep-test-XXXXXX");
	assert_non_null(mkdtemp(c->directory));
	snprintf(list, sizeof(list), "console=%s/console,org.skep.agent.0=%s/org.skep.test",
		 c->directory, c->directory);
	driver_set_up((void **)&c->d, "virtio-console", list, true);
	pthread_create(&c->loop, NULL, run_loop, c->d->f->vm.loop);
	*state = c;
	return 0;
}

static int tear_down(void **state)
{
	struct console *c = *state;

	loop_stop(c->d->f->vm.loop);
	pthread_join(c->loop, NULL);
	driver_tear_down((void **)&c->d);
	rmdir(c->directory); /* empty: the sockets went with the device */
	assert_int_equal(access(c->directory, F_OK), -1);
	free(c);
	return 0;
}

/* 5.3.5 and 5.3.6.2: the driver is told of both ports, which of them is the console, and their names. */
static void ports_have_names(void **state)
{
	struct console *c = *state;
	struct driver *d = c->d;

	bring_up_ports(d);
	assert_int_equal(fixture_read(d->f, d->bar + 0x2004, 4), 2);
	control(d, 0, DEVICE_READY, 1);
	expect(d, 0, PORT_ADD, "");
	expect(d, 1, PORT_ADD, "");
	control(d, 0, PORT_READY, 1);
	expect(d, 0, CONSOLE_PORT, "");
	expect(d, 0, PORT_OPEN, "");
	expect(d, 0, PORT_NAME, "console");
	control(d, 0, DEVICE_READY, 1); /* nothing is added twice */
	control(d, 1, PORT_READY, 1);
	expect(d, 1, PORT_OPEN, "");
	expect(d, 1, PORT_NAME, "org.skep.agent.0");
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
	struct console *c = *state;
	struct driver *d = c->d;
	char bytes[6] = "";

	bring_up_ports(d);
	for (unsigned i = 0; i < 2; i++) {
		int fd = client(c, names[i]);

		assert_int_equal(send(fd, "hello", 5, 0), 5);
		/* In two buffers: the first is full, the second holds the rest. */
		descriptor(d, TABLE(rx[i]), 0, BUFFER + 0x3000, 3, 3, 1);
		descriptor(d, TABLE(rx[i]), 1, BUFFER + 0x3003, 100, 2, 0);
		offer_to(d, rx[i], 0);
		assert_int_equal(await_of(d, rx[i], 1), 5);
		peek(d, BUFFER + 0x3000, bytes, 5);
		assert_string_equal(bytes, "hello");
		send_text(d, tx[i], "and back");
		await_of(d, tx[i], 1);
		client_expects(fd, "and back");
		close(fd);
	}
}

/* A driver would lose what comes for a port that nobody has open. */
static void input_waits_for_an_open_port(void **state)
{
	struct console *c = *state;
	struct driver *d = c->d;
	int fd = client(c, "org.skep.test");
	uint16_t used;

	bring_up_ports(d);
	control(d, 1, PORT_OPEN, 0);
	descriptor(d, TABLE(PORT_RX), 0, BUFFER + 0x3000, 3, 2, 0);
	offer_to(d, PORT_RX, 0);
	assert_int_equal(send(fd, "hello", 5, 0), 5);
	usleep(50000);
	peek(d, USED + PORT_RX * RINGS + 2, &used, sizeof(used));
	assert_int_equal(used, 0);
	control(d, 1, PORT_OPEN, 1);
	assert_int_equal(await_of(d, PORT_RX, 1), 3);
	control(d, 2, PORT_OPEN, 1); /* there is none */
	control(d, 1, PORT_OPEN, 0);
	offer_to(d, PORT_RX, 0);
	usleep(50000);
	peek(d, USED + PORT_RX * RINGS + 2, &used, sizeof(used));
	assert_int_equal(used, 1);
	close(fd);
}

/* With nobody at the socket output is dropped, as if a cable were not plugged in; the driver never waits. */
static void nobody_need_be_there(void **state)
{
	struct console *c = *state;
	struct driver *d = c->d;

	bring_up_ports(d);
	send_text(d, PORT_TX, "lost");
	await_of(d, PORT_TX, 1);
	assert_false(is_broken(d));
}

/* A client that does not read stops the driver, not the machine; nothing is lost or doubled. */
static void slow_clients_are_waited_for(void **state)
{
	enum { PART = 0x4000, PARTS = 60 };
	static uint8_t bytes[PART];
	struct console *c = *state;
	struct driver *d = c->d;
	int fd;
	size_t got = 0;

	bring_up_ports(d);
	fd = client(c, "org.skep.test");
	usleep(50000); /* until the loop has accepted it: before that output is dropped */
	for (unsigned i = 0; i < PARTS; i++) {
		memset(bytes, (int)i, PART);
		poke(d, BUFFER + i * PART, bytes, PART);
		descriptor(d, TABLE(PORT_TX), i, BUFFER + i * PART, PART, 0, 0);
		offer_to(d, PORT_TX, (uint16_t)i);
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
	await_of(d, PORT_TX, PARTS);
	close(fd);
}

/* Input waits for a buffer; one without room would be offered for ever. */
static void buffers_need_room(void **state)
{
	struct console *c = *state;
	struct driver *d = c->d;
	int fd;

	bring_up_ports(d);
	fd = client(c, "org.skep.test");
	descriptor(d, TABLE(PORT_RX), 0, BUFFER, 16, 0, 0);
	offer_to(d, PORT_RX, 0);
	assert_int_equal(send(fd, "hello", 5, 0), 5);
	await_broken(d);
	/* What was sent is still there for a driver that does better. */
	bring_up_ports(d);
	descriptor(d, TABLE(PORT_RX), 0, BUFFER, 16, 2, 0);
	offer_to(d, PORT_RX, 0);
	assert_int_equal(await_of(d, PORT_RX, 1), 5);
	close(fd);
}

static void control_is_checked(void **state)
{
	struct console *c = *state;
	struct driver *d = c->d;

	bring_up_ports(d);
	/* too short for a message */
	descriptor(d, TABLE(CONTROL_TX), 0, BUFFER, 7, 0, 0);
	offer_to(d, CONTROL_TX, 0);
	await_of(d, CONTROL_TX, 1);
	/* no room for the whole of one */
	control(d, 1, PORT_READY, 1);
	descriptor(d, TABLE(CONTROL_RX), 0, BUFFER + 0x3000, 3, 2, 0);
	offer_to(d, CONTROL_RX, 0);
	assert_int_equal(await_of(d, CONTROL_RX, 1), 3);
	/* the name, cut off */
	descriptor(d, TABLE(CONTROL_RX), 0, BUFFER + 0x3000, 10, 2, 0);
	offer_to(d, CONTROL_RX, 0);
	assert_int_equal(await_of(d, CONTROL_RX, 1), 10);
	assert_false(is_broken(d));
	/* a loop of descriptors */
	descriptor(d, TABLE(CONTROL_RX), 0, BUFFER, 8, 3, 0);
	offer_to(d, CONTROL_RX, 0);
	control_send(d, 0, DEVICE_READY, 1);
	await_broken(d);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(ports_have_names),
		TEST(text_goes_both_ways),
		TEST(input_waits_for_an_open_port),
		TEST(nobody_need_be_there),
		TEST(slow_clients_are_waited_for),
		TEST(buffers_need_room),
		TEST(control_is_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
