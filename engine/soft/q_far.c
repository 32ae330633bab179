/*
 * Quick: far jumps, calls and returns, call gates, IRET (SDM vol. 2 JMP, CALL, RET, IRET; vol. 3 section 5.8; APM
 * vol. 2 section 4.11). Task gates, task switches and virtual-8086 mode are not supported: #GP.
 */
#include "engine/soft/access.h"
#include "engine/soft/q_insn.h"

#define TYPE_GATE16 4
#define TYPE_GATE32 12 /* 64-bit in long mode */

struct target {
	uint16_t sel;
	uint64_t offset;
	struct descriptor d;
};

static bool desc_is_64(const struct soft_cpu *cpu, const struct descriptor *d)
{
	return long_mode(cpu) && (d->hi & 0x200000);
}

static bool desc_conforms(const struct descriptor *d)
{
	return desc_type(d) & SEG_TYPE_CONFORM;
}

/* Is the offset in the segment that the descriptor names? */
static int offset_check(struct soft_cpu *cpu, const struct descriptor *d, uint64_t offset)
{
	struct x86_seg s;

	segment_from_descriptor(&s, 0, d);
	if (desc_is_64(cpu, d) ? !is_canonical(offset) : offset > s.limit)
		return raise_gp0(cpu);
	return 0;
}

/* Present, and not both L and D. */
static int code_usable(struct soft_cpu *cpu, uint16_t sel, const struct descriptor *d)
{
	if (long_mode(cpu) && (d->hi & 0x600000) == 0x600000)
		return raise_selector(cpu, X86_GP, sel);
	if (!desc_present(d))
		return raise_selector(cpu, X86_NP, sel);
	return 0;
}

static void code_load(struct soft_cpu *cpu, const struct target *t, unsigned cpl)
{
	segment_from_descriptor(&cpu->seg[X86_CS], (uint16_t)((t->sel & ~3u) | cpl), &t->d);
	cpu->cpl = (uint8_t)cpl;
	cpu->rip = t->offset;
}

static enum soft_next far_done(struct soft_cpu *cpu)
{
	cpu->shadow_sti = cpu->shadow_mov_ss = false;
	soft_replay_clear(cpu);
	soft_update_mode(cpu);
	return NEXT_LEAVE;
}

/* ---- operands ------------------------------------------------------------------------------------------- */

/* AMD's CPUs take REX.W of a far pointer in memory for nothing. */
static unsigned far_size(const struct soft_cpu *cpu, const struct insn *insn)
{
	if (insn->opsize == 8 && insn->has_mem && !cpu->svm->intel)
		return 4;
	return insn->opsize;
}

static int far_operand(struct soft_cpu *cpu, const struct insn *insn, struct target *t)
{
	unsigned size = far_size(cpu, insn);
	uint64_t at, sel;
	int next;

	if (!insn->has_mem) {
		t->offset = cut(insn->imm[0], size);
		t->sel = (uint16_t)insn->imm[1];
		return 0;
	}
	at = operand_offset(cpu, insn);
	next = segment_load(cpu, insn->mem_seg, at, size, &t->offset);
	if (!next)
		next = segment_load(cpu, insn->mem_seg, cut(at + size, insn->addrsize), 2, &sel);
	if (!next)
		t->sel = (uint16_t)sel;
	return next;
}

static void real_code_load(struct soft_cpu *cpu, const struct target *t)
{
	cpu->seg[X86_CS].sel = t->sel;
	cpu->seg[X86_CS].base = (uint64_t)t->sel << 4;
	cpu->rip = t->offset;
}

static int real_offset_check(struct soft_cpu *cpu, const struct target *t)
{
	if (t->offset > cpu->seg[X86_CS].limit)
		return raise_gp0(cpu);
	return 0;
}

/* ---- direct targets and gates ---------------------------------------------------------------------------- */

/* A code segment named by the instruction itself. */
static int direct_check(struct soft_cpu *cpu, struct target *t)
{
	unsigned rpl = t->sel & 3u;
	int next;

	if (desc_conforms(&t->d) ? desc_dpl(&t->d) > cpu->cpl
				 : rpl > cpu->cpl || desc_dpl(&t->d) != cpu->cpl)
		return raise_selector(cpu, X86_GP, t->sel);
	next = code_usable(cpu, t->sel, &t->d);
	return next ? next : offset_check(cpu, &t->d, t->offset);
}

