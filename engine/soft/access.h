/* Pieces that q_access.c and access.c share. Quick. */
#ifndef ENGINE_SOFT_ACCESS_H
#define ENGINE_SOFT_ACCESS_H

#include "engine/soft/cpu.h"

/* What #AC wants of an operand of `size` bytes (SDM vol. 3, table 7-7): the x87's 80 bits lie at multiples of 8. */
static inline unsigned operand_alignment(unsigned size)
{
	if (size == 10)
		return 8;
	return (size & (size - 1)) == 0 && size <= 8 ? size : 1;
}

/* One MMIO access of the instruction at cpu->rip: 0 when answered, or NEXT_EXIT. */
int mmio_access(struct soft_cpu *cpu, uint64_t gpa, unsigned size, bool write, uint64_t *value);
/* .. which has set cpu->complete to this. */
enum soft_next replay_answered(struct soft_cpu *cpu);
/* RAM was written: dirty bit, invalidation of translated code. */
void ram_written(struct soft_cpu *cpu, uint64_t gpa, unsigned len);
/* May [offset, offset + size) of this segment be accessed, in the mode now? Not for 64-bit code. */
bool segment_allows(const struct soft_cpu *cpu, const struct x86_seg *s, uint64_t offset,
		    unsigned size, unsigned access);
/* cpu->rip of the instruction that a MEM_* descriptor names. */
/* Guest memory has no types and any alignment. */
typedef uint64_t __attribute__((aligned(1), may_alias)) any_u64;

void desc_set_rip(struct soft_cpu *cpu, uint32_t desc);

#endif
