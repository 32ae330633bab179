/*
 * The kvm engine on the host's /dev/kvm: guests of a few instructions. Exit status 77, skipped: there is none.
 * Some hosts' KVM only emulates guest code; what such a one cannot do is skipped in sight.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/vm.h"

#define MIB (1ull << 20)
#define PORT 0x1000
#define PORT_OFF 0x1010
#define MMIO 0xd0000000ull
#define CODE 0x8000
#define IDT 0x7000
#define STACK 0xf000
#define GDT 0x500

struct machine {
	struct vm *vm;
	struct log log;
	struct io_range port, off, mmio;
	_Atomic unsigned writes;
	uint8_t written[256];
	uint64_t mmio_written;
	unsigned acknowledged, eois;
	/* at the next write to PORT: the "PIC" raises INTR; a level- and an edge-triggered pin fire */
	bool pulse, fire;
};

static const struct msi msi_level = {0xfee00000, 0xc031}, msi_edge = {0xfee00000, 0x32};
static bool emulated; /* the probe says so */

static uint64_t port_read(void *arg, uint64_t offset, unsigned size)
{
	(void)arg;
	(void)size;
	return 0x11223344 + offset;
}

static void port_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct machine *m = arg;
	unsigned n = atomic_load(&m->writes);

	(void)offset;
	(void)size;
	if (n < sizeof(m->written))
		m->written[n] = (uint8_t)value;
	atomic_store(&m->writes, n + 1);
	if (m->pulse)
		vm_extint_set(m->vm, true);
	m->pulse = false;
	if (m->fire) {
		vm_msi(m->vm, msi_level.addr, msi_level.data);
		vm_msi(m->vm, msi_edge.addr, msi_edge.data);
	}
	m->fire = false;
}

static void off_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct machine *m = arg;

	(void)offset;
	(void)size;
	(void)value;
	vm_request(m->vm, VM_END_POWEROFF);
}

static uint64_t mmio_read(void *arg, uint64_t offset, unsigned size)
{
	(void)arg;
	(void)size;
	return 0x8877665544332211ull >> offset * 8;
}

static void mmio_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	(void)offset;
	(void)size;
	((struct machine *)arg)->mmio_written = value;
}

static const struct io_ops port_ops = {IO_1 | IO_2 | IO_4, port_read, port_write};
static const struct io_ops off_ops = {IO_1, NULL, off_write};
static const struct io_ops mmio_ops = {IO_1 | IO_2 | IO_4 | IO_8, mmio_read, mmio_write};

static uint8_t acknowledge(void *arg)
{
	struct machine *m = arg;

	m->acknowledged++;
	vm_extint_set(m->vm, false);
	return 0x20;
}

static void on_eoi(void *arg, uint8_t vector)
{
	struct machine *m = arg;

	if (vector == 0x31)
		m->eois++;
}

static void machine_make_with(struct machine *m, unsigned cpus, struct config *config)
{
	struct error err = {.text = ""};
	struct vm_options options = {.name = "test",
				     .config = config,
				     .log = &m->log,
				     .engine = &engine_kvm,
				     .memory_size = 4 * MIB,
				     .topology = {cpus, 1, cpus, 1}};

	memset(m, 0, sizeof(*m));
	log_init(&m->log, STDERR_FILENO, LOG_ERROR);
	if (vm_create(&m->vm, &options, &err))
		fail_msg("%s", err.text);
	m->port = (struct io_range){"port", PORT, 8, &port_ops, m};
	m->off = (struct io_range){"off", PORT_OFF, 1, &off_ops, m};
	m->mmio = (struct io_range){"mmio", MMIO, 0x1000, &mmio_ops, m};
	io_range_add(&m->vm->pio, &m->port, NULL);
	io_range_add(&m->vm->pio, &m->off, NULL);
	io_range_add(&m->vm->mmio, &m->mmio, NULL);
	m->vm->extint.acknowledge = acknowledge;
	m->vm->extint.arg = m;
	m->vm->ioapic_eoi = on_eoi;
	m->vm->ioapic_eoi_arg = m;
}