struct call_gate {
	unsigned size; /* of what is pushed */
	unsigned params;
};

/* Follows a call gate: *t becomes its target. */
static int gate_follow(struct soft_cpu *cpu, struct target *t, struct call_gate *gate)
{
	uint16_t sel = t->sel;
	unsigned type = desc_type(&t->d);
	uint32_t high[2] = {0, 0};
	struct descriptor g = t->d;
	int next;

	if (type != TYPE_GATE32 && (type != TYPE_GATE16 || long_mode(cpu)))
		return raise_selector(cpu, X86_GP, sel);
	if (desc_dpl(&g) < cpu->cpl || desc_dpl(&g) < (sel & 3u))
		return raise_selector(cpu, X86_GP, sel);
	if (long_mode(cpu)) {
		next = descriptor_read_high(cpu, sel, &g, high);
		if (next)
			return next;
		if (high[1] & 0x1f00)
			return raise_selector(cpu, X86_GP, sel);
	}
	if (!desc_present(&g))
		return raise_selector(cpu, X86_NP, sel);
	gate->size = long_mode(cpu) ? 8 : type == TYPE_GATE32 ? 4 : 2;
	gate->params = long_mode(cpu) ? 0 : g.hi & 31;
	t->sel = (uint16_t)(g.lo >> 16);
	t->offset = (g.lo & 0xffff) | (g.hi & 0xffff0000) | (uint64_t)high[0] << 32;
	if (gate->size == 2)
		t->offset &= 0xffff;
	if (selector_null(t->sel))
		return raise_gp0(cpu);
	next = descriptor_read(cpu, t->sel, X86_GP, &t->d);
	if (next)
		return next;
	if (!desc_is_code(&t->d) || desc_dpl(&t->d) > cpu->cpl)
		return raise_selector(cpu, X86_GP, t->sel);
	if (long_mode(cpu) && (t->d.hi & 0x600000) != 0x200000)
		return raise_selector(cpu, X86_GP, t->sel);
	next = code_usable(cpu, t->sel, &t->d);
	return next ? next : offset_check(cpu, &t->d, t->offset);
}

/* Reads the descriptor and follows a gate. gate->size 0: there was none. */
static int target_find(struct soft_cpu *cpu, struct target *t, struct call_gate *gate)
{
	int next;

	gate->size = gate->params = 0;
	if (selector_null(t->sel))
		return raise_gp0(cpu);
	next = descriptor_read(cpu, t->sel, X86_GP, &t->d);
	if (next)
		return next;
	if (desc_is_code(&t->d))
		return direct_check(cpu, t);
	if (!desc_system(&t->d))
		return raise_selector(cpu, X86_GP, t->sel);
	return gate_follow(cpu, t, gate);
}

HELPER(do_far_jmp)
{
	struct target t = {0};
	struct call_gate gate;
	int next = far_operand(cpu, insn, &t);

	if (next)
		return next;
	if (!protected_mode(cpu)) {
		next = real_offset_check(cpu, &t);
		if (next)
			return next;
		real_code_load(cpu, &t);
		return far_done(cpu);
	}
	next = target_find(cpu, &t, &gate);
	if (!next && gate.size && !desc_conforms(&t.d) && desc_dpl(&t.d) != cpu->cpl)
		return raise_selector(cpu, X86_GP, t.sel);
	if (!next)
		next = descriptor_mark_accessed(cpu, &t.d);
	if (next)
		return next;
	code_load(cpu, &t, cpu->cpl);
	return far_done(cpu);
}

/* ---- CALL ------------------------------------------------------------------------------------------------ */

static int push_return(struct soft_cpu *cpu, const struct insn *insn, unsigned size,
		       struct stack *stack)
{
	int next = stack_push(stack, size, cpu->seg[X86_CS].sel);

	return next ? next : stack_push(stack, size, cut(next_rip(cpu, insn), size));
}

