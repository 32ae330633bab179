/*
 * Where a block goes: branches, calls, returns, the stack operations that belong to them, and the cold parts
 * behind the block. Nothing here changes flags.
 */
#include <Zydis/Mnemonic.h>

#include "engine/soft/translate.h"

#define ONE_INSN (MODE_STEP | MODE_SHADOW)
#define PAGE 4096

static unsigned rip_width(const struct translation *t)
{
	return t->mode & MODE_CODE64 ? 8 : 4;
}

void emit_rip(struct translation *t, uint8_t dst, int64_t offset)
{
	int64_t near = offset > INT32_MAX ? INT32_MAX : offset < INT32_MIN ? INT32_MIN : offset;

	emit_load(&t->e, 8, dst, CPU(page_rip));
	emit_lea(&t->e, rip_width(t), dst, hmem(dst, (int32_t)near));
	if (offset !=
	    near) /* by a page and a bit, as a branch of 32 bits is from where it is in its page */
		emit_lea(&t->e, rip_width(t), dst, hmem(dst, (int32_t)(offset - near)));
}

#define TLB_DISP(member) ((int32_t)offsetof(struct soft_tlb, member) - SOFT_TLB_BIAS)

/* RCX = twice the index into the jump cache of the RIP in R10. */
static void emit_jump_index(struct emit *e)
{
	emit_rorx(e, H_RCX, H_R10, JUMP_ROTATE);
	emit_movzx(e, 2, H_RCX, H_RCX);
	emit_lea(e, 8, H_RCX, hmem_x(H_RCX, H_RCX, 1, 0));
}

/* R10 = RIP: through the jump cache, or out to dispatch, which then fills it. The index is computed twice, for there is no third
 * register that could keep it, and a guest's one would have to go through memory. */
void emit_indirect(struct translation *t)
{
	struct emit *e = &t->e;
	uint32_t hit;

	if (t->mode & ONE_INSN) {
		emit_jmp_stub(t, STUB_LEAVE_TO);
		return;
	}
	emit_jump_index(e);
	emit_load(e, 8, H_RCX, hmem_x(H_R15, H_RCX, 8, TLB_DISP(jump[0].tag)));
	emit_lea(e, 8, H_RCX, hmem_x(H_RCX, H_R10, 1, 0));
	hit = emit_jrcxz(e);
	emit_jmp_stub(t, STUB_LEAVE_TO);
	emit_here8(e, hit);
	emit_jump_index(e);
	emit_jmp_mem(e, hmem_x(H_R15, H_RCX, 8, TLB_DISP(jump[0].code)));
}

/* Nops so that `opcode_len` bytes further a rel32 is within eight aligned bytes: it is patched while others run it. */
static void align_rel32(struct translation *t, unsigned opcode_len)
{
	static const uint8_t nops[4][3] = {{0}, {0x90}, {0x66, 0x90}, {0x0f, 0x1f, 0x00}};
	unsigned at = (t->base + emit_pos(&t->e) + opcode_len) % 8, pad = at > 4 ? 8 - at : 0;

	emit_bytes(&t->e, nops[pad], pad);
}

static struct exit_site *exit_add(struct translation *t, uint32_t place, int64_t target, bool plain)
{
	struct exit_site *site = &t->exits[t->nexits];

	if (t->nexits == BLOCK_LINKS_MAX) {
		t->e.overflow = true;
		return &t->exits[0];
	}
	t->nexits++;
	*site = (struct exit_site){.jump = place, .target = target, .plain = plain};
	return site;
}

/* In 64-bit code from any page to any other that page_rip can move to and back; else RIP might wrap round on the way. */
static bool exit_linkable(const struct translation *t, int64_t target)
{
	if (t->mode & ONE_INSN)
		return false;
	if (t->mode & MODE_CODE64)
		return target > INT32_MIN + PAGE && target < INT32_MAX - PAGE;
	return (t->mode & MODE_FLAT) && target >= 0 && target < PAGE;
}

/* Does what is there depend on how more than the jump's own page is mapped? The last instruction of a page may go on
 * behind it. */
