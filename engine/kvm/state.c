/*
 * The canonical vCPU state out of KVM's parts and back.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "engine/kvm/kvm.h"

#define LAPIC_TMCCT (0x390 / 4)
#define MSR_TSC 0x10
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_DEBUGCTL 0x1d9

static const struct {
	uint32_t index;
	uint32_t offset;
} msrs[] = {
#define MSR(number, member)                                      \
	{                                                        \
		(number), offsetof(struct x86_state, msr.member) \
	}
	MSR(0xc0000081, star),
	MSR(0xc0000082, lstar),
	MSR(0xc0000083, cstar),
	MSR(0xc0000084, sfmask),
	MSR(0xc0000102, kernel_gs_base),
	MSR(0xc0000103, tsc_aux),
	MSR(0x174, sysenter_cs),
	MSR(0x175, sysenter_esp),
	MSR(0x176, sysenter_eip),
	MSR(0x277, pat),
	MSR(0x3b, tsc_adjust),
	MSR(0x1a0, misc_enable),
	MSR(0x48, spec_ctrl),
	MSR(0x2ff, mtrr_def_type),
	MSR(0x250, mtrr_fixed[0]),
	MSR(0x258, mtrr_fixed[1]),
	MSR(0x259, mtrr_fixed[2]),
	MSR(0x268, mtrr_fixed[3]),
	MSR(0x269, mtrr_fixed[4]),
	MSR(0x26a, mtrr_fixed[5]),
	MSR(0x26b, mtrr_fixed[6]),
	MSR(0x26c, mtrr_fixed[7]),
	MSR(0x26d, mtrr_fixed[8]),
	MSR(0x26e, mtrr_fixed[9]),
	MSR(0x26f, mtrr_fixed[10]),
	MSR(0x200, mtrr_base[0]),
	MSR(0x201, mtrr_mask[0]),
	MSR(0x202, mtrr_base[1]),
	MSR(0x203, mtrr_mask[1]),
	MSR(0x204, mtrr_base[2]),
	MSR(0x205, mtrr_mask[2]),
	MSR(0x206, mtrr_base[3]),
	MSR(0x207, mtrr_mask[3]),
	MSR(0x208, mtrr_base[4]),
	MSR(0x209, mtrr_mask[4]),
	MSR(0x20a, mtrr_base[5]),
	MSR(0x20b, mtrr_mask[5]),
	MSR(0x20c, mtrr_base[6]),
	MSR(0x20d, mtrr_mask[6]),
	MSR(0x20e, mtrr_base[7]),
	MSR(0x20f, mtrr_mask[7]),
	MSR(0x4b564d00, kvm_wall_clock),
	MSR(0x4b564d01, kvm_system_time),
	MSR(0xda0, xss),
#undef MSR
};
#define MSRS (sizeof(msrs) / sizeof(msrs[0]))

union msr_buffer {
	struct kvm_msrs head;
	uint8_t space[sizeof(struct kvm_msrs) + MSRS * sizeof(struct kvm_msr_entry)];
};

static int msr_call(struct kvm_vcpu *kv, unsigned long request, uint32_t index, uint64_t *value)
{
	union msr_buffer buffer;
	int r;

	memset(&buffer, 0, sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry));
	buffer.head.nmsrs = 1;
	buffer.head.entries[0] = (struct kvm_msr_entry){.index = index, .data = *value};
	r = kvm_ioctl(kv->fd, request, &buffer);
	*value = buffer.head.entries[0].data;
	return r < 0 ? r : r == 1 ? 0 : -ENXIO;
}

int kvm_get_msr(struct kvm_vcpu *kv, uint32_t index, uint64_t *value)
{
	*value = 0;
	return msr_call(kv, KVM_GET_MSRS, index, value);
}

int kvm_set_msr(struct kvm_vcpu *kv, uint32_t index, uint64_t value)
{
	return msr_call(kv, KVM_SET_MSRS, index, &value);
}

/* KVM does the first n and stops at one it does not have: that one is skipped. Reading leaves it 0;
 * writing anything but 0 to it cannot be. */
