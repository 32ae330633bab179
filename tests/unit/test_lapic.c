/* The soft engine's local APICs: four of them, on a clock that stands still, with no code translated. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/soft/lapic_regs.h"
#include "engine/soft/soft.h"
#include "tests/unit/fixture.h"

#define CPUS 4
#define BASE 0xfee00000ull
#define MASKED 0x10000u
#define PERIODIC 0x20000u
#define DEADLINE 0x40000u
#define DIV_1 0xbu
#define NMI 0x400u
#define INIT 0x500u
#define SIPI 0x600u
#define EXTINT 0x700u
#define LOWEST 0x100u
#define LOGICAL 0x800u
#define SELF 0x40000u
#define ALL 0x80000u
#define OTHERS 0xc0000u

struct board {
	struct fixture *f;
	struct soft_vm svm;
	struct soft_cpu *cpu[CPUS];
};

static uint32_t rd(struct soft_cpu *cpu, unsigned reg)
{
	uint64_t value = 0xdeadbeef;

	assert_true(lapic_mmio(cpu, BASE + reg * 16, 4, false, &value));
	return (uint32_t)value;
}

static void wr(struct soft_cpu *cpu, unsigned reg, uint32_t value)
{
	uint64_t v = value;

	assert_true(lapic_mmio(cpu, BASE + reg * 16, 4, true, &v));
}

static uint32_t requests(struct soft_cpu *cpu)
{
	return atomic_exchange(&cpu->requests, 0);
}

static void forget(struct board *b)
{
	for (unsigned i = 0; i < CPUS; i++)
		requests(b->cpu[i]);
}

static bool irr(struct soft_cpu *cpu, unsigned vector)
{
	return atomic_load(&cpu->lapic->reg[LAPIC_IRR + vector / 32]) >> (vector % 32) & 1;
}

/* Which CPUs have the vector in IRR, a bit each; takes it away. */
static unsigned who(struct board *b, unsigned vector)
{
	unsigned mask = 0;

	for (unsigned i = 0; i < CPUS; i++) {
		if (irr(b->cpu[i], vector))
			mask |= 1u << i;
		atomic_fetch_and(&b->cpu[i]->lapic->reg[LAPIC_IRR + vector / 32],
				 ~(1u << (vector % 32)));
	}
	return mask;
}

static unsigned who_asked(struct board *b, uint32_t request)
{
	unsigned mask = 0;

	for (unsigned i = 0; i < CPUS; i++)
		if (requests(b->cpu[i]) & request)
			mask |= 1u << i;
	return mask;
}

static void ipi(struct soft_cpu *cpu, uint32_t icr, uint32_t dest)
{
	wr(cpu, LAPIC_ICR_HIGH, dest << 24);
	wr(cpu, LAPIC_ICR, icr);
}

/* The interrupt that would be taken is, and is this one. */
static void take(struct soft_cpu *cpu, int vector)
{
	assert_int_equal(lapic_pending(cpu), vector);
	lapic_accept(cpu, (uint8_t)vector);
}

/* What the run loop does when the timer asks for it. */
static void run(struct board *b, uint64_t ns)
{
	uint64_t until = b->svm.time.frozen + ns;

	for (unsigned i = 0; i < CPUS; i++)
		if (requests(b->cpu[i]) & REQ_TIMER)
			lapic_rearm(b->cpu[i]);
	fixture_advance(b->f, ns);
	b->svm.time.frozen = until;
	for (unsigned i = 0; i < CPUS; i++)
		if (atomic_load(&b->cpu[i]->requests) & REQ_TIMER)
			lapic_rearm(b->cpu[i]);
}

static int setup(void **state)
{
	struct board *b = calloc(1, sizeof(*b));

	b->f = fixture_create();
	b->f->vm.x2apic = true;
	b->svm.vm = &b->f->vm;
	b->svm.ncpus = CPUS;
	b->svm.maxphyaddr = 46;
	b->svm.time.paused = true;
	b->svm.time.frozen = vclock_now(b->f->vm.clock);
	for (unsigned i = 0; i < CPUS; i++) {
		struct soft_cpu *cpu = aligned_alloc(64, sizeof(*cpu));

		memset(cpu, 0, sizeof(*cpu));
		cpu->svm = &b->svm;
		cpu->apic_id = i;
		assert_int_equal(soft_tlb_init(cpu), 0);
		assert_int_equal(lapic_create(cpu), 0);
		b->cpu[i] = b->svm.cpu[i] = cpu;
		wr(cpu, LAPIC_SVR, 0x1ff);
		wr(cpu, LAPIC_LDR, 1u << (24 + i));
	}
	forget(b);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct board *b = *state;

	for (unsigned i = 0; i < CPUS; i++) {
		lapic_destroy(b->cpu[i]);
		soft_tlb_fini(b->cpu[i]);
		free(b->cpu[i]);
	}
	fixture_destroy(b->f);
	free(b);
	return 0;
}

