/*
 * The byte port of bvmcons and bvmdebug. There is no state that a guest could see but the input and
 * output under way, which are the console's.
 *
 * The port has no way to say "wait": when the console is full the OUT waits for room, for as long as the
 * console takes something at least every STALL_NS; after that output is dropped until there is room
 * again, for a vCPU that waits cannot be paused.
 */
#include "debug/bvm.h"

#include <errno.h>
#include <time.h>

#include "backend/console/console.h"
#include "vmm/vm.h"

#define STALL_NS 500000000l
#define PORTS 4

struct bvm {
	struct device device;
	struct console *console;
	struct io_range range;
	uint16_t signature;
	pthread_cond_t writable;
	bool stalled; /* the console stood still: drop instead of waiting */
	bool closing;
};

static uint64_t bvm_read(void *arg, uint64_t offset, unsigned size)
{
	struct bvm *bvm = arg;
	uint8_t byte;

	if (offset == 0 && size == 2)
		return bvm->signature;
	if (offset == 0 && size == 4 && console_read(bvm->console, &byte, 1) == 1)
		return byte;
	return ~0ull;
}

static void bvm_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct bvm *bvm = arg;
	uint8_t byte = (uint8_t)value;
	struct timespec end;

	if (offset != 0 || size != 4)
		return;
	pthread_mutex_lock(&bvm->device.lock);
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += STALL_NS;
	if (end.tv_nsec >= 1000000000l) {
		end.tv_nsec -= 1000000000l;
		end.tv_sec++;
	}
	while (console_write(bvm->console, &byte, 1) == 0) {
		if (bvm->stalled || bvm->closing)
			break;
		if (pthread_cond_clockwait(&bvm->writable, &bvm->device.lock, CLOCK_MONOTONIC,
					   &end) == ETIMEDOUT) {
			bvm->stalled = true;
			log_guest(bvm->device.vm->log, LOG_WARN,
				  "%s: the console takes no output; it is dropped until it does",
				  bvm->device.name);
		}
	}
	pthread_mutex_unlock(&bvm->device.lock);
}

static const struct io_ops bvm_ops = {
	.sizes = IO_1 | IO_2 | IO_4, .read = bvm_read, .write = bvm_write};

static void on_writable(void *arg)
{
	struct bvm *bvm = arg;

	pthread_mutex_lock(&bvm->device.lock);
	bvm->stalled = false;
	pthread_cond_broadcast(&bvm->writable);
	pthread_mutex_unlock(&bvm->device.lock);
}

static void bvm_free(struct bvm *bvm)
{
	pthread_cond_destroy(&bvm->writable);
	device_free(&bvm->device);
}

void bvm_destroy(struct device *device)
{
	struct bvm *bvm = (struct bvm *)device;

	pthread_mutex_lock(&device->lock);
	bvm->closing = true;
	pthread_cond_broadcast(&bvm->writable);
	pthread_mutex_unlock(&device->lock);
	io_range_del(&device->vm->pio, &bvm->range);
	io_bus_synchronize(&device->vm->pio);
	console_close(bvm->console);
	bvm_free(bvm);
}

int bvm_create(const struct device_class *cls, struct vm *vm, uint16_t port, uint16_t signature,
	       const char *console, struct device **out, struct error *err)
{
	struct bvm *bvm = device_alloc(cls, vm, sizeof(*bvm), "%s", cls->name);
	struct console_events events = {.on_writable = on_writable, .arg = bvm};
	struct console_escape escape = {vm_quit, vm_command, vm};
	int rc;

	if (!bvm)
		return error_set(err, ENOMEM, "out of memory for %s", cls->name);
	bvm->signature = signature;
	bvm->range = (struct io_range){cls->name, port, PORTS, &bvm_ops, bvm};
	pthread_cond_init(&bvm->writable, NULL);
	rc = console_open(&bvm->console, console, vm->loop, vm->log, &events, &escape, err);
	if (rc) {
		error_prefix(err, "%s", cls->name);
		bvm_free(bvm);
		return rc;
	}
	rc = io_range_add(&vm->pio, &bvm->range, err);
	if (rc) {
		console_close(bvm->console);
		bvm_free(bvm);
		return rc;
	}
	*out = &bvm->device;
	return 0;
}
