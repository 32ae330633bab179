/*
 * Translation of one block: internal to translate.c (flow, block structure), t_mem.c (addresses, the inline TLB)
 * and t_native.c (instructions that are written again). See docs/ARCHITECTURE.md for a drawn example.
 *
 * A block's host code, in order: the way out for a pending request, the `cross` entry, the `local` entry,
 * the instructions, then the cold parts: TLB misses, exits that are not linked.
 */
#ifndef ENGINE_SOFT_TRANSLATE_H
#define ENGINE_SOFT_TRANSLATE_H

#include <stddef.h>

#include "engine/soft/cache.h"
#include "engine/soft/emit.h"

#define BLOCK_INSNS_MAX 64
#define BLOCK_COLD_MAX (BLOCK_INSNS_MAX * 2)
#define BLOCK_LINKS_MAX 24
#define BLOCK_PCS_MAX (BLOCK_INSNS_MAX * 4)

/* block_pc.flags: while set, the host register in the low four bits is borrowed and its guest value is in
 * cpu->scratch[0]. */
#define PC_BORROWED 0x80

/* Field of struct soft_cpu as a memory operand of translated code. */
#define CPU(field) hmem(H_RSP, (int32_t)offsetof(struct soft_cpu, field) - SOFT_RSP_BIAS)
#define CPU_GPR(n) hmem(H_RSP, (int32_t)(offsetof(struct soft_cpu, gpr) + 8 * (n)) - SOFT_RSP_BIAS)
#define CPU_STUB(n) \
	hmem(H_RSP, (int32_t)(offsetof(struct soft_cpu, stub) + 8 * (n)) - SOFT_RSP_BIAS)

/* What an instruction does once its memory operand has an address: run in the main path and, for writes, again
 * behind the slow path. */
struct body {
	enum {
		BODY_NONE,
		BODY_NATIVE,
		BODY_PUSH_REG,
		BODY_PUSH_SLOT,
		BODY_PUSH_IMM,
		BODY_CALL
	} kind;
	const struct insn *insn;
	struct insn_regs regs;
	struct hmem mem; /* what `regs.mem` points to, or where to push */
	uint8_t temp[4]; /* host registers that stand for guest registers in memory */
	uint8_t temp_guest[4];
	unsigned ntemps;
	uint8_t borrowed; /* host register saved in scratch[0], H_NONE if none */
	bool rcx;	  /* guest RCX must be in RCX */
	uint8_t size;	  /* PUSH_*: bytes */
	uint8_t reg;	  /* PUSH_REG: host register */
	uint64_t imm; /* PUSH_IMM: value; PUSH_SLOT: its displacement from RSP; CALL: next offset */
	bool indirect;	/* CALL: the target is in scratch[2] */
	int32_t target; /* CALL: else its page offset */
};

/* A TLB miss: jumped to from `from`; afterwards `back`. */
struct cold {
	uint32_t from, back;
	uint32_t desc;
	uint16_t offset;    /* of the instruction in its page */
	bool address;	    /* the linear address is in R10 already; host address wanted in R10 */
	struct hmem linear; /* else it is this */
	struct body body;   /* BODY_NONE for reads */
};

struct exit_site {
	uint32_t jump;	/* rel32 place */
	int32_t target; /* page offset */
};

struct translation {
	struct emit e;
	struct soft_cpu *cpu;
	struct soft_vm *svm;
	uint32_t mode;
	uint32_t base;	 /* code offset of e.start */
	uint16_t start;	 /* page offset of the first instruction */
	uint16_t offset; /* page offset of the current one */
	struct insn *insn;
	struct insn insns[BLOCK_INSNS_MAX];
	unsigned ninsns;
	struct cold cold[BLOCK_COLD_MAX];
	unsigned ncold;
	struct exit_site exits[BLOCK_LINKS_MAX];
	unsigned nexits;
	struct block_pc pcs[BLOCK_PCS_MAX];
	unsigned npcs;
	bool no_meta; /* metadata memory ran out: flush and try again */
	bool ended;   /* nothing follows the current instruction */
};

/* Host register of a guest GPR, H_NONE for those that live in cpu->gpr[]. */
uint8_t guest_reg(uint8_t gpr);

/* From here on host code belongs to the current instruction. */
void translation_mark(struct translation *t, uint16_t flags);

/* t_mem.c: the address of the instruction's memory operand into `dst` (R10 or RCX), the effective address (no
 * segment base) with `segment` false. `tmp` is the other of the two. */
void emit_address(struct translation *t, const struct insn *insn, uint8_t dst, uint8_t tmp,
		  bool segment);
/* Checks an access and gives the host operand; uses R10 and RCX. rcx_free: RCX is free behind it. */
struct hmem emit_access(struct translation *t, const struct insn *insn, unsigned size,
			uint32_t flags, bool rcx_free, struct cold **cold);
/* The same for [host register + disp] in the stack segment (64-bit, or flat with a 32-bit stack). */
struct hmem emit_stack_access(struct translation *t, uint8_t reg, int32_t disp, unsigned size,
			      uint32_t flags, struct cold **cold);

/* t_native.c */
void emit_native(struct translation *t, const struct insn *insn);
void emit_body(struct translation *t, const struct body *body);
void emit_lea_insn(struct translation *t, const struct insn *insn);
/* A guest register's value into RCX or R10, or back. */
void emit_get_gpr(struct translation *t, uint8_t dst, uint8_t gpr);
void emit_set_gpr(struct translation *t, uint8_t gpr, uint8_t src, unsigned width);

/* t_flow.c: true if the instruction was a branch, call, return, push or pop that is done inline. */
bool emit_flow(struct translation *t, const struct insn *insn);
/* Goes on at a page offset or, outside the page, by the jump cache. */
void emit_goto(struct translation *t, int32_t target);
/* RCX holds a RIP: go there. */
void emit_indirect(struct translation *t);
void emit_rip(struct translation *t, uint8_t dst, int32_t offset);
void emit_cold_parts(struct translation *t);
/* The way out for one exit site; fills the link in if the target is of this page. */
void emit_exit_part(struct translation *t, const struct exit_site *site, struct block_link *link);
bool exit_linkable(const struct translation *t, int32_t target);

#endif
