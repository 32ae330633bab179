; Paging of 32-bit protected mode, with entries of 32 bits and of 64 (PAE): page sizes, rights of both levels, error codes and
; CR2, accessed and dirty bits, INVLPG, global pages, NX (SDM vol. 3, 4.3, 4.4, 4.6 to 4.8). QEMU's TCG says the same but that
; it leaves P out of an error code with RSVD, and has zeros where nothing is.
;> PASS read
;> PASS accessed
;> PASS accessed above
;> PASS dirty after a write
;> PASS 4 MiB page
;> PASS 4 MiB page dirty
;> PASS absent read
;> PASS absent cr2
;> PASS absent write
;> PASS absent table
;> PASS second page absent
;> PASS second page cr2
;> PASS nothing written
;> PASS read-only, wp off
;> PASS read-only, wp on
;> PASS read-only above
;> PASS user read of the kernel's
;> PASS user write of the kernel's
;> PASS user read
;> PASS user write read-only
;> PASS user absent
;> PASS user fetch of the kernel's
;> PASS user read above
;> PASS reserved bit of a 4 MiB page
;> PASS changed, invlpg
;> PASS changed, cr3
;> PASS global, invlpg
;> PASS global, pge off
;> PASS changed table, invlpg
;> PASS code of another page, invlpg
;> PASS pae read
;> PASS pae accessed
;> PASS pae dirty
;> PASS pae 2 MiB page dirty
;> PASS pae absent write
;> PASS pae user write read-only
;> PASS pae no fetch
;> PASS pae no fetch cr2
;> PASS pae no fetch above
;> PASS pae user fetch
;> PASS pae reserved bit
;> PASS pae nx bit with nx off
;> PASS pae frame above 4 GiB
;> PASS paging off
%include "guest32.inc"

%define TSS 0x18
%define UDATA 0x20
%define UCODE 0x28
%define GATE 0x30
%define KSP (SCRATCH + 0)
%define FAR (SCRATCH + 16)
%define VALUE (SCRATCH + 32)
%define ESP0 0x190000
%define USTACK 0x192000

%define PD 0x200000
%define PT 0x201000             ; of LINEAR
%define PDPT 0x202000
%define PAE_PD 0x203000         ; of the first GiB
%define PAE_PD2 0x204000        ; of LINEAR's
%define PAE_PT 0x205000
%define LINEAR 0x40000000
%define PDE (PD + LINEAR / 0x400000 * 4)
%define FRAME 0x300000          ; two pages, 0x11111111 and 0x22222222
%define FRAME2 0x301000
%define LARGE 0x80000000

	align 8
gdt2:	dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0
	dq 0x00cff3000000ffff, 0x00cffb000000ffff, 0
gdt2_ptr:
	dw $ - gdt2 - 1
	dd gdt2
	align 4
tss:	dd 0, ESP0, DATA
	times 22 dd 0
	dw 0, 0x68
tss_end:
%include "prot.inc"

%macro PTE 1-2 0                ; of LINEAR; which page
	mov dword [PT + %2 * 4], %1
	invlpg [LINEAR + %2 * 0x1000]
%endmacro
%macro PAE_PTE 1-2 0            ; lower and upper half
	mov dword [PAE_PT], %1
	mov dword [PAE_PT + 4], %2
	invlpg [LINEAR]
%endmacro
%macro SET_CR 3                 ; register, bits to set, bits to clear
	mov eax, %1
	or eax, %2
	and eax, ~(%3)
	mov %1, eax
%endmacro
%macro RELOAD 0
	mov eax, cr3
	mov cr3, eax
%endmacro
%macro CHECK_CR2 2
	mov eax, cr2
	CHECK %1, %2
%endmacro

main:	lgdt [gdt2_ptr]
	SYSTEM_SEGMENT TSS, tss, tss_end - tss - 1, 0x89
	mov eax, TSS
	ltr ax
	GATE_TO 0x82, back_home, 0xee
	mov edi, PD
	mov ecx, 0x6000 / 4
	xor eax, eax
	rep stosd
	mov edi, FRAME
	mov ecx, 1024
	mov eax, 0x11111111
	rep stosd
	mov ecx, 1024
	mov eax, 0x22222222
	rep stosd
	mov dword [PD], 0x87    ; to itself, for user mode too
	mov dword [PDE], PT | 7
	mov dword [PT], FRAME | 3
	SET_CR cr4, 0x10, 0
	mov eax, PD
	mov cr3, eax
	SET_CR cr0, 0x80000000, 0x10000
	call test_bits
	call test_faults
	call test_user
	call test_changes
	call test_pae
	mov eax, cr0
	and eax, 0x7fffffff
	mov cr0, eax
	mov eax, [FRAME2 + 4]
	CHECK "paging off", 0x22222222
	ret

