/* What the files of the engine seam (soft.c, state.c, model.c) share. */
#ifndef ENGINE_SOFT_SOFT_H
#define ENGINE_SOFT_SOFT_H

#include "engine/soft/cache.h"
#include "vmm/vm.h"

static inline struct soft_vm *soft_vm_of(struct vm *vm)
{
	return vm->engine_data;
}

static inline struct soft_cpu *soft_cpu_of(struct vcpu *vcpu)
{
	return vcpu->engine_data;
}

/* model.c: every CPUID bit that this engine can show on this host. */
void soft_model(struct cpuid_table *table);
/* IA32_ARCH_CAPABILITIES, for CPUs of Intel's. */
uint64_t soft_arch_capabilities(void);

/* state.c: on the vCPU's own thread, outside translated code, no exit pending. */
void state_from_cpu(struct soft_cpu *cpu, struct x86_state *state);
/* -EINVAL: a combination that no CPU can be in. */
int state_to_cpu(struct soft_cpu *cpu, const struct x86_state *state);
/* What INIT does: an AP waits for SIPI then, the BSP starts at the reset vector (SDM vol. 3 table 9-1). */
void state_init(struct soft_cpu *cpu);
void state_sipi(struct soft_cpu *cpu, uint8_t vector);

#endif
