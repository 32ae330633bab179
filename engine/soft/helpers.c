/* Which C function an instruction is. NULL is #UD. */
#include "engine/soft/fpu.h"
#include "engine/soft/q_insn.h"

#define LEAVES 1 /* the block ends there */
#define FULL 2	 /* not quick */

struct helper {
	uint16_t op; /* ZYDIS_MNEMONIC_* */
	uint8_t flags;
	soft_helper fn;
};

#define H(name, fn, flags)                       \
	{                                        \
		ZYDIS_MNEMONIC_##name, flags, fn \
	}

static const struct helper helpers[] = {
	H(ARPL, do_arpl, 0),
	H(BOUND, do_bound, 0),
	H(CLAC, do_clac_stac, 0),
	H(CLD, do_cld_std, 0),
	H(CLFLUSH, do_cache_line, 0),
	H(CLFLUSHOPT, do_cache_line, 0),
	H(CLI, do_cli, 0),
	H(CLTS, do_clts, 0),
	H(CLWB, do_cache_line, 0),
	H(CPUID, do_cpuid, FULL),
	H(ENTER, do_enter, 0),
	H(HLT, do_hlt, LEAVES),
	H(IN, do_in, LEAVES),
	H(INSB, do_ins, LEAVES),
	H(INSD, do_ins, LEAVES),
	H(INSW, do_ins, LEAVES),
	H(INT, do_int, LEAVES),
	H(INT1, do_int, LEAVES),
	H(INT3, do_int, LEAVES),
	H(INTO, do_int, LEAVES),
	H(INVD, do_wbinvd, 0),
	H(INVLPG, do_invlpg, LEAVES),
	H(INVPCID, do_invpcid, LEAVES),
	H(IRET, do_iret, LEAVES),
	H(IRETD, do_iret, LEAVES),
	H(IRETQ, do_iret, LEAVES),
	H(LAR, do_lar_lsl, 0),
	H(LDS, do_load_far_pointer, 0),
	H(LEAVE, do_leave, 0),
	H(LES, do_load_far_pointer, 0),
	H(LFS, do_load_far_pointer, 0),
	H(LGDT, do_lgdt_lidt, 0),
	H(LGS, do_load_far_pointer, 0),
	H(LIDT, do_lgdt_lidt, 0),
	H(LLDT, do_lldt, 0),
	H(LMSW, do_lmsw, LEAVES),
	H(LSL, do_lar_lsl, 0),
	H(LSS, do_load_far_pointer, 0),
	H(LTR, do_ltr, 0),
	H(OUT, do_out, LEAVES),
	H(OUTSB, do_outs, LEAVES),
	H(OUTSD, do_outs, LEAVES),
	H(OUTSW, do_outs, LEAVES),
	H(POP, do_pop, 0),
	H(POPA, do_popa, 0),
	H(POPAD, do_popa, 0),
	H(POPF, do_popf, LEAVES),
	H(POPFD, do_popf, LEAVES),
	H(POPFQ, do_popf, LEAVES),
	H(PUSH, do_push, 0),
	H(PUSHA, do_pusha, 0),
	H(PUSHAD, do_pusha, 0),
	H(PUSHF, do_pushf, 0),
	H(PUSHFD, do_pushf, 0),
	H(PUSHFQ, do_pushf, 0),
	H(RDFSBASE, do_rdfsgsbase, 0),
	H(RDGSBASE, do_rdfsgsbase, 0),
	H(RDMSR, do_rdmsr, 0),
	H(RDPID, do_rdpid, 0),
	H(RDPMC, do_rdpmc, 0),
	H(RDRAND, do_random, 0),
	H(RDSEED, do_random, 0),
	H(RDTSC, do_rdtsc, 0),
	H(RDTSCP, do_rdtsc, 0),
	H(SGDT, do_sgdt_sidt, 0),
	H(SIDT, do_sgdt_sidt, 0),
	H(SLDT, do_sldt_str, 0),
	H(SMSW, do_smsw, 0),
	H(STAC, do_clac_stac, 0),
	H(STD, do_cld_std, 0),
	H(STI, do_sti, 0),
	H(STR, do_sldt_str, 0),
	H(SWAPGS, do_swapgs, 0),
	H(SYSCALL, do_syscall, LEAVES),
	H(SYSENTER, do_sysenter, LEAVES),
	H(SYSEXIT, do_sysexit, LEAVES),
	H(SYSRET, do_sysret, LEAVES),
	H(UD0, do_ud, LEAVES),
	H(UD1, do_ud, LEAVES),
	H(UD2, do_ud, LEAVES),
	H(VERR, do_verr_verw, 0),
	H(VERW, do_verr_verw, 0),
	H(VMCALL, do_hypercall, 0),
	H(VMMCALL, do_hypercall, 0),
	H(WBINVD, do_wbinvd, 0),
	H(WRFSBASE, do_wrfsgsbase, 0),
	H(WRGSBASE, do_wrfsgsbase, 0),
	H(WRMSR, do_wrmsr, LEAVES),
	H(XGETBV, do_xgetbv, 0),
	H(XSETBV, do_xsetbv, LEAVES),
};

