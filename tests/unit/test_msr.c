/* The monitor's MSR policy: strict, lax, and the known set by vendor. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/msr.h"
#include "vmm/vm.h"

static struct vm *vm_make(const char *vendor, uint32_t signature)
{
	static struct log log;
	struct vm *vm = calloc(1, sizeof(*vm));
	struct cpuid_regs regs = {1, 0, 0, 0};

	assert_non_null(vm);
	log_init(&log, STDERR_FILENO, LOG_ERROR);
	memcpy(&regs.ebx, vendor, 4);
	cpuid_add(&vm->cpuid, 0, 0, false, regs);
	cpuid_add(&vm->cpuid, 1, 0, false, (struct cpuid_regs){signature, 0, 0, 0});
	vm->log = &log;
	vm->strict_msr = true;
	vm->tsc_hz = 2600000000ull;
	return vm;
}

static void test_strict_and_lax(void **state)
{
	struct vm *vm = vm_make("Genu", 0x906ea);
	uint64_t value = 7;
	(void)state;

	assert_false(msr_read(vm, 0, 0x12345678, &value));
	assert_false(msr_write(vm, 0, 0x12345678, 1));
	vm->strict_msr = false;
	value = 7;
	assert_true(msr_read(vm, 0, 0x12345678, &value));
	assert_int_equal(value, 0);
	assert_true(msr_write(vm, 0, 0x12345678, 1));
	free(vm);
}

static void test_intel(void **state)
{
	static const uint32_t zero[] = {0x17, 0x8b, 0x606, 0x610, 0x611, 0x619, 0x639, 0x641};
	struct vm *vm = vm_make("Genu", 0x906ea);
	uint64_t value;
	(void)state;

	for (size_t i = 0; i < sizeof(zero) / sizeof(zero[0]); i++) {
		value = 7;
		assert_true(msr_read(vm, 0, zero[i], &value));
		assert_int_equal(value, 0);
		assert_true(msr_write(vm, 0, zero[i], 1));
	}
	assert_true(msr_read(vm, 0, 0x3a, &value));
	assert_int_equal(value, 1); /* locked, VMX off */
	assert_false(msr_read(vm, 0, 0xc0010114, &value));
	free(vm);
}

static void test_amd(void **state)
{
	/* SYSCFG, NB_CFG, performance counters, RAPL */
	static const uint32_t amd_zero[] = {0xc0010010, 0xc001001f, 0xc0010000, 0xc0010003,
					    0xc0010004, 0xc0010007, 0xc0010299, 0xc001029b};
	struct vm *vm = vm_make("Auth", 0x00a20f10); /* family 19h */
	uint64_t value;
	(void)state;

	assert_true(msr_read(vm, 0, 0xc0010114, &value));
	assert_int_equal(value, 1u << 4); /* SVMDIS */
	assert_true(msr_read(vm, 0, 0xc0010015, &value));
	assert_true(msr_write(vm, 0, 0xc0010015, 0));
	for (size_t i = 0; i < sizeof(amd_zero) / sizeof(amd_zero[0]); i++) {
		value = 7;
		assert_true(msr_read(vm, 0, amd_zero[i], &value));
		assert_int_equal(value, 0);
		assert_true(msr_write(vm, 0, amd_zero[i], 1ull << 46));
	}
	assert_true(msr_read(vm, 0, 0xc0010064, &value));
	assert_true(value >> 63);
	assert_int_equal((value & 0xff) * 25 * 8 / (value >> 8 & 0x3f), 2600);
	assert_false(msr_read(vm, 0, 0x3a, &value));
	free(vm);
	vm = vm_make("Auth", 0x00b00f21); /* family 1Ah */
	assert_true(msr_read(vm, 0, 0xc0010064, &value));
	assert_int_equal((value & 0xfff) * 5, 2600);
	free(vm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_strict_and_lax),
		cmocka_unit_test(test_intel),
		cmocka_unit_test(test_amd),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
