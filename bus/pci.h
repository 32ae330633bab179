/*
 * PCI: configuration space of functions on up to 256 buses, reached by configuration mechanism #1 (ports
 * 0xCF8 and 0xCFC, PCI Local Bus 3.0 section 3.2.2.3.2) and by ECAM at 0xE0000000 (PCI Express 3.0
 * section 7.2.2).
 *
 * A device embeds a struct pci_function and, in its state struct, the bytes of the configuration space:
 * saved-state tables list them as STATE_ARRAY(struct X_state, config). What a byte is after reset and
 * which of its bits a guest can write, or clear by writing ones, is set up once with pci_set8() and its
 * kin; hooks see the accesses that need more than that.
 *
 * Threads: functions come and go while vCPUs run; look-up takes no lock. Configuration bytes are read and
 * written under the device's lock, and so are the hooks called.
 */
#ifndef BUS_PCI_H
#define BUS_PCI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/config.h"
#include "base/error.h"
#include "bus/io.h"

struct device;
struct doorbell;
struct vm;

#define PCI_BUSES 256
#define PCI_SLOTS 32
#define PCI_FUNCTIONS 8

#define PCI_CONFIG_SIZE 256	      /* conventional configuration space */
#define PCI_CONFIG_EXTENDED_SIZE 4096 /* PCI Express */

/* Where BARs may live, as the host bridge's _CRS tells the guest. */
#define PCI_IO_FIRST 0x0d00u /* below PCI_IO_BASE are ISA devices, which are bus 0's too */
#define PCI_IO_BASE 0x3000u  /* 0x2000 has pc-testdev, where kvm-unit-tests look for it */
#define PCI_IO_END 0x10000u
#define PCI_MEM32_BASE 0xc0000000ull
#define PCI_MEM32_END 0xe0000000ull
#define PCI_ECAM_BASE 0xe0000000ull
#define PCI_ECAM_SIZE 0x10000000ull
#define PCI_MEM64_SIZE (32ull << 30)

/* A part of an address space in which BARs of a bus may lie, both ends included. Bus 0 has all of a space but the pieces
 * that other buses took, from the top: each bus that has functions is behind a host bridge of its own. */
enum pci_space { PCI_SPACE_IO, PCI_SPACE_MEM32, PCI_SPACE_MEM64, PCI_SPACES };

struct pci_window {
	enum pci_space space;
	uint64_t base, last;
};

/* Registers of the type 0 header */
#define PCI_VENDOR_ID 0x00
#define PCI_DEVICE_ID 0x02
#define PCI_COMMAND 0x04
#define PCI_STATUS 0x06
#define PCI_REVISION_ID 0x08
#define PCI_CLASS_PROG 0x09
#define PCI_SUBCLASS 0x0a
#define PCI_CLASS 0x0b
#define PCI_CACHE_LINE_SIZE 0x0c
#define PCI_HEADER_TYPE 0x0e
#define PCI_BAR(n) (0x10 + 4 * (n))
#define PCI_SUBSYSTEM_VENDOR_ID 0x2c
#define PCI_SUBSYSTEM_ID 0x2e
#define PCI_CAPABILITY_POINTER 0x34
#define PCI_INTERRUPT_LINE 0x3c
#define PCI_INTERRUPT_PIN 0x3d
#define PCI_HEADER_END 0x40 /* capabilities begin here */

#define PCI_COMMAND_IO 0x0001
#define PCI_COMMAND_MEMORY 0x0002
#define PCI_COMMAND_MASTER 0x0004
#define PCI_COMMAND_PARITY 0x0040
#define PCI_COMMAND_SERR 0x0100
#define PCI_COMMAND_INTX_DISABLE 0x0400
#define PCI_STATUS_INTX 0x0008
#define PCI_STATUS_CAPABILITIES 0x0010
#define PCI_STATUS_W1C 0xf900 /* the error bits */
#define PCI_MULTI_FUNCTION 0x80

#define PCI_CAP_POWER 0x01
#define PCI_CAP_MSI 0x05
#define PCI_CAP_VENDOR 0x09
#define PCI_CAP_EXPRESS 0x10
#define PCI_CAP_MSIX 0x11

#define PCI_CLASS_BRIDGE 0x06
#define PCI_SUBCLASS_HOST 0x00
#define PCI_SUBCLASS_ISA 0x01
#define PCI_CLASS_DISPLAY 0x03

struct pci_bus;
struct pci_function;

/* All may be NULL. Offset and size (1, 2 or 4) stay within a dword. */
struct pci_function_ops {
	/* `value` is what the bytes hold; the result is what the guest reads. */
	uint32_t (*read)(struct pci_function *fn, unsigned offset, unsigned size, uint32_t value);
	/* After the bytes were written; `old` is what they held. */
	void (*write)(struct pci_function *fn, unsigned offset, unsigned size, uint32_t old);
	/* After a write for which `write` set fn->deferred, with no lock held: what may wait for others. */
	void (*deferred)(struct pci_function *fn);
	/* Function-level reset, asked for in the PCI Express capability; no lock held. It puts the device into its
	 * reset state and calls pci_function_reset() under the device's lock. Without it the capability does not offer
	 * FLR. */
	void (*flr)(struct pci_function *fn);
};

