/*
 * The soft engine at the seam (vmm/engine.h): the VM and its vCPUs, the loop around translated code, events,
 * kicks and time.
 */
#include "engine/soft/soft.h"

#include <cpuid.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/soft/fpu.h"
#include "engine/soft/lapic.h"
#include "engine/soft/profile.h"
#include "engine/soft/tlb.h"
#include "engine/soft/trace.h"
#include "engine/soft/translate.h"

/* ---- the VM ------------------------------------------------------------------------------------------- */

static int soft_probe(const char **why, struct error *err)
{
	unsigned a, b, c, d;

	*why = "guest code is translated for this CPU";
	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & 1u << 8))
		return error_set(err, ENOTSUP,
				 "the soft engine needs a CPU with BMI2 (2013 or later)");
	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27) || !(c & 1u << 28))
		return error_set(err, ENOTSUP,
				 "the soft engine needs AVX and XSAVE, enabled by the host");
	if (!__get_cpuid_count(13, 1, &a, &b, &c, &d) || !(a & 1))
		return error_set(err, ENOTSUP, "the soft engine needs XSAVEOPT");
	return 0;
}

static int soft_open_profile(struct vm *vm, struct soft_vm *svm, struct error *err)
{
	bool map;
	int ret = config_get_bool(vm->config, "soft.perfmap", false, &map, err);

	return ret ? ret
		   : profile_open(&svm->profile, config_get(vm->config, "soft.profile"), map, err);
}

static int soft_open_cache(struct vm *vm, struct soft_vm *svm, struct error *err)
{
	const char *trace = config_get(vm->config, "soft.trace");
	const char *size = config_get(vm->config, "soft.cache");
	uint64_t bytes = CACHE_DEFAULT;
	int ret;

	if (size) {
		ret = size_parse(size, &bytes, err);
		if (!ret && (bytes < CACHE_MIN || bytes > 1ull << 30))
			ret = error_set(err, EINVAL, "%s is not between 256K and 1G", size);
		if (ret) {
			error_prefix(err, "soft.cache");
			return ret;
		}
	}
	if (trace) {
		ret = trace_open(&svm->trace, trace, err);
		if (ret)
			return ret;
	}
	return cache_init(svm, bytes, err);
}

static void soft_vm_destroy(struct vm *vm)
{
	struct soft_vm *svm = soft_vm_of(vm);

	if (!svm)
		return;
	cache_fini(svm);
	trace_close(svm->trace);
	profile_close(svm->profile);
	if (svm->page_attr)
		munmap((void *)svm->page_attr, svm->page_attr_size);
	if (svm->code_map)
		munmap(svm->code_map, svm->page_attr_size * sizeof(*svm->code_map));
	free(svm->translation);
	free(svm->shapes);
	free(svm);
	vm->engine_data = NULL;
}

static int soft_vm_create(struct vm *vm, struct error *err)
{
	struct soft_vm *svm = calloc(1, sizeof(*svm));
	int ret = soft_probe(&(const char *){NULL}, err);

	if (ret) {
		free(svm);
		return ret;
	}
	if (!svm)
		return error_set(err, ENOMEM, "out of memory");
	vm->engine_data = svm;
	svm->translation = calloc(1, sizeof(*svm->translation));
	svm->shapes = calloc(1, shapes_size());
	if (!svm->translation || !svm->shapes) {
		soft_vm_destroy(vm);
		return error_set(err, ENOMEM, "out of memory");
	}
	svm->vm = vm;
	svm->time.paused = true;
	svm->ncpus = vm->topology.cpus;
	svm->arch_capabilities = soft_arch_capabilities();
	soft_lock_init(&svm->lock);
	ret = soft_open_cache(vm, svm, err);
	if (!ret)
		ret = soft_open_profile(vm, svm, err);
	if (!ret && fault_install())
		ret = error_set(err, EINVAL, "cannot handle SIGSEGV: %s", strerror(errno));
	if (ret)
		soft_vm_destroy(vm);
	return ret;
}

static unsigned soft_vcpus_max(struct vm *vm)
{
	(void)vm;
	return VCPUS_MAX;
}

