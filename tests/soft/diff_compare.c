/* The comparison of the differential test, and what both manuals leave open or in which CPUs and soft differ by intent. */
#include "diff.h"

#include <Zydis/Zydis.h>
#include <string.h>

#include "engine/soft/fpu.h"

/* The x87 registers in the order of their numbers, not of the stack. */
static void forget_top(uint8_t *x)
{
	unsigned top = x[3] >> 3 & 7;
	uint8_t turned[128];

	for (unsigned i = 0; i < 8; i++)
		memcpy(turned + ((top + i) & 7) * 16, x + 32 + i * 16, 16);
	memcpy(x + 32, turned, sizeof(turned));
	x[3] &= (uint8_t)~0x38;
}

/* FOP, FIP and FDP are the engine's to substitute; padding is nobody's. Components in their initial state may
 * have any bytes: take what the header says. */
static void normalize(uint8_t *x, bool top_is_open)
{
	uint32_t offset, size;
	uint64_t bv;

	memcpy(&bv, x + 512, 8);
	memset(x + 6, 0, 18);
	memset(x + 28, 0, 4);
	memset(x + 416, 0, 96);
	for (unsigned i = 0; i < 8; i++)
		memset(x + 32 + i * 16 + 10, 0, 6);
	if (!(bv & 1)) {
		memset(x, 0, 24);
		x[0] = 0x7f;
		x[1] = 3;
		memset(x + 32, 0, 128);
	}
	if (!(bv & 2))
		memset(x + 160, 0, 256);
	for (unsigned i = 2; i < 8; i++)
		if (!(bv >> i & 1) && native_component(i, &offset, &size))
			memset(x + offset, 0, size);
	memset(x + 512, 0, 64);
	if (top_is_open)
		forget_top(x);
}

static bool is_x87(const struct insn *insn)
{
	return insn->map == 0 && insn->encoding == ENC_LEGACY && (insn->opcode & 0xf8) == 0xd8;
}

/* What an operand in memory can raise. */
static bool memory_fault(int vector)
{
	return vector == X86_SS_FAULT || vector == X86_GP || vector == X86_PF || vector == X86_AC;
}

/* Intel's CPUs tell an x87 store's own exception before they look at its address, AMD's and soft the other way. */
static bool x87_store_did_not_look(const struct harness *h)
{
	const struct insn *insn = &h->insn;
	const struct cpu_image *a = &h->native, *b = &h->soft;

	return is_x87(insn) && insn->mem_write &&
	       (a->vector < 0 || a->vector == X86_DB || a->rip != h->start.rip) &&
	       (a->xsave[2] & FSW_ES) && memory_fault(b->vector);
}

/* Exceptions of one instruction that are in the same class have no order (SDM vol. 3, 6.9): an x87 exception that
 * waits and a fault of the operand. */
static bool other_of_class(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;

	return (a->vector == X86_MF && memory_fault(b->vector)) ||
	       (b->vector == X86_MF && memory_fault(a->vector));
}

/* MASKMOVQ and its kin may look at what the mask leaves out, or at all of it first (SDM vol. 2). */
static bool masked_store_looked(const struct harness *h)
{
	const struct insn *insn = &h->insn;

	return (insn->op == ZYDIS_MNEMONIC_MASKMOVQ || insn->op == ZYDIS_MNEMONIC_MASKMOVDQU ||
		insn->op == ZYDIS_MNEMONIC_VMASKMOVDQU) &&
	       memory_fault(h->native.vector) &&
	       (h->soft.vector < 0 || h->soft.vector == X86_DB || memory_fault(h->soft.vector));
}

/* Does an access of `size` bytes by this register fault, as far as paging and segments are concerned? */
static bool string_faults(const struct harness *h, unsigned seg, unsigned reg, unsigned size)
{
	uint64_t offset = h->native.gpr[reg] & reach_of(h->insn.addrsize);
	struct x86_seg s = native_segment(h->start.kind, seg);
	uint64_t linear = offset + segment_base(h, seg);

	if (h->start.kind != KIND_64) {
		linear = (uint32_t)linear;
		if (offset + size - 1 > s.limit)
			return true;
	}
	if ((h->start.rflags & X86_FL_AC) && (linear & (size - 1)))
		return true;
	return linear - DATA > RODATA_END - DATA - size;
}

