/*
 * Differential test: random instructions with random operands, flags, memory contents and faults, run once by the
 * soft engine and once by the host CPU; registers, flags, vector state, memory and the fault must be equal.
 *
 *   diff [-n CASES] [-s SEED] [-c FIRST] [-t TRACE] [-m DIFFERENCES] [-v] [-l]
 *
 * The guest runs at CPL 3 in long mode: 64-bit code, and in compatibility mode flat 32-bit code and 16- and 32-bit
 * code in segments with bases and limits (modify_ldt(2) makes the oracle's). Its page tables map the same linear
 * addresses that the oracle's memory has in this process, so that addresses in registers mean the same. A failing
 * case prints as an assembler line with its state before and after on both sides.
 *
 * With -l: how often each instruction set was tried. A long run fails if one that the CPU model shows was not.
 */
#include <Zydis/Zydis.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "engine/soft/decode.h"
#include "engine/soft/native.h"
#include "engine/soft/soft.h"
#include "native.h"
#include "vmm/vm.h"

/* Guest-physical layout. */
#define G_PML4 0x1000ull
#define G_PDPT 0x2000ull
#define G_PD 0x3000ull
#define G_PT_CODE 0x4000ull
#define G_PT_DATA 0x5000ull
#define G_GDT 0x6000ull
#define G_IDT 0x7000ull
#define G_TSS 0x8000ull
#define G_PT_SYS 0x9000ull
#define G_HANDLERS 0xa000ull /* 32 bytes a vector */
#define G_STACK 0xc000ull    /* top */
#define G_PD_SYS 0xd000ull
#define SYS \
	0x40000000ull /* the linear address of what lies below 64 KiB: where this process has nothing either */
#define G_CODE 0x100000ull
#define G_DATA 0x102000ull
#define G_RODATA 0x104000ull
#define MEMORY (4ull << 20)
#define NX (1ull << 63)
#define FSW_ES 0x80 /* an unmasked exception waits */
#define END_PORT 0xf0

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
	uint8_t bytes[64];
	struct cpu_image start, native, soft;
	uint8_t data_start[DATA_SIZE], data_soft[DATA_SIZE];
	uint8_t code_start
		[0x1000]; /* a stack may lie in the code: it is not compared, but written by both */
};

/* ---- random numbers --------------------------------------------------------------------------------- */

