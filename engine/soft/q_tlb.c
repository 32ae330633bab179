/* Quick: page walks (SDM vol. 3 chapter 4) and the inline TLB. See cpu.h for the tables. */
#include "engine/soft/access.h"
#include "engine/soft/cache.h"
#include "engine/soft/tlb.h"
#include "vmm/vm.h"

#define PTE_P 0x1ull
#define PTE_W 0x2ull
#define PTE_U 0x4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull
#define PTE_HIGH \
	0x7ff0000000000000ull /* ignored by 4 levels, reserved in PAE (SDM vol. 3, 4.4.2) */

#define PF_P 1u
#define PF_W 2u
#define PF_U 4u
#define PF_RSVD 8u
#define PF_I 16u

#define PAGE_LOW 0xfffull
#define LARGE_PAGE (4ull << 20) /* the greatest but for those of 1 GiB */

uint8_t *guest_ptr(struct soft_vm *svm, uint64_t gpa, uint64_t len, bool *writable)
{
	const struct memory *mem = &svm->vm->memory;

	for (unsigned i = 0; i < mem->nregions; i++) {
		const struct memory_region *r = &mem->region[i];

		if (gpa >= r->gpa && len <= r->len && gpa - r->gpa <= r->len - len) {
			*writable = r->kind == MEMORY_RAM;
			return r->hva + (gpa - r->gpa);
		}
	}
	return NULL;
}

_Atomic uint8_t *page_attr(struct soft_vm *svm, uint64_t gpa)
{
	const struct memory *mem = &svm->vm->memory;

	if (gpa < mem->low)
		return &svm->page_attr[gpa >> 12];
	if (gpa >= MEMORY_HIGH_BASE && gpa - MEMORY_HIGH_BASE < mem->high)
		return &svm->page_attr[(mem->low + (gpa - MEMORY_HIGH_BASE)) >> 12];
	return NULL;
}

/* ---- walks ------------------------------------------------------------------------------------------ */

struct walk {
	uint64_t linear;
	unsigned access;
	uint64_t rights; /* AND of the entries' W and U */
	bool nx;
	unsigned levels;    /* entries on the way */
	uint64_t *entry[4]; /* their host addresses; 32-bit ones too */
	uint64_t value[4];
	bool wide; /* 64-bit entries */
	uint64_t gpa, size;
};

static bool nx_enabled(const struct soft_cpu *cpu)
{
	return (cpu->efer & X86_EFER_NXE) && (cpu->cr4 & X86_CR4_PAE);
}

static int page_fault(struct soft_cpu *cpu, const struct walk *w, unsigned why)
{
	unsigned error = why;

	if (w->access & ACCESS_WRITE)
		error |= PF_W;
	if (cpu->cpl == 3 && !(w->access & ACCESS_SYSTEM))
		error |= PF_U;
	if ((w->access & ACCESS_FETCH) && (nx_enabled(cpu) || (cpu->cr4 & X86_CR4_SMEP)))
		error |= PF_I;
	soft_raise_error(cpu, X86_PF, error);
	cpu->fault.cr2 = w->linear;
	return NEXT_FAULT;
}

/* Bits that must be zero in every entry of a 64-bit format. */
static uint64_t reserved_bits(const struct soft_cpu *cpu)
{
	uint64_t bits = PTE_ADDR & ~((1ull << cpu->svm->maxphyaddr) - 1);

	return nx_enabled(cpu) ? bits : bits | PTE_NX;
}

/* Reads one entry. 0, or NEXT_FAULT. */
static int walk_entry(struct soft_cpu *cpu, struct walk *w, uint64_t gpa, uint64_t reserved)
{
	bool writable;
	uint8_t *p = cpu_ptr(cpu, gpa, w->wide ? 8 : 4, &writable);
	uint64_t v;

	/* Page tables outside memory read as ones on the bus: reserved bits, or not there. */
	if (!p)
		return page_fault(cpu, w, PF_P | PF_RSVD);
	v = w->wide ? __atomic_load_n((uint64_t *)p, __ATOMIC_RELAXED)
		    : __atomic_load_n((uint32_t *)p, __ATOMIC_RELAXED);
	if (!(v & PTE_P))
		return page_fault(cpu, w, 0);
	if (v & reserved)
		return page_fault(cpu, w, PF_P | PF_RSVD);
	w->entry[w->levels] = (uint64_t *)p;
	w->value[w->levels++] = v;
	return 0;
}