static void x2apic(struct soft_cpu *cpu)
{
	assert_true(lapic_write_base(cpu, BASE | X86_APIC_BASE_ENABLE | X86_APIC_BASE_X2APIC));
}

/* ---- registers ---------------------------------------------------------------------------------------- */

static void test_reset_values(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[2];

	lapic_reset(cpu);
	assert_int_equal(rd(cpu, LAPIC_ID), 2u << 24);
	assert_int_equal(rd(cpu, LAPIC_VERSION), 0x50014);
	assert_int_equal(rd(cpu, LAPIC_SVR), 0xff);
	assert_int_equal(rd(cpu, LAPIC_DFR), 0xffffffff);
	assert_int_equal(rd(cpu, LAPIC_LVT_LINT0), MASKED);
	/* while software-disabled an LVT cannot be unmasked */
	wr(cpu, LAPIC_LVT_LINT0, EXTINT);
	assert_int_equal(rd(cpu, LAPIC_LVT_LINT0), MASKED | EXTINT);
	assert_false(lapic_takes_extint(cpu));
	wr(cpu, LAPIC_SVR, 0x1ff);
	wr(cpu, LAPIC_LVT_LINT0, EXTINT);
	assert_true(lapic_takes_extint(cpu));
	wr(cpu, LAPIC_SVR, 0xff);
	assert_false(lapic_takes_extint(cpu));
	wr(cpu, LAPIC_ID, 0x55000000);
	assert_int_equal(rd(cpu, LAPIC_ID), 2u << 24);
}

static void test_odd_accesses(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[0];
	uint64_t value = 1;

	assert_false(lapic_mmio(cpu, BASE - 4, 4, false, &value));
	assert_false(lapic_mmio(cpu, BASE + 0x1000, 4, false, &value));
	assert_true(lapic_mmio(cpu, BASE + 0x30, 1, false, &value));
	assert_int_equal(value, 0);
	value = 0x20;
	assert_true(lapic_mmio(cpu, BASE + 0x80, 8, true, &value));
	assert_true(lapic_mmio(cpu, BASE + 0x81, 4, true, &value));
	assert_true(lapic_mmio(cpu, BASE + 0xffc, 4, true, &value));
	assert_int_equal(rd(cpu, LAPIC_TPR), 0);
	/* a reserved register: ESR bit 7, seen only after ESR is written */
	assert_int_equal(rd(cpu, 0x29), 0);
	assert_int_equal(rd(cpu, LAPIC_ESR), 0);
	wr(cpu, LAPIC_ESR, 0);
	assert_int_equal(rd(cpu, LAPIC_ESR), 0x80);
	wr(cpu, LAPIC_ESR, 0);
	assert_int_equal(rd(cpu, LAPIC_ESR), 0);
}

static void test_errors(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[0];

	wr(cpu, LAPIC_LVT_ERROR, 0xfe);
	ipi(cpu, 0x0f, 1);
	wr(cpu, LAPIC_ESR, 0);
	assert_int_equal(rd(cpu, LAPIC_ESR), 0x20);
	assert_int_equal(who(b, 0xfe), 1);
	assert_int_equal(who(b, 0x0f), 0);
	lapic_msi(&b->svm, &(struct msi){BASE, 0x05});
	wr(cpu, LAPIC_ESR, 0);
	assert_int_equal(rd(cpu, LAPIC_ESR), 0x40);
	assert_int_equal(who(b, 0xfe), 1);
	/* an error vector that is itself illegal */
	wr(cpu, LAPIC_LVT_ERROR, 3);
	ipi(cpu, 0x0f, 1);
	wr(cpu, LAPIC_ESR, 0);
	assert_int_equal(rd(cpu, LAPIC_ESR), 0x60);
}

/* ---- priorities and EOI ------------------------------------------------------------------------------- */

