; 32-bit protected mode: every exception vector with its error code and saved EIP, 16- and 32-bit gates, levels of
; privilege with the TSS's stacks, call gates with parameters, far transfers, the LDT, SYSENTER.
;> PASS #DE
;> PASS #DE aam
;> PASS #DB int1
;> PASS #BP
;> PASS #OF
;> PASS into without OF
;> PASS #BR below
;> PASS #BR above
;> PASS bound within
;> PASS #UD bound of a register
;> PASS #UD les of a register
;> PASS #UD ud2
;> PASS #UD lock
;> PASS #UD syscall
;> PASS #NM
;> PASS #AC
;> PASS no #AC
;> PASS steps over pop ss
;> PASS #MF
;> PASS #XM
;> PASS #GP limit
;> PASS at the limit
;> PASS #GP over the limit
;> PASS #GP read-only
;> PASS #GP write by cs
;> PASS read by cs
;> PASS #GP null
;> PASS #NP
;> PASS #SS absent
;> PASS #GP ss null
;> PASS #GP execute-only
;> PASS ds of readable code
;> PASS #GP ss read-only
;> PASS #GP ss rpl
;> PASS #GP ds of a tss
;> PASS within the small stack
;> PASS user cs
;> PASS esp of the tss
;> PASS saved esp
;> PASS saved ss
;> PASS user hlt
;> PASS user cli
;> PASS user in
;> PASS user int of dpl 0
;> PASS user kernel data
;> PASS user conforming data
;> PASS fs nulled
;> PASS gs kept
;> PASS iret ss
;> PASS iret cs rpl
;> PASS iret absent
;> PASS iopl 3
;> PASS #GP then #NP
;> PASS #UD then #NP
;> PASS int3 then #NP
;> PASS #UD to null
;> PASS #UD to data
;> PASS 16-bit gate
;> PASS call far
;> PASS call far data
;> PASS call far outwards
;> PASS call far null
;> PASS jmp far beyond
;> PASS user jmp conforming
;> PASS retf null
;> PASS retf rpl
;> PASS gate of the same level
;> PASS gate absent
;> PASS gate to null
;> PASS gate to data
;> PASS gate inwards esp
;> PASS parameter
;> PASS second parameter
;> PASS retf n outwards
;> PASS user gate dpl
;> PASS user jmp gate
;> PASS 16-bit gate words
;> PASS no ldt
;> PASS lldt of data
;> PASS ldt data
;> PASS sldt
;> PASS ldt limit
;> PASS jmp far ldt code
;> PASS sysenter without cs
;> PASS sysenter esp
;> PASS sysenter cs ss
;> PASS sysexit cs ss
;> PASS user sysexit
%include "guest32.inc"

%define TSS 0x18
%define LDT 0x20
%define UDATA 0x28
%define UCODE 0x30
%define SMALL 0x38              ; 256 bytes
%define READONLY 0x40
%define EXECONLY 0x48
%define ABSENT 0x50
%define CODE16 0x58
%define CONFORM 0x60
%define GATE 0x68
%define UCODE_ABSENT 0x70
%define SYS 0x78                ; for SYSENTER: code, data, user code, user data

%define KSP (SCRATCH + 0)
%define NOTE (SCRATCH + 4)
%define NOTE2 (SCRATCH + 8)
%define NOTE3 (SCRATCH + 12)
%define FAR (SCRATCH + 16)
%define ESP0 0x190000
%define USTACK 0x192000

	align 8
gdt2:	dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
	dq 0, 0                 ; TSS, LDT
	dq 0x00cff3000000ffff, 0x00cffb000000ffff, 0x00409300000000ff, 0x00cf91000000ffff
	dq 0x00cf99000000ffff, 0x00cf13000000ffff, 0x00009b100000ffff, 0x00cf9f000000ffff
	dq 0                    ; GATE
	dq 0x00cf7b000000ffff
	dq 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff
gdt2_ptr:
	dw $ - gdt2 - 1
	dd gdt2
	align 8
ldt:	dq 0x00cf9b000000ffff, 0x0040931820000fff
ldt_end:
	align 4
