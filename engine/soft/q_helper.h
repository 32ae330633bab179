/*
 * What the instructions in C share. Quick. Functions that return int give 0, NEXT_FAULT or NEXT_EXIT, as
 * soft_load() does.
 */
#ifndef ENGINE_SOFT_Q_HELPER_H
#define ENGINE_SOFT_Q_HELPER_H

#include <Zydis/Mnemonic.h>

#include "engine/soft/cache.h"
#include "engine/soft/decode.h"
#include "engine/soft/tlb.h"
#include "vmm/exit.h"
#include "vmm/vm.h"

#define SEG_TYPE_ACCESSED 1u
#define SEG_TYPE_WRITE 2u   /* data: writable; code: readable */
#define SEG_TYPE_CONFORM 4u /* code: conforming; data: expand down */
#define SEG_TYPE_CODE 8u

/* ---- registers ------------------------------------------------------------------------------------------ */

static inline uint64_t cut(uint64_t value, unsigned size)
{
	return size >= 8 ? value : value & ((1ull << size * 8) - 1);
}

static inline uint64_t gpr_get(const struct soft_cpu *cpu, unsigned n, unsigned size)
{
	return cut(cpu->gpr[n], size);
}

/* As a CPU writes: 32 bits clear the upper half, 8 and 16 leave the rest. */
static inline void gpr_set(struct soft_cpu *cpu, unsigned n, unsigned size, uint64_t value)
{
	uint64_t mask = size == 1 ? 0xff : 0xffff;

	if (size >= 4)
		cpu->gpr[n] = cut(value, size);
	else
		cpu->gpr[n] = (cpu->gpr[n] & ~mask) | (value & mask);
}

static inline bool is_canonical(uint64_t linear)
{
	return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
}

static inline bool code64(const struct soft_cpu *cpu)
{
	return cpu->mode & MODE_CODE64;
}

static inline bool protected_mode(const struct soft_cpu *cpu)
{
	return cpu->cr0 & X86_CR0_PE;
}

static inline bool long_mode(const struct soft_cpu *cpu)
{
	return cpu->efer & X86_EFER_LMA;
}

static inline unsigned iopl(const struct soft_cpu *cpu)
{
	return cpu->sysflags >> 12 & 3;
}

static inline unsigned seg_dpl(const struct x86_seg *seg)
{
	return seg->attr >> SEG_ATTR_DPL_SHIFT & 3;
}

static inline enum soft_next raise_gp0(struct soft_cpu *cpu)
{
	return soft_raise_error(cpu, X86_GP, cpu->ext);
}

/* ---- the end of an instruction -------------------------------------------------------------------------- */

static inline uint64_t next_rip(const struct soft_cpu *cpu, const struct insn *insn)
{
	uint64_t rip = cpu->rip + insn->len;

	return code64(cpu) ? rip : (uint32_t)rip;
}

/* Writes of this vCPU may invalidate the block it runs: taken before, compared after. */
static inline uint64_t code_epoch(const struct soft_cpu *cpu)
{
	return atomic_load_explicit(&cpu->svm->n_invalidated, memory_order_relaxed) +
	       atomic_load_explicit(&cpu->svm->n_flushes, memory_order_relaxed);
}

/* Done: on with the block, or out of it if code was invalidated meanwhile. */
static inline enum soft_next done_since(struct soft_cpu *cpu, const struct insn *insn,
					uint64_t epoch)
{
	soft_advance(cpu, insn);
	return code_epoch(cpu) == epoch ? NEXT_GO : NEXT_LEAVE;
}

static inline enum soft_next done(struct soft_cpu *cpu, const struct insn *insn)
{
	soft_advance(cpu, insn);
	return NEXT_GO;
}

/* The same after something that may have changed the mode. */
static inline enum soft_next done_mode(struct soft_cpu *cpu, const struct insn *insn)
{
	uint32_t before = cpu->mode;

	soft_advance(cpu, insn);
	soft_update_mode(cpu);
	return (cpu->mode ^ before) & ~MODE_SHADOW ? NEXT_LEAVE : NEXT_GO;
}

