/*
 * The virtual clock: nanoseconds of guest time since the VM was created. It runs at the rate of
 * CLOCK_MONOTONIC and stands still while the VM is paused. Every guest-visible time (TSC of the soft
 * engine, LAPIC, PIT, HPET, PM timer, RTC) derives from it; no device reads a host clock or owns a
 * timerfd.
 *
 * Threads: vclock_now() and the vtimer calls may be made from any thread, under any device lock.
 * Callbacks run on the event-loop thread with no lock held; they take their device's lock.
 */
#ifndef BASE_VCLOCK_H
#define BASE_VCLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define NS_PER_SEC 1000000000ull

struct loop;
struct vclock;

/* The clock starts paused at 0. `loop` must outlive it. */
int vclock_create(struct vclock **out, struct loop *loop, struct error *err);
void vclock_destroy(struct vclock *clock);

uint64_t vclock_now(struct vclock *clock);
void vclock_pause(struct vclock *clock);  /* timers stop firing; those under way finish elsewhere */
void vclock_resume(struct vclock *clock);
bool vclock_paused(struct vclock *clock);
/* Sets the time of a paused clock (restore); no-op while it runs. */
void vclock_set(struct vclock *clock, uint64_t now_ns);
/* For tests: moves a paused clock forward to `until_ns`, calling on its way, from this thread, each timer
 * that is due by then, at its deadline or now if that is past, those armed meanwhile included. */
void vclock_advance(struct vclock *clock, uint64_t until_ns);

/* (value * mul) / div without overflow in between; div is not 0. For rates: ticks = ns * hz / 1e9. */
static inline uint64_t mul_div_u64(uint64_t value, uint64_t mul, uint64_t div)
{
	return (uint64_t)((unsigned __int128)value * mul / div);
}
/* As mul_div_u64(), rounded up: the first nanosecond at which a tick has happened. */
static inline uint64_t mul_div_u64_up(uint64_t value, uint64_t mul, uint64_t div)
{
	return (uint64_t)(((unsigned __int128)value * mul + div - 1) / div);
}

/* One-shot timer; periodic devices re-arm from the callback at an absolute time, so they don't drift. */
struct vtimer {
	struct vclock *clock;
	void (*fn)(void *arg);
	void *arg;
	uint64_t deadline; /* the rest is vclock.c's */
	uint64_t order;
	struct vtimer *child, *next, *prev;
	bool armed, closing;
};

void vtimer_init(struct vtimer *timer, struct vclock *clock, void (*fn)(void *arg), void *arg);
/* Fires once when vclock_now() >= deadline_ns; at once if that is past. Replaces an earlier deadline. */
void vtimer_arm(struct vtimer *timer, uint64_t deadline_ns);
/* No call begins after this returns, but one may be running on the loop thread. */
void vtimer_disarm(struct vtimer *timer);
bool vtimer_armed(struct vtimer *timer);
/* Disarms and waits for a running callback; from the callback itself only disarms. It can be
 * armed no more (no-op) until vtimer_init(). Not under a lock that
 * the callback takes. Disarming and destroying a zeroed timer is a no-op. */
void vtimer_destroy(struct vtimer *timer);

#endif
