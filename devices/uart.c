/*
 * 16550A UART (National Semiconductor PC16550D data sheet, June 1995): FIFOs, trigger levels, character
 * timeout, interrupt priorities, line and modem status with deltas, loopback, scratch, divisor latch.
 *
 * Deviations and what is left out:
 * - A character sent is on the host at once; when the console is full it stays in the transmitter FIFO and
 *   THRE stays clear until the console has room. Nothing is lost unless the guest ignores THRE.
 * - Input is fetched from the console only while the receiver has room, at no more than the programmed
 *   speed but at least 115200 baud's worth: an operating system gets a paste as from a real line.
 *   Overruns happen in loopback only.
 * - RTS low stops the input once a driver that takes receive interrupts has raised it (hardware flow
 *   control); a driver that polls and never touches RTS gets its input.
 * - Word length, parity and stop bits are kept, timed, but not applied to the data. A break is not sent to
 *   the host; in loopback it is received.
 * - DSR, DCD and CTS are always on, RI is off. The divisor is 1 after reset (the data sheet: undefined).
 * - INTR passes the OUT2 gate of the PC, in loopback by the register's bit, so drivers can test interrupts.
 * - DMA mode (FCR bit 3) is kept and has no effect: no PC wires RXRDY and TXRDY.
 */
#include "devices/uart.h"

#include <string.h>

#include "vmm/vm.h"

enum { /* registers */
       REG_DATA,
       REG_IER,
       REG_IIR_FCR,
       REG_LCR,
       REG_MCR,
       REG_LSR,
       REG_MSR,
       REG_SCR,
};

#define IER_RDA 0x01
#define IER_THRE 0x02
#define IER_RLS 0x04
#define IER_MSR 0x08
#define IER_MASK 0x0f

#define IIR_MSR 0x00
#define IIR_NONE 0x01
#define IIR_THRE 0x02
#define IIR_RDA 0x04
#define IIR_RLS 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFOS 0xc0

#define FCR_ENABLE 0x01
#define FCR_CLEAR_RX 0x02
#define FCR_CLEAR_TX 0x04
#define FCR_KEPT 0xc9 /* the trigger level, DMA mode, enable */

#define LCR_STOP 0x04
#define LCR_PARITY 0x08
#define LCR_BREAK 0x40
#define LCR_DLAB 0x80

#define MCR_DTR 0x01
#define MCR_RTS 0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define MCR_MASK 0x1f

#define LSR_DR 0x01
#define LSR_OE 0x02
#define LSR_PE 0x04
#define LSR_FE 0x08
#define LSR_BI 0x10
#define LSR_THRE 0x20
#define LSR_TEMT 0x40
#define LSR_FIFO_ERROR 0x80
#define LSR_ERRORS (LSR_OE | LSR_PE | LSR_FE | LSR_BI)

#define MSR_DELTAS 0x0f
#define MSR_TERI 0x04
#define MSR_CTS 0x10
#define MSR_DSR 0x20
#define MSR_RI 0x40
#define MSR_DCD 0x80
#define MSR_LINE UART_MSR_RESET

#define CLOCK_HZ 1843200u
#define FASTEST_HELD_BACK 115200u /* baud; slower lines are no brake on the console */

static const struct state_field uart_fields[] = {UART_FIELDS(struct uart_state, )};

static unsigned capacity(const struct uart_state *s)
{
	return s->fcr & FCR_ENABLE ? UART_FIFO : 1;
}

bool uart_state_check(const struct uart_state *s)
{
	bool empty = s->tx_count == 0;

	return (s->ier & ~IER_MASK) == 0 && (s->fcr & ~FCR_KEPT) == 0 &&
	       (s->mcr & ~MCR_MASK) == 0 && s->rx_count <= capacity(s) &&
	       s->tx_count <= capacity(s) && !!(s->lsr & LSR_DR) == (s->rx_count > 0) &&
	       !!(s->lsr & LSR_THRE) == empty && !!(s->lsr & LSR_TEMT) == empty;
}

