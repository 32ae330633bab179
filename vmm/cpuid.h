/*
 * The CPU model: what CPUID shows in this VM. It belongs to the monitor and is stored with the VM, so
 * that a state saved on one engine loads on another: the engine says what it could show on this host,
 * cpuid_model_build() keeps what the canonical state (vmm/x86.h) can carry and writes the topology, and
 * both engines answer CPUID from the result.
 *
 * Hidden whatever the host has: MONITOR/MWAIT, VMX, SVM, SMX, SGX, TSX, MPX, AMX, CET, PT, PMU (leaf 0xA
 * is zero), IBS, LWP. Shown whatever the engine says: the hypervisor bit and KVM's signature, which
 * guests know for its clock.
 */
#ifndef VMM_CPUID_H
#define VMM_CPUID_H

#include <stdbool.h>
#include <stdint.h>

struct cpuid_regs {
	uint32_t eax, ebx, ecx, edx;
};

struct cpuid_leaf {
	uint32_t leaf, subleaf;
	bool indexed; /* other subleaves differ; false: ECX does not matter */
	struct cpuid_regs regs;
};

#define CPUID_LEAVES_MAX 96

struct cpuid_table {
	unsigned n;
	struct cpuid_leaf leaf[CPUID_LEAVES_MAX];
};

struct topology {
	unsigned cpus, sockets, cores, threads; /* cpus = sockets * cores * threads */
};

/* The APIC id of vCPU `index`: threads count first, then cores, then packages, and each has as many bits of its
 * own as its number needs (SDM vol. 3, "Hierarchical Mapping of Shared Resources"). So ids have gaps where
 * cores or threads are no power of two. Below 128 with 64 vCPUs. */
unsigned topology_apic_id(const struct topology *topology, unsigned index);

/* XCR0 components that a guest can be shown: x87, SSE, AVX, AVX-512, PKRU. */
#define CPUID_XCR0_MAX 0x2e7ull

/* Appends; a leaf of zeros and one too many are dropped: both read as zeros. */
void cpuid_add(struct cpuid_table *table, uint32_t leaf, uint32_t subleaf, bool indexed,
	       struct cpuid_regs regs);
/* The entry, or NULL. */
const struct cpuid_leaf *cpuid_find(const struct cpuid_table *table, uint32_t leaf,
				    uint32_t subleaf);

/* Makes the model. `supported` is what the engine can show; x2apic: the bit of that name is shown. */
void cpuid_model_build(struct cpuid_table *model, const struct cpuid_table *supported,
		       const struct topology *topology, bool x2apic, uint64_t tsc_hz);

/* One entry of the model as the vCPU with this APIC id sees it (leaves 1, 0xB, 0x1F, 0x8000001E). */
struct cpuid_regs cpuid_for_vcpu(const struct cpuid_leaf *leaf, const struct topology *topology,
				 unsigned apic_id);

/* What CPUID returns, for engines that execute it themselves: leaves beyond the highest one and the bits
 * that follow CR4, XCR0 and IA32_XSS included. */
struct cpuid_regs cpuid_execute(const struct cpuid_table *model, const struct topology *topology,
				unsigned apic_id, uint32_t leaf, uint32_t subleaf, uint64_t cr4,
				uint64_t xcr0, uint64_t xss);

enum cpuid_vendor { CPUID_INTEL, CPUID_AMD, CPUID_OTHER };
enum cpuid_vendor cpuid_vendor(const struct cpuid_table *model);
/* Family with the extended part added, from leaf 1. */
unsigned cpuid_family(const struct cpuid_table *model);
/* XCR0 bits that the model has, 0 without XSAVE. */
uint64_t cpuid_xcr0(const struct cpuid_table *model);

#endif
