/*
 * Reads, writes and flushes by io_uring(7). Whoever submits fills the ring under its lock; one thread takes the
 * completions, the reaper or the caller's own (block_attend()). What the ring has no room for waits in a list; what the
 * kernel did only in part goes on in the pool.
 */
#include <errno.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/internal.h"

#define RING_ENTRIES 256u
#define BYTES_MOST \
	(32u << 20) /* what the kernel has is nobody's to cancel, and a reset waits for it */

struct uring {
	struct block *block;
	struct io_uring ring;
	pthread_t reaper;
	_Atomic bool attended; /* there is no reaper */
	pthread_mutex_t lock;  /* submission */
	unsigned in_flight;    /* entries used and not completed, at most RING_ENTRIES */
	unsigned direct;       /* of these, transfers past the host's page cache: the hardware's */
	uint64_t bytes;	       /* what they are to move, at most BYTES_MOST, or it is one */
	unsigned unsent;       /* of these, not yet told to the kernel */
	struct block_request *head, **tail;
};

static bool is_direct(const struct uring *uring, const struct block_request *request)
{
	return uring->block->nocache && request->op != BLOCK_FLUSH;
}

static void fill(struct uring *uring, struct block_request *request)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
	int fd = uring->block->fd;

	/* in_flight keeps below the size of the ring, so there is always one. */
	if (request->op == BLOCK_READ)
		io_uring_prep_readv(sqe, fd, request->iov, request->iovs, request->offset);
	else if (request->op == BLOCK_WRITE)
		io_uring_prep_writev(sqe, fd, request->iov, request->iovs, request->offset);
	else
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
	io_uring_sqe_set_data(sqe, request);
	uring->in_flight++;
	uring->unsent++;
	uring->direct += is_direct(uring, request);
	uring->bytes += request->length;
}

/* Under the lock: the kernel has done with it. */
static void forget(struct uring *uring, const struct block_request *request)
{
	uring->in_flight--;
	if (request == NULL)
		return;
	uring->direct -= is_direct(uring, request);
	uring->bytes -= request->length;
}

static bool has_room(const struct uring *uring, const struct block_request *request)
{
	return uring->in_flight < RING_ENTRIES &&
	       (uring->bytes == 0 || uring->bytes + request->length <= BYTES_MOST);
}

/* Under the lock. What the kernel cannot take now (-EAGAIN, -EBUSY) stays in the ring for the next time: every
 * completion calls this again, and with none outstanding the kernel has no reason to refuse. */
static void send_all(struct uring *uring)
{
	while (uring->head != NULL && has_room(uring, uring->head)) {
		struct block_request *request = uring->head;

		uring->head = request->next;
		if (uring->head == NULL)
			uring->tail = &uring->head;
		fill(uring, request);
	}
	while (uring->unsent > 0) {
		int n = io_uring_submit(&uring->ring);

		if (n == -EINTR || (n == -EAGAIN && uring->in_flight == uring->unsent))
			continue;
		if (n <= 0)
			break;
		uring->unsent -= (unsigned)n;
	}
}

void uring_submit(struct uring *uring, struct block_request *request)
{
	pthread_mutex_lock(&uring->lock);
	*uring->tail = request;
	uring->tail = &request->next;
	pthread_mutex_unlock(&uring->lock);
}

struct block_request *uring_take_waiting(struct uring *uring)
{
	struct block_request *waiting;

	pthread_mutex_lock(&uring->lock);
	waiting = uring->head;
	uring->head = NULL;
	uring->tail = &uring->head;
	pthread_mutex_unlock(&uring->lock);
	return waiting;
}

void uring_kick(struct uring *uring)
{
	pthread_mutex_lock(&uring->lock);
	send_all(uring);
	pthread_mutex_unlock(&uring->lock);
}

