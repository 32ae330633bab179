/* The configuration tree, its file format, numbers and sizes; error text. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/config.h"

static int setup(void **state)
{
	*state = config_create();
	return *state ? 0 : -1;
}

static int teardown(void **state)
{
	config_destroy(*state);
	return 0;
}

static void set(struct config *c, const char *path, const char *value)
{
	struct error err = {0};

	if (config_set(c, path, value, &err))
		fail_msg("%s=%s: %s", path, value, err.text);
}

static char *dump(struct config *c)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	config_dump(c, out);
	fclose(out);
	return text;
}

static int load_text(struct config *c, const char *text, size_t len, char *path, struct error *err)
{
	int fd, rc;

	strcpy(path, "/tmp/skep-config-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, len), len);
	close(fd);
	rc = config_load(c, path, err);
	unlink(path);
	return rc;
}

static void test_set_and_find(void **state)
{
	struct config *c = *state, *slot;
	struct error err = {0};
	char buf[64];

	set(c, "pci.0.3.0.device", "virtio-rnd");
	set(c, "pci.0.3.0.device", "virtio-blk");
	assert_string_equal(config_get(c, "pci.0.3.0.device"), "virtio-blk");
	assert_null(config_get(c, "pci.0.3.0"));
	assert_null(config_get(c, "pci.0.3.0.device.x"));
	slot = config_find(c, "pci.0.3.0");
	assert_false(config_is_leaf(slot));
	assert_string_equal(config_path(slot, buf, sizeof(buf)), "pci.0.3.0");
	assert_string_equal(config_get(slot, "device"), "virtio-blk");
	assert_int_equal(config_setf(slot, &err, "size", "%d", 12), 0);
	assert_string_equal(config_get(c, "pci.0.3.0.size"), "12");
	assert_ptr_equal(config_make(c, "pci.0.3.0", &err), slot);
	config_remove(c, "pci.0.3");
	assert_null(config_find(c, "pci.0.3.0.size"));
	assert_non_null(config_find(c, "pci.0"));
}

static void test_bad_keys(void **state)
{
	static const char *const bad[] = {"", ".", "a.", ".a", "a..b", "a b", "a/b", "\xc3\xa4"};
	struct config *c = *state;
	struct error err = {0};
	char *whole, longkey[300];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		err.text[0] = '\0';
		assert_int_equal(config_set(c, bad[i], "1", &err), -EINVAL);
		assert_true(err.text[0]);
	}
	memset(longkey, 'a', sizeof(longkey));
	longkey[299] = '\0';
	assert_int_equal(config_set(c, longkey, "1", &err), -EINVAL);
	longkey[200] = '\0';
	set(c, longkey, "x");
	config_remove(c, longkey);
	/* The whole key counts, not the part that one call names. */
	assert_int_equal(config_set(config_make(c, longkey, &err), longkey, "x", &err), -EINVAL);

	set(c, "lpc.com1.path", "stdio");
	assert_int_equal(config_set(c, "lpc.com1", "x", &err), -EINVAL);
	assert_non_null(strstr(err.text, "'lpc.com1'"));
	assert_int_equal(config_set(c, "lpc.com1.path.deep", "x", &err), -EINVAL);
	assert_non_null(strstr(err.text, "'lpc.com1.path'"));
	assert_null(config_make(c, "lpc.com1.path", &err));
	assert_int_equal(config_set(c, "k", "two\nlines", &err), -EINVAL);
	whole = dump(c);
	assert_string_equal(whole, "lpc.com1.path=stdio\n");
	free(whole);
}

static void test_order(void **state)
{
	struct config *c = *state, *child;
	const char *const want[] = {"0", "2", "10", "zeta", "alpha"};
	size_t i = 0;

	for (const char *const *name = (const char *const[]){"zeta", "10", "alpha", "2", "0", NULL};
	     *name; name++)
		set(c, *name, "x");
	for (child = config_first(c); child; child = config_next(child))
		assert_string_equal(config_name(child), want[i++]);
	assert_int_equal(i, 5);
}

static void test_lists(void **state)
{
	struct config *c = *state, *dev;
	struct error err = {0};
	char *text;

	dev = config_make(c, "pci.0.4.0", &err);
	assert_int_equal(config_set_list(dev, "/tmp/a=b,ro,ser=x=y", "path", &err), 0);
	assert_int_equal(config_set_list(dev, "nocache", NULL, &err), 0);
	assert_int_equal(config_set_list(dev, NULL, NULL, &err), 0);
	text = dump(c);
	assert_string_equal(text, "pci.0.4.0.path=/tmp/a=b\npci.0.4.0.ro=true\npci.0.4.0.ser=x=y\n"
				  "pci.0.4.0.nocache=true\n");
	free(text);
	assert_int_equal(config_set_list(dev, "a,,b", NULL, &err), -EINVAL);
	assert_int_equal(config_set_list(dev, "a,", NULL, &err), -EINVAL);
	assert_int_equal(config_set_list(dev, "=x", NULL, &err), -EINVAL);
	assert_int_equal(config_set_pair(c, "novalue", &err), -EINVAL);
	assert_non_null(strstr(err.text, "'novalue'"));
	assert_int_equal(config_set_pair(c, "empty=", &err), 0);
	assert_string_equal(config_get(c, "empty"), "");
}

