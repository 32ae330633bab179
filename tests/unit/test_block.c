/*
 * Block back ends: every kind of request with each way of doing it, snapshots, locks, faults, refusals.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/block/block.h"

#define SIZE (4u << 20)

static struct log quiet = {.fd = -1, .lock = PTHREAD_MUTEX_INITIALIZER};

struct waiter {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned done;
	int error;
	pthread_t by; /* who called back */
};

static void done(struct block_request *request, int error)
{
	struct waiter *w = request->arg;

	pthread_mutex_lock(&w->lock);
	w->done++;
	w->error = error;
	w->by = pthread_self();
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

static int run(struct block *block, enum block_op op, uint64_t offset, const struct iovec *iov,
	       unsigned iovs, uint64_t length)
{
	struct waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	struct block_request request = {.op = op,
					.offset = offset,
					.length = length,
					.unmap = true,
					.iov = iov,
					.iovs = iovs,
					.done = done,
					.arg = &w};

	block_submit(block, &request);
	block_kick(block);
	pthread_mutex_lock(&w.lock);
	while (w.done == 0)
		pthread_cond_wait(&w.cond, &w.lock);
	pthread_mutex_unlock(&w.lock);
	block_drain(block);
	assert_int_equal(w.done, 1);
	return w.error;
}

static int io(struct block *block, enum block_op op, uint64_t offset, void *bytes, size_t length)
{
	struct iovec iov = {bytes, length};

	return run(block, op, offset, &iov, 1, length);
}

static void make_image(char *path, size_t size)
{
	int fd;

	strcpy(path, "/tmp/skep-test-block-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	close(fd);
}

/* `options` as after the comma of -s. */
static int try_open(struct block **out, const char *path, const char *options, struct error *err)
{
	struct config *node = config_create();
	int rc;

	assert_int_equal(config_set(node, "path", path, err), 0);
	assert_int_equal(config_set_list(node, options, NULL, err), 0);
	rc = block_open(out, node, &quiet, err);
	config_destroy(node);
	return rc;
}

static struct block *open_ok(const char *path, const char *options)
{
	struct block *block = NULL;
	struct error err = {""};

	if (try_open(&block, path, options, &err) != 0)
		fail_msg("%s", err.text);
	return block;
}

static void refuse(const char *path, const char *options, int error, const char *text)
{
	struct block *block = NULL;
	struct error err = {""};

	assert_int_equal(try_open(&block, path, options, &err), -error);
	if (strstr(err.text, text) == NULL)
		fail_msg("'%s' lacks '%s'", err.text, text);
}

static void fill(uint8_t *bytes, size_t length, unsigned seed)
{
	for (size_t i = 0; i < length; i++)
		bytes[i] = (uint8_t)(seed + i * 31 + i / 251);
}

/* Vectors of odd sizes and alignment, more of them than one system call takes. */
static void check_vectors(struct block *block)
{
	enum { N = 1500, LENGTH = 512 * 100 };
	static uint8_t from[LENGTH + 1], to[LENGTH + 1];
	struct iovec iov[N];
	size_t at = 0;

	fill(from, sizeof(from), 7);
	for (unsigned i = 0; i < N; i++) {
		size_t part = i == N - 1 ? LENGTH - at : i % 50;

		iov[i] = (struct iovec){from + 1 + at, part};
		at += part;
	}
	assert_int_equal(run(block, BLOCK_WRITE, 512 * 3, iov, N, LENGTH), 0);
	for (unsigned i = 0; i < N; i++)
		iov[i].iov_base = to + 1 + ((uint8_t *)iov[i].iov_base - (from + 1));
	assert_int_equal(run(block, BLOCK_READ, 512 * 3, iov, N, LENGTH), 0);
	assert_memory_equal(from + 1, to + 1, LENGTH);
}

/* Whole pages, as drivers give them, the last one first; more than a slice of them. */
static void check_pages(struct block *block)
{
	enum { N = 600, PAGE = 4096 };
	_Alignas(PAGE) static uint8_t from[N * PAGE], to[N * PAGE];
	struct iovec iov[N];

	fill(from, sizeof(from), 11);
	for (unsigned i = 0; i < N; i++)
		iov[i] = (struct iovec){from + (N - 1 - i) * PAGE, PAGE};
	assert_int_equal(run(block, BLOCK_WRITE, 512 * 8, iov, N, sizeof(from)), 0);
	for (unsigned i = 0; i < N; i++)
		iov[i].iov_base = to + (N - 1 - i) * PAGE;
	assert_int_equal(run(block, BLOCK_READ, 512 * 8, iov, N, sizeof(to)), 0);
	assert_memory_equal(from, to, sizeof(from));
}

static void check_range(struct block *block)
{
	static uint8_t bytes[4096];

	assert_int_equal(io(block, BLOCK_READ, SIZE - 512, bytes, 512), 0);
	assert_int_equal(io(block, BLOCK_READ, SIZE - 512, bytes, 1024), -EINVAL);
	assert_int_equal(io(block, BLOCK_READ, SIZE, bytes, 512), -EINVAL);
	assert_int_equal(io(block, BLOCK_WRITE, 1, bytes, 512), -EINVAL);
	assert_int_equal(io(block, BLOCK_WRITE, 0, bytes, 511), -EINVAL);
	assert_int_equal(io(block, BLOCK_WRITE, UINT64_MAX - 511, bytes, 1024), -EINVAL);
	assert_int_equal(run(block, BLOCK_DISCARD, 512, NULL, 0, UINT64_MAX - 511), -EINVAL);
	/* memory and length that do not agree */
	assert_int_equal(run(block, BLOCK_READ, 0, &(struct iovec){bytes, 512}, 1, 1024), -EINVAL);
	assert_int_equal(run(block, BLOCK_READ, 0, &(struct iovec){bytes, 1024}, 1, 512), -EINVAL);
}

static void check_zeroes(struct block *block)
{
	static uint8_t from[64 << 10], to[64 << 10];
	static const uint8_t zero[64 << 10];

	fill(from, sizeof(from), 1);
	assert_int_equal(io(block, BLOCK_WRITE, 0, from, sizeof(from)), 0);
	assert_int_equal(run(block, BLOCK_WRITE_ZEROES, 512, NULL, 0, 1024), 0);
	assert_int_equal(run(block, BLOCK_DISCARD, 8192, NULL, 0, 8192), 0);
	assert_int_equal(run(block, BLOCK_FLUSH, 0, NULL, 0, 0), 0);
	assert_int_equal(io(block, BLOCK_READ, 0, to, sizeof(to)), 0);
	assert_memory_equal(to, from, 512);
	assert_memory_equal(to + 512, zero, 1024);
	assert_memory_equal(to + 1536, from + 1536, 8192 - 1536);
	assert_memory_equal(to + 8192, zero, 8192);
	assert_memory_equal(to + 16384, from + 16384, sizeof(to) - 16384);
}

/* Many at once, each sector by a request of its own. */
static void check_many(struct block *block)
{
	enum { N = 1000 };
	static uint8_t bytes[N][512], back[N][512];
	static struct block_request request[N];
	static struct iovec iov[N];
	struct waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

	for (unsigned pass = 0; pass < 2; pass++) {
		w.done = 0;
		for (unsigned i = 0; i < N; i++) {
			fill(bytes[i], 512, i);
			iov[i] = (struct iovec){pass ? back[i] : bytes[i], 512};
			request[i] = (struct block_request){
				.op = pass ? BLOCK_READ : BLOCK_WRITE,
				.offset = 512ull * (i * 7 % N),
				.length = 512,
				.iov = &iov[i],
				.iovs = 1,
				.done = done,
				.arg = &w,
			};
			block_submit(block, &request[i]);
		}
		block_drain(block);
		assert_int_equal(w.done, N);
		assert_int_equal(w.error, 0);
	}
	assert_memory_equal(bytes, back, sizeof(bytes));
}

/* More at once than the kernel is given at a time, some of them by themselves, all end. */
static void test_large(void **state)
{
	enum { N = 40, LARGE = 40 << 20 };
	static struct block_request request[N];
	struct waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	uint8_t *bytes = malloc(LARGE);
	struct iovec iov[2] = {{bytes, LARGE}, {bytes, LARGE / 10}};
	struct block *block;
	char path[64];

	(void)state;
	assert_non_null(bytes);
	make_image(path, LARGE);
	block = open_ok(path, "aio=auto");
	for (unsigned i = 0; i < N; i++) {
		bool small = i % 8 != 1;

		request[i] = (struct block_request){
			.op = BLOCK_READ,
			.length = iov[small].iov_len,
			.iov = &iov[small],
			.iovs = 1,
			.done = done,
			.arg = &w,
		};
		block_submit(block, &request[i]);
	}
	block_drain(block);
	assert_int_equal(w.done, N);
	assert_int_equal(w.error, 0);
	block_close(block);
	unlink(path);
	free(bytes);
}

static void test_requests(void **state)
{
	static const char *const ways[] = {"aio=threads",   "aio=auto", "snapshot=on",
					   "test=volatile", "sync",	"nodelete"};
	char path[64];

	(void)state;
	for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		struct block *block;

		make_image(path, SIZE);
		block = open_ok(path, ways[i]);
		assert_int_equal(block_geometry(block)->size, SIZE);
		check_vectors(block);
		check_range(block);
		check_many(block);
		if (strcmp(ways[i], "nodelete") == 0)
			assert_int_equal(run(block, BLOCK_DISCARD, 0, NULL, 0, 512), -EOPNOTSUPP);
		else
			check_zeroes(block);
		block_close(block);
		unlink(path);
	}
}

static bool uring_is_refused;

int __real_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
	return uring_is_refused ? -EPERM : __real_io_uring_queue_init(entries, ring, flags);
}

