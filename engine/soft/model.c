/*
 * What the soft engine can show in CPUID: instructions that the host has and native.c may copy, and system
 * features that the engine implements, whatever the host has. The monitor's model (vmm/cpuid.c) takes its
 * part of it.
 */
#include <cpuid.h>
#include <stdio.h>
#include <string.h>

#include "engine/soft/soft.h"

#define BIT(n) (1u << (n))

#define ARCH_CAP_RDCL_NO 0x01u
#define ARCH_CAP_MDS_NO 0x20u

/* Bits of the host that pass (user-visible instructions), and bits that the engine adds. */
static const struct filter {
	uint32_t leaf, subleaf;
	struct cpuid_regs pass, add;
} filters[] = {
	{0x1,
	 0,
	 {~0u, ~0u,
	  /* sse3 pclmul ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt aes xsave avx f16c rdrand */
	  BIT(0) | BIT(1) | BIT(9) | BIT(12) | BIT(13) | BIT(19) | BIT(20) | BIT(22) | BIT(23) |
		  BIT(25) | BIT(26) | BIT(28) | BIT(29) | BIT(30),
	  /* fpu cx8 cmov clflush mmx fxsr sse sse2 */
	  BIT(0) | BIT(8) | BIT(15) | BIT(19) | BIT(23) | BIT(24) | BIT(25) | BIT(26)},
	 {0, 0, BIT(17) | BIT(21) | BIT(24), /* pcid x2apic tsc-deadline */
	  /* pse tsc msr pae mce apic sep mtrr pge mca pat pse36 */
	  BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(9) | BIT(11) | BIT(12) | BIT(13) |
		  BIT(14) | BIT(16) | BIT(17)}},
	{0x6, 0, {0, 0, 0, 0}, {BIT(2), 0, 0, 0}}, /* arat */
	{0x7,
	 0,
	 {BIT(0),
	  /* bmi1 avx2 bmi2 erms avx512f avx512dq rdseed adx ifma clflushopt clwb avx512cd sha avx512bw avx512vl */
	  BIT(3) | BIT(5) | BIT(8) | BIT(9) | BIT(16) | BIT(17) | BIT(18) | BIT(19) | BIT(21) |
		  BIT(23) | BIT(24) | BIT(28) | BIT(29) | BIT(30) | BIT(31),
	  /* vbmi vbmi2 gfni vaes vpclmul vnni bitalg vpopcnt */
	  BIT(1) | BIT(6) | BIT(8) | BIT(9) | BIT(10) | BIT(11) | BIT(12) | BIT(14),
	  BIT(4) /* fsrm */},
	 {0,
	  BIT(0) | BIT(1) | BIT(7) | BIT(10) | BIT(20), /* fsgsbase tsc_adjust smep invpcid smap */
	  BIT(2) | BIT(22),				/* umip rdpid */
	  0}},
	{0x7, 1, {BIT(4) | BIT(5), 0, 0, 0}, {0, 0, 0, 0}}, /* avx-vnni bf16 */
	{0x80000001,
	 0,
	 {~0u, ~0u,
	  /* lahf abm sse4a misalignsse prefetchw topoext */
	  BIT(0) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(22),
	  /* fpu cx8 cmov mmxext mmx fxsr */
	  BIT(0) | BIT(8) | BIT(15) | BIT(22) | BIT(23) | BIT(24)},
	 {0, 0, 0,
	  /* pse tsc msr pae mce apic syscall mtrr pge mca pat pse36 nx 1gb rdtscp lm */
	  BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(9) | BIT(11) | BIT(12) | BIT(13) |
		  BIT(14) | BIT(16) | BIT(17) | BIT(20) | BIT(26) | BIT(27) | BIT(29)}},
	{0x80000007, 0, {0, 0, 0, 0}, {0, 0, 0, BIT(8)}}, /* invariant tsc */
};

/* Leaves that describe and promise nothing. */
static const uint32_t plain[] = {0x0,	     0x80000000, 0x80000002, 0x80000003,
				 0x80000004, 0x80000005, 0x80000006, 0x8000001a};

static struct cpuid_regs host(uint32_t leaf, uint32_t subleaf)
{
	struct cpuid_regs r = {0, 0, 0, 0};

	if ((uint32_t)__get_cpuid_max(leaf & 0x80000000, NULL) >= leaf)
		__cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
	return r;
}

static void add_indexed(struct cpuid_table *table, uint32_t leaf, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		cpuid_add(table, leaf, i, true, host(leaf, i));
}

