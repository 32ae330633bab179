/*
 * The local APIC, quick part: Intel SDM vol. 3 chapter 11 (figures as numbered there), version 0x14 with six LVT
 * entries, xAPIC and x2APIC. See lapic.h for threads.
 *
 * As on processors since the Pentium 4: the id is read-only, IPIs are edge-triggered whatever the ICR says, INIT
 * de-assert does nothing, APR is kept for its readers only. Lowest priority takes turns among the CPUs that the
 * message names. Left out: SMI (there is no SMM), ExtINT as a message, suppression of EOI broadcasts, and LVT CMCI
 * (the version shows none). Thermal and performance LVT entries hold what is written to them.
 *
 * Level-triggered vectors are known by their TMR bit, which the message set: no table of I/O APIC pins is needed to
 * tell which EOIs the monitor wants to hear of.
 */
#include "engine/soft/cache.h"
#include "engine/soft/lapic_regs.h"
#include "vmm/vm.h"

#define VERSION 0x00050014u

#define SVR_ENABLE 0x100u

#define LVT_MODE(lvt) ((lvt) >> 8 & 7)
#define LVT_MASKED 0x10000u
#define LVT_TIMER_MODE(lvt) ((lvt) >> 17 & 3)
enum { TIMER_ONE_SHOT, TIMER_PERIODIC, TIMER_DEADLINE };

enum { DM_FIXED, DM_LOWEST, DM_SMI, DM_RESERVED, DM_NMI, DM_INIT, DM_SIPI, DM_EXTINT };

#define ICR_LOGICAL (1u << 11)
#define ICR_BUSY (1u << 12)
#define ICR_ASSERT (1u << 14)
#define ICR_LEVEL (1u << 15)
#define ICR_SHORTHAND(icr) ((icr) >> 18 & 3)
enum { SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS };

#define ESR_SEND_VECTOR 0x20u
#define ESR_RECEIVE_VECTOR 0x40u
#define ESR_REGISTER 0x80u

#define DEST_ALL 0xffffffffu
/* A periodic timer expires no more often than this: the loop thread has others to serve. KVM has 200 us. */
#define PERIOD_MIN_NS 20000u

static const uint32_t lvt_writable[] = {
	0x000700ff, 0x000107ff, 0x000107ff, 0x0001a7ff, 0x0001a7ff, 0x000100ff,
};

static inline uint32_t reg_get(const struct soft_lapic *l, unsigned n)
{
	return atomic_load_explicit(&l->reg[n], memory_order_relaxed);
}

static inline void reg_set(struct soft_lapic *l, unsigned n, uint32_t value)
{
	atomic_store_explicit(&l->reg[n], value, memory_order_relaxed);
}

/* The highest vector that is set in ISR or IRR, or -1. */
static int highest(const struct soft_lapic *l, unsigned first)
{
	for (int i = 7; i >= 0; i--) {
		uint32_t bits = atomic_load(&l->reg[first + (unsigned)i]);

		if (bits)
			return i * 32 + 31 - __builtin_clz(bits);
	}
	return -1;
}

/* `from` is the CPU whose thread this is, or NULL. */
static void post(struct soft_cpu *cpu, uint32_t request, const struct soft_cpu *from)
{
	if (from && cpu == from)
		soft_request(cpu, request);
	else
		soft_wake(cpu, request);
}

/* ---- accepting ---------------------------------------------------------------------------------------- */

static void irr_set(struct soft_lapic *l, uint8_t vector, bool level, const struct soft_cpu *from)
{
	uint32_t bit = 1u << (vector & 31);
	unsigned word = vector >> 5;

	/* TMR first: who takes the vector out of IRR reads it. */
	if (level)
		atomic_fetch_or(&l->reg[LAPIC_TMR + word], bit);
	else
		atomic_fetch_and(&l->reg[LAPIC_TMR + word], ~bit);
	/* Who set it before has woken the CPU. */
	if (!(atomic_fetch_or(&l->reg[LAPIC_IRR + word], bit) & bit))
		post(l->cpu, REQ_INTR, from);
}

