/*
 * Kernels and ROMs, good and bad, loaded into guest memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "boot/boot.h"

#define MIB (1ull << 20)
#define FILES_MAX 8

struct fixture {
	struct memory mem;
	struct x86_state bsp;
	struct boot_source src;
	enum boot_kind kind;
	struct error err;
	char path[FILES_MAX][64];
	int fd[FILES_MAX];
	unsigned nfiles;
	const char *initrds[FILES_MAX];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	*state = f;
	f->bsp.rip = 0xfff0;
	f->src.initrds = f->initrds;
	return memory_create(&f->mem, NULL, 64 * MIB, false, false, &f->err);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	memory_destroy(&f->mem);
	for (unsigned i = 0; i < f->nfiles; i++)
		close(f->fd[i]);
	free(f);
	return 0;
}

static void resize(struct fixture *f, uint64_t size)
{
	memory_destroy(&f->mem);
	assert_int_equal(memory_create(&f->mem, NULL, size, false, false, &f->err), 0);
}

static const char *file_make(struct fixture *f, const void *bytes, size_t len)
{
	unsigned i = f->nfiles++;

	assert_true(i < FILES_MAX);
	f->fd[i] = memfd_create("image", 0);
	assert_true(f->fd[i] >= 0);
	assert_int_equal(write(f->fd[i], bytes, len), len);
	snprintf(f->path[i], sizeof(f->path[i]), "/proc/self/fd/%d", f->fd[i]);
	return f->path[i];
}

static void initrd_add(struct fixture *f, const void *bytes, size_t len)
{
	f->initrds[f->src.ninitrds++] = file_make(f, bytes, len);
}

static int load(struct fixture *f)
{
	f->err.text[0] = 0;
	return boot_load(&f->mem, &f->src, &f->bsp, &f->kind, &f->err);
}

static void assert_refused(struct fixture *f, const char *text)
{
	assert_true(load(f) < 0);
	if (!strstr(f->err.text, text))
		fail_msg("\"%s\" lacks \"%s\"", f->err.text, text);
	assert_null(strchr(f->err.text, '\n'));
	assert_int_equal(f->bsp.rip, 0xfff0); /* untouched */
}

/* An ELF64 with segments, room for notes, and their bytes from 0x1000 on. */
struct image {
	Elf64_Ehdr eh;
	Elf64_Phdr ph[72];
	uint32_t note[16];
	uint32_t multiboot[3];
	uint8_t bytes[0x2000];
};

static void image_init(struct image *im)
{
	memset(im, 0, sizeof(*im));
	memcpy(im->eh.e_ident, ELFMAG "\2\1\1", 7);
	im->eh.e_type = ET_EXEC;
	im->eh.e_machine = EM_X86_64;
	im->eh.e_entry = 0x100010;
	im->eh.e_phoff = offsetof(struct image, ph);
	im->eh.e_phentsize = sizeof(Elf64_Phdr);
	im->eh.e_phnum = 1;
	im->ph[0] = (Elf64_Phdr){.p_type = PT_LOAD,
				 .p_offset = offsetof(struct image, bytes),
				 .p_paddr = 0x100000,
				 .p_filesz = sizeof(im->bytes),
				 .p_memsz = sizeof(im->bytes) + 0x1000};
	memset(im->bytes, 0xa5, sizeof(im->bytes));
}

static void image_add_pvh(struct image *im, uint32_t entry)
{
	im->ph[im->eh.e_phnum++] = (Elf64_Phdr){
		.p_type = PT_NOTE, .p_offset = offsetof(struct image, note), .p_filesz = 20};
	im->note[0] = 4;
	im->note[1] = 4;
	im->note[2] = 18;
	memcpy(&im->note[3], "Xen", 4);
	im->note[4] = entry;
}

static void image_add_multiboot(struct image *im)
{
	im->multiboot[0] = 0x1badb002;
	im->multiboot[1] = 3;
	im->multiboot[2] = -(0x1badb002u + 3);
}

static void kernel_set(struct fixture *f, const void *bytes, size_t len)
{
	f->src.kernel = file_make(f, bytes, len);
}

static void guest_read(struct fixture *f, uint64_t gpa, void *out, size_t len)
{
	assert_int_equal(memory_read(&f->mem, gpa, out, len), 0);
}

static uint32_t guest_u32(struct fixture *f, uint64_t gpa)
{
	uint32_t v;

	guest_read(f, gpa, &v, 4);
	return v;
}

