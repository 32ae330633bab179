/* Quick: the block table, links, invalidation and safepoints. See cache.h. */
#include "engine/soft/blocks.h"
#include "engine/soft/cache.h"
#include "engine/soft/lapic.h"
#include "engine/soft/tlb.h"
#include "vmm/vm.h"

#define PAGE_LOW 0xfffull

/* ---- look-up ------------------------------------------------------------------------------------------ */

static bool key_equal(const struct block_key *a, const struct block_key *b)
{
	return a->gpa == b->gpa && a->mode == b->mode && a->cs_base == b->cs_base &&
	       a->cs_limit == b->cs_limit;
}

unsigned block_hash(const struct block_key *key)
{
	uint64_t h =
		(key->gpa ^ (uint64_t)key->mode << 40 ^ key->cs_base << 20) * 0x9e3779b97f4a7c15ull;

	return (unsigned)(h >> (64 - BLOCK_HASH_BITS));
}

struct soft_block *block_find(struct soft_vm *svm, const struct block_key *key)
{
	struct soft_block *b =
		atomic_load_explicit(&svm->cache->hash[block_hash(key)], memory_order_acquire);

	while (b && !(key_equal(&b->key, key) && atomic_load(&b->valid)))
		b = atomic_load_explicit(&b->hash_next, memory_order_acquire);
	return b;
}

bool cache_page_has_code(struct soft_vm *svm, uint64_t gpa)
{
	_Atomic uint8_t *attr = page_attr(svm, gpa);

	return attr && (atomic_load(attr) & PAGE_CODE);
}

bool cache_page_watched(struct soft_vm *svm, uint64_t gpa)
{
	_Atomic uint8_t *attr = page_attr(svm, gpa);

	/* CODE alone: another vCPU may have set it anew and wait still to take the rights to write away. */
	return !attr || (atomic_load(attr) & (PAGE_CODE | PAGE_WRITTEN)) == PAGE_CODE;
}

/* Where the attributes of that page of RAM are. */
static uint64_t *code_map(struct soft_vm *svm, uint64_t gpa)
{
	_Atomic uint8_t *attr = page_attr(svm, gpa);

	return attr ? &svm->code_map[attr - svm->page_attr] : NULL;
}

/* The bits of [gpa, gpa+len), which is within one page and not empty. */
static uint64_t code_bits(uint64_t gpa, uint64_t len)
{
	unsigned first = (gpa & PAGE_LOW) / 64, last = ((gpa & PAGE_LOW) + len - 1) / 64;

	return ~0ull << first & ~0ull >> (63 - last);
}

void code_map_add(struct soft_vm *svm, const struct soft_block *block)
{
	uint64_t left = 4096 - (block->key.gpa & PAGE_LOW), *map = code_map(svm, block->key.gpa);

	if (map)
		*map |= code_bits(block->key.gpa, block->len < left ? block->len : left);
	map = block->gpa2 == ~0ull ? NULL : code_map(svm, block->gpa2);
	if (map && block->len > left)
		*map |= code_bits(block->gpa2, block->len - left);
}

/* ---- links -------------------------------------------------------------------------------------------- */

/* Under svm->lock. The rel32 is within eight aligned bytes, so vCPUs that fetch it see the old or the new one. */
static void patch_rel32(struct soft_vm *svm, uint32_t place, uint32_t target)
{
	uint64_t *word = (uint64_t *)(void *)(svm->code_rw + (place & ~7u)), mask = UINT32_MAX;
	unsigned shift = place % 8 * 8;

	__atomic_store_n(word,
			 (*word & ~(mask << shift)) | (uint64_t)(target - (place + 4)) << shift,
			 __ATOMIC_RELEASE);
}

static void jumps_void(struct soft_vm *svm);

/* Who goes forward in a page need not look at run_ok: it comes to the end, or to a block that does. A block that jumps back, or
 * to a place in itself, has executed what is there: if that is a loop, this was its first iteration. */
static uint32_t link_entry(const struct block_link *link, const struct soft_block *to)
{
	const struct soft_block *from = link->from;
	bool forward = !link->far && to->key.gpa > from->key.gpa;

	if (to->loop && !link->far && to->key.gpa < from->key.gpa + from->len)
		return to->loop;
	return forward ? to->unchecked : to->local;
}

void block_link(struct soft_vm *svm, struct block_link *link, struct soft_block *to)
{
	/* Nobody may take it on the word of an entry that speaks of other pages. */
	if (link->far && link->was &&
	    (link->was->key.gpa != to->key.gpa || link->was->gpa2 != to->gpa2))
		jumps_void(svm);
	link->to = to;
	link->was = to;
	link->next_in = to->in;
	to->in = link;
	patch_rel32(svm, link->patch, link_entry(link, to));
	atomic_fetch_add_explicit(&svm->n_linked, 1, memory_order_relaxed);
}

