/*
 * The real-time clock and its CMOS memory.
 *
 * The clock runs on virtual time. It starts at the host's wall clock: in the host's time zone, or in
 * UTC if rtc.use_localtime is false (-u), or at rtc.base, seconds since 1970. A guest that sets it
 * changes its distance from the host's clock, and that distance is kept. Virtual time stands still
 * while the VM is paused or saved and while the host sleeps: rtc_resync() then moves the clock on by what
 * was missed, and so does resume. With rtc.base the clock never looks at the host's again.
 */
#ifndef CHIPSET_RTC_H
#define CHIPSET_RTC_H

#include "vmm/device.h"

#define RTC_PORT 0x70 /* index, data; 0x72 and 0x73 the same for the extended bank */
#define RTC_IRQ 8
#define RTC_CENTURY 0x32 /* CMOS byte, as the FADT says */

extern const struct device_class rtc_class;

/* Makes the clock as far from the host's as it was last, if that is off by a second or more. An alarm in
 * the time left out goes off. Takes the device's lock. */
void rtc_resync(struct device *rtc);

#endif
