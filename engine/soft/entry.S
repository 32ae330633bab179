/*
 * The way into translated code and out of it, and the thunks that call C from it. cpu.h tells which guest
 * register lies where. Offsets of struct soft_cpu are asserted there.
 *
 * Inside translated code RSP is cpu + 120. A thunk is called, so it begins with RSP = cpu + 112; below that are eight
 * bytes to push to.
 */
#define O_RUN_OK 0x00
#define O_PAGE_RIP 0x08
#define O_RIP 0x10
#define O_SCRATCH1 0x40
#define O_SCRATCH3 0x50
#define O_GPR 0x78
#define O_ARITH 0xf8
#define O_SYSFLAGS 0x100
#define O_TLB 0x108
#define O_HOST_RSP 0x110
#define O_UNWIND 0x118
#define O_HOST_FP 0x120
#define O_LINK 0x128
#define O_XSAVE_MASK 0x130
#define O_XSAVE_AREA 0x138
#define O_BOUNCE 0x140
#define O_META 0x148
#define O_SIDE_SUPER 0x170 /* struct soft_side of TLB_SUPER, of TLB_USER */
#define O_SIDE_USER 0x150
#define SIDE_TLB 0
#define SIDE_MODE 8
#define SIDE_KIND 12
#define SIDE_CS 16
#define SIDE_SS 24
#define O_SIDE_STAR 0x1b0
#define O_MODE 0x1cc
#define O_KIND 0x1d0
#define O_CS 0x1f8
#define O_SS 0x210
#define SEG_LIMIT 8
#define SEG_UNUSABLE 16
#define O_EFER 0x2e8
#define O_STAR 0x340
#define O_LSTAR 0x348
#define O_SFMASK 0x358
#define O_CPL 0x4b8
#define O_SHADOWS 0x4bc /* shadow_sti, shadow_mov_ss */
#define O_EVENT_WAITING 0x4d2
#define EFER_SCE 0x1
#define FL_TF 0x100
#define FL_AC 0x40000
#define FL_AC_BIT 18
#define FL_RF_BIT 16
#define FL_SYSRET 0x207600 /* IF DF IOPL NT ID */
#define RSP_BIAS (-120) /* cpu - RSP */
#define TLB_BIAS 12
#define TLB_JUMP 0x1800000 /* struct soft_tlb's jump[]: tag, code */
#define JUMP_ROTATE 2
#define LINK_TARGET 32	 /* struct block_link */
#define LINK_TRIES 36
#define FRAME 64 /* C runs with RSP = cpu - 64: aligned, clear of the return address */

	.text

/* Guest registers to cpu->gpr[], flags to cpu->arith; then RDI = cpu. depth: cpu - RSP. Changes RAX. */
.macro SAVE depth
	mov	%rax, O_GPR+0*8+\depth(%rsp)
	mov	%r11, O_GPR+1*8+\depth(%rsp)
	mov	%rdx, O_GPR+2*8+\depth(%rsp)
	mov	%rbx, O_GPR+3*8+\depth(%rsp)
	mov	%r14, O_GPR+4*8+\depth(%rsp)
	mov	%rbp, O_GPR+5*8+\depth(%rsp)
	mov	%rsi, O_GPR+6*8+\depth(%rsp)
	mov	%rdi, O_GPR+7*8+\depth(%rsp)
	mov	%r8, O_GPR+8*8+\depth(%rsp)
	mov	%r9, O_GPR+9*8+\depth(%rsp)
	mov	%r12, O_GPR+12*8+\depth(%rsp)
	mov	%r13, O_GPR+13*8+\depth(%rsp)
	lea	\depth(%rsp), %rdi
	pushfq
	pop	O_ARITH(%rdi)
	/* The kernel may have left DF or AC clear; they are never set in here. */
.endm

/* The reverse, from RDI = cpu. Leaves RCX and R10 alone. */
.macro LOAD
	/* OF by an addition that overflows, the others by SAHF: POPFQ takes some twenty cycles. */
	mov	O_ARITH(%rdi), %eax
	mov	%eax, %edx
	shr	$4, %edx
	and	$0x80, %edx
	mov	%al, %ah
	add	%dl, %dl
	sahf
	mov	O_TLB(%rdi), %r15
	lea	TLB_BIAS(%r15), %r15
	mov	O_GPR+0*8(%rdi), %rax
	mov	O_GPR+1*8(%rdi), %r11
	mov	O_GPR+2*8(%rdi), %rdx
	mov	O_GPR+3*8(%rdi), %rbx
	mov	O_GPR+4*8(%rdi), %r14
	mov	O_GPR+5*8(%rdi), %rbp
	mov	O_GPR+6*8(%rdi), %rsi
	mov	O_GPR+8*8(%rdi), %r8
	mov	O_GPR+9*8(%rdi), %r9
	mov	O_GPR+12*8(%rdi), %r12
	mov	O_GPR+13*8(%rdi), %r13
	mov	O_GPR+7*8(%rdi), %rdi
