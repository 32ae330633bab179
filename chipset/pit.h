/*
 * The 8254 interval timer, ports 40-43, and the PC's port 61; the device's name is "pit". Counter 0 drives
 * ISA IRQ 0 (GSI 2).
 */
#ifndef CHIPSET_PIT_H
#define CHIPSET_PIT_H

#include "vmm/device.h"

#define PIT_HZ 1193182ull

extern const struct device_class pit_class;

#endif
