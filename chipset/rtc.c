/*
 * The real-time clock of a PC: Motorola MC146818A (data sheet ADI-856) with the century byte and the
 * second CMOS bank of the PC's south bridges.
 *
 * Time and date in BCD or binary, 12 or 24 hours; SET and the divider's reset; update in progress; alarm
 * with wildcards; periodic, alarm and update-ended interrupts on IRQ 8; 114 bytes of memory and 128 in the
 * bank at 0x72. The firmware's part of the memory says how much RAM there is.
 *
 * While the clock runs, the time bytes are computed from virtual time; while it is held (SET, or a divider
 * that does not count 32768 Hz) they are memory, which the clock starts from when it is let go. Bytes
 * that are no date keep it held until they are one. No timer runs unless an enabled interrupt waits for
 * it: flags are caught up with when they are looked at.
 *
 * Left out: the square wave output and the daylight saving bit (kept and read back, as in later parts); the
 * other two crystals; a change of the data mode re-encodes a running clock at once.
 */
#include "chipset/rtc.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "bus/io.h"
#include "bus/irq.h"
#include "chipset/calendar.h"
#include "vmm/vm.h"

/* Registers (data sheet, "Address Map") */
enum {
	RTC_SEC = 0x00,
	RTC_SEC_ALARM,
	RTC_MIN,
	RTC_MIN_ALARM,
	RTC_HOUR,
	RTC_HOUR_ALARM,
	RTC_WDAY,
	RTC_DAY,
	RTC_MONTH,
	RTC_YEAR,
	RTC_A,
	RTC_B,
	RTC_C,
	RTC_D,
};
#define A_UIP 0x80
#define A_DIVIDER 0x70
#define A_DIVIDER_32K 0x20
#define A_DIVIDER_RESET 0x60 /* 11x */
#define A_RATE 0x0f
#define B_SET 0x80
#define B_PIE 0x40
#define B_AIE 0x20
#define B_UIE 0x10
#define B_SQWE 0x08
#define B_DM 0x04 /* binary, not BCD */
#define B_24H 0x02
#define HOUR_PM 0x80
#define C_IRQF 0x80
#define C_PF 0x40
#define C_AF 0x20
#define C_UF 0x10
#define D_VRT 0x80

#define BANK 128
#define CRYSTAL_HZ 32768
/* UIP is up from 244 us before an update cycle of 1984 us, which ends with the second. */
#define UPDATE_NS (2228 * 1000ull)
/* Outside of this no calendar time is: years 0 to 9999 are within. */
#define SECONDS_MAX 1000000000000ll
#define BASE_MAX 253402300799ull /* the end of year 9999 */

struct rtc_state {
	uint8_t index, ext_index;
	uint8_t reg_a, reg_b, reg_c;
	uint8_t ram[BANK], ext_ram[BANK];
	bool held;	    /* the time is in ram; else it is: */
	int64_t base_s;	    /* seconds since 1970 (as the clock shows them) at virtual time 0 .. */
	uint32_t base_ns;   /* .. and what part of a second the divider had counted then */
	uint8_t wday_shift; /* what the guest's day of the week is ahead of the calendar's */
	bool follows_host;
	int64_t host_distance_s; /* ahead of the host's UTC */
	int64_t updated_s;	 /* UF and AF are up to this second */
	uint64_t ticks; /* PF is up to this tick of the periodic rate since virtual time 0 */
};

struct rtc {
	struct device device;
	struct rtc_state state;
	struct irq_source irq;
	struct vtimer timer;
	struct io_range range;
};

static bool seconds_ok(int64_t s)
{
	return s >= -SECONDS_MAX && s <= SECONDS_MAX;
}

static bool rtc_check(const void *state)
{
	const struct rtc_state *s = state;

	return s->index < BANK && s->ext_index < BANK && !(s->reg_a & A_UIP) &&
	       !(s->reg_c & ~(C_PF | C_AF | C_UF)) && s->base_ns < NS_PER_SEC &&
	       s->wday_shift < 7 && seconds_ok(s->base_s) && seconds_ok(s->host_distance_s) &&
	       seconds_ok(s->updated_s);
}

