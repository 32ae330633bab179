/*
 * The soft engine's vCPU: how guest state lies in the host while translated code runs, and what the
 * engine's files owe each other. Read docs/ARCHITECTURE.md's chapter on the soft engine first.
 *
 *   decode.c     bytes -> struct insn (Zydis is behind it)
 *   translate.c  struct insn -> host code (emit.c writes the bytes), one basic block at a time
 *   cache.c      code memory, the block table, which guest pages hold translated code, invalidation
 *   tlb.c        page walks, the inline TLB, the slow path of memory accesses
 *   system.c ..  instructions that are C functions; segments, exceptions, MSRs, CPUID
 *   lapic.c      the local APIC
 *   soft.c       the engine seam: run loop, kicks, state in and out, time
 *   t_*.c        what translate.c leaves to them: accesses, flow, kernels' own instructions
 *   entry.S      the way into translated code and out of it, and the thunks that call C from it
 *
 * REGISTERS in translated code. The guest's flags OSZAPC are the host's; every glue instruction keeps
 * them (mov, lea, movzx, rorx, shrx, jrcxz, jmp). DF is 0, AC 0, TF 0 in the host; the guest's system
 * flags are in cpu->sysflags. Vector and x87 state is the guest's, in the host's registers.
 *
 *   host RSP   (uint8_t *)cpu + SOFT_RSP_BIAS: what code uses is a byte's displacement away on both sides of it.
 *              Below the struct lies the stack that thunks call C on.
 *   host RCX   scratch (jrcxz, shift counts)          host R10  scratch (TLB index, then addend)
 *   host R15   (uint8_t *)cpu->tlb + SOFT_TLB_BIAS; its low six bits are 12: shrx r, r, r15 = page number
 *   RAX RDX RBX RBP RSI RDI R8 R9 R12 R13   the guest's of the same name
 *   host R11   guest RCX                              host R14  guest RSP
 *   guest R10, R11, R14, R15                          in cpu->gpr[]
 *
 * When C runs (any helper), all 16 guest registers are in cpu->gpr[] and OSZAPC in cpu->arith, and that
 * is where C changes them. QUICK C runs while vector and x87 state is still the guest's, in the host's
 * registers: it is compiled with -mgeneral-regs-only and calls no libc (no memcpy, no mutex), only other
 * quick code; a test looks at the objects. FULL C runs after the state went to cpu->xsave and may do
 * anything. Files named q_*.c are quick.
 *
 * POSITION INDEPENDENCE. A block is keyed by where its code lies in guest-physical memory, so it holds no
 * RIP. cpu->page_rip is the RIP that corresponds to offset 0 of the current page (linear page - CS base);
 * RIP = page_rip + offset in page. A block has two entries: `cross` (takes RIP in R10, sets page_rip) and
 * `local` (page_rip is right already: direct jumps within a page).
 */
#ifndef ENGINE_SOFT_CPU_H
#define ENGINE_SOFT_CPU_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/spin.h"
#include "vmm/x86.h"

struct insn;
struct soft_cpu;
struct soft_vm;
struct soft_block;
struct soft_lapic;
struct vcpu;
struct vm_exit;

#define SOFT_RSP_BIAS 120
#define SOFT_TLB_BIAS 12
#define SOFT_STACK_SIZE (256 * 1024) /* below struct soft_cpu, with a guard page under it */

/* ---- the inline TLB (tlb.c fills it, translated code reads it) ------------------------------------- */

/* Direct-mapped by linear address bits 31:12, which one shift of 32 bits gives. Memory is taken where it is touched. */
#define TLB_ENTRIES (1u << 20)
/* Entries of the jump cache: as many as 16 bits of a RIP tell apart, which MOVZX takes in one instruction. */
#define JUMP_ENTRIES (1u << 16)
#define JUMP_ROTATE 2
#define FAR_ENTRIES (1u << 17)

/* Where a RIP leads. */
struct soft_jump {
	uint64_t tag; /* -rip */
	void *code;   /* a `cross` entry */
};

