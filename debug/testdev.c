/*
 * What kvm-unit-tests expect of the machine they run on: QEMU's pc-testdev and isa-debug-exit at its
 * usual place (0xF4, 4 bytes), written against their use in that suite (lib/x86/fwcfg.c, x86/emulator.c,
 * x86/ioapic.c, lib/x86/isr.c).
 *
 * The register at 0xE0 and 0xE8 is one; a string or wide access to 0xE8 is cut into bytes on the bus,
 * which is what the suite looks at. A flush writes nothing: it makes the engine forget what it cached of
 * the page, and the host's page tables drop it, which a KVM engine hears of.
 */
#include "debug/testdev.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "bus/io.h"
#include "bus/irq.h"
#include "vmm/vm.h"

struct testdev_state {
	uint32_t reg;
	bool level[IRQ_LINES];
	uint8_t memory[TESTDEV_MEMORY_SIZE];
};

enum { RANGE_REGISTER, RANGE_FLUSH, RANGE_BYTES, RANGE_EXIT, RANGE_IRQ, PIO_RANGES };

struct testdev {
	struct device device;
	struct testdev_state state;
	struct irq_source source[IRQ_LINES];
	struct io_range pio[PIO_RANGES];
	struct io_range mmio;
};

static const struct state_field testdev_fields[] = {
	STATE(struct testdev_state, reg),
	STATE_ARRAY(struct testdev_state, level),
	STATE_ARRAY(struct testdev_state, memory),
};
static const struct state_table testdev_table =
	STATE_TABLE("pc-testdev", struct testdev_state, testdev_fields, 1, NULL);

static uint64_t register_read(void *arg, uint64_t offset, unsigned size)
{
	struct testdev *dev = arg;
	uint32_t reg;

	pthread_mutex_lock(&dev->device.lock);
	reg = dev->state.reg;
	pthread_mutex_unlock(&dev->device.lock);
	return reg >> (8 * offset) & ((1ull << (8 * size)) - 1);
}

static void register_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct testdev *dev = arg;
	uint64_t mask = ((1ull << (8 * size)) - 1) << (8 * offset);

	pthread_mutex_lock(&dev->device.lock);
	dev->state.reg = (uint32_t)((dev->state.reg & ~mask) | (value << (8 * offset) & mask));
	pthread_mutex_unlock(&dev->device.lock);
}

static void flush_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct testdev *dev = arg;
	struct memory *memory = &dev->device.vm->memory;
	uint64_t gpa = value & ~(PAGE_SIZE - 1);
	void *page;

	(void)offset;
	(void)size;
	page = memory_write_begin(memory, gpa, PAGE_SIZE);
	if (!page)
		return;
	/* RAM is a shared mapping: its bytes stay in the memfd. Refused for wired memory, which then stays
	 * mapped: the page is only cached for longer. */
	(void)madvise(page, PAGE_SIZE, MADV_DONTNEED);
	memory_write_end(memory, gpa, PAGE_SIZE);
}

static uint64_t exit_read(void *arg, uint64_t offset, unsigned size)
{
	(void)arg;
	(void)offset;
	(void)size;
	return 0;
}

static void exit_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct testdev *dev = arg;

	(void)offset;
	(void)size;
	vm_request_status(dev->device.vm, (uint8_t)(value << 1 | 1));
}

static void irq_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct testdev *dev = arg;

	(void)size;
	pthread_mutex_lock(&dev->device.lock);
	dev->state.level[offset] = value != 0;
	irq_source_set(&dev->source[offset], value != 0);
	pthread_mutex_unlock(&dev->device.lock);
}

static uint64_t memory_read_scratch(void *arg, uint64_t offset, unsigned size)
{
	struct testdev *dev = arg;
	uint64_t value = 0;

	pthread_mutex_lock(&dev->device.lock);
	memcpy(&value, &dev->state.memory[offset], size);
	pthread_mutex_unlock(&dev->device.lock);
	return value;
}

static void memory_write_scratch(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct testdev *dev = arg;

	pthread_mutex_lock(&dev->device.lock);
	memcpy(&dev->state.memory[offset], &value, size);
	pthread_mutex_unlock(&dev->device.lock);
}