static void block_unlink_in(struct soft_vm *svm, struct soft_block *block)
{
	struct block_link *link = block->in;

	while (link) {
		struct block_link *next = link->next_in;

		patch_rel32(svm, link->patch, link->unlinked);
		link->to = NULL;
		link->next_in = NULL;
		link = next;
	}
	block->in = NULL;
}

/* Its own jumps leave their targets' lists. */
static void block_unlink_out(struct soft_block *block)
{
	for (unsigned i = 0; i < block->nlinks; i++) {
		struct block_link *link = &block->links[i], **p;

		if (!link->to)
			continue;
		for (p = &link->to->in; *p && *p != link; p = &(*p)->next_in)
			;
		if (*p)
			*p = link->next_in;
		link->to = NULL;
		link->next_in = NULL;
	}
}

bool cache_far_new(struct soft_vm *svm, uint32_t *entry, uint16_t *number)
{
	uint32_t n = svm->cache->far_used;

	if (n / FAR_ENTRIES >= 4095)
		return false;
	svm->cache->far_used = n + 1;
	*entry = n % FAR_ENTRIES;
	*number = (uint16_t)(n / FAR_ENTRIES + 1);
	return true;
}

/* ---- invalidation ------------------------------------------------------------------------------------- */

static void hash_remove(struct soft_vm *svm, struct soft_block *block)
{
	struct soft_block *_Atomic *p = &svm->cache->hash[block_hash(&block->key)];
	struct soft_block *b;

	while ((b = atomic_load(p)) && b != block)
		p = &b->hash_next;
	if (b)
		atomic_store(p, atomic_load(&block->hash_next));
}

/* Who enters it by a jump cache leaves at once: its first instruction becomes a jump (blocks.h), with RIP in R10 still. A block of one instruction is
 * in no jump cache, and who enters it has to execute that. */
static void block_bury(struct soft_vm *svm, const struct soft_block *block)
{
	uint64_t *code = (uint64_t *)(void *)(svm->code_rw + block->code);
	uint32_t rel = svm->cold + STUB_LEAVE_TO * CODE_STUB_SIZE - (block->code + 5);

	if (!(block->key.mode & (MODE_STEP | MODE_SHADOW)))
		__atomic_store_n(code, (*code & ~0ull << 40) | (uint64_t)rel << 8 | 0xe9,
				 __ATOMIC_RELEASE);
}

static void block_kill(struct soft_vm *svm, struct soft_block *block)
{
	atomic_store(&block->valid, false);
	block_bury(svm, block);
	hash_remove(svm, block);
	block_unlink_in(svm, block);
	block_unlink_out(block);
	atomic_fetch_add(&svm->n_invalidated, 1);
}

struct page_node **page_nodes(struct soft_vm *svm, uint64_t gpa)
{
	return &svm->cache->pages[(gpa >> 12) * 0x9e3779b97f4a7c15ull >> (64 - PAGE_HASH_BITS)];
}

static bool block_overlaps(const struct soft_block *b, uint64_t gpa, uint64_t len)
{
	uint64_t end = b->key.gpa + b->len;

	if (b->gpa2 != ~0ull) {
		uint64_t edge = (b->key.gpa | PAGE_LOW) + 1;

		if (gpa < b->gpa2 + (end - edge) && gpa + len > b->gpa2)
			return true;
		end = edge;
	}
	return gpa < end && gpa + len > b->key.gpa;
}

/* Some of the page's blocks are gone. */
static void page_map_again(struct soft_vm *svm, uint64_t *map, uint64_t page)
{
	*map = 0;
	for (struct page_node *node = *page_nodes(svm, page << 12); node; node = node->next)
		if (node->page == page && atomic_load(&node->block->valid))
			code_map_add(svm, node->block);
}

/* Kills the blocks with code in [gpa, gpa+len), which is within one page. False: there are none on the page any more. */
static bool page_invalidate(struct soft_vm *svm, uint64_t gpa, uint64_t len)
{
	struct page_node **p = page_nodes(svm, gpa);
	uint64_t *map = code_map(svm, gpa);
	bool left = false, gone = false;

	if (map && *map && !(*map & code_bits(gpa, len)))
		return true;
	while (*p) {
		struct page_node *node = *p;
		struct soft_block *b = node->block;

		if (!atomic_load(&b->valid)) {
			gone |= node->page == gpa >> 12;
			*p = node->next;
			continue;
		}
		if (node->page == gpa >> 12 && block_overlaps(b, gpa, len)) {
			block_kill(svm, b);
			*p = node->next;
			gone = true;
			continue;
		}
		left |= node->page == gpa >> 12;
		p = &node->next;
	}
	if (gone && map)
		page_map_again(svm, map, gpa >> 12);
	return left;
}

/* Each vCPU empties its jump caches and `far` before it goes on: no block's first instruction is executed before. Under
 * svm->lock, for the far link that is the reason may not lead elsewhere before they know. */
