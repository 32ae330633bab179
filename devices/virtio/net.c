/*
 * virtio-net: OASIS Virtual I/O Device (VIRTIO) Version 1.2, section 5.1. One pair of queues, mergeable receive buffers, the
 * control queue with MAC address, MAC table and receive modes, link status, MTU, and those of checksum and TCP
 * segmentation offloads that the back end can do (backend/net/net.h); of the legacy interface, a MAC address that the driver
 * writes into the configuration. Left out: UDP segmentation, multi-queue, RSS and hash reports, VLAN filters, the further
 * receive modes (CTRL_RX_EXTRA), changing offloads at run time, announcements, the lengths of headers (GUEST_HDRLEN), coalescing
 * (RSC_EXT, NOTF_COAL), standby, speed and duplex, and the legacy F_GSO.
 *
 * Keys: `backend` and its own (backend/net/net.h); `mac`; pcireg.* (bus/pci.h).
 *
 * Receiving is done on the loop thread as frames come, and on the worker of queue 0, which also serves the control queue,
 * when the guest has new buffers; sending on that of queue 1. A frame that the guest has no buffers for stays in `frame`,
 * and everything after it with the host.
 */
#include <errno.h>
#include <md5.h>
#include <stdio.h>
#include <string.h>

#include "backend/net/net.h"
#include "devices/virtio/virtio.h"

#define NET_F_CSUM (1ull << 0)
#define NET_F_GUEST_CSUM (1ull << 1)
#define NET_F_MTU (1ull << 3)
#define NET_F_MAC (1ull << 5)
#define NET_F_GUEST_TSO4 (1ull << 7)
#define NET_F_GUEST_TSO6 (1ull << 8)
#define NET_F_GUEST_ECN (1ull << 9)
#define NET_F_HOST_TSO4 (1ull << 11)
#define NET_F_HOST_TSO6 (1ull << 12)
#define NET_F_HOST_ECN (1ull << 13)
#define NET_F_MRG_RXBUF (1ull << 15)
#define NET_F_STATUS (1ull << 16)
#define NET_F_CTRL_VQ (1ull << 17)
#define NET_F_CTRL_RX (1ull << 18)
#define NET_F_CTRL_MAC_ADDR (1ull << 23)
#define GUEST_TSO (NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_ECN)
#define HOST_TSO (NET_F_HOST_TSO4 | NET_F_HOST_TSO6 | NET_F_HOST_ECN)

/* gso_type (5.1.6) */
#define GSO_TCPV4 1
#define GSO_TCPV6 4
#define GSO_ECN 0x80

enum { RX_QUEUE, TX_QUEUE, CONTROL_QUEUE, QUEUES };

#define QUEUE_SIZE 256
#define RX_QUEUE_SIZE 1024 /* of buffers of 1.5 KiB, as drivers give, a large frame takes 43 */
#define MAC_LEN 6
#define MAC_TABLE 16 /* more unicast addresses than these: all are taken */
#define RX_CHAINS 64 /* buffers of one frame at most */
#define BUDGET 64    /* frames, before the thread looks at what else it has to do */
#define MTU_DEFAULT 1500
#define ETHER_MAX 18 /* bytes of a frame besides the packet, with a VLAN tag */
/* Of the configuration (5.1.4) */
#define CONFIG_STATUS 6
#define CONFIG_MTU 10
#define CONFIG_LEN 12
#define HEADER_MAX 12 /* struct virtio_net_hdr (5.1.6); 10 in legacy without MRG_RXBUF */
#define HEADER_LEGACY 10
#define LINK_UP 1

/* Commands of the control queue (5.1.6.5): class, command */
#define CTRL_RX 0
#define CTRL_RX_PROMISC 0
#define CTRL_RX_ALLMULTI 1
#define CTRL_MAC 1
#define CTRL_MAC_TABLE_SET 0
#define CTRL_MAC_ADDR_SET 1
#define CTRL_OK 0
#define CTRL_ERR 1

