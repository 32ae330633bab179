/*
 * The host CPU as the oracle: one instruction, executed in this process with all registers given, ended by a
 * trap. See diff.c.
 */
#ifndef TESTS_SOFT_NATIVE_H
#define TESTS_SOFT_NATIVE_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/x86.h"

#define STATE_XSAVE 2816

/* Linear addresses: code of one page; data of two pages and one that is read-only; nothing mapped around them. */
#define CODE 0x10000000ull
#define DATA 0x20000000ull
#define DATA_SIZE 0x2000ull
#define RODATA (DATA + DATA_SIZE)
#define RODATA_END (RODATA + 0x1000)

/* What code it is, and in which segments. */
enum native_kind {
	KIND_64,
	KIND_32,       /* flat, as Linux has them, but for FS and GS */
	KIND_16,       /* segments with bases and limits (modify_ldt(2)), a 16-bit stack */
	KIND_32_BASED, /* 32-bit code in the same */
	KINDS
};

/* A segment of a kind, hidden part included; FS and GS of KIND_64 have their bases in struct cpu_image. */
struct x86_seg native_segment(enum native_kind kind, enum x86_segreg seg);

/* What an instruction can change, but for memory. */
struct cpu_image {
	enum native_kind kind;
	uint64_t gpr[16]; /* encoding order */
	uint64_t rip, rflags;
	uint64_t fs_base, gs_base;				 /* KIND_64 */
	uint8_t xsave[STATE_XSAVE] __attribute__((aligned(64))); /* standard format */
	/* how it ended */
	int vector; /* -1: it ran to its end */
	uint64_t error, cr2;
};

/* On the thread that will run images, which may be a vCPU's: the engine gets its signals still. 0, or -errno. */
int native_init(void);
/* Is there what this kind needs: modify_ldt(2), FSGSBASE? */
bool native_has(enum native_kind kind);
/* Runs from image->rip with its registers until a trap; an INT3 at image->rip + len is the end. */
void native_run(struct cpu_image *image, unsigned len);
/* Bytes of xsave[] that the host uses. */
uint32_t native_xsave_size(void);
/* Where the host has component n, 2 to 7; false if it has none, or behind the end of xsave[]. */
bool native_component(unsigned n, uint32_t *offset, uint32_t *size);

#endif