static uint64_t guest_u64(struct fixture *f, uint64_t gpa)
{
	uint64_t v;

	guest_read(f, gpa, &v, 8);
	return v;
}

static void assert_guest_string(struct fixture *f, uint64_t gpa, const char *text)
{
	char buf[256] = {0};

	assert_true(strlen(text) < sizeof(buf));
	guest_read(f, gpa, buf, strlen(text) + 1);
	assert_string_equal(buf, text);
}

static void assert_flat32(struct fixture *f)
{
	assert_int_equal(f->bsp.cr0 & (X86_CR0_PE | X86_CR0_PG), X86_CR0_PE);
	assert_int_equal(f->bsp.rflags, X86_FL_FIXED);
	assert_int_equal(f->bsp.seg[X86_CS].attr & (SEG_ATTR_L | SEG_ATTR_DB), SEG_ATTR_DB);
	for (unsigned i = 0; i < X86_SEGS; i++) {
		assert_int_equal(f->bsp.seg[i].base, 0);
		assert_int_equal(f->bsp.seg[i].limit, 0xffffffff);
		/* The selectors can be loaded again from the GDT that is there. */
		assert_true(f->bsp.seg[i].sel + 7u <= f->bsp.gdtr.limit);
		assert_true(guest_u64(f, f->bsp.gdtr.base + f->bsp.seg[i].sel) & 1ull << 47);
	}
}

static void test_pvh(void **state)
{
	struct fixture *f = *state;
	struct image im;
	uint64_t info, list;

	image_init(&im);
	image_add_pvh(&im, 0x100020);
	kernel_set(f, &im, sizeof(im));
	initrd_add(f, "12345", 5);
	initrd_add(f, "abc", 3);
	f->src.append = "a b";
	f->src.rsdp = 0xf2400;
	memset(memory_write_begin(&f->mem, 0x100000, 0x4000), 0xff, 0x4000); /* a restart */
	assert_int_equal(load(f), 0);
	assert_int_equal(f->kind, BOOT_PVH);
	assert_flat32(f);
	assert_int_equal(f->bsp.rip, 0x100020);
	assert_int_equal(guest_u32(f, 0x100000), 0xa5a5a5a5);
	assert_int_equal(guest_u32(f, 0x102000), 0); /* beyond the file's part */
	assert_int_equal(guest_u32(f, 0x102ffc), 0);
	assert_int_equal(guest_u32(f, 0x103000), 0xffffffff);

	info = f->bsp.gpr[X86_RBX];
	assert_int_equal(guest_u32(f, info), 0x336ec578);
	assert_int_equal(guest_u32(f, info + 4), 1);
	assert_int_equal(guest_u32(f, info + 12), 1);
	assert_guest_string(f, guest_u64(f, info + 24), "a b");
	assert_int_equal(guest_u64(f, info + 32), 0xf2400);
	assert_int_equal(guest_u32(f, info + 48), 4);
	list = guest_u64(f, info + 16);
	assert_int_equal(guest_u64(f, list + 8), 11);
	assert_guest_string(f, guest_u64(f, list), "12345");
	assert_int_equal(guest_u32(f, guest_u64(f, list) + 4), '5');
	assert_int_equal(guest_u32(f, guest_u64(f, list) + 8) & 0xffffff,
			 'a' | 'b' << 8 | 'c' << 16);
}

static void test_pvh_before_multiboot(void **state)
{
	struct fixture *f = *state;
	struct image im;

	image_init(&im);
	image_add_pvh(&im, 0x100020);
	image_add_multiboot(&im);
	kernel_set(f, &im, sizeof(im));
	assert_int_equal(load(f), 0);
	assert_int_equal(f->kind, BOOT_PVH);
	assert_guest_string(f, guest_u64(f, f->bsp.gpr[X86_RBX] + 24),
			    ""); /* no Linux: no default */
}

static void test_linux_note_gives_default(void **state)
{
	struct fixture *f = *state;
	struct image im;

	image_init(&im);
	image_add_pvh(&im, 0x100020);
	im.ph[1].p_filesz = 20 + 24;
	im.note[5] = 6;
	im.note[6] = 4;
	im.note[7] = 0x100;
	memcpy(&im.note[8], "Linux", 6);
	kernel_set(f, &im, sizeof(im));
	assert_int_equal(load(f), 0);
	assert_guest_string(f, guest_u64(f, f->bsp.gpr[X86_RBX] + 24), "console=ttyS0");
}

