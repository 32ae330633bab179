/* Quick: near branches that are not translated inline: 16-bit operands, segments that are not flat. */
#include "engine/soft/q_insn.h"

/* Where a near branch goes. */
static int branch_target(struct soft_cpu *cpu, const struct insn *insn, uint64_t *target)
{
	if (!insn->branch)
		return operand_load(cpu, insn, insn->opsize, target);
	*target = cut(cpu->rip + insn->len + insn->imm[0], insn->opsize);
	return 0;
}

/* Is it in the code segment? SDM vol. 2, JMP and CALL: checked before anything changes. */
static int target_check(struct soft_cpu *cpu, uint64_t target)
{
	if (code64(cpu) ? !is_canonical(target) : target > cpu->seg[X86_CS].limit)
		return raise_gp0(cpu);
	return 0;
}

static enum soft_next go(struct soft_cpu *cpu, const struct insn *insn, uint64_t target)
{
	soft_advance(cpu, insn);
	cpu->rip = target;
	return NEXT_LEAVE;
}

HELPER(do_jmp)
{
	uint64_t target;
	int next = branch_target(cpu, insn, &target);

	if (!next)
		next = target_check(cpu, target);
	if (next)
		return next;
	return go(cpu, insn, target);
}

HELPER(do_call)
{
	uint64_t target;
	struct stack stack;
	int next = branch_target(cpu, insn, &target);

	if (!next)
		next = target_check(cpu, target);
	if (next)
		return next;
	stack_begin(cpu, &stack);
	next = stack_push(&stack, insn->opsize, cut(next_rip(cpu, insn), insn->opsize));
	if (next)
		return next;
	stack_commit(&stack);
	return go(cpu, insn, target);
}

HELPER(do_ret)
{
	uint64_t target;
	struct stack stack;
	int next;

	stack_begin(cpu, &stack);
	next = stack_pop(&stack, insn->opsize, &target);
	if (!next)
		next = target_check(cpu, target);
	if (next)
		return next;
	if (insn->nimm)
		stack_add(&stack, (int64_t)(uint16_t)insn->imm[0]);
	stack_commit(&stack);
	return go(cpu, insn, target);
}
