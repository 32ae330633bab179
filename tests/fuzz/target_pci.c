/* PCI configuration space: bridges, and a function with every kind of BAR, MSI-X, power and Express capabilities. */
#include "tests/fuzz/virtio.h"

static void set_up(struct machine *m)
{
	char path[128];
	const char *const options[][2] = {{"port.0.path", fuzz_image(m, "disk", 1 << 20, path)},
					  {NULL, NULL}};

	fuzz_device(m, "hostbridge", 0, NULL);
	fuzz_device(m, "lpc", 31, NULL);
	fuzz_device(m, "ahci", 4, options);
	fuzz_device(m, "uart", 5, NULL);
	m->device = fuzz_device(m, "virtio-rnd", FUZZ_SLOT, NULL);
}

/* Any register of any function by ports 0xCF8 and 0xCFC or by ECAM; or one of a function's BARs put somewhere. */
static void operation(struct machine *m, struct input *in)
{
	static const uint8_t slots[8] = {0, 31, 4, 3, 3, 4, 3, 5};
	uint8_t how = take8(in);
	unsigned slot = slots[how & 7], size = 1u << (how >> 3 & 3), reg = take8(in);
	uint64_t ecam = PCI_ECAM_BASE + (slot << 15) + reg;

	if ((how & 0xe0) == 0) {
		static const uint64_t places[8] = {0,	       PCI_MEM32_BASE, 0xfebf0000,
						   0xe0000000, 0xfffff000,     0x2000,
						   0xcf8,      0xc0004000};

		ecam = (ecam & ~0xffull) + PCI_BAR(reg % PCI_BARS);
		fixture_write(m->f, ecam, 4, places[take8(in) & 7] + take16(in));
	} else if (how & 0x20) {
		fixture_out(m->f, 0xcf8, 4, 0x80000000u | slot << 11 | (reg & 0xfc));
		if (how & 0x40)
			fixture_out(m->f, 0xcfc + (reg & 3), size > 4 ? 4 : size, take32(in));
		else
			fixture_in(m->f, 0xcfc + (reg & 3), size > 4 ? 4 : size);
	} else if (how & 0x40) {
		fixture_write(m->f, ecam, size, take64(in));
	} else {
		fixture_read(m->f, ecam, size);
	}
}

const struct target fuzz_target = {set_up, operation, virtio_at_rest};