static int transfer_msrs(struct kvm_vcpu *kv, unsigned long request, struct x86_state *state)
{
	union msr_buffer buffer;
	int r;

	for (size_t first = 0, n; first < MSRS; first += n + 1) {
		n = MSRS - first;
		memset(&buffer, 0, sizeof(buffer));
		buffer.head.nmsrs = (uint32_t)n;
		for (size_t i = 0; i < n; i++) {
			buffer.head.entries[i].index = msrs[first + i].index;
			memcpy(&buffer.head.entries[i].data, (char *)state + msrs[first + i].offset,
			       8);
		}
		r = kvm_ioctl(kv->fd, request, &buffer);
		if (r < 0)
			return r;
		n = (size_t)r;
		for (size_t i = 0; request == KVM_GET_MSRS && i < n; i++)
			memcpy((char *)state + msrs[first + i].offset, &buffer.head.entries[i].data,
			       8);
		if (request == KVM_SET_MSRS && first + n < MSRS && buffer.head.entries[n].data != 0)
			return -EINVAL;
	}
	return 0;
}

/* ---- registers ---- */

static void get_regs(const struct kvm_regs *regs, struct x86_state *state)
{
	const uint64_t gpr[X86_GPRS] = {regs->rax, regs->rcx, regs->rdx, regs->rbx,
					regs->rsp, regs->rbp, regs->rsi, regs->rdi,
					regs->r8,  regs->r9,  regs->r10, regs->r11,
					regs->r12, regs->r13, regs->r14, regs->r15};

	memcpy(state->gpr, gpr, sizeof(gpr));
	state->rip = regs->rip;
	state->rflags = regs->rflags;
}

static void set_regs(struct kvm_regs *regs, const struct x86_state *state)
{
	const uint64_t *gpr = state->gpr;

	*regs = (struct kvm_regs){.rax = gpr[X86_RAX],
				  .rcx = gpr[X86_RCX],
				  .rdx = gpr[X86_RDX],
				  .rbx = gpr[X86_RBX],
				  .rsp = gpr[X86_RSP],
				  .rbp = gpr[X86_RBP],
				  .rsi = gpr[X86_RSI],
				  .rdi = gpr[X86_RDI],
				  .r8 = gpr[X86_R8],
				  .r9 = gpr[X86_R9],
				  .r10 = gpr[X86_R10],
				  .r11 = gpr[X86_R11],
				  .r12 = gpr[X86_R12],
				  .r13 = gpr[X86_R13],
				  .r14 = gpr[X86_R14],
				  .r15 = gpr[X86_R15],
				  .rip = state->rip,
				  .rflags = state->rflags};
}

static void get_seg(const struct kvm_segment *from, struct x86_seg *seg)
{
	seg->base = from->base;
	seg->limit = from->limit;
	seg->sel = from->selector;
	seg->attr = (uint16_t)((from->type & 15) | (from->s & 1) << 4 | (from->dpl & 3) << 5 |
			       (from->present & 1) << 7 | (from->avl & 1) << 12 |
			       (from->l & 1) << 13 | (from->db & 1) << 14 | (from->g & 1) << 15);
	seg->unusable = from->unusable;
}

static struct kvm_segment set_seg(const struct x86_seg *seg)
{
	return (struct kvm_segment){.base = seg->base,
				    .limit = seg->limit,
				    .selector = seg->sel,
				    .type = seg->attr & 15,
				    .s = seg->attr >> 4 & 1,
				    .dpl = seg->attr >> 5 & 3,
				    .present = seg->attr >> 7 & 1,
				    .avl = seg->attr >> 12 & 1,
				    .l = seg->attr >> 13 & 1,
				    .db = seg->attr >> 14 & 1,
				    .g = seg->attr >> 15 & 1,
				    .unusable = seg->unusable};
}

static void get_sregs(const struct kvm_sregs *sregs, struct x86_state *state)
{
	get_seg(&sregs->es, &state->seg[X86_ES]);
	get_seg(&sregs->cs, &state->seg[X86_CS]);
	get_seg(&sregs->ss, &state->seg[X86_SS]);
	get_seg(&sregs->ds, &state->seg[X86_DS]);
	get_seg(&sregs->fs, &state->seg[X86_FS]);
	get_seg(&sregs->gs, &state->seg[X86_GS]);
	get_seg(&sregs->tr, &state->tr);
	get_seg(&sregs->ldt, &state->ldtr);
	state->gdtr = (struct x86_table){sregs->gdt.base, sregs->gdt.limit};
	state->idtr = (struct x86_table){sregs->idt.base, sregs->idt.limit};
	state->cr0 = sregs->cr0;
	state->cr2 = sregs->cr2;
	state->cr3 = sregs->cr3;
	state->cr4 = sregs->cr4;
	state->cr8 = sregs->cr8;
	state->efer = sregs->efer;
	state->apic_base = sregs->apic_base;
}

