; Code that another CPU rewrites while this one runs it (SDM vol. 3, 9.1.3): CPU 1 calls, CPU 0 changes.
;> PASS aps up
;> PASS immediate, unsynchronised
;> PASS only values that were there
;> PASS immediate, by a direct call from another page
;> PASS only that page was called
;> PASS handshake
;> PASS handshake over a page edge
;> PASS breakpoint patching
;> PASS breakpoints were met
;> PASS fresh page each time
%include "smp.inc"
%define TARGET (SCRATCH + 0)            ; what CPU 1 is to call, 0: nothing
%define ROUND (SCRATCH + 8)             ; CPU 1 calls once a round if SYNC
%define DONE (SCRATCH + 16)             ; the last round that CPU 1 finished
%define SYNC (SCRATCH + 24)
%define SEEN (SCRATCH + 32)             ; what the last call gave
%define ODD (SCRATCH + 40)              ; calls that gave something never written
%define CALLS (SCRATCH + 48)
%define BREAKS (SCRATCH + 56)           ; INT3 taken
%define BUFFER 0x400000
%define FAR_CALL (BUFFER + 0x2000)      ; a call of FAR_FN
%define FAR_FN (BUFFER + 0x5003)
%define FAR_TWICE (BUFFER + 0x8003)     ; as far again
%define LIMIT 2000
%define ROUNDS 200
%define PATCHES 60                       ; each round and settling may cost a busy host a time slice

ap_main:
	mov rsi, [ROUND]
	mov rdi, [TARGET]
	test rdi, rdi
	jz .rest
	cmp qword [SYNC], 0
	je .free
	cmp rsi, [DONE]
	je .rest
	xor eax, eax
	xor ecx, ecx
	cpuid                           ; serializes
	call rdi
	mov [SEEN], rax
	mov [DONE], rsi
	jmp ap_main
.free:	xor eax, eax
	call rdi
	cmp rax, LIMIT
	jbe .fine
	lock inc qword [ODD]
.fine:	mov [SEEN], rax
	lock inc qword [CALLS]
	jmp ap_main
.rest:	pause
	jmp ap_main

; One call by CPU 1: RAX is what it gave.
round:	call press
	mov [TARGET], rdi
	push rcx
	push rdi
	push rsi
	inc qword [ROUND]
	mov rsi, [ROUND]
	mov edi, DONE
.spin:	pause
	cmp [rdi], rsi
	jne .spin
	pop rsi
	pop rdi
	pop rcx
	mov rax, [SEEN]
	ret

; Until CPU 1 has called twice more.
settle:	call press
	push rax
	mov rax, [CALLS]
	add rax, 2
.spin:	pause
	cmp [CALLS], rax
	jb .spin
	pop rax
	ret

on_int3:
	lock inc qword [BREAKS]
	add qword [rsp + 8 + 17 * 8], 4 ; behind the five bytes, as if they were the nop
	ret

main:	call lapic_enable
	mov edi, SCRATCH
	xor eax, eax
	mov ecx, 16
	rep stosq
	call start_aps
	mov edi, AP_COUNT
	mov esi, 1
	call await
	mov rax, [AP_COUNT]
	CHECK "aps up", 1

	; an aligned immediate changes under it: in the end the last one is seen
	mov edi, BUFFER + 3
	PUT_FN 0
	mov [TARGET], rdi
	call immediates
	CHECK "immediate, unsynchronised", LIMIT
	mov rax, [ODD]
	CHECK "only values that were there", 0

	; the same where a direct call leads from one page to another
	mov edi, FAR_TWICE
	PUT_FN LIMIT + 1
	mov edi, FAR_FN
	PUT_FN 0
	mov eax, FAR_CALL
	mov byte [rax], 0xe8
	mov dword [rax + 1], FAR_FN - FAR_CALL - 5
	mov byte [rax + 5], 0xc3
	mov [TARGET], rax
	call immediates
	CHECK "immediate, by a direct call from another page", LIMIT
	mov rax, [ODD]
	CHECK "only that page was called", 0

	; a change between two calls, with all the manual asks for
	mov qword [TARGET], 0
	mov rax, 10000000
	call delay_ns
	mov qword [SYNC], 1
	mov edi, BUFFER + 0x100
	call rounds
	CHECK "handshake", ROUNDS
	mov edi, BUFFER + 0x1000 - 3
	call rounds
	CHECK "handshake over a page edge", ROUNDS

	; as kernels patch a five-byte nop to a jump and back: INT3, the rest, the first byte
	mov qword [TARGET], 0
	mov qword [SYNC], 0
	HOOK_IRQ 3, on_int3
	mov edi, BUFFER + 0x208
	mov dword [rdi], 0x00441f0f
	mov byte [rdi + 4], 0
	mov byte [rdi + 5], 0xb8        ; mov eax, 7
	mov dword [rdi + 6], 7
	mov byte [rdi + 10], 0xc3
	mov byte [rdi + 11], 0xb8       ; mov eax, 8
	mov dword [rdi + 12], 8
	mov byte [rdi + 16], 0xc3
	mov [TARGET], rdi
	mov ecx, PATCHES
	xor ebx, ebx
.patch:	mov byte [rdi], 0xcc
	call settle
	test ecx, 1
	jz .nop
	mov dword [rdi + 1], 6          ; jmp +6
	call settle
	mov byte [rdi], 0xe9
	mov edx, 8
	jmp .set
.nop:	mov dword [rdi + 1], 0x0000441f
	call settle
	mov byte [rdi], 0x0f
	mov edx, 7
.set:	call settle
	cmp [SEEN], rdx
	setne al
	movzx eax, al
	add ebx, eax
	loop .patch
	mov eax, ebx
	CHECK "breakpoint patching", 0
	mov rax, [BREAKS]
	CHECK "breakpoints were met", PATCHES, -1

	; pages that have been data become code
	mov qword [TARGET], 0
	mov rax, 10000000
	call delay_ns
	mov qword [SYNC], 1
	mov ecx, 40
	xor ebx, ebx
.fresh:	mov edi, ecx
	shl edi, 12
	add edi, 0x500000
	PUT_FN ecx
	call round
	cmp eax, ecx
	setne al
	movzx eax, al
	add ebx, eax
	loop .fresh
	mov eax, ebx
	CHECK "fresh page each time", 0
	ret

; All values up to LIMIT go into the function at RDI, which CPU 1 calls all the time: RAX = what it gives in the end
immediates:
	call settle
	mov ecx, 1
.imm:	mov [rdi + 1], ecx
	mov eax, ecx
	and eax, 15
	jnz .on
	call settle
.on:	inc ecx
	cmp ecx, LIMIT
	jbe .imm
	call settle
	mov rax, [SEEN]
	ret

; ROUNDS changes of the function at RDI, a call after each: EAX = those that were seen
rounds:	mov ecx, ROUNDS
	xor ebx, ebx
	PUT_FN 0
.next:	mov [rdi + 1], ecx
	call round
	cmp eax, ecx
	sete al
	movzx eax, al
	add ebx, eax
	loop .next
	mov eax, ebx
	ret
END_GUEST