tss:	dd 0, ESP0, DATA
	times 22 dd 0
	dw 0, 0x68
tss_end:

%include "prot.inc"

main:	lgdt [gdt2_ptr]
	SYSTEM_SEGMENT TSS, tss, tss_end - tss - 1, 0x89
	SYSTEM_SEGMENT LDT, ldt, ldt_end - ldt - 1, 0x82
	mov eax, TSS
	ltr ax
	GATE_TO 0x82, back_home, 0xee
	mov byte [idt + 3 * 8 + 5], 0xee
	mov byte [idt + 4 * 8 + 5], 0xee
	mov eax, cr4
	or eax, 0x600           ; OSFXSR, OSXMMEXCPT
	mov cr4, eax
	call test_vectors
	call test_float
	call test_segments
	call test_levels
	call test_delivery
	call test_far
	call test_gates
	call test_ldt
	call test_sysenter
	ret

test_vectors:
	xor ecx, ecx
	xor edx, edx
	mov eax, 1
	RAISES "#DE", 0, 0, 0, div ecx
	RAISES "#DE aam", 0, 0, 0, aam 0
	RAISES "#DB int1", 1, 0, 1, db 0xf1
	RAISES "#BP", 3, 0, 1, int3
	mov al, 0x7f
	inc al
	RAISES "#OF", 4, 0, 1, into
	xor al, al
	RAISES "into without OF", -1, 0, 0, into
	mov eax, 3
	RAISES "#BR below", 5, 0, 0, bound eax, [.bounds]
	mov eax, 11
	RAISES "#BR above", 5, 0, 0, bound eax, [.bounds]
	mov eax, 10
	RAISES "bound within", -1, 0, 0, bound eax, [.bounds]
	RAISES "#UD bound of a register", 6, 0, 0, db 0x62, 0xc0
	RAISES "#UD les of a register", 6, 0, 0, db 0xc4, 0xc0
	RAISES "#UD ud2", 6, 0, 0, ud2
	RAISES "#UD lock", 6, 0, 0, db 0xf0, 0x90
	RAISES "#UD syscall", 6, 0, 0, syscall
	mov eax, cr0
	or eax, 8
	mov cr0, eax
	RAISES "#NM", 7, 0, 0, fld1
	clts
	mov eax, cr0
	or eax, 0x40000         ; AM
	mov cr0, eax
	mov dword [user_flags], 0x40002
	USER_RAISES "#AC", 17, 0, 0, mov eax, [NOTE + 1]
	mov dword [user_flags], 2
	USER_RAISES "no #AC", -1, 0, 0, mov eax, [NOTE + 1]
	; no step between POP SS and the next instruction
	GATE_TO 1, .step, 0x8e
	mov dword [NOTE], 0
	push ss
	pushfd
	or dword [esp], 0x100
	popfd
	pop ss
	nop
	pushfd
	and dword [esp], ~0x100
	popfd                   ; is the last that is stepped
	GATE_TO 1, stubs + 16, 0x8e
	mov eax, [NOTE]
	CHECK "steps over pop ss", 4
	ret
.step:	inc dword [NOTE]
	iretd
.bounds:
	dd 6, 10

test_float:
	mov eax, cr0
	or eax, 0x22
	mov cr0, eax
	fninit
	push 0x37b
	fldcw [esp]
	fld1
	fldz
	fdivp
	RAISES "#MF", 16, 0, 0, fwait
	fninit
	mov dword [esp], 0x1d80
	ldmxcsr [esp]
	mov eax, 1
	cvtsi2ss xmm0, eax
	xorps xmm1, xmm1
	RAISES "#XM", 19, 0, 0, divss xmm0, xmm1
	mov dword [esp], 0x1f80
	ldmxcsr [esp]
	pop eax
	ret

