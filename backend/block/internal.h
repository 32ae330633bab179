/*
 * The parts of a block back end: block.c opens and queues; file.c does one request on a file, synchronously;
 * pool.c does that on worker threads; uring.c hands plain reads, writes and flushes to the kernel; overlay.c is the
 * store of `snapshot` and `test=volatile`.
 */
#ifndef BACKEND_BLOCK_INTERNAL_H
#define BACKEND_BLOCK_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "backend/block/block.h"

#define POOL_THREADS 4
#define SLICE_IOVS 256 /* of one system call */

struct block_fault {
	bool set;
	enum block_op op;
	int error; /* positive */
	uint64_t first, count;
	_Atomic uint64_t seen;
};

struct block {
	char path[512];
	int fd;
	struct block_geometry geometry;
	bool nocache, sync, nodelete, snapshot, is_device;
	uint32_t alignment; /* of memory and length with nocache */
	struct log *log;
	struct block_fault fault;
	_Atomic int flush_error; /* sticky, negative */
	/* block_run(): */
	_Atomic bool
		no_nowait; /* writes that would not wait are not to be had of this file system */
	/* ns of CLOCK_MONOTONIC; until then no writes that may wait; small ones, large ones */
	_Atomic uint64_t run_after[2];
	struct overlay *overlay; /* NULL: none */
	struct uring *uring;	 /* NULL: threads only */

	pthread_mutex_t lock;
	pthread_cond_t work, idle;
	struct block_request *head, **tail; /* for the pool */
	unsigned busy;			    /* requests under way, queued ones included */
	bool stop;
	unsigned threads;
	pthread_t thread[POOL_THREADS];
};

/* block.c: ends a request: logs an error, calls done. */
void block_complete(struct block *block, struct block_request *request, int error);
/* Appends to the pool's queue. */
void pool_queue(struct block *block, struct block_request *request);
int pool_start(struct block *block, struct error *err);
void pool_stop(struct block *block);

/* Up to `max` iovecs for the bytes [skip, skip + length) of a request; *got is how many bytes they are. */
unsigned iov_slice(const struct block_request *request, uint64_t skip, uint64_t length,
		   struct iovec *out, unsigned max, uint64_t *got);
/* May the memory of the request, from `skip` bytes on, be given to the file as it is? With O_DIRECT it has to be aligned. */
bool file_takes(const struct block *block, const struct block_request *request, uint64_t skip);
/* One request on the file (or the overlay), from request->progress on: 0 or -errno. */
int file_execute(struct block *block, struct block_request *request);
/* A read or write in the page cache alone: true, and it is done; false: it is for others, from request->progress on. */
bool file_run(struct block *block, struct block_request *request);
int file_open(struct block *block, const char *sectors, struct error *err);
/* All `length` bytes of the request's memory from `skip` on, against fd at `offset`. */
int file_transfer(struct block *block, int fd, const struct block_request *request, bool write,
		  uint64_t skip, uint64_t length, uint64_t offset);
int file_zero(struct block *block, int fd, uint64_t offset, uint64_t length, bool unmap);
int file_sync(struct block *block);

/* NULL in *out with 0: this kernel refuses io_uring. */
int uring_create(struct uring **out, struct block *block, struct error *err);
/* With nothing under way. */
void uring_destroy(struct uring *uring);
void uring_submit(struct uring *uring, struct block_request *request); /* read, write or flush */
void uring_kick(struct uring *uring);
/* Completions are for uring_poll() from now on; `eventfd` tells of them. False: the kernel does not. */
bool uring_attend(struct uring *uring, int eventfd);
bool uring_poll(struct uring *uring);
bool uring_awaits(struct uring *uring);
/* What the kernel was not told of yet; it is out of the list. */
struct block_request *uring_take_waiting(struct uring *uring);

/* is_volatile: a flush moves everything to the image; otherwise nothing ever does. */
int overlay_create(struct overlay **out, struct block *block, bool is_volatile, struct error *err);
void overlay_destroy(struct overlay *overlay);
int overlay_execute(struct overlay *overlay, struct block_request *request);

#endif
