/*
 * The PCI transport of virtio devices: Virtual I/O Device 1.2, section 4.1, and its legacy interface. What of the
 * specification there is stands in virtio.h.
 */
#include "devices/virtio/virtio.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "devices/virtio/internal.h"

#define PCI_VENDOR_VIRTIO 0x1af4

#define BAR_LEGACY 0
#define BAR_MSIX 1
#define BAR_MODERN 4

/* The modern BAR: a page for each structure, so that a guest may map each by itself. */
#define COMMON_OFFSET 0x0000u
#define ISR_OFFSET 0x1000u
#define DEVICE_OFFSET 0x2000u
#define NOTIFY_OFFSET 0x3000u
#define MODERN_SIZE 0x4000u
#define PAGE_OF(offset) ((offset) & ~0xfffu)
#define NOTIFY_MULTIPLIER 4

#define LEGACY_SIZE 256u
#define LEGACY_PAGE 4096u

/* 4.1.4: virtio_pci_cap.cfg_type */
#define CAP_COMMON 1
#define CAP_NOTIFY 2
#define CAP_ISR 3
#define CAP_DEVICE 4
#define CAP_PCI 5

/* 4.1.4.3: struct virtio_pci_common_cfg */
enum common_register {
	DEVICE_FEATURE_SELECT = 0x00,
	DEVICE_FEATURE = 0x04,
	DRIVER_FEATURE_SELECT = 0x08,
	DRIVER_FEATURE = 0x0c,
	CONFIG_VECTOR = 0x10,
	NUM_QUEUES = 0x12,
	DEVICE_STATUS = 0x14,
	CONFIG_GENERATION = 0x15,
	QUEUE_SELECT = 0x16,
	QUEUE_SIZE = 0x18,
	QUEUE_VECTOR = 0x1a,
	QUEUE_ENABLE = 0x1c,
	QUEUE_NOTIFY_OFF = 0x1e,
	QUEUE_DESC = 0x20,
	QUEUE_DRIVER = 0x28,
	QUEUE_DEVICE = 0x30,
	COMMON_END = 0x38,
};

/* 4.1.4.10: the legacy header, in I/O space */
enum legacy_register {
	LEGACY_DEVICE_FEATURES = 0x00,
	LEGACY_DRIVER_FEATURES = 0x04,
	LEGACY_QUEUE_ADDRESS = 0x08,
	LEGACY_QUEUE_SIZE = 0x0c,
	LEGACY_QUEUE_SELECT = 0x0e,
	LEGACY_QUEUE_NOTIFY = 0x10,
	LEGACY_STATUS = 0x12,
	LEGACY_ISR = 0x13,
	LEGACY_CONFIG_VECTOR = 0x14, /* these two only while MSI-X is enabled */
	LEGACY_QUEUE_VECTOR = 0x16,
	LEGACY_HEADER = 0x14,
	LEGACY_HEADER_MSIX = 0x18,
};

static struct virtio_device *device_of(struct pci_function *fn)
{
	return (struct virtio_device *)fn->device;
}

/* --- interrupts ------------------------------------------------------------------------------------ */

static void intx_follow(struct virtio_device *dev)
{
	pci_intx_set(&dev->fn, dev->state->isr != 0 && !pci_msix_enabled(&dev->fn) &&
				       !pci_msi_enabled(&dev->fn));
}

/* 4.1.4.5.1: the bit of the configuration is set with MSI-X too, that of the queues only without. */
void virtio_interrupt(struct virtio_device *dev, uint16_t vector, uint8_t isr)
{
	if (pci_msix_enabled(&dev->fn)) {
		dev->state->isr |= isr & VIRTIO_ISR_CONFIG;
		if (vector != VIRTIO_NO_VECTOR)
			pci_message(&dev->fn, vector);
		return;
	}
	dev->state->isr |= isr;
	if (!pci_message(&dev->fn, 0))
		intx_follow(dev);
}

static uint8_t isr_take(struct virtio_device *dev)
{
	uint8_t isr = dev->state->isr;

	dev->state->isr = 0;
	intx_follow(dev);
	return isr;
}

