/*
 * The CPU model. Which bits pass is one table of masks; the leaves that describe the topology, the XSAVE
 * area, the hypervisor and the TSC are written here. Intel SDM vol. 2A (CPUID), AMD APM vol. 3 appendix E,
 * Linux Documentation/virt/kvm/x86/cpuid.rst.
 */
#include "vmm/cpuid.h"

#include <stddef.h>
#include <string.h>

#include "vmm/x86.h"

#define BIT(n) (1u << (n))
#define BITS(hi, lo) ((0xffffffffu >> (31 - (hi))) & (0xffffffffu << (lo)))
#define ALL 0xffffffffu

#define LEAF_HV_MAX 0x40000010u
#define KVM_FEATURE_CLOCKSOURCE BIT(0)
#define KVM_FEATURE_NOP_IO_DELAY BIT(1)
#define KVM_FEATURE_CLOCKSOURCE2 BIT(3)
#define KVM_FEATURE_CLOCKSOURCE_STABLE BIT(24)

#define APIC_TIMER_HZ 1000000000u /* the LAPIC timer's input on both engines, as KVM's is */

/* Bits that pass if the engine has them. A leaf that is not listed is not shown, but for those that this
 * file writes. Left out on purpose: see the header. */
static const struct pass {
	uint32_t leaf, subleaf;
	struct cpuid_regs mask;
} passes[] = {
	{0x0, 0, {0, ALL, ALL, ALL}},
	{0x1,
	 0,
	 {ALL, BITS(15, 8),
	  /* sse3 pclmul ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave
	   * avx f16c rdrand */
	  BIT(0) | BIT(1) | BIT(9) | BIT(12) | BIT(13) | BIT(17) | BITS(26, 19) | BITS(30, 28),
	  /* all but psn, ds, acpi, htt, tm, ia64, pbe */
	  BITS(9, 0) | BITS(17, 11) | BIT(19) | BITS(27, 23)}},
	{0x2, 0, {ALL, ALL, ALL, ALL}},
	{0x6, 0, {BIT(2), 0, 0, 0}}, /* arat */
	{0x7,
	 0,
	 {ALL,
	  /* fsgsbase tsc_adjust bmi1 avx2 fdp smep bmi2 erms invpcid fpcsds avx512f avx512dq rdseed adx
	   * smap ifma clflushopt clwb avx512cd sha avx512bw avx512vl */
	  BIT(0) | BIT(1) | BIT(3) | BITS(10, 5) | BIT(13) | BITS(21, 16) | BIT(23) | BIT(24) |
		  BITS(31, 28),
	  /* prefetchwt1 vbmi umip pku vbmi2 gfni vaes vpclmul vnni bitalg vpopcnt la57 rdpid cldemote
	   * movdiri movdir64b */
	  BITS(3, 0) | BIT(6) | BITS(12, 8) | BIT(14) | BIT(16) | BIT(22) | BIT(25) | BIT(27) |
		  BIT(28),
	  /* 4vnniw 4fmaps fsrm vp2intersect md_clear serialize fp16 spec_ctrl stibp arch_cap ssbd */
	  BITS(4, 2) | BIT(8) | BIT(10) | BIT(14) | BIT(23) | BIT(26) | BIT(27) | BIT(29) |
		  BIT(31)}},
	{0x7,
	 1,
	 {/* sha512 sm3 sm4 avx-vnni bf16 cmpccxadd fzrm fsrs fsrc avx-ifma */
	  BITS(2, 0) | BIT(4) | BIT(5) | BIT(7) | BITS(12, 10) | BIT(23), 0, 0,
	  /* vnni-int8 ne-convert vnni-int16 prefetchi */
	  BIT(4) | BIT(5) | BIT(10) | BIT(14)}},
	{0x80000000, 0, {0, ALL, ALL, ALL}},
	{0x80000001,
	 0,
	 {ALL, ALL,
	  /* lahf cr8legacy abm sse4a misalignsse prefetch osvw xop fma4 tbm topoext */
	  BIT(0) | BITS(9, 4) | BIT(11) | BIT(16) | BIT(21) | BIT(22),
	  /* the mirror of leaf 1, syscall nx mmxext fxsr_opt 1gb rdtscp lm 3dnow */
	  BITS(9, 0) | BITS(17, 11) | BIT(20) | BITS(27, 22) | BITS(31, 29)}},
	{0x80000002, 0, {ALL, ALL, ALL, ALL}},
	{0x80000003, 0, {ALL, ALL, ALL, ALL}},
	{0x80000004, 0, {ALL, ALL, ALL, ALL}},
	{0x80000005, 0, {ALL, ALL, ALL, ALL}},
	{0x80000006, 0, {ALL, ALL, ALL, ALL}},
	{0x80000007, 0, {0, 0, 0, BIT(8)}}, /* invariant tsc */
	/* address widths; clzero xsaveerptr wbnoinvd ibpb ibrs stibp ssbd psfd */
	{0x80000008,
	 0,
	 {BITS(15, 0), BIT(0) | BIT(2) | BIT(9) | BIT(12) | BIT(14) | BIT(15) | BIT(24) | BIT(28),
	  0, 0}},
	{0x8000001a, 0, {ALL, 0, 0, 0}},
	/* no nested data breakpoints, lfence serializes, verw clears, null selectors clear the base; sbpb ibpb_brtype srso_no;
	 * tsa_sq_no tsa_l1_no */
	{0x80000021, 0, {BIT(0) | BIT(2) | BIT(5) | BIT(6) | BITS(29, 27), 0, BITS(2, 1), 0}},
};

