/*
 * A machine for tests of the firmware's tables: the fixture's buses with a host bridge and an LPC bridge,
 * and sizes that are only told, with no memory behind them.
 */
#ifndef TESTS_UNIT_TABLES_MACHINE_H
#define TESTS_UNIT_TABLES_MACHINE_H

#include "tables/tables.h"
#include "tests/unit/fixture.h"

struct tables_machine {
	struct fixture *f;
	struct vm *vm;
	uint8_t image[TABLES_END - TABLES_BASE];
	struct tables_layout layout;
};

struct tables_machine *tables_machine_create(struct topology topology, uint64_t memory_size);
void tables_machine_destroy(struct tables_machine *m);
/* Sets a key, which must be possible. */
void tables_machine_set(struct tables_machine *m, const char *key, const char *value);
/* A PCI device of a class by name at "BUS.SLOT.FUNCTION". */
struct device *tables_machine_add(struct tables_machine *m, const char *name, const char *place);
/* What lies at a GPA in the image; the test ends if it is not in it. */
const uint8_t *tables_machine_at(const struct tables_machine *m, uint64_t gpa, size_t len);

static inline uint64_t le(const uint8_t *bytes, unsigned len)
{
	uint64_t value = 0;

	while (len--)
		value = value << 8 | bytes[len];
	return value;
}

#endif
