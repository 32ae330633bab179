/*
 * ACPI machine language: the terms that the DSDT of this machine needs (ACPI 6.3, section 20.2).
 */
#include "tables/aml.h"

#include <string.h>

#define EXT 0x5b

static void put(struct aml *aml, uint8_t byte)
{
	image_u8(aml->out, byte);
}

/* Makes room for `len` bytes at `at`. */
static void insert(struct image *image, size_t at, const uint8_t *bytes, size_t len)
{
	size_t behind = image->len - at;

	image_zeros(image, len);
	if (image->overflow)
		return;
	memmove(image->bytes + at + len, image->bytes + at, behind);
	memcpy(image->bytes + at, bytes, len);
}

static void begin(struct aml *aml)
{
	if (aml->depth == AML_DEPTH) {
		aml->out->overflow = true;
		return;
	}
	aml->open[aml->depth].start = aml->out->len;
	aml->open[aml->depth].resources = false;
	aml->depth++;
}

/* PkgLength counts itself: one byte up to 63, else 4 bits in the first byte and 1 to 3 bytes more. */
static void insert_pkg_length(struct image *image, size_t at)
{
	size_t content = image->len - at;
	uint8_t bytes[4];
	size_t n = 1, total;

	if (content + 1 <= 0x3f) {
		bytes[0] = (uint8_t)(content + 1);
	} else {
		n = content + 2 <= 0xfff ? 2 : content + 3 <= 0xfffff ? 3 : 4;
		total = content + n;
		bytes[0] = (uint8_t)((n - 1) << 6 | (total & 0xf));
		for (size_t i = 1; i < n; i++)
			bytes[i] = (uint8_t)(total >> (4 + 8 * (i - 1)));
	}
	insert(image, at, bytes, n);
}

static void end_resources(struct aml *aml, size_t start)
{
	uint8_t scratch[16];
	struct image size = image_make(scratch, 0, sizeof(scratch));
	struct aml size_aml = {.out = &size};

	put(aml, 0x79); /* end tag; a checksum of 0 counts as right */
	put(aml, 0);
	aml_int(&size_aml, aml->out->len - start);
	insert(aml->out, start, scratch, size.len);
}

void aml_end(struct aml *aml)
{
	size_t start;

	if (!aml->depth || aml->out->overflow)
		return;
	start = aml->open[--aml->depth].start;
	if (aml->open[aml->depth].resources)
		end_resources(aml, start);
	if (!aml->out->overflow)
		insert_pkg_length(aml->out, start);
}

static void put_segment(struct aml *aml, const char *text, size_t len)
{
	for (size_t i = 0; i < 4; i++)
		put(aml, i < len ? (uint8_t)text[i] : '_');
}

void aml_path(struct aml *aml, const char *path)
{
	size_t segments = 1;

	while (*path == '\\' || *path == '^')
		put(aml, (uint8_t)*path++);
	for (const char *p = path; *p; p++)
		segments += *p == '.';
	if (!*path) {
		put(aml, 0); /* NullName */
		return;
	}
	if (segments == 2) {
		put(aml, 0x2e);
	} else if (segments > 2) {
		put(aml, 0x2f);
		put(aml, (uint8_t)segments);
	}
	while (segments--) {
		size_t len = strcspn(path, ".");

		put_segment(aml, path, len);
		path += len + 1;
	}
}

void aml_scope(struct aml *aml, const char *path)
{
	put(aml, 0x10);
	begin(aml);
	aml_path(aml, path);
}

void aml_device(struct aml *aml, const char *name)
{
	put(aml, EXT);
	put(aml, 0x82);
	begin(aml);
	aml_path(aml, name);
}

void aml_method(struct aml *aml, const char *name, unsigned args, bool serialized)
{
	put(aml, 0x14);
	begin(aml);
	aml_path(aml, name);
	put(aml, (uint8_t)(args | (serialized ? 8 : 0)));
}

void aml_package(struct aml *aml, unsigned elements)
{
	put(aml, 0x12);
	begin(aml);
	put(aml, (uint8_t)elements);
}

void aml_if(struct aml *aml)
{
	put(aml, 0xa0);
	begin(aml);
}

void aml_else(struct aml *aml)
{
	put(aml, 0xa1);
	begin(aml);
}

void aml_resources(struct aml *aml)
{
	put(aml, 0x11);
	begin(aml);
	if (aml->depth)
		aml->open[aml->depth - 1].resources = true;
}

void aml_field(struct aml *aml, const char *region)
{
	put(aml, EXT);
	put(aml, 0x81);
	begin(aml);
	aml_path(aml, region);
	put(aml, 0x01); /* ByteAcc, NoLock, Preserve */
}

void aml_field_unit(struct aml *aml, const char *name, unsigned bits)
{
	if (name)
		put_segment(aml, name, strlen(name));
	else
		put(aml, 0);
	/* Coded as a PkgLength, which here does not count itself. */
	if (bits <= 0x3f) {
		put(aml, (uint8_t)bits);
	} else {
		put(aml, (uint8_t)(0x40 | (bits & 0xf)));
		put(aml, (uint8_t)(bits >> 4));
	}
}

void aml_op(struct aml *aml, enum aml_opcode op)
{
	put(aml, (uint8_t)op);
}

