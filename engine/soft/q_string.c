/*
 * String instructions. REP forms work a page at a time on host memory where both sides are plain RAM, one element
 * at a time elsewhere. Registers always tell how far the instruction got, so faults, exits and interrupts
 * leave it to be resumed (SDM vol. 1 section 7.3.9.2).
 */
#include "engine/soft/access.h"
#include "engine/soft/q_helper.h"

#define NO_CODE (~0ull)

struct string {
	struct soft_cpu *cpu;
	const struct insn *insn;
	unsigned size; /* of an element */
	unsigned addr; /* address size */
	bool rep;
	int64_t step;	/* bytes to the next element */
	uint64_t count; /* left, 1 without REP */
};

static void string_begin(struct string *s, struct soft_cpu *cpu, const struct insn *insn,
			 unsigned size)
{
	s->cpu = cpu;
	s->insn = insn;
	s->size = size;
	s->addr = insn->addrsize;
	s->rep = insn->rep || insn->repne;
	s->step = cpu->sysflags & X86_FL_DF ? -(int64_t)size : (int64_t)size;
	s->count = s->rep ? gpr_get(cpu, X86_RCX, s->addr) : 1;
}

/* n elements are done: counters and pointers move. */
static void string_moved(struct string *s, uint64_t n, bool source, bool target)
{
	struct soft_cpu *cpu = s->cpu;
	uint64_t by = (uint64_t)s->step * n;

	if (source)
		gpr_set(cpu, X86_RSI, s->addr, gpr_get(cpu, X86_RSI, s->addr) + by);
	if (target)
		gpr_set(cpu, X86_RDI, s->addr, gpr_get(cpu, X86_RDI, s->addr) + by);
	s->count -= n;
	if (s->rep)
		gpr_set(cpu, X86_RCX, s->addr, s->count);
	soft_replay_clear(cpu);
}

/* Elements from `offset` that lie in one page and do not wrap the address size; at least 1, which may cross. */
static uint64_t string_run(const struct string *s, uint64_t offset, uint64_t linear)
{
	uint64_t in_page = s->step > 0 ? 4096 - (linear & 0xfff) : (linear & 0xfff) + s->size;
	uint64_t n = in_page / s->size, top = cut(~0ull, s->addr);
	uint64_t wrap = s->step > 0 ? (top - offset) / s->size : offset / s->size + 1;

	if (n > s->count)
		n = s->count;
	if (s->addr != 8 && n > wrap)
		n = wrap;
	return n ? n : 1;
}

/* Where a side lies: the lowest address of n elements, checked as one access; n is 1 if that fails. */
static int string_side(struct string *s, enum x86_segreg seg, unsigned reg, unsigned access,
		       uint64_t *n, uint64_t *linear)
{
	struct soft_cpu *cpu = s->cpu;
	uint64_t offset = gpr_get(cpu, reg, s->addr), first, got;
	int next = soft_linear(cpu, seg, offset, s->size, access, linear);

	if (next)
		return next;
	got = string_run(s, offset, *linear);
	if (*n > got)
		*n = got;
	if (*n == 1)
		return 0;
	first = s->step > 0 ? offset : offset - (*n - 1) * s->size;
	if (soft_linear(cpu, seg, first, (unsigned)(*n * s->size), access, linear)) {
		*n = 1;
		return soft_linear(cpu, seg, offset, s->size, access, linear);
	}
	return 0;
}

/* Between elements: somebody wants the vCPU, or it is single-stepped: a step is an element (SDM vol. 3, 18.3.1.4). */
static bool string_interrupted(const struct string *s)
{
	return s->count && ((s->cpu->mode & MODE_STEP) ||
			    !atomic_load_explicit(&s->cpu->run_ok, memory_order_relaxed));
}

/* Are runs of elements done at once? */
static bool string_runs(const struct string *s)
{
	return s->rep && !(s->cpu->mode & (MODE_STEP | MODE_AC));
}

static enum soft_next string_end(struct string *s, uint64_t epoch)
{
	if (s->count && s->rep) {
		/* Again, from where the registers are. */
		s->cpu->shadow_sti = s->cpu->shadow_mov_ss = false;
		return NEXT_LEAVE;
	}
	return done_since(s->cpu, s->insn, epoch);
}

