; IRET in all its ways, far jumps, calls and returns, call gates, the LDT, SYSCALL and SYSENTER and their returns, in
; 64-bit and compatibility mode.
;> PASS iret null cs
;> PASS iret cs beyond
;> PASS iret cs data
;> PASS iret cs tss
;> PASS iret cs rpl
;> PASS iret cs dpl
;> PASS iret cs l and d
;> PASS iret cs absent
;> PASS iret conforming dpl
;> PASS iret ss null to user
;> PASS iret ss null to compat
;> PASS iret ss rpl
;> PASS iret ss dpl
;> PASS iret ss read-only
;> PASS iret ss code
;> PASS iret ss absent
;> PASS iret ss beyond
;> PASS iret rip not canonical
;> PASS iret user rip not canonical
;> PASS iret eip beyond
;> PASS iret rsp
;> PASS iret ss null
;> PASS user iret inwards
;> PASS iret flags
;> PASS iret tf
;> PASS user iret flags
;> PASS user iret flags of iopl 3
;> PASS iretd
;> PASS iret of 16 bits
;> PASS iret to 32-bit code
;> PASS iret to 16-bit code
;> PASS iretd from 32-bit code
;> PASS ds nulled
;> PASS es kept
;> PASS fs nulled
;> PASS gs kept
;> PASS retf outwards
;> PASS retf outwards rsp
;> PASS retf cs rpl
;> PASS retf ss rpl
;> PASS retf null
;> PASS retf not canonical
;> PASS call far of 32 bits
;> PASS retf of 32 bits
;> PASS call far of 64 bits
;> PASS retf of 64 bits
;> PASS retf n
;> PASS jmp far data
;> PASS jmp far outwards
;> PASS jmp far absent outwards
;> PASS jmp far tss
;> PASS call far ldt
;> PASS jmp far not canonical
;> PASS user jmp far conforming
;> PASS user jmp far inwards
;> PASS gate of the same level
;> PASS gate absent
;> PASS gate to null
;> PASS gate to data
;> PASS gate to 32-bit code
;> PASS gate outwards
;> PASS gate upper type
;> PASS gate not canonical
;> PASS user jmp gate inwards
;> PASS user gate dpl
;> PASS gate inwards rsp
;> PASS gate inwards ss
;> PASS gate from 32-bit code
;> PASS gate saved cs
;> PASS no ldt
;> PASS lldt of data
;> PASS lldt absent
;> PASS lldt of the ldt
;> PASS sldt
;> PASS ldt data base
;> PASS ldt limit
;> PASS jmp far ldt code
;> PASS user lldt
;> PASS sysret to 64 bits cs
;> PASS sysret ss
;> PASS sysret flags
;> PASS syscall cs ss
;> PASS sysret to 32 bits
;> PASS syscall of 32-bit code
;> PASS sysret not canonical
;> PASS sysenter without cs
;> PASS sysenter cs ss
;> PASS sysenter rsp
;> PASS sysenter if
;> PASS sysexit cs
;> PASS sysexit ss
;> PASS sysenter of 32-bit code
;> PASS user sysexit
;> PASS sysexit not canonical
%include "guest64.inc"

%define TSS 0x20
%define LDT 0x30
%define UDATA 0x40
%define UCODE 0x48
%define UCODE32 0x50
%define UCODE16 0x58
%define CONFORM 0x60
%define DATA1 0x68
%define CODE1 0x70
%define UCODE_ABSENT 0x78
%define UDATA_ABSENT 0x80
%define UREADONLY 0x88
%define BOTH 0x90               ; L and D
%define CONFORM3 0x98
%define GATE 0xa0
%define ULIMITED 0xb0           ; 32-bit code that ends at 64 KiB
%define SYS 0xb8                ; for SYSCALL and SYSENTER: code64, data, ucode32, udata, ucode64, udata
%define LDT_TYPE2 0xe8
%define CODE16 0xf8

%define KSP (SCRATCH + 0)
%define NOTE (SCRATCH + 8)
%define NOTE2 (SCRATCH + 16)
%define NOTE3 (SCRATCH + 24)
%define NOTE4 (SCRATCH + 32)
%define FAR (SCRATCH + 48)      ; 10 bytes
%define INTEL (SCRATCH + 64)
%define BUFFER 0x203000
%define RSP0 0x208000
%define USTACK 0x20a000
%define LOW 0x9000              ; code that 16 bits reach

	align 8