static void test_multiboot(void **state)
{
	struct fixture *f = *state;
	struct image im;
	uint64_t info, mods;

	image_init(&im);
	image_add_multiboot(&im);
	kernel_set(f, &im, sizeof(im));
	initrd_add(f, "12345", 5);
	initrd_add(f, "", 0);
	f->src.append = "x";
	assert_int_equal(load(f), 0);
	assert_int_equal(f->kind, BOOT_MULTIBOOT);
	assert_flat32(f);
	assert_int_equal(f->bsp.rip, 0x100010);
	assert_int_equal(f->bsp.gpr[X86_RAX], 0x2badb002);
	info = f->bsp.gpr[X86_RBX];
	assert_int_equal(guest_u32(f, info), 0x24d);
	assert_int_equal(guest_u32(f, info + 4), 639);
	assert_int_equal(guest_u32(f, info + 8), 63 * 1024);
	assert_guest_string(f, guest_u32(f, info + 16), "x");
	assert_int_equal(guest_u32(f, info + 20), 2);
	mods = guest_u32(f, info + 24);
	assert_int_equal(guest_u32(f, mods + 4) - guest_u32(f, mods), 5);
	assert_int_equal(guest_u32(f, mods) & 0xfff, 0);
	assert_guest_string(f, guest_u32(f, mods + 8), f->initrds[0]);
	assert_int_equal(guest_u32(f, mods + 20) - guest_u32(f, mods + 16), 0);
	assert_int_equal(guest_u32(f, info + 44), 4 * 24);
}

static void test_bad_elf(void **state)
{
	static const struct {
		const char *text;
		uint64_t offset, filesz, paddr, memsz;
	} bad[] = {
		{"more bytes in the file", 0, 0x200, 0x200000, 0x100},
		{"truncated", UINT64_MAX - 0xfff, 0x1000, 0x200000, 0x1000},
		{"truncated", 0, UINT64_MAX, 0x200000, UINT64_MAX},
		{"truncated", sizeof(struct image), 1, 0x200000, 1},
		{"outside of the guest's memory (-m, now 64 MiB)", 0, 16, 64 * MIB - 8, 16},
		{"outside of the guest's memory", 0, 16, UINT64_MAX - 7, 16},
		{"outside of the guest's memory", 0, 16, MEMORY_HIGH_BASE, 16},
		{"outside of the guest's memory", 0, 16, 0x200000, UINT64_MAX - 0x200000},
		{"overlaps an ELF segment", 0, 16, 0x100fff, 16},
		{"overlaps the PC's reserved area", 0, 16, 0x9fbff, 16},
		{"overlaps the PC's reserved area", 0, 1, 0xfffff, 1},
	};
	struct fixture *f = *state;
	struct image im;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		image_init(&im);
		image_add_pvh(&im, 0x100020);
		im.ph[im.eh.e_phnum++] = (Elf64_Phdr){.p_type = PT_LOAD,
						      .p_offset = bad[i].offset,
						      .p_filesz = bad[i].filesz,
						      .p_paddr = bad[i].paddr,
						      .p_memsz = bad[i].memsz};
		kernel_set(f, &im, sizeof(im));
		assert_refused(f, bad[i].text);
		close(f->fd[--f->nfiles]);
	}
}

static void refuse_image(struct fixture *f, const struct image *im, const char *text)
{
	kernel_set(f, im, sizeof(*im));
	assert_refused(f, text);
	close(f->fd[--f->nfiles]);
}