/* SDM vol. 3, 11.5.3. */
static void error_add(struct soft_lapic *l, uint32_t error, const struct soft_cpu *from)
{
	uint32_t lvt = reg_get(l, LAPIC_LVT_ERROR);

	if ((atomic_fetch_or(&l->errors, error) & error) || (lvt & LVT_MASKED))
		return;
	if ((lvt & 0xff) < 16)
		atomic_fetch_or(&l->errors, ESR_RECEIVE_VECTOR);
	else
		irr_set(l, (uint8_t)lvt, false, from);
}

static void accept_fixed(struct soft_lapic *l, uint8_t vector, bool level,
			 const struct soft_cpu *from)
{
	if (vector < 16)
		error_add(l, ESR_RECEIVE_VECTOR, from);
	else
		irr_set(l, vector, level, from);
}

/* The interrupt of a local source (SDM vol. 3, 11.5.1). ExtINT is the CPU's own look at the PIC: soft.c. */
static void lvt_raise(struct soft_lapic *l, unsigned n, const struct soft_cpu *from)
{
	uint32_t lvt = reg_get(l, n);
	unsigned mode = n == LAPIC_LVT_TIMER ? DM_FIXED : LVT_MODE(lvt);

	if (lvt & LVT_MASKED)
		return;
	if (mode == DM_FIXED)
		accept_fixed(l, (uint8_t)lvt, false, from);
	else if (mode == DM_NMI)
		post(l->cpu, REQ_NMI, from);
	else if (mode == DM_INIT)
		post(l->cpu, REQ_INIT, from);
}

/* ---- messages ----------------------------------------------------------------------------------------- */

struct message {
	uint32_t dest; /* as in the ICR of x2APIC; DEST_ALL: broadcast */
	bool logical, level, lowest;
	uint8_t mode, vector;
};

static bool matches(const struct soft_lapic *l, const struct message *m)
{
	uint32_t ldr = reg_get(l, LAPIC_LDR), dfr = reg_get(l, LAPIC_DFR);

	if (m->dest == DEST_ALL)
		return true;
	if (!m->logical)
		return m->dest == l->cpu->apic_id;
	if (atomic_load(&l->mode) == LAPIC_X2APIC)
		return m->dest >> 16 == ldr >> 16 && (m->dest & ldr & 0xffff);
	if (m->dest > 0xff)
		return false;
	ldr >>= 24;
	if (dfr >> 28 == 0xf)
		return m->dest & ldr;
	/* Cluster model, figure 11-15: cluster 15 is all of them. */
	if (dfr >> 28 == 0)
		return (m->dest >> 4 == ldr >> 4 || m->dest >> 4 == 0xf) && (m->dest & ldr & 0xf);
	return false;
}

static bool takes_fixed(const struct soft_lapic *l)
{
	return reg_get(l, LAPIC_SVR) & SVR_ENABLE;
}

static void deliver(struct soft_lapic *l, const struct message *m, const struct soft_cpu *from)
{
	switch (m->mode) {
	case DM_FIXED:
	case DM_LOWEST:
		if (takes_fixed(l))
			accept_fixed(l, m->vector, m->level, from);
		break;
	case DM_NMI:
		post(l->cpu, REQ_NMI, from);
		break;
	case DM_INIT:
		/* A start message before it is void. */
		atomic_fetch_and(&l->cpu->requests, ~REQ_SIPI);
		post(l->cpu, REQ_INIT, from);
		break;
	case DM_SIPI:
		atomic_store(&l->cpu->sipi_vector, m->vector);
		post(l->cpu, REQ_SIPI, from);
		break;
	default:
		break;
	}
}

static struct soft_lapic *lapic_at(struct soft_vm *svm, unsigned index)
{
	struct soft_cpu *cpu = svm->cpu[index];

	return cpu && atomic_load(&cpu->lapic->mode) != LAPIC_OFF ? cpu->lapic : NULL;
}

/* One of those named, and each in turn. */
static void send_lowest(struct soft_vm *svm, const struct message *m, const struct soft_cpu *from,
			const struct soft_cpu *skip)
{
	unsigned start;

	if (!svm->cpu[0])
		return;
	start = atomic_fetch_add(&svm->cpu[0]->lapic->turn, 1);
	for (unsigned i = 0; i < svm->ncpus; i++) {
		struct soft_lapic *l = lapic_at(svm, (start + i) % svm->ncpus);

		if (l && l->cpu != skip && takes_fixed(l) && matches(l, m)) {
			deliver(l, m, from);
			return;
		}
	}
}

