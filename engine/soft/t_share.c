/*
 * Which accesses of a block share one look-up in the inline TLB: see translate.h, struct share. This is decided
 * before anything is written; t_mem.c writes what is decided here, and checks an access on its own where the
 * look-up that it would share was not written.
 */
#include <Zydis/Mnemonic.h>
#include <string.h>

#include "engine/soft/native.h"
#include "engine/soft/translate.h"

#define PAGE 4096
#define SPAN_MAX 256 /* bytes of a group: the more, the more often it lies across a page edge */
#define BASE_RIP 0xfe

/* What the addresses of a group have in common. */
struct key {
	uint8_t base, index, scale, seg;
};

/* A group that more accesses may join. */
struct group {
	bool open, write;
	struct key key;
	unsigned leader, members;
	uint64_t moved; /* what was added to the base register since the leader */
	int64_t lo, hi; /* [lo, hi) from the key's address at the leader */
	unsigned last;	/* instruction that used it last */
};

struct plan {
	struct translation *t;
	struct group group[SHARE_SLOTS];
	int64_t disp[BLOCK_INSNS_MAX]; /* of each access, as in lo and hi */
	unsigned last_exit;	       /* 1 + the last instruction that may leave the block */
};

/* An access of an instruction, with the displacement from its key's address. */
struct access {
	struct key key;
	int64_t disp;
	unsigned size;
	bool write;
};

static bool key_equal(const struct key *a, const struct key *b)
{
	return a->base == b->base && a->index == b->index && a->scale == b->scale &&
	       a->seg == b->seg;
}

/* Pushes, pops, calls and returns that t_flow.c does inline. */
static bool stack_access(const struct insn *insn, struct access *a)
{
	bool push = insn->op == ZYDIS_MNEMONIC_PUSH || insn->op == ZYDIS_MNEMONIC_CALL ||
		    insn->op == ZYDIS_MNEMONIC_PUSHFQ;
	bool pop = insn->op == ZYDIS_MNEMONIC_POP || insn->op == ZYDIS_MNEMONIC_RET ||
		   insn->op == ZYDIS_MNEMONIC_LEAVE;

	if ((!push && !pop) || insn->opsize != 8 || insn->map != 0 || insn->has_mem)
		return false;
	a->key = (struct key){.base = insn->op == ZYDIS_MNEMONIC_LEAVE ? X86_RBP : X86_RSP,
			      .index = REG_NONE,
			      .scale = 1,
			      .seg = X86_DS};
	a->disp = push ? -8 : 0;
	a->size = 8;
	a->write = push;
	return true;
}

static bool operand_access(const struct translation *t, const struct insn *insn, unsigned at,
			   struct access *a)
{
	bool based = insn->mem_seg == X86_FS || insn->mem_seg == X86_GS;

	if (!insn->has_mem || insn->mem_vsib || insn->addrsize != 8 || insn->mem_size > 64 ||
	    insn->mem_disp != (int32_t)insn->mem_disp ||
	    native_classify(t->svm->isa, insn, t->mode) != RUN_NATIVE)
		return false;
	a->key = (struct key){.base = insn->rip_relative ? BASE_RIP : insn->mem_base,
			      .index = insn->mem_index,
			      .scale = insn->mem_index == REG_NONE ? 1 : insn->mem_scale,
			      .seg = based ? insn->mem_seg : X86_DS};
	a->disp = insn->mem_disp;
	if (insn->rip_relative)
		a->disp += (int64_t)t->start + at + insn->len;
	a->size = insn->mem_size ? insn->mem_size : 1;
	a->write = insn->mem_write;
	return true;
}

/* What the instruction adds to a register, if it does nothing else to it. RIP-relative code lies in one page: its base
 * is the page's first byte, and a group of such accesses never crosses an edge that is not seen here. */
bool insn_adds_constant(const struct insn *insn, uint8_t gpr, uint64_t *add)
{
	bool whole = insn->opsize == 8 && insn->written_gprs == 1u << gpr && !insn->has_mem;

	if (gpr == X86_RSP && insn->opsize == 8 && insn->map == 0 && !insn->has_mem) {
		bool push = insn->op == ZYDIS_MNEMONIC_PUSH || insn->op == ZYDIS_MNEMONIC_PUSHFQ;

		*add = push ? (uint64_t)-8 : 8;
		if (push || insn->op == ZYDIS_MNEMONIC_POP)
			return !(insn->written_gprs & 1u << X86_RSP);
	}
	if (!whole || (insn->rm_file != RF_GPR && insn->op != ZYDIS_MNEMONIC_LEA))
		return false;
	switch (insn->op) {
	case ZYDIS_MNEMONIC_ADD:
		*add = insn->imm[0];
		return insn->nimm == 1;
	case ZYDIS_MNEMONIC_SUB:
		*add = -insn->imm[0];
		return insn->nimm == 1;
	case ZYDIS_MNEMONIC_INC:
		*add = 1;
		return true;
	case ZYDIS_MNEMONIC_DEC:
		*add = (uint64_t)-1;
		return true;
	case ZYDIS_MNEMONIC_LEA:
		*add = (uint64_t)insn->mem_disp;
		return insn->addrsize == 8 && !insn->rip_relative && insn->mem_base == gpr &&
		       insn->mem_index == REG_NONE;
	default:
		return false;
	}
}

