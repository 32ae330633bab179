/* Decoding by shapes: see decode.h. */
#include <stddef.h>
#include <string.h>

#include "engine/soft/cpu.h"
#include "engine/soft/decode.h"

#define SHAPE_BITS 10

/* How the instructions of an opcode are encoded, for those that this file knows. */
enum kind {
	OTHER,
	PLAIN,	/* no ModRM */
	OPREG,	/* no ModRM, a register in the low three bits */
	MODRM,	/* ModRM whose reg field is a register */
	GROUP,	/* ModRM whose reg field is part of the opcode */
	GROUP_0 /* the same; only with 0 there */
};

/*
 * Opcodes of 64-bit code that use general registers, ModRM memory and immediates alone, and of which all but the fields
 * that shape_fill() sets follows from what is in the key. Not here, though common: 90 (which REX.B makes another
 * instruction), moffs, and what has two immediates.
 */
static const uint8_t kinds[2][256] = {
	{
		[0x00 ... 0x03] = MODRM,
		[0x04 ... 0x05] = PLAIN, /* ADD */
		[0x08 ... 0x0b] = MODRM,
		[0x0c ... 0x0d] = PLAIN, /* OR */
		[0x10 ... 0x13] = MODRM,
		[0x14 ... 0x15] = PLAIN, /* ADC */
		[0x18 ... 0x1b] = MODRM,
		[0x1c ... 0x1d] = PLAIN, /* SBB */
		[0x20 ... 0x23] = MODRM,
		[0x24 ... 0x25] = PLAIN, /* AND */
		[0x28 ... 0x2b] = MODRM,
		[0x2c ... 0x2d] = PLAIN, /* SUB */
		[0x30 ... 0x33] = MODRM,
		[0x34 ... 0x35] = PLAIN, /* XOR */
		[0x38 ... 0x3b] = MODRM,
		[0x3c ... 0x3d] = PLAIN, /* CMP */
		[0x50 ... 0x5f] = OPREG, /* PUSH, POP */
		[0x63] = MODRM,		 /* MOVSXD */
		[0x68] = PLAIN,
		[0x6a] = PLAIN, /* PUSH */
		[0x69] = MODRM,
		[0x6b] = MODRM,		 /* IMUL */
		[0x70 ... 0x7f] = PLAIN, /* Jcc */
		[0x80 ... 0x81] = GROUP,
		[0x83] = GROUP,		 /* ADD .. CMP */
		[0x84 ... 0x8b] = MODRM, /* TEST, XCHG, MOV */
		[0x8d] = MODRM,		 /* LEA */
		[0x98 ... 0x99] = PLAIN, /* CDQE, CQO */
		[0xa8 ... 0xa9] = PLAIN, /* TEST */
		[0xb0 ... 0xbf] = OPREG, /* MOV */
		[0xc0 ... 0xc1] = GROUP,
		[0xd0 ... 0xd3] = GROUP, /* shifts */
		[0xc3] = PLAIN,
		[0xc9] = PLAIN,		   /* RET, LEAVE */
		[0xc6 ... 0xc7] = GROUP_0, /* MOV */
		[0xcc] = PLAIN,		   /* INT3 */
		[0xe8 ... 0xe9] = PLAIN,
		[0xeb] = PLAIN,		 /* CALL, JMP */
		[0xf6 ... 0xf7] = GROUP, /* TEST, NOT .. IDIV */
		[0xfe ... 0xff] = GROUP, /* INC, DEC, CALL, JMP, PUSH */
	},
	{
		[0x1f] = GROUP,		 /* NOP */
		[0x40 ... 0x4f] = MODRM, /* CMOVcc */
		[0x80 ... 0x8f] = PLAIN, /* Jcc */
		[0x90 ... 0x9f] = MODRM, /* SETcc */
		[0xa2] = PLAIN,		 /* CPUID */
		[0xa3 ... 0xa5] = MODRM,
		[0xab ... 0xad] = MODRM, /* BT, SHLD, BTS, SHRD */
		[0xaf ... 0xb1] = MODRM, /* IMUL, CMPXCHG */
		[0xb3] = MODRM,		 /* BTR */
		[0xb6 ... 0xb7] = MODRM,
		[0xbe ... 0xbf] = MODRM, /* MOVZX, MOVSX */
		[0xba] = GROUP,		 /* BT .. BTC */
		[0xbb ... 0xbd] = MODRM, /* BTC, BSF, BSR */
		[0xc0 ... 0xc1] = MODRM, /* XADD */
		[0xc8 ... 0xcf] = OPREG, /* BSWAP */
	},
};

