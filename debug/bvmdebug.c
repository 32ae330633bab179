/*
 * bvmdebug (-g port): bhyve 2014's relay between a TCP client and the debugger stub in the guest, at port
 * 0x224. Keys: `port`, and `address` (127.0.0.1: the debugger owns the guest, so nobody from outside).
 */
#include <stdio.h>

#include "debug/bvm.h"

#define BVMDEBUG_PORT 0x224
#define BVMDEBUG_SIGNATURE ('B' << 8 | 'V')

static int bvmdebug_create(struct vm *vm, struct config *config, struct device **out,
			   struct error *err);

static const struct device_class bvmdebug_class = {
	.name = "bvmdebug",
	.help = "bvmdebug  relay of the guest's debugger stub to TCP, at port 0x224",
	.kind = DEVICE_CHIPSET,
	.create = bvmdebug_create,
	.destroy = bvm_destroy,
};
DEVICE_REGISTER(bvmdebug_class);

static int bvmdebug_create(struct vm *vm, struct config *config, struct device **out,
			   struct error *err)
{
	const char *address = config_get_default(config, "address", "127.0.0.1");
	char console[300];
	uint64_t port;
	int rc = config_get_u64(config, "port", 0, 0, 65535, &port, err);

	if (rc)
		return rc;
	snprintf(console, sizeof(console), "tcp=%.256s:%u", address, (unsigned)port);
	return bvm_create(&bvmdebug_class, vm, BVMDEBUG_PORT, BVMDEBUG_SIGNATURE, console, out,
			  err);
}
