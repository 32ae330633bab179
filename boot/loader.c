/*
 * What all loaders need: files, places in guest memory, initrds, the protected-mode state.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "boot/loader.h"

/* Small structures are put from here on: below are the places that boot code likes for itself (BIOS data,
 * 0x7c00, AP trampolines). */
#define STRUCT_BASE 0x10000ull
#define READ_PIECE (1ull << 30)

int boot_file_error(const struct boot_file *file, struct error *err, int errnum, const char *fmt,
		    ...)
{
	char text[640];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return error_set(err, errnum, "%s %s: %s", file->option, file->path, text);
}

int boot_file_open(struct boot_file *file, const char *option, const char *path, struct error *err)
{
	struct stat st;

	*file = (struct boot_file){.option = option, .path = path, .fd = -1};
	/* O_NONBLOCK: a FIFO must not make us wait for a writer. */
	file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (file->fd < 0)
		return boot_file_error(file, err, errno, "%s", strerror(errno));
	if (fstat(file->fd, &st) < 0) {
		int rc = boot_file_error(file, err, errno, "%s", strerror(errno));

		boot_file_close(file);
		return rc;
	}
	if (!S_ISREG(st.st_mode)) {
		boot_file_close(file);
		return boot_file_error(file, err, EINVAL, "not a regular file");
	}
	file->size = (uint64_t)st.st_size;
	return 0;
}

void boot_file_close(struct boot_file *file)
{
	if (file->fd >= 0)
		close(file->fd);
	file->fd = -1;
}

int boot_file_read(const struct boot_file *file, uint64_t offset, void *out, uint64_t len,
		   struct error *err)
{
	uint8_t *to = out;

