/*
 * Decoding by shapes gives what Zydis gives, byte for byte of struct insn: of random bytes, and of random instructions in which
 * what shapes know (prefixes, opcodes, ModRM and SIB forms) comes often.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/soft/cpu.h"
#include "engine/soft/decode.h"

#define CASES 1000000

static uint64_t rnd(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static void random_insn(uint64_t *seed, uint8_t *bytes)
{
	static const uint8_t prefixes[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65,
					   0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x66};
	uint64_t r = rnd(seed);
	unsigned at = 0;

	for (unsigned i = 0; i < INSN_MAX; i++)
		bytes[i] = (uint8_t)(rnd(seed) >> 20);
	while (at < 4 && (rnd(seed) >> 33) % 4 == 0)
		bytes[at++] = prefixes[(rnd(seed) >> 33) % sizeof(prefixes)];
	if (r & 0x100)
		bytes[at++] = 0x40 | (r & 15);
	if (r & 0x200)
		bytes[at++] = 0x0f;
}

static void check(struct shapes *shapes, const uint8_t *bytes, unsigned n, uint32_t mode)
{
	struct insn want, got;
	int wanted, ret;

	memset(&want, 0, sizeof(want));
	memset(&got, 0, sizeof(got));
	wanted = insn_decode(bytes, n, mode, &want);
	ret = insn_decode_shaped(shapes, bytes, n, mode, &got);
	if (ret != wanted || memcmp(&got, &want, sizeof(got))) {
		for (unsigned i = 0; i < n; i++)
			print_error("%02x ", bytes[i]);
		print_error("mode %#x\n", mode);
	}
	assert_int_equal(ret, wanted);
	assert_memory_equal(&got, &want, sizeof(got));
}

static void test_shapes(void **state)
{
	struct shapes *shapes = calloc(1, shapes_size());
	uint64_t seed = 88172645463325252ull;

	(void)state;
	assert_non_null(shapes);
	for (unsigned i = 0; i < CASES; i++) {
		uint8_t bytes[INSN_MAX];
		unsigned n = i % 16 ? INSN_MAX : 1 + i / 16 % INSN_MAX;
		uint32_t mode = i % 32 ? MODE_CODE64 | MODE_PROT : MODE_CODE32 | MODE_PROT;

		random_insn(&seed, bytes);
		check(shapes, bytes, n, mode);
	}
	free(shapes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
