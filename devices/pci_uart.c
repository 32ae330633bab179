/*
 * The PCI serial port: a 16550A (uart.c) whose eight registers are an I/O BAR and whose interrupt is INTx, of class 07/00
 * with the ids of a SIIG card that guests know, as bhyve has it. Left out: MSI, a memory BAR, more ports in one function.
 *
 * Keys: `path`, the console (backend/console/console.h), unset: nothing is connected; pcireg.* (bus/pci.h).
 */
#include <errno.h>

#include "bus/pci.h"
#include "devices/uart.h"
#include "vmm/device.h"
#include "vmm/vm.h"

#define BAR 0

struct pci_uart_state {
	uint8_t config[PCI_CONFIG_SIZE];
	struct uart_state uart;
};

struct pci_uart {
	struct device device;
	struct pci_uart_state state;
	struct pci_function fn;
	struct uart uart;
	bool opened;
};

static const struct device_class pci_uart_class;

static uint64_t bar_read(void *arg, uint64_t offset, unsigned size)
{
	struct pci_uart *port = arg;

	(void)size;
	return uart_read(&port->uart, (unsigned)offset);
}

static void bar_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_uart *port = arg;

	(void)size;
	uart_write(&port->uart, (unsigned)offset, (uint8_t)value);
}

static const struct io_ops bar_ops = {.sizes = IO_1, .read = bar_read, .write = bar_write};

static void set_irq(void *arg, bool level)
{
	struct pci_uart *port = arg;

	pci_intx_set(&port->fn, level);
}

static void pci_uart_destroy(struct device *device)
{
	struct pci_uart *port = (struct pci_uart *)device;

	pci_function_del(&port->fn);
	if (port->opened)
		uart_close(&port->uart);
	pci_function_destroy(&port->fn);
	device_free(device);
}

static void pci_uart_reset(struct device *device)
{
	struct pci_uart *port = (struct pci_uart *)device;

	pci_function_reset(&port->fn);
	uart_reset(&port->uart);
}

static void pci_uart_quiesce(struct device *device)
{
	uart_quiesce(&((struct pci_uart *)device)->uart);
}

static void pci_uart_resume(struct device *device)
{
	struct pci_uart *port = (struct pci_uart *)device;

	pci_function_resume(&port->fn);
	uart_resume(&port->uart);
}

static int set_up(struct pci_uart *port, struct config *config, struct error *err)
{
	struct pci_function *fn = &port->fn;
	struct pci_address addr;
	int rc = config_check_names(config, "device pcireg path", err);

	if (!rc)
		rc = pci_address_read(config, &addr, err);
	if (!rc)
		rc = pci_function_init(fn, &port->device, addr, NULL, port->state.config,
				       sizeof(port->state.config), err);
	if (rc)
		return rc;
	pci_set16(fn, PCI_VENDOR_ID, 0x131f);
	pci_set16(fn, PCI_DEVICE_ID, 0x2000);
	pci_set_class(fn, 0x07, 0x00, 0x02); /* serial controller, 16550 compatible */
	pci_add_bar(fn, BAR, PCI_BAR_IO, UART_REGISTERS, "uart", &bar_ops, port);
	pci_add_intx(fn);
	rc = pci_set_ids_from(fn, config, err);
	if (rc)
		return rc;
	port->uart.state = &port->state.uart;
	rc = uart_open(&port->uart, port->device.vm, &port->device.lock,
		       config_get_default(config, "path", "null"), set_irq, port, err);
	if (rc)
		return rc;
	port->opened = true;
	return pci_function_add(fn, err);
}

static int pci_uart_create(struct vm *vm, struct config *config, struct device **out,
			   struct error *err)
{
	struct pci_uart *port;
	char path[64];
	int rc;

	port = device_alloc(&pci_uart_class, vm, sizeof(*port), "%s",
			    config_path(config, path, sizeof(path)));
	if (!port)
		return error_set(err, ENOMEM, "out of memory");
	rc = set_up(port, config, err);
	if (rc) {
		pci_uart_destroy(&port->device);
		return rc;
	}
	pci_uart_reset(&port->device);
	*out = &port->device;
	return 0;
}

static bool pci_uart_check(const void *state)
{
	return uart_state_check(&((const struct pci_uart_state *)state)->uart);
}

static const struct state_field pci_uart_fields[] = {
	STATE_ARRAY(struct pci_uart_state, config),
	UART_FIELDS(struct pci_uart_state, uart.),
};

static const struct state_table pci_uart_table =
	STATE_TABLE("pci-uart", struct pci_uart_state, pci_uart_fields, 1, pci_uart_check);

static const struct device_class pci_uart_class = {
	.name = "uart",
	.help = "uart[,stdio|/TTY|file=PATH|tcp=[ADDR:]PORT|unix=PATH|pty|null]  16550A serial "
		"port on PCI",
	.kind = DEVICE_PCI,
	.config_key = "path",
	.create = pci_uart_create,
	.destroy = pci_uart_destroy,
	.reset = pci_uart_reset,
	.quiesce = pci_uart_quiesce,
	.resume = pci_uart_resume,
	.table = &pci_uart_table,
	.state_offset = offsetof(struct pci_uart, state),
};
DEVICE_REGISTER(pci_uart_class);
