/*
 * Opening a block back end and the life of its requests.
 */
#include "backend/block/block.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/block/internal.h"

static const char *const op_names[] = {"read", "write", "flush", "discard", "zeroes"};

/* OP:ERROR[:FIRST[:COUNT]] */
static int parse_fault(struct block_fault *fault, const char *text, struct error *err)
{
	static const struct {
		const char *name;
		int value;
	} errors[] = {{"EIO", EIO}, {"ENOSPC", ENOSPC}};
	char op[16], name[16];
	unsigned long long first = 1, count = UINT64_MAX;
	int used = 0;
	unsigned i, k;

	if (sscanf(text, "%15[a-z]:%15[A-Z]%n:%llu%n:%llu%n", op, name, &used, &first, &used,
		   &count, &used) < 2 ||
	    text[used] != '\0')
		goto bad;
	for (i = 0; i < 5 && strcmp(op, op_names[i]) != 0; i++)
		;
	for (k = 0; k < 2 && strcmp(name, errors[k].name) != 0; k++)
		;
	if (i == 5 || k == 2)
		goto bad;
	fault->set = true;
	fault->op = (enum block_op)i;
	fault->error = errors[k].value;
	fault->first = first;
	fault->count = count;
	return 0;
bad:
	return error_set(err, EINVAL,
			 "fault=%s: should be OP:ERROR[:FIRST[:COUNT]], OP one of read, write, "
			 "flush, discard, zeroes, ERROR one of EIO, ENOSPC",
			 text);
}

static bool fault_hits(struct block_fault *fault, enum block_op op)
{
	uint64_t n;

	if (!fault->set || fault->op != op)
		return false;
	n = atomic_fetch_add(&fault->seen, 1) + 1;
	return n >= fault->first && n - fault->first < fault->count;
}

static int read_flags(struct block *block, struct config *node, struct error *err)
{
	bool direct = false;
	int rc;

	rc = config_get_bool(node, "ro", false, &block->geometry.read_only, err);
	if (rc == 0)
		rc = config_get_bool(node, "nocache", false, &block->nocache, err);
	if (rc == 0)
		rc = config_get_bool(node, "sync", false, &block->sync, err);
	if (rc == 0)
		rc = config_get_bool(node, "direct", false, &direct, err);
	if (rc == 0)
		rc = config_get_bool(node, "nodelete", false, &block->nodelete, err);
	if (rc == 0)
		rc = config_get_bool(node, "snapshot", false, &block->snapshot, err);
	block->sync |= direct;
	return rc;
}

static int open_overlay(struct block *block, const char *test, struct error *err)
{
	bool is_volatile = test != NULL;

	if (test != NULL && strcmp(test, "volatile") != 0)
		return error_set(err, EINVAL, "test=%s: the only one is volatile", test);
	if (is_volatile && (block->snapshot || block->geometry.read_only || block->sync))
		return error_set(err, EINVAL, "test=volatile: not with snapshot, ro or sync");
	if (!is_volatile && !block->snapshot)
		return 0;
	return overlay_create(&block->overlay, block, is_volatile, err);
}

static int open_workers(struct block *block, const char *aio, struct error *err)
{
	bool only = strcmp(aio, "io_uring") == 0;
	int rc = 0;

	if (!only && strcmp(aio, "auto") != 0 && strcmp(aio, "threads") != 0)
		return error_set(err, EINVAL, "aio=%s: should be auto, io_uring or threads", aio);
	/* The overlay decides byte range by byte range where the data are: that is for the threads. */
	if (block->overlay == NULL && strcmp(aio, "threads") != 0)
		rc = uring_create(&block->uring, block, err);
	if (rc == 0 && only && block->uring == NULL)
		rc = error_set(err, ENOTSUP,
			       block->overlay
				       ? "aio=io_uring: not with snapshot or test"
				       : "aio=io_uring: this host's kernel refuses it "
					 "(kernel.io_uring_disabled, or a "
					 "container's seccomp filter); aio=threads needs nothing");
	return rc != 0 ? rc : pool_start(block, err);
}

int block_open(struct block **out, struct config *node, struct log *log, struct error *err)
{
	const char *path = config_get(node, "path"), *fault = config_get(node, "fault");
	struct block *block;
	int rc;

	if (path == NULL || path[0] == '\0')
		return error_set(err, EINVAL, "path is not set: which image?");
	block = calloc(1, sizeof(*block));
	if (block == NULL)
		return error_set(err, ENOMEM, "%s: out of memory", path);
	block->fd = -1;
	block->log = log;
	block->tail = &block->head;
	pthread_mutex_init(&block->lock, NULL);
	pthread_cond_init(&block->work, NULL);
	pthread_cond_init(&block->idle, NULL);
	if (strlen(path) >= sizeof(block->path))
		rc = error_set(err, ENAMETOOLONG, "path: longer than %zu bytes",
			       sizeof(block->path) - 1);
	else
		rc = read_flags(block, node, err);
	if (rc == 0 && fault != NULL)
		rc = parse_fault(&block->fault, fault, err);
	if (rc == 0) {
		strcpy(block->path, path);
		rc = file_open(block, config_get(node, "sectorsize"), err);
	}
	if (rc == 0)
		rc = open_overlay(block, config_get(node, "test"), err);
	if (rc == 0)
		rc = open_workers(block, config_get_default(node, "aio", "auto"), err);
	if (rc != 0) {
		block_close(block);
		return rc;
	}
	*out = block;
	return 0;
}

