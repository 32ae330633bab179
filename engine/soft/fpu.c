/*
 * Full: the x87 environment and FXSAVE's image (SDM vol. 1 chapters 8 and 10.5, vol. 2), and access to vector state
 * for C.
 *
 * Translated x87 code runs at host addresses, so the host's last-instruction pointer, data pointer and opcode mean
 * nothing to the guest and are none of its business: it reads them as zero always, and what it loads there is
 * dropped. (CPUs store them for unmasked exceptions only, or not at all, unless asked for compatibility.)
 */
#include "engine/soft/fpu.h"
#include "engine/soft/q_helper.h"

#include <string.h>

_Static_assert(XC_MAX <= SOFT_COMPONENTS, "a component has no place in the table");

#define FCW_INIT 0x37f
#define FCW_WRITABLE 0x1f3f
#define FCW_ONE 0x40 /* reads as one */
#define FSW_ES 0x80
#define FSW_BUSY 0x8000
#define X87_EXCEPTIONS 0x3f
#define FX_LEGACY_SIZE 512
#define FX_USED 416 /* what lies behind is software's */

/* ---- state -------------------------------------------------------------------------------------------- */

void fpu_model(struct soft_vm *svm, const struct cpuid_table *model)
{
	const struct cpuid_leaf *options = cpuid_find(model, 0xd, 1);

	svm->xsave_options = options ? options->regs.eax : 0;
	for (unsigned n = 2; n < XC_MAX; n++) {
		const struct cpuid_leaf *leaf = cpuid_find(model, 0xd, n);

		if (leaf && leaf->regs.ebx + leaf->regs.eax <= X86_XSAVE_MAX)
			svm->component[n] =
				(struct soft_component){.offset = (uint16_t)leaf->regs.ebx,
							.size = (uint16_t)leaf->regs.eax,
							.align = leaf->regs.ecx & 2};
	}
}

bool fpu_component(const struct soft_cpu *cpu, unsigned n, unsigned *offset, unsigned *size,
		   bool *align)
{
	const struct soft_component *c = &cpu->svm->component[n];

	*offset = c->offset;
	*size = c->size;
	*align = c->align;
	return c->size;
}

static void component_init(struct soft_cpu *cpu, unsigned n)
{
	unsigned offset, size;
	bool align;

	if (n == XC_X87) {
		memset(cpu->xsave, 0, FX_MXCSR);
		memset(cpu->xsave + FX_ST, 0, FX_XMM - FX_ST);
		bytes_set16(cpu->xsave + FX_FCW, FCW_INIT);
	} else if (n == XC_SSE) {
		memset(cpu->xsave + FX_XMM, 0, FX_USED - FX_XMM);
	} else if (fpu_component(cpu, n, &offset, &size, &align)) {
		memset(cpu->xsave + offset, 0, size);
	}
}

void fpu_materialize(struct soft_cpu *cpu, uint64_t mask)
{
	uint64_t stale = mask & ~bytes_get64(cpu->xsave + XS_BV);

	for (unsigned n = 0; n < XC_MAX; n++)
		if (stale >> n & 1)
			component_init(cpu, n);
}

void fpu_modify(struct soft_cpu *cpu, uint64_t mask)
{
	fpu_materialize(cpu, mask);
	bytes_set64(cpu->xsave + XS_BV, bytes_get64(cpu->xsave + XS_BV) | (mask & cpu->xsave_mask));
}

uint32_t fpu_mxcsr_mask(const struct soft_cpu *cpu)
{
	uint32_t mask = bytes_get32(cpu->xsave + FX_MXCSR_MASK);

	return mask ? mask : 0xffbf; /* SDM vol. 1, 11.6.6 */
}

void fpu_normalize_status(struct soft_cpu *cpu)
{
	uint16_t fcw = bytes_get16(cpu->xsave + FX_FCW), fsw = bytes_get16(cpu->xsave + FX_FSW);

	fcw = (fcw & FCW_WRITABLE) | FCW_ONE;
	fsw &= (uint16_t) ~(FSW_ES | FSW_BUSY);
	if (fsw & ~fcw & X87_EXCEPTIONS)
		fsw |= FSW_ES | FSW_BUSY;
	bytes_set16(cpu->xsave + FX_FCW, fcw);
	bytes_set16(cpu->xsave + FX_FSW, fsw);
}

int fpu_check_nm(struct soft_cpu *cpu, bool em_too)
{
	if ((cpu->cr0 & X86_CR0_TS) || (em_too && (cpu->cr0 & X86_CR0_EM)))
		return soft_raise(cpu, X86_NM);
	return 0;
}

/* ---- memory ------------------------------------------------------------------------------------------- */

int fpu_operand(struct soft_cpu *cpu, const struct insn *insn, unsigned size, unsigned access,
		uint64_t *linear)
{
	return soft_linear(cpu, insn->mem_seg, operand_offset(cpu, insn), size, access, linear);
}

