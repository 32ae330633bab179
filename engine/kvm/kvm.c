/*
 * The kvm engine's table, the VM, its memory and its CPUID.
 */
#include "engine/kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm/msr.h"

/* Three pages for the real-mode TSS and one for the identity map of Intel CPUs without unrestricted
 * guests: below the I/O APIC, where nothing else is. */
#define IDENTITY_MAP_ADDR 0xfeffc000ull
#define TSS_ADDR 0xfeffd000ull

int kvm_ioctl(int fd, unsigned long request, void *arg)
{
	int r = ioctl(fd, request, arg);

	return r < 0 ? -errno : r;
}

int kvm_ioctl_value(int fd, unsigned long request, unsigned long value)
{
	int r = ioctl(fd, request, value);

	return r < 0 ? -errno : r;
}

static const struct {
	int cap;
	const char *name, *since;
} needed[] = {
	{KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "4.13"},
	{KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP", "4.5"},
	{KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING", "2.6.30"},
	{KVM_CAP_IOEVENTFD_ANY_LENGTH, "KVM_CAP_IOEVENTFD_ANY_LENGTH", "4.4"},
	{KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI", "3.5"},
	{KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR", "5.10"},
	{KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER", "5.10"},
	{KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID", "2.6.25"},
	{KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM", "3.7"},
	{KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE", "2.6.25"},
	{KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS", "2.6.33"},
	{KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS", "2.6.35"},
	{KVM_CAP_XSAVE, "KVM_CAP_XSAVE", "2.6.36"},
	{KVM_CAP_XCRS, "KVM_CAP_XCRS", "2.6.36"},
	{KVM_CAP_SET_GUEST_DEBUG, "KVM_CAP_SET_GUEST_DEBUG", "2.6.26"},
	{KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ", "2.6.39"},
	{KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK", "2.6.33"},
	{KVM_CAP_X2APIC_API, "KVM_CAP_X2APIC_API", "4.8"},
};

static int kvm_open_error(int errnum, struct error *err)
{
	switch (errnum) {
	case ENOENT:
		return error_set(
			err, errnum,
			"there is no /dev/kvm: load kvm-intel or kvm-amd, turn virtualization on "
			"in the firmware, or use -E soft");
	case EACCES:
	case EPERM:
		return error_set(
			err, errnum,
			"no permission for /dev/kvm: join the group kvm (usermod -aG kvm USER, "
			"then log in again), or use -E soft");
	case ENODEV:
	case ENXIO:
		return error_set(
			err, errnum,
			"/dev/kvm has no driver behind it: load kvm-intel or kvm-amd, or use "
			"-E soft");
	default:
		return error_set(err, errnum, "cannot open /dev/kvm: %s", strerror(errnum));
	}
}

int kvm_open(struct error *err)
{
	int dev = open("/dev/kvm", O_RDWR | O_CLOEXEC), version;

	if (dev < 0)
		return kvm_open_error(errno, err);
	version = ioctl(dev, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION) {
		close(dev);
		return error_set(
			err, ENOTSUP,
			"/dev/kvm speaks version %d of its interface, skep needs %d: another "
			"kernel is needed, or -E soft",
			version, KVM_API_VERSION);
	}
	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
		if (ioctl(dev, KVM_CHECK_EXTENSION, needed[i].cap) > 0)
			continue;
		close(dev);
		return error_set(
			err, ENOTSUP,
			"this host's KVM lacks %s (Linux %s has it): a newer kernel is needed, or "
			"-E soft",
			needed[i].name, needed[i].since);
	}
	return dev;
}

int kvm_create_fd(int dev, struct error *err)
{
	int fd;

	do
		fd = ioctl(dev, KVM_CREATE_VM, 0);
	while (fd < 0 && errno == EINTR); /* a signal came in the midst of it */
	if (fd >= 0)
		return fd;
	if (errno == EBUSY)
		return error_set(
			err, EBUSY,
			"KVM is busy: another hypervisor (VirtualBox, VMware) has the CPU's "
			"virtualization; stop it, or use -E soft");
	return error_set(err, errno, "KVM cannot make a VM: %s", strerror(errno));
}

static int enable_cap(int fd, uint32_t cap, uint64_t arg, const char *name, struct error *err)
{
	struct kvm_enable_cap enable = {.cap = cap, .args = {arg}};
	int r = kvm_ioctl(fd, KVM_ENABLE_CAP, &enable);

	return r < 0 ? error_set(err, -r, "KVM refuses %s: %s", name, strerror(-r)) : 0;
}

/* KVM has no RAPL, and answers for AMD's performance counters as the monitor does. What is left fits
 * KVM_MSR_FILTER_MAX_RANGES. */
static bool needs_no_filter(uint32_t msr)
{
	return (msr >= 0x600 && msr < 0x700) || (msr >= 0xc0010000 && msr < 0xc0010008) ||
	       (msr >= 0xc0010299 && msr <= 0xc001029b);
}

/* The MSRs of the monitor's known set that KVM would answer itself exit instead. */
static int filter_msrs(int fd, struct error *err)
{
	struct kvm_msr_filter filter = {.flags = KVM_MSR_FILTER_DEFAULT_ALLOW};
	uint8_t deny = 0; /* one bit an MSR; 0: exit */
	unsigned n = 0;
	uint32_t msr;
	int r;

	for (unsigned i = 0; (msr = msr_known(i)) != 0; i++) {
		if (needs_no_filter(msr))
			continue;
		if (n == KVM_MSR_FILTER_MAX_RANGES)
			return error_set(err, ENOSPC, "too many filtered MSRs");
		filter.ranges[n++] = (struct kvm_msr_filter_range){.flags = KVM_MSR_FILTER_READ |
									    KVM_MSR_FILTER_WRITE,
								   .nmsrs = 1,
								   .base = msr,
								   .bitmap = &deny};
	}
	r = kvm_ioctl(fd, KVM_X86_SET_MSR_FILTER, &filter);
	return r < 0 ? error_set(err, -r, "KVM refuses an MSR filter: %s", strerror(-r)) : 0;
}

static int kvm_configure(struct kvm_vm *kvm, struct error *err)
{
	uint64_t identity = IDENTITY_MAP_ADDR;
	int r = kvm_ioctl(kvm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);

	if (r < 0)
		return error_set(err, -r, "KVM refuses the identity map: %s", strerror(-r));
	r = kvm_ioctl_value(kvm->fd, KVM_SET_TSS_ADDR, TSS_ADDR);
	if (r < 0)
		return error_set(err, -r, "KVM refuses the TSS address: %s", strerror(-r));
	r = enable_cap(kvm->fd, KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS, "a split irqchip", err);
	if (!r)
		r = enable_cap(kvm->fd, KVM_CAP_X2APIC_API,
			       KVM_X2APIC_API_USE_32BIT_IDS |
				       KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
			       "32-bit APIC ids", err);
	if (!r)
		r = enable_cap(kvm->fd, KVM_CAP_X86_USER_SPACE_MSR,
			       KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER,
			       "MSR exits", err);
	if (!r)
		r = filter_msrs(kvm->fd, err);
	/* #DB and #PF payloads then travel with the event; older kernels fold them in at once */
	kvm->exception_payload = ioctl(kvm->dev, KVM_CHECK_EXTENSION, KVM_CAP_EXCEPTION_PAYLOAD) >
				 0;
	if (!r && kvm->exception_payload)
		r = enable_cap(kvm->fd, KVM_CAP_EXCEPTION_PAYLOAD, 1, "exception payloads", err);
	return r;
}

static void kvm_free(struct kvm_vm *kvm)
{
	if (kvm->fd >= 0)
		close(kvm->fd);
	if (kvm->dev >= 0)
		close(kvm->dev);
	pthread_mutex_destroy(&kvm->lock);
	free(kvm);
}

static int kvm_vm_create(struct vm *vm, struct error *err)
{
	struct kvm_vm *kvm = calloc(1, sizeof(*kvm));
	int r;

	if (!kvm)
		return error_set(err, ENOMEM, "out of memory");
	pthread_mutex_init(&kvm->lock, NULL);
	kvm->fd = -1;
	kvm->time_paused = true;
	r = kvm->dev = kvm_open(err);
	if (r >= 0)
		r = kvm->fd = kvm_create_fd(kvm->dev, err);
	if (r >= 0)
		r = kvm_configure(kvm, err);
	if (r >= 0) {
		kvm->vcpu_mmap_size = ioctl(kvm->dev, KVM_GET_VCPU_MMAP_SIZE, 0);
		r = ioctl(kvm->dev, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
		kvm->vcpus_max = r > 0 ? (unsigned)r : 4;
		r = kvm_kick_signal();
		if (r < 0)
			error_set(err, -r, "no signal for vCPUs: %s", strerror(-r));
	}
	if (r < 0) {
		kvm_free(kvm);
		return r;
	}
	vm->engine_data = kvm;
	return 0;
}

static void kvm_vm_destroy(struct vm *vm)
{
	kvm_free(kvm_of(vm));
	vm->engine_data = NULL;
}

static unsigned kvm_vcpus_max(struct vm *vm)
{
	unsigned max = kvm_of(vm)->vcpus_max;

	return max < VCPUS_MAX ? max : VCPUS_MAX;
}

/* ---- CPUID ---- */

struct kvm_cpuid2 *kvm_cpuid_alloc(unsigned entries)
{
	struct kvm_cpuid2 *cpuid =
		calloc(1, sizeof(*cpuid) + entries * sizeof(struct kvm_cpuid_entry2));

	if (cpuid)
		cpuid->nent = entries;
	return cpuid;
}

/* KVM counts TSC_DEADLINE apart: it depends on the irqchip. */
static void cpuid_fix(struct kvm_vm *kvm, struct kvm_cpuid_entry2 *entry)
{
	if (entry->function == 1 &&
	    ioctl(kvm->dev, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
		entry->ecx |= 1u << 24;
	if (entry->function == 1)
		entry->ecx |= 1u << 21; /* x2APIC is the kernel's own, whatever the host has */
}

static uint64_t kvm_host_tsc_hz(int fd)
{
	int khz = ioctl(fd, KVM_GET_TSC_KHZ, 0);

	return khz > 0 ? (uint64_t)khz * 1000 : 0;
}

/* The rate is a vCPU's; older kernels tell it only of one. */
static int kvm_tsc_hz(struct kvm_vm *kvm, uint64_t *tsc_hz, struct error *err)
{
	int dev_vm, vcpu;

	*tsc_hz = kvm_host_tsc_hz(kvm->fd);
	if (*tsc_hz)
		return 0;
	dev_vm = kvm_create_fd(kvm->dev, err);
	if (dev_vm < 0)
		return dev_vm;
	vcpu = ioctl(dev_vm, KVM_CREATE_VCPU, 0);
	if (vcpu >= 0) {
		*tsc_hz = kvm_host_tsc_hz(vcpu);
		close(vcpu);
	}
	close(dev_vm);
	return *tsc_hz ? 0 : error_set(err, ENOTSUP, "KVM does not know the rate of the TSC");
}

static int kvm_cpuid_supported(struct vm *vm, struct cpuid_table *table, uint64_t *tsc_hz,
			       struct error *err)
{
	struct kvm_vm *kvm = kvm_of(vm);
	struct kvm_cpuid2 *buffer = kvm_cpuid_alloc(KVM_CPUID_MAX);
	int r;

	if (!buffer)
		return error_set(err, ENOMEM, "out of memory");
	r = kvm_ioctl(kvm->dev, KVM_GET_SUPPORTED_CPUID, buffer);
	for (unsigned i = 0; r >= 0 && i < buffer->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &buffer->entries[i];

		cpuid_fix(kvm, entry);
		cpuid_add(table, entry->function, entry->index,
			  entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
			  (struct cpuid_regs){entry->eax, entry->ebx, entry->ecx, entry->edx});
	}
	free(buffer);
	if (r < 0)
		return error_set(err, -r, "KVM does not tell its CPUID bits: %s", strerror(-r));
	return kvm_tsc_hz(kvm, tsc_hz, err);
}

/* ---- memory ---- */

static int set_slot(struct kvm_vm *kvm, uint32_t slot, bool log_dirty)
{
	const struct memory_region *region = &kvm->slot[slot];
	struct kvm_userspace_memory_region kvm_region = {
		.slot = slot,
		.flags = (region->kind == MEMORY_ROM ? KVM_MEM_READONLY : 0) |
			 (log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0),
		.guest_phys_addr = region->gpa,
		.memory_size = region->len,
		.userspace_addr = (uint64_t)(uintptr_t)region->hva,
	};

	return kvm_ioctl(kvm->fd, KVM_SET_USER_MEMORY_REGION, &kvm_region);
}

static int kvm_memory_map(struct vm *vm, const struct memory_region *region, struct error *err)
{
	struct kvm_vm *kvm = kvm_of(vm);
	int r;

	if (kvm->slots == MEMORY_REGIONS)
		return error_set(err, ENOSPC, "%s: too many memory regions", region->name);
	kvm->slot[kvm->slots] = *region;
	r = set_slot(kvm, kvm->slots, false);
	if (r < 0)
		return error_set(err, -r, "KVM refuses %s at 0x%" PRIx64 ", %" PRIu64 " KiB: %s",
				 region->name, region->gpa, region->len >> 10, strerror(-r));
	kvm->slots++;
	return 0;
}

static int kvm_dirty_log(struct vm *vm, bool on)
{
	struct kvm_vm *kvm = kvm_of(vm);
	int r = 0;

	for (uint32_t i = 0; i < kvm->slots && r >= 0; i++) {
		if (kvm->slot[i].kind == MEMORY_RAM)
			r = set_slot(kvm, i, on);
	}
	return r < 0 ? r : 0;
}

static int kvm_dirty_fetch(struct vm *vm, const struct memory_region *region, uint64_t *bitmap)
{
	struct kvm_vm *kvm = kvm_of(vm);

	for (uint32_t i = 0; i < kvm->slots; i++) {
		struct kvm_dirty_log log = {.slot = i, .dirty_bitmap = bitmap};

		if (kvm->slot[i].gpa == region->gpa)
			return kvm_ioctl(kvm->fd, KVM_GET_DIRTY_LOG, &log);
	}
	return -ENOENT;
}

static void kvm_stats_print(struct vm *vm, FILE *out)
{
	struct kvm_vm *kvm = kvm_of(vm);

	fprintf(out, "%-16s %12" PRIu64 "\n", "kvm_kicks", atomic_load(&kvm->kicks));
	fprintf(out, "%-16s %12" PRIu64 "\n", "kvm_extints", atomic_load(&kvm->extints));
	fprintf(out, "%-16s %12" PRIu64 "\n", "kvm_routes", atomic_load(&kvm->route_updates));
	fprintf(out, "%-16s %12" PRIu64 "\n", "kvm_doorbells", atomic_load(&kvm->doorbells));
}

const struct engine engine_kvm = {
	.name = "kvm",
	.probe = kvm_probe,
	.vm_create = kvm_vm_create,
	.vm_destroy = kvm_vm_destroy,
	.vcpus_max = kvm_vcpus_max,
	.cpuid_supported = kvm_cpuid_supported,
	.memory_map = kvm_memory_map,
	.dirty_log = kvm_dirty_log,
	.dirty_fetch = kvm_dirty_fetch,
	.vcpu_create = kvm_vcpu_create,
	.vcpu_destroy = kvm_vcpu_destroy,
	.vcpu_run = kvm_vcpu_run,
	.vcpu_kick = kvm_vcpu_kick,
	.vcpu_get_state = kvm_vcpu_get_state,
	.vcpu_set_state = kvm_vcpu_set_state,
	.vcpu_idle = kvm_vcpu_idle,
	.vcpu_single_step = kvm_vcpu_single_step,
	.extint_changed = kvm_extint_changed,
	.msi_send = kvm_msi_send,
	.ioapic_route = kvm_ioapic_route,
	.nmi_send = kvm_nmi_send,
	.doorbell = kvm_doorbell,
	.time_pause = kvm_time_pause,
	.time_resume = kvm_time_resume,
	.stats_print = kvm_stats_print,
};