uint32_t insn_written(const struct insn *insn)
{
	uint32_t named = insn->written_gprs | insn->written_high;
	bool reads = insn->op == ZYDIS_MNEMONIC_CMP || insn->op == ZYDIS_MNEMONIC_TEST;

	return reads ? named : named | insn->implicit_gprs;
}

static void group_close(struct plan *p, struct group *g)
{
	struct translation *t = p->t;
	struct share *leader = &t->share[g->leader];

	if (!g->open)
		return;
	g->open = false;
	if (!g->members) {
		leader->role = SHARE_NONE;
		return;
	}
	for (unsigned i = g->leader; i <= g->last; i++) {
		struct share *s = &t->share[i];

		if (s->role == SHARE_NONE || s->leader != g->leader)
			continue;
		s->disp = (int32_t)(p->disp[i] - g->lo);
	}
	leader->write = g->write;
	leader->size = (uint16_t)(g->hi - g->lo);
	if (t->first_leader > g->leader)
		t->first_leader = g->leader;
}

static void close_all(struct plan *p)
{
	for (unsigned i = 0; i < SHARE_SLOTS; i++)
		group_close(p, &p->group[i]);
}

static bool group_join(struct plan *p, struct group *g, unsigned i, const struct access *a)
{
	struct share *s = &p->t->share[i];
	int64_t from, to, lo, hi;

	if (!g->open || !key_equal(&g->key, &a->key))
		return false;
	from = a->disp + (int64_t)g->moved;
	to = from + a->size;
	lo = from < g->lo ? from : g->lo;
	hi = to > g->hi ? to : g->hi;
	if (a->key.base == BASE_RIP && a->key.index == REG_NONE ? lo >> 12 != (hi - 1) >> 12
								: hi - lo > SPAN_MAX)
		return false;
	/* The look-up of a read asks for the right to write only if the write follows in any case. */
	if (a->write && !g->write && p->last_exit > g->leader)
		return false;
	g->lo = lo;
	g->hi = hi;
	g->write |= a->write;
	g->members++;
	g->last = i;
	p->disp[i] = from;
	*s = (struct share){.role = SHARE_MEMBER,
			    .slot = (uint8_t)(g - p->group),
			    .leader = (uint8_t)g->leader};
	return true;
}

static void group_open(struct plan *p, unsigned i, const struct access *a)
{
	struct group *g = NULL;

	for (unsigned k = 0; k < SHARE_SLOTS; k++) {
		struct group *other = &p->group[k];

		if (other->open && key_equal(&other->key, &a->key)) {
			g = other; /* too far from this one */
			break;
		}
		if (!g || !other->open || (g->open && other->last < g->last))
			g = !g || g->open ? other : g;
	}
	group_close(p, g);
	*g = (struct group){.open = true,
			    .write = a->write,
			    .key = a->key,
			    .leader = i,
			    .lo = a->disp,
			    .hi = a->disp + a->size,
			    .last = i};
	p->disp[i] = a->disp;
	p->t->share[i] = (struct share){
		.role = SHARE_LEADER, .slot = (uint8_t)(g - p->group), .leader = (uint8_t)i};
}

static void registers_change(struct plan *p, const struct insn *insn)
{
	uint32_t written = insn_written(insn);

	for (unsigned k = 0; k < SHARE_SLOTS; k++) {
		struct group *g = &p->group[k];
		uint64_t add;

		if (!g->open)
			continue;
		if (g->key.index != REG_NONE && (written >> g->key.index & 1)) {
			group_close(p, g);
		} else if (g->key.base < 16 && (written >> g->key.base & 1)) {
			if (insn_adds_constant(insn, g->key.base, &add))
				g->moved += add;
			else
				group_close(p, g);
		}
	}
}

/* C may run, as far as one can tell beforehand. Where C runs in fact, share_forget() is called. */
static bool calls_helper(const struct translation *t, const struct insn *insn)
{
	if (insn->op == ZYDIS_MNEMONIC_CLI || insn->op == ZYDIS_MNEMONIC_STI)
		return false; /* emit_system() */
	return !insn->branch && insn->op != ZYDIS_MNEMONIC_NOP && insn->op != ZYDIS_MNEMONIC_LEA &&
	       native_classify(t->svm->isa, insn, t->mode) != RUN_NATIVE;
}

void share_forget(struct translation *t)
{
	memset(t->live, 0, sizeof(t->live));
	t->in_r10 = 0;
}

void share_plan(struct translation *t, unsigned n)
{
	struct plan p = {.t = t};

	memset(t->share, 0, sizeof(t->share));
	t->first_leader = BLOCK_INSNS_MAX;
	if (!(t->mode & MODE_CODE64) ||
	    (t->mode & (MODE_AC | MODE_STEP | MODE_SHADOW | MODE_PLAIN)))
		return;
	for (unsigned i = 0, at = 0; i < n; at += t->insns[i].len, i++) {
		const struct insn *insn = &t->insns[i];
		struct access a;

		if (insn->branch)
			p.last_exit = i + 1;
		if (stack_access(insn, &a) || operand_access(t, insn, at, &a)) {
			bool joined = false;

			for (unsigned k = 0; k < SHARE_SLOTS && !joined; k++)
				joined = group_join(&p, &p.group[k], i, &a);
			if (!joined)
				group_open(&p, i, &a);
		} else if (calls_helper(t, insn)) {
			close_all(&p);
		}
		registers_change(&p, insn);
	}
	close_all(&p);
}