struct net_state {
	struct virtio_state virtio;
	uint8_t mac[MAC_LEN];
	bool promisc, allmulti;
	bool all_unicast, all_multicast; /* the table did not fit */
	uint8_t unicasts, multicasts;
	uint8_t unicast[MAC_TABLE * MAC_LEN], multicast[MAC_TABLE * MAC_LEN];
};

struct virtio_net {
	struct virtio_device dev;
	struct net_state state;
	struct net *net;
	uint8_t mac[MAC_LEN]; /* what a reset restores */
	/* The back end's callbacks come whenever they like: between these they may kick. */
	pthread_mutex_t alive_lock;
	bool alive;
	/* Whoever is in `notify` for RX_QUEUE. */
	size_t frame_len;	  /* 0: none waits */
	struct net_header header; /* of the frame */
	uint8_t frame[NET_FRAME_MAX];
	struct virtio_chain rx[RX_CHAINS], tx, control;
};

static struct virtio_net *net_of(struct virtio_device *dev)
{
	return (struct virtio_net *)dev;
}

static size_t header_size(const struct virtio_device *dev)
{
	return virtio_has(dev, VIRTIO_F_VERSION_1) || virtio_has(dev, NET_F_MRG_RXBUF)
		       ? HEADER_MAX
		       : HEADER_LEGACY;
}

static void kick(struct virtio_net *nic, unsigned queue)
{
	pthread_mutex_lock(&nic->alive_lock);
	if (nic->alive)
		virtio_kick(&nic->dev, queue);
	pthread_mutex_unlock(&nic->alive_lock);
}

static void on_readable(void *arg)
{
	struct virtio_net *nic = arg;

	pthread_mutex_lock(&nic->alive_lock);
	/* If it runs here it says itself whether it wants to hear of more. */
	if (!nic->alive || !virtio_run(&nic->dev, RX_QUEUE)) {
		net_receive_enable(nic->net, false);
		if (nic->alive)
			virtio_kick(&nic->dev, RX_QUEUE);
	}
	pthread_mutex_unlock(&nic->alive_lock);
}

static void on_writable(void *arg)
{
	kick(arg, TX_QUEUE);
}

/* 5.1.4: the status in the configuration, for drivers that look at it. */
static void on_link(void *arg, bool up)
{
	struct virtio_net *nic = arg;

	pthread_mutex_lock(&nic->alive_lock);
	if (nic->alive) {
		pthread_mutex_lock(&nic->dev.device.lock);
		nic->dev.config[CONFIG_STATUS] = up ? LINK_UP : 0;
		virtio_config_changed(&nic->dev);
		pthread_mutex_unlock(&nic->dev.device.lock);
	}
	pthread_mutex_unlock(&nic->alive_lock);
}

static bool in_table(const uint8_t *table, unsigned n, const uint8_t *mac)
{
	for (unsigned i = 0; i < n; i++) {
		if (memcmp(table + i * MAC_LEN, mac, MAC_LEN) == 0)
			return true;
	}
	return false;
}

/* Is a frame to this address for us? Before the driver has said what it wants, multicasts are: drivers without the
 * control queue cannot ask for them. */
static bool wanted(struct virtio_net *nic, const uint8_t *mac)
{
	static const uint8_t broadcast[MAC_LEN] = {255, 255, 255, 255, 255, 255};
	struct net_state *s = &nic->state;
	bool yes;

	pthread_mutex_lock(&nic->dev.device.lock);
	if (s->promisc || memcmp(mac, broadcast, MAC_LEN) == 0)
		yes = true;
	else if (!(mac[0] & 1) && !virtio_has(&nic->dev, NET_F_MAC))
		yes = true; /* the driver has an address of its own, which it cannot tell */
	else if (mac[0] & 1)
		yes = s->allmulti || s->all_multicast || !virtio_has(&nic->dev, NET_F_CTRL_RX) ||
		      in_table(s->multicast, s->multicasts, mac);
	else
		yes = memcmp(mac, s->mac, MAC_LEN) == 0 || s->all_unicast ||
		      in_table(s->unicast, s->unicasts, mac);
	pthread_mutex_unlock(&nic->dev.device.lock);
	return yes;
}

