/* The command line into the configuration tree: cmd/options.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/config.h"
#include "cmd/options.h"
#include "machine/topology.h"
#include "vmm/device.h"

#define ARGS_MAX 24

struct run {
	struct config *root;
	enum options_action action;
	struct error err;
	int rc;
};

/* Splits the line at blanks; '~' stands for a blank inside an argument. */
static void parse(struct run *run, const char *line)
{
	char copy[512], *argv[ARGS_MAX + 1] = {"skep"}, *rest = copy, *word;
	int argc = 1;

	assert_true(strlen(line) < sizeof(copy));
	strcpy(copy, line);
	while ((word = strsep(&rest, " ")) != NULL) {
		assert_true(argc < ARGS_MAX);
		for (char *p = word; *p != '\0'; p++)
			if (*p == '~')
				*p = ' ';
		if (word[0] != '\0')
			argv[argc++] = word;
	}
	run->root = config_create();
	assert_non_null(run->root);
	run->err.text[0] = '\0';
	run->rc = options_parse(run->root, argc, argv, &run->action, &run->err);
}

static void expect_keys(const char *line, const char *const pairs[][2])
{
	struct run run;

	parse(&run, line);
	if (run.rc != 0)
		fail_msg("%s: %s", line, run.err.text);
	for (size_t i = 0; pairs[i][0] != NULL; i++) {
		const char *value = config_get(run.root, pairs[i][0]);

		if (value == NULL || strcmp(value, pairs[i][1]) != 0)
			fail_msg("%s: %s is %s, not %s", line, pairs[i][0],
				 value != NULL ? value : "not set", pairs[i][1]);
	}
	config_destroy(run.root);
}

#define EXPECT_KEYS(line, ...) \
	expect_keys(line, (const char *const[][2]){__VA_ARGS__, {NULL, NULL}})

/* Refused, with a text that begins with `option` and says `what`. */
static void expect_refusal(const char *line, const char *option, const char *what)
{
	struct run run;

	parse(&run, line);
	if (run.rc >= 0)
		fail_msg("%s: taken", line);
	if (strncmp(run.err.text, option, strlen(option)) != 0 ||
	    strstr(run.err.text, what) == NULL)
		fail_msg("%s: '%s' lacks '%s' or '%s'", line, run.err.text, option, what);
	config_destroy(run.root);
}

static void flags_set_bhyves_keys(void **state)
{
	(void)state;
	EXPECT_KEYS("-AHP vm0", {"acpi_tables", "true"}, {"x86.vmexit_on_hlt", "true"},
		    {"x86.vmexit_on_pause", "true"}, {"name", "vm0"});
	EXPECT_KEYS("-x -I -w -e -W -Y -u -b -C -S -D -q vm0", {"x86.x2apic", "true"},
		    {"x86.strictmsr", "false"}, {"x86.strictio", "true"}, {"virtio_msix", "false"},
		    {"x86.mptable", "false"}, {"rtc.use_localtime", "false"}, {"bvmcons", "true"},
		    {"memory.guest_in_core", "true"}, {"memory.wired", "true"},
		    {"destroy_on_poweroff", "true"}, {"quiet", "true"});
	EXPECT_KEYS("-x -a vm0", {"x86.x2apic", "false"});
}

static void values_set_keys(void **state)
{
	(void)state;
	EXPECT_KEYS("-m 512M -E soft -U 6f9619ff-8b86-d011-b42d-00c04fc964ff vm0",
		    {"memory.size", "512M"}, {"engine", "soft"},
		    {"uuid", "6f9619ff-8b86-d011-b42d-00c04fc964ff"});
	EXPECT_KEYS("-g 4321 vm0", {"bvmdebug.port", "4321"});
	EXPECT_KEYS("-g 0.0.0.0:4321 vm0", {"bvmdebug.address", "0.0.0.0"},
		    {"bvmdebug.port", "4321"});
	EXPECT_KEYS("-o system.manufacturer=Me -o x=1 -o x=2 vm0", {"system.manufacturer", "Me"},
		    {"x", "2"});
	EXPECT_KEYS("vm0", {"memory.size", "256M"}, {"cpus", "1"});
	EXPECT_KEYS("-o name=vm1", {"name", "vm1"});
	EXPECT_KEYS("-o name=vm1 vm0", {"name", "vm0"});
}

