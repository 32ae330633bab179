/* One block of guest code to host code: see translate.h. Under svm->lock. */
#include "engine/soft/translate.h"

#include <Zydis/Mnemonic.h>
#include <errno.h>
#include <string.h>

#include "engine/soft/native.h"
#include "engine/soft/profile.h"
#include "engine/soft/q_lock.h"
#include "engine/soft/trace.h"
#include "vmm/vm.h"

#define PAGE 4096u

void translation_mark(struct translation *t, uint16_t flags)
{
	if (t->npcs == BLOCK_PCS_MAX) {
		t->e.overflow = true;
		return;
	}
	t->pcs[t->npcs++] = (struct block_pc){
		.host = emit_pos(&t->e), .guest = (uint16_t)(t->offset - t->start), .flags = flags};
}

/* ---- stubs ---------------------------------------------------------------------------------------- */

uint32_t soft_code_stubs(struct soft_vm *svm)
{
	static const uint8_t jmp[8] = {0xff, 0x25, 2, 0, 0, 0}; /* to what is at RIP + 2 */
	uint8_t *p = svm->code_rw + svm->cold;

	for (unsigned i = 0; i < STUBS; i++, p += CODE_STUB_SIZE) {
		memcpy(p, jmp, sizeof(jmp));
		memcpy(p + sizeof(jmp), &soft_stubs[i], sizeof(soft_stubs[i]));
	}
	return STUBS * CODE_STUB_SIZE;
}

static uint32_t stub_pos(const struct translation *t, enum soft_stub stub)
{
	return t->svm->cold + (uint32_t)stub * CODE_STUB_SIZE - t->base;
}

void emit_jmp_stub(struct translation *t, enum soft_stub stub)
{
	emit_jmp_to(&t->e, stub_pos(t, stub));
}

void emit_call_stub(struct translation *t, enum soft_stub stub)
{
	emit_call_to(&t->e, stub_pos(t, stub));
}

/* ---- helpers -------------------------------------------------------------------------------------- */

static enum soft_next raise_ud(struct soft_cpu *cpu, const struct insn *insn)
{
	(void)insn;
	return soft_raise(cpu, X86_UD);
}

static enum soft_next raise_nm(struct soft_cpu *cpu, const struct insn *insn)
{
	(void)insn;
	return soft_raise(cpu, X86_NM);
}

static enum soft_next raise_gp(struct soft_cpu *cpu, const struct insn *insn)
{
	(void)insn;
	return soft_raise_error(cpu, X86_GP, 0);
}

static void emit_leave_at(struct translation *t, int32_t offset)
{
	if (t->mode & MODE_CODE64) {
		emit_mov_imm(&t->e, H_RCX, (uint32_t)offset);
		emit_jmp_stub(t, STUB_LEAVE_AT);
		return;
	}
	emit_rip(t, H_RCX, offset);
	emit_store(&t->e, 8, CPU(rip), H_RCX);
	emit_jmp_stub(t, STUB_LEAVE);
}

void emit_helper(struct translation *t, const struct insn *insn, soft_helper fn, bool quick,
		 bool leaves)
{
	struct emit *e = &t->e;
	struct insn *copy = cache_meta_alloc(t->svm, sizeof(*copy));

	if (!copy) {
		t->no_meta = true;
		return;
	}
	*copy = *insn;
	share_forget(t);
	emit_rip(t, H_RCX, t->offset);
	emit_store(e, 8, CPU(rip), H_RCX);
	emit_mov_imm(e, H_R10, (uint64_t)(uintptr_t)copy);
	emit_mov_imm(e, H_RCX, (uint64_t)(uintptr_t)fn);
	emit_call_mem(e, CPU_STUB(quick ? STUB_QUICK : STUB_FULL));
	if (leaves) {
		emit_jmp_stub(t, STUB_LEAVE);
		t->ended = true;
	}
}

