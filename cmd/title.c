#include "cmd/title.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Puts copies of all variables in the place of those that the kernel made. */
static bool move_environment(void)
{
	size_t n = 0;

	while (environ[n] != NULL)
		n++;

	char **copy = calloc(n + 1, sizeof(*copy));

	for (size_t i = 0; copy != NULL && i < n; i++) {
		copy[i] = strdup(environ[i]);
		if (copy[i] == NULL) {
			while (i > 0)
				free(copy[--i]);
			free(copy);
			copy = NULL;
		}
	}
	if (copy == NULL)
		return false;
	environ = copy; /* for the life of the process */
	return true;
}

void title_set(int argc, char *argv[], const char *title)
{
	char *start = argv[0], *end = start, name[16];

	/* The kernel lays out arguments, then variables, without gaps (fs/exec.c). */
	for (int i = 0; i < argc && argv[i] == end; i++)
		end += strlen(end) + 1;
	for (char **var = environ; *var == end; var++)
		end += strlen(end) + 1;
	snprintf(name, sizeof(name), "%s", title);
	prctl(PR_SET_NAME, name);
	if (end == start || !move_environment())
		return;
	/* A title that goes on into the variables overwrites the last NUL of the arguments: by that the kernel
	 * knows that it is one (fs/proc/base.c, get_mm_cmdline). */
	memset(start, 0, (size_t)(end - start));
	snprintf(start, (size_t)(end - start), "%s", title);
}
