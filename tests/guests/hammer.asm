; All CPUs (2 to 4) at once on the same memory: nothing is lost. A command line that begins with "long" makes it
; a minute's work or so.
;> PASS all came
;> PASS lock inc
;> PASS lock xadd
;> PASS xadd numbers are unique
;> PASS cmpxchg
;> PASS xchg spin lock
;> PASS bit by lock bts
;> PASS over a cache line
;> PASS over a page
;> PASS byte and word neighbours
;> PASS cmpxchg16b stack
;> PASS nodes counted
;> PASS ipis taken
%include "smp.inc"
%define CPUS (SCRATCH + 0)
%define ROUNDS (SCRATCH + 8)
%define GO (SCRATCH + 16)
%define FINISHED (SCRATCH + 24)
%define C_INC (SCRATCH + 0x40)
%define C_XADD (SCRATCH + 0x80)
%define C_SUM (SCRATCH + 0xc0)          ; of what XADD gave
%define C_CMPXCHG (SCRATCH + 0x100)
%define C_LOCKED (SCRATCH + 0x140)      ; under LOCK
%define LOCK (SCRATCH + 0x180)
%define BIT_LOCK (SCRATCH + 0x1c0)
%define C_BIT (SCRATCH + 0x200)
%define C_LINE (SCRATCH + 0x27c)        ; a qword over the edge of a cache line
%define C_BYTES (SCRATCH + 0x300)       ; a word a CPU, side by side
%define STACK_HEAD (SCRATCH + 0x400)    ; pointer, generation
%define C_POPS (SCRATCH + 0x440)
%define IPIS (SCRATCH + 0x480)          ; a qword a CPU: taken
%define IPIS_SENT (SCRATCH + 0x4c0)     ; sent to it, by the one before it
%define SPLITS (SCRATCH + 0x500)        ; a qword a CPU: locked accesses over an edge, of each kind
%define SPLIT_TICKS (SCRATCH + 0x540)   ; a qword a CPU: what they may still take, by the TSC
%define C_PAGE 0x400ffb                 ; a qword over the edge of a page
%define NODES 0x410000                  ; 64 bytes each: next, uses
%define NODE_COUNT 16
%define IPI_VECTOR 0x70
%define SPLIT_TICKS_MAX 2000000000

on_ipi:	call apic_id
	inc qword [IPIS + rbx * 8]
	ret

ap_main:
	cmp qword [GO], 0
	jne .go
	pause
	jmp ap_main
.go:	call work
	; interrupts stay open for what is still under way
.rest:	pause
	jmp .rest

; EBX = this CPU's APIC id
work:	sti
	mov r15, [ROUNDS]
.round:	lock inc qword [C_INC]
	mov eax, 1
	lock xadd [C_XADD], rax
	lock add [C_SUM], rax
.again:	mov rax, [C_CMPXCHG]
	lea rdx, [rax + 1]
	lock cmpxchg [C_CMPXCHG], rdx
	jne .again
	; a spin lock around what is not atomic itself
.spin:	mov eax, 1
	xchg [LOCK], eax
	test eax, eax
	jz .got
	pause
	jmp .spin
.got:	inc qword [C_LOCKED]
	mov dword [LOCK], 0
.bit:	lock bts dword [BIT_LOCK], 17
	jnc .have
	pause
	jmp .bit
.have:	inc qword [C_BIT]
	lock btr dword [BIT_LOCK], 17
	lock inc word [C_BYTES + rbx * 2]
	test r15, 15
	jnz .whole
	; some hosts trap a lock over the edge of a cache line and make its owner wait for 10 ms and more
	cmp qword [SPLIT_TICKS + rbx * 8], 0
	jl .whole
	call tsc
	mov r12, rax
	lock inc qword [C_LINE]
	lock add qword [C_PAGE], 1
	inc qword [SPLITS + rbx * 8]
	call tsc
	sub rax, r12
	sub [SPLIT_TICKS + rbx * 8], rax
.whole:	; a node off the stack, used by nobody else meanwhile, and back
	call pop_node
	test rcx, rcx
	jz .empty
	inc qword [rcx + 8]
	lock inc qword [C_POPS]
	call push_node
.empty:	test r15, 255
	jnz .next
	; to the next CPU
	lea edx, [rbx + 1]
	cmp edx, [CPUS]
	jb .send
	xor edx, edx
.send:	cli
	inc qword [IPIS_SENT + rdx * 8]
	mov eax, ICR_FIXED | IPI_VECTOR
	call ipi
	sti
	; a vector is one bit at the receiver: it must have come before there is another one
	; the other CPU may be in a split lock for seconds, where the host traps them
	mov rcx, 4000000000
	mov rax, [IPIS_SENT + rdx * 8]
.taken:	cmp [IPIS + rdx * 8], rax
	jae .next
	pause
	loop .taken
