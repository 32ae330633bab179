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

/* What the eight INTx wires drive: their I/O APIC pins and, as the LPC bridge says, ISA interrupts. */
struct pci_wire {
	unsigned holders;
	struct irq_source pin, isa;
	bool routed;
};

/* A piece of an address space, taken for the BARs of one bus. */
struct pci_piece {
	struct pci_window window;
	uint8_t bus;
	struct pci_piece *next;
};

struct pci_bus {
	struct device device;
	struct pci_bus_state state;
	struct io_range ports, ecam;
	struct pci_wire wire[PCI_WIRES];
	struct pci_function *functions; /* those added */
	struct pci_piece *pieces;	/* of the buses behind the first */
	unsigned waiting;		/* BARs that found something else where they should be */
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

/* --- base address registers ------------------------------------------------------------------------ */

/* Under the bus's lock, as all of bar_*(). */
static struct io_bus *bar_bus(struct pci_bus *bus, const struct pci_bar *bar)
{
	return bar->kind == PCI_BAR_IO ? &bus->device.vm->pio : &bus->device.vm->mmio;
}

static void bar_doorbells(struct pci_bus *bus, const struct pci_bar *bar, bool on)
{
	for (unsigned i = 0; i < bar->doorbells; i++) {
		struct doorbell bell = bar->doorbell[i];

		bell.addr += bar->base;
		bell.port = bar->kind == PCI_BAR_IO;
		vm_doorbell(bus->device.vm, &bell, on);
	}
}

static void bar_map(struct pci_bus *bus, struct pci_bar *bar)
{
	bar->range.base = bar->base;
	bar->mapped = io_range_add(bar_bus(bus, bar), &bar->range, NULL) == 0;
	if (bar->mapped)
		bar_doorbells(bus, bar, true);
	else
		bus->waiting++;
}

static void bar_unmap(struct pci_bus *bus, struct pci_bar *bar)
{
	if (bar->mapped) {
		bar_doorbells(bus, bar, false);
		io_range_del(bar_bus(bus, bar), &bar->range);
	} else if (bar->wanted) {
		bus->waiting--;
	}
	bar->mapped = false;
}

static void bar_place(struct pci_bus *bus, struct pci_bar *bar, bool wanted, uint64_t base)
{
	if (bar->wanted == wanted && (!wanted || bar->base == base))
		return;
	bar_unmap(bus, bar);
	bar->wanted = wanted;
	bar->base = base;
	if (wanted)
		bar_map(bus, bar);
}

/* Something moved away: whoever waited for its place may have it now. */
static void bars_retry(struct pci_bus *bus)
{
	if (!bus->waiting)
		return;
	for (struct pci_function *fn = bus->functions; fn; fn = fn->next) {
		for (unsigned i = 0; i < PCI_BARS; i++) {
			if (!fn->bar[i].wanted || fn->bar[i].mapped)
				continue;
			bus->waiting--;
			bar_map(bus, &fn->bar[i]);
		}
	}
}

static uint64_t bar_address(const struct pci_function *fn, unsigned n)
{
	const struct pci_bar *bar = &fn->bar[n];
	uint64_t base = pci_get32(fn, PCI_BAR(n));

	if (bar->kind == PCI_BAR_MEM64)
		base |= (uint64_t)pci_get32(fn, PCI_BAR(n + 1)) << 32;
	return base & ~(bar->size - 1);
}

static void wire_hold(struct pci_bus *bus, struct pci_function *fn, bool hold);

/* What the rest of the machine sees of the configuration bytes follows them. Under the device's lock, or with the
 * vCPUs parked. */
static void function_follow(struct pci_function *fn)
{
	struct pci_bus *bus = fn->device->vm->pci;
	uint16_t command = pci_get16(fn, PCI_COMMAND);

	if (!fn->added)
		return;
	pthread_mutex_lock(&bus->device.lock);
	for (unsigned i = 0; i < PCI_BARS; i++) {
		struct pci_bar *bar = &fn->bar[i];
		uint16_t enable = bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;

		if (bar->kind != PCI_BAR_NONE)
			bar_place(bus, bar, command & enable, bar_address(fn, i));
	}
	bars_retry(bus);
	wire_hold(bus, fn, fn->intx && !(command & PCI_COMMAND_INTX_DISABLE));
	pthread_mutex_unlock(&bus->device.lock);
}

void pci_add_bar(struct pci_function *fn, unsigned n, enum pci_bar_kind kind, uint64_t size,
		 const char *name, const struct io_ops *ops, void *arg)
{
	struct pci_bar *bar = &fn->bar[n];

	bar->kind = kind;
	bar->size = size;
	bar->range = (struct io_range){name, 0, size, ops, arg};
	pci_set_writable(fn, PCI_BAR(n), 4,
			 (uint32_t) ~(size - 1) & (kind == PCI_BAR_IO ? ~3u : ~15u));
	if (kind == PCI_BAR_MEM64)
		pci_set_writable(fn, PCI_BAR(n + 1), 4, (uint32_t)(~(size - 1) >> 32));
}

void pci_add_doorbells(struct pci_function *fn, unsigned n, const struct doorbell *doorbell,
		       unsigned doorbells)
{
	fn->bar[n].doorbell = doorbell;
	fn->bar[n].doorbells = doorbells;
}

/* The first function with a BAR of that address space whose assigned place meets [base, base + size). */
static const struct pci_bar *assigned_overlap(const struct pci_bus *bus,
					      const struct pci_function *also, bool io,
					      uint64_t base, uint64_t size)
{
	for (const struct pci_function *fn = also; fn;
	     fn = fn == also ? bus->functions : fn->next) {
		for (unsigned i = 0; i < PCI_BARS; i++) {
			const struct pci_bar *bar = &fn->bar[i];

			if (bar->assigned && (bar->kind == PCI_BAR_IO) == io &&
			    base < bar->assigned + bar->size && bar->assigned < base + size)
				return bar;
		}
	}
	return NULL;
}

/* The whole of a space; what is left of it to bus 0 ends where the pieces begin. */
static struct pci_window space_whole(const struct pci_bus *bus, enum pci_space space)
{
	uint64_t mem64 = pci_mem64_base(MEMORY_HIGH_BASE + bus->device.vm->memory.high);

