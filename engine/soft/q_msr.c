/*
 * Quick: model-specific registers (SDM vol. 4, APM vol. 2 appendix A), the TSC, random numbers, kvm-clock (Linux:
 * Documentation/virt/kvm/x86/msr.rst). MSRs that are not here go to the monitor.
 */
#include "engine/soft/access.h"
#include "engine/soft/lapic.h"
#include "engine/soft/q_insn.h"

enum {
	MSR_P5_MC_ADDR = 0x0, /* on AMD's too */
	MSR_P5_MC_TYPE = 0x1,
	MSR_TSC = 0x10,
	MSR_KVM_WALL_CLOCK_OLD = 0x11,
	MSR_KVM_SYSTEM_TIME_OLD = 0x12,
	MSR_APIC_BASE = 0x1b,
	MSR_TSC_ADJUST = 0x3b,
	MSR_SMI_COUNT = 0x34,
	MSR_PLATFORM_INFO = 0xce,
	MSR_MTRR_CAP = 0xfe,
	MSR_ARCH_CAPABILITIES = 0x10a,
	MSR_MISC_FEATURES = 0x140,
	MSR_SYSENTER_CS = 0x174,
	MSR_SYSENTER_ESP = 0x175,
	MSR_SYSENTER_EIP = 0x176,
	MSR_MCG_CAP = 0x179,
	MSR_MCG_STATUS = 0x17a,
	MSR_MISC_ENABLE = 0x1a0,
	MSR_DEBUGCTL = 0x1d9,
	MSR_MTRR_PHYS = 0x200, /* base, mask, base .. */
	MSR_MTRR_PHYS_END = 0x20f,
	MSR_PAT = 0x277,
	MSR_MTRR_DEF_TYPE = 0x2ff,
	MSR_TSC_DEADLINE = 0x6e0,
	MSR_X2APIC = 0x800,
	MSR_X2APIC_END = 0x8ff,
	MSR_KVM_WALL_CLOCK = 0x4b564d00,
	MSR_KVM_SYSTEM_TIME = 0x4b564d01,
};
#define MSR_EFER 0xc0000080u
#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_SFMASK 0xc0000084u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MSR_TSC_AUX 0xc0000103u
#define MSR_AMD_DE_CFG 0xc0011029u

#define DE_CFG_LFENCE_SERIALIZE 2ull

#define MTRR_CAP 0x508ull /* eight pairs, fixed ranges, write-combining */

static const uint16_t mtrr_fixed[11] = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
					0x26b, 0x26c, 0x26d, 0x26e, 0x26f};

enum answer { MSR_DONE, MSR_FAULT, MSR_MONITOR };

static uint64_t tsc_now(const struct soft_cpu *cpu)
{
	return soft_now(&cpu->svm->time) + cpu->tsc_offset;
}

static int mtrr_fixed_index(uint32_t msr)
{
	for (unsigned i = 0; i < 11; i++)
		if (mtrr_fixed[i] == msr)
			return (int)i;
	return -1;
}

/* MSRs that are a field and no more, with what may be written there. */
enum field_rule { RULE_ANY, RULE_CANONICAL, RULE_LOW32 };

static uint64_t *msr_field(struct soft_cpu *cpu, uint32_t msr, enum field_rule *rule)
{
	struct x86_msrs *m = &cpu->msr;

	*rule = RULE_ANY;
	switch (msr) {
	case MSR_SYSENTER_CS:
		return &m->sysenter_cs;
	case MSR_STAR:
		return &m->star;
	case MSR_MISC_ENABLE:
		return &m->misc_enable;
	case MSR_SFMASK:
		*rule = RULE_LOW32;
		return &m->sfmask;
	case MSR_TSC_AUX:
		*rule = RULE_LOW32;
		return model_bit(cpu, 0x80000001, CPUID_EDX, 27) ? &m->tsc_aux : NULL;
	default:
		break;
	}
	*rule = RULE_CANONICAL;
	switch (msr) {
	case MSR_SYSENTER_ESP:
		return &m->sysenter_esp;
	case MSR_SYSENTER_EIP:
		return &m->sysenter_eip;
	case MSR_LSTAR:
		return &m->lstar;
	case MSR_CSTAR:
		return &m->cstar;
	case MSR_KERNEL_GS_BASE:
		return &m->kernel_gs_base;
	case MSR_FS_BASE:
		return &cpu->seg[X86_FS].base;
	case MSR_GS_BASE:
		return &cpu->seg[X86_GS].base;
	default:
		return NULL;
	}
}

