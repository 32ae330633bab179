/*
 * Between the two files of the AHCI controller: ahci.c has the registers, the command slots and disks, ahci_atapi.c the CD
 * drive. A command ends by exactly one call of ahci_slot_end() or of a function that says that it ends it.
 */
#ifndef DEVICES_AHCI_H
#define DEVICES_AHCI_H

#include <pthread.h>

#include "backend/block/block.h"
#include "bus/pci.h"
#include "vmm/device.h"
#include "vmm/vm.h"

#define AHCI_PORTS 6
#define AHCI_SLOTS 32
#define AHCI_IOVS 256 /* PRD entries carried out at a time */
#define AHCI_TRIMS 64 /* ranges in a block of DATA SET MANAGEMENT */

/* The ATA status and error registers. */
#define ATA_ERR 0x01
#define ATA_DATA_REQUEST 0x08
#define ATA_READY 0x50 /* DRDY, and the bit that was "seek complete" */
#define ATA_BUSY 0x80
#define ATA_ABORTED 0x04
#define ATA_NOT_FOUND 0x10
#define ATA_UNCORRECTABLE 0x40
#define ATA_READY_AFTER_RESET 0x150 /* status and error: the diagnostic passed */
#define ATA_CD_READY 0x100

struct ahci_state {
	uint8_t config[PCI_CONFIG_SIZE];
	uint32_t ghc, is;
	uint64_t clb[AHCI_PORTS], fb[AHCI_PORTS];
	uint32_t port_is[AHCI_PORTS], port_ie[AHCI_PORTS], cmd[AHCI_PORTS], tfd[AHCI_PORTS],
		sig[AHCI_PORTS];
	uint32_t sctl[AHCI_PORTS], serr[AHCI_PORTS], sact[AHCI_PORTS], ci[AHCI_PORTS];
	uint8_t error_tag[AHCI_PORTS]; /* of the queued command that failed */
	uint16_t error_status[AHCI_PORTS];
	uint64_t error_lba[AHCI_PORTS];
	uint32_t sense[AHCI_PORTS]; /* key and additional code << 8 of the last packet command */
	bool failed[AHCI_PORTS];    /* nothing begins until the driver starts the port again */
	bool in_reset[AHCI_PORTS];  /* SRST was set */
};

struct ahci_slot {
	struct ahci_port *port;
	uint8_t index;
	bool queued, pio, flush_after, to_guest;
	unsigned epoch;		/* the port's when it began */
	uint64_t header, table; /* GPAs of the command */
	unsigned prds;
	uint8_t fis[80]; /* the command FIS, then the ATAPI command at 0x40 */
	struct block_request block;
	uint64_t offset, done, total, piece; /* bytes */
	struct iovec iov[AHCI_IOVS];
	uint64_t gpa[AHCI_IOVS];
	unsigned iovs, trim;
	uint64_t trims[AHCI_TRIMS];
};

struct ahci_port {
	struct ahci *ahci;
	unsigned index;
	bool cd;
	struct block *block;
	char serial[21];
	struct ahci_slot *slot;
	/* under the lock */
	uint32_t running; /* slots under way */
	bool single;	  /* one of them is not queued */
	unsigned epoch;	  /* changes when what is under way has lost its meaning */
};

struct ahci {
	struct device device;
	struct ahci_state state;
	struct pci_function fn;
	struct ahci_port port[AHCI_PORTS];
	unsigned ports;
	pthread_t worker;
	pthread_cond_t work, idle;
	bool started, ending, busy, parked, quiesced;
};

/* All without the lock. */
void ahci_slot_end(struct ahci_slot *slot, uint8_t status, uint8_t error);
/* Copies to where the PRD entries say; false if they lead out of memory. Counts in slot->done. */
bool ahci_data_in(struct ahci_slot *slot, const void *bytes, uint32_t len);
/* The same with a PIO setup FIS; ends the command. */
void ahci_pio_in(struct ahci_slot *slot, const void *bytes, uint32_t len);
/* Between the image and the PRD entries; ends the command. */
void ahci_transfer(struct ahci_slot *slot, enum block_op op, uint64_t offset, uint64_t total);

/* The CD drive's commands; each ends the command. */
void ahci_packet(struct ahci_slot *slot);
void ahci_packet_error(struct ahci_slot *slot, uint8_t key, uint8_t code);
void ahci_identify_packet(struct ahci_slot *slot);

#endif
