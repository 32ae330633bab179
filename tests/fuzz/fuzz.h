/*
 * Fuzzing of devices by what a guest can do to them: one program a target, which runs an input as a list of operations on
 * a machine without CPUs (tests/unit/fixture.h). Each operation is a byte and its arguments: configuration space, BARs by
 * MMIO and ports, guest memory, in any order and, since devices work on threads of their own, at any moment.
 *
 * The machine is made once. An input begins with the devices reset and the memory zeroed, and ends when the device has
 * nothing more to do: one that never comes to rest is a failure, as is anything that the sanitizers see.
 *
 * Linked with libFuzzer (-fsanitize=fuzzer), or with replay.c, which runs the files of a corpus.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bus/pci.h"
#include "tests/unit/fixture.h"

#define FUZZ_RAM (1u << 20)
#define FUZZ_SLOT 3 /* where the target's device is */
#define FUZZ_PEERS 2

struct input {
	const uint8_t *at, *end;
};

struct machine {
	struct fixture *f;
	struct device *device;
	pthread_t loop;
	char directory[64];
	int peer[FUZZ_PEERS]; /* the host's side of sockets; -1: none */
};

struct target {
	/* Puts the device at FUZZ_SLOT. */
	void (*set_up)(struct machine *m);
	/* An operation of the target's own: a guess of what drivers do. NULL: none. */
	void (*operation)(struct machine *m, struct input *in);
	/* Is nothing under way on the device's threads? *worked: something that grows with what they did
	 * (fuzz_thread_time()). NULL: it has none. */
	bool (*at_rest)(struct machine *m, uint64_t *worked);
};

extern const struct target fuzz_target;

/* Zeroes behind the end. */
uint8_t take8(struct input *in);
uint16_t take16(struct input *in);
uint32_t take32(struct input *in);
uint64_t take64(struct input *in);
/* A guest-physical address: mostly of RAM, sometimes at its end, of a BAR, anywhere. */
uint64_t take_address(struct machine *m, struct input *in);
/* A length: mostly small. */
uint32_t take_length(struct input *in);

uint64_t fuzz_config(unsigned reg); /* the register's address in ECAM */
uint64_t fuzz_bar(struct machine *m, unsigned n);
/* Copies into guest memory; nothing where there is none. */
void fuzz_poke(struct machine *m, uint64_t gpa, const void *bytes, size_t len);
uint64_t fuzz_thread_time(pthread_t thread); /* of the CPU, in nanoseconds */
/* Waits until the device is at rest; ends the process if it never is. */
void fuzz_rest(struct machine *m);
/* A disk image of `size` bytes in the machine's directory. */
const char *fuzz_image(struct machine *m, const char *name, size_t size, char path[128]);
struct device *fuzz_device(struct machine *m, const char *name, unsigned slot,
			   const char *const options[][2]);
int fuzz_listen(const char *path);
int fuzz_connect(const char *path);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#endif