static bool target_far(const struct translation *t, int64_t target)
{
	if (target < 0 || target >= PAGE)
		return true;
	return (t->mode & MODE_CODE64) && target > PAGE - INSN_MAX;
}

/*
 * From one page to another, or to its end: page_rip moves on if the place in `far` says so. The jump to be linked leads, while it is not,
 * to where page_rip moves back: another vCPU may unlink it at any time, before this one has heard that `far` is void. False: there are no
 * places left; such a jump is never linked.
 */
static bool emit_far(struct translation *t, struct exit_site *site)
{
	struct emit *e = &t->e;
	int32_t by = (int32_t)site->target & ~(PAGE - 1);
	uint32_t hit;

	site->far = cache_far_new(t->svm, &site->far_entry, &site->far_number);
	if (!site->far)
		return false;
	emit_load(e, 8, H_R10, CPU(page_rip));
	emit_load(e, 8, H_RCX, hmem(H_R15, TLB_DISP(far[0]) + 8 * (int32_t)site->far_entry));
	emit_lea(e, 8, H_RCX, hmem_x(H_R10, H_RCX, 1, site->far_number));
	hit = emit_jrcxz(e);
	site->miss = emit_jmp(e);
	emit_here8(e, hit);
	if (by) {
		emit_lea(e, 8, H_R10, hmem(H_R10, by));
		emit_store(e, 8, CPU(page_rip), H_R10);
	}
	align_rel32(t, 1);
	site->jump = emit_jmp(e);
	return true;
}

void emit_goto(struct translation *t, int64_t target)
{
	struct exit_site *site;

	if (!exit_linkable(t, target)) {
		emit_rip(t, H_R10, target);
		emit_indirect(t);
		return;
	}
	site = exit_add(t, 0, target, false);
	if (target_far(t, target) && emit_far(t, site))
		return;
	align_rel32(t, 1);
	site->jump = emit_jmp(&t->e);
}

/* A conditional jump is the last but one thing that a block may leave by; room for the end must stay. */
static void emit_goto_if(struct translation *t, unsigned cc, int64_t target)
{
	align_rel32(t, 2);
	exit_add(t, emit_jcc(&t->e, cc), target, false);
}

/* Target of a relative branch, as a page offset; 16-bit ones wrap and are not done by offset. */
static int64_t branch_target(const struct translation *t, const struct insn *insn)
{
	return (int64_t)t->offset + insn->len + (int32_t)insn->imm[0];
}

/* R10 = target of a 16-bit relative branch. */
static void emit_target16(struct translation *t, const struct insn *insn)
{
	emit_rip(t, H_R10, branch_target(t, insn));
	emit_movzx(&t->e, 2, H_R10, H_R10);
}

static void emit_branch(struct translation *t, const struct insn *insn)
{
	if (insn->opsize == 2) {
		emit_target16(t, insn);
		emit_indirect(t);
	} else {
		emit_goto(t, branch_target(t, insn));
	}
}

/* ---- stack ------------------------------------------------------------------------------------------ */

/* Is the stack one that is done inline: 64-bit, or 32-bit flat, with full-width operands? */
static bool stack_inline(const struct translation *t, const struct insn *insn)
{
	if (t->mode & MODE_CODE64)
		return insn->opsize == 8;
	return (t->mode & MODE_FLAT) && (t->mode & MODE_STACK32) && insn->opsize == 4;
}

/* PUSH and POP of registers and constants, CALL and RET of the common kinds. */
static bool row_opcode(const struct insn *insn)
{
	if (insn->map != 0)
		return false;
	if ((insn->opcode & 0xf0) == 0x50)
		return insn->opreg != X86_RSP;
	switch (insn->opcode) {
	case 0x68: /* PUSH imm */
	case 0x6a:
	case 0xc2: /* RET */
	case 0xc3:
	case 0xe8: /* CALL */
		return true;
	default:
		return false;
	}
}

/*
 * Pushes and pops that share a look-up need R14 for nothing but to move it, so a row of them moves it once, behind the last. In
 * between there are only instructions that do not name RSP, do not fault and do not leave the block.
 */
