/*
 * The VM's life and the run loop, on an engine made of scripts: each vcpu_run() asks the test what the
 * vCPU does next, so everything here runs on any host.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/vm.h"

#define MIB (1ull << 20)

/* What a script answers. */
enum step { STEP_EXIT, STEP_WAIT }; /* `exit` is filled; or: run on until a kick */

struct fake_vcpu {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool kicked, in_run;
	unsigned runs;
	struct x86_state state;
};

struct world {
	struct vm *vm;
	struct log log;
	int log_fd;
	char text[16384];
	enum step (*script)(struct world *w, struct vcpu *vcpu, struct vm_exit *exit, unsigned run);
	int fail_vcpu; /* vcpu_create fails for this one */
	unsigned created, destroyed, pauses, resumes, mapped;
	enum vcpu_idle idle[VCPUS_MAX];
	struct vm_exit last; /* of vCPU 0, as its handler left it */
	uint8_t data[16];
	unsigned restarts, eoi_vector;
	struct vtimer timer;
	_Atomic unsigned seen;
	uint8_t written[64];
	unsigned nwritten;
};

static struct world *world; /* cmocka's tests run one after another */

static struct fake_vcpu *fake_of(struct vcpu *vcpu)
{
	return vcpu->engine_data;
}

static int fake_vm_create(struct vm *vm, struct error *err)
{
	(void)err;
	vm->engine_data = world;
	return 0;
}

static void fake_vm_destroy(struct vm *vm)
{
	vm->engine_data = NULL;
}

static unsigned fake_vcpus_max(struct vm *vm)
{
	(void)vm;
	return 8;
}

static int fake_cpuid(struct vm *vm, struct cpuid_table *table, uint64_t *tsc_hz, struct error *err)
{
	(void)vm;
	(void)err;
	memset(table, 0, sizeof(*table));
	*tsc_hz = 1000000000;
	return 0;
}

static int fake_memory_map(struct vm *vm, const struct memory_region *region, struct error *err)
{
	(void)vm;
	(void)region;
	(void)err;
	world->mapped++;
	return 0;
}

static int fake_vcpu_create(struct vcpu *vcpu, struct error *err)
{
	struct fake_vcpu *fake;

	if ((int)vcpu->index == world->fail_vcpu)
		return error_set(err, ENOSPC, "no vCPU %u today", vcpu->index);
	fake = aligned_alloc(64, sizeof(*fake));
	memset(fake, 0, sizeof(*fake));
	pthread_mutex_init(&fake->lock, NULL);
	pthread_cond_init(&fake->cond, NULL);
	vcpu->engine_data = fake;
	world->created++;
	return 0;
}

static void fake_vcpu_destroy(struct vcpu *vcpu)
{
	struct fake_vcpu *fake = fake_of(vcpu);

	pthread_cond_destroy(&fake->cond);
	pthread_mutex_destroy(&fake->lock);
	free(fake);
	__atomic_fetch_add(&world->destroyed, 1, __ATOMIC_SEQ_CST);
}

static int fake_vcpu_run(struct vcpu *vcpu, struct vm_exit *exit)
{
	struct fake_vcpu *fake = fake_of(vcpu);
	unsigned run;

	pthread_mutex_lock(&fake->lock);
	run = fake->runs++;
	fake->in_run = true;
	pthread_mutex_unlock(&fake->lock);
	if (vcpu->index == 0)
		world->last = *exit;
	memset(exit, 0, sizeof(*exit));
	if (world->script(world, vcpu, exit, run) == STEP_WAIT) {
		exit->code = EXIT_BOGUS;
		pthread_mutex_lock(&fake->lock);
		while (!fake->kicked)
			pthread_cond_wait(&fake->cond, &fake->lock);
		pthread_mutex_unlock(&fake->lock);
	}
	pthread_mutex_lock(&fake->lock);
	fake->kicked = false;
	fake->in_run = false;
	pthread_mutex_unlock(&fake->lock);
	return 0;
}

static void fake_vcpu_kick(struct vcpu *vcpu)
{
	struct fake_vcpu *fake = fake_of(vcpu);

	pthread_mutex_lock(&fake->lock);
	fake->kicked = true;
	pthread_cond_broadcast(&fake->cond);
	pthread_mutex_unlock(&fake->lock);
}

static int fake_get_state(struct vcpu *vcpu, struct x86_state *state)
{
	*state = fake_of(vcpu)->state;
	return 0;
}

