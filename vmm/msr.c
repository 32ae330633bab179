/*
 * The monitor's answer to MSRs that no engine keeps. BHYVE.md's known set; the numbers are those of the
 * Intel SDM vol. 4 and the AMD APM vol. 2, appendix A.
 */
#include "vmm/msr.h"

#include <inttypes.h>
#include <stddef.h>

#include "vmm/vm.h"

enum {
	MSR_PLATFORM_ID = 0x17,
	MSR_FEATURE_CONTROL = 0x3a,
	MSR_BIOS_SIGN = 0x8b, /* microcode revision, AMD's PATCH_LEVEL too */
	MSR_RAPL_POWER_UNIT = 0x606,
	MSR_PKG_POWER_LIMIT = 0x610,
	MSR_PKG_ENERGY_STATUS = 0x611,
	MSR_PKG_POWER_INFO = 0x614,
	MSR_DRAM_POWER_LIMIT = 0x618,
	MSR_DRAM_ENERGY_STATUS = 0x619,
	MSR_PP0_POWER_LIMIT = 0x638,
	MSR_PP0_ENERGY_STATUS = 0x639,
	MSR_PP1_POWER_LIMIT = 0x640,
	MSR_PP1_ENERGY_STATUS = 0x641,
	MSR_PLATFORM_ENERGY_STATUS = 0x64d,
};
#define MSR_AMD_EVNTSEL0 0xc0010000u /* .. 3 */
#define MSR_AMD_PERFCTR0 0xc0010004u /* .. 3 */
#define MSR_AMD_SYSCFG 0xc0010010u
#define MSR_AMD_HWCR 0xc0010015u
#define MSR_AMD_NB_CFG 0xc001001fu
#define MSR_AMD_PSTATE0 0xc0010064u
#define MSR_AMD_VM_CR 0xc0010114u
#define MSR_AMD_RAPL_POWER_UNIT 0xc0010299u
#define MSR_AMD_CORE_ENERGY 0xc001029au
#define MSR_AMD_PACKAGE_ENERGY 0xc001029bu

#define FEATURE_CONTROL_LOCK 1ull
#define HWCR_TSC_FREQ_SEL (1ull << 24) /* the TSC counts at the P0 frequency */
#define VM_CR_SVMDIS (1ull << 4)
#define PSTATE_EN (1ull << 63)

static uint64_t read_zero(struct vm *vm)
{
	(void)vm;
	return 0;
}

static uint64_t read_feature_control(struct vm *vm)
{
	(void)vm;
	return FEATURE_CONTROL_LOCK; /* VMX is off until the next reset */
}

static uint64_t read_hwcr(struct vm *vm)
{
	(void)vm;
	return HWCR_TSC_FREQ_SEL;
}

/* From P0's ratio guests derive the TSC's rate. PPR for family 1Ah: CoreCOF = FID[11:0] * 5 MHz; for
 * family 17h and 19h: FID[7:0] * 25 MHz at the divisor DID[5:0] = 8. */
static uint64_t read_pstate0(struct vm *vm)
{
	uint64_t mhz = vm->tsc_hz / 1000000;

	if (cpuid_family(&vm->cpuid) >= 0x1a)
		return PSTATE_EN | (mhz / 5 & 0xfff);
	return PSTATE_EN | 8u << 8 | (mhz / 25 & 0xff);
}

static uint64_t read_vm_cr(struct vm *vm)
{
	(void)vm;
	return VM_CR_SVMDIS;
}

#define ON_INTEL (1u << CPUID_INTEL)
#define ON_AMD (1u << CPUID_AMD)
#define ON_ALL (ON_INTEL | ON_AMD | 1u << CPUID_OTHER)