static int walk_4level(struct soft_cpu *cpu, struct walk *w)
{
	uint64_t table = cpu->cr3 & PTE_ADDR, reserved = reserved_bits(cpu);

	w->rights = PTE_W | PTE_U;
	for (int level = 3; level >= 0; level--) {
		unsigned shift = 12 + 9 * (unsigned)level;
		uint64_t extra = level == 3 ? PTE_PS : 0, v;

		if (walk_entry(cpu, w, table + ((w->linear >> shift & 511) << 3), reserved | extra))
			return NEXT_FAULT;
		v = w->value[w->levels - 1];
		w->rights &= v;
		w->nx |= (v & PTE_NX) != 0;
		table = v & PTE_ADDR;
		if (level == 0 || ((level == 1 || level == 2) && (v & PTE_PS))) {
			w->size = 1ull << shift;
			/* Bit 12 of a large page is PAT, those between it and the frame are reserved. */
			if (level && (v & (w->size - 1) & PTE_ADDR & ~0x1000ull))
				return page_fault(cpu, w, PF_P | PF_RSVD);
			w->gpa = (table & ~(w->size - 1)) | (w->linear & (w->size - 1));
			return 0;
		}
	}
	return 0;
}

static int walk_pae(struct soft_cpu *cpu, struct walk *w)
{
	uint64_t reserved = reserved_bits(cpu) | PTE_HIGH, table, v;

	w->rights = PTE_W | PTE_U;
	if (walk_entry(cpu, w, (cpu->cr3 & 0xffffffe0ull) + ((w->linear >> 30 & 3) << 3),
		       (reserved | PTE_NX) | 0x1e6))
		return NEXT_FAULT;
	table = w->value[0] & PTE_ADDR;
	w->levels = 0; /* PDPTEs have no A bit */
	for (int level = 1; level >= 0; level--) {
		unsigned shift = 12 + 9 * (unsigned)level;

		if (walk_entry(cpu, w, table + ((w->linear >> shift & 511) << 3), reserved))
			return NEXT_FAULT;
		v = w->value[w->levels - 1];
		w->rights &= v;
		w->nx |= (v & PTE_NX) != 0;
		table = v & PTE_ADDR;
		if (level == 0 || (v & PTE_PS)) {
			w->size = 1ull << shift;
			if (level && (v & (w->size - 1) & PTE_ADDR & ~0x1000ull))
				return page_fault(cpu, w, PF_P | PF_RSVD);
			w->gpa = (table & ~(w->size - 1)) | (w->linear & (w->size - 1));
			return 0;
		}
	}
	return 0;
}

static int walk_32bit(struct soft_cpu *cpu, struct walk *w)
{
	uint64_t table = cpu->cr3 & 0xfffff000ull, v;

	w->rights = PTE_W | PTE_U;
	if (walk_entry(cpu, w, table + ((w->linear >> 22 & 1023) << 2), 0))
		return NEXT_FAULT;
	v = w->value[0];
	w->rights &= v;
	if ((v & PTE_PS) && (cpu->cr4 & X86_CR4_PSE)) {
		/* PSE-36: bits 20:13 are address bits 39:32, bit 21 is reserved. */
		if (v & 0x200000)
			return page_fault(cpu, w, PF_P | PF_RSVD);
		w->size = 4ull << 20;
		w->gpa = (v & 0xffc00000ull) | (v >> 13 & 0xff) << 32 | (w->linear & 0x3fffff);
		return 0;
	}
	if (walk_entry(cpu, w, (v & 0xfffff000ull) + ((w->linear >> 12 & 1023) << 2), 0))
		return NEXT_FAULT;
	v = w->value[1];
	w->rights &= v;
	w->size = 4096;
	w->gpa = (v & 0xfffff000ull) | (w->linear & PAGE_LOW);
	return 0;
}

