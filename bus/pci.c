/*
 * PCI configuration access: mechanism #1 of the PCI Local Bus Specification 3.0 (section 3.2.2.3.2) and
 * the memory-mapped ECAM of the PCI Express Base Specification 3.0 (section 7.2.2), and the bytes behind
 * them. Left out: mechanism #2, special cycles (they are dropped), type 1 headers.
 */
#include "bus/pci.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/device.h"
#include "vmm/vm.h"

#define PORT_BASE 0xcf8
#define PORT_SIZE 8
#define PORT_RESET 1 /* offset of 0xCF9 */
#define PORT_DATA 4  /* offset of 0xCFC */

#define ADDRESS_ENABLE 0x80000000u
#define ADDRESS_BITS 0x80fffffcu

struct pci_slots {
	_Atomic(struct pci_function *) fn[PCI_SLOTS * PCI_FUNCTIONS];
};

struct pci_bus_state {
	uint32_t address;
};

struct pci_bus {
	struct device device;
	struct pci_bus_state state;
	struct io_range ports, ecam;
	struct device *reset;
	uint8_t (*reset_read)(struct device *reset);
	void (*reset_write)(struct device *reset, uint8_t value);
	_Atomic(struct pci_slots *)
		bus[PCI_BUSES]; /* made with the first function, kept to the end */
};

static uint32_t ones(unsigned size)
{
	return size == 4 ? UINT32_MAX : (1u << (8 * size)) - 1;
}

static uint32_t bytes_get(const uint8_t *bytes, unsigned size)
{
	uint32_t value = 0;

	for (unsigned i = 0; i < size; i++)
		value |= (uint32_t)bytes[i] << (8 * i);
	return value;
}

static void bytes_set(uint8_t *bytes, unsigned size, uint32_t value)
{
	for (unsigned i = 0; i < size; i++)
		bytes[i] = (uint8_t)(value >> (8 * i));
}

/* --- functions ------------------------------------------------------------------------------------- */

int pci_address_read(const struct config *node, struct pci_address *addr, struct error *err)
{
	char path[64] = "";
	unsigned bus, slot, func;
	int end = 0;

	if (node)
		config_path(node, path, sizeof(path));
	if (sscanf(path, "pci.%3u.%2u.%1u%n", &bus, &slot, &func, &end) != 3 || path[end] ||
	    bus >= PCI_BUSES || slot >= PCI_SLOTS || func >= PCI_FUNCTIONS)
		return error_set(
			err, EINVAL,
			"\"%s\" is no place for a PCI device: pci.BUS.SLOT.FUNCTION is, with "
			"bus 0-255, slot 0-31 and function 0-7",
			path);
	*addr = (struct pci_address){(uint8_t)bus, (uint8_t)slot, (uint8_t)func};
	return 0;
}

int pci_function_init(struct pci_function *fn, struct device *device, struct pci_address addr,
		      const struct pci_function_ops *ops, uint8_t *config, unsigned size,
		      struct error *err)
{
	uint8_t *masks = calloc(4, size);

	if (!masks)
		return error_set(err, ENOMEM, "out of memory");
	*fn = (struct pci_function){
		.device = device,
		.addr = addr,
		.ops = ops,
		.config = config,
		.size = size,
		.reset = masks,
		.writable = masks + size,
		.clearable = masks + 2 * size,
		.internal = masks + 3 * size,
		.free_cap = PCI_HEADER_END,
	};
	pci_set_writable(fn, PCI_COMMAND, 2,
			 PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
				 PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
	pci_set_clearable(fn, PCI_STATUS, 2, PCI_STATUS_W1C);
	pci_set_writable(fn, PCI_CACHE_LINE_SIZE, 1, 0xff);
	pci_set_writable(fn, PCI_INTERRUPT_LINE, 1, 0xff);
	return 0;
}

void pci_function_destroy(struct pci_function *fn)
{
	free(fn->reset);
	fn->reset = NULL;
}

static _Atomic(struct pci_function *) *function_place(struct pci_bus *bus, struct pci_address addr)
{
	struct pci_slots *slots = atomic_load_explicit(&bus->bus[addr.bus], memory_order_acquire);

	return slots ? &slots->fn[addr.slot % PCI_SLOTS * PCI_FUNCTIONS + addr.func % PCI_FUNCTIONS]
		     : NULL;
}

struct pci_function *pci_function_find(struct pci_bus *bus, struct pci_address addr)
{
	_Atomic(struct pci_function *) *place = function_place(bus, addr);