static int fake_set_state(struct vcpu *vcpu, const struct x86_state *state)
{
	fake_of(vcpu)->state = *state;
	return 0;
}

static enum vcpu_idle fake_idle(struct vcpu *vcpu)
{
	return world->idle[vcpu->index];
}

static void fake_time_pause(struct vm *vm)
{
	(void)vm;
	world->pauses++;
}

static void fake_time_resume(struct vm *vm)
{
	(void)vm;
	world->resumes++;
}

static const struct engine engine_fake = {
	.name = "fake",
	.vm_create = fake_vm_create,
	.vm_destroy = fake_vm_destroy,
	.vcpus_max = fake_vcpus_max,
	.cpuid_supported = fake_cpuid,
	.memory_map = fake_memory_map,
	.vcpu_create = fake_vcpu_create,
	.vcpu_destroy = fake_vcpu_destroy,
	.vcpu_run = fake_vcpu_run,
	.vcpu_kick = fake_vcpu_kick,
	.vcpu_get_state = fake_get_state,
	.vcpu_set_state = fake_set_state,
	.vcpu_idle = fake_idle,
	.time_pause = fake_time_pause,
	.time_resume = fake_time_resume,
};

/* ---- helpers ---- */

static int vm_make(struct world *w, unsigned cpus, struct error *err)
{
	struct vm_options options = {.name = "test",
				     .log = &w->log,
				     .engine = &engine_fake,
				     .memory_size = 2 * MIB,
				     .topology = {cpus, 1, cpus, 1}};

	return vm_create(&w->vm, &options, err);
}

static void world_make(struct world *w, unsigned cpus,
		       enum step (*script)(struct world *, struct vcpu *, struct vm_exit *,
					   unsigned))
{
	memset(w, 0, sizeof(*w));
	world = w;
	w->fail_vcpu = -1;
	w->script = script;
	w->log_fd = memfd_create("log", MFD_CLOEXEC);
	log_init(&w->log, w->log_fd, LOG_INFO);
	if (cpus)
		assert_int_equal(vm_make(w, cpus, NULL), 0);
}

static const char *world_log(struct world *w)
{
	ssize_t n = pread(w->log_fd, w->text, sizeof(w->text) - 1, 0);

	w->text[n < 0 ? 0 : n] = '\0';
	return w->text;
}

static void world_end(struct world *w)
{
	vm_destroy(w->vm);
	assert_int_equal(w->created, w->destroyed);
	close(w->log_fd);
}

static enum vm_end world_run(struct world *w)
{
	enum vm_end end = vm_run(w->vm);

	world_end(w);
	return end;
}

static uint64_t port_read(void *arg, uint64_t offset, unsigned size)
{
	struct world *w = arg;

	(void)offset;
	(void)size;
	return 0xa0 + atomic_fetch_add(&w->seen, 1);
}

static void port_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct world *w = arg;

	(void)offset;
	(void)size;
	if (w->nwritten < sizeof(w->written))
		w->written[w->nwritten++] = (uint8_t)value;
}

static void port_poweroff(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct world *w = arg;

	(void)offset;
	(void)size;
	(void)value;
	vm_request(w->vm, VM_END_POWEROFF);
}

static const struct io_ops data_ops = {IO_1 | IO_2 | IO_4, port_read, port_write};
static const struct io_ops poweroff_ops = {IO_1, NULL, port_poweroff};

static void exit_io(struct world *w, struct vm_exit *exit, uint16_t port, bool in, unsigned size,
		    uint32_t count)
{
	exit->code = EXIT_INOUT;
	exit->inout.port = port;
	exit->inout.in = in;
	exit->inout.size = (uint8_t)size;
	exit->inout.count = count;
	exit->inout.data = w->data;
}

/* ---- the run loop ---- */

static enum step script_exits(struct world *w, struct vcpu *vcpu, struct vm_exit *exit,
			      unsigned run)
{
	switch (run) {
	case 0: /* INS of three words */
		exit_io(w, exit, 0x1000, true, 2, 3);
		break;
	case 1:
		assert_memory_equal(w->data, "\xa0\0\xa1\0\xa2\0", 6);
		memcpy(w->data, "abc", 3);
		exit_io(w, exit, 0x1000, false, 1, 3);
		break;
	case 2:
		exit_io(w, exit, 0x488, false, 4, 1);
		break;
	case 3: /* unclaimed */
		exit_io(w, exit, 0x2000, true, 4, 1);
		break;
	case 4:
		assert_memory_equal(w->data, "\xff\xff\xff\xff", 4);
		exit->code = EXIT_IOAPIC_EOI;
		exit->eoi.vector = 0x31;
		break;
	case 5:
		exit->code = EXIT_MTRAP;
		break;
	default:
		exit_io(w, exit, 0x3000, false, 1, 2);
		break;
	}
	(void)vcpu;
	return STEP_EXIT;
}

