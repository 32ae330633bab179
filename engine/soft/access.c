/*
 * Full: accesses of translated code that cannot go straight to RAM. The instruction runs on the bounce buffer,
 * which was filled before (reads) and is written out after it (commit).
 */
#include <string.h>

#include "engine/soft/access.h"
#include "engine/soft/cache.h"
#include "engine/soft/lapic.h"
#include "engine/soft/tlb.h"
#include "vmm/exit.h"

#define PAGE_LOW 0xfffull

static uint64_t leave(struct soft_cpu *cpu, enum soft_next next)
{
	cpu->unwind = next;
	return 0;
}

/* Where the access goes, in one or two pieces. */
static enum soft_next bounce_pieces(struct soft_cpu *cpu, uint64_t linear, uint32_t desc)
{
	struct soft_bounce *b = &cpu->bounce;
	unsigned size = desc & MEM_SIZE, first = 4096 - (unsigned)(linear & PAGE_LOW);
	unsigned access = desc & MEM_WRITE ? ACCESS_WRITE : ACCESS_READ;
	uint64_t second = linear + first;
	bool writable;

	if (!(cpu->mode & MODE_CODE64))
		second = (uint32_t)second;
	b->linear = linear;
	b->size = size;
	b->write = desc & MEM_WRITE;
	b->direct = b->exclusive = false;
	b->pieces = size > first ? 2 : 1;
	b->len[0] = size > first ? first : size;
	b->len[1] = size - b->len[0];
	for (unsigned i = 0; i < b->pieces; i++) {
		if (soft_translate_va(cpu, i ? second : linear, access, &b->gpa[i], NULL))
			return NEXT_FAULT;
		b->mmio[i] = !cpu_ptr(cpu, b->gpa[i], b->len[i], &writable);
	}
	return NEXT_GO;
}

static enum soft_next bounce_fill(struct soft_cpu *cpu)
{
	struct soft_bounce *b = &cpu->bounce;
	uint8_t *to = b->bytes + (b->linear & 63);

	for (unsigned i = 0; i < b->pieces; to += b->len[i], i++) {
		bool writable;
		unsigned done = 0;

		if (!b->mmio[i]) {
			memcpy(to, cpu_ptr(cpu, b->gpa[i], b->len[i], &writable), b->len[i]);
			continue;
		}
		while (done < b->len[i]) {
			unsigned left = b->len[i] - done;
			unsigned part = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
			uint64_t value = 0;

			if (mmio_access(cpu, b->gpa[i] + done, part, false, &value))
				return NEXT_EXIT;
			memcpy(to + done, &value, part);
			done += part;
		}
	}
	return NEXT_GO;
}

/* A write within a page of RAM that holds code: it goes there itself, so that it stays atomic. */
static uint8_t *bounce_direct(struct soft_cpu *cpu)
{
	struct soft_bounce *b = &cpu->bounce;
	bool writable;
	uint8_t *p;

	if (b->pieces != 1 || b->mmio[0] || !b->write)
		return NULL;
	p = cpu_ptr(cpu, b->gpa[0], b->len[0], &writable);
	return writable ? p : NULL;
}

static bool canonical_range(uint64_t linear, unsigned size)
{
	uint64_t last = linear + size - 1;

	return (uint64_t)((int64_t)(linear << 16) >> 16) == linear &&
	       (uint64_t)((int64_t)(last << 16) >> 16) == last;
}

