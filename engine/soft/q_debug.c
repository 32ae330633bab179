/*
 * Quick: breakpoints by debug registers (SDM vol. 3 sections 18.2 and 18.3). While any is enabled the guest runs one instruction
 * a block, and pages with data breakpoints have no TLB entries, so that each access to them is seen. I/O breakpoints and
 * general detection (DR7.GD) are not there.
 */
#include "engine/soft/q_helper.h"
#include "engine/soft/tlb.h"

#define BREAKPOINTS 4
#define ON_CODE 0
#define ON_WRITE 1
#define ON_ACCESS 3

static unsigned kind_of(uint64_t dr7, unsigned i)
{
	return dr7 >> (16 + 4 * i) & 3;
}

/* A breakpoint's bytes are as many as its length and aligned to that. */
static uint64_t length_of(uint64_t dr7, unsigned i)
{
	static const uint8_t length[4] = {1, 2, 8, 4};

	return length[dr7 >> (18 + 4 * i) & 3];
}

void soft_debug_update(struct soft_cpu *cpu)
{
	uint64_t dr7 = cpu->dr[7];
	uint8_t before = cpu->break_data;

	cpu->break_code = cpu->break_data = 0;
	for (unsigned i = 0; i < BREAKPOINTS; i++) {
		unsigned kind = kind_of(dr7, i);

		if (!(dr7 >> (2 * i) & 3))
			continue;
		if (kind == ON_CODE)
			cpu->break_code |= (uint8_t)(1u << i);
		else if (kind == ON_WRITE || kind == ON_ACCESS)
			cpu->break_data |= (uint8_t)(1u << i);
	}
	if (before | cpu->break_data)
		soft_tlb_flush_all(cpu, true);
}

uint8_t soft_debug_code(const struct soft_cpu *cpu)
{
	uint64_t linear = cpu->rip;
	uint8_t met = 0;

	if (!(cpu->mode & MODE_CODE64))
		linear = (uint32_t)(linear + cpu->seg[X86_CS].base);
	for (unsigned i = 0; i < BREAKPOINTS; i++)
		if ((cpu->break_code >> i & 1) && cpu->dr[i] == linear)
			met |= (uint8_t)(1u << i);
	return met;
}

bool soft_debug_access(struct soft_cpu *cpu, uint64_t linear, uint64_t len, bool write)
{
	bool watched = false;

	for (unsigned i = 0; i < BREAKPOINTS; i++) {
		uint64_t size = length_of(cpu->dr[7], i), first = cpu->dr[i] & ~(size - 1);

		if (!(cpu->break_data >> i & 1))
			continue;
		watched |= (linear >> 12) <= (first >> 12) &&
			   (first >> 12) <= (linear + len - 1) >> 12;
		if (linear < first + size && first < linear + len &&
		    (write || kind_of(cpu->dr[7], i) == ON_ACCESS))
			cpu->break_met |= (uint8_t)(1u << i);
	}
	return watched;
}
