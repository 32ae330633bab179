/*
 * The terminal's guard: a child process that outlives a SIGKILL of skep, which skep itself cannot answer, by the moment it
 * takes to put the terminal back. It has nothing but the terminal and a pipe, which says whether skep has made the
 * terminal raw and, by its end, that skep is gone.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/console/internal.h"

#define TTY 0
#define PIPE 1

static bool same(const struct termios *a, const struct termios *b)
{
	return a->c_iflag == b->c_iflag && a->c_oflag == b->c_oflag && a->c_cflag == b->c_cflag &&
	       a->c_lflag == b->c_lflag;
}

/* In the child of a process that may have threads: nothing but what is safe in a signal handler. */
static _Noreturn void guard(const struct termios *saved, const struct termios *raw)
{
	struct termios now;
	bool is_raw = false;
	char c;

	while (read(PIPE, &c, 1) == 1)
		is_raw = c == GUARD_RAW;
	/* Whoever has changed the terminal since then, as some shells do, has it as they like. */
	if (is_raw && tcgetattr(TTY, &now) == 0 && same(&now, raw))
		tcsetattr(TTY, TCSANOW, saved);
	_exit(0);
}

static bool keep_only(int tty, int pipe_end)
{
	int high_tty = fcntl(tty, F_DUPFD, 10), high_pipe = fcntl(pipe_end, F_DUPFD, 10);

	return high_tty >= 0 && high_pipe >= 0 && dup2(high_tty, TTY) == TTY &&
	       dup2(high_pipe, PIPE) == PIPE && close_range(PIPE + 1, ~0u, 0) == 0;
}

void guard_start(struct guard *g, int tty, const struct termios *saved, const struct termios *raw)
{
	sigset_t all, old;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) != 0)
		return;
	/* A terminal is changed from the background if SIGTTOU is blocked; and what ends skep's group is not for it. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	g->pid = fork();
	if (g->pid == 0) {
		setpgid(0, 0);
		prctl(PR_SET_NAME, "skep-tty");
		if (!keep_only(tty, ends[0]))
			_exit(0);
		guard(saved, raw);
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	close(ends[0]);
	if (g->pid < 0)
		close(ends[1]);
	g->fd = g->pid < 0 ? -1 : ends[1];
}

void guard_tell(const struct guard *g, char what)
{
	/* A guard that was killed is as none. */
	if (g->fd >= 0 && write(g->fd, &what, 1) < 0)
		return;
}

void guard_stop(struct guard *g)
{
	if (g->fd < 0)
		return;
	close(g->fd);
	waitpid(g->pid, NULL, 0);
	g->fd = -1;
}
