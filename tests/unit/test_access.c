/*
 * The soft engine's accesses that a device answers, exit by exit, with a guest of a few instructions: how often the device
 * is asked, for what, and that its answer arrives whatever becomes of the instruction meanwhile. And that the code cache is
 * two mappings, neither of which can be both written and executed.
 */
#include <cpuid.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/soft/soft.h"
#include "vmm/vm.h"

#define PML4 0x1000ull
#define PDPT 0x2000ull
#define PD 0x3000ull
#define PT 0x4000ull /* 2 MiB, each page where it is but for DEVICE */
#define GDT 0x6000ull
#define IDT 0x7000ull
#define HANDLER 0x8000ull /* of #PF */
#define STACK 0xa000ull
#define CODE 0x100000ull   /* two pages */
#define DEVICE 0x120000ull /* linear */
#define DEVICE_GPA 0xd0000000ull
#define DONE_PORT 0xf0
#define FAULT_PORT 0xf1
#define ACCESSES 16

struct guest {
	struct vm *vm;
	struct config *config;
	struct log log;
	struct x86_state *state;
	/* what the device was asked */
	struct {
		uint64_t gpa, value;
		unsigned size;
		bool write;
	} access[ACCESSES];
	unsigned accesses;
	uint16_t port;			    /* the OUT that ended it */
	void (*asked)(struct guest *guest); /* while it is being asked */
	uint64_t answer;
};

static void put(struct guest *g, uint64_t gpa, const void *bytes, uint64_t len)
{
	assert_int_equal(memory_write(&g->vm->memory, gpa, bytes, len), 0);
}

static void put64(struct guest *g, uint64_t gpa, uint64_t value)
{
	put(g, gpa, &value, 8);
}

static int setup(void **state)
{
	static const uint8_t handler[] = {0xe6, FAULT_PORT};
	struct guest *g = calloc(1, sizeof(*g));
	struct vm_options options = {.name = "access",
				     .engine = &engine_soft,
				     .memory_size = 4 << 20,
				     .topology = {1, 1, 1, 1}};
	struct error err;

	assert_non_null(g);
	log_init(&g->log, STDERR_FILENO, LOG_WARN);
	options.log = &g->log;
	options.config = g->config = config_create();
	g->state = aligned_alloc(64, sizeof(*g->state));
	assert_non_null(g->state);
	assert_int_equal(vm_create(&g->vm, &options, &err), 0);
	put64(g, PML4, PDPT | 3);
	put64(g, PDPT, PD | 3);
	put64(g, PD, PT | 3);
	for (uint64_t i = 0; i < 512; i++)
		put64(g, PT + i * 8, i << 12 | 3);
	put64(g, PT + (DEVICE >> 12) * 8, DEVICE_GPA | 3);
	put64(g, GDT + 0x08, 0x00af9b000000ffffull);
	put64(g, GDT + 0x10, 0x00cf93000000ffffull);
	put64(g, IDT + X86_PF * 16, HANDLER | 0x08 << 16 | 0x8e00ull << 32);
	put(g, HANDLER, handler, sizeof(handler));
	*state = g;
	return 0;
}

static int teardown(void **state)
{
	struct guest *g = *state;

	vm_destroy(g->vm);
	config_destroy(g->config);
	free(g->state);
	free(g);
	return 0;
}

static void begin(struct guest *g)
{
	struct x86_state *s = g->state;

	x86_state_reset(s, 0, true);
	s->cr0 = 0x80050033;
	s->cr3 = PML4;
	s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE;
	s->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
	s->xcr0 = cpuid_xcr0(&g->vm->cpuid);
	for (unsigned i = 0; i < X86_SEGS; i++)
		s->seg[i] = (struct x86_seg){.limit = 0xffffffff, .sel = 0x10, .attr = 0xc093};
	s->seg[X86_CS] = (struct x86_seg){.limit = 0xffffffff, .sel = 0x08, .attr = 0xa09b};
	s->gdtr = (struct x86_table){GDT, 0x1f};
	s->idtr = (struct x86_table){IDT, 32 * 16 - 1};
	s->rflags = 2;
	s->gpr[X86_RSP] = STACK;
	g->accesses = 0;
	g->asked = NULL;
}

static void device(struct guest *g, struct vm_exit *exit)
{
	assert_true(g->accesses < ACCESSES);
	g->access[g->accesses].gpa = exit->mmio.gpa;
	g->access[g->accesses].size = exit->mmio.size;
	g->access[g->accesses].write = exit->mmio.write;
	g->access[g->accesses].value = exit->mmio.value;
	g->accesses++;
	if (!exit->mmio.write)
		exit->mmio.value = g->answer;
	if (g->asked)
		g->asked(g);
}

