/* Quick: control and debug registers, XCR0, TLB invalidation (SDM vol. 3 chapters 2, 4 and 9, vol. 2 MOV CR). */
#include "engine/soft/lapic.h"
#include "engine/soft/q_insn.h"

#define CR0_BITS                                                                       \
	(X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_ET | X86_CR0_NE | \
	 X86_CR0_WP | X86_CR0_AM | X86_CR0_NW | X86_CR0_CD | X86_CR0_PG)
#define CR4_ALWAYS                                                                          \
	(X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE | X86_CR4_PAE | X86_CR4_MCE | X86_CR4_PGE | \
	 X86_CR4_PCE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT)
#define CR3_NO_FLUSH (1ull << 63)
#define PDPTE_RESERVED 0x1e6ull
#define DR6_FIXED 0xffff0ff0ull
#define DR6_BITS 0xe00full
#define DR7_FIXED 0x400ull
#define DR7_BITS 0xffff2bffull

/* ---- paging modes --------------------------------------------------------------------------------------- */

/* PAE paging outside long mode loads four entries with CR3; reserved bits there are #GP (SDM vol. 3, 4.4.1). */
static bool pdptes_valid(struct soft_cpu *cpu, uint64_t cr3)
{
	uint64_t reserved = PDPTE_RESERVED | ~((1ull << cpu->svm->maxphyaddr) - 1);
	bool writable;
	const uint8_t *p = guest_ptr(cpu->svm, cr3 & 0xffffffe0ull, 32, &writable);

	for (unsigned i = 0; p && i < 4; i++) {
		uint64_t v = *(const volatile uint64_t *)(const void *)(p + i * 8);

		if ((v & 1) && (v & reserved))
			return false;
	}
	return true;
}

static bool pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
	return (cr0 & X86_CR0_PG) && (cr4 & X86_CR4_PAE) && !(efer & X86_EFER_LMA);
}

/* ---- CR0 ------------------------------------------------------------------------------------------------ */

/* The checks of paging and long mode being switched on or off; *efer follows. */
static bool cr0_paging(struct soft_cpu *cpu, uint64_t cr0, uint64_t *efer)
{
	bool was = cpu->cr0 & X86_CR0_PG, is = cr0 & X86_CR0_PG;

	if (!was && is && (cpu->efer & X86_EFER_LME)) {
		if (!(cpu->cr4 & X86_CR4_PAE) || (cpu->seg[X86_CS].attr & SEG_ATTR_L))
			return false;
		*efer |= X86_EFER_LMA;
	}
	if (was && !is) {
		if (code64(cpu) || (cpu->cr4 & X86_CR4_PCIDE))
			return false;
		*efer &= ~X86_EFER_LMA;
	}
	if (pae_paging(cr0, cpu->cr4, *efer) &&
	    ((cpu->cr0 ^ cr0) & (X86_CR0_PG | X86_CR0_CD | X86_CR0_NW)))
		return pdptes_valid(cpu, cpu->cr3);
	return true;
}

static int cr0_write(struct soft_cpu *cpu, uint64_t value)
{
	uint64_t efer = cpu->efer, changed;

	if (value >> 32)
		return raise_gp0(cpu);
	value = (value & CR0_BITS) | X86_CR0_ET;
	if ((value & X86_CR0_PG) && !(value & X86_CR0_PE))
		return raise_gp0(cpu);
	if ((value & X86_CR0_NW) && !(value & X86_CR0_CD))
		return raise_gp0(cpu);
	if (!cr0_paging(cpu, value, &efer))
		return raise_gp0(cpu);
	changed = cpu->cr0 ^ value;
	cpu->cr0 = value;
	cpu->efer = efer;
	if (!(value & X86_CR0_PE))
		cpu->cpl = 0;
	if (changed & (X86_CR0_PG | X86_CR0_WP | X86_CR0_PE)) {
		soft_tlb_flush_all(cpu, true);
		soft_tlb_switch(cpu, false);
	}
	return 0;
}

/* ---- CR3 ------------------------------------------------------------------------------------------------ */