	switch (space) {
	case PCI_SPACE_IO:
		return (struct pci_window){space, PCI_IO_BASE, PCI_IO_END - 1};
	case PCI_SPACE_MEM32:
		return (struct pci_window){space, PCI_MEM32_BASE, PCI_MEM32_END - 1};
	default:
		return (struct pci_window){space, mem64, mem64 + PCI_MEM64_SIZE - 1};
	}
}

static struct pci_window space_of_first_bus(const struct pci_bus *bus, enum pci_space space)
{
	struct pci_window window = space_whole(bus, space);

	for (const struct pci_piece *p = bus->pieces; p; p = p->next)
		if (p->window.space == space && p->window.base <= window.last)
			window.last = p->window.base - 1;
	return window;
}

void pci_windows(struct pci_bus *bus, uint8_t number,
		 void (*each)(void *arg, const struct pci_window *window), void *arg)
{
	for (unsigned space = 0; space < PCI_SPACES && number == 0; space++) {
		struct pci_window window = space_of_first_bus(bus, (enum pci_space)space);

		if (space == PCI_SPACE_IO)
			window.base = PCI_IO_FIRST;
		each(arg, &window);
	}
	for (const struct pci_piece *p = bus->pieces; p; p = p->next)
		if (p->bus == number)
			each(arg, &p->window);
}

/* First fit. */
static bool bar_fit(struct pci_bus *bus, struct pci_function *fn, struct pci_bar *bar,
		    const struct pci_window *window)
{
	uint64_t base = (window->base + bar->size - 1) & ~(bar->size - 1);
	const struct pci_bar *other;

	while ((other = assigned_overlap(bus, fn, bar->kind == PCI_BAR_IO, base, bar->size)))
		base = (other->assigned + other->size + bar->size - 1) & ~(bar->size - 1);
	if (base + bar->size - 1 > window->last)
		return false;
	bar->assigned = base;
	return true;
}

/* Takes the uppermost piece of a space that is free, for a function whose bus needs `size` bytes more. */
static struct pci_piece *piece_take(struct pci_bus *bus, const struct pci_function *fn,
				    enum pci_space space, uint64_t size)
{
	static const uint64_t least[PCI_SPACES] = {0x400, 1 << 20, 1 << 20};
	struct pci_window left = space_of_first_bus(bus, space);
	struct pci_piece *piece;
	uint64_t base;

