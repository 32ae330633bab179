#include "tables/image.h"

#include <string.h>

void image_bytes(struct image *image, const void *bytes, size_t len)
{
	if (len > image->cap - image->len) {
		image->overflow = true;
		return;
	}
	memcpy(image->bytes + image->len, bytes, len);
	image->len += len;
}

void image_zeros(struct image *image, size_t len)
{
	if (len > image->cap - image->len) {
		image->overflow = true;
		return;
	}
	memset(image->bytes + image->len, 0, len);
	image->len += len;
}

void image_align(struct image *image, size_t to)
{
	image_zeros(image, (to - image_here(image) % to) % to);
}

static void put(struct image *image, uint64_t value, size_t len)
{
	uint8_t bytes[8];

	for (size_t i = 0; i < len; i++)
		bytes[i] = (uint8_t)(value >> (8 * i));
	image_bytes(image, bytes, len);
}

void image_u8(struct image *image, uint8_t value)
{
	put(image, value, 1);
}

void image_u16(struct image *image, uint16_t value)
{
	put(image, value, 2);
}

void image_u32(struct image *image, uint32_t value)
{
	put(image, value, 4);
}

void image_u64(struct image *image, uint64_t value)
{
	put(image, value, 8);
}

void image_text(struct image *image, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++)
		image_u8(image, *text ? (uint8_t)*text++ : ' ');
}

static void set(struct image *image, size_t at, uint64_t value, size_t len)
{
	if (at > image->len || len > image->len - at)
		return;
	for (size_t i = 0; i < len; i++)
		image->bytes[at + i] = (uint8_t)(value >> (8 * i));
}

void image_set8(struct image *image, size_t at, uint8_t value)
{
	set(image, at, value, 1);
}

void image_set16(struct image *image, size_t at, uint16_t value)
{
	set(image, at, value, 2);
}

void image_set32(struct image *image, size_t at, uint32_t value)
{
	set(image, at, value, 4);
}

void image_set64(struct image *image, size_t at, uint64_t value)
{
	set(image, at, value, 8);
}

void image_checksum(struct image *image, size_t at, size_t len, size_t sum_at)
{
	uint8_t sum = 0;

	if (at > image->len || len > image->len - at || sum_at >= image->len)
		return;
	image->bytes[sum_at] = 0;
	for (size_t i = 0; i < len; i++)
		sum += image->bytes[at + i];
	image->bytes[sum_at] = (uint8_t)-sum;
}
