/*
 * The 8259A pair: ports 20-21, A0-A1, 4D0-4D1; the device's name is "pic". It is a sink of the interrupt
 * lines and sets vm->extint. Make it before the devices that raise interrupts.
 */
#ifndef CHIPSET_PIC_H
#define CHIPSET_PIC_H

#include "vmm/device.h"

extern const struct device_class pic_class;

#endif
