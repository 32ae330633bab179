/*
 * The configuration tree, with bhyve_config(5)'s names: every option is a short way to set one of
 * its keys. A key is a dotted path ("pci.0.3.0.device"); a leaf holds text, a node holds children.
 *
 * The tree is built before the VM starts and read-only afterwards; it takes no locks. Resolved text is
 * kept: after config_check() reading changes nothing, so several threads may.
 * Values may refer to other variables by %(name); "%%" is a percent sign. References are resolved
 * when a value is read, never when it is stored or dumped.
 */
#ifndef BASE_CONFIG_H
#define BASE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

struct config; /* a node or a leaf */

struct config *config_create(void); /* NULL: out of memory */
void config_destroy(struct config *root);

/* Sets a leaf, making the nodes on the way; replaces an earlier value. -EINVAL: an empty component,
 * a character other than [A-Za-z0-9_-], a whole key of more than 255 characters, a node where a leaf should be or the
 * reverse; a value with a line break in it or of 32000 bytes. */
int config_set(struct config *node, const char *path, const char *value, struct error *err);
int config_setf(struct config *node, struct error *err, const char *path, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* "key=value", as -o takes it. */
int config_set_pair(struct config *root, const char *pair, struct error *err);
/* "first,key=value,flag" as -s and -l take it, below `node`: what has no '=' becomes "true"; the
 * first item is stored under `first_key` if that is not NULL. Commas cannot be escaped; an empty item is
 * refused. A `list` of NULL sets nothing. */
int config_set_list(struct config *node, const char *list, const char *first_key,
		    struct error *err);

/* The node at `path` (NULL or "" is `node` itself), or NULL. */
struct config *config_find(struct config *node, const char *path);
/* The node at `path`, made if it is not there; NULL with text if a leaf is in the way. */
struct config *config_make(struct config *node, const char *path, struct error *err);
void config_remove(struct config *node, const char *path);

/* Children in the order: numbers by value, then names as they were added. */
struct config *config_first(struct config *node);
struct config *config_next(struct config *child);
const char *config_name(const struct config *node); /* the last component of its path */
bool config_is_leaf(const struct config *node);
/* The whole dotted path of a node into `buf`; returns `buf`. For messages. */
const char *config_path(const struct config *node, char *buf, size_t size);

/* The resolved text of a leaf or NULL if it is not set; owned by the tree, valid until it is changed.
 * A reference to what is not set, or in a circle, resolves to nothing; config_check() finds those. */
const char *config_get(struct config *node, const char *path);
const char *config_get_default(struct config *node, const char *path, const char *def);
/* 1/0, true/false, yes/no, on/off in any case; anything else is -EINVAL with text naming the key. */
int config_get_bool(struct config *node, const char *path, bool def, bool *out, struct error *err);
/* Decimal, or hexadecimal with 0x; outside [min, max] or not a number: -EINVAL with text. */
int config_get_u64(struct config *node, const char *path, uint64_t def, uint64_t min, uint64_t max,
		   uint64_t *out, struct error *err);
/* Every child of `node` has one of these names (separated by blanks), or: -EINVAL with text that lists them. */
int config_check_names(struct config *node, const char *names, struct error *err);
/* Every reference in the tree leads somewhere and none in a circle. */
int config_check(struct config *root, struct error *err);

/* Reads key=value lines; '#' begins a comment line; blank lines are skipped. All that follows the first
 * '=' is the value, blanks included. A bad line is named as "file:line: what is wrong"; the lines before
 * it are set. */
int config_load(struct config *root, const char *path, struct error *err);
/* Prints "key=value" lines that config_load() takes, references unresolved. */
void config_dump(struct config *root, FILE *out);

/* bhyve's sizes: a plain number below 1048576 is MiB, from there on bytes; with K, M, G or T (either
 * case) that unit. -EINVAL: not a size, or 0; -ERANGE: over 2^52. */
int size_parse(const char *text, uint64_t *bytes, struct error *err);
/* A whole decimal or 0x number and nothing else. */
int number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *out, struct error *err);

#endif
