/*
 * What kernels execute at every entry and exit, done in place in 64-bit code at CPL 0: CLI, STI, SWAPGS, STAC, CLAC; and
 * SYSCALL and SYSRET, which entry.S does. Where something is out of the way the helper does the instruction. Nothing here
 * changes flags.
 */
#include <Zydis/Mnemonic.h>

#include "engine/soft/translate.h"

/* Conditions under which the instruction is done in place; the helper's call comes with the first. */
struct in_place {
	uint32_t helper, done; /* where the helper is called; the jump behind that */
};

static void emit_if_zero(struct translation *t, struct in_place *p, const struct insn *insn,
			 soft_helper fn)
{
	uint32_t zero = emit_jrcxz(&t->e);

	if (p->helper) {
		emit_jmp_to(&t->e, p->helper);
	} else {
		p->helper = emit_pos(&t->e);
		emit_helper(t, insn, fn, true, false);
		p->done = emit_jmp(&t->e);
	}
	emit_here8(&t->e, zero);
}

static struct in_place emit_if_kernel(struct translation *t, const struct insn *insn,
				      soft_helper fn)
{
	struct in_place p = {0};

	emit_load(&t->e, 1, H_RCX, CPU(cpl));
	emit_if_zero(t, &p, insn, fn);
	return p;
}

/* R10 = RFLAGS but for OSZAPC, without `flag`. */
static void emit_sysflags_without(struct translation *t, uint64_t flag)
{
	emit_load(&t->e, 8, H_R10, CPU(sysflags));
	emit_mov_imm(&t->e, H_RCX, ~flag);
	emit_pext(&t->e, H_R10, H_R10, H_RCX);
	emit_pdep(&t->e, H_R10, H_R10, H_RCX);
}

static void emit_cli(struct translation *t, const struct insn *insn, soft_helper fn)
{
	struct in_place p = emit_if_kernel(t, insn, fn);

	emit_sysflags_without(t, X86_FL_IF);
	emit_store(&t->e, 8, CPU(sysflags), H_R10);
	emit_here(&t->e, p.done);
}

/* An event that waits for IF is the helper's. */
static void emit_sti(struct translation *t, const struct insn *insn, soft_helper fn)
{
	struct emit *e = &t->e;
	struct in_place p = emit_if_kernel(t, insn, fn);
	uint32_t clear, set;

	emit_load(e, 1, H_RCX, CPU(event_waiting));
	emit_if_zero(t, &p, insn, fn);
	emit_load(e, 8, H_R10, CPU(sysflags));
	emit_mov_imm(e, H_RCX, X86_FL_IF);
	emit_pext(e, H_RCX, H_R10, H_RCX);
	clear = emit_jrcxz(e);
	set = emit_jmp(e);
	emit_here8(e, clear);
	emit_lea(e, 8, H_R10, hmem(H_R10, X86_FL_IF));
	emit_store(e, 8, CPU(sysflags), H_R10);
	emit_store_imm(e, 1, CPU(shadow_sti), 1);
	emit_here(e, set);
	emit_here(e, p.done);
}

static void emit_swapgs(struct translation *t, const struct insn *insn, soft_helper fn)
{
	struct emit *e = &t->e;
	struct in_place p = emit_if_kernel(t, insn, fn);

	emit_load(e, 8, H_RCX, CPU(gs_base));
	emit_load(e, 8, H_R10, CPU(msr.kernel_gs_base));
	emit_store(e, 8, CPU(msr.kernel_gs_base), H_RCX);
	emit_store(e, 8, CPU(gs_base), H_R10);
	emit_store(e, 8, CPU(seg[X86_GS].base), H_R10);
	emit_here(e, p.done);
}

/* With CR4.SMAP: the other one of supervisor mode's tables, if its jumps are this mode's. */
static void emit_ac(struct translation *t, const struct insn *insn, soft_helper fn)
{
	struct emit *e = &t->e;
	struct in_place p = emit_if_kernel(t, insn, fn);
	bool stac = insn->op == ZYDIS_MNEMONIC_STAC;
	enum tlb_kind kind = stac ? TLB_SUPER_AC : TLB_SUPER;

	emit_load(e, 4, H_RCX, CPU(side[TLB_SUPER].kind));
	emit_lea(e, 8, H_RCX, hmem(H_RCX, -TLB_SUPER));
	emit_if_zero(t, &p, insn, fn);
	emit_load(e, 4, H_RCX, CPU(side[kind].mode));
	emit_lea(e, 8, H_RCX, hmem(H_RCX, -(int32_t)(t->mode & ~MODE_PLAIN)));
	emit_if_zero(t, &p, insn, fn);
	emit_sysflags_without(t, X86_FL_AC);
	if (stac)
		emit_lea(e, 8, H_R10, hmem(H_R10, X86_FL_AC));
	emit_store(e, 8, CPU(sysflags), H_R10);
	emit_load(e, 8, H_R15, CPU(side[kind].tlb));
	emit_store(e, 8, CPU(tlb), H_R15);
	emit_store_imm(e, 4, CPU(kind), kind);
	emit_lea(e, 8, H_R15, hmem(H_R15, SOFT_TLB_BIAS));
	emit_here(e, p.done);
}

/* Between 64-bit codes. What they change of the mode is known here; behind the call the helper does them. */
static void emit_side(struct translation *t, const struct insn *insn, soft_helper fn)
{
	uint32_t mode = t->mode & ~(MODE_USER | MODE_AC | MODE_PLAIN);
	bool call = insn->op == ZYDIS_MNEMONIC_SYSCALL;

	if (call || (insn->opsize == 8 && !(t->mode & MODE_USER))) {
		emit_rip(t, H_RCX, t->offset + insn->len);
		emit_mov_imm(&t->e, H_R10, call ? mode : mode | MODE_USER);
		emit_call_stub(t, call ? STUB_SYSCALL : STUB_SYSRET);
	}
	emit_helper(t, insn, fn, true, true);
}

/* Neither touches memory, nor does its helper: accesses go on sharing look-ups. */
static void emit_if_flag(struct translation *t, const struct insn *insn, soft_helper fn)
{
	uint8_t live[SHARE_SLOTS];

	memcpy(live, t->live, sizeof(live));
	if (insn->op == ZYDIS_MNEMONIC_CLI)
		emit_cli(t, insn, fn);
	else
		emit_sti(t, insn, fn);
	memcpy(t->live, live, sizeof(live));
}

bool emit_system(struct translation *t, const struct insn *insn, soft_helper fn)
{
	/* Where a step or a shadow ends, the helper sees to it. */
	if (!(t->mode & MODE_CODE64) || (t->mode & (MODE_STEP | MODE_SHADOW)))
		return false;
	switch (insn->op) {
	case ZYDIS_MNEMONIC_CLI:
	case ZYDIS_MNEMONIC_STI:
		emit_if_flag(t, insn, fn);
		return true;
	case ZYDIS_MNEMONIC_SWAPGS:
		emit_swapgs(t, insn, fn);
		return true;
	case ZYDIS_MNEMONIC_CLAC:
	case ZYDIS_MNEMONIC_STAC:
		emit_ac(t, insn, fn);
		return true;
	case ZYDIS_MNEMONIC_SYSCALL:
	case ZYDIS_MNEMONIC_SYSRET:
		emit_side(t, insn, fn);
		return true;
	default:
		return false;
	}
}