static const struct state_field rtc_fields[] = {
	STATE(struct rtc_state, index),
	STATE(struct rtc_state, ext_index),
	/* All else is kept by the battery; what the RESET pin does is in rtc_reset(). */
	STATE_OPT(struct rtc_state, reg_a, 0, STATE_KEEP),
	STATE_OPT(struct rtc_state, reg_b, 0, STATE_KEEP),
	STATE_OPT(struct rtc_state, reg_c, 0, STATE_KEEP),
	STATE_ARRAY_OPT(struct rtc_state, ram, 0, STATE_KEEP),
	STATE_ARRAY_OPT(struct rtc_state, ext_ram, 0, STATE_KEEP),
	STATE_OPT(struct rtc_state, held, 0, STATE_KEEP),
	STATE_OPT(struct rtc_state, base_s, 0, STATE_KEEP),
	STATE_OPT(struct rtc_state, base_ns, 0, STATE_KEEP),
	STATE_OPT(struct rtc_state, wday_shift, 0, STATE_KEEP),
	STATE_OPT(struct rtc_state, follows_host, 0, STATE_KEEP),
	STATE_OPT(struct rtc_state, host_distance_s, 0, STATE_KEEP),
	STATE_OPT(struct rtc_state, updated_s, 0, STATE_KEEP),
	STATE_OPT(struct rtc_state, ticks, 0, STATE_KEEP),
};
static const struct state_table rtc_table =
	STATE_TABLE("rtc", struct rtc_state, rtc_fields, 1, rtc_check);

static uint64_t rtc_now(struct rtc *rtc)
{
	return vclock_now(rtc->device.vm->clock);
}

static bool divider_runs(const struct rtc_state *s)
{
	return (s->reg_a & A_DIVIDER) == A_DIVIDER_32K;
}

/* The second that the clock shows at virtual time `now`, and how far into it. */
static int64_t clock_second(const struct rtc_state *s, uint64_t now)
{
	return s->base_s + (int64_t)((now + s->base_ns) / NS_PER_SEC);
}

static uint64_t clock_fraction(const struct rtc_state *s, uint64_t now)
{
	return (now + s->base_ns) % NS_PER_SEC;
}

/* The virtual time at which the clock turns to `second`, which is after base_s. */
static uint64_t clock_deadline(const struct rtc_state *s, int64_t second)
{
	return (uint64_t)(second - s->base_s) * NS_PER_SEC - s->base_ns;
}

/* Periodic rate selection ("Periodic Interrupt Rate and Square Wave Output Frequency"); 0: none. */
static uint64_t periodic_hz(const struct rtc_state *s)
{
	unsigned rate = s->reg_a & A_RATE;

	if (!rate || !divider_runs(s))
		return 0;
	return CRYSTAL_HZ >> (rate <= 2 ? rate + 6 : rate - 1);
}

static uint64_t periodic_ticks(const struct rtc_state *s, uint64_t now)
{
	return mul_div_u64(now + s->base_ns, periodic_hz(s), NS_PER_SEC);
}

static uint8_t time_byte(const struct rtc_state *s, int number)
{
	return (uint8_t)(s->reg_b & B_DM ? number : number / 10 << 4 | number % 10);
}

/* -1: the byte is no BCD number. */
static int time_number(const struct rtc_state *s, uint8_t byte)
{
	if (s->reg_b & B_DM)
		return byte;
	if ((byte & 0x0f) > 9 || byte >> 4 > 9)
		return -1;
	return (byte >> 4) * 10 + (byte & 0x0f);
}

static uint8_t hour_byte(const struct rtc_state *s, int hour)
{
	if (s->reg_b & B_24H)
		return time_byte(s, hour);
	return time_byte(s, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? HOUR_PM : 0);
}

/* 0 to 23 from a byte that is an hour, else something outside. */
static int hour_number(const struct rtc_state *s, uint8_t byte)
{
	int hour;

	if (s->reg_b & B_24H)
		return time_number(s, byte);
	hour = time_number(s, byte & ~HOUR_PM);
	if (hour < 1 || hour > 12)
		return -1;
	return hour % 12 + (byte & HOUR_PM ? 12 : 0);
}

