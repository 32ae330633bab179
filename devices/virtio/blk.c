/*
 * virtio-blk: a disk (Virtual I/O Device 1.2, section 5.2): read, write, flush, discard, write zeroes, serial number;
 * several queues; block size and topology of the image. Without VIRTIO_BLK_F_FLUSH every write is flushed before it
 * completes (5.2.6.2). Left out: secure erase, lifetime, geometry, CONFIG_WCE, zoned devices.
 *
 * One worker serves all queues: what the host's page cache can answer it does at once, all else it hands to the back end,
 * which does it in the kernel (io_uring) or on threads of its own, many at a time and whichever queue they came by. What
 * the kernel has done the worker takes itself, so that a request wakes one thread, or none while that looks for work. Each
 * completes in the queue and with the MSI-X vector that it came by; interrupts are asked for after a few. More workers would
 * contend for the device's lock and split the batches in which requests are submitted. So a guest's queues keep its CPUs out
 * of each other's way, which is what they are for, and cost no threads here.
 *
 * Keys: those of backend/block/block.h; ser=TEXT, the serial number (20 characters); queues=N; bootindex=N, kept for the
 * firmware.
 */
#include <errno.h>
#include <md5.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/block.h"
#include "devices/virtio/virtio.h"

#define BLK_QUEUES 8
#define BLK_QUEUE_SIZE 128
#define BLK_SECTOR 512
#define BLK_ID_LEN 20
/* Requests, and bytes that they move, between two looks at what has ended, and before another queue may have the worker */
#define BLK_BATCH 16
#define BLK_BATCH_BYTES (1u << 20)
#define BLK_TURN 1024
#define BLK_TURN_BYTES (8u << 20)

#define BLK_F_SEG_MAX (1ull << 2)
#define BLK_F_RO (1ull << 5)
#define BLK_F_BLK_SIZE (1ull << 6)
#define BLK_F_FLUSH (1ull << 9)
#define BLK_F_TOPOLOGY (1ull << 10)
#define BLK_F_MQ (1ull << 12)
#define BLK_F_DISCARD (1ull << 13)
#define BLK_F_WRITE_ZEROES (1ull << 14)

/* 5.2.4: struct virtio_blk_config */
#define CONFIG_CAPACITY 0
#define CONFIG_SEG_MAX 12
#define CONFIG_BLK_SIZE 20
#define CONFIG_PHYSICAL_EXP 24
#define CONFIG_MIN_IO 26
#define CONFIG_OPT_IO 28
#define CONFIG_NUM_QUEUES 34
#define CONFIG_DISCARD_SECTORS 36
#define CONFIG_DISCARD_SEGS 40
#define CONFIG_DISCARD_ALIGN 44
#define CONFIG_ZEROES_SECTORS 48
#define CONFIG_ZEROES_SEGS 52
#define CONFIG_ZEROES_UNMAP 56
#define CONFIG_LEN 60

#define BLK_MOST_DISCARD (1u << 22) /* sectors of one request: 2 GiB */
#define BLK_MOST_ZEROES \
	(1u << 17) /* 64 MiB, which the host may have to write, and a reset to wait for */

enum blk_type { BLK_IN, BLK_OUT, BLK_FLUSH = 4, BLK_GET_ID = 8, BLK_DISCARD = 11, BLK_ZEROES = 13 };
enum blk_status { BLK_OK, BLK_IOERR, BLK_UNSUPP };

struct blk_header {
	uint32_t type, reserved;
	uint64_t sector;
};

struct blk_range {
	uint64_t sector;
	uint32_t sectors, flags;
};
#define BLK_RANGE_UNMAP 1u

struct blk_state {
	struct virtio_state virtio;
};

struct blk_request {
	struct block_request block;
	struct blk *blk;
	struct virtqueue *vq;
	struct virtio_chain chain;
	struct iovec iov[VIRTIO_SEGS];
	struct blk_request *next;
};

