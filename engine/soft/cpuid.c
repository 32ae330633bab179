/* Full: CPUID, out of the VM's CPU model. */
#include "engine/soft/q_insn.h"

#define CPUID_1_EDX_APIC (1u << 9)

HELPER(do_cpuid)
{
	struct vm *vm = cpu->svm->vm;
	struct cpuid_regs r =
		cpuid_execute(&vm->cpuid, &vm->topology, cpu->apic_id, (uint32_t)cpu->gpr[X86_RAX],
			      (uint32_t)cpu->gpr[X86_RCX], cpu->cr4, cpu->xcr0, cpu->msr.xss);

	/* SDM vol. 3, 11.4.3, and AMD's copy of the bit. */
	if (((uint32_t)cpu->gpr[X86_RAX] == 1 || (uint32_t)cpu->gpr[X86_RAX] == 0x80000001) &&
	    !(cpu->apic_base & X86_APIC_BASE_ENABLE))
		r.edx &= ~CPUID_1_EDX_APIC;
	cpu->gpr[X86_RAX] = r.eax;
	cpu->gpr[X86_RBX] = r.ebx;
	cpu->gpr[X86_RCX] = r.ecx;
	cpu->gpr[X86_RDX] = r.edx;
	return done(cpu, insn);
}