static uint64_t rnd(struct harness *h)
{
	uint64_t z = (h->rng += 0x9e3779b97f4a7c15ull);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static unsigned below(struct harness *h, unsigned n)
{
	return (unsigned)(rnd(h) % n);
}

/* Numbers at the edges are worth more than others. */
static uint64_t rnd_value(struct harness *h)
{
	static const uint64_t edges[] = {0,
					 1,
					 0x7f,
					 0x80,
					 0xff,
					 0x7fff,
					 0x8000,
					 0xffff,
					 0x7fffffff,
					 0x80000000,
					 0xffffffff,
					 0x7fffffffffffffff,
					 0x8000000000000000,
					 ~0ull};

	uint64_t r = rnd(h);

	switch (r & 3) {
	case 0:
		return edges[(r >> 8) % (sizeof(edges) / sizeof(edges[0]))];
	case 1:
		return r >> (r >> 2 & 63);
	default:
		return r;
	}
}

/* ---- the guest ---------------------------------------------------------------------------------------- */

static void put(struct harness *h, uint64_t gpa, const void *bytes, uint64_t len)
{
	if (memory_write(&h->vm->memory, gpa, bytes, len))
		abort();
}

static void put64(struct harness *h, uint64_t gpa, uint64_t value)
{
	put(h, gpa, &value, 8);
}

static void build_tables(struct harness *h)
{
	put64(h, G_PML4, G_PDPT | 7);
	put64(h, G_PDPT, G_PD | 7);
	put64(h, G_PDPT + 8, G_PD_SYS | 7);
	put64(h, G_PD_SYS, G_PT_SYS | 7);
	for (uint64_t i = 0; i < 16; i++)
		put64(h, G_PT_SYS + i * 8, i << 12 | 3);
	put64(h, G_PD + (CODE >> 21) * 8, G_PT_CODE | 7);
	put64(h, G_PD + (DATA >> 21) * 8, G_PT_DATA | 7);
	put64(h, G_PT_CODE, G_CODE | 7);
	put64(h, G_PT_DATA, G_DATA | 7 | NX);
	put64(h, G_PT_DATA + 8, (G_DATA + 0x1000) | 7 | NX);
	put64(h, G_PT_DATA + 16, G_RODATA | 5 | NX);
	put64(h, G_GDT + 0x08, 0x00af9b000000ffffull); /* code, ring 0 */
	put64(h, G_GDT + 0x10, 0x00cf93000000ffffull);
	put64(h, G_GDT + 0x28, (0x4000890000000067ull | G_TSS << 16));
	put64(h, G_TSS + 4, SYS + G_STACK);
	put64(h, G_TSS + 0x60, 0x68ull << 48); /* no ports */
	for (uint64_t v = 0; v < 32; v++) {
		uint64_t at = SYS + G_HANDLERS + v * 32;
		const uint8_t handler[] = {0xe6, END_PORT, 0xf4}; /* out END_PORT, al; hlt */

		put64(h, G_IDT + v * 16,
		      (at & 0xffff) | 0x08 << 16 | 0xee00ull << 32 | (at >> 16) << 48);
		put(h, at - SYS, handler, sizeof(handler));
	}
}

static void base_state(struct harness *h)
{
	struct x86_state *s = h->state;

	x86_state_reset(s, 0, true);
	s->cr0 = 0x80050033;
	s->cr3 = G_PML4;
	s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE |
		 X86_CR4_FSGSBASE;
	s->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE | X86_EFER_SCE;
	s->xcr0 = cpuid_xcr0(&h->vm->cpuid);
	for (unsigned i = 0; i < X86_SEGS; i++)
		s->seg[i] = native_segment(h->start.kind, i);
	if (h->start.kind == KIND_64) {
		s->seg[X86_FS].base = h->start.fs_base;
		s->seg[X86_GS].base = h->start.gs_base;
	}
	s->tr = (struct x86_seg){.base = SYS + G_TSS, .limit = 0x67, .sel = 0x28, .attr = 0x8b};
	s->gdtr = (struct x86_table){SYS + G_GDT, 0x3f};
	s->idtr = (struct x86_table){SYS + G_IDT, 32 * 16 - 1};
	s->xsave_size = native_xsave_size();
}

static int guest_run(struct harness *h)
{
	struct vcpu *vcpu = &h->vm->vcpu[0];
	struct x86_state *s = h->state;
	const struct engine *engine = h->vm->engine;
	int ret;

	base_state(h);
	memcpy(s->gpr, h->start.gpr, sizeof(s->gpr));
	s->rip = h->start.rip;
	s->rflags = h->start.rflags | 0x202;
	memcpy(s->xsave, h->start.xsave, s->xsave_size);
	ret = engine->vcpu_set_state(vcpu, s);
	if (ret)
		return ret;
	do
		ret = engine->vcpu_run(vcpu, &vcpu->exit);
	while (!ret && vcpu->exit.code == EXIT_BOGUS);
	if (ret || vcpu->exit.code != EXIT_INOUT || vcpu->exit.inout.port != END_PORT) {
		fprintf(stderr, "unexpected exit %s, rip %#" PRIx64 "%s%s\n",
			exit_name(vcpu->exit.code), vcpu->exit.rip,
			vcpu->exit.code == EXIT_FAIL ? ": " : "",
			vcpu->exit.code == EXIT_FAIL ? vcpu->exit.fail.text : "");
		return -EIO;
	}
	/* rip of the OUT tells the vector; the frame on the stack the rest. */
	uint64_t at = vcpu->exit.rip - SYS - G_HANDLERS;

	ret = engine->vcpu_get_state(vcpu, s);
	h->soft.vector = (int)(at / 32);
	return ret;
}

static bool has_error_code(int vector)
{
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

static int run_soft(struct harness *h)
{
	struct x86_state *s = h->state;
	uint64_t frame[6], top = G_STACK - 40;
	int ret;

	put(h, G_CODE, h->code_start, sizeof(h->code_start));
	put(h, G_DATA, h->data_start, DATA_SIZE);
	ret = guest_run(h);
	if (ret)
		return ret;
	memcpy(h->soft.gpr, s->gpr, sizeof(s->gpr));
	if (memory_read(&h->vm->memory, top, frame, 40))
		return -EFAULT;
	h->soft.rip = frame[0];
	h->soft.rflags = frame[2];
	h->soft.gpr[X86_RSP] = frame[3];
	h->soft.error = h->soft.cr2 = 0;
	if (has_error_code(h->soft.vector)) {
		if (memory_read(&h->vm->memory, top - 8, &h->soft.error, 8))
			return -EFAULT;
	}
	h->soft.cr2 = s->cr2;
	if (h->start.kind == KIND_64) {
		h->soft.fs_base = s->seg[X86_FS].base;
		h->soft.gs_base = s->seg[X86_GS].base;
	}
	memcpy(h->soft.xsave, s->xsave, native_xsave_size());
	if (memory_read(&h->vm->memory, G_DATA, h->data_soft, DATA_SIZE))
		return -EFAULT;
	if (h->soft.vector == 3 && h->soft.rip == h->start.rip + h->len + 1) {
		h->soft.vector = -1;
		h->soft.rip--;
	}
	return 0;
}

/* ---- cases -------------------------------------------------------------------------------------------- */

/* Instructions of which random bytes would give too few: where they are encoded. */
enum opening_form { LEGACY, VEX, EVEX };
#define ANY 0xff

static const struct opening {
	uint8_t form, map;   /* enum opening_form, 0 1 2 3 as in struct insn */
	uint8_t prefix;	     /* mandatory: 0x66, 0xf2, 0xf3; 0: none */
	uint8_t opcode, low; /* bits of the opcode that may be anything */
	uint8_t reg;	     /* of ModRM, or ANY */
} openings[] = {
	/* BCD and what else 64-bit mode took away */
	{LEGACY, 0, 0, 0x27, 0x18, ANY},
	{LEGACY, 0, 0, 0xd4, 0x03, ANY},
	{LEGACY, 0, 0, 0x60, 0x03, ANY},
	{LEGACY, 0, 0, 0xce, 0, ANY},
	/* stack frames, flags */
	{LEGACY, 0, 0, 0xc8, 0x01, ANY},
	{LEGACY, 0, 0, 0x9c, 0x03, ANY},
	{LEGACY, 0, 0, 0xfa, 0x07, ANY},
	{LEGACY, 0, 0, 0x50, 0x0f, ANY},
	/* strings */
	{LEGACY, 0, 0, 0xa4, 0x03, ANY},
	{LEGACY, 0, 0, 0xa4, 0x0b, ANY},
	{LEGACY, 0, 0, 0xaa, 0x05, ANY},
	{LEGACY, 0, 0, 0xaa, 0x05, ANY},
	{LEGACY, 0, 0, 0x6c, 0x03, ANY},
	/* control flow */
	{LEGACY, 0, 0, 0x70, 0x0f, ANY},
	{LEGACY, 1, 0, 0x80, 0x0f, ANY},
	{LEGACY, 0, 0, 0xe0, 0x03, ANY},
	{LEGACY, 0, 0, 0xe8, 0x03, ANY},
	{LEGACY, 0, 0, 0xc2, 0x01, ANY},
	{LEGACY, 0, 0, 0xff, 0, 2},
	{LEGACY, 0, 0, 0xff, 0, 4},
	/* division, multiplication, bits, exchange */
	{LEGACY, 0, 0, 0xf6, 0x01, ANY},
	{LEGACY, 1, 0, 0xa3, 0x18, ANY},
	{LEGACY, 1, 0, 0xba, 0, ANY},
	{LEGACY, 1, 0, 0xb0, 0x01, ANY},
	{LEGACY, 1, 0, 0xc0, 0x01, ANY},
	{LEGACY, 1, 0, 0xa4, 0x09, ANY},
	/* what is nobody's or nothing */
	{LEGACY, 1, 0, 0x08, 0x01, ANY},
	{LEGACY, 1, 0, 0x00, 0x01, ANY},
	{LEGACY, 1, 0, 0x18, 0x07, ANY},
	{LEGACY, 0, 0xf3, 0x90, 0, ANY},
	{LEGACY, 1, 0, 0xc7, 0, 1},
	{LEGACY, 1, 0xf3, 0xb8, 0x05, ANY},
	{LEGACY, 1, 0xf3, 0xae, 0, ANY},
	{LEGACY, 1, 0, 0xae, 0, ANY},
	{LEGACY, 2, 0, 0xf0, 0x01, ANY},
	{LEGACY, 2, 0xf2, 0xf0, 0x01, ANY},
	{LEGACY, 2, 0x66, 0xf6, 0, ANY},
	{LEGACY, 2, 0xf3, 0xf6, 0, ANY},
	/* SHA, AES, PCLMUL, GFNI, MASKMOV */
	{LEGACY, 2, 0, 0xc8, 0x07, ANY},
	{LEGACY, 3, 0, 0xcc, 0, ANY},
	{LEGACY, 2, 0x66, 0xd8, 0x07, ANY},
	{LEGACY, 3, 0x66, 0xdf, 0, ANY},
	{LEGACY, 3, 0x66, 0x44, 0, ANY},
	{LEGACY, 2, 0x66, 0xcf, 0, ANY},
	{LEGACY, 3, 0x66, 0xce, 0x01, ANY},
	{LEGACY, 1, 0, 0xf7, 0, ANY},
	{LEGACY, 1, 0x66, 0xf7, 0, ANY},
	/* BMI, VAES and others, gathers, masked moves, VNNI */
	{VEX, 2, 0, 0xf0, 0x07, ANY},
	{VEX, 3, 0, 0xf0, 0, ANY},
	{VEX, 2, 0, 0xd8, 0x07, ANY},
	{VEX, 3, 0, 0xdf, 0, ANY},
	{VEX, 3, 0, 0x44, 0, ANY},
	{VEX, 2, 0, 0xcf, 0, ANY},
	{VEX, 3, 0, 0xce, 0x01, ANY},
	{VEX, 2, 0, 0x90, 0x03, ANY},
	{VEX, 2, 0, 0x2c, 0x03, ANY},
	{VEX, 2, 0, 0x8c, 0x02, ANY},
	{VEX, 2, 0, 0x50, 0x03, ANY},
	{VEX, 2, 0, 0x13, 0, ANY},
	{VEX, 1, 0, 0x40, 0x1f, ANY},
	{VEX, 1, 0, 0x90, 0x0b, ANY},
	/* AVX-512: gathers and scatters, CD, VBMI, IFMA, BITALG, VNNI, BF16 */
	{EVEX, 2, 0, 0x90, 0x03, ANY},
	{EVEX, 2, 0, 0xa0, 0x03, ANY},
	{EVEX, 2, 0, 0x50, 0x07, ANY},
	{EVEX, 2, 0, 0x70, 0x0f, ANY},
	{EVEX, 2, 0, 0x83, 0x0c, ANY},
	{EVEX, 2, 0, 0x8d, 0x02, ANY},
	{EVEX, 2, 0, 0xb4, 0x01, ANY},
	{EVEX, 2, 0, 0xc4, 0, ANY},
	{EVEX, 2, 0, 0x44, 0, ANY},
	{EVEX, 2, 0, 0x54, 0x01, ANY},
	{EVEX, 1, 0, 0x6e, 0x10, ANY},
	{EVEX, 1, 0, 0xc4, 0x01, ANY},
	{EVEX, 3, 0, 0x14, 0x03, ANY},
	{EVEX, 3, 0, 0x20, 0x02, ANY},
	{EVEX, 2, 0, 0x62, 0x01, ANY},
	{EVEX, 2, 0, 0xcf, 0, ANY},
	{EVEX, 2, 0, 0xd8, 0x07, ANY},
	{EVEX, 3, 0, 0x44, 0, ANY},
	{EVEX, 3, 0, 0xce, 0x01, ANY},
	{EVEX, 3, 0, 0x70, 0x03, ANY},
};

/* Prefixes that any instruction may have, REX aside. */
static unsigned random_prefixes(struct harness *h, uint8_t *b)
{
	static const uint8_t segments[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
	unsigned n = 0;

	if (below(h, 6) == 0)
		b[n++] = 0x66;
	if (below(h, 6) == 0)
		b[n++] = 0x67;
	if (below(h, 6) == 0)
		b[n++] = segments[below(h, sizeof(segments))];
	if (below(h, 8) == 0)
		b[n++] = below(h, 2) ? 0xf2 : 0xf3;
	if (below(h, 20) == 0)
		b[n++] = 0xf0;
	return n;
}

static unsigned random_rex(struct harness *h, uint8_t *b)
{
	if (h->start.kind != KIND_64 || below(h, 2))
		return 0;
	b[0] = (uint8_t)(0x40 | below(h, 16));
	return 1;
}

/* 67 and a segment prefix may stand before VEX and EVEX. */
static unsigned vector_prefixes(struct harness *h, uint8_t *b)
{
	unsigned n = 0;

	if (below(h, 8) == 0)
		b[n++] = 0x67;
	if (below(h, 8) == 0)
		b[n++] = below(h, 2) ? 0x64 : 0x65;
	return n;
}

static void random_vex(struct harness *h, uint8_t *b, unsigned map)
{
	b[0] = 0xc4;
	b[1] = (uint8_t)((b[1] & 0xe0) | map);
	if (below(h, 2)) /* vvvv names no register */
		b[2] |= 0x78;
	if (h->start.kind != KIND_64)
		b[1] |= 0xc0; /* or it is LES or LDS */
}

static void random_evex(struct harness *h, uint8_t *b, unsigned map)
{
	b[0] = 0x62;
	b[1] = (uint8_t)((b[1] & 0xf0) | map);
	b[2] |= 4;
	if (below(h, 2))
		b[3] &= 0xf8;
	if (below(h, 2)) {
		b[2] |= 0x78;
		b[3] |= 0x08;
	}
	if (h->start.kind != KIND_64)
		b[1] |= 0xc0; /* or it is BOUND */
}

static unsigned opcode_bytes(uint8_t *b, unsigned map)
{
	unsigned n = 0;

	if (map > 0)
		b[n++] = 0x0f;
	if (map > 1)
		b[n++] = map == 2 ? 0x38 : 0x3a;
	return n;
}

static void random_opening(struct harness *h, uint8_t *b)
{
	const struct opening *o = &openings[below(h, sizeof(openings) / sizeof(openings[0]))];
	unsigned n;

	if (o->form == LEGACY) {
		n = random_prefixes(h, b);
		if (o->prefix)
			b[n++] = o->prefix;
		n += random_rex(h, b + n);
		n += opcode_bytes(b + n, o->map);
	} else {
		n = vector_prefixes(h, b);
		if (o->form == VEX)
			random_vex(h, b + n, o->map);
		else
			random_evex(h, b + n, o->map);
		n += o->form == VEX ? 3 : 4;
	}
	b[n++] = (uint8_t)(o->opcode | (rnd(h) & o->low));
	if (o->reg != ANY)
		b[n] = (uint8_t)((b[n] & 0xc7) | o->reg << 3);
}

static void random_bytes(struct harness *h, uint8_t *b)
{
	unsigned n = 0, kind = below(h, 14);

	for (unsigned i = 0; i < 24; i++)
		b[i] = (uint8_t)rnd(h);
	if (kind < 5) { /* legacy */
		n = random_prefixes(h, b);
		n += random_rex(h, b + n);
		if (below(h, 2))
			opcode_bytes(b + n, 1 + (below(h, 4) == 0) * (1 + below(h, 2)));
	} else if (kind < 7) { /* VEX */
		n = vector_prefixes(h, b);
		if (below(h, 2))
			random_vex(h, b + n, 1 + below(h, 3));
		else
			b[n] = 0xc5;
		if (h->start.kind != KIND_64)
			b[n + 1] |= 0xc0;
	} else if (kind < 9) { /* EVEX */
		n = vector_prefixes(h, b);
		random_evex(h, b + n, 1 + below(h, 3));
	} else if (kind < 10) { /* x87 */
		n = vector_prefixes(h, b);
		b[n] = (uint8_t)(0xd8 | below(h, 8));
	} else {
		random_opening(h, b);
	}
}

static bool bit_string(const struct insn *i)
{
	return i->has_mem && !i->nimm &&
	       (i->op == ZYDIS_MNEMONIC_BT || i->op == ZYDIS_MNEMONIC_BTS ||
		i->op == ZYDIS_MNEMONIC_BTR || i->op == ZYDIS_MNEMONIC_BTC);
}

/* MOVS CMPS STOS LODS SCAS: some share their mnemonics with SSE2. */
static bool is_string(const struct insn *i)
{
	return i->encoding == ENC_LEGACY && i->map == 0 && i->opcode >= 0xa4 && i->opcode <= 0xaf &&
	       (i->opcode & 0xfe) != 0xa8;
}

/* Near jumps, calls and returns. */
static bool is_branch(const struct insn *i)
{
	if (i->branch)
		return true;
	if (i->encoding != ENC_LEGACY || i->map != 0)
		return false;
	return i->opcode == 0xc2 || i->opcode == 0xc3 ||
	       (i->opcode == 0xff && ((i->modrm >> 3 & 7) == 2 || (i->modrm >> 3 & 7) == 4));
}

/* What no program may do: #GP, before anything else is looked at. */
static bool is_privileged(const struct insn *i)
{
	switch (i->op) {
	case ZYDIS_MNEMONIC_CLI:
	case ZYDIS_MNEMONIC_STI:
	case ZYDIS_MNEMONIC_HLT:
	case ZYDIS_MNEMONIC_IN:
	case ZYDIS_MNEMONIC_OUT:
	case ZYDIS_MNEMONIC_INSB:
	case ZYDIS_MNEMONIC_INSW:
	case ZYDIS_MNEMONIC_INSD:
	case ZYDIS_MNEMONIC_OUTSB:
	case ZYDIS_MNEMONIC_OUTSW:
	case ZYDIS_MNEMONIC_OUTSD:
	case ZYDIS_MNEMONIC_LGDT:
	case ZYDIS_MNEMONIC_LIDT:
	case ZYDIS_MNEMONIC_LLDT:
	case ZYDIS_MNEMONIC_LTR:
	case ZYDIS_MNEMONIC_LMSW:
	case ZYDIS_MNEMONIC_CLTS:
	case ZYDIS_MNEMONIC_INVLPG:
	case ZYDIS_MNEMONIC_INVD:
	case ZYDIS_MNEMONIC_WBINVD:
	case ZYDIS_MNEMONIC_RDMSR:
	case ZYDIS_MNEMONIC_WRMSR:
	case ZYDIS_MNEMONIC_SWAPGS:
		return true;
	default:
		return i->op == ZYDIS_MNEMONIC_MOV && i->map == 1 &&
		       (i->opcode == 0x20 || i->opcode == 0x22);
	}
}

/* Helpers and what translate.c knows itself: they are not in native.c's table, but programs execute them. */
static bool is_for_programs(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP:
		return insn->segreg == REG_NONE;
	case ZYDIS_MNEMONIC_LEAVE:
	case ZYDIS_MNEMONIC_XLAT:
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAD:
	case ZYDIS_MNEMONIC_AAM:
	case ZYDIS_MNEMONIC_AAS:
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS:
	case ZYDIS_MNEMONIC_SALC:
	case ZYDIS_MNEMONIC_BOUND:
	case ZYDIS_MNEMONIC_INTO:
	case ZYDIS_MNEMONIC_PUSHA:
	case ZYDIS_MNEMONIC_PUSHAD:
	case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD:
	case ZYDIS_MNEMONIC_FWAIT:
	case ZYDIS_MNEMONIC_ENTER:
	case ZYDIS_MNEMONIC_ARPL:
	case ZYDIS_MNEMONIC_CLD:
	case ZYDIS_MNEMONIC_STD:
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
	case ZYDIS_MNEMONIC_UD2:
	case ZYDIS_MNEMONIC_CLFLUSH:
	case ZYDIS_MNEMONIC_CLFLUSHOPT:
	case ZYDIS_MNEMONIC_CLWB:
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
		return true;
	default:
		return is_string(insn) || is_privileged(insn);
	}
}

static bool wanted(const struct harness *h, const struct insn *insn)
{
	const struct soft_vm *svm = h->vm->engine_data;
	uint32_t mode = h->mode | MODE_USER | MODE_OSFXSR | MODE_OSXSAVE | MODE_AVX | MODE_AVX512 |
			MODE_OSXMMEX;
	bool fs_gs = insn->mem_seg == X86_FS || insn->mem_seg == X86_GS;

	if (insn->op == ZYDIS_MNEMONIC_LEA || insn->op == ZYDIS_MNEMONIC_NOP ||
	    insn->op == ZYDIS_MNEMONIC_PAUSE || insn->isa == ZYDIS_ISA_SET_PREFETCH_NOP)
		return true;
	/* Its offset would say where in this process it goes. */
	if (bit_string(insn) && (insn->reg == insn->mem_base || insn->reg == insn->mem_index))
		return false;
	if (fs_gs && (insn->has_mem || insn->implicit_mem) && !native_has(KIND_16))
		return false;
	/* VEX.W outside of 64-bit mode: AMD's CPUs take all 64 bits of a register, and Linux leaves something in RSP's. */
	if (insn->vex_w && insn->mode != 64 && insn->rm_file == RF_GPR && insn->rm == X86_RSP)
		return false;
	switch (insn->op) {
	case ZYDIS_MNEMONIC_XBEGIN:
		return false;
	case ZYDIS_MNEMONIC_MOVSXD: /* 16-bit: AMD's CPUs read four bytes, as soft does, Intel's two */
		return insn->opsize != 2 || !insn->has_mem;
	case ZYDIS_MNEMONIC_BSWAP: /* 16-bit: undefined */
		return insn->opsize != 2;
	case ZYDIS_MNEMONIC_RDFSBASE:
	case ZYDIS_MNEMONIC_RDGSBASE:
	case ZYDIS_MNEMONIC_WRFSBASE:
	case ZYDIS_MNEMONIC_WRGSBASE:
		return native_has(KIND_16);
	default:
		if (is_for_programs(insn))
			return true;
		if (is_branch(insn)) /* 66 in 64-bit mode: vendors differ */
			return h->start.kind != KIND_64 || !insn->opsize_prefix;
		if (insn->mem_vsib) /* of too few registers here to be aimed if it is its own base */
			return svm->isa[insn->isa] && insn->mem_base != REG_NONE;
		return native_classify(svm->isa, insn, mode) == RUN_NATIVE;
	}
}

/* An address in or near the data pages. */
static uint64_t data_address(struct harness *h, unsigned size)
{
	switch (below(h, 10)) {
	case 0: /* across the inner page edge */
		return DATA + 0x1000 - below(h, size ? size + 1 : 1);
	case 1: /* over the end of what can be written */
		return RODATA - below(h, size + 2);
	case 2: /* not mapped, or not canonical: this process may have something anywhere else */
		if (h->start.kind == KIND_64 && h->insn.addrsize == 8)
			return below(h, 2) ? DATA - 64 : 1ull << 63 | rnd(h) >> 2;
		return below(h, 2) ? DATA - 64 : RODATA_END + below(h, 1u << 28);
	case 3: /* what can only be read, and over its end */
		return below(h, 2) ? RODATA + below(h, 0x800) : RODATA_END - below(h, size + 2);
	default: {
		uint64_t at = DATA + below(h, DATA_SIZE - 128);

		return below(h, 4) ? at & ~63ull : at;
	}
	}
}

static uint64_t segment_base(const struct harness *h, unsigned seg)
{
	if (h->start.kind == KIND_64 && seg == X86_FS)
		return h->start.fs_base;
	if (h->start.kind == KIND_64 && seg == X86_GS)
		return h->start.gs_base;
	return native_segment(h->start.kind, seg).base;
}

static uint64_t reach_of(unsigned addrsize)
{
	return addrsize == 2 ? UINT16_MAX : addrsize == 4 ? UINT32_MAX : UINT64_MAX;
}

/* A register's value for an address of this size; what lies above it in the register does not matter. */
static uint64_t address_value(struct harness *h, uint64_t value, unsigned addrsize)
{
	uint64_t reach = reach_of(addrsize);

	return (value & reach) | (rnd(h) & ~reach);
}

/* .. that leads to a linear address, or, seldom, to anywhere in a segment with a limit. */
static uint64_t offset_to(struct harness *h, unsigned seg, uint64_t linear, unsigned addrsize)
{
	uint64_t value = linear - segment_base(h, seg);

	if (h->start.kind >= KIND_16 && below(h, 12) == 0)
		value = rnd(h) & 0x1ffff;
	return address_value(h, value, addrsize);
}

/* An address that only the encoding tells: RIP-relative, a bare displacement, moffs. */
static void aim_displacement(struct harness *h, uint64_t want)
{
	struct insn *i = &h->insn;
	unsigned size = i->has_modrm && i->addrsize == 8 ? 4 : i->addrsize, at = i->len - size;
	uint64_t disp;

	if (want - (DATA - 64) > RODATA_END - DATA + 64)
		want = RODATA_END; /* within the reach of 32 bits */
	want -= segment_base(h, i->mem_seg);
	disp = i->rip_relative ? want - (h->start.rip + i->len) : want;

	for (unsigned n = 0; n < i->nimm; n++)
		at -= i->imm_size[n];
	memcpy(h->bytes + at, &disp, size);
	insn_decode(h->bytes, 15, h->mode, i);
}

/* Where the image has the 32 bits of a vector register from byte `at` on; NULL: nowhere. */
static uint8_t *vector_place(uint8_t *xsave, unsigned reg, unsigned at)
{
	uint32_t component = reg >= 16 ? 7 : at < 32 ? 2 : 6, offset = 0, size;

	if (reg < 16 && at < 16)
		return xsave + 160 + reg * 16 + at;
	if (!native_component(component, &offset, &size))
		return NULL;
	at += component == 7 ? (reg - 16) * 64 : component == 6 ? reg * 32 - 32 : reg * 16 - 16;
	return xsave + offset + at;
}

/* Sets 32 bits of a vector register. */
static void vector_put(struct harness *h, unsigned reg, unsigned i, uint32_t value)
{
	uint8_t *place = vector_place(h->start.xsave, reg, i * 4);

	if (place)
		memcpy(place, &value, 4);
}

/* The indices of a gather or scatter: around its base, and seldom where nothing is. */
static void aim_vector(struct harness *h)
{
	const struct insn *i = &h->insn;
	bool wide = i->opcode & 1; /* of 64 bits */

	for (unsigned n = 0; n < 16; n += wide ? 2 : 1) {
		int32_t index = ((int32_t)below(h, 0x1000) - 0x800) / i->mem_scale;

		if (below(h, 40) == 0)
			index = 0x4000 / i->mem_scale;
		vector_put(h, i->mem_index, n, (uint32_t)index);
		if (wide)
			vector_put(h, i->mem_index, n + 1, index < 0 ? ~0u : 0);
	}
	h->start.gpr[i->mem_base] = address_value(
		h, DATA + 0x1000 - segment_base(h, i->mem_seg) - (uint64_t)i->mem_disp,
		i->addrsize);
}

/* Where string instructions and XLAT go, and how often. */
static void aim_implicit(struct harness *h)
{
	const struct insn *i = &h->insn;
	uint64_t *gpr = h->start.gpr;
	unsigned count = below(h, 40), size = i->rep || i->repne ? count * 8 : 8;

	gpr[X86_RSI] = offset_to(h, i->mem_seg, data_address(h, size), i->addrsize);
	gpr[X86_RDI] = offset_to(h, is_string(i) ? X86_ES : i->mem_seg, data_address(h, size),
				 i->addrsize);
	if (is_string(i) && below(h, 8) == 0) /* they overlap */
		gpr[X86_RDI] = address_value(h,
					     gpr[X86_RSI] + segment_base(h, i->mem_seg) -
						     segment_base(h, X86_ES) + below(h, 32) - 16ull,
					     i->addrsize);
	if (i->op == ZYDIS_MNEMONIC_XLAT)
		gpr[X86_RBX] = offset_to(h, i->mem_seg, data_address(h, 1), i->addrsize);
	if (i->rep || i->repne || i->branch)
		gpr[X86_RCX] = address_value(h, i->branch ? below(h, 4) : count, i->addrsize);
}

/* Locked accesses over two cache lines are rare here: Linux may make the program wait for 100 ms for each, on
 * purpose. */
static uint64_t unsplit(struct harness *h, uint64_t want)
{
	const struct insn *i = &h->insn;
	bool split = (want & 63) + i->mem_size > 64;

	if ((i->lock || i->op == ZYDIS_MNEMONIC_XCHG) && split && below(h, 400))
		return want & ~63ull;
	return want;
}

/* Makes the memory operand's address what we want by its base (or index) register. */
static void aim(struct harness *h)
{
	const struct insn *i = &h->insn;
	uint64_t want = unsplit(h, data_address(h, i->mem_size));
	uint64_t reach = reach_of(i->addrsize), offset;

	aim_implicit(h);
	if (bit_string(i))
		h->start.gpr[i->reg] = below(h, 4096) - 2048ull;
	if (i->mem_vsib) {
		aim_vector(h);
		return;
	}
	if (!i->has_mem && !i->is_agen)
		return;
	if (i->rip_relative || (i->mem_base == REG_NONE && i->mem_index == REG_NONE)) {
		aim_displacement(h, want);
		return;
	}
	offset = offset_to(h, i->mem_seg, want, i->addrsize) - (uint64_t)i->mem_disp;
	if (i->mem_base == REG_NONE) {
		h->start.gpr[i->mem_index] =
			address_value(h, (offset & reach) / i->mem_scale, i->addrsize);
		return;
	}
	if (i->mem_index == i->mem_base) {
		h->start.gpr[i->mem_base] =
			address_value(h, (offset & reach) / (i->mem_scale + 1u), i->addrsize);
		return;
	}
	if (i->mem_index != REG_NONE)
		offset -= h->start.gpr[i->mem_index] * i->mem_scale;
	h->start.gpr[i->mem_base] = address_value(h, offset, i->addrsize);
}

/* The code page is full of INT3: wherever a branch lands in it but in itself, the case ends there. */
static uint64_t branch_target(struct harness *h)
{
	uint64_t base = segment_base(h, X86_CS), next = h->start.rip + h->insn.len;

	/* As far as 32 bits reach, and a page less: nothing is there. */
	if (h->start.kind == KIND_64 && h->insn.imm_size[0] == 4 && below(h, 20) == 0)
		return below(h, 2) ? next + INT32_MAX - below(h, 0x1800)
				   : next + (uint64_t)INT32_MIN + below(h, 0x1800);
	switch (below(h, 10)) {
	case 0: /* cannot be executed */
		return DATA + below(h, 0x1000) - base;
	case 1: /* is not there, or outside the segment */
		return (below(h, 2) ? CODE - 1 - below(h, 64) : CODE + 0x1000 + below(h, 0x20000)) -
		       base;
	default: {
		uint64_t target = CODE + below(h, 0x1000) - base;

		return target - h->start.rip < h->insn.len ? CODE - base : target;
	}
	}
}

static void put_data(struct harness *h, uint64_t linear, uint64_t value)
{
	if (linear >= DATA && linear <= DATA + DATA_SIZE - 8)
		memcpy(h->data_start + (linear - DATA), &value, 8);
}

static uint64_t stack_top(const struct harness *h)
{
	uint64_t sp = h->start.gpr[X86_RSP];

	if (h->start.kind >= KIND_16)
		sp &= UINT16_MAX;
	return sp + segment_base(h, X86_SS);
}

static uint64_t operand_address(const struct harness *h)
{
	const struct insn *i = &h->insn;
	uint64_t sum = (uint64_t)i->mem_disp;

	if (i->rip_relative)
		sum += h->start.rip + i->len;
	if (i->mem_base != REG_NONE)
		sum += h->start.gpr[i->mem_base];
	if (i->mem_index != REG_NONE)
		sum += h->start.gpr[i->mem_index] * i->mem_scale;
	return (sum & reach_of(i->addrsize)) + segment_base(h, i->mem_seg);
}

static void aim_branch(struct harness *h)
{
	struct insn *i = &h->insn;
	uint64_t target = branch_target(h), relative = target - (h->start.rip + i->len);

	if (!is_branch(i))
		return;
	if (i->branch) {
		if (i->imm_size[0] > 1)
			memcpy(h->bytes + i->len - i->imm_size[0], &relative, i->imm_size[0]);
		else
			h->bytes[i->len - 1] &= 0x7f; /* forward */
		insn_decode(h->bytes, 15, h->mode, i);
	} else if (i->has_mem) {
		put_data(h, operand_address(h), target);
	} else if (i->opcode == 0xff) {
		h->start.gpr[i->rm] = target;
	} else {
		put_data(h, stack_top(h), target);
	}
}

static void random_x87(struct harness *h)
{
	uint8_t *x = h->start.xsave;
	uint16_t fcw = 0x37f, fsw = (uint16_t)(below(h, 8) << 11);

	memset(x, 0, 24);
	if (below(h, 4) == 0)
		fcw = (uint16_t)(rnd(h) & 0xf7f) | 0x40;
	if (below(h, 8) == 0)
		fsw |= (uint16_t)(rnd(h) & 0x473f);
	if (fsw & ~fcw & 0x3f)
		fsw |= 0x8080; /* an exception waits */
	memcpy(x, &fcw, 2);
	memcpy(x + 2, &fsw, 2);
	x[4] = (uint8_t)rnd(h); /* which registers are in use */
	for (unsigned i = 0; i < 8; i++)
		memset(x + 32 + i * 16 + 10, 0, 6);
}

static void random_vectors(struct harness *h)
{
	uint8_t *x = h->start.xsave;
	uint64_t bv = cpuid_xcr0(&h->vm->cpuid) & 0xe7;
	uint32_t mxcsr = 0x1f80, size = native_xsave_size();

	for (uint32_t i = 0; i + 8 <= size; i += 8) {
		uint64_t v = rnd_value(h);

		memcpy(x + i, &v, 8);
	}
	if (below(h, 4) == 0)
		mxcsr = (uint32_t)rnd(h) & 0xffff;
	random_x87(h);
	memset(x + 24, 0, 8);
	memcpy(x + 24, &mxcsr, 4);
	memset(x + 416, 0, 96);
	memset(x + 512, 0, 64);
	memcpy(x + 512, &bv, 8);
}

/* Half of it is 64-bit code. */
static void random_mode(struct harness *h)
{
	static const uint32_t modes[KINDS] = {
		[KIND_64] = MODE_CODE64,
		[KIND_32] = MODE_CODE32 | MODE_STACK32 | MODE_FLAT,
		[KIND_16] = 0,
		[KIND_32_BASED] = MODE_CODE32,
	};
	unsigned kind = below(h, 6);

	h->start.kind = kind < KINDS && native_has(kind) ? kind : KIND_64;
	h->mode = MODE_LONG | MODE_PROT | modes[h->start.kind];
}

/* FS and GS of 64-bit code: anywhere, if the offset has the reach. */
static uint64_t random_base(struct harness *h)
{
	const struct insn *i = &h->insn;
	bool near = i->addrsize != 8 || (i->mem_base == REG_NONE && i->mem_index == REG_NONE);

	if (near)
		return DATA - below(h, 0x10000);
	return below(h, 4) ? (uint64_t)((int64_t)rnd(h) >> 16) : below(h, 0x10000);
}

static uint64_t random_stack(struct harness *h)
{
	unsigned size = h->start.kind == KIND_64 ? 8 : h->start.kind == KIND_32 ? 4 : 2;
	uint64_t at = DATA + 0x800 + 8 * below(h, 256);

	if (below(h, 8) == 0)
		at = below(h, 2) ? data_address(h, 32) : at + below(h, 8);
	return address_value(h, at - segment_base(h, X86_SS), size);
}

static void random_registers(struct harness *h)
{
	for (unsigned i = 0; i < 16; i++)
		h->start.gpr[i] = rnd_value(h);
	h->start.fs_base = random_base(h);
	h->start.gs_base = random_base(h);
	if (below(h, 2))
		h->start.gpr[X86_RBX] = data_address(h, 8);
	h->start.rflags = rnd(h) & (ARITH_FLAGS | (below(h, 4) ? 0 : X86_FL_DF));
	if (below(h, 8) == 0)
		h->start.rflags |= X86_FL_AC;
	if (below(h, 32) == 0)
		h->start.rflags |= X86_FL_TF;
	h->start.gpr[X86_RSP] = random_stack(h);
	h->start.gpr[X86_RBP] = random_stack(h);
}

static void random_data(struct harness *h)
{
	for (unsigned i = 0; i < DATA_SIZE; i += 8) {
		uint64_t v = rnd_value(h);

		memcpy(h->data_start + i, &v, 8);
	}
}

/* POPF: no single step, and a task that is nobody's. */
static void tame_flags(struct harness *h)
{
	const uint64_t bad = X86_FL_TF | X86_FL_NT;
	uint64_t at = stack_top(h), value;

	if (h->insn.op != ZYDIS_MNEMONIC_POPF && h->insn.op != ZYDIS_MNEMONIC_POPFD &&
	    h->insn.op != ZYDIS_MNEMONIC_POPFQ)
		return;
	if (at < DATA || at > DATA + DATA_SIZE - 8)
		h->start.gpr[X86_RSP] = DATA + 0x800 - segment_base(h, X86_SS);
	at = stack_top(h) - DATA;
	memcpy(&value, h->data_start + at, 8);
	value &= ~bad;
	memcpy(h->data_start + at, &value, 8);
}

/* Instructions with one operand near the first one's: [base + disp + some]. /r or /n: ModRM's reg field. */
static const struct follower {
	uint8_t n, b[4];
	uint8_t reg; /* or ANY */
} followers[] = {
	{1, {0x8b}, ANY},	      /* mov r, m */
	{1, {0x89}, ANY},	      /* mov m, r */
	{1, {0x88}, ANY},	      /* mov m, r8 */
	{1, {0x03}, ANY},	      /* add r, m */
	{1, {0x31}, ANY},	      /* xor m, r */
	{2, {0x66, 0x89}, ANY},	      /* mov m, r16 */
	{1, {0x01}, ANY},	      /* add m, r */
	{1, {0xff}, 0},		      /* inc m */
	{2, {0x0f, 0x10}, ANY},	      /* movups x, m */
	{2, {0x0f, 0x11}, ANY},	      /* movups m, x */
	{2, {0x0f, 0x28}, ANY},	      /* movaps x, m */
	{3, {0x66, 0x0f, 0xd6}, ANY}, /* movq m, x */
	{3, {0xf3, 0x0f, 0x58}, ANY}, /* addss x, m */
	{2, {0x0f, 0xb6}, ANY},	      /* movzx r, m8 */
	{1, {0xdd}, 0},		      /* fld m64 */
	{1, {0x3b}, ANY},	      /* cmp r, m */
};

/* A register that a follower may change: not the base, nor the stack's. */
static unsigned other_register(struct harness *h, unsigned base)
{
	unsigned reg;

	do
		reg = below(h, 8);
	while (reg == base || reg == X86_RSP);
	return reg;
}

static unsigned put_follower(struct harness *h, uint8_t *b)
{
	const struct follower *f = &followers[below(h, sizeof(followers) / sizeof(followers[0]))];
	unsigned base = h->insn.mem_base, reg = f->reg == ANY ? other_register(h, base) : f->reg;
	int32_t disp = (int32_t)h->insn.mem_disp + (int32_t)below(h, 160) - 80;
	unsigned n = f->n, opcode = 0;

	memcpy(b, f->b, n);
	while (opcode < n && (b[opcode] == 0x66 || b[opcode] == 0xf0 || b[opcode] == 0xf3))
		opcode++;
	if (h->start.kind == KIND_64) {
		memmove(b + opcode + 1, b + opcode, n - opcode);
		b[opcode] = (uint8_t)(0x40 | (below(h, 2) << 3) | base >> 3);
		n++;
	}
	b[n++] = (uint8_t)(0x80 | reg << 3 | (base & 7));
	if ((base & 7) == X86_RSP)
		b[n++] = 0x24;
	memcpy(b + n, &disp, 4);
	return n + 4;
}

/* Does the instruction leave its base alone, and is what the base is good for known? */
static bool may_be_followed(const struct harness *h)
{
	const struct insn *i = &h->insn;
	unsigned base = i->mem_base;

	return (h->start.kind == KIND_64 || h->start.kind == KIND_32) && i->has_mem &&
	       !i->mem_vsib && base != REG_NONE && i->mem_index == REG_NONE &&
	       (h->start.kind == KIND_64 ? i->addrsize == 8 : i->addrsize == 4) &&
	       i->mem_seg != X86_FS && i->mem_seg != X86_GS && base != X86_RSP &&
	       !((i->written_gprs | i->implicit_gprs) >> base & 1) &&
	       !(base < 4 && i->written_high >> base & 1) && !is_branch(i) && !is_string(i) &&
	       i->op != ZYDIS_MNEMONIC_POPA && i->op != ZYDIS_MNEMONIC_POPAD &&
	       i->mem_disp >= INT32_MIN + 100 && i->mem_disp <= INT32_MAX - 100;
}

/* One in three goes on with others on the same base, whose accesses the translator looks up together. */
static void follow(struct harness *h)
{
	h->len = h->insn.len;
	if (!may_be_followed(h) || below(h, 3))
		return;
	for (unsigned n = 1 + below(h, 4); n; n--)
		h->len += put_follower(h, h->bytes + h->len);
}

/* The instruction at the end of the page and only partly there, or somewhere in it with INT3 behind. */
static void put_code(struct harness *h, uint64_t at)
{
	uint64_t n = h->len;

	if (n > CODE + 0x1000 - at)
		n = CODE + 0x1000 - at;
	memset(h->code, 0xcc, 0x1000);
	memcpy(h->code + (at - CODE), h->bytes, n);
}

static void random_case(struct harness *h)
{
	uint64_t at = CODE + 0x100 + below(h, 0xe00);

	random_mode(h);
	do
		random_bytes(h, h->bytes);
	while (insn_decode(h->bytes, 15, h->mode, &h->insn) || !wanted(h, &h->insn));
	if (h->insn.len > 1 && below(h, 100) == 0)
		at = CODE + 0x1000 - 1 - below(h, h->insn.len - 1u);
	h->start.rip = at - segment_base(h, X86_CS);
	h->start.vector = -1;
	random_registers(h);
	random_vectors(h);
	random_data(h);
	aim(h);
	aim_branch(h);
	tame_flags(h);
	follow(h);
	for (unsigned i = 0; h->start.kind != KIND_64 && i < 8; i++)
		h->start.gpr[i] &= UINT32_MAX;
	put_code(h, at);
}

/* ---- comparison ------------------------------------------------------------------------------------------ */

/* The x87 registers in the order of their numbers, not of the stack. */
static void forget_top(uint8_t *x)
{
	unsigned top = x[3] >> 3 & 7;
	uint8_t turned[128];

	for (unsigned i = 0; i < 8; i++)
		memcpy(turned + ((top + i) & 7) * 16, x + 32 + i * 16, 16);
	memcpy(x + 32, turned, sizeof(turned));
	x[3] &= (uint8_t)~0x38;
}

/* FOP, FIP and FDP are the engine's to substitute; padding is nobody's. Components in their initial state may
 * have any bytes: take what the header says. */
static void normalize(uint8_t *x, bool top_is_open)
{
	uint32_t offset, size;
	uint64_t bv;

	memcpy(&bv, x + 512, 8);
	memset(x + 6, 0, 18);
	memset(x + 28, 0, 4);
	memset(x + 416, 0, 96);
	for (unsigned i = 0; i < 8; i++)
		memset(x + 32 + i * 16 + 10, 0, 6);
	if (!(bv & 1)) {
		memset(x, 0, 24);
		x[0] = 0x7f;
		x[1] = 3;
		memset(x + 32, 0, 128);
	}
	if (!(bv & 2))
		memset(x + 160, 0, 256);
	for (unsigned i = 2; i < 8; i++)
		if (!(bv >> i & 1) && native_component(i, &offset, &size))
			memset(x + offset, 0, size);
	memset(x + 512, 0, 64);
	if (top_is_open)
		forget_top(x);
}

static bool is_x87(const struct insn *insn)
{
	return insn->map == 0 && insn->encoding == ENC_LEGACY && (insn->opcode & 0xf8) == 0xd8;
}

/* What an operand in memory can raise. */
static bool memory_fault(int vector)
{
	return vector == X86_SS_FAULT || vector == X86_GP || vector == X86_PF || vector == X86_AC;
}

/* Intel's CPUs tell an x87 store's own exception before they look at its address, AMD's and soft the other way. */
static bool x87_store_did_not_look(const struct harness *h)
{
	const struct insn *insn = &h->insn;
	const struct cpu_image *a = &h->native, *b = &h->soft;

	return is_x87(insn) && insn->mem_write &&
	       (a->vector < 0 || a->vector == X86_DB || a->rip != h->start.rip) &&
	       (a->xsave[2] & FSW_ES) && memory_fault(b->vector);
}

/* Exceptions of one instruction that are in the same class have no order (SDM vol. 3, 6.9): an x87 exception that
 * waits and a fault of the operand. */
static bool other_of_class(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;

	return (a->vector == X86_MF && memory_fault(b->vector)) ||
	       (b->vector == X86_MF && memory_fault(a->vector));
}

/* MASKMOVQ and its kin may look at what the mask leaves out, or at all of it first (SDM vol. 2). */
static bool masked_store_looked(const struct harness *h)
{
	const struct insn *insn = &h->insn;

	return (insn->op == ZYDIS_MNEMONIC_MASKMOVQ || insn->op == ZYDIS_MNEMONIC_MASKMOVDQU ||
		insn->op == ZYDIS_MNEMONIC_VMASKMOVDQU) &&
	       memory_fault(h->native.vector) &&
	       (h->soft.vector < 0 || h->soft.vector == X86_DB || memory_fault(h->soft.vector));
}

/* Does an access of `size` bytes by this register fault, as far as paging and segments are concerned? */
static bool string_faults(const struct harness *h, unsigned seg, unsigned reg, unsigned size)
{
	uint64_t offset = h->native.gpr[reg] & reach_of(h->insn.addrsize);
	struct x86_seg s = native_segment(h->start.kind, seg);
	uint64_t linear = offset + segment_base(h, seg);

	if (h->start.kind != KIND_64) {
		linear = (uint32_t)linear;
		if (offset + size - 1 > s.limit)
			return true;
	}
	if ((h->start.rflags & X86_FL_AC) && (linear & (size - 1)))
		return true;
	return linear - DATA > RODATA_END - DATA - size;
}

/* Neither manual says which operand of CMPS is read first: if neither is there, either fault is right. */
static bool cmps_other_operand(const struct harness *h)
{
	const struct insn *insn = &h->insn;
	unsigned size = insn->opcode == 0xa6 ? 1 : insn->opsize;

	return is_string(insn) && (insn->opcode & 0xfe) == 0xa6 && memory_fault(h->native.vector) &&
	       memory_fault(h->soft.vector) && string_faults(h, insn->mem_seg, X86_RSI, size) &&
	       string_faults(h, X86_ES, X86_RDI, size);
}

static bool vmaskmov(const struct insn *insn)
{
	return insn->op == ZYDIS_MNEMONIC_VMASKMOVPD || insn->op == ZYDIS_MNEMONIC_VMASKMOVPS ||
	       insn->op == ZYDIS_MNEMONIC_VPMASKMOVD || insn->op == ZYDIS_MNEMONIC_VPMASKMOVQ;
}

/* A branch that leaves its segment or the canonical addresses: soft tells of it at the target, after the branch. */
static bool branch_beyond(const struct harness *h)
{
	return is_branch(&h->insn) && memory_fault(h->native.vector) &&
	       (h->soft.vector == X86_GP || h->soft.vector == X86_DB);
}

/* An operand that is misaligned as well as not there: in one class again. */
static bool alignment_or_other(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;

	return (h->start.rflags & X86_FL_AC) && memory_fault(a->vector) &&
	       memory_fault(b->vector) && (a->vector == X86_AC || b->vector == X86_AC);
}

/* The x87's 80 bits are two accesses, and which half is looked at first is not said. */
static bool half_of_ten(const struct harness *h)
{
	return h->insn.mem_size == 10 && memory_fault(h->native.vector) &&
	       memory_fault(h->soft.vector);
}

/* Both are wrong with an aligned operand relative to SS: its address and its limit. */
static bool limit_or_alignment(const struct harness *h)
{
	return h->insn.mem_seg == X86_SS && h->insn.mem_size >= 16 &&
	       h->native.vector + h->soft.vector == X86_GP + X86_SS_FAULT;
}

/* soft looks at a segment's limit, and at the alignment if that is checked, before it looks at the mask. */
static bool masked_checked(const struct harness *h)
{
	const struct insn *insn = &h->insn;

	return (h->start.kind != KIND_64 || (h->start.rflags & X86_FL_AC)) &&
	       (insn->suppresses || vmaskmov(insn)) && memory_fault(h->soft.vector) &&
	       h->soft.vector != X86_PF;
}

/* Nor whether BOUND reads the upper bound when the lower one is broken already. */
static bool bound_other_half(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;

	return h->insn.op == ZYDIS_MNEMONIC_BOUND &&
	       ((a->vector == X86_BR && memory_fault(b->vector)) ||
		(b->vector == X86_BR && memory_fault(a->vector)));
}

/* Which byte of the page a masked access is said to have touched differs between CPUs. */
static bool same_cr2(const struct harness *h)
{
	const struct insn *insn = &h->insn;
	bool masked = insn->encoding != ENC_LEGACY && (insn->mask_reg || vmaskmov(insn));
	uint64_t differ = h->native.cr2 ^ h->soft.cr2;

	return (masked ? differ & ~0xfffull : differ) == 0;
}

static bool same_fault(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;
	uint64_t error = a->error;

	if (cmps_other_operand(h) || bound_other_half(h) || other_of_class(h) ||
	    limit_or_alignment(h) || alignment_or_other(h) || half_of_ten(h))
		return true;
	/* Linux calls its own half of the address space present to whoever tries to find out. */
	if (a->vector == X86_PF && (int64_t)a->cr2 < 0)
		error &= ~1ull;
	/* Where the guest has its handlers, which its user mode cannot reach, this process has nothing. */
	if (a->vector == X86_PF && a->cr2 - SYS < 0x10000)
		error |= b->error & 1;
		/* A branch may lead into what the sanitizer has mapped, out of which nothing can be executed. */
#ifdef __SANITIZE_ADDRESS__
	if (a->vector == X86_PF && (error & b->error & 0x10))
		error = (error & ~1ull) | (b->error & 1);
#endif
	return a->vector == b->vector && (a->vector != X86_PF || same_cr2(h)) &&
	       (a->vector < 0 || !has_error_code(a->vector) || error == b->error);
}

/* Flags that the manuals leave open, and that C is not asked to guess. */
static uint64_t bcd_undefined(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS:
		return X86_FL_OF | X86_FL_SF | X86_FL_ZF | X86_FL_PF;
	case ZYDIS_MNEMONIC_AAD:
	case ZYDIS_MNEMONIC_AAM:
		return X86_FL_OF | X86_FL_AF | X86_FL_CF;
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS:
		return X86_FL_OF;
	default:
		return 0;
	}
}

/* REPE and REPNE CMPS and SCAS that fault have the flags of the last comparison on AMD's CPUs and in soft, those
 * from before the instruction on Intel's (SDM vol. 2, REP). */
static uint64_t flags_to_compare(const struct harness *h)
{
	const struct insn *insn = &h->insn;

	if (h->native.vector >= 0 && (insn->rep || insn->repne))
		return X86_FL_DF;
	return (ARITH_FLAGS | X86_FL_DF) & ~bcd_undefined(insn);
}

/* Intel's CPUs cut the counter and the pointers of a REP with 32-bit addresses in 64-bit mode even if its first
 * element faults or there is none. */
static void forget_uppers(struct harness *h)
{
	static const unsigned regs[] = {X86_RCX, X86_RSI, X86_RDI};

	if (!is_string(&h->insn) || h->insn.addrsize != 4 ||
	    (h->native.vector < 0 && (uint32_t)h->start.gpr[X86_RCX]))
		return;
	for (unsigned i = 0; i < 3; i++) {
		h->native.gpr[regs[i]] &= UINT32_MAX;
		h->soft.gpr[regs[i]] &= UINT32_MAX;
	}
}

/* What is in the upper halves of registers after 32-bit code is not defined (SDM vol. 1, 3.4.1.1); POPA that faults
 * has loaded some on Intel's CPUs. */
static bool same_registers(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;

	if (a->vector >= 0 &&
	    (h->insn.op == ZYDIS_MNEMONIC_POPA || h->insn.op == ZYDIS_MNEMONIC_POPAD))
		return true;
	if (h->start.kind == KIND_64)
		return !memcmp(a->gpr, b->gpr, sizeof(a->gpr)) &&
		       (!native_has(KIND_16) ||
			(a->fs_base == b->fs_base && a->gs_base == b->gs_base));
	for (unsigned i = 0; i < 8; i++)
		if ((uint32_t)a->gpr[i] != (uint32_t)b->gpr[i])
			return false;
	return true;
}

/* A store of 10 bytes over the edge of a page or segment, of which the second part faults: Intel's CPUs have written
 * the first. */
static void forget_half_store(struct harness *h)
{
	uint64_t at = operand_address(h) - DATA;

	if (!memory_fault(h->native.vector) || h->insn.mem_size != 10 || !h->insn.mem_write)
		return;
	for (uint64_t i = at; i < at + 8 && i < DATA_SIZE; i++)
		h->data[i] = h->data_soft[i];
}

/* Conversions between half and single precision: Intel's CPUs convert before they look where to store, and do not
 * check a source's alignment. */
static bool half_precision(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;

	if (h->insn.op == ZYDIS_MNEMONIC_VCVTPS2PH && h->insn.mem_write)
		return (a->vector == X86_XM || memory_fault(a->vector)) && memory_fault(b->vector);
	return h->insn.op == ZYDIS_MNEMONIC_VCVTPH2PS && b->vector == X86_AC;
}

/* Bytes of a vector register from `from` on, in the image, are the other's. */
static void forget_vector(struct harness *h, unsigned reg, unsigned from)
{
	for (unsigned at = from; at < 64; at += 4) {
		const uint8_t *place = vector_place(h->native.xsave, reg, at);

		if (!place)
			return;
		memcpy(vector_place(h->soft.xsave, reg, at), place, 4);
	}
}

/* AMD's CPUs may leave what a gather that faults has not done yet as it was in the mask: its elements are their signs. */
static void mask_to_signs(uint8_t *xsave, unsigned reg, unsigned bytes, unsigned element)
{
	for (unsigned at = 0; at < bytes; at += 4) {
		const uint8_t *top = vector_place(xsave, reg, (at | (element - 1)) & ~3u);

		memset(vector_place(xsave, reg, at), top[3] & 0x80 ? 0xff : 0, 4);
	}
}

static unsigned vex_bytes(const struct insn *insn)
{
	unsigned i = 0;

	while (i + 3 < insn->len && insn->bytes[i] != 0xc4)
		i++;
	return insn->bytes[i + 2] & 4 ? 32 : 16;
}

/* A gather that faults: whether what is behind the last element, of the register and of the mask, is zero already is
 * not said. */
static void forget_tails(struct harness *h)
{
	const struct soft_vm *svm = h->vm->engine_data;
	const struct insn *insn = &h->insn;
	unsigned data = insn->mem_size == 8 ? 8 : 4, index = insn->opcode & 1 ? 8 : 4;
	unsigned used = data == 4 && index == 8 ? 2 : 1; /* the share of the register, from below */
	unsigned bytes = insn->encoding == ENC_EVEX ? insn->vector_bytes : vex_bytes(insn);

	if (!insn->mem_vsib || h->native.vector < 0)
		return;
	forget_vector(h, insn->reg, bytes / used);
	if (insn->encoding != ENC_VEX)
		return;
	forget_vector(h, insn->vvvv, bytes / used);
	if (svm->intel)
		return;
	mask_to_signs(h->native.xsave, insn->vvvv, bytes / used, data);
	mask_to_signs(h->soft.xsave, insn->vvvv, bytes / used, data);
}

static bool same(struct harness *h)
{
	struct cpu_image *a = &h->native, *b = &h->soft;
	/* Intel's CPUs set TOP to 0 before an MMX store faults, AMD's and soft do not. */
	bool top_is_open = a->vector >= 0 && h->insn.map == 1 && h->insn.encoding == ENC_LEGACY;

	if (masked_checked(h) || branch_beyond(h) || half_precision(h) ||
	    x87_store_did_not_look(h) || masked_store_looked(h))
		return true;
	normalize(a->xsave, top_is_open);
	normalize(b->xsave, top_is_open);
	forget_half_store(h);
	forget_uppers(h);
	forget_tails(h);
	return same_fault(h) && a->rip == b->rip && same_registers(h) &&
	       ((a->rflags ^ b->rflags) & flags_to_compare(h)) == 0 &&
	       !memcmp(a->xsave, b->xsave, native_xsave_size()) &&
	       !memcmp(h->data, h->data_soft, DATA_SIZE);
}

static void print_memory(const struct harness *h)
{
	unsigned lines = 0;

	for (unsigned i = 0; i < DATA_SIZE && lines < 8; i += 8) {
		if (!memcmp(h->data + i, h->data_soft + i, 8))
			continue;
		printf("  memory %#llx: before %016" PRIx64 " native %016" PRIx64
		       " soft %016" PRIx64 "\n",
		       DATA + i, *(const uint64_t *)(const void *)(h->data_start + i),
		       *(const uint64_t *)(const void *)(h->data + i),
		       *(const uint64_t *)(const void *)(h->data_soft + i));
		lines++;
	}
}

static void print_difference(struct harness *h)
{
	static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
					      "rsi", "rdi", "r8",  "r9",  "r10", "r11",
					      "r12", "r13", "r14", "r15"};
	static const char *const kinds[KINDS] = {"", "32-bit: ", "16-bit: ", "32-bit based: "};
	const struct cpu_image *a = &h->native, *b = &h->soft;
	char text[128];

	insn_print(&h->insn, h->start.rip, text, sizeof(text));
	printf("case %" PRIu64 " seed %" PRIu64 ": %s  [%s", h->cases, h->seed, text,
	       kinds[h->start.kind]);
	for (unsigned i = 0; i < h->len; i++)
		printf("%s%02x", i ? " " : "", h->bytes[i]);
	printf("]\n  native: vector %d error %#" PRIx64 " cr2 %#" PRIx64 " rip %#" PRIx64
	       " flags %#" PRIx64 "\n  soft:   vector %d error %#" PRIx64 " cr2 %#" PRIx64
	       " rip %#" PRIx64 " flags %#" PRIx64 "\n",
	       a->vector, a->error, a->cr2, a->rip, a->rflags, b->vector, b->error, b->cr2, b->rip,
	       b->rflags);
	printf("  before: flags %#" PRIx64 " mxcsr %#x fcw %#x\n", h->start.rflags,
	       *(const uint32_t *)(const void *)(h->start.xsave + 24),
	       *(const uint16_t *)(const void *)h->start.xsave);
	for (unsigned i = 0; i < 16; i++)
		if (a->gpr[i] != b->gpr[i] || h->insn.mem_base == i || h->insn.mem_index == i)
			printf("  %s: before %#" PRIx64 " native %#" PRIx64 " soft %#" PRIx64 "\n",
			       names[i], h->start.gpr[i], a->gpr[i], b->gpr[i]);
	for (unsigned i = 0; i < native_xsave_size(); i += 8)
		if (memcmp(a->xsave + i, b->xsave + i, 8))
			printf("  xsave+%u: native %016" PRIx64 " soft %016" PRIx64 "\n", i,
			       *(const uint64_t *)(const void *)(a->xsave + i),
			       *(const uint64_t *)(const void *)(b->xsave + i));
	print_memory(h);
	fflush(stdout);
}

