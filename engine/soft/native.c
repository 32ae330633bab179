#include "engine/soft/native.h"

#include <Zydis/Zydis.h>
#include <string.h>

#include "engine/soft/cpu.h"

_Static_assert(ISA_SETS > ZYDIS_ISA_SET_MAX_VALUE, "an ISA set has no place in the table");

/* What vector state an ISA set needs. */
enum isa_state { STATE_NONE, STATE_X87, STATE_MMX, STATE_SSE, STATE_AVX, STATE_AVX512 };

enum cpuid_reg { EAX, EBX, ECX, EDX };

#define LEAF1 1u
#define LEAF7 7u
#define LEAF7_1 0x10007u /* subleaf 1 */
#define LEAFX 0x80000001u

struct isa_entry {
	bool named;
	uint8_t state;
	uint32_t leaf; /* 0: always there */
	uint8_t reg, bit;
};

#define I(set, state, leaf, reg, bit) [ZYDIS_ISA_SET_##set] = {true, STATE_##state, leaf, reg, bit}
#define I_AVX512(set, bit_reg, bit)                                                           \
	I(set##_128, AVX512, LEAF7, bit_reg, bit), I(set##_256, AVX512, LEAF7, bit_reg, bit), \
		I(set##_512, AVX512, LEAF7, bit_reg, bit)

/* CPUID bits: SDM vol. 2 CPUID, APM vol. 3 appendix E. The EVEX forms of AES, GFNI and PCLMUL need AVX512F
 * too, which every host that has AVX512 state has. */
static const struct isa_entry isa_table[ISA_SETS] = {
	I(I86, NONE, 0, 0, 0),
	I(I186, NONE, 0, 0, 0),
	I(I286REAL, NONE, 0, 0, 0),
	I(I286PROTECTED, NONE, 0, 0, 0),
	I(I386, NONE, 0, 0, 0),
	I(I486, NONE, 0, 0, 0),
	I(I486REAL, NONE, 0, 0, 0),
	I(PENTIUMREAL, NONE, 0, 0, 0),
	I(PPRO, NONE, 0, 0, 0),
	I(FAT_NOP, NONE, 0, 0, 0),
	I(PREFETCH_NOP, NONE, 0, 0, 0),
	I(PAUSE, NONE, 0, 0, 0),
	I(LONGMODE, NONE, LEAFX, EDX, 29),
	I(LAHF, NONE, LEAF1, EDX, 0),
	I(CMOV, NONE, LEAF1, EDX, 15),
	I(CMPXCHG16B, NONE, LEAF1, ECX, 13),
	I(MOVBE, NONE, LEAF1, ECX, 22),
	I(POPCNT, NONE, LEAF1, ECX, 23),
	I(LZCNT, NONE, LEAFX, ECX, 5),
	I(BMI1, NONE, LEAF7, EBX, 3),
	I(BMI2, NONE, LEAF7, EBX, 8),
	I(ADOX_ADCX, NONE, LEAF7, EBX, 19),
	I(X87, X87, LEAF1, EDX, 0),
	I(FCMOV, X87, LEAF1, EDX, 15),
	I(SSE3X87, X87, LEAF1, ECX, 0),
	I(PENTIUMMMX, MMX, LEAF1, EDX, 23),
	I(SSE2MMX, MMX, LEAF1, EDX, 26),
	I(SSSE3MMX, MMX, LEAF1, ECX, 9),
	I(SSE, SSE, LEAF1, EDX, 25),
	I(SSEMXCSR, SSE, LEAF1, EDX, 25),
	I(SSE2, SSE, LEAF1, EDX, 26),
	I(SSE3, SSE, LEAF1, ECX, 0),
	I(SSSE3, SSE, LEAF1, ECX, 9),
	I(SSE4, SSE, LEAF1, ECX, 19),
	I(SSE42, SSE, LEAF1, ECX, 20),
	I(SSE4A, SSE, LEAFX, ECX, 6),
	I(AES, SSE, LEAF1, ECX, 25),
	I(PCLMULQDQ, SSE, LEAF1, ECX, 1),
	I(SHA, SSE, LEAF7, EBX, 29),
	I(GFNI, SSE, LEAF7, ECX, 8),
	I(AVX, AVX, LEAF1, ECX, 28),
	I(AVXAES, AVX, LEAF1, ECX, 25),
	I(F16C, AVX, LEAF1, ECX, 29),
	I(FMA, AVX, LEAF1, ECX, 12),
	I(AVX2, AVX, LEAF7, EBX, 5),
	I(AVX2GATHER, AVX, LEAF7, EBX, 5),
	I(VAES, AVX, LEAF7, ECX, 9),
	I(VPCLMULQDQ, AVX, LEAF7, ECX, 10),
	I(AVX_GFNI, AVX, LEAF7, ECX, 8),
	I(AVX_VNNI, AVX, LEAF7_1, EAX, 4),
	I_AVX512(AVX512F, EBX, 16),
	I(AVX512F_128N, AVX512, LEAF7, EBX, 16),
	I(AVX512F_SCALAR, AVX512, LEAF7, EBX, 16),
	I(AVX512F_KOP, AVX512, LEAF7, EBX, 16),
	I_AVX512(AVX512DQ, EBX, 17),
	I(AVX512DQ_128N, AVX512, LEAF7, EBX, 17),
	I(AVX512DQ_SCALAR, AVX512, LEAF7, EBX, 17),
	I(AVX512DQ_KOP, AVX512, LEAF7, EBX, 17),
	I_AVX512(AVX512_IFMA, EBX, 21),
	I_AVX512(AVX512CD, EBX, 28),
	I_AVX512(AVX512BW, EBX, 30),
	I(AVX512BW_128N, AVX512, LEAF7, EBX, 30),
	I(AVX512BW_KOP, AVX512, LEAF7, EBX, 30),
	I_AVX512(AVX512_VBMI, ECX, 1),
	I_AVX512(AVX512_VBMI2, ECX, 6),
	I_AVX512(AVX512_GFNI, ECX, 8),
	I_AVX512(AVX512_VAES, ECX, 9),
	I_AVX512(AVX512_VPCLMULQDQ, ECX, 10),
	I_AVX512(AVX512_VNNI, ECX, 11),
	I_AVX512(AVX512_BITALG, ECX, 12),
	I_AVX512(AVX512_VPOPCNTDQ, ECX, 14),
	I(AVX512_BF16_128, AVX512, LEAF7_1, EAX, 5),
	I(AVX512_BF16_256, AVX512, LEAF7_1, EAX, 5),
	I(AVX512_BF16_512, AVX512, LEAF7_1, EAX, 5),
};

static bool model_has(const struct cpuid_table *model, const struct isa_entry *e)
{
	const struct cpuid_leaf *leaf;
	uint32_t value;

	if (!e->leaf)
		return true;
	leaf = e->leaf == LEAF7_1 ? cpuid_find(model, 7, 1) : cpuid_find(model, e->leaf, 0);
	if (!leaf)
		return false;
	value = e->reg == EAX	? leaf->regs.eax
		: e->reg == EBX ? leaf->regs.ebx
		: e->reg == ECX ? leaf->regs.ecx
				: leaf->regs.edx;
	return value >> e->bit & 1;
}

void native_isa_init(bool isa[ISA_SETS], const struct cpuid_table *model)
{
	bool vl = model_has(model, &(struct isa_entry){.leaf = LEAF7, .reg = EBX, .bit = 31});

	memset(isa, 0, sizeof(bool) * ISA_SETS);
	for (unsigned set = 0; set < ISA_SETS; set++) {
		const struct isa_entry *e = &isa_table[set];

		isa[set] = e->named && model_has(model, e);
		/* The 128 and 256 bit forms of AVX-512 are AVX512VL's. */
		if (e->state == STATE_AVX512 && !vl) {
			const char *name = ZydisISASetGetString(set);
			size_t len = name ? strlen(name) : 0;

			if (len > 4 &&
			    (!strcmp(name + len - 4, "_128") || !strcmp(name + len - 4, "_256")))
				isa[set] = false;
		}
	}
}

/* What state an instruction uses; the decoder files some of the x87's under sets of other instructions. */
static enum isa_state isa_state(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_FCOMI:
	case ZYDIS_MNEMONIC_FCOMIP:
	case ZYDIS_MNEMONIC_FISTTP:
	case ZYDIS_MNEMONIC_FUCOMI:
	case ZYDIS_MNEMONIC_FUCOMIP:
		return STATE_X87;
	default:
		break;
	}
	return isa_table[insn->isa].state;
}

bool native_is_vector(const struct insn *insn)
{
	return isa_state(insn) != STATE_NONE;
}

/* General-purpose instructions that may be copied, with all their operands. */
#define G(op) [ZYDIS_MNEMONIC_##op] = true
static const bool gpr_table[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
	G(ADC),	   G(ADCX),    G(ADD),	      G(ADOX),	    G(AND),    G(ANDN),	   G(BEXTR),
	G(BLSI),   G(BLSMSK),  G(BLSR),	      G(BSF),	    G(BSR),    G(BSWAP),   G(BZHI),
	G(CBW),	   G(CDQ),     G(CDQE),	      G(CLC),	    G(CMC),    G(CMOVB),   G(CMOVBE),
	G(CMOVL),  G(CMOVLE),  G(CMOVNB),     G(CMOVNBE),   G(CMOVNL), G(CMOVNLE), G(CMOVNO),
	G(CMOVNP), G(CMOVNS),  G(CMOVNZ),     G(CMOVO),	    G(CMOVP),  G(CMOVS),   G(CMOVZ),
	G(CMP),	   G(CMPXCHG), G(CMPXCHG16B), G(CMPXCHG8B), G(CQO),    G(CRC32),   G(CWD),
	G(CWDE),   G(DEC),     G(DIV),	      G(IDIV),	    G(IMUL),   G(INC),	   G(LAHF),
	G(LFENCE), G(LZCNT),   G(MFENCE),     G(MOVBE),	    G(MOVNTI), G(MOVSX),   G(MOVSXD),
	G(MOVZX),  G(MUL),     G(MULX),	      G(NEG),	    G(NOT),    G(OR),	   G(PDEP),
	G(PEXT),   G(POPCNT),  G(RCL),	      G(RCR),	    G(ROL),    G(ROR),	   G(RORX),
	G(SAHF),   G(SAR),     G(SARX),	      G(SBB),	    G(SETB),   G(SETBE),   G(SETL),
	G(SETLE),  G(SETNB),   G(SETNBE),     G(SETNL),	    G(SETNLE), G(SETNO),   G(SETNP),
	G(SETNS),  G(SETNZ),   G(SETO),	      G(SETP),	    G(SETS),   G(SETZ),	   G(SFENCE),
	G(SHL),	   G(SHLD),    G(SHLX),	      G(SHR),	    G(SHRD),   G(SHRX),	   G(STC),
	G(SUB),	   G(TEST),    G(TZCNT),      G(XADD),	    G(XCHG),   G(XOR),
};

static bool gpr_native(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTC:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTS:
		/* With memory and a register the bit lies anywhere around the operand. */
		return !insn->has_mem || insn->nimm;
	case ZYDIS_MNEMONIC_MOV:
		return insn->segreg == REG_NONE; /* not segment, control and debug registers */
	default:
		return gpr_table[insn->op];
	}
}

