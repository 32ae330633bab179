/*
 * virtio: OASIS Virtual I/O Device (VIRTIO) Version 1.2, as PCI devices (section 4.1), modern and transitional: the
 * legacy interface (4.1.4.10 and the "Legacy Interface" sections) is there for guests that know nothing else. Split
 * rings (2.7), indirect descriptors, EVENT_IDX, MSI-X, and MSI instead with -W. Left out: packed rings, queue reset,
 * shared memory, IOMMU (ACCESS_PLATFORM, ORDER_PLATFORM), IN_ORDER, NOTIFICATION_DATA, NOTIF_CONFIG_DATA, SR-IOV, and the legacy
 * NOTIFY_ON_EMPTY.
 *
 * The core owns the PCI function, the transport's registers, feature negotiation and the rings. A device embeds a
 * struct virtio_device first and a struct virtio_state in its state, says what it is in a struct virtio_type, and gets
 * its queues served by calls of `notify` on a worker thread:
 *
 *	while (virtqueue_pop(&dev->queue[q], &chain) > 0) {
 *		... chain.iov[0 .. chain.readable) from the driver, the rest, up to chain.segs, to the driver ...
 *		virtqueue_push(&dev->queue[q], &chain, bytes_written);
 *	}
 *	virtqueue_signal(&dev->queue[q]);
 *
 * What a guest can get wrong in a ring or a descriptor is found here: every descriptor is copied once, checked once,
 * and handed on as host memory that stays mapped. The bytes in that memory are still the guest's and change at will: a
 * device copies what it checks. A bad ring breaks the device (2.1.2, DEVICE_NEEDS_RESET) until the driver resets it.
 *
 * Threads and locks: the device's lock guards the state. virtqueue_pop(), _push() and _signal() take it themselves, so
 * they are called without it, from any thread, between `start` and the return of `stop`. What a chain points to needs
 * no lock.
 */
#ifndef DEVICES_VIRTIO_VIRTIO_H
#define DEVICES_VIRTIO_VIRTIO_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#include "base/spin.h"
#include "bus/pci.h"
#include "vmm/device.h"
#include "vmm/vm.h"

#define VIRTIO_QUEUES 34       /* virtio-console with 16 ports is the one with the most */
#define VIRTIO_QUEUE_SIZE 1024 /* the most that a type may ask for */
#define VIRTIO_SEGS 130	       /* buffers in a chain: 128 and two */
#define VIRTIO_WORKERS 4
#define VIRTIO_CONFIG_MAX 128 /* bytes of device-specific configuration */
#define VIRTIO_NO_VECTOR 0xffff

/* Device types (section 5) */
#define VIRTIO_TYPE_NET 1
#define VIRTIO_TYPE_BLOCK 2
#define VIRTIO_TYPE_CONSOLE 3
#define VIRTIO_TYPE_ENTROPY 4

/* Features of every device (section 6); the core deals with all of them. */
#define VIRTIO_F_NOTIFY_ON_EMPTY (1ull << 24) /* legacy */
#define VIRTIO_F_ANY_LAYOUT (1ull << 27)      /* legacy */
#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

/* Device status (2.1) */
#define VIRTIO_STATUS_ACKNOWLEDGE 0x01
#define VIRTIO_STATUS_DRIVER 0x02
#define VIRTIO_STATUS_DRIVER_OK 0x04
#define VIRTIO_STATUS_FEATURES_OK 0x08
#define VIRTIO_STATUS_NEEDS_RESET 0x40
#define VIRTIO_STATUS_FAILED 0x80

struct virtio_device;
struct virtqueue;

struct virtio_type {
	uint16_t type;	       /* VIRTIO_TYPE_* */
	uint8_t cls, subclass; /* of PCI */
	/* The device's configuration was written by a driver of the legacy interface: dev->config has the new bytes. Only
	 * where dev->config_writable says so. Under the lock. May be NULL. */
	void (*config_write)(struct virtio_device *dev, unsigned offset, unsigned size);
	/* Are these features, a subset of those offered, a combination that works? Under the lock. NULL: all are. */
	bool (*features_ok)(struct virtio_device *dev, uint64_t features);
	/* The driver says that it is ready: queues may be used from now on. Again when a legacy driver, whose first queue was as good,
	 * says DRIVER_OK: its features may be others. Under the lock. May be NULL. */
	void (*start)(struct virtio_device *dev);
	/* There may be something in a queue. On the queue's worker, without a lock. */
	void (*notify)(struct virtio_device *dev, unsigned queue);
	/* Ends requests that are done, if any: true. On worker 0, without a lock, whenever it looks for work or its doorbell
	 * (dev->worker[0].doorbell) was rung, parked or not. The worker has to be an eager one. May be NULL. */
	bool (*poll)(struct virtio_device *dev);
	/* Is the host's hardware at something that `poll` will end? On worker 0, without a lock. NULL where `poll` is. */
	bool (*awaits)(struct virtio_device *dev);
	/* When it returns, every chain that was popped was pushed, and none of the device's own threads touches a queue
	 * until `start`. The workers are parked already. With `discard` the driver resets the device: what has not begun
	 * need not be done. May be called when not started. Without a lock. May be NULL. */
	void (*stop)(struct virtio_device *dev, bool discard);
	/* The device's own state after a reset by the driver. Under the lock. May be NULL. */
	void (*reset)(struct virtio_device *dev);
};

