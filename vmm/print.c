/*
 * Registers and exits for a person: `skepctl regs`, and the dump when an exit ends the VM.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/vm_private.h"

#define CODE_BYTES 16

static const char *const gpr_names[X86_GPRS] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
						"rsi", "rdi", "r8",  "r9",  "r10", "r11",
						"r12", "r13", "r14", "r15"};
static const char *const seg_names[X86_SEGS] = {"es", "cs", "ss", "ds", "fs", "gs"};
static const char *const activity_names[] = {"running", "halted", "waits for SIPI", "shut down"};

static void print_seg(const char *name, const struct x86_seg *seg, FILE *out)
{
	fprintf(out, "%-4s %04x base %016" PRIx64 " limit %08x attr %04x%s\n", name, seg->sel,
		seg->base, seg->limit, seg->attr, seg->unusable ? " unusable" : "");
}

static void print_flags(uint64_t rflags, FILE *out)
{
	static const struct {
		uint64_t bit;
		const char *name;
	} names[] = {{X86_FL_CF, "CF"}, {X86_FL_PF, "PF"}, {X86_FL_AF, "AF"}, {X86_FL_ZF, "ZF"},
		     {X86_FL_SF, "SF"}, {X86_FL_TF, "TF"}, {X86_FL_IF, "IF"}, {X86_FL_DF, "DF"},
		     {X86_FL_OF, "OF"}, {X86_FL_NT, "NT"}, {X86_FL_RF, "RF"}, {X86_FL_VM, "VM"},
		     {X86_FL_AC, "AC"}, {X86_FL_ID, "ID"}};

	fprintf(out, "rflags %08" PRIx64 " [", rflags);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		fprintf(out, "%s%s", rflags & names[i].bit ? " " : "",
			rflags & names[i].bit ? names[i].name : "");
	fprintf(out, " ]");
}

static void print_events(const struct x86_events *events, FILE *out)
{
	if (events->exception_pending)
		fprintf(out, "pending exception %u error %x\n", events->exception_vector,
			events->exception_error);
	if (events->interrupt_pending)
		fprintf(out, "pending interrupt %u\n", events->interrupt_vector);
	if (events->nmi_pending || events->nmi_injected || events->nmi_masked)
		fprintf(out, "nmi%s%s%s\n", events->nmi_pending ? " pending" : "",
			events->nmi_injected ? " injected" : "",
			events->nmi_masked ? " masked" : "");
	if (events->shadow_sti || events->shadow_mov_ss)
		fprintf(out, "interrupts held back by %s\n", events->shadow_sti ? "STI" : "MOV SS");
}

static void print_state(const struct x86_state *state, FILE *out)
{
	for (unsigned i = 0; i < X86_GPRS; i++)
		fprintf(out, "%-3s %016" PRIx64 "%s", gpr_names[i], state->gpr[i],
			i % 4 == 3 ? "\n" : "  ");
	fprintf(out, "rip %016" PRIx64 "  ", state->rip);
	print_flags(state->rflags, out);
	fprintf(out, "  %s\n", activity_names[state->activity & 3]);
	fprintf(out,
		"cr0 %08" PRIx64 "  cr2 %016" PRIx64 "  cr3 %016" PRIx64 "  cr4 %08" PRIx64
		"  cr8 %" PRIx64 "\n",
		state->cr0, state->cr2, state->cr3, state->cr4, state->cr8);
	fprintf(out,
		"efer %04" PRIx64 "  apic_base %08" PRIx64 "  xcr0 %" PRIx64 "  tsc %" PRIu64 "\n",
		state->efer, state->apic_base, state->xcr0, state->msr.tsc);
	for (unsigned i = 0; i < X86_SEGS; i++)
		print_seg(seg_names[i], &state->seg[i], out);
	print_seg("tr", &state->tr, out);
	print_seg("ldtr", &state->ldtr, out);
	fprintf(out, "gdtr      base %016" PRIx64 " limit %04x\n", state->gdtr.base,
		state->gdtr.limit);
	fprintf(out, "idtr      base %016" PRIx64 " limit %04x\n", state->idtr.base,
		state->idtr.limit);
	print_events(&state->events, out);
}

void vcpu_print(struct vcpu *vcpu, const struct x86_state *state, FILE *out)
{
	struct x86_state *own = NULL;
	int r = 0;

	if (!state) {
		own = aligned_alloc(64, sizeof(*own));
		r = own ? vcpu_get_state(vcpu, own) : -ENOMEM;
		state = own;
	}
	if (r)
		fprintf(out, "vCPU %u: its registers cannot be read: %s\n", vcpu->index,
			strerror(-r));
	else {
		fprintf(out, "vCPU %u\n", vcpu->index);
		print_state(state, out);
	}
	free(own);
}

/* ---- the dump ---- */

/* One page-table entry; 0 if it is not in memory. */
static uint64_t read_entry(struct vm *vm, uint64_t gpa, unsigned size)
{
	uint64_t entry = 0;

	if (memory_read(&vm->memory, gpa, &entry, size))
		return 0;
	return entry;
}

