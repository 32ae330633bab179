/*
 * Consoles against what a person or a program at the other end would see. The loop runs on this thread
 * until a condition is met or 20 s have passed; the "device" is a struct user.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <netinet/in.h>

#include <cmocka.h>

#include "backend/console/console.h"

#define VOLUME (4u << 20)
#define PASTE 65536u

struct user {
	struct loop *loop;
	struct log log;
	int log_fd;
	struct console *console;
	unsigned readable, writable, quits;
	struct loop_event tick;
	struct error err;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* The byte at a place of the stream: loss, doubling and reordering all show. */
static uint8_t pattern(uint64_t at)
{
	return (uint8_t)((at * 0x9e3779b97f4a7c15ull) >> 56) | 0x20;
}

static void on_readable(void *arg)
{
	((struct user *)arg)->readable++;
}

static void on_writable(void *arg)
{
	((struct user *)arg)->writable++;
}

static void on_quit(void *arg)
{
	((struct user *)arg)->quits++;
}

static void on_tick(void *arg)
{
	loop_stop(((struct user *)arg)->loop);
}

static void on_alarm(void *arg, int signo)
{
	(void)signo;
	on_tick(arg);
}

/* One round of the loop: everything that is due now. */
static void turn(struct user *u)
{
	loop_event_post(&u->tick);
	assert_int_equal(loop_run(u->loop), 0);
}

#define UNTIL(u, condition)                                        \
	do {                                                       \
		uint64_t end = now_ns() + 20000000000ull;          \
		while (!(condition)) {                             \
			if (now_ns() > end)                        \
				fail_msg("never: %s", #condition); \
			turn(u);                                   \
		}                                                  \
	} while (0)

/* A command whose answer is longer than a console's queue, and what was typed. */
static void on_command(void *arg, const char *line, FILE *out)
{
	(void)arg;
	if (strcmp(line, "much") == 0)
		for (unsigned i = 0; i < 10000; i++)
			fprintf(out, "line %u\n", i);
	fprintf(out, "ran <%s>\n", line);
}

static void user_start(struct user *u)
{
	char name[] = "/tmp/skep-test-log-XXXXXX";

	memset(u, 0, sizeof(*u));
	u->log_fd = mkstemp(name);
	assert_true(u->log_fd >= 0);
	unlink(name);
	log_init(&u->log, u->log_fd, LOG_INFO);
	assert_int_equal(loop_create(&u->loop, &u->err), 0);
	assert_int_equal(loop_event_init(u->loop, &u->tick, on_tick, u, &u->err), 0);
}

static int user_try(struct user *u, const char *spec)
{
	struct console_events events = {on_readable, on_writable, u};
	struct console_escape escape = {on_quit, on_command, u};

	return console_open(&u->console, spec, u->loop, &u->log, &events, &escape, &u->err);
}

static void user_open(struct user *u, const char *spec)
{
	user_start(u);
	if (user_try(u, spec))
		fail_msg("%s", u->err.text);
}

static void user_end(struct user *u)
{
	if (u->console)
		console_close(u->console);
	u->console = NULL;
	loop_event_destroy(&u->tick);
	loop_destroy(u->loop);
	close(u->log_fd);
}

/* What was logged so far; valid until the next call. */
static const char *user_log(struct user *u)
{
	static char text[4096];
	ssize_t n = pread(u->log_fd, text, sizeof(text) - 1, 0);

	text[n > 0 ? n : 0] = '\0';
	return text;
}

/* Takes `len` bytes of the pattern out of the console, a few at a time as a UART would. */
static void user_expect(struct user *u, uint64_t len)
{
	uint64_t at = 0;
	uint8_t bytes[16];

	while (at < len) {
		size_t n = console_read(u->console, bytes, sizeof(bytes));

		for (size_t i = 0; i < n; i++, at++)
			assert_int_equal(bytes[i], pattern(at));
		if (n == 0)
			UNTIL(u, console_readable(u->console));
	}
	assert_false(console_readable(u->console));
}

/* Sends the pattern with a reader at `fd` that comes only when nothing fits any more. */
static void user_send_slow(struct user *u, int fd, uint64_t len)
{
	uint64_t sent = 0, seen = 0;
	uint8_t bytes[4096];
	bool was_full = false;

	while (seen < len) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		size_t n = 0;

		while (sent < len) {
			for (n = 0; n < sizeof(bytes) && sent + n < len; n++)
				bytes[n] = pattern(sent + n);
			n = console_write(u->console, bytes, n);
			sent += n;
			if (n < sizeof(bytes))
				break;
		}
		was_full |= sent < len;
		turn(u);
		if (poll(&p, 1, 0) > 0) {
			ssize_t got = read(fd, bytes, sizeof(bytes));

			assert_true(got > 0);
			for (ssize_t i = 0; i < got; i++, seen++)
				assert_int_equal(bytes[i], pattern(seen));
		}
	}
	assert_true(was_full);
	assert_true(u->writable > 0);
	assert_int_equal(seen, len);
}