/* As in a container: threads do it, unless the user insists. */
static void test_without_io_uring(void **state)
{
	struct block *block;
	char path[64];

	(void)state;
	make_image(path, SIZE);
	uring_is_refused = true;
	refuse(path, "aio=io_uring", ENOTSUP, "aio=threads needs nothing");
	block = open_ok(path, "aio=auto");
	uring_is_refused = false;
	check_vectors(block);
	check_pages(block);
	check_many(block);
	assert_int_equal(run(block, BLOCK_FLUSH, 0, NULL, 0, 0), 0);
	block_close(block);
	unlink(path);
}

/* Direct I/O with memory of any alignment; tmpfs of old kernels has none. */
static void test_nocache(void **state)
{
	struct block *block = NULL;
	struct error err = {""};
	char path[64];

	(void)state;
	make_image(path, SIZE);
	for (unsigned i = 0; i < 2; i++) {
		if (try_open(&block, path, i ? "nocache,aio=threads" : "nocache", &err) != 0) {
			unlink(path);
			assert_non_null(strstr(err.text, "nocache"));
			skip();
		}
		check_vectors(block);
		check_pages(block);
		check_zeroes(block);
		check_many(block);
		block_close(block);
	}
	unlink(path);
}

static void test_snapshot(void **state)
{
	uint8_t bytes[4096], back[4096];
	char path[64];
	struct block *block;

	(void)state;
	make_image(path, SIZE);
	fill(bytes, sizeof(bytes), 3);
	block = open_ok(path, "aio=threads");
	assert_int_equal(io(block, BLOCK_WRITE, 0, bytes, 4096), 0);
	block_close(block);
	block = open_ok(path, "snapshot=on");
	memset(back, 0xee, sizeof(back));
	assert_int_equal(io(block, BLOCK_WRITE, 1024, back, 512), 0);
	assert_int_equal(run(block, BLOCK_FLUSH, 0, NULL, 0, 0), 0);
	assert_int_equal(io(block, BLOCK_READ, 0, back, 4096), 0);
	assert_memory_equal(back, bytes, 1024);
	assert_int_equal(back[1024], 0xee);
	assert_int_equal(back[1535], 0xee);
	assert_memory_equal(back + 1536, bytes + 1536, 4096 - 1536);
	block_close(block);
	block = open_ok(path, "ro");
	assert_int_equal(io(block, BLOCK_READ, 0, back, 4096), 0);
	assert_memory_equal(back, bytes, 4096);
	assert_int_equal(io(block, BLOCK_WRITE, 0, back, 512), -EROFS);
	block_close(block);
	unlink(path);
}

