/*
 * ACPI 6.3: RSDP, RSDT, XSDT, FADT, MADT, HPET, MCFG, FACS and DSDT (the body of which dsdt.c writes).
 * Hardware ACPI with fixed registers of the PM block; the power button is a fixed one.
 */
#include "bus/irq.h"
#include "bus/pci.h"
#include "chipset/hpet.h"
#include "chipset/ioapic.h"
#include "chipset/pm.h"
#include "chipset/reset.h"
#include "tables/image.h"
#include "vmm/vm.h"

#define OEM_ID "SKEP"
#define OEM_TABLE "SKEP"
#define OEM_REVISION 1
#define CREATOR "SKEP"
#define CREATOR_REVISION 1

#define LAPIC_BASE 0xfee00000u
#define RESET_VALUE 0x06 /* hard reset */
#define RTC_CENTURY 0x32

#define TABLES_MAX 4

/* Interrupt flags of the MADT, section 5.2.12.5 */
#define CONFORMS 0x0
#define LEVEL_LOW 0xf

enum gas_space { GAS_MEMORY = 0, GAS_IO = 1 };

static size_t table_begin(struct image *image, const char *signature, uint8_t revision)
{
	size_t at;

	image_align(image, 16);
	at = image->len;
	image_bytes(image, signature, 4);
	image_u32(image, 0); /* length */
	image_u8(image, revision);
	image_u8(image, 0); /* checksum */
	image_text(image, OEM_ID, 6);
	image_text(image, OEM_TABLE, 8);
	image_u32(image, OEM_REVISION);
	image_text(image, CREATOR, 4);
	image_u32(image, CREATOR_REVISION);
	return at;
}

static void table_end(struct image *image, size_t at)
{
	image_set32(image, at + 4, (uint32_t)(image->len - at));
	image_checksum(image, at, image->len - at, at + 9);
}

/* A Generic Address Structure. */
static void put_gas(struct image *image, enum gas_space space, unsigned bits, unsigned access,
		    uint64_t address)
{
	image_u8(image, (uint8_t)space);
	image_u8(image, (uint8_t)bits);
	image_u8(image, 0);
	image_u8(image, (uint8_t)access);
	image_u64(image, address);
}

static void put_no_gas(struct image *image)
{
	image_zeros(image, 12);
}

static size_t put_facs(struct image *image)
{
	size_t at;

	image_align(image, 64);
	at = image->len;
	image_bytes(image, "FACS", 4);
	image_u32(image, 64);
	image_zeros(image, 24); /* signature, waking vector, lock, flags, 64-bit waking vector */
	image_u8(image, 2);	/* version */
	image_zeros(image, 31);
	return at;
}

/* A display says whether a guest may look for VGA registers. */
static bool has_display(struct vm *vm)
{
	struct pci_address addr = {0, 0, 0};

	return vm->pci && pci_function_search(vm->pci, &addr, PCI_CLASS_DISPLAY, 0);
}

static void put_fadt_legacy_blocks(struct image *image)
{
	image_u32(image, PM1_EVENT_PORT);
	image_u32(image, 0);
	image_u32(image, PM1_CONTROL_PORT);
	image_u32(image, 0);
	image_u32(image, 0); /* PM2 */
	image_u32(image, PM_TIMER_PORT);
	image_u32(image, PM_GPE0_PORT);
	image_u32(image, 0);
	image_u8(image, 4); /* lengths: PM1 event, */
	image_u8(image, 2); /* PM1 control, */
	image_u8(image, 0); /* PM2 control, */
	image_u8(image, 4); /* timer, */
	image_u8(image, 4); /* GPE0, */
	image_u8(image, 0); /* GPE1 */
	image_u8(image, 0);
}

