/*
 * The high precision event timers: IA-PC HPET Specification 1.0a, at FED00000. A main counter of 64 bits at
 * 10 MHz and three comparators of 64 bits, each periodic if asked, 32-bit mode, edge or level by the
 * I/O APIC's pins 20 to 23, or legacy replacement. Left out: FSB (MSI) delivery.
 *
 * Nothing ticks: the counter is worked out from the virtual clock, and a comparator keeps the tick of the
 * virtual clock at which it matches next. How a late loop catches up: chipset/pace.h. What the specification
 * leaves open: a write to the running counter takes effect at once, and a route that a timer
 * does not have leaves the old one in place.
 *
 * A guest reads the counter, adds to it, and writes comparators. On hardware that takes it microseconds; here
 * its CPU can lose the host's for longer than what it added. So a comparator of an enabled timer that is written
 * when the counter has just gone by matches at once, and a period that comes after the first match of the
 * accumulator that it belongs to still counts from there. Otherwise the timer would be silent until the
 * counter wraps.
 */
#include "chipset/hpet.h"

#include <errno.h>

#include "base/vclock.h"
#include "bus/io.h"
#include "bus/irq.h"
#include "chipset/pace.h"
#include "vmm/vm.h"

#define REG_CAPABILITIES 0x000
#define REG_CONFIG 0x010
#define REG_STATUS 0x020
#define REG_COUNTER 0x0f0
#define REG_TIMERS 0x100
#define TIMER_STRIDE 0x20
#define TIMER_CONFIG 0x00
#define TIMER_COMPARATOR 0x08

#define CAPABILITIES ((HPET_NS_PER_TICK * 1000000ull) << 32 | HPET_BLOCK_ID)

#define CONFIG_ENABLE 1ull
#define CONFIG_LEGACY 2ull
#define CONFIG_WRITABLE (CONFIG_ENABLE | CONFIG_LEGACY)

#define TN_LEVEL (1ull << 1)
#define TN_ENABLE (1ull << 2)
#define TN_PERIODIC (1ull << 3)
#define TN_PERIODIC_CAP (1ull << 4)
#define TN_64_CAP (1ull << 5)
#define TN_VAL_SET (1ull << 6)
#define TN_32MODE (1ull << 8)
#define TN_ROUTE_SHIFT 9
#define TN_ROUTE (0x1full << TN_ROUTE_SHIFT)
#define TN_WRITABLE (TN_LEVEL | TN_ENABLE | TN_PERIODIC | TN_32MODE | TN_ROUTE)
/* Pins that no ISA device has. */
#define ROUTES 0x00f00000ull
#define NO_ROUTE IRQ_LINES

#define PACE_MIN_TICKS (PACE_MIN_NS / HPET_NS_PER_TICK)
/* Ticks beyond this are centuries away: nobody waits for them. */
#define TICKS_MAX (1ull << 53)
/* A comparator that the counter passed by less than this, a second, was meant to be ahead of it. */
#define MISSED_MAX (1000000000ull / HPET_NS_PER_TICK)

/* Ticks are 100 ns of the virtual clock, counted from its start. */
struct hpet_state {
	uint64_t config;
	uint64_t counter; /* when halted; else its value at `started` */
	uint64_t started;
	uint32_t status;	    /* a bit a timer that is of the level kind and has matched */
	uint64_t conf[HPET_TIMERS]; /* TN_WRITABLE bits */
	bool val_set[HPET_TIMERS];
	uint64_t period[HPET_TIMERS]; /* last written in periodic mode */
	uint64_t cmp[HPET_TIMERS];    /* the comparator, as of the match at `due` */
	uint64_t base[HPET_TIMERS];   /* the accumulator as VAL_SET let it be written */
	bool unpaired[HPET_TIMERS];   /* the period that belongs to `base` may be yet to come */
	bool armed[HPET_TIMERS];
	uint64_t due[HPET_TIMERS]; /* the next match that was not dealt with; perhaps past */
};

struct hpet_timer {
	struct hpet *hpet;
	unsigned n;
	uint64_t wake; /* the tick at which `due` is dealt with: later than that when catching up */
	struct vtimer vtimer;
	struct irq_source irq;
};

struct hpet {
	struct device device;
	struct hpet_state state;
	struct hpet_timer timer[HPET_TIMERS];
	struct io_range range;
};

