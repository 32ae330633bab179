/*
 * The VM's lifetime: its parts, one thread a vCPU, requests from anywhere, the pause rendezvous and the
 * look for a VM in which every vCPU has halted.
 */
#include "vmm/vm.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/device.h"
#include "vmm/vm_private.h"

#define NOTIFY_PORT 0x488
#define PIO_LIMIT 0xffff
#define MMIO_LIMIT ((1ull << 52) - 1) /* the architecture's widest physical address */
#define IDLE_PERIOD NS_PER_SEC

/* ---- vCPU threads ---- */

/* Called with the lock held; drops it while the job runs. */
static void vcpu_run_job(struct vcpu *vcpu)
{
	struct vm_private *priv = vcpu->vm->priv;
	struct vcpu_job *job = atomic_load(&vcpu->job);
	int result;

	pthread_mutex_unlock(&priv->lock);
	result = job->fn(vcpu, job->arg);
	pthread_mutex_lock(&priv->lock);
	job->result = result;
	job->done = true;
	atomic_store(&vcpu->job, NULL);
	pthread_cond_broadcast(&priv->told);
}

/* Waits for a reason to run guest code; false: the thread is to end. Called with the lock held. */
static bool vcpu_park(struct vcpu *vcpu)
{
	struct vm_private *priv = vcpu->vm->priv;

	for (;;) {
		if (atomic_load(&vcpu->job)) {
			vcpu_run_job(vcpu);
		} else if (atomic_load(&priv->quit)) {
			return false;
		} else if (!vcpu_must_park(vcpu) &&
			   (!vcpu->spun_down || atomic_load(&vcpu->sipi) >= 0)) {
			return true;
		} else {
			priv->parked++;
			pthread_cond_broadcast(&priv->told);
			pthread_cond_wait(&priv->wake, &priv->lock);
			priv->parked--;
		}
	}
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *vcpu = arg;
	struct vm_private *priv = vcpu->vm->priv;
	char name[16];

	snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
	pthread_setname_np(pthread_self(), name);
	io_thread_enter();
	pthread_mutex_lock(&priv->lock);
	while (vcpu_park(vcpu)) {
		pthread_mutex_unlock(&priv->lock);
		vcpu_loop(vcpu);
		pthread_mutex_lock(&priv->lock);
	}
	pthread_mutex_unlock(&priv->lock);
	if (vcpu->started)
		vcpu->vm->engine->vcpu_destroy(vcpu);
	io_thread_leave();
	return NULL;
}

int vcpu_call(struct vcpu *vcpu, int (*fn)(struct vcpu *vcpu, void *arg), void *arg)
{
	struct vm_private *priv = vcpu->vm->priv;
	struct vcpu_job job = {.fn = fn, .arg = arg};

	pthread_mutex_lock(&priv->lock);
	while (atomic_load(&vcpu->job))
		pthread_cond_wait(&priv->told, &priv->lock);
	atomic_store(&vcpu->job, &job);
	pthread_cond_broadcast(&priv->wake);
	if (vcpu->started)
		vcpu->vm->engine->vcpu_kick(vcpu);
	while (!job.done)
		pthread_cond_wait(&priv->told, &priv->lock);
	pthread_mutex_unlock(&priv->lock);
	return job.result;
}

static int vcpu_create_job(struct vcpu *vcpu, void *arg)
{
	int r = vcpu->vm->engine->vcpu_create(vcpu, arg);

	vcpu->started = r == 0;
	return r;
}

static int vcpu_get_job(struct vcpu *vcpu, void *arg)
{
	return vcpu->vm->engine->vcpu_get_state(vcpu, arg);
}

static int vcpu_set_job(struct vcpu *vcpu, void *arg)
{
	vcpu->spun_down = false;
	atomic_store(&vcpu->sipi, -1);
	return vcpu->vm->engine->vcpu_set_state(vcpu, arg);
}

int vcpu_get_state(struct vcpu *vcpu, struct x86_state *state)
{
	return vcpu_call(vcpu, vcpu_get_job, state);
}

int vcpu_set_state(struct vcpu *vcpu, const struct x86_state *state)
{
	return vcpu_call(vcpu, vcpu_set_job, (void *)state);
}

int vcpu_pin(struct vcpu *vcpu, const cpu_set_t *host_cpus, struct error *err)
{
	int r = pthread_setaffinity_np(vcpu->thread, sizeof(*host_cpus), host_cpus);

	if (r == EINVAL)
		return error_set(
			err, r,
			"cannot pin vCPU %u: the host CPUs do not exist or this process may "
			"not use them (see taskset -p $$)",
			vcpu->index);
	if (r)
		return error_set(err, r, "cannot pin vCPU %u: %s", vcpu->index, strerror(r));
	return 0;
}

