/* Effective addresses and the inline TLB: see translate.h. Nothing here changes flags. */
#include "engine/soft/translate.h"

#include "engine/soft/access.h"

#define TLB_DISP(member) ((int32_t)offsetof(struct soft_tlb, member) - SOFT_TLB_BIAS)

/* Address width of an effective address: 8, 4, or 2 (which is computed in 32 bits and cut). */
static unsigned address_width(const struct insn *insn)
{
	return insn->addrsize == 8 ? 8 : 4;
}

static void emit_segment_base(struct translation *t, const struct insn *insn, uint8_t dst)
{
	emit_load(&t->e, 8, dst, insn->mem_seg == X86_FS ? CPU(fs_base) : CPU(gs_base));
}

void emit_address(struct translation *t, const struct insn *insn, uint8_t dst, uint8_t tmp,
		  bool segment)
{
	struct emit *e = &t->e;
	struct hmem m = hmem(H_NONE, 0);
	int64_t disp = insn->mem_disp;
	bool based = segment && (t->mode & MODE_CODE64) &&
		     (insn->mem_seg == X86_FS || insn->mem_seg == X86_GS);

	t->in_r10 = 0;
	if (insn->rip_relative) {
		emit_load(e, 8, dst, CPU(page_rip));
		m.base = dst;
		disp += t->offset + insn->len;
	} else if (insn->mem_base != REG_NONE) {
		m.base = guest_reg(insn->mem_base);
		if (m.base == H_NONE) {
			emit_load(e, 8, dst, CPU_GPR(insn->mem_base));
			m.base = dst;
		}
	}
	if (insn->mem_index != REG_NONE) {
		m.index = guest_reg(insn->mem_index);
		m.scale = insn->mem_scale;
		if (m.index == H_NONE) {
			emit_load(e, 8, tmp, CPU_GPR(insn->mem_index));
			m.index = tmp;
		}
	}
	if (based && insn->addrsize == 8 && m.index == H_NONE && disp == (int32_t)disp) {
		emit_segment_base(t, insn, tmp);
		emit_lea(e, 8, dst,
			 m.base == H_NONE ? hmem(tmp, (int32_t)disp)
					  : hmem_x(m.base, tmp, 1, (int32_t)disp));
		return;
	}
	if (!disp && m.base == dst && m.index == H_NONE && address_width(insn) == 8) {
		; /* it is there */
	} else if (disp == (int32_t)disp) {
		m.disp = (int32_t)disp;
		emit_lea(e, address_width(insn), dst, m);
	} else if (m.base == H_NONE && m.index == H_NONE) {
		emit_mov_imm(e, dst, insn->addrsize == 8 ? (uint64_t)disp : (uint32_t)disp);
	} else {
		emit_lea(e, 8, dst, m);
		emit_mov_imm(e, tmp, (uint64_t)disp);
		emit_lea(e, address_width(insn), dst, hmem_x(dst, tmp, 1, 0));
	}
	if (insn->addrsize == 2)
		emit_movzx(e, 2, dst, dst);
	if (based) {
		emit_segment_base(t, insn, tmp);
		emit_lea(e, 8, dst, hmem_x(dst, tmp, 1, 0));
	}
}

static struct cold *cold_add(struct translation *t, uint32_t desc)
{
	struct cold *c;

	if (t->ncold == BLOCK_COLD_MAX) {
		t->e.overflow = true;
		return &t->cold[0];
	}
	c = &t->cold[t->ncold++];
	*c = (struct cold){.desc = desc, .offset = t->offset, .body.kind = BODY_NONE};
	c->leaves = (desc & MEM_WRITE) && t->index >= t->first_leader;
	t->in_r10 = 0;
	return c;
}

static uint32_t access_desc(const struct translation *t, const struct insn *insn, unsigned size,
			    uint32_t flags, unsigned seg)
{
	return size | flags | seg << MEM_SEG_SHIFT | (uint32_t)t->offset << MEM_OFFSET_SHIFT |
	       (uint32_t)insn->len << MEM_LEN_SHIFT;
}

