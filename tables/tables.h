/*
 * The tables by which a PC's firmware describes the machine: the MP table (MultiProcessor Specification
 * 1.4), SMBIOS (DSP0134: a 2.8 and a 3.0 entry point), and ACPI 6.3. They are made out of the VM's
 * configuration, topology, memory sizes and PCI functions, so after all devices exist.
 *
 * All of them lie in guest RAM between 0xf0000 and 0xfffff, where operating systems look for them: a
 * memory map must call 0xf0000-0xfffff reserved, and nothing else may be put below TABLES_END there.
 * ECAM (PCI_ECAM_BASE in bus/pci.h) is told by MCFG and reserved by the DSDT (PNP0C02).
 *
 * Keys: acpi_tables and x86.mptable (true unless set), uuid, bios.*, system.*, board.*, chassis.*,
 * lpc.comN (those that are there).
 */
#ifndef TABLES_TABLES_H
#define TABLES_TABLES_H

#include <stdint.h>

#include "base/error.h"

struct vm;

/* bhyve's places */
#define TABLES_BASE 0xf0000u
#define TABLES_MPTABLE 0xf0000u
#define TABLES_SMBIOS 0xf1000u
#define TABLES_ACPI 0xf2400u
#define TABLES_END 0xfe000u

/* GPAs; 0: there is none. */
struct tables_layout {
	uint64_t mptable; /* the floating pointer "_MP_" */
	uint64_t smbios;  /* the 2.x entry point "_SM_" */
	uint64_t smbios3; /* the 3.0 entry point "_SM3_" */
	uint64_t rsdp;
	uint64_t end; /* behind the last byte in use */
};

/* Writes the tables into guest memory and says where they are. 0; -EINVAL for a key with a bad value
 * (uuid, a text that is no text, a bool that is none); -ENOSPC if the texts of SMBIOS do not fit; -EFAULT
 * if there is no RAM at TABLES_BASE. Before the vCPUs run or with all of them parked. */
int tables_build(struct vm *vm, struct tables_layout *out, struct error *err);

/* The same into `image`, TABLES_END - TABLES_BASE bytes that are the memory from TABLES_BASE on. */
int tables_compose(struct vm *vm, uint8_t *image, struct tables_layout *out, struct error *err);

#endif
