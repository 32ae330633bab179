#include "machine/topology.h"

#include <errno.h>

int topology_read(struct config *root, struct topology *out, struct error *err)
{
	uint64_t cpus, sockets, cores, threads;
	int rc = config_get_u64(root, "cpus", 1, 1, VCPUS_MAX, &cpus, err);

	if (rc == 0)
		rc = config_get_u64(root, "sockets", cpus, 1, VCPUS_MAX, &sockets, err);
	if (rc == 0)
		rc = config_get_u64(root, "cores", 1, 1, VCPUS_MAX, &cores, err);
	if (rc == 0)
		rc = config_get_u64(root, "threads", 1, 1, VCPUS_MAX, &threads, err);
	if (rc != 0) {
		error_prefix(err, "-c");
		return rc;
	}

	uint64_t product = sockets * cores * threads;

	if (config_get(root, "cpus") == NULL)
		cpus = product;
	if (cpus != product)
		return error_set(err, EINVAL,
				 "-c: %llu sockets x %llu cores x %llu threads are %llu vCPUs, not "
				 "the %llu asked for: make the product match",
				 (unsigned long long)sockets, (unsigned long long)cores,
				 (unsigned long long)threads, (unsigned long long)product,
				 (unsigned long long)cpus);
	if (cpus > VCPUS_MAX)
		return error_set(err, EINVAL, "-c: %llu vCPUs: 1 to %d can be had",
				 (unsigned long long)cpus, VCPUS_MAX);
	*out = (struct topology){
		.cpus = (unsigned)cpus,
		.sockets = (unsigned)sockets,
		.cores = (unsigned)cores,
		.threads = (unsigned)threads,
	};
	return 0;
}