static bool uart_check(const void *state)
{
	return uart_state_check(state);
}

const struct state_table uart_table =
	STATE_TABLE("uart", struct uart_state, uart_fields, 1, uart_check);

static unsigned trigger_level(const struct uart_state *s)
{
	static const uint8_t levels[] = {1, 4, 8, 14};

	return s->fcr & FCR_ENABLE ? levels[s->fcr >> 6] : 1;
}

/* Nanoseconds of `chars` characters on the line: start, word, parity and stop bits, 16 clocks each. */
static uint64_t char_time(const struct uart_state *s, unsigned chars)
{
	unsigned bits = 1 + 5 + (s->lcr & 3) + !!(s->lcr & LCR_PARITY) + 1 + !!(s->lcr & LCR_STOP);
	unsigned divisor = s->dlm << 8 | s->dll;

	/* Nothing moves at a divisor of 0; take what firmware that never sets one expects. */
	if (divisor == 0)
		divisor = 1;
	return mul_div_u64_up((uint64_t)chars * bits * 16 * divisor, NS_PER_SEC, CLOCK_HZ);
}

/* How long `chars` characters of input take at least. */
static uint64_t arrival_time(const struct uart_state *s, unsigned chars)
{
	uint64_t line = char_time(s, chars), most = chars * 10 * NS_PER_SEC / FASTEST_HELD_BACK;

	return line < most ? line : most;
}

/* Table 3 of the data sheet: the pending interrupt of the highest priority. */
static uint8_t interrupt_id(const struct uart_state *s)
{
	if ((s->ier & IER_RLS) && (s->lsr & LSR_ERRORS))
		return IIR_RLS;
	if ((s->ier & IER_RDA) && s->rx_count >= trigger_level(s))
		return IIR_RDA;
	if ((s->ier & IER_RDA) && s->timeout_pending)
		return IIR_TIMEOUT;
	if ((s->ier & IER_THRE) && s->thre_pending)
		return IIR_THRE;
	if ((s->ier & IER_MSR) && (s->msr & MSR_DELTAS))
		return IIR_MSR;
	return IIR_NONE;
}

static void update_irq(struct uart *uart)
{
	const struct uart_state *s = uart->state;
	bool level = (s->mcr & MCR_OUT2) && interrupt_id(s) != IIR_NONE;

	if (level != uart->irq_level) {
		uart->irq_level = level;
		uart->set_irq(uart->irq_arg, level);
	}
}

/* The error bits of the oldest character show in LSR; bit 7 says that one in the FIFO has some. */
static void update_rx_status(struct uart_state *s)
{
	s->lsr &= ~(LSR_DR | LSR_FIFO_ERROR);
	if (s->rx_count == 0)
		return;
	s->lsr |= LSR_DR | s->rx_error[0];
	s->rx_error[0] = 0;
	for (unsigned i = 0; i < s->rx_count; i++) {
		if ((s->fcr & FCR_ENABLE) && s->rx_error[i])
			s->lsr |= LSR_FIFO_ERROR;
	}
	if ((s->fcr & FCR_ENABLE) && (s->lsr & (LSR_PE | LSR_FE | LSR_BI)))
		s->lsr |= LSR_FIFO_ERROR;
}

/* Starts the wait for the character timeout; a timer that is early looks again when it fires. */
static void timeout_start(struct uart *uart, uint64_t now)
{
	struct uart_state *s = uart->state;

	s->rx_touched = now;
	if ((s->fcr & FCR_ENABLE) && s->rx_count && !s->timeout_pending && !uart->quiet &&
	    !vtimer_armed(&uart->timeout_timer))
		vtimer_arm(&uart->timeout_timer, now + char_time(s, 4));
}

