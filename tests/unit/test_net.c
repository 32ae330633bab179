/*
 * Network back ends: pairs on a UNIX socket, slirp's process, refusals.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/net/internal.h"
#include "backend/net/slirp_confine.h"

#define PATIENCE 20 /* seconds */

static const struct net_header no_header;
static struct log quiet = {.fd = -1, .lock = PTHREAD_MUTEX_INITIALIZER};

/* One end, as a NIC would hold it; the loop runs in a thread. */
struct end {
	struct net *net;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned readable, writable, ups, downs;
	struct net_header header; /* of the frame received last */
};

struct machine {
	struct loop *loop;
	pthread_t thread;
	struct end end[2];
};

static void *run_loop(void *arg)
{
	loop_run(arg);
	return NULL;
}

static void on_readable(void *arg)
{
	struct end *end = arg;

	net_receive_enable(end->net, false);
	pthread_mutex_lock(&end->lock);
	end->readable++;
	pthread_cond_signal(&end->cond);
	pthread_mutex_unlock(&end->lock);
}

static void on_writable(void *arg)
{
	struct end *end = arg;

	pthread_mutex_lock(&end->lock);
	end->writable++;
	pthread_cond_signal(&end->cond);
	pthread_mutex_unlock(&end->lock);
}

static void on_link(void *arg, bool up)
{
	struct end *end = arg;

	pthread_mutex_lock(&end->lock);
	if (up)
		end->ups++;
	else
		end->downs++;
	pthread_cond_signal(&end->cond);
	pthread_mutex_unlock(&end->lock);
}

/* Until *count of the end is n. */
static void await_count(struct end *end, const unsigned *count, unsigned n)
{
	struct timespec deadline = {.tv_sec = time(NULL) + PATIENCE};

	pthread_mutex_lock(&end->lock);
	while (*count < n)
		assert_int_equal(pthread_cond_timedwait(&end->cond, &end->lock, &deadline), 0);
	pthread_mutex_unlock(&end->lock);
}

static int setup(void **state)
{
	struct machine *m = calloc(1, sizeof(*m));

	assert_int_equal(loop_create(&m->loop, NULL), 0);
	for (unsigned i = 0; i < 2; i++) {
		pthread_mutex_init(&m->end[i].lock, NULL);
		pthread_cond_init(&m->end[i].cond, NULL);
	}
	pthread_create(&m->thread, NULL, run_loop, m->loop);
	*state = m;
	return 0;
}

static int teardown(void **state)
{
	struct machine *m = *state;

	loop_stop(m->loop);
	pthread_join(m->thread, NULL);
	for (unsigned i = 0; i < 2; i++)
		net_close(m->end[i].net);
	loop_destroy(m->loop);
	free(m);
	return 0;
}

static unsigned readable(struct end *end)
{
	unsigned n;

	pthread_mutex_lock(&end->lock);
	n = end->readable;
	pthread_mutex_unlock(&end->lock);
	return n;
}

static int try_open(struct machine *m, unsigned i, const char *list, struct error *err)
{
	struct config *node = config_create();
	struct net_events events = {on_readable, on_writable, on_link, &m->end[i]};
	int rc;

	assert_int_equal(config_set_list(node, list, "backend", err), 0);
	rc = net_open(&m->end[i].net, node, m->loop, &quiet, &events, err);
	config_destroy(node);
	return rc;
}

static void open_ok(struct machine *m, unsigned i, const char *list)
{
	struct error err = {""};

	if (try_open(m, i, list, &err) != 0)
		fail_msg("%s", err.text);
}

static void refuse(struct machine *m, const char *list, int error, const char *text)
{
	struct error err = {""};

	assert_int_equal(try_open(m, 1, list, &err), -error);
	if (strstr(err.text, text) == NULL)
		fail_msg("'%s' lacks '%s'", err.text, text);
}

