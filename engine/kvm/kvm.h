/*
 * The kvm engine: Linux's KVM with a split irqchip. The local APICs, the TSC and kvm-clock live in the
 * kernel; PIC, PIT and I/O APIC are the monitor's. Documentation/virt/kvm/api.rst.
 *
 * Of what vmm/engine.h describes this engine leaves out nothing but EXIT_PAUSE, EXIT_SPINUP_AP and
 * EXIT_SPINDOWN_CPU, which stay in the kernel.
 */
#ifndef ENGINE_KVM_KVM_H
#define ENGINE_KVM_KVM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/vm.h"

#define KVM_CPUID_MAX 256 /* entries */

struct kvm_vm {
	int dev; /* /dev/kvm */
	int fd;
	int vcpu_mmap_size;
	unsigned vcpus_max;
	bool tsc_offset; /* KVM_VCPU_TSC_OFFSET works */
	bool exception_payload;
	uint32_t slots; /* memory slots in use */
	struct memory_region slot[MEMORY_REGIONS];

	pthread_mutex_t lock; /* routes */
	struct msi route[IOAPIC_PINS];
	bool routed[IOAPIC_PINS];

	/* between time_pause and time_resume */
	bool time_paused;
	uint64_t clock_ns; /* kvm-clock */

	_Atomic uint64_t kicks, extints, route_updates, doorbells;
};

struct kvm_vcpu {
	int fd;
	struct kvm_run *run;
	_Atomic bool in_run; /* in KVM_RUN, or about to look at run->immediate_exit */
	bool unfinished;     /* KVM_RUN has to complete an instruction */
	_Atomic bool step_wanted;
	bool single_step;
	int extint_vector; /* given by KVM_INTERRUPT, the guest not entered since; -1: none */
	/* what the guest's time stopped at; the vCPU's thread or all parked */
	uint64_t tsc;
	uint32_t tmcct; /* the LAPIC timer's current count */
	uint64_t tsc_deadline;
};

/* ioctl() with -errno. */
int kvm_ioctl(int fd, unsigned long request, void *arg);
int kvm_ioctl_value(int fd, unsigned long request, unsigned long value);

/* Opens /dev/kvm and looks for all that skep needs. The file descriptor, or -errno with text. */
int kvm_open(struct error *err);
/* An empty VM; -errno with text. */
int kvm_create_fd(int dev, struct error *err);

/* Room for so many entries, zeroed; free() it. */
struct kvm_cpuid2 *kvm_cpuid_alloc(unsigned entries);

int kvm_probe(const char **why, struct error *err);

static inline struct kvm_vm *kvm_of(struct vm *vm)
{
	return vm->engine_data;
}

static inline struct kvm_vcpu *kvm_vcpu_of(struct vcpu *vcpu)
{
	return vcpu->engine_data;
}

/* vcpu.c */
int kvm_vcpu_create(struct vcpu *vcpu, struct error *err);
void kvm_vcpu_destroy(struct vcpu *vcpu);
int kvm_vcpu_run(struct vcpu *vcpu, struct vm_exit *exit);
void kvm_vcpu_kick(struct vcpu *vcpu);
int kvm_vcpu_single_step(struct vcpu *vcpu, bool on);
enum vcpu_idle kvm_vcpu_idle(struct vcpu *vcpu);
/* Completes the exit in vcpu->exit without executing anything more. */
int kvm_vcpu_finish(struct vcpu *vcpu);
/* Installs the kick's handler, which does nothing; its signal number. */
int kvm_kick_signal(void);

/* exit.c */
void kvm_exit_decode(struct vcpu *vcpu, struct vm_exit *exit);
void kvm_exit_answer(struct vcpu *vcpu, const struct vm_exit *exit);
void kvm_exit_fail(struct vm_exit *exit, uint64_t reason, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* state.c */
int kvm_vcpu_get_state(struct vcpu *vcpu, struct x86_state *state);
int kvm_vcpu_set_state(struct vcpu *vcpu, const struct x86_state *state);
int kvm_get_msr(struct kvm_vcpu *kv, uint32_t index, uint64_t *value);
int kvm_set_msr(struct kvm_vcpu *kv, uint32_t index, uint64_t value);

/* irq.c */
void kvm_extint_changed(struct vm *vm);
/* Before KVM_RUN, on the vCPU's thread: gives an ExtINT that can be taken, or asks to be told. */
void kvm_extint_offer(struct vcpu *vcpu);
int kvm_msi_send(struct vm *vm, const struct msi *msi);
void kvm_ioapic_route(struct vm *vm, unsigned pin, const struct msi *msi, bool level);
void kvm_nmi_send(struct vcpu *vcpu);
int kvm_doorbell(struct vm *vm, const struct doorbell *bell, bool on);

/* time.c */
bool kvm_has_tsc_offset(struct kvm_vcpu *kv);
void kvm_time_pause(struct vm *vm);
void kvm_time_resume(struct vm *vm);

#endif
