; From real mode through every mode and back: 16- and 32-bit protected mode with gates of both sizes, paging with 4 MiB
; and 4 KiB pages, PAE, long mode by way of compatibility mode, 64-bit code, 16- and 32-bit compatibility mode, paging
; off again, real mode. What each saw is told at the end.
;> PASS real mode limit
;> PASS real mode stack limit
;> PASS real mode word at the limit
;> PASS paging in real mode
;> PASS lldt in real mode
;> PASS data segment of real mode
;> PASS 16-bit gate
;> PASS 16-bit gate ip
;> PASS 16-bit gate error
;> PASS 16-bit stack
;> PASS 32-bit gate error
;> PASS 32-bit gate eip
;> PASS 4 MiB page
;> PASS page fault
;> PASS page fault cr2
;> PASS 4 KiB page
;> PASS page table without pse
;> PASS paging off
;> PASS pae 2 MiB page
;> PASS pae page fault
;> PASS pae reserved bit
;> PASS lme with paging
;> PASS pae stays
;> PASS efer before paging
;> PASS efer in long mode
;> PASS compatibility mode
;> PASS 64-bit mode
;> PASS pae off in long mode
;> PASS 64-bit gate
;> PASS 16-bit compatibility mode
;> PASS 16-bit compatibility mode limit
;> PASS efer after paging
;> PASS 32-bit gate again
;> PASS protected mode again
;> PASS 32-bit stack
;> PASS real mode again
;> PASS real mode limit again
%include "guest16.inc"

%define NOTE(n) (SCRATCH + (n) * 4)
%define RESUME (SCRATCH + 0x100)
%define KSP (SCRATCH + 0x104)
%define ERROR (SCRATCH + 0x108)
%define VECTOR (SCRATCH + 0x10c)
%define FRAME (SCRATCH + 0x110)
%define FARP (SCRATCH + 0x120)
%define PD 0x20000
%define PT 0x21000
%define PDPT 0x22000
%define PAE_PD 0x23000
%define PML4 0x24000
%define PDPT4 0x25000
%define STACK 0x7800

%define CODE32 0x08
%define FLAT 0x10
%define CODE16 0x18
%define DATA16 0x20
%define CODE64 0x28
%define SMALL 0x30
%define LINEAR 0xf0000

main:	mov ebx, 0x10000
	TRY mov al, [ebx]
	CHECK "real mode limit", 13
	TRY mov al, [ss:ebx]
	CHECK "real mode stack limit", 12
	mov bx, 0xffff
	TRY mov ax, [bx]
	CHECK "real mode word at the limit", 13
	mov ecx, cr0
	mov eax, ecx
	bts eax, 31
	TRY mov cr0, eax
	CHECK "paging in real mode", 13
	TRY lldt ax
	CHECK "lldt in real mode", 6
	mov [KSP], sp
	mov di, SCRATCH
	mov cx, 0x40
	xor eax, eax
	rep stosd
	call tables
	lgdt [cs:gdt_ptr]
	lidt [cs:idt16_ptr]
	mov eax, cr0
	or al, 1
	mov cr0, eax
	; CS is a real mode one still, and so is DS
	mov dword [NOTE(0)], 0x11110000
	jmp CODE16:.p16
.p16:	mov ax, DATA16
	mov ds, ax
	mov ss, ax
	mov sp, STACK
	mov ax, SMALL
	mov es, ax
	mov word [RESUME], .p16_on
.p16_at:
	mov al, [es:0x100]      ; beyond it
.p16_on:
	mov eax, [VECTOR]
	mov [NOTE(1)], eax
	mov eax, [FRAME]
	mov [NOTE(2)], eax
	mov ax, 0x1234
	mov word [RESUME], .p16_on2
	mov es, ax
.p16_on2:
	mov eax, [VECTOR]
	mov [NOTE(3)], eax
	xor eax, eax
	mov ax, sp
	mov [NOTE(4)], eax
	jmp dword CODE32:.p32
	bits 32
