/*
 * Interrupts into the kernel's local APICs, and doorbells out of it.
 */
#include <errno.h>
#include <string.h>

#include "engine/kvm/kvm.h"

#define MSI_DATA_LEVEL_TRIGGER 0x8000u
#define MSI_DATA_NMI 0x400u
#define MSI_ADDR 0xfee00000u

/* The PIC's INTR is wired to the LINT0 of every CPU (MultiProcessor Specification 1.4, 3.6.2.2); operating
 * systems open it on the boot CPU alone, so only that one is served. */
void kvm_extint_changed(struct vm *vm)
{
	struct vcpu *bsp = &vm->vcpu[0];

	/* the boot CPU itself looks when it is next entered */
	if (atomic_load(&vm->extint.level) && bsp->started &&
	    !pthread_equal(pthread_self(), bsp->thread))
		kvm_vcpu_kick(bsp);
}

void kvm_extint_offer(struct vcpu *vcpu)
{
	struct kvm_vcpu *kv = kvm_vcpu_of(vcpu);
	struct kvm_run *run = kv->run;
	struct extint *extint = &vcpu->vm->extint;
	struct kvm_interrupt interrupt;

	if (vcpu->index != 0)
		return;
	/* Not if the guest will not be entered: KVM does not tell later what it has not delivered. */
	if (run->ready_for_interrupt_injection && kv->extint_vector < 0 && extint->acknowledge &&
	    atomic_load(&extint->level) &&
	    !__atomic_load_n(&run->immediate_exit, __ATOMIC_SEQ_CST)) {
		interrupt.irq = extint->acknowledge(extint->arg);
		if (kvm_ioctl(kv->fd, KVM_INTERRUPT, &interrupt) >= 0) {
			kv->extint_vector = (int)interrupt.irq;
			run->ready_for_interrupt_injection = 0;
			atomic_fetch_add_explicit(&kvm_of(vcpu->vm)->extints, 1,
						  memory_order_relaxed);
		}
	}
	run->request_interrupt_window = atomic_load(&extint->level);
}

int kvm_msi_send(struct vm *vm, const struct msi *msi)
{
	struct kvm_msi kvm_msi = {
		.address_lo = (uint32_t)msi->addr,
		.address_hi = (uint32_t)(msi->addr >> 32),
		.data = msi->data,
	};
	int r = kvm_ioctl(kvm_of(vm)->fd, KVM_SIGNAL_MSI, &kvm_msi);

	return r < 0 ? r : 0;
}

static int set_routes(struct kvm_vm *kvm)
{
	union {
		struct kvm_irq_routing head;
		uint8_t space[sizeof(struct kvm_irq_routing) +
			      IOAPIC_PINS * sizeof(struct kvm_irq_routing_entry)];
	} table;

	memset(&table, 0, sizeof(table));
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		const struct msi *msi = &kvm->route[pin];

		if (!kvm->routed[pin])
			continue;
		table.head.entries[table.head.nr++] = (struct kvm_irq_routing_entry){
			.gsi = pin,
			.type = KVM_IRQ_ROUTING_MSI,
			.u.msi = {.address_lo = (uint32_t)msi->addr,
				  .address_hi = (uint32_t)(msi->addr >> 32),
				  .data = msi->data}};
	}
	atomic_fetch_add_explicit(&kvm->route_updates, 1, memory_order_relaxed);
	return kvm_ioctl(kvm->fd, KVM_SET_GSI_ROUTING, &table);
}

/* The routes carry no interrupts: from them KVM knows which vectors' EOIs to report. So edge-triggered pins
 * need none; and a pin keeps the last one when it is masked, since its interrupt may be in service. */
void kvm_ioapic_route(struct vm *vm, unsigned pin, const struct msi *msi, bool level)
{
	struct kvm_vm *kvm = kvm_of(vm);
	struct msi route;
	int r = 0;

	if (pin >= IOAPIC_PINS || !msi)
		return;
	route = (struct msi){.addr = msi->addr, .data = msi->data | MSI_DATA_LEVEL_TRIGGER};
	pthread_mutex_lock(&kvm->lock);
	if (kvm->routed[pin] != level ||
	    (level && (kvm->route[pin].addr != route.addr || kvm->route[pin].data != route.data))) {
		kvm->routed[pin] = level;
		kvm->route[pin] = route;
		r = set_routes(kvm);
	}
	pthread_mutex_unlock(&kvm->lock);
	if (r < 0)
		log_guest(vm->log, LOG_WARN, "KVM refuses the route of I/O APIC pin %u: %s", pin,
			  strerror(-r));
}

/* KVM_NMI would wait for the vCPU to leave the guest; an MSI in NMI mode does not. */
void kvm_nmi_send(struct vcpu *vcpu)
{
	const struct msi msi = {.addr = MSI_ADDR | vcpu->apic_id << 12, .data = MSI_DATA_NMI};

	kvm_msi_send(vcpu->vm, &msi);
}

/* KVM has room for some hundreds (NR_IOBUS_DEVS); those beyond exit. */
int kvm_doorbell(struct vm *vm, const struct doorbell *bell, bool on)
{
	struct kvm_vm *kvm = kvm_of(vm);
	struct kvm_ioeventfd ioeventfd = {
		.datamatch = bell->value,
		.addr = bell->addr,
		.len = bell->size,
		.fd = bell->fd,
		.flags = (bell->port ? KVM_IOEVENTFD_FLAG_PIO : 0) |
			 (bell->match ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0) |
			 (on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
	};
	int r = kvm_ioctl(kvm->fd, KVM_IOEVENTFD, &ioeventfd);

	if (r >= 0)
		atomic_fetch_add(&kvm->doorbells, on ? 1 : UINT64_MAX);
	return r < 0 ? r : 0;
}