/* Unflushed writes of test=volatile are not in the file, flushed ones are. */
static void test_volatile(void **state)
{
	uint8_t bytes[512], back[512];
	char path[64];
	struct block *block;
	int fd;

	(void)state;
	make_image(path, SIZE);
	fd = open(path, O_RDONLY);
	fill(bytes, 512, 9);
	block = open_ok(path, "test=volatile");
	assert_int_equal(io(block, BLOCK_WRITE, 512, bytes, 512), 0);
	assert_int_equal(pread(fd, back, 512, 512), 512);
	assert_memory_not_equal(back, bytes, 512);
	assert_int_equal(run(block, BLOCK_FLUSH, 0, NULL, 0, 0), 0);
	assert_int_equal(pread(fd, back, 512, 512), 512);
	assert_memory_equal(back, bytes, 512);
	block_close(block);
	close(fd);
	unlink(path);
}

static void test_locks(void **state)
{
	char path[64];
	struct block *a, *b;

	(void)state;
	make_image(path, SIZE);
	a = open_ok(path, "aio=threads");
	refuse(path, "aio=threads", EBUSY, "another device of this VM");
	refuse(path, "ro", EBUSY, "another device of this VM");
	refuse(path, "snapshot=on", EBUSY, "in use by");
	block_close(a);
	a = open_ok(path, "ro");
	b = open_ok(path, "snapshot=on");
	refuse(path, "aio=threads", EBUSY, "in use by");
	block_close(a);
	block_close(b);
	block_close(open_ok(path, "aio=threads"));
	unlink(path);
}

