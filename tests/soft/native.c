#include "native.h"

#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

/* The signal frame holds every register in a form that the kernel loads again on return: entering is returning
 * from a signal with the wanted registers, leaving is the signal that the instruction or the INT3 raises. */
static struct cpu_image *volatile image_now;
static unsigned length_now;
static ucontext_t outside;
static struct sigaction engine_action[64]; /* what the engine wants to hear of its own threads */
static _Thread_local int native_thread;
static uint8_t outside_fp[8192] __attribute__((aligned(64)));

static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
			      REG_RSI, REG_RDI, REG_R8,	 REG_R9,  REG_R10, REG_R11,
			      REG_R12, REG_R13, REG_R14, REG_R15};

uint32_t native_xsave_size(void)
{
	uint32_t offset, size, end = 576;

	/* Up to the last component that a guest is shown. The host may have more behind them (protection keys, tiles);
	 * the kernel's frame holds those too, and its second magic number, which must stay as they are. */
	for (unsigned i = 2; i < 8; i++)
		if (native_component(i, &offset, &size) && offset + size > end)
			end = offset + size;
	return end;
}

bool native_component(unsigned n, uint32_t *offset, uint32_t *size)
{
	uint32_t a, b, c, d;

	__cpuid_count(13, n, a, b, c, d);
	*offset = b;
	*size = a;
	return a && a <= STATE_XSAVE && b <= STATE_XSAVE - a;
}

#define CODE_32 0x23 /* Linux's own selectors for users */
#define DATA_32 0x2b

static void image_to_context(const struct cpu_image *image, ucontext_t *uc)
{
	uint8_t *fp = (uint8_t *)uc->uc_mcontext.fpregs;
	uint8_t software[48];

	for (unsigned i = 0; i < 16; i++)
		uc->uc_mcontext.gregs[order[i]] = (greg_t)image->gpr[i];
	uc->uc_mcontext.gregs[REG_RIP] = (greg_t)image->rip;
	uc->uc_mcontext.gregs[REG_EFL] = (greg_t)(image->rflags | 0x202);
	if (image->code32)
		uc->uc_mcontext.gregs[REG_CSGSFS] =
			(uc->uc_mcontext.gregs[REG_CSGSFS] & ~0xffffll) | CODE_32;
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
	memcpy(image->xsave, fp, native_xsave_size());
	memset(image->xsave + 464, 0, 48);
}

static void on_enter(int signo, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	(void)signo;
	(void)info;
	outside = *uc;
	memcpy(outside_fp, uc->uc_mcontext.fpregs, native_xsave_size());
	image_to_context(image_now, uc);
}

static void on_trap(int signo, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	struct cpu_image *image = image_now;
	uint64_t start;

	if (!native_thread && (engine_action[signo].sa_flags & SA_SIGINFO)) {
		engine_action[signo].sa_sigaction(signo, info, context);
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
	image_now = NULL;
	memcpy(uc->uc_mcontext.gregs, outside.uc_mcontext.gregs, sizeof(uc->uc_mcontext.gregs));
	memcpy(uc->uc_mcontext.fpregs, outside_fp, native_xsave_size());
}

int native_init(void)
{
	static const int traps[] = {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
	struct sigaction sa = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
	stack_t stack = {.ss_size = 256 * 1024};

	stack.ss_sp = mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			   -1, 0);
	if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL))
		return -errno;
	native_thread = 1;
	/* 64-bit code has null selectors there and needs none; 32-bit code does. */
	__asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"(DATA_32));
	sigfillset(&sa.sa_mask);
	sa.sa_sigaction = on_trap;
	for (unsigned i = 0; i < sizeof(traps) / sizeof(traps[0]); i++)
		if (sigaction(traps[i], &sa, &engine_action[traps[i]]))
			return -errno;
	sa.sa_sigaction = on_enter;
	return sigaction(SIGUSR2, &sa, NULL) ? -errno : 0;
}

void native_run(struct cpu_image *image, unsigned len)
{
	length_now = len;
	image_now = image;
	raise(SIGUSR2);
}