static void machine_make(struct machine *m, unsigned cpus)
{
	machine_make_with(m, cpus, NULL);
}

static void machine_end(struct machine *m)
{
	io_range_del(&m->vm->pio, &m->port);
	io_range_del(&m->vm->pio, &m->off);
	io_range_del(&m->vm->mmio, &m->mmio);
	vm_destroy(m->vm);
}

static void set_flat(struct x86_state *x86, uint16_t code_attr)
{
	const struct x86_seg data = {.limit = 0xffffffff, .sel = 16, .attr = 0xc093};

	for (unsigned i = 0; i < X86_SEGS; i++)
		x86->seg[i] = data;
	x86->seg[X86_CS] = (struct x86_seg){.limit = 0xffffffff, .sel = 8, .attr = code_attr};
	x86->rip = CODE;
	x86->gpr[X86_RSP] = STACK;
}

/* The boot CPU in real mode (bits 16), flat protected mode (32) or long mode with 4 GiB mapped (64). */
static void machine_load(struct machine *m, unsigned bits, const uint8_t *code, size_t len)
{
	struct x86_state *x86 = aligned_alloc(64, sizeof(*x86));

	x86_state_reset(x86, 0, true);
	if (m->vm->x2apic)
		x86_state_set_x2apic(x86, 0);
	if (bits == 16) {
		x86->seg[X86_CS].sel = 0;
		x86->seg[X86_CS].base = 0;
		x86->rip = CODE;
		x86->gpr[X86_RSP] = STACK;
	} else {
		set_flat(x86, bits == 64 ? 0xa09b : 0xc09b);
		x86->cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE;
	}
	if (bits == 64) {
		const uint64_t gdt[3] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff};
		uint64_t entry = 0x2007;

		memory_write(&m->vm->memory, GDT, gdt, sizeof(gdt));
		x86->gdtr = (struct x86_table){GDT, sizeof(gdt) - 1};
		memory_write(&m->vm->memory, 0x1000, &entry, 8);
		for (uint64_t i = 0; i < 4; i++) {
			entry = (0x3000 + i * 0x1000) | 7;
			memory_write(&m->vm->memory, 0x2000 + i * 8, &entry, 8);
		}
		for (uint64_t i = 0; i < 2048; i++) {
			entry = i << 21 | 0x87;
			memory_write(&m->vm->memory, 0x3000 + i * 8, &entry, 8);
		}
		x86->cr3 = 0x1000;
		x86->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR;
		x86->efer = X86_EFER_LME | X86_EFER_LMA;
		x86->cr0 |= X86_CR0_PG;
		x86->idtr = (struct x86_table){IDT, 0xfff};
	}
	memory_write(&m->vm->memory, CODE, code, len);
	assert_int_equal(vcpu_set_state(&m->vm->vcpu[0], x86), 0);
	free(x86);
}

/* A 64-bit interrupt gate. */
static void machine_gate(struct machine *m, unsigned vector, uint64_t handler)
{
	const uint64_t gate[2] = {(handler & 0xffff) | 8 << 16 | 0x8e00ull << 32 |
					  (handler >> 16 & 0xffff) << 48,
				  handler >> 32};

	memory_write(&m->vm->memory, IDT + vector * 16, gate, sizeof(gate));
}

#define LOAD(m, bits, ...)                                    \
	do {                                                  \
		static const uint8_t code_[] = {__VA_ARGS__}; \
		machine_load(m, bits, code_, sizeof(code_));  \
	} while (0)
/* mov dx, PORT_OFF; out dx, al; hlt: 16-bit code, and 32- and 64-bit code */
#define OFF16 0xba, 0x10, 0x10, 0xee, 0xf4
#define OFF 0x66, 0xba, 0x10, 0x10, 0xee, 0xf4

/* ---- */

