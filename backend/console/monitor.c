/*
 * The prompt that ^A c opens on a stdio console: a line with the least of editing, whose commands somebody else runs.
 * The guest goes on meanwhile, and what it prints is shown too. All of it is the loop thread's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/console/internal.h"

#define BACKSPACE 8
#define DELETE 0x7f
#define CTRL_C 3
#define CTRL_D 4
#define CTRL_U 0x15
#define PENDING_MAX (4u << 20) /* of answers that the terminal has not taken */

void monitor_say(struct console *console, const char *text, size_t len)
{
	struct monitor *monitor = &console->monitor;
	size_t used = monitor->text_len - monitor->text_done;
	char *more;

	if (used > PENDING_MAX || len > PENDING_MAX)
		return;
	memmove(monitor->text, monitor->text + monitor->text_done, used);
	monitor->text_done = 0;
	monitor->text_len = used;
	more = realloc(monitor->text, used + 2 * len + 1); /* each byte may become CR LF */
	if (!more)
		return;
	monitor->text = more;
	for (size_t i = 0; i < len; i++) {
		if (text[i] == '\n' && console->is_terminal)
			monitor->text[monitor->text_len++] = '\r';
		monitor->text[monitor->text_len++] = text[i];
	}
}

static void say(struct console *console, const char *text)
{
	monitor_say(console, text, strlen(text));
}

static void prompt(struct console *console)
{
	console->monitor.line_len = 0;
	say(console, "(skep) ");
}

void monitor_toggle(struct console *console)
{
	struct monitor *monitor = &console->monitor;

	if (!console->escape.command)
		return;
	monitor->on = !monitor->on;
	if (monitor->on) {
		say(console,
		    "\nskep's monitor; help lists the commands, ^A c goes back to the guest\n");
		prompt(console);
	} else {
		say(console, "\n");
	}
}

static void run_line(struct console *console)
{
	struct monitor *monitor = &console->monitor;
	char *line = monitor->line, *answer = NULL;
	size_t len = 0;
	FILE *out;

	while (monitor->line_len && line[monitor->line_len - 1] == ' ')
		monitor->line_len--;
	line[monitor->line_len] = '\0';
	line += strspn(line, " ");
	say(console, "\n");
	out = *line ? open_memstream(&answer, &len) : NULL;
	if (out) {
		console->escape.command(console->escape.arg, line, out);
		if (fclose(out) == 0)
			monitor_say(console, answer, len);
		free(answer);
	}
	prompt(console);
}

static void erase(struct console *console, size_t keep)
{
	for (; console->monitor.line_len > keep; console->monitor.line_len--)
		say(console, "\b \b");
}

void monitor_key(struct console *console, uint8_t c)
{
	struct monitor *monitor = &console->monitor;
	const char key = (char)c;

	if (c == '\r' || c == '\n') {
		run_line(console);
	} else if (c == BACKSPACE || c == DELETE) {
		erase(console, monitor->line_len ? monitor->line_len - 1 : 0);
	} else if (c == CTRL_U) {
		erase(console, 0);
	} else if (c == CTRL_C) {
		say(console, "^C\n");
		prompt(console);
	} else if (c == CTRL_D && monitor->line_len == 0) {
		monitor_toggle(console);
	} else if (c >= ' ' && monitor->line_len < sizeof(monitor->line) - 1) {
		monitor->line[monitor->line_len++] = key;
		monitor_say(console, &key, 1);
	}
}
