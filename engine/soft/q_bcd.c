/* Quick: decimal adjustment, SALC, XLAT and BOUND: what 64-bit mode has no native form of. SDM vol. 2, each by its name. */
#include "engine/soft/q_insn.h"

static uint64_t result_flags(uint8_t value)
{
	uint64_t flags = 0;

	if (!value)
		flags |= X86_FL_ZF;
	if (value & 0x80)
		flags |= X86_FL_SF;
	if (!__builtin_parity(value))
		flags |= X86_FL_PF;
	return flags;
}

static enum soft_next adjust_after(struct soft_cpu *cpu, const struct insn *insn, bool subtract)
{
	uint8_t al = (uint8_t)cpu->gpr[X86_RAX], before = al;
	bool carry = cpu->arith & X86_FL_CF, half = (al & 15) > 9 || (cpu->arith & X86_FL_AF);
	bool high = before > 0x99 || carry;
	uint64_t flags = 0;

	if (half) {
		bool borrow = subtract ? before < 6 : before > 0xf9;

		al = (uint8_t)(subtract ? al - 6 : al + 6);
		flags |= X86_FL_AF;
		if (carry || borrow)
			flags |= X86_FL_CF;
	}
	if (high) {
		al = (uint8_t)(subtract ? al - 0x60 : al + 0x60);
		flags |= X86_FL_CF;
	} else if (!subtract) {
		flags &= ~X86_FL_CF;
	}
	gpr_set(cpu, X86_RAX, 1, al);
	cpu->arith = flags | result_flags(al);
	return done(cpu, insn);
}

static HELPER(help_daa)
{
	return adjust_after(cpu, insn, false);
}

static HELPER(help_das)
{
	return adjust_after(cpu, insn, true);
}

static enum soft_next adjust_ascii(struct soft_cpu *cpu, const struct insn *insn, bool subtract)
{
	uint16_t ax = (uint16_t)cpu->gpr[X86_RAX];
	uint64_t flags = 0;

	if ((ax & 15) > 9 || (cpu->arith & X86_FL_AF)) {
		ax = (uint16_t)(subtract ? ax - 0x106 : ax + 0x106);
		flags = X86_FL_AF | X86_FL_CF;
	}
	ax &= 0xff0f;
	gpr_set(cpu, X86_RAX, 2, ax);
	cpu->arith = flags | result_flags((uint8_t)ax);
	return done(cpu, insn);
}

static HELPER(help_aaa)
{
	return adjust_ascii(cpu, insn, false);
}

static HELPER(help_aas)
{
	return adjust_ascii(cpu, insn, true);
}

static HELPER(help_aam)
{
	uint8_t base = (uint8_t)insn->imm[0], al = (uint8_t)cpu->gpr[X86_RAX];

	if (!base)
		return soft_raise(cpu, X86_DE);
	gpr_set(cpu, X86_RAX, 2, (uint64_t)(al / base) << 8 | al % base);
	cpu->arith = result_flags(al % base);
	return done(cpu, insn);
}

static HELPER(help_aad)
{
	uint8_t al = (uint8_t)(cpu->gpr[X86_RAX] +
			       (cpu->gpr[X86_RAX] >> 8 & 0xff) * (insn->imm[0] & 0xff));

	gpr_set(cpu, X86_RAX, 2, al);
	cpu->arith = result_flags(al);
	return done(cpu, insn);
}

static HELPER(help_salc)
{
	gpr_set(cpu, X86_RAX, 1, cpu->arith & X86_FL_CF ? 0xff : 0);
	return done(cpu, insn);
}

static HELPER(help_xlat)
{
	uint64_t offset = cut(cpu->gpr[X86_RBX] + (cpu->gpr[X86_RAX] & 0xff), insn->addrsize),
		 value;
	int next = segment_load(cpu, insn->mem_seg, offset, 1, &value);

	if (next)
		return next;
	gpr_set(cpu, X86_RAX, 1, value);
	return done(cpu, insn);
}

/* BOUND: signed limits in memory, the lower one first. */
HELPER(do_bound)
{
	unsigned size = insn->opsize;
	uint64_t offset = operand_offset(cpu, insn), lower, upper;
	int64_t index = (int32_t)(gpr_get(cpu, insn->reg, size) << (32 - 8 * size)) >>
			(32 - 8 * size);
	int next = segment_load(cpu, insn->mem_seg, offset, size, &lower);

	if (!next)
		next = segment_load(cpu, insn->mem_seg, cut(offset + size, insn->addrsize), size,
				    &upper);
	if (next)
		return next;
	if (index < (int32_t)(lower << (32 - 8 * size)) >> (32 - 8 * size) ||
	    index > (int32_t)(upper << (32 - 8 * size)) >> (32 - 8 * size))
		return soft_raise(cpu, X86_BR);
	return done(cpu, insn);
}

soft_helper bcd_helper_for(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_DAA:
		return help_daa;
	case ZYDIS_MNEMONIC_DAS:
		return help_das;
	case ZYDIS_MNEMONIC_AAA:
		return help_aaa;
	case ZYDIS_MNEMONIC_AAS:
		return help_aas;
	case ZYDIS_MNEMONIC_AAM:
		return help_aam;
	case ZYDIS_MNEMONIC_AAD:
		return help_aad;
	case ZYDIS_MNEMONIC_SALC:
		return help_salc;
	case ZYDIS_MNEMONIC_XLAT:
		return help_xlat;
	default:
		return NULL;
	}
}
