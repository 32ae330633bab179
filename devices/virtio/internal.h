/* Between the transport (virtio.c), the rings (queue.c) and the workers (worker.c). Under the device's lock if nothing else is
 * said. */
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
/* Worker `n` of the device, with its thread; before the device is there, without a lock. */
int virtio_worker_make(struct virtio_device *dev, unsigned n, struct error *err);
/* Does nothing if it was not made. Without a lock. */
void virtio_worker_end(struct virtio_worker *worker);
/* Gives up the lock meanwhile. When it returns no worker is in `notify`, nor goes there until `parked` is false. */
void virtio_workers_park(struct virtio_device *dev);
/* By the vector, or by the ISR bit where there are no MSI-X. */
void virtio_interrupt(struct virtio_device *dev, uint16_t vector, uint8_t isr);
void virtio_broken_locked(struct virtio_device *dev, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#endif