static void on_eoi(void *arg, uint8_t vector)
{
	((struct world *)arg)->eoi_vector = vector;
}

static void test_exits(void **state)
{
	struct world w;
	struct io_range data = {"data", 0x1000, 4, &data_ops, &w};
	struct io_range off = {"off", 0x3000, 1, &poweroff_ops, &w};
	char *text = NULL;
	size_t len;
	FILE *out;
	(void)state;

	world_make(&w, 1, script_exits);
	w.vm->ioapic_eoi = on_eoi;
	w.vm->ioapic_eoi_arg = &w;
	assert_int_equal(io_range_add(&w.vm->pio, &data, NULL), 0);
	assert_int_equal(io_range_add(&w.vm->pio, &off, NULL), 0);
	assert_int_equal(vm_run(w.vm), VM_END_POWEROFF);
	assert_int_equal(w.nwritten, 3);
	assert_memory_equal(w.written, "abc", 3);
	assert_int_equal(w.eoi_vector, 0x31);
	assert_int_equal(w.vm->notifications, 1);
	/* nothing ran after the request */
	assert_int_equal(fake_of(&w.vm->vcpu[0])->runs, 7);
	out = open_memstream(&text, &len);
	vm_print_stats(w.vm, out);
	fclose(out);
	assert_non_null(strstr(text, "inout                       5\n"));
	assert_non_null(strstr(text, "notifications               1\n"));
	free(text);
	io_range_del(&w.vm->pio, &data);
	io_range_del(&w.vm->pio, &off);
	world_end(&w);
}

static enum step script_memory(struct world *w, struct vcpu *vcpu, struct vm_exit *exit,
			       unsigned run)
{
	switch (run) {
	case 0:
		exit->code = EXIT_MMIO;
		exit->mmio.gpa = 0xd0000000;
		exit->mmio.size = 4;
		break;
	case 1:
		assert_int_equal(w->last.mmio.value, 0xffffffff);
		exit->code = EXIT_RDMSR;
		exit->msr.index = 0x12345;
		break;
	case 2:
		assert_true(w->last.msr.fault);
		exit->code = EXIT_WRMSR;
		exit->msr.index = 0x12345;
		vcpu->vm->strict_msr = false;
		break;
	default:
		assert_false(w->last.msr.fault);
		exit->code = EXIT_SHUTDOWN;
		break;
	}
	return STEP_EXIT;
}

static void test_triple_fault(void **state)
{
	struct world w;
	(void)state;

	world_make(&w, 1, script_memory);
	assert_int_equal(vm_run(w.vm), VM_END_TRIPLE_FAULT);
	assert_int_equal(w.vm->vcpu[0].exits[EXIT_MMIO], 1);
	assert_int_equal(w.vm->vcpu[0].exits[EXIT_RDMSR], 1);
	assert_int_equal(w.vm->mmio.unclaimed, 1);
	assert_non_null(strstr(world_log(&w), "RDMSR of unknown MSR 0x12345"));
	assert_null(strstr(w.text, "WRMSR"));
	world_end(&w);
}

static enum step script_strict(struct world *w, struct vcpu *vcpu, struct vm_exit *exit,
			       unsigned run)
{
	(void)vcpu;
	(void)run;
	exit_io(w, exit, 0x2345, true, 1, 1);
	return STEP_EXIT;
}

static void test_strict_io(void **state)
{
	struct world w;
	(void)state;

	world_make(&w, 1, script_strict);
	w.vm->strict_io = true;
	assert_int_equal(vm_run(w.vm), VM_END_ERROR);
	assert_non_null(strstr(world_log(&w), "port 0x2345"));
	assert_int_equal(fake_of(&w.vm->vcpu[0])->runs, 1);
	world_end(&w);
}

static enum step script_fail(struct world *w, struct vcpu *vcpu, struct vm_exit *exit, unsigned run)
{
	(void)w;
	(void)vcpu;
	(void)run;
	exit->code = EXIT_FAIL;
	exit->fail.hw_reason = 0x77;
	strcpy(exit->fail.text, "the moon is full");
	return STEP_EXIT;
}

