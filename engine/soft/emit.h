/*
 * Writing host instructions. A small assembler for what the translator needs, and insn_emit(), which writes
 * a decoded guest instruction again with other registers or another memory operand.
 *
 * A struct emit never writes beyond its end: it sets `overflow` and drops the rest.
 */
#ifndef ENGINE_SOFT_EMIT_H
#define ENGINE_SOFT_EMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "engine/soft/decode.h"

/* Host registers, by number. */
enum host_reg {
	H_RAX,
	H_RCX,
	H_RDX,
	H_RBX,
	H_RSP,
	H_RBP,
	H_RSI,
	H_RDI,
	H_R8,
	H_R9,
	H_R10,
	H_R11,
	H_R12,
	H_R13,
	H_R14,
	H_R15,
	H_NONE = 0xff
};

struct emit {
	uint8_t *start, *p, *end;
	bool overflow;
};

/* base + index * scale + disp; base or index may be H_NONE. Index is not RSP. */
struct hmem {
	uint8_t base, index, scale;
	int32_t disp;
};

static inline struct hmem hmem(uint8_t base, int32_t disp)
{
	return (struct hmem){.base = base, .index = H_NONE, .scale = 1, .disp = disp};
}
static inline struct hmem hmem_x(uint8_t base, uint8_t index, uint8_t scale, int32_t disp)
{
	return (struct hmem){.base = base, .index = index, .scale = scale, .disp = disp};
}

static inline uint32_t emit_pos(const struct emit *e)
{
	return (uint32_t)(e->p - e->start);
}

/* Inline: most of what is written is written by them. */
static inline void emit_u8(struct emit *e, uint8_t byte)
{
	if (e->p == e->end)
		e->overflow = true;
	else
		*e->p++ = byte;
}

static inline void emit_u32(struct emit *e, uint32_t value)
{
	if (e->end - e->p < 4) {
		e->overflow = true;
		return;
	}
	memcpy(e->p, &value, 4);
	e->p += 4;
}
void emit_bytes(struct emit *e, const void *bytes, unsigned n);

/* opcode with ModRM: `map` 0 is one-byte, 1 is 0F. width 1, 2, 4 or 8 bytes gives 66/REX.W. */
void emit_op_rr(struct emit *e, unsigned width, unsigned map, uint8_t opcode, uint8_t reg,
		uint8_t rm);
void emit_op_rm(struct emit *e, unsigned width, unsigned map, uint8_t opcode, uint8_t reg,
		struct hmem mem);

/* None of these changes flags. */
void emit_mov_rr(struct emit *e, unsigned width, uint8_t dst, uint8_t src); /* width 4 or 8 */
void emit_load(struct emit *e, unsigned width, uint8_t dst, struct hmem mem);
void emit_store(struct emit *e, unsigned width, struct hmem mem, uint8_t src);
void emit_store_imm(struct emit *e, unsigned width, struct hmem mem, int32_t imm);
void emit_lea(struct emit *e, unsigned width, uint8_t dst, struct hmem mem);
void emit_mov_imm(struct emit *e, uint8_t dst, uint64_t imm);
void emit_movzx(struct emit *e, unsigned from, uint8_t dst, uint8_t src); /* from 1 or 2 bytes */
void emit_rorx(struct emit *e, uint8_t dst, uint8_t src, uint8_t count);
void emit_shrx(struct emit *e, unsigned width, uint8_t dst, uint8_t src, uint8_t count_reg);

void emit_pext(struct emit *e, uint8_t dst, uint8_t src, uint8_t mask);
void emit_pdep(struct emit *e, uint8_t dst, uint8_t src, uint8_t mask);

void emit_call_mem(struct emit *e, struct hmem mem);
void emit_jmp_mem(struct emit *e, struct hmem mem);
/* Forward jumps: emit returns a place, emit_here() makes it lead to the next byte to be written. A short
 * one that turns out too far sets `overflow`. */
uint32_t emit_jrcxz(struct emit *e);
uint32_t emit_jecxz(struct emit *e);
uint32_t emit_jmp(struct emit *e);		 /* rel32 */
uint32_t emit_jcc(struct emit *e, unsigned cc);	 /* rel32 */
void emit_here(struct emit *e, uint32_t place);	 /* a rel32 place */
void emit_here8(struct emit *e, uint32_t place); /* a rel8 place */
void emit_jmp_to(struct emit *e, uint32_t pos);	 /* to what is written already */
void emit_call_to(struct emit *e, uint32_t pos);

/*
 * The guest instruction again: `reg`, `rm`, `vvvv`, `opreg` are host register numbers that stand for the GPRs
 * which those fields name (ignored where the field names none or another kind of register). If `mem` is
 * not NULL it replaces the memory operand. An 8-bit register AH..BH is only possible where no operand needs
 * REX: see insn_needs_rex().
 */
struct insn_regs {
	uint8_t reg, rm, vvvv, opreg;
	const struct hmem *mem;
	/* Turn opcode register forms and RM register operands into memory: see translate.c. */
};
void insn_emit(struct emit *e, const struct insn *insn, const struct insn_regs *regs);

#endif
