/*
 * The image: opening and locking it, and one request on it, synchronously.
 *
 * Lock: flock(2) on the image itself, since the kernel's list of locks (/proc/locks) names the process that holds one,
 * which it does not for open-file-description locks.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "backend/block/internal.h"

#define BOUNCE_SIZE (256u << 10)
#define LOCK_PATIENCE_MS 5000
/* file_run(): io_uring copies what it finds in the cache on this thread too, and larger reads are more likely to miss some. Writes
 * to one file take turns in the kernel, on whichever thread. */
#define RUN_READ_MAX (64u << 10)
#define RUN_WRITE_MAX (1u << 20)
#define RUN_PAGE 4096
#define RUN_SMALL (64u << 10)
#define RUN_PATIENCE_NS(large) ((large) ? 4000000u : 1000000u)
#define RUN_PAUSE_NS(took) ((took) < 10000000u ? 100000000u : 10 * (took))
#define SECTOR_MAX (64u << 10)

unsigned iov_slice(const struct block_request *request, uint64_t skip, uint64_t length,
		   struct iovec *out, unsigned max, uint64_t *got)
{
	unsigned n = 0;

	*got = 0;
	for (unsigned i = 0; i < request->iovs && n < max && *got < length; i++) {
		struct iovec part = request->iov[i];

		if (skip >= part.iov_len) {
			skip -= part.iov_len;
			continue;
		}
		part.iov_base = (char *)part.iov_base + skip;
		part.iov_len -= skip;
		skip = 0;
		if (part.iov_len > length - *got)
			part.iov_len = length - *got;
		*got += part.iov_len;
		out[n++] = part;
	}
	return n;
}

/* Copies between the request's memory and a buffer. */
static void copy(const struct block_request *request, uint64_t skip, uint8_t *bytes,
		 uint64_t length, bool to_buffer)
{
	struct iovec slice[SLICE_IOVS];
	uint64_t got;

	while (length > 0) {
		unsigned n = iov_slice(request, skip, length, slice, SLICE_IOVS, &got);

		for (unsigned i = 0; i < n; i++) {
			if (to_buffer)
				memcpy(bytes, slice[i].iov_base, slice[i].iov_len);
			else
				memcpy(slice[i].iov_base, bytes, slice[i].iov_len);
			bytes += slice[i].iov_len;
		}
		skip += got;
		length -= got;
	}
}

/* An image that was truncated behind our back reads short: that is an error, not zeroes. */
static int result(ssize_t n)
{
	return n < 0 ? -errno : n == 0 ? -EIO : 0;
}

bool file_takes(const struct block *block, const struct block_request *request, uint64_t skip)
{
	if (!block->nocache)
		return true;
	if (skip % block->alignment)
		return false;
	for (unsigned i = 0; i < request->iovs; i++) {
		if (((uintptr_t)request->iov[i].iov_base | request->iov[i].iov_len) %
		    block->alignment)
			return false;
	}
	return true;
}

