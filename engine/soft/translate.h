/*
 * Translation of one block: internal to translate.c (flow, block structure), t_mem.c (addresses, the inline TLB)
 * and t_native.c (instructions that are written again). See docs/ARCHITECTURE.md for a drawn example.
 *
 * A block's host code, in order: the way out for a pending request, the `cross` entry, the `local` entry, the
 * instructions, a loop's unchecked part (struct loop); and, apart from that (cache.h), the cold parts: where that way out leads, TLB
 * misses, exits that are not linked.
 */
#ifndef ENGINE_SOFT_TRANSLATE_H
#define ENGINE_SOFT_TRANSLATE_H

#include <stddef.h>

#include "engine/soft/cache.h"
#include "engine/soft/emit.h"

#define BLOCK_INSNS_MAX 64
#define BLOCK_COLD_MAX (BLOCK_INSNS_MAX * 2)
#define BLOCK_BRANCHES_MAX 48
#define BLOCK_LINKS_MAX \
	(BLOCK_BRANCHES_MAX + BLOCK_INSNS_MAX) /* a leader has one too: struct share */
#define BLOCK_PCS_MAX (BLOCK_INSNS_MAX * 5)

/* block_pc.flags: while set, the host register in the low four bits is borrowed and its guest value is in
 * cpu->scratch[0]. */
#define PC_BORROWED 0x80
/* The loop's pointers (struct loop) are in host registers, whose guest values are in cpu->gpr[]. */
#define PC_LOOP 0x100

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
	int32_t move; /* PUSH_*, CALL: what R14 is moved by behind it */
	bool indirect;	/* CALL: the target is in scratch[2] */
	int64_t target; /* CALL: else its page offset */
};

/* A TLB miss: jumped to from `from`; afterwards `back`. */
struct cold {
	uint32_t from, back;
	uint32_t desc;
	uint16_t offset;    /* of the instruction in its page */
	bool address;	    /* the linear address is in R10 already; host address wanted in R10 */
	struct hmem linear; /* else it is this */
	struct body body;   /* BODY_NONE for reads */
	bool leaves;	    /* a write that had to go by C ends the block: see struct share */
};

#define SHARE_SLOTS_NEAR 4		   /* of cpu->shared[] */
#define SHARE_SLOTS (SHARE_SLOTS_NEAR + 4) /* .. and cpu->shared_more[] */

static inline struct hmem share_slot(unsigned slot)
{
	struct hmem mem = slot < SHARE_SLOTS_NEAR ? CPU(shared) : CPU(shared_more);

	mem.disp += 8 * (int32_t)(slot % SHARE_SLOTS_NEAR);
	return mem;
}

/*
 * Accesses to one base (register, with index and segment; the page of the code, if RIP-relative) with displacements
 * near each other share a look-up. The first one, the leader, checks all bytes of the group at once and leaves their
 * host address in cpu->shared[slot]; the others, the members, use it unchecked. Between the two no C runs but soft_mem_fast(),
 * so that no translation and no right to write can be taken away.
 *
 * Where the group does not lie in one page of RAM, the leader leaves for another block, with MODE_PLAIN, that begins with
 * its instruction and in which every access is checked on its own. It is made when it is wanted first. A write that had to
 * go by soft_mem_slow() may have let other vCPUs run: what was checked before it is void, and the block is left behind it.
 */
struct share {
	enum { SHARE_NONE, SHARE_LEADER, SHARE_MEMBER } role;
	uint8_t slot;
	uint8_t leader; /* index of the leader's instruction */
	int32_t disp;	/* of the access, from the group's first byte */
	/* Of a leader: */
	uint16_t size; /* bytes of the group */
	bool write;    /* some access of it is a write */
};

#define LOOP_STREAMS 4