static void run_case(struct harness *h)
{
	random_case(h);
	if (h->verbose) {
		char text[128];

		insn_print(&h->insn, h->start.rip, text, sizeof(text));
		printf("%" PRIu64 ": %s\n", h->cases, text);
		fflush(stdout);
	}
	h->native = h->soft = h->start;
	memcpy(h->data, h->data_start, DATA_SIZE);
	memcpy(h->code_start, h->code, sizeof(h->code_start));
	native_run(&h->native, h->len);
	/* Bus errors and the like are the host kernel's business. */
	if (run_soft(h)) {
		h->failures++;
		print_difference(h);
		return;
	}
	h->tried[h->insn.isa]++;
	if (h->native.vector >= 0)
		h->faults++;
	if (!same(h)) {
		h->failures++;
		print_difference(h);
	}
}

/* ---- the program ------------------------------------------------------------------------------------------- */

static int make_vm(struct harness *h)
{
	struct vm_options options = {.name = "diff",
				     .config = h->config,
				     .log = &h->log,
				     .engine = &engine_soft,
				     .memory_size = MEMORY,
				     .topology = {1, 1, 1, 1}};
	struct error err;

	log_init(&h->log, STDERR_FILENO, LOG_INFO);
	if (h->trace && config_set(options.config, "soft.trace", h->trace, &err)) {
		fprintf(stderr, "diff: %s\n", err.text);
		return -1;
	}
	if (vm_create(&h->vm, &options, &err)) {
		fprintf(stderr, "diff: %s\n", err.text);
		return -1;
	}
	return 0;
}