/* Takes buffers for `need` bytes. How many, 0: there are not enough now (none is taken), or the frame does not fit in
 * what the driver agreed to use (*fits). */
static unsigned take_buffers(struct virtio_net *nic, size_t need, bool *fits)
{
	struct virtqueue *vq = &nic->dev.queue[RX_QUEUE];
	unsigned max = virtio_has(&nic->dev, NET_F_MRG_RXBUF) ? RX_CHAINS : 1, n = 0;
	uint64_t room = 0;

	*fits = true;
	while (room < need && n < max && virtqueue_pop(vq, &nic->rx[n]) > 0)
		room += nic->rx[n++].writable_len;
	if (room >= need)
		return n;
	*fits = n < max && n < vq->size;
	while (n > 0)
		virtqueue_unpop(vq, &nic->rx[--n]);
	return 0;
}

/* Is this type of segmentation one that was agreed on, by these features? */
static bool gso_agreed(const struct virtio_device *dev, uint8_t type, uint64_t tso4, uint64_t tso6,
		       uint64_t ecn)
{
	if (virtio_has(dev, ecn))
		type &= (uint8_t)~GSO_ECN;
	return type == 0 || (type == GSO_TCPV4 && virtio_has(dev, tso4)) ||
	       (type == GSO_TCPV6 && virtio_has(dev, tso6));
}

/* The header of the frame as the driver may see it; false: the frame is not what it has agreed to (a tap may still
 * hold some from before it was told). */
static bool make_header(const struct virtio_net *nic, unsigned buffers, uint8_t *out)
{
	struct net_header header = nic->header;

	if (!virtio_has(&nic->dev, NET_F_GUEST_CSUM)) {
		if (header.flags & NET_NEEDS_CSUM)
			return false;
		header.flags = 0;
	}
	if (!gso_agreed(&nic->dev, header.gso_type, NET_F_GUEST_TSO4, NET_F_GUEST_TSO6,
			NET_F_GUEST_ECN))
		return false;
	if (header.gso_type == 0 && virtio_has(&nic->dev, NET_F_MTU) &&
	    nic->frame_len > net_mtu(nic->net) + ETHER_MAX)
		return false;
	memset(out, 0, HEADER_MAX);
	memcpy(out, &header, sizeof(header));
	out[10] = (uint8_t)buffers; /* num_buffers; the legacy header ends before it */
	return true;
}

/* False: no buffers. */
static bool deliver(struct virtio_net *nic)
{
	uint64_t written[RX_CHAINS];
	uint8_t header[HEADER_MAX];
	size_t size = header_size(&nic->dev), done = 0;
	bool fits;
	unsigned n;

	if (!make_header(nic, 0, header))
		return true; /* lost */
	n = take_buffers(nic, size + nic->frame_len, &fits);
	if (n == 0)
		return !fits; /* lost */
	make_header(nic, n, header);
	for (unsigned i = 0; i < n; i++) {
		size_t skip = 0, got;

		/* With one chain the header may be in parts; the first of several holds all of it, or it is lost. */
		if (i == 0)
			skip = virtio_chain_write(&nic->rx[0], 0, header, size);
		got = virtio_chain_write(&nic->rx[i], skip, nic->frame + done,
					 nic->frame_len - done);
		done += got;
		written[i] = skip + got;
	}
	virtqueue_push_all(&nic->dev.queue[RX_QUEUE], nic->rx, written, n);
	return true;
}

