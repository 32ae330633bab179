/*
 * The devices of a PC: the chipset that every one has, then those that the tree names.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "bus/pci.h"
#include "chipset/reset.h"
#include "machine/pc_internal.h"
#include "vmm/device.h"

/* In the order of creation: the interrupt controllers before whoever raises interrupts. */
static const char *const chipset[] = {"ioapic", "pic",	 "pci", "pit", "rtc",
				      "hpet",	"reset", "pm",	"ps2"};

static int create_chipset(struct vm *vm, const char *name, struct config *node, struct error *err)
{
	const struct device_class *cls = device_class_find(DEVICE_CHIPSET, name);
	struct device *device;

	if (cls == NULL)
		return error_set(err, ENODEV, "there is no chipset device '%s'", name);
	return device_create(cls, vm, node, &device, err);
}

static int create_function(struct vm *vm, struct config *node, struct error *err)
{
	const char *name = config_get(node, "device");
	const struct device_class *cls;
	struct device *device;
	char path[64];
	int rc;

	config_path(node, path, sizeof(path));
	if (name == NULL)
		return error_set(err, EINVAL, "%s.device: not set: which device is it?", path);
	cls = device_class_find(DEVICE_PCI, name);
	if (cls == NULL)
		return error_set(err, ENODEV,
				 "%s.device: there is no PCI device '%s'; -s help lists them", path,
				 name);
	rc = device_create(cls, vm, node, &device, err);
	if (rc != 0)
		error_prefix(err, "%s (%s)", path, name);
	return rc;
}

/* pci.BUS.SLOT.FUNCTION */
static int create_functions(struct vm *vm, struct config *node, unsigned depth, struct error *err)
{
	char path[64];
	int rc = 0;

	if (config_is_leaf(node))
		return error_set(err, EINVAL, "%s: PCI devices are pci.BUS.SLOT.FUNCTION.device",
				 config_path(node, path, sizeof(path)));
	if (depth == 3)
		return create_function(vm, node, err);
	for (node = config_first(node); node != NULL && rc == 0; node = config_next(node))
		rc = create_functions(vm, node, depth + 1, err);
	return rc;
}

/* A node, or a leaf that says whether it is there: "lpc.pc-testdev=true". */
static int create_lpc(struct vm *vm, struct config *node, struct error *err)
{
	const char *name = config_name(node);
	const struct device_class *cls = device_class_find(DEVICE_LPC, name);
	bool there = true;
	struct device *device;
	int rc;

	if (strcmp(name, "fwcfg") == 0)
		return 0;
	if (cls == NULL)
		return error_set(err, ENODEV,
				 "lpc.%s: there is no such LPC device; -l help lists them", name);
	rc = config_is_leaf(node) ? config_get_bool(node, NULL, false, &there, err) : 0;
	if (rc == 0 && there)
		rc = device_create(cls, vm, node, &device, err);
	if (rc != 0)
		error_prefix(err, "-l");
	return rc;
}

static int create_lpcs(struct vm *vm, struct config *root, struct error *err)
{
	struct config *lpc = config_find(root, "lpc");
	const char *fwcfg = config_get(root, "lpc.fwcfg");
	int rc = 0;

	if (fwcfg != NULL && strcmp(fwcfg, "bhyve") != 0)
		return error_set(err, ENOTSUP, "-l bootrom: fwcfg=%s: skep has no fw_cfg device",
				 fwcfg);
	if (lpc == NULL)
		return 0;
	for (lpc = config_first(lpc); lpc != NULL && rc == 0; lpc = config_next(lpc))
		rc = create_lpc(vm, lpc, err);
	return rc;
}

/* -b and -g: "bvmcons=true" or bvmcons.path, bvmdebug.port. */
static int create_bvm(struct vm *vm, struct config *root, struct error *err)
{
	struct config *cons = config_find(root, "bvmcons"), *debug = config_find(root, "bvmdebug");
	bool there = cons != NULL;
	uint64_t port = 0;
	int rc = 0;

	if (cons != NULL && config_is_leaf(cons))
		rc = config_get_bool(root, "bvmcons", false, &there, err);
	if (rc == 0 && there)
		rc = create_chipset(vm, "bvmcons", cons, err);
	if (rc != 0) {
		error_prefix(err, "-b");
		return rc;
	}
	rc = config_get_u64(root, "bvmdebug.port", 0, 0, 65535, &port, err);
	if (rc == 0 && port != 0)
		rc = create_chipset(vm, "bvmdebug", debug, err);
	if (rc != 0)
		error_prefix(err, "-g");
	return rc;
}

/* A guest looks at functions 1 to 7 of a slot only if there is a function 0 (PCI Local Bus 3.0, section 3.2.2.3.4). */
static void warn_of_hidden_functions(struct vm *vm)
{
	struct pci_address addr = {0, 0, 0};
	struct pci_function *fn;

	while ((fn = pci_function_search(vm->pci, &addr, -1, -1)) != NULL) {
		if (pci_function_find(vm->pci, (struct pci_address){addr.bus, addr.slot, 0}) ==
		    NULL)
			log_warn(vm->log,
				 "%s (%s): slot %u has no function 0: guests will not see this "
				 "one",
				 fn->device->name, fn->device->cls->name, addr.slot);
		if (!pci_address_next(&addr))
			break;
	}
}

int pc_create_devices(struct pc *pc, struct error *err)
{
	struct vm *vm = pc->vm;
	struct config *pci = config_find(pc->config, "pci");
	int rc = 0;

	for (size_t i = 0; i < sizeof(chipset) / sizeof(chipset[0]) && rc == 0; i++)
		rc = create_chipset(vm, chipset[i], config_find(pc->config, chipset[i]), err);
	if (rc != 0)
		return rc;
	pci_set_reset_control(vm->pci, device_find(vm, "reset"), reset_control_read,
			      reset_control_write);
	if (pci != NULL)
		rc = create_functions(vm, pci, 0, err);
	if (rc == 0)
		warn_of_hidden_functions(vm);
	if (rc == 0)
		rc = create_lpcs(vm, pc->config, err);
	return rc != 0 ? rc : create_bvm(vm, pc->config, err);
}