/* Neither manual says which operand of CMPS is read first: if neither is there, either fault is right. */
static bool cmps_other_operand(const struct harness *h)
{
	const struct insn *insn = &h->insn;
	unsigned size = insn->opcode == 0xa6 ? 1 : insn->opsize;

	return is_string(insn) && (insn->opcode & 0xfe) == 0xa6 && memory_fault(h->native.vector) &&
	       memory_fault(h->soft.vector) && string_faults(h, insn->mem_seg, X86_RSI, size) &&
	       string_faults(h, X86_ES, X86_RDI, size);
}

static bool vmaskmov(const struct insn *insn)
{
	return insn->op == ZYDIS_MNEMONIC_VMASKMOVPD || insn->op == ZYDIS_MNEMONIC_VMASKMOVPS ||
	       insn->op == ZYDIS_MNEMONIC_VPMASKMOVD || insn->op == ZYDIS_MNEMONIC_VPMASKMOVQ;
}

/* A branch that leaves its segment or the canonical addresses: soft tells of it at the target, after the branch. */
static bool branch_beyond(const struct harness *h)
{
	return is_branch(&h->insn) && memory_fault(h->native.vector) &&
	       (h->soft.vector == X86_GP || h->soft.vector == X86_DB);
}

/* An operand that is misaligned as well as not there: in one class again. */
static bool alignment_or_other(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;

	return (h->start.rflags & X86_FL_AC) && memory_fault(a->vector) &&
	       memory_fault(b->vector) && (a->vector == X86_AC || b->vector == X86_AC);
}

/* The x87's 80 bits are two accesses, and which half is looked at first is not said. */
static bool half_of_ten(const struct harness *h)
{
	return h->insn.mem_size == 10 && memory_fault(h->native.vector) &&
	       memory_fault(h->soft.vector);
}

/* Both are wrong with an aligned operand relative to SS: its address and its limit. */
static bool limit_or_alignment(const struct harness *h)
{
	return h->insn.mem_seg == X86_SS && h->insn.mem_size >= 16 &&
	       h->native.vector + h->soft.vector == X86_GP + X86_SS_FAULT;
}

/* soft looks at a segment's limit, and at the alignment if that is checked, before it looks at the mask. */
static bool masked_checked(const struct harness *h)
{
	const struct insn *insn = &h->insn;

	return (h->start.kind != KIND_64 || (h->start.rflags & X86_FL_AC)) &&
	       (insn->suppresses || vmaskmov(insn)) && memory_fault(h->soft.vector) &&
	       h->soft.vector != X86_PF;
}

/* With MXCSR.MM AMD's CPUs read half of an operand if the instruction uses no more, as shifts and unpacking do. */
static bool half_of_misaligned(const struct harness *h)
{
	uint32_t mxcsr;

	memcpy(&mxcsr, h->start.xsave + 24, sizeof(mxcsr));
	return (mxcsr & MXCSR_MM) && h->insn.encoding == ENC_LEGACY && h->insn.mem_size == 16 &&
	       h->soft.vector == X86_PF &&
	       (h->native.vector != X86_PF || h->native.rip != h->soft.rip);
}

/* Nor whether BOUND reads the upper bound when the lower one is broken already. */
static bool bound_other_half(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;

	return h->insn.op == ZYDIS_MNEMONIC_BOUND &&
	       ((a->vector == X86_BR && memory_fault(b->vector)) ||
		(b->vector == X86_BR && memory_fault(a->vector)));
}

/* Which byte of the page a masked access is said to have touched differs between CPUs. */
static bool same_cr2(const struct harness *h)
{
	const struct insn *insn = &h->insn;
	bool masked = insn->encoding != ENC_LEGACY && (insn->mask_reg || vmaskmov(insn));
	uint64_t differ = h->native.cr2 ^ h->soft.cr2;

	return (masked ? differ & ~0xfffull : differ) == 0;
}