.p32:	mov eax, FLAT
	mov ds, eax
	mov es, eax
	mov ss, eax
	mov esp, STACK
	lidt [LINEAR + idt32_ptr]
	mov dword [RESUME], .p32_on
.p32_at:
	mov fs, [LINEAR + .bad]
.p32_on:
	mov eax, [VECTOR]
	mov [NOTE(5)], eax
	mov eax, [FRAME]
	mov [NOTE(6)], eax
	call paging
	call pae
	jmp long_mode
.bad:	dw 0x4321
.back:	; 32-bit protected mode again
	mov [NOTE(30)], esp
	lidt [LINEAR + ivt_ptr]
	jmp CODE16:.back16
	bits 16
.back16:
	mov ax, DATA16
	mov ds, ax
	mov es, ax
	mov ss, ax
	mov fs, ax
	mov gs, ax
	mov eax, cr0
	and al, 0xfe
	mov cr0, eax
	jmp 0xf000:.real
.real:	xor ax, ax
	mov ds, ax
	mov es, ax
	mov ss, ax
	mov sp, [KSP]
	jmp report

; Page tables: the first 4 MiB to themselves, the next to the first too, in each format.
tables:	push es
	mov ax, PD >> 4
	mov es, ax
	xor di, di
	xor eax, eax
	mov cx, 0x3000
	rep stosw
	mov ax, PD >> 4
	mov es, ax
	mov dword [es:0], 0x83
	mov dword [es:4], 0x83
	mov dword [es:12], PT | 3
	; PT: page 0x40 of it is the guest's notes, the others themselves
	mov ax, PT >> 4
	mov es, ax
	xor di, di
	mov eax, 3
	mov cx, 1024
.pt:	stosd
	add eax, 0x1000
	loop .pt
	mov dword [es:0x40 * 4], (SCRATCH & ~0xfff) | 3
	mov ax, PDPT >> 4
	mov es, ax
	mov dword [es:0], PAE_PD | 1
	mov ax, PAE_PD >> 4
	mov es, ax
	mov dword [es:0], 0x83
	mov dword [es:8], 0x83
	mov ax, PML4 >> 4
	mov es, ax
	mov dword [es:0], PDPT4 | 3
	mov ax, PDPT4 >> 4
	mov es, ax
	mov dword [es:0], PAE_PD | 3
	pop es
	ret

	bits 32
%macro PAGING 1
	mov eax, cr0
	%1 eax, 31
	mov cr0, eax
%endmacro
; Vector and error code of what one instruction raised into note %1.
%macro RAISED 2+
	mov dword [VECTOR], -1
	mov dword [RESUME], %%on
	%2
%%on:	mov eax, [VECTOR]
	mov [NOTE(%1)], eax
%endmacro
paging:	mov eax, cr4
	or eax, 0x10            ; PSE
	mov cr4, eax
	mov eax, PD
	mov cr3, eax
	PAGING bts
	mov dword [0x400000 + NOTE(7)], 0x4444
	RAISED 8, mov eax, [0x801234]
	mov eax, cr2
	mov [NOTE(9)], eax
	; without PSE the same entry is a page table
	mov dword [PD + 8], PT | 0x83
	mov eax, cr4
	and eax, ~0x10
	mov dword [PD], PT | 3
	mov dword [PD + 4], PT | 3
	mov cr4, eax
	mov eax, cr3
	mov cr3, eax
	mov dword [0x40000 + (NOTE(10) & 0xfff)], 0x5555
	mov eax, [0x800000 + NOTE(10)]
	mov [NOTE(11)], eax
	PAGING btr
	RAISED 12, mov eax, [0x801234]
	ret

