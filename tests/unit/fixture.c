#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/state.h"
#include "tests/unit/fixture.h"

#define DEVICES_MAX 16

static struct fixture *fixture_of(struct vm *vm)
{
	return (struct fixture *)((char *)vm - offsetof(struct fixture, vm));
}

static void stub_extint_changed(struct vm *vm)
{
	fixture_of(vm)->extint_changes++;
}

static int stub_msi_send(struct vm *vm, const struct msi *msi)
{
	struct fixture *f = fixture_of(vm);

	if (f->msis < FIXTURE_MSIS)
		f->msi[f->msis] = *msi;
	f->msis++;
	return 0;
}

static void stub_ioapic_route(struct vm *vm, unsigned pin, const struct msi *msi, bool level)
{
	struct fixture *f = fixture_of(vm);

	assert_in_range(pin, 0, IOAPIC_PINS - 1);
	f->routes++;
	f->route[pin].present = msi != NULL;
	f->route[pin].level = level;
	if (msi)
		f->route[pin].msi = *msi;
}

static bool same_doorbell(const struct doorbell *a, const struct doorbell *b)
{
	return a->addr == b->addr && a->port == b->port && a->size == b->size &&
	       a->match == b->match && a->value == b->value && a->fd == b->fd;
}

static int stub_doorbell(struct vm *vm, const struct doorbell *bell, bool on)
{
	struct fixture *f = fixture_of(vm);

	if (on && f->doorbells == FIXTURE_DOORBELLS)
		return -ENOSPC;
	if (on) {
		f->doorbell[f->doorbells++] = *bell;
		return 0;
	}
	for (unsigned i = 0; i < f->doorbells; i++) {
		if (!same_doorbell(&f->doorbell[i], bell))
			continue;
		f->doorbell[i] = f->doorbell[--f->doorbells];
		return 0;
	}
	return -ENOENT;
}

bool fixture_ring(struct fixture *f, bool port, uint64_t addr, unsigned size, uint64_t value)
{
	const uint64_t one = 1;

	for (unsigned i = 0; i < f->doorbells; i++) {
		const struct doorbell *bell = &f->doorbell[i];

		if (bell->port != port || bell->addr != addr ||
		    (bell->size && bell->size != size) || (bell->match && bell->value != value))
			continue;
		assert_int_equal(write(bell->fd, &one, sizeof(one)), sizeof(one));
		return true;
	}
	return false;
}

/* What devices call instead of vm_request() (the linker's --wrap): there is no run loop here. */
void __wrap_vm_request(struct vm *vm, enum vm_end end);
void __wrap_vm_request(struct vm *vm, enum vm_end end)
{
	struct fixture *f = fixture_of(vm);

	if (f->end == VM_END_NONE)
		f->end = end;
}

static const struct engine engine_stub = {
	.name = "stub",
	.extint_changed = stub_extint_changed,
	.msi_send = stub_msi_send,
	.ioapic_route = stub_ioapic_route,
	.doorbell = stub_doorbell,
};

static void ok(int rc, const struct error *err)
{
	if (rc)
		fail_msg("%d: %s", rc, err->text);
}

struct fixture *fixture_create(void)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct error err = {0};
	struct vm *vm;

	assert_non_null(f);
	vm = &f->vm;
	f->end = VM_END_NONE;
	strcpy(vm->name, "test");
	log_init(&f->log, STDERR_FILENO, LOG_ERROR);
	vm->log = &f->log;
	vm->engine = &engine_stub;
	vm->topology = (struct topology){.cpus = 1, .sockets = 1, .cores = 1, .threads = 1};
	ok(loop_create(&vm->loop, &err), &err);
	spin_room_init(&vm->spin_room);
	ok(vclock_create(&vm->clock, vm->loop, &err), &err);
	assert_int_equal(io_bus_init(&vm->pio, "port", 0xffff), 0);
	assert_int_equal(io_bus_init(&vm->mmio, "memory", (1ull << 52) - 1), 0);
	irq_router_init(&vm->irq);
	io_thread_enter();
	return f;
}

void fixture_destroy(struct fixture *f)
{
	struct vm *vm = &f->vm;

	while (vm->devices) {
		struct device *last = vm->devices;

		while (last->next)
			last = last->next;
		device_destroy(last);
	}
	io_thread_leave();
	irq_router_destroy(&vm->irq);
	io_bus_destroy(&vm->mmio);
	io_bus_destroy(&vm->pio);
	vclock_destroy(vm->clock);
	loop_destroy(vm->loop);
	free(f);
}

struct device *fixture_device(struct fixture *f, const struct device_class *cls,
			      struct config *config)
{
	struct device *device = NULL;
	struct error err = {0};

	ok(device_create(cls, &f->vm, config, &device, &err), &err);
	return device;
}

static void line_changed(void *arg, unsigned gsi, bool level)
{
	struct fixture *f = arg;

	if (level)
		f->rises[gsi]++;
	else
		f->falls[gsi]++;
}

void fixture_watch_lines(struct fixture *f)
{
	irq_router_add_sink(&f->vm.irq, line_changed, f);
}

void fixture_forget(struct fixture *f)
{
	f->msis = 0;
	f->routes = 0;
	f->extint_changes = 0;
	memset(f->msi, 0, sizeof(f->msi));
	memset(f->rises, 0, sizeof(f->rises));
	memset(f->falls, 0, sizeof(f->falls));
}

void fixture_advance(struct fixture *f, uint64_t ns)
{
	vclock_advance(f->vm.clock, vclock_now(f->vm.clock) + ns);
}

void fixture_late(struct fixture *f, uint64_t ns)
{
	vclock_set(f->vm.clock, vclock_now(f->vm.clock) + ns);
}