static int32_t tag_disp(uint32_t flags)
{
	return flags & MEM_WRITE ? TLB_DISP(wtag) : TLB_DISP(rtag);
}

/* [base + disp] with the base in a host register and no segment base: R10 becomes the addend. */
static struct hmem emit_access_simple(struct translation *t, uint8_t base, int32_t disp,
				      unsigned size, uint32_t desc, struct cold **out)
{
	struct emit *e = &t->e;
	struct cold *c = cold_add(t, desc);
	uint32_t hit;

	c->linear = hmem(base, disp);
	if (disp) {
		emit_lea(e, 4, H_R10, hmem(base, disp));
		emit_shrx(e, 4, H_R10, H_R10, H_R15);
	} else {
		emit_shrx(e, 4, H_R10, base, H_R15);
	}
	emit_load(e, 8, H_RCX, hmem_x(H_R15, H_R10, 8, tag_disp(desc)));
	emit_lea(e, 8, H_RCX, hmem_x(H_RCX, base, 1, disp + (int32_t)size - 1));
	emit_shrx(e, 8, H_RCX, H_RCX, H_R15);
	hit = emit_jrcxz(e);
	c->from = emit_jmp(e);
	emit_here8(e, hit);
	emit_load(e, 8, H_R10, hmem_x(H_R15, H_R10, 8, TLB_DISP(addend)));
	c->back = emit_pos(e);
	*out = c;
	return hmem_x(base, H_R10, 1, disp);
}

/* The linear address is in R10. */
static struct hmem emit_access_linear(struct translation *t, unsigned size, uint32_t desc,
				      bool rcx_free, struct cold **out)
{
	struct emit *e = &t->e;
	struct cold *c = cold_add(t, desc);
	uint32_t hit;

	c->address = true;
	emit_shrx(e, 4, H_RCX, H_R10, H_R15);
	emit_load(e, 8, H_RCX, hmem_x(H_R15, H_RCX, 8, tag_disp(desc)));
	emit_lea(e, 8, H_RCX, hmem_x(H_RCX, H_R10, 1, (int32_t)size - 1));
	emit_shrx(e, 8, H_RCX, H_RCX, H_R15);
	hit = emit_jrcxz(e);
	c->from = emit_jmp(e);
	emit_here8(e, hit);
	emit_shrx(e, 4, H_RCX, H_R10, H_R15);
	emit_load(e, 8, H_RCX, hmem_x(H_R15, H_RCX, 8, TLB_DISP(addend)));
	*out = c;
	if (!rcx_free) {
		c->back = emit_pos(e);
		return hmem_x(H_R10, H_RCX, 1, 0);
	}
	emit_lea(e, 8, H_R10, hmem_x(H_R10, H_RCX, 1, 0));
	c->back = emit_pos(e);
	return hmem(H_R10, 0);
}

/* ---- accesses that share a look-up: struct share ------------------------------------------------- */

static struct probe *probe_add(struct translation *t, const struct share *s, bool write)
{
	struct probe *p = &t->probe[t->nprobes++];

	/* A read must not make the page dirty for the sake of a write that follows. */
	*p = (struct probe){.offset = t->offset,
			    .what = !s->write ? s->size
				    : write   ? s->size | PROBE_WRITE
					      : 0};
	return p;
}

/* R10 is the host address of the group. */
static struct hmem leader_done(struct translation *t, const struct share *s, struct probe *p)
{
	struct hmem slot = share_slot(s->slot);

	p->back = emit_pos(&t->e);
	emit_store(&t->e, 8, slot, H_R10);
	t->live[s->slot] = t->in_r10 = (uint8_t)(t->index + 1);
	return hmem(H_R10, s->disp);
}

