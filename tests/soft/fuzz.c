/*
 * Fuzzer of the soft engine: random code in random modes, with random page tables, descriptor tables and task
 * state. What the guest does is its own affair; skep must neither crash, hang, nor let the vCPU get into a state that
 * no CPU can be in. Translated code reaches memory by a tag of the inline TLB that matches and no other way, so after
 * each case every tag is looked at: what could match leads to a whole page of this guest's RAM or ROM.
 *
 *   fuzz [-n CASES] [-t SECONDS] [-s SEED] [-c FIRST] [-v]
 *
 * A case is made of its seed and number alone: `-c N -n 1 -v` runs one again.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "engine/soft/decode.h"
#include "engine/soft/soft.h"
#include "engine/soft/tlb.h"

#define MEMORY (4ull << 20)
#define EXITS_MAX 40
#define KICKS_MAX 2
#define KICK_NS 1000000l

/* Guest-physical layout, identity-mapped; mutations may point anywhere. */
#define G_TABLES 0x10000u /* page tables, five pages and what follows */
#define G_GDT 0x20000u
#define G_LDT 0x21000u
#define G_IDT 0x22000u
#define G_TSS 0x24000u
#define G_STACK 0x30000u
#define G_CODE 0x40000u
#define G_DATA 0x50000u

struct fuzz {
	struct vm *vm;
	struct config *config;
	struct log log;
	struct x86_state *state;
	uint64_t seed, cases, rng;
	uint64_t exits[EXIT_CODES];
	bool verbose;
	const char *failure;
	_Atomic bool running, stop;
};

