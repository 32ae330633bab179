#include "engine/soft/emit.h"

#include <Zydis/Zydis.h>
#include <string.h>

void emit_bytes(struct emit *e, const void *bytes, unsigned n)
{
	if (n > (unsigned)(e->end - e->p)) {
		e->overflow = true;
		return;
	}
	memcpy(e->p, bytes, n);
	e->p += n;
}

/* ModRM, SIB and displacement. `evex`: the one-byte displacement would be scaled, so it is not used. */
static void emit_modrm_mem(struct emit *e, uint8_t reg, struct hmem m, bool evex)
{
	uint8_t r = (uint8_t)((reg & 7) << 3), mod;
	bool sib = m.index != H_NONE || m.base == H_NONE || (m.base & 7) == 4;

	if (m.base == H_NONE)
		mod = 0;
	else if (m.disp == 0 && (m.base & 7) != 5)
		mod = 0;
	else if (!evex && m.disp >= -128 && m.disp <= 127)
		mod = 0x40;
	else
		mod = 0x80;
	if (sib) {
		uint8_t ss = m.scale == 8 ? 0xc0 : m.scale == 4 ? 0x80 : m.scale == 2 ? 0x40 : 0;
		uint8_t index = m.index == H_NONE ? 4 : m.index & 7;

		emit_u8(e, mod | r | 4);
		emit_u8(e, ss | (uint8_t)(index << 3) | (m.base == H_NONE ? 5 : m.base & 7));
	} else {
		emit_u8(e, mod | r | (m.base & 7));
	}
	if (mod == 0x80 || m.base == H_NONE)
		emit_u32(e, (uint32_t)m.disp);
	else if (mod == 0x40)
		emit_u8(e, (uint8_t)m.disp);
}

static uint8_t bit3(uint8_t reg)
{
	return reg != H_NONE && (reg & 8) ? 1 : 0;
}

static void emit_rex(struct emit *e, bool w, uint8_t reg, uint8_t index, uint8_t base, bool force)
{
	uint8_t rex = (uint8_t)(0x40 | w << 3 | bit3(reg) << 2 | bit3(index) << 1 | bit3(base));

	if (rex != 0x40 || force)
		emit_u8(e, rex);
}

static void emit_opcode(struct emit *e, unsigned map, uint8_t opcode)
{
	if (map >= 1)
		emit_u8(e, 0x0f);
	if (map == 2)
		emit_u8(e, 0x38);
	else if (map == 3)
		emit_u8(e, 0x3a);
	emit_u8(e, opcode);
}

