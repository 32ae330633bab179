/*
 * AHCI: a SATA host bus adapter (Serial ATA AHCI 1.3.1) with 1 to 6 ports, each with a disk (ATA8-ACS: LBA48, DMA, NCQ,
 * FLUSH CACHE, DATA SET MANAGEMENT/TRIM) or a CD drive (ATAPI, in ahci_atapi.c). Left out: port multipliers, command
 * completion coalescing, enclosure management, hot plug, the power states of the link, PIO without PRDs, SMART.
 *
 * A command is read once from the guest's memory (header, FIS, PRD entries), checked, and carried out: by the back end in
 * pieces of up to AHCI_IOVS PRD entries, or at once. vCPUs only set bits of PxCI; a worker thread begins the commands.
 *
 * Keys: port.N.type=hd|cd, port.N.path and the other options of backend/block/block.h, port.N.ser; ahci-hd and ahci-cd
 * have theirs without "port.N." and are one port.
 */
#include "devices/ahci.h"

#include <errno.h>
#include <md5.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define ABAR 5
#define ABAR_SIZE 0x1000u
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
#define GHC_AHCI (1u << 31)

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

#define CMD_START (1u << 0)
#define CMD_SPIN_UP (1u << 1)
#define CMD_POWER_ON (1u << 2)
#define CMD_OVERRIDE (1u << 3)
#define CMD_FIS_ENABLE (1u << 4)
#define CMD_FIS_RUNNING (1u << 14)
#define CMD_RUNNING (1u << 15)
#define CMD_ATAPI (1u << 24)
#define CMD_WRITABLE (CMD_START | CMD_SPIN_UP | CMD_POWER_ON | CMD_FIS_ENABLE | CMD_ATAPI)

#define IS_D2H (1u << 0)
#define IS_PIO (1u << 1)
#define IS_SDB (1u << 3)
#define IS_TASK_FILE (1u << 30)
#define IS_ALL 0xfdc000ffu

#define SSTS_UP 0x123u /* a device, 3 Gb/s, active */
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

enum ata_command {
	ATA_DATA_SET = 0x06,
	ATA_DEVICE_RESET = 0x08,
	ATA_READ = 0x20,
	ATA_READ_EXT = 0x24,
	ATA_READ_DMA_EXT = 0x25,
	ATA_READ_MULTIPLE_EXT = 0x29,
	ATA_READ_LOG_EXT = 0x2f,
	ATA_WRITE = 0x30,
	ATA_WRITE_EXT = 0x34,
	ATA_WRITE_DMA_EXT = 0x35,
	ATA_WRITE_MULTIPLE_EXT = 0x39,
	ATA_WRITE_DMA_FUA_EXT = 0x3d,
	ATA_VERIFY = 0x40,
	ATA_VERIFY_EXT = 0x42,
	ATA_READ_FPDMA = 0x60,
	ATA_WRITE_FPDMA = 0x61,
	ATA_PACKET = 0xa0,
	ATA_IDENTIFY_PACKET = 0xa1,
	ATA_READ_MULTIPLE = 0xc4,
	ATA_WRITE_MULTIPLE = 0xc5,
	ATA_SET_MULTIPLE = 0xc6,
	ATA_READ_DMA = 0xc8,
	ATA_WRITE_DMA = 0xca,
	ATA_STANDBY_NOW = 0xe0,
	ATA_IDLE_NOW = 0xe1,
	ATA_STANDBY = 0xe2,
	ATA_IDLE = 0xe3,
	ATA_CHECK_POWER = 0xe5,
	ATA_FLUSH = 0xe7,
	ATA_FLUSH_EXT = 0xea,
	ATA_IDENTIFY = 0xec,
	ATA_SET_FEATURES = 0xef,
};

static const struct device_class ahci_class, ahci_hd_class, ahci_cd_class;

static uint64_t get_lba48(const uint8_t *fis)
{
	return fis[4] | fis[5] << 8 | (uint64_t)fis[6] << 16 | (uint64_t)fis[8] << 24 |
	       (uint64_t)fis[9] << 32 | (uint64_t)fis[10] << 40;
}

static uint64_t get_lba28(const uint8_t *fis)
{
	return fis[4] | fis[5] << 8 | (uint64_t)fis[6] << 16 | (uint64_t)(fis[7] & 15) << 24;
}

static struct memory *memory_of(struct ahci_slot *slot)
{
	return &slot->port->ahci->device.vm->memory;
}

/* --- interrupts and FISes: under the lock ---------------------------------------------------------- */

static void interrupt_follow(struct ahci *ahci)
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

