/*
 * AHCI: the commands of a CD drive, ATAPI packet commands (ATA8-ACS, INCITS 362 MMC-5, SPC-3): a data disc of one track, which
 * the guest can eject and take in again; after a reset of the machine it is in. Left out: audio, writing, another disc.
 */
#include <errno.h>
#include <string.h>

#include "devices/ahci.h"

#define CD_SECTOR 2048u

#define SENSE_NONE 0
#define SENSE_NOT_READY 2
#define SENSE_MEDIUM 3
#define SENSE_ILLEGAL 5
#define SENSE_ATTENTION 6
#define CODE_UNREAD 0x11
#define CODE_INVALID_COMMAND 0x20
#define CODE_OUT_OF_RANGE 0x21
#define CODE_INVALID_FIELD 0x24
#define CODE_CHANGED 0x28
#define CODE_NO_DISC 0x3a
#define CODE_LOCKED 0x53

enum packet_command {
	TEST_UNIT_READY = 0x00,
	REQUEST_SENSE = 0x03,
	INQUIRY = 0x12,
	START_STOP = 0x1b,
	PREVENT_REMOVAL = 0x1e,
	READ_CAPACITY = 0x25,
	READ_10 = 0x28,
	SYNCHRONIZE = 0x35,
	READ_TOC = 0x43,
	GET_CONFIGURATION = 0x46,
	GET_EVENT_STATUS = 0x4a,
	READ_DISC_INFO = 0x51,
	MODE_SENSE_10 = 0x5a,
	READ_12 = 0xa8,
};

int ahci_cd_check(const struct ahci_port *port, struct error *err)
{
	const struct block_geometry *g = block_geometry(port->block);

	if (g->logical <= CD_SECTOR && g->size % CD_SECTOR == 0)
		return 0;
	return error_set(err, EINVAL,
			 "%s: %llu bytes in sectors of %u are no disc: the size should be a "
			 "multiple of %u, and sectors no larger than that",
			 block_path(port->block), (unsigned long long)g->size, g->logical,
			 CD_SECTOR);
}

static const uint8_t *packet_of(const struct ahci_slot *slot)
{
	return slot->fis + 0x40;
}

static uint32_t get_be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint32_t get_be16(const uint8_t *p)
{
	return (uint32_t)p[0] << 8 | p[1];
}

static void put_be32(uint8_t *p, uint32_t value)
{
	p[0] = (uint8_t)(value >> 24);
	p[1] = (uint8_t)(value >> 16);
	p[2] = (uint8_t)(value >> 8);
	p[3] = (uint8_t)value;
}

static void sense_set(struct ahci_slot *slot, uint8_t key, uint8_t code)
{
	struct ahci *ahci = slot->port->ahci;

	pthread_mutex_lock(&ahci->device.lock);
	ahci->state.sense[slot->port->index] = (uint32_t)(key | code << 8);
	pthread_mutex_unlock(&ahci->device.lock);
}

/* The interrupt reason goes back in the count register: command complete. */
static void packet_end(struct ahci_slot *slot, uint8_t status, uint8_t error)
{
	slot->fis[12] = 3;
	ahci_slot_end(slot, status, error);
}

static void packet_error(struct ahci_slot *slot, uint8_t key, uint8_t code)
{
	sense_set(slot, key, code);
	packet_end(slot, ATA_READY | ATA_ERR, (uint8_t)(key << 4));
}

void ahci_cd_unread(struct ahci_slot *slot)
{
	packet_error(slot, SENSE_MEDIUM, CODE_UNREAD);
}

static void packet_good(struct ahci_slot *slot)
{
	sense_set(slot, SENSE_NONE, 0);
	packet_end(slot, ATA_READY, 0);
}

static void packet_reply(struct ahci_slot *slot, const void *bytes, uint32_t len, uint32_t allowed)
{
	if (!ahci_data_in(slot, bytes, len < allowed ? len : allowed)) {
		packet_error(slot, SENSE_ILLEGAL, CODE_INVALID_FIELD);
		return;
	}
	packet_good(slot);
}

/* Changes bits of the tray; what they were. */
static uint8_t media_change(struct ahci_slot *slot, uint8_t set, uint8_t clear)
{
	struct ahci *ahci = slot->port->ahci;
	uint8_t *media = &ahci->state.media[slot->port->index], old;

	pthread_mutex_lock(&ahci->device.lock);
	old = *media;
	*media = (uint8_t)((old & ~clear) | set);
	pthread_mutex_unlock(&ahci->device.lock);
	return old;
}

