/* virtio-blk, two queues. */
#include "tests/fuzz/virtio.h"

static void set_up(struct machine *m)
{
	char path[128];
	const char *const options[][2] = {
		{"path", fuzz_image(m, "disk", 1 << 20, path)}, {"queues", "2"}, {NULL, NULL}};

	m->device = fuzz_device(m, "virtio-blk", FUZZ_SLOT, options);
}

const struct target fuzz_target = {set_up, virtio_operation, virtio_at_rest};
