/*
 * Quick: IN, OUT, INS, OUTS. The monitor does the access; elements of REP forms go together as far as one page of
 * memory. The bitmap of a 32 or 64-bit TSS is obeyed (SDM vol. 1 section 19.5.2).
 */
#include "engine/soft/q_insn.h"

#define IO_BATCH (sizeof(((struct soft_cpu *)0)->io_data))
#define TSS_IOMAP 0x66

/* complete_arg[] of an exit. */
enum { ARG_RIP, ARG_COUNT, ARG_SHAPE };
#define SHAPE(size, addr, rep) ((uint64_t)(size) | (uint64_t)(addr) << 8 | (uint64_t)(rep) << 16)

static int io_allowed(struct soft_cpu *cpu, uint16_t port, unsigned size)
{
	uint16_t base = 0, bits = 0;
	unsigned mask = ((1u << size) - 1) << (port & 7);
	int next;

	if (!protected_mode(cpu) || cpu->cpl <= iopl(cpu))
		return 0;
	if (cpu->tr.unusable || cpu->tr.limit < TSS_IOMAP + 1 ||
	    !((cpu->tr.attr & SEG_ATTR_TYPE) == 9 || (cpu->tr.attr & SEG_ATTR_TYPE) == 11))
		return raise_gp0(cpu);
	next = system_load(cpu, cpu->tr.base + TSS_IOMAP, &base, 2);
	if (next)
		return next;
	/* Two bytes are always read: the map ends in one of ones. */
	if ((uint32_t)base + port / 8 + 1 > cpu->tr.limit)
		return raise_gp0(cpu);
	next = system_load(cpu, cpu->tr.base + base + port / 8, &bits, 2);
	if (next)
		return next;
	return bits & mask ? raise_gp0(cpu) : 0;
}

static enum soft_next io_exit(struct soft_cpu *cpu, uint16_t port, unsigned size, bool in,
			      uint32_t count, enum soft_next (*complete)(struct soft_cpu *cpu))
{
	struct vm_exit *exit = cpu->exit;

	exit->code = EXIT_INOUT;
	exit->inout.port = port;
	exit->inout.size = (uint8_t)size;
	exit->inout.in = in;
	exit->inout.string = false;
	exit->inout.count = count;
	exit->inout.data = cpu->io_data;
	cpu->complete = complete;
	return NEXT_EXIT;
}

/* The instruction is over. */
static enum soft_next io_done(struct soft_cpu *cpu)
{
	return complete_at(cpu, cpu->complete_arg[ARG_RIP]);
}

static uint64_t io_value(const uint8_t *bytes, unsigned size)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)bytes[i] << 8 * i;
	return value;
}

static enum soft_next in_complete(struct soft_cpu *cpu)
{
	unsigned size = cpu->complete_arg[ARG_SHAPE] & 0xff;

	gpr_set(cpu, X86_RAX, size, io_value(cpu->io_data, size));
	return io_done(cpu);
}

static uint16_t io_port(const struct soft_cpu *cpu, const struct insn *insn)
{
	return insn->nimm ? (uint16_t)(insn->imm[0] & 0xff) : (uint16_t)cpu->gpr[X86_RDX];
}

/* 64-bit operand size does not exist here. */
static unsigned io_size(const struct insn *insn)
{
	return insn->opsize > 4 ? 4 : insn->opsize;
}

HELPER(do_in)
{
	unsigned size = io_size(insn);
	uint16_t port = io_port(cpu, insn);
	int next = io_allowed(cpu, port, size);

	if (next)
		return next;
	cpu->complete_arg[ARG_RIP] = next_rip(cpu, insn);
	cpu->complete_arg[ARG_SHAPE] = SHAPE(size, 0, 0);
	return io_exit(cpu, port, size, true, 1, in_complete);
}

HELPER(do_out)
{
	unsigned size = io_size(insn);
	uint16_t port = io_port(cpu, insn);
	int next = io_allowed(cpu, port, size);

	if (next)
		return next;
	for (unsigned i = 0; i < 4; i++)
		cpu->io_data[i] = (uint8_t)(cpu->gpr[X86_RAX] >> 8 * i);
	cpu->complete_arg[ARG_RIP] = next_rip(cpu, insn);
	return io_exit(cpu, port, size, false, 1, io_done);
}

/* ---- strings ------------------------------------------------------------------------------------------ */

static int64_t io_step(const struct soft_cpu *cpu, unsigned size)
{
	return cpu->sysflags & X86_FL_DF ? -(int64_t)size : (int64_t)size;
}

/* n elements are over: the pointer and RCX move; again if some are left. */
static enum soft_next io_string_moved(struct soft_cpu *cpu, enum x86_gpr pointer)
{
	uint64_t shape = cpu->complete_arg[ARG_SHAPE], n = cpu->complete_arg[ARG_COUNT];
	unsigned size = shape & 0xff, addr = shape >> 8 & 0xff;

