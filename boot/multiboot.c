/*
 * Multiboot 1 (Multiboot Specification 0.6.96): ELF kernels with modules, memory map, command line.
 * Left out: the a.out kludge (an image that is no ELF), drives, APM and video tables; a kernel that asks
 * for a video mode is started without one, as it must be able to (section 3.1.1: bit 2).
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "boot/loader.h"

#define HEADER_MAGIC 0x1badb002u
#define BOOT_MAGIC 0x2badb002u
#define HEADER_SEARCH 8192u
#define CMDLINE_MAX 4095u

/* Section 3.1.2: bits 0-15 are demands. */
#define WANT_ALIGN 0x1u
#define WANT_MEMORY 0x2u
#define WANT_VIDEO 0x4u
#define WANT_KNOWN (WANT_ALIGN | WANT_MEMORY | WANT_VIDEO)

/* Section 3.3 */
#define INFO_MEMORY 0x1u
#define INFO_CMDLINE 0x4u
#define INFO_MODS 0x8u
#define INFO_MMAP 0x40u
#define INFO_LOADER 0x200u

struct mb_info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline;
	uint32_t mods_count, mods_addr, syms[4];
	uint32_t mmap_length, mmap_addr, drives_length, drives_addr, config_table;
	uint32_t boot_loader_name, apm_table, vbe[4];
};

struct mb_module {
	uint32_t start, end, string, reserved;
};

struct mb_mmap {
	uint32_t size; /* of what follows */
	uint64_t addr, len;
	uint32_t type;
} __attribute__((packed));

bool multiboot_find(const struct boot_file *file, uint32_t *flags)
{
	uint8_t buf[HEADER_SEARCH];
	uint64_t len = file->size < sizeof(buf) ? file->size : sizeof(buf);

	if (boot_file_read(file, 0, buf, len, NULL))
		return false;
	for (uint64_t i = 0; i + 12 <= len; i += 4) {
		uint32_t head[3];

		memcpy(head, buf + i, sizeof(head));
		if (head[0] == HEADER_MAGIC && head[0] + head[1] + head[2] == 0) {
			*flags = head[1];
			return true;
		}
	}
	return false;
}

static int modules_put(struct loader *ld, struct mb_info *info)
{
	struct mb_module mods[BOOT_MODULES_MAX];
	uint64_t gpa, len, name;
	size_t n = ld->src->ninitrds;
	int rc = 0;

	if (!n)
		return 0;
	if (n > BOOT_MODULES_MAX)
		return error_set(ld->err, E2BIG, "--initrd: at most %u modules", BOOT_MODULES_MAX);
	/* Names go into one page each at most; they share the struct area with everything else. */
	for (size_t i = 0; !rc && i < n; i++) {
		const char *path = ld->src->initrds[i];

		rc = loader_put_module(ld, path, &gpa, &len);
		if (!rc)
			rc = loader_put(ld, path, strlen(path) + 1, "a module's name", &name);
		if (!rc)
			mods[i] = (struct mb_module){(uint32_t)gpa, (uint32_t)(gpa + len),
						     (uint32_t)name, 0};
	}
	if (!rc)
		rc = loader_put(ld, mods, n * sizeof(mods[0]), "the module list", &gpa);
	if (rc)
		return rc;
	info->flags |= INFO_MODS;
	info->mods_count = (uint32_t)n;
	info->mods_addr = (uint32_t)gpa;
	return 0;
}

static int memory_put(struct loader *ld, struct mb_info *info)
{
	struct e820_entry map[E820_ENTRIES_MAX];
	struct mb_mmap mmap[E820_ENTRIES_MAX];
	unsigned n = e820_build(ld->mem, map);
	uint64_t gpa;
	int rc;

	for (unsigned i = 0; i < n; i++)
		mmap[i] =
			(struct mb_mmap){sizeof(mmap[i]) - 4, map[i].addr, map[i].len, map[i].type};
	rc = loader_put(ld, mmap, n * sizeof(mmap[0]), "the memory map", &gpa);
	if (rc)
		return rc;
	info->flags |= INFO_MEMORY | INFO_MMAP;
	info->mem_lower = LOW_RAM_END >> 10;
	if (ld->mem->low > HIGH_RAM_START)
		info->mem_upper = (uint32_t)((ld->mem->low - HIGH_RAM_START) >> 10);
	info->mmap_length = n * sizeof(mmap[0]);
	info->mmap_addr = (uint32_t)gpa;
	return 0;
}

int multiboot_load(struct loader *ld, const struct elf_image *elf, uint32_t flags)
{
	struct mb_info info = {.flags = INFO_CMDLINE | INFO_LOADER};
	uint64_t gpa;
	int rc;

	if (flags & 0xffff & ~WANT_KNOWN)
		return boot_file_error(
			&ld->kernel, ld->err, ENOTSUP,
			"its multiboot header asks for features %#x, which are unknown",
			flags & 0xffff & ~WANT_KNOWN);
	if (elf->entry > UINT32_MAX)
		return boot_file_error(&ld->kernel, ld->err, ENOEXEC,
				       "multiboot entry point %#" PRIx64 " is not below 4 GiB",
				       elf->entry);
	rc = elf_load(ld, elf);
	if (!rc)
		rc = loader_put_cmdline(ld, elf->is_linux, CMDLINE_MAX, &gpa);
	if (rc)
		return rc;
	info.cmdline = (uint32_t)gpa;
	rc = loader_put(ld, "skep", 5, "the loader's name", &gpa);
	if (rc)
		return rc;
	info.boot_loader_name = (uint32_t)gpa;
	rc = memory_put(ld, &info);
	if (!rc)
		rc = modules_put(ld, &info);
	if (!rc)
		rc = loader_put(ld, &info, sizeof(info), "the multiboot information", &gpa);
	if (!rc)
		rc = loader_protected_mode(ld, elf->entry, false);
	if (rc)
		return rc;
	ld->bsp->gpr[X86_RAX] = BOOT_MAGIC;
	ld->bsp->gpr[X86_RBX] = gpa;
	return 0;
}
