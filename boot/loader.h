/*
 * What the loaders of boot/ share: bounded file reads, a record of which guest memory is taken, places
 * for structures, and the flat protected-mode state. Internal to boot/.
 */
#ifndef BOOT_LOADER_H
#define BOOT_LOADER_H

#include <stdbool.h>

#include "boot/boot.h"

#define LOW_RAM_END 0x9fc00ull /* below it: usable; from it to 1 MiB: the PC's */
#define HIGH_RAM_START 0x100000ull
#define ECAM_BASE 0xe0000000ull
#define ECAM_SIZE 0x10000000ull

struct boot_file {
	const char *option; /* "--kernel": for messages */
	const char *path;
	int fd; /* -1: closed */
	uint64_t size;
};

/* A regular file; -errno with text otherwise. */
int boot_file_open(struct boot_file *file, const char *option, const char *path, struct error *err);
void boot_file_close(struct boot_file *file);
/* All of [offset, offset + len), or "truncated" as text. */
int boot_file_read(const struct boot_file *file, uint64_t offset, void *out, uint64_t len,
		   struct error *err);
/* Text prefixed with the option and the path; returns -errnum. */
int boot_file_error(const struct boot_file *file, struct error *err, int errnum, const char *fmt,
		    ...) __attribute__((format(printf, 4, 5)));

#define ELF_SEGMENTS_MAX 64
#define BOOT_MODULES_MAX 64
#define LOADER_RANGES (ELF_SEGMENTS_MAX + BOOT_MODULES_MAX + 16)

struct boot_range {
	uint64_t gpa, len;
	const char *what; /* for messages: "segment", "initrd" ... */
};

struct loader {
	struct memory *mem;
	const struct boot_source *src;
	struct boot_file kernel;
	struct boot_range used[LOADER_RANGES];
	unsigned nused;
	struct x86_state *bsp;
	struct error *err;
};

/* Takes guest RAM for something: refused (with text) outside RAM or where something else is. */
int loader_claim(struct loader *ld, uint64_t gpa, uint64_t len, const char *what);
/* Finds free low RAM in [lo, hi), aligned, from the bottom or from the top, and takes it. False: there
 * is none; no text. */
bool loader_place(struct loader *ld, uint64_t lo, uint64_t hi, uint64_t len, uint64_t align,
		  bool top, const char *what, uint64_t *gpa);
/* A place below 1 MiB, or if that is full above it, for a small structure; text if there is none. */
int loader_place_struct(struct loader *ld, uint64_t len, const char *what, uint64_t *gpa);
/* loader_place_struct() and a copy. */
int loader_put(struct loader *ld, const void *bytes, uint64_t len, const char *what, uint64_t *gpa);
/* File bytes into claimed guest memory. */
int loader_read(struct loader *ld, const struct boot_file *file, uint64_t offset, uint64_t gpa,
		uint64_t len);
/* The command line with its NUL into guest memory. `limit`: the longest that the kernel takes; `is_linux`:
 * it has Linux's default. */
int loader_put_cmdline(struct loader *ld, bool is_linux, uint64_t limit, uint64_t *gpa);

/* All --initrd files joined below `hi` (a GPA); *len 0 if there are none. */
int loader_put_initrd(struct loader *ld, uint64_t hi, uint64_t *gpa, uint64_t *len);
/* One file as a page-aligned module below 4 GiB. */
int loader_put_module(struct loader *ld, const char *path, uint64_t *gpa, uint64_t *len);

#define BOOT_CS 0x10
#define BOOT_DS 0x18

/* Flat 4 GiB segments from a GDT in guest memory, interrupts off, paging off, caches on, general registers
 * 0. `long_mode`: CS is a 64-bit segment, paging is on with the first 4 GiB mapped to itself. */
int loader_protected_mode(struct loader *ld, uint64_t rip, bool long_mode);

/* ELF, 32-bit x86 or x86-64, little-endian. Everything in it has been checked against the file's size. */
struct elf_segment {
	uint64_t offset, filesz, paddr, memsz;
};

struct elf_image {
	bool is64;
	uint64_t entry;
	unsigned nsegments;
	struct elf_segment segment[ELF_SEGMENTS_MAX];
	bool has_pvh;
	uint64_t pvh_entry;
	bool is_linux; /* a note says so */
};

/* 0; -ENOEXEC without text if the file is no ELF at all; -errno with text if it is a bad one. */
int elf_parse(const struct boot_file *file, struct elf_image *elf, struct error *err);
int elf_load(struct loader *ld, const struct elf_image *elf);

/* A multiboot 1 header in the first 8192 bytes of the file. */
bool multiboot_find(const struct boot_file *file, uint32_t *flags);
int multiboot_load(struct loader *ld, const struct elf_image *elf, uint32_t flags);

int pvh_load(struct loader *ld, const struct elf_image *elf);

bool bzimage_is(const struct boot_file *file);
int bzimage_load(struct loader *ld);

#endif