/* The next frame, whenever it comes. */
static size_t receive(struct end *end, uint8_t *frame)
{
	struct timespec deadline;
	size_t n;

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += PATIENCE;
	while ((n = net_receive(end->net, &end->header, frame, NET_FRAME_MAX)) == 0) {
		pthread_mutex_lock(&end->lock);
		end->readable = 0;
		net_receive_enable(end->net, true);
		while (end->readable == 0)
			assert_int_equal(pthread_cond_timedwait(&end->cond, &end->lock, &deadline),
					 0);
		pthread_mutex_unlock(&end->lock);
	}
	return n;
}

static int send_bytes(struct end *end, const uint8_t *bytes, size_t length)
{
	struct iovec iov[2] = {{(void *)bytes, 5}, {(void *)(bytes + 5), length - 5}};

	return net_send(end->net, &no_header, iov, 2);
}

static void fill(uint8_t *bytes, size_t length, unsigned seed)
{
	for (size_t i = 0; i < length; i++)
		bytes[i] = (uint8_t)(seed + i * 13);
}

/* Until the socket is full and on; nothing is lost, nothing is turned round. */
static void test_pair(void **state)
{
	static uint8_t frame[NET_FRAME_MAX], back[NET_FRAME_MAX];
	struct machine *m = *state;
	unsigned sent = 0, got = 0;
	char list[128];

	snprintf(list, sizeof(list), "unix:/tmp/skep-test-net-%d,listen", getpid());
	open_ok(m, 0, list);
	*strchr(list, ',') = '\0';
	open_ok(m, 1, list);
	for (unsigned round = 0; round < 3; round++) {
		for (;; sent++) {
			fill(frame, sizeof(frame), sent);
			if (send_bytes(&m->end[1], frame, 14 + sent * 977 % 65000) == -EAGAIN)
				break;
			assert_true(sent < 100000);
		}
		for (; got < sent; got++) {
			size_t n = receive(&m->end[0], back);

			fill(frame, sizeof(frame), got);
			assert_int_equal(n, 14 + got * 977 % 65000);
			assert_memory_equal(frame, back, n);
		}
		await_count(&m->end[1], &m->end[1].writable, round + 1);
	}
	assert_int_equal(send_bytes(&m->end[1], frame, 13), -EMSGSIZE);
	/* One goes, another comes. */
	assert_true(net_link(m->end[0].net));
	net_close(m->end[1].net);
	m->end[1].net = NULL;
	await_count(&m->end[0], &m->end[0].downs, 1);
	assert_false(net_link(m->end[0].net));
	open_ok(m, 1, list);
	await_count(&m->end[0], &m->end[0].ups, 2);
	assert_int_equal(send_bytes(&m->end[1], frame, 100), 0);
	assert_int_equal(receive(&m->end[0], back), 100);
	refuse(m, "unix:/tmp", ECONNREFUSED, "nobody listens");
}

/* Whoever is there takes nothing: the sender is held for a while only. Afterwards frames arrive whole again. */
static void test_stalled(void **state)
{
	static uint8_t frame[NET_FRAME_MAX], back[NET_FRAME_MAX];
	struct machine *m = *state;
	struct end *from = &m->end[1];
	char list[128];
	unsigned held = 0;
	size_t n = 0;

	snprintf(list, sizeof(list), "unix:/tmp/skep-test-stalled-%d,listen", getpid());
	open_ok(m, 0, list);
	*strchr(list, ',') = '\0';
	open_ok(m, 1, list);
	fill(frame, sizeof(frame), 1);
	while (send_bytes(from, frame, 30000) == 0)
		assert_true(held++ < 10000);
	assert_int_equal(send_bytes(from, frame, 30000), -EAGAIN);
	await_count(from, &from->writable, 1);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(send_bytes(from, frame, 30001), 0);
	for (; held > 0; held--)
		assert_int_equal(receive(&m->end[0], back), 30000);
	await_count(from, &from->writable, 2);
	assert_int_equal(send_bytes(from, frame, 20000), 0);
	while (n != 20000) /* a few of the others may have found room while this end was reading */
		n = receive(&m->end[0], back);
	assert_memory_equal(frame, back, n);
}