static int walk_rights(struct soft_cpu *cpu, const struct walk *w)
{
	bool user = cpu->cpl == 3 && !(w->access & ACCESS_SYSTEM);
	bool user_page = w->rights & PTE_U;

	if (user && !user_page)
		return page_fault(cpu, w, PF_P);
	if (!user && user_page) {
		if (w->access & ACCESS_FETCH) {
			if (cpu->cr4 & X86_CR4_SMEP)
				return page_fault(cpu, w, PF_P);
		} else if ((cpu->cr4 & X86_CR4_SMAP) &&
			   ((w->access & ACCESS_SYSTEM) || !(cpu->sysflags & X86_FL_AC))) {
			return page_fault(cpu, w, PF_P);
		}
	}
	if ((w->access & ACCESS_WRITE) && !(w->rights & PTE_W) && (user || (cpu->cr0 & X86_CR0_WP)))
		return page_fault(cpu, w, PF_P);
	if ((w->access & ACCESS_FETCH) && w->nx && nx_enabled(cpu))
		return page_fault(cpu, w, PF_P);
	return 0;
}

/* Sets A on the way and D at the end. False: an entry changed under us, walk again. */
static bool walk_accessed(const struct walk *w)
{
	for (unsigned i = 0; i < w->levels; i++) {
		uint64_t v = w->value[i], want = v | PTE_A;

		if (i == w->levels - 1 && (w->access & ACCESS_WRITE))
			want |= PTE_D;
		if (want == v)
			continue;
		if (w->wide) {
			if (!__atomic_compare_exchange_n(w->entry[i], &v, want, false,
							 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
				return false;
		} else {
			uint32_t v32 = (uint32_t)v;

			if (!__atomic_compare_exchange_n((uint32_t *)w->entry[i], &v32,
							 (uint32_t)want, false, __ATOMIC_SEQ_CST,
							 __ATOMIC_SEQ_CST))
				return false;
		}
	}
	return true;
}

static int walk_once(struct soft_cpu *cpu, struct walk *w)
{
	int next;

	w->levels = 0;
	w->nx = false;
	if (cpu->efer & X86_EFER_LMA) {
		w->wide = true;
		next = walk_4level(cpu, w);
	} else if (cpu->cr4 & X86_CR4_PAE) {
		w->wide = true;
		next = walk_pae(cpu, w);
	} else {
		w->wide = false;
		next = walk_32bit(cpu, w);
	}
	return next ? next : walk_rights(cpu, w);
}

static struct soft_page page_of(const struct soft_cpu *cpu, const struct walk *w)
{
	bool global = w->value[w->levels - 1] & PTE_G;

	return (struct soft_page){.size = w->size, .global = global && (cpu->cr4 & X86_CR4_PGE)};
}

int soft_translate_va(struct soft_cpu *cpu, uint64_t linear, unsigned access, uint64_t *gpa,
		      struct soft_page *page)
{
	struct walk w;
	int next;

	if (!(cpu->cr0 & X86_CR0_PG)) {
		*gpa = linear;
		if (page)
			*page = (struct soft_page){.size = 4096, .global = false};
		return 0;
	}
	w.linear = linear;
	w.access = access;
	do {
		next = walk_once(cpu, &w);
		if (next)
			return next;
	} while (!walk_accessed(&w));
	*gpa = w.gpa;
	if (page)
		*page = page_of(cpu, &w);
	return 0;
}

/* ---- the tables ------------------------------------------------------------------------------------- */

static struct soft_slot *slot_of(struct soft_cpu *cpu, enum tlb_kind kind)
{
	return &cpu->slots->slot[kind == TLB_USER ? cpu->slots->current : KERNEL_SLOT];
}

/* The one that translated code uses. */
static struct soft_slot *slot_now(struct soft_cpu *cpu)
{
	return slot_of(cpu, cpu->kind);
}

/* Which table of the slot an access looks at. */
static enum tlb_kind kind_for(const struct soft_cpu *cpu, unsigned access)
{
	if (cpu->cpl == 3 && !(access & ACCESS_SYSTEM))
		return TLB_USER;
	if (!(cpu->cr4 & X86_CR4_SMAP))
		return TLB_SUPER_AC;
	return (cpu->sysflags & X86_FL_AC) && !(access & ACCESS_SYSTEM) ? TLB_SUPER_AC : TLB_SUPER;
}

static void bit_set(uint64_t *bits, uint64_t n)
{
	bits[n / 64] |= 1ull << (n & 63);
}

static bool bit_test(const uint64_t *bits, uint64_t n)
{
	return bits[n / 64] >> (n & 63) & 1;
}

/* The next group whose bit is set, from *group on. */
static bool group_find(const uint64_t *groups, unsigned words, unsigned *group)
{
	uint64_t from = ~0ull << *group % 64;

	for (unsigned w = *group / 64; w < words; w++, from = ~0ull) {
		if (groups[w] & from) {
			*group = w * 64 + (unsigned)__builtin_ctzll(groups[w] & from);
			return true;
		}
	}
	return false;
}

/* The same; the bit is cleared. */
static bool group_next(uint64_t *groups, unsigned words, unsigned *group)
{
	if (!group_find(groups, words, group))
		return false;
	groups[*group / 64] &= ~(1ull << *group % 64);
	return true;
}

/* An entry comes from a page of this size: INVLPG has to know. */
static void slot_note_large(struct soft_slot *slot, uint64_t linear, uint64_t page_size)
{
	if (page_size <= 4096)
		return;
	if (page_size <= LARGE_PAGE)
		bit_set(slot->large2m, LARGE_BIT(linear / LARGE_PAGE));
	else
		bit_set(slot->large1g, LARGE_BIT(linear >> 30));
}

static void slot_note_local(struct soft_slot *slot, enum tlb_kind kind, unsigned i)
{
	struct local_entries *local = &slot->local[kind];

	if (local->n && local->n < LOCAL_MAX && local->index[local->n - 1] == i)
		return;
	if (local->n < LOCAL_MAX)
		local->index[local->n++] = i;
}

static void tlb_put(struct soft_cpu *cpu, enum tlb_kind kind, uint64_t linear, uint8_t *hva,
		    bool write, const struct soft_page *from)
{
	struct soft_slot *slot = slot_of(cpu, kind);
	struct soft_tlb *tlb = slot->tlb[kind];
	uint64_t page = linear & ~PAGE_LOW;
	unsigned i = page >> 12 & (TLB_ENTRIES - 1);
	uint64_t addend = (uint64_t)(uintptr_t)(hva - (linear & PAGE_LOW)) - page;

	if (tlb->addend[i] != addend || tlb->rtag[i] != -page) {
		/* Another translation may be here: its tags go before its addend. */
		tlb->rtag[i] = tlb->wtag[i] = TLB_EMPTY(i);
		tlb->addend[i] = addend;
	}
	tlb->rtag[i] = -page;
	if (write)
		tlb->wtag[i] = -page;
	bit_set(slot->touched[kind], i / TLB_GROUP);
	slot_note_large(slot, linear, from->size);
	if (kind != TLB_USER && !from->global)
		slot_note_local(slot, kind, i);
}

/* May this page be written without anybody hearing of it? Marks it written. */
static bool page_write_direct(struct soft_vm *svm, uint64_t gpa)
{
	_Atomic uint8_t *attr = page_attr(svm, gpa);
	uint8_t seen;

	if (!attr)
		return false;
	seen = atomic_load_explicit(attr, memory_order_relaxed);
	if (seen & PAGE_CODE)
		return false; /* WRITTEN stays clear: nobody needs to be stopped for the next translation */
	if ((seen & (PAGE_WRITTEN | PAGE_DIRTY)) != (PAGE_WRITTEN | PAGE_DIRTY))
		atomic_fetch_or(attr, PAGE_WRITTEN | PAGE_DIRTY);
	/* Ordered against cache_watch_page(): it sets CODE and then looks for WRITTEN. */
	atomic_thread_fence(memory_order_seq_cst);
	return !(atomic_load(attr) & PAGE_CODE);
}

/* The host address of an access that may go straight to RAM, after filling the TLB, or NULL; *next is NEXT_FAULT if its
 * one page is why. */
static uint8_t *mem_fill(struct soft_cpu *cpu, uint64_t linear, unsigned size, unsigned access,
			 int *next)
{
	struct soft_page page;
	uint64_t gpa;
	bool writable;
	uint8_t *hva;

	*next = NEXT_GO;
	atomic_fetch_add_explicit(&cpu->svm->n_tlb_miss, 1, memory_order_relaxed);
	if ((linear & PAGE_LOW) + size > 4096)
		return NULL;
	if ((cpu->mode & MODE_CODE64) && (uint64_t)((int64_t)(linear << 16) >> 16) != linear)
		return NULL;
	*next = soft_translate_va(cpu, linear, access, &gpa, &page);
	if (*next)
		return NULL;
	hva = cpu_ptr(cpu, gpa, size, &writable);
	if (!hva ||
	    (cpu->break_data && soft_debug_access(cpu, linear, size, access == ACCESS_WRITE)))
		return NULL;
	if (access == ACCESS_WRITE && (!writable || !page_write_direct(cpu->svm, gpa)))
		return NULL;
	tlb_put(cpu, cpu->kind, linear, hva, access == ACCESS_WRITE, &page);
	return hva;
}

/* What may be no access at all, under a mask, or a fault of another kind is not decided here. */
static bool fault_is_plain(uint64_t linear, uint32_t desc)
{
	return !(desc & MEM_MASKED) &&
	       !((desc & MEM_ALIGNED) && (linear & ((desc & MEM_SIZE) - 1)));
}

uint64_t soft_mem_fast(struct soft_cpu *cpu, uint64_t linear, uint32_t desc)
{
	int next;
	uint8_t *hva;

	cpu->bounce_active = 0;
	cpu->unwind = NEXT_GO;
	hva = mem_fill(cpu, linear, desc & MEM_SIZE, desc & MEM_WRITE ? ACCESS_WRITE : ACCESS_READ,
		       &next);
	if (hva)
		return (uint64_t)(uintptr_t)hva - linear;
	if (!next || !fault_is_plain(linear, desc))
		return SOFT_MEM_FULL;
	desc_set_rip(cpu, desc);
	return SOFT_MEM_FAULT;
}

void *soft_mem_probe(struct soft_cpu *cpu, uint64_t linear, uint32_t what)
{
	int next;

	return mem_fill(cpu, linear, what & PROBE_SIZE,
			what & PROBE_WRITE ? ACCESS_WRITE : ACCESS_READ, &next);
}

void *soft_direct(struct soft_cpu *cpu, uint64_t linear, uint64_t len, unsigned access, int *next)
{
	enum tlb_kind kind = kind_for(cpu, access);
	const struct soft_tlb *tlb = slot_of(cpu, kind)->tlb[kind];
	unsigned i = linear >> 12 & (TLB_ENTRIES - 1);
	bool write = access & ACCESS_WRITE, writable;
	struct soft_page page;
	uint64_t gpa;
	uint8_t *hva;

	*next = NEXT_GO;
	if (cpu->break_data && !(access & ACCESS_SYSTEM) &&
	    soft_debug_access(cpu, linear, len, write))
		return NULL;
	if ((linear + len - 1 + (write ? tlb->wtag[i] : tlb->rtag[i])) >> 12 == 0)
		return (uint8_t *)(uintptr_t)(linear + tlb->addend[i]);
	if ((linear & PAGE_LOW) + len > 4096)
		return NULL;
	*next = soft_translate_va(cpu, linear, access, &gpa, &page);
	if (*next)
		return NULL;
	hva = cpu_ptr(cpu, gpa, len, &writable);
	if (!hva || (write && (!writable || !page_write_direct(cpu->svm, gpa))))
		return NULL;
	tlb_put(cpu, kind, linear, hva, write, &page);
	return hva;
}

void *soft_direct_code(struct soft_cpu *cpu, uint64_t linear, uint64_t len, uint64_t *gpa)
{
	bool writable;
	uint8_t *hva;

	if (cpu->break_data || (linear & PAGE_LOW) + len > 4096 ||
	    soft_translate_va(cpu, linear, ACCESS_WRITE, gpa, NULL))
		return NULL;
	hva = cpu_ptr(cpu, *gpa, len, &writable);
	return hva && writable ? hva : NULL;
}

int soft_fetch_gpa(struct soft_cpu *cpu, uint64_t linear, uint64_t *gpa)
{
	struct soft_slot *slot = slot_of(cpu, cpu->cpl == 3 ? TLB_USER : TLB_SUPER);
	struct fetch_entry *f = &slot->fetch[linear >> 12 & (FETCH_ENTRIES - 1)];
	struct soft_page page;
	bool writable;

	if (f->va == (linear & ~PAGE_LOW) + 1) {
		*gpa = f->gpa | (linear & PAGE_LOW);
		return 0;
	}
	if (soft_translate_va(cpu, linear, ACCESS_FETCH, gpa, &page))
		return -1;
	if (!cpu_ptr(cpu, *gpa, 1, &writable))
		return -1;
	f->va = (linear & ~PAGE_LOW) + 1;
	f->gpa = *gpa & ~PAGE_LOW;
	bit_set(slot->code_pages, CODE_BIT(linear >> 12));
	slot_note_large(slot, linear, page.size);
	slot->local_code |= !page.global;
	return 0;
}

void soft_jump_cache_put(struct soft_cpu *cpu, uint64_t rip, struct soft_block *block)
{
	struct soft_slot *slot = slot_now(cpu);
	struct soft_tlb *tlb = cpu->tlb;
	unsigned i = JUMP_INDEX(rip);

	tlb->jump[i] = (struct soft_jump){.tag = -rip, .code = cpu->svm->code_rx + block->code};
	bit_set(slot->jtouched[cpu->kind], i / JUMP_GROUP);
	cpu->slots->known[KNOWN_INDEX(rip)] =
		(struct known_jump){.rip = rip, .epoch = slot->epoch[cpu->kind], .block = block};
}

struct soft_block *soft_jump_known(struct soft_cpu *cpu, uint64_t rip)
{
	const struct known_jump *k = &cpu->slots->known[KNOWN_INDEX(rip)];

	if (k->rip != rip || k->epoch != slot_now(cpu)->epoch[cpu->kind])
		return NULL;
	return atomic_load(&k->block->valid) ? k->block : NULL;
}

void soft_far_put(struct soft_cpu *cpu, uint32_t entry, uint32_t number)
{
	cpu->tlb->far[entry] = -cpu->page_rip - number;
	bit_set(slot_now(cpu)->ftouched[cpu->kind], entry / FAR_GROUP);
}

static void jumps_flush(struct soft_slot *slot, enum tlb_kind kind)
{
	struct soft_tlb *tlb = slot->tlb[kind];

	for (unsigned g = 0; group_next(slot->jtouched[kind], JUMP_WORDS, &g);)
		for (unsigned i = g * JUMP_GROUP; i < (g + 1) * JUMP_GROUP; i++)
			tlb->jump[i].tag = JUMP_EMPTY(i);
	slot->epoch[kind] += KNOWN_EPOCHS;
}

static void far_flush(struct soft_slot *slot, enum tlb_kind kind)
{
	for (unsigned g = 0; group_next(slot->ftouched[kind], FAR_WORDS, &g);)
		for (unsigned i = g * FAR_GROUP; i < (g + 1) * FAR_GROUP; i++)
			slot->tlb[kind]->far[i] = 0;
}

/* Whatever leads to code; `fetch` may stay. */
static void slot_flush_jumps(struct soft_slot *slot)
{
	for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
		if (!slot->tlb[kind])
			continue;
		jumps_flush(slot, kind);
		far_flush(slot, kind);
	}
}

static void code_flush(struct soft_slot *slot)
{
	slot_flush_jumps(slot);
	for (unsigned i = 0; i < FETCH_ENTRIES; i++)
		slot->fetch[i].va = 0;
	for (unsigned i = 0; i < CODE_PAGES / 64; i++)
		slot->code_pages[i] = 0;
	slot->local_code = false;
}

static void tags_flush(struct soft_slot *slot, enum tlb_kind kind)
{
	struct soft_tlb *tlb = slot->tlb[kind];

	if (!tlb)
		return;
	for (unsigned g = 0; group_next(slot->touched[kind], TLB_WORDS, &g);)
		for (unsigned i = g * TLB_GROUP; i < (g + 1) * TLB_GROUP; i++)
			tlb->rtag[i] = tlb->wtag[i] = TLB_EMPTY(i);
	slot->local[kind].n = 0;
}

static void slot_flush(struct soft_slot *slot)
{
	for (unsigned kind = 0; kind < TLB_KINDS; kind++)
		tags_flush(slot, kind);
	code_flush(slot);
	for (unsigned i = 0; i < LARGE_REGIONS / 64; i++)
		slot->large2m[i] = slot->large1g[i] = 0;
}

/* All but what comes from global pages. */
static void slot_drop_local(struct soft_slot *slot)
{
	for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
		struct local_entries *local = &slot->local[kind];
		struct soft_tlb *tlb = slot->tlb[kind];

		if (local->n == LOCAL_MAX)
			tags_flush(slot, kind);
		for (unsigned k = 0; k < local->n; k++) {
			unsigned i = local->index[k];

			tlb->rtag[i] = tlb->wtag[i] = TLB_EMPTY(i);
		}
		local->n = 0;
	}
	if (slot->local_code)
		code_flush(slot);
}