/* Paged code: the dump finds it by the guest's own tables. */
static void test_fail_dump(void **state)
{
	struct x86_state *x86 = aligned_alloc(64, sizeof(*x86));
	const uint64_t pml4e = 0x2003, pdpte = 0x3003, pde = 0x4003, pte = 0x8003;
	struct world w;
	(void)state;

	world_make(&w, 1, script_fail);
	x86_state_reset(x86, 0, true);
	x86->cr0 |= X86_CR0_PG | X86_CR0_PE;
	x86->cr4 = X86_CR4_PAE;
	x86->efer = X86_EFER_LME | X86_EFER_LMA;
	x86->cr3 = 0x1000;
	x86->seg[X86_CS].base = 0;
	x86->rip = 0xffffffff80000ffcull;
	memory_write(&w.vm->memory, 0x1000 + 511 * 8, &pml4e, 8);
	memory_write(&w.vm->memory, 0x2000 + 510 * 8, &pdpte, 8);
	memory_write(&w.vm->memory, 0x3000, &pde, 8);
	memory_write(&w.vm->memory, 0x4000, &pte, 8);
	memory_write(&w.vm->memory, 0x8ffc, "\x0f\x0b\xeb\xfe", 4);
	assert_int_equal(vcpu_set_state(&w.vm->vcpu[0], x86), 0);
	assert_int_equal(vm_run(w.vm), VM_END_ERROR);
	assert_non_null(strstr(world_log(&w), "the moon is full"));
	assert_non_null(strstr(w.text, "reason 77"));
	assert_non_null(strstr(w.text, "rip ffffffff80000ffc"));
	/* the next page is not mapped */
	assert_non_null(strstr(w.text, "code at ffffffff80000ffc: 0f 0b eb fe ...\n"));
	world_end(&w);
	free(x86);
}

/* ---- requests ---- */

static enum step script_wait(struct world *w, struct vcpu *vcpu, struct vm_exit *exit, unsigned run)
{
	(void)vcpu;
	(void)exit;
	(void)run;
	atomic_fetch_add(&w->seen, 1);
	return STEP_WAIT;
}

struct driver {
	struct world *w;
	pthread_t thread;
	int result;
};

static bool any_in_run(struct vm *vm)
{
	bool any = false;

	for (unsigned i = 0; i < vm->topology.cpus; i++) {
		struct fake_vcpu *fake = fake_of(&vm->vcpu[i]);

		pthread_mutex_lock(&fake->lock);
		any |= fake->in_run;
		pthread_mutex_unlock(&fake->lock);
	}
	return any;
}

static void wait_all_in_run(struct world *w, unsigned runs)
{
	while (atomic_load(&w->seen) < runs)
		usleep(100);
}

static int add_one(struct vcpu *vcpu, void *arg)
{
	char name[16] = "";

	pthread_getname_np(pthread_self(), name, sizeof(name));
	(*(int *)arg)++;
	return pthread_equal(pthread_self(), vcpu->thread) && strncmp(name, "vcpu", 4) == 0 ? 42
											    : 0;
}

static void *drive_pauses(void *arg)
{
	struct driver *d = arg;
	struct vm *vm = d->w->vm;
	uint64_t before, after;
	int calls = 0;

	wait_all_in_run(d->w, 3);
	d->result = vcpu_call(&vm->vcpu[1], add_one, &calls) == 42 && calls == 1 ? 0 : 1;
	vm_pause(vm);
	vm_pause(vm);
	d->result |= any_in_run(vm) ? 2 : 0;
	before = vclock_now(vm->clock);
	vm_resume(vm);
	d->result |= vm_paused(vm) && !any_in_run(vm) ? 0 : 4;
	usleep(1000);
	after = vclock_now(vm->clock);
	d->result |= before == after ? 0 : 8;
	/* jobs run while it is paused */
	d->result |= vcpu_call(&vm->vcpu[2], add_one, &calls) == 42 && calls == 2 ? 0 : 16;
	atomic_store(&d->w->seen, 0);
	vm_resume(vm);
	wait_all_in_run(d->w, 3);
	for (unsigned i = 0; i < 200; i++) {
		vm_pause(vm);
		d->result |= any_in_run(vm) ? 2 : 0;
		vm_resume(vm);
	}
	vm_request(vm, VM_END_POWEROFF);
	vm_request(vm, VM_END_ERROR); /* the first counts */
	return NULL;
}

