/*
 * What vmm/vm.c (lifetime, threads, requests) and vmm/run.c (the run loop) share. Nobody else includes
 * this header.
 *
 * A vCPU's thread is either parked (in vm.c, waiting on `wake`) or in vcpu_loop(). It parks when
 * vcpu_must_park() says so; whoever makes that true kicks the vCPU afterwards, so it is never missed.
 */
#ifndef VMM_VM_PRIVATE_H
#define VMM_VM_PRIVATE_H

#include "vmm/vm.h"

struct vcpu_job {
	int (*fn)(struct vcpu *vcpu, void *arg);
	void *arg;
	int result;
	bool done;
};

struct vm_private {
	pthread_mutex_t lock;
	pthread_cond_t wake; /* vCPU threads: there may be something to do */
	pthread_cond_t told; /* the others: a vCPU parked, started or finished a job */
	_Atomic unsigned pauses;
	unsigned parked;   /* vCPU threads that wait on `wake`, under lock */
	bool time_stopped; /* under lock */
	_Atomic bool quit;
	_Atomic int end; /* enum vm_end */

	struct loop_event request;
	int (*restart)(void *arg, struct error *err);
	void *restart_arg;

	struct vtimer idle_timer;
	uint64_t idle_exits; /* exits of all vCPUs at the last look */

	struct io_range notify;
	unsigned threads; /* vCPU threads that were made */
	bool buses_made, request_made, notify_added, engine_made;
};

static inline bool vm_ended(struct vm *vm)
{
	return atomic_load(&vm->priv->end) != VM_END_NONE;
}

/* The vCPU may not execute another guest instruction. */
static inline bool vcpu_must_stop(struct vcpu *vcpu)
{
	return vm_ended(vcpu->vm) || atomic_load(&vcpu->vm->priv->quit);
}

/* The vCPU is to come back to its thread's main loop at the next boundary. */
static inline bool vcpu_must_park(struct vcpu *vcpu)
{
	return vcpu_must_stop(vcpu) || atomic_load(&vcpu->vm->priv->pauses) != 0 ||
	       atomic_load(&vcpu->job) != NULL;
}

/* Runs the guest until vcpu_must_park() or the vCPU waits for a SIPI that the monitor delivers. */
void vcpu_loop(struct vcpu *vcpu);

/* Prints why the run loop gave up: exit fields, registers, the code at RIP. On the vCPU's thread. */
void vcpu_dump(struct vcpu *vcpu);
void exit_print(const struct vm_exit *exit, FILE *out);

#endif