/* A process that writes the pattern to fd, blocking, and ends. */
static pid_t feed(int fd, uint64_t len)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		uint8_t byte[512];
		uint64_t at = 0;

		while (at < len) {
			size_t n = 0;
			ssize_t done;

			for (; n < sizeof(byte) && at + n < len; n++)
				byte[n] = pattern(at + n);
			done = write(fd, byte, n);
			if (done < 0 && errno == EAGAIN)
				poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, 1000);
			else if (done < 0)
				_exit(1);
			else
				at += (uint64_t)done;
		}
		_exit(0);
	}
	return pid;
}

static void fed(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* Puts files in the place of stdin and stdout while a test runs. */
struct stdio {
	int in, out;
};

static struct stdio stdio_swap(int in, int out)
{
	struct stdio old = {dup(0), dup(1)};

	fflush(stdout);
	assert_int_equal(dup2(in, 0), 0);
	assert_int_equal(dup2(out, 1), 1);
	return old;
}

static void stdio_back(struct stdio old)
{
	dup2(old.in, 0);
	dup2(old.out, 1);
	close(old.in);
	close(old.out);
}

static int pty_pair(int *slave)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY);
	char path[64];

	assert_true(master >= 0);
	assert_int_equal(grantpt(master), 0);
	assert_int_equal(unlockpt(master), 0);
	assert_int_equal(ptsname_r(master, path, sizeof(path)), 0);
	*slave = open(path, O_RDWR | O_NOCTTY);
	assert_true(*slave >= 0);
	return master;
}

static void assert_same_termios(const struct termios *a, const struct termios *b)
{
	assert_int_equal(a->c_iflag, b->c_iflag);
	assert_int_equal(a->c_oflag, b->c_oflag);
	assert_int_equal(a->c_cflag, b->c_cflag);
	assert_int_equal(a->c_lflag, b->c_lflag);
	assert_memory_equal(a->c_cc, b->c_cc, VEOL2 + 1);
}

static size_t read_all(struct user *u, int fd, char *text, size_t len)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	size_t at = 0;

	UNTIL(u, poll(&p, 1, 10) > 0);
	while (at < len && poll(&p, 1, 20) > 0) {
		ssize_t n = read(fd, text + at, len - at);

		if (n <= 0)
			break;
		at += (size_t)n;
		turn(u);
	}
	return at;
}

static void bad_names_are_refused(void **state)
{
	static const char *const specs[] = {
		"",
		"stdout",
		"stdio=x",
		"tty",
		"tty=",
		"file=",
		"tcp=",
		"tcp=1.2.3.4:x",
		"tcp=70000",
		"tcp=1:2:3",
		"unix=",
		"/nowhere/tty",
		"/etc/hosts",
		"file=/nowhere/x",
		"unix=/nowhere/x.sock",
		"null=1",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(specs) / sizeof(specs[0]); i++) {
		struct user u;

		user_start(&u);
		assert_true(user_try(&u, specs[i]) < 0);
		assert_true(strlen(u.err.text) > 10);
		if (specs[i][0])
			assert_non_null(strstr(u.err.text, specs[i]));
		user_end(&u);
	}
}

static void null_swallows(void **state)
{
	struct user u;
	char c;

	(void)state;
	user_open(&u, "null");
	for (unsigned i = 0; i < 100000; i++)
		assert_int_equal(console_write(u.console, "x", 1), 1);
	turn(&u);
	assert_false(console_readable(u.console));
	assert_int_equal(console_read(u.console, &c, 1), 0);
	user_end(&u);
}

