; Every exception vector of 64-bit mode with its error code and saved RIP; faults while an event is delivered; NMI's
; window. (32-bit mode: prot_vectors.)
;> PASS #DE div
;> PASS #DE idiv
;> PASS #DB int1
;> PASS #BP int3
;> PASS #BP int 3
;> PASS int 4
;> PASS user int3
;> PASS user int 5
;> PASS #UD ud2
;> PASS #UD lock mov
;> PASS #UD lock of a register
;> PASS #UD mov cr1
;> PASS #UD mov cs
;> PASS #UD push es
;> PASS #UD into
;> PASS #UD daa
;> PASS #UD jmp far
;> PASS #UD rdfsbase off
;> PASS #UD lea of a register
;> PASS #UD before #GP
;> PASS #GP of 16 bytes
;> PASS #NP ds
;> PASS #SS ss
;> PASS #GP ss rpl
;> PASS #GP es beyond
;> PASS #GP es of no ldt
;> PASS #TS short tss
;> PASS #GP not canonical
;> PASS #GP not canonical at its end
;> PASS #SS not canonical
;> PASS #SS push
;> PASS #SS pop
;> PASS #SS ret
;> PASS #GP movaps
;> PASS #PF read
;> PASS #PF write
;> PASS #PF modify
;> PASS #PF user read
;> PASS #PF user write
;> PASS #PF user of the kernel's
;> PASS .. cr2
;> PASS #PF across
;> PASS .. cr2 across
;> PASS #PF fetch
;> PASS #MF fwait
;> PASS #MF fld
;> PASS #MF mmx
;> PASS no #MF fnstsw
;> PASS #XM
;> PASS #UD for #XM
;> PASS #NM x87
;> PASS #NM sse
;> PASS #NM mmx
;> PASS #NM fwait
;> PASS no #NM fwait
;> PASS #NM x87 em
;> PASS #UD sse em
;> PASS #UD mmx em
;> PASS #UD sse
;> PASS #AC
;> PASS #AC of a word
;> PASS #AC before #PF
;> PASS no #AC without AC
;> PASS no #AC at CPL 0
;> PASS RF of a fault
;> PASS RF of a trap
;> PASS #DE then #NP
;> PASS #GP then #NP
;> PASS #PF then #NP
;> PASS #UD then #NP
;> PASS int3 then #NP
;> PASS int1 then #NP
;> PASS #UD then #PF
;> PASS #GP then #PF
;> PASS #PF then #PF
;> PASS int3 then #PF
;> PASS #UD through no gate
;> PASS #UD to null cs
;> PASS #UD to data
;> PASS #UD to absent data
;> PASS #UD to 32-bit code
;> PASS #UD to not canonical
;> PASS int behind the idt
;> PASS int half behind the idt
;> PASS #GP behind the idt
;> PASS ist of a fault
;> PASS interrupt then #NP
;> PASS nmi and one more
;> PASS nmi is blocked
;> PASS nmi again
;> PASS nmi until iret
%include "guest64.inc"

%define TSS 0x20
%define UDATA 0x33
%define UCODE 0x3b
%define ABSENT 0x40
%define CODE32_2 0x48
%define HOLE 0xa00000           ; nothing is mapped there
%define IST_STACK 0x209000
%define RSP0 0x208000
%define USTACK 0x20a000
%define FAULT_FLAGS (SCRATCH + 0)
%define KSP (SCRATCH + 8)
%define NEST (SCRATCH + 16)     ; NMI handlers that are running
%define DEEPEST (SCRATCH + 24)
%define TAKEN (SCRATCH + 32)
%define BUFFER 0x203000

	align 8
gdt2:	dq 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
	dq 0, 0                 ; TSS
	dq 0x00cff3000000ffff, 0x00affb000000ffff, 0x00cf13000000ffff, 0x00cf9b000000ffff
gdt2_ptr:
	dw $ - gdt2 - 1
	dq gdt2
	align 8
tss:	dd 0
	dq RSP0, 0, 0, 0
	dq IST_STACK, HOLE + 0x800, 0, 0, 0, 0, 0
	dq 0
	dw 0, 0x68
tss_end:

; vector | error << 8 | (RIP - where the instruction lies) << 40
pack:	push rcx
	movsx rax, byte [FAULT_VECTOR]
	cmp qword [FAULT_VECTOR], -1
	je .out
	mov rax, [FAULT_RIP]
	sub rax, [TRY_AT]
	and eax, 0xff
	shl rax, 40
	mov ecx, [FAULT_ERROR]
	shl rcx, 8
	or rax, rcx
	or rax, [FAULT_VECTOR]