static void set_sregs(struct kvm_sregs *sregs, const struct x86_state *state)
{
	*sregs = (struct kvm_sregs){
		.es = set_seg(&state->seg[X86_ES]),
		.cs = set_seg(&state->seg[X86_CS]),
		.ss = set_seg(&state->seg[X86_SS]),
		.ds = set_seg(&state->seg[X86_DS]),
		.fs = set_seg(&state->seg[X86_FS]),
		.gs = set_seg(&state->seg[X86_GS]),
		.tr = set_seg(&state->tr),
		.ldt = set_seg(&state->ldtr),
		.gdt = {.base = state->gdtr.base, .limit = state->gdtr.limit},
		.idt = {.base = state->idtr.base, .limit = state->idtr.limit},
		.cr0 = state->cr0,
		.cr2 = state->cr2,
		.cr3 = state->cr3,
		.cr4 = state->cr4,
		.cr8 = state->cr8,
		.efer = state->efer,
		.apic_base = state->apic_base,
	};
}

/* ---- events ---- */

static void get_events(const struct kvm_vcpu_events *from, struct x86_events *events)
{
	*events = (struct x86_events){
		.exception_pending = from->exception.injected || from->exception.pending,
		.exception_vector = from->exception.nr,
		.exception_has_error = from->exception.has_error_code,
		.exception_error = from->exception.error_code,
		.exception_has_payload = from->exception_has_payload,
		.exception_payload = from->exception_payload,
		.interrupt_pending = from->interrupt.injected,
		.interrupt_soft = from->interrupt.soft,
		.interrupt_vector = from->interrupt.nr,
		.nmi_pending = from->nmi.pending,
		.nmi_injected = from->nmi.injected,
		.nmi_masked = from->nmi.masked,
		.shadow_sti = from->interrupt.shadow & KVM_X86_SHADOW_INT_STI,
		.shadow_mov_ss = from->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS,
	};
}

static void set_events(struct kvm_vcpu_events *to, const struct x86_events *events, bool payload)
{
	bool pending = events->exception_pending && events->exception_has_payload && payload;

	memset(to, 0, sizeof(*to));
	to->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
		    KVM_VCPUEVENT_VALID_SHADOW;
	if (payload)
		to->flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
	/* "pending": the payload has not reached CR2 or DR6 yet; else the event is delivered as it is */
	to->exception.pending = pending;
	to->exception.injected = events->exception_pending && !pending;
	to->exception.nr = events->exception_vector;
	to->exception.has_error_code = events->exception_has_error;
	to->exception.error_code = events->exception_error;
	to->exception_has_payload = pending;
	to->exception_payload = pending ? events->exception_payload : 0;
	to->interrupt.injected = events->interrupt_pending;
	to->interrupt.soft = events->interrupt_soft;
	to->interrupt.nr = events->interrupt_vector;
	to->interrupt.shadow = (uint8_t)((events->shadow_sti ? KVM_X86_SHADOW_INT_STI : 0) |
					 (events->shadow_mov_ss ? KVM_X86_SHADOW_INT_MOV_SS : 0));
	to->nmi.pending = events->nmi_pending;
	to->nmi.injected = events->nmi_injected;
	to->nmi.masked = events->nmi_masked;
	to->sipi_vector = events->sipi_vector;
}

static void get_activity(const struct kvm_mp_state *mp, const struct kvm_vcpu_events *events,
			 struct x86_state *state)
{
	switch (mp->mp_state) {
	case KVM_MP_STATE_HALTED:
		state->activity = X86_HALTED;
		break;
	case KVM_MP_STATE_SIPI_RECEIVED:
		state->events.sipi_pending = true;
		state->events.sipi_vector = (uint8_t)events->sipi_vector;
		state->activity = X86_WAIT_SIPI;
		break;
	case KVM_MP_STATE_UNINITIALIZED:
	case KVM_MP_STATE_INIT_RECEIVED:
		state->activity = X86_WAIT_SIPI;
		break;
	default:
		state->activity = X86_RUNNING;
		break;
	}
}