static bool hpet_check(const void *state)
{
	const struct hpet_state *s = state;

	for (unsigned n = 0; n < HPET_TIMERS; n++) {
		if (s->conf[n] & ~TN_WRITABLE || s->due[n] > 2 * TICKS_MAX)
			return false;
	}
	return !(s->config & ~CONFIG_WRITABLE) && !(s->status >> HPET_TIMERS) &&
	       s->started <= TICKS_MAX;
}

static const struct state_field hpet_fields[] = {
	STATE(struct hpet_state, config),
	STATE(struct hpet_state, counter),
	STATE(struct hpet_state, started),
	STATE(struct hpet_state, status),
	STATE_ARRAY(struct hpet_state, conf),
	STATE_ARRAY(struct hpet_state, val_set),
	STATE_ARRAY(struct hpet_state, period),
	STATE_ARRAY_OPT(struct hpet_state, cmp, UINT64_MAX, 0),
	STATE_ARRAY(struct hpet_state, base),
	STATE_ARRAY(struct hpet_state, unpaired),
	STATE_ARRAY(struct hpet_state, armed),
	STATE_ARRAY(struct hpet_state, due),
};
static const struct state_table hpet_table =
	STATE_TABLE("hpet", struct hpet_state, hpet_fields, 1, hpet_check);

static uint64_t hpet_tick(struct hpet *hpet)
{
	return vclock_now(hpet->device.vm->clock) / HPET_NS_PER_TICK;
}

static uint64_t hpet_counter(const struct hpet_state *s, uint64_t tick)
{
	return s->config & CONFIG_ENABLE ? s->counter + (tick - s->started) : s->counter;
}

static bool hpet_legacy(const struct hpet_state *s)
{
	return s->config == (CONFIG_ENABLE | CONFIG_LEGACY);
}

static uint64_t timer_mask(const struct hpet_state *s, unsigned n)
{
	return s->conf[n] & TN_32MODE ? UINT32_MAX : UINT64_MAX;
}

/* 0: not periodic. */
static uint64_t timer_period(const struct hpet_state *s, unsigned n)
{
	return s->conf[n] & TN_PERIODIC ? s->period[n] & timer_mask(s, n) : 0;
}

static unsigned timer_route(const struct hpet_state *s, unsigned n)
{
	unsigned route = (s->conf[n] & TN_ROUTE) >> TN_ROUTE_SHIFT;

	if (hpet_legacy(s) && n < 2)
		return n ? irq_isa_gsi(8) : irq_isa_gsi(0);
	return ROUTES >> route & 1 ? route : NO_ROUTE;
}

/* Lines follow routes and the status of level-triggered timers. */
static void hpet_update_lines(struct hpet *hpet)
{
	const struct hpet_state *s = &hpet->state;
	struct irq_router *router = &hpet->device.vm->irq;

	irq_router_replace(router, hpet_legacy(s));
	for (unsigned n = 0; n < HPET_TIMERS; n++) {
		struct irq_source *irq = &hpet->timer[n].irq;
		unsigned route = timer_route(s, n);
		bool up = (s->conf[n] & TN_LEVEL) && (s->conf[n] & TN_ENABLE) &&
			  (s->status & 1u << n) && route != NO_ROUTE;

		if (route != irq->gsi || !up)
			irq_source_set(irq, false);
		if (route != irq->gsi && route != NO_ROUTE)
			irq_source_init(irq, router, route);
		if (up)
			irq_source_set(irq, true);
	}
}

static void timer_wake_at(struct hpet_timer *timer, uint64_t tick)
{
	timer->wake = tick;
	vtimer_arm(&timer->vtimer, tick * HPET_NS_PER_TICK);
}

/* Goes on to the match after the one at `due`, `periods` further in periodic mode. */
static void timer_next(struct hpet_state *s, unsigned n, uint64_t periods)
{
	uint64_t period = timer_period(s, n);

	if (period) {
		s->due[n] += period * periods;
		s->cmp[n] += period * periods;
	} else {
		/* The counter comes by again when it has wrapped. */
		s->due[n] += 1ull << 32;
		s->armed[n] = s->conf[n] & TN_32MODE;
	}
	if (s->due[n] > TICKS_MAX || period > TICKS_MAX)
		s->armed[n] = false;
}

