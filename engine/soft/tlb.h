/*
 * Address-space slots and the tables of the inline TLB: internal to q_tlb.c, tlb.c and cache.c.
 *
 * A slot holds what one PCID (or, without PCIDs, the current address space) has cached, for each kind of
 * access rights. Dropping more than the architecture asks for is always right, so global entries are not
 * told apart: INVLPG acts on all slots.
 */
#ifndef ENGINE_SOFT_TLB_H
#define ENGINE_SOFT_TLB_H

#include "engine/soft/cpu.h"

#define SLOTS 8
#define SLOT_NO_PAGING 0x1000u /* key; PCIDs are below */
#define FETCH_ENTRIES 256
#define CODE_PAGES 4096
#define LARGE_REGIONS 512
#define FAR_GROUP (FAR_ENTRIES / 64)

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
	(SLOTS * TLB_KINDS) /* epochs of a slot and kind are so far apart; 0 is nobody's */

struct soft_slot {
	struct soft_tlb *tlb[TLB_KINDS];
	uint64_t touched[TLB_KINDS];  /* a bit for each 64 entries with anything in rtag or wtag */
	uint64_t jtouched[TLB_KINDS]; /* the same for the jump cache */
	uint64_t ftouched[TLB_KINDS]; /* .. and for each FAR_GROUP of `far` */
	uint32_t jmode[TLB_KINDS];    /* what the jump cache is valid for */
	uint64_t jcs[TLB_KINDS];      /* .. the code segment: base, limit << 32, where it has any */
	uint64_t epoch[TLB_KINDS];    /* of struct known_jump */
	struct fetch_entry fetch[2][FETCH_ENTRIES]; /* supervisor, user */
	/* A bit for pages that anything in jump caches, `far` and `fetch` comes from, by number modulo CODE_PAGES */
	uint64_t code_pages[CODE_PAGES / 64];
	/* A bit for regions of 4 MiB and 1 GiB that hold entries from large pages, by number modulo LARGE_REGIONS */
	uint64_t large2m[LARGE_REGIONS / 64], large1g[LARGE_REGIONS / 64];
	uint32_t key;
	bool used;
	uint64_t stamp; /* of the last switch to it */
};

struct soft_slots {
	struct soft_slot slot[SLOTS];
	unsigned current;
	enum tlb_kind kind;
	uint64_t stamp;
	struct known_jump known[KNOWN_ENTRIES];
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

static inline void soft_replay_clear(struct soft_cpu *cpu)
{
	cpu->replay.count = cpu->replay.next = 0;
}

#endif
