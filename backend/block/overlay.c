/*
 * A store for what was written: an unlinked file as large as the image (`snapshot`), or memory (`test=volatile`), and one
 * bit for each sector that is there and not in the image. A bit is set after its data were written. Bits are never
 * cleared but by a flush of test=volatile, which moves everything to the image.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/block/internal.h"

struct overlay {
	struct block *block;
	int fd;
	bool is_volatile;
	uint64_t sectors;
	_Atomic uint64_t *bits; /* mapped; pages appear as they are used */
	size_t bits_size;
	pthread_rwlock_t lock; /* requests read, the flush of a volatile store writes */
};

static bool is_set(const struct overlay *o, uint64_t sector)
{
	return o->bits[sector / 64] >> sector % 64 & 1;
}

/* How many sectors from `sector` to before `end` are in the same place as it. */
static uint64_t run_length(const struct overlay *o, uint64_t sector, uint64_t end)
{
	bool here = is_set(o, sector);
	uint64_t n = sector + 1;

	while (n < end) {
		if (n % 64 == 0 && end - n >= 64 && o->bits[n / 64] == (here ? UINT64_MAX : 0))
			n += 64;
		else if (is_set(o, n) == here)
			n++;
		else
			break;
	}
	return n - sector;
}

static void set_bits(struct overlay *o, uint64_t sector, uint64_t count)
{
	for (; count > 0; sector++, count--)
		atomic_fetch_or(&o->bits[sector / 64], 1ull << sector % 64);
}

static int overlay_read(struct overlay *o, const struct block_request *request)
{
	struct block *block = o->block;
	uint64_t unit = block->geometry.logical, done = 0;
	uint64_t end = (request->offset + request->length) / unit;
	int rc = 0;

	while (rc == 0 && done < request->length) {
		uint64_t sector = (request->offset + done) / unit;
		uint64_t bytes = run_length(o, sector, end) * unit;

		rc = file_transfer(block, is_set(o, sector) ? o->fd : block->fd, request, false,
				   done, bytes, sector * unit);
		done += bytes;
	}
	return rc;
}

static int commit_run(struct overlay *o, uint64_t offset, uint64_t length, uint8_t *bytes,
		      size_t size)
{
	while (length > 0) {
		size_t part = length < size ? length : size;

		if (pread(o->fd, bytes, part, (off_t)offset) != (ssize_t)part ||
		    pwrite(o->block->fd, bytes, part, (off_t)offset) != (ssize_t)part)
			return -EIO;
		offset += part;
		length -= part;
	}
	return 0;
}

/* Everything to the image, then fdatasync. */
static int commit(struct overlay *o)
{
	uint64_t unit = o->block->geometry.logical, sector = 0;
	size_t size = 1u << 20;
	uint8_t *bytes = aligned_alloc(65536, size);
	int rc = bytes == NULL ? -ENOMEM : 0;

	while (rc == 0 && sector < o->sectors) {
		uint64_t n = run_length(o, sector, o->sectors);

		if (is_set(o, sector))
			rc = commit_run(o, sector * unit, n * unit, bytes, size);
		sector += n;
	}
	free(bytes);
	if (rc == 0)
		rc = file_sync(o->block);
	if (rc == 0)
		memset((void *)o->bits, 0, o->bits_size);
	return rc;
}

static int flush(struct overlay *o)
{
	int rc;

	if (!o->is_volatile)
		return 0; /* it is gone at exit in any case */
	pthread_rwlock_wrlock(&o->lock);
	rc = commit(o);
	pthread_rwlock_unlock(&o->lock);
	return rc;
}

int overlay_execute(struct overlay *o, struct block_request *request)
{
	uint64_t unit = o->block->geometry.logical;
	int rc = 0;

	if (request->op == BLOCK_FLUSH)
		return flush(o);
	pthread_rwlock_rdlock(&o->lock);
	switch (request->op) {
	case BLOCK_READ:
		rc = overlay_read(o, request);
		break;
	case BLOCK_WRITE:
		rc = file_transfer(o->block, o->fd, request, true, 0, request->length,
				   request->offset);
		break;
	default: /* a discard too: what it leaves is up to us */
		rc = file_zero(o->block, o->fd, request->offset, request->length, true);
		break;
	}
	if (rc == 0 && request->op != BLOCK_READ)
		set_bits(o, request->offset / unit, request->length / unit);
	pthread_rwlock_unlock(&o->lock);
	return rc;
}

static int open_store(struct overlay *o, struct error *err)
{
	const char *directory = getenv("TMPDIR");

	if (directory == NULL || directory[0] == '\0')
		directory = "/var/tmp";
	o->fd = o->is_volatile ? memfd_create("skep-volatile", MFD_CLOEXEC)
			       : open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (o->fd < 0)
		return error_set(err, errno, "snapshot: no temporary file in %s (TMPDIR): %s",
				 directory, strerror(errno));
	if (ftruncate(o->fd, (off_t)o->block->geometry.size) != 0)
		return error_set(err, errno, "snapshot: a temporary file in %s (TMPDIR): %s",
				 directory, strerror(errno));
	return 0;
}

int overlay_create(struct overlay **out, struct block *block, bool is_volatile, struct error *err)
{
	struct overlay *o = calloc(1, sizeof(*o));
	int rc;

	if (o == NULL)
		return error_set(err, ENOMEM, "snapshot: out of memory");
	o->block = block;
	o->is_volatile = is_volatile;
	o->sectors = block->geometry.size / block->geometry.logical;
	o->bits_size = (o->sectors + 63) / 64 * 8;
	o->bits = mmap(NULL, o->bits_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	pthread_rwlock_init(&o->lock, NULL);
	if (o->bits == MAP_FAILED) {
		o->bits = NULL;
		o->fd = -1;
		rc = error_set(err, ENOMEM, "snapshot: out of memory");
	} else {
		rc = open_store(o, err);
	}
	if (rc != 0) {
		overlay_destroy(o);
		return rc;
	}
	*out = o;
	return 0;
}

void overlay_destroy(struct overlay *o)
{
	if (o == NULL)
		return;
	if (o->bits != NULL)
		munmap((void *)o->bits, o->bits_size);
	if (o->fd >= 0)
		close(o->fd);
	pthread_rwlock_destroy(&o->lock);
	free(o);
}
