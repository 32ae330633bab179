/*
 * A boot ROM: firmware or any other image that ends with the reset vector at 4 GiB - 16.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "boot/loader.h"

#define SHADOW_MAX 0x20000ull /* PC firmware at 0xe0000-0xfffff */

static int rom_add(struct memory *mem, const struct boot_file *file, struct error *err)
{
	uint8_t *bytes = malloc(file->size);
	int rc;

	if (!bytes)
		return error_set(err, ENOMEM, "out of memory");
	rc = boot_file_read(file, 0, bytes, file->size, err);
	if (!rc)
		rc = memory_add_rom(mem, "bootrom", MEMORY_HIGH_BASE - file->size, bytes,
				    file->size, err);
	free(bytes);
	return rc;
}

static int shadow_write(struct memory *mem, struct error *err)
{
	uint64_t len = SHADOW_MAX;
	const void *rom;

	for (; len; len -= PAGE_SIZE) {
		rom = memory_read_ptr(mem, MEMORY_HIGH_BASE - len, len);
		if (rom)
			return memory_write(mem, HIGH_RAM_START - len, rom, len);
	}
	return error_set(err, EFAULT, "the boot ROM is not mapped");
}

int bootrom_load(struct memory *mem, const char *path, struct error *err)
{
	struct boot_file file;
	int rc;

	if (memory_find(mem, MEMORY_HIGH_BASE - PAGE_SIZE, PAGE_SIZE))
		return shadow_write(mem, err);
	rc = boot_file_open(&file, "-l bootrom", path, err);
	if (rc)
		return rc;
	if (!file.size || file.size % PAGE_SIZE || file.size > BOOTROM_MAX)
		rc = boot_file_error(&file, err, EINVAL,
				     "%" PRIu64
				     " bytes; a boot ROM has 4 KiB to 16 MiB in whole 4 KiB pages",
				     file.size);
	else
		rc = rom_add(mem, &file, err);
	boot_file_close(&file);
	return rc ? rc : shadow_write(mem, err);
}