static void test_priorities(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[0];

	ipi(cpu, SELF | 0x35, 0);
	ipi(cpu, SELF | 0x52, 0);
	ipi(cpu, SELF | 0x51, 0);
	assert_true(requests(cpu) & REQ_INTR);
	take(cpu, 0x52);
	assert_int_equal(rd(cpu, LAPIC_PPR), 0x50);
	assert_int_equal(lapic_pending(cpu), -1); /* the same class waits */
	ipi(cpu, SELF | 0x60, 0);
	take(cpu, 0x60);
	requests(cpu);
	wr(cpu, LAPIC_EOI, 0);
	assert_int_equal(requests(cpu), 0); /* 0x51 cannot come in yet */
	wr(cpu, LAPIC_EOI, 0);
	assert_true(requests(cpu) & REQ_INTR);
	take(cpu, 0x51);
	wr(cpu, LAPIC_EOI, 0);
	wr(cpu, LAPIC_TPR, 0x30);
	assert_int_equal(lapic_pending(cpu), -1);
	assert_int_equal(rd(cpu, LAPIC_PPR), 0x30);
	requests(cpu);
	lapic_set_tpr(cpu, 0x2f);
	assert_true(requests(cpu) & REQ_INTR);
	take(cpu, 0x35);
	wr(cpu, LAPIC_EOI, 0);
	wr(cpu, LAPIC_EOI, 0); /* one too many does nothing */
	assert_int_equal(lapic_pending(cpu), -1);
	assert_int_equal(lapic_take_eoi(cpu), -1);
}

static void test_level_eoi(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[1];
	struct msi level = {BASE | 1 << 12, 0xc031}, edge = {BASE | 1 << 12, 0x4041};

	lapic_msi(&b->svm, &level);
	lapic_msi(&b->svm, &edge);
	assert_int_equal(rd(cpu, LAPIC_TMR + 1), 1u << 17);
	take(cpu, 0x41);
	wr(cpu, LAPIC_EOI, 0);
	assert_int_equal(lapic_take_eoi(cpu), -1);
	take(cpu, 0x31);
	requests(cpu);
	wr(cpu, LAPIC_EOI, 0);
	assert_true(requests(cpu) & REQ_INTR);
	assert_int_equal(lapic_take_eoi(cpu), 0x31);
	assert_int_equal(lapic_take_eoi(cpu), -1);
}

/* ---- destinations ------------------------------------------------------------------------------------- */

static void test_physical_and_shorthands(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[1];

	ipi(cpu, 0x40, 3);
	assert_int_equal(who(b, 0x40), 8);
	ipi(cpu, 0x40, 9);
	assert_int_equal(who(b, 0x40), 0);
	ipi(cpu, 0x40, 0xff);
	assert_int_equal(who(b, 0x40), 0xf);
	ipi(cpu, SELF | 0x40, 0);
	assert_int_equal(who(b, 0x40), 2);
	ipi(cpu, ALL | 0x40, 0);
	assert_int_equal(who(b, 0x40), 0xf);
	ipi(cpu, OTHERS | 0x40, 0);
	assert_int_equal(who(b, 0x40), 0xd);
	/* who is software-disabled takes none, but NMI */
	wr(b->cpu[3], LAPIC_SVR, 0xff);
	forget(b);
	ipi(cpu, OTHERS | 0x40, 0);
	assert_int_equal(who(b, 0x40), 5);
	forget(b);
	ipi(cpu, OTHERS | NMI, 0);
	assert_int_equal(who_asked(b, REQ_NMI), 0xd);
}

static void test_logical(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[0];
	static const uint32_t ldr[CPUS] = {0x01, 0x02, 0x11, 0x12};

	ipi(cpu, LOGICAL | 0x40, 0x0a);
	assert_int_equal(who(b, 0x40), 0xa);
	ipi(cpu, LOGICAL | 0x40, 0xff);
	assert_int_equal(who(b, 0x40), 0xf);
	for (unsigned i = 0; i < CPUS; i++) {
		wr(b->cpu[i], LAPIC_DFR, 0);
		wr(b->cpu[i], LAPIC_LDR, ldr[i] << 24);
	}
	assert_int_equal(rd(cpu, LAPIC_DFR), 0x0fffffff);
	ipi(cpu, LOGICAL | 0x40, 0x13);
	assert_int_equal(who(b, 0x40), 0xc);
	ipi(cpu, LOGICAL | 0x40, 0x02);
	assert_int_equal(who(b, 0x40), 2);
	ipi(cpu, LOGICAL | 0x40, 0xf1);
	assert_int_equal(who(b, 0x40), 5);
}