	if (size < least[space])
		size = least[space];
	if (left.last - left.base + 1 < size)
		return NULL;
	base = (left.last + 1 - size) & ~(size - 1);
	if (base < left.base || assigned_overlap(bus, fn, space == PCI_SPACE_IO, base, size))
		return NULL;
	piece = malloc(sizeof(*piece));
	if (!piece)
		return NULL;
	*piece = (struct pci_piece){{space, base, base + size - 1}, fn->addr.bus, bus->pieces};
	bus->pieces = piece;
	return piece;
}

static enum pci_space bar_space(const struct pci_bar *bar)
{
	if (bar->kind == PCI_BAR_IO)
		return PCI_SPACE_IO;
	return bar->kind == PCI_BAR_MEM64 && bar->size >= PCI_BAR_LARGE ? PCI_SPACE_MEM64
									: PCI_SPACE_MEM32;
}

/* Nobody else does it: there is no firmware. In the windows that _CRS names. */
static int bar_assign(struct pci_bus *bus, struct pci_function *fn, struct pci_bar *bar,
		      struct error *err)
{
	enum pci_space space = bar_space(bar);
	struct pci_window first = space_of_first_bus(bus, space);
	struct pci_piece *piece;

	if (fn->addr.bus == 0 && bar_fit(bus, fn, bar, &first))
		return 0;
	for (piece = bus->pieces; piece; piece = piece->next)
		if (piece->bus == fn->addr.bus && piece->window.space == space &&
		    bar_fit(bus, fn, bar, &piece->window))
			return 0;
	piece = fn->addr.bus ? piece_take(bus, fn, space, bar->size) : NULL;
	if (piece && bar_fit(bus, fn, bar, &piece->window))
		return 0;
	return error_set(err, ENOSPC, "no room left for a BAR of %llu bytes: too many PCI devices",
			 (unsigned long long)bar->size);
}

static int function_assign(struct pci_bus *bus, struct pci_function *fn, struct error *err)
{
	uint16_t command = (uint16_t)bytes_get(fn->reset + PCI_COMMAND, 2);

	for (unsigned i = 0; i < PCI_BARS; i++) {
		struct pci_bar *bar = &fn->bar[i];
		uint32_t type = bar->kind == PCI_BAR_IO ? 1 : bar->kind == PCI_BAR_MEM64 ? 4 : 0;
		int rc;

		if (bar->kind == PCI_BAR_NONE)
			continue;
		bar->assigned = 0;
		rc = bar_assign(bus, fn, bar, err);
		if (rc)
			return rc;
		if (bar->prefetchable)
			type |= 8;
		pci_set32(fn, PCI_BAR(i), (uint32_t)bar->assigned | type);
		if (bar->kind == PCI_BAR_MEM64)
			pci_set32(fn, PCI_BAR(i + 1), (uint32_t)(bar->assigned >> 32));
		command |= bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
	}
	pci_set16(fn, PCI_COMMAND, command);
	return 0;
}

/* --- interrupts ------------------------------------------------------------------------------------ */

/* Under the bus's lock. */
static void wire_hold(struct pci_bus *bus, struct pci_function *fn, bool hold)
{
	struct pci_wire *wire;

	if (fn->intx_wired == hold)
		return;
	fn->intx_wired = hold;
	wire = &bus->wire[pci_intx_wire(fn->addr.slot, fn->reset[PCI_INTERRUPT_PIN])];
	wire->holders += hold ? 1 : -1u;
	irq_source_set(&wire->pin, wire->holders);
	if (wire->routed)
		irq_source_set(&wire->isa, wire->holders);
}

void pci_wire_route(struct pci_bus *bus, unsigned wire_index, unsigned isa_irq)
{
	struct pci_wire *wire = &bus->wire[wire_index];

	pthread_mutex_lock(&bus->device.lock);
	if (wire->routed)
		irq_source_set(&wire->isa, false);
	wire->routed = isa_irq;
	if (isa_irq) {
		irq_source_init(&wire->isa, &bus->device.vm->irq, irq_isa_gsi(isa_irq));
		irq_source_set(&wire->isa, wire->holders);
	}
	pthread_mutex_unlock(&bus->device.lock);
}

void pci_add_intx(struct pci_function *fn)
{
	pci_set8(fn, PCI_INTERRUPT_PIN, 1 + fn->addr.func % 4);
	pci_set8(fn, PCI_INTERRUPT_LINE, 0xff); /* no connection known to firmware */
	pci_set_internal(fn, PCI_STATUS, 2, PCI_STATUS_INTX);
}

void pci_intx_set(struct pci_function *fn, bool level)
{
	if (fn->intx == level)
		return;
	fn->intx = level;
	fn->config[PCI_STATUS] = (uint8_t)((fn->config[PCI_STATUS] & ~PCI_STATUS_INTX) |
					   (level ? PCI_STATUS_INTX : 0));
	function_follow(fn);
}

/* MSI (PCI 3.0 section 6.8.1), 64-bit with masks: offsets from the capability */
#define MSI_CONTROL 0x02
#define MSI_ADDRESS 0x04
#define MSI_DATA 0x0c
#define MSI_MASK 0x10
#define MSI_PENDING 0x14
#define MSI_ENABLE 0x0001
#define MSI_ENABLED_COUNT(control) (1u << ((control) >> 4 & 7))

unsigned pci_add_msi(struct pci_function *fn, unsigned vectors)
{
	unsigned log2 = (unsigned)__builtin_ctz(vectors);

	fn->msi = pci_add_capability(fn, PCI_CAP_MSI, 0x18);
	if (!fn->msi)
		return 0;
	pci_set16(fn, fn->msi + MSI_CONTROL, (uint16_t)(0x0180 | log2 << 1));
	pci_set_writable(fn, fn->msi + MSI_CONTROL, 2, 0x0071);
	pci_set_writable(fn, fn->msi + MSI_ADDRESS, 4, 0xfffffffc);
	pci_set_writable(fn, fn->msi + MSI_ADDRESS + 4, 4, 0xffffffff);
	pci_set_writable(fn, fn->msi + MSI_DATA, 2, 0xffff);
	pci_set_writable(fn, fn->msi + MSI_MASK, 4, (uint32_t)((1ull << vectors) - 1));
	pci_set_internal(fn, fn->msi + MSI_PENDING, 4, (uint32_t)((1ull << vectors) - 1));
	return fn->msi;
}

static bool is_master(const struct pci_function *fn)
{
	return pci_get16(fn, PCI_COMMAND) & PCI_COMMAND_MASTER;
}

bool pci_msi_enabled(const struct pci_function *fn)
{
	return fn->msi && (pci_get16(fn, fn->msi + MSI_CONTROL) & MSI_ENABLE);
}

static void msi_send(struct pci_function *fn, unsigned vector)
{
	uint16_t control = pci_get16(fn, fn->msi + MSI_CONTROL);
	unsigned enabled = MSI_ENABLED_COUNT(control), offered = 1u << (control >> 1 & 7);
	uint64_t address = pci_get32(fn, fn->msi + MSI_ADDRESS) |
			   (uint64_t)pci_get32(fn, fn->msi + MSI_ADDRESS + 4) << 32;

	vector %= enabled < offered ? enabled : offered;
	if (!is_master(fn) || (pci_get32(fn, fn->msi + MSI_MASK) >> vector & 1)) {
		fn->config[fn->msi + MSI_PENDING + vector / 8] |= (uint8_t)(1u << vector % 8);
		return;
	}
	vm_msi(fn->device->vm, address,
	       (pci_get16(fn, fn->msi + MSI_DATA) & ~(enabled - 1)) | vector);
}

/* After a write to the capability, or to the command register: what waited and is free now goes out. */
static void msi_unmask(struct pci_function *fn)
{
	uint32_t due = pci_get32(fn, fn->msi + MSI_PENDING) & ~pci_get32(fn, fn->msi + MSI_MASK);

	if (!pci_msi_enabled(fn) || !is_master(fn) || !due)
		return;
	bytes_set(fn->config + fn->msi + MSI_PENDING, 4,
		  pci_get32(fn, fn->msi + MSI_PENDING) & ~due);
	for (; due; due &= due - 1)
		msi_send(fn, (unsigned)__builtin_ctz(due));
}

/* MSI-X (PCI 3.0 section 6.8.2) */
#define MSIX_CONTROL 0x02
#define MSIX_ENABLE 0x8000
#define MSIX_MASK_ALL 0x4000
#define MSIX_PBA 0x800
#define MSIX_BAR_SIZE 0x1000
#define MSIX_ENTRY_MASKED 1u

bool pci_msix_enabled(const struct pci_function *fn)
{
	return fn->msix && (pci_get16(fn, fn->msix + MSIX_CONTROL) & MSIX_ENABLE);
}

static void msix_reset(struct pci_function *fn)
{
	memset(fn->msix_table, 0, fn->msix_vectors * PCI_MSIX_ENTRY * 4);
	for (unsigned i = 0; i < fn->msix_vectors; i++)
		fn->msix_table[i * PCI_MSIX_ENTRY + 3] = MSIX_ENTRY_MASKED;
	*fn->msix_pending = 0;
}

static void msix_send(struct pci_function *fn, unsigned vector)
{
	const uint32_t *entry = &fn->msix_table[vector * PCI_MSIX_ENTRY];

	if (!is_master(fn) || (pci_get16(fn, fn->msix + MSIX_CONTROL) & MSIX_MASK_ALL) ||
	    (entry[3] & MSIX_ENTRY_MASKED))
		*fn->msix_pending |= 1ull << vector;
	else
		vm_msi(fn->device->vm, entry[0] | (uint64_t)entry[1] << 32, entry[2]);
}

static void msix_unmask(struct pci_function *fn)
{
	uint64_t due = *fn->msix_pending;

	if (!pci_msix_enabled(fn) || !is_master(fn))
		return;
	*fn->msix_pending = 0; /* those still masked come back */
	for (; due; due &= due - 1)
		if ((unsigned)__builtin_ctzll(due) < fn->msix_vectors)
			msix_send(fn, (unsigned)__builtin_ctzll(due));
}

static uint64_t msix_read(void *arg, uint64_t offset, unsigned size)
{
	struct pci_function *fn = arg;
	uint64_t value = 0;

	(void)size;
	pthread_mutex_lock(&fn->device->lock);
	if (offset / 4 < fn->msix_vectors * PCI_MSIX_ENTRY)
		value = fn->msix_table[offset / 4];
	else if (offset >= MSIX_PBA && offset < MSIX_PBA + 8)
		value = *fn->msix_pending >> (8 * (offset & 4)) & UINT32_MAX;
	pthread_mutex_unlock(&fn->device->lock);
	return value;
}

static void msix_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_function *fn = arg;

