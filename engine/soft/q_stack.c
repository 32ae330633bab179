/* Quick: the stack, and the instructions on it that are not translated inline. */
#include "engine/soft/q_insn.h"

#include "engine/soft/access.h"

/* ---- the stack ------------------------------------------------------------------------------------------ */

static uint64_t stack_mask(const struct stack *s)
{
	return s->width == 8 ? ~0ull : s->width == 4 ? 0xffffffffull : 0xffffull;
}

void stack_begin(struct soft_cpu *cpu, struct stack *stack)
{
	const struct x86_seg *ss = &cpu->seg[X86_SS];

	stack->cpu = cpu;
	stack->seg = *ss;
	stack->width = code64(cpu) ? 8 : (ss->attr & SEG_ATTR_DB) ? 4 : 2;
	stack->sp = cpu->gpr[X86_RSP];
	stack->error = cpu->ext;
}

static int stack_linear(struct stack *s, uint64_t offset, unsigned size, unsigned access,
			uint64_t *linear)
{
	struct soft_cpu *cpu = s->cpu;

	if (s->width == 8) {
		*linear = offset;
		if (!is_canonical(offset) || !is_canonical(offset + size - 1))
			return soft_raise_error(cpu, X86_SS_FAULT, s->error);
	} else {
		if (!segment_allows(cpu, &s->seg, offset, size, access))
			return soft_raise_error(cpu, X86_SS_FAULT, s->error);
		*linear = (uint32_t)(s->seg.base + offset);
	}
	if ((cpu->mode & MODE_AC) && cpu->cpl == 3 && !cpu->delivering && (*linear & (size - 1)))
		return soft_raise_error(cpu, X86_AC, 0);
	return 0;
}

static int never_exits(struct soft_cpu *cpu, int next)
{
	if (next != NEXT_EXIT || !cpu->delivering)
		return next;
	cpu->complete = NULL;
	soft_replay_clear(cpu);
	return 0;
}

void stack_add(struct stack *s, int64_t n)
{
	uint64_t mask = stack_mask(s);

	s->sp = (s->sp & ~mask) | ((s->sp + (uint64_t)n) & mask);
}

int stack_push(struct stack *s, unsigned size, uint64_t value)
{
	uint64_t linear, offset = (s->sp - size) & stack_mask(s);
	int next = stack_linear(s, offset, size, ACCESS_WRITE, &linear);

	if (!next)
		next = never_exits(s->cpu, soft_store(s->cpu, linear, &value, size, ACCESS_WRITE));
	if (!next)
		stack_add(s, -(int64_t)size);
	return next;
}

int stack_peek(struct stack *s, unsigned at, unsigned size, uint64_t *value)
{
	uint64_t linear, offset = (s->sp + at) & stack_mask(s);
	int next = stack_linear(s, offset, size, ACCESS_READ, &linear);

	*value = 0;
	return next ? next : soft_load(s->cpu, linear, value, size, ACCESS_READ);
}

int stack_pop(struct stack *s, unsigned size, uint64_t *value)
{
	int next = stack_peek(s, 0, size, value);

	if (!next)
		stack_add(s, size);
	return next;
}

void stack_commit(struct stack *s)
{
	gpr_set(s->cpu, X86_RSP, s->width, s->sp);
}

/* ---- PUSH, POP ------------------------------------------------------------------------------------------ */

static int push_operand(struct soft_cpu *cpu, const struct insn *insn, uint64_t *value)
{
	if (insn->segreg != REG_NONE) {
		*value = cpu->seg[insn->segreg].sel;
		return 0;
	}
	if (insn->nimm) {
		*value = insn->imm[0];
		return 0;
	}
	if (insn->opcode == 0xff)
		return operand_load(cpu, insn, insn->opsize, value);
	*value = cpu->gpr[insn->opreg];
	return 0;
}

HELPER(do_push)
{
	uint64_t value, epoch = code_epoch(cpu);
	struct stack stack;
	int next = push_operand(cpu, insn, &value);

	stack_begin(cpu, &stack);
	if (!next)
		next = stack_push(&stack, insn->opsize, cut(value, insn->opsize));
	if (next)
		return next;
	stack_commit(&stack);
	return done_since(cpu, insn, epoch);
}

static enum soft_next pop_segment(struct soft_cpu *cpu, const struct insn *insn)
{
	struct stack stack;
	uint64_t value;
	int next;

	stack_begin(cpu, &stack);
	/* Only the selector is read, whatever the operand size. */
	next = stack_peek(&stack, 0, 2, &value);
	if (!next)
		next = segment_register_load(cpu, insn->segreg, (uint16_t)value);
	if (next)
		return next;
	stack_add(&stack, insn->opsize);
	/* The old stack's width moves the pointer. */
	stack_commit(&stack);
	return segment_loaded(cpu, insn);
}