gdt2:	dq 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
	dq 0, 0                 ; TSS
	dq 0, 0                 ; LDT
	dq 0x00cff3000000ffff, 0x00affb000000ffff, 0x00cffb000000ffff, 0x0000fb000000ffff
	dq 0x00af9f000000ffff, 0x00cfb3000000ffff, 0x00afbb000000ffff
	dq 0x00af7b000000ffff, 0x00cf73000000ffff, 0x00cff1000000ffff, 0x00ef9b000000ffff
	dq 0x00afff000000ffff
	dq 0, 0                 ; GATE
	dq 0x0040fb000000ffff
	dq 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff
	dq 0x00affb000000ffff, 0x00cff3000000ffff
	dq 0, 0                 ; an LDT that is absent
	dq 0x00009b000000ffff
gdt2_ptr:
	dw $ - gdt2 - 1
	dq gdt2
	align 8
ldt:	dq 0x00af9b000000ffff, 0x0040f3200000ffff, 0x0020fb000000ffff
ldt_end:
	align 8
tss:	dd 0
	dq RSP0, 0, 0, 0
	times 7 dq 0
	dq 0
	dw 0, 0x68
tss_end:

; vector | error << 8, and RIP must be that of the instruction
pack:	push rcx
	mov rax, [FAULT_VECTOR]
	cmp rax, -1
	je .out
	mov ecx, [FAULT_ERROR]
	shl rcx, 8
	or rax, rcx
	mov rcx, [FAULT_RIP]
	cmp rcx, [TRY_AT]
	je .out
	bts rax, 63
.out:	pop rcx
	ret
%define NOTHING -1
%macro RAISES 4+                ; name, vector, error, instruction
	TRY_KEEP %4
	call pack
	CHECK %1, %2 | (%3) << 8
%endmacro
%macro USER_RAISES 4+
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], %%on
	mov qword [TRY_AT], %%here
	jmp %%go
%%here:	%4
%%on:	int 0x82
%%go:	mov edi, %%here
	call user_run
	mov qword [FAULT_RESUME], 0
	call pack
	CHECK %1, %2 | (%3) << 8
%endmacro
; IRETQ from a frame: name, vector, error, RIP, CS, RFLAGS, RSP, SS
%macro IRET_RAISES 8
	mov rbx, rsp
	mov rax, %8
	push rax
	mov rax, %7
	push rax
	push %6
	push %5
	mov rax, %4
	push rax
	TRY_KEEP iretq
	mov rsp, rbx
	call pack
	CHECK %1, %2 | (%3) << 8
%endmacro
; Goes to RDI in segment RSI (RPL included) at CPL 3 with flags [user_flags]; INT 0x82 there comes back.
user_run:
	mov esi, UCODE | 3
user_run_in:
	mov [KSP], rsp
	push UDATA | 3
	push USTACK
	push qword [user_flags]
	push rsi
	push rdi
	iretq
back_home:
	mov rsp, [KSP]
	push rax
	mov eax, DATA
	mov ss, eax
	mov ds, eax
	mov es, eax
	pop rax
	ret
	align 8
user_flags:
	dq 2
%macro IN_USER 1
	mov edi, %1
	call user_run
%endmacro
; A system segment's descriptor: at, base, limit, type byte
%macro SYSTEM_SEGMENT 4
	mov rax, %2
	and eax, 0xffffff
	shl rax, 16
	mov rcx, (%4) << 40 | (%3)
	or rax, rcx
	mov [gdt2 + %1], rax
	mov qword [gdt2 + %1 + 8], 0
%endmacro
; target, segment, type byte
%macro CALL_GATE 3
	mov rax, %1
	mov ecx, eax
	and eax, 0xffff
	or eax, (%2) << 16
	mov [gdt2 + GATE], eax
	and ecx, 0xffff0000
	or ecx, (%3) << 8
	mov [gdt2 + GATE + 4], ecx
	mov rax, %1
	shr rax, 32
	mov [gdt2 + GATE + 8], rax
%endmacro
%macro FAR_POINTER 2            ; offset, selector, 16:32
	mov dword [FAR], %1
	mov word [FAR + 4], %2
%endmacro