.endm

/* Vector and x87 state to cpu->xsave, the C ABI's control words in their place. RDI = cpu; changes RAX, RCX, RDX. */
.macro VECTOR_SAVE
	mov	O_XSAVE_MASK(%rdi), %eax
	mov	O_XSAVE_MASK+4(%rdi), %edx
	mov	O_XSAVE_AREA(%rdi), %rcx
	xsaveopt64 (%rcx)
	fninit
	fldcw	O_HOST_FP+4(%rdi)
	ldmxcsr	O_HOST_FP(%rdi)
	vzeroupper
.endm

.macro VECTOR_LOAD
	mov	O_XSAVE_MASK(%rdi), %eax
	mov	O_XSAVE_MASK+4(%rdi), %edx
	mov	O_XSAVE_AREA(%rdi), %rcx
	xrstor64 (%rcx)
.endm

/* enum soft_next soft_enter(struct soft_cpu *cpu, void *code). A block's `cross` entry wants RIP in R10. */
	.globl	soft_enter
	.type	soft_enter, @function
soft_enter:
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	stmxcsr	O_HOST_FP(%rdi)
	fnstcw	O_HOST_FP+4(%rdi)
	mov	%rsp, O_HOST_RSP(%rdi)
	mov	%rsi, %r10
	VECTOR_LOAD
	lea	-RSP_BIAS(%rdi), %rsp
	mov	%r10, %rcx
	mov	O_RIP(%rdi), %r10
	LOAD
	jmp	*%rcx
	.size	soft_enter, . - soft_enter

/* All saved, RDI = cpu, EAX = enum soft_next: on with other code, or back to the caller of soft_enter(). */
leave_saved:
	mov	%rdi, %rbx
	lea	-FRAME(%rdi), %rsp
	mov	%eax, %esi
	call	soft_leave
	mov	%rbx, %rdi
	lea	-RSP_BIAS(%rdi), %rsp
	test	%rax, %rax
	jz	1f
	mov	%rax, %rcx
	mov	O_RIP(%rdi), %r10
	LOAD
	jmp	*%rcx
1:	VECTOR_SAVE
	mov	O_HOST_RSP(%rdi), %rsp
	mov	O_UNWIND(%rdi), %eax
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	ret

/* Jumped to: go on at R10, or, at soft_stub_leave, where cpu->rip says. */
	.globl	soft_stub_leave_to
soft_stub_leave_to:
	mov	%r10, O_RIP+RSP_BIAS(%rsp)
	.globl	soft_stub_leave
soft_stub_leave:
	SAVE	RSP_BIAS
	mov	$4, %eax	/* NEXT_MISSED */
	jmp	leave_saved

/* Jumped to: RCX = where in its page to go on, in 64-bit code. */
	.globl	soft_stub_leave_at
soft_stub_leave_at:
	mov	O_PAGE_RIP+RSP_BIAS(%rsp), %r10
	lea	(%rcx,%r10), %rcx
	mov	%rcx, O_RIP+RSP_BIAS(%rsp)
	jmp	soft_stub_leave

/* Jumped to by a far jump that is not linked any more: page_rip has moved on already and moves back. RCX as below. */
	.globl	soft_stub_exit_far
soft_stub_exit_far:
	mov	%rax, O_SCRATCH1+RSP_BIAS(%rsp)
	mov	O_META+RSP_BIAS(%rsp), %r10
	movslq	LINK_TARGET(%r10,%rcx,8), %r10
	sarx	%r15, %r10, %r10	/* by 12: cpu.h */
	shlx	%r15, %r10, %r10
	not	%r10
	mov	O_PAGE_RIP+RSP_BIAS(%rsp), %rax
	lea	1(%rax,%r10), %rax
	mov	%rax, O_PAGE_RIP+RSP_BIAS(%rsp)
	jmp	1f