static void pci_devices_take_bhyves_lists(void **state)
{
	(void)state;
	EXPECT_KEYS("-s 3,ahci,hd:/a,ro,ser=x,cd:/b vm0", {"pci.0.3.0.device", "ahci"},
		    {"pci.0.3.0.port.0.type", "hd"}, {"pci.0.3.0.port.0.path", "/a"},
		    {"pci.0.3.0.port.0.ro", "true"}, {"pci.0.3.0.port.0.ser", "x"},
		    {"pci.0.3.0.port.1.type", "cd"}, {"pci.0.3.0.port.1.path", "/b"});
	EXPECT_KEYS("-s 3,ahci,port.0.path=/a,port.1.path=/b vm0", {"pci.0.3.0.port.1.path", "/b"});
	EXPECT_KEYS("-s 3,virtio-blk,/a,bootindex=2 vm0", {"pci.0.3.0.path", "/a"},
		    {"pci.0.3.0.bootindex", "2"});
	expect_refusal("-s 3,ahci,hd:/a,,cd:/b vm0", "-s 3,ahci", "empty");
}

/* The terminal goes to COM1 only if nothing else was given it. */
static void stdio_is_given_once(void **state)
{
	static const char *const taken[] = {"-s 5,uart,stdio", "-s 5,virtio-console,console=stdio",
					    "-l com2,stdio", "-b"};
	struct run run;
	char line[128];

	(void)state;
	EXPECT_KEYS("-s 5,uart --kernel k vm0", {"lpc.com1.path", "stdio"});
	for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++) {
		snprintf(line, sizeof(line), "%s --kernel k vm0", taken[i]);
		parse(&run, line);
		assert_int_equal(run.rc, 0);
		assert_null(config_find(run.root, "lpc.com1"));
		config_destroy(run.root);
	}
}

static void cpus_and_topology(void **state)
{
	(void)state;
	EXPECT_KEYS("-c 4 vm0", {"cpus", "4"});
	EXPECT_KEYS("-c cpus=4,sockets=1,cores=2,threads=2 vm0", {"cpus", "4"}, {"sockets", "1"},
		    {"cores", "2"}, {"threads", "2"});
	EXPECT_KEYS("-c sockets=2,cores=3 vm0", {"cpus", "6"});
	EXPECT_KEYS("-c 64 vm0", {"cpus", "64"});
	expect_refusal("-c 0 vm0", "-c 0: ", "1");
	expect_refusal("-c 65 vm0", "-c 65: ", "64");
	expect_refusal("-c two vm0", "-c two: ", "two");
	expect_refusal("-c 4,cores=3 vm0", "-c: ", "product");
	expect_refusal("-c sockets=9,cores=9 vm0", "-c: ", "64");
	expect_refusal("-c 4,dies=2 vm0", "-c 4,dies=2: ", "unknown 'dies'");
	expect_refusal("-c , vm0", "-c ,: ", "cpus");
}

static void pins_in_both_forms(void **state)
{
	(void)state;
	EXPECT_KEYS("-c 2 -p 0:3 -p 1:5 vm0", {"vcpu.0.cpuset", "3"}, {"vcpu.1.cpuset", "5"});
	EXPECT_KEYS("-p 0:3 -p 0:5 vm0", {"vcpu.0.cpuset", "3,5"});
	/* the number of vCPUs may come later */
	EXPECT_KEYS("-p 2 -c 3 vm0", {"vcpu.0.cpuset", "2"}, {"vcpu.1.cpuset", "3"},
		    {"vcpu.2.cpuset", "4"});
	expect_refusal("-p 0: vm0", "-p 0:: ", "vcpu:hostcpu");
	expect_refusal("-p x vm0", "-p x: ", "x");
	expect_refusal("-p 0:1:2 vm0", "-p 0:1:2: ", "vcpu:hostcpu");
}

static void slots(void **state)
{
	(void)state;
	EXPECT_KEYS("-s 0,hostbridge -s 31,lpc vm0", {"pci.0.0.0.device", "hostbridge"},
		    {"pci.0.31.0.device", "lpc"});
	EXPECT_KEYS("-s 0:0,amd_hostbridge -s 0:30:0,lpc vm0",
		    {"pci.0.0.0.device", "amd_hostbridge"}, {"pci.0.30.0.device", "lpc"});
	/* two functions of one slot are two places */
	EXPECT_KEYS("-s 5:0,hostbridge -s 5:1,hostbridge vm0", {"pci.0.5.0.device", "hostbridge"},
		    {"pci.0.5.1.device", "hostbridge"});
	expect_refusal("-s 3,hostbridge -s 3,hostbridge vm0", "-s 3,hostbridge: ", "0:3:0");
	expect_refusal("-s 32,hostbridge vm0", "-s 32,hostbridge: ", "slot 0-31");
	expect_refusal("-s 0:8,hostbridge vm0", "-s 0:8,hostbridge: ", "function 0-7");
	expect_refusal("-s 256:0:0,hostbridge vm0", "-s 256:0:0,hostbridge: ", "bus 0-255");
	expect_refusal("-s 0:0:0:0,hostbridge vm0", "-s 0:0:0:0,hostbridge: ", "place");
	expect_refusal("-s x,hostbridge vm0", "-s x,hostbridge: ", "slot 'x'");
	expect_refusal("-s -1,hostbridge vm0", "-s -1,hostbridge: ", "slot");
	expect_refusal("-s ,hostbridge vm0", "-s ,hostbridge: ", "slot");
	expect_refusal("-s 3,nosuch vm0", "-s 3,nosuch: ", "hostbridge");
	expect_refusal("-s 3 vm0", "-s 3: ", "no device named");
}