	(void)size;
	if ((offset & 3) || offset / 4 >= fn->msix_vectors * PCI_MSIX_ENTRY)
		return;
	pthread_mutex_lock(&fn->device->lock);
	switch (offset / 4 % PCI_MSIX_ENTRY) {
	case 0:
		value &= ~3ull;
		break;
	case 3:
		value &= MSIX_ENTRY_MASKED;
		break;
	}
	fn->msix_table[offset / 4] = (uint32_t)value;
	msix_unmask(fn);
	pthread_mutex_unlock(&fn->device->lock);
}

static const struct io_ops msix_ops = {.sizes = IO_4, .read = msix_read, .write = msix_write};

unsigned pci_add_msix(struct pci_function *fn, unsigned n, unsigned vectors, uint32_t *table,
		      uint64_t *pending)
{
	fn->msix = pci_add_capability(fn, PCI_CAP_MSIX, 12);
	if (!fn->msix)
		return 0;
	fn->msix_vectors = vectors;
	fn->msix_table = table;
	fn->msix_pending = pending;
	pci_set16(fn, fn->msix + MSIX_CONTROL, (uint16_t)(vectors - 1));
	pci_set_writable(fn, fn->msix + MSIX_CONTROL, 2, MSIX_ENABLE | MSIX_MASK_ALL);
	pci_set32(fn, fn->msix + 4, n);
	pci_set32(fn, fn->msix + 8, MSIX_PBA | n);
	pci_add_bar(fn, n, PCI_BAR_MEM32, MSIX_BAR_SIZE, "msi-x", &msix_ops, fn);
	return fn->msix;
}

