; A disk read that lands on code: what the CPUs had translated is gone, whatever address they run it by, and on whichever
; CPU. The disk is this file, on an AHCI controller.
;> PASS ahci
;> PASS read
;> PASS code read
;> PASS read over
;> PASS by another address
;> PASS read over, by another address
;> PASS and by its own
;> PASS before a part is read
;> PASS part of a page
;> PASS the other part
;> PASS over the edge
;> PASS an instruction over the edge
;> PASS the second page read over
;> PASS into the page of who waits
;> PASS and what it read
;> PASS another cpu
;> PASS read under another cpu
;> PASS read again and again
%include "smp.inc"

%define COMMANDS 0x310000       ; the command list, a command table, received FISes
%define TABLE 0x311000
%define RECEIVED 0x312000
%define CODE_AT 0x320000        ; what is run and read over
%define ALIAS (0xc00000 + CODE_AT - 0x200000)
%define AP_CODE 0x330000
%define AP_SAW (SCRATCH + 0x80)
%define AP_RUNS (SCRATCH + 0x88)
%define PORT (SCRATCH + 0x90)   ; registers of port 0
%define CFG (0x80000000 | 3 << 11)

%macro READ_SECTORS 3           ; first label, bytes, where to
	mov eax, (%1 - elf_header) / 512
	mov ecx, %2
	mov edi, %3
	call disk_read
%endmacro
cfg_read:
	mov dx, 0xcf8
	out dx, eax
	mov dx, 0xcfc
	in eax, dx
	ret
disk_init:
	mov eax, CFG + 4
	call cfg_read
	or eax, 6
	out dx, eax
	mov eax, CFG + 0x24
	call cfg_read
	and eax, ~0xf
	bts dword [rax + 4], 31  ; AHCI enable
	lea ebx, [rax + 0x100]
	mov [PORT], rbx
	and dword [rbx + 0x18], ~0x11
	mov dword [rbx], COMMANDS
	mov dword [rbx + 4], 0
	mov dword [rbx + 8], RECEIVED
	mov dword [rbx + 12], 0
	mov dword [rbx + 0x30], -1
	or dword [rbx + 0x18], 0x16
	or dword [rbx + 0x18], 1
	mov ecx, COMMANDS
	mov dword [rcx], 1 << 16 | 5
	mov dword [rcx + 4], 0
	mov dword [rcx + 8], TABLE
	mov dword [rcx + 12], 0
	mov ecx, TABLE
	mov dword [rcx], 0x00258027 ; a command: READ DMA EXT
	mov dword [rcx + 8], 0
	mov dword [rcx + 0x84], 0
	mov dword [rcx + 0x88], 0
	ret
; Sector EAX, ECX bytes, to RDI. EAX = 0, or that it failed.
disk_read:
	mov ebx, TABLE
	mov [rbx + 4], eax
	mov byte [rbx + 7], 0x40
	mov [rbx + 0x80], edi
	mov eax, ecx
	dec eax
	mov [rbx + 0x8c], eax
	shr ecx, 9
	mov [rbx + 12], ecx
	mov rbx, [PORT]
	mov dword [rbx + 0x10], -1
	mov dword [rbx + 0x38], 1
	mov ecx, 20000000
.wait:	pause
	test dword [rbx + 0x38], 1
	loopnz .wait
	mov eax, [rbx + 0x20]   ; not busy, no error
	and eax, 0x81
	ret

ap_main:
	mov ebp, AP_CODE
.loop:	call rbp
	mov [AP_SAW], rax
	inc qword [AP_RUNS]
	jmp .loop
; Waits until the AP has run on for a while; RAX = what it saw last.
ap_runs:
	mov rdx, [AP_RUNS]
	add rdx, 100
	mov ecx, 100000
.wait:	cmp [AP_RUNS], rdx
	jae .done
	mov eax, 100000
	call delay_ns
	loop .wait
.done:	mov rax, [AP_SAW]
	ret
; name, address, value: twice, so that it is run from the cache
%macro RETURNS 3
	mov ebp, %2
	call rbp
	xor eax, eax
	call rbp
	CHECK %1, %3
%endmacro

main:	mov qword [page_dirs + 6 * 8], 0x200083
	mov rax, cr3
	mov cr3, rax
	call lapic_enable
	mov eax, CFG + 8
	call cfg_read
	shr eax, 8
	CHECK "ahci", 0x010601
	call disk_init
	READ_SECTORS ones, 4096, CODE_AT
	CHECK "read", 0
	RETURNS "code read", CODE_AT, 0x11
	READ_SECTORS twos, 4096, CODE_AT
	RETURNS "read over", CODE_AT, 0x22
	RETURNS "by another address", ALIAS + 0x200, 0x22
	READ_SECTORS ones, 4096, CODE_AT
	RETURNS "read over, by another address", ALIAS + 0x200, 0x11
	RETURNS "and by its own", CODE_AT + 0x200, 0x11
	; part of the page: the other part's code stays
	RETURNS "before a part is read", CODE_AT + 0xe00, 0x11
	READ_SECTORS twos, 512, CODE_AT + 0xe00
	RETURNS "part of a page", CODE_AT + 0xe00, 0x22
	RETURNS "the other part", CODE_AT + 0xd00, 0x11
	; an instruction over a page's edge, of which the second page alone is read over
	READ_SECTORS ones, 4096, CODE_AT
	READ_SECTORS ones, 4096, CODE_AT + 0x1000
	RETURNS "over the edge", CODE_AT + 0xff8 + 6 - 8, 0x11
	mov edi, CODE_AT + 0xffd
	PUT_FN 0x33333333
	RETURNS "an instruction over the edge", CODE_AT + 0xffd, 0x33333333
	READ_SECTORS shifted, 512, CODE_AT + 0x1000
	RETURNS "the second page read over", CODE_AT + 0xffd, 0x44443333
	; who waits for the disk returns into the page that was read
	mov esi, copied
	mov edi, CODE_AT + 0x100
	mov ecx, copied_end - copied
	rep movsb
	mov eax, (twos - elf_header) / 512
	mov ecx, 512
	mov edi, CODE_AT + 0xe00
	mov ebp, CODE_AT + 0x100
	call rbp
	CHECK "into the page of who waits", 0
	RETURNS "and what it read", CODE_AT + 0xe00, 0x22
	; another CPU runs it meanwhile
	READ_SECTORS ones, 4096, AP_CODE
	call start_aps
	call ap_runs
	CHECK "another cpu", 0x11
	READ_SECTORS twos, 4096, AP_CODE
	call ap_runs
	CHECK "read under another cpu", 0x22
	mov r15d, 20
	xor r14d, r14d
.again:	READ_SECTORS ones, 4096, AP_CODE
	call ap_runs
	cmp eax, 0x11
	jne .bad
	READ_SECTORS twos, 4096, AP_CODE
	call ap_runs
	cmp eax, 0x22
	jne .bad
	dec r15d
	jnz .again
	mov r14d, 1
.bad:	mov eax, r14d
	CHECK "read again and again", 1
	ret
copied:	mov r13, disk_read
	call r13                ; and returns into the page that was written
	ret
copied_end:

%macro FUNCTIONS 1
	align 512
%rep 512
	db 0xb8, %1, 0, 0, 0, 0xc3, 0x90, 0x90
%endrep
%endmacro
	FUNCTIONS 0x11
ones equ $ - 4096
	FUNCTIONS 0x22
twos equ $ - 4096
	align 512
shifted:
	db 0x44, 0x44, 0xc3
	align 512
END_GUEST