static void port_interrupt(struct ahci_port *port, uint32_t bits)
{
	struct ahci *ahci = port->ahci;

	ahci->state.port_is[port->index] |= bits;
	/* A message for each event, though the driver has not taken the last one yet. */
	if (ahci->state.port_is[port->index] & ahci->state.port_ie[port->index])
		ahci->state.is &= ~(1u << port->index);
	interrupt_follow(ahci);
}

static void fis_post(struct ahci_port *port, unsigned area, const uint8_t *fis, unsigned len)
{
	struct ahci *ahci = port->ahci;

	if (ahci->state.cmd[port->index] & CMD_FIS_ENABLE)
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
static void port_signature(struct ahci_port *port, bool fis)
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

static void port_idle(struct ahci_port *port)
{
	struct ahci_state *s = &port->ahci->state;

	if (!port->running && !(s->cmd[port->index] & CMD_START))
		s->cmd[port->index] &= ~CMD_RUNNING;
}

/* --- the end of a command -------------------------------------------------------------------------- */

static void error_remember(struct ahci_slot *slot, uint8_t status, uint8_t error)
{
	struct ahci_state *s = &slot->port->ahci->state;
	unsigned p = slot->port->index;

	s->error_tag[p] = slot->index;
	s->error_status[p] = (uint16_t)(status | error << 8);
	s->error_lba[p] = get_lba48(slot->fis);
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
		port_interrupt(port, IS_TASK_FILE | IS_SDB);
		return;
	}
	memcpy(fis + 4, &bit, 4);
	s->sact[port->index] &= ~bit;
	fis_post(port, AREA_SDB, fis, sizeof(fis));
	port_interrupt(port, IS_SDB);
}

static void single_end(struct ahci_slot *slot, uint8_t status, uint8_t error)
{
	struct ahci_port *port = slot->port;
	struct ahci_state *s = &port->ahci->state;

	s->tfd[port->index] = (uint32_t)(status | error << 8);
	fis_d2h(port, slot->fis, status, error);
	if (status & ATA_ERR) {
		port_interrupt(port, IS_TASK_FILE | IS_D2H);
		return;
	}
	s->ci[port->index] &= ~(1u << slot->index);
	port_interrupt(port, IS_D2H | (slot->pio ? IS_PIO : 0));
}

void ahci_slot_end(struct ahci_slot *slot, uint8_t status, uint8_t error)
{
	struct ahci_port *port = slot->port;
	struct ahci *ahci = port->ahci;
	uint32_t bytes = (uint32_t)slot->done;
	bool live;

	pthread_mutex_lock(&ahci->device.lock);
	live = ahci->state.cmd[port->index] & CMD_START && slot->epoch == port->epoch;
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
	port_idle(port);
	pthread_cond_signal(&ahci->work);
	pthread_mutex_unlock(&ahci->device.lock);
}

static void slot_abort(struct ahci_slot *slot)
{
	ahci_slot_end(slot, ATA_READY | ATA_ERR, ATA_ABORTED);
}

/* --- data ------------------------------------------------------------------------------------------ */

/* Entries from `skip` bytes of the table on, `most` bytes at most; fills iov and gpa. False: the table is not in
 * memory, or a buffer is not. */
static bool prds_collect(struct ahci_slot *slot, uint64_t skip, uint64_t most, bool to_guest)
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

static void prds_release(struct ahci_slot *slot)
{
	for (unsigned i = 0; i < slot->iovs && slot->to_guest; i++)
		memory_write_end(memory_of(slot), slot->gpa[i], slot->iov[i].iov_len);
	slot->iovs = 0;
}

bool ahci_data_in(struct ahci_slot *slot, const void *bytes, uint32_t len)
{
	bool good = prds_collect(slot, 0, len, true);

	for (unsigned i = 0; i < slot->iovs; i++) {
		memcpy(slot->iov[i].iov_base, (const uint8_t *)bytes + slot->done,
		       slot->iov[i].iov_len);
		slot->done += slot->iov[i].iov_len;
	}
	prds_release(slot);
	return good;
}

static void transfer_done(struct block_request *request, int error);

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
	if (!prds_collect(slot, slot->done, slot->total - slot->done, read) ||
	    slot->piece < sector || slot->piece % sector) {
		/* A piece that ends inside a sector could only come of a table longer than any driver makes. */
		prds_release(slot);
		slot_abort(slot);
		return;
	}
	slot->block.offset = slot->offset + slot->done;
	slot->block.length = slot->piece;
	slot->block.iov = slot->iov;
	slot->block.iovs = slot->iovs;
	block_submit(block, &slot->block);
	block_kick(block);
}

