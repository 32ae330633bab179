/*
 * Full: accesses of translated code that cannot go straight to RAM. The instruction runs on the bounce buffer,
 * which was filled before (reads) and is written out after it (commit).
 */
#include <string.h>

#include "engine/soft/access.h"
#include "engine/soft/cache.h"
#include "engine/soft/decode.h"
#include "engine/soft/fpu.h"
#include "engine/soft/lapic.h"
#include "engine/soft/tlb.h"
#include "vmm/vm.h"

#define PAGE_LOW 0xfffull

static uint64_t leave(struct soft_cpu *cpu, enum soft_next next)
{
	cpu->unwind = next;
	return 0;
}

/* ---- masked accesses ------------------------------------------------------------------------------------ */

/* The instruction at cpu->rip once more. */
static bool insn_again(struct soft_cpu *cpu, struct insn *insn)
{
	uint64_t linear = cpu->rip, gpa;
	uint8_t bytes[INSN_MAX];

	if (!(cpu->mode & MODE_CODE64))
		linear = (uint32_t)(linear + cpu->seg[X86_CS].base);
	for (unsigned i = 0; i < INSN_MAX; i++) {
		struct soft_fault fault = cpu->fault;
		bool there = !soft_translate_va(cpu, linear + i, ACCESS_FETCH, &gpa, NULL) &&
			     !memory_read(&cpu->svm->vm->memory, gpa, &bytes[i], 1);

		cpu->fault = fault;
		if (!there)
			return !insn_decode(bytes, i, cpu->mode, insn);
	}
	return !insn_decode(bytes, INSN_MAX, cpu->mode, insn);
}

/* Compressed stores and expanding loads have their elements side by side in memory. */
static bool is_packed(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_VCOMPRESSPD:
	case ZYDIS_MNEMONIC_VCOMPRESSPS:
	case ZYDIS_MNEMONIC_VPCOMPRESSB:
	case ZYDIS_MNEMONIC_VPCOMPRESSD:
	case ZYDIS_MNEMONIC_VPCOMPRESSQ:
	case ZYDIS_MNEMONIC_VPCOMPRESSW:
	case ZYDIS_MNEMONIC_VEXPANDPD:
	case ZYDIS_MNEMONIC_VEXPANDPS:
	case ZYDIS_MNEMONIC_VPEXPANDB:
	case ZYDIS_MNEMONIC_VPEXPANDD:
	case ZYDIS_MNEMONIC_VPEXPANDQ:
	case ZYDIS_MNEMONIC_VPEXPANDW:
		return true;
	default:
		return false;
	}
}

static uint64_t low_bits(unsigned n)
{
	return n >= 64 ? ~0ull : (1ull << n) - 1;
}

static uint64_t active_elements_evex(struct soft_cpu *cpu, const struct insn *insn, unsigned n)
{
	uint64_t mask = insn->mask_reg ? fpu_opmask_read(cpu, insn->mask_reg) : ~0ull, active = 0;
	unsigned bytes = insn->reg_element > insn->mem_element ? insn->reg_element
							       : insn->mem_element;
	unsigned lanes = insn->broadcast ? insn->vector_bytes / bytes : n;

	mask &= low_bits(lanes);
	if (is_packed(insn))
		return low_bits((unsigned)__builtin_popcountll(mask));
	for (unsigned i = 0; i < lanes && i < 64; i++)
		active |= (mask >> i & 1) << i % n;
	return active;
}

/* One bit an element of the memory operand, which has n: those that the mask lets through. */
static uint64_t active_elements(struct soft_cpu *cpu, const struct insn *insn, unsigned n)
{
	uint8_t reg[FPU_VECTOR_MAX];
	uint64_t mask = 0;

	if (insn->encoding == ENC_EVEX)
		return active_elements_evex(cpu, insn, n);
	/* VMASKMOV: the sign bits of the elements of register vvvv. */
	fpu_vector_read(cpu, insn->vvvv, reg);
	for (unsigned i = 0; i < n && (i + 1) * insn->mem_element <= sizeof(reg); i++)
		mask |= (uint64_t)(reg[(i + 1) * insn->mem_element - 1] >> 7) << i;
	return mask;
}

/* What a mask lets through of an access. */
static void find_wanted(struct soft_cpu *cpu, uint32_t desc)
{
	struct soft_bounce *b = &cpu->bounce;
	unsigned size = desc & MEM_SIZE, n;
	uint64_t active;
	struct insn insn;

	b->wanted = b->needed = low_bits(size);
	if (!(desc & MEM_MASKED) || !insn_again(cpu, &insn) || !insn.mem_element)
		return;
	n = size / insn.mem_element;
	active = active_elements(cpu, &insn, n);
	for (unsigned i = 0; i < n; i++)
		if (!(active >> i & 1))
			b->wanted &= ~(low_bits(insn.mem_element) << i * insn.mem_element);
	if (insn.encoding == ENC_VEX || insn.suppresses)
		b->needed = b->wanted;
}

/* Of such bits the ones for a page piece, counted from its beginning. */
static uint64_t of_piece(const struct soft_bounce *b, unsigned piece, uint64_t bits)
{
	return piece ? bits >> b->len[0] : bits & low_bits(b->len[0]);
}

