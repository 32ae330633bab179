/*
 * The host bridge at 0:0.0: a function of class 06/00 that guests want to see before they believe in configuration
 * mechanism #1 (PCI Local Bus Specification 3.0, section 6.2). It has a PCI Express capability of a root port (PCI Express Base
 * Specification 3.0, section 7.8), by which guests tell that MSI can work. It decodes nothing. Left out: all that a chipset
 * has there of its own, such as registers of the memory map; bus/pci.c is what makes accesses to configuration space.
 *
 * pcireg.vendor, pcireg.device, pcireg.revid, pcireg.subvendor and pcireg.subdevice replace its ids.
 */
#include <errno.h>

#include "bus/pci.h"
#include "vmm/device.h"
#include "vmm/vm.h"

struct hostbridge_state {
	uint8_t config[PCI_CONFIG_SIZE];
};

struct hostbridge {
	struct device device;
	struct hostbridge_state state;
	struct pci_function fn;
};

static const struct device_class hostbridge_class, amd_hostbridge_class;

static void hostbridge_reset(struct device *device)
{
	pci_function_reset(&((struct hostbridge *)device)->fn);
}

static void hostbridge_resume(struct device *device)
{
	pci_function_resume(&((struct hostbridge *)device)->fn);
}

static void hostbridge_destroy(struct device *device)
{
	struct hostbridge *bridge = (struct hostbridge *)device;

	pci_function_del(&bridge->fn);
	pci_function_destroy(&bridge->fn);
	device_free(device);
}

static int bridge_create(const struct device_class *cls, uint16_t vendor, uint16_t id,
			 struct vm *vm, struct config *config, struct device **out,
			 struct error *err)
{
	struct pci_address addr;
	struct hostbridge *bridge;
	int rc = pci_address_read(config, &addr, err);

	if (rc)
		return rc;
	bridge = device_alloc(cls, vm, sizeof(*bridge), "pci.%u.%u.%u", addr.bus, addr.slot,
			      addr.func);
	if (!bridge)
		return error_set(err, ENOMEM, "out of memory");
	rc = config_check_names(config, "device pcireg", err);
	if (!rc)
		rc = pci_function_init(&bridge->fn, &bridge->device, addr, NULL,
				       bridge->state.config, sizeof(bridge->state.config), err);
	if (rc)
		goto fail;
	pci_set16(&bridge->fn, PCI_VENDOR_ID, vendor);
	pci_set16(&bridge->fn, PCI_DEVICE_ID, id);
	pci_set_class(&bridge->fn, PCI_CLASS_BRIDGE, PCI_SUBCLASS_HOST, 0);
	pci_add_express(&bridge->fn, PCI_EXPRESS_ROOT_PORT);
	rc = pci_set_ids_from(&bridge->fn, config, err);
	if (!rc)
		rc = pci_function_add(&bridge->fn, err);
	if (rc)
		goto fail;
	pci_function_reset(&bridge->fn);
	*out = &bridge->device;
	return 0;
fail:
	hostbridge_destroy(&bridge->device);
	return rc;
}

static int hostbridge_create(struct vm *vm, struct config *config, struct device **out,
			     struct error *err)
{
	return bridge_create(&hostbridge_class, 0x1275, 0x1275, vm, config, out, err);
}

static int amd_hostbridge_create(struct vm *vm, struct config *config, struct device **out,
				 struct error *err)
{
	return bridge_create(&amd_hostbridge_class, 0x1022, 0x7432, vm, config, out, err);
}

static const struct state_field hostbridge_fields[] = {
	STATE_ARRAY(struct hostbridge_state, config),
};

static const struct state_table hostbridge_table =
	STATE_TABLE("hostbridge", struct hostbridge_state, hostbridge_fields, 1, NULL);

static const struct device_class hostbridge_class = {
	.name = "hostbridge",
	.help = "hostbridge: PCI host bridge 1275:1275",
	.kind = DEVICE_PCI,
	.create = hostbridge_create,
	.destroy = hostbridge_destroy,
	.reset = hostbridge_reset,
	.resume = hostbridge_resume,
	.table = &hostbridge_table,
	.state_offset = offsetof(struct hostbridge, state),
};
DEVICE_REGISTER(hostbridge_class);

static const struct device_class amd_hostbridge_class = {
	.name = "amd_hostbridge",
	.help = "amd_hostbridge: the same with AMD's ids 1022:7432",
	.kind = DEVICE_PCI,
	.create = amd_hostbridge_create,
	.destroy = hostbridge_destroy,
	.reset = hostbridge_reset,
	.resume = hostbridge_resume,
	.table = &hostbridge_table,
	.state_offset = offsetof(struct hostbridge, state),
};
DEVICE_REGISTER(amd_hostbridge_class);