/* Passes over the matches up to now. */
static void timer_skip(struct hpet_state *s, unsigned n, uint64_t tick)
{
	uint64_t period = timer_period(s, n);

	if (!s->armed[n] || s->due[n] > tick)
		return;
	timer_next(s, n, period ? (tick - s->due[n]) / period + 1 : 1);
	if (s->armed[n] && s->due[n] <= tick)
		s->due[n] += (((tick - s->due[n]) >> 32) + 1) << 32;
}

/* Deals with one match, which is due. */
static void timer_match(struct hpet_timer *timer, uint64_t tick)
{
	struct hpet_state *s = &timer->hpet->state;
	unsigned n = timer->n;
	uint64_t period = timer_period(s, n), due = s->due[n];

	if (s->conf[n] & TN_LEVEL)
		s->status |= 1u << n;
	if (!(s->conf[n] & TN_ENABLE)) {
		timer_skip(s, n, tick);
		return;
	}
	if (s->conf[n] & TN_LEVEL)
		hpet_update_lines(timer->hpet);
	else if (timer_route(s, n) != NO_ROUTE)
		irq_source_pulse(&timer->irq);
	timer_next(s, n, period ? (pace_next_due(due, period, tick) - due) / period : 1);
	if (!s->armed[n])
		return;
	if (period)
		timer_wake_at(timer, pace_wake(s->due[n], period, tick, PACE_MIN_TICKS));
	else
		timer_wake_at(timer, s->due[n]);
}

/* Every register shows what has happened by now, even if the loop is late. */
static void hpet_sync(struct hpet *hpet, uint64_t tick)
{
	struct hpet_state *s = &hpet->state;

	for (unsigned n = 0; n < HPET_TIMERS; n++) {
		if (s->armed[n] && s->due[n] <= tick &&
		    (hpet->timer[n].wake <= tick || !(s->conf[n] & TN_ENABLE)))
			timer_match(&hpet->timer[n], tick);
	}
}

static void hpet_timer(void *arg)
{
	struct hpet_timer *timer = arg;
	struct hpet *hpet = timer->hpet;

	pthread_mutex_lock(&hpet->device.lock);
	hpet_sync(hpet, hpet_tick(hpet));
	pthread_mutex_unlock(&hpet->device.lock);
}

/* Works out the next match from the counter and the comparator. The host's timer runs only for those that
 * interrupt. */
static void timer_arm(struct hpet_timer *timer, uint64_t tick)
{
	struct hpet_state *s = &timer->hpet->state;
	unsigned n = timer->n;
	uint64_t away = (s->cmp[n] - hpet_counter(s, tick)) & timer_mask(s, n);

	vtimer_disarm(&timer->vtimer);
	s->due[n] = 0;
	s->armed[n] = (s->config & CONFIG_ENABLE) && away < TICKS_MAX - tick;
	if (!s->armed[n])
		return;
	s->due[n] = tick + away;
	if (s->conf[n] & TN_ENABLE)
		timer_wake_at(timer, s->due[n]);
}

static void hpet_arm(struct hpet *hpet, uint64_t tick)
{
	for (unsigned n = 0; n < HPET_TIMERS; n++)
		timer_arm(&hpet->timer[n], tick);
}

static void config_write(struct hpet *hpet, uint64_t value, uint64_t tick)
{
	struct hpet_state *s = &hpet->state;
	bool toggled = (s->config ^ value) & CONFIG_ENABLE;

	if (toggled) {
		for (unsigned n = 0; n < HPET_TIMERS; n++)
			timer_skip(s, n, tick);
		s->counter = hpet_counter(s, tick);
		s->started = tick;
	}
	s->config = value & CONFIG_WRITABLE;
	if (toggled)
		hpet_arm(hpet, tick);
	hpet_update_lines(hpet);
}

static void timer_config_write(struct hpet_timer *timer, uint64_t value, uint64_t tick)
{
	struct hpet_state *s = &timer->hpet->state;
	unsigned n = timer->n;

	timer_skip(s, n, tick);
	if (!(ROUTES >> ((value & TN_ROUTE) >> TN_ROUTE_SHIFT) & 1))
		value = (value & ~TN_ROUTE) | (s->conf[n] & TN_ROUTE);
	s->conf[n] = value & TN_WRITABLE;
	s->val_set[n] = (value & TN_VAL_SET) && (value & TN_PERIODIC);
	if (!(value & TN_LEVEL))
		s->status &= ~(1u << n);
	timer_arm(timer, tick);
	hpet_update_lines(timer->hpet);
}

