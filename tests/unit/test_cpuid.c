/* The CPU model: what is hidden, what is shown, how the topology is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/cpuid.h"
#include "vmm/engine.h"
#include "vmm/x86.h"

#define ALL 0xffffffffu
#define TSC_HZ 2600000000ull

/* An engine that claims to have everything. */
static void supported_make(struct cpuid_table *table, bool amd)
{
	static const struct cpuid_regs all = {ALL, ALL, ALL, ALL};
	struct cpuid_regs vendor = {0x20, 0, 0, 0};

	memset(table, 0, sizeof(*table));
	memcpy(&vendor.ebx, amd ? "Auth" : "Genu", 4);
	memcpy(&vendor.edx, amd ? "enti" : "ineI", 4);
	memcpy(&vendor.ecx, amd ? "cAMD" : "ntel", 4);
	cpuid_add(table, 0, 0, false, vendor);
	for (uint32_t leaf = 1; leaf <= 0x14; leaf++) {
		if (leaf != 4 && leaf != 7 && leaf != 0xb && leaf != 0xd)
			cpuid_add(table, leaf, 0, false, all);
	}
	cpuid_add(table, 7, 0, true, all);
	cpuid_add(table, 7, 1, true, all);
	cpuid_add(table, 4, 0, true, (struct cpuid_regs){0x121, 0x1c0003f, 0x3f, 0});
	cpuid_add(table, 4, 1, true, (struct cpuid_regs){0x163, 0x1c0003f, 0x3fff, 0});
	cpuid_add(table, 0xd, 0, true, (struct cpuid_regs){0x602ff, 0, 11000, 0});
	cpuid_add(table, 0xd, 1, true, (struct cpuid_regs){0x1f, 0, 0x1800, 0});
	cpuid_add(table, 0xd, 2, true, (struct cpuid_regs){0x100, 0x240, 0, 0});
	cpuid_add(table, 0xd, 5, true, (struct cpuid_regs){0x40, 0x440, 0, 0});
	cpuid_add(table, 0xd, 6, true, (struct cpuid_regs){0x200, 0x480, 0, 0});
	cpuid_add(table, 0xd, 7, true, (struct cpuid_regs){0x400, 0x680, 0, 0});
	cpuid_add(table, 0xd, 9, true, (struct cpuid_regs){8, 0xa80, 0, 0});
	cpuid_add(table, 0xd, 18, true, (struct cpuid_regs){8192, 0xb00, 2, 0});
	for (uint32_t leaf = 0x80000000; leaf <= 0x8000001a; leaf++)
		cpuid_add(table, leaf, 0, false, all);
	cpuid_add(table, 0x8000001d, 0, true, (struct cpuid_regs){0x121, 0x1c0003f, 0x3f, 0});
	cpuid_add(table, 0x8000001d, 3, true, (struct cpuid_regs){0x163, 0x1c0003f, 0x3fff, 0});
	cpuid_add(table, 0x40000000, 0, false, all);
	cpuid_add(table, 0x40000001, 0, false, all);
}

static void model_make(struct cpuid_table *model, bool amd, bool x2apic, unsigned sockets,
		       unsigned cores, unsigned threads)
{
	struct topology topology = {sockets * cores * threads, sockets, cores, threads};
	struct cpuid_table supported;

	supported_make(&supported, amd);
	cpuid_model_build(model, &supported, &topology, x2apic, TSC_HZ);
	assert_true(model->n < CPUID_LEAVES_MAX);
}

static struct cpuid_regs run(const struct cpuid_table *model, uint32_t leaf, uint32_t subleaf)
{
	struct topology topology = {8, 1, 4, 2};

	return cpuid_execute(model, &topology, 5, leaf, subleaf, 0, 1, 0);
}

static void test_hidden(void **state)
{
	struct cpuid_table model;
	(void)state;

	for (int amd = 0; amd < 2; amd++) {
		model_make(&model, amd, true, 1, 4, 2);
		/* MONITOR, VMX, SMX, PDCM */
		assert_int_equal(run(&model, 1, 0).ecx & (1u << 3 | 1u << 5 | 1u << 6 | 1u << 15),
				 0);
		/* SGX, HLE, RTM, MPX, PT */
		assert_int_equal(run(&model, 7, 0).ebx &
					 (1u << 2 | 1u << 4 | 1u << 11 | 1u << 14 | 1u << 25),
				 0);
		/* shadow stacks, IBT, AMX */
		assert_int_equal(run(&model, 7, 0).ecx & 1u << 7, 0);
		assert_int_equal(
			run(&model, 7, 0).edx & (1u << 20 | 1u << 22 | 1u << 24 | 1u << 25), 0);
		/* PMU, PT, SGX, SVM */
		for (uint32_t leaf = 9; leaf <= 0x14; leaf++) {
			if (leaf != 0xb && leaf != 0xd)
				assert_null(cpuid_find(&model, leaf, 0));
		}
		assert_null(cpuid_find(&model, 0x8000000a, 0));
		assert_int_equal(run(&model, 0x80000001, 0).ecx & (1u << 2 | 1u << 29), 0);
	}
}

