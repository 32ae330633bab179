#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "bus/pci.h"
#include "tests/unit/tables_machine.h"

void tables_machine_set(struct tables_machine *m, const char *key, const char *value)
{
	struct error err = {0};

	if (config_set(m->vm->config, key, value, &err))
		fail_msg("%s", err.text);
}

struct device *tables_machine_add(struct tables_machine *m, const char *name, const char *place)
{
	const struct device_class *cls = device_class_find(DEVICE_PCI, name);
	char path[32];

	assert_non_null(cls);
	snprintf(path, sizeof(path), "pci.%s.device", place);
	tables_machine_set(m, path, name);
	snprintf(path, sizeof(path), "pci.%s", place);
	return fixture_device(m->f, cls, config_find(m->vm->config, path));
}

struct tables_machine *tables_machine_create(struct topology topology, uint64_t memory_size)
{
	struct tables_machine *m = calloc(1, sizeof(*m));
	struct vm *vm;

	assert_non_null(m);
	m->f = fixture_create();
	vm = m->vm = &m->f->vm;
	vm->config = config_create();
	assert_non_null(vm->config);
	vm->topology = topology;
	vm->tsc_hz = 2500000000;
	cpuid_add(&vm->cpuid, 1, 0, false,
		  (struct cpuid_regs){.eax = 0x00a20f10, .edx = 0x178bfbff});
	vm->memory.size = memory_size;
	vm->memory.low = memory_size < MEMORY_LOW_MAX ? memory_size : MEMORY_LOW_MAX;
	vm->memory.high = memory_size - vm->memory.low;
	fixture_device(m->f, &pci_bus_class, NULL);
	tables_machine_add(m, "hostbridge", "0.0.0");
	tables_machine_add(m, "lpc", "0.31.0");
	tables_machine_set(m, "lpc.com1.path", "stdio");
	return m;
}

void tables_machine_destroy(struct tables_machine *m)
{
	struct config *config = m->vm->config;

	fixture_destroy(m->f);
	config_destroy(config);
	free(m);
}

const uint8_t *tables_machine_at(const struct tables_machine *m, uint64_t gpa, size_t len)
{
	assert_in_range(gpa, TABLES_BASE, TABLES_END - 1);
	assert_in_range(len, 0, TABLES_END - gpa);
	return m->image + (gpa - TABLES_BASE);
}
