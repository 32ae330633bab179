/*
 * Looking for work for a while before sleeping. To wake a thread that sleeps costs tens of microseconds where the host's
 * CPU has to be woken first, above all in a cloud VM; a thread that is still looking loses nothing. How long it looks
 * follows what it met: longer after sleeps that were short, half as long, at last not at all, after long ones. So a thread
 * that is idle for good sleeps as if there were none of this.
 *
 * Who looks shall not keep the CPU from others: so many threads look at the same time as leave a CPU free of those that
 * this process may use (its affinity, and the quotas of its control groups), and one more that waits for the host's disk, where nobody but the kernel has to do something meanwhile; that is how a guest's CPU with
 * nothing to do and the thread that serves its disk can both look on a host of two CPUs. One that the kernel has put aside
 * meanwhile stops. It does not yield: where a job of low priority waits for the CPU, that would give it
 * a whole slice, and whoever sleeps goes before it.
 */
#ifndef BASE_SPIN_H
#define BASE_SPIN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SPIN_MAX_NS 200000u

/* Shared by the threads of a VM. */
struct spin_room {
	_Atomic unsigned inside, awaiting; /* `awaiting` looks for the kernel's part to end */
	unsigned most;			   /* of `inside` */
};

/* Of one thread; all zeroes is how it begins. */
struct spin {
	uint32_t window; /* ns, how long the next look may take */
	uint64_t began;
};

void spin_room_init(struct spin_room *room);
/* Calls found(arg), at least once, until it says true, or the window has passed: then false, and the thread is to sleep and
 * to call spin_slept() afterwards. kernel: what is waited for is the kernel's to do, or the hardware's. */
bool spin_wait(struct spin *spin, struct spin_room *room, bool kernel, bool (*found)(void *arg),
	       void *arg);
/* There is work now. */
void spin_slept(struct spin *spin);

#endif
