; 4-level paging: page sizes, rights, error codes, accessed and dirty bits, what INVLPG, CR3, PCID and global pages
; do (SDM vol. 3, chapter 4); reserved bits are paging_rsvd.asm's. T is the address whose tables are changed; CPL 3 runs on an alias of this image.
;> PASS read
;> PASS accessed
;> PASS accessed above
;> PASS clean after a read
;> PASS dirty after a write
;> PASS dirty is the lowest level's
;> PASS absent read
;> PASS absent write
;> PASS absent cr2
;> PASS absent tables
;> PASS became present
;> PASS cr2 of a second page
;> PASS read-only, wp off
;> PASS read-only, wp off, dirty
;> PASS read-only, wp on
;> PASS read-only above
;> PASS no fetch
;> PASS no fetch above
;> PASS fetch with nx off
;> PASS absent fetch
;> PASS user read
;> PASS user write
;> PASS user fetch
;> PASS user absent
;> PASS user read-only
;> PASS user allowed
;> PASS user above
;> PASS 2 MiB page
;> PASS 2 MiB page dirty
;> PASS 1 GiB page
;> PASS smep
;> PASS smap read
;> PASS smap write
;> PASS smap stac
;> PASS smap clac
;> PASS invlpg
;> PASS cr3 load
;> PASS global stays or goes, invlpg
;> PASS pge off and on
;> PASS jump to a page
;> PASS jump to a page, invlpg
;> PASS jump to a page, cr3 load
;> PASS jump to a page, absent
;> PASS return to a page
;> PASS return to a page, invlpg
;> PASS return to a page, cr3 load
;> PASS return to a page, written
;> PASS return to a page, absent
;> PASS pcid 0
;> PASS pcid 1
;> PASS pcid 0 again
;> PASS pcid kept
;> PASS return to another pcid
;> PASS and back
;> PASS invpcid address
;> PASS invpcid context
;> PASS invpcid all
;> PASS invpcid type
;> PASS not canonical
%ifdef SMP
%include "smp.inc"
%else
%include "guest64.inc"
%endif
%define T 0x8000000000          ; the second entry of the PML4
%define UALIAS 0x18000000000    ; the fourth: the first 4 MiB for CPL 3
%define PDPT2 0x300000
%define PD2 0x301000
%define PT2 0x302000
%define PDPT3 0x303000
%define PD3 0x304000
%define PML4B 0x305000
%define PDPTB 0x306000
%define PDB 0x307000
%define PTB 0x308000
%define PAGE1 0x310000
%define PAGE2 0x311000
%define PAGE3 0x312000
%define FROM_PAGE 0x314000
%define TO_PAGE1 0x315000
%define TO_PAGE2 0x316000
%define KSP SCRATCH
%define DESC (SCRATCH + 16)     ; of INVPCID
%define RSP0 0x208000
%define USTACK (UALIAS + 0x20a000)

P	equ 1
W	equ 2
U	equ 4
A	equ 0x20
D	equ 0x40
PS	equ 0x80
G	equ 0x100
NXBIT	equ 1 << 63

	align 8
gdt2:	dq 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
	dq 0x00cff3000000ffff, 0x00affb000000ffff
	dq 0, 0, 0, 0
gdt2_ptr:
	dw $ - gdt2 - 1
	dq gdt2
	align 8
tss:	dd 0
	dq RSP0
	times 0x60 db 0
tss_end:
%define UDATA 0x23
%define UCODE 0x2b
%define TSS 0x30

; The entry of T in its page table, PT2, with INVLPG.
%macro PTE 1
	mov rax, %1
	mov [PT2], rax
	invlpg [r15]
%endmacro
%macro PDE 1
	mov rax, %1
	mov [PD2], rax
	invlpg [r15]
%endmacro
%macro PDPTE 1
	mov rax, %1
	mov [PDPT2], rax
	invlpg [r15]