static uint64_t rnd(struct fuzz *f)
{
	uint64_t z = (f->rng += 0x9e3779b97f4a7c15ull);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static unsigned below(struct fuzz *f, unsigned n)
{
	return (unsigned)(rnd(f) % n);
}

static bool chance(struct fuzz *f, unsigned one_in)
{
	return below(f, one_in) == 0;
}

static void put(struct fuzz *f, uint64_t gpa, const void *bytes, uint64_t len)
{
	if (memory_write(&f->vm->memory, gpa, bytes, len))
		abort();
}

static void put64(struct fuzz *f, uint64_t gpa, uint64_t value)
{
	put(f, gpa, &value, 8);
}

static void fill_random(struct fuzz *f, uint64_t gpa, uint64_t len)
{
	for (uint64_t i = 0; i < len; i += 8)
		put64(f, gpa + i, rnd(f));
}

/* Addresses that matter: tables, edges, devices, nowhere. */
static uint64_t rnd_address(struct fuzz *f)
{
	static const uint64_t some[] = {
		0,	     G_TABLES, G_GDT,	    G_LDT,	G_IDT,	     G_TSS,	 G_STACK,
		G_CODE,	     G_DATA,   0x41000 - 2, MEMORY - 4, 0xfee00000,  0xfec00000, 0xffffffff,
		0x100000000, ~0ull,    ~0ull << 47, 1ull << 47, MEMORY + 100};

	if (chance(f, 4))
		return rnd(f) >> below(f, 64);
	return some[below(f, sizeof(some) / sizeof(some[0]))] + (chance(f, 2) ? 0 : below(f, 8192));
}

/* ---- tables --------------------------------------------------------------------------------------------- */

static uint64_t rnd_descriptor(struct fuzz *f)
{
	static const uint64_t good[] = {
		0x00af9b000000ffff, 0x00cf9b000000ffff, 0x008f9b000000ffff, 0x00cf93000000ffff,
		0x00affb000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff, 0x00009b000000ffff,
		0x000093000000ffff, 0x0000890240000067, 0x00008b0240000067, 0x0000820210000fff,
		0x00cf97000000ffff, 0x00af9f000000ffff, 0x0004ec0000080000, 0x0004ec0000400000,
	};
	uint64_t d = good[below(f, sizeof(good) / sizeof(good[0]))];

	if (chance(f, 3))
		d ^= 1ull << below(f, 64);
	if (chance(f, 3))
		d ^= 1ull << (40 + below(f, 8));
	return chance(f, 16) ? rnd(f) : d;
}

static void make_descriptors(struct fuzz *f, uint64_t gpa)
{
	for (unsigned i = 0; i < 64; i++)
		put64(f, gpa + i * 8, i == 0 ? 0 : rnd_descriptor(f));
	/* The first few are as most code expects them. */
	put64(f, gpa + 0x08, 0x00af9b000000ffff);
	put64(f, gpa + 0x10, 0x00cf93000000ffff);
	put64(f, gpa + 0x18, 0x00cf9b000000ffff);
	put64(f, gpa + 0x20, 0x00cff3000000ffff);
	put64(f, gpa + 0x28, 0x00affb000000ffff);
}

static uint64_t rnd_gate(struct fuzz *f, bool wide)
{
	uint64_t sel = (chance(f, 6) ? below(f, 64) * 8 + below(f, 8) : wide ? 8 : 0x18);
	uint64_t type = chance(f, 6) ? rnd(f) & 0xff
				     : 0x8e | (below(f, 2) ? 1 : 0) | (below(f, 2) ? 0x60 : 0);
	uint64_t at = G_CODE + below(f, 0x2000);

	return (at & 0xffff) | sel << 16 |
	       (wide && chance(f, 3) ? (uint64_t)below(f, 8) << 32 : 0) | type << 40 |
	       (at >> 16 & 0xffff) << 48;
}

static void make_idt(struct fuzz *f, bool wide, bool real)
{
	for (unsigned i = 0; i < 256; i++) {
		if (real) {
			uint32_t v = (uint32_t)(G_CODE >> 4) << 16 | below(f, 0x1000);

			put(f, i * 4, &v, 4);
		} else if (wide) {
			put64(f, G_IDT + i * 16, rnd_gate(f, true));
			put64(f, G_IDT + i * 16 + 8, chance(f, 16) ? rnd(f) : 0);
		} else {
			put64(f, G_IDT + i * 8, rnd_gate(f, false));
		}
	}
}

static uint64_t rnd_pte(struct fuzz *f, uint64_t gpa, bool large)
{
	uint64_t e = gpa | 0x7 | (large ? 0x80 : 0);

	if (chance(f, 12))
		e ^= 1ull << below(f, 64);
	if (chance(f, 60))
		e = rnd(f);
	if (chance(f, 60))
		e = (rnd_address(f) & 0xffffff000ull) | 0x7;
	return e;
}

/* Four levels (or PAE's three, or two of 32 bits) that map the first 4 MiB to themselves, and some things wrong. */
static uint64_t make_page_tables(struct fuzz *f, bool four, bool pae)
{
	uint64_t at = G_TABLES;

	if (!four && !pae) {
		for (uint32_t i = 0; i < 1024; i++) {
			uint32_t e = (uint32_t)rnd_pte(f, (uint64_t)i << 12, false), zero = 0;

			put(f, at + 0x1000 + i * 4, &e, 4);
			put(f, at + i * 4, &zero, 4);
		}
		uint32_t e = (uint32_t)(at + 0x1000) | 7;

		put(f, at, &e, 4);
		return at;
	}
	for (unsigned i = 0; i < 512 * 5; i++)
		put64(f, at + i * 8, 0);
	put64(f, at, (at + 0x1000) | 7);
	put64(f, at + 511 * 8, rnd_pte(f, at + 0x1000, false));
	put64(f, at + 0x1000, (at + 0x2000) | (four ? 7 : 1));
	for (unsigned i = 0; i < 2; i++) {
		bool large = chance(f, 4);

		put64(f, at + 0x2000 + i * 8,
		      large ? rnd_pte(f, (uint64_t)i << 21, true) : (at + 0x3000 + i * 0x1000) | 7);
		for (unsigned j = 0; j < 512; j++)
			put64(f, at + 0x3000 + i * 0x1000 + j * 8,
			      rnd_pte(f, (uint64_t)i << 21 | j << 12, false));
	}
	return four ? at : at + 0x1000;
}

/* ---- code ----------------------------------------------------------------------------------------------- */

/* Openings of instructions that are C functions: random bytes follow. */
static const struct {
	uint8_t n, b[4];
} openings[] = {
	{1, {0x8e}},
	{1, {0x8c}},
	{1, {0xcf}},
	{2, {0x48, 0xcf}},
	{1, {0xcb}},
	{2, {0x48, 0xcb}},
	{1, {0x9a}},
	{1, {0xea}},
	{2, {0x0f, 0x01}},
	{2, {0x0f, 0x00}},
	{2, {0x0f, 0x20}},
	{2, {0x0f, 0x22}},
	{2, {0x0f, 0x23}},
	{2, {0x0f, 0x21}},
	{2, {0x0f, 0x30}},
	{2, {0x0f, 0x32}},
	{2, {0x0f, 0x05}},
	{2, {0x0f, 0x07}},
	{3, {0x48, 0x0f, 0x07}},
	{2, {0x0f, 0x34}},
	{2, {0x0f, 0x35}},
	{1, {0xcd}},
	{1, {0xcc}},
	{1, {0xf1}},
	{1, {0xce}},
	{1, {0x9d}},
	{1, {0x9c}},
	{1, {0xfa}},
	{1, {0xfb}},
	{1, {0xfd}},
	{1, {0xfc}},
	{2, {0xf3, 0xa4}},
	{2, {0xf3, 0xa5}},
	{2, {0xf3, 0xaa}},
	{3, {0xf3, 0x48, 0xab}},
	{2, {0xf2, 0xae}},
	{2, {0xf3, 0xa6}},
	{2, {0xf3, 0x6c}},
	{2, {0xf3, 0x6e}},
	{2, {0xf3, 0x6f}},
	{1, {0xe4}},
	{1, {0xee}},
	{1, {0xc8}},
	{1, {0xc9}},
	{1, {0x60}},
	{1, {0x61}},
	{1, {0x62}},
	{1, {0xc5}},
	{2, {0x0f, 0xb2}},
	{2, {0x0f, 0xb4}},
	{2, {0x0f, 0xab}},
	{3, {0xf0, 0x0f, 0xbb}},
	{2, {0x0f, 0x02}},
	{2, {0x0f, 0x03}},
	{1, {0x63}},
	{1, {0xd7}},
	{1, {0xff}},
	{2, {0x48, 0xff}},
	{1, {0x8f}},
	{2, {0x0f, 0xa2}},
	{2, {0x0f, 0xae}},
	{3, {0xf3, 0x0f, 0xae}},
	{3, {0x66, 0x0f, 0xae}},
	{2, {0x0f, 0xc7}},
	{4, {0x66, 0x0f, 0x38, 0x82}},
	{1, {0x1f}},
	{1, {0x17}},
	{2, {0x0f, 0xa1}},
	{1, {0xc3}},
	{1, {0xe8}},
	{1, {0xf4}},
	{1, {0x67}},
	{2, {0x0f, 0x09}},
	{2, {0x0f, 0x06}},
	{1, {0xd9}},
	{1, {0xdd}},
	{1, {0x27}},
	{1, {0xd4}},
	{1, {0xd5}},
	{2, {0x66, 0x9d}},
};

static void make_code(struct fuzz *f)
{
	uint8_t code[0x2000];
	unsigned n = 0, mix = below(f, 4);

	while (n < sizeof(code) - 16) {
		unsigned i = below(f, sizeof(openings) / sizeof(openings[0]));

		if (mix && below(f, 4) < mix) {
			memcpy(code + n, openings[i].b, openings[i].n);
			n += openings[i].n;
			/* An operand that may well be in memory, and short. */
			code[n++] = (uint8_t)rnd(f);
			if (chance(f, 2))
				code[n++] = (uint8_t)rnd(f);
		} else if (chance(f, 3)) {
			code[n++] = 0x90;
		} else {
			code[n++] = (uint8_t)rnd(f);
		}
	}
	memset(code + n, 0x90, sizeof(code) - n);
	put(f, G_CODE, code, sizeof(code));
}

/* ---- the vCPU's state ------------------------------------------------------------------------------------ */

enum kind { REAL, PROT16, PROT32, COMPAT, LONG64, KINDS };

static void make_segment(struct fuzz *f, struct x86_seg *s, uint16_t sel, unsigned attr)
{
	s->sel = sel;
	s->base = chance(f, 8) ? (uint32_t)rnd_address(f) : 0;
	s->limit = chance(f, 8) ? (uint32_t)rnd(f) : 0xffffffff;
	s->attr = (uint16_t)attr;
	s->unusable = chance(f, 40);
}

static void make_segments(struct fuzz *f, struct x86_state *s, enum kind kind, unsigned cpl)
{
	unsigned dpl = cpl << SEG_ATTR_DPL_SHIFT,
		 db = kind == PROT16 || kind == REAL ? 0 : SEG_ATTR_DB;
	unsigned size = kind == LONG64 ? SEG_ATTR_L : db;

	for (unsigned i = 0; i < X86_SEGS; i++)
		make_segment(f, &s->seg[i], (uint16_t)(0x10 | cpl), 0x93 | dpl | SEG_ATTR_G | db);
	make_segment(f, &s->seg[X86_CS], (uint16_t)(8 | cpl), 0x9b | dpl | SEG_ATTR_G | size);
	s->seg[X86_CS].base = kind == REAL ? G_CODE : 0;
	s->seg[X86_CS].limit = kind == REAL ? 0xffff : 0xffffffff;
	s->seg[X86_CS].unusable = false;
	s->seg[X86_SS].unusable = false;
	for (unsigned i = 0; kind == REAL && i < X86_SEGS; i++) {
		s->seg[i].limit = chance(f, 4) ? 0xffffffff : 0xffff;
		s->seg[i].attr = i == X86_CS ? 0x9b : 0x93;
		s->seg[i].sel = (uint16_t)(s->seg[i].base >> 4);
	}
	make_segment(f, &s->tr, 0x48, 0x8b);
	s->tr.base = G_TSS;
	s->tr.limit = chance(f, 4) ? below(f, 0x200) : 0x2067;
	make_segment(f, &s->ldtr, 0x50, 0x82);
	s->ldtr.base = G_LDT;
	s->ldtr.limit = below(f, 0x300);
}

static void make_control(struct fuzz *f, struct x86_state *s, enum kind kind)
{
	bool pae = kind >= COMPAT || chance(f, 2),
	     paging = kind >= COMPAT || (kind != REAL && chance(f, 2));

	s->cr0 = X86_CR0_ET |
		 (rnd(f) & (X86_CR0_TS | X86_CR0_MP | X86_CR0_NE | X86_CR0_AM | X86_CR0_WP));
	if (chance(f, 2))
		s->cr0 &= ~X86_CR0_TS;
	s->cr4 = rnd(f) & (X86_CR4_TSD | X86_CR4_PSE | X86_CR4_PGE | X86_CR4_OSFXSR | X86_CR4_UMIP |
			   X86_CR4_FSGSBASE | X86_CR4_OSXSAVE | X86_CR4_SMEP | X86_CR4_SMAP);
	if (!chance(f, 4))
		s->cr4 &= ~(X86_CR4_SMEP | X86_CR4_SMAP);
	if (pae)
		s->cr4 |= X86_CR4_PAE;
	if (kind != REAL)
		s->cr0 |= X86_CR0_PE;
	if (kind >= COMPAT)
		s->efer |= X86_EFER_LME | X86_EFER_LMA;
	s->efer |= rnd(f) & (X86_EFER_SCE | X86_EFER_NXE);
	if (paging) {
		s->cr0 |= X86_CR0_PG;
		s->cr3 = make_page_tables(f, kind >= COMPAT, pae);
	}
}

static void make_registers(struct fuzz *f, struct x86_state *s, enum kind kind)
{
	for (unsigned i = 0; i < X86_GPRS; i++)
		s->gpr[i] = rnd_address(f);
	s->gpr[X86_RSP] = chance(f, 6) ? rnd_address(f) : G_STACK + 0x800 + below(f, 0x400) * 4;
	if (chance(f, 2))
		s->gpr[X86_RCX] = chance(f, 2) ? below(f, 5000) : 0xc0000080 + below(f, 4);
	if (chance(f, 2))
		s->gpr[X86_RDX] = 0;
	s->rip = (kind == REAL ? 0 : G_CODE) + below(f, 0x1800);
	s->rflags = 2 | (rnd(f) & (ARITH_FLAGS | X86_FL_IF | X86_FL_DF | X86_FL_IOPL | X86_FL_AC));
	if (chance(f, 6))
		s->rflags |= X86_FL_TF;
	if (chance(f, 20))
		s->rflags |= X86_FL_NT;
	s->msr.star = 0x0018000800000000ull ^ (chance(f, 4) ? rnd(f) : 0);
	s->msr.lstar = G_CODE + below(f, 0x1800);
	s->msr.cstar = G_CODE + below(f, 0x1800);
	s->msr.sfmask = rnd(f) & 0x47700;
	s->msr.sysenter_cs = chance(f, 4) ? 0 : 8;
	s->msr.sysenter_eip = G_CODE;
	s->msr.sysenter_esp = G_STACK + 0x800;
}

static void make_case(struct fuzz *f)
{
	struct x86_state *s = f->state;
	enum kind kind = below(f, KINDS);
	unsigned cpl = kind == REAL ? 0 : chance(f, 3) ? below(f, 4) : chance(f, 2) ? 3 : 0;

	x86_state_reset(s, 0, true);
	fill_random(f, G_TSS, 0x2100);
	for (unsigned i = 0; i < 0x60 && chance(f, 2); i += 4)
		put(f, G_TSS + i, &(uint32_t){i % 8 ? 0 : G_STACK + 0xc00}, 4);
	put(f, G_TSS + 0x66, &(uint16_t){(uint16_t)(chance(f, 4) ? rnd(f) : 0x68)}, 2);
	fill_random(f, G_STACK, 0x1000);
	for (unsigned i = 0; i < 0x1000; i += 8)
		if (chance(f, 2))
			put64(f, G_STACK + i,
			      chance(f, 2) ? G_CODE + below(f, 0x1800)
					   : below(f, 64) * 8 + below(f, 4));
	fill_random(f, G_DATA, 0x1000);
	make_descriptors(f, G_GDT);
	make_descriptors(f, G_LDT);
	make_idt(f, kind >= COMPAT, kind == REAL);
	make_code(f);
	make_segments(f, s, kind, cpl);
	make_control(f, s, kind);
	make_registers(f, s, kind);
	s->gdtr.base = chance(f, 10) ? rnd_address(f) : G_GDT;
	s->gdtr.limit = (uint16_t)(chance(f, 6) ? rnd(f) : 0x1ff);
	s->idtr.base = kind == REAL ? 0 : chance(f, 10) ? rnd_address(f) : G_IDT;
	s->idtr.limit = (uint16_t)(chance(f, 6) ? rnd(f) : 0xfff);
}

/* ---- running ---------------------------------------------------------------------------------------------- */

static void answer(struct fuzz *f, struct vm_exit *exit)
{
	switch (exit->code) {
	case EXIT_INOUT:
		if (exit->inout.count == 0 || (uint64_t)exit->inout.count * exit->inout.size > 4096)
			f->failure = "an INOUT exit of no or too many elements";
		for (uint32_t i = 0; exit->inout.in && i < exit->inout.count * exit->inout.size;
		     i++)
			exit->inout.data[i] = (uint8_t)rnd(f);
		break;
	case EXIT_MMIO:
		if (!exit->mmio.size || exit->mmio.size > 8)
			f->failure = "an MMIO exit of a size that is none";
		if (!exit->mmio.write)
			exit->mmio.value = rnd(f);
		break;
	case EXIT_RDMSR:
	case EXIT_WRMSR:
		exit->msr.fault = chance(f, 2);
		exit->msr.value = rnd(f);
		break;
	default:
		break;
	}
}

/* What holds for every vCPU between two instructions. */
static const char *impossible(const struct x86_state *s)
{
	bool paging = s->cr0 & X86_CR0_PG, lma = s->efer & X86_EFER_LMA;

	if (paging && !(s->cr0 & X86_CR0_PE))
		return "CR0.PG without PE";
	if (lma != (paging && (s->efer & X86_EFER_LME)))
		return "EFER.LMA is not PG and LME";
	if (lma && !(s->cr4 & X86_CR4_PAE))
		return "long mode without PAE";
	if (!(s->rflags & 2) || (s->rflags & (X86_FL_VM | 0x8028)) || s->rflags >> 22)
		return "RFLAGS bits that are fixed";
	if (!(s->cr0 & X86_CR0_ET))
		return "CR0.ET";
	if ((s->cr0 & X86_CR0_PE) && !(s->cr0 & X86_CR0_PG) && (s->cr4 & X86_CR4_PCIDE))
		return "PCID without paging";
	if (!lma && s->rip >> 32)
		return "EIP of more than 32 bits";
	if ((s->seg[X86_CS].attr & (SEG_ATTR_L | SEG_ATTR_DB)) == (SEG_ATTR_L | SEG_ATTR_DB) && lma)
		return "CS with L and D";
	for (unsigned i = 0; i < X86_SEGS; i++)
		if (s->seg[i].base != (uint32_t)s->seg[i].base && i != X86_FS && i != X86_GS)
			return "a segment base of more than 32 bits";
	return NULL;
}

/* The memory region with the host page at `host`. */
static const struct memory_region *region_at(const struct memory *mem, uint64_t host)
{
	for (unsigned i = 0; i < mem->nregions; i++) {
		const struct memory_region *r = &mem->region[i];

		if (host - (uintptr_t)r->hva <= r->len - 4096)
			return r;
	}
	return NULL;
}

/* Can an address with this entry's index match? Then it is of the one page that this gives. */
static bool tag_matches(uint64_t tag, unsigned i)
{
	return (-tag >> 12 & (TLB_ENTRIES - 1)) == i;
}

static const char *entry_escapes(const struct memory *mem, const struct soft_tlb *tlb, unsigned i,
				 bool written_code)
{
	bool read = tag_matches(tlb->rtag[i], i), write = tag_matches(tlb->wtag[i], i);
	const struct memory_region *r;

	if (read &&
	    ((-tlb->rtag[i] & 0xfff) || !(r = region_at(mem, tlb->addend[i] - tlb->rtag[i]))))
		return "a read tag leads out of memory";
	if (!write)
		return NULL;
	r = -tlb->wtag[i] & 0xfff ? NULL : region_at(mem, tlb->addend[i] - tlb->wtag[i]);
	if (!r || r->kind != MEMORY_RAM)
		return "a write tag leads out of RAM";
	return written_code ? "a write tag for a page with code" : NULL;
}

static bool page_has_code(struct soft_vm *svm, uint64_t host)
{
	const struct memory_region *r = region_at(&svm->vm->memory, host);
	_Atomic uint8_t *attr = r ? page_attr(svm, (host - (uintptr_t)r->hva + r->gpa) & ~0xfffull)
				  : NULL;

	return attr && (*attr & PAGE_CODE);
}

#define TAGS_PAGE (4096 / sizeof(uint64_t))

/* All tables of the vCPU, which is not running. Pages of them that nobody touched are left alone. */
static const char *escape(struct soft_vm *svm, const struct soft_cpu *cpu)
{
	static unsigned char there[2 * TLB_ENTRIES / TAGS_PAGE]; /* of rtag and wtag */
	const char *why = NULL;

	for (unsigned n = 0; n < (SLOTS + 1) * TLB_KINDS && !why; n++) {
		const struct soft_slot *slot = &cpu->slots->slot[n / TLB_KINDS];
		const struct soft_tlb *tlb = slot->tlb[n % TLB_KINDS];

		if (tlb && mincore((void *)tlb, sizeof(tlb->rtag) + sizeof(tlb->wtag), there))
			return "a table is not mapped";
		for (unsigned i = 0; tlb && i < TLB_ENTRIES && !why; i++) {
			if (!((there[i / TAGS_PAGE] | there[(TLB_ENTRIES + i) / TAGS_PAGE]) & 1)) {
				i |= TAGS_PAGE - 1;
				continue;
			}
			if (!tag_matches(tlb->rtag[i], i) && !tag_matches(tlb->wtag[i], i))
				continue;
			if (!slot->used ||
			    !(slot->touched[n % TLB_KINDS][i / 4096] >> (i / 64 & 63) & 1))
				return "a tag that no flush will find";
			why = entry_escapes(&svm->vm->memory, tlb, i,
					    page_has_code(svm, tlb->addend[i] - tlb->wtag[i]));
		}
	}
	return why;
}

static int run_case(struct vcpu *vcpu, void *arg)
{
	struct fuzz *f = arg;
	const struct engine *engine = f->vm->engine;
	unsigned kicks = 0;

	if (engine->vcpu_set_state(vcpu, f->state)) {
		f->failure = "the state was refused";
		return 0;
	}
	atomic_store(&f->running, true);
	for (unsigned i = 0; i < EXITS_MAX && kicks < KICKS_MAX && !f->failure; i++) {
		if (engine->vcpu_run(vcpu, &vcpu->exit)) {
			f->failure = "vcpu_run() failed";
			break;
		}
		f->exits[vcpu->exit.code]++;
		if (vcpu->exit.code == EXIT_FAIL)
			f->failure = "the engine gave up";
		if (vcpu->exit.code == EXIT_SHUTDOWN)
			break;
		kicks += vcpu->exit.code == EXIT_BOGUS;
		answer(f, &vcpu->exit);
	}
	atomic_store(&f->running, false);
	engine->vcpu_get_state(vcpu, f->state);
	if (!f->failure)
		f->failure = impossible(f->state);
	if (!f->failure)
		f->failure = escape(f->vm->engine_data, vcpu->engine_data);
	if (!f->failure && engine->vcpu_set_state(vcpu, f->state))
		f->failure = "its own state was refused";
	return 0;
}

/* Random code may well loop for ever, or halt. */
static void *kicker(void *arg)
{
	struct fuzz *f = arg;

	while (!atomic_load(&f->stop)) {
		nanosleep(&(struct timespec){.tv_nsec = KICK_NS}, NULL);
		if (atomic_load(&f->running))
			f->vm->engine->vcpu_kick(&f->vm->vcpu[0]);
	}
	return NULL;
}

static bool fuzz_one(struct fuzz *f)
{
	f->rng = f->seed * 0x100000001b3ull + f->cases;
	make_case(f);
	f->vm->engine->host_write_end(f->vm, 0, MEMORY);
	if (f->verbose)
		vcpu_print(&f->vm->vcpu[0], f->state, stdout);
	vcpu_call(&f->vm->vcpu[0], run_case, f);
	if (!f->failure)
		return true;
	printf("case %" PRIu64 " of seed %" PRIu64 ": %s\n", f->cases, f->seed, f->failure);
	vcpu_print(&f->vm->vcpu[0], f->state, stdout);
	return false;
}

static int fuzz_init(struct fuzz *f)
{
	struct vm_options options = {.name = "fuzz",
				     .config = f->config = config_create(),
				     .log = &f->log,
				     .engine = &engine_soft,
				     .memory_size = MEMORY,
				     .topology = {1, 1, 1, 1}};
	struct error err;

	log_init(&f->log, STDERR_FILENO, LOG_ERROR);
	f->state = aligned_alloc(64, sizeof(*f->state));
	if (!f->state || !f->config || config_set(f->config, "soft.cache", "1M", &err) ||
	    vm_create(&f->vm, &options, &err)) {
		fprintf(stderr, "fuzz: cannot start\n");
		return -1;
	}
	f->vm->engine->time_resume(f->vm);
	return 0;
}

int main(int argc, char **argv)
{
	static struct fuzz f = {.seed = 1};
	uint64_t n = ~0ull, first = 0;
	time_t seconds = 10, start = time(NULL);
	pthread_t thread;
	bool ok = true;
	int opt;

	while ((opt = getopt(argc, argv, "n:s:c:t:v")) != -1) {
		if (opt == 'n')
			n = strtoull(optarg, NULL, 0);
		else if (opt == 's')
			f.seed = strtoull(optarg, NULL, 0);
		else if (opt == 'c')
			first = strtoull(optarg, NULL, 0);
		else if (opt == 't')
			seconds = (time_t)strtoull(optarg, NULL, 0);
		else if (opt == 'v')
			f.verbose = true;
		else
			return 2;
	}
	if (fuzz_init(&f) || pthread_create(&thread, NULL, kicker, &f))
		return 2;
	for (f.cases = first; ok && f.cases - first < n && time(NULL) - start < seconds; f.cases++)
		ok = fuzz_one(&f);
	atomic_store(&f.stop, true);
	pthread_join(thread, NULL);
	printf("%" PRIu64 " cases;", f.cases - first);
	for (unsigned i = 0; i < EXIT_CODES; i++)
		if (f.exits[i])
			printf(" %s %" PRIu64, exit_name(i), f.exits[i]);
	printf("\n");
	vm_destroy(f.vm);
	config_destroy(f.config);
	free(f.state);
	return ok ? 0 : 1;
}