	if (offset > file->size || len > file->size - offset)
		return boot_file_error(file, err, ENOEXEC,
				       "truncated: %" PRIu64 " bytes wanted at %#" PRIx64
				       ", the file has %" PRIu64,
				       len, offset, file->size);
	while (len) {
		ssize_t n = pread(file->fd, to, len < READ_PIECE ? len : READ_PIECE, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return boot_file_error(file, err, errno, "read failed: %s",
					       strerror(errno));
		if (n == 0)
			return boot_file_error(file, err, EIO, "became shorter while it was read");
		to += n;
		offset += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

static const struct boot_range *range_overlapping(const struct loader *ld, uint64_t gpa,
						  uint64_t len)
{
	for (unsigned i = 0; i < ld->nused; i++) {
		const struct boot_range *r = &ld->used[i];

		if (gpa < r->gpa + r->len && r->gpa < gpa + len)
			return r;
	}
	return NULL;
}

static bool in_ram(const struct memory *mem, uint64_t gpa, uint64_t len)
{
	uint64_t end;

	if (__builtin_add_overflow(gpa, len, &end))
		return false;
	return end <= mem->low || (gpa >= MEMORY_HIGH_BASE && end <= MEMORY_HIGH_BASE + mem->high);
}

static bool range_add(struct loader *ld, uint64_t gpa, uint64_t len, const char *what)
{
	if (ld->nused == LOADER_RANGES)
		return false;
	ld->used[ld->nused++] = (struct boot_range){gpa, len, what};
	return true;
}

int loader_claim(struct loader *ld, uint64_t gpa, uint64_t len, const char *what)
{
	const struct boot_range *other;

	if (!in_ram(ld->mem, gpa, len))
		return boot_file_error(&ld->kernel, ld->err, ENOMEM,
				       "%s of %" PRIu64 " bytes at %#" PRIx64
				       " lies outside of the guest's memory (-m, now %" PRIu64
				       " MiB)",
				       what, len, gpa, ld->mem->size >> 20);
	other = range_overlapping(ld, gpa, len);
	if (other)
		return boot_file_error(&ld->kernel, ld->err, ENOEXEC,
				       "%s at %#" PRIx64 "-%#" PRIx64 " overlaps %s at %#" PRIx64
				       "-%#" PRIx64,
				       what, gpa, gpa + len - 1, other->what, other->gpa,
				       other->gpa + other->len - 1);
	if (!range_add(ld, gpa, len, what))
		return boot_file_error(&ld->kernel, ld->err, ENOEXEC, "too many pieces to load");
	return 0;
}

bool loader_place(struct loader *ld, uint64_t lo, uint64_t hi, uint64_t len, uint64_t align,
		  bool top, const char *what, uint64_t *gpa)
{
	const struct boot_range *r;
	uint64_t at;

	if (hi > ld->mem->low)
		hi = ld->mem->low;
	if (lo > hi || len > hi - lo)
		return false;
	at = top ? (hi - len) & ~(align - 1) : (lo + align - 1) & ~(align - 1);
	/* Each step leaves one range behind for good. */
	for (unsigned i = 0; i <= ld->nused; i++) {
		if (at < lo || at > hi - len)
			return false;
		r = range_overlapping(ld, at, len);
		if (!r) {
			*gpa = at;
			return range_add(ld, at, len, what);
		}
		if (top && r->gpa < len)
			return false;
		at = top ? (r->gpa - len) & ~(align - 1)
			 : (r->gpa + r->len + align - 1) & ~(align - 1);
	}
	return false;
}

int loader_place_struct(struct loader *ld, uint64_t len, const char *what, uint64_t *gpa)
{
	if (loader_place(ld, STRUCT_BASE, LOW_RAM_END, len, PAGE_SIZE, false, what, gpa) ||
	    loader_place(ld, HIGH_RAM_START, MEMORY_LOW_MAX, len, PAGE_SIZE, true, what, gpa))
		return 0;
	return boot_file_error(
		&ld->kernel, ld->err, ENOMEM,
		"no room for %s: the kernel fills the guest's memory, give it more (-m)", what);
}

int loader_put(struct loader *ld, const void *bytes, uint64_t len, const char *what, uint64_t *gpa)
{
	int rc = loader_place_struct(ld, len, what, gpa);

	return rc ? rc : memory_write(ld->mem, *gpa, bytes, len);
}

int loader_read(struct loader *ld, const struct boot_file *file, uint64_t offset, uint64_t gpa,
		uint64_t len)
{
	void *to;
	int rc;

	if (!len)
		return 0;
	to = memory_write_begin(ld->mem, gpa, len);
	if (!to)
		return boot_file_error(file, ld->err, EFAULT,
				       "no guest memory at %#" PRIx64 " for %" PRIu64 " bytes", gpa,
				       len);
	rc = boot_file_read(file, offset, to, len, ld->err);
	memory_write_end(ld->mem, gpa, len);
	return rc;
}

int loader_put_cmdline(struct loader *ld, bool is_linux, uint64_t limit, uint64_t *gpa)
{
	const char *text = ld->src->append;
	uint64_t len;

	if (!text)
		text = is_linux ? "console=ttyS0" : "";
	len = strlen(text);
	if (len > limit)
		return error_set(ld->err, E2BIG,
				 "--append: the command line has %" PRIu64
				 " characters; this kernel takes at most %" PRIu64,
				 len, limit);
	return loader_put(ld, text, len + 1, "the command line", gpa);
}

/* "The initrd does not fit", with what would be enough. */
static int initrd_no_room(struct loader *ld, uint64_t hi, uint64_t len)
{
	uint64_t kernel_end = HIGH_RAM_START, need;

	for (unsigned i = 0; i < ld->nused; i++) {
		const struct boot_range *r = &ld->used[i];

		if (r->gpa < MEMORY_LOW_MAX && r->gpa + r->len > kernel_end)
			kernel_end = r->gpa + r->len;
	}
	/* The initrd takes whole pages; memory sizes are told in MiB. */
	kernel_end = (kernel_end + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
	need = len < MEMORY_MAX ? (len + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1) : MEMORY_MAX;
	need += kernel_end + 0xfffff;
	need >>= 20;
	if (need << 20 > MEMORY_LOW_MAX || need << 20 > hi)
		return error_set(ld->err, EFBIG,
				 "--initrd: %" PRIu64
				 " bytes do not fit between the kernel's end at %#" PRIx64
				 " and %#" PRIx64 ", below which this kernel takes an initrd",
				 len, kernel_end,
				 hi < MEMORY_LOW_MAX ? hi : (uint64_t)MEMORY_LOW_MAX);
	return error_set(ld->err, ENOMEM,
			 "--initrd: %" PRIu64
			 " bytes do not fit: with this kernel the guest needs %" PRIu64
			 " MiB of memory (-m %" PRIu64 "M), it has %" PRIu64,
			 len, need, need, ld->mem->size >> 20);
}

static int initrd_size(struct loader *ld, uint64_t *len)
{
	*len = 0;
	for (size_t i = 0; i < ld->src->ninitrds; i++) {
		struct boot_file file;
		uint64_t aligned;
		int rc = boot_file_open(&file, "--initrd", ld->src->initrds[i], ld->err);

		if (rc)
			return rc;
		boot_file_close(&file);
		aligned = (*len + 3) & ~3ull;
		if (aligned < *len || __builtin_add_overflow(aligned, file.size, len))
			return boot_file_error(&file, ld->err, EFBIG, "too big");
	}
	return 0;
}

int loader_put_initrd(struct loader *ld, uint64_t hi, uint64_t *gpa, uint64_t *len)
{
	uint64_t pos = 0;
	uint8_t *to;
	int rc;

	*gpa = 0;
	rc = initrd_size(ld, len);
	if (rc || !*len)
		return rc;
	if (!loader_place(ld, HIGH_RAM_START, hi, *len, PAGE_SIZE, true, "the initrd", gpa))
		return initrd_no_room(ld, hi, *len);
	to = memory_write_begin(ld->mem, *gpa, *len);
	if (!to)
		return error_set(ld->err, EFAULT, "--initrd: guest memory is not writable");
	for (size_t i = 0; !rc && i < ld->src->ninitrds; i++) {
		struct boot_file file;

		rc = boot_file_open(&file, "--initrd", ld->src->initrds[i], ld->err);
		if (rc)
			break;
		while (pos & 3)
			to[pos++] = 0;
		if (file.size > *len - pos)
			rc = boot_file_error(&file, ld->err, EIO,
					     "became longer while it was read");
		else
			rc = boot_file_read(&file, 0, to + pos, file.size, ld->err);
		pos += file.size;
		boot_file_close(&file);
	}
	memory_write_end(ld->mem, *gpa, *len);
	return rc;
}

int loader_put_module(struct loader *ld, const char *path, uint64_t *gpa, uint64_t *len)
{
	struct boot_file file;
	int rc = boot_file_open(&file, "--initrd", path, ld->err);

	if (rc)
		return rc;
	*len = file.size;
	if (!loader_place(ld, HIGH_RAM_START, MEMORY_LOW_MAX, file.size ? file.size : 1, PAGE_SIZE,
			  true, "a module", gpa))
		rc = initrd_no_room(ld, MEMORY_LOW_MAX, file.size);
	else
		rc = loader_read(ld, &file, 0, *gpa, file.size);
	boot_file_close(&file);
	return rc;
}

/* PML4, PDPT and four page directories of 2 MiB pages: addresses below 4 GiB map to themselves. */
static int identity_map(struct loader *ld, uint64_t *cr3)
{
	const uint64_t table = 0x3, large = 0x83; /* present, writable; page size */
	uint64_t *to;
	int rc = loader_place_struct(ld, 6 * PAGE_SIZE, "page tables", cr3);

	if (rc)
		return rc;
	to = memory_write_begin(ld->mem, *cr3, 6 * PAGE_SIZE);
	if (!to)
		return error_set(ld->err, EFAULT, "guest memory is not writable");
	memset(to, 0, 2 * PAGE_SIZE);
	to[0] = (*cr3 + PAGE_SIZE) | table;
	for (uint64_t i = 0; i < 4; i++)
		to[512 + i] = (*cr3 + (2 + i) * PAGE_SIZE) | table;
	for (uint64_t i = 0; i < 2048; i++)
		to[1024 + i] = i << 21 | large;
	memory_write_end(ld->mem, *cr3, 6 * PAGE_SIZE);
	return 0;
}

int loader_protected_mode(struct loader *ld, uint64_t rip, bool long_mode)
{
	/* SDM vol. 3, section 3.4.5: flat, present, accessed; code 32- or 64-bit, data. */
	const uint64_t gdt[4] = {0, 0, long_mode ? 0x00af9b000000ffffull : 0x00cf9b000000ffffull,
				 0x00cf93000000ffffull};
	const struct x86_seg data = {.limit = 0xffffffff,
				     .sel = BOOT_DS,
				     .attr = SEG_ATTR_P | SEG_ATTR_S | 3 | SEG_ATTR_DB |
					     SEG_ATTR_G};
	struct x86_state *s = ld->bsp;
	uint64_t gdt_gpa, cr3 = 0;
	int rc;

	rc = loader_put(ld, gdt, sizeof(gdt), "a GDT", &gdt_gpa);
	if (!rc && long_mode)
		rc = identity_map(ld, &cr3);
	if (rc)
		return rc;
	memset(s->gpr, 0, sizeof(s->gpr));
	s->rip = rip;
	s->rflags = X86_FL_FIXED;
	for (unsigned i = 0; i < X86_SEGS; i++)
		s->seg[i] = data;
	s->seg[X86_CS].sel = BOOT_CS;
	s->seg[X86_CS].attr = SEG_ATTR_P | SEG_ATTR_S | 0xb | SEG_ATTR_G |
			      (long_mode ? SEG_ATTR_L : SEG_ATTR_DB);
	s->tr = (struct x86_seg){.limit = 0x67, .attr = SEG_ATTR_P | 0xb};
	s->ldtr = (struct x86_seg){.attr = SEG_ATTR_P | 2, .unusable = true};
	s->gdtr = (struct x86_table){gdt_gpa, sizeof(gdt) - 1};
	/* No entry fits. Not 0: a guest that loads that and faults asks for a reset (handle_shutdown()). */
	s->idtr = (struct x86_table){0, 1};
	s->cr0 = X86_CR0_PE | X86_CR0_ET | (long_mode ? X86_CR0_PG : 0);
	s->cr3 = cr3;
	s->cr4 = long_mode ? X86_CR4_PAE : 0;
	s->efer = long_mode ? X86_EFER_LME | X86_EFER_LMA : 0;
	/* Virtual wire mode (MultiProcessor Specification 1.4, section 3.6.2.2), as firmware leaves the
	 * local APIC: enabled, the PIC on LINT0 as ExtINT, NMI on LINT1. */
	s->lapic[0xf * 4] = 0x1ff;
	s->lapic[0x35 * 4] = 0x700;
	s->lapic[0x36 * 4] = 0x400;
	return 0;
}
