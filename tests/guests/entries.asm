; What kernels do at every entry and exit, and engines do by short ways: SYSCALL, SYSRET, STAC, CLAC, STI, CLI, SWAPGS,
; PUSHFQ; each also where the short way must not be taken. Most come several times: the first one may prepare it.
%include "guest64.inc"

%define UDATA 0x23
%define UCODE 0x2b
%define TSS 0x38
%define CODE_1 0x49             ; of privilege level 1
%define DATA_1 0x51

%define KSP (SCRATCH + 0)
%define S_RCX (SCRATCH + 8)     ; what the entry saw
%define S_R11 (SCRATCH + 16)
%define S_FLAGS (SCRATCH + 24)
%define S_CS (SCRATCH + 32)
%define S_SS (SCRATCH + 40)
%define S_RSP (SCRATCH + 48)
%define R_RIP (SCRATCH + 56)    ; to return to, and with, if not 0
%define R_FLAGS (SCRATCH + 64)
%define R_TS (SCRATCH + 72)     ; set CR0.TS on the way
%define STEPS (SCRATCH + 80)
%define FRAME (SCRATCH + 0x100) ; what a handler found on its stack
%define RSP0 0x208000
%define USTACK 0x20a000
%define UPAGE 0x400000

	align 8
gdt2:	dq 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
	dq 0x00cff3000000ffff, 0x00affb000000ffff, 0x00cffb000000ffff
	dq 0, 0                 ; TSS
	dq 0x00afbb000000ffff, 0x00cfb3000000ffff
gdt2_ptr:
	dw $ - gdt2 - 1
	dq gdt2
	align 8
tss:	dd 0
	dq RSP0, 0, 0, 0
	times 7 dq 0
	dq 0
	dw 0, 0x68
tss_end:

; AL = vector, RDX = handler, AH = type byte
set_gate:
	movzx ebx, al
	shl ebx, 4
	add ebx, idt
	mov [rbx], dx
	mov [rbx + 5], ah
	shr rdx, 16
	mov [rbx + 6], dx
	shr rdx, 16
	mov [rbx + 8], edx
	ret
%macro GATE_TO 3                ; vector, handler, type
	mov rdx, %2
	mov ax, %1 | %3 << 8
	call set_gate
%endmacro

; Goes to RDI at CPL 3 (level_run: with the selectors RSI and RDX); `int 0x82` there comes back here. All other registers
; are what they were there.
user_run:
	mov esi, UCODE
	mov edx, UDATA
level_run:
	mov [KSP], rsp
	push rdx
	push USTACK
	push 2
	push rsi
	push rdi
	iretq
back_home:
	mov rsp, [KSP]
	push rax
	mov eax, DATA
	mov ss, eax
	pop rax
	ret
%macro LEVEL 3                  ; selectors, code; EAX = vector or -1
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], to_home
	mov esi, %1
	mov edx, %2
	mov edi, %3
	call level_run
	mov qword [FAULT_RESUME], 0
	mov eax, [FAULT_VECTOR]
%endmacro
%macro USER 1
	LEVEL UCODE, UDATA, %1
%endmacro
to_home:
	int 0x82

%macro STAR 2                   ; kernel's, user's base
	mov ecx, 0xc0000081
	xor eax, eax
	mov edx, %1 | %2 << 16
	wrmsr
%endmacro
%macro LSTAR 1
	mov ecx, 0xc0000082
	mov eax, %1
	xor edx, edx
	wrmsr
%endmacro
%macro FMASK 1
	mov ecx, 0xc0000084
	mov eax, %1
	xor edx, edx
	wrmsr
%endmacro
%macro SCE 1                    ; and, or
	mov ecx, 0xc0000080
	rdmsr
	and eax, ~1
	or eax, %1
	wrmsr
%endmacro

entry:	mov [S_RCX], rcx
	mov [S_R11], r11
	mov [S_RSP], rsp
	mov rsp, RSP0
	pushfq
	pop qword [S_FLAGS]
	mov ecx, cs
	mov [S_CS], rcx
	mov ecx, ss
	mov [S_SS], rcx
	mov rsp, [S_RSP]
	mov rcx, cr0
	cmp byte [R_TS], 0
	je .ts
	or ecx, 8
	mov cr0, rcx