static uint32_t cd_sectors(const struct ahci_slot *slot)
{
	uint64_t n = block_geometry(slot->port->block)->size / CD_SECTOR;

	return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

static void cd_read(struct ahci_slot *slot, uint32_t lba, uint32_t sectors)
{
	uint32_t end = cd_sectors(slot);

	if (lba > end || sectors > end - lba) {
		packet_error(slot, SENSE_ILLEGAL, CODE_OUT_OF_RANGE);
		return;
	}
	sense_set(slot, SENSE_NONE, 0);
	slot->fis[12] = 3;
	ahci_transfer(slot, BLOCK_READ, (uint64_t)lba * CD_SECTOR, (uint64_t)sectors * CD_SECTOR);
}

static void inquiry(struct ahci_slot *slot)
{
	const uint8_t *packet = packet_of(slot);
	uint8_t reply[36] = {0x05, 0x80, 0x05, 0x02, 31};

	if (packet[1] & 1) { /* vital product data */
		packet_error(slot, SENSE_ILLEGAL, CODE_INVALID_FIELD);
		return;
	}
	memcpy(reply + 8, "skep    ", 8);
	memcpy(reply + 16, "CD-ROM          ", 16);
	memcpy(reply + 32, "1.0 ", 4);
	packet_reply(slot, reply, sizeof(reply), get_be16(packet + 3));
}

static void request_sense(struct ahci_slot *slot)
{
	struct ahci *ahci = slot->port->ahci;
	uint8_t reply[18] = {0x70, [7] = 10};
	uint32_t sense;

	pthread_mutex_lock(&ahci->device.lock);
	sense = ahci->state.sense[slot->port->index];
	pthread_mutex_unlock(&ahci->device.lock);
	reply[2] = (uint8_t)sense & 15;
	reply[12] = (uint8_t)(sense >> 8);
	packet_reply(slot, reply, sizeof(reply), packet_of(slot)[4]);
}

static void read_capacity(struct ahci_slot *slot)
{
	uint32_t n = cd_sectors(slot);
	uint8_t reply[8];

	put_be32(reply, n ? n - 1 : 0);
	put_be32(reply + 4, CD_SECTOR);
	packet_reply(slot, reply, sizeof(reply), sizeof(reply));
}

static void put_address(uint8_t *p, uint32_t lba, bool msf)
{
	uint32_t frames = lba + 150; /* two seconds before the first sector */

	if (msf)
		put_be32(p, (frames / 75 / 60) << 16 | (frames / 75 % 60) << 8 | frames % 75);
	else
		put_be32(p, lba);
}

/* One session, one data track, the lead-out. */
static void read_toc(struct ahci_slot *slot)
{
	const uint8_t *packet = packet_of(slot);
	bool msf = packet[1] & 2;
	unsigned format = packet[2] & 15 ? packet[2] & 15 : packet[9] >> 6;
	uint8_t reply[20] = {0, 18, 1, 1};

	if (format > 1) {
		packet_error(slot, SENSE_ILLEGAL, CODE_INVALID_FIELD);
		return;
	}
	reply[5] = 0x14;
	reply[6] = 1;
	put_address(reply + 8, 0, msf);
	if (format == 1) {
		reply[1] = 10;
		packet_reply(slot, reply, 12, get_be16(packet + 7));
		return;
	}
	reply[13] = 0x14;
	reply[14] = 0xaa;
	put_address(reply + 16, cd_sectors(slot), msf);
	packet_reply(slot, reply, sizeof(reply), get_be16(packet + 7));
}

/* Page 2Ah: what the drive can do; nothing but read. */
static void mode_sense(struct ahci_slot *slot)
{
	const uint8_t *packet = packet_of(slot);
	uint8_t reply[8 + 22] = {0, 28, 0x01};

	if ((packet[2] & 0x3f) != 0x2a && (packet[2] & 0x3f) != 0x3f) {
		packet_error(slot, SENSE_ILLEGAL, CODE_INVALID_FIELD);
		return;
	}
	reply[8] = 0x2a;
	reply[9] = 20;
	reply[10] = 0x03;
	reply[14] = 0x29;
	packet_reply(slot, reply, sizeof(reply), get_be16(packet + 7));
}

static void get_configuration(struct ahci_slot *slot)
{
	/* the header with the current profile, CD-ROM, and the profile list */
	uint8_t reply[16] = {0, 0, 0, 12, 0, 0, 0, 8, 0, 0, 3, 4, 0, 8, 1, 0};

	packet_reply(slot, reply, sizeof(reply), get_be16(packet_of(slot) + 7));
}

/* MMC-5, 6.6: only the media class is there. */
static void get_event_status(struct ahci_slot *slot)
{
	const uint8_t *packet = packet_of(slot);
	uint8_t reply[8] = {0, 6, 4, 0x10}, media;

	if (!(packet[1] & 1)) {
		packet_error(slot, SENSE_ILLEGAL, CODE_INVALID_FIELD);
		return;
	}
	if (!(packet[4] & 0x10)) {
		const uint8_t none[4] = {0, 2, 0x80, 0x10};

		packet_reply(slot, none, sizeof(none), get_be16(packet + 7));
		return;
	}
	media = media_change(slot, 0, CD_REMOVED | CD_INSERTED);
	reply[4] = media & CD_INSERTED ? 2 : media & CD_REMOVED ? 3 : 0;
	reply[5] = media & CD_OPEN ? 1 : 2; /* the tray is open, or the disc is there */
	packet_reply(slot, reply, sizeof(reply), get_be16(packet + 7));
}

/* LoEj and Start of START STOP UNIT; without LoEj it is about the motor. */
static void start_stop(struct ahci_slot *slot)
{
	uint8_t how = packet_of(slot)[4] & 3, media = media_change(slot, 0, 0);

	if (how == 2 && (media & CD_LOCKED)) {
		packet_error(slot, SENSE_ILLEGAL, CODE_LOCKED);
		return;
	}
	if (how == 2 && !(media & CD_OPEN))
		media_change(slot, CD_OPEN | CD_REMOVED, CD_CHANGED | CD_INSERTED);
	else if (how == 3 && (media & CD_OPEN))
		media_change(slot, CD_CHANGED | CD_INSERTED, CD_OPEN | CD_REMOVED);
	packet_good(slot);
}

static void prevent_removal(struct ahci_slot *slot)
{
	bool lock = packet_of(slot)[4] & 1;

	media_change(slot, lock ? CD_LOCKED : 0, lock ? 0 : CD_LOCKED);
	packet_good(slot);
}

/* Of what asks for the disc. False: the command has ended. */
static bool disc_ready(struct ahci_slot *slot)
{
	uint8_t media = media_change(slot, 0, CD_CHANGED);

	if (media & CD_OPEN)
		packet_error(slot, SENSE_NOT_READY, CODE_NO_DISC);
	else if (media & CD_CHANGED)
		packet_error(slot, SENSE_ATTENTION, CODE_CHANGED);
	return !(media & (CD_OPEN | CD_CHANGED));
}

static void read_disc_info(struct ahci_slot *slot)
{
	uint8_t reply[34] = {0, 32, 0x0e, 1, 1, 1, 1, 0x20};

	packet_reply(slot, reply, sizeof(reply), get_be16(packet_of(slot) + 7));
}

/* Those that need the disc. */
static void disc_command(struct ahci_slot *slot)
{
	const uint8_t *packet = packet_of(slot);

	if (!disc_ready(slot))
		return;
	switch (packet[0]) {
	case READ_CAPACITY:
		read_capacity(slot);
		break;
	case READ_10:
		cd_read(slot, get_be32(packet + 2), get_be16(packet + 7));
		break;
	case READ_12:
		cd_read(slot, get_be32(packet + 2), get_be32(packet + 6));
		break;
	case READ_TOC:
		read_toc(slot);
		break;
	case READ_DISC_INFO:
		read_disc_info(slot);
		break;
	default: /* TEST UNIT READY, SYNCHRONIZE CACHE */
		packet_good(slot);
	}
}

static void packet_command(struct ahci_slot *slot)
{
	switch (packet_of(slot)[0]) {
	case TEST_UNIT_READY:
	case SYNCHRONIZE:
	case READ_CAPACITY:
	case READ_10:
	case READ_12:
	case READ_TOC:
	case READ_DISC_INFO:
		disc_command(slot);
		break;
	case START_STOP:
		start_stop(slot);
		break;
	case PREVENT_REMOVAL:
		prevent_removal(slot);
		break;
	case REQUEST_SENSE:
		request_sense(slot);
		break;
	case INQUIRY:
		inquiry(slot);
		break;
	case GET_CONFIGURATION:
		get_configuration(slot);
		break;
	case GET_EVENT_STATUS:
		get_event_status(slot);
		break;
	case MODE_SENSE_10:
		mode_sense(slot);
		break;
	default:
		packet_error(slot, SENSE_ILLEGAL, CODE_INVALID_COMMAND);
	}
}

/* ATA8-ACS section 7.17. */
static void identify_packet(struct ahci_slot *slot)
{
	static const char model[] = "skep SATA CD-ROM";
	uint16_t id[256] = {0};
	uint8_t *bytes = (uint8_t *)id;

	id[0] = 0x8580; /* ATAPI, CD-ROM, removable, 12-byte packets */
	memset(bytes + 20, ' ', 20);
	memset(bytes + 46, ' ', 48);
	for (unsigned i = 0; i < sizeof(model) - 1; i++)
		bytes[54 + (i ^ 1)] = (uint8_t)model[i];
	bytes[46 + 1] = '1';
	for (unsigned i = 0; slot->port->serial[i] && i < 20; i++)
		bytes[20 + (i ^ 1)] = (uint8_t)slot->port->serial[i];
	id[49] = 1 << 8 | 1 << 9;
	id[53] = 1 << 1 | 1 << 2;
	id[63] = 7;
	id[64] = 3;
	id[65] = id[66] = id[67] = id[68] = 120;
	id[76] = 3 << 1;
	id[80] = 0x1f0;
	id[82] = id[85] = 1 << 4 | 1 << 9 | 1 << 14;
	id[83] = id[84] = id[87] = 1 << 14;
	id[88] = 0x407f;
	ahci_pio_in(slot, id, sizeof(id));
}

void ahci_cd_command(struct ahci_slot *slot)
{
	switch (slot->fis[2]) {
	case ATA_PACKET:
		packet_command(slot);
		break;
	case ATA_IDENTIFY_PACKET:
		identify_packet(slot);
		break;
	case ATA_SET_FEATURES:
	case ATA_STANDBY_NOW:
	case ATA_IDLE_NOW:
		ahci_slot_end(slot, ATA_READY, 0);
		break;
	default:
		ahci_slot_abort(slot);
	}
}
