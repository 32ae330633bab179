/*
 * The soft engine's vector-state instructions in C against the host's own: each is executed by the host on a random
 * state and area, and by the helper on the same; memory and the state afterwards must be equal, the last-instruction
 * pointers aside, which guests read as zero.
 */
#include <cpuid.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "engine/soft/fpu.h"
#include "engine/soft/soft.h"
#include "tests/unit/fixture.h"

#define MODE64 (MODE_CODE64 | MODE_LONG | MODE_PROT)
#define AT 0x10000ull /* guest-physical, and offset in the oracle's page */
#define AREA 8192u
#define ROUNDS 300

struct board {
	struct fixture *f;
	struct soft_vm svm;
	struct soft_cpu *cpu;
	uint8_t *code; /* executable */
	uint8_t *area; /* the oracle's memory */
	uint8_t in[4096] __attribute__((aligned(64)));
	uint8_t out[4096] __attribute__((aligned(64)));
	uint64_t seed;
	unsigned operand; /* where RDI points in the area */
};

static uint64_t rnd(struct board *b)
{
	return fixture_random(&b->seed);
}

/* ---- the oracle --------------------------------------------------------------------------------------- */

typedef void (*oracle_fn)(void *operand, uint64_t mask, void *index, void *in, void *out);

/* operand in RDI, EDX:EAX from RSI, R8: state before, RCX: an index register of 0; R9 keeps `out`. */
static void oracle_make(struct board *b, const uint8_t *insn, unsigned len)
{
	static const uint8_t head[] = {
		0x48, 0x83, 0xec, 0x08,	      /* sub rsp, 8 */
		0x0f, 0xae, 0x1c, 0x24,	      /* stmxcsr [rsp] */
		0x4d, 0x89, 0xc1,	      /* mov r9, r8 (out) */
		0x49, 0x89, 0xc8,	      /* mov r8, rcx (in) */
		0xb8, 0xe7, 0x00, 0x00, 0x00, /* mov eax, 0xe7 */
		0x31, 0xd2,		      /* xor edx, edx */
		0x49, 0x0f, 0xae, 0x28,	      /* xrstor64 [r8] */
		0x89, 0xf0,		      /* mov eax, esi */
		0x48, 0x89, 0xf2,	      /* mov rdx, rsi */
		0x48, 0xc1, 0xea, 0x20,	      /* shr rdx, 32 */
	};
	static const uint8_t tail[] = {
		0xb8, 0xe7, 0x00, 0x00, 0x00, /* mov eax, 0xe7 */
		0x31, 0xd2,		      /* xor edx, edx */
		0x49, 0x0f, 0xae, 0x21,	      /* xsave64 [r9] */
		0xdb, 0xe3,		      /* fninit */
		0xc5, 0xf8, 0x77,	      /* vzeroupper */
		0x0f, 0xae, 0x14, 0x24,	      /* ldmxcsr [rsp] */
		0x48, 0x83, 0xc4, 0x08, 0xc3, /* add rsp, 8; ret */
	};

	memcpy(b->code, head, sizeof(head));
	memcpy(b->code + sizeof(head), insn, len);
	memcpy(b->code + sizeof(head) + len, tail, sizeof(tail));
}

/* ---- the state ---------------------------------------------------------------------------------------- */

static uint64_t components(const struct board *b)
{
	return b->cpu->xsave_mask;
}

/* A state that an XSAVE of this host could have written. */
static void random_state(struct board *b, uint8_t *area)
{
	unsigned offset, size;
	uint64_t bv = rnd(b) & components(b);
	bool align;

	memset(area, 0, 4096);
	bytes_set32(area + FX_MXCSR, (uint32_t)rnd(b) & (rnd(b) & 1 ? 0xffbf : 0));
	if (rnd(b) & 1)
		bytes_set32(area + FX_MXCSR, MXCSR_INIT);
	bytes_set64(area + XS_BV, bv);
	if (bv & 1) {
		bytes_set16(area + FX_FCW, (uint16_t)rnd(b));
		bytes_set16(area + FX_FSW, (uint16_t)rnd(b));
		area[FX_FTW] = (uint8_t)rnd(b);
		for (unsigned i = 0; i < 8; i++) {
			uint16_t exponent[4] = {0, 0x7fff, 0x3fff, (uint16_t)rnd(b)};

			bytes_set64(area + FX_ST + i * 16,
				    rnd(b) & 1 ? rnd(b) : (rnd(b) & 1) << 63);
			bytes_set16(area + FX_ST + i * 16 + 8, exponent[rnd(b) & 3]);
		}
	}
	for (unsigned i = 0; (bv & 2) && i < 32; i++)
		bytes_set64(area + FX_XMM + i * 8, rnd(b) | 1);
	for (unsigned n = 2; n < XC_MAX; n++)
		if ((bv >> n & 1) && fpu_component(b->cpu, n, &offset, &size, &align))
			for (unsigned i = 0; i < size; i += 8)
				bytes_set64(area + offset + i, rnd(b) | 1);
}

