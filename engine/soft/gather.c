/*
 * Full: vector instructions whose memory accesses are not one operand: masked byte stores (MASKMOVQ, MASKMOVDQU),
 * gathers and scatters (SDM vol. 2, VPGATHERDD and on). Elements are done in order; each that is done leaves the
 * mask, so that the instruction goes on where a fault stopped it.
 */
#include <string.h>

#include "engine/soft/fpu.h"
#include "engine/soft/q_helper.h"

/* ---- vector registers --------------------------------------------------------------------------------- */

/* A register's parts, from the lowest byte up, in the components that hold them. */
struct part {
	unsigned component, offset, size, at; /* `at`: of the register's bytes */
};

static unsigned vector_parts(const struct soft_cpu *cpu, unsigned n, struct part part[3])
{
	static const struct {
		unsigned component, size, at;
	} upper[2] = {{XC_AVX, 16, 16}, {XC_ZMM_HI256, 32, 32}};
	unsigned count = 1, offset, size;
	bool align;

	if (n >= 16) {
		if (!fpu_component(cpu, XC_HI16_ZMM, &offset, &size, &align))
			return 0;
		part[0] = (struct part){XC_HI16_ZMM, offset + (n - 16) * 64, 64, 0};
		return 1;
	}
	part[0] = (struct part){XC_SSE, FX_XMM + n * 16, 16, 0};
	for (unsigned i = 0; i < 2; i++)
		if (fpu_component(cpu, upper[i].component, &offset, &size, &align))
			part[count++] = (struct part){upper[i].component,
						      offset + n * upper[i].size, upper[i].size,
						      upper[i].at};
	return count;
}

void fpu_vector_read(struct soft_cpu *cpu, unsigned n, uint8_t out[FPU_VECTOR_MAX])
{
	struct part part[3];
	unsigned count = vector_parts(cpu, n, part);

	memset(out, 0, FPU_VECTOR_MAX);
	for (unsigned i = 0; i < count; i++) {
		fpu_materialize(cpu, 1ull << part[i].component);
		memcpy(out + part[i].at, cpu->xsave + part[i].offset, part[i].size);
	}
}

/* Zeros do not take a component out of its initial state. */
static void vector_write(struct soft_cpu *cpu, unsigned n, const uint8_t in[FPU_VECTOR_MAX])
{
	static const uint8_t zeros[FPU_VECTOR_MAX];
	struct part part[3];
	unsigned count = vector_parts(cpu, n, part);

	for (unsigned i = 0; i < count; i++) {
		bool in_use = bytes_get64(cpu->xsave + XS_BV) >> part[i].component & 1;

		if (!in_use && !memcmp(in + part[i].at, zeros, part[i].size))
			continue;
		fpu_modify(cpu, 1ull << part[i].component);
		memcpy(cpu->xsave + part[i].offset, in + part[i].at, part[i].size);
	}
}

uint64_t fpu_opmask_read(struct soft_cpu *cpu, unsigned k)
{
	unsigned offset, size;
	bool align;

	if (!fpu_component(cpu, XC_OPMASK, &offset, &size, &align))
		return 0;
	fpu_materialize(cpu, 1ull << XC_OPMASK);
	return bytes_get64(cpu->xsave + offset + k * 8);
}

static uint8_t *opmask(struct soft_cpu *cpu, unsigned k)
{
	unsigned offset, size;
	bool align;

	if (!fpu_component(cpu, XC_OPMASK, &offset, &size, &align))
		return NULL;
	fpu_modify(cpu, 1ull << XC_OPMASK);
	return cpu->xsave + offset + k * 8;
}

/* ---- masked byte stores ------------------------------------------------------------------------------- */

/* The decoder does not keep ES and SS of hidden operands apart from DS. */
static enum x86_segreg hidden_segment(const struct insn *insn)
{
	enum x86_segreg seg = X86_DS;

	for (unsigned i = 0; i < insn->len; i++) {
		bool flat = insn->mode == 64;

		switch (insn->bytes[i]) {
		case 0x26:
			seg = flat ? seg : X86_ES;
			break;
		case 0x2e:
			seg = flat ? seg : X86_CS;
			break;
		case 0x36:
			seg = flat ? seg : X86_SS;
			break;
		case 0x3e:
			seg = flat ? seg : X86_DS;
			break;
		case 0x64:
			seg = X86_FS;
			break;
		case 0x65:
			seg = X86_GS;
			break;
		case 0x66:
		case 0x67:
		case 0xf2:
		case 0xf3:
			break;
		default:
			return seg;
		}
	}
	return seg;
}

