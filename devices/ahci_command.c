/*
 * AHCI: the command engine of a port (Serial ATA AHCI 1.3.1, sections 4 and 5): a command is read once from the guest's
 * memory (header, FIS, PRD entries), checked, handed to the disk or the CD drive, moved by the back end in pieces of up
 * to AHCI_IOVS PRD entries, and ended with the FISes that the guest waits for. What is left out is said in ahci.c.
 */
#include "devices/ahci.h"

#include <signal.h>
#include <string.h>

#define SIG_DISK 0x00000101u
#define SIG_CD 0xeb140101u

/* FIS types (Serial ATA 3.0, section 10.3) and their places in the received FIS area (AHCI 4.2.1) */
#define FIS_H2D 0x27
#define FIS_D2H 0x34
#define FIS_SDB 0xa1
#define FIS_PIO_SETUP 0x5f
#define AREA_PIO 0x20
#define AREA_D2H 0x40
#define AREA_SDB 0x58

#define HEADER_FIS_LEN 0x1fu
#define HEADER_WRITE (1u << 6)

#define PRD_OFFSET 0x80u

static struct memory *memory_of(struct ahci_slot *slot)
{
	return &slot->port->ahci->device.vm->memory;
}

/* --- FISes: under the lock -------------------------------------------------------------------------- */

static void fis_post(struct ahci_port *port, unsigned area, const uint8_t *fis, unsigned len)
{
	struct ahci *ahci = port->ahci;

	if (ahci->state.cmd[port->index] & PORT_CMD_FIS_ENABLE)
		memory_write(&ahci->device.vm->memory, ahci->state.fb[port->index] + area, fis,
			     len);
}

static void fis_d2h(struct ahci_port *port, const uint8_t *h2d, uint8_t status, uint8_t error)
{
	uint8_t fis[20] = {FIS_D2H, 0x40, status, error};

	memcpy(fis + 4, h2d + 4, 10);
	fis_post(port, AREA_D2H, fis, sizeof(fis));
}

/* The device's signature, as after a reset. */
void ahci_port_signature(struct ahci_port *port, bool fis)
{
	struct ahci_state *s = &port->ahci->state;
	uint32_t sig = port->cd ? SIG_CD : SIG_DISK;
	uint8_t h2d[20] = {0};

	s->sig[port->index] = sig;
	s->tfd[port->index] = port->cd ? ATA_CD_READY : ATA_READY_AFTER_RESET;
	h2d[4] = (uint8_t)(sig >> 8);
	h2d[5] = (uint8_t)(sig >> 16);
	h2d[6] = (uint8_t)(sig >> 24);
	h2d[12] = 1;
	if (fis)
		fis_d2h(port, h2d, (uint8_t)s->tfd[port->index], 1);
}

void ahci_port_idle(struct ahci_port *port)
{
	struct ahci_state *s = &port->ahci->state;

	if (!port->running && !(s->cmd[port->index] & PORT_CMD_START))
		s->cmd[port->index] &= ~PORT_CMD_RUNNING;
}

/* --- the end of a command -------------------------------------------------------------------------- */

static void error_remember(struct ahci_slot *slot, uint8_t status, uint8_t error)
{
	struct ahci_state *s = &slot->port->ahci->state;
	unsigned p = slot->port->index;

	s->error_tag[p] = slot->index;
	s->error_status[p] = (uint16_t)(status | error << 8);
	s->error_lba[p] = ahci_lba48(slot->fis);
}

static void queued_end(struct ahci_slot *slot, uint8_t status, uint8_t error)
{
	struct ahci_port *port = slot->port;
	struct ahci_state *s = &port->ahci->state;
	uint32_t bit = 1u << slot->index;
	uint8_t fis[8] = {FIS_SDB, 0x40, status & 0x77, error};

	s->tfd[port->index] = (uint32_t)(status | error << 8);
	if (status & ATA_ERR) {
		error_remember(slot, status, error);
		fis_post(port, AREA_SDB, fis, sizeof(fis));
		ahci_port_interrupt(port, PORT_IS_TASK_FILE | PORT_IS_SDB);
		return;
	}
	memcpy(fis + 4, &bit, 4);
	s->sact[port->index] &= ~bit;
	fis_post(port, AREA_SDB, fis, sizeof(fis));
	ahci_port_interrupt(port, PORT_IS_SDB);
}