static void lpc_devices(void **state)
{
	(void)state;
	EXPECT_KEYS("-l com1,stdio -l com2,/dev/null vm0", {"lpc.com1.path", "stdio"},
		    {"lpc.com2.path", "/dev/null"});
	EXPECT_KEYS("-l com3,tcp=127.0.0.1:4000 vm0", {"lpc.com3.path", "tcp=127.0.0.1:4000"});
	EXPECT_KEYS("-l com1 vm0", {"lpc.com1.path", "null"});
	EXPECT_KEYS("-l pc-testdev vm0", {"lpc.pc-testdev", "true"});
	EXPECT_KEYS("-l bootrom,/x/BIOS.fd vm0", {"bootrom", "/x/BIOS.fd"});
	EXPECT_KEYS("-l bootrom,rom,vars,fwcfg=qemu vm0", {"bootrom", "rom"}, {"bootvars", "vars"},
		    {"lpc.fwcfg", "qemu"});
	expect_refusal("-l com5,stdio vm0", "-l com5,stdio: ", "com1");
	expect_refusal("-l bootrom vm0", "-l bootrom: ", "FILE");
	expect_refusal("-l pc-testdev,x vm0", "-l pc-testdev,x: ", "no configuration");
}

static void defaults_of_the_machine(void **state)
{
	struct run run;

	(void)state;
	EXPECT_KEYS("vm0", {"pci.0.0.0.device", "hostbridge"}, {"pci.0.31.0.device", "lpc"});
	EXPECT_KEYS("-s 31,hostbridge vm0", {"pci.0.31.0.device", "hostbridge"},
		    {"pci.0.30.0.device", "lpc"});
	EXPECT_KEYS("--kernel k vm0", {"boot.kernel", "k"}, {"lpc.com1.path", "stdio"});
	EXPECT_KEYS("--kernel k -l com1,pty vm0", {"lpc.com1.path", "pty"});
	parse(&run, "-s 4,lpc -l bootrom,x vm0");
	assert_int_equal(run.rc, 0);
	assert_null(config_get(run.root, "pci.0.31.0.device"));
	assert_null(config_get(run.root, "lpc.com1.path"));
	config_destroy(run.root);
	parse(&run, "--kernel k -b vm0");
	assert_int_equal(run.rc, 0);
	assert_null(config_get(run.root, "lpc.com1.path"));
	config_destroy(run.root);
	parse(&run, "--kernel k -l com2,stdio vm0");
	assert_int_equal(run.rc, 0);
	assert_null(config_get(run.root, "lpc.com1.path"));
	config_destroy(run.root);
}

static void kernels(void **state)
{
	(void)state;
	EXPECT_KEYS("--kernel vmlinuz --initrd a --initrd=b --append root=/dev/vda~ro vm0",
		    {"boot.kernel", "vmlinuz"}, {"boot.initrd.0", "a"}, {"boot.initrd.1", "b"},
		    {"boot.append", "root=/dev/vda ro"});
}

static void malformed_lines(void **state)
{
	(void)state;
	expect_refusal("-z vm0", "-z: ", "no such option");
	expect_refusal("--nosuch vm0", "--nosuch: ", "no such option");
	expect_refusal("-m", "-m: ", "needs an argument");
	expect_refusal("--kernel", "--kernel: ", "needs an argument");
	expect_refusal("", "no name for the VM", "vmname");
	expect_refusal("vm0 -m 1G", "'-m' is one argument too many", "options come first");
	expect_refusal("a/b", "'a/b' is no name", "letters");
	expect_refusal("..", "'..' is no name", "letters");
	expect_refusal("-m 0 vm0", "-m 0: ", "0");
	expect_refusal("-m lots vm0", "-m lots: ", "lots");
	expect_refusal("-m 99999999T vm0", "-m 99999999T: ", "");
	expect_refusal("-U 123 vm0", "-U 123: ", "UUID");
	expect_refusal("-U 6f9619ff-8b86-d011-b42d-00c04fc964fg vm0", "-U ", "UUID");
	expect_refusal("-g 65536 vm0", "-g 65536: ", "65535");
	expect_refusal("-o novalue vm0", "-o novalue: ", "");
	expect_refusal("-k /nonexistent/x vm0", "-k /nonexistent/x: ", "No such file");
	expect_refusal("-o a=%(b) vm0", "", "b");
}