/* The group begins at [base + disp]. */
static struct hmem emit_leader_simple(struct translation *t, const struct share *s, uint8_t base,
				      int32_t disp, bool write)
{
	struct emit *e = &t->e;
	struct probe *p = probe_add(t, s, write);
	uint32_t hit;

	p->linear = hmem(base, disp);
	if (disp) {
		emit_lea(e, 4, H_R10, hmem(base, disp));
		emit_shrx(e, 4, H_R10, H_R10, H_R15);
	} else {
		emit_shrx(e, 4, H_R10, base, H_R15);
	}
	emit_load(e, 8, H_RCX, hmem_x(H_R15, H_R10, 8, tag_disp(s->write ? MEM_WRITE : 0)));
	emit_lea(e, 8, H_RCX, hmem_x(H_RCX, base, 1, disp + (int32_t)s->size - 1));
	emit_shrx(e, 8, H_RCX, H_RCX, H_R15);
	hit = emit_jrcxz(e);
	p->from = emit_jmp(e);
	emit_here8(e, hit);
	emit_load(e, 8, H_R10, hmem_x(H_R15, H_R10, 8, TLB_DISP(addend)));
	emit_lea(e, 8, H_R10, hmem_x(H_R10, base, 1, disp));
	return leader_done(t, s, p);
}

/* The group's linear address is in R10. */
static struct hmem emit_leader_linear(struct translation *t, const struct share *s, bool write)
{
	struct emit *e = &t->e;
	struct probe *p = probe_add(t, s, write);
	uint32_t hit;

	p->address = true;
	emit_shrx(e, 4, H_RCX, H_R10, H_R15);
	emit_load(e, 8, H_RCX, hmem_x(H_R15, H_RCX, 8, tag_disp(s->write ? MEM_WRITE : 0)));
	emit_lea(e, 8, H_RCX, hmem_x(H_RCX, H_R10, 1, (int32_t)s->size - 1));
	emit_shrx(e, 8, H_RCX, H_RCX, H_R15);
	hit = emit_jrcxz(e);
	p->from = emit_jmp(e);
	emit_here8(e, hit);
	emit_shrx(e, 4, H_RCX, H_R10, H_R15);
	emit_load(e, 8, H_RCX, hmem_x(H_R15, H_RCX, 8, TLB_DISP(addend)));
	emit_lea(e, 8, H_R10, hmem_x(H_R10, H_RCX, 1, 0));
	return leader_done(t, s, p);
}

static struct hmem emit_member(struct translation *t, const struct share *s)
{
	struct hmem slot = share_slot(s->slot);

	if (t->in_r10 != s->leader + 1)
		emit_load(&t->e, 8, H_R10, slot);
	t->in_r10 = (uint8_t)(s->leader + 1);
	return hmem(H_R10, s->disp);
}

/* The current instruction's part in a group, NULL if it has to be checked on its own. */
static const struct share *share_now(const struct translation *t)
{
	const struct share *s = &t->share[t->index];

	if (s->role == SHARE_NONE)
		return NULL;
	return s->role == SHARE_LEADER || t->live[s->slot] == s->leader + 1 ? s : NULL;
}

bool share_is_member(const struct translation *t)
{
	const struct share *s = share_now(t);

	return s && s->role == SHARE_MEMBER;
}

/* Outside flat segments, and where alignment is checked, C computes the linear address; it also knows that nothing
 * is written by way of CS. */
static bool needs_linear_call(const struct translation *t, unsigned seg, uint32_t flags)
{
	if (t->mode & MODE_AC)
		return true;
	if (t->mode & MODE_CODE64)
		return false;
	return !(t->mode & MODE_FLAT) || seg == X86_FS || seg == X86_GS ||
	       (seg == X86_CS && (flags & MEM_WRITE));
}

/* What #AC wants of the operand. AMD's CPUs check those of vector instructions, too (APM vol. 2, 8.2.18): to 16 bytes,
 * or, under an EVEX mask, to an element; not those that VMASKMOV masks. */