/* Element by element in the guest's order, so that overlaps come out as they must. */
static void copy_elements(uint8_t *to, const uint8_t *from, unsigned size, uint64_t n, bool down)
{
	if (!down && size == 1) {
		__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	} else if (!down && size == 2) {
		__asm__ volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	} else if (!down && size == 4) {
		__asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	} else if (!down) {
		__asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	} else {
		while (n--) {
			uint64_t at = n * size, v = 0;

			for (unsigned i = 0; i < size; i++)
				v |= (uint64_t)((const volatile uint8_t *)from)[at + i] << 8 * i;
			for (unsigned i = 0; i < size; i++)
				((volatile uint8_t *)to)[at + i] = (uint8_t)(v >> 8 * i);
		}
	}
}

static void fill_elements(uint8_t *to, uint64_t value, unsigned size, uint64_t n)
{
	if (size == 1)
		__asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
	else if (size == 2)
		__asm__ volatile("rep stosw" : "+D"(to), "+c"(n) : "a"(value) : "memory");
	else if (size == 4)
		__asm__ volatile("rep stosl" : "+D"(to), "+c"(n) : "a"(value) : "memory");
	else
		__asm__ volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(value) : "memory");
}

/* One element, however it lies. */
static int move_one(struct string *s)
{
	struct soft_cpu *cpu = s->cpu;
	uint64_t linear, value = 0;
	int next = soft_linear(cpu, s->insn->mem_seg, gpr_get(cpu, X86_RSI, s->addr), s->size,
			       ACCESS_READ, &linear);

	if (!next)
		next = soft_load(cpu, linear, &value, s->size, ACCESS_READ);
	if (!next)
		next = soft_linear(cpu, X86_ES, gpr_get(cpu, X86_RDI, s->addr), s->size,
				   ACCESS_WRITE, &linear);
	if (!next)
		next = soft_store(cpu, linear, &value, s->size, ACCESS_WRITE);
	if (!next)
		string_moved(s, 1, true, true);
	return next;
}

/* Host memory for n elements that are written at once, or NULL. *code: where to say that they were, or NO_CODE. */
static uint8_t *target_ptr(struct string *s, uint64_t target, uint64_t n, uint64_t *code)
{
	int next;
	uint8_t *to = soft_direct(s->cpu, target, n * s->size, ACCESS_WRITE, &next);

	*code = NO_CODE;
	if (to || next || n == 1)
		return to;
	return soft_direct_code(s->cpu, target, n * s->size, code);
}

/* n elements are written to such memory. */
static void target_written(struct string *s, uint64_t n, uint64_t code)
{
	if (code != NO_CODE)
		ram_written(s->cpu, code, (unsigned)(n * s->size));
}

/* A run that cannot go at once goes by its first element, whose fault, if any, is the right one. */
static int move_some(struct string *s)
{
	struct soft_cpu *cpu = s->cpu;
	uint64_t n = s->count, m, source, target, code = NO_CODE;
	uint8_t *from, *to = NULL;
	int next = string_side(s, s->insn->mem_seg, X86_RSI, ACCESS_READ, &n, &source);

	m = n;
	if (!next)
		next = string_side(s, X86_ES, X86_RDI, ACCESS_WRITE, &m, &target);
	if (!next && m != n) {
		n = m;
		next = string_side(s, s->insn->mem_seg, X86_RSI, ACCESS_READ, &n, &source);
	}
	if (next || n != m)
		return move_one(s);
	from = soft_direct(cpu, source, n * s->size, ACCESS_READ, &next);
	if (from && !next)
		to = target_ptr(s, target, n, &code);
	if (!from || !to)
		return move_one(s);
	copy_elements(to, from, s->size, n, s->step < 0);
	target_written(s, n, code);
	string_moved(s, n, true, true);
	return 0;
}

static enum soft_next string_movs(struct soft_cpu *cpu, const struct insn *insn, unsigned size)
{
	uint64_t epoch = code_epoch(cpu);
	struct string s;
	int next;

