; The same instruction of user code before and after its page changes: what it had accessed once must not be what it
; accesses still (SDM vol. 3, 4.10). Where an access may lie: page edges, addresses that are not canonical.
;> PASS loads
;> PASS invlpg
;> PASS invlpg, the other slot
;> PASS invlpg, two instructions
;> PASS invlpg, the first of them
;> PASS cr3 load
;> PASS page fault
;> PASS no read any more
;> PASS no write any more
;> PASS dirty again
;> PASS read, not written
;> PASS supervisor's
;> PASS out of the page
;> PASS into the page
;> PASS in the page
;> PASS out of the page, 15 more
;> PASS byte at the end
;> PASS large page
;> PASS code that was written
;> PASS code that was written again
;> PASS group
;> PASS group, invlpg
;> PASS group over the edge
;> PASS group, read-only
;> PASS pcid 0
;> PASS pcid 1
;> PASS pcid 0 again
;> PASS invpcid
;> PASS not canonical
;> PASS not canonical, stack
;> PASS not canonical, indexed
;> PASS not canonical, fs
;> PASS far from canonical
;> PASS breakpoint
;> PASS many pages
;> PASS many pages, none lost
%define OTHER_TESTS others
%include "paging.asm"

%macro USER 1
	TRY_USER %1, %1_end
%endmacro
; Often enough for an engine to make something of it: the last time is by what it has kept of the others.
%macro USER2 1
	push rbp
	mov ebp, 300
%%again:USER %1
	dec ebp
	jnz %%again
	pop rbp
%endmacro
%macro ROUTINE 2+
%1:	%2
%1_end:	int 0x82
%endmacro

	ROUTINE u_load, mov eax, [r15]
	ROUTINE u_store, mov [r15], r14d
	ROUTINE u_byte, mov al, [r15]
	ROUTINE u_add, add dword [r15], 1
	ROUTINE u_rax, mov eax, [rcx]
	ROUTINE u_rbp, mov eax, [rbp]
	ROUTINE u_indexed, mov eax, [rcx + rdx * 4]
	ROUTINE u_fs, mov eax, [fs:rcx]
	ROUTINE u_far, mov eax, [rcx]
; Three accesses with one base.
u_group:mov eax, [r15]
	add eax, [r15 + 8]
	mov [r15 + 16], eax
u_group_end:
	int 0x82
; Loads from each of RCX pages from R15 on, by one instruction.
u_walk:	mov rdx, r15
	xor eax, eax
.next:	add eax, [rdx + 4]
	add rdx, 4096
	dec ecx
	jnz .next
u_walk_end:
	int 0x82

%macro TWO_PAGES 0
	mov qword [PT2 + 8], PAGE2 + P + W + U
	invlpg [r15 + 4096]
	PTE PAGE1 + P + W + U
%endmacro

others:	call remaps
	call changes
	call edges
	call larger
	call codes
	call groups
	call spaces
	call noncanonical
	call breakpoints
	jmp walks

remaps:	PTE PAGE1 + P + W + U
	USER2 u_load
	CHECK "loads", 0x11
	PTE PAGE2 + P + W + U
	USER2 u_load
	CHECK "invlpg", 0x22
	; another page has the same place in what an engine keeps
	PTE PAGE1 + P + W + U
	USER2 u_load
	mov qword [PDPT2 + 8], PD2 + P + W + U
	mov rbx, 1 << 26
	push r15
	mov rax, [PD2 + 0]
	mov [PD2 + 32 * 8], rax
	add r15, rbx
	USER2 u_load
	pop r15
	PTE PAGE2 + P + W + U
	USER2 u_load
	mov qword [PD2 + 32 * 8], 0
	CHECK "invlpg, the other slot", 0x22
	PTE PAGE1 + P + W + U
	USER2 u_load
	USER2 u_byte
	PTE PAGE2 + P + W + U
	USER u_byte
	movzx eax, al
	CHECK "invlpg, two instructions", 0x22
	USER u_load
	CHECK "invlpg, the first of them", 0x22
	mov qword [PT2], PAGE1 + P + W + U
	mov rax, cr3
	mov cr3, rax
	USER2 u_load
	CHECK "cr3 load", 0x11
	; a page fault leaves nothing of the page (4.10.4.1)
	PTE PAGE1 + P + U
	USER2 u_load
	USER u_store
	mov qword [PT2], PAGE2 + P + W + U
	USER u_load
	CHECK "page fault", 0x22
	ret

