/*
 * BT, BTS, BTR and BTC with a bit offset from a register and a bit string in memory: the bit may lie anywhere
 * around the operand (SDM vol. 2, BT). Other forms run natively.
 */
#include "engine/soft/q_helper.h"

enum bit_op { BIT_TEST, BIT_SET, BIT_RESET, BIT_COMPLEMENT };

static uint64_t bit_apply(uint64_t value, uint64_t bit, enum bit_op op)
{
	switch (op) {
	case BIT_SET:
		return value | bit;
	case BIT_RESET:
		return value & ~bit;
	case BIT_COMPLEMENT:
		return value ^ bit;
	default:
		return value;
	}
}

/* Atomically on memory that is the host's as well: one compare-and-exchange loop a size. */
#define BIT_ATOMIC(type)                                                                  \
	do {                                                                              \
		type old = __atomic_load_n((type *)p, __ATOMIC_SEQ_CST);                  \
		while (!__atomic_compare_exchange_n((type *)p, &old,                      \
						    (type)bit_apply(old, bit, op), false, \
						    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))  \
			;                                                                 \
		return old;                                                               \
	} while (0)

static uint64_t bit_direct(void *p, unsigned size, uint64_t bit, enum bit_op op)
{
	if (size == 2)
		BIT_ATOMIC(uint16_t);
	if (size == 4)
		BIT_ATOMIC(uint32_t);
	BIT_ATOMIC(uint64_t);
}

static int bit_slow(struct soft_cpu *cpu, const struct insn *insn, uint64_t linear, uint64_t bit,
		    enum bit_op op, uint64_t *old)
{
	bool alone = insn->lock && op != BIT_TEST;
	uint64_t changed, flushes = atomic_load(&cpu->svm->n_flushes);
	int next;

	*old = 0;
	if (alone) {
		exclusive_begin(cpu);
		/* While we waited the code may have been thrown away, and `insn` with it. */
		if (atomic_load(&cpu->svm->n_flushes) != flushes) {
			exclusive_end(cpu);
			return NEXT_LEAVE;
		}
	}
	next = soft_load(cpu, linear, old, insn->opsize,
			 op == BIT_TEST ? ACCESS_READ : ACCESS_READ | ACCESS_WRITE);
	changed = bit_apply(*old, bit, op);
	if (!next && op != BIT_TEST)
		next = soft_store(cpu, linear, &changed, insn->opsize, ACCESS_WRITE);
	if (alone)
		exclusive_end(cpu);
	return next;
}

static enum soft_next bit_string(struct soft_cpu *cpu, const struct insn *insn, enum bit_op op)
{
	unsigned size = insn->opsize, shift = size == 2 ? 4 : size == 4 ? 5 : 6;
	unsigned access = op == BIT_TEST ? ACCESS_READ : ACCESS_READ | ACCESS_WRITE;
	uint64_t epoch = code_epoch(cpu), linear, bit, old, offset;
	int64_t index = (int64_t)(gpr_get(cpu, insn->reg, size) << (64 - 8 * size)) >>
			(64 - 8 * size);
	void *p = NULL;
	int next;

	offset = cut(operand_offset(cpu, insn) + (uint64_t)((index >> shift) * (int64_t)size),
		     insn->addrsize);
	bit = 1ull << (index & ((1 << shift) - 1));
	next = soft_linear(cpu, insn->mem_seg, offset, size, access, &linear);
	if (next)
		return next;
	p = soft_direct(cpu, linear, size, op == BIT_TEST ? ACCESS_READ : ACCESS_WRITE, &next);
	if (next)
		return next;
	if (p && op != BIT_TEST && !(linear & (size - 1)))
		old = bit_direct(p, size, bit, op);
	else
		next = bit_slow(cpu, insn, linear, bit, op, &old);
	if (next)
		return next;
	cpu->arith = (cpu->arith & ~X86_FL_CF) | (old & bit ? X86_FL_CF : 0);
	return done_since(cpu, insn, epoch);
}

static HELPER(help_bt)
{
	return bit_string(cpu, insn, BIT_TEST);
}
static HELPER(help_bts)
{
	return bit_string(cpu, insn, BIT_SET);
}
static HELPER(help_btr)
{
	return bit_string(cpu, insn, BIT_RESET);
}
static HELPER(help_btc)
{
	return bit_string(cpu, insn, BIT_COMPLEMENT);
}

soft_helper bits_helper_for(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_BT:
		return help_bt;
	case ZYDIS_MNEMONIC_BTS:
		return help_bts;
	case ZYDIS_MNEMONIC_BTR:
		return help_btr;
	case ZYDIS_MNEMONIC_BTC:
		return help_btc;
	default:
		return NULL;
	}
}