.out:	pop rcx
	ret
; name, vector, error code, bytes by which the saved RIP is ahead, instruction
%macro RAISES 5+
	TRY_KEEP %5
	call pack
	CHECK %1, %2 | (%3) << 8 | %4 << 40
%endmacro
%define NOTHING -1
%macro QUIET 2+                 ; name, instruction that raises nothing
	TRY_KEEP %2
	mov rax, [FAULT_VECTOR]
	CHECK %1, NOTHING
%endmacro
; One instruction at CPL 3.
%macro USER_RAISES 5+
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], %%on
	mov qword [TRY_AT], %%here
	jmp %%go
%%here:	%5
%%on:	int 0x82
%%go:	mov edi, %%here
	call user_run
	mov qword [FAULT_RESUME], 0
	call pack
	CHECK %1, %2 | (%3) << 8 | %4 << 40
%endmacro
user_run:
	mov [KSP], rsp
	push UDATA
	push USTACK
	push qword [user_flags]
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
	align 8
user_flags:
	dq 2

; CL = IST of vector AL.
set_ist:
	movzx ebx, al
	shl ebx, 4
	mov [idt + rbx + 4], cl
	ret
%macro IST 2
	mov byte [idt + (%1) * 16 + 4], %2
%endmacro
%macro GATE_OFF 1
	and byte [idt + (%1) * 16 + 5], 0x7f
%endmacro
%macro GATE_ON 1
	or byte [idt + (%1) * 16 + 5], 0x80
%endmacro

main:	lgdt [gdt2_ptr]
	mov eax, tss
	mov edx, eax
	and eax, 0xffffff
	shl rax, 16
	mov rcx, 0x0000890000000000 | (tss_end - tss - 1)
	or rax, rcx
	mov [gdt2 + TSS], rax
	mov eax, TSS
	ltr ax
	or qword [pml4], 4
	or qword [pdpt], 4
	or qword [page_dirs], 4
	or qword [page_dirs + 8], 4
	mov qword [page_dirs + 5 * 8], 0
	mov rax, cr3
	mov cr3, rax
	mov edx, back_home
	mov [idt + 0x82 * 16], dx
	shr edx, 16
	mov [idt + 0x82 * 16 + 6], dx
	mov byte [idt + 0x82 * 16 + 5], 0xee
	mov byte [idt + 3 * 16 + 5], 0xee
	mov byte [idt + 4 * 16 + 5], 0xee
	call test_arithmetic
	call test_illegal
	call test_segments
	call test_memory
	call test_float
	call test_flags
	call test_delivery
	call test_idt_limit
	call test_ist
	call test_interrupt
	call test_nmi
	ret

test_arithmetic:
	xor ecx, ecx
	xor edx, edx
	mov eax, 1
	RAISES "#DE div", 0, 0, 0, div ecx
	mov rax, 1 << 63
	mov rdx, -1
	mov rcx, -1
	RAISES "#DE idiv", 0, 0, 0, idiv rcx
	RAISES "#DB int1", 1, 0, 1, db 0xf1
	RAISES "#BP int3", 3, 0, 1, int3
	RAISES "#BP int 3", 3, 0, 2, db 0xcd, 3
	RAISES "int 4", 4, 0, 2, int 4
	USER_RAISES "user int3", 3, 0, 1, int3
	USER_RAISES "user int 5", 13, 5 * 8 + 2, 0, int 5
	ret

test_illegal:
	RAISES "#UD ud2", 6, 0, 0, ud2
	RAISES "#UD lock mov", 6, 0, 0, db 0xf0, 0x89, 0xc0
	RAISES "#UD lock of a register", 6, 0, 0, db 0xf0, 0x01, 0xc0
	RAISES "#UD mov cr1", 6, 0, 0, db 0x0f, 0x20, 0xc8
	RAISES "#UD mov cs", 6, 0, 0, db 0x8e, 0xc8
	RAISES "#UD push es", 6, 0, 0, db 0x06
	RAISES "#UD into", 6, 0, 0, db 0xce
	RAISES "#UD daa", 6, 0, 0, db 0x27
	RAISES "#UD jmp far", 6, 0, 0, db 0xea, 0, 0, 0, 0, 8, 0
	RAISES "#UD rdfsbase off", 6, 0, 0, rdfsbase eax
	RAISES "#UD lea of a register", 6, 0, 0, db 0x8d, 0xc0
	USER_RAISES "#UD before #GP", 6, 0, 0, db 0x0f, 0x20, 0xc8
	RAISES "#GP of 16 bytes", 13, 0, 0, db 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
	ret