/* The transport's part of the state; put VIRTIO_FIELDS() into the device's table and virtio_state_check() into its
 * check. */
struct virtio_state {
	uint8_t config[PCI_CONFIG_SIZE]; /* PCI's */
	uint32_t msix[PCI_MSIX_MAX * PCI_MSIX_ENTRY];
	uint64_t msix_pending;
	uint64_t driver_features;
	uint32_t device_feature_select, driver_feature_select;
	uint16_t queue_select;
	uint16_t config_vector;
	uint8_t status, isr, generation;
	bool legacy; /* the driver came by the legacy interface */
	bool masterless; /* Bus Master Enable was set and is not any more: no access to memory (PCI 3.0, 6.2.2) */
	uint16_t size[VIRTIO_QUEUES];
	uint16_t vector[VIRTIO_QUEUES];
	bool enabled[VIRTIO_QUEUES];
	uint64_t desc[VIRTIO_QUEUES], avail[VIRTIO_QUEUES], used[VIRTIO_QUEUES];
	uint16_t next_avail[VIRTIO_QUEUES], next_used[VIRTIO_QUEUES];
	uint16_t signalled
		[VIRTIO_QUEUES]; /* next_used when the driver was last told, or could have been */
};

#define VIRTIO_FIELDS(type, member)                                                          \
	STATE_ARRAY(type, member.config), STATE_ARRAY(type, member.msix),                    \
		STATE(type, member.msix_pending), STATE(type, member.driver_features),       \
		STATE(type, member.device_feature_select),                                   \
		STATE(type, member.driver_feature_select), STATE(type, member.queue_select), \
		STATE_AT(type, member.config_vector, VIRTIO_NO_VECTOR),                      \
		STATE(type, member.status), STATE(type, member.isr),                         \
		STATE(type, member.generation), STATE(type, member.legacy),                  \
		STATE(type, member.masterless), STATE_ARRAY(type, member.size),              \
		STATE_ARRAY_OPT(type, member.vector, VIRTIO_NO_VECTOR, 0),                   \
		STATE_ARRAY(type, member.enabled), STATE_ARRAY(type, member.desc),           \
		STATE_ARRAY(type, member.avail), STATE_ARRAY(type, member.used),             \
		STATE_ARRAY(type, member.next_avail), STATE_ARRAY(type, member.next_used),   \
		STATE_ARRAY(type, member.signalled)

/* One request of the driver. Fill nothing in: virtqueue_pop() does. */
struct virtio_chain {
	uint16_t head;
	uint16_t readable,
		segs; /* iov[0, readable) is for reading, iov[readable, segs) for writing */
	uint64_t readable_len, writable_len; /* bytes */
	struct iovec iov[VIRTIO_SEGS];
	uint64_t gpa[VIRTIO_SEGS];
};

struct virtqueue {
	struct virtio_device *dev;
	unsigned index;
	/* What the driver configured, mapped; NULL: the queue is not in use. */
	const uint8_t *desc, *avail;
	uint8_t *used;
	unsigned size;
	uint64_t used_gpa;
	bool wanted; /* virtqueue_want_notify() */
	/* An eager worker's: the index of the ring that it looks at (NULL: none), and what it was before `notify`. */
	const uint8_t *watch;
	uint16_t seen;
};

struct virtio_worker {
	struct virtio_device *dev;
	pthread_t thread;
	int doorbell;		  /* eventfd */
	_Atomic uint64_t pending; /* a bit for each queue that was notified, and WORKER_* */
	_Atomic bool asleep;	  /* the doorbell has to be rung */
	bool made, busy; /* busy: somebody is inside `notify` for it; under the device's lock */
	/* Set by the device, before virtio_init(): the worker looks at all of its queues for a while before it sleeps
	 * (base/spin.h), and drivers need not notify meanwhile. Not for queues in which buffers wait to be filled. */
	bool eager;
	struct spin spin;
};

