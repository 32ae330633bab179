/*
 * What the PC boots from, at start and at every restart.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "boot/boot.h"
#include "machine/pc_internal.h"
#include "tables/tables.h"
#include "vmm/device.h"

#define INITRDS_MAX 64

static int check_file(const char *option, const char *path, struct error *err)
{
	struct stat st;
	int rc = access(path, R_OK) == 0 && stat(path, &st) == 0 ? 0 : -errno;

	if (rc == 0 && S_ISDIR(st.st_mode))
		rc = -EISDIR;
	if (rc != 0)
		return error_set(err, -rc, "%s: cannot read %s: %s", option, path, strerror(-rc));
	return 0;
}

static int check_files(struct config *config, struct error *err)
{
	struct config *list = config_find(config, "boot.initrd");
	const char *kernel = config_get(config, "boot.kernel");
	int rc = kernel != NULL ? check_file("--kernel", kernel, err)
				: check_file("-l bootrom", config_get(config, "bootrom"), err);

	for (struct config *child = list != NULL ? config_first(list) : NULL;
	     child != NULL && rc == 0; child = config_next(child))
		rc = check_file("--initrd", config_get(child, NULL), err);
	return rc;
}

int pc_check_boot(struct config *config, struct error *err)
{
	const char *kernel = config_get(config, "boot.kernel");
	const char *rom = config_get(config, "bootrom");

	if (kernel == NULL && rom == NULL)
		return error_set(
			err, EINVAL,
			"nothing to boot from: give --kernel FILE (a Linux bzImage, a PVH ELF "
			"or a multiboot ELF) or -l bootrom,FILE (a firmware image)");
	if (kernel != NULL && rom != NULL)
		return error_set(err, EINVAL,
				 "--kernel and -l bootrom: a VM boots from one of the two");
	if (kernel == NULL && config_find(config, "boot.initrd") != NULL)
		return error_set(err, EINVAL, "--initrd: goes with --kernel");
	if (kernel == NULL && config_get(config, "boot.append") != NULL)
		return error_set(err, EINVAL, "--append: goes with --kernel");
	if (config_get(config, "bootvars") != NULL)
		return error_set(
			err, ENOTSUP,
			"-l bootrom,ROM,VARS: skep cannot keep a ROM's variables in a file; "
			"leave VARS out");
	return check_files(config, err);
}

static int load_kernel(struct pc *pc, uint64_t rsdp, struct x86_state *bsp, struct error *err)
{
	struct config *list = config_find(pc->config, "boot.initrd");
	const char *initrds[INITRDS_MAX];
	struct boot_source source = {
		.kernel = config_get(pc->config, "boot.kernel"),
		.initrds = initrds,
		.append = config_get(pc->config, "boot.append"),
		.rsdp = rsdp,
	};

	for (struct config *child = list != NULL ? config_first(list) : NULL; child != NULL;
	     child = config_next(child)) {
		if (source.ninitrds == INITRDS_MAX)
			return error_set(err, E2BIG, "--initrd: at most %d files", INITRDS_MAX);
		initrds[source.ninitrds++] = config_get(child, NULL);
	}
	return boot_load(&pc->vm->memory, &source, bsp, NULL, err);
}

static int set_state(struct vcpu *vcpu, struct x86_state *state, struct error *err)
{
	int rc = vcpu_set_state(vcpu, state);

	if (rc != 0)
		return error_set(err, -rc, "the %s engine refuses the first state of vCPU %u: %s",
				 vcpu->vm->engine->name, vcpu->index, strerror(-rc));
	return 0;
}

static void reset_state(struct vcpu *vcpu, struct x86_state *state)
{
	x86_state_reset(state, vcpu->apic_id, vcpu->index == 0);
	if (vcpu->vm->x2apic)
		x86_state_set_x2apic(state, vcpu->apic_id);
}

int pc_boot(struct pc *pc, struct error *err)
{
	struct vm *vm = pc->vm;
	struct tables_layout layout;
	struct x86_state *state = aligned_alloc(64, sizeof(*state));
	const char *rom = config_get(pc->config, "bootrom");
	int rc = 0;

	if (state == NULL)
		return error_set(err, ENOMEM, "out of memory");
	if (rom != NULL)
		rc = bootrom_load(&vm->memory, rom, err);
	if (rc == 0)
		rc = tables_build(vm, &layout, err);
	if (rc == 0) {
		reset_state(&vm->vcpu[0], state);
		if (rom == NULL)
			rc = load_kernel(pc, layout.rsdp, state, err);
	}
	if (rc == 0)
		rc = set_state(&vm->vcpu[0], state, err);
	free(state);
	return rc;
}

/* Each vCPU first finishes the instruction that it is in the midst of. */
static int reset_vcpus(struct vm *vm, struct error *err)
{
	struct x86_state *state = aligned_alloc(64, sizeof(*state));
	int rc = 0;

	if (state == NULL)
		return error_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < vm->topology.cpus && rc == 0; i++) {
		reset_state(&vm->vcpu[i], state);
		rc = set_state(&vm->vcpu[i], state, err);
	}
	free(state);
	return rc;
}

/* RAM as at start: all zeros, and given back to the host. */
static void clear_memory(struct memory *mem)
{
	for (unsigned i = 0; i < mem->nregions; i++) {
		const struct memory_region *region = &mem->region[i];

		if (region->kind != MEMORY_RAM ||
		    memory_write_begin(mem, region->gpa, region->len) == NULL)
			continue;
		/* A hole is cheaper than zeros; memory that is wired has none. */
		if (madvise(region->hva, region->len, MADV_REMOVE) != 0)
			memset(region->hva, 0, region->len);
		memory_write_end(mem, region->gpa, region->len);
	}
}

int pc_restart(void *arg, struct error *err)
{
	struct pc *pc = arg;
	/* Before the memory: what an INS still has to store must not get into the new one. */
	int rc = reset_vcpus(pc->vm, err);

	if (rc != 0)
		return rc;
	devices_reset(pc->vm);
	clear_memory(&pc->vm->memory);
	return pc_boot(pc, err);
}
