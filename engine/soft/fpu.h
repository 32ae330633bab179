/*
 * Instructions in C that read or write vector and x87 state: the FXSAVE and XSAVE families, the x87 environment,
 * masked byte stores, gathers and scatters. Full helpers: the state is in cpu->xsave.
 */
#ifndef ENGINE_SOFT_FPU_H
#define ENGINE_SOFT_FPU_H

#include "engine/soft/cpu.h"
#include "engine/soft/decode.h"
#include "vmm/cpuid.h"

/* The full helper for an instruction of these families, NULL if it is none (or one that no guest has: XSAVES). */
soft_helper fpu_helper_for(const struct insn *insn);

/* ---- between fpu.c, xsave.c and gather.c ---------------------------------------------------------------- */

enum fpu_component { XC_X87, XC_SSE, XC_AVX, XC_OPMASK = 5, XC_ZMM_HI256, XC_HI16_ZMM, XC_MAX };

/* The legacy region of an XSAVE area, which is FXSAVE's image (SDM vol. 1 table 10-2). */
#define FX_FCW 0
#define FX_FSW 2
#define FX_FTW 4
#define FX_FOP 6
#define FX_FIP 8
#define FX_MXCSR 24
#define FX_MXCSR_MASK 28
#define FX_ST 32
#define FX_XMM 160
#define XS_BV 512
#define XS_XCOMP_BV 520
#define XS_EXTENDED 576

#define MXCSR_INIT 0x1f80u
#define MXCSR_MM 0x20000u /* AMD's: SSE operands may be misaligned */

/* Makes the bytes in cpu->xsave true of components whose XSTATE_BV bit is clear, for those in `mask`: the host leaves
 * stale bytes there. The bits stay as they are. */
void fpu_materialize(struct soft_cpu *cpu, uint64_t mask);
/* The same before they are changed: the bits become set. */
void fpu_modify(struct soft_cpu *cpu, uint64_t mask);
/* What the CPU model says of them, for fpu_component(): before any vCPU runs. */
void fpu_model(struct soft_vm *svm, const struct cpuid_table *model);
/* Where the host, and so the guest, has component n >= 2 in the standard format; false if the model has none. */
bool fpu_component(const struct soft_cpu *cpu, unsigned n, unsigned *offset, unsigned *size,
		   bool *align);
/* The bytes of vector register n, 0 to 31; zeros beyond what the model has of it. */
#define FPU_VECTOR_MAX 64
void fpu_vector_read(struct soft_cpu *cpu, unsigned n, uint8_t out[FPU_VECTOR_MAX]);
/* Opmask register k. */
uint64_t fpu_opmask_read(struct soft_cpu *cpu, unsigned k);
/* MXCSR bits that may be set. */
uint32_t fpu_mxcsr_mask(const struct soft_cpu *cpu);
/* Summary and busy bits as exceptions and masks make them, and no reserved bits in FCW. */
void fpu_normalize_status(struct soft_cpu *cpu);
/* Another register becomes ST(0); the image is in stack order, so it turns. */
void fpu_set_top(struct soft_cpu *cpu, unsigned top);
/* x87 instructions are not to be executed: CR0.TS or EM. 0, or NEXT_FAULT. */
int fpu_check_nm(struct soft_cpu *cpu, bool em_too);

/* The linear address of the memory operand, for an access of `size` bytes. */
int fpu_operand(struct soft_cpu *cpu, const struct insn *insn, unsigned size, unsigned access,
		uint64_t *linear);
/* Faults that a write to [linear, linear + size) would have, `size` at most 4096 bytes. */
int fpu_probe_write(struct soft_cpu *cpu, uint64_t linear, unsigned size);

enum soft_next xsave_helper(struct soft_cpu *cpu, const struct insn *insn);
enum soft_next xrstor_helper(struct soft_cpu *cpu, const struct insn *insn);
enum soft_next maskmov_helper(struct soft_cpu *cpu, const struct insn *insn);
enum soft_next gather_helper(struct soft_cpu *cpu, const struct insn *insn);

static inline uint16_t bytes_get16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}
static inline void bytes_set16(uint8_t *p, uint16_t value)
{
	__builtin_memcpy(p, &value, sizeof(value));
}
static inline uint32_t bytes_get32(const uint8_t *p)
{
	uint32_t value;

	__builtin_memcpy(&value, p, sizeof(value));
	return value;
}
static inline void bytes_set32(uint8_t *p, uint32_t value)
{
	__builtin_memcpy(p, &value, sizeof(value));
}
static inline uint64_t bytes_get64(const uint8_t *p)
{
	uint64_t value;

	__builtin_memcpy(&value, p, sizeof(value));
	return value;
}
static inline void bytes_set64(uint8_t *p, uint64_t value)
{
	__builtin_memcpy(p, &value, sizeof(value));
}

#endif