	string_begin(&s, cpu, insn, size);
	while (s.count) {
		next = string_runs(&s) ? move_some(&s) : move_one(&s);
		if (next)
			return next;
		if (string_interrupted(&s))
			break;
	}
	return string_end(&s, epoch);
}

static int store_one(struct string *s, uint64_t value)
{
	struct soft_cpu *cpu = s->cpu;
	uint64_t target;
	int next = soft_linear(cpu, X86_ES, gpr_get(cpu, X86_RDI, s->addr), s->size, ACCESS_WRITE,
			       &target);

	if (!next)
		next = soft_store(cpu, target, &value, s->size, ACCESS_WRITE);
	if (!next)
		string_moved(s, 1, false, true);
	return next;
}

static int store_some(struct string *s, uint64_t value)
{
	uint64_t n = s->count, target, code;
	uint8_t *to;
	int next = string_side(s, X86_ES, X86_RDI, ACCESS_WRITE, &n, &target);

	if (next)
		return next;
	to = target_ptr(s, target, n, &code);
	if (!to)
		return store_one(s, value);
	fill_elements(to, value, s->size, n);
	target_written(s, n, code);
	string_moved(s, n, false, true);
	return 0;
}

static enum soft_next string_stos(struct soft_cpu *cpu, const struct insn *insn, unsigned size)
{
	uint64_t epoch = code_epoch(cpu), value = gpr_get(cpu, X86_RAX, size);
	struct string s;
	int next;

	string_begin(&s, cpu, insn, size);
	while (s.count) {
		next = string_runs(&s) ? store_some(&s, value) : store_one(&s, value);
		if (next)
			return next;
		if (string_interrupted(&s))
			break;
	}
	return string_end(&s, epoch);
}

static enum soft_next string_lods(struct soft_cpu *cpu, const struct insn *insn, unsigned size)
{
	uint64_t epoch = code_epoch(cpu), source, value;
	struct string s;
	int next;

	string_begin(&s, cpu, insn, size);
	while (s.count) {
		value = 0;
		next = soft_linear(cpu, insn->mem_seg, gpr_get(cpu, X86_RSI, s.addr), size,
				   ACCESS_READ, &source);
		if (!next)
			next = soft_load(cpu, source, &value, size, ACCESS_READ);
		if (next)
			return next;
		gpr_set(cpu, X86_RAX, size, value);
		string_moved(&s, 1, true, false);
		if (string_interrupted(&s))
			break;
	}
	return string_end(&s, epoch);
}

/* ---- comparisons -------------------------------------------------------------------------------------- */

/* The flags of a - b. */
static uint64_t compare_flags(uint64_t a, uint64_t b, unsigned size)
{
	uint64_t flags;

	if (size == 1)
		__asm__("cmpb %b2, %b1; pushfq; popq %0" : "=r"(flags) : "q"(a), "q"(b) : "cc");
	else if (size == 2)
		__asm__("cmpw %w2, %w1; pushfq; popq %0" : "=r"(flags) : "r"(a), "r"(b) : "cc");
	else if (size == 4)
		__asm__("cmpl %k2, %k1; pushfq; popq %0" : "=r"(flags) : "r"(a), "r"(b) : "cc");
	else
		__asm__("cmpq %q2, %q1; pushfq; popq %0" : "=r"(flags) : "r"(a), "r"(b) : "cc");
	return flags & ARITH_FLAGS;
}

static int string_element(struct string *s, enum x86_segreg seg, unsigned reg, uint64_t *value)
{
	struct soft_cpu *cpu = s->cpu;
	uint64_t linear;
	int next = soft_linear(cpu, seg, gpr_get(cpu, reg, s->addr), s->size, ACCESS_READ, &linear);

	*value = 0;
	return next ? next : soft_load(cpu, linear, value, s->size, ACCESS_READ);
}