/* A process that is killed with requests under way: its image can be opened at once. */
static void test_killed(void **state)
{
	char path[64];

	(void)state;
	make_image(path, SIZE);
	for (unsigned round = 0; round < 10; round++) {
		pid_t child = fork();

		if (child == 0) {
			static struct block_request request[200];
			static uint8_t bytes[16384];
			static struct waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER,
						  .cond = PTHREAD_COND_INITIALIZER};
			struct iovec iov = {bytes, sizeof(bytes)};
			struct block *block = open_ok(path, "sync");

			for (unsigned i = 0; i < 200; i++) {
				request[i] = (struct block_request){.op = BLOCK_WRITE,
								    .offset = i * sizeof(bytes),
								    .length = sizeof(bytes),
								    .iov = &iov,
								    .iovs = 1,
								    .done = done,
								    .arg = &w};
				block_submit(block, &request[i]);
			}
			block_kick(block);
			raise(SIGKILL);
		}
		assert_int_equal(waitpid(child, NULL, 0), child);
		block_close(open_ok(path, "aio=auto"));
	}
	unlink(path);
}

static void test_faults(void **state)
{
	uint8_t bytes[512] = {0};
	char path[64];
	struct block *block;

	(void)state;
	make_image(path, SIZE);
	block = open_ok(path, "fault=write:ENOSPC:2:1");
	assert_int_equal(io(block, BLOCK_WRITE, 0, bytes, 512), 0);
	assert_int_equal(io(block, BLOCK_WRITE, 0, bytes, 512), -ENOSPC);
	assert_int_equal(io(block, BLOCK_WRITE, 0, bytes, 512), 0);
	assert_int_equal(io(block, BLOCK_READ, 0, bytes, 512), 0);
	block_close(block);
	/* An image that another process cuts off. */
	for (unsigned i = 0; i < 2; i++) {
		block = open_ok(path, i ? "aio=threads" : "aio=auto");
		assert_int_equal(truncate(path, 1024), 0);
		assert_int_equal(io(block, BLOCK_READ, 512, bytes, 512), 0);
		assert_int_equal(io(block, BLOCK_READ, 1024, bytes, 512), -EIO);
		block_close(block);
		assert_int_equal(truncate(path, SIZE), 0);
	}
	unlink(path);
}

