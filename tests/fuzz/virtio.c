#include "tests/fuzz/virtio.h"

#include <string.h>

#include "devices/virtio/virtio.h"

/* Where the rings of a queue are: its table, then what the driver gives, then what the device does. */
#define RINGS 0x10000u
#define RING_SIZE 0x4000u
#define AVAIL_OFFSET 0x2000u
#define USED_OFFSET 0x3000u
#define ENTRIES 64u

#define MODERN_BAR 4
#define NOTIFY 0x3000u

static uint64_t rings(unsigned queue)
{
	return RINGS + (uint64_t)RING_SIZE * queue;
}

static void reg(struct machine *m, unsigned offset, unsigned size, uint64_t value)
{
	fixture_write(m->f, fuzz_bar(m, MODERN_BAR) + offset, size, value);
}

/* Reset, features, all queues, DRIVER_OK. */
static void bring_up(struct machine *m, struct input *in)
{
	struct virtio_device *dev = (struct virtio_device *)m->device;
	uint64_t features = (dev->features & ~take64(in)) | VIRTIO_F_VERSION_1;

	reg(m, 0x14, 1, 0);
	reg(m, 0x14, 1, 3);
	for (unsigned i = 0; i < 2; i++) {
		reg(m, 0x08, 4, i);
		reg(m, 0x0c, 4, features >> (32 * i) & UINT32_MAX);
	}
	reg(m, 0x14, 1, 11);
	for (unsigned q = 0; q < dev->queues; q++) {
		reg(m, 0x16, 2, q);
		reg(m, 0x18, 2, ENTRIES);
		reg(m, 0x20, 4, rings(q));
		reg(m, 0x28, 4, rings(q) + AVAIL_OFFSET);
		reg(m, 0x30, 4, rings(q) + USED_OFFSET);
		reg(m, 0x1c, 2, 1);
	}
	reg(m, 0x14, 1, 15);
}

static void describe(struct machine *m, uint64_t table, unsigned n, uint64_t address, uint32_t len,
		     uint16_t flags, uint16_t next)
{
	const struct {
		uint64_t address;
		uint32_t len;
		uint16_t flags, next;
	} descriptor = {address, len, flags, next};

	fuzz_poke(m, table + 16ull * n, &descriptor, sizeof(descriptor));
}

static void offer(struct machine *m, unsigned queue, uint16_t head)
{
	uint64_t avail = rings(queue) + AVAIL_OFFSET;
	uint16_t index = 0;

	memory_read(&m->f->vm.memory, avail + 2, &index, 2);
	fuzz_poke(m, avail + 4 + 2 * (index % ENTRIES), &head, 2);
	index++;
	fuzz_poke(m, avail + 2, &index, 2);
}

/* A chain of up to four buffers from a descriptor on, given to the device; the first may hold up to 24 bytes of the
 * input: a header, a command. */
static void chain(struct machine *m, struct input *in, unsigned queue)
{
	uint8_t shape = take8(in), head = take8(in) % ENTRIES, bytes[24];
	unsigned buffers = 1 + (shape & 3), readable = shape >> 2 & 7;
	uint64_t table = rings(queue);

	for (unsigned i = 0; i < buffers; i++) {
		uint64_t address = take_address(m, in);
		uint32_t len = take_length(in);

		describe(m, table, (head + i) % ENTRIES, address, len,
			 (uint16_t)((i + 1 < buffers ? 1 : 0) | (i < readable ? 0 : 2)),
			 (uint16_t)((head + i + 1) % ENTRIES));
		if (i > 0 || !(shape & 0x20))
			continue;
		for (unsigned k = 0; k < sizeof(bytes); k++)
			bytes[k] = take8(in);
		fuzz_poke(m, address, bytes, len < sizeof(bytes) ? len : sizeof(bytes));
	}
	offer(m, queue, head);
	if (shape & 0x40)
		reg(m, NOTIFY + 4 * queue, 2, queue);
	if (shape & 0x80)
		fuzz_rest(m);
}

void virtio_operation(struct machine *m, struct input *in)
{
	struct virtio_device *dev = (struct virtio_device *)m->device;
	uint8_t op = take8(in);
	unsigned queue = (op >> 3) % dev->queues;

	switch (op & 7) {
	case 0:
		bring_up(m, in);
		break;
	case 1: {
		uint64_t address = take_address(m, in);
		uint32_t len = take_length(in);
		uint16_t flags = take8(in), next = take8(in);

		describe(m, rings(queue), take8(in), address, len, flags, next);
		break;
	}
	case 2:
		offer(m, queue, take8(in));
		break;
	case 3:
		reg(m, NOTIFY + 4 * queue, 2, queue);
		break;
	case 4: { /* by the legacy interface */
		uint64_t bar = fuzz_bar(m, 0);

		fixture_out(m->f, (uint16_t)(bar + 0x0e), 2, queue);
		fixture_out(m->f, (uint16_t)(bar + 0x08), 4, take8(in));
		fixture_out(m->f, (uint16_t)(bar + 0x12), 1, take8(in));
		fixture_out(m->f, (uint16_t)(bar + 0x10), 2, queue);
		break;
	}
	default:
		chain(m, in, queue);
	}
}

bool virtio_at_rest(struct machine *m, uint64_t *worked)
{
	struct virtio_device *dev = (struct virtio_device *)m->device;
	bool rest = true;

	pthread_mutex_lock(&dev->device.lock);
	*worked = 0;
	for (unsigned i = 0; i < dev->workers; i++) {
		rest = rest && !dev->worker[i].busy && atomic_load(&dev->worker[i].pending) == 0;
		*worked += fuzz_thread_time(dev->worker[i].thread);
	}
	pthread_mutex_unlock(&dev->device.lock);
	return rest;
}