static int cr3_write(struct soft_cpu *cpu, uint64_t value)
{
	bool pcid = cpu->cr4 & X86_CR4_PCIDE, keep = pcid && (value & CR3_NO_FLUSH);

	if (pcid)
		value &= ~CR3_NO_FLUSH;
	if (long_mode(cpu) && (value & ~((1ull << cpu->svm->maxphyaddr) - 1)))
		return raise_gp0(cpu);
	if (pae_paging(cpu->cr0, cpu->cr4, cpu->efer) && !pdptes_valid(cpu, value))
		return raise_gp0(cpu);
	cpu->cr3 = value;
	soft_tlb_switch(cpu, !keep);
	return 0;
}

/* ---- CR4 ------------------------------------------------------------------------------------------------ */

static uint64_t cr4_allowed(const struct soft_cpu *cpu)
{
	uint64_t bits = CR4_ALWAYS;
	uint32_t ebx7 = model_reg(cpu, 7, CPUID_EBX), ecx7 = model_reg(cpu, 7, CPUID_ECX);
	uint32_t ecx1 = model_reg(cpu, 1, CPUID_ECX);

	if (ebx7 & 1)
		bits |= X86_CR4_FSGSBASE;
	if (ebx7 >> 7 & 1)
		bits |= X86_CR4_SMEP;
	if (ebx7 >> 20 & 1)
		bits |= X86_CR4_SMAP;
	if (ecx7 >> 2 & 1)
		bits |= X86_CR4_UMIP;
	if (ecx1 >> 17 & 1)
		bits |= X86_CR4_PCIDE;
	if (ecx1 >> 26 & 1)
		bits |= X86_CR4_OSXSAVE;
	return bits;
}

static bool cr4_valid(struct soft_cpu *cpu, uint64_t value)
{
	uint64_t changed = cpu->cr4 ^ value;
	uint64_t paging = X86_CR4_PAE | X86_CR4_PSE | X86_CR4_PGE | X86_CR4_SMEP;

	if (value & ~cr4_allowed(cpu))
		return false;
	if (long_mode(cpu) && !(value & X86_CR4_PAE))
		return false;
	if (changed & value & X86_CR4_PCIDE && (!long_mode(cpu) || (cpu->cr3 & 0xfff)))
		return false;
	return !(changed & paging) || !pae_paging(cpu->cr0, value, cpu->efer) ||
	       pdptes_valid(cpu, cpu->cr3);
}

static int cr4_write(struct soft_cpu *cpu, uint64_t value)
{
	uint64_t flushing = X86_CR4_PSE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_PCIDE | X86_CR4_SMEP |
			    X86_CR4_SMAP;
	uint64_t changed = cpu->cr4 ^ value;

	if (!cr4_valid(cpu, value))
		return raise_gp0(cpu);
	cpu->cr4 = value;
	if (changed & flushing) {
		soft_tlb_flush_all(cpu, true);
		soft_tlb_switch(cpu, false);
	}
	return 0;
}

/* ---- MOV CRn, DRn --------------------------------------------------------------------------------------- */

HELPER(do_mov_from_cr)
{
	uint64_t value;

	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	switch (insn->segreg) {
	case 0:
		value = cpu->cr0;
		break;
	case 2:
		value = cpu->cr2;
		break;
	case 3:
		value = cpu->cr3;
		break;
	case 4:
		value = cpu->cr4;
		break;
	case 8:
		value = lapic_tpr(cpu) >> 4;
		break;
	default:
		return soft_raise(cpu, X86_UD);
	}
	gpr_set(cpu, insn->rm, code64(cpu) ? 8 : 4, value);
	return done(cpu, insn);
}