/* The key's bits beside the opcode, its map and a group's reg field. */
#define KEY_66 (1u << 12)
#define KEY_FS (1u << 13)
#define KEY_GS (1u << 14)
#define KEY_LOCK (1u << 15)
#define KEY_REX (1u << 16)
#define KEY_W (1u << 17)
#define KEY_MOD3 (1u << 18)
#define KEY_REG_HIGH (1u << 19) /* 4 to 7 and no REX: of a byte register, AH to BH */
#define KEY_RM_HIGH (1u << 20)
#define KEY_USED (1u << 21)

struct shape {
	uint32_t key; /* 0: none */
	struct insn insn;
};

struct shapes {
	struct shape shape[1 << SHAPE_BITS];
};

/* An instruction's parts, before anybody knows what it means. */
struct parts {
	uint32_t key;
	enum kind kind;
	uint8_t rex, opcode, modrm;
	unsigned at; /* of the first byte behind opcode and ModRM */
};

uint64_t shapes_size(void)
{
	return sizeof(struct shapes);
}

static uint32_t prefix_key(uint8_t byte)
{
	switch (byte) {
	case 0x64:
		return KEY_FS;
	case 0x65:
		return KEY_GS;
	case 0x66:
		return KEY_66;
	case 0xf0:
		return KEY_LOCK;
	default:
		return 0;
	}
}

/* Number of the register that a field of three bits and a bit of REX name. */
static uint8_t number(unsigned field, unsigned rex_bit)
{
	return (uint8_t)((field & 7) | (rex_bit & 1) << 3);
}

/* False: nothing for shapes. `bytes`: as many as an instruction may have. */
static bool parts_read(const uint8_t *bytes, struct parts *p)
{
	unsigned at = 0, map = 0;
	uint32_t bit;

	p->key = KEY_USED;
	p->rex = p->modrm = 0;
	while ((bit = prefix_key(bytes[at]))) {
		/* Of two segments the last one counts; a prefix twice is not worth the thought. */
		if (p->key & (bit | (bit & (KEY_FS | KEY_GS) ? KEY_FS | KEY_GS : 0)))
			return false;
		p->key |= bit;
		at++;
	}
	if ((bytes[at] & 0xf0) == 0x40) {
		p->rex = bytes[at++];
		p->key |= KEY_REX | (p->rex & 8 ? KEY_W : 0);
	}
	if (bytes[at] == 0x0f) {
		map = 1;
		at++;
	}
	p->opcode = bytes[at++];
	p->kind = kinds[map][p->opcode];
	p->key |= map << 8 | (p->kind == OPREG ? p->opcode & 0xf8u : p->opcode);
	if (p->kind == OPREG && !p->rex && p->opcode & 4)
		p->key |= KEY_REG_HIGH;
	if (p->kind == MODRM || p->kind == GROUP || p->kind == GROUP_0) {
		p->modrm = bytes[at++];
		if (p->kind != MODRM)
			p->key |= (p->modrm & 0x38u) << 6;
		else if (!p->rex && p->modrm & 0x20)
			p->key |= KEY_REG_HIGH;
		if (p->modrm >= 0xc0)
			p->key |= KEY_MOD3 | (!p->rex && p->modrm & 4 ? KEY_RM_HIGH : 0);
	}
	p->at = at;
	return p->kind != OTHER && (p->kind != GROUP_0 || !(p->modrm & 0x38));
}

/* n bytes, little-endian, sign-extended. */
static int64_t signed_at(const uint8_t *bytes, unsigned n)
{
	uint64_t value = 0;

	memcpy(&value, bytes, n);
	return n == 8 ? (int64_t)value : (int64_t)(value << (64 - 8 * n)) >> (64 - 8 * n);
}

