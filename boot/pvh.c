/*
 * PVH: Xen's direct boot interface for hardware virtual machines (xen: docs/misc/pvh.pandoc,
 * xen/include/public/arch-x86/hvm/start_info.h), as Linux, FreeBSD and unikernels take it.
 */
#include <errno.h>
#include <inttypes.h>

#include "boot/loader.h"

#define START_MAGIC 0x336ec578u
/* Linux's COMMAND_LINE_SIZE is 2048, and by PVH it would cut a longer one in silence. */
#define CMDLINE_LINUX_MAX 2047u
#define CMDLINE_MAX 4095u

struct start_info {
	uint32_t magic, version, flags, nr_modules;
	uint64_t modlist, cmdline, rsdp, memmap;
	uint32_t memmap_entries, reserved;
};

struct start_module {
	uint64_t addr, size, cmdline, reserved;
};

struct start_memmap {
	uint64_t addr, size;
	uint32_t type, reserved;
};

static int memmap_put(struct loader *ld, struct start_info *info)
{
	struct e820_entry map[E820_ENTRIES_MAX];
	struct start_memmap mm[E820_ENTRIES_MAX];
	unsigned n = e820_build(ld->mem, map);

	for (unsigned i = 0; i < n; i++)
		mm[i] = (struct start_memmap){map[i].addr, map[i].len, map[i].type, 0};
	info->memmap_entries = n;
	return loader_put(ld, mm, n * sizeof(mm[0]), "the memory map", &info->memmap);
}

static int module_put(struct loader *ld, struct start_info *info)
{
	struct start_module mod = {0};
	int rc = loader_put_initrd(ld, MEMORY_LOW_MAX, &mod.addr, &mod.size);

	if (rc || !mod.size)
		return rc;
	info->nr_modules = 1;
	return loader_put(ld, &mod, sizeof(mod), "the module list", &info->modlist);
}

int pvh_load(struct loader *ld, const struct elf_image *elf)
{
	struct start_info info = {.magic = START_MAGIC, .version = 1, .rsdp = ld->src->rsdp};
	uint64_t gpa;
	int rc;

	if (elf->pvh_entry > UINT32_MAX)
		return boot_file_error(&ld->kernel, ld->err, ENOEXEC,
				       "PVH entry point %#" PRIx64 " is not below 4 GiB",
				       elf->pvh_entry);
	rc = elf_load(ld, elf);
	if (!rc)
		rc = loader_put_cmdline(ld, elf->is_linux,
					elf->is_linux ? CMDLINE_LINUX_MAX : CMDLINE_MAX,
					&info.cmdline);
	if (!rc)
		rc = memmap_put(ld, &info);
	if (!rc)
		rc = module_put(ld, &info);
	if (!rc)
		rc = loader_put(ld, &info, sizeof(info), "the start information", &gpa);
	if (!rc)
		rc = loader_protected_mode(ld, elf->pvh_entry, false);
	if (rc)
		return rc;
	ld->bsp->gpr[X86_RBX] = gpa;
	return 0;
}