%endmacro
%macro CHECK_FAULT 3            ; name, vector, error code
	mov rax, [FAULT_VECTOR]
	shl rax, 16
	or rax, [FAULT_ERROR]
	CHECK %1, (%2) << 16 | (%3)
%endmacro
%macro CHECK_NONE 1
	mov rax, [FAULT_VECTOR]
	CHECK %1, -1
%endmacro
%macro CR4_SET 1
	mov rax, cr4
	or rax, %1
	mov cr4, rax
%endmacro
%macro CR4_CLEAR 1
	mov rax, cr4
	and rax, ~(%1)
	mov cr4, rax
%endmacro
%macro WP_SET 0
	mov rax, cr0
	or eax, 0x10000
	mov cr0, rax
%endmacro
%macro WP_CLEAR 0
	mov rax, cr0
	and eax, ~0x10000
	mov cr0, rax
%endmacro
%macro NXE_SET 0
	mov ecx, 0xc0000080
	rdmsr
	or eax, 0x800
	wrmsr
%endmacro

; A call of RDI
%macro TRY_CALL 0
	mov rbx, rsp
	TRY_KEEP call rdi
	mov rsp, rbx
%endmacro

; TRY, but at CPL 3: %1 is a label of code that ends in `int 0x82`, %2 that INT.
%macro TRY_USER 2
	mov qword [FAULT_VECTOR], -1
	mov rax, UALIAS + %2
	mov [FAULT_RESUME], rax
	mov rdi, UALIAS + %1
	call user_run
	mov qword [FAULT_RESUME], 0
%endmacro
user_run:
	mov [KSP], rsp
	push UDATA
	mov rax, USTACK
	push rax
	push 2
	push UCODE
	push rdi
	iretq
back_home:
	mov rsp, [KSP]
	ret
user_read:
	mov al, [r15]
user_read_end:
	int 0x82
user_write:
	mov [r15], al
user_write_end:
	int 0x82
user_fetch:
	jmp r15
user_fetch_end:
	int 0x82

main:	call set_up
%ifdef ONLY_RESERVED
	jmp reserved
%endif
%ifdef OTHER_TESTS
	jmp OTHER_TESTS
%endif
	call a_and_d
	call rights
	call fetches
	call users
	call large
	call supervisor
	call caching
	call jumps
	call returns
	call pcids
	mov rsi, 0x0000800000000000
	TRY mov al, [rsi]
	CHECK_FAULT "not canonical", 13, 0
	ret

set_up:	mov edi, 0x300000
	xor eax, eax
	mov ecx, 0x13000 / 8
	rep stosq
	mov qword [pml4 + 8], PDPT2 + P + W + U
	mov qword [PDPT2], PD2 + P + W + U
	mov qword [PD2], PT2 + P + W + U
	mov qword [PT2], PAGE1 + P + W + U
	mov qword [PAGE1], 0x11
	mov qword [PAGE2], 0x22
	mov qword [PAGE3], 0xc3
	mov byte [PAGE1 + 0x800], 0xc3  ; ret
	mov qword [pml4 + 24], PDPT3 + P + W + U
	mov qword [PDPT3], PD3 + P + W + U
	mov qword [PD3], 0 + P + W + U + PS
	mov qword [PD3 + 8], 0x200000 + P + W + U + PS
	mov rax, cr3
	mov cr3, rax
	mov r15, T
	lgdt [gdt2_ptr]
	mov eax, tss
	mov word [gdt2 + TSS], tss_end - tss - 1
	mov [gdt2 + TSS + 2], ax
	shr eax, 16
	mov [gdt2 + TSS + 4], al
	mov byte [gdt2 + TSS + 5], 0x89
	mov eax, TSS
	ltr ax
	mov ebx, idt + 0x82 * 16
	mov rax, back_home
	mov [rbx], ax
	mov byte [rbx + 5], 0xee
	shr rax, 16
	mov [rbx + 6], ax
	NXE_SET
	ret

