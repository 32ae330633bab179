/*
 * The PC's serial ports COM1 to COM4: 16550A UARTs (uart.c says what there is of them and what is left out) at the
 * ports and ISA interrupts that every PC has them at. COM1 and COM3 share IRQ 4, COM2 and COM4 IRQ 3.
 *
 * Key `path`: the console (backend/console/console.h); unset: nothing is connected.
 */
#include <errno.h>
#include <stddef.h>

#include "devices/uart.h"
#include "vmm/device.h"
#include "vmm/vm.h"

struct com {
	struct device device;
	struct uart_state state;
	struct uart uart;
	struct irq_source irq;
	struct io_range range;
};

struct com_place {
	const char *name;
	uint16_t port;
	uint8_t irq;
};

static uint64_t com_read(void *arg, uint64_t offset, unsigned size)
{
	struct com *com = arg;

	(void)size;
	return uart_read(&com->uart, (unsigned)offset);
}

static void com_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct com *com = arg;

	(void)size;
	uart_write(&com->uart, (unsigned)offset, (uint8_t)value);
}

static const struct io_ops com_ops = {.sizes = IO_1, .read = com_read, .write = com_write};

static void com_set_irq(void *arg, bool level)
{
	struct com *com = arg;

	irq_source_set(&com->irq, level);
}

static void com_destroy(struct device *device)
{
	struct com *com = (struct com *)device;

	io_range_del(&device->vm->pio, &com->range);
	io_bus_synchronize(&device->vm->pio);
	uart_close(&com->uart);
	irq_source_set(&com->irq, false);
	device_free(device);
}

static void com_reset(struct device *device)
{
	uart_reset(&((struct com *)device)->uart);
}

static void com_quiesce(struct device *device)
{
	uart_quiesce(&((struct com *)device)->uart);
}

static void com_resume(struct device *device)
{
	uart_resume(&((struct com *)device)->uart);
}

static int com_create(const struct device_class *cls, const struct com_place *place, struct vm *vm,
		      struct config *config, struct device **out, struct error *err)
{
	const char *path = config ? config_get(config, "path") : NULL;
	struct com *com = device_alloc(cls, vm, sizeof(*com), "uart.%s", place->name);
	int rc;

	if (!com)
		return error_set(err, ENOMEM, "out of memory for %s", place->name);
	irq_source_init(&com->irq, &vm->irq, irq_isa_gsi(place->irq));
	com->uart.state = &com->state;
	rc = uart_open(&com->uart, vm, &com->device.lock, path ? path : "null", com_set_irq, com,
		       err);
	if (rc) {
		error_prefix(err, "%s", place->name);
		device_free(&com->device);
		return rc;
	}
	com->range = (struct io_range){place->name, place->port, UART_REGISTERS, &com_ops, com};
	rc = io_range_add(&vm->pio, &com->range, err);
	if (rc) {
		uart_close(&com->uart);
		device_free(&com->device);
		return rc;
	}
	*out = &com->device;
	return 0;
}

#define COM_PORT(n, port, irq)                                                                  \
	static const struct com_place com##n##_place = {"com" #n, port, irq};                   \
	static int com##n##_create(struct vm *vm, struct config *config, struct device **out,   \
				   struct error *err);                                          \
	static const struct device_class com##n##_class = {                                     \
		.name = "com" #n,                                                               \
		.help = "com" #n "[,stdio|/TTY|file=PATH|tcp=[ADDR:]PORT|unix=PATH|pty|null]  " \
			"16550A serial port at " #port ", IRQ " #irq,                           \
		.kind = DEVICE_LPC,                                                             \
		.config_key = "path",                                                           \
		.create = com##n##_create,                                                      \
		.destroy = com_destroy,                                                         \
		.reset = com_reset,                                                             \
		.quiesce = com_quiesce,                                                         \
		.resume = com_resume,                                                           \
		.table = &uart_table,                                                           \
		.state_offset = offsetof(struct com, state),                                    \
	};                                                                                      \
	static int com##n##_create(struct vm *vm, struct config *config, struct device **out,   \
				   struct error *err)                                           \
	{                                                                                       \
		return com_create(&com##n##_class, &com##n##_place, vm, config, out, err);      \
	}                                                                                       \
	DEVICE_REGISTER(com##n##_class)

COM_PORT(1, 0x3f8, 4);
COM_PORT(2, 0x2f8, 3);
COM_PORT(3, 0x3e8, 4);
COM_PORT(4, 0x2e8, 3);
