/* Quick: what follows from the control registers, segments and flags. */
#include "engine/soft/q_helper.h"

#define XCR0_AVX 0x6ull
#define XCR0_AVX512 0xe6ull

void soft_advance(struct soft_cpu *cpu, const struct insn *insn)
{
	cpu->rip = next_rip(cpu, insn);
	cpu->shadow_sti = cpu->shadow_mov_ss = false;
	soft_replay_clear(cpu);
}

/* Base 0, limit 4 GiB, and all that a block would have to check about rights. */
static bool flat_data(const struct x86_seg *s)
{
	return !s->unusable && s->base == 0 && s->limit == 0xffffffff &&
	       (s->attr & (SEG_TYPE_CODE | SEG_TYPE_CONFORM | SEG_TYPE_WRITE)) == SEG_TYPE_WRITE;
}

static bool flat(const struct soft_cpu *cpu)
{
	const struct x86_seg *cs = &cpu->seg[X86_CS];

	return cs->base == 0 && cs->limit == 0xffffffff &&
	       (cs->attr & (SEG_TYPE_CODE | SEG_TYPE_WRITE)) == (SEG_TYPE_CODE | SEG_TYPE_WRITE) &&
	       flat_data(&cpu->seg[X86_DS]) && flat_data(&cpu->seg[X86_ES]) &&
	       flat_data(&cpu->seg[X86_SS]);
}

static uint32_t mode_code(const struct soft_cpu *cpu)
{
	const struct x86_seg *cs = &cpu->seg[X86_CS];
	uint32_t mode = 0;

	if (cpu->efer & X86_EFER_LMA)
		mode |= MODE_LONG;
	if (cpu->cr0 & X86_CR0_PE)
		mode |= MODE_PROT;
	if (cpu->cpl == 3)
		mode |= MODE_USER;
	if ((mode & MODE_LONG) && (cs->attr & SEG_ATTR_L))
		return mode | MODE_CODE64;
	if (cs->attr & SEG_ATTR_DB)
		mode |= MODE_CODE32;
	if (cpu->seg[X86_SS].attr & SEG_ATTR_DB)
		mode |= MODE_STACK32;
	if ((mode & MODE_PROT) && flat(cpu))
		mode |= MODE_FLAT;
	return mode;
}

static uint32_t mode_vector(const struct soft_cpu *cpu)
{
	uint32_t mode = 0;

	if (cpu->cr0 & X86_CR0_TS)
		mode |= MODE_TS;
	if (cpu->cr0 & X86_CR0_EM)
		mode |= MODE_EM;
	if (cpu->cr0 & X86_CR0_MP)
		mode |= MODE_MP;
	if (cpu->cr4 & X86_CR4_OSFXSR)
		mode |= MODE_OSFXSR;
	if (cpu->cr4 & X86_CR4_OSXMMEXCPT)
		mode |= MODE_OSXMMEX;
	if (cpu->cr4 & X86_CR4_OSXSAVE) {
		mode |= MODE_OSXSAVE;
		if ((cpu->xcr0 & XCR0_AVX) == XCR0_AVX)
			mode |= MODE_AVX;
		if ((cpu->xcr0 & XCR0_AVX512) == XCR0_AVX512)
			mode |= MODE_AVX512;
	}
	return mode;
}

void soft_update_mode(struct soft_cpu *cpu)
{
	uint32_t mode = mode_code(cpu) | mode_vector(cpu);

	if ((cpu->sysflags & X86_FL_TF) || cpu->single_step || cpu->break_code || cpu->break_data)
		mode |= MODE_STEP;
	if ((cpu->cr0 & X86_CR0_AM) && (cpu->sysflags & X86_FL_AC) && cpu->cpl == 3)
		mode |= MODE_AC;
	cpu->mode = mode;
	cpu->fs_base = cpu->seg[X86_FS].base;
	cpu->gs_base = cpu->seg[X86_GS].base;
	soft_tlb_select(cpu);
}