static void receive(struct uart *uart, uint8_t c, uint8_t error, uint64_t now)
{
	struct uart_state *s = uart->state;
	unsigned room = capacity(s);

	if (s->rx_count == room) {
		/* The FIFO keeps its contents, the character in the shift register is lost; without FIFOs
		 * the new one replaces the one in RBR. */
		s->lsr |= LSR_OE;
		if (room == 1)
			s->rx[0] = c;
		return;
	}
	s->rx[s->rx_count] = c;
	s->rx_error[s->rx_count] = error;
	s->rx_count++;
	update_rx_status(s);
	timeout_start(uart, now);
}

static bool held_by_rts(const struct uart_state *s)
{
	return s->rts_seen && !(s->mcr & MCR_RTS) && (s->ier & IER_RDA);
}

/* Fetches as much input as there is room for, if the line is not still busy with the last. */
static void pull(struct uart *uart)
{
	struct uart_state *s = uart->state;
	uint8_t bytes[UART_FIFO];
	uint64_t now;
	size_t n;

	if (uart->quiet || (s->mcr & MCR_LOOP) || held_by_rts(s) || s->rx_count >= capacity(s) ||
	    vtimer_armed(&uart->line_timer) || !console_readable(uart->console))
		return;
	now = vclock_now(uart->vm->clock);
	if (now < s->rx_next) {
		vtimer_arm(&uart->line_timer, s->rx_next);
		return;
	}
	n = console_read(uart->console, bytes, capacity(s) - s->rx_count);
	for (size_t i = 0; i < n; i++)
		receive(uart, bytes[i], 0, now);
	s->rx_next = now + arrival_time(s, (unsigned)n);
	if (s->rx_count < capacity(s) && console_readable(uart->console))
		vtimer_arm(&uart->line_timer, s->rx_next);
}

/* Gives the console what it takes. */
static void push(struct uart *uart)
{
	struct uart_state *s = uart->state;
	size_t taken;

	if (s->tx_count == 0 || uart->quiet)
		return;
	taken = console_write(uart->console, s->tx, s->tx_count);
	s->tx_count -= (uint8_t)taken;
	memmove(s->tx, s->tx + taken, s->tx_count);
	if (s->tx_count == 0) {
		s->lsr |= LSR_THRE | LSR_TEMT;
		s->thre_pending = true;
	}
}

static void transmit(struct uart *uart, uint8_t c)
{
	struct uart_state *s = uart->state;

	s->thre_pending = false;
	/* A driver that never reads IIR still gets an edge for each time THR becomes empty. */
	update_irq(uart);
	if (s->mcr & MCR_LOOP) {
		receive(uart, c, 0, vclock_now(uart->vm->clock));
		s->thre_pending = s->tx_count == 0;
		return;
	}
	if (s->tx_count == capacity(s))
		return; /* written in spite of THRE */
	s->tx[s->tx_count++] = c;
	s->lsr &= ~(LSR_THRE | LSR_TEMT);
	push(uart);
}

/* The modem inputs: the line's, or in loopback our own outputs. */
static void update_modem(struct uart_state *s)
{
	uint8_t now = MSR_LINE, changed;

	if (s->mcr & MCR_LOOP)
		now = (s->mcr & MCR_RTS ? MSR_CTS : 0) | (s->mcr & MCR_DTR ? MSR_DSR : 0) |
		      (s->mcr & MCR_OUT1 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0);
	changed = (now ^ s->msr) & ~MSR_DELTAS;
	/* RI counts only when it goes away. */
	if (now & MSR_RI)
		changed &= ~MSR_RI;
	s->msr = (s->msr & MSR_DELTAS) | now | changed >> 4;
}

static void clear_rx(struct uart *uart)
{
	struct uart_state *s = uart->state;

	s->rx_count = 0;
	s->timeout_pending = false;
	update_rx_status(s);
}

static void clear_tx(struct uart_state *s)
{
	if (s->tx_count) {
		s->tx_count = 0;
		s->thre_pending = true;
	}
	s->lsr |= LSR_THRE | LSR_TEMT;
}

