/*
 * AHCI: the host bus adapter's and its ports' registers (Serial ATA AHCI 1.3.1, section 3), interrupts, and resets
 * (section 10.4). What is left out is said in ahci.c.
 */
#include "devices/ahci.h"

#define PORT_REGISTERS 0x100u
#define PORT_SIZE 0x80u

/* 3.1: generic host control */
enum hba_register {
	HBA_CAP = 0x00,
	HBA_GHC = 0x04,
	HBA_IS = 0x08,
	HBA_PI = 0x0c,
	HBA_VS = 0x10,
	HBA_CAP2 = 0x24
};

#define CAP_64BIT (1u << 31)
#define CAP_NCQ (1u << 30)
#define CAP_COMMAND_LIST_OVERRIDE (1u << 24)
#define CAP_GEN2 (2u << 20)
#define CAP_AHCI_ONLY (1u << 18)
#define CAP_SLOTS(n) (((n)-1u) << 8)

#define GHC_RESET (1u << 0)
#define GHC_INTERRUPTS (1u << 1)

/* 3.3: port registers */
enum port_register {
	PORT_CLB = 0x00,
	PORT_CLBU = 0x04,
	PORT_FB = 0x08,
	PORT_FBU = 0x0c,
	PORT_IS = 0x10,
	PORT_IE = 0x14,
	PORT_CMD = 0x18,
	PORT_TFD = 0x20,
	PORT_SIG = 0x24,
	PORT_SSTS = 0x28,
	PORT_SCTL = 0x2c,
	PORT_SERR = 0x30,
	PORT_SACT = 0x34,
	PORT_CI = 0x38,
};

#define PORT_IS_ALL 0xfdc000ffu

#define SSTS_UP 0x123u /* a device, 3 Gb/s, active */

void ahci_interrupt_follow(struct ahci *ahci)
{
	struct ahci_state *s = &ahci->state;
	uint32_t before = s->is;

	for (unsigned i = 0; i < ahci->ports; i++)
		if (s->port_is[i] & s->port_ie[i])
			s->is |= 1u << i;
	if (!(s->ghc & GHC_INTERRUPTS) || !s->is) {
		pci_intx_set(&ahci->fn, false);
		return;
	}
	if (pci_msi_enabled(&ahci->fn)) {
		pci_intx_set(&ahci->fn, false);
		if (s->is & ~before)
			pci_message(&ahci->fn, 0);
		return;
	}
	pci_intx_set(&ahci->fn, true);
}

void ahci_port_interrupt(struct ahci_port *port, uint32_t bits)
{
	struct ahci *ahci = port->ahci;

	ahci->state.port_is[port->index] |= bits;
	/* A message for each event, though the driver has not taken the last one yet. */
	if (ahci->state.port_is[port->index] & ahci->state.port_ie[port->index])
		ahci->state.is &= ~(1u << port->index);
	ahci_interrupt_follow(ahci);
}

static void port_reset(struct ahci_port *port)
{
	struct ahci_state *s = &port->ahci->state;
	unsigned p = port->index;

	s->port_is[p] = s->port_ie[p] = 0;
	s->cmd[p] = PORT_CMD_SPIN_UP | PORT_CMD_POWER_ON | (port->cd ? PORT_CMD_ATAPI : 0);
	s->sctl[p] = s->serr[p] = s->sact[p] = s->ci[p] = 0;
	port->epoch++;
	s->failed[p] = s->in_reset[p] = s->uncached[p] = false;
	ahci_port_signature(port, false);
}

static void ahci_hba_reset(struct ahci *ahci)
{
	ahci->state.ghc = GHC_AHCI;
	ahci->state.is = 0;
	for (unsigned i = 0; i < ahci->ports; i++)
		port_reset(&ahci->port[i]);
	ahci_interrupt_follow(ahci);
}

/* Under the lock, which it gives up meanwhile: nothing is under way any more. */
void ahci_stop(struct ahci *ahci, bool discard)
{
	ahci->parked = true;
	while (ahci->busy)
		pthread_cond_wait(&ahci->idle, &ahci->device.lock);
	pthread_mutex_unlock(&ahci->device.lock);
	for (unsigned i = 0; i < ahci->ports; i++) {
		if (discard)
			block_cancel(ahci->port[i].block);
		else
			block_drain(ahci->port[i].block);
	}
	pthread_mutex_lock(&ahci->device.lock);
}

void ahci_restart(struct ahci *ahci)
{
	ahci->parked = ahci->quiesced;
	pthread_cond_broadcast(&ahci->work);
}

void ahci_stop_begin(struct ahci *ahci)
{
	while (ahci->stopping)
		pthread_cond_wait(&ahci->idle, &ahci->device.lock);
	ahci->stopping = true;
}

void ahci_stop_end(struct ahci *ahci)
{
	ahci->stopping = false;
	pthread_cond_broadcast(&ahci->idle);
}

void ahci_guest_reset(struct ahci *ahci, bool function)
{
	pthread_mutex_lock(&ahci->device.lock);
	ahci_stop_begin(ahci);
	ahci_stop(ahci, true);
	ahci_hba_reset(ahci);
	if (function) {
		pci_function_reset(&ahci->fn);
		ahci->master = false;
	}
	ahci_restart(ahci);
	ahci_stop_end(ahci);
	pthread_mutex_unlock(&ahci->device.lock);
}

