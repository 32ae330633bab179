/*
 * Consoles on stream sockets: tcp and unix. They listen; one client at a time, the next one waits in the
 * backlog until it is its turn.
 *
 * A client that has shut down its sending side may still want the output (nc -N), and looks just like one
 * that is gone: it keeps getting output until that fails or until somebody else connects.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/console/internal.h"
#include "base/config.h"

#define BACKLOG 8

static void listen_on(struct console *console)
{
	int rc = console_listen(console, true);

	if (rc)
		log_error(console->log, "console %s: takes no more clients: %s", console->spec,
			  strerror(-rc));
}

static void client_drop(struct console *console)
{
	channel_close(console, &console->rx);
	channel_close(console, &console->tx);
	console_set_connected(console, false);
}

static void client_ended(struct console *console, struct channel *channel, int rc)
{
	if (channel == &console->rx && rc == 0)
		channel_close(console, channel);
	else
		client_drop(console);
	listen_on(console);
}

static int client_take(struct console *console, int fd, struct error *err)
{
	int other = fcntl(fd, F_DUPFD_CLOEXEC, 3), rc;

	if (other < 0) {
		close(fd);
		return error_set(err, errno, "console %s: %s", console->spec, strerror(errno));
	}
	rc = channel_open(console, &console->rx, fd, EPOLLIN, err);
	if (rc) {
		close(other);
		return rc;
	}
	rc = channel_open(console, &console->tx, other, EPOLLOUT, err);
	if (rc == 0)
		console_set_connected(console, true);
	else
		channel_close(console, &console->rx);
	return rc;
}

static void client_connect(struct console *console)
{
	struct error err = {0};
	int fd, on = 1;

	fd = accept4(console->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0) {
		if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
			log_warn(console->log, "console %s: cannot accept a client: %s",
				 console->spec, strerror(errno));
		return;
	}
	/* Each refused on a UNIX socket. A peer that vanished must not keep the others out for hours. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &(int){30}, sizeof(int));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &(int){10}, sizeof(int));
	client_drop(console);
	console_listen(console, false);
	console->rx.socket = console->tx.socket = true;
	if (client_take(console, fd, &err)) {
		log_warn(console->log, "%s", err.text);
		listen_on(console);
	}
}

static int start_listening(struct console *console, int fd, struct error *err)
{
	int rc;

	console->listen_fd = fd;
	rc = console_listen(console, true);
	if (rc == 0)
		return 0;
	close(fd);
	return error_set(err, -rc, "console %s: cannot be waited for: %s", console->spec,
			 strerror(-rc));
}

/* [ADDR:]PORT or [IPv6]:PORT into host and port; false if it is neither. */
static bool split_address(const char *text, char *host, size_t size, const char **port)
{
	const char *colon = strrchr(text, ':'), *from = text;
	size_t len = colon ? (size_t)(colon - text) : 0;

	*port = colon ? colon + 1 : text;
	if (len >= 2 && text[0] == '[' && text[len - 1] == ']') {
		from++;
		len -= 2;
	} else if (memchr(text, ':', len)) {
		return false;
	}
	if (len >= size)
		return false;
	memcpy(host, from, len);
	host[len] = '\0';
	if (len == 0)
		strcpy(host, "127.0.0.1");
	return true;
}

static int tcp_bind(struct console *console, const struct addrinfo *info, int *out,
		    struct error *err)
{
	int fd = socket(info->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
	int rc = 0;

	if (fd < 0)
		return error_set(err, errno, "console %s: no socket: %s", console->spec,
				 strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, info->ai_addr, info->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
		rc = error_set(err, errno, "console %s: cannot listen there: %s", console->spec,
			       strerror(errno));
		close(fd);
	}
	*out = fd;
	return rc;
}

static void tcp_announce(struct console *console)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);
	char host[64], port[16];

	if (getsockname(console->listen_fd, (struct sockaddr *)&addr, &len) == 0 &&
	    getnameinfo((struct sockaddr *)&addr, len, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV) == 0)
		log_info(console->log, "console tcp: listening on %s port %s", host, port);
}

