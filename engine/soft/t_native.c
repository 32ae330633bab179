/*
 * Instructions that run natively: written again with host registers for the guest's, and the memory operand
 * that t_mem.c found. Nothing but the instruction itself changes flags.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/native.h"
#include "engine/soft/translate.h"

#define TEMP_HIGH 16 /* temp_guest: 16 + n is bits 15:8 of guest register n */

uint8_t guest_reg(uint8_t gpr)
{
	switch (gpr) {
	case X86_RCX:
		return H_R11;
	case X86_RSP:
		return H_R14;
	case X86_R10:
	case X86_R11:
	case X86_R14:
	case X86_R15:
		return H_NONE;
	default:
		return gpr;
	}
}

void emit_get_gpr(struct translation *t, uint8_t dst, uint8_t gpr)
{
	uint8_t reg = guest_reg(gpr);

	if (reg == H_NONE)
		emit_load(&t->e, 8, dst, CPU_GPR(gpr));
	else
		emit_mov_rr(&t->e, 8, dst, reg);
}

/* width 8: all; 4: zero-extended, and src too if the register lives in memory, which is stored at once so that the next
 * load of it need not wait; 2 and 1: the rest stays. */
void emit_set_gpr(struct translation *t, uint8_t gpr, uint8_t src, unsigned width)
{
	uint8_t reg = guest_reg(gpr);

	if (reg != H_NONE) {
		emit_op_rr(&t->e, width, 0, width == 1 ? 0x88 : 0x89, src, reg);
		return;
	}
	if (width == 4) {
		emit_mov_rr(&t->e, 4, src, src);
		width = 8;
	}
	emit_store(&t->e, width, CPU_GPR(gpr), src);
}

/* ---- temporaries -------------------------------------------------------------------------------- */

struct temps {
	uint32_t taken; /* host registers that the instruction uses */
	bool rcx_free, r10_free;
};

static uint8_t borrow_reg(struct body *b, uint32_t taken)
{
	static const uint8_t candidates[] = {H_RBX, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R12, H_R13};

	for (unsigned i = 0; i < sizeof(candidates); i++) {
		if (!(taken & 1u << candidates[i])) {
			b->borrowed = candidates[i];
			return candidates[i];
		}
	}
	return H_NONE; /* no instruction names that many */
}

static uint8_t temp_for(struct translation *t, struct body *b, struct temps *free, uint8_t guest)
{
	uint8_t reg;

	for (unsigned i = 0; i < b->ntemps; i++)
		if (b->temp_guest[i] == guest)
			return b->temp[i];
	if (free->rcx_free) {
		free->rcx_free = false;
		reg = H_RCX;
	} else if (free->r10_free) {
		free->r10_free = false;
		reg = H_R10;
		t->in_r10 = 0;
	} else {
		reg = b->borrowed == H_NONE ? borrow_reg(b, free->taken) : H_NONE;
	}
	if (reg == H_NONE || b->ntemps == 4) {
		t->e.overflow = true;
		return H_RCX;
	}
	b->temp[b->ntemps] = reg;
	b->temp_guest[b->ntemps++] = guest;
	return reg;
}

/* ---- registers in memory, without temporaries ----------------------------------------------------- */

static bool in_memory(uint8_t file, uint8_t number)
{
	return file == RF_GPR && guest_reg(number) == H_NONE;
}

/* The eight operations of two operands, and MOV: opcodes 00 to 3B without those of AL and EAX, 88 to 8B. Bit 1 says which
 * operand is written. */
static bool has_direction(const struct insn *insn)
{
	return insn->map == 0 &&
	       ((insn->opcode < 0x40 && !(insn->opcode & 4)) || (insn->opcode & 0xfc) == 0x88);
}

/* May ModRM's register be memory with nothing else changed? Not XCHG, which locks, nor BT, which would reach further. */
static bool rm_may_be_memory(const struct insn *insn)
{
	uint8_t opcode = insn->opcode;

	if (insn->map == 1) /* CMOVcc, IMUL, MOVZX, MOVSX */
		return (opcode & 0xf0) == 0x40 || opcode == 0xaf || (opcode & 0xf6) == 0xb6;
	if (insn->map != 0)
		return false;
	return has_direction(insn) || opcode == 0x63 || opcode == 0x69 || opcode == 0x6b ||
	       opcode == 0x80 || opcode == 0x81 || opcode == 0x83 || opcode == 0x84 ||
	       opcode == 0x85 || opcode == 0xc0 || opcode == 0xc1 || opcode == 0xc6 ||
	       opcode == 0xc7 || (opcode & 0xfc) == 0xd0 ||
	       ((opcode & 0xfe) == 0xf6 && (insn->modrm >> 3 & 7) < 4) ||
	       ((opcode & 0xfe) == 0xfe && (insn->modrm >> 3 & 7) < 2);
}

