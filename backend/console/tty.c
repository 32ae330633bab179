/*
 * Consoles on terminals: stdio, a tty, a pty.
 *
 * stdio: the flags of an open file are shared with the parent shell, so O_NONBLOCK is never set on fds 0
 * and 1. Terminals and pipes are opened once more by /proc/self/fd; where that is refused, poll() goes
 * before each call. The terminal is raw (ISIG and OPOST too: ^C is the guest's) while skep is in the
 * foreground; from the background it is neither read nor changed, so skep is not stopped by
 * SIGTTIN or SIGTTOU. SIGTSTP restores it and stops; SIGCONT makes it raw again. A guard (guard.c) restores it
 * after a SIGKILL.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backend/console/internal.h"

/*
 * The process's terminal is one, whatever the number of VMs, and signal handlers reach nothing else: the
 * only file-scope state. `saved` and `fd` are written before `raw` becomes true.
 */
static struct {
	atomic_flag taken;
	_Atomic bool raw;
	bool known; /* saved is valid */
	int fd;
	struct termios saved;
	struct guard guard;
} terminal = {.taken = ATOMIC_FLAG_INIT, .fd = -1, .guard.fd = -1};

static bool in_foreground(int fd)
{
	pid_t group = tcgetpgrp(fd);

	/* -1: not our controlling terminal, so there is no job control on it */
	return group < 0 || group == getpgrp();
}

void console_restore_terminal(void)
{
	int saved_errno = errno;
	sigset_t block, old;

	if (!atomic_exchange(&terminal.raw, false) || !in_foreground(terminal.fd))
		return;
	/* Should we just have lost the foreground: better a late restore than to be stopped here. */
	sigemptyset(&block);
	sigaddset(&block, SIGTTOU);
	pthread_sigmask(SIG_BLOCK, &block, &old);
	tcsetattr(terminal.fd, TCSANOW, &terminal.saved);
	guard_tell(&terminal.guard, GUARD_RESTORED);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	errno = saved_errno;
}

static void make_raw(struct termios *termios)
{
	cfmakeraw(termios);
	termios->c_cflag |= CREAD;
	termios->c_cc[VMIN] = 1;
	termios->c_cc[VTIME] = 0;
}

bool terminal_ready(struct console *console)
{
	struct termios raw;

	if (!in_foreground(console->rx.fd)) {
		if (atomic_exchange(&terminal.raw, false))
			log_set_raw_tty(console->log, false);
		return false;
	}
	if (terminal.raw)
		return true;
	if (!terminal.known && tcgetattr(console->rx.fd, &terminal.saved) != 0)
		return true; /* not to be had: then as it is */
	raw = terminal.saved;
	make_raw(&raw);
	terminal.fd = console->rx.fd;
	if (!terminal.known)
		guard_start(&terminal.guard, terminal.fd, &terminal.saved, &raw);
	terminal.known = true;
	guard_tell(&terminal.guard, GUARD_RAW);
	terminal.raw = true;
	tcsetattr(console->rx.fd, TCSANOW, &raw);
	if (isatty(console->log->fd))
		log_set_raw_tty(console->log, true);
	return true;
}

static void on_cont(void *arg, int signo)
{
	struct console *console = arg;

	(void)signo;
	/* A shell has set the terminal to its own liking meanwhile. */
	terminal.raw = false;
	console->rx.ready = console->rx.fd >= 0;
	console_pump(console);
}

static void on_tstp(void *arg, int signo)
{
	struct console *console = arg;

	(void)signo;
	console_restore_terminal();
	log_set_raw_tty(console->log, false);
	kill(getpid(), SIGSTOP);
}

/* A second open file on the same object, without side effects: terminals (a pty's master would become
 * a new pty) and FIFOs. */
static bool can_reopen(int fd, const struct stat *st)
{
	bool ptmx = S_ISCHR(st->st_mode) && major(st->st_rdev) == 5 && minor(st->st_rdev) == 2;

	return S_ISFIFO(st->st_mode) || (isatty(fd) && !ptmx);
}

/* One of fds 0 and 1 as a channel; left closed if there is none. */
static int stdio_channel(struct console *console, struct channel *channel, int fd, int mode,
			 uint32_t events, struct error *err)
{
	char path[32];
	struct stat st;
	int ours = -1;

	if (fstat(fd, &st) != 0)
		return 0; /* closed: no input, or output dropped */
	if (can_reopen(fd, &st)) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		ours = open(path, mode | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	}
	if (ours < 0) {
		ours = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		if (ours < 0)
			return error_set(err, errno, "console stdio: fd %d: %s", fd,
					 strerror(errno));
		channel->socket = S_ISSOCK(st.st_mode);
		channel->blocking = S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode);
		/* A writable pipe takes PIPE_BUF bytes, a writable terminal at least one. */
		channel->chunk = S_ISFIFO(st.st_mode) ? 4096 : 1;
	}
	return channel_open(console, channel, ours, events, err);
}

static int stdio_signals(struct console *console, struct error *err)
{
	int rc = loop_signal_add(console->loop, &console->on_cont, SIGCONT, on_cont, console, err);

	if (rc)
		return rc;
	rc = loop_signal_add(console->loop, &console->on_tstp, SIGTSTP, on_tstp, console, err);
	if (rc)
		loop_signal_del(&console->on_cont);
	return rc;
}

