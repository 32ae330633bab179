/* The tables of the firmware: sums, lengths, and that they say what the machine is. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bus/pci.h"
#include "tables/aml.h"
#include "tests/unit/tables_machine.h"

#define GIB (1ull << 30)

static struct tables_machine *machine(unsigned sockets, unsigned cores, unsigned threads,
				      uint64_t memory)
{
	struct topology t = {sockets * cores * threads, sockets, cores, threads};

	return tables_machine_create(t, memory);
}

static void compose(struct tables_machine *m)
{
	struct error err = {0};

	if (tables_compose(m->vm, m->image, &m->layout, &err))
		fail_msg("%s", err.text);
}

static void compose_fails(struct tables_machine *m, int rc, const char *words)
{
	struct error err = {0};

	assert_int_equal(tables_compose(m->vm, m->image, &m->layout, &err), rc);
	if (!strstr(err.text, words))
		fail_msg("\"%s\" does not say \"%s\"", err.text, words);
}

static void assert_sum(const uint8_t *bytes, size_t len)
{
	uint8_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum += bytes[i];
	assert_int_equal(sum, 0);
}

/* --- MP table -------------------------------------------------------------------------------------- */

/* Walks all entries; returns how many there are of a type and the n-th in *nth. */
static unsigned mp_entries(struct tables_machine *m, uint8_t type, unsigned n, const uint8_t **nth)
{
	const uint8_t *mp = tables_machine_at(m, m->layout.mptable, 16);
	const uint8_t *header = tables_machine_at(m, le(mp + 4, 4), 44);
	size_t at = 44, len = le(header + 4, 2);
	unsigned found = 0, entries = 0;

	assert_memory_equal(mp, "_MP_", 4);
	assert_sum(mp, 16);
	assert_int_equal(mp[9], 4);
	assert_memory_equal(header, "PCMP", 4);
	assert_memory_equal(header + 8, "BHyVe   Hypervisor  ", 20);
	assert_sum(header, len);
	for (; at < len; entries++) {
		if (header[at] == type && found++ == n && nth)
			*nth = header + at;
		at += header[at] == 0 ? 20 : 8;
	}
	assert_int_equal(at, len);
	assert_int_equal(entries, le(header + 34, 2));
	return found;
}

static void mp_table(void **state)
{
	struct tables_machine *m = machine(1, 1, 1, 128 << 20);
	const uint8_t *cpu = NULL;

	(void)state;
	for (unsigned cpus = 1; cpus <= VCPUS_MAX; cpus++) {
		const uint8_t *entry = NULL;

		m->vm->topology = (struct topology){cpus, cpus, 1, 1};
		compose(m);
		assert_int_equal(mp_entries(m, 0, cpus - 1, &entry), cpus);
		assert_int_equal(entry[1], cpus - 1);
		assert_int_equal(entry[3], cpus == 1 ? 3 : 1);
		assert_int_equal(mp_entries(m, 2, 0, NULL), 1);
		assert_int_equal(mp_entries(m, 3, 0, &entry), 16 + 128);
		assert_memory_equal(entry, ((uint8_t[]){3, 3, 0, 0, 1, 0, 0, 0}), 8); /* ExtINT */
		mp_entries(m, 3, 2, &entry);
		assert_memory_equal(entry, ((uint8_t[]){3, 0, 0, 0, 1, 0, 0, 2}), 8); /* IRQ 0 */
		mp_entries(m, 3, 9, &entry);
		assert_memory_equal(entry, ((uint8_t[]){3, 0, 0xf, 0, 1, 9, 0, 9}), 8); /* SCI */
		mp_entries(m, 3, 16 + 5, &entry); /* slot 1, INTB */
		assert_memory_equal(entry, ((uint8_t[]){3, 0, 0xf, 0, 0, 5, 0, 18}), 8);
		assert_int_equal(mp_entries(m, 4, 1, &entry), 2);
		assert_memory_equal(entry, ((uint8_t[]){4, 1, 0, 0, 1, 0, 0xff, 1}), 8); /* NMI */
	}
	m->vm->topology = (struct topology){6, 2, 3, 1}; /* two bits for three cores: no id 3 */
	compose(m);
	mp_entries(m, 0, 3, &cpu);
	assert_int_equal(cpu[1], 4);
	tables_machine_destroy(m);
}

