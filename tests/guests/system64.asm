; Segments, privilege levels, gates and control registers in 64-bit and compatibility mode.
%include "guest64.inc"

%define UDATA 0x23
%define UCODE 0x2b
%define UCODE32 0x33
%define TSS 0x38
%define GATE 0x48
%define ABSENT 0x58
%define CONFORM 0x60
%define READONLY 0x68
%define EXECONLY 0x70
%define BOTH 0x78               ; L and D
%define TSSBUSY 0x80

%define KSP (SCRATCH + 0)
%define NOTE (SCRATCH + 8)      ; what handlers saw
%define NOTE2 (SCRATCH + 16)
%define NOTE3 (SCRATCH + 24)
%define NOTE4 (SCRATCH + 32)
%define STEPS (SCRATCH + 40)
%define FAR (SCRATCH + 48)
%define BUFFER 0x203000
%define RSP0 0x208000
%define IST1 0x209008           ; not aligned: the CPU aligns it
%define USTACK 0x20a000

	align 8
gdt2:	dq 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
	dq 0x00cff3000000ffff, 0x00affb000000ffff, 0x00cffb000000ffff
	dq 0, 0                 ; TSS
	dq 0, 0                 ; GATE
	dq 0x00cf13000000ffff, 0x00af9f000000ffff, 0x00cf91000000ffff, 0x00cf99000000ffff
	dq 0x00ef9b000000ffff
	dq 0, 0                 ; TSSBUSY
gdt2_ptr:
	dw $ - gdt2 - 1
	dq gdt2
	align 8
tss:	dd 0
	dq RSP0, 0, 0, 0
	dq IST1
	times 6 dq 0
	dq 0
	dw 0, 0x68
	times 32 db 0xff        ; ports 0 to 255
	db 0xff
tss_end:

; AL = vector, RDX = handler, AH = type byte, CL = IST
set_gate:
	movzx ebx, al
	shl ebx, 4
	add ebx, idt
	mov [rbx], dx
	mov [rbx + 4], cl
	mov [rbx + 5], ah
	shr rdx, 16
	mov [rbx + 6], dx
	shr rdx, 16
	mov [rbx + 8], edx
	ret
%macro GATE_TO 4                ; vector, handler, type, IST
	mov rdx, %2
	mov ax, %1 | %3 << 8
	mov cl, %4
	call set_gate
%endmacro

; Goes to RDI at CPL 3; `int 0x82` there comes back here. All other registers are what they were there.
user_run:
	mov [KSP], rsp
	push UDATA
	push USTACK
	push 2
	push UCODE
	push rdi
	iretq
back_home:
	mov rsp, [KSP]
	push rax
	mov eax, DATA
	mov ss, eax
	pop rax
	ret
%macro USER 1+                  ; one instruction at CPL 3; EAX = vector or -1
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], %%on
	jmp %%go
%%user:	%1
%%on:	int 0x82
%%go:	mov edi, %%user
	call user_run
	mov qword [FAULT_RESUME], 0
	mov eax, [FAULT_VECTOR]
%endmacro
%macro ERROR_IS 2
	mov eax, [FAULT_ERROR]
	CHECK %1, %2
%endmacro
;> PASS str
;> PASS ltr busy
;> PASS ltr busy error
%macro FAULTS 3+                ; name, vector, instruction
	TRY %3
	CHECK %1, %2
%endmacro