static bool same_fault(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;
	uint64_t error = a->error;

	if (cmps_other_operand(h) || bound_other_half(h) || other_of_class(h) ||
	    limit_or_alignment(h) || alignment_or_other(h) || half_of_ten(h))
		return true;
	/* Linux calls its own half of the address space present to whoever tries to find out. */
	if (a->vector == X86_PF && (int64_t)a->cr2 < 0)
		error &= ~1ull;
	/* Where the guest has its handlers, which its user mode cannot reach, this process has nothing. */
	if (a->vector == X86_PF && a->cr2 - SYS < 0x10000)
		error |= b->error & 1;
		/* A branch may lead into what the sanitizer has mapped, out of which nothing can be executed. */
#ifdef __SANITIZE_ADDRESS__
	if (a->vector == X86_PF && (error & b->error & 0x10))
		error = (error & ~1ull) | (b->error & 1);
#endif
	return a->vector == b->vector && (a->vector != X86_PF || same_cr2(h)) &&
	       (a->vector < 0 || !has_error_code(a->vector) || error == b->error);
}

/* Flags that the manuals leave open, and that C is not asked to guess. */
static uint64_t bcd_undefined(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS:
		return X86_FL_OF | X86_FL_SF | X86_FL_ZF | X86_FL_PF;
	case ZYDIS_MNEMONIC_AAD:
	case ZYDIS_MNEMONIC_AAM:
		return X86_FL_OF | X86_FL_AF | X86_FL_CF;
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS:
		return X86_FL_OF;
	default:
		return 0;
	}
}

/* REPE and REPNE CMPS and SCAS that fault have the flags of the last comparison on AMD's CPUs and in soft, those
 * from before the instruction on Intel's (SDM vol. 2, REP). */
static uint64_t flags_to_compare(const struct harness *h)
{
	const struct insn *insn = &h->insn;

	if (h->native.vector >= 0 && (insn->rep || insn->repne))
		return X86_FL_DF;
	return (ARITH_FLAGS | X86_FL_DF) & ~bcd_undefined(insn);
}

/* Intel's CPUs cut the counter and the pointers of a REP with 32-bit addresses in 64-bit mode even if its first
 * element faults or there is none. */
static void forget_uppers(struct harness *h)
{
	static const unsigned regs[] = {X86_RCX, X86_RSI, X86_RDI};

	if (!is_string(&h->insn) || h->insn.addrsize != 4 ||
	    (h->native.vector < 0 && (uint32_t)h->start.gpr[X86_RCX]))
		return;
	for (unsigned i = 0; i < 3; i++) {
		h->native.gpr[regs[i]] &= UINT32_MAX;
		h->soft.gpr[regs[i]] &= UINT32_MAX;
	}
}

/* What is in the upper halves of registers after 32-bit code is not defined (SDM vol. 1, 3.4.1.1); POPA that faults
 * has loaded some on Intel's CPUs. */
static bool same_registers(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;

	if (a->vector >= 0 &&
	    (h->insn.op == ZYDIS_MNEMONIC_POPA || h->insn.op == ZYDIS_MNEMONIC_POPAD))
		return true;
	if (h->start.kind == KIND_64)
		return !memcmp(a->gpr, b->gpr, sizeof(a->gpr)) &&
		       (!native_has(KIND_16) ||
			(a->fs_base == b->fs_base && a->gs_base == b->gs_base));
	for (unsigned i = 0; i < 8; i++)
		if ((uint32_t)a->gpr[i] != (uint32_t)b->gpr[i])
			return false;
	return true;
}

/* A store of 10 bytes over the edge of a page or segment, of which the second part faults: Intel's CPUs have written
 * the first. */
