#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/config.h"

#define PATH_MAX_BYTES 255 /* of a whole key; so the depth of a tree is bounded too */
#define VALUE_MAX_BYTES 32000
#define LINE_MAX_BYTES (VALUE_MAX_BYTES + 2 * PATH_MAX_BYTES) /* of a file */
#define RESOLVED_MAX 65536				      /* bytes that a value may grow to */
#define REFERENCE_DEPTH 64

struct config {
	struct config *parent, *next, *children;
	char *value;		/* a leaf's text as it was set; NULL: a node with children */
	char *resolved;		/* a leaf's text with references resolved, or NULL */
	uint64_t resolved_when; /* the root's generation at that time */
	uint64_t generation;	/* of a root: counts changes */
	bool resolving;		/* the reference that leads here again is in a circle */
	char name[];
};

static struct config *node_alloc(const char *name, size_t len)
{
	struct config *node = calloc(1, sizeof(*node) + len + 1);

	if (node)
		memcpy(node->name, name, len);
	return node;
}

struct config *config_create(void)
{
	return node_alloc("", 0);
}

/* `node` is out of its parent's list, or a root. */
static void node_free(struct config *node)
{
	struct config *child, *next;

	for (child = node->children; child; child = next) {
		next = child->next;
		node_free(child);
	}
	free(node->resolved);
	free(node->value);
	free(node);
}

void config_destroy(struct config *root)
{
	if (root)
		node_free(root);
}

static struct config *node_root(struct config *node)
{
	while (node->parent)
		node = node->parent;
	return node;
}

static bool is_index(const char *name)
{
	size_t digits = strspn(name, "0123456789");

	return digits && digits <= 18 && !name[digits];
}

/* True if `a` comes before `b`: numbers by value, then names as they were added. */
static bool name_before(const char *a, const char *b)
{
	if (!is_index(a))
		return false;
	return !is_index(b) || strtoull(a, NULL, 10) < strtoull(b, NULL, 10);
}

static struct config *find_child(const struct config *node, const char *name, size_t len)
{
	struct config *child = node->children;

	while (child && (strncmp(child->name, name, len) != 0 || child->name[len]))
		child = child->next;
	return child;
}

static struct config *add_child(struct config *node, const char *name, size_t len)
{
	struct config *child = node_alloc(name, len);
	struct config **link = &node->children;

	if (!child)
		return NULL;
	while (*link && !name_before(child->name, (*link)->name))
		link = &(*link)->next;
	child->next = *link;
	child->parent = node;
	*link = child;
	return child;
}

const char *config_name(const struct config *node)
{
	return node->name;
}

bool config_is_leaf(const struct config *node)
{
	return node->value != NULL;
}

struct config *config_first(struct config *node)
{
	return node->children;
}

struct config *config_next(struct config *child)
{
	return child->next;
}

const char *config_path(const struct config *node, char *buf, size_t size)
{
	size_t at = 0;

	if (!size)
		return buf;
	buf[0] = '\0';
	if (node->parent && node->parent->parent) {
		config_path(node->parent, buf, size);
		at = strlen(buf);
	}
	snprintf(buf + at, size - at, "%s%s", at ? "." : "", node->name);
	return buf;
}

/* The whole path of what would be at `path` below `node`. */
static const char *path_below(const struct config *node, const char *path, char *buf, size_t size)
{
	size_t at;

	config_path(node, buf, size);
	at = strlen(buf);
	snprintf(buf + at, size - at, "%s%s", at ? "." : "", path);
	return buf;
}

static int path_check(const struct config *node, const char *path, struct error *err)
{
	size_t len = strlen(path), above = 0;
	bool empty = true;

	for (; node->parent; node = node->parent)
		above += strlen(node->name) + 1;
	if (len > PATH_MAX_BYTES || above + len > PATH_MAX_BYTES)
		return error_set(err, EINVAL, "key '%.40s...' has more than %d characters", path,
				 PATH_MAX_BYTES);
	for (size_t i = 0; i <= len; i++) {
		unsigned char c = (unsigned char)path[i];

		if (c == '.' || !c) {
			if (empty)
				return error_set(err, EINVAL, "key '%s' has an empty component",
						 path);
			empty = true;
		} else if (isascii(c) && (isalnum(c) || c == '_' || c == '-')) {
			empty = false;
		} else {
			return error_set(
				err, EINVAL,
				"key '%s' may hold letters, digits, '_' and '-' only, between "
				"dots",
				path);
		}
	}
	return 0;
}

