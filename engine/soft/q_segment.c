/*
 * Quick: segment registers and descriptor tables (SDM vol. 3 chapters 3 and 5, APM vol. 2 chapter 4). No 16-bit
 * TSS: LTR of one is #GP.
 */
#include "engine/soft/q_insn.h"

enum soft_next raise_selector(struct soft_cpu *cpu, uint8_t vector, uint16_t sel)
{
	return soft_raise_error(cpu, vector, (sel & 0xfffcu) | cpu->ext);
}

/* ---- descriptors ---------------------------------------------------------------------------------------- */

/* Where the descriptor of `sel` lies; false: no such one. */
static bool descriptor_find(const struct soft_cpu *cpu, uint16_t sel, unsigned size,
			    uint64_t *linear)
{
	uint32_t offset = sel & 0xfff8u;

	if (sel & 4) {
		*linear = cpu->ldtr.base + offset;
		return !cpu->ldtr.unusable && offset + size - 1 <= cpu->ldtr.limit;
	}
	*linear = cpu->gdtr.base + offset;
	return offset + size - 1 <= cpu->gdtr.limit;
}

int descriptor_read(struct soft_cpu *cpu, uint16_t sel, uint8_t vector, struct descriptor *d)
{
	uint64_t raw = 0;
	int next;

	if (!descriptor_find(cpu, sel, 8, &d->linear))
		return raise_selector(cpu, vector, sel);
	next = system_load(cpu, d->linear, &raw, 8);
	d->lo = (uint32_t)raw;
	d->hi = (uint32_t)(raw >> 32);
	return next;
}

int descriptor_read_high(struct soft_cpu *cpu, uint16_t sel, const struct descriptor *d,
			 uint32_t high[2])
{
	uint64_t raw = 0, linear;
	int next;

	if (!descriptor_find(cpu, sel, 16, &linear))
		return raise_selector(cpu, X86_GP, sel);
	next = system_load(cpu, d->linear + 8, &raw, 8);
	high[0] = (uint32_t)raw;
	high[1] = (uint32_t)(raw >> 32);
	return next;
}

/* Sets bits in the type byte, atomically where it is memory. */
static int descriptor_set_type(struct soft_cpu *cpu, struct descriptor *d, uint8_t bits)
{
	uint64_t linear = d->linear + 5;
	uint8_t *p, byte;
	int next;

	if (!long_mode(cpu))
		linear = (uint32_t)linear;
	d->hi |= (uint32_t)bits << 8;
	p = soft_direct(cpu, linear, 1, ACCESS_WRITE | ACCESS_SYSTEM, &next);
	if (p) {
		__atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST);
		return 0;
	}
	if (next)
		return next;
	byte = (uint8_t)(d->hi >> 8);
	return system_store(cpu, linear, &byte, 1);
}

int descriptor_mark_accessed(struct soft_cpu *cpu, struct descriptor *d)
{
	if (desc_type(d) & SEG_TYPE_ACCESSED)
		return 0;
	return descriptor_set_type(cpu, d, SEG_TYPE_ACCESSED);
}

void segment_from_descriptor(struct x86_seg *seg, uint16_t sel, const struct descriptor *d)
{
	uint32_t limit = (d->lo & 0xffff) | (d->hi & 0xf0000);

	seg->base = (d->lo >> 16) | (d->hi & 0xff) << 16 | (d->hi & 0xff000000);
	seg->limit = d->hi & 0x800000 ? limit << 12 | 0xfff : limit;
	seg->sel = sel;
	seg->attr = (uint16_t)(d->hi >> 8 & 0xf0ff);
	seg->unusable = false;
}

void segment_set_null(struct x86_seg *seg, uint16_t sel, unsigned dpl)
{
	seg->base = 0;
	seg->limit = 0;
	seg->sel = sel;
	seg->attr = (uint16_t)(dpl << SEG_ATTR_DPL_SHIFT);
	seg->unusable = true;
}

static void segment_set_flat(struct x86_seg *seg, uint16_t sel, unsigned attr)
{
	seg->base = 0;
	seg->limit = 0xffffffff;
	seg->sel = sel;
	seg->attr = (uint16_t)(attr | SEG_ATTR_P | SEG_ATTR_S | SEG_ATTR_G);
	seg->unusable = false;
}