int fpu_probe_write(struct soft_cpu *cpu, uint64_t linear, unsigned size)
{
	uint64_t gpa, first = 4096 - (linear & 0xfff), second = linear + first;
	int next = soft_translate_va(cpu, linear, ACCESS_WRITE, &gpa, NULL);

	if (next || size <= first)
		return next;
	if (!(cpu->mode & MODE_CODE64))
		second = (uint32_t)second;
	return soft_translate_va(cpu, second, ACCESS_WRITE, &gpa, NULL);
}

/* ---- x87 environment ---------------------------------------------------------------------------------- */

/* FXSAVE keeps one bit a register for "not empty"; the environment tells what is in it (SDM vol. 1, 8.1.7). */
static unsigned tag_of(const uint8_t *st)
{
	uint64_t fraction = bytes_get64(st);
	unsigned exponent = bytes_get16(st + 8) & 0x7fff;

	if (!exponent && !fraction)
		return 1;
	if (!exponent || exponent == 0x7fff || !(fraction >> 63))
		return 2;
	return 0;
}

static uint16_t tag_word(const struct soft_cpu *cpu)
{
	unsigned top = bytes_get16(cpu->xsave + FX_FSW) >> 11 & 7, word = 0;

	for (unsigned reg = 0; reg < 8; reg++) {
		unsigned tag = 3;

		if (cpu->xsave[FX_FTW] >> reg & 1)
			tag = tag_of(cpu->xsave + FX_ST + ((reg - top) & 7) * 16);
		word |= tag << reg * 2;
	}
	return (uint16_t)word;
}

static void tag_word_load(struct soft_cpu *cpu, uint16_t word)
{
	unsigned bits = 0;

	for (unsigned reg = 0; reg < 8; reg++)
		if ((word >> reg * 2 & 3) != 3)
			bits |= 1u << reg;
	cpu->xsave[FX_FTW] = (uint8_t)bits;
	cpu->xsave[FX_FTW + 1] = 0;
}

void fpu_set_top(struct soft_cpu *cpu, unsigned top)
{
	uint8_t *fx = cpu->xsave, turned[128];
	uint16_t fsw = bytes_get16(fx + FX_FSW);
	unsigned by = top - (fsw >> 11 & 7);

	for (unsigned i = 0; i < 8; i++)
		memcpy(turned + i * 16, fx + FX_ST + ((i + by) & 7) * 16, 16);
	memcpy(fx + FX_ST, turned, sizeof(turned));
	bytes_set16(fx + FX_FSW, (uint16_t)((fsw & ~0x3800) | top << 11));
}

/* FNSTENV and FNSAVE. Pointers are zero, so real-mode and protected-mode images are the same; the upper halves of
 * 32-bit fields that hold 16 bits are ones on every CPU. */
static unsigned environment_store(const struct soft_cpu *cpu, bool wide, uint8_t *out)
{
	const uint16_t field[3] = {bytes_get16(cpu->xsave + FX_FCW),
				   bytes_get16(cpu->xsave + FX_FSW), tag_word(cpu)};

	memset(out, 0, 28);
	for (unsigned i = 0; i < 3; i++) {
		bytes_set16(out + i * (wide ? 4 : 2), field[i]);
		if (wide)
			bytes_set16(out + i * 4 + 2, 0xffff);
	}
	if (wide)
		bytes_set16(out + 26, 0xffff);
	return wide ? 28 : 14;
}

static unsigned environment_load(struct soft_cpu *cpu, bool wide, const uint8_t *in)
{
	unsigned step = wide ? 4 : 2;

	fpu_set_top(cpu, bytes_get16(in + step) >> 11 & 7);
	bytes_set16(cpu->xsave + FX_FCW, bytes_get16(in));
	bytes_set16(cpu->xsave + FX_FSW, bytes_get16(in + step));
	tag_word_load(cpu, bytes_get16(in + 2 * step));
	memset(cpu->xsave + FX_FOP, 0, FX_MXCSR - FX_FOP);
	fpu_normalize_status(cpu);
	return wide ? 28 : 14;
}

/* An instruction that waits finds an exception that is still pending. */
static bool exception_pending(const struct soft_cpu *cpu)
{
	return (bytes_get64(cpu->xsave + XS_BV) >> XC_X87 & 1) &&
	       (bytes_get16(cpu->xsave + FX_FSW) & ~bytes_get16(cpu->xsave + FX_FCW) &
		X87_EXCEPTIONS);
}

/* By operand size: 14 or 28 bytes, 94 or 108 with registers. */
static bool environment_wide(const struct insn *insn)
{
	return insn->mem_size == 28 || insn->mem_size == 108;
}

static enum soft_next store_environment(struct soft_cpu *cpu, const struct insn *insn)
{
	bool save = insn->op == ZYDIS_MNEMONIC_FNSAVE;
	uint64_t linear, epoch = code_epoch(cpu);
	uint8_t image[108];
	unsigned size;
	int next;