static bool far_branch(const struct insn *insn)
{
	unsigned reg = insn->modrm >> 3 & 7;

	if (insn->map != 0)
		return false;
	switch (insn->opcode) {
	case 0xff:
		return reg == 3 || reg == 5;
	case 0x9a:
	case 0xea:
	case 0xca:
	case 0xcb:
		return true;
	default:
		return false;
	}
}

static soft_helper branch_helper(const struct insn *insn)
{
	bool far = far_branch(insn);

	switch (insn->op) {
	case ZYDIS_MNEMONIC_JMP:
		return far ? do_far_jmp : do_jmp;
	case ZYDIS_MNEMONIC_CALL:
		return far ? do_far_call : do_call;
	case ZYDIS_MNEMONIC_RET:
		return far ? do_far_ret : do_ret;
	default:
		return NULL;
	}
}

/* MOV to and from segment, control and debug registers. */
static soft_helper mov_helper(const struct insn *insn, bool *leaves)
{
	if (insn->op != ZYDIS_MNEMONIC_MOV)
		return NULL;
	if (insn->map == 0) {
		if (insn->opcode == 0x8c)
			return do_mov_from_seg;
		return insn->opcode == 0x8e ? do_mov_to_seg : NULL;
	}
	switch (insn->opcode) {
	case 0x20:
		return do_mov_from_cr;
	case 0x22:
		*leaves = true;
		return do_mov_to_cr;
	case 0x21:
	case 0x23:
		return do_mov_dr;
	default:
		return NULL;
	}
}

static const struct helper *helper_find(uint16_t op)
{
	for (unsigned i = 0; i < sizeof(helpers) / sizeof(helpers[0]); i++)
		if (helpers[i].op == op)
			return &helpers[i];
	return NULL;
}

static soft_helper quick_helper(const struct insn *insn, bool *leaves)
{
	soft_helper fn = branch_helper(insn);

	if (fn) {
		*leaves = true;
		return fn;
	}
	fn = mov_helper(insn, leaves);
	if (!fn)
		fn = string_helper_for(insn);
	if (!fn)
		fn = bits_helper_for(insn);
	return fn ? fn : bcd_helper_for(insn);
}

soft_helper soft_helper_for(const struct insn *insn, uint32_t mode, bool *leaves, bool *quick)
{
	const struct helper *h;
	soft_helper fn;

	(void)mode;
	*leaves = false;
	*quick = true;
	fn = quick_helper(insn, leaves);
	if (fn)
		return fn;
	h = helper_find(insn->op);
	if (h) {
		*leaves = h->flags & LEAVES;
		*quick = !(h->flags & FULL);
		return h->fn;
	}
	*quick = false;
	return fpu_helper_for(insn);
}