main:	lgdt [gdt2_ptr]
	mov eax, tss
	mov rdx, 0x0000890000000000 | (tss_end - tss - 1)
	mov ecx, eax
	and ecx, 0xffffff
	shl rcx, 16
	or rdx, rcx
	mov [gdt2 + TSS], rdx
	bts rdx, 41
	mov [gdt2 + TSSBUSY], rdx
	mov eax, TSS
	ltr ax
	str eax
	CHECK "str", TSS
	mov ecx, TSSBUSY
	TRY ltr cx
	CHECK "ltr busy", 13
	ERROR_IS "ltr busy error", TSSBUSY
	or qword [pml4], 4
	or qword [pdpt], 4
	or qword [page_dirs], 4
	or qword [page_dirs + 8], 4
	mov rax, cr3
	mov cr3, rax
	GATE_TO 0x82, back_home, 0xee, 0
	GATE_TO 0x83, ist_handler, 0xee, 1
	GATE_TO 0x84, rsp0_handler, 0xee, 0
	GATE_TO 1, step_handler, 0x8e, 0
	mov byte [idt + 4 * 16 + 5], 0xee
	call test_selectors
	call test_user
	call test_syscall
	call test_stacks
	call test_call_gate
	call test_compat
	call test_nested
	call test_step
	call test_control
	call test_msrs
	call test_strings
	call test_misc
	ret

;> PASS ds absent
;> PASS ds absent error
;> PASS ss absent
;> PASS ss absent error
;> PASS ss read-only
;> PASS ss null
;> PASS ss null rpl 3
;> PASS ds beyond
;> PASS ds beyond error
;> PASS fs execute-only
;> PASS jmp data
;> PASS jmp null
;> PASS jmp L and D
;> PASS jmp L and D error
;> PASS iret null cs
;> PASS iret nt
;> PASS lar
;> PASS lar null
;> PASS lsl
;> PASS lsl tss
;> PASS verw read-only
;> PASS verr execute-only
;> PASS verr read-only
;> PASS accessed
test_selectors:
	mov ecx, ABSENT
	FAULTS "ds absent", 11, mov ds, ecx
	ERROR_IS "ds absent error", ABSENT
	FAULTS "ss absent", 12, mov ss, ecx
	ERROR_IS "ss absent error", ABSENT
	mov ecx, READONLY
	FAULTS "ss read-only", 13, mov ss, ecx
	xor ecx, ecx
	TRY mov ss, ecx
	mov ecx, DATA
	mov ss, ecx
	CHECK "ss null", 0xffffffff
	mov ecx, 3
	FAULTS "ss null rpl 3", 13, mov ss, ecx
	mov ecx, 0x4ff8
	FAULTS "ds beyond", 13, mov ds, ecx
	ERROR_IS "ds beyond error", 0x4ff8
	mov ecx, EXECONLY
	FAULTS "fs execute-only", 13, mov fs, ecx
	mov dword [FAR], .ud
	mov word [FAR + 4], DATA
	FAULTS "jmp data", 13, jmp far dword [FAR]
	mov word [FAR + 4], 0
	FAULTS "jmp null", 13, jmp far dword [FAR]
	mov word [FAR + 4], BOTH
	FAULTS "jmp L and D", 13, jmp far dword [FAR]
	ERROR_IS "jmp L and D error", BOTH
	mov rbp, rsp
	push DATA
	push rbp
	push 2
	push 0
	push main
	TRY iretq
	mov rsp, rbp
	CHECK "iret null cs", 13
	pushfq
	push 0x4002
	popfq
	TRY iretq
	popfq
	CHECK "iret nt", 13
	mov ecx, DATA
	lar eax, ecx
	setz bl
	shl ebx, 24
	xor eax, ebx
	and eax, 0x1f0ff00
	CHECK "lar", 0x1c09300
	xor ecx, ecx
	mov eax, 7
	lar eax, ecx
	CHECK "lar null", 7
	mov ecx, DATA
	lsl eax, ecx
	CHECK "lsl", 0xffffffff
	mov ecx, TSS
	lsl eax, ecx
	CHECK "lsl tss", tss_end - tss - 1
	mov ecx, READONLY
	xor eax, eax
	verw cx
	setz al
	CHECK "verw read-only", 0
	mov ecx, EXECONLY
	xor eax, eax
	verr cx
	setz al
	CHECK "verr execute-only", 0
	mov ecx, READONLY
	xor eax, eax
	verr cx
	setz al
	CHECK "verr read-only", 1
	and byte [gdt2 + READONLY + 5], 0xfe
	mov ds, ecx
	mov ecx, DATA
	mov ds, ecx
	mov al, [gdt2 + READONLY + 5]
	and eax, 1
	CHECK "accessed", 1
	ret
