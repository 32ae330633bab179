#include "engine/soft/decode.h"

#include <Zydis/Zydis.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/soft/cpu.h"

static int decoder_for(uint32_t mode, ZydisDecoder *decoder)
{
	ZydisMachineMode machine = ZYDIS_MACHINE_MODE_REAL_16;
	ZydisStackWidth width = ZYDIS_STACK_WIDTH_16;

	if (mode & MODE_CODE64) {
		machine = ZYDIS_MACHINE_MODE_LONG_64;
		width = ZYDIS_STACK_WIDTH_64;
	} else {
		bool prot = mode & MODE_PROT;

		if (mode & MODE_CODE32)
			machine = ZYDIS_MACHINE_MODE_LEGACY_32;
		else if (prot)
			machine = ZYDIS_MACHINE_MODE_LEGACY_16;
		if (mode & MODE_STACK32)
			width = ZYDIS_STACK_WIDTH_32;
	}
	if (ZYAN_FAILED(ZydisDecoderInit(decoder, machine, width)))
		return -1;
	/* Later bit patterns of TZCNT, LZCNT, PREFETCHW must not decode as the old instructions. */
	return 0;
}

static uint8_t gpr_number(ZydisRegister reg)
{
	return reg == ZYDIS_REGISTER_NONE ? REG_NONE : (uint8_t)ZydisRegisterGetId(reg);
}

static bool is_gpr(ZydisRegister reg)
{
	switch (ZydisRegisterGetClass(reg)) {
	case ZYDIS_REGCLASS_GPR8:
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64:
		return true;
	default:
		return false;
	}
}

/* Zydis numbers 8-bit registers with AH..BH after BL and SPL.. behind those: see its register enum. */
static uint8_t reg_file(ZydisRegister reg, uint8_t *number)
{
	if (!is_gpr(reg)) {
		*number = (uint8_t)ZydisRegisterGetId(reg);
		return RF_OTHER;
	}
	if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH) {
		*number = (uint8_t)(4 + (reg - ZYDIS_REGISTER_AH));
		return RF_GPR8H;
	}
	if (ZydisRegisterGetClass(reg) == ZYDIS_REGCLASS_GPR8) {
		*number = reg <= ZYDIS_REGISTER_BL ? (uint8_t)(reg - ZYDIS_REGISTER_AL)
						   : (uint8_t)(4 + (reg - ZYDIS_REGISTER_SPL));
		return RF_GPR;
	}
	*number = gpr_number(reg);
	return RF_GPR;
}

static uint8_t seg_number(ZydisRegister seg)
{
	switch (seg) {
	case ZYDIS_REGISTER_ES:
		return X86_ES;
	case ZYDIS_REGISTER_CS:
		return X86_CS;
	case ZYDIS_REGISTER_SS:
		return X86_SS;
	case ZYDIS_REGISTER_FS:
		return X86_FS;
	case ZYDIS_REGISTER_GS:
		return X86_GS;
	default:
		return X86_DS;
	}
}

static uint8_t opcode_map(ZydisOpcodeMap map)
{
	switch (map) {
	case ZYDIS_OPCODE_MAP_DEFAULT:
		return 0;
	case ZYDIS_OPCODE_MAP_0F:
		return 1;
	case ZYDIS_OPCODE_MAP_0F38:
		return 2;
	case ZYDIS_OPCODE_MAP_0F3A:
		return 3;
	case ZYDIS_OPCODE_MAP_MAP5:
		return 5;
	case ZYDIS_OPCODE_MAP_MAP6:
		return 6;
	default:
		return 0xff; /* 3DNow!, XOP: nothing that we run */
	}
}

