/*
 * A virtual machine for unit tests of devices: buses, interrupt lines, a loop and a virtual clock, but
 * no vCPU, no guest memory and no engine. The clock is paused and moves only when a test says so, thus
 * every test is deterministic. What devices tell the engine is recorded.
 *
 * Tests program devices by the buses, as a driver would. One thread; failures end the test (cmocka).
 */
#ifndef TESTS_UNIT_FIXTURE_H
#define TESTS_UNIT_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/device.h"
#include "vmm/vm.h"

#define FIXTURE_MSIS 256
#define FIXTURE_DOORBELLS 64
#define NS_PER_MS 1000000ull
#define NS_PER_US 1000ull

struct fixture {
	struct vm vm;
	struct log log;
	/* what was told to the engine */
	struct msi msi[FIXTURE_MSIS]; /* the first FIXTURE_MSIS of them */
	unsigned msis;		      /* how many, since fixture_forget() */
	struct {
		bool present, level;
		struct msi msi;
	} route[IOAPIC_PINS];
	struct doorbell doorbell[FIXTURE_DOORBELLS]; /* those that are on */
	unsigned doorbells;
	unsigned routes;	 /* calls of ioapic_route */
	unsigned extint_changes; /* calls of extint_changed */
	/* changes of the interrupt lines, seen by a sink of the fixture's; see fixture_watch_lines() */
	unsigned rises[IRQ_LINES], falls[IRQ_LINES];
	/* how the VM was asked to end; VM_END_NONE if it was not */
	enum vm_end end;
};

struct fixture *fixture_create(void);
/* Destroys the devices too, last first. */
void fixture_destroy(struct fixture *f);

/* A device of a class, in its reset state; `config` may be NULL. */
struct device *fixture_device(struct fixture *f, const struct device_class *cls,
			      struct config *config);
/* Counts rises and falls of the lines. Uses up one of the IRQ_SINKS. */
void fixture_watch_lines(struct fixture *f);
/* Zeroes what was recorded. */
void fixture_forget(struct fixture *f);

/* Moves the clock, running each timer on its way at its deadline. */
void fixture_advance(struct fixture *f, uint64_t ns);
/* Moves the clock with no timer run: the event loop is late. fixture_advance(f, 0) then runs what is
 * due, all at the new time. */
void fixture_late(struct fixture *f, uint64_t ns);

uint64_t fixture_in(struct fixture *f, uint16_t port, unsigned size);
void fixture_out(struct fixture *f, uint16_t port, unsigned size, uint32_t value);
uint64_t fixture_read(struct fixture *f, uint64_t gpa, unsigned size);
void fixture_write(struct fixture *f, uint64_t gpa, unsigned size, uint64_t value);
static inline uint8_t fixture_inb(struct fixture *f, uint16_t port)
{
	return (uint8_t)fixture_in(f, port, 1);
}
static inline void fixture_outb(struct fixture *f, uint16_t port, uint8_t value)
{
	fixture_out(f, port, 1, value);
}

/* Writes as a guest of an engine that serves doorbells by itself: one that is there is rung, and no handler runs; false:
 * there is none. */
bool fixture_ring(struct fixture *f, bool port, uint64_t addr, unsigned size, uint64_t value);

/* The interrupt acknowledge cycle of a CPU whose LINT0 takes ExtINT. */
uint8_t fixture_intack(struct fixture *f);

/* Saves every device, destroys nothing but resets them all, restores and resumes: the machine must go on
 * as if nothing had happened. */
void fixture_save_restore(struct fixture *f);

/* Hostile guest: `rounds` random accesses of every size inside and around [base, base + size), with
 * the clock moving on. Deterministic by `seed`. */
void fixture_fuzz_pio(struct fixture *f, uint16_t base, unsigned size, unsigned rounds,
		      uint64_t seed);
void fixture_fuzz_mmio(struct fixture *f, uint64_t base, uint64_t size, unsigned rounds,
		       uint64_t seed);
/* Hostile snapshot: the device's saved state with random bytes, or random values of its fields, changed.
 * Those that are taken are run: resumed, the clock moved. Returns how many were taken. */
unsigned fixture_fuzz_state(struct fixture *f, struct device *device, unsigned rounds,
			    uint64_t seed);
/* xorshift64*; state must not be 0. */
uint64_t fixture_random(uint64_t *state);

#endif