static void send(struct soft_vm *svm, const struct message *m, const struct soft_cpu *from,
		 const struct soft_cpu *skip)
{
	if (m->lowest) {
		send_lowest(svm, m, from, skip);
		return;
	}
	for (unsigned i = 0; i < svm->ncpus; i++) {
		struct soft_lapic *l = lapic_at(svm, i);

		if (l && l->cpu != skip && matches(l, m))
			deliver(l, m, from);
	}
}

/* SDM vol. 3, 11.6.1. */
static void send_ipi(struct soft_lapic *l, uint32_t icr, uint32_t dest)
{
	struct soft_cpu *self = l->cpu;
	struct message m = {.mode = icr >> 8 & 7, .vector = (uint8_t)icr};
	unsigned shorthand = ICR_SHORTHAND(icr);

	m.lowest = m.mode == DM_LOWEST;
	if (m.mode <= DM_LOWEST && m.vector < 16) {
		error_add(l, ESR_SEND_VECTOR, self);
		return;
	}
	if (m.mode == DM_INIT && (icr & ICR_LEVEL) && !(icr & ICR_ASSERT))
		return;
	if (shorthand == SHORTHAND_SELF) {
		deliver(l, &m, self);
		return;
	}
	m.dest = shorthand == SHORTHAND_NONE ? dest : DEST_ALL;
	m.logical = shorthand == SHORTHAND_NONE && (icr & ICR_LOGICAL);
	send(self->svm, &m, self, shorthand == SHORTHAND_OTHERS ? self : NULL);
}

/* An eight-bit destination. */
static uint32_t dest_widen(uint32_t dest)
{
	return dest == 0xff ? DEST_ALL : dest;
}

/* SDM vol. 3, 11.11. The redirection hint asks for one CPU out of several. */
void lapic_msi(struct soft_vm *svm, const struct msi *msi)
{
	struct message m = {
		.dest = dest_widen(msi->addr >> 12 & 0xff),
		.logical = msi->addr >> 2 & 1,
		.mode = msi->data >> 8 & 7,
		.vector = (uint8_t)msi->data,
		.level = msi->data >> 15 & 1,
	};

	if (msi->addr >> 20 != 0xfee || m.mode == DM_SIPI)
		return;
	m.lowest = m.mode == DM_LOWEST || (m.mode == DM_FIXED && (msi->addr >> 3 & 1));
	send(svm, &m, NULL, NULL);
}

void lapic_intr_changed(struct soft_vm *svm, bool level)
{
	for (unsigned i = 0; i < svm->ncpus; i++) {
		struct soft_cpu *cpu = svm->cpu[i];

		if (!cpu)
			continue;
		if (lapic_takes_extint(cpu))
			soft_wake(cpu, REQ_INTR);
		else if (level)
			lvt_raise(cpu->lapic, LAPIC_LVT_LINT0, NULL);
	}
}

void lapic_nmi(struct soft_cpu *cpu)
{
	if (atomic_load(&cpu->lapic->mode) == LAPIC_OFF)
		soft_wake(cpu, REQ_NMI); /* the pin is the CPU's NMI then */
	else
		lvt_raise(cpu->lapic, LAPIC_LVT_LINT1, NULL);
}

/* ---- priorities --------------------------------------------------------------------------------------- */

/* SDM vol. 3, 11.8.3.1. */
static uint32_t ppr(const struct soft_lapic *l)
{
	uint32_t tpr = reg_get(l, LAPIC_TPR);
	int isr = highest(l, LAPIC_ISR);
	uint32_t class = isr < 0 ? 0 : (uint32_t)isr & 0xf0;

	return (tpr & 0xf0) >= class ? tpr : class;
}

