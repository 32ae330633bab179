/* The event loop, the virtual clock, and the log. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/loop.h"
#include "base/vclock.h"

#define MS 1000000ull

static uint64_t host_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

struct bench {
	struct loop *loop;
	struct vclock *clock;
	pthread_t thread;
	int pair[2];
};

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));
	struct error err;

	assert_int_equal(loop_create(&b->loop, &err), 0);
	assert_int_equal(vclock_create(&b->clock, b->loop, &err), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, b->pair), 0);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	vclock_destroy(b->clock);
	loop_destroy(b->loop);
	close(b->pair[0]);
	close(b->pair[1]);
	free(b);
	return 0;
}

static void *run_thread(void *arg)
{
	struct bench *b = arg;

	return (void *)(intptr_t)loop_run(b->loop);
}

static void start(struct bench *b)
{
	assert_int_equal(pthread_create(&b->thread, NULL, run_thread, b), 0);
}

static void stop(struct bench *b)
{
	void *rc;

	loop_stop(b->loop);
	pthread_join(b->thread, &rc);
	assert_null(rc);
}

/* A callback that counts, may stop the loop, and may be held up by the test. */
struct probe {
	struct bench *b;
	struct loop_fd node, *victim;
	struct loop_event event;
	struct vtimer timer;
	_Atomic int calls, inside;
	_Atomic uint32_t events;
	_Atomic int stop_at;
	sem_t entered, go;
	bool hold;
	uint64_t times[64], period;
};

static void probe_init(struct probe *p, struct bench *b)
{
	memset(p, 0, sizeof(*p));
	p->b = b;
	sem_init(&p->entered, 0, 0);
	sem_init(&p->go, 0, 0);
}

static void probe_called(struct probe *p)
{
	p->inside = 1;
	p->calls++;
	sem_post(&p->entered);
	if (p->hold)
		sem_wait(&p->go);
	if (p->calls == p->stop_at)
		loop_stop(p->b->loop);
	p->inside = 0;
}

static void probe_fd(void *arg, uint32_t events)
{
	struct probe *p = arg;

	p->events = events;
	if (p->victim)
		loop_fd_del(p->victim);
	probe_called(p);
}

static void probe_event(void *arg)
{
	probe_called(arg);
}

static void test_file(void **state)
{
	struct bench *b = *state;
	struct probe p;
	char c;

	probe_init(&p, b);
	p.stop_at = 2; /* level-triggered: told again while it is not read */
	assert_int_equal(loop_fd_add(b->loop, &p.node, b->pair[0], EPOLLIN, probe_fd, &p), 0);
	assert_int_equal(write(b->pair[1], "x", 1), 1);
	assert_int_equal(loop_run(b->loop), 0);
	assert_int_equal(p.calls, 2);
	assert_int_equal(p.events, EPOLLIN);
	assert_int_equal(loop_fd_set(&p.node, EPOLLOUT), 0);
	p.stop_at = 3;
	loop_run(b->loop);
	assert_int_equal(p.events, EPOLLOUT);
	/* Nothing but the hang-up is told when nothing was asked for. */
	assert_int_equal(loop_fd_set(&p.node, 0), 0);
	shutdown(b->pair[1], SHUT_RDWR);
	p.stop_at = 4;
	loop_run(b->loop);
	assert_int_equal(p.events, EPOLLHUP);
	assert_int_equal(read(b->pair[0], &c, 1), 1);
	loop_fd_del(&p.node);
	loop_fd_del(&p.node);
	assert_null(p.node.loop);
}

static void test_plain_file(void **state)
{
	struct bench *b = *state;
	FILE *file = tmpfile();
	struct loop_fd node;

	assert_int_equal(loop_fd_add(b->loop, &node, fileno(file), EPOLLIN, probe_fd, NULL),
			 -EPERM);
	assert_null(node.loop);
	assert_int_equal(loop_fd_set(&node, EPOLLIN), -EINVAL);
	loop_fd_del(&node);
	fclose(file);
}

