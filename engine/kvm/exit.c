/*
 * KVM's exits as the monitor's, and the monitor's answers as KVM's.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/kvm/kvm.h"

void kvm_exit_fail(struct vm_exit *exit, uint64_t reason, const char *fmt, ...)
{
	va_list args;

	exit->code = EXIT_FAIL;
	exit->fail.hw_reason = reason;
	va_start(args, fmt);
	vsnprintf(exit->fail.text, sizeof(exit->fail.text), fmt, args);
	va_end(args);
}

static void decode_io(struct kvm_run *run, struct vm_exit *exit)
{
	exit->code = EXIT_INOUT;
	exit->inout.port = run->io.port;
	exit->inout.size = run->io.size;
	exit->inout.in = run->io.direction == KVM_EXIT_IO_IN;
	/* KVM does not say "string" of a single element; nothing depends on it */
	exit->inout.string = run->io.count > 1;
	exit->inout.count = run->io.count;
	exit->inout.data = (uint8_t *)run + run->io.data_offset;
}

static void decode_mmio(struct kvm_run *run, struct vm_exit *exit)
{
	exit->code = EXIT_MMIO;
	exit->mmio.gpa = run->mmio.phys_addr;
	exit->mmio.size = (uint8_t)run->mmio.len;
	exit->mmio.write = run->mmio.is_write;
	exit->mmio.value = 0;
	if (run->mmio.is_write)
		memcpy(&exit->mmio.value, run->mmio.data, run->mmio.len <= 8 ? run->mmio.len : 8);
}

static void decode_msr(struct kvm_run *run, struct vm_exit *exit, enum exit_code code)
{
	exit->code = code;
	exit->msr.index = run->msr.index;
	exit->msr.value = code == EXIT_WRMSR ? run->msr.data : 0;
	exit->msr.fault = false;
}

static const char *suberror_text(uint32_t suberror)
{
	switch (suberror) {
	case KVM_INTERNAL_ERROR_EMULATION:
		return "it cannot emulate an instruction";
	case KVM_INTERNAL_ERROR_SIMUL_EX:
		return "two exceptions at once";
	case KVM_INTERNAL_ERROR_DELIVERY_EV:
		return "an exit while an event was delivered";
	case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
		return "the hardware exited for an unexpected reason";
	default:
		return "an unknown error";
	}
}

static void decode_internal_error(struct kvm_run *run, struct vm_exit *exit)
{
	uint32_t suberror = run->internal.suberror;
	char bytes[3 * 15 + 1] = "";

	if (suberror == KVM_INTERNAL_ERROR_EMULATION && run->emulation_failure.ndata >= 3 &&
	    run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) {
		unsigned n = run->emulation_failure.insn_size;

		for (unsigned i = 0; i < n && i < 15; i++)
			snprintf(bytes + 3 * i, 4, " %02x", run->emulation_failure.insn_bytes[i]);
		kvm_exit_fail(exit, run->exit_reason, "KVM gave up, suberror %u: %s; its bytes:%s",
			      suberror, suberror_text(suberror), bytes);
		return;
	}
	kvm_exit_fail(exit, run->exit_reason,
		      "KVM gave up, suberror %u: %s (data %" PRIx64 " %" PRIx64 " %" PRIx64 ")",
		      suberror, suberror_text(suberror),
		      run->internal.ndata > 0 ? (uint64_t)run->internal.data[0] : 0,
		      run->internal.ndata > 1 ? (uint64_t)run->internal.data[1] : 0,
		      run->internal.ndata > 2 ? (uint64_t)run->internal.data[2] : 0);
}

static void decode_debug(struct kvm_vcpu *kv, struct vm_exit *exit)
{
	exit->code = kv->single_step ? EXIT_MTRAP : EXIT_DEBUG;
	exit->rip = kv->run->debug.arch.pc;
}

void kvm_exit_decode(struct vcpu *vcpu, struct vm_exit *exit)
{
	struct kvm_vcpu *kv = kvm_vcpu_of(vcpu);
	struct kvm_run *run = kv->run;

	exit->rip = 0;
	exit->inst_len = 0;
	kv->unfinished = false;
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		kv->unfinished = true;
		decode_io(run, exit);
		break;
	case KVM_EXIT_MMIO:
		kv->unfinished = true;
		decode_mmio(run, exit);
		break;
	case KVM_EXIT_X86_RDMSR:
		kv->unfinished = true;
		decode_msr(run, exit, EXIT_RDMSR);
		break;
	case KVM_EXIT_X86_WRMSR:
		kv->unfinished = true;
		decode_msr(run, exit, EXIT_WRMSR);
		break;
	case KVM_EXIT_HLT:
		exit->code = EXIT_HLT;
		break;
	case KVM_EXIT_DEBUG:
		decode_debug(kv, exit);
		break;
	case KVM_EXIT_IOAPIC_EOI:
		exit->code = EXIT_IOAPIC_EOI;
		exit->eoi.vector = run->eoi.vector;
		break;
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		exit->code = EXIT_IRQ_WINDOW;
		break;
	case KVM_EXIT_INTR:
		exit->code = EXIT_BOGUS;
		break;
	case KVM_EXIT_SHUTDOWN:
		exit->code = EXIT_SHUTDOWN;
		break;
	case KVM_EXIT_FAIL_ENTRY:
		kvm_exit_fail(exit, run->fail_entry.hardware_entry_failure_reason,
			      "the hardware refused to enter the guest, reason 0x%" PRIx64,
			      (uint64_t)run->fail_entry.hardware_entry_failure_reason);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		decode_internal_error(run, exit);
		break;
	case KVM_EXIT_UNKNOWN:
		kvm_exit_fail(exit, run->hw.hardware_exit_reason,
			      "KVM does not know the hardware's exit reason 0x%" PRIx64,
			      (uint64_t)run->hw.hardware_exit_reason);
		break;
	default:
		kvm_exit_fail(exit, run->exit_reason,
			      "KVM exited for reason %u, which skep does not know",
			      run->exit_reason);
		break;
	}
}

/* What the handler left in the exit of the last KVM_RUN; IN data was written in place. */
void kvm_exit_answer(struct vcpu *vcpu, const struct vm_exit *exit)
{
	struct kvm_run *run = kvm_vcpu_of(vcpu)->run;

	switch (exit->code) {
	case EXIT_MMIO:
		if (!exit->mmio.write)
			memcpy(run->mmio.data, &exit->mmio.value,
			       exit->mmio.size <= 8 ? exit->mmio.size : 8);
		break;
	case EXIT_RDMSR:
		run->msr.data = exit->msr.value;
		run->msr.error = exit->msr.fault;
		break;
	case EXIT_WRMSR:
		run->msr.error = exit->msr.fault;
		break;
	default:
		break;
	}
}
