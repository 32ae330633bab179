/*
 * A writer of AML, ACPI's byte code (ACPI 6.3, chapter 20). What it writes is what is called: a term that
 * has a length is opened by one call and closed by aml_end(), which puts in the PkgLength in its shortest
 * form. Operators are followed by their operands, left to right: If (LLess (Local0, One)) is
 * aml_if(), aml_op(AML_LLESS), aml_local(0), aml_int(1), the body, aml_end().
 */
#ifndef TABLES_AML_H
#define TABLES_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tables/image.h"

#define AML_DEPTH 12

struct aml {
	struct image *out;
	struct {
		size_t start; /* where the PkgLength goes */
		bool resources;
	} open[AML_DEPTH];
	unsigned depth;
};

/* Operators with a fixed number of operands. */
enum aml_opcode {
	AML_ZERO = 0x00,
	AML_ONE = 0x01,
	AML_STORE = 0x70,	   /* source, target */
	AML_DECREMENT = 0x76,	   /* target */
	AML_SHIFT_LEFT = 0x79,	   /* value, count, target */
	AML_AND = 0x7b,		   /* a, b, target */
	AML_FIND_SET_RIGHT = 0x82, /* value, target */
	AML_WORD_FIELD = 0x8b,	   /* buffer, byte offset, name: CreateWordField */
	AML_LLESS = 0x95,	   /* a, b */
	AML_RETURN = 0xa4,	   /* value */
};

/* Closes what was opened last. Opening more than AML_DEPTH at once counts as overflow. */
void aml_end(struct aml *aml);

/* Terms with a length. Paths are written as in ASL: "\\_SB_.PCI0", "^X", "_HID"; segments shorter than
 * four characters are padded with '_'. */
void aml_scope(struct aml *aml, const char *path);
void aml_device(struct aml *aml, const char *name);
void aml_method(struct aml *aml, const char *name, unsigned args, bool serialized);
void aml_package(struct aml *aml, unsigned elements);
void aml_if(struct aml *aml);
void aml_else(struct aml *aml); /* follows the aml_end() of an aml_if() */
/* A Buffer with resource descriptors; aml_end() adds the end tag. */
void aml_resources(struct aml *aml);
/* Fields of an operation region, byte access, no lock, preserve. */
void aml_field(struct aml *aml, const char *region);

void aml_field_unit(struct aml *aml, const char *name, unsigned bits); /* NULL name: a gap */
void aml_op(struct aml *aml, enum aml_opcode op);
void aml_path(struct aml *aml, const char *path);
void aml_int(struct aml *aml, uint64_t value); /* in its shortest form */
void aml_string(struct aml *aml, const char *text);
void aml_local(struct aml *aml, unsigned n);
void aml_arg(struct aml *aml, unsigned n);
void aml_no_target(struct aml *aml);
void aml_name(struct aml *aml, const char *name); /* Name(name, ..): the object follows */
void aml_name_int(struct aml *aml, const char *name, uint64_t value);
/* Name(name, EisaId("PNP0A03")) */
void aml_name_eisa(struct aml *aml, const char *name, const char *id);
/* OperationRegion(name, PCI_Config, offset, length) */
void aml_pci_region(struct aml *aml, const char *name, unsigned offset, unsigned length);

/* Resource descriptors (ACPI 6.3, section 6.4). */
void aml_res_io(struct aml *aml, uint16_t base, uint8_t len);
void aml_res_irq_edge(struct aml *aml, unsigned irq);
/* Level, active low, shared. */
void aml_res_irq_level(struct aml *aml, uint16_t mask);
void aml_res_mem32(struct aml *aml, uint32_t base, uint32_t len);
/* What a bridge passes on. */
void aml_res_bus_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_res_io_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_res_mem32_window(struct aml *aml, uint32_t first, uint32_t last);
void aml_res_mem64_window(struct aml *aml, uint64_t first, uint64_t last);

#endif