static void slot_drop_page(struct soft_slot *slot, uint64_t page)
{
	unsigned i = page >> 12 & (TLB_ENTRIES - 1);
	struct fetch_entry *f = &slot->fetch[page >> 12 & (FETCH_ENTRIES - 1)];

	for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
		struct soft_tlb *tlb = slot->tlb[kind];

		if (tlb && tlb->rtag[i] == -page)
			tlb->rtag[i] = tlb->wtag[i] = TLB_EMPTY(i);
	}
	if (f->va == page + 1)
		f->va = 0;
}

/* 4 MiB are 16 groups of entries; most have nothing in them. */
static void slot_drop_large(struct soft_slot *slot, uint64_t first)
{
	unsigned from = first >> 12 & (TLB_ENTRIES - 1);

	for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
		struct soft_tlb *tlb = slot->tlb[kind];

		for (unsigned i = from; i < from + LARGE_PAGE / 4096; i++) {
			if (!bit_test(slot->touched[kind], i / TLB_GROUP))
				i |= TLB_GROUP - 1;
			else if ((-tlb->rtag[i] & ~(LARGE_PAGE - 1)) == first)
				tlb->rtag[i] = tlb->wtag[i] = TLB_EMPTY(i);
		}
	}
	for (unsigned i = 0; i < FETCH_ENTRIES; i++)
		if ((slot->fetch[i].va & ~(LARGE_PAGE - 1)) == first)
			slot->fetch[i].va = 0;
}

