/*
 * Opening a network back end, and its frames between the device and a file.
 */
#include "backend/net/net.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/net/internal.h"
#include "backend/net/slirp.h"

/* Under the lock. */
static void update_events(struct net *net)
{
	uint32_t events = (net->want_read ? EPOLLIN : 0) | (net->want_write ? EPOLLOUT : 0);

	if (net->node.loop != NULL)
		loop_fd_set(&net->node, events);
}

static void on_event(void *arg, uint32_t events);

/* Takes a file into use. Under the lock. */
static int attach(struct net *net, int fd)
{
	uint32_t events = net->want_read ? EPOLLIN : 0;

	net->fd = fd;
	net->want_write = net->stalled = false;
	return loop_fd_add(net->loop, &net->node, fd, events, on_event, net);
}

/* While frames wait. Under the lock. */
static void run_timer(struct net *net, bool on)
{
	struct itimerspec spec = {0};

	if (on) {
		spec.it_value.tv_sec = NET_STALL_MS / 1000;
		spec.it_value.tv_nsec = NET_STALL_MS % 1000 * 1000000;
	}
	timerfd_settime(net->timer, 0, &spec, NULL);
}

/* Frames have waited for too long: the guest shall not wait with them. */
static void on_timer(void *arg, uint32_t events)
{
	struct net *net = arg;
	uint64_t times;
	bool stalls;

	(void)events;
	if (read(net->timer, &times, sizeof(times)) < 0)
		return;
	pthread_mutex_lock(&net->lock);
	stalls = net->fd >= 0 && net->want_write && !net->stalled;
	net->stalled |= stalls;
	pthread_mutex_unlock(&net->lock);
	if (!stalls)
		return;
	log_guest(net->log, LOG_WARN,
		  "%s: the other side has taken no frame for %u ms; what the guest sends is "
		  "dropped until it does",
		  net->name, NET_STALL_MS);
	net->events.on_writable(net->events.arg);
}

/* Slirp's process has closed its socket, which it does not do while it lives. How it ended, as text. */
static void reap_child(struct net *net, char *text, size_t size)
{
	int status = 0;
	pid_t got = 0;

	for (unsigned i = 0; i < 50 && got == 0; i++) {
		got = waitpid(net->child, &status, WNOHANG);
		if (got == 0)
			usleep(2000);
	}
	if (got == 0) {
		snprintf(text, size, "its process hangs");
		return;
	}
	net->child = 0;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
		snprintf(text, size, "its process made a system call that its filter forbids");
	else if (WIFSIGNALED(status))
		snprintf(text, size, "its process was ended by signal %d (%s)", WTERMSIG(status),
			 strsignal(WTERMSIG(status)));
	else
		snprintf(text, size, "its process ended with status %d", WEXITSTATUS(status));
}

/* The other side is gone. On the loop thread. */
static void detach(struct net *net)
{
	char text[128] = "the other side has gone";

	pthread_mutex_lock(&net->lock);
	loop_fd_del(&net->node);
	close(net->fd);
	net->fd = -1;
	pthread_mutex_unlock(&net->lock);
	if (net->child > 0)
		reap_child(net, text, sizeof(text));
	log_warn(net->log, "%s: %s; the guest's link is down%s", net->name, text,
		 net->listener >= 0 ? " until another comes" : "");
	net->events.on_link(net->events.arg, false);
	/* Frames are lost from now on, not kept. */
	net->events.on_writable(net->events.arg);
}