/* All signals are for the event loop, except those that the CPU raises and what an engine unblocks. */
static int vcpu_start_thread(struct vcpu *vcpu, struct error *err)
{
	sigset_t set, old;
	int r;

	sigfillset(&set);
	sigdelset(&set, SIGSEGV);
	sigdelset(&set, SIGBUS);
	sigdelset(&set, SIGFPE);
	sigdelset(&set, SIGILL);
	sigdelset(&set, SIGTRAP);
	pthread_sigmask(SIG_SETMASK, &set, &old);
	r = pthread_create(&vcpu->thread, NULL, vcpu_thread, vcpu);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return error_set(err, r, "cannot make a thread for vCPU %u: %s", vcpu->index,
				 strerror(r));
	vcpu->vm->priv->threads++;
	return 0;
}

static int vcpu_start(struct vcpu *vcpu, struct error *err)
{
	struct x86_state *state;
	int r = vcpu_start_thread(vcpu, err);

	if (r)
		return r;
	r = vcpu_call(vcpu, vcpu_create_job, err);
	if (r)
		return r;
	state = aligned_alloc(64, sizeof(*state));
	if (!state)
		return error_set(err, ENOMEM, "out of memory");
	x86_state_reset(state, vcpu->apic_id, vcpu->index == 0);
	if (vcpu->vm->x2apic)
		x86_state_set_x2apic(state, vcpu->apic_id);
	r = vcpu_set_state(vcpu, state);
	free(state);
	if (r)
		return error_set(err, -r, "the %s engine refused the reset state of vCPU %u: %s",
				 vcpu->vm->engine->name, vcpu->index, strerror(-r));
	return 0;
}

/* ---- requests ---- */

static void vm_kick_all(struct vm *vm)
{
	for (unsigned i = 0; i < vm->topology.cpus; i++) {
		if (vm->vcpu[i].started)
			vm->engine->vcpu_kick(&vm->vcpu[i]);
	}
}

void vm_request(struct vm *vm, enum vm_end end)
{
	_Atomic int *now = &vm->priv->end;
	int before = VM_END_NONE;

	/* A reset that restarts ends nothing, so what does end the VM goes before it. */
	if (!atomic_compare_exchange_strong(now, &before, end) &&
	    !(before == VM_END_RESET && vm->priv->restart &&
	      atomic_compare_exchange_strong(now, &before, end)))
		return;
	vm_kick_all(vm);
	loop_event_post(&vm->priv->request);
}

void vm_set_restart(struct vm *vm, int (*restart)(void *arg, struct error *err), void *arg)
{
	vm->priv->restart = restart;
	vm->priv->restart_arg = arg;
}

/* On the loop thread, after one or more vm_request(). */
static void vm_take_request(void *arg)
{
	struct vm *vm = arg;
	struct vm_private *priv = vm->priv;
	struct error err = {.text = ""};
	int r = -ECANCELED, reset = VM_END_RESET;

	/* Two resets at once: the restart for the first was for both. */
	if (!vm_ended(vm))
		return;
	if (atomic_load(&priv->end) == VM_END_RESET && priv->restart) {
		vm_pause(vm);
		r = priv->restart(priv->restart_arg, &err);
		if (r)
			log_error(vm->log, "the VM cannot restart: %s", err.text);
		if (!atomic_compare_exchange_strong(&priv->end, &reset,
						    r ? VM_END_ERROR : VM_END_NONE))
			r = -ECANCELED; /* a request to end came while it restarted */
		vm_resume(vm);
	}
	if (r)
		loop_stop(vm->loop);
}

void vm_pause(struct vm *vm)
{
	struct vm_private *priv = vm->priv;

	pthread_mutex_lock(&priv->lock);
	atomic_fetch_add(&priv->pauses, 1);
	vm_kick_all(vm);
	while (priv->parked < priv->threads)
		pthread_cond_wait(&priv->told, &priv->lock);
	if (!priv->time_stopped) {
		priv->time_stopped = true;
		vclock_pause(vm->clock);
		vm->engine->time_pause(vm);
	}
	pthread_mutex_unlock(&priv->lock);
}

void vm_resume(struct vm *vm)
{
	struct vm_private *priv = vm->priv;

	pthread_mutex_lock(&priv->lock);
	if (atomic_load(&priv->pauses) == 1) {
		priv->time_stopped = false;
		vm->engine->time_resume(vm);
		vclock_resume(vm->clock);
	}
	atomic_fetch_sub(&priv->pauses, 1);
	pthread_cond_broadcast(&priv->wake);
	pthread_mutex_unlock(&priv->lock);
}

bool vm_paused(struct vm *vm)
{
	return atomic_load(&vm->priv->pauses) != 0;
}

void vm_msi(struct vm *vm, uint64_t addr, uint32_t data)
{
	const struct msi msi = {.addr = addr, .data = data};

	vm->engine->msi_send(vm, &msi);
}

