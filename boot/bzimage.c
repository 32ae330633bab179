/*
 * Linux bzImage (Documentation/arch/x86/boot.rst and zero-page.rst of Linux 6.x): the 64-bit entry, or
 * the 32-bit one for kernels without it. The real-mode set-up code is never run: the zero page says what
 * it would have found. Left out: zImage (loads at 64 KiB), EFI hand-over, setup_data.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "boot/loader.h"

#define HEADER_START 0x1f1u
#define HEADER_END_MAX 0x290u /* where the zero page goes on with other things */
#define ZERO_PAGE 4096u
#define ENTRY_64 0x200u /* from the load address */

#define LOADED_HIGH 0x01u
#define CAN_USE_HEAP 0x80u
#define XLF_KERNEL_64 0x1u
#define INITRD_MAX_OLD 0x37ffffffu /* before protocol 2.03 */
#define CMDLINE_MAX_OLD 255u	   /* before protocol 2.06 */

/* The zero page where we write it; offsets from zero-page.rst, with the set-up header's at 0x1f1. */
struct zero_page {
	uint8_t screen_info[0x40];
	uint8_t pad040[0x30];
	uint64_t acpi_rsdp_addr; /* 0x070 */
	uint8_t pad078[0x168];
	uint32_t alt_mem_k; /* 0x1e0 */
	uint8_t pad1e4[4];
	uint8_t e820_entries; /* 0x1e8 */
	uint8_t pad1e9[8];
	uint8_t setup_sects; /* 0x1f1 */
	uint16_t root_flags;
	uint32_t syssize;
	uint16_t ram_size, vid_mode, root_dev, boot_flag;
	uint16_t jump; /* its second byte says where the header ends */
	uint32_t header;
	uint16_t version;
	uint32_t realmode_swtch;
	uint16_t start_sys_seg, kernel_version;
	uint8_t type_of_loader, loadflags;
	uint16_t setup_move_size;
	uint32_t code32_start, ramdisk_image, ramdisk_size, bootsect_kludge;
	uint16_t heap_end_ptr;
	uint8_t ext_loader_ver, ext_loader_type;
	uint32_t cmd_line_ptr, initrd_addr_max, kernel_alignment;
	uint8_t relocatable_kernel, min_alignment;
	uint16_t xloadflags;
	uint32_t cmdline_size, hardware_subarch;
	uint64_t hardware_subarch_data;
	uint32_t payload_offset, payload_length;
	uint64_t setup_data, pref_address;
	uint32_t init_size, handover_offset, kernel_info_offset;
	uint8_t pad26c[0x64];
	struct {
		uint64_t addr, len;
		uint32_t type;
	} __attribute__((packed)) e820[128]; /* 0x2d0 */
	uint8_t padcd0[0x330];
} __attribute__((packed));

_Static_assert(sizeof(struct zero_page) == ZERO_PAGE, "zero page");
_Static_assert(offsetof(struct zero_page, header) == 0x202, "set-up header");
_Static_assert(offsetof(struct zero_page, init_size) == 0x260, "set-up header");
_Static_assert(offsetof(struct zero_page, e820) == 0x2d0, "E820 map");

struct bzimage {
	struct zero_page zp;
	bool entry64;
	uint64_t code, code_len; /* of the protected-mode part in the file */
	uint64_t load,
		reserve; /* where it goes, what it needs there until it has unpacked itself */
};

bool bzimage_is(const struct boot_file *file)
{
	uint8_t head[0x206 - 0x1fe];

	return !boot_file_read(file, 0x1fe, head, sizeof(head), NULL) && head[0] == 0x55 &&
	       head[1] == 0xaa && !memcmp(head + 4, "HdrS", 4);
}

/* Reads the set-up header into an otherwise empty zero page; fields that this protocol version does not
 * have yet stay 0. */
static int header_read(struct loader *ld, struct bzimage *bz)
{
	struct zero_page *zp = &bz->zp;
	uint8_t jump;
	unsigned end;
	int rc = boot_file_read(&ld->kernel, 0x201, &jump, 1, ld->err);

	if (rc)
		return rc;
	end = 0x202u + jump;
	if (end > HEADER_END_MAX)
		end = HEADER_END_MAX;
	if (end < 0x22c)
		return boot_file_error(&ld->kernel, ld->err, ENOEXEC,
				       "a malformed bzImage: its set-up header ends at %#x", end);
	rc = boot_file_read(&ld->kernel, HEADER_START, (uint8_t *)zp + HEADER_START,
			    end - HEADER_START, ld->err);
	if (rc)
		return rc;
	if (zp->version < 0x0202)
		return boot_file_error(&ld->kernel, ld->err, ENOTSUP,
				       "Linux boot protocol %u.%02u; at least 2.02 is needed",
				       zp->version >> 8, zp->version & 0xff);
	if (!(zp->loadflags & LOADED_HIGH))
		return boot_file_error(&ld->kernel, ld->err, ENOTSUP,
				       "a zImage, which loads low; a bzImage is needed");
	bz->entry64 = zp->version >= 0x020c && (zp->xloadflags & XLF_KERNEL_64);
	return 0;
}