void cpuid_add(struct cpuid_table *table, uint32_t leaf, uint32_t subleaf, bool indexed,
	       struct cpuid_regs regs)
{
	if (table->n == CPUID_LEAVES_MAX || !(regs.eax | regs.ebx | regs.ecx | regs.edx))
		return;
	table->leaf[table->n++] = (struct cpuid_leaf){leaf, subleaf, indexed, regs};
}

const struct cpuid_leaf *cpuid_find(const struct cpuid_table *table, uint32_t leaf,
				    uint32_t subleaf)
{
	for (unsigned i = 0; i < table->n; i++) {
		const struct cpuid_leaf *found = &table->leaf[i];

		if (found->leaf == leaf && (!found->indexed || found->subleaf == subleaf))
			return found;
	}
	return NULL;
}

static struct cpuid_regs regs_of(const struct cpuid_table *table, uint32_t leaf, uint32_t subleaf)
{
	const struct cpuid_leaf *found = cpuid_find(table, leaf, subleaf);

	return found ? found->regs : (struct cpuid_regs){0, 0, 0, 0};
}

enum cpuid_vendor cpuid_vendor(const struct cpuid_table *model)
{
	uint32_t ebx = regs_of(model, 0, 0).ebx;

	/* "Genu", "Auth", "Hygo" */
	return ebx == 0x756e6547			? CPUID_INTEL
	       : ebx == 0x68747541 || ebx == 0x6f677948 ? CPUID_AMD
							: CPUID_OTHER;
}

unsigned cpuid_family(const struct cpuid_table *model)
{
	uint32_t eax = regs_of(model, 1, 0).eax;
	unsigned family = eax >> 8 & 15;

	return family == 15 ? family + (eax >> 20 & 0xff) : family;
}

uint64_t cpuid_xcr0(const struct cpuid_table *model)
{
	struct cpuid_regs regs = regs_of(model, 0xd, 0);

	return regs.eax | (uint64_t)regs.edx << 32;
}

/* The shift that keeps ids of `n` things apart. */
static unsigned id_bits(unsigned n)
{
	unsigned bits = 0;

	while (1u << bits < n)
		bits++;
	return bits;
}

unsigned topology_apic_id(const struct topology *topology, unsigned index)
{
	unsigned thread = index % topology->threads;
	unsigned core = index / topology->threads % topology->cores;
	unsigned package = index / topology->threads / topology->cores;

	return (package << id_bits(topology->cores) | core) << id_bits(topology->threads) | thread;
}

static void pass_bits(struct cpuid_table *model, const struct cpuid_table *supported)
{
	for (size_t i = 0; i < sizeof(passes) / sizeof(passes[0]); i++) {
		const struct pass *pass = &passes[i];
		struct cpuid_regs regs = regs_of(supported, pass->leaf, pass->subleaf);

		regs.eax &= pass->mask.eax;
		regs.ebx &= pass->mask.ebx;
		regs.ecx &= pass->mask.ecx;
		regs.edx &= pass->mask.edx;
		cpuid_add(model, pass->leaf, pass->subleaf, pass->leaf == 7, regs);
	}
}

