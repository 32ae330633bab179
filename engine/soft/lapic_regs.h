/* The local APIC's registers and state: what q_lapic.c, lapic.c and the unit test share. */
#ifndef ENGINE_SOFT_LAPIC_REGS_H
#define ENGINE_SOFT_LAPIC_REGS_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/vclock.h"
#include "engine/soft/lapic.h"

/* Register N is at offset 0xN0 of the page and MSR 0x800 + N (SDM vol. 3 tables 11-1 and 11-6). */
enum lapic_reg {
	LAPIC_ID = 0x02,
	LAPIC_VERSION = 0x03,
	LAPIC_TPR = 0x08,
	LAPIC_APR = 0x09,
	LAPIC_PPR = 0x0a,
	LAPIC_EOI = 0x0b,
	LAPIC_RRD = 0x0c,
	LAPIC_LDR = 0x0d,
	LAPIC_DFR = 0x0e,
	LAPIC_SVR = 0x0f,
	LAPIC_ISR = 0x10, /* eight of each */
	LAPIC_TMR = 0x18,
	LAPIC_IRR = 0x20,
	LAPIC_ESR = 0x28,
	LAPIC_ICR = 0x30,
	LAPIC_ICR_HIGH = 0x31,
	LAPIC_LVT_TIMER = 0x32,
	LAPIC_LVT_THERMAL = 0x33,
	LAPIC_LVT_PERF = 0x34,
	LAPIC_LVT_LINT0 = 0x35,
	LAPIC_LVT_LINT1 = 0x36,
	LAPIC_LVT_ERROR = 0x37,
	LAPIC_TMICT = 0x38, /* timer: initial count, current count, divide configuration */
	LAPIC_TMCCT = 0x39,
	LAPIC_TDCR = 0x3e,
	LAPIC_SELF_IPI = 0x3f,
	LAPIC_REGS = 0x40
};

#define LAPIC_NEVER UINT64_MAX

enum lapic_mode { LAPIC_OFF, LAPIC_XAPIC, LAPIC_X2APIC };

struct soft_lapic {
	struct soft_cpu *cpu;
	/* Written by the vCPU's thread, but for IRR and TMR; senders on other threads read LDR, DFR, SVR and LVTs. */
	_Atomic uint32_t reg[LAPIC_REGS];
	_Atomic uint32_t mode;	 /* enum lapic_mode, follows cpu->apic_base */
	_Atomic uint32_t errors; /* since ESR was last written */
	_Atomic uint32_t turn;	 /* of lowest-priority arbitration; CPU 0's is the VM's */
	/* The rest is the vCPU's thread's. */
	uint32_t eoi[8];   /* level vectors whose EOI the monitor has not been told of */
	uint64_t deadline; /* one-shot, periodic: virtual time of the next expiry, 0: stopped */
	struct vtimer timer;
};

/* Expires the timer if it is due; the virtual time of the next expiry or LAPIC_NEVER. Quick, own thread. */
uint64_t lapic_timer_run(struct soft_lapic *lapic);

#endif
