/*
 * The threads that serve a virtio device's queues: how they are woken, look for work by themselves (base/spin.h), and stand
 * still while the device is stopped.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "devices/virtio/internal.h"

#define WORKER_STOP (1ull << 63)

/* What a post of ours adds to a worker's eventfd. An engine that serves doorbells by itself adds 1, and cannot say for
 * which queue. */
#define WORKER_POST (1ull << 40)

static void worker_post(struct virtio_worker *worker, uint64_t bits)
{
	const uint64_t post = WORKER_POST;

	/* Who finds bits there has rung, or the worker is about to look. It says that it is asleep, then looks once more. */
	if (atomic_fetch_or(&worker->pending, bits) == 0 && atomic_load(&worker->asleep) &&
	    write(worker->doorbell, &post, sizeof(post)) < 0)
		return; /* the counter of an eventfd does not fill up */
}

void virtio_kick(struct virtio_device *dev, unsigned queue)
{
	if (queue < dev->queues)
		worker_post(&dev->worker[queue % dev->workers], 1ull << queue);
}

/* Under the lock: may `notify` be called for the queue? */
static bool queue_runs(const struct virtio_device *dev, unsigned queue)
{
	return dev->started && !dev->parked && dev->queue[queue].used;
}

/* The worker's turn is taken (`busy`): calls `notify` and gives it back. */
static void run_notify(struct virtio_worker *worker, unsigned queue)
{
	struct virtio_device *dev = worker->dev;

	dev->type->notify(dev, queue);
	pthread_mutex_lock(&dev->device.lock);
	worker->busy = false;
	pthread_cond_broadcast(&dev->idle);
	pthread_mutex_unlock(&dev->device.lock);
}

static void worker_notify(struct virtio_worker *worker, unsigned queue)
{
	struct virtio_device *dev = worker->dev;
	bool go;

	pthread_mutex_lock(&dev->device.lock);
	while (worker->busy)
		pthread_cond_wait(&dev->idle, &dev->device.lock);
	go = queue_runs(dev, queue); /* if not: whoever starts the device kicks every queue */
	worker->busy = go;
	if (go)
		virtqueue_watch(&dev->queue[queue]);
	else
		dev->queue[queue].watch = NULL;
	pthread_mutex_unlock(&dev->device.lock);
	if (go)
		run_notify(worker, queue);
}

bool virtio_run(struct virtio_device *dev, unsigned queue)
{
	struct virtio_worker *worker = &dev->worker[queue % dev->workers];
	bool go;

	pthread_mutex_lock(&dev->device.lock);
	go = !worker->busy && queue_runs(dev, queue);
	if (go)
		worker->busy = true;
	pthread_mutex_unlock(&dev->device.lock);
	if (go)
		run_notify(worker, queue);
	return go;
}

/* A bit for each queue of the worker's. */
static uint64_t worker_queues(const struct virtio_worker *worker)
{
	const struct virtio_device *dev = worker->dev;
	uint64_t bits = 0;

	for (unsigned q = (unsigned)(worker - dev->worker); q < dev->queues; q += dev->workers)
		bits |= 1ull << q;
	return bits;
}

/* Is there something to do? Queues in which the driver went on are put into `pending`. */
static bool work_found(void *arg)
{
	struct virtio_worker *worker = arg;
	struct virtio_device *dev = worker->dev;
	uint64_t moved = 0;
	bool ended = worker == dev->worker && dev->type->poll && dev->type->poll(dev);

	for (uint64_t bits = worker->eager ? worker_queues(worker) : 0; bits; bits &= bits - 1) {
		unsigned q = (unsigned)__builtin_ctzll(bits);

		if (virtqueue_moved(&dev->queue[q]))
			moved |= 1ull << q;
	}
	if (moved)
		atomic_fetch_or(&worker->pending, moved);
	return ended || atomic_load(&worker->pending) != 0;
}

/* 2.7.10: while the worker looks by itself the driver need not leave the guest to notify. */
static void worker_want_notify(struct virtio_worker *worker, bool wanted)
{
	struct virtio_device *dev = worker->dev;

	pthread_mutex_lock(&dev->device.lock);
	for (uint64_t bits = worker_queues(worker); bits; bits &= bits - 1) {
		struct virtqueue *vq = &dev->queue[__builtin_ctzll(bits)];

		if (vq->wanted != wanted)
			virtqueue_want_notify_locked(vq, wanted);
	}
	pthread_mutex_unlock(&dev->device.lock);
}

/* True: there is work. */
static bool worker_look(struct virtio_worker *worker)
{
	struct virtio_device *dev = worker->dev;
	bool found;

	if (!worker->eager)
		return work_found(worker);
	if (worker->spin.window > 0)
		worker_want_notify(worker, false);
	found = spin_wait(&worker->spin, &dev->device.vm->spin_room,
			  dev->type->awaits && dev->type->awaits(dev), work_found, worker);
	if (found)
		return true;
	/* A driver that had not yet been told is seen by the look that is still to come. */
	worker_want_notify(worker, true);
	return false;
}

/* Until there is work; false: the worker is to end. A doorbell that the engine serves says only that somebody rang; an
 * eager worker sees for itself who it was. */
static bool worker_sleep(struct virtio_worker *worker)
{
	bool ok = true;

	atomic_store(&worker->asleep, true);
	while (ok && !work_found(worker)) {
		uint64_t count = 0;

		ok = read(worker->doorbell, &count, sizeof(count)) >= 0 || errno == EINTR;
		if (count % WORKER_POST && !worker->eager)
			atomic_fetch_or(&worker->pending, worker_queues(worker));
	}
	atomic_store(&worker->asleep, false);
	spin_slept(&worker->spin);
	return ok;
}

static void *worker_main(void *arg)
{
	struct virtio_worker *worker = arg;
	uint64_t bits;

	while (worker_look(worker) || worker_sleep(worker)) {
		bits = atomic_exchange(&worker->pending, 0);
		if (bits & WORKER_STOP)
			break;
		for (; bits; bits &= bits - 1)
			worker_notify(worker, (unsigned)__builtin_ctzll(bits));
	}
	return NULL;
}

int virtio_worker_make(struct virtio_device *dev, unsigned n, struct error *err)
{
	struct virtio_worker *worker = &dev->worker[n];
	sigset_t all, old;
	char name[16];
	int rc;

	worker->dev = dev;
	worker->doorbell = eventfd(0, EFD_CLOEXEC);
	if (worker->doorbell < 0)
		return error_set(err, errno, "eventfd: %s", strerror(errno));
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&worker->thread, NULL, worker_main, worker);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc) {
		close(worker->doorbell);
		return error_set(err, rc, "no thread for %s: %s", dev->device.name, strerror(rc));
	}
	snprintf(name, sizeof(name), "%.9s/%u", dev->device.cls->name, n);
	pthread_setname_np(worker->thread, name);
	worker->made = true;
	return 0;
}

void virtio_worker_end(struct virtio_worker *worker)
{
	if (!worker->made)
		return;
	worker_post(worker, WORKER_STOP);
	pthread_join(worker->thread, NULL);
	close(worker->doorbell);
	worker->made = false;
}

void virtio_workers_park(struct virtio_device *dev)
{
	dev->parked = true;
	for (unsigned i = 0; i < dev->workers; i++)
		while (dev->worker[i].busy)
			pthread_cond_wait(&dev->idle, &dev->device.lock);
}
