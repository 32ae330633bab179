/*
 * bvmcons and bvmdebug are the same device at different ports: a signature and a byte channel in one I/O
 * port (bhyve 2014's consport.c and dbgport.c).
 */
#ifndef DEBUG_BVM_H
#define DEBUG_BVM_H

#include <stdint.h>

#include "vmm/device.h"

/* Makes a device of `cls` at `port`. A 16-bit IN reads `signature`; a 32-bit IN takes a byte of input or
 * reads all ones; a 32-bit OUT sends its low byte to `console`. */
int bvm_create(const struct device_class *cls, struct vm *vm, uint16_t port, uint16_t signature,
	       const char *console, struct device **out, struct error *err);
void bvm_destroy(struct device *device);

#endif