static unsigned access_alignment(const struct translation *t, const struct insn *insn,
				 unsigned size, uint32_t flags)
{
	if (t->svm->intel || (size & (size - 1)))
		return operand_alignment(size);
	if ((flags & MEM_MASKED) && insn->encoding == ENC_VEX)
		return 1;
	if ((flags & MEM_MASKED) && insn->suppresses)
		return insn->mem_element;
	return size < 16 ? size : 16;
}

static void emit_linear_call(struct translation *t, uint32_t desc, unsigned align)
{
	share_forget(t);
	if (t->mode & MODE_AC)
		emit_store_imm(&t->e, 4, CPU(align), (int32_t)align);
	emit_mov_imm(&t->e, H_RCX, desc);
	emit_call_stub(t, STUB_LINEAR);
}

/* [host register + disp], no segment base, 64-bit addresses. */
static bool is_simple(const struct translation *t, const struct insn *insn)
{
	return (t->mode & MODE_CODE64) && insn->addrsize == 8 && insn->mem_base != REG_NONE &&
	       guest_reg(insn->mem_base) != H_NONE && insn->mem_index == REG_NONE &&
	       insn->mem_seg != X86_FS && insn->mem_seg != X86_GS &&
	       insn->mem_disp >= INT32_MIN + 4096 && insn->mem_disp <= INT32_MAX - 4096;
}

static struct hmem emit_leader(struct translation *t, const struct insn *insn,
			       const struct share *s)
{
	struct insn group = *insn; /* its operand: the group */

	group.mem_disp -= s->disp;
	if (is_simple(t, &group))
		return emit_leader_simple(t, s, guest_reg(group.mem_base), (int32_t)group.mem_disp,
					  insn->mem_write);
	emit_address(t, &group, H_R10, H_RCX, true);
	return emit_leader_linear(t, s, insn->mem_write);
}

struct hmem emit_access(struct translation *t, const struct insn *insn, unsigned size,
			uint32_t flags, bool rcx_free, struct cold **cold)
{
	uint32_t desc = access_desc(t, insn, size, flags, insn->mem_seg);
	const struct share *share = share_now(t);

	*cold = NULL;
	if (t->loop.inside)
		return loop_operand(t, insn);
	if (share)
		return share->role == SHARE_LEADER ? emit_leader(t, insn, share)
						   : emit_member(t, share);
	if (needs_linear_call(t, insn->mem_seg, flags)) {
		emit_address(t, insn, H_R10, H_RCX, false);
		emit_linear_call(t, desc, access_alignment(t, insn, size, flags));
		return emit_access_linear(t, size, desc, rcx_free, cold);
	}
	if (is_simple(t, insn))
		return emit_access_simple(t, guest_reg(insn->mem_base), (int32_t)insn->mem_disp,
					  size, desc, cold);
	emit_address(t, insn, H_R10, H_RCX, true);
	return emit_access_linear(t, size, desc, rcx_free, cold);
}

struct hmem emit_stack_access(struct translation *t, uint8_t reg, int32_t disp, unsigned size,
			      uint32_t flags, struct cold **cold)
{
	uint32_t desc = access_desc(t, t->insn, size, flags, X86_SS);
	const struct share *share = share_now(t);

	*cold = NULL;
	if (share)
		return share->role == SHARE_LEADER
			       ? emit_leader_simple(t, share, reg, disp - share->disp,
						    flags & MEM_WRITE)
			       : emit_member(t, share);
	if ((t->mode & MODE_CODE64) && !(t->mode & MODE_AC))
		return emit_access_simple(t, reg, disp, size, desc, cold);
	emit_lea(&t->e, t->mode & MODE_CODE64 ? 8 : 4, H_R10, hmem(reg, disp));
	if (t->mode & MODE_AC)
		emit_linear_call(t, desc, size);
	return emit_access_linear(t, size, desc, true, cold);
}