test_segments:
	mov ecx, ABSENT
	RAISES "#NP ds", 11, ABSENT, 0, mov ds, ecx
	RAISES "#SS ss", 12, ABSENT, 0, mov ss, ecx
	mov ecx, ABSENT | 3
	RAISES "#GP ss rpl", 13, ABSENT, 0, mov ss, ecx
	mov ecx, 0x1230
	RAISES "#GP es beyond", 13, 0x1230, 0, mov es, ecx
	mov ecx, 0x1234
	RAISES "#GP es of no ldt", 13, 0x1234, 0, mov es, ecx
	; The TSS is too short for an IST: #TS names it.
	mov word [gdt2 + TSS], 0x23
	mov byte [gdt2 + TSS + 5], 0x89
	mov eax, TSS
	ltr ax
	IST 0x81, 1
	RAISES "#TS short tss", 10, TSS, 0, int 0x81
	IST 0x81, 0
	mov word [gdt2 + TSS], tss_end - tss - 1
	mov byte [gdt2 + TSS + 5], 0x89
	mov eax, TSS
	ltr ax
	ret

test_memory:
	mov rsi, 1 << 63
	mov rbx, rsp
	mov rbp, rsi
	RAISES "#GP not canonical", 13, 0, 0, mov rax, [rsi]
	RAISES "#GP not canonical at its end", 13, 0, 0, mov rax, [0x7fffffff + rsi]
	RAISES "#SS not canonical", 12, 0, 0, mov rax, [rbp]
	IST 12, 1
	IST 13, 1
	mov rsp, rsi
	TRY_KEEP push rax
	mov rsp, rbx
	call pack
	CHECK "#SS push", 12
	mov rsp, rsi
	TRY_KEEP pop rax
	mov rsp, rbx
	call pack
	CHECK "#SS pop", 12
	mov rsp, rsi
	TRY_KEEP ret
	mov rsp, rbx
	call pack
	CHECK "#SS ret", 12
	IST 12, 0
	IST 13, 0
	mov esi, BUFFER + 4
	RAISES "#GP movaps", 13, 0, 0, movaps xmm0, [rsi]
	mov esi, HOLE
	RAISES "#PF read", 14, 0, 0, mov al, [rsi]
	RAISES "#PF write", 14, 2, 0, mov [rsi], al
	RAISES "#PF modify", 14, 2, 0, inc byte [rsi]
	USER_RAISES "#PF user read", 14, 4, 0, mov al, [rsi]
	USER_RAISES "#PF user write", 14, 6, 0, mov [rsi], al
	mov esi, 0x600000
	USER_RAISES "#PF user of the kernel's", 14, 5, 0, mov al, [rsi]
	mov rax, [FAULT_CR2]
	CHECK ".. cr2", 0x600000
	mov esi, HOLE - 2
	RAISES "#PF across", 14, 0, 0, mov eax, [rsi]
	mov rax, [FAULT_CR2]
	CHECK ".. cr2 across", HOLE
	mov esi, HOLE
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], .fetched
	mov [TRY_AT], rsi
	mov rbx, rsp
	jmp rsi
.fetched:
	mov rsp, rbx
	mov qword [FAULT_RESUME], 0
	call pack
	CHECK "#PF fetch", 14
	ret

; #AC is for programs.
test_flags:
	mov rax, cr0
	bts rax, 18             ; AM
	mov cr0, rax
	mov qword [user_flags], 0x40002
	mov esi, BUFFER + 1
	USER_RAISES "#AC", 17, 0, 0, mov eax, [rsi]
	USER_RAISES "#AC of a word", 17, 0, 0, mov [rsi], ax
	USER_RAISES "#AC before #PF", 17, 0, 0, mov eax, [HOLE + 2]
	mov qword [user_flags], 2
	USER_RAISES "no #AC without AC", NOTHING, 0, 0, mov eax, [rsi]
	pushfq
	bts qword [rsp], 18
	popfq
	QUIET "no #AC at CPL 0", mov eax, [rsi]
	pushfq
	btr qword [rsp], 18
	popfq
	mov rax, cr0
	btr rax, 18
	mov cr0, rax
	; RF is set in what a fault saves, not in what a trap saves.
	HOOK_IRQ 6, .hook
	HOOK_IRQ 3, .hook
	mov qword [FAULT_RESUME], .on1
	ud2
.on1:	mov eax, [FAULT_FLAGS]
	and eax, 0x10000
	CHECK "RF of a fault", 0x10000
	mov qword [FAULT_RESUME], .on2
	int3
