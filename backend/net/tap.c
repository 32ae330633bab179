/*
 * A tap interface (Linux, Documentation/networking/tuntap.rst), with its header for checksum and TCP segmentation offloads. Left
 * out: several queues, UDP segmentation, the carrier.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "backend/net/internal.h"

/* The kernel's header before each frame has the layout of virtio's, with num_buffers, which nobody sets here. */
struct tap_header {
	struct net_header header;
	uint16_t buffers;
};

static ssize_t tap_send(struct net *net, const struct net_header *header, const struct iovec *iov,
			unsigned iovs, size_t length)
{
	struct tap_header before = {.header = *header};
	struct iovec parts[1 + NET_IOVS];

	(void)length;
	parts[0] = (struct iovec){&before, sizeof(before)};
	memcpy(parts + 1, iov, iovs * sizeof(*iov));
	return writev(net->fd, parts, (int)iovs + 1) < 0 ? -errno : 0;
}

static ssize_t tap_receive(struct net *net, struct net_header *header, void *frame, size_t size)
{
	struct tap_header before;
	struct iovec parts[2] = {{&before, sizeof(before)}, {frame, size}};
	ssize_t n = readv(net->fd, parts, 2);

	if (n < 0)
		return errno != EAGAIN ? -errno : 0;
	if ((size_t)n <= sizeof(before))
		return 1; /* no frame: skipped */
	*header = before.header;
	return n - (ssize_t)sizeof(before);
}

static void tap_configure(struct net *net, unsigned offloads, unsigned mtu)
{
	unsigned flags = 0;

	(void)mtu;
	if (offloads & NET_GUEST_CSUM)
		flags |= TUN_F_CSUM;
	if (offloads & NET_GUEST_TSO)
		flags |= TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
	ioctl(net->fd, TUNSETOFFLOAD, flags);
}

const struct net_kind net_tap = {
	.offloads = NET_CSUM | NET_TSO | NET_GUEST_CSUM | NET_GUEST_TSO,
	.cuts = true,
	.send = tap_send,
	.receive = tap_receive,
	.configure = tap_configure,
};

int tap_open(struct net *net, const char *name, struct error *err)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};

	if (name[0] == '\0' || strlen(name) >= IFNAMSIZ)
		return error_set(err, EINVAL, "tap '%s': a name has 1 to %d bytes", name,
				 IFNAMSIZ - 1);
	net->kind = &net_tap;
	net->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (net->fd < 0)
		return error_set(err, errno,
				 "tap '%s': /dev/net/tun: %s; a tap takes the right to open that, "
				 "and CAP_NET_ADMIN or an "
				 "interface made for this user",
				 name, strerror(errno));
	strcpy(request.ifr_name, name);
	if (ioctl(net->fd, TUNSETIFF, &request) == 0) {
		int size = sizeof(struct tap_header);

		if (ioctl(net->fd, TUNSETVNETHDRSZ, &size) == 0)
			return 0;
	}
	if (errno == EPERM)
		return error_set(
			err, EPERM,
			"tap '%s': takes CAP_NET_ADMIN, or an interface made for this user by "
			"'ip tuntap add dev %s mode tap user NAME'",
			name, name);
	if (errno == EBUSY)
		return error_set(err, EBUSY, "tap '%s': in use by another process", name);
	return error_set(err, errno, "tap '%s': %s", name, strerror(errno));
}
