/* soft.trace=FILE: each block as guest disassembly and emitted host code, for those who debug the engine. */
#ifndef ENGINE_SOFT_TRACE_H
#define ENGINE_SOFT_TRACE_H

#include "base/error.h"
#include "engine/soft/cache.h"

struct soft_trace;

int trace_open(struct soft_trace **out, const char *path, struct error *err);
void trace_close(struct soft_trace *trace);
/* Under svm->lock. */
void trace_block(struct soft_vm *svm, const struct soft_block *block, const struct insn *insns,
		 unsigned ninsns);

#endif
