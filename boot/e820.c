/*
 * The guest's memory map, as the E820 BIOS call would give it (ACPI 6.5, section 15).
 */
#include "boot/loader.h"

static unsigned e820_add(struct e820_entry *out, unsigned n, uint64_t addr, uint64_t end,
			 uint32_t type)
{
	if (end <= addr)
		return n;
	out[n] = (struct e820_entry){.addr = addr, .len = end - addr, .type = type};
	return n + 1;
}

unsigned e820_build(const struct memory *mem, struct e820_entry out[E820_ENTRIES_MAX])
{
	unsigned n = 0;

	n = e820_add(out, n, 0, LOW_RAM_END, E820_RAM);
	n = e820_add(out, n, LOW_RAM_END, HIGH_RAM_START, E820_RESERVED);
	n = e820_add(out, n, HIGH_RAM_START, mem->low, E820_RAM);
	/* Operating systems use ECAM only where the memory map or ACPI reserves it (PCI Firmware 3.3,
	 * section 4.1.2). */
	n = e820_add(out, n, ECAM_BASE, ECAM_BASE + ECAM_SIZE, E820_RESERVED);
	n = e820_add(out, n, MEMORY_HIGH_BASE, MEMORY_HIGH_BASE + mem->high, E820_RAM);
	return n;
}