static struct cpuid_regs *model_regs(struct cpuid_table *model, uint32_t leaf)
{
	for (unsigned i = 0; i < model->n; i++) {
		if (model->leaf[i].leaf == leaf)
			return &model->leaf[i].regs;
	}
	if (model->n == CPUID_LEAVES_MAX)
		return &model->leaf[CPUID_LEAVES_MAX - 1]
				.regs; /* cannot be: see the passes above */
	model->leaf[model->n] = (struct cpuid_leaf){.leaf = leaf};
	return &model->leaf[model->n++].regs;
}

static void write_basic(struct cpuid_table *model, const struct topology *topology, bool x2apic)
{
	unsigned logical = topology->cores * topology->threads;
	struct cpuid_regs *regs = model_regs(model, 1);

	regs->ebx |= logical << 16;
	regs->ecx |= BIT(31); /* a hypervisor */
	if (!x2apic)
		regs->ecx &= ~BIT(21);
	if (logical > 1)
		regs->edx |= BIT(28);
}

/* Leaf 4 and 0x8000001D have one layout; EAX 25:14 says how many ids share the cache, and in leaf 4 31:26
 * how many ids a package has for cores. */
static void write_caches(struct cpuid_table *model, const struct cpuid_table *supported,
			 const struct topology *topology, uint32_t leaf)
{
	unsigned thread_ids = 1u << id_bits(topology->threads);
	unsigned core_ids = 1u << id_bits(topology->cores);

	for (uint32_t i = 0; i < 8; i++) {
		struct cpuid_regs regs = regs_of(supported, leaf, i);
		unsigned level = regs.eax >> 5 & 7;
		unsigned sharing = level >= 3 ? thread_ids * core_ids : thread_ids;

		if ((regs.eax & 0x1f) == 0)
			break;
		regs.eax = (regs.eax & 0x3fff) | (sharing - 1) << 14;
		if (leaf == 4)
			regs.eax |= (core_ids - 1) << 26;
		cpuid_add(model, leaf, i, true, regs);
	}
}

/* Leaves 0xB and 0x1F; EDX is the vCPU's. */
static void write_x2apic_topology(struct cpuid_table *model, const struct topology *topology,
				  uint32_t leaf)
{
	unsigned thread_bits = id_bits(topology->threads);
	unsigned package_bits = thread_bits + id_bits(topology->cores);

	cpuid_add(model, leaf, 0, true,
		  (struct cpuid_regs){thread_bits, topology->threads, 0 | 1 << 8, 0});
	cpuid_add(model, leaf, 1, true,
		  (struct cpuid_regs){package_bits, topology->cores * topology->threads, 1 | 2 << 8,
				      0});
	cpuid_add(model, leaf, 2, true, (struct cpuid_regs){0, 0, 2, 0});
}

static void write_amd_topology(struct cpuid_table *model, const struct cpuid_table *supported,
			       const struct topology *topology)
{
	unsigned logical = topology->cores * topology->threads;
	struct cpuid_regs *ext = model_regs(model, 0x80000001);
	uint32_t bits = id_bits(topology->threads) + id_bits(topology->cores);

	model_regs(model, 0x80000008)->ecx = (logical - 1) | bits << 12;
	if (logical > 1)
		ext->ecx |= BIT(1); /* CmpLegacy */
	if (!(ext->ecx & BIT(22)))
		return;
	write_caches(model, supported, topology, 0x8000001d);
	/* EBX: threads a core; the ids are the vCPU's */
	cpuid_add(model, 0x8000001e, 0, false,
		  (struct cpuid_regs){0, (topology->threads - 1) << 8, 0, 0});
}

/* Leaf 0xD: the components that the canonical state carries. */
static void write_xsave(struct cpuid_table *model, const struct cpuid_table *supported)
{
	struct cpuid_regs main = regs_of(supported, 0xd, 0), part[32];
	struct cpuid_regs options = regs_of(supported, 0xd, 1);
	uint32_t size = 512 + 64;

	if (!(regs_of(model, 1, 0).ecx & BIT(26)))
		return;
	main.eax &= (uint32_t)CPUID_XCR0_MAX;
	for (unsigned i = 2; i < 32; i++) {
		if (!(main.eax & BIT(i)))
			continue;
		part[i] = regs_of(supported, 0xd, i);
		if (part[i].eax + (uint64_t)part[i].ebx > X86_XSAVE_MAX || part[i].eax == 0)
			main.eax &= ~BIT(i);
		else if (part[i].eax + part[i].ebx > size)
			size = part[i].eax + part[i].ebx;
	}
	/* EBX follows XCR0: its reset value has x87 only. */
	cpuid_add(model, 0xd, 0, true, (struct cpuid_regs){main.eax, 512 + 64, size, 0});
	/* xsaveopt xsavec xgetbv1 xsaves; no supervisor components */
	cpuid_add(model, 0xd, 1, true, (struct cpuid_regs){options.eax & 0xf, 0, 0, 0});
	for (unsigned i = 2; i < 32; i++) {
		if (main.eax & BIT(i))
			cpuid_add(model, 0xd, i, true,
				  (struct cpuid_regs){part[i].eax, part[i].ebx,
						      part[i].ecx & BIT(1), 0});
	}
}