/* The stack of an inner level, out of the TSS. */
static int inner_stack(struct soft_cpu *cpu, unsigned cpl, struct stack *stack)
{
	struct descriptor d;
	uint16_t ss;
	int next = tss_stack(cpu, cpl, &stack->sp, &ss);

	if (next)
		return next;
	if (long_mode(cpu)) {
		segment_set_null(&stack->seg, (uint16_t)cpl, cpl);
		stack->width = 8;
		return 0;
	}
	if (selector_null(ss))
		return soft_raise_error(cpu, X86_TS, 0);
	next = stack_segment_check(cpu, ss, cpl, X86_TS, &d);
	if (!next)
		next = descriptor_mark_accessed(cpu, &d);
	if (next)
		return next;
	segment_from_descriptor(&stack->seg, ss, &d);
	stack->width = stack->seg.attr & SEG_ATTR_DB ? 4 : 2;
	stack->error = ss & 0xfffcu;
	return 0;
}

static int push_params(struct stack *from, struct stack *to, const struct call_gate *gate)
{
	for (unsigned i = gate->params; i-- > 0;) {
		uint64_t value;
		int next = stack_peek(from, i * gate->size, gate->size, &value);

		if (!next)
			next = stack_push(to, gate->size, value);
		if (next)
			return next;
	}
	return 0;
}

static enum soft_next call_inner(struct soft_cpu *cpu, const struct insn *insn, struct target *t,
				 const struct call_gate *gate)
{
	unsigned old = cpu->cpl, cpl = desc_dpl(&t->d);
	struct stack from, to;
	int next;

	stack_begin(cpu, &from);
	to = from;
	next = inner_stack(cpu, cpl, &to);
	if (next)
		return next;
	/* Everything from here on has the inner level's rights; the caller's stack was its own to read. */
	cpu->cpl = (uint8_t)cpl;
	next = stack_push(&to, gate->size, cpu->seg[X86_SS].sel);
	if (!next)
		next = stack_push(&to, gate->size, cut(cpu->gpr[X86_RSP], gate->size));
	if (!next)
		next = push_params(&from, &to, gate);
	if (!next)
		next = push_return(cpu, insn, gate->size, &to);
	cpu->cpl = (uint8_t)old;
	if (!next)
		next = descriptor_mark_accessed(cpu, &t->d);
	if (next)
		return next;
	cpu->seg[X86_SS] = to.seg;
	stack_commit(&to);
	code_load(cpu, t, cpl);
	return far_done(cpu);
}

static enum soft_next call_same(struct soft_cpu *cpu, const struct insn *insn, struct target *t,
				unsigned size)
{
	struct stack stack;
	int next;

	stack_begin(cpu, &stack);
	/* A call from compatibility mode through a gate to 64-bit code pushes on a 64-bit stack. */
	if (size == 8)
		stack.width = 8;
	next = push_return(cpu, insn, size, &stack);
	if (!next && protected_mode(cpu))
		next = descriptor_mark_accessed(cpu, &t->d);
	if (next)
		return next;
	stack_commit(&stack);
	if (protected_mode(cpu))
		code_load(cpu, t, cpu->cpl);
	else
		real_code_load(cpu, t);
	return far_done(cpu);
}

HELPER(do_far_call)
{
	struct target t = {0};
	struct call_gate gate;
	int next = far_operand(cpu, insn, &t);

	if (next)
		return next;
	if (!protected_mode(cpu)) {
		next = real_offset_check(cpu, &t);
		if (next)
			return next;
		return call_same(cpu, insn, &t, insn->opsize);
	}
	next = target_find(cpu, &t, &gate);
	if (next)
		return next;
	if (gate.size && !desc_conforms(&t.d) && desc_dpl(&t.d) < cpu->cpl)
		return call_inner(cpu, insn, &t, &gate);
	return call_same(cpu, insn, &t, gate.size ? gate.size : far_size(cpu, insn));
}

/* ---- RET and IRET ---------------------------------------------------------------------------------------- */

/* Where a return goes to; the stack only if it changes. */
struct landing {
	struct target code;
	unsigned cpl;
	bool with_stack;
	struct x86_seg ss;
	uint64_t sp;
};