static void rtc_encode(const struct rtc_state *s, int64_t second, uint8_t bytes[BANK])
{
	struct calendar cal;

	calendar_from_seconds(second, &cal);
	bytes[RTC_SEC] = time_byte(s, cal.sec);
	bytes[RTC_MIN] = time_byte(s, cal.min);
	bytes[RTC_HOUR] = hour_byte(s, cal.hour);
	bytes[RTC_WDAY] = time_byte(s, (cal.wday + s->wday_shift) % 7 + 1);
	bytes[RTC_DAY] = time_byte(s, cal.day);
	bytes[RTC_MONTH] = time_byte(s, cal.month);
	bytes[RTC_YEAR] = time_byte(s, cal.year % 100);
	bytes[RTC_CENTURY] = time_byte(s, cal.year / 100);
}

/* The time that the bytes in ram mean; false if they mean none. */
static bool rtc_decode(const struct rtc_state *s, int64_t *second, uint8_t *wday_shift)
{
	int century = time_number(s, s->ram[RTC_CENTURY]);
	int year = time_number(s, s->ram[RTC_YEAR]);
	int wday = time_number(s, s->ram[RTC_WDAY]);
	struct calendar cal = {
		.year = century * 100 + year,
		.month = time_number(s, s->ram[RTC_MONTH]),
		.day = time_number(s, s->ram[RTC_DAY]),
		.hour = hour_number(s, s->ram[RTC_HOUR]),
		.min = time_number(s, s->ram[RTC_MIN]),
		.sec = time_number(s, s->ram[RTC_SEC]),
	};

	if (century < 0 || century > 99 || year < 0 || year > 99 ||
	    !calendar_to_seconds(&cal, second))
		return false;
	calendar_from_seconds(*second, &cal);
	*wday_shift = wday >= 1 && wday <= 7 ? (wday - 1 - cal.wday + 7) % 7 : 0;
	return true;
}

/* The time goes into ram, where the guest may change it. */
static void rtc_hold(struct rtc *rtc, uint64_t now)
{
	if (rtc->state.held)
		return;
	rtc_encode(&rtc->state, clock_second(&rtc->state, now), rtc->state.ram);
	rtc->state.held = true;
}

static bool wall_clock(struct timespec *ts)
{
	return !clock_gettime(CLOCK_REALTIME, ts);
}

/* The clock starts from what is in ram, in the middle of whichever second the divider is in. */
static void rtc_release(struct rtc *rtc, uint64_t now)
{
	struct rtc_state *s = &rtc->state;
	struct timespec host;
	int64_t second;

	if (!s->held || (s->reg_b & B_SET) || !divider_runs(s) ||
	    !rtc_decode(s, &second, &s->wday_shift))
		return;
	s->held = false;
	s->base_s += second - clock_second(s, now);
	s->updated_s = second;
	if (s->follows_host && wall_clock(&host))
		s->host_distance_s = second - host.tv_sec;
}

/* The first second after `second` in which the alarm matches; false if it never does. A byte with both
 * top bits set matches all ("Setting the Alarm"). */
static bool alarm_next(const struct rtc_state *s, int64_t second, int64_t *next)
{
	const uint8_t bytes[3] = {s->ram[RTC_HOUR_ALARM], s->ram[RTC_MIN_ALARM],
				  s->ram[RTC_SEC_ALARM]};
	int want[3]; /* hour, minute, second; -1 for any */

	for (unsigned n = 0; n < 3; n++) {
		if ((bytes[n] & 0xc0) == 0xc0) {
			want[n] = -1;
			continue;
		}
		want[n] = n ? time_number(s, bytes[n]) : hour_number(s, bytes[n]);
		if (want[n] < 0 || want[n] > (n ? 59 : 23))
			return false;
	}
	*next = calendar_next_match(second, want);
	return true;
}

/* Sets the flags of what has happened until `now`. */
static void rtc_advance(struct rtc *rtc, uint64_t now)
{
	struct rtc_state *s = &rtc->state;
	uint64_t ticks = periodic_ticks(s, now);
	int64_t second = clock_second(s, now), alarm;

	if (ticks > s->ticks)
		s->reg_c |= C_PF;
	s->ticks = ticks;
	if (s->held)
		return;
	if (second > s->updated_s) {
		s->reg_c |= C_UF;
		if (alarm_next(s, s->updated_s, &alarm) && alarm <= second)
			s->reg_c |= C_AF;
	}
	s->updated_s = second;
}