/* Like timer_arm(), with a match that is due already if the counter has just gone by. */
static void timer_arm_late(struct hpet_timer *timer, uint64_t tick)
{
	struct hpet_state *s = &timer->hpet->state;
	unsigned n = timer->n;
	uint64_t gone = (hpet_counter(s, tick) - s->cmp[n]) & timer_mask(s, n);

	timer_arm(timer, tick);
	if (!(s->config & CONFIG_ENABLE) || !(s->conf[n] & TN_ENABLE) || gone >= MISSED_MAX ||
	    gone > tick)
		return;
	s->armed[n] = true;
	s->due[n] = tick - gone;
	timer_wake_at(timer, s->due[n]);
}

/* Section 2.3.9.2.2: in periodic mode what is written is the period, and the accumulator too if VAL_SET
 * asked for that just before. Most guests do that, and then write the period alone. */
static void comparator_write(struct hpet_timer *timer, uint64_t value, uint64_t written,
			     uint64_t tick)
{
	struct hpet_state *s = &timer->hpet->state;
	unsigned n = timer->n;
	bool periodic = s->conf[n] & TN_PERIODIC, whole = !periodic || s->val_set[n];
	uint64_t before, period, gone;

	timer_skip(s, n, tick);
	before = timer_period(s, n);
	if (periodic)
		s->period[n] = (s->period[n] & ~written) | (value & written);
	period = timer_period(s, n);
	if (whole) {
		s->cmp[n] = (s->cmp[n] & ~written) | (value & written);
		s->base[n] = s->cmp[n];
	} else if (s->unpaired[n] && period && s->cmp[n] == s->base[n] + before) {
		/* The match at `base` was given, and took the accumulator for the period. */
		gone = (hpet_counter(s, tick) - s->base[n]) & timer_mask(s, n);
		s->cmp[n] = s->base[n] + (gone / period + 1) * period;
	}
	s->unpaired[n] = periodic && s->val_set[n];
	s->val_set[n] = false;
	if (whole)
		timer_arm_late(timer, tick);
	else
		timer_arm(timer, tick);
}

static uint64_t reg_read(const struct hpet_state *s, uint64_t reg, uint64_t tick)
{
	unsigned n = (reg - REG_TIMERS) / TIMER_STRIDE;
	uint64_t value, period;

	switch (reg) {
	case REG_CAPABILITIES:
		return CAPABILITIES;
	case REG_CONFIG:
		return s->config;
	case REG_STATUS:
		return s->status;
	case REG_COUNTER:
		return hpet_counter(s, tick);
	}
	if (reg < REG_TIMERS || n >= HPET_TIMERS)
		return 0;
	switch (reg % TIMER_STRIDE) {
	case TIMER_CONFIG:
		return s->conf[n] | TN_PERIODIC_CAP | TN_64_CAP | ROUTES << 32;
	case TIMER_COMPARATOR:
		period = timer_period(s, n);
		value = s->cmp[n];
		if (period && s->armed[n] && s->due[n] <= tick)
			value += ((tick - s->due[n]) / period + 1) * period;
		return value & timer_mask(s, n);
	}
	return 0;
}

/* `written`: the bits of the register that the access covers; `value` has them in their places. */
static void reg_write(struct hpet *hpet, uint64_t reg, uint64_t value, uint64_t written,
		      uint64_t tick)
{
	struct hpet_state *s = &hpet->state;
	unsigned n = (reg - REG_TIMERS) / TIMER_STRIDE;

	switch (reg) {
	case REG_CONFIG:
		config_write(hpet, (s->config & ~written) | value, tick);
		return;
	case REG_STATUS:
		s->status &= ~value;
		hpet_update_lines(hpet);
		return;
	case REG_COUNTER:
		s->counter = (hpet_counter(s, tick) & ~written) | value;
		s->started = tick;
		hpet_arm(hpet, tick);
		return;
	}
	if (reg < REG_TIMERS || n >= HPET_TIMERS)
		return;
	if (reg % TIMER_STRIDE == TIMER_CONFIG)
		timer_config_write(&hpet->timer[n], (s->conf[n] & ~written) | value, tick);
	else if (reg % TIMER_STRIDE == TIMER_COMPARATOR)
		comparator_write(&hpet->timer[n], value, written, tick);
}