/* SDM vol. 3, 11.6.2.4. */
static uint32_t apr(const struct soft_lapic *l)
{
	uint32_t tpr = reg_get(l, LAPIC_TPR);
	int isr = highest(l, LAPIC_ISR), irr = highest(l, LAPIC_IRR);
	uint32_t isr_class = isr < 0 ? 0 : (uint32_t)isr & 0xf0;
	uint32_t irr_class = irr < 0 ? 0 : (uint32_t)irr & 0xf0;

	if ((tpr & 0xf0) >= irr_class && (tpr & 0xf0) > isr_class)
		return tpr;
	return (tpr & isr_class) > irr_class ? tpr & isr_class : irr_class;
}

int lapic_pending(const struct soft_cpu *cpu)
{
	const struct soft_lapic *l = cpu->lapic;
	int irr;

	if (atomic_load(&l->mode) == LAPIC_OFF)
		return -1;
	irr = highest(l, LAPIC_IRR);
	return irr >= 0 && ((uint32_t)irr & 0xf0) > (ppr(l) & 0xf0) ? irr : -1;
}

void lapic_accept(struct soft_cpu *cpu, uint8_t vector)
{
	struct soft_lapic *l = cpu->lapic;
	uint32_t bit = 1u << (vector & 31);

	atomic_fetch_and(&l->reg[LAPIC_IRR + (vector >> 5)], ~bit);
	atomic_fetch_or(&l->reg[LAPIC_ISR + (vector >> 5)], bit);
}

/* Something may have become deliverable by what this CPU did. */
static void look_again(struct soft_lapic *l)
{
	if (lapic_pending(l->cpu) >= 0)
		soft_request(l->cpu, REQ_INTR);
}

uint8_t lapic_tpr(const struct soft_cpu *cpu)
{
	return (uint8_t)reg_get(cpu->lapic, LAPIC_TPR);
}

void lapic_set_tpr(struct soft_cpu *cpu, uint8_t tpr)
{
	reg_set(cpu->lapic, LAPIC_TPR, tpr);
	look_again(cpu->lapic);
}

bool lapic_takes_extint(const struct soft_cpu *cpu)
{
	uint32_t lvt = reg_get(cpu->lapic, LAPIC_LVT_LINT0);

	if (atomic_load(&cpu->lapic->mode) == LAPIC_OFF)
		return true;
	return !(lvt & LVT_MASKED) && LVT_MODE(lvt) == DM_EXTINT;
}

static void end_of_interrupt(struct soft_lapic *l)
{
	int vector = highest(l, LAPIC_ISR);
	uint32_t bit = 1u << (vector & 31);

	if (vector < 0)
		return;
	atomic_fetch_and(&l->reg[LAPIC_ISR + (unsigned)vector / 32], ~bit);
	if (atomic_load(&l->reg[LAPIC_TMR + (unsigned)vector / 32]) & bit) {
		l->eoi[vector / 32] |= bit;
		soft_request(l->cpu, REQ_INTR);
	}
	look_again(l);
}

int lapic_take_eoi(struct soft_cpu *cpu)
{
	struct soft_lapic *l = cpu->lapic;

	for (unsigned i = 0; i < 8; i++) {
		unsigned vector;

		if (!l->eoi[i])
			continue;
		vector = i * 32 + (unsigned)__builtin_ctz(l->eoi[i]);
		l->eoi[i] &= l->eoi[i] - 1;
		return (int)vector;
	}
	return -1;
}

/* ---- timer -------------------------------------------------------------------------------------------- */

/* SDM vol. 3, figure 11-10: bits 3, 1 and 0; 0 is by 2, 7 by 1. */
static unsigned timer_shift(const struct soft_lapic *l)
{
	uint32_t tdcr = reg_get(l, LAPIC_TDCR);

	return (((tdcr & 3) | (tdcr >> 1 & 4)) + 1) & 7;
}

static unsigned timer_mode(const struct soft_lapic *l)
{
	return LVT_TIMER_MODE(reg_get(l, LAPIC_LVT_TIMER));
}

static uint64_t timer_period(const struct soft_lapic *l)
{
	return (uint64_t)reg_get(l, LAPIC_TMICT) << timer_shift(l);
}

