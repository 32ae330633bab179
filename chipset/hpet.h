/*
 * The HPET: FED00000; the device's name is "hpet". With legacy replacement on it takes the lines of the
 * PIT (GSI 2) and the RTC (GSI 8), whose sources are replaceable (bus/irq.h).
 */
#ifndef CHIPSET_HPET_H
#define CHIPSET_HPET_H

#include "vmm/device.h"

#define HPET_BASE 0xfed00000ull
#define HPET_SIZE 0x400ull
#define HPET_TIMERS 3
#define HPET_NS_PER_TICK 100
#define HPET_HZ (1000000000 / HPET_NS_PER_TICK)
/* The low half of the capabilities register, which the ACPI table repeats ("Event Timer Block ID"):
 * vendor 8086, legacy replacement, 64 bits, the number of the last timer, revision 1. */
#define HPET_BLOCK_ID (0x8086u << 16 | 1u << 15 | 1u << 13 | (HPET_TIMERS - 1) << 8 | 0x01u)
#define HPET_MIN_TICK 1000 /* clock ticks: the ACPI table's "Main Counter Minimum Clock_tick" */

extern const struct device_class hpet_class;

#endif
