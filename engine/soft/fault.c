/*
 * Host signals that translated code raises. The guest's own instruction faulted on the host CPU, with the
 * registers where cpu.h says: the handler finds out which instruction it was and resumes in a thunk that
 * delivers the exception to the guest. Any other fault is skep's own and ends the process as usual.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "engine/soft/cache.h"
#include "engine/soft/translate.h"

#define ALTSTACK_SIZE (64 * 1024)

/* The vCPU of this thread, for the handler, which has no other argument. */
static _Thread_local struct soft_cpu *fault_cpu;
static _Thread_local void *fault_stack;

static const int fault_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};

static const struct block_pc *pc_find(const struct soft_block *block, uint32_t host)
{
	const struct block_pc *found = NULL;

	for (unsigned i = 0; i < block->npcs && block->pcs[i].host <= host; i++)
		found = &block->pcs[i];
	return found;
}

/* Guest registers whose host registers hold something else at this place. */
static void registers_back(const struct soft_cpu *cpu, const struct soft_block *block,
			   uint16_t flags, greg_t *reg)
{
	static const int ucontext_reg[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
					     REG_RSI, REG_RDI, REG_R8,	REG_R9,	 REG_R10, REG_R11,
					     REG_R12, REG_R13, REG_R14, REG_R15};

	if (flags & PC_BORROWED)
		reg[ucontext_reg[flags & 15]] = (greg_t)cpu->scratch[0];
	for (unsigned host = 0; (flags & PC_LOOP) && host < 16; host++)
		if (block->loop_pointers >> host & 1)
			reg[ucontext_reg[host]] = (greg_t)cpu->gpr[host == H_R11 ? X86_RCX : host];
}

/* Trap numbers of the host kernel are the CPU's vectors. #PF cannot come from a checked access: not ours. */
static bool fault_to_guest(struct soft_cpu *cpu, greg_t *reg)
{
	uint8_t *pc = (uint8_t *)(uintptr_t)reg[REG_RIP];
	const struct soft_block *block = block_at(cpu->svm, pc);
	const struct block_pc *at;
	unsigned vector = (unsigned)reg[REG_TRAPNO];

	if (!block)
		return false;
	at = pc_find(block, (uint32_t)(pc - (cpu->svm->code_rx + block->start)));
	if (!at)
		return false;
	switch (vector) {
	case X86_DE:
	case X86_UD:
	case X86_MF:
	case X86_XM:
		soft_raise(cpu, (uint8_t)vector);
		break;
	case X86_GP:
	case X86_SS_FAULT:
		soft_raise_error(cpu, X86_GP, 0);
		break;
	default:
		return false;
	}
	if (vector == X86_XM && !(cpu->mode & MODE_OSXMMEX))
		cpu->fault.vector = X86_UD;
	registers_back(cpu, block, at->flags, reg);
	cpu->rip = cpu->page_rip + (block->key.gpa & 0xfff) + at->guest;
	if (!(block->key.mode & MODE_CODE64))
		cpu->rip = (uint32_t)cpu->rip;
	reg[REG_RSP] = (greg_t)((uintptr_t)cpu + SOFT_RSP_BIAS);
	reg[REG_RIP] = (greg_t)(uintptr_t)soft_stub_fault;
	return true;
}

static void fault_handler(int signo, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	(void)info;
	if (fault_cpu && fault_to_guest(fault_cpu, uc->uc_mcontext.gregs))
		return;
	/* Not the guest's: let it happen again with nobody watching. */
	signal(signo, SIG_DFL);
}

int fault_install(void)
{
	struct sigaction action = {.sa_sigaction = fault_handler,
				   .sa_flags = SA_SIGINFO | SA_ONSTACK};

	sigfillset(&action.sa_mask);
	for (unsigned i = 0; i < sizeof(fault_signals) / sizeof(fault_signals[0]); i++)
		if (sigaction(fault_signals[i], &action, NULL))
			return -errno;
	return 0;
}

int fault_thread_enter(struct soft_cpu *cpu)
{
	stack_t stack = {.ss_size = ALTSTACK_SIZE};
	sigset_t set;

	fault_stack = mmap(NULL, ALTSTACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			   -1, 0);
	if (fault_stack == MAP_FAILED)
		return -errno;
	stack.ss_sp = fault_stack;
	if (sigaltstack(&stack, NULL))
		return -errno;
	sigemptyset(&set);
	for (unsigned i = 0; i < sizeof(fault_signals) / sizeof(fault_signals[0]); i++)
		sigaddset(&set, fault_signals[i]);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	fault_cpu = cpu;
	return 0;
}

void fault_thread_leave(void)
{
	stack_t stack = {.ss_flags = SS_DISABLE};

	fault_cpu = NULL;
	sigaltstack(&stack, NULL);
	if (fault_stack)
		munmap(fault_stack, ALTSTACK_SIZE);
	fault_stack = NULL;
}