static void single_end(struct ahci_slot *slot, uint8_t status, uint8_t error)
{
	struct ahci_port *port = slot->port;
	struct ahci_state *s = &port->ahci->state;

	s->tfd[port->index] = (uint32_t)(status | error << 8);
	fis_d2h(port, slot->fis, status, error);
	if (status & ATA_ERR) {
		ahci_port_interrupt(port, PORT_IS_TASK_FILE | PORT_IS_D2H);
		return;
	}
	s->ci[port->index] &= ~(1u << slot->index);
	ahci_port_interrupt(port, PORT_IS_D2H | (slot->pio ? PORT_IS_PIO : 0));
}

void ahci_slot_end(struct ahci_slot *slot, uint8_t status, uint8_t error)
{
	struct ahci_port *port = slot->port;
	struct ahci *ahci = port->ahci;
	uint32_t bytes = (uint32_t)slot->done;
	bool live;

	pthread_mutex_lock(&ahci->device.lock);
	live = ahci->state.cmd[port->index] & PORT_CMD_START && slot->epoch == port->epoch;
	port->running &= ~(1u << slot->index);
	port->single = port->single && slot->queued;
	if (live) {
		memory_write(&ahci->device.vm->memory, slot->header + 4, &bytes, sizeof(bytes));
		if (status & ATA_ERR)
			ahci->state.failed[port->index] =
				true; /* until the driver stops the port (6.2.2) */
		if (slot->queued)
			queued_end(slot, status, error);
		else
			single_end(slot, status, error);
	}
	ahci_port_idle(port);
	pthread_cond_signal(&ahci->work);
	pthread_mutex_unlock(&ahci->device.lock);
}

void ahci_slot_abort(struct ahci_slot *slot)
{
	ahci_slot_end(slot, ATA_READY | ATA_ERR, ATA_ABORTED);
}

/* --- data ------------------------------------------------------------------------------------------ */

/* Entries from `skip` bytes of the table on, `most` bytes at most; fills iov and gpa. False: the table is not in
 * memory, or a buffer is not. */
bool ahci_prds_collect(struct ahci_slot *slot, uint64_t skip, uint64_t most, bool to_guest)
{
	struct memory *mem = memory_of(slot);

	slot->iovs = 0;
	slot->piece = 0;
	slot->to_guest = to_guest;
	for (unsigned i = 0; i < slot->prds && slot->piece < most && slot->iovs < AHCI_IOVS; i++) {
		struct {
			uint64_t addr;
			uint32_t reserved, count;
		} prd;
		uint64_t len;
		void *base;

		if (memory_read(mem, slot->table + PRD_OFFSET + 16ull * i, &prd, sizeof(prd)))
			return false;
		len = (prd.count & 0x3fffff) + 1;
		if (skip >= len) {
			skip -= len;
			continue;
		}
		prd.addr += skip;
		len = len - skip < most - slot->piece ? len - skip : most - slot->piece;
		skip = 0;
		base = to_guest ? memory_write_begin(mem, prd.addr, len)
				: (void *)(uintptr_t)memory_read_ptr(mem, prd.addr, len);
		if (!base)
			return false;
		slot->iov[slot->iovs] = (struct iovec){base, len};
		slot->gpa[slot->iovs++] = prd.addr;
		slot->piece += len;
	}
	return true;
}

void ahci_prds_release(struct ahci_slot *slot)
{
	for (unsigned i = 0; i < slot->iovs && slot->to_guest; i++)
		memory_write_end(memory_of(slot), slot->gpa[i], slot->iov[i].iov_len);
	slot->iovs = 0;
}