static void test_bad_elf_header(void **state)
{
	struct fixture *f = *state;
	struct image im, good;

	image_init(&good);
	image_add_pvh(&good, 0x100020);
	im = good;
	im.eh.e_phentsize = 8;
	refuse_image(f, &im, "malformed ELF");
	im = good;
	im.eh.e_phoff = UINT64_MAX - 8;
	refuse_image(f, &im, "truncated");
	im = good;
	im.eh.e_phnum = 0xffff;
	refuse_image(f, &im, "");
	im = good;
	im.eh.e_machine = EM_AARCH64;
	refuse_image(f, &im, "another machine");
	im = good;
	im.eh.e_type = ET_DYN;
	refuse_image(f, &im, "ET_EXEC");
	im = good;
	im.eh.e_ident[EI_DATA] = ELFDATA2MSB;
	refuse_image(f, &im, "little-endian");
	im = good;
	im.ph[1].p_filesz = UINT64_MAX;
	refuse_image(f, &im, "truncated");
	im = good;
	im.note[0] = 0xffffffff; /* the note runs over its end: none is found */
	refuse_image(f, &im, "neither a PVH entry note");
	im = good;
	im.note[1] = 0xffffffff;
	refuse_image(f, &im, "neither a PVH entry note");
	im = good;
	im.ph[0].p_type = PT_NULL;
	refuse_image(f, &im, "no segment");
	im = good;
	for (unsigned i = 0; i < 70; i++)
		im.ph[i] = (Elf64_Phdr){
			.p_type = PT_LOAD, .p_paddr = 0x200000 + i * 16, .p_memsz = 16};
	im.eh.e_phnum = 70;
	refuse_image(f, &im, "more than 64 segments");
	image_init(&im);
	image_add_multiboot(&im);
	im.multiboot[1] = 0x13;
	im.multiboot[2] = -(0x1badb002u + 0x13);
	refuse_image(f, &im, "asks for features 0x10");
	im.eh.e_entry = 1ull << 32;
	im.multiboot[1] = 3;
	im.multiboot[2] = -(0x1badb002u + 3);
	refuse_image(f, &im, "not below 4 GiB");
	/* Cut short anywhere: never accepted, always with a reason. */
	for (size_t len = 0; len < sizeof(good); len += 61) {
		kernel_set(f, &good, len);
		assert_refused(f, "--kernel /proc/self/fd/");
		close(f->fd[--f->nfiles]);
	}
}

static void test_no_kernel(void **state)
{
	struct fixture *f = *state;

	f->src.kernel = "/nonexistent/kernel";
	assert_refused(f, "/nonexistent/kernel: No such file");
	f->src.kernel = "/tmp";
	assert_refused(f, "not a regular file");
	f->src.kernel = "/dev/zero";
	assert_refused(f, "not a regular file");
	kernel_set(f, "#!/bin/sh\n", 10);
	assert_refused(f, "no kernel: expected a Linux bzImage");
	kernel_set(f, "", 0);
	assert_refused(f, "no kernel");
}

/* A bzImage: set-up header of protocol 2.15, 1 set-up sector, code that is 0x90. */
#define CODE_LEN 0x3000u
static void bzimage_make(uint8_t *b, uint16_t xloadflags)
{
	uint32_t v;

	memset(b, 0, 1024);
	memset(b + 1024, 0x90, CODE_LEN);
	b[0x1f1] = 1;
	v = CODE_LEN / 16;
	memcpy(b + 0x1f4, &v, 4);
	b[0x1fe] = 0x55;
	b[0x1ff] = 0xaa;
	b[0x201] = 0x6a; /* the header ends at 0x26c */
	memcpy(b + 0x202, "HdrS\x0f\x02", 6);
	b[0x211] = 0x81;
	v = 0x7fffffff;
	memcpy(b + 0x22c, &v, 4);
	v = 0x200000;
	memcpy(b + 0x230, &v, 4);
	b[0x234] = 1;
	memcpy(b + 0x236, &xloadflags, 2);
	v = 2047;
	memcpy(b + 0x238, &v, 4);
	v = 0x1000000;
	memcpy(b + 0x258, &v, 4); /* pref_address */
	v = 0x800000;
	memcpy(b + 0x260, &v, 4); /* init_size */
}

static void test_bzimage64(void **state)
{
	struct fixture *f = *state;
	uint8_t b[1024 + CODE_LEN];
	uint64_t zp, gpa;

	bzimage_make(b, 1);
	kernel_set(f, b, sizeof(b));
	initrd_add(f, "12345", 5);
	initrd_add(f, "abc", 3);
	f->src.rsdp = 0xf2400;
	assert_int_equal(load(f), 0);
	assert_int_equal(f->kind, BOOT_LINUX);
	assert_int_equal(f->bsp.rip, 0x1000200);
	assert_int_equal(guest_u32(f, 0x1000000), 0x90909090);
	assert_true(f->bsp.cr0 & X86_CR0_PG);
	assert_true(f->bsp.efer & X86_EFER_LMA);
	assert_true(f->bsp.cr4 & X86_CR4_PAE);
	assert_int_equal(f->bsp.seg[X86_CS].sel, 0x10);
	assert_int_equal(f->bsp.seg[X86_DS].sel, 0x18);
	assert_int_equal(f->bsp.seg[X86_CS].attr & (SEG_ATTR_L | SEG_ATTR_DB), SEG_ATTR_L);
	zp = f->bsp.gpr[X86_RSI];
	/* Identity, by a walk. */
	for (gpa = 0; gpa < 4096 * MIB; gpa += 511 * MIB) {
		uint64_t e = guest_u64(f, f->bsp.cr3);

		e = guest_u64(f, (e & ~0xfffull) + (gpa >> 30) * 8);
		e = guest_u64(f, (e & ~0xfffull) + (gpa >> 21 & 511) * 8);
		assert_int_equal(e, (gpa & ~0x1fffffull) | 0x83);
	}
	assert_int_equal(guest_u64(f, zp + 0x70), 0xf2400);
	assert_int_equal(guest_u32(f, zp + 0x1e8) & 0xff, 4);
	assert_int_equal(guest_u64(f, zp + 0x2d0), 0);
	assert_int_equal(guest_u64(f, zp + 0x2d8), 0x9fc00);
	assert_int_equal(guest_u32(f, zp + 0x210) & 0xff, 0xff);
	assert_guest_string(f, guest_u32(f, zp + 0x228), "console=ttyS0");
	assert_int_equal(guest_u32(f, zp + 0x21c), 11);
	gpa = guest_u32(f, zp + 0x218);
	assert_true(gpa >= 0x1800000 && gpa + 11 <= 64 * MIB); /* beyond init_size */
	assert_guest_string(f, gpa, "12345");
}