void virtio_config_changed(struct virtio_device *dev)
{
	dev->state->generation++;
	if (dev->state->status & VIRTIO_STATUS_DRIVER_OK)
		virtio_interrupt(dev, dev->state->config_vector, VIRTIO_ISR_CONFIG);
}

static void broken(struct virtio_device *dev, const char *text)
{
	if (dev->state->status & VIRTIO_STATUS_NEEDS_RESET)
		return;
	log_guest(dev->device.vm->log, LOG_WARN,
		  "%s (%s): the driver gave %s; the device needs a reset", dev->device.name,
		  dev->device.cls->name, text);
	dev->state->status |= VIRTIO_STATUS_NEEDS_RESET;
	virtio_config_changed(dev);
}

void virtio_broken_locked(struct virtio_device *dev, const char *fmt, ...)
{
	char text[160];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	broken(dev, text);
}

void virtio_broken(struct virtio_device *dev, const char *fmt, ...)
{
	char text[160];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&dev->device.lock);
	broken(dev, text);
	pthread_mutex_unlock(&dev->device.lock);
}

/* --- start, stop, reset ---------------------------------------------------------------------------- */

static void queue_start(struct virtio_device *dev, unsigned q)
{
	struct virtqueue *vq = &dev->queue[q];

	virtqueue_unmap(vq);
	if (!dev->state->enabled[q])
		return;
	if (!virtqueue_map(vq)) {
		virtqueue_unmap(vq);
		virtio_broken_locked(
			dev,
			"queue %u: a ring of %u entries that is not all in memory, or not aligned",
			q, dev->state->size[q]);
		return;
	}
	virtio_kick(dev, q);
}

/* Drivers of the legacy interface may use a queue before they say DRIVER_OK, and did (3.1.2). */
static bool should_run(const struct virtio_device *dev)
{
	const struct virtio_state *s = dev->state;
	bool any = false;

	if (s->masterless)
		return false;
	for (unsigned q = 0; q < dev->queues; q++)
		any |= s->enabled[q];
	return (s->status & VIRTIO_STATUS_DRIVER_OK) ||
	       (s->legacy && any && (s->status & VIRTIO_STATUS_DRIVER));
}

/* Under the lock. */
static void device_start(struct virtio_device *dev)
{
	if (dev->started || !should_run(dev))
		return;
	dev->started = true;
	for (unsigned q = 0; q < dev->queues; q++)
		queue_start(dev, q);
	if (dev->type->start)
		dev->type->start(dev);
}

/* Under the lock, which it gives up meanwhile. Nothing of the guest's memory is in use afterwards. */
static void device_stop(struct virtio_device *dev, bool discard)
{
	virtio_workers_park(dev);
	pthread_mutex_unlock(&dev->device.lock);
	if (dev->type->stop)
		dev->type->stop(dev, discard);
	pthread_mutex_lock(&dev->device.lock);
	dev->started = false;
	for (unsigned q = 0; q < dev->queues; q++)
		virtqueue_unmap(&dev->queue[q]);
}

static void state_clear(struct virtio_device *dev)
{
	struct virtio_state *s = dev->state;

	s->driver_features = 0;
	s->device_feature_select = s->driver_feature_select = 0;
	s->queue_select = 0;
	s->config_vector = VIRTIO_NO_VECTOR;
	s->status = s->isr = 0;
	s->msix_pending = 0;
	s->legacy = false;
	for (unsigned q = 0; q < VIRTIO_QUEUES; q++) {
		s->size[q] = dev->queue_max[q];
		s->vector[q] = VIRTIO_NO_VECTOR;
		s->enabled[q] = false;
		s->desc[q] = s->avail[q] = s->used[q] = 0;
		s->next_avail[q] = s->next_used[q] = s->signalled[q] = 0;
	}
	if (dev->type->reset)
		dev->type->reset(dev);
	intx_follow(dev);
}

/* The driver resets the device (2.4), without a lock: it waits for what is under way, and so does the driver. */
static void driver_reset(struct virtio_device *dev, bool function)
{
	pthread_mutex_lock(&dev->device.lock);
	while (dev->resetting || dev->stopping)
		pthread_cond_wait(&dev->idle, &dev->device.lock);
	dev->resetting = true;
	device_stop(dev, true);
	state_clear(dev);
	if (function) {
		pci_function_reset(&dev->fn);
		dev->master = dev->state->masterless = false;
	}
	dev->parked = dev->quiesced;
	dev->resetting = false;
	pthread_cond_broadcast(&dev->idle);
	pthread_mutex_unlock(&dev->device.lock);
}