static void transfer_done(struct block_request *request, int error)
{
	struct ahci_slot *slot = request->arg;

	if (request->op == BLOCK_READ || request->op == BLOCK_WRITE) {
		prds_release(slot);
		if (!error) {
			slot->done += slot->piece;
			transfer_go(slot);
			return;
		}
	}
	if (error)
		slot->port->cd ? ahci_packet_error(slot, 3, 0x11)
			       : ahci_slot_end(slot, ATA_READY | ATA_ERR, ATA_UNCORRECTABLE);
	else
		ahci_slot_end(slot, ATA_READY, 0);
}

void ahci_transfer(struct ahci_slot *slot, enum block_op op, uint64_t offset, uint64_t total)
{
	slot->block.op = op;
	slot->block.unmap = false;
	slot->block.done = transfer_done;
	slot->block.arg = slot;
	slot->offset = offset;
	slot->total = total;
	transfer_go(slot);
}

/* --- ATA commands of a disk ------------------------------------------------------------------------ */

static void ata_transfer(struct ahci_slot *slot, bool write, uint64_t lba, uint64_t sectors)
{
	const struct block_geometry *g = block_geometry(slot->port->block);

	if (lba > g->size / g->logical || sectors > g->size / g->logical - lba) {
		ahci_slot_end(slot, ATA_READY | ATA_ERR, ATA_NOT_FOUND);
		return;
	}
	if (write && g->read_only) {
		slot_abort(slot);
		return;
	}
	ahci_transfer(slot, write ? BLOCK_WRITE : BLOCK_READ, lba * g->logical,
		      sectors * g->logical);
}

static uint64_t count48(const uint8_t *fis)
{
	unsigned n = fis[12] | fis[13] << 8;

	return n ? n : 65536;
}

static uint64_t count28(const uint8_t *fis)
{
	return fis[12] ? fis[12] : 256;
}

static void ata_queued(struct ahci_slot *slot)
{
	const uint8_t *fis = slot->fis;
	unsigned n = fis[3] | fis[11] << 8;
	bool write = fis[2] == ATA_WRITE_FPDMA;

	if (fis[12] >> 3 != slot->index) {
		slot_abort(slot);
		return;
	}
	slot->flush_after = write && (fis[7] & 0x80);
	ata_transfer(slot, write, get_lba48(fis), n ? n : 65536);
}

static void ata_flush(struct ahci_slot *slot)
{
	slot->block.op = BLOCK_FLUSH;
	slot->block.offset = slot->block.length = 0;
	slot->block.iovs = 0;
	slot->block.done = transfer_done;
	slot->block.arg = slot;
	block_submit(slot->port->block, &slot->block);
	block_kick(slot->port->block);
}

static void trim_next(struct ahci_slot *slot);

static void trim_done(struct block_request *request, int error)
{
	(void)error; /* advice that was not taken is no error */
	trim_next(request->arg);
}

/* Ranges of the first block of the list: IDENTIFY says that there is one at most. Each is 48 bits of LBA and 16 of count. */
static void trim_next(struct ahci_slot *slot)
{
	const struct block_geometry *g = block_geometry(slot->port->block);

	while (slot->trim < AHCI_TRIMS) {
		uint64_t entry = slot->trims[slot->trim++];
		uint64_t lba = entry & 0xffffffffffffull, n = entry >> 48;

		if (n == 0)
			continue;
		if (lba > g->size / g->logical || n > g->size / g->logical - lba) {
			slot_abort(slot);
			return;
		}
		slot->block.op = BLOCK_DISCARD;
		slot->block.offset = lba * g->logical;
		slot->block.length = n * g->logical;
		slot->block.iovs = 0;
		slot->block.done = trim_done;
		slot->block.arg = slot;
		block_submit(slot->port->block, &slot->block);
		block_kick(slot->port->block);
		return;
	}
	ahci_slot_end(slot, ATA_READY, 0);
}

static void ata_data_set(struct ahci_slot *slot)
{
	const struct block_geometry *g = block_geometry(slot->port->block);
	bool good;

	if (!(slot->fis[3] & 1) || count48(slot->fis) != 1 || !g->discard || g->read_only) {
		slot_abort(slot);
		return;
	}
	memset(slot->trims, 0, sizeof(slot->trims));
	good = prds_collect(slot, 0, sizeof(slot->trims), false);
	for (unsigned i = 0; i < slot->iovs; i++) {
		memcpy((uint8_t *)slot->trims + slot->done, slot->iov[i].iov_base,
		       slot->iov[i].iov_len);
		slot->done += slot->iov[i].iov_len;
	}
	prds_release(slot);
	slot->trim = 0;
	if (good)
		trim_next(slot);
	else
		slot_abort(slot);
}

