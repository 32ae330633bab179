/*
 * The local APIC of the soft engine (SDM vol. 3 chapter 11, APM vol. 2 chapter 16): xAPIC and x2APIC, timer in
 * one-shot, periodic and TSC-deadline mode, all kinds of IPI, MSI in. No performance counter, thermal or CMCI
 * interrupts of its own: their LVT entries are registers only.
 *
 * Threads: registers are changed on the vCPU's own thread; others set bits in the request registers (IRR, NMI,
 * INIT, SIPI) with atomics and then call soft_wake(). The timer fires on the event-loop thread.
 * All of it is quick (q_lapic.c) but lapic_create, lapic_destroy and lapic_rearm (lapic.c), which arm the timer:
 * quick code that changes the timer posts REQ_TIMER, and the run loop calls lapic_rearm().
 */
#ifndef ENGINE_SOFT_LAPIC_H
#define ENGINE_SOFT_LAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/soft/cpu.h"
#include "vmm/engine.h"

int lapic_create(struct soft_cpu *cpu);
void lapic_destroy(struct soft_cpu *cpu);
/* Power-on: also INIT, but for the id. */
void lapic_reset(struct soft_cpu *cpu);

/* The register page, if gpa is in it and the APIC is in xAPIC mode: true when it took the access (of any size; what
 * is not an aligned 32-bit access reads as zero and writes nothing). */
bool lapic_mmio(struct soft_cpu *cpu, uint64_t gpa, unsigned size, bool write, uint64_t *value);
/* MSRs 0x800 to 0x8ff, in x2APIC mode. False: #GP. */
bool lapic_rdmsr(struct soft_cpu *cpu, uint32_t msr, uint64_t *value);
bool lapic_wrmsr(struct soft_cpu *cpu, uint32_t msr, uint64_t value);
/* IA32_APIC_BASE: mode changes as SDM vol. 3 figure 11-27 allows; false: #GP. Keeps cpu->apic_base. */
bool lapic_write_base(struct soft_cpu *cpu, uint64_t value);
bool lapic_write_tsc_deadline(struct soft_cpu *cpu, uint64_t tsc);

/* CR8. */
uint8_t lapic_tpr(const struct soft_cpu *cpu);
void lapic_set_tpr(struct soft_cpu *cpu, uint8_t tpr);

/* The vector of the interrupt that the CPU would take now (above TPR and what is in service), or -1. */
int lapic_pending(const struct soft_cpu *cpu);
/* Takes it: IRR to ISR. */
void lapic_accept(struct soft_cpu *cpu, uint8_t vector);
/* Does LINT0 take ExtINT here (or is the APIC off: then INTR is wired to the CPU)? */
bool lapic_takes_extint(const struct soft_cpu *cpu);

/* Any thread. */
void lapic_msi(struct soft_vm *svm, const struct msi *msi);
/* The PIC's INTR line, which is every LINT0, is now `level`. */
void lapic_intr_changed(struct soft_vm *svm, bool level);
/* An edge at LINT1, the NMI pin of a CPU whose APIC is off. Any thread. */
void lapic_nmi(struct soft_cpu *cpu);
/* An EOI of a level-triggered vector happened on this vCPU and the monitor is to hear of it: its vector, or -1; ask
 * until -1. Own thread. */
int lapic_take_eoi(struct soft_cpu *cpu);

/* The register page of struct x86_state, both ways. Own thread. */
void lapic_save(struct soft_cpu *cpu, uint32_t page[256]);
void lapic_load(struct soft_cpu *cpu, const uint32_t page[256]);
/* The timer follows guest time: on REQ_TIMER, after a resume, and after a change of cpu->tsc_offset. Own thread, or all
 * vCPUs parked. */
void lapic_rearm(struct soft_cpu *cpu);

/* soft.c: wakes a vCPU out of HLT or translated code; any thread. */
void soft_wake(struct soft_cpu *cpu, uint32_t request);

#endif