static void test_port_io(void **state)
{
	struct machine m;
	struct x86_state *x86 = aligned_alloc(64, sizeof(*x86));
	(void)state;

	machine_make(&m, 1);
	/* mov dx,1000; in eax,dx; mov si,9000; mov cx,5; rep outsb; off */
	LOAD(&m, 16, 0xba, 0, 0x10, 0x66, 0xed, 0xbe, 0, 0x90, 0xb9, 5, 0, 0xf3, 0x6e, OFF16);
	memory_write(&m.vm->memory, 0x9000, "hello", 5);
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	assert_int_equal(m.writes, 5);
	assert_memory_equal(m.written, "hello", 5);
	/* reading the state completes the OUT that ended the VM, and no more */
	assert_int_equal(vcpu_get_state(&m.vm->vcpu[0], x86), 0);
	assert_int_equal(x86->gpr[X86_RAX], 0x11223344);
	assert_int_equal(x86->rip, CODE + 17);
	machine_end(&m);
	free(x86);
}

static void test_mmio(void **state)
{
	struct x86_state *x86 = aligned_alloc(64, sizeof(*x86));
	struct machine m;
	(void)state;

	machine_make(&m, 1);
	/* mov ebx,d0000000; mov eax,[ebx]; mov [ebx],eax; movzx ecx,byte [ebx+1]; off */
	LOAD(&m, 32, 0xbb, 0, 0, 0, 0xd0, 0x8b, 0x03, 0x89, 0x03, 0x0f, 0xb6, 0x4b, 1, OFF);
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	assert_int_equal(m.mmio_written, 0x44332211);
	assert_int_equal(vcpu_get_state(&m.vm->vcpu[0], x86), 0);
	assert_int_equal(x86->gpr[X86_RCX], 0x22);
	machine_end(&m);
	free(x86);
}

static void test_msr(void **state)
{
	struct x86_state *x86 = aligned_alloc(64, sizeof(*x86));
	struct machine m;
	(void)state;

	machine_make(&m, 1);
	machine_gate(&m, X86_GP, CODE + 0x100);
	/* mov ecx,8b; rdmsr; mov ebx,eax; mov ecx,12345678; rdmsr; hlt */
	LOAD(&m, 64, 0xb9, 0x8b, 0, 0, 0, 0x0f, 0x32, 0x89, 0xc3, 0xb9, 0x78, 0x56, 0x34, 0x12,
	     0x0f, 0x32, 0xf4);
	memory_write(&m.vm->memory, CODE + 0x100, (const uint8_t[]){OFF}, 6);
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	assert_int_equal(m.vm->vcpu[0].exits[EXIT_RDMSR], 2);
	assert_int_equal(vcpu_get_state(&m.vm->vcpu[0], x86), 0);
	assert_int_equal(x86->gpr[X86_RBX], 0);
	/* the #GP pushed RIP of the RDMSR */
	assert_int_equal(x86->gpr[X86_RSP], STACK - 48);
	machine_end(&m);
	free(x86);
}