a_and_d:
	PTE PAGE1 + P + W
	movzx eax, byte [r15]
	CHECK "read", 0x11
	mov rax, [PT2]
	and eax, A
	CHECK "accessed", A
	mov rax, [PD2]
	and rax, [PDPT2]
	and rax, [pml4 + 8]
	and eax, A
	CHECK "accessed above", A
	mov rax, [PT2]
	and eax, D
	CHECK "clean after a read", 0
	mov byte [r15], 0x11
	mov rax, [PT2]
	and eax, D
	CHECK "dirty after a write", D
	mov rax, [PD2]
	and eax, D
	CHECK "dirty is the lowest level's", 0
	ret

rights:	PTE PAGE1 + W
	TRY mov al, [r15]
	CHECK_FAULT "absent read", 14, 0
	TRY mov [r15 + 5], al
	CHECK_FAULT "absent write", 14, 2
	mov rax, [FAULT_CR2]
	mov rbx, T + 5
	CHECK "absent cr2", rbx
	mov rsi, T + (1 << 30)
	TRY mov al, [rsi]
	CHECK_FAULT "absent tables", 14, 0
	mov qword [PT2], PAGE1 + P + W          ; needs no INVLPG
	TRY mov al, [r15]
	CHECK_NONE "became present"
	TRY mov rax, [r15 + 0xffd]
	mov rax, [FAULT_CR2]
	mov rbx, T + 0x1000
	CHECK "cr2 of a second page", rbx
	PTE PAGE1 + P
	TRY mov byte [r15], 0x11
	CHECK_NONE "read-only, wp off"
	mov rax, [PT2]
	and eax, D
	CHECK "read-only, wp off, dirty", D
	WP_SET
	TRY mov byte [r15], 0x11
	CHECK_FAULT "read-only, wp on", 14, 3
	PTE PAGE1 + P + W
	PDE PT2 + P + U
	TRY mov byte [r15], 0x11
	CHECK_FAULT "read-only above", 14, 3
	PDE PT2 + P + W + U
	ret

fetches:
	PTE PAGE1 + P + W + NXBIT
	lea rdi, [r15 + 0x800]
	TRY_CALL
	CHECK_FAULT "no fetch", 14, 0x11
	PTE PAGE1 + P + W
	PDE PT2 + P + W + U + NXBIT
	TRY_CALL
	CHECK_FAULT "no fetch above", 14, 0x11
	PDE PT2 + P + W + U
	mov ecx, 0xc0000080
	rdmsr
	and eax, ~0x800
	wrmsr
	TRY_CALL
	CHECK_NONE "fetch with nx off"
	NXE_SET
	PTE 0
	TRY_CALL
	CHECK_FAULT "absent fetch", 14, 0x10
	ret

%ifdef ONLY_RESERVED
reserved:
	; the highest physical address bit that no CPU here has
	mov eax, 0x80000008
	cpuid
	movzx ecx, al
	mov ebx, 1
	shl rbx, cl
	mov r14, rbx
	lea rax, [rbx + PAGE1 + P + W]
	PTE rax
	TRY mov al, [r15]
	CHECK_FAULT "reserved bit", 14, 9
	TRY mov [r15], al
	CHECK_FAULT "reserved bit write", 14, 0xb
	PDE 0x200000 + P + W + PS + 0x2000
	TRY mov al, [r15]
	CHECK_FAULT "reserved bit of a large page", 14, 9
	PDE PT2 + P + W + U
	mov qword [pml4 + 8], PDPT2 + P + W + U + PS
	invlpg [r15]
	TRY mov al, [r15]
	CHECK_FAULT "large bit at the top", 14, 9
	mov qword [pml4 + 8], PDPT2 + P + W + U
	lea rax, [r14 + PAGE1 + P + W + U]
	PTE rax
	TRY_USER user_read, user_read_end
	CHECK_FAULT "user reserved", 14, 0xd
	mov ecx, 0xc0000080
	rdmsr
	and eax, ~0x800
	wrmsr
	PTE PAGE1 + P + W + NXBIT
	TRY mov al, [r15]
	CHECK_FAULT "nx bit with nx off", 14, 9
	mov rbp, 0x0000800000000000
	TRY mov al, [rbp]
	CHECK_FAULT "not canonical stack", 12, 0
	ret