/* Frames from the host, as long as there are some and buffers for them. */
static void receive(struct virtio_net *nic)
{
	struct virtqueue *vq = &nic->dev.queue[RX_QUEUE];
	unsigned budget = BUDGET;

	virtqueue_want_notify(vq, false);
	for (; budget > 0; budget--) {
		if (nic->frame_len == 0) {
			nic->frame_len =
				net_receive(nic->net, &nic->header, nic->frame, sizeof(nic->frame));
			if (nic->frame_len == 0) {
				net_receive_enable(nic->net, true);
				break;
			}
			if (!wanted(nic, nic->frame))
				nic->frame_len = 0;
		}
		if (nic->frame_len == 0)
			continue;
		if (!deliver(nic)) {
			net_receive_enable(nic->net, false);
			/* What came before the driver knew that it has to tell us. */
			virtqueue_want_notify(vq, true);
			if (!deliver(nic))
				break;
			virtqueue_want_notify(vq, false);
		}
		nic->frame_len = 0;
	}
	virtqueue_signal(vq);
	if (budget == 0) {
		net_receive_enable(nic->net, false);
		virtio_kick(&nic->dev, RX_QUEUE);
	}
}

/* What the driver says of a frame. False: it is not what was agreed on. */
static bool read_header(const struct virtio_net *nic, const struct virtio_chain *chain,
			struct net_header *header)
{
	const struct virtio_device *dev = &nic->dev;

	if (virtio_chain_read(chain, 0, header, sizeof(*header)) != sizeof(*header))
		return false;
	header->flags &= virtio_has(dev, NET_F_CSUM) ? NET_NEEDS_CSUM : 0;
	return gso_agreed(dev, header->gso_type, NET_F_HOST_TSO4, NET_F_HOST_TSO6, NET_F_HOST_ECN);
}

/* -EAGAIN: later. A chain that is no frame is dropped. */
static int transmit(struct virtio_net *nic, const struct virtio_chain *chain)
{
	struct iovec frame[VIRTIO_SEGS];
	size_t size = header_size(&nic->dev);
	struct net_header header;
	unsigned n;

	if (chain->readable_len < size || chain->readable_len - size > NET_FRAME_MAX ||
	    !read_header(nic, chain, &header))
		return 0;
	n = virtio_iov_part(chain->iov, chain->readable, size, chain->readable_len - size, frame);
	return net_send(nic->net, &header, frame, n) == -EAGAIN ? -EAGAIN : 0;
}

/* Frames of the guest, as long as the host takes them; on_writable comes back here. */
static void send_frames(struct virtio_net *nic)
{
	struct virtqueue *vq = &nic->dev.queue[TX_QUEUE];
	unsigned budget = BUDGET;

	virtqueue_want_notify(vq, false);
	while (budget > 0) {
		if (virtqueue_pop(vq, &nic->tx) <= 0) {
			virtqueue_want_notify(vq, true);
			if (virtqueue_pop(vq, &nic->tx) <= 0)
				break;
			virtqueue_want_notify(vq, false);
		}
		if (transmit(nic, &nic->tx) == -EAGAIN) {
			virtqueue_unpop(vq, &nic->tx);
			break;
		}
		virtqueue_push(vq, &nic->tx, 0);
		budget--;
	}
	virtqueue_signal(vq);
	if (budget == 0)
		virtio_kick(&nic->dev, TX_QUEUE);
}

/* One of the two tables of MAC_TABLE_SET at *at of the chain: a count in 32 bits, then the addresses. False: it is cut
 * off. A table that is too long sets *all. */
static bool read_table(const struct virtio_chain *chain, uint64_t *at, uint8_t *table, uint8_t *n,
		       bool *all)
{
	uint32_t count;

	if (virtio_chain_read(chain, *at, &count, sizeof(count)) != sizeof(count))
		return false;
	*at += sizeof(count);
	if ((uint64_t)count * MAC_LEN > chain->readable_len - *at)
		return false;
	*all = count > MAC_TABLE;
	*n = *all ? 0 : (uint8_t)count;
	virtio_chain_read(chain, *at, table, (size_t)*n * MAC_LEN);
	*at += (uint64_t)count * MAC_LEN;
	return true;
}