void segment_set_flat_code(struct x86_seg *seg, uint16_t sel, unsigned dpl, bool is64)
{
	segment_set_flat(seg, sel,
			 dpl << SEG_ATTR_DPL_SHIFT | 0xb | (is64 ? SEG_ATTR_L : SEG_ATTR_DB));
}

void segment_set_flat_data(struct x86_seg *seg, uint16_t sel, unsigned dpl)
{
	segment_set_flat(seg, sel, dpl << SEG_ATTR_DPL_SHIFT | 0x3 | SEG_ATTR_DB);
}

/* ---- loads ---------------------------------------------------------------------------------------------- */

int stack_segment_check(struct soft_cpu *cpu, uint16_t sel, unsigned cpl, uint8_t vector,
			struct descriptor *d)
{
	int next = descriptor_read(cpu, sel, vector, d);

	if (next)
		return next;
	if ((sel & 3u) != cpl || !desc_is_writable_data(d) || desc_dpl(d) != cpl)
		return raise_selector(cpu, vector, sel);
	if (!desc_present(d))
		return raise_selector(cpu, X86_SS_FAULT, sel);
	return 0;
}

static int data_segment_check(struct soft_cpu *cpu, uint16_t sel, struct descriptor *d)
{
	int next = descriptor_read(cpu, sel, X86_GP, d);
	unsigned type = desc_type(d), rpl = sel & 3u;

	if (next)
		return next;
	if (desc_system(d) || (type & (SEG_TYPE_CODE | SEG_TYPE_WRITE)) == SEG_TYPE_CODE)
		return raise_selector(cpu, X86_GP, sel);
	if ((type & (SEG_TYPE_CODE | SEG_TYPE_CONFORM)) != (SEG_TYPE_CODE | SEG_TYPE_CONFORM) &&
	    (rpl > desc_dpl(d) || cpu->cpl > desc_dpl(d)))
		return raise_selector(cpu, X86_GP, sel);
	if (!desc_present(d))
		return raise_selector(cpu, X86_NP, sel);
	return 0;
}

int segment_register_load(struct soft_cpu *cpu, enum x86_segreg seg, uint16_t sel)
{
	struct x86_seg *s = &cpu->seg[seg];
	struct descriptor d;
	int next;

	if (!protected_mode(cpu)) {
		/* Limit and rights stay: that is what makes big real mode. */
		s->sel = sel;
		s->base = (uint64_t)sel << 4;
		s->unusable = false;
		return 0;
	}
	if (selector_null(sel)) {
		if (seg == X86_SS && (!code64(cpu) || cpu->cpl == 3 || (sel & 3) != cpu->cpl))
			return raise_gp0(cpu);
		segment_set_null(s, sel, seg == X86_SS ? cpu->cpl : 0);
		return 0;
	}
	next = seg == X86_SS ? stack_segment_check(cpu, sel, cpu->cpl, X86_GP, &d)
			     : data_segment_check(cpu, sel, &d);
	if (!next)
		next = descriptor_mark_accessed(cpu, &d);
	if (next)
		return next;
	segment_from_descriptor(s, sel, &d);
	return 0;
}

static enum soft_next segment_done(struct soft_cpu *cpu, const struct insn *insn, bool shadow)
{
	enum soft_next next = done_mode(cpu, insn);

	if (shadow) {
		cpu->shadow_mov_ss = true;
		if (cpu->event_waiting || (cpu->mode & MODE_STEP)) {
			atomic_store(&cpu->run_ok, 0);
			return NEXT_LEAVE;
		}
	}
	return next;
}

enum soft_next segment_loaded(struct soft_cpu *cpu, const struct insn *insn)
{
	return segment_done(cpu, insn, insn->segreg == X86_SS);
}

HELPER(do_mov_to_seg)
{
	uint64_t sel;
	int next;

	if (insn->segreg == X86_CS)
		return soft_raise(cpu, X86_UD);
	next = operand_load(cpu, insn, 2, &sel);
	if (!next)
		next = segment_register_load(cpu, insn->segreg, (uint16_t)sel);
	if (next)
		return next;
	return segment_loaded(cpu, insn);
}