/* The interrupt line follows the flags; while it is low, the timer waits for what would raise it. */
static void rtc_update(struct rtc *rtc)
{
	const struct rtc_state *s = &rtc->state;
	bool raised = s->reg_c & s->reg_b & (C_PF | C_AF | C_UF);
	uint64_t hz = periodic_hz(s), deadline = UINT64_MAX, at;
	int64_t alarm;

	irq_source_set(&rtc->irq, raised);
	if (!raised && (s->reg_b & B_PIE) && hz)
		deadline = mul_div_u64_up(s->ticks + 1, NS_PER_SEC, hz) - s->base_ns;
	if (!raised && !s->held && (s->reg_b & B_UIE)) {
		at = clock_deadline(s, s->updated_s + 1);
		deadline = at < deadline ? at : deadline;
	}
	if (!raised && !s->held && (s->reg_b & B_AIE) && alarm_next(s, s->updated_s, &alarm)) {
		at = clock_deadline(s, alarm);
		deadline = at < deadline ? at : deadline;
	}
	if (deadline == UINT64_MAX)
		vtimer_disarm(&rtc->timer);
	else
		vtimer_arm(&rtc->timer, deadline);
}

static void rtc_timer_fired(void *arg)
{
	struct rtc *rtc = arg;

	pthread_mutex_lock(&rtc->device.lock);
	rtc_advance(rtc, rtc_now(rtc));
	rtc_update(rtc);
	pthread_mutex_unlock(&rtc->device.lock);
}

static void write_a(struct rtc *rtc, uint64_t now, uint8_t value)
{
	struct rtc_state *s = &rtc->state;
	bool was_reset = (s->reg_a & A_DIVIDER_RESET) == A_DIVIDER_RESET;

	value &= ~A_UIP;
	s->reg_a = value;
	if (!divider_runs(s)) {
		rtc_hold(rtc, now);
	} else if (was_reset) {
		/* "When the divider is changed from reset to an operating time base, the first update
		 * cycle is one-half second later." */
		s->base_ns =
			(uint32_t)((NS_PER_SEC + NS_PER_SEC / 2 - now % NS_PER_SEC) % NS_PER_SEC);
	}
	s->ticks = periodic_ticks(s, now);
	rtc_release(rtc, now);
}

static void write_b(struct rtc *rtc, uint64_t now, uint8_t value)
{
	struct rtc_state *s = &rtc->state;

	if (value & B_SET) {
		value &= ~B_UIE;
		rtc_hold(rtc, now);
	}
	s->reg_b = value;
	rtc_release(rtc, now);
}

static bool is_time(uint8_t index)
{
	return index <= RTC_YEAR ? index >= RTC_WDAY || !(index & 1) : index == RTC_CENTURY;
}

static void rtc_write_byte(struct rtc *rtc, uint8_t index, uint8_t value)
{
	uint64_t now = rtc_now(rtc);

	rtc_advance(rtc, now);
	if (is_time(index)) {
		rtc_hold(rtc, now);
		rtc->state.ram[index] = value;
		rtc_release(rtc, now);
	} else if (index == RTC_A) {
		write_a(rtc, now, value);
	} else if (index == RTC_B) {
		write_b(rtc, now, value);
	} else if (index != RTC_C && index != RTC_D) {
		rtc->state.ram[index] = value;
	}
	rtc_update(rtc);
}

static uint8_t rtc_read_c(struct rtc *rtc)
{
	struct rtc_state *s = &rtc->state;
	uint8_t value;

	rtc_advance(rtc, rtc_now(rtc));
	value = s->reg_c;
	if (value & s->reg_b & (C_PF | C_AF | C_UF))
		value |= C_IRQF;
	s->reg_c = 0;
	rtc_update(rtc);
	return value;
}

static uint8_t rtc_read_byte(struct rtc *rtc, uint8_t index)
{
	struct rtc_state *s = &rtc->state;
	uint64_t now = rtc_now(rtc);
	uint8_t bytes[BANK] = {0};

	if (is_time(index) && !s->held) {
		rtc_encode(s, clock_second(s, now), bytes);
		return bytes[index];
	}
	switch (index) {
	case RTC_A:
		if (!s->held && clock_fraction(s, now) >= NS_PER_SEC - UPDATE_NS)
			return s->reg_a | A_UIP;
		return s->reg_a;
	case RTC_B:
		return s->reg_b;
	case RTC_C:
		return rtc_read_c(rtc);
	case RTC_D:
		return D_VRT;
	default:
		return s->ram[index];
	}
}

