/*
 * Writes the tables of a machine as files that iasl and dmidecode take:
 *	tables_dump DIRECTORY SOCKETS CORES THREADS MEMORY [KEY=VALUE ...]
 * NAME.dat for each ACPI table, smbios2.bin and smbios3.bin.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tables_machine.h"

static const char *directory;

static void write_file(const char *name, const uint8_t *head, size_t head_len, const uint8_t *bytes,
		       size_t len)
{
	char path[512];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "wb");
	if (!file || fwrite(head, 1, head_len, file) != head_len ||
	    fwrite(bytes, 1, len, file) != len || fclose(file)) {
		perror(path);
		exit(1);
	}
}

static void dump_acpi_table(struct tables_machine *m, uint64_t gpa)
{
	const uint8_t *table = tables_machine_at(m, gpa, 8);
	char name[16];

	snprintf(name, sizeof(name), "%.4s.dat", (const char *)table);
	write_file(name, NULL, 0, table, le(table + 4, 4));
}

static void dump_acpi(struct tables_machine *m)
{
	const uint8_t *rsdp = tables_machine_at(m, m->layout.rsdp, 36);
	uint64_t xsdt_gpa = le(rsdp + 24, 8);
	const uint8_t *xsdt = tables_machine_at(m, xsdt_gpa, 36);
	const uint8_t *fadt;

	dump_acpi_table(m, xsdt_gpa);
	dump_acpi_table(m, le(rsdp + 16, 4));
	for (size_t at = 36; at < le(xsdt + 4, 4); at += 8)
		dump_acpi_table(m, le(xsdt + at, 8));
	fadt = tables_machine_at(m, le(xsdt + 36, 8), 44);
	dump_acpi_table(m, le(fadt + 36, 4));
	dump_acpi_table(m, le(fadt + 40, 4));
}

static void fix_checksum(uint8_t *bytes, size_t len, size_t sum_at)
{
	uint8_t sum = 0;

	bytes[sum_at] = 0;
	for (size_t i = 0; i < len; i++)
		sum += bytes[i];
	bytes[sum_at] = (uint8_t)-sum;
}

/* dmidecode wants the structures at offset 0x20 and the entry point to say so. */
static void dump_smbios(struct tables_machine *m)
{
	uint8_t entry[0x20] = {0};
	uint64_t gpa, len;

	memcpy(entry, tables_machine_at(m, m->layout.smbios, 0x1f), 0x1f);
	gpa = le(entry + 0x18, 4);
	len = le(entry + 0x16, 2);
	memcpy(entry + 0x18, (const uint8_t[]){0x20, 0, 0, 0}, 4);
	fix_checksum(entry + 0x10, 0x0f, 0x05);
	fix_checksum(entry, 0x1f, 4);
	write_file("smbios2.bin", entry, sizeof(entry), tables_machine_at(m, gpa, len), len);

	memset(entry, 0, sizeof(entry));
	memcpy(entry, tables_machine_at(m, m->layout.smbios3, 0x18), 0x18);
	gpa = le(entry + 0x10, 8);
	len = le(entry + 0x0c, 4);
	memcpy(entry + 0x10, (const uint8_t[]){0x20, 0, 0, 0, 0, 0, 0, 0}, 8);
	fix_checksum(entry, 0x18, 5);
	write_file("smbios3.bin", entry, sizeof(entry), tables_machine_at(m, gpa, len), len);
}

int main(int argc, char **argv)
{
	struct tables_machine *m;
	struct topology t;
	struct error err = {0};
	uint64_t memory;

	if (argc < 6 || size_parse(argv[5], &memory, &err)) {
		fprintf(stderr, "usage: tables_dump DIRECTORY SOCKETS CORES THREADS MEMORY "
				"[KEY=VALUE ...]\n");
		return 1;
	}
	directory = argv[1];
	t.sockets = (unsigned)atoi(argv[2]);
	t.cores = (unsigned)atoi(argv[3]);
	t.threads = (unsigned)atoi(argv[4]);
	t.cpus = t.sockets * t.cores * t.threads;
	m = tables_machine_create(t, memory);
	for (int i = 6; i < argc; i++)
		if (config_set_pair(m->vm->config, argv[i], &err))
			goto fail;
	if (tables_compose(m->vm, m->image, &m->layout, &err))
		goto fail;
	dump_acpi(m);
	dump_smbios(m);
	tables_machine_destroy(m);
	return 0;
fail:
	fprintf(stderr, "tables_dump: %s\n", err.text);
	return 1;
}