/* ---- MTRRs, PAT ------------------------------------------------------------------------------------------ */

static bool memory_type(uint8_t type)
{
	return type == 0 || type == 1 || (type >= 4 && type <= 6);
}

static bool mtrr_types(uint64_t value)
{
	for (unsigned i = 0; i < 8; i++)
		if (!memory_type((uint8_t)(value >> 8 * i)))
			return false;
	return true;
}

static bool pat_types(uint64_t value)
{
	for (unsigned i = 0; i < 8; i++) {
		uint8_t type = (uint8_t)(value >> 8 * i);

		if (!memory_type(type) && type != 7) /* UC- */
			return false;
	}
	return true;
}

static uint64_t *mtrr_variable(struct soft_cpu *cpu, uint32_t msr)
{
	unsigned i = (msr - MSR_MTRR_PHYS) / 2;

	return msr & 1 ? &cpu->msr.mtrr_mask[i] : &cpu->msr.mtrr_base[i];
}

static bool mtrr_variable_valid(const struct soft_cpu *cpu, uint32_t msr, uint64_t value)
{
	uint64_t address = ((1ull << cpu->svm->maxphyaddr) - 1) & ~0xfffull;

	if (msr & 1)
		return !(value & ~(address | 0x800));
	return !(value & ~(address | 0xff)) && memory_type((uint8_t)value);
}

static enum answer mtrr_write(struct soft_cpu *cpu, uint32_t msr, uint64_t value)
{
	int fixed = mtrr_fixed_index(msr);

	if (msr >= MSR_MTRR_PHYS && msr <= MSR_MTRR_PHYS_END) {
		if (!mtrr_variable_valid(cpu, msr, value))
			return MSR_FAULT;
		*mtrr_variable(cpu, msr) = value;
		return MSR_DONE;
	}
	if (fixed >= 0) {
		if (!mtrr_types(value))
			return MSR_FAULT;
		cpu->msr.mtrr_fixed[fixed] = value;
		return MSR_DONE;
	}
	if (msr == MSR_MTRR_DEF_TYPE) {
		if ((value & ~0xcffull) || !memory_type((uint8_t)value))
			return MSR_FAULT;
		cpu->msr.mtrr_def_type = value;
		return MSR_DONE;
	}
	return msr == MSR_MTRR_CAP ? MSR_FAULT : MSR_MONITOR;
}

static enum answer mtrr_read(struct soft_cpu *cpu, uint32_t msr, uint64_t *value)
{
	int fixed = mtrr_fixed_index(msr);

	if (msr >= MSR_MTRR_PHYS && msr <= MSR_MTRR_PHYS_END)
		*value = *mtrr_variable(cpu, msr);
	else if (fixed >= 0)
		*value = cpu->msr.mtrr_fixed[fixed];
	else if (msr == MSR_MTRR_DEF_TYPE)
		*value = cpu->msr.mtrr_def_type;
	else if (msr == MSR_MTRR_CAP)
		*value = MTRR_CAP;
	else
		return MSR_MONITOR;
	return MSR_DONE;
}

/* ---- kvm-clock ------------------------------------------------------------------------------------------- */

struct pvclock_page {
	uint32_t version, pad0;
	uint64_t tsc_timestamp, system_time;
	uint32_t tsc_to_system_mul;
	int8_t tsc_shift;
	uint8_t flags, pad[2];
};
#define PVCLOCK_TSC_STABLE 1

/* The TSC counts nanoseconds: ns = (delta << 1) * 2^31 >> 32, for ever; so the page is written only when the guest
 * registers it or sets its TSC. */
void kvm_clock_update(struct soft_cpu *cpu)
{
	uint64_t gpa = cpu->msr.kvm_system_time & ~1ull, now = soft_now(&cpu->svm->time);
	volatile struct pvclock_page *page;
	bool writable = false;

	if (!(cpu->msr.kvm_system_time & 1) || (gpa & 3))
		return;
	page = (void *)guest_ptr(cpu->svm, gpa, sizeof(*page), &writable);
	if (!page || !writable)
		return;
	page->version |= 1;
	atomic_thread_fence(memory_order_seq_cst);
	page->tsc_timestamp = now + cpu->tsc_offset;
	page->system_time = now;
	page->tsc_to_system_mul = 0x80000000u;
	page->tsc_shift = 1;
	page->flags = PVCLOCK_TSC_STABLE;
	atomic_thread_fence(memory_order_seq_cst);
	page->version++;
	ram_written(cpu, gpa, 4096 - (gpa & 0xfff) < sizeof(*page) ? 4 : sizeof(*page));
}

