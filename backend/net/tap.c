/*
 * A tap interface (Linux, Documentation/networking/tuntap.rst).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "backend/net/internal.h"

static ssize_t tap_send(struct net *net, const struct iovec *iov, unsigned iovs, size_t length)
{
	(void)length;
	return writev(net->fd, iov, (int)iovs) < 0 ? -errno : 0;
}

static ssize_t tap_receive(struct net *net, void *frame, size_t size)
{
	ssize_t n = read(net->fd, frame, size);

	return n < 0 && errno != EAGAIN ? -errno : n < 0 ? 0 : n;
}

const struct net_kind net_tap = {tap_send, tap_receive};

int tap_open(struct net *net, const char *name, struct error *err)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};

	if (name[0] == '\0' || strlen(name) >= IFNAMSIZ)
		return error_set(err, EINVAL, "tap '%s': a name has 1 to %d bytes", name,
				 IFNAMSIZ - 1);
	net->kind = &net_tap;
	net->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (net->fd < 0)
		return error_set(err, errno, "tap '%s': /dev/net/tun: %s", name, strerror(errno));
	strcpy(request.ifr_name, name);
	if (ioctl(net->fd, TUNSETIFF, &request) == 0)
		return 0;
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
