/*
 * The I/O APIC: Intel 82093AA (data sheet 290566-001), 24 pins at FEC00000, version 0x11 (thus no EOI
 * register), fed by the interrupt lines. Messages go to the local APICs as MSIs (Intel SDM vol. 3,
 * "Message Signalled Interrupts").
 *
 * A line's level means "asserted": which voltage that is was settled where the line is driven, so the
 * polarity bit of a redirection entry is kept but inverts nothing. A message is accepted at once: the
 * delivery status bit always reads 0. The pin of the PIC's INTR (0, in the MP table) is not wired: the
 * PIC reaches the CPUs by LINT0. The APIC bus and its arbitration are left out but for the register.
 */
#include "chipset/ioapic.h"

#include <errno.h>

#include "bus/io.h"
#include "bus/irq.h"
#include "vmm/vm.h"

#define IOREGSEL 0x00
#define IOWIN 0x10

#define REG_ID 0x00
#define REG_VERSION 0x01
#define REG_ARBITRATION 0x02
#define REG_RTE 0x10

#define ID_MASK 0x0f000000u

#define RTE_VECTOR 0xffull
#define RTE_MODE 0x700ull
#define RTE_MODE_LOWEST 0x100ull
#define RTE_LOGICAL (1ull << 11)
#define RTE_REMOTE_IRR (1ull << 14)
#define RTE_LEVEL (1ull << 15)
#define RTE_MASKED (1ull << 16)
#define RTE_DEST_SHIFT 56
#define RTE_WRITABLE 0xff0000000001afffull

#define MSI_ADDR 0xfee00000ull
#define MSI_ADDR_DEST_SHIFT 12
#define MSI_ADDR_REDIRECT (1u << 3) /* to the lowest priority of the destination */
#define MSI_ADDR_LOGICAL (1u << 2)
#define MSI_DATA_ASSERT (1u << 14)
#define MSI_DATA_LEVEL (1u << 15)

struct ioapic_state {
	uint32_t id, arbitration; /* as the registers read */
	uint32_t lines;		  /* levels of the pins */
	uint64_t rte[IOAPIC_PINS];
	uint8_t index;
};

struct ioapic {
	struct device device;
	struct ioapic_state state;
	struct io_range range;
};

static bool ioapic_check(const void *state)
{
	const struct ioapic_state *s = state;

	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		if (s->rte[pin] & ~(RTE_WRITABLE | RTE_REMOTE_IRR))
			return false;
	}
	return !((s->id | s->arbitration) & ~ID_MASK) && !(s->lines >> IOAPIC_PINS);
}

static const struct state_field ioapic_fields[] = {
	STATE_AT(struct ioapic_state, id, IOAPIC_ID << 24),
	STATE_AT(struct ioapic_state, arbitration, IOAPIC_ID << 24),
	STATE(struct ioapic_state, lines),
	STATE_ARRAY_OPT(struct ioapic_state, rte, RTE_MASKED, 0),
	STATE(struct ioapic_state, index),
};
static const struct state_table ioapic_table =
	STATE_TABLE("ioapic", struct ioapic_state, ioapic_fields, 1, ioapic_check);

static bool rte_is_level(uint64_t rte)
{
	/* The other modes (SMI, NMI, INIT, ExtINT) act as edges even if programmed as level (82093AA,
	 * "Delivery Mode"); they have no EOI that could end a level. */
	return (rte & RTE_LEVEL) && (rte & RTE_MODE) <= RTE_MODE_LOWEST;
}

static struct msi rte_msi(uint64_t rte)
{
	struct msi msi = {.addr = MSI_ADDR, .data = rte & (RTE_VECTOR | RTE_MODE)};

	msi.addr |= rte >> RTE_DEST_SHIFT << MSI_ADDR_DEST_SHIFT;
	if (rte & RTE_LOGICAL)
		msi.addr |= MSI_ADDR_LOGICAL;
	if ((rte & RTE_MODE) == RTE_MODE_LOWEST)
		msi.addr |= MSI_ADDR_REDIRECT;
	if (rte_is_level(rte))
		msi.data |= MSI_DATA_LEVEL | MSI_DATA_ASSERT;
	return msi;
}