static int return_code_check(struct soft_cpu *cpu, struct landing *l)
{
	struct target *t = &l->code;
	int next;

	if (selector_null(t->sel))
		return raise_gp0(cpu);
	l->cpl = t->sel & 3u;
	if (l->cpl < cpu->cpl)
		return raise_selector(cpu, X86_GP, t->sel);
	next = descriptor_read(cpu, t->sel, X86_GP, &t->d);
	if (next)
		return next;
	if (!desc_is_code(&t->d) ||
	    (desc_conforms(&t->d) ? desc_dpl(&t->d) > l->cpl : desc_dpl(&t->d) != l->cpl))
		return raise_selector(cpu, X86_GP, t->sel);
	return code_usable(cpu, t->sel, &t->d);
}

static int return_stack_check(struct soft_cpu *cpu, struct landing *l, uint16_t ss)
{
	struct descriptor d;
	int next;

	if (selector_null(ss)) {
		if (!desc_is_64(cpu, &l->code.d) || l->cpl == 3 || (ss & 3u) != l->cpl)
			return raise_gp0(cpu);
		segment_set_null(&l->ss, ss, l->cpl);
		return 0;
	}
	next = stack_segment_check(cpu, ss, l->cpl, X86_GP, &d);
	if (!next)
		next = descriptor_mark_accessed(cpu, &d);
	if (!next)
		segment_from_descriptor(&l->ss, ss, &d);
	return next;
}

/* Data segments that the outer level may not have are taken away. */
static void drop_data_segments(struct soft_cpu *cpu)
{
	static const uint8_t data[] = {X86_ES, X86_DS, X86_FS, X86_GS};

	for (unsigned i = 0; i < sizeof(data); i++) {
		struct x86_seg *s = &cpu->seg[data[i]];
		unsigned type = s->attr & SEG_ATTR_TYPE;

		if (s->unusable || seg_dpl(s) >= cpu->cpl)
			continue;
		if ((type & (SEG_TYPE_CODE | SEG_TYPE_CONFORM)) ==
		    (SEG_TYPE_CODE | SEG_TYPE_CONFORM))
			continue;
		/* In 64-bit mode the bases of FS and GS have a life of their own. */
		uint64_t base = s->base;

		segment_set_null(s, 0, 0);
		if (long_mode(cpu) && (data[i] == X86_FS || data[i] == X86_GS))
			s->base = base;
	}
}

static int land(struct soft_cpu *cpu, struct landing *l)
{
	int next = offset_check(cpu, &l->code.d, l->code.offset);
	bool outer = l->cpl > cpu->cpl;

	if (!next)
		next = descriptor_mark_accessed(cpu, &l->code.d);
	if (next)
		return next;
	code_load(cpu, &l->code, l->cpl);
	if (l->with_stack) {
		unsigned width = desc_is_64(cpu, &l->code.d) ? 8 : l->ss.attr & SEG_ATTR_DB ? 4 : 2;

		cpu->seg[X86_SS] = l->ss;
		gpr_set(cpu, X86_RSP, width, l->sp);
	}
	if (outer)
		drop_data_segments(cpu);
	return 0;
}

static enum soft_next far_ret_real(struct soft_cpu *cpu, const struct target *t,
				   struct stack *stack, unsigned release)
{
	int next = real_offset_check(cpu, t);

	if (next)
		return next;
	stack_add(stack, release);
	stack_commit(stack);
	real_code_load(cpu, t);
	return far_done(cpu);
}

HELPER(do_far_ret)
{
	unsigned size = insn->opsize, release = insn->nimm ? insn->imm[0] & 0xffff : 0;
	struct landing l = {0};
	struct stack stack;
	uint64_t sel = 0, ss = 0;
	int next;

	stack_begin(cpu, &stack);
	next = stack_pop(&stack, size, &l.code.offset);
	if (!next)
		next = stack_pop(&stack, size, &sel);
	l.code.sel = (uint16_t)sel;
	if (next)
		return next;
	if (!protected_mode(cpu))
		return far_ret_real(cpu, &l.code, &stack, release);
	next = return_code_check(cpu, &l);
	if (next)
		return next;
	stack_add(&stack, release);
	l.with_stack = l.cpl > cpu->cpl;
	if (l.with_stack) {
		next = stack_pop(&stack, size, &l.sp);
		if (!next)
			next = stack_pop(&stack, size, &ss);
		if (!next)
			next = return_stack_check(cpu, &l, (uint16_t)ss);
		l.sp += release;
	}
	if (!next)
		next = land(cpu, &l);
	if (next)
		return next;
	if (!l.with_stack)
		stack_commit(&stack);
	return far_done(cpu);
}

