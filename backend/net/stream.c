/*
 * Frames on a UNIX stream socket, each after its length in 4 bytes, big-endian: what passt and QEMU speak. Left out: offloads
 * (there is no header for them), reconnecting to a listener.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/net/internal.h"

#define BUFFER_SIZE (256u << 10)
#define PREFIX 4u

void stream_reset(struct net *net)
{
	net->in_at = net->in_len = net->out_at = net->out_len = 0;
}

/* After an error in the middle of a frame nothing that is sent means anything. True: nothing waits. */
static bool give_up(struct net *net)
{
	shutdown(net->fd, SHUT_RDWR); /* the loop closes it */
	net->out_at = net->out_len = 0;
	return true;
}

bool stream_push(struct net *net)
{
	while (net->out_at < net->out_len) {
		ssize_t n = send(net->fd, net->out + net->out_at, net->out_len - net->out_at,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return false;
		if (n < 0)
			return give_up(net);
		net->out_at += (size_t)n;
	}
	net->out_at = net->out_len = 0;
	return true;
}

/* What the socket takes only a part of is kept, and is sent before anything else. */
static ssize_t stream_send(struct net *net, const struct net_header *header,
			   const struct iovec *iov, unsigned iovs, size_t length)
{
	uint32_t prefix = htobe32((uint32_t)length);
	struct iovec parts[1 + NET_IOVS + 2];
	struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 1 + iovs};
	size_t skip;
	ssize_t n;

	(void)header;
	if (!stream_push(net))
		return -EAGAIN;
	parts[0] = (struct iovec){&prefix, PREFIX};
	memcpy(parts + 1, iov, iovs * sizeof(*iov));
	n = sendmsg(net->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0)
		return -errno; /* nothing of the frame */
	skip = (size_t)n;
	for (unsigned i = 0; i < 1 + iovs; i++) {
		size_t sent = skip < parts[i].iov_len ? skip : parts[i].iov_len;

		skip -= sent;
		memcpy(net->out + net->out_len, (char *)parts[i].iov_base + sent,
		       parts[i].iov_len - sent);
		net->out_len += parts[i].iov_len - sent;
	}
	return 0;
}

/* The length of the frame that is all there; 0: not yet; -EPROTO: no frame has such a length. */
static ssize_t next_frame(const struct net *net)
{
	uint32_t length;

	if (net->in_len - net->in_at < PREFIX)
		return 0;
	memcpy(&length, net->in + net->in_at, PREFIX);
	length = be32toh(length);
	if (length == 0 || length > NET_FRAME_MAX)
		return -EPROTO;
	return net->in_len - net->in_at - PREFIX >= length ? (ssize_t)length : 0;
}

static ssize_t stream_receive(struct net *net, struct net_header *header, void *frame, size_t size)
{
	ssize_t length = next_frame(net), n;

	(void)header;
	if (length == 0) {
		memmove(net->in, net->in + net->in_at, net->in_len - net->in_at);
		net->in_len -= net->in_at;
		net->in_at = 0;
		n = recv(net->fd, net->in + net->in_len, BUFFER_SIZE - net->in_len, MSG_DONTWAIT);
		if (n == 0) { /* it will not send, so it need not hear */
			shutdown(net->fd, SHUT_RDWR);
			return -EPIPE;
		}
		if (n < 0)
			return errno != EAGAIN ? -errno : 0;
		net->in_len += (size_t)n;
		length = next_frame(net);
	}
	if (length < 0 || (size_t)length > size) {
		log_warn(net->log, "%s: the other side does not speak frames after their length",
			 net->name);
		shutdown(net->fd, SHUT_RDWR); /* the loop closes it */
		stream_reset(net);
		return -EPROTO;
	}
	if (length == 0)
		return 0;
	memcpy(frame, net->in + net->in_at + PREFIX, (size_t)length);
	net->in_at += PREFIX + (size_t)length;
	return length;
}

const struct net_kind net_stream = {
	.offloads = NET_CSUM,
	.send = stream_send,
	.receive = stream_receive,
};

/* A socket that nobody listens at is left from a process that ended, and is replaced. */
static int listen_at(struct net *net, const struct sockaddr_un *address, struct error *err)
{
	const struct sockaddr *sa = (const struct sockaddr *)address;
	int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct stat st;
	mode_t mask;
	int rc;

	if (probe >= 0 && connect(probe, sa, sizeof(*address)) != 0 && errno == ECONNREFUSED &&
	    lstat(address->sun_path, &st) == 0 && S_ISSOCK(st.st_mode))
		unlink(address->sun_path);
	if (probe >= 0)
		close(probe);
	net->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mask = umask(0177);
	rc = net->listener < 0 || bind(net->listener, sa, sizeof(*address)) != 0 ||
	     listen(net->listener, 1) != 0;
	umask(mask);
	if (rc == 0) {
		strcpy(net->path, address->sun_path);
		return 0;
	}
	rc = errno;
	if (net->listener >= 0)
		close(net->listener);
	net->listener = -1;
	return error_set(err, rc, "%s: %s", address->sun_path, strerror(rc));
}

int stream_open(struct net *net, const char *path, bool listens, struct error *err)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	if (path[0] == '\0' || strlen(path) >= sizeof(address.sun_path))
		return error_set(err, EINVAL, "unix:%s: a socket's path has 1 to %zu bytes", path,
				 sizeof(address.sun_path) - 1);
	strcpy(address.sun_path, path);
	net->kind = &net_stream;
	net->in = malloc(BUFFER_SIZE);
	net->out = malloc(PREFIX + NET_FRAME_MAX);
	if (net->in == NULL || net->out == NULL)
		return error_set(err, ENOMEM, "unix:%s: out of memory", path);
	if (listens)
		return listen_at(net, &address, err);
	net->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (net->fd < 0 || connect(net->fd, (struct sockaddr *)&address, sizeof(address)) != 0)
		return error_set(err, errno, "unix:%s: %s%s", path, strerror(errno),
				 errno == ENOENT || errno == ECONNREFUSED
					 ? ": nobody listens there; one of two VMs takes `listen`"
					 : "");
	return 0;
}