%endif

users:	PTE PAGE1 + P + W
	TRY_USER user_read, user_read_end
	CHECK_FAULT "user read", 14, 5
	TRY_USER user_write, user_write_end
	CHECK_FAULT "user write", 14, 7
	TRY_USER user_fetch, user_fetch_end
	CHECK_FAULT "user fetch", 14, 0x15
	PTE 0
	TRY_USER user_read, user_read_end
	CHECK_FAULT "user absent", 14, 4
	PTE PAGE1 + P + U
	TRY_USER user_write, user_write_end
	CHECK_FAULT "user read-only", 14, 7
	PTE PAGE1 + P + W + U
	TRY_USER user_write, user_write_end
	CHECK_NONE "user allowed"
	PDE PT2 + P + W
	TRY_USER user_read, user_read_end
	CHECK_FAULT "user above", 14, 5
	PDE PT2 + P + W + U
	ret

large:	PDE 0x200000 + P + W + PS
	mov rax, 0x5a5a
	mov [0x3ff008], rax
	mov rax, [r15 + 0x1ff008]
	CHECK "2 MiB page", 0x5a5a
	mov [r15], al
	mov rax, [PD2]
	and eax, A | D
	CHECK "2 MiB page dirty", A | D
	PDE PT2 + P + W + U
	mov eax, 0x80000001
	cpuid
	bt edx, 26
	mov eax, 0x6b6b                 ; without 1 GiB pages there is nothing to see
	jnc .none
	PDPTE 0 + P + W + PS
	mov rax, 0x6b6b
	mov [0x3ff010], rax
	mov rax, [r15 + 0x3ff010]
.none:	CHECK "1 GiB page", 0x6b6b
	PDPTE PD2 + P + W + U
	ret

; SMEP and SMAP, which a CPU that shows them has; one without them passes.
supervisor:
	PTE PAGE1 + P + W + U
	mov eax, 7
	xor ecx, ecx
	cpuid
	mov r13d, ebx
	bt r13d, 7
	jnc .nosmep
	CR4_SET 1 << 20
	lea rdi, [r15 + 0x800]
	TRY_CALL
	CR4_CLEAR 1 << 20
.nosmep:
	bt r13d, 7
	jc .smep
	call pretend
	mov qword [FAULT_ERROR], 0x11
.smep:	CHECK_FAULT "smep", 14, 0x11
	bt r13d, 20
	jnc .nosmap
	CR4_SET 1 << 21
	TRY mov al, [r15]
	CHECK_FAULT "smap read", 14, 1
	TRY mov byte [r15], 0x11
	CHECK_FAULT "smap write", 14, 3
	stac
	TRY mov al, [r15]
	CHECK_NONE "smap stac"
	clac
	TRY mov al, [r15]
	CHECK_FAULT "smap clac", 14, 1
	CR4_CLEAR 1 << 21
	ret
.nosmap:PRINT {"PASS smap read", 10, "PASS smap write", 10, "PASS smap stac", 10, "PASS smap clac", 10}
	ret
pretend:mov qword [FAULT_VECTOR], 14
	ret

caching:
	mov byte [PAGE1], 0x11
	PTE PAGE1 + P + W
	mov al, [r15]
	PTE PAGE2 + P + W
	movzx eax, byte [r15]
	CHECK "invlpg", 0x22
	mov rax, PAGE1 + P + W
	mov [PT2], rax
	mov rax, cr3
	mov cr3, rax
	movzx eax, byte [r15]
	CHECK "cr3 load", 0x11
	CR4_SET 0x80
	PTE PAGE1 + P + W + G
	mov al, [r15]
	PTE PAGE2 + P + W + G
	movzx eax, byte [r15]
	CHECK "global stays or goes, invlpg", 0x22
	mov qword [PT2], PAGE1 + P + W
	CR4_CLEAR 0x80
	movzx eax, byte [r15]
	CHECK "pge off and on", 0x11
	ret