HELPER(do_mov_to_cr)
{
	uint64_t value = gpr_get(cpu, insn->rm, code64(cpu) ? 8 : 4);
	uint64_t cr0 = cpu->cr0;
	enum soft_next after;
	int next = 0;

	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	switch (insn->segreg) {
	case 0:
		next = cr0_write(cpu, value);
		break;
	case 2:
		cpu->cr2 = value;
		return done(cpu, insn);
	case 3:
		next = cr3_write(cpu, value);
		break;
	case 4:
		next = cr4_write(cpu, value);
		break;
	case 8:
		if (value & ~0xfull)
			return raise_gp0(cpu);
		lapic_set_tpr(cpu, (uint8_t)(value << 4));
		return done(cpu, insn);
	default:
		return soft_raise(cpu, X86_UD);
	}
	if (next)
		return next;
	after = done_mode(cpu, insn);
	/* What follows may be mapped elsewhere now; only TS, MP, EM and the like are known not to do that. */
	if (insn->segreg == 0 && !((cr0 ^ cpu->cr0) & (X86_CR0_PG | X86_CR0_PE | X86_CR0_WP)))
		return after;
	return NEXT_LEAVE;
}

HELPER(do_mov_dr)
{
	bool write = insn->opcode == 0x23;
	unsigned size = code64(cpu) ? 8 : 4, n = insn->segreg;
	uint64_t value = gpr_get(cpu, insn->rm, size);

	if (n > 7 || ((n == 4 || n == 5) && (cpu->cr4 & X86_CR4_DE)))
		return soft_raise(cpu, X86_UD);
	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	if (n == 4 || n == 5)
		n += 2;
	if (!write) {
		gpr_set(cpu, insn->rm, size, cpu->dr[n]);
		return done(cpu, insn);
	}
	if (n >= 6 && value >> 32)
		return raise_gp0(cpu);
	if (n == 6)
		value = (value & DR6_BITS) | DR6_FIXED;
	else if (n == 7)
		value = (value & DR7_BITS) | DR7_FIXED;
	cpu->dr[n] = value;
	if (n == 6)
		return done(cpu, insn);
	soft_debug_update(cpu);
	done_mode(cpu, insn);
	return NEXT_LEAVE;
}

HELPER(do_clts)
{
	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	cpu->cr0 &= ~X86_CR0_TS;
	return done_mode(cpu, insn);
}

HELPER(do_smsw)
{
	uint64_t epoch = code_epoch(cpu);
	int next;

	if ((cpu->cr4 & X86_CR4_UMIP) && cpu->cpl > 0)
		return raise_gp0(cpu);
	next = operand_store(cpu, insn, insn->has_mem ? 2 : insn->opsize, cpu->cr0);
	if (next)
		return next;
	return done_since(cpu, insn, epoch);
}

HELPER(do_lmsw)
{
	uint64_t value;
	int next;

	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	next = operand_load(cpu, insn, 2, &value);
	/* It sets PE but never clears it. */
	if (!next)
		next = cr0_write(cpu, (cpu->cr0 & ~0xeull) | (value & 0xf));
	if (next)
		return next;
	done_mode(cpu, insn);
	return NEXT_LEAVE;
}

/* ---- TLB, caches ---------------------------------------------------------------------------------------- */

HELPER(do_invlpg)
{
	uint64_t linear = operand_offset(cpu, insn);

	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	if (!code64(cpu))
		linear = (uint32_t)(linear + cpu->seg[insn->mem_seg].base);
	else if (insn->mem_seg == X86_FS || insn->mem_seg == X86_GS)
		linear += cpu->seg[insn->mem_seg].base;
	if (!code64(cpu) || is_canonical(linear))
		soft_tlb_flush_page(cpu, linear);
	soft_advance(cpu, insn);
	return NEXT_LEAVE;
}

/* SDM vol. 2, INVPCID. */
static int invpcid(struct soft_cpu *cpu, uint64_t type, uint64_t pcid, uint64_t linear)
{
	if (type > 3 || (type < 2 && (pcid >> 12)))
		return raise_gp0(cpu);
	if (type < 2 && pcid && !(cpu->cr4 & X86_CR4_PCIDE))
		return raise_gp0(cpu);
	if (type == 0 && !is_canonical(linear))
		return raise_gp0(cpu);
	if (type == 0)
		soft_tlb_flush_pcid_page(cpu, (uint16_t)pcid, linear);
	else if (type == 1)
		soft_tlb_flush_pcid(cpu, (uint16_t)pcid);
	else
		soft_tlb_flush_all(cpu, type == 2);
	return 0;
}