/* For O_DIRECT, which wants memory that is aligned. */
static int transfer_bounced(const struct block_request *request, int fd, bool write, uint64_t skip,
			    uint64_t length, uint64_t offset, uint32_t alignment)
{
	uint64_t size = length < BOUNCE_SIZE ? length : BOUNCE_SIZE;
	uint8_t *bytes = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
	int rc = bytes == NULL ? -ENOMEM : 0;

	while (rc == 0 && length > 0) {
		uint64_t part = length < size ? length : size;
		ssize_t n;

		if (write)
			copy(request, skip, bytes, part, true);
		n = write ? pwrite(fd, bytes, part, (off_t)offset)
			  : pread(fd, bytes, part, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		rc = result(n);
		if (rc != 0)
			break;
		if (!write)
			copy(request, skip, bytes, (uint64_t)n, false);
		skip += (uint64_t)n;
		offset += (uint64_t)n;
		length -= (uint64_t)n;
	}
	free(bytes);
	return rc;
}

int file_transfer(struct block *block, int fd, const struct block_request *request, bool write,
		  uint64_t skip, uint64_t length, uint64_t offset)
{
	struct iovec slice[SLICE_IOVS];
	unsigned iovs;
	uint64_t got;
	ssize_t n;
	int rc;

	while (length > 0) {
		/* What is left after a short transfer need not be aligned. */
		if (fd == block->fd && !file_takes(block, request, skip))
			return transfer_bounced(request, fd, write, skip, length, offset,
						block->alignment);
		iovs = iov_slice(request, skip, length, slice, SLICE_IOVS, &got);

		n = write ? pwritev(fd, slice, (int)iovs, (off_t)offset)
			  : preadv(fd, slice, (int)iovs, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		rc = result(n);
		if (rc != 0)
			return rc;
		skip += (uint64_t)n;
		offset += (uint64_t)n;
		length -= (uint64_t)n;
	}
	return 0;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ext4 has no buffered write that would not wait. So it may wait, but not soon again. A part of a page might have to be
 * read first. */
static ssize_t write_now(struct block *block, const struct block_request *request)
{
	const off_t offset = (off_t)request->offset;
	const bool large = request->length > RUN_SMALL;
	uint64_t began = now_ns(), took;
	ssize_t n = -1;

	if (!block->no_nowait) {
		n = pwritev2(block->fd, request->iov, (int)request->iovs, offset, RWF_NOWAIT);
		block->no_nowait = n < 0 && errno == EOPNOTSUPP;
	}
	if (!block->no_nowait || (request->offset | request->length) % RUN_PAGE ||
	    began < block->run_after[large])
		return n;
	n = pwritev(block->fd, request->iov, (int)request->iovs, offset);
	took = now_ns() - began;
	if (took > RUN_PATIENCE_NS(large))
		block->run_after[large] = began + took + RUN_PAUSE_NS(took);
	return n;
}

bool file_run(struct block *block, struct block_request *request)
{
	ssize_t n = -1;

	if (block->nocache || request->iovs > IOV_MAX)
		return false;
	if (request->op == BLOCK_READ && request->length <= RUN_READ_MAX)
		n = preadv2(block->fd, request->iov, (int)request->iovs, (off_t)request->offset,
			    RWF_NOWAIT);
	else if (request->op == BLOCK_WRITE && request->length <= RUN_WRITE_MAX && !block->sync)
		n = write_now(block, request);
	if (n > 0 && request->op == BLOCK_WRITE)
		request->progress = (uint64_t)n;
	return n >= 0 && (uint64_t)n == request->length;
}

static int write_zeroes(struct block *block, int fd, uint64_t offset, uint64_t length)
{
	uint8_t *zeroes = aligned_alloc(SECTOR_MAX, BOUNCE_SIZE);
	int rc = zeroes == NULL ? -ENOMEM : 0;

	(void)block;
	if (zeroes != NULL)
		memset(zeroes, 0, BOUNCE_SIZE);
	while (rc == 0 && length > 0) {
		ssize_t n = pwrite(fd, zeroes, length < BOUNCE_SIZE ? length : BOUNCE_SIZE,
				   (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		rc = result(n);
		if (rc == 0) {
			offset += (uint64_t)n;
			length -= (uint64_t)n;
		}
	}
	free(zeroes);
	return rc;
}

int file_zero(struct block *block, int fd, uint64_t offset, uint64_t length, bool unmap)
{
	int mode = FALLOC_FL_KEEP_SIZE |
		   (unmap && !block->nodelete ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);

	if (length == 0)
		return 0;
	if (fallocate(fd, mode, (off_t)offset, (off_t)length) == 0)
		return 0;
	if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENODEV)
		return -errno;
	return write_zeroes(block, fd, offset, length);
}

static int discard(struct block *block, uint64_t offset, uint64_t length)
{
	uint64_t range[2] = {offset, length};
	int rc;

	if (length == 0)
		return 0;
	if (block->is_device)
		rc = ioctl(block->fd, BLKDISCARD, range);
	else
		rc = fallocate(block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
			       (off_t)length);
	return rc == 0 ? 0 : -errno;
}

int file_sync(struct block *block)
{
	int error = block->flush_error;

	if (error == 0 && fdatasync(block->fd) != 0) {
		error = -errno;
		block->flush_error = error;
	}
	return error;
}

/* With `sync` every change is to be on stable storage, and O_DSYNC says nothing about holes. */
static int after_change(struct block *block, int error)
{
	return error == 0 && block->sync ? file_sync(block) : error;
}

int file_execute(struct block *block, struct block_request *request)
{
	uint64_t skip = request->progress;

	switch (request->op) {
	case BLOCK_READ:
	case BLOCK_WRITE:
		return file_transfer(block, block->fd, request, request->op == BLOCK_WRITE, skip,
				     request->length - skip, request->offset + skip);
	case BLOCK_FLUSH:
		return file_sync(block);
	case BLOCK_DISCARD:
		return after_change(block, discard(block, request->offset, request->length));
	case BLOCK_WRITE_ZEROES:
		return after_change(block, file_zero(block, block->fd, request->offset,
						     request->length, request->unmap));
	}
	return -EINVAL;
}

/* "process 123 (skep: vm0)" of who holds a lock on the file, as far as the kernel tells. False: nobody that still
 * runs, and that can be seen from here. */
static bool find_holder(const struct stat *st, char *out, size_t size)
{
	FILE *locks = fopen("/proc/locks", "re");
	char line[256], title[128], path[64];
	unsigned major, minor;
	uint64_t inode;
	long pid = 0;
	size_t n;

	snprintf(out, size, "another process");
	while (locks != NULL && fgets(line, sizeof(line), locks) != NULL) {
		if (sscanf(line, "%*d: FLOCK %*s %*s %ld %x:%x:%" SCNu64, &pid, &major, &minor,
			   &inode) == 4 &&
		    pid > 0 && makedev(major, minor) == st->st_dev && inode == st->st_ino)
			break;
		pid = 0;
	}
	if (locks != NULL)
		fclose(locks);
	if (pid <= 0)
		return false;
	if (pid == getpid()) {
		snprintf(out, size, "another device of this VM");
		return true;
	}
	snprintf(path, sizeof(path), "/proc/%ld/cmdline", pid);
	locks = fopen(path, "re");
	n = locks != NULL ? fread(title, 1, sizeof(title) - 1, locks) : 0;
	if (locks != NULL)
		fclose(locks);
	title[n] = '\0'; /* the first argument, or the whole of a title that was set */
	if (n > 0)
		snprintf(out, size, "process %ld (%s)", pid, title);
	return n > 0;
}

/* The kernel lets go of what a killed process had in an io_uring some time after the process is gone, and of its lock
 * only then. */
static int lock_image(struct block *block, const struct stat *st, struct error *err)
{
	int how = block->geometry.read_only || block->snapshot ? LOCK_SH : LOCK_EX;
	char holder[192];

	for (unsigned i = 0; i < LOCK_PATIENCE_MS / 10; i++) {
		if (flock(block->fd, how | LOCK_NB) == 0)
			return 0;
		if (errno != EWOULDBLOCK)
			return error_set(err, errno, "%s: cannot be locked: %s", block->path,
					 strerror(errno));
		if (find_holder(st, holder, sizeof(holder)))
			break;
		usleep(10000);
	}
	return error_set(err, EBUSY, "%s: in use by %s", block->path, holder);
}

static int read_device(struct block *block, struct error *err)
{
	int logical = 0;
	unsigned physical = 0;
	uint64_t size = 0;

	if (ioctl(block->fd, BLKGETSIZE64, &size) != 0 ||
	    ioctl(block->fd, BLKSSZGET, &logical) != 0 ||
	    ioctl(block->fd, BLKPBSZGET, &physical) != 0)
		return error_set(err, errno, "%s: its size cannot be read: %s", block->path,
				 strerror(errno));
	block->is_device = true;
	block->geometry.size = size;
	block->geometry.logical = (uint32_t)logical;
	block->geometry.physical = physical;
	return 0;
}

static bool is_sector(unsigned long long n)
{
	return n >= 512 && n <= SECTOR_MAX && (n & (n - 1)) == 0;
}

/* L[/P] */
static int read_sectors(struct block *block, const char *text, struct error *err)
{
	struct block_geometry *g = &block->geometry;
	unsigned long long logical = 0, physical = 0;
	int used = 0, n = sscanf(text, "%llu%n/%llu%n", &logical, &used, &physical, &used);

	if (n == 1)
		physical = logical;
	if (n < 1 || text[used] != '\0' || !is_sector(logical) || !is_sector(physical) ||
	    logical > physical)
		return error_set(err, EINVAL,
				 "sectorsize=%s: should be LOGICAL[/PHYSICAL], powers of two from "
				 "512 to %u, the second not less than the first",
				 text, SECTOR_MAX);
	if (block->is_device && logical < g->logical)
		return error_set(err, EINVAL, "sectorsize=%s: the sectors of %s are %u bytes", text,
				 block->path, g->logical);
	g->logical = (uint32_t)logical;
	g->physical = (uint32_t)physical;
	return 0;
}

/* What O_DIRECT wants. */
static int read_alignment(struct block *block, struct error *err)
{
	uint32_t offset = block->is_device ? block->geometry.logical : 512;
	struct statx stx = {0};

	block->alignment = 4096;
#ifdef STATX_DIOALIGN
	if (statx(block->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
	    (stx.stx_mask & STATX_DIOALIGN)) {
		if (stx.stx_dio_offset_align == 0)
			return error_set(err, ENOTSUP,
					 "%s: nocache: its file system has no direct I/O",
					 block->path);
		offset = stx.stx_dio_offset_align;
		block->alignment = stx.stx_dio_mem_align > offset ? stx.stx_dio_mem_align : offset;
	}
#else
	(void)stx;
#endif
	if (offset > block->geometry.logical)
		return error_set(err, EINVAL, "%s: nocache: takes sectorsize=%u here", block->path,
				 offset);
	return 0;
}

/* Keeps errno. */
static bool may_read(const char *path)
{
	int error = errno;
	bool may = faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) == 0;

	errno = error;
	return may;
}

static int open_image(struct block *block, struct error *err)
{
	const struct block_geometry *g = &block->geometry;
	int flags = O_CLOEXEC | (g->read_only || block->snapshot ? O_RDONLY : O_RDWR) |
		    (block->nocache ? O_DIRECT : 0) | (block->sync ? O_DSYNC : 0);
	struct stat st;

	/* Before open(2), which would wait for the other end of a FIFO. */
	if (stat(block->path, &st) != 0)
		return error_set(err, errno, "%s: %s", block->path, strerror(errno));
	if (S_ISDIR(st.st_mode))
		return error_set(err, EISDIR,
				 "%s: is a directory; an image is a file or a block device",
				 block->path);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return error_set(err, EINVAL, "%s: is neither a file nor a block device",
				 block->path);
	/* The kernel's own users of a block device: file systems, swap, RAID. */
	if (S_ISBLK(st.st_mode) && !g->read_only && !block->snapshot)
		flags |= O_EXCL;
	block->fd = open(block->path, flags);
	if (block->fd >= 0)
		return 0;
	if (errno == EBUSY)
		return error_set(err, EBUSY, "%s: in use by this host (mounted?)", block->path);
	if ((errno == EACCES || errno == EROFS) && !g->read_only && may_read(block->path))
		return error_set(err, errno, "%s: %s; `ro` takes no right to write", block->path,
				 strerror(errno));
	if (errno == EINVAL && block->nocache)
		return error_set(err, EINVAL, "%s: nocache: its file system has no direct I/O",
				 block->path);
	return error_set(err, errno, "%s: %s", block->path, strerror(errno));
}

int file_open(struct block *block, const char *sectors, struct error *err)
{
	struct block_geometry *g = &block->geometry;
	struct stat st;
	int rc = open_image(block, err);

	if (rc == 0 && fstat(block->fd, &st) != 0)
		rc = error_set(err, errno, "%s: %s", block->path, strerror(errno));
	if (rc == 0)
		rc = lock_image(block, &st, err);
	if (rc != 0)
		return rc;
	if (S_ISBLK(st.st_mode)) {
		rc = read_device(block, err);
		if (rc != 0)
			return rc;
	} else {
		g->size = (uint64_t)st.st_size;
		g->logical = 512;
		g->physical = is_sector((unsigned long long)st.st_blksize) ? (uint32_t)st.st_blksize
									   : 512;
	}
	g->optimal = g->physical;
	if (sectors != NULL)
		rc = read_sectors(block, sectors, err);
	if (rc == 0 && block->nocache)
		rc = read_alignment(block, err);
	if (rc != 0)
		return rc;
	if (g->size == 0 || g->size % g->logical)
		return error_set(err, EINVAL,
				 "%s: %" PRIu64
				 " bytes are no disk: the size should be a multiple of "
				 "the sector size, %u",
				 block->path, g->size, g->logical);
	g->discard = !g->read_only && !block->nodelete;
	g->write_cache = !block->sync;
	return 0;
}