	return place ? atomic_load_explicit(place, memory_order_acquire) : NULL;
}

static int function_link(struct pci_bus *bus, struct pci_function *fn)
{
	struct pci_function *none = NULL;

	if (!function_place(bus, fn->addr)) {
		struct pci_slots *slots = calloc(1, sizeof(*slots));

		if (!slots)
			return -ENOMEM;
		atomic_store_explicit(&bus->bus[fn->addr.bus], slots, memory_order_release);
	}
	return atomic_compare_exchange_strong(function_place(bus, fn->addr), &none, fn) ? 0
											: -EEXIST;
}

int pci_function_add(struct pci_function *fn, struct error *err)
{
	struct pci_bus *bus = fn->device->vm->pci;
	int rc;

	if (!bus)
		return error_set(err, ENODEV, "this machine has no PCI bus");
	pthread_mutex_lock(&bus->device.lock);
	rc = function_link(bus, fn);
	pthread_mutex_unlock(&bus->device.lock);
	if (rc == -EEXIST)
		return error_set(
			err, EEXIST,
			"two devices at PCI bus %u, slot %u, function %u: each needs a place "
			"of its own",
			fn->addr.bus, fn->addr.slot, fn->addr.func);
	if (rc)
		return error_set(err, -rc, "out of memory");
	fn->added = true;
	return 0;
}

void pci_function_del(struct pci_function *fn)
{
	struct vm *vm;

	if (!fn->added)
		return;
	vm = fn->device->vm;
	atomic_store(function_place(vm->pci, fn->addr), NULL);
	fn->added = false;
	/* Accesses are made inside the handlers of these two buses. */
	io_bus_synchronize(&vm->pio);
	io_bus_synchronize(&vm->mmio);
}

void pci_function_reset(struct pci_function *fn)
{
	memcpy(fn->config, fn->reset, fn->size);
}

void pci_function_resume(struct pci_function *fn)
{
	for (unsigned i = 0; i < fn->size; i++) {
		uint8_t free_bits = fn->writable[i] | fn->clearable[i] | fn->internal[i];

		fn->config[i] = (fn->config[i] & free_bits) | (fn->reset[i] & ~free_bits);
	}
}

void pci_set8(struct pci_function *fn, unsigned offset, uint8_t value)
{
	bytes_set(fn->reset + offset, 1, value);
}

void pci_set16(struct pci_function *fn, unsigned offset, uint16_t value)
{
	bytes_set(fn->reset + offset, 2, value);
}

void pci_set32(struct pci_function *fn, unsigned offset, uint32_t value)
{
	bytes_set(fn->reset + offset, 4, value);
}

void pci_set_class(struct pci_function *fn, uint8_t cls, uint8_t subclass, uint8_t prog)
{
	pci_set8(fn, PCI_CLASS, cls);
	pci_set8(fn, PCI_SUBCLASS, subclass);
	pci_set8(fn, PCI_CLASS_PROG, prog);
}

void pci_set_writable(struct pci_function *fn, unsigned offset, unsigned size, uint32_t mask)
{
	bytes_set(fn->writable + offset, size, mask);
}

void pci_set_clearable(struct pci_function *fn, unsigned offset, unsigned size, uint32_t mask)
{
	bytes_set(fn->clearable + offset, size, mask);
}

void pci_set_internal(struct pci_function *fn, unsigned offset, unsigned size, uint32_t mask)
{
	bytes_set(fn->internal + offset, size, mask);
}

unsigned pci_add_capability(struct pci_function *fn, uint8_t id, unsigned len)
{
	unsigned offset = fn->free_cap;

	if (len < 2 || len > PCI_CONFIG_SIZE - offset)
		return 0;
	pci_set8(fn, offset, id);
	pci_set8(fn, fn->last_cap ? fn->last_cap + 1 : PCI_CAPABILITY_POINTER, (uint8_t)offset);
	pci_set16(fn, PCI_STATUS,
		  (uint16_t)bytes_get(fn->reset + PCI_STATUS, 2) | PCI_STATUS_CAPABILITIES);
	fn->last_cap = offset;
	/* Capabilities are dword aligned (PCI 3.0 section 6.7). */
	fn->free_cap = (offset + len + 3) & ~3u;
	return offset;
}

unsigned pci_add_express(struct pci_function *fn, unsigned port_type)
{
	unsigned cap = pci_add_capability(fn, PCI_CAP_EXPRESS, 0x3c);

	if (!cap)
		return 0;
	pci_set16(fn, cap + 0x02, (uint16_t)(port_type << 4 | 2));
	pci_set32(fn, cap + 0x0c, 0x411); /* link: 2.5 GT/s, one lane, ASPM L0s */
	pci_set16(fn, cap + 0x12, 0x11);  /* link status: 2.5 GT/s, one lane */
	return cap;
}

uint8_t pci_get8(const struct pci_function *fn, unsigned offset)
{
	return (uint8_t)bytes_get(fn->config + offset, 1);
}

uint16_t pci_get16(const struct pci_function *fn, unsigned offset)
{
	return (uint16_t)bytes_get(fn->config + offset, 2);
}

uint32_t pci_get32(const struct pci_function *fn, unsigned offset)
{
	return bytes_get(fn->config + offset, 4);
}

int pci_set_ids_from(struct pci_function *fn, struct config *node, struct error *err)
{
	static const struct {
		const char *key;
		uint8_t offset, size;
	} ids[] = {
		{"pcireg.vendor", PCI_VENDOR_ID, 2},
		{"pcireg.device", PCI_DEVICE_ID, 2},
		{"pcireg.revid", PCI_REVISION_ID, 1},
		{"pcireg.subvendor", PCI_SUBSYSTEM_VENDOR_ID, 2},
		{"pcireg.subdevice", PCI_SUBSYSTEM_ID, 2},
	};

	if (!node)
		return 0;
	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		uint8_t *reg = fn->reset + ids[i].offset;
		uint64_t value;
		int rc = config_get_u64(node, ids[i].key, bytes_get(reg, ids[i].size), 0,
					ones(ids[i].size), &value, err);

		if (rc)
			return rc;
		bytes_set(reg, ids[i].size, (uint32_t)value);
	}
	return 0;
}