.ts:	mov rcx, [R_RIP]
	test rcx, rcx
	jnz .rip
	mov rcx, [S_RCX]
.rip:	mov r11, [R_FLAGS]
	test r11, r11
	jnz sysret64
	mov r11, [S_R11]
sysret64:
	o64 sysret

step_handler:
	inc qword [STEPS]
	iretq

main:	lgdt [gdt2_ptr]
	mov eax, tss
	mov rdx, 0x0000890000000000 | (tss_end - tss - 1)
	mov ecx, eax
	and ecx, 0xffffff
	shl rcx, 16
	or rdx, rcx
	mov [gdt2 + TSS], rdx
	mov eax, TSS
	ltr ax
	GATE_TO 0x82, back_home, 0xee
	GATE_TO 0x83, frame_handler, 0xee
	GATE_TO 1, step_handler, 0x8e
	LSTAR entry
	STAR CODE64, 0x1b
	SCE 1
	or qword [pml4], 4
	or qword [pdpt], 4
	or qword [page_dirs + 16], 4
	mov rax, cr3
	mov cr3, rax
	call test_smap
	or qword [page_dirs], 4
	or qword [page_dirs + 8], 4
	mov rax, cr3
	mov cr3, rax
	call test_flags
	call test_segments
	call test_target
	call test_step
	call test_mode
	call test_events
	call test_levels
	call test_off
	call test_frames
	ret

;> PASS smap
;> PASS stac
;> PASS flags
;> PASS clac
;> PASS smap
;> PASS stac
;> PASS flags
;> PASS clac
;> PASS smap
;> PASS stac
;> PASS flags
;> PASS clac
;> PASS no smap
%macro SMAP 0
	clac
	TRY mov ecx, [UPAGE]
	CHECK "smap", 14
	stac
	TRY mov ecx, [UPAGE]
	pushfq
	pop rdx
	clac
	pushfq
	pop rcx
	CHECK "stac", 0xffffffff
	sub edx, ecx
	mov eax, edx
	CHECK "flags", 1 << 18
	TRY mov ecx, [UPAGE]
	CHECK "clac", 14
%endmacro
test_smap:
	mov rax, cr4
	bts rax, 21
	mov cr4, rax
	SMAP
	SMAP
	SMAP
	mov rax, cr4
	btr rax, 21
	mov cr4, rax
	clac
	stac
	clac
	TRY mov ecx, [UPAGE]
	CHECK "no smap", 0xffffffff
	ret

; All of OSZAPC, some, none, DF; AC that is masked and that stays; what PUSHFQ pushes
;> PASS all r11
;> PASS all in
;> PASS all back
;> PASS masked r11
;> PASS masked in
;> PASS masked back
;> PASS some r11
;> PASS some in
;> PASS some back
;> PASS ac r11
;> PASS ac in
;> PASS ac back
;> PASS ac masked r11
;> PASS ac masked in
;> PASS ac masked back
;> PASS none r11
;> PASS none in
;> PASS none back
;> PASS pushfq
;> PASS swapgs
%macro FLAGS 4                  ; name, mask, flags, those in the entry
	FMASK %2
	mov r9d, %3
	USER flags_user
	mov rax, [S_R11]
	CHECK {%1, " r11"}, %3
	mov rax, [S_FLAGS]
	CHECK {%1, " in"}, %4
	mov rax, r10
	CHECK {%1, " back"}, %3
%endmacro
flags_user:
	push r9
	popfq
	syscall
	pushfq
	pop r10
	push 2
	popfq
	int 0x82
