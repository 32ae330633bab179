/*
 * skepctl: controls a running VM over its control socket.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/error.h"
#include "machine/control_socket.h"

#define ANSWER_MAX (4u << 20) /* more is no answer of skep's */
#define ANSWER_SECONDS 30

static int usage(FILE *out)
{
	fprintf(out,
		"usage: skepctl NAME status|pause|resume|powerbutton|nmi|reset|stop|stats|regs\n"
		"       skepctl list\n\n"
		"  status       name, state, engine, vCPUs, memory, guest time, process\n"
		"  pause        park all vCPUs and stop the guest's time\n"
		"  resume       go on\n"
		"  powerbutton  press it: the guest shuts down if it listens (ACPI)\n"
		"  nmi          as the NMI button of a server, for a guest that hangs\n"
		"  reset        as the reset button: skep ends with status 0, or restarts the\n"
		"               guest if it was started with -o reboot=restart\n"
		"  stop         end the VM at once, as if the plug were pulled\n"
		"  stats        counters\n"
		"  regs         the registers of every vCPU\n"
		"  list         the VMs that run\n");
	return out == stdout ? 0 : 1;
}

/* The whole answer, NUL-terminated and malloc'ed. */
static char *answer_read(int fd, struct error *err)
{
	size_t used = 0, size = 4096;
	char *text = malloc(size);

	while (text != NULL) {
		ssize_t n = read(fd, text + used, size - used - 1);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			if (n < 0)
				error_set(err, errno, "no answer: %s",
					  errno == EAGAIN ? "the VM's event loop does not respond"
							  : strerror(errno));
			text[n < 0 ? 0 : used] = '\0';
			return text;
		}
		used += (size_t)n;
		if (size - used > 1)
			continue;
		size *= 2;

		char *more = size <= ANSWER_MAX ? realloc(text, size) : NULL;

		if (more == NULL)
			free(text);
		text = more;
	}
	error_set(err, ENOMEM, "out of memory for the answer");
	return NULL;
}

/* Sends the command over `fd`, which it closes; the body of the answer, malloc'ed, or NULL with text. */
static char *ask(int fd, const char *command, struct error *err)
{
	const struct timeval limit = {.tv_sec = ANSWER_SECONDS};
	char line[CONTROL_COMMAND_MAX], *text = NULL, *body = NULL;
	int len = snprintf(line, sizeof(line), "%s\n", command);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (send(fd, line, (size_t)len, MSG_NOSIGNAL) != len)
		error_set(err, errno, "the VM does not listen: %s", strerror(errno));
	else
		text = answer_read(fd, err);
	close(fd);
	if (text == NULL)
		return NULL;
	if (strncmp(text, "ok\n", 3) == 0)
		body = strdup(text + 3);
	else if (strncmp(text, "error ", 6) == 0)
		error_set(err, EPROTO, "%.*s", (int)strcspn(text + 6, "\n"), text + 6);
	else if (err->text[0] == '\0')
		error_set(err, EPROTO, "the VM ended before it answered");
	free(text);
	return body;
}

/* The value of "key value\n" in a status, into `out`. */
static const char *field(const char *status, const char *key, char *out, size_t size)
{
	size_t len = strlen(key);

	for (const char *line = status; line != NULL && *line != '\0';) {
		if (strncmp(line, key, len) == 0 && line[len] == ' ') {
			line += len + 1;
			snprintf(out, size, "%.*s", (int)strcspn(line, "\n"), line);
			return out;
		}
		line = strchr(line, '\n');
		line = line != NULL ? line + 1 : NULL;
	}
	snprintf(out, size, "?");
	return out;
}

static void list_one(const char *name)
{
	struct error err = {""};
	char state[32], engine[32], process[32];
	int fd = control_socket_connect(name, &err);

	if (fd < 0)
		return; /* a stale socket */

	char *status = ask(fd, "status", &err);

	if (status == NULL)
		printf("%-20s %s\n", name, err.text);
	else
		printf("%-20s %-8s %-5s process %s\n", name,
		       field(status, "state", state, sizeof(state)),
		       field(status, "engine", engine, sizeof(engine)),
		       field(status, "process", process, sizeof(process)));
	free(status);
}

static int is_socket(const struct dirent *entry)
{
	size_t len = strlen(entry->d_name);

	return len > 5 && strcmp(entry->d_name + len - 5, ".sock") == 0;
}

static int list(void)
{
	struct control_dirs dirs;

	control_dirs(&dirs);
	for (unsigned i = 0; i < CONTROL_DIRS; i++) {
		struct dirent **entry;
		int n = dirs.path[i][0] != '\0'
				? scandir(dirs.path[i], &entry, is_socket, alphasort)
				: -1;

		for (int j = 0; j < n; j++) {
			entry[j]->d_name[strlen(entry[j]->d_name) - 5] = '\0';
			list_one(entry[j]->d_name);
			free(entry[j]);
		}
		if (n >= 0)
			free(entry);
	}
	return 0;
}

int main(int argc, char *argv[])
{
	struct error err = {""};

	if (argc == 2 && strcmp(argv[1], "list") == 0)
		return list();
	if (argc == 2 && (strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0))
		return usage(stdout);
	if (argc != 3)
		return usage(stderr);
	if (strlen(argv[2]) > CONTROL_COMMAND_MAX - 2 || strchr(argv[2], '\n') != NULL) {
		fprintf(stderr, "skepctl: that is no command; skepctl -h lists them\n");
		return 1;
	}

	int fd = control_socket_connect(argv[1], &err);
	char *body = fd >= 0 ? ask(fd, argv[2], &err) : NULL;

	if (body == NULL) {
		fprintf(stderr, "skepctl: %s\n", err.text);
		return 1;
	}
	fputs(body, stdout);
	free(body);
	return 0;
}
