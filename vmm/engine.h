/*
 * The seam between the monitor and what executes guest instructions. A device never includes this
 * header; an engine never knows a device.
 *
 * The engine owns the vCPUs' registers, the local APICs and the TSC (KVM's split irqchip is the model).
 * PIC, PIT, I/O APIC and all else are the monitor's. HLT, INIT and SIPI may be handled inside the
 * engine: a vCPU thread then simply stays in vcpu_run().
 *
 * Threads: vcpu_create, vcpu_destroy, vcpu_run, vcpu_get_state and vcpu_set_state are called on that
 * vCPU's own thread. The others may be called from any thread at any time, vCPUs running; they may be
 * called under device and interrupt-controller locks and take only the engine's own.
 */
#ifndef VMM_ENGINE_H
#define VMM_ENGINE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "vmm/cpuid.h"
#include "vmm/exit.h"
#include "vmm/memory.h"
#include "vmm/x86.h"

struct vm;
struct vcpu;

#define VCPUS_MAX 64
#define IOAPIC_PINS 24

struct msi {
	uint64_t addr; /* 0xFEExxxxx, destination and mode bits as on the bus */
	uint32_t data;
};

/* A register to which a write does nothing but add 1 to an eventfd. */
struct doorbell {
	uint64_t addr; /* of memory, or of a port */
	int fd;	       /* eventfd */
	uint16_t value;
	uint8_t size; /* bytes that are written, 0: however many */
	bool port;
	bool match; /* only if `value` is what is written; with a size */
};

/* What vcpu_idle() found: only the all-halted check uses it. */
enum vcpu_idle {
	IDLE_NO,	/* runs, or can be woken by an interrupt */
	IDLE_HALTED,	/* in HLT with IF=0 */
	IDLE_WAIT_SIPI, /* */
};

struct engine {
	const char *name;

	/* Can it run guests here? 0, or -errno with a text that says what is missing and what to do.
	 * -ETIME: it can, but so slowly that any other engine is better. `why`: one phrase for the start line
	 * ("hardware virtualization works"). Takes milliseconds. */
	int (*probe)(const char **why, struct error *err);

	int (*vm_create)(struct vm *vm,
			 struct error *err); /* vm->engine_data; memory is mapped later */
	void (*vm_destroy)(struct vm *vm);
	unsigned (*vcpus_max)(struct vm *vm);
	/* Every CPUID bit that this engine can show a guest on this host, and the rate of the guest's TSC.
	 * vm_create() makes vm->cpuid of it before the first vCPU. */
	int (*cpuid_supported)(struct vm *vm, struct cpuid_table *table, uint64_t *tsc_hz,
			       struct error *err);
	/* Makes a region of guest memory known, before any vCPU runs. */
	int (*memory_map)(struct vm *vm, const struct memory_region *region, struct error *err);
	/* Host writes to guest RAM; NULL if the engine need not know. */
	void (*host_write_begin)(struct vm *vm, uint64_t gpa, uint64_t len);
	void (*host_write_end)(struct vm *vm, uint64_t gpa, uint64_t len);
	/* Dirty log of a RAM region: on, off, and fetch-and-clear into a bitmap of one bit a page. */
	int (*dirty_log)(struct vm *vm, bool on);
	int (*dirty_fetch)(struct vm *vm, const struct memory_region *region, uint64_t *bitmap);

	int (*vcpu_create)(struct vcpu *vcpu, struct error *err); /* vcpu->engine_data */
	void (*vcpu_destroy)(struct vcpu *vcpu); /* undoes it; not called if vcpu_create() failed */
	/* Runs until something needs the monitor. 0, or -errno if the host failed (then *exit is EXIT_FAIL
	 * too). First it finishes what *exit, as left by the handler of the last one, asks for. */
	int (*vcpu_run)(struct vcpu *vcpu, struct vm_exit *exit);
	/* Makes a running or the next vcpu_run() return soon, with EXIT_BOGUS if there is nothing else.
	 * Signal-safe; never lost: a kick before vcpu_run() counts. */
	void (*vcpu_kick)(struct vcpu *vcpu);
	/* The whole state; the pending exit is finished first. */
	int (*vcpu_get_state)(struct vcpu *vcpu, struct x86_state *state);
	int (*vcpu_set_state)(struct vcpu *vcpu, const struct x86_state *state);
	enum vcpu_idle (*vcpu_idle)(struct vcpu *vcpu); /* on its own thread, outside vcpu_run() */
	/* Exit with EXIT_MTRAP after each instruction. */
	int (*vcpu_single_step)(struct vcpu *vcpu, bool on);

	/* The INTR output of the PIC (vm->extint.level) changed. A CPU whose LINT0 takes ExtINT fetches the
	 * vector by vm->extint.acknowledge when it can take it. */
	void (*extint_changed)(struct vm *vm);
	int (*msi_send)(struct vm *vm, const struct msi *msi);
	/* What I/O APIC pin `pin` would send now, so that EOIs of level-triggered pins exit. NULL: masked;
	 * an EOI of what it sent before still exits. */
	void (*ioapic_route)(struct vm *vm, unsigned pin, const struct msi *msi, bool level);
	/* An edge at the CPU's LINT1, which systems use for NMI; an engine may deliver an NMI whatever LINT1 says. */
	void (*nmi_send)(struct vcpu *vcpu);
	/* From now on, or no longer, the engine may do by itself what a write to the register does, so that it
	 * does not exit. What it does not do comes as an exit: NULL, or an error returned, is as good. */
	int (*doorbell)(struct vm *vm, const struct doorbell *bell, bool on);

	/* Guest time stands still from pause to resume (TSC, LAPIC timer, kvm-clock); every vCPU is outside
	 * vcpu_run() at both. A new VM is paused, and its first call is time_resume(). */
	void (*time_pause)(struct vm *vm);
	void (*time_resume)(struct vm *vm);

	/* "name value" lines of the engine's own counters; may be NULL. */
	void (*stats_print)(struct vm *vm, FILE *out);
};

extern const struct engine engine_kvm;
extern const struct engine engine_soft;

/* Chooses by `name`: "kvm", "soft" or "auto" (kvm if its probe passes, else soft, else one that is slow).
 * `why` gets the phrase for the start line. */
int engine_choose(const char *name, const struct engine **engine, char *why, size_t why_size,
		  struct error *err);

#endif