/* IF, NMI mask, or TF changed: the run loop is to look at what waits. True: leave translated code. */
static inline bool events_look(struct soft_cpu *cpu)
{
	if (!cpu->event_waiting)
		return false;
	atomic_store(&cpu->run_ok, 0);
	return true;
}

/* A host pointer to [linear, linear + len), within one page, by the inline TLB; NULL: not by plain means (a fault,
 * MMIO, translated code there). */
static inline uint8_t *direct_ptr(struct soft_cpu *cpu, uint64_t linear, uint64_t len, bool write)
{
	const struct soft_tlb *tlb = cpu->tlb;
	unsigned i = linear >> 12 & (TLB_ENTRIES - 1);
	uint64_t tag = write ? tlb->wtag[i] : tlb->rtag[i];

	if ((linear + len - 1 + tag) >> 12 == 0)
		return (uint8_t *)(uintptr_t)(linear + tlb->addend[i]);
	if ((linear & 0xfff) + len > 4096)
		return NULL;
	return soft_mem_probe(cpu, linear, 1 | (write ? PROBE_WRITE : 0));
}

/* ---- q_operand.c ---------------------------------------------------------------------------------------- */

/* Offset of the memory operand in its segment, without an index that is a vector. */
uint64_t operand_offset(const struct soft_cpu *cpu, const struct insn *insn);
/* The operand that ModRM's rm names, a register or memory. */
int operand_load(struct soft_cpu *cpu, const struct insn *insn, unsigned size, uint64_t *value);
int operand_store(struct soft_cpu *cpu, const struct insn *insn, unsigned size, uint64_t value);
/* Checks that operand_store() would succeed. */
int operand_probe(struct soft_cpu *cpu, const struct insn *insn, unsigned size);
int segment_load(struct soft_cpu *cpu, enum x86_segreg seg, uint64_t offset, unsigned size,
		 uint64_t *value);
int segment_store(struct soft_cpu *cpu, enum x86_segreg seg, uint64_t offset, unsigned size,
		  uint64_t value);

/* The end of an instruction that an exit interrupted, for cpu->complete: NEXT_LEAVE, or the single-step trap. */
enum soft_next complete_at(struct soft_cpu *cpu, uint64_t rip);

/* Descriptor tables, TSS: supervisor accesses whatever the CPL; any length, any number of pages. */
int system_load(struct soft_cpu *cpu, uint64_t linear, void *out, unsigned size);
int system_store(struct soft_cpu *cpu, uint64_t linear, const void *in, unsigned size);

/* A register of the CPU model's CPUID; 0 if it has no such leaf. */
enum cpuid_reg { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };
uint32_t model_reg(const struct soft_cpu *cpu, uint32_t leaf, enum cpuid_reg reg);
static inline bool model_bit(const struct soft_cpu *cpu, uint32_t leaf, enum cpuid_reg reg,
			     unsigned bit)
{
	return model_reg(cpu, leaf, reg) >> bit & 1;
}

/* ---- q_stack.c ------------------------------------------------------------------------------------------ */

/* Pushes and pops that take effect at stack_commit(): until then only memory above or below is touched. */
struct stack {
	struct soft_cpu *cpu;
	struct x86_seg seg;
	uint64_t sp;
	uint8_t width;	/* of the pointer: 2, 4, 8 */
	uint32_t error; /* of #SS */
};

/* The current stack. */
void stack_begin(struct soft_cpu *cpu, struct stack *stack);
int stack_push(struct stack *stack, unsigned size, uint64_t value);
int stack_pop(struct stack *stack, unsigned size, uint64_t *value);
/* Reads at `offset` above the top without moving it. */
int stack_peek(struct stack *stack, unsigned offset, unsigned size, uint64_t *value);
/* Moves the pointer, wrapping at its width. */
void stack_add(struct stack *stack, int64_t n);
/* RSP = the pointer. */
void stack_commit(struct stack *stack);