/* ATA strings have the bytes of each word exchanged. */
static void identify_text(uint16_t *words, const char *text, unsigned bytes)
{
	size_t len = strlen(text);

	for (unsigned i = 0; i < bytes; i += 2) {
		uint8_t first = i < len ? (uint8_t)text[i] : ' ',
			second = i + 1 < len ? (uint8_t)text[i + 1] : ' ';

		words[i / 2] = (uint16_t)(first << 8 | second);
	}
}

/* ATA8-ACS section 7.16. */
static void ata_identify(struct ahci_slot *slot)
{
	const struct block_geometry *g = block_geometry(slot->port->block);
	uint64_t sectors = g->size / g->logical,
		 small = sectors < 0x0fffffff ? sectors : 0x0fffffff;
	unsigned exp = (unsigned)__builtin_ctz(g->physical / g->logical);
	uint16_t id[256] = {0};
	uint8_t sum = 0;

	id[0] = 0x0040;
	id[1] = 16383;
	id[3] = 16;
	id[6] = 63;
	identify_text(id + 10, slot->port->serial, 20);
	identify_text(id + 23, "1.0", 8);
	identify_text(id + 27, "skep SATA disk", 40);
	id[47] = 0x8001;
	id[49] = 1 << 8 | 1 << 9 | 1 << 11;
	id[50] = 1 << 14;
	id[53] = 1 << 1 | 1 << 2;
	memcpy(id + 60, &small, 4);
	id[63] = 7;
	id[64] = 3;
	id[65] = id[66] = id[67] = id[68] = 120;
	id[75] = AHCI_SLOTS - 1;
	id[76] = 1 << 8 | 3 << 1;
	id[80] = 0x1f0;
	id[82] = id[85] = (uint16_t)(1 << 14 | (g->write_cache ? 1 << 5 : 0));
	id[83] = 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10;
	id[86] = 1 << 13 | 1 << 12 | 1 << 10;
	id[84] = id[87] = 1 << 14;
	id[88] = 0x407f;
	memcpy(id + 100, &sectors, 8);
	id[106] = (uint16_t)(1 << 14 | (exp ? 1 << 13 | exp : 0));
	if (g->logical > 512) {
		id[106] |= 1 << 12;
		id[117] = (uint16_t)(g->logical / 2);
	}
	id[209] = 1 << 14;
	if (g->discard && !g->read_only) {
		id[105] = 1;
		id[169] = 1;
	}
	id[217] = 1; /* does not rotate */
	id[222] = 0x1020;
	id[255] = 0xa5;
	for (unsigned i = 0; i < 511; i++)
		sum = (uint8_t)(sum + ((const uint8_t *)id)[i]);
	id[255] |= (uint16_t)((uint8_t)-sum << 8);
	ahci_pio_in(slot, id, sizeof(id));
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
		slot_abort(slot);
}

/* Page 10h: which queued command failed (ATA8-ACS, A.14). */
static void ata_read_log(struct ahci_slot *slot)
{
	struct ahci_state *s = &slot->port->ahci->state;
	unsigned p = slot->port->index;
	uint8_t page[512] = {0}, sum = 0;

	if (slot->fis[4] != 0x10 || count48(slot->fis) != 1) {
		if (slot->fis[4] != 0)
			slot_abort(slot);
		else {
			page[0] = 1; /* the directory: version 1, one page at 10h */
			page[0x20] = 1;
			ahci_pio_in(slot, page, sizeof(page));
		}
		return;
	}
	page[0] = s->error_tag[p];
	page[2] = (uint8_t)s->error_status[p];
	page[3] = (uint8_t)(s->error_status[p] >> 8);
	for (unsigned i = 0; i < 6; i++)
		page[i < 3 ? 4 + i : 5 + i] = (uint8_t)(s->error_lba[p] >> (8 * i));
	for (unsigned i = 0; i < 511; i++)
		sum = (uint8_t)(sum + page[i]);
	page[511] = (uint8_t)-sum;
	ahci_pio_in(slot, page, sizeof(page));
}