main:	lgdt [gdt2_ptr]
	SYSTEM_SEGMENT TSS, tss, tss_end - tss - 1, 0x89
	SYSTEM_SEGMENT LDT, ldt, ldt_end - ldt - 1, 0x82
	SYSTEM_SEGMENT LDT_TYPE2, ldt, ldt_end - ldt - 1, 0x02
	mov eax, TSS
	ltr ax
	or qword [pml4], 4
	or qword [pdpt], 4
	or qword [page_dirs], 4
	or qword [page_dirs + 8], 4
	mov rax, cr3
	mov cr3, rax
	mov edx, back_home
	mov [idt + 0x82 * 16], dx
	shr edx, 16
	mov [idt + 0x82 * 16 + 6], dx
	mov byte [idt + 0x82 * 16 + 5], 0xee
	xor eax, eax
	cpuid
	xor eax, eax
	cmp ecx, "ntel"
	sete al
	mov [INTEL], rax
	call test_iret
	call test_iret_flags
	call test_iret_sizes
	call test_outward
	call test_far
	call test_gates
	call test_ldt
	call test_syscall
	call test_sysenter
	ret

test_iret:
	IRET_RAISES "iret null cs", 13, 0, .on, 0, 2, rbx, DATA
	IRET_RAISES "iret cs beyond", 13, 0x4ff8, .on, 0x4ff8, 2, rbx, DATA
	IRET_RAISES "iret cs data", 13, DATA, .on, DATA, 2, rbx, DATA
	IRET_RAISES "iret cs tss", 13, TSS, .on, TSS, 2, rbx, DATA
	IRET_RAISES "iret cs rpl", 13, UCODE, .on, UCODE, 2, rbx, DATA
	IRET_RAISES "iret cs dpl", 13, CODE64, .on, CODE64 | 3, 2, rbx, UDATA | 3
	IRET_RAISES "iret cs l and d", 13, BOTH, .on, BOTH, 2, rbx, DATA
	IRET_RAISES "iret cs absent", 11, UCODE_ABSENT, .on, UCODE_ABSENT | 3, 2, USTACK, UDATA | 3
	IRET_RAISES "iret conforming dpl", 13, CONFORM3, .on, CONFORM3, 2, rbx, DATA
	IRET_RAISES "iret ss null to user", 13, 0, .on, UCODE | 3, 2, USTACK, 3
	IRET_RAISES "iret ss null to compat", 13, 0, .on, CODE32, 2, rbx, 0
	IRET_RAISES "iret ss rpl", 13, UDATA, .on, UCODE | 3, 2, USTACK, UDATA
	IRET_RAISES "iret ss dpl", 13, DATA, .on, UCODE | 3, 2, USTACK, DATA | 3
	IRET_RAISES "iret ss read-only", 13, UREADONLY, .on, UCODE | 3, 2, USTACK, UREADONLY | 3
	IRET_RAISES "iret ss code", 13, UCODE, .on, UCODE | 3, 2, USTACK, UCODE | 3
	IRET_RAISES "iret ss absent", 12, UDATA_ABSENT, .on, UCODE | 3, 2, USTACK, UDATA_ABSENT | 3
	IRET_RAISES "iret ss beyond", 13, 0x4ff8, .on, UCODE | 3, 2, USTACK, 0x4ff8 | 3
	IRET_RAISES "iret rip not canonical", 13, 0, 1 << 63, CODE64, 2, rbx, DATA
	IRET_RAISES "iret user rip not canonical", 13, 0, 1 << 47, UCODE | 3, 2, USTACK, UDATA | 3
	IRET_RAISES "iret eip beyond", 13, 0, 0x10000, ULIMITED | 3, 2, USTACK, UDATA | 3
	; what works: SS null at CPL 0, and RSP comes from the frame at the same level too
	mov rbx, rsp
	push 0
	push BUFFER + 64
	push 2
	push CODE64
	push .on
	iretq
.on:	mov rax, rsp
	mov rsp, rbx
	mov ecx, ss
	mov edx, DATA
	mov ss, edx
	CHECK "iret rsp", BUFFER + 64
	mov eax, ecx
	CHECK "iret ss null", 0
	; from CPL 3 inwards
	USER_RAISES "user iret inwards", 13, CODE64, jmp .inwards
	ret
.inwards:
	mov qword [TRY_AT], .inwards2
	push DATA
	push USTACK
	push 2
	push CODE64
	push .on
.inwards2:
	iretq

test_iret_flags:
	mov rbx, rsp
	push DATA
	push rbx
	push 0x2570d7           ; ID AC RF NT IOPL and the arithmetic ones
	push CODE64
	push .on
	iretq
