/*
 * Worker threads: each takes a request and does it synchronously.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backend/block/internal.h"

void pool_queue(struct block *block, struct block_request *request)
{
	pthread_mutex_lock(&block->lock);
	request->next = NULL;
	*block->tail = request;
	block->tail = &request->next;
	pthread_cond_signal(&block->work);
	pthread_mutex_unlock(&block->lock);
}

/* NULL: the end. */
static struct block_request *next_request(struct block *block)
{
	struct block_request *request;

	pthread_mutex_lock(&block->lock);
	while (block->head == NULL && !block->stop)
		pthread_cond_wait(&block->work, &block->lock);
	request = block->head;
	if (request != NULL) {
		block->head = request->next;
		if (block->head == NULL)
			block->tail = &block->head;
	}
	pthread_mutex_unlock(&block->lock);
	return request;
}

static void *worker(void *arg)
{
	struct block *block = arg;
	struct block_request *request;

	while ((request = next_request(block)) != NULL) {
		int error = request->error;

		if (error == 0)
			error = block->overlay ? overlay_execute(block->overlay, request)
					       : file_execute(block, request);
		block_complete(block, request, error);
	}
	return NULL;
}

int pool_start(struct block *block, struct error *err)
{
	for (unsigned i = 0; i < POOL_THREADS; i++) {
		int rc = pthread_create(&block->thread[i], NULL, worker, block);

		if (rc != 0)
			return error_set(err, rc, "%s: no thread: %s", block->path, strerror(rc));
		pthread_setname_np(block->thread[i], "block");
		block->threads++;
	}
	return 0;
}

void pool_stop(struct block *block)
{
	pthread_mutex_lock(&block->lock);
	block->stop = true;
	pthread_cond_broadcast(&block->work);
	pthread_mutex_unlock(&block->lock);
	for (unsigned i = 0; i < block->threads; i++)
		pthread_join(block->thread[i], NULL);
	block->threads = 0;
}
