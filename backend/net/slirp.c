/*
 * The process of a network in user space (slirp_process.c is what it runs): started here, told what to do by its
 * arguments, and spoken to by a socket of packets, one frame each. Its first packet says how the start went: empty but for
 * a NUL, or the error's text.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/net/internal.h"
#include "backend/net/slirp.h"

#define START_MS 10000

/* The program is where skep is, or where SKEP_SLIRP says. */
static int find_program(char *path, size_t size, struct error *err)
{
	const char *given = getenv("SKEP_SLIRP");
	ssize_t n;
	char *slash;

	if (given != NULL) {
		n = snprintf(path, size, "%s", given);
		return (size_t)n < size ? 0 : error_set(err, ENAMETOOLONG, "SKEP_SLIRP: too long");
	}
	n = readlink("/proc/self/exe", path, size - sizeof(SLIRP_PROGRAM));
	if (n < 0)
		return error_set(err, errno, "slirp: /proc/self/exe: %s", strerror(errno));
	path[n] = '\0';
	slash = strrchr(path, '/');
	strcpy(slash != NULL ? slash + 1 : path, SLIRP_PROGRAM);
	return 0;
}

static int spawn(pid_t *child, int socket, const char *open, const char *hostfwd, struct error *err)
{
	char path[512], *argv[] = {SLIRP_PROGRAM, (char *)open, (char *)hostfwd, NULL},
			*env[] = {NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none, all;
	int rc = find_program(path, sizeof(path), err);

	if (rc != 0)
		return rc;
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, socket, SLIRP_SOCKET);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	/* A group of its own: ^C at the terminal is for skep. */
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
						      POSIX_SPAWN_SETPGROUP);
	rc = posix_spawn(child, path, &actions, &attributes, argv, env);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return rc == 0 ? 0 : error_set(err, rc, "slirp: %s: %s", path, strerror(rc));
}

static int await_start(int socket, struct error *err)
{
	struct pollfd p = {.fd = socket, .events = POLLIN};
	char text[512];
	ssize_t n;

	if (poll(&p, 1, START_MS) <= 0)
		return error_set(err, ETIMEDOUT, "slirp: its process says nothing");
	n = recv(socket, text, sizeof(text) - 1, MSG_DONTWAIT);
	if (n <= 0)
		return error_set(err, EIO, "slirp: its process ended at once");
	text[n] = '\0';
	return text[0] == '\0' ? 0 : error_set(err, EINVAL, "slirp: %s", text);
}

/* False: the socket is full. */
static bool tell_mtu(struct net *net)
{
	const uint32_t word = net->untold_mtu;

	if (send(net->fd, &word, SLIRP_CONTROL, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno == EAGAIN)
		return false;
	net->untold_mtu = 0;
	return true;
}

static ssize_t slirp_send(struct net *net, const struct net_header *header, const struct iovec *iov,
			  unsigned iovs, size_t length)
{
	struct msghdr msg = {.msg_iov = (struct iovec *)iov, .msg_iovlen = iovs};

	(void)header;
	(void)length;
	if (net->untold_mtu != 0 && !tell_mtu(net))
		return -EAGAIN;
	return sendmsg(net->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static ssize_t slirp_receive(struct net *net, struct net_header *header, void *frame, size_t size)
{
	ssize_t n = recv(net->fd, frame, size, MSG_DONTWAIT);

	header->flags = NET_DATA_VALID; /* it has just made them */
	return n < 0 && errno != EAGAIN ? -errno : n < 0 ? 0 : n;
}

static void slirp_configure(struct net *net, unsigned offloads, unsigned mtu)
{
	(void)offloads;
	net->untold_mtu = mtu;
	tell_mtu(net); /* or before the next frame */
}

const struct net_kind net_slirp = {
	.offloads = NET_CSUM | NET_GUEST_CSUM,
	.send = slirp_send,
	.receive = slirp_receive,
	.configure = slirp_configure,
};

int slirp_open(struct net *net, struct config *node, struct error *err)
{
	int pair[2], size = 1 << 20, rc;
	bool open = true;

	rc = config_get_bool(node, "open", true, &open, err);
	if (rc != 0)
		return rc;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
		return error_set(err, errno, "slirp: socketpair: %s", strerror(errno));
	/* As much as the host allows. */
	for (unsigned i = 0; i < 2; i++)
		setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	rc = spawn(&net->child, pair[1], open ? "open" : "closed",
		   config_get_default(node, "hostfwd", ""), err);
	close(pair[1]);
	net->kind = &net_slirp;
	net->fd = pair[0];
	return rc != 0 ? rc : await_start(net->fd, err);
}