.on:	pushfq
	pop rax
	push 2
	popfq
	and eax, 0xffffff
	CHECK "iret flags", 0x2470d7
	; TF: a trap after the first instruction there
	HOOK_IRQ 1, .trap
	mov rbx, rsp
	push DATA
	push rbx
	push 0x102
	push CODE64
	push .step
	iretq
.step:	nop
	nop
	HOOK_IRQ 1, 0
	mov rax, [FAULT_RIP]
	CHECK "iret tf", .step + 1
	; At CPL 3 IOPL stays, and IF with it.
	mov qword [user_flags], 0x2
	IN_USER .user
	and eax, 0xffffff
	CHECK "user iret flags", 0x2440d7
	mov qword [user_flags], 0x3002
	IN_USER .user2
	and eax, 0x3200
	CHECK "user iret flags of iopl 3", 0x3200
	mov qword [user_flags], 2
	ret
.trap:	mov rax, [rsp + 8 + 17 * 8]
	mov [FAULT_RIP], rax
	btr qword [rsp + 8 + 19 * 8], 8
	ret
.user:	push UDATA | 3
	push USTACK
	push 0x2572d7
	push UCODE | 3
	push .user_on
	iretq
.user_on:
	pushfq
	pop rax
	push 2
	popfq
	int 0x82
.user2:	push UDATA | 3
	push USTACK
	push 0x3202
	push UCODE | 3
	push .user2_on
	iretq
.user2_on:
	pushfq
	pop rax
	cli
	int 0x82

; Frames of 32 and 16 bits, and where they lead.
test_iret_sizes:
	mov esi, .low
	mov edi, LOW
	mov ecx, .low_end - .low
	rep movsb
	mov rbx, rsp
	sub rsp, 20
	mov dword [rsp], .on32
	mov dword [rsp + 4], CODE64
	mov dword [rsp + 8], 2
	mov dword [rsp + 12], BUFFER + 128
	mov dword [rsp + 16], DATA
	iretd
.on32:	mov rax, rsp
	mov rsp, rbx
	CHECK "iretd", BUFFER + 128
	mov ecx, .on16
	sub rsp, 10
	mov word [rsp], LOW
	mov word [rsp + 2], CODE64
	mov word [rsp + 4], 2
	mov word [rsp + 6], 0x8f00
	mov word [rsp + 8], DATA
	o16 iret
.on16:	CHECK "iret of 16 bits", 0x8f00
	; to compatibility mode of 32 and of 16 bits
	mov esi, UCODE32 | 3
	mov edi, .user32
	call user_run_in
	CHECK "iret to 32-bit code", 0x80000000
	mov esi, UCODE16 | 3
	mov edi, LOW + .low16 - .low
	call user_run_in
	CHECK "iret to 16-bit code", 0x12348000
	; and back out of it, by IRETD from CPL 0 in 32-bit code
	mov [KSP], rsp
	FAR_POINTER .code32, CODE32
	jmp far dword [FAR]
	bits 32
.user32:
	mov eax, 0x7fffffff
	inc eax
	int 0x82
.code32:
	mov ecx, esp
	pushfd
	push dword CODE64
	push dword .home
	iretd
	bits 64
.home:	sub rcx, rsp
	mov rsp, [KSP]
	mov rax, rcx
	CHECK "iretd from 32-bit code", 0
	ret
.low:	mov rax, rsp            ; LOW
	mov rsp, rbx
	jmp rcx
	bits 16
.low16:	mov eax, 0x12347fff
	inc ax
	int 0x82
.low_end:
	bits 64

; Segment registers that an outer level may not have become null.
test_outward:
	mov eax, DATA
	mov ds, eax
	mov fs, eax
	mov eax, UDATA | 3
	mov es, eax
	mov eax, CONFORM
	mov gs, eax
	IN_USER .user
	mov eax, [NOTE]
	CHECK "ds nulled", 0
	mov eax, [NOTE + 4]
	CHECK "es kept", UDATA | 3
	mov eax, [NOTE2]
	CHECK "fs nulled", 0
	mov eax, [NOTE2 + 4]
	CHECK "gs kept", CONFORM
	xor eax, eax
	mov fs, eax
	mov gs, eax
	; RETF outwards
	mov rbx, rsp
	mov [KSP], rsp
	sub qword [KSP], 8
	mov rax, [KSP]
	mov qword [rax], .back
	lea rsp, [rax - 64]
	push UDATA | 3
	push USTACK
	push UCODE | 3
	push .user2
	o64 retf
