#include "tables/tables.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/config.h"
#include "tables/image.h"
#include "vmm/vm.h"

static int compose_mptable(struct vm *vm, uint8_t *base, struct tables_layout *out,
			   struct error *err)
{
	struct image image = image_make(base + TABLES_MPTABLE - TABLES_BASE, TABLES_MPTABLE,
					TABLES_SMBIOS - TABLES_MPTABLE);

	mptable_build(vm, &image);
	if (image.overflow)
		return error_set(err, ENOSPC, "the MP table does not fit");
	out->mptable = TABLES_MPTABLE;
	out->end = image_here(&image);
	return 0;
}

static int compose_smbios(struct vm *vm, uint8_t *base, struct tables_layout *out,
			  struct error *err)
{
	struct image image = image_make(base + TABLES_SMBIOS - TABLES_BASE, TABLES_SMBIOS,
					TABLES_ACPI - TABLES_SMBIOS);
	int rc = smbios_build(vm, &image, err);

	if (rc)
		return rc;
	if (image.overflow)
		return error_set(err, ENOSPC,
				 "the SMBIOS tables do not fit: shorter texts in bios.*, system.*, "
				 "board.*, chassis.*, or fewer sockets are needed");
	out->smbios = TABLES_SMBIOS;
	out->smbios3 = TABLES_SMBIOS + 0x20;
	out->end = image_here(&image);
	return 0;
}

static int compose_acpi(struct vm *vm, uint8_t *base, struct tables_layout *out, struct error *err)
{
	struct image image =
		image_make(base + TABLES_ACPI - TABLES_BASE, TABLES_ACPI, TABLES_END - TABLES_ACPI);

	acpi_build(vm, &image);
	if (image.overflow)
		return error_set(err, ENOSPC, "the ACPI tables do not fit");
	out->rsdp = TABLES_ACPI;
	out->end = image_here(&image);
	return 0;
}

int tables_compose(struct vm *vm, uint8_t *image, struct tables_layout *out, struct error *err)
{
	bool mptable, acpi;
	int rc = config_get_bool(vm->config, "x86.mptable", true, &mptable, err);

	if (!rc)
		rc = config_get_bool(vm->config, "acpi_tables", true, &acpi, err);
	if (rc)
		return rc;
	memset(image, 0, TABLES_END - TABLES_BASE);
	*out = (struct tables_layout){0};
	if (mptable)
		rc = compose_mptable(vm, image, out, err);
	if (!rc)
		rc = compose_smbios(vm, image, out, err);
	if (!rc && acpi)
		rc = compose_acpi(vm, image, out, err);
	return rc;
}

int tables_build(struct vm *vm, struct tables_layout *out, struct error *err)
{
	uint8_t *image = malloc(TABLES_END - TABLES_BASE);
	int rc;

	if (!image)
		return error_set(err, ENOMEM, "out of memory");
	rc = tables_compose(vm, image, out, err);
	/* No more than what is in use: a boot ROM has its copy in the rest. */
	if (!rc && memory_write(&vm->memory, TABLES_BASE, image, out->end - TABLES_BASE))
		rc = error_set(
			err, EFAULT,
			"there is no memory at 0x%x for the tables of the firmware: the guest "
			"needs at least 1M",
			TABLES_BASE);
	free(image);
	return rc;
}