static void bhyves_options_that_are_not_here(void **state)
{
	(void)state;
	expect_refusal("-G 1234 vm0", "-G: not supported", "gdb");
	expect_refusal("-f name=x,string=y vm0", "-f: not supported", "fw_cfg");
	expect_refusal("-K de vm0", "-K: not supported", "keyboard");
	expect_refusal("-n id=0,size=1G vm0", "-n: not supported", "NUMA");
	expect_refusal("-r snap vm0", "-r: not supported", "snapshots");
}

static void help_needs_no_name(void **state)
{
	static const struct {
		const char *line;
		enum options_action action;
	} cases[] = {
		{"-h", OPTIONS_HELP},
		{"-s help", OPTIONS_PCI_HELP},
		{"-l help", OPTIONS_LPC_HELP},
		{"-o config.dump=1", OPTIONS_DUMP},
		{"-o config.dump=1 vm0", OPTIONS_DUMP},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct run run;

		parse(&run, cases[i].line);
		assert_int_equal(run.rc, 0);
		assert_int_equal(run.action, cases[i].action);
		assert_null(config_get(run.root, "config.dump"));
		config_destroy(run.root);
	}
}

/* The dump of a line, taken by -k, gives the same tree. */
static void dump_and_load_again(void **state)
{
	char path[] = "/tmp/test_options.XXXXXX", line[64], *first = NULL, *second = NULL;
	int fd = mkstemp(path);
	size_t len;
	struct run run;

	(void)state;
	assert_true(fd >= 0);
	parse(&run, "-c 2,sockets=1,cores=2 -m 512M -AHP -s 0,hostbridge -s 31,lpc -l com1,stdio "
		    "--kernel k --initrd a --append x=y~z -U 6f9619ff-8b86-d011-b42d-00c04fc964ff "
		    "-o config.dump=1 vm0");
	assert_int_equal(run.rc, 0);

	FILE *out = open_memstream(&first, &len);

	config_dump(run.root, out);
	fclose(out);
	config_destroy(run.root);
	assert_int_equal(write(fd, first, strlen(first)), strlen(first));
	close(fd);

	snprintf(line, sizeof(line), "-k %s", path);
	parse(&run, line);
	unlink(path);
	assert_string_equal(run.err.text, "");
	out = open_memstream(&second, &len);
	config_dump(run.root, out);
	fclose(out);
	assert_string_equal(first, second);
	assert_non_null(strstr(second, "boot.append=x=y z\n"));
	config_destroy(run.root);
	free(first);
	free(second);
}

/* Every option of the contract is in the usage. */
static void usage_lists_every_option(void **state)
{
	static const char letters[] = "abcegHhIklmopPqsSuUwWxYACDE";
	char *text = NULL, needle[8];
	size_t len;
	FILE *out = open_memstream(&text, &len);

	(void)state;
	options_usage(out);
	fclose(out);
	for (size_t i = 0; letters[i] != '\0'; i++) {
		snprintf(needle, sizeof(needle), "\n  -%c ", letters[i]);
		if (strstr(text, needle) == NULL)
			fail_msg("-%c is not in the usage", letters[i]);
	}
	assert_non_null(strstr(text, "\n  --kernel FILE"));
	assert_non_null(strstr(text, "\n  --initrd FILE"));
	assert_non_null(strstr(text, "\n  --append STRING"));
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(flags_set_bhyves_keys),
		cmocka_unit_test(values_set_keys),
		cmocka_unit_test(pci_devices_take_bhyves_lists),
		cmocka_unit_test(stdio_is_given_once),
		cmocka_unit_test(cpus_and_topology),
		cmocka_unit_test(pins_in_both_forms),
		cmocka_unit_test(slots),
		cmocka_unit_test(lpc_devices),
		cmocka_unit_test(defaults_of_the_machine),
		cmocka_unit_test(kernels),
		cmocka_unit_test(malformed_lines),
		cmocka_unit_test(bhyves_options_that_are_not_here),
		cmocka_unit_test(help_needs_no_name),
		cmocka_unit_test(dump_and_load_again),
		cmocka_unit_test(usage_lists_every_option),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