static void complete(struct uring *uring, struct block_request *request, int result)
{
	struct block *block = uring->block;

	if (request->op == BLOCK_FLUSH) {
		if (result < 0)
			block->flush_error = result;
		block_complete(block, request, result < 0 ? result : 0);
		return;
	}
	if (result == -EAGAIN || result == -EINTR)
		result = 0;
	else if (result == 0 && request->length > 0)
		result = -EIO; /* the image was truncated */
	if (result < 0) {
		block_complete(block, request, result);
		return;
	}
	request->progress = (uint64_t)result;
	if (request->progress < request->length)
		pool_queue(block, request);
	else
		block_complete(block, request, 0);
}

/* False: it was the one that means the end. */
static bool take(struct uring *uring, struct io_uring_cqe *cqe)
{
	struct block_request *request = io_uring_cqe_get_data(cqe);
	int result = cqe->res;

	io_uring_cqe_seen(&uring->ring, cqe);
	pthread_mutex_lock(&uring->lock);
	forget(uring, request);
	send_all(uring);
	pthread_mutex_unlock(&uring->lock);
	if (request == NULL)
		return false;
	complete(uring, request, result);
	return true;
}

static void *reap(void *arg)
{
	struct uring *uring = arg;
	struct io_uring_cqe *cqe;

	for (;;) {
		if (io_uring_wait_cqe(&uring->ring, &cqe) != 0)
			continue; /* EINTR */
		if (!take(uring, cqe))
			return NULL;
	}
}

bool uring_poll(struct uring *uring)
{
	struct io_uring_cqe *cqe;
	unsigned n = 0;

	if (!uring->attended)
		return false; /* what is there is the reaper's */
	while (n < RING_ENTRIES && io_uring_peek_cqe(&uring->ring, &cqe) == 0) {
		take(uring, cqe);
		n++;
	}
	return n > 0;
}

bool uring_awaits(struct uring *uring)
{
	bool yes;

	pthread_mutex_lock(&uring->lock);
	yes = uring->attended && uring->direct > 0;
	pthread_mutex_unlock(&uring->lock);
	return yes;
}

/* With nothing under way. */
static void end_reaper(struct uring *uring)
{
	struct io_uring_sqe *sqe;

	pthread_mutex_lock(&uring->lock);
	sqe = io_uring_get_sqe(&uring->ring);
	io_uring_prep_nop(sqe);
	io_uring_sqe_set_data(sqe, NULL); /* no request: the end */
	uring->in_flight++;
	uring->unsent++;
	send_all(uring);
	pthread_mutex_unlock(&uring->lock);
	pthread_join(uring->reaper, NULL);
}

bool uring_attend(struct uring *uring, int eventfd)
{
	if (io_uring_register_eventfd(&uring->ring, eventfd) != 0)
		return false;
	end_reaper(uring);
	uring->attended = true;
	return true;
}

int uring_create(struct uring **out, struct block *block, struct error *err)
{
	struct uring *uring = calloc(1, sizeof(*uring));
	int rc;

	if (uring == NULL)
		return error_set(err, ENOMEM, "%s: out of memory", block->path);
	rc = io_uring_queue_init(RING_ENTRIES, &uring->ring, 0);
	if (rc != 0) {
		free(uring);
		return 0; /* refused: the pool does it all */
	}
	uring->block = block;
	uring->tail = &uring->head;
	pthread_mutex_init(&uring->lock, NULL);
	rc = pthread_create(&uring->reaper, NULL, reap, uring);
	if (rc != 0) {
		io_uring_queue_exit(&uring->ring);
		free(uring);
		return error_set(err, rc, "%s: no thread: %s", block->path, strerror(rc));
	}
	pthread_setname_np(uring->reaper, "block-uring");
	*out = uring;
	return 0;
}

void uring_destroy(struct uring *uring)
{
	if (uring == NULL)
		return;
	if (!uring->attended)
		end_reaper(uring);
	io_uring_queue_exit(&uring->ring);
	pthread_mutex_destroy(&uring->lock);
	free(uring);
}