static void write_hypervisor(struct cpuid_table *model, const struct cpuid_table *supported,
			     uint64_t tsc_hz)
{
	uint32_t features = regs_of(supported, 0x40000001, 0).eax &
			    (KVM_FEATURE_CLOCKSOURCE | KVM_FEATURE_NOP_IO_DELAY |
			     KVM_FEATURE_CLOCKSOURCE2 | KVM_FEATURE_CLOCKSOURCE_STABLE);
	struct cpuid_regs signature = {.eax = LEAF_HV_MAX};

	memcpy(&signature.ebx, "KVMK", 4);
	memcpy(&signature.ecx, "VMKV", 4);
	memcpy(&signature.edx, "M\0\0\0", 4);
	cpuid_add(model, 0x40000000, 0, false, signature);
	cpuid_add(model, 0x40000001, 0, false, (struct cpuid_regs){features, 0, 0, 0});
	/* kHz of the TSC and of the LAPIC timer: VMware's leaf, which guests read on KVM too */
	cpuid_add(model, LEAF_HV_MAX, 0, false,
		  (struct cpuid_regs){(uint32_t)(tsc_hz / 1000), APIC_TIMER_HZ / 1000, 0, 0});
}

/* The nearest fraction to `value` / `unit` with a numerator of at most `max`: the last convergent of its continued
 * fraction that has one. */
static void ratio_nearest(uint64_t value, uint64_t unit, uint32_t max, uint32_t *numerator,
			  uint32_t *denominator)
{
	uint64_t n0 = 0, n1 = 1, d0 = 1, d1 = 0;

	while (unit) {
		uint64_t whole = value / unit, rest = value % unit;
		uint64_t n = whole * n1 + n0, d = whole * d1 + d0;

		if (n > max)
			break;
		n0 = n1;
		n1 = n;
		d0 = d1;
		d1 = d;
		value = unit;
		unit = rest;
	}
	*numerator = (uint32_t)n1;
	*denominator = (uint32_t)d1;
}

/* Intel only; AMD has no such leaves. Guests take the crystal of leaf 0x15 for the LAPIC timer's input, and Linux
 * multiplies its kHz by the numerator in 32 bits. */
static void write_frequency(struct cpuid_table *model, uint64_t tsc_hz)
{
	uint32_t mhz = (uint32_t)(tsc_hz / 1000000), numerator, denominator;

	ratio_nearest(tsc_hz, APIC_TIMER_HZ, UINT32_MAX / (APIC_TIMER_HZ / 1000), &numerator,
		      &denominator);
	cpuid_add(model, 0x15, 0, false,
		  (struct cpuid_regs){denominator, numerator, APIC_TIMER_HZ, 0});
	cpuid_add(model, 0x16, 0, false, (struct cpuid_regs){mhz, mhz, 100, 0});
}

/* Engines that know no brand string leave zeros; guests print it. */
static void write_brand(struct cpuid_table *model)
{
	static const char brand[48] = "skep virtual CPU";

	if (cpuid_find(model, 0x80000002, 0))
		return;
	for (uint32_t i = 0; i < 3; i++)
		memcpy(model_regs(model, 0x80000002 + i), brand + i * 16, 16);
}

/* The highest leaf of a range, into EAX of its first one. */
static void write_highest(struct cpuid_table *model, uint32_t first, uint32_t end)
{
	uint32_t highest = first;

	for (unsigned i = 0; i < model->n; i++) {
		uint32_t leaf = model->leaf[i].leaf;

		if (leaf >= first && leaf < end && leaf > highest)
			highest = leaf;
	}
	model_regs(model, first)->eax = highest;
}

