/* What options.c and options_device.c share. */
#ifndef CMD_OPTIONS_INTERNAL_H
#define CMD_OPTIONS_INTERNAL_H

#include "base/config.h"
#include "base/error.h"

/* -s [bus:]slot[:func],emulation[,conf] and -l device[,conf], without "help". */
int options_set_pci(struct config *root, const char *arg, struct error *err);
int options_set_lpc(struct config *root, const char *arg, struct error *err);
/* The bridges and the console that a machine has even if nobody names them. */
int options_default_devices(struct config *root, struct error *err);

#endif