static uint32_t timer_count(const struct soft_lapic *l)
{
	uint64_t now = soft_now(&l->cpu->svm->time), period = timer_period(l), left = 0;

	if (!l->deadline || !period)
		return 0;
	if (now < l->deadline)
		left = l->deadline - now;
	else if (timer_mode(l) == TIMER_PERIODIC)
		left = period - (now - l->deadline) % period;
	return (uint32_t)((left + (1u << timer_shift(l)) - 1) >> timer_shift(l));
}

/* Counts down from `count`. */
static void timer_start(struct soft_lapic *l, uint32_t count)
{
	uint64_t now = soft_now(&l->cpu->svm->time);

	l->deadline = count ? now + ((uint64_t)count << timer_shift(l)) : 0;
	soft_request(l->cpu, REQ_TIMER);
}

static void timer_write_lvt(struct soft_lapic *l, uint32_t value)
{
	bool was = timer_mode(l) >= TIMER_DEADLINE, is = LVT_TIMER_MODE(value) >= TIMER_DEADLINE;

	reg_set(l, LAPIC_LVT_TIMER, value);
	if (was == is)
		return;
	/* SDM vol. 3, 11.5.4.1: a change to or from TSC-deadline mode disarms the timer. */
	reg_set(l, LAPIC_TMICT, 0);
	l->cpu->msr.tsc_deadline = 0;
	timer_start(l, 0);
}

static void timer_write_divide(struct soft_lapic *l, uint32_t value)
{
	uint32_t count = timer_count(l);

	reg_set(l, LAPIC_TDCR, value);
	if (l->deadline)
		timer_start(l, count);
}

bool lapic_write_tsc_deadline(struct soft_cpu *cpu, uint64_t tsc)
{
	if (timer_mode(cpu->lapic) == TIMER_DEADLINE) {
		cpu->msr.tsc_deadline = tsc;
		soft_request(cpu, REQ_TIMER);
	}
	return true;
}

/* The deadline is kept as the guest wrote it: it moves in virtual time when the guest writes its TSC. */
static uint64_t deadline_run(struct soft_lapic *l, uint64_t now)
{
	uint64_t deadline = l->cpu->msr.tsc_deadline, tsc = now + l->cpu->tsc_offset;

	if (!deadline || timer_mode(l) != TIMER_DEADLINE)
		return LAPIC_NEVER;
	if (tsc < deadline)
		return deadline - tsc < LAPIC_NEVER - now ? now + (deadline - tsc) : LAPIC_NEVER;
	l->cpu->msr.tsc_deadline = 0;
	lvt_raise(l, LAPIC_LVT_TIMER, l->cpu);
	return LAPIC_NEVER;
}

uint64_t lapic_timer_run(struct soft_lapic *l)
{
	uint64_t now = soft_now(&l->cpu->svm->time), period = timer_period(l);

	if (timer_mode(l) >= TIMER_DEADLINE)
		return deadline_run(l, now);
	if (!l->deadline)
		return LAPIC_NEVER;
	if (now < l->deadline)
		return l->deadline;
	lvt_raise(l, LAPIC_LVT_TIMER, l->cpu);
	if (timer_mode(l) != TIMER_PERIODIC || !period) {
		l->deadline = 0;
		return LAPIC_NEVER;
	}
	l->deadline += ((now - l->deadline) / period + 1) * period;
	return l->deadline < now + PERIOD_MIN_NS ? now + PERIOD_MIN_NS : l->deadline;
}

/* ---- registers ---------------------------------------------------------------------------------------- */

static uint32_t id_value(const struct soft_lapic *l)
{
	return atomic_load(&l->mode) == LAPIC_X2APIC ? l->cpu->apic_id : l->cpu->apic_id << 24;
}

/* SDM vol. 3, 11.12.10.2. */
static uint32_t x2apic_ldr(const struct soft_lapic *l)
{
	return l->cpu->apic_id >> 4 << 16 | 1u << (l->cpu->apic_id & 15);
}

