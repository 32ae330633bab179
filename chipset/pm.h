/*
 * The ACPI power management block. The addresses are what the FADT tells a guest.
 */
#ifndef CHIPSET_PM_H
#define CHIPSET_PM_H

#include "vmm/device.h"

#define PM1_EVENT_PORT 0x400   /* status, 2 bytes; enable, 2 bytes */
#define PM1_CONTROL_PORT 0x404 /* 2 bytes */
#define PM_TIMER_PORT 0x408    /* 4 bytes */
#define PM_GPE0_PORT 0x40c     /* status, 2 bytes; enable, 2 bytes; no event is wired to it */
#define PM_SMI_PORT 0xb2
#define PM_ACPI_ENABLE 0xa0 /* written to PM_SMI_PORT */
#define PM_ACPI_DISABLE 0xa1
#define PM_SCI_IRQ 9 /* level-triggered */
#define PM_TIMER_HZ 3579545
#define PM_SLP_TYP_S5 5

/* Sets vm->power_button. */
extern const struct device_class pm_class;

#endif