/* Lowest priority: one at a time, each in turn, never one that is disabled. */
static void test_lowest(void **state)
{
	struct board *b = *state;
	unsigned seen = 0;

	wr(b->cpu[2], LAPIC_SVR, 0xff);
	for (unsigned i = 0; i < 16; i++) {
		unsigned one;

		lapic_msi(&b->svm, &(struct msi){BASE | 0x0e << 12 | 1 << 2 | 1 << 3, 0x140});
		one = who(b, 0x40);
		assert_int_equal(__builtin_popcount(one), 1);
		seen |= one;
	}
	assert_int_equal(seen, 0xa);
	ipi(b->cpu[0], LOGICAL | LOWEST | 0x44, 0x01);
	assert_int_equal(who(b, 0x44), 1);
}

static void test_start_of_processors(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[0];

	forget(b);
	ipi(cpu, 0x8500, 1); /* INIT, level, de-assert */
	assert_int_equal(who_asked(b, REQ_INIT), 0);
	ipi(cpu, 0xc500, 1);
	assert_int_equal(who_asked(b, REQ_INIT), 2);
	ipi(cpu, OTHERS | SIPI | 0x9a, 0);
	assert_int_equal(atomic_load(&b->cpu[3]->sipi_vector), 0x9a);
	assert_int_equal(who_asked(b, REQ_SIPI), 0xe);
	/* a start message that comes before INIT is void */
	ipi(cpu, SIPI | 0x9b, 1);
	ipi(cpu, INIT, 1);
	assert_int_equal(requests(b->cpu[1]), REQ_INIT);
}

static void test_bad_messages(void **state)
{
	struct board *b = *state;

	forget(b);
	lapic_msi(&b->svm, &(struct msi){0xfed00000, 0x40});
	lapic_msi(&b->svm, &(struct msi){BASE | 0xff << 12, 0x640});  /* start-up */
	lapic_msi(&b->svm, &(struct msi){BASE | 0xff << 12, 0x240});  /* SMI */
	lapic_msi(&b->svm, &(struct msi){BASE | 0xff << 12, 0x340});  /* reserved */
	lapic_msi(&b->svm, &(struct msi){BASE | 0x77 << 12, 0x4040}); /* nobody */
	assert_int_equal(who(b, 0x40), 0);
	assert_int_equal(who_asked(b, ~0u), 0);
}

/* ---- x2APIC and the base ------------------------------------------------------------------------------ */

static void test_base(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[1];
	uint64_t value = 0;

	assert_false(lapic_write_base(cpu, BASE | 0x801));
	assert_false(lapic_write_base(cpu, 1ull << 46 | 0x800));
	assert_false(lapic_write_base(cpu, BASE | X86_APIC_BASE_X2APIC));
	assert_true(lapic_write_base(cpu, 0x12340000 | X86_APIC_BASE_ENABLE));
	assert_false(lapic_mmio(cpu, BASE + 0x30, 4, false, &value));
	assert_true(lapic_mmio(cpu, 0x12340030, 4, false, &value));
	assert_int_equal(value, 0x50014);
	/* off: INTR is the CPU's, nothing is taken, what there was is lost */
	ipi(b->cpu[0], 0x40, 1);
	assert_int_equal(lapic_pending(cpu), 0x40);
	assert_true(lapic_write_base(cpu, BASE));
	assert_int_equal(lapic_pending(cpu), -1);
	assert_true(lapic_takes_extint(cpu));
	ipi(b->cpu[0], NMI, 1);
	assert_int_equal(requests(cpu) & REQ_NMI, 0);
	assert_false(lapic_write_base(cpu, BASE | 0xc00));
	assert_true(lapic_write_base(cpu, BASE | 0x800));
	assert_int_equal(rd(cpu, LAPIC_SVR), 0xff);
	x2apic(cpu);
	assert_false(lapic_mmio(cpu, BASE + 0x30, 4, false, &value));
	assert_false(lapic_write_base(cpu, BASE | 0x800));
	assert_true(lapic_write_base(cpu, BASE));
	b->f->vm.x2apic = false;
	assert_true(lapic_write_base(cpu, BASE | 0x800));
	assert_false(lapic_write_base(cpu, BASE | 0xc00));
}

