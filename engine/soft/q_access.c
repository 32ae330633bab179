/*
 * Quick: the guest memory accesses of C helpers, and segment checks.
 *
 * MMIO works by replay: an access that nobody answered yet leaves with NEXT_EXIT; when the vCPU is run next the
 * answer goes to cpu->replay and the instruction is executed again from its start, and finds its earlier accesses
 * answered. So a helper may access memory at any point as long as it changes registers only afterwards.
 */
#include "engine/soft/access.h"
#include "engine/soft/cache.h"
#include "engine/soft/lapic.h"
#include "engine/soft/tlb.h"
#include "vmm/exit.h"

#define PAGE_LOW 0xfffull

typedef uint32_t __attribute__((aligned(1), may_alias)) any_u32;
typedef uint16_t __attribute__((aligned(1), may_alias)) any_u16;

static inline void copy_bytes(void *to, const void *from, unsigned n)
{
	/* One access for what the guest may expect to be one. */
	if (n == 8 || n == 16) {
		for (unsigned i = 0; i < n / 8; i++)
			((volatile any_u64 *)to)[i] = ((const volatile any_u64 *)from)[i];
	} else if (n == 4)
		*(volatile any_u32 *)to = *(const volatile any_u32 *)from;
	else if (n == 2)
		*(volatile any_u16 *)to = *(const volatile any_u16 *)from;
	else
		__asm__ volatile("rep movsb"
				 : "+D"(to), "+S"(from), "+c"((uint64_t){n})
				 :
				 : "memory");
}

/* ---- MMIO --------------------------------------------------------------------------------------------- */

enum soft_next replay_answered(struct soft_cpu *cpu)
{
	struct soft_replay *r = &cpu->replay;

	r->read[r->count].value = cpu->exit->mmio.value;
	r->count++;
	r->next = 0;
	return NEXT_LEAVE;
}

/* One access of 1 to 8 bytes. 0 with *value, or NEXT_EXIT. */
int mmio_access(struct soft_cpu *cpu, uint64_t gpa, unsigned size, bool write, uint64_t *value)
{
	struct soft_replay *r = &cpu->replay;
	struct vm_exit *exit = cpu->exit;

	if (lapic_mmio(cpu, gpa, size, write, value))
		return 0;
	if (r->rip != cpu->rip) {
		soft_replay_clear(cpu);
		r->rip = cpu->rip;
	}
	if (r->next < r->count && r->read[r->next].gpa == gpa && r->read[r->next].size == size) {
		if (!write)
			*value = r->read[r->next].value;
		r->next++;
		return 0;
	}
	if (r->next >= SOFT_REPLAY_MAX) {
		/* No instruction has business with that many registers: an open bus. */
		*value = ~0ull;
		return 0;
	}
	r->count = r->next;
	r->read[r->count].gpa = gpa;
	r->read[r->count].size = (uint8_t)size;
	exit->code = EXIT_MMIO;
	exit->mmio.gpa = gpa;
	exit->mmio.size = (uint8_t)size;
	exit->mmio.write = write;
	exit->mmio.value = write ? *value : 0;
	cpu->complete = replay_answered;
	return NEXT_EXIT;
}

static int mmio_bytes(struct soft_cpu *cpu, uint64_t gpa, uint8_t *bytes, unsigned n, bool write)
{
	while (n) {
		unsigned part = n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
		uint64_t value = 0;

		if (write)
			copy_bytes(&value, bytes, part);
		if (mmio_access(cpu, gpa, part, write, &value))
			return NEXT_EXIT;
		if (!write)
			copy_bytes(bytes, &value, part);
		gpa += part;
		bytes += part;
		n -= part;
	}
	return 0;
}

/* ---- loads and stores --------------------------------------------------------------------------------- */

/* The pieces of an access: at most two pages. */
struct pieces {
	unsigned n;
	uint64_t gpa[2];
	unsigned len[2];
};

static int pieces_find(struct soft_cpu *cpu, uint64_t linear, unsigned size, unsigned access,
		       struct pieces *p)
{
	unsigned first = 4096 - (unsigned)(linear & PAGE_LOW);
	int next;

	p->n = 1;
	p->len[0] = size;
	p->len[1] = 0;
	next = soft_translate_va(cpu, linear, access, &p->gpa[0], NULL);
	if (next || size <= first)
		return next;
	p->n = 2;
	p->len[0] = first;
	p->len[1] = size - first;
	linear += first;
	if (!(cpu->mode & MODE_CODE64))
		linear = (uint32_t)linear;
	return soft_translate_va(cpu, linear, access, &p->gpa[1], NULL);
}

int soft_load(struct soft_cpu *cpu, uint64_t linear, void *out, unsigned size, unsigned access)
{
	struct pieces p;
	uint8_t *to = out;
	int next;
	const void *direct = soft_direct(cpu, linear, size, access | ACCESS_READ, &next);

	if (direct) {
		copy_bytes(to, direct, size);
		return 0;
	}
	if (!next)
		next = pieces_find(cpu, linear, size, access | ACCESS_READ, &p);

	for (unsigned i = 0; !next && i < p.n; i++) {
		bool writable;
		const uint8_t *from = cpu_ptr(cpu, p.gpa[i], p.len[i], &writable);

		if (from)
			copy_bytes(to, from, p.len[i]);
		else
			next = mmio_bytes(cpu, p.gpa[i], to, p.len[i], false);
		to += p.len[i];
	}
	return next;
}