test_flags:
	FLAGS "all", 0, 0x8d7, 0x8d7
	FLAGS "masked", 0x4cd5, 0xcd7, 2
	FLAGS "some", 0x0854, 0x8d7, 0x83
	FLAGS "ac", 0x400, 0x40002, 0x40002
	FLAGS "ac masked", 0x40400, 0x40402, 2
	FLAGS "none", 0x47700, 2, 2
	push 0x207cd7
	popfq
	pushfq
	pop rax
	push 2
	popfq
	CHECK "pushfq", 0x207cd7
	mov ecx, 0xc0000101
	mov eax, 0x1111
	xor edx, edx
	wrmsr
	inc ecx
	mov eax, 0x2222
	wrmsr
	swapgs
	rdmsr
	mov ebx, eax
	dec ecx
	rdmsr
	shl rbx, 32
	or rax, rbx
	CHECK "swapgs", 0x111100002222
	ret

; A STAR of other selectors counts at once, and no descriptor is looked at. SYSRET to 32-bit code.
;> PASS cs
;> PASS ss
;> PASS back cs
;> PASS back ss
;> PASS other cs
;> PASS other ss
;> PASS other back cs
;> PASS other back ss
;> PASS cs
;> PASS ss
;> PASS back cs
;> PASS back ss
;> PASS sysret to 32 bits
%macro SEGMENTS 5               ; prefix, selectors
	USER .user
	mov rax, [S_CS]
	CHECK {%1, "cs"}, %2
	mov rax, [S_SS]
	CHECK {%1, "ss"}, %3
	mov rax, r8
	CHECK {%1, "back cs"}, %4
	mov rax, r9
	CHECK {%1, "back ss"}, %5
%endmacro
test_segments:
	SEGMENTS "", CODE64, DATA, UCODE, UDATA
	STAR 0xfff0, 0xffe3
	SEGMENTS "other ", 0xfff0, 0xfff8, 0xfff3, 0xffeb
	STAR CODE64, 0x1b
	SEGMENTS "", CODE64, DATA, UCODE, UDATA
	mov qword [FAULT_RESUME], to_home
	call .to32
	mov qword [FAULT_RESUME], 0
	CHECK "sysret to 32 bits", 0x1b
	ret
.to32:	mov [KSP], rsp
	mov ecx, .user32
	mov r11d, 2
	mov esp, USTACK
	o32 sysret
.user:	syscall
	mov r8d, cs
	mov r9d, ss
	int 0x82
	bits 32
.user32:
	mov eax, cs
	int 0x82
	bits 64

; Where RCX is not canonical: Intel's CPUs fault at CPL 0, AMD's at CPL 3. LSTAR counts at once.
;> PASS rcx
;> PASS not canonical
;> PASS not canonical rip
;> PASS elsewhere
;> PASS other entry
;> PASS rcx
test_target:
	USER .user
	mov rax, [S_RCX]
	CHECK "rcx", .after
	mov rax, 1 << 47
	mov [R_RIP], rax
	USER .user
	CHECK "not canonical", 13
	xor eax, eax
	cpuid
	mov rcx, 1 << 47
	mov edx, sysret64
	cmp ebx, 0x756e6547     ; Genu
	cmove rcx, rdx
	xor eax, eax
	cmp [FAULT_RIP], rcx
	sete al
	CHECK "not canonical rip", 1
	mov qword [R_RIP], .else
	USER .user
	mov rax, r8
	CHECK "elsewhere", 78
	mov qword [R_RIP], 0
	LSTAR .entry
	USER .user
	mov rax, r9
	CHECK "other entry", 79
	LSTAR entry
	USER .user
	mov rax, [S_RCX]
	CHECK "rcx", .after
	ret
.user:	syscall
.after:	mov r8d, 77
	int 0x82
.else:	mov r8d, 78
	int 0x82
.entry:	mov r9d, 79
	o64 sysret

; TF that comes with R11, which traps before anything else in user mode; TF that is set there and that the entry does not
; see; TF that it sees.
;> PASS steps from sysret
;> PASS steps around
;> PASS steps inside
;> PASS steps inside r11
test_step:
	FMASK 0x700
	mov qword [R_FLAGS], 0x102
	mov qword [STEPS], 0
	USER .user
	mov rax, [STEPS]
	CHECK "steps from sysret", 6
	mov qword [R_FLAGS], 0
	mov qword [STEPS], 0
	USER .around
	mov rax, [STEPS]
	CHECK "steps around", 6
	FMASK 0
	mov qword [STEPS], 0
	USER .around
	mov rax, [STEPS]
	CHECK "steps inside", 10, 40
	mov rax, [S_R11]
	CHECK "steps inside r11", 0x102
	FMASK 0x700
	ret
