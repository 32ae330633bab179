/*
 * SMBIOS (DSP0134 3.0): types 0, 1, 2, 3, 4, 16, 17, 19, 32 and 127, found by a 2.8 entry point and by a
 * 3.0 one. The texts are bhyve's unless keys set others, so that what guests know about bhyve applies.
 */
#include <errno.h>
#include <md5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/config.h"
#include "base/uuid.h"
#include "tables/image.h"
#include "vmm/vm.h"

#define ENTRY3_AT 0x20
#define STRUCTURES_AT 0x40
#define TEXT_MAX 64 /* characters; what DSP0134 before 3.0 allows */
#define TEXTS 8	    /* in one structure */
#define NO_HANDLE 0xfffe
#define MIB (1ull << 20)

enum handle {
	HANDLE_BIOS = 0x0000,
	HANDLE_SYSTEM = 0x0100,
	HANDLE_BOARD = 0x0200,
	HANDLE_CHASSIS = 0x0300,
	HANDLE_PROCESSOR = 0x0400, /* and up, one a socket */
	HANDLE_ARRAY = 0x1000,
	HANDLE_DIMM = 0x1100,
	HANDLE_MAPPED = 0x1300, /* and up, one a range */
	HANDLE_BOOT = 0x2000,
	HANDLE_END = 0x7f00,
};

struct smbios {
	struct image *out;
	struct vm *vm;
	struct error *err;
	int rc; /* the first failure */
	unsigned count;
	size_t largest;
	/* the structure being written */
	size_t start;
	const char *text[TEXTS];
	unsigned ntexts;
};

static void begin(struct smbios *s, uint8_t type, uint16_t handle)
{
	s->start = s->out->len;
	s->ntexts = 0;
	image_u8(s->out, type);
	image_u8(s->out, 0); /* length of the formatted part */
	image_u16(s->out, handle);
}

static void end(struct smbios *s)
{
	image_set8(s->out, s->start + 1, (uint8_t)(s->out->len - s->start));
	for (unsigned i = 0; i < s->ntexts; i++)
		image_bytes(s->out, s->text[i], strlen(s->text[i]) + 1);
	image_zeros(s->out, s->ntexts ? 1 : 2);
	if (s->out->len - s->start > s->largest)
		s->largest = s->out->len - s->start;
	s->count++;
}

/* The number of a text, 0 for an empty one. It is kept until end(). */
static void put_text(struct smbios *s, const char *text)
{
	if (*text && s->ntexts < TEXTS) {
		s->text[s->ntexts++] = text;
		image_u8(s->out, (uint8_t)s->ntexts);
	} else {
		image_u8(s->out, 0);
	}
}

static void put_key(struct smbios *s, const char *key, const char *def)
{
	const char *text = config_get_default(s->vm->config, key, def);
	bool bad = strlen(text) > TEXT_MAX;

	for (const char *p = text; *p; p++)
		bad |= *p < 0x20 || *p > 0x7e;
	if (bad && !s->rc)
		s->rc = error_set(s->err, EINVAL,
				  "%s: up to %d printable ASCII characters are possible", key,
				  TEXT_MAX);
	put_text(s, bad ? def : text);
}

static void put_bios(struct smbios *s)
{
	begin(s, 0, HANDLE_BIOS);
	put_key(s, "bios.vendor", "BHYVE");
	put_key(s, "bios.version", "14.0");
	image_u16(s->out, 0xf000); /* segment */
	put_key(s, "bios.release_date", "10/17/2021");
	image_u8(s->out, 0);	   /* 64 KiB */
	image_u64(s->out, 1 << 7); /* PCI is supported */
	image_u8(s->out, 0x01);	   /* ACPI is supported */
	image_u8(s->out, 0x10);	   /* a virtual machine */
	image_u8(s->out, 0xff);	   /* no BIOS release, no embedded controller */
	image_u8(s->out, 0xff);
	image_u8(s->out, 0xff);
	image_u8(s->out, 0xff);
	end(s);
}

