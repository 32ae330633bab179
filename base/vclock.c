#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/loop.h"
#include "base/vclock.h"

/* Callbacks in a row before the loop looks at its files again: a guest may set periods as short as it
 * likes. */
#define FIRE_MAX 64
/* The farthest that the timerfd is set ahead. */
#define SLEEP_MAX_NS (3600 * NS_PER_SEC)
#define NEVER UINT64_MAX

struct vclock {
	/* The time: `value` while paused, CLOCK_MONOTONIC + value (modulo 2^64) while running. Writers hold
	 * the lock and make `seq` odd meanwhile; readers try without it. */
	_Atomic uint32_t seq;
	_Atomic bool paused;
	_Atomic uint64_t value;

	struct loop_fd node; /* the timerfd */

	pthread_mutex_t lock;
	/* under lock */
	pthread_cond_t done;	/* a callback has returned */
	struct vtimer *root;	/* a pairing heap: nothing to allocate, so arming cannot fail */
	uint64_t order;		/* of arming, decides between equal deadlines */
	uint64_t programmed;	/* the virtual time the timerfd is set to, or NEVER */
	struct vtimer *running; /* whose callback runs, on thread `runner` */
	pthread_t runner;
};

static uint64_t monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* Under the lock. */
static uint64_t now_locked(struct vclock *clock)
{
	return atomic_load(&clock->paused) ? atomic_load(&clock->value)
					   : atomic_load(&clock->value) + monotonic_ns();
}

uint64_t vclock_now(struct vclock *clock)
{
	uint32_t seq = atomic_load(&clock->seq);
	uint64_t now;

	/* The host's clock is read between the two looks at seq: so a pause that stops the time at T cannot
	 * be overtaken by a reader that still sees the clock run at T + 1. */
	now = now_locked(clock);
	if (!(seq & 1) && atomic_load(&clock->seq) == seq)
		return now;
	pthread_mutex_lock(&clock->lock);
	now = now_locked(clock);
	pthread_mutex_unlock(&clock->lock);
	return now;
}

bool vclock_paused(struct vclock *clock)
{
	return atomic_load(&clock->paused);
}

/* Under the lock. */
static void time_set(struct vclock *clock, bool paused, uint64_t now)
{
	atomic_fetch_add(&clock->seq, 1);
	atomic_store(&clock->paused, paused);
	atomic_store(&clock->value, paused ? now : now - monotonic_ns());
	atomic_fetch_add(&clock->seq, 1);
}

static bool before(const struct vtimer *a, const struct vtimer *b)
{
	return a->deadline != b->deadline ? a->deadline < b->deadline : a->order < b->order;
}

/* Joins two heaps; either may be NULL. */
static struct vtimer *heap_meld(struct vtimer *a, struct vtimer *b)
{
	if (!a || !b)
		return a ? a : b;
	if (before(b, a)) {
		struct vtimer *swap = a;

		a = b;
		b = swap;
	}
	b->prev = a;
	b->next = a->child;
	if (b->next)
		b->next->prev = b;
	a->child = b;
	return a;
}

/* One heap out of a list of siblings: in pairs from the left, then all from the right. */
static struct vtimer *heap_merge(struct vtimer *list)
{
	struct vtimer *pairs = NULL, *heap = NULL;

	while (list) {
		struct vtimer *a = list, *b = list->next;

		list = b ? b->next : NULL;
		a->next = a->prev = NULL;
		if (b)
			b->next = b->prev = NULL;
		a = heap_meld(a, b);
		a->next = pairs;
		pairs = a;
	}
	while (pairs) {
		struct vtimer *next = pairs->next;

		pairs->next = NULL;
		heap = heap_meld(heap, pairs);
		pairs = next;
	}
	return heap;
}

/* Under the lock. No-op when not armed. */
static void heap_remove(struct vclock *clock, struct vtimer *timer)
{
	struct vtimer *below;

	if (!timer->armed)
		return;
	below = heap_merge(timer->child);
	if (timer == clock->root) {
		clock->root = below;
	} else {
		if (timer->prev->child == timer)
			timer->prev->child = timer->next;
		else
			timer->prev->next = timer->next;
		if (timer->next)
			timer->next->prev = timer->prev;
		clock->root = heap_meld(clock->root, below);
	}
	timer->child = timer->next = timer->prev = NULL;
	timer->armed = false;
}

/* Sets the timerfd if it would go off too late. Too early is put right when it goes off, which spares a
 * system call for most of the timers that are re-armed again and again. Under the lock. */
static void clock_program(struct vclock *clock)
{
	struct itimerspec at = {0};
	uint64_t now, host;

	if (!clock->root || atomic_load(&clock->paused) ||
	    clock->root->deadline >= clock->programmed)
		return;
	host = monotonic_ns();
	now = atomic_load(&clock->value) + host;
	clock->programmed = clock->root->deadline;
	if (clock->programmed > now) {
		uint64_t wait = clock->programmed - now;

		host += wait < SLEEP_MAX_NS ? wait : SLEEP_MAX_NS;
	}
	at.it_value.tv_sec = (time_t)(host / NS_PER_SEC);
	at.it_value.tv_nsec = (long)(host % NS_PER_SEC);
	timerfd_settime(clock->node.fd, TFD_TIMER_ABSTIME, &at, NULL);
}

/* Takes the first timer out of the heap and calls it. Called and left with the lock held. */
static void fire_first(struct vclock *clock)
{
	struct vtimer *timer = clock->root;
	void (*fn)(void *arg) = timer->fn;
	void *arg = timer->arg;

	heap_remove(clock, timer);
	clock->running = timer;
	clock->runner = pthread_self();
	pthread_mutex_unlock(&clock->lock);
	fn(arg);
	pthread_mutex_lock(&clock->lock);
	clock->running = NULL;
	pthread_cond_broadcast(&clock->done);
}

