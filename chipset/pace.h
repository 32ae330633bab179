/*
 * How periodic timers catch up when the event loop was late (the host was busy).
 *
 * No tick is forgotten at once, since a guest may count them, and none come in a burst, since a guest
 * would see but one of them: a callback gives one tick, and while a timer is behind they come at
 * twice its rate. What a timer is behind is bounded: by PACE_BACKLOG ticks; older ones are dropped. And
 * no timer ticks more often than once in PACE_MIN_NS, whatever period the guest asks for, so that it
 * cannot keep the host busy; the excess is dropped in the same way.
 *
 * Times are in any unit, so long as all three are in the same.
 */
#ifndef CHIPSET_PACE_H
#define CHIPSET_PACE_H

#include <stdint.h>

#define PACE_BACKLOG 100
#define PACE_MIN_NS 100000ull

/* The tick due at `due` was given at `now` >= due. Returns when the next one is due by the guest's
 * reckoning, perhaps in the past. period > 0. */
static inline uint64_t pace_next_due(uint64_t due, uint64_t period, uint64_t now)
{
	uint64_t behind;

	due += period;
	behind = now >= due ? (now - due) / period : 0;
	return behind > PACE_BACKLOG ? due + (behind - PACE_BACKLOG) * period : due;
}

/* When to give the tick due at `due`, after one was given at `now`. `min`: PACE_MIN_NS in the unit. */
static inline uint64_t pace_wake(uint64_t due, uint64_t period, uint64_t now, uint64_t min)
{
	uint64_t catch_up = now + period / 2;

	if (due < catch_up && due <= now)
		due = catch_up;
	return due < now + min ? now + min : due;
}

#endif