/* Section 2.3.2: aligned accesses of 32 or 64 bits; others are undefined: ones, or dropped. */
static uint64_t hpet_read(void *arg, uint64_t offset, unsigned size)
{
	struct hpet *hpet = arg;
	uint64_t tick, value;

	if (offset % size)
		return UINT64_MAX;
	pthread_mutex_lock(&hpet->device.lock);
	tick = hpet_tick(hpet);
	hpet_sync(hpet, tick);
	value = reg_read(&hpet->state, offset & ~7ull, tick);
	pthread_mutex_unlock(&hpet->device.lock);
	return size == 8 ? value : (uint32_t)(value >> (offset & 4) * 8);
}

static void hpet_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct hpet *hpet = arg;
	uint64_t tick, written = UINT64_MAX;

	if (offset % size)
		return;
	if (size == 4) {
		written = (uint64_t)UINT32_MAX << (offset & 4) * 8;
		value = value << (offset & 4) * 8 & written;
	}
	pthread_mutex_lock(&hpet->device.lock);
	tick = hpet_tick(hpet);
	hpet_sync(hpet, tick);
	reg_write(hpet, offset & ~7ull, value, written, tick);
	pthread_mutex_unlock(&hpet->device.lock);
}

static const struct io_ops hpet_ops = {IO_4 | IO_8, hpet_read, hpet_write};

static void hpet_quiesce(struct device *device)
{
	struct hpet *hpet = (struct hpet *)device;

	for (unsigned n = 0; n < HPET_TIMERS; n++)
		vtimer_disarm(&hpet->timer[n].vtimer);
}

static void hpet_reset(struct device *device)
{
	hpet_quiesce(device);
	hpet_update_lines((struct hpet *)device);
}

static void hpet_resume(struct device *device)
{
	struct hpet *hpet = (struct hpet *)device;
	struct hpet_state *s = &hpet->state;

	pthread_mutex_lock(&device->lock);
	hpet_update_lines(hpet);
	for (unsigned n = 0; n < HPET_TIMERS; n++) {
		if (s->armed[n] && (s->conf[n] & TN_ENABLE))
			timer_wake_at(&hpet->timer[n], s->due[n]);
	}
	pthread_mutex_unlock(&device->lock);
}

static void hpet_destroy(struct device *device)
{
	struct hpet *hpet = (struct hpet *)device;

	io_range_del(&device->vm->mmio, &hpet->range);
	io_bus_synchronize(&device->vm->mmio);
	for (unsigned n = 0; n < HPET_TIMERS; n++) {
		vtimer_destroy(&hpet->timer[n].vtimer);
		irq_source_set(&hpet->timer[n].irq, false);
	}
	irq_router_replace(&device->vm->irq, false);
	device_free(device);
}

static int hpet_create(struct vm *vm, struct config *config, struct device **out, struct error *err)
{
	struct hpet *hpet = device_alloc(&hpet_class, vm, sizeof(*hpet), "hpet");
	int rc;

	(void)config;
	if (!hpet)
		return error_set(err, ENOMEM, "no memory for the HPET");
	for (unsigned n = 0; n < HPET_TIMERS; n++) {
		struct hpet_timer *timer = &hpet->timer[n];

		timer->hpet = hpet;
		timer->n = n;
		vtimer_init(&timer->vtimer, vm->clock, hpet_timer, timer);
		irq_source_init(&timer->irq, &vm->irq, __builtin_ctzll(ROUTES));
	}
	hpet->range = (struct io_range){"hpet", HPET_BASE, HPET_SIZE, &hpet_ops, hpet};
	rc = io_range_add(&vm->mmio, &hpet->range, err);
	if (rc) {
		for (unsigned n = 0; n < HPET_TIMERS; n++)
			vtimer_destroy(&hpet->timer[n].vtimer);
		device_free(&hpet->device);
		return rc;
	}
	*out = &hpet->device;
	return 0;
}

const struct device_class hpet_class = {
	.name = "hpet",
	.help = "hpet  high precision event timers",
	.kind = DEVICE_CHIPSET,
	.create = hpet_create,
	.destroy = hpet_destroy,
	.reset = hpet_reset,
	.quiesce = hpet_quiesce,
	.resume = hpet_resume,
	.table = &hpet_table,
	.state_offset = offsetof(struct hpet, state),
};
DEVICE_REGISTER(hpet_class);