void emit_op_rr(struct emit *e, unsigned width, unsigned map, uint8_t opcode, uint8_t reg,
		uint8_t rm)
{
	if (width == 2)
		emit_u8(e, 0x66);
	emit_rex(e, width == 8, reg, H_NONE, rm, width == 1 && (reg >= 4 || rm >= 4));
	emit_opcode(e, map, opcode);
	emit_u8(e, (uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}

void emit_op_rm(struct emit *e, unsigned width, unsigned map, uint8_t opcode, uint8_t reg,
		struct hmem mem)
{
	if (width == 2)
		emit_u8(e, 0x66);
	emit_rex(e, width == 8, reg, mem.index, mem.base, width == 1 && reg >= 4);
	emit_opcode(e, map, opcode);
	emit_modrm_mem(e, reg, mem, false);
}

void emit_mov_rr(struct emit *e, unsigned width, uint8_t dst, uint8_t src)
{
	emit_op_rr(e, width, 0, 0x89, src, dst);
}

void emit_load(struct emit *e, unsigned width, uint8_t dst, struct hmem mem)
{
	if (width == 1)
		emit_op_rm(e, 4, 1, 0xb6, dst, mem);
	else if (width == 2)
		emit_op_rm(e, 4, 1, 0xb7, dst, mem);
	else
		emit_op_rm(e, width, 0, 0x8b, dst, mem);
}

void emit_store(struct emit *e, unsigned width, struct hmem mem, uint8_t src)
{
	emit_op_rm(e, width, 0, width == 1 ? 0x88 : 0x89, src, mem);
}

void emit_store_imm(struct emit *e, unsigned width, struct hmem mem, int32_t imm)
{
	emit_op_rm(e, width, 0, width == 1 ? 0xc6 : 0xc7, 0, mem);
	if (width == 1)
		emit_u8(e, (uint8_t)imm);
	else if (width == 2)
		emit_bytes(e, &imm, 2);
	else
		emit_u32(e, (uint32_t)imm);
}

void emit_lea(struct emit *e, unsigned width, uint8_t dst, struct hmem mem)
{
	emit_op_rm(e, width, 0, 0x8d, dst, mem);
}

void emit_mov_imm(struct emit *e, uint8_t dst, uint64_t imm)
{
	if (imm <= UINT32_MAX) {
		emit_rex(e, false, H_NONE, H_NONE, dst, false);
		emit_u8(e, 0xb8 | (dst & 7));
		emit_u32(e, (uint32_t)imm);
	} else if ((int64_t)imm >= INT32_MIN && (int64_t)imm < 0) {
		emit_op_rr(e, 8, 0, 0xc7, 0, dst);
		emit_u32(e, (uint32_t)imm);
	} else {
		emit_rex(e, true, H_NONE, H_NONE, dst, false);
		emit_u8(e, 0xb8 | (dst & 7));
		emit_bytes(e, &imm, 8);
	}
}

void emit_movzx(struct emit *e, unsigned from, uint8_t dst, uint8_t src)
{
	emit_rex(e, false, dst, H_NONE, src, from == 1 && src >= 4);
	emit_opcode(e, 1, from == 1 ? 0xb6 : 0xb7);
	emit_u8(e, (uint8_t)(0xc0 | (dst & 7) << 3 | (src & 7)));
}

/* Three-byte VEX (SDM vol. 2 section 2.3.5) with L=0; width 4 or 8. */
static void emit_vex(struct emit *e, unsigned width, uint8_t map, uint8_t pp, uint8_t reg,
		     uint8_t vvvv, uint8_t rm)
{
	emit_u8(e, 0xc4);
	emit_u8(e, (uint8_t)((bit3(reg) ^ 1) << 7 | 1 << 6 | (bit3(rm) ^ 1) << 5 | map));
	emit_u8(e, (uint8_t)((width == 8) << 7 | (~vvvv & 15) << 3 | pp));
}

void emit_rorx(struct emit *e, uint8_t dst, uint8_t src, uint8_t count)
{
	emit_vex(e, 8, 3, 3, dst, 0, src);
	emit_u8(e, 0xf0);
	emit_u8(e, (uint8_t)(0xc0 | (dst & 7) << 3 | (src & 7)));
	emit_u8(e, count);
}

void emit_shrx(struct emit *e, unsigned width, uint8_t dst, uint8_t src, uint8_t count_reg)
{
	emit_vex(e, width, 2, 3, dst, count_reg, src);
	emit_u8(e, 0xf7);
	emit_u8(e, (uint8_t)(0xc0 | (dst & 7) << 3 | (src & 7)));
}

/* dst = the bits of src that mask names, packed (PEXT) or unpacked (PDEP). */
static void emit_bits(struct emit *e, unsigned pp, uint8_t dst, uint8_t src, uint8_t mask)
{
	emit_vex(e, 8, 2, pp, dst, src, mask);
	emit_u8(e, 0xf5);
	emit_u8(e, (uint8_t)(0xc0 | (dst & 7) << 3 | (mask & 7)));
}

void emit_pext(struct emit *e, uint8_t dst, uint8_t src, uint8_t mask)
{
	emit_bits(e, 2, dst, src, mask);
}

void emit_pdep(struct emit *e, uint8_t dst, uint8_t src, uint8_t mask)
{
	emit_bits(e, 3, dst, src, mask);
}

void emit_call_mem(struct emit *e, struct hmem mem)
{
	emit_op_rm(e, 4, 0, 0xff, 2, mem);
}

void emit_jmp_mem(struct emit *e, struct hmem mem)
{
	emit_op_rm(e, 4, 0, 0xff, 4, mem);
}

uint32_t emit_jrcxz(struct emit *e)
{
	emit_u8(e, 0xe3);
	emit_u8(e, 0);
	return emit_pos(e) - 1;
}

uint32_t emit_jecxz(struct emit *e)
{
	emit_u8(e, 0x67);
	return emit_jrcxz(e);
}

uint32_t emit_jmp(struct emit *e)
{
	emit_u8(e, 0xe9);
	emit_u32(e, 0);
	return emit_pos(e) - 4;
}

uint32_t emit_jcc(struct emit *e, unsigned cc)
{
	emit_u8(e, 0x0f);
	emit_u8(e, (uint8_t)(0x80 | cc));
	emit_u32(e, 0);
	return emit_pos(e) - 4;
}

void emit_here(struct emit *e, uint32_t place)
{
	uint32_t rel = emit_pos(e) - (place + 4);

	if (!e->overflow)
		memcpy(e->start + place, &rel, 4);
}

void emit_here8(struct emit *e, uint32_t place)
{
	uint32_t rel = emit_pos(e) - (place + 1);

	if (rel > 127)
		e->overflow = true;
	if (!e->overflow)
		e->start[place] = (uint8_t)rel;
}

void emit_jmp_to(struct emit *e, uint32_t pos)
{
	emit_u8(e, 0xe9);
	emit_u32(e, pos - (emit_pos(e) + 4));
}

void emit_call_to(struct emit *e, uint32_t pos)
{
	emit_u8(e, 0xe8);
	emit_u32(e, pos - (emit_pos(e) + 4));
}

/* ---- a guest instruction again -------------------------------------------------------------------- */

/* The numbers that the fields get: host registers for GPRs, the guest's own for all else. */
struct fields {
	uint8_t reg, rm, vvvv, opreg, index, base;
};

static struct fields fields_of(const struct insn *insn, const struct insn_regs *r)
{
	struct fields f;

	f.reg = insn->reg_file == RF_GPR ? r->reg : insn->reg;
	if (insn->reg_file == RF_NONE)
		f.reg = insn->modrm >> 3 & 7; /* part of the opcode */
	f.rm = insn->rm_file == RF_GPR ? r->rm : insn->rm;
	if (insn->rm_file == RF_NONE && !r->mem)
		f.rm = insn->modrm & 7;
	f.vvvv = insn->vvvv_file == RF_GPR ? r->vvvv : insn->vvvv;
	f.opreg = insn->opreg_file == RF_GPR ? r->opreg : insn->opreg;
	f.index = r->mem ? r->mem->index : H_NONE;
	f.base = r->mem ? r->mem->base : H_NONE;
	return f;
}

/* Legacy prefixes of the one-byte and 0F maps. Operand size 16 is asked for with 66 whatever it was in the
 * guest's mode; a 66 that selects another instruction is in prefix66_f2_f3. */
static void emit_legacy_prefixes(struct emit *e, const struct insn *insn)
{
	/* MOVNTI, LDMXCSR, EMMS and prefetches have no 16-bit form; vector instructions mean something else by 66. */
	bool vector = insn->reg_file == RF_OTHER || insn->rm_file == RF_OTHER ||
		      (insn->map == 1 &&
		       (insn->opcode == 0xc3 || insn->opcode == 0xae || insn->opcode == 0x77 ||
			insn->opcode == 0x18 || insn->opcode == 0x0d));
	bool mandatory66 = insn->prefix66_f2_f3 == 0x66;

	if (insn->lock)
		emit_u8(e, 0xf0);
	if (mandatory66 || (insn->opsize == 2 && !vector))
		emit_u8(e, 0x66);
	if (insn->prefix66_f2_f3 == 0xf2 || insn->prefix66_f2_f3 == 0xf3)
		emit_u8(e, insn->prefix66_f2_f3);
}

static void emit_legacy(struct emit *e, const struct insn *insn, const struct insn_regs *r,
			const struct fields *f)
{
	bool high = insn->reg_file == RF_GPR8H || insn->rm_file == RF_GPR8H ||
		    insn->opreg_file == RF_GPR8H;
	uint8_t base = insn->opreg_file != RF_NONE ? f->opreg : r->mem ? f->base : f->rm;
	bool byte_reg = !high &&
			(insn->opsize == 1 || (insn->map == 1 && (insn->opcode & 0xf6) == 0xb6) ||
			 (insn->map == 1 && (insn->opcode & 0xf0) == 0x90) ||
			 (insn->map == 2 && insn->opcode == 0xf0));

	emit_legacy_prefixes(e, insn);
	/* SPL..DIL and the substitutes need an empty REX where a byte register is named. */
	emit_rex(e, insn->rex_w, insn->has_modrm ? f->reg : H_NONE, f->index, base, byte_reg);
	emit_opcode(e, insn->map, insn->opcode);
	if (insn->opreg_file != RF_NONE && !insn->has_modrm)
		e->p[-1] = (uint8_t)((insn->opcode & 0xf8) | (f->opreg & 7));
}

/* Outside 64-bit mode W does not make an operand of 64 bits out of a general register, or of memory in its place (SDM
 * vol. 2 section 2.3.6.1); where it tells instructions apart it still does. */
static bool w_ignored(const struct insn *insn)
{
	if (insn->mode == 64)
		return false;
	switch (insn->op) {
	case ZYDIS_MNEMONIC_VCVTSI2SD:
	case ZYDIS_MNEMONIC_VCVTSI2SS:
	case ZYDIS_MNEMONIC_VCVTUSI2SD:
	case ZYDIS_MNEMONIC_VCVTUSI2SS:
	case ZYDIS_MNEMONIC_VMOVD:
	case ZYDIS_MNEMONIC_VPCMPESTRI: /* the lengths in EAX and EDX */
	case ZYDIS_MNEMONIC_VPCMPESTRM:
	case ZYDIS_MNEMONIC_VPEXTRD:
	case ZYDIS_MNEMONIC_VPINSRD:
		return true;
	case ZYDIS_MNEMONIC_KMOVQ:
		return false;
	default:
		return insn->reg_file == RF_GPR || insn->rm_file == RF_GPR ||
		       insn->vvvv_file == RF_GPR;
	}
}

/* A fourth register in the immediate: outside 64-bit mode its bit 3 does not count. */
static bool is4_of_three_bits(const struct insn *insn)
{
	return insn->mode != 64 && insn->encoding == ENC_VEX && insn->map == 3 &&
	       insn->opcode >= 0x4a && insn->opcode <= 0x4c;
}

static void emit_guest_vex(struct emit *e, const struct insn *insn, const struct insn_regs *r,
			   const struct fields *f)
{
	const uint8_t *b = insn->bytes;
	unsigned at = 0;
	uint8_t w = 0, lpp, base = r->mem ? f->base : f->rm;

	while (b[at] != 0xc4 && b[at] != 0xc5)
		at++;
	if (b[at] == 0xc4) {
		w = b[at + 2] & 0x80;
		lpp = b[at + 2] & 7;
	} else {
		lpp = b[at + 1] & 7;
	}
	if (w_ignored(insn))
		w = 0;
	emit_u8(e, 0xc4);
	emit_u8(e, (uint8_t)((bit3(f->reg) ^ 1) << 7 | (bit3(f->index) ^ 1) << 6 |
			     (bit3(base) ^ 1) << 5 | insn->map));
	emit_u8(e, (uint8_t)(w | (insn->vvvv_file == RF_NONE ? 15 : ~f->vvvv & 15) << 3 | lpp));
	emit_u8(e, insn->opcode);
}

static void emit_evex(struct emit *e, const struct insn *insn, const struct insn_regs *r,
		      const struct fields *f)
{
	const uint8_t *b = insn->bytes;
	unsigned at = 0;
	uint8_t p0, p1, p2, vvvv = insn->vvvv_file == RF_NONE ? 0 : f->vvvv;
	bool rm_vector = !r->mem && insn->rm_file == RF_OTHER;
	uint8_t x, base = r->mem ? f->base : f->rm;

	while (b[at] != 0x62)
		at++;
	/* With a vector in rm, X is bit 4 of its number (SDM vol. 2 table 2-31). */
	x = rm_vector ? (f->rm >> 4 & 1) : bit3(f->index);
	p0 = (uint8_t)((b[at + 1] & 0x07) | (bit3(f->reg) ^ 1) << 7 | (x ^ 1) << 6 |
		       (bit3(base) ^ 1) << 5 |
		       (insn->reg_file == RF_OTHER ? (f->reg >> 4 & 1) ^ 1 : 1) << 4);
	p1 = (uint8_t)((b[at + 2] & (w_ignored(insn) ? 0x07 : 0x87)) | (~vvvv & 15) << 3);
	p2 = (uint8_t)((b[at + 3] & 0xf7) | ((vvvv >> 4 & 1) ^ 1) << 3);
	emit_u8(e, 0x62);
	emit_u8(e, p0);
	emit_u8(e, p1);
	emit_u8(e, p2);
	emit_u8(e, insn->opcode);
}

void insn_emit(struct emit *e, const struct insn *insn, const struct insn_regs *regs)
{
	struct fields f = fields_of(insn, regs);
	unsigned tail = 0;

	if (e->end - e->p < 32) {
		e->overflow = true;
		return;
	}
	if (insn->encoding == ENC_VEX)
		emit_guest_vex(e, insn, regs, &f);
	else if (insn->encoding == ENC_EVEX)
		emit_evex(e, insn, regs, &f);
	else
		emit_legacy(e, insn, regs, &f);
	if (regs->mem)
		emit_modrm_mem(e, f.reg, *regs->mem, insn->encoding == ENC_EVEX);
	else if (insn->has_modrm)
		emit_u8(e, (uint8_t)(0xc0 | (f.reg & 7) << 3 | (f.rm & 7)));
	/* The tail is immediates (and the fourth register of VEX is4), byte for byte. */
	for (unsigned i = 0; i < insn->nimm; i++)
		tail += insn->imm_size[i];
	emit_bytes(e, insn->bytes + insn->len - tail, tail);
	if (is4_of_three_bits(insn))
		e->p[-1] &= 0x7f;
}