changes:PTE PAGE1 + P + W + U
	USER2 u_load
	PTE 0
	USER u_load
	CHECK_FAULT "no read any more", 14, 4
	PTE PAGE1 + P + W + U
	mov r14d, 0x11
	USER2 u_store
	PTE PAGE1 + P + U
	USER u_store
	CHECK_FAULT "no write any more", 14, 7
	PTE PAGE1 + P + W + U
	USER2 u_store
	PTE PAGE1 + P + W + U
	USER u_store
	mov rax, [PT2]
	and eax, A | D
	CHECK "dirty again", A | D
	PTE PAGE1 + P + W + U
	USER2 u_load
	mov rax, [PT2]
	and eax, A | D
	CHECK "read, not written", A
	PTE PAGE1 + P + W
	USER u_load
	CHECK_FAULT "supervisor's", 14, 5
	ret

edges:	TWO_PAGES
	mov dword [PAGE1 + 4094], 0x1111
	mov dword [PAGE1], 0x11
	mov dword [PAGE2], 0x22
	mov word [PAGE1 + 4094], 0x7711
	mov qword [PT2 + 8], PAGE3 + P + W + U
	invlpg [r15 + 4096]
	mov dword [PAGE3], 0x330044
	USER2 u_load
	push r15
	add r15, 4094
	USER u_load
	CHECK "out of the page", 0x447711
	pop r15
	push r15
	add r15, 4096
	USER2 u_load
	sub r15, 3
	USER u_load
	CHECK "into the page", 0x44771100
	pop r15
	USER2 u_load
	CHECK "in the page", 0x11
	mov qword [PT2 + 15 * 8], PAGE1 + P + W + U
	mov qword [PT2 + 16 * 8], PAGE3 + P + W + U
	USER2 u_load
	push r15
	add r15, 0xfffe
	USER u_load
	CHECK "out of the page, 15 more", 0x447711
	pop r15
	USER2 u_byte
	push r15
	add r15, 4095
	USER u_byte
	movzx eax, al
	CHECK "byte at the end", 0x77
	pop r15
	mov byte [PAGE3], 0xc3
	ret

; Of a large page each part goes, whichever address is invalidated.
larger:	mov dword [0x3ff008], 0x5a5a
	mov dword [0x5ff008], 0x6b6b
	PDE 0x200000 + P + W + U + PS
	push r15
	add r15, 0x1ff008
	USER2 u_load
	pop r15
	PDE 0x400000 + P + W + U + PS
	push r15
	add r15, 0x1ff008
	USER u_load
	pop r15
	CHECK "large page", 0x6b6b
	PDE PT2 + P + W + U
	ret

; A store goes on to a page that has become code in between.
codes:	PTE PAGE1 + P + W + U
	mov byte [PAGE1 + 0x7ff], 0xb8   ; mov eax, ..; ret
	mov dword [PAGE1 + 0x800], 0
	mov byte [PAGE1 + 0x804], 0xc3
	push r15
	add r15, 0x800
	mov r14d, 0x1234
	USER2 u_store
	mov edi, PAGE1 + 0x7ff
	call rdi
	CHECK "code that was written", 0x1234
	mov r14d, 0x5678
	USER u_store
	call PAGE1 + 0x7ff
	mov r14d, 0x9abc
	USER u_store
	call PAGE1 + 0x7ff
	CHECK "code that was written again", 0x9abc
	pop r15
	mov byte [PAGE1 + 0x800], 0xc3
	ret

groups:	TWO_PAGES
	mov dword [PAGE1], 0x11
	mov dword [PAGE1 + 8], 0x100
	mov dword [PAGE2], 0x22
	mov dword [PAGE2 + 8], 0x200
	USER2 u_group
	mov eax, [PAGE1 + 16]
	CHECK "group", 0x111
	PTE PAGE2 + P + W + U
	USER u_group
	mov eax, [PAGE2 + 16]
	CHECK "group, invlpg", 0x222
	PTE PAGE1 + P + W + U
	USER2 u_group
	push r15
	add r15, 4096 - 16
	mov dword [PAGE1 + 4096 - 16], 5
	mov dword [PAGE1 + 4096 - 8], 6
	USER u_group
	pop r15
	mov eax, [PAGE2]
	CHECK "group over the edge", 11
	mov dword [PAGE2], 0x22
	PTE PAGE1 + P + U
	USER u_group
	CHECK_FAULT "group, read-only", 14, 7
	ret