/* RAM that may hold translated code: invalidated after the write. */
void ram_written(struct soft_cpu *cpu, uint64_t gpa, unsigned len)
{
	_Atomic uint8_t *attr = page_attr(cpu->svm, gpa);
	uint8_t seen;

	if (!attr)
		return;
	atomic_thread_fence(memory_order_seq_cst);
	seen = atomic_load(attr);
	if (!(seen & PAGE_DIRTY))
		seen = atomic_fetch_or(attr, PAGE_DIRTY);
	if (seen & PAGE_CODE)
		cache_invalidate(cpu->svm, gpa, len);
}

int soft_store(struct soft_cpu *cpu, uint64_t linear, const void *in, unsigned size,
	       unsigned access)
{
	struct pieces p;
	const uint8_t *from = in;
	int next;
	void *direct = soft_direct(cpu, linear, size, access | ACCESS_WRITE, &next);

	if (direct) {
		copy_bytes(direct, from, size);
		return 0;
	}
	if (!next)
		next = pieces_find(cpu, linear, size, access | ACCESS_WRITE, &p);

	for (unsigned i = 0; !next && i < p.n; i++) {
		bool writable;
		uint8_t *to = cpu_ptr(cpu, p.gpa[i], p.len[i], &writable);

		if (!to) {
			next = mmio_bytes(cpu, p.gpa[i], (uint8_t *)(uintptr_t)from, p.len[i],
					  true);
		} else if (writable) {
			copy_bytes(to, from, p.len[i]);
			ram_written(cpu, p.gpa[i], p.len[i]);
		}
		from += p.len[i];
	}
	return next;
}

/* ---- segments ----------------------------------------------------------------------------------------- */

static int segment_fault(struct soft_cpu *cpu, enum x86_segreg seg)
{
	return soft_raise_error(cpu, seg == X86_SS ? X86_SS_FAULT : X86_GP, 0);
}

static bool canonical(uint64_t linear)
{
	return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
}

/* SDM vol. 3 sections 5.3 to 5.5: limit and type. In real mode (CR0.PE=0) types are not looked at. */
bool segment_allows(const struct soft_cpu *cpu, const struct x86_seg *s, uint64_t offset,
		    unsigned size, unsigned access)
{
	unsigned type = s->attr & SEG_ATTR_TYPE;
	uint64_t last = offset + size - 1;

	if (s->unusable)
		return false;
	if (cpu->mode & MODE_PROT) {
		bool code = type & 8;

		if ((access & ACCESS_WRITE) && (code || !(type & 2)))
			return false;
		if ((access & ACCESS_READ) && code && !(type & 2))
			return false;
		if (!code && (type & 4)) /* expand down */
			return offset > s->limit &&
			       last <= (s->attr & SEG_ATTR_DB ? 0xffffffffull : 0xffff);
	}
	return last <= s->limit;
}

static int linear_aligned(struct soft_cpu *cpu, enum x86_segreg seg, uint64_t offset, unsigned size,
			  unsigned access, unsigned align, uint64_t *linear)
{
	const struct x86_seg *s = &cpu->seg[seg];

	if (cpu->mode & MODE_CODE64) {
		*linear = offset;
		if (seg == X86_FS || seg == X86_GS)
			*linear += s->base;
		if (!canonical(*linear) || !canonical(*linear + size - 1))
			return segment_fault(cpu, seg);
	} else {
		if (!segment_allows(cpu, s, offset, size, access))
			return segment_fault(cpu, seg);
		*linear = (uint32_t)(s->base + offset);
	}
	if ((cpu->mode & MODE_AC) && (*linear & (align - 1)))
		return soft_raise_error(cpu, X86_AC, 0);
	return 0;
}

int soft_linear(struct soft_cpu *cpu, enum x86_segreg seg, uint64_t offset, unsigned size,
		unsigned access, uint64_t *linear)
{
	return linear_aligned(cpu, seg, offset, size, access, operand_alignment(size), linear);
}

void desc_set_rip(struct soft_cpu *cpu, uint32_t desc)
{
	cpu->rip = cpu->page_rip + (desc >> MEM_OFFSET_SHIFT & 0xfff);
	if (!(cpu->mode & MODE_CODE64))
		cpu->rip = (uint32_t)cpu->rip;
}

uint64_t soft_mem_linear(struct soft_cpu *cpu, uint64_t offset, uint32_t desc)
{
	unsigned access = (desc & MEM_READ ? ACCESS_READ : 0) |
			  (desc & MEM_WRITE ? ACCESS_WRITE : 0);
	uint64_t linear = 0;

	desc_set_rip(cpu, desc);
	cpu->unwind = (uint64_t)linear_aligned(cpu, desc >> MEM_SEG_SHIFT & 7, offset,
					       desc & MEM_SIZE, access, cpu->align, &linear);
	return linear;
}
