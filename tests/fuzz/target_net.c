/* virtio-net, on a socket whose other side sends frames and may or may not read. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/fuzz/virtio.h"

static void set_up(struct machine *m)
{
	char path[128], backend[160];
	const char *const options[][2] = {{"backend", backend}, {NULL, NULL}};
	int listener;

	snprintf(path, sizeof(path), "%s/net", m->directory);
	snprintf(backend, sizeof(backend), "unix:%s", path);
	listener = fuzz_listen(path);
	m->device = fuzz_device(m, "virtio-net", FUZZ_SLOT, options);
	m->peer[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (m->peer[0] < 0)
		abort();
	close(listener);
}

const struct target fuzz_target = {set_up, virtio_operation, virtio_at_rest};