.ud:	ud2

;> PASS user cs
;> PASS user cli
;> PASS user hlt
;> PASS user mov cr0
;> PASS user in
;> PASS user in allowed
;> PASS user in 16 bits half allowed
;> PASS user in beyond map
;> PASS user rdmsr
;> PASS user int of dpl 0
;> PASS user int error
;> PASS user lgdt
;> PASS user sgdt
;> PASS user sgdt umip
;> PASS user rdtsc
;> PASS user rdtsc tsd
;> PASS user popf if
;> PASS user kernel selector
test_user:
	mov edi, .cs
	call user_run
	CHECK "user cs", UCODE
	USER cli
	CHECK "user cli", 13
	USER hlt
	CHECK "user hlt", 13
	USER mov rax, cr0
	CHECK "user mov cr0", 13
	USER in al, 0x60
	CHECK "user in", 13
	btr dword [tss + 0x68 + 12], 1
	USER in al, 0x61
	CHECK "user in allowed", 0xffffffff
	USER in ax, 0x61
	CHECK "user in 16 bits half allowed", 13
	mov edx, 0x200
	USER in al, dx
	CHECK "user in beyond map", 13
	mov ecx, 0x1b
	USER rdmsr
	CHECK "user rdmsr", 13
	USER int 0x81
	CHECK "user int of dpl 0", 13
	ERROR_IS "user int error", 0x81 * 8 + 2
	USER lgdt [gdt2_ptr]
	CHECK "user lgdt", 13
	USER sgdt [BUFFER]
	CHECK "user sgdt", 0xffffffff
	mov rax, cr4
	bts rax, 11
	mov cr4, rax
	USER sgdt [BUFFER]
	CHECK "user sgdt umip", 13
	mov rax, cr4
	btr rax, 11
	mov cr4, rax
	USER rdtsc
	CHECK "user rdtsc", 0xffffffff
	mov rax, cr4
	or eax, 4
	mov cr4, rax
	USER rdtsc
	CHECK "user rdtsc tsd", 13
	mov rax, cr4
	and eax, ~4
	mov cr4, rax
	mov edi, .popf
	call user_run
	and eax, 0x3200
	CHECK "user popf if", 0
	mov ecx, DATA
	USER mov ds, ecx
	CHECK "user kernel selector", 13
	ret
.cs:	mov eax, cs
	int 0x82
.popf:	push 0x3202
	popfq
	pushfq
	pop rax
	int 0x82

;> PASS syscall off
;> PASS user sysret
;> PASS syscall cs
;> PASS syscall ss
;> PASS syscall rcx
;> PASS syscall r11
;> PASS syscall flags
;> PASS sysret cs
;> PASS sysret ss
;> PASS sysret r11
test_syscall:
	USER syscall
	CHECK "syscall off", 6
	mov ecx, 0xc0000080
	rdmsr
	or eax, 1
	wrmsr
	mov ecx, 0xc0000081
	xor eax, eax
	mov edx, 0x001b0008
	wrmsr
	mov ecx, 0xc0000082
	mov eax, .entry
	xor edx, edx
	wrmsr
	mov ecx, 0xc0000084
	mov eax, 0x401          ; CF and DF
	wrmsr
	USER o64 sysret
	CHECK "user sysret", 13
	mov edi, .user
	call user_run
	mov eax, [NOTE]
	CHECK "syscall cs", CODE64
	mov eax, [NOTE + 4]
	CHECK "syscall ss", DATA
	mov rax, [NOTE2]
	CHECK "syscall rcx", .after
	mov rax, [NOTE3]
	CHECK "syscall r11", 0x403
	mov rax, [NOTE4]
	CHECK "syscall flags", 2
	mov eax, r8d
	CHECK "sysret cs", UCODE
	mov eax, r9d
	CHECK "sysret ss", UDATA
	mov rax, r10
	CHECK "sysret r11", 0x403
	ret
