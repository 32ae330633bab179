/* Full: finding or making the block at RIP, and running it. */
#include <errno.h>
#include <string.h>

#include "engine/soft/access.h"
#include "engine/soft/decode.h"
#include "engine/soft/dispatch.h"
#include "engine/soft/tsan.h"
#include "vmm/vm.h"

#define PAGE 4096u

void (*const soft_stubs[STUBS])(void) = {
	[STUB_QUICK] = soft_stub_quick,
	[STUB_FULL] = soft_stub_full,
	[STUB_SLOW_ADDEND] = soft_stub_slow_addend,
	[STUB_SLOW_ADDRESS] = soft_stub_slow_address,
	[STUB_COMMIT] = soft_stub_commit,
	[STUB_LEAVE] = soft_stub_leave,
	[STUB_LINEAR] = soft_stub_linear,
	[STUB_PROBE] = soft_stub_probe,
	[STUB_EXIT] = soft_stub_exit,
	[STUB_EXIT_FAR] = soft_stub_exit_far,
	[STUB_LEAVE_AT] = soft_stub_leave_at,
	[STUB_LEAVE_TO] = soft_stub_leave_to,
	[STUB_SYSCALL] = soft_stub_syscall,
	[STUB_SYSRET] = soft_stub_sysret,
};

void soft_cpu_wire(struct soft_cpu *cpu)
{
	cpu->stub[STUB_QUICK] = (void *)soft_stubs[STUB_QUICK];
	cpu->stub[STUB_FULL] = (void *)soft_stubs[STUB_FULL];
	soft_side_segments(cpu);
	cpu->meta = cpu->svm->meta;
	cpu->xsave_area = cpu->xsave;
}

/* Does the instruction at gpa, n bytes before its page's end, go on behind it? */
static bool crosses_page(struct soft_cpu *cpu, uint64_t gpa, unsigned n)
{
	uint8_t bytes[INSN_MAX];
	struct insn insn;

	if (n >= INSN_MAX || memory_read(&cpu->svm->vm->memory, gpa, bytes, n))
		return false;
	return insn_decode(bytes, n, cpu->mode, &insn) == -ENODATA;
}

/* Nobody answers on the bus: all ones, and FF FF is no instruction. An instruction that only ends there might be one
 * on a real machine; it is #UD too. */
static enum soft_next no_code_memory(struct soft_cpu *cpu)
{
	return soft_raise(cpu, X86_UD);
}

/* svm->lock for a vCPU that is in: it lets others have their safepoint while it waits. Not among the quick files, where
 * ThreadSanitizer would not see it. */
static void svm_lock(struct soft_cpu *self)
{
	while (!soft_lock_try(&self->svm->lock)) {
		safepoint_poll(self);
		__builtin_ia32_pause();
	}
}

static enum soft_next translate_block(struct soft_cpu *cpu, const struct block_key *key,
				      uint64_t gpa2, uint64_t limit_left, struct soft_block **block)
{
	struct soft_vm *svm = cpu->svm;
	int error;

	/* A full cache is thrown away and the block tried again. A write to the page may end the watch before the
	 * lock is ours; after some of those in a row the vCPU looks at what else there is to do. */
	for (unsigned tries = 0; tries < 16; tries++) {
		cache_watch_page(cpu, key->gpa);
		if (gpa2 != ~0ull)
			cache_watch_page(cpu, gpa2);
		svm_lock(cpu);
		*block = NULL;
		error = -EAGAIN;
		if (cache_page_watched(svm, key->gpa) &&
		    (gpa2 == ~0ull || cache_page_watched(svm, gpa2)))
			*block = soft_translate(cpu, key, gpa2, limit_left, &error);
		soft_lock_release(&svm->lock);
		if (*block)
			return NEXT_GO;
		if (error == -ENOSPC)
			cache_flush(cpu);
		else if (error != -EAGAIN)
			return no_code_memory(cpu);
	}
	return NEXT_LEAVE;
}