static void mp_table_can_be_left_out(void **state)
{
	struct tables_machine *m = machine(1, 1, 1, GIB);

	(void)state;
	tables_machine_set(m, "x86.mptable", "false");
	compose(m);
	assert_int_equal(m->layout.mptable, 0);
	assert_int_not_equal(m->layout.rsdp, 0);
	for (unsigned i = 0; i < 0x1000; i++)
		assert_int_equal(m->image[i], 0);
	tables_machine_set(m, "x86.mptable", "maybe");
	compose_fails(m, -EINVAL, "x86.mptable");
	tables_machine_destroy(m);
}

/* --- SMBIOS ---------------------------------------------------------------------------------------- */

/* As mp_entries(); also checks both entry points. */
static unsigned smbios_find(struct tables_machine *m, uint8_t type, unsigned n, const uint8_t **nth)
{
	const uint8_t *sm = tables_machine_at(m, m->layout.smbios, 0x1f);
	const uint8_t *sm3 = tables_machine_at(m, m->layout.smbios3, 0x18);
	size_t len = le(sm + 0x16, 2), at = 0, largest = 0;
	const uint8_t *table = tables_machine_at(m, le(sm + 0x18, 4), len);
	unsigned found = 0, count = 0;

	assert_memory_equal(sm, "_SM_", 4);
	assert_sum(sm, 0x1f);
	assert_sum(sm + 0x10, 0x0f);
	assert_memory_equal(sm3, "_SM3_", 5);
	assert_sum(sm3, 0x18);
	assert_int_equal(le(sm3 + 0x0c, 4), len);
	assert_int_equal(le(sm3 + 0x10, 8), le(sm + 0x18, 4));
	while (at < len) {
		size_t start = at;

		if (table[at] == type && found++ == n && nth)
			*nth = table + at;
		for (at += table[at + 1]; table[at] || table[at + 1]; at++)
			assert_in_range(at, 0, len - 2);
		at += 2;
		largest = at - start > largest ? at - start : largest;
		count++;
		if (table[start] == 127)
			break;
	}
	assert_int_equal(at, len);
	assert_int_equal(count, le(sm + 0x1c, 2));
	assert_int_equal(largest, le(sm + 8, 2));
	return found;
}

static const char *smbios_text(const uint8_t *structure, unsigned at)
{
	const char *text = (const char *)structure + structure[1];

	assert_int_not_equal(structure[at], 0);
	for (unsigned n = structure[at]; n > 1; n--)
		text += strlen(text) + 1;
	return text;
}

static void smbios_topology(void **state)
{
	static const uint8_t shapes[][3] = {{1, 1, 1},	{64, 1, 1}, {1, 64, 1},
					    {1, 32, 2}, {2, 4, 2},  {3, 5, 1}};

	(void)state;
	for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
		const uint8_t *s = shapes[i], *cpu = NULL;
		struct tables_machine *m = machine(s[0], s[1], s[2], GIB);

		compose(m);
		assert_int_equal(smbios_find(m, 4, s[0] - 1u, &cpu), s[0]);
		assert_int_equal(cpu[0x23], s[1]);
		assert_int_equal(cpu[0x25], s[1] * s[2]);
		assert_int_equal(le(cpu + 0x2a, 2), s[1]);
		assert_int_equal(le(cpu + 0x2e, 2), s[1] * s[2]);
		assert_int_equal(le(cpu + 8, 8), 0x178bfbff00a20f10);
		assert_int_equal(le(cpu + 0x16, 2), 2500);
		tables_machine_destroy(m);
	}
}