void vm_doorbell(struct vm *vm, const struct doorbell *bell, bool on)
{
	if (vm->engine->doorbell)
		vm->engine->doorbell(vm, bell, on);
}

/* ---- all vCPUs halted ---- */

static int vcpu_idle_job(struct vcpu *vcpu, void *arg)
{
	(void)arg;
	return vcpu->spun_down ? IDLE_WAIT_SIPI : (int)vcpu->vm->engine->vcpu_idle(vcpu);
}

static bool vm_all_idle(struct vm *vm)
{
	for (unsigned i = 0; i < vm->topology.cpus; i++) {
		if (vcpu_call(&vm->vcpu[i], vcpu_idle_job, NULL) == IDLE_NO)
			return false;
	}
	return true;
}

/* Exits that a guest caused; a kick says nothing of it. */
static uint64_t vm_exits(struct vm *vm)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < vm->topology.cpus; i++) {
		for (unsigned code = 0; code < EXIT_CODES; code++) {
			if (code != EXIT_BOGUS)
				sum += atomic_load_explicit(&vm->vcpu[i].exits[code],
							    memory_order_relaxed);
		}
	}
	return sum;
}

/* Once a second. HLT, INIT and SIPI stay in the engine, so one has to look; while something exits there
 * is no need to. The first vCPU that can be woken ends the look, so an idle VM costs one kick a second.
 * What was seen with vCPUs running is looked at again with all of them parked. */
static void vm_look_for_halt(void *arg)
{
	struct vm *vm = arg;
	struct vm_private *priv = vm->priv;

	if (vm_ended(vm))
		return;
	if (vm_exits(vm) == priv->idle_exits && vm_all_idle(vm)) {
		vm_pause(vm);
		if (vm_all_idle(vm))
			vm_request(vm, VM_END_HALT);
		vm_resume(vm);
	}
	priv->idle_exits = vm_exits(vm);
	vtimer_arm(&priv->idle_timer, vclock_now(vm->clock) + IDLE_PERIOD);
}

/* ---- life ---- */

static void notify_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct vm *vm = arg;

	(void)offset;
	(void)size;
	(void)value;
	atomic_fetch_add_explicit(&vm->notifications, 1, memory_order_relaxed);
}

static const struct io_ops notify_ops = {.sizes = IO_1, .write = notify_write};

static int vm_create_buses(struct vm *vm, struct error *err)
{
	struct vm_private *priv = vm->priv;
	int r = io_bus_init(&vm->pio, "port", PIO_LIMIT);

	if (r)
		return error_set(err, -r, "out of memory");
	r = io_bus_init(&vm->mmio, "memory", MMIO_LIMIT);
	if (r) {
		io_bus_destroy(&vm->pio);
		return error_set(err, -r, "out of memory");
	}
	irq_router_init(&vm->irq);
	priv->buses_made = true;
	/* One port: a wider OUT is one notification, whatever its size. */
	priv->notify = (struct io_range){.name = "notification",
					 .base = NOTIFY_PORT,
					 .size = 1,
					 .ops = &notify_ops,
					 .arg = vm};
	r = io_range_add(&vm->pio, &priv->notify, err);
	priv->notify_added = r == 0;
	return r;
}

static int vm_create_policies(struct vm *vm, struct error *err)
{
	int r;

	vm->strict_msr = true;
	if (!vm->config)
		return 0;
	r = config_get_bool(vm->config, "x86.strictmsr", true, &vm->strict_msr, err);
	if (!r)
		r = config_get_bool(vm->config, "x86.strictio", false, &vm->strict_io, err);
	if (!r)
		r = config_get_bool(vm->config, "x86.x2apic", false, &vm->x2apic, err);
	return r;
}

static int vm_create_engine(struct vm *vm, struct error *err)
{
	struct cpuid_table supported = {.n = 0};
	int r = vm->engine->vm_create(vm, err);

	if (r)
		return r;
	vm->priv->engine_made = true;
	if (vm->topology.cpus > vm->engine->vcpus_max(vm))
		return error_set(err, EINVAL,
				 "%u vCPUs are too many: the %s engine has at most %u here",
				 vm->topology.cpus, vm->engine->name, vm->engine->vcpus_max(vm));
	r = vm->engine->cpuid_supported(vm, &supported, &vm->tsc_hz, err);
	if (r)
		return r;
	cpuid_model_build(&vm->cpuid, &supported, &vm->topology, vm->x2apic, vm->tsc_hz);
	return 0;
}