/* CMPS with `source`, else SCAS against RAX. */
static enum soft_next string_compare(struct soft_cpu *cpu, const struct insn *insn, unsigned size,
				     bool source)
{
	uint64_t a = gpr_get(cpu, X86_RAX, size), b;
	struct string s;
	int next;

	string_begin(&s, cpu, insn, size);
	while (s.count) {
		bool equal;

		next = source ? string_element(&s, insn->mem_seg, X86_RSI, &a) : 0;
		if (!next)
			next = string_element(&s, X86_ES, X86_RDI, &b);
		if (next)
			return next;
		cpu->arith = compare_flags(a, b, size);
		equal = cpu->arith & X86_FL_ZF;
		string_moved(&s, 1, source, true);
		if ((insn->rep && !equal) || (insn->repne && equal))
			return done(cpu, insn);
		if (string_interrupted(&s))
			return NEXT_LEAVE;
	}
	return done(cpu, insn);
}

/* ---- by name ------------------------------------------------------------------------------------------ */

#define STRING(name, call)   \
	static HELPER(name)  \
	{                    \
		return call; \
	}
STRING(help_movsb, string_movs(cpu, insn, 1))
STRING(help_movsw, string_movs(cpu, insn, 2))
STRING(help_movsd, string_movs(cpu, insn, 4))
STRING(help_movsq, string_movs(cpu, insn, 8))
STRING(help_stosb, string_stos(cpu, insn, 1))
STRING(help_stosw, string_stos(cpu, insn, 2))
STRING(help_stosd, string_stos(cpu, insn, 4))
STRING(help_stosq, string_stos(cpu, insn, 8))
STRING(help_lodsb, string_lods(cpu, insn, 1))
STRING(help_lodsw, string_lods(cpu, insn, 2))
STRING(help_lodsd, string_lods(cpu, insn, 4))
STRING(help_lodsq, string_lods(cpu, insn, 8))
STRING(help_cmpsb, string_compare(cpu, insn, 1, true))
STRING(help_cmpsw, string_compare(cpu, insn, 2, true))
STRING(help_cmpsd, string_compare(cpu, insn, 4, true))
STRING(help_cmpsq, string_compare(cpu, insn, 8, true))
STRING(help_scasb, string_compare(cpu, insn, 1, false))
STRING(help_scasw, string_compare(cpu, insn, 2, false))
STRING(help_scasd, string_compare(cpu, insn, 4, false))
STRING(help_scasq, string_compare(cpu, insn, 8, false))

soft_helper string_helper_for(const struct insn *insn)
{
	if (insn->has_modrm)
		return NULL; /* MOVSD and CMPSD are SSE2's names too */
	switch (insn->op) {
	case ZYDIS_MNEMONIC_MOVSB:
		return help_movsb;
	case ZYDIS_MNEMONIC_MOVSW:
		return help_movsw;
	case ZYDIS_MNEMONIC_MOVSD:
		return help_movsd;
	case ZYDIS_MNEMONIC_MOVSQ:
		return help_movsq;
	case ZYDIS_MNEMONIC_STOSB:
		return help_stosb;
	case ZYDIS_MNEMONIC_STOSW:
		return help_stosw;
	case ZYDIS_MNEMONIC_STOSD:
		return help_stosd;
	case ZYDIS_MNEMONIC_STOSQ:
		return help_stosq;
	case ZYDIS_MNEMONIC_LODSB:
		return help_lodsb;
	case ZYDIS_MNEMONIC_LODSW:
		return help_lodsw;
	case ZYDIS_MNEMONIC_LODSD:
		return help_lodsd;
	case ZYDIS_MNEMONIC_LODSQ:
		return help_lodsq;
	case ZYDIS_MNEMONIC_CMPSB:
		return help_cmpsb;
	case ZYDIS_MNEMONIC_CMPSW:
		return help_cmpsw;
	case ZYDIS_MNEMONIC_CMPSD:
		return help_cmpsd;
	case ZYDIS_MNEMONIC_CMPSQ:
		return help_cmpsq;
	case ZYDIS_MNEMONIC_SCASB:
		return help_scasb;
	case ZYDIS_MNEMONIC_SCASW:
		return help_scasw;
	case ZYDIS_MNEMONIC_SCASD:
		return help_scasd;
	case ZYDIS_MNEMONIC_SCASQ:
		return help_scasq;
	default:
		return NULL;
	}
}