static const struct io_ops register_ops = {IO_1 | IO_2 | IO_4, register_read, register_write};
static const struct io_ops bytes_ops = {IO_1, register_read, register_write};
static const struct io_ops flush_ops = {IO_4, NULL, flush_write};
static const struct io_ops exit_ops = {IO_1 | IO_2 | IO_4, exit_read, exit_write};
static const struct io_ops irq_ops = {IO_1, NULL, irq_write};
static const struct io_ops memory_ops = {IO_1 | IO_2 | IO_4 | IO_8, memory_read_scratch,
					 memory_write_scratch};

/* Lines follow the state: all low after a reset, as saved after a restore. */
static void testdev_set_lines(struct device *device)
{
	struct testdev *dev = (struct testdev *)device;

	pthread_mutex_lock(&device->lock);
	for (unsigned n = 0; n < IRQ_LINES; n++)
		irq_source_set(&dev->source[n], dev->state.level[n]);
	pthread_mutex_unlock(&device->lock);
}

static void testdev_destroy(struct device *device)
{
	struct testdev *dev = (struct testdev *)device;
	struct vm *vm = device->vm;

	for (unsigned n = 0; n < PIO_RANGES; n++)
		io_range_del(&vm->pio, &dev->pio[n]);
	io_range_del(&vm->mmio, &dev->mmio);
	io_bus_synchronize(&vm->pio);
	io_bus_synchronize(&vm->mmio);
	for (unsigned n = 0; n < IRQ_LINES; n++)
		irq_source_set(&dev->source[n], false);
	device_free(device);
}

static int testdev_create(struct vm *vm, struct config *config, struct device **out,
			  struct error *err)
{
	struct testdev *dev = device_alloc(&testdev_class, vm, sizeof(*dev), "pc-testdev");
	int rc = 0;

	(void)config;
	if (!dev)
		return error_set(err, ENOMEM, "pc-testdev: out of memory");
	for (unsigned n = 0; n < IRQ_LINES; n++)
		irq_source_init(&dev->source[n], &vm->irq, irq_isa_gsi(n));
	dev->pio[RANGE_REGISTER] = (struct io_range){"pc-testdev register", TESTDEV_REGISTER_PORT,
						     4, &register_ops, dev};
	dev->pio[RANGE_FLUSH] =
		(struct io_range){"pc-testdev flush", TESTDEV_FLUSH_PORT, 4, &flush_ops, dev};
	dev->pio[RANGE_BYTES] =
		(struct io_range){"pc-testdev bytes", TESTDEV_BYTES_PORT, 4, &bytes_ops, dev};
	dev->pio[RANGE_EXIT] =
		(struct io_range){"pc-testdev exit", TESTDEV_EXIT_PORT, 4, &exit_ops, dev};
	dev->pio[RANGE_IRQ] =
		(struct io_range){"pc-testdev irq", TESTDEV_IRQ_PORT, IRQ_LINES, &irq_ops, dev};
	dev->mmio = (struct io_range){"pc-testdev memory", TESTDEV_MEMORY, TESTDEV_MEMORY_SIZE,
				      &memory_ops, dev};
	for (unsigned n = 0; n < PIO_RANGES && !rc; n++)
		rc = io_range_add(&vm->pio, &dev->pio[n], err);
	if (!rc)
		rc = io_range_add(&vm->mmio, &dev->mmio, err);
	if (rc) {
		testdev_destroy(&dev->device);
		return rc;
	}
	*out = &dev->device;
	return 0;
}

const struct device_class testdev_class = {
	.name = "pc-testdev",
	.help = "pc-testdev: the test device that kvm-unit-tests use, exit port 0xf4 included",
	.kind = DEVICE_LPC,
	.create = testdev_create,
	.destroy = testdev_destroy,
	.reset = testdev_set_lines,
	.resume = testdev_set_lines,
	.table = &testdev_table,
	.state_offset = offsetof(struct testdev, state),
};
DEVICE_REGISTER(testdev_class);