/* The first three fields are little-endian in memory (DSP0134 section 7.2.1). */
static void uuid_to_memory(uint8_t uuid[16])
{
	static const uint8_t from[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
	uint8_t copy[16];

	memcpy(copy, uuid, sizeof(copy));
	for (unsigned i = 0; i < 16; i++)
		uuid[i] = copy[from[i]];
}

/* As bhyve: MD5 of the VM's and the host's name, as it would lie in memory, version 3. */
static void uuid_from_names(const char *name, uint8_t uuid[16])
{
	char host[256] = "";
	MD5_CTX md5;

	gethostname(host, sizeof(host) - 1);
	MD5Init(&md5);
	MD5Update(&md5, (const uint8_t *)name, strlen(name));
	MD5Update(&md5, (const uint8_t *)host, strlen(host));
	MD5Final(uuid, &md5);
	uuid[7] = (uuid[7] & 0x0f) | 0x30;
	uuid[8] = (uuid[8] & 0x3f) | 0x80;
}

static void put_uuid(struct smbios *s)
{
	const char *text = config_get(s->vm->config, "uuid");
	uint8_t uuid[16] = {0};

	if (text) {
		int rc = uuid_parse(text, uuid, s->err);

		if (rc && !s->rc)
			s->rc = rc;
		uuid_to_memory(uuid);
	} else {
		uuid_from_names(s->vm->name, uuid);
	}
	image_bytes(s->out, uuid, sizeof(uuid));
}

static void put_system(struct smbios *s)
{
	begin(s, 1, HANDLE_SYSTEM);
	put_key(s, "system.manufacturer", "FreeBSD");
	put_key(s, "system.product_name", "BHYVE");
	put_key(s, "system.version", "1.0");
	put_key(s, "system.serial_number", "None");
	put_uuid(s);
	image_u8(s->out, 6); /* woken by the power switch */
	put_key(s, "system.sku", "None");
	put_key(s, "system.family_name", "Virtual Machine");
	end(s);
}

static void put_board(struct smbios *s)
{
	begin(s, 2, HANDLE_BOARD);
	put_key(s, "board.manufacturer", "FreeBSD");
	put_key(s, "board.product_name", "BHYVE");
	put_key(s, "board.version", "1.0");
	put_key(s, "board.serial_number", "None");
	put_key(s, "board.asset_tag", "None");
	image_u8(s->out, 0x01); /* a hosting board */
	put_key(s, "board.location", "None");
	image_u16(s->out, HANDLE_CHASSIS);
	image_u8(s->out, 0x0a); /* motherboard */
	image_u8(s->out, 0);	/* contained objects */
	end(s);
}

static void put_chassis(struct smbios *s)
{
	begin(s, 3, HANDLE_CHASSIS);
	put_key(s, "chassis.manufacturer", "FreeBSD");
	image_u8(s->out, 0x01); /* other */
	put_key(s, "chassis.version", "1.0");
	put_key(s, "chassis.serial_number", "None");
	put_key(s, "chassis.asset_tag", "None");
	image_u8(s->out, 3); /* boot-up, power supply and thermal state: safe */
	image_u8(s->out, 3);
	image_u8(s->out, 3);
	image_u8(s->out, 3); /* security: none */
	image_u32(s->out, 0);
	image_u8(s->out, 0); /* height */
	image_u8(s->out, 0); /* power cords */
	image_u8(s->out, 0); /* contained elements and their size */
	image_u8(s->out, 0);
	put_key(s, "chassis.sku", "None");
	end(s);
}

static void put_processor(struct smbios *s, unsigned socket)
{
	const struct topology *t = &s->vm->topology;
	const struct cpuid_leaf *leaf = cpuid_find(&s->vm->cpuid, 1, 0);
	uint64_t mhz = s->vm->tsc_hz / 1000000;
	unsigned threads = t->cores * t->threads;
	char name[16];

	snprintf(name, sizeof(name), "CPU %u", socket);
	begin(s, 4, (uint16_t)(HANDLE_PROCESSOR + socket));
	put_text(s, name);
	image_u8(s->out, 0x03); /* central processor */
	image_u8(s->out, 0x02); /* family: unknown */
	image_u8(s->out, 0);
	image_u32(s->out, leaf ? leaf->regs.eax : 0);
	image_u32(s->out, leaf ? leaf->regs.edx : 0);
	image_u8(s->out, 0);	/* version */
	image_u8(s->out, 0x80); /* voltage: 0.0 V */
	image_u16(s->out, 0);	/* external clock: unknown */
	image_u16(s->out, mhz <= UINT16_MAX ? (uint16_t)mhz : 0);
	image_u16(s->out, mhz <= UINT16_MAX ? (uint16_t)mhz : 0);
	image_u8(s->out, 0x41);	   /* populated, enabled */
	image_u8(s->out, 0x06);	   /* upgrade: none */
	image_u16(s->out, 0xffff); /* caches: not provided */
	image_u16(s->out, 0xffff);
	image_u16(s->out, 0xffff);
	image_u8(s->out, 0); /* serial number, asset tag, part number */
	image_u8(s->out, 0);
	image_u8(s->out, 0);
	image_u8(s->out, (uint8_t)t->cores);
	image_u8(s->out, (uint8_t)t->cores);
	image_u8(s->out, (uint8_t)threads);
	image_u16(s->out, (uint16_t)(1 << 2 | (t->cores > 1) << 3 | (t->threads > 1) << 4));
	image_u16(s->out, 0x02); /* family 2 */
	image_u16(s->out, (uint16_t)t->cores);
	image_u16(s->out, (uint16_t)t->cores);
	image_u16(s->out, (uint16_t)threads);
	end(s);
}

static void put_memory_array(struct smbios *s)
{
	uint64_t kib = s->vm->memory.size / 1024;
	bool large = kib >= 0x80000000u;

	begin(s, 16, HANDLE_ARRAY);
	image_u8(s->out, 0x03); /* on the system board */
	image_u8(s->out, 0x03); /* system memory */
	image_u8(s->out, 0x03); /* no error correction */
	image_u32(s->out, large ? 0x80000000u : (uint32_t)kib);
	image_u16(s->out, NO_HANDLE);
	image_u16(s->out, 1); /* devices */
	image_u64(s->out, large ? s->vm->memory.size : 0);
	end(s);
}

/* All memory as one device. */
static void put_memory_device(struct smbios *s)
{
	uint64_t mib = (s->vm->memory.size + MIB - 1) / MIB;
	bool large = mib >= 0x7fff;

	begin(s, 17, HANDLE_DIMM);
	image_u16(s->out, HANDLE_ARRAY);
	image_u16(s->out, NO_HANDLE);
	image_u16(s->out, 64); /* total width, data width */
	image_u16(s->out, 64);
	image_u16(s->out, large ? 0x7fff : (uint16_t)mib);
	image_u8(s->out, 0x09); /* DIMM */
	image_u8(s->out, 0);	/* of no set */
	put_text(s, "DIMM 0");
	image_u8(s->out, 0);	/* bank */
	image_u8(s->out, 0x07); /* RAM */
	image_u16(s->out, 1 << 2);
	image_u16(s->out, 0);	/* speed: unknown */
	image_zeros(s->out, 4); /* manufacturer, serial number, asset tag, part number */
	image_u8(s->out, 0);	/* rank */
	image_u32(s->out, large ? (uint32_t)mib : 0);
	image_zeros(s->out, 8); /* configured speed; voltages */
	end(s);
}

static void put_mapped_range(struct smbios *s, unsigned n, uint64_t base, uint64_t len)
{
	uint64_t first = base / 1024, last = (base + len) / 1024 - 1;
	bool large = last >= UINT32_MAX;

	begin(s, 19, (uint16_t)(HANDLE_MAPPED + n));
	image_u32(s->out, large ? UINT32_MAX : (uint32_t)first);
	image_u32(s->out, large ? UINT32_MAX : (uint32_t)last);
	image_u16(s->out, HANDLE_ARRAY);
	image_u8(s->out, 1); /* partition width */
	image_u64(s->out, large ? base : 0);
	image_u64(s->out, large ? base + len - 1 : 0);
	end(s);
}

static void put_boot_status(struct smbios *s)
{
	begin(s, 32, HANDLE_BOOT);
	image_zeros(s->out, 6);
	image_u8(s->out, 0); /* no errors */
	end(s);
}

static void put_structures(struct smbios *s)
{
	const struct memory *mem = &s->vm->memory;

	put_bios(s);
	put_system(s);
	put_board(s);
	put_chassis(s);
	for (unsigned i = 0; i < s->vm->topology.sockets; i++)
		put_processor(s, i);
	put_memory_array(s);
	put_memory_device(s);
	put_mapped_range(s, 0, 0, mem->low);
	if (mem->high)
		put_mapped_range(s, 1, MEMORY_HIGH_BASE, mem->high);
	put_boot_status(s);
	begin(s, 127, HANDLE_END);
	end(s);
}

static void set_entry(struct smbios *s, uint32_t table, size_t length)
{
	struct image entry = image_make(s->out->bytes, 0, ENTRY3_AT);

	image_bytes(&entry, "_SM_", 4);
	image_u8(&entry, 0); /* checksum */
	image_u8(&entry, 0x1f);
	image_u8(&entry, 2);
	image_u8(&entry, 8);
	image_u16(&entry, (uint16_t)s->largest);
	image_zeros(&entry, 6); /* entry point revision, formatted area */
	image_bytes(&entry, "_DMI_", 5);
	image_u8(&entry, 0); /* checksum from here on */
	image_u16(&entry, (uint16_t)length);
	image_u32(&entry, table);
	image_u16(&entry, (uint16_t)s->count);
	image_u8(&entry, 0x28);
	image_checksum(&entry, 0x10, 0x0f, 0x15);
	image_checksum(&entry, 0, 0x1f, 4);
}

static void set_entry3(struct smbios *s, uint32_t table, size_t length)
{
	struct image entry = image_make(s->out->bytes + ENTRY3_AT, 0, STRUCTURES_AT - ENTRY3_AT);

	image_bytes(&entry, "_SM3_", 5);
	image_u8(&entry, 0); /* checksum */
	image_u8(&entry, 0x18);
	image_u8(&entry, 3);
	image_u8(&entry, 0);
	image_u8(&entry, 0);
	image_u8(&entry, 1); /* entry point revision */
	image_u8(&entry, 0);
	image_u32(&entry, (uint32_t)length);
	image_u64(&entry, table);
	image_checksum(&entry, 0, 0x18, 5);
}

int smbios_build(struct vm *vm, struct image *image, struct error *err)
{
	struct smbios s = {.out = image, .vm = vm, .err = err};

	image_zeros(image, STRUCTURES_AT);
	put_structures(&s);
	if (s.rc || image->overflow)
		return s.rc;
	set_entry(&s, image->gpa + STRUCTURES_AT, image->len - STRUCTURES_AT);
	set_entry3(&s, image->gpa + STRUCTURES_AT, image->len - STRUCTURES_AT);
	return 0;
}