static void ata_disk_command(struct ahci_slot *slot)
{
	const uint8_t *fis = slot->fis;

	switch (fis[2]) {
	case ATA_READ:
	case ATA_READ_MULTIPLE:
		slot->pio = true;
		__attribute__((fallthrough));
	case ATA_READ_DMA:
		ata_transfer(slot, false, get_lba28(fis), count28(fis));
		break;
	case ATA_READ_EXT:
	case ATA_READ_MULTIPLE_EXT:
		slot->pio = true;
		__attribute__((fallthrough));
	case ATA_READ_DMA_EXT:
		ata_transfer(slot, false, get_lba48(fis), count48(fis));
		break;
	case ATA_WRITE:
	case ATA_WRITE_MULTIPLE:
	case ATA_WRITE_DMA:
		ata_transfer(slot, true, get_lba28(fis), count28(fis));
		break;
	case ATA_WRITE_DMA_FUA_EXT:
		slot->flush_after = true;
		__attribute__((fallthrough));
	case ATA_WRITE_EXT:
	case ATA_WRITE_MULTIPLE_EXT:
	case ATA_WRITE_DMA_EXT:
		ata_transfer(slot, true, get_lba48(fis), count48(fis));
		break;
	case ATA_READ_FPDMA:
	case ATA_WRITE_FPDMA:
		ata_queued(slot);
		break;
	case ATA_FLUSH:
	case ATA_FLUSH_EXT:
		ata_flush(slot);
		break;
	case ATA_DATA_SET:
		ata_data_set(slot);
		break;
	case ATA_READ_LOG_EXT:
		ata_read_log(slot);
		break;
	case ATA_IDENTIFY:
		ata_identify(slot);
		break;
	case ATA_CHECK_POWER:
		slot->fis[12] = 0xff; /* active */
		ahci_slot_end(slot, ATA_READY, 0);
		break;
	case ATA_SET_FEATURES:
	case ATA_SET_MULTIPLE:
	case ATA_VERIFY:
	case ATA_VERIFY_EXT:
	case ATA_STANDBY_NOW:
	case ATA_IDLE_NOW:
	case ATA_STANDBY:
	case ATA_IDLE:
		ahci_slot_end(slot, ATA_READY, 0);
		break;
	default:
		slot_abort(slot);
	}
}

static void ata_cd_command(struct ahci_slot *slot)
{
	switch (slot->fis[2]) {
	case ATA_PACKET:
		ahci_packet(slot);
		break;
	case ATA_IDENTIFY_PACKET:
		ahci_identify_packet(slot);
		break;
	case ATA_SET_FEATURES:
	case ATA_STANDBY_NOW:
	case ATA_IDLE_NOW:
		ahci_slot_end(slot, ATA_READY, 0);
		break;
	default:
		slot_abort(slot);
	}
}

/* SRST in a control FIS: the device resets when it goes away (Serial ATA 3.0, section 13.2). */
static void slot_control(struct ahci_slot *slot)
{
	struct ahci_port *port = slot->port;
	struct ahci *ahci = port->ahci;
	bool reset = slot->fis[15] & 4;

	pthread_mutex_lock(&ahci->device.lock);
	if (ahci->state.in_reset[port->index] && !reset)
		port_signature(port, true);
	ahci->state.in_reset[port->index] = reset;
	port->running &= ~(1u << slot->index);
	port->single = false;
	ahci->state.ci[port->index] &= ~(1u << slot->index);
	port_idle(port);
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

	if (!due || port->single || s->failed[p] || !(s->cmd[p] & CMD_START))
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
		slot_abort(slot);
		return;
	}
	slot->table = header.table & ~127ull;
	slot->prds = header.prds;
	if (!(slot->fis[1] & 0x80))
		slot_control(slot);
	else if (slot->queued !=
		 (slot->fis[2] == ATA_READ_FPDMA || slot->fis[2] == ATA_WRITE_FPDMA))
		slot_abort(slot);
	else if (slot->port->cd)
		ata_cd_command(slot);
	else
		ata_disk_command(slot);
}

static struct ahci_slot *work_next(struct ahci *ahci)
{
	for (unsigned i = 0; i < ahci->ports && !ahci->parked; i++) {
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
		if (ahci->parked)
			pthread_cond_broadcast(&ahci->idle);
	}
	pthread_mutex_unlock(&ahci->device.lock);
	return NULL;
}

/* --- registers ------------------------------------------------------------------------------------- */

static void port_reset(struct ahci_port *port)
{
	struct ahci_state *s = &port->ahci->state;
	unsigned p = port->index;

	s->port_is[p] = s->port_ie[p] = 0;
	s->cmd[p] = CMD_SPIN_UP | CMD_POWER_ON | (port->cd ? CMD_ATAPI : 0);
	s->sctl[p] = s->serr[p] = s->sact[p] = s->ci[p] = 0;
	port->epoch++;
	s->failed[p] = s->in_reset[p] = false;
	port_signature(port, false);
}

