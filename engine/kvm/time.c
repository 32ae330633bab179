/*
 * Guest time that stands still: the TSC by its offset, the LAPIC timer by its current count or deadline,
 * kvm-clock by KVM_SET_CLOCK. All vCPUs are outside KVM_RUN here.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <x86intrin.h>

#include "engine/kvm/kvm.h"

#define MSR_TSC 0x10
#define MSR_TSC_DEADLINE 0x6e0
#define LAPIC_LVT_TIMER 0x320
#define LAPIC_TMCCT 0x390
#define LVT_TIMER_MODE (3u << 17)
#define LVT_TIMER_DEADLINE (2u << 17)

static uint32_t lapic_get(const struct kvm_lapic_state *lapic, unsigned reg)
{
	uint32_t value;

	memcpy(&value, lapic->regs + reg, sizeof(value));
	return value;
}

static int tsc_offset(struct kvm_vcpu *kv, unsigned long request, uint64_t *offset)
{
	struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL,
				       .attr = KVM_VCPU_TSC_OFFSET,
				       .addr = (uint64_t)(uintptr_t)offset};

	return kvm_ioctl(kv->fd, request, &attr);
}

/* There are KVMs that take the attribute and do nothing. Where the host's TSC is unstable KVM moves the
 * offset a little at each call. (Writing MSR_TSC instead is second best: KVM takes a value within a second
 * of the one it expects for an attempt to synchronize, so shorter pauses are seen.) */
bool kvm_has_tsc_offset(struct kvm_vcpu *kv)
{
	uint64_t wanted = 0 - __rdtsc(), got = 0;

	return tsc_offset(kv, KVM_SET_DEVICE_ATTR, &wanted) == 0 &&
	       tsc_offset(kv, KVM_GET_DEVICE_ATTR, &got) == 0 &&
	       got - wanted + NS_PER_SEC < 2 * NS_PER_SEC;
}

static void vcpu_time_pause(struct kvm_vm *kvm, struct kvm_vcpu *kv, uint64_t host_tsc)
{
	struct kvm_lapic_state lapic;
	uint64_t offset;

	/* One reading of the host's TSC for all, so that they stay as far apart as they are. */
	if (kvm->tsc_offset && tsc_offset(kv, KVM_GET_DEVICE_ATTR, &offset) == 0)
		kv->tsc = host_tsc + offset;
	else
		kvm_get_msr(kv, MSR_TSC, &kv->tsc);
	if (kvm_get_msr(kv, MSR_TSC_DEADLINE, &kv->tsc_deadline) < 0)
		kv->tsc_deadline = 0;
	kv->tmcct = 0;
	if (kvm_ioctl(kv->fd, KVM_GET_LAPIC, &lapic) >= 0)
		kv->tmcct = lapic_get(&lapic, LAPIC_TMCCT);
}

void kvm_time_pause(struct vm *vm)
{
	struct kvm_vm *kvm = kvm_of(vm);
	struct kvm_clock_data clock = {.flags = 0};
	uint64_t host_tsc = __rdtsc();

	for (unsigned i = 0; i < vm->topology.cpus; i++)
		vcpu_time_pause(kvm, kvm_vcpu_of(&vm->vcpu[i]), host_tsc);
	if (kvm_ioctl(kvm->fd, KVM_GET_CLOCK, &clock) >= 0)
		kvm->clock_ns = clock.clock;
	kvm->time_paused = true;
}

/* Loading the page restarts the timer from the count in it and drops what fired in between. */
static void lapic_timer_resume(struct kvm_vcpu *kv)
{
	struct kvm_lapic_state lapic;

	if (kvm_ioctl(kv->fd, KVM_GET_LAPIC, &lapic) < 0)
		return;
	if ((lapic_get(&lapic, LAPIC_LVT_TIMER) & LVT_TIMER_MODE) == LVT_TIMER_DEADLINE) {
		if (kv->tsc_deadline)
			kvm_set_msr(kv, MSR_TSC_DEADLINE, kv->tsc_deadline);
	} else if (kv->tmcct) {
		memcpy(lapic.regs + LAPIC_TMCCT, &kv->tmcct, sizeof(kv->tmcct));
		kvm_ioctl(kv->fd, KVM_SET_LAPIC, &lapic);
	}
}

static void vcpu_time_resume(struct kvm_vm *kvm, struct kvm_vcpu *kv, uint64_t host_tsc)
{
	uint64_t offset = kv->tsc - host_tsc; /* the guest's TSC has the host's rate */

	if (!kvm->tsc_offset || tsc_offset(kv, KVM_SET_DEVICE_ATTR, &offset) < 0)
		kvm_set_msr(kv, MSR_TSC, kv->tsc);
	lapic_timer_resume(kv);
	/* Tells the guest's watchdog that it was stopped; EINVAL if it does not use kvm-clock. */
	kvm_ioctl_value(kv->fd, KVM_KVMCLOCK_CTRL, 0);
}

void kvm_time_resume(struct vm *vm)
{
	struct kvm_vm *kvm = kvm_of(vm);
	struct kvm_clock_data clock = {.clock = kvm->clock_ns};
	uint64_t host_tsc = __rdtsc();

	for (unsigned i = 0; i < vm->topology.cpus; i++)
		vcpu_time_resume(kvm, kvm_vcpu_of(&vm->vcpu[i]), host_tsc);
	kvm_ioctl(kvm->fd, KVM_SET_CLOCK, &clock);
	kvm->time_paused = false;
}