/* Has anything been fetched from these pages, so that jumps may lead there? */
static bool slot_has_code(const struct soft_slot *slot, uint64_t linear, uint64_t pages)
{
	uint64_t first = linear >> 12;

	for (uint64_t page = first; page < first + pages; page++)
		if (bit_test(slot->code_pages, CODE_BIT(page)))
			return true;
	return false;
}

static void slot_flush_page(struct soft_slot *slot, uint64_t linear)
{
	uint64_t first = linear & ~PAGE_LOW, pages = 1;

	if (!slot->used)
		return;
	if (bit_test(slot->large1g, LARGE_BIT(linear >> 30))) {
		slot_flush(slot);
		return;
	}
	if (bit_test(slot->large2m, LARGE_BIT(linear / LARGE_PAGE))) {
		/* The page may be part of a 2 or 4 MiB one: its neighbours go too. */
		first = linear & ~(LARGE_PAGE - 1);
		pages = LARGE_PAGE / 4096;
		slot_drop_large(slot, first);
	} else {
		slot_drop_page(slot, first);
	}
	if (slot_has_code(slot, first, pages))
		slot_flush_jumps(slot);
}

void tlb_flush_jumps(struct soft_cpu *cpu)
{
	for (unsigned s = 0; s <= KERNEL_SLOT; s++)
		if (cpu->slots->slot[s].used)
			slot_flush_jumps(&cpu->slots->slot[s]);
}