static void test_pause(void **state)
{
	struct world w;
	struct driver d = {.w = &w};
	(void)state;

	world_make(&w, 3, script_wait);
	assert_true(vm_paused(w.vm));
	pthread_create(&d.thread, NULL, drive_pauses, &d);
	assert_int_equal(vm_run(w.vm), VM_END_POWEROFF);
	pthread_join(d.thread, NULL);
	assert_int_equal(d.result, 0);
	/* at the start, 1 for the nested pair, 200; the run ended in a pause */
	assert_int_equal(w.resumes, 202);
	assert_int_equal(w.pauses, 202);
	world_end(&w);
}

static enum step script_reset(struct world *w, struct vcpu *vcpu, struct vm_exit *exit,
			      unsigned run)
{
	(void)run;
	(void)exit;
	if (vcpu->index == 0)
		vm_request(w->vm, w->restarts == 0 ? VM_END_RESET : VM_END_POWEROFF);
	return STEP_WAIT;
}

static int restart(void *arg, struct error *err)
{
	struct world *w = arg;

	(void)err;
	assert_true(vm_paused(w->vm));
	assert_false(any_in_run(w->vm));
	w->restarts++;
	return 0;
}

static void power_off_later(void *arg)
{
	struct world *w = arg;

	vm_request(w->vm, VM_END_POWEROFF);
}

/* Another reset comes while the first one is under way: from a second vCPU, or from skepctl. */
static int restart_asked_twice(void *arg, struct error *err)
{
	struct world *w = arg;

	(void)err;
	w->restarts++;
	vm_request(w->vm, VM_END_RESET);
	vtimer_arm(&w->timer, vclock_now(w->vm->clock) + 10000000);
	return 0;
}

static enum step script_reset_once(struct world *w, struct vcpu *vcpu, struct vm_exit *exit,
				   unsigned run)
{
	(void)exit;
	if (vcpu->index == 0 && run == 0)
		vm_request(w->vm, VM_END_RESET);
	return STEP_WAIT;
}

static void test_restart_asked_twice(void **state)
{
	struct world w;
	(void)state;

	world_make(&w, 2, script_reset_once);
	vtimer_init(&w.timer, w.vm->clock, power_off_later, &w);
	vm_set_restart(w.vm, restart_asked_twice, &w);
	assert_int_equal(vm_run(w.vm), VM_END_POWEROFF);
	assert_int_equal(w.restarts, 1);
	vtimer_destroy(&w.timer);
	world_end(&w);
}

static int restart_fails(void *arg, struct error *err)
{
	(void)arg;
	return error_set(err, ENOENT, "the kernel is gone");
}

static void test_restart(void **state)
{
	struct world w;
	(void)state;

	world_make(&w, 2, script_reset);
	assert_int_equal(world_run(&w), VM_END_RESET);
	world_make(&w, 2, script_reset);
	vm_set_restart(w.vm, restart, &w);
	assert_int_equal(world_run(&w), VM_END_POWEROFF);
	assert_int_equal(w.restarts, 1);
	world_make(&w, 2, script_reset);
	vm_set_restart(w.vm, restart_fails, &w);
	assert_int_equal(vm_run(w.vm), VM_END_ERROR);
	assert_non_null(strstr(world_log(&w), "the kernel is gone"));
	world_end(&w);
}

static void test_request_before_run(void **state)
{
	struct world w;
	(void)state;

	world_make(&w, 1, script_wait);
	vm_request(w.vm, VM_END_TRIPLE_FAULT);
	assert_int_equal(world_run(&w), VM_END_TRIPLE_FAULT);
	assert_int_equal(w.seen, 0);
}

/* ---- halted, started by others ---- */

static void test_all_halted(void **state)
{
	struct world w;
	struct timespec before, after;
	(void)state;

	world_make(&w, 2, script_wait);
	w.idle[0] = IDLE_HALTED;
	w.idle[1] = IDLE_WAIT_SIPI;
	clock_gettime(CLOCK_MONOTONIC, &before);
	assert_int_equal(world_run(&w), VM_END_HALT);
	clock_gettime(CLOCK_MONOTONIC, &after);
	assert_true(after.tv_sec - before.tv_sec <= 3);
}

static void *drive_idle(void *arg)
{
	struct driver *d = arg;

	usleep(1300000); /* over one look */
	vm_request(d->w->vm, VM_END_POWEROFF);
	return NULL;
}