static int run(struct vcpu *vcpu, void *arg)
{
	const struct engine *engine = vcpu->vm->engine;
	struct guest *g = arg;

	if (engine->vcpu_set_state(vcpu, g->state))
		return -1;
	for (;;) {
		if (engine->vcpu_run(vcpu, &vcpu->exit))
			return -1;
		if (vcpu->exit.code == EXIT_INOUT)
			break;
		if (vcpu->exit.code == EXIT_MMIO)
			device(g, &vcpu->exit);
		else if (vcpu->exit.code != EXIT_BOGUS)
			return -1;
	}
	g->port = vcpu->exit.inout.port;
	return engine->vcpu_get_state(vcpu, g->state);
}

/* Runs `code` at `at`, with OUT DONE_PORT behind it. */
static void run_code(struct guest *g, uint64_t at, const uint8_t *code, unsigned len)
{
	static const uint8_t end[] = {0xe6, DONE_PORT};

	put(g, at, code, len);
	put(g, at + len, end, sizeof(end));
	g->state->rip = at;
	assert_int_equal(vcpu_call(&g->vm->vcpu[0], run, g), 0);
}

/* ---- the answer arrives ------------------------------------------------------------------------------- */

static const uint8_t mov_eax_rbx[] = {0x8b, 0x03};

static void take_code_away(struct guest *g)
{
	put64(g, PT + (CODE >> 12) * 8, 0);
}

static void test_code_unmapped(void **state)
{
	struct guest *g = *state;
	uint64_t rip;

	begin(g);
	g->state->gpr[X86_RBX] = DEVICE;
	g->answer = 0x12345678;
	g->asked = take_code_away;
	run_code(g, CODE + 0x80, mov_eax_rbx, sizeof(mov_eax_rbx));
	assert_int_equal(g->accesses, 1);
	assert_int_equal(g->state->gpr[X86_RAX], 0x12345678);
	/* The next instruction is what cannot be fetched. */
	assert_int_equal(g->port, FAULT_PORT);
	assert_int_equal(memory_read(&g->vm->memory, STACK - 40, &rip, 8), 0);
	assert_int_equal(rip, CODE + 0x80 + sizeof(mov_eax_rbx));
}

static void change_code(struct guest *g)
{
	static const uint8_t mov_eax_rsi[] = {0x8b, 0x06};

	put(g, CODE + 0x80, mov_eax_rsi, sizeof(mov_eax_rsi));
}

static void test_code_changed(void **state)
{
	struct guest *g = *state;

	begin(g);
	g->state->gpr[X86_RBX] = DEVICE;
	g->state->gpr[X86_RSI] = DEVICE + 8;
	g->answer = 0x12345678;
	g->asked = change_code;
	run_code(g, CODE + 0x80, mov_eax_rbx, sizeof(mov_eax_rbx));
	assert_int_equal(g->accesses, 1);
	assert_int_equal(g->access[0].gpa, DEVICE_GPA);
	assert_int_equal(g->state->gpr[X86_RAX], 0x12345678);
	assert_int_equal(g->port, DONE_PORT);
}

/* 16 bytes are two accesses, the second of which finds the answer to the first. */
static void test_pieces(void **state)
{
	static const uint8_t movups_xmm0_rbx[] = {0x0f, 0x10, 0x03};
	struct guest *g = *state;
	uint64_t value[2];

	begin(g);
	g->state->gpr[X86_RBX] = DEVICE + 0x10;
	g->answer = 0x1122334455667788;
	g->asked = take_code_away;
	run_code(g, CODE + 0x80, movups_xmm0_rbx, sizeof(movups_xmm0_rbx));
	assert_int_equal(g->accesses, 2);
	assert_int_equal(g->access[0].gpa, DEVICE_GPA + 0x10);
	assert_int_equal(g->access[1].gpa, DEVICE_GPA + 0x18);
	memcpy(value, g->state->xsave + 160, 16);
	assert_int_equal(value[0], g->answer);
	assert_int_equal(value[1], g->answer);
}

/* ---- masks -------------------------------------------------------------------------------------------- */

static bool has_avx(const struct guest *g)
{
	return (cpuid_xcr0(&g->vm->cpuid) & 6) == 6;
}

/* YMM0 is the mask of elements, a bit each; YMM1 the data: 0xa0, 0xa1 .. */
static void masked(struct guest *g, unsigned mask, uint64_t at, const uint8_t *code, unsigned len)
{
	uint32_t eax, ebx, ecx, edx;

	begin(g);
	__cpuid_count(0xd, 2, eax, ebx, ecx, edx); /* EBX: where the upper halves lie */
	for (unsigned i = 0; i < 8; i++) {
		uint32_t sign = mask >> i & 1 ? 0x80000000 : 0x7fffffff, data = 0xa0 + i;
		uint8_t *low = g->state->xsave + 160 + i * 4,
			*high = g->state->xsave + ebx + i * 4 - 16;

		memcpy(i < 4 ? low : high, &sign, 4);
		memcpy((i < 4 ? low : high) + 16, &data, 4);
	}
	memcpy(g->state->xsave + 512, &(uint64_t){7}, 8);
	g->state->xsave_size = 2816;
	g->state->gpr[X86_RBX] = at;
	run_code(g, CODE + 0x80, code, len);
	assert_int_equal(g->port, DONE_PORT);
}

