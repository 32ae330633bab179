/*
 * The interval timer of a PC: Intel 8254 (data sheet 231164-005) at 1.193182 MHz, ports 40-43, and the
 * system control port 61 of the PIIX and ICH south bridges: gate of counter 2, speaker enable (no sound
 * comes), refresh toggle, output of counter 2. All six modes, binary and BCD, both latch commands.
 *
 * Nothing ticks here: a counter keeps the clock at which its count was loaded, and all that can be
 * seen is worked out from the virtual clock. Only counter 0 has a timer, for the rising edges of its
 * output. ISA IRQ 0 is always an edge, so the interrupt controllers get a pulse for each; the rise that
 * a control word itself causes gives none. How a late loop catches up: chipset/pace.h. A count of 1 in
 * modes 2 and 3, which the data sheet forbids, counts as 2. Left out: the parity and channel check
 * sources of NMI in port 61.
 */
#include "chipset/pit.h"

#include <errno.h>

#include "base/vclock.h"
#include "bus/io.h"
#include "bus/irq.h"
#include "chipset/pace.h"
#include "vmm/vm.h"

#define COUNTERS 3
#define SPEAKER 2 /* the counter with a gate; those of the others are tied high */
#define PORT_CONTROL 3

#define ACCESS_LOW 1
#define ACCESS_HIGH 2
#define ACCESS_BOTH 3

#define STATUS_OUT 0x80
#define STATUS_NULL 0x40
#define READBACK_NO_COUNT 0x20
#define READBACK_NO_STATUS 0x10

#define P61_GATE 0x01
#define P61_SPEAKER 0x02
#define P61_WRITABLE 0x0f
#define P61_REFRESH 0x10
#define P61_OUT 0x20
#define REFRESH_NS 15085 /* 18 clocks, of which the toggle shows each */

#define PACE_MIN_CLOCKS (PACE_MIN_NS * PIT_HZ / NS_PER_SEC)

/* Clocks are counted from the start of the virtual clock. */
struct pit_state {
	uint8_t mode[COUNTERS];	  /* 0 to 5 */
	uint8_t access[COUNTERS]; /* ACCESS_x */
	bool bcd[COUNTERS];
	bool high_next_write[COUNTERS], high_next_read[COUNTERS];
	uint8_t write_low[COUNTERS]; /* the first byte of two */
	uint32_t reload[COUNTERS];   /* count register: 1 to 65536, or to 10000 in BCD */
	bool load_pending[COUNTERS]; /* written, not yet in the counting element */
	uint64_t load_at[COUNTERS];  /* the clock that will load it; UINT64_MAX: a trigger will */
	bool counting[COUNTERS];     /* the counting element was loaded since the control word */
	uint32_t count[COUNTERS];    /* what was loaded */
	uint64_t start[COUNTERS];    /* the clock of that */
	uint64_t held[COUNTERS];     /* clocks counted when the gate fell */
	bool count_latched[COUNTERS], status_latched[COUNTERS];
	uint16_t latch[COUNTERS];
	uint8_t status[COUNTERS];
	bool due_valid; /* counter 0 has a rising edge to give, */
	uint64_t due;	/* at this clock */
	uint8_t port61; /* the bits that were written */
};

struct pit {
	struct device device;
	struct pit_state state;
	struct io_range counters, port61;
	struct irq_source irq;
	struct vtimer timer;
};

/* Within some centuries of 0: sums of such stay in range. */
static bool clock_check(uint64_t clock)
{
	return clock + (1ull << 53) < 1ull << 54;
}

static bool pit_check(const void *state)
{
	const struct pit_state *s = state;

	for (unsigned n = 0; n < COUNTERS; n++) {
		uint32_t max = s->bcd[n] ? 10000 : 65536;

		if (s->mode[n] > 5 || s->access[n] < ACCESS_LOW || s->access[n] > ACCESS_BOTH ||
		    !s->reload[n] || s->reload[n] > max || !s->count[n] || s->count[n] > max ||
		    !clock_check(s->start[n]) || !clock_check(s->held[n]) ||
		    (s->load_at[n] != UINT64_MAX && !clock_check(s->load_at[n])))
			return false;
	}
	return clock_check(s->due) && !(s->port61 & ~P61_WRITABLE);
}

