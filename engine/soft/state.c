/* The canonical vCPU state to and from the soft engine's own. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/soft/fpu.h"
#include "engine/soft/lapic.h"
#include "engine/soft/soft.h"
#include "engine/soft/tlb.h"

static void events_from_cpu(const struct soft_cpu *cpu, struct x86_events *e)
{
	memset(e, 0, sizeof(*e));
	e->shadow_sti = cpu->shadow_sti;
	e->shadow_mov_ss = cpu->shadow_mov_ss;
	e->nmi_masked = cpu->nmi_masked;
	e->nmi_pending = cpu->nmi_pending;
	if (cpu->fault_pending) {
		e->exception_pending = true;
		e->exception_vector = cpu->fault.vector;
		e->exception_has_error = cpu->fault.has_error;
		e->exception_error = cpu->fault.error;
		e->exception_has_payload = cpu->fault.vector == X86_PF ||
					   cpu->fault.vector == X86_DB;
		e->exception_payload = cpu->fault.vector == X86_PF ? cpu->fault.cr2
								   : cpu->fault.dr6;
	}
}

void state_from_cpu(struct soft_cpu *cpu, struct x86_state *s)
{
	memset(s, 0, sizeof(*s));
	memcpy(s->gpr, cpu->gpr, sizeof(s->gpr));
	s->rip = cpu->rip;
	s->rflags = soft_rflags(cpu);
	memcpy(s->seg, cpu->seg, sizeof(s->seg));
	s->tr = cpu->tr;
	s->ldtr = cpu->ldtr;
	s->gdtr = cpu->gdtr;
	s->idtr = cpu->idtr;
	s->cr0 = cpu->cr0;
	s->cr2 = cpu->cr2;
	s->cr3 = cpu->cr3;
	s->cr4 = cpu->cr4;
	s->cr8 = lapic_tpr(cpu) >> 4;
	s->efer = cpu->efer;
	s->apic_base = cpu->apic_base;
	s->xcr0 = cpu->xcr0;
	memcpy(s->dr, cpu->dr, sizeof(s->dr));
	s->msr = cpu->msr;
	s->msr.tsc = soft_now(&cpu->svm->time) + cpu->tsc_offset;
	events_from_cpu(cpu, &s->events);
	s->activity = cpu->wait_sipi ? X86_WAIT_SIPI : cpu->halted ? X86_HALTED : X86_RUNNING;
	lapic_save(cpu, s->lapic);
	s->xsave_size = cpu->xsave_size;
	memcpy(s->xsave, cpu->xsave, cpu->xsave_size);
}

static bool state_possible(const struct soft_cpu *cpu, const struct x86_state *s)
{
	uint64_t xstate_bv;

	if ((s->cr0 & X86_CR0_PG) && !(s->cr0 & X86_CR0_PE))
		return false;
	if ((s->efer & X86_EFER_LMA) && !((s->cr0 & X86_CR0_PG) && (s->cr4 & X86_CR4_PAE)))
		return false;
	if ((s->rflags & X86_FL_VM) || s->xsave_size > sizeof(s->xsave) || s->xsave_size < 576)
		return false;
	memcpy(&xstate_bv, s->xsave + 512, sizeof(xstate_bv));
	return !(xstate_bv & ~cpu->xsave_mask) && !(s->xcr0 & ~cpu->xsave_mask) && (s->xcr0 & 1);
}

static uint32_t host_mxcsr_mask(void)
{
	uint8_t area[512] __attribute__((aligned(16)));

	__asm__ volatile("fxsave64 %0" : "=m"(area));
	return bytes_get32(area + FX_MXCSR_MASK);
}

/* The header beyond XSTATE_BV, reserved MXCSR bits and the bytes software may use would make XRSTOR fault. */
static void load_xsave(struct soft_cpu *cpu, const struct x86_state *s)
{
	memset(cpu->xsave, 0, sizeof(cpu->xsave));
	memcpy(cpu->xsave, s->xsave,
	       s->xsave_size < cpu->xsave_size ? s->xsave_size : cpu->xsave_size);
	bytes_set32(cpu->xsave + FX_MXCSR_MASK, host_mxcsr_mask());
	bytes_set32(cpu->xsave + FX_MXCSR,
		    bytes_get32(cpu->xsave + FX_MXCSR) & fpu_mxcsr_mask(cpu));
	memset(cpu->xsave + 520, 0, 56);
}