.user:	std
	stc
	syscall
.after:	mov r8d, cs
	mov r9d, ss
	pushfq
	pop r10
	cld
	int 0x82
.entry:	mov [NOTE2], rcx
	mov [NOTE3], r11
	mov ecx, cs
	mov [NOTE], ecx
	mov ecx, ss
	mov [NOTE + 4], ecx
	mov rcx, rsp
	mov rsp, RSP0
	pushfq
	pop qword [NOTE4]
	mov rsp, rcx
	mov rcx, [NOTE2]
	o64 sysret

;> PASS ist rsp
;> PASS ist ss
;> PASS ist saved rsp
;> PASS rsp0 rsp
;> PASS rsp0 ss
;> PASS same level rsp
;> PASS same level ss
test_stacks:
	mov rbp, rsp
	int 0x83
	mov rax, [NOTE]
	CHECK "ist rsp", (IST1 & ~15) - 40
	mov rax, [NOTE2]
	CHECK "ist ss", DATA
	mov rax, [NOTE3]
	CHECK "ist saved rsp", rbp
	mov edi, .user
	call user_run
	mov rax, [NOTE]
	CHECK "rsp0 rsp", RSP0 - 40
	mov rax, [NOTE2]
	CHECK "rsp0 ss", 0
	mov rsp, rbp
	sub rsp, 3              ; aligned down
	lea rbx, [rsp - 40]
	and rbx, ~15
	add rbx, 8
	lea rcx, [rsp - 0]
	and rcx, ~15
	sub rcx, 40
	int 0x84
	mov rsp, rbp
	mov rax, [NOTE]
	CHECK "same level rsp", rcx
	mov rax, [NOTE2]
	CHECK "same level ss", DATA
	ret
.user:	int 0x84
	int 0x82
ist_handler:
rsp0_handler:
	mov [NOTE], rsp
	push rax
	mov eax, ss
	mov [NOTE2], rax
	mov rax, [rsp + 32]
	mov [NOTE3], rax
	pop rax
	iretq

;> PASS gate rsp
;> PASS gate ss
;> PASS gate frame cs
;> PASS gate frame rsp
;> PASS gate return
;> PASS gate of dpl 0
;> PASS gate of dpl 0 error
test_call_gate:
	mov eax, gate_handler
	mov edx, eax
	and eax, 0xffff
	or eax, CODE64 << 16
	and edx, 0xffff0000
	or edx, 0xec00
	mov [gdt2 + GATE], eax
	mov [gdt2 + GATE + 4], edx
	mov word [FAR + 4], GATE | 3
	mov edi, .user
	call user_run
	mov rax, [NOTE]
	CHECK "gate rsp", RSP0 - 32
	mov rax, [NOTE2]
	CHECK "gate ss", 0
	mov rax, [NOTE3]
	CHECK "gate frame cs", UCODE
	mov rax, [NOTE4]
	CHECK "gate frame rsp", USTACK
	mov eax, r8d
	CHECK "gate return", UCODE
	mov byte [gdt2 + GATE + 5], 0x8c
	USER call far dword [FAR]
	CHECK "gate of dpl 0", 13
	ERROR_IS "gate of dpl 0 error", GATE
	ret
.user:	call far dword [FAR]
	mov r8d, cs
	int 0x82
gate_handler:
	mov [NOTE], rsp
	mov eax, ss
	mov [NOTE2], rax
	mov rax, [rsp + 8]
	mov [NOTE3], rax
	mov rax, [rsp + 16]
	mov [NOTE4], rax
	o64 retf