void cpuid_model_build(struct cpuid_table *model, const struct cpuid_table *supported,
		       const struct topology *topology, bool x2apic, uint64_t tsc_hz)
{
	enum cpuid_vendor vendor = cpuid_vendor(supported);
	uint32_t highest = regs_of(supported, 0, 0).eax;

	memset(model, 0, sizeof(*model));
	pass_bits(model, supported);
	write_basic(model, topology, x2apic);
	if (vendor == CPUID_INTEL) {
		write_caches(model, supported, topology, 4);
		write_frequency(model, tsc_hz);
	} else {
		write_amd_topology(model, supported, topology);
	}
	if (highest >= 0xb)
		write_x2apic_topology(model, topology, 0xb);
	if (vendor == CPUID_INTEL && highest >= 0x1f)
		write_x2apic_topology(model, topology, 0x1f);
	write_xsave(model, supported);
	write_hypervisor(model, supported, tsc_hz);
	write_brand(model);
	write_highest(model, 0, 0x40000000);
	write_highest(model, 0x80000000, 0xc0000000);
}

struct cpuid_regs cpuid_for_vcpu(const struct cpuid_leaf *leaf, const struct topology *topology,
				 unsigned apic_id)
{
	struct cpuid_regs regs = leaf->regs;

	switch (leaf->leaf) {
	case 0x1:
		regs.ebx = (regs.ebx & 0x00ffffff) | apic_id << 24;
		break;
	case 0xb:
	case 0x1f:
		regs.edx = apic_id;
		break;
	case 0x8000001e:
		regs.eax = apic_id;
		regs.ebx |= apic_id >> id_bits(topology->threads) & 0xff;
		regs.ecx = apic_id >> (id_bits(topology->threads) + id_bits(topology->cores));
		break;
	}
	return regs;
}

/* The size of the XSAVE area for the components of `xcr0`: standard, or compacted. */
static uint32_t xsave_size(const struct cpuid_table *model, uint64_t xcr0, bool compacted)
{
	uint32_t size = 512 + 64;

	for (unsigned i = 2; i < 32; i++) {
		struct cpuid_regs part = regs_of(model, 0xd, i);

		if (!(xcr0 >> i & 1) || part.eax == 0)
			continue;
		if (compacted)
			size = (part.ecx & BIT(1) ? (size + 63) & ~63u : size) + part.eax;
		else if (part.ebx + part.eax > size)
			size = part.ebx + part.eax;
	}
	return size;
}

static void follow_state(const struct cpuid_table *model, uint32_t leaf, uint32_t subleaf,
			 uint64_t cr4, uint64_t xcr0, uint64_t xss, struct cpuid_regs *regs)
{
	if (leaf == 1 && cr4 & X86_CR4_OSXSAVE && regs->ecx & BIT(26))
		regs->ecx |= BIT(27);
	if (leaf == 7 && subleaf == 0 && cr4 & X86_CR4_PKE && regs->ecx & BIT(3))
		regs->ecx |= BIT(4);
	if (leaf == 0xd && subleaf == 0)
		regs->ebx = xsave_size(model, xcr0, false);
	if (leaf == 0xd && subleaf == 1 && regs->eax & (BIT(1) | BIT(3)))
		regs->ebx = xsave_size(model, xcr0 | xss, true);
}

struct cpuid_regs cpuid_execute(const struct cpuid_table *model, const struct topology *topology,
				unsigned apic_id, uint32_t leaf, uint32_t subleaf, uint64_t cr4,
				uint64_t xcr0, uint64_t xss)
{
	uint32_t range = leaf & 0xc0000000;
	uint32_t first = range == 0x40000000 || range == 0x80000000 ? range : 0;
	uint32_t highest = regs_of(model, 0, 0).eax;
	const struct cpuid_leaf *found;
	struct cpuid_regs regs = {0, 0, 0, 0};

	/* Beyond the end Intel's CPUs answer with the highest basic leaf, AMD's with zeros. */
	if (leaf > regs_of(model, first, 0).eax) {
		if (cpuid_vendor(model) != CPUID_INTEL)
			return regs;
		leaf = highest;
	}
	found = cpuid_find(model, leaf, subleaf);
	if (found) {
		regs = cpuid_for_vcpu(found, topology, apic_id);
	} else if ((leaf == 0xb || leaf == 0x1f) && cpuid_find(model, leaf, 0)) {
		regs.ecx = subleaf & 0xff;
		regs.edx = apic_id;
	}
	follow_state(model, leaf, subleaf, cr4, xcr0, xss, &regs);
	return regs;
}