static void drop_pointers(uint8_t *area)
{
	memset(area + FX_FOP, 0, FX_MXCSR - FX_FOP);
}

/* Where the instruction stores last-instruction pointers. */
enum pointers { NOWHERE, IN_AREA, IN_ENVIRONMENT };

/* ---- one case ----------------------------------------------------------------------------------------- */

static enum soft_next helper_run(struct board *b, const uint8_t *bytes, unsigned len, uint32_t mode,
				 uint64_t rdi, uint64_t mask)
{
	struct insn insn;
	soft_helper fn;

	assert_int_equal(insn_decode(bytes, len, mode, &insn), 0);
	fn = fpu_helper_for(&insn);
	assert_non_null(fn);
	b->cpu->mode = mode;
	b->cpu->rip = 0x1000;
	b->cpu->gpr[X86_RDI] = rdi;
	b->cpu->gpr[X86_RAX] = (uint32_t)mask;
	b->cpu->gpr[X86_RDX] = mask >> 32;
	memset(&b->cpu->fault, 0, sizeof(b->cpu->fault));
	return fn(b->cpu, &insn);
}

static uint8_t *guest(struct board *b)
{
	return b->f->vm.memory.base + AT;
}

/* Both sides on b->in and on the bytes in guest memory at AT: what the CPU made of them is then in b->out and
 * b->area, what the helper made in b->in and in guest memory. */
static void run_both(struct board *b, const uint8_t *bytes, unsigned len, uint64_t mask,
		     enum pointers pointers)
{
	struct soft_cpu *cpu = b->cpu;
	uint8_t before[FX_MXCSR];
	oracle_fn fn;

	memcpy(before, guest(b), sizeof(before));
	memcpy(b->area, guest(b), AREA);
	memcpy(cpu->xsave, b->in, sizeof(cpu->xsave));
	bytes_set32(cpu->xsave + FX_MXCSR_MASK, bytes_get32(b->out + FX_MXCSR_MASK));
	/* the host's way of writing it: FCW and FSW as the FPU holds them */
	oracle_make(b, (const uint8_t[]){0x90}, 1);
	memcpy(&fn, &b->code, sizeof(fn));
	fn(b->area, 0, NULL, b->in, b->out);
	memcpy(cpu->xsave, b->out, sizeof(cpu->xsave));
	oracle_make(b, bytes, len);
	fn(b->area + b->operand, mask, NULL, b->in, b->out);
	assert_int_equal(helper_run(b, bytes, len, MODE64, AT + b->operand, mask), NEXT_GO);
	assert_int_equal(cpu->rip, 0x1000 + len);
	fpu_materialize(cpu, components(b));
	memcpy(b->in, cpu->xsave, sizeof(b->in));
	memcpy(cpu->xsave, b->out, sizeof(cpu->xsave));
	fpu_materialize(cpu, components(b));
	memcpy(b->out, cpu->xsave, sizeof(b->out));
	drop_pointers(b->in);
	drop_pointers(b->out);
	memset(b->in + XS_BV, 0, 64);
	memset(b->out + XS_BV, 0, 64);
	if (pointers == IN_ENVIRONMENT) {
		/* pointers: the last five fields of seven */
		unsigned at = bytes[0] == 0x66 ? 6 : 12, end = bytes[0] == 0x66 ? 14 : 26;

		memset(b->area + at, 0, end - at);
	} else if (pointers == IN_AREA && memcmp(before, guest(b), sizeof(before))) {
		/* x87 state was stored */
		drop_pointers(b->area);
	}
}