.next:	dec r15
	jnz .round
	lock inc qword [FINISHED]
	ret

; The TSC in RAX
tsc:	rdtsc
	shl rdx, 32
	or rax, rdx
	ret

; A node in RCX, or 0
pop_node:
	push rbx
	mov rax, [STACK_HEAD]
	mov rdx, [STACK_HEAD + 8]
.try:	mov rcx, rax
	test rcx, rcx
	jz .out
	mov r8, rcx
	mov rbx, [rcx]
	lea rcx, [rdx + 1]
	lock cmpxchg16b [STACK_HEAD]
	jne .try
	mov rcx, r8
.out:	pop rbx
	ret

; RCX = the node
push_node:
	push rbx
	mov rbx, rcx
	mov rax, [STACK_HEAD]
	mov rdx, [STACK_HEAD + 8]
.try:	mov [rbx], rax
	lea rcx, [rdx + 1]
	lock cmpxchg16b [STACK_HEAD]
	jne .try
	pop rbx
	ret

main:	call lapic_enable
	mov edi, SCRATCH
	xor eax, eax
	mov ecx, 0xff0 / 8
	rep stosq
	mov qword [C_PAGE], 0
	mov qword [ROUNDS], 8000
	mov eax, [START_INFO]
	mov rsi, [rax + 24]             ; hvm_start_info's command line
	test rsi, rsi
	jz .short
	cmp dword [rsi], "long"
	jne .short
	mov qword [ROUNDS], 4000000
.short:	HOOK_IRQ IPI_VECTOR, on_ipi
	mov edi, NODES
	mov ecx, NODE_COUNT
.node:	mov qword [rdi + 8], 0
	push rcx
	mov rcx, rdi
	call push_node
	pop rcx
	add edi, 64
	loop .node
	call start_aps
	mov rax, 50000000
	call delay_ns
	mov rax, [AP_COUNT]
	CHECK "all came", 1, 3
	inc rax
	mov [CPUS], rax
	mov ecx, eax
	mov rax, SPLIT_TICKS_MAX
.ticks:	mov [SPLIT_TICKS + rcx * 8 - 8], rax
	loop .ticks
	mov qword [GO], 1
	call apic_id
	call work
.wait:	mov rax, [FINISHED]
	cmp rax, [CPUS]
	je .all
	pause
	jmp .wait
.all:	mov r14, [CPUS]
	imul r14, [ROUNDS]              ; what every counter should have
	mov rax, [C_INC]
	CHECK "lock inc", r14
	mov rax, [C_XADD]
	CHECK "lock xadd", r14
	mov rax, r14
	lea rcx, [r14 - 1]
	mul rcx
	shr rax, 1
	mov r13, rax
	mov rax, [C_SUM]
	CHECK "xadd numbers are unique", r13
	mov rax, [C_CMPXCHG]
	CHECK "cmpxchg", r14
	mov rax, [C_LOCKED]
	CHECK "xchg spin lock", r14
	mov rax, [C_BIT]
	CHECK "bit by lock bts", r14
	; each CPU did it in its first round at least
	xor ecx, ecx
	xor r13, r13
	mov ebx, 1
.splits:
	mov rax, [SPLITS + rcx * 8]
	add r13, rax
	test rax, rax
	jnz .did
	xor ebx, ebx
.did:	inc ecx
	cmp ecx, [CPUS]
	jb .splits
	test ebx, ebx
	jnz .line
	xor r13, r13
.line:	mov rax, [C_LINE]
	CHECK "over a cache line", r13
	mov rax, [C_PAGE]
	CHECK "over a page", r13
	; each CPU's word, in 16 bits
	xor ecx, ecx
	xor ebx, ebx
.word:	movzx eax, word [C_BYTES + rcx * 2]
	sub ax, [ROUNDS]
	movzx eax, ax
	or ebx, eax
	inc ecx
	cmp ecx, [CPUS]
	jb .word
	mov eax, ebx
	CHECK "byte and word neighbours", 0
	; all nodes are there, once each, with all uses
	xor ecx, ecx
	xor r13, r13
	mov rax, [STACK_HEAD]
.walk:	test rax, rax
	jz .end
	inc ecx
	add r13, [rax + 8]
	cmp ecx, NODE_COUNT
	ja .end
	mov rax, [rax]
	jmp .walk
.end:	mov eax, ecx
	CHECK "cmpxchg16b stack", NODE_COUNT
	mov rax, r13
	CHECK "nodes counted", [C_POPS]
	xor ecx, ecx
	xor ebx, ebx
.sent:	mov rax, [IPIS_SENT + rcx * 8]
	sub rax, [IPIS + rcx * 8]
	or rbx, rax
	inc ecx
	cmp ecx, [CPUS]
	jb .sent
	mov rax, rbx
	CHECK "ipis taken", 0
	ret
END_GUEST