bool ahci_data_in(struct ahci_slot *slot, const void *bytes, uint32_t len)
{
	bool good = ahci_prds_collect(slot, 0, len, true);

	for (unsigned i = 0; i < slot->iovs; i++) {
		memcpy(slot->iov[i].iov_base, (const uint8_t *)bytes + slot->done,
		       slot->iov[i].iov_len);
		slot->done += slot->iov[i].iov_len;
	}
	ahci_prds_release(slot);
	return good;
}

void ahci_transfer_done(struct block_request *request, int error);

/* The next piece of a transfer, or its end. */
static void transfer_go(struct ahci_slot *slot)
{
	struct block *block = slot->port->block;
	uint32_t sector = block_geometry(block)->logical;
	bool read = slot->block.op == BLOCK_READ;

	if (slot->done == slot->total) {
		if (slot->flush_after && block_geometry(block)->write_cache) {
			slot->flush_after = false;
			slot->block.op = BLOCK_FLUSH;
			slot->block.offset = slot->block.length = 0;
			slot->block.iovs = 0;
			block_submit(block, &slot->block);
			block_kick(block);
			return;
		}
		ahci_slot_end(slot, ATA_READY, 0);
		return;
	}
	if (!ahci_prds_collect(slot, slot->done, slot->total - slot->done, read) ||
	    slot->piece < sector || slot->piece % sector) {
		/* A piece that ends inside a sector could only come of a table longer than any driver makes. */
		ahci_prds_release(slot);
		ahci_slot_abort(slot);
		return;
	}
	slot->block.offset = slot->offset + slot->done;
	slot->block.length = slot->piece;
	slot->block.iov = slot->iov;
	slot->block.iovs = slot->iovs;
	block_submit(block, &slot->block);
	block_kick(block);
}

void ahci_transfer_done(struct block_request *request, int error)
{
	struct ahci_slot *slot = request->arg;

	if (request->op == BLOCK_READ || request->op == BLOCK_WRITE) {
		ahci_prds_release(slot);
		if (!error) {
			slot->done += slot->piece;
			transfer_go(slot);
			return;
		}
	}
	if (error)
		slot->port->cd ? ahci_cd_unread(slot)
			       : ahci_slot_end(slot, ATA_READY | ATA_ERR, ATA_UNCORRECTABLE);
	else
		ahci_slot_end(slot, ATA_READY, 0);
}

void ahci_transfer(struct ahci_slot *slot, enum block_op op, uint64_t offset, uint64_t total)
{
	slot->block.op = op;
	slot->block.unmap = false;
	slot->block.done = ahci_transfer_done;
	slot->block.arg = slot;
	slot->offset = offset;
	slot->total = total;
	transfer_go(slot);
}

void ahci_pio_in(struct ahci_slot *slot, const void *bytes, uint32_t len)
{
	struct ahci *ahci = slot->port->ahci;
	uint8_t fis[20] = {FIS_PIO_SETUP, 0x60, ATA_READY};
	bool good = ahci_data_in(slot, bytes, len);

	fis[15] = ATA_READY;
	fis[16] = (uint8_t)len;
	fis[17] = (uint8_t)(len >> 8);
	slot->pio = true;
	pthread_mutex_lock(&ahci->device.lock);
	fis_post(slot->port, AREA_PIO, fis, sizeof(fis));
	pthread_mutex_unlock(&ahci->device.lock);
	if (good)
		ahci_slot_end(slot, ATA_READY, 0);
	else
		ahci_slot_abort(slot);
}

/* SRST in a control FIS: the device resets when it goes away (Serial ATA 3.0, section 13.2). */
static void slot_control(struct ahci_slot *slot)
{
	struct ahci_port *port = slot->port;
	struct ahci *ahci = port->ahci;
	bool reset = slot->fis[15] & 4;

	pthread_mutex_lock(&ahci->device.lock);
	if (ahci->state.in_reset[port->index] && !reset)
		ahci_port_signature(port, true);
	ahci->state.in_reset[port->index] = reset;
	port->running &= ~(1u << slot->index);
	port->single = false;
	ahci->state.ci[port->index] &= ~(1u << slot->index);
	ahci_port_idle(port);
	pthread_mutex_unlock(&ahci->device.lock);
}

