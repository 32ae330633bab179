; Accesses that lie next to each other, and loops over memory: across page edges, off the end of what can be accessed, with
; faults on the way; pages side by side are not so in memory. An engine may check such accesses together; nobody must see that it does.
;> PASS over an edge
;> PASS pushed over an edge
;> PASS pops give it back
;> PASS memory pushed over an edge
;> PASS the base moves
;> PASS second of two faults
;> PASS its address
;> PASS the first was done
;> PASS copied over pages
;> PASS sum upwards
;> PASS sum downwards
;> PASS index and scale
;> PASS stores every other page
;> PASS base, index or both move
;> PASS loops of loops
;> PASS division in a loop faults
;> PASS at its place
;> PASS quotients before it
;> PASS registers that the loop leaves alone
;> PASS registers that it uses
;> PASS whichever iteration it is
;> PASS the loop goes off the map
;> PASS at the first byte there
;> PASS after so many
;> PASS the stack pointer is seen in a row of pushes
;> PASS as its fault sees it
;> PASS as what leaves the block sees it
;> PASS calls in a row
;> PASS popped itself
%include "guest64.inc"
%define A 0x800000                       ; to 0x9fffff: pages whose neighbours lie elsewhere in memory
%define B 0x880000
%define C 0x900000
%define PT 0x300000
%define FRAMES 0xa00000
%define WORDS 1500                       ; nearly three pages of them
%define END 0x100000000                  ; what is mapped

; RDI WORDS words from RAX on, each one more.
fill:	mov ecx, WORDS
.next:	stosq
	inc rax
	loop .next
	ret

main:	mov edi, PT
	xor ecx, ecx
.map:	mov eax, ecx
	xor eax, 5
	shl eax, 12
	add eax, FRAMES + 3
	stosq
	inc ecx
	cmp ecx, 512
	jb .map
	mov qword [page_dirs + A / 0x200000 * 8], PT + 3
	mov rax, cr3
	mov cr3, rax

	; four stores of one base, of which the second lies on two pages, read back one by one
	mov ebx, A + 0x1000 - 12
	mov eax, 1
	mov [rbx], rax
	add eax, eax
	mov [rbx + 8], rax
	add eax, eax
	mov [rbx + 16], rax
	add eax, eax
	mov [rbx + 24], rax
	mov esi, A + 0x1000 - 12
	xor edx, edx
	mov ecx, 4
.words:	lodsq
	shl rdx, 8
	add rdx, rax
	loop .words
	mov rax, rdx
	CHECK "over an edge", 0x01020408

	mov rbp, rsp
	mov esp, A + 0x3000 + 12
	mov eax, 0x11
	mov ebx, 0x22
	mov edx, 0x33
	push rax
	push rbx
	push rdx
	push 0x44
	mov rsi, rsp
	pop rdi
	pop r8
	pop r9
	pop r10
	mov rsp, rbp
	mov rax, [rsi]
	shl rax, 8
	add rax, [rsi + 8]
	shl rax, 8
	mov rcx, rsi
	add rax, [rcx + 16]
	shl rax, 8
	mov rcx, rsi
	add rax, [rcx + 24]
	CHECK "pushed over an edge", 0x44332211
	mov rax, rdi
	shl rax, 8
	add rax, r8
	shl rax, 8
	add rax, r9
	shl rax, 8
	add rax, r10
	CHECK "pops give it back", 0x44332211

	mov esp, A + 0x3000 + 12
	mov dword [B], 0x1234
	mov dword [B + 4], 0
	mov ebx, B
	push qword [rbx]
	push qword [rbx]
	pop rax
	pop rcx
	mov rsp, rbp
	shl rax, 16
	add rax, rcx
	CHECK "memory pushed over an edge", 0x12341234

	mov edi, A + 0x100
	mov eax, 5
	mov [rdi], rax
	add rdi, 8
	mov [rdi], rdi
	sub rdi, 16
	inc rax
	mov [rdi + 16 + 8], rax
	lea rdi, [rdi + 24]
	dec rdi
	mov rax, [rdi + 1]
	add rax, [rdi + 1 - 16]
	add rax, [rdi + 1 - 8]
	CHECK "the base moves", A + 0x100 + 16 + 11 - 8

	mov rbx, END - 8
	mov ecx, 1
	mov edx, 2
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], .met
	mov rcx, [rbx]
	mov edx, 3
	mov rdx, [rbx + 8]
.met:	mov qword [FAULT_RESUME], 0
	mov rax, [FAULT_VECTOR]
	CHECK "second of two faults", 14
	mov rax, [FAULT_CR2]
	mov r8, END
	CHECK "its address", r8
	mov eax, edx
	CHECK "the first was done", 3

	mov edi, A + 24
	mov eax, 1000
	call fill
	mov esi, A + 24
	mov edi, B + 40