static void test_references(void **state)
{
	struct config *c = *state;
	struct error err = {0};

	set(c, "name", "vm0");
	set(c, "a", "%(name)/100%%/%(b.c)");
	set(c, "b.c", "[%(name)] %");
	assert_string_equal(config_get(c, "a"), "vm0/100%/[vm0] %");
	assert_int_equal(config_check(c, &err), 0);
	set(c, "name", "vm1");
	assert_string_equal(config_get(c, "a"), "vm1/100%/[vm1] %");
	config_remove(c, "name");
	assert_string_equal(config_get(c, "a"), "/100%/[] %");
	assert_int_equal(config_check(c, &err), -EINVAL);
	assert_non_null(strstr(err.text, "'name'"));
	set(c, "name", "%(a)");
	assert_int_equal(config_check(c, &err), -EINVAL);
	assert_non_null(strstr(err.text, "circle"));
	assert_non_null(config_get(c, "a"));
	set(c, "name", "%(name)!");
	assert_string_equal(config_get(c, "name"), "!");
	set(c, "name", "%(unfinished");
	assert_int_equal(config_check(c, &err), -EINVAL);
	set(c, "name", "%()");
	assert_int_equal(config_check(c, &err), -EINVAL);
	set(c, "name", "%(b)");
	assert_int_equal(config_check(c, &err), -EINVAL);
}

/* Each value doubles the one before: without a bound 2^60 bytes. */
static void test_reference_bomb(void **state)
{
	struct config *c = *state;
	struct error err = {0};
	char key[16], value[64];

	set(c, "v0", "laugh");
	for (int i = 1; i <= 60; i++) {
		snprintf(key, sizeof(key), "v%d", i);
		snprintf(value, sizeof(value), "%%(v%d)%%(v%d)", i - 1, i - 1);
		set(c, key, value);
	}
	assert_non_null(config_get(c, "v60"));
	assert_int_equal(config_check(c, &err), -E2BIG);
	assert_non_null(strstr(err.text, "65536"));
	/* A long chain must not eat the stack. */
	config_set(c, "w0", "end", &err);
	for (int i = 1; i <= 3000; i++) {
		snprintf(key, sizeof(key), "w%d", i);
		snprintf(value, sizeof(value), "%%(w%d)", i - 1);
		set(c, key, value);
	}
	assert_non_null(config_get(c, "w3000"));
}

static void test_typed(void **state)
{
	struct config *c = *state, *mem;
	struct error err = {0};
	uint64_t n;
	bool b;

	set(c, "t", "Yes");
	set(c, "f", "OFF");
	set(c, "x", "maybe");
	assert_int_equal(config_get_bool(c, "t", false, &b, &err), 0);
	assert_true(b);
	assert_int_equal(config_get_bool(c, "f", true, &b, &err), 0);
	assert_false(b);
	assert_int_equal(config_get_bool(c, "none", true, &b, &err), 0);
	assert_true(b);
	assert_int_equal(config_get_bool(c, "x", true, &b, &err), -EINVAL);
	assert_string_equal(err.text, "x: 'maybe' is neither true nor false");

	set(c, "memory.n", "0x10");
	mem = config_find(c, "memory");
	assert_int_equal(config_get_u64(mem, "n", 1, 0, 16, &n, &err), 0);
	assert_int_equal(n, 16);
	assert_int_equal(config_get_u64(mem, "n", 1, 0, 15, &n, &err), -EINVAL);
	assert_string_equal(err.text, "memory.n: '0x10' is not a number from 0 to 15");
	assert_int_equal(config_get_u64(mem, "m", 7, 0, 15, &n, &err), 0);
	assert_int_equal(n, 7);
	assert_string_equal(config_get_default(mem, "m", "def"), "def");
}

static void test_numbers(void **state)
{
	static const char *const bad[] = {
		"", " 1", "1 ", "-1", "+1", "0x", "0xg", "1a", "18446744073709551616"};
	struct error err;
	uint64_t n;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(number_parse(bad[i], 0, UINT64_MAX, &n, &err), -EINVAL);
	assert_int_equal(number_parse("18446744073709551615", 0, UINT64_MAX, &n, &err), 0);
	assert_true(n == UINT64_MAX);
	assert_int_equal(number_parse("010", 0, UINT64_MAX, &n, &err), 0);
	assert_int_equal(n, 10);
	assert_int_equal(number_parse("4", 5, 6, &n, &err), -EINVAL);
}