HELPER(do_mov_from_seg)
{
	uint64_t epoch = code_epoch(cpu);
	int next = operand_store(cpu, insn, insn->has_mem ? 2 : insn->opsize,
				 cpu->seg[insn->segreg].sel);

	if (next)
		return next;
	return done_since(cpu, insn, epoch);
}

HELPER(do_load_far_pointer)
{
	static const struct {
		uint16_t op;
		uint8_t seg;
	} which[] = {{ZYDIS_MNEMONIC_LDS, X86_DS},
		     {ZYDIS_MNEMONIC_LES, X86_ES},
		     {ZYDIS_MNEMONIC_LFS, X86_FS},
		     {ZYDIS_MNEMONIC_LGS, X86_GS},
		     {ZYDIS_MNEMONIC_LSS, X86_SS}};
	uint64_t at = operand_offset(cpu, insn), offset, sel;
	uint8_t seg = X86_DS;
	int next;

	for (unsigned i = 0; i < sizeof(which) / sizeof(which[0]); i++)
		if (which[i].op == insn->op)
			seg = which[i].seg;
	next = segment_load(cpu, insn->mem_seg, at, insn->opsize, &offset);
	if (!next)
		next = segment_load(cpu, insn->mem_seg, cut(at + insn->opsize, insn->addrsize), 2,
				    &sel);
	if (!next)
		next = segment_register_load(cpu, seg, (uint16_t)sel);
	if (next)
		return next;
	gpr_set(cpu, insn->reg, insn->opsize, offset);
	/* Only MOV and POP of SS hold interrupts back; LSS loads both halves at once. */
	return segment_done(cpu, insn, false);
}

/* ---- table registers ------------------------------------------------------------------------------------ */

/* SGDT, SIDT, SLDT, STR, SMSW at CPL > 0 with CR4.UMIP. */
static bool umip_forbids(const struct soft_cpu *cpu)
{
	return (cpu->cr4 & X86_CR4_UMIP) && cpu->cpl > 0;
}

HELPER(do_sgdt_sidt)
{
	const struct x86_table *t = insn->op == ZYDIS_MNEMONIC_SGDT ? &cpu->gdtr : &cpu->idtr;
	unsigned size = code64(cpu) ? 8 : 4;
	uint64_t at = operand_offset(cpu, insn), linear, epoch = code_epoch(cpu);
	uint8_t image[10];
	int next;

	if (umip_forbids(cpu))
		return raise_gp0(cpu);
	image[0] = (uint8_t)t->limit;
	image[1] = (uint8_t)(t->limit >> 8);
	for (unsigned i = 0; i < 8; i++)
		image[2 + i] = (uint8_t)(t->base >> 8 * i);
	next = soft_linear(cpu, insn->mem_seg, at, 2 + size, ACCESS_WRITE, &linear);
	if (!next)
		next = soft_store(cpu, linear, image, 2 + size, ACCESS_WRITE);
	if (next)
		return next;
	return done_since(cpu, insn, epoch);
}

HELPER(do_lgdt_lidt)
{
	struct x86_table *t = insn->op == ZYDIS_MNEMONIC_LGDT ? &cpu->gdtr : &cpu->idtr;
	unsigned size = code64(cpu) ? 8 : 4;
	uint64_t at = operand_offset(cpu, insn), limit, base;
	int next;

	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	next = segment_load(cpu, insn->mem_seg, at, 2, &limit);
	if (!next)
		next = segment_load(cpu, insn->mem_seg, cut(at + 2, insn->addrsize), size, &base);
	if (next)
		return next;
	if (size == 8 && !is_canonical(base))
		return raise_gp0(cpu);
	if (insn->mode != 64 && insn->opsize == 2)
		base &= 0xffffff;
	t->limit = (uint16_t)limit;
	t->base = base;
	return done(cpu, insn);
}

HELPER(do_sldt_str)
{
	const struct x86_seg *s = insn->op == ZYDIS_MNEMONIC_SLDT ? &cpu->ldtr : &cpu->tr;
	uint64_t epoch = code_epoch(cpu);
	int next;

	if (!protected_mode(cpu))
		return soft_raise(cpu, X86_UD);
	if (umip_forbids(cpu))
		return raise_gp0(cpu);
	next = operand_store(cpu, insn, insn->has_mem ? 2 : insn->opsize, s->sel);
	if (next)
		return next;
	return done_since(cpu, insn, epoch);
}

