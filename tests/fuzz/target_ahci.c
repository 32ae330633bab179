/* AHCI with a disk and a CD drive. */
#include <string.h>

#include "devices/ahci.h"
#include "tests/fuzz/fuzz.h"

#define LISTS 0x10000u
#define FISES 0x20000u
#define TABLES 0x30000u /* 0x1000 a slot, for the first 16 */
#define ABAR 5

static void set_up(struct machine *m)
{
	char disk[128], cd[128];
	const char *const options[][2] = {{"port.0.path", fuzz_image(m, "disk", 1 << 20, disk)},
					  {"port.1.type", "cd"},
					  {"port.1.path", fuzz_image(m, "cd", 1 << 20, cd)},
					  {NULL, NULL}};

	m->device = fuzz_device(m, "ahci", FUZZ_SLOT, options);
}

static void reg(struct machine *m, unsigned port, unsigned offset, uint32_t value)
{
	fixture_write(m->f, fuzz_bar(m, ABAR) + 0x100 + 0x80 * port + offset, 4, value);
}

static void bring_up(struct machine *m, unsigned port)
{
	reg(m, port, 0x00, LISTS + 0x1000 * port);
	reg(m, port, 0x08, FISES + 0x1000 * port);
	reg(m, port, 0x14, UINT32_MAX);
	reg(m, port, 0x18, 0x16);
	reg(m, port, 0x18, 0x17);
}

/* A header, a command FIS with its most telling bytes from the input, up to 3 PRD entries. */
static void command(struct machine *m, struct input *in, unsigned port)
{
	uint8_t shape = take8(in), fis[80] = {0x27, 0x80};
	unsigned slot = shape & 15, prds = shape >> 4 & 3;
	struct {
		uint16_t flags, prds;
		uint32_t count;
		uint64_t table, reserved[2];
	} header = {5, (uint16_t)prds, 0, TABLES + 0x1000 * slot, {0}};

	fis[2] = take8(in);
	for (unsigned i = 3; i < 16; i++)
		fis[i] = shape & 0x40 ? take8(in) : 0;
	if (fis[2] == 0xa0)
		for (unsigned i = 0x40; i < 0x4c; i++)
			fis[i] = take8(in);
	fuzz_poke(m, header.table, fis, sizeof(fis));
	for (unsigned i = 0; i < prds; i++) {
		struct {
			uint64_t address;
			uint32_t reserved, count;
		} prd = {take_address(m, in), 0, take_length(in) - 1};

		fuzz_poke(m, header.table + 0x80 + 16 * i, &prd, sizeof(prd));
	}
	fuzz_poke(m, LISTS + 0x1000 * port + 32 * slot, &header, sizeof(header));
	if (fis[2] == 0x60 || fis[2] == 0x61)
		reg(m, port, 0x34, 1u << slot);
	reg(m, port, 0x38, 1u << slot);
	if (shape & 0x80)
		fuzz_rest(m);
}

static void operation(struct machine *m, struct input *in)
{
	uint8_t op = take8(in);
	unsigned port = op >> 2 & 1;

	switch (op & 3) {
	case 0:
		bring_up(m, port);
		break;
	case 1:
		reg(m, port, (unsigned)take8(in) & 0x3c, take32(in));
		break;
	default:
		command(m, in, port);
	}
}

static bool at_rest(struct machine *m, uint64_t *worked)
{
	struct ahci *ahci = (struct ahci *)m->device;
	bool rest;

	pthread_mutex_lock(&ahci->device.lock);
	rest = !ahci->busy && !ahci->port[0].running && !ahci->port[1].running;
	pthread_mutex_unlock(&ahci->device.lock);
	*worked = fuzz_thread_time(ahci->worker);
	return rest;
}

const struct target fuzz_target = {set_up, operation, at_rest};