static void swap_operands(struct insn *insn)
{
	uint8_t reg = insn->reg;

	insn->reg = insn->rm;
	insn->rm = reg;
	if (has_direction(insn))
		insn->opcode ^= 2;
}

/*
 * A register that lives in cpu->gpr[] as the instruction's memory operand: then it needs no temporary, which would be loaded and
 * stored. It may be read at any width, but is written whole only: a narrow write would make the next read of it wait, and
 * one of 32 bits clears the rest.
 */
static bool rm_in_memory(struct insn *insn)
{
	bool written;

	if (insn->mode != 64 || insn->has_mem || !insn->has_modrm || insn->encoding != ENC_LEGACY ||
	    insn->prefix66_f2_f3 || insn->rm_file != RF_GPR || insn->vvvv_file != RF_NONE ||
	    insn->opreg_file != RF_NONE || !rm_may_be_memory(insn))
		return false;
	if (insn->reg_file == RF_GPR && insn->reg == insn->rm)
		return false;
	if (!in_memory(RF_GPR, insn->rm) && in_memory(insn->reg_file, insn->reg) &&
	    (has_direction(insn) || (insn->map == 0 && (insn->opcode & 0xfe) == 0x84)))
		swap_operands(insn);
	written = insn->written_gprs >> insn->rm & 1;
	return in_memory(RF_GPR, insn->rm) && (!written || insn->opsize == 8);
}

/* MOV, MOVSXD, MOVZX and MOVSX with 32 or 64 bits, of another register, memory or a constant; XOR and SUB of a register and
 * itself: what was in the register does not matter. */
static bool only_writes(const struct insn *insn)
{
	uint8_t opcode = insn->opcode;

	if (insn->encoding != ENC_LEGACY || insn->opsize < 4)
		return false;
	if (insn->reg_file == RF_GPR && insn->rm_file == RF_GPR && insn->reg == insn->rm)
		return insn->map == 0 && ((opcode & 0xfd) == 0x31 || (opcode & 0xfd) == 0x29);
	if (insn->map == 1)
		return (opcode & 0xf6) == 0xb6;
	return insn->map == 0 &&
	       (opcode == 0x63 || opcode == 0x89 || opcode == 0x8b || (opcode & 0xf8) == 0xb8);
}

/* The host register for a field; one that lives in memory or is a high byte gets a temporary. */
static uint8_t field_reg(struct translation *t, struct body *b, struct temps *free, uint8_t *file,
			 uint8_t number)
{
	if (*file == RF_GPR8H) {
		*file = RF_GPR;
		return temp_for(t, b, free, (uint8_t)(TEMP_HIGH + number - 4));
	}
	if (*file != RF_GPR)
		return number;
	if (guest_reg(number) != H_NONE)
		return guest_reg(number);
	return temp_for(t, b, free, number);
}

static void mark_taken(uint32_t *taken, uint8_t file, uint8_t number)
{
	if (file == RF_GPR && guest_reg(number) != H_NONE)
		*taken |= 1u << guest_reg(number);
	else if (file == RF_GPR8H)
		*taken |= 1u << guest_reg(number - 4);
}

uint32_t native_taken(const struct insn *insn)
{
	uint32_t taken = insn->implicit_gprs;

	mark_taken(&taken, insn->reg_file, insn->reg);
	mark_taken(&taken, insn->rm_file, insn->rm);
	mark_taken(&taken, insn->vvvv_file, insn->vvvv);
	mark_taken(&taken, insn->opreg_file, insn->opreg);
	if (insn->mem_base != REG_NONE)
		mark_taken(&taken, RF_GPR, insn->mem_base);
	if (insn->mem_index != REG_NONE && !insn->mem_vsib)
		mark_taken(&taken, RF_GPR, insn->mem_index);
	return taken;
}

bool native_has_temps(const struct insn *insn)
{
	const uint8_t file[4] = {insn->reg_file, insn->rm_file, insn->vvvv_file, insn->opreg_file};
	const uint8_t number[4] = {insn->reg, insn->rm, insn->vvvv, insn->opreg};

	for (unsigned i = 0; i < 4; i++)
		if (file[i] == RF_GPR8H || (file[i] == RF_GPR && guest_reg(number[i]) == H_NONE))
			return true;
	return false;
}