pae:	mov eax, cr4
	or eax, 0x20
	mov cr4, eax
	mov eax, PDPT
	mov cr3, eax
	PAGING bts
	mov dword [0x200000 + NOTE(13)], 0x6666
	RAISED 14, mov [0x400000], eax
	mov dword [PDPT + 8], PAE_PD | 3 ; bit 1 is reserved there
	mov eax, PDPT
	RAISED 15, mov cr3, eax
	mov dword [PDPT + 8], 0
	mov ecx, 0xc0000080
	rdmsr
	or eax, 0x100           ; LME, with paging on
	RAISED 16, wrmsr
	PAGING btr
	mov eax, cr4
	mov [NOTE(17)], eax
	ret

long_mode:
	mov eax, PML4
	mov cr3, eax
	mov ecx, 0xc0000080
	rdmsr
	or eax, 0x900           ; NXE, LME
	wrmsr
	rdmsr
	mov [NOTE(18)], eax
	PAGING bts
	rdmsr                   ; compatibility mode now
	mov [NOTE(19)], eax
	inc eax                 ; not a REX prefix
	mov [0x200000 + NOTE(20)], eax
	lidt [LINEAR + idt64_ptr]
	jmp CODE64:LINEAR + .code64
	bits 64
	default rel
.code64:
	mov esp, STACK
	mov rax, 0x123456789abcdef0
	shr rax, 32
	mov [abs NOTE(21)], eax
	mov rax, cr4
	btr eax, 5
	mov dword [abs VECTOR], -1
	mov dword [abs RESUME], LINEAR + .on1
	mov cr4, rax            ; PAE must stay
.on1:	mov eax, [abs VECTOR]
	mov [abs NOTE(22)], eax
	mov dword [abs RESUME], LINEAR + .on2
	int3
.on2:	mov eax, [abs VECTOR]
	mov [abs NOTE(23)], eax
	mov dword [abs FARP], .compat16
	mov word [abs FARP + 4], CODE16
	jmp far dword [abs FARP]
	bits 16
.compat16:
	mov ax, DATA16
	mov ds, ax
	mov eax, 0x12347fff
	inc ax
	mov [NOTE(24)], eax
	mov dword [RESUME], .on3
	mov bx, 0xffff
	mov ax, [bx]            ; the limit holds here
.on3:	mov eax, [VECTOR]
	mov [NOTE(25)], eax
	jmp dword CODE64:LINEAR + .again64
	bits 64
.again64:
	mov eax, FLAT
	mov ds, eax
	mov dword [abs FARP], .compat32
	mov word [abs FARP + 4], CODE32
	jmp far dword [abs FARP]
	bits 32
.compat32:
	mov eax, FLAT
	mov ds, eax
	mov ss, eax
	mov esp, STACK
	PAGING btr
	mov ecx, 0xc0000080
	rdmsr
	mov [NOTE(26)], eax
	and eax, ~0x100
	wrmsr
	mov eax, cr4
	and eax, ~0x20
	mov cr4, eax
	lidt [LINEAR + idt32_ptr]
	RAISED 27, int3
	mov eax, cs
	mov [NOTE(28)], eax
	jmp main.back

	bits 16
%macro SAW 3
	mov eax, [NOTE(%1)]
	CHECK %2, %3