/* The driver took away the right to access memory, or gave it back: the device stands still in between. Without a lock. */
static void master_follow(struct virtio_device *dev)
{
	pthread_mutex_lock(&dev->device.lock);
	while (dev->resetting || dev->stopping)
		pthread_cond_wait(&dev->idle, &dev->device.lock);
	if (dev->state->masterless && dev->started) {
		dev->stopping = true;
		device_stop(dev, false);
		dev->parked = dev->quiesced;
		dev->stopping = false;
		pthread_cond_broadcast(&dev->idle);
	} else if (!dev->quiesced) {
		device_start(dev);
	}
	pthread_mutex_unlock(&dev->device.lock);
}

void virtio_reset(struct device *device)
{
	struct virtio_device *dev = (struct virtio_device *)device;

	driver_reset(dev, true);
}

void virtio_quiesce(struct device *device)
{
	struct virtio_device *dev = (struct virtio_device *)device;

	pthread_mutex_lock(&device->lock);
	dev->quiesced = true;
	device_stop(dev, false);
	pthread_mutex_unlock(&device->lock);
}

void virtio_resume(struct device *device)
{
	struct virtio_device *dev = (struct virtio_device *)device;

	pthread_mutex_lock(&device->lock);
	dev->quiesced = dev->parked = false;
	pci_function_resume(&dev->fn);
	dev->master = pci_get16(&dev->fn, PCI_COMMAND) & PCI_COMMAND_MASTER;
	if (dev->master)
		dev->state->masterless = false;
	intx_follow(dev);
	device_start(dev);
	pthread_mutex_unlock(&device->lock);
}

bool virtio_state_check(const struct virtio_state *s)
{
	for (unsigned q = 0; q < VIRTIO_QUEUES; q++)
		if (s->size[q] > VIRTIO_QUEUE_SIZE || (s->size[q] & (s->size[q] - 1)))
			return false;
	return true;
}

/* --- what the driver negotiates -------------------------------------------------------------------- */

static bool features_good(const struct virtio_device *dev)
{
	uint64_t features = dev->state->driver_features;

	if (features & ~dev->features)
		return false;
	if (!dev->state->legacy && !(features & VIRTIO_F_VERSION_1))
		return false;
	return !dev->type->features_ok ||
	       dev->type->features_ok((struct virtio_device *)dev, features);
}

/* Not 0, which is a reset. */
static void status_write(struct virtio_device *dev, uint8_t status)
{
	struct virtio_state *s = dev->state;
	uint8_t had = s->status;

	/* 2.2.2: FEATURES_OK does not stick if the device cannot work with what was chosen. */
	if ((status & ~had & VIRTIO_STATUS_FEATURES_OK) && !features_good(dev))
		status &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
	/* 3.1.1: a driver must not go on without it. */
	if (!s->legacy && !(status & VIRTIO_STATUS_FEATURES_OK))
		status &= (uint8_t)~VIRTIO_STATUS_DRIVER_OK;
	s->status = (uint8_t)((status & ~VIRTIO_STATUS_NEEDS_RESET) |
			      (had & VIRTIO_STATUS_NEEDS_RESET));
	/* It began with the first queue of a legacy driver, whose features may be new. */
	if (dev->started && (status & ~had & VIRTIO_STATUS_DRIVER_OK) && dev->type->start)
		dev->type->start(dev);
	device_start(dev);
}

/* Features are fixed once they were accepted, or used; but legacy drivers (NetBSD's) choose them when their queues are made
 * already, before DRIVER_OK. One interface has no say in what the other has begun. */
static void features_write(struct virtio_device *dev, unsigned word, uint32_t value, bool legacy)
{
	struct virtio_state *s = dev->state;
	unsigned shift = 32 * word;

	if (word > 1 || (dev->started && !legacy) || s->legacy != legacy ||
	    (s->status & (VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK)))
		return;
	s->driver_features = (s->driver_features & ~(0xffffffffull << shift)) | (uint64_t)value
											<< shift;
}