; Code at T that jumps to the next page, often enough for an engine to make it one piece; then that page is another one.
jumps:	mov byte [FROM_PAGE], 0xe9      ; jmp T + 0x1000
	mov dword [FROM_PAGE + 1], 0x1000 - 5
	mov dword [TO_PAGE1], 0xc311b0  ; mov al, 0x11; ret
	mov dword [TO_PAGE2], 0xc322b0
	mov qword [PT2 + 8], TO_PAGE1 + P
	PTE FROM_PAGE + P
	invlpg [r15 + 0x1000]
	call jump_often
	CHECK "jump to a page", 0x11
	mov qword [PT2 + 8], TO_PAGE2 + P
	invlpg [r15 + 0x1000]
	call jump_often
	CHECK "jump to a page, invlpg", 0x22
	mov qword [PT2 + 8], TO_PAGE1 + P
	mov rax, cr3
	mov cr3, rax
	call jump_often
	CHECK "jump to a page, cr3 load", 0x11
	mov qword [PT2 + 8], 0
	invlpg [r15 + 0x1000]
	mov rdi, r15
	TRY_CALL
	CHECK_FAULT "jump to a page, absent", 14, 0x10
	PTE PAGE1 + P + W
	ret

; Code at T that calls R14, which makes another page of the one that it returns to.
returns:
	mov edi, FROM_PAGE
	call put_caller
	mov edi, TO_PAGE1
	call put_caller
	mov byte [TO_PAGE1 + 4], 0x22
	PTE FROM_PAGE + P + W
	mov r14, .plain
	call jump_often
	CHECK "return to a page", 0x11
	mov r14, .invlpg
	xor eax, eax
	call r15
	movzx eax, al
	CHECK "return to a page, invlpg", 0x22
	mov r14, .plain
	call jump_often
	mov r14, .cr3
	xor eax, eax
	call r15
	movzx eax, al
	CHECK "return to a page, cr3 load", 0x11
	mov r14, .plain
	call jump_often
	mov r14, .write
	xor eax, eax
	call r15
	movzx eax, al
	CHECK "return to a page, written", 0x33
	mov r14, .plain
	call jump_often
	mov r14, .absent
	mov rdi, r15
	TRY_CALL
	CHECK_FAULT "return to a page, absent", 14, 0x10
	PTE PAGE1 + P + W
	ret
.plain:	ret
.invlpg: PTE TO_PAGE1 + P
	ret
.cr3:	mov qword [PT2], FROM_PAGE + P + W
	mov rax, cr3
	mov cr3, rax
	ret
.write:	mov byte [r15 + 4], 0x33
	ret
.absent: PTE 0
	ret
; call r14; mov al, 0x11; ret, at RDI
put_caller:
	mov dword [rdi], 0xb0d6ff41
	mov word [rdi + 4], 0xc311
	ret

; EAX = the sum of what the jump came to, divided by how often: all of them must agree.
jump_often:
	mov ecx, 100
	xor edx, edx
.again:	xor eax, eax
	call r15
	add edx, eax
	dec ecx
	jnz .again
	mov eax, edx
	xor edx, edx
	mov ecx, 100
	div ecx
	imul edx, edx, 1000             ; a remainder shows
	add eax, edx
	ret

