#include "tests/unit/driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bus/pci.h"
#include "devices/virtio/virtio.h"

static unsigned rings(const struct driver *d)
{
	return d->queue * RINGS;
}

uint64_t pci_ecam(unsigned reg)
{
	return PCI_ECAM_BASE + (3 << 15) + reg;
}

void reg_write(struct driver *d, unsigned offset, unsigned size, uint64_t value)
{
	fixture_write(d->f, d->bar + offset, size, value);
}

uint64_t reg_read(struct driver *d, unsigned offset, unsigned size)
{
	return fixture_read(d->f, d->bar + offset, size);
}

void poke(struct driver *d, uint64_t gpa, const void *bytes, size_t len)
{
	assert_int_equal(memory_write(&d->f->vm.memory, gpa, bytes, len), 0);
}

void peek(struct driver *d, uint64_t gpa, void *bytes, size_t len)
{
	assert_int_equal(memory_read(&d->f->vm.memory, gpa, bytes, len), 0);
}

void descriptor(struct driver *d, uint64_t table, unsigned n, uint64_t addr, uint32_t len,
		uint16_t flags, uint16_t next)
{
	struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} desc = {addr, len, flags, next};

	poke(d, table + 16 * n, &desc, sizeof(desc));
}

void offer(struct driver *d, uint16_t head, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		poke(d, rings(d) + AVAIL + 4 + 2 * (d->avail[d->queue]++ % SIZE), &head, 2);
	poke(d, rings(d) + AVAIL + 2, &d->avail[d->queue], 2);
}

void notify(struct driver *d)
{
	reg_write(d, NOTIFY + 4 * d->queue, 2, d->queue);
}

bool is_broken(struct driver *d)
{
	return reg_read(d, STATUS, 1) & VIRTIO_STATUS_NEEDS_RESET;
}

uint32_t await(struct driver *d, unsigned n)
{
	uint32_t entry[2];
	uint16_t used = 0, wanted;

	wanted = d->used[d->queue] = (uint16_t)(d->used[d->queue] + n);
	for (unsigned ms = 0; ms < WAIT_MS; ms++) {
		peek(d, rings(d) + USED + 2, &used, 2);
		if (used == wanted || is_broken(d))
			break;
		usleep(1000);
	}
	assert_int_equal(used, wanted);
	peek(d, rings(d) + USED + 4 + 8 * ((wanted - 1) % SIZE), entry, 8);
	return entry[1];
}

void await_broken(struct driver *d)
{
	for (unsigned ms = 0; ms < WAIT_MS && !is_broken(d); ms++)
		usleep(1000);
	assert_true(is_broken(d));
}

void bring_up(struct driver *d, uint64_t features)
{
	const uint8_t zeros[4096] = {0};

	reg_write(d, STATUS, 1, 0);
	assert_int_equal(reg_read(d, STATUS, 1), 0);
	memset(d->avail, 0, sizeof(d->avail));
	memset(d->used, 0, sizeof(d->used));
	for (unsigned q = 0; q < d->queues; q++) {
		poke(d, AVAIL + q * RINGS, zeros, sizeof(zeros));
		poke(d, USED + q * RINGS, zeros, sizeof(zeros));
	}
	reg_write(d, STATUS, 1, 3);
	for (unsigned i = 0; i < 2; i++) {
		reg_write(d, 0x08, 4, i);
		reg_write(d, 0x0c, 4, features >> (32 * i) & UINT32_MAX);
	}
	reg_write(d, STATUS, 1, 11);
	for (unsigned q = 0; q < d->queues; q++) {
		reg_write(d, 0x16, 2, q);
		reg_write(d, 0x18, 2, SIZE);
		reg_write(d, 0x20, 4, DESC + q * RINGS);
		reg_write(d, 0x28, 4, AVAIL + q * RINGS);
		reg_write(d, 0x30, 4, USED + q * RINGS);
		reg_write(d, 0x1c, 2, 1);
	}
	reg_write(d, STATUS, 1, 15);
}

int driver_set_up(void **state, const char *name, const char *list, bool msix)
{
	struct driver *d = calloc(1, sizeof(*d));
	struct fixture *f = fixture_create();
	const struct device_class *cls = device_class_find(DEVICE_PCI, name);
	struct error err = {0};
	struct config *node;

	assert_non_null(d);
	d->f = f;
	d->queues = 1;
	d->config = f->vm.config = config_create();
	d->log = tmpfile();
	assert_non_null(d->log);
	log_init(&f->log, fileno(d->log), LOG_WARN);
	if (!msix)
		assert_int_equal(config_set(f->vm.config, "virtio_msix", "false", &err), 0);
	if (memory_create(&f->vm.memory, &f->vm, RAM, false, false, &err))
		fail_msg("%s", err.text);
	fixture_device(f, &pci_bus_class, NULL);
	node = config_make(f->vm.config, "pci.0.3.0", &err);
	if (list != NULL)
		assert_int_equal(config_set_list(node, list, cls->config_key, &err), 0);
	if (device_create(cls, &f->vm, node, &d->device, &err))
		fail_msg("%s", err.text);
	fixture_write(f, pci_ecam(PCI_COMMAND), 2, 7);
	d->bar = fixture_read(f, pci_ecam(PCI_BAR(4)), 4) & ~15ull;
	*state = d;
	return 0;
}

int driver_tear_down(void **state)
{
	struct driver *d = *state;
	struct memory memory = d->f->vm.memory;

	fixture_destroy(d->f);
	memory_destroy(&memory);
	config_destroy(d->config);
	if (d->image[0])
		unlink(d->image);
	fclose(d->log);
	free(d);
	return 0;
}