static void test_x2apic_registers(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[3];
	uint64_t value = 0;

	assert_false(lapic_rdmsr(cpu, 0x802, &value)); /* in xAPIC mode */
	x2apic(cpu);
	assert_true(lapic_rdmsr(cpu, 0x802, &value));
	assert_int_equal(value, 3);
	assert_true(lapic_rdmsr(cpu, 0x80d, &value));
	assert_int_equal(value, 8);
	assert_true(lapic_wrmsr(cpu, 0x808, 0x20));
	assert_int_equal(lapic_tpr(cpu), 0x20);
	assert_false(lapic_wrmsr(cpu, 0x808, 0x100));
	assert_false(lapic_wrmsr(cpu, 0x808, 1ull << 32));
	assert_false(lapic_wrmsr(cpu, 0x80b, 1));
	assert_true(lapic_wrmsr(cpu, 0x80b, 0));
	assert_false(lapic_wrmsr(cpu, 0x802, 3));
	assert_false(lapic_wrmsr(cpu, 0x80d, 8));
	assert_false(lapic_wrmsr(cpu, 0x832, 0x180));
	assert_false(lapic_rdmsr(cpu, 0x80b, &value));
	assert_false(lapic_rdmsr(cpu, 0x80e, &value));
	assert_false(lapic_rdmsr(cpu, 0x831, &value));
	assert_false(lapic_wrmsr(cpu, 0x831, 0));
	assert_false(lapic_rdmsr(cpu, 0x8ff, &value));
	assert_true(lapic_wrmsr(cpu, 0x83f, 0x71));
	assert_int_equal(who(b, 0x71), 8);
	assert_false(lapic_rdmsr(cpu, 0x83f, &value));
}

static void test_x2apic_ipi(void **state)
{
	struct board *b = *state;
	uint64_t value = 0;

	for (unsigned i = 0; i < CPUS; i++)
		x2apic(b->cpu[i]);
	assert_true(lapic_wrmsr(b->cpu[0], 0x830, 2ull << 32 | 0x40));
	assert_int_equal(who(b, 0x40), 4);
	assert_true(lapic_rdmsr(b->cpu[0], 0x830, &value));
	assert_int_equal(value, 2ull << 32 | 0x40);
	assert_true(lapic_wrmsr(b->cpu[0], 0x830, 0xffull << 32 | 0x40));
	assert_int_equal(who(b, 0x40), 0);
	assert_true(lapic_wrmsr(b->cpu[0], 0x830, 0xffffffffull << 32 | 0x40));
	assert_int_equal(who(b, 0x40), 0xf);
	assert_true(lapic_wrmsr(b->cpu[0], 0x830, 0x5ull << 32 | LOGICAL | 0x40));
	assert_int_equal(who(b, 0x40), 5);
	assert_true(lapic_wrmsr(b->cpu[0], 0x830, 0x10005ull << 32 | LOGICAL | 0x40));
	assert_int_equal(who(b, 0x40), 0);
	assert_false(lapic_wrmsr(b->cpu[0], 0x830, 0x2040));
	/* messages have eight bits of destination in any mode */
	lapic_msi(&b->svm, &(struct msi){BASE | 0xff << 12, 0x40});
	assert_int_equal(who(b, 0x40), 0xf);
}

/* ---- timer -------------------------------------------------------------------------------------------- */

static void test_one_shot(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[0];

	wr(cpu, LAPIC_LVT_TIMER, 0x40);
	wr(cpu, LAPIC_TDCR, 3); /* by 16 */
	wr(cpu, LAPIC_TMICT, 1000);
	assert_true(atomic_load(&cpu->requests) & REQ_TIMER);
	assert_int_equal(rd(cpu, LAPIC_TMCCT), 1000);
	run(b, 8000);
	assert_int_equal(rd(cpu, LAPIC_TMCCT), 500);
	assert_false(irr(cpu, 0x40));
	wr(cpu, LAPIC_TDCR, DIV_1); /* the count goes on at the new rate */
	assert_int_equal(rd(cpu, LAPIC_TMCCT), 500);
	run(b, 499);
	assert_false(irr(cpu, 0x40));
	run(b, 1);
	assert_true(irr(cpu, 0x40));
	assert_int_equal(rd(cpu, LAPIC_TMCCT), 0);
	who(b, 0x40);
	run(b, 100000);
	assert_false(irr(cpu, 0x40));
	/* stopped by a count of 0 */
	wr(cpu, LAPIC_TMICT, 1000);
	run(b, 10);
	wr(cpu, LAPIC_TMICT, 0);
	run(b, 100000);
	assert_false(irr(cpu, 0x40));
}