/* Both are ready in one batch, and each removes the other: exactly one may be called. */
static void test_removed_in_batch(void **state)
{
	struct bench *b = *state;
	struct probe p, q;

	probe_init(&p, b);
	probe_init(&q, b);
	p.victim = &q.node;
	q.victim = &p.node;
	assert_int_equal(loop_fd_add(b->loop, &p.node, b->pair[0], EPOLLOUT, probe_fd, &p), 0);
	assert_int_equal(loop_fd_add(b->loop, &q.node, b->pair[1], EPOLLOUT, probe_fd, &q), 0);
	p.stop_at = q.stop_at = 20;
	loop_run(b->loop);
	assert_int_equal(p.calls + q.calls, 20);
	assert_true(p.calls == 0 || q.calls == 0);
	loop_fd_del(&p.node);
	loop_fd_del(&q.node);
}

static void *delete_thread(void *arg)
{
	struct probe *p = arg;

	loop_fd_del(&p->node);
	return (void *)(intptr_t)p->inside;
}

/* Another thread's loop_fd_del() returns only when the callback has. */
static void test_del_waits(void **state)
{
	struct bench *b = *state;
	pthread_t deleter;
	struct probe p;
	void *inside;

	probe_init(&p, b);
	p.hold = true;
	loop_fd_add(b->loop, &p.node, b->pair[0], EPOLLOUT, probe_fd, &p);
	start(b);
	sem_wait(&p.entered);
	pthread_create(&deleter, NULL, delete_thread, &p);
	usleep(20000); /* lets a deleter that does not wait get through, to be found out */
	assert_int_equal(p.inside, 1);
	sem_post(&p.go);
	pthread_join(deleter, &inside);
	assert_null(inside);
	assert_int_equal(p.calls, 1);
	stop(b);
	assert_int_equal(p.calls, 1);
}

/* Files come and go from another thread while the loop is busy with them; freed memory is poisoned. */
static void test_del_race(void **state)
{
	struct bench *b = *state;

	start(b);
	for (int i = 0; i < 3000; i++) {
		struct probe *p = malloc(sizeof(*p));

		probe_init(p, b);
		assert_int_equal(loop_fd_add(b->loop, &p->node, b->pair[0], EPOLLOUT, probe_fd, p),
				 0);
		if (i & 1)
			sem_wait(&p->entered);
		loop_fd_del(&p->node);
		assert_int_equal(p->inside, 0);
		memset(p, 0xdd, sizeof(*p));
		free(p);
	}
	stop(b);
}

static void test_events(void **state)
{
	struct bench *b = *state;
	struct error err;
	struct probe p;

	probe_init(&p, b);
	assert_int_equal(loop_event_init(b->loop, &p.event, probe_event, &p, &err), 0);
	loop_event_post(&p.event);
	loop_event_post(&p.event);
	p.stop_at = 1;
	loop_run(b->loop);
	assert_int_equal(p.calls, 1); /* two posts, one call */
	loop_stop(b->loop);
	assert_int_equal(loop_run(b->loop), 0); /* a stop before the run is not lost */
	start(b);
	sem_wait(&p.entered); /* of the first call */
	loop_event_post(&p.event);
	sem_wait(&p.entered);
	stop(b);
	assert_int_equal(p.calls, 2);
	loop_event_destroy(&p.event);
	loop_event_destroy(&p.event);
}

static _Atomic int last_signal;

static void got_signal(void *arg, int signo)
{
	struct probe *p = arg;

	last_signal = signo;
	probe_called(p);
}

static void test_signal(void **state)
{
	struct bench *b = *state;
	struct loop_signal term, second;
	struct error err = {0};
	struct probe p;

	probe_init(&p, b);
	p.stop_at = 1;
	assert_int_equal(loop_signal_add(b->loop, &term, SIGTERM, got_signal, &p, &err), 0);
	assert_int_equal(loop_signal_add(b->loop, &second, SIGTERM, got_signal, &p, &err), -EBUSY);
	loop_signal_del(&second);
	start(b);
	kill(getpid(), SIGTERM);
	pthread_join(b->thread, NULL);
	assert_int_equal(last_signal, SIGTERM);
	loop_signal_del(&term);
	assert_int_equal(loop_signal_add(b->loop, &term, SIGTERM, got_signal, &p, &err), 0);
	loop_signal_del(&term);
}

