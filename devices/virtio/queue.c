/*
 * virtio split rings: Virtual I/O Device 1.2, section 2.7. Everything that a driver writes into a ring or a descriptor
 * is read once, into variables of ours, and checked there.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "devices/virtio/internal.h"

#define DESC_NEXT 1u
#define DESC_WRITE 2u
#define DESC_INDIRECT 4u

#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY 1u

struct descriptor {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

/* Both rings begin with flags and index, 16 bits each; then the entries, then the event index of the other side. */
static uint64_t avail_bytes(unsigned size)
{
	return 4 + 2ull * size + 2;
}

static uint64_t used_bytes(unsigned size)
{
	return 4 + 8ull * size + 2;
}

static uint16_t ring_load(const uint8_t *at)
{
	return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE);
}

static void ring_store(uint8_t *at, uint16_t value)
{
	__atomic_store_n((uint16_t *)at, value, __ATOMIC_RELEASE);
}

bool virtqueue_map(struct virtqueue *vq)
{
	struct virtio_state *s = vq->dev->state;
	struct memory *mem = &vq->dev->device.vm->memory;
	unsigned q = vq->index, size = s->size[q];

	if (size == 0 || size > vq->dev->queue_max[q] || (size & (size - 1)))
		return false;
	/* 2.7: alignment of the three parts */
	if ((s->desc[q] & 15) || (s->avail[q] & 1) || (s->used[q] & 3))
		return false;
	vq->size = size;
	vq->desc = memory_read_ptr(mem, s->desc[q], 16ull * size);
	vq->avail = memory_read_ptr(mem, s->avail[q], avail_bytes(size));
	if (vq->desc && vq->avail)
		vq->used = memory_write_begin(mem, s->used[q], used_bytes(size));
	vq->used_gpa = s->used[q];
	vq->wanted = true;
	return vq->desc && vq->avail && vq->used;
}

void virtqueue_unmap(struct virtqueue *vq)
{
	if (vq->used)
		memory_write_end(&vq->dev->device.vm->memory, vq->used_gpa, used_bytes(vq->size));
	vq->desc = vq->avail = NULL;
	vq->used = NULL;
}

/* Under the lock: may this queue be worked on? */
static bool queue_live(const struct virtqueue *vq)
{
	const struct virtio_state *s = vq->dev->state;

	return vq->used && s->enabled[vq->index] && !(s->status & VIRTIO_STATUS_NEEDS_RESET);
}

static bool uses_event_idx(const struct virtqueue *vq)
{
	return virtio_has(vq->dev, VIRTIO_F_EVENT_IDX);
}

/* Where the device says from which request on it wants to hear, and the driver of completions. */
static uint8_t *avail_event(const struct virtqueue *vq)
{
	return vq->used + 4 + 8ull * vq->size;
}

static const uint8_t *used_event(const struct virtqueue *vq)
{
	return vq->avail + 4 + 2ull * vq->size;
}

static void tell_wanted(struct virtqueue *vq)
{
	if (uses_event_idx(vq)) {
		if (vq->wanted)
			ring_store(avail_event(vq), vq->dev->state->next_avail[vq->index]);
	} else {
		ring_store(vq->used, vq->wanted ? 0 : USED_NO_NOTIFY);
	}
	/* The driver writes its index, then reads this; we write this, then read its index (2.7.10.1). */
	atomic_thread_fence(memory_order_seq_cst);
}

/* Requests that the driver has made available, or -1: more than the ring holds. */
static int available(const struct virtqueue *vq)
{
	uint16_t n = (uint16_t)(ring_load(vq->avail + 2) - vq->dev->state->next_avail[vq->index]);

	return n <= vq->size ? n : -1;
}

/* One buffer of the guest becomes part of the chain. */
static bool chain_add(struct virtqueue *vq, struct virtio_chain *chain,
		      const struct descriptor *desc)
{
	struct memory *mem = &vq->dev->device.vm->memory;
	bool writable = desc->flags & DESC_WRITE;
	void *base;

	if (chain->segs == VIRTIO_SEGS || desc->len == 0 ||
	    (!writable && chain->segs != chain->readable))
		return false;
	base = writable ? memory_write_begin(mem, desc->addr, desc->len)
			: (void *)(uintptr_t)memory_read_ptr(mem, desc->addr, desc->len);
	if (!base)
		return false;
	chain->iov[chain->segs] = (struct iovec){base, desc->len};
	chain->gpa[chain->segs++] = desc->addr;
	if (writable) {
		chain->writable_len += desc->len;
	} else {
		chain->readable++;
		chain->readable_len += desc->len;
	}
	return true;
}

