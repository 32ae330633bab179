/*
 * A region of memory being filled front to back with tables. What does not fit is dropped and makes
 * `overflow` true: checked once, at the end. Values are little-endian.
 */
#ifndef TABLES_IMAGE_H
#define TABLES_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct vm;

struct image {
	uint8_t *bytes;
	uint32_t gpa; /* of bytes[0] */
	size_t len, cap;
	bool overflow;
};

static inline struct image image_make(uint8_t *bytes, uint32_t gpa, size_t cap)
{
	return (struct image){.bytes = bytes, .gpa = gpa, .cap = cap};
}
/* The GPA of the next byte. */
static inline uint32_t image_here(const struct image *image)
{
	return image->gpa + (uint32_t)image->len;
}

void image_bytes(struct image *image, const void *bytes, size_t len);
void image_zeros(struct image *image, size_t len);
void image_align(struct image *image, size_t to); /* zeros up to a GPA that is a multiple of `to` */
void image_u8(struct image *image, uint8_t value);
void image_u16(struct image *image, uint16_t value);
void image_u32(struct image *image, uint32_t value);
void image_u64(struct image *image, uint64_t value);
/* Exactly `len` bytes of text, padded with spaces. */
void image_text(struct image *image, const char *text, size_t len);

/* Overwrite what is there already; outside of it nothing happens. */
void image_set8(struct image *image, size_t at, uint8_t value);
void image_set16(struct image *image, size_t at, uint16_t value);
void image_set32(struct image *image, size_t at, uint32_t value);
void image_set64(struct image *image, size_t at, uint64_t value);
/* Sets the byte at `sum_at` so that [at, at + len) sums up to 0. */
void image_checksum(struct image *image, size_t at, size_t len, size_t sum_at);

/* The builders; each fills an image of its own. */
void mptable_build(struct vm *vm, struct image *image);
/* Entry points at offsets 0 and 0x20. */
int smbios_build(struct vm *vm, struct image *image, struct error *err);
/* The RSDP at offset 0. */
void acpi_build(struct vm *vm, struct image *image);
/* The body of the DSDT, without a header. */
void dsdt_build(struct vm *vm, struct image *image);

#endif