/* Jumped to by a direct jump that is not linked: RCX = struct block_link, in units of eight bytes from svm->meta on. By the
 * jump cache (as in t_flow.c), or now and then to dispatch, which links it. */
	.globl	soft_stub_exit
soft_stub_exit:
	mov	%rax, O_SCRATCH1+RSP_BIAS(%rsp)
1:	mov	O_META+RSP_BIAS(%rsp), %r10
	lea	(%r10,%rcx,8), %rcx
	movslq	LINK_TARGET(%rcx), %r10
	mov	O_PAGE_RIP+RSP_BIAS(%rsp), %rax
	lea	(%rax,%r10), %rax
	mov	%rax, O_RIP+RSP_BIAS(%rsp)
	mov	%rcx, O_LINK+RSP_BIAS(%rsp)
	movzbl	LINK_TRIES(%rcx), %r10d
	lea	-1(%r10), %r10d
	xchg	%r10, %rcx
	jrcxz	2f
	mov	%cl, LINK_TRIES(%r10)
	rorx	$JUMP_ROTATE, %rax, %r10
	movzwl	%r10w, %r10d
	lea	(%r10,%r10), %r10
	mov	TLB_JUMP-TLB_BIAS(%r15,%r10,8), %rcx
	lea	(%rcx,%rax), %rcx
	jrcxz	1f
	jmp	2f
1:	movq	$0, O_LINK+RSP_BIAS(%rsp)
	mov	%r10, %rcx
	mov	%rax, %r10
	mov	O_SCRATCH1+RSP_BIAS(%rsp), %rax
	jmp	*TLB_JUMP+8-TLB_BIAS(%r15,%rcx,8)
2:	mov	O_SCRATCH1+RSP_BIAS(%rsp), %rax
	jmp	soft_stub_leave

/*
 * SYSCALL and SYSRET from 64-bit code to 64-bit code, called with R10D = the mode behind it. If nothing is out of the way they
 * do not come back; else nothing has changed and the helper does the instruction. Out of the way are: EFER.SCE clear, a STAR
 * that the segments at hand are not of, a table whose jumps are another mode's, and what makes another mode of it: AC that stays
 * set or comes, TF that comes. (TF that is set, breakpoints and the monitor's steps are MODE_STEP, whose blocks do not call this.)
 */
#define D (RSP_BIAS+8)

/* RAX = SF ZF AF PF CF in AH, OF in AL; RDX and R11 are free. Flags are free from here on. */
.macro SIDE_BEGIN side
	mov	%rax, O_SCRATCH1+D(%rsp)
	mov	%rdx, O_GPR+2*8+D(%rsp)
	mov	%r11, O_GPR+1*8+D(%rsp)
	lahf
	seto	%al
	testb	$EFER_SCE, O_EFER+D(%rsp)
	jz	9f
	cmp	%r10d, \side+SIDE_MODE+D(%rsp)
	jne	9f
	mov	O_STAR+D(%rsp), %rdx
	cmp	%rdx, O_SIDE_STAR+D(%rsp)
	jne	9f
.endm

/* To the other side with R10D = mode; flags are to be as RDX says, RIP as RCX. All else is written. */
.macro SIDE_END side, cpl
	mov	%r10d, O_MODE+D(%rsp)
	movb	$\cpl, O_CPL+D(%rsp)
	movw	$0, O_SHADOWS+D(%rsp)
	mov	\side+SIDE_CS+D(%rsp), %rax
	mov	\side+SIDE_SS+D(%rsp), %r10
	movq	$0, O_CS+D(%rsp)
	mov	%rax, O_CS+SEG_LIMIT+D(%rsp)
	movb	$0, O_CS+SEG_UNUSABLE+D(%rsp)
	movq	$0, O_SS+D(%rsp)
	mov	%r10, O_SS+SEG_LIMIT+D(%rsp)
	movb	$0, O_SS+SEG_UNUSABLE+D(%rsp)
	mov	\side+SIDE_KIND+D(%rsp), %eax
	mov	\side+SIDE_TLB+D(%rsp), %r15
	mov	%eax, O_KIND+D(%rsp)
	mov	%r15, O_TLB+D(%rsp)
	lea	TLB_BIAS(%r15), %r15
	mov	%rcx, O_RIP+D(%rsp)
	rorx	$JUMP_ROTATE, %rcx, %r10
	movzwl	%r10w, %r10d
	add	%r10, %r10
	add	TLB_JUMP-TLB_BIAS(%r15,%r10,8), %rcx
	mov	%edx, %eax	/* as in LOAD */
	shr	$4, %edx
	and	$0x80, %edx
	mov	%al, %ah
	add	%dl, %dl
	sahf
	mov	O_GPR+2*8+D(%rsp), %rdx
	mov	O_SCRATCH1+D(%rsp), %rax
	lea	8(%rsp), %rsp
	jrcxz	1f
	jmp	soft_stub_leave
