/*
 * Between the files of the AHCI controller: ahci.c makes it, ahci_hba.c has the registers, ahci_command.c carries commands
 * out, ahci_ata.c and ahci_atapi.c know those of disks and of CD drives. A command ends by exactly one call of
 * ahci_slot_end() or of a function that says that it ends it.
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

enum ata_command {
	ATA_DATA_SET = 0x06,
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

/* A CD drive's tray, of ahci_state.media */
#define CD_OPEN 0x01	/* the disc is out */
#define CD_LOCKED 0x02	/* and may not go out */
#define CD_CHANGED 0x04 /* it came back, and the next command says so */
#define CD_REMOVED 0x08 /* it went out, which was not told yet */
#define CD_INSERTED 0x10

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
	uint8_t media[AHCI_PORTS];  /* CD_*: the drive's tray */
	bool failed[AHCI_PORTS];    /* nothing begins until the driver starts the port again */
	bool in_reset[AHCI_PORTS];  /* SRST was set */
	bool uncached[AHCI_PORTS];  /* the driver turned the disk's write cache off */
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
	bool stopping; /* somebody is between ahci_stop() and ahci_restart() on behalf of the guest; `idle` tells */
	bool master; /* the PCI command register's Bus Master Enable */
};

#define PORT_CMD_START (1u << 0)
#define PORT_CMD_SPIN_UP (1u << 1)
#define PORT_CMD_POWER_ON (1u << 2)
#define PORT_CMD_OVERRIDE (1u << 3)
#define PORT_CMD_FIS_ENABLE (1u << 4)
#define PORT_CMD_FIS_RUNNING (1u << 14)
#define PORT_CMD_RUNNING (1u << 15)
#define PORT_CMD_ATAPI (1u << 24)
#define PORT_CMD_WRITABLE                                                              \
	(PORT_CMD_START | PORT_CMD_SPIN_UP | PORT_CMD_POWER_ON | PORT_CMD_FIS_ENABLE | \
	 PORT_CMD_ATAPI)

#define PORT_IS_D2H (1u << 0)
#define PORT_IS_PIO (1u << 1)
#define PORT_IS_SDB (1u << 3)
#define PORT_IS_TASK_FILE (1u << 30)

/* --- ahci_hba.c: registers. Under the lock, but for ahci_guest_reset(). --- */
#define AHCI_ABAR_SIZE 0x1000u
#define GHC_AHCI (1u << 31) /* always set: there is no IDE mode */
extern const struct io_ops ahci_abar_ops;
/* The function's interrupt follows the registers; sets bits of PxIS. */
void ahci_interrupt_follow(struct ahci *ahci);
void ahci_port_interrupt(struct ahci_port *port, uint32_t bits);
/* When it returns nothing is under way (it gives up the lock meanwhile), until ahci_restart(). With `discard` what has not
 * begun is dropped. */
void ahci_stop(struct ahci *ahci, bool discard);
void ahci_restart(struct ahci *ahci);
/* Around the two, where the guest asks for it, which may do so on several CPUs: one after the other. Under the lock. */
void ahci_stop_begin(struct ahci *ahci);
void ahci_stop_end(struct ahci *ahci);
/* By the guest, of the controller or of the whole function. */
void ahci_guest_reset(struct ahci *ahci, bool function);

/* --- ahci_command.c: the command engine --- */
int ahci_worker_start(struct ahci *ahci, struct error *err);
/* Under the lock: the device's signature as after a reset, by FIS too; PxCMD.CR follows. */
void ahci_port_signature(struct ahci_port *port, bool fis);
void ahci_port_idle(struct ahci_port *port);
/* All without the lock, for the commands. */
void ahci_slot_end(struct ahci_slot *slot, uint8_t status, uint8_t error);
void ahci_slot_abort(struct ahci_slot *slot);
/* PRD entries from `skip` bytes of the table on, `most` bytes at most, as slot->iov, for the guest to read (to_guest) or
 * to have written; false: the table is not in memory, or a buffer is not. Each ends with ahci_prds_release(). */
bool ahci_prds_collect(struct ahci_slot *slot, uint64_t skip, uint64_t most, bool to_guest);
void ahci_prds_release(struct ahci_slot *slot);
/* Copies to where the PRD entries say; false if they lead out of memory. Counts in slot->done. */
bool ahci_data_in(struct ahci_slot *slot, const void *bytes, uint32_t len);
/* The same with a PIO setup FIS; ends the command. */
void ahci_pio_in(struct ahci_slot *slot, const void *bytes, uint32_t len);
/* Between the image and the PRD entries; ends the command. */
void ahci_transfer(struct ahci_slot *slot, enum block_op op, uint64_t offset, uint64_t total);
/* For a request of the slot's that moves nothing: ends the command. */
void ahci_transfer_done(struct block_request *request, int error);

/* --- ahci_ata.c and ahci_atapi.c: the commands of disks and of CD drives; each ends the command. --- */
void ahci_disk_command(struct ahci_slot *slot);
void ahci_cd_command(struct ahci_slot *slot);
/* Can the image be a disc? -EINVAL with text. */
int ahci_cd_check(const struct ahci_port *port, struct error *err);
/* A sector could not be read. */
void ahci_cd_unread(struct ahci_slot *slot);

/* The address in a command FIS, 48 bits. */
static inline uint64_t ahci_lba48(const uint8_t *fis)
{
	return fis[4] | fis[5] << 8 | (uint64_t)fis[6] << 16 | (uint64_t)fis[8] << 24 |
	       (uint64_t)fis[9] << 32 | (uint64_t)fis[10] << 40;
}

#endif
