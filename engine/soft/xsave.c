/*
 * Full: XSAVE, XSAVEOPT, XSAVEC and XRSTOR (SDM vol. 1 chapter 13). The modified optimization is not made: XSAVEOPT
 * skips components in their initial state only. No supervisor states, no PKRU.
 *
 * The layout of the standard format is the host's, so cpu->xsave and the guest's area have the same offsets.
 */
#include <string.h>

#include "engine/soft/fpu.h"
#include "engine/soft/q_helper.h"

#define XCOMP_COMPACT (1ull << 63)
#define HEADER_SIZE 64
#define SSE_OR_AVX (1ull << XC_SSE | 1ull << XC_AVX)

enum xsave_kind { KIND_XSAVE, KIND_XSAVEOPT, KIND_XSAVEC };

/* Bytes of component n that are in use: outside 64-bit mode registers 8 and up stay out of it (SDM vol. 1, 13.5). */
static unsigned used_size(const struct insn *insn, unsigned n, unsigned size)
{
	if (insn->mode == 64 || n == XC_OPMASK)
		return size;
	return n == XC_HI16_ZMM ? 0 : size / 2;
}

/* Offset in the guest's area: fixed, or behind the components of XCOMP_BV that precede it. */
static unsigned area_offset(const struct soft_cpu *cpu, uint64_t xcomp, unsigned n)
{
	unsigned offset, size, at = XS_EXTENDED;
	bool align;

	if (!(xcomp & XCOMP_COMPACT))
		return fpu_component(cpu, n, &offset, &size, &align) ? offset : 0;
	for (unsigned i = 2; i <= n; i++) {
		if (!(xcomp >> i & 1) || !fpu_component(cpu, i, &offset, &size, &align))
			continue;
		if (align)
			at = (at + 63) & ~63u;
		if (i < n)
			at += size;
	}
	return at;
}

/* Where an area with these components ends. */
static unsigned area_size(const struct soft_cpu *cpu, uint64_t xcomp, uint64_t components)
{
	unsigned offset, size, end = XS_EXTENDED;
	bool align;

	for (unsigned n = 2; n < XC_MAX; n++) {
		if (!(components >> n & 1) || !fpu_component(cpu, n, &offset, &size, &align))
			continue;
		offset = area_offset(cpu, xcomp, n);
		if (offset + size > end)
			end = offset + size;
	}
	return end;
}

static bool model_option(const struct soft_cpu *cpu, unsigned bit)
{
	return cpu->svm->xsave_options >> bit & 1;
}

/* The address of the area, after the checks that all forms make. */
static int xsave_operand(struct soft_cpu *cpu, const struct insn *insn, unsigned size,
			 unsigned access, uint64_t *linear)
{
	int next = fpu_operand(cpu, insn, size, access, linear);

	if (!next && (*linear & 63))
		next = soft_raise_error(cpu, X86_GP, 0);
	return next;
}

/* #UD and #NM come before anything that the address could cause. */
static int xsave_check(struct soft_cpu *cpu)
{
	if (!(cpu->cr4 & X86_CR4_OSXSAVE))
		return soft_raise(cpu, X86_UD);
	return fpu_check_nm(cpu, false);
}

static uint64_t requested(const struct soft_cpu *cpu)
{
	uint64_t mask = (uint32_t)cpu->gpr[X86_RAX] | cpu->gpr[X86_RDX] << 32;

	return mask & cpu->xcr0;
}

/* XINUSE of the components that the guest has. */
static uint64_t components_in_use(const struct soft_cpu *cpu)
{
	return bytes_get64(cpu->xsave + XS_BV) & cpu->xcr0;
}

/* ---- saving ------------------------------------------------------------------------------------------- */

struct saver {
	struct soft_cpu *cpu;
	uint64_t linear;
	int next;
};

static void save_piece(struct saver *s, unsigned offset, const void *from, unsigned size)
{
	if (!s->next && size)
		s->next = soft_store(s->cpu, s->linear + offset, from, size, ACCESS_WRITE);
}

static void save_legacy(struct saver *s, const struct insn *insn, uint64_t saved, bool mxcsr)
{
	const uint8_t *state = s->cpu->xsave;
	uint8_t head[FX_MXCSR];

	if (saved >> XC_X87 & 1) {
		memcpy(head, state, sizeof(head));
		memset(head + FX_FOP, 0, FX_MXCSR - FX_FOP);
		save_piece(s, 0, head, sizeof(head));
		save_piece(s, FX_ST, state + FX_ST, FX_XMM - FX_ST);
	}
	if (mxcsr)
		save_piece(s, FX_MXCSR, state + FX_MXCSR, 8);
	if (saved >> XC_SSE & 1)
		save_piece(s, FX_XMM, state + FX_XMM, used_size(insn, XC_SSE, 256));
}

