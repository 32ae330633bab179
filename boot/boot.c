/*
 * Tells what a kernel file is and hands it to its loader.
 */
#include <errno.h>
#include <string.h>

#include "boot/loader.h"

static int kernel_load(struct loader *ld, enum boot_kind *kind)
{
	struct elf_image elf;
	uint32_t flags;
	bool multiboot;
	int rc;

	if (bzimage_is(&ld->kernel)) {
		*kind = BOOT_LINUX;
		return bzimage_load(ld);
	}
	rc = elf_parse(&ld->kernel, &elf, ld->err);
	multiboot = multiboot_find(&ld->kernel, &flags);
	if (rc == -ENOEXEC && !ld->err->text[0])
		return boot_file_error(&ld->kernel, ld->err, ENOEXEC,
				       multiboot ? "a multiboot kernel, but no ELF file"
						 : "no kernel: expected a Linux bzImage, or an ELF "
						   "with a PVH entry note or a multiboot header");
	if (rc)
		return rc;
	if (elf.has_pvh) {
		*kind = BOOT_PVH;
		return pvh_load(ld, &elf);
	}
	if (multiboot) {
		*kind = BOOT_MULTIBOOT;
		return multiboot_load(ld, &elf, flags);
	}
	return boot_file_error(
		&ld->kernel, ld->err, ENOEXEC,
		"an ELF with neither a PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY) nor a "
		"multiboot header in its first 8192 bytes");
}

int boot_load(struct memory *mem, const struct boot_source *src, struct x86_state *bsp,
	      enum boot_kind *kind, struct error *err)
{
	struct error local = {{0}};
	struct x86_state before = *bsp;
	enum boot_kind found = BOOT_LINUX;
	struct loader ld = {.mem = mem, .src = src, .bsp = bsp, .err = &local};
	int rc;

	ld.used[ld.nused++] = (struct boot_range){LOW_RAM_END, HIGH_RAM_START - LOW_RAM_END,
						  "the PC's reserved area"};
	rc = boot_file_open(&ld.kernel, "--kernel", src->kernel, &local);
	if (!rc)
		rc = kernel_load(&ld, &found);
	boot_file_close(&ld.kernel);
	if (rc) {
		*bsp = before;
		return error_set(err, -rc, "%s",
				 local.text[0] ? local.text : "guest memory refused the kernel");
	}
	if (kind)
		*kind = found;
	return 0;
}