uint64_t soft_mem_slow(struct soft_cpu *cpu, uint64_t linear, uint32_t desc)
{
	struct soft_bounce *b = &cpu->bounce;
	enum soft_next next;
	uint8_t *direct;

	atomic_fetch_add_explicit(&cpu->svm->n_slow, 1, memory_order_relaxed);
	cpu->unwind = NEXT_GO;
	cpu->bounce_active = 0;
	desc_set_rip(cpu, desc);
	if ((cpu->mode & MODE_CODE64) && !canonical_range(linear, desc & MEM_SIZE)) {
		bool stack = (desc >> MEM_SEG_SHIFT & 7) == X86_SS;

		return leave(cpu, soft_raise_error(cpu, stack ? X86_SS_FAULT : X86_GP, 0));
	}
	next = bounce_pieces(cpu, linear, desc);
	if (next)
		return leave(cpu, next);
	direct = bounce_direct(cpu);
	if (direct) {
		b->direct = true;
		cpu->bounce_active = 1;
		return (uint64_t)(uintptr_t)direct - linear;
	}
	if (desc & MEM_LOCK) {
		/* Split over two pages, or on MMIO: nobody else runs until it is done. */
		uint64_t flushes = atomic_load(&cpu->svm->n_flushes);

		exclusive_begin(cpu);
		b->exclusive = true;
		if (atomic_load(&cpu->svm->n_flushes) != flushes) {
			exclusive_end(cpu);
			return leave(cpu, NEXT_LEAVE);
		}
	}
	next = (desc & MEM_READ) ? bounce_fill(cpu) : NEXT_GO;
	if (next) {
		if (b->exclusive)
			exclusive_end(cpu);
		return leave(cpu, next);
	}
	soft_replay_clear(cpu);
	if (desc & MEM_WRITE)
		cpu->bounce_active = 1;
	return (uint64_t)(uintptr_t)(b->bytes + (linear & 63)) - linear;
}

/* ---- commit ------------------------------------------------------------------------------------------- */

/* The next part of an MMIO piece to be written, from complete_arg[0] = piece, [1] = bytes of it done, [2] = bytes
 * of the buffer before it. */
static enum soft_next commit_continue(struct soft_cpu *cpu)
{
	struct soft_bounce *b = &cpu->bounce;
	struct vm_exit *exit = cpu->exit;
	unsigned i = (unsigned)cpu->complete_arg[0];
	unsigned done = (unsigned)cpu->complete_arg[1];

	for (; i < b->pieces; i++, done = 0) {
		const uint8_t *from = b->bytes + (b->linear & 63) + (i ? b->len[0] : 0);

		while (b->mmio[i] && done < b->len[i]) {
			unsigned left = b->len[i] - done;
			unsigned part = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
			uint64_t gpa = b->gpa[i] + done, value = 0;

			memcpy(&value, from + done, part);
			done += part;
			if (lapic_mmio(cpu, gpa, part, true, &value))
				continue;
			exit->code = EXIT_MMIO;
			exit->mmio.gpa = gpa;
			exit->mmio.size = (uint8_t)part;
			exit->mmio.write = true;
			exit->mmio.value = value;
			cpu->complete_arg[0] = i;
			cpu->complete_arg[1] = done;
			cpu->complete = commit_continue;
			return NEXT_EXIT;
		}
	}
	return NEXT_LEAVE;
}

static void commit_ram(struct soft_cpu *cpu)
{
	struct soft_bounce *b = &cpu->bounce;
	const uint8_t *from = b->bytes + (b->linear & 63);

	for (unsigned i = 0; i < b->pieces; from += b->len[i], i++) {
		bool writable = false;
		uint8_t *to = b->mmio[i] ? NULL : cpu_ptr(cpu, b->gpa[i], b->len[i], &writable);

		if (!to || !writable)
			continue;
		if (!b->direct)
			memcpy(to, from, b->len[i]);
		ram_written(cpu, b->gpa[i], b->len[i]);
	}
}

enum soft_next soft_mem_commit(struct soft_cpu *cpu, uint32_t desc)
{
	struct soft_bounce *b = &cpu->bounce;
	uint64_t before = atomic_load(&cpu->svm->n_invalidated);
	uint64_t flushes = atomic_load(&cpu->svm->n_flushes);
	enum soft_next next;

	cpu->bounce_active = 0;
	if (!(desc & MEM_KEEP_RIP)) {
		desc_set_rip(cpu, desc);
		cpu->rip += desc >> MEM_LEN_SHIFT;
		if (!(cpu->mode & MODE_CODE64))
			cpu->rip = (uint32_t)cpu->rip;
	}
	commit_ram(cpu);
	cpu->complete_arg[0] = cpu->complete_arg[1] = 0;
	next = b->mmio[0] || (b->pieces == 2 && b->mmio[1]) ? commit_continue(cpu) : NEXT_GO;
	if (b->exclusive)
		exclusive_end(cpu);
	if (next == NEXT_GO && (atomic_load(&cpu->svm->n_invalidated) != before ||
				atomic_load(&cpu->svm->n_flushes) != flushes))
		next = NEXT_LEAVE;
	return next;
}