/* Accesses of a loop whose addresses differ by constants, and move by `step` with each iteration. */
struct stream {
	uint8_t base, index, scale; /* guest registers */
	uint8_t pointer;	    /* the host register that has what `kind` says */
	enum stream_kind {
		STREAM_ADDEND,	/* host address less guest address; there is no index */
		STREAM_BASE,	/* that plus the base, which the loop leaves alone */
		STREAM_INDEX,	/* that plus the index, scaled */
		STREAM_POINTER, /* the host address of the first byte; both move, and so does this */
	} kind;
	bool write;
	int32_t step;
	int32_t lo,
		hi; /* bytes of an iteration, from the address that the registers give at its beginning */
};

/*
 * A block that begins with a loop: instructions that run natively on registers and on addresses that move by constants, up
 * to the conditional jump to the block's start. That jump, if taken, leads to code that looks up all streams at once, finds
 * out how many iterations stay in the pages where the streams are, and executes so many with no check: by way of host
 * registers that the loop does not use (their guest values are in cpu->gpr[] meanwhile) and with the count in RCX, which is looked
 * at once in UNROLL iterations if they are short. Then, or if a stream is not in the TLB, the block's `local` entry goes on with
 * one iteration as usual. Other blocks that jump back to here are linked to that code.
 */
struct loop {
	unsigned length; /* instructions before the jump, 0: no such loop */
	struct stream stream[LOOP_STREAMS];
	unsigned nstreams;
	uint8_t of[BLOCK_INSNS_MAX];   /* each instruction's stream */
	int32_t disp[BLOCK_INSNS_MAX]; /* .. and displacement, as in lo and hi */
	uint32_t from, cont;	       /* the jump, 0 if it was not written; what follows it */
	uint32_t entry;		       /* for jumps from other blocks */
	uint32_t again;		       /* the unchecked iterations, with their number in RCX */
	bool inside;		       /* the unchecked iteration is being written */
};

/* A leader whose group is not in the TLB. */
struct probe {
	uint32_t from, back;
	bool address;	    /* the group's linear address is in R10 already */
	struct hmem linear; /* else it is this */
	uint32_t what;	    /* for soft_mem_probe(); 0: it must not be asked for */
	uint16_t offset;    /* of the leader's instruction in its page */
};

struct exit_site {
	uint32_t jump;	/* rel32 place */
	int64_t target; /* page offset */
	bool plain;	/* to a block with MODE_PLAIN */
	/* A far jump (struct block_link) that looks at its place in `far` where it stands; else jump leads to where it does. */
	bool far;
	uint32_t miss; /* rel32 place: who finds another page there */
	uint32_t far_entry;
	uint16_t far_number;
};