static void file_is_appended_and_complete(void **state)
{
	char path[] = "/tmp/skep-test-file-XXXXXX", spec[64], text[64] = "";
	int fd = mkstemp(path);
	struct user u;

	(void)state;
	assert_int_equal(write(fd, "before ", 7), 7);
	snprintf(spec, sizeof(spec), "file=%s", path);
	user_open(&u, spec);
	assert_int_equal(console_write(u.console, "after", 5), 5);
	/* never a turn of the loop: closing writes it out */
	user_end(&u);
	assert_int_equal(pread(fd, text, sizeof(text) - 1, 0), 12);
	assert_string_equal(text, "before after");
	unlink(path);
	close(fd);
}

static void full_disk_is_told_once(void **state)
{
	struct user u;

	(void)state;
	user_open(&u, "file=/dev/full");
	for (unsigned i = 0; i < 50; i++) {
		assert_int_equal(console_write(u.console, "x", 1), 1);
		turn(&u);
	}
	char *first = strstr(user_log(&u), "dropped");

	assert_non_null(first);
	assert_null(strstr(first + 1, "dropped"));
	user_end(&u);
}

static void pipes_lose_nothing(void **state)
{
	int in[2], out[2], flags;
	struct stdio old;
	struct user u;
	pid_t pid;

	(void)state;
	assert_int_equal(pipe(in), 0);
	assert_int_equal(pipe(out), 0);
	old = stdio_swap(in[0], out[1]);
	user_open(&u, "stdio");
	flags = fcntl(0, F_GETFL) | fcntl(1, F_GETFL);
	stdio_back(old);
	/* the parent shell shares those */
	assert_int_equal(flags & O_NONBLOCK, 0);
	pid = feed(in[1], VOLUME);
	user_expect(&u, VOLUME);
	fed(pid);
	user_send_slow(&u, out[0], VOLUME);
	/* the writer goes: just no more input, and no work for the loop */
	close(in[1]);
	for (unsigned i = 0; i < 10; i++)
		turn(&u);
	assert_false(console_readable(u.console));
	/* the reader goes */
	close(out[0]);
	assert_int_equal(console_write(u.console, "x", 1), 1);
	UNTIL(&u, strstr(user_log(&u), "dropped"));
	for (unsigned i = 0; i < 100000; i++)
		assert_int_equal(console_write(u.console, "x", 1), 1);
	user_end(&u);
	close(in[0]);
	close(out[1]);
}

static void stdin_of_any_kind(void **state)
{
	char path[] = "/tmp/skep-test-stdin-XXXXXX";
	int file = mkstemp(path), null = open("/dev/null", O_RDWR), pair[2];
	uint8_t byte;
	struct stdio old;
	struct user u;

	(void)state;
	unlink(path);
	fed(feed(file, VOLUME / 4));
	lseek(file, 0, SEEK_SET);
	old = stdio_swap(file, null);
	user_open(&u, "stdio");
	stdio_back(old);
	user_expect(&u, VOLUME / 4);
	user_end(&u);

	old = stdio_swap(null, null);
	user_open(&u, "stdio");
	stdio_back(old);
	for (unsigned i = 0; i < 4; i++)
		turn(&u);
	assert_int_equal(console_read(u.console, &byte, 1), 0);
	user_end(&u);

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	old = stdio_swap(pair[0], pair[0]);
	user_open(&u, "stdio");
	stdio_back(old);
	fed(feed(pair[1], PASTE));
	user_expect(&u, PASTE);
	user_send_slow(&u, pair[1], VOLUME / 4);
	user_end(&u);
	close(pair[0]);
	close(pair[1]);
	close(null);
	close(file);
}