/* The next bytes to access in one go from *done on: a part of 8, 4, 2 or 1 of a run of wanted ones. 0: none are left. */
static unsigned next_part(uint64_t wanted, unsigned *done)
{
	unsigned run;

	if (*done >= 64 || !(wanted >> *done))
		return 0;
	*done += (unsigned)__builtin_ctzll(wanted >> *done);
	wanted = ~(wanted >> *done);
	run = wanted ? (unsigned)__builtin_ctzll(wanted) : 64;
	return run >= 8 ? 8 : run >= 4 ? 4 : run >= 2 ? 2 : 1;
}

/* A page piece of the access faulted. False if no byte of it is needed; else CR2 becomes the first that is. */
static bool piece_fault(struct soft_cpu *cpu, unsigned piece)
{
	const struct soft_bounce *b = &cpu->bounce;
	uint64_t needed = of_piece(b, piece, b->needed);

	if (needed && cpu->fault.vector == X86_PF)
		cpu->fault.cr2 =
			b->linear + (piece ? b->len[0] : 0) + (unsigned)__builtin_ctzll(needed);
	return needed;
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
		b->skip[i] = false;
		b->mmio[i] = false;
		if (soft_translate_va(cpu, i ? second : linear, access, &b->gpa[i], NULL)) {
			if (piece_fault(cpu, i))
				return NEXT_FAULT;
			b->skip[i] = true;
			continue;
		}
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
		unsigned done = 0, part;

		if (b->skip[i] || b->mmio[i])
			memset(to, 0, b->len[i]);
		else
			memcpy(to, cpu_ptr(cpu, b->gpa[i], b->len[i], &writable), b->len[i]);
		while (b->mmio[i] && (part = next_part(of_piece(b, i, b->wanted), &done)) > 0) {
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

	if (b->pieces != 1 || b->mmio[0] || b->skip[0] || !b->write)
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

/* Moves of whole vectors that are for aligned memory alone. */
static bool moves_aligned(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_MOVAPD:
	case ZYDIS_MNEMONIC_MOVAPS:
	case ZYDIS_MNEMONIC_MOVDQA:
	case ZYDIS_MNEMONIC_MOVNTDQ:
	case ZYDIS_MNEMONIC_MOVNTDQA:
	case ZYDIS_MNEMONIC_MOVNTPD:
	case ZYDIS_MNEMONIC_MOVNTPS:
		return true;
	default:
		return insn->encoding != ENC_LEGACY || insn->op == ZYDIS_MNEMONIC_CMPXCHG16B;
	}
}

/* Is it misaligned where that is #GP? Not with MXCSR.MM, which AMD's CPUs have, but for moves (APM vol. 1, 4.3.2). */
static bool misaligned(struct soft_cpu *cpu, uint64_t linear, uint32_t desc)
{
	struct insn insn;

	if (!(desc & MEM_ALIGNED) || !(linear & ((desc & MEM_SIZE) - 1)))
		return false;
	return !(bytes_get32(cpu->xsave + FX_MXCSR) & MXCSR_MM) || !insn_again(cpu, &insn) ||
	       moves_aligned(&insn);
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
	find_wanted(cpu, desc);
	if (misaligned(cpu, linear, desc) && b->needed)
		return leave(cpu, soft_raise_error(cpu, X86_GP, 0));
	if ((cpu->mode & MODE_CODE64) && !canonical_range(linear, desc & MEM_SIZE) && b->needed) {
		bool stack = (desc >> MEM_SEG_SHIFT & 7) == X86_SS;

		return leave(cpu, soft_raise_error(cpu, stack ? X86_SS_FAULT : X86_GP, 0));
	}
	next = bounce_pieces(cpu, linear, desc);
	if (next)
		return leave(cpu, next);
	if (cpu->break_data)
		soft_debug_access(cpu, linear, desc & MEM_SIZE, desc & MEM_WRITE);
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
		unsigned part;

		while (b->mmio[i] && (part = next_part(of_piece(b, i, b->wanted), &done)) > 0) {
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

/* What a mask leaves out is not touched: another vCPU may be writing it. */
static void copy_wanted(uint8_t *to, const uint8_t *from, uint64_t wanted, unsigned len)
{
	unsigned done = 0, part;

	if (wanted == low_bits(len))
		memcpy(to, from, len);
	else
		for (; (part = next_part(wanted, &done)) > 0; done += part)
			memcpy(to + done, from + done, part);
}

static void commit_ram(struct soft_cpu *cpu)
{
	struct soft_bounce *b = &cpu->bounce;
	const uint8_t *from = b->bytes + (b->linear & 63);

	for (unsigned i = 0; i < b->pieces; from += b->len[i], i++) {
		bool writable = false;
		uint8_t *to = b->mmio[i] || b->skip[i]
				      ? NULL
				      : cpu_ptr(cpu, b->gpa[i], b->len[i], &writable);

		if (!to || !writable)
			continue;
		if (!b->direct)
			copy_wanted(to, from, of_piece(b, i, b->wanted), b->len[i]);
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