static void test_bzimage32(void **state)
{
	struct fixture *f = *state;
	uint8_t b[1024 + CODE_LEN];

	bzimage_make(b, 0);
	kernel_set(f, b, sizeof(b));
	assert_int_equal(load(f), 0);
	assert_flat32(f);
	assert_int_equal(f->bsp.rip, 0x1000000);
	assert_int_equal(guest_u32(f, f->bsp.gpr[X86_RSI] + 0x202), 0x53726448);
}

static void test_bzimage_moves(void **state)
{
	struct fixture *f = *state;
	uint8_t b[1024 + CODE_LEN];

	bzimage_make(b, 1);
	kernel_set(f, b, sizeof(b));
	resize(f, 16 * MIB); /* nothing at its preferred address */
	assert_int_equal(load(f), 0);
	assert_int_equal(f->bsp.rip, 0x200200);
	f->bsp.rip = 0xfff0;
	resize(f, 8 * MIB);
	assert_refused(f, "needs 24 MiB of memory");
}

static void test_bzimage_initrd(void **state)
{
	static uint8_t big[41 * MIB];
	struct fixture *f = *state;
	uint8_t b[1024 + CODE_LEN];
	uint32_t max = 0x1ffffff, gpa;

	bzimage_make(b, 1);
	kernel_set(f, b, sizeof(b));
	initrd_add(f, big, sizeof(big));
	assert_refused(f, "the guest needs 65 MiB of memory (-m 65M), it has 64");
	resize(f, 65 * MIB); /* and that is enough */
	assert_int_equal(load(f), 0);
	/* initrd_addr_max is the last byte. */
	f->bsp.rip = 0xfff0;
	memcpy(b + 0x22c, &max, 4);
	kernel_set(f, b, sizeof(b));
	assert_refused(f, "below which this kernel takes an initrd");
	f->src.ninitrds = 0;
	initrd_add(f, big, 4 * MIB);
	assert_int_equal(load(f), 0);
	gpa = guest_u32(f, f->bsp.gpr[X86_RSI] + 0x218);
	assert_int_equal(gpa + 4 * MIB, max + 1);
}

static void test_bzimage_bad(void **state)
{
	struct fixture *f = *state;
	uint8_t b[1024 + CODE_LEN];
	char line[2100];

	memset(line, 'x', sizeof(line));
	bzimage_make(b, 1);
	kernel_set(f, b, sizeof(b));
	f->src.append = line;
	line[2048] = 0;
	assert_refused(f, "2048 characters; this kernel takes at most 2047");
	line[2047] = 0;
	assert_int_equal(load(f), 0);
	f->bsp.rip = 0xfff0;
	f->src.append = NULL;
	kernel_set(f, b, sizeof(b) - 16);
	assert_refused(f, "truncated");
	kernel_set(f, b, 0x210);
	assert_refused(f, "truncated");
	b[0x207] = 1; /* protocol 1.15 */
	kernel_set(f, b, sizeof(b));
	assert_refused(f, "at least 2.02");
	bzimage_make(b, 1);
	b[0x211] = 0;
	kernel_set(f, b, sizeof(b));
	assert_refused(f, "zImage");
	bzimage_make(b, 1);
	b[0x230] = 3; /* an alignment that is no power of two */
	kernel_set(f, b, sizeof(b));
	assert_refused(f, "malformed bzImage");
}