static const struct state_field pit_fields[] = {
	STATE_ARRAY(struct pit_state, mode),
	STATE_ARRAY_OPT(struct pit_state, access, ACCESS_BOTH, 0),
	STATE_ARRAY(struct pit_state, bcd),
	STATE_ARRAY(struct pit_state, high_next_write),
	STATE_ARRAY(struct pit_state, high_next_read),
	STATE_ARRAY(struct pit_state, write_low),
	STATE_ARRAY_OPT(struct pit_state, reload, 65536, 0),
	STATE_ARRAY(struct pit_state, load_pending),
	STATE_ARRAY(struct pit_state, load_at),
	STATE_ARRAY(struct pit_state, counting),
	STATE_ARRAY_OPT(struct pit_state, count, 65536, 0),
	STATE_ARRAY(struct pit_state, start),
	STATE_ARRAY(struct pit_state, held),
	STATE_ARRAY(struct pit_state, count_latched),
	STATE_ARRAY(struct pit_state, status_latched),
	STATE_ARRAY(struct pit_state, latch),
	STATE_ARRAY(struct pit_state, status),
	STATE(struct pit_state, due_valid),
	STATE(struct pit_state, due),
	STATE(struct pit_state, port61),
};
static const struct state_table pit_table =
	STATE_TABLE("pit", struct pit_state, pit_fields, 1, pit_check);

static uint64_t pit_now(struct pit *pit)
{
	return mul_div_u64(vclock_now(pit->device.vm->clock), PIT_HZ, NS_PER_SEC);
}

static bool counter_gate(const struct pit_state *s, unsigned n)
{
	return n != SPEAKER || (s->port61 & P61_GATE);
}

static bool counter_is_periodic(const struct pit_state *s, unsigned n)
{
	return s->mode[n] == 2 || s->mode[n] == 3;
}

/* Modes 1 and 5 start at a rising gate. */
static bool counter_is_triggered(const struct pit_state *s, unsigned n)
{
	return s->mode[n] == 1 || s->mode[n] == 5;
}

/* Clocks in a period of modes 2 and 3. */
static uint32_t counter_period(const struct pit_state *s, unsigned n)
{
	return s->count[n] < 2 ? 2 : s->count[n];
}

static uint64_t counter_elapsed(const struct pit_state *s, unsigned n, uint64_t now)
{
	if (!s->counting[n])
		return 0;
	if (!counter_gate(s, n) && !counter_is_triggered(s, n))
		return s->held[n];
	/* The start of a square wave may lie before that of the clock. */
	return (int64_t)(now - s->start[n]) > 0 ? now - s->start[n] : 0;
}

static bool counter_out(const struct pit_state *s, unsigned n, uint64_t now)
{
	uint64_t elapsed = counter_elapsed(s, n, now);
	uint32_t period = counter_period(s, n);

	if (!s->counting[n])
		return s->mode[n] != 0;
	switch (s->mode[n]) {
	case 0:
	case 1:
		return elapsed >= s->count[n];
	case 2:
		return !counter_gate(s, n) || elapsed % period != period - 1;
	case 3:
		return !counter_gate(s, n) || elapsed % period < (period + 1) / 2;
	default:
		return elapsed != s->count[n];
	}
}

/* The counting element. */
static uint16_t counter_value(const struct pit_state *s, unsigned n, uint64_t now)
{
	uint64_t elapsed = counter_elapsed(s, n, now);
	uint32_t modulus = s->bcd[n] ? 10000 : 65536;
	uint32_t period = counter_period(s, n);
	uint32_t value, phase;

	if (s->mode[n] == 2) {
		value = period - elapsed % period;
	} else if (s->mode[n] == 3) {
		/* By twos, twice a period, from the even part of the count. */
		phase = elapsed % period;
		if (phase >= (period + 1) / 2)
			phase -= (period + 1) / 2;
		value = (period & ~1u) - 2 * phase;
	} else {
		value = s->count[n] + modulus - elapsed % modulus;
	}
	value %= modulus;
	if (!s->bcd[n])
		return value;
	return value / 1000 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 | value % 10;
}

static uint8_t counter_status(const struct pit_state *s, unsigned n, uint64_t now)
{
	bool null = s->load_pending[n] || !s->counting[n];

	return (counter_out(s, n, now) ? STATUS_OUT : 0) | (null ? STATUS_NULL : 0) |
	       s->access[n] << 4 | s->mode[n] << 1 | s->bcd[n];
}

