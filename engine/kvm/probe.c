/*
 * Is KVM usable, or does this host only emulate it? There are hosts whose /dev/kvm opens and makes vCPUs but
 * runs about a million guest instructions a second. So a short loop runs in a tiny guest and natively, and the
 * CPU times are compared. The CPU time is the thread's, so that a busy host does not look like a slow guest.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "engine/kvm/kvm.h"

#define LOOPS 20000	  /* of two instructions */
#define WARM_LOOPS 16	  /* the first entry fills the nested page tables */
#define SLICE_NS 1000000  /* a timer ends KVM_RUN after this */
#define LIMIT_NS 4000000  /* no new slice after this, if there were ... */
#define SLICES_MIN 4	  /* ... so many: one alone may have met a busy host; */
#define HARD_NS 100000000 /* but not after this either */
#define ABSURD 50	  /* times slower than native */

/* Guest memory: one page each. Long mode with one 2 MiB page; the simplest that all hardware runs without
 * help from KVM's own instruction emulator, which real mode needs on old CPUs. */
#define PML4 0x1000
#define PDPT 0x2000
#define PD 0x3000
#define CODE 0x4000
#define PROBE_MEMORY 0x200000

/* loop: dec rcx; jnz loop; out 0x80, al */
static const uint8_t probe_code[] = {0x48, 0xff, 0xc9, 0x75, 0xfb, 0xe6, 0x80};

struct probe {
	int dev, vm, vcpu;
	int run_size;
	struct kvm_run *run;
	uint8_t *memory;
	timer_t timer;
	bool timer_made;
	sigset_t old;
};

static uint64_t now_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

static void probe_entry(struct probe *probe, uint64_t addr, uint64_t value)
{
	memcpy(probe->memory + addr, &value, sizeof(value));
}

static int probe_set_long_mode(struct probe *probe)
{
	const struct kvm_segment code = {.limit = 0xffffffff,
					 .selector = 8,
					 .type = 11,
					 .present = 1,
					 .s = 1,
					 .l = 1,
					 .g = 1};
	const struct kvm_segment data = {.limit = 0xffffffff,
					 .selector = 16,
					 .type = 3,
					 .present = 1,
					 .s = 1,
					 .db = 1,
					 .g = 1};
	struct kvm_sregs sregs;
	int r = kvm_ioctl(probe->vcpu, KVM_GET_SREGS, &sregs);

	if (r < 0)
		return r;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr3 = PML4;
	sregs.cr4 = X86_CR4_PAE;
	sregs.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE | X86_CR0_PG;
	sregs.efer = X86_EFER_LME | X86_EFER_LMA;
	return kvm_ioctl(probe->vcpu, KVM_SET_SREGS, &sregs);
}

/* KVM_RUN is interrupted by a signal to this thread, again and again in case one comes too early. */
static int probe_make_timer(struct probe *probe)
{
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID};
	struct itimerspec every = {.it_interval = {.tv_nsec = SLICE_NS},
				   .it_value = {.tv_nsec = SLICE_NS}};
	int signo = kvm_kick_signal();
	sigset_t set;

	if (signo < 0)
		return signo;
	event.sigev_signo = signo;
	event._sigev_un._tid = gettid();
	if (timer_create(CLOCK_MONOTONIC, &event, &probe->timer) < 0)
		return -errno;
	probe->timer_made = true;
	sigemptyset(&set);
	sigaddset(&set, signo);
	pthread_sigmask(SIG_UNBLOCK, &set, &probe->old);
	return timer_settime(probe->timer, 0, &every, NULL) < 0 ? -errno : 0;
}

