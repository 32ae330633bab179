; More code than a small code cache holds, run by all CPUs at once in different orders: chains of jumps, calls and
; returns, while the blocks of the others come and go. Each pass of each CPU must come to the same sum.
;> PASS all came
;> PASS all done
;> PASS no sum is wrong
;> PASS no call was lost
%include "smp.inc"

%define FUNCS 0x500000          ; 32 bytes each
%define COUNT 4096
%define CHAIN 8                 ; so many jump on to the next before one returns
%define PASSES 12
%define GO (SCRATCH + 0)
%define DONE (SCRATCH + 8)
%define WRONG (SCRATCH + 16)
%define CALLS (SCRATCH + 24)

; Number RCX at RDI: add rax, number; jmp to the next, or ret.
put_function:
	mov byte [rdi], 0x48
	mov word [rdi + 1], 0xc081
	mov [rdi + 3], ecx
	mov byte [rdi + 7], 0xe9
	mov dword [rdi + 8], 32 - 12
	lea eax, [ecx + 1]
	test eax, CHAIN - 1
	jnz .next
	mov byte [rdi + 7], 0xc3
.next:	add edi, 32
	inc ecx
	cmp ecx, COUNT
	jb put_function
	ret

ap_main:
	cmp qword [GO], 0
	jne .go
	pause
	jmp ap_main
.go:	call work
.rest:	cli
	hlt
	jmp .rest

; EBX = APIC id: the order of the chains is its own, by an odd step.
work:	lea r12, [rbx * 2 + 1]
	mov r13d, PASSES
	xor r15d, r15d
.pass:	xor eax, eax
	mov ecx, COUNT / CHAIN
.chain:	mov rdx, r15
	and edx, COUNT / CHAIN - 1
	shl edx, 8
	add edx, FUNCS
	call rdx
	lock inc qword [CALLS]
	add r15, r12
	dec ecx
	jnz .chain
	cmp rax, COUNT * (COUNT - 1) / 2
	je .right
	lock inc qword [WRONG]
.right:	dec r13d
	jnz .pass
	lock inc qword [DONE]
	ret

main:	call lapic_enable
	mov edi, FUNCS
	xor ecx, ecx
	call put_function
	mov qword [GO], 0
	mov qword [DONE], 0
	mov qword [WRONG], 0
	mov qword [CALLS], 0
	call start_aps
	mov edi, AP_COUNT
	mov esi, 1
	call await
	mov rax, [AP_COUNT]
	CHECK "all came", 1
	mov qword [GO], 1
	xor ebx, ebx
	call work
	mov edi, DONE
	mov esi, 2
	call await
	mov rax, [DONE]
	CHECK "all done", 2
	mov rax, [WRONG]
	CHECK "no sum is wrong", 0
	mov rax, [CALLS]
	CHECK "no call was lost", 2 * PASSES * COUNT / CHAIN
	ret
END_GUEST