struct translation {
	struct emit e;
	struct soft_cpu *cpu;
	struct soft_vm *svm;
	uint32_t mode;
	uint32_t base; /* code offset of e.start */
	uint32_t
		cold_base; /* .. of the cold parts, for which e.p goes there: places are counted from e.start all the same */
	uint32_t out;	 /* rel32 place: the way out for a pending request */
	uint16_t start;	 /* page offset of the first instruction */
	uint16_t offset; /* page offset of the current one */
	struct insn *insn;
	struct insn insns[BLOCK_INSNS_MAX];
	unsigned ninsns;
	soft_helper
		raise; /* what the block's one instruction does if it cannot be decoded, else NULL */
	struct share share[BLOCK_INSNS_MAX];
	unsigned first_leader;	   /* BLOCK_INSNS_MAX: none */
	unsigned index;		   /* of the current instruction */
	uint8_t live[SHARE_SLOTS]; /* 1 + the leader whose address the slot holds, 0: none */
	uint8_t in_r10;		   /* the same of R10 */
	int32_t owed;		   /* what R14 is still to be moved by: see rsp_may_wait() */
	struct probe probe[BLOCK_INSNS_MAX];
	unsigned nprobes;
	struct loop loop;
	struct insn plain[BLOCK_INSNS_MAX]; /* the loop's instructions, once more as decoded */
	uint32_t local;			    /* where the `local` entry is */
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

/* A jump or call to a thunk by way of the cache's own stubs. */
void emit_jmp_stub(struct translation *t, enum soft_stub stub);
void emit_call_stub(struct translation *t, enum soft_stub stub);

/* From here on host code belongs to the current instruction. */
void translation_mark(struct translation *t, uint16_t flags);

/* t_share.c: fills in t->share and t->first_leader for the n instructions of t->insns. */
void share_plan(struct translation *t, unsigned n);
/* C runs here: nothing that was checked holds behind it. */
void share_forget(struct translation *t);

/* Has the current instruction an access that needs no look-up, as another one's covers it? */
bool share_is_member(const struct translation *t);

/* General registers that the instruction may write, a bit each. */
uint32_t insn_written(const struct insn *insn);
/* Does the instruction do nothing to the register but add a constant? */
bool insn_adds_constant(const struct insn *insn, uint8_t gpr, uint64_t *add);

/* t_loop.c: fills in t->loop for the n instructions of t->insns. */
void loop_plan(struct translation *t, unsigned n);
/* The operand of the current instruction inside of the unchecked iteration. */
struct hmem loop_operand(const struct translation *t, const struct insn *insn);
/* What belongs to the loop behind the instructions, if the jump was written. */
void emit_loop_parts(struct translation *t);
/* Host registers that hold pointers in host code with PC_LOOP: a bit each, R10 apart. */
uint16_t loop_pointers(const struct translation *t);

/* t_mem.c: the address of the instruction's memory operand into `dst` (R10 or RCX), the effective address (no
 * segment base) with `segment` false. `tmp` is the other of the two. */
void emit_address(struct translation *t, const struct insn *insn, uint8_t dst, uint8_t tmp,
		  bool segment);
/* Checks an access and gives the host operand; uses R10 and RCX. rcx_free: RCX is free behind it. *cold is NULL if the
 * access needs no check of its own. */
struct hmem emit_access(struct translation *t, const struct insn *insn, unsigned size,
			uint32_t flags, bool rcx_free, struct cold **cold);
/* The same for [host register + disp] in the stack segment (64-bit, or flat with a 32-bit stack). */
struct hmem emit_stack_access(struct translation *t, uint8_t reg, int32_t disp, unsigned size,
			      uint32_t flags, struct cold **cold);

/* t_native.c */
void emit_native(struct translation *t, struct insn *insn);
void emit_body(struct translation *t, const struct body *body);
void emit_lea_insn(struct translation *t, const struct insn *insn);
/* It becomes one LEA. */
bool lea_is_direct(const struct insn *insn);
/* Host registers that the instruction names, a bit each; and does it need others beside them? */
uint32_t native_taken(const struct insn *insn);
bool native_has_temps(const struct insn *insn);
/* May R14 be wrong by t->owed while the current instruction runs? */
bool rsp_may_wait(const struct translation *t);
/* R14 is the guest's RSP again. */
void emit_rsp(struct translation *t);
/* A guest register's value into RCX or R10, or back. */
void emit_get_gpr(struct translation *t, uint8_t dst, uint8_t gpr);
void emit_set_gpr(struct translation *t, uint8_t gpr, uint8_t src, unsigned width);

/* translate.c: the instruction by C; `leaves`: the block ends with it. */
void emit_helper(struct translation *t, const struct insn *insn, soft_helper fn, bool quick,
		 bool leaves);

/* t_system.c: true if the instruction, which fn could do, was one of a kernel's that is done inline. */
bool emit_system(struct translation *t, const struct insn *insn, soft_helper fn);

/* t_flow.c: true if the instruction was a branch, call, return, push or pop that is done inline. */
bool emit_flow(struct translation *t, const struct insn *insn);
/* The condition of Jcc from its opcode, 16 if it is none. */
unsigned jcc_condition(const struct insn *insn);
/* Goes on at a page offset or, outside the page, by the jump cache. */
void emit_goto(struct translation *t, int64_t target);
/* R10 holds a RIP: go there. */
void emit_indirect(struct translation *t);
void emit_rip(struct translation *t, uint8_t dst, int64_t offset);
void emit_cold_parts(struct translation *t);
/* The way out for one exit site; fills the link in if the target is of this page. */
void emit_exit_part(struct translation *t, struct exit_site *site, struct block_link *link);

#endif
