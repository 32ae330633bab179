#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/state.h"

/*
 * Stream, little-endian: u8 n, name[n], u32 version, u32 nfields; then for each field
 * u8 n, name[n], u16 size, u32 count, bytes[size * count].
 */

#define NAME_MAX_BYTES 255

static size_t name_len(const char *name)
{
	return strnlen(name, NAME_MAX_BYTES);
}

static size_t field_bytes(const struct state_field *field)
{
	return (size_t)field->size * field->count;
}

static uint64_t element_get(const void *at, unsigned size)
{
	const uint8_t *p = at;

	switch (size) {
	case 1:
		return *p;
	case 2:
		return *(const uint16_t *)at;
	case 4:
		return *(const uint32_t *)at;
	default:
		return *(const uint64_t *)at;
	}
}

static void element_set(void *at, unsigned size, uint64_t value)
{
	switch (size) {
	case 1:
		*(uint8_t *)at = (uint8_t)value;
		break;
	case 2:
		*(uint16_t *)at = (uint16_t)value;
		break;
	case 4:
		*(uint32_t *)at = (uint32_t)value;
		break;
	default:
		*(uint64_t *)at = value;
		break;
	}
}

void state_reset(const struct state_table *table, void *state)
{
	for (size_t i = 0; i < table->nfields; i++) {
		const struct state_field *f = &table->fields[i];

		if (f->flags & STATE_KEEP)
			continue;
		for (uint32_t n = 0; n < f->count; n++)
			element_set((char *)state + f->offset + (size_t)n * f->size, f->size,
				    f->reset);
	}
}

size_t state_size(const struct state_table *table)
{
	size_t size = 1 + name_len(table->name) + 4 + 4;

	for (size_t i = 0; i < table->nfields; i++)
		size += 1 + name_len(table->fields[i].name) + 2 + 4 +
			field_bytes(&table->fields[i]);
	return size;
}

static uint8_t *put_le(uint8_t *out, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		*out++ = (uint8_t)(value >> (8 * i));
	return out;
}

static uint8_t *put_name(uint8_t *out, const char *name)
{
	size_t len = name_len(name);

	*out++ = (uint8_t)len;
	memcpy(out, name, len);
	return out + len;
}

void state_save(const struct state_table *table, const void *state, uint8_t *out)
{
	out = put_name(out, table->name);
	out = put_le(out, table->version, 4);
	out = put_le(out, table->nfields, 4);
	for (size_t i = 0; i < table->nfields; i++) {
		const struct state_field *f = &table->fields[i];
		const char *at = (const char *)state + f->offset;

		out = put_name(out, f->name);
		out = put_le(out, f->size, 2);
		out = put_le(out, f->count, 4);
		for (uint32_t n = 0; n < f->count; n++, at += f->size)
			out = put_le(out, element_get(at, f->size), f->size);
	}
}

struct reader {
	const uint8_t *at;
	size_t left;
};

static const uint8_t *take(struct reader *r, size_t bytes)
{
	const uint8_t *at = r->at;

	if (bytes > r->left)
		return NULL;
	r->at += bytes;
	r->left -= bytes;
	return at;
}

static uint64_t get_le(const uint8_t *in, unsigned bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < bytes; i++)
		value |= (uint64_t)in[i] << (8 * i);
	return value;
}

static bool take_le(struct reader *r, unsigned bytes, uint64_t *value)
{
	const uint8_t *at = take(r, bytes);

	if (at)
		*value = get_le(at, bytes);
	return at != NULL;
}

struct name {
	const uint8_t *text; /* not terminated */
	size_t len;
};

static bool take_name(struct reader *r, struct name *name)
{
	const uint8_t *len = take(r, 1);

	if (!len)
		return false;
	name->len = *len;
	name->text = take(r, name->len);
	return name->text != NULL;
}

static bool name_is(const struct name *name, const char *text)
{
	return name->len == name_len(text) && memcmp(name->text, text, name->len) == 0;
}

static int cut_short(const struct state_table *table, struct error *err)
{
	return error_set(err, EPROTO, "saved state of %s is cut short", table->name);
}