static void hba_reset(struct ahci *ahci)
{
	ahci->state.ghc = GHC_AHCI;
	ahci->state.is = 0;
	for (unsigned i = 0; i < ahci->ports; i++)
		port_reset(&ahci->port[i]);
	interrupt_follow(ahci);
}

/* Under the lock, which it gives up meanwhile: nothing is under way any more. */
static void hba_stop(struct ahci *ahci, bool discard)
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

static void hba_restart(struct ahci *ahci)
{
	ahci->parked = ahci->quiesced;
	pthread_cond_broadcast(&ahci->work);
}

static void guest_reset(struct ahci *ahci, bool function)
{
	pthread_mutex_lock(&ahci->device.lock);
	hba_stop(ahci, true);
	hba_reset(ahci);
	if (function)
		pci_function_reset(&ahci->fn);
	hba_restart(ahci);
	pthread_mutex_unlock(&ahci->device.lock);
}

static void port_command(struct ahci_port *port, uint32_t value)
{
	struct ahci_state *s = &port->ahci->state;
	unsigned p = port->index;
	uint32_t old = s->cmd[p], new = (old & ~CMD_WRITABLE) | (value & CMD_WRITABLE);

	if ((new &CMD_START) && !(old & CMD_START)) {
		new |= CMD_RUNNING;
		s->failed[p] = false;
	}
	if (!(new &CMD_START) && (old & CMD_START)) {
		s->ci[p] = s->sact[p] = 0;
		port->epoch++;
	}
	new = new &CMD_FIS_ENABLE ? new | CMD_FIS_RUNNING : new & ~CMD_FIS_RUNNING;
	if (value & CMD_OVERRIDE)
		s->tfd[p] &= ~(uint32_t)(ATA_BUSY | ATA_DATA_REQUEST);
	s->cmd[p] = new;
	port_idle(port);
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
		s->port_ie[p] = value & IS_ALL;
		break;
	case PORT_CMD:
		port_command(port, value);
		break;
	case PORT_SCTL:
		if ((value & 15) == 0 && (s->sctl[p] & 15) == 1)
			port_signature(port, true); /* COMRESET has ended */
		s->sctl[p] = value & 0xfff;
		break;
	case PORT_SERR:
		s->serr[p] &= ~value;
		break;
	case PORT_SACT:
		if (s->cmd[p] & CMD_START)
			s->sact[p] |= value;
		break;
	case PORT_CI:
		if (s->cmd[p] & CMD_START)
			s->ci[p] |= value;
		break;
	}
	pthread_cond_signal(&port->ahci->work);
	interrupt_follow(port->ahci);
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
		guest_reset(ahci, false);
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
		interrupt_follow(ahci);
	} else if (offset == HBA_IS) {
		ahci->state.is &= ~(uint32_t)value;
		interrupt_follow(ahci);
	}
	pthread_mutex_unlock(&ahci->device.lock);
}

static const struct io_ops abar_ops = {.sizes = IO_4, .read = abar_read, .write = abar_write};

/* --- life ------------------------------------------------------------------------------------------ */

static void ahci_flr(struct pci_function *fn)
{
	guest_reset((struct ahci *)fn->device, true);
}

static const struct pci_function_ops ahci_ops = {.flr = ahci_flr};

static void ahci_reset(struct device *device)
{
	guest_reset((struct ahci *)device, true);
}

static void ahci_quiesce(struct device *device)
{
	struct ahci *ahci = (struct ahci *)device;

	pthread_mutex_lock(&device->lock);
	ahci->quiesced = true;
	hba_stop(ahci, false);
	pthread_mutex_unlock(&device->lock);
}

static void ahci_resume(struct device *device)
{
	struct ahci *ahci = (struct ahci *)device;

	pthread_mutex_lock(&device->lock);
	ahci->quiesced = false;
	pci_function_resume(&ahci->fn);
	ahci->state.is &= (1u << ahci->ports) - 1;
	interrupt_follow(ahci);
	hba_restart(ahci);
	pthread_mutex_unlock(&device->lock);
}

static void ahci_destroy(struct device *device)
{
	struct ahci *ahci = (struct ahci *)device;

	pci_function_del(&ahci->fn);
	if (ahci->started) {
		pthread_mutex_lock(&device->lock);
		hba_stop(ahci, true);
		ahci->ending = true;
		pthread_cond_broadcast(&ahci->work);
		pthread_mutex_unlock(&device->lock);
		pthread_join(ahci->worker, NULL);
	}
	for (unsigned i = 0; i < AHCI_PORTS; i++) {
		block_close(ahci->port[i].block);
		free(ahci->port[i].slot);
	}
	pci_function_destroy(&ahci->fn);
	device_free(device);
}

