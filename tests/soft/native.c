#include "native.h"

#include <asm/ldt.h>
#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define CODE_64 0x33 /* Linux's own selectors for users */
#define CODE_32 0x23
#define DATA_32 0x2b
#define HWCAP2_FSGSBASE 2
#define LDT(n) ((n) << 3 | 7)
#define XSAVE_COMPONENTS 8

/* rt_sigaction(2)'s own: nobody's wrapper, like a sanitizer's, is to run C before FS is right again. */
struct kernel_sigaction {
	void (*handler)(int, siginfo_t *, void *);
	unsigned long flags;
	void (*restorer)(void);
	uint64_t mask;
};
#define SA_RESTORER 0x04000000ul

/* The segment registers that the kernel's signal frame leaves alone, and bases for 64-bit code. The assembly
 * below knows the order. */
struct selectors {
	uint16_t ds, es, fs, gs;
	uint64_t fs_base, gs_base;
};

/* The signal frame holds every register in a form that the kernel loads again on return: entering is returning
 * from a signal with the wanted registers, leaving is the signal that the instruction or the INT3 raises. */
static struct cpu_image *volatile native_image __attribute__((used));
static struct selectors native_load __attribute__((used));
static struct selectors native_saved __attribute__((used));
static uint64_t native_own_fs __attribute__((used)); /* where this thread's variables are */
static unsigned length_now;
static bool have_bases, have_ldt;
static uint32_t xsave_end;
static struct {
	uint32_t offset, size;
} component[XSAVE_COMPONENTS];
static ucontext_t outside;
static struct kernel_sigaction engine_action[64]; /* what the engine wants to hear while it runs */
static uint8_t outside_fp[STATE_XSAVE] __attribute__((aligned(64)));

static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
			      REG_RSI, REG_RDI, REG_R8,	 REG_R9,  REG_R10, REG_R11,
			      REG_R12, REG_R13, REG_R14, REG_R15};

/* C wants its FS, and EFLAGS.AC clear (NT and ID too, which the kernel would keep): what the kernel leaves as it was is changed after the last C of the way in
 * and before the first of the way out. Only one thread runs images. */
void native_enter_signal(int signo, siginfo_t *info, void *context);
void native_trap_signal(int signo, siginfo_t *info, void *context);
void native_enter(int signo, siginfo_t *info, void *context);
void native_trap(int signo, siginfo_t *info, void *context);
void native_restorer(void);
__asm__(".text\n"
	"native_enter_signal:\n"
	"	sub $8, %rsp\n"
	"	call native_enter\n"
	"	add $8, %rsp\n"
	"	lea native_load(%rip), %rdx\n"
	"	mov (%rdx), %ds\n"
	"	mov 2(%rdx), %es\n"
	"	cmpb $0, have_bases(%rip)\n"
	"	je 1f\n"
	"	mov 4(%rdx), %fs\n"
	"	mov 6(%rdx), %gs\n"
	"	cmpw $0, 4(%rdx)\n"
	"	jne 1f\n"
	"	mov 8(%rdx), %rax\n"
	"	.byte 0xf3, 0x48, 0x0f, 0xae, 0xd0\n" /* wrfsbase rax */
	"	mov 16(%rdx), %rax\n"
	"	.byte 0xf3, 0x48, 0x0f, 0xae, 0xd8\n" /* wrgsbase rax */
	"1:	ret\n"
	"native_trap_signal:\n"
	"	pushfq\n"
	"	andl $0xffdbbfff, (%rsp)\n"
	"	popfq\n"
	"	cmpq $0, native_image(%rip)\n"
	"	je 1f\n"
	"	cmpb $0, have_bases(%rip)\n"
	"	je 1f\n"
	"	lea native_saved(%rip), %rcx\n"
	"	.byte 0xf3, 0x48, 0x0f, 0xae, 0xc0\n" /* rdfsbase rax */
	"	mov %rax, 8(%rcx)\n"
	"	.byte 0xf3, 0x48, 0x0f, 0xae, 0xc8\n" /* rdgsbase rax */
	"	mov %rax, 16(%rcx)\n"
	"	xor %eax, %eax\n"
	"	mov %eax, %fs\n"
	"	mov %eax, %gs\n"
	"	mov native_own_fs(%rip), %rax\n"
	"	.byte 0xf3, 0x48, 0x0f, 0xae, 0xd0\n"
	"1:	jmp native_trap\n"
	"native_restorer:\n"
	"	mov $15, %eax\n" /* rt_sigreturn */
	"	syscall\n");