static void test_idle_is_not_halted(void **state)
{
	struct world w;
	struct driver d = {.w = &w};
	(void)state;

	world_make(&w, 2, script_wait);
	w.idle[0] = IDLE_HALTED;
	w.idle[1] = IDLE_NO;
	pthread_create(&d.thread, NULL, drive_idle, &d);
	assert_int_equal(vm_run(w.vm), VM_END_POWEROFF);
	pthread_join(d.thread, NULL);
	/* an idle VM costs a kick or two a second */
	assert_in_range(w.vm->vcpu[0].exits[EXIT_BOGUS], 1, 4);
	world_end(&w);
}

static enum step script_spinup(struct world *w, struct vcpu *vcpu, struct vm_exit *exit,
			       unsigned run)
{
	if (vcpu->index == 0) {
		if (atomic_load(&w->seen) == 0)
			return STEP_WAIT; /* vCPU 1 has not spun down */
		if (w->restarts == 2)
			return STEP_WAIT;
		exit->code = EXIT_SPINUP_AP;
		exit->spinup.target = w->restarts++ == 0 ? 77 : 1;
		exit->spinup.vector = 0x9f;
		return STEP_EXIT;
	}
	if (run == 0) {
		exit->code = EXIT_SPINDOWN_CPU;
		return STEP_EXIT;
	}
	assert_int_equal(fake_of(vcpu)->state.rip, 0);
	assert_int_equal(fake_of(vcpu)->state.seg[X86_CS].sel, 0x9f00);
	assert_int_equal(fake_of(vcpu)->state.seg[X86_CS].base, 0x9f000);
	vm_request(w->vm, VM_END_POWEROFF);
	return STEP_EXIT;
}

static void *drive_spinup(void *arg)
{
	struct driver *d = arg;
	struct vm *vm = d->w->vm;

	while (atomic_load(&vm->vcpu[1].exits[EXIT_SPINDOWN_CPU]) == 0)
		usleep(100);
	vm_pause(vm); /* with one vCPU waiting for its SIPI */
	atomic_store(&d->w->seen, 1);
	vm_resume(vm);
	return NULL;
}

static void test_spinup(void **state)
{
	struct world w;
	struct driver d = {.w = &w};
	(void)state;

	world_make(&w, 2, script_spinup);
	pthread_create(&d.thread, NULL, drive_spinup, &d);
	assert_int_equal(vm_run(w.vm), VM_END_POWEROFF);
	pthread_join(d.thread, NULL);
	world_end(&w);
}

/* ---- life ---- */

static void test_create_and_destroy(void **state)
{
	struct error err = {.text = ""};
	struct world w;
	cpu_set_t cpus;
	(void)state;

	world_make(&w, 4, script_wait);
	assert_int_equal(w.mapped, 1);
	assert_int_equal(fake_of(&w.vm->vcpu[0])->state.seg[X86_CS].base, 0xffff0000);
	assert_int_equal(fake_of(&w.vm->vcpu[3])->state.activity, X86_WAIT_SIPI);
	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	assert_int_equal(vcpu_pin(&w.vm->vcpu[0], &cpus, &err), 0);
	CPU_ZERO(&cpus);
	CPU_SET(CPU_SETSIZE - 1, &cpus);
	assert_int_equal(vcpu_pin(&w.vm->vcpu[1], &cpus, &err), -EINVAL);
	assert_non_null(strstr(err.text, "vCPU 1"));
	world_end(&w);
	world_make(&w, 0, script_wait);
	assert_int_equal(vm_make(&w, 9, &err), -EINVAL);
	assert_non_null(strstr(err.text, "9 vCPUs are too many"));
	assert_int_equal(vm_make(&w, 0, &err), -EINVAL);
	assert_int_equal(vm_make(&w, VCPUS_MAX + 1, &err), -EINVAL);
	w.fail_vcpu = 2;
	assert_int_equal(vm_make(&w, 4, &err), -ENOSPC);
	assert_string_equal(err.text, "no vCPU 2 today");
	assert_int_equal(w.created, 2);
	assert_int_equal(w.destroyed, 2);
	close(w.log_fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_exits),
		cmocka_unit_test(test_triple_fault),
		cmocka_unit_test(test_strict_io),
		cmocka_unit_test(test_fail_dump),
		cmocka_unit_test(test_pause),
		cmocka_unit_test(test_restart),
		cmocka_unit_test(test_restart_asked_twice),
		cmocka_unit_test(test_request_before_run),
		cmocka_unit_test(test_all_halted),
		cmocka_unit_test(test_idle_is_not_halted),
		cmocka_unit_test(test_spinup),
		cmocka_unit_test(test_create_and_destroy),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