/* RFLAGS as IRET loads them, with the rights of the level it leaves. */
static bool iret_flags(struct soft_cpu *cpu, uint64_t image, unsigned size, unsigned cpl)
{
	unsigned now = cpu->cpl;
	bool look;

	cpu->cpl = (uint8_t)cpl;
	look = flags_load(cpu, image, size);
	/* The resume flag is for the next instruction only, which turn() sees to; nobody else asks for it. */
	if (cpu->break_code && size > 2)
		cpu->sysflags |= image & X86_FL_RF;
	cpu->cpl = (uint8_t)now;
	if (cpu->nmi_masked) {
		cpu->nmi_masked = false;
		look |= events_look(cpu);
	}
	return look;
}

static enum soft_next iret_real(struct soft_cpu *cpu, const struct target *t, struct stack *stack,
				uint64_t flags, unsigned size)
{
	int next = real_offset_check(cpu, t);

	if (next)
		return next;
	stack_commit(stack);
	real_code_load(cpu, t);
	iret_flags(cpu, flags, size, 0);
	return far_done(cpu);
}

/* What IRET pops. */
struct frame {
	uint64_t rip, cs, flags;
	bool whole; /* .. these, too: */
	uint64_t sp, ss;
};

/* All five at once, as 64-bit code pops them, if they lie in one page of RAM. */
static bool pop_frame_whole(struct stack *s, unsigned size, struct frame *f)
{
	struct soft_cpu *cpu = s->cpu;
	const any_u64 *from;
	int next;

	if (size != 8 || !code64(cpu) || (cpu->mode & MODE_AC) || !is_canonical(s->sp) ||
	    !is_canonical(s->sp + 39))
		return false;
	from = soft_direct(cpu, s->sp, 40, ACCESS_READ, &next);
	if (!from)
		return false;
	*f = (struct frame){from[0], from[1], from[2], true, from[3], from[4]};
	return true;
}

static int pop_frame(struct stack *s, unsigned size, struct frame *f)
{
	int next;

	if (pop_frame_whole(s, size, f))
		return 0;
	next = stack_pop(s, size, &f->rip);
	if (!next)
		next = stack_pop(s, size, &f->cs);
	return next ? next : stack_pop(s, size, &f->flags);
}

static int pop_frame_stack(struct stack *s, unsigned size, struct frame *f)
{
	int next = f->whole ? 0 : stack_pop(s, size, &f->sp);

	return next || f->whole ? next : stack_pop(s, size, &f->ss);
}

HELPER(do_iret)
{
	unsigned size = insn->opsize, old = cpu->cpl;
	struct landing l = {0};
	struct frame frame = {0};
	struct stack stack;
	uint64_t flags;
	int next;

	if (protected_mode(cpu) && (cpu->sysflags & X86_FL_NT))
		return raise_gp0(cpu);
	stack_begin(cpu, &stack);
	next = pop_frame(&stack, size, &frame);
	l.code.offset = frame.rip;
	l.code.sel = (uint16_t)frame.cs;
	flags = frame.flags;
	if (next)
		return next;
	if (!protected_mode(cpu))
		return iret_real(cpu, &l.code, &stack, flags, size);
	if (size >= 4 && (flags & X86_FL_VM) && !long_mode(cpu) && old == 0)
		return raise_gp0(cpu);
	next = return_code_check(cpu, &l);
	if (next)
		return next;
	l.with_stack = code64(cpu) || l.cpl > old;
	if (l.with_stack) {
		next = pop_frame_stack(&stack, size, &frame);
		l.sp = frame.sp;
		if (!next)
			next = return_stack_check(cpu, &l, (uint16_t)frame.ss);
	}
	if (!next)
		next = land(cpu, &l);
	if (next)
		return next;
	if (!l.with_stack)
		stack_commit(&stack);
	iret_flags(cpu, flags, size, old);
	return far_done(cpu);
}
