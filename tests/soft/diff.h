/*
 * What the parts of the differential test share: diff_cases.c makes a case, diff.c runs it on both sides, diff_compare.c says
 * whether they did the same, and knows where CPUs may differ.
 */
#ifndef TESTS_SOFT_DIFF_H
#define TESTS_SOFT_DIFF_H

#include "engine/soft/decode.h"
#include "engine/soft/native.h"
#include "engine/soft/soft.h"
#include "native.h"
#include "vmm/vm.h"

/* The linear address of what lies below 64 KiB in the guest: where this process has nothing either. */
#define SYS 0x40000000ull
#define FSW_ES 0x80 /* an unmasked exception waits */

struct harness {
	struct vm *vm;
	struct config *config;
	struct log log;
	struct x86_state *state;
	uint64_t seed, cases, end, failures, most, skipped, faults;
	uint64_t tried[ISA_SETS];
	bool verbose, list;
	const char *trace;
	uint64_t rng;
	uint8_t *code, *data; /* the oracle's */
	/* the case */
	uint32_t mode; /* MODE_* to decode with */
	struct insn insn;
	unsigned len; /* of the instruction and what follows it on the same base */
	uint8_t bytes[96];
	struct cpu_image start, native, soft;
	uint8_t data_start[DATA_SIZE], data_soft[DATA_SIZE];
	uint8_t code_start
		[0x1000]; /* a stack may lie in the code: it is not compared, but written by both */
};

/* ---- diff_cases.c ---------------------------------------------------------------------------------- */

void random_case(struct harness *h);

/* MOVS CMPS STOS LODS SCAS: some share their mnemonics with SSE2. */
bool is_string(const struct insn *i);
/* Near jumps, calls and returns. */
bool is_branch(const struct insn *i);
uint64_t segment_base(const struct harness *h, unsigned seg);
/* The greatest address of a size. */
uint64_t reach_of(unsigned addrsize);
/* The linear address of the operand that ModRM names, at the case's start. */
uint64_t operand_address(const struct harness *h);
/* Where the image has the 32 bits of a vector register from byte `at` on; NULL: nowhere. */
uint8_t *vector_place(uint8_t *xsave, unsigned reg, unsigned at);

/* ---- diff_compare.c -------------------------------------------------------------------------------- */

/* Takes away from both sides what may differ, and says whether the rest is equal. */
bool same(struct harness *h);

static inline bool has_error_code(int vector)
{
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

#endif