HELPER(do_invpcid)
{
	uint64_t linear, descriptor[2];
	int next;

	if (!model_bit(cpu, 7, CPUID_EBX, 10))
		return soft_raise(cpu, X86_UD);
	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	next = soft_linear(cpu, insn->mem_seg, operand_offset(cpu, insn), 16, ACCESS_READ, &linear);
	if (!next)
		next = soft_load(cpu, linear, descriptor, 16, ACCESS_READ);
	if (!next)
		next = invpcid(cpu, gpr_get(cpu, insn->reg, code64(cpu) ? 8 : 4), descriptor[0],
			       descriptor[1]);
	if (next)
		return next;
	soft_advance(cpu, insn);
	return NEXT_LEAVE;
}

/* The host's caches are coherent. */
HELPER(do_wbinvd)
{
	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	return done(cpu, insn);
}

/* CLFLUSH, CLFLUSHOPT, CLWB: as far as a program can see, a read of one byte. */
HELPER(do_cache_line)
{
	uint64_t linear, gpa;
	bool there = insn->op == ZYDIS_MNEMONIC_CLFLUSH	     ? model_bit(cpu, 1, CPUID_EDX, 19)
		     : insn->op == ZYDIS_MNEMONIC_CLFLUSHOPT ? model_bit(cpu, 7, CPUID_EBX, 23)
							     : model_bit(cpu, 7, CPUID_EBX, 24);
	int next;

	if (!there)
		return soft_raise(cpu, X86_UD);
	next = soft_linear(cpu, insn->mem_seg, operand_offset(cpu, insn), 1, ACCESS_READ, &linear);
	if (!next)
		next = soft_translate_va(cpu, linear, ACCESS_READ, &gpa, NULL);
	if (next)
		return next;
	return done(cpu, insn);
}

/* ---- XCR0 ----------------------------------------------------------------------------------------------- */

/* XINUSE: the guest's state is in the host's registers while quick code runs. */
static uint64_t state_in_use(void)
{
	uint32_t eax, edx;

	__asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(1));
	return (uint64_t)edx << 32 | eax;
}

/* Leaf 0xd, subleaf 1, EAX bit 2. */
static bool xgetbv1_there(const struct soft_cpu *cpu)
{
	const struct cpuid_table *model = &cpu->svm->vm->cpuid;

	for (unsigned i = 0; i < model->n; i++)
		if (model->leaf[i].leaf == 0xd && model->leaf[i].subleaf == 1)
			return model->leaf[i].regs.eax >> 2 & 1;
	return false;
}

HELPER(do_xgetbv)
{
	uint32_t index = (uint32_t)cpu->gpr[X86_RCX];
	uint64_t value;

	if (!(cpu->cr4 & X86_CR4_OSXSAVE))
		return soft_raise(cpu, X86_UD);
	if (index == 0)
		value = cpu->xcr0;
	else if (index == 1 && xgetbv1_there(cpu))
		value = state_in_use() & cpu->xcr0;
	else
		return raise_gp0(cpu);
	cpu->gpr[X86_RAX] = (uint32_t)value;
	cpu->gpr[X86_RDX] = value >> 32;
	return done(cpu, insn);
}

/* SDM vol. 1 section 13.3: what XCR0 may hold. */
static bool xcr0_valid(const struct soft_cpu *cpu, uint64_t value)
{
	if (!(value & 1) || (value & ~(cpu->xsave_mask & model_reg(cpu, 0xd, CPUID_EAX))))
		return false;
	if ((value & 4) && !(value & 2))
		return false;
	return !(value & 0xe0) || (value & 0xe6) == 0xe6;
}

HELPER(do_xsetbv)
{
	uint64_t value = (uint32_t)cpu->gpr[X86_RAX] | cpu->gpr[X86_RDX] << 32;

	if (!(cpu->cr4 & X86_CR4_OSXSAVE))
		return soft_raise(cpu, X86_UD);
	if (cpu->cpl > 0 || (uint32_t)cpu->gpr[X86_RCX] != 0 || !xcr0_valid(cpu, value))
		return raise_gp0(cpu);
	cpu->xcr0 = value;
	return done_mode(cpu, insn);
}
