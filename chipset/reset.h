/*
 * The reset control register and the odd ports of a PC: 0xCF9, 0x92, 0x80, 0x84.
 */
#ifndef CHIPSET_RESET_H
#define CHIPSET_RESET_H

#include "vmm/device.h"

#define RESET_CONTROL_PORT 0xcf9

extern const struct device_class reset_class;

/* Byte accesses to RESET_CONTROL_PORT. It lies inside PCI's CONFIG_ADDRESS (0xCF8, 4 bytes), whose owner
 * has the range on the bus and hands the bytes on. They take the device's lock. */
uint8_t reset_control_read(struct device *reset);
void reset_control_write(struct device *reset, uint8_t value);

/* The last POST code that the guest wrote to port 0x80. */
uint8_t reset_post_code(struct device *reset);

#endif