static void put_fadt_extended_blocks(struct image *image)
{
	put_gas(image, GAS_IO, 32, 2, PM1_EVENT_PORT);
	put_no_gas(image);
	put_gas(image, GAS_IO, 16, 2, PM1_CONTROL_PORT);
	put_no_gas(image);
	put_no_gas(image); /* PM2 */
	put_gas(image, GAS_IO, 32, 3, PM_TIMER_PORT);
	put_gas(image, GAS_IO, 32, 1, PM_GPE0_PORT);
	put_no_gas(image);
	put_no_gas(image); /* sleep control and status: hardware-reduced only */
	put_no_gas(image);
}

static size_t put_fadt(struct image *image, struct vm *vm, uint32_t facs, uint32_t dsdt)
{
	/* WBINVD, C1, no sleep button and RTC wake among the fixed registers, 32-bit PM timer, reset
	 * register, physical destinations (more vCPUs than logical mode could name). */
	const uint32_t flags = 1u << 0 | 1u << 2 | 1u << 5 | 1u << 6 | 1u << 8 | 1u << 10 |
			       1u << 19;
	/* ISA devices, 8042, no ASPM; no VGA unless there is one. */
	uint16_t boot_arch = 1u << 0 | 1u << 1 | 1u << 4;
	size_t at = table_begin(image, "FACP", 6);

	if (!has_display(vm))
		boot_arch |= 1u << 2;
	image_u32(image, facs);
	image_u32(image, dsdt);
	image_u8(image, 0);
	image_u8(image, 0); /* preferred profile: unspecified */
	image_u16(image, PM_SCI_IRQ);
	image_u32(image, PM_SMI_PORT);
	image_u8(image, PM_ACPI_ENABLE);
	image_u8(image, PM_ACPI_DISABLE);
	image_zeros(image, 2); /* S4BIOS, P-state control */
	put_fadt_legacy_blocks(image);
	image_u8(image, 0);	 /* C-state control */
	image_u16(image, 0xfff); /* C2 and C3 are not there: latencies over 100 and 1000 us */
	image_u16(image, 0xfff);
	image_zeros(image, 6); /* flush size and stride, duty cycle */
	image_u8(image, 0);    /* RTC day and month alarms */
	image_u8(image, 0);
	image_u8(image, RTC_CENTURY);
	image_u16(image, boot_arch);
	image_u8(image, 0);
	image_u32(image, flags);
	put_gas(image, GAS_IO, 8, 1, RESET_CONTROL_PORT);
	image_u8(image, RESET_VALUE);
	image_u16(image, 0); /* ARM boot flags */
	image_u8(image, 3);  /* minor version: 6.3 */
	image_u64(image, facs);
	image_u64(image, dsdt);
	put_fadt_extended_blocks(image);
	image_zeros(image, 8); /* hypervisor vendor */
	table_end(image, at);
	return at;
}

static void put_override(struct image *image, uint8_t irq, uint32_t gsi, uint16_t flags)
{
	image_u8(image, 2);
	image_u8(image, 10);
	image_u8(image, 0); /* ISA */
	image_u8(image, irq);
	image_u32(image, gsi);
	image_u16(image, flags);
}

static size_t put_madt(struct image *image, struct vm *vm)
{
	size_t at = table_begin(image, "APIC", 5);

	image_u32(image, LAPIC_BASE);
	image_u32(image, 1); /* there is a PIC pair too */
	for (unsigned i = 0; i < vm->topology.cpus; i++) {
		image_u8(image, 0);
		image_u8(image, 8);
		image_u8(image, (uint8_t)i); /* the _UID in the DSDT */
		image_u8(image, (uint8_t)topology_apic_id(&vm->topology, i));
		image_u32(image, 1); /* enabled */
	}
	image_u8(image, 1);
	image_u8(image, 12);
	image_u8(image, IOAPIC_ID);
	image_u8(image, 0);
	image_u32(image, IOAPIC_BASE);
	image_u32(image, 0); /* first GSI */
	put_override(image, 0, irq_isa_gsi(0), CONFORMS);
	put_override(image, PM_SCI_IRQ, irq_isa_gsi(PM_SCI_IRQ), LEVEL_LOW);
	image_u8(image, 4); /* NMI */
	image_u8(image, 6);
	image_u8(image, 0xff); /* of every processor */
	image_u16(image, CONFORMS);
	image_u8(image, 1); /* LINT1 */
	table_end(image, at);
	return at;
}