/* A process that busy-loops at the end of its input would be seen by its user. */
static void idle_uses_no_cpu(void **state)
{
	int in[2], null = open("/dev/null", O_RDWR);
	struct loop_signal alarm_node = {0};
	struct rusage before, after;
	struct itimerval timer = {.it_value.tv_usec = 100000};
	struct stdio old;
	struct user u;
	long used;

	(void)state;
	assert_int_equal(pipe(in), 0);
	old = stdio_swap(in[0], null);
	user_open(&u, "stdio");
	stdio_back(old);
	close(in[1]);
	for (unsigned i = 0; i < 4; i++)
		turn(&u);
	/* the loop waits until the alarm stops it */
	assert_int_equal(loop_signal_add(u.loop, &alarm_node, SIGALRM, on_alarm, &u, &u.err), 0);
	getrusage(RUSAGE_SELF, &before);
	setitimer(ITIMER_REAL, &timer, NULL);
	assert_int_equal(loop_run(u.loop), 0);
	getrusage(RUSAGE_SELF, &after);
	used = (after.ru_utime.tv_sec - before.ru_utime.tv_sec) * 1000000 + after.ru_utime.tv_usec -
	       before.ru_utime.tv_usec +
	       (after.ru_stime.tv_sec - before.ru_stime.tv_sec) * 1000000 + after.ru_stime.tv_usec -
	       before.ru_stime.tv_usec;
	assert_in_range(used, 0, 20000);
	loop_signal_del(&alarm_node);
	user_end(&u);
	close(in[0]);
	close(null);
}

static void terminal_is_raw_and_restored(void **state)
{
	struct termios before, raw, after;
	int slave, master = pty_pair(&slave), flags;
	char text[64] = "";
	struct stdio old;
	struct user u;

	(void)state;
	assert_int_equal(tcgetattr(slave, &before), 0);
	for (unsigned how = 0; how < 2; how++) {
		old = stdio_swap(slave, slave);
		user_open(&u, "stdio");
		flags = fcntl(0, F_GETFL);
		stdio_back(old);
		assert_int_equal(flags & O_NONBLOCK, 0);
		assert_int_equal(tcgetattr(slave, &raw), 0);
		assert_int_equal(raw.c_lflag & (ICANON | ECHO | ISIG | IEXTEN), 0);
		assert_int_equal(raw.c_iflag & (ICRNL | IXON), 0);
		assert_int_equal(raw.c_oflag & OPOST, 0);
		/* ^C, ^Z and CR are the guest's */
		assert_int_equal(write(master, "\003\032\r", 3), 3);
		UNTIL(&u, console_readable(u.console));
		assert_int_equal(console_read(u.console, text, 8), 3);
		assert_memory_equal(text, "\003\032\r", 3);
		assert_int_equal(console_write(u.console, "a\nb", 3), 3);
		assert_int_equal(read_all(&u, master, text, sizeof(text)), 3);
		assert_memory_equal(text, "a\nb", 3);
		if (how == 0) {
			user_end(&u);
		} else {
			/* as a handler of a fatal signal does */
			console_restore_terminal();
		}
		assert_int_equal(tcgetattr(slave, &after), 0);
		assert_same_termios(&after, &before);
	}
	user_end(&u);
	close(slave);
	close(master);
}

static void terminal_hang_up_is_the_end_of_input(void **state)
{
	int slave, master = pty_pair(&slave);
	struct stdio old;
	struct user u;

	(void)state;
	old = stdio_swap(slave, slave);
	user_open(&u, "stdio");
	stdio_back(old);
	close(slave);
	close(master);
	for (unsigned i = 0; i < 4; i++)
		turn(&u);
	/* Again and again: the guard, a child of this process, may not have closed the other end yet. */
	UNTIL(&u, console_write(u.console, "x", 1) && strstr(user_log(&u), "dropped"));
	user_end(&u);
}

static void escapes(void **state)
{
	int slave, master = pty_pair(&slave);
	char text[64] = "";
	struct stdio old;
	struct user u;

	(void)state;
	old = stdio_swap(slave, slave);
	user_open(&u, "stdio");
	stdio_back(old);
	/* ^A alone is kept back; its partner may come later */
	assert_int_equal(write(master, "a\001", 2), 2);
	UNTIL(&u, console_readable(u.console));
	assert_int_equal(write(master, "\001b\001h\001?c", 7), 7);
	UNTIL(&u, strstr(user_log(&u), "quits"));
	assert_int_equal(console_read(u.console, text, sizeof(text)), 4);
	assert_memory_equal(text, "a\001bc", 4);
	assert_int_equal(u.quits, 0);
	/* it works while the guest takes nothing */
	assert_int_equal(write(master, "hanging\001x", 9), 9);
	UNTIL(&u, u.quits == 1);
	user_end(&u);

	close(slave);
	close(master);
}

