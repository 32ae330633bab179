/* What the files of the PC share. */
#ifndef MACHINE_PC_INTERNAL_H
#define MACHINE_PC_INTERNAL_H

#include "base/config.h"
#include "base/error.h"
#include "vmm/vm.h"

struct pc {
	struct vm *vm;
	struct config *config;
	char why[256]; /* why this engine */
};

/* pc_devices.c: the chipset, then what -s, -l, -b and -g name. */
int pc_create_devices(struct pc *pc, struct error *err);

/* pc_boot.c */
/* Is there something to boot from, and only one? Before anything is made. */
int pc_check_boot(struct config *config, struct error *err);
/* Tables, boot source, and the boot CPU's first state; the others are in reset. */
int pc_boot(struct pc *pc, struct error *err);
/* What vm_set_restart() takes; arg is the PC. */
int pc_restart(void *arg, struct error *err);

#endif