/* --- a flush and its fdatasync ---------------------------------------------------------------------- */

/* The linker's --wrap. fdatasync(2) and io_uring's waits while `held`, and is counted. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool held;
	int error;
	unsigned syncs;
} sync_gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static int gate_pass(void)
{
	int error;

	pthread_mutex_lock(&sync_gate.lock);
	sync_gate.syncs++;
	pthread_cond_broadcast(&sync_gate.changed);
	while (sync_gate.held)
		pthread_cond_wait(&sync_gate.changed, &sync_gate.lock);
	error = sync_gate.error;
	pthread_mutex_unlock(&sync_gate.lock);
	return error;
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
	int error = gate_pass();

	if (error) {
		errno = error;
		return -1;
	}
	return __real_fdatasync(fd);
}

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring)
{
	for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail; i++) {
		struct io_uring_sqe *sqe = &ring->sq.sqes[i & ring->sq.ring_mask];

		if (sqe->opcode != IORING_OP_FSYNC || !(sqe->fsync_flags & IORING_FSYNC_DATASYNC))
			continue;
		if (gate_pass())
			sqe->fd = -1; /* then it fails */
	}
	return __real_io_uring_submit(ring);
}

static void *flush_in_thread(void *arg)
{
	return (void *)(intptr_t)run(arg, BLOCK_FLUSH, 0, NULL, 0, 0);
}

/* A flush is complete when the fdatasync that began after it is, and never without one; when that fails, so does the
 * flush, and every later one. */
static void test_flush_is_fdatasync(void **state)
{
	static const char *const ways[] = {"aio=threads", "aio=io_uring"};
	struct block *block;
	struct error err = {""};
	char path[64];

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		static uint8_t bytes[512];
		pthread_t thread;
		void *result = (void *)1;
		struct timespec soon;

		make_image(path, SIZE);
		if (try_open(&block, path, ways[i], &err) != 0) {
			assert_int_equal(i, 1); /* a kernel without io_uring */
			unlink(path);
			break;
		}
		sync_gate.syncs = 0;
		sync_gate.held = true;
		assert_int_equal(io(block, BLOCK_WRITE, 0, bytes, 512), 0);
		assert_int_equal(sync_gate.syncs, 0);
		pthread_create(&thread, NULL, flush_in_thread, block);
		pthread_mutex_lock(&sync_gate.lock);
		while (sync_gate.syncs == 0)
			pthread_cond_wait(&sync_gate.changed, &sync_gate.lock);
		pthread_mutex_unlock(&sync_gate.lock);
		/* It has begun, and as long as it is not done nor is the flush. */
		clock_gettime(CLOCK_REALTIME, &soon);
		soon.tv_sec += soon.tv_nsec >= 900000000;
		soon.tv_nsec = (soon.tv_nsec + 100000000) % 1000000000;
		assert_int_equal(pthread_timedjoin_np(thread, &result, &soon), ETIMEDOUT);
		pthread_mutex_lock(&sync_gate.lock);
		sync_gate.held = false;
		pthread_cond_broadcast(&sync_gate.changed);
		pthread_mutex_unlock(&sync_gate.lock);
		pthread_join(thread, &result);
		assert_int_equal((intptr_t)result, 0);
		assert_int_equal(sync_gate.syncs, 1);
		sync_gate.error = EIO;
		assert_int_not_equal(run(block, BLOCK_FLUSH, 0, NULL, 0, 0), 0);
		sync_gate.error = 0;
		assert_int_not_equal(run(block, BLOCK_FLUSH, 0, NULL, 0, 0), 0);
		block_close(block);
		unlink(path);
	}
}

