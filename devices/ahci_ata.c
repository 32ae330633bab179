/*
 * AHCI: the commands of a disk (ATA8-ACS): reads and writes by PIO, DMA and in the queue (NCQ), FLUSH CACHE, DATA SET
 * MANAGEMENT/TRIM, IDENTIFY DEVICE, the log of queued commands; the write cache can be turned off. Left out: SMART, security,
 * power states that differ, VERIFY (which reads nothing), features besides the transfer mode and the write cache.
 */
#include "devices/ahci.h"

#include <string.h>

#define FEATURE_CACHE_ON 0x02
#define FEATURE_TRANSFER_MODE 0x03
#define FEATURE_CACHE_OFF 0x82

static uint64_t get_lba28(const uint8_t *fis)
{
	return fis[4] | fis[5] << 8 | (uint64_t)fis[6] << 16 | (uint64_t)(fis[7] & 15) << 24;
}

static bool is_uncached(struct ahci_port *port)
{
	struct ahci *ahci = port->ahci;
	bool uncached;

	pthread_mutex_lock(&ahci->device.lock);
	uncached = ahci->state.uncached[port->index];
	pthread_mutex_unlock(&ahci->device.lock);
	return uncached;
}

/* ATA8-ACS section 7.48. */
static void ata_set_features(struct ahci_slot *slot)
{
	struct ahci *ahci = slot->port->ahci;

	switch (slot->fis[3]) {
	case FEATURE_TRANSFER_MODE:
		break;
	case FEATURE_CACHE_ON:
	case FEATURE_CACHE_OFF:
		pthread_mutex_lock(&ahci->device.lock);
		ahci->state.uncached[slot->port->index] = slot->fis[3] == FEATURE_CACHE_OFF;
		pthread_mutex_unlock(&ahci->device.lock);
		break;
	default:
		ahci_slot_abort(slot);
		return;
	}
	ahci_slot_end(slot, ATA_READY, 0);
}

static void ata_transfer(struct ahci_slot *slot, bool write, uint64_t lba, uint64_t sectors)
{
	const struct block_geometry *g = block_geometry(slot->port->block);

	if (lba > g->size / g->logical || sectors > g->size / g->logical - lba) {
		ahci_slot_end(slot, ATA_READY | ATA_ERR, ATA_NOT_FOUND);
		return;
	}
	if (write && g->read_only) {
		ahci_slot_abort(slot);
		return;
	}
	slot->flush_after |= write && is_uncached(slot->port);
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
		ahci_slot_abort(slot);
		return;
	}
	slot->flush_after = write && (fis[7] & 0x80);
	ata_transfer(slot, write, ahci_lba48(fis), n ? n : 65536);
}

static void ata_flush(struct ahci_slot *slot)
{
	slot->block.op = BLOCK_FLUSH;
	slot->block.offset = slot->block.length = 0;
	slot->block.iovs = 0;
	slot->block.done = ahci_transfer_done;
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
			ahci_slot_abort(slot);
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
		ahci_slot_abort(slot);
		return;
	}
	memset(slot->trims, 0, sizeof(slot->trims));
	good = ahci_prds_collect(slot, 0, sizeof(slot->trims), false);
	for (unsigned i = 0; i < slot->iovs; i++) {
		memcpy((uint8_t *)slot->trims + slot->done, slot->iov[i].iov_base,
		       slot->iov[i].iov_len);
		slot->done += slot->iov[i].iov_len;
	}
	ahci_prds_release(slot);
	slot->trim = 0;
	if (good)
		trim_next(slot);
	else
		ahci_slot_abort(slot);
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
	id[82] = (uint16_t)(1 << 14 | (g->write_cache ? 1 << 5 : 0));
	id[85] = is_uncached(slot->port) ? 1 << 14 : id[82];
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

/* Page 10h: which queued command failed (ATA8-ACS, A.14). */
static void ata_read_log(struct ahci_slot *slot)
{
	struct ahci_state *s = &slot->port->ahci->state;
	pthread_mutex_t *lock = &slot->port->ahci->device.lock;
	unsigned p = slot->port->index;
	uint8_t page[512] = {0}, sum = 0;

	if (slot->fis[4] != 0x10 || count48(slot->fis) != 1) {
		if (slot->fis[4] != 0)
			ahci_slot_abort(slot);
		else {
			page[0] = 1; /* the directory: version 1, one page at 10h */
			page[0x20] = 1;
			ahci_pio_in(slot, page, sizeof(page));
		}
		return;
	}
	pthread_mutex_lock(lock);
	page[0] = s->error_tag[p];
	page[2] = (uint8_t)s->error_status[p];
	page[3] = (uint8_t)(s->error_status[p] >> 8);
	for (unsigned i = 0; i < 6; i++)
		page[i < 3 ? 4 + i : 5 + i] = (uint8_t)(s->error_lba[p] >> (8 * i));
	pthread_mutex_unlock(lock);
	for (unsigned i = 0; i < 511; i++)
		sum = (uint8_t)(sum + page[i]);
	page[511] = (uint8_t)-sum;
	ahci_pio_in(slot, page, sizeof(page));
}

void ahci_disk_command(struct ahci_slot *slot)
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
		ata_transfer(slot, false, ahci_lba48(fis), count48(fis));
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
		ata_transfer(slot, true, ahci_lba48(fis), count48(fis));
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
		ata_set_features(slot);
		break;
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
		ahci_slot_abort(slot);
	}
}
