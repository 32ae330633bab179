/*
 * Decoded instructions. Zydis decodes; nothing outside decode.c sees its structs, but its mnemonic and
 * register numbers are used as they are (ZYDIS_MNEMONIC_ADD ...).
 */
#ifndef ENGINE_SOFT_DECODE_H
#define ENGINE_SOFT_DECODE_H

#include <Zydis/Mnemonic.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/x86.h"

#define INSN_MAX 15
#define REG_NONE 0xff

enum insn_encoding { ENC_LEGACY, ENC_VEX, ENC_EVEX };

/* Register file of an operand held in a field of the encoding. */
enum reg_file {
	RF_NONE,
	RF_GPR,
	RF_GPR8H /* AH CH DH BH: number 4 to 7 */,
	RF_OTHER /* vector, mask, x87, segment, control */
};

/* Fields of the encoding that name a register: bits of insn.written_fields. */
#define FIELD_REG 1
#define FIELD_RM 2
#define FIELD_OPREG 4

struct insn {
	uint16_t op; /* ZYDIS_MNEMONIC_* */
	uint8_t len;
	uint8_t bytes[INSN_MAX];
	uint8_t encoding; /* enum insn_encoding */
	uint8_t map;	  /* opcode map: 0 one-byte, 1 0F, 2 0F38, 3 0F3A, EVEX 5 and 6 */
	uint8_t opcode;
	uint8_t opsize;	   /* effective operand size in bytes: 2, 4, 8 (1 for byte instructions) */
	uint8_t addrsize;  /* effective address size in bytes: 2, 4, 8 */
	uint8_t stacksize; /* 2, 4, 8 */
	uint8_t mode;	   /* 16, 32 or 64: of the code segment */
	bool rep, repne, lock, opsize_prefix;
	bool rex_w, vex_w;
	uint8_t rep_prefix;	/* the last of F2 and F3, whatever it means here; 0: none */
	uint8_t prefix66_f2_f3; /* mandatory prefix that is part of the opcode: 0, 0x66, 0xf2, 0xf3 */

	/* ModRM and what it names. Numbers are the guest's, REX/VEX/EVEX bits included (0-15, vectors 0-31). */
	bool has_modrm;
	uint8_t modrm;
	uint8_t reg, rm; /* register numbers of the fields; rm only if mod is 3 */
	uint8_t reg_file, rm_file, vvvv_file,
		opreg_file; /* enum reg_file; RF_NONE: the field names no register */
	uint8_t vvvv;	    /* VEX/EVEX */
	uint8_t opreg;	    /* register in the opcode's low bits */

	/* Memory operand by ModRM (one at most), or moffs (base and index none). */
	bool has_mem;  /* the instruction accesses memory there: not LEA, NOP, prefetch */
	bool is_agen;  /* it only computes the address (LEA), or does not need it */
	bool mem_vsib; /* gather, scatter: the index is a vector */
	bool rip_relative;
	uint8_t mem_seg;			/* enum x86_segreg, override included */
	uint8_t mem_base, mem_index, mem_scale; /* GPR numbers or REG_NONE; scale 1 2 4 8 */
	int64_t mem_disp;  /* sign-extended, EVEX disp8*N applied; moffs: the address */
	uint16_t mem_size; /* bytes accessed */
	bool mem_read, mem_write;

	uint8_t nimm;
	uint64_t imm
		[2]; /* sign-extended as the instruction uses it; far pointer: offset, selector */
	uint8_t imm_size[2]; /* in the encoding, bytes */
	bool imm_signed;     /* imm[0] */
	bool branch;	     /* near jump, call, loop by relative offset: imm[0] is that offset */
	bool reads_flags, writes_flags;
	uint8_t segreg; /* MOV Sreg, PUSH/POP Sreg: enum x86_segreg; MOV CRn/DRn: n; else REG_NONE */
	uint16_t isa;	/* ZYDIS_ISA_SET_* */
	/* Hidden operands: a bit for each GPR that is read or written without being named by a field. */
	uint16_t implicit_gprs;
	uint16_t written_gprs;	/* named by a field and written; AH to BH are not counted here */
	uint8_t written_high;	/* AH CH DH BH written: bits 0 to 3 */
	uint8_t written_fields; /* which of reg, rm, opreg those are: FIELD_* */
	uint8_t mask_reg;	/* EVEX opmask register, 0 if none; VMASKMOV has its mask in vvvv */
	bool suppresses; /* elements that the mask leaves out are not accessed (SDM vol. 2 section 2.8) */
	uint8_t vector_bytes; /* EVEX: vector length */
	bool broadcast; /* EVEX: memory has fewer elements than the register and serves in turn */
	uint8_t reg_element; /* EVEX: bytes of one element of the first operand, 0 for an opmask */
	uint8_t mem_element; /* bytes of one element of the memory operand */
	bool implicit_mem;   /* stack or string memory */
};

/* Decodes one instruction at the start of `bytes` (n of them are there). `mode`: MODE_* bits. 0; -ENODATA: it
 * is longer than n (n < 15); -EINVAL: no instruction (#UD), or over 15 bytes (then *insn->len is 15: #GP). */
int insn_decode(const uint8_t *bytes, unsigned n, uint32_t mode, struct insn *insn);

/*
 * The same, by shapes: instructions that differ in nothing but register numbers, displacement and immediate. Zydis decodes the
 * first of a shape, which is kept, and the others are made of that: ten times as fast (shape.c). For the instructions that most
 * 64-bit code is made of; others, and those near the end of `bytes`, are Zydis'. `shapes`: shapes_size() bytes, zeros at first,
 * one thread at a time.
 */
struct shapes;
uint64_t shapes_size(void);
int insn_decode_shaped(struct shapes *shapes, const uint8_t *bytes, unsigned n, uint32_t mode,
		       struct insn *insn);

/* Makes what AMD's CPUs execute of what insn_decode() gave. -EINVAL: nothing, #UD. */
int insn_as_amd(uint32_t mode, struct insn *insn);

/* Assembler text (Intel syntax) for traces; rip is where it lies. */
void insn_print(const struct insn *insn, uint64_t rip, char *out, unsigned size);

#endif