static int code_find(struct loader *ld, struct bzimage *bz)
{
	unsigned sects = bz->zp.setup_sects ? bz->zp.setup_sects : 4;

	bz->code = (sects + 1ull) * 512;
	/* syssize counts paragraphs; before 2.04 only its low 16 bits were kept. */
	bz->code_len = bz->zp.version >= 0x0204 ? (uint64_t)bz->zp.syssize * 16 : 0;
	if (bz->code >= ld->kernel.size)
		return boot_file_error(&ld->kernel, ld->err, ENOEXEC,
				       "truncated: the kernel proper begins at byte %" PRIu64
				       ", the file has %" PRIu64,
				       bz->code, ld->kernel.size);
	/* The last paragraph need not be whole (a signed image may be longer than syssize says). */
	if (bz->code_len > ld->kernel.size - bz->code + 15)
		return boot_file_error(&ld->kernel, ld->err, ENOEXEC,
				       "truncated: %" PRIu64
				       " bytes by its header, the file has %" PRIu64,
				       bz->code + bz->code_len, ld->kernel.size);
	if (!bz->code_len || bz->code_len > ld->kernel.size - bz->code)
		bz->code_len = ld->kernel.size - bz->code;
	if (bz->entry64 && bz->code_len <= ENTRY_64)
		return boot_file_error(&ld->kernel, ld->err, ENOEXEC,
				       "truncated before its 64-bit entry point");
	return 0;
}

/* Where it wants to be (pref_address), or if there is no memory there and it can be moved, as low as its
 * alignment allows. */
static int code_place(struct loader *ld, struct bzimage *bz)
{
	const struct zero_page *zp = &bz->zp;
	uint64_t align = zp->version >= 0x0205 ? zp->kernel_alignment : 0;
	uint64_t pref = zp->version >= 0x020a ? zp->pref_address : HIGH_RAM_START;
	uint64_t need = zp->version >= 0x020a ? zp->init_size : 0;

	if (align & (align - 1) || align > MEMORY_LOW_MAX || pref < HIGH_RAM_START)
		return boot_file_error(&ld->kernel, ld->err, ENOEXEC,
				       "a malformed bzImage: alignment %#" PRIx64
				       ", preferred address %#" PRIx64,
				       align, pref);
	bz->reserve = need > bz->code_len ? need : bz->code_len;
	if (loader_place(ld, pref, MEMORY_LOW_MAX, bz->reserve, 1, false, "the kernel", &bz->load))
		return 0;
	if (zp->version >= 0x0205 && zp->relocatable_kernel &&
	    loader_place(ld, HIGH_RAM_START, MEMORY_LOW_MAX, bz->reserve, align ? align : 1, false,
			 "the kernel", &bz->load))
		return 0;
	return boot_file_error(&ld->kernel, ld->err, ENOMEM,
			       "the kernel needs %" PRIu64
			       " MiB of memory to start (-m), the guest has %" PRIu64,
			       (pref + bz->reserve + 0xfffff) >> 20, ld->mem->size >> 20);
}

static void zero_page_e820(const struct memory *mem, struct zero_page *zp)
{
	struct e820_entry map[E820_ENTRIES_MAX];
	unsigned n = e820_build(mem, map);

	for (unsigned i = 0; i < n; i++) {
		zp->e820[i].addr = map[i].addr;
		zp->e820[i].len = map[i].len;
		zp->e820[i].type = map[i].type;
	}
	zp->e820_entries = (uint8_t)n;
	zp->alt_mem_k = (uint32_t)((mem->low - HIGH_RAM_START) >> 10);
}

static int zero_page_fill(struct loader *ld, struct bzimage *bz)
{
	struct zero_page *zp = &bz->zp;
	uint64_t hi = zp->version >= 0x0203 ? zp->initrd_addr_max : INITRD_MAX_OLD;
	uint64_t limit = zp->version >= 0x0206 ? zp->cmdline_size : CMDLINE_MAX_OLD;
	uint64_t gpa, len;
	int rc;

	rc = loader_put_cmdline(ld, true, limit, &gpa);
	if (rc)
		return rc;
	zp->cmd_line_ptr = (uint32_t)gpa;
	rc = loader_put_initrd(ld, hi + 1, &gpa, &len);
	if (rc)
		return rc;
	zp->ramdisk_image = (uint32_t)gpa;
	zp->ramdisk_size = (uint32_t)len;
	zp->type_of_loader = 0xff; /* none with a number of its own */
	zp->loadflags &= (uint8_t)~CAN_USE_HEAP;
	zp->vid_mode = 0xffff; /* "normal" */
	zp->code32_start = (uint32_t)bz->load;
	zp->acpi_rsdp_addr = ld->src->rsdp;
	zero_page_e820(ld->mem, zp);
	return 0;
}

int bzimage_load(struct loader *ld)
{
	struct bzimage bz = {0};
	uint64_t gpa;
	int rc;

	if (ld->mem->low <= HIGH_RAM_START)
		return boot_file_error(&ld->kernel, ld->err, ENOMEM,
				       "Linux needs memory above 1 MiB (-m)");
	rc = header_read(ld, &bz);
	if (!rc)
		rc = code_find(ld, &bz);
	if (!rc)
		rc = code_place(ld, &bz);
	if (!rc)
		rc = loader_read(ld, &ld->kernel, bz.code, bz.load, bz.code_len);
	if (!rc)
		rc = zero_page_fill(ld, &bz);
	if (!rc)
		rc = loader_put(ld, &bz.zp, sizeof(bz.zp), "the zero page", &gpa);
	if (!rc)
		rc = loader_protected_mode(ld, bz.load + (bz.entry64 ? ENTRY_64 : 0), bz.entry64);
	if (rc)
		return rc;
	ld->bsp->gpr[X86_RSI] = gpa;
	return 0;
}
