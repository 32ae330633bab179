/*
 * Boot sources: what the first vCPU executes first.
 *
 * A kernel (--kernel) is told by its content, not by its name:
 *   Linux bzImage         boot protocol 2.02 or newer; entered in 64-bit mode if it has the 64-bit entry
 *                         (XLF_KERNEL_64), else in 32-bit protected mode
 *   ELF with a PVH note   XEN_ELFNOTE_PHYS32_ENTRY; entered in 32-bit protected mode, hvm_start_info v1
 *   ELF with multiboot 1  a header in the first 8192 bytes; entered in 32-bit protected mode
 * An ELF that has both a PVH note and a multiboot header is started by PVH: that interface tells the
 * kernel more (the RSDP) and is what vmlinux and unikernels keep up to date.
 *
 * A boot ROM (-l bootrom) ends at 4 GiB and is started at the reset vector.
 *
 * Every file is untrusted input. The loader reads files in bounded pieces straight into guest memory and
 * writes nothing outside of guest RAM; a refusal names the file, what is wrong, and what would be right.
 *
 * Guest memory between 0x9fc00 and 0xfffff belongs to the PC (tables, option ROMs): nothing is loaded
 * there, and no memory map calls it usable.
 *
 * Called before the vCPUs run, or with all of them parked (restart). Takes no locks.
 */
#ifndef BOOT_BOOT_H
#define BOOT_BOOT_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "vmm/memory.h"
#include "vmm/x86.h"

enum boot_kind { BOOT_ROM, BOOT_LINUX, BOOT_PVH, BOOT_MULTIBOOT };

struct boot_source {
	const char *kernel; /* a path */
	/* Linux and PVH: joined in this order into one, each at a multiple of 4 bytes, as the kernel's cpio
	 * reader wants it. Multiboot: one module each, its command line being the path. */
	const char *const *initrds;
	size_t ninitrds;
	/* NULL: "console=ttyS0" for a Linux kernel (a bzImage, or an ELF whose notes say Linux), else "". */
	const char *append;
	uint64_t rsdp; /* GPA of the ACPI RSDP, 0: none */
};

/* Loads the kernel and what goes with it, and turns *bsp, which is in its reset state, into the state
 * that the kernel's boot protocol asks for. *kind may be NULL. On failure guest memory may have been
 * written, but *bsp has not. */
int boot_load(struct memory *mem, const struct boot_source *src, struct x86_state *bsp,
	      enum boot_kind *kind, struct error *err);

#define BOOTROM_MAX (16ull << 20)

/* Adds the image as a ROM that ends at 4 GiB: 4 KiB to 16 MiB, whole pages. Its last 128 KiB (or all, if
 * it is smaller) are copied to RAM ending at 1 MiB, where firmware in real mode expects itself; tables
 * built afterwards overwrite that copy from 0xf0000 on. The vCPU then starts from its reset state.
 * On a restart the ROM region is there already: only the copy is made again. */
int bootrom_load(struct memory *mem, const char *path, struct error *err);

/* The memory map as firmware reports it: E820 numbers for the types. */
enum e820_type { E820_RAM = 1, E820_RESERVED = 2 };

struct e820_entry {
	uint64_t addr, len;
	uint32_t type;
};

#define E820_ENTRIES_MAX 8

/* RAM below 0x9fc00, the PC's area, RAM from 1 MiB to the PCI hole, ECAM as reserved, RAM from 4 GiB.
 * In order of address, without overlaps. Returns their number. */
unsigned e820_build(const struct memory *mem, struct e820_entry out[E820_ENTRIES_MAX]);

#endif