static unsigned cancelled;

/* Lets those go on that the gate holds. */
static void done_or_cancelled(struct block_request *request, int error)
{
	(void)request;
	pthread_mutex_lock(&sync_gate.lock);
	cancelled += error == -ECANCELED;
	if (cancelled)
		sync_gate.held = false;
	pthread_cond_broadcast(&sync_gate.changed);
	pthread_mutex_unlock(&sync_gate.lock);
}

/* What has not begun when a guest resets its disk is not done: no wait for a thousand requests. */
static void test_cancel(void **state)
{
	enum { N = 1000, THREADS = 4 };
	static const char *const ways[] = {"aio=threads", "aio=auto"};
	static struct block_request request[N];
	char path[64];

	(void)state;
	for (unsigned w = 0; w < 2; w++) {
		struct block *block;

		make_image(path, SIZE);
		block = open_ok(path, ways[w]);
		cancelled = 0;
		sync_gate.held = true;
		for (unsigned i = 0; i < N; i++) {
			request[i] = (struct block_request){.op = BLOCK_FLUSH,
							    .done = done_or_cancelled};
			block_submit(block, &request[i]);
		}
		block_cancel(block);
		assert_in_range(cancelled, N - THREADS, N);
		block_close(block);
		unlink(path);
	}
}

static void test_refusals(void **state)
{
	char path[64];

	(void)state;
	make_image(path, 1000);
	refuse(path, "aio=auto", EINVAL, "multiple of the sector size, 512");
	refuse(path, "sectorsize=513", EINVAL, "LOGICAL[/PHYSICAL]");
	refuse(path, "sectorsize=4096/512", EINVAL, "LOGICAL[/PHYSICAL]");
	refuse(path, "sectorsize=512x", EINVAL, "LOGICAL[/PHYSICAL]");
	refuse(path, "fault=write", EINVAL, "OP:ERROR");
	refuse(path, "ro=maybe", EINVAL, "ro");
	assert_int_equal(truncate(path, 0), 0);
	refuse(path, "aio=auto", EINVAL, "0 bytes");
	assert_int_equal(truncate(path, 8192), 0);
	refuse(path, "aio=some", EINVAL, "aio=some");
	unlink(path);
	refuse(path, "aio=auto", ENOENT, "No such file");
	refuse("/tmp", "aio=auto", EISDIR, "directory");
	refuse("/dev/null", "aio=auto", EINVAL, "neither");
	assert_int_equal(mkfifo(path, 0600), 0);
	refuse(path, "aio=auto", EINVAL, "neither");
	unlink(path);
}

static void test_sectors(void **state)
{
	char path[64];
	struct block *block;

	(void)state;
	make_image(path, SIZE);
	block = open_ok(path, "sectorsize=4096");
	assert_int_equal(block_geometry(block)->logical, 4096);
	assert_int_equal(block_geometry(block)->physical, 4096);
	assert_int_equal(run(block, BLOCK_WRITE_ZEROES, 512, NULL, 0, 4096), -EINVAL);
	block_close(block);
	block = open_ok(path, "sectorsize=512/4096");
	assert_int_equal(block_geometry(block)->logical, 512);
	assert_int_equal(block_geometry(block)->physical, 4096);
	block_close(block);
	unlink(path);
}

/* --- requests at once, and completions that the caller takes ----------------------------------------- */

static int run_at_once(struct block *block, enum block_op op, uint64_t offset, void *bytes,
		       size_t length, bool *at_once)
{
	struct waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	struct iovec iov = {bytes, length};
	struct block_request request = {.op = op,
					.offset = offset,
					.length = length,
					.iov = &iov,
					.iovs = op == BLOCK_FLUSH ? 0 : 1,
					.done = done,
					.arg = &w};

	block_run(block, &request);
	block_drain(block);
	assert_int_equal(w.done, 1);
	*at_once = pthread_equal(w.by, pthread_self());
	return w.error;
}

