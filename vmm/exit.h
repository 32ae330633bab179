/*
 * Why an engine gave a vCPU back. An engine fills one `struct vm_exit` each time vcpu_run() returns,
 * always at an instruction boundary, and finishes the instruction (stores what an IN or an MMIO read
 * fetched, raises #GP for a refused MSR) when the vCPU is next run or its state is next read.
 */
#ifndef VMM_EXIT_H
#define VMM_EXIT_H

#include <stdbool.h>
#include <stdint.h>

enum exit_code {
	EXIT_INOUT, /* IN, OUT, INS, OUTS, with or without REP */
	EXIT_MMIO,  /* an access to guest-physical space with no memory behind it */
	EXIT_RDMSR, /* an MSR that the engine does not keep itself */
	EXIT_WRMSR,
	EXIT_HLT, /* HLT, for engines that park halted vCPUs in the run loop */
	EXIT_PAUSE,
	EXIT_MTRAP,	/* one instruction was single-stepped on the monitor's request */
	EXIT_DEBUG,	/* a guest breakpoint that the monitor asked for */
	EXIT_SPINUP_AP, /* `target` was sent a SIPI (engines that leave AP start to the monitor) */
	EXIT_SPINDOWN_CPU, /* this vCPU went into wait-for-SIPI by INIT */
	EXIT_IOAPIC_EOI,   /* EOI of a vector that a level-triggered I/O APIC pin uses */
	EXIT_IRQ_WINDOW,   /* an external interrupt can be taken now */
	EXIT_BOGUS,	   /* nothing: the vCPU was kicked */
	EXIT_SHUTDOWN, /* triple fault; the state is that of the moment, as far as the engine has kept it */
	EXIT_FAIL, /* the engine cannot go on; `fail` says why */
	EXIT_CODES
};

/* "inout", "mmio" ...: the names in statistics and dumps. */
const char *exit_name(enum exit_code code);

/* What the run loop does after a handler (bhyve's verdicts). */
enum exit_verdict {
	VERDICT_CONTINUE, /* the instruction is done; go on with the next */
	VERDICT_RESTART,  /* execute the same instruction again */
	VERDICT_RESET,
	VERDICT_POWEROFF,
	VERDICT_HALT,
	VERDICT_ABORT, /* dump the vCPU and end the VM with status 4 */
};

struct vm_exit {
	enum exit_code code;
	uint64_t rip;	  /* of the exiting instruction if the engine knows it, else of the next */
	uint8_t inst_len; /* 0: unknown */
	union {
		struct {
			uint16_t port;
			uint8_t size; /* 1, 2 or 4 */
			bool in;
			bool string;
			uint32_t count; /* REP iterations in this exit, at least 1 */
			/* count * size bytes in the order of execution, the engine's memory, valid until the
			 * next vcpu_run(); the handler fills it for IN and reads it for OUT. */
			uint8_t *data;
		} inout;
		struct {
			uint64_t gpa;
			uint8_t size; /* 1 to 8; wider accesses come in pieces */
			bool write;
			uint64_t value; /* zero-extended; the handler stores it for reads */
		} mmio;
		struct {
			uint32_t index;
			uint64_t value; /* WRMSR: EDX:EAX; RDMSR: the handler stores it */
			bool fault;	/* the handler sets it: raise #GP(0) instead */
		} msr;
		struct {
			unsigned target; /* vCPU index */
			uint8_t vector;	 /* start at vector << 12 */
		} spinup;
		struct {
			uint8_t vector;
		} eoi;
		struct {
			uint64_t hw_reason; /* the engine's own number, 0 if none */
			char text[160];	    /* what happened, for a person */
		} fail;
	};
};

#endif