static void test_hypervisor(void **state)
{
	struct cpuid_table model;
	struct cpuid_regs regs;
	(void)state;

	model_make(&model, true, true, 1, 1, 1);
	assert_true(run(&model, 1, 0).ecx & 1u << 31);
	regs = run(&model, 0x40000000, 0);
	assert_memory_equal(&regs.ebx, "KVMKVMKVM\0\0\0", 12);
	assert_int_equal(run(&model, 0x40000001, 0).eax, 0x0100000b);
	assert_int_equal(run(&model, 0x40000010, 0).eax, TSC_HZ / 1000);
	assert_int_equal(run(&model, 0x40000000, 0).eax, 0x40000010);
}

static void test_x2apic_bit(void **state)
{
	struct cpuid_table model;
	(void)state;

	model_make(&model, false, true, 1, 1, 1);
	assert_true(run(&model, 1, 0).ecx & 1u << 21);
	model_make(&model, false, false, 1, 1, 1);
	assert_false(run(&model, 1, 0).ecx & 1u << 21);
}

static void test_apic_ids(void **state)
{
	const struct topology even = {16, 2, 4, 2}, odd = {30, 2, 5, 3};

	(void)state;
	for (unsigned i = 0; i < even.cpus; i++)
		assert_int_equal(topology_apic_id(&even, i), i);
	assert_int_equal(topology_apic_id(&odd, 2), 2);
	assert_int_equal(topology_apic_id(&odd, 3), 4);
	assert_int_equal(topology_apic_id(&odd, 14), 4 << 2 | 2);
	assert_int_equal(topology_apic_id(&odd, 15), 1 << 5);
	assert_int_equal(topology_apic_id(&odd, 29), 1 << 5 | 4 << 2 | 2);
	for (unsigned cores = 1; cores <= VCPUS_MAX; cores++) {
		for (unsigned threads = 1; cores * threads <= VCPUS_MAX; threads++) {
			unsigned sockets = VCPUS_MAX / (cores * threads);
			struct topology t = {sockets * cores * threads, sockets, cores, threads};

			assert_in_range(topology_apic_id(&t, t.cpus - 1), t.cpus - 1, 127);
		}
	}
}

static void test_topology_intel(void **state)
{
	struct cpuid_table model;
	struct cpuid_regs regs;
	(void)state;

	model_make(&model, false, true, 1, 4, 2);
	regs = run(&model, 1, 0);
	assert_int_equal(regs.ebx >> 24, 5);
	assert_int_equal(regs.ebx >> 16 & 0xff, 8);
	assert_true(regs.edx & 1u << 28);
	regs = run(&model, 4, 0);
	assert_int_equal(regs.eax >> 26, 3);
	assert_int_equal(regs.eax >> 14 & 0xfff, 1);		  /* L1 */
	assert_int_equal(run(&model, 4, 1).eax >> 14 & 0xfff, 7); /* L3 */
	regs = run(&model, 0xb, 0);
	assert_int_equal(regs.eax, 1);
	assert_int_equal(regs.ebx, 2);
	assert_int_equal(regs.ecx, 0x100);
	assert_int_equal(regs.edx, 5);
	regs = run(&model, 0xb, 1);
	assert_int_equal(regs.eax, 3);
	assert_int_equal(regs.ebx, 8);
	assert_int_equal(regs.ecx, 0x201);
	regs = run(&model, 0xb, 7);
	assert_int_equal(regs.eax | regs.ebx, 0);
	assert_int_equal(regs.ecx, 7);
	assert_int_equal(regs.edx, 5);
	assert_int_equal(run(&model, 0x1f, 1).ebx, 8);
	/* the crystal times the ratio is the TSC */
	regs = run(&model, 0x15, 0);
	assert_int_equal((uint64_t)regs.ecx * regs.ebx / regs.eax, TSC_HZ);
	assert_int_equal(run(&model, 0x16, 0).eax, TSC_HZ / 1000000);
}