/* Lengths that no frame has. */
static void test_bad_stream(void **state)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct machine *m = *state;
	uint8_t back[16];
	char list[160];
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/skep-test-bad-%d", getpid());
	snprintf(list, sizeof(list), "unix:%s,listen", address.sun_path);
	open_ok(m, 0, list);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(send(fd, "\377\377\377\377 and so on", 14, 0), 14);
	for (unsigned i = 0; i < 100 && readable(&m->end[0]) == 0; i++) {
		static uint8_t frame[NET_FRAME_MAX];

		net_receive_enable(m->end[0].net, true);
		usleep(20000);
		assert_int_equal(
			net_receive(m->end[0].net, &m->end[0].header, frame, sizeof(frame)), 0);
	}
	/* The connection is closed, not the network. */
	assert_true(recv(fd, back, sizeof(back), 0) <= 0);
	close(fd);
}

/* Who has 10.0.2.2? (RFC 826) */
static void test_slirp(void **state)
{
	static uint8_t back[NET_FRAME_MAX];
	static const uint8_t arp[60] = {255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0,  1, 8, 6,
					0,   1,	  8,   0,   6,	 4,   0, 1, 2, 0, 0,  0, 0, 1,
					10,  0,	  2,   15,  0,	 0,   0, 0, 0, 0, 10, 0, 2, 2};
	static const uint8_t answer[] = {8, 6, 0, 1, 8, 0, 6, 4, 0, 2};
	struct machine *m = *state;
	size_t n;

	open_ok(m, 0, "slirp");
	assert_int_equal(send_bytes(&m->end[0], arp, sizeof(arp)), 0);
	do
		n = receive(&m->end[0], back);
	while (n < 42 || memcmp(back + 12, answer, sizeof(answer)) != 0);
	assert_memory_equal(back + 28, "\12\0\2\2", 4);
}

static uint16_t free_port(int *fd)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(address);

	*fd = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(bind(*fd, (struct sockaddr *)&address, length), 0);
	assert_int_equal(getsockname(*fd, (struct sockaddr *)&address, &length), 0);
	return ntohs(address.sin_port);
}

/* A connection to the host's port makes slirp look for the guest. */
static void test_hostfwd(void **state)
{
	static uint8_t back[NET_FRAME_MAX];
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct machine *m = *state;
	char list[128];
	int fd, client = socket(AF_INET, SOCK_STREAM, 0);
	uint16_t port = free_port(&fd);
	size_t n;

	assert_int_equal(listen(fd, 1), 0);
	snprintf(list, sizeof(list), "slirp,hostfwd=tcp:127.0.0.1:%u-:22", port);
	refuse(m, list, EINVAL, "Address already in use");
	close(fd);
	refuse(m, "slirp,hostfwd=tcp:127.0.0.1:99999-:22", EINVAL, "should be tcp|udp");
	refuse(m, "slirp,hostfwd=tcp:22", EINVAL, "should be tcp|udp");
	snprintf(list, sizeof(list), "slirp,hostfwd=udp::%u-:53;tcp:127.0.0.1:%u-:22", port, port);
	open_ok(m, 0, list);
	address.sin_port = htons(port);
	assert_int_equal(connect(client, (struct sockaddr *)&address, sizeof(address)), 0);
	do
		n = receive(&m->end[0], back);
	while (n < 42 || back[12] != 8 || back[13] != 6);
	assert_memory_equal(back + 38, "\12\0\2\17", 4); /* who has 10.0.2.15? */
	close(client);
}