bool pci_address_next(struct pci_address *addr)
{
	unsigned n = addr->bus << 8 | addr->slot << 3 | addr->func;

	if (++n >= PCI_BUSES * PCI_SLOTS * PCI_FUNCTIONS)
		return false;
	*addr = (struct pci_address){(uint8_t)(n >> 8), n >> 3 & 31, n & 7};
	return true;
}

struct pci_function *pci_function_search(struct pci_bus *bus, struct pci_address *addr, int cls,
					 int subclass)
{
	do {
		struct pci_function *fn = pci_function_find(bus, *addr);

		if (fn && (cls < 0 ||
			   (fn->reset[PCI_CLASS] == cls && fn->reset[PCI_SUBCLASS] == subclass)))
			return fn;
	} while (pci_address_next(addr));
	return NULL;
}

/* --- access ---------------------------------------------------------------------------------------- */

static bool slot_is_multi_function(struct pci_bus *bus, struct pci_address addr)
{
	for (addr.func = 1; addr.func < PCI_FUNCTIONS; addr.func++)
		if (pci_function_find(bus, addr))
			return true;
	return false;
}

uint32_t pci_config_read(struct pci_bus *bus, struct pci_address addr, unsigned offset,
			 unsigned size)
{
	struct pci_function *fn = pci_function_find(bus, addr);
	unsigned header = PCI_HEADER_TYPE - offset; /* huge if the access begins behind it */
	uint32_t value;

	if (!fn || offset + size > fn->size)
		return ones(size);
	pthread_mutex_lock(&fn->device->lock);
	value = bytes_get(fn->config + offset, size);
	if (fn->ops && fn->ops->read)
		value = fn->ops->read(fn, offset, size, value) & ones(size);
	pthread_mutex_unlock(&fn->device->lock);
	/* A guest looks at functions 1-7 only if function 0 says so (PCI 3.0 section 6.2.1). */
	if (header < size && slot_is_multi_function(bus, addr))
		value |= (uint32_t)PCI_MULTI_FUNCTION << (8 * header);
	return value;
}