struct config *config_find(struct config *node, const char *path)
{
	if (!path || !*path)
		return node;
	while (node) {
		size_t len = strcspn(path, ".");

		node = find_child(node, path, len);
		if (!path[len])
			break;
		path += len + 1;
	}
	return node;
}

/* Makes what is missing on a path that path_check() has passed. */
static struct config *node_walk(struct config *node, const char *path, struct error *err)
{
	char buf[PATH_MAX_BYTES + 1];

	for (;;) {
		size_t len = strcspn(path, ".");
		struct config *child;

		if (node->value) {
			error_set(err, EINVAL,
				  "'%s' already has a value, so nothing can be below it",
				  config_path(node, buf, sizeof(buf)));
			return NULL;
		}
		child = find_child(node, path, len);
		if (!child)
			child = add_child(node, path, len);
		if (!child) {
			error_set(err, ENOMEM, "no memory for the configuration");
			return NULL;
		}
		if (!path[len])
			return child;
		node = child;
		path += len + 1;
	}
}

struct config *config_make(struct config *node, const char *path, struct error *err)
{
	struct config *made = node;
	char buf[PATH_MAX_BYTES + 1];

	if (path && *path) {
		if (path_check(node, path, err))
			return NULL;
		made = node_walk(node, path, err);
	}
	if (made && made->value) {
		error_set(err, EINVAL, "'%s' already has a value, so nothing can be below it",
			  config_path(made, buf, sizeof(buf)));
		return NULL;
	}
	return made;
}

/* What a line of a file cannot hold. */
static int value_check(const char *path, const char *value, struct error *err)
{
	if (strpbrk(value, "\r\n"))
		return error_set(err, EINVAL, "the value of '%s' has a line break in it", path);
	if (strlen(value) >= VALUE_MAX_BYTES)
		return error_set(err, EINVAL, "the value of '%s' is longer than %d bytes", path,
				 VALUE_MAX_BYTES - 1);
	return 0;
}

int config_set(struct config *node, const char *path, const char *value, struct error *err)
{
	struct config *leaf;
	char *copy, buf[PATH_MAX_BYTES + 1];
	int rc = path_check(node, path, err);

	if (!rc)
		rc = value_check(path, value, err);
	if (rc)
		return rc;
	copy = strdup(value);
	if (!copy)
		return error_set(err, ENOMEM, "no memory for the configuration");
	leaf = node_walk(node, path, err);
	if (leaf && leaf->children) {
		error_set(err, EINVAL, "'%s' has keys below it, so it can have no value itself",
			  config_path(leaf, buf, sizeof(buf)));
		leaf = NULL;
	}
	if (!leaf) {
		free(copy);
		return -EINVAL;
	}
	free(leaf->value);
	leaf->value = copy;
	node_root(node)->generation++;
	return 0;
}

int config_setf(struct config *node, struct error *err, const char *path, const char *fmt, ...)
{
	char *value;
	va_list ap;
	int rc;

	va_start(ap, fmt);
	rc = vasprintf(&value, fmt, ap);
	va_end(ap);
	if (rc < 0)
		return error_set(err, ENOMEM, "no memory for the configuration");
	rc = config_set(node, path, value, err);
	free(value);
	return rc;
}

int config_set_pair(struct config *root, const char *pair, struct error *err)
{
	const char *equals = strchr(pair, '=');
	char key[PATH_MAX_BYTES + 1];

	if (!equals)
		return error_set(err, EINVAL, "'%.200s' is not of the form key=value", pair);
	if ((size_t)(equals - pair) >= sizeof(key))
		return error_set(err, EINVAL, "key '%.40s...' has more than %d characters", pair,
				 PATH_MAX_BYTES);
	memcpy(key, pair, (size_t)(equals - pair));
	key[equals - pair] = '\0';
	return config_set(root, key, equals + 1, err);
}

