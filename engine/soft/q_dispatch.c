/* Quick: what happens between two blocks that are not chained. */
#include "engine/soft/cache.h"
#include "engine/soft/dispatch.h"

#define PAGE_MASK 0xfffull
/* A jump that could not be linked, or is far and was linked for another address space, goes by the jump cache as often
 * before dispatch sees it again. */
#define LINK_TRIES 32

enum soft_next soft_raise(struct soft_cpu *cpu, uint8_t vector)
{
	struct soft_fault *fault = &cpu->fault;

	fault->vector = vector;
	fault->has_error = false;
	fault->trap = fault->soft = fault->external = false;
	fault->error = 0;
	fault->cr2 = fault->dr6 = 0;
	return NEXT_FAULT;
}

enum soft_next soft_raise_error(struct soft_cpu *cpu, uint8_t vector, uint32_t error)
{
	soft_raise(cpu, vector);
	cpu->fault.has_error = true;
	cpu->fault.error = error;
	return NEXT_FAULT;
}

bool dispatch_linear(const struct soft_cpu *cpu, uint64_t *linear)
{
	if (cpu->mode & MODE_CODE64) {
		*linear = cpu->rip;
		return (uint64_t)((int64_t)(cpu->rip << 16) >> 16) == cpu->rip;
	}
	*linear = (uint32_t)(cpu->seg[X86_CS].base + cpu->rip);
	return cpu->rip <= cpu->seg[X86_CS].limit;
}

void dispatch_key(const struct soft_cpu *cpu, uint64_t gpa, uint32_t plain, struct block_key *key)
{
	bool based = !(cpu->mode & (MODE_CODE64 | MODE_FLAT));

	key->gpa = gpa;
	key->mode = cpu->mode | plain;
	key->cs_base = based ? cpu->seg[X86_CS].base : 0;
	key->cs_limit = based ? cpu->seg[X86_CS].limit : 0;
}

/* The bytes behind the page edge are still the ones that were translated. */
static bool second_page_holds(struct soft_cpu *cpu, const struct soft_block *block, uint64_t linear)
{
	uint64_t gpa;

	if (block->gpa2 == ~0ull)
		return true;
	return !soft_fetch_gpa(cpu, (linear | PAGE_MASK) + 1, &gpa) && gpa == block->gpa2;
}

struct soft_block *dispatch_find(struct soft_cpu *cpu, uint64_t linear, uint64_t gpa,
				 uint32_t plain)
{
	struct block_key key;
	struct soft_block *block;

	dispatch_key(cpu, gpa, plain, &key);
	block = block_find(cpu->svm, &key);
	if (!block || !second_page_holds(cpu, block, linear))
		return NULL;
	return block;
}

static bool may_link(const struct block_link *link, const struct soft_block *to)
{
	const struct block_key *from = &link->from->key;

	if ((to->gpa2 != ~0ull && !link->far) ||
	    (from->mode & ~MODE_PLAIN) != (to->key.mode & ~MODE_PLAIN) ||
	    link->plain != !!(to->key.mode & MODE_PLAIN) ||
	    (to->key.gpa & PAGE_MASK) != ((uint64_t)(int64_t)link->target & PAGE_MASK))
		return false;
	if (link->far)
		return link->far_number;
	return (from->gpa | PAGE_MASK) == (to->key.gpa | PAGE_MASK);
}

/* Links the direct jump that led here, if it can be. */
static void dispatch_link(struct soft_cpu *cpu, struct block_link *link, struct soft_block *to)
{
	struct soft_vm *svm = cpu->svm;

	/* The jump cache does not know plain blocks. */
	link->tries = link->plain ? 1 : LINK_TRIES;
	if (!may_link(link, to))
		return;
	/* The next time, if the lock is taken: waiting here would hold up a safepoint. */
	link->tries = 1;
	if (!soft_lock_try(&svm->lock))
		return;
	if (!link->to && atomic_load(&link->from->valid) && atomic_load(&to->valid))
		block_link(svm, link, to);
	if (link->far && link->to == to)
		soft_far_put(cpu, link->far_entry, link->far_number);
	link->tries = link->far ? LINK_TRIES : 1;
	soft_lock_release(&svm->lock);
}

static struct soft_block *dispatch_look(struct soft_cpu *cpu, uint32_t plain)
{
	uint64_t linear, gpa;

	if (!dispatch_linear(cpu, &linear) || soft_fetch_gpa(cpu, linear, &gpa))
		return NULL;
	return dispatch_find(cpu, linear, gpa, plain);
}

/* If there is none yet, soft_run() makes it. */
static struct soft_block *dispatch_plain(struct soft_cpu *cpu)
{
	struct soft_block *block = dispatch_look(cpu, MODE_PLAIN);

	cpu->want_plain = !block;
	cpu->plain_rip = cpu->rip;
	return block;
}

/* As translated code looks there. The block may be buried: soft_stub_leave comes from those. */
static void *dispatch_cached(const struct soft_cpu *cpu)
{
	const struct soft_jump *jump = &cpu->tlb->jump[JUMP_INDEX(cpu->rip)];

	return jump->tag == -cpu->rip ? jump->code : NULL;
}

static struct soft_block *dispatch_usual(struct soft_cpu *cpu)
{
	struct soft_block *block = soft_jump_known(cpu, cpu->rip);

	if (!block)
		block = dispatch_look(cpu, 0);
	if (block)
		soft_jump_cache_put(cpu, cpu->rip, block);
	return block;
}

static void *dispatch(struct soft_cpu *cpu, bool missed)
{
	struct block_link *link = cpu->link;
	struct soft_block *block;
	void *code;

	cpu->link = NULL;
	/* Something waits for a chance that this instruction may have given. */
	if (cpu->event_waiting && ((cpu->sysflags & X86_FL_IF) || cpu->nmi_pending))
		return NULL;
	if (cpu->halted || !atomic_load(&cpu->run_ok) || cpu->stepping ||
	    (cpu->mode & (MODE_STEP | MODE_SHADOW)))
		return NULL;
	cpu->shadow_sti = cpu->shadow_mov_ss = false;
	code = missed ? NULL : dispatch_cached(cpu);
	if (code)
		return code;
	block = link && link->plain ? dispatch_plain(cpu) : dispatch_usual(cpu);
	if (!block)
		return NULL;
	if (link)
		dispatch_link(cpu, link, block);
	return cpu->svm->code_rx + block->code;
}

void *soft_leave(struct soft_cpu *cpu, enum soft_next next)
{
	void *code = NULL;
	bool missed = next == NEXT_MISSED;

	if (missed)
		next = NEXT_LEAVE;
	if (next == NEXT_FAULT && !cpu->stepping)
		next = soft_deliver_fault(cpu);
	if (next == NEXT_LEAVE)
		code = dispatch(cpu, missed);
	cpu->link = NULL;
	cpu->unwind = next;
	return code;
}