void pci_config_write(struct pci_bus *bus, struct pci_address addr, unsigned offset, unsigned size,
		      uint32_t value)
{
	struct pci_function *fn = pci_function_find(bus, addr);
	uint32_t old;

	if (!fn || offset + size > fn->size)
		return;
	pthread_mutex_lock(&fn->device->lock);
	old = bytes_get(fn->config + offset, size);
	for (unsigned i = 0; i < size; i++) {
		uint8_t *byte = &fn->config[offset + i];
		uint8_t in = (uint8_t)(value >> (8 * i));
		uint8_t writable = fn->writable[offset + i];

		*byte = (*byte & ~writable) | (in & writable);
		*byte &= ~(in & fn->clearable[offset + i]);
	}
	if (fn->ops && fn->ops->write)
		fn->ops->write(fn, offset, size, old);
	pthread_mutex_unlock(&fn->device->lock);
}

/* --- ports ----------------------------------------------------------------------------------------- */

static uint32_t address_get(struct pci_bus *bus)
{
	uint32_t address;

	pthread_mutex_lock(&bus->device.lock);
	address = bus->state.address;
	pthread_mutex_unlock(&bus->device.lock);
	return address;
}

static struct pci_address address_of(uint32_t address)
{
	return (struct pci_address){(uint8_t)(address >> 16), address >> 11 & 31, address >> 8 & 7};
}

static uint64_t ports_read(void *arg, uint64_t offset, unsigned size)
{
	struct pci_bus *bus = arg;
	uint32_t address = address_get(bus);

	if (offset >= PORT_DATA) {
		/* Without the enable bit it is a port access like any other, which nobody claims. */
		if (!(address & ADDRESS_ENABLE) || (offset & 3) + size > 4)
			return ones(size);
		return pci_config_read(bus, address_of(address),
				       (address & 0xfc) | (unsigned)(offset & 3), size);
	}
	if (offset == 0 && size == 4)
		return address;
	if (offset == PORT_RESET && size == 1 && bus->reset)
		return bus->reset_read(bus->reset);
	return ones(size);
}

static void ports_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_bus *bus = arg;

	if (offset >= PORT_DATA) {
		uint32_t address = address_get(bus);

		if ((address & ADDRESS_ENABLE) && (offset & 3) + size <= 4)
			pci_config_write(bus, address_of(address),
					 (address & 0xfc) | (unsigned)(offset & 3), size,
					 (uint32_t)value);
	} else if (offset == 0 && size == 4) {
		pthread_mutex_lock(&bus->device.lock);
		bus->state.address = (uint32_t)value & ADDRESS_BITS;
		pthread_mutex_unlock(&bus->device.lock);
	} else if (offset == PORT_RESET && size == 1 && bus->reset) {
		bus->reset_write(bus->reset, (uint8_t)value);
	}
}