/* --- the worker ------------------------------------------------------------------------------------ */

/* Under the lock: takes the next command of a port, or NULL. */
static struct ahci_slot *slot_next(struct ahci_port *port)
{
	struct ahci_state *s = &port->ahci->state;
	unsigned p = port->index;
	uint32_t due = s->ci[p] & ~port->running;
	struct ahci_slot *slot;

	if (!due || port->single || s->failed[p] || !(s->cmd[p] & PORT_CMD_START))
		return NULL;
	slot = &port->slot[__builtin_ctz(due)];
	slot->queued = s->sact[p] >> slot->index & 1;
	if (!slot->queued && port->running)
		return NULL; /* one that is not queued is alone */
	slot->header = s->clb[p] + 32ull * slot->index;
	slot->epoch = port->epoch;
	port->running |= 1u << slot->index;
	port->single = !slot->queued;
	if (slot->queued)
		s->ci[p] &= ~(1u << slot->index);
	return slot;
}

static void slot_begin(struct ahci_slot *slot)
{
	struct memory *mem = memory_of(slot);
	struct {
		uint16_t flags, prds;
		uint32_t count;
		uint64_t table;
	} header;

	slot->done = slot->total = 0;
	slot->iovs = 0;
	slot->pio = slot->flush_after = false;
	memset(slot->fis, 0, sizeof(slot->fis));
	if (memory_read(mem, slot->header, &header, sizeof(header)) ||
	    memory_read(mem, header.table & ~127ull, slot->fis, sizeof(slot->fis)) ||
	    slot->fis[0] != FIS_H2D || (header.flags & HEADER_FIS_LEN) < 5) {
		ahci_slot_abort(slot);
		return;
	}
	slot->table = header.table & ~127ull;
	slot->prds = header.prds;
	if (!(slot->fis[1] & 0x80))
		slot_control(slot);
	else if (slot->queued !=
		 (slot->fis[2] == ATA_READ_FPDMA || slot->fis[2] == ATA_WRITE_FPDMA))
		ahci_slot_abort(slot);
	else if (slot->port->cd)
		ahci_cd_command(slot);
	else
		ahci_disk_command(slot);
}

/* Under the lock. */
static struct ahci_slot *work_next(struct ahci *ahci)
{
	if (ahci->parked || !(pci_get16(&ahci->fn, PCI_COMMAND) & PCI_COMMAND_MASTER))
		return NULL;
	for (unsigned i = 0; i < ahci->ports; i++) {
		struct ahci_slot *slot = slot_next(&ahci->port[i]);

		if (slot)
			return slot;
	}
	return NULL;
}

static void *worker_main(void *arg)
{
	struct ahci *ahci = arg;

	pthread_mutex_lock(&ahci->device.lock);
	while (!ahci->ending) {
		struct ahci_slot *slot = work_next(ahci);

		if (!slot) {
			pthread_cond_wait(&ahci->work, &ahci->device.lock);
			continue;
		}
		ahci->busy = true;
		pthread_mutex_unlock(&ahci->device.lock);
		slot_begin(slot);
		pthread_mutex_lock(&ahci->device.lock);
		ahci->busy = false;
		pthread_cond_broadcast(&ahci->idle);
	}
	pthread_mutex_unlock(&ahci->device.lock);
	return NULL;
}

int ahci_worker_start(struct ahci *ahci, struct error *err)
{
	sigset_t all, old;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&ahci->worker, NULL, worker_main, ahci);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc)
		return error_set(err, rc, "no thread for %s: %s", ahci->device.name, strerror(rc));
	pthread_setname_np(ahci->worker, "ahci");
	ahci->started = true;
	return 0;
}