bool rsp_may_wait(const struct translation *t)
{
	const struct insn *insn = t->insn;

	if (native_taken(insn) & 1u << H_R14)
		return false;
	switch (insn->op) {
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP:
	case ZYDIS_MNEMONIC_CALL:
	case ZYDIS_MNEMONIC_RET:
		return row_opcode(insn) && share_is_member(t);
	case ZYDIS_MNEMONIC_LEA:
		return true;
	case ZYDIS_MNEMONIC_MOV:
	case ZYDIS_MNEMONIC_MOVZX:
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD:
	case ZYDIS_MNEMONIC_XOR:
	case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
	case ZYDIS_MNEMONIC_CMP:
	case ZYDIS_MNEMONIC_TEST:
		return !insn->has_mem && native_classify(t->svm->isa, insn, t->mode) == RUN_NATIVE;
	default:
		return false;
	}
}

void emit_rsp(struct translation *t)
{
	if (t->owed)
		emit_lea(&t->e, 8, H_R14, hmem(H_R14, t->owed));
	t->owed = 0;
}

static void emit_push(struct translation *t, struct body *b)
{
	struct cold *cold;

	b->insn = t->insn;
	b->borrowed = H_NONE;
	b->size = t->insn->opsize;
	b->mem = emit_stack_access(t, H_R14, -(int32_t)b->size, b->size, MEM_WRITE, &cold);
	b->move = t->owed - (int32_t)b->size;
	t->owed = 0;
	if (!cold && b->kind != BODY_CALL) {
		t->owed = b->move;
		b->move = 0;
	}
	emit_body(t, b);
	if (cold) {
		cold->body = *b;
		cold->back = emit_pos(&t->e);
	}
}

/* dst = the value at the top of the stack; the pointer moves by its size and `more`. */
static void emit_pop(struct translation *t, const struct insn *insn, uint8_t dst, uint8_t pointer,
		     int32_t more)
{
	struct cold *cold;
	struct hmem m = emit_stack_access(t, pointer, 0, insn->opsize, MEM_READ, &cold);

	emit_load(&t->e, insn->opsize, dst, m);
	t->owed += insn->opsize + more;
	if (cold || pointer != H_R14 || insn->op != ZYDIS_MNEMONIC_POP) {
		emit_lea(&t->e, rip_width(t), H_R14, hmem(pointer, t->owed));
		t->owed = 0;
	}
}

/* `dst`, RCX or R10 = the operand of an indirect jump or call, or of PUSH. */
static void emit_operand_to(struct translation *t, const struct insn *insn, uint8_t dst)
{
	if (insn->has_mem) {
		struct cold *cold;
		struct hmem m = emit_access(t, insn, insn->opsize, MEM_READ, false, &cold);

		emit_load(&t->e, insn->opsize, dst, m);
	} else {
		emit_get_gpr(t, dst, insn->rm);
		if (insn->opsize == 4)
			emit_mov_rr(&t->e, 4, dst, dst);
		else if (insn->opsize == 2)
			emit_movzx(&t->e, 2, dst, dst);
	}
}

static bool emit_push_insn(struct translation *t, const struct insn *insn)
{
	struct body b = {.kind = BODY_PUSH_IMM};

	if (!stack_inline(t, insn) || insn->map != 0)
		return false;
	if ((insn->opcode & 0xf8) == 0x50) {
		b.reg = guest_reg(insn->opreg);
		b.kind = b.reg == H_NONE ? BODY_PUSH_SLOT : BODY_PUSH_REG;
		b.imm = (uint64_t)CPU_GPR(insn->opreg).disp;
	} else if (insn->opcode == 0x68 || insn->opcode == 0x6a) {
		b.imm = insn->imm[0];
	} else if (insn->opcode == 0xff) {
		emit_operand_to(t, insn, H_RCX);
		emit_store(&t->e, 8, CPU(scratch[2]), H_RCX);
		b.kind = BODY_PUSH_SLOT;
		b.imm = (uint64_t)CPU(scratch[2]).disp;
	} else {
		return false;
	}
	emit_push(t, &b);
	return true;
}

