#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/loop.h"

#define BATCH 64

struct loop {
	int epfd;
	_Atomic bool stop;
	struct loop_event stop_event; /* only wakes */

	pthread_mutex_t lock;
	/* under lock */
	pthread_cond_t left; /* a callback has returned */
	pthread_t thread;    /* the one in loop_run(), while `running` */
	bool running;
	struct loop_fd *current; /* whose callback runs */
	struct epoll_event batch[BATCH];
	int count, next;  /* batch[next] to batch[count - 1] wait for their turn */
	sigset_t signals; /* that have an owner */
};

static void stop_woken(void *arg)
{
	(void)arg;
}

int loop_create(struct loop **out, struct error *err)
{
	struct loop *loop = calloc(1, sizeof(*loop));
	int rc;

	if (!loop)
		return error_set(err, ENOMEM, "no memory for the event loop");
	loop->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epfd < 0) {
		rc = error_set(err, errno, "cannot create the event loop: epoll_create1: %s",
			       strerror(errno));
		free(loop);
		return rc;
	}
	pthread_mutex_init(&loop->lock, NULL);
	pthread_cond_init(&loop->left, NULL);
	sigemptyset(&loop->signals);
	rc = loop_event_init(loop, &loop->stop_event, stop_woken, NULL, err);
	if (rc) {
		loop_destroy(loop);
		return rc;
	}
	*out = loop;
	return 0;
}

void loop_destroy(struct loop *loop)
{
	if (!loop)
		return;
	loop_event_destroy(&loop->stop_event);
	close(loop->epfd);
	pthread_cond_destroy(&loop->left);
	pthread_mutex_destroy(&loop->lock);
	free(loop);
}

void loop_stop(struct loop *loop)
{
	atomic_store(&loop->stop, true);
	loop_event_post(&loop->stop_event);
}

/* Runs the callback of one event. Called and left with the lock held. The node may be gone after it. */
static void dispatch(struct loop *loop, const struct epoll_event *event)
{
	struct loop_fd *node = event->data.ptr;
	uint32_t events;
	void (*fn)(void *arg, uint32_t events);
	void *arg;

	if (!node)
		return; /* removed since the batch was fetched */
	events = event->events & (node->events | EPOLLHUP | EPOLLERR);
	if (!events)
		return;
	fn = node->fn;
	arg = node->arg;
	loop->current = node;
	pthread_mutex_unlock(&loop->lock);
	fn(arg, events);
	pthread_mutex_lock(&loop->lock);
	loop->current = NULL;
	pthread_cond_broadcast(&loop->left);
}

/*
 * Fetches and handles what is ready. Fetching is done under the lock, so that there is no moment in which
 * loop_fd_del() cannot see that its node has been fetched; waiting is done before, without it.
 */
static int run_batch(struct loop *loop)
{
	int rc = 0;

	pthread_mutex_lock(&loop->lock);
	loop->count = epoll_wait(loop->epfd, loop->batch, BATCH, 0);
	if (loop->count < 0 && errno != EINTR)
		rc = -errno;
	for (loop->next = 0; loop->next < loop->count && !atomic_load(&loop->stop);)
		dispatch(loop, &loop->batch[loop->next++]);
	loop->count = 0;
	pthread_mutex_unlock(&loop->lock);
	return rc;
}

int loop_run(struct loop *loop)
{
	struct epoll_event first;
	int rc = 0;

	pthread_mutex_lock(&loop->lock);
	loop->thread = pthread_self();
	loop->running = true;
	pthread_mutex_unlock(&loop->lock);
	while (!rc && !atomic_load(&loop->stop)) {
		if (epoll_wait(loop->epfd, &first, 1, -1) >= 0)
			rc = run_batch(loop);
		else if (errno != EINTR)
			rc = -errno;
	}
	pthread_mutex_lock(&loop->lock);
	loop->running = false;
	pthread_mutex_unlock(&loop->lock);
	atomic_store(&loop->stop, false);
	return rc;
}

int loop_fd_add(struct loop *loop, struct loop_fd *node, int fd, uint32_t events,
		void (*fn)(void *arg, uint32_t events), void *arg)
{
	struct epoll_event event = {.events = events, .data.ptr = node};
	int rc = 0;

	pthread_mutex_lock(&loop->lock);
	*node = (struct loop_fd){.loop = loop, .fd = fd, .events = events, .fn = fn, .arg = arg};
	if (epoll_ctl(loop->epfd, EPOLL_CTL_ADD, fd, &event) < 0) {
		rc = -errno;
		node->loop = NULL;
	}
	pthread_mutex_unlock(&loop->lock);
	return rc;
}