.back:	CHECK "retf outwards", UCODE | 3
	mov rax, r9
	CHECK "retf outwards rsp", USTACK
	mov rbx, rsp
	push UDATA | 3
	push USTACK
	push UCODE
	push .back
	RAISES "retf cs rpl", 13, UCODE, o64 retf
	mov rsp, rbx
	push UDATA
	push USTACK
	push UCODE | 3
	push .back
	RAISES "retf ss rpl", 13, UDATA, o64 retf
	mov rsp, rbx
	push 0
	push .back
	RAISES "retf null", 13, 0, o64 retf
	mov rsp, rbx
	push CODE64
	mov rax, 1 << 63
	push rax
	RAISES "retf not canonical", 13, 0, o64 retf
	mov rsp, rbx
	ret
.user:	mov eax, ds
	mov ecx, es
	mov [NOTE], eax
	mov [NOTE + 4], ecx
	mov eax, fs
	mov ecx, gs
	mov [NOTE2], eax
	mov [NOTE2 + 4], ecx
	int 0x82
.user2:	mov eax, cs
	mov r9, rsp
	int 0x82

test_far:
	FAR_POINTER .on, CODE64
	jmp far dword [FAR]
	ud2
.on:	FAR_POINTER .called, CODE64
	mov rbx, rsp
	call far dword [FAR]
	CHECK "call far of 32 bits", 8
	mov rax, rsp
	CHECK "retf of 32 bits", rbx
	mov qword [FAR], .called64
	mov word [FAR + 8], CODE64
	mov r8d, 16
	cmp qword [INTEL], 0
	jne .wide
	FAR_POINTER .called, CODE64     ; to AMD's CPUs REX.W means nothing there
	mov r8d, 8
.wide:	o64 call far [FAR]
	CHECK "call far of 64 bits", r8
	mov rax, rsp
	CHECK "retf of 64 bits", rbx
	sub rsp, 32
	mov qword [rsp], .popped
	mov qword [rsp + 8], CODE64
	o64 retf 16
.popped:
	mov rax, rsp
	CHECK "retf n", rbx
	FAR_POINTER .on, DATA
	RAISES "jmp far data", 13, DATA, jmp far dword [FAR]
	FAR_POINTER .on, UCODE
	RAISES "jmp far outwards", 13, UCODE, jmp far dword [FAR]
	FAR_POINTER .on, UCODE_ABSENT
	RAISES "jmp far absent outwards", 13, UCODE_ABSENT, jmp far dword [FAR]
	FAR_POINTER .on, TSS
	RAISES "jmp far tss", 13, TSS, jmp far dword [FAR]
	FAR_POINTER .on, LDT
	RAISES "call far ldt", 13, LDT, call far dword [FAR]
	mov rax, 1 << 47
	mov [FAR], rax
	mov word [FAR + 8], CODE64
	cmp qword [INTEL], 0
	jne .far
	mov qword [FAR], 0              ; AMD's CPUs have no such pointer: a null one
.far:	RAISES "jmp far not canonical", 13, 0, o64 jmp far [FAR]
	FAR_POINTER .user_conform, CONFORM
	IN_USER .user
	CHECK "user jmp far conforming", CONFORM | 3
	FAR_POINTER .on, CODE64
	USER_RAISES "user jmp far inwards", 13, CODE64, jmp far dword [FAR]
	ret
.user:	jmp far dword [FAR]
.user_conform:
	mov eax, cs
	int 0x82
.called:
	mov rax, rbx
	sub rax, rsp
	retf
.called64:
	mov rax, rbx
	sub rax, rsp
	o64 retf

test_gates:
	CALL_GATE .same, CODE64, 0x8c
	FAR_POINTER 0, GATE
	mov rbx, rsp
	call far dword [FAR]
	CHECK "gate of the same level", 16
	jmp far dword [FAR]
