#include "machine/pc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "machine/pc_internal.h"
#include "machine/topology.h"
#include "vmm/device.h"
#include "vmm/engine.h"

/* "1,3-5": the set of host CPUs of one vCPU, as bhyve_config(5) has it. */
static int cpuset_parse(const char *text, cpu_set_t *set, struct error *err)
{
	char copy[256], *rest = copy, *item;

	if (strlen(text) >= sizeof(copy))
		return error_set(err, EINVAL, "'%.40s...' is too long", text);
	strcpy(copy, text);
	CPU_ZERO(set);
	while ((item = strsep(&rest, ",")) != NULL) {
		char *dash = strchr(item, '-');
		uint64_t first, last;

		if (dash != NULL)
			*dash++ = '\0';
		if (number_parse(item, 0, CPU_SETSIZE - 1, &first, err) != 0 ||
		    number_parse(dash != NULL ? dash : item, first, CPU_SETSIZE - 1, &last, err) !=
			    0)
			return -EINVAL;
		for (; first <= last; first++)
			CPU_SET(first, set);
	}
	return 0;
}

/* vcpu.N.cpuset of every vCPU that has one. */
static int pin_vcpus(struct pc *pc, struct error *err)
{
	struct config *list = config_find(pc->config, "vcpu");

	for (struct config *node = list != NULL ? config_first(list) : NULL; node != NULL;
	     node = config_next(node)) {
		const char *text = config_get(node, "cpuset");
		cpu_set_t set;
		uint64_t n;
		int rc;

		if (number_parse(config_name(node), 0, pc->vm->topology.cpus - 1, &n, NULL) != 0)
			return error_set(err, EINVAL,
					 "-p: there is no vCPU '%s': the VM has 0 to %u",
					 config_name(node), pc->vm->topology.cpus - 1);
		if (text == NULL)
			continue;
		rc = cpuset_parse(text, &set, err);
		if (rc == 0)
			rc = vcpu_pin(&pc->vm->vcpu[n], &set, err);
		if (rc != 0) {
			error_prefix(err, "-p");
			return rc;
		}
	}
	return 0;
}

/* -o reboot=restart: the guest's reset does not end skep. */
static int read_reboot(struct config *config, bool *restart, struct error *err)
{
	const char *reboot = config_get_default(config, "reboot", "exit");

	*restart = strcmp(reboot, "restart") == 0;
	if (!*restart && strcmp(reboot, "exit") != 0)
		return error_set(err, EINVAL, "-o reboot=%s: it is exit or restart", reboot);
	return 0;
}

static int read_memory(struct config *config, struct vm_options *options, struct error *err)
{
	const char *size = config_get_default(config, "memory.size", "256M");
	int rc = size_parse(size, &options->memory_size, err);

	if (rc == 0 && (options->memory_size < MEMORY_MIN || options->memory_size > MEMORY_MAX))
		rc = error_set(err, ERANGE, "a VM has %lluM to %lluG of memory", MEMORY_MIN >> 20,
			       MEMORY_MAX >> 30);
	if (rc != 0) {
		error_prefix(err, "-m %s", size);
		return rc;
	}
	rc = config_get_bool(config, "memory.wired", false, &options->memory_wired, err);
	if (rc == 0)
		rc = config_get_bool(config, "memory.guest_in_core", false,
				     &options->memory_in_core, err);
	return rc;
}

static int create_vm(struct pc *pc, struct log *log, struct error *err)
{
	struct vm_options options = {
		.name = config_get_default(pc->config, "name", "vm"),
		.config = pc->config,
		.log = log,
	};
	int rc = topology_read(pc->config, &options.topology, err);

	if (rc == 0)
		rc = read_memory(pc->config, &options, err);
	if (rc != 0)
		return rc;
	rc = engine_choose(config_get_default(pc->config, "engine", "auto"), &options.engine,
			   pc->why, sizeof(pc->why), err);
	return rc != 0 ? rc : vm_create(&pc->vm, &options, err);
}

int pc_create(struct pc **out, struct config *config, struct log *log, struct error *err)
{
	struct pc *pc;
	bool restart;
	int rc = pc_check_boot(config, err);

	if (rc == 0)
		rc = read_reboot(config, &restart, err);
	if (rc != 0)
		return rc;
	pc = calloc(1, sizeof(*pc));
	if (pc == NULL)
		return error_set(err, ENOMEM, "out of memory");
	pc->config = config;
	rc = create_vm(pc, log, err);
	if (rc == 0)
		rc = pin_vcpus(pc, err);
	if (rc == 0)
		rc = pc_create_devices(pc, err);
	if (rc == 0)
		rc = pc_boot(pc, err);
	if (rc != 0) {
		pc_destroy(pc);
		return rc;
	}
	if (restart)
		vm_set_restart(pc->vm, pc_restart, pc);
	*out = pc;
	return 0;
}

void pc_destroy(struct pc *pc)
{
	vm_destroy(pc->vm);
	free(pc);
}

struct vm *pc_vm(struct pc *pc)
{
	return pc->vm;
}

/* Does a console of the VM's have the terminal, and with it the ^A escape? */
static bool owns_terminal(struct config *config)
{
	struct config *lpc = config_find(config, "lpc"), *cons = config_find(config, "bvmcons");
	bool there;

	if (cons != NULL && !config_is_leaf(cons))
		there = strcmp(config_get_default(cons, "path", "stdio"), "stdio") == 0;
	else if (config_get_bool(config, "bvmcons", false, &there, NULL) != 0)
		there = false;
	if (there)
		return true;
	for (lpc = lpc != NULL ? config_first(lpc) : NULL; lpc != NULL; lpc = config_next(lpc))
		if (!config_is_leaf(lpc) &&
		    strcmp(config_get_default(lpc, "path", ""), "stdio") == 0)
			return true;
	return false;
}

const char *pc_describe(struct pc *pc, char *buf, size_t size)
{
	struct vm *vm = pc->vm;
	unsigned cpus = vm->topology.cpus;

	snprintf(buf, size, "%s: engine %s (%s), %u vCPU%s, %llu MiB; to quit: %s%s%s", vm->name,
		 vm->engine->name, pc->why, cpus, cpus == 1 ? "" : "s",
		 (unsigned long long)(vm->memory.size >> 20),
		 owns_terminal(pc->config) ? "^A x" : "skepctl ",
		 owns_terminal(pc->config) ? "" : vm->name,
		 owns_terminal(pc->config) ? "" : " stop");
	return buf;
}