test_segments:
	mov eax, SMALL
	mov fs, eax
	RAISES "#GP limit", 13, 0, 0, mov al, [fs:0x100]
	RAISES "at the limit", -1, 0, 0, mov al, [fs:0xff]
	RAISES "#GP over the limit", 13, 0, 0, mov ax, [fs:0xff]
	mov eax, READONLY
	mov fs, eax
	RAISES "#GP read-only", 13, 0, 0, mov [fs:NOTE], al
	RAISES "#GP write by cs", 13, 0, 0, mov [cs:NOTE], al
	RAISES "read by cs", -1, 0, 0, mov al, [cs:NOTE]
	xor eax, eax
	mov fs, eax
	RAISES "#GP null", 13, 0, 0, mov al, [fs:0]
	mov ecx, ABSENT
	RAISES "#NP", 11, ABSENT, 0, mov fs, ecx
	RAISES "#SS absent", 12, ABSENT, 0, mov ss, ecx
	xor ecx, ecx
	RAISES "#GP ss null", 13, 0, 0, mov ss, ecx
	mov ecx, EXECONLY
	RAISES "#GP execute-only", 13, EXECONLY, 0, mov fs, ecx
	mov ecx, CODE32
	RAISES "ds of readable code", -1, 0, 0, mov fs, ecx
	mov ecx, READONLY
	RAISES "#GP ss read-only", 13, READONLY, 0, mov ss, ecx
	mov ecx, DATA | 3
	RAISES "#GP ss rpl", 13, DATA, 0, mov ss, ecx
	mov ecx, TSS
	RAISES "#GP ds of a tss", 13, TSS, 0, mov fs, ecx
	; a stack of 256 bytes
	mov ebx, esp
	mov edx, DATA
	mov ecx, SMALL
	mov dword [FAULT_VECTOR], -1
	mov ss, ecx
	mov esp, 0x80
	mov ebp, 0x100
	mov eax, [ebp - 4]
	mov ss, edx
	mov esp, ebx
	CHECK "within the small stack", [0xfc]
	ret

; Stacks of inner levels come from the TSS.
test_levels:
	mov edi, .user
	call user_run
	CHECK "user cs", UCODE | 3
	GATE_TO 0x84, .handler, 0xee
	mov edi, .user2
	call user_run
	mov eax, [NOTE]
	CHECK "esp of the tss", ESP0 - 20
	mov eax, [NOTE2]
	CHECK "saved esp", USTACK
	mov eax, [NOTE3]
	CHECK "saved ss", UDATA | 3
	USER_RAISES "user hlt", 13, 0, 0, hlt
	USER_RAISES "user cli", 13, 0, 0, cli
	USER_RAISES "user in", 13, 0, 0, in al, 0x61
	USER_RAISES "user int of dpl 0", 13, 0x20 * 8 + 2, 0, int 0x20
	mov ecx, DATA
	USER_RAISES "user kernel data", 13, DATA, 0, mov fs, ecx
	mov ecx, CONFORM
	USER_RAISES "user conforming data", -1, 0, 0, mov fs, ecx
	; IRET outwards nulls what the outer level may not have
	mov eax, DATA
	mov fs, eax
	mov eax, CONFORM
	mov gs, eax
	mov edi, .user3
	call user_run
	mov eax, [NOTE]
	CHECK "fs nulled", 0
	mov eax, [NOTE2]
	CHECK "gs kept", CONFORM
	mov ebx, esp
	push DATA
	push USTACK
	push 2
	push UCODE | 3
	push .user
	RAISES "iret ss", 13, DATA, 0, iretd
	mov esp, ebx
	push 2
	push UCODE
	push .user
	RAISES "iret cs rpl", 13, UCODE, 0, iretd
	mov esp, ebx
	push 2
	push UCODE_ABSENT | 3
	push .user
	RAISES "iret absent", 11, UCODE_ABSENT, 0, iretd
	mov esp, ebx
	mov dword [user_flags], 0x3202
	mov edi, .user4
	call user_run
	mov dword [user_flags], 2
	and eax, 0x3200
	CHECK "iopl 3", 0x3000
	ret
.user:	mov eax, cs
	int 0x82
.user2:	int 0x84
	int 0x82
.user3:	mov eax, fs
	mov ecx, gs
	mov edx, UDATA | 3
	mov ds, edx
	mov [NOTE], eax
	mov [NOTE2], ecx
	int 0x82
