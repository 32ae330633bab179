/* The cases of the differential test: random instructions, and operands that make something of them. */
#include "diff.h"

#include <Zydis/Zydis.h>
#include <string.h>

#include "engine/soft/fpu.h"

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

/* ---- instructions ---------------------------------------------------------------------------------------- */

/* Instructions of which random bytes would give too few: where they are encoded. */
enum opening_form { LEGACY, VEX, EVEX };
#define ANY 0xff

static const struct opening {
	uint8_t form, map;   /* enum opening_form, 0 1 2 3 as in struct insn */
	uint8_t prefix;	     /* mandatory: 0x66, 0xf2, 0xf3; 0: none */
	uint8_t opcode, low; /* bits of the opcode that may be anything */
	uint8_t reg;	     /* of ModRM, or ANY */
} openings[] = {
	/* what most of a program is made of */
	{LEGACY, 0, 0, 0x00, 0x3b, ANY},
	{LEGACY, 0, 0, 0x88, 0x03, ANY},
	{LEGACY, 0, 0, 0x80, 0x03, ANY},
	{LEGACY, 0, 0, 0xc0, 0x01, ANY},
	{LEGACY, 0, 0, 0xd0, 0x03, ANY},
	{LEGACY, 0, 0, 0x84, 0x01, ANY},
	{LEGACY, 0, 0, 0xc6, 0x01, 0},
	{LEGACY, 0, 0, 0xb8, 0x07, ANY},
	{LEGACY, 0, 0, 0x8d, 0, ANY},
	{LEGACY, 0, 0, 0x63, 0, ANY},
	{LEGACY, 0, 0, 0x69, 0x02, ANY},
	{LEGACY, 1, 0, 0x40, 0x0f, ANY},
	{LEGACY, 1, 0, 0xb6, 0x09, ANY},
	{LEGACY, 1, 0, 0xaf, 0, ANY},
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

bool is_string(const struct insn *i)
{
	return i->encoding == ENC_LEGACY && i->map == 0 && i->opcode >= 0xa4 && i->opcode <= 0xaf &&
	       (i->opcode & 0xfe) != 0xa8;
}

bool is_branch(const struct insn *i)
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

uint64_t segment_base(const struct harness *h, unsigned seg)
{
	if (h->start.kind == KIND_64 && seg == X86_FS)
		return h->start.fs_base;
	if (h->start.kind == KIND_64 && seg == X86_GS)
		return h->start.gs_base;
	return native_segment(h->start.kind, seg).base;
}

uint64_t reach_of(unsigned addrsize)
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

uint8_t *vector_place(uint8_t *xsave, unsigned reg, unsigned at)
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
	uint64_t base = segment_base(h, X86_CS), next = h->start.rip + h->insn.len, target;

	/* As far as 32 bits reach, and a page less: nothing is there. */
	if (h->start.kind == KIND_64 && h->insn.imm_size[0] == 4 && below(h, 20) == 0)
		return below(h, 2) ? next + INT32_MAX - below(h, 0x1800)
				   : next + (uint64_t)INT32_MIN + below(h, 0x1800);
	switch (below(h, 10)) {
	case 0: /* cannot be executed */
		target = DATA + below(h, 0x1000) - base;
		break;
	case 1: /* is not there, or outside the segment */
		target = below(h, 2) ? CODE - 1 - below(h, 64) : CODE + 0x1000 + below(h, 0x20000);
		target -= base;
		break;
	default:
		target = CODE + below(h, 0x1000) - base;
	}
	/* What 16 bits hold of any of these may be the branch itself. */
	return ((target - h->start.rip) & reach_of(h->insn.opsize)) < h->insn.len ? CODE - base
										  : target;
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

uint64_t operand_address(const struct harness *h)
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

/* Where no target can be put (read-only data), the branch may find itself, for ever. Then it is another instruction. */
static void break_circle(struct harness *h, uint64_t linear)
{
	uint64_t found = 0;

	if (linear < DATA || linear > RODATA_END - 8)
		return;
	for (unsigned i = 0; i < 8; i++) {
		uint64_t at = linear - DATA + i;

		found |= (uint64_t)(at < DATA_SIZE ? h->data_start : h->data)[at] << 8 * i;
	}
	if ((found ^ h->start.rip) & reach_of(h->insn.opsize))
		return;
	h->bytes[0] = 0x90;
	insn_decode(h->bytes, 15, h->mode, &h->insn);
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
		break_circle(h, operand_address(h));
	} else if (i->opcode == 0xff) {
		h->start.gpr[i->rm] = target;
	} else {
		put_data(h, stack_top(h), target);
		break_circle(h, stack_top(h));
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
	const struct soft_vm *svm = h->vm->engine_data;
	uint8_t *x = h->start.xsave;
	uint64_t bv = cpuid_xcr0(&h->vm->cpuid) & 0xe7;
	uint32_t mxcsr = 0x1f80, size = native_xsave_size();

	for (uint32_t i = 0; i + 8 <= size; i += 8) {
		uint64_t v = rnd_value(h);

		memcpy(x + i, &v, 8);
	}
	if (below(h, 4) == 0)
		mxcsr = (uint32_t)rnd(h) & 0xffff;
	if (below(h, 8) == 0)
		mxcsr |= MXCSR_MM & fpu_mxcsr_mask(svm->cpu[0]);
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

#define UPPER_HALF (-1ull << 47)

/* FS and GS of 64-bit code: anywhere, if the offset has the reach, but for the end of the upper half: AMD's Zen 5
 * raises #GP for an offset that is not canonical, where the manuals ask this of the linear address alone. */
static uint64_t random_base(struct harness *h)
{
	const struct insn *i = &h->insn;
	bool near = i->addrsize != 8 || (i->mem_base == REG_NONE && i->mem_index == REG_NONE);
	uint64_t base;

	if (near)
		return DATA - below(h, 0x10000);
	if (!below(h, 4))
		return below(h, 0x10000);
	base = (uint64_t)((int64_t)rnd(h) >> 16);
	return base - UPPER_HALF < 1ull << 32 ? base + (1ull << 32) : base;
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
	if (!may_be_followed(h) || below(h, 3))
		return;
	for (unsigned n = 1 + below(h, 4); n; n--)
		h->len += put_follower(h, h->bytes + h->len);
}

/* LEA or ADD: a register moves. */
static unsigned put_move(struct harness *h, uint8_t *b, unsigned reg, int32_t by)
{
	bool lea = below(h, 2);
	unsigned n = 0;

	b[n++] = (uint8_t)(0x48 | reg >> 3 | (lea ? reg >> 3 << 2 : 0));
	b[n++] = lea ? 0x8d : 0x81;
	b[n++] = (uint8_t)(lea ? 0x80 | (reg & 7) << 3 | (reg & 7) : 0xc0 | (reg & 7));
	if (lea && (reg & 7) == X86_RSP)
		b[n++] = 0x24;
	memcpy(b + n, &by, 4);
	return n + 4;
}

/* A register that nothing of the loop changes and that is no part of an address; REG_NONE if there is none. */
static unsigned count_register(const struct harness *h)
{
	static const uint8_t candidates[] = {X86_R9, X86_R12, X86_R8, X86_R11};
	const struct insn *i = &h->insn;

	for (unsigned k = 0; k < sizeof(candidates); k++) {
		unsigned reg = candidates[k];

		if (reg != i->mem_base && reg != i->mem_index &&
		    !((i->written_gprs | i->implicit_gprs) >> reg & 1))
			return reg;
	}
	return REG_NONE;
}

/* Does the instruction leave alone what its operand's address is made of, and can it be done again? With MXCSR.MM some read
 * half of an operand that the engine reads whole: what is known of that is where the operand lies the first time. */
static bool may_go_round(const struct harness *h)
{
	const struct insn *i = &h->insn;
	unsigned changed = i->written_gprs | i->implicit_gprs | i->written_high;

	if (*(const uint32_t *)(const void *)(h->start.xsave + 24) & MXCSR_MM)
		return false;
	return h->start.kind == KIND_64 && i->has_mem && !i->mem_vsib && i->addrsize == 8 &&
	       i->mem_base != REG_NONE && i->mem_base != X86_RSP && !is_branch(i) &&
	       !is_string(i) && !(changed >> i->mem_base & 1) &&
	       (i->mem_index == REG_NONE || !(changed >> i->mem_index & 1));
}

static void put_moves(struct harness *h)
{
	static const int16_t steps[] = {1, 2, 4, 8, 16, 32, 64, 128, 24, 100, 0};
	const struct insn *i = &h->insn;
	int32_t by = steps[below(h, sizeof(steps) / sizeof(steps[0]))];

	if (below(h, 4) == 0)
		by = -by;
	if (i->mem_index == REG_NONE || below(h, 2))
		h->len += put_move(h, h->bytes + h->len, i->mem_base, by);
	if (i->mem_index != REG_NONE && i->mem_index != i->mem_base && below(h, 3))
		h->len += put_move(h, h->bytes + h->len, i->mem_index, by / i->mem_scale);
}

/* A loop: what may follow, with addresses that move, and a count of iterations. */
static void go_round(struct harness *h)
{
	bool followed = may_be_followed(h);
	unsigned count = count_register(h);
	int32_t back;

	if (count == REG_NONE)
		return;
	h->start.gpr[count] = 1 + below(h, 40);
	for (unsigned n = below(h, 3); followed && n; n--)
		h->len += put_follower(h, h->bytes + h->len);
	put_moves(h);
	if (followed && below(h, 3) == 0)
		h->len += put_follower(h, h->bytes + h->len);
	h->len += put_move(h, h->bytes + h->len, count, -1);
	if (h->bytes[h->len - 6] == 0x8d || h->bytes[h->len - 7] == 0x8d) { /* LEA: no flags */
		h->bytes[h->len++] = (uint8_t)(0x48 | count >> 3 | count >> 3 << 2);
		h->bytes[h->len++] = 0x85; /* test */
		h->bytes[h->len++] = (uint8_t)(0xc0 | (count & 7) << 3 | (count & 7));
	}
	h->bytes[h->len++] = 0x0f;
	h->bytes[h->len++] = 0x85; /* jne */
	back = -(int32_t)(h->len + 4);
	memcpy(h->bytes + h->len, &back, 4);
	h->len += 4;
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

/* May the instruction end where nothing is mapped? CPUs without AVX-512 tell an EVEX prefix to be #UD before they have read all. */
static bool may_lack_its_end(const struct harness *h)
{
	const struct soft_vm *svm = h->vm->engine_data;

	return h->insn.len > 1 &&
	       (h->insn.encoding != ENC_EVEX || svm->isa[ZYDIS_ISA_SET_AVX512F_512]);
}

void random_case(struct harness *h)
{
	uint64_t at = CODE + 0x100 + below(h, 0xe00);

	random_mode(h);
	do
		random_bytes(h, h->bytes);
	while (insn_decode(h->bytes, 15, h->mode, &h->insn) || !wanted(h, &h->insn));
	if (may_lack_its_end(h) && below(h, 100) == 0)
		at = CODE + 0x1000 - 1 - below(h, h->insn.len - 1u);
	h->start.rip = at - segment_base(h, X86_CS);
	h->start.vector = -1;
	random_registers(h);
	random_vectors(h);
	random_data(h);
	aim(h);
	aim_branch(h);
	tame_flags(h);
	h->len = h->insn.len;
	if (may_go_round(h) && below(h, 4) == 0)
		go_round(h);
	else
		follow(h);
	for (unsigned i = 0; h->start.kind != KIND_64 && i < 8; i++)
		h->start.gpr[i] &= UINT32_MAX;
	put_code(h, at);
}
