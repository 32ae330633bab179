/*
 * Saved-state tables. What a guest can see of a device is one plain struct ("the state"), described by
 * one table of fields; reset, save, restore and `info` all read that table. Pointers, locks, timers
 * and host handles live outside the state; timers are saved as the virtual time of their deadline.
 *
 * The stream is little-endian and self-describing: table name, version, then for each field its name,
 * element size, count and bytes. Fields are matched by name: an unknown field, a missing one, a
 * different size, a duplicate, or a check() that fails refuses the load and leaves the state untouched.
 * A stream is untrusted input.
 */
#ifndef BASE_STATE_H
#define BASE_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

enum state_flags {
	STATE_KEEP = 1, /* reset leaves it alone (battery-backed, or set by configuration) */
};

struct state_field {
	const char *name;
	uint32_t offset;
	uint16_t size;  /* of one element: 1, 2, 4 or 8; bool counts as 1 and loads only as 0 or 1 */
	bool is_bool;
	uint8_t flags;
	uint32_t count; /* elements */
	uint64_t reset; /* the value of every element after reset */
};

struct state_table {
	const char *name;
	uint32_t version;
	size_t size; /* of the state struct */
	const struct state_field *fields;
	size_t nfields;
	/* True if a loaded state is one the device could have got into: every index, mode and count in
	 * range. NULL: any values do. */
	bool (*check)(const void *state);
};

/* STATE(struct uart_state, lcr), STATE_AT(struct uart_state, lsr, 0x60), STATE_OPT(.., value, flags);
 * STATE_ARRAY(struct uart_state, fifo) for an array of scalars. A member of another type does not
 * compile. */
#define STATE_ELEM_(type, member)                                                                  \
	_Generic(&((type *)0)->member,                                                             \
		uint8_t *: 1, int8_t *: 1, bool *: 1, uint16_t *: 2, int16_t *: 2, uint32_t *: 4,      \
		int32_t *: 4, uint64_t *: 8, int64_t *: 8)
#define STATE_OPT(type, member, value, opt)                                                        \
	{.name = #member,                                                                          \
	 .offset = offsetof(type, member),                                                         \
	 .size = STATE_ELEM_(type, member),                                                        \
	 .is_bool = _Generic(&((type *)0)->member, bool *: true, default: false),                  \
	 .flags = (opt),                                                                           \
	 .count = 1,                                                                               \
	 .reset = (value)}
#define STATE_ARRAY_OPT(type, member, value, opt)                                                  \
	{.name = #member,                                                                          \
	 .offset = offsetof(type, member),                                                         \
	 .size = STATE_ELEM_(type, member[0]),                                                     \
	 .is_bool = _Generic(&((type *)0)->member[0], bool *: true, default: false),               \
	 .flags = (opt),                                                                           \
	 .count = sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0]),                    \
	 .reset = (value)}
#define STATE(type, member) STATE_OPT(type, member, 0, 0)
#define STATE_AT(type, member, value) STATE_OPT(type, member, value, 0)
#define STATE_ARRAY(type, member) STATE_ARRAY_OPT(type, member, 0, 0)
/* For a two-dimensional array or an array inside an array of structs: list each one by name. */

#define STATE_TABLE(table_name, type, field_array, ver, check_fn)                                  \
	{.name = (table_name),                                                                     \
	 .version = (ver),                                                                         \
	 .size = sizeof(type),                                                                     \
	 .fields = (field_array),                                                                  \
	 .nfields = sizeof(field_array) / sizeof((field_array)[0]),                                \
	 .check = (check_fn)}

/* Sets every field without STATE_KEEP to its reset value. */
void state_reset(const struct state_table *table, void *state);
/* Bytes that state_save() writes. */
size_t state_size(const struct state_table *table);
void state_save(const struct state_table *table, const void *state, uint8_t *out);
/* Loads from the first bytes of `in`; *used is what it took. -EINVAL or -EPROTO with text. */
int state_load(const struct state_table *table, void *state, const uint8_t *in, size_t len,
	       size_t *used, struct error *err);
/* "name.field = value" lines for a person. */
void state_print(const struct state_table *table, const void *state, FILE *out);

#endif