static void save_header(struct saver *s, uint64_t rfbm, uint64_t xstate_bv, uint64_t xcomp)
{
	uint64_t header[2] = {xstate_bv, xcomp};

	if (xcomp) {
		save_piece(s, XS_BV, header, 16);
		return;
	}
	/* The bits of components that were not asked for stay. */
	if (!s->next)
		s->next = soft_load(s->cpu, s->linear + XS_BV, header, 8, ACCESS_READ);
	header[0] = (header[0] & ~rfbm) | xstate_bv;
	save_piece(s, XS_BV, header, 8);
}

static int save_area(struct soft_cpu *cpu, const struct insn *insn, uint64_t linear, uint64_t rfbm,
		     enum xsave_kind kind)
{
	struct saver s = {.cpu = cpu, .linear = linear};
	uint64_t xcomp = kind == KIND_XSAVEC ? rfbm | XCOMP_COMPACT : 0;
	uint64_t inuse = components_in_use(cpu) & rfbm, saved;
	bool mxcsr = rfbm & SSE_OR_AVX;

	/* 13.10: for XSAVEC, MXCSR is a part of SSE state. */
	if (kind == KIND_XSAVEC) {
		if (bytes_get32(cpu->xsave + FX_MXCSR) != MXCSR_INIT)
			inuse |= rfbm & 1ull << XC_SSE;
		mxcsr = inuse >> XC_SSE & 1;
	}
	saved = kind == KIND_XSAVE ? rfbm : inuse;
	fpu_materialize(cpu, saved);
	save_legacy(&s, insn, saved, mxcsr);
	for (unsigned n = 2; n < XC_MAX; n++) {
		unsigned offset, size;
		bool align;

		if ((saved >> n & 1) && fpu_component(cpu, n, &offset, &size, &align))
			save_piece(&s, area_offset(cpu, xcomp, n), cpu->xsave + offset,
				   used_size(insn, n, size));
	}
	save_header(&s, rfbm, inuse, xcomp);
	return s.next;
}

enum soft_next xsave_helper(struct soft_cpu *cpu, const struct insn *insn)
{
	uint64_t linear, epoch = code_epoch(cpu), rfbm = requested(cpu);
	enum xsave_kind kind = KIND_XSAVE;
	unsigned size;
	int next;

	if (insn->op == ZYDIS_MNEMONIC_XSAVEC || insn->op == ZYDIS_MNEMONIC_XSAVEC64)
		kind = KIND_XSAVEC;
	else if (insn->op == ZYDIS_MNEMONIC_XSAVEOPT || insn->op == ZYDIS_MNEMONIC_XSAVEOPT64)
		kind = KIND_XSAVEOPT;
	if (kind != KIND_XSAVE && !model_option(cpu, kind == KIND_XSAVEOPT ? 0 : 1))
		return soft_raise(cpu, X86_UD);
	next = xsave_check(cpu);
	if (next)
		return next;
	size = area_size(cpu, kind == KIND_XSAVEC ? rfbm | XCOMP_COMPACT : 0, rfbm);
	next = xsave_operand(cpu, insn, size, ACCESS_WRITE, &linear);
	/* All or nothing. */
	if (!next)
		next = fpu_probe_write(cpu, linear, size);
	if (!next)
		next = save_area(cpu, insn, linear, rfbm, kind);
	return next ? (enum soft_next)next : done_since(cpu, insn, epoch);
}

/* ---- restoring ---------------------------------------------------------------------------------------- */

/* 13.8.1. */
static bool header_valid(const struct soft_cpu *cpu, const uint8_t *header)
{
	uint64_t bv = bytes_get64(header), xcomp = bytes_get64(header + 8);
	unsigned reserved = 16, end = HEADER_SIZE;

	if (xcomp & XCOMP_COMPACT) {
		if (!model_option(cpu, 1) || (xcomp & ~XCOMP_COMPACT & ~cpu->xcr0) || (bv & ~xcomp))
			return false;
	} else {
		if (xcomp || (bv & ~cpu->xcr0))
			return false;
		end = 24;
	}
	while (reserved < end)
		if (header[reserved++])
			return false;
	return true;
}

