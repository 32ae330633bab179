; Breakpoints by debug registers: of data, traps behind the access; of instructions, faults before them, which the resume
; flag lets pass once (SDM vol. 3, 18.2 and 18.3).
;> PASS write
;> PASS write dr6
;> PASS write is a trap
;> PASS write is done
;> PASS write beside
;> PASS write passes a read
;> PASS write over its edge
;> PASS push
;> PASS string
;> PASS access by a read
;> PASS access dr6
;> PASS read-modify-write
;> PASS two at once
;> PASS disabled
;> PASS code
;> PASS code rip
;> PASS code dr6
;> PASS resume
;> PASS resumed once
%include "guest64.inc"
%define BUFFER 0x203100
%define COUNT (SCRATCH + 8)
; AL = the low bits of DR6, which is cleared
dr6_take:
	push rdx
	mov rax, dr6
	xor edx, edx
	mov dr6, rdx
	and eax, 0x400f
	pop rdx
	ret
main:	xor eax, eax
	mov dr6, rax
	mov ebx, BUFFER
	mov dr0, rbx
	mov eax, 0x000d0402     ; 4 bytes, writes
	mov dr7, rax
	TRY mov byte [rbx + 3], 5
	CHECK "write", 1
	call dr6_take
	CHECK "write dr6", 1
	mov rax, [FAULT_RIP]
	sub rax, [TRY_AT]
	CHECK "write is a trap", 4
	movzx eax, byte [rbx + 3]
	CHECK "write is done", 5
	TRY mov byte [rbx + 4], 5
	CHECK "write beside", 0xffffffff
	TRY mov al, [rbx]
	CHECK "write passes a read", 0xffffffff
	TRY mov qword [rbx - 7], 0
	CHECK "write over its edge", 1
	mov rcx, rsp
	lea rsp, [rbx + 8]
	TRY_KEEP push qword 0
	xchg rsp, rcx
	mov eax, [FAULT_VECTOR]
	CHECK "push", 1
	lea edi, [rbx - 2]
	mov ecx, 1
	TRY rep stosd
	CHECK "string", 1
	call dr6_take
	lea rdi, [rbx + 0x800]
	mov dr3, rdi
	mov eax, 0x70000480     ; 2 bytes, any access
	mov dr7, rax
	TRY mov rax, [rdi + 1]
	CHECK "access by a read", 1
	call dr6_take
	CHECK "access dr6", 8
	TRY lock inc dword [rdi]
	CHECK "read-modify-write", 1
	call dr6_take
	lea rdi, [rbx + 6]
	mov dr3, rdi
	mov eax, 0x700d0482
	mov dr7, rax
	TRY mov qword [rbx], 0
	call dr6_take
	CHECK "two at once", 9
	mov eax, 0x700d0400
	mov dr7, rax
	TRY mov [rbx], eax
	CHECK "disabled", 0xffffffff
	mov eax, .here
	mov dr1, rax
	mov eax, 0x00000408
	mov dr7, rax
	mov dword [COUNT], 0
	call dr6_take
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], .here
.here:	inc dword [COUNT]
	mov eax, [FAULT_VECTOR]
	CHECK "code", 1
	mov rax, [FAULT_RIP]
	CHECK "code rip", .here
	call dr6_take
	CHECK "code dr6", 2
	mov eax, [COUNT]
	CHECK "resume", 1
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], .on
	mov rax, .here
	jmp rax
.on:	mov qword [FAULT_RESUME], 0
	mov eax, [COUNT]
	CHECK "resumed once", 1
	xor eax, eax
	mov dr7, rax
	ret
END_GUEST