static void decode_reg_operand(const ZydisDecodedOperand *op, struct insn *insn)
{
	uint8_t number, file = reg_file(op->reg.value, &number);
	ZydisRegisterClass cls = ZydisRegisterGetClass(op->reg.value);
	bool written = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

	if (op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN ||
	    (op->visibility == ZYDIS_OPERAND_VISIBILITY_IMPLICIT)) {
		if (file == RF_GPR)
			insn->implicit_gprs |= (uint16_t)(1u << number);
		else if (file == RF_GPR8H)
			insn->implicit_gprs |= (uint16_t)(1u << (number - 4));
		if (cls == ZYDIS_REGCLASS_SEGMENT &&
		    op->visibility == ZYDIS_OPERAND_VISIBILITY_IMPLICIT)
			insn->segreg = seg_number(op->reg.value);
		return;
	}
	if (cls == ZYDIS_REGCLASS_SEGMENT)
		insn->segreg = seg_number(op->reg.value);
	else if (cls == ZYDIS_REGCLASS_CONTROL || cls == ZYDIS_REGCLASS_DEBUG)
		insn->segreg = number;
	if (written) {
		if (file == RF_GPR)
			insn->written_gprs |= (uint16_t)(1u << number);
		else if (file == RF_GPR8H)
			insn->written_high |= (uint8_t)(1u << (number - 4));
	}
	switch (op->encoding) {
	case ZYDIS_OPERAND_ENCODING_MODRM_REG:
		insn->reg = number;
		insn->reg_file = file;
		insn->written_fields |= written ? FIELD_REG : 0;
		break;
	case ZYDIS_OPERAND_ENCODING_MODRM_RM:
		insn->rm = number;
		insn->rm_file = file;
		insn->written_fields |= written ? FIELD_RM : 0;
		break;
	case ZYDIS_OPERAND_ENCODING_NDSNDD:
		insn->vvvv = number;
		insn->vvvv_file = file;
		break;
	case ZYDIS_OPERAND_ENCODING_OPCODE:
		insn->opreg = number;
		insn->opreg_file = file;
		insn->written_fields |= written ? FIELD_OPREG : 0;
		break;
	default:
		break;
	}
}

/* No base but 32 bits of displacement: SIB with base 5 and mod 0, whatever REX.B says (SDM vol. 2, 2.1.5). Zydis
 * names a base there, and no displacement, if the address size is 32 bits and REX.B set. */
static bool sib_without_base(const ZydisDecodedInstruction *zi)
{
	return zi->raw.modrm.mod == 0 && zi->raw.modrm.rm == 4 && zi->address_width != 16 &&
	       zi->raw.sib.base == 5;
}

static void decode_mem_operand(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *op,
			       struct insn *insn)
{
	bool hidden = op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;

	if (hidden || (op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM &&
		       op->encoding != ZYDIS_OPERAND_ENCODING_DISP16_32_64)) {
		insn->implicit_mem = true;
		/* The source of a string, and XLAT: what a prefix may override. */
		if (gpr_number(op->mem.base) == X86_RSI || gpr_number(op->mem.base) == X86_RBX)
			insn->mem_seg = seg_number(op->mem.segment);
		if (!insn->mem_size)
			insn->mem_size = op->size / 8;
		return;
	}
	if (op->mem.type == ZYDIS_MEMOP_TYPE_AGEN || op->mem.type == ZYDIS_MEMOP_TYPE_MIB)
		insn->is_agen = true;
	else
		insn->has_mem = true;
	insn->mem_vsib = op->mem.type == ZYDIS_MEMOP_TYPE_VSIB;
	insn->mem_seg = seg_number(op->mem.segment);
	/* 3E before a near indirect branch is a segment override all the same. */
	if ((zi->attributes & ZYDIS_ATTRIB_HAS_NOTRACK) &&
	    zi->machine_mode != ZYDIS_MACHINE_MODE_LONG_64)
		insn->mem_seg = X86_DS;
	insn->mem_scale = op->mem.scale ? op->mem.scale : 1;
	if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP)
		insn->rip_relative = true;
	else if (!sib_without_base(zi))
		insn->mem_base = gpr_number(op->mem.base);
	if (insn->mem_vsib || op->mem.index != ZYDIS_REGISTER_NONE)
		insn->mem_index = gpr_number(op->mem.index);
	insn->mem_disp = op->mem.disp.value;
	if (sib_without_base(zi) && !insn->rip_relative)
		insn->mem_disp = zi->raw.disp.value;
	insn->mem_size = op->size / 8;
	insn->mem_element = (uint8_t)(op->element_size / 8);
	insn->mem_read |= (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0;
	insn->mem_write |= (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
}

static void decode_prefixes(const ZydisDecodedInstruction *zi, struct insn *insn)
{
	for (unsigned i = 0; i < zi->raw.prefix_count; i++) {
		uint8_t value = zi->raw.prefixes[i].value;

		if (value == 0x66)
			insn->opsize_prefix = true;
		if (value == 0xf2 || value == 0xf3)
			insn->rep_prefix = value;
		if (zi->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY)
			insn->prefix66_f2_f3 = value;
	}
	insn->rep = zi->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE);
	insn->repne = zi->attributes & ZYDIS_ATTRIB_HAS_REPNE;
	insn->lock = zi->attributes & ZYDIS_ATTRIB_HAS_LOCK;
	insn->rex_w = (zi->attributes & ZYDIS_ATTRIB_HAS_REX) && zi->raw.rex.W;
	insn->vex_w = zi->raw.encoding2 == ZYDIS_INSTRUCTION_ENCODING_VEX && zi->raw.vex.W;
	if (zi->raw.encoding2 == ZYDIS_INSTRUCTION_ENCODING_VEX ||
	    zi->raw.encoding2 == ZYDIS_INSTRUCTION_ENCODING_EVEX)
		insn->prefix66_f2_f3 = 0; /* in the pp field of the VEX or EVEX bytes */
}

