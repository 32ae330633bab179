/*
 * Guest-physical memory: one sealed memfd for RAM, read-only regions for ROMs.
 */
#include "vmm/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/vm.h"

static uint64_t page_round_up(uint64_t len)
{
	return (len + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
}

/* Sealed: the size never changes under a process that maps it (a vhost-user back end, a clone). */
static int memory_create_fd(struct memory *mem, struct error *err)
{
	mem->fd = memfd_create("skep-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (mem->fd < 0)
		return error_set(err, errno, "cannot make the guest's memory: memfd_create: %s",
				 strerror(errno));
	if (ftruncate(mem->fd, (off_t)mem->size) < 0)
		return error_set(err, errno, "cannot make %" PRIu64 " MiB of guest memory: %s",
				 mem->size >> 20, strerror(errno));
	if (fcntl(mem->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return error_set(err, errno, "cannot seal the guest's memory: %s", strerror(errno));
	return 0;
}

static int memory_map_fd(struct memory *mem, bool wired, bool in_core, struct error *err)
{
	void *base = mmap(NULL, mem->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
			  mem->fd, 0);

	if (base == MAP_FAILED)
		return error_set(err, errno, "cannot map %" PRIu64 " MiB of guest memory: %s",
				 mem->size >> 20, strerror(errno));
	mem->base = base;
	madvise(base, mem->size, MADV_HUGEPAGE); /* an optimisation; not every host has it */
	if (!in_core)
		madvise(base, mem->size, MADV_DONTDUMP);
	if (wired && mlock(base, mem->size) < 0)
		return error_set(err, errno,
				 "cannot wire %" PRIu64
				 " MiB of guest memory: %s (raise the limit on "
				 "locked memory, ulimit -l, or leave out -S)",
				 mem->size >> 20, strerror(errno));
	return 0;
}

static void memory_add_region(struct memory *mem, const char *name, enum memory_kind kind,
			      uint64_t gpa, uint64_t len, uint8_t *hva)
{
	mem->region[mem->nregions++] = (struct memory_region){
		.gpa = gpa, .len = len, .hva = hva, .kind = kind, .name = name};
}

int memory_create(struct memory *mem, struct vm *vm, uint64_t size, bool wired, bool in_core,
		  struct error *err)
{
	int r;

	*mem = (struct memory){.vm = vm, .fd = -1};
	if (size < MEMORY_MIN || size > MEMORY_MAX)
		return error_set(err, EINVAL,
				 "%" PRIu64
				 " bytes of guest memory: it must be from %llu MiB to %llu GiB",
				 size, MEMORY_MIN >> 20, MEMORY_MAX >> 30);
	mem->size = page_round_up(size);
	mem->low = mem->size < MEMORY_LOW_MAX ? mem->size : MEMORY_LOW_MAX;
	mem->high = mem->size - mem->low;
	r = memory_create_fd(mem, err);
	if (!r)
		r = memory_map_fd(mem, wired, in_core, err);
	if (r) {
		memory_destroy(mem);
		return r;
	}
	memory_add_region(mem, "low RAM", MEMORY_RAM, 0, mem->low, mem->base);
	if (mem->high)
		memory_add_region(mem, "high RAM", MEMORY_RAM, MEMORY_HIGH_BASE, mem->high,
				  mem->base + mem->low);
	return 0;
}

uint64_t mapping_resident(const void *start, uint64_t len)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), resident = 0;
	unsigned char there[4096];

	for (uint64_t at = 0; at < len; at += sizeof(there) * page) {
		uint64_t part = len - at < sizeof(there) * page ? len - at : sizeof(there) * page;

		if (mincore((uint8_t *)start + at, part, there) != 0)
			return resident;
		for (uint64_t i = 0; i < (part + page - 1) / page; i++)
			resident += (there[i] & 1) * page;
	}
	return resident;
}

void memory_destroy(struct memory *mem)
{
	for (unsigned i = 0; i < mem->nregions; i++) {
		if (mem->region[i].kind == MEMORY_ROM)
			munmap(mem->region[i].hva, mem->region[i].len);
	}
	if (mem->base)
		munmap(mem->base, mem->size);
	if (mem->fd >= 0)
		close(mem->fd);
	*mem = (struct memory){.fd = -1};
}

static int memory_check_rom(const struct memory *mem, const char *name, uint64_t gpa, uint64_t len,
			    struct error *err)
{
	if (len == 0 || gpa % PAGE_SIZE || len > MEMORY_MAX || gpa + len > (1ull << 52))
		return error_set(err, EINVAL,
				 "%s: a ROM of %" PRIu64 " bytes cannot be at 0x%" PRIx64
				 ": it must begin on a page and have at least one byte",
				 name, len, gpa);
	if (mem->nregions == MEMORY_REGIONS)
		return error_set(err, ENOSPC, "%s: there are %u memory regions already", name,
				 MEMORY_REGIONS);
	for (unsigned i = 0; i < mem->nregions; i++) {
		const struct memory_region *other = &mem->region[i];

		if (gpa < other->gpa + other->len && other->gpa < gpa + len)
			return error_set(err, EEXIST,
					 "%s: 0x%" PRIx64 "-0x%" PRIx64 " overlaps %s at 0x%" PRIx64
					 "-0x%" PRIx64,
					 name, gpa, gpa + len - 1, other->name, other->gpa,
					 other->gpa + other->len - 1);
	}
	return 0;
}

int memory_add_rom(struct memory *mem, const char *name, uint64_t gpa, const void *bytes,
		   uint64_t len, struct error *err)
{
	uint64_t size = page_round_up(len);
	uint8_t *hva;
	int r = memory_check_rom(mem, name, gpa, len ? size : 0, err);

	if (r)
		return r;
	hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (hva == MAP_FAILED)
		return error_set(err, errno, "%s: cannot map %" PRIu64 " bytes: %s", name, size,
				 strerror(errno));
	memcpy(hva, bytes, len);
	memset(hva + len, 0xff, size - len); /* as erased flash */
	mprotect(hva, size, PROT_READ);
	memory_add_region(mem, name, MEMORY_ROM, gpa, size, hva);
	if (!mem->vm || !mem->vm->engine)
		return 0;
	r = mem->vm->engine->memory_map(mem->vm, &mem->region[mem->nregions - 1], err);
	if (r) {
		mem->nregions--;
		munmap(hva, size);
	}
	return r;
}

const struct memory_region *memory_find(const struct memory *mem, uint64_t gpa, uint64_t len)
{
	for (unsigned i = 0; i < mem->nregions; i++) {
		const struct memory_region *region = &mem->region[i];

		/* in this order nothing can wrap */
		if (gpa >= region->gpa && gpa - region->gpa < region->len &&
		    len <= region->len - (gpa - region->gpa))
			return region;
	}
	return NULL;
}

const void *memory_read_ptr(const struct memory *mem, uint64_t gpa, uint64_t len)
{
	const struct memory_region *region = memory_find(mem, gpa, len);

	return region ? region->hva + (gpa - region->gpa) : NULL;
}

int memory_read(const struct memory *mem, uint64_t gpa, void *out, uint64_t len)
{
	const void *ptr = memory_read_ptr(mem, gpa, len);

	if (!ptr)
		return -EFAULT;
	memcpy(out, ptr, len);
	return 0;
}

int memory_write(struct memory *mem, uint64_t gpa, const void *in, uint64_t len)
{
	void *ptr = memory_write_begin(mem, gpa, len);

	if (!ptr)
		return -EFAULT;
	memcpy(ptr, in, len);
	memory_write_end(mem, gpa, len);
	return 0;
}

void *memory_write_begin(struct memory *mem, uint64_t gpa, uint64_t len)
{
	const struct memory_region *region = memory_find(mem, gpa, len);

	if (!region || region->kind != MEMORY_RAM)
		return NULL;
	if (mem->vm && mem->vm->engine && mem->vm->engine->host_write_begin)
		mem->vm->engine->host_write_begin(mem->vm, gpa, len);
	return region->hva + (gpa - region->gpa);
}

void memory_write_end(struct memory *mem, uint64_t gpa, uint64_t len)
{
	if (mem->vm && mem->vm->engine && mem->vm->engine->host_write_end)
		mem->vm->engine->host_write_end(mem->vm, gpa, len);
}