.copy:	movdqu xmm0, [rsi]
	movdqu xmm1, [rsi + 16]
	movdqu [rdi], xmm0
	movdqu [rdi + 16], xmm1
	add rsi, 32
	add rdi, 32
	cmp rsi, A + 24 + WORDS * 8
	jb .copy
	mov esi, A + 24
	mov edi, B + 40
	mov ecx, WORDS
	repe cmpsq
	mov eax, ecx
	CHECK "copied over pages", 0

	mov esi, A + 24
	xor eax, eax
.up:	add rax, [rsi]
	add rsi, 8
	cmp rsi, A + 24 + WORDS * 8
	jne .up
	CHECK "sum upwards", WORDS * 1000 + WORDS * (WORDS - 1) / 2

	mov esi, A + 24 + WORDS * 8
	xor eax, eax
.down:	sub rsi, 8
	add rax, [rsi]
	cmp rsi, A + 24
	jne .down
	CHECK "sum downwards", WORDS * 1000 + WORDS * (WORDS - 1) / 2

	mov ebx, A + 24
	xor ecx, ecx
	xor eax, eax
	xor edx, edx
.index:	add rax, [rbx + rdx * 8]
	add rax, [rbx + rdx * 8 + 8]
	add rdx, 2
	cmp rdx, WORDS
	jb .index
	CHECK "index and scale", WORDS * 1000 + WORDS * (WORDS - 1) / 2

	mov edi, C
	mov eax, 1
.far:	mov [rdi + 0xffc], rax           ; of eight bytes: over the edge each time
	add rdi, 0x2000 / 32
	inc rax
	cmp rdi, C + 0x2000 * 8
	jne .far
	mov rax, [C + 0xffc + 0x2000 * 7]
	CHECK "stores every other page", 7 * 32 + 1

	; A to B and to C: the base stays and the index moves, the other way round, and both move
	mov edi, A + 24
	mov eax, 77
	call fill
	mov ebx, A + 24
	xor edx, edx
	mov edi, B - 48
	mov r8d, 12
	mov ebp, C
	xor r9d, r9d
.moves:	mov rax, [rbx + rdx * 8]
	mov [rdi + r8 * 4], rax
	mov [rbp + r9 * 4 + 8], rax
	add rdx, 1
	add rdi, 8
	add rbp, 4
	add r9, 1
	cmp rdx, WORDS
	jne .moves
	mov esi, A + 24
	mov edi, B
	mov ecx, WORDS
	repe cmpsq
	mov eax, ecx
	jne .moved
	mov esi, A + 24
	mov edi, C + 8
	mov ecx, WORDS
	repe cmpsq
	add eax, ecx
.moved:	CHECK "base, index or both move", 0

	; each word counts as often as the outer loop comes by: 1 to 40 words, from ever further on
	xor eax, eax
	xor r8d, r8d
.outer:	inc r8d
	lea rsi, [A + 24 + r8 * 8]
	mov ecx, r8d
.inner:	add rax, [rsi]
	add rsi, 8
	sub ecx, 1
	jne .inner
	add rax, r8
	cmp r8d, 40
	jne .outer
	; the sum over k of k, and of the k words from the k-th on, which are 77 and more
	CHECK "loops of loops", 78 * 820 + (3 * 22140 - 820) / 2

	; words of A divided by words of B, of which one is 0, to C
	mov edi, A + 24
	mov eax, 1000
	call fill
	mov edi, B
	mov eax, 7
	call fill
	mov qword [B + 700 * 8], 0
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], .zero
	mov r12d, 12
	mov r13d, 13
	mov r9d, 9
	mov r8d, 8
	mov ecx, 1
	mov esi, A + 24
	mov edi, B
	mov ebx, C
.divide: mov rax, [rsi]
	xor edx, edx
.at:	div qword [rdi]
	mov [rbx], rax
	add rsi, 8
	add rdi, 8
	add rbx, 8
	cmp rsi, A + 24 + WORDS * 8
	jne .divide
.zero:	mov qword [FAULT_RESUME], 0
	mov rax, [FAULT_VECTOR]
	CHECK "division in a loop faults", 0
	mov rax, [FAULT_RIP]
	CHECK "at its place", .at
	mov rax, [C + 699 * 8]
	CHECK "quotients before it", (1000 + 699) / (7 + 699)
	lea rax, [r12 + r13]
	shl rax, 8
	add rax, r9
	shl rax, 8
	add rax, r8
	shl rax, 8
	add rax, rcx
	CHECK "registers that the loop leaves alone", 0x19090801
	lea rax, [rsi + rdi]
	add rax, rbx
	CHECK "registers that it uses", A + 24 + B + C + 3 * 700 * 8

	; a division by zero in each of the first iterations in turn
	mov ecx, 1
