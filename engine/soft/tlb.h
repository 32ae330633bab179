/*
 * Address-space slots and the tables of the inline TLB: internal to q_tlb.c, tlb.c and cache.c.
 *
 * A slot holds what one PCID (or, without PCIDs, the current address space) has cached for user mode. One more, KERNEL_SLOT,
 * has the tables of supervisor mode, for all address spaces: what comes from pages that are not global is dropped with
 * every switch (slot_drop_local), so that a kernel whose pages are global finds its translations and jumps in the next
 * process too. Dropping more than the architecture asks for is always right: INVLPG acts on all slots.
 */
#ifndef ENGINE_SOFT_TLB_H
#define ENGINE_SOFT_TLB_H

#include "engine/soft/cpu.h"

#define SLOTS 8		  /* of user mode */
#define KERNEL_SLOT SLOTS /* index in slot[] */
#define LOCAL_MAX 256
#define SLOT_NO_PAGING 0x1000u /* key; PCIDs are below */
#define FETCH_ENTRIES 256
#define CODE_PAGES 32768
#define LARGE_REGIONS 4096
/* A bit stands for so many entries: what is flushed is what was touched. */
#define TLB_GROUP 64
#define JUMP_GROUP 16
#define FAR_GROUP 64
#define TLB_WORDS (TLB_ENTRIES / TLB_GROUP / 64)
#define JUMP_WORDS (JUMP_ENTRIES / JUMP_GROUP / 64)
#define FAR_WORDS (FAR_ENTRIES / FAR_GROUP / 64)

/* Bits for page and region numbers. They alias: then more is dropped than need be, so user and kernel should not meet often. */
#define CODE_BIT(page) (((page) ^ (page) >> 17) & (CODE_PAGES - 1))
#define LARGE_BIT(region) ((region)*0x9e3779b97f4a7c15ull >> 52)

struct fetch_entry {
	uint64_t va;  /* page | 1 when valid */
	uint64_t gpa; /* page */
};

/*
 * Behind the jump caches, which are small for the sake of a short look-up in translated code: one table a vCPU, at
 * KNOWN_INDEX(rip). An entry holds while `epoch` is that of the slot and kind it was made in: a new epoch begins
 * whenever their jump cache is dropped.
 */
struct known_jump {
	uint64_t rip, epoch;
	struct soft_block *block;
	uint64_t unused; /* two entries a cache line */
};
#define KNOWN_ENTRIES 32768
#define KNOWN_INDEX(rip) (((rip) >> 1 ^ (rip) >> 16) & (KNOWN_ENTRIES - 1))
#define KNOWN_EPOCHS \
	((SLOTS + 1) * TLB_KINDS) /* epochs of a slot and kind are so far apart; 0 is nobody's */

/* Entries of a table that are not from global pages. */
struct local_entries {
	unsigned n; /* LOCAL_MAX: some are not in the list */
	uint32_t index[LOCAL_MAX];
};

struct soft_slot {
	struct soft_tlb *tlb[TLB_KINDS]; /* NULL: a kind that it does not have */
	/* A bit for each group of entries with anything in them: of rtag and wtag, of the jump cache, of `far`. */
	uint64_t touched[TLB_KINDS][TLB_WORDS], jtouched[TLB_KINDS][JUMP_WORDS];
	uint64_t ftouched[TLB_KINDS][FAR_WORDS];
	uint32_t jmode[TLB_KINDS]; /* what the jump cache is valid for */
	uint64_t jcs[TLB_KINDS];   /* .. the code segment: base, limit << 32, where it has any */
	uint64_t epoch[TLB_KINDS]; /* of struct known_jump */
	struct fetch_entry fetch[FETCH_ENTRIES];
	/* Of KERNEL_SLOT: what goes when the address space is switched; local_code: anything from `fetch` on, too. */
	struct local_entries local[TLB_KINDS];
	bool local_code;
	/* A bit for pages that anything in jump caches, `far` and `fetch` comes from, by CODE_BIT */
	uint64_t code_pages[CODE_PAGES / 64];
	/* A bit for regions of 4 MiB and 1 GiB that hold entries from large pages, by LARGE_BIT */
	uint64_t large2m[LARGE_REGIONS / 64], large1g[LARGE_REGIONS / 64];
	uint32_t key;
	bool used;
	uint64_t stamp; /* of the last switch to it */
};

struct soft_slots {
	struct known_jump known[KNOWN_ENTRIES]; /* first: at a page's start */
	struct soft_slot slot[SLOTS + 1];
	unsigned current; /* of user mode */
	uint64_t stamp;
};

/* svm->page_attr[], a byte for each page of RAM. */
#define PAGE_CODE 0x01u	   /* holds translated code: writes are looked at */
#define PAGE_WRITTEN 0x02u /* some vCPU may hold a write tag for it */
#define PAGE_DIRTY 0x04u   /* written since dirty_fetch() */
#define PAGE_LOGGED 0x08u  /* dirty logging is on */

/* The attribute byte of a guest page of RAM, or NULL. Quick. */
_Atomic uint8_t *page_attr(struct soft_vm *svm, uint64_t gpa);
/* Host address of [gpa, gpa + len) if it is all in one region; *writable: RAM, not ROM. Quick. */
uint8_t *guest_ptr(struct soft_vm *svm, uint64_t gpa, uint64_t len, bool *writable);

/* The same as this vCPU sees it: its local APIC's page is not memory. */
static inline uint8_t *cpu_ptr(struct soft_cpu *cpu, uint64_t gpa, uint64_t len, bool *writable)
{
	if ((gpa & ~0xfffull) == cpu->apic_page)
		return NULL;
	return guest_ptr(cpu->svm, gpa, len, writable);
}

/* Takes every write tag for the host page away. The vCPU does not run, or is the caller. Quick. */
void tlb_drop_writes(struct soft_cpu *cpu, const uint8_t *hva_page);
void tlb_flush_jumps(struct soft_cpu *cpu);
/* Bytes of memory that the tables of jumps take: they are the code cache's, not the TLB's. */
uint64_t tlb_jumps_resident(const struct soft_cpu *cpu);

static inline void soft_replay_clear(struct soft_cpu *cpu)
{
	cpu->replay.count = cpu->replay.next = 0;
	cpu->replay.block = NULL;
}

#endif
