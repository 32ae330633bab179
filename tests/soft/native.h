/*
 * The host CPU as the oracle: one instruction, executed in this process with all registers given, ended by a
 * trap. See diff.c.
 */
#ifndef TESTS_SOFT_NATIVE_H
#define TESTS_SOFT_NATIVE_H

#include <stdbool.h>
#include <stdint.h>

#define STATE_XSAVE 2816

/* What an instruction can change, but for memory. */
struct cpu_image {
	bool code32;	  /* 32-bit code in compatibility mode */
	uint64_t gpr[16]; /* encoding order */
	uint64_t rip, rflags;
	uint8_t xsave[STATE_XSAVE] __attribute__((aligned(64))); /* standard format */
	/* how it ended */
	int vector; /* -1: it ran to its end */
	uint64_t error, cr2;
};

/* Once a thread. 0, or -errno. */
int native_init(void);
/* Runs from image->rip with its registers until a trap; an INT3 at image->rip + len is the end. */
void native_run(struct cpu_image *image, unsigned len);
/* Bytes of xsave[] that the host uses. */
uint32_t native_xsave_size(void);
/* Where the host has component n >= 2; false if it has none, or behind the end of xsave[]. */
bool native_component(unsigned n, uint32_t *offset, uint32_t *size);

#endif