void aml_int(struct aml *aml, uint64_t value)
{
	if (value <= 1) {
		put(aml, (uint8_t)value);
	} else if (value <= UINT8_MAX) {
		put(aml, 0x0a);
		put(aml, (uint8_t)value);
	} else if (value <= UINT16_MAX) {
		put(aml, 0x0b);
		image_u16(aml->out, (uint16_t)value);
	} else if (value <= UINT32_MAX) {
		put(aml, 0x0c);
		image_u32(aml->out, (uint32_t)value);
	} else {
		put(aml, 0x0e);
		image_u64(aml->out, value);
	}
}

void aml_string(struct aml *aml, const char *text)
{
	put(aml, 0x0d);
	image_bytes(aml->out, text, strlen(text) + 1);
}

void aml_local(struct aml *aml, unsigned n)
{
	put(aml, (uint8_t)(0x60 + n));
}

void aml_arg(struct aml *aml, unsigned n)
{
	put(aml, (uint8_t)(0x68 + n));
}

void aml_no_target(struct aml *aml)
{
	put(aml, 0);
}

void aml_name(struct aml *aml, const char *name)
{
	put(aml, 0x08);
	aml_path(aml, name);
}

void aml_name_int(struct aml *aml, const char *name, uint64_t value)
{
	aml_name(aml, name);
	aml_int(aml, value);
}

static unsigned hex_digit(char c)
{
	return (unsigned)(c <= '9' ? c - '0' : c - 'A' + 10);
}

/* Three letters of 5 bits and four hexadecimal digits (ACPI 6.3, section 19.3.4). */
void aml_name_eisa(struct aml *aml, const char *name, const char *id)
{
	unsigned letters = (unsigned)((id[0] - '@') << 10 | (id[1] - '@') << 5 | (id[2] - '@'));

	uint32_t digits = hex_digit(id[3]) << 4 | hex_digit(id[4]) | hex_digit(id[5]) << 12 |
			  hex_digit(id[6]) << 8;

	/* A number whose bytes in memory are big-endian. */
	aml_name_int(aml, name, digits << 16 | (letters & 0xff) << 8 | letters >> 8);
}

void aml_pci_region(struct aml *aml, const char *name, unsigned offset, unsigned length)
{
	put(aml, EXT);
	put(aml, 0x80);
	aml_path(aml, name);
	put(aml, 0x02); /* PCI_Config */
	aml_int(aml, offset);
	aml_int(aml, length);
}

/* --- resource descriptors -------------------------------------------------------------------------- */

void aml_res_io(struct aml *aml, uint16_t base, uint8_t len)
{
	put(aml, 0x47);
	put(aml, 0x01); /* decodes 16 bits */
	image_u16(aml->out, base);
	image_u16(aml->out, base);
	put(aml, 1); /* alignment */
	put(aml, len);
}

void aml_res_irq_edge(struct aml *aml, unsigned irq)
{
	put(aml, 0x22);
	image_u16(aml->out, (uint16_t)(1u << irq));
}

void aml_res_irq_level(struct aml *aml, uint16_t mask)
{
	put(aml, 0x23);
	image_u16(aml->out, mask);
	put(aml, 0x18); /* level, active low, shared */
}

void aml_res_mem32(struct aml *aml, uint32_t base, uint32_t len)
{
	put(aml, 0x86);
	image_u16(aml->out, 9);
	put(aml, 0x01); /* read and write */
	image_u32(aml->out, base);
	image_u32(aml->out, len);
}

/* The parts before the addresses: resource type, producer with both ends fixed, type-specific flags. */
static void window_head(struct aml *aml, uint8_t tag, uint16_t len, uint8_t type, uint8_t flags)
{
	put(aml, tag);
	image_u16(aml->out, len);
	put(aml, type);
	put(aml, 0x0c);
	put(aml, flags);
}

static void word_window(struct aml *aml, uint8_t type, uint8_t flags, uint16_t first, uint16_t last)
{
	window_head(aml, 0x88, 13, type, flags);
	image_u16(aml->out, 0); /* granularity */
	image_u16(aml->out, first);
	image_u16(aml->out, last);
	image_u16(aml->out, 0); /* translation */
	image_u16(aml->out, (uint16_t)(last - first + 1));
}

void aml_res_bus_window(struct aml *aml, uint16_t first, uint16_t last)
{
	word_window(aml, 2, 0, first, last);
}

void aml_res_io_window(struct aml *aml, uint16_t first, uint16_t last)
{
	word_window(aml, 1, 0x03, first, last);
}

void aml_res_mem32_window(struct aml *aml, uint32_t first, uint32_t last)
{
	window_head(aml, 0x87, 23, 0, 0x01);
	image_u32(aml->out, 0);
	image_u32(aml->out, first);
	image_u32(aml->out, last);
	image_u32(aml->out, 0);
	image_u32(aml->out, last - first + 1);
}

void aml_res_mem64_window(struct aml *aml, uint64_t first, uint64_t last)
{
	window_head(aml, 0x8a, 43, 0, 0x01);
	image_u64(aml->out, 0);
	image_u64(aml->out, first);
	image_u64(aml->out, last);
	image_u64(aml->out, 0);
	image_u64(aml->out, last - first + 1);
}
