/*
 * Differential test: random instructions with random operands, flags, memory contents and faults, run once by the
 * soft engine and once by the host CPU; registers, flags, vector state, memory and the fault must be equal.
 *
 *   diff [-n CASES] [-s SEED] [-c FIRST] [-t TRACE] [-v]
 *
 * The guest is a flat one at CPL 3, of 64-bit and of 32-bit (compatibility mode) code, whose page tables map the same linear addresses that the oracle's
 * memory has in this process, so that addresses in registers mean the same. A failing case prints as an assembler
 * line with its state before and after on both sides.
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

/* Linear addresses: code of one page; data of two pages, nothing mapped behind or before them. */
#define CODE 0x10000000ull
#define DATA 0x20000000ull
#define DATA_SIZE 0x2000ull
/* Guest-physical layout. */
#define G_PML4 0x1000ull
#define G_PDPT 0x2000ull
#define G_PD 0x3000ull
#define G_PT_CODE 0x4000ull
#define G_PT_DATA 0x5000ull
#define G_GDT 0x6000ull
#define G_IDT 0x7000ull
#define G_TSS 0x8000ull
#define G_PT_LOW 0x9000ull
#define G_HANDLERS 0xa000ull /* 32 bytes a vector */
#define G_STACK 0xc000ull    /* top */
#define G_CODE 0x100000ull
#define G_DATA 0x102000ull
#define MEMORY (4ull << 20)
#define SEL_CODE32 0x3b
#define FSW_ES 0x80 /* an unmasked exception waits */
#define END_PORT 0xf0

struct harness {
	struct vm *vm;
	struct config *config;
	struct log log;
	struct x86_state *state;
	uint64_t seed, cases, failures, skipped, faults;
	bool verbose;
	const char *trace;
	uint64_t rng;
	uint8_t *code, *data; /* the oracle's */
	/* the case */
	uint32_t mode; /* MODE_* to decode with */
	struct insn insn;
	uint8_t bytes[16];
	struct cpu_image start, native, soft;
	uint8_t data_start[DATA_SIZE], data_soft[DATA_SIZE];
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

