/*
 * Quick: delivery of exceptions and interrupts through the IDT (SDM vol. 3 chapter 6, APM vol. 2 chapter 8), in
 * real, protected and long mode. Task gates and 16-bit TSSs are not supported: #GP.
 *
 * Nothing of the vCPU changes before the last access that could fault has been made: a fault in delivery leaves
 * the state as it was (but for what was pushed below the stack pointer, and accessed bits).
 */
#include "engine/soft/q_helper.h"

struct event {
	uint8_t vector;
	bool has_error;
	uint32_t error;
	bool software;	 /* INT n, INT3, INTO: the gate's DPL counts */
	uint64_t rip;	 /* to return to */
	uint64_t rflags; /* as pushed */
};

struct gate {
	uint16_t sel;
	uint8_t type, dpl, ist;
	bool present;
	uint64_t offset;
};

#define GATE_INT16 6
#define GATE_TRAP16 7
#define GATE_INT32 14
#define GATE_TRAP32 15

/* ---- real mode ------------------------------------------------------------------------------------------ */

static int deliver_real(struct soft_cpu *cpu, const struct event *ev)
{
	uint32_t at = ev->vector * 4u, entry = 0;
	struct stack stack;
	int next;

	if (at + 3 > cpu->idtr.limit)
		return soft_raise_error(cpu, X86_GP, at + 2);
	next = system_load(cpu, cpu->idtr.base + at, &entry, 4);
	stack_begin(cpu, &stack);
	if (!next)
		next = stack_push(&stack, 2, ev->rflags & 0xffff);
	if (!next)
		next = stack_push(&stack, 2, cpu->seg[X86_CS].sel);
	if (!next)
		next = stack_push(&stack, 2, ev->rip & 0xffff);
	if (next)
		return next;
	stack_commit(&stack);
	cpu->seg[X86_CS].sel = (uint16_t)(entry >> 16);
	cpu->seg[X86_CS].base = (uint64_t)(entry >> 16) << 4;
	cpu->rip = entry & 0xffff;
	cpu->sysflags &= ~(X86_FL_IF | X86_FL_TF | X86_FL_AC | X86_FL_RF);
	return 0;
}

/* ---- gates ---------------------------------------------------------------------------------------------- */

static enum soft_next raise_vector(struct soft_cpu *cpu, uint8_t fault, const struct event *ev)
{
	return soft_raise_error(cpu, fault, ev->vector * 8u + 2 + cpu->ext);
}

static int gate_read(struct soft_cpu *cpu, const struct event *ev, struct gate *gate)
{
	unsigned size = long_mode(cpu) ? 16 : 8;
	uint32_t raw[4] = {0, 0, 0, 0};
	int next;

	if (ev->vector * size + size - 1 > cpu->idtr.limit)
		return raise_vector(cpu, X86_GP, ev);
	next = system_load(cpu, cpu->idtr.base + ev->vector * size, raw, size);
	if (next)
		return next;
	gate->sel = (uint16_t)(raw[0] >> 16);
	gate->offset = (raw[0] & 0xffff) | (raw[1] & 0xffff0000);
	gate->type = raw[1] >> 8 & 31; /* with the S bit: 16 and more are no gates */
	gate->dpl = raw[1] >> 13 & 3;
	gate->present = raw[1] >> 15 & 1;
	gate->ist = 0;
	if (size == 16) {
		gate->offset |= (uint64_t)raw[2] << 32;
		gate->ist = raw[1] & 7;
	}
	return 0;
}

static int gate_check(struct soft_cpu *cpu, const struct event *ev, struct gate *gate)
{
	int next = gate_read(cpu, ev, gate);
	bool known = gate->type == GATE_INT32 || gate->type == GATE_TRAP32;

	if (next)
		return next;
	if (!long_mode(cpu))
		known |= gate->type == GATE_INT16 || gate->type == GATE_TRAP16;
	if (!known)
		return raise_vector(cpu, X86_GP, ev);
	if (ev->software && gate->dpl < cpu->cpl)
		return raise_vector(cpu, X86_GP, ev);
	if (!gate->present)
		return raise_vector(cpu, X86_NP, ev);
	if (gate->type == GATE_INT16 || gate->type == GATE_TRAP16)
		gate->offset &= 0xffff;
	return 0;
}