static void test_bootrom(void **state)
{
	static uint8_t rom[0x30000];
	struct fixture *f = *state;
	uint32_t v;

	for (uint32_t i = 0; i < sizeof(rom); i += 4)
		memcpy(rom + i, &i, 4);
	assert_true(bootrom_load(&f->mem, file_make(f, rom, 100), &f->err) < 0);
	assert_non_null(strstr(f->err.text, "4 KiB to 16 MiB"));
	assert_true(bootrom_load(&f->mem, file_make(f, rom, 0), &f->err) < 0);
	assert_true(bootrom_load(&f->mem, "/nonexistent", &f->err) < 0);
	assert_int_equal(bootrom_load(&f->mem, file_make(f, rom, sizeof(rom)), &f->err), 0);
	guest_read(f, 0xffffffff - 3, &v, 4);
	assert_int_equal(v, sizeof(rom) - 4);
	guest_read(f, 0x100000 - 4, &v, 4);
	assert_int_equal(v, sizeof(rom) - 4);
	guest_read(f, 0xe0000, &v, 4);
	assert_int_equal(v, 0x10000);
	/* Written over by the guest, then restarted. */
	assert_int_equal(memory_write(&f->mem, 0xe0000, "xxxx", 4), 0);
	assert_int_equal(bootrom_load(&f->mem, "/nonexistent", &f->err), 0);
	guest_read(f, 0xe0000, &v, 4);
	assert_int_equal(v, 0x10000);
}

static void test_e820(void **state)
{
	struct fixture *f = *state;
	struct e820_entry map[E820_ENTRIES_MAX];

	resize(f, 6144 * MIB);
	assert_int_equal(e820_build(&f->mem, map), 5);
	for (unsigned i = 1; i < 5; i++)
		assert_true(map[i].addr >= map[i - 1].addr + map[i - 1].len);
	assert_int_equal(map[2].len, 3071 * MIB);
	assert_int_equal(map[4].addr, 4096 * MIB);
	assert_int_equal(map[4].len, 3072 * MIB);
	resize(f, 1 * MIB);
	assert_int_equal(e820_build(&f->mem, map), 3);
}

/* Images with random bytes changed: loaded or refused with a reason; the PC's area stays as it is. */
static void test_mutations(void **state)
{
	struct fixture *f = *state;
	union {
		struct image im;
		uint8_t b[1024 + CODE_LEN];
	} good, bad;
	uint32_t seed = 12345;
	static uint8_t zero[0x100000 - 0x9fc00], area[sizeof(zero)];

	initrd_add(f, "12345", 5);
	for (unsigned n = 0; n < 3000; n++) {
		unsigned kind = n % 3, limit = kind == 2 ? 0x280 : 0x200;

		memset(&good, 0, sizeof(good));
		if (kind == 2) {
			bzimage_make(good.b, 1);
		} else {
			image_init(&good.im);
			if (kind)
				image_add_pvh(&good.im, 0x100020);
			else
				image_add_multiboot(&good.im);
		}
		bad = good;
		for (unsigned i = 0; i < 1 + n % 4; i++) {
			seed = seed * 1664525 + 1013904223;
			bad.b[(kind == 2 ? 0x1f1 : 0) +
			      (seed >> 8) % (limit - (kind == 2 ? 0x1f1 : 0))] =
				(uint8_t)(seed >> 24);
		}
		kernel_set(f, &bad, sizeof(bad));
		f->err.text[0] = 0;
		if (load(f) < 0)
			assert_true(f->err.text[0]);
		close(f->fd[--f->nfiles]);
	}
	guest_read(f, 0x9fc00, area, sizeof(area));
	assert_memory_equal(area, zero, sizeof(zero));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_pvh, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pvh_before_multiboot, setup, teardown),
		cmocka_unit_test_setup_teardown(test_linux_note_gives_default, setup, teardown),
		cmocka_unit_test_setup_teardown(test_multiboot, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_elf, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_elf_header, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_kernel, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bzimage64, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bzimage32, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bzimage_moves, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bzimage_initrd, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bzimage_bad, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bootrom, setup, teardown),
		cmocka_unit_test_setup_teardown(test_e820, setup, teardown),
		cmocka_unit_test_setup_teardown(test_mutations, setup, teardown),
	};

	return cmocka_run_group_tests_name("boot", tests, NULL, NULL);
}