/* False: there is no such register, or it cannot be read. */
static bool read_reg(struct soft_lapic *l, unsigned n, uint32_t *value)
{
	*value = 0;
	switch (n) {
	case LAPIC_ID:
		*value = id_value(l);
		return true;
	case LAPIC_APR:
		*value = apr(l);
		return true;
	case LAPIC_PPR:
		*value = ppr(l);
		return true;
	case LAPIC_TMCCT:
		*value = timer_count(l);
		return true;
	case LAPIC_EOI:
	case LAPIC_RRD:
		return true;
	case LAPIC_VERSION:
	case LAPIC_TPR:
	case LAPIC_LDR ... LAPIC_ESR:
	case LAPIC_ICR ... LAPIC_TMICT:
	case LAPIC_TDCR:
		*value = atomic_load(&l->reg[n]);
		return true;
	default:
		return false;
	}
}

static void write_svr(struct soft_lapic *l, uint32_t value)
{
	reg_set(l, LAPIC_SVR, value & 0x3ff);
	if (value & SVR_ENABLE)
		return;
	for (unsigned n = LAPIC_LVT_TIMER; n <= LAPIC_LVT_ERROR; n++)
		reg_set(l, n, reg_get(l, n) | LVT_MASKED);
}

static void write_lvt(struct soft_lapic *l, unsigned n, uint32_t value)
{
	value &= lvt_writable[n - LAPIC_LVT_TIMER];
	if (!takes_fixed(l))
		value |= LVT_MASKED;
	if (n == LAPIC_LVT_TIMER)
		timer_write_lvt(l, value);
	else
		reg_set(l, n, value);
	/* LINT0 may take the PIC's interrupt now. */
	if (n == LAPIC_LVT_LINT0)
		soft_request(l->cpu, REQ_INTR);
}

/* Those of both modes. False: no such register, or it cannot be written. */
static bool write_reg(struct soft_lapic *l, unsigned n, uint32_t value)
{
	switch (n) {
	case LAPIC_TPR:
		lapic_set_tpr(l->cpu, (uint8_t)value);
		return true;
	case LAPIC_EOI:
		end_of_interrupt(l);
		return true;
	case LAPIC_SVR:
		write_svr(l, value);
		return true;
	case LAPIC_ESR:
		reg_set(l, LAPIC_ESR, atomic_exchange(&l->errors, 0));
		return true;
	case LAPIC_LVT_TIMER ... LAPIC_LVT_ERROR:
		write_lvt(l, n, value);
		return true;
	case LAPIC_TMICT:
		if (timer_mode(l) < TIMER_DEADLINE) {
			reg_set(l, LAPIC_TMICT, value);
			timer_start(l, value);
		}
		return true;
	case LAPIC_TDCR:
		timer_write_divide(l, value & 0xb);
		return true;
	default:
		return false;
	}
}

static bool write_xapic(struct soft_lapic *l, unsigned n, uint32_t value)
{
	switch (n) {
	case LAPIC_LDR:
		reg_set(l, n, value & 0xff000000);
		return true;
	case LAPIC_DFR:
		reg_set(l, n, value | 0x0fffffff);
		return true;
	case LAPIC_ICR:
		reg_set(l, n, value & 0xccfff & ~ICR_BUSY);
		send_ipi(l, value, dest_widen(reg_get(l, LAPIC_ICR_HIGH) >> 24));
		return true;
	case LAPIC_ICR_HIGH:
		reg_set(l, n, value & 0xff000000);
		return true;
	case LAPIC_SELF_IPI:
		return false;
	default:
		return write_reg(l, n, value);
	}
}

bool lapic_mmio(struct soft_cpu *cpu, uint64_t gpa, unsigned size, bool write, uint64_t *value)
{
	struct soft_lapic *l = cpu->lapic;
	unsigned offset = gpa & 0xfff, n = offset >> 4;
	uint32_t read = 0;
	bool known;

	if ((gpa & ~0xfffull) != cpu->apic_page)
		return false;
	if (size != 4 || (offset & 0xf)) {
		if (!write)
			*value = 0;
		return true;
	}
	known = n < LAPIC_REGS && read_reg(l, n, &read);
	if (write) {
		/* Read-only registers are no errors: nothing happens. */
		known |= n < LAPIC_REGS && write_xapic(l, n, (uint32_t)*value);
	} else {
		*value = read;
	}
	if (!known)
		error_add(l, ESR_REGISTER, cpu);
	return true;
}