/* PUSHFQ. RF and VM are pushed as 0; neither is set in 64-bit code but for a step's sake. */
static bool emit_pushf(struct translation *t, const struct insn *insn)
{
	static const uint8_t pushfq_pop_rcx[] = {0x9c, 0x59}; /* to C's stack */
	struct body b = {.kind = BODY_PUSH_SLOT, .imm = (uint64_t)CPU(scratch[2]).disp};
	struct emit *e = &t->e;

	if (!(t->mode & MODE_CODE64) || (t->mode & ONE_INSN) || insn->opsize != 8)
		return false;
	t->in_r10 = 0;
	emit_bytes(e, pushfq_pop_rcx, sizeof(pushfq_pop_rcx));
	emit_mov_imm(e, H_R10, ARITH_FLAGS | X86_FL_FIXED);
	emit_pext(e, H_RCX, H_RCX, H_R10);
	emit_pdep(e, H_RCX, H_RCX, H_R10);
	emit_load(e, 8, H_R10, CPU(sysflags));
	emit_lea(e, 8, H_RCX, hmem_x(H_RCX, H_R10, 1, 0));
	emit_store(e, 8, CPU(scratch[2]), H_RCX);
	emit_push(t, &b);
	return true;
}

static bool emit_pop_insn(struct translation *t, const struct insn *insn)
{
	uint8_t reg = guest_reg(insn->opreg);

	if (!stack_inline(t, insn) || insn->map != 0 || (insn->opcode & 0xf8) != 0x58)
		return false;
	if (reg != H_NONE && reg != H_R14) {
		emit_pop(t, insn, reg, H_R14, 0);
		return true;
	}
	emit_pop(t, insn, H_RCX, H_R14, 0);
	if (reg == H_R14)
		t->owed = 0;
	emit_set_gpr(t, insn->opreg, H_RCX, insn->opsize);
	return true;
}

static bool emit_leave(struct translation *t, const struct insn *insn)
{
	if (!stack_inline(t, insn))
		return false;
	emit_pop(t, insn, H_RCX, H_RBP, 0);
	emit_mov_rr(&t->e, insn->opsize, H_RBP, H_RCX);
	return true;
}

static bool emit_ret(struct translation *t, const struct insn *insn)
{
	if (!stack_inline(t, insn) || (insn->opcode != 0xc3 && insn->opcode != 0xc2))
		return false;
	emit_pop(t, insn, H_R10, H_R14, insn->opcode == 0xc2 ? (int32_t)(uint16_t)insn->imm[0] : 0);
	emit_indirect(t);
	t->ended = true;
	return true;
}

/* ---- calls and jumps -------------------------------------------------------------------------------- */

static bool near_indirect(const struct insn *insn, unsigned reg)
{
	return insn->map == 0 && insn->opcode == 0xff && (insn->modrm >> 3 & 7) == reg;
}

static bool emit_call(struct translation *t, const struct insn *insn)
{
	struct body b = {.kind = BODY_CALL, .imm = (uint64_t)(t->offset + insn->len)};

	if (!stack_inline(t, insn))
		return false;
	if (near_indirect(insn, 2)) {
		emit_operand_to(t, insn, H_RCX);
		emit_store(&t->e, 8, CPU(scratch[2]), H_RCX);
		b.indirect = true;
	} else if (insn->branch) {
		b.target = branch_target(t, insn);
	} else {
		return false;
	}
	emit_push(t, &b);
	if (b.indirect) {
		emit_load(&t->e, 8, H_R10, CPU(scratch[2]));
		emit_indirect(t);
	} else {
		emit_goto(t, b.target);
	}
	t->ended = true;
	return true;
}

static bool emit_jmp_insn(struct translation *t, const struct insn *insn)
{
	if (insn->branch) {
		emit_branch(t, insn);
	} else if (near_indirect(insn, 4)) {
		emit_operand_to(t, insn, H_R10);
		emit_indirect(t);
	} else {
		return false;
	}
	t->ended = true;
	return true;
}