static struct kvm_mp_state set_activity(const struct x86_state *state)
{
	switch (state->activity) {
	case X86_HALTED:
		return (struct kvm_mp_state){KVM_MP_STATE_HALTED};
	case X86_WAIT_SIPI:
		return (struct kvm_mp_state){state->events.sipi_pending
						     ? KVM_MP_STATE_SIPI_RECEIVED
						     : KVM_MP_STATE_INIT_RECEIVED};
	default:
		return (struct kvm_mp_state){KVM_MP_STATE_RUNNABLE};
	}
}

/* ---- the whole ---- */

static int get_parts(struct kvm_vcpu *kv, struct x86_state *state)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debug;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp;
	int r;

	if ((r = kvm_ioctl(kv->fd, KVM_GET_MP_STATE, &mp)) < 0 ||
	    (r = kvm_ioctl(kv->fd, KVM_GET_REGS, &regs)) < 0 ||
	    (r = kvm_ioctl(kv->fd, KVM_GET_SREGS, &sregs)) < 0 ||
	    (r = kvm_ioctl(kv->fd, KVM_GET_XCRS, &xcrs)) < 0 ||
	    (r = kvm_ioctl(kv->fd, KVM_GET_DEBUGREGS, &debug)) < 0 ||
	    (r = kvm_ioctl(kv->fd, KVM_GET_VCPU_EVENTS, &events)) < 0)
		return r;
	get_regs(&regs, state);
	get_sregs(&sregs, state);
	state->xcr0 = 1;
	for (uint32_t i = 0; i < xcrs.nr_xcrs && i < KVM_MAX_XCRS; i++) {
		if (xcrs.xcrs[i].xcr == 0)
			state->xcr0 = xcrs.xcrs[i].value;
	}
	memcpy(state->dr, debug.db, sizeof(debug.db));
	state->dr[6] = debug.dr6;
	state->dr[7] = debug.dr7;
	get_events(&events, &state->events);
	get_activity(&mp, &events, state);
	return 0;
}

static int get_lapic(struct kvm_vcpu *kv, struct x86_state *state)
{
	struct kvm_lapic_state lapic;
	int r = kvm_ioctl(kv->fd, KVM_GET_LAPIC, &lapic);

	_Static_assert(sizeof(lapic.regs) == sizeof(state->lapic), "one register page");
	if (r >= 0)
		memcpy(state->lapic, lapic.regs, sizeof(state->lapic));
	return r;
}

static int get_xsave(struct vcpu *vcpu, struct kvm_vcpu *kv, struct x86_state *state)
{
	const struct cpuid_leaf *leaf = cpuid_find(&vcpu->vm->cpuid, 0xd, 0);
	struct kvm_xsave xsave;
	int r = kvm_ioctl(kv->fd, KVM_GET_XSAVE, &xsave);

	_Static_assert(sizeof(xsave.region) == X86_XSAVE_MAX, "KVM's area is as large as ours");
	if (r < 0)
		return r;
	state->xsave_size = leaf ? leaf->regs.ecx : 512 + 64;
	memcpy(state->xsave, xsave.region, state->xsave_size);
	return 0;
}

/* KVM logs a line for every write to it on CPUs without LBR virtualization, of a zero too. */
static int set_debugctl(struct kvm_vcpu *kv, uint64_t value)
{
	uint64_t old;

	if (kvm_get_msr(kv, MSR_DEBUGCTL, &old) < 0)
		old = 0;
	return old == value ? 0 : kvm_set_msr(kv, MSR_DEBUGCTL, value);
}

