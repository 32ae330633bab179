/*
 * The run loop: what a vCPU's thread does between the engine's exits. A table of handlers indexed by exit
 * code answers with a verdict.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/msr.h"
#include "vmm/vm_private.h"

#define STATS_COLUMNS 6 /* vCPUs beside each other */

static const char *const exit_names[EXIT_CODES] = {
	[EXIT_INOUT] = "inout",
	[EXIT_MMIO] = "mmio",
	[EXIT_RDMSR] = "rdmsr",
	[EXIT_WRMSR] = "wrmsr",
	[EXIT_HLT] = "hlt",
	[EXIT_PAUSE] = "pause",
	[EXIT_MTRAP] = "mtrap",
	[EXIT_DEBUG] = "debug",
	[EXIT_SPINUP_AP] = "spinup_ap",
	[EXIT_SPINDOWN_CPU] = "spindown_cpu",
	[EXIT_IOAPIC_EOI] = "ioapic_eoi",
	[EXIT_IRQ_WINDOW] = "irq_window",
	[EXIT_BOGUS] = "bogus",
	[EXIT_SHUTDOWN] = "shutdown",
	[EXIT_FAIL] = "fail",
};

const char *exit_name(enum exit_code code)
{
	return (unsigned)code < EXIT_CODES ? exit_names[code] : "unknown";
}

/* ---- handlers ---- */

/* One element of an IN or OUT; false if no device claimed the port. */
static bool handle_port(struct vm *vm, struct vm_exit *exit, uint8_t *data)
{
	uint16_t port = exit->inout.port;
	unsigned size = exit->inout.size;
	uint64_t value = 0;
	bool claimed;

	/* little-endian, as the guest is */
	if (!exit->inout.in) {
		memcpy(&value, data, size);
		return io_bus_write(&vm->pio, port, size, value);
	}
	claimed = io_bus_read(&vm->pio, port, size, &value);
	memcpy(data, &value, size);
	return claimed;
}

static enum exit_verdict handle_inout(struct vcpu *vcpu, struct vm_exit *exit)
{
	struct vm *vm = vcpu->vm;

	for (uint32_t i = 0; i < exit->inout.count && !vm_ended(vm); i++) {
		uint8_t *data = exit->inout.data + (size_t)i * exit->inout.size;

		if (!handle_port(vm, exit, data) && vm->strict_io) {
			log_error(vm->log,
				  "vCPU %u: %u-byte %s port 0x%x, which no device claims; -e makes "
				  "that "
				  "fatal",
				  vcpu->index, exit->inout.size,
				  exit->inout.in ? "read from" : "write to", exit->inout.port);
			return VERDICT_ABORT;
		}
	}
	return VERDICT_CONTINUE;
}

static enum exit_verdict handle_mmio(struct vcpu *vcpu, struct vm_exit *exit)
{
	struct io_bus *bus = &vcpu->vm->mmio;

	if (exit->mmio.write)
		io_bus_write(bus, exit->mmio.gpa, exit->mmio.size, exit->mmio.value);
	else
		io_bus_read(bus, exit->mmio.gpa, exit->mmio.size, &exit->mmio.value);
	return VERDICT_CONTINUE;
}

static enum exit_verdict handle_rdmsr(struct vcpu *vcpu, struct vm_exit *exit)
{
	exit->msr.value = 0;
	exit->msr.fault = !msr_read(vcpu->vm, vcpu->index, exit->msr.index, &exit->msr.value);
	return VERDICT_CONTINUE;
}

static enum exit_verdict handle_wrmsr(struct vcpu *vcpu, struct vm_exit *exit)
{
	exit->msr.fault = !msr_write(vcpu->vm, vcpu->index, exit->msr.index, exit->msr.value);
	return VERDICT_CONTINUE;
}

/* HLT and PAUSE: an engine that exits for them waits in its next vcpu_run(). The others: the exit itself
 * was all, or the engine looks at the event when it is entered again. */
static enum exit_verdict handle_nothing(struct vcpu *vcpu, struct vm_exit *exit)
{
	(void)vcpu;
	(void)exit;
	return VERDICT_CONTINUE;
}

static enum exit_verdict handle_spinup(struct vcpu *vcpu, struct vm_exit *exit)
{
	struct vm *vm = vcpu->vm;
	struct vcpu *target;

	if (exit->spinup.target >= vm->topology.cpus)
		return VERDICT_CONTINUE; /* a SIPI to nobody */
	target = &vm->vcpu[exit->spinup.target];
	pthread_mutex_lock(&vm->priv->lock);
	/* Only a CPU in wait-for-SIPI takes one (SDM vol. 3, 9.4.3). */
	if (target->spun_down)
		atomic_store(&target->sipi, exit->spinup.vector);
	pthread_cond_broadcast(&vm->priv->wake);
	pthread_mutex_unlock(&vm->priv->lock);
	return VERDICT_CONTINUE;
}

