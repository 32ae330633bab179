/*
 * Address spaces of registers: port I/O and MMIO are two instances of the same bus.
 *
 * A range declares which access sizes its handlers take. Other accesses are adapted as hardware does:
 * wider ones are cut into the widest declared size, lowest address first; a narrower read reads the
 * aligned unit around it and takes its part; a narrower write is dropped. An access that reaches over the
 * end of a range is done byte by byte, each byte where it belongs. Unclaimed reads give all ones,
 * unclaimed writes are dropped. Bytes beyond the limit of the bus are unclaimed.
 *
 * Look-up takes no lock (RCU). Ranges come and go while vCPUs run; a handler may add and remove ranges,
 * its own included.
 */
#ifndef BUS_IO_H
#define BUS_IO_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define IO_1 1u
#define IO_2 2u
#define IO_4 4u
#define IO_8 8u

struct io_ops {
	unsigned sizes; /* IO_1 | IO_2 ... */
	/* offset is from the range's base and inside it, size is one of `sizes`; they may not be aligned.
	 * A range without read gives all ones, one without write drops. */
	uint64_t (*read)(void *arg, uint64_t offset, unsigned size);
	void (*write)(void *arg, uint64_t offset, unsigned size, uint64_t value);
};

/* Owned by the device. base and size are unchanged while it is on the bus; the rest and the memory
 * itself until io_bus_synchronize() after that. */
struct io_range {
	const char *name; /* for messages */
	uint64_t base, size;
	const struct io_ops *ops;
	void *arg;
};

struct io_bus {
	const char *name;  /* "port", "memory" */
	uint64_t limit;    /* the highest address */
	pthread_mutex_t lock;        /* writers */
	struct io_table *table;      /* RCU; sorted by base */
	_Atomic uint64_t unclaimed;  /* accesses that met no range */
};

int io_bus_init(struct io_bus *bus, const char *name, uint64_t limit);
void io_bus_destroy(struct io_bus *bus);

/* -EEXIST with text if it overlaps another range, -EINVAL if it is empty or wraps. */
int io_range_add(struct io_bus *bus, const struct io_range *range, struct error *err);
/* Afterwards no new access reaches it; one under way in another thread may still be inside its handler
 * until io_bus_synchronize(). No-op if it is not there. */
void io_range_del(struct io_bus *bus, const struct io_range *range);
/* Waits until every access that began before has ended. Not from a handler, not under a device lock. */
void io_bus_synchronize(struct io_bus *bus);

/* size 1 to 8. True if any range claimed any byte of it; *value is filled either way. */
bool io_bus_read(struct io_bus *bus, uint64_t addr, unsigned size, uint64_t *value);
bool io_bus_write(struct io_bus *bus, uint64_t addr, unsigned size, uint64_t value);

/* Every thread that calls io_bus_read/write registers once (RCU read side) and before it ends undoes it. */
void io_thread_enter(void);
void io_thread_leave(void);

#endif