static bool is_nop(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_PAUSE:
	case ZYDIS_MNEMONIC_ENDBR32: /* NOP where CET is not shown (SDM vol. 1 section 17.3) */
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_RDSSPD:
	case ZYDIS_MNEMONIC_RDSSPQ:
	case ZYDIS_MNEMONIC_PREFETCH:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHW:
	case ZYDIS_MNEMONIC_PREFETCHWT1:
	case ZYDIS_MNEMONIC_CLDEMOTE:
		return true;
	default:
		return false;
	}
}

/* Nothing is translated behind this instruction, as far as one can tell beforehand. */
static bool ends_block(const struct translation *t, const struct insn *insn)
{
	bool leaves = false, quick;

	switch (insn->op) {
	case ZYDIS_MNEMONIC_CALL:
	case ZYDIS_MNEMONIC_JMP:
	case ZYDIS_MNEMONIC_RET:
		return true;
	case ZYDIS_MNEMONIC_LEA:
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP:
		return false;
	default:
		break;
	}
	if (is_nop(insn) || insn->branch)
		return false;
	switch (native_classify(t->svm->isa, insn, t->mode)) {
	case RUN_NATIVE:
		return false;
	case RUN_HELPER:
		return !soft_helper_for(insn, t->mode, &leaves, &quick) || leaves;
	default:
		return true;
	}
}

static void emit_one(struct translation *t, struct insn *insn)
{
	bool leaves = false, quick = false;
	soft_helper fn;

	if (is_nop(insn))
		return;
	if (insn->op == ZYDIS_MNEMONIC_LEA) {
		emit_lea_insn(t, insn);
		return;
	}
	if (insn->branch)
		t->in_r10 = 0;
	if (emit_flow(t, insn))
		return;
	switch (native_classify(t->svm->isa, insn, t->mode)) {
	case RUN_NATIVE:
		emit_native(t, insn);
		return;
	case RUN_NM:
		emit_helper(t, insn, raise_nm, false, true);
		return;
	case RUN_UD:
		emit_helper(t, insn, raise_ud, false, true);
		return;
	case RUN_HELPER:
		break;
	}
	fn = soft_helper_for(insn, t->mode, &leaves, &quick);
	if (fn && emit_system(t, insn, fn))
		return;
	if (fn)
		emit_helper(t, insn, fn, quick, leaves);
	else
		emit_helper(t, insn, raise_ud, false, true);
}

/* ---- blocks --------------------------------------------------------------------------------------- */

/* RCX = R10 less the page offset of the block's start, in seven bytes whatever that is: block_bury(). */
static void emit_page_begin(struct translation *t)
{
	const uint8_t lea[3] = {t->mode & MODE_CODE64 ? 0x49 : 0x41, 0x8d, 0x8a};

	emit_bytes(&t->e, lea, sizeof(lea));
	emit_u32(&t->e, -(uint32_t)t->start);
}

static void emit_head(struct translation *t, struct soft_block *block)
{
	struct emit *e = &t->e;
	uint32_t out = emit_pos(e), jump;

	t->out = emit_jmp(e);
	block->code = t->base + emit_pos(e);
	emit_page_begin(t);
	emit_store(e, 8, CPU(page_rip), H_RCX);
	t->local = emit_pos(e);
	block->local = t->base + t->local;
	block->unchecked = block->local;
	/* A block of one instruction always executes it: its end is a single step's or a shadow's end. */
	if (t->mode & (MODE_STEP | MODE_SHADOW))
		return;
	emit_load(e, 8, H_RCX, CPU(run_ok));
	jump = emit_jrcxz(e);
	if (!e->overflow)
		e->start[jump] = (uint8_t)(out - (jump + 1));
	block->unchecked = t->base + emit_pos(e);
}

static void emit_cold_begin(struct translation *t)
{
	t->e.p = t->svm->code_rw + t->cold_base;
	t->e.end = t->e.p + BLOCK_CODE_MAX;
	emit_here(&t->e, t->out);
	emit_leave_at(t, t->start);
}

/* Copies the instruction's bytes out of `bytes` and decodes; an undecodable one becomes #UD or #GP. */
static soft_helper decode_or_raise(struct translation *t, const uint8_t *bytes, unsigned n,
				   struct insn *insn)
{
	int ret = insn_decode_shaped(t->svm->shapes, bytes, n, t->mode, insn);