/*
 * A translation of page `va` is kept at i = va >> 12 & (TLB_ENTRIES - 1). An access of `size` bytes at linear address
 * `a` hits when (a + size - 1 + tag[i of a]) >> 12 == 0: the index comes from the first byte, the tag
 * is compared with the last one's page, so an access across a page edge never hits. rtag and wtag hold
 * -va when reads / writes may go straight to host memory at a + addend[i]. An empty tag is TLB_EMPTY(i),
 * which no address that indexes i matches.
 * jump: the jump cache, at JUMP_INDEX(rip). It is valid for one mode and CS base (tlb.c flushes it on changes).
 * far: of each direct jump to another page, for which page of RIPs it may be taken as it is linked: -page_rip less the
 * number that tells apart those that share an entry (struct block_link), 0 for none.
 */
struct soft_tlb {
	uint64_t rtag[TLB_ENTRIES];
	uint64_t wtag[TLB_ENTRIES];
	uint64_t addend[TLB_ENTRIES]; /* host address - linear address */
	struct soft_jump jump[JUMP_ENTRIES];
	uint64_t far[FAR_ENTRIES];
};
/* Entry 0 of a zeroed table would match page 0, the last one an access that wraps round; the others are
 * empty when zero. */
#define JUMP_INDEX(rip) ((rip) >> JUMP_ROTATE & (JUMP_ENTRIES - 1))
#define JUMP_EMPTY(i) ((i) == 0 ? (uint64_t)-4 : 0) /* no RIP with index 0 matches -4 */
#define TLB_EMPTY(i) ((i) == 0 || (i) == TLB_ENTRIES - 1 ? (uint64_t) - (0x800ull << 12) : 0)

/* Three tables for each address-space slot: what user mode may touch, what supervisor mode may, and
 * what it may with SMAP suspended (AC=1). Without SMAP the last is used for supervisor mode always. */
enum tlb_kind { TLB_USER, TLB_SUPER, TLB_SUPER_AC, TLB_KINDS };

/*
 * Where an instruction that only changes between user and supervisor mode, or AC, leads while the rest of the mode stays:
 * what soft_update_mode() would find out anew each time. Jumps of `tlb` hold for `mode`; where that is not the mode wanted,
 * the helper has to see to it. cs and ss, of SYSCALL and SYSRET: struct x86_seg from `limit` to `attr`.
 */
struct soft_side {
	struct soft_tlb *tlb;
	uint32_t mode;
	uint32_t kind; /* enum tlb_kind */
	uint64_t cs, ss;
};

/* ---- mode bits of a block --------------------------------------------------------------------------- */

/* What else than the code bytes decides how an instruction is translated. Part of a block's key. */
#define MODE_CODE64 0x0001u /* CS.L in long mode */
#define MODE_CODE32 0x0002u /* CS.D=1; neither bit: 16-bit code */
#define MODE_STACK32 \
	0x0004u /* SS.B=1 (64-bit code has 64-bit stacks whatever this says: it is 0 then) */
#define MODE_LONG 0x0008u /* EFER.LMA */
#define MODE_PROT 0x0010u /* CR0.PE */
#define MODE_USER 0x0020u /* CPL 3 */
#define MODE_FLAT \
	0x0040u /* DS ES SS CS are base 0, limit 4 GiB, readable/writable: no checks needed */
#define MODE_TS 0x0080u	     /* CR0.TS: #NM for x87, MMX, SSE, AVX */
#define MODE_EM 0x0100u	     /* CR0.EM: #NM for x87, #UD for MMX, SSE */
#define MODE_MP 0x0200u	     /* CR0.MP: with TS, WAIT is #NM too */
#define MODE_OSFXSR 0x0400u  /* CR4.OSFXSR; without it SSE is #UD */
#define MODE_OSXSAVE 0x0800u /* CR4.OSXSAVE */
#define MODE_AVX 0x1000u     /* OSXSAVE and XCR0 has SSE and AVX state */
#define MODE_AVX512 0x2000u  /* .. and opmask, ZMM_Hi256, Hi16_ZMM */
#define MODE_STEP \
	0x4000u /* RFLAGS.TF, a breakpoint in DR7, or the monitor's single step: one instruction a block */
