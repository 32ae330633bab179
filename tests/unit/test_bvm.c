/*
 * bvmcons and bvmdebug as FreeBSD's bvm_console and bvm_dbg drivers use them: by 16- and 32-bit accesses
 * to ports 0x220 and 0x224. The loop runs on a thread of its own here, as in a VM, for an OUT waits for it.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/fixture.h"

#define CONS 0x220
#define DEBUG 0x224
#define NOTHING 0xffffffffu
#define VOLUME (1u << 20)

struct bvm {
	struct fixture *f;
	struct config *config;
	struct device *device;
	pthread_t loop;
	int client, log;
};

static void *loop_thread(void *arg)
{
	loop_run(((struct bvm *)arg)->f->vm.loop);
	return NULL;
}

static void start(struct bvm *b, const char *name, const char *key, const char *value)
{
	char path[] = "/tmp/skep-bvm-log-XXXXXX";
	struct error err = {0};

	memset(b, 0, sizeof(*b));
	b->client = -1;
	b->f = fixture_create();
	b->log = mkstemp(path);
	unlink(path);
	log_init(&b->f->log, b->log, LOG_INFO);
	b->config = config_create();
	assert_int_equal(config_set(b->config, key, value, &err), 0);
	b->device = fixture_device(b->f, device_class_find(DEVICE_CHIPSET, name), b->config);
	assert_int_equal(pthread_create(&b->loop, NULL, loop_thread, b), 0);
}

static void end(struct bvm *b)
{
	loop_stop(b->f->vm.loop);
	pthread_join(b->loop, NULL);
	fixture_destroy(b->f);
	config_destroy(b->config);
	if (b->client >= 0)
		close(b->client);
	close(b->log);
}

/* Output is dropped until the loop has taken the client. */
static void wait_client(struct bvm *b)
{
	struct pollfd p = {.fd = b->client, .events = POLLIN};
	char c;

	for (unsigned i = 0; poll(&p, 1, 5) == 0; i++) {
		assert_true(i < 1000);
		fixture_out(b->f, b->device->cls->name[3] == 'c' ? CONS : DEBUG, 4, '!');
	}
	while (poll(&p, 1, 20) > 0)
		assert_int_equal(recv(b->client, &c, 1, 0), 1);
}

/* Both listen on a port of the kernel's choice, which the log tells. */
static void dial(struct bvm *b)
{
	struct sockaddr_in addr = {.sin_family = AF_INET};
	char text[256] = "", host[32] = "";
	int port = 0;

	assert_true(pread(b->log, text, sizeof(text) - 1, 0) > 0);
	assert_int_equal(
		sscanf(strstr(text, "listening"), "listening on %31s port %d", host, &port), 2);
	/* a debugger's port is not for the network */
	assert_string_equal(host, "127.0.0.1");
	addr.sin_port = htons((uint16_t)port);
	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	b->client = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(connect(b->client, (struct sockaddr *)&addr, sizeof(addr)), 0);
	wait_client(b);
}

static uint32_t wait_input(struct bvm *b, uint16_t port)
{
	time_t limit = time(NULL) + 5;
	uint32_t got;

	do
		got = (uint32_t)fixture_in(b->f, port, 4);
	while (got == NOTHING && time(NULL) < limit);
	return got;
}

static void framing(struct bvm *b, uint16_t port, uint16_t signature)
{
	uint8_t bytes[4];

	assert_int_equal(fixture_in(b->f, port, 2), signature);
	assert_int_equal(fixture_in(b->f, port, 4), NOTHING);
	dial(b);
	assert_int_equal(write(b->client, "\0\xff", 2), 2);
	assert_int_equal(wait_input(b, port), 0);
	assert_int_equal(wait_input(b, port), 0xff);
	assert_int_equal(fixture_in(b->f, port, 4), NOTHING);
	/* only the low byte is sent; other sizes send nothing and take no input */
	assert_int_equal(write(b->client, "k", 1), 1);
	fixture_out(b->f, port, 1, 'a');
	fixture_out(b->f, port, 2, 'b');
	assert_int_equal(fixture_in(b->f, port, 1), 0xff);
	fixture_out(b->f, port, 4, 0x12345600 | 'c');
	fixture_out(b->f, port, 4, 'd');
	assert_int_equal(recv(b->client, bytes, 2, MSG_WAITALL), 2);
	assert_memory_equal(bytes, "cd", 2);
	assert_int_equal(wait_input(b, port), 'k');
}

static void bvmcons_framing(void **state)
{
	struct bvm b;

	(void)state;
	start(&b, "bvmcons", "path", "tcp=0");
	framing(&b, CONS, 0x6276);
	end(&b);
}

static void bvmdebug_framing(void **state)
{
	struct bvm b;

	(void)state;
	start(&b, "bvmdebug", "port", "0");
	framing(&b, DEBUG, 0x4256);
	end(&b);
}

static uint8_t pattern(unsigned at)
{
	return (uint8_t)((at * 2654435761u) >> 24);
}

