/*
 * The DSDT: processors, the PCI root bridge with its windows and interrupt wiring, the ISA bridge and
 * what is behind it, and how to power off.
 *
 * INTx: with the I/O APIC (_PIC was called with 1) each pin has its line among 16-23; with the PIC it goes
 * through one of eight PIRQ registers of the LPC bridge, which link devices program.
 */
#include <stdio.h>

#include "base/config.h"
#include "bus/pci.h"
#include "chipset/hpet.h"
#include "chipset/pm.h"
#include "tables/aml.h"
#include "vmm/vm.h"

#define PIRQS 8
/* ISA IRQs that nothing else uses. */
#define PIRQ_CHOICES (1u << 5 | 1u << 10 | 1u << 11)
#define PIRQRC 0x60 /* and three bytes more, then four at 0x68 */
#define PIRQRC_OFF 0x80

static const char *const pirq_register[PIRQS] = {"PIRA", "PIRB", "PIRC", "PIRD",
						 "PIRE", "PIRF", "PIRG", "PIRH"};

static void put_processors(struct aml *aml, struct vm *vm)
{
	for (unsigned i = 0; i < vm->topology.cpus; i++) {
		char name[5];

		snprintf(name, sizeof(name), "C%03u", i % 1000);
		aml_device(aml, name);
		aml_name(aml, "_HID");
		aml_string(aml, "ACPI0007");
		aml_name_int(aml, "_UID", i);
		aml_end(aml);
	}
}

/* --- the root bridge ------------------------------------------------------------------------------- */

static void put_window(void *arg, const struct pci_window *window)
{
	struct aml *aml = arg;

	switch (window->space) {
	case PCI_SPACE_IO:
		aml_res_io_window(aml, (uint16_t)window->base, (uint16_t)window->last);
		break;
	case PCI_SPACE_MEM32:
		aml_res_mem32_window(aml, (uint32_t)window->base, (uint32_t)window->last);
		break;
	default:
		aml_res_mem64_window(aml, window->base, window->last);
	}
}

static void put_root_resources(struct aml *aml, struct vm *vm, uint8_t bus)
{
	aml_name(aml, "_CRS");
	aml_resources(aml);
	aml_res_bus_window(aml, bus, bus);
	if (bus == 0) {
		aml_res_io(aml, 0xcf8, 8);
		aml_res_io_window(aml, 0x0000, 0x0cf7);
		aml_res_mem32_window(aml, 0x000a0000, 0x000bffff);
	}
	pci_windows(vm->pci, bus, put_window, aml);
	aml_end(aml);
}

/* Rows of (address, pin, link or 0, index or GSI), ACPI 6.3 section 6.2.13. */
static void put_routes(struct aml *aml, const char *name, bool by_link)
{
	aml_name(aml, name);
	aml_package(aml, PCI_SLOTS * 4);
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
		for (unsigned pin = 0; pin < 4; pin++) {
			unsigned wire = pci_intx_wire(slot, pin + 1);
			char link[5] = {'L', 'N', 'K', (char)('A' + wire)};

			aml_package(aml, 4);
			aml_int(aml, slot << 16 | 0xffff);
			aml_int(aml, pin);
			if (by_link)
				aml_path(aml, link);
			else
				aml_int(aml, 0);
			aml_int(aml, by_link ? 0 : PCI_INTX_GSI_BASE + wire);
			aml_end(aml);
		}
	}
	aml_end(aml);
}

static void put_routing(struct aml *aml, bool links)
{
	put_routes(aml, "APRT", false);
	if (links)
		put_routes(aml, "PPRT", true);
	aml_method(aml, "_PRT", 0, false);
	if (links) {
		aml_if(aml);
		aml_path(aml, "PICM");
		aml_op(aml, AML_RETURN);
		aml_path(aml, "APRT");
		aml_end(aml);
	}
	aml_op(aml, AML_RETURN);
	aml_path(aml, links ? "PPRT" : "APRT");
	aml_end(aml);
}

/* --- interrupt links ------------------------------------------------------------------------------- */

static void put_link_resources(struct aml *aml, const char *name, uint16_t irqs)
{
	aml_name(aml, name);
	aml_resources(aml);
	aml_res_irq_level(aml, irqs);
	aml_end(aml);
}