/* The next run of bytes to store from byte *at on: its length, 0 at the end. */
static unsigned mask_run(const uint8_t *mask, unsigned size, unsigned *at)
{
	unsigned end;

	while (*at < size && !(mask[*at] & 0x80))
		++*at;
	for (end = *at; end < size && (mask[end] & 0x80); end++)
		;
	return end - *at;
}

/* Neither masked bytes nor gathers and scatters are checked for alignment. */
static int linear_unaligned(struct soft_cpu *cpu, enum x86_segreg seg, uint64_t offset,
			    unsigned size, unsigned access, uint64_t *linear)
{
	int next = soft_linear(cpu, seg, offset + size - 1, 1, access, linear);

	return next ? next : soft_linear(cpu, seg, offset, 1, access, linear);
}

static int maskmov_runs(struct soft_cpu *cpu, const struct insn *insn, const uint8_t *data,
			const uint8_t *mask, unsigned size, bool store)
{
	uint64_t base = cpu->gpr[X86_RDI];
	unsigned at = 0, len;
	int next = 0;

	for (; !next && (len = mask_run(mask, size, &at)) > 0; at += len) {
		uint64_t linear, offset = cut(base + at, insn->addrsize);

		next = linear_unaligned(cpu, hidden_segment(insn), offset, len, ACCESS_WRITE,
					&linear);
		if (!next && store)
			next = soft_store(cpu, linear, data + at, len, ACCESS_WRITE);
		else if (!next)
			next = fpu_probe_write(cpu, linear, len);
	}
	return next;
}

enum soft_next maskmov_helper(struct soft_cpu *cpu, const struct insn *insn)
{
	bool mmx = insn->op == ZYDIS_MNEMONIC_MASKMOVQ;
	uint8_t data[FPU_VECTOR_MAX], mask[FPU_VECTOR_MAX];
	unsigned size = mmx ? 8 : 16;
	uint64_t epoch = code_epoch(cpu);
	int next;

	if (mmx) {
		uint16_t fsw;

		fpu_modify(cpu, 1u << XC_X87);
		fsw = bytes_get16(cpu->xsave + FX_FSW);
		if (fsw & ~bytes_get16(cpu->xsave + FX_FCW) & 0x3f)
			return soft_raise(cpu, X86_MF);
		/* MMn is the fraction of physical register n; the image is in stack order. */
		memcpy(data, cpu->xsave + FX_ST + ((insn->reg - (fsw >> 11)) & 7) * 16, 8);
		memcpy(mask, cpu->xsave + FX_ST + ((insn->rm - (fsw >> 11)) & 7) * 16, 8);
	} else {
		fpu_vector_read(cpu, insn->reg, data);
		fpu_vector_read(cpu, insn->rm, mask);
	}
	next = maskmov_runs(cpu, insn, data, mask, size, false);
	if (!next)
		next = maskmov_runs(cpu, insn, data, mask, size, true);
	if (next)
		return next;
	if (mmx) {
		/* SDM vol. 1, 9.5.1 */
		fpu_set_top(cpu, 0);
		cpu->xsave[FX_FTW] = 0xff;
	}
	return done_since(cpu, insn, epoch);
}

/* ---- gathers and scatters ----------------------------------------------------------------------------- */

struct vsib {
	unsigned data_size, index_size, count; /* of elements */
	bool scatter;
	uint64_t mask; /* a bit an element: still to do */
	uint8_t data[FPU_VECTOR_MAX], index[FPU_VECTOR_MAX];
};

static unsigned vex_vector_bytes(const struct insn *insn)
{
	for (unsigned i = 0; i + 2 < insn->len; i++)
		if (insn->bytes[i] == 0xc4)
			return insn->bytes[i + 2] & 4 ? 32 : 16;
	return 16;
}

static uint64_t vector_mask(struct soft_cpu *cpu, const struct insn *insn, const struct vsib *v)
{
	uint8_t mask[FPU_VECTOR_MAX];
	uint64_t bits = 0;

	fpu_vector_read(cpu, insn->vvvv, mask);
	for (unsigned i = 0; i < v->count; i++)
		bits |= (uint64_t)(mask[(i + 1) * v->data_size - 1] >> 7) << i;
	return bits;
}

