/*
 * Every instruction that the decoder knows and whose feature the CPU model shows is executed by something: copied,
 * or a helper. So what is missing is seen here first and not as an illegal instruction in somebody's program. (FCOMI
 * was missing until dd(1) told its speed.)
 */
#include <stdio.h>
#include <string.h>

#include <Zydis/Zydis.h>

#include "engine/soft/cpu.h"
#include "engine/soft/decode.h"
#include "engine/soft/native.h"
#include "vmm/engine.h"

/* ISA sets that the CPU model never shows. Those that are hints or no-operations without their feature (MPX, CET,
 * PREFETCH) are translated to nothing. */
static const char *const never[] = {
	"AMD3DNOW",    "AMD_INVLPGB",  "CET",
	"CLDEMOTE",    "CLZERO",       "ENQCMD",
	"HRESET",      "KEYLOCKER",    "KEYLOCKER_WIDE",
	"MCOMMIT",     "MONITOR",      "MONITORX",
	"MOVDIR",      "MPX",	       "PADLOCK_ACE",
	"PADLOCK_PHE", "PADLOCK_PMM",  "PADLOCK_RNG",
	"PAUSE",       "PCONFIG",      "PKU",
	"PREFETCHWT1", "PREFETCH_NOP", "PT",
	"RDPRU",       "RTM",	       "SERIALIZE",
	"SGX",	       "SGX_ENCLV",    "SMX",
	"SNP",	       "SSE_PREFETCH", "SVM",
	"TDX",	       "TSX_LDTRK",    "UINTR",
	"VMFUNC",      "VTX",	       "WAITPKG",
	"XSAVES",
};

static bool never_shown(const struct insn *insn)
{
	const char *set = ZydisISASetGetString(insn->isa);

	if (insn->op == ZYDIS_MNEMONIC_RSM)
		return true; /* there is no SMM */
	for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++)
		if (!strcmp(never[i], set))
			return true;
	return false;
}

static bool executed(const bool isa[ISA_SETS], const struct insn *insn, uint32_t mode)
{
	bool leaves, quick;

	switch (native_classify(isa, insn, mode)) {
	case RUN_NATIVE:
	case RUN_NM:
		return true;
	case RUN_UD:
		return false;
	case RUN_HELPER:
		break;
	}
	return soft_helper_for(insn, mode, &leaves, &quick);
}

/* What translate.c has code for without asking. */
static bool translated(const char *name)
{
	static const char *const starts[] = {"j", "call", "ret", "loop", "nop", "lea"};

	for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++)
		if (!strncmp(name, starts[i], strlen(starts[i])))
			return true;
	return false;
}

static unsigned missing;

static void look(const bool isa[ISA_SETS], const uint8_t *bytes, uint32_t mode)
{
	static bool told[ZYDIS_MNEMONIC_MAX_VALUE + 1];
	struct insn insn;
	const char *name;

	if (insn_decode(bytes, INSN_MAX, mode, &insn) || told[insn.op])
		return;
	name = ZydisMnemonicGetString(insn.op);
	if (translated(name) || never_shown(&insn) || executed(isa, &insn, mode))
		return;
	if (native_is_vector(&insn) && !isa[insn.isa])
		return; /* the CPU model does not show it */
	told[insn.op] = true;
	missing++;
	printf("%s (%s): nothing executes it, %02x %02x %02x %02x %02x\n", name,
	       ZydisISASetGetString(insn.isa), bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]);
}

/* Legacy encodings: prefix, map, opcode, ModRM of registers and of memory. */
static void look_legacy(const bool isa[ISA_SETS], uint32_t mode)
{
	static const uint8_t prefixes[] = {0, 0x66, 0xf2, 0xf3, 0x48};
	static const uint8_t maps[][3] = {
		{0, 0, 0}, {1, 0x0f, 0}, {2, 0x0f, 0x38}, {2, 0x0f, 0x3a}};

	for (unsigned p = 0; p < sizeof(prefixes); p++)
		for (unsigned m = 0; m < 4; m++)
			for (unsigned code = 0; code < 65536; code++) {
				uint8_t bytes[INSN_MAX] = {0};
				unsigned n = 0;

				if (prefixes[p])
					bytes[n++] = prefixes[p];
				for (unsigned i = 0; i < maps[m][0]; i++)
					bytes[n++] = maps[m][1 + i];
				bytes[n++] = (uint8_t)(code >> 8);
				bytes[n++] = (uint8_t)code;
				look(isa, bytes, mode);
			}
}

int main(void)
{
	const uint32_t state = MODE_PROT | MODE_OSFXSR | MODE_OSXMMEX | MODE_OSXSAVE | MODE_AVX |
			       MODE_AVX512;
	struct cpuid_table table = {0};
	static bool isa[ISA_SETS];
	struct error err;
	uint64_t hz;

	if (engine_soft.cpuid_supported(NULL, &table, &hz, &err)) {
		printf("%s\n", err.text);
		return 1;
	}
	native_isa_init(isa, &table);
	look_legacy(isa, state | MODE_CODE64 | MODE_LONG);
	look_legacy(isa, state | MODE_CODE32);
	look_legacy(isa, state);
	return missing != 0;
}