#define MODE_AC 0x8000u /* CR0.AM, RFLAGS.AC and CPL 3: misaligned accesses are #AC */
#define MODE_SHADOW \
	0x10000u /* in an STI or MOV SS shadow: one instruction, then events are looked at */
#define MODE_OSXMMEX 0x20000u /* CR4.OSXMMEXCPT: SIMD exceptions are #XM, else #UD */
#define MODE_PLAIN \
	0x40000u /* of blocks only: every access looks for itself (translate.h, struct share) */

/* ---- what a C helper tells its thunk --------------------------------------------------------------- */

enum soft_next {
	NEXT_GO =
		0, /* the instruction is done; go on behind it in the same block. cpu->rip is not looked at */
	NEXT_LEAVE, /* leave translated code; go on at cpu->rip, modes or mappings may have changed */
	NEXT_FAULT, /* cpu->fault is to be delivered; cpu->rip is the faulting instruction (trap: the next) */
	NEXT_EXIT, /* return to the monitor with the vm_exit that was filled in */
	NEXT_MISSED, /* entry.S to soft_leave(): NEXT_LEAVE, from code that the jump cache has no use for */
};

/* An exception on its way to delivery. */
struct soft_fault {
	uint8_t vector;
	bool has_error;
	bool trap; /* reported after the instruction: TF, INT3, INTO: RF is not set in the image */
	bool soft; /* by INT n, INT3, INTO: gate DPL is checked */
	bool external; /* an interrupt or NMI: EXT bit for nested faults */
	uint32_t error;
	uint64_t cr2; /* for #PF, stored in CR2 at delivery */
	uint64_t dr6; /* for #DB */
};

/* Fills cpu->fault and returns NEXT_FAULT. */
enum soft_next soft_raise(struct soft_cpu *cpu, uint8_t vector); /* no error code */
enum soft_next soft_raise_error(struct soft_cpu *cpu, uint8_t vector, uint32_t error);

/* ---- the vCPU -------------------------------------------------------------------------------------- */

/* Segment register as soft uses it: attr as in struct x86_seg; null selectors have `unusable`. */

/* Bytes of an access that cannot go straight to RAM: MMIO, across a page edge. Translated code runs the
 * instruction on the bounce buffer, then commits it. */
struct soft_bounce {
	uint8_t bytes[192]
		__attribute__((aligned(64))); /* the access begins at bytes[linear & 63] */
	uint64_t linear;
	uint32_t size;
	uint8_t pieces; /* 1, or 2 across a page edge */
	bool write;	/* commit copies it out */
	bool direct;	/* the access goes to RAM itself, commit only invalidates code there */
	bool skip[2];	/* a piece that a mask leaves out, and that could not be accessed */
	/* A bit for each byte of the access: those that no mask leaves out, and those that must be there all the same. */
	uint64_t wanted, needed;
	bool exclusive; /* a split or MMIO LOCK: all other vCPUs are stopped until commit */
	uint64_t gpa[2];
	uint32_t len[2];
	bool mmio[2];
};

/* An MMIO read or port input in flight: the instruction is executed again once the value is there. */
#define SOFT_REPLAY_MAX 24
struct soft_replay {
	struct {
		uint64_t gpa;
		uint64_t value;
		uint8_t size;
	} read[SOFT_REPLAY_MAX]; /* reads done so far by this instruction, in order */
	uint8_t count, next;
	uint64_t rip; /* of the instruction; a different one empties the list */
	/* The instruction alone, as it was when the device was asked: it ends with that answer, whatever has become of its
	 * bytes and its page since. NULL: none; void when the cache was flushed after `flushes`. */
	struct soft_block *block;
	uint64_t flushes;
};

/* Thunks of entry.S, in soft_stubs[]. */
enum soft_stub {
	STUB_QUICK,
	STUB_FULL,
	STUB_SLOW_ADDEND,
	STUB_SLOW_ADDRESS,
	STUB_COMMIT,
	STUB_LEAVE,
	STUB_LINEAR,
	STUB_PROBE,
	STUB_EXIT,
	STUB_EXIT_FAR,
	STUB_LEAVE_AT,
	STUB_LEAVE_TO,
	STUB_SYSCALL,
	STUB_SYSRET,
	STUBS
};

