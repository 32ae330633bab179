/*
 * Loops of one block over memory: see translate.h, struct loop. What an iteration accesses is known before it is written:
 * addresses that move by a constant with each iteration.
 */
#include <Zydis/Mnemonic.h>
#include <string.h>

#include "engine/soft/native.h"
#include "engine/soft/translate.h"

#define TLB_DISP(member) ((int32_t)offsetof(struct soft_tlb, member) - SOFT_TLB_BIAS)
#define SPAN_MAX 1024
#define STEP_MAX 1024
#define ITERATIONS_MAX 1024 /* without a look at cpu->run_ok */
#define LEFT CPU(shared[0])
#define REST CPU(shared[1]) /* of LEFT, what is not a multiple of UNROLL */
#define UNROLL 4	    /* so many iterations between two looks at the count */
#define UNROLL_LENGTH 16    /* of loops that are no longer than this */

/* Registers that the instructions of the loop leave alone can hold our pointers. R10 is nobody's. */
static const uint8_t pointers[] = {H_R10, H_R13, H_R12, H_R9,  H_R8, H_RDI,
				   H_RSI, H_RBX, H_RBP, H_RDX, H_R11};

/* ---- is it one? ---------------------------------------------------------------------------------- */

/* Bits of the host registers that the instruction names; false if it needs more than they and the flags. */
static bool insn_fits(const struct translation *t, const struct insn *insn, uint32_t *taken)
{
	const uint32_t not_ours = 1u << X86_RCX | 1u << X86_RSP;

	if (insn->op == ZYDIS_MNEMONIC_NOP)
		return true;
	if (insn->op == ZYDIS_MNEMONIC_LEA) {
		if (!lea_is_direct(insn))
			return false;
	} else if (native_classify(t->svm->isa, insn, t->mode) != RUN_NATIVE ||
		   (insn->implicit_gprs & not_ours) || insn->implicit_mem || insn->mem_vsib) {
		return false;
	}
	if (native_has_temps(insn))
		return false;
	*taken |= native_taken(insn);
	return true;
}

/* The number of instructions up to the conditional jump to the block's start, 0 if that is not the first jump. */
static unsigned loop_length(const struct translation *t, unsigned n, uint32_t *taken)
{
	int32_t at = t->start;

	for (unsigned i = 0; i < n; at += t->insns[i].len, i++) {
		const struct insn *insn = &t->insns[i];

		if (insn->branch)
			return jcc_condition(insn) < 16 &&
					       at + insn->len + (int32_t)insn->imm[0] == t->start
				       ? i
				       : 0;
		if (!insn_fits(t, insn, taken))
			return 0;
	}
	return 0;
}

struct motion {
	uint32_t written;   /* registers that change at all, a bit each */
	bool constant[16];  /* it changes by constants only */
	int64_t step[16];   /* .. by so much in an iteration */
	int64_t so_far[16]; /* .. by so much since its beginning */
};

static void motion_of(const struct insn *insn, struct motion *m, int64_t *sum)
{
	uint32_t written = insn_written(insn);

	for (uint8_t r = 0; r < 16; r++) {
		uint64_t add;

		if (!(written >> r & 1))
			continue;
		m->written |= 1u << r;
		if (insn_adds_constant(insn, r, &add))
			sum[r] += (int64_t)add;
		else
			m->constant[r] = false;
	}
}

static bool stream_register(const struct motion *m, uint8_t reg)
{
	return reg == REG_NONE || (m->constant[reg] && guest_reg(reg) != H_NONE);
}

/* The stream that the instruction's operand belongs to; a new one if need be. */
static struct stream *stream_of(struct loop *l, const struct insn *insn, int64_t step)
{
	uint8_t scale = insn->mem_index == REG_NONE ? 1 : insn->mem_scale;

	for (unsigned k = 0; k < l->nstreams; k++) {
		struct stream *s = &l->stream[k];

		if (s->base == insn->mem_base && s->index == insn->mem_index && s->scale == scale)
			return s;
	}
	if (l->nstreams == LOOP_STREAMS)
		return NULL;
	l->stream[l->nstreams] = (struct stream){.base = insn->mem_base,
						 .index = insn->mem_index,
						 .scale = scale,
						 .step = (int32_t)step,
						 .lo = INT32_MAX,
						 .hi = INT32_MIN};
	return &l->stream[l->nstreams++];
}