/* Under the lock. */
static bool set_tables(struct virtio_net *nic, const struct virtio_chain *chain)
{
	struct net_state *s = &nic->state;
	struct net_state next = *s;
	uint64_t at = 2;

	if (!read_table(chain, &at, next.unicast, &next.unicasts, &next.all_unicast) ||
	    !read_table(chain, &at, next.multicast, &next.multicasts, &next.all_multicast))
		return false;
	memcpy(s->unicast, next.unicast, sizeof(s->unicast));
	memcpy(s->multicast, next.multicast, sizeof(s->multicast));
	s->unicasts = next.unicasts;
	s->multicasts = next.multicasts;
	s->all_unicast = next.all_unicast;
	s->all_multicast = next.all_multicast;
	return true;
}

/* Under the lock. */
static bool command(struct virtio_net *nic, const struct virtio_chain *chain)
{
	struct net_state *s = &nic->state;
	uint8_t head[2], mac[MAC_LEN], on;

	if (virtio_chain_read(chain, 0, head, sizeof(head)) != sizeof(head))
		return false;
	if (head[0] == CTRL_RX && head[1] <= CTRL_RX_ALLMULTI) {
		if (virtio_chain_read(chain, 2, &on, 1) != 1)
			return false;
		if (head[1] == CTRL_RX_PROMISC)
			s->promisc = on != 0;
		else
			s->allmulti = on != 0;
		return true;
	}
	if (head[0] == CTRL_MAC && head[1] == CTRL_MAC_TABLE_SET)
		return set_tables(nic, chain);
	if (head[0] == CTRL_MAC && head[1] == CTRL_MAC_ADDR_SET) {
		if (virtio_chain_read(chain, 2, mac, MAC_LEN) != MAC_LEN)
			return false;
		memcpy(s->mac, mac, MAC_LEN);
		memcpy(nic->dev.config, mac, MAC_LEN);
		nic->dev.state->generation++;
		return true;
	}
	return false;
}

static void control(struct virtio_net *nic)
{
	struct virtqueue *vq = &nic->dev.queue[CONTROL_QUEUE];
	unsigned budget = BUDGET;

	for (; budget > 0 && virtqueue_pop(vq, &nic->control) > 0; budget--) {
		uint8_t ack;

		pthread_mutex_lock(&nic->dev.device.lock);
		ack = command(nic, &nic->control) ? CTRL_OK : CTRL_ERR;
		pthread_mutex_unlock(&nic->dev.device.lock);
		virtqueue_push(vq, &nic->control, virtio_chain_write(&nic->control, 0, &ack, 1));
	}
	virtqueue_signal(vq);
	if (budget == 0)
		virtio_kick(&nic->dev, CONTROL_QUEUE);
}

static void net_notify(struct virtio_device *dev, unsigned queue)
{
	struct virtio_net *nic = net_of(dev);

	if (queue == RX_QUEUE)
		receive(nic);
	else if (queue == TX_QUEUE)
		send_frames(nic);
	else
		control(nic);
}

static void net_start(struct virtio_device *dev)
{
	struct virtio_net *nic = net_of(dev);

	net_configure(nic->net,
		      (virtio_has(dev, NET_F_GUEST_CSUM) ? NET_GUEST_CSUM : 0) |
			      ((dev->state->driver_features & GUEST_TSO) == GUEST_TSO
				       ? NET_GUEST_TSO
				       : 0),
		      virtio_has(dev, NET_F_MTU) ? net_mtu(nic->net) : MTU_DEFAULT);
	virtio_kick(dev, RX_QUEUE);
	virtio_kick(dev, TX_QUEUE);
}

static void net_stop(struct virtio_device *dev, bool discard)
{
	struct virtio_net *nic = net_of(dev);

	net_receive_enable(nic->net, false);
	if (discard)
		nic->frame_len = 0;
}

static void net_reset_state(struct virtio_device *dev)
{
	struct virtio_net *nic = net_of(dev);
	struct net_state *s = &nic->state;

	s->promisc = s->allmulti = s->all_unicast = s->all_multicast = false;
	s->unicasts = s->multicasts = 0;
	memcpy(s->mac, nic->mac, MAC_LEN);
	memcpy(dev->config, nic->mac, MAC_LEN);
}

