/*
 * Where guest code spends its time, for those who make programs or this engine faster. Nothing of it changes
 * the code that is emitted, and without these options nothing of it runs.
 *
 * soft.profile=FILE: a timer on each vCPU thread's CPU time interrupts it, and the block it is in gets a sample. FILE is
 * written when the VM ends. soft.perfmap=true: /tmp/perf-PID.map, by which perf(1) names blocks.
 */
#ifndef ENGINE_SOFT_PROFILE_H
#define ENGINE_SOFT_PROFILE_H

#include "base/error.h"
#include "engine/soft/cache.h"

struct soft_profile;

/* Opens what `path` (NULL: no profile) and `map` ask for; *out stays NULL if neither does. */
int profile_open(struct soft_profile **out, const char *path, bool map, struct error *err);
/* Writes the profile. No vCPU thread is left. `profile` may be NULL. */
void profile_close(struct soft_profile *profile);
/* On the vCPU's own thread, before and after it runs guest code. 0 or a negative errno. */
int profile_thread_enter(struct soft_cpu *cpu);
void profile_thread_leave(struct soft_cpu *cpu);
/* A block was made for the code at cpu->rip. Under svm->lock. */
void profile_block(struct soft_cpu *cpu, const struct soft_block *block);

#endif
