/*
 * A driver of our own for virtio devices, good or hostile, on a machine without CPUs (fixture.h): it speaks the modern
 * interface and puts descriptors where the test says. What fails, fails the test.
 */
#ifndef TESTS_UNIT_DRIVER_H
#define TESTS_UNIT_DRIVER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "tests/unit/fixture.h"

#define RAM (4ull << 20)
/* Of the queue that d->queue names; that of queue n is n * RINGS further on. */
#define DESC 0x10000u
#define AVAIL 0x11000u
#define USED 0x12000u
#define RINGS 0x3000u
#define BUFFER 0x200000u
#define SIZE 64u
#define WAIT_MS 20000

#define COMMON 0x0000
#define CONFIG 0x2000
#define NOTIFY 0x3000
#define STATUS 0x14

struct driver {
	struct fixture *f;
	struct device *device;
	struct config *config;
	char image[64];
	uint64_t bar;
	unsigned queue;	 /* the one that offer(), notify() and await() are about */
	unsigned queues; /* how many bring_up() enables: 1 */
	uint16_t avail[8], used[8];
	FILE *log; /* what the device says to the user */
};

uint64_t pci_ecam(unsigned reg); /* of the device's function, 0:3:0 */
void reg_write(struct driver *d, unsigned offset, unsigned size, uint64_t value);
uint64_t reg_read(struct driver *d, unsigned offset, unsigned size);
void poke(struct driver *d, uint64_t gpa, const void *bytes, size_t len);
void peek(struct driver *d, uint64_t gpa, void *bytes, size_t len);
void descriptor(struct driver *d, uint64_t table, unsigned n, uint64_t addr, uint32_t len,
		uint16_t flags, uint16_t next);
/* Makes `n` entries available, all of them chain `head`. */
void offer(struct driver *d, uint16_t head, unsigned n);
void notify(struct driver *d);
bool is_broken(struct driver *d);
/* Until the device has used `n` more chains; the length of the last one. */
uint32_t await(struct driver *d, unsigned n);
void await_broken(struct driver *d);
/* Reset, features, queues, DRIVER_OK. */
void bring_up(struct driver *d, uint64_t features);

/* A device of that name with what `list` says, as behind -s 3,NAME,; MSI instead of MSI-X as with -W; for cmocka. */
int driver_set_up(void **state, const char *name, const char *list, bool msix);
int driver_tear_down(void **state);

#endif