static void smbios_memory(void **state)
{
	static const struct {
		uint64_t size;
		uint16_t mib;
		uint32_t extended;
	} sizes[] = {
		{128ull << 20, 128, 0},
		{3 * GIB, 3072, 0},
		{32 * GIB - (2 << 20), 0x7ffe, 0},
		{32 * GIB - (1 << 20), 0x7fff, 0x7fff},
		{1024 * GIB, 0x7fff, 1 << 20},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct tables_machine *m = machine(1, 1, 1, sizes[i].size);
		const struct memory *mem = &m->vm->memory;
		const uint8_t *s = NULL;

		compose(m);
		assert_int_equal(smbios_find(m, 17, 0, &s), 1);
		assert_int_equal(le(s + 0x0c, 2), sizes[i].mib);
		assert_int_equal(le(s + 0x1c, 4), sizes[i].extended);
		assert_int_equal(smbios_find(m, 16, 0, &s), 1);
		assert_int_equal(le(s + 7, 4), sizes[i].size / 1024);
		assert_int_equal(smbios_find(m, 19, 0, &s), mem->high ? 2 : 1);
		assert_int_equal(le(s + 4, 4), 0);
		assert_int_equal(le(s + 8, 4), mem->low / 1024 - 1);
		if (mem->high) {
			smbios_find(m, 19, 1, &s);
			assert_int_equal(le(s + 4, 4), 4 << 20);
			assert_int_equal(le(s + 8, 4), (4 * GIB + mem->high) / 1024 - 1);
		}
		tables_machine_destroy(m);
	}
}

static void smbios_texts(void **state)
{
	struct tables_machine *m = machine(1, 1, 1, GIB);
	const uint8_t *s = NULL;
	char text[66];

	(void)state;
	tables_machine_set(m, "system.product_name", "beehive");
	tables_machine_set(m, "chassis.asset_tag", "");
	compose(m);
	smbios_find(m, 1, 0, &s);
	assert_string_equal(smbios_text(s, 4), "FreeBSD");
	assert_string_equal(smbios_text(s, 5), "beehive");
	assert_string_equal(smbios_text(s, 0x1a), "Virtual Machine");
	smbios_find(m, 3, 0, &s);
	assert_int_equal(s[8], 0);
	assert_string_equal(smbios_text(s, 0x15), "None");
	smbios_find(m, 0, 0, &s);
	assert_string_equal(smbios_text(s, 4), "BHYVE");

	memset(text, 'x', 65);
	text[65] = '\0';
	tables_machine_set(m, "board.location", text);
	compose_fails(m, -EINVAL, "board.location");
	tables_machine_set(m, "board.location", text + 1);
	compose(m);
	tables_machine_set(m, "board.location", "bell\a");
	compose_fails(m, -EINVAL, "board.location");
	tables_machine_destroy(m);
}

/* As many sockets and texts as can be asked for: refused or right, never cut. */
static void smbios_overflow(void **state)
{
	static const char *const keys[] = {
		"bios.vendor",		"bios.version",	       "bios.release_date",
		"system.manufacturer",	"system.product_name", "system.version",
		"system.serial_number", "system.sku",	       "system.family_name",
		"board.manufacturer",	"board.product_name",  "board.version",
		"board.serial_number",	"board.asset_tag",     "board.location",
		"chassis.manufacturer", "chassis.version",     "chassis.serial_number",
		"chassis.asset_tag",	"chassis.sku",
	};
	struct tables_machine *m = machine(64, 1, 1, GIB);
	char text[65];

	(void)state;
	memset(text, 'x', 64);
	text[64] = '\0';
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		tables_machine_set(m, keys[i], text);
	compose_fails(m, -ENOSPC, "SMBIOS");
	m->vm->topology = (struct topology){64, 32, 2, 1};
	compose(m);
	assert_int_equal(smbios_find(m, 4, 0, NULL), 32);
	tables_machine_destroy(m);
}

static void smbios_uuid(void **state)
{
	static const uint8_t memory[16] = {0x67, 0x45, 0x3e, 0x12, 0x9b, 0xe8, 0xd3, 0x12,
					   0xa4, 0x56, 0x42, 0x66, 0x14, 0x17, 0x40, 0x00};
	struct tables_machine *m = machine(1, 1, 1, GIB);
	const uint8_t *s = NULL;
	uint8_t first[16];

	(void)state;
	compose(m);
	smbios_find(m, 1, 0, &s);
	memcpy(first, s + 8, 16);
	assert_int_equal(first[7] >> 4, 3);
	assert_int_equal(first[8] >> 6, 2);
	compose(m);
	assert_memory_equal(first, s + 8, 16);
	strcpy(m->vm->name, "other");
	compose(m);
	assert_memory_not_equal(first, s + 8, 16);

	tables_machine_set(m, "uuid", "123E4567-e89b-12d3-a456-426614174000");
	compose(m);
	assert_memory_equal(memory, s + 8, 16);
	tables_machine_set(m, "uuid", "123E4567-e89b-12d3-a456-42661417400");
	compose_fails(m, -EINVAL, "UUID");
	tables_machine_set(m, "uuid", "123E4567-e89b-12d3-a456-42661417400g");
	compose_fails(m, -EINVAL, "UUID");
	tables_machine_destroy(m);
}