spaces:	mov ecx, 512
	mov esi, pml4
	mov edi, PML4B
	rep movsq
	mov qword [PML4B + 8], PDPTB + P + W + U
	mov qword [PDPTB], PDB + P + W + U
	mov qword [PDB], PTB + P + W + U
	mov qword [PTB], PAGE2 + P + W + U
	mov dword [PAGE1], 0x11
	mov qword [PT2], PAGE1 + P + W + U
	mov rax, cr3
	mov cr3, rax
	mov eax, 1
	cpuid
	bt ecx, 17
	jnc .none
	CR4_SET 1 << 17
	mov r12, cr3
	mov r13d, PML4B + 1
	USER2 u_load
	CHECK "pcid 0", 0x11
	mov cr3, r13
	USER2 u_load
	CHECK "pcid 1", 0x22
	mov rax, r12
	bts rax, 63
	mov cr3, rax
	USER2 u_load
	CHECK "pcid 0 again", 0x11
	mov rax, r13
	bts rax, 63
	mov cr3, rax
	USER2 u_load
	mov qword [PTB], PAGE1 + P + W + U
	mov qword [DESC], 1
	mov [DESC + 8], r15
	xor ecx, ecx
	call invalidate
	USER u_load
	CHECK "invpcid", 0x11
	mov cr3, r12
	CR4_CLEAR 1 << 17
	ret
.none:	PRINT {"PASS pcid 0", 10, "PASS pcid 1", 10, "PASS pcid 0 again", 10, "PASS invpcid", 10}
	ret

; By instructions that have been executed often, but of which an engine has forgotten where.
noncanonical:
	PTE PAGE1 + P + W + U
	mov rcx, r15
	mov rbp, r15
	mov edx, 3
	USER2 u_rax
	USER2 u_rbp
	USER2 u_indexed
	USER2 u_fs
	mov rax, cr3
	mov cr3, rax
	mov rcx, 1 << 63
	USER u_rax
	CHECK_FAULT "not canonical", 13, 0
	mov rbp, (1 << 63) + 0x123
	USER u_rbp
	CHECK_FAULT "not canonical, stack", 12, 0
	mov rcx, (1 << 63) + 0x120
	mov edx, 3
	USER u_indexed
	CHECK_FAULT "not canonical, indexed", 13, 0
	mov rcx, (1 << 63) + 0x120
	USER u_fs
	CHECK_FAULT "not canonical, fs", 13, 0
	mov rcx, r15
	USER2 u_far
	mov rcx, 0xff8040600ff813f4        ; T + u, where u + 8 * (u >> 12) is next to 0
	USER u_far
	CHECK_FAULT "far from canonical", 13, 0
	ret

; A data breakpoint where the instruction has been before.
breakpoints:
	USER2 u_load
	mov dr0, r15
	mov eax, 0xf0303                ; four bytes, accesses, slot 0
	mov dr7, rax
	xor eax, eax
	mov dr6, rax
	mov qword [IRQ_HOOK + 8], 0
	USER u_load
	mov rbx, dr6
	xor eax, eax
	mov dr7, rax
	mov eax, ebx
	and eax, 15
	CHECK "breakpoint", 1
	ret

; The page changes with each access for long enough that an engine may do it in another way.
walks:	mov edi, PT2
	mov rax, PAGE1 + P + W + U
	mov ecx, 256
.fill:	mov [rdi], rax
	xor rax, PAGE1 ^ PAGE2
	add edi, 8
	dec ecx
	jnz .fill
	mov rax, cr3
	mov cr3, rax
	mov dword [PAGE1 + 4], 1
	mov dword [PAGE2 + 4], 0x100
	mov r13d, 100
	xor r12d, r12d
.again:	mov ecx, 256
	USER u_walk
	cmp eax, 0x8080
	jne .out
	inc r12d
	dec r13d
	jnz .again
.out:	CHECK "many pages", 0x8080
	mov eax, r12d
	CHECK "many pages, none lost", 100
	ret
END_GUEST
