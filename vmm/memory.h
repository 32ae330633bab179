/*
 * Guest-physical memory.
 *
 * RAM is one sealed memfd mapped shared once: up to 3 GiB from GPA 0, the rest from 4 GiB (bhyve's
 * split). ROM regions are read-only to the guest. Everything else is MMIO. The map is fixed before the
 * first guest instruction.
 *
 * Whoever on the host writes to guest memory (a loader, a device, io_uring) does so between
 * memory_write_begin() and memory_write_end(), or by memory_write(): the soft engine keeps translated
 * code of some pages and must hear of it. Reads need nothing.
 *
 * A GPA and a length from a guest are always checked here, as one range inside one region, wrap-around
 * included.
 */
#ifndef VMM_MEMORY_H
#define VMM_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define PAGE_SIZE 4096ull
#define MEMORY_LOW_MAX (3ull << 30) /* RAM below the PCI hole */
#define MEMORY_HIGH_BASE (4ull << 30)
#define MEMORY_MIN (1ull << 20)
#define MEMORY_MAX (1ull << 40)
#define MEMORY_REGIONS 8

struct vm;

enum memory_kind { MEMORY_RAM, MEMORY_ROM };

struct memory_region {
	uint64_t gpa, len; /* whole pages */
	uint8_t *hva;
	enum memory_kind kind;
	const char *name;
};

struct memory {
	struct vm *vm;
	int fd;		    /* the memfd of RAM */
	uint8_t *base;	    /* its one mapping */
	uint64_t size;	    /* bytes of RAM in all */
	uint64_t low, high; /* bytes below 3 GiB, bytes from 4 GiB */
	struct memory_region region[MEMORY_REGIONS];
	unsigned nregions;
};

/* Sizes are rounded up to pages. wired: mlock(2); in_core: part of core dumps. */
int memory_create(struct memory *mem, struct vm *vm, uint64_t size, bool wired, bool in_core,
		  struct error *err);
void memory_destroy(struct memory *mem);
/* A read-only region with a copy of `len` bytes; -EEXIST if it overlaps. */
int memory_add_rom(struct memory *mem, const char *name, uint64_t gpa, const void *bytes,
		   uint64_t len, struct error *err);

/* The region that holds all of [gpa, gpa + len), or NULL. */
const struct memory_region *memory_find(const struct memory *mem, uint64_t gpa, uint64_t len);
/* A pointer for reading, or NULL if the range is not all in one region. The guest may change the bytes
 * at any time: copy what is to be checked. */
const void *memory_read_ptr(const struct memory *mem, uint64_t gpa, uint64_t len);
/* Copies out; -EFAULT if any byte is not memory. */
int memory_read(const struct memory *mem, uint64_t gpa, void *out, uint64_t len);
/* Copies in; -EFAULT if any byte is not RAM (nothing is written then). */
int memory_write(struct memory *mem, uint64_t gpa, const void *in, uint64_t len);
/* A pointer for writing the whole range, NULL if it is not all RAM. The pages count as written from
 * begin to end; every begin needs its end, in any order and from any thread. */
void *memory_write_begin(struct memory *mem, uint64_t gpa, uint64_t len);
void memory_write_end(struct memory *mem, uint64_t gpa, uint64_t len);

/* How much of a mapping of this process, page-aligned, the host has memory for, in bytes. For statistics. */
uint64_t mapping_resident(const void *start, uint64_t len);

#endif
