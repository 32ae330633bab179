/* The local APIC, the part that is not quick: its timer on the virtual clock. See q_lapic.c. */
#include <errno.h>
#include <stdlib.h>

#include "engine/soft/lapic_regs.h"
#include "engine/soft/soft.h"

/* On the loop thread. All that follows from it is done on the vCPU's own, by lapic_rearm(). */
static void timer_expired(void *arg)
{
	soft_wake(arg, REQ_TIMER);
}

int lapic_create(struct soft_cpu *cpu)
{
	struct soft_lapic *lapic = calloc(1, sizeof(*lapic));

	if (!lapic)
		return -ENOMEM;
	lapic->cpu = cpu;
	vtimer_init(&lapic->timer, cpu->svm->vm->clock, timer_expired, cpu);
	cpu->lapic = lapic;
	cpu->apic_base = 0xfee00000 | X86_APIC_BASE_ENABLE;
	cpu->apic_page = 0xfee00000;
	atomic_store(&lapic->mode, LAPIC_XAPIC);
	lapic_reset(cpu);
	return 0;
}

void lapic_destroy(struct soft_cpu *cpu)
{
	if (!cpu->lapic)
		return;
	vtimer_destroy(&cpu->lapic->timer);
	free(cpu->lapic);
	cpu->lapic = NULL;
}

void lapic_rearm(struct soft_cpu *cpu)
{
	uint64_t next = lapic_timer_run(cpu->lapic);

	if (next == LAPIC_NEVER)
		vtimer_disarm(&cpu->lapic->timer);
	else
		vtimer_arm(&cpu->lapic->timer, next);
}
