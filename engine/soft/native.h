/*
 * Which instructions run natively. An instruction is copied only if the tables here name it: its ISA set
 * with the CPUID bit that the guest must have been shown, and for the general-purpose sets its mnemonic.
 * Everything else is a C helper or #UD.
 */
#ifndef ENGINE_SOFT_NATIVE_H
#define ENGINE_SOFT_NATIVE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/soft/decode.h"
#include "vmm/cpuid.h"

#define ISA_SETS 192 /* at least ZYDIS_ISA_SET_MAX_VALUE + 1 */

/* isa[n]: the CPU model shows ISA set n. */
void native_isa_init(bool isa[ISA_SETS], const struct cpuid_table *model);

enum native_verdict {
	RUN_NATIVE,
	RUN_HELPER, /* ask soft_helper_for() */
	RUN_UD,
	RUN_NM,
};

enum native_verdict native_classify(const bool isa[ISA_SETS], const struct insn *insn,
				    uint32_t mode);

/* Takes part in FPU, MMX, SSE or AVX state: block mode bits decide about #NM and #UD. */
bool native_is_vector(const struct insn *insn);

#endif