static void decode_immediates(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops,
			      struct insn *insn)
{
	unsigned n = 0;

	for (unsigned i = 0; i < 2; i++) {
		if (zi->raw.imm[i].size) {
			insn->imm[n] = zi->raw.imm[i].value.u;
			insn->imm_size[n] = zi->raw.imm[i].size / 8;
			if (n == 0)
				insn->imm_signed = zi->raw.imm[i].is_signed;
			if (zi->raw.imm[i].is_relative)
				insn->branch = true;
			n++;
		}
	}
	insn->nimm = (uint8_t)n;
	for (unsigned i = 0; i < zi->operand_count; i++) {
		if (ops[i].type == ZYDIS_OPERAND_TYPE_POINTER) {
			insn->imm[0] = ops[i].ptr.offset;
			insn->imm[1] = ops[i].ptr.segment;
		}
	}
}

/* EVEX instructions whose exception class says "NF" read their whole operand whatever the mask. */
static bool suppresses_faults(ZydisExceptionClass cls)
{
	switch (cls) {
	case ZYDIS_EXCEPTION_CLASS_E1NF:
	case ZYDIS_EXCEPTION_CLASS_E2NF:
	case ZYDIS_EXCEPTION_CLASS_E3NF:
	case ZYDIS_EXCEPTION_CLASS_E4NF:
	case ZYDIS_EXCEPTION_CLASS_E5NF:
	case ZYDIS_EXCEPTION_CLASS_E6NF:
	case ZYDIS_EXCEPTION_CLASS_E9NF:
	case ZYDIS_EXCEPTION_CLASS_E10NF:
	case ZYDIS_EXCEPTION_CLASS_E11NF:
		return false;
	default:
		return true;
	}
}

static void decode_evex(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops,
			struct insn *insn)
{
	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_EVEX)
		return;
	if (zi->avx.mask.reg != ZYDIS_REGISTER_NONE)
		insn->mask_reg = (uint8_t)ZydisRegisterGetId(zi->avx.mask.reg);
	insn->suppresses = suppresses_faults(zi->meta.exception_class) &&
			   zi->mnemonic != ZYDIS_MNEMONIC_VCVTNE2PS2BF16 &&
			   zi->mnemonic != ZYDIS_MNEMONIC_VDBPSADBW &&
			   zi->mnemonic != ZYDIS_MNEMONIC_VGF2P8AFFINEQB &&
			   zi->mnemonic != ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB;
	insn->vector_bytes = (uint8_t)(zi->avx.vector_length / 8);
	insn->broadcast = zi->avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID;
	insn->reg_element = (uint8_t)(ops[0].element_size / 8);
}

