/*
 * Translated code: its memory, the table of blocks, and what keeps it true to the guest's bytes.
 *
 * One cache a VM, shared by its vCPUs. Code memory is shared memory mapped twice: written through `rw`,
 * executed through `rx` (W^X). When it is full everything is thrown away at a safepoint.
 *
 * Of each block what is executed as a rule and what is not (misses, ways out that are not linked) lie apart, the first from
 * the start of code memory, the second from svm->cold on: what the CPU's caches hold should be executed. At svm->cold itself
 * are jumps to entry.S's thunks, of CODE_STUB_SIZE bytes each, for both: shorter than an indirect one.
 *
 * Threads: translation, insertion and invalidation run under svm->lock; look-up (block_find) takes no
 * lock. Blocks are freed only when the whole cache is thrown away, with every vCPU outside translated
 * code (a safepoint); an invalidated block stays in memory until then, its entries patched to leave.
 */
#ifndef ENGINE_SOFT_CACHE_H
#define ENGINE_SOFT_CACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/soft/cpu.h"
#include "engine/soft/native.h"
#include "engine/soft/q_lock.h"
#include "engine/soft/time.h"

#define CACHE_DEFAULT (64ull << 20)
#define CACHE_MIN (256ull << 10)
#define BLOCK_CODE_MAX 32768 /* host bytes of one block at most, and as many cold ones */
#define CODE_STUB_SIZE 16

struct block_key {
	uint64_t gpa;  /* of the first instruction */
	uint32_t mode; /* MODE_* */
	/* With MODE_FLAT or in 64-bit code 0; else CS base and limit, as limits are checked at translation. */
	uint64_t cs_base;
	uint32_t cs_limit;
};

/* host offset -> guest offset, ascending; the entry with the greatest host <= pc is the instruction. */
struct block_pc {
	uint32_t host;	/* from block->start; the cold ones are behind all others */
	uint16_t guest; /* from block->key.gpa */
	uint16_t flags; /* BLOCK_PC_*: see translate.c */
};

/* A direct jump that leads to (or may be patched to lead to) another block. entry.S knows `target` and `tries`. */
struct block_link {
	struct soft_block *from, *to; /* `to` NULL: not linked */
	struct block_link *next_in;   /* list of links into `to` */
	uint32_t
		patch; /* offset in code memory of the rel32, which is within eight aligned bytes */
	uint32_t unlinked; /* code offset of the exit it jumps to when not linked */
	int32_t target;	   /* page offset of the target; beyond the page if far */
	uint8_t tries; /* so many times by the jump cache, but the last: then dispatch tries to link it */
	/* Far: to another page, or to an instruction that may reach over the edge of its own. It is taken while
	 * soft_tlb.far[far_entry] says that the pages are still what they were; the number, 1 to 4095, tells it from
	 * others that have the same entry, and is 0 if it cannot be linked. */
	bool far;
	bool plain; /* to a block with MODE_PLAIN */
	uint16_t far_number;
	uint32_t far_entry;
	const struct soft_block
		*was; /* what it led to last: far entries speak of that block's pages */
};

_Static_assert(offsetof(struct block_link, target) == 32, "entry.S");
_Static_assert(offsetof(struct block_link, tries) == 36, "entry.S");

/* One guest page that a block has code on: in the list of blocks of that page. */
struct page_node {
	uint64_t page; /* GPA >> 12 */
	struct soft_block *block;
	struct page_node *next;
};

struct soft_block {
	struct block_key key;
	struct soft_block *_Atomic hash_next;
	struct page_node page[2];
	uint64_t gpa2; /* guest page of the bytes behind the page edge, ~0 if none */
	uint16_t len;  /* guest bytes, at least 1 */
	uint16_t ninsns;
	uint16_t npcs;
	uint8_t nlinks;
	_Atomic bool valid;
	uint16_t loop_pointers; /* translate.h: PC_LOOP */
	uint32_t start;		/* offset in code memory of its first byte */
	uint32_t code;		/* .. of its `cross` entry */
	uint32_t local;		/* .. of its `local` entry */
	uint32_t unchecked;	/* .. of what follows that entry's look at run_ok */
	uint32_t loop;		/* .. of its loop's unchecked iterations, 0: none (translate.h) */
	uint32_t code_len;	/* from `start` */
	uint32_t cold, cold_len;
	struct block_pc *pcs;
	struct block_link *links;
	struct block_link *in; /* links that lead here */
};

#define SOFT_COMPONENTS 8

/* Where a component of vector state lies in XSAVE's standard format; size 0: the model has not got it. */
struct soft_component {
	uint16_t offset, size;
	bool align; /* in the compacted format */
};

struct soft_cache; /* cache.c */