/* A component that holds initial values may become "in use" at any time: whoever interrupts the host CPU between its
 * XRSTOR and its XSAVE does that. What differs each time is a difference. */
static void compare(struct board *b, const uint8_t *bytes, unsigned len, uint64_t mask,
		    enum pointers pointers)
{
	static uint8_t in[sizeof(b->in)], area[AREA];

	memcpy(in, b->in, sizeof(in));
	memcpy(area, guest(b), AREA);
	for (unsigned attempt = 0; attempt < 5; attempt++) {
		memcpy(b->in, in, sizeof(in));
		memcpy(guest(b), area, AREA);
		run_both(b, bytes, len, mask, pointers);
		if (!memcmp(b->in, b->out, b->cpu->xsave_size) && !memcmp(b->area, guest(b), AREA))
			return;
	}
	assert_memory_equal(b->in, b->out, b->cpu->xsave_size);
	assert_memory_equal(b->area, guest(b), AREA);
}

static int setup(void **state)
{
	struct board *b = aligned_alloc(64, (sizeof(*b) + 63) & ~63ul);
	unsigned a, ebx, c, d;

	memset(b, 0, sizeof(*b));
	b->seed = 7;
	b->f = fixture_create();
	assert_int_equal(memory_create(&b->f->vm.memory, &b->f->vm, 4 << 20, false, false, NULL),
			 0);
	b->svm.vm = &b->f->vm;
	b->svm.ncpus = 1;
	b->svm.maxphyaddr = 46;
	b->svm.page_attr_size = 1024;
	b->svm.page_attr = calloc(1024, 1);
	for (unsigned i = 0; i < 8; i++) {
		__cpuid_count(0xd, i, a, ebx, c, d);
		cpuid_add(&b->f->vm.cpuid, 0xd, i, true, (struct cpuid_regs){a, ebx, c, d});
	}
	b->cpu = aligned_alloc(64, sizeof(*b->cpu));
	memset(b->cpu, 0, sizeof(*b->cpu));
	fpu_model(&b->svm, &b->f->vm.cpuid);
	b->cpu->svm = &b->svm;
	assert_int_equal(soft_tlb_init(b->cpu), 0);
	__cpuid_count(0xd, 0, a, ebx, c, d);
	b->cpu->xsave_mask = b->cpu->xcr0 = a & 0xe7;
	b->cpu->xsave_size = c < 4096 ? c : 4096;
	b->cpu->cr4 = X86_CR4_OSFXSR | X86_CR4_OSXSAVE;
	b->cpu->apic_page = ~0ull;
	for (unsigned i = 0; i < X86_SEGS; i++)
		b->cpu->seg[i] = (struct x86_seg){.limit = 0xffffffff, .attr = 0xc093};
	b->code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
	assert_ptr_not_equal(b->code, MAP_FAILED);
	b->area = aligned_alloc(4096, AREA);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct board *b = *state;

	munmap(b->code, 4096);
	free((void *)b->svm.page_attr);
	memory_destroy(&b->f->vm.memory);
	fixture_destroy(b->f);
	free(b->area);
	soft_tlb_fini(b->cpu);
	free(b->cpu);
	free(b);
	return 0;
}

static void fill(struct board *b)
{
	for (unsigned i = 0; i < AREA; i += 8)
		bytes_set64(guest(b) + i, rnd(b));
}

/* ---- FXSAVE, XSAVE ------------------------------------------------------------------------------------ */

static void test_saves(void **state)
{
	static const uint8_t insns[][4] = {
		{0x0f, 0xae, 0x07},	  /* fxsave [rdi] */
		{0x48, 0x0f, 0xae, 0x07}, /* fxsave64 */
		{0x0f, 0xae, 0x27},	  /* xsave */
		{0x48, 0x0f, 0xae, 0x27}, /* xsave64 */
		{0x0f, 0xae, 0x37},	  /* xsaveopt */
		{0x0f, 0xc7, 0x27},	  /* xsavec */
	};
	struct board *b = *state;

	for (unsigned round = 0; round < ROUNDS; round++) {
		for (unsigned i = 0; i < sizeof(insns) / sizeof(insns[0]); i++) {
			uint64_t mask = rnd(b) & 1 ? rnd(b) : ~0ull;

			fill(b);
			/* 13.4.2: software sees to it that the header is good */
			memset(guest(b) + XS_BV, 0, 64);
			bytes_set64(guest(b) + XS_BV, rnd(b) & components(b));
			random_state(b, b->in);
			compare(b, insns[i], insns[i][0] == 0x48 ? 4 : 3,
				i < 2 ? 1 : mask & components(b), IN_AREA);
		}
	}
}