/* All that comes at a terminal's other end until `text`, which need not be seen whole in one read. */
static void read_until(struct user *u, int master, const char *text)
{
	static char seen[1 << 18];
	uint64_t end = now_ns() + 20000000000u;
	size_t len = 0;

	fcntl(master, F_SETFL, O_NONBLOCK);
	seen[0] = '\0';
	while (!strstr(seen, text)) {
		if (now_ns() > end)
			fail_msg("never: %s, but %s", text, seen);
		ssize_t n = read(master, seen + len, sizeof(seen) - 1 - len);

		turn(u);
		if (n > 0)
			len += (size_t)n;
		seen[len] = '\0';
	}
}

static void prompt(void **state)
{
	int slave, master = pty_pair(&slave);
	char text[16] = "";
	struct stdio old;
	struct user u;

	(void)state;
	old = stdio_swap(slave, slave);
	user_open(&u, "stdio");
	stdio_back(old);
	assert_int_equal(write(master, "\001c", 2), 2);
	read_until(&u, master, "(skep) ");
	/* the least of editing: backspace, ^U, ^C, blanks around */
	assert_int_equal(write(master, "xx\003 onx\177e \r", 11), 11);
	read_until(&u, master, "\r\nran <one>\r\n(skep) ");
	assert_int_equal(write(master, "zz\025two\r", 7), 7);
	read_until(&u, master, "\r\nran <two>\r\n(skep) ");
	/* the guest gets none of it and goes on */
	assert_false(console_readable(u.console));
	assert_int_equal(console_write(u.console, "guest", 5), 5);
	read_until(&u, master, "guest");
	assert_int_equal(write(master, "much\r", 5), 5);
	read_until(&u, master, "line 9999\r\nran <much>\r\n(skep) ");
	/* a line too long is cut, an empty one is none; ^D and ^A c lead back, ^A x works */
	for (unsigned i = 0; i < 300; i++)
		assert_int_equal(write(master, "y", 1), 1);
	assert_int_equal(write(master, "\r\r\004back", 7), 7);
	read_until(&u, master, "y>\r\n(skep) \r\n(skep) \r\n");
	UNTIL(&u, console_readable(u.console));
	assert_int_equal(console_read(u.console, text, sizeof(text)), 4);
	assert_memory_equal(text, "back", 4);
	assert_int_equal(write(master, "\001c?\001cout\001cno\001x", 14), 14);
	UNTIL(&u, u.quits == 1);
	assert_int_equal(console_read(u.console, text, sizeof(text)), 3);
	assert_memory_equal(text, "out", 3);
	user_end(&u);
	close(slave);
	close(master);
}

static void stdio_has_one_owner(void **state)
{
	struct console_events events = {0};
	int null = open("/dev/null", O_RDWR);
	struct stdio old = stdio_swap(null, null);
	struct console *other;
	struct user u;

	(void)state;
	user_open(&u, "stdio");
	assert_int_equal(console_open(&other, "stdio", u.loop, &u.log, &events, NULL, &u.err),
			 -EBUSY);
	assert_non_null(strstr(u.err.text, "stdio"));
	console_close(u.console);
	assert_int_equal(user_try(&u, "stdio"), 0);
	user_end(&u);
	stdio_back(old);
	close(null);
}

static void terminal_loses_nothing(void **state)
{
	int slave, master = pty_pair(&slave);
	struct stdio old;
	struct user u;
	pid_t pid;

	(void)state;
	old = stdio_swap(slave, slave);
	user_open(&u, "stdio");
	stdio_back(old);
	pid = feed(master, VOLUME / 8);
	user_expect(&u, VOLUME / 8);
	fed(pid);
	user_send_slow(&u, master, VOLUME / 8);
	user_end(&u);
	close(slave);
	close(master);
}

static void tty_path_works_and_is_restored(void **state)
{
	struct termios before, after;
	int slave, master = pty_pair(&slave);
	char spec[64], path[60];
	struct user u;
	pid_t pid;

	(void)state;
	assert_int_equal(ptsname_r(master, path, sizeof(path)), 0);
	tcgetattr(slave, &before);
	for (unsigned i = 0; i < 2; i++) {
		snprintf(spec, sizeof(spec), "%s%s", i ? "tty=" : "", path);
		user_open(&u, spec);
		pid = feed(master, PASTE);
		user_expect(&u, PASTE);
		fed(pid);
		user_send_slow(&u, master, VOLUME / 16);
		/* no escapes here */
		assert_int_equal(write(master, "\001x", 2), 2);
		UNTIL(&u, console_readable(u.console));
		assert_int_equal(u.quits, 0);
		user_end(&u);
		tcgetattr(slave, &after);
		assert_same_termios(&after, &before);
	}
	close(slave);
	user_open(&u, spec);
	close(master);
	UNTIL(&u, strstr(user_log(&u), "hung up"));
	assert_int_equal(console_write(u.console, "x", 1), 1);
	user_end(&u);
}

