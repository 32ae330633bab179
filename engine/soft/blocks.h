/* The tables behind cache.h: internal to cache.c and q_cache.c. */
#ifndef ENGINE_SOFT_BLOCKS_H
#define ENGINE_SOFT_BLOCKS_H

#include "engine/soft/cache.h"

#define BLOCK_HASH_BITS 16
#define PAGE_HASH_BITS 14

struct soft_cache {
	struct soft_block *_Atomic hash[1 << BLOCK_HASH_BITS];
	struct page_node *pages[1 << PAGE_HASH_BITS];
	uint32_t far_used;
	uint32_t code_used, cold_used; /* offsets in code memory: where the next block's will be */
	uint32_t cold_first;	       /* .. of the first block's, behind the stubs */
	uint64_t meta_size, meta_used;
	struct soft_block **blocks; /* every block of this filling, by ascending code offset */
	uint32_t blocks_max;
	_Atomic uint32_t nblocks;
};

/* A block's code begins with so many bytes, and behind them is the `cross` entry, at a multiple of BLOCK_ALIGN: its first
 * instruction, no shorter than a jump of 32 bits, is replaced in one piece when the block dies. */
#define BLOCK_OUT 5
#define BLOCK_ALIGN 8

unsigned block_hash(const struct block_key *key);
/* The list that holds the nodes of this page (and of others). */
struct page_node **page_nodes(struct soft_vm *svm, uint64_t gpa);
/* Writes to the block's bytes will be looked at. */
void code_map_add(struct soft_vm *svm, const struct soft_block *block);

#endif
