/*
 * bhyve's command line. Every option is a short way to set keys of the configuration tree; what is not
 * an option's business (does the file exist, does the engine have so many vCPUs) is checked by who reads
 * the key.
 */
#ifndef CMD_OPTIONS_H
#define CMD_OPTIONS_H

#include <stdio.h>

#include "base/config.h"
#include "base/error.h"

enum options_action {
	OPTIONS_RUN,
	OPTIONS_HELP,	  /* -h */
	OPTIONS_PCI_HELP, /* -s help */
	OPTIONS_LPC_HELP, /* -l help */
	OPTIONS_DUMP,	  /* -o config.dump=1; the key itself is taken out of the tree */
};

/* Reads the command line into `root`, from left to right (a later one wins), then fills in what follows
 * from what was asked: the VM's name, the number of vCPUs, the host bridge and the LPC bridge, COM1 on
 * stdio for a kernel. 0, or -errno with a text that begins with the option that is wrong. Not
 * thread-safe: getopt(3). */
int options_parse(struct config *root, int argc, char *const argv[], enum options_action *action,
		  struct error *err);

/* Every option, a line or two each. */
void options_usage(FILE *out);
/* The devices that -s and -l know, out of the registry. */
void options_pci_help(FILE *out);
void options_lpc_help(FILE *out);

#endif