.user4:	cli
	pushfd
	pop eax
	int 0x82
.handler:
	push ds
	push eax
	mov eax, DATA
	mov ds, eax
	lea eax, [esp + 8]
	mov [NOTE], eax
	mov eax, [esp + 20]
	mov [NOTE2], eax
	mov eax, [esp + 24]
	mov [NOTE3], eax
	pop eax
	pop ds
	iretd

test_delivery:
	GATE_OFF 13
	RAISES "#GP then #NP", 8, 0, 0, mov eax, [fs:0x100]
	GATE_ON 13
	GATE_OFF 6
	RAISES "#UD then #NP", 11, 6 * 8 + 3, 0, ud2
	GATE_ON 6
	GATE_OFF 3
	RAISES "int3 then #NP", 11, 3 * 8 + 2, 0, int3
	GATE_ON 3
	mov word [idt + 6 * 8 + 2], 0
	RAISES "#UD to null", 13, 1, 0, ud2
	mov word [idt + 6 * 8 + 2], DATA
	RAISES "#UD to data", 13, DATA + 1, 0, ud2
	mov word [idt + 6 * 8 + 2], CODE32
	; a 16-bit gate: the frame has words
	GATE_TO 0x85, .handler16, 0x86
	mov word [idt + 0x85 * 8 + 2], CODE16
	mov eax, .handler16 - elf_header
	mov [idt + 0x85 * 8], ax
	mov word [idt + 0x85 * 8 + 6], 0
	mov ebx, esp
	mov dword [NOTE], 0
	call .low
	mov eax, [NOTE]
	CHECK "16-bit gate", 6
	ret
.low:	; IP of 16 bits: come from code within CODE16's 64 KiB
	FAR_POINTER .low16 - IMAGE, CODE16
	jmp far [FAR]
	bits 16
.low16:	int 0x85
	jmp dword CODE32:.back
.handler16:
	mov eax, ebx
	sub eax, 4              ; what CALL pushed
	sub eax, esp
	mov [dword NOTE], eax
	iret
	bits 32
.back:	ret

test_far:
	FAR_POINTER .called, CODE32
	mov ebx, esp
	call far [FAR]
	CHECK "call far", 8
	call CODE32:.called16
	push CODE32
	push .popped
	retf
.popped:
	FAR_POINTER .called, DATA
	RAISES "call far data", 13, DATA, 0, call far [FAR]
	FAR_POINTER .called, UCODE
	RAISES "call far outwards", 13, UCODE, 0, call far [FAR]
	FAR_POINTER .called, 0
	RAISES "call far null", 13, 0, 0, call far [FAR]
	FAR_POINTER 0x10000, CODE16
	RAISES "jmp far beyond", 13, 0, 0, jmp far [FAR]
	FAR_POINTER .conform, CONFORM
	mov edi, .user
	call user_run
	CHECK "user jmp conforming", CONFORM | 3
	push 0
	push .popped
	RAISES "retf null", 13, 0, 0, retf
	add esp, 8
	push UDATA | 3
	push USTACK
	push UCODE
	push .popped
	RAISES "retf rpl", 13, UCODE, 0, retf
	add esp, 16
	ret
.called:
	mov eax, ebx
	sub eax, esp
	retf
.called16:
	retf
.user:	jmp far [FAR]
.conform:
	mov eax, cs
	int 0x82