/* --- ACPI ------------------------------------------------------------------------------------------ */

/* A table by its signature out of the XSDT; RSDT and XSDT agree. */
static const uint8_t *acpi_find(struct tables_machine *m, const char *signature)
{
	const uint8_t *rsdp = tables_machine_at(m, m->layout.rsdp, 36), *found = NULL;
	const uint8_t *rsdt = tables_machine_at(m, le(rsdp + 16, 4), 36);
	const uint8_t *xsdt = tables_machine_at(m, le(rsdp + 24, 8), 36);
	size_t n = (le(xsdt + 4, 4) - 36) / 8;

	assert_memory_equal(rsdp, "RSD PTR ", 8);
	assert_int_equal(rsdp[15], 2);
	assert_sum(rsdp, 20);
	assert_sum(rsdp, 36);
	assert_memory_equal(rsdt, "RSDT", 4);
	assert_memory_equal(xsdt, "XSDT", 4);
	assert_sum(rsdt, le(rsdt + 4, 4));
	assert_sum(xsdt, le(xsdt + 4, 4));
	assert_int_equal(le(rsdt + 4, 4), 36 + 4 * n);
	for (size_t i = 0; i < n; i++) {
		uint64_t gpa = le(xsdt + 36 + 8 * i, 8);
		const uint8_t *table = tables_machine_at(m, gpa, 36);

		assert_int_equal(gpa, le(rsdt + 36 + 4 * i, 4));
		assert_sum(tables_machine_at(m, gpa, le(table + 4, 4)), le(table + 4, 4));
		assert_true(gpa + le(table + 4, 4) <= m->layout.end);
		if (!memcmp(table, signature, 4))
			found = table;
	}
	return found;
}

static void acpi_fadt(void **state)
{
	struct tables_machine *m = machine(1, 1, 1, GIB);
	const uint8_t *fadt, *facs;

	(void)state;
	compose(m);
	fadt = acpi_find(m, "FACP");
	assert_non_null(fadt);
	assert_int_equal(le(fadt + 4, 4), 276);
	assert_int_equal(fadt[8], 6);
	assert_int_equal(le(fadt + 46, 2), 9);
	assert_int_equal(le(fadt + 48, 4), 0xb2);
	assert_int_equal(fadt[52], 0xa0);
	assert_int_equal(fadt[53], 0xa1);
	assert_int_equal(le(fadt + 56, 4), 0x400);
	assert_int_equal(le(fadt + 64, 4), 0x404);
	assert_int_equal(le(fadt + 76, 4), 0x408);
	assert_int_equal(fadt[108], 0x32);
	assert_int_equal(le(fadt + 109, 2), 0x17); /* ISA, 8042, no VGA, no ASPM */
	assert_int_equal(le(fadt + 112, 4) & (1 << 10 | 1 << 8 | 1 << 4 | 1 << 20),
			 1 << 10 | 1 << 8);
	assert_int_equal(fadt[116], 1);
	assert_int_equal(le(fadt + 120, 8), 0xcf9);
	assert_int_equal(fadt[128], 6);
	facs = tables_machine_at(m, le(fadt + 36, 4), 64);
	assert_memory_equal(facs, "FACS", 4);
	assert_int_equal(le(facs + 4, 4), 64);
	assert_int_equal(le(fadt + 36, 4) % 64, 0);
	assert_int_equal(le(fadt + 132, 8), le(fadt + 36, 4));
	assert_int_equal(le(fadt + 140, 8), le(fadt + 40, 4));
	/* the extended blocks say the same as the old ones */
	assert_int_equal(le(fadt + 148 + 4, 8), 0x400);
	assert_int_equal(le(fadt + 172 + 4, 8), 0x404);
	assert_int_equal(le(fadt + 208 + 4, 8), 0x408);
	assert_int_equal(le(fadt + 220 + 4, 8), le(fadt + 80, 4));
	tables_machine_destroy(m);
}