static void test_restores(void **state)
{
	static const uint8_t fxrstor[] = {0x0f, 0xae, 0x0f}, xrstor[] = {0x48, 0x0f, 0xae, 0x2f};
	static const uint8_t xsavec[] = {0x0f, 0xc7, 0x27};
	struct board *b = *state;

	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t mask = rnd(b) & 1 ? rnd(b) : ~0ull;

		fill(b);
		random_state(b, guest(b));
		random_state(b, b->in);
		compare(b, xrstor, 4, mask & ~1ull & components(b), IN_AREA);
		random_state(b, guest(b));
		random_state(b, b->in);
		compare(b, xrstor, 4, 1, IN_AREA);
		random_state(b, guest(b));
		random_state(b, b->in);
		compare(b, fxrstor, 3, 1, IN_AREA);
		/* what XSAVEC wrote */
		random_state(b, b->in);
		memset(guest(b), 0, AREA);
		compare(b, xsavec, 3, rnd(b) & components(b), IN_AREA);
		random_state(b, b->in);
		compare(b, xrstor, 4, rnd(b) & components(b), IN_AREA);
	}
}

static void test_environment(void **state)
{
	static const uint8_t insns[][3] = {
		{0xd9, 0x37},			  /* fnstenv [rdi] */
		{0x66, 0xd9, 0x37},		  /* of 16 bits */
		{0xdd, 0x37},			  /* fnsave */
		{0x66, 0xdd, 0x37}, {0xd9, 0x27}, /* fldenv */
		{0x66, 0xd9, 0x27}, {0xdd, 0x27}, /* frstor */
		{0x66, 0xdd, 0x27},
	};
	struct board *b = *state;

	for (unsigned round = 0; round < ROUNDS; round++) {
		for (unsigned i = 0; i < sizeof(insns) / sizeof(insns[0]); i++) {
			fill(b);
			random_state(b, b->in);
			if (i >= 4)
				b->in[FX_FCW] |= 0x3f; /* nothing pending */
			compare(b, insns[i], insns[i][0] == 0x66 ? 3 : 2, 0,
				i < 4 ? IN_ENVIRONMENT : NOWHERE);
		}
	}
}

/* ---- masked stores and gathers ------------------------------------------------------------------------ */

static void test_masked_stores(void **state)
{
	static const uint8_t insns[][5] = {
		{0x66, 0x44, 0x0f, 0xf7, 0xcb}, /* maskmovdqu xmm9, xmm3 */
		{0x0f, 0xf7, 0xe6},		/* maskmovq mm4, mm6 */
		{0xc5, 0xf9, 0xf7, 0xd1},	/* vmaskmovdqu xmm2, xmm1 */
	};
	static const uint8_t len[] = {5, 3, 4};
	struct board *b = *state;

	for (unsigned round = 0; round < ROUNDS; round++) {
		for (unsigned i = 0; i < 3; i++) {
			fill(b);
			random_state(b, b->in);
			b->in[FX_FCW] |= 0x3f;
			compare(b, insns[i], len[i], 0, NOWHERE);
		}
	}
}

/* Indices of this register are small ones of this size, of either sign, so that the elements lie in the area. */
static void small_index(struct board *b, unsigned reg, bool qword)
{
	uint8_t *part[4];
	unsigned offset, size, n = 0;
	bool align;

	bytes_set64(b->in + XS_BV, components(b));
	part[n++] = b->in + FX_XMM + reg * 16;
	if (fpu_component(b->cpu, XC_AVX, &offset, &size, &align))
		part[n++] = b->in + offset + reg * 16;
	if (fpu_component(b->cpu, XC_ZMM_HI256, &offset, &size, &align)) {
		part[n++] = b->in + offset + reg * 32;
		part[n++] = b->in + offset + reg * 32 + 16;
	}
	for (unsigned i = 0; i < n; i++)
		for (unsigned at = 0; at < 16; at += qword ? 8 : 4) {
			if (qword)
				bytes_set64(part[i] + at, (rnd(b) & 0x1ff) - 0x100);
			else
				bytes_set32(part[i] + at, ((uint32_t)rnd(b) & 0x1ff) - 0x100);
		}
}

