/*
 * How many vCPUs and in what sockets, cores and threads: the keys cpus, sockets, cores and threads.
 */
#ifndef MACHINE_TOPOLOGY_H
#define MACHINE_TOPOLOGY_H

#include "base/config.h"
#include "base/error.h"
#include "vmm/vm.h"

/* As bhyve counts: cores and threads are 1 unless set, sockets is as many as there are cpus, and cpus,
 * if it is set, has to be the product of the three. -EINVAL with text. */
int topology_read(struct config *root, struct topology *out, struct error *err);

#endif