static bool operand_fits(struct loop *l, unsigned i, const struct insn *insn,
			 const struct motion *m)
{
	bool based = insn->mem_seg == X86_FS || insn->mem_seg == X86_GS;
	int64_t step = 0, disp = insn->mem_disp, limit = 1 << 30;
	struct stream *s;

	if (based || insn->rip_relative || insn->addrsize != 8 || insn->mem_base == REG_NONE ||
	    insn->mem_size > 64 || !stream_register(m, insn->mem_base) ||
	    !stream_register(m, insn->mem_index))
		return false;
	step = m->step[insn->mem_base];
	disp += m->so_far[insn->mem_base];
	if (insn->mem_index != REG_NONE) {
		step += m->step[insn->mem_index] * insn->mem_scale;
		disp += m->so_far[insn->mem_index] * insn->mem_scale;
	}
	if (step > STEP_MAX || step < -STEP_MAX || disp > limit || disp < -limit ||
	    insn->mem_disp > limit || insn->mem_disp < -limit)
		return false;
	s = stream_of(l, insn, step);
	if (!s)
		return false;
	l->of[i] = (uint8_t)(s - l->stream);
	l->disp[i] = (int32_t)disp;
	s->write |= insn->mem_write;
	if (disp < s->lo)
		s->lo = (int32_t)disp;
	if (disp + (insn->mem_size ? insn->mem_size : 1) > s->hi)
		s->hi = (int32_t)disp + (insn->mem_size ? insn->mem_size : 1);
	return true;
}

/* What has to be in a host register, so that the operand with it leads into host memory. */
static enum stream_kind stream_kind(const struct stream *s, uint32_t written)
{
	if (s->index == REG_NONE)
		return STREAM_ADDEND;
	if (!(written >> s->base & 1))
		return STREAM_BASE;
	return written >> s->index & 1 ? STREAM_POINTER : STREAM_INDEX;
}

/* A host register for each stream. */
static bool streams_place(struct loop *l, uint32_t taken, uint32_t written)
{
	bool moves = false;
	unsigned p = 0;

	for (unsigned k = 0; k < l->nstreams; k++) {
		struct stream *s = &l->stream[k];

		while (p < sizeof(pointers) && (taken >> pointers[p] & 1))
			p++;
		if (p == sizeof(pointers) || s->hi - s->lo > SPAN_MAX)
			return false;
		s->pointer = pointers[p++];
		s->kind = stream_kind(s, written);
		moves |= s->step != 0;
	}
	return moves;
}

void loop_plan(struct translation *t, unsigned n)
{
	struct loop *l = &t->loop;
	struct motion m = {0};
	uint32_t taken = 0;

	memset(l, 0, sizeof(*l));
	if (!(t->mode & MODE_CODE64) ||
	    (t->mode & (MODE_AC | MODE_STEP | MODE_SHADOW | MODE_PLAIN)))
		return;
	l->length = loop_length(t, n, &taken);
	memset(m.constant, true, sizeof(m.constant));
	for (unsigned i = 0; i < l->length; i++)
		motion_of(&t->insns[i], &m, m.step);
	for (unsigned i = 0; i < l->length; i++) {
		const struct insn *insn = &t->insns[i];

		if (insn->has_mem && !operand_fits(l, i, insn, &m)) {
			l->length = 0;
			return;
		}
		motion_of(insn, &m, m.so_far);
	}
	if (!streams_place(l, taken, m.written))
		l->length = 0;
}

/* ---- writing it ------------------------------------------------------------------------------------ */

static uint8_t guest_of(uint8_t host)
{
	return host == H_R11 ? X86_RCX : host;
}

uint16_t loop_pointers(const struct translation *t)
{
	uint32_t bits = 0;

	for (unsigned k = 0; k < t->loop.nstreams; k++)
		bits |= 1u << t->loop.stream[k].pointer;
	return (uint16_t)(bits & ~(1u << H_R10));
}

static void emit_pointers(struct translation *t, bool save)
{
	for (unsigned k = 0; k < t->loop.nstreams; k++) {
		uint8_t reg = t->loop.stream[k].pointer;

		if (reg == H_R10)
			continue;
		if (save)
			emit_store(&t->e, 8, CPU_GPR(guest_of(reg)), reg);
		else
			emit_load(&t->e, 8, reg, CPU_GPR(guest_of(reg)));
	}
}

/* The flags into and out of cpu->scratch[2], as entry.S does it. */
static void emit_flags_save(struct emit *e)
{
	static const uint8_t lahf_seto[] = {0x9f, 0x0f, 0x90, 0xc0};

	emit_store(e, 8, CPU(scratch[1]), H_RAX);
	emit_bytes(e, lahf_seto, sizeof(lahf_seto));
	emit_store(e, 8, CPU(scratch[2]), H_RAX);
	emit_load(e, 8, H_RAX, CPU(scratch[1]));
}