static void chain_release(struct virtqueue *vq, const struct virtio_chain *chain)
{
	for (unsigned i = chain->readable; i < chain->segs; i++)
		memory_write_end(&vq->dev->device.vm->memory, chain->gpa[i], chain->iov[i].iov_len);
}

/* A table of `n` descriptors from entry `at` on. It ends after VIRTIO_SEGS of them, loop or not. */
static const char *chain_walk(struct virtqueue *vq, struct virtio_chain *chain,
			      const uint8_t *table, unsigned n, unsigned at, bool indirect)
{
	struct descriptor desc;

	do {
		if (at >= n)
			return "a descriptor index that is out of range";
		memcpy(&desc, table + 16ull * at, sizeof(desc));
		at = desc.next;
		if (!(desc.flags & DESC_INDIRECT)) {
			if (!chain_add(vq, chain, &desc))
				return "a buffer that is empty, not in memory, out of order or one "
				       "too many";
			continue;
		}
		if (indirect || (desc.flags & DESC_NEXT) || desc.len == 0 || desc.len % 16 ||
		    !virtio_has(vq->dev, VIRTIO_F_INDIRECT_DESC))
			return "a bad indirect descriptor";
		table = memory_read_ptr(&vq->dev->device.vm->memory, desc.addr, desc.len);
		if (!table)
			return "an indirect table outside of memory";
		return chain_walk(vq, chain, table, desc.len / 16, 0, true);
	} while (desc.flags & DESC_NEXT);
	return NULL;
}

/* Under the lock. */
static int queue_pop(struct virtqueue *vq, struct virtio_chain *chain)
{
	struct virtio_state *s = vq->dev->state;
	unsigned q = vq->index;
	const char *wrong = NULL;
	int n = available(vq);

	if (n == 0) {
		tell_wanted(vq);
		n = available(vq);
	}
	if (n == 0)
		return 0;
	chain->readable = chain->segs = 0;
	chain->readable_len = chain->writable_len = 0;
	if (n < 0) {
		wrong = "more requests than the ring holds";
	} else {
		memcpy(&chain->head, vq->avail + 4 + 2 * (s->next_avail[q] & (vq->size - 1)), 2);
		wrong = chain_walk(vq, chain, vq->desc, vq->size, chain->head, false);
	}
	if (wrong) {
		chain_release(vq, chain);
		virtio_broken_locked(vq->dev, "queue %u: %s", q, wrong);
		return 0;
	}
	s->next_avail[q]++;
	if (vq->wanted && uses_event_idx(vq))
		ring_store(avail_event(vq), s->next_avail[q]);
	return 1;
}

int virtqueue_pop(struct virtqueue *vq, struct virtio_chain *chain)
{
	int rc;

	pthread_mutex_lock(&vq->dev->device.lock);
	rc = queue_live(vq) ? queue_pop(vq, chain) : 0;
	pthread_mutex_unlock(&vq->dev->device.lock);
	return rc;
}

void virtqueue_unpop(struct virtqueue *vq, struct virtio_chain *chain)
{
	pthread_mutex_lock(&vq->dev->device.lock);
	chain_release(vq, chain);
	if (queue_live(vq))
		vq->dev->state->next_avail[vq->index]--;
	pthread_mutex_unlock(&vq->dev->device.lock);
}

void virtqueue_push_all(struct virtqueue *vq, struct virtio_chain *chains, const uint64_t *written,
			unsigned n)
{
	struct virtio_state *s = vq->dev->state;
	unsigned q = vq->index;
	bool live;

	pthread_mutex_lock(&vq->dev->device.lock);
	live = queue_live(vq);
	for (unsigned i = 0; i < n; i++) {
		uint32_t used[2] = {chains[i].head,
				    (uint32_t)(written[i] < UINT32_MAX ? written[i] : UINT32_MAX)};

		chain_release(vq, &chains[i]);
		if (live)
			memcpy(vq->used + 4 + 8 * (s->next_used[q]++ & (vq->size - 1)), used,
			       sizeof(used));
	}
	if (live)
		ring_store(vq->used + 2, s->next_used[q]);
	pthread_mutex_unlock(&vq->dev->device.lock);
}