static const struct io_ops ports_ops = {
	.sizes = IO_1 | IO_2 | IO_4,
	.read = ports_read,
	.write = ports_write,
};

static uint64_t ecam_read(void *arg, uint64_t offset, unsigned size)
{
	uint32_t at = (uint32_t)offset;
	uint32_t value = 0;

	if ((at & 3) + size <= 4)
		return pci_config_read(
			arg, (struct pci_address){(uint8_t)(at >> 20), at >> 15 & 31, at >> 12 & 7},
			at & 0xfff, size);
	for (unsigned i = 0; i < size; i++)
		value |= (uint32_t)ecam_read(arg, (at + i) % PCI_ECAM_SIZE, 1) << (8 * i);
	return value;
}

static void ecam_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	uint32_t at = (uint32_t)offset;

	if ((at & 3) + size <= 4) {
		pci_config_write(
			arg, (struct pci_address){(uint8_t)(at >> 20), at >> 15 & 31, at >> 12 & 7},
			at & 0xfff, size, (uint32_t)value);
		return;
	}
	for (unsigned i = 0; i < size; i++)
		ecam_write(arg, (at + i) % PCI_ECAM_SIZE, 1, value >> (8 * i) & 0xff);
}

static const struct io_ops ecam_ops = {
	.sizes = IO_1 | IO_2 | IO_4,
	.read = ecam_read,
	.write = ecam_write,
};

void pci_set_reset_control(struct pci_bus *bus, struct device *reset,
			   uint8_t (*read)(struct device *reset),
			   void (*write)(struct device *reset, uint8_t value))
{
	bus->reset = reset;
	bus->reset_read = read;
	bus->reset_write = write;
}

/* --- the bus as a device --------------------------------------------------------------------------- */

static const struct state_field pci_bus_fields[] = {
	STATE(struct pci_bus_state, address),
};

static bool pci_bus_check(const void *state)
{
	const struct pci_bus_state *s = state;

	return !(s->address & ~ADDRESS_BITS);
}

static const struct state_table pci_bus_table =
	STATE_TABLE("pci", struct pci_bus_state, pci_bus_fields, 1, pci_bus_check);

static void pci_bus_destroy(struct device *device)
{
	struct pci_bus *bus = (struct pci_bus *)device;
	struct vm *vm = device->vm;

	io_range_del(&vm->mmio, &bus->ecam);
	io_range_del(&vm->pio, &bus->ports);
	io_bus_synchronize(&vm->mmio);
	io_bus_synchronize(&vm->pio);
	if (vm->pci == bus)
		vm->pci = NULL;
	for (unsigned i = 0; i < PCI_BUSES; i++)
		free(bus->bus[i]);
	device_free(device);
}

static int pci_bus_create(struct vm *vm, struct config *config, struct device **out,
			  struct error *err)
{
	struct pci_bus *bus = device_alloc(&pci_bus_class, vm, sizeof(*bus), "pci");
	int rc;

	(void)config;
	if (!bus)
		return error_set(err, ENOMEM, "out of memory");
	bus->ports = (struct io_range){"pci", PORT_BASE, PORT_SIZE, &ports_ops, bus};
	bus->ecam = (struct io_range){"pci ecam", PCI_ECAM_BASE, PCI_ECAM_SIZE, &ecam_ops, bus};
	rc = io_range_add(&vm->pio, &bus->ports, err);
	if (!rc)
		rc = io_range_add(&vm->mmio, &bus->ecam, err);
	if (rc) {
		pci_bus_destroy(&bus->device);
		return rc;
	}
	vm->pci = bus;
	*out = &bus->device;
	return 0;
}

const struct device_class pci_bus_class = {
	.name = "pci",
	.help = "PCI configuration space",
	.kind = DEVICE_CHIPSET,
	.create = pci_bus_create,
	.destroy = pci_bus_destroy,
	.table = &pci_bus_table,
	.state_offset = offsetof(struct pci_bus, state),
};
DEVICE_REGISTER(pci_bus_class);