.place:	mov edi, B
	mov eax, 7
	mov r8d, ecx
	call fill
	mov ecx, r8d
	mov qword [B + rcx * 8], 0
	mov qword [FAULT_RESUME], .there
	mov esi, B
	xor ebx, ebx
.some:	mov eax, 100
	xor edx, edx
	div qword [rsi]
	inc rbx
	add rsi, 8
	cmp rsi, B + WORDS * 8
	jne .some
.there:	lea rax, [B + rcx * 8]
	cmp rax, rsi
	jne .placed
	cmp rbx, rcx
	jne .placed
	inc ecx
	cmp ecx, 24
	jne .place
.placed: mov qword [FAULT_RESUME], 0
	mov eax, ecx
	CHECK "whichever iteration it is", 24

	; bytes up to where nothing is mapped
	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], .off
	mov rsi, END - 9
	xor ecx, ecx
.bytes:	mov al, [rsi]
	add rcx, 1
	add rsi, 1
	test rsi, rsi
	jne .bytes
.off:	mov qword [FAULT_RESUME], 0
	mov rax, [FAULT_VECTOR]
	CHECK "the loop goes off the map", 14
	mov rax, [FAULT_CR2]
	mov r8, END
	CHECK "at the first byte there", r8
	mov eax, ecx
	CHECK "after so many", 9

	; who looks at RSP between pushes and pops
	mov rbp, rsp
	mov esp, B + 0x800
	push rax
	push rsp
	mov edx, 1
	push rbx
	lea rdx, [rsp + rdx - 1]
	push rdx
	mov rcx, rsp
	push rcx
	add ecx, 0
	push qword [rsp]
	xor rdx, rdx
	push 5
	sub rcx, rsp
	pop rax
	mov rax, [rsp + 32]
	pop rbx
	pop rbx
	pop rdx
	mov rsp, rbp
	sub rax, rdx            ; pushed RSP, and RSP by LEA: 16
	shl rax, 8
	sub rdx, rbx            ; .. by LEA and by MOV: 8
	add rax, rdx
	shl rax, 8
	add rax, rcx            ; .. by MOV, and at last: 24
	CHECK "the stack pointer is seen in a row of pushes", 0x100818

	mov qword [FAULT_VECTOR], -1
	mov qword [FAULT_RESUME], .no_quotient
	mov esp, B + 0x800
	xor eax, eax
	xor ebx, ebx
	push rax
	xor edx, edx
	push rbx
	mov ecx, eax
	push rcx
	div ecx
	push rcx
	push rcx
.no_quotient: mov rax, rsp
	mov rsp, rbp
	mov qword [FAULT_RESUME], 0
	sub rax, B + 0x800 - 64
	add rax, [FAULT_VECTOR]
	CHECK "as its fault sees it", 64 - 24

	mov esp, B + 0x800
	mov ecx, 1
	mov edx, cs
	push rax
	push rcx
	jrcxz .not_taken
	push rdx
	push .returned
	o64 retf
.not_taken:	push rax
.returned:	push rax
	push rcx
	cpuid
	pop rcx
	push rcx
	pushfq
	mov rax, rsp
	mov rsp, rbp
	sub rax, B + 0x800 - 64
	CHECK "as what leaves the block sees it", 64 - 40

	mov esp, B + 0x800
	mov eax, 3
	push rax
	mov ebx, 4
	push rbx
	call .callee
	pop rdx
	mov rcx, rsp
	push rcx
	push rbx
	mov edx, eax
	call .callee2
	mov rax, rsp
	mov rsp, rbp
	sub rax, B + 0x800 - 64
	shl rax, 8
	add rax, rdx
	CHECK "calls in a row", (64 - 8) << 8 | 10
	jmp .onto_itself
.callee: pop rcx
	pop rdx
	push rdx
	push rcx
	lea eax, [rdx + 3]
	ret
.callee2: push rdx
	add rdx, 3
	push rdx
	pop rdx
	pop rcx
	ret 16

.onto_itself: mov esp, B + 0x800
	mov edx, B + 0x700
	push rax
	push rdx
	push rdx
	pop rcx
	pop rsp
	push rax
	push rsp
	pop rax
	mov rsp, rbp
	sub rax, B
	CHECK "popped itself", 0x6f8
	ret
END_GUEST
