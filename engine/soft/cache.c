/* Code memory and block metadata: see cache.h. */
#include "engine/soft/blocks.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/soft/tlb.h"
#include "engine/soft/tsan.h"
#include "vmm/memory.h"

#define META_FACTOR \
	2 /* metadata memory, in sizes of code memory; pages that are not used cost nothing */
#define BLOCK_CODE_MIN 64 /* no more blocks than of that size fill the cache */
/* The part of code memory that is for cold code: as much of what is written, by measure. */
#define COLD_FROM 5
#define COLD_FROM_OF 8

static void *reserve(uint64_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/*
 * One piece of shared memory mapped twice: mremap(2) of 0 bytes makes another mapping of the same pages. Not a memfd: for
 * perf(1) that is a file, whose symbols it looks for in the file and never in perf-PID.map.
 */
static int code_map(struct soft_vm *svm, struct error *err)
{
	svm->code_rw = mmap(NULL, svm->code_size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (svm->code_rw == MAP_FAILED)
		return error_set(err, errno, "no memory for the code cache: %s", strerror(errno));
	svm->code_rx = mremap(svm->code_rw, 0, svm->code_size, MREMAP_MAYMOVE);
	if (svm->code_rx == MAP_FAILED ||
	    mprotect(svm->code_rx, svm->code_size, PROT_READ | PROT_EXEC))
		return error_set(err, errno, "cannot map the code cache: %s%s", strerror(errno),
				 errno == EPERM || errno == EACCES
					 ? " (this host forbids executable shared memory)"
					 : "");
	return 0;
}

/* Where, from this offset on, the next block may begin. */
static uint32_t code_place(uint32_t offset)
{
	return ((offset + BLOCK_OUT + BLOCK_ALIGN - 1) & ~(BLOCK_ALIGN - 1u)) - BLOCK_OUT;
}

static void cache_empty(struct soft_cache *cache)
{
	cache->far_used = 0;
	cache->code_used = code_place(0);
	cache->cold_used = cache->cold_first;
	cache->meta_used = 0;
	atomic_store(&cache->nblocks, 0);
}

int cache_init(struct soft_vm *svm, uint64_t size, struct error *err)
{
	struct soft_cache *cache = reserve(sizeof(*cache));
	int ret;

	if (!cache)
		return error_set(err, ENOMEM, "out of memory");
	svm->cache = cache;
	svm->code_size = size;
	svm->code_rw = svm->code_rx = MAP_FAILED;
	ret = code_map(svm, err);
	if (ret)
		return ret;
	cache->meta_size = size * META_FACTOR;
	svm->meta = reserve(cache->meta_size);
	if (svm->meta)
		madvise(svm->meta, cache->meta_size, MADV_HUGEPAGE); /* filled from its start */
	cache->blocks_max = (uint32_t)(size / BLOCK_CODE_MIN);
	cache->blocks = reserve(cache->blocks_max * sizeof(*cache->blocks));
	if (!svm->meta || !cache->blocks)
		return error_set(err, ENOMEM, "out of memory");
	svm->cold = (uint32_t)(size / COLD_FROM_OF * COLD_FROM);
	cache->cold_first = svm->cold + soft_code_stubs(svm);
	cache_empty(cache);
	return 0;
}

void cache_resident(struct soft_vm *svm, uint64_t *code, uint64_t *tables)
{
	struct soft_cache *cache = svm->cache;

	*code = mapping_resident(svm->code_rw, svm->code_size);
	*tables = mapping_resident(cache, sizeof(*cache)) +
		  mapping_resident(svm->meta, cache->meta_size) +
		  mapping_resident(cache->blocks, cache->blocks_max * sizeof(*cache->blocks));
	for (unsigned i = 0; i < svm->ncpus; i++)
		if (svm->cpu[i])
			*tables += tlb_jumps_resident(svm->cpu[i]);
}

void cache_fini(struct soft_vm *svm)
{
	struct soft_cache *cache = svm->cache;

	if (!cache)
		return;
	if (svm->code_rw != MAP_FAILED)
		munmap(svm->code_rw, svm->code_size);
	if (svm->code_rx != MAP_FAILED)
		munmap(svm->code_rx, svm->code_size);
	if (svm->meta)
		munmap(svm->meta, cache->meta_size);
	if (cache->blocks)
		munmap(cache->blocks, cache->blocks_max * sizeof(*cache->blocks));
	munmap(cache, sizeof(*cache));
	svm->cache = NULL;
}

void *cache_meta_alloc(struct soft_vm *svm, uint64_t size)
{
	struct soft_cache *cache = svm->cache;
	void *p = svm->meta + cache->meta_used;

	size = (size + 15) & ~15ull;
	if (size > cache->meta_size - cache->meta_used)
		return NULL;
	cache->meta_used += size;
	return p;
}

int cache_code_begin(struct soft_vm *svm, uint32_t *offset, uint32_t *cold)
{
	struct soft_cache *cache = svm->cache;

	if (cache->code_used + BLOCK_CODE_MAX > svm->cold ||
	    cache->cold_used + BLOCK_CODE_MAX > svm->code_size ||
	    atomic_load(&cache->nblocks) == cache->blocks_max ||
	    cache->meta_size - cache->meta_used < 64 * 1024)
		return -ENOSPC;
	*offset = cache->code_used;
	*cold = cache->cold_used;
	return 0;
}

static void page_node_add(struct soft_vm *svm, struct soft_block *block, struct page_node *node,
			  uint64_t gpa)
{
	struct page_node **list = page_nodes(svm, gpa);

	*node = (struct page_node){.page = gpa >> 12, .block = block, .next = *list};
	*list = node;
}

void block_insert(struct soft_vm *svm, struct soft_block *block)
{
	struct soft_cache *cache = svm->cache;
	struct soft_block *_Atomic *bucket = &cache->hash[block_hash(&block->key)];
	uint32_t n = atomic_load(&cache->nblocks);

	page_node_add(svm, block, &block->page[0], block->key.gpa);
	if (block->gpa2 != ~0ull)
		page_node_add(svm, block, &block->page[1], block->gpa2);
	code_map_add(svm, block);
	cache->code_used = code_place(block->start + block->code_len);
	cache->cold_used = block->cold + block->cold_len;
	cache->blocks[n] = block;
	atomic_store(&cache->nblocks, n + 1);
	atomic_store(&block->valid, true);
	atomic_store(&block->hash_next, atomic_load(bucket));
	atomic_store_explicit(bucket, block, memory_order_release);
}

void cache_flush(struct soft_cpu *self)
{
	struct soft_vm *svm = self->svm;
	struct soft_cache *cache = svm->cache;

	exclusive_begin(self);
	tsan_after(&svm->exclusive);
	soft_lock_acquire(&svm->lock);
	memset(cache->hash, 0, sizeof(cache->hash));
	memset(cache->pages, 0, sizeof(cache->pages));
	madvise(svm->code_map, svm->page_attr_size * sizeof(*svm->code_map), MADV_DONTNEED);
	cache_empty(cache);
	for (unsigned i = 0; i < svm->ncpus; i++) {
		if (!svm->cpu[i])
			continue;
		tlb_flush_jumps(svm->cpu[i]);
		svm->cpu[i]->link = NULL;
	}
	atomic_fetch_add(&svm->n_flushes, 1);
	soft_lock_release(&svm->lock);
	exclusive_end(self);
}

struct soft_block *block_at(struct soft_vm *svm, const void *host_pc)
{
	const struct soft_cache *cache = svm->cache;
	uint64_t offset = (uint64_t)((const uint8_t *)host_pc - svm->code_rx);
	uint32_t low = 0, high = atomic_load(&cache->nblocks);

	if (offset >= svm->code_size)
		return NULL;
	while (low < high) {
		uint32_t mid = low + (high - low) / 2;
		struct soft_block *b = cache->blocks[mid];
		uint32_t start = offset < svm->cold ? b->start : b->cold;

		if (offset < start)
			high = mid;
		else if (offset >= start + (offset < svm->cold ? b->code_len : b->cold_len))
			low = mid + 1;
		else
			return b;
	}
	return NULL;
}
