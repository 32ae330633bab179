#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

#define GUEST_TOKENS 20
#define REFILL_NS 1000000000ull
#define WRITE_WAIT_MS 50
#define LINE_MAX_BYTES 1200 /* room for a whole struct error and a prefix */

static uint64_t monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void log_init(struct log *log, int fd, enum log_level level)
{
	*log = (struct log){.fd = fd, .level = level, .tokens = GUEST_TOKENS};
	log->refilled_ns = monotonic_ns();
	pthread_mutex_init(&log->lock, NULL);
}

void log_set_raw_tty(struct log *log, bool raw)
{
	pthread_mutex_lock(&log->lock);
	log->raw_tty = raw;
	pthread_mutex_unlock(&log->lock);
}

/* One write a line, so that lines of several threads and programs on one terminal stay whole. Who does not read
 * what skep says must not stop the VM by that, and a guest can make it say something: so a write that would block
 * is waited for only so long, and then there is no line. */
static bool write_line(int fd, const char *line, size_t len)
{
	for (int tries = 0; tries < 3; tries++) {
		struct pollfd p = {.fd = fd, .events = POLLOUT};

		if (poll(&p, 1, WRITE_WAIT_MS) == 0)
			return false;
		if (write(fd, line, len) >= 0)
			return true;
		if (errno != EINTR && errno != EAGAIN)
			return false;
	}
	return false;
}

/* Under the lock. */
static void log_locked(struct log *log, uint64_t left_out, const char *fmt, va_list ap)
{
	char line[LINE_MAX_BYTES] = "skep: ";
	const size_t start = strlen(line);
	const size_t room = sizeof(line) - 64; /* what is added below */
	size_t len;

	vsnprintf(line + start, room - start, fmt, ap);
	len = strlen(line);
	/* Texts may quote what a guest or a file holds: no escape sequence gets to the terminal. */
	for (size_t i = start; i < len; i++)
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	if (left_out)
		len += (size_t)snprintf(line + len, 62, " (%llu lines before this one left out)",
					(unsigned long long)left_out);
	if (log->raw_tty)
		line[len++] = '\r';
	line[len++] = '\n';
	log->suppressed += !write_line(log->fd, line, len);
}

void log_at(struct log *log, enum log_level level, const char *fmt, ...)
{
	int saved = errno;
	va_list ap;

	if (level > log->level)
		return;
	va_start(ap, fmt);
	pthread_mutex_lock(&log->lock);
	log_locked(log, 0, fmt, ap);
	pthread_mutex_unlock(&log->lock);
	va_end(ap);
	errno = saved;
}

/* Under the lock. */
static bool take_token(struct log *log)
{
	uint64_t now = monotonic_ns();
	uint64_t fresh = (now - log->refilled_ns) / REFILL_NS;

	log->refilled_ns += fresh * REFILL_NS;
	if (fresh >= GUEST_TOKENS - log->tokens)
		log->tokens = GUEST_TOKENS;
	else
		log->tokens += (unsigned)fresh;
	if (!log->tokens)
		return false;
	log->tokens--;
	return true;
}

void log_guest(struct log *log, enum log_level level, const char *fmt, ...)
{
	int saved = errno;
	va_list ap;

	if (level > log->level)
		return;
	va_start(ap, fmt);
	pthread_mutex_lock(&log->lock);
	if (take_token(log)) {
		uint64_t left_out = log->suppressed;

		log->suppressed = 0;
		log_locked(log, left_out, fmt, ap);
	} else {
		log->suppressed++;
	}
	pthread_mutex_unlock(&log->lock);
	va_end(ap);
	errno = saved;
}
