/* Effective addresses for C. Quick. */
#ifndef ENGINE_SOFT_OPERAND_H
#define ENGINE_SOFT_OPERAND_H

#include "engine/soft/cpu.h"
#include "engine/soft/decode.h"

static inline uint64_t insn_address_cut(const struct insn *insn, uint64_t offset)
{
	return insn->addrsize == 8   ? offset
	       : insn->addrsize == 4 ? (uint32_t)offset
				     : (uint16_t)offset;
}

/* Offset in its segment of a memory operand, without an index that is a vector. cpu->rip is the instruction's. */
static inline uint64_t insn_effective(const struct soft_cpu *cpu, const struct insn *insn)
{
	uint64_t offset = (uint64_t)insn->mem_disp;

	if (insn->rip_relative)
		offset += cpu->rip + insn->len;
	else if (insn->mem_base != REG_NONE)
		offset += cpu->gpr[insn->mem_base];
	if (insn->mem_index != REG_NONE && !insn->mem_vsib)
		offset += cpu->gpr[insn->mem_index] * insn->mem_scale;
	return insn_address_cut(insn, offset);
}

#endif