static void emit_jcc_insn(struct translation *t, const struct insn *insn, unsigned cc)
{
	uint32_t skip;

	if (t->loop.length && t->index == t->loop.length) {
		t->loop.from = emit_jcc(&t->e, cc);
		t->loop.cont = emit_pos(&t->e);
		share_forget(t);
		return;
	}
	if (insn->opsize != 2) {
		emit_goto_if(t, cc, branch_target(t, insn));
		return;
	}
	skip = emit_jcc(&t->e, cc ^ 1);
	emit_target16(t, insn);
	emit_indirect(t);
	emit_here(&t->e, skip);
}

/* RCX = the guest's count register as the address size sees it. */
static void emit_count(struct translation *t, const struct insn *insn)
{
	if (insn->addrsize == 2)
		emit_movzx(&t->e, 2, H_RCX, H_R11);
	else
		emit_mov_rr(&t->e, insn->addrsize, H_RCX, H_R11);
}

/* LOOP, LOOPE, LOOPNE, JCXZ, JECXZ, JRCXZ. `cc`: that must hold as well, 16 for none. */
static void emit_loop(struct translation *t, const struct insn *insn, bool decrement, unsigned cc)
{
	struct emit *e = &t->e;
	uint32_t zero, out, no_cc = 0;

	if (decrement) {
		emit_lea(e, 8, H_RCX, hmem(H_R11, -1));
		emit_set_gpr(t, X86_RCX, H_RCX, insn->addrsize);
	}
	emit_count(t, insn);
	zero = emit_jrcxz(e);
	if (!decrement) {
		out = emit_jmp(e);
		emit_here8(e, zero);
		emit_branch(t, insn);
		emit_here(e, out);
		return;
	}
	out = emit_jmp(e);
	emit_here8(e, zero);
	zero = emit_jmp(e);
	emit_here(e, out);
	if (cc < 16)
		no_cc = emit_jcc(e, cc ^ 1);
	emit_branch(t, insn);
	emit_here(e, zero);
	if (cc < 16)
		emit_here(e, no_cc);
}

unsigned jcc_condition(const struct insn *insn)
{
	if (insn->encoding == ENC_LEGACY && insn->branch &&
	    ((insn->map == 0 && (insn->opcode & 0xf0) == 0x70) ||
	     (insn->map == 1 && (insn->opcode & 0xf0) == 0x80)))
		return insn->opcode & 15;
	return 16;
}

bool emit_flow(struct translation *t, const struct insn *insn)
{
	unsigned cc = jcc_condition(insn);

	if (cc < 16) {
		emit_jcc_insn(t, insn, cc);
		return true;
	}
	switch (insn->op) {
	case ZYDIS_MNEMONIC_PUSH:
		return emit_push_insn(t, insn);
	case ZYDIS_MNEMONIC_PUSHFQ:
		return emit_pushf(t, insn);
	case ZYDIS_MNEMONIC_POP:
		return emit_pop_insn(t, insn);
	case ZYDIS_MNEMONIC_LEAVE:
		return emit_leave(t, insn);
	case ZYDIS_MNEMONIC_RET:
		return emit_ret(t, insn);
	case ZYDIS_MNEMONIC_CALL:
		return emit_call(t, insn);
	case ZYDIS_MNEMONIC_JMP:
		return emit_jmp_insn(t, insn);
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ:
		emit_loop(t, insn, false, 16);
		return true;
	case ZYDIS_MNEMONIC_LOOP:
		emit_loop(t, insn, true, 16);
		return true;
	case ZYDIS_MNEMONIC_LOOPE:
		emit_loop(t, insn, true, 4);
		return true;
	case ZYDIS_MNEMONIC_LOOPNE:
		emit_loop(t, insn, true, 5);
		return true;
	default:
		return false;
	}
}

/* ---- cold parts ------------------------------------------------------------------------------------- */

