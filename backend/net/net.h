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
 *   mtu=N              what the guest is told that the largest IP packet is, 1280 to 65520 (slirp: 65520, since nothing that it
 *                      sends is ever on a wire in one piece; others: not told, and so 1500)
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
#define NET_OPTIONS "backend open hostfwd listen mtu"

#define NET_FRAME_MAX 65550 /* bytes: an IP packet of 65535, its Ethernet header, padding */
#define NET_FRAME_MIN 14    /* the header */

/* What a NIC and its back end may leave to each other. */
#define NET_CSUM 0x01 /* to the host: checksums that are not there yet (NET_NEEDS_CSUM) */
#define NET_TSO 0x02  /* to the host: TCP segments to be cut, IPv4 and IPv6, ECN too */
#define NET_GUEST_CSUM \
	0x04 /* to the guest: such checksums, or the word that one is right (NET_DATA_VALID) */
#define NET_GUEST_TSO 0x08 /* to the guest: TCP segments that were never cut */

/* What is said of a frame: the part of virtio's header (VIRTIO 1.2, 5.1.6) that the back ends understand. All zeros: nothing. */
struct net_header {
	uint8_t flags, gso_type;
	uint16_t hdr_len, gso_size, csum_start, csum_offset;
};
#define NET_NEEDS_CSUM 1
#define NET_DATA_VALID 2

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
/* NET_* that this back end can do, and the MTU to tell the guest, 0: none. */
unsigned net_offloads(const struct net *net);
unsigned net_mtu(const struct net *net);
/* What the guest's driver has chosen: NET_GUEST_*, and the MTU it knows of. */
void net_configure(struct net *net, unsigned offloads, unsigned mtu);
/* Sends one frame, all of it or nothing. What the header asks for and net_offloads() has not is not done. 0: sent, or lost as networks lose frames (nobody is connected, or whoever is has
 * taken nothing for NET_STALL_MS, of which a line tells); -EAGAIN: not now, on_writable will tell; -EMSGSIZE: shorter than NET_FRAME_MIN or longer than NET_FRAME_MAX, or in more than
 * NET_IOVS parts. */
#define NET_IOVS 136
#define NET_STALL_MS 2000
int net_send(struct net *net, const struct net_header *header, const struct iovec *iov,
	     unsigned iovs);
/* Takes one frame into `frame` of `size` >= NET_FRAME_MAX bytes and returns its length; 0: there is none now. */
size_t net_receive(struct net *net, struct net_header *header, void *frame, size_t size);
/* Whether on_readable is wanted. Off while the guest has no buffers: frames then wait on the host, whose own queue
 * bounds them. Any thread, any lock. */
void net_receive_enable(struct net *net, bool on);

#endif