struct virtio_device {
	struct device device;
	const struct virtio_type *type;
	struct virtio_state *state;
	struct pci_function fn;
	uint64_t features; /* offered */
	uint8_t config
		[VIRTIO_CONFIG_MAX]; /* device-specific configuration, of config_len bytes; under the lock */
	uint8_t config_writable[VIRTIO_CONFIG_MAX]; /* bits that the legacy interface may write */
	unsigned config_len;
	struct virtqueue queue[VIRTIO_QUEUES];
	uint16_t queue_max[VIRTIO_QUEUES]; /* sizes offered */
	unsigned queues, workers;
	struct virtio_worker worker[VIRTIO_WORKERS];
	struct doorbell doorbell[2][VIRTIO_QUEUES]; /* modern, legacy */
	pthread_cond_t idle; /* a worker left `notify`, or a reset has ended */
	bool parked;	     /* workers stay outside of `notify` */
	bool resetting;
	bool quiesced;
	bool started;	 /* `start` was called */
	bool ready;	 /* virtio_init() has succeeded */
	bool master;	 /* the PCI command register's Bus Master Enable */
	bool stopping;	 /* it has just been taken away: writes to registers wait */
	bool window_due; /* the window's data were written */
	unsigned
		window; /* offset of the capability that reaches the BAR through the configuration space */
};

/*
 * Life. After device_alloc(): dev->type, state, features (those of the type; the core adds its own), queues, queue_max,
 * workers (queue q is served by worker q % workers), config and config_len are set by the device; then
 * virtio_init() makes the PCI function at the place that the node names, with pcireg.* of the node, and the workers. The
 * device can be found by the guest when it returns. virtio_destroy() undoes it, `stop` included, and does nothing if
 * virtio_init() was not called or failed; device_free() remains to be called.
 */
int virtio_init(struct virtio_device *dev, struct config *node, struct error *err);
void virtio_destroy(struct virtio_device *dev);
/* For the class's reset, quiesce and resume; struct virtio_device is the first member. */
void virtio_reset(struct device *device);
void virtio_quiesce(struct device *device);
void virtio_resume(struct device *device);
bool virtio_state_check(const struct virtio_state *state);

/* Was this feature negotiated? Between `start` and `stop` from any thread, elsewhere under the lock. */
static inline bool virtio_has(const struct virtio_device *dev, uint64_t feature)
{
	return dev->state->driver_features & feature;
}
/* dev->config was changed by the device: the driver is told (2.5.1). Under the lock. */
void virtio_config_changed(struct virtio_device *dev);
/* The driver did what it must not do: a line in the log, DEVICE_NEEDS_RESET, and no more chains. Without the lock. */
void virtio_broken(struct virtio_device *dev, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* Calls `notify` for the queue on its worker: the device itself has something to do there. Any thread, any lock. */
void virtio_kick(struct virtio_device *dev, unsigned queue);
/* The same now and on this thread, which saves waking another. False: the queue's worker is at it, or the device does not
 * run, and nothing was done. Without the lock. */
bool virtio_run(struct virtio_device *dev, unsigned queue);

/* The next request. 1: *chain is filled and has to be pushed; 0: there is none, or the queue is not in use or
 * broken. */
int virtqueue_pop(struct virtqueue *vq, struct virtio_chain *chain);
/* Puts the chain that was popped last back, as if it had not been popped: nothing was popped or pushed since. */
void virtqueue_unpop(struct virtqueue *vq, struct virtio_chain *chain);
/* The request is done; `written` bytes at the beginning of its writable part are new. In any order. */
void virtqueue_push(struct virtqueue *vq, struct virtio_chain *chain, uint64_t written);
/* The same for several, which the driver sees all at once: drivers of mergeable buffers look for the rest of a frame as soon as
 * they see its beginning, and count it as lost if it is not there (5.1.6.4). */
void virtqueue_push_all(struct virtqueue *vq, struct virtio_chain *chains, const uint64_t *written,
			unsigned n);
/* After one or more pushes: interrupts the driver unless it does not want to hear. */
void virtqueue_signal(struct virtqueue *vq);
/* Whether the driver need notify of new requests. False while the device looks by itself saves exits. After true the
 * device must look once more: what came before it may not have been notified. At start: true. */
void virtqueue_want_notify(struct virtqueue *vq, bool wanted);
/* Is there anything to pop? */
bool virtqueue_ready(struct virtqueue *vq);

/* Copies out of the readable or into the writable part, from `skip` bytes on; returns how many bytes it was, less
 * than len at the end of the chain. */
size_t virtio_chain_read(const struct virtio_chain *chain, uint64_t skip, void *out, size_t len);
size_t virtio_chain_write(const struct virtio_chain *chain, uint64_t skip, const void *in,
			  size_t len);
/* The part of [from, to) of the chain's iov behind the first `skip` bytes, `len` bytes at most, into `out`, which has
 * room for VIRTIO_SEGS; returns how many entries. */
unsigned virtio_iov_part(const struct iovec *from, unsigned n, uint64_t skip, uint64_t len,
			 struct iovec *out);

#endif