static int set_item(struct config *node, char *item, const char *first_key, struct error *err)
{
	if (!*item)
		return error_set(err, EINVAL, "an option between commas is empty");
	if (first_key)
		return config_set(node, first_key, item, err);
	if (strchr(item, '='))
		return config_set_pair(node, item, err);
	return config_set(node, item, "true", err);
}

int config_set_list(struct config *node, const char *list, const char *first_key, struct error *err)
{
	char *copy, *item, *next;
	int rc = 0;

	if (!list)
		return 0;
	copy = strdup(list);
	if (!copy)
		return error_set(err, ENOMEM, "no memory for the configuration");
	for (item = copy; item && !rc; item = next) {
		next = strchr(item, ',');
		if (next)
			*next++ = '\0';
		rc = set_item(node, item, first_key, err);
		first_key = NULL;
	}
	free(copy);
	return rc;
}

void config_remove(struct config *node, const char *path)
{
	struct config *gone = config_find(node, path);
	struct config **link;

	if (!gone || !gone->parent)
		return;
	node_root(node)->generation++;
	for (link = &gone->parent->children; *link != gone; link = &(*link)->next)
		;
	*link = gone->next;
	node_free(gone);
}

/* A text that grows up to RESOLVED_MAX. */
struct text {
	char *at;
	size_t len, room;
};

static int text_add(struct text *text, const char *add, size_t len)
{
	if (text->len + len + 1 > text->room) {
		size_t room = (text->len + len + 1) * 2;
		char *at;

		if (text->len + len >= RESOLVED_MAX)
			return -E2BIG;
		at = realloc(text->at, room);
		if (!at)
			return -ENOMEM;
		text->at = at;
		text->room = room;
	}
	memcpy(text->at + text->len, add, len);
	text->len += len;
	text->at[text->len] = '\0';
	return 0;
}

static int leaf_resolve(struct config *root, struct config *leaf, unsigned depth,
			struct error *err);

/* `name` is what stands in %( ). */
static int add_reference(struct config *root, struct config *leaf, struct text *text, char *name,
			 unsigned depth, struct error *err)
{
	struct config *other = config_find(root, name);
	char buf[PATH_MAX_BYTES + 1];
	int rc, grown;

	config_path(leaf, buf, sizeof(buf));
	if (!*name || !other || !other->value)
		return error_set(err, EINVAL, "'%s' refers to '%.200s', which is not set", buf,
				 name);
	if (other->resolving)
		return error_set(err, EINVAL, "'%s' refers to '%s' in a circle", buf, name);
	if (depth >= REFERENCE_DEPTH)
		return error_set(err, EINVAL, "'%s' is reached over more than %d references", buf,
				 REFERENCE_DEPTH);
	rc = leaf_resolve(root, other, depth + 1, err);
	if (!other->resolved)
		return -ENOMEM;
	grown = text_add(text, other->resolved, strlen(other->resolved));
	return rc ? rc : grown;
}

/* Resolves what begins at the '%' of *at and moves it behind that. */
static int add_percent(struct config *root, struct config *leaf, struct text *text, const char **at,
		       unsigned depth, struct error *err)
{
	const char *start = *at, *end;
	char name[PATH_MAX_BYTES + 1], buf[PATH_MAX_BYTES + 1];

	*at = start + 1;
	if (start[1] == '%')
		*at = start + 2;
	if (start[1] != '(')
		return text_add(text, "%", 1);
	end = strchr(start, ')');
	*at = end ? end + 1 : start + strlen(start);
	if (!end || (size_t)(end - start - 2) >= sizeof(name))
		return error_set(err, EINVAL,
				 "'%s' has a '%%(' that is no reference; '%%%%' is a percent sign",
				 config_path(leaf, buf, sizeof(buf)));
	memcpy(name, start + 2, (size_t)(end - start - 2));
	name[end - start - 2] = '\0';
	return add_reference(root, leaf, text, name, depth, err);
}