test_bits:
	mov eax, [LINEAR]
	CHECK "read", 0x11111111
	mov eax, [PT]
	CHECK "accessed", FRAME | 0x23
	mov eax, [PDE]
	CHECK "accessed above", PT | 0x27
	mov dword [LINEAR], 0x11111111
	mov eax, [PT]
	CHECK "dirty after a write", FRAME | 0x63
	mov dword [PD + LARGE / 0x400000 * 4], 0x83
	mov eax, [LARGE + FRAME2]
	CHECK "4 MiB page", 0x22222222
	mov dword [LARGE + FRAME2], 0x22222222
	mov eax, [PD + LARGE / 0x400000 * 4]
	CHECK "4 MiB page dirty", 0xe3
	ret

test_faults:
	PTE 0
	RAISES "absent read", 14, 0, 0, mov eax, [LINEAR + 0x123]
	CHECK_CR2 "absent cr2", LINEAR + 0x123
	RAISES "absent write", 14, 2, 0, mov [LINEAR], eax
	RAISES "absent table", 14, 0, 0, mov eax, [LINEAR + 0x400000]
	PTE FRAME | 3
	mov dword [FRAME + 0xffc], 0x33333333
	mov eax, -1
	RAISES "second page absent", 14, 2, 0, mov [LINEAR + 0xffe], eax
	CHECK_CR2 "second page cr2", LINEAR + 0x1000
	mov eax, [FRAME + 0xffc]
	CHECK "nothing written", 0x33333333
	PTE FRAME | 1
	mov eax, 0x11111111
	RAISES "read-only, wp off", -1, 0, 0, mov [LINEAR], eax
	SET_CR cr0, 0x10000, 0
	RAISES "read-only, wp on", 14, 3, 0, mov [LINEAR], eax
	PTE FRAME | 3
	and dword [PDE], ~2
	RELOAD
	RAISES "read-only above", 14, 3, 0, mov [LINEAR], eax
	or dword [PDE], 2
	RELOAD
	ret

test_user:
	USER_RAISES "user read of the kernel's", 14, 5, 0, mov eax, [LINEAR]
	USER_RAISES "user write of the kernel's", 14, 7, 0, mov [LINEAR], eax
	PTE FRAME | 5
	USER_RAISES "user read", -1, 0, 0, mov eax, [LINEAR]
	USER_RAISES "user write read-only", 14, 7, 0, mov [LINEAR], eax
	PTE FRAME | 4
	USER_RAISES "user absent", 14, 6, 0, mov [LINEAR], eax
	PTE FRAME | 3
	mov dword [FAULT_EIP], 0
	mov dword [FAULT_RESUME], .home
	mov edi, LINEAR
	call user_run
	mov dword [FAULT_RESUME], 0
	mov eax, [FAULT_ERROR]
	; whether a fetch is told from a read is a matter of NX and SMEP
	CHECK "user fetch of the kernel's", 5
	PTE FRAME | 7
	and dword [PDE], ~4
	RELOAD
	USER_RAISES "user read above", 14, 5, 0, mov eax, [LINEAR]
	or dword [PDE], 4
	mov dword [PD + LARGE / 0x400000 * 4], 0x200083
	RELOAD
	RAISES "reserved bit of a 4 MiB page", 14, 9, 0, mov eax, [LARGE]
	ret
.home:	int 0x82

