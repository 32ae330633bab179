/* What interrupt controllers tell the engine. */
#include "vmm/vm.h"

void vm_extint_set(struct vm *vm, bool level)
{
	if (atomic_exchange(&vm->extint.level, level) != level)
		vm->engine->extint_changed(vm);
}

void vm_ioapic_route(struct vm *vm, unsigned pin, const struct msi *msi, bool level)
{
	vm->engine->ioapic_route(vm, pin, msi, level);
}