/* The handler's code segment, and the privilege level it runs at. */
static int gate_code(struct soft_cpu *cpu, const struct gate *gate, struct descriptor *d,
		     unsigned *cpl)
{
	int next;

	if (selector_null(gate->sel))
		return raise_gp0(cpu);
	next = descriptor_read(cpu, gate->sel, X86_GP, d);
	if (next)
		return next;
	if (!desc_is_code(d) || desc_dpl(d) > cpu->cpl)
		return raise_selector(cpu, X86_GP, gate->sel);
	if (long_mode(cpu) && (!(d->hi & 0x200000) || (d->hi & 0x400000)))
		return raise_selector(cpu, X86_GP, gate->sel);
	if (!desc_present(d))
		return raise_selector(cpu, X86_NP, gate->sel);
	*cpl = desc_type(d) & SEG_TYPE_CONFORM ? cpu->cpl : desc_dpl(d);
	return descriptor_mark_accessed(cpu, d);
}

/* ---- stacks --------------------------------------------------------------------------------------------- */

int tss_stack(struct soft_cpu *cpu, unsigned index, uint64_t *sp, uint16_t *ss)
{
	uint64_t raw = 0;
	/* SDM vol. 3 figures 7-2 and 7-11: ESPn and the 16 bits of SSn; RSPn at 4, IST1 at 0x24. */
	unsigned size = long_mode(cpu) ? 8 : 6;
	unsigned at = long_mode(cpu) ? (index < 3 ? 4 + index * 8 : 0x24 + (index - 4) * 8)
				     : 4 + index * 8;
	int next;

	*ss = 0;
	if (cpu->tr.unusable || at + size - 1 > cpu->tr.limit)
		return raise_selector(cpu, X86_TS, cpu->tr.sel);
	next = system_load(cpu, cpu->tr.base + at, &raw, size);
	if (next)
		return next;
	if (long_mode(cpu)) {
		*sp = raw;
		if (!is_canonical(raw))
			return soft_raise_error(cpu, X86_SS_FAULT, cpu->ext);
	} else {
		*sp = (uint32_t)raw;
		*ss = (uint16_t)(raw >> 32);
	}
	return 0;
}

static int stack_long(struct soft_cpu *cpu, const struct gate *gate, unsigned cpl,
		      struct stack *stack)
{
	uint16_t ss;
	int next = 0;

	stack_begin(cpu, stack);
	stack->width = 8;
	if (gate->ist)
		next = tss_stack(cpu, 3u + gate->ist, &stack->sp, &ss);
	else if (cpl != cpu->cpl)
		next = tss_stack(cpu, cpl, &stack->sp, &ss);
	if (cpl != cpu->cpl)
		segment_set_null(&stack->seg, (uint16_t)cpl, cpl);
	stack->sp &= ~15ull;
	return next;
}

static int stack_inner(struct soft_cpu *cpu, unsigned cpl, struct stack *stack)
{
	struct descriptor d;
	uint16_t ss;
	int next;

	stack_begin(cpu, stack);
	if (cpl == cpu->cpl)
		return 0;
	next = tss_stack(cpu, cpl, &stack->sp, &ss);
	if (!next && selector_null(ss))
		return soft_raise_error(cpu, X86_TS, cpu->ext);
	if (!next)
		next = stack_segment_check(cpu, ss, cpl, X86_TS, &d);
	if (!next)
		next = descriptor_mark_accessed(cpu, &d);
	if (next)
		return next;
	segment_from_descriptor(&stack->seg, ss, &d);
	stack->width = stack->seg.attr & SEG_ATTR_DB ? 4 : 2;
	stack->error = (ss & 0xfffcu) | cpu->ext;
	return 0;
}

/* ---- delivery ------------------------------------------------------------------------------------------- */

