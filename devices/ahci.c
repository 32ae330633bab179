/*
 * AHCI: a SATA host bus adapter (Serial ATA AHCI 1.3.1) with 1 to 6 ports, each with a disk (ATA8-ACS: LBA48, DMA, NCQ,
 * FLUSH CACHE, DATA SET MANAGEMENT/TRIM) or a CD drive (ATAPI, in ahci_atapi.c). Left out: port multipliers, command
 * completion coalescing, enclosure management, hot plug, the power states of the link, PIO without PRDs, SMART.
 *
 * A command is read once from the guest's memory (header, FIS, PRD entries), checked, and carried out: by the back end in
 * pieces of up to AHCI_IOVS PRD entries, or at once. vCPUs only set bits of PxCI; a worker thread begins the commands.
 *
 * Keys: port.N.type=hd|cd, port.N.path and the other options of backend/block/block.h, port.N.ser, port.N.bootindex; ahci-hd and ahci-cd
 * have theirs without "port.N." and are one port.
 */
#include "devices/ahci.h"

#include <errno.h>
#include <md5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ABAR 5

static const struct device_class ahci_class, ahci_hd_class, ahci_cd_class;

static void ahci_flr(struct pci_function *fn)
{
	ahci_guest_reset((struct ahci *)fn->device, true);
}

static void ahci_config_written(struct pci_function *fn, unsigned offset, unsigned size,
				uint32_t old)
{
	struct ahci *ahci = (struct ahci *)fn->device;
	bool master = pci_get16(fn, PCI_COMMAND) & PCI_COMMAND_MASTER;

	(void)offset;
	(void)size;
	(void)old;
	fn->deferred = master != ahci->master;
	ahci->master = master;
}

/* Bus Master Enable may have changed: without it no command begins (ahci_command.c), and none is under way. */
static void ahci_master_follow(struct pci_function *fn)
{
	struct ahci *ahci = (struct ahci *)fn->device;

	pthread_mutex_lock(&ahci->device.lock);
	ahci_stop_begin(ahci);
	if (!(pci_get16(fn, PCI_COMMAND) & PCI_COMMAND_MASTER))
		ahci_stop(ahci, false);
	ahci_restart(ahci);
	ahci_stop_end(ahci);
	pthread_mutex_unlock(&ahci->device.lock);
}

static const struct pci_function_ops ahci_ops = {
	.write = ahci_config_written, .deferred = ahci_master_follow, .flr = ahci_flr};

static void ahci_reset(struct device *device)
{
	ahci_guest_reset((struct ahci *)device, true);
}

static void ahci_quiesce(struct device *device)
{
	struct ahci *ahci = (struct ahci *)device;

	pthread_mutex_lock(&device->lock);
	ahci->quiesced = true;
	ahci_stop(ahci, false);
	pthread_mutex_unlock(&device->lock);
}

static void ahci_resume(struct device *device)
{
	struct ahci *ahci = (struct ahci *)device;

	pthread_mutex_lock(&device->lock);
	ahci->quiesced = false;
	pci_function_resume(&ahci->fn);
	ahci->master = pci_get16(&ahci->fn, PCI_COMMAND) & PCI_COMMAND_MASTER;
	ahci->state.is &= (1u << ahci->ports) - 1;
	ahci_interrupt_follow(ahci);
	ahci_restart(ahci);
	pthread_mutex_unlock(&device->lock);
}

static void ahci_destroy(struct device *device)
{
	struct ahci *ahci = (struct ahci *)device;

	pci_function_del(&ahci->fn);
	if (ahci->started) {
		pthread_mutex_lock(&device->lock);
		ahci_stop(ahci, true);
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
	uint64_t bootindex;
	MD5_CTX md5;
	bool ro;
	int rc = config_check_names(node, BLOCK_OPTIONS "device pcireg port ser bootindex type",
				    err);

	port->ahci = ahci;
	port->index = n;
	port->cd = cd;
	if (!rc) /* for the firmware */
		rc = config_get_u64(node, "bootindex", 0, 0, 65535, &bootindex, err);
	if (!rc && cd)
		rc = config_get_bool(node, "ro", true, &ro, err);
	if (!rc && cd)
		rc = config_set(node, "ro", "true", err);
	if (!rc)
		rc = block_open(&port->block, node, ahci->device.vm->log, err);
	if (!rc && cd)
		rc = ahci_cd_check(port, err);
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
	pci_add_bar(fn, ABAR, PCI_BAR_MEM32, AHCI_ABAR_SIZE, "ahci", &ahci_abar_ops, ahci);
	pci_add_intx(fn);
	pci_add_msi(fn, 1);
	pci_add_power(fn);
	pci_add_express(fn, PCI_EXPRESS_INTEGRATED);
	return pci_set_ids_from(fn, node, err);
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
		rc = ahci_worker_start(ahci, err);
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
	STATE_ARRAY(struct ahci_state, media),
	STATE_ARRAY(struct ahci_state, failed),
	STATE_ARRAY(struct ahci_state, in_reset),
	STATE_ARRAY(struct ahci_state, uncached),
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