struct soft_cpu {
	/* Up to gpr[] all is reached with a one-byte displacement from RSP. entry.S knows this part. */
	_Atomic uint64_t
		run_ok;	   /* 0x00: not 0: go on. Each block looks at it. Any thread stores 0 */
	uint64_t page_rip; /* 0x08 */
	uint64_t rip;	   /* 0x10: as the C side sees it; not kept inside a block */
	uint64_t shared
		[4]; /* 0x18: host addresses that accesses of the running block share: t_share.c */
	uint64_t scratch[4];	   /* 0x38: translated code's own; [0] holds a borrowed register */
	uint64_t fs_base, gs_base; /* 0x58: copies of seg[].base */
	uint64_t pushed
		[2]; /* 0x68: below RSP: a thunk's return address, and the flags on their way */
	uint64_t gpr[X86_GPRS];	 /* 0x78 */
	uint64_t arith;		 /* 0xf8: RFLAGS OSZAPC (and bit 1) while C runs */
	uint64_t sysflags;	 /* 0x100: all other RFLAGS: TF IF DF IOPL NT RF VM AC VIF VIP ID */
	struct soft_tlb *tlb;	 /* 0x108: the current table (slot, kind) */
	uint64_t host_rsp;	 /* 0x110: the thread's own stack, while inside soft_enter() */
	uint64_t unwind;	 /* 0x118: an enum soft_next; see soft_mem_slow() */
	uint64_t host_fp;	 /* 0x120: the host's MXCSR and FCW, while inside soft_enter() */
	struct block_link *link; /* 0x128: the direct jump that led to dispatch, or NULL */
	uint64_t xsave_mask;	 /* 0x130: components that are swapped */
	void *xsave_area;	 /* 0x138: `xsave` below */
	uint64_t bounce_active;	 /* 0x140: not 0: the access needs soft_mem_commit() */
	uint8_t *meta;		 /* 0x148: svm->meta */
	struct soft_side side[TLB_KINDS]; /* 0x150: by enum tlb_kind, as if CR4.SMAP were set */
	uint64_t side_star;		  /* 0x1b0: the STAR that their cs and ss come from */
	void *stub[2];			  /* soft_stubs[] of STUB_QUICK and STUB_FULL */
	uint32_t align; /* MODE_AC: what the operand's address must be a multiple of; t_mem.c */

	uint32_t mode;	 /* MODE_*, for the block to be looked up next; soft_update_mode() */
	uint32_t kind;	 /* enum tlb_kind: which table `tlb` is */
	bool want_plain; /* the next block, if it is at plain_rip, is one with MODE_PLAIN */
	uint64_t plain_rip;
	struct x86_seg seg[X86_SEGS], tr, ldtr;
	struct x86_table gdtr, idtr;
	uint64_t cr0, cr2, cr3, cr4, cr8;
	uint64_t efer, apic_base, xcr0, dr[8];
	struct x86_msrs msr;
	uint8_t cpl;
	/* Breakpoints that DR7 enables, a bit each: of instructions, of data; those of data that the instruction has met. */
	uint8_t break_code, break_data, break_met;
	bool shadow_sti, shadow_mov_ss;
	bool nmi_masked;
	uint64_t tsc_offset; /* guest TSC = soft_now() + this: time.h */
	uint32_t apic_id;
	uint32_t xsave_size; /* bytes of xsave[] that the CPU model's components take */
	bool nmi_pending;
	bool fault_pending; /* cpu->fault is to be delivered before the next instruction */
	bool event_waiting; /* an interrupt or NMI waits until IF, a mask or a shadow lets it in */
	bool step_trap;	    /* RFLAGS.TF was set before the instruction that runs */
	bool delivering;    /* an event is being delivered: its accesses never exit */
	uint8_t ext;	    /* .. and this is the EXT bit for the error codes of faults in it */
	_Atomic uint32_t sipi_vector;
	uint64_t
		apic_page; /* GPA of the local APIC's page in xAPIC mode, ~0 otherwise; lapic keeps it */
	bool halted;	   /* in HLT */
	bool wait_sipi;
	bool stepping; /* the block being run holds one instruction: soft_run() returns behind it */
	bool single_step; /* the monitor wants EXIT_MTRAP after each instruction */

