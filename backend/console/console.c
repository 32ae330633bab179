/*
 * Consoles: the queues between a device and the host, and the choice of a kind by name.
 * See console.h for the contract and internal.h for how it works.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "backend/console/internal.h"

#define CLOSE_TIMEOUT_MS 2000
#define CTRL_A 1

enum watched { WATCHED_RX, WATCHED_TX, WATCHED_LISTEN, WATCHED_KINDS };

static uint32_t queue_used(const struct console_queue *queue)
{
	return queue->head - queue->tail;
}

static uint32_t queue_room(const struct console_queue *queue)
{
	return CONSOLE_QUEUE - queue_used(queue);
}

/* The longest piece at the tail that lies in one place. */
static size_t queue_piece(const struct console_queue *queue, const uint8_t **bytes)
{
	uint32_t at = queue->tail % CONSOLE_QUEUE, used = queue_used(queue);

	*bytes = queue->bytes + at;
	return used < CONSOLE_QUEUE - at ? used : CONSOLE_QUEUE - at;
}

static size_t queue_put(struct console_queue *queue, const uint8_t *bytes, size_t len)
{
	size_t done = 0, room = queue_room(queue);

	if (len > room)
		len = room;
	while (done < len) {
		uint32_t at = queue->head % CONSOLE_QUEUE;
		size_t n = len - done < CONSOLE_QUEUE - at ? len - done : CONSOLE_QUEUE - at;

		memcpy(queue->bytes + at, bytes + done, n);
		queue->head += (uint32_t)n;
		done += n;
	}
	return len;
}

static size_t queue_take(struct console_queue *queue, uint8_t *bytes, size_t len)
{
	size_t done = 0;

	while (done < len) {
		const uint8_t *piece;
		size_t n = queue_piece(queue, &piece);

		if (n == 0)
			break;
		if (n > len - done)
			n = len - done;
		memcpy(bytes + done, piece, n);
		queue->tail += (uint32_t)n;
		done += n;
	}
	return done;
}

static bool fd_poll(int fd, short events, int timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = events};

	return poll(&p, 1, timeout_ms) > 0;
}

