/* Guest memory: the split at 3 GiB, checks of ranges from a guest, ROMs. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/memory.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)

static void test_small_is_one_region(void **state)
{
	struct memory mem;
	(void)state;

	assert_int_equal(memory_create(&mem, NULL, 16 * MIB + 1, false, false, NULL), 0);
	assert_int_equal(mem.size, 16 * MIB + PAGE_SIZE);
	assert_int_equal(mem.nregions, 1);
	assert_null(memory_find(&mem, mem.size, 1));
	assert_non_null(memory_find(&mem, mem.size - 1, 1));
	memory_destroy(&mem);
}

/* Sparse: 5 GiB are only promised. */
static void test_split_at_3_gib(void **state)
{
	struct memory mem;
	uint32_t value = 0x12345678, back = 0;
	(void)state;

	assert_int_equal(memory_create(&mem, NULL, 5 * GIB, false, false, NULL), 0);
	assert_int_equal(mem.low, 3 * GIB);
	assert_int_equal(mem.high, 2 * GIB);
	assert_int_equal(memory_write(&mem, 4 * GIB, &value, 4), 0);
	assert_int_equal(memory_read(&mem, 4 * GIB, &back, 4), 0);
	assert_int_equal(back, value);
	/* the byte before is not memory, and a range may not reach over the hole */
	assert_int_equal(memory_read(&mem, 4 * GIB - 1, &back, 1), -EFAULT);
	assert_int_equal(memory_read(&mem, 3 * GIB - 2, &back, 4), -EFAULT);
	/* RAM is one mapping: the high part follows the low one */
	assert_memory_equal(mem.base + 3 * GIB, &value, 4);
	memory_destroy(&mem);
}

static void test_ranges_from_a_guest(void **state)
{
	struct memory mem;
	uint8_t byte = 1;
	(void)state;

	assert_int_equal(memory_create(&mem, NULL, 2 * MIB, false, false, NULL), 0);
	assert_null(memory_find(&mem, 0, 2 * MIB + 1));
	assert_null(memory_find(&mem, 2 * MIB - 1, 2));
	assert_null(memory_find(&mem, 1, UINT64_MAX));
	assert_null(memory_find(&mem, UINT64_MAX, 2));
	assert_null(memory_find(&mem, UINT64_MAX, UINT64_MAX));
	assert_null(memory_write_begin(&mem, 4096, UINT64_MAX - 4095));
	assert_int_equal(memory_write(&mem, 2 * MIB, &byte, 1), -EFAULT);
	/* refused as a whole: nothing is written */
	assert_int_equal(memory_write(&mem, 2 * MIB - 1, "xy", 2), -EFAULT);
	assert_int_equal(mem.base[2 * MIB - 1], 0);
	memory_destroy(&mem);
}

static void test_rom(void **state)
{
	static const uint8_t code[5] = {1, 2, 3, 4, 5};
	struct error err = {.text = ""};
	struct memory mem;
	uint8_t back[6];
	(void)state;

	assert_int_equal(memory_create(&mem, NULL, 2 * MIB, false, false, NULL), 0);
	assert_int_equal(memory_add_rom(&mem, "rom", 4 * GIB - 4096, code, 5, &err), 0);
	assert_int_equal(memory_read(&mem, 4 * GIB - 4096, back, 6), 0);
	assert_memory_equal(back, code, 5);
	assert_int_equal(back[5], 0xff);
	assert_int_equal(memory_write(&mem, 4 * GIB - 4096, code, 1), -EFAULT);
	assert_int_equal(memory_add_rom(&mem, "other", 4 * GIB - 8192, back, 4097, &err), -EEXIST);
	assert_non_null(strstr(err.text, "overlaps rom"));
	assert_int_equal(memory_add_rom(&mem, "low", 1 * MIB, code, 5, &err), -EEXIST);
	assert_int_equal(memory_add_rom(&mem, "odd", 3 * GIB + 1, code, 5, &err), -EINVAL);
	assert_int_equal(memory_add_rom(&mem, "empty", 3 * GIB, code, 0, &err), -EINVAL);
	memory_destroy(&mem);
}

static void test_regions_run_out(void **state)
{
	struct memory mem;
	uint8_t byte = 0;
	int r = 0;
	(void)state;

	assert_int_equal(memory_create(&mem, NULL, 2 * MIB, false, false, NULL), 0);
	for (unsigned i = 0; i < MEMORY_REGIONS && r == 0; i++)
		r = memory_add_rom(&mem, "rom", 3 * GIB + i * PAGE_SIZE, &byte, 1, NULL);
	assert_int_equal(r, -ENOSPC);
	assert_int_equal(mem.nregions, MEMORY_REGIONS);
	memory_destroy(&mem);
}

static void test_bad_sizes(void **state)
{
	struct error err = {.text = ""};
	struct memory mem;
	(void)state;

	assert_int_equal(memory_create(&mem, NULL, 0, false, false, &err), -EINVAL);
	assert_non_null(strstr(err.text, "1 MiB"));
	assert_int_equal(memory_create(&mem, NULL, MEMORY_MAX + 1, false, false, &err), -EINVAL);
}

static void test_sealed(void **state)
{
	struct memory mem;
	(void)state;

	assert_int_equal(memory_create(&mem, NULL, 2 * MIB, false, true, NULL), 0);
	assert_int_not_equal(ftruncate(mem.fd, 4096), 0);
	assert_int_not_equal(ftruncate(mem.fd, 4 * MIB), 0);
	memory_destroy(&mem);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_small_is_one_region),
		cmocka_unit_test(test_split_at_3_gib),
		cmocka_unit_test(test_ranges_from_a_guest),
		cmocka_unit_test(test_rom),
		cmocka_unit_test(test_regions_run_out),
		cmocka_unit_test(test_bad_sizes),
		cmocka_unit_test(test_sealed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