int loop_fd_set(struct loop_fd *node, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = node};
	struct loop *loop = node->loop;
	int rc = 0;

	if (!loop)
		return -EINVAL;
	pthread_mutex_lock(&loop->lock);
	if (node->events != events) {
		if (epoll_ctl(loop->epfd, EPOLL_CTL_MOD, node->fd, &event) < 0)
			rc = -errno;
		else
			node->events = events;
	}
	pthread_mutex_unlock(&loop->lock);
	return rc;
}

void loop_fd_del(struct loop_fd *node)
{
	struct loop *loop = node->loop;

	if (!loop)
		return;
	pthread_mutex_lock(&loop->lock);
	epoll_ctl(loop->epfd, EPOLL_CTL_DEL, node->fd, NULL);
	for (int i = loop->next; i < loop->count; i++)
		if (loop->batch[i].data.ptr == node)
			loop->batch[i].data.ptr = NULL;
	node->loop = NULL;
	while (loop->current == node && loop->running &&
	       !pthread_equal(loop->thread, pthread_self()))
		pthread_cond_wait(&loop->left, &loop->lock);
	pthread_mutex_unlock(&loop->lock);
}

static void event_ready(void *arg, uint32_t events)
{
	struct loop_event *event = arg;
	uint64_t posts;

	(void)events;
	if (read(event->node.fd, &posts, sizeof(posts)) == sizeof(posts))
		event->fn(event->arg);
}

int loop_event_init(struct loop *loop, struct loop_event *event, void (*fn)(void *arg), void *arg,
		    struct error *err)
{
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), rc;

	*event = (struct loop_event){.fn = fn, .arg = arg};
	if (fd < 0)
		return error_set(err, errno, "cannot create an event: eventfd: %s",
				 strerror(errno));
	rc = loop_fd_add(loop, &event->node, fd, EPOLLIN, event_ready, event);
	if (rc) {
		close(fd);
		return error_set(err, -rc, "cannot wait for an event: epoll_ctl: %s",
				 strerror(-rc));
	}
	return 0;
}

void loop_event_post(struct loop_event *event)
{
	static const uint64_t one = 1;
	int saved = errno;

	/* It can only fail when 2^64 - 2 posts are already waiting. */
	while (write(event->node.fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	errno = saved;
}

void loop_event_destroy(struct loop_event *event)
{
	if (!event->node.loop)
		return;
	loop_fd_del(&event->node);
	close(event->node.fd);
}

static void signal_ready(void *arg, uint32_t events)
{
	struct loop_signal *node = arg;
	struct signalfd_siginfo info;

	(void)events;
	if (read(node->node.fd, &info, sizeof(info)) == sizeof(info))
		node->fn(node->arg, (int)info.ssi_signo);
}

/* One owner a signal. */
static bool signal_claim(struct loop *loop, int signo)
{
	bool free;

	pthread_mutex_lock(&loop->lock);
	free = sigismember(&loop->signals, signo) == 0;
	if (free)
		sigaddset(&loop->signals, signo);
	pthread_mutex_unlock(&loop->lock);
	return free;
}

static void signal_release(struct loop *loop, int signo)
{
	pthread_mutex_lock(&loop->lock);
	sigdelset(&loop->signals, signo);
	pthread_mutex_unlock(&loop->lock);
}

int loop_signal_add(struct loop *loop, struct loop_signal *node, int signo,
		    void (*fn)(void *arg, int signo), void *arg, struct error *err)
{
	sigset_t set;
	int fd, rc;

	*node = (struct loop_signal){.signo = signo, .fn = fn, .arg = arg};
	if (!signal_claim(loop, signo))
		return error_set(err, EBUSY, "signal %d (%s) already has a handler", signo,
				 strsignal(signo));
	sigemptyset(&set);
	sigaddset(&set, signo);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (fd < 0) {
		rc = error_set(err, errno, "cannot wait for signal %d: signalfd: %s", signo,
			       strerror(errno));
		goto fail;
	}
	rc = loop_fd_add(loop, &node->node, fd, EPOLLIN, signal_ready, node);
	if (!rc)
		return 0;
	close(fd);
	error_set(err, -rc, "cannot wait for signal %d: epoll_ctl: %s", signo, strerror(-rc));
fail:
	signal_release(loop, signo);
	return rc;
}

void loop_signal_del(struct loop_signal *node)
{
	struct loop *loop = node->node.loop;

	if (!loop)
		return;
	loop_fd_del(&node->node);
	close(node->node.fd);
	signal_release(loop, node->signo);
}