static const uint8_t vmaskmovps_store[] = {0xc4, 0xe2, 0x7d, 0x2e, 0x0b}; /* [rbx], ymm0, ymm1 */
static const uint8_t vmaskmovps_load[] = {0xc4, 0xe2, 0x7d, 0x2c, 0x13};  /* ymm2, ymm0, [rbx] */

static void test_masked_store(void **state)
{
	struct guest *g = *state;

	if (!has_avx(g))
		skip();
	masked(g, 1 << 2 | 1 << 5, DEVICE + 0x40, vmaskmovps_store, sizeof(vmaskmovps_store));
	assert_int_equal(g->accesses, 2);
	for (unsigned i = 0; i < 2; i++) {
		assert_true(g->access[i].write);
		assert_int_equal(g->access[i].size, 4);
		assert_int_equal(g->access[i].gpa, DEVICE_GPA + 0x40 + (i ? 20 : 8));
		assert_int_equal(g->access[i].value, i ? 0xa5 : 0xa2);
	}
}

static void test_masked_load(void **state)
{
	struct guest *g = *state;

	if (!has_avx(g))
		skip();
	g->answer = 0x5555;
	masked(g, 1 << 1 | 1 << 2, DEVICE + 0x40, vmaskmovps_load, sizeof(vmaskmovps_load));
	assert_int_equal(g->accesses, 1);
	assert_false(g->access[0].write);
	assert_int_equal(g->access[0].size, 8);
	assert_int_equal(g->access[0].gpa, DEVICE_GPA + 0x44);
}

/* Half of it in RAM, half in the device: only what is wanted is touched, on either side. */
static void test_masked_edge(void **state)
{
	struct guest *g = *state;
	uint32_t before[4] = {1, 2, 3, 4}, after[4];

	if (!has_avx(g))
		skip();
	put(g, DEVICE - 16, before, sizeof(before));
	masked(g, 1 << 1 | 1 << 6, DEVICE - 16, vmaskmovps_store, sizeof(vmaskmovps_store));
	assert_int_equal(g->accesses, 1);
	assert_int_equal(g->access[0].gpa, DEVICE_GPA + 8);
	assert_int_equal(g->access[0].size, 4);
	assert_int_equal(g->access[0].value, 0xa6);
	assert_int_equal(memory_read(&g->vm->memory, DEVICE - 16, after, sizeof(after)), 0);
	before[1] = 0xa1;
	assert_memory_equal(before, after, sizeof(after));
}

/* A store without a mask is a store: the device is not read. */
static void test_vector_store(void **state)
{
	static const uint8_t vmovups_store[] = {0xc5, 0xf8, 0x11, 0x0b}; /* [rbx], xmm1 */
	struct guest *g = *state;

	if (!has_avx(g))
		skip();
	masked(g, 0, DEVICE, vmovups_store, sizeof(vmovups_store));
	assert_int_equal(g->accesses, 2);
	assert_true(g->access[0].write && g->access[1].write);
	assert_int_equal(g->access[0].value, 0xa1000000a0);
}

/* ---- the code cache ----------------------------------------------------------------------------------- */

/* Nothing that can be executed can be written, at any address: the cache is mapped twice. */
static void test_no_writable_code(void **state)
{
	struct guest *g = *state;
	unsigned executable = 0;
	char line[512];
	FILE *maps;

	begin(g);
	run_code(g, CODE + 0x80, mov_eax_rbx, 0);
	maps = fopen("/proc/self/maps", "r");
	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps)) {
		const char *rights = strchr(line, ' ');

		assert_non_null(rights);
		assert_false(rights[2] == 'w' && rights[3] == 'x');
		executable += rights[3] == 'x' && strstr(line, "/dev/zero");
	}
	fclose(maps);
	assert_int_equal(executable, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_code_unmapped, setup, teardown),
		cmocka_unit_test_setup_teardown(test_code_changed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pieces, setup, teardown),
		cmocka_unit_test_setup_teardown(test_masked_store, setup, teardown),
		cmocka_unit_test_setup_teardown(test_masked_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_masked_edge, setup, teardown),
		cmocka_unit_test_setup_teardown(test_vector_store, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_writable_code, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