/* What is set is what comes back, the FPU, events and the LAPIC included. */
static void test_state(void **state)
{
	struct x86_state *x86 = aligned_alloc(64, sizeof(*x86)),
			 *back = aligned_alloc(64, sizeof(*x86));
	struct machine m;
	(void)state;

	machine_make(&m, 2);
	LOAD(&m, 64, OFF);
	assert_int_equal(vcpu_get_state(&m.vm->vcpu[0], x86), 0);
	x86->gpr[X86_R13] = 0x123456789abcdef0;
	x86->msr.lstar = 0xffffffff81000000;
	x86->msr.star = 0x23001000000000;
	x86->msr.mtrr_def_type = 0xc06;
	x86->msr.tsc = 1000000;
	x86->dr[0] = 0x1234;
	x86->cr8 = 5;
	x86->lapic[0x80 / 4] = 0x50; /* TPR, CR8's other name */
	x86->lapic[0xf0 / 4] = 0x1ff;
	x86->lapic[0x320 / 4] = 0x31;
	x86->xsave[32] = 0xab;	/* ST0 */
	x86->xsave[160] = 0xcd; /* XMM0 */
	assert_int_equal(vcpu_set_state(&m.vm->vcpu[0], x86), 0);
	assert_int_equal(vcpu_get_state(&m.vm->vcpu[0], back), 0);
	assert_memory_equal(back->gpr, x86->gpr, sizeof(x86->gpr));
	assert_memory_equal(back->seg, x86->seg, sizeof(x86->seg));
	assert_int_equal(back->rip, x86->rip);
	assert_int_equal(back->efer, x86->efer);
	assert_int_equal(back->cr8, 5);
	assert_int_equal(back->msr.lstar, x86->msr.lstar);
	assert_int_equal(back->msr.mtrr_def_type, 0xc06);
	assert_int_equal(back->msr.tsc, 1000000); /* time stands still */
	assert_int_equal(back->dr[0], 0x1234);
	assert_int_equal(back->lapic[0x320 / 4], 0x31);
	assert_int_equal(back->xsave[32], 0xab);
	assert_int_equal(back->xsave[160], 0xcd);
	assert_int_equal(vcpu_get_state(&m.vm->vcpu[1], back), 0);
	assert_int_equal(back->activity, X86_WAIT_SIPI);
	assert_int_equal(back->lapic[0x20 / 4], 1u << 24);
	machine_end(&m);
	free(x86);
	free(back);
}

static void *power_off_later(void *arg)
{
	struct machine *m = arg;

	while (atomic_load(&m->writes) < 3)
		usleep(100);
	for (unsigned i = 0; i < 100; i++) {
		vm_pause(m->vm);
		vm_resume(m->vm);
	}
	vm_request(m->vm, VM_END_POWEROFF);
	return NULL;
}

/* A guest that never exits by itself obeys kicks. */
static void test_pause_and_request(void **state)
{
	struct machine m;
	pthread_t thread;
	(void)state;

	machine_make(&m, 1);
	/* mov dx,1000; out dx,al three times; jmp $ */
	LOAD(&m, 64, 0x66, 0xba, 0, 0x10, 0xee, 0xee, 0xee, 0xeb, 0xfe);
	pthread_create(&thread, NULL, power_off_later, &m);
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	pthread_join(thread, NULL);
	machine_end(&m);
}

static void test_halted(void **state)
{
	struct machine m;
	(void)state;

	machine_make(&m, 2);
	LOAD(&m, 64, 0xfa, 0xf4); /* cli; hlt */
	assert_int_equal(vm_run(m.vm), VM_END_HALT);
	machine_end(&m);
}

static void test_single_step(void **state)
{
	struct machine m;
	(void)state;

	machine_make(&m, 1);
	LOAD(&m, 64, 0x90, 0x90, 0x90, 0x90, OFF);
	engine_kvm.vcpu_single_step(&m.vm->vcpu[0], true);
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	assert_in_range(m.vm->vcpu[0].exits[EXIT_MTRAP], 5, 6);
	machine_end(&m);
}

/* ---- what needs more than emulation ---- */

static void test_extint(void **state)
{
	struct machine m;
	(void)state;

	if (emulated)
		skip();
	machine_make(&m, 1);
	machine_gate(&m, 0x20, CODE + 0x100);
	m.pulse = true;
	/* mov dx,1000; out dx,al (INTR rises; IF=0); out dx,al; sti; jmp $ */
	LOAD(&m, 64, 0x66, 0xba, 0, 0x10, 0xee, 0xee, 0xfb, 0xeb, 0xfe);
	memory_write(&m.vm->memory, CODE + 0x100, (const uint8_t[]){OFF}, 6);
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	assert_int_equal(m.acknowledged, 1);
	assert_int_equal(m.writes, 2);
	machine_end(&m);
}

