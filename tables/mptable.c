/*
 * The MP table, revision 1.4, for operating systems that do not know ACPI (MultiProcessor Specification
 * 1.4, chapter 4), with bhyve's identification. Virtual wire mode: the PIC reaches the processors by LINT0
 * and by pin 0 of the I/O APIC; there is no IMCR.
 */
#include "bus/pci.h"
#include "chipset/ioapic.h"
#include "chipset/pm.h"
#include "tables/image.h"
#include "vmm/vm.h"

#define BUS_PCI 0
#define BUS_ISA 1
#define LAPIC_BASE 0xfee00000u
#define LAPIC_VERSION 0x14
#define APIC_ID_ALL 0xff

enum { ENTRY_PROCESSOR, ENTRY_BUS, ENTRY_IOAPIC, ENTRY_IO_INT, ENTRY_LOCAL_INT };
enum { INT_VECTORED, INT_NMI, INT_SMI, INT_EXTINT };

/* Polarity and trigger mode, table 4-10. */
#define CONFORMS 0x0
#define LEVEL_LOW 0xf

static void put_floating_pointer(struct image *image)
{
	size_t at = image->len;

	image_bytes(image, "_MP_", 4);
	image_u32(image, image->gpa + 16);
	image_u8(image, 1); /* length in paragraphs */
	image_u8(image, 4); /* revision 1.4 */
	image_u8(image, 0); /* checksum */
	image_zeros(image, 5);
	image_checksum(image, at, 16, at + 10);
}

static void put_header(struct image *image)
{
	image_bytes(image, "PCMP", 4);
	image_u16(image, 0); /* length */
	image_u8(image, 4);  /* revision 1.4 */
	image_u8(image, 0);  /* checksum */
	image_text(image, "BHyVe", 8);
	image_text(image, "Hypervisor", 12);
	image_u32(image, 0); /* OEM table */
	image_u16(image, 0);
	image_u16(image, 0); /* number of entries */
	image_u32(image, LAPIC_BASE);
	image_u16(image, 0); /* extended entries */
	image_u8(image, 0);
	image_u8(image, 0);
}

static unsigned put_processors(struct image *image, struct vm *vm)
{
	for (unsigned i = 0; i < vm->topology.cpus; i++) {
		const struct cpuid_leaf *leaf = cpuid_find(&vm->cpuid, 1, 0);

		image_u8(image, ENTRY_PROCESSOR);
		image_u8(image, (uint8_t)topology_apic_id(&vm->topology, i));
		image_u8(image, LAPIC_VERSION);
		image_u8(image, i == 0 ? 0x3 : 0x1); /* enabled, bootstrap */
		image_u32(image, leaf ? leaf->regs.eax & 0xfff : 0);
		image_u32(image, leaf ? leaf->regs.edx : 0);
		image_zeros(image, 8);
	}
	return vm->topology.cpus;
}

static unsigned put_buses(struct image *image)
{
	image_u8(image, ENTRY_BUS);
	image_u8(image, BUS_PCI);
	image_text(image, "PCI", 6);
	image_u8(image, ENTRY_BUS);
	image_u8(image, BUS_ISA);
	image_text(image, "ISA", 6);
	return 2;
}

static unsigned put_ioapic(struct image *image)
{
	image_u8(image, ENTRY_IOAPIC);
	image_u8(image, IOAPIC_ID);
	image_u8(image, IOAPIC_VERSION);
	image_u8(image, 1); /* enabled */
	image_u32(image, IOAPIC_BASE);
	return 1;
}

static unsigned put_interrupt(struct image *image, uint8_t entry, uint8_t type, uint16_t flags,
			      uint8_t bus, uint8_t source, uint8_t apic, uint8_t pin)
{
	image_u8(image, entry);
	image_u8(image, type);
	image_u16(image, flags);
	image_u8(image, bus);
	image_u8(image, source);
	image_u8(image, apic);
	image_u8(image, pin);
	return 1;
}

static unsigned put_isa_interrupts(struct image *image)
{
	unsigned n = 0;

	for (uint8_t pin = 0; pin < 16; pin++) {
		/* Pin 0 is the PIC's output; the timer, IRQ 0, is at pin 2, where the PIC's cascade would be. */
		uint8_t type = pin == 0 ? INT_EXTINT : INT_VECTORED;
		uint16_t flags = pin == PM_SCI_IRQ ? LEVEL_LOW : CONFORMS;

		n += put_interrupt(image, ENTRY_IO_INT, type, flags, BUS_ISA, pin == 2 ? 0 : pin,
				   IOAPIC_ID, pin);
	}
	return n;
}

static unsigned put_pci_interrupts(struct image *image)
{
	unsigned n = 0;

	for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
		for (unsigned pin = 1; pin <= 4; pin++)
			n += put_interrupt(image, ENTRY_IO_INT, INT_VECTORED, LEVEL_LOW, BUS_PCI,
					   (uint8_t)(slot << 2 | (pin - 1)), IOAPIC_ID,
					   (uint8_t)(PCI_INTX_GSI_BASE + pci_intx_wire(slot, pin)));
	return n;
}

void mptable_build(struct vm *vm, struct image *image)
{
	unsigned entries = 0;
	size_t header;

	put_floating_pointer(image);
	header = image->len;
	put_header(image);
	entries += put_processors(image, vm);
	entries += put_buses(image);
	entries += put_ioapic(image);
	entries += put_isa_interrupts(image);
	if (vm->pci)
		entries += put_pci_interrupts(image);
	entries += put_interrupt(image, ENTRY_LOCAL_INT, INT_EXTINT, CONFORMS, BUS_ISA, 0,
				 APIC_ID_ALL, 0);
	entries += put_interrupt(image, ENTRY_LOCAL_INT, INT_NMI, CONFORMS, BUS_ISA, 0, APIC_ID_ALL,
				 1);
	image_set16(image, header + 4, (uint16_t)(image->len - header));
	image_set16(image, header + 34, (uint16_t)entries);
	image_checksum(image, header, image->len - header, header + 7);
}