	if (!ret && !t->svm->intel)
		ret = insn_as_amd(t->mode, insn);
	if (!ret)
		return NULL;
	if (insn->len == INSN_MAX)
		return raise_gp;
	insn->len = 1;
	return raise_ud;
}

/* Decodes from `bytes` what may become the block; `bytes_in_page`: those before the page edge. */
static unsigned decode_insns(struct translation *t, const uint8_t *bytes, unsigned n,
			     unsigned bytes_in_page, uint64_t limit_left)
{
	unsigned at = 0, max = t->mode & (MODE_STEP | MODE_SHADOW) ? 1 : BLOCK_INSNS_MAX, count = 0;
	bool ended = false;

	while (!ended && count < max && at < bytes_in_page) {
		struct insn *insn = &t->insns[count];
		soft_helper raise;

		if (count && n - at < INSN_MAX &&
		    insn_decode(bytes + at, n - at, t->mode, insn) == -ENODATA)
			break;
		raise = decode_or_raise(t, bytes + at, n - at, insn);
		if (!raise && (uint64_t)at + insn->len - 1 > limit_left)
			raise = raise_gp;
		if (count && (raise || at + insn->len > bytes_in_page))
			break;
		t->raise = raise; /* the first instruction, and the only one */
		ended = raise || ends_block(t, insn);
		at += insn->len;
		count++;
	}
	return count;
}

/* Writes the first instructions of `insns`, as many as there is room for; then the way on. */
static void emit_insns(struct translation *t, unsigned count)
{
	t->ended = false;
	for (t->index = 0; t->index < count && !t->ended && !t->e.overflow && !t->no_meta;
	     t->index++) {
		struct insn *insn = &t->insns[t->index];

		if (t->nexits + 2 > BLOCK_BRANCHES_MAX || emit_pos(&t->e) > BLOCK_CODE_MAX / 2)
			break;
		t->insn = insn;
		if (t->owed && !rsp_may_wait(t))
			emit_rsp(t);
		translation_mark(t, 0);
		if (t->raise)
			emit_helper(t, insn, t->raise, false, true);
		else
			emit_one(t, insn);
		t->offset += insn->len;
	}
	t->ninsns = t->index;
	if (t->ended)
		return;
	emit_rsp(t);
	if (t->mode & (MODE_STEP | MODE_SHADOW))
		emit_leave_at(t, t->offset);
	else
		emit_goto(t, t->offset);
}

static int block_metadata(struct translation *t, struct soft_block *block, unsigned guest_len)
{
	struct soft_vm *svm = t->svm;

	block->links = t->nexits ? cache_meta_alloc(svm, t->nexits * sizeof(*block->links)) : NULL;
	if (t->nexits && !block->links)
		return -ENOSPC;
	for (unsigned i = 0; i < t->nexits; i++) {
		block->links[i] = (struct block_link){.from = block};
		emit_exit_part(t, &t->exits[i], &block->links[i]);
	}
	block->nlinks = (uint8_t)t->nexits;
	block->pcs = cache_meta_alloc(svm, t->npcs * sizeof(*block->pcs));
	if (!block->pcs)
		return -ENOSPC;
	memcpy(block->pcs, t->pcs, t->npcs * sizeof(*block->pcs));
	block->npcs = (uint16_t)t->npcs;
	block->loop_pointers = loop_pointers(t);
	block->ninsns = (uint16_t)t->ninsns;
	block->len = (uint16_t)guest_len;
	block->start = t->base;
	block->cold = t->cold_base;
	block->cold_len = t->base + emit_pos(&t->e) - t->cold_base;
	return 0;
}