/* ---- q_segment.c ---------------------------------------------------------------------------------------- */

struct descriptor {
	uint32_t lo, hi;
	uint64_t linear; /* where it lies */
};

static inline unsigned desc_type(const struct descriptor *d)
{
	return d->hi >> 8 & 15;
}
static inline unsigned desc_dpl(const struct descriptor *d)
{
	return d->hi >> 13 & 3;
}
static inline bool desc_present(const struct descriptor *d)
{
	return d->hi >> 15 & 1;
}
static inline bool desc_system(const struct descriptor *d)
{
	return !(d->hi & 0x1000);
}
static inline bool desc_is_code(const struct descriptor *d)
{
	return !desc_system(d) && (desc_type(d) & SEG_TYPE_CODE);
}
static inline bool desc_is_writable_data(const struct descriptor *d)
{
	return !desc_system(d) &&
	       (desc_type(d) & (SEG_TYPE_CODE | SEG_TYPE_WRITE)) == SEG_TYPE_WRITE;
}
static inline bool selector_null(uint16_t sel)
{
	return (sel & ~3) == 0;
}

/* A fault that names a selector. */
enum soft_next raise_selector(struct soft_cpu *cpu, uint8_t vector, uint16_t sel);
/* Reads a descriptor; beyond its table: the fault `vector` with the selector. Not for null selectors. */
int descriptor_read(struct soft_cpu *cpu, uint16_t sel, uint8_t vector, struct descriptor *d);
/* The upper half of a 16-byte system descriptor. */
int descriptor_read_high(struct soft_cpu *cpu, uint16_t sel, const struct descriptor *d,
			 uint32_t high[2]);
int descriptor_mark_accessed(struct soft_cpu *cpu, struct descriptor *d);
void segment_from_descriptor(struct x86_seg *seg, uint16_t sel, const struct descriptor *d);
void segment_set_null(struct x86_seg *seg, uint16_t sel, unsigned dpl);
/* Loads a data or stack segment register as MOV does, with all checks; nothing changes on a fault. */
int segment_register_load(struct soft_cpu *cpu, enum x86_segreg seg, uint16_t sel);
/* SS for privilege level `cpl`: what MOV SS checks, with #TS or #GP as `vector` says. */
int stack_segment_check(struct soft_cpu *cpu, uint16_t sel, unsigned cpl, uint8_t vector,
			struct descriptor *d);
/* A 64-bit CS as SYSCALL sets it, and a flat one of 32 bits. */
void segment_set_flat_code(struct x86_seg *seg, uint16_t sel, unsigned dpl, bool is64);
void segment_set_flat_data(struct x86_seg *seg, uint16_t sel, unsigned dpl);

/* ---- q_exception.c -------------------------------------------------------------------------------------- */

/* INT n, INT3, INTO, INT1: through the IDT, returning to `rip`. NEXT_LEAVE, or NEXT_FAULT with cpu->rip as it was. */
enum soft_next deliver_software(struct soft_cpu *cpu, uint8_t vector, uint64_t rip, bool check_dpl);
/* Stack pointer `index` (a privilege level; long mode: 3 + n is IST n) of the TSS. */
int tss_stack(struct soft_cpu *cpu, unsigned index, uint64_t *sp, uint16_t *ss);

/* ---- q_msr.c -------------------------------------------------------------------------------------------- */

/* Writes the guest's kvm-clock page again: after its TSC was set. */
void kvm_clock_update(struct soft_cpu *cpu);

/* ---- q_string.c, q_bits.c, q_bcd.c: NULL if the instruction is none of theirs; none ends a block ---------- */

soft_helper string_helper_for(const struct insn *insn);
soft_helper bits_helper_for(const struct insn *insn);
soft_helper bcd_helper_for(const struct insn *insn);

#define HELPER(name) enum soft_next name(struct soft_cpu *cpu, const struct insn *insn)

#endif