static void temp_load(struct translation *t, uint8_t temp, uint8_t guest)
{
	if (guest >= TEMP_HIGH)
		emit_rorx(&t->e, temp, guest_reg(guest - TEMP_HIGH), 8);
	else
		emit_load(&t->e, 8, temp, CPU_GPR(guest));
}

static void temp_store(struct translation *t, uint8_t temp, uint8_t guest)
{
	if (guest >= TEMP_HIGH) {
		uint8_t reg = guest_reg(guest - TEMP_HIGH);

		emit_rorx(&t->e, reg, reg, 8);
		emit_op_rr(&t->e, 1, 0, 0x88, temp, reg);
		emit_rorx(&t->e, reg, reg, 56);
	} else {
		emit_store(&t->e, 8, CPU_GPR(guest), temp);
	}
}

/* ---- bodies ------------------------------------------------------------------------------------- */

/* PCMPxSTRI leave an index in ECX; other native instructions only read it. */
static bool writes_rcx(const struct insn *insn)
{
	return native_is_vector(insn);
}

static void emit_native_body(struct translation *t, const struct body *b)
{
	struct insn_regs regs = b->regs;

	if (b->borrowed != H_NONE) {
		emit_store(&t->e, 8, CPU(scratch[0]), b->borrowed);
		translation_mark(t, (uint16_t)(PC_BORROWED | b->borrowed));
	}
	for (unsigned i = 0; i < b->ntemps; i++)
		if (b->temp_guest[i] >= TEMP_HIGH || !only_writes(b->insn) ||
		    !(b->insn->written_gprs >> b->temp_guest[i] & 1))
			temp_load(t, b->temp[i], b->temp_guest[i]);
	if (b->rcx)
		emit_mov_rr(&t->e, 8, H_RCX, H_R11);
	if (regs.mem)
		regs.mem = &b->mem;
	insn_emit(&t->e, b->insn, &regs);
	if (b->rcx && writes_rcx(b->insn))
		emit_mov_rr(&t->e, 8, H_R11, H_RCX);
	for (unsigned i = 0; i < b->ntemps; i++) {
		uint8_t guest = b->temp_guest[i];

		if (guest >= TEMP_HIGH ? b->insn->written_high >> (guest - TEMP_HIGH) & 1
				       : b->insn->written_gprs >> guest & 1)
			temp_store(t, b->temp[i], guest);
	}
	if (b->borrowed != H_NONE) {
		emit_load(&t->e, 8, b->borrowed, CPU(scratch[0]));
		translation_mark(t, 0);
	}
}

/* A push, its pointer last. */
static void emit_push_body(struct translation *t, const struct body *b)
{
	unsigned width = t->mode & MODE_CODE64 ? 8 : 4;

	if (b->kind == BODY_PUSH_REG) {
		emit_store(&t->e, b->size, b->mem, b->reg);
	} else if (b->kind == BODY_PUSH_SLOT) {
		emit_load(&t->e, 8, H_RCX, hmem(H_RSP, (int32_t)b->imm));
		emit_store(&t->e, b->size, b->mem, H_RCX);
	} else if (b->kind == BODY_CALL) {
		emit_rip(t, H_RCX, (int32_t)b->imm);
		emit_store(&t->e, b->size, b->mem, H_RCX);
	} else {
		emit_store_imm(&t->e, b->size, b->mem, (int32_t)b->imm);
	}
	if (b->move)
		emit_lea(&t->e, width, H_R14, hmem(H_R14, b->move));
}

void emit_body(struct translation *t, const struct body *b)
{
	if (b->kind == BODY_NATIVE)
		emit_native_body(t, b);
	else if (b->kind != BODY_NONE)
		emit_push_body(t, b);
}

/* ---- the instruction ------------------------------------------------------------------------------ */

/* MOV AL/AX/EAX/RAX, moffs and back (A0-A3) have no ModRM: use the forms that do (88-8B). */
static void moffs_to_modrm(struct insn *insn)
{
	static const uint8_t opcode[4] = {0x8a, 0x8b, 0x88, 0x89};

	insn->opcode = opcode[insn->opcode & 3];
	insn->has_modrm = true;
	insn->reg = X86_RAX;
	insn->reg_file = RF_GPR;
	insn->implicit_gprs = 0;
}