static void acpi_madt(void **state)
{
	struct tables_machine *m = machine(1, 1, 1, 4 * GIB);

	(void)state;
	for (unsigned cpus = 1; cpus <= VCPUS_MAX; cpus++) {
		const uint8_t *madt;
		size_t at = 44, len;
		unsigned found = 0;

		m->vm->topology = (struct topology){cpus, 1, cpus, 1};
		compose(m);
		madt = acpi_find(m, "APIC");
		assert_non_null(madt);
		len = le(madt + 4, 4);
		assert_int_equal(le(madt + 36, 4), 0xfee00000);
		for (; at < len && madt[at] == 0; at += madt[at + 1], found++)
			assert_memory_equal(madt + at,
					    ((uint8_t[]){0, 8, (uint8_t)found, (uint8_t)found, 1}),
					    5);
		assert_int_equal(found, cpus);
		assert_memory_equal(madt + at,
				    ((uint8_t[]){1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0}), 12);
		at += 12;
		assert_memory_equal(madt + at, ((uint8_t[]){2, 10, 0, 0, 2, 0, 0, 0, 0, 0}), 10);
		at += 10;
		assert_memory_equal(madt + at, ((uint8_t[]){2, 10, 0, 9, 9, 0, 0, 0, 0xf, 0}), 10);
		at += 10;
		assert_memory_equal(madt + at, ((uint8_t[]){4, 6, 0xff, 0, 0, 1}), 6);
		assert_int_equal(at + 6, len);
	}
	m->vm->topology =
		(struct topology){6, 2, 3, 1}; /* a gap in the APIC ids, none in the _UIDs */
	compose(m);
	assert_memory_equal(acpi_find(m, "APIC") + 44 + 3 * 8, ((uint8_t[]){0, 8, 3, 4, 1}), 5);
	tables_machine_destroy(m);
}

static const uint8_t *dsdt_find(struct tables_machine *m, const void *bytes, size_t len)
{
	const uint8_t *fadt = acpi_find(m, "FACP");
	const uint8_t *dsdt = tables_machine_at(m, le(fadt + 40, 4), 36);

	assert_memory_equal(dsdt, "DSDT", 4);
	assert_sum(dsdt, le(dsdt + 4, 4));
	return memmem(dsdt, le(dsdt + 4, 4), bytes, len);
}

static void dsdt_follows_the_machine(void **state)
{
	struct tables_machine *m = machine(1, 2, 1, 6 * GIB);
	/* the 64-bit window: 32 GiB from the first multiple of 32 GiB above RAM */
	static const uint8_t window[] = {0x8a, 43, 0, 0, 0x0c, 1,    0,	   0,	 0,
					 0,    0,  0, 0, 0,    0,    0,	   0,	 0,
					 8,    0,  0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f};

	(void)state;
	tables_machine_set(m, "lpc.com3.path", "null");
	compose(m);
	assert_non_null(dsdt_find(m, "COM1", 4));
	assert_null(dsdt_find(m, "COM2", 4));
	assert_non_null(dsdt_find(m, "COM3", 4));
	assert_non_null(dsdt_find(m, "C001", 4));
	assert_null(dsdt_find(m, "C002", 4));
	assert_non_null(dsdt_find(m, "\x08_ADR\x0c\x00\x00\x1f\x00", 10));
	assert_non_null(dsdt_find(m, window, sizeof(window)));
	assert_null(dsdt_find(m, "PC07", 4));
	tables_machine_add(m, "hostbridge", "7.0.0");
	compose(m);
	assert_int_equal(acpi_find(m, "MCFG")[55], 7);
	tables_machine_add(m, "hostbridge", "255.1.0");
	compose(m);
	assert_int_equal(acpi_find(m, "MCFG")[55], 255);
	assert_non_null(dsdt_find(m, "PC07", 4));
	assert_non_null(dsdt_find(m, "PCFF", 4));
	assert_null(dsdt_find(m, "PC08", 4));
	tables_machine_destroy(m);
}