struct blk {
	struct virtio_device dev;
	struct blk_state state;
	struct block *block;
	char id[BLK_ID_LEN + 1];
	pthread_mutex_t lock; /* of the free lists; innermost */
	struct blk_request *pool[BLK_QUEUES], *free[BLK_QUEUES];
	uint64_t moved;	      /* bytes, by all requests that were begun; the worker's */
	unsigned unsignalled; /* queues; the worker's */
};

static const struct device_class blk_class;

static struct blk_request *request_take(struct blk *blk, unsigned queue)
{
	struct blk_request *req;

	pthread_mutex_lock(&blk->lock);
	req = blk->free[queue];
	if (req)
		blk->free[queue] = req->next;
	pthread_mutex_unlock(&blk->lock);
	return req;
}

static void request_give(struct blk *blk, unsigned queue, struct blk_request *req)
{
	bool none;

	pthread_mutex_lock(&blk->lock);
	none = !blk->free[queue];
	req->next = blk->free[queue];
	blk->free[queue] = req;
	pthread_mutex_unlock(&blk->lock);
	if (none) /* the worker may have stopped for want of it */
		virtio_kick(&blk->dev, queue);
}

/* The status is the last byte of what the driver can be told (5.2.6). It counts as written only where no gap is before
 * it: all bytes that a used length covers have to be (2.7.8.2). */
static void request_end(struct blk_request *req, enum blk_status status, uint64_t data)
{
	struct virtqueue *vq = req->vq;
	uint64_t last = req->chain.writable_len - 1;
	uint8_t byte = (uint8_t)status;

	virtio_chain_write(&req->chain, last, &byte, 1);
	virtqueue_push(vq, &req->chain, data == last ? data + 1 : data);
	request_give(req->blk, vq->index, req);
	if (pthread_equal(pthread_self(), req->blk->dev.worker[0].thread))
		req->blk->unsignalled |= 1u << vq->index;
	else
		virtqueue_signal(vq);
}

/* On the worker, after some requests. */
static void signal_all(struct blk *blk)
{
	for (; blk->unsignalled; blk->unsignalled &= blk->unsignalled - 1)
		virtqueue_signal(&blk->dev.queue[__builtin_ctz(blk->unsignalled)]);
}

static void request_done(struct block_request *block, int error)
{
	struct blk_request *req = block->arg;
	bool write = block->op == BLOCK_WRITE || block->op == BLOCK_WRITE_ZEROES;

	if (!error && write && !virtio_has(&req->blk->dev, BLK_F_FLUSH) &&
	    block_geometry(req->blk->block)->write_cache) {
		block->op = BLOCK_FLUSH;
		block->offset = block->length = 0;
		block_submit(req->blk->block, block);
		block_kick(req->blk->block);
		return;
	}
	request_end(req,
		    error == 0		   ? BLK_OK
		    : error == -EOPNOTSUPP ? BLK_UNSUPP
					   : BLK_IOERR,
		    !error && block->op == BLOCK_READ ? block->length : 0);
}

static void request_submit(struct blk_request *req, enum block_op op, uint64_t sector,
			   uint64_t length)
{
	uint64_t size = block_geometry(req->blk->block)->size;

	if (sector > size / BLK_SECTOR || length > size - sector * BLK_SECTOR) {
		request_end(req, BLK_IOERR, 0);
		return;
	}
	req->block.op = op;
	req->block.offset = sector * BLK_SECTOR;
	req->block.length = length;
	req->block.iov = req->iov;
	req->block.done = request_done;
	req->block.arg = req;
	req->blk->moved += length;
	block_run(req->blk->block, &req->block);
}

static void request_read(struct blk_request *req, uint64_t sector)
{
	const struct virtio_chain *chain = &req->chain;
	uint64_t length = chain->writable_len - 1;

	req->block.iovs = virtio_iov_part(chain->iov + chain->readable,
					  chain->segs - chain->readable, 0, length, req->iov);
	request_submit(req, BLOCK_READ, sector, length);
}

static void request_write(struct blk_request *req, uint64_t sector)
{
	const struct virtio_chain *chain = &req->chain;
	uint64_t length = chain->readable_len - sizeof(struct blk_header);

	req->block.iovs = virtio_iov_part(chain->iov, chain->readable, sizeof(struct blk_header),
					  length, req->iov);
	request_submit(req, BLOCK_WRITE, sector, length);
}