static uint16_t vector_checked(const struct virtio_device *dev, uint64_t vector)
{
	return vector < dev->fn.msix_vectors ? (uint16_t)vector : VIRTIO_NO_VECTOR;
}

static void config_store(struct virtio_device *dev, uint64_t offset, unsigned size, uint64_t value)
{
	bool any = false;

	if (offset >= dev->config_len || size > dev->config_len - offset)
		return;
	for (unsigned i = 0; i < size; i++) {
		uint8_t mask = dev->config_writable[offset + i];

		any |= mask != 0;
		dev->config[offset + i] =
			(uint8_t)((dev->config[offset + i] & ~mask) | (value >> (8 * i) & mask));
	}
	if (any && dev->type->config_write)
		dev->type->config_write(dev, (unsigned)offset, size);
}

static uint64_t bytes_value(const uint8_t *bytes, uint64_t limit, uint64_t offset, unsigned size)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		if (offset + i < limit)
			value |= (uint64_t)bytes[offset + i] << (8 * i);
	return value;
}

/* For a write to a register: one that comes while the device loses its right to memory waits, and is not lost. */
static void lock_for_write(struct virtio_device *dev)
{
	pthread_mutex_lock(&dev->device.lock);
	while (dev->stopping)
		pthread_cond_wait(&dev->idle, &dev->device.lock);
}

/* --- the modern interface -------------------------------------------------------------------------- */

static void put(uint8_t *bytes, unsigned offset, unsigned size, uint64_t value)
{
	memcpy(bytes + offset, &value, size); /* little-endian, as the host is */
}

static uint64_t common_read(struct virtio_device *dev, uint64_t offset, unsigned size)
{
	const struct virtio_state *s = dev->state;
	unsigned q = s->queue_select;
	uint8_t bytes[COMMON_END] = {0};

	put(bytes, DEVICE_FEATURE_SELECT, 4, s->device_feature_select);
	if (s->device_feature_select < 2)
		put(bytes, DEVICE_FEATURE, 4, dev->features >> (32 * s->device_feature_select));
	put(bytes, DRIVER_FEATURE_SELECT, 4, s->driver_feature_select);
	if (s->driver_feature_select < 2)
		put(bytes, DRIVER_FEATURE, 4,
		    s->driver_features >> (32 * s->driver_feature_select));
	put(bytes, CONFIG_VECTOR, 2, s->config_vector);
	put(bytes, NUM_QUEUES, 2, dev->queues);
	put(bytes, DEVICE_STATUS, 1, s->status);
	put(bytes, CONFIG_GENERATION, 1, s->generation);
	put(bytes, QUEUE_SELECT, 2, q);
	if (q < dev->queues) { /* else its size reads as 0: there is no such queue */
		put(bytes, QUEUE_SIZE, 2, s->size[q]);
		put(bytes, QUEUE_VECTOR, 2, s->vector[q]);
		put(bytes, QUEUE_ENABLE, 2, s->enabled[q]);
		put(bytes, QUEUE_NOTIFY_OFF, 2, q);
		put(bytes, QUEUE_DESC, 8, s->desc[q]);
		put(bytes, QUEUE_DRIVER, 8, s->avail[q]);
		put(bytes, QUEUE_DEVICE, 8, s->used[q]);
	}
	return bytes_value(bytes, COMMON_END, offset, size);
}

static void address_write(uint64_t *address, uint64_t offset, unsigned size, uint64_t value)
{
	if (size == 4 && !(offset & 3))
		memcpy((uint8_t *)address + (offset & 4), &value, 4);
}

/* Size and place of a queue cannot change while it is enabled. */
static void queue_write(struct virtio_device *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtio_state *s = dev->state;
	unsigned q = s->queue_select;

	if (q >= dev->queues)
		return;
	if (offset == QUEUE_VECTOR && size == 2)
		s->vector[q] = vector_checked(dev, value);
	if (s->enabled[q])
		return;
	if (offset == QUEUE_SIZE && size == 2) {
		if (value && value <= dev->queue_max[q] && !(value & (value - 1)))
			s->size[q] = (uint16_t)value;
	} else if (offset == QUEUE_ENABLE && size == 2 && value == 1) {
		s->enabled[q] = true;
		if (dev->started)
			queue_start(dev, q);
	} else if (offset >= QUEUE_DEVICE) {
		address_write(&s->used[q], offset, size, value);
	} else if (offset >= QUEUE_DRIVER) {
		address_write(&s->avail[q], offset, size, value);
	} else if (offset >= QUEUE_DESC) {
		address_write(&s->desc[q], offset, size, value);
	}
}