/* struct pvclock_wall_clock: version, seconds, nanoseconds: when the VM's clock was at 0. */
static void kvm_wall_clock(struct soft_cpu *cpu)
{
	uint64_t gpa = cpu->msr.kvm_wall_clock, ns;
	volatile uint32_t *page;
	struct timespec ts;
	bool writable = false;

	if (gpa & 3)
		return;
	page = (void *)guest_ptr(cpu->svm, gpa, 12, &writable);
	if (!page || !writable)
		return;
	clock_gettime(CLOCK_REALTIME, &ts);
	ns = (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec - soft_now(&cpu->svm->time);
	page[0] |= 1;
	atomic_thread_fence(memory_order_seq_cst);
	page[1] = (uint32_t)(ns / 1000000000ull);
	page[2] = (uint32_t)(ns % 1000000000ull);
	atomic_thread_fence(memory_order_seq_cst);
	page[0]++;
	ram_written(cpu, gpa, 12);
}

/* ---- EFER, TSC ------------------------------------------------------------------------------------------- */

static enum answer efer_write(struct soft_cpu *cpu, uint64_t value)
{
	uint64_t allowed = X86_EFER_SCE | X86_EFER_LMA, changed;
	uint32_t edx = model_reg(cpu, 0x80000001, CPUID_EDX);

	if (edx >> 29 & 1)
		allowed |= X86_EFER_LME;
	if (edx >> 20 & 1)
		allowed |= X86_EFER_NXE;
	if (edx >> 25 & 1)
		allowed |= X86_EFER_FFXSR;
	if (value & ~allowed)
		return MSR_FAULT;
	value = (value & ~X86_EFER_LMA) | (cpu->efer & X86_EFER_LMA);
	changed = cpu->efer ^ value;
	if ((changed & X86_EFER_LME) && (cpu->cr0 & X86_CR0_PG))
		return MSR_FAULT;
	cpu->efer = value;
	if (changed & X86_EFER_NXE)
		soft_tlb_flush_all(cpu, true);
	return MSR_DONE;
}

/* The TSC moves by `delta` against time. */
static void tsc_move(struct soft_cpu *cpu, uint64_t delta)
{
	cpu->tsc_offset += delta;
	kvm_clock_update(cpu);
	soft_request(cpu, REQ_TIMER); /* a deadline is in TSC ticks */
}

static enum answer time_write(struct soft_cpu *cpu, uint32_t msr, uint64_t value)
{
	uint64_t delta;

	switch (msr) {
	case MSR_TSC:
		delta = value - tsc_now(cpu);
		cpu->msr.tsc_adjust += delta;
		tsc_move(cpu, delta);
		return MSR_DONE;
	case MSR_TSC_ADJUST:
		delta = value - cpu->msr.tsc_adjust;
		cpu->msr.tsc_adjust = value;
		tsc_move(cpu, delta);
		return MSR_DONE;
	case MSR_TSC_DEADLINE:
		return lapic_write_tsc_deadline(cpu, value) ? MSR_DONE : MSR_FAULT;
	case MSR_KVM_WALL_CLOCK_OLD:
	case MSR_KVM_WALL_CLOCK:
		cpu->msr.kvm_wall_clock = value;
		kvm_wall_clock(cpu);
		return MSR_DONE;
	case MSR_KVM_SYSTEM_TIME_OLD:
	case MSR_KVM_SYSTEM_TIME:
		cpu->msr.kvm_system_time = value;
		kvm_clock_update(cpu);
		return MSR_DONE;
	default:
		return MSR_MONITOR;
	}
}

static enum answer time_read(struct soft_cpu *cpu, uint32_t msr, uint64_t *value)
{
	switch (msr) {
	case MSR_TSC:
		*value = tsc_now(cpu);
		return MSR_DONE;
	case MSR_TSC_ADJUST:
		*value = cpu->msr.tsc_adjust;
		return MSR_DONE;
	case MSR_TSC_DEADLINE:
		*value = cpu->msr.tsc_deadline;
		return MSR_DONE;
	case MSR_KVM_WALL_CLOCK_OLD:
	case MSR_KVM_WALL_CLOCK:
		*value = cpu->msr.kvm_wall_clock;
		return MSR_DONE;
	case MSR_KVM_SYSTEM_TIME_OLD:
	case MSR_KVM_SYSTEM_TIME:
		*value = cpu->msr.kvm_system_time;
		return MSR_DONE;
	default:
		return MSR_MONITOR;
	}
}

/* ---- constants ------------------------------------------------------------------------------------------- */

/* Registers that hold one value: `*writable` if that may be written again, as some guests do.
 * Machine check without banks (SDM vol. 3, 16.3.1); Intel's that guests look at on models that have them: no SMI was
 * counted, no CPUID faulting; AMD's DE_CFG: LFENCE serializes. */
static bool msr_constant(const struct soft_cpu *cpu, uint32_t msr, uint64_t *value, bool *writable)
{
	*value = msr == MSR_AMD_DE_CFG ? DE_CFG_LFENCE_SERIALIZE : 0;
	*writable = msr == MSR_MCG_STATUS || msr == MSR_MISC_FEATURES || msr == MSR_AMD_DE_CFG;
	switch (msr) {
	case MSR_P5_MC_ADDR:
	case MSR_P5_MC_TYPE:
	case MSR_MCG_CAP:
	case MSR_MCG_STATUS:
		return true;
	case MSR_SMI_COUNT:
	case MSR_PLATFORM_INFO:
	case MSR_MISC_FEATURES:
		return cpu->svm->intel;
	case MSR_AMD_DE_CFG:
		return cpu->svm->amd;
	default:
		return false;
	}
}

/* ---- RDMSR, WRMSR ---------------------------------------------------------------------------------------- */

static enum answer msr_get(struct soft_cpu *cpu, uint32_t msr, uint64_t *value)
{
	enum field_rule rule;
	const uint64_t *field = msr_field(cpu, msr, &rule);
	enum answer answer;
	bool writable;

	if (field) {
		*value = *field;
		return MSR_DONE;
	}
	if (msr >= MSR_X2APIC && msr <= MSR_X2APIC_END)
		return lapic_rdmsr(cpu, msr, value) ? MSR_DONE : MSR_FAULT;
	switch (msr) {
	case MSR_EFER:
		*value = cpu->efer;
		return MSR_DONE;
	case MSR_APIC_BASE:
		*value = cpu->apic_base;
		return MSR_DONE;
	case MSR_PAT:
		*value = cpu->msr.pat;
		return MSR_DONE;
	case MSR_DEBUGCTL:
		*value = cpu->msr.debugctl;
		return MSR_DONE;
	case MSR_ARCH_CAPABILITIES:
		*value = cpu->svm->arch_capabilities;
		return model_bit(cpu, 7, CPUID_EDX, 29) ? MSR_DONE : MSR_MONITOR;
	default:
		break;
	}
	if (msr_constant(cpu, msr, value, &writable))
		return MSR_DONE;
	answer = time_read(cpu, msr, value);
	return answer == MSR_MONITOR ? mtrr_read(cpu, msr, value) : answer;
}

static bool field_write(uint64_t *field, enum field_rule rule, uint64_t value)
{
	if (rule == RULE_CANONICAL && !is_canonical(value))
		return false;
	if (rule == RULE_LOW32 && value >> 32)
		return false;
	*field = value;
	return true;
}

static enum answer msr_set(struct soft_cpu *cpu, uint32_t msr, uint64_t value)
{
	enum field_rule rule;
	uint64_t *field = msr_field(cpu, msr, &rule);
	enum answer answer;
	uint64_t constant;
	bool writable;

	if (field)
		return field_write(field, rule, value) ? MSR_DONE : MSR_FAULT;
	if (msr >= MSR_X2APIC && msr <= MSR_X2APIC_END)
		return lapic_wrmsr(cpu, msr, value) ? MSR_DONE : MSR_FAULT;
	switch (msr) {
	case MSR_EFER:
		return efer_write(cpu, value);
	case MSR_APIC_BASE:
		if (!lapic_write_base(cpu, value))
			return MSR_FAULT;
		/* Its page may have been memory, or be so now. */
		soft_tlb_flush_all(cpu, true);
		return MSR_DONE;
	case MSR_PAT:
		if (!pat_types(value))
			return MSR_FAULT;
		cpu->msr.pat = value;
		return MSR_DONE;
	case MSR_DEBUGCTL:
		/* Branch records and BTF are not there; bits that are read back are enough for those who look. */
		if (value & ~3ull)
			return MSR_FAULT;
		cpu->msr.debugctl = value;
		return MSR_DONE;
	default:
		break;
	}
	if (msr_constant(cpu, msr, &constant, &writable))
		return writable && value == constant ? MSR_DONE : MSR_FAULT;
	answer = time_write(cpu, msr, value);
	return answer == MSR_MONITOR ? mtrr_write(cpu, msr, value) : answer;
}

static void result_set(struct soft_cpu *cpu, uint64_t value)
{
	cpu->gpr[X86_RAX] = (uint32_t)value;
	cpu->gpr[X86_RDX] = value >> 32;
}

/* complete_arg[0]: RIP behind the instruction. */
static enum soft_next rdmsr_complete(struct soft_cpu *cpu)
{
	if (cpu->exit->msr.fault)
		return soft_raise_error(cpu, X86_GP, 0);
	result_set(cpu, cpu->exit->msr.value);
	return complete_at(cpu, cpu->complete_arg[0]);
}

static enum soft_next wrmsr_complete(struct soft_cpu *cpu)
{
	if (cpu->exit->msr.fault)
		return soft_raise_error(cpu, X86_GP, 0);
	return complete_at(cpu, cpu->complete_arg[0]);
}

static enum soft_next msr_exit(struct soft_cpu *cpu, const struct insn *insn, enum exit_code code,
			       uint64_t value)
{
	cpu->exit->code = code;
	cpu->exit->msr.index = (uint32_t)cpu->gpr[X86_RCX];
	cpu->exit->msr.value = value;
	cpu->exit->msr.fault = false;
	cpu->complete = code == EXIT_RDMSR ? rdmsr_complete : wrmsr_complete;
	cpu->complete_arg[0] = next_rip(cpu, insn);
	return NEXT_EXIT;
}

HELPER(do_rdmsr)
{
	uint64_t value = 0;

	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	switch (msr_get(cpu, (uint32_t)cpu->gpr[X86_RCX], &value)) {
	case MSR_FAULT:
		return raise_gp0(cpu);
	case MSR_MONITOR:
		return msr_exit(cpu, insn, EXIT_RDMSR, 0);
	default:
		result_set(cpu, value);
		return done(cpu, insn);
	}
}

HELPER(do_wrmsr)
{
	uint64_t value = (uint32_t)cpu->gpr[X86_RAX] | cpu->gpr[X86_RDX] << 32;

	if (cpu->cpl > 0)
		return raise_gp0(cpu);
	switch (msr_set(cpu, (uint32_t)cpu->gpr[X86_RCX], value)) {
	case MSR_FAULT:
		return raise_gp0(cpu);
	case MSR_MONITOR:
		return msr_exit(cpu, insn, EXIT_WRMSR, value);
	default:
		/* EFER.NXE and the APIC's page change how memory looks. */
		soft_advance(cpu, insn);
		soft_update_mode(cpu);
		return NEXT_LEAVE;
	}
}

/* ---- TSC, random numbers --------------------------------------------------------------------------------- */

HELPER(do_rdtsc)
{
	if (insn->op == ZYDIS_MNEMONIC_RDTSCP && !model_bit(cpu, 0x80000001, CPUID_EDX, 27))
		return soft_raise(cpu, X86_UD);
	if ((cpu->cr4 & X86_CR4_TSD) && cpu->cpl > 0)
		return raise_gp0(cpu);
	result_set(cpu, tsc_now(cpu));
	if (insn->op == ZYDIS_MNEMONIC_RDTSCP)
		cpu->gpr[X86_RCX] = (uint32_t)cpu->msr.tsc_aux;
	return done(cpu, insn);
}

HELPER(do_rdpid)
{
	if (!model_bit(cpu, 7, CPUID_ECX, 22))
		return soft_raise(cpu, X86_UD);
	gpr_set(cpu, insn->rm, code64(cpu) ? 8 : 4, cpu->msr.tsc_aux);
	return done(cpu, insn);
}

/* There are no performance counters. */
HELPER(do_rdpmc)
{
	(void)insn;
	return raise_gp0(cpu);
}

HELPER(do_random)
{
	bool seed = insn->op == ZYDIS_MNEMONIC_RDSEED;
	uint64_t value = 0;
	uint8_t ok;

	if (seed ? !model_bit(cpu, 7, CPUID_EBX, 18) : !model_bit(cpu, 1, CPUID_ECX, 30))
		return soft_raise(cpu, X86_UD);
	if (seed)
		__asm__ volatile("rdseed %0; setc %1" : "=r"(value), "=qm"(ok) : : "cc");
	else
		__asm__ volatile("rdrand %0; setc %1" : "=r"(value), "=qm"(ok) : : "cc");
	gpr_set(cpu, insn->rm, insn->opsize, ok ? value : 0);
	cpu->arith = ok ? X86_FL_CF : 0;
	return done(cpu, insn);
}