/* One range a request: that is what the configuration says. */
static void request_range(struct blk_request *req, bool zeroes)
{
	struct blk_range range;

	if (virtio_chain_read(&req->chain, sizeof(struct blk_header), &range, sizeof(range)) !=
		    sizeof(range) ||
	    req->chain.readable_len != sizeof(struct blk_header) + sizeof(range) ||
	    range.sectors > (zeroes ? BLK_MOST_ZEROES : BLK_MOST_DISCARD)) {
		request_end(req, BLK_IOERR, 0);
		return;
	}
	/* 5.2.6.2: flags that mean nothing here are refused. */
	if (range.flags & ~(zeroes ? BLK_RANGE_UNMAP : 0)) {
		request_end(req, BLK_UNSUPP, 0);
		return;
	}
	req->block.unmap = range.flags & BLK_RANGE_UNMAP;
	req->block.iovs = 0;
	request_submit(req, zeroes ? BLOCK_WRITE_ZEROES : BLOCK_DISCARD, range.sector,
		       (uint64_t)range.sectors * BLK_SECTOR);
}

static void request_id(struct blk_request *req)
{
	uint64_t room = req->chain.writable_len - 1;
	size_t len = room < BLK_ID_LEN ? room : BLK_ID_LEN;

	request_end(req, BLK_OK, virtio_chain_write(&req->chain, 0, req->blk->id, len));
}

/* What changes the disk; the back end refuses it too, but the driver was told. */
static bool request_forbidden(const struct blk *blk, uint32_t type)
{
	return (type == BLK_OUT || type == BLK_DISCARD || type == BLK_ZEROES) &&
	       block_geometry(blk->block)->read_only;
}

static void request_begin(struct blk_request *req)
{
	struct blk_header header;

	if (req->chain.writable_len == 0 ||
	    virtio_chain_read(&req->chain, 0, &header, sizeof(header)) != sizeof(header)) {
		virtio_broken(&req->blk->dev,
			      "queue %u: a request without a header or a place for the status",
			      req->vq->index);
		virtqueue_push(req->vq, &req->chain, 0);
		request_give(req->blk, req->vq->index, req);
		return;
	}
	if (request_forbidden(req->blk, header.type)) {
		request_end(req, BLK_IOERR, 0);
		return;
	}
	req->block.unmap = false;
	switch (header.type) {
	case BLK_IN:
		request_read(req, header.sector);
		break;
	case BLK_OUT:
		request_write(req, header.sector);
		break;
	case BLK_FLUSH:
		req->block.iovs = 0;
		request_submit(req, BLOCK_FLUSH, 0, 0);
		break;
	case BLK_GET_ID:
		request_id(req);
		break;
	case BLK_DISCARD:
	case BLK_ZEROES:
		request_range(req, header.type == BLK_ZEROES);
		break;
	default:
		request_end(req, BLK_UNSUPP, 0);
	}
}

/* True: there may be more. */
static bool queue_serve(struct blk *blk, struct virtqueue *vq)
{
	uint64_t end = blk->moved + BLK_BATCH_BYTES;

	for (unsigned i = 0; i < BLK_BATCH && blk->moved < end; i++) {
		struct blk_request *req = request_take(blk, vq->index);

		if (!req)
			return false;
		if (!virtqueue_pop(vq, &req->chain)) {
			request_give(blk, vq->index, req);
			return false;
		}
		request_begin(req);
	}
	return true;
}

static void blk_notify(struct virtio_device *dev, unsigned queue)
{
	struct blk *blk = (struct blk *)dev;
	struct virtqueue *vq = &dev->queue[queue];
	uint64_t end = blk->moved + BLK_TURN_BYTES;
	bool more = true;

	for (unsigned i = 0; i < BLK_TURN / BLK_BATCH && blk->moved < end && more; i++) {
		more = queue_serve(blk, vq);
		block_kick(blk->block);
		block_poll(blk->block);
		signal_all(blk);
	}
	if (more)
		virtio_kick(dev, queue);
}