%endmacro
report:	SAW 0, "data segment of real mode", 0x11110000
	SAW 1, "16-bit gate", 13
	SAW 2, "16-bit gate ip", main.p16_at
	SAW 3, "16-bit gate error", 0x1234000d
	SAW 4, "16-bit stack", STACK
	SAW 5, "32-bit gate error", 0x4320000d
	SAW 6, "32-bit gate eip", main.p32_at
	SAW 7, "4 MiB page", 0x4444
	SAW 8, "page fault", 14
	SAW 9, "page fault cr2", 0x801234
	SAW 10, "4 KiB page", 0x5555
	SAW 11, "page table without pse", 0x5555
	SAW 12, "paging off", -1
	SAW 13, "pae 2 MiB page", 0x6666
	SAW 14, "pae page fault", 0x2000e
	SAW 15, "pae reserved bit", 13
	SAW 16, "lme with paging", 13
	SAW 17, "pae stays", 0x20
	SAW 18, "efer before paging", 0x900
	SAW 19, "efer in long mode", 0xd00
	SAW 20, "compatibility mode", 0xd01
	SAW 21, "64-bit mode", 0x12345678
	SAW 22, "pae off in long mode", 13
	SAW 23, "64-bit gate", 3
	SAW 24, "16-bit compatibility mode", 0x12348000
	SAW 25, "16-bit compatibility mode limit", 13
	SAW 26, "efer after paging", 0x900
	SAW 27, "32-bit gate again", 3
	SAW 28, "protected mode again", CODE32
	SAW 30, "32-bit stack", STACK
	TRY int3
	CHECK "real mode again", 3
	mov ebx, 0x10000
	TRY mov al, [ebx]
	CHECK "real mode limit again", 13
	ret

; Handlers note vector | error << 16 and where it was, and go on at RESUME.
gp16:	push bp
	mov bp, sp
	push ax
	mov ax, [bp + 2]
	mov [VECTOR + 2], ax
	mov word [VECTOR], 13
	mov ax, [bp + 4]
	mov [FRAME], ax
	mov ax, [RESUME]
	mov [bp + 4], ax
	pop ax
	pop bp
	add sp, 2
	iret
	bits 32
%macro HANDLER32 2              ; vector, with an error code?
h32_%1:
%if %2 = 0
	push 0
%endif
	push eax
	mov eax, [esp + 4]
	shl eax, 16
	or eax, %1
	mov [VECTOR], eax
	mov eax, [esp + 8]
	mov [FRAME], eax
	mov eax, [RESUME]
	mov [esp + 8], eax
	pop eax
	add esp, 4
	iretd
%endmacro
	HANDLER32 3, 0
	HANDLER32 13, 1
	HANDLER32 14, 1
	bits 64
%macro HANDLER64 2
h64_%1:
%if %2 = 0
	push 0
%endif
	push rax
	mov eax, [rsp + 8]
	shl eax, 16
	or eax, %1
	mov [abs VECTOR], eax
	mov eax, [abs RESUME]
	mov [rsp + 16], rax
	pop rax
	add rsp, 8
	iretq
%endmacro
	HANDLER64 3, 0
	HANDLER64 13, 1
	bits 16
	align 8
gdt:	dq 0
	dq 0x00cf9b0f0000ffff   ; CODE32
	dq 0x00cf93000000ffff   ; FLAT
	dq 0x00009b0f0000ffff   ; CODE16
	dq 0x000093000000ffff   ; DATA16
	dq 0x00af9b000000ffff   ; CODE64
	dq 0x00009300000000ff   ; SMALL
gdt_ptr:
	dw $ - gdt - 1
	dd LINEAR + gdt
idt16_ptr:
	dw 14 * 8 - 1
	dd LINEAR + idt16
idt32_ptr:
	dw 15 * 8 - 1
	dd LINEAR + idt32
idt64_ptr:
	dw 14 * 16 - 1
	dd LINEAR + idt64, 0
ivt_ptr:
	dw 0x3ff
	dd 0
	align 8
idt16:	times 13 dq 0
	dw gp16, CODE16, 0x8600, 0
idt32:	times 3 dq 0
	dw h32_3, CODE32, 0x8e00, 0
	times 9 dq 0
	dw h32_13, CODE32, 0x8e00, 0
	dw h32_14, CODE32, 0x8e00, 0
idt64:	times 6 dq 0
	dw h64_3, CODE64, 0x8e00, LINEAR >> 16
	dd 0, 0
	times 18 dq 0
	dw h64_13, CODE64, 0x8e00, LINEAR >> 16
	dd 0, 0
END_GUEST
