/* The virtio core, with the device that has the least of its own. */
#include "tests/fuzz/virtio.h"

static void set_up(struct machine *m)
{
	m->device = fuzz_device(m, "virtio-rnd", FUZZ_SLOT, NULL);
}

const struct target fuzz_target = {set_up, virtio_operation, virtio_at_rest};