.on2:	mov eax, [FAULT_FLAGS]
	and eax, 0x10000
	CHECK "RF of a trap", 0
	mov qword [FAULT_RESUME], 0
	HOOK_IRQ 6, 0
	HOOK_IRQ 3, 0
	ret
.hook:	mov rax, [rsp + 8 + 19 * 8]
	mov [FAULT_FLAGS], rax
	mov rax, [FAULT_RESUME]
	mov [rsp + 8 + 17 * 8], rax
	ret

test_float:
	mov rax, cr0
	or rax, 0x22            ; NE, MP
	mov cr0, rax
	fninit
	push 0x37b              ; zero divide is not masked
	fldcw [rsp]
	fld1
	fldz
	fdivp
	RAISES "#MF fwait", 16, 0, 0, fwait
	RAISES "#MF fld", 16, 0, 0, fld1
	RAISES "#MF mmx", 16, 0, 0, pxor mm0, mm0
	QUIET "no #MF fnstsw", fnstsw ax
	fninit
	pop rax
	push 0x1d80             ; nor is it here
	ldmxcsr [rsp]
	mov eax, 1
	cvtsi2ss xmm0, eax
	xorps xmm1, xmm1
	RAISES "#XM", 19, 0, 0, divss xmm0, xmm1
	mov rax, cr4
	btr rax, 10             ; OSXMMEXCPT
	mov cr4, rax
	RAISES "#UD for #XM", 6, 0, 0, divss xmm0, xmm1
	mov rax, cr4
	bts rax, 10
	mov cr4, rax
	mov dword [rsp], 0x1f80
	ldmxcsr [rsp]
	pop rax
	mov rcx, cr0
	lea rax, [rcx + 8]      ; TS
	mov cr0, rax
	RAISES "#NM x87", 7, 0, 0, fld1
	RAISES "#NM sse", 7, 0, 0, addps xmm0, xmm1
	RAISES "#NM mmx", 7, 0, 0, pxor mm0, mm0
	RAISES "#NM fwait", 7, 0, 0, fwait
	and rax, ~2
	mov rax, rcx
	and rax, ~2             ; no MP
	or rax, 8
	mov cr0, rax
	QUIET "no #NM fwait", fwait
	mov rax, rcx
	or rax, 4               ; EM
	mov cr0, rax
	RAISES "#NM x87 em", 7, 0, 0, fld1
	RAISES "#UD sse em", 6, 0, 0, addps xmm0, xmm1
	RAISES "#UD mmx em", 6, 0, 0, pxor mm0, mm0
	mov cr0, rcx
	mov rax, cr4
	btr rax, 9              ; OSFXSR
	mov cr4, rax
	RAISES "#UD sse", 6, 0, 0, addps xmm0, xmm1
	bts rax, 9
	mov rax, cr4
	bts rax, 9
	mov cr4, rax
	ret

; Which faults in a delivery make a double fault (SDM vol. 3, table 6-5), and which are told one after the other.
test_delivery:
	xor ecx, ecx
	xor edx, edx
	GATE_OFF 0
	RAISES "#DE then #NP", 8, 0, 0, div ecx
	GATE_ON 0
	GATE_OFF 13
	mov rsi, 1 << 63
	RAISES "#GP then #NP", 8, 0, 0, mov al, [rsi]
	GATE_ON 13
	GATE_OFF 14
	mov esi, HOLE
	RAISES "#PF then #NP", 8, 0, 0, mov al, [rsi]
	GATE_ON 14
	GATE_OFF 6
	RAISES "#UD then #NP", 11, 6 * 8 + 3, 0, ud2
	GATE_ON 6
	GATE_OFF 3
	RAISES "int3 then #NP", 11, 3 * 8 + 2, 0, int3
	GATE_ON 3
	GATE_OFF 1
	RAISES "int1 then #NP", 11, 1 * 8 + 3, 0, db 0xf1
	GATE_ON 1
	IST 6, 2                ; a stack that is not there
	RAISES "#UD then #PF", 14, 2, 0, ud2
	IST 6, 0
	IST 13, 2
	mov rsi, 1 << 63
	RAISES "#GP then #PF", 14, 2, 0, mov al, [rsi]
	IST 13, 0
	IST 14, 2
	mov esi, HOLE
	RAISES "#PF then #PF", 8, 0, 0, mov al, [rsi]
	IST 14, 0
	IST 3, 2
	RAISES "int3 then #PF", 14, 2, 0, int3
	IST 3, 0
	mov byte [idt + 6 * 16 + 5], 0x85
	RAISES "#UD through no gate", 13, 6 * 8 + 3, 0, ud2
	mov byte [idt + 6 * 16 + 5], 0x8e
	mov word [idt + 6 * 16 + 2], 0
	RAISES "#UD to null cs", 13, 1, 0, ud2
	mov word [idt + 6 * 16 + 2], DATA
	RAISES "#UD to data", 13, DATA + 1, 0, ud2
	mov word [idt + 6 * 16 + 2], ABSENT
	RAISES "#UD to absent data", 13, ABSENT + 1, 0, ud2
	mov word [idt + 6 * 16 + 2], CODE32
	RAISES "#UD to 32-bit code", 13, CODE32 + 1, 0, ud2
	mov word [idt + 6 * 16 + 2], CODE64
	mov dword [idt + 6 * 16 + 8], 0x8000
	RAISES "#UD to not canonical", 13, 1, 0, ud2
	mov dword [idt + 6 * 16 + 8], 0
	ret