static int soft_cpuid_supported(struct vm *vm, struct cpuid_table *table, uint64_t *tsc_hz,
				struct error *err)
{
	(void)vm;
	(void)err;
	soft_model(table);
	*tsc_hz = SOFT_TSC_HZ;
	return 0;
}

static void *reserve(uint64_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* Regions are found in vm->memory; here only what is kept about each page is made. */
static int soft_memory_map(struct vm *vm, const struct memory_region *region, struct error *err)
{
	struct soft_vm *svm = soft_vm_of(vm);

	(void)region;
	if (svm->page_attr)
		return 0;
	svm->page_attr_size = (vm->memory.low + vm->memory.high) / PAGE_SIZE;
	svm->page_attr = reserve(svm->page_attr_size);
	svm->code_map = reserve(svm->page_attr_size * sizeof(*svm->code_map));
	if (!svm->page_attr || !svm->code_map)
		return error_set(err, errno, "no memory for page attributes: %s", strerror(errno));
	return 0;
}

static void soft_host_write_end(struct vm *vm, uint64_t gpa, uint64_t len)
{
	struct soft_vm *svm = soft_vm_of(vm);

	if (!svm->page_attr || !len)
		return;
	/* The bytes first, then the look for CODE: a vCPU that sets it reads them afterwards. */
	atomic_thread_fence(memory_order_seq_cst);
	for (uint64_t page = gpa & ~(PAGE_SIZE - 1); page < gpa + len; page += PAGE_SIZE) {
		_Atomic uint8_t *attr = page_attr(svm, page);

		if (attr && !(atomic_load(attr) & PAGE_DIRTY))
			atomic_fetch_or(attr, PAGE_DIRTY);
	}
	cache_invalidate(svm, gpa, len);
}

static void soft_host_write_begin(struct vm *vm, uint64_t gpa, uint64_t len)
{
	(void)vm;
	(void)gpa;
	(void)len;
}

/* ---- dirty log ------------------------------------------------------------------------------------------ */

/* Nothing to switch: pages are marked always. All vCPUs are outside vcpu_run() or about to be stopped. */
static int soft_dirty_log(struct vm *vm, bool on)
{
	struct soft_vm *svm = soft_vm_of(vm);

	if (on)
		for (uint64_t i = 0; i < svm->page_attr_size; i++)
			if (atomic_load(&svm->page_attr[i]) & PAGE_WRITTEN)
				atomic_fetch_or(&svm->page_attr[i], PAGE_DIRTY);
	return 0;
}

/* Takes write tags away with the bit, so that the next write sets it again. */
static int soft_dirty_fetch(struct vm *vm, const struct memory_region *region, uint64_t *bitmap)
{
	struct soft_vm *svm = soft_vm_of(vm);
	struct soft_cpu *any = svm->cpu[0];

	if (region->kind != MEMORY_RAM || !any)
		return -EINVAL;
	exclusive_begin_outside(svm);
	for (uint64_t i = 0; i < region->len / PAGE_SIZE; i++) {
		_Atomic uint8_t *attr = page_attr(svm, region->gpa + i * PAGE_SIZE);

		if (i % 64 == 0)
			bitmap[i / 64] = 0;
		if (!attr || !(atomic_load(attr) & PAGE_DIRTY))
			continue;
		bitmap[i / 64] |= 1ull << (i % 64);
		atomic_fetch_and(attr, (uint8_t) ~(PAGE_DIRTY | PAGE_WRITTEN));
	}
	for (unsigned i = 0; i < svm->ncpus; i++)
		if (svm->cpu[i])
			soft_tlb_flush_all(svm->cpu[i], true);
	exclusive_end_outside(svm);
	return 0;
}

/* ---- vCPUs ---------------------------------------------------------------------------------------------- */

/* [guard page][stack for C that translated code calls][struct soft_cpu] */
static size_t cpu_mapping_size(void)
{
	return PAGE_SIZE + SOFT_STACK_SIZE +
	       ((sizeof(struct soft_cpu) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1));
}

static struct soft_cpu *cpu_alloc(void)
{
	uint8_t *p = mmap(NULL, cpu_mapping_size(), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	if (mprotect(p, PAGE_SIZE, PROT_NONE)) {
		munmap(p, cpu_mapping_size());
		return NULL;
	}
	return (struct soft_cpu *)(void *)(p + PAGE_SIZE + SOFT_STACK_SIZE);
}

static void soft_vcpu_destroy(struct vcpu *vcpu)
{
	struct soft_cpu *cpu = soft_cpu_of(vcpu);
	struct soft_vm *svm;

	if (!cpu)
		return;
	svm = cpu->svm;
	svm->cpu[vcpu->index] = NULL;
	profile_thread_leave(cpu);
	fault_thread_leave();
	lapic_destroy(cpu);
	soft_tlb_fini(cpu);
	munmap((uint8_t *)cpu - SOFT_STACK_SIZE - PAGE_SIZE, cpu_mapping_size());
	vcpu->engine_data = NULL;
}

static uint32_t xsave_bytes(const struct cpuid_table *model)
{
	const struct cpuid_leaf *leaf = cpuid_find(model, 0xd, 0);

	return leaf ? leaf->regs.ecx : 576;
}

static unsigned physical_width(const struct cpuid_table *model)
{
	const struct cpuid_leaf *leaf = cpuid_find(model, 0x80000008, 0);

	return leaf ? leaf->regs.eax & 0xff : 36;
}

static int soft_vcpu_create(struct vcpu *vcpu, struct error *err)
{
	struct soft_vm *svm = soft_vm_of(vcpu->vm);
	struct soft_cpu *cpu = cpu_alloc();
	int ret;

	if (!cpu)
		return error_set(err, ENOMEM, "out of memory");
	vcpu->engine_data = cpu;
	cpu->svm = svm;
	cpu->vcpu = vcpu;
	cpu->apic_id = vcpu->apic_id;
	cpu->exit = &vcpu->exit;
	atomic_store(&cpu->run_ok, 1);
	if (vcpu->index == 0) {
		native_isa_init(svm->isa, &vcpu->vm->cpuid);
		fpu_model(svm, &vcpu->vm->cpuid);
		svm->intel = cpuid_vendor(&vcpu->vm->cpuid) == CPUID_INTEL;
		svm->amd = cpuid_vendor(&vcpu->vm->cpuid) == CPUID_AMD;
		svm->maxphyaddr = physical_width(&vcpu->vm->cpuid);
	}
	cpu->xsave_mask = cpuid_xcr0(&vcpu->vm->cpuid) | 3;
	cpu->xsave_size = xsave_bytes(&vcpu->vm->cpuid);
	soft_cpu_wire(cpu);
	ret = soft_tlb_init(cpu);
	if (!ret)
		ret = lapic_create(cpu);
	if (!ret)
		ret = fault_thread_enter(cpu);
	if (!ret)
		ret = profile_thread_enter(cpu);
	if (ret) {
		soft_vcpu_destroy(vcpu);
		return error_set(err, -ret, "cannot make vCPU %u: %s", vcpu->index, strerror(-ret));
	}
	svm->cpu[vcpu->index] = cpu;
	return 0;
}

/* ---- events --------------------------------------------------------------------------------------------- */

/* An INTR from the PIC, if this CPU is the one that takes it. */
static bool extint_here(struct soft_cpu *cpu)
{
	return atomic_load(&cpu->svm->vm->extint.level) && lapic_takes_extint(cpu);
}

/* No event comes before the next instruction. Nor into the middle of one: a device has answered it already, and would be
 * asked again if it began anew. */
static bool event_blocked(const struct soft_cpu *cpu)
{
	return cpu->shadow_sti || cpu->shadow_mov_ss || cpu->replay.count;
}

static bool interrupts_open(const struct soft_cpu *cpu)
{
	return (cpu->sysflags & X86_FL_IF) && !event_blocked(cpu);
}

static bool interrupt_waits(struct soft_cpu *cpu)
{
	return lapic_pending(cpu) >= 0 || extint_here(cpu);
}

/* SDM vol. 3 table 6-2: NMI goes before external interrupts. NEXT_GO: nothing was delivered. */
static enum soft_next deliver_event(struct soft_cpu *cpu)
{
	struct vm *vm = cpu->svm->vm;
	int vector;

	cpu->event_waiting = false;
	if (cpu->nmi_pending && !cpu->nmi_masked && !event_blocked(cpu)) {
		cpu->nmi_pending = false;
		cpu->halted = false;
		return soft_deliver_interrupt(cpu, X86_NMI, true);
	}
	if (!interrupt_waits(cpu)) {
		cpu->event_waiting = cpu->nmi_pending;
		return NEXT_GO;
	}
	if (!interrupts_open(cpu)) {
		cpu->event_waiting = true;
		return NEXT_GO;
	}
	cpu->halted = false;
	vector = lapic_pending(cpu);
	if (vector >= 0)
		lapic_accept(cpu, (uint8_t)vector);
	else
		vector = vm->extint.acknowledge(vm->extint.arg);
	cpu->event_waiting = interrupt_waits(cpu);
	return soft_deliver_interrupt(cpu, (uint8_t)vector, false);
}

/* Requests of others. NEXT_EXIT: return to the monitor. */
static enum soft_next take_requests(struct soft_cpu *cpu)
{
	uint32_t req;
	int eoi;

	atomic_store(&cpu->run_ok, 1);
	req = atomic_exchange(&cpu->requests, 0);
	if (req & REQ_TLB)
		tlb_flush_jumps(cpu);
	if (req & (REQ_TLB | REQ_SAFEPOINT))
		safepoint_poll(cpu);
	if (req & REQ_INIT) {
		state_init(cpu);
		cpu->complete = NULL;
	}
	if ((req & REQ_SIPI) && cpu->wait_sipi)
		state_sipi(cpu, (uint8_t)atomic_load(&cpu->sipi_vector));
	if (req & REQ_NMI)
		cpu->nmi_pending = true;
	if (req & REQ_TIMER)
		lapic_rearm(cpu);
	eoi = lapic_take_eoi(cpu);
	if (eoi >= 0) {
		cpu->exit->code = EXIT_IOAPIC_EOI;
		cpu->exit->eoi.vector = (uint8_t)eoi;
		if (req & REQ_KICK)
			soft_request(cpu, REQ_KICK);
		return NEXT_EXIT;
	}
	if (req & REQ_KICK) {
		cpu->exit->code = EXIT_BOGUS;
		return NEXT_EXIT;
	}
	return NEXT_GO;
}

static bool is_requested(void *arg)
{
	return atomic_load(&((struct soft_cpu *)arg)->requests) != 0;
}

/* HLT, or wait for SIPI: until somebody asks for something. */
static void wait_for_request(struct soft_cpu *cpu)
{
	safepoint_leave(cpu);
	if (!spin_wait(&cpu->spin, &cpu->svm->vm->spin_room, false, is_requested, cpu)) {
		atomic_store(&cpu->asleep, true);
		while (!is_requested(cpu))
			soft_futex(&cpu->requests, FUTEX_WAIT, 0);
		atomic_store(&cpu->asleep, false);
		spin_slept(&cpu->spin);
	}
	safepoint_enter(cpu);
}

/* A block of one instruction ended. NEXT_LEAVE, a #DB trap, or EXIT_MTRAP. */
static enum soft_next after_step(struct soft_cpu *cpu)
{
	bool trap = cpu->step_trap;
	uint8_t met = cpu->break_met;

	cpu->step_trap = false;
	cpu->break_met = 0;
	if (cpu->single_step) {
		cpu->exit->code = EXIT_MTRAP;
		return NEXT_EXIT;
	}
	if (!(trap || met) || cpu->shadow_mov_ss)
		return NEXT_LEAVE;
	soft_raise(cpu, X86_DB);
	cpu->fault.trap = true;
	cpu->fault.dr6 = met | (trap ? 0x4000 : 0); /* BS */
	return NEXT_FAULT;
}

/* An instruction breakpoint is a fault, before the instruction. */
static enum soft_next before_step(struct soft_cpu *cpu)
{
	uint8_t met = soft_debug_code(cpu);

	if (!met || (cpu->sysflags & X86_FL_RF))
		return NEXT_GO;
	soft_raise(cpu, X86_DB);
	cpu->fault.dr6 = met;
	return NEXT_FAULT;
}

/* One turn: requests, events, then guest code until something wants the monitor or this loop. */
static enum soft_next turn(struct soft_cpu *cpu)
{
	enum soft_next next = take_requests(cpu);
	uint64_t resume;

	if (next != NEXT_GO)
		return next;
	if (!cpu->wait_sipi) {
		next = deliver_event(cpu);
		if (next != NEXT_GO)
			return next;
	}
	if (cpu->halted || cpu->wait_sipi) {
		wait_for_request(cpu);
		return NEXT_LEAVE;
	}
	/* A shadow matters only while an event waits for its end. What a device has answered goes on in any case: an event that
	 * comes now finds its block without a way out. */
	cpu->mode &= ~MODE_SHADOW;
	if (event_blocked(cpu)) {
		if (cpu->event_waiting || cpu->replay.count || (cpu->mode & MODE_STEP))
			cpu->mode |= MODE_SHADOW;
		else
			cpu->shadow_sti = cpu->shadow_mov_ss = false;
	}
	cpu->step_trap = cpu->sysflags & X86_FL_TF;
	cpu->break_met = 0;
	next = cpu->break_code ? before_step(cpu) : NEXT_GO;
	if (next != NEXT_GO)
		return next;
	resume = cpu->sysflags & X86_FL_RF;
	cpu->sysflags &= ~X86_FL_RF;
	next = soft_run(cpu);
	if (next == NEXT_EXIT)
		cpu->sysflags |= resume; /* the instruction may come again */
	cpu->stepping = false;
	if (next == NEXT_FAULT)
		cpu->step_trap = false;
	if (next != NEXT_EXIT)
		soft_replay_clear(cpu);
	if (next == NEXT_LEAVE && (cpu->step_trap || cpu->single_step || cpu->break_met))
		next = after_step(cpu);
	return next;
}

/* Finishes what the last exit left to do. */
static enum soft_next finish_exit(struct soft_cpu *cpu)
{
	enum soft_next (*complete)(struct soft_cpu * cpu) = cpu->complete;

	cpu->complete = NULL;
	return complete ? complete(cpu) : NEXT_LEAVE;
}

static int soft_vcpu_run(struct vcpu *vcpu, struct vm_exit *exit)
{
	struct soft_cpu *cpu = soft_cpu_of(vcpu);
	enum soft_next next;

	cpu->exit = exit;
	safepoint_enter(cpu);
	next = finish_exit(cpu);
	if (cpu->fault_pending && next == NEXT_LEAVE) {
		cpu->fault_pending = false;
		next = NEXT_FAULT;
	}
	while (next != NEXT_EXIT) {
		if (next == NEXT_FAULT)
			next = soft_deliver_fault(cpu);
		else
			next = turn(cpu);
	}
	exit->rip = cpu->rip;
	exit->inst_len = 0;
	safepoint_leave(cpu);
	return 0;
}

static void soft_vcpu_kick(struct vcpu *vcpu)
{
	struct soft_cpu *cpu = soft_cpu_of(vcpu);

	if (cpu)
		soft_wake(cpu, REQ_KICK);
}

/* An exit whose answer was not taken yet is finished as far as that needs no further exit; a fault that comes of
 * it stays pending. */
static void settle(struct soft_cpu *cpu)
{
	enum soft_next next;

	if (!cpu->complete)
		return;
	safepoint_enter(cpu);
	next = finish_exit(cpu);
	if (next == NEXT_FAULT)
		cpu->fault_pending = true;
	safepoint_leave(cpu);
}

static int soft_get_state(struct vcpu *vcpu, struct x86_state *state)
{
	settle(soft_cpu_of(vcpu));
	state_from_cpu(soft_cpu_of(vcpu), state);
	return 0;
}

static int soft_set_state(struct vcpu *vcpu, const struct x86_state *state)
{
	return state_to_cpu(soft_cpu_of(vcpu), state);
}

static enum vcpu_idle soft_vcpu_idle(struct vcpu *vcpu)
{
	struct soft_cpu *cpu = soft_cpu_of(vcpu);

	if (cpu->wait_sipi)
		return IDLE_WAIT_SIPI;
	if (cpu->halted && !(cpu->sysflags & X86_FL_IF) && !cpu->nmi_pending)
		return IDLE_HALTED;
	return IDLE_NO;
}

static int soft_single_step(struct vcpu *vcpu, bool on)
{
	struct soft_cpu *cpu = soft_cpu_of(vcpu);

	cpu->single_step = on;
	soft_update_mode(cpu);
	return 0;
}

/* ---- interrupts and time -------------------------------------------------------------------------------- */

static void soft_extint_changed(struct vm *vm)
{
	lapic_intr_changed(soft_vm_of(vm), atomic_load(&vm->extint.level));
}

static int soft_msi_send(struct vm *vm, const struct msi *msi)
{
	lapic_msi(soft_vm_of(vm), msi);
	return 0;
}

/* Nothing to prepare: a level-triggered message says so itself, and the local APIC's TMR remembers it. */
static void soft_ioapic_route(struct vm *vm, unsigned pin, const struct msi *msi, bool level)
{
	(void)vm;
	(void)pin;
	(void)msi;
	(void)level;
}

static void soft_nmi_send(struct vcpu *vcpu)
{
	lapic_nmi(soft_cpu_of(vcpu));
}

static void soft_time_pause(struct vm *vm)
{
	struct soft_time *time = &soft_vm_of(vm)->time;

	time->frozen = vclock_now(vm->clock);
	time->paused = true;
}

static void soft_time_resume(struct vm *vm)
{
	struct soft_vm *svm = soft_vm_of(vm);

	svm->time.start = soft_monotonic() - vclock_now(vm->clock);
	svm->time.paused = false;
	for (unsigned i = 0; i < svm->ncpus; i++)
		if (svm->cpu[i])
			lapic_rearm(svm->cpu[i]);
}

static void soft_stats_print(struct vm *vm, FILE *out)
{
	struct soft_vm *svm = soft_vm_of(vm);
	const struct {
		const char *name;
		_Atomic uint64_t *value;
	} rows[] = {
		{"blocks", &svm->n_translated},	      {"chained", &svm->n_linked},
		{"invalidated", &svm->n_invalidated}, {"cache_flushes", &svm->n_flushes},
		{"tlb_misses", &svm->n_tlb_miss},     {"slow_accesses", &svm->n_slow},
		{"exceptions", &svm->n_faults},
	};

	uint64_t code, tables;

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		fprintf(out, "%-16s %12" PRIu64 "\n", rows[i].name, atomic_load(rows[i].value));
	cache_resident(svm, &code, &tables);
	fprintf(out, "%-16s %12" PRIu64 "\n", "memory_code", code);
	fprintf(out, "%-16s %12" PRIu64 "\n", "memory_tables", tables);
}

const struct engine engine_soft = {
	.name = "soft",
	.probe = soft_probe,
	.vm_create = soft_vm_create,
	.vm_destroy = soft_vm_destroy,
	.vcpus_max = soft_vcpus_max,
	.cpuid_supported = soft_cpuid_supported,
	.memory_map = soft_memory_map,
	.host_write_begin = soft_host_write_begin,
	.host_write_end = soft_host_write_end,
	.dirty_log = soft_dirty_log,
	.dirty_fetch = soft_dirty_fetch,
	.vcpu_create = soft_vcpu_create,
	.vcpu_destroy = soft_vcpu_destroy,
	.vcpu_run = soft_vcpu_run,
	.vcpu_kick = soft_vcpu_kick,
	.vcpu_get_state = soft_get_state,
	.vcpu_set_state = soft_set_state,
	.vcpu_idle = soft_vcpu_idle,
	.vcpu_single_step = soft_single_step,
	.extint_changed = soft_extint_changed,
	.msi_send = soft_msi_send,
	.ioapic_route = soft_ioapic_route,
	.nmi_send = soft_nmi_send,
	.time_pause = soft_time_pause,
	.time_resume = soft_time_resume,
	.stats_print = soft_stats_print,
};