static void test_periodic(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[0];

	wr(cpu, LAPIC_TDCR, DIV_1);
	wr(cpu, LAPIC_LVT_TIMER, PERIODIC | 0x40);
	wr(cpu, LAPIC_TMICT, 1000000);
	for (unsigned i = 0; i < 5; i++) {
		run(b, 999999);
		assert_false(irr(cpu, 0x40));
		assert_int_equal(rd(cpu, LAPIC_TMCCT), 1);
		run(b, 1);
		assert_int_equal(who(b, 0x40), 1);
	}
	/* late: one interrupt, then in step again */
	run(b, 2500000);
	assert_int_equal(who(b, 0x40), 1);
	assert_int_equal(rd(cpu, LAPIC_TMCCT), 500000);
	run(b, 500000);
	assert_int_equal(who(b, 0x40), 1);
	/* masked: it counts on and interrupts no one */
	wr(cpu, LAPIC_LVT_TIMER, MASKED | PERIODIC | 0x40);
	run(b, 1000000);
	assert_int_equal(who(b, 0x40), 0);
	assert_int_equal(rd(cpu, LAPIC_TMCCT), 1000000);
}

static void test_deadline(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[0];
	uint64_t now = b->svm.time.frozen;

	cpu->tsc_offset = 5000000;
	assert_true(lapic_write_tsc_deadline(cpu, 1));
	assert_int_equal(cpu->msr.tsc_deadline, 0); /* not in that mode */
	wr(cpu, LAPIC_LVT_TIMER, DEADLINE | 0x40);
	wr(cpu, LAPIC_TMICT, 1000);
	assert_int_equal(rd(cpu, LAPIC_TMICT), 0);
	lapic_write_tsc_deadline(cpu, now + 5000000 + 3000);
	run(b, 2999);
	assert_false(irr(cpu, 0x40));
	assert_int_equal(cpu->msr.tsc_deadline, now + 5003000);
	run(b, 1);
	assert_int_equal(who(b, 0x40), 1);
	assert_int_equal(cpu->msr.tsc_deadline, 0);
	lapic_write_tsc_deadline(cpu, 1); /* long past */
	run(b, 0);
	assert_int_equal(who(b, 0x40), 1);
	lapic_write_tsc_deadline(cpu, UINT64_MAX);
	run(b, 1000);
	assert_int_equal(who(b, 0x40), 0);
	/* the TSC is set forward past it */
	cpu->tsc_offset = UINT64_MAX - b->svm.time.frozen;
	lapic_rearm(cpu);
	assert_int_equal(who(b, 0x40), 1);
	lapic_write_tsc_deadline(cpu, UINT64_MAX - 1);
	wr(cpu, LAPIC_LVT_TIMER, 0x40); /* leaving the mode disarms */
	assert_int_equal(cpu->msr.tsc_deadline, 0);
}

/* ---- LINT --------------------------------------------------------------------------------------------- */

static void test_lint0(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[0];

	wr(cpu, LAPIC_LVT_LINT0, EXTINT);
	forget(b);
	lapic_intr_changed(&b->svm, true);
	assert_int_equal(who_asked(b, REQ_INTR), 1);
	wr(cpu, LAPIC_LVT_LINT0, 0x55);
	lapic_intr_changed(&b->svm, false);
	assert_int_equal(who(b, 0x55), 0);
	lapic_intr_changed(&b->svm, true);
	assert_int_equal(who(b, 0x55), 1);
	wr(cpu, LAPIC_LVT_LINT0, NMI);
	forget(b);
	lapic_intr_changed(&b->svm, true);
	assert_int_equal(who_asked(b, REQ_NMI), 1);
}

/* ---- state -------------------------------------------------------------------------------------------- */

