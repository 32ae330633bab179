/* virtio-console: the console and one more port on sockets, and one that swallows everything. */
#include <stdio.h>

#include "tests/fuzz/virtio.h"

static void set_up(struct machine *m)
{
	char console[128], port[128];
	const char *const options[][2] = {
		{"console", console}, {"port", port}, {"sink", "null"}, {NULL, NULL}};

	snprintf(console, sizeof(console), "%s/console", m->directory);
	snprintf(port, sizeof(port), "%s/port", m->directory);
	m->device = fuzz_device(m, "virtio-console", FUZZ_SLOT, options);
	m->peer[0] = fuzz_connect(console);
	m->peer[1] = fuzz_connect(port);
}

const struct target fuzz_target = {set_up, virtio_operation, virtio_at_rest};