/* Nothing to do, a timer far away: no CPU time is used. */
static void test_idle(void **state)
{
	struct bench *b = *state;
	clockid_t cpu;
	struct probe p;
	uint64_t used;

	probe_init(&p, b);
	vtimer_init(&p.timer, b->clock, probe_event, &p);
	vclock_resume(b->clock);
	start(b);
	vtimer_arm(&p.timer, UINT64_MAX);
	pthread_getcpuclockid(b->thread, &cpu);
	used = host_ns(cpu);
	usleep(100000);
	used = host_ns(cpu) - used;
	assert_in_range(used, 0, 2 * MS);
	stop(b);
	vtimer_destroy(&p.timer);
	assert_int_equal(p.calls, 0);
}

static void test_clock_pauses(void **state)
{
	struct bench *b = *state;
	uint64_t t;

	assert_true(vclock_paused(b->clock));
	assert_int_equal(vclock_now(b->clock), 0);
	vclock_set(b->clock, 5 * NS_PER_SEC);
	assert_int_equal(vclock_now(b->clock), 5 * NS_PER_SEC);
	vclock_resume(b->clock);
	vclock_resume(b->clock);
	vclock_set(b->clock, 0);
	t = host_ns(CLOCK_MONOTONIC);
	while (host_ns(CLOCK_MONOTONIC) - t < 5 * MS)
		;
	assert_in_range(vclock_now(b->clock), 5 * NS_PER_SEC + 5 * MS, 6 * NS_PER_SEC);
	vclock_pause(b->clock);
	vclock_pause(b->clock);
	t = vclock_now(b->clock);
	usleep(2000);
	assert_int_equal(vclock_now(b->clock), t);
	vclock_resume(b->clock);
	assert_in_range(vclock_now(b->clock), t, t + NS_PER_SEC);
}

static void *reader_thread(void *arg)
{
	struct probe *p = arg;
	uint64_t last = 0, now;

	while (!p->stop_at) {
		now = vclock_now(p->b->clock);
		if (now < last)
			return p;
		last = now;
		p->calls++;
	}
	return NULL;
}

/* Readers never see the time go back, whatever pauses. */
static void test_clock_monotonic(void **state)
{
	struct bench *b = *state;
	pthread_t reader;
	struct probe p;
	void *went_back;

	probe_init(&p, b);
	pthread_create(&reader, NULL, reader_thread, &p);
	for (int i = 0; i < 20000; i++) {
		vclock_resume(b->clock);
		vclock_pause(b->clock);
	}
	while (!p.calls)
		;
	p.stop_at = 1;
	pthread_join(reader, &went_back);
	assert_null(went_back);
}

static void timer_called(void *arg)
{
	struct probe *p = arg;

	if (p->calls < 64)
		p->times[p->calls] = vclock_now(p->b->clock);
	if (p->period)
		vtimer_arm(&p->timer, p->timer.deadline + p->period);
	probe_called(p);
}

static void test_timer(void **state)
{
	struct bench *b = *state;
	struct probe p, past;

	probe_init(&p, b);
	probe_init(&past, b);
	vtimer_init(&p.timer, b->clock, timer_called, &p);
	vtimer_init(&past.timer, b->clock, timer_called, &past);
	p.period = MS;
	p.stop_at = 20;
	vtimer_arm(&p.timer, 3600 * NS_PER_SEC);
	vtimer_arm(&p.timer, 10 * MS); /* replaces it */
	vtimer_arm(&past.timer, 0);
	start(b);
	usleep(5000);
	assert_int_equal(past.calls, 0); /* the clock is paused */
	vclock_resume(b->clock);
	sem_wait(&past.entered);
	pthread_join(b->thread, NULL);
	assert_int_equal(past.calls, 1);
	assert_false(vtimer_armed(&past.timer));
	for (unsigned i = 0; i < 20; i++)
		assert_in_range(p.times[i], (10 + i) * MS, (10 + i) * MS + 500 * MS);
	assert_true(vtimer_armed(&p.timer));
	/* No drift. On a late host some more ticks follow in the wake-up that stopped the loop. */
	assert_int_equal(p.timer.deadline, (10 + (uint64_t)p.calls) * MS);
	vtimer_disarm(&p.timer);
	assert_false(vtimer_armed(&p.timer));
	vtimer_destroy(&p.timer);
	vtimer_destroy(&p.timer);
	vtimer_destroy(&past.timer);
}