/* Vector instructions that read or write what is not the guest's own in the host's registers, or memory
 * that no operand tells. */
static bool vector_helper(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FRSTOR:
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
		return true;
	default:
		return insn->mem_vsib;
	}
}

static enum native_verdict classify_vector(const struct insn *insn, uint32_t mode,
					   enum isa_state state)
{
	switch (state) {
	case STATE_X87:
		if (insn->op == ZYDIS_MNEMONIC_FWAIT)
			return (mode & MODE_TS) && (mode & MODE_MP) ? RUN_NM : RUN_NATIVE;
		if (mode & (MODE_EM | MODE_TS))
			return RUN_NM;
		break;
	case STATE_MMX:
		if (mode & MODE_EM)
			return RUN_UD;
		break;
	case STATE_SSE:
		if ((mode & MODE_EM) || !(mode & MODE_OSFXSR))
			return RUN_UD;
		break;
	case STATE_AVX:
		if (!(mode & MODE_AVX) || !(mode & MODE_PROT))
			return RUN_UD;
		break;
	default:
		if (!(mode & MODE_AVX512) || !(mode & MODE_PROT))
			return RUN_UD;
		break;
	}
	if (mode & MODE_TS)
		return RUN_NM;
	return vector_helper(insn) ? RUN_HELPER : RUN_NATIVE;
}

/* Instructions that ISA sets of vectors hold but that use general registers and memory only. */
static bool vector_set_exception(const struct insn *insn)
{
	switch (insn->op) {
	case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_MFENCE:
	case ZYDIS_MNEMONIC_SFENCE:
	case ZYDIS_MNEMONIC_MOVNTI:
	case ZYDIS_MNEMONIC_CRC32:
	case ZYDIS_MNEMONIC_POPCNT:
		return true;
	default:
		return false;
	}
}

enum native_verdict native_classify(const bool isa[ISA_SETS], const struct insn *insn,
				    uint32_t mode)
{
	enum isa_state state = isa_state(insn);

	if (insn->map == 0xff)
		return RUN_UD;
	if (state == STATE_NONE || vector_set_exception(insn)) {
		if (isa[insn->isa] && gpr_native(insn))
			return RUN_NATIVE;
		return RUN_HELPER;
	}
	if (!isa[insn->isa])
		return RUN_UD;
	return classify_vector(insn, mode, state);
}