;> PASS compat inc
;> PASS compat stack
;> PASS compat pusha
;> PASS compat daa
;> PASS compat aaa
;> PASS compat into
;> PASS compat bound
;> PASS compat les
;> PASS compat wrap
;> PASS compat ring 0
test_compat:
	mov qword [FAULT_RESUME], .on
	mov [KSP], rsp
	mov dword [BUFFER], 2
	mov dword [BUFFER + 4], 9
	mov dword [BUFFER + 8], 0x12345678
	mov word [BUFFER + 12], UDATA
	mov qword [FAULT_VECTOR], -1
	push UDATA
	push USTACK
	push 2
	push UCODE32
	push .code
	mov eax, UDATA
	mov ds, eax
	mov es, eax
	push .home
	pop qword [KSP + 0]
	mov rax, rsp
	lea rax, [rsp + 40]
	mov [KSP], rax
	sub qword [KSP], 8
	mov rax, [KSP]
	mov qword [rax], .home
	; the frame lies below: make it again under that word
	mov rsp, rax
	push UDATA
	push USTACK
	push 2
	push UCODE32
	push .code
	iretq
	bits 32
.code:	mov eax, 0xffffffff
	inc eax                 ; one byte, no REX
	mov [NOTE], eax
	push dword 0x11223344
	mov [NOTE2], esp
	pop eax
	mov ecx, 5
	pushad
	mov ecx, 6
	popad
	mov [NOTE3], ecx
	mov al, 0x79
	add al, 0x35
	daa
	mov [NOTE4], al
	mov ax, 0x0109
	add al, 3
	aaa
	mov [NOTE4 + 4], ax
	les esi, [BUFFER + 8]
	mov edi, 0xffffffff
	mov bl, [edi + BUFFER + 1] ; wraps at 4 GiB
	mov ecx, 10
	mov al, 0x7f
	add al, 1
	into
.on:	cmp dword [FAULT_VECTOR], 4
	jne .stop
	mov dword [FAULT_RESUME], .on2
	bound ecx, [BUFFER]
.on2:
.stop:	int 0x82
	bits 64
.home:	mov r8, [FAULT_VECTOR]
	mov qword [FAULT_RESUME], 0
	mov eax, DATA
	mov ds, eax
	mov es, eax
	mov eax, [NOTE]
	CHECK "compat inc", 0
	mov eax, [NOTE2]
	CHECK "compat stack", USTACK - 4
	mov eax, [NOTE3]
	CHECK "compat pusha", 5
	movzx eax, byte [NOTE4]
	CHECK "compat daa", 0x14
	movzx eax, word [NOTE4 + 4]
	CHECK "compat aaa", 0x0202
	mov eax, 4
	CHECK "compat into", 4
	mov rax, r8
	CHECK "compat bound", 5
	mov eax, esi
	CHECK "compat les", 0x12345678
	movzx eax, bl
	CHECK "compat wrap", 2
	; and at CPL 0, where an interrupt finds 64-bit handlers
	mov dword [FAR], .ring0
	mov word [FAR + 4], CODE32
	jmp far dword [FAR]
	bits 32
.ring0:	mov eax, 41
	int 0x84
	inc eax
	jmp CODE64:.done
	bits 64
.done:	CHECK "compat ring 0", 42
	ret