/* A timer that a guest sets to a period of nothing must not keep files from being served. */
static void test_timer_flood(void **state)
{
	struct bench *b = *state;
	struct probe flood, file;
	struct error err;

	probe_init(&flood, b);
	probe_init(&file, b);
	vtimer_init(&flood.timer, b->clock, timer_called, &flood);
	flood.period = 1;
	assert_int_equal(loop_event_init(b->loop, &file.event, probe_event, &file, &err), 0);
	vtimer_arm(&flood.timer, 0);
	vclock_resume(b->clock);
	start(b);
	sem_wait(&flood.entered);
	for (int i = 0; i < 10; i++) {
		loop_event_post(&file.event);
		sem_wait(&file.entered);
	}
	stop(b);
	vtimer_destroy(&flood.timer);
	loop_event_destroy(&file.event);
}

static void *destroy_timer_thread(void *arg)
{
	struct probe *p = arg;

	vtimer_destroy(&p->timer);
	return (void *)(intptr_t)p->inside;
}

static void test_timer_destroy_waits(void **state)
{
	struct bench *b = *state;
	pthread_t destroyer;
	struct probe p;
	void *inside;

	probe_init(&p, b);
	p.hold = true;
	p.period = 1;
	vtimer_init(&p.timer, b->clock, timer_called, &p);
	vtimer_arm(&p.timer, 0);
	vclock_resume(b->clock);
	start(b);
	sem_wait(&p.entered);
	pthread_create(&destroyer, NULL, destroy_timer_thread, &p);
	usleep(20000);
	assert_int_equal(p.inside, 1);
	sem_post(&p.go);
	pthread_join(destroyer, &inside);
	assert_null(inside);
	stop(b);
	assert_int_equal(p.calls, 1);
}

#define TIMERS 200

struct many {
	struct vtimer timer;
	struct bench *b;
	uint64_t deadline, *last;
	bool armed, *wrong;
};

static void many_called(void *arg)
{
	struct many *m = arg;

	if (!m->armed || vclock_now(m->b->clock) != m->deadline || m->deadline < *m->last)
		*m->wrong = true;
	*m->last = m->deadline;
	m->armed = false;
}

/* The heap against a plain list: random arming and disarming, each fires at its time, in order. */
static void test_heap(void **state)
{
	struct bench *b = *state;
	struct many *many = calloc(TIMERS, sizeof(*many));
	uint64_t last = 0, now = 0;
	bool wrong = false;

	srandom(1);
	for (int i = 0; i < TIMERS; i++) {
		many[i].b = b;
		many[i].last = &last;
		many[i].wrong = &wrong;
		vtimer_init(&many[i].timer, b->clock, many_called, &many[i]);
	}
	for (int round = 0; round < 20000; round++) {
		struct many *m = &many[random() % TIMERS];

		if (random() % 4) {
			m->deadline = now + 1 + (uint64_t)random() % 1000;
			m->armed = true;
			vtimer_arm(&m->timer, m->deadline);
		} else {
			m->armed = false;
			vtimer_disarm(&m->timer);
		}
		if (random() % 4 == 0) {
			now += (uint64_t)random() % 50;
			vclock_advance(b->clock, now);
			assert_int_equal(vclock_now(b->clock), now);
		}
		for (int i = 0; round % 64 == 0 && i < TIMERS; i++) {
			assert_int_equal(vtimer_armed(&many[i].timer), many[i].armed);
			assert_true(!many[i].armed || many[i].deadline > now);
		}
		assert_false(wrong);
	}
	vclock_advance(b->clock, now + 10000);
	assert_false(wrong);
	for (int i = 0; i < TIMERS; i++) {
		assert_false(many[i].armed);
		vtimer_destroy(&many[i].timer);
	}
	free(many);
}

static void order_called(void *arg)
{
	struct many *m = arg;

	m->deadline = ++*m->last;
}

/* Equal deadlines fire in the order of arming; a late clock fires all of them at its own time. */
static void test_ties(void **state)
{
	struct bench *b = *state;
	uint64_t count = 0;
	struct many many[8];

	for (int i = 0; i < 8; i++) {
		many[i].last = &count;
		vtimer_init(&many[i].timer, b->clock, order_called, &many[i]);
		vtimer_arm(&many[i].timer, 100);
	}
	vclock_set(b->clock, 500);
	vclock_advance(b->clock, 500);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(many[i].deadline, i + 1);
	assert_int_equal(vclock_now(b->clock), 500);
}