static void put_link_methods(struct aml *aml, const char *reg)
{
	aml_method(aml, "_STA", 0, false);
	aml_if(aml);
	aml_op(aml, AML_AND);
	aml_path(aml, reg);
	aml_int(aml, PIRQRC_OFF);
	aml_no_target(aml);
	aml_op(aml, AML_RETURN);
	aml_int(aml, 0x09); /* present and working, not enabled */
	aml_end(aml);
	aml_op(aml, AML_RETURN);
	aml_int(aml, 0x0b);
	aml_end(aml);

	aml_method(aml, "_DIS", 0, false);
	aml_op(aml, AML_STORE);
	aml_int(aml, PIRQRC_OFF);
	aml_path(aml, reg);
	aml_end(aml);

	aml_method(aml, "_CRS", 0, true);
	aml_op(aml, AML_WORD_FIELD);
	aml_path(aml, "BUFC");
	aml_int(aml, 1);
	aml_path(aml, "IRQM");
	aml_op(aml, AML_STORE);
	aml_int(aml, 0);
	aml_path(aml, "IRQM");
	aml_op(aml, AML_AND);
	aml_path(aml, reg);
	aml_int(aml, 0x8f);
	aml_local(aml, 0);
	aml_if(aml);
	aml_op(aml, AML_LLESS);
	aml_local(aml, 0);
	aml_int(aml, 0x10);
	aml_op(aml, AML_SHIFT_LEFT);
	aml_int(aml, 1);
	aml_local(aml, 0);
	aml_path(aml, "IRQM");
	aml_end(aml);
	aml_op(aml, AML_RETURN);
	aml_path(aml, "BUFC");
	aml_end(aml);

	aml_method(aml, "_SRS", 1, true);
	aml_op(aml, AML_WORD_FIELD);
	aml_arg(aml, 0);
	aml_int(aml, 1);
	aml_path(aml, "IRQS");
	aml_op(aml, AML_FIND_SET_RIGHT);
	aml_path(aml, "IRQS");
	aml_local(aml, 0);
	aml_if(aml); /* bits are counted from 1, and 0 means none */
	aml_local(aml, 0);
	aml_op(aml, AML_DECREMENT);
	aml_local(aml, 0);
	aml_op(aml, AML_STORE);
	aml_local(aml, 0);
	aml_path(aml, reg);
	aml_end(aml);
	aml_end(aml);
}

static void put_links(struct aml *aml)
{
	for (unsigned i = 0; i < PIRQS; i++) {
		char name[5] = {'L', 'N', 'K', (char)('A' + i)};
		char reg[32];

		snprintf(reg, sizeof(reg), "\\_SB_.PCI0.ISA_.%s", pirq_register[i]);
		aml_device(aml, name);
		aml_name_eisa(aml, "_HID", "PNP0C0F");
		aml_name_int(aml, "_UID", i + 1);
		put_link_resources(aml, "_PRS", PIRQ_CHOICES);
		put_link_resources(aml, "BUFC", 1u << 5);
		put_link_methods(aml, reg);
		aml_end(aml);
	}
}

/* --- ISA ------------------------------------------------------------------------------------------- */

static void begin_isa_device(struct aml *aml, const char *name, const char *hid)
{
	aml_device(aml, name);
	aml_name_eisa(aml, "_HID", hid);
}

/* With up to two port ranges and one IRQ (none if negative). */
static void put_isa_device(struct aml *aml, const char *name, const char *hid, uint16_t port,
			   uint8_t len, uint16_t port2, int irq)
{
	begin_isa_device(aml, name, hid);
	aml_name(aml, "_CRS");
	aml_resources(aml);
	aml_res_io(aml, port, len);
	if (port2)
		aml_res_io(aml, port2, len);
	if (irq >= 0)
		aml_res_irq_edge(aml, (unsigned)irq);
	aml_end(aml);
	aml_end(aml);
}

static void put_com_ports(struct aml *aml, struct vm *vm)
{
	static const struct {
		uint16_t port;
		uint8_t irq;
	} com[] = {{0x3f8, 4}, {0x2f8, 3}, {0x3e8, 4}, {0x2e8, 3}};

	for (unsigned i = 0; i < 4; i++) {
		char key[] = {'l', 'p', 'c', '.', 'c', 'o', 'm', (char)('1' + i), 0};
		char name[] = {'C', 'O', 'M', (char)('1' + i), 0};

		if (!config_find(vm->config, key))
			continue;
		begin_isa_device(aml, name, "PNP0501");
		aml_name_int(aml, "_UID", i + 1);
		aml_name(aml, "_CRS");
		aml_resources(aml);
		aml_res_io(aml, com[i].port, 8);
		aml_res_irq_edge(aml, com[i].irq);
		aml_end(aml);
		aml_end(aml);
	}
}

/* Ports that belong to no device that has a _HID of its own. */
static void put_system_ports(struct aml *aml)
{
	begin_isa_device(aml, "SIO", "PNP0C02");
	aml_name_int(aml, "_UID", 1);
	aml_name(aml, "_CRS");
	aml_resources(aml);
	aml_res_io(aml, 0x80, 1);
	aml_res_io(aml, 0x92, 1);
	aml_res_io(aml, PM_SMI_PORT, 1);
	aml_res_io(aml, 0x4d0, 2);
	aml_res_io(aml, PM1_EVENT_PORT, 0x10);
	aml_end(aml);
	aml_end(aml);
}

