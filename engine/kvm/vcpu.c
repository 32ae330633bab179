/*
 * A KVM vCPU: create, run, kick.
 *
 * A kick sets run->immediate_exit, which KVM_RUN looks at before it enters the guest, and, if the thread may
 * be past that look, sends it a signal whose handler does nothing: KVM_RUN returns EINTR either way. So
 * none is lost, and a vCPU that is outside KVM_RUN gets no signal.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/kvm/kvm.h"

#define FRAGMENTS_MAX 16 /* KVM cuts an MMIO access into pieces of 8 bytes; none is wider than 64 */

static void on_kick(int signo)
{
	(void)signo;
}

int kvm_kick_signal(void)
{
	struct sigaction action = {.sa_handler = on_kick, .sa_flags = SA_RESTART};

	sigemptyset(&action.sa_mask);
	return sigaction(SIGRTMIN, &action, NULL) < 0 ? -errno : SIGRTMIN;
}

static int set_cpuid(struct vcpu *vcpu, struct error *err)
{
	const struct cpuid_table *model = &vcpu->vm->cpuid;
	struct kvm_cpuid2 *buffer = kvm_cpuid_alloc(model->n);
	int r;

	if (!buffer)
		return error_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < model->n; i++) {
		const struct cpuid_leaf *leaf = &model->leaf[i];
		struct cpuid_regs regs = cpuid_for_vcpu(leaf, &vcpu->vm->topology, vcpu->apic_id);

		buffer->entries[i] = (struct kvm_cpuid_entry2){
			.function = leaf->leaf,
			.index = leaf->subleaf,
			.flags = leaf->indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
			.eax = regs.eax,
			.ebx = regs.ebx,
			.ecx = regs.ecx,
			.edx = regs.edx};
	}
	r = kvm_ioctl(kvm_vcpu_of(vcpu)->fd, KVM_SET_CPUID2, buffer);
	free(buffer);
	return r < 0 ? error_set(err, -r, "KVM refuses the CPU model: %s", strerror(-r)) : 0;
}

static void vcpu_free(struct kvm_vm *kvm, struct kvm_vcpu *kv)
{
	if (kv->run)
		munmap(kv->run, (size_t)kvm->vcpu_mmap_size);
	if (kv->fd >= 0)
		close(kv->fd);
	free(kv);
}

static int vcpu_open(struct vcpu *vcpu, struct kvm_vcpu *kv, struct error *err)
{
	struct kvm_vm *kvm = kvm_of(vcpu->vm);
	struct kvm_enable_cap enforce = {.cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = {1}};
	void *run;

	/* KVM takes its number for the APIC id. */
	kv->fd = kvm_ioctl_value(kvm->fd, KVM_CREATE_VCPU, vcpu->apic_id);
	if (kv->fd < 0)
		return error_set(err, -kv->fd, "KVM cannot make vCPU %u: %s", vcpu->index,
				 strerror(-kv->fd));
	run = mmap(NULL, (size_t)kvm->vcpu_mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, kv->fd,
		   0);
	if (run == MAP_FAILED)
		return error_set(err, errno, "cannot map vCPU %u: %s", vcpu->index,
				 strerror(errno));
	kv->run = run;
	if (vcpu->index == 0)
		kvm->tsc_offset = kvm_has_tsc_offset(kv);
	/* Paravirtual MSRs that CPUID does not show, and the canonical state does not carry, are #GP.
	 * Kernels before 5.10 lack that, and let a guest set them. */
	kvm_ioctl(kv->fd, KVM_ENABLE_CAP, &enforce);
	return set_cpuid(vcpu, err);
}

int kvm_vcpu_create(struct vcpu *vcpu, struct error *err)
{
	struct kvm_vcpu *kv = calloc(1, sizeof(*kv));
	sigset_t set;
	int r;

	if (!kv)
		return error_set(err, ENOMEM, "out of memory");
	kv->fd = -1;
	kv->extint_vector = -1;
	vcpu->engine_data = kv;
	r = vcpu_open(vcpu, kv, err);
	if (r) {
		vcpu_free(kvm_of(vcpu->vm), kv);
		vcpu->engine_data = NULL;
		return r;
	}
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	return 0;
}

void kvm_vcpu_destroy(struct vcpu *vcpu)
{
	vcpu_free(kvm_of(vcpu->vm), kvm_vcpu_of(vcpu));
	vcpu->engine_data = NULL;
}