void tlb_drop_writes(struct soft_cpu *cpu, const uint8_t *hva_page)
{
	for (unsigned s = 0; s <= KERNEL_SLOT; s++) {
		struct soft_slot *slot = &cpu->slots->slot[s];

		for (unsigned kind = 0; slot->used && kind < TLB_KINDS; kind++) {
			struct soft_tlb *tlb = slot->tlb[kind];

			for (unsigned g = 0; group_find(slot->touched[kind], TLB_WORDS, &g); g++) {
				/* Hardly any entry is of that page, so this comes first. */
				for (unsigned i = g * TLB_GROUP; i < (g + 1) * TLB_GROUP; i++)
					if (tlb->addend[i] - tlb->wtag[i] == (uintptr_t)hva_page &&
					    tlb->wtag[i] == tlb->rtag[i])
						tlb->wtag[i] = TLB_EMPTY(i);
			}
		}
	}
}

void soft_tlb_flush_all(struct soft_cpu *cpu, bool global_too)
{
	for (unsigned s = 0; s < SLOTS; s++)
		if (cpu->slots->slot[s].used)
			slot_flush(&cpu->slots->slot[s]);
	if (global_too)
		slot_flush(&cpu->slots->slot[KERNEL_SLOT]);
	else
		slot_drop_local(&cpu->slots->slot[KERNEL_SLOT]);
}

