/*
 * A block back end: what a disk of the guest is on the host. A raw image (a plain, possibly sparse, file) or a block
 * device; the format is never guessed from the content.
 *
 * Options, below the device's node (as in -s 3,virtio-blk,disk.img,nocache):
 *   path=FILE          the image; has to exist
 *   ro                 opened for reading only; writes end in -EROFS
 *   nocache            past the host's page cache (O_DIRECT)
 *   sync, direct       a write is complete when it is on stable storage (O_DSYNC)
 *   nodelete           no discard; zeroes are written, never punched
 *   sectorsize=L[/P]   logical and physical sector size in bytes, powers of two, 512 <= L <= P
 *   snapshot=on        writes go to an unlinked file in $TMPDIR (/var/tmp) and are gone at exit
 *   aio=auto|io_uring|threads   who does the work; auto: io_uring where the kernel allows it
 *   test=volatile      (tests) writes stay in the memory of this process until a flush: what a power failure leaves of a
 *                      disk with a write cache
 *   fault=OP:ERROR[:FIRST[:COUNT]]   (tests) requests of a kind (read, write, flush, discard, zeroes) end in ERROR (EIO,
 *                      ENOSPC), from the FIRST (1) such request on, COUNT of them (all)
 *
 * An image is locked with flock(2) while it is open: shared for `ro` and `snapshot`, exclusive otherwise.
 *
 * Requests are asynchronous, may be issued from any thread and complete in any order. A flush covers the writes that
 * were complete when it was submitted; it completes only after fdatasync(2) did. After fdatasync has failed once,
 * every flush fails: the kernel may have dropped what it could not write, and a later success would be a lie.
 *
 * Nothing is allocated for a request: the caller embeds it.
 */
#ifndef BACKEND_BLOCK_H
#define BACKEND_BLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/config.h"
#include "base/error.h"
#include "base/log.h"

struct block;

/* The keys above, for config_check_names(). */
#define BLOCK_OPTIONS "path ro nocache sync direct nodelete sectorsize snapshot aio test fault "

enum block_op { BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES };

struct block_request {
	enum block_op op;
	bool unmap; /* BLOCK_WRITE_ZEROES: the space may be given back to the host */
	/* Bytes; both multiples of the logical sector size and inside the disk, else -EINVAL. 0, 0 for a flush. */
	uint64_t offset, length;
	/* Reads and writes: host memory, `length` bytes in all, any alignment and number. It and the array stay
	 * valid until `done`. */
	const struct iovec *iov;
	unsigned iovs;
	/* Called once for each block_submit() or block_run(), with no lock held, on a thread of the back end or of
	 * whoever calls block_poll() or block_run(); never from within block_submit() or block_kick(). error: 0; -EIO, -ENOSPC, -EROFS, -EINVAL, -EOPNOTSUPP (a discard that the host
	 * or `nodelete` refuses) ...; -ECANCELED. It may submit again. On an error the memory of a read holds anything.
	 * For what a guest should see: all of them are I/O errors but -EOPNOTSUPP, "unsupported". The back end has
	 * logged a line, limited in rate. */
	void (*done)(struct block_request *request, int error);
	void *arg;
	/* The back end's own. */
	struct block_request *next;
	uint64_t progress; /* bytes done */
	int error;
};

struct block_geometry {
	uint64_t size;		    /* bytes; a multiple of logical */
	uint32_t logical, physical; /* sector sizes in bytes */
	uint32_t optimal;	    /* preferred size of an access in bytes, 0: none known */
	bool read_only;
	bool discard;	  /* BLOCK_DISCARD may do something */
	bool write_cache; /* a flush means something; false with sync */
};

/* `node` holds the options. Everything that can be refused is refused here, with text: a missing image, a directory,
 * no permission, a size that is no multiple of a sector, an image in use (the holder is named). The threads are made
 * here too. */
int block_open(struct block **out, struct config *node, struct log *log, struct error *err);
/* Waits for what was submitted, then closes. Not under the device's lock. NULL is allowed. */
void block_close(struct block *block);

const struct block_geometry *block_geometry(const struct block *block);
const char *block_path(const struct block *block); /* as the user wrote it */

/* Queues a request; it may begin at once and begins at the latest with block_kick(). Any thread, under the device's
 * lock. Never blocks on I/O. */
void block_submit(struct block *block, struct block_request *request);
/* Starts what was queued: once after a batch. Any thread, under the device's lock. */
void block_kick(struct block *block);

/* block_submit(), but what takes no more than a copy to or from the host's page cache is done at once, on this thread, which
 * costs less than telling another. A small write may wait for the host (it makes a process wait that writes faster than its
 * disk): then those of the next moments take the other way. Without a lock; `done` may be called within. */
void block_run(struct block *block, struct block_request *request);

/* For a caller with a thread of its own, to spare its requests a wake-up each: from now on completions are told by adding
 * to this eventfd, and the caller takes them by block_poll(), until block_close(); it must go on with that during
 * block_drain() and block_cancel(). Some still end on the back end's own threads. False: there is nothing to tell, all of
 * them do. Before the first request. */
bool block_attend(struct block *block, int eventfd);
/* Calls `done` for what is complete. False: nothing was. On one thread, always the same; without a lock. Costs next to
 * nothing if nothing is complete. */
bool block_poll(struct block *block);
/* Is the host's disk at something that block_poll() will find, and no thread of this process? Any thread. */
bool block_awaits(struct block *block);

/* Returns when nothing is under way: every `done` has returned. For quiesce. Not from `done`, not under the
 * device's lock; nothing may be submitted meanwhile (but by `done`). */
void block_drain(struct block *block);
/* As block_drain(), but what has not begun ends with -ECANCELED. For reset and destroy. */
void block_cancel(struct block *block);

#endif
