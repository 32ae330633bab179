/*
 * The test device of kvm-unit-tests: `-l pc-testdev`.
 */
#ifndef DEBUG_TESTDEV_H
#define DEBUG_TESTDEV_H

#include "vmm/device.h"

#define TESTDEV_EXIT_PORT 0xf4	   /* 4 bytes: OUT v ends the VM with status (v << 1 | 1) & 0xff */
#define TESTDEV_REGISTER_PORT 0xe0 /* a 32-bit register, accesses of any size */
#define TESTDEV_FLUSH_PORT 0xe4 /* 32-bit OUT of a GPA: its page leaves every translation cache */
#define TESTDEV_BYTES_PORT 0xe8 /* the same register, reached by bytes only */
#define TESTDEV_IRQ_PORT 0x2000 /* 24 ports: the level of ISA IRQ / GSI n */
#define TESTDEV_MEMORY 0xff000000ull /* scratch memory of TESTDEV_MEMORY_SIZE, as MMIO */
#define TESTDEV_MEMORY_SIZE 0x10000

extern const struct device_class testdev_class;

#endif