static void test_save_and_load(void **state)
{
	struct board *b = *state;
	struct soft_cpu *cpu = b->cpu[1];
	uint32_t page[256], again[256];

	wr(cpu, LAPIC_TDCR, DIV_1);
	wr(cpu, LAPIC_LVT_TIMER, PERIODIC | 0x40);
	wr(cpu, LAPIC_TMICT, 1000000);
	ipi(cpu, SELF | 0x80, 0);
	take(cpu, 0x80);
	lapic_msi(&b->svm, &(struct msi){BASE | 1 << 12, 0xc031});
	wr(cpu, LAPIC_TPR, 0x10);
	run(b, 400000);
	lapic_save(cpu, page);
	assert_int_equal(page[0x390 / 4], 600000);
	lapic_reset(cpu);
	run(b, 5000000);
	lapic_load(cpu, page);
	lapic_save(cpu, again);
	assert_memory_equal(page, again, sizeof(page));
	run(b, 599999);
	assert_false(irr(cpu, 0x40));
	run(b, 1);
	assert_true(irr(cpu, 0x40));
	wr(cpu, LAPIC_EOI, 0);
	take(cpu, 0x40);
	wr(cpu, LAPIC_EOI, 0);
	take(cpu, 0x31);
	wr(cpu, LAPIC_EOI, 0);
	assert_int_equal(lapic_take_eoi(cpu), 0x31);
	/* the register page is the same in x2APIC mode, but for the id */
	x2apic(cpu);
	lapic_save(cpu, page);
	assert_int_equal(page[0x20 / 4], 1);
	assert_int_equal(page[0xd0 / 4], 2);
}

/* Any page is taken, any access answered, and time goes on. */
static void test_hostile(void **state)
{
	struct board *b = *state;
	uint64_t seed = 42;
	uint32_t page[256];

	for (unsigned round = 0; round < 20000; round++) {
		uint64_t r = fixture_random(&seed), v = fixture_random(&seed);
		struct soft_cpu *cpu = b->cpu[r % CPUS];

		v >>= r >> 8 & 63;
		switch (r >> 4 & 15) {
		case 0:
			for (unsigned i = 0; i < 256; i++)
				page[i] = (uint32_t)fixture_random(&seed);
			lapic_load(cpu, page);
			break;
		case 1:
			lapic_msi(&b->svm, &(struct msi){BASE | (v & 0xfffff), (uint32_t)r});
			break;
		case 2:
			lapic_write_base(cpu, r >> 16 & 1 ? BASE | (v & 0xd00) : v);
			break;
		case 3:
			run(b, v & 0xfffff);
			break;
		case 4:
			if (lapic_pending(cpu) >= 0)
				take(cpu, lapic_pending(cpu));
			lapic_take_eoi(cpu);
			break;
		case 5:
			lapic_write_tsc_deadline(cpu, v);
			break;
		case 6 ... 8:
			lapic_wrmsr(cpu, 0x800 + (r >> 16 & 0xff), v);
			lapic_rdmsr(cpu, 0x800 + (r >> 24 & 0xff), &v);
			break;
		default:
			lapic_mmio(cpu, BASE + (r >> 16 & 0xff0), 1u << (r >> 32 & 3), r >> 40 & 1,
				   &v);
			lapic_mmio(cpu, BASE + (r >> 16 & 0xff0), 4, r >> 40 & 1, &v);
		}
		assert_true(lapic_pending(cpu) < 256);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_reset_values, setup, teardown),
		cmocka_unit_test_setup_teardown(test_odd_accesses, setup, teardown),
		cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
		cmocka_unit_test_setup_teardown(test_priorities, setup, teardown),
		cmocka_unit_test_setup_teardown(test_level_eoi, setup, teardown),
		cmocka_unit_test_setup_teardown(test_physical_and_shorthands, setup, teardown),
		cmocka_unit_test_setup_teardown(test_logical, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lowest, setup, teardown),
		cmocka_unit_test_setup_teardown(test_start_of_processors, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_messages, setup, teardown),
		cmocka_unit_test_setup_teardown(test_base, setup, teardown),
		cmocka_unit_test_setup_teardown(test_x2apic_registers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_x2apic_ipi, setup, teardown),
		cmocka_unit_test_setup_teardown(test_one_shot, setup, teardown),
		cmocka_unit_test_setup_teardown(test_periodic, setup, teardown),
		cmocka_unit_test_setup_teardown(test_deadline, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lint0, setup, teardown),
		cmocka_unit_test_setup_teardown(test_save_and_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