/* Linux computes crystal_khz * numerator / denominator in 32 bits (native_calibrate_tsc()). */
static void test_frequency(void **state)
{
	static const uint64_t rates[] = {1000000000ull, 2595124000ull, 2600000000ull, 1999999999ull,
					 3693059000ull, 800000000ull,  4200000123ull};
	struct topology topology = {1, 1, 1, 1};
	struct cpuid_table supported, model;
	(void)state;

	supported_make(&supported, false);
	for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
		struct cpuid_regs regs;
		uint32_t khz;

		cpuid_model_build(&model, &supported, &topology, true, rates[i]);
		regs = run(&model, 0x15, 0);
		khz = regs.ecx / 1000 * regs.ebx / regs.eax;
		assert_in_range(khz, rates[i] / 1000 - 100, rates[i] / 1000 + 100);
	}
}

static void test_topology_amd(void **state)
{
	struct cpuid_table model;
	struct cpuid_regs regs;
	(void)state;

	model_make(&model, true, true, 1, 4, 2);
	regs = run(&model, 0x80000008, 0);
	assert_int_equal(regs.ecx & 0xff, 7);
	assert_int_equal(regs.ecx >> 12, 3);
	assert_int_equal(run(&model, 0x8000001d, 0).eax >> 14 & 0xfff, 1);
	assert_int_equal(run(&model, 0x8000001d, 3).eax >> 14 & 0xfff, 0); /* the walk ended at 1 */
	regs = run(&model, 0x8000001e, 0);
	assert_int_equal(regs.eax, 5);
	assert_int_equal(regs.ebx, 0x102); /* core 2, two threads */
	assert_int_equal(regs.ecx, 0);
	assert_null(cpuid_find(&model, 0x15, 0));
	assert_true(run(&model, 0x80000001, 0).ecx & 2);
	model_make(&model, true, true, 1, 1, 1);
	assert_false(run(&model, 0x80000001, 0).ecx & 2);
	assert_false(run(&model, 1, 0).edx & 1u << 28);
}

static void test_xsave(void **state)
{
	struct topology topology = {1, 1, 1, 1};
	struct cpuid_table model;
	struct cpuid_regs regs;
	(void)state;

	model_make(&model, false, true, 1, 1, 1);
	assert_int_equal(cpuid_xcr0(&model), 0x2e7);
	assert_int_equal(run(&model, 0xd, 0).ecx, 0xa88);
	assert_int_equal(run(&model, 0xd, 0).ebx, 576);
	assert_null(cpuid_find(&model, 0xd, 18));
	assert_int_equal(run(&model, 0xd, 1).ecx, 0);
	regs = cpuid_execute(&model, &topology, 0, 0xd, 0, X86_CR4_OSXSAVE, 7, 0);
	assert_int_equal(regs.ebx, 0x340);
	/* compacted, PKRU comes right after AVX */
	regs = cpuid_execute(&model, &topology, 0, 0xd, 1, X86_CR4_OSXSAVE, 0x207, 0);
	assert_int_equal(regs.ebx, 0x348);
}

static void test_bits_that_follow_cr4(void **state)
{
	struct topology topology = {1, 1, 1, 1};
	struct cpuid_table model;
	(void)state;

	model_make(&model, false, true, 1, 1, 1);
	assert_false(run(&model, 1, 0).ecx & 1u << 27);
	assert_true(cpuid_execute(&model, &topology, 0, 1, 0, X86_CR4_OSXSAVE, 1, 0).ecx &
		    1u << 27);
	assert_false(run(&model, 7, 0).ecx & 1u << 4);
	assert_true(cpuid_execute(&model, &topology, 0, 7, 0, X86_CR4_PKE, 1, 0).ecx & 1u << 4);
}

static void test_beyond_the_end(void **state)
{
	struct cpuid_table model;
	struct cpuid_regs regs, last;
	(void)state;

	model_make(&model, true, true, 1, 1, 1);
	regs = run(&model, 0x12345, 0);
	assert_int_equal(regs.eax | regs.ebx | regs.ecx | regs.edx, 0);
	model_make(&model, false, true, 1, 1, 1);
	regs = run(&model, 0x12345, 0);
	last = run(&model, 0x1f, 0);
	assert_memory_equal(&regs, &last, sizeof(regs));
	assert_int_equal(run(&model, 0, 0).eax, 0x1f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hidden),	       cmocka_unit_test(test_hypervisor),
		cmocka_unit_test(test_x2apic_bit),     cmocka_unit_test(test_apic_ids),
		cmocka_unit_test(test_topology_intel), cmocka_unit_test(test_topology_amd),
		cmocka_unit_test(test_xsave),	       cmocka_unit_test(test_bits_that_follow_cr4),
		cmocka_unit_test(test_beyond_the_end), cmocka_unit_test(test_frequency),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