1:	mov	%r10, %rcx
	mov	O_RIP+RSP_BIAS(%rsp), %r10
	jmp	*TLB_JUMP+8-TLB_BIAS(%r15,%rcx,8)
9:	add	$0x7f, %al	/* OF */
	sahf
	mov	O_GPR+2*8+D(%rsp), %rdx
	mov	O_GPR+1*8+D(%rsp), %r11
	mov	O_SCRATCH1+D(%rsp), %rax
	ret
.endm

/* RCX = RIP behind the instruction. */
	.globl	soft_stub_syscall
soft_stub_syscall:
	SIDE_BEGIN O_SIDE_SUPER
	mov	O_SYSFLAGS+D(%rsp), %rdx
	mov	O_SFMASK+D(%rsp), %r11
	not	%r11
	and	%rdx, %r11
	btr	$FL_RF_BIT, %rdx
	btr	$FL_RF_BIT, %r11
	bt	$FL_AC_BIT, %r11
	jc	9f
	mov	%r11, O_SYSFLAGS+D(%rsp)
	movzbl	%al, %r11d
	shl	$11, %r11d
	or	%r11, %rdx
	movzbl	%ah, %eax	/* bit 1 is set in it as it is in RFLAGS */
	or	%rax, %rdx
	mov	%rdx, O_GPR+11*8+D(%rsp)
	mov	O_SFMASK+D(%rsp), %rax
	not	%rax
	and	%rax, %rdx
	mov	%rcx, %r11
	mov	O_LSTAR+D(%rsp), %rcx
	SIDE_END O_SIDE_SUPER, 0

	.globl	soft_stub_sysret
soft_stub_sysret:
	SIDE_BEGIN O_SIDE_USER
	cmpb	$0, O_CPL+D(%rsp)
	jne	9f
	cmpb	$0, O_EVENT_WAITING+D(%rsp)	/* IF may come */
	jne	9f
	mov	%r11, %rcx
	shl	$16, %rcx
	sar	$16, %rcx
	cmp	%r11, %rcx	/* canonical? */
	jne	9f
	mov	O_GPR+11*8+D(%rsp), %rdx
	test	$FL_TF|FL_AC, %edx
	jnz	9f
	mov	%edx, %r11d
	and	$FL_SYSRET, %r11d
	mov	%r11, O_SYSFLAGS+D(%rsp)
	mov	%rcx, %r11
	SIDE_END O_SIDE_USER, 3

/* Jumped to by the signal handler: cpu->rip and cpu->fault are set. */
	.globl	soft_stub_fault
soft_stub_fault:
	SAVE	RSP_BIAS
	mov	$2, %eax	/* NEXT_FAULT */
	jmp	leave_saved

/* RCX = helper, R10 = insn. */
	.globl	soft_stub_quick
soft_stub_quick:
	SAVE	RSP_BIAS+8
	mov	%r10, %rsi
	mov	%rdi, %rbx
	lea	-FRAME(%rdi), %rsp
	call	*%rcx
	mov	%rbx, %rdi
	test	%eax, %eax
	jnz	leave_saved
	lea	-(RSP_BIAS+8)(%rdi), %rsp
	LOAD
	ret

	.globl	soft_stub_full
soft_stub_full:
	SAVE	RSP_BIAS+8
	mov	%r10, %rsi
	mov	%rdi, %rbx
	mov	%rcx, %rbp
	lea	-FRAME(%rdi), %rsp
	VECTOR_SAVE
	call	*%rbp
	mov	%eax, %ebp
	mov	%rbx, %rdi
	VECTOR_LOAD
	mov	%ebp, %eax
	test	%eax, %eax
	jnz	leave_saved
	lea	-(RSP_BIAS+8)(%rdi), %rsp
	LOAD
	ret

