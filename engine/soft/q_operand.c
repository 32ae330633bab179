/* Quick: operands of instructions in C, system tables in memory, the CPU model. */
#include "engine/soft/q_helper.h"

uint64_t operand_offset(const struct soft_cpu *cpu, const struct insn *insn)
{
	uint64_t offset = (uint64_t)insn->mem_disp;

	if (insn->rip_relative)
		offset += cpu->rip + insn->len;
	else if (insn->mem_base != REG_NONE)
		offset += cpu->gpr[insn->mem_base];
	if (insn->mem_index != REG_NONE && !insn->mem_vsib)
		offset += cpu->gpr[insn->mem_index] * insn->mem_scale;
	return cut(offset, insn->addrsize);
}

int segment_load(struct soft_cpu *cpu, enum x86_segreg seg, uint64_t offset, unsigned size,
		 uint64_t *value)
{
	uint64_t linear;
	int next = soft_linear(cpu, seg, offset, size, ACCESS_READ, &linear);

	*value = 0;
	return next ? next : soft_load(cpu, linear, value, size, ACCESS_READ);
}

int segment_store(struct soft_cpu *cpu, enum x86_segreg seg, uint64_t offset, unsigned size,
		  uint64_t value)
{
	uint64_t linear;
	int next = soft_linear(cpu, seg, offset, size, ACCESS_WRITE, &linear);

	return next ? next : soft_store(cpu, linear, &value, size, ACCESS_WRITE);
}

int operand_load(struct soft_cpu *cpu, const struct insn *insn, unsigned size, uint64_t *value)
{
	if (insn->has_mem)
		return segment_load(cpu, insn->mem_seg, operand_offset(cpu, insn), size, value);
	*value = gpr_get(cpu, insn->rm, size);
	return 0;
}

int operand_store(struct soft_cpu *cpu, const struct insn *insn, unsigned size, uint64_t value)
{
	if (insn->has_mem)
		return segment_store(cpu, insn->mem_seg, operand_offset(cpu, insn), size, value);
	gpr_set(cpu, insn->rm, size, value);
	return 0;
}

int operand_probe(struct soft_cpu *cpu, const struct insn *insn, unsigned size)
{
	uint64_t linear, gpa;
	int next;

	if (!insn->has_mem)
		return 0;
	next = soft_linear(cpu, insn->mem_seg, operand_offset(cpu, insn), size, ACCESS_WRITE,
			   &linear);
	if (!next)
		next = soft_translate_va(cpu, linear, ACCESS_WRITE, &gpa, NULL);
	if (!next && (linear & 0xfff) + size > 4096)
		next = soft_translate_va(cpu, linear + size - 1, ACCESS_WRITE, &gpa, NULL);
	return next;
}

enum soft_next complete_at(struct soft_cpu *cpu, uint64_t rip)
{
	cpu->rip = rip;
	cpu->shadow_sti = cpu->shadow_mov_ss = false;
	soft_replay_clear(cpu);
	if (!cpu->step_trap)
		return NEXT_LEAVE;
	cpu->step_trap = false;
	soft_raise(cpu, X86_DB);
	cpu->fault.trap = true;
	cpu->fault.dr6 = 0x4000; /* BS */
	return NEXT_FAULT;
}

/* ---- system tables -------------------------------------------------------------------------------------- */

/* An event that is being delivered cannot wait for a device: tables and stacks on MMIO are an open bus to it, as
 * nothing that works keeps them there. */
static int open_bus(struct soft_cpu *cpu, int next, uint8_t *out, unsigned size)
{
	if (next != NEXT_EXIT || !cpu->delivering)
		return next;
	cpu->complete = NULL;
	soft_replay_clear(cpu);
	for (unsigned i = 0; out && i < size; i++)
		out[i] = 0xff;
	return 0;
}

/* The part of [linear, linear + size) on its first page; *linear as the mode sees addresses. */
static unsigned system_part(const struct soft_cpu *cpu, uint64_t *linear, unsigned size)
{
	unsigned left = 4096 - (unsigned)(*linear & 0xfff);

	if (!long_mode(cpu))
		*linear = (uint32_t)*linear;
	return size < left ? size : left;
}

int system_load(struct soft_cpu *cpu, uint64_t linear, void *out, unsigned size)
{
	uint8_t *to = out;
	int next = 0;

	while (size && !next) {
		unsigned part = system_part(cpu, &linear, size);

		if (long_mode(cpu) && !is_canonical(linear))
			return raise_gp0(cpu);
		next = soft_load(cpu, linear, to, part, ACCESS_READ | ACCESS_SYSTEM);
		next = open_bus(cpu, next, to, part);
		linear += part;
		to += part;
		size -= part;
	}
	return next;
}

int system_store(struct soft_cpu *cpu, uint64_t linear, const void *in, unsigned size)
{
	const uint8_t *from = in;
	int next = 0;

	while (size && !next) {
		unsigned part = system_part(cpu, &linear, size);

		if (long_mode(cpu) && !is_canonical(linear))
			return raise_gp0(cpu);
		next = soft_store(cpu, linear, from, part, ACCESS_WRITE | ACCESS_SYSTEM);
		next = open_bus(cpu, next, NULL, part);
		linear += part;
		from += part;
		size -= part;
	}
	return next;
}

/* ---- the CPU model -------------------------------------------------------------------------------------- */

uint32_t model_reg(const struct soft_cpu *cpu, uint32_t leaf, enum cpuid_reg reg)
{
	const struct cpuid_table *model = &cpu->svm->vm->cpuid;

	for (unsigned i = 0; i < model->n; i++) {
		const struct cpuid_leaf *l = &model->leaf[i];

		if (l->leaf != leaf || (l->indexed && l->subleaf))
			continue;
		return reg == CPUID_EAX	  ? l->regs.eax
		       : reg == CPUID_EBX ? l->regs.ebx
		       : reg == CPUID_ECX ? l->regs.ecx
					  : l->regs.edx;
	}
	return 0;
}