/* Fills leaf->resolved, with text for every case (what is wrong resolves to nothing); tells the first
 * thing that is wrong. */
static int leaf_resolve(struct config *root, struct config *leaf, unsigned depth, struct error *err)
{
	struct text text = {0};
	const char *at = leaf->value;
	char buf[PATH_MAX_BYTES + 1];
	int first = 0;

	if (leaf->resolved && leaf->resolved_when == root->generation + 1)
		return 0;
	leaf->resolving = true;
	text_add(&text, "", 0);
	while (*at) {
		size_t plain = strcspn(at, "%");
		int rc = text_add(&text, at, plain);

		at += plain;
		if (!rc && *at)
			rc = add_percent(root, leaf, &text, &at, depth, first ? NULL : err);
		if (first || !rc)
			continue;
		first = rc;
		if (rc == -E2BIG || rc == -ENOMEM)
			error_set(err, -rc, "'%s' has more than %d bytes with its references",
				  config_path(leaf, buf, sizeof(buf)), RESOLVED_MAX);
	}
	leaf->resolving = false;
	free(leaf->resolved);
	leaf->resolved = text.at;
	leaf->resolved_when = root->generation + 1;
	return first;
}

static const char *leaf_text(struct config *leaf)
{
	if (!strchr(leaf->value, '%'))
		return leaf->value;
	leaf_resolve(node_root(leaf), leaf, 0, NULL);
	return leaf->resolved ? leaf->resolved : "";
}

const char *config_get(struct config *node, const char *path)
{
	struct config *leaf = config_find(node, path);

	return leaf && leaf->value ? leaf_text(leaf) : NULL;
}

const char *config_get_default(struct config *node, const char *path, const char *def)
{
	const char *text = config_get(node, path);

	return text ? text : def;
}

int config_get_bool(struct config *node, const char *path, bool def, bool *out, struct error *err)
{
	static const char *const yes[] = {"1", "true", "yes", "on"};
	static const char *const no[] = {"0", "false", "no", "off"};
	const char *text = config_get(node, path);
	char buf[PATH_MAX_BYTES + 1];

	*out = def;
	if (!text)
		return 0;
	for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
		if (strcasecmp(text, yes[i]) == 0 || strcasecmp(text, no[i]) == 0) {
			*out = strcasecmp(text, yes[i]) == 0;
			return 0;
		}
	}
	return error_set(err, EINVAL, "%s: '%.200s' is neither true nor false",
			 path_below(node, path, buf, sizeof(buf)), text);
}

int config_get_u64(struct config *node, const char *path, uint64_t def, uint64_t min, uint64_t max,
		   uint64_t *out, struct error *err)
{
	const char *text = config_get(node, path);
	char buf[PATH_MAX_BYTES + 1];
	int rc;

	*out = def;
	if (!text)
		return 0;
	rc = number_parse(text, min, max, out, err);
	if (rc)
		error_prefix(err, "%s", path_below(node, path, buf, sizeof(buf)));
	return rc;
}

static int check_below(struct config *root, struct config *node, struct error *err)
{
	struct config *child;
	int rc = 0;

	if (node->value)
		return leaf_resolve(root, node, 0, err);
	for (child = node->children; child && !rc; child = child->next)
		rc = check_below(root, child, err);
	return rc;
}

/* Is `word` one of the words of `list`? */
static bool in_list(const char *list, const char *word)
{
	size_t len = strlen(word);

	for (const char *at = list; (at = strstr(at, word)) != NULL; at += len) {
		if ((at == list || at[-1] == ' ') && (at[len] == ' ' || at[len] == '\0'))
			return true;
	}
	return false;
}

int config_check_names(struct config *node, const char *names, struct error *err)
{
	for (struct config *child = config_first(node); child; child = config_next(child)) {
		if (!in_list(names, config_name(child)))
			return error_set(err, EINVAL, "%s: no such option; there are: %s",
					 config_name(child), names);
	}
	return 0;
}

int config_check(struct config *root, struct error *err)
{
	root->generation++; /* what was resolved before told its errors to nobody */
	return check_below(root, root, err);
}