static uint64_t rtc_read(void *arg, uint64_t offset, unsigned size)
{
	struct rtc *rtc = arg;
	uint8_t value = 0xff; /* the index registers are write-only */

	(void)size;
	pthread_mutex_lock(&rtc->device.lock);
	if (offset == 1)
		value = rtc_read_byte(rtc, rtc->state.index);
	else if (offset == 3)
		value = rtc->state.ext_ram[rtc->state.ext_index];
	pthread_mutex_unlock(&rtc->device.lock);
	return value;
}

static void rtc_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct rtc *rtc = arg;
	struct rtc_state *s = &rtc->state;

	(void)size;
	pthread_mutex_lock(&rtc->device.lock);
	/* Bit 7 of port 0x70 masks NMIs on a PC board; nothing raises one here. */
	if (offset == 0)
		s->index = value & (BANK - 1);
	else if (offset == 1)
		rtc_write_byte(rtc, s->index, (uint8_t)value);
	else if (offset == 2)
		s->ext_index = value & (BANK - 1);
	else
		s->ext_ram[s->ext_index] = (uint8_t)value;
	pthread_mutex_unlock(&rtc->device.lock);
}

static const struct io_ops rtc_ops = {IO_1, rtc_read, rtc_write};

/* The RESET pin clears the interrupt enables, the flags and SQWE and nothing else. */
static void rtc_reset(struct device *device)
{
	struct rtc *rtc = (struct rtc *)device;

	pthread_mutex_lock(&device->lock);
	rtc_advance(rtc, rtc_now(rtc));
	rtc->state.reg_b &= ~(B_PIE | B_AIE | B_UIE | B_SQWE);
	rtc->state.reg_c = 0;
	rtc_update(rtc);
	pthread_mutex_unlock(&device->lock);
}

static void rtc_quiesce(struct device *device)
{
	struct rtc *rtc = (struct rtc *)device;

	pthread_mutex_lock(&device->lock);
	rtc_advance(rtc, rtc_now(rtc));
	vtimer_disarm(&rtc->timer);
	pthread_mutex_unlock(&device->lock);
}

/* Under the lock. */
static void follow_host(struct rtc *rtc)
{
	struct rtc_state *s = &rtc->state;
	uint64_t now = rtc_now(rtc);
	struct timespec host;
	int64_t off, off_ns;

	if (!s->follows_host || s->held || !wall_clock(&host))
		return;
	off = host.tv_sec + s->host_distance_s - clock_second(s, now);
	off_ns = host.tv_nsec - (int64_t)clock_fraction(s, now);
	/* Less than a second is not worth a jump: distances are kept in whole seconds. */
	if (off > 1 || off < -1 || (off == 1 && off_ns >= 0) || (off == -1 && off_ns <= 0))
		s->base_s += off;
}

void rtc_resync(struct device *device)
{
	struct rtc *rtc = (struct rtc *)device;

	pthread_mutex_lock(&device->lock);
	follow_host(rtc);
	rtc_advance(rtc, rtc_now(rtc));
	rtc_update(rtc);
	pthread_mutex_unlock(&device->lock);
}

static void rtc_destroy(struct device *device)
{
	struct rtc *rtc = (struct rtc *)device;
	struct vm *vm = device->vm;

	io_range_del(&vm->pio, &rtc->range);
	io_bus_synchronize(&vm->pio);
	vtimer_destroy(&rtc->timer);
	irq_source_set(&rtc->irq, false);
	device_free(device);
}

static void put16(uint8_t *ram, uint64_t value, uint64_t max)
{
	value = value < max ? value : max;
	ram[0] = (uint8_t)value;
	ram[1] = (uint8_t)(value >> 8);
}

/* What a PC's firmware leaves in the memory (IBM AT Technical Reference, "CMOS RAM"; bhyve's 0x34 to
 * 0x5D). */