.around:
	push 0x102
	popfq
.user:	syscall
	nop
	nop
	pushfq
	and dword [rsp], ~0x100
	popfq
	int 0x82

; A mode that changed in the kernel is the user's, too.
;> PASS fpu
;> PASS fpu with ts
;> PASS fpu
;> PASS fpu with ts
;> PASS fpu
%macro FPU 3
	mov byte [R_TS], %2
	USER .user
	CHECK %1, %3
	mov rcx, cr0
	and ecx, ~8
	mov cr0, rcx
%endmacro
test_mode:
	mov rcx, cr0
	or ecx, 2
	mov cr0, rcx
	FPU "fpu", 0, 0xffffffff
	FPU "fpu with ts", 1, 7
	FPU "fpu", 0, 0xffffffff
	FPU "fpu with ts", 1, 7
	FPU "fpu", 0, 0xffffffff
	mov byte [R_TS], 0
	ret
.user:	syscall
	fninit
	int 0x82

; An interrupt that waits for IF: SYSRET and STI let it in, STI with CLI behind it does not.
;> PASS held
;> PASS by sysret
;> PASS held
;> PASS sti and cli
;> PASS by sti
%macro HELD 0
	CLEAR_IRQ 0x60
	mov eax, 0x300
	mov edx, 0x40060        ; to itself
	call lapic_write
	mov rax, [IRQ_COUNT + 0x60 * 8]
	CHECK "held", 0
%endmacro
test_events:
	call lapic_enable
	HELD
	mov qword [R_FLAGS], 0x202
	USER .user
	mov qword [R_FLAGS], 0
	mov rax, r8
	CHECK "by sysret", 1
	sti                     ; none waits: and again, with IF set
	sti
	cli
	HELD
	sti
	cli
	mov rax, [IRQ_COUNT + 0x60 * 8]
	CHECK "sti and cli", 0
	sti
	nop
	nop
	cli
	mov rax, [IRQ_COUNT + 0x60 * 8]
	CHECK "by sti", 1
	ret
.user:	syscall
	mov r8, [IRQ_COUNT + 0x60 * 8]
	int 0x82

; At CPL 1 the same blocks are executed as at CPL 0, at CPL 3 others.
;> PASS sysret at 0
;> PASS sysret at 1
;> PASS sysret at 3
;> PASS clac at 0
;> PASS clac at 1
;> PASS clac at 3
;> PASS cli at 0
;> PASS cli at 1
;> PASS cli at 3
;> PASS sti at 0
;> PASS sti at 1
;> PASS sti at 3
;> PASS swapgs at 0
;> PASS swapgs at 1
;> PASS swapgs at 3
;> PASS syscall at 1
%macro LEVELS 5                 ; name, code, vector at each
	LEVEL CODE64, DATA, %2
	CHECK {%1, " at 0"}, %3
	LEVEL CODE_1, DATA_1, %2
	CHECK {%1, " at 1"}, %4
	LEVEL UCODE, UDATA, %2
	CHECK {%1, " at 3"}, %5
%endmacro
test_levels:
	LEVELS "sysret", .sysret, 0xffffffff, 13, 13
	LEVELS "clac", .clac, 0xffffffff, 6, 6
	LEVELS "cli", .cli, 0xffffffff, 13, 13
	LEVELS "sti", .sti, 0xffffffff, 13, 13
	LEVELS "swapgs", .swapgs, 0xffffffff, 13, 13
	LEVEL CODE_1, DATA_1, .syscall
	mov rax, r8
	CHECK "syscall at 1", UCODE
	ret
.sysret:
	mov ecx, to_home
	mov r11d, 2
	o64 sysret