/* Elements still to do are ones (SDM: the mask is extended over them first), all else is zero. */
static void vector_mask_write(struct soft_cpu *cpu, const struct insn *insn, const struct vsib *v)
{
	uint8_t mask[FPU_VECTOR_MAX] = {0};

	for (unsigned i = 0; i < v->count; i++)
		if (v->mask >> i & 1)
			memset(mask + i * v->data_size, 0xff, v->data_size);
	vector_write(cpu, insn->vvvv, mask);
}

static void vsib_read(struct soft_cpu *cpu, const struct insn *insn, struct vsib *v)
{
	unsigned bytes = insn->encoding == ENC_EVEX ? insn->vector_bytes : vex_vector_bytes(insn);
	unsigned widest;

	v->scatter = insn->opcode >= 0xa0;
	v->data_size = insn->mem_size == 8 ? 8 : 4;
	v->index_size = insn->opcode & 1 ? 8 : 4;
	widest = v->data_size > v->index_size ? v->data_size : v->index_size;
	v->count = bytes / widest;
	fpu_vector_read(cpu, insn->reg, v->data);
	fpu_vector_read(cpu, insn->mem_index, v->index);
	if (insn->encoding == ENC_EVEX) {
		const uint8_t *k = opmask(cpu, insn->mask_reg);

		v->mask = k ? bytes_get64(k) & ((1ull << v->count) - 1) : 0;
	} else {
		v->mask = vector_mask(cpu, insn, v);
	}
}

/* What was done so far: registers and mask. */
static void vsib_write(struct soft_cpu *cpu, const struct insn *insn, struct vsib *v)
{
	unsigned used = v->count * v->data_size;

	if (!v->scatter) {
		if (!v->mask)
			memset(v->data + used, 0, FPU_VECTOR_MAX - used);
		vector_write(cpu, insn->reg, v->data);
	}
	if (insn->encoding == ENC_EVEX) {
		uint8_t *k = opmask(cpu, insn->mask_reg);

		/* Bits behind the elements' go at the end only. */
		if (k)
			bytes_set64(k,
				    v->mask ? (bytes_get64(k) & ~((1ull << v->count) - 1)) | v->mask
					    : 0);
	} else {
		vector_mask_write(cpu, insn, v);
	}
}

static int vsib_element(struct soft_cpu *cpu, const struct insn *insn, struct vsib *v, unsigned i)
{
	uint8_t *data = v->data + i * v->data_size;
	unsigned access = v->scatter ? ACCESS_WRITE : ACCESS_READ;
	uint64_t index, linear;
	int next;

	if (v->index_size == 8)
		index = bytes_get64(v->index + i * 8);
	else
		index = (uint64_t)(int64_t)(int32_t)bytes_get32(v->index + i * 4);
	next = linear_unaligned(
		cpu, insn->mem_seg,
		cut(operand_offset(cpu, insn) + index * insn->mem_scale, insn->addrsize),
		v->data_size, access, &linear);
	if (next)
		return next;
	return v->scatter ? soft_store(cpu, linear, data, v->data_size, access)
			  : soft_load(cpu, linear, data, v->data_size, access);
}

enum soft_next gather_helper(struct soft_cpu *cpu, const struct insn *insn)
{
	uint64_t epoch = code_epoch(cpu);
	struct vsib v;
	bool some = false;
	int next = 0;

	vsib_read(cpu, insn, &v);
	for (unsigned i = 0; i < v.count; i++) {
		if (!(v.mask >> i & 1))
			continue;
		next = vsib_element(cpu, insn, &v, i);
		if (next)
			break;
		v.mask &= ~(1ull << i);
		some = true;
	}
	/* An exit to a device: all is done again with the answer at hand. */
	if (next == NEXT_EXIT)
		return NEXT_EXIT;
	vsib_write(cpu, insn, &v);
	/* SDM vol. 2, VGATHERDPS: traps that elements left pending come in lieu of the next one's fault, with RF set. */
	if (next && some && cpu->step_trap) {
		next = soft_raise(cpu, X86_DB);
		cpu->fault.dr6 = 0x4000; /* BS */
	}
	return next ? (enum soft_next)next : done_since(cpu, insn, epoch);
}