static enum exit_verdict handle_spindown(struct vcpu *vcpu, struct vm_exit *exit)
{
	struct vm_private *priv = vcpu->vm->priv;

	(void)exit;
	pthread_mutex_lock(&priv->lock);
	vcpu->spun_down = true;
	atomic_store(&vcpu->sipi, -1);
	pthread_mutex_unlock(&priv->lock);
	return VERDICT_CONTINUE;
}

static enum exit_verdict handle_eoi(struct vcpu *vcpu, struct vm_exit *exit)
{
	struct vm *vm = vcpu->vm;

	if (vm->ioapic_eoi)
		vm->ioapic_eoi(vm->ioapic_eoi_arg, exit->eoi.vector);
	return VERDICT_CONTINUE;
}

/*
 * Linux's and FreeBSD's last resort to restart: LIDT of an empty table, then INT3. A table without a single byte serves
 * for nothing else, and no CPU has one that its guest has not loaded: limit 0 at a triple fault is a request.
 */
static bool shutdown_is_reset(struct vcpu *vcpu)
{
	struct x86_state *state = aligned_alloc(64, sizeof(*state));
	bool empty = state && vcpu->vm->engine->vcpu_get_state(vcpu, state) == 0 &&
		     state->idtr.limit == 0;

	free(state);
	return empty;
}

static enum exit_verdict handle_shutdown(struct vcpu *vcpu, struct vm_exit *exit)
{
	(void)exit;
	if (shutdown_is_reset(vcpu))
		return VERDICT_RESET;
	log_info(vcpu->vm->log, "vCPU %u: triple fault", vcpu->index);
	vm_request(vcpu->vm, VM_END_TRIPLE_FAULT);
	return VERDICT_CONTINUE;
}

static enum exit_verdict handle_fail(struct vcpu *vcpu, struct vm_exit *exit)
{
	log_error(vcpu->vm->log, "vCPU %u: %s", vcpu->index, exit->fail.text);
	return VERDICT_ABORT;
}

typedef enum exit_verdict (*exit_handler)(struct vcpu *vcpu, struct vm_exit *exit);

static const exit_handler exit_handlers[EXIT_CODES] = {
	[EXIT_INOUT] = handle_inout,	  [EXIT_MMIO] = handle_mmio,
	[EXIT_RDMSR] = handle_rdmsr,	  [EXIT_WRMSR] = handle_wrmsr,
	[EXIT_HLT] = handle_nothing,	  [EXIT_PAUSE] = handle_nothing,
	[EXIT_MTRAP] = handle_nothing,	  [EXIT_DEBUG] = handle_nothing,
	[EXIT_SPINUP_AP] = handle_spinup, [EXIT_SPINDOWN_CPU] = handle_spindown,
	[EXIT_IOAPIC_EOI] = handle_eoi,	  [EXIT_IRQ_WINDOW] = handle_nothing,
	[EXIT_BOGUS] = handle_nothing,	  [EXIT_SHUTDOWN] = handle_shutdown,
	[EXIT_FAIL] = handle_fail,
};

/* ---- the loop ---- */

static enum exit_verdict vcpu_handle(struct vcpu *vcpu, int result)
{
	struct vm_exit *exit = &vcpu->exit;
	unsigned code = exit->code;

	if (result && code != EXIT_FAIL) {
		log_error(vcpu->vm->log, "vCPU %u: the %s engine failed: %s", vcpu->index,
			  vcpu->vm->engine->name, strerror(-result));
		return VERDICT_ABORT;
	}
	if (code >= EXIT_CODES || !exit_handlers[code]) {
		log_error(vcpu->vm->log, "vCPU %u: an exit nobody handles, code %u", vcpu->index,
			  code);
		return VERDICT_ABORT;
	}
	/* The only writer is this thread. */
	atomic_store_explicit(&vcpu->exits[code],
			      atomic_load_explicit(&vcpu->exits[code], memory_order_relaxed) + 1,
			      memory_order_relaxed);
	return exit_handlers[code](vcpu, exit);
}

static void vcpu_obey(struct vcpu *vcpu, enum exit_verdict verdict)
{
	struct vm *vm = vcpu->vm;

	switch (verdict) {
	case VERDICT_CONTINUE:
	case VERDICT_RESTART:
		break;
	case VERDICT_RESET:
		vm_request(vm, VM_END_RESET);
		break;
	case VERDICT_POWEROFF:
		vm_request(vm, VM_END_POWEROFF);
		break;
	case VERDICT_HALT:
		vm_request(vm, VM_END_HALT);
		break;
	case VERDICT_ABORT:
		vcpu_dump(vcpu);
		vm_request(vm, VM_END_ERROR);
		break;
	}
}