uint32_t native_xsave_size(void)
{
	return xsave_end;
}

bool native_component(unsigned n, uint32_t *offset, uint32_t *size)
{
	*offset = component[n].offset;
	*size = component[n].size;
	return *size && *size <= STATE_XSAVE && *offset <= STATE_XSAVE - *size;
}

/* CPUID is dear where it leaves a virtual machine: it is asked once. */
static void xsave_layout(void)
{
	uint32_t a, b, c, d;

	/* Up to the last component that a guest is shown. The host may have more behind them (protection keys, tiles);
	 * the kernel's frame holds those too, and its second magic number, which must stay as they are. */
	xsave_end = 576;
	for (unsigned i = 2; i < XSAVE_COMPONENTS; i++) {
		uint32_t offset, size;

		__cpuid_count(13, i, a, b, c, d);
		component[i].offset = b;
		component[i].size = a;
		if (native_component(i, &offset, &size) && offset + size > xsave_end)
			xsave_end = offset + size;
	}
}

/* ---- segments ------------------------------------------------------------------------------------------- */

#define FLAT(sel, attr)              \
	{                            \
		0, ~0u, sel, attr, 0 \
	}

/* The local descriptor table, by index. The data lies in the middle of windows of 64 KiB, so that 16-bit addresses
 * reach what is mapped and what is not; one ends within it, one is read-only, one begins off a page. */
static const struct x86_seg ldt[] = {
	{CODE, 0xffff, LDT(0), 0x00fb, 0},	    {CODE, 0xffff, LDT(1), 0x40fb, 0},
	{DATA - 0x8000, 0xffff, LDT(2), 0x00f3, 0}, {DATA - 0x7ff0, 0x97e5, LDT(3), 0x00f3, 0},
	{DATA - 0x4000, 0xffff, LDT(4), 0x00f1, 0}, {DATA, 0x1fff, LDT(5), 0x40f3, 0},
};

static const uint8_t ldt_of[X86_SEGS] = {
	[X86_ES] = 3, [X86_CS] = 0, [X86_SS] = 2, [X86_DS] = 2, [X86_FS] = 4, [X86_GS] = 5};

struct x86_seg native_segment(enum native_kind kind, enum x86_segreg seg)
{
	static const struct x86_seg code64 = FLAT(CODE_64, 0xa0fb), code32 = FLAT(CODE_32, 0xc0fb),
				    data = FLAT(DATA_32, 0xc0f3), none = FLAT(0, 0xc0f3);
	bool fs_gs = seg == X86_FS || seg == X86_GS;

	if (kind == KIND_64)
		return seg == X86_CS ? code64 : fs_gs ? none : data;
	if (kind == KIND_32 && !fs_gs)
		return seg == X86_CS ? code32 : data;
	if (kind == KIND_32 && !have_ldt)
		return data;
	if (seg == X86_CS)
		return ldt[kind == KIND_16 ? 0 : 1];
	return ldt[ldt_of[seg]];
}

static bool ldt_make(void)
{
	for (unsigned i = 0; i < sizeof(ldt) / sizeof(ldt[0]); i++) {
		const struct x86_seg *s = &ldt[i];
		struct user_desc d = {.entry_number = i,
				      .base_addr = (unsigned)s->base,
				      .limit = s->limit,
				      .seg_32bit = s->attr >> 14 & 1,
				      .contents = s->attr & 8 ? 2 : 0,
				      .read_exec_only = s->attr & 2 ? 0 : 1,
				      .useable = 1};

		if (syscall(SYS_modify_ldt, 1, &d, sizeof(d)))
			return false;
	}
	return true;
}

bool native_has(enum native_kind kind)
{
	switch (kind) {
	case KIND_16:
	case KIND_32_BASED:
		return have_ldt && have_bases;
	default:
		return true;
	}
}

/* ---- in and out ----------------------------------------------------------------------------------------- */

