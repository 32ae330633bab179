/*
 * The LPC bridge: PCI function 0 of Intel's 82371SB (PIIX3), 8086:7000, class 06/01, behind which the ISA
 * devices of the chipset and those of -l live. Of its registers: PIRQRC[A:D] at 60h-63h (290550 section
 * 2.2.2), and four more of the same kind, PIRQ E to H, at 68h-6Bh, as Intel's later bridges have them.
 * Left out: ISA timing, DMA, NMI, SMM and APIC base registers; they read as zeros.
 *
 * There is one in a machine, on bus 0. pcireg.* replaces its ids.
 */
#include <errno.h>

#include "bus/pci.h"
#include "vmm/device.h"
#include "vmm/vm.h"

#define PIRQRC_A 0x60
#define PIRQRC_E 0x68
#define PIRQRC_OFF 0x80 /* bit 7: not routed; bits 3:0: the ISA IRQ */
#define PIRQRC_BITS 0x8f

struct lpc_state {
	uint8_t config[PCI_CONFIG_SIZE];
};

struct lpc {
	struct device device;
	struct lpc_state state;
	struct pci_function fn;
};

static const struct device_class lpc_class;

/* The interrupts that may be chosen; the others are reserved (290550 section 2.2.2). */
#define PIRQRC_IRQS 0xdef8u

/* The INTx wires drive the ISA interrupts that the registers name. */
static void lpc_route(struct lpc *lpc)
{
	for (unsigned wire = 0; wire < PCI_WIRES; wire++) {
		uint8_t reg = pci_get8(&lpc->fn, (wire < 4 ? PIRQRC_A : PIRQRC_E - 4) + wire);
		unsigned irq = reg & 15;

		pci_wire_route(lpc->device.vm->pci, wire,
			       !(reg & PIRQRC_OFF) && (PIRQRC_IRQS >> irq & 1) ? irq : 0);
	}
}

static void lpc_config_written(struct pci_function *fn, unsigned offset, unsigned size,
			       uint32_t old)
{
	(void)size;
	(void)old;
	if (offset >= PIRQRC_A && offset < PIRQRC_E + 4)
		lpc_route((struct lpc *)fn->device);
}

static const struct pci_function_ops lpc_ops = {.write = lpc_config_written};

static void lpc_reset(struct device *device)
{
	pci_function_reset(&((struct lpc *)device)->fn);
	lpc_route((struct lpc *)device);
}

static void lpc_resume(struct device *device)
{
	pci_function_resume(&((struct lpc *)device)->fn);
	lpc_route((struct lpc *)device);
}

static void lpc_destroy(struct device *device)
{
	struct lpc *lpc = (struct lpc *)device;

	for (unsigned wire = 0; wire < PCI_WIRES && lpc->fn.added; wire++)
		pci_wire_route(device->vm->pci, wire, 0);
	pci_function_del(&lpc->fn);
	pci_function_destroy(&lpc->fn);
	device_free(device);
}

static void lpc_set_registers(struct pci_function *fn)
{
	pci_set16(fn, PCI_VENDOR_ID, 0x8086);
	pci_set16(fn, PCI_DEVICE_ID, 0x7000);
	pci_set_class(fn, PCI_CLASS_BRIDGE, PCI_SUBCLASS_ISA, 0);
	for (unsigned i = 0; i < 4; i++) {
		pci_set8(fn, PIRQRC_A + i, PIRQRC_OFF);
		pci_set8(fn, PIRQRC_E + i, PIRQRC_OFF);
		pci_set_writable(fn, PIRQRC_A + i, 1, PIRQRC_BITS);
		pci_set_writable(fn, PIRQRC_E + i, 1, PIRQRC_BITS);
	}
}

static int lpc_create(struct vm *vm, struct config *config, struct device **out, struct error *err)
{
	struct pci_address addr;
	struct lpc *lpc;
	int rc = pci_address_read(config, &addr, err);

	if (rc)
		return rc;
	if (addr.bus != 0)
		return error_set(err, EINVAL, "lpc in slot %u of bus %u: it has to be on bus 0",
				 addr.slot, addr.bus);
	for (struct device *other = vm->devices; other; other = other->next)
		if (other->cls == &lpc_class)
			return error_set(
				err, EEXIST,
				"lpc in slot %u: there is one already (%s), and a machine has "
				"one only",
				addr.slot, other->name);
	lpc = device_alloc(&lpc_class, vm, sizeof(*lpc), "pci.%u.%u.%u", addr.bus, addr.slot,
			   addr.func);
	if (!lpc)
		return error_set(err, ENOMEM, "out of memory");
	rc = config_check_names(config, "device pcireg", err);
	if (!rc)
		rc = pci_function_init(&lpc->fn, &lpc->device, addr, &lpc_ops, lpc->state.config,
				       sizeof(lpc->state.config), err);
	if (rc)
		goto fail;
	lpc_set_registers(&lpc->fn);
	rc = pci_set_ids_from(&lpc->fn, config, err);
	if (!rc)
		rc = pci_function_add(&lpc->fn, err);
	if (rc)
		goto fail;
	pci_function_reset(&lpc->fn);
	*out = &lpc->device;
	return 0;
fail:
	lpc_destroy(&lpc->device);
	return rc;
}

static const struct state_field lpc_fields[] = {
	STATE_ARRAY(struct lpc_state, config),
};

static const struct state_table lpc_table =
	STATE_TABLE("lpc", struct lpc_state, lpc_fields, 1, NULL);

static const struct device_class lpc_class = {
	.name = "lpc",
	.help = "lpc: PCI-ISA bridge, the parent of what -l adds (one, on bus 0)",
	.kind = DEVICE_PCI,
	.create = lpc_create,
	.destroy = lpc_destroy,
	.reset = lpc_reset,
	.resume = lpc_resume,
	.table = &lpc_table,
	.state_offset = offsetof(struct lpc, state),
};
DEVICE_REGISTER(lpc_class);