static void *reader(void *arg)
{
	struct bvm *b = arg;
	uint8_t bytes[8192];
	unsigned got = 0;

	while (got < VOLUME) {
		ssize_t n = recv(b->client, bytes, sizeof(bytes), 0);

		if (n <= 0)
			break;
		for (ssize_t i = 0; i < n; i++, got++) {
			if (bytes[i] != pattern(got))
				return NULL;
		}
	}
	return got == VOLUME ? b : NULL;
}

static void output_waits_for_its_reader(void **state)
{
	pthread_t thread;
	struct bvm b;
	void *right;

	(void)state;
	start(&b, "bvmcons", "path", "tcp=0");
	dial(&b);
	pthread_create(&thread, NULL, reader, &b);
	for (unsigned i = 0; i < VOLUME; i++)
		fixture_out(b.f, CONS, 4, pattern(i));
	pthread_join(thread, &right);
	assert_ptr_equal(right, &b);
	end(&b);
}

/* Nobody reads: the guest waits once, then goes on without; and output is back when the reader is. */
static void dead_reader_does_not_hang_the_guest(void **state)
{
	char dir[] = "/tmp/skep-bvm-XXXXXX", spec[64];
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	static char bytes[1u << 20];
	time_t begin = time(NULL);
	struct bvm b;
	ssize_t n;

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/s", dir);
	snprintf(spec, sizeof(spec), "unix=%s/s", dir);
	start(&b, "bvmcons", "path", spec);
	b.client = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(connect(b.client, (struct sockaddr *)&addr, sizeof(addr)), 0);
	wait_client(&b);
	/* more than the queue and the socket hold; were each OUT to wait, this would take days */
	for (unsigned i = 0; i < sizeof(bytes); i++)
		fixture_out(b.f, CONS, 4, 'x');
	assert_true(pread(b.log, bytes, sizeof(bytes), 0) > 0);
	assert_non_null(strstr(bytes, "takes no output"));
	/* as a reader drains it, what comes then gets through */
	do {
		fixture_out(b.f, CONS, 4, 'y');
		n = recv(b.client, bytes, sizeof(bytes), MSG_DONTWAIT);
	} while ((n < 0 || !memchr(bytes, 'y', (size_t)n)) && time(NULL) - begin < 30);
	assert_true(n > 0 && memchr(bytes, 'y', (size_t)n));
	end(&b);
	assert_int_equal(rmdir(dir), 0);
}

static void quit_by_escape(void **state)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY), slave, in = dup(0), out = dup(1);
	time_t limit = time(NULL) + 5;
	struct bvm b;

	(void)state;
	grantpt(master);
	unlockpt(master);
	slave = open(ptsname(master), O_RDWR | O_NOCTTY);
	fflush(stdout);
	dup2(slave, 0);
	dup2(slave, 1);
	start(&b, "bvmcons", "path", "stdio");
	dup2(in, 0);
	dup2(out, 1);
	assert_int_equal(write(master, "q\001x", 3), 3);
	assert_int_equal(wait_input(&b, CONS), 'q');
	while (*(volatile enum vm_end *)&b.f->end == VM_END_NONE && time(NULL) < limit)
		;
	assert_int_equal(b.f->end, VM_END_POWEROFF);
	end(&b);
	close(in);
	close(out);
	close(slave);
	close(master);
}

static void hostile_guest(void **state)
{
	struct bvm b;

	(void)state;
	start(&b, "bvmdebug", "port", "0");
	dial(&b);
	fixture_fuzz_pio(b.f, DEBUG, 4, 20000, 77);
	assert_int_equal(fixture_in(b.f, DEBUG, 2), 0x4256);
	/* away while in use */
	device_destroy(b.device);
	assert_int_equal(fixture_in(b.f, DEBUG, 2), 0xffff);
	end(&b);
}

static void bad_keys_are_named(void **state)
{
	static const char *const pairs[][3] = {
		{"bvmdebug", "port", "70000"},
		{"bvmdebug", "port", "x"},
		{"bvmdebug", "address", "999.1.1.1"},
		{"bvmcons", "path", "nothing"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
		struct fixture *f = fixture_create();
		struct config *config = config_create();
		struct device *device;
		struct error err = {0};

		config_set(config, pairs[i][1], pairs[i][2], &err);
		assert_true(device_create(device_class_find(DEVICE_CHIPSET, pairs[i][0]), &f->vm,
					  config, &device, &err) < 0);
		assert_non_null(strstr(err.text, pairs[i][2]));
		config_destroy(config);
		fixture_destroy(f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bvmcons_framing),
		cmocka_unit_test(bvmdebug_framing),
		cmocka_unit_test(output_waits_for_its_reader),
		cmocka_unit_test(dead_reader_does_not_hang_the_guest),
		cmocka_unit_test(quit_by_escape),
		cmocka_unit_test(hostile_guest),
		cmocka_unit_test(bad_keys_are_named),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