static void image_to_context(const struct cpu_image *image, ucontext_t *uc)
{
	uint8_t *fp = (uint8_t *)uc->uc_mcontext.fpregs;
	uint64_t cs = native_segment(image->kind, X86_CS).sel,
		 ss = native_segment(image->kind, X86_SS).sel;
	uint8_t software[48];

	for (unsigned i = 0; i < 16; i++)
		uc->uc_mcontext.gregs[order[i]] = (greg_t)image->gpr[i];
	uc->uc_mcontext.gregs[REG_RIP] = (greg_t)image->rip;
	uc->uc_mcontext.gregs[REG_EFL] = (greg_t)(image->rflags | 0x202);
	uc->uc_mcontext.gregs[REG_CSGSFS] =
		(greg_t)(((uint64_t)uc->uc_mcontext.gregs[REG_CSGSFS] & 0xffffffff0000ull) | cs |
			 ss << 48);
	/* Bytes 464 to 511 are the kernel's own description of the frame. */
	memcpy(software, fp + 464, 48);
	memcpy(fp, image->xsave, native_xsave_size());
	memcpy(fp + 464, software, 48);
}

static void context_to_image(const ucontext_t *uc, struct cpu_image *image)
{
	const uint8_t *fp = (const uint8_t *)uc->uc_mcontext.fpregs;

	for (unsigned i = 0; i < 16; i++)
		image->gpr[i] = (uint64_t)uc->uc_mcontext.gregs[order[i]];
	image->rip = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
	image->rflags = (uint64_t)uc->uc_mcontext.gregs[REG_EFL];
	if (image->kind == KIND_64 && have_bases) {
		image->fs_base = native_saved.fs_base;
		image->gs_base = native_saved.gs_base;
	}
	memcpy(image->xsave, fp, native_xsave_size());
	memset(image->xsave + 464, 0, 48);
}

void native_enter(int signo, siginfo_t *info, void *context)
{
	const struct cpu_image *image = native_image;
	ucontext_t *uc = context;

	(void)signo;
	(void)info;
	outside = *uc;
	memcpy(outside_fp, uc->uc_mcontext.fpregs, native_xsave_size());
	image_to_context(image, uc);
	native_load = (struct selectors){.ds = native_segment(image->kind, X86_DS).sel,
					 .es = native_segment(image->kind, X86_ES).sel,
					 .fs = native_segment(image->kind, X86_FS).sel,
					 .gs = native_segment(image->kind, X86_GS).sel,
					 .fs_base = image->fs_base,
					 .gs_base = image->gs_base};
}

void native_trap(int signo, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	struct cpu_image *image = native_image;
	uint64_t start;

	if (!image && (engine_action[signo].flags & SA_SIGINFO)) {
		engine_action[signo].handler(signo, info, context);
		return;
	}
	if (!image) {
		signal(signo, SIG_DFL);
		return;
	}
	start = image->rip;
	context_to_image(uc, image);
	image->vector = (int)uc->uc_mcontext.gregs[REG_TRAPNO];
	image->error = (uint64_t)uc->uc_mcontext.gregs[REG_ERR];
	image->cr2 = (uint64_t)uc->uc_mcontext.gregs[REG_CR2];
	if (image->vector == 3 && image->rip == start + length_now + 1) {
		image->vector = -1;
		image->rip--;
	}
	native_image = NULL;
	memcpy(uc->uc_mcontext.gregs, outside.uc_mcontext.gregs, sizeof(uc->uc_mcontext.gregs));
	memcpy(uc->uc_mcontext.fpregs, outside_fp, native_xsave_size());
}

int native_init(void)
{
	static const int traps[] = {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
	struct kernel_sigaction sa = {.handler = native_trap_signal,
				      .flags = SA_SIGINFO | SA_ONSTACK | SA_RESTORER,
				      .restorer = native_restorer,
				      .mask = ~0ull};
	sigset_t enter;
	stack_t stack = {.ss_size = 256 * 1024};

	stack.ss_sp = mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			   -1, 0);
	if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL))
		return -errno;
	xsave_layout();
	have_bases = getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE;
	have_ldt = ldt_make();
	if (have_bases)
		__asm__ volatile(".byte 0xf3, 0x48, 0x0f, 0xae, 0xc0" : "=a"(native_own_fs));
	for (unsigned i = 0; i < sizeof(traps) / sizeof(traps[0]); i++)
		if (syscall(SYS_rt_sigaction, traps[i], &sa, &engine_action[traps[i]], 8))
			return -errno;
	sa.handler = native_enter_signal;
	if (syscall(SYS_rt_sigaction, SIGUSR2, &sa, NULL, 8))
		return -errno;
	sigemptyset(&enter);
	sigaddset(&enter, SIGUSR2);
	return pthread_sigmask(SIG_UNBLOCK, &enter, NULL) ? -EINVAL : 0;
}

void native_run(struct cpu_image *image, unsigned len)
{
	length_now = len;
	native_image = image;
	raise(SIGUSR2);
}