	fpu_materialize(cpu, 1u << XC_X87);
	size = environment_store(cpu, environment_wide(insn), image);
	for (unsigned i = 0; save && i < 8; i++, size += 10)
		memcpy(image + size, cpu->xsave + FX_ST + i * 16, 10);
	next = fpu_operand(cpu, insn, size, ACCESS_WRITE, &linear);
	if (!next)
		next = soft_store(cpu, linear, image, size, ACCESS_WRITE);
	if (next)
		return next;
	fpu_modify(cpu, 1u << XC_X87);
	if (save) {
		/* FNINIT leaves the registers' contents, empty as they are. */
		fpu_set_top(cpu, 0);
		memset(cpu->xsave, 0, FX_MXCSR);
		bytes_set16(cpu->xsave + FX_FCW, FCW_INIT);
	} else {
		cpu->xsave[FX_FCW] |= X87_EXCEPTIONS;
		fpu_normalize_status(cpu);
	}
	return done_since(cpu, insn, epoch);
}

static enum soft_next load_environment(struct soft_cpu *cpu, const struct insn *insn)
{
	bool restore = insn->op == ZYDIS_MNEMONIC_FRSTOR, wide = environment_wide(insn);
	unsigned size = (wide ? 28 : 14) + (restore ? 80 : 0);
	uint8_t image[108];
	uint64_t linear;
	int next;

	if (exception_pending(cpu))
		return soft_raise(cpu, X86_MF);
	next = fpu_operand(cpu, insn, size, ACCESS_READ, &linear);
	if (!next)
		next = soft_load(cpu, linear, image, size, ACCESS_READ);
	if (next)
		return next;
	fpu_modify(cpu, 1u << XC_X87);
	size = environment_load(cpu, wide, image);
	for (unsigned i = 0; restore && i < 8; i++, size += 10)
		memcpy(cpu->xsave + FX_ST + i * 16, image + size, 10);
	return done(cpu, insn);
}

/* ---- FXSAVE and FXRSTOR ------------------------------------------------------------------------------- */

/* XMM8 to XMM15 are touched in 64-bit mode only. */
static unsigned fx_size(const struct insn *insn)
{
	return insn->mode == 64 ? FX_USED : FX_USED - 128;
}

static int fx_operand(struct soft_cpu *cpu, const struct insn *insn, unsigned access,
		      uint64_t *linear)
{
	int next = fpu_check_nm(cpu, true);

	if (!next)
		next = fpu_operand(cpu, insn, FX_LEGACY_SIZE, access, linear);
	if (!next && (*linear & 15))
		next = soft_raise_error(cpu, X86_GP, 0);
	return next;
}

static enum soft_next fxsave_helper(struct soft_cpu *cpu, const struct insn *insn)
{
	uint64_t linear, epoch = code_epoch(cpu);
	uint8_t image[FX_USED];
	int next = fx_operand(cpu, insn, ACCESS_WRITE, &linear);

	if (next)
		return next;
	fpu_materialize(cpu, 1u << XC_X87 | 1u << XC_SSE);
	memcpy(image, cpu->xsave, sizeof(image));
	memset(image + FX_FOP, 0, FX_MXCSR - FX_FOP);
	next = soft_store(cpu, linear, image, fx_size(insn), ACCESS_WRITE);
	return next ? (enum soft_next)next : done_since(cpu, insn, epoch);
}

static enum soft_next fxrstor_helper(struct soft_cpu *cpu, const struct insn *insn)
{
	uint8_t image[FX_LEGACY_SIZE];
	uint64_t linear;
	int next = fx_operand(cpu, insn, ACCESS_READ, &linear);

	if (!next)
		next = soft_load(cpu, linear, image, sizeof(image), ACCESS_READ);
	if (!next && (bytes_get32(image + FX_MXCSR) & ~fpu_mxcsr_mask(cpu)))
		next = soft_raise_error(cpu, X86_GP, 0);
	if (next)
		return next;
	fpu_modify(cpu, 1u << XC_X87 | 1u << XC_SSE);
	memcpy(cpu->xsave, image, FX_FTW + 1);
	memcpy(cpu->xsave + FX_MXCSR, image + FX_MXCSR, 4);
	memcpy(cpu->xsave + FX_ST, image + FX_ST, fx_size(insn) - FX_ST);
	memset(cpu->xsave + FX_FOP, 0, FX_MXCSR - FX_FOP);
	fpu_normalize_status(cpu);
	return done(cpu, insn);
}

soft_helper fpu_helper_for(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
		return fxsave_helper;
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
		return fxrstor_helper;
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
		return xsave_helper;
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
		return xrstor_helper;
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FNSAVE:
		return store_environment;
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FRSTOR:
		return load_environment;
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
		return maskmov_helper;
	default:
		return insn->mem_vsib ? gather_helper : NULL;
	}
}
