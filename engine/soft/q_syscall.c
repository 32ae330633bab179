/*
 * Quick: INT n, SYSCALL and SYSENTER with their returns, HLT, the interrupt flag, hypercalls, #UD. Where Intel's
 * and AMD's CPUs differ, the vendor in the CPU model decides.
 */
#include "engine/soft/q_insn.h"

#define KVM_ENOSYS 1000

HELPER(do_int)
{
	uint64_t rip = next_rip(cpu, insn);
	uint8_t vector = X86_BP;

	switch (insn->op) {
	case ZYDIS_MNEMONIC_INT1:
		return deliver_software(cpu, X86_DB, rip, false);
	case ZYDIS_MNEMONIC_INTO:
		if (!(cpu->arith & X86_FL_OF))
			return done(cpu, insn);
		vector = X86_OF;
		break;
	case ZYDIS_MNEMONIC_INT:
		vector = (uint8_t)insn->imm[0];
		break;
	default:
		break;
	}
	return deliver_software(cpu, vector, rip, true);
}

/* ---- SYSCALL, SYSRET -------------------------------------------------------------------------------------- */

static enum soft_next enter_done(struct soft_cpu *cpu)
{
	cpu->shadow_sti = cpu->shadow_mov_ss = false;
	soft_replay_clear(cpu);
	/* TF counts as it is behind the instruction: what SYSCALL clears does not trap there, what SYSRET sets does at once, as
	 * if the SYSCALL had been stepped. */
	cpu->step_trap = cpu->sysflags & X86_FL_TF;
	soft_update_mode(cpu);
	return NEXT_LEAVE;
}

/* Outside 64-bit mode (compatibility and legacy) only AMD's have it. */
static bool syscall_there(const struct soft_cpu *cpu)
{
	if (!(cpu->efer & X86_EFER_SCE) || !protected_mode(cpu))
		return false;
	return code64(cpu) || !cpu->svm->intel;
}

/* APM vol. 3 SYSCALL: legacy mode takes EIP from STAR and clears IF, RF and VM. */
static void syscall_legacy(struct soft_cpu *cpu)
{
	cpu->gpr[X86_RCX] = (uint32_t)cpu->rip;
	cpu->rip = (uint32_t)cpu->msr.star;
	cpu->sysflags &= ~(X86_FL_IF | X86_FL_RF | X86_FL_VM);
}

static void syscall_segments(const struct soft_cpu *cpu, bool to64, struct x86_seg *cs,
			     struct x86_seg *ss)
{
	uint16_t sel = (uint16_t)(cpu->msr.star >> 32 & 0xfffc);

	segment_set_flat_code(cs, sel, 0, to64);
	segment_set_flat_data(ss, (uint16_t)(sel + 8), 0);
}

HELPER(do_syscall)
{
	bool from64 = code64(cpu);
	uint64_t mask;

	if (!syscall_there(cpu))
		return soft_raise(cpu, X86_UD);
	cpu->rip = next_rip(cpu, insn);
	if (long_mode(cpu)) {
		uint64_t flags = soft_rflags(cpu) & ~X86_FL_RF;

		mask = cpu->msr.sfmask;
		cpu->gpr[X86_RCX] = cpu->rip;
		cpu->gpr[X86_R11] = flags;
		cpu->rip = from64 ? cpu->msr.lstar : cpu->msr.cstar;
		cpu->arith &= ~mask;
		cpu->sysflags &= ~(mask | X86_FL_RF);
	} else {
		syscall_legacy(cpu);
	}
	syscall_segments(cpu, long_mode(cpu), &cpu->seg[X86_CS], &cpu->seg[X86_SS]);
	cpu->cpl = 0;
	soft_side_segments(cpu);
	return enter_done(cpu);
}

static void sysret_segments(const struct soft_cpu *cpu, bool to64, struct x86_seg *cs,
			    struct x86_seg *ss)
{
	uint16_t base = (uint16_t)(cpu->msr.star >> 48);
	uint16_t sel = (uint16_t)((to64 ? base + 16 : base) | 3);

	segment_set_flat_code(cs, sel, 3, to64);
	segment_set_flat_data(ss, (uint16_t)((base + 8) | 3), 3);
}

HELPER(do_sysret)
{
	bool to64 = insn->opsize == 8, was = cpu->sysflags & X86_FL_IF;
	uint64_t flags = cpu->gpr[X86_R11], rip = cpu->gpr[X86_RCX];

	if (!syscall_there(cpu))
		return soft_raise(cpu, X86_UD);
	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	/* Intel's CPUs look at RCX before they leave CPL 0, AMD's fault at CPL 3. */
	if (to64 && !is_canonical(rip) && cpu->svm->intel)
		return raise_gp0(cpu);
	cpu->rip = to64 ? rip : (uint32_t)rip;
	if (long_mode(cpu)) {
		cpu->arith = flags & ARITH_FLAGS;
		cpu->sysflags = flags & (X86_FL_TF | X86_FL_IF | X86_FL_DF | X86_FL_IOPL |
					 X86_FL_NT | X86_FL_AC | X86_FL_ID);
	} else {
		cpu->sysflags |= X86_FL_IF;
	}
	sysret_segments(cpu, to64, &cpu->seg[X86_CS], &cpu->seg[X86_SS]);
	cpu->cpl = 3;
	soft_side_segments(cpu);
	if (!was && (cpu->sysflags & X86_FL_IF))
		events_look(cpu);
	return enter_done(cpu);
}

/* What entry.S writes of a segment besides its base of 0: limit, selector, attributes. */
static uint64_t segment_image(const struct x86_seg *s)
{
	return s->limit | (uint64_t)s->sel << 32 | (uint64_t)s->attr << 48;
}