static void acpi_mcfg_and_hpet(void **state)
{
	struct tables_machine *m = machine(1, 1, 1, GIB);
	const uint8_t *mcfg, *hpet;

	(void)state;
	compose(m);
	mcfg = acpi_find(m, "MCFG");
	assert_non_null(mcfg);
	assert_int_equal(le(mcfg + 44, 8), PCI_ECAM_BASE);
	assert_int_equal(mcfg[54], 0);
	assert_int_equal(mcfg[55], 0);
	/* Memory32Fixed of PNP0C02 */
	assert_non_null(dsdt_find(m, "\x86\x09\x00\x01\x00\x00\x00\xe0\x00\x00\x00\x10", 12));
	hpet = acpi_find(m, "HPET");
	assert_non_null(hpet);
	assert_int_equal(le(hpet + 44, 8), 0xfed00000);
	tables_machine_destroy(m);
}

static void acpi_can_be_left_out(void **state)
{
	struct tables_machine *m = machine(1, 1, 1, GIB);

	(void)state;
	tables_machine_set(m, "acpi_tables", "false");
	compose(m);
	assert_int_equal(m->layout.rsdp, 0);
	assert_int_not_equal(m->layout.smbios, 0);
	tables_machine_destroy(m);
}

/* The largest machine: everything fits, and nothing is written behind the end that is told. */
static void everything_fits(void **state)
{
	struct tables_machine *m = machine(64, 1, 1, 1024 * GIB);

	(void)state;
	for (unsigned i = 1; i <= 4; i++) {
		char key[] = {'l', 'p', 'c', '.', 'c', 'o', 'm', (char)('0' + i), '.', 'p', 0};

		tables_machine_set(m, key, "null");
	}
	memset(m->image, 0xff, sizeof(m->image));
	compose(m);
	assert_in_range(m->layout.end, TABLES_ACPI, TABLES_END);
	for (size_t at = m->layout.end - TABLES_BASE; at < sizeof(m->image); at++)
		assert_int_equal(m->image[at], 0);
	acpi_find(m, "FACP");
	tables_machine_destroy(m);
}

static void build_writes_guest_memory(void **state)
{
	struct tables_machine *m = machine(1, 2, 1, 4 << 20);
	struct memory *mem = &m->vm->memory;
	uint8_t before = 0x5a, after;
	struct tables_layout layout;
	struct error err = {0};
	uint8_t *bytes;

	(void)state;
	assert_int_equal(memory_create(mem, m->vm, 4 << 20, false, false, &err), 0);
	compose(m);
	assert_int_equal(memory_write(mem, m->layout.end, &before, 1), 0);
	assert_int_equal(memory_write(mem, TABLES_BASE - 1, &before, 1), 0);
	if (tables_build(m->vm, &layout, &err))
		fail_msg("%s", err.text);
	assert_memory_equal(&layout, &m->layout, sizeof(layout));
	bytes = malloc(sizeof(m->image));
	assert_non_null(bytes);
	assert_int_equal(memory_read(mem, TABLES_BASE, bytes, layout.end - TABLES_BASE), 0);
	assert_memory_equal(bytes, m->image, layout.end - TABLES_BASE);
	free(bytes);
	/* a boot ROM's copy behind the tables stays */
	assert_int_equal(memory_read(mem, layout.end, &after, 1), 0);
	assert_int_equal(after, before);
	assert_int_equal(memory_read(mem, TABLES_BASE - 1, &after, 1), 0);
	assert_int_equal(after, before);
	memory_destroy(mem);
	tables_machine_destroy(m);
}

/* --- AML ------------------------------------------------------------------------------------------- */

static void aml_lengths(void **state)
{
	static const struct {
		size_t content; /* bytes of the name and the body */
		uint8_t head[4];
		size_t head_len;
	} cases[] = {
		{62, {0x3f}, 1},
		{63, {0x41, 0x04}, 2},
		{4093, {0x4f, 0xff}, 2},
		{4094, {0x81, 0x00, 0x01}, 3},
		{70000, {0x83, 0x17, 0x11}, 3},
	};
	uint8_t *bytes = malloc(1 << 17);

	(void)state;
	assert_non_null(bytes);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct image image = image_make(bytes, 0, 1 << 17);
		struct aml aml = {.out = &image};

		aml_scope(&aml, "_SB"); /* its name is padded to 4 bytes */
		image_zeros(&image, cases[i].content - 4);
		aml_end(&aml);
		assert_false(image.overflow);
		assert_int_equal(image.len, 1 + cases[i].head_len + cases[i].content);
		assert_memory_equal(bytes + 1, cases[i].head, cases[i].head_len);
		assert_memory_equal(bytes + 1 + cases[i].head_len, "_SB_", 4);
	}
	free(bytes);
}