void soft_tlb_flush_page(struct soft_cpu *cpu, uint64_t linear)
{
	for (unsigned s = 0; s <= KERNEL_SLOT; s++)
		slot_flush_page(&cpu->slots->slot[s], linear);
}

void soft_tlb_fault(struct soft_cpu *cpu, uint64_t linear)
{
	slot_drop_page(&cpu->slots->slot[cpu->slots->current], linear & ~PAGE_LOW);
	slot_drop_page(&cpu->slots->slot[KERNEL_SLOT], linear & ~PAGE_LOW);
}

void soft_tlb_flush_pcid(struct soft_cpu *cpu, uint16_t pcid)
{
	for (unsigned s = 0; s < SLOTS; s++)
		if (cpu->slots->slot[s].used && cpu->slots->slot[s].key == pcid)
			slot_flush(&cpu->slots->slot[s]);
	slot_drop_local(&cpu->slots->slot[KERNEL_SLOT]);
}

void soft_tlb_flush_pcid_page(struct soft_cpu *cpu, uint16_t pcid, uint64_t linear)
{
	for (unsigned s = 0; s < SLOTS; s++)
		if (cpu->slots->slot[s].key == pcid)
			slot_flush_page(&cpu->slots->slot[s], linear);
	slot_flush_page(&cpu->slots->slot[KERNEL_SLOT], linear);
}

