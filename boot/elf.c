/*
 * ELF executables as kernels (System V ABI, gABI chapters 4 and 5): program headers and notes only, all
 * of it checked against the file's size and against guest memory.
 */
#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "boot/loader.h"

/* xen/include/public/elfnote.h */
#define XEN_ELFNOTE_GUEST_OS 6
#define XEN_ELFNOTE_PHYS32_ENTRY 18

#define NOTES_MAX 0x10000u /* bytes of one note segment that are looked at */

struct phdr {
	uint32_t type;
	uint64_t offset, paddr, filesz, memsz;
};

struct ehdr {
	uint64_t entry, phoff;
	unsigned phnum, phentsize;
};

static int ehdr_read(const struct boot_file *file, const uint8_t *ident, struct elf_image *elf,
		     struct ehdr *out, struct error *err)
{
	union {
		Elf32_Ehdr e32;
		Elf64_Ehdr e64;
	} h;
	int rc;

	elf->is64 = ident[EI_CLASS] == ELFCLASS64;
	rc = boot_file_read(file, 0, &h, elf->is64 ? sizeof(h.e64) : sizeof(h.e32), err);
	if (rc)
		return rc;
	if (elf->is64 ? h.e64.e_machine != EM_X86_64
		      : h.e32.e_machine != EM_386 && h.e32.e_machine != EM_X86_64)
		return boot_file_error(file, err, ENOEXEC, "an ELF for another machine than x86");
	if ((elf->is64 ? h.e64.e_type : h.e32.e_type) != ET_EXEC)
		return boot_file_error(
			file, err, ENOEXEC,
			"an ELF, but not an executable with fixed addresses (ET_EXEC)");
	if (elf->is64)
		*out = (struct ehdr){h.e64.e_entry, h.e64.e_phoff, h.e64.e_phnum,
				     h.e64.e_phentsize};
	else
		*out = (struct ehdr){h.e32.e_entry, h.e32.e_phoff, h.e32.e_phnum,
				     h.e32.e_phentsize};
	if (out->phentsize != (elf->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)))
		return boot_file_error(file, err, ENOEXEC,
				       "a malformed ELF: program headers of %u bytes",
				       out->phentsize);
	return 0;
}

static int phdr_read(const struct boot_file *file, bool is64, uint64_t offset, struct phdr *out,
		     struct error *err)
{
	union {
		Elf32_Phdr p32;
		Elf64_Phdr p64;
	} p;
	int rc = boot_file_read(file, offset, &p, is64 ? sizeof(p.p64) : sizeof(p.p32), err);

	if (rc)
		return rc;
	if (is64)
		*out = (struct phdr){p.p64.p_type, p.p64.p_offset, p.p64.p_paddr, p.p64.p_filesz,
				     p.p64.p_memsz};
	else
		*out = (struct phdr){p.p32.p_type, p.p32.p_offset, p.p32.p_paddr, p.p32.p_filesz,
				     p.p32.p_memsz};
	return 0;
}

static void note_take(struct elf_image *elf, const char *name, uint32_t namesz, uint32_t type,
		      const uint8_t *desc, uint32_t descsz)
{
	if (namesz == 6 && !memcmp(name, "Linux", 6))
		elf->is_linux = true;
	if (namesz != 4 || memcmp(name, "Xen", 4))
		return;
	if (type == XEN_ELFNOTE_GUEST_OS && descsz >= 5 && !memcmp(desc, "linux", 5))
		elf->is_linux = true;
	if (type == XEN_ELFNOTE_PHYS32_ENTRY && (descsz == 4 || descsz == 8)) {
		elf->pvh_entry = 0;
		memcpy(&elf->pvh_entry, desc, descsz);
		elf->has_pvh = true;
	}
}

static void notes_parse(struct elf_image *elf, const uint8_t *buf, uint64_t len)
{
	uint64_t pos = 0;

	while (len - pos >= 12) {
		uint32_t head[3]; /* name size, descriptor size, type */
		uint64_t name, desc, next;

		memcpy(head, buf + pos, sizeof(head));
		name = pos + 12;
		desc = name + ((head[0] + 3ull) & ~3ull);
		next = desc + ((head[1] + 3ull) & ~3ull);
		if (desc > len || head[1] > len - desc)
			return;
		note_take(elf, (const char *)buf + name, head[0], head[2], buf + desc, head[1]);
		if (next > len)
			return;
		pos = next;
	}
}