static void emit_flags_load(struct emit *e)
{
	static const uint8_t add_sahf[] = {0x04, 0x7f, 0x9e};

	emit_load(e, 8, H_RAX, CPU(scratch[2]));
	emit_bytes(e, add_sahf, sizeof(add_sahf));
	emit_load(e, 8, H_RAX, CPU(scratch[1]));
}

static unsigned log2_up(uint32_t n)
{
	return n <= 1 ? 0 : 32 - (unsigned)__builtin_clz(n - 1);
}

/* RCX: where in its page the stream's last byte lies. LEFT becomes at most the iterations that stay in the page. */
static void emit_iterations(struct emit *e, const struct stream *s)
{
	uint32_t enough;

	if (s->step > 0) {
		emit_op_rr(e, 4, 0, 0x81, 6, H_RCX); /* xor ecx, 0xfff: bytes behind it */
		emit_u32(e, 0xfff);
	} else {
		emit_lea(e, 4, H_RCX,
			 hmem(H_RCX, -(s->hi - s->lo - 1))); /* bytes before its first */
	}
	emit_op_rr(e, 4, 0, 0xc1, 5, H_RCX); /* shr */
	emit_u8(e, (uint8_t)log2_up((uint32_t)(s->step > 0 ? s->step : -s->step)));
	emit_lea(e, 4, H_RCX, hmem(H_RCX, 1));
	emit_op_rm(e, 8, 0, 0x3b, H_RCX, LEFT); /* cmp */
	enough = emit_jcc(e, 3);		/* ae */
	emit_store(e, 8, LEFT, H_RCX);
	emit_here(e, enough);
}

static void emit_jcc_back(struct emit *e, unsigned cc, uint32_t pos)
{
	uint32_t place = emit_jcc(e, cc), rel = pos - (place + 4);

	if (!e->overflow)
		memcpy(e->start + place, &rel, 4);
}

static void emit_stream(struct translation *t, const struct stream *s, uint32_t fail)
{
	struct emit *e = &t->e;
	uint8_t index = s->index == REG_NONE ? H_NONE : guest_reg(s->index);

	emit_lea(e, 8, s->pointer, hmem_x(guest_reg(s->base), index, s->scale, s->lo));
	emit_shrx(e, 4, H_RCX, s->pointer, H_R15);
	emit_load(e, 8, H_RCX, hmem_x(H_R15, H_RCX, 8, s->write ? TLB_DISP(wtag) : TLB_DISP(rtag)));
	emit_lea(e, 8, H_RCX, hmem_x(H_RCX, s->pointer, 1, s->hi - s->lo - 1));
	emit_op_rr(e, 8, 0, 0x81, 7, H_RCX); /* cmp rcx, 0xfff */
	emit_u32(e, 0xfff);
	emit_jcc_back(e, 7, fail); /* a */
	if (s->step)
		emit_iterations(e, s);
	emit_shrx(e, 4, H_RCX, s->pointer, H_R15);
	emit_load(e, 8, H_RCX, hmem_x(H_R15, H_RCX, 8, TLB_DISP(addend)));
	if (s->kind == STREAM_ADDEND)
		emit_mov_rr(e, 8, s->pointer, H_RCX);
	else if (s->kind == STREAM_BASE)
		emit_lea(e, 8, s->pointer, hmem_x(guest_reg(s->base), H_RCX, 1, 0));
	else if (s->kind == STREAM_INDEX)
		emit_lea(e, 8, s->pointer, hmem_x(H_RCX, index, s->scale, 0));
	else
		emit_lea(e, 8, s->pointer, hmem_x(s->pointer, H_RCX, 1, -s->step));
}

static void emit_iteration(struct translation *t)
{
	struct loop *l = &t->loop;
	struct emit *e = &t->e;

	for (unsigned k = 0; k < l->nstreams; k++)
		if (l->stream[k].kind == STREAM_POINTER && l->stream[k].step)
			emit_lea(e, 8, l->stream[k].pointer,
				 hmem(l->stream[k].pointer, l->stream[k].step));
	t->offset = t->start;
	l->inside = true;
	for (t->index = 0; t->index < l->length; t->index++) {
		struct insn *insn = &t->plain[t->index];

		translation_mark(t, PC_LOOP);
		if (insn->op == ZYDIS_MNEMONIC_LEA)
			emit_lea_insn(t, insn);
		else if (insn->op != ZYDIS_MNEMONIC_NOP)
			emit_native(t, insn);
		t->offset += insn->len;
	}
	l->inside = false;
}