static void pty_waits_for_nobody(void **state)
{
	char path[64] = "", text[64];
	struct user u;
	int fd;

	(void)state;
	user_open(&u, "pty");
	assert_int_equal(sscanf(strstr(user_log(&u), "/dev/"), "%63s", path), 1);
	for (unsigned i = 0; i < 2; i++) {
		for (unsigned n = 0; n < 200000; n++) {
			while (console_write(u.console, "z", 1) != 1)
				turn(&u);
		}
		for (unsigned n = 0; n < 4; n++)
			turn(&u);
		fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK);
		assert_true(fd >= 0);
		/* what was said while nobody was there is gone; raw, so no echo comes back */
		assert_int_equal(console_write(u.console, "hello\n", 6), 6);
		assert_int_equal(read_all(&u, fd, text, sizeof(text)), 6);
		assert_memory_equal(text, "hello\n", 6);
		assert_int_equal(write(fd, "input\r", 6), 6);
		UNTIL(&u, console_readable(u.console));
		assert_int_equal(console_read(u.console, text, sizeof(text)), 6);
		assert_memory_equal(text, "input\r", 6);
		fed(feed(fd, 0));
		u.writable = 0;
		user_send_slow(&u, fd, VOLUME / 16);
		close(fd);
	}
	user_end(&u);
}

static int tcp_port(struct user *u)
{
	int port = 0;
	const char *at = strstr(user_log(u), "port ");

	assert_non_null(at);
	assert_int_equal(sscanf(at, "port %d", &port), 1);
	return port;
}