void block_close(struct block *block)
{
	if (block == NULL)
		return;
	block_drain(block);
	pool_stop(block);
	uring_destroy(block->uring);
	overlay_destroy(block->overlay);
	if (block->fd >= 0)
		close(block->fd);
	pthread_cond_destroy(&block->idle);
	pthread_cond_destroy(&block->work);
	pthread_mutex_destroy(&block->lock);
	free(block);
}

const struct block_geometry *block_geometry(const struct block *block)
{
	return &block->geometry;
}

const char *block_path(const struct block *block)
{
	return block->path;
}

/* What is wrong with a request, or what the options forbid. */
static int check(struct block *block, const struct block_request *request)
{
	const struct block_geometry *g = &block->geometry;
	uint64_t left = request->length;

	if (request->op == BLOCK_FLUSH)
		return block->flush_error;
	if (request->offset % g->logical || request->length % g->logical ||
	    request->offset > g->size || request->length > g->size - request->offset)
		return -EINVAL;
	if (request->op != BLOCK_READ && g->read_only)
		return -EROFS;
	if (request->op == BLOCK_DISCARD)
		return g->discard ? 0 : -EOPNOTSUPP;
	if (request->op == BLOCK_WRITE_ZEROES)
		return 0;
	for (unsigned i = 0; i < request->iovs; i++) {
		if (request->iov[i].iov_len > left)
			return -EINVAL;
		left -= request->iov[i].iov_len;
	}
	return left == 0 ? 0 : -EINVAL;
}

/* Counts it as under way. */
static void begin(struct block *block, struct block_request *request)
{
	request->next = NULL;
	request->progress = 0;
	request->error = check(block, request);
	if (request->error == 0 && fault_hits(&block->fault, request->op))
		request->error = -block->fault.error;
	pthread_mutex_lock(&block->lock);
	block->busy++;
	pthread_mutex_unlock(&block->lock);
}

static void hand_on(struct block *block, struct block_request *request)
{
	bool whole = request->op == BLOCK_FLUSH ||
		     (request->op <= BLOCK_WRITE && request->progress == 0 &&
		      request->iovs <= IOV_MAX && file_takes(block, request, 0));

	if (request->error == 0 && block->uring != NULL && whole)
		uring_submit(block->uring, request);
	else
		pool_queue(block, request);
}

void block_submit(struct block *block, struct block_request *request)
{
	begin(block, request);
	hand_on(block, request);
}

void block_run(struct block *block, struct block_request *request)
{
	begin(block, request);
	if (request->error == 0 && !block->overlay && file_run(block, request))
		block_complete(block, request, 0);
	else
		hand_on(block, request);
}

bool block_attend(struct block *block, int eventfd)
{
	return block->uring != NULL && uring_attend(block->uring, eventfd);
}

bool block_poll(struct block *block)
{
	return block->uring != NULL && uring_poll(block->uring);
}

bool block_awaits(struct block *block)
{
	return block->uring != NULL && uring_awaits(block->uring);
}

void block_kick(struct block *block)
{
	if (block->uring != NULL)
		uring_kick(block->uring);
}

void block_complete(struct block *block, struct block_request *request, int error)
{
	if (error == -EOPNOTSUPP && request->op == BLOCK_DISCARD)
		;
	else if (error != 0 && error != -ECANCELED)
		log_guest(block->log, LOG_WARN, "%s: %s of %llu bytes at %llu: %s", block->path,
			  op_names[request->op], (unsigned long long)request->length,
			  (unsigned long long)request->offset, strerror(-error));
	request->done(request, error);
	pthread_mutex_lock(&block->lock);
	if (--block->busy == 0)
		pthread_cond_broadcast(&block->idle);
	pthread_mutex_unlock(&block->lock);
}

void block_drain(struct block *block)
{
	block_kick(block);
	pthread_mutex_lock(&block->lock);
	while (block->busy != 0)
		pthread_cond_wait(&block->idle, &block->lock);
	pthread_mutex_unlock(&block->lock);
}

static void cancel_all(struct block *block, struct block_request *request)
{
	while (request != NULL) {
		struct block_request *next = request->next;

		block_complete(block, request, -ECANCELED);
		request = next;
	}
}

void block_cancel(struct block *block)
{
	struct block_request *request;

	pthread_mutex_lock(&block->lock);
	request = block->head;
	block->head = NULL;
	block->tail = &block->head;
	pthread_mutex_unlock(&block->lock);
	cancel_all(block, request);
	if (block->uring != NULL)
		cancel_all(block, uring_take_waiting(block->uring));
	block_drain(block);
}