static void jumps_void(struct soft_vm *svm)
{
	for (unsigned i = 0; i < svm->ncpus; i++)
		if (svm->cpu[i])
			soft_request(svm->cpu[i], REQ_TLB);
}

void cache_invalidate(struct soft_vm *svm, uint64_t gpa, uint64_t len)
{
	uint64_t end = gpa + len;

	while (gpa < end) {
		uint64_t part = 4096 - (gpa & PAGE_LOW);

		if (part > end - gpa)
			part = end - gpa;
		if (cache_page_has_code(svm, gpa)) {
			soft_lock_acquire(&svm->lock);
			if (!page_invalidate(svm, gpa, part))
				atomic_fetch_and(page_attr(svm, gpa), (uint8_t)~PAGE_CODE);
			soft_lock_release(&svm->lock);
		}
		gpa += part;
	}
}

void soft_wake(struct soft_cpu *cpu, uint32_t request)
{
	soft_request(cpu, request);
	/* It says that it is asleep, then looks at the requests; here it is the other way round. */
	if (atomic_load(&cpu->asleep))
		soft_futex(&cpu->requests, FUTEX_WAKE, 1);
}

/* ---- safepoints --------------------------------------------------------------------------------------- */

void safepoint_enter(struct soft_cpu *cpu)
{
	struct soft_vm *svm = cpu->svm;

	for (;;) {
		uint32_t owner;

		atomic_store(&cpu->in, 1);
		owner = atomic_load(&svm->exclusive);
		if (!owner || cpu->exclusive_depth)
			break;
		atomic_store(&cpu->in, 0);
		soft_futex(&cpu->in, FUTEX_WAKE, 1);
		soft_futex(&svm->exclusive, FUTEX_WAIT, owner);
	}
}

void safepoint_leave(struct soft_cpu *cpu)
{
	atomic_store(&cpu->in, 0);
	if (atomic_load(&cpu->svm->exclusive))
		soft_futex(&cpu->in, FUTEX_WAKE, 1);
}

void safepoint_poll(struct soft_cpu *cpu)
{
	if (atomic_load(&cpu->svm->exclusive) && !cpu->exclusive_depth) {
		safepoint_leave(cpu);
		safepoint_enter(cpu);
	}
}

/* Takes the exclusive word and waits until no vCPU but `self` is in. */
static void exclusive_take(struct soft_vm *svm, struct soft_cpu *self)
{
	uint32_t none = 0;

	while (!atomic_compare_exchange_strong(&svm->exclusive, &none, 1)) {
		soft_futex(&svm->exclusive, FUTEX_WAIT, none);
		none = 0;
	}
	for (unsigned i = 0; i < svm->ncpus; i++) {
		struct soft_cpu *cpu = svm->cpu[i];

		if (!cpu || cpu == self)
			continue;
		if (atomic_load(&cpu->in))
			soft_request(cpu, REQ_SAFEPOINT);
		while (atomic_load(&cpu->in))
			soft_futex(&cpu->in, FUTEX_WAIT, 1);
	}
}

void exclusive_end_outside(struct soft_vm *svm)
{
	atomic_store(&svm->exclusive, 0);
	soft_futex(&svm->exclusive, FUTEX_WAKE, INT32_MAX);
}

void exclusive_begin_outside(struct soft_vm *svm)
{
	exclusive_take(svm, NULL);
}

void exclusive_begin(struct soft_cpu *self)
{
	uint32_t was_in = atomic_load(&self->in);

	if (self->exclusive_depth) {
		self->exclusive_depth++;
		return;
	}
	/* Out while waiting, or two that begin at once would wait for each other. */
	if (was_in)
		safepoint_leave(self);
	exclusive_take(self->svm, self);
	self->exclusive_depth = 1;
	atomic_store(&self->in, was_in);
}

void exclusive_end(struct soft_cpu *self)
{
	if (--self->exclusive_depth == 0)
		exclusive_end_outside(self->svm);
}

void cache_watch_page(struct soft_cpu *self, uint64_t gpa)
{
	struct soft_vm *svm = self->svm;
	_Atomic uint8_t *attr = page_attr(svm, gpa);
	bool writable;
	uint8_t *hva;

	if (!attr)
		return; /* ROM */
	if (!(atomic_load(attr) & PAGE_CODE))
		atomic_fetch_or(attr, PAGE_CODE);
	if (!(atomic_load(attr) & PAGE_WRITTEN))
		return;
	hva = guest_ptr(svm, gpa & ~PAGE_LOW, 4096, &writable);
	exclusive_begin(self);
	for (unsigned i = 0; hva && i < svm->ncpus; i++)
		if (svm->cpu[i])
			tlb_drop_writes(svm->cpu[i], hva);
	atomic_fetch_and(attr, (uint8_t)~PAGE_WRITTEN);
	exclusive_end(self);
}