static void *raise_extint(void *arg)
{
	struct machine *m = arg;

	while (atomic_load(&m->writes) < 1)
		usleep(100);
	usleep(20000); /* it is in HLT by now, most likely; either way it must wake */
	vm_extint_set(m->vm, true);
	return NULL;
}

static void test_extint_wakes(void **state)
{
	struct machine m;
	pthread_t thread;
	(void)state;

	if (emulated)
		skip();
	machine_make(&m, 1);
	machine_gate(&m, 0x20, CODE + 0x100);
	/* mov dx,1000; out dx,al; sti; hlt; jmp back to hlt */
	LOAD(&m, 64, 0x66, 0xba, 0, 0x10, 0xee, 0xfb, 0xf4, 0xeb, 0xfd);
	memory_write(&m.vm->memory, CODE + 0x100, (const uint8_t[]){OFF}, 6);
	pthread_create(&thread, NULL, raise_extint, &m);
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	pthread_join(thread, NULL);
	assert_int_equal(m.acknowledged, 1);
	machine_end(&m);
}

/* A level-triggered pin: its EOI comes back to the monitor, that of an edge-triggered one does not. */
static void test_eoi(void **state)
{
	struct machine m;
	(void)state;

	if (emulated)
		skip();
	machine_make(&m, 1);
	machine_gate(&m, 0x31, CODE + 0x100);
	machine_gate(&m, 0x32, CODE + 0x100);
	/* mov ebx,fee00000; mov dword [rbx+f0],1ff; mov dx,1000; out dx,al; sti; jmp $ */
	LOAD(&m, 64, 0xbb, 0, 0, 0xe0, 0xfe, 0xc7, 0x83, 0xf0, 0, 0, 0, 0xff, 1, 0, 0, 0x66, 0xba,
	     0, 0x10, 0xee, 0xfb, 0xeb, 0xfe);
	/* mov dword [rbx+b0],0; mov dx,1000; out dx,al; cmp byte [9000],1; jne; off; iretq */
	memory_write(&m.vm->memory, CODE + 0x100,
		     (const uint8_t[]){0xc7, 0x83, 0xb0, 0,    0,    0,	   0,	 0,    0,
				       0,    0x66, 0xba, 0,    0x10, 0xee, 0xfe, 0x04, 0x25,
				       0,    0x90, 0,	 0,    0x80, 0x3c, 0x25, 0,    0x90,
				       0,    0,	   2,	 0x74, 2,    0x48, 0xcf, OFF},
		     40);
	m.fire = true;
	vm_ioapic_route(m.vm, 9, &msi_level, true);
	vm_ioapic_route(m.vm, 1, &msi_edge, false);
	vm_ioapic_route(m.vm, 9, NULL, true); /* masked while in service: still told */
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	assert_int_equal(m.writes, 3);
	assert_int_equal(m.eois, 1);
	assert_int_equal(m.vm->vcpu[0].exits[EXIT_IOAPIC_EOI], 1);
	machine_end(&m);
}

static void test_ap_start(void **state)
{
	/* mov dx,1000; mov al,cs's high byte; out dx,al; off */
	static const uint8_t ap[] = {0xba, 0, 0x10, 0x8c, 0xc8, 0x88, 0xe0, 0xee, OFF16};
	struct machine m;
	(void)state;

	if (emulated)
		skip();
	machine_make(&m, 4);
	/* mov ebx,fee00000; mov dword [rbx+f0],1ff; [rbx+310] = 3<<24; [rbx+300] = 4500 INIT;
	 * [rbx+300] = 460a SIPI; jmp $ */
	LOAD(&m, 64, 0xbb, 0, 0, 0xe0, 0xfe, 0xc7, 0x83, 0xf0, 0, 0, 0, 0xff, 1, 0, 0, 0xc7, 0x83,
	     0x10, 3, 0, 0, 0, 0, 0, 3, 0xc7, 0x83, 0, 3, 0, 0, 0, 0x45, 0, 0, 0xc7, 0x83, 0, 3, 0,
	     0, 0x0a, 0x46, 0, 0, 0xeb, 0xfe);
	memory_write(&m.vm->memory, 0xa000, ap, sizeof(ap));
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	assert_int_equal(m.writes, 1);
	assert_int_equal(m.written[0], 0x0a);
	assert_int_equal(m.vm->vcpu[3].exits[EXIT_INOUT], 2);
	machine_end(&m);
}