void virtqueue_push(struct virtqueue *vq, struct virtio_chain *chain, uint64_t written)
{
	virtqueue_push_all(vq, chain, &written, 1);
}

/* 2.7.7.2 */
static bool wants_interrupt(struct virtqueue *vq)
{
	struct virtio_state *s = vq->dev->state;
	uint16_t old = s->signalled[vq->index], new = s->next_used[vq->index];

	if (old == new)
		return false;
	atomic_thread_fence(memory_order_seq_cst);
	s->signalled[vq->index] = new;
	if (!uses_event_idx(vq))
		return !(ring_load(vq->avail) & AVAIL_NO_INTERRUPT);
	return (uint16_t)(new - ring_load(used_event(vq)) - 1) < (uint16_t)(new - old);
}

void virtqueue_signal(struct virtqueue *vq)
{
	pthread_mutex_lock(&vq->dev->device.lock);
	if (queue_live(vq) && wants_interrupt(vq))
		virtio_interrupt(vq->dev, vq->dev->state->vector[vq->index], VIRTIO_ISR_QUEUE);
	pthread_mutex_unlock(&vq->dev->device.lock);
}

void virtqueue_want_notify_locked(struct virtqueue *vq, bool wanted)
{
	vq->wanted = wanted;
	if (queue_live(vq))
		tell_wanted(vq);
}

void virtqueue_want_notify(struct virtqueue *vq, bool wanted)
{
	pthread_mutex_lock(&vq->dev->device.lock);
	virtqueue_want_notify_locked(vq, wanted);
	pthread_mutex_unlock(&vq->dev->device.lock);
}

void virtqueue_watch(struct virtqueue *vq)
{
	vq->watch = vq->avail ? vq->avail + 2 : NULL;
	if (vq->watch)
		vq->seen = ring_load(vq->watch);
}

/* The guest's memory stays where it is; what it holds after the queue was moved or disabled is worth a look at most. */
bool virtqueue_moved(const struct virtqueue *vq)
{
	return vq->watch && ring_load(vq->watch) != vq->seen;
}

bool virtqueue_ready(struct virtqueue *vq)
{
	bool ready;

	pthread_mutex_lock(&vq->dev->device.lock);
	ready = queue_live(vq) && available(vq) != 0;
	pthread_mutex_unlock(&vq->dev->device.lock);
	return ready;
}

/* --- bytes of a chain ------------------------------------------------------------------------------ */

unsigned virtio_iov_part(const struct iovec *from, unsigned n, uint64_t skip, uint64_t len,
			 struct iovec *out)
{
	unsigned count = 0;

	for (unsigned i = 0; i < n && len > 0; i++) {
		uint64_t take = from[i].iov_len;

		if (skip >= take) {
			skip -= take;
			continue;
		}
		take = take - skip < len ? take - skip : len;
		out[count++] = (struct iovec){(uint8_t *)from[i].iov_base + skip, take};
		skip = 0;
		len -= take;
	}
	return count;
}

size_t virtio_chain_read(const struct virtio_chain *chain, uint64_t skip, void *out, size_t len)
{
	struct iovec part[VIRTIO_SEGS];
	unsigned n = virtio_iov_part(chain->iov, chain->readable, skip, len, part);
	size_t done = 0;

	for (unsigned i = 0; i < n; done += part[i++].iov_len)
		memcpy((uint8_t *)out + done, part[i].iov_base, part[i].iov_len);
	return done;
}

size_t virtio_chain_write(const struct virtio_chain *chain, uint64_t skip, const void *in,
			  size_t len)
{
	struct iovec part[VIRTIO_SEGS];
	unsigned n = virtio_iov_part(chain->iov + chain->readable, chain->segs - chain->readable,
				     skip, len, part);
	size_t done = 0;

	for (unsigned i = 0; i < n; done += part[i++].iov_len)
		memcpy(part[i].iov_base, (const uint8_t *)in + done, part[i].iov_len);
	return done;
}