/* > 0: bytes; 0: the end; -EAGAIN or another -errno. */
static ssize_t channel_read(struct channel *channel, void *bytes, size_t len)
{
	ssize_t n;

	if (channel->blocking && !fd_poll(channel->fd, POLLIN, 0))
		return -EAGAIN;
	do {
		n = channel->socket ? recv(channel->fd, bytes, len, MSG_DONTWAIT)
				    : read(channel->fd, bytes, len);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

static ssize_t channel_write(struct channel *channel, const void *bytes, size_t len)
{
	ssize_t n;

	if (channel->blocking) {
		if (!fd_poll(channel->fd, POLLOUT, 0))
			return -EAGAIN;
		if (len > channel->chunk)
			len = channel->chunk;
	}
	do {
		n = channel->socket ? send(channel->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL)
				    : write(channel->fd, bytes, len);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

static int watch(struct console *console, int fd, uint32_t events, enum watched what)
{
	struct epoll_event event = {.events = events | EPOLLET, .data.u32 = what};

	return epoll_ctl(console->epfd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

int channel_open(struct console *console, struct channel *channel, int fd, uint32_t events,
		 struct error *err)
{
	int rc = watch(console, fd, events, channel == &console->rx ? WATCHED_RX : WATCHED_TX);

	channel->fd = fd;
	channel->ready = true;
	if (rc == 0 || rc == -EPERM)
		return 0;
	channel_close(console, channel);
	return error_set(err, -rc, "console %s: cannot be waited for: %s", console->spec,
			 strerror(-rc));
}

void channel_close(struct console *console, struct channel *channel)
{
	if (channel->fd >= 0) {
		/* The other direction may be the same open file: close() alone would not take it out. */
		epoll_ctl(console->epfd, EPOLL_CTL_DEL, channel->fd, NULL);
		close(channel->fd);
	}
	channel->fd = -1;
	channel->ready = false;
}

int console_listen(struct console *console, bool on)
{
	int rc = 0;

	if (on && !console->listening)
		rc = watch(console, console->listen_fd, EPOLLIN, WATCHED_LISTEN);
	else if (!on && console->listening)
		epoll_ctl(console->epfd, EPOLL_CTL_DEL, console->listen_fd, NULL);
	console->listening = on && rc == 0;
	return rc;
}

static void channel_ended(struct console *console, struct channel *channel, int rc)
{
	channel->ready = false;
	if (console->kind->ended) {
		console->kind->ended(console, channel, rc);
		return;
	}
	if (channel == &console->tx) {
		log_warn(console->log, "console %s: %s; output is dropped from now on",
			 console->spec, strerror(-rc));
		console_set_connected(console, false);
	}
	channel_close(console, channel);
}

void console_set_connected(struct console *console, bool connected)
{
	pthread_mutex_lock(&console->lock);
	console->connected = connected;
	console->out.tail = console->out.head;
	pthread_mutex_unlock(&console->lock);
}

static void escape_help(struct console *console)
{
	log_warn(
		console->log,
		"^A x quits, ^A c opens the monitor, ^A ^A sends ^A to the guest, ^A h shows this");
}

/* Takes the escapes out of what was typed; returns what is left, never more than len. */
static size_t escape_filter(struct console *console, uint8_t *bytes, size_t len)
{
	size_t kept = 0;

	for (size_t i = 0; i < len; i++) {
		uint8_t c = bytes[i];

		if (!console->escape_seen) {
			if (c == CTRL_A)
				console->escape_seen = true;
			else if (console->monitor.on)
				monitor_key(console, c);
			else
				bytes[kept++] = c;
			continue;
		}
		console->escape_seen = false;
		if (c == CTRL_A)
			bytes[kept++] = c;
		else if ((c == 'x' || c == 'X') && console->escape.quit)
			console->escape.quit(console->escape.arg);
		else if (c == 'c' || c == 'C')
			monitor_toggle(console);
		else
			escape_help(console);
	}
	return kept;
}

/* Host to queue; true if there is something new for the device. At most about a queue at a time, so that
 * a fast sender does not keep the loop from its other work. */
static bool pump_in(struct console *console)
{
	uint8_t bytes[4096];
	bool got = false;

	for (unsigned turn = 0; console->rx.ready; turn++) {
		size_t room;
		ssize_t n;

		pthread_mutex_lock(&console->lock);
		room = queue_room(&console->in);
		if (turn == CONSOLE_QUEUE / sizeof(bytes))
			room = 0;
		console->in_full = room == 0;
		pthread_mutex_unlock(&console->lock);
		if (room == 0) {
			if (turn)
				loop_event_post(&console->kick);
			break;
		}
		if (console->is_terminal && !terminal_ready(console)) {
			console->rx.ready = false;
			break;
		}
		n = channel_read(&console->rx, bytes, room < sizeof(bytes) ? room : sizeof(bytes));
		if (n == -EAGAIN) {
			console->rx.ready = false;
		} else if (n <= 0) {
			channel_ended(console, &console->rx, (int)n);
		} else {
			size_t kept = (size_t)n;

			if (console->escapes)
				kept = escape_filter(console, bytes, kept);
			pthread_mutex_lock(&console->lock);
			queue_put(&console->in, bytes, kept);
			pthread_mutex_unlock(&console->lock);
			got |= kept > 0;
		}
	}
	return got;
}

/* The longest piece of output that lies in one place: what the monitor says goes before what the guest does. */
static size_t out_piece(struct console *console, const uint8_t **bytes)
{
	const struct monitor *monitor = &console->monitor;
	size_t len = monitor->text_len - monitor->text_done;

	if (len) {
		*bytes = (const uint8_t *)monitor->text + monitor->text_done;
		return len;
	}
	pthread_mutex_lock(&console->lock);
	len = queue_piece(&console->out, bytes);
	pthread_mutex_unlock(&console->lock);
	return len;
}

static void out_done(struct console *console, size_t n)
{
	struct monitor *monitor = &console->monitor;

	if (monitor->text_len > monitor->text_done) {
		monitor->text_done += n;
		return;
	}
	pthread_mutex_lock(&console->lock);
	console->out.tail += (uint32_t)n;
	pthread_mutex_unlock(&console->lock);
}

/* Queue to host. */
static void pump_out(struct console *console)
{
	for (unsigned turn = 0; console->tx.ready; turn++) {
		const uint8_t *piece;
		size_t len = out_piece(console, &piece);
		ssize_t n;

		if (len == 0)
			break;
		if (turn == 64) {
			loop_event_post(&console->kick);
			break;
		}
		if (console->is_pty && pty_hung_up(console->tx.fd)) {
			console_set_connected(console, true);
			break;
		}
		/* Nobody but this thread moves the tail, so the piece stays where it is. */
		n = channel_write(&console->tx, piece, len);
		if (n == -EAGAIN) {
			console->tx.ready = false;
		} else if (n < 0) {
			channel_ended(console, &console->tx, (int)n);
		} else {
			out_done(console, (size_t)n);
		}
	}
}

void console_pump(struct console *console)
{
	bool readable, writable;

	if (console->closing)
		return;
	readable = pump_in(console);
	pump_out(console);
	pthread_mutex_lock(&console->lock);
	writable = console->refused && queue_room(&console->out) >= CONSOLE_QUEUE / 2;
	if (writable)
		console->refused = false;
	pthread_mutex_unlock(&console->lock);

	if (readable && console->events.on_readable)
		console->events.on_readable(console->events.arg);
	if (writable && console->events.on_writable)
		console->events.on_writable(console->events.arg);
}

static void host_event(void *arg, uint32_t events)
{
	struct epoll_event ready[WATCHED_KINDS];
	struct console *console = arg;
	bool connect = false;
	int n;

	(void)events;
	if (console->closing)
		return;
	n = epoll_wait(console->epfd, ready, WATCHED_KINDS, 0);
	for (int i = 0; i < n; i++) {
		if (ready[i].data.u32 == WATCHED_RX)
			console->rx.ready = console->rx.fd >= 0;
		else if (ready[i].data.u32 == WATCHED_TX)
			console->tx.ready = console->tx.fd >= 0;
		else
			connect = true;
	}
	if (connect && console->listening)
		console->kind->connect(console);
	console_pump(console);
}

static void kick_event(void *arg)
{
	struct console *console = arg;

	pthread_mutex_lock(&console->lock);
	console->kicked = false;
	pthread_mutex_unlock(&console->lock);
	console_pump(console);
}

/* Under the console's lock. */
static void kick(struct console *console)
{
	if (!console->kicked) {
		console->kicked = true;
		loop_event_post(&console->kick);
	}
}

size_t console_write(struct console *console, const void *bytes, size_t len)
{
	size_t taken = len;

	pthread_mutex_lock(&console->lock);
	if (console->connected && len) {
		taken = queue_put(&console->out, bytes, len);
		if (taken < len)
			console->refused = true;
		kick(console);
	}
	pthread_mutex_unlock(&console->lock);
	return taken;
}

size_t console_read(struct console *console, void *bytes, size_t len)
{
	size_t n;

	pthread_mutex_lock(&console->lock);
	n = queue_take(&console->in, bytes, len);
	if (console->in_full && queue_room(&console->in) >= CONSOLE_QUEUE / 2) {
		console->in_full = false;
		kick(console);
	}
	pthread_mutex_unlock(&console->lock);
	return n;
}

bool console_readable(struct console *console)
{
	bool readable;

	pthread_mutex_lock(&console->lock);
	readable = queue_used(&console->in) > 0;
	pthread_mutex_unlock(&console->lock);
	return readable;
}

static int file_open(struct console *console, const char *path, struct error *err)
{
	/* O_NONBLOCK is for FIFOs; without a reader those fail with ENXIO instead of hanging. */
	int fd =
		open(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);

	if (fd < 0)
		return error_set(err, errno, "console %s: cannot be opened for writing: %s",
				 console->spec, strerror(errno));
	console->connected = true;
	return channel_open(console, &console->tx, fd, EPOLLOUT, err);
}

const struct console_kind console_file = {.name = "file", .has_arg = true, .open = file_open};

static int null_open(struct console *console, const char *arg, struct error *err)
{
	(void)console;
	(void)arg;
	(void)err;
	return 0;
}

static const struct console_kind console_null = {.name = "null", .open = null_open};

static const struct console_kind *const kinds[] = {
	&console_stdio, &console_tty, &console_file, &console_tcp,
	&console_unix,	&console_pty, &console_null,
};

/* NAME, NAME=ARG, NAME:ARG or a path. */
static const struct console_kind *kind_find(const char *spec, const char **arg)
{
	size_t len = strcspn(spec, "=:");

	*arg = spec;
	if (strchr(spec, '/') && (spec[0] == '/' || spec[0] == '.'))
		return &console_tty;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		const struct console_kind *kind = kinds[i];

		if (strlen(kind->name) != len || strncmp(kind->name, spec, len) != 0 ||
		    kind->has_arg != (spec[len] != '\0'))
			continue;
		if (kind->has_arg && spec[len + 1] == '\0')
			continue;
		*arg = spec + len + 1;
		return kind;
	}
	return NULL;
}

static struct console *console_alloc(const char *spec)
{
	struct console *console = calloc(1, sizeof(*console));

	if (!console)
		return NULL;
	console->spec = strdup(spec);
	if (!console->spec) {
		free(console);
		return NULL;
	}
	pthread_mutex_init(&console->lock, NULL);
	console->rx.fd = console->tx.fd = console->listen_fd = console->epfd = -1;
	return console;
}

static void console_free(struct console *console)
{
	channel_close(console, &console->rx);
	channel_close(console, &console->tx);
	if (console->epfd >= 0)
		close(console->epfd);
	pthread_mutex_destroy(&console->lock);
	free(console->monitor.text);
	free(console->spec);
	free(console);
}

static int console_start(struct console *console, const char *arg, struct error *err)
{
	int rc = loop_event_init(console->loop, &console->kick, kick_event, console, err);

	if (rc)
		return rc;
	console->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (console->epfd < 0) {
		rc = error_set(err, errno, "console %s: no epoll: %s", console->spec,
			       strerror(errno));
		goto out_kick;
	}
	rc = console->kind->open(console, arg, err);
	if (rc)
		goto out_kick;
	rc = loop_fd_add(console->loop, &console->node, console->epfd, EPOLLIN, host_event,
			 console);
	if (rc) {
		error_set(err, -rc, "console %s: cannot be waited for: %s", console->spec,
			  strerror(-rc));
		if (console->kind->close)
			console->kind->close(console);
		goto out_kick;
	}
	/* Files that epoll refuses never give an edge: begin to read without one. */
	loop_event_post(&console->kick);
	return 0;
out_kick:
	loop_event_destroy(&console->kick);
	return rc;
}

int console_open(struct console **out, const char *spec, struct loop *loop, struct log *log,
		 const struct console_events *events, const struct console_escape *escape,
		 struct error *err)
{
	const char *arg;
	const struct console_kind *kind = kind_find(spec, &arg);
	struct console *console;
	int rc;

	if (!kind)
		return error_set(
			err, EINVAL,
			"console \"%s\" is not one of stdio, tty=PATH or /PATH, file=PATH, "
			"tcp=[ADDR:]PORT, unix=PATH, pty, null",
			spec);
	console = console_alloc(spec);
	if (!console)
		return error_set(err, ENOMEM, "out of memory for a console");
	console->kind = kind;
	console->loop = loop;
	console->log = log;
	console->events = *events;
	if (escape) {
		console->escape = *escape;
		console->escapes = kind == &console_stdio;
	}
	rc = console_start(console, arg, err);
	if (rc) {
		console_free(console);
		return rc;
	}
	*out = console;
	return 0;
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void flush(struct console *console)
{
	int64_t end = now_ms() + CLOSE_TIMEOUT_MS;

	while (console->tx.fd >= 0) {
		const uint8_t *piece;
		size_t len = out_piece(console, &piece);
		ssize_t n;

		if (len == 0 || (console->is_pty && pty_hung_up(console->tx.fd)))
			return;
		n = channel_write(&console->tx, piece, len);
		if (n >= 0) {
			out_done(console, (size_t)n);
		} else if (n == -EAGAIN) {
			int64_t left = end - now_ms();

			if (left <= 0 || !fd_poll(console->tx.fd, POLLOUT, (int)left))
				return;
		} else {
			return;
		}
	}
}

void console_close(struct console *console)
{
	console->closing = true;
	/* What is under way ends, what comes later sees `closing`; only then nobody posts a kick any more. */
	loop_fd_del(&console->node);
	loop_event_destroy(&console->kick);
	flush(console);
	if (console->kind->close)
		console->kind->close(console);
	console_free(console);
}