static void test_mul_div(void **state)
{
	(void)state;
	assert_true(mul_div_u64(UINT64_MAX, 3, 3) == UINT64_MAX);
	assert_int_equal(mul_div_u64(10, 3579545, NS_PER_SEC), 0);
	assert_int_equal(mul_div_u64_up(10, 3579545, NS_PER_SEC), 1);
	assert_int_equal(mul_div_u64_up(20, 1, 10), 2);
}

static size_t drain(int fd, char *buf, size_t size)
{
	ssize_t n = recv(fd, buf, size - 1, MSG_DONTWAIT);

	buf[n < 0 ? 0 : n] = '\0';
	return n < 0 ? 0 : (size_t)n;
}

static void test_log(void **state)
{
	struct bench *b = *state;
	char buf[8192], big[3000];
	struct log log;

	log_init(&log, b->pair[0], LOG_INFO);
	log_info(&log, "one %d", 1);
	log_at(&log, LOG_DEBUG, "dropped");
	log_set_raw_tty(&log, true);
	log_warn(&log, "two\x1b[31m\nx");
	drain(b->pair[1], buf, sizeof(buf));
	assert_string_equal(buf, "skep: one 1\nskep: two?[31m?x\r\n");
	memset(big, 'a', sizeof(big));
	big[sizeof(big) - 1] = '\0';
	log_error(&log, "%s", big);
	assert_true(drain(b->pair[1], buf, sizeof(buf)) < 1300);
	assert_string_equal(buf + strlen(buf) - 3, "a\r\n");
}

static void test_log_guest(void **state)
{
	struct bench *b = *state;
	char buf[8192];
	struct log log;
	unsigned lines = 0;

	log_init(&log, b->pair[0], LOG_INFO);
	for (int i = 0; i < 1000; i++)
		log_guest(&log, LOG_WARN, "guest did it");
	drain(b->pair[1], buf, sizeof(buf));
	for (char *at = buf; (at = strchr(at, '\n')); at++)
		lines++;
	assert_in_range(lines, 20, 21);
	log_info(&log, "others go on");
	assert_string_equal((drain(b->pair[1], buf, sizeof(buf)), buf), "skep: others go on\n");
	log.refilled_ns -= 2 * NS_PER_SEC; /* two seconds later */
	for (int i = 0; i < 100; i++)
		log_guest(&log, LOG_WARN, "again");
	drain(b->pair[1], buf, sizeof(buf));
	assert_non_null(strstr(buf, "skep: again (9"));
	assert_non_null(strstr(buf, " left out)\nskep: again\n"));
}

/* Nobody reads: whoever logs goes on all the same. */
static void test_log_unread(void **state)
{
	char buf[65536];
	struct log log;
	int fds[2];
	(void)state;

	assert_int_equal(pipe2(fds, O_NONBLOCK), 0);
	memset(buf, 'x', sizeof(buf));
	while (write(fds[1], buf, sizeof(buf)) > 0)
		;
	assert_int_equal(fcntl(fds[1], F_SETFL, 0), 0);
	log_init(&log, fds[1], LOG_INFO);
	alarm(20);
	log_guest(&log, LOG_WARN, "into a full pipe");
	log_error(&log, "into a full pipe");
	alarm(0);
	while (read(fds[0], buf, sizeof(buf)) > 0)
		;
	log_guest(&log, LOG_WARN, "read again");
	memset(buf, 0, sizeof(buf));
	assert_true(read(fds[0], buf, sizeof(buf) - 1) > 0);
	assert_string_equal(buf, "skep: read again (2 lines before this one left out)\n");
	close(fds[0]);
	close(fds[1]);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_file),
		T(test_plain_file),
		T(test_removed_in_batch),
		T(test_del_waits),
		T(test_del_race),
		T(test_events),
		T(test_signal),
		T(test_idle),
		T(test_clock_pauses),
		T(test_clock_monotonic),
		T(test_timer),
		T(test_timer_flood),
		T(test_timer_destroy_waits),
		T(test_heap),
		T(test_ties),
		cmocka_unit_test(test_mul_div),
		T(test_log),
		T(test_log_guest),
		T(test_log_unread),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