/* A system call of a process that is confined as slirp's is: 0, its errno, or -SIGNAL that it died of. */
static int confined(long call, long a, long b, long c)
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		if (slirp_confine() != 0)
			_exit(255);
		_exit(syscall(call, a, b, c, 0, -1, 0) < 0 ? errno : 0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void test_confined(void **state)
{
	static const char *const argv[] = {"/bin/true", NULL};
	long path = (long)"/etc/passwd", here = (long)"skep-must-not-be";

	(void)state;
	assert_int_equal(confined(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC), 0);
	assert_int_equal(confined(SYS_socket, AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), 0);
	assert_int_equal(confined(SYS_socket, AF_INET6, SOCK_DGRAM, 0), 0);
	assert_int_equal(confined(SYS_mmap, 0, 4096, 3), EBADF);

	assert_int_equal(confined(SYS_execve, (long)argv[0], (long)argv, 0), -SIGSYS);
	assert_int_equal(confined(SYS_openat, AT_FDCWD, path, O_RDWR), -SIGSYS);
	assert_int_equal(confined(SYS_openat, AT_FDCWD, path, O_RDONLY | O_TRUNC), -SIGSYS);
	assert_int_equal(confined(SYS_openat, AT_FDCWD, here, O_RDONLY | O_CREAT), -SIGSYS);
	assert_int_equal(confined(SYS_openat, AT_FDCWD, (long)"/tmp", O_TMPFILE | O_RDWR), -SIGSYS);
	assert_int_equal(confined(SYS_socket, AF_UNIX, SOCK_STREAM, 0), -SIGSYS);
	assert_int_equal(confined(SYS_socket, AF_NETLINK, SOCK_RAW, 0), -SIGSYS);
	assert_int_equal(confined(SYS_mmap, 0, 4096, 7), -SIGSYS);
	assert_int_equal(confined(SYS_ptrace, 16, getppid(), 0), -SIGSYS);
	assert_int_equal(confined(SYS_kill, getpid(), 0, 0), -SIGSYS);
	assert_int_equal(confined(SYS_fork, 0, 0, 0), -SIGSYS);
	assert_int_equal(confined(SYS_unlink, here, 0, 0), -SIGSYS);
	assert_int_equal(confined(SYS_openat | 0x40000000, AT_FDCWD, path, O_RDONLY), -SIGSYS);
}

/* The process that serves is confined, whatever it may be asked for afterwards. */
static void test_slirp_confined(void **state)
{
	struct machine *m = *state;
	char path[64], line[128];
	unsigned found = 0;
	FILE *file;

	open_ok(m, 0, "slirp");
	snprintf(path, sizeof(path), "/proc/%d/status", m->end[0].net->child);
	file = fopen(path, "r");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file) != NULL)
		found += strcmp(line, "Seccomp:\t2\n") == 0 ||
			 strcmp(line, "NoNewPrivs:\t1\n") == 0;
	fclose(file);
	assert_int_equal(found, 2);
}

/* It dies: the link is down, and what is sent is lost, not kept. */
static void test_slirp_dies(void **state)
{
	static uint8_t frame[100];
	struct machine *m = *state;

	open_ok(m, 0, "slirp");
	assert_true(net_link(m->end[0].net));
	assert_int_equal(kill(m->end[0].net->child, SIGKILL), 0);
	await_count(&m->end[0], &m->end[0].downs, 1);
	assert_false(net_link(m->end[0].net));
	assert_int_equal(send_bytes(&m->end[0], frame, sizeof(frame)), 0);
}

/* Answers slirp's question for the guest's address, once (RFC 826). */
static void answer_arp(struct end *end)
{
	static uint8_t asked[NET_FRAME_MAX];
	uint8_t answer[60] = {0};
	size_t n;

	do
		n = receive(end, asked);
	while (n < 42 || asked[12] != 8 || asked[13] != 6 || asked[21] != 1);
	memcpy(answer, asked + 6, 6);
	memcpy(answer + 6, "\2\0\0\0\0\1\10\6", 8);
	memcpy(answer + 14, asked + 14, 7);
	answer[21] = 2;
	memcpy(answer + 22, "\2\0\0\0\0\1", 6);
	memcpy(answer + 28, asked + 38, 4);
	memcpy(answer + 32, asked + 22, 10);
	assert_int_equal(send_bytes(end, answer, sizeof(answer)), 0);
}