static int stdio_open(struct console *console, const char *arg, struct error *err)
{
	int rc;

	(void)arg;
	if (atomic_flag_test_and_set(&terminal.taken))
		return error_set(err, EBUSY,
				 "console stdio is in use by another device; only one can own it");
	rc = stdio_channel(console, &console->rx, STDIN_FILENO, O_RDONLY, EPOLLIN, err);
	if (rc == 0)
		rc = stdio_channel(console, &console->tx, STDOUT_FILENO, O_WRONLY, EPOLLOUT, err);
	if (rc == 0 && console->rx.fd >= 0 && isatty(console->rx.fd)) {
		rc = stdio_signals(console, err);
		console->is_terminal = rc == 0;
	}
	if (rc) {
		atomic_flag_clear(&terminal.taken);
		return rc;
	}
	console->connected = console->tx.fd >= 0;
	if (console->is_terminal)
		terminal_ready(console);
	return 0;
}

static void stdio_close(struct console *console)
{
	if (console->is_terminal) {
		loop_signal_del(&console->on_tstp);
		loop_signal_del(&console->on_cont);
	}
	console_restore_terminal();
	guard_stop(&terminal.guard);
	log_set_raw_tty(console->log, false);
	terminal.known = false;
	terminal.fd = -1;
	atomic_flag_clear(&terminal.taken);
}

/* The end of input is nothing worth a word; a reader that went is. */
static void stdio_ended(struct console *console, struct channel *channel, int rc)
{
	if (channel == &console->rx && console->is_terminal)
		console_restore_terminal();
	if (channel == &console->tx) {
		console_set_connected(console, false);
		log_warn(console->log,
			 "console stdio: output failed (%s) and is dropped from now on",
			 strerror(-rc));
	}
	channel_close(console, channel);
}

const struct console_kind console_stdio = {
	.name = "stdio",
	.open = stdio_open,
	.close = stdio_close,
	.ended = stdio_ended,
};

/* The second direction has its own descriptor, for epoll knows a descriptor once. */
static int duplex_open(struct console *console, int fd, struct error *err)
{
	int other = fcntl(fd, F_DUPFD_CLOEXEC, 3), rc;

	if (other < 0) {
		rc = error_set(err, errno, "console %s: %s", console->spec, strerror(errno));
		close(fd);
		return rc;
	}
	rc = channel_open(console, &console->rx, fd, EPOLLIN, err);
	if (rc) {
		close(other);
		return rc;
	}
	return channel_open(console, &console->tx, other, EPOLLOUT, err);
}

static int tty_open(struct console *console, const char *path, struct error *err)
{
	int fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	struct termios raw;
	struct stat st;

	if (fd < 0)
		return error_set(err, errno, "console %s: %s: %s", console->spec, path,
				 strerror(errno));
	if (fstat(fd, &st) != 0 || !S_ISCHR(st.st_mode)) {
		close(fd);
		return error_set(err, ENOTTY,
				 "console %s: %s is not a character device; for a plain file use "
				 "file=PATH",
				 console->spec, path);
	}
	if (tcgetattr(fd, &console->tty_termios) == 0) {
		console->tty_saved = true;
		raw = console->tty_termios;
		make_raw(&raw);
		raw.c_cflag |= CLOCAL;
		tcsetattr(fd, TCSANOW, &raw);
	}
	console->connected = true;
	return duplex_open(console, fd, err);
}

static void tty_close(struct console *console)
{
	if (console->tty_saved && console->rx.fd >= 0)
		tcsetattr(console->rx.fd, TCSANOW, &console->tty_termios);
}

static void tty_ended(struct console *console, struct channel *channel, int rc)
{
	if (channel == &console->rx && rc == 0 && !console->tty_saved) {
		channel_close(console, channel); /* the end of something like /dev/null */
		return;
	}
	log_warn(console->log, "console %s: hung up (%s); no more input, output is dropped",
		 console->spec, rc ? strerror(-rc) : "end of file");
	console_set_connected(console, false);
	channel_close(console, &console->rx);
	channel_close(console, &console->tx);
}

const struct console_kind console_tty = {
	.name = "tty",
	.has_arg = true,
	.open = tty_open,
	.close = tty_close,
	.ended = tty_ended,
};

bool pty_hung_up(int fd)
{
	struct pollfd p = {.fd = fd, .events = 0};

	return poll(&p, 1, 0) > 0 && (p.revents & POLLHUP);
}

/* Raw, and opened and closed once: a pty whose other end was never open does not say that it is not. */
static int pty_prepare(int master, char *path, size_t size)
{
	struct termios raw;
	int slave, rc;

	if (grantpt(master) != 0 || unlockpt(master) != 0)
		return -errno;
	rc = ptsname_r(master, path, size);
	if (rc)
		return -rc;
	slave = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		return -errno;
	if (tcgetattr(slave, &raw) == 0) {
		make_raw(&raw);
		tcsetattr(slave, TCSANOW, &raw);
	}
	close(slave);
	return 0;
}

static int pty_open(struct console *console, const char *arg, struct error *err)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC), rc;
	char path[64];

	(void)arg;
	rc = master < 0 ? -errno : pty_prepare(master, path, sizeof(path));
	if (rc) {
		if (master >= 0)
			close(master);
		return error_set(err, -rc, "console pty: cannot be made: %s", strerror(-rc));
	}
	console->is_pty = true;
	console->connected = true;
	rc = duplex_open(console, master, err);
	if (rc == 0)
		log_warn(console->log, "console pty: %s", path);
	return rc;
}

/* EIO: the other end is closed. The next byte typed there is an edge. */
static void pty_ended(struct console *console, struct channel *channel, int rc)
{
	(void)rc;
	if (channel == &console->tx)
		console_set_connected(console, true);
}

const struct console_kind console_pty = {.name = "pty", .open = pty_open, .ended = pty_ended};