bool lapic_rdmsr(struct soft_cpu *cpu, uint32_t msr, uint64_t *value)
{
	struct soft_lapic *l = cpu->lapic;
	unsigned n = msr - 0x800;
	uint32_t low;

	if (atomic_load(&l->mode) != LAPIC_X2APIC || n >= LAPIC_REGS)
		return false;
	/* SDM vol. 3 table 11-6: reserved, or write-only */
	if (n == LAPIC_APR || n == LAPIC_EOI || n == LAPIC_RRD || n == LAPIC_DFR ||
	    n == LAPIC_ICR_HIGH || !read_reg(l, n, &low))
		return false;
	*value = low;
	if (n == LAPIC_ICR)
		*value |= (uint64_t)reg_get(l, LAPIC_ICR_HIGH) << 32;
	return true;
}

/* Bits that may be set in a write to an x2APIC register; 0 also for those that take zero alone. */
static uint64_t x2apic_writable(unsigned n)
{
	switch (n) {
	case LAPIC_TPR:
	case LAPIC_SELF_IPI:
		return 0xff;
	case LAPIC_SVR:
		return 0x3ff;
	case LAPIC_ICR:
		return 0xffffffff000cdfff;
	case LAPIC_LVT_TIMER ... LAPIC_LVT_ERROR:
		/* DS and remote IRR are read-only, not reserved. */
		return lvt_writable[n - LAPIC_LVT_TIMER] | 0x5000;
	case LAPIC_TMICT:
		return 0xffffffff;
	case LAPIC_TDCR:
		return 0xb;
	default:
		return 0;
	}
}

bool lapic_wrmsr(struct soft_cpu *cpu, uint32_t msr, uint64_t value)
{
	struct soft_lapic *l = cpu->lapic;
	unsigned n = msr - 0x800;

	if (atomic_load(&l->mode) != LAPIC_X2APIC || n >= LAPIC_REGS ||
	    (value & ~x2apic_writable(n)))
		return false;
	if (n == LAPIC_SELF_IPI) {
		send_ipi(l, (uint32_t)value | SHORTHAND_SELF << 18, 0);
		return true;
	}
	if (n != LAPIC_ICR)
		return write_reg(l, n, (uint32_t)value);
	reg_set(l, LAPIC_ICR, (uint32_t)value & ~ICR_BUSY);
	reg_set(l, LAPIC_ICR_HIGH, (uint32_t)(value >> 32));
	send_ipi(l, (uint32_t)value, (uint32_t)(value >> 32));
	return true;
}

/* ---- reset and base ----------------------------------------------------------------------------------- */

void lapic_reset(struct soft_cpu *cpu)
{
	struct soft_lapic *l = cpu->lapic;

	for (unsigned n = 0; n < LAPIC_REGS; n++)
		reg_set(l, n, 0);
	for (unsigned n = LAPIC_LVT_TIMER; n <= LAPIC_LVT_ERROR; n++)
		reg_set(l, n, LVT_MASKED);
	for (unsigned i = 0; i < 8; i++)
		l->eoi[i] = 0;
	reg_set(l, LAPIC_VERSION, VERSION);
	reg_set(l, LAPIC_DFR, 0xffffffff);
	reg_set(l, LAPIC_SVR, 0xff);
	if (atomic_load(&l->mode) == LAPIC_X2APIC)
		reg_set(l, LAPIC_LDR, x2apic_ldr(l));
	atomic_store(&l->errors, 0);
	cpu->msr.tsc_deadline = 0;
	timer_start(l, 0);
}

static enum lapic_mode base_mode(uint64_t base)
{
	if (!(base & X86_APIC_BASE_ENABLE))
		return LAPIC_OFF;
	return base & X86_APIC_BASE_X2APIC ? LAPIC_X2APIC : LAPIC_XAPIC;
}

/* cpu->apic_base is new. */
static void base_apply(struct soft_cpu *cpu)
{
	uint64_t page = ~0ull, mask = (1ull << cpu->svm->maxphyaddr) - 1;
	enum lapic_mode mode = base_mode(cpu->apic_base);

	atomic_store(&cpu->lapic->mode, mode);
	if (mode == LAPIC_XAPIC)
		page = cpu->apic_base & mask & ~0xfffull;
	if (page == cpu->apic_page)
		return;
	cpu->apic_page = page;
	soft_tlb_flush_all(cpu, true);
}