/*
 * SRSO_NO ("speculative return stack overflow"): what poisons that predictor waits for a RET, and translated code has none: the
 * guest's returns are jumps by a table (emit_indirect), and so would be the two more of them that a kernel's remedy costs
 * at each. TSA_SQ_NO, TSA_L1_NO, and that LFENCE serializes: as the host's CPU is, so are the instructions that it executes
 * for the guest.
 */
static void add_amd_extended(struct cpuid_table *table)
{
	struct cpuid_regs own = host(0x80000021, 0);
	struct cpuid_regs shown = {BIT(29) | (own.eax & BIT(2)), 0, own.ecx & (BIT(1) | BIT(2)), 0};

	if (cpuid_vendor(table) == CPUID_AMD)
		cpuid_add(table, 0x80000021, 0, false, shown);
}

/* XSAVE: XSAVEOPT, XSAVEC and XGETBV(1) are there, supervisor states are not; no PKRU. */
static void add_xsave(struct cpuid_table *table)
{
	struct cpuid_regs main = host(0xd, 0), options = host(0xd, 1);

	main.eax &= 0xe7;
	cpuid_add(table, 0xd, 0, true, main);
	cpuid_add(table, 0xd, 1, true, (struct cpuid_regs){options.eax & 0x7, 0, 0, 0});
	for (unsigned i = 2; i < 8; i++)
		if (main.eax & BIT(i))
			cpuid_add(table, 0xd, i, true, host(0xd, i));
}

static void add_address_widths(struct cpuid_table *table)
{
	uint32_t eax = host(0x80000008, 0).eax;
	uint32_t physical = eax & 0xff;

	/* One more address line than the highest region needs is enough; 48 bits of linear address. */
	if (physical < 36 || physical > 52)
		physical = 46;
	cpuid_add(table, 0x80000008, 0, false, (struct cpuid_regs){physical | 48 << 8, 0, 0, 0});
}

/* What the host's kernel says of a weakness of its CPU. False: it has it, or nothing is known. */
static bool host_not_affected(const char *weakness)
{
	char path[96], text[32] = "";
	FILE *file;

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/vulnerabilities/%s", weakness);
	file = fopen(path, "re");
	if (!file)
		return false;
	if (!fgets(text, sizeof(text), file))
		text[0] = '\0';
	fclose(file);
	return !strcmp(text, "Not affected\n");
}

/*
 * RDCL_NO: to the host's CPU all of guest memory is user pages, whatever the guest's page tables say, so Meltdown's way
 * around a page's U/S bit is not there, and a kernel that keeps itself out of user mode's page tables pays for nothing.
 * (Speculation past the check of the inline TLB is another matter, and such tables would not stop it.) MDS_NO: as the
 * host's CPU is; else a kernel executes VERW whenever it leaves.
 */
uint64_t soft_arch_capabilities(void)
{
	return ARCH_CAP_RDCL_NO | (host_not_affected("mds") ? ARCH_CAP_MDS_NO : 0);
}

void soft_model(struct cpuid_table *table)
{
	memset(table, 0, sizeof(*table));
	for (unsigned i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
		cpuid_add(table, plain[i], 0, false, host(plain[i], 0));
	for (unsigned i = 0; i < sizeof(filters) / sizeof(filters[0]); i++) {
		const struct filter *f = &filters[i];
		struct cpuid_regs r = host(f->leaf, f->subleaf);

		r.eax = (r.eax & f->pass.eax) | f->add.eax;
		r.ebx = (r.ebx & f->pass.ebx) | f->add.ebx;
		r.ecx = (r.ecx & f->pass.ecx) | f->add.ecx;
		r.edx = (r.edx & f->pass.edx) | f->add.edx;
		if (f->leaf == 7 && f->subleaf == 0 && host(0, 0).ebx == signature_INTEL_ebx)
			r.edx |= BIT(29); /* arch_cap */
		cpuid_add(table, f->leaf, f->subleaf, f->leaf == 7, r);
	}
	add_indexed(table, 4, 5);
	add_indexed(table, 0xb, 2);
	add_indexed(table, 0x8000001d, 5);
	cpuid_add(table, 0x8000001e, 0, false, host(0x8000001e, 0));
	add_xsave(table);
	add_address_widths(table);
	add_amd_extended(table);
	/* kvm-clock, both pairs of MSRs, stable; no delay after port accesses */
	cpuid_add(table, 0x40000001, 0, false,
		  (struct cpuid_regs){BIT(0) | BIT(1) | BIT(3) | BIT(24), 0, 0, 0});
}