static const struct known_msr {
	uint32_t index;
	unsigned vendors;
	uint64_t (*read)(struct vm *vm);
} known_msrs[] = {
	{MSR_PLATFORM_ID, ON_INTEL, read_zero},
	{MSR_FEATURE_CONTROL, ON_INTEL, read_feature_control},
	{MSR_BIOS_SIGN, ON_ALL, read_zero},
	{MSR_RAPL_POWER_UNIT, ON_INTEL, read_zero},
	{MSR_PKG_POWER_LIMIT, ON_INTEL, read_zero},
	{MSR_PKG_ENERGY_STATUS, ON_INTEL, read_zero},
	{MSR_PKG_POWER_INFO, ON_INTEL, read_zero},
	{MSR_DRAM_POWER_LIMIT, ON_INTEL, read_zero},
	{MSR_DRAM_ENERGY_STATUS, ON_INTEL, read_zero},
	{MSR_PP0_POWER_LIMIT, ON_INTEL, read_zero},
	{MSR_PP0_ENERGY_STATUS, ON_INTEL, read_zero},
	{MSR_PP1_POWER_LIMIT, ON_INTEL, read_zero},
	{MSR_PP1_ENERGY_STATUS, ON_INTEL, read_zero},
	{MSR_PLATFORM_ENERGY_STATUS, ON_INTEL, read_zero},
	/* No memory encryption, no TOM2, no configuration space by I/O port, as KVM has it: Linux reads the first and
	 * sets a bit of the other without looking whether they are there. */
	{MSR_AMD_SYSCFG, ON_AMD, read_zero},
	{MSR_AMD_EVNTSEL0, ON_AMD, read_zero},
	{MSR_AMD_EVNTSEL0 + 1, ON_AMD, read_zero},
	{MSR_AMD_EVNTSEL0 + 2, ON_AMD, read_zero},
	{MSR_AMD_EVNTSEL0 + 3, ON_AMD, read_zero},
	{MSR_AMD_PERFCTR0, ON_AMD, read_zero},
	{MSR_AMD_PERFCTR0 + 1, ON_AMD, read_zero},
	{MSR_AMD_PERFCTR0 + 2, ON_AMD, read_zero},
	{MSR_AMD_PERFCTR0 + 3, ON_AMD, read_zero},
	{MSR_AMD_RAPL_POWER_UNIT, ON_AMD, read_zero},
	{MSR_AMD_CORE_ENERGY, ON_AMD, read_zero},
	{MSR_AMD_PACKAGE_ENERGY, ON_AMD, read_zero},
	{MSR_AMD_HWCR, ON_AMD, read_hwcr},
	{MSR_AMD_NB_CFG, ON_AMD, read_zero},
	{MSR_AMD_PSTATE0, ON_AMD, read_pstate0},
	{MSR_AMD_VM_CR, ON_AMD, read_vm_cr},
};
#define KNOWN_MSRS (sizeof(known_msrs) / sizeof(known_msrs[0]))

uint32_t msr_known(unsigned index)
{
	return index < KNOWN_MSRS ? known_msrs[index].index : 0;
}

static const struct known_msr *find_known(struct vm *vm, uint32_t msr)
{
	for (unsigned i = 0; i < KNOWN_MSRS; i++) {
		if (known_msrs[i].index == msr &&
		    known_msrs[i].vendors & 1u << cpuid_vendor(&vm->cpuid))
			return &known_msrs[i];
	}
	return NULL;
}

bool msr_read(struct vm *vm, unsigned vcpu, uint32_t msr, uint64_t *value)
{
	const struct known_msr *known = find_known(vm, msr);

	*value = known ? known->read(vm) : 0;
	if (known || !vm->strict_msr)
		return true;
	log_guest(vm->log, LOG_WARN, "vCPU %u: RDMSR of unknown MSR 0x%x: #GP (-w would read 0)",
		  vcpu, msr);
	return false;
}

bool msr_write(struct vm *vm, unsigned vcpu, uint32_t msr, uint64_t value)
{
	if (find_known(vm, msr) || !vm->strict_msr)
		return true;
	log_guest(vm->log, LOG_WARN,
		  "vCPU %u: WRMSR of 0x%" PRIx64 " to unknown MSR 0x%x: #GP (-w would drop it)",
		  vcpu, value, msr);
	return false;
}