/* The end of the current half of a square wave, or of a period of mode 2: where a new count is taken. */
static uint64_t counter_boundary(const struct pit_state *s, unsigned n, uint64_t now)
{
	uint64_t elapsed = counter_elapsed(s, n, now);
	uint32_t period = counter_period(s, n);
	uint64_t cycle = s->start[n] + elapsed / period * period;

	if (s->mode[n] == 3 && elapsed % period < (period + 1) / 2)
		return cycle + (period + 1) / 2;
	return cycle + period;
}

/* Calls pit_timer() at `clock`, or when a count is loaded before it. */
static void pit_arm(struct pit *pit, uint64_t clock)
{
	const struct pit_state *s = &pit->state;

	if (s->load_pending[0] && s->load_at[0] < clock)
		clock = s->load_at[0];
	vtimer_arm(&pit->timer, mul_div_u64_up(clock, NS_PER_SEC, PIT_HZ));
}

/* Clocks from the load of counter 0 to its (first) rising edge. */
static uint32_t pit_first_edge(const struct pit_state *s)
{
	return counter_is_periodic(s, 0) ? counter_period(s, 0) : s->count[0] + (s->mode[0] == 4);
}

static void counter_load(struct pit *pit, unsigned n)
{
	struct pit_state *s = &pit->state;
	uint64_t at = s->load_at[n];
	bool out = counter_out(s, n, at - 1);

	/* A timer that is late must not lose the last edge of the old count. */
	if (n == 0 && s->due_valid && s->due <= at)
		irq_source_pulse(&pit->irq);
	s->start[n] = at;
	s->count[n] = s->reload[n];
	/* A square wave that is loaded in its middle goes on with its second half. */
	if (s->mode[n] == 3 && s->counting[n] && counter_gate(s, n) && out)
		s->start[n] -= (counter_period(s, n) + 1) / 2;
	s->counting[n] = true;
	s->held[n] = 0;
	s->load_pending[n] = false;
	if (n)
		return;
	s->due_valid = true;
	s->due = s->start[0] + pit_first_edge(s);
	pit_arm(pit, s->due);
}

/* Loads what the clocks up to now have loaded. */
static void pit_sync(struct pit *pit, uint64_t now)
{
	struct pit_state *s = &pit->state;

	for (unsigned n = 0; n < COUNTERS; n++) {
		if (s->load_pending[n] && s->load_at[n] <= now)
			counter_load(pit, n);
	}
}

static void pit_timer(void *arg)
{
	struct pit *pit = arg;
	struct pit_state *s = &pit->state;
	uint64_t now, period;

	pthread_mutex_lock(&pit->device.lock);
	now = pit_now(pit);
	pit_sync(pit, now);
	if (!s->due_valid)
		goto out;
	if (s->due > now) {
		pit_arm(pit, s->due);
		goto out;
	}
	irq_source_pulse(&pit->irq);
	if (counter_is_periodic(s, 0)) {
		period = counter_period(s, 0);
		s->due = pace_next_due(s->due, period, now);
		pit_arm(pit, pace_wake(s->due, period, now, PACE_MIN_CLOCKS));
	} else {
		s->due_valid = false;
	}
out:
	pthread_mutex_unlock(&pit->device.lock);
}

static void pit_stop(struct pit *pit)
{
	pit->state.due_valid = false;
	vtimer_disarm(&pit->timer);
}

/* Data sheet, "Control Word Format": the count must be written anew. */
static void counter_program(struct pit *pit, unsigned n, uint8_t value)
{
	struct pit_state *s = &pit->state;
	unsigned mode = value >> 1 & 7;

	s->mode[n] = mode > 5 ? mode - 4 : mode;
	s->access[n] = value >> 4 & 3;
	s->bcd[n] = value & 1;
	s->high_next_write[n] = false;
	s->high_next_read[n] = false;
	s->count_latched[n] = false;
	s->status_latched[n] = false;
	s->load_pending[n] = false;
	s->counting[n] = false;
	s->held[n] = 0;
	/* What was counted so far means nothing now; keep it in range of BCD. */
	s->reload[n] = s->count[n] = s->bcd[n] ? 10000 : 65536;
	if (n == 0)
		pit_stop(pit);
}

static void counter_latch(struct pit_state *s, unsigned n, uint64_t now)
{
	if (s->count_latched[n])
		return;
	s->count_latched[n] = true;
	s->latch[n] = counter_value(s, n, now);
}