/* The block at cpu->rip, translated if need be. NEXT_GO with *block; else a fault or an exit. */
static enum soft_next run_block_get(struct soft_cpu *cpu, struct soft_block **block)
{
	struct soft_vm *svm = cpu->svm;
	struct block_key key;
	uint64_t linear, gpa, gpa2 = ~0ull, limit_left = ~0ull;
	uint32_t plain = cpu->want_plain && cpu->plain_rip == cpu->rip ? MODE_PLAIN : 0;
	unsigned left;

	cpu->want_plain = false;
	if (!dispatch_linear(cpu, &linear))
		return soft_raise_error(cpu, X86_GP, 0);
	if (soft_translate_va(cpu, linear, ACCESS_FETCH, &gpa, NULL))
		return NEXT_FAULT;
	*block = dispatch_find(cpu, linear, gpa, plain);
	if (*block) {
		/* Another vCPU's block: that quick code met its insertion ThreadSanitizer sees here. */
		(void)atomic_load(&(*block)->valid);
		return NEXT_GO;
	}
	if (!memory_find(&svm->vm->memory, gpa, 1))
		return no_code_memory(cpu);
	left = PAGE - (unsigned)(gpa & (PAGE - 1));
	if (crosses_page(cpu, gpa, left)) {
		uint64_t next = linear + left;

		if (!(cpu->mode & MODE_CODE64))
			next = (uint32_t)next;
		if (soft_translate_va(cpu, next, ACCESS_FETCH, &gpa2, NULL))
			return NEXT_FAULT;
		if (!memory_find(&svm->vm->memory, gpa2, 1))
			return no_code_memory(cpu);
	}
	if (!(cpu->mode & MODE_CODE64))
		limit_left = cpu->seg[X86_CS].limit - cpu->rip;
	dispatch_key(cpu, gpa, plain, &key);
	return translate_block(cpu, &key, gpa2, limit_left, block);
}

/* The block that an instruction goes on with when a device has answered it. */
static struct soft_block *replay_block(struct soft_cpu *cpu)
{
	struct soft_replay *r = &cpu->replay;

	if (r->rip != cpu->rip || r->flushes != atomic_load(&cpu->svm->n_flushes))
		return NULL;
	return r->block;
}

/* A device is about to be asked: whatever could keep the instruction from coming again with the answer does so now. */
static enum soft_next replay_hold(struct soft_cpu *cpu)
{
	struct soft_replay *r = &cpu->replay;
	uint32_t mode = cpu->mode;
	enum soft_next next;

	if (replay_block(cpu))
		return NEXT_EXIT;
	cpu->mode |= MODE_SHADOW;
	next = run_block_get(cpu, &r->block);
	cpu->mode = mode;
	if (next == NEXT_GO) {
		r->flushes = atomic_load(&cpu->svm->n_flushes);
		return NEXT_EXIT;
	}
	r->block = NULL;
	cpu->complete = NULL;
	return next;
}

enum soft_next soft_run(struct soft_cpu *cpu)
{
	struct soft_block *block = cpu->replay.count ? replay_block(cpu) : NULL;
	enum soft_next next = block ? NEXT_GO : run_block_get(cpu, &block);
	uint8_t *code;

	if (next != NEXT_GO) {
		/* Nothing was executed: no single step. */
		cpu->step_trap &= next != NEXT_LEAVE;
		return next;
	}
	/* A shadow is over after this instruction, unless it makes a new one. */
	cpu->stepping = cpu->mode & (MODE_STEP | MODE_SHADOW);
	if (cpu->mode & MODE_SHADOW) {
		cpu->shadow_sti = cpu->shadow_mov_ss = false;
		cpu->mode &= ~MODE_SHADOW;
	}
	code = cpu->svm->code_rx + block->code;
	/* The next safepoint is in quick code: from then on the block may be gone. */
	tsan_before(&cpu->svm->exclusive);
	next = soft_enter(cpu, code);
	return next == NEXT_EXIT && cpu->complete == replay_answered ? replay_hold(cpu) : next;
}
