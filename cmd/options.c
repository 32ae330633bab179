/*
 * The command line: bhyve(8)'s options, and a few of our own, as keys of the configuration tree.
 */
#include "cmd/options.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

#include "base/uuid.h"
#include "cmd/options_internal.h"
#include "machine/topology.h"

/* What getopt_long() returns for options without a letter. */
enum { OPT_KERNEL = 256, OPT_INITRD, OPT_APPEND };

struct parse {
	struct config *root;
	enum options_action *action;
	const char *pin_base; /* -p N, which needs the number of vCPUs */
};

/*
 * One option. One that takes no argument sets `key` to `value`; one that takes one sets `key` to it,
 * unless `set` does more; with neither it is accepted and means nothing. `refusal` is for options of
 * bhyve's that skep does not have.
 */
struct option_def {
	int letter;
	const char *name; /* of those without a letter */
	const char *arg;  /* what the argument is called, NULL: none */
	const char *help; /* NULL: not listed */
	const char *key, *value;
	int (*set)(struct parse *parse, const char *arg, struct error *err);
	const char *refusal;
};

static int set_help(struct parse *parse, const char *arg, struct error *err)
{
	(void)arg;
	(void)err;
	*parse->action = OPTIONS_HELP;
	return 0;
}

static int set_cpus(struct parse *parse, const char *arg, struct error *err)
{
	static const char *const keys[] = {"cpus", "sockets", "cores", "threads"};
	char copy[128], *rest = copy, *item;
	const size_t nkeys = sizeof(keys) / sizeof(keys[0]);
	int rc = 0;

	if (strlen(arg) >= sizeof(copy))
		return error_set(err, EINVAL, "that is no number of vCPUs");
	strcpy(copy, arg);
	while (rc == 0 && (item = strsep(&rest, ",")) != NULL) {
		char *text = strchr(item, '=');
		const char *key = text != NULL ? item : "cpus";
		size_t i = 0;
		uint64_t n;

		if (text != NULL)
			*text = '\0';
		while (i < nkeys && strcmp(keys[i], key) != 0)
			i++;
		if (i == nkeys)
			return error_set(err, EINVAL,
					 "unknown '%s': [cpus=]N[,sockets=N][,cores=N][,threads=N]",
					 key);
		rc = number_parse(text != NULL ? text + 1 : item, 1, VCPUS_MAX, &n, err);
		if (rc == 0)
			rc = config_setf(parse->root, err, keys[i], "%llu", (unsigned long long)n);
		else
			error_prefix(err, "%s", keys[i]);
	}
	return rc;
}

static int set_memory(struct parse *parse, const char *arg, struct error *err)
{
	uint64_t bytes;
	int rc = size_parse(arg, &bytes, err);

	return rc != 0 ? rc : config_set(parse->root, "memory.size", arg, err);
}

/* "vcpu:hostcpu", repeatable for one vCPU too: it may then run on any of them. */
static int set_pin(struct parse *parse, const char *arg, struct error *err)
{
	const char *colon = strchr(arg, ':');
	char path[48], vcpu[24];
	uint64_t n, host;

	if (colon == NULL) {
		int rc = number_parse(arg, 0, CPU_SETSIZE - 1, &n, err);

		if (rc == 0)
			parse->pin_base = arg;
		return rc;
	}
	snprintf(vcpu, sizeof(vcpu), "%.*s", (int)MIN(colon - arg, 20), arg);
	if (number_parse(vcpu, 0, VCPUS_MAX - 1, &n, NULL) != 0 ||
	    number_parse(colon + 1, 0, CPU_SETSIZE - 1, &host, NULL) != 0)
		return error_set(err, EINVAL,
				 "that is no vcpu:hostcpu, such as 0:2 for vCPU 0 on host CPU 2");
	snprintf(path, sizeof(path), "vcpu.%u.cpuset", (unsigned)n);

	const char *before = config_get(parse->root, path);

	if (before == NULL)
		return config_set(parse->root, path, colon + 1, err);
	return config_setf(parse->root, err, path, "%s,%s", before, colon + 1);
}

static int set_uuid(struct parse *parse, const char *arg, struct error *err)
{
	uint8_t uuid[16];
	int rc = uuid_parse(arg, uuid, err);

	return rc != 0 ? rc : config_set(parse->root, "uuid", arg, err);
}

/* [address:]port, 0 for none. */
static int set_bvmdebug(struct parse *parse, const char *arg, struct error *err)
{
	const char *colon = strrchr(arg, ':');
	uint64_t port;
	int rc = number_parse(colon != NULL ? colon + 1 : arg, 0, 65535, &port, err);

	if (rc != 0) {
		error_prefix(err, "port");
		return rc;
	}
	if (colon != NULL)
		rc = config_setf(parse->root, err, "bvmdebug.address", "%.*s", (int)(colon - arg),
				 arg);
	return rc != 0 ? rc : config_setf(parse->root, err, "bvmdebug.port", "%u", (unsigned)port);
}