static int tcp_connect(int port)
{
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

static void connected(struct user *u, int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char c;

	UNTIL(u, (console_write(u->console, "!", 1), turn(u), poll(&p, 1, 1) > 0));
	while (poll(&p, 1, 20) > 0)
		assert_int_equal(recv(fd, &c, 1, 0), 1);
}

static void tcp_serves_one_after_the_other(void **state)
{
	struct user u;
	int port, first, second;
	char text[16];
	pid_t pid;

	(void)state;
	user_open(&u, "tcp=0");
	assert_non_null(strstr(user_log(&u), "127.0.0.1"));
	port = tcp_port(&u);
	for (unsigned i = 0; i < 100000; i++)
		assert_int_equal(console_write(u.console, "lost", 4), 4);
	first = tcp_connect(port);
	connected(&u, first);
	pid = feed(first, VOLUME);
	user_expect(&u, VOLUME);
	fed(pid);
	user_send_slow(&u, first, VOLUME * 2);
	/* the next one waits for its turn */
	second = tcp_connect(port);
	assert_int_equal(write(second, "me", 2), 2);
	for (unsigned i = 0; i < 4; i++)
		turn(&u);
	assert_false(console_readable(u.console));
	/* one that has nothing more to say still gets the answer */
	assert_int_equal(write(first, "?", 1), 1);
	shutdown(first, SHUT_WR);
	UNTIL(&u, console_readable(u.console));
	assert_int_equal(console_write(u.console, "!", 1), 1);
	close(first);
	UNTIL(&u, (console_write(u.console, "x", 1),
		   console_read(u.console, text, 1) == 1 && text[0] == 'm'));
	connected(&u, second);
	close(second);
	user_end(&u);
}

/* As `echo command | nc -N`. */
static void tcp_client_done_sending_gets_its_answer(void **state)
{
	char text[16] = "";
	struct user u;
	int fd;

	(void)state;
	user_open(&u, "tcp=0");
	fd = tcp_connect(tcp_port(&u));
	connected(&u, fd);
	assert_int_equal(write(fd, "?", 1), 1);
	shutdown(fd, SHUT_WR);
	UNTIL(&u, console_readable(u.console));
	for (unsigned i = 0; i < 4; i++)
		turn(&u);
	assert_int_equal(console_write(u.console, "answer", 6), 6);
	assert_int_equal(read_all(&u, fd, text, sizeof(text)), 6);
	assert_string_equal(text, "answer");
	close(fd);
	user_end(&u);
}

static void tcp_client_that_goes_frees_the_guest(void **state)
{
	struct user u;
	int fd;

	(void)state;
	user_open(&u, "tcp:127.0.0.1:0");
	fd = tcp_connect(tcp_port(&u));
	connected(&u, fd);
	while (console_write(u.console, "0123456789abcdef", 16) == 16)
		turn(&u);
	assert_int_equal(console_write(u.console, "x", 1), 0);
	assert_int_equal(u.writable, 0);
	close(fd);
	UNTIL(&u, u.writable == 1);
	assert_int_equal(console_write(u.console, "x", 1), 1);
	user_end(&u);
}

static int unix_connect(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(addr.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

static void unix_socket_is_private_and_goes_away(void **state)
{
	char dir[] = "/tmp/skep-test-XXXXXX", path[64], spec[80];
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct user u, other;
	struct stat st;
	int fd;

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/com1", dir);
	snprintf(spec, sizeof(spec), "unix=%s", path);
	/* a stale one is in the way */
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	strcpy(addr.sun_path, path);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	user_open(&u, spec);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	/* a second listener is refused and the first goes on */
	user_start(&other);
	assert_int_equal(user_try(&other, spec), -EADDRINUSE);
	user_end(&other);
	fd = unix_connect(path);
	connected(&u, fd);
	user_send_slow(&u, fd, VOLUME / 4);
	fed(feed(fd, PASTE));
	user_expect(&u, PASTE);
	close(fd);
	user_end(&u);
	assert_int_equal(stat(path, &st), -1);
	/* no plain file is ever removed */
	close(open(path, O_CREAT | O_WRONLY, 0600));
	user_start(&other);
	assert_int_equal(user_try(&other, spec), -EEXIST);
	user_end(&other);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(rmdir(dir), 0);
}

static void close_flushes_but_does_not_hang(void **state)
{
	int out[2], null = open("/dev/null", O_RDWR);
	static uint8_t bytes[262144];
	size_t queued = 0, n;
	uint64_t start;
	struct stdio old;
	struct user u;

	(void)state;
	assert_int_equal(pipe(out), 0);
	old = stdio_swap(null, out[1]);
	user_open(&u, "stdio");
	stdio_back(old);
	assert_int_equal(console_write(u.console, "last words", 10), 10);
	user_end(&u);
	assert_int_equal(read(out[0], bytes, sizeof(bytes)), 10);

	old = stdio_swap(null, out[1]);
	user_open(&u, "stdio");
	stdio_back(old);
	while ((n = console_write(u.console, bytes, 4096)) > 0) {
		queued += n;
		turn(&u);
	}
	assert_true(queued >= 65536);
	start = now_ns();
	user_end(&u);
	assert_in_range(now_ns() - start, 1500000000ull, 8000000000ull);
	close(out[0]);
	close(out[1]);
	close(null);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bad_names_are_refused),
		cmocka_unit_test(null_swallows),
		cmocka_unit_test(file_is_appended_and_complete),
		cmocka_unit_test(full_disk_is_told_once),
		cmocka_unit_test(pipes_lose_nothing),
		cmocka_unit_test(stdin_of_any_kind),
		cmocka_unit_test(idle_uses_no_cpu),
		cmocka_unit_test(terminal_is_raw_and_restored),
		cmocka_unit_test(terminal_hang_up_is_the_end_of_input),
		cmocka_unit_test(escapes),
		cmocka_unit_test(prompt),
		cmocka_unit_test(stdio_has_one_owner),
		cmocka_unit_test(terminal_loses_nothing),
		cmocka_unit_test(tty_path_works_and_is_restored),
		cmocka_unit_test(pty_waits_for_nobody),
		cmocka_unit_test(tcp_serves_one_after_the_other),
		cmocka_unit_test(tcp_client_done_sending_gets_its_answer),
		cmocka_unit_test(tcp_client_that_goes_frees_the_guest),
		cmocka_unit_test(unix_socket_is_private_and_goes_away),
		cmocka_unit_test(close_flushes_but_does_not_hang),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