static void common_write(struct virtio_device *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtio_state *s = dev->state;

	if (offset == DEVICE_FEATURE_SELECT && size == 4)
		s->device_feature_select = (uint32_t)value;
	else if (offset == DRIVER_FEATURE_SELECT && size == 4)
		s->driver_feature_select = (uint32_t)value;
	else if (offset == DRIVER_FEATURE && size == 4)
		features_write(dev, s->driver_feature_select, (uint32_t)value, false);
	else if (offset == CONFIG_VECTOR && size == 2)
		s->config_vector = vector_checked(dev, value);
	else if (offset == DEVICE_STATUS && size == 1)
		status_write(dev, (uint8_t)value);
	else if (offset == QUEUE_SELECT && size == 2)
		s->queue_select = (uint16_t)value;
	else if (offset >= QUEUE_SIZE && offset < COMMON_END)
		queue_write(dev, offset, size, value);
}

/* Under the lock. */
static uint64_t modern_read_locked(struct virtio_device *dev, uint64_t offset, unsigned size)
{
	switch (PAGE_OF(offset)) {
	case COMMON_OFFSET:
		return common_read(dev, offset - COMMON_OFFSET, size);
	case ISR_OFFSET:
		return offset == ISR_OFFSET ? isr_take(dev) : 0;
	case DEVICE_OFFSET:
		return bytes_value(dev->config, dev->config_len, offset - DEVICE_OFFSET, size);
	}
	return 0;
}

static uint64_t modern_read(void *arg, uint64_t offset, unsigned size)
{
	struct virtio_device *dev = arg;
	uint64_t value;

	pthread_mutex_lock(&dev->device.lock);
	value = modern_read_locked(dev, offset, size);
	pthread_mutex_unlock(&dev->device.lock);
	return value;
}

static void modern_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtio_device *dev = arg;

	if (PAGE_OF(offset) == NOTIFY_OFFSET) {
		virtio_kick(dev, (unsigned)(offset - NOTIFY_OFFSET) / NOTIFY_MULTIPLIER);
		return;
	}
	if (offset == COMMON_OFFSET + DEVICE_STATUS && size == 1 && value == 0) {
		driver_reset(dev, false);
		return;
	}
	lock_for_write(dev);
	if (!dev->resetting) {
		if (PAGE_OF(offset) == COMMON_OFFSET)
			common_write(dev, offset - COMMON_OFFSET, size, value);
	}
	pthread_mutex_unlock(&dev->device.lock);
}

static const struct io_ops modern_ops = {
	.sizes = IO_1 | IO_2 | IO_4,
	.read = modern_read,
	.write = modern_write,
};

/* --- the legacy interface -------------------------------------------------------------------------- */

static unsigned legacy_header(const struct virtio_device *dev)
{
	return pci_msix_enabled(&dev->fn) ? LEGACY_HEADER_MSIX : LEGACY_HEADER;
}

static uint64_t legacy_header_read(struct virtio_device *dev, uint64_t offset, unsigned size)
{
	const struct virtio_state *s = dev->state;
	unsigned q = s->queue_select;
	uint8_t bytes[LEGACY_HEADER_MSIX] = {0};

	if (offset == LEGACY_ISR)
		return isr_take(dev);
	put(bytes, LEGACY_DEVICE_FEATURES, 4, dev->features);
	put(bytes, LEGACY_DRIVER_FEATURES, 4, s->driver_features);
	if (q < dev->queues) {
		put(bytes, LEGACY_QUEUE_ADDRESS, 4, s->enabled[q] ? s->desc[q] / LEGACY_PAGE : 0);
		put(bytes, LEGACY_QUEUE_SIZE, 2, dev->queue_max[q]);
		put(bytes, LEGACY_QUEUE_VECTOR, 2, s->vector[q]);
	}
	put(bytes, LEGACY_QUEUE_SELECT, 2, q);
	put(bytes, LEGACY_STATUS, 1, s->status);
	put(bytes, LEGACY_CONFIG_VECTOR, 2, s->config_vector);
	return bytes_value(bytes, sizeof(bytes), offset, size);
}

