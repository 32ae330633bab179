; Guest-physical addresses where nothing is, just behind RAM, above 4 GiB, at the end of the address space: by every kind of
; access they read as ones, keep nothing, and lead nowhere else; a part of an access that lies in RAM is RAM's.
;> PASS behind ram
;> PASS at 4 GiB
;> PASS at the end
;> PASS a page table outside
;> PASS code outside
%include "guest64.inc"

%define RAM_END 0x4000000       ; -m 64M
%define AT 0x80000000           ; linear: the page before is RAM's last, from here on there is nothing
%define EDGE_PT 0x300000
%define DIRECTORY (page_dirs + (AT >> 21) * 8)
%define LAST (RAM_END - 0x1000)
%define BUFFER 0x240000
%define NOTE SCRATCH            ; the number of the first thing that was wrong, 0: none


main:	; the 2 MiB before AT in small pages, of which the last is RAM's last
	mov edi, EDGE_PT
	xor eax, eax
	mov ecx, 1024
	rep stosd
	mov qword [EDGE_PT + 511 * 8], LAST + 3
	mov qword [DIRECTORY - 8], EDGE_PT + 3
	mov rax, cr4
	or eax, 0x200
	mov cr4, rax
	mov rbx, RAM_END
	call look
	mov rax, [NOTE]
	CHECK "behind ram", 0
	mov rbx, 0x100000000
	call look
	mov rax, [NOTE]
	CHECK "at 4 GiB", 0
	mov eax, 0x80000008
	cpuid
	movzx ecx, al
	mov eax, 1
	shl rax, cl
	lea rbx, [rax - 0x200000]
	call look
	mov rax, [NOTE]
	CHECK "at the end", 0
	; page tables that lie there
	mov qword [DIRECTORY], RAM_END + 3
	mov rax, cr3
	mov cr3, rax
	mov ebx, AT
	TRY mov al, [rbx]
	CHECK "a page table outside", 14
	; and code: ones are no instruction
	mov qword [DIRECTORY], RAM_END + 0x83
	mov rax, cr3
	mov cr3, rax
	mov ebx, AT + 0x100
	mov rbp, rsp
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], .executed
	call rbx
.executed:
	mov rsp, rbp
	mov qword [FAULT_RESUME], 0
	mov rax, [FAULT_VECTOR]
	CHECK "code outside", 6
	ret

; %1 = number, RAX is to be RDX
%macro IS 1
	cmp rax, rdx
	je %%ok
	cmp qword [NOTE], 0
	jne %%ok
	mov qword [NOTE], %1
%%ok:
%endmacro
%macro ONES 1
	mov rdx, -1
	IS %1
%endmacro
; Maps AT to RBX and tries it all.
look:	mov qword [NOTE], 0
	or rbx, 0x83
	mov [DIRECTORY], rbx
	mov rax, cr3
	mov cr3, rax
	mov ebp, AT
	mov rax, 0x1122334455667788
	mov [rbp - 8], rax      ; the end of RAM
	mov rax, -1
	mov al, [rbp]
	ONES 1
	mov ax, [rbp + 2]
	ONES 2
	movsxd rax, dword [rbp + 4]
	ONES 3
	mov rax, [rbp + 8]
	ONES 4
	mov rax, 0x123456789
	mov [rbp + 8], rax
	mov byte [rbp], 1
	mov word [rbp + 2], 2
	mov dword [rbp + 4], 3
	mov rax, [rbp + 8]
	ONES 5
	mov rax, [rbp]
	ONES 6
	inc qword [rbp + 16]
	mov rax, [rbp + 16]
	ONES 7
	lock add [rbp + 24], rbp
	mov rax, [rbp + 24]
	ONES 8
	xor eax, eax
	xchg rax, [rbp + 32]
	ONES 9
	mov rax, [rbp + 32]
	ONES 10
	mov rax, -1
	xor ecx, ecx
	lock cmpxchg [rbp + 40], rcx
	setz cl
	movzx eax, cl
	mov edx, 1
	IS 11
	xor eax, eax
	xor edx, edx
	xor ebx, ebx
	xor ecx, ecx
	lock cmpxchg16b [rbp + 48]
	ONES 12
	xorps xmm0, xmm0
	movups [rbp + 64], xmm0
	movups xmm1, [rbp + 64]
	movq rax, xmm1
	ONES 13
	lock bts qword [rbp + 80], 5
	setc al
	movzx eax, al
	mov edx, 1
	IS 14
	; strings, both ways
	lea rsi, [rbp + 96]
	mov edi, BUFFER
	mov ecx, 100
	rep movsb
	mov rax, [BUFFER + 92]
	ONES 15
	mov qword [BUFFER], 5
	mov esi, BUFFER
	lea rdi, [rbp + 96]
	mov ecx, 100
	rep movsd
	mov rax, [rbp + 96]
	ONES 16
	xor eax, eax
	lea rdi, [rbp + 0x1000]
	mov ecx, 512
	rep stosq
	mov rax, [rbp + 0x1ff8]
	ONES 17
	; a stack
	mov rbx, rsp
	lea rsp, [rbp + 0x2000]
	push rbp
	pop rax
	mov rsp, rbx
	ONES 18
	fninit
	fld1
	fstp qword [rbp + 200]
	mov rax, [rbp + 200]
	ONES 19
	; over the edge of RAM: half is there
	mov rax, [rbp - 4]
	mov rdx, 0xffffffff11223344
	IS 20
	mov rax, 0x99aabbccddeeff00
	mov [rbp - 4], rax
	mov rax, [rbp - 8]
	mov rdx, 0xddeeff0055667788
	IS 21
	movups xmm1, [rbp - 8]
	movhlps xmm0, xmm1
	movq rax, xmm0
	ONES 22
	lock inc qword [rbp - 3]
	mov rax, [rbp - 8]
	mov rdx, 0xddeeff0055667788 + (1 << 40)
	IS 23
	lea rsi, [rbp - 16]
	mov edi, BUFFER
	mov ecx, 32
	rep movsb
	mov rax, [BUFFER + 16]
	ONES 24
	ret
END_GUEST