/* The legacy way to set the MAC address (5.1.4). */
static void net_config_write(struct virtio_device *dev, unsigned offset, unsigned size)
{
	(void)offset;
	(void)size;
	memcpy(net_of(dev)->state.mac, dev->config, MAC_LEN);
}

/* 5.1.3.1 */
static bool net_features_ok(struct virtio_device *dev, uint64_t features)
{
	(void)dev;
	return (!(features & HOST_TSO) || (features & NET_F_CSUM)) &&
	       (!(features & GUEST_TSO) || (features & NET_F_GUEST_CSUM)) &&
	       (!(features & NET_F_HOST_ECN) || (features & (NET_F_HOST_TSO4 | NET_F_HOST_TSO6))) &&
	       (!(features & NET_F_GUEST_ECN) ||
		(features & (NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6))) &&
	       (!(features & (NET_F_CTRL_RX | NET_F_CTRL_MAC_ADDR)) || (features & NET_F_CTRL_VQ));
}

/* What the back end can do, as features. */
static uint64_t offered(const struct net *net)
{
	unsigned offloads = net_offloads(net);

	return (offloads & NET_CSUM ? NET_F_CSUM : 0) |
	       (offloads & NET_GUEST_CSUM ? NET_F_GUEST_CSUM : 0) |
	       (offloads & NET_TSO ? HOST_TSO : 0) | (offloads & NET_GUEST_TSO ? GUEST_TSO : 0) |
	       (net_mtu(net) != 0 ? NET_F_MTU : 0);
}

static void set_config(struct virtio_net *nic)
{
	uint16_t mtu = (uint16_t)net_mtu(nic->net);

	nic->dev.config_len = CONFIG_LEN;
	memset(nic->dev.config_writable, 0xff, MAC_LEN);
	memcpy(nic->dev.config + CONFIG_MTU, &mtu, sizeof(mtu));
}

static const struct virtio_type net_type = {
	.type = VIRTIO_TYPE_NET,
	.cls = 2, /* network controller */
	.subclass = 0,
	.config_write = net_config_write,
	.start = net_start,
	.features_ok = net_features_ok,
	.notify = net_notify,
	.stop = net_stop,
	.reset = net_reset_state,
};

/* As bhyve does: 00:a0:98 (its own prefix) and what the VM's name and the slot make. */
static void default_mac(uint8_t mac[MAC_LEN], const struct vm *vm, struct pci_address addr)
{
	uint8_t digest[MD5_DIGEST_LENGTH];
	char text[sizeof(vm->name) + 16];
	MD5_CTX md5;
	int n = snprintf(text, sizeof(text), "%u-%u-%s", addr.slot, addr.func, vm->name);

	MD5Init(&md5);
	MD5Update(&md5, (const uint8_t *)text, (size_t)n);
	MD5Final(digest, &md5);
	memcpy(mac, (const uint8_t[]){0x00, 0xa0, 0x98, digest[0], digest[1], digest[2]}, MAC_LEN);
}

static int read_mac(struct virtio_net *nic, struct config *node, struct pci_address addr,
		    struct error *err)
{
	const char *text = config_get(node, "mac");
	unsigned b[MAC_LEN];
	int used = 0;

	if (text == NULL) {
		default_mac(nic->mac, nic->dev.device.vm, addr);
		return 0;
	}
	if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5],
		   &used) != MAC_LEN ||
	    text[used] != '\0' || (b[0] & 1) || (b[0] | b[1] | b[2] | b[3] | b[4] | b[5]) == 0)
		return error_set(
			err, EINVAL,
			"mac=%s: should be six hexadecimal bytes with colons, no multicast "
			"address",
			text);
	for (unsigned i = 0; i < MAC_LEN; i++)
		nic->mac[i] = (uint8_t)b[i];
	return 0;
}

static void net_destroy(struct device *device)
{
	struct virtio_net *nic = (struct virtio_net *)device;

	pthread_mutex_lock(&nic->alive_lock);
	nic->alive = false;
	pthread_mutex_unlock(&nic->alive_lock);
	virtio_destroy(&nic->dev);
	net_close(nic->net);
	pthread_mutex_destroy(&nic->alive_lock);
	device_free(device);
}