	gpr_set(cpu, pointer, addr, gpr_get(cpu, pointer, addr) + (uint64_t)io_step(cpu, size) * n);
	soft_replay_clear(cpu);
	if (shape >> 16 & 1) {
		uint64_t left = gpr_get(cpu, X86_RCX, addr) - n;

		gpr_set(cpu, X86_RCX, addr, left);
		if (left)
			return complete_at(cpu, cpu->rip);
	}
	return io_done(cpu);
}

static enum soft_next outs_complete(struct soft_cpu *cpu)
{
	return io_string_moved(cpu, X86_RSI);
}

/* Into memory that was found writable before the exit. If the guest took it away meanwhile, what was read is lost, as
 * a device's read cannot be undone. */
static enum soft_next ins_complete(struct soft_cpu *cpu)
{
	uint64_t shape = cpu->complete_arg[ARG_SHAPE], n = cpu->complete_arg[ARG_COUNT], linear;
	unsigned size = shape & 0xff, addr = shape >> 8 & 0xff;
	uint64_t offset = gpr_get(cpu, X86_RDI, addr);

	for (uint64_t i = 0; i < n; i++) {
		if (soft_linear(cpu, X86_ES, offset, size, ACCESS_WRITE, &linear) ||
		    soft_store(cpu, linear, cpu->io_data + i * size, size, ACCESS_WRITE))
			break;
		offset = cut(offset + (uint64_t)io_step(cpu, size), addr);
	}
	cpu->complete = NULL;
	return io_string_moved(cpu, X86_RDI);
}

static uint32_t string_count(const struct soft_cpu *cpu, const struct insn *insn, unsigned size)
{
	uint64_t count = insn->rep || insn->repne ? gpr_get(cpu, X86_RCX, insn->addrsize) : 1;

	return (uint32_t)(count > IO_BATCH / size ? IO_BATCH / size : count);
}

static unsigned string_size(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_INSB:
	case ZYDIS_MNEMONIC_OUTSB:
		return 1;
	case ZYDIS_MNEMONIC_INSW:
	case ZYDIS_MNEMONIC_OUTSW:
		return 2;
	default:
		return 4;
	}
}

static enum soft_next string_exit(struct soft_cpu *cpu, const struct insn *insn, bool in,
				  uint32_t n)
{
	unsigned size = string_size(insn);
	enum soft_next next;

	cpu->complete_arg[ARG_RIP] = next_rip(cpu, insn);
	cpu->complete_arg[ARG_COUNT] = n;
	cpu->complete_arg[ARG_SHAPE] = SHAPE(size, insn->addrsize, insn->rep || insn->repne);
	next = io_exit(cpu, (uint16_t)cpu->gpr[X86_RDX], size, in, n,
		       in ? ins_complete : outs_complete);
	cpu->exit->inout.string = true;
	return next;
}

HELPER(do_outs)
{
	unsigned size = string_size(insn);
	uint32_t count = string_count(cpu, insn, size), n;
	uint64_t offset = gpr_get(cpu, X86_RSI, insn->addrsize), linear;
	int next = io_allowed(cpu, (uint16_t)cpu->gpr[X86_RDX], size);

	if (next)
		return next;
	if (!count)
		return done(cpu, insn);
	for (n = 0; n < count; n++) {
		next = soft_linear(cpu, insn->mem_seg, offset, size, ACCESS_READ, &linear);
		if (!next)
			next = soft_load(cpu, linear, cpu->io_data + n * size, size, ACCESS_READ);
		if (next)
			break;
		offset = cut(offset + (uint64_t)io_step(cpu, size), insn->addrsize);
	}
	if (!n)
		return next;
	cpu->complete = NULL;
	return string_exit(cpu, insn, false, n);
}

HELPER(do_ins)
{
	unsigned size = string_size(insn);
	uint32_t count = string_count(cpu, insn, size), n;
	uint64_t offset = gpr_get(cpu, X86_RDI, insn->addrsize), linear, gpa;
	int next = io_allowed(cpu, (uint16_t)cpu->gpr[X86_RDX], size);

	if (next)
		return next;
	if (!count)
		return done(cpu, insn);
	for (n = 0; n < count; n++) {
		next = soft_linear(cpu, X86_ES, offset, size, ACCESS_WRITE, &linear);
		if (!next)
			next = soft_translate_va(cpu, linear, ACCESS_WRITE, &gpa, NULL);
		if (!next && (linear & 0xfff) + size > 4096)
			next = soft_translate_va(cpu, linear + size - 1, ACCESS_WRITE, &gpa, NULL);
		if (next)
			break;
		offset = cut(offset + (uint64_t)io_step(cpu, size), insn->addrsize);
	}
	if (!n)
		return next;
	return string_exit(cpu, insn, true, n);
}
