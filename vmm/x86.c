/*
 * The canonical vCPU state: what RESET and SIPI leave.
 */
#include "vmm/x86.h"

#include <string.h>

#define LAPIC_VERSION 0x00050014 /* integrated, 6 LVT entries */
#define LVT_MASKED 0x10000
#define LVT_EXTINT 0x700
#define LVT_NMI 0x400
#define MISC_ENABLE_FAST_STRING 0x1
#define PAT_RESET 0x0007040600070406ull
#define MXCSR_RESET 0x1f80
#define FCW_RESET 0x0040 /* SDM vol. 3 table 9-1, after RESET (FNINIT gives 0x37f) */
#define XSAVE_LEGACY 512
#define XSAVE_HEADER 64

enum { /* index in the register page */
       LAPIC_ID = 0x20 / 4,
       LAPIC_VER = 0x30 / 4,
       LAPIC_DFR = 0xe0 / 4,
       LAPIC_SVR = 0xf0 / 4,
       LAPIC_LVT_CMCI = 0x2f0 / 4,
       LAPIC_LVT_TIMER = 0x320 / 4,
       LAPIC_LVT_THERMAL = 0x330 / 4,
       LAPIC_LVT_PERF = 0x340 / 4,
       LAPIC_LVT_LINT0 = 0x350 / 4,
       LAPIC_LVT_LINT1 = 0x360 / 4,
       LAPIC_LVT_ERROR = 0x370 / 4,
       LAPIC_LDR = 0xd0 / 4,
};

static void reset_lapic(uint32_t *lapic, unsigned apic_id, bool bsp)
{
	lapic[LAPIC_ID] = apic_id << 24;
	lapic[LAPIC_VER] = LAPIC_VERSION;
	lapic[LAPIC_DFR] = 0xffffffff;
	lapic[LAPIC_SVR] = 0xff;
	for (unsigned i = LAPIC_LVT_TIMER; i <= LAPIC_LVT_ERROR; i += 4)
		lapic[i] = LVT_MASKED;
	/* Virtual wire mode (MultiProcessor Specification 1.4, 3.6.2.2): what firmware leaves on the BSP,
	 * and what an operating system that only knows the PIC relies on. */
	if (bsp) {
		lapic[LAPIC_LVT_LINT0] = LVT_EXTINT;
		lapic[LAPIC_LVT_LINT1] = LVT_NMI;
	}
}

static void reset_segments(struct x86_state *state)
{
	const struct x86_seg data = {.limit = 0xffff, .attr = SEG_ATTR_P | SEG_ATTR_S | 3};

	for (unsigned i = 0; i < X86_SEGS; i++)
		state->seg[i] = data;
	state->seg[X86_CS].sel = 0xf000;
	state->seg[X86_CS].base = 0xffff0000;
	state->seg[X86_CS].attr = SEG_ATTR_P | SEG_ATTR_S | 0xb;
	state->ldtr = (struct x86_seg){.limit = 0xffff, .attr = SEG_ATTR_P | 2};
	state->tr = (struct x86_seg){.limit = 0xffff, .attr = SEG_ATTR_P | 0xb};
	state->gdtr.limit = 0xffff;
	state->idtr.limit = 0xffff;
}

static void reset_fpu(struct x86_state *state)
{
	const uint16_t fcw = FCW_RESET;
	const uint32_t mxcsr = MXCSR_RESET;

	state->xcr0 = 1;
	state->xsave_size = XSAVE_LEGACY + XSAVE_HEADER;
	memcpy(state->xsave, &fcw, sizeof(fcw));
	/* The abridged tag byte (SDM vol. 1, 10.5.1.1): all registers hold zeros, none is empty. */
	state->xsave[4] = 0xff;
	memcpy(state->xsave + 24, &mxcsr, sizeof(mxcsr));
	state->xsave[XSAVE_LEGACY] = 3; /* XSTATE_BV: x87 and SSE are in the area */
}

void x86_state_reset(struct x86_state *state, unsigned apic_id, bool bsp)
{
	memset(state, 0, sizeof(*state));
	state->rip = 0xfff0;
	state->rflags = X86_FL_FIXED;
	state->gpr[X86_RDX] = 0xf00;
	reset_segments(state);
	state->cr0 = X86_CR0_CD | X86_CR0_NW | X86_CR0_ET;
	state->dr[6] = 0xffff0ff0;
	state->dr[7] = 0x400;
	state->apic_base = 0xfee00000 | X86_APIC_BASE_ENABLE | (bsp ? X86_APIC_BASE_BSP : 0);
	state->msr.pat = PAT_RESET;
	state->msr.misc_enable = MISC_ENABLE_FAST_STRING;
	reset_lapic(state->lapic, apic_id, bsp);
	reset_fpu(state);
	state->activity = bsp ? X86_RUNNING : X86_WAIT_SIPI;
}

void x86_state_set_x2apic(struct x86_state *state, unsigned apic_id)
{
	state->apic_base |= X86_APIC_BASE_X2APIC;
	state->lapic[LAPIC_ID] = apic_id;
	/* SDM vol. 3, 11.12.10.2: cluster in the upper half, one bit of 16 in the lower */
	state->lapic[LAPIC_LDR] = (apic_id >> 4) << 16 | 1u << (apic_id & 15);
}

void x86_state_sipi(struct x86_state *state, uint8_t vector)
{
	struct x86_state old = *state;
	unsigned apic_id = old.apic_base & X86_APIC_BASE_X2APIC ? old.lapic[LAPIC_ID]
								: old.lapic[LAPIC_ID] >> 24;

	/* INIT: SDM vol. 3 table 9-1, third column; what it keeps is put back. */
	x86_state_reset(state, apic_id, false);
	state->cr0 = X86_CR0_ET | (old.cr0 & (X86_CR0_CD | X86_CR0_NW));
	state->msr = old.msr;
	state->xcr0 = old.xcr0;
	state->xsave_size = old.xsave_size;
	memcpy(state->xsave, old.xsave, sizeof(state->xsave));
	state->apic_base = old.apic_base;
	if (old.apic_base & X86_APIC_BASE_X2APIC)
		x86_state_set_x2apic(state, apic_id);
	state->rip = 0;
	state->seg[X86_CS].sel = (uint16_t)(vector << 8);
	state->seg[X86_CS].base = (uint64_t)vector << 12;
	state->activity = X86_RUNNING;
}