void soft_side_segments(struct soft_cpu *cpu)
{
	struct x86_seg cs, ss;

	/* Of 64-bit code alone: entry.S does nothing else. */
	sysret_segments(cpu, true, &cs, &ss);
	cpu->side[TLB_USER].cs = segment_image(&cs);
	cpu->side[TLB_USER].ss = segment_image(&ss);
	syscall_segments(cpu, true, &cs, &ss);
	cpu->side[TLB_SUPER].cs = segment_image(&cs);
	cpu->side[TLB_SUPER].ss = segment_image(&ss);
	cpu->side_star = cpu->msr.star;
}

/* ---- SYSENTER, SYSEXIT ------------------------------------------------------------------------------------ */

/* AMD's have neither in long mode. */
static bool sysenter_there(const struct soft_cpu *cpu)
{
	return model_bit(cpu, 1, CPUID_EDX, 11) && (!long_mode(cpu) || cpu->svm->intel);
}

HELPER(do_sysenter)
{
	uint16_t cs = (uint16_t)(cpu->msr.sysenter_cs & 0xfffc);

	(void)insn;
	if (!sysenter_there(cpu))
		return soft_raise(cpu, X86_UD);
	if (!protected_mode(cpu) || !cs)
		return raise_gp0(cpu);
	cpu->sysflags &= ~(X86_FL_IF | X86_FL_VM | X86_FL_RF);
	cpu->rip = long_mode(cpu) ? cpu->msr.sysenter_eip : (uint32_t)cpu->msr.sysenter_eip;
	gpr_set(cpu, X86_RSP, long_mode(cpu) ? 8 : 4, cpu->msr.sysenter_esp);
	segment_set_flat_code(&cpu->seg[X86_CS], cs, 0, long_mode(cpu));
	segment_set_flat_data(&cpu->seg[X86_SS], (uint16_t)(cs + 8), 0);
	cpu->cpl = 0;
	return enter_done(cpu);
}

HELPER(do_sysexit)
{
	uint16_t cs = (uint16_t)(cpu->msr.sysenter_cs & 0xfffc);
	bool to64 = insn->opsize == 8;
	uint64_t rip = cpu->gpr[X86_RDX], rsp = cpu->gpr[X86_RCX];

	if (!sysenter_there(cpu))
		return soft_raise(cpu, X86_UD);
	if (!protected_mode(cpu) || cpu->cpl > 0 || !cs)
		return raise_gp0(cpu);
	if (to64 && (!is_canonical(rip) || !is_canonical(rsp)))
		return raise_gp0(cpu);
	cpu->rip = to64 ? rip : (uint32_t)rip;
	cpu->gpr[X86_RSP] = to64 ? rsp : (uint32_t)rsp;
	cs = (uint16_t)((cs + (to64 ? 32 : 16)) | 3);
	segment_set_flat_code(&cpu->seg[X86_CS], cs, 3, to64);
	segment_set_flat_data(&cpu->seg[X86_SS], (uint16_t)(cs + 8), 3);
	cpu->cpl = 3;
	return enter_done(cpu);
}

/* ---- HLT, IF, AC, DF -------------------------------------------------------------------------------------- */

HELPER(do_hlt)
{
	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	soft_advance(cpu, insn);
	cpu->halted = true;
	/* The run loop looks for events, and waits. */
	atomic_store(&cpu->run_ok, 0);
	return NEXT_LEAVE;
}

HELPER(do_cli)
{
	if (cpu->cpl > iopl(cpu))
		return raise_gp0(cpu);
	cpu->sysflags &= ~X86_FL_IF;
	return done(cpu, insn);
}

HELPER(do_sti)
{
	bool was = cpu->sysflags & X86_FL_IF;

	if (cpu->cpl > iopl(cpu))
		return raise_gp0(cpu);
	soft_advance(cpu, insn);
	if (was)
		return NEXT_GO;
	cpu->sysflags |= X86_FL_IF;
	cpu->shadow_sti = true;
	return events_look(cpu) ? NEXT_LEAVE : NEXT_GO;
}

HELPER(do_clac_stac)
{
	if (cpu->cpl > 0 || (!(cpu->cr4 & X86_CR4_SMAP) && !model_bit(cpu, 7, CPUID_EBX, 20)))
		return soft_raise(cpu, X86_UD);
	if (insn->op == ZYDIS_MNEMONIC_STAC)
		cpu->sysflags |= X86_FL_AC;
	else
		cpu->sysflags &= ~X86_FL_AC;
	soft_tlb_select(cpu);
	return done(cpu, insn);
}

HELPER(do_cld_std)
{
	if (insn->op == ZYDIS_MNEMONIC_STD)
		cpu->sysflags |= X86_FL_DF;
	else
		cpu->sysflags &= ~X86_FL_DF;
	return done(cpu, insn);
}

/* ---- hypercalls, #UD -------------------------------------------------------------------------------------- */

/* KVM's convention, as the signature in CPUID promises; no call is implemented. KVM takes both instructions and
 * patches the wrong one; CPL 3 gets -EPERM there. */
HELPER(do_hypercall)
{
	if (!protected_mode(cpu))
		return soft_raise(cpu, X86_UD);
	gpr_set(cpu, X86_RAX, code64(cpu) ? 8 : 4,
		(uint64_t)(cpu->cpl > 0 ? -1ll : -(int64_t)KVM_ENOSYS));
	return done(cpu, insn);
}

HELPER(do_ud)
{
	(void)insn;
	return soft_raise(cpu, X86_UD);
}