/* A masked pin whose interrupt is in service keeps its route: guests mask a pin, then do its EOI, and the
 * engine must tell of that. */
static void pin_route(struct ioapic *apic, unsigned pin)
{
	uint64_t rte = apic->state.rte[pin];
	struct msi msi = rte_msi(rte);
	bool routed = !(rte & RTE_MASKED) || (rte & RTE_REMOTE_IRR);

	vm_ioapic_route(apic->device.vm, pin, routed ? &msi : NULL, rte_is_level(rte));
}

static void pin_send(struct ioapic *apic, unsigned pin)
{
	uint64_t *rte = &apic->state.rte[pin];
	struct msi msi = rte_msi(*rte);

	/* Before the message: its EOI may be under way when vm_msi() returns. */
	if (rte_is_level(*rte))
		*rte |= RTE_REMOTE_IRR;
	vm_msi(apic->device.vm, msi.addr, msi.data);
}

/* A level that nobody has been told of. */
static void pin_evaluate(struct ioapic *apic, unsigned pin)
{
	uint64_t rte = apic->state.rte[pin];

	if (rte_is_level(rte) && !(rte & (RTE_MASKED | RTE_REMOTE_IRR)) &&
	    (apic->state.lines & 1u << pin))
		pin_send(apic, pin);
}

/* A sink of the lines. An edge on a masked pin is lost (82093AA, "Interrupt Mask"). */
static void ioapic_line(void *arg, unsigned gsi, bool level)
{
	struct ioapic *apic = arg;
	struct ioapic_state *s = &apic->state;
	uint32_t bit = 1u << gsi;
	bool rises;

	if (gsi >= IOAPIC_PINS)
		return;
	pthread_mutex_lock(&apic->device.lock);
	rises = level && !(s->lines & bit);
	if (level)
		s->lines |= bit;
	else
		s->lines &= ~bit;
	if (rte_is_level(s->rte[gsi]))
		pin_evaluate(apic, gsi);
	else if (rises && !(s->rte[gsi] & RTE_MASKED))
		pin_send(apic, gsi);
	pthread_mutex_unlock(&apic->device.lock);
}

static void ioapic_eoi(void *arg, uint8_t vector)
{
	struct ioapic *apic = arg;

	pthread_mutex_lock(&apic->device.lock);
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		uint64_t *rte = &apic->state.rte[pin];

		if (!(*rte & RTE_REMOTE_IRR) || (*rte & RTE_VECTOR) != vector)
			continue;
		*rte &= ~RTE_REMOTE_IRR;
		if (*rte & RTE_MASKED)
			pin_route(apic, pin);
		pin_evaluate(apic, pin);
	}
	pthread_mutex_unlock(&apic->device.lock);
}

static void rte_write(struct ioapic *apic, unsigned pin, uint64_t value)
{
	uint64_t *rte = &apic->state.rte[pin];

	value = (value & RTE_WRITABLE) | (*rte & RTE_REMOTE_IRR);
	/* Guests end a stuck level interrupt of a version 0x11 by a turn to edge and back. */
	if (!rte_is_level(value))
		value &= ~RTE_REMOTE_IRR;
	if (value == *rte)
		return;
	*rte = value;
	pin_route(apic, pin);
	pin_evaluate(apic, pin);
}

static uint32_t window_read(const struct ioapic_state *s)
{
	unsigned pin = (s->index - REG_RTE) / 2u;

	switch (s->index) {
	case REG_ID:
		return s->id;
	case REG_VERSION:
		return (IOAPIC_PINS - 1) << 16 | IOAPIC_VERSION;
	case REG_ARBITRATION:
		return s->arbitration;
	default:
		if (s->index < REG_RTE || pin >= IOAPIC_PINS)
			return 0;
		return s->index & 1 ? s->rte[pin] >> 32 : s->rte[pin];
	}
}