/* The selector operand of LLDT and LTR, after the checks they share. */
static int table_selector(struct soft_cpu *cpu, const struct insn *insn, uint16_t *sel)
{
	uint64_t value;
	int next;

	if (!protected_mode(cpu))
		return soft_raise(cpu, X86_UD);
	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	next = operand_load(cpu, insn, 2, &value);
	*sel = (uint16_t)value;
	return next;
}

/* Reads a system descriptor out of the GDT, with its upper half in long mode. */
static int system_segment(struct soft_cpu *cpu, uint16_t sel, struct descriptor *d,
			  struct x86_seg *s)
{
	uint32_t high[2] = {0, 0};
	int next;

	if (sel & 4)
		return raise_selector(cpu, X86_GP, sel);
	next = descriptor_read(cpu, sel, X86_GP, d);
	if (!next && long_mode(cpu))
		next = descriptor_read_high(cpu, sel, d, high);
	if (next)
		return next;
	segment_from_descriptor(s, sel, d);
	if (long_mode(cpu)) {
		s->base |= (uint64_t)high[0] << 32;
		if (!is_canonical(s->base) || (high[1] & 0x1f00))
			return raise_selector(cpu, X86_GP, sel);
	}
	return 0;
}

HELPER(do_lldt)
{
	struct descriptor d;
	struct x86_seg s;
	uint16_t sel;
	int next = table_selector(cpu, insn, &sel);

	if (next)
		return next;
	if (selector_null(sel)) {
		segment_set_null(&cpu->ldtr, sel, 0);
		return done(cpu, insn);
	}
	next = system_segment(cpu, sel, &d, &s);
	if (next)
		return next;
	if (!desc_system(&d) || desc_type(&d) != 2)
		return raise_selector(cpu, X86_GP, sel);
	if (!desc_present(&d))
		return raise_selector(cpu, X86_NP, sel);
	cpu->ldtr = s;
	return done(cpu, insn);
}

HELPER(do_ltr)
{
	struct descriptor d;
	struct x86_seg s;
	uint16_t sel;
	int next = table_selector(cpu, insn, &sel);

	if (next)
		return next;
	if (selector_null(sel))
		return raise_gp0(cpu);
	next = system_segment(cpu, sel, &d, &s);
	if (next)
		return next;
	if (!desc_system(&d) || desc_type(&d) != 9)
		return raise_selector(cpu, X86_GP, sel);
	if (!desc_present(&d))
		return raise_selector(cpu, X86_NP, sel);
	next = descriptor_set_type(cpu, &d, 2); /* busy */
	if (next)
		return next;
	s.attr |= 2;
	cpu->tr = s;
	return done(cpu, insn);
}

/* ---- LAR, LSL, VERR, VERW, ARPL ------------------------------------------------------------------------- */

static void set_zf(struct soft_cpu *cpu, bool zf)
{
	cpu->arith = (cpu->arith & ~X86_FL_ZF) | (zf ? X86_FL_ZF : 0);
}

/* Reads the descriptor that `sel` names and says if a program at this CPL with this RPL may see it. 0 with *ok, or a
 * page fault. */
static int descriptor_visible(struct soft_cpu *cpu, uint16_t sel, struct descriptor *d, bool *ok)
{
	uint64_t linear;
	unsigned rpl = sel & 3u;
	bool conforming;
	int next;

	*ok = false;
	if (selector_null(sel) || !descriptor_find(cpu, sel, 8, &linear))
		return 0;
	next = descriptor_read(cpu, sel, X86_GP, d);
	if (next)
		return next;
	conforming = desc_is_code(d) && (desc_type(d) & SEG_TYPE_CONFORM);
	*ok = conforming || (desc_dpl(d) >= cpu->cpl && desc_dpl(d) >= rpl);
	return 0;
}