static int set_pci(struct parse *parse, const char *arg, struct error *err)
{
	if (strcmp(arg, "help") != 0)
		return options_set_pci(parse->root, arg, err);
	*parse->action = OPTIONS_PCI_HELP;
	return 0;
}

static int set_lpc(struct parse *parse, const char *arg, struct error *err)
{
	if (strcmp(arg, "help") != 0)
		return options_set_lpc(parse->root, arg, err);
	*parse->action = OPTIONS_LPC_HELP;
	return 0;
}

static int set_file(struct parse *parse, const char *arg, struct error *err)
{
	return config_load(parse->root, arg, err);
}

static int set_variable(struct parse *parse, const char *arg, struct error *err)
{
	return config_set_pair(parse->root, arg, err);
}

static int set_initrd(struct parse *parse, const char *arg, struct error *err)
{
	struct config *list = config_make(parse->root, "boot.initrd", err);
	unsigned n = 0;
	char key[16];

	if (list == NULL)
		return -EINVAL;
	for (struct config *child = config_first(list); child != NULL; child = config_next(child))
		n++;
	snprintf(key, sizeof(key), "%u", n);
	return config_set(list, key, arg, err);
}

static const struct option_def option_defs[] = {
	{.letter = 'a',
	 .help = "local APICs start in xAPIC mode (the default)",
	 .key = "x86.x2apic",
	 .value = "false"},
	{.letter = 'A',
	 .help = "ACPI tables (always there; accepted)",
	 .key = "acpi_tables",
	 .value = "true"},
	{.letter = 'b',
	 .help = "bvmcons, the paravirtual console at port 0x220, on stdio",
	 .key = "bvmcons",
	 .value = "true"},
	{.letter = 'c',
	 .arg = "[cpus=]N[,sockets=N][,cores=N][,threads=N]",
	 .help = "number of vCPUs, 1 to 64 (1), and their topology; the product must match",
	 .set = set_cpus},
	{.letter = 'C',
	 .help = "guest memory is part of skep's core dumps",
	 .key = "memory.guest_in_core",
	 .value = "true"},
	{.letter = 'D',
	 .help = "the VM is destroyed on power-off (always so; accepted)",
	 .key = "destroy_on_poweroff",
	 .value = "true"},
	{.letter = 'e',
	 .help = "an access to a port that no device claims ends the VM",
	 .key = "x86.strictio",
	 .value = "true"},
	{.letter = 'E',
	 .arg = "auto|kvm|soft",
	 .help = "the CPU engine; auto (the default) takes kvm where it is really usable",
	 .key = "engine"},
	{.letter = 'f',
	 .arg = "name,...",
	 .refusal = "skep has no fw_cfg device; hand data to the guest with --append or --initrd"},
	{.letter = 'g',
	 .arg = "[addr:]port",
	 .help = "bvmdebug: relay the guest's debugger stub to TCP; on 127.0.0.1, 0: off",
	 .set = set_bvmdebug},
	{.letter = 'G',
	 .arg = "...",
	 .refusal = "skep has no gdb server; -g PORT relays to a debugger stub in the guest"},
	{.letter = 'h', .help = "print this and exit", .set = set_help},
	{.letter = 'H',
	 .help = "a vCPU in HLT gives up its host CPU (always so; accepted)",
	 .key = "x86.vmexit_on_hlt",
	 .value = "true"},
	{.letter = 'I', .help = "an I/O APIC (always there; accepted)"},
	{.letter = 'k',
	 .arg = "file",
	 .help = "read key=value lines of a configuration file",
	 .set = set_file},
	{.letter = 'K',
	 .arg = "layout",
	 .refusal = "keyboard layouts belong to a display, which skep does not have"},
	{.letter = 'l',
	 .arg = "device[,conf]",
	 .help = "a device on the LPC bridge: com1,stdio; bootrom,FILE; -l help lists them",
	 .set = set_lpc},
	{.letter = 'm',
	 .arg = "size",
	 .help = "memory: MiB, or with K, M, G or T (256M); from 1048576 on plain numbers are "
		 "bytes",
	 .set = set_memory},
	{.letter = 'n',
	 .arg = "...",
	 .refusal = "skep's guests have one NUMA domain; -m sets their memory"},
	{.letter = 'o',
	 .arg = "key=value",
	 .help = "set one configuration variable; config.dump=1 prints them all and ends",
	 .set = set_variable},
	{.letter = 'p',
	 .arg = "vcpu:hostcpu | N",
	 .help = "pin a vCPU to a host CPU, repeatable; N: every vCPU n to host CPU N+n",
	 .set = set_pin},
	{.letter = 'P',
	 .help = "a vCPU in PAUSE gives up its host CPU (left to the engine; accepted)",
	 .key = "x86.vmexit_on_pause",
	 .value = "true"},
	{.letter = 'q', .help = "no line about the VM at start", .key = "quiet", .value = "true"},
	{.letter = 'r', .arg = "file", .refusal = "skep cannot restore snapshots"},
	{.letter = 's',
	 .arg = "[bus:]slot[:func],device[,conf]",
	 .help = "a PCI device; -s help lists them. A hostbridge and an lpc are supplied",
	 .set = set_pci},
	{.letter = 'S',
	 .help = "wire guest memory: it is never swapped out",
	 .key = "memory.wired",
	 .value = "true"},
	{.letter = 'u',
	 .help = "the RTC keeps UTC, not local time",
	 .key = "rtc.use_localtime",
	 .value = "false"},
	{.letter = 'U',
	 .arg = "uuid",
	 .help = "the UUID in SMBIOS (made from the VM's name)",
	 .set = set_uuid},
	{.letter = 'w',
	 .help = "unknown MSRs read 0 and ignore writes instead of raising #GP",
	 .key = "x86.strictmsr",
	 .value = "false"},
	{.letter = 'W',
	 .help = "virtio devices use MSI, not MSI-X",
	 .key = "virtio_msix",
	 .value = "false"},
	{.letter = 'x',
	 .help = "local APICs start in x2APIC mode",
	 .key = "x86.x2apic",
	 .value = "true"},
	{.letter = 'Y', .help = "no MP table", .key = "x86.mptable", .value = "false"},
	{.letter = OPT_KERNEL,
	 .name = "kernel",
	 .arg = "FILE",
	 .help = "boot a Linux bzImage, a PVH ELF or a multiboot ELF; COM1 is stdio unless -l com1",
	 .key = "boot.kernel"},
	{.letter = OPT_INITRD,
	 .name = "initrd",
	 .arg = "FILE",
	 .help = "initial RAM disk of the kernel; repeatable: joined",
	 .set = set_initrd},
	{.letter = OPT_APPEND,
	 .name = "append",
	 .arg = "STRING",
	 .help = "command line of the kernel (console=ttyS0 for Linux)",
	 .key = "boot.append"},
};

