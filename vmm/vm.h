/*
 * The virtual machine: vCPUs, their threads and the run loop; memory, buses and interrupt lines hang off
 * it. A process could hold two: there is no other mutable state.
 *
 * Threads: one a vCPU, named "vcpuN", for the life of the VM; the event loop runs on the thread that
 * calls vm_run(). Requests (vm_request, vm_pause ...) come from anywhere.
 * Lock order: device, then interrupt controller, then engine.
 */
#ifndef VMM_VM_H
#define VMM_VM_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/config.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/spin.h"
#include "base/vclock.h"
#include "bus/io.h"
#include "bus/irq.h"
#include "vmm/cpuid.h"
#include "vmm/engine.h"
#include "vmm/exit.h"
#include "vmm/memory.h"

struct device;
struct pci_bus;
struct vm;

/* Why a VM ended, and skep's exit status. */
enum vm_end {
	VM_END_RESET = 0,
	VM_END_POWEROFF = 1,
	VM_END_HALT = 2,
	VM_END_TRIPLE_FAULT = 3, /* but with an empty IDT: that asks for VM_END_RESET */
	VM_END_ERROR = 4,
	VM_END_NONE = -1, /* it has not */
	/* A test device chose the exit status: it is the low byte of this value and the ones up to
	 * VM_END_STATUS_MAX. Whoever maps an end to an exit status takes `end & 0xff`. */
	VM_END_STATUS = 0x100,
	VM_END_STATUS_MAX = 0x1ff,
};

struct vcpu {
	struct vm *vm;
	unsigned index;
	unsigned apic_id; /* topology_apic_id() */
	pthread_t thread;
	void *engine_data;
	struct vm_exit exit;
	_Atomic uint64_t exits[EXIT_CODES]; /* counters; written by the vCPU's thread only */
	/* the rest is vm.c's */
	bool started;
	_Atomic(struct vcpu_job *) job;
	_Atomic int sipi; /* start vector sent by another vCPU (EXIT_SPINUP_AP), -1: none */
	bool spun_down;	  /* EXIT_SPINDOWN_CPU: waits for `sipi` */
};

/* The INTR pin of the PIC, as an engine sees it. */
struct extint {
	_Atomic bool level;
	/* INTA: the vector; spurious ones included. Takes the PIC's lock. */
	uint8_t (*acknowledge)(void *arg);
	void *arg;
};

struct vm {
	char name[64];
	struct config *config;
	struct log *log;
	struct loop *loop;
	struct vclock *clock;
	const struct engine *engine;
	void *engine_data;
	struct memory memory;
	struct topology topology;
	struct cpuid_table cpuid; /* the CPU model; fixed when the VM is made */
	uint64_t tsc_hz;
	struct vcpu vcpu[VCPUS_MAX]; /* the first topology.cpus are in use */

	struct io_bus pio, mmio;
	struct irq_router irq;
	struct extint extint;
	struct pci_bus *pci;
	/* EOI broadcast from the engine's local APICs to the I/O APIC; set by it. */
	void (*ioapic_eoi)(void *arg, uint8_t vector);
	void *ioapic_eoi_arg;
	/* Runs a command of skepctl's and prints its answer, on the loop thread; set by the control server. NULL:
	 * there are none. */
	void (*command)(void *arg, const char *line, FILE *out);
	void *command_arg;
	/* The power button; set by the PM block. False: the guest does not listen to it. */
	bool (*power_button)(void *arg);
	void *power_button_arg;

	struct device *devices; /* see vmm/device.h; in order of creation */

	/* Policies: vm_create() takes them from the keys x86.strictmsr, x86.strictio and x86.x2apic; the
	 * first two may be changed before vm_run(). */
	bool strict_msr; /* an unknown MSR is #GP (default); false: reads 0, writes dropped */
	bool strict_io;	 /* -e: an unclaimed port ends the VM */
	bool x2apic;	 /* local APICs start in x2APIC mode, and CPUID shows that they can */

	_Atomic uint64_t notifications; /* OUT to port 0x488 */
	struct spin_room spin_room;	/* of all its threads */