/* INC and DEC of one byte (40-4F) are REX prefixes in 64-bit mode: FF /0 and /1. */
static void inc_dec_to_modrm(struct insn *insn)
{
	insn->modrm = insn->opcode & 8;
	insn->opcode = 0xff;
	insn->has_modrm = true;
	insn->rm = insn->opreg;
	insn->rm_file = RF_GPR;
	insn->opreg_file = RF_NONE;
}

/* One-byte encodings that the host, in 64-bit mode, has not or has in another form. */
static void legacy_form(struct insn *insn)
{
	if (insn->map != 0 || insn->encoding != ENC_LEGACY)
		return;
	if ((insn->opcode & 0xfc) == 0xa0)
		moffs_to_modrm(insn);
	else if (insn->mode != 64 && (insn->opcode & 0xf0) == 0x40)
		inc_dec_to_modrm(insn);
	else if (insn->mode != 64 && insn->opcode == 0x82)
		insn->opcode = 0x80; /* its alias */
}

/* VZEROUPPER and VZEROALL outside 64-bit mode leave registers 8 and up alone. */
static bool emit_zero_legacy(struct emit *e, const struct insn *insn)
{
	bool all = insn->op == ZYDIS_MNEMONIC_VZEROALL;

	if (insn->mode == 64 || (!all && insn->op != ZYDIS_MNEMONIC_VZEROUPPER))
		return false;
	for (unsigned i = 0; i < 8; i++) {
		/* vpxor xmm, xmm, xmm; vmovaps xmm, xmm */
		const uint8_t zero[] = {0xc5, (uint8_t)(0x81 | (~i & 15) << 3), 0xef,
					(uint8_t)(0xc0 | i << 3 | i)};
		const uint8_t upper[] = {0xc5, 0xf8, 0x28, (uint8_t)(0xc0 | i << 3 | i)};

		emit_bytes(e, all ? zero : upper, 4);
	}
	return true;
}

/* SSE memory operands of 16 bytes are aligned but for the instructions made not to be; of VEX and EVEX only those
 * that say so (SDM vol. 1 section 14.9). */
static bool needs_alignment(const struct soft_vm *svm, const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_CMPXCHG16B:
	case ZYDIS_MNEMONIC_VMOVAPD:
	case ZYDIS_MNEMONIC_VMOVAPS:
	case ZYDIS_MNEMONIC_VMOVDQA:
	case ZYDIS_MNEMONIC_VMOVDQA32:
	case ZYDIS_MNEMONIC_VMOVDQA64:
	case ZYDIS_MNEMONIC_VMOVNTDQ:
	case ZYDIS_MNEMONIC_VMOVNTDQA:
	case ZYDIS_MNEMONIC_VMOVNTPD:
	case ZYDIS_MNEMONIC_VMOVNTPS:
		return true;
	case ZYDIS_MNEMONIC_LDDQU:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_PCMPESTRI:
	case ZYDIS_MNEMONIC_PCMPESTRM:
	case ZYDIS_MNEMONIC_PCMPISTRI:
	case ZYDIS_MNEMONIC_PCMPISTRM:
		return false;
	case ZYDIS_MNEMONIC_SHA1MSG1:
	case ZYDIS_MNEMONIC_SHA1MSG2:
	case ZYDIS_MNEMONIC_SHA1NEXTE:
	case ZYDIS_MNEMONIC_SHA1RNDS4:
	case ZYDIS_MNEMONIC_SHA256MSG1:
	case ZYDIS_MNEMONIC_SHA256MSG2:
	case ZYDIS_MNEMONIC_SHA256RNDS2:
		return svm->intel;
	default:
		return insn->encoding == ENC_LEGACY && insn->mem_size == 16 &&
		       native_is_vector(insn);
	}
}

/* Elements whose mask bit is clear are not accessed; of stores, not written, though some look at the whole operand. */
static bool masked_access(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VMASKMOVPS:
	case ZYDIS_MNEMONIC_VPMASKMOVD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ:
		return true;
	default:
		return insn->encoding == ENC_EVEX && insn->mask_reg &&
		       (insn->suppresses || insn->mem_write);
	}
}

static uint32_t access_flags(const struct soft_vm *svm, const struct insn *insn)
{
	uint32_t flags = 0;

	if (insn->mem_read)
		flags |= MEM_READ;
	if (insn->mem_write)
		flags |= MEM_WRITE;
	if (insn->lock || (insn->op == ZYDIS_MNEMONIC_XCHG && insn->mem_write))
		flags |= MEM_LOCK;
	/* An x87 store that has an exception to tell leaves bytes as they are. */
	if (insn->mem_write && native_is_vector(insn) && insn->encoding == ENC_LEGACY &&
	    insn->map == 0)
		flags |= MEM_READ;
	if (masked_access(insn))
		flags |= MEM_MASKED;
	if (needs_alignment(svm, insn))
		flags |= MEM_ALIGNED;
	return flags & (MEM_READ | MEM_WRITE) ? flags : flags | MEM_READ;
}

