/*
 * The I/O APIC: FEC00000, 24 pins, id 0; the device's name is "ioapic". It is a sink of the interrupt
 * lines (pin n is GSI n) and sets vm->ioapic_eoi. Make it before the devices that raise interrupts.
 */
#ifndef CHIPSET_IOAPIC_H
#define CHIPSET_IOAPIC_H

#include "vmm/device.h"

#define IOAPIC_BASE 0xfec00000ull
#define IOAPIC_SIZE 0x1000ull
#define IOAPIC_ID 0
#define IOAPIC_VERSION 0x11

extern const struct device_class ioapic_class;

#endif
