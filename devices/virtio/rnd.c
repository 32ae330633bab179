/*
 * virtio-rnd: an entropy device (Virtual I/O Device 1.2, section 5.4): one queue, whose buffers are filled from the
 * host's random number generator, getrandom(2). No features of its own. All of the section is here.
 */
#include <errno.h>
#include <sys/random.h>

#include "devices/virtio/virtio.h"

#define RND_QUEUE_SIZE 64
#define RND_MOST 65536u /* bytes for one request: a guest that gave more asks again */

struct rnd_state {
	struct virtio_state virtio;
};

struct rnd {
	struct virtio_device dev;
	struct rnd_state state;
};

static const struct device_class rnd_class;

static uint64_t chain_fill(const struct virtio_chain *chain)
{
	uint8_t bytes[256]; /* getrandom(2) gives that many whole, and at once */
	uint64_t done = 0;

	while (done < chain->writable_len && done < RND_MOST) {
		if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
			break;
		done += virtio_chain_write(chain, done, bytes, sizeof(bytes));
	}
	return done;
}

static void rnd_notify(struct virtio_device *dev, unsigned queue)
{
	struct virtqueue *vq = &dev->queue[queue];
	struct virtio_chain chain;

	for (unsigned i = 0; i < RND_QUEUE_SIZE && virtqueue_pop(vq, &chain); i++)
		virtqueue_push(vq, &chain, chain_fill(&chain));
	virtqueue_signal(vq);
	if (virtqueue_ready(vq))
		virtio_kick(dev, queue);
}

static const struct virtio_type rnd_type = {
	.type = VIRTIO_TYPE_ENTROPY,
	.cls = 0x10, /* encryption controller, other */
	.subclass = 0x80,
	.notify = rnd_notify,
};

static void rnd_destroy(struct device *device)
{
	virtio_destroy((struct virtio_device *)device);
	device_free(device);
}

static int rnd_create(struct vm *vm, struct config *config, struct device **out, struct error *err)
{
	struct rnd *rnd;
	char path[64];
	int rc;

	rnd = device_alloc(&rnd_class, vm, sizeof(*rnd), "%s",
			   config_path(config, path, sizeof(path)));
	if (!rnd)
		return error_set(err, ENOMEM, "out of memory");
	rnd->dev.type = &rnd_type;
	rnd->dev.state = &rnd->state.virtio;
	rnd->dev.queues = rnd->dev.workers = 1;
	rnd->dev.queue_max[0] = RND_QUEUE_SIZE;
	rc = config_check_names(config, "device pcireg", err);
	if (!rc)
		rc = virtio_init(&rnd->dev, config, err);
	if (rc) {
		rnd_destroy(&rnd->dev.device);
		return rc;
	}
	*out = &rnd->dev.device;
	return 0;
}

static bool rnd_check(const void *state)
{
	return virtio_state_check(&((const struct rnd_state *)state)->virtio);
}

static const struct state_field rnd_fields[] = {VIRTIO_FIELDS(struct rnd_state, virtio)};

static const struct state_table rnd_table =
	STATE_TABLE("virtio-rnd", struct rnd_state, rnd_fields, 1, rnd_check);

static const struct device_class rnd_class = {
	.name = "virtio-rnd",
	.help = "virtio-rnd: random numbers of the host",
	.kind = DEVICE_PCI,
	.create = rnd_create,
	.destroy = rnd_destroy,
	.reset = virtio_reset,
	.quiesce = virtio_quiesce,
	.resume = virtio_resume,
	.table = &rnd_table,
	.state_offset = offsetof(struct rnd, state),
};
DEVICE_REGISTER(rnd_class);