static int probe_map(struct probe *probe)
{
	struct kvm_userspace_memory_region region = {.memory_size = PROBE_MEMORY};
	void *run, *memory = mmap(NULL, PROBE_MEMORY, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return -errno;
	probe->memory = memory;
	probe_entry(probe, PML4, PDPT | 3);
	probe_entry(probe, PDPT, PD | 3);
	probe_entry(probe, PD, 0x83);
	memcpy(probe->memory + CODE, probe_code, sizeof(probe_code));
	region.userspace_addr = (uint64_t)(uintptr_t)memory;
	if (ioctl(probe->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return -errno;
	probe->vcpu = kvm_ioctl_value(probe->vm, KVM_CREATE_VCPU, 0);
	if (probe->vcpu < 0)
		return probe->vcpu;
	probe->run_size = ioctl(probe->dev, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = mmap(NULL, (size_t)probe->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, probe->vcpu,
		   0);
	if (run == MAP_FAILED)
		return -errno;
	probe->run = run;
	return probe_set_long_mode(probe);
}

static int probe_create(struct probe *probe, struct error *err)
{
	int r;

	probe->dev = kvm_open(err);
	if (probe->dev < 0)
		return probe->dev;
	probe->vm = kvm_create_fd(probe->dev, err);
	if (probe->vm < 0)
		return probe->vm;
	r = probe_map(probe);
	if (r >= 0)
		r = probe_make_timer(probe);
	return r < 0 ? error_set(err, -r, "KVM cannot run a test guest: %s; use -E soft",
				 strerror(-r))
		     : 0;
}

static void probe_destroy(struct probe *probe)
{
	if (probe->timer_made) {
		timer_delete(probe->timer);
		pthread_sigmask(SIG_SETMASK, &probe->old, NULL);
	}
	if (probe->run)
		munmap(probe->run, (size_t)probe->run_size);
	if (probe->memory)
		munmap(probe->memory, PROBE_MEMORY);
	if (probe->vcpu >= 0)
		close(probe->vcpu);
	if (probe->vm >= 0)
		close(probe->vm);
	if (probe->dev >= 0)
		close(probe->dev);
}

struct rate {
	uint64_t loops, ns; /* of CPU time */
};

static bool rate_faster(struct rate a, struct rate b, uint64_t times)
{
	return (unsigned __int128)a.loops * b.ns > (unsigned __int128)b.loops * a.ns * times;
}

/* One KVM_RUN: until the OUT at the loop's end, or the timer. */
static int probe_slice(struct probe *probe, uint64_t loops, struct rate *rate)
{
	struct kvm_regs regs = {.rip = CODE, .rflags = X86_FL_FIXED, .rcx = loops};
	int r = kvm_ioctl(probe->vcpu, KVM_SET_REGS, &regs);
	uint64_t began;

	if (r < 0)
		return r;
	began = now_ns(CLOCK_THREAD_CPUTIME_ID);
	r = kvm_ioctl_value(probe->vcpu, KVM_RUN, 0);
	rate->ns = now_ns(CLOCK_THREAD_CPUTIME_ID) - began;
	if (r < 0 && r != -EINTR)
		return r;
	if (r >= 0 && probe->run->exit_reason != KVM_EXIT_IO)
		return -EIO;
	r = kvm_ioctl(probe->vcpu, KVM_GET_REGS, &regs);
	rate->loops = loops - regs.rcx;
	return r;
}

static struct rate rate_native(void)
{
	uint64_t loops = LOOPS, began = now_ns(CLOCK_THREAD_CPUTIME_ID);

	__asm__ volatile("1: dec %0\n\tjnz 1b" : "+r"(loops) : : "cc");
	return (struct rate){LOOPS, now_ns(CLOCK_THREAD_CPUTIME_ID) - began + 1};
}

/* The best slice counts: the host's load, and a hypervisor's below, only ever make one slower. */
static int probe_measure(struct probe *probe, struct rate native, struct rate *best)
{
	uint64_t began = now_ns(CLOCK_MONOTONIC), passed = 0;
	struct rate rate;
	int r = probe_slice(probe, WARM_LOOPS, &rate);

	*best = (struct rate){0, 1};
	for (unsigned n = 0; r >= 0 && passed < HARD_NS; n++) {
		if (n >= SLICES_MIN && passed > LIMIT_NS)
			break;
		r = probe_slice(probe, LOOPS, &rate);
		if (r >= 0 && rate_faster(rate, *best, 1))
			*best = rate;
		if (best->loops && !rate_faster(native, *best, ABSURD))
			break;
		passed = now_ns(CLOCK_MONOTONIC) - began;
	}
	return r;
}

static int probe_judge(struct probe *probe, const char **why, struct error *err)
{
	struct rate native = rate_native(), guest;
	int r = probe_measure(probe, native, &guest);

	if (r == -EIO)
		return error_set(
			err, EIO,
			"KVM fails to run a test guest (exit reason %u, suberror %u); use -E soft",
			probe->run->exit_reason, probe->run->internal.suberror);
	if (r < 0)
		return error_set(err, -r, "KVM cannot run a test guest: %s; use -E soft",
				 strerror(-r));
	if (rate_faster(native, guest, ABSURD))
		return error_set(err, ETIME,
				 "this host's KVM only emulates guest code, about %.1f million "
				 "instructions a second (the CPU itself: %.0f million)",
				 2e3 * (double)guest.loops / (double)guest.ns,
				 2e3 * (double)native.loops / (double)native.ns);
	*why = "hardware virtualization works";
	return 0;
}

int kvm_probe(const char **why, struct error *err)
{
	struct probe probe = {.dev = -1, .vm = -1, .vcpu = -1};
	int r = probe_create(&probe, err);

	if (!r)
		r = probe_judge(&probe, why, err);
	probe_destroy(&probe);
	return r;
}
