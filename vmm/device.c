#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/device.h"
#include "vmm/vm.h"

/* Made by the linker; weak, so that a program without any device links. */
extern const struct device_class *const __start_skep_devices[] __attribute__((weak));
extern const struct device_class *const __stop_skep_devices[] __attribute__((weak));

const struct device_class *device_class_find(enum device_kind kind, const char *name)
{
	const struct device_class *const *entry;

	for (entry = __start_skep_devices; entry < __stop_skep_devices; entry++)
		if ((*entry)->kind == kind && strcmp((*entry)->name, name) == 0)
			return *entry;
	return NULL;
}

const struct device_class *device_class_at(enum device_kind kind, size_t index)
{
	const struct device_class *const *entry, *const *other;

	for (entry = __start_skep_devices; entry < __stop_skep_devices; entry++) {
		size_t rank = 0;

		if ((*entry)->kind != kind)
			continue;
		for (other = __start_skep_devices; other < __stop_skep_devices; other++)
			rank += (*other)->kind == kind &&
				strcmp((*other)->name, (*entry)->name) < 0;
		if (rank == index)
			return *entry;
	}
	return NULL;
}

void *device_alloc(const struct device_class *cls, struct vm *vm, size_t size, const char *name_fmt,
		   ...)
{
	struct device *device = calloc(1, size);
	va_list ap;

	if (!device)
		return NULL;
	device->cls = cls;
	device->vm = vm;
	va_start(ap, name_fmt);
	vsnprintf(device->name, sizeof(device->name), name_fmt, ap);
	va_end(ap);
	pthread_mutex_init(&device->lock, NULL);
	if (cls->table)
		state_reset(cls->table, device_state(device));
	return device;
}

void device_free(struct device *device)
{
	if (!device)
		return;
	pthread_mutex_destroy(&device->lock);
	free(device);
}

int device_create(const struct device_class *cls, struct vm *vm, struct config *config,
		  struct device **out, struct error *err)
{
	struct device *device, **link;
	int rc = cls->create(vm, config, &device, err);

	if (rc)
		return rc;
	if (device_find(vm, device->name)) {
		rc = error_set(err, EEXIST, "%s: there already is a device of the name %s",
			       cls->name, device->name);
		cls->destroy(device);
		return rc;
	}
	for (link = &vm->devices; *link; link = &(*link)->next)
		;
	device->next = NULL;
	*link = device;
	if (out)
		*out = device;
	return 0;
}

void device_destroy(struct device *device)
{
	struct device **link;

	if (!device)
		return;
	for (link = &device->vm->devices; *link; link = &(*link)->next) {
		if (*link == device) {
			*link = device->next;
			break;
		}
	}
	device->cls->destroy(device);
}

struct device *device_find(struct vm *vm, const char *name)
{
	struct device *device = vm->devices;

	while (device && strcmp(device->name, name) != 0)
		device = device->next;
	return device;
}

void devices_reset(struct vm *vm)
{
	for (struct device *d = vm->devices; d; d = d->next) {
		if (d->cls->table) {
			pthread_mutex_lock(&d->lock);
			state_reset(d->cls->table, device_state(d));
			pthread_mutex_unlock(&d->lock);
		}
		if (d->cls->reset)
			d->cls->reset(d);
	}
}

void devices_quiesce(struct vm *vm)
{
	for (struct device *d = vm->devices; d; d = d->next)
		if (d->cls->quiesce)
			d->cls->quiesce(d);
}

void devices_resume(struct vm *vm)
{
	for (struct device *d = vm->devices; d; d = d->next)
		if (d->cls->resume)
			d->cls->resume(d);
}

int device_save(struct device *device, uint8_t **out, size_t *len)
{
	const struct state_table *table = device->cls->table;

	*len = table ? state_size(table) : 0;
	*out = malloc(*len + 1); /* never NULL for a device without state */
	if (!*out)
		return -ENOMEM;
	if (!table)
		return 0;
	pthread_mutex_lock(&device->lock);
	state_save(table, device_state(device), *out);
	pthread_mutex_unlock(&device->lock);
	return 0;
}

/* `copy` has room for the state: it must be good to the last byte before the device's is replaced. */
static int restore_by(struct device *device, void *copy, const uint8_t *in, size_t len,
		      struct error *err)
{
	const struct state_table *table = device->cls->table;
	size_t used;
	int rc;

	pthread_mutex_lock(&device->lock);
	memcpy(copy, device_state(device), table->size);
	rc = state_load(table, copy, in, len, &used, err);
	if (!rc && used != len)
		rc = error_set(err, EPROTO, "%zu bytes too many", len - used);
	if (!rc)
		memcpy(device_state(device), copy, table->size);
	pthread_mutex_unlock(&device->lock);
	return rc;
}

int device_restore(struct device *device, const uint8_t *in, size_t len, struct error *err)
{
	void *copy;
	int rc;

	if (!device->cls->table)
		return len ? error_set(err, EPROTO, "%s: a saved state for a device that has none",
				       device->name)
			   : 0;
	copy = malloc(device->cls->table->size);
	if (!copy)
		return error_set(err, ENOMEM, "%s: no memory to load its state", device->name);
	rc = restore_by(device, copy, in, len, err);
	if (rc)
		error_prefix(err, "%s", device->name);
	free(copy);
	return rc;
}