; Two address spaces that differ at T, by PCID.
pcids:	mov ecx, 512
	mov esi, pml4
	mov edi, PML4B
	rep movsq
	mov qword [PML4B + 8], PDPTB + P + W + U
	mov qword [PDPTB], PDB + P + W + U
	mov qword [PDB], PTB + P + W + U
	mov qword [PTB], PAGE2 + P + W
	mov qword [PT2], PAGE1 + P + W
	mov rax, cr3
	mov cr3, rax
	mov eax, 1
	cpuid
	bt ecx, 17
	jnc .none
	CR4_SET 1 << 17
	mov r12, cr3                    ; PCID 0
	mov r13d, PML4B + 1             ; PCID 1
	movzx eax, byte [r15]
	CHECK "pcid 0", 0x11
	mov cr3, r13
	movzx eax, byte [r15]
	CHECK "pcid 1", 0x22
	mov rax, r12
	bts rax, 63                     ; what is cached stays
	mov cr3, rax
	movzx eax, byte [r15]
	CHECK "pcid 0 again", 0x11
	mov rax, r13
	bts rax, 63
	mov cr3, rax
	movzx eax, byte [r15]
	CHECK "pcid kept", 0x22
	; code at T calls R14, which goes over to the other address space
	push r15
	mov edi, PAGE1 + 0x100
	call put_caller
	mov edi, PAGE2 + 0x100
	call put_caller
	mov byte [PAGE2 + 0x104], 0x22
	add r15, 0x100
	mov r14, returns.plain
	call jump_often
	mov rax, r12
	bts rax, 63
	mov cr3, rax
	call jump_often
	mov r14, .other
	xor eax, eax
	call r15
	movzx eax, al
	CHECK "return to another pcid", 0x22
	mov r14, .one
	xor eax, eax
	call r15
	movzx eax, al
	CHECK "and back", 0x11
	pop r15
	mov rax, r13
	bts rax, 63
	mov cr3, rax
	; the current one is 1; INVPCID changes what is cached of others too
	mov qword [PTB], PAGE1 + P + W
	mov qword [DESC], 1
	mov [DESC + 8], r15
	xor ecx, ecx
	call invalidate
	movzx eax, byte [r15]
	CHECK "invpcid address", 0x11
	mov qword [PTB], PAGE2 + P + W
	mov ecx, 1
	call invalidate
	movzx eax, byte [r15]
	CHECK "invpcid context", 0x22
	mov qword [PT2], PAGE2 + P + W
	mov ecx, 2
	call invalidate
	mov rax, r12
	bts rax, 63
	mov cr3, rax
	movzx eax, byte [r15]
	CHECK "invpcid all", 0x22
	mov eax, 7
	xor ecx, ecx
	cpuid
	mov qword [FAULT_VECTOR], 13
	mov qword [FAULT_ERROR], 0
	bt ebx, 10
	jnc .notype
	mov ecx, 4
	TRY invpcid rcx, [DESC]
.notype:CHECK_FAULT "invpcid type", 13, 0
	mov cr3, r12
	CR4_CLEAR 1 << 17
	ret
.none:	PRINT {"PASS pcid 0", 10, "PASS pcid 1", 10, "PASS pcid 0 again", 10, "PASS pcid kept", 10}
	PRINT {"PASS return to another pcid", 10, "PASS and back", 10}
	PRINT {"PASS invpcid address", 10, "PASS invpcid context", 10, "PASS invpcid all", 10, "PASS invpcid type", 10}
	ret
.other:	mov rax, r13
	bts rax, 63
	mov cr3, rax
	ret
.one:	mov rax, r12
	bts rax, 63
	mov cr3, rax
	ret
; INVPCID of type ECX on DESC, or all there is by CR4.PGE
invalidate:
	push rcx
	mov eax, 7
	xor ecx, ecx
	cpuid
	pop rcx
	bt ebx, 10
	jnc .old
	invpcid rcx, [DESC]
	ret
.old:	mov rax, cr4
	xor eax, 0x80
	mov cr4, rax
	xor eax, 0x80
	mov cr4, rax
	ret
%ifndef OTHER_TESTS
END_GUEST
%endif