#define NOPTIONS (sizeof(option_defs) / sizeof(option_defs[0]))

static const struct option_def *option_find(int letter)
{
	for (size_t i = 0; i < NOPTIONS; i++)
		if (option_defs[i].letter == letter)
			return &option_defs[i];
	return NULL;
}

/* "-c" or "--kernel". */
static const char *option_text(const struct option_def *def, char buf[32])
{
	if (def->name != NULL)
		snprintf(buf, 32, "--%s", def->name);
	else
		snprintf(buf, 32, "-%c", def->letter);
	return buf;
}

static int option_apply(struct parse *parse, const struct option_def *def, const char *arg,
			struct error *err)
{
	char text[32];
	int rc;

	option_text(def, text);
	if (def->refusal != NULL)
		return error_set(err, ENOTSUP, "%s: not supported: %s", text, def->refusal);
	if (def->set != NULL)
		rc = def->set(parse, arg, err);
	else if (def->key == NULL)
		rc = 0;
	else
		rc = config_set(parse->root, def->key, arg != NULL ? arg : def->value, err);
	if (rc != 0 && arg != NULL)
		error_prefix(err, "%s %.200s", text, arg);
	else if (rc != 0)
		error_prefix(err, "%s", text);
	return rc;
}

/* getopt's two descriptions of the options, out of the table. */
static void getopt_tables(char letters[2 * NOPTIONS + 3], struct option longs[NOPTIONS + 1])
{
	char *p = letters;
	size_t n = 0;

	*p++ = '+'; /* options end at the first argument that is none */
	*p++ = ':'; /* no messages of getopt's own */
	for (size_t i = 0; i < NOPTIONS; i++) {
		const struct option_def *def = &option_defs[i];

		if (def->name != NULL) {
			longs[n++] =
				(struct option){def->name, required_argument, NULL, def->letter};
			continue;
		}
		*p++ = (char)def->letter;
		if (def->arg != NULL)
			*p++ = ':';
	}
	*p = '\0';
	longs[n] = (struct option){0};
}

