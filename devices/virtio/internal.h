/* Between the transport (virtio.c) and the rings (queue.c). All under the device's lock. */
#ifndef DEVICES_VIRTIO_INTERNAL_H
#define DEVICES_VIRTIO_INTERNAL_H

#include "devices/virtio/virtio.h"

#define VIRTIO_ISR_QUEUE 1u
#define VIRTIO_ISR_CONFIG 2u

/* Maps the rings where the state says; false: they are not all in RAM, or aligned, or of a size. */
bool virtqueue_map(struct virtqueue *vq);
void virtqueue_unmap(struct virtqueue *vq);
/* For an eager worker. Remembers how far the driver has come, before `notify`; on the worker. */
void virtqueue_watch(struct virtqueue *vq);
/* Has it come further? On the worker, without the lock. */
bool virtqueue_moved(const struct virtqueue *vq);
/* virtqueue_want_notify(). */
void virtqueue_want_notify_locked(struct virtqueue *vq, bool wanted);
/* By the vector, or by the ISR bit where there are no MSI-X. */
void virtio_interrupt(struct virtio_device *dev, uint16_t vector, uint8_t isr);
void virtio_broken_locked(struct virtio_device *dev, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#endif
