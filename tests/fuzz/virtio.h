/* What the targets with a virtio device have in common: queues set up as drivers do, chains, notifications. */
#ifndef TESTS_FUZZ_VIRTIO_H
#define TESTS_FUZZ_VIRTIO_H

#include "tests/fuzz/fuzz.h"

void virtio_operation(struct machine *m, struct input *in);
bool virtio_at_rest(struct machine *m, uint64_t *worked);

#endif