static void emit_cold_call(struct translation *t, const struct cold *c)
{
	const struct body *b = &c->body;
	uint32_t direct;

	emit_body(t, b);
	emit_load(&t->e, 8, H_RCX, CPU(bounce_active));
	direct = emit_jrcxz(&t->e);
	if (b->indirect)
		emit_load(&t->e, 8, H_RCX, CPU(scratch[2]));
	else
		emit_rip(t, H_RCX, b->target);
	emit_store(&t->e, 8, CPU(rip), H_RCX);
	emit_mov_imm(&t->e, H_RCX, c->desc | MEM_KEEP_RIP);
	emit_call_stub(t, STUB_COMMIT);
	emit_jmp_stub(t, STUB_LEAVE);
	emit_here8(&t->e, direct);
	emit_jmp_to(&t->e, c->back);
}

static void emit_cold_access(struct translation *t, const struct cold *c)
{
	struct emit *e = &t->e;

	t->offset = c->offset;
	translation_mark(t, 0);
	emit_here(e, c->from);
	if (!c->address)
		emit_lea(e, 8, H_R10, c->linear);
	emit_mov_imm(e, H_RCX, c->desc);
	emit_call_stub(t, c->address ? STUB_SLOW_ADDRESS : STUB_SLOW_ADDEND);
	if (c->body.kind == BODY_CALL) {
		emit_cold_call(t, c);
		return;
	}
	if (c->body.kind != BODY_NONE) {
		uint32_t direct = 0;

		emit_body(t, &c->body);
		if (c->leaves) {
			emit_load(e, 8, H_RCX, CPU(bounce_active));
			direct = emit_jrcxz(e);
		}
		emit_mov_imm(e, H_RCX, c->desc);
		emit_call_stub(t, STUB_COMMIT);
		if (c->leaves) {
			emit_jmp_stub(t, STUB_LEAVE); /* cpu->rip is the next instruction's */
			emit_here8(e, direct);
		}
	}
	emit_jmp_to(e, c->back);
}

static void emit_probe(struct translation *t, const struct probe *p)
{
	struct emit *e = &t->e;
	uint32_t found = 0;

	emit_here(e, p->from);
	if (p->what) {
		if (!p->address)
			emit_lea(e, 8, H_R10, p->linear);
		emit_mov_imm(e, H_RCX, p->what);
		emit_call_stub(t, STUB_PROBE);
		found = emit_jrcxz(e);
	}
	align_rel32(t, 1);
	exit_add(t, emit_jmp(e), p->offset, true);
	if (p->what) {
		emit_here8(e, found);
		emit_jmp_to(e, p->back);
	}
}

/* The cold half of each exit; its links were made by translate.c in the order of t->exits. */
void emit_cold_parts(struct translation *t)
{
	for (unsigned i = 0; i < t->ncold; i++)
		emit_cold_access(t, &t->cold[i]);
	for (unsigned i = 0; i < t->nprobes; i++)
		emit_probe(t, &t->probe[i]);
}

/* RCX names the link to a thunk. */
static void emit_exit(struct translation *t, const struct block_link *link, enum soft_stub stub)
{
	uint64_t offset = (uint64_t)((const uint8_t *)link - t->svm->meta);

	emit_mov_imm(&t->e, H_RCX, offset / 8);
	emit_jmp_stub(t, stub);
}

void emit_exit_part(struct translation *t, struct exit_site *site, struct block_link *link)
{
	struct emit *e = &t->e;

	if (!exit_linkable(t, site->target)) {
		emit_here(e, site->jump);
		emit_rip(t, H_R10, site->target);
		emit_indirect(t);
		return;
	}
	link->target = (int32_t)site->target;
	link->plain = site->plain;
	link->far = target_far(t, site->target);
	link->tries = 1;
	if (link->far && !site->far) {
		emit_here(e, site->jump);
		emit_far(t, site);
	}
	link->far_entry = site->far_entry;
	link->far_number = site->far_number;
	link->patch = t->base + site->jump;
	emit_here(e, site->jump);
	link->unlinked = t->base + emit_pos(e);
	if (site->far) {
		emit_exit(t, link, STUB_EXIT_FAR);
		emit_here(e, site->miss);
	}
	emit_exit(t, link, STUB_EXIT);
}
