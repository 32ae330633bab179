/*
 * A network back end: where the Ethernet frames of a NIC go on the host.
 *
 * Options, below the device's node (as in -s 4,virtio-net,slirp,hostfwd=tcp:127.0.0.1:2222-:22):
 *   backend=slirp      (the default) a network of its own in user space, in a process of its own: NAT, DHCP, DNS at
 *                      10.0.2.0/24 and fec0::/64; takes no rights. The host is 10.0.2.2, the DNS 10.0.2.3, the
 *                      guest 10.0.2.15
 *       open=BOOL      false: the guest reaches nobody but by hostfwd (true)
 *       hostfwd=tcp|udp:[ADDR]:PORT-[GUEST]:PORT[;...]   connections to the host's port go to the guest's
 *   backend=tapN or tap=NAME   a tap interface; takes CAP_NET_ADMIN, or one that was made for the user
 *   backend=unix:PATH  a UNIX stream socket on which each frame follows its length in 4 bytes, big-endian (passt's protocol,
 *                      and QEMU's)
 *       listen=BOOL    wait for the other side at PATH instead of connecting (false); joins two VMs
 *
 * A frame is an Ethernet frame from the destination address on, without FCS.
 *
 * Threads: send and receive under the device's lock, from any thread; the callbacks run on the loop thread with no lock held.
 */
#ifndef BACKEND_NET_H
#define BACKEND_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/config.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"

struct net;

/* The keys above, for config_check_names(). */
#define NET_OPTIONS "backend open hostfwd listen "

#define NET_FRAME_MAX 65550 /* bytes: an IP packet of 65535, its Ethernet header, padding */
#define NET_FRAME_MIN 14    /* the header */

struct net_events {
	/* There are frames to receive; only while net_receive_enable() is on. */
	void (*on_readable)(void *arg);
	/* After net_send() gave -EAGAIN: there is room again, or frames are dropped from now on. */
	void (*on_writable)(void *arg);
	/* Somebody is at the other end now, or nobody is any more. */
	void (*on_link)(void *arg, bool up);
	void *arg;
};

/* Everything that can be refused is refused here, with text: a port that is taken, a tap without rights, nobody at a socket.
 * Receiving is off. */
int net_open(struct net **out, struct config *node, struct loop *loop, struct log *log,
	     const struct net_events *events, struct error *err);
/* No callback afterwards. On the loop thread or while the loop does not run, not under the device's lock. NULL is allowed. */
void net_close(struct net *net);

/* Is there somebody at the other end? on_link tells of changes. */
bool net_link(struct net *net);
/* Sends one frame, all of it or nothing. 0: sent, or lost as networks lose frames (nobody is connected, or whoever is has
 * taken nothing for NET_STALL_MS, of which a line tells); -EAGAIN: not now, on_writable will tell; -EMSGSIZE: shorter than NET_FRAME_MIN or longer than NET_FRAME_MAX, or in more than
 * NET_IOVS parts. */
#define NET_IOVS 136
#define NET_STALL_MS 2000
int net_send(struct net *net, const struct iovec *iov, unsigned iovs);
/* Takes one frame into `frame` of `size` >= NET_FRAME_MAX bytes and returns its length; 0: there is none now. */
size_t net_receive(struct net *net, void *frame, size_t size);
/* Whether on_readable is wanted. Off while the guest has no buffers: frames then wait on the host, whose own queue
 * bounds them. Any thread, any lock. */
void net_receive_enable(struct net *net, bool on);

#endif