static void forget_half_store(struct harness *h)
{
	uint64_t at = operand_address(h) - DATA;

	if (!memory_fault(h->native.vector) || h->insn.mem_size != 10 || !h->insn.mem_write)
		return;
	for (uint64_t i = at; i < at + 8 && i < DATA_SIZE; i++)
		h->data[i] = h->data_soft[i];
}

/* Conversions between half and single precision: Intel's CPUs convert before they look where to store, and do not
 * check a source's alignment. */
static bool half_precision(const struct harness *h)
{
	const struct cpu_image *a = &h->native, *b = &h->soft;

	if (h->insn.op == ZYDIS_MNEMONIC_VCVTPS2PH && h->insn.mem_write)
		return (a->vector == X86_XM || memory_fault(a->vector)) && memory_fault(b->vector);
	return h->insn.op == ZYDIS_MNEMONIC_VCVTPH2PS && b->vector == X86_AC;
}

/* Bytes of a vector register from `from` on, in the image, are the other's. */
static void forget_vector(struct harness *h, unsigned reg, unsigned from)
{
	for (unsigned at = from; at < 64; at += 4) {
		const uint8_t *place = vector_place(h->native.xsave, reg, at);

		if (!place)
			return;
		memcpy(vector_place(h->soft.xsave, reg, at), place, 4);
	}
}

/* AMD's CPUs may leave what a gather that faults has not done yet as it was in the mask: its elements are their signs. */
static void mask_to_signs(uint8_t *xsave, unsigned reg, unsigned bytes, unsigned element)
{
	for (unsigned at = 0; at < bytes; at += 4) {
		const uint8_t *top = vector_place(xsave, reg, (at | (element - 1)) & ~3u);

		memset(vector_place(xsave, reg, at), top[3] & 0x80 ? 0xff : 0, 4);
	}
}

static unsigned vex_bytes(const struct insn *insn)
{
	unsigned i = 0;

	while (i + 3 < insn->len && insn->bytes[i] != 0xc4)
		i++;
	return insn->bytes[i + 2] & 4 ? 32 : 16;
}

/* A gather that faults: whether what is behind the last element, of the register and of the mask, is zero already is
 * not said. */
static void forget_tails(struct harness *h)
{
	const struct soft_vm *svm = h->vm->engine_data;
	const struct insn *insn = &h->insn;
	unsigned data = insn->mem_size == 8 ? 8 : 4, index = insn->opcode & 1 ? 8 : 4;
	unsigned used = data == 4 && index == 8 ? 2 : 1; /* the share of the register, from below */
	unsigned bytes = insn->encoding == ENC_EVEX ? insn->vector_bytes : vex_bytes(insn);

	if (!insn->mem_vsib || h->native.vector < 0)
		return;
	forget_vector(h, insn->reg, bytes / used);
	if (insn->encoding != ENC_VEX)
		return;
	forget_vector(h, insn->vvvv, bytes / used);
	if (svm->intel)
		return;
	mask_to_signs(h->native.xsave, insn->vvvv, bytes / used, data);
	mask_to_signs(h->soft.xsave, insn->vvvv, bytes / used, data);
}

bool same(struct harness *h)
{
	struct cpu_image *a = &h->native, *b = &h->soft;
	/* Intel's CPUs set TOP to 0 before an MMX store faults, AMD's and soft do not. */
	bool top_is_open = a->vector >= 0 && h->insn.map == 1 && h->insn.encoding == ENC_LEGACY;

	if (masked_checked(h) || branch_beyond(h) || half_precision(h) ||
	    x87_store_did_not_look(h) || masked_store_looked(h) || half_of_misaligned(h))
		return true;
	normalize(a->xsave, top_is_open);
	normalize(b->xsave, top_is_open);
	forget_half_store(h);
	forget_uppers(h);
	forget_tails(h);
	return same_fault(h) && a->rip == b->rip && same_registers(h) &&
	       ((a->rflags ^ b->rflags) & flags_to_compare(h)) == 0 &&
	       !memcmp(a->xsave, b->xsave, native_xsave_size()) &&
	       !memcmp(h->data, h->data_soft, DATA_SIZE);
}