/* R10 = linear, ECX = desc. Gives R10 = addend, RCX = 0; soft_stub_slow_address: R10 = host address. */
.macro SLOW address
	SAVE	RSP_BIAS+8
	mov	%rdi, %rbx
	mov	%r10, %rbp
	mov	%ecx, %r12d
	lea	-FRAME(%rdi), %rsp
	mov	%rbp, %rsi
	mov	%r12d, %edx
	call	soft_mem_fast
	mov	%rbx, %rdi
	test	$3, %al		/* of whole pages but for SOFT_MEM_FULL and SOFT_MEM_FAULT, */
	jz	2f
	cmp	$2, %al		/* .. which is NEXT_FAULT, too */
	je	leave_saved
	VECTOR_SAVE
	mov	%rbp, %rsi
	mov	%r12d, %edx
	call	soft_mem_slow
	mov	%rax, %r13
	mov	%rbx, %rdi
	VECTOR_LOAD
	mov	O_UNWIND(%rdi), %eax
	test	%eax, %eax
	jnz	leave_saved
	mov	%r13, %rax
2:	mov	%rax, %r10
	.if	\address
	add	%rbp, %r10
	.endif
	xor	%ecx, %ecx
	lea	-(RSP_BIAS+8)(%rdi), %rsp
	LOAD
	ret
.endm

	.globl	soft_stub_slow_addend
soft_stub_slow_addend:
	SLOW	0

	.globl	soft_stub_slow_address
soft_stub_slow_address:
	SLOW	1

/* R10 = linear, ECX = what (PROBE_SIZE is its low half). Gives R10 = host address and RCX = 0, or RCX = 1: at once if what is
 * looked for lies across a page edge, as the frame of a function that is called often may. */
	.globl	soft_stub_probe
soft_stub_probe:
	mov	%rax, O_SCRATCH1+RSP_BIAS+8(%rsp)
	movzwl	%cx, %eax
	lea	-1(%rax,%r10), %rax
	shrx	%r15, %rax, %rax	/* the last byte's page */
	xchg	%rcx, %rax
	mov	%r10, O_SCRATCH3+RSP_BIAS+8(%rsp)
	shrx	%r15, %r10, %r10
	not	%r10
	lea	1(%rcx,%r10), %rcx
	mov	O_SCRATCH3+RSP_BIAS+8(%rsp), %r10
	jrcxz	1f
	mov	O_SCRATCH1+RSP_BIAS+8(%rsp), %rax
	mov	$1, %ecx
	ret
1:	mov	%rax, %rcx
	mov	O_SCRATCH1+RSP_BIAS+8(%rsp), %rax
	SAVE	RSP_BIAS+8
	mov	%rdi, %rbx
	lea	-FRAME(%rdi), %rsp
	mov	%r10, %rsi
	mov	%ecx, %edx
	call	soft_mem_probe
	mov	%rbx, %rdi
	mov	%rax, %r10
	xor	%ecx, %ecx
	test	%rax, %rax
	setz	%cl
	lea	-(RSP_BIAS+8)(%rdi), %rsp
	LOAD
	ret

/* ECX = desc. The instruction has run; finish its write. */
	.globl	soft_stub_commit
soft_stub_commit:
	mov	%ecx, %r10d
	mov	O_BOUNCE+RSP_BIAS+8(%rsp), %rcx
	jrcxz	3f
	jmp	4f
3:	ret
4:	SAVE	RSP_BIAS+8
	mov	%rdi, %rbx
	mov	%r10d, %ebp
	lea	-FRAME(%rdi), %rsp
	VECTOR_SAVE
	mov	%ebp, %esi
	call	soft_mem_commit
	mov	%eax, %ebp
	mov	%rbx, %rdi
	VECTOR_LOAD
	mov	%ebp, %eax
	test	%eax, %eax
	jnz	leave_saved
	lea	-(RSP_BIAS+8)(%rdi), %rsp
	LOAD
	ret

/* R10 = offset in the segment, ECX = desc. Gives R10 = linear. */
	.globl	soft_stub_linear
soft_stub_linear:
	SAVE	RSP_BIAS+8
	mov	%rdi, %rbx
	mov	%r10, %rsi
	mov	%ecx, %edx
	lea	-FRAME(%rdi), %rsp
	call	soft_mem_linear
	mov	%rax, %r10
	mov	%rbx, %rdi
	mov	O_UNWIND(%rdi), %eax
	test	%eax, %eax
	jnz	leave_saved
	lea	-(RSP_BIAS+8)(%rdi), %rsp
	LOAD
	ret

	.section .note.GNU-stack,"",@progbits