/* The guest-physical address of a linear one, by the guest's page tables and nothing else: no access
 * rights, no accessed bits. SDM vol. 3, chapter 4. */
static bool walk_pages(struct vm *vm, const struct x86_state *state, uint64_t linear, uint64_t *gpa)
{
	bool wide = state->cr4 & X86_CR4_PAE, lma = state->efer & X86_EFER_LMA;
	unsigned size = wide ? 8 : 4, bits = wide ? 9 : 10;
	unsigned level = !wide ? 2 : !lma ? 3 : state->cr4 & X86_CR4_LA57 ? 5 : 4;
	uint64_t frame = 0x000ffffffffff000ull, entry = state->cr3;

	if (!(state->cr0 & X86_CR0_PG)) {
		*gpa = linear;
		return true;
	}
	entry &= lma ? frame : wide ? 0xffffffe0ull : 0xfffff000ull;
	for (; level > 0; level--) {
		unsigned shift = 12 + bits * (level - 1);
		uint64_t index = linear >> shift & ((1ull << bits) - 1);
		uint64_t table = level == 3 && wide && !lma ? entry : entry & frame;

		entry = read_entry(vm, table + index * size, size);
		if (!(entry & 1))
			return false;
		if (level > 1 && level < 4 && entry & 0x80 && !(level == 3 && !lma)) {
			uint64_t offset = (1ull << shift) - 1;

			*gpa = (entry & frame & ~offset) | (linear & offset);
			/* PSE-36: bits 39:32 of a 4 MiB page are in 20:13. */
			if (!wide)
				*gpa = (entry & 0xffc00000) | (linear & offset) |
				       (entry >> 13 & 0xff) << 32;
			return true;
		}
	}
	*gpa = (entry & frame) | (linear & 0xfff);
	return true;
}

static void print_code(struct vcpu *vcpu, const struct x86_state *state, FILE *out)
{
	uint64_t linear = state->seg[X86_CS].base + state->rip, gpa;
	uint8_t byte;

	if (!(state->efer & X86_EFER_LMA))
		linear &= 0xffffffff;
	fprintf(out, "code at %016" PRIx64 ":", linear);
	for (unsigned i = 0; i < CODE_BYTES; i++) {
		if (!walk_pages(vcpu->vm, state, linear + i, &gpa) ||
		    memory_read(&vcpu->vm->memory, gpa, &byte, 1)) {
			fprintf(out, i ? " ..." : " not in memory");
			break;
		}
		fprintf(out, " %02x", byte);
	}
	fputc('\n', out);
}

void exit_print(const struct vm_exit *exit, FILE *out)
{
	fprintf(out, "exit %s", exit_name(exit->code));
	if (exit->rip)
		fprintf(out, " rip %" PRIx64, exit->rip);
	switch (exit->code) {
	case EXIT_INOUT:
		fprintf(out, ": %s port %x size %u count %u%s data", exit->inout.in ? "in" : "out",
			exit->inout.port, exit->inout.size, exit->inout.count,
			exit->inout.string ? " string" : "");
		for (unsigned i = 0; i < exit->inout.size; i++)
			fprintf(out, " %02x", exit->inout.data[i]);
		break;
	case EXIT_MMIO:
		fprintf(out, ": %s %" PRIx64 " size %u value %" PRIx64,
			exit->mmio.write ? "write" : "read", exit->mmio.gpa, exit->mmio.size,
			exit->mmio.value);
		break;
	case EXIT_RDMSR:
	case EXIT_WRMSR:
		fprintf(out, ": msr %x value %" PRIx64, exit->msr.index, exit->msr.value);
		break;
	case EXIT_SPINUP_AP:
		fprintf(out, ": target %u vector %x", exit->spinup.target, exit->spinup.vector);
		break;
	case EXIT_IOAPIC_EOI:
		fprintf(out, ": vector %x", exit->eoi.vector);
		break;
	case EXIT_FAIL:
		fprintf(out, ": reason %" PRIx64 ", %s", exit->fail.hw_reason, exit->fail.text);
		break;
	default:
		break;
	}
	fputc('\n', out);
}

void vcpu_dump(struct vcpu *vcpu)
{
	struct x86_state *state = aligned_alloc(64, sizeof(*state));
	char *text = NULL, *line, *next;
	size_t len;
	FILE *out = open_memstream(&text, &len);
	int r;

	if (!state || !out) {
		log_error(vcpu->vm->log, "vCPU %u: no memory for a dump", vcpu->index);
		goto out;
	}
	exit_print(&vcpu->exit, out); /* first: reading the state finishes the exit */
	r = vcpu->vm->engine->vcpu_get_state(vcpu, state);
	if (r) {
		fprintf(out, "vCPU %u: its registers cannot be read: %s\n", vcpu->index,
			strerror(-r));
	} else {
		vcpu_print(vcpu, state, out);
		print_code(vcpu, state, out);
	}
out:
	if (out)
		fclose(out);
	for (line = text; line && *line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		log_error(vcpu->vm->log, "%s", line);
	}
	free(text);
	free(state);
}
