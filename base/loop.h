/*
 * The event loop: one thread (the one that calls loop_run(), main's) waits in epoll for files,
 * signals, posted events and the virtual clock. No callback blocks. An idle loop uses no CPU.
 *
 * The node structs are embedded by their owners; the loop allocates nothing after loop_create().
 * Adding and removing is allowed from any thread.
 */
#ifndef BASE_LOOP_H
#define BASE_LOOP_H

#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "base/error.h"

struct loop;

int loop_create(struct loop **out, struct error *err);
void loop_destroy(struct loop *loop);
/* Runs callbacks until loop_stop(), at once if that was called before. 0, or -errno if the host refuses
 * epoll. */
int loop_run(struct loop *loop);
void loop_stop(struct loop *loop); /* any thread, signal-safe */

/* A file. fn(arg, EPOLLIN/EPOLLOUT/EPOLLHUP/EPOLLERR bits); level-triggered. */
struct loop_fd {
	struct loop *loop; /* NULL when not added */
	int fd;            /* not owned */
	uint32_t events;
	void (*fn)(void *arg, uint32_t events);
	void *arg;
};

/* `events` may be 0: only HUP and ERR are told then. -EPERM for plain files: those never block. */
int loop_fd_add(struct loop *loop, struct loop_fd *node, int fd, uint32_t events,
		void (*fn)(void *arg, uint32_t events), void *arg);
int loop_fd_set(struct loop_fd *node, uint32_t events);
/* After this the callback is not running and will not run (on the loop thread: will not run again).
 * Not under a lock that the callback takes. No-op when not added. Before the file is closed. */
void loop_fd_del(struct loop_fd *node);

/* Work for the loop thread: fn(arg) runs once after one or more posts. */
struct loop_event {
	struct loop_fd node;
	void (*fn)(void *arg);
	void *arg;
};

int loop_event_init(struct loop *loop, struct loop_event *event, void (*fn)(void *arg), void *arg,
		    struct error *err);
void loop_event_post(struct loop_event *event); /* any thread, any lock, signal-safe */
void loop_event_destroy(struct loop_event *event);

/* A signal, blocked in every thread made after this call and told by signalfd. One owner a signal: the
 * second gets -EBUSY. It stays blocked after loop_signal_del(), so that a late one cannot kill skep while
 * it cleans up. */
struct loop_signal {
	struct loop_fd node;
	int signo;
	void (*fn)(void *arg, int signo);
	void *arg;
};

int loop_signal_add(struct loop *loop, struct loop_signal *node, int signo,
		    void (*fn)(void *arg, int signo), void *arg, struct error *err);
void loop_signal_del(struct loop_signal *node);

#endif