static int vm_create_parts(struct vm *vm, const struct vm_options *options, struct error *err)
{
	struct vm_private *priv = vm->priv;
	int r = vm_create_policies(vm, err);

	if (!r)
		r = loop_create(&vm->loop, err);
	if (!r)
		r = loop_event_init(vm->loop, &priv->request, vm_take_request, vm, err);
	if (r)
		return r;
	priv->request_made = true;
	r = vclock_create(&vm->clock, vm->loop, err);
	if (r)
		return r;
	vtimer_init(&priv->idle_timer, vm->clock, vm_look_for_halt, vm);
	r = vm_create_buses(vm, err);
	if (!r)
		r = vm_create_engine(vm, err);
	if (!r)
		r = memory_create(&vm->memory, vm, options->memory_size, options->memory_wired,
				  options->memory_in_core, err);
	for (unsigned i = 0; !r && i < vm->memory.nregions; i++)
		r = vm->engine->memory_map(vm, &vm->memory.region[i], err);
	for (unsigned i = 0; !r && i < vm->topology.cpus; i++)
		r = vcpu_start(&vm->vcpu[i], err);
	return r;
}

int vm_create(struct vm **out, const struct vm_options *options, struct error *err)
{
	const struct topology *topology = &options->topology;
	struct vm *vm;
	int r;

	if (topology->cpus == 0 || topology->cpus > VCPUS_MAX)
		return error_set(err, EINVAL, "%u vCPUs: 1 to %u are possible", topology->cpus,
				 VCPUS_MAX);
	vm = calloc(1, sizeof(*vm));
	if (vm)
		vm->priv = calloc(1, sizeof(*vm->priv));
	if (!vm || !vm->priv) {
		free(vm);
		return error_set(err, ENOMEM, "out of memory");
	}
	snprintf(vm->name, sizeof(vm->name), "%s", options->name);
	vm->config = options->config;
	vm->log = options->log;
	vm->engine = options->engine;
	spin_room_init(&vm->spin_room);
	vm->topology = *topology;
	vm->memory.fd = -1;
	for (unsigned i = 0; i < topology->cpus; i++) {
		vm->vcpu[i].vm = vm;
		vm->vcpu[i].index = i;
		vm->vcpu[i].apic_id = topology_apic_id(topology, i);
		atomic_init(&vm->vcpu[i].sipi, -1);
	}
	pthread_mutex_init(&vm->priv->lock, NULL);
	pthread_cond_init(&vm->priv->wake, NULL);
	pthread_cond_init(&vm->priv->told, NULL);
	atomic_init(&vm->priv->end, VM_END_NONE);
	atomic_init(&vm->priv->pauses, 1); /* vm_run() resumes */
	vm->priv->time_stopped = true;
	r = vm_create_parts(vm, options, err);
	if (r) {
		vm_destroy(vm);
		return r;
	}
	*out = vm;
	return 0;
}

static void vm_destroy_threads(struct vm *vm)
{
	struct vm_private *priv = vm->priv;

	if (!priv) /* gcc cannot tell that it is never so */
		return;
	pthread_mutex_lock(&priv->lock);
	atomic_store(&priv->quit, true);
	pthread_cond_broadcast(&priv->wake);
	pthread_mutex_unlock(&priv->lock);
	for (unsigned i = 0; i < priv->threads; i++)
		pthread_join(vm->vcpu[i].thread, NULL);
}

void vm_destroy(struct vm *vm)
{
	struct vm_private *priv;
	struct device *last;

	if (!vm)
		return;
	priv = vm->priv;
	while (vm->devices) {
		for (last = vm->devices; last->next; last = last->next)
			;
		device_destroy(last);
	}
	vm_destroy_threads(vm);
	if (vm->clock)
		vtimer_destroy(&priv->idle_timer);
	if (priv->engine_made)
		vm->engine->vm_destroy(vm);
	memory_destroy(&vm->memory);
	if (priv->buses_made) {
		if (priv->notify_added)
			io_range_del(&vm->pio, &priv->notify);
		io_bus_destroy(&vm->pio);
		io_bus_destroy(&vm->mmio);
		irq_router_destroy(&vm->irq);
	}
	if (vm->clock)
		vclock_destroy(vm->clock);
	if (priv->request_made)
		loop_event_destroy(&priv->request);
	if (vm->loop)
		loop_destroy(vm->loop);
	pthread_cond_destroy(&priv->told);
	pthread_cond_destroy(&priv->wake);
	pthread_mutex_destroy(&priv->lock);
	free(priv);
	free(vm);
}

enum vm_end vm_run(struct vm *vm)
{
	struct vm_private *priv = vm->priv;
	int r;

	vtimer_arm(&priv->idle_timer, vclock_now(vm->clock) + IDLE_PERIOD);
	vm_resume(vm);
	r = loop_run(vm->loop);
	if (r) {
		log_error(vm->log, "the event loop failed: %s", strerror(-r));
		vm_request(vm, VM_END_ERROR);
	}
	vm_pause(vm);
	vtimer_disarm(&priv->idle_timer);
	return (enum vm_end)atomic_load(&priv->end);
}
