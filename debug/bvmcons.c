/*
 * bvmcons (-b): bhyve 2014's paravirtual console at port 0x220, on stdio. As a node of the
 * configuration its key `path` names another console.
 */
#include "debug/bvm.h"

#define BVMCONS_PORT 0x220
#define BVMCONS_SIGNATURE ('b' << 8 | 'v')

static int bvmcons_create(struct vm *vm, struct config *config, struct device **out,
			  struct error *err);

static const struct device_class bvmcons_class = {
	.name = "bvmcons",
	.help = "bvmcons  bhyve's paravirtual console at port 0x220",
	.kind = DEVICE_CHIPSET,
	.create = bvmcons_create,
	.destroy = bvm_destroy,
};
DEVICE_REGISTER(bvmcons_class);

static int bvmcons_create(struct vm *vm, struct config *config, struct device **out,
			  struct error *err)
{
	const char *path = "stdio";

	/* -b sets a plain "true". */
	if (config && !config_is_leaf(config))
		path = config_get_default(config, "path", path);
	return bvm_create(&bvmcons_class, vm, BVMCONS_PORT, BVMCONS_SIGNATURE, path, out, err);
}