bool pci_message(struct pci_function *fn, unsigned vector)
{
	if (pci_msix_enabled(fn)) {
		if (vector < fn->msix_vectors)
			msix_send(fn, vector);
		return true;
	}
	if (!pci_msi_enabled(fn))
		return false;
	msi_send(fn, vector);
	return true;
}

/* --- functions on the bus -------------------------------------------------------------------------- */

int pci_function_add(struct pci_function *fn, struct error *err)
{
	struct pci_bus *bus = fn->device->vm->pci;
	int rc;

	if (!bus)
		return error_set(err, ENODEV, "this machine has no PCI bus");
	pthread_mutex_lock(&bus->device.lock);
	rc = function_assign(bus, fn, err);
	if (!rc)
		rc = function_link(bus, fn);
	if (!rc) {
		fn->next = bus->functions;
		bus->functions = fn;
		fn->added = true;
	}
	pthread_mutex_unlock(&bus->device.lock);
	if (rc == -ENOSPC)
		return rc;
	if (rc == -EEXIST)
		return error_set(
			err, EEXIST,
			"two devices at PCI bus %u, slot %u, function %u: each needs a place "
			"of its own",
			fn->addr.bus, fn->addr.slot, fn->addr.func);
	if (rc)
		return error_set(err, -rc, "out of memory");
	return 0;
}