static void window_write(struct ioapic *apic, uint32_t value)
{
	struct ioapic_state *s = &apic->state;
	unsigned pin = (s->index - REG_RTE) / 2u;

	if (s->index == REG_ID) {
		/* Writing the id loads the arbitration id too (82093AA, "IOAPICARB"). */
		s->id = value & ID_MASK;
		s->arbitration = s->id;
	} else if (s->index >= REG_RTE && pin < IOAPIC_PINS) {
		if (s->index & 1)
			rte_write(apic, pin, (uint64_t)value << 32 | (uint32_t)s->rte[pin]);
		else
			rte_write(apic, pin, (s->rte[pin] & ~0xffffffffull) | value);
	}
}

/* Both registers are 32 bits wide at a 16-byte boundary; of the index only the low byte exists, which may
 * be accessed alone. The rest of the page is empty. */
static uint64_t ioapic_read(void *arg, uint64_t offset, unsigned size)
{
	struct ioapic *apic = arg;
	uint64_t reg = offset & ~3ull;
	uint32_t value = 0;

	pthread_mutex_lock(&apic->device.lock);
	if (reg == IOREGSEL)
		value = apic->state.index;
	else if (reg == IOWIN)
		value = window_read(&apic->state);
	pthread_mutex_unlock(&apic->device.lock);
	value >>= (offset & 3) * 8;
	return size == 4 ? value : value & ((1u << size * 8) - 1);
}

static void ioapic_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct ioapic *apic = arg;

	pthread_mutex_lock(&apic->device.lock);
	if (offset == IOREGSEL)
		apic->state.index = value;
	else if (offset == IOWIN && size == 4)
		window_write(apic, value);
	pthread_mutex_unlock(&apic->device.lock);
}

static const struct io_ops ioapic_ops = {IO_1 | IO_2 | IO_4, ioapic_read, ioapic_write};

/* The engine's routes follow the state. */
static void ioapic_resume(struct device *device)
{
	struct ioapic *apic = (struct ioapic *)device;

	pthread_mutex_lock(&device->lock);
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		pin_route(apic, pin);
	pthread_mutex_unlock(&device->lock);
}

static void ioapic_destroy(struct device *device)
{
	struct ioapic *apic = (struct ioapic *)device;

	io_range_del(&device->vm->mmio, &apic->range);
	io_bus_synchronize(&device->vm->mmio);
	irq_router_del_sink(&device->vm->irq, apic);
	device->vm->ioapic_eoi = NULL;
	device_free(device);
}

static int ioapic_create(struct vm *vm, struct config *config, struct device **out,
			 struct error *err)
{
	struct ioapic *apic = device_alloc(&ioapic_class, vm, sizeof(*apic), "ioapic");
	int rc;

	(void)config;
	if (!apic)
		return error_set(err, ENOMEM, "no memory for the I/O APIC");
	apic->range = (struct io_range){"ioapic", IOAPIC_BASE, IOAPIC_SIZE, &ioapic_ops, apic};
	rc = io_range_add(&vm->mmio, &apic->range, err);
	if (rc) {
		device_free(&apic->device);
		return rc;
	}
	vm->ioapic_eoi_arg = apic;
	vm->ioapic_eoi = ioapic_eoi;
	irq_router_add_sink(&vm->irq, ioapic_line, apic);
	*out = &apic->device;
	return 0;
}

const struct device_class ioapic_class = {
	.name = "ioapic",
	.help = "ioapic  82093AA I/O APIC",
	.kind = DEVICE_CHIPSET,
	.create = ioapic_create,
	.destroy = ioapic_destroy,
	.reset = ioapic_resume,
	.resume = ioapic_resume,
	.table = &ioapic_table,
	.state_offset = offsetof(struct ioapic, state),
};
DEVICE_REGISTER(ioapic_class);
