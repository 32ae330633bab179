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

#include "diff.h"

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
#define G_CODE 0x100000ull
#define G_DATA 0x102000ull
#define G_RODATA 0x104000ull
#define MEMORY (4ull << 20)
#define NX (1ull << 63)
#define END_PORT 0xf0

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