/* -x: the local APICs begin in x2APIC mode, and an IPI by MSR arrives. */
static void test_x2apic(void **state)
{
	struct config *config;
	struct x86_state *x86;
	struct machine m;
	(void)state;

	if (emulated)
		skip();
	x86 = aligned_alloc(64, sizeof(*x86));
	config = config_create();
	assert_int_equal(config_set(config, "x86.x2apic", "true", NULL), 0);
	machine_make_with(&m, 2, config);
	assert_int_equal(vcpu_get_state(&m.vm->vcpu[1], x86), 0);
	assert_true(x86->apic_base & X86_APIC_BASE_X2APIC);
	assert_int_equal(x86->lapic[0x20 / 4], 1);
	machine_gate(&m, 0x41, CODE + 0x100);
	/* mov ecx,80f; mov eax,1ff; xor edx,edx; wrmsr; sti; mov ecx,830; mov eax,40041 (self); wrmsr;
	 * jmp $ */
	LOAD(&m, 64, 0xb9, 0x0f, 8, 0, 0, 0xb8, 0xff, 1, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0xfb, 0xb9,
	     0x30, 8, 0, 0, 0xb8, 0x41, 0, 4, 0, 0x0f, 0x30, 0xeb, 0xfe);
	memory_write(&m.vm->memory, CODE + 0x100, (const uint8_t[]){OFF}, 6);
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	machine_end(&m);
	config_destroy(config);
	free(x86);
}

static void test_triple_fault(void **state)
{
	struct machine m;
	(void)state;

	if (emulated)
		skip();
	machine_make(&m, 1);
	LOAD(&m, 64, 0x0f, 0x0b); /* ud2, with an IDT of zeros */
	assert_int_equal(vm_run(m.vm), VM_END_TRIPLE_FAULT);
	machine_end(&m);
}

/* A wide access comes in pieces; a state read in the midst of pauses must never be half of it. */
static void test_wide_mmio(void **state)
{
	struct x86_state *x86;
	struct machine m;
	uint64_t xmm[2];
	(void)state;

	if (emulated)
		skip();
	x86 = aligned_alloc(64, sizeof(*x86));
	machine_make(&m, 1);
	/* mov ebx,d0000000; movups xmm0,[rbx]; off */
	LOAD(&m, 64, 0xbb, 0, 0, 0, 0xd0, 0x0f, 0x10, 0x03, OFF);
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	assert_int_equal(m.vm->vcpu[0].exits[EXIT_MMIO], 2);
	assert_int_equal(vcpu_get_state(&m.vm->vcpu[0], x86), 0);
	memcpy(xmm, x86->xsave + 160, 16);
	assert_int_equal(xmm[0], 0x8877665544332211ull);
	machine_end(&m);
	free(x86);
}

static uint64_t rung(int fd)
{
	uint64_t count = 0;

	return read(fd, &count, sizeof(count)) < 0 ? 0 : count;
}