;> PASS #DF
;> PASS #DF error
;> PASS #UD through an absent gate
;> PASS .. error
;> PASS int through an absent gate
;> PASS .. error
;> PASS int of no gate
;> PASS bad handler segment
;> PASS .. error
test_nested:
	and byte [idt + 14 * 16 + 5], 0x7f
	mov rsi, 0x123456789a
	TRY mov rax, [rsi]
	CHECK "#DF", 8
	ERROR_IS "#DF error", 0
	or byte [idt + 14 * 16 + 5], 0x80
	and byte [idt + 6 * 16 + 5], 0x7f
	TRY ud2
	CHECK "#UD through an absent gate", 11
	ERROR_IS ".. error", 6 * 8 + 3
	or byte [idt + 6 * 16 + 5], 0x80
	and byte [idt + 0x81 * 16 + 5], 0x7f
	TRY int 0x81
	CHECK "int through an absent gate", 11
	ERROR_IS ".. error", 0x81 * 8 + 2
	mov byte [idt + 0x81 * 16 + 5], 0x85
	TRY int 0x81
	CHECK "int of no gate", 13
	mov byte [idt + 0x81 * 16 + 5], 0x8e
	mov word [idt + 0x81 * 16 + 2], CODE32
	TRY int 0x81
	CHECK "bad handler segment", 13
	ERROR_IS ".. error", CODE32
	mov word [idt + 0x81 * 16 + 2], CODE64
	ret

;> PASS steps
;> PASS steps over mov ss
;> PASS steps of rep
;> PASS step dr6
;> PASS step at first
test_step:
	mov qword [STEPS], 0
	xor eax, eax
	mov dr6, rax
	pushfq
	or dword [rsp], 0x100
	popfq
.first:	nop
	nop
	pushfq
	and dword [rsp], ~0x100
	popfq
	mov eax, [STEPS]
	CHECK "steps", 5
	mov qword [STEPS], 0
	mov ecx, DATA
	pushfq
	or dword [rsp], 0x100
	popfq
	mov ss, ecx
	nop
	pushfq
	and dword [rsp], ~0x100
	popfq
	mov eax, [STEPS]
	CHECK "steps over mov ss", 4
	mov qword [STEPS], 0
	mov edi, BUFFER
	mov ecx, 3
	pushfq
	or dword [rsp], 0x100
	popfq
	rep stosb
	pushfq
	and dword [rsp], ~0x100
	popfq
	mov eax, [STEPS]
	CHECK "steps of rep", 6
	mov rax, dr6
	and eax, 0x4000
	CHECK "step dr6", 0x4000
	mov rax, [NOTE4]
	CHECK "step at first", .first + 1
	ret
step_handler:
	cmp qword [STEPS], 0
	jne .more
	cmp qword [NOTE3], 0x5354
	je .more
	push qword [rsp]
	pop qword [NOTE4]
	mov qword [NOTE3], 0x5354
.more:	inc qword [STEPS]
	iretq

;> PASS cr0 nw without cd
;> PASS cr0 pg without pe
;> PASS cr0 upper half
;> PASS cr0 pg off in 64-bit mode
;> PASS cr4 pae off
;> PASS cr4 reserved
;> PASS cr3 reserved
;> PASS cr8 reserved
;> PASS cr8
;> PASS cr2
;> PASS lmsw keeps pe
;> PASS smsw
;> PASS clts
;> PASS xsetbv off
;> PASS xsetbv 0
;> PASS xsetbv of avx without sse
;> PASS xsetbv of index 1
;> PASS xgetbv
test_control:
	mov rcx, cr0
	mov rax, rcx
	bts rax, 29
	FAULTS "cr0 nw without cd", 13, mov cr0, rax
	mov rax, rcx
	and rax, ~1
	FAULTS "cr0 pg without pe", 13, mov cr0, rax
	mov rax, rcx
	bts rax, 40
	FAULTS "cr0 upper half", 13, mov cr0, rax
	mov rax, rcx
	btr rax, 31
	FAULTS "cr0 pg off in 64-bit mode", 13, mov cr0, rax
	mov rcx, cr4
	mov rax, rcx
	btr rax, 5
	FAULTS "cr4 pae off", 13, mov cr4, rax
	mov rax, rcx
	bts rax, 31
	FAULTS "cr4 reserved", 13, mov cr4, rax
	mov rax, cr3
	bts rax, 60
	FAULTS "cr3 reserved", 13, mov cr3, rax
	mov eax, 16
	FAULTS "cr8 reserved", 13, mov cr8, rax
	mov eax, 5
	mov cr8, rax
	xor eax, eax
	mov rax, cr8
	CHECK "cr8", 5
	xor eax, eax
	mov cr8, rax
	mov rax, 0x123456789abcdef0
	mov cr2, rax
	xor eax, eax
	mov rax, cr2
	CHECK "cr2", 0x123456789abcdef0
	mov eax, 8              ; TS, no PE
	lmsw ax
	mov rax, cr0
	and eax, 15
	CHECK "lmsw keeps pe", 9
	xor eax, eax
	smsw ax
	and eax, 15
	CHECK "smsw", 9
	clts
	mov rax, cr0
	and eax, 8
	CHECK "clts", 0
	xor ecx, ecx
	xor edx, edx
	mov eax, 3
	FAULTS "xsetbv off", 6, xsetbv
	mov rax, cr4
	bts rax, 18
	mov cr4, rax
	xor eax, eax
	FAULTS "xsetbv 0", 13, xsetbv
	mov eax, 5
	FAULTS "xsetbv of avx without sse", 13, xsetbv
	inc ecx
	mov eax, 3
	FAULTS "xsetbv of index 1", 13, xsetbv
	xor ecx, ecx
	mov eax, 3
	xsetbv
	xor eax, eax
	xgetbv
	CHECK "xgetbv", 3
	ret