static int parse_loop(struct parse *parse, int argc, char *const argv[], struct error *err)
{
	char letters[2 * NOPTIONS + 3], text[32];
	struct option longs[NOPTIONS + 1];
	int c, rc = 0;

	getopt_tables(letters, longs);
	optind = 0; /* glibc: start anew */
	opterr = 0;
	while (rc == 0 && *parse->action == OPTIONS_RUN &&
	       (c = getopt_long(argc, argv, letters, longs, NULL)) != -1) {
		const struct option_def *def = option_find(c == ':' ? optopt : c);

		if (c == ':' && def != NULL)
			return error_set(err, EINVAL, "%s: needs an argument: %s",
					 option_text(def, text), def->arg);
		if (def == NULL && optopt > 0 && optopt < 256)
			return error_set(err, EINVAL, "-%c: no such option; skep -h lists them",
					 optopt);
		if (def == NULL)
			return error_set(err, EINVAL, "%s: no such option; skep -h lists them",
					 argv[optind - 1]);
		rc = option_apply(parse, def, optarg, err);
	}
	return rc;
}

/* The name becomes the name of a socket and part of the process's title. */
static int set_name(struct config *root, const char *name, struct error *err)
{
	static const char chars[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				    "0123456789._+:@-";

	if (name[0] == '\0' || name[0] == '.' || name[0] == '-' || strlen(name) > 63 ||
	    strspn(name, chars) != strlen(name))
		return error_set(
			err, EINVAL,
			"'%.80s' is no name for a VM: up to 63 letters, digits and . _ + : @ -, "
			"not beginning with . or -",
			name);
	return config_set(root, "name", name, err);
}

static int parse_name(struct config *root, int argc, char *const argv[], struct error *err)
{
	const char *name = config_get(root, "name");

	if (argc > 1)
		return error_set(err, EINVAL,
				 "'%.80s' is one argument too many: options come first, then the "
				 "name of the VM ('%.80s')",
				 argv[1], argv[0]);
	if (argc == 1)
		name = argv[0];
	if (name == NULL)
		return error_set(
			err, EINVAL,
			"no name for the VM: skep [options] vmname; skep -h lists the options");
	return set_name(root, name, err);
}

/* -p N becomes what -p 0:N -p 1:N+1 ... would have set. */
static int expand_pins(struct parse *parse, struct error *err)
{
	struct topology topology;
	uint64_t base;
	int rc = topology_read(parse->root, &topology, err);

	if (rc == 0)
		rc = config_setf(parse->root, err, "cpus", "%u", topology.cpus);
	if (rc != 0 || parse->pin_base == NULL)
		return rc;
	rc = number_parse(parse->pin_base, 0, CPU_SETSIZE - 1, &base, err);
	for (unsigned i = 0; rc == 0 && i < topology.cpus; i++) {
		char path[48];

		snprintf(path, sizeof(path), "vcpu.%u.cpuset", i);
		rc = config_setf(parse->root, err, path, "%u", (unsigned)base + i);
	}
	return rc;
}

/* What ends the program without a VM needs no name. */
static int take_dump(struct config *root, enum options_action *action, struct error *err)
{
	bool dump;
	int rc = config_get_bool(root, "config.dump", false, &dump, err);

	if (rc == 0 && dump)
		*action = OPTIONS_DUMP;
	config_remove(root, "config");
	return rc;
}

int options_parse(struct config *root, int argc, char *const argv[], enum options_action *action,
		  struct error *err)
{
	struct parse parse = {.root = root, .action = action};

	*action = OPTIONS_RUN;

	int rc = parse_loop(&parse, argc, argv, err);

	if (rc != 0 || *action != OPTIONS_RUN)
		return rc;
	rc = take_dump(root, action, err);
	if (rc == 0 && (*action == OPTIONS_RUN || optind < argc))
		rc = parse_name(root, argc - optind, argv + optind, err);
	if (rc == 0)
		rc = expand_pins(&parse, err);
	if (rc == 0 && config_get(root, "memory.size") == NULL)
		rc = config_set(root, "memory.size", "256M", err);
	if (rc == 0)
		rc = options_default_devices(root, err);
	return rc != 0 ? rc : config_check(root, err);
}

void options_usage(FILE *out)
{
	char text[32], head[96];

	fprintf(out, "usage: skep [options] vmname\n\n");
	for (size_t i = 0; i < NOPTIONS; i++) {
		const struct option_def *def = &option_defs[i];

		if (def->help == NULL)
			continue;
		snprintf(head, sizeof(head), "%s%s%s", option_text(def, text),
			 def->arg != NULL ? " " : "", def->arg != NULL ? def->arg : "");
		if (strlen(head) <= 17)
			fprintf(out, "  %-17s %s\n", head, def->help);
		else
			fprintf(out, "  %s\n  %-17s %s\n", head, "", def->help);
	}
	fprintf(out, "\nExit status: 0 the guest rebooted, 1 it powered off, 2 it halted, 3 triple "
		     "fault,\n4 skep refused or failed. skep(8) says more.\n");
}