static void port_command(struct ahci_port *port, uint32_t value)
{
	struct ahci_state *s = &port->ahci->state;
	unsigned p = port->index;
	uint32_t old = s->cmd[p], new = (old & ~PORT_CMD_WRITABLE) | (value & PORT_CMD_WRITABLE);

	if ((new &PORT_CMD_START) && !(old & PORT_CMD_START)) {
		new |= PORT_CMD_RUNNING;
		s->failed[p] = false;
	}
	if (!(new &PORT_CMD_START) && (old & PORT_CMD_START)) {
		s->ci[p] = s->sact[p] = 0;
		port->epoch++;
	}
	new = new &PORT_CMD_FIS_ENABLE ? new | PORT_CMD_FIS_RUNNING : new & ~PORT_CMD_FIS_RUNNING;
	if (value & PORT_CMD_OVERRIDE)
		s->tfd[p] &= ~(uint32_t)(ATA_BUSY | ATA_DATA_REQUEST);
	s->cmd[p] = new;
	ahci_port_idle(port);
}

static void port_write(struct ahci_port *port, unsigned offset, uint32_t value)
{
	struct ahci_state *s = &port->ahci->state;
	unsigned p = port->index;

	switch (offset) {
	case PORT_CLB:
		s->clb[p] = (s->clb[p] & ~0xffffffffull) | (value & ~0x3ffu);
		break;
	case PORT_CLBU:
		s->clb[p] = (s->clb[p] & 0xffffffff) | (uint64_t)value << 32;
		break;
	case PORT_FB:
		s->fb[p] = (s->fb[p] & ~0xffffffffull) | (value & ~0xffu);
		break;
	case PORT_FBU:
		s->fb[p] = (s->fb[p] & 0xffffffff) | (uint64_t)value << 32;
		break;
	case PORT_IS:
		s->port_is[p] &= ~value;
		break;
	case PORT_IE:
		s->port_ie[p] = value & PORT_IS_ALL;
		break;
	case PORT_CMD:
		port_command(port, value);
		break;
	case PORT_SCTL:
		if ((value & 15) == 0 && (s->sctl[p] & 15) == 1)
			ahci_port_signature(port, true); /* COMRESET has ended */
		s->sctl[p] = value & 0xfff;
		break;
	case PORT_SERR:
		s->serr[p] &= ~value;
		break;
	case PORT_SACT:
		if (s->cmd[p] & PORT_CMD_START)
			s->sact[p] |= value;
		break;
	case PORT_CI:
		if (s->cmd[p] & PORT_CMD_START)
			s->ci[p] |= value;
		break;
	}
	pthread_cond_signal(&port->ahci->work);
	ahci_interrupt_follow(port->ahci);
}

static uint32_t port_read(const struct ahci_port *port, unsigned offset)
{
	const struct ahci_state *s = &port->ahci->state;
	unsigned p = port->index;

	switch (offset) {
	case PORT_CLB:
		return (uint32_t)s->clb[p];
	case PORT_CLBU:
		return (uint32_t)(s->clb[p] >> 32);
	case PORT_FB:
		return (uint32_t)s->fb[p];
	case PORT_FBU:
		return (uint32_t)(s->fb[p] >> 32);
	case PORT_IS:
		return s->port_is[p];
	case PORT_IE:
		return s->port_ie[p];
	case PORT_CMD:
		return s->cmd[p];
	case PORT_TFD:
		return s->tfd[p];
	case PORT_SIG:
		return s->sig[p];
	case PORT_SSTS:
		return (s->sctl[p] & 15) == 1 ? 0 : SSTS_UP;
	case PORT_SCTL:
		return s->sctl[p];
	case PORT_SERR:
		return s->serr[p];
	case PORT_SACT:
		return s->sact[p];
	case PORT_CI:
		return s->ci[p];
	}
	return 0;
}

static uint64_t abar_read(void *arg, uint64_t offset, unsigned size)
{
	struct ahci *ahci = arg;
	uint32_t value = 0;

	(void)size;
	pthread_mutex_lock(&ahci->device.lock);
	if (offset >= PORT_REGISTERS) {
		unsigned p = (unsigned)(offset - PORT_REGISTERS) / PORT_SIZE;

		if (p < ahci->ports)
			value = port_read(&ahci->port[p], (offset - PORT_REGISTERS) % PORT_SIZE);
	} else if (offset == HBA_CAP) {
		value = CAP_64BIT | CAP_NCQ | CAP_COMMAND_LIST_OVERRIDE | CAP_GEN2 | CAP_AHCI_ONLY |
			CAP_SLOTS(AHCI_SLOTS) | (ahci->ports - 1);
	} else if (offset == HBA_GHC) {
		value = ahci->state.ghc;
	} else if (offset == HBA_IS) {
		value = ahci->state.is;
	} else if (offset == HBA_PI) {
		value = (1u << ahci->ports) - 1;
	} else if (offset == HBA_VS) {
		value = 0x00010301;
	}
	pthread_mutex_unlock(&ahci->device.lock);
	return value;
}

static void abar_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct ahci *ahci = arg;

	(void)size;
	if (offset == HBA_GHC && (value & GHC_RESET)) {
		ahci_guest_reset(ahci, false);
		return;
	}
	pthread_mutex_lock(&ahci->device.lock);
	if (offset >= PORT_REGISTERS) {
		unsigned p = (unsigned)(offset - PORT_REGISTERS) / PORT_SIZE;

		if (p < ahci->ports)
			port_write(&ahci->port[p], (offset - PORT_REGISTERS) % PORT_SIZE,
				   (uint32_t)value);
	} else if (offset == HBA_GHC) {
		ahci->state.ghc = GHC_AHCI | (value & GHC_INTERRUPTS);
		ahci_interrupt_follow(ahci);
	} else if (offset == HBA_IS) {
		ahci->state.is &= ~(uint32_t)value;
		ahci_interrupt_follow(ahci);
	}
	pthread_mutex_unlock(&ahci->device.lock);
}

const struct io_ops ahci_abar_ops = {.sizes = IO_4, .read = abar_read, .write = abar_write};
