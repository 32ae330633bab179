/*
 * The parts of a network back end: net.c opens one and moves frames; slirp.c, tap.c and stream.c make its file.
 */
#ifndef BACKEND_NET_INTERNAL_H
#define BACKEND_NET_INTERNAL_H

#include <pthread.h>

#include "backend/net/net.h"

struct net;

struct net_kind {
	unsigned offloads; /* NET_* */
	bool cuts; /* takes the header as it is; otherwise checksums are completed before `send` */
	ssize_t (*send)(struct net *net, const struct net_header *header, const struct iovec *iov,
			unsigned iovs, size_t length);
	/* > 0: a frame; 0: none now; -errno: no more from here, e.g. -EPIPE at the end. *header is zero before. */
	ssize_t (*receive)(struct net *net, struct net_header *header, void *frame, size_t size);
	/* net_configure(); NULL: nothing to do. Under the lock. */
	void (*configure)(struct net *net, unsigned offloads, unsigned mtu);
};

extern const struct net_kind net_slirp;	 /* one frame a message */
extern const struct net_kind net_tap;	 /* one frame a read(2) or write(2) */
extern const struct net_kind net_stream; /* frames after their length */

struct net {
	const struct net_kind *kind;
	char name[160]; /* for messages */
	struct log *log;
	struct loop *loop;
	struct net_events events;
	pthread_mutex_t lock; /* below the device's: what follows, and the order of frames */
	int fd;		      /* -1: nobody is connected */
	struct loop_fd node;
	unsigned mtu; /* to tell the guest */
	bool want_read, want_write;
	/* The other side takes nothing: a timer (timerfd) runs while frames wait, and when it has run out they are dropped. */
	int timer;
	struct loop_fd timer_node;
	bool stalled;
	pid_t child;	     /* slirp's process; 0: none */
	uint32_t untold_mtu; /* the guest's, which slirp's process has to hear of; 0: it has */
	/* listen */
	int listener;
	struct loop_fd listener_node;
	char path[108];
	/* the stream: what was received and not taken, what could not be sent yet */
	uint8_t *in, *out;
	size_t in_at, in_len, out_at, out_len;
};

int slirp_open(struct net *net, struct config *node, struct error *err);
int tap_open(struct net *net, const char *name, struct error *err);
int stream_open(struct net *net, const char *path, bool listens, struct error *err);
/* A new connection: nothing of an earlier one is left. Under the lock. */
void stream_reset(struct net *net);
/* Sends what waits; false: there is still some. Under the lock. */
bool stream_push(struct net *net);

/* The internet checksum (RFC 1071) of a frame from byte `start` on, not complemented. */
uint16_t checksum_sum(const struct iovec *iov, unsigned iovs, size_t start);
/* Splits `iov` so that the two bytes at `at` of the frame come from `bytes`; out has room for iovs + 2. 0: they are not
 * there. */
unsigned checksum_place(const struct iovec *iov, unsigned iovs, size_t at, void *bytes,
			struct iovec *out);

#endif