;> PASS efer lme off
;> PASS efer reserved
;> PASS lstar not canonical
;> PASS fs base not canonical
;> PASS fs base
;> PASS fs base by selector
;> PASS swapgs
;> PASS pat reserved type
;> PASS sysenter cs
;> PASS tsc
;> PASS tsc adjust
;> PASS rdpmc
test_msrs:
	mov ecx, 0xc0000080
	rdmsr
	btr eax, 8
	FAULTS "efer lme off", 13, wrmsr
	rdmsr
	bts edx, 20
	FAULTS "efer reserved", 13, wrmsr
	mov ecx, 0xc0000082
	mov edx, 0x80000000
	FAULTS "lstar not canonical", 13, wrmsr
	mov ecx, 0xc0000100
	FAULTS "fs base not canonical", 13, wrmsr
	mov edx, 0
	mov eax, BUFFER
	wrmsr
	mov dword [BUFFER + 16], 0xcafe
	mov eax, [fs:16]
	CHECK "fs base", 0xcafe
	mov eax, DATA
	mov fs, eax
	rdmsr
	CHECK "fs base by selector", 0
	mov ecx, 0xc0000102
	mov eax, 0x1234
	mov edx, 0
	wrmsr
	swapgs
	mov ecx, 0xc0000101
	rdmsr
	swapgs
	CHECK "swapgs", 0x1234
	mov ecx, 0x277
	rdmsr
	mov al, 2
	FAULTS "pat reserved type", 13, wrmsr
	mov ecx, 0x174
	mov eax, 0x18
	xor edx, edx
	wrmsr
	xor eax, eax
	rdmsr
	CHECK "sysenter cs", 0x18
	rdtsc
	mov r9d, edx
	mov ecx, 0x10
	mov edx, 0x1000
	xor eax, eax
	wrmsr
	rdtsc
	mov eax, edx
	CHECK "tsc", 0x1000, 0x1001
	mov ecx, 0x3b
	xor eax, eax
	xor edx, edx
	wrmsr
	rdtsc
	mov eax, edx
	CHECK "tsc adjust", r9, 0xfff
	xor ecx, ecx
	mov ecx, 0x12345678
	FAULTS "rdpmc", 13, rdpmc
	ret