.clac:	clac
	int 0x82
.cli:	cli
	int 0x82
.sti:	sti
	int 0x82
.swapgs:
	swapgs
	int 0x82
.syscall:
	syscall
	mov r8d, cs
	int 0x82

; Without EFER.SCE there is neither.
;> PASS on
;> PASS syscall off
;> PASS sysret off
;> PASS on
test_off:
	USER .user
	CHECK "on", 0xffffffff
	SCE 0
	USER .user
	CHECK "syscall off", 6
	LEVEL CODE64, DATA, test_levels.sysret
	CHECK "sysret off", 6
	SCE 1
	USER .user
	CHECK "on", 0xffffffff
	ret
.user:	syscall
	int 0x82

; Frames within a page and across an edge, with and without an error code; IRETQ from them.
;> PASS rip
;> PASS cs
;> PASS flags
;> PASS rsp
;> PASS ss
;> PASS back
;> PASS error
;> PASS rip
;> PASS cs
;> PASS flags
;> PASS rsp
;> PASS ss
;> PASS back
;> PASS error
;> PASS rip
;> PASS cs
;> PASS flags
;> PASS rsp
;> PASS ss
;> PASS back
;> PASS error
;> PASS rip
;> PASS cs
;> PASS flags
;> PASS rsp
;> PASS ss
;> PASS back
;> PASS error
;> PASS iretq half
;> PASS iretq half at
;> PASS pf write
;> PASS pf write error
;> PASS pf of both
;> PASS pf of both error
;> PASS pf read
;> PASS pf read error
;> PASS pf at
%macro FRAMES 1                 ; RSP0
	mov qword [tss + 4], %1
	USER .user
	mov rax, [FRAME]
	CHECK "rip", .after
	mov rax, [FRAME + 8]
	CHECK "cs", UCODE
	mov rax, [FRAME + 16]
	CHECK "flags", 0x457
	mov rax, [FRAME + 24]
	CHECK "rsp", USTACK - 24
	mov rax, [FRAME + 32]
	CHECK "ss", UDATA
	mov rax, r8
	CHECK "back", 0x457
	USER .error
	mov eax, [FAULT_ERROR]
	CHECK "error", 0x50 * 8 + 2
%endmacro
%macro PF 2+
	TRY %2
	CHECK %1, 14
	mov eax, [FAULT_ERROR]
%endmacro
test_frames:
	FRAMES RSP0
	FRAMES 0x209010
	FRAMES 0x209028         ; made a multiple of 16
	FRAMES 0x209030
	mov qword [tss + 4], RSP0
	and byte [page_dirs + 24], ~1
	mov rax, cr3
	mov cr3, rax
	mov rbp, rsp
	mov rsp, 0x600000 - 24
	mov qword [rsp], .after
	mov qword [rsp + 8], CODE64
	mov qword [rsp + 16], 2
	TRY iretq
	mov rsp, rbp
	CHECK "iretq half", 14
	mov rax, [FAULT_CR2]
	CHECK "iretq half at", 0x600000
	PF "pf write", mov [0x600123], eax
	CHECK "pf write error", 2
	PF "pf of both", lock inc dword [0x600123]
	CHECK "pf of both error", 2
	PF "pf read", mov ecx, [0x600123]
	CHECK "pf read error", 0
	mov rax, [FAULT_CR2]
	CHECK "pf at", 0x600123
	or byte [page_dirs + 24], 1
	ret
.user:	sub rsp, 24
	push 0x457
	popfq
	int 0x83
.after:	pushfq
	pop r8
	push 2
	popfq
	int 0x82
.error:	int 0x50
frame_handler:
	mov r8, [rsp]
	mov [FRAME], r8
	mov r8, [rsp + 8]
	mov [FRAME + 8], r8
	mov r8, [rsp + 16]
	mov [FRAME + 16], r8
	mov r8, [rsp + 24]
	mov [FRAME + 24], r8
	mov r8, [rsp + 32]
	mov [FRAME + 32], r8
	iretq

END_GUEST