/* Long mode's frame, where it lies in one page of RAM; false: nothing was written. */
static bool push_frame_whole(struct soft_cpu *cpu, const struct event *ev, struct stack *stack)
{
	unsigned n = ev->has_error ? 6 : 5;
	uint64_t at = stack->sp - 8 * n, *frame;
	int next;

	if (!is_canonical(at) || !is_canonical(stack->sp - 1))
		return false;
	frame = soft_direct(cpu, at, 8 * n, ACCESS_WRITE, &next);
	if (!frame)
		return false;
	if (ev->has_error)
		*frame++ = ev->error;
	frame[0] = ev->rip;
	frame[1] = cpu->seg[X86_CS].sel;
	frame[2] = ev->rflags;
	frame[3] = cpu->gpr[X86_RSP];
	frame[4] = cpu->seg[X86_SS].sel;
	stack->sp = at;
	return true;
}

static int push_frame(struct soft_cpu *cpu, const struct event *ev, unsigned size, bool with_stack,
		      struct stack *stack)
{
	int next = 0;

	/* Its stack pointer is a multiple of 16 then. */
	if (size == 8 && push_frame_whole(cpu, ev, stack))
		return 0;
	if (with_stack) {
		next = stack_push(stack, size, cpu->seg[X86_SS].sel);
		if (!next)
			next = stack_push(stack, size, cut(cpu->gpr[X86_RSP], size));
	}
	if (!next)
		next = stack_push(stack, size, cut(ev->rflags, size));
	if (!next)
		next = stack_push(stack, size, cpu->seg[X86_CS].sel);
	if (!next)
		next = stack_push(stack, size, cut(ev->rip, size));
	if (!next && ev->has_error)
		next = stack_push(stack, size, ev->error);
	return next;
}

static void enter_handler(struct soft_cpu *cpu, const struct gate *gate,
			  const struct descriptor *code, unsigned cpl, struct stack *stack)
{
	uint64_t clear = X86_FL_TF | X86_FL_NT | X86_FL_RF | X86_FL_VM;

	if (!(gate->type & 1))
		clear |= X86_FL_IF;
	if (cpl != cpu->cpl)
		cpu->seg[X86_SS] = stack->seg;
	stack_commit(stack);
	segment_from_descriptor(&cpu->seg[X86_CS], (uint16_t)((gate->sel & ~3u) | cpl), code);
	cpu->cpl = (uint8_t)cpl;
	cpu->rip = gate->offset;
	cpu->sysflags &= ~clear;
}

static int deliver_protected(struct soft_cpu *cpu, const struct event *ev)
{
	unsigned cpl = 0, old = cpu->cpl, size;
	struct descriptor code;
	struct stack stack;
	struct gate gate = {0};
	bool is64 = long_mode(cpu);
	int next = gate_check(cpu, ev, &gate);

	if (!next)
		next = gate_code(cpu, &gate, &code, &cpl);
	if (!next)
		next = is64 ? stack_long(cpu, &gate, cpl, &stack) : stack_inner(cpu, cpl, &stack);
	if (next)
		return next;
	size = is64 ? 8 : gate.type & 8 ? 4 : 2;
	/* The new stack is written with the handler's rights. */
	cpu->cpl = (uint8_t)cpl;
	next = push_frame(cpu, ev, size, is64 || cpl != old, &stack);
	cpu->cpl = (uint8_t)old;
	if (next)
		return next;
	if (is64 ? !is_canonical(gate.offset)
		 : gate.offset > (code.hi & 0x800000
					  ? ((code.lo & 0xffff) | (code.hi & 0xf0000)) << 12 | 0xfff
					  : ((code.lo & 0xffff) | (code.hi & 0xf0000))))
		return raise_gp0(cpu);
	enter_handler(cpu, &gate, &code, cpl, &stack);
	return 0;
}

/* `ext`: the EXT bit of error codes of faults on the way. 0 or NEXT_FAULT. */
static int deliver(struct soft_cpu *cpu, const struct event *ev, bool ext)
{
	int next;

	cpu->delivering = true;
	cpu->ext = ext;
	next = protected_mode(cpu) ? deliver_protected(cpu, ev) : deliver_real(cpu, ev);
	cpu->delivering = false;
	cpu->ext = 0;
	if (next)
		return next;
	cpu->shadow_sti = cpu->shadow_mov_ss = false;
	soft_replay_clear(cpu);
	soft_update_mode(cpu);
	return 0;
}

/* ---- exceptions ----------------------------------------------------------------------------------------- */

enum fault_class { CLASS_BENIGN, CLASS_CONTRIBUTORY, CLASS_PAGE };