static unsigned slot_for(struct soft_slots *slots, uint32_t key)
{
	unsigned oldest = 0;

	for (unsigned s = 0; s < SLOTS; s++) {
		if (slots->slot[s].used && slots->slot[s].key == key)
			return s;
		if (!slots->slot[s].used ||
		    (slots->slot[oldest].used && slots->slot[s].stamp < slots->slot[oldest].stamp))
			oldest = s;
	}
	if (slots->slot[oldest].used)
		slot_flush(&slots->slot[oldest]);
	slots->slot[oldest].used = true;
	slots->slot[oldest].key = key;
	return oldest;
}

void soft_tlb_switch(struct soft_cpu *cpu, bool flush)
{
	struct soft_slots *slots = cpu->slots;
	uint32_t key = 0;

	if (!(cpu->cr0 & X86_CR0_PG))
		key = SLOT_NO_PAGING;
	else if (cpu->cr4 & X86_CR4_PCIDE)
		key = cpu->cr3 & 0xfff;
	slots->current = slot_for(slots, key);
	slots->slot[slots->current].stamp = ++slots->stamp;
	if (flush)
		slot_flush(&slots->slot[slots->current]);
	slot_drop_local(&slots->slot[KERNEL_SLOT]);
	soft_tlb_select(cpu);
}

/* Where CR4.SMAP is clear, supervisor mode has one table for both values of AC. */
static void sides_update(struct soft_cpu *cpu)
{
	bool smap = cpu->cr4 & X86_CR4_SMAP;

	for (unsigned i = 0; i < TLB_KINDS; i++) {
		enum tlb_kind kind = i == TLB_SUPER && !smap ? TLB_SUPER_AC : i;
		const struct soft_slot *slot = slot_of(cpu, kind);

		cpu->side[i].tlb = slot->tlb[kind];
		cpu->side[i].mode = slot->jmode[kind];
		cpu->side[i].kind = kind;
	}
}

void soft_tlb_select(struct soft_cpu *cpu)
{
	enum tlb_kind kind = kind_for(cpu, 0);
	struct soft_slot *slot = slot_of(cpu, kind);
	uint32_t mode = cpu->mode & ~(MODE_STEP | MODE_SHADOW);
	uint64_t cs = 0;

	if (!(cpu->mode & (MODE_CODE64 | MODE_FLAT)))
		cs = (uint32_t)cpu->seg[X86_CS].base | (uint64_t)cpu->seg[X86_CS].limit << 32;
	cpu->kind = kind;
	cpu->tlb = slot->tlb[kind];
	if (slot->jmode[kind] != mode || slot->jcs[kind] != cs) {
		jumps_flush(slot, kind);
		far_flush(slot, kind);
		slot->jmode[kind] = mode;
		slot->jcs[kind] = cs;
	}
	sides_update(cpu);
}
