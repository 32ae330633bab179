/*
 * Devices. One device = one .c file + one registered class: `-s 3,virtio-rnd` and `-l com1,..` name the
 * registry key. A device embeds `struct device` as its first member.
 *
 * Life: create (works before and while the VM runs), reset (power-on state, lines low, timers disarmed),
 * quiesce (after it the device starts nothing on the host and its state stands still), resume (timers
 * and lines follow the state again; also after a restore), destroy (works while the VM runs).
 * Reset, quiesce, resume, save and restore are called with all vCPUs parked or before they start, and
 * without the device's lock.
 */
#ifndef VMM_DEVICE_H
#define VMM_DEVICE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "base/config.h"
#include "base/error.h"
#include "base/state.h"

struct vm;
struct device;

enum device_kind {
	DEVICE_CHIPSET, /* part of every machine, made by machine/ */
	DEVICE_PCI,	/* -s */
	DEVICE_LPC,	/* -l */
};

struct device_class {
	const char *name;
	const char *help; /* one line for -s help / -l help: "name[,conf]" forms and what it is */
	enum device_kind kind;
	/* The key of the first, unnamed item of -s and -l's conf ("path" in com1,stdio). NULL: a device of
	 * -l takes no configuration, one of -s only named items. */
	const char *config_key;
	/* Takes -s's conf apart into `node` where it is no list of items as config_set_list() takes them; may be NULL. */
	int (*parse)(struct config *node, const char *conf, struct error *err);
	/* Makes the device, fills *out, and leaves it in its reset state. `config` is its node in the tree
	 * (NULL for those that have none). On failure nothing remains. */
	int (*create)(struct vm *vm, struct config *config, struct device **out, struct error *err);
	void (*destroy)(struct device *device); /* frees it too */
	void (*reset)(
		struct device *device); /* called after the state table was reset; may be NULL */
	void (*quiesce)(struct device *device); /* may be NULL */
	void (*resume)(struct device *device);	/* may be NULL */
	const struct state_table *table;	/* may be NULL if it has no state */
	size_t state_offset;			/* of the state struct from the struct device */
};

struct device {
	const struct device_class *cls;
	struct vm *vm;
	char name[32];	      /* unique in the VM: "uart.com1", "pci.0.3.0" */
	pthread_mutex_t lock; /* guards the state; see vm.h for the order */
	struct device *next;
};

/* Puts a class into the registry (a linker section; no start-up code). */
#define DEVICE_REGISTER(cls)                                \
	static const struct device_class *const cls##_entry \
		__attribute__((used, retain, section("skep_devices"))) = &(cls)

/* NULL if there is none of that name and kind. */
const struct device_class *device_class_find(enum device_kind kind, const char *name);
/* For each class of a kind in the order of names; NULL ends. */
const struct device_class *device_class_at(enum device_kind kind, size_t index);

/* For create functions: allocates `size` zeroed bytes that begin with a struct device, with the lock
 * made and the state table reset, not yet in the VM's list. NULL: out of memory. */
void *device_alloc(const struct device_class *cls, struct vm *vm, size_t size, const char *name_fmt,
		   ...) __attribute__((format(printf, 4, 5)));
void device_free(struct device *device); /* what device_alloc() made */

/* Creates a device of a class and appends it to the VM's list. */
int device_create(const struct device_class *cls, struct vm *vm, struct config *config,
		  struct device **out, struct error *err);
/* Takes it out of the list and destroys it. */
void device_destroy(struct device *device);
struct device *device_find(struct vm *vm, const char *name);

void devices_reset(struct vm *vm);
void devices_quiesce(struct vm *vm);
void devices_resume(struct vm *vm);
/* One device's state as bytes (malloc'ed), and back. Quiesced on both sides. */
int device_save(struct device *device, uint8_t **out, size_t *len);
int device_restore(struct device *device, const uint8_t *in, size_t len, struct error *err);

static inline void *device_state(struct device *device)
{
	return (char *)device + device->cls->state_offset;
}

#endif
