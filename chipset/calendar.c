/*
 * Dates by counting days from 1 March of year 0: the day that leap years add is then a year's last.
 */
#include "chipset/calendar.h"

#define DAYS_TO_1970 719468 /* from 0000-03-01 */
#define DAYS_400_YEARS 146097
#define DAYS_10000_YEARS (25 * DAYS_400_YEARS)
#define DAYS_JAN_FEB_0 60 /* of year 0, a leap year */

static int64_t floor_mod(int64_t value, int64_t div)
{
	int64_t mod = value % div;

	return mod < 0 ? mod + div : mod;
}

static bool is_leap(int year)
{
	return year % 4 == 0 && (year % 100 || year % 400 == 0);
}

static int month_days(int year, int month)
{
	if (month == 2)
		return is_leap(year) ? 29 : 28;
	return month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
}

void calendar_from_seconds(int64_t seconds, struct calendar *cal)
{
	int64_t second = floor_mod(seconds, SECONDS_PER_DAY);
	int64_t days = (seconds - second) / SECONDS_PER_DAY;
	int64_t cycle, in_cycle, year, in_year, month;

	cal->wday = (int)floor_mod(days + 4, 7); /* 1970-01-01 was a Thursday */
	days = floor_mod(days + DAYS_TO_1970 + DAYS_JAN_FEB_0, DAYS_10000_YEARS) - DAYS_JAN_FEB_0;
	if (days < 0) {
		/* January and February of year 0 look like those of year 400. */
		cycle = -1;
		in_cycle = days + DAYS_400_YEARS;
	} else {
		cycle = days / DAYS_400_YEARS;
		in_cycle = days % DAYS_400_YEARS;
	}
	year = (in_cycle - in_cycle / 1460 + in_cycle / 36524 - in_cycle / 146096) / 365;
	in_year = in_cycle - (365 * year + year / 4 - year / 100);
	month = (5 * in_year + 2) / 153; /* 0: March */
	cal->day = (int)(in_year - (153 * month + 2) / 5 + 1);
	cal->month = (int)(month < 10 ? month + 3 : month - 9);
	cal->year = (int)(cycle * 400 + year + (month >= 10));
	cal->hour = (int)(second / 3600);
	cal->min = (int)(second / 60 % 60);
	cal->sec = (int)(second % 60);
}

static bool in_range(int value, int min, int max)
{
	return value >= min && value <= max;
}

bool calendar_to_seconds(const struct calendar *cal, int64_t *seconds)
{
	int64_t year, month, in_year, in_cycle, cycle;

	if (!in_range(cal->year, 0, 9999) || !in_range(cal->month, 1, 12) ||
	    !in_range(cal->day, 1, month_days(cal->year, cal->month)) ||
	    !in_range(cal->hour, 0, 23) || !in_range(cal->min, 0, 59) || !in_range(cal->sec, 0, 59))
		return false;
	month = cal->month > 2 ? cal->month - 3 : cal->month + 9;
	year = cal->year - (cal->month <= 2) + 400;
	cycle = year / 400 - 1;
	year %= 400;
	in_year = (153 * month + 2) / 5 + cal->day - 1;
	in_cycle = 365 * year + year / 4 - year / 100 + in_year;
	*seconds = (cycle * DAYS_400_YEARS + in_cycle - DAYS_TO_1970) * SECONDS_PER_DAY +
		   cal->hour * 3600 + cal->min * 60 + cal->sec;
	return true;
}

int64_t calendar_next_match(int64_t seconds, const int want[3])
{
	int64_t second = floor_mod(seconds + 1, SECONDS_PER_DAY);
	int64_t midnight = seconds + 1 - second;
	int h = (int)(second / 3600), m = (int)(second / 60 % 60), s = (int)(second % 60);
	int first_m = want[1] < 0 ? 0 : want[1], first_s = want[2] < 0 ? 0 : want[2];

	if (want[2] >= 0) {
		m += s > want[2];
		s = want[2];
	}
	if (m == 60) {
		h++;
		m = 0;
	}
	if (want[1] >= 0 && m != want[1]) {
		h += m > want[1];
		m = want[1];
		s = first_s;
	}
	if (want[0] >= 0 && h != want[0]) {
		midnight += h > want[0] ? SECONDS_PER_DAY : 0;
		h = want[0];
		m = first_m;
		s = first_s;
	}
	/* h is 24 if any hour will do and this day has none left. */
	return midnight + h * 3600 + m * 60 + s;
}