/*
 * A base address register. Where it is decoded follows the bytes of the configuration space and the command
 * register at any time; a BAR that would lie on something else that is decoded waits until there is room.
 */
enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 };

#define PCI_BARS 6
#define PCI_BAR_LARGE (32ull << 20) /* a 64-bit BAR below this size is placed below 4 GiB */

struct pci_bar {
	enum pci_bar_kind kind;
	bool prefetchable;
	uint64_t size;
	uint64_t assigned; /* its address after reset */
	struct io_range range;
	const struct doorbell *doorbell; /* `doorbells` of them; see pci_add_doorbells() */
	unsigned doorbells;
	bool wanted, mapped; /* under the bus's lock */
	uint64_t base;	     /* where it is wanted */
};

#define PCI_MSIX_MAX 64
#define PCI_MSIX_ENTRY 4 /* dwords: address low, high, data, vector control */

struct pci_address {
	uint8_t bus, slot, func;
};

struct pci_function {
	struct device *device;
	struct pci_address addr;
	const struct pci_function_ops *ops;
	uint8_t *config; /* `size` bytes, in the device's state */
	unsigned size;
	uint8_t *reset;	    /* for each byte: its value after reset, */
	uint8_t *writable;  /* the bits a guest writes, */
	uint8_t *clearable; /* the bits that writing 1 clears, */
	uint8_t *internal;  /* the bits that the device changes by itself: kept by a restore */
	unsigned last_cap, free_cap; /* offsets of the last capability and of what follows it */
	unsigned express, msi, msix; /* offsets of these capabilities, 0: there is none */
	struct pci_bar bar[PCI_BARS];
	unsigned msix_vectors;
	uint32_t *msix_table;	/* msix_vectors * PCI_MSIX_ENTRY, in the device's state */
	uint64_t *msix_pending; /* the same */
	bool deferred;
	bool intx;	 /* what the device says, under its lock */
	bool intx_wired; /* what the bus sees of it, under the bus's lock */
	bool added;
	struct pci_function *next; /* the bus's list */
};

/* The bus as a device of the chipset: the class "pci". It sets vm->pci and claims ports 0xCF8-0xCFF and
 * the ECAM window. */
extern const struct device_class pci_bus_class;

/* Reads bus, slot and function out of the path of a node "pci.B.S.F". -EINVAL with text. */
int pci_address_read(const struct config *node, struct pci_address *addr, struct error *err);

/*
 * Life of a function. init: the masks are allocated; the header gets the ids, the class, and the command,
 * status, cache line size and interrupt line registers as every function has them. config: `size` bytes
 * (256 or 4096) inside the device's state. Then the pci_set*() below, then add, then pci_function_reset().
 * On the way down: del, then destroy; both do nothing if there is nothing to do.
 */
int pci_function_init(struct pci_function *fn, struct device *device, struct pci_address addr,
		      const struct pci_function_ops *ops, uint8_t *config, unsigned size,
		      struct error *err);
void pci_function_destroy(struct pci_function *fn);
/* Puts it on vm->pci. -EEXIST with text if its place is taken, -ENODEV if the VM has no PCI bus. */
int pci_function_add(struct pci_function *fn, struct error *err);
/* Afterwards no access is under way or can begin. Not from a handler, not under a device lock. */
void pci_function_del(struct pci_function *fn);
/* The bytes as after power-on. Call it in the device's reset. */
void pci_function_reset(struct pci_function *fn);
/* After a restore: what cannot differ from reset is set to that again. Call it in the device's resume. */
void pci_function_resume(struct pci_function *fn);

/* The value of a register after reset; little-endian as all of PCI. Before pci_function_add(). */
void pci_set8(struct pci_function *fn, unsigned offset, uint8_t value);
void pci_set16(struct pci_function *fn, unsigned offset, uint16_t value);
void pci_set32(struct pci_function *fn, unsigned offset, uint32_t value);
void pci_set_class(struct pci_function *fn, uint8_t cls, uint8_t subclass, uint8_t prog);
/* Which of its bits a guest can write / clear by writing ones / the device changes. */
void pci_set_writable(struct pci_function *fn, unsigned offset, unsigned size, uint32_t mask);
void pci_set_clearable(struct pci_function *fn, unsigned offset, unsigned size, uint32_t mask);
void pci_set_internal(struct pci_function *fn, unsigned offset, unsigned size, uint32_t mask);
/* Appends a capability of `len` bytes, its first two (id, next) included, and returns its offset; 0 if
 * there is no room below 256. */
unsigned pci_add_capability(struct pci_function *fn, uint8_t id, unsigned len);
/* PCI Express 3.0 section 7.8: version 2, device/port type as in its table 7-13. Returns the offset. */
unsigned pci_add_express(struct pci_function *fn, unsigned port_type);
#define PCI_EXPRESS_ENDPOINT 0
#define PCI_EXPRESS_ROOT_PORT 4
#define PCI_EXPRESS_INTEGRATED 9 /* an endpoint of the root complex: it has no link */
/* PCI Power Management 1.2: D0 and D3hot, no PME; D3hot changes nothing but the register. Returns the offset. */
unsigned pci_add_power(struct pci_function *fn);