/* One line without its end into `line`; -ENODATA at the end of the file. */
static int read_line(FILE *in, char *line, size_t size)
{
	size_t len = 0;
	int c;

	while ((c = getc(in)) != EOF && c != '\n') {
		if (!c || len + 1 >= size)
			return c ? -E2BIG : -EILSEQ;
		line[len++] = (char)c;
	}
	if (ferror(in))
		return -EIO;
	if (c == EOF && !len)
		return -ENODATA;
	if (len && line[len - 1] == '\r')
		len--;
	line[len] = '\0';
	return 0;
}

static int load_line(struct config *root, FILE *in, char *line, struct error *err)
{
	int rc = read_line(in, line, LINE_MAX_BYTES);
	const char *text = line;

	switch (rc) {
	case 0:
		break;
	case -ENODATA:
		return rc;
	case -E2BIG:
		return error_set(err, EINVAL, "the line has more than %d bytes",
				 LINE_MAX_BYTES - 1);
	case -EILSEQ:
		return error_set(err, EINVAL, "the line holds a zero byte; is it a text file?");
	default:
		return error_set(err, -rc, "cannot read: %s", strerror(errno));
	}
	text += strspn(text, " \t");
	if (!*text || *text == '#')
		return 0;
	return config_set_pair(root, text, err);
}

int config_load(struct config *root, const char *path, struct error *err)
{
	FILE *in = fopen(path, "re");
	char *line;
	int rc;

	if (!in) {
		rc = -errno;
		return error_set(err, -rc, "%s: cannot open: %s", path, strerror(-rc));
	}
	line = malloc(LINE_MAX_BYTES);
	rc = line ? 0 : error_set(err, ENOMEM, "no memory to read %s", path);
	for (unsigned long n = 1; !rc; n++) {
		rc = load_line(root, in, line, err);
		if (rc && rc != -ENODATA)
			error_prefix(err, "%s:%lu", path, n);
	}
	free(line);
	fclose(in);
	return rc == -ENODATA ? 0 : rc;
}

void config_dump(struct config *root, FILE *out)
{
	char buf[PATH_MAX_BYTES + 1];

	if (root->value)
		fprintf(out, "%s=%s\n", config_path(root, buf, sizeof(buf)), root->value);
	for (struct config *child = root->children; child; child = child->next)
		config_dump(child, out);
}

/* The number that `text` begins with and where it ends; false if there is none or it has no room. */
static bool number_scan(const char *text, uint64_t *value, const char **end)
{
	int base = text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? 16 : 10;
	const char *digits = base == 16 ? text + 2 : text;
	char *stop;

	*end = text;
	if (base == 16 ? !isxdigit((unsigned char)*digits) : !isdigit((unsigned char)*digits))
		return false;
	errno = 0;
	*value = strtoull(digits, &stop, base);
	*end = stop;
	return errno == 0;
}

int number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *out, struct error *err)
{
	const char *end;
	uint64_t value;

	if (!number_scan(text, &value, &end) || *end || value < min || value > max)
		return error_set(err, EINVAL,
				 "'%.200s' is not a number from %" PRIu64 " to %" PRIu64, text, min,
				 max);
	*out = value;
	return 0;
}

int size_parse(const char *text, uint64_t *bytes, struct error *err)
{
	static const char units[] = "kmgt";
	const uint64_t max = 1ull << 52;
	uint64_t value = 0, scale = 1;
	const char *end, *unit;
	bool fits = number_scan(text, &value, &end);

	if (end == text || (fits && !value))
		goto bad;
	if (*end) {
		unit = strchr(units, tolower((unsigned char)*end));
		if (!unit || end[1])
			goto bad;
		scale = 1024ull << (10 * (unit - units));
	} else if (fits && value < 1048576) {
		scale = 1048576;
	}
	if (!fits || value > max / scale)
		return error_set(err, ERANGE, "'%.200s' is more than 4096T", text);
	*bytes = value * scale;
	return 0;
bad:
	return error_set(
		err, EINVAL,
		"'%.200s' is not a size: MiB, or a number with K, M, G or T, and more than 0",
		text);
}
