/*
 * A console: a byte channel between a character device (UART, bvmcons, virtio-console ...) and something
 * on the host: the terminal, a tty, a file, a TCP or UNIX socket, a pty.
 *
 * Names (as in -l com1,NAME):
 *   stdio                     the terminal skep runs on, raw, with the ^A escape (^A x quits, ^A c
 *                             opens a prompt, ^A ^A sends ^A)
 *   tty=PATH or PATH          a character device such as /dev/ttyS0 or /dev/pts/3
 *   file=PATH                 output appended to a file, no input
 *   tcp=[ADDR:]PORT           listens (ADDR defaults to 127.0.0.1), one client at a time
 *   unix=PATH                 listens on a UNIX socket (mode 0600), one client at a time
 *   pty                       a new pseudo-terminal; its path is printed
 *   null                      output dropped, no input
 *
 * Flow control both ways: console_write() takes what fits into a bounded queue and says how much;
 * on_writable tells when there is room again. Input is pulled: on_readable says that there is some, and
 * console_read() takes as much as the device has room for; what it does not take stays with the host (and
 * stops the sender). With no client connected output is dropped and there is no input; the guest never
 * waits for somebody to connect.
 *
 * Threads: write and read from any thread, under the device's lock; the callbacks run on the loop thread
 * with no lock held.
 */
#ifndef BACKEND_CONSOLE_H
#define BACKEND_CONSOLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"

struct console;

struct console_events {
	void (*on_readable)(void *arg);
	void (*on_writable)(void *arg);
	void *arg;
};

/* What the ^A escape of a stdio console asks for; called on the loop thread. */
struct console_escape {
	void (*quit)(void *arg);
	/* Runs a command typed at the prompt (one line, without its end) and prints the answer. NULL: no prompt. */
	void (*command)(void *arg, const char *line, FILE *out);
	void *arg;
};

/* `escape` may be NULL. Two consoles cannot own stdio: -EBUSY with text. */
int console_open(struct console **out, const char *spec, struct loop *loop, struct log *log,
		 const struct console_events *events, const struct console_escape *escape,
		 struct error *err);
/* Writes out what is queued as far as the host takes it within 2 s; restores the terminal. No callback
 * afterwards. Not under the device's lock. */
void console_close(struct console *console);

/* Queues up to len bytes; returns how many were taken (0 when full). */
size_t console_write(struct console *console, const void *bytes, size_t len);
/* Takes up to len bytes of input; 0 when there is none now. */
size_t console_read(struct console *console, void *bytes, size_t len);
/* No more than a look: would console_read() give something? */
bool console_readable(struct console *console);

/* Puts the terminal back as it was before the first stdio console: signal-safe, from any way out. */
void console_restore_terminal(void);

#endif