	struct soft_fault fault;
	struct soft_bounce bounce;
	struct soft_replay replay;

	uint64_t
		flush_seen; /* svm->n_flushes when translated code was last entered or a safepoint passed */
	_Atomic uint32_t in; /* safepoints: 1 while executing guest code; cache.c */
	uint32_t exclusive_depth;

	/* Asynchronous requests, any thread sets them and then stores run_ok = 0. */
	_Atomic uint32_t requests;
	_Atomic bool asleep; /* in HLT, and has to be woken for a request */
	struct spin spin;    /* of HLT */

	struct soft_vm *svm;
	struct vcpu *vcpu;
	struct vm_exit *exit; /* to fill before NEXT_EXIT */
	struct soft_lapic *lapic;
	struct soft_slots *slots; /* tlb.c's */
	struct soft_counters *counters;
	uint8_t io_data[1024 * 4]; /* of an INOUT exit */
	/* What an IN, RDMSR .. exit is to do with its value when the vCPU is run next: see soft.c. */
	enum soft_next (*complete)(struct soft_cpu *cpu);
	uint64_t complete_arg[4];
	uint64_t shared_more[4]; /* as `shared`, for blocks that need more */

	/* Vector and x87 state while C may use those registers: standard XSAVE format. */
	uint8_t xsave[X86_XSAVE_MAX] __attribute__((aligned(64)));
};

_Static_assert(offsetof(struct soft_tlb, jump) == 0x1800000, "entry.S");
_Static_assert(offsetof(struct soft_cpu, gpr) == 0x78, "entry.S");
_Static_assert(offsetof(struct soft_cpu, scratch) == 0x38, "entry.S");
_Static_assert(offsetof(struct soft_cpu, arith) == 0xf8, "entry.S");
_Static_assert(offsetof(struct soft_cpu, tlb) == 0x108, "entry.S");
_Static_assert(offsetof(struct soft_cpu, unwind) == 0x118, "entry.S");
_Static_assert(offsetof(struct soft_cpu, gpr) == SOFT_RSP_BIAS, "pushed[] is below RSP");
_Static_assert(offsetof(struct soft_cpu, xsave_mask) == 0x130, "entry.S");
_Static_assert(offsetof(struct soft_cpu, bounce_active) == 0x140, "entry.S");
_Static_assert(offsetof(struct soft_cpu, side) == 0x150, "entry.S");
_Static_assert(sizeof(struct soft_side) == 0x20, "entry.S");
_Static_assert(NEXT_LEAVE == 1 && NEXT_FAULT == 2 && NEXT_MISSED == 4, "entry.S");
_Static_assert(offsetof(struct soft_cpu, side_star) == 0x1b0, "entry.S");
_Static_assert(offsetof(struct soft_cpu, mode) == 0x1cc, "entry.S");
_Static_assert(offsetof(struct soft_cpu, kind) == 0x1d0, "entry.S");
_Static_assert(offsetof(struct soft_cpu, seg[X86_CS]) == 0x1f8, "entry.S");
_Static_assert(offsetof(struct soft_cpu, seg[X86_SS]) == 0x210, "entry.S");
_Static_assert(offsetof(struct x86_seg, unusable) == 16, "entry.S");
_Static_assert(offsetof(struct soft_cpu, efer) == 0x2e8, "entry.S");
_Static_assert(offsetof(struct soft_cpu, msr.star) == 0x340, "entry.S");
_Static_assert(offsetof(struct soft_cpu, msr.lstar) == 0x348, "entry.S");
_Static_assert(offsetof(struct soft_cpu, msr.sfmask) == 0x358, "entry.S");
_Static_assert(offsetof(struct soft_cpu, cpl) == 0x4b8, "entry.S");
_Static_assert(offsetof(struct soft_cpu, shadow_sti) == 0x4bc, "entry.S");
_Static_assert(offsetof(struct soft_cpu, shadow_mov_ss) == 0x4bd, "entry.S");
_Static_assert(offsetof(struct soft_cpu, event_waiting) == 0x4d2, "entry.S");

