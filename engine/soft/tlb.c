/* Memory of a vCPU's address-space slots. */
#include "engine/soft/tlb.h"

#include <errno.h>
#include <sys/mman.h>

#include "vmm/memory.h"

#define TABLES (SLOTS + TLB_KINDS - 1) /* one of user mode a slot, the others once */

static void *reserve(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void tlb_make_empty(struct soft_tlb *tlb)
{
	tlb->rtag[0] = tlb->wtag[0] = TLB_EMPTY(0);
	tlb->rtag[TLB_ENTRIES - 1] = tlb->wtag[TLB_ENTRIES - 1] = TLB_EMPTY(TLB_ENTRIES - 1);
	tlb->jump[0].tag = JUMP_EMPTY(0);
}

/* One mapping for all tables: a page of it costs memory once it is touched. */
int soft_tlb_init(struct soft_cpu *cpu)
{
	struct soft_slots *slots = reserve(sizeof(*slots));
	size_t each = (sizeof(struct soft_tlb) + 4095) & ~4095ull;
	uint8_t *tables;

	if (!slots)
		return -ENOMEM;
	tables = reserve(each * TABLES);
	if (!tables) {
		munmap(slots, sizeof(*slots));
		return -ENOMEM;
	}
	for (unsigned i = 0; i < TABLES; i++) {
		struct soft_tlb *tlb = (struct soft_tlb *)(void *)(tables + i * each);
		unsigned s = i < SLOTS ? i : KERNEL_SLOT;

		slots->slot[s].tlb[i < SLOTS ? TLB_USER : TLB_USER + 1 + (i - SLOTS)] = tlb;
		tlb_make_empty(tlb);
	}
	for (unsigned i = 0; i < KNOWN_EPOCHS; i++)
		slots->slot[i / TLB_KINDS].epoch[i % TLB_KINDS] = i + 1;
	slots->slot[KERNEL_SLOT].used = true;
	cpu->slots = slots;
	cpu->tlb = slots->slot[KERNEL_SLOT].tlb[TLB_SUPER_AC];
	return 0;
}

uint64_t tlb_jumps_resident(const struct soft_cpu *cpu)
{
	const struct soft_slots *slots = cpu->slots;
	uint64_t bytes = mapping_resident(slots->known, sizeof(slots->known));

	for (unsigned i = 0; i < (SLOTS + 1) * TLB_KINDS; i++) {
		const struct soft_tlb *tlb = slots->slot[i / TLB_KINDS].tlb[i % TLB_KINDS];

		if (tlb)
			bytes += mapping_resident(tlb->jump,
						  sizeof(*tlb) - offsetof(struct soft_tlb, jump));
	}
	return bytes;
}

void soft_tlb_fini(struct soft_cpu *cpu)
{
	size_t each = (sizeof(struct soft_tlb) + 4095) & ~4095ull;

	if (!cpu->slots)
		return;
	munmap(cpu->slots->slot[0].tlb[TLB_USER], each * TABLES);
	munmap(cpu->slots, sizeof(*cpu->slots));
	cpu->slots = NULL;
}