int kvm_vcpu_get_state(struct vcpu *vcpu, struct x86_state *state)
{
	struct kvm_vcpu *kv = kvm_vcpu_of(vcpu);
	int r = kvm_vcpu_finish(vcpu);

	memset(state, 0, sizeof(*state));
	if (r < 0 || (r = get_parts(kv, state)) < 0 || (r = get_lapic(kv, state)) < 0 ||
	    (r = get_xsave(vcpu, kv, state)) < 0 ||
	    (r = transfer_msrs(kv, KVM_GET_MSRS, state)) < 0)
		return r;
	kvm_get_msr(kv, MSR_DEBUGCTL, &state->msr.debugctl); /* 0 if the CPU has none */
	if (kv->extint_vector >= 0) {
		state->events.interrupt_pending = true;
		state->events.interrupt_vector = (uint8_t)kv->extint_vector;
	}
	if (kvm_of(vcpu->vm)->time_paused) {
		state->msr.tsc = kv->tsc;
		state->msr.tsc_deadline = kv->tsc_deadline;
		state->lapic[LAPIC_TMCCT] = kv->tmcct;
		return 0;
	}
	kvm_get_msr(kv, MSR_TSC_DEADLINE, &state->msr.tsc_deadline); /* 0 if the CPU has none */
	return kvm_get_msr(kv, MSR_TSC, &state->msr.tsc);
}

/* The order is that of dependence: CR4 and EFER before XCR0 and the rest, the APIC base before the
 * register page, events last, since writing registers drops them. */
static int set_parts(struct kvm_vcpu *kv, const struct x86_state *state, bool payload)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = state->xcr0}}};
	struct kvm_debugregs debug = {.dr6 = state->dr[6], .dr7 = state->dr[7]};
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp = set_activity(state);
	struct kvm_lapic_state lapic;
	struct kvm_xsave xsave = {.region = {0}};
	int r;

	set_regs(&regs, state);
	set_sregs(&sregs, state);
	set_events(&events, &state->events, payload);
	memcpy(debug.db, state->dr, sizeof(debug.db));
	memcpy(lapic.regs, state->lapic, sizeof(lapic.regs));
	memcpy(xsave.region, state->xsave,
	       state->xsave_size < sizeof(xsave.region) ? state->xsave_size : sizeof(xsave.region));
	if ((r = kvm_ioctl(kv->fd, KVM_SET_SREGS, &sregs)) < 0 ||
	    (r = kvm_ioctl(kv->fd, KVM_SET_REGS, &regs)) < 0 ||
	    (r = kvm_ioctl(kv->fd, KVM_SET_XCRS, &xcrs)) < 0 ||
	    (r = kvm_ioctl(kv->fd, KVM_SET_XSAVE, &xsave)) < 0 ||
	    (r = kvm_ioctl(kv->fd, KVM_SET_LAPIC, &lapic)) < 0 ||
	    (r = transfer_msrs(kv, KVM_SET_MSRS, (struct x86_state *)state)) < 0 ||
	    (r = set_debugctl(kv, state->msr.debugctl)) < 0 ||
	    (r = kvm_ioctl(kv->fd, KVM_SET_DEBUGREGS, &debug)) < 0 ||
	    (r = kvm_ioctl(kv->fd, KVM_SET_MP_STATE, &mp)) < 0)
		return r;
	return kvm_ioctl(kv->fd, KVM_SET_VCPU_EVENTS, &events);
}

int kvm_vcpu_set_state(struct vcpu *vcpu, const struct x86_state *state)
{
	struct kvm_vcpu *kv = kvm_vcpu_of(vcpu);
	struct kvm_vm *kvm = kvm_of(vcpu->vm);
	int r = kvm_vcpu_finish(vcpu); /* or it would be completed into the new state */

	if (r < 0)
		return r;
	if (state->activity == X86_SHUTDOWN)
		return -EINVAL; /* such a VM has ended; KVM has no such state */
	r = set_parts(kv, state, kvm->exception_payload);
	if (r < 0)
		return r;
	kv->run->ready_for_interrupt_injection = 0; /* it spoke of the old state */
	kv->extint_vector = -1;
	if (kvm->time_paused) {
		kv->tsc = state->msr.tsc;
		kv->tsc_deadline = state->msr.tsc_deadline;
		kv->tmcct = state->lapic[LAPIC_TMCCT];
		return 0;
	}
	r = kvm_set_msr(kv, MSR_TSC, state->msr.tsc);
	if (r == 0 && state->msr.tsc_deadline)
		r = kvm_set_msr(kv, MSR_TSC_DEADLINE, state->msr.tsc_deadline);
	return r;
}