static void net_device_reset(struct device *device)
{
	virtio_reset(device);
	net_reset_state((struct virtio_device *)device);
}

static void net_resume(struct device *device)
{
	struct virtio_net *nic = (struct virtio_net *)device;

	memcpy(nic->dev.config, nic->state.mac, MAC_LEN);
	virtio_resume(device);
}

static bool net_check(const void *state)
{
	const struct net_state *s = state;

	return virtio_state_check(&s->virtio) && s->unicasts <= MAC_TABLE &&
	       s->multicasts <= MAC_TABLE;
}

static const struct state_field net_fields[] = {
	VIRTIO_FIELDS(struct net_state, virtio), STATE_ARRAY(struct net_state, mac),
	STATE(struct net_state, promisc),	 STATE(struct net_state, allmulti),
	STATE(struct net_state, all_unicast),	 STATE(struct net_state, all_multicast),
	STATE(struct net_state, unicasts),	 STATE(struct net_state, multicasts),
	STATE_ARRAY(struct net_state, unicast),	 STATE_ARRAY(struct net_state, multicast),
};

static const struct state_table net_table =
	STATE_TABLE("virtio-net", struct net_state, net_fields, 1, net_check);

static int net_create(struct vm *vm, struct config *config, struct device **out, struct error *err);

static const struct device_class virtio_net_class = {
	.name = "virtio-net",
	.help = "virtio-net[,slirp|tapN|tap=NAME|unix:PATH][,mac=MAC][,hostfwd=tcp:[ADDR]:PORT-:"
		"PORT]"
		"  network card",
	.kind = DEVICE_PCI,
	.config_key = "backend",
	.create = net_create,
	.destroy = net_destroy,
	.reset = net_device_reset,
	.quiesce = virtio_quiesce,
	.resume = net_resume,
	.table = &net_table,
	.state_offset = offsetof(struct virtio_net, state),
};
DEVICE_REGISTER(virtio_net_class);

static int net_create(struct vm *vm, struct config *config, struct device **out, struct error *err)
{
	struct net_events events = {on_readable, on_writable, on_link, NULL};
	struct pci_address addr;
	struct virtio_net *nic;
	int rc = pci_address_read(config, &addr, err);

	if (rc == 0)
		rc = config_check_names(config, "device pcireg mac " NET_OPTIONS, err);
	if (rc != 0)
		return rc;
	nic = device_alloc(&virtio_net_class, vm, sizeof(*nic), "pci.%u.%u.%u", addr.bus, addr.slot,
			   addr.func);
	if (nic == NULL)
		return error_set(err, ENOMEM, "out of memory");
	pthread_mutex_init(&nic->alive_lock, NULL);
	events.arg = nic;
	rc = read_mac(nic, config, addr, err);
	if (rc == 0)
		rc = net_open(&nic->net, config, vm->loop, vm->log, &events, err);
	if (rc != 0)
		goto fail;
	nic->dev.type = &net_type;
	nic->dev.state = &nic->state.virtio;
	nic->dev.features = NET_F_MAC | NET_F_MRG_RXBUF | NET_F_STATUS | NET_F_CTRL_VQ |
			    NET_F_CTRL_RX | NET_F_CTRL_MAC_ADDR | offered(nic->net);
	nic->dev.queues = QUEUES;
	nic->dev.workers = 2;
	for (unsigned i = 0; i < QUEUES; i++)
		nic->dev.queue_max[i] = i == RX_QUEUE ? RX_QUEUE_SIZE : QUEUE_SIZE;
	net_reset_state(&nic->dev);
	set_config(nic);
	rc = virtio_init(&nic->dev, config, err);
	if (rc != 0)
		goto fail;
	nic->alive = true;
	on_link(nic, net_link(nic->net)); /* as it is, whatever came while nobody was told */
	*out = &nic->dev.device;
	return 0;
fail:
	net_destroy(&nic->dev.device);
	return rc;
}
