/*
 * skep-slirp: a network in user space for one NIC, by libslirp, in a process of its own, so that what parses the
 * guest's packets and the world's holds neither the guest's memory nor its disks. Started by skep only (slirp.c).
 *
 * It ends when skep closes its socket. What it may do is in slirp_confine.h. Left out of what libslirp can: forwarding ports to
 * IPv6 addresses, programs behind addresses of the guest's (guestfwd), TFTP, SMB.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "backend/net/slirp.h"
#include "backend/net/slirp_confine.h"

#define FRAME_MAX 65550
#define ETHER 14 /* bytes of a frame before the packet */
#define TIMERS 16
#define POLLS_MAX 4096
#define FILES_MAX 2048
#define MEMORY_MAX_BYTES (1ull << 30) /* twice what as many connections have in buffers */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true /* which takes terabytes of addresses */
#elif defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
#define SANITIZED false
#endif
#define SEND_MS 50 /* how long a frame waits for the guest before it is lost */

struct timer {
	SlirpTimerCb fn;
	void *arg;
	int64_t due_ms; /* -1: not armed */
	bool used;
};

struct process {
	Slirp *slirp;
	struct timer timer[TIMERS];
	struct pollfd polls[POLLS_MAX];
	int npolls;
	uint32_t guest_mtu;
};

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Tells skep what went wrong, in the place of "started", and ends. */
__attribute__((format(printf, 1, 2), noreturn)) static void refuse(const char *fmt, ...)
{
	char text[512];
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	send(SLIRP_SOCKET, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1,
	     MSG_NOSIGNAL);
	_exit(1);
}

static ssize_t to_guest(const void *bytes, size_t length)
{
	struct pollfd p = {.fd = SLIRP_SOCKET, .events = POLLOUT};

	while (send(SLIRP_SOCKET, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN || poll(&p, 1, SEND_MS) <= 0)
			return -1;
	}
	return (ssize_t)length;
}