static int port_open(struct ahci *ahci, unsigned n, bool cd, struct config *node, struct error *err)
{
	struct ahci_port *port = &ahci->port[n];
	const char *serial = config_get(node, "ser");
	uint8_t digest[MD5_DIGEST_LENGTH];
	MD5_CTX md5;
	int rc = config_check_names(node, BLOCK_OPTIONS "device pcireg port ser bootindex type",
				    err);

	port->ahci = ahci;
	port->index = n;
	port->cd = cd;
	if (!rc && cd)
		rc = config_set(node, "ro", "true", err);
	if (!rc)
		rc = block_open(&port->block, node, ahci->device.vm->log, err);
	if (rc)
		return rc;
	port->slot = calloc(AHCI_SLOTS, sizeof(*port->slot));
	if (!port->slot)
		return error_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < AHCI_SLOTS; i++) {
		port->slot[i].port = port;
		port->slot[i].index = (uint8_t)i;
	}
	ahci->ports = n + 1;
	if (serial && strlen(serial) > 20)
		return error_set(err, EINVAL, "ser=%s: a serial number has 20 characters at most",
				 serial);
	MD5Init(&md5);
	MD5Update(&md5, (const uint8_t *)block_path(port->block), strlen(block_path(port->block)));
	MD5Final(digest, &md5);
	snprintf(port->serial, sizeof(port->serial), "SKEP-%02X%02X-%02X%02X-%02X%02X", digest[0],
		 digest[1], digest[2], digest[3], digest[4], digest[5]);
	if (serial)
		strcpy(port->serial, serial);
	return 0;
}

/* port.0, port.1 and so on, without a gap. */
static int ports_open(struct ahci *ahci, struct config *node, struct error *err)
{
	struct config *ports = config_find(node, "port");
	int rc = config_check_names(node, "device pcireg port", err);
	unsigned n = 0;

	if (rc)
		return rc;
	for (struct config *c = ports ? config_first(ports) : NULL; c; c = config_next(c), n++) {
		const char *type = config_is_leaf(c) ? "" : config_get_default(c, "type", "hd");
		char name[16];

		snprintf(name, sizeof(name), "%u", n);
		if (strcmp(config_name(c), name) != 0 || n >= AHCI_PORTS)
			return error_set(err, EINVAL,
					 "port.%s: ports are port.0 to port.%d, without a gap",
					 config_name(c), AHCI_PORTS - 1);
		if (strcmp(type, "hd") != 0 && strcmp(type, "cd") != 0)
			return error_set(err, EINVAL, "port.%u.type=%s: hd and cd are the types", n,
					 type);
		rc = port_open(ahci, n, strcmp(type, "cd") == 0, c, err);
		if (rc) {
			error_prefix(err, "port.%u", n);
			return rc;
		}
	}
	return n ? 0 : error_set(err, EINVAL, "no port: hd:IMAGE or cd:IMAGE is needed");
}

static int set_up_function(struct ahci *ahci, struct config *node, struct error *err)
{
	struct pci_function *fn = &ahci->fn;
	struct pci_address addr;
	int rc = pci_address_read(node, &addr, err);

	if (!rc)
		rc = pci_function_init(fn, &ahci->device, addr, &ahci_ops, ahci->state.config,
				       sizeof(ahci->state.config), err);
	if (rc)
		return rc;
	pci_set16(fn, PCI_VENDOR_ID, 0x8086);
	pci_set16(fn, PCI_DEVICE_ID, 0x2821);
	pci_set_class(fn, 0x01, 0x06, 0x01);
	pci_add_bar(fn, ABAR, PCI_BAR_MEM32, ABAR_SIZE, "ahci", &abar_ops, ahci);
	pci_add_intx(fn);
	pci_add_msi(fn, 1);
	pci_add_power(fn);
	pci_add_express(fn, PCI_EXPRESS_INTEGRATED);
	return pci_set_ids_from(fn, node, err);
}

static int worker_make(struct ahci *ahci, struct error *err)
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

static int create(const struct device_class *cls, struct vm *vm, struct config *config,
		  struct device **out, struct error *err)
{
	struct ahci *ahci;
	char path[64];
	int rc;