static void write_fcr(struct uart *uart, uint8_t value)
{
	struct uart_state *s = uart->state;
	bool toggled = (s->fcr ^ value) & FCR_ENABLE;

	/* Going from one mode to the other clears both FIFOs. */
	if (toggled || (value & FCR_CLEAR_RX))
		clear_rx(uart);
	if (toggled || (value & FCR_CLEAR_TX))
		clear_tx(s);
	/* The other bits are programmed only together with bit 0. */
	s->fcr = value & FCR_ENABLE ? value & FCR_KEPT : 0;
}

static void write_ier(struct uart_state *s, uint8_t value)
{
	uint8_t raised = ~s->ier & value;

	s->ier = value & IER_MASK;
	/* Enabling it while THR is empty asks for the interrupt at once. */
	if ((raised & IER_THRE) && (s->lsr & LSR_THRE))
		s->thre_pending = true;
}

static void write_lcr(struct uart *uart, uint8_t value)
{
	struct uart_state *s = uart->state;
	uint8_t raised = ~s->lcr & value;

	s->lcr = value;
	if ((raised & LCR_BREAK) && (s->mcr & MCR_LOOP))
		receive(uart, 0, LSR_BI | LSR_FE, vclock_now(uart->vm->clock));
}

static void write_mcr(struct uart_state *s, uint8_t value)
{
	s->mcr = value & MCR_MASK;
	if ((s->mcr & (MCR_RTS | MCR_LOOP)) == MCR_RTS)
		s->rts_seen = true;
	update_modem(s);
}

void uart_write(struct uart *uart, unsigned offset, uint8_t value)
{
	struct uart_state *s = uart->state;
	bool dlab;

	pthread_mutex_lock(uart->lock);
	dlab = s->lcr & LCR_DLAB;
	switch (offset) {
	case REG_DATA:
		if (dlab)
			s->dll = value;
		else
			transmit(uart, value);
		break;
	case REG_IER:
		if (dlab)
			s->dlm = value;
		else
			write_ier(s, value);
		break;
	case REG_IIR_FCR:
		write_fcr(uart, value);
		break;
	case REG_LCR:
		write_lcr(uart, value);
		break;
	case REG_MCR:
		write_mcr(s, value);
		break;
	case REG_SCR:
		s->scr = value;
		break;
	default: /* LSR and MSR: writes are for factory tests */
		break;
	}
	/* FCR, IER and MCR may have made room, or lifted a hold. */
	pull(uart);
	update_irq(uart);
	pthread_mutex_unlock(uart->lock);
}

static uint8_t read_rbr(struct uart *uart)
{
	struct uart_state *s = uart->state;
	uint8_t c = s->rx[0];

	if (s->rx_count == 0)
		return c;
	s->rx_count--;
	memmove(s->rx, s->rx + 1, s->rx_count);
	memmove(s->rx_error, s->rx_error + 1, s->rx_count);
	s->timeout_pending = false;
	update_rx_status(s);
	if (s->rx_count)
		timeout_start(uart, vclock_now(uart->vm->clock));
	pull(uart);
	return c;
}