.jumped:
	CALL_GATE .same, CODE64, 0x0c
	RAISES "gate absent", 11, GATE, call far dword [FAR]
	CALL_GATE .same, 0, 0x8c
	RAISES "gate to null", 13, 0, call far dword [FAR]
	CALL_GATE .same, DATA, 0x8c
	RAISES "gate to data", 13, DATA, call far dword [FAR]
	CALL_GATE .same, CODE32, 0x8c
	RAISES "gate to 32-bit code", 13, CODE32, call far dword [FAR]
	CALL_GATE .same, UCODE, 0x8c
	RAISES "gate outwards", 13, UCODE, call far dword [FAR]
	CALL_GATE .same, CODE64, 0x8c
	or dword [gdt2 + GATE + 12], 0x0c00
	RAISES "gate upper type", 13, GATE, call far dword [FAR]
	mov rdx, 1 << 47
	CALL_GATE rdx, CODE64, 0x8c
	RAISES "gate not canonical", 13, 0, call far dword [FAR]
	CALL_GATE .inner, CODE64, 0xec
	USER_RAISES "user jmp gate inwards", 13, CODE64, jmp far dword [FAR]
	mov word [FAR + 4], GATE | 3
	CALL_GATE .inner, CODE64, 0x8c
	USER_RAISES "user gate dpl", 13, GATE, call far dword [FAR]
	; inwards: from 64-bit and from 32-bit code
	CALL_GATE .inner, CODE64, 0xec
	mov word [FAR + 4], GATE
	IN_USER .user
	CHECK "gate inwards rsp", RSP0 - 32
	mov rax, r9
	CHECK "gate inwards ss", 0
	mov esi, UCODE32 | 3
	mov edi, .user32
	call user_run_in
	CHECK "gate from 32-bit code", RSP0 - 32
	mov rax, [NOTE]
	CHECK "gate saved cs", UCODE32 | 3
	ret
.same:	mov rax, rbx
	sub rax, rsp
	jz .jumped
	o64 retf
.user:	call far dword [FAR]
	int 0x82
.inner:	mov rax, rsp
	mov r9d, ss
	mov rcx, [rsp + 8]
	mov [NOTE], rcx
	o64 retf
	bits 32
.user32:
	push dword UDATA | 3
	pop ds
	call far [FAR]
	int 0x82
	bits 64

test_ldt:
	xor eax, eax
	lldt ax
	mov ecx, 4 | 8
	RAISES "no ldt", 13, 4 | 8, mov es, ecx
	mov ecx, DATA
	RAISES "lldt of data", 13, DATA, lldt cx
	mov ecx, LDT_TYPE2
	RAISES "lldt absent", 11, LDT_TYPE2, lldt cx
	mov ecx, LDT | 4
	RAISES "lldt of the ldt", 13, LDT | 4, lldt cx
	mov eax, LDT
	lldt ax
	xor eax, eax
	sldt ax
	CHECK "sldt", LDT
	mov ecx, 4 | 8 | 3
	mov fs, ecx
	mov ecx, 0xc0000100
	rdmsr
	CHECK "ldt data base", 0x200000
	mov ecx, 4 | 0x18
	RAISES "ldt limit", 13, 4 | 0x18, mov es, ecx
	FAR_POINTER .on, 4
	jmp far dword [FAR]
.on:	mov ecx, cs
	FAR_POINTER .on2, CODE64
	jmp far dword [FAR]
.on2:	mov eax, ecx
	CHECK "jmp far ldt code", 4
	USER_RAISES "user lldt", 13, 0, lldt ax
	xor eax, eax
	mov fs, eax
	lldt ax
	ret

test_syscall:
	mov ecx, 0xc0000080
	rdmsr
	or eax, 1
	wrmsr
	mov ecx, 0xc0000081
	xor eax, eax
	mov edx, SYS | (SYS + 0x10 | 3) << 16
	wrmsr
	mov ecx, 0xc0000082
	mov eax, .entry
	xor edx, edx
	wrmsr
	inc ecx
	wrmsr                   ; CSTAR
	inc ecx
	mov eax, 0x4700
	wrmsr
	IN_USER .user
	CHECK "sysret to 64 bits cs", SYS + 0x20 | 3
	mov rax, r8
	CHECK "sysret ss", SYS + 0x18 | 3
	mov rax, r9
	CHECK "sysret flags", 0x2440d7
	mov rax, [NOTE]
	CHECK "syscall cs ss", SYS | (SYS + 8) << 32
	; back to 32-bit code
	mov [KSP], rsp
	mov ecx, .user32
	mov r11d, 2
	mov rsp, USTACK
	o32 sysret