static void rtc_fill_ram(struct rtc *rtc)
{
	const struct memory *memory = &rtc->device.vm->memory;
	uint8_t *ram = rtc->state.ram;
	uint64_t above_1m = memory->low > 1 << 20 ? memory->low - (1 << 20) : 0;
	uint64_t above_16m = memory->low > 16 << 20 ? memory->low - (16 << 20) : 0;
	uint64_t high = memory->high >> 16;
	uint16_t sum = 0;

	ram[0x14] = 0x02; /* equipment: an FPU, no floppy drive */
	put16(&ram[0x15], 640, UINT16_MAX);
	put16(&ram[0x17], above_1m >> 10, 0xfc00); /* KiB, by convention up to 64 MiB */
	put16(&ram[0x30], above_1m >> 10, 0xfc00);
	put16(&ram[0x34], above_16m >> 16, UINT16_MAX);
	high = high < 0xffffff ? high : 0xffffff;
	put16(&ram[0x5b], high & 0xffff, UINT16_MAX);
	ram[0x5d] = (uint8_t)(high >> 16);
	for (unsigned n = 0x10; n <= 0x2d; n++)
		sum += ram[n];
	ram[0x2e] = (uint8_t)(sum >> 8);
	ram[0x2f] = (uint8_t)sum;
}

/* Sets the clock as rtc.use_localtime and rtc.base say. */
static int rtc_start(struct rtc *rtc, struct config *config, struct error *err)
{
	struct rtc_state *s = &rtc->state;
	struct timespec host = {0};
	bool local = true;
	uint64_t base = 0;
	struct tm tm;
	int rc = 0;

	if (config)
		rc = config_get_bool(config, "rtc.use_localtime", true, &local, err);
	if (rc)
		return rc;
	if (config && config_get(config, "rtc.base")) {
		rc = config_get_u64(config, "rtc.base", 0, 0, BASE_MAX, &base, err);
		if (rc)
			return rc;
		host.tv_sec = (time_t)base;
	} else {
		if (!wall_clock(&host))
			return error_set(err, errno, "rtc: the host's clock cannot be read: %s",
					 strerror(errno));
		s->follows_host = true;
		if (local && localtime_r(&host.tv_sec, &tm))
			s->host_distance_s = tm.tm_gmtoff;
	}
	s->base_s = host.tv_sec + s->host_distance_s;
	s->base_ns = (uint32_t)host.tv_nsec;
	/* That was the time now; the base is the time at virtual time 0. */
	s->base_s -= (int64_t)(rtc_now(rtc) / NS_PER_SEC);
	if (s->base_ns < rtc_now(rtc) % NS_PER_SEC) {
		s->base_s--;
		s->base_ns += NS_PER_SEC;
	}
	s->base_ns -= (uint32_t)(rtc_now(rtc) % NS_PER_SEC);
	return 0;
}

static int rtc_create(struct vm *vm, struct config *config, struct device **out, struct error *err)
{
	struct rtc *rtc = device_alloc(&rtc_class, vm, sizeof(*rtc), "rtc");
	int rc;

	(void)config;
	if (!rtc)
		return error_set(err, ENOMEM, "rtc: out of memory");
	irq_source_init_replaceable(&rtc->irq, &vm->irq, irq_isa_gsi(RTC_IRQ));
	vtimer_init(&rtc->timer, vm->clock, rtc_timer_fired, rtc);
	rtc->range = (struct io_range){"rtc", RTC_PORT, 4, &rtc_ops, rtc};
	/* As a PC's firmware leaves it: 32768 Hz, 1024 Hz periodic, BCD, 24 hours. */
	rtc->state.reg_a = A_DIVIDER_32K | 6;
	rtc->state.reg_b = B_24H;
	rc = rtc_start(rtc, vm->config, err);
	if (!rc)
		rc = io_range_add(&vm->pio, &rtc->range, err);
	if (rc) {
		rtc_destroy(&rtc->device);
		return rc;
	}
	rtc_fill_ram(rtc);
	rtc->state.updated_s = clock_second(&rtc->state, rtc_now(rtc));
	rtc->state.ticks = periodic_ticks(&rtc->state, rtc_now(rtc));
	*out = &rtc->device;
	return 0;
}

const struct device_class rtc_class = {
	.name = "rtc",
	.help = "rtc: MC146818 real-time clock and CMOS memory",
	.kind = DEVICE_CHIPSET,
	.create = rtc_create,
	.destroy = rtc_destroy,
	.reset = rtc_reset,
	.quiesce = rtc_quiesce,
	.resume = rtc_resync,
	.table = &rtc_table,
	.state_offset = offsetof(struct rtc, state),
};
DEVICE_REGISTER(rtc_class);
