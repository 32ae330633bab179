/*
 * The canonical state of an x86-64 vCPU: the same for every engine, so that a state saved on one loads
 * on another. Numbers, orders and layouts are the architecture's (Intel SDM vol. 1-3, AMD APM vol. 2).
 */
#ifndef VMM_X86_H
#define VMM_X86_H

#include <stdbool.h>
#include <stdint.h>

/* General registers in encoding order. */
enum x86_gpr {
	X86_RAX, X86_RCX, X86_RDX, X86_RBX, X86_RSP, X86_RBP, X86_RSI, X86_RDI,
	X86_R8, X86_R9, X86_R10, X86_R11, X86_R12, X86_R13, X86_R14, X86_R15,
	X86_GPRS
};

/* Segment registers in encoding order. */
enum x86_segreg { X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS, X86_SEGS };

/* A segment register with its hidden part. */
struct x86_seg {
	uint64_t base;
	uint32_t limit;  /* in bytes, granularity applied */
	uint16_t sel;
	/* Bits as in the second word of a descriptor, shifted down by 8: type 3:0, S 4, DPL 6:5, P 7,
	 * AVL 12, L 13, D/B 14, G 15. Bit 16 would not fit: `unusable` says a null selector was loaded. */
	uint16_t attr;
	bool unusable;
};

#define SEG_ATTR_TYPE 0x000f
#define SEG_ATTR_S 0x0010
#define SEG_ATTR_DPL_SHIFT 5
#define SEG_ATTR_P 0x0080
#define SEG_ATTR_L 0x2000
#define SEG_ATTR_DB 0x4000
#define SEG_ATTR_G 0x8000

struct x86_table {
	uint64_t base;
	uint16_t limit;
};

#define X86_XSAVE_MAX 4096 /* bytes; no host that skep knows has a larger user state it would show */

/* Events that were recognised but not delivered, and the windows that hold events back. */
struct x86_events {
	bool exception_pending;
	uint8_t exception_vector;
	bool exception_has_error;
	uint32_t exception_error;
	uint64_t exception_payload; /* CR2 for #PF, DR6 bits for #DB */
	bool exception_has_payload;
	bool interrupt_pending;     /* acknowledged, to be delivered before the next instruction */
	bool interrupt_soft;
	uint8_t interrupt_vector;
	bool nmi_pending;
	bool nmi_injected;
	bool nmi_masked;            /* from NMI delivery to IRET */
	bool shadow_sti;            /* the instruction after STI */
	bool shadow_mov_ss;         /* the instruction after MOV SS / POP SS */
	bool sipi_pending;
	uint8_t sipi_vector;
};

enum x86_activity {
	X86_RUNNING,
	X86_HALTED,    /* in HLT */
	X86_WAIT_SIPI, /* INIT received (or an AP after reset), waiting for SIPI */
	X86_SHUTDOWN,  /* after a triple fault */
};

/* MSRs that are part of the canonical state. Those that live in other fields (EFER, APIC base, FS and
 * GS base) are not in the list. */
struct x86_msrs {
	uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t pat, tsc, tsc_aux, tsc_adjust, tsc_deadline;
	uint64_t misc_enable, debugctl, spec_ctrl;
	uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_base[8], mtrr_mask[8];
	uint64_t kvm_system_time, kvm_wall_clock; /* the paravirtual clock's registrations */
	uint64_t xss;
};

struct x86_state {
	uint64_t gpr[X86_GPRS];
	uint64_t rip, rflags;
	struct x86_seg seg[X86_SEGS], tr, ldtr;
	struct x86_table gdtr, idtr;
	uint64_t cr0, cr2, cr3, cr4, cr8;
	uint64_t efer, apic_base, xcr0;
	uint64_t dr[8]; /* 4 and 5 unused */
	struct x86_msrs msr;
	struct x86_events events;
	enum x86_activity activity;
	/* The xAPIC register page: the register at offset 0xN0 in lapic[N * 4]. In x2APIC mode too, but with
	 * the whole 32-bit id at 0x20; ICR bits 63:32 are at 0x310 in both. */
	uint32_t lapic[256];
	uint32_t xsave_size; /* bytes used below */
	uint8_t xsave[X86_XSAVE_MAX] __attribute__((aligned(64))); /* standard (non-compacted) format */
};