/* "Read-Back Command" */
static void pit_read_back(struct pit_state *s, uint8_t value, uint64_t now)
{
	for (unsigned n = 0; n < COUNTERS; n++) {
		if (!(value & 2u << n))
			continue;
		if (!(value & READBACK_NO_COUNT))
			counter_latch(s, n, now);
		if (!(value & READBACK_NO_STATUS) && !s->status_latched[n]) {
			s->status_latched[n] = true;
			s->status[n] = counter_status(s, n, now);
		}
	}
}

static void pit_control(struct pit *pit, uint8_t value, uint64_t now)
{
	unsigned n = value >> 6;

	if (n == 3)
		pit_read_back(&pit->state, value, now);
	else if (!(value & 0x30))
		counter_latch(&pit->state, n, now);
	else
		counter_program(pit, n, value);
}

static uint32_t count_decode(bool bcd, uint16_t raw)
{
	uint32_t count = raw;

	/* Digits above 9 count as what they are worth; the chip leaves them undefined. */
	if (bcd) {
		count = (raw >> 12) * 1000u + (raw >> 8 & 15) * 100u + (raw >> 4 & 15) * 10u +
			(raw & 15);
		count %= 10000;
	}
	return count ? count : bcd ? 10000 : 65536;
}

/* A complete count has been written. */
static void counter_set(struct pit *pit, unsigned n, uint16_t raw, uint64_t now)
{
	struct pit_state *s = &pit->state;

	s->reload[n] = count_decode(s->bcd[n], raw);
	s->load_pending[n] = true;
	if (counter_is_triggered(s, n))
		s->load_at[n] = UINT64_MAX;
	else if (counter_is_periodic(s, n) && s->counting[n])
		s->load_at[n] = counter_gate(s, n) ? counter_boundary(s, n, now) : UINT64_MAX;
	else
		s->load_at[n] = now + 1;
	if (n == 0 && s->load_at[0] != UINT64_MAX)
		pit_arm(pit, s->due_valid ? s->due : s->load_at[0]);
}

static void counter_write(struct pit *pit, unsigned n, uint8_t value, uint64_t now)
{
	struct pit_state *s = &pit->state;

	if (s->access[n] == ACCESS_LOW) {
		counter_set(pit, n, value, now);
	} else if (s->access[n] == ACCESS_HIGH) {
		counter_set(pit, n, value << 8, now);
	} else if (s->high_next_write[n]) {
		s->high_next_write[n] = false;
		counter_set(pit, n, value << 8 | s->write_low[n], now);
	} else {
		s->high_next_write[n] = true;
		s->write_low[n] = value;
		if (s->mode[n] != 0)
			return;
		/* "Mode 0": the first byte stops the counter and lowers its output. */
		s->counting[n] = false;
		s->load_pending[n] = false;
		if (n == 0)
			pit_stop(pit);
	}
}

static uint8_t counter_read(struct pit_state *s, unsigned n, uint64_t now)
{
	bool high = s->access[n] == ACCESS_HIGH || s->high_next_read[n];
	uint16_t value;

	if (s->status_latched[n]) {
		s->status_latched[n] = false;
		return s->status[n];
	}
	value = s->count_latched[n] ? s->latch[n] : counter_value(s, n, now);
	if (s->access[n] == ACCESS_BOTH)
		s->high_next_read[n] = !high;
	if (s->access[n] != ACCESS_BOTH || high)
		s->count_latched[n] = false;
	return high ? value >> 8 : value;
}

/* "Gate Pin Operations Summary". The gate of the speaker's counter is in the byte written to port 61. */
static void port61_set(struct pit_state *s, uint8_t value, uint64_t now)
{
	const unsigned n = SPEAKER;
	bool before = s->port61 & P61_GATE, gate = value & P61_GATE;

	if (before && !gate) {
		s->held[n] = counter_elapsed(s, n, now);
		/* The boundary at which a new count would be taken does not come now. */
		if (counter_is_periodic(s, n) && s->load_pending[n] && s->counting[n])
			s->load_at[n] = UINT64_MAX;
	}
	s->port61 = value & P61_WRITABLE;
	if (before || !gate)
		return;
	if (s->mode[n] == 0 || s->mode[n] == 4) {
		s->start[n] = now - s->held[n];
	} else if (s->counting[n] || s->load_pending[n]) {
		/* A trigger loads at the next clock; modes 2 and 3 begin anew. */
		s->load_pending[n] = true;
		s->load_at[n] = now + 1;
		if (counter_is_periodic(s, n))
			s->counting[n] = false;
	}
}

