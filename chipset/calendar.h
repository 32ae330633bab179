/*
 * The proleptic Gregorian calendar from year 0 to 9999, without time zones or leap seconds.
 */
#ifndef CHIPSET_CALENDAR_H
#define CHIPSET_CALENDAR_H

#include <stdbool.h>
#include <stdint.h>

#define SECONDS_PER_DAY 86400

struct calendar {
	int year, month, day; /* 0-9999, 1-12, 1-31 */
	int hour, min, sec;
	int wday; /* 0: Sunday */
};

/* Seconds since 1970-01-01 00:00:00; year 9999 is followed by year 0. */
void calendar_from_seconds(int64_t seconds, struct calendar *cal);
/* False, and nothing is stored, if a field is out of range (the 30th of February); wday is not looked at. */
bool calendar_to_seconds(const struct calendar *cal, int64_t *seconds);
/* The first second after `seconds` whose hour, minute and second are want[0..2]; -1 matches any. */
int64_t calendar_next_match(int64_t seconds, const int want[3]);

#endif