static void put_isa_devices(struct aml *aml, struct vm *vm)
{
	put_isa_device(aml, "PIC", "PNP0000", 0x20, 2, 0xa0, 2);
	put_isa_device(aml, "TIMR", "PNP0100", 0x40, 4, 0, 0);
	put_isa_device(aml, "SPKR", "PNP0800", 0x61, 1, 0, -1);
	put_isa_device(aml, "RTC", "PNP0B00", 0x70, 2, 0, 8);
	put_isa_device(aml, "KBD", "PNP0303", 0x60, 1, 0x64, 1);
	put_com_ports(aml, vm);
	put_system_ports(aml);
}

static void put_isa_bridge(struct aml *aml, struct vm *vm, const struct pci_function *lpc)
{
	aml_device(aml, "ISA");
	if (lpc) {
		aml_name_int(aml, "_ADR", (uint64_t)lpc->addr.slot << 16 | lpc->addr.func);
		aml_pci_region(aml, "LPCR", PIRQRC, 12);
		aml_field(aml, "LPCR");
		for (unsigned i = 0; i < PIRQS; i++) {
			if (i == 4)
				aml_field_unit(aml, NULL, 32);
			aml_field_unit(aml, pirq_register[i], 8);
		}
		aml_end(aml);
	} else {
		aml_name_eisa(aml, "_HID", "PNP0A05"); /* a generic container */
	}
	put_isa_devices(aml, vm);
	aml_end(aml);
}

/* --- the whole ------------------------------------------------------------------------------------- */

static struct pci_function *find_lpc(struct vm *vm)
{
	struct pci_address addr = {0, 0, 0};
	struct pci_function *fn = NULL;

	if (vm->pci)
		fn = pci_function_search(vm->pci, &addr, PCI_CLASS_BRIDGE, PCI_SUBCLASS_ISA);
	return fn && addr.bus == 0 ? fn : NULL;
}

static void put_root_bridge(struct aml *aml, struct vm *vm, uint8_t bus,
			    const struct pci_function *lpc)
{
	char name[5] = "PCI0";

	if (bus)
		snprintf(name, sizeof(name), "PC%02X", bus);
	aml_device(aml, name);
	aml_name_eisa(aml, "_HID", "PNP0A03");
	aml_name_int(aml, "_UID", bus);
	aml_name_int(aml, "_BBN", bus);
	aml_name_int(aml, "_SEG", 0);
	put_root_resources(aml, vm, bus);
	put_routing(aml, lpc != NULL);
	if (bus == 0)
		put_isa_bridge(aml, vm, lpc);
	aml_end(aml);
}

static void put_root_bridges(struct aml *aml, struct vm *vm)
{
	const struct pci_function *lpc = find_lpc(vm);
	struct pci_address addr = {1, 0, 0};

	put_root_bridge(aml, vm, 0, lpc);
	/* Each further bus with a function on it is one of its own. */
	while (pci_function_search(vm->pci, &addr, -1, -1)) {
		put_root_bridge(aml, vm, addr.bus, lpc);
		if (addr.bus == PCI_BUSES - 1)
			break;
		addr = (struct pci_address){(uint8_t)(addr.bus + 1), 0, 0};
	}
	if (lpc)
		put_links(aml);

	aml_device(aml, "MBRD");
	aml_name_eisa(aml, "_HID", "PNP0C02");
	aml_name_int(aml, "_UID", 2);
	aml_name(aml, "_CRS");
	aml_resources(aml);
	aml_res_mem32(aml, PCI_ECAM_BASE, PCI_ECAM_SIZE);
	aml_end(aml);
	aml_end(aml);
}

static void put_hpet(struct aml *aml)
{
	aml_device(aml, "HPET");
	aml_name_eisa(aml, "_HID", "PNP0103");
	aml_name_int(aml, "_UID", 0);
	aml_name(aml, "_CRS");
	aml_resources(aml);
	aml_res_mem32(aml, HPET_BASE, HPET_SIZE);
	aml_end(aml);
	aml_end(aml);
}

void dsdt_build(struct vm *vm, struct image *image)
{
	struct aml aml = {.out = image};

	aml_name_int(&aml, "PICM", 0);
	aml_method(&aml, "_PIC", 1, false);
	aml_op(&aml, AML_STORE);
	aml_arg(&aml, 0);
	aml_path(&aml, "PICM");
	aml_end(&aml);

	aml_name(&aml, "_S5");
	aml_package(&aml, 4);
	aml_int(&aml, PM_SLP_TYP_S5);
	for (unsigned i = 0; i < 3; i++)
		aml_int(&aml, 0);
	aml_end(&aml);

	aml_scope(&aml, "\\_SB");
	put_processors(&aml, vm);
	if (vm->pci)
		put_root_bridges(&aml, vm);
	else
		put_isa_devices(&aml, vm);
	put_hpet(&aml);
	aml_end(&aml);
}