/* RFLAGS */
#define X86_FL_CF 0x1ull
#define X86_FL_FIXED 0x2ull /* bit 1 reads as one */
#define X86_FL_PF 0x4ull
#define X86_FL_AF 0x10ull
#define X86_FL_ZF 0x40ull
#define X86_FL_SF 0x80ull
#define X86_FL_TF 0x100ull
#define X86_FL_IF 0x200ull
#define X86_FL_DF 0x400ull
#define X86_FL_OF 0x800ull
#define X86_FL_IOPL 0x3000ull
#define X86_FL_NT 0x4000ull
#define X86_FL_RF 0x10000ull
#define X86_FL_VM 0x20000ull
#define X86_FL_AC 0x40000ull
#define X86_FL_VIF 0x80000ull
#define X86_FL_VIP 0x100000ull
#define X86_FL_ID 0x200000ull

/* CR0 */
#define X86_CR0_PE 0x1ull
#define X86_CR0_MP 0x2ull
#define X86_CR0_EM 0x4ull
#define X86_CR0_TS 0x8ull
#define X86_CR0_ET 0x10ull
#define X86_CR0_NE 0x20ull
#define X86_CR0_WP 0x10000ull
#define X86_CR0_AM 0x40000ull
#define X86_CR0_NW 0x20000000ull
#define X86_CR0_CD 0x40000000ull
#define X86_CR0_PG 0x80000000ull

/* CR4 */
#define X86_CR4_VME 0x1ull
#define X86_CR4_PVI 0x2ull
#define X86_CR4_TSD 0x4ull
#define X86_CR4_DE 0x8ull
#define X86_CR4_PSE 0x10ull
#define X86_CR4_PAE 0x20ull
#define X86_CR4_MCE 0x40ull
#define X86_CR4_PGE 0x80ull
#define X86_CR4_PCE 0x100ull
#define X86_CR4_OSFXSR 0x200ull
#define X86_CR4_OSXMMEXCPT 0x400ull
#define X86_CR4_UMIP 0x800ull
#define X86_CR4_LA57 0x1000ull
#define X86_CR4_FSGSBASE 0x10000ull
#define X86_CR4_PCIDE 0x20000ull
#define X86_CR4_OSXSAVE 0x40000ull
#define X86_CR4_SMEP 0x100000ull
#define X86_CR4_SMAP 0x200000ull
#define X86_CR4_PKE 0x400000ull

/* EFER */
#define X86_EFER_SCE 0x1ull
#define X86_EFER_LME 0x100ull
#define X86_EFER_LMA 0x400ull
#define X86_EFER_NXE 0x800ull
#define X86_EFER_FFXSR 0x4000ull

/* APIC base MSR */
#define X86_APIC_BASE_BSP 0x100ull
#define X86_APIC_BASE_X2APIC 0x400ull
#define X86_APIC_BASE_ENABLE 0x800ull
#define X86_APIC_BASE_ADDR 0xfffff000ull

/* Exception vectors */
enum x86_vector {
	X86_DE = 0, X86_DB = 1, X86_NMI = 2, X86_BP = 3, X86_OF = 4, X86_BR = 5, X86_UD = 6, X86_NM = 7,
	X86_DF = 8, X86_TS = 10, X86_NP = 11, X86_SS_FAULT = 12, X86_GP = 13, X86_PF = 14, X86_MF = 16,
	X86_AC = 17, X86_MC = 18, X86_XM = 19,
};

/* The state after RESET (SDM vol. 3 table 9-1): the BSP runs at F000:FFF0 with CS base FFFF0000 and RDX
 * 0xf00, an AP waits for SIPI. XSAVE and the LAPIC page are set to their reset values too. */
void x86_state_reset(struct x86_state *state, unsigned apic_id, bool bsp);
/* Switches the local APIC of a reset state to x2APIC mode, as firmware would. */
void x86_state_set_x2apic(struct x86_state *state, unsigned apic_id);
/* What INIT and then SIPI leave: RIP 0, CS selector vector << 8, CS base vector << 12. FPU, MSRs, CR0.CD
 * and NW stay as they were. */
void x86_state_sipi(struct x86_state *state, uint8_t vector);

#endif