static void insn_fill(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops,
		      const uint8_t *bytes, struct insn *insn)
{
	memset(insn, 0, sizeof(*insn));
	insn->op = (uint16_t)zi->mnemonic;
	insn->len = zi->length;
	memcpy(insn->bytes, bytes, zi->length);
	insn->encoding = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX	   ? ENC_VEX
			 : zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? ENC_EVEX
									   : ENC_LEGACY;
	insn->map = opcode_map(zi->opcode_map);
	insn->opcode = zi->opcode;
	insn->opsize = zi->operand_width / 8;
	insn->addrsize = zi->address_width / 8;
	insn->stacksize = zi->stack_width / 8;
	insn->mode = zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64	? 64
		     : zi->machine_mode == ZYDIS_MACHINE_MODE_LEGACY_32 ? 32
									: 16;
	insn->mem_base = insn->mem_index = REG_NONE;
	insn->segreg = REG_NONE;
	insn->mem_scale = 1;
	insn->mem_seg = X86_DS;
	insn->isa = (uint16_t)zi->meta.isa_set;
	insn->has_modrm = zi->attributes & ZYDIS_ATTRIB_HAS_MODRM;
	insn->modrm = (uint8_t)(zi->raw.modrm.mod << 6 | zi->raw.modrm.reg << 3 | zi->raw.modrm.rm);
	decode_prefixes(zi, insn);
	for (unsigned i = 0; i < zi->operand_count; i++) {
		if (ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER)
			decode_reg_operand(&ops[i], insn);
		else if (ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
			decode_mem_operand(zi, &ops[i], insn);
	}
	decode_evex(zi, ops, insn);
	decode_immediates(zi, ops, insn);
	if (zi->cpu_flags) {
		insn->reads_flags = zi->cpu_flags->tested;
		insn->writes_flags = zi->cpu_flags->modified | zi->cpu_flags->set_0 |
				     zi->cpu_flags->set_1 | zi->cpu_flags->undefined;
	}
}

int insn_decode(const uint8_t *bytes, unsigned n, uint32_t mode, struct insn *insn)
{
	ZydisDecoder decoder;
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	ZyanStatus status;

	if (decoder_for(mode, &decoder))
		return -EINVAL;
	status = ZydisDecoderDecodeFull(&decoder, bytes, n, &zi, ops);
	if (ZYAN_SUCCESS(status)) {
		insn_fill(&zi, ops, bytes, insn);
		return 0;
	}
	memset(insn, 0, sizeof(*insn));
	if (status == ZYDIS_STATUS_NO_MORE_DATA && n < INSN_MAX)
		return -ENODATA;
	if (status == ZYDIS_STATUS_NO_MORE_DATA || status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG)
		insn->len = INSN_MAX;
	return -EINVAL;
}

/* F3 90 with REX.B is no PAUSE but XCHG with R8, and F3 means nothing. */
static int pause_as_xchg(uint32_t mode, struct insn *insn)
{
	uint8_t bytes[INSN_MAX];
	unsigned len = insn->len;

	memcpy(bytes, insn->bytes, len);
	for (unsigned i = 0; i < len; i++)
		if (bytes[i] == 0xf3)
			bytes[i] = 0x3e; /* .. as little as this */
	return insn_decode(bytes, len, mode, insn);
}

int insn_as_amd(uint32_t mode, struct insn *insn)
{
	bool none = false;

	switch (insn->op) {
	case ZYDIS_MNEMONIC_PAUSE:
		if (insn->mode == 64 && (insn->bytes[insn->len - 2] & 0xf1) == 0x41)
			return pause_as_xchg(mode, insn);
		break;
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE: /* the prefix, not the opcode, says what it waits for */
		if (insn->rep_prefix)
			insn->op = insn->rep_prefix == 0xf3 ? ZYDIS_MNEMONIC_LOOPE
							    : ZYDIS_MNEMONIC_LOOPNE;
		break;
	case ZYDIS_MNEMONIC_NOP: /* PREFETCH of a register */
		none = insn->map == 1 && insn->opcode == 0x0d && insn->modrm >= 0xc0;
		break;
	case ZYDIS_MNEMONIC_VPINSRD:
	case ZYDIS_MNEMONIC_VPEXTRD: /* VEX.W means something outside of 64-bit mode, too */
		none = insn->encoding == ENC_VEX && insn->mode != 64 && insn->vex_w;
		break;
	default:
		break;
	}
	if (!none)
		return 0;
	insn->len = 1;
	return -EINVAL;
}

void insn_print(const struct insn *insn, uint64_t rip, char *out, unsigned size)
{
	ZydisMachineMode machine = insn->mode == 64   ? ZYDIS_MACHINE_MODE_LONG_64
				   : insn->mode == 32 ? ZYDIS_MACHINE_MODE_LEGACY_32
						      : ZYDIS_MACHINE_MODE_LEGACY_16;
	ZydisDisassembledInstruction text;

	if (ZYAN_SUCCESS(ZydisDisassembleIntel(machine, rip, insn->bytes, insn->len, &text)))
		snprintf(out, size, "%s", text.text);
	else
		snprintf(out, size, "(bad)");
}
