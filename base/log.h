/*
 * Messages to the person at the terminal, one line each on stderr: "skep: text".
 *
 * Any thread may log. While the terminal is raw (see backend/console) lines end in CR LF.
 * What a guest can provoke goes through log_guest(), which a guest cannot use to flood the host: a
 * bucket of 20 lines refilled at one a second, with the count of those left out. A line that cannot be
 * written within a moment, since nobody reads, is left out too.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

struct log {
	int fd;                /* where the lines go; not owned */
	enum log_level level;  /* what is less important than this is dropped */
	bool raw_tty;          /* lines end in CR LF; written under `lock` */
	pthread_mutex_t lock;
	/* the guest's bucket, under `lock` */
	unsigned tokens;
	uint64_t refilled_ns;  /* CLOCK_MONOTONIC */
	uint64_t suppressed;
};

void log_init(struct log *log, int fd, enum log_level level);
void log_set_raw_tty(struct log *log, bool raw);

void log_at(struct log *log, enum log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* As log_at(), for what the guest did; limited in rate. */
void log_guest(struct log *log, enum log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#define log_error(log, ...) log_at(log, LOG_ERROR, __VA_ARGS__)
#define log_warn(log, ...) log_at(log, LOG_WARN, __VA_ARGS__)
#define log_info(log, ...) log_at(log, LOG_INFO, __VA_ARGS__)

#endif