static uint64_t counters_read(void *arg, uint64_t offset, unsigned size)
{
	struct pit *pit = arg;
	uint64_t now, value = 0xff; /* "No-Operation (3-State)" */

	(void)size;
	if (offset == PORT_CONTROL)
		return value;
	pthread_mutex_lock(&pit->device.lock);
	now = pit_now(pit);
	pit_sync(pit, now);
	value = counter_read(&pit->state, offset, now);
	pthread_mutex_unlock(&pit->device.lock);
	return value;
}

static void counters_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct pit *pit = arg;
	uint64_t now;

	(void)size;
	pthread_mutex_lock(&pit->device.lock);
	now = pit_now(pit);
	pit_sync(pit, now);
	if (offset == PORT_CONTROL)
		pit_control(pit, value, now);
	else
		counter_write(pit, offset, value, now);
	pthread_mutex_unlock(&pit->device.lock);
}

static uint64_t port61_read(void *arg, uint64_t offset, unsigned size)
{
	struct pit *pit = arg;
	struct pit_state *s = &pit->state;
	uint64_t now, value;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&pit->device.lock);
	now = pit_now(pit);
	pit_sync(pit, now);
	value = s->port61 | (counter_out(s, SPEAKER, now) ? P61_OUT : 0);
	if (vclock_now(pit->device.vm->clock) / REFRESH_NS & 1)
		value |= P61_REFRESH;
	pthread_mutex_unlock(&pit->device.lock);
	return value;
}

static void port61_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct pit *pit = arg;
	uint64_t now;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&pit->device.lock);
	now = pit_now(pit);
	pit_sync(pit, now);
	port61_set(&pit->state, value, now);
	pthread_mutex_unlock(&pit->device.lock);
}

static const struct io_ops counters_ops = {IO_1, counters_read, counters_write};
static const struct io_ops port61_ops = {IO_1, port61_read, port61_write};

/* Of reset too: the line is low but in a pulse. */
static void pit_quiesce(struct device *device)
{
	vtimer_disarm(&((struct pit *)device)->timer);
}

static void pit_resume(struct device *device)
{
	struct pit *pit = (struct pit *)device;
	struct pit_state *s = &pit->state;

	pthread_mutex_lock(&device->lock);
	if (s->due_valid)
		pit_arm(pit, s->due);
	else if (s->load_pending[0] && s->load_at[0] != UINT64_MAX)
		pit_arm(pit, s->load_at[0]);
	pthread_mutex_unlock(&device->lock);
}

static void pit_destroy(struct device *device)
{
	struct pit *pit = (struct pit *)device;

	io_range_del(&device->vm->pio, &pit->counters);
	io_range_del(&device->vm->pio, &pit->port61);
	io_bus_synchronize(&device->vm->pio);
	vtimer_destroy(&pit->timer);
	device_free(device);
}

static int pit_create(struct vm *vm, struct config *config, struct device **out, struct error *err)
{
	struct pit *pit = device_alloc(&pit_class, vm, sizeof(*pit), "pit");
	int rc;

	(void)config;
	if (!pit)
		return error_set(err, ENOMEM, "no memory for the interval timer");
	irq_source_init_replaceable(&pit->irq, &vm->irq, irq_isa_gsi(0));
	vtimer_init(&pit->timer, vm->clock, pit_timer, pit);
	pit->counters = (struct io_range){"pit", 0x40, 4, &counters_ops, pit};
	pit->port61 = (struct io_range){"port61", 0x61, 1, &port61_ops, pit};
	rc = io_range_add(&vm->pio, &pit->counters, err);
	if (!rc) {
		rc = io_range_add(&vm->pio, &pit->port61, err);
		if (rc)
			io_range_del(&vm->pio, &pit->counters);
	}
	if (rc) {
		vtimer_destroy(&pit->timer);
		device_free(&pit->device);
		return rc;
	}
	*out = &pit->device;
	return 0;
}

const struct device_class pit_class = {
	.name = "pit",
	.help = "pit  8254 interval timer and port 61",
	.kind = DEVICE_CHIPSET,
	.create = pit_create,
	.destroy = pit_destroy,
	.reset = pit_quiesce,
	.quiesce = pit_quiesce,
	.resume = pit_resume,
	.table = &pit_table,
	.state_offset = offsetof(struct pit, state),
};
DEVICE_REGISTER(pit_class);