test_gates:
	CALL_GATE .same, CODE32, 0x8c00
	FAR_POINTER 0, GATE
	mov ebx, esp
	call far [FAR]
	CHECK "gate of the same level", 8
	CALL_GATE .same, CODE32, 0x0c00
	RAISES "gate absent", 11, GATE, 0, call far [FAR]
	CALL_GATE .same, 0, 0x8c00
	RAISES "gate to null", 13, 0, 0, call far [FAR]
	CALL_GATE .same, DATA, 0x8c00
	RAISES "gate to data", 13, DATA, 0, call far [FAR]
	; inwards, with two parameters
	CALL_GATE .inner, CODE32, 0xec02
	mov edi, .user
	call user_run
	mov ecx, eax
	mov eax, [NOTE]
	CHECK "gate inwards esp", ESP0 - 24
	mov eax, [NOTE2]
	CHECK "parameter", 0x1111
	mov eax, [NOTE3]
	CHECK "second parameter", 0x2222
	mov eax, ecx
	CHECK "retf n outwards", USTACK
	CALL_GATE .inner, CODE32, 0x8c02
	USER_RAISES "user gate dpl", 13, GATE, 0, call far [FAR]
	CALL_GATE .inner, CODE32, 0xec02
	USER_RAISES "user jmp gate", 13, CODE32, 0, jmp far [FAR]
	; a 16-bit gate pushes words
	mov dword [NOTE], 0
	CALL_GATE .inner16, CODE16, 0x8400
	mov eax, .inner16 - elf_header
	mov [gdt2 + GATE], ax
	mov word [gdt2 + GATE + 6], 0
	mov ebx, esp
	call far [FAR]
.same:	mov eax, ebx
	sub eax, esp
	retf
.user:	push 0x1111
	push 0x2222
	call far [FAR]
	mov eax, esp
	int 0x82
.inner:	push ds
	push eax
	mov eax, DATA
	mov ds, eax
	lea eax, [esp + 8]
	mov [NOTE], eax
	mov eax, [esp + 20]
	mov [NOTE2], eax
	mov eax, [esp + 16]
	mov [NOTE3], eax
	pop eax
	pop ds
	retf 8
	bits 16
.inner16:
	mov eax, ebx
	sub eax, esp
	mov [dword NOTE], eax
	mov esp, ebx            ; the return address lost its upper half
	jmp dword CODE32:.back
	bits 32
.back:	mov eax, [NOTE]
	CHECK "16-bit gate words", 4
	ret

test_ldt:
	xor eax, eax
	lldt ax
	mov ecx, 4 | 8
	RAISES "no ldt", 13, 4 | 8, 0, mov fs, ecx
	mov ecx, DATA
	RAISES "lldt of data", 13, DATA, 0, lldt cx
	mov eax, LDT
	lldt ax
	mov ecx, 4 | 8
	mov fs, ecx
	mov dword [SCRATCH + 0x40], 0x600dcafe
	mov eax, [fs:SCRATCH + 0x40 - 0x182000]
	CHECK "ldt data", 0x600dcafe
	xor eax, eax
	sldt ax
	CHECK "sldt", LDT
	mov ecx, 4 | 0x10
	RAISES "ldt limit", 13, 4 | 0x10, 0, mov fs, ecx
	FAR_POINTER .on, 4
	jmp far [FAR]
.on:	mov ecx, cs
	jmp CODE32:.on2
.on2:	mov eax, ecx
	CHECK "jmp far ldt code", 4
	xor eax, eax
	mov fs, eax
	ret

test_sysenter:
	mov ecx, 0x174
	xor eax, eax
	xor edx, edx
	wrmsr
	USER_RAISES "sysenter without cs", 13, 0, 0, sysenter
	mov ecx, 0x174
	mov eax, SYS
	wrmsr
	inc ecx
	mov eax, ESP0
	wrmsr
	inc ecx
	mov eax, .entry
	wrmsr
	mov edi, .user
	call user_run
	CHECK "sysenter esp", ESP0
	mov eax, ebx
	CHECK "sysenter cs ss", SYS | (SYS + 8) << 16
	mov eax, esi
	CHECK "sysexit cs ss", (SYS + 0x10 | 3) | (SYS + 0x18 | 3) << 16
	USER_RAISES "user sysexit", 13, 0, 0, sysexit
	ret
.user:	mov edx, .user_on
	mov ecx, USTACK
	sysenter
.user_on:
	mov esi, ss
	shl esi, 16
	mov ecx, cs
	or esi, ecx
	int 0x82
.entry:	mov eax, esp
	mov ebx, ss
	shl ebx, 16
	mov ebp, cs
	or ebx, ebp
	sysexit
END_GUEST