#define ARITH_FLAGS (X86_FL_CF | X86_FL_PF | X86_FL_AF | X86_FL_ZF | X86_FL_SF | X86_FL_OF)

static inline uint64_t soft_rflags(const struct soft_cpu *cpu)
{
	return (cpu->arith & ARITH_FLAGS) | cpu->sysflags | X86_FL_FIXED;
}

/* Requests */
#define REQ_KICK 0x01u /* return EXIT_BOGUS */
#define REQ_INTR 0x02u /* the local APIC or the PIC may have an interrupt */
#define REQ_NMI 0x04u
#define REQ_INIT 0x08u
#define REQ_SIPI 0x10u /* vector in lapic */
#define REQ_TLB 0x20u  /* the jump caches are to be emptied: block_link() */
#define REQ_TIMER 0x40u
#define REQ_SAFEPOINT 0x80u /* another vCPU waits for this one to step out: cache.c */

static inline void soft_request(struct soft_cpu *cpu, uint32_t req)
{
	atomic_fetch_or(&cpu->requests, req);
	atomic_store(&cpu->run_ok, 0);
}

/* ---- translate.c, decode.c, entry.S ------------------------------------------------------------------ */

/* Runs translated code from a block's `cross` entry until a helper or a block says otherwise. Loads the
 * vector state before and saves it after. */
extern void soft_stub_quick(void), soft_stub_full(void), soft_stub_slow_addend(void),
	soft_stub_slow_address(void), soft_stub_commit(void), soft_stub_leave(void),
	soft_stub_linear(void), soft_stub_fault(void), soft_stub_probe(void), soft_stub_exit(void),
	soft_stub_exit_far(void), soft_stub_leave_at(void), soft_stub_leave_to(void),
	soft_stub_syscall(void), soft_stub_sysret(void);
extern void (*const soft_stubs[STUBS])(void);

enum soft_next soft_enter(struct soft_cpu *cpu, void *code);

/* Finds or translates the block at cpu->rip in cpu->mode and runs from there. The caller has dealt with requests
 * and events and stored run_ok = 1. Full. NEXT_LEAVE: look at requests, then call again. */
enum soft_next soft_run(struct soft_cpu *cpu);
/* Quick, from entry.S: what to do after a helper's answer: the code to go on with, or NULL to return cpu->unwind
 * from soft_enter(). */
void *soft_leave(struct soft_cpu *cpu, enum soft_next next);
/* Fills in cpu->stub and xsave_area of a new vCPU. */
void soft_cpu_wire(struct soft_cpu *cpu);

/* Signals that translated code raises become guest exceptions; once a process, and once a thread (alternate stack). */
int fault_install(void);
int fault_thread_enter(struct soft_cpu *cpu);
void fault_thread_leave(void);

/* An instruction in C, full or quick. cpu->rip is this instruction; a helper that is done moves it on with
 * soft_advance() (for NEXT_GO as well as NEXT_LEAVE), unless it set RIP itself. */
typedef enum soft_next (*soft_helper)(struct soft_cpu *cpu, const struct insn *insn);

/* ---- system.c, segment.c, exception.c, msr.c, cpuid.c, string.c ------------------------------------ */

/* The helper for an instruction that does not run natively; NULL: #UD. `leaves` says that the block ends
 * there. `quick` says that it needs no vector-state swap (compiled so). */
soft_helper soft_helper_for(const struct insn *insn, uint32_t mode, bool *leaves, bool *quick);

/* cpu->rip += insn length, wrapped as the mode says; ends STI/MOV SS shadows. */
void soft_advance(struct soft_cpu *cpu, const struct insn *insn);
/* After any change of CR0, CR4, EFER, XCR0, CS, SS, RFLAGS.TF/AC, CPL: derives cpu->mode, cpu->fs_base,
 * and the TLB in use. */
