/*
 * Inside of the consoles. Two bounded queues lie between the device and the host. Only the loop thread
 * touches the host's files: it fills `in` until that is full and empties `out` until the host takes no
 * more. They are in an epoll set of the console's own, edge-triggered: each file is tried until it says
 * EAGAIN, nothing is registered anew on the way, and a hang-up is told once (a pty without its other end
 * hangs up all the time). The loop watches that set.
 *
 * Reading ahead is what lets ^A x work while the guest takes no input.
 */
#ifndef BACKEND_CONSOLE_INTERNAL_H
#define BACKEND_CONSOLE_INTERNAL_H

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <termios.h>

#include "backend/console/console.h"

#define CONSOLE_QUEUE 65536u /* bytes, a power of two */

/* Head and tail run freely; their difference is what is inside. */
struct console_queue {
	uint32_t head, tail;
	uint8_t bytes[CONSOLE_QUEUE];
};

/* One direction of a host file. */
struct channel {
	int fd;	       /* ours to close; -1: there is none */
	bool socket;   /* recv and send with MSG_DONTWAIT */
	bool blocking; /* poll() before each call, and write no more than then certainly fits */
	size_t chunk;  /* that much */
	bool ready;    /* no EAGAIN since the last edge; files that epoll refuses always are */
};

struct console;

struct console_kind {
	const char *name;
	bool has_arg; /* NAME=ARG, else only NAME */
	int (*open)(struct console *console, const char *arg, struct error *err);
	/* Undoes open after the queue was flushed; the channels are closed by the caller. May be NULL. */
	void (*close)(struct console *console);
	/* The host file of a direction ended: 0 is its end, else -errno. NULL: that direction is dead. */
	void (*ended)(struct console *console, struct channel *channel, int rc);
	/* Somebody has connected to listen_fd. */
	void (*connect)(struct console *console);
};

/* The prompt of ^A c (monitor.c). */
struct monitor {
	bool on; /* what is typed goes there */
	char line[128];
	size_t line_len;
	char *text; /* what it says and the host has not taken, malloc'ed */
	size_t text_len, text_done;
};

/* A child that restores the terminal after a SIGKILL (guard.c). */
struct guard {
	int fd; /* the pipe to it; -1: there is none */
	pid_t pid;
};

#define GUARD_RAW 'r'
#define GUARD_RESTORED 'c'

struct console {
	const struct console_kind *kind;
	char *spec; /* for messages */
	struct loop *loop;
	struct log *log;
	struct console_events events;
	struct console_escape escape;
	struct loop_event kick;
	int epfd; /* rx, tx and listen_fd, edge-triggered */
	struct loop_fd node;

	pthread_mutex_t lock; /* guards what follows, up to the next comment */
	struct console_queue in, out;
	bool connected; /* output goes somewhere; else it is dropped */
	bool in_full;	/* reading the host stopped for want of room */
	bool refused;	/* console_write() could not take all */
	bool kicked;

	_Atomic bool closing; /* callbacks of the loop do nothing any more */
	/* the loop thread's */
	struct channel rx, tx;
	bool escapes;	  /* ^A is special */
	bool escape_seen; /* ^A was the last byte */
	struct monitor monitor;
	bool is_pty;
	bool is_terminal; /* stdio whose input is a terminal */
	struct loop_signal on_cont, on_tstp;
	/* tty */
	bool tty_saved;
	struct termios tty_termios;
	/* tcp, unix */
	int listen_fd;
	bool listening; /* listen_fd is watched */
	struct sockaddr_un unix_addr;
	dev_t unix_dev;
	ino_t unix_ino;
};

extern const struct console_kind console_stdio, console_tty, console_pty, console_file, console_tcp,
	console_unix;

/* Takes the file over and registers it. On failure the file is closed. */
int channel_open(struct console *console, struct channel *channel, int fd, uint32_t events,
		 struct error *err);
void channel_close(struct console *console, struct channel *channel);
/* Watches listen_fd for clients, or no longer. */
int console_listen(struct console *console, bool on);
/* Moves bytes both ways until the host says EAGAIN, then tells the device. The loop thread's. */
void console_pump(struct console *console);
/* Output goes somewhere from now on, or no longer: then what is queued is dropped. */
void console_set_connected(struct console *console, bool connected);
/* For stdio, before reading: true if the terminal is ours now (it is made raw then). */
bool terminal_ready(struct console *console);
/* Opens or leaves the prompt; nothing if the console has no commands. */
void monitor_toggle(struct console *console);
void monitor_key(struct console *console, uint8_t c);
/* Adds to what is shown; lines end as the terminal needs it. */
void monitor_say(struct console *console, const char *text, size_t len);
/* Without a guard, for want of processes, all goes on without. */
void guard_start(struct guard *g, int tty, const struct termios *saved, const struct termios *raw);
/* GUARD_RAW before, GUARD_RESTORED after; signal-safe. */
void guard_tell(const struct guard *g, char what);
void guard_stop(struct guard *g);
/* True if nobody has the other end of a pty open. */
bool pty_hung_up(int fd);

#endif
