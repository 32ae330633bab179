/* Full: CPUID, out of the VM's CPU model. */
#include "engine/soft/q_insn.h"

HELPER(do_cpuid)
{
	struct vm *vm = cpu->svm->vm;
	struct cpuid_regs r =
		cpuid_execute(&vm->cpuid, &vm->topology, cpu->apic_id, (uint32_t)cpu->gpr[X86_RAX],
			      (uint32_t)cpu->gpr[X86_RCX], cpu->cr4, cpu->xcr0, cpu->msr.xss);

	cpu->gpr[X86_RAX] = r.eax;
	cpu->gpr[X86_RBX] = r.ebx;
	cpu->gpr[X86_RCX] = r.ecx;
	cpu->gpr[X86_RDX] = r.edx;
	return done(cpu, insn);
}