void kvm_vcpu_kick(struct vcpu *vcpu)
{
	struct kvm_vcpu *kv = kvm_vcpu_of(vcpu);

	__atomic_store_n(&kv->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	if (!atomic_load(&kv->in_run))
		return;
	atomic_fetch_add_explicit(&kvm_of(vcpu->vm)->kicks, 1, memory_order_relaxed);
	pthread_kill(vcpu->thread, SIGRTMIN);
}

static int enter(struct kvm_vcpu *kv)
{
	int r;

	atomic_store(&kv->in_run, true);
	r = kvm_ioctl_value(kv->fd, KVM_RUN, 0);
	atomic_store(&kv->in_run, false);
	return r;
}

static int apply_single_step(struct kvm_vcpu *kv)
{
	bool wanted = atomic_load(&kv->step_wanted);
	struct kvm_guest_debug debug = {
		.control = wanted ? KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP : 0};

	if (wanted == kv->single_step)
		return 0;
	kv->single_step = wanted;
	return kvm_ioctl(kv->fd, KVM_SET_GUEST_DEBUG, &debug);
}

/* EINTR: a kick, or another signal. EAGAIN: a vCPU came out of wait-for-SIPI. */
static void interrupted(struct kvm_vcpu *kv, struct vm_exit *exit, int r)
{
	if (r == -EINTR)
		__atomic_exchange_n(&kv->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	exit->code = EXIT_BOGUS;
	exit->rip = 0;
	exit->inst_len = 0;
}

int kvm_vcpu_run(struct vcpu *vcpu, struct vm_exit *exit)
{
	struct kvm_vcpu *kv = kvm_vcpu_of(vcpu);
	int r = apply_single_step(kv);

	if (r < 0) {
		kvm_exit_fail(exit, 0, "KVM cannot single-step: %s", strerror(-r));
		return r;
	}
	if (kv->unfinished)
		kvm_exit_answer(vcpu, exit);
	kv->unfinished = false;
	kvm_extint_offer(vcpu);
	/* Tells a KVM_RUN that came back at once from one that entered the guest. */
	kv->run->exit_reason = KVM_EXIT_UNKNOWN;
	r = enter(kv);
	if (r != -EINTR || kv->run->exit_reason != KVM_EXIT_UNKNOWN)
		kv->extint_vector = -1;
	if (r == -EINTR || r == -EAGAIN) {
		interrupted(kv, exit, r);
		return 0;
	}
	if (r < 0) {
		kvm_exit_fail(exit, 0, "KVM_RUN: %s", strerror(-r));
		return r;
	}
	kvm_exit_decode(vcpu, exit);
	return 0;
}

int kvm_vcpu_finish(struct vcpu *vcpu)
{
	struct kvm_vcpu *kv = kvm_vcpu_of(vcpu);
	int r = 0;

	/* The run loop parks between instructions, so further pieces come only when the VM has ended in
	 * the midst of one; nobody will miss them. */
	for (unsigned i = 0; kv->unfinished && i < FRAGMENTS_MAX; i++) {
		kvm_exit_answer(vcpu, &vcpu->exit);
		kv->unfinished = false;
		__atomic_store_n(&kv->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		r = enter(kv);
		if (r >= 0)
			kvm_exit_decode(vcpu, &vcpu->exit);
	}
	return r == -EINTR ? 0 : r;
}

int kvm_vcpu_single_step(struct vcpu *vcpu, bool on)
{
	atomic_store(&kvm_vcpu_of(vcpu)->step_wanted, on);
	kvm_vcpu_kick(vcpu);
	return 0;
}

enum vcpu_idle kvm_vcpu_idle(struct vcpu *vcpu)
{
	struct kvm_vcpu *kv = kvm_vcpu_of(vcpu);
	struct kvm_mp_state mp;
	struct kvm_regs regs;

	if (kvm_ioctl(kv->fd, KVM_GET_MP_STATE, &mp) < 0)
		return IDLE_NO;
	if (mp.mp_state == KVM_MP_STATE_UNINITIALIZED || mp.mp_state == KVM_MP_STATE_INIT_RECEIVED)
		return IDLE_WAIT_SIPI;
	if (mp.mp_state != KVM_MP_STATE_HALTED || kvm_ioctl(kv->fd, KVM_GET_REGS, &regs) < 0)
		return IDLE_NO;
	return regs.rflags & X86_FL_IF ? IDLE_NO : IDLE_HALTED;
}