	switch (below(h, 4)) {
	case 0:
		return edges[below(h, sizeof(edges) / sizeof(edges[0]))];
	case 1:
		return rnd(h) >> below(h, 64);
	default:
		return rnd(h);
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
	put64(h, G_PD, G_PT_LOW | 7);
	for (uint64_t i = 0; i < 16; i++)
		put64(h, G_PT_LOW + i * 8, i << 12 | 3);
	put64(h, G_PD + (CODE >> 21) * 8, G_PT_CODE | 7);
	put64(h, G_PD + (DATA >> 21) * 8, G_PT_DATA | 7);
	put64(h, G_PT_CODE, G_CODE | 7);
	put64(h, G_PT_DATA, G_DATA | 7);
	put64(h, G_PT_DATA + 8, (G_DATA + 0x1000) | 7);
	put64(h, G_GDT + 0x08, 0x00af9b000000ffffull); /* code, ring 0 */
	put64(h, G_GDT + 0x10, 0x00cf93000000ffffull);
	put64(h, G_GDT + 0x18, 0x00cff3000000ffffull); /* data, ring 3 */
	put64(h, G_GDT + 0x20, 0x00affb000000ffffull); /* code, ring 3 */
	put64(h, G_GDT + 0x28, 0x0000890000000067ull | G_TSS << 16);
	put64(h, G_GDT + 0x38, 0x00cffb000000ffffull); /* code of 32 bits, ring 3 */
	put64(h, G_TSS + 4, G_STACK);
	for (uint64_t v = 0; v < 32; v++) {
		uint64_t at = G_HANDLERS + v * 32;
		const uint8_t handler[] = {0xe6, END_PORT, 0xf4}; /* out END_PORT, al; hlt */

		put64(h, G_IDT + v * 16,
		      (at & 0xffff) | 0x08 << 16 | 0xee00ull << 32 | (at >> 16) << 48);
		put(h, at, handler, sizeof(handler));
	}
}

static struct x86_seg segment(uint16_t sel, uint16_t attr)
{
	return (struct x86_seg){.limit = 0xffffffff, .sel = sel, .attr = attr};
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
		s->seg[i] = segment(0x1b, 0xc0f3);
	s->seg[X86_CS] = h->start.code32 ? segment(SEL_CODE32, 0xc0fb) : segment(0x23, 0xa0fb);
	s->tr = (struct x86_seg){.base = G_TSS, .limit = 0x67, .sel = 0x28, .attr = 0x8b};
	s->gdtr = (struct x86_table){G_GDT, 0x3f};
	s->idtr = (struct x86_table){G_IDT, 32 * 16 - 1};
	s->xsave_size = native_xsave_size();
}

/* Runs the case in the guest, on the vCPU's thread. */
static int guest_run(struct vcpu *vcpu, void *arg)
{
	struct harness *h = arg;
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
	uint64_t at = vcpu->exit.rip - G_HANDLERS;

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

	put(h, G_CODE + (h->start.rip - CODE), h->code + (h->start.rip - CODE), 16);
	put(h, G_DATA, h->data_start, DATA_SIZE);
	ret = vcpu_call(&h->vm->vcpu[0], guest_run, h);
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
	memcpy(h->soft.xsave, s->xsave, native_xsave_size());
	if (memory_read(&h->vm->memory, G_DATA, h->data_soft, DATA_SIZE))
		return -EFAULT;
	if (h->soft.vector == 3 && h->soft.rip == h->start.rip + h->insn.len + 1) {
		h->soft.vector = -1;
		h->soft.rip--;
	}
	return 0;
}

/* ---- cases -------------------------------------------------------------------------------------------- */

static unsigned random_bytes(struct harness *h, uint8_t *b)
{
	unsigned n = 0, kind = below(h, 10);

	for (unsigned i = 0; i < 16; i++)
		b[i] = (uint8_t)rnd(h);
	if (kind < 5) { /* legacy */
		if (below(h, 6) == 0)
			b[n++] = 0x66;
		if (below(h, 8) == 0)
			b[n++] = below(h, 2) ? 0xf2 : 0xf3;
		if (below(h, 20) == 0)
			b[n++] = 0xf0;
		if (below(h, 2) && !h->start.code32)
			b[n++] = (uint8_t)(0x40 | below(h, 16));
		if (below(h, 2)) {
			b[n++] = 0x0f;
			if (below(h, 4) == 0)
				b[n++] = below(h, 2) ? 0x38 : 0x3a;
		}
	} else if (kind < 7) { /* VEX */
		b[n++] = below(h, 2) ? 0xc4 : 0xc5;
		if (b[0] == 0xc4)
			b[1] = (uint8_t)((b[1] & 0xe0) | (1 + below(h, 3)));
	} else if (kind < 9) { /* EVEX */
		b[0] = 0x62;
		b[1] = (uint8_t)((b[1] & 0xf0) | (1 + below(h, 3)));
		b[2] |= 4;
		if (below(h, 2))
			b[3] &= 0xf8;
	} else { /* x87 */
		b[0] = (uint8_t)(0xd8 | below(h, 8));
	}
	if (kind >= 5 && kind < 9 && h->start.code32)
		b[1] |= 0xc0; /* or it is LES, LDS or BOUND */
	return 16;
}

static bool bit_string(const struct insn *i)
{
	return i->has_mem && !i->nimm &&
	       (i->op == ZYDIS_MNEMONIC_BT || i->op == ZYDIS_MNEMONIC_BTS ||
		i->op == ZYDIS_MNEMONIC_BTR || i->op == ZYDIS_MNEMONIC_BTC);
}

static bool wanted(const struct harness *h, const struct insn *insn)
{
	const struct soft_vm *svm = h->vm->engine_data;
	uint32_t mode = h->mode | MODE_USER | MODE_OSFXSR | MODE_OSXSAVE | MODE_AVX | MODE_AVX512 |
			MODE_OSXMMEX;

	if (insn->op == ZYDIS_MNEMONIC_LEA)
		return true;
	/* Linux maps nothing into the first 64 KiB, the guest its tables. */
	if (insn->addrsize == 2 && (insn->has_mem || insn->implicit_mem))
		return false;
	/* Its offset would say where in this process it goes. */
	if (bit_string(insn) && (insn->reg == insn->mem_base || insn->reg == insn->mem_index))
		return false;
	if (insn->mem_seg == X86_FS || insn->mem_seg == X86_GS)
		return false; /* their bases are this process's own here */
	switch (insn->op) {
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP:
		return insn->segreg == REG_NONE;
	case ZYDIS_MNEMONIC_MOVSB:
	case ZYDIS_MNEMONIC_MOVSW:
	case ZYDIS_MNEMONIC_MOVSQ:
	case ZYDIS_MNEMONIC_STOSB:
	case ZYDIS_MNEMONIC_STOSD:
	case ZYDIS_MNEMONIC_STOSQ:
	case ZYDIS_MNEMONIC_LODSB:
	case ZYDIS_MNEMONIC_LODSQ:
	case ZYDIS_MNEMONIC_SCASB:
	case ZYDIS_MNEMONIC_CMPSB:
	case ZYDIS_MNEMONIC_LEAVE:
	case ZYDIS_MNEMONIC_XLAT:
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		return true;
	case ZYDIS_MNEMONIC_MOVSXD: /* 16-bit: AMD's CPUs read four bytes, as soft does, Intel's two */
		return insn->opsize != 2 || !insn->has_mem;
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
		return true;
	case ZYDIS_MNEMONIC_BSWAP: /* 16-bit: undefined */
		return insn->opsize != 2;
	case ZYDIS_MNEMONIC_FWAIT:
		return true;
	default:
		return native_classify(svm->isa, insn, mode) == RUN_NATIVE;
	}
}

/* An address in or near the data pages. */
static uint64_t data_address(struct harness *h, unsigned size)
{
	switch (below(h, 8)) {
	case 0: /* across the inner page edge */
		return DATA + 0x1000 - below(h, size ? size + 1 : 1);
	case 1: /* over the end */
		return DATA + DATA_SIZE - below(h, size + 2);
	case 2: /* not mapped, or not canonical: this process may have something anywhere else */
		if (h->start.code32)
			return below(h, 2) ? DATA - 64 : DATA + DATA_SIZE + below(h, 1u << 28);
		return below(h, 2) ? DATA - 64 : 1ull << 63 | rnd(h) >> 2;
	default: {
		uint64_t at = DATA + below(h, DATA_SIZE - 128);

		return below(h, 4) ? at & ~63ull : at;
	}
	}
}

/* An address that only the encoding tells: RIP-relative, a bare displacement, moffs. */
static void aim_displacement(struct harness *h, uint64_t want)
{
	struct insn *i = &h->insn;
	unsigned size = i->has_modrm ? 4 : i->addrsize, at = i->len - size;
	uint64_t disp;

	if (want - (DATA - 64) > DATA_SIZE + 64)
		want = DATA + DATA_SIZE; /* within the reach of 32 bits */
	disp = i->rip_relative ? want - (h->start.rip + i->len) : want;

	for (unsigned n = 0; n < i->nimm; n++)
		at -= i->imm_size[n];
	memcpy(h->bytes + at, &disp, size);
	insn_decode(h->bytes, 15, h->mode, i);
}

/* Makes the memory operand's address what we want by its base (or index) register. */
static void aim(struct harness *h)
{
	const struct insn *i = &h->insn;
	uint64_t want = data_address(h, i->mem_size), sum = (uint64_t)i->mem_disp;
	uint64_t reach = h->start.code32 ? UINT32_MAX : UINT64_MAX;

	h->start.gpr[X86_RSI] = data_address(h, 8);
	h->start.gpr[X86_RDI] = data_address(h, 8);
	if (i->op == ZYDIS_MNEMONIC_XLAT)
		h->start.gpr[X86_RBX] = data_address(h, 1);
	if (i->rep || i->repne)
		h->start.gpr[X86_RCX] = below(h, 40);
	if (!i->has_mem && !i->is_agen)
		return;
	if (i->rip_relative || (i->mem_base == REG_NONE && i->mem_index == REG_NONE)) {
		aim_displacement(h, want);
		return;
	}
	if (bit_string(i))
		h->start.gpr[i->reg] = below(h, 4096) - 2048ull;
	if (i->mem_base == REG_NONE) {
		if (i->mem_index != REG_NONE && !i->mem_vsib)
			h->start.gpr[i->mem_index] = ((want - sum) & reach) / i->mem_scale;
		return;
	}
	if (i->mem_index != REG_NONE && i->mem_index != i->mem_base && !i->mem_vsib)
		sum += h->start.gpr[i->mem_index] * i->mem_scale;
	if (i->mem_index == i->mem_base)
		h->start.gpr[i->mem_base] = ((want - sum) & reach) / (i->mem_scale + 1u);
	else
		h->start.gpr[i->mem_base] = want - sum;
}

static void random_vectors(struct harness *h)
{
	uint8_t *x = h->start.xsave;
	uint64_t bv = cpuid_xcr0(&h->vm->cpuid) & 0xe7;
	uint32_t mxcsr = 0x1f80, size = native_xsave_size();
	uint16_t fcw = 0x37f;

	for (uint32_t i = 0; i + 8 <= size; i += 8) {
		uint64_t v = rnd_value(h);

		memcpy(x + i, &v, 8);
	}
	if (below(h, 4) == 0) {
		mxcsr = (uint32_t)rnd(h) & 0xffff;
		fcw = (uint16_t)(rnd(h) & 0xf7f) | 0x40;
	}
	memset(x, 0, 32);
	memcpy(x, &fcw, 2);
	x[4] = (uint8_t)rnd(h); /* which x87 registers are in use */
	x[3] = (uint8_t)(below(h, 8) << 3);
	memcpy(x + 24, &mxcsr, 4);
	for (unsigned i = 0; i < 8; i++)
		memset(x + 32 + i * 16 + 10, 0, 6);
	memset(x + 416, 0, 96);
	memset(x + 512, 0, 64);
	memcpy(x + 512, &bv, 8);
}

/* One in four is 32-bit code. */
static void random_mode(struct harness *h)
{
	h->start.code32 = below(h, 4) == 0;
	h->mode = MODE_LONG | MODE_PROT |
		  (h->start.code32 ? MODE_CODE32 | MODE_STACK32 | MODE_FLAT : MODE_CODE64);
}

static void random_case(struct harness *h)
{
	uint64_t at = CODE + 0x100 + below(h, 0xe00);

	random_mode(h);
	for (;;) {
		random_bytes(h, h->bytes);
		if (!insn_decode(h->bytes, 15, h->mode, &h->insn) && wanted(h, &h->insn))
			break;
	}
	for (unsigned i = 0; i < 16; i++)
		h->start.gpr[i] = rnd_value(h);
	h->start.gpr[X86_RSP] = DATA + 0x800 + 8 * below(h, 256);
	h->start.gpr[X86_RBP] = DATA + 0x800 + 8 * below(h, 256);
	if (below(h, 2))
		h->start.gpr[X86_RBX] = data_address(h, 8);
	h->start.rflags = rnd(h) & (ARITH_FLAGS | (below(h, 4) ? 0 : X86_FL_DF));
	h->start.rip = at;
	h->start.vector = -1;
	aim(h);
	for (unsigned i = 0; h->start.code32 && i < 8; i++)
		h->start.gpr[i] &= UINT32_MAX;
	random_vectors(h);
	for (unsigned i = 0; i < DATA_SIZE; i += 8) {
		uint64_t v = rnd_value(h);

		memcpy(h->data_start + i, &v, 8);
	}
	memcpy(h->code + (at - CODE), h->bytes, h->insn.len);
	h->code[at - CODE + h->insn.len] = 0xcc;
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

/* Intel's CPUs tell an x87 store's own exception before they look at its address, AMD's and soft the other way. */
static bool x87_store_did_not_look(const struct harness *h)
{
	const struct insn *insn = &h->insn;
	const struct cpu_image *a = &h->native, *b = &h->soft;

	return insn->map == 0 && (insn->opcode & 0xf8) == 0xd8 && insn->mem_write &&
	       a->vector < 0 && (a->xsave[2] & FSW_ES) &&
	       (b->vector == X86_SS_FAULT || b->vector == X86_GP || b->vector == X86_PF);
}

/* Neither manual says which operand of CMPSB is read first: if neither is there, either fault is right. */
static bool cmps_other_operand(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;
	uint64_t mask = h->insn.addrsize == 4 ? UINT32_MAX : UINT64_MAX;

	return h->insn.op == ZYDIS_MNEMONIC_CMPSB && a->vector >= X86_GP && b->vector >= X86_GP &&
	       (a->gpr[X86_RSI] & mask) - DATA >= DATA_SIZE &&
	       (a->gpr[X86_RDI] & mask) - DATA >= DATA_SIZE;
}

/* Nor whether BOUND reads the upper bound when the lower one is broken already. */
static bool bound_other_half(const struct harness *h)
{
	return h->insn.op == ZYDIS_MNEMONIC_BOUND &&
	       h->native.vector + h->soft.vector == X86_BR + X86_PF;
}

static bool vmaskmov(const struct insn *insn)
{
	return insn->op == ZYDIS_MNEMONIC_VMASKMOVPD || insn->op == ZYDIS_MNEMONIC_VMASKMOVPS ||
	       insn->op == ZYDIS_MNEMONIC_VPMASKMOVD || insn->op == ZYDIS_MNEMONIC_VPMASKMOVQ;
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

	if (cmps_other_operand(h) || bound_other_half(h))
		return true;
	/* Linux calls its own half of the address space present to whoever tries to find out. */
	if (a->vector == X86_PF && (int64_t)a->cr2 < 0)
		error &= ~1ull;
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

/* What is in the upper halves of registers after 32-bit code is not defined (SDM vol. 1, 3.4.1.1). */
static bool same_registers(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;

	if (!h->start.code32)
		return !memcmp(a->gpr, b->gpr, sizeof(a->gpr));
	for (unsigned i = 0; i < 8; i++)
		if ((uint32_t)a->gpr[i] != (uint32_t)b->gpr[i])
			return false;
	return true;
}

/* A store of 10 bytes over a page's edge whose second part faults: Intel's CPUs have written the first. */
static void forget_half_store(struct harness *h)
{
	const struct insn *insn = &h->insn;

	if (h->native.vector == X86_PF && insn->mem_size == 10 && insn->mem_write)
		memcpy(h->data + DATA_SIZE - 9, h->data_soft + DATA_SIZE - 9, 9);
}

static bool same(struct harness *h)
{
	struct cpu_image *a = &h->native, *b = &h->soft;
	/* Intel's CPUs set TOP to 0 before an MMX store faults, AMD's and soft do not. */
	bool top_is_open = a->vector >= 0 && h->insn.map == 1 && h->insn.encoding == ENC_LEGACY;

	if (x87_store_did_not_look(h))
		return true;
	normalize(a->xsave, top_is_open);
	normalize(b->xsave, top_is_open);
	forget_half_store(h);
	return same_fault(h) && a->rip == b->rip && same_registers(h) &&
	       ((a->rflags ^ b->rflags) & flags_to_compare(h)) == 0 &&
	       !memcmp(a->xsave, b->xsave, native_xsave_size()) &&
	       !memcmp(h->data, h->data_soft, DATA_SIZE);
}

static void print_difference(struct harness *h)
{
	static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
					      "rsi", "rdi", "r8",  "r9",  "r10", "r11",
					      "r12", "r13", "r14", "r15"};
	const struct cpu_image *a = &h->native, *b = &h->soft;
	char text[128];

	insn_print(&h->insn, h->start.rip, text, sizeof(text));
	printf("case %" PRIu64 " seed %" PRIu64 ": %s  [%s", h->cases, h->seed, text,
	       h->start.code32 ? "32-bit: " : "");
	for (unsigned i = 0; i < h->insn.len; i++)
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
	for (unsigned i = 0; i < DATA_SIZE; i += 8)
		if (memcmp(h->data + i, h->data_soft + i, 8))
			printf("  memory %#llx: before %016" PRIx64 " native %016" PRIx64
			       " soft %016" PRIx64 "\n",
			       DATA + i, *(const uint64_t *)(const void *)(h->data_start + i),
			       *(const uint64_t *)(const void *)(h->data + i),
			       *(const uint64_t *)(const void *)(h->data_soft + i));
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
	native_run(&h->native, h->insn.len);
	/* Bus errors and the like are the host kernel's business. */
	if (run_soft(h)) {
		h->failures++;
		print_difference(h);
		return;
	}
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
	h->data = mmap((void *)DATA, DATA_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	h->state = aligned_alloc(64, sizeof(*h->state));
	if (h->code == MAP_FAILED || h->data == MAP_FAILED || !h->state || make_vm(h))
		return -1;
	build_tables(h);
	/* After the engine: its handler is for its own threads only. */
	return native_init();
}

int main(int argc, char **argv)
{
	static struct harness h;
	uint64_t n = 200000, first = 0;
	int opt;

	h.seed = 1;
	while ((opt = getopt(argc, argv, "n:s:c:t:v")) != -1) {
		if (opt == 'n')
			n = strtoull(optarg, NULL, 0);
		else if (opt == 's')
			h.seed = strtoull(optarg, NULL, 0);
		else if (opt == 'c')
			first = strtoull(optarg, NULL, 0);
		else if (opt == 't')
			h.trace = optarg;
		else if (opt == 'v')
			h.verbose = true;
		else
			return 2;
	}
	if (harness_init(&h)) {
		fprintf(stderr, "diff: cannot start: %s\n", strerror(errno));
		return 2;
	}
	for (h.cases = first; h.cases < first + n && h.failures < 20; h.cases++) {
		h.rng = h.seed * 0x100000001b3ull + h.cases;
		run_case(&h);
	}
	printf("%" PRIu64 " cases, %" PRIu64 " faulted, %" PRIu64 " differ\n", h.cases, h.faults,
	       h.failures);
	vm_destroy(h.vm);
	config_destroy(h.config);
	free(h.state);
	return h.failures ? 1 : 0;
}
