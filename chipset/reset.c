/*
 * Small registers of a PC's south bridge (Intel ICH9 data sheet 316972, section 13.7):
 *
 * 0xCF9, reset control: bit 2 going from 0 to 1 resets, with bit 1 a hard and without it a CPU-only
 * reset (INIT). 0x92, fast A20 and INIT: bit 0 going from 0 to 1 resets. 0x80, POST code: the last one
 * is kept and read back. 0x84 reads all ones and drops writes, as bhyve's.
 *
 * Either kind of reset resets the whole machine. Left out: masking of address line 20 (the bit of port
 * 0x92 is kept and read back; A20 is always on, as on CPUs that have no A20M pin) and the full
 * power cycle of 0xCF9 bit 3 (a reset is one).
 */
#include "chipset/reset.h"

#include <errno.h>

#include "bus/io.h"
#include "vmm/vm.h"

#define FAST_PORT 0x92
#define FAST_INIT 0x01
#define FAST_A20 0x02
#define POST_PORT 0x80
#define POST_STATUS_PORT 0x84
#define CONTROL_SYS_RST 0x02
#define CONTROL_RST_CPU 0x04
#define CONTROL_FULL_RST 0x08

struct reset_state {
	uint8_t control;
	uint8_t fast;
	uint8_t post_code;
};

struct reset {
	struct device device;
	struct reset_state state;
	struct io_range fast, post, post_status;
};

static const struct state_field reset_fields[] = {
	STATE(struct reset_state, control),
	STATE_AT(struct reset_state, fast, FAST_A20),
	/* What a firmware said last is worth most after it reset the machine. */
	STATE_OPT(struct reset_state, post_code, 0, STATE_KEEP),
};
static const struct state_table reset_table =
	STATE_TABLE("reset", struct reset_state, reset_fields, 1, NULL);

uint8_t reset_control_read(struct device *device)
{
	struct reset *reset = (struct reset *)device;
	uint8_t value;

	pthread_mutex_lock(&device->lock);
	value = reset->state.control;
	pthread_mutex_unlock(&device->lock);
	return value;
}

void reset_control_write(struct device *device, uint8_t value)
{
	struct reset *reset = (struct reset *)device;
	bool rises;

	pthread_mutex_lock(&device->lock);
	rises = ~reset->state.control & value & CONTROL_RST_CPU;
	reset->state.control = value & (CONTROL_SYS_RST | CONTROL_RST_CPU | CONTROL_FULL_RST);
	pthread_mutex_unlock(&device->lock);
	if (rises)
		vm_request(device->vm, VM_END_RESET);
}

uint8_t reset_post_code(struct device *device)
{
	struct reset *reset = (struct reset *)device;
	uint8_t value;

	pthread_mutex_lock(&device->lock);
	value = reset->state.post_code;
	pthread_mutex_unlock(&device->lock);
	return value;
}

static uint64_t fast_read(void *arg, uint64_t offset, unsigned size)
{
	struct reset *reset = arg;
	uint8_t value;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&reset->device.lock);
	value = reset->state.fast;
	pthread_mutex_unlock(&reset->device.lock);
	return value;
}

static void fast_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct reset *reset = arg;
	bool rises;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&reset->device.lock);
	rises = ~reset->state.fast & value & FAST_INIT;
	reset->state.fast = value & (FAST_INIT | FAST_A20);
	pthread_mutex_unlock(&reset->device.lock);
	if (rises)
		vm_request(reset->device.vm, VM_END_RESET);
}

static uint64_t post_read(void *arg, uint64_t offset, unsigned size)
{
	(void)offset;
	(void)size;
	return reset_post_code(arg);
}

static void post_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct reset *reset = arg;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&reset->device.lock);
	reset->state.post_code = (uint8_t)value;
	pthread_mutex_unlock(&reset->device.lock);
}

static uint64_t post_status_read(void *arg, uint64_t offset, unsigned size)
{
	(void)arg;
	(void)offset;
	(void)size;
	return 0xff;
}

static const struct io_ops fast_ops = {IO_1, fast_read, fast_write};
static const struct io_ops post_ops = {IO_1, post_read, post_write};
static const struct io_ops post_status_ops = {IO_1, post_status_read, NULL};

static void reset_destroy(struct device *device)
{
	struct reset *reset = (struct reset *)device;
	struct io_bus *pio = &device->vm->pio;

	io_range_del(pio, &reset->fast);
	io_range_del(pio, &reset->post);
	io_range_del(pio, &reset->post_status);
	io_bus_synchronize(pio);
	device_free(device);
}

static int reset_create(struct vm *vm, struct config *config, struct device **out,
			struct error *err)
{
	struct reset *reset = device_alloc(&reset_class, vm, sizeof(*reset), "reset");
	int rc;

	(void)config;
	if (!reset)
		return error_set(err, ENOMEM, "reset: out of memory");
	reset->fast = (struct io_range){"fast A20", FAST_PORT, 1, &fast_ops, reset};
	reset->post = (struct io_range){"POST code", POST_PORT, 1, &post_ops, reset};
	reset->post_status =
		(struct io_range){"POST status", POST_STATUS_PORT, 1, &post_status_ops, reset};
	rc = io_range_add(&vm->pio, &reset->fast, err);
	if (!rc)
		rc = io_range_add(&vm->pio, &reset->post, err);
	if (!rc)
		rc = io_range_add(&vm->pio, &reset->post_status, err);
	if (rc) {
		reset_destroy(&reset->device);
		return rc;
	}
	*out = &reset->device;
	return 0;
}

const struct device_class reset_class = {
	.name = "reset",
	.help = "reset: reset control, fast A20 and POST code ports",
	.kind = DEVICE_CHIPSET,
	.create = reset_create,
	.destroy = reset_destroy,
	.table = &reset_table,
	.state_offset = offsetof(struct reset, state),
};
DEVICE_REGISTER(reset_class);