static uint64_t legacy_read(void *arg, uint64_t offset, unsigned size)
{
	struct virtio_device *dev = arg;
	unsigned header;
	uint64_t value;

	pthread_mutex_lock(&dev->device.lock);
	header = legacy_header(dev);
	value = offset < header ? legacy_header_read(dev, offset, size)
				: bytes_value(dev->config, dev->config_len, offset - header, size);
	pthread_mutex_unlock(&dev->device.lock);
	return value;
}

/* 2.7.2: the three parts in one piece, the used ring on a page of its own. */
static void legacy_queue_place(struct virtio_device *dev, uint32_t page)
{
	struct virtio_state *s = dev->state;
	unsigned q = s->queue_select;

	if (q >= dev->queues)
		return;
	virtqueue_unmap(&dev->queue[q]);
	s->enabled[q] = page != 0;
	s->size[q] = dev->queue_max[q];
	s->next_avail[q] = s->next_used[q] = s->signalled[q] = 0;
	s->desc[q] = (uint64_t)page * LEGACY_PAGE;
	s->avail[q] = s->desc[q] + 16ull * s->size[q];
	s->used[q] = (s->avail[q] + 6 + 2ull * s->size[q] + LEGACY_PAGE - 1) &
		     ~(uint64_t)(LEGACY_PAGE - 1);
	if (dev->started)
		queue_start(dev, q);
	else
		device_start(dev);
}

/* The driver speaks the legacy interface, and nothing that was said by the other one counts. */
static void legacy_take(struct virtio_device *dev)
{
	if (dev->state->legacy || dev->started)
		return;
	dev->state->legacy = true;
	dev->state->driver_features = 0;
}

static void legacy_header_write(struct virtio_device *dev, uint64_t offset, unsigned size,
				uint64_t value)
{
	struct virtio_state *s = dev->state;

	if (offset == LEGACY_DRIVER_FEATURES && size == 4) {
		if (s->status == 0) /* before it has said anything else */
			legacy_take(dev);
		features_write(dev, 0, (uint32_t)(value & dev->features), true);
	} else if (offset == LEGACY_QUEUE_ADDRESS && size == 4) {
		legacy_queue_place(dev, (uint32_t)value);
	} else if (offset == LEGACY_QUEUE_SELECT && size == 2) {
		s->queue_select = (uint16_t)value;
	} else if (offset == LEGACY_STATUS && size == 1) {
		legacy_take(dev);
		status_write(dev, (uint8_t)value);
	} else if (offset == LEGACY_CONFIG_VECTOR && size == 2) {
		s->config_vector = vector_checked(dev, value);
	} else if (offset == LEGACY_QUEUE_VECTOR && size == 2 && s->queue_select < dev->queues) {
		s->vector[s->queue_select] = vector_checked(dev, value);
	}
}

static void legacy_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtio_device *dev = arg;
	unsigned header;

	if (offset == LEGACY_QUEUE_NOTIFY) {
		virtio_kick(dev, (unsigned)value & 0xffff);
		return;
	}
	if (offset == LEGACY_STATUS && size == 1 && value == 0) {
		driver_reset(dev, false);
		return;
	}
	lock_for_write(dev);
	header = legacy_header(dev);
	if (dev->resetting)
		; /* until it is over the driver has nothing to say */
	else if (offset < header)
		legacy_header_write(dev, offset, size, value);
	else
		config_store(dev, offset - header, size, value);
	pthread_mutex_unlock(&dev->device.lock);
}

static const struct io_ops legacy_ops = {
	.sizes = IO_1 | IO_2 | IO_4,
	.read = legacy_read,
	.write = legacy_write,
};

/* --- the PCI function ------------------------------------------------------------------------------ */

