/*
 * What this host's KVM can do, told without skep: one word a line.
 *
 *   kvm            it opens and runs a real-mode guest
 *   native         a million guest instructions take less than 100 ms: the CPU executes them, not a program
 *                  that knows some and not others (UD2, INT3, IRETD) and misses EOIs of levels
 *   legacy-irq     an external interrupt reaches a guest in real mode
 *   triple-fault   a triple fault comes back as KVM_EXIT_SHUTDOWN
 *
 * Some hosts' /dev/kvm emulates every instruction and lacks some of the last three. The tests that need what is not
 * there are skipped in sight; that this does not depend on skep keeps a bug of ours from looking like a gap.
 *
 * probe_kvm --hold keeps a VM, never run, until it is killed, and says "held" once it is there: see hold().
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MEM_SIZE 0x10000u
#define CODE 0x1000u
#define HANDLER 0x2000u
#define VECTOR 0x20u

struct probe {
	int vcpu;
	struct kvm_run *run;
	uint8_t *mem;
};

static void on_alarm(int signo)
{
	(void)signo;
}

static bool probe_open(struct probe *p)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = {.rip = CODE, .rsp = 0xf000, .rflags = 2};
	struct kvm_userspace_memory_region region = {.memory_size = MEM_SIZE};
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	int size;

	if (vm < 0)
		return false;
	p->mem = mmap(NULL, MEM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p->mem == MAP_FAILED)
		return false;
	region.userspace_addr = (uintptr_t)p->mem;
	p->vcpu = -1;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0)
		p->vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (p->vcpu < 0 || size < 0)
		return false;
	p->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, p->vcpu, 0);
	if (p->run == MAP_FAILED || ioctl(p->vcpu, KVM_GET_SREGS, &sregs) < 0)
		return false;
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	return ioctl(p->vcpu, KVM_SET_SREGS, &sregs) == 0 &&
	       ioctl(p->vcpu, KVM_SET_REGS, &regs) == 0;
}

/* Runs until an exit other than an interruption, at most about a second. */
static uint32_t probe_run(struct probe *p)
{
	struct itimerval second = {.it_value = {.tv_sec = 1}};

	setitimer(ITIMER_REAL, &second, NULL);
	if (ioctl(p->vcpu, KVM_RUN, 0) < 0)
		return KVM_EXIT_INTR;
	return p->run->exit_reason;
}

static bool probe_speed(void)
{
	/* mov ecx, 500000; l: dec ecx; jnz l; out 0x10, al */
	static const uint8_t code[] = {0x66, 0xb9, 0x20, 0xa1, 0x07, 0x00,
				       0x66, 0x49, 0x75, 0xfc, 0xe6, 0x10};
	struct timespec t0, t1;
	struct probe p;

	if (!probe_open(&p))
		return false;
	memcpy(p.mem + CODE, code, sizeof(code));
	clock_gettime(CLOCK_MONOTONIC, &t0);
	if (probe_run(&p) != KVM_EXIT_IO)
		return false;
	clock_gettime(CLOCK_MONOTONIC, &t1);
	return (t1.tv_sec - t0.tv_sec) * 1000000000 + (t1.tv_nsec - t0.tv_nsec) < 100000000;
}

static bool probe_kvm(void)
{
	static const uint8_t code[] = {0xe6, 0x10}; /* out 0x10, al */
	struct probe p;

	if (!probe_open(&p))
		return false;
	memcpy(p.mem + CODE, code, sizeof(code));
	return probe_run(&p) == KVM_EXIT_IO;
}

static bool probe_legacy_irq(void)
{
	static const uint8_t code[] = {0xfb, 0x90, 0xe6,
				       0x10, 0xeb, 0xfe}; /* sti; nop; out; l: jmp l */
	static const uint8_t handler[] = {0xe6, 0x11, 0xcf};
	struct kvm_interrupt irq = {.irq = VECTOR};
	struct probe p;

	if (!probe_open(&p))
		return false;
	memcpy(p.mem + CODE, code, sizeof(code));
	memcpy(p.mem + HANDLER, handler, sizeof(handler));
	p.mem[VECTOR * 4] = HANDLER & 0xff;
	p.mem[VECTOR * 4 + 1] = HANDLER >> 8;
	if (probe_run(&p) != KVM_EXIT_IO || p.run->io.port != 0x10)
		return false;
	return ioctl(p.vcpu, KVM_INTERRUPT, &irq) == 0 && probe_run(&p) == KVM_EXIT_IO &&
	       p.run->io.port == 0x11;
}

static bool probe_triple_fault(void)
{
	static const uint8_t code[] = {0x0f, 0x01, 0x1e,
				       0x00, 0x30, 0xcc}; /* lidt [0x3000]; int3 */
	struct probe p;

	if (!probe_open(&p))
		return false;
	memcpy(p.mem + CODE, code, sizeof(code));
	return probe_run(&p) == KVM_EXIT_SHUTDOWN;
}

/* In a process of its own, killed after 5 s: a KVM may hang. */
static bool probe_apart(bool (*probe)(void))
{
	pid_t child = fork();
	int status;

	if (child < 0)
		return false;
	if (child == 0)
		_exit(probe() ? 0 : 1);
	for (int i = 0; i < 500; i++) {
		if (waitpid(child, &status, WNOHANG) == child)
			return WIFEXITED(status) && WEXITSTATUS(status) == 0;
		usleep(10000);
	}
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	return false;
}

/*
 * Linux patches its own code when the first VM comes and the last one goes (the preempt_notifier key in the
 * scheduler), and likewise for the first and last local APIC that is off by software or by hardware. QEMU's TCG
 * with several threads now and then lets a CPU keep an INT3 of that patching after it is gone from memory, on which
 * the nest hangs for good. So one VM with both kinds of APIC is there for as long as the nest is.
 */
static int hold(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	struct kvm_sregs sregs;
	int vcpu;

	if (vm < 0 || ioctl(vm, KVM_CREATE_IRQCHIP, 0) < 0 || ioctl(vm, KVM_CREATE_VCPU, 0) < 0)
		return 1;
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 1);
	if (vcpu < 0 || ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		return 1;
	sregs.apic_base &= ~(1ull << 11);
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0)
		return 1;
	puts("held");
	fflush(stdout);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	static const struct {
		const char *word;
		bool (*probe)(void);
	} probes[] = {
		{"native", probe_speed},
		{"legacy-irq", probe_legacy_irq},
		{"triple-fault", probe_triple_fault},
	};
	struct sigaction action = {.sa_handler = on_alarm};

	if (argc > 1)
		return strcmp(argv[1], "--hold") == 0 ? hold() : 2;
	sigaction(SIGALRM, &action, NULL);
	if (!probe_apart(probe_kvm))
		return 0;
	puts("kvm");
	fflush(stdout);
	for (size_t i = 0; i < sizeof(probes) / sizeof(probes[0]); i++)
		if (probe_apart(probes[i].probe)) {
			puts(probes[i].word);
			fflush(stdout);
		}
	return 0;
}