static void test_sizes(void **state)
{
	static const struct {
		const char *text;
		int rc;
		uint64_t bytes;
	} cases[] = {
		{"256", 0, 256ull << 20},
		{"1048575", 0, 1048575ull << 20},
		{"1048576", 0, 1048576},
		{"512m", 0, 512ull << 20},
		{"4G", 0, 4ull << 30},
		{"16k", 0, 16384},
		{"1T", 0, 1ull << 40},
		{"4096T", 0, 1ull << 52},
		{"4097T", -ERANGE, 0},
		{"99999999999999999999", -ERANGE, 0},
		{"18446744073709551615", -ERANGE, 0},
		{"18446744073709551615T", -ERANGE, 0},
		{"0", -EINVAL, 0},
		{"0G", -EINVAL, 0},
		{"", -EINVAL, 0},
		{"G", -EINVAL, 0},
		{"1GB", -EINVAL, 0},
		{"1x", -EINVAL, 0},
		{"-1", -EINVAL, 0},
		{"1.5G", -EINVAL, 0},
		{"12 ", -EINVAL, 0},
	};
	struct error err;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t bytes = 0;
		int rc = size_parse(cases[i].text, &bytes, &err);

		if (rc != cases[i].rc || (!rc && bytes != cases[i].bytes))
			fail_msg("size '%s': %d, %llu", cases[i].text, rc,
				 (unsigned long long)bytes);
	}
}

static void test_round_trip(void **state)
{
	struct config *c = *state, *again = config_create();
	struct error err = {0};
	char path[64], *first, *second;

	set(c, "spaces", "  both ends \t ");
	set(c, "hash", "# not a comment");
	set(c, "equals", "a=b==c");
	set(c, "percent", "%(spaces)%%");
	set(c, "empty", "");
	set(c, "pci.0.10.0.device", "x");
	set(c, "pci.0.2.0.device", "y");
	set(c, "zeta", "\xc3\xa4\x01");
	set(c, "alpha", "1");
	first = dump(c);
	assert_int_equal(load_text(again, first, strlen(first), path, &err), 0);
	second = dump(again);
	assert_string_equal(first, second);
	assert_string_equal(config_get(again, "percent"), "  both ends \t %");
	free(first);
	free(second);
	config_destroy(again);
}

static void test_load_errors(void **state)
{
	static const struct {
		const char *text;
		unsigned line;
	} cases[] = {
		{"# fine\n\n  \na=1\nnonsense\nb=2\n", 5},
		{"a b=1\n", 1},
		{"a=1\r\n=x\r\n", 2},
		{"a=1\na.b=1\n", 2},
		{"a=1\nb", 2},
	};
	char path[64], want[128], *big;
	struct error err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct config *c = config_create();

		err.text[0] = '\0';
		assert_int_equal(load_text(c, cases[i].text, strlen(cases[i].text), path, &err),
				 -EINVAL);
		snprintf(want, sizeof(want), "%s:%u: ", path, cases[i].line);
		if (strncmp(err.text, want, strlen(want)) != 0)
			fail_msg("'%s' does not begin with '%s'", err.text, want);
		config_destroy(c);
	}
	assert_int_equal(load_text(*state, "a=1\nb=\0c\n", 9, path, &err), -EINVAL);
	assert_non_null(strstr(err.text, ":2: "));
	assert_int_equal(load_text(*state, "a=1\r\nb=2", 8, path, &err), 0);
	assert_string_equal(config_get(*state, "a"), "1");
	assert_string_equal(config_get(*state, "b"), "2");
	big = malloc(100000);
	memset(big, 'a', 100000);
	assert_int_equal(load_text(*state, big, 100000, path, &err), -EINVAL);
	free(big);
	assert_int_equal(config_load(*state, "/nonexistent/file", &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent/file"));
	assert_true(config_load(*state, "/", &err) < 0);
	assert_true(config_load(*state, "/dev/zero", &err) < 0);
}

static void test_error_text(void **state)
{
	struct error err;

	(void)state;
	assert_int_equal(error_set(NULL, EINVAL, "x"), -EINVAL);
	assert_int_equal(error_set(&err, ENOENT, "%s", "inner"), -ENOENT);
	error_prefix(&err, "-s %d", 3);
	assert_string_equal(err.text, "-s 3: inner");
	assert_int_equal(error_set(&err, EIO, "again %s", err.text), -EIO);
	assert_string_equal(err.text, "again -s 3: inner");
	for (int i = 0; i < 500; i++)
		error_prefix(&err, "long");
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_set_and_find, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_keys, setup, teardown),
		cmocka_unit_test_setup_teardown(test_order, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lists, setup, teardown),
		cmocka_unit_test_setup_teardown(test_references, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reference_bomb, setup, teardown),
		cmocka_unit_test_setup_teardown(test_typed, setup, teardown),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
		cmocka_unit_test_setup_teardown(test_load_errors, setup, teardown),
		cmocka_unit_test(test_error_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