	struct vm_private *priv; /* vm.c's: requests, pause rendezvous, pins */
};

struct vm_options {
	const char *name;
	struct config *config; /* not owned */
	struct log *log;       /* not owned */
	const struct engine *engine;
	uint64_t memory_size;
	bool memory_wired, memory_in_core;
	struct topology topology;
};

/* A VM with memory, clock, loop, buses and one parked thread a vCPU, all vCPUs in reset. */
int vm_create(struct vm **out, const struct vm_options *options, struct error *err);
/* After vm_run() has returned, or without it. Destroys the devices too, last first. */
void vm_destroy(struct vm *vm);

/* Starts the vCPUs and runs the event loop until the VM has ended. Called once. */
enum vm_end vm_run(struct vm *vm);

/* Asks for the end of the VM; the first request counts. The calling vCPU executes no further
 * instruction. Any thread, under any lock. With ERROR the reason has been logged. */
void vm_request(struct vm *vm, enum vm_end end);
/* The same with an exit status of the caller's choice: for test devices. */
static inline void vm_request_status(struct vm *vm, uint8_t status)
{
	vm_request(vm, (enum vm_end)(VM_END_STATUS | status));
}
/* For the escapes of consoles (struct console_escape), `vm` being a struct vm: pulls the plug; runs a line of the prompt. */
static inline void vm_quit(void *vm)
{
	vm_request(vm, VM_END_POWEROFF);
}

static inline void vm_command(void *arg, const char *line, FILE *out)
{
	struct vm *vm = arg;

	if (vm->command)
		vm->command(vm->command_arg, line, out);
}

/* A reset that does not end the VM (vm->reboot_restarts): devices, memory map, boot image and vCPUs as at
 * start. Set by the machine; NULL: a reset ends the VM. Called on the loop thread, all vCPUs parked. */
void vm_set_restart(struct vm *vm, int (*restart)(void *arg, struct error *err), void *arg);

/* Parks all vCPUs outside vcpu_run() and stops the virtual clock, returns when that is so. Pauses nest.
 * Not from a vCPU thread. */
void vm_pause(struct vm *vm);
void vm_resume(struct vm *vm);
bool vm_paused(struct vm *vm);

/* Runs fn on a vCPU's own thread, outside vcpu_run(), and waits for it. Not from a vCPU thread. */
int vcpu_call(struct vcpu *vcpu, int (*fn)(struct vcpu *vcpu, void *arg), void *arg);
int vcpu_get_state(struct vcpu *vcpu, struct x86_state *state); /* by vcpu_call() */
int vcpu_set_state(struct vcpu *vcpu, const struct x86_state *state);

/* Lets a vCPU's thread run on these host CPUs only, before vm_run(). */
int vcpu_pin(struct vcpu *vcpu, const cpu_set_t *host_cpus, struct error *err);

/* Sends an MSI to the engine's local APICs. Any thread, under device locks. */
void vm_msi(struct vm *vm, uint64_t addr, uint32_t data);
/* A doorbell is there, or no longer: tells the engine. The register is on the bus all the while, and its handler does the
 * same. Any thread, under device locks. */
void vm_doorbell(struct vm *vm, const struct doorbell *bell, bool on);
/* The PIC's INTR output is now `level`: keeps vm->extint.level and tells the engine of a change. Called
 * by the PIC under its lock. */
void vm_extint_set(struct vm *vm, bool level);
/* What I/O APIC pin `pin` would send now, for the engine; NULL: nothing, the pin is masked. Called by the
 * I/O APIC under its lock. */
void vm_ioapic_route(struct vm *vm, unsigned pin, const struct msi *msi, bool level);

/* Registers for a person: skepctl regs, dumps. `state` may be NULL: read by vcpu_get_state(). */
void vcpu_print(struct vcpu *vcpu, const struct x86_state *state, FILE *out);
/* Every counter: exits by kind and vCPU, notifications, the engine's own. */
void vm_print_stats(struct vm *vm, FILE *out);

#endif