void emit_native(struct translation *t, struct insn *insn)
{
	struct body b = {.kind = BODY_NATIVE, .insn = insn, .borrowed = H_NONE};
	struct temps free = {.taken = native_taken(insn)};
	struct cold *cold = NULL;
	bool any_temps;

	if (emit_zero_legacy(&t->e, insn))
		return;
	legacy_form(insn);
	any_temps = native_has_temps(insn);
	b.rcx = insn->implicit_gprs >> X86_RCX & 1;
	free.rcx_free = !b.rcx;
	free.r10_free = !insn->has_mem;
	if (insn->has_mem) {
		uint32_t flags = access_flags(t->svm, insn);
		unsigned size = insn->mem_size ? insn->mem_size : 1;

		b.mem = emit_access(t, insn, size, flags, any_temps || b.rcx, &cold);
		b.regs.mem = &b.mem;
	}
	if (rm_in_memory(insn)) {
		b.mem = CPU_GPR(insn->rm);
		b.regs.mem = &b.mem;
	}
	b.regs.reg = field_reg(t, &b, &free, &insn->reg_file, insn->reg);
	if (!b.regs.mem)
		b.regs.rm = field_reg(t, &b, &free, &insn->rm_file, insn->rm);
	b.regs.vvvv = field_reg(t, &b, &free, &insn->vvvv_file, insn->vvvv);
	b.regs.opreg = field_reg(t, &b, &free, &insn->opreg_file, insn->opreg);
	if (cold && insn->mem_write) {
		emit_body(t, &b);
		cold->body = b;
		cold->back = emit_pos(&t->e);
	} else {
		emit_body(t, &b);
	}
}

static uint8_t address_reg(uint8_t gpr)
{
	return gpr == REG_NONE ? H_NONE : guest_reg(gpr);
}

bool lea_is_direct(const struct insn *insn)
{
	return insn->addrsize == 8 && !insn->rip_relative && insn->opsize >= 4 &&
	       guest_reg(insn->reg) != H_NONE && insn->mem_disp == (int32_t)insn->mem_disp &&
	       (insn->mem_base == REG_NONE || guest_reg(insn->mem_base) != H_NONE) &&
	       (insn->mem_index == REG_NONE || guest_reg(insn->mem_index) != H_NONE);
}

/* The host registers of an address of 64 bits: RCX and R10 for those that have to be loaded. */
static uint8_t lea_base(struct translation *t, const struct insn *insn)
{
	if (insn->rip_relative)
		emit_load(&t->e, 8, H_RCX, CPU(page_rip));
	else if (insn->mem_base == REG_NONE || guest_reg(insn->mem_base) != H_NONE)
		return address_reg(insn->mem_base);
	else
		emit_load(&t->e, 8, H_RCX, CPU_GPR(insn->mem_base));
	return H_RCX;
}

static uint8_t lea_index(struct translation *t, const struct insn *insn)
{
	if (insn->mem_index == REG_NONE || guest_reg(insn->mem_index) != H_NONE)
		return address_reg(insn->mem_index);
	emit_load(&t->e, 8, H_R10, CPU_GPR(insn->mem_index));
	t->in_r10 = 0;
	return H_R10;
}

void emit_lea_insn(struct translation *t, const struct insn *insn)
{
	int64_t disp = insn->mem_disp + (insn->rip_relative ? t->offset + insn->len : 0);

	if (insn->addrsize == 8 && insn->opsize >= 4 && disp == (int32_t)disp) {
		uint8_t reg = guest_reg(insn->reg);
		uint8_t base = lea_base(t, insn), index = lea_index(t, insn);

		emit_lea(&t->e, insn->opsize, reg == H_NONE ? H_RCX : reg,
			 hmem_x(base, index, insn->mem_scale, (int32_t)disp));
		if (reg == H_NONE)
			emit_store(&t->e, 8, CPU_GPR(insn->reg), H_RCX);
		return;
	}
	emit_address(t, insn, H_RCX, H_R10, false);
	emit_set_gpr(t, insn->reg, H_RCX, insn->opsize);
}