static bool blk_poll(struct virtio_device *dev)
{
	struct blk *blk = (struct blk *)dev;
	bool any = block_poll(blk->block);

	signal_all(blk);
	return any;
}

static bool blk_awaits(struct virtio_device *dev)
{
	return block_awaits(((struct blk *)dev)->block);
}

static void blk_stop(struct virtio_device *dev, bool discard)
{
	struct blk *blk = (struct blk *)dev;

	if (discard)
		block_cancel(blk->block);
	else
		block_drain(blk->block);
	/* The worker may have ended the last ones and not have come to that. */
	for (unsigned q = 0; q < dev->queues; q++)
		virtqueue_signal(&dev->queue[q]);
}

static const struct virtio_type blk_type = {
	.type = VIRTIO_TYPE_BLOCK,
	.cls = 0x01, /* mass storage, SCSI, as bhyve says it */
	.notify = blk_notify,
	.poll = blk_poll,
	.awaits = blk_awaits,
	.stop = blk_stop,
};

/* --- life ------------------------------------------------------------------------------------------ */

static void config_put(struct blk *blk, unsigned offset, unsigned size, uint64_t value)
{
	memcpy(blk->dev.config + offset, &value, size);
}

static void set_config(struct blk *blk)
{
	const struct block_geometry *g = block_geometry(blk->block);
	unsigned exp = (unsigned)__builtin_ctz(g->physical / g->logical);

	blk->dev.features = BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_TOPOLOGY | BLK_F_MQ;
	blk->dev.config_len = CONFIG_LEN;
	config_put(blk, CONFIG_CAPACITY, 8, g->size / BLK_SECTOR);
	config_put(blk, CONFIG_SEG_MAX, 4, BLK_QUEUE_SIZE - 2);
	config_put(blk, CONFIG_BLK_SIZE, 4, g->logical);
	config_put(blk, CONFIG_PHYSICAL_EXP, 1, exp);
	config_put(blk, CONFIG_MIN_IO, 2, 1u << exp);
	config_put(blk, CONFIG_OPT_IO, 4, g->optimal / g->logical);
	config_put(blk, CONFIG_NUM_QUEUES, 2, blk->dev.queues);
	if (g->write_cache)
		blk->dev.features |= BLK_F_FLUSH;
	if (g->read_only) {
		blk->dev.features |= BLK_F_RO;
		return;
	}
	blk->dev.features |= BLK_F_WRITE_ZEROES;
	config_put(blk, CONFIG_ZEROES_SECTORS, 4, BLK_MOST_ZEROES);
	config_put(blk, CONFIG_ZEROES_SEGS, 4, 1);
	config_put(blk, CONFIG_ZEROES_UNMAP, 1, g->discard);
	if (!g->discard)
		return;
	blk->dev.features |= BLK_F_DISCARD;
	config_put(blk, CONFIG_DISCARD_SECTORS, 4, BLK_MOST_DISCARD);
	config_put(blk, CONFIG_DISCARD_SEGS, 4, 1);
	config_put(blk, CONFIG_DISCARD_ALIGN, 4, g->physical / BLK_SECTOR);
}

/* Unless the user gave one: the same for the same path, another for another. */
static int set_id(struct blk *blk, struct config *config, struct error *err)
{
	const char *serial = config_get(config, "ser"), *path = block_path(blk->block);
	uint8_t digest[MD5_DIGEST_LENGTH];
	MD5_CTX md5;

	if (serial) {
		if (strlen(serial) > BLK_ID_LEN)
			return error_set(err, EINVAL,
					 "ser=%s: a serial number has %d characters at most",
					 serial, BLK_ID_LEN);
		strcpy(blk->id, serial);
		return 0;
	}
	MD5Init(&md5);
	MD5Update(&md5, (const uint8_t *)path, strlen(path));
	MD5Final(digest, &md5);
	snprintf(blk->id, sizeof(blk->id), "SKEP-%02X%02X-%02X%02X-%02X%02X", digest[0], digest[1],
		 digest[2], digest[3], digest[4], digest[5]);
	return 0;
}