	ahci = device_alloc(cls, vm, sizeof(*ahci), "%s", config_path(config, path, sizeof(path)));
	if (!ahci)
		return error_set(err, ENOMEM, "out of memory");
	pthread_cond_init(&ahci->work, NULL);
	pthread_cond_init(&ahci->idle, NULL);
	rc = cls == &ahci_class ? ports_open(ahci, config, err)
				: port_open(ahci, 0, cls == &ahci_cd_class, config, err);
	if (!rc)
		rc = set_up_function(ahci, config, err);
	if (!rc)
		rc = worker_make(ahci, err);
	if (!rc)
		rc = pci_function_add(&ahci->fn, err);
	if (rc) {
		ahci_destroy(&ahci->device);
		return rc;
	}
	ahci_reset(&ahci->device);
	*out = &ahci->device;
	return 0;
}

static int ahci_create(struct vm *vm, struct config *config, struct device **out, struct error *err)
{
	return create(&ahci_class, vm, config, out, err);
}

static int ahci_hd_create(struct vm *vm, struct config *config, struct device **out,
			  struct error *err)
{
	return create(&ahci_hd_class, vm, config, out, err);
}

static int ahci_cd_create(struct vm *vm, struct config *config, struct device **out,
			  struct error *err)
{
	return create(&ahci_cd_class, vm, config, out, err);
}

static const struct state_field ahci_fields[] = {
	STATE_ARRAY(struct ahci_state, config),
	STATE_AT(struct ahci_state, ghc, GHC_AHCI),
	STATE(struct ahci_state, is),
	STATE_ARRAY(struct ahci_state, clb),
	STATE_ARRAY(struct ahci_state, fb),
	STATE_ARRAY(struct ahci_state, port_is),
	STATE_ARRAY(struct ahci_state, port_ie),
	STATE_ARRAY(struct ahci_state, cmd),
	STATE_ARRAY(struct ahci_state, tfd),
	STATE_ARRAY(struct ahci_state, sig),
	STATE_ARRAY(struct ahci_state, sctl),
	STATE_ARRAY(struct ahci_state, serr),
	STATE_ARRAY(struct ahci_state, sact),
	STATE_ARRAY(struct ahci_state, ci),
	STATE_ARRAY(struct ahci_state, error_tag),
	STATE_ARRAY(struct ahci_state, error_status),
	STATE_ARRAY(struct ahci_state, error_lba),
	STATE_ARRAY(struct ahci_state, sense),
	STATE_ARRAY(struct ahci_state, failed),
	STATE_ARRAY(struct ahci_state, in_reset),
};

static const struct state_table ahci_table =
	STATE_TABLE("ahci", struct ahci_state, ahci_fields, 1, NULL);

/* As bhyve has it: "hd:PATH[,option]..,cd:PATH[,option]..", a port each, with the options that follow it. What comes before
 * the first is keys of the controller: "port.0.path=PATH". */
static int ahci_parse(struct config *node, const char *conf, struct error *err)
{
	char *copy = strdup(conf), *rest = copy, *item, name[16];
	int rc = copy ? 0 : error_set(err, ENOMEM, "out of memory");
	struct config *at = node;
	unsigned ports = 0;

	while (!rc && (item = strsep(&rest, ",")) != NULL) {
		if (strncmp(item, "hd:", 3) != 0 && strncmp(item, "cd:", 3) != 0) {
			rc = config_set_list(at, item, NULL, err);
			continue;
		}
		snprintf(name, sizeof(name), "port.%u", ports++);
		at = config_make(node, name, err);
		item[2] = '\0';
		rc = at ? config_set(at, "type", item, err) : -EINVAL;
		if (!rc)
			rc = config_set(at, "path", item + 3, err);
	}
	free(copy);
	return rc;
}

#define AHCI_CLASS(id, text, key, parse_fn, help_text)        \
	static const struct device_class id##_class = {       \
		.name = text,                                 \
		.help = help_text,                            \
		.kind = DEVICE_PCI,                           \
		.config_key = key,                            \
		.parse = parse_fn,                            \
		.create = id##_create,                        \
		.destroy = ahci_destroy,                      \
		.reset = ahci_reset,                          \
		.quiesce = ahci_quiesce,                      \
		.resume = ahci_resume,                        \
		.table = &ahci_table,                         \
		.state_offset = offsetof(struct ahci, state), \
	};                                                    \
	DEVICE_REGISTER(id##_class)

AHCI_CLASS(ahci, "ahci", NULL, ahci_parse,
	   "ahci,hd:PATH[,option]..[,cd:PATH]..  SATA, up to 6 disks and CD drives");
AHCI_CLASS(ahci_hd, "ahci-hd", "path", NULL,
	   "ahci-hd,PATH[,ro][,ser=TEXT]..  SATA disk, options as virtio-blk");
AHCI_CLASS(ahci_cd, "ahci-cd", "path", NULL, "ahci-cd,PATH  SATA CD drive");