int state_to_cpu(struct soft_cpu *cpu, const struct x86_state *s)
{
	if (!state_possible(cpu, s))
		return -EINVAL;
	memcpy(cpu->gpr, s->gpr, sizeof(cpu->gpr));
	cpu->rip = s->rip;
	cpu->arith = s->rflags & ARITH_FLAGS;
	cpu->sysflags = s->rflags & ~(ARITH_FLAGS | X86_FL_FIXED);
	memcpy(cpu->seg, s->seg, sizeof(cpu->seg));
	cpu->tr = s->tr;
	cpu->ldtr = s->ldtr;
	cpu->gdtr = s->gdtr;
	cpu->idtr = s->idtr;
	cpu->cr0 = s->cr0;
	cpu->cr2 = s->cr2;
	cpu->cr3 = s->cr3;
	cpu->cr4 = s->cr4;
	cpu->efer = s->efer;
	cpu->apic_base = s->apic_base;
	cpu->xcr0 = s->xcr0;
	memcpy(cpu->dr, s->dr, sizeof(cpu->dr));
	cpu->msr = s->msr;
	cpu->tsc_offset = s->msr.tsc - soft_now(&cpu->svm->time);
	cpu->cpl = s->cr0 & X86_CR0_PE ? (s->seg[X86_SS].attr >> SEG_ATTR_DPL_SHIFT & 3) : 0;
	cpu->shadow_sti = s->events.shadow_sti;
	cpu->shadow_mov_ss = s->events.shadow_mov_ss;
	cpu->nmi_masked = s->events.nmi_masked;
	cpu->nmi_pending = s->events.nmi_pending;
	cpu->halted = s->activity == X86_HALTED;
	cpu->wait_sipi = s->activity == X86_WAIT_SIPI;
	cpu->fault_pending = s->events.exception_pending;
	if (cpu->fault_pending) {
		soft_raise(cpu, s->events.exception_vector & 31);
		cpu->fault.has_error = s->events.exception_has_error;
		cpu->fault.error = s->events.exception_error;
		cpu->fault.cr2 = cpu->fault.dr6 = s->events.exception_payload;
	}
	cpu->complete = NULL;
	soft_replay_clear(cpu);
	load_xsave(cpu, s);
	lapic_load(cpu, s->lapic);
	lapic_set_tpr(cpu, (uint8_t)(s->cr8 << 4));
	soft_debug_update(cpu);
	soft_update_mode(cpu);
	soft_tlb_flush_all(cpu, true);
	soft_tlb_switch(cpu, true);
	return 0;
}

/* INIT keeps MSRs, XCR0, the FPU and vector registers, CR0.CD and CR0.NW, and time. */
void state_init(struct soft_cpu *cpu)
{
	struct x86_state *s = aligned_alloc(64, sizeof(*s));
	uint64_t cr0 = cpu->cr0, base = cpu->apic_base, offset = cpu->tsc_offset;
	bool bsp = base & X86_APIC_BASE_BSP;

	if (!s)
		return; /* the INIT is lost; the guest sends another */
	state_from_cpu(cpu, s);
	x86_state_sipi(s, 0);
	s->cr0 = X86_CR0_ET | (cr0 & (X86_CR0_CD | X86_CR0_NW));
	s->apic_base = base;
	s->activity = bsp ? X86_RUNNING : X86_WAIT_SIPI;
	if (bsp) {
		s->rip = 0xfff0;
		s->seg[X86_CS].sel = 0xf000;
		s->seg[X86_CS].base = 0xffff0000;
	}
	state_to_cpu(cpu, s);
	cpu->tsc_offset = offset;
	free(s);
	lapic_reset(cpu);
}

void state_sipi(struct soft_cpu *cpu, uint8_t vector)
{
	cpu->wait_sipi = false;
	cpu->rip = 0;
	cpu->seg[X86_CS].sel = (uint16_t)(vector << 8);
	cpu->seg[X86_CS].base = (uint64_t)vector << 12;
	soft_update_mode(cpu);
}