static void aml_terms(void **state)
{
	static const uint8_t want[] = {
		0x08, '_',  'H',  'I',	'D',  0x0c, 0x41, 0xd0, 0x0a, 0x03, /* EisaId ("PNP0A03") */
		0x08, 'A',  '_',  '_',	'_',  0x00,	  /* 0, 1, and each size of constant */
		0x08, 'B',  '_',  '_',	'_',  0x01,	  /* */
		0x08, 'C',  '_',  '_',	'_',  0x0a, 0x02, /* */
		0x08, 'D',  '_',  '_',	'_',  0x0b, 0x00, 0x01,		    /* */
		0x08, 'E',  '_',  '_',	'_',  0x0c, 0x00, 0x00, 0x01, 0x00, /* */
		0x08, 'F',  '_',  '_',	'_',  0x0e, 0,	  0,	0,    0,    1,	 0,   0,
		0,    '\\', 0x2e, '_',	'S',  'B',  '_',  'P',	'C',  'I',  '0', /* \_SB.PCI0 */
		0x2f, 3,    'A',  '_',	'_',  '_',  'B',  '_',	'_',  '_',  'C', '_', '_',
		'_', /* A.B.C */
		0x11, 0x0d, 0x0a, 0x0a, 0x47, 1,    0x60, 0,	0x60, 0,    1,	 1,   0x79,
		0, /* Buffer (10) */
	};
	uint8_t bytes[256];
	struct image image = image_make(bytes, 0, sizeof(bytes));
	struct aml aml = {.out = &image};

	(void)state;
	aml_name_eisa(&aml, "_HID", "PNP0A03");
	aml_name_int(&aml, "A", 0);
	aml_name_int(&aml, "B", 1);
	aml_name_int(&aml, "C", 2);
	aml_name_int(&aml, "D", 0x100);
	aml_name_int(&aml, "E", 0x10000);
	aml_name_int(&aml, "F", 0x100000000);
	aml_path(&aml, "\\_SB.PCI0");
	aml_path(&aml, "A.B.C");
	aml_resources(&aml);
	aml_res_io(&aml, 0x60, 1);
	aml_end(&aml);
	assert_int_equal(image.len, sizeof(want));
	assert_memory_equal(bytes, want, sizeof(want));
}

/* Whatever the room, nothing is written outside of it, and it is told that it was too little. */
static void aml_overflow(void **state)
{
	uint8_t bytes[64];

	(void)state;
	for (size_t cap = 0; cap <= 32; cap++) {
		struct image image = image_make(bytes, 0, cap);
		struct aml aml = {.out = &image};

		memset(bytes, 0xee, sizeof(bytes));
		for (unsigned i = 0; i < AML_DEPTH + 2; i++)
			aml_scope(&aml, "_SB");
		aml_resources(&aml);
		aml_res_io(&aml, 0x60, 1);
		for (unsigned i = 0; i < AML_DEPTH + 3; i++)
			aml_end(&aml);
		assert_true(image.overflow);
		for (size_t i = cap; i < sizeof(bytes); i++)
			assert_int_equal(bytes[i], 0xee);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mp_table),	      cmocka_unit_test(mp_table_can_be_left_out),
		cmocka_unit_test(smbios_topology),    cmocka_unit_test(smbios_memory),
		cmocka_unit_test(smbios_texts),	      cmocka_unit_test(smbios_overflow),
		cmocka_unit_test(smbios_uuid),	      cmocka_unit_test(acpi_fadt),
		cmocka_unit_test(acpi_madt),	      cmocka_unit_test(dsdt_follows_the_machine),
		cmocka_unit_test(acpi_mcfg_and_hpet), cmocka_unit_test(acpi_can_be_left_out),
		cmocka_unit_test(everything_fits),    cmocka_unit_test(build_writes_guest_memory),
		cmocka_unit_test(aml_lengths),	      cmocka_unit_test(aml_terms),
		cmocka_unit_test(aml_overflow),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