/* Whatever way it goes, the result is the same. */
static void test_run(void **state)
{
	static const char *const ways[] = {"aio=threads",   "aio=auto", "snapshot=on",
					   "test=volatile", "sync",	"fault=write:EIO:3:1"};
	static uint8_t from[8192], to[8192];
	char path[64];

	(void)state;
	fill(from, sizeof(from), 11);
	for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		bool cached = i < 2 || i == 5, at_once;
		struct block *block;

		make_image(path, SIZE);
		block = open_ok(path, ways[i]);
		assert_int_equal(run_at_once(block, BLOCK_WRITE, 4096, from, 8192, &at_once), 0);
		if (!cached)
			assert_false(at_once);
		assert_int_equal(run_at_once(block, BLOCK_WRITE, 512, from + 512, 512, &at_once),
				 0);
		assert_int_equal(run_at_once(block, BLOCK_FLUSH, 0, NULL, 0, &at_once), 0);
		assert_false(at_once);
		assert_int_equal(run_at_once(block, BLOCK_READ, 4096, to, 8192, &at_once), 0);
		assert_memory_equal(from, to, sizeof(to));
		assert_int_equal(run_at_once(block, BLOCK_READ, 512, to, 512, &at_once), 0);
		assert_memory_equal(from + 512, to, 512);
		assert_int_equal(run_at_once(block, BLOCK_WRITE, SIZE, from, 4096, &at_once),
				 -EINVAL);
		assert_int_equal(run_at_once(block, BLOCK_WRITE, 0, from, 4096, &at_once),
				 i == 5 ? -EIO : 0);
		block_close(block);
		unlink(path);
	}
}

/* `done` comes out of block_poll(), and the eventfd says when. */
static void test_attend(void **state)
{
	static uint8_t from[1 << 20], to[1 << 20];
	struct waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	struct iovec iov[2] = {{from, sizeof(from)}, {to, sizeof(to)}};
	struct block_request request = {.length = sizeof(from), .iovs = 1, .done = done, .arg = &w};
	int fd = eventfd(0, EFD_CLOEXEC);
	struct block *block;
	uint64_t count;
	char path[64];

	(void)state;
	make_image(path, SIZE);
	block = open_ok(path, "aio=threads");
	assert_false(block_attend(block, fd));
	assert_false(block_poll(block));
	block_close(block);
	block = open_ok(path, "aio=auto");
	if (!block_attend(block, fd)) {
		block_close(block);
		unlink(path);
		close(fd);
		skip();
	}
	fill(from, sizeof(from), 5);
	for (unsigned i = 0; i < 3; i++) {
		static const enum block_op ops[] = {BLOCK_WRITE, BLOCK_FLUSH, BLOCK_READ};

		request.op = ops[i];
		request.length = i == 1 ? 0 : sizeof(from);
		request.iovs = i == 1 ? 0 : 1;
		request.iov = &iov[i == 2];
		block_run(block, &request);
		block_kick(block);
		while (w.done == i) {
			assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
			block_poll(block);
		}
		assert_int_equal(w.error, 0);
	}
	assert_memory_equal(from, to, sizeof(to));
	assert_false(block_poll(block));
	block_close(block);
	unlink(path);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_requests),
		cmocka_unit_test(test_large),
		cmocka_unit_test(test_without_io_uring),
		cmocka_unit_test(test_nocache),
		cmocka_unit_test(test_snapshot),
		cmocka_unit_test(test_volatile),
		cmocka_unit_test(test_locks),
		cmocka_unit_test(test_killed),
		cmocka_unit_test(test_faults),
		cmocka_unit_test(test_flush_is_fdatasync),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_sectors),
		cmocka_unit_test(test_run),
		cmocka_unit_test(test_attend),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
