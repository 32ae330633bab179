/*
 * MSRs that no engine keeps: the monitor's answer to RDMSR and WRMSR exits.
 *
 * A known set that operating systems read without care (microcode revision, platform id, RAPL,
 * FEATURE_CONTROL, AMD's HWCR, P-state 0 and VM_CR) reads as on a machine whose firmware locked it, and
 * drops writes. All else is #GP(0) with a message, or, with vm->strict_msr off (-w), reads 0 and drops
 * writes.
 */
#ifndef VMM_MSR_H
#define VMM_MSR_H

#include <stdbool.h>
#include <stdint.h>

struct vm;

/* MSRs of the known set: an engine that knows some of these itself leaves them to the monitor, so that
 * each reads the same on every engine. Returns the index-th one, 0 at the end. */
uint32_t msr_known(unsigned index);

/* False: raise #GP(0). */
bool msr_read(struct vm *vm, unsigned vcpu, uint32_t msr, uint64_t *value);
bool msr_write(struct vm *vm, unsigned vcpu, uint32_t msr, uint64_t value);

#endif