static int tcp_open(struct console *console, const char *arg, struct error *err)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *info;
	const char *port;
	char host[256];
	uint64_t number;
	int fd = -1, rc;

	if (!split_address(arg, host, sizeof(host), &port) ||
	    number_parse(port, 0, 65535, &number, NULL))
		return error_set(err, EINVAL,
				 "console %s: want tcp=[ADDR:]PORT with a port of 0 to 65535",
				 console->spec);
	rc = getaddrinfo(host, port, &hints, &info);
	if (rc)
		return error_set(err, EINVAL, "console %s: address \"%s\": %s", console->spec, host,
				 gai_strerror(rc));
	rc = tcp_bind(console, info, &fd, err);
	freeaddrinfo(info);
	if (rc == 0)
		rc = start_listening(console, fd, err);
	if (rc == 0)
		tcp_announce(console);
	return rc;
}

static void tcp_close(struct console *console)
{
	close(console->listen_fd);
}

const struct console_kind console_tcp = {
	.name = "tcp",
	.has_arg = true,
	.open = tcp_open,
	.close = tcp_close,
	.ended = client_ended,
	.connect = client_connect,
};

/* A socket that a dead process left behind is taken away. */
static int unix_remove_stale(struct console *console, struct error *err)
{
	struct stat st;
	int fd, rc;

	if (lstat(console->unix_addr.sun_path, &st) != 0)
		return 0;
	if (!S_ISSOCK(st.st_mode))
		return error_set(err, EEXIST, "console %s: the path exists and is no socket",
				 console->spec);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_set(err, errno, "console %s: no socket: %s", console->spec,
				 strerror(errno));
	rc = connect(fd, (struct sockaddr *)&console->unix_addr, sizeof(console->unix_addr));
	rc = rc == 0 ? 0 : errno;
	close(fd);
	if (rc != ECONNREFUSED)
		return error_set(err, EADDRINUSE, "console %s: somebody listens there already",
				 console->spec);
	unlink(console->unix_addr.sun_path);
	return 0;
}

static int unix_bind(struct console *console, int fd, struct error *err)
{
	const struct sockaddr_un *addr = &console->unix_addr;
	struct stat st;

	/* The mode before bind() is the file's; there is no moment in which others may connect. No chmod() of
	 * the name, which may be another file by then. */
	if (fchmod(fd, 0600) != 0 || bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) != 0 ||
	    lstat(addr->sun_path, &st) != 0 || listen(fd, BACKLOG) != 0)
		return error_set(err, errno, "console %s: cannot listen there: %s", console->spec,
				 strerror(errno));
	console->unix_dev = st.st_dev;
	console->unix_ino = st.st_ino;
	return 0;
}

static int unix_open(struct console *console, const char *path, struct error *err)
{
	int fd, rc;

	if (strlen(path) >= sizeof(console->unix_addr.sun_path))
		return error_set(err, ENAMETOOLONG,
				 "console %s: a socket's path has at most %zu characters",
				 console->spec, sizeof(console->unix_addr.sun_path) - 1);
	console->unix_addr.sun_family = AF_UNIX;
	strcpy(console->unix_addr.sun_path, path);
	rc = unix_remove_stale(console, err);
	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_set(err, errno, "console %s: no socket: %s", console->spec,
				 strerror(errno));
	rc = unix_bind(console, fd, err);
	if (rc) {
		close(fd);
		return rc;
	}
	return start_listening(console, fd, err);
}

static void unix_close(struct console *console)
{
	struct stat st;

	close(console->listen_fd);
	if (lstat(console->unix_addr.sun_path, &st) == 0 && st.st_dev == console->unix_dev &&
	    st.st_ino == console->unix_ino)
		unlink(console->unix_addr.sun_path);
}

const struct console_kind console_unix = {
	.name = "unix",
	.has_arg = true,
	.open = unix_open,
	.close = unix_close,
	.ended = client_ended,
	.connect = client_connect,
};
