#include "engine/soft/trace.h"

#include <Zydis/Zydis.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/soft/decode.h"

struct soft_trace {
	FILE *file;
};

int trace_open(struct soft_trace **out, const char *path, struct error *err)
{
	struct soft_trace *trace = calloc(1, sizeof(*trace));

	if (!trace)
		return error_set(err, ENOMEM, "out of memory");
	trace->file = fopen(path, "we");
	if (!trace->file) {
		int error = errno;

		free(trace);
		return error_set(err, error, "soft.trace: cannot write %s: %s", path,
				 strerror(error));
	}
	*out = trace;
	return 0;
}

void trace_close(struct soft_trace *trace)
{
	if (!trace)
		return;
	fclose(trace->file);
	free(trace);
}

static void trace_host(FILE *f, const uint8_t *code, uint32_t len, uint64_t at)
{
	ZydisDisassembledInstruction text;
	uint32_t pos = 0;

	while (pos < len) {
		if (ZYAN_FAILED(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, at + pos,
						      code + pos, len - pos, &text))) {
			fprintf(f, "    %#" PRIx64 "  (bad)\n", at + pos);
			return;
		}
		fprintf(f, "    %#" PRIx64 "  %s\n", at + pos, text.text);
		pos += text.info.length;
	}
}

void trace_block(struct soft_vm *svm, const struct soft_block *block, const struct insn *insns,
		 unsigned ninsns)
{
	FILE *f = svm->trace->file;
	uint64_t at = block->key.gpa;
	char text[128];

	fprintf(f, "block gpa %#" PRIx64 " mode %#x, %u guest bytes, %u host bytes, %u cold\n", at,
		block->key.mode, block->len, block->code_len, block->cold_len);
	for (unsigned i = 0; i < ninsns; i++) {
		insn_print(&insns[i], at, text, sizeof(text));
		fprintf(f, "  %#" PRIx64 "  %s\n", at, text);
		at += insns[i].len;
	}
	trace_host(f, svm->code_rw + block->start, block->code_len,
		   (uint64_t)(uintptr_t)svm->code_rx + block->start);
	fprintf(f, "  cold\n");
	trace_host(f, svm->code_rw + block->cold, block->cold_len,
		   (uint64_t)(uintptr_t)svm->code_rx + block->cold);
}
