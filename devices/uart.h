/*
 * The core of a 16550A UART between eight registers and a console, for whatever bus it sits on: the COM
 * ports and the PCI UART. See uart.c for what it implements.
 */
#ifndef DEVICES_UART_H
#define DEVICES_UART_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend/console/console.h"
#include "base/state.h"
#include "base/vclock.h"

#define UART_FIFO 16
#define UART_REGISTERS 8

struct uart_state {
	uint8_t ier, fcr, lcr, mcr, lsr, msr, scr, dll, dlm;
	bool thre_pending;    /* the THR-empty interrupt; reading IIR takes it away */
	bool timeout_pending; /* characters lie in the FIFO unread */
	bool rts_seen; /* the driver has raised RTS, so it means something when it drops it */
	uint8_t rx[UART_FIFO], rx_error[UART_FIFO]; /* oldest first; LSR error bits */
	uint8_t rx_count;
	uint8_t tx[UART_FIFO]; /* oldest first: what the console had no room for */
	uint8_t tx_count;
	uint64_t rx_next; /* virtual time from which on the line brings the next character */
	uint64_t
		rx_touched; /* virtual time of the last arrival or read: the character timeout's start */
};

extern const struct state_table uart_table; /* of a struct uart_state alone */

/* For the table of a device that has more state than that; `of` is empty or "member.". Its check calls
 * uart_state_check(). */
#define UART_FIELDS(type, of)                                                                   \
	STATE(type, of ier), STATE(type, of fcr), STATE(type, of lcr), STATE(type, of mcr),     \
		STATE_AT(type, of lsr, UART_LSR_RESET), STATE_AT(type, of msr, UART_MSR_RESET), \
		STATE(type, of scr), STATE_AT(type, of dll, 1), STATE(type, of dlm),            \
		STATE(type, of thre_pending), STATE(type, of timeout_pending),                  \
		STATE(type, of rts_seen), STATE_ARRAY(type, of rx),                             \
		STATE_ARRAY(type, of rx_error), STATE(type, of rx_count),                       \
		STATE_ARRAY(type, of tx), STATE(type, of tx_count), STATE(type, of rx_next),    \
		STATE(type, of rx_touched)
#define UART_LSR_RESET 0x60 /* nothing to send */
#define UART_MSR_RESET 0xb0 /* the line is up: CTS, DSR, DCD */

bool uart_state_check(const struct uart_state *state);

struct vm;

struct uart {
	struct uart_state *state; /* the device's; set before uart_open() */
	struct vm *vm;
	pthread_mutex_t *lock; /* the device's; guards all of this */
	struct console *console;
	struct vtimer timeout_timer, line_timer;
	bool irq_level;
	bool quiet; /* quiesced or going: nothing moves */
	void (*set_irq)(void *arg, bool level);
	void *irq_arg;
};

/* Opens the console and leaves the UART in its reset state (which its owner's device_alloc() has made).
 * `lock` is the owner's; set_irq is called under it. On failure nothing remains. */
int uart_open(struct uart *uart, struct vm *vm, pthread_mutex_t *lock, const char *console,
	      void (*set_irq)(void *arg, bool level), void *irq_arg, struct error *err);
/* After the registers were taken off their bus and no access is under way. Not under the lock. */
void uart_close(struct uart *uart);

/* offset < UART_REGISTERS. Both take the lock. */
uint8_t uart_read(struct uart *uart, unsigned offset);
void uart_write(struct uart *uart, unsigned offset, uint8_t value);

/* As in struct device_class. */
void uart_reset(struct uart *uart);
void uart_quiesce(struct uart *uart);
void uart_resume(struct uart *uart);

#endif