static void test_gathers(void **state)
{
	struct board *b = *state;
	bool evex = components(b) >> XC_HI16_ZMM & 1;

	b->operand = AREA / 2;
	for (unsigned round = 0; round < ROUNDS * 4; round++) {
		unsigned opcode = 0x90 + (rnd(b) & 3), wide = rnd(b) & 1, l = rnd(b) & 1;
		/* [rdi + v5 * 8], into v2 by mask v3 */
		uint8_t vex[6] = {0xc4, 0xe2, (uint8_t)(0x61 | wide << 7 | l << 2), (uint8_t)opcode,
				  0x14, 0xef};

		fill(b);
		random_state(b, b->in);
		small_index(b, 5, opcode & 1);
		compare(b, vex, 6, 0, NOWHERE);
	}
	for (unsigned round = 0; evex && round < ROUNDS * 4; round++) {
		unsigned opcode = 0x90 + (rnd(b) & 3) + (rnd(b) & 1) * 16, wide = rnd(b) & 1;
		unsigned l = rnd(b) % 3;
		/* v18 by mask k3 */
		uint8_t bytes[8] = {0x62,
				    0xe2,
				    (uint8_t)(0x7d | wide << 7),
				    (uint8_t)(0x08 | l << 5 | 3),
				    (uint8_t)opcode,
				    0x54,
				    0xef,
				    0xfe};

		fill(b);
		random_state(b, b->in);
		small_index(b, 5, opcode & 1);
		compare(b, bytes, 8, 0, NOWHERE);
	}
}

/* An element that faults: those before it are done and gone from the mask. */
static void test_gather_fault(void **state)
{
	static const uint8_t insn[] = {0xc4, 0xe2, 0xe1, 0x91, 0x14, 0xef}; /* vpgatherqq xmm2 */
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu;

	fill(b);
	random_state(b, cpu->xsave);
	fpu_modify(cpu, components(b));
	bytes_set64(cpu->xsave + FX_XMM + 5 * 16, 1);
	bytes_set64(cpu->xsave + FX_XMM + 5 * 16 + 8, 0x1000000000000000);
	bytes_set64(cpu->xsave + FX_XMM + 3 * 16, 1ull << 63);
	bytes_set64(cpu->xsave + FX_XMM + 3 * 16 + 8, 1ull << 63);
	bytes_set64(cpu->xsave + FX_XMM + 2 * 16 + 8, 0x1234);
	assert_int_equal(helper_run(b, insn, 6, MODE64, AT, 0), NEXT_FAULT);
	assert_int_equal(cpu->fault.vector, X86_GP);
	assert_int_equal(cpu->rip, 0x1000);
	assert_memory_equal(cpu->xsave + FX_XMM + 2 * 16, guest(b) + 8, 8);
	assert_int_equal(bytes_get64(cpu->xsave + FX_XMM + 2 * 16 + 8), 0x1234);
	assert_int_equal(bytes_get64(cpu->xsave + FX_XMM + 3 * 16), 0);
	assert_int_equal(bytes_get64(cpu->xsave + FX_XMM + 3 * 16 + 8) >> 63, 1);
}

/* ---- faults ------------------------------------------------------------------------------------------- */

static void expect(struct board *b, const uint8_t *bytes, unsigned len, uint64_t rdi,
		   uint8_t vector)
{
	uint8_t before[4096];

	memcpy(before, b->cpu->xsave, sizeof(before));
	assert_int_equal(helper_run(b, bytes, len, MODE64, rdi, ~0ull), NEXT_FAULT);
	assert_int_equal(b->cpu->fault.vector, vector);
	assert_int_equal(b->cpu->rip, 0x1000);
	assert_memory_equal(before, b->cpu->xsave, sizeof(before));
}