test_changes:
	PTE FRAME | 3
	mov eax, [LINEAR]
	PTE FRAME2 | 3
	mov eax, [LINEAR]
	CHECK "changed, invlpg", 0x22222222
	mov dword [PT], FRAME | 3
	RELOAD
	mov eax, [LINEAR]
	CHECK "changed, cr3", 0x11111111
	SET_CR cr4, 0x80, 0
	PTE FRAME | 0x103
	mov eax, [LINEAR]
	PTE FRAME2 | 0x103
	mov eax, [LINEAR]
	CHECK "global, invlpg", 0x22222222
	mov dword [PT], FRAME | 0x103
	SET_CR cr4, 0, 0x80
	mov eax, [LINEAR]
	CHECK "global, pge off", 0x11111111
	; another table: INVLPG of a page forgets what led to it, too
	mov dword [PT + 0x4000], FRAME2 | 3
	mov dword [PDE], (PT + 0x4000) | 7
	invlpg [LINEAR]
	mov eax, [LINEAR]
	CHECK "changed table, invlpg", 0x22222222
	mov dword [PDE], PT | 7
	; mov al, n; ret
	mov dword [FRAME + 0x100], 0xc301b0
	mov dword [FRAME2 + 0x100], 0xc302b0
	PTE FRAME | 3
	mov ebx, LINEAR + 0x100
	xor eax, eax
	call ebx
	PTE FRAME2 | 3
	call ebx
	CHECK "code of another page, invlpg", 2
	ret

%define NX_HIGH 0x80000000
test_pae:
	mov dword [PDPT], PAE_PD | 1
	mov dword [PDPT + 8], PAE_PD2 | 1
	mov dword [PAE_PD], 0x87
	mov dword [PAE_PD + 8], 0x200087
	mov dword [PAE_PD2], PAE_PT | 7
	mov dword [PAE_PD2 + 8], 0x200083
	mov dword [PAE_PT], FRAME | 3
	mov eax, cr0
	and eax, 0x7fffffff
	mov cr0, eax
	SET_CR cr4, 0x20, 0
	mov eax, PDPT
	mov cr3, eax
	mov ecx, 0xc0000080
	rdmsr
	or eax, 0x800           ; NXE
	wrmsr
	mov eax, cr0
	or eax, 0x80000000
	mov cr0, eax
	mov eax, [LINEAR]
	CHECK "pae read", 0x11111111
	mov eax, [PAE_PT]
	CHECK "pae accessed", FRAME | 0x23
	mov dword [LINEAR], 0x11111111
	mov eax, [PAE_PT]
	CHECK "pae dirty", FRAME | 0x63
	mov dword [LINEAR + 0x200000 + FRAME - 0x200000], 0x11111111
	mov eax, [PAE_PD2 + 8]
	CHECK "pae 2 MiB page dirty", 0x2000e3
	PAE_PTE 0
	RAISES "pae absent write", 14, 2, 0, mov [LINEAR], eax
	PAE_PTE FRAME | 5
	USER_RAISES "pae user write read-only", 14, 7, 0, mov [LINEAR], eax
	PAE_PTE FRAME | 3, NX_HIGH
	mov ebx, LINEAR + 0x100
	TRY jmp ebx
	mov eax, [FAULT_ERROR]
	shl eax, 8
	or eax, [FAULT_VECTOR]
	CHECK "pae no fetch", 14 | 0x11 << 8
	CHECK_CR2 "pae no fetch cr2", LINEAR + 0x100
	PAE_PTE FRAME | 3
	mov dword [PAE_PD2 + 4], NX_HIGH
	invlpg [LINEAR]
	TRY jmp ebx
	mov eax, [FAULT_ERROR]
	CHECK "pae no fetch above", 0x11
	mov dword [PAE_PD2 + 4], 0
	invlpg [LINEAR]
	mov dword [FAULT_RESUME], test_user.home
	mov edi, LINEAR
	call user_run
	mov dword [FAULT_RESUME], 0
	mov eax, [FAULT_ERROR]
	CHECK "pae user fetch", 0x15
	PAE_PTE FRAME | 3, 0x40000000
	RAISES "pae reserved bit", 14, 9, 0, mov eax, [LINEAR]
	mov ecx, 0xc0000080
	rdmsr
	and eax, ~0x800
	wrmsr
	PAE_PTE FRAME | 3, NX_HIGH
	RAISES "pae nx bit with nx off", 14, 9, 0, mov eax, [LINEAR]
	PAE_PTE 3, 1            ; nothing is there
	mov eax, [LINEAR]
	CHECK "pae frame above 4 GiB", -1
	ret
END_GUEST