static size_t put_hpet(struct image *image)
{
	size_t at = table_begin(image, "HPET", 1);

	image_u32(image, HPET_BLOCK_ID);
	put_gas(image, GAS_MEMORY, 64, 0, HPET_BASE);
	image_u8(image, 0); /* number */
	image_u16(image, HPET_MIN_TICK);
	image_u8(image, 0); /* no page protection */
	table_end(image, at);
	return at;
}

static uint8_t highest_bus(struct vm *vm)
{
	struct pci_address addr = {0, 0, 0};
	uint8_t bus = 0;

	while (pci_function_search(vm->pci, &addr, -1, -1)) {
		bus = addr.bus;
		if (bus == PCI_BUSES - 1)
			break;
		addr = (struct pci_address){(uint8_t)(bus + 1), 0, 0};
	}
	return bus;
}

/* Of the buses that are there: Linux would look for a device in each slot of all that are named, with 64 port accesses a bus. */
static size_t put_mcfg(struct image *image, struct vm *vm)
{
	size_t at = table_begin(image, "MCFG", 1);

	image_zeros(image, 8);
	image_u64(image, PCI_ECAM_BASE);
	image_u16(image, 0); /* segment */
	image_u8(image, 0);
	image_u8(image, highest_bus(vm));
	image_zeros(image, 4);
	table_end(image, at);
	return at;
}

static size_t put_root(struct image *image, const char *signature, const uint32_t *tables,
		       unsigned n, bool wide)
{
	size_t at = table_begin(image, signature, 1);

	for (unsigned i = 0; i < n; i++) {
		if (wide)
			image_u64(image, tables[i]);
		else
			image_u32(image, tables[i]);
	}
	table_end(image, at);
	return at;
}

static void set_rsdp(struct image *image, size_t at, uint32_t rsdt, uint32_t xsdt)
{
	image_set32(image, at + 16, rsdt);
	image_set32(image, at + 20, 36);
	image_set64(image, at + 24, xsdt);
	image_checksum(image, at, 20, at + 8);
	image_checksum(image, at, 36, at + 32);
}

static size_t put_rsdp(struct image *image)
{
	size_t at = image->len;

	image_bytes(image, "RSD PTR ", 8);
	image_u8(image, 0); /* checksum of ACPI 1.0's part */
	image_text(image, OEM_ID, 6);
	image_u8(image, 2); /* revision */
	image_zeros(image, 20);
	return at;
}

void acpi_build(struct vm *vm, struct image *image)
{
	uint32_t tables[TABLES_MAX];
	size_t rsdp = put_rsdp(image), facs, dsdt, rsdt, xsdt;
	unsigned n = 0;

	facs = put_facs(image);
	dsdt = table_begin(image, "DSDT", 2);
	dsdt_build(vm, image);
	table_end(image, dsdt);
	tables[n++] = image->gpa + (uint32_t)put_fadt(image, vm, image->gpa + (uint32_t)facs,
						      image->gpa + (uint32_t)dsdt);
	tables[n++] = image->gpa + (uint32_t)put_madt(image, vm);
	tables[n++] = image->gpa + (uint32_t)put_hpet(image);
	if (vm->pci)
		tables[n++] = image->gpa + (uint32_t)put_mcfg(image, vm);
	rsdt = put_root(image, "RSDT", tables, n, false);
	xsdt = put_root(image, "XSDT", tables, n, true);
	set_rsdp(image, rsdp, image->gpa + (uint32_t)rsdt, image->gpa + (uint32_t)xsdt);
}