HELPER(do_pop)
{
	uint64_t value, old_rsp = cpu->gpr[X86_RSP], epoch = code_epoch(cpu);
	struct stack stack;
	int next;

	if (insn->segreg != REG_NONE)
		return pop_segment(cpu, insn);
	stack_begin(cpu, &stack);
	next = stack_pop(&stack, insn->opsize, &value);
	if (next)
		return next;
	/* An address with RSP in it sees the pointer moved already (SDM vol. 2, POP). */
	stack_commit(&stack);
	if (insn->opcode == 0x8f)
		next = operand_store(cpu, insn, insn->opsize, value);
	else
		gpr_set(cpu, insn->opreg, insn->opsize, value);
	if (next) {
		cpu->gpr[X86_RSP] = old_rsp;
		return next;
	}
	return done_since(cpu, insn, epoch);
}

HELPER(do_pusha)
{
	uint64_t epoch = code_epoch(cpu);
	struct stack stack;

	stack_begin(cpu, &stack);
	for (unsigned n = X86_RAX; n <= X86_RDI; n++) {
		int next = stack_push(&stack, insn->opsize, gpr_get(cpu, n, insn->opsize));

		if (next)
			return next;
	}
	stack_commit(&stack);
	return done_since(cpu, insn, epoch);
}

HELPER(do_popa)
{
	uint64_t value[8];
	struct stack stack;

	stack_begin(cpu, &stack);
	for (int n = X86_RDI; n >= X86_RAX; n--) {
		int next = stack_pop(&stack, insn->opsize, &value[n]);

		if (next)
			return next;
	}
	stack_commit(&stack);
	for (unsigned n = X86_RAX; n <= X86_RDI; n++)
		if (n != X86_RSP)
			gpr_set(cpu, n, insn->opsize, value[n]);
	return done(cpu, insn);
}

/* ---- ENTER, LEAVE --------------------------------------------------------------------------------------- */

HELPER(do_enter)
{
	unsigned frame = insn->imm[0] & 0xffff, level = insn->imm[1] & 31, size = insn->opsize;
	uint64_t epoch = code_epoch(cpu), frame_ptr, value, linear;
	struct stack stack, display;
	int next;

	stack_begin(cpu, &stack);
	next = stack_push(&stack, size, gpr_get(cpu, X86_RBP, size));
	frame_ptr = stack.sp;
	display = stack;
	display.sp = cpu->gpr[X86_RBP];
	for (unsigned i = 1; i < level && !next; i++) {
		stack_add(&display, -(int64_t)size);
		next = stack_peek(&display, 0, size, &value);
		if (!next)
			next = stack_push(&stack, size, value);
	}
	if (level && !next)
		next = stack_push(&stack, size, cut(frame_ptr, size));
	stack_add(&stack, -(int64_t)frame);
	/* The new top must be writable. */
	if (!next)
		next = stack_linear(&stack, stack.sp & stack_mask(&stack), size, ACCESS_WRITE,
				    &linear);
	if (!next)
		next = soft_translate_va(cpu, linear, ACCESS_WRITE, &value, NULL);
	if (next)
		return next;
	stack_commit(&stack);
	gpr_set(cpu, X86_RBP, size, frame_ptr);
	return done_since(cpu, insn, epoch);
}

HELPER(do_leave)
{
	uint64_t value;
	struct stack stack;
	int next;

	stack_begin(cpu, &stack);
	stack.sp = (stack.sp & ~stack_mask(&stack)) | (cpu->gpr[X86_RBP] & stack_mask(&stack));
	next = stack_pop(&stack, insn->opsize, &value);
	if (next)
		return next;
	stack_commit(&stack);
	gpr_set(cpu, X86_RBP, insn->opsize, value);
	return done(cpu, insn);
}

/* ---- flags ---------------------------------------------------------------------------------------------- */

HELPER(do_pushf)
{
	uint64_t epoch = code_epoch(cpu);
	struct stack stack;
	int next;

	stack_begin(cpu, &stack);
	next = stack_push(&stack, insn->opsize,
			  cut(soft_rflags(cpu) & ~(X86_FL_RF | X86_FL_VM), insn->opsize));
	if (next)
		return next;
	stack_commit(&stack);
	return done_since(cpu, insn, epoch);
}

bool flags_load(struct soft_cpu *cpu, uint64_t value, unsigned size)
{
	uint64_t may = X86_FL_TF | X86_FL_DF | X86_FL_NT | X86_FL_AC | X86_FL_ID;
	uint64_t before = cpu->sysflags;

	if (cpu->cpl == 0)
		may |= X86_FL_IOPL;
	if (cpu->cpl <= iopl(cpu))
		may |= X86_FL_IF;
	if (size == 2)
		may &= 0xffff;
	cpu->arith = value & ARITH_FLAGS;
	cpu->sysflags = (before & ~(may | X86_FL_RF)) | (value & may);
	return (cpu->sysflags & X86_FL_IF) && !(before & X86_FL_IF) && events_look(cpu);
}

HELPER(do_popf)
{
	uint64_t value;
	struct stack stack;
	enum soft_next after;
	bool leave;
	int next;

	stack_begin(cpu, &stack);
	next = stack_pop(&stack, insn->opsize, &value);
	if (next)
		return next;
	stack_commit(&stack);
	leave = flags_load(cpu, value, insn->opsize);
	after = done_mode(cpu, insn);
	return leave ? NEXT_LEAVE : after;
}