/* `bytes`: n guest bytes from the block's start, of which bytes_in_page lie in its own page. */
static int block_emit(struct translation *t, struct soft_block *block, const uint8_t *bytes,
		      unsigned n, unsigned bytes_in_page, uint64_t limit_left)
{
	unsigned count = decode_insns(t, bytes, n, bytes_in_page, limit_left), len;

	share_plan(t, count);
	loop_plan(t, count);
	if (t->loop.length)
		memcpy(t->plain, t->insns, (t->loop.length + 1) * sizeof(t->plain[0]));
	t->offset = t->start;
	emit_head(t, block);
	emit_insns(t, count);
	len = (unsigned)t->offset - t->start;
	emit_loop_parts(t);
	block->loop = t->loop.entry ? t->base + t->loop.entry : 0;
	block->code_len = emit_pos(&t->e);
	emit_cold_begin(t);
	emit_cold_parts(t);
	if (t->no_meta)
		return -ENOSPC;
	if (block_metadata(t, block, len ? len : 1))
		return -ENOSPC;
	return t->e.overflow ? -E2BIG : 0;
}

/* The bytes of the block: the rest of its page and, if its first instruction reaches over the edge, the first
 * bytes of the page behind (gpa2). */
static unsigned block_bytes(struct soft_vm *svm, uint64_t gpa, uint64_t gpa2, uint8_t *out,
			    unsigned *in_page)
{
	unsigned n = PAGE - (unsigned)(gpa & (PAGE - 1));

	if (n > BLOCK_INSNS_MAX * INSN_MAX)
		n = BLOCK_INSNS_MAX * INSN_MAX;
	*in_page = n;
	if (memory_read(&svm->vm->memory, gpa, out, n))
		return 0;
	if (gpa2 != ~0ull) {
		if (memory_read(&svm->vm->memory, gpa2, out + n, INSN_MAX))
			return 0;
		n += INSN_MAX;
	}
	return n;
}

static struct soft_block *translate_once(struct soft_cpu *cpu, struct translation *t,
					 const struct block_key *key, uint64_t gpa2,
					 uint64_t limit_left, unsigned max_insns, int *error)
{
	struct soft_vm *svm = cpu->svm;
	uint8_t bytes[BLOCK_INSNS_MAX * INSN_MAX + INSN_MAX];
	struct soft_block *block;
	unsigned n, in_page;
	uint32_t base, cold;

	*error = cache_code_begin(svm, &base, &cold);
	if (*error)
		return NULL;
	block = cache_meta_alloc(svm, sizeof(*block));
	*error = -ENOSPC;
	if (!block)
		return NULL;
	memset(block, 0, sizeof(*block));
	n = block_bytes(svm, key->gpa, gpa2, bytes, &in_page);
	*error = -EFAULT;
	if (!n)
		return NULL;
	if (max_insns == 1 && in_page > INSN_MAX)
		in_page = 1, n = INSN_MAX; /* the first instruction and no more */
	memset(t, 0, offsetof(struct translation, insns));
	t->ninsns = t->ncold = t->nexits = t->npcs = t->nprobes = 0;
	share_forget(t);
	t->no_meta = t->ended = false;
	t->owed = 0;
	t->e = (struct emit){.start = svm->code_rw + base,
			     .p = svm->code_rw + base,
			     .end = svm->code_rw + base + BLOCK_CODE_MAX};
	t->cpu = cpu;
	t->svm = svm;
	t->mode = key->mode;
	t->base = base;
	t->cold_base = cold;
	t->start = (uint16_t)(key->gpa & (PAGE - 1));
	block->key = *key;
	block->gpa2 = gpa2;
	*error = block_emit(t, block, bytes, n, in_page, limit_left);
	return *error ? NULL : block;
}

struct soft_block *soft_translate(struct soft_cpu *cpu, const struct block_key *key, uint64_t gpa2,
				  uint64_t limit_left, int *error)
{
	struct soft_vm *svm = cpu->svm;
	struct translation *t = svm->translation;
	struct soft_block *block;

	block = translate_once(cpu, t, key, gpa2, limit_left, BLOCK_INSNS_MAX, error);
	/* A block too long for its buffer is made of one instruction. */
	if (!block && *error == -E2BIG)
		block = translate_once(cpu, t, key, gpa2, limit_left, 1, error);
	if (!block)
		return NULL;
	block_insert(svm, block);
	atomic_fetch_add(&svm->n_translated, 1);
	if (svm->trace)
		trace_block(svm, block, t->insns, t->ninsns);
	if (svm->profile)
		profile_block(cpu, block);
	return block;
}