struct hmem loop_operand(const struct translation *t, const struct insn *insn)
{
	const struct loop *l = &t->loop;
	const struct stream *s = &l->stream[l->of[t->index]];
	int32_t disp = (int32_t)insn->mem_disp;

	switch (s->kind) {
	case STREAM_ADDEND:
		return hmem_x(guest_reg(s->base), s->pointer, 1, disp);
	case STREAM_BASE:
		return hmem_x(s->pointer, guest_reg(s->index), s->scale, disp);
	case STREAM_INDEX:
		return hmem_x(guest_reg(s->base), s->pointer, 1, disp);
	default:
		return hmem(s->pointer, l->disp[t->index] - s->lo);
	}
}

static void emit_jrcxz_back(struct emit *e, uint32_t pos)
{
	uint32_t jump = emit_jrcxz(e);

	if (!e->overflow)
		e->start[jump] = (uint8_t)(pos - (jump + 1));
}

/* RCX iterations one by one; if there was a last one before, on behind the loop (that is what is returned), else to `out`. */
static uint32_t emit_one_by_one(struct translation *t, unsigned cc, uint32_t out)
{
	struct emit *e = &t->e;
	uint32_t done;

	t->loop.again = emit_pos(e);
	emit_jrcxz_back(e, out);
	emit_lea(e, 8, H_RCX, hmem(H_RCX, -1));
	emit_iteration(t);
	emit_jcc_back(e, cc, t->loop.again);
	done = emit_pos(e);
	emit_pointers(t, false);
	emit_jmp_to(e, t->loop.cont);
	return done;
}

/* RCX times UNROLL iterations, then those of REST. */
static void emit_by_many(struct translation *t, unsigned cc, uint32_t done)
{
	struct emit *e = &t->e;
	uint32_t rest = emit_pos(e), many;

	emit_load(e, 8, H_RCX, REST);
	emit_jmp_to(e, t->loop.again);
	many = emit_pos(e);
	emit_jrcxz_back(e, rest);
	emit_lea(e, 8, H_RCX, hmem(H_RCX, -1));
	for (unsigned i = 1; i < UNROLL; i++) {
		emit_iteration(t);
		emit_jcc_back(e, cc ^ 1, done);
	}
	emit_iteration(t);
	emit_jcc_back(e, cc, many);
	emit_jmp_to(e, done);
	t->loop.again = many;
}

/* RCX = LEFT, or how many times UNROLL; changes flags. */
static void emit_count(struct translation *t, bool many)
{
	struct emit *e = &t->e;

	emit_load(e, 8, H_RCX, LEFT);
	if (!many)
		return;
	emit_op_rr(e, 4, 0, 0x83, 4, H_RCX); /* and */
	emit_u8(e, UNROLL - 1);
	emit_store(e, 8, REST, H_RCX);
	emit_load(e, 8, H_RCX, LEFT);
	emit_op_rr(e, 4, 0, 0xc1, 5, H_RCX); /* shr */
	emit_u8(e, (uint8_t)log2_up(UNROLL));
}

/* Where the jumps of other blocks come in, which have not looked at run_ok. */
static void emit_entry(struct translation *t)
{
	struct emit *e = &t->e;
	uint32_t leave = emit_pos(e);

	emit_jmp_to(e, t->local);
	t->loop.entry = emit_pos(e);
	emit_load(e, 8, H_RCX, CPU(run_ok));
	emit_jrcxz_back(e, leave);
}

void emit_loop_parts(struct translation *t)
{
	struct loop *l = &t->loop;
	struct emit *e = &t->e;
	bool many = l->length <= UNROLL_LENGTH;
	uint32_t fail, out, done;
	unsigned cc;

	if (!l->from)
		return;
	cc = jcc_condition(&t->plain[l->length]);
	fail = emit_pos(e);
	emit_flags_load(e);
	out = emit_pos(e);
	emit_pointers(t, false);
	emit_jmp_to(e, t->local);
	done = emit_one_by_one(t, cc, out);
	if (many)
		emit_by_many(t, cc, done);
	emit_entry(t);
	emit_here(e, l->from);
	emit_pointers(t, true);
	emit_flags_save(e);
	emit_store_imm(e, 8, LEFT, ITERATIONS_MAX);
	for (unsigned k = 0; k < l->nstreams; k++)
		emit_stream(t, &l->stream[k], fail);
	emit_count(t, many);
	emit_flags_load(e);
	emit_jmp_to(e, l->again);
}