/* The engine still has to store a result or move RIP. */
static bool exit_unfinished(const struct vm_exit *exit)
{
	return exit->code == EXIT_INOUT || exit->code == EXIT_MMIO || exit->code == EXIT_RDMSR ||
	       exit->code == EXIT_WRMSR;
}

static void vcpu_take_sipi(struct vcpu *vcpu)
{
	const struct engine *engine = vcpu->vm->engine;
	struct x86_state *state = aligned_alloc(64, sizeof(*state));
	int vector = atomic_exchange(&vcpu->sipi, -1);
	int r = state ? engine->vcpu_get_state(vcpu, state) : -ENOMEM;

	if (!r) {
		x86_state_sipi(state, (uint8_t)vector);
		r = engine->vcpu_set_state(vcpu, state);
	}
	free(state);
	if (r) {
		log_error(vcpu->vm->log, "vCPU %u cannot be started: %s", vcpu->index,
			  strerror(-r));
		vm_request(vcpu->vm, VM_END_ERROR);
	}
	pthread_mutex_lock(&vcpu->vm->priv->lock);
	vcpu->spun_down = false;
	pthread_mutex_unlock(&vcpu->vm->priv->lock);
}

void vcpu_loop(struct vcpu *vcpu)
{
	const struct engine *engine = vcpu->vm->engine;
	int r;

	if (vcpu->spun_down)
		vcpu_take_sipi(vcpu);
	while (!vcpu_must_stop(vcpu)) {
		r = engine->vcpu_run(vcpu, &vcpu->exit);
		vcpu_obey(vcpu, vcpu_handle(vcpu, r));
		if (vcpu->spun_down)
			return;
		if (!vcpu_must_park(vcpu))
			continue;
		if (!exit_unfinished(&vcpu->exit))
			return;
		/* Park between instructions: a wide MMIO access may come in several exits. */
		engine->vcpu_kick(vcpu);
	}
}

/* ---- counters ---- */

/* One exit kind: its sum over all vCPUs if `sum`, and the vCPUs from first to before end. */
static void print_row(struct vm *vm, FILE *out, unsigned code, bool with_sum, unsigned first,
		      unsigned end)
{
	uint64_t sum = 0, one[VCPUS_MAX];

	for (unsigned i = 0; i < vm->topology.cpus; i++) {
		one[i] = atomic_load_explicit(&vm->vcpu[i].exits[code], memory_order_relaxed);
		sum += one[i];
	}
	if (sum == 0)
		return;
	fprintf(out, "%-16s", exit_name(code));
	if (with_sum)
		fprintf(out, " %12" PRIu64, sum);
	for (unsigned i = first; i < end; i++)
		fprintf(out, " %12" PRIu64, one[i]);
	fputc('\n', out);
}

static void print_rows(struct vm *vm, FILE *out, bool with_sum, unsigned first, unsigned end)
{
	char name[16];

	fprintf(out, "%-16s", "exits");
	if (with_sum)
		fprintf(out, " %12s", "all");
	for (unsigned i = first; i < end; i++) {
		snprintf(name, sizeof(name), "vcpu%u", i);
		fprintf(out, " %12s", name);
	}
	fputc('\n', out);
	for (unsigned code = 0; code < EXIT_CODES; code++)
		print_row(vm, out, code, with_sum, first, end);
}

/* The sums, then the vCPUs, so many beside each other that it fits a terminal. */
void vm_print_stats(struct vm *vm, FILE *out)
{
	unsigned cpus = vm->topology.cpus;

	print_rows(vm, out, true, 0, cpus == 1 ? 0 : cpus < STATS_COLUMNS ? cpus : 0);
	for (unsigned i = 0; cpus >= STATS_COLUMNS && i < cpus; i += STATS_COLUMNS)
		print_rows(vm, out, false, i, i + STATS_COLUMNS < cpus ? i + STATS_COLUMNS : cpus);
	fprintf(out, "%-16s %12" PRIu64 "\n", "notifications", atomic_load(&vm->notifications));
	fprintf(out, "%-16s %12" PRIu64 "\n", "unclaimed_port", atomic_load(&vm->pio.unclaimed));
	fprintf(out, "%-16s %12" PRIu64 "\n", "unclaimed_mmio", atomic_load(&vm->mmio.unclaimed));
	fprintf(out, "%-16s %12" PRIu64 "\n", "memory_guest",
		mapping_resident(vm->memory.base, vm->memory.size));
	if (vm->engine->stats_print)
		vm->engine->stats_print(vm, out);
}