/* Under the bus's lock. */
static void function_unlink(struct pci_bus *bus, struct pci_function *fn)
{
	struct pci_function **link = &bus->functions;

	while (*link && *link != fn)
		link = &(*link)->next;
	if (*link)
		*link = fn->next;
	atomic_store(function_place(bus, fn->addr), NULL);
	fn->added = false;
}

void pci_function_del(struct pci_function *fn)
{
	struct vm *vm;

	if (!fn->added)
		return;
	vm = fn->device->vm;
	pthread_mutex_lock(&vm->pci->device.lock);
	for (unsigned i = 0; i < PCI_BARS; i++)
		bar_place(vm->pci, &fn->bar[i], false, 0);
	wire_hold(vm->pci, fn, false);
	function_unlink(vm->pci, fn);
	bars_retry(vm->pci);
	pthread_mutex_unlock(&vm->pci->device.lock);
	/* Accesses are made inside the handlers of these two buses. */
	io_bus_synchronize(&vm->pio);
	io_bus_synchronize(&vm->mmio);
}

void pci_function_reset(struct pci_function *fn)
{
	memcpy(fn->config, fn->reset, fn->size);
	if (fn->msix)
		msix_reset(fn);
	fn->intx = false;
	function_follow(fn);
}

void pci_function_resume(struct pci_function *fn)
{
	for (unsigned i = 0; i < fn->size; i++) {
		uint8_t free_bits = fn->writable[i] | fn->clearable[i] | fn->internal[i];

		fn->config[i] = (fn->config[i] & free_bits) | (fn->reset[i] & ~free_bits);
	}
	function_follow(fn);
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

unsigned pci_add_power(struct pci_function *fn)
{
	unsigned cap = pci_add_capability(fn, PCI_CAP_POWER, 8);

	if (!cap)
		return 0;
	pci_set16(fn, cap + 0x02, 0x0003); /* version 1.2 */
	pci_set16(fn, cap + 0x04, 0x0008); /* nothing is lost from D3hot to D0 */
	pci_set_writable(fn, cap + 0x04, 2, 0x0003);
	return cap;
}

#define EXPRESS_CONTROL 0x08
#define EXPRESS_CAN_FLR (1u << 28)
#define EXPRESS_START_FLR 0x80 /* in the high byte of the control register */

unsigned pci_add_express(struct pci_function *fn, unsigned port_type)
{
	unsigned cap = pci_add_capability(fn, PCI_CAP_EXPRESS, 0x3c);

	if (!cap)
		return 0;
	fn->express = cap;
	pci_set16(fn, cap + 0x02, (uint16_t)(port_type << 4 | 2));
	pci_set_writable(fn, cap + EXPRESS_CONTROL, 2, 0x78ff); /* kept, without effect */
	if (fn->ops && fn->ops->flr)
		pci_set32(fn, cap + 0x04,
			  EXPRESS_CAN_FLR | 0x8000); /* and role-based error reporting */
	if (port_type == PCI_EXPRESS_INTEGRATED)
		return cap;
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

/* PCI Express 3.0 section 6.6.2. */
static bool wants_flr(const struct pci_function *fn, unsigned offset, unsigned size, uint32_t value)
{
	unsigned at = fn->express + EXPRESS_CONTROL + 1;

	return fn->express && fn->ops && fn->ops->flr && offset <= at && at < offset + size &&
	       (value >> (8 * (at - offset)) & EXPRESS_START_FLR);
}

static void function_written(struct pci_function *fn, unsigned offset)
{
	if (offset / 4 == PCI_COMMAND / 4 || (offset >= PCI_BAR(0) && offset < PCI_BAR(PCI_BARS)))
		function_follow(fn);
	if (fn->msi &&
	    (offset / 4 == PCI_COMMAND / 4 || (offset >= fn->msi && offset < fn->msi + 0x18)))
		msi_unmask(fn);
	if (fn->msix &&
	    (offset / 4 == PCI_COMMAND / 4 || (offset >= fn->msix && offset < fn->msix + 4)))
		msix_unmask(fn);
}

void pci_config_write(struct pci_bus *bus, struct pci_address addr, unsigned offset, unsigned size,
		      uint32_t value)
{
	struct pci_function *fn = pci_function_find(bus, addr);
	bool deferred, flr;
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
	function_written(fn, offset);
	flr = wants_flr(fn, offset, size, value);
	deferred = fn->deferred;
	fn->deferred = false;
	pthread_mutex_unlock(&fn->device->lock);
	if (deferred && fn->ops->deferred)
		fn->ops->deferred(fn);
	if (flr)
		fn->ops->flr(fn);
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
	while (bus->pieces) {
		struct pci_piece *next = bus->pieces->next;

		free(bus->pieces);
		bus->pieces = next;
	}
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
	for (unsigned i = 0; i < PCI_WIRES; i++)
		irq_source_init(&bus->wire[i].pin, &vm->irq, PCI_INTX_GSI_BASE + i);
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