static uint16_t header_checksum(const uint8_t *header, size_t length)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < length; i += 2)
		sum += (uint32_t)header[i] << 8 | header[i + 1];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static void put16(uint8_t *at, unsigned value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* An IPv4 packet that is larger than what the guest knows of, in fragments (RFC 791): libslirp cuts at its own MTU, which cannot
 * change when the guest's driver turns out to be one that has never heard of it. What is no such packet is lost. */
static ssize_t in_fragments(const uint8_t *frame, size_t length, size_t mtu)
{
	static uint8_t part[ETHER + SLIRP_MTU];
	size_t header = (frame[ETHER] & 15) * 4u, done = 0, data = length - ETHER - header;
	size_t most = (mtu - header) / 8 * 8;
	unsigned flags = (unsigned)frame[ETHER + 6] << 8 | frame[ETHER + 7];

	if (frame[12] != 8 || frame[13] != 0 || frame[ETHER] >> 4 != 4 || header < 20)
		return (ssize_t)length;
	while (done < data) {
		size_t n = data - done < most ? data - done : most;
		bool last = done + n == data;

		memcpy(part, frame, ETHER + header);
		put16(part + ETHER + 2, (unsigned)(header + n));
		put16(part + ETHER + 6, (flags & 0x2000) | (last ? 0 : 0x2000) |
						((flags & 0x1fff) + (unsigned)done / 8));
		put16(part + ETHER + 10, 0);
		put16(part + ETHER + 10, header_checksum(part + ETHER, header));
		memcpy(part + ETHER + header, frame + ETHER + header + done, n);
		if (to_guest(part, ETHER + header + n) < 0)
			return -1;
		done += n;
	}
	return (ssize_t)length;
}

static ssize_t on_packet(const void *bytes, size_t length, void *arg)
{
	struct process *process = arg;

	if (length > ETHER + process->guest_mtu)
		return in_fragments(bytes, length, process->guest_mtu);
	return to_guest(bytes, length);
}

static void on_guest_error(const char *text, void *arg)
{
	(void)text;
	(void)arg;
}

static int64_t on_clock(void *arg)
{
	(void)arg;
	return now_ns();
}

static void *on_timer_new(SlirpTimerCb fn, void *fn_arg, void *arg)
{
	struct process *process = arg;

	for (unsigned i = 0; i < TIMERS; i++) {
		if (!process->timer[i].used) {
			process->timer[i] = (struct timer){fn, fn_arg, -1, true};
			return &process->timer[i];
		}
	}
	abort(); /* libslirp makes one a network */
}

static void on_timer_free(void *timer, void *arg)
{
	(void)arg;
	((struct timer *)timer)->used = false;
}

static void on_timer_mod(void *timer, int64_t due_ms, void *arg)
{
	(void)arg;
	((struct timer *)timer)->due_ms = due_ms;
}

static void on_poll_fd(int fd, void *arg)
{
	(void)fd;
	(void)arg;
}

static void on_notify(void *arg)
{
	(void)arg;
}

static const SlirpCb callbacks = {
	.send_packet = on_packet,
	.guest_error = on_guest_error,
	.clock_get_ns = on_clock,
	.timer_new = on_timer_new,
	.timer_free = on_timer_free,
	.timer_mod = on_timer_mod,
	.register_poll_fd = on_poll_fd,
	.unregister_poll_fd = on_poll_fd,
	.notify = on_notify,
};

static int add_poll(int fd, int events, void *arg)
{
	struct process *process = arg;
	short wanted = (short)((events & SLIRP_POLL_IN ? POLLIN : 0) |
			       (events & SLIRP_POLL_OUT ? POLLOUT : 0) |
			       (events & SLIRP_POLL_PRI ? POLLPRI : 0));

	if (process->npolls == POLLS_MAX)
		return -1;
	process->polls[process->npolls] = (struct pollfd){.fd = fd, .events = wanted};
	return process->npolls++;
}

static int get_events(int index, void *arg)
{
	struct process *process = arg;
	int got = index >= 0 && index < process->npolls ? process->polls[index].revents : 0;

	return (got & POLLIN ? SLIRP_POLL_IN : 0) | (got & POLLOUT ? SLIRP_POLL_OUT : 0) |
	       (got & POLLPRI ? SLIRP_POLL_PRI : 0) | (got & POLLERR ? SLIRP_POLL_ERR : 0) |
	       (got & POLLHUP ? SLIRP_POLL_HUP : 0);
}

static void run_timers(struct process *process)
{
	int64_t now_ms = now_ns() / 1000000;

	for (unsigned i = 0; i < TIMERS; i++) {
		struct timer *timer = &process->timer[i];

		if (timer->used && timer->due_ms >= 0 && timer->due_ms <= now_ms) {
			timer->due_ms = -1;
			timer->fn(timer->arg);
		}
	}
}

static int time_to_timer(const struct process *process, uint32_t at_most)
{
	int64_t now_ms = now_ns() / 1000000, left = at_most;

	for (unsigned i = 0; i < TIMERS; i++) {
		const struct timer *timer = &process->timer[i];

		if (timer->used && timer->due_ms >= 0 && timer->due_ms - now_ms < left)
			left = timer->due_ms > now_ms ? timer->due_ms - now_ms : 0;
	}
	return (int)left;
}

/* What the guest has sent, a few frames at a time. False: skep has gone. */
static bool take_frames(struct process *process)
{
	static uint8_t frame[FRAME_MAX];

	for (unsigned i = 0; i < 64; i++) {
		ssize_t n = recv(SLIRP_SOCKET, frame, sizeof(frame), MSG_DONTWAIT);

		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			return false;
		if (n < 0)
			return true;
		if (n == SLIRP_CONTROL)
			memcpy(&process->guest_mtu, frame, sizeof(process->guest_mtu));
		else
			slirp_input(process->slirp, frame, (int)n);
	}
	return true;
}

static void run(struct process *process)
{
	for (;;) {
		uint32_t timeout = 1000;
		int n;

		process->npolls = 0;
		add_poll(SLIRP_SOCKET, SLIRP_POLL_IN, process);
		slirp_pollfds_fill(process->slirp, &timeout, add_poll, process);
		n = poll(process->polls, (nfds_t)process->npolls, time_to_timer(process, timeout));
		if (n < 0 && errno != EINTR)
			return;
		if (process->polls[0].revents && !take_frames(process))
			return;
		slirp_pollfds_poll(process->slirp, n < 0, get_events, process);
		run_timers(process);
	}
}

/* "[ADDR]:PORT"; an empty address is `any`. Returns what follows, NULL: wrong. */
static const char *parse_end(const char *text, char end, const char *any, struct in_addr *addr,
			     int *port)
{
	const char *colon = strchr(text, ':');
	char host[32], *after;
	unsigned long n;

	if (colon == NULL || (size_t)(colon - text) >= sizeof(host))
		return NULL;
	memcpy(host, text, (size_t)(colon - text));
	host[colon - text] = '\0';
	if (inet_pton(AF_INET, host[0] ? host : any, addr) != 1 || colon[1] < '0' || colon[1] > '9')
		return NULL;
	n = strtoul(colon + 1, &after, 10);
	if (n == 0 || n > 65535 || *after != end)
		return NULL;
	*port = (int)n;
	return after;
}

/* tcp|udp:[ADDR]:PORT-[GUEST]:PORT */
static void forward(Slirp *slirp, const char *rule)
{
	bool udp = strncmp(rule, "udp:", 4) == 0;
	struct in_addr host, guest;
	int host_port, guest_port;
	const char *at = NULL;

	if (udp || strncmp(rule, "tcp:", 4) == 0)
		at = parse_end(rule + 4, '-', "0.0.0.0", &host, &host_port);
	if (at != NULL)
		at = parse_end(at + 1, '\0', "10.0.2.15", &guest, &guest_port);
	if (at == NULL)
		refuse("hostfwd=%s: should be tcp|udp:[ADDRESS]:PORT-[GUEST-ADDRESS]:PORT, several "
		       "of "
		       "them with ';' between",
		       rule);
	if (slirp_add_hostfwd(slirp, udp, host, host_port, guest, guest_port) != 0)
		refuse("hostfwd=%s: port %d of this host: %s", rule, host_port, strerror(errno));
}

static void forward_all(Slirp *slirp, char *rules)
{
	char *rule, *rest = rules;

	while (rules[0] != '\0' && (rule = strsep(&rest, ";")) != NULL)
		forward(slirp, rule);
}

static Slirp *create(struct process *process, bool open)
{
	SlirpConfig config = {
		.version = 4,
		.restricted = !open,
		.in_enabled = true,
		.in6_enabled = true,
		.if_mtu = SLIRP_MTU,
		.if_mru = SLIRP_MTU,
		.vhostname = "skep",
		.vprefix_len = 64,
	};

	inet_pton(AF_INET, "10.0.2.0", &config.vnetwork);
	inet_pton(AF_INET, "255.255.255.0", &config.vnetmask);
	inet_pton(AF_INET, "10.0.2.2", &config.vhost);
	inet_pton(AF_INET, "10.0.2.15", &config.vdhcp_start);
	inet_pton(AF_INET, "10.0.2.3", &config.vnameserver);
	inet_pton(AF_INET6, "fec0::", &config.vprefix_addr6);
	inet_pton(AF_INET6, "fec0::2", &config.vhost6);
	inet_pton(AF_INET6, "fec0::3", &config.vnameserver6);
	return slirp_new(&config, &callbacks, process);
}

/* What a guest can make libslirp hold, fragments of packets above all, has no bound of its own. */
static void limit(int what, rlim_t most)
{
	struct rlimit limit;

	if (getrlimit(what, &limit) == 0 && limit.rlim_cur > most) {
		limit.rlim_cur = most;
		setrlimit(what, &limit);
	}
}

int main(int argc, char *argv[])
{
	static struct process process;
	int type, rc;

	if (argc != 3 ||
	    getsockopt(SLIRP_SOCKET, SOL_SOCKET, SO_TYPE, &type, &(socklen_t){sizeof(type)}) != 0) {
		fprintf(stderr, "skep-slirp: skep starts this for a network card with the back end "
				"slirp\n");
		return 4;
	}
	syscall(SYS_close_range, SLIRP_SOCKET + 1, ~0u, 0);
	fcntl(SLIRP_SOCKET, F_SETFD, FD_CLOEXEC);
	signal(SIGPIPE, SIG_IGN);
	process.guest_mtu = 1500;
	process.slirp = create(&process, strcmp(argv[1], "open") == 0);
	if (process.slirp == NULL)
		refuse("libslirp refuses to start");
	forward_all(process.slirp, argv[2]);
	limit(RLIMIT_NOFILE, FILES_MAX);
	if (!SANITIZED)
		limit(RLIMIT_DATA, MEMORY_MAX_BYTES);
	rc = slirp_confine();
	if (rc != 0)
		refuse("no seccomp filter: %s", strerror(-rc));
	send(SLIRP_SOCKET, "", 1, MSG_NOSIGNAL);
	run(&process);
	_exit(0); /* nothing is left to be written, and a sanitizer's last look is not on the filter's list */
}