static int harness_init(struct harness *h)
{
	h->config = config_create();
	h->code = mmap((void *)CODE, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	h->data = mmap((void *)DATA, RODATA_END - DATA, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	h->state = aligned_alloc(64, sizeof(*h->state));
	if (h->code == MAP_FAILED || h->data == MAP_FAILED || !h->state || make_vm(h))
		return -1;
	for (uint64_t i = 0; i < 0x1000; i++) {
		uint8_t byte = (uint8_t)(i * 29 + (i >> 8));

		h->data[DATA_SIZE + i] = byte;
		put(h, G_RODATA + i, &byte, 1);
	}
	if (mprotect(h->data + DATA_SIZE, 0x1000, PROT_READ))
		return -1;
	build_tables(h);
	return 0;
}

/* I486 is RSM alone: there is no SMM. */
static void look_at_sets(struct harness *h, bool must)
{
	const struct soft_vm *svm = h->vm->engine_data;

	for (unsigned i = 0; i < ISA_SETS; i++) {
		if (h->list && h->tried[i])
			printf("%10" PRIu64 " %s\n", h->tried[i], ZydisISASetGetString(i));
		if (!svm->isa[i] || h->tried[i] || (!must && !h->list) || i == ZYDIS_ISA_SET_I486)
			continue;
		printf("nothing of %s was tried\n", ZydisISASetGetString(i));
		h->failures += must;
	}
}

/* All cases, on the vCPU's thread: going to and fro between two would take longer than a case. */
static int run_cases(struct vcpu *vcpu, void *arg)
{
	struct harness *h = arg;

	(void)vcpu;
	if (native_init())
		return -1;
	for (; h->cases < h->end && h->failures < h->most; h->cases++) {
		h->rng = h->seed * 0x100000001b3ull + h->cases;
		run_case(h);
	}
	return 0;
}

int main(int argc, char **argv)
{
	static struct harness h;
	uint64_t n = 200000;
	int opt;

	h.seed = 1;
	h.most = 20;
	while ((opt = getopt(argc, argv, "n:s:c:t:m:vl")) != -1) {
		if (opt == 'n')
			n = strtoull(optarg, NULL, 0);
		else if (opt == 's')
			h.seed = strtoull(optarg, NULL, 0);
		else if (opt == 'c')
			h.cases = strtoull(optarg, NULL, 0);
		else if (opt == 't')
			h.trace = optarg;
		else if (opt == 'm')
			h.most = strtoull(optarg, NULL, 0);
		else if (opt == 'v')
			h.verbose = true;
		else if (opt == 'l')
			h.list = true;
		else
			return 2;
	}
	h.end = h.cases + n;
	if (harness_init(&h) || vcpu_call(&h.vm->vcpu[0], run_cases, &h)) {
		fprintf(stderr, "diff: cannot start: %s\n", strerror(errno));
		return 2;
	}
	look_at_sets(&h, n >= 1000000);
	printf("%" PRIu64 " cases, %" PRIu64 " faulted, %" PRIu64 " differ\n", h.cases, h.faults,
	       h.failures);
	vm_destroy(h.vm);
	config_destroy(h.config);
	free(h.state);
	return h.failures ? 1 : 0;
}