/* What rings a doorbell does not exit, all else does. */
static void test_doorbells(void **state)
{
	int port = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
	    mmio = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct doorbell bells[] = {
		{.addr = PORT, .fd = port, .port = true, .size = 2, .match = true, .value = 7},
		{.addr = MMIO + 4, .fd = mmio},
	};
	struct machine m;
	(void)state;

	machine_make(&m, 1);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(engine_kvm.doorbell(m.vm, &bells[i], true), 0);
	/* mov dx,1000; mov eax,7; out dx,ax; out dx,al; inc ax; out dx,ax;
	 * mov ebx,d0000000; mov [ebx+4],eax; mov [ebx+4],ax; mov [ebx],eax; off */
	LOAD(&m, 32, 0x66, 0xba, 0, 0x10, 0xb8, 7, 0, 0, 0, 0x66, 0xef, 0xee, 0x66, 0x40, 0x66,
	     0xef, 0xbb, 0, 0, 0, 0xd0, 0x89, 0x43, 4, 0x66, 0x89, 0x43, 4, 0x89, 0x03, OFF);
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	assert_int_equal(rung(port), 1);
	assert_int_equal(rung(mmio), 2);
	assert_int_equal(m.writes, 2);
	assert_memory_equal(m.written, "\7\10", 2);
	assert_int_equal(m.vm->vcpu[0].exits[EXIT_MMIO], 1);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(engine_kvm.doorbell(m.vm, &bells[i], false), 0);
		assert_int_equal(engine_kvm.doorbell(m.vm, &bells[i], false), -ENOENT);
	}
	machine_end(&m);
	close(port);
	close(mmio);
}

/* Guest time stands still while paused: the TSC the guest reads after a pause of 300 ms has not seen it. */
static void *pause_300ms(void *arg)
{
	struct machine *m = arg;

	while (atomic_load(&m->writes) < 8)
		usleep(100);
	vm_pause(m->vm);
	usleep(300000);
	atomic_store(&m->writes, 0);
	vm_resume(m->vm);
	while (atomic_load(&m->writes) < 8)
		usleep(100);
	vm_request(m->vm, VM_END_POWEROFF);
	return NULL;
}

static void test_tsc_stands_still(void **state)
{
	struct machine m;
	pthread_t thread;
	uint64_t biggest = 0;
	(void)state;

	if (emulated)
		skip();
	machine_make(&m, 1);
	/* The guest keeps the largest step between two readings at 9000:
	 * 1: rdtsc; shl rdx,32; or rax,rdx; mov rcx,rax; sub rcx,rsi; test rsi,rsi; mov rsi,rax; jz 2;
	 * cmp rcx,[9000]; jbe 2; mov [9000],rcx; 2: mov dx,1000; out dx,al; jmp 1 */
	LOAD(&m, 64, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89, 0xc1, 0x48,
	     0x29, 0xf1, 0x48, 0x85, 0xf6, 0x48, 0x89, 0xc6, 0x74, 0x12, 0x48, 0x3b, 0x0c, 0x25, 0,
	     0x90, 0, 0, 0x76, 8, 0x48, 0x89, 0x0c, 0x25, 0, 0x90, 0, 0, 0x66, 0xba, 0, 0x10, 0xee,
	     0xeb, 0xd0);
	pthread_create(&thread, NULL, pause_300ms, &m);
	assert_int_equal(vm_run(m.vm), VM_END_POWEROFF);
	pthread_join(thread, NULL);
	memory_read(&m.vm->memory, 0x9000, &biggest, 8);
	assert_in_range(biggest, 1, m.vm->tsc_hz / 5); /* below 200 ms */
	machine_end(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_port_io),
		cmocka_unit_test(test_mmio),
		cmocka_unit_test(test_msr),
		cmocka_unit_test(test_state),
		cmocka_unit_test(test_pause_and_request),
		cmocka_unit_test(test_halted),
		cmocka_unit_test(test_single_step),
		cmocka_unit_test(test_extint),
		cmocka_unit_test(test_extint_wakes),
		cmocka_unit_test(test_eoi),
		cmocka_unit_test(test_ap_start),
		cmocka_unit_test(test_x2apic),
		cmocka_unit_test(test_triple_fault),
		cmocka_unit_test(test_wide_mmio),
		cmocka_unit_test(test_doorbells),
		cmocka_unit_test(test_tsc_stands_still),
	};
	struct error err = {.text = ""};
	const char *why;
	int r, fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		print_message("skipped: /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	close(fd);
	r = engine_kvm.probe(&why, &err);
	emulated = r == -ETIME;
	if (r)
		print_message("%s\n", err.text);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
