/*
 * The process's title: what ps and top show instead of the command line.
 */
#ifndef CMD_TITLE_H
#define CMD_TITLE_H

/* Overwrites the memory in which the kernel handed over the arguments, and the environment if they are too
 * short for it; argv's strings are gone then. The environment is moved away before, and stays usable. Nothing
 * happens if there is no memory for that. The name of the calling thread follows, cut to 15 bytes. One thread. */
void title_set(int argc, char *argv[], const char *title);

#endif