void soft_update_mode(struct soft_cpu *cpu);
/* After a change of STAR as the sides' segments know it. */
void soft_side_segments(struct soft_cpu *cpu);
/* After a change of debug registers, before soft_update_mode(): break_code, break_data and the TLB follow them. */
void soft_debug_update(struct soft_cpu *cpu);
/* The instruction breakpoints at cpu->rip. */
uint8_t soft_debug_code(const struct soft_cpu *cpu);
/* Notes the data breakpoints that an access meets. True if it must not go by way of the TLB. */
bool soft_debug_access(struct soft_cpu *cpu, uint64_t linear, uint64_t len, bool write);
/* Delivers cpu->fault through the IDT; nested faults become #DF, then NEXT_EXIT with EXIT_SHUTDOWN. */
enum soft_next soft_deliver_fault(struct soft_cpu *cpu);
/* Delivers an external interrupt or NMI. */
enum soft_next soft_deliver_interrupt(struct soft_cpu *cpu, uint8_t vector, bool nmi);

/* ---- tlb.c ------------------------------------------------------------------------------------------ */

enum soft_access {
	ACCESS_READ = 1,
	ACCESS_WRITE = 2,
	ACCESS_FETCH = 4,
	ACCESS_SYSTEM = 8 /* implicit supervisor */
};

int soft_tlb_init(struct soft_cpu *cpu);
void soft_tlb_fini(struct soft_cpu *cpu);

/* Walks the guest's page tables: 0 and *gpa, or NEXT_FAULT with cpu->fault as #PF. Sets A and D. Rights
 * are checked with the CPL now, or as supervisor with ACCESS_SYSTEM. `page` may be NULL. */
struct soft_page {
	uint64_t size; /* bytes */
	bool global;   /* it is the same in all address spaces */
};
int soft_translate_va(struct soft_cpu *cpu, uint64_t linear, unsigned access, uint64_t *gpa,
		      struct soft_page *page);

/* C's own guest accesses, by linear address; across pages, to MMIO (by replay). 0, NEXT_FAULT, NEXT_EXIT. A
 * store of several pages checks them all before it writes any. */
int soft_load(struct soft_cpu *cpu, uint64_t linear, void *out, unsigned size, unsigned access);
int soft_store(struct soft_cpu *cpu, uint64_t linear, const void *in, unsigned size,
	       unsigned access);
/* A host pointer to [linear, linear+len) within one page if it is RAM that may be accessed so directly now
 * (no MMIO, no code page for writes); NULL: use load and store. *next as above on a fault. For REP. */
void *soft_direct(struct soft_cpu *cpu, uint64_t linear, uint64_t len, unsigned access, int *next);
/* Where soft_direct() gave NULL and no fault for a write: a host pointer if it is RAM all the same, as a page with code is. The
 * caller tells ram_written() of *gpa when it has written. Else NULL. */
void *soft_direct_code(struct soft_cpu *cpu, uint64_t linear, uint64_t len, uint64_t *gpa);

/* By segment: adds the base, checks limit, type and canonical form. 0 or NEXT_FAULT (#GP, #SS). */
int soft_linear(struct soft_cpu *cpu, enum x86_segreg seg, uint64_t offset, unsigned size,
		unsigned access, uint64_t *linear);

/* Translated code's accesses that miss the TLB. */
#define MEM_SIZE 0x0000007fu   /* bytes, 1 to 64 */
#define MEM_MASKED 0x00000080u /* a mask leaves elements out: the instruction says which */
#define MEM_WRITE 0x00000100u
#define MEM_READ 0x00000200u /* with MEM_WRITE: read-modify-write */
#define MEM_LOCK 0x00000400u
#define MEM_KEEP_RIP 0x00000800u /* commit: cpu->rip is set already (CALL) */
#define MEM_SEG_SHIFT 12	 /* 14:12: enum x86_segreg, for #SS or #GP */
#define MEM_ALIGNED 0x00008000u	 /* a misaligned address is #GP, before anything else */
#define MEM_OFFSET_SHIFT \
	16		 /* 27:16: offset of the instruction in its page: RIP = page_rip + offset */