static int make_requests(struct blk *blk, struct error *err)
{
	for (unsigned q = 0; q < blk->dev.queues; q++) {
		blk->pool[q] = calloc(BLK_QUEUE_SIZE, sizeof(*blk->pool[q]));
		if (!blk->pool[q])
			return error_set(err, ENOMEM, "out of memory");
		for (unsigned i = 0; i < BLK_QUEUE_SIZE; i++) {
			struct blk_request *req = &blk->pool[q][i];

			req->blk = blk;
			req->vq = &blk->dev.queue[q];
			req->next = blk->free[q];
			blk->free[q] = req;
		}
	}
	return 0;
}

static void blk_destroy(struct device *device)
{
	struct blk *blk = (struct blk *)device;

	virtio_destroy(&blk->dev);
	block_close(blk->block);
	for (unsigned q = 0; q < BLK_QUEUES; q++)
		free(blk->pool[q]);
	pthread_mutex_destroy(&blk->lock);
	device_free(device);
}

static int blk_set_up(struct blk *blk, struct config *config, struct error *err)
{
	struct vm *vm = blk->dev.device.vm;
	unsigned cpus = vm->topology.cpus < BLK_QUEUES ? vm->topology.cpus : BLK_QUEUES;
	uint64_t queues, bootindex;
	int rc;

	rc = config_check_names(config, BLOCK_OPTIONS "device pcireg ser bootindex queues", err);
	if (!rc)
		rc = config_get_u64(config, "bootindex", 0, 0, 65535, &bootindex, err);
	if (!rc)
		rc = config_get_u64(config, "queues", cpus ? cpus : 1, 1, BLK_QUEUES, &queues, err);
	if (!rc)
		rc = block_open(&blk->block, config, vm->log, err);
	if (!rc)
		rc = set_id(blk, config, err);
	if (rc)
		return rc;
	blk->dev.queues = (unsigned)queues;
	blk->dev.workers = 1;
	blk->dev.worker[0].eager = true;
	for (unsigned q = 0; q < queues; q++)
		blk->dev.queue_max[q] = BLK_QUEUE_SIZE;
	set_config(blk);
	rc = make_requests(blk, err);
	if (!rc)
		rc = virtio_init(&blk->dev, config, err);
	if (!rc)
		block_attend(blk->block, blk->dev.worker[0].doorbell);
	return rc;
}

static int blk_create(struct vm *vm, struct config *config, struct device **out, struct error *err)
{
	struct blk *blk;
	char path[64];
	int rc;

	blk = device_alloc(&blk_class, vm, sizeof(*blk), "%s",
			   config_path(config, path, sizeof(path)));
	if (!blk)
		return error_set(err, ENOMEM, "out of memory");
	pthread_mutex_init(&blk->lock, NULL);
	blk->dev.type = &blk_type;
	blk->dev.state = &blk->state.virtio;
	rc = blk_set_up(blk, config, err);
	if (rc) {
		blk_destroy(&blk->dev.device);
		return rc;
	}
	*out = &blk->dev.device;
	return 0;
}

static bool blk_check(const void *state)
{
	return virtio_state_check(&((const struct blk_state *)state)->virtio);
}

static const struct state_field blk_fields[] = {VIRTIO_FIELDS(struct blk_state, virtio)};

static const struct state_table blk_table =
	STATE_TABLE("virtio-blk", struct blk_state, blk_fields, 1, blk_check);

static const struct device_class blk_class = {
	.name = "virtio-blk",
	.help = "virtio-blk,PATH[,ro][,nocache][,sync][,nodelete][,sectorsize=L[/"
		"P]][,ser=TEXT][,snapshot=on]"
		"[,queues=N]  disk",
	.kind = DEVICE_PCI,
	.config_key = "path",
	.create = blk_create,
	.destroy = blk_destroy,
	.reset = virtio_reset,
	.quiesce = virtio_quiesce,
	.resume = virtio_resume,
	.table = &blk_table,
	.state_offset = offsetof(struct blk, state),
};
DEVICE_REGISTER(blk_class);
