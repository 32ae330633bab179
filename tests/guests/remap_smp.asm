; As remap.asm with two CPUs: CPU 1 executes the same few instructions of user code over and over while CPU 0 changes what is
; mapped there and tells it by IPI, or executes what it writes.
;> PASS aps up
;> PASS it loads
;> PASS remapped by ipi
;> PASS rights by ipi
;> PASS code that it writes
;> PASS code that it writes, always newer
%define SMP
%define OTHER_TESTS others
%include "paging.asm"
%define MODE (SCRATCH + 0x100)          ; 0: CPU 1 loads, 1: it stores
%define SEEN (SCRATCH + 0x108)          ; what it loaded
%define PASSES (SCRATCH + 0x110)        ; how often
%define ACKS (SCRATCH + 0x118)
%define FAULTS (SCRATCH + 0x120)        ; page faults that it had
%define TSS2 0x40
%define IPI_INVALIDATE 0x50
%define ROUNDS 64

	align 8
tss2:	times 0x68 db 0

; CPU 1 at CPL 3, interrupts on. RBX = SCRATCH as it sees that.
user_loop:
	cmp dword [rbx + 0x100], 0
	jne .store
	mov eax, [r15]
	mov [rbx + 0x108], eax
.next:	lock inc qword [rbx + 0x110]
	jmp user_loop
.store:	inc r14d
	mov [r15 + 0x800], r14d
	jmp .next

ap_main:
	cli
	lgdt [gdt2_ptr]
	mov [tss2 + 4], rsp
	mov eax, tss2
	mov word [gdt2 + TSS2], 0x67
	mov [gdt2 + TSS2 + 2], ax
	shr eax, 16
	mov [gdt2 + TSS2 + 4], al
	mov byte [gdt2 + TSS2 + 5], 0x89
	mov eax, TSS2
	ltr ax
	NXE_SET
	mov r15, T
	mov rbx, UALIAS + SCRATCH
	xor r14d, r14d
	push UDATA
	push 0
	push 0x202
	push UCODE
	mov rax, UALIAS + user_loop
	push rax
	iretq

on_invalidate:
	mov rax, T
	invlpg [rax]
	lock inc qword [ACKS]
	ret
; Only CPU 1 has any: it tries again.
on_page_fault:
	lock inc qword [FAULTS]
	ret

; CPU 1 has forgotten T.
tell:	mov rcx, [ACKS]
	mov eax, ICR_FIXED | IPI_INVALIDATE
	mov edx, 1
	call ipi
.wait:	pause
	cmp [ACKS], rcx
	je .wait
	ret
; It has come round twice.
pass:	mov rcx, [PASSES]
	add rcx, 2
.wait:	pause
	cmp [PASSES], rcx
	jb .wait
	ret

others:	call lapic_enable
	mov edi, SCRATCH + 0x100
	xor eax, eax
	mov ecx, 16
	rep stosq
	mov qword [IRQ_HOOK + IPI_INVALIDATE * 8], on_invalidate
	PTE PAGE1 + P + W + U
	call start_aps
	mov edi, AP_COUNT
	mov esi, 1
	call await
	mov rax, [AP_COUNT]
	CHECK "aps up", 1
	call pass
	mov eax, [SEEN]
	CHECK "it loads", 0x11

	mov ebp, ROUNDS
	mov r12d, PAGE1 + P + W + U
	xor r13d, r13d
.remap:	xor r12d, PAGE1 ^ PAGE2
	PTE r12
	call tell
	call pass
	mov eax, r12d
	and eax, ~0xfff
	mov ecx, [SEEN]
	cmp ecx, [rax]
	jne .stale
	inc r13d
.stale:	dec ebp
	jnz .remap
	mov eax, r13d
	CHECK "remapped by ipi", ROUNDS

	; it has no page for a while: what it loads comes to a halt
	mov qword [IRQ_HOOK + 14 * 8], on_page_fault
	mov ebp, ROUNDS / 8
	xor r13d, r13d
.take:	PTE 0
	call tell
	mov rax, [FAULTS]
.fault:	pause
	cmp [FAULTS], rax
	je .fault
	PTE PAGE1 + P + W + U
	call pass
	mov eax, [SEEN]
	cmp eax, 0x11
	jne .lost
	inc r13d
.lost:	dec ebp
	jnz .take
	mov qword [IRQ_HOOK + 14 * 8], 0
	mov eax, r13d
	CHECK "rights by ipi", ROUNDS / 8

	; it stores what CPU 0 executes
	mov byte [PAGE1 + 0x7ff], 0xb8
	mov dword [PAGE1 + 0x800], 0
	mov byte [PAGE1 + 0x804], 0xc3
	mov qword [MODE], 1
	mov ebp, ROUNDS
	xor r12d, r12d
	xor r13d, r13d
.code:	call pass
	xor eax, eax
	xor ecx, ecx
	cpuid
	call PAGE1 + 0x7ff
	cmp eax, r12d
	jbe .old
	inc r13d
.old:	mov r12d, eax
	dec ebp
	jnz .code
	mov eax, r12d
	CHECK "code that it writes", ROUNDS, 0xffffffff
	mov eax, r13d
	CHECK "code that it writes, always newer", ROUNDS
	ret
END_GUEST