static void on_event(void *arg, uint32_t events)
{
	struct net *net = arg;
	bool readable, writable = false, again = false;
	char byte;

	/* Hanging up is told even when nobody wants to read; what came before it is still to be had. */
	if (net->kind != &net_tap && (events & (EPOLLHUP | EPOLLERR)) &&
	    (!(events & EPOLLIN) || recv(net->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)) {
		detach(net);
		return;
	}
	pthread_mutex_lock(&net->lock);
	readable = net->want_read && (events & EPOLLIN);
	if (events & EPOLLOUT) {
		writable = net->want_write && (net->kind != &net_stream || stream_push(net));
		if (writable) {
			again = net->stalled;
			net->want_write = net->stalled = false;
			run_timer(net, false);
		}
		update_events(net);
	}
	pthread_mutex_unlock(&net->lock);
	if (again)
		log_guest(net->log, LOG_WARN, "%s: the other side takes frames again", net->name);
	if (writable)
		net->events.on_writable(net->events.arg);
	if (readable)
		net->events.on_readable(net->events.arg);
}

/* One connection at a time: another one waits in the listener's queue until this one is gone. */
static void on_connection(void *arg, uint32_t events)
{
	struct net *net = arg;
	bool up = false;
	int fd;

	(void)events;
	fd = accept4(net->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	pthread_mutex_lock(&net->lock);
	if (net->fd >= 0) {
		close(fd);
	} else {
		stream_reset(net);
		if (attach(net, fd) != 0) {
			close(fd);
			net->fd = -1;
		}
		up = net->fd >= 0;
	}
	pthread_mutex_unlock(&net->lock);
	if (up)
		net->events.on_link(net->events.arg, true);
}

static int read_mtu(struct net *net, struct config *node, struct error *err)
{
	const char *text = config_get(node, "mtu");
	unsigned mtu;
	int used = 0;

	if (text == NULL) {
		net->mtu = net->kind == &net_slirp ? SLIRP_MTU : 0;
		return 0;
	}
	if (sscanf(text, "%5u%n", &mtu, &used) != 1 || text[used] != '\0' || mtu < 1280 ||
	    mtu > SLIRP_MTU)
		return error_set(err, EINVAL, "mtu=%s: should be a number from 1280 to %u", text,
				 SLIRP_MTU);
	net->mtu = mtu;
	return 0;
}

static int open_kind(struct net *net, struct config *node, struct error *err)
{
	const char *backend = config_get_default(node, "backend", "slirp");
	bool listens = false;
	int rc = config_get_bool(node, "listen", false, &listens, err);

	if (rc != 0)
		return rc;
	snprintf(net->name, sizeof(net->name), "%s", backend);
	if (listens && strncmp(backend, "unix:", 5) != 0)
		return error_set(err, EINVAL, "listen: only with unix:PATH");
	if (strcmp(backend, "slirp") == 0)
		return slirp_open(net, node, err);
	if (config_get(node, "hostfwd") != NULL || config_get(node, "open") != NULL)
		return error_set(err, EINVAL, "hostfwd and open: only with slirp");
	if (strncmp(backend, "tap=", 4) == 0)
		return tap_open(net, backend + 4, err);
	if (strncmp(backend, "tap", 3) == 0)
		return tap_open(net, backend, err);
	if (strncmp(backend, "unix:", 5) == 0)
		return stream_open(net, backend + 5, listens, err);
	return error_set(err, EINVAL,
			 "backend=%s: there is no such network; there are slirp, tapN, tap=NAME, "
			 "unix:PATH",
			 backend);
}

int net_open(struct net **out, struct config *node, struct loop *loop, struct log *log,
	     const struct net_events *events, struct error *err)
{
	struct net *net = calloc(1, sizeof(*net));
	int rc;

	if (net == NULL)
		return error_set(err, ENOMEM, "network: out of memory");
	net->fd = net->listener = -1;
	net->loop = loop;
	net->log = log;
	net->events = *events;
	pthread_mutex_init(&net->lock, NULL);
	net->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	rc = net->timer < 0 ? error_set(err, errno, "timerfd: %s", strerror(errno))
			    : open_kind(net, node, err);
	if (rc == 0)
		rc = read_mtu(net, node, err);
	if (rc == 0)
		rc = loop_fd_add(loop, &net->timer_node, net->timer, EPOLLIN, on_timer, net);
	if (rc == 0 && net->fd >= 0)
		rc = attach(net, net->fd);
	if (rc == 0 && net->listener >= 0)
		rc = loop_fd_add(loop, &net->listener_node, net->listener, EPOLLIN, on_connection,
				 net);
	if (rc != 0) {
		net_close(net);
		return rc;
	}
	*out = net;
	return 0;
}

/* Closing the socket ends slirp's process; one that hangs is killed. */
static void end_child(pid_t child)
{
	for (unsigned i = 0; i < 100; i++) {
		if (waitpid(child, NULL, WNOHANG) != 0)
			return;
		usleep(10000);
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

void net_close(struct net *net)
{
	if (net == NULL)
		return;
	loop_fd_del(&net->listener_node);
	loop_fd_del(&net->node);
	loop_fd_del(&net->timer_node);
	if (net->timer >= 0)
		close(net->timer);
	if (net->listener >= 0) {
		close(net->listener);
		unlink(net->path);
	}
	if (net->fd >= 0)
		close(net->fd);
	if (net->child > 0)
		end_child(net->child);
	pthread_mutex_destroy(&net->lock);
	free(net->in);
	free(net->out);
	free(net);
}

/* Puts the checksum that the header asks for into a copy of iov, whose bytes are the guest's and stay as they are. 0: it
 * asks for nonsense. */
static unsigned complete_checksum(const struct net_header *header, const struct iovec *iov,
				  unsigned iovs, size_t length, uint16_t *sum, struct iovec *out)
{
	size_t at = (size_t)header->csum_start + header->csum_offset;

	if (at + 2 > length)
		return 0;
	*sum = (uint16_t)~checksum_sum(iov, iovs, header->csum_start);
	/* A UDP checksum of 0 would mean that there is none (RFC 768); to TCP both are the same. */
	if (*sum == 0)
		*sum = 0xffff;
	return checksum_place(iov, iovs, at, sum, out);
}

/* Under the lock. */
static ssize_t send_frame(struct net *net, const struct net_header *header, const struct iovec *iov,
			  unsigned iovs, size_t length)
{
	struct iovec whole[NET_IOVS + 2];
	uint16_t sum;

	if (net->fd < 0)
		return 0;
	if (!net->kind->cuts && header->gso_type != 0)
		return 0; /* that was never agreed on */
	if (!net->kind->cuts && (header->flags & NET_NEEDS_CSUM)) {
		iovs = complete_checksum(header, iov, iovs, length, &sum, whole);
		iov = whole;
		if (iovs == 0)
			return 0;
	}
	return net->kind->send(net, header, iov, iovs, length);
}

int net_send(struct net *net, const struct net_header *header, const struct iovec *iov,
	     unsigned iovs)
{
	size_t length = 0;
	ssize_t n;

	if (iovs > NET_IOVS)
		return -EMSGSIZE;
	for (unsigned i = 0; i < iovs; i++) {
		if (iov[i].iov_len > NET_FRAME_MAX - length)
			return -EMSGSIZE;
		length += iov[i].iov_len;
	}
	if (length < NET_FRAME_MIN)
		return -EMSGSIZE;
	pthread_mutex_lock(&net->lock);
	n = send_frame(net, header, iov, iovs, length);
	if (n == -EAGAIN && !net->want_write) {
		net->want_write = true;
		update_events(net);
		run_timer(net, true);
	}
	if (net->stalled)
		n = 0;
	pthread_mutex_unlock(&net->lock);
	/* Any other error is a frame that got lost: an interface that is down, a process that ended. */
	return n == -EAGAIN ? -EAGAIN : 0;
}

unsigned net_offloads(const struct net *net)
{
	return net->kind->offloads;
}

unsigned net_mtu(const struct net *net)
{
	return net->mtu;
}

void net_configure(struct net *net, unsigned offloads, unsigned mtu)
{
	pthread_mutex_lock(&net->lock);
	if (net->fd >= 0 && net->kind->configure != NULL)
		net->kind->configure(net, offloads, mtu);
	pthread_mutex_unlock(&net->lock);
}

bool net_link(struct net *net)
{
	bool up;

	pthread_mutex_lock(&net->lock);
	up = net->fd >= 0;
	pthread_mutex_unlock(&net->lock);
	return up;
}

size_t net_receive(struct net *net, struct net_header *header, void *frame, size_t size)
{
	ssize_t n = 0;

	memset(header, 0, sizeof(*header));
	pthread_mutex_lock(&net->lock);
	/* What is too short to be a frame is skipped. */
	while (net->fd >= 0 && (n = net->kind->receive(net, header, frame, size)) > 0 &&
	       n < NET_FRAME_MIN)
		;
	pthread_mutex_unlock(&net->lock);
	return n > 0 ? (size_t)n : 0;
}

void net_receive_enable(struct net *net, bool on)
{
	pthread_mutex_lock(&net->lock);
	if (net->want_read != on) {
		net->want_read = on;
		update_events(net);
	}
	pthread_mutex_unlock(&net->lock);
}
