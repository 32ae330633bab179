/*
 * Guest time. The guest's TSC runs at 1 GHz: it is the virtual clock (base/vclock.h) in nanoseconds plus what
 * the guest wrote to its TSC. So every clock of the VM has one source, a pause stops them all, and the
 * frequency that CPUID tells is exact.
 *
 * soft_now() is called by quick code: clock_gettime(2) is the vDSO's, which is built without vector
 * instructions.
 */
#ifndef ENGINE_SOFT_TIME_H
#define ENGINE_SOFT_TIME_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define SOFT_TSC_HZ 1000000000ull

/* Written only while no vCPU runs. */
struct soft_time {
	bool paused;
	uint64_t frozen; /* the virtual time while paused */
	uint64_t start;	 /* CLOCK_MONOTONIC at virtual time 0, moved by pauses; wraps */
};

static inline uint64_t soft_monotonic(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* Nanoseconds of virtual time, as vclock_now(). */
static inline uint64_t soft_now(const struct soft_time *time)
{
	return time->paused ? time->frozen : soft_monotonic() - time->start;
}

/* The TSC as a vCPU reads it is soft_now() + cpu->tsc_offset. */

#endif