struct soft_vm {
	struct vm *vm;
	struct soft_lock lock; /* q_lock.h: may be taken by quick code */
	uint8_t *code_rw, *code_rx;
	uint64_t code_size;
	uint32_t cold; /* offset in code memory */
	uint8_t *meta; /* blocks, links, instruction copies */
	struct soft_cache *cache;
	unsigned ncpus;
	struct soft_cpu *cpu[64];
	struct soft_time time;	    /* time.h */
	_Atomic uint32_t exclusive; /* 1: a vCPU runs alone, see exclusive_begin() */
	_Atomic uint8_t *page_attr; /* a byte a page of RAM: tlb.h */
	uint64_t page_attr_size;
	uint64_t *
		code_map; /* of each page of RAM, a bit for 64 bytes that a block has code in; under `lock` */
	unsigned maxphyaddr;		 /* as CPUID shows */
	struct soft_trace *trace;	 /* soft.trace=FILE, or NULL */
	struct soft_profile *profile;	 /* profile.h, or NULL */
	struct translation *translation; /* the translator's workspace, under `lock` */
	struct shapes *shapes;		 /* the decoder's, under `lock` */
	struct soft_component component[SOFT_COMPONENTS]; /* fpu_model() */
	uint32_t xsave_options;				  /* CPUID leaf 13, subleaf 1, EAX */
	uint64_t arch_capabilities;			  /* soft_arch_capabilities() */
	bool isa[ISA_SETS]; /* which instructions the CPU model shows: native.h */
	bool intel, amd;    /* whose the CPU model is: where their CPUs differ, that decides */
	_Atomic uint64_t n_translated, n_linked, n_invalidated, n_flushes, n_tlb_miss, n_slow,
		n_faults;
};

/* One place for every instruction's memory of a block's metadata: freed with the cache. NULL: full. */
void *cache_meta_alloc(struct soft_vm *svm, uint64_t size);

int cache_init(struct soft_vm *svm, uint64_t size, struct error *err);
void cache_fini(struct soft_vm *svm);
/* Bytes of memory that the code takes (mapped twice), and all that is kept about it. */
void cache_resident(struct soft_vm *svm, uint64_t *code, uint64_t *tables);

/* No lock. Only valid blocks. */
struct soft_block *block_find(struct soft_vm *svm, const struct block_key *key);

/*
 * Translation. Before svm->lock is taken: cache_watch_page() for each guest page: from then on writes to it are
 * seen, and on return every vCPU has lost its right to write there silently, so the bytes are read after it.
 * Under svm->lock: cache_code_begin() gives the offsets of BLOCK_CODE_MAX free bytes and as many cold ones (-ENOSPC: release
 * the lock and cache_flush()); block_insert() keeps code_len and cold_len of them and puts the block into the table and its
 * pages' lists.
 * Lock order: exclusive, then svm->lock.
 */
int cache_code_begin(struct soft_vm *svm, uint32_t *offset, uint32_t *cold);
void cache_watch_page(struct soft_cpu *self, uint64_t gpa);
/* Is it watched still? ROM always is. */
bool cache_page_watched(struct soft_vm *svm, uint64_t gpa);
void block_insert(struct soft_vm *svm, struct soft_block *block);

/* translate.c: the block for a key, made and inserted. gpa2: guest page behind, for a first instruction that
 * reaches over the page edge, else ~0. limit_left: bytes from the first instruction to the segment's limit, less
 * one. NULL with *error: -ENOSPC: flush and try again; -EFAULT: no memory there. Under svm->lock. */
struct soft_block *soft_translate(struct soft_cpu *cpu, const struct block_key *key, uint64_t gpa2,
				  uint64_t limit_left, int *error);

/* translate.c: the jumps to entry.S's thunks, at svm->cold; bytes of them. */
uint32_t soft_code_stubs(struct soft_vm *svm);

/* Under svm->lock: gives a far link its place in soft_tlb.far[]; false: there is none left. */
bool cache_far_new(struct soft_vm *svm, uint32_t *entry, uint16_t *number);
/* Patches a link to its target's local entry, behind that one's look at run_ok, or to its loop; both valid and of one mode;
 * atomic for vCPUs that execute there. Under svm->lock. */
void block_link(struct soft_vm *svm, struct block_link *link, struct soft_block *to);

/* Any thread: is there translated code on this guest page? (then writes need invalidation). No lock. */
bool cache_page_has_code(struct soft_vm *svm, uint64_t gpa);
/* The guest bytes [gpa, gpa+len) were written: blocks with code there become invalid, incoming jumps are
 * unlinked, and their `cross` entries lead to dispatch, so that the jump caches need not be searched for them.
 * Takes svm->lock. */
void cache_invalidate(struct soft_vm *svm, uint64_t gpa, uint64_t len);
/* Throws all blocks away, with all vCPUs but `self` at a safepoint. Not under svm->lock. C that was called from
 * translated code and finds that svm->n_flushes changed must not go back there (NEXT_LEAVE). */
void cache_flush(struct soft_cpu *self);
/* The block whose code holds this host address, or NULL. For the signal handler: takes no lock, touches
 * nothing but the tables. */
struct soft_block *block_at(struct soft_vm *svm, const void *host_pc);

/* Safepoints. A vCPU thread is "in" between safepoint_enter() and safepoint_leave(); soft.c brackets every
 * stretch of guest execution with them, waits (HLT, the monitor's handlers) are outside. In code runs
 * to the next block head or helper at most. exclusive_begin() returns when all other vCPUs are out and keeps
 * them out until exclusive_end(); the caller may be in. Nested by count. */
void safepoint_enter(struct soft_cpu *cpu);
void safepoint_leave(struct soft_cpu *cpu);
void exclusive_begin(struct soft_cpu *self);
void exclusive_end(struct soft_cpu *self);
/* The same for a thread that is no vCPU's, or one outside vcpu_run(). Not nested. */
void exclusive_begin_outside(struct soft_vm *svm);
void exclusive_end_outside(struct soft_vm *svm);
/* Called by a vCPU that is in when it finds REQ_SAFEPOINT: steps out and in again, does what others left for it
 * (dropping write rights to watched pages, clearing its jump cache). */
void safepoint_poll(struct soft_cpu *cpu);

#endif
