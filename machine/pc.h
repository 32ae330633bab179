/*
 * A PC, composed out of the configuration tree: memory, chipset, the devices of -s and -l, firmware
 * tables, and what it boots from.
 */
#ifndef MACHINE_PC_H
#define MACHINE_PC_H

#include "base/config.h"
#include "base/error.h"
#include "base/log.h"
#include "vmm/vm.h"

struct pc;

/* Everything that can be refused is refused here, before a vCPU runs; the text names the option or the key.
 * The tree and the log are not owned and must outlive the PC. Signals that the caller wants to take on the
 * event loop have to be blocked already: threads are made here. */
int pc_create(struct pc **out, struct config *config, struct log *log, struct error *err);
void pc_destroy(struct pc *pc);

struct vm *pc_vm(struct pc *pc);
/* Which engine it runs on, why that, vCPUs and memory: one line for a person. */
const char *pc_describe(struct pc *pc, char *buf, size_t size);

#endif