/* Types that LAR and LSL answer for: a bit each. SDM vol. 2, LAR table 3-52 and LSL. */
static bool type_listed(const struct soft_cpu *cpu, const struct descriptor *d, bool lar)
{
	static const uint16_t lar32 = 0x1a3e, lar64 = 0x1a04, lsl32 = 0x0a0e, lsl64 = 0x0a04;
	uint16_t set = long_mode(cpu) ? (lar ? lar64 : lsl64) : (lar ? lar32 : lsl32);

	return !desc_system(d) || (set >> desc_type(d) & 1);
}

HELPER(do_lar_lsl)
{
	bool lar = insn->op == ZYDIS_MNEMONIC_LAR, ok;
	struct descriptor d = {0, 0, 0};
	struct x86_seg s;
	uint64_t sel;
	int next;

	if (!protected_mode(cpu))
		return soft_raise(cpu, X86_UD);
	next = operand_load(cpu, insn, 2, &sel);
	if (!next)
		next = descriptor_visible(cpu, (uint16_t)sel, &d, &ok);
	if (next)
		return next;
	ok = ok && type_listed(cpu, &d, lar);
	set_zf(cpu, ok);
	if (ok) {
		segment_from_descriptor(&s, (uint16_t)sel, &d);
		gpr_set(cpu, insn->reg, insn->opsize, lar ? d.hi & 0xffff00 : s.limit);
	}
	return done(cpu, insn);
}

HELPER(do_verr_verw)
{
	struct descriptor d = {0, 0, 0};
	uint64_t sel;
	bool ok;
	int next;

	if (!protected_mode(cpu))
		return soft_raise(cpu, X86_UD);
	next = operand_load(cpu, insn, 2, &sel);
	if (!next)
		next = descriptor_visible(cpu, (uint16_t)sel, &d, &ok);
	if (next)
		return next;
	if (insn->op == ZYDIS_MNEMONIC_VERW)
		ok = ok && desc_is_writable_data(&d);
	else
		ok = ok && !desc_system(&d) &&
		     (!(desc_type(&d) & SEG_TYPE_CODE) || (desc_type(&d) & SEG_TYPE_WRITE));
	set_zf(cpu, ok);
	return done(cpu, insn);
}

HELPER(do_arpl)
{
	uint64_t dest, rpl = cpu->gpr[insn->reg] & 3, epoch = code_epoch(cpu);
	int next;

	if (!protected_mode(cpu))
		return soft_raise(cpu, X86_UD);
	next = operand_load(cpu, insn, 2, &dest);
	if (!next && (dest & 3) < rpl)
		next = operand_store(cpu, insn, 2, (dest & ~3ull) | rpl);
	if (next)
		return next;
	set_zf(cpu, (dest & 3) < rpl);
	return done_since(cpu, insn, epoch);
}

/* ---- FS and GS base ------------------------------------------------------------------------------------- */

static void base_set(struct soft_cpu *cpu, enum x86_segreg seg, uint64_t base)
{
	cpu->seg[seg].base = base;
	if (seg == X86_FS)
		cpu->fs_base = base;
	else
		cpu->gs_base = base;
}

HELPER(do_swapgs)
{
	uint64_t base = cpu->msr.kernel_gs_base;

	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	cpu->msr.kernel_gs_base = cpu->seg[X86_GS].base;
	base_set(cpu, X86_GS, base);
	return done(cpu, insn);
}

HELPER(do_rdfsgsbase)
{
	enum x86_segreg seg = insn->op == ZYDIS_MNEMONIC_RDFSBASE ? X86_FS : X86_GS;

	if (!(cpu->cr4 & X86_CR4_FSGSBASE))
		return soft_raise(cpu, X86_UD);
	/* 66 says nothing here. */
	gpr_set(cpu, insn->rm, insn->rex_w ? 8 : 4, cpu->seg[seg].base);
	return done(cpu, insn);
}

HELPER(do_wrfsgsbase)
{
	enum x86_segreg seg = insn->op == ZYDIS_MNEMONIC_WRFSBASE ? X86_FS : X86_GS;
	uint64_t base = gpr_get(cpu, insn->rm, insn->rex_w ? 8 : 4);

	if (!(cpu->cr4 & X86_CR4_FSGSBASE))
		return soft_raise(cpu, X86_UD);
	if (!is_canonical(base))
		return raise_gp0(cpu);
	base_set(cpu, seg, base);
	return done(cpu, insn);
}