bool lapic_write_base(struct soft_cpu *cpu, uint64_t value)
{
	uint64_t flags = X86_APIC_BASE_BSP | X86_APIC_BASE_X2APIC | X86_APIC_BASE_ENABLE;
	enum lapic_mode old = base_mode(cpu->apic_base), new = base_mode(value);

	if ((value & 0xfff & ~flags) || value >> cpu->svm->maxphyaddr)
		return false;
	if ((value & X86_APIC_BASE_X2APIC) && (new == LAPIC_OFF || !cpu->svm->vm->x2apic))
		return false;
	if ((old == LAPIC_X2APIC && new == LAPIC_XAPIC) ||
	    (old == LAPIC_OFF && new == LAPIC_X2APIC))
		return false;
	cpu->apic_base = value;
	base_apply(cpu);
	if (new == LAPIC_OFF && old != LAPIC_OFF)
		lapic_reset(cpu);
	if (new == LAPIC_X2APIC)
		reg_set(cpu->lapic, LAPIC_LDR, x2apic_ldr(cpu->lapic));
	if (new != old)
		soft_request(cpu, REQ_INTR);
	return true;
}

/* ---- saved state -------------------------------------------------------------------------------------- */

void lapic_save(struct soft_cpu *cpu, uint32_t page[256])
{
	struct soft_lapic *l = cpu->lapic;
	uint32_t value;

	for (unsigned i = 0; i < 256; i++)
		page[i] = i % 4 == 0 && read_reg(l, i / 4, &value) ? value : 0;
}

static void load_vectors(struct soft_lapic *l, const uint32_t page[256])
{
	for (unsigned n = LAPIC_ISR; n < LAPIC_ESR; n++) {
		uint32_t valid = n % 8 ? 0xffffffff : 0xffff0000;

		atomic_store(&l->reg[n], page[n * 4] & valid);
	}
}

/* A page may come from anywhere: only what could have been written is taken of it. */
void lapic_load(struct soft_cpu *cpu, const uint32_t page[256])
{
	struct soft_lapic *l = cpu->lapic;
	uint32_t count = page[LAPIC_TMCCT * 4], initial = page[LAPIC_TMICT * 4];

	if (!(cpu->apic_base & X86_APIC_BASE_ENABLE))
		cpu->apic_base &= ~X86_APIC_BASE_X2APIC;
	base_apply(cpu);
	for (unsigned i = 0; i < 8; i++)
		l->eoi[i] = 0;
	atomic_store(&l->errors, 0);
	load_vectors(l, page);
	reg_set(l, LAPIC_VERSION, VERSION);
	reg_set(l, LAPIC_TPR, page[LAPIC_TPR * 4] & 0xff);
	reg_set(l, LAPIC_LDR, page[LAPIC_LDR * 4] & 0xff000000);
	if (atomic_load(&l->mode) == LAPIC_X2APIC)
		reg_set(l, LAPIC_LDR, x2apic_ldr(l));
	reg_set(l, LAPIC_DFR, page[LAPIC_DFR * 4] | 0x0fffffff);
	reg_set(l, LAPIC_ESR, page[LAPIC_ESR * 4] & 0xff);
	reg_set(l, LAPIC_ICR, page[LAPIC_ICR * 4] & 0xccfff & ~ICR_BUSY);
	reg_set(l, LAPIC_ICR_HIGH, page[LAPIC_ICR_HIGH * 4]);
	for (unsigned n = LAPIC_LVT_TIMER; n <= LAPIC_LVT_ERROR; n++)
		reg_set(l, n, page[n * 4] & lvt_writable[n - LAPIC_LVT_TIMER]);
	write_svr(l, page[LAPIC_SVR * 4]);
	reg_set(l, LAPIC_TDCR, page[LAPIC_TDCR * 4] & 0xb);
	if (timer_mode(l) >= TIMER_DEADLINE)
		initial = count = 0;
	else
		cpu->msr.tsc_deadline = 0;
	reg_set(l, LAPIC_TMICT, initial);
	timer_start(l, count < initial ? count : initial);
	soft_request(cpu, REQ_INTR);
}