/* Is MXCSR loaded from the area, or (compacted, SSE not in it) set to its initial value, or left? */
enum mxcsr_source { MXCSR_KEEP, MXCSR_LOAD, MXCSR_RESET };

static enum mxcsr_source mxcsr_source(uint64_t rfbm, uint64_t bv, uint64_t xcomp)
{
	if (!(xcomp & XCOMP_COMPACT))
		return rfbm & SSE_OR_AVX ? MXCSR_LOAD : MXCSR_KEEP;
	if (!(rfbm >> XC_SSE & 1))
		return MXCSR_KEEP;
	return bv >> XC_SSE & 1 ? MXCSR_LOAD : MXCSR_RESET;
}

/* Component n becomes the area's, or initial. */
static void restore_component(struct soft_cpu *cpu, const struct insn *insn, unsigned n,
			      const uint8_t *area, uint64_t xcomp, bool load)
{
	unsigned offset = FX_XMM, from = FX_XMM, size = 256;
	bool align;

	if (n >= 2) {
		if (!fpu_component(cpu, n, &offset, &size, &align))
			return;
		from = area_offset(cpu, xcomp, n);
	}
	size = used_size(insn, n, size);
	if (!load && insn->mode == 64) {
		/* The host knows best what an initial state is. */
		bytes_set64(cpu->xsave + XS_BV, bytes_get64(cpu->xsave + XS_BV) & ~(1ull << n));
		return;
	}
	if (!load && !(bytes_get64(cpu->xsave + XS_BV) >> n & 1))
		return;
	fpu_modify(cpu, 1ull << n);
	if (load)
		memcpy(cpu->xsave + offset, area + from, size);
	else
		memset(cpu->xsave + offset, 0, size);
}

static void restore_x87(struct soft_cpu *cpu, const uint8_t *area, bool load)
{
	if (!load) {
		bytes_set64(cpu->xsave + XS_BV, bytes_get64(cpu->xsave + XS_BV) & ~1ull);
		return;
	}
	fpu_modify(cpu, 1u << XC_X87);
	memset(cpu->xsave, 0, FX_MXCSR);
	memcpy(cpu->xsave, area, FX_FTW + 1);
	memcpy(cpu->xsave + FX_ST, area + FX_ST, FX_XMM - FX_ST);
	fpu_normalize_status(cpu);
}

enum soft_next xrstor_helper(struct soft_cpu *cpu, const struct insn *insn)
{
	uint64_t linear, rfbm = requested(cpu), bv, xcomp;
	uint8_t area[X86_XSAVE_MAX];
	enum mxcsr_source mxcsr;
	unsigned size;
	int next = xsave_check(cpu);

	if (!next)
		next = xsave_operand(cpu, insn, XS_EXTENDED, ACCESS_READ, &linear);
	if (!next)
		next = soft_load(cpu, linear, area, XS_EXTENDED, ACCESS_READ);
	if (!next && !header_valid(cpu, area + XS_BV))
		next = soft_raise_error(cpu, X86_GP, 0);
	if (next)
		return next;
	bv = bytes_get64(area + XS_BV);
	xcomp = bytes_get64(area + XS_XCOMP_BV);
	mxcsr = mxcsr_source(rfbm, bv, xcomp);
	if (mxcsr == MXCSR_LOAD && (bytes_get32(area + FX_MXCSR) & ~fpu_mxcsr_mask(cpu)))
		return soft_raise_error(cpu, X86_GP, 0);
	size = area_size(cpu, xcomp, rfbm & bv);
	if (size > XS_EXTENDED) {
		next = xsave_operand(cpu, insn, size, ACCESS_READ, &linear);
		if (!next)
			next = soft_load(cpu, linear + XS_EXTENDED, area + XS_EXTENDED,
					 size - XS_EXTENDED, ACCESS_READ);
		if (next)
			return next;
	}
	if (rfbm & 1)
		restore_x87(cpu, area, bv & 1);
	for (unsigned n = 1; n < XC_MAX; n++)
		if (rfbm >> n & 1)
			restore_component(cpu, insn, n, area, xcomp, bv >> n & 1);
	if (mxcsr != MXCSR_KEEP)
		bytes_set32(cpu->xsave + FX_MXCSR,
			    mxcsr == MXCSR_LOAD ? bytes_get32(area + FX_MXCSR) : MXCSR_INIT);
	return done(cpu, insn);
}