static int load_header(const struct state_table *table, struct reader *r, struct error *err)
{
	uint64_t version, nfields;
	struct name name;

	if (!take_name(r, &name) || !take_le(r, 4, &version) || !take_le(r, 4, &nfields))
		return cut_short(table, err);
	if (!name_is(&name, table->name))
		return error_set(err, EPROTO, "saved state is not that of %s", table->name);
	if (version != table->version)
		return error_set(err, EPROTO,
				 "saved state of %s has version %" PRIu64
				 ", this skep takes %" PRIu32,
				 table->name, version, table->version);
	/* With no field twice and none unknown, the same number means that none is missing. */
	if (nfields != table->nfields)
		return error_set(err, EPROTO,
				 "saved state of %s has %" PRIu64 " fields instead of %zu",
				 table->name, nfields, table->nfields);
	return 0;
}

static const struct state_field *find_field(const struct state_table *table,
					    const struct name *name)
{
	for (size_t i = 0; i < table->nfields; i++)
		if (name_is(name, table->fields[i].name))
			return &table->fields[i];
	return NULL;
}

static int load_field(const struct state_table *table, void *state, bool *seen, struct reader *r,
		      struct error *err)
{
	const struct state_field *f;
	const uint8_t *bytes;
	uint64_t size, count;
	struct name name;

	if (!take_name(r, &name) || !take_le(r, 2, &size) || !take_le(r, 4, &count))
		return cut_short(table, err);
	f = find_field(table, &name);
	if (!f)
		return error_set(err, EPROTO, "saved state of %s has a field that is unknown",
				 table->name);
	if (seen[f - table->fields])
		return error_set(err, EPROTO, "saved state has %s.%s twice", table->name, f->name);
	seen[f - table->fields] = true;
	if (size != f->size || count != f->count)
		return error_set(err, EPROTO,
				 "saved state has %s.%s as %" PRIu64 " x %" PRIu64
				 " bytes instead of %" PRIu32 " x %u",
				 table->name, f->name, count, size, f->count, f->size);
	bytes = take(r, field_bytes(f));
	if (!bytes)
		return cut_short(table, err);
	for (uint32_t n = 0; n < f->count; n++) {
		uint64_t value = get_le(bytes + (size_t)n * f->size, f->size);

		if (f->is_bool && value > 1)
			return error_set(err, EINVAL,
					 "saved state has %s.%s = %" PRIu64
					 ", which is neither 0 nor 1",
					 table->name, f->name, value);
		element_set((char *)state + f->offset + (size_t)n * f->size, f->size, value);
	}
	return 0;
}

static int load_into(const struct state_table *table, void *state, bool *seen, struct reader *r,
		     struct error *err)
{
	int rc = load_header(table, r, err);

	for (size_t i = 0; !rc && i < table->nfields; i++)
		rc = load_field(table, state, seen, r, err);
	if (!rc && table->check && !table->check(state))
		rc = error_set(err, EINVAL, "saved state of %s has values that it cannot have",
			       table->name);
	return rc;
}

int state_load(const struct state_table *table, void *state, const uint8_t *in, size_t len,
	       size_t *used, struct error *err)
{
	struct reader r = {.at = in, .left = len};
	void *copy = malloc(table->size);
	bool *seen = calloc(table->nfields + 1, sizeof(*seen));
	int rc;

	if (!copy || !seen) {
		rc = error_set(err, ENOMEM, "no memory to load the state of %s", table->name);
		goto out;
	}
	memcpy(copy, state, table->size);
	rc = load_into(table, copy, seen, &r, err);
	if (rc)
		goto out;
	memcpy(state, copy, table->size);
	*used = len - r.left;
out:
	free(seen);
	free(copy);
	return rc;
}

void state_print(const struct state_table *table, const void *state, FILE *out)
{
	for (size_t i = 0; i < table->nfields; i++) {
		const struct state_field *f = &table->fields[i];
		const char *at = (const char *)state + f->offset;

		fprintf(out, "%s.%s =", table->name, f->name);
		for (uint32_t n = 0; n < f->count; n++, at += f->size)
			fprintf(out, " 0x%" PRIx64, element_get(at, f->size));
		fputc('\n', out);
	}
}