/* SDM vol. 3 table 6-4. */
static enum fault_class fault_class(uint8_t vector)
{
	switch (vector) {
	case X86_PF:
		return CLASS_PAGE;
	case X86_DE:
	case X86_TS:
	case X86_NP:
	case X86_SS_FAULT:
	case X86_GP:
		return CLASS_CONTRIBUTORY;
	default:
		return CLASS_BENIGN;
	}
}

/* SDM vol. 3 table 6-5: what comes of `second` while `first` was being delivered. */
static bool becomes_double_fault(uint8_t first, uint8_t second)
{
	enum fault_class a = fault_class(first), b = fault_class(second);

	if (a == CLASS_CONTRIBUTORY)
		return b == CLASS_CONTRIBUTORY;
	return a == CLASS_PAGE && b != CLASS_BENIGN;
}

static enum soft_next triple_fault(struct soft_cpu *cpu)
{
	cpu->exit->code = EXIT_SHUTDOWN;
	cpu->complete = NULL;
	return NEXT_EXIT;
}

/* What the CPU notes of a fault when it happens. */
static void fault_registers(struct soft_cpu *cpu)
{
	const struct soft_fault *f = &cpu->fault;

	if (f->vector == X86_PF) {
		cpu->cr2 = f->cr2;
		soft_tlb_fault(cpu, f->cr2);
	}
	if (f->vector == X86_DB)
		cpu->dr[6] |= f->dr6;
}

/* Resume flag in the image: SDM vol. 3 section 17.3.1.1. */
static bool fault_sets_rf(const struct soft_fault *f)
{
	return !f->trap && !f->soft && f->vector != X86_DF && f->vector != X86_MC;
}

static void event_from_fault(struct soft_cpu *cpu, struct event *ev)
{
	const struct soft_fault *f = &cpu->fault;

	ev->vector = f->vector;
	ev->has_error = f->has_error;
	ev->error = f->error;
	ev->software = f->soft;
	ev->rip = cpu->rip;
	ev->rflags = soft_rflags(cpu) | (fault_sets_rf(f) ? X86_FL_RF : 0);
}

/* Until an exception gets through, or nothing more can. `first`: of the event before cpu->fault. */
static enum soft_next deliver_faults(struct soft_cpu *cpu, int first)
{
	struct event ev;

	/* Serial faults go from benign to contributory to #PF, and then it is #DF: a few rounds end it. */
	for (unsigned round = 0; round < 8; round++) {
		fault_registers(cpu);
		if (first == X86_DF)
			return triple_fault(cpu);
		if (first >= 0 && becomes_double_fault((uint8_t)first, cpu->fault.vector))
			soft_raise_error(cpu, X86_DF, 0);
		event_from_fault(cpu, &ev);
		if (!deliver(cpu, &ev, !ev.software))
			return NEXT_LEAVE;
		first = ev.vector;
	}
	return triple_fault(cpu);
}

enum soft_next soft_deliver_fault(struct soft_cpu *cpu)
{
	atomic_fetch_add_explicit(&cpu->svm->n_faults, 1, memory_order_relaxed);
	return deliver_faults(cpu, -1);
}

enum soft_next soft_deliver_interrupt(struct soft_cpu *cpu, uint8_t vector, bool nmi)
{
	struct event ev = {.vector = nmi ? X86_NMI : vector, .rip = cpu->rip};

	ev.rflags = soft_rflags(cpu);
	if (nmi)
		cpu->nmi_masked = true;
	if (!deliver(cpu, &ev, true))
		return NEXT_LEAVE;
	/* An interrupt is benign, whatever its vector: faults in its delivery follow as they are. */
	return deliver_faults(cpu, -1);
}

enum soft_next deliver_software(struct soft_cpu *cpu, uint8_t vector, uint64_t rip, bool check_dpl)
{
	struct event ev = {
		.vector = vector, .software = check_dpl, .rip = rip, .rflags = soft_rflags(cpu)};

	/* In real mode the gate has no DPL; ICEBP (no check) is an event from outside the program. */
	if (deliver(cpu, &ev, !check_dpl))
		return NEXT_FAULT;
	cpu->step_trap = false;
	return NEXT_LEAVE;
}