/* 4.1.4.9: the window in the configuration space through which the modern BAR is reached too. */
static bool window_target(const struct pci_function *fn, unsigned cap, uint64_t *offset,
			  unsigned *size)
{
	uint32_t at = pci_get32(fn, cap + 8), len = pci_get32(fn, cap + 12);

	*offset = at;
	*size = len;
	return fn->config[cap + 4] == BAR_MODERN && (len == 1 || len == 2 || len == 4) &&
	       !(at & (len - 1)) && at < MODERN_SIZE;
}

static uint32_t config_read(struct pci_function *fn, unsigned offset, unsigned size, uint32_t value)
{
	struct virtio_device *dev = device_of(fn);
	uint64_t at;
	unsigned len;

	(void)size;
	if (offset == dev->window + 16 && window_target(fn, dev->window, &at, &len))
		return (uint32_t)modern_read_locked(dev, at, len);
	return value;
}

static void config_written(struct pci_function *fn, unsigned offset, unsigned size, uint32_t old)
{
	struct virtio_device *dev = device_of(fn);

	bool master = pci_get16(fn, PCI_COMMAND) & PCI_COMMAND_MASTER;

	(void)size;
	(void)old;
	dev->window_due |= offset == dev->window + 16;
	fn->deferred = dev->window_due || master != dev->master;
	/* A driver that never asked for the right, as old ones did not, has it all the same. */
	dev->state->masterless = !master && (dev->master || dev->state->masterless);
	dev->master = master;
	intx_follow(dev);
}

static void window_write(struct pci_function *fn)
{
	struct virtio_device *dev = device_of(fn);
	unsigned len;
	uint32_t value;
	uint64_t at;
	bool good;

	pthread_mutex_lock(&dev->device.lock);
	good = dev->window_due && window_target(fn, dev->window, &at, &len);
	dev->window_due = false;
	value = pci_get32(fn, dev->window + 16);
	pthread_mutex_unlock(&dev->device.lock);
	if (good)
		modern_write(dev, at, len, len == 4 ? value : value & ((1u << (8 * len)) - 1));
}

static void config_deferred(struct pci_function *fn)
{
	window_write(fn);
	master_follow(device_of(fn));
}

static void function_reset(struct pci_function *fn)
{
	driver_reset(device_of(fn), true);
}

static const struct pci_function_ops function_ops = {
	.read = config_read,
	.write = config_written,
	.deferred = config_deferred,
	.flr = function_reset,
};

static unsigned add_cap(struct pci_function *fn, uint8_t type, unsigned len, uint32_t offset,
			uint32_t length)
{
	unsigned cap = pci_add_capability(fn, PCI_CAP_VENDOR, len);

	pci_set8(fn, cap + 2, (uint8_t)len);
	pci_set8(fn, cap + 3, type);
	pci_set8(fn, cap + 4, type == CAP_PCI ? 0 : BAR_MODERN);
	pci_set32(fn, cap + 8, offset);
	pci_set32(fn, cap + 12, length);
	return cap;
}

static void add_capabilities(struct virtio_device *dev)
{
	struct pci_function *fn = &dev->fn;
	unsigned cap;

	add_cap(fn, CAP_COMMON, 16, COMMON_OFFSET, COMMON_END);
	add_cap(fn, CAP_ISR, 16, ISR_OFFSET, 1);
	if (dev->config_len)
		add_cap(fn, CAP_DEVICE, 16, DEVICE_OFFSET, dev->config_len);
	cap = add_cap(fn, CAP_NOTIFY, 20, NOTIFY_OFFSET, NOTIFY_MULTIPLIER * dev->queues);
	pci_set32(fn, cap + 16, NOTIFY_MULTIPLIER);
	cap = add_cap(fn, CAP_PCI, 20, 0, 0);
	pci_set_writable(fn, cap + 4, 1, 0xff);
	for (unsigned i = 8; i < 20; i += 4)
		pci_set_writable(fn, cap + i, 4, 0xffffffff);
	dev->window = cap;
	pci_add_power(fn);
	pci_add_express(fn, PCI_EXPRESS_INTEGRATED);
}