;> PASS movs fault
;> PASS movs fault rcx
;> PASS movs fault rdi
;> PASS movs fault rsi
;> PASS movs fault cr2
;> PASS movs error
;> PASS movs down fault
;> PASS movs down rcx
;> PASS movs down cr2
;> PASS movs overlap
;> PASS stos 0
;> PASS scas rcx
;> PASS cmps rcx
;> PASS movs of 32-bit addresses
test_strings:
	mov qword [page_dirs + 5 * 8], 0
	invlpg [0xa00000]
	mov esi, BUFFER
	mov edi, 0xa00000 - 16
	mov ecx, 64
	FAULTS "movs fault", 14, rep movsb
	mov eax, ecx
	CHECK "movs fault rcx", 48
	mov eax, edi
	CHECK "movs fault rdi", 0xa00000
	mov eax, esi
	CHECK "movs fault rsi", BUFFER + 16
	mov rax, [FAULT_CR2]
	CHECK "movs fault cr2", 0xa00000
	ERROR_IS "movs error", 2
	mov esi, BUFFER + 256
	mov edi, 0xc00000 + 56
	mov ecx, 64
	std
	FAULTS "movs down fault", 14, rep movsq
	cld
	mov eax, ecx
	CHECK "movs down rcx", 56
	mov rax, [FAULT_CR2]
	CHECK "movs down cr2", 0xbffff8
	mov qword [page_dirs + 5 * 8], 0xa00083
	mov byte [BUFFER], 7
	mov esi, BUFFER
	mov edi, BUFFER + 1
	mov ecx, 100
	rep movsb
	movzx eax, byte [BUFFER + 100]
	CHECK "movs overlap", 7
	xor ecx, ecx
	mov rdi, 0x123456789a
	TRY rep stosb
	CHECK "stos 0", 0xffffffff
	mov byte [BUFFER + 40], 9
	mov edi, BUFFER
	mov ecx, 100
	mov al, 9
	repne scasb
	mov eax, ecx
	CHECK "scas rcx", 59
	mov esi, BUFFER
	mov edi, BUFFER + 20
	mov ecx, 100
	repe cmpsb
	mov eax, ecx
	CHECK "cmps rcx", 79
	mov rsi, 0xffffffff00000000 + BUFFER
	mov rdi, 0xffffffff00000000 + BUFFER + 512
	mov rcx, 0xffffffff00000008
	a32 rep movsb
	mov rax, rdi
	CHECK "movs of 32-bit addresses", BUFFER + 520
	ret

;> PASS bt behind
;> PASS bts far ahead
;> PASS enter
;> PASS enter rbp
;> PASS pop [rsp]
;> PASS pushf
;> PASS sgdt
;> PASS xlat
;> PASS ret far
;> PASS push fs
test_misc:
	mov dword [BUFFER + 96], 0x80000000
	mov eax, -1
	xor edx, edx
	bt [BUFFER + 100], eax
	setc dl
	mov eax, edx
	CHECK "bt behind", 1
	mov qword [BUFFER + 1024], 0
	mov eax, 8192 + 3
	lock bts [BUFFER], eax
	mov eax, [BUFFER + 1024]
	CHECK "bts far ahead", 8
	mov rcx, rsp
	mov ebp, BUFFER + 64
	mov qword [BUFFER + 56], 0x77
	enter 32, 2
	mov rax, [rbp - 8]
	sub rcx, rsp
	mov rdx, rbp
	leave
	CHECK "enter", 0x77
	mov rax, rcx
	CHECK "enter rbp", 8 + 16 + 32
	push 0
	push 0x55
	pop qword [rsp]         ; the address is that after the pop
	pop rax
	CHECK "pop [rsp]", 0x55
	std
	stc
	pushfq
	cld
	pop rax
	CHECK "pushf", 0x403, 0x4d7
	sgdt [BUFFER]
	movzx eax, word [BUFFER]
	CHECK "sgdt", gdt2_ptr - gdt2 - 1
	mov byte [BUFFER + 5], 0x66
	mov ebx, BUFFER
	mov eax, 5
	xlatb
	CHECK "xlat", 0x66
	push CODE64
	push .far
	o64 retf
	ud2
.far:	mov eax, 1
	CHECK "ret far", 1
	push fs
	pop rax
	CHECK "push fs", DATA
	ret
END_GUEST