static void test_faults(void **state)
{
	static const uint8_t fxsave[] = {0x0f, 0xae, 0x07}, fxrstor[] = {0x0f, 0xae, 0x0f};
	static const uint8_t xsave[] = {0x0f, 0xae, 0x27}, xrstor[] = {0x0f, 0xae, 0x2f};
	struct board *b = *state;
	uint8_t *area = guest(b);

	random_state(b, b->cpu->xsave);
	memset(area, 0, AREA);
	expect(b, fxsave, 3, AT + 8, X86_GP);
	expect(b, fxrstor, 3, AT + 8, X86_GP);
	expect(b, xsave, 3, AT + 16, X86_GP);
	expect(b, xrstor, 3, AT + 16, X86_GP);
	expect(b, fxsave, 3, 0x0000800000000000, X86_GP);
	bytes_set32(area + FX_MXCSR, 0x80000000);
	expect(b, fxrstor, 3, AT, X86_GP);
	expect(b, xrstor, 3, AT, X86_GP);
	bytes_set32(area + FX_MXCSR, MXCSR_INIT);
	bytes_set64(area + XS_BV, 1ull << 40);
	expect(b, xrstor, 3, AT, X86_GP);
	bytes_set64(area + XS_BV, 1);
	bytes_set64(area + XS_XCOMP_BV, 1);
	expect(b, xrstor, 3, AT, X86_GP);
	bytes_set64(area + XS_XCOMP_BV, 1ull << 63); /* XSTATE_BV has more */
	expect(b, xrstor, 3, AT, X86_GP);
	bytes_set64(area + XS_XCOMP_BV, 0);
	area[XS_BV + 23] = 1;
	expect(b, xrstor, 3, AT, X86_GP);
	area[XS_BV + 23] = 0;
	b->cpu->cr0 = X86_CR0_EM;
	expect(b, fxsave, 3, AT, X86_NM);
	b->cpu->cr0 = X86_CR0_TS;
	expect(b, fxrstor, 3, AT + 8, X86_NM);
	expect(b, xsave, 3, AT + 8, X86_NM);
	b->cpu->cr4 = 0;
	expect(b, xrstor, 3, AT, X86_UD);
	b->cpu->cr0 = 0;
	assert_int_equal(helper_run(b, fxsave, 3, MODE64, AT, 0), NEXT_GO);
}

/* What the host leaves in last-instruction pointers never gets out, and a component that the guest's XCR0 lacks is
 * neither stored nor loaded. */
static void test_nothing_leaks(void **state)
{
	static const uint8_t xsave[] = {0x0f, 0xae, 0x27};
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu;

	random_state(b, cpu->xsave);
	fpu_modify(cpu, components(b));
	memset(cpu->xsave + FX_FOP, 0xaa, FX_MXCSR - FX_FOP);
	memset(guest(b), 0, AREA);
	cpu->xcr0 = 3;
	assert_int_equal(helper_run(b, xsave, 3, MODE64, AT, ~0ull), NEXT_GO);
	for (unsigned i = FX_FOP; i < FX_MXCSR; i++)
		assert_int_equal(guest(b)[i], 0);
	assert_int_equal(bytes_get64(guest(b) + XS_BV), 3);
	for (unsigned i = XS_EXTENDED; i < AREA; i++)
		assert_int_equal(guest(b)[i], 0);
	/* 32-bit code has eight registers */
	memset(guest(b), 0, AREA);
	assert_int_equal(helper_run(b, xsave, 3, MODE_PROT | MODE_CODE32, AT, ~0ull), NEXT_GO);
	assert_memory_equal(guest(b) + FX_XMM, cpu->xsave + FX_XMM, 128);
	for (unsigned i = FX_XMM + 128; i < XS_BV; i++)
		assert_int_equal(guest(b)[i], 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_saves, setup, teardown),
		cmocka_unit_test_setup_teardown(test_restores, setup, teardown),
		cmocka_unit_test_setup_teardown(test_environment, setup, teardown),
		cmocka_unit_test_setup_teardown(test_masked_stores, setup, teardown),
		cmocka_unit_test_setup_teardown(test_gathers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_gather_fault, setup, teardown),
		cmocka_unit_test_setup_teardown(test_faults, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_leaks, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