static int set_up_function(struct virtio_device *dev, struct config *node, struct error *err)
{
	/* 4.1.2.3: the ids of transitional devices; later types have none. */
	static const uint16_t transitional[] = {[VIRTIO_TYPE_NET] = 0x1000,
						[VIRTIO_TYPE_BLOCK] = 0x1001,
						[VIRTIO_TYPE_CONSOLE] = 0x1003,
						[VIRTIO_TYPE_ENTROPY] = 0x1005};
	struct pci_function *fn = &dev->fn;
	bool msix = true;
	int rc = config_get_bool(dev->device.vm->config, "virtio_msix", true, &msix, err);

	if (rc)
		return rc;
	pci_set16(fn, PCI_VENDOR_ID, PCI_VENDOR_VIRTIO);
	pci_set16(fn, PCI_DEVICE_ID, transitional[dev->type->type]);
	pci_set16(fn, PCI_SUBSYSTEM_VENDOR_ID, PCI_VENDOR_VIRTIO);
	pci_set16(fn, PCI_SUBSYSTEM_ID, dev->type->type);
	pci_set_class(fn, dev->type->cls, dev->type->subclass, 0);
	pci_add_bar(fn, BAR_LEGACY, PCI_BAR_IO, LEGACY_SIZE, "virtio legacy", &legacy_ops, dev);
	pci_add_bar(fn, BAR_MODERN, PCI_BAR_MEM64, MODERN_SIZE, "virtio", &modern_ops, dev);
	fn->bar[BAR_MODERN].prefetchable = true;
	pci_add_intx(fn);
	if (msix)
		pci_add_msix(fn, BAR_MSIX, dev->queues + 1, dev->state->msix,
			     &dev->state->msix_pending);
	else
		pci_add_msi(fn, 1);
	add_capabilities(dev);
	return pci_set_ids_from(fn, node, err);
}

/* After the workers were made. The legacy interface has one register for all queues. */
static void add_doorbells(struct virtio_device *dev)
{
	for (unsigned q = 0; q < dev->queues; q++) {
		int fd = dev->worker[q % dev->workers].doorbell;

		dev->doorbell[0][q] =
			(struct doorbell){.addr = NOTIFY_OFFSET + NOTIFY_MULTIPLIER * q, .fd = fd};
		dev->doorbell[1][q] = (struct doorbell){.addr = LEGACY_QUEUE_NOTIFY,
							.fd = fd,
							.size = 2,
							.match = true,
							.value = (uint16_t)q};
	}
	pci_add_doorbells(&dev->fn, BAR_MODERN, dev->doorbell[0], dev->queues);
	pci_add_doorbells(&dev->fn, BAR_LEGACY, dev->doorbell[1], dev->queues);
}

int virtio_init(struct virtio_device *dev, struct config *node, struct error *err)
{
	struct pci_address addr;
	int rc = pci_address_read(node, &addr, err);

	if (rc)
		return rc;
	pthread_cond_init(&dev->idle, NULL);
	dev->features |= VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX |
			 VIRTIO_F_ANY_LAYOUT;
	for (unsigned q = 0; q < dev->queues; q++)
		dev->queue[q] = (struct virtqueue){.dev = dev, .index = q};
	rc = pci_function_init(&dev->fn, &dev->device, addr, &function_ops, dev->state->config,
			       PCI_CONFIG_SIZE, err);
	if (!rc)
		rc = set_up_function(dev, node, err);
	for (unsigned i = 0; i < dev->workers && !rc; i++)
		rc = virtio_worker_make(dev, i, err);
	dev->ready = rc == 0;
	if (!rc) {
		add_doorbells(dev);
		virtio_reset(&dev->device);
		rc = pci_function_add(&dev->fn, err);
	}
	if (rc) {
		virtio_destroy(dev);
		return rc;
	}
	pci_function_reset(&dev->fn);
	return 0;
}

void virtio_destroy(struct virtio_device *dev)
{
	pci_function_del(&dev->fn);
	if (dev->ready) {
		pthread_mutex_lock(&dev->device.lock);
		dev->quiesced = true;
		device_stop(dev, true);
		pthread_mutex_unlock(&dev->device.lock);
	}
	for (unsigned i = 0; i < VIRTIO_WORKERS; i++)
		virtio_worker_end(&dev->worker[i]);
	pci_function_destroy(&dev->fn);
	dev->ready = false;
}