.to32:	CHECK "sysret to 32 bits", SYS + 0x10 | 3
	; SYSCALL in compatibility mode: AMD's only
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], .user32_ud
	mov qword [TRY_AT], .user32_call
	mov esi, UCODE32 | 3
	mov edi, .user32_call
	call user_run_in
	mov qword [FAULT_RESUME], 0
	mov rax, [FAULT_VECTOR]
	cmp qword [INTEL], 0
	jne .is_intel
	cmp rax, -1
	jne .is_intel
	mov eax, 6
.is_intel:
	CHECK "syscall of 32-bit code", 6
	mov rcx, 1 << 47
	mov r11d, 2
	mov rbx, rsp
	TRY_KEEP jmp .sysret
	mov rsp, rbx
	mov eax, 13
	cmp qword [INTEL], 0
	je .amd
	mov eax, [FAULT_VECTOR]
.amd:	CHECK "sysret not canonical", 13
	ret
.sysret:
	cmp qword [INTEL], 0
	je .no_sysret
	o64 sysret
.no_sysret:
	jmp [FAULT_RESUME]
.user:	push 0x2440d7
	popfq
	syscall
	pushfq
	pop r9
	push 2
	popfq
	mov eax, cs
	mov r8d, ss
	int 0x82
.entry:	mov eax, cs
	mov [NOTE], eax
	mov eax, ss
	mov [NOTE + 4], eax
	o64 sysret
	bits 32
.user32:
	mov eax, cs
	mov ebx, [KSP]
	sub ebx, 8
	mov [KSP], ebx
	mov dword [ebx], .to32
	mov dword [ebx + 4], 0
	int 0x82
.user32_call:
	syscall
.user32_ud:
	int 0x82
	bits 64

test_sysenter:
	mov ecx, 0x174
	xor eax, eax
	xor edx, edx
	wrmsr
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], .none_on
	mov qword [TRY_AT], .none
	IN_USER .none
	mov qword [FAULT_RESUME], 0
	mov rax, [FAULT_VECTOR]
	cmp qword [INTEL], 0
	jne .no_cs
	cmp eax, 6              ; AMD's have it in legacy mode only
	jne .no_cs
	mov eax, 13
.no_cs:	CHECK "sysenter without cs", 13
	mov ecx, 0x174
	mov eax, SYS
	wrmsr
	inc ecx
	mov eax, RSP0
	wrmsr
	inc ecx
	mov eax, .entry
	wrmsr
	cmp qword [INTEL], 0
	je .amd
	IN_USER .user
	CHECK "sysenter cs ss", SYS | (SYS + 8) << 32
	mov rax, [NOTE2]
	CHECK "sysenter rsp", RSP0
	mov rax, [NOTE3]
	CHECK "sysenter if", 0
	mov eax, r8d
	CHECK "sysexit cs", SYS + 0x20 | 3
	mov eax, r9d
	CHECK "sysexit ss", SYS + 0x28 | 3
	mov esi, UCODE32 | 3
	mov edi, .user32
	call user_run_in
	CHECK "sysenter of 32-bit code", SYS + 0x10 | 3
	USER_RAISES "user sysexit", 13, 0, sysexit
	mov rdx, 1 << 47
	mov ecx, USTACK
	RAISES "sysexit not canonical", 13, 0, o64 sysexit
	ret
.amd:	PRINT {"PASS sysenter cs ss", 10, "PASS sysenter rsp", 10, "PASS sysenter if", 10, "PASS sysexit cs", 10}
	PRINT {"PASS sysexit ss", 10, "PASS sysenter of 32-bit code", 10, "PASS user sysexit", 10}
	PRINT {"PASS sysexit not canonical", 10}
	ret
.none:	sysenter
.none_on:
	int 0x82
.user:
	mov edx, .user_on
	mov ecx, USTACK
	sysenter
.user_on:
	mov r8d, cs
	mov r9d, ss
	int 0x82
.entry:	mov eax, cs
	mov [NOTE], eax
	mov eax, ss
	mov [NOTE + 4], eax
	mov [NOTE2], rsp
	pushfq
	pop rax
	and eax, 0x20200
	mov [NOTE3], rax
	mov rax, [NOTE]
	cmp edx, .user_on
	jne .exit32
	o64 sysexit
.exit32:
	sysexit
	bits 32
.user32:
	mov edx, .user32_on
	mov ecx, USTACK
	sysenter
.user32_on:
	mov eax, cs
	int 0x82
	bits 64
END_GUEST