/* The memory operand of a ModRM byte; *at moves behind its SIB byte and displacement. */
static void memory_fill(const uint8_t *bytes, const struct parts *p, unsigned *at,
			struct insn *insn)
{
	unsigned mod = p->modrm >> 6, rm = p->modrm & 7, disp = mod == 1 ? 1 : mod == 2 ? 4 : 0;

	insn->rip_relative = mod == 0 && rm == 5;
	insn->mem_index = REG_NONE;
	insn->mem_scale = 1;
	insn->mem_base = number(rm, p->rex);
	if (rm == 4) {
		uint8_t sib = bytes[(*at)++], index = number(sib >> 3, p->rex >> 1);

		insn->mem_base = number(sib, p->rex);
		rm = sib & 7;
		if (index != X86_RSP) {
			insn->mem_index = index;
			insn->mem_scale = (uint8_t)(1 << (sib >> 6));
		}
	}
	if (mod == 0 && rm == 5) { /* SDM vol. 2 tables 2-2 and 2-3: no base */
		insn->mem_base = REG_NONE;
		disp = 4;
	}
	insn->mem_disp = disp ? signed_at(bytes + *at, disp) : 0;
	*at += disp;
	if (insn->is_agen || !(p->key & (KEY_FS | KEY_GS)))
		insn->mem_seg = insn->mem_base == X86_RSP || insn->mem_base == X86_RBP ? X86_SS
										       : X86_DS;
}

static void register_written(struct insn *insn, uint8_t file, uint8_t number)
{
	if (file == RF_GPR)
		insn->written_gprs |= (uint16_t)(1u << number);
	else if (file == RF_GPR8H)
		insn->written_high |= (uint8_t)(1u << (number - 4));
}

static void registers_fill(const struct parts *p, struct insn *insn)
{
	insn->written_gprs = 0;
	insn->written_high = 0;
	insn->modrm = p->modrm;
	if (insn->reg_file != RF_NONE)
		insn->reg = number(p->modrm >> 3, p->rex >> 2);
	if (insn->rm_file != RF_NONE)
		insn->rm = number(p->modrm, p->rex);
	if (insn->opreg_file != RF_NONE)
		insn->opreg = number(p->opcode, p->rex);
	if (insn->written_fields & FIELD_REG)
		register_written(insn, insn->reg_file, insn->reg);
	if (insn->written_fields & FIELD_RM)
		register_written(insn, insn->rm_file, insn->rm);
	if (insn->written_fields & FIELD_OPREG)
		register_written(insn, insn->opreg_file, insn->opreg);
}

/* Makes of another instruction of the same shape the one whose parts these are. */
static void shape_fill(const uint8_t *bytes, const struct parts *p, struct insn *insn)
{
	unsigned at = p->at, size = insn->imm_size[0];

	insn->opcode = p->opcode;
	registers_fill(p, insn);
	if (insn->has_modrm && p->modrm < 0xc0)
		memory_fill(bytes, p, &at, insn);
	if (insn->nimm) {
		insn->imm[0] = (uint64_t)signed_at(bytes + at, size);
		if (!insn->imm_signed && size < 8)
			insn->imm[0] &= (1ull << 8 * size) - 1;
		at += size;
	}
	insn->len = (uint8_t)at;
	memset(insn->bytes, 0, sizeof(insn->bytes));
	memcpy(insn->bytes, bytes, at);
}

int insn_decode_shaped(struct shapes *shapes, const uint8_t *bytes, unsigned n, uint32_t mode,
		       struct insn *insn)
{
	struct parts p;
	struct shape *shape;
	int ret;

	/* Within 15 bytes are at most 4 prefixes, REX, 2 of opcode, ModRM, SIB: and 4 of displacement, 4 (8, but without ModRM)
	 * of immediate. The last of these may be missing. */
	if (!(mode & MODE_CODE64) || n < INSN_MAX || !parts_read(bytes, &p))
		return insn_decode(bytes, n, mode, insn);
	shape = &shapes->shape[p.key * 0x9e3779b1u >> (32 - SHAPE_BITS)];
	if (shape->key == p.key) {
		*insn = shape->insn;
		shape_fill(bytes, &p, insn);
		return 0;
	}
	ret = insn_decode(bytes, n, mode, insn);
	if (!ret) {
		shape->key = p.key;
		shape->insn = *insn;
	}
	return ret;
}