uint64_t fixture_in(struct fixture *f, uint16_t port, unsigned size)
{
	uint64_t value = 0;

	io_bus_read(&f->vm.pio, port, size, &value);
	return value;
}

void fixture_out(struct fixture *f, uint16_t port, unsigned size, uint32_t value)
{
	io_bus_write(&f->vm.pio, port, size, value);
}

uint64_t fixture_read(struct fixture *f, uint64_t gpa, unsigned size)
{
	uint64_t value = 0;

	io_bus_read(&f->vm.mmio, gpa, size, &value);
	return value;
}

void fixture_write(struct fixture *f, uint64_t gpa, unsigned size, uint64_t value)
{
	io_bus_write(&f->vm.mmio, gpa, size, value);
}

uint8_t fixture_intack(struct fixture *f)
{
	assert_non_null(f->vm.extint.acknowledge);
	return f->vm.extint.acknowledge(f->vm.extint.arg);
}

void fixture_save_restore(struct fixture *f)
{
	uint8_t *bytes[DEVICES_MAX] = {0};
	size_t len[DEVICES_MAX] = {0};
	struct error err = {0};
	unsigned n = 0;

	devices_quiesce(&f->vm);
	for (struct device *d = f->vm.devices; d; d = d->next, n++) {
		assert_in_range(n, 0, DEVICES_MAX - 1);
		assert_int_equal(device_save(d, &bytes[n], &len[n]), 0);
	}
	devices_reset(&f->vm);
	n = 0;
	for (struct device *d = f->vm.devices; d; d = d->next, n++) {
		ok(device_restore(d, bytes[n], len[n], &err), &err);
		free(bytes[n]);
	}
	devices_resume(&f->vm);
}

uint64_t fixture_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 0x2545f4914f6cdd1dull;
}

/* Values that hit more than uniformly random ones do. */
static uint64_t random_value(uint64_t *seed)
{
	uint64_t r = fixture_random(seed);

	switch (r >> 61) {
	case 0:
		return 0;
	case 1:
		return ~0ull;
	case 2:
		return 1ull << (r & 63);
	case 3:
		return r & 0xff;
	default:
		return r;
	}
}

static void fuzz(struct fixture *f, struct io_bus *bus, uint64_t base, uint64_t size,
		 unsigned rounds, uint64_t seed)
{
	for (unsigned i = 0; i < rounds; i++) {
		uint64_t addr = base + fixture_random(&seed) % (size + 8);
		unsigned width = 1 + (unsigned)(fixture_random(&seed) % 8);
		uint64_t value;

		if (addr >= base + 4 && !(fixture_random(&seed) & 3))
			addr -= 4;
		if (fixture_random(&seed) & 1)
			io_bus_write(bus, addr, width, random_value(&seed));
		else
			io_bus_read(bus, addr, width, &value);
		if (!(fixture_random(&seed) & 15))
			fixture_advance(f, fixture_random(&seed) % (10 * NS_PER_MS));
		if (!(fixture_random(&seed) & 255))
			fixture_late(f, fixture_random(&seed) % NS_PER_SEC);
		if (f->vm.extint.acknowledge && f->vm.extint.level && !(fixture_random(&seed) & 3))
			fixture_intack(f);
	}
}

void fixture_fuzz_pio(struct fixture *f, uint16_t base, unsigned size, unsigned rounds,
		      uint64_t seed)
{
	fuzz(f, &f->vm.pio, base, size, rounds, seed);
}

void fixture_fuzz_mmio(struct fixture *f, uint64_t base, uint64_t size, unsigned rounds,
		       uint64_t seed)
{
	fuzz(f, &f->vm.mmio, base, size, rounds, seed);
}

/* Changed bytes of a stream; most are refused. */
static bool restore_mangled(struct device *device, uint64_t *seed)
{
	struct error err = {0};
	uint8_t *bytes;
	size_t len;
	bool taken;

	assert_int_equal(device_save(device, &bytes, &len), 0);
	for (unsigned n = 1 + (unsigned)(fixture_random(seed) % 8); n; n--)
		bytes[fixture_random(seed) % len] = (uint8_t)random_value(seed);
	taken = device_restore(device, bytes, len, &err) == 0;
	free(bytes);
	return taken;
}

/* A well-formed stream of changed values: only check() stands between them and the device. */
static bool restore_values(struct device *device, uint64_t *seed)
{
	const struct state_table *table = device->cls->table;
	uint8_t *copy = malloc(table->size);
	bool taken;

	assert_non_null(copy);
	memcpy(copy, device_state(device), table->size);
	for (unsigned n = 1 + (unsigned)(fixture_random(seed) % 4); n; n--) {
		const struct state_field *field =
			&table->fields[fixture_random(seed) % table->nfields];
		uint32_t element = (uint32_t)(fixture_random(seed) % field->count);
		uint64_t value = random_value(seed);

		if (field->is_bool)
			value &= 1;
		memcpy(copy + field->offset + element * field->size, &value, field->size);
	}
	taken = !table->check || table->check(copy);
	if (taken)
		memcpy(device_state(device), copy, table->size);
	free(copy);
	return taken;
}

unsigned fixture_fuzz_state(struct fixture *f, struct device *device, unsigned rounds,
			    uint64_t seed)
{
	unsigned taken = 0;

	for (unsigned i = 0; i < rounds; i++) {
		devices_quiesce(&f->vm);
		if (i & 1)
			taken += restore_mangled(device, &seed);
		else
			taken += restore_values(device, &seed);
		devices_resume(&f->vm);
		fixture_advance(f, fixture_random(&seed) % (5 * NS_PER_MS));
	}
	return taken;
}