#define MEM_LEN_SHIFT 28 /* 31:28: its length */
#define SOFT_MEM_FULL 1ull
#define SOFT_MEM_FAULT 2ull
/* Quick: if the access is plain RAM within a page and allowed, fills the TLB and returns the addend (a
 * multiple of the page size) and bounce_active = 0; SOFT_MEM_FAULT: cpu->fault is to be delivered, cpu->rip set; else, changing
 * nothing, SOFT_MEM_FULL: soft_mem_slow() is called then. */
uint64_t soft_mem_fast(struct soft_cpu *cpu, uint64_t linear, uint32_t desc);
/* Quick, for accesses that share one look-up: if [linear, linear + what & PROBE_SIZE) is plain RAM within a page and
 * may be read (PROBE_WRITE: written), fills the TLB and returns its host address, else NULL; no fault comes of it. */
#define PROBE_SIZE 0xffffu
#define PROBE_WRITE 0x10000u
void *soft_mem_probe(struct soft_cpu *cpu, uint64_t linear, uint32_t what);
/* Full: what is to be added to `linear` for the access, with cpu->unwind == NEXT_GO; cpu->bounce_active is not 0
 * if it needs a commit. Else cpu->unwind says how to leave, and the instruction has done nothing. Sets cpu->rip. */
uint64_t soft_mem_slow(struct soft_cpu *cpu, uint64_t linear, uint32_t desc);
/* Full; after the instruction ran on what soft_mem_slow() gave for a write, if bounce_active is not 0 (it clears that). The
 * instruction is done in any case and cpu->rip is behind it. NEXT_GO; NEXT_LEAVE if the block that is running
 * was invalidated; NEXT_EXIT for an MMIO write. */
enum soft_next soft_mem_commit(struct soft_cpu *cpu, uint32_t desc);
/* Quick: the linear address of `offset` in the segment and with the size and rights of `desc`: base, limit, type,
 * canonical form and (MODE_AC) alignment are checked. cpu->unwind != NEXT_GO on a fault, cpu->rip set. */
uint64_t soft_mem_linear(struct soft_cpu *cpu, uint64_t offset, uint32_t desc);
/* Quick: where `linear` is to be fetched from, rights checked, from a small cache or by a walk. 0; -1: not by
 * quick means (fault, no RAM): use soft_translate_va(ACCESS_FETCH). */
int soft_fetch_gpa(struct soft_cpu *cpu, uint64_t linear, uint64_t *gpa);
/* Quick: remembers that `rip` (in the mode now) leads to this block; and the block if that is remembered still. */
void soft_jump_cache_put(struct soft_cpu *cpu, uint64_t rip, struct soft_block *block);
struct soft_block *soft_jump_known(struct soft_cpu *cpu, uint64_t rip);
/* Quick: from the page of RIPs now, the jump with this entry and number (struct block_link) leads where it is linked to. */
void soft_far_put(struct soft_cpu *cpu, uint32_t entry, uint32_t number);

/* CR3 loads, INVLPG, INVPCID, CR4 changes. What is from global pages stays but with global_too and flush_page. */
void soft_tlb_flush_all(struct soft_cpu *cpu, bool global_too);
void soft_tlb_flush_page(struct soft_cpu *cpu, uint64_t linear);
void soft_tlb_flush_pcid(struct soft_cpu *cpu, uint16_t pcid);
/* A page fault takes what is cached of its address with it (SDM vol. 3, 4.10.4.1), but code that was found there. */
void soft_tlb_fault(struct soft_cpu *cpu, uint64_t linear);
void soft_tlb_flush_pcid_page(struct soft_cpu *cpu, uint16_t pcid, uint64_t linear);
/* After CR3 (or paging on/off) changed: makes the right slot current; flush: no-flush bit was clear. */
void soft_tlb_switch(struct soft_cpu *cpu, bool flush);
/* After CPL, AC, CR4.SMAP or the mode changed: the right table of the slot and its jump cache. */
void soft_tlb_select(struct soft_cpu *cpu);

#endif