/*
 * BARs, before pci_function_add(), which assigns the addresses. `size` is a power of two, 4 or more (I/O) or 16
 * (memory). A PCI_BAR_MEM64 takes `n` and n + 1. The handlers get offsets into the BAR and are called without any
 * lock.
 */
void pci_add_bar(struct pci_function *fn, unsigned n, enum pci_bar_kind kind, uint64_t size,
		 const char *name, const struct io_ops *ops, void *arg);

/* Registers of the BAR that an engine may serve by itself (vmm/engine.h); their addr is an offset into the BAR. The array
 * is the caller's and stays unchanged until pci_function_del(). The BAR's handlers do the same. */
void pci_add_doorbells(struct pci_function *fn, unsigned n, const struct doorbell *doorbell,
		       unsigned doorbells);

/*
 * Interrupts. INTx: the pin follows the number of the function. MSI: `vectors` (a power of two up to 32) with 64-bit
 * addresses and masks. MSI-X: a memory BAR of its own, a 4 KiB page; table and pending bits are in the device's state.
 * Nothing is sent while the function may not be a bus master.
 * All calls below are made under the device's lock.
 */
void pci_add_intx(struct pci_function *fn);
unsigned pci_add_msi(struct pci_function *fn, unsigned vectors);
unsigned pci_add_msix(struct pci_function *fn, unsigned n, unsigned vectors, uint32_t *table,
		      uint64_t *pending);
bool pci_msi_enabled(const struct pci_function *fn);
bool pci_msix_enabled(const struct pci_function *fn);
/* One message of a vector, by whichever of MSI-X and MSI the guest has enabled; held back while it is masked. False:
 * neither is enabled, use INTx. A vector out of range is dropped; of MSI the guest may have enabled fewer: modulo. */
bool pci_message(struct pci_function *fn, unsigned vector);
/* The level that the function drives its pin to; the wire is shared, and quiet while the guest disables INTx. */
void pci_intx_set(struct pci_function *fn, bool level);

/* A register as it is now. Under the device's lock, or with the vCPUs parked. */
uint8_t pci_get8(const struct pci_function *fn, unsigned offset);
uint16_t pci_get16(const struct pci_function *fn, unsigned offset);
uint32_t pci_get32(const struct pci_function *fn, unsigned offset);

/* Sets header registers from a node's "pcireg.vendor", "device", "revid", "subvendor", "subdevice". */
int pci_set_ids_from(struct pci_function *fn, struct config *node, struct error *err);

/* The function there, or NULL. It stays valid while the caller keeps it from being removed. */
struct pci_function *pci_function_find(struct pci_bus *bus, struct pci_address addr);
/* The first function of a class at or after *addr, in order of address, or NULL; *addr becomes its
 * address. cls -1: any. To go on, pass what pci_address_next() makes of it. */
struct pci_function *pci_function_search(struct pci_bus *bus, struct pci_address *addr, int cls,
					 int subclass);
/* The next possible address; false after the last. */
bool pci_address_next(struct pci_address *addr);

/* What a guest sees. size 1, 2 or 4, inside a dword; a function or byte that is not there reads as ones.
 * Any thread that called io_thread_enter(). */
uint32_t pci_config_read(struct pci_bus *bus, struct pci_address addr, unsigned offset,
			 unsigned size);
void pci_config_write(struct pci_bus *bus, struct pci_address addr, unsigned offset, unsigned size,
		      uint32_t value);

/*
 * INTx wiring, the same for _PRT, the MP table and whoever drives the lines: pin 1 to 4 (INTA..INTD) of a
 * slot is wire 0 to 7, which is I/O APIC pin 16 + wire and PIRQ A + wire of the LPC bridge.
 */
static inline unsigned pci_intx_wire(unsigned slot, unsigned pin)
{
	return (slot + pin - 1) & 7;
}
#define PCI_INTX_GSI_BASE 16
#define PCI_WIRES 8

/* PIRQ routing, by the LPC bridge: the wire also drives this ISA interrupt; 0: none. */
void pci_wire_route(struct pci_bus *bus, unsigned wire, unsigned isa_irq);

/* Calls `each` for every window of a bus. Once all functions were added. */
void pci_windows(struct pci_bus *bus, uint8_t number,
		 void (*each)(void *arg, const struct pci_window *window), void *arg);

/* The 64-bit window for BARs: above all RAM that ends at `ram_end`, a multiple of its own size. */
static inline uint64_t pci_mem64_base(uint64_t ram_end)
{
	return (ram_end + PCI_MEM64_SIZE - 1) / PCI_MEM64_SIZE * PCI_MEM64_SIZE;
}

/* Port 0xCF9 lies inside the address register's dword, yet is a register of its own, the reset control:
 * byte accesses to it are handed to these. Without them it reads as ones. Before the VM runs. */
void pci_set_reset_control(struct pci_bus *bus, struct device *reset,
			   uint8_t (*read)(struct device *reset),
			   void (*write)(struct device *reset, uint8_t value));

#endif