test_idt_limit:
	sub rsp, 16
	mov word [rsp], 0x20 * 16 - 1
	mov qword [rsp + 2], idt
	lidt [rsp]
	RAISES "int behind the idt", 13, 0x80 * 8 + 2, 0, int 0x80
	mov word [rsp], 0x20 * 16 + 14
	lidt [rsp]
	RAISES "int half behind the idt", 13, 0x20 * 8 + 2, 0, int 0x20
	mov word [rsp], 13 * 16 - 1
	lidt [rsp]
	mov rsi, 1 << 63
	RAISES "#GP behind the idt", 8, 0, 0, mov al, [rsi]
	lidt [idt_ptr]
	mov qword [rsp + 2], HOLE
	mov word [rsp], 0xfff
	add rsp, 16
	ret

test_ist:
	IST 6, 1
	HOOK_IRQ 6, .hook
	mov qword [FAULT_RESUME], .on
	ud2
.on:	mov qword [FAULT_RESUME], 0
	HOOK_IRQ 6, 0
	IST 6, 0
	mov rax, [FAULT_FLAGS]
	CHECK "ist of a fault", IST_STACK - 40 - 16 - 15 * 8 - 8
	ret
.hook:	mov [FAULT_FLAGS], rsp
	mov rax, [FAULT_RESUME]
	mov [rsp + 8 + 17 * 8], rax
	ret

; An interrupt that cannot be delivered: EXT is set.
test_interrupt:
	call lapic_enable
	GATE_OFF 0x50
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], .on
	mov eax, 0x310
	xor edx, edx
	call lapic_write
	mov eax, 0x300
	mov edx, 0x44050        ; to itself
	mov rbx, rsp
	sti
	call lapic_write
	mov ecx, 1000000
.wait:	loop .wait
.on:	cli
	mov rsp, rbx
	mov qword [FAULT_RESUME], 0
	GATE_ON 0x50
	mov eax, 0xb0
	xor edx, edx
	call lapic_write
	mov rax, [FAULT_ERROR]
	shl rax, 8
	or rax, [FAULT_VECTOR]
	CHECK "interrupt then #NP", 11 | (0x50 * 8 + 3) << 8
	ret

self_nmi:
	mov eax, 0x300
	mov edx, 0x44400
	call lapic_write
	mov ecx, 2000           ; time to come
.wait:	pause
	loop .wait
	ret
nmi_hook:
	inc qword [TAKEN]
	inc qword [NEST]
	mov rax, [NEST]
	cmp rax, [DEEPEST]
	jbe .less
	mov [DEEPEST], rax
.less:	cmp qword [TAKEN], 1
	jne .out
	call self_nmi           ; waits for this one's IRET
	call self_nmi           ; and is not counted again
	cmp qword [rbp], 1
	jne .out
	mov rax, rsp            ; IRET in here: the next comes at once
	push DATA
	push rax
	push 2
	push CODE64
	push .open
	iretq
.open:	mov ecx, 2000
.wait:	pause
	loop .wait
.out:	dec qword [NEST]
	ret
test_nmi:
	HOOK_IRQ 2, nmi_hook
	mov ebp, BUFFER
	mov qword [TAKEN], 0
	mov qword [NEST], 0
	mov qword [DEEPEST], 0
	mov qword [rbp], 0
	call self_nmi
	mov rax, [TAKEN]
	CHECK "nmi and one more", 2
	mov rax, [DEEPEST]
	CHECK "nmi is blocked", 1
	mov qword [TAKEN], 0
	mov qword [DEEPEST], 0
	mov qword [rbp], 1
	call self_nmi
	mov rax, [TAKEN]
	CHECK "nmi again", 2
	mov rax, [DEEPEST]
	CHECK "nmi until iret", 2
	ret
END_GUEST