static int notes_read(const struct boot_file *file, const struct phdr *ph, struct elf_image *elf,
		      struct error *err)
{
	uint64_t len = ph->filesz < NOTES_MAX ? ph->filesz : NOTES_MAX;
	uint8_t *buf = malloc(len ? len : 1);
	int rc;

	if (!buf)
		return error_set(err, ENOMEM, "out of memory");
	rc = boot_file_read(file, ph->offset, buf, len, err);
	if (!rc)
		notes_parse(elf, buf, len);
	free(buf);
	return rc;
}

static int segment_add(const struct boot_file *file, const struct phdr *ph, unsigned index,
		       struct elf_image *elf, struct error *err)
{
	if (!ph->memsz)
		return 0;
	if (ph->filesz > ph->memsz)
		return boot_file_error(
			file, err, ENOEXEC,
			"a malformed ELF: segment %u has more bytes in the file (%" PRIu64
			") than in memory (%" PRIu64 ")",
			index, ph->filesz, ph->memsz);
	if (ph->offset > file->size || ph->filesz > file->size - ph->offset)
		return boot_file_error(file, err, ENOEXEC,
				       "truncated: segment %u ends at byte %#" PRIx64
				       ", the file at %#" PRIx64,
				       index, ph->offset + ph->filesz, file->size);
	if (elf->nsegments == ELF_SEGMENTS_MAX)
		return boot_file_error(file, err, ENOEXEC, "an ELF with more than %u segments",
				       ELF_SEGMENTS_MAX);
	elf->segment[elf->nsegments++] =
		(struct elf_segment){ph->offset, ph->filesz, ph->paddr, ph->memsz};
	return 0;
}

int elf_parse(const struct boot_file *file, struct elf_image *elf, struct error *err)
{
	uint8_t ident[EI_NIDENT];
	struct ehdr eh = {0};
	struct phdr ph = {0};
	int rc;

	memset(elf, 0, sizeof(*elf));
	if (file->size < sizeof(ident) || boot_file_read(file, 0, ident, sizeof(ident), NULL) ||
	    memcmp(ident, ELFMAG, SELFMAG))
		return -ENOEXEC;
	if ((ident[EI_CLASS] != ELFCLASS32 && ident[EI_CLASS] != ELFCLASS64) ||
	    ident[EI_DATA] != ELFDATA2LSB)
		return boot_file_error(file, err, ENOEXEC,
				       "an ELF, but neither 32- nor 64-bit little-endian");
	rc = ehdr_read(file, ident, elf, &eh, err);
	if (rc)
		return rc;
	elf->entry = eh.entry;
	for (unsigned i = 0; i < eh.phnum; i++) {
		uint64_t offset;

		if (__builtin_add_overflow(eh.phoff, (uint64_t)i * eh.phentsize, &offset))
			return boot_file_error(file, err, ENOEXEC,
					       "a malformed ELF: program headers at %#" PRIx64,
					       eh.phoff);
		rc = phdr_read(file, elf->is64, offset, &ph, err);
		if (!rc && ph.type == PT_LOAD)
			rc = segment_add(file, &ph, i, elf, err);
		else if (!rc && ph.type == PT_NOTE)
			rc = notes_read(file, &ph, elf, err);
		if (rc)
			return rc;
	}
	if (!elf->nsegments)
		return boot_file_error(file, err, ENOEXEC, "an ELF with no segment to load");
	return 0;
}

int elf_load(struct loader *ld, const struct elf_image *elf)
{
	/* All claims come first: nothing is written for an image with a bad segment. */
	for (unsigned i = 0; i < elf->nsegments; i++) {
		int rc = loader_claim(ld, elf->segment[i].paddr, elf->segment[i].memsz,
				      "an ELF segment");

		if (rc)
			return rc;
	}
	for (unsigned i = 0; i < elf->nsegments; i++) {
		const struct elf_segment *s = &elf->segment[i];
		uint8_t *to;
		int rc = loader_read(ld, &ld->kernel, s->offset, s->paddr, s->filesz);

		if (rc)
			return rc;
		if (s->memsz == s->filesz)
			continue;
		/* Memory is not zero when the guest is restarted in place. */
		to = memory_write_begin(ld->mem, s->paddr + s->filesz, s->memsz - s->filesz);
		if (!to)
			return error_set(ld->err, EFAULT, "guest memory is not writable");
		memset(to, 0, s->memsz - s->filesz);
		memory_write_end(ld->mem, s->paddr + s->filesz, s->memsz - s->filesz);
	}
	return 0;
}