static uint8_t read_iir(struct uart_state *s)
{
	uint8_t id = interrupt_id(s);

	if (id == IIR_THRE)
		s->thre_pending = false;
	return id | (s->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
}

static uint8_t read_lsr(struct uart_state *s)
{
	uint8_t value = s->lsr;

	s->lsr &= ~LSR_ERRORS;
	update_rx_status(s);
	return value;
}

uint8_t uart_read(struct uart *uart, unsigned offset)
{
	struct uart_state *s = uart->state;
	uint8_t value = 0;

	pthread_mutex_lock(uart->lock);
	switch (offset) {
	case REG_DATA:
		value = s->lcr & LCR_DLAB ? s->dll : read_rbr(uart);
		break;
	case REG_IER:
		value = s->lcr & LCR_DLAB ? s->dlm : s->ier;
		break;
	case REG_IIR_FCR:
		value = read_iir(s);
		break;
	case REG_LCR:
		value = s->lcr;
		break;
	case REG_MCR:
		value = s->mcr;
		break;
	case REG_LSR:
		value = read_lsr(s);
		break;
	case REG_MSR:
		value = s->msr;
		s->msr &= ~MSR_DELTAS;
		break;
	case REG_SCR:
		value = s->scr;
		break;
	}
	update_irq(uart);
	pthread_mutex_unlock(uart->lock);
	return value;
}

static void timeout_due(void *arg)
{
	struct uart *uart = arg;
	struct uart_state *s = uart->state;
	uint64_t deadline;

	pthread_mutex_lock(uart->lock);
	if (!uart->quiet && (s->fcr & FCR_ENABLE) && s->rx_count && !s->timeout_pending) {
		deadline = s->rx_touched + char_time(s, 4);
		if (vclock_now(uart->vm->clock) >= deadline)
			s->timeout_pending = true;
		else
			vtimer_arm(&uart->timeout_timer, deadline);
		update_irq(uart);
	}
	pthread_mutex_unlock(uart->lock);
}

static void input_due(void *arg)
{
	struct uart *uart = arg;

	pthread_mutex_lock(uart->lock);
	pull(uart);
	if (!uart->quiet)
		update_irq(uart);
	pthread_mutex_unlock(uart->lock);
}

static void output_due(void *arg)
{
	struct uart *uart = arg;

	pthread_mutex_lock(uart->lock);
	push(uart);
	if (!uart->quiet)
		update_irq(uart);
	pthread_mutex_unlock(uart->lock);
}

int uart_open(struct uart *uart, struct vm *vm, pthread_mutex_t *lock, const char *console,
	      void (*set_irq)(void *arg, bool level), void *irq_arg, struct error *err)
{
	const struct console_events events = {input_due, output_due, uart};
	const struct console_escape escape = {vm_quit, vm_command, vm};
	int rc;

	uart->vm = vm;
	uart->lock = lock;
	uart->set_irq = set_irq;
	uart->irq_arg = irq_arg;
	vtimer_init(&uart->timeout_timer, vm->clock, timeout_due, uart);
	vtimer_init(&uart->line_timer, vm->clock, input_due, uart);
	/* The callbacks find uart->console set. */
	pthread_mutex_lock(lock);
	rc = console_open(&uart->console, console, vm->loop, vm->log, &events, &escape, err);
	pthread_mutex_unlock(lock);
	return rc;
}

void uart_close(struct uart *uart)
{
	pthread_mutex_lock(uart->lock);
	uart->quiet = true;
	/* What the guest saw leave (THRE aside) goes out with the console's own queue. */
	console_write(uart->console, uart->state->tx, uart->state->tx_count);
	pthread_mutex_unlock(uart->lock);
	vtimer_destroy(&uart->line_timer);
	vtimer_destroy(&uart->timeout_timer);
	console_close(uart->console);
}

void uart_reset(struct uart *uart)
{
	pthread_mutex_lock(uart->lock);
	vtimer_disarm(&uart->line_timer);
	vtimer_disarm(&uart->timeout_timer);
	pull(uart);
	update_irq(uart);
	pthread_mutex_unlock(uart->lock);
}

void uart_quiesce(struct uart *uart)
{
	pthread_mutex_lock(uart->lock);
	uart->quiet = true;
	vtimer_disarm(&uart->line_timer);
	vtimer_disarm(&uart->timeout_timer);
	pthread_mutex_unlock(uart->lock);
}

void uart_resume(struct uart *uart)
{
	struct uart_state *s = uart->state;
	uint64_t now = vclock_now(uart->vm->clock);

	pthread_mutex_lock(uart->lock);
	uart->quiet = false;
	/* Times that a sound state cannot hold would stop the input for good. */
	if (s->rx_touched > now)
		s->rx_touched = now;
	if (s->rx_next > now + arrival_time(s, UART_FIFO))
		s->rx_next = now;
	if ((s->fcr & FCR_ENABLE) && s->rx_count && !s->timeout_pending)
		vtimer_arm(&uart->timeout_timer, s->rx_touched + char_time(s, 4));
	push(uart);
	pull(uart);
	update_irq(uart);
	pthread_mutex_unlock(uart->lock);
}