static void timerfd_ready(void *arg, uint32_t events)
{
	struct vclock *clock = arg;
	uint64_t expirations;

	(void)events;
	/* Nothing there: it was set anew meanwhile. What is due now is due all the same. */
	if (read(clock->node.fd, &expirations, sizeof(expirations)) < 0 && errno != EAGAIN)
		return;
	pthread_mutex_lock(&clock->lock);
	for (int i = 0; i < FIRE_MAX; i++) {
		if (atomic_load(&clock->paused) || !clock->root ||
		    clock->root->deadline > now_locked(clock))
			break;
		fire_first(clock);
	}
	clock->programmed = NEVER;
	clock_program(clock);
	pthread_mutex_unlock(&clock->lock);
}

int vclock_create(struct vclock **out, struct loop *loop, struct error *err)
{
	struct vclock *clock = calloc(1, sizeof(*clock));
	int fd, rc;

	if (!clock)
		return error_set(err, ENOMEM, "no memory for the virtual clock");
	fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (fd < 0) {
		rc = error_set(err, errno, "cannot create the virtual clock: timerfd_create: %s",
			       strerror(errno));
		free(clock);
		return rc;
	}
	pthread_mutex_init(&clock->lock, NULL);
	pthread_cond_init(&clock->done, NULL);
	atomic_store(&clock->paused, true);
	clock->programmed = NEVER;
	rc = loop_fd_add(loop, &clock->node, fd, EPOLLIN, timerfd_ready, clock);
	if (rc) {
		close(fd);
		vclock_destroy(clock);
		return error_set(err, -rc, "cannot create the virtual clock: epoll_ctl: %s",
				 strerror(-rc));
	}
	*out = clock;
	return 0;
}

void vclock_destroy(struct vclock *clock)
{
	if (!clock)
		return;
	if (clock->node.loop) {
		loop_fd_del(&clock->node);
		close(clock->node.fd);
	}
	pthread_cond_destroy(&clock->done);
	pthread_mutex_destroy(&clock->lock);
	free(clock);
}

void vclock_pause(struct vclock *clock)
{
	const struct itimerspec off = {0};

	pthread_mutex_lock(&clock->lock);
	if (!atomic_load(&clock->paused)) {
		/* seq is made odd before the clock is read, see vclock_now() */
		atomic_fetch_add(&clock->seq, 1);
		atomic_store(&clock->value, now_locked(clock));
		atomic_store(&clock->paused, true);
		atomic_fetch_add(&clock->seq, 1);
		timerfd_settime(clock->node.fd, 0, &off, NULL);
		clock->programmed = NEVER;
	}
	pthread_mutex_unlock(&clock->lock);
}

void vclock_resume(struct vclock *clock)
{
	pthread_mutex_lock(&clock->lock);
	if (atomic_load(&clock->paused)) {
		time_set(clock, false, atomic_load(&clock->value));
		clock_program(clock);
	}
	pthread_mutex_unlock(&clock->lock);
}

void vclock_set(struct vclock *clock, uint64_t now_ns)
{
	pthread_mutex_lock(&clock->lock);
	if (atomic_load(&clock->paused))
		time_set(clock, true, now_ns);
	pthread_mutex_unlock(&clock->lock);
}

void vclock_advance(struct vclock *clock, uint64_t until_ns)
{
	pthread_mutex_lock(&clock->lock);
	while (clock->root && clock->root->deadline <= until_ns) {
		if (clock->root->deadline > now_locked(clock))
			time_set(clock, true, clock->root->deadline);
		fire_first(clock);
	}
	if (until_ns > now_locked(clock))
		time_set(clock, true, until_ns);
	pthread_mutex_unlock(&clock->lock);
}

void vtimer_init(struct vtimer *timer, struct vclock *clock, void (*fn)(void *arg), void *arg)
{
	*timer = (struct vtimer){.clock = clock, .fn = fn, .arg = arg};
}

void vtimer_arm(struct vtimer *timer, uint64_t deadline_ns)
{
	struct vclock *clock = timer->clock;

	pthread_mutex_lock(&clock->lock);
	heap_remove(clock, timer);
	if (!timer->closing) {
		timer->deadline = deadline_ns;
		timer->order = clock->order++;
		timer->armed = true;
		clock->root = heap_meld(clock->root, timer);
		clock_program(clock);
	}
	pthread_mutex_unlock(&clock->lock);
}

void vtimer_disarm(struct vtimer *timer)
{
	struct vclock *clock = timer->clock;

	if (!clock)
		return;
	pthread_mutex_lock(&clock->lock);
	heap_remove(clock, timer);
	pthread_mutex_unlock(&clock->lock);
}

bool vtimer_armed(struct vtimer *timer)
{
	struct vclock *clock = timer->clock;
	bool armed;

	if (!clock)
		return false;
	pthread_mutex_lock(&clock->lock);
	armed = timer->armed;
	pthread_mutex_unlock(&clock->lock);
	return armed;
}

void vtimer_destroy(struct vtimer *timer)
{
	struct vclock *clock = timer->clock;

	if (!clock)
		return;
	pthread_mutex_lock(&clock->lock);
	timer->closing = true; /* a callback that always arms again must not keep it alive */
	heap_remove(clock, timer);
	while (clock->running == timer && !pthread_equal(clock->runner, pthread_self()))
		pthread_cond_wait(&clock->done, &clock->lock);
	pthread_mutex_unlock(&clock->lock);
}