/* The next UDP datagram to the guest, put together; returns of how many frames it was. */
static unsigned receive_datagram(struct end *end, uint8_t *data, size_t length, size_t mtu)
{
	static uint8_t frame[NET_FRAME_MAX];
	unsigned frames = 0;
	size_t done = 0;

	while (done < length) {
		size_t n = receive(end, frame), size;
		uint32_t sum = 0;

		if (n < 42 || frame[12] != 8 || frame[13] != 0 || frame[23] != 17)
			continue;
		assert_true(n <= 14 + mtu);
		for (unsigned i = 14; i < 34; i += 2)
			sum += (uint32_t)frame[i] << 8 | frame[i + 1];
		assert_int_equal((sum & 0xffff) + (sum >> 16), 0xffff);
		size = ((size_t)frame[16] << 8 | frame[17]) - 20;
		assert_int_equal(((size_t)(frame[20] & 31) << 8 | frame[21]) * 8, done);
		assert_int_equal(frame[20] & 0x20 ? 1 : 0, done + size < length);
		memcpy(data + done, frame + 34, size);
		done += size;
		frames++;
	}
	assert_int_equal(done, length);
	return frames;
}

/* A guest whose driver has not heard of the MTU gets what fits into 1500 bytes, another one all at once. */
static void test_slirp_mtu(void **state)
{
	static uint8_t sent[4000], got[4008];
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct machine *m = *state;
	char list[128];
	int fd, client = socket(AF_INET, SOCK_DGRAM, 0);
	uint16_t port = free_port(&fd);

	close(fd);
	snprintf(list, sizeof(list), "slirp,hostfwd=udp:127.0.0.1:%u-:7777", port);
	open_ok(m, 0, list);
	assert_int_equal(net_mtu(m->end[0].net), 65520);
	fill(sent, sizeof(sent), 1);
	address.sin_port = htons(port);
	for (unsigned known = 0; known < 2; known++) {
		if (known)
			net_configure(m->end[0].net, 0, 65520);
		assert_int_equal(sendto(client, sent, sizeof(sent), 0, (struct sockaddr *)&address,
					sizeof(address)),
				 sizeof(sent));
		if (!known)
			answer_arp(&m->end[0]);
		assert_int_equal(
			receive_datagram(&m->end[0], got, sizeof(got), known ? 65520 : 1500),
			known ? 1 : 3);
		assert_memory_equal(got + 8, sent, sizeof(sent));
	}
	close(client);
	refuse(m, "slirp,mtu=100", EINVAL, "from 1280 to 65520");
	refuse(m, "slirp,mtu=65521", EINVAL, "from 1280 to 65520");
}

static void test_refusals(void **state)
{
	struct machine *m = *state;

	refuse(m, "bridge0", EINVAL, "there are slirp, tapN, tap=NAME, unix:PATH");
	refuse(m, "slirp,listen", EINVAL, "listen: only with");
	refuse(m, "tap0,open", EINVAL, "only with slirp");
	refuse(m, "unix:/nowhere/at-all", ENOENT, "No such file");
	refuse(m, "tap=a-name-that-is-far-too-long", EINVAL, "a name has");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_pair, setup, teardown),
		cmocka_unit_test_setup_teardown(test_stalled, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_stream, setup, teardown),
		cmocka_unit_test_setup_teardown(test_slirp, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostfwd, setup, teardown),
		cmocka_unit_test(test_confined),
		cmocka_unit_test_setup_teardown(test_slirp_confined, setup, teardown),
		cmocka_unit_test_setup_teardown(test_slirp_mtu, setup, teardown),
		cmocka_unit_test_setup_teardown(test_slirp_dies, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
