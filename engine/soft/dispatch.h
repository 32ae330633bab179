/* From the guest's RIP to a block. Quick. */
#ifndef ENGINE_SOFT_DISPATCH_H
#define ENGINE_SOFT_DISPATCH_H

#include "engine/soft/cache.h"

/* The linear address of cpu->rip; false: outside the segment, or not canonical (#GP). */
bool dispatch_linear(const struct soft_cpu *cpu, uint64_t *linear);
/* plain: 0, or MODE_PLAIN. */
void dispatch_key(const struct soft_cpu *cpu, uint64_t gpa, uint32_t plain, struct block_key *key);
/* The valid block for cpu->rip in cpu->mode whose code lies at gpa, or NULL. */
struct soft_block *dispatch_find(struct soft_cpu *cpu, uint64_t linear, uint64_t gpa,
				 uint32_t plain);

#endif
