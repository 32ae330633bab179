; 32-bit protected mode: #TS, #SS and #NP, of what the TSS, its stacks, gates and returns name. Level 1 has the bad stacks, so
; that level 0 can tell. SDM vol. 2, INT n, CALL, RET, IRET; vol. 3, 6.13 and table 6-6.
;
; QEMU's TCG says the same but where it departs from the manual: it has no EXT bit there and no limits of segments, wants two
; bytes of the TSS more than are read, takes a null LTR, and calls a stack that is absent #TS when it comes from the TSS and #NP in
; returns (QEMU 7.2, without test_limits, in which it gets lost).
;> PASS int inwards
;> PASS int tss limit
;> PASS int tss long enough
;> PASS int ss null
;> PASS int ss beyond the gdt
;> PASS int ss in no ldt
;> PASS int ss rpl
;> PASS int ss dpl
;> PASS int ss of code
;> PASS int ss read-only
;> PASS int ss of a tss
;> PASS int ss absent
;> PASS int stack too small
;> PASS int stack large enough
;> PASS int eip beyond
;> PASS int cs absent
;> PASS int gate absent
;> PASS #UD tss limit
;> PASS #UD ss null
;> PASS #UD ss rpl
;> PASS #UD ss absent
;> PASS #UD stack too small
;> PASS #UD eip beyond
;> PASS #UD cs absent
;> PASS #GP ss rpl
;> PASS interrupt ss rpl
;> PASS call tss limit
;> PASS call tss long enough
;> PASS call ss null
;> PASS call ss beyond the gdt
;> PASS call ss rpl
;> PASS call ss dpl
;> PASS call ss of code
;> PASS call ss absent
;> PASS call stack too small
;> PASS call stack large enough
;> PASS call eip beyond
;> PASS call cs absent
;> PASS iret ss null
;> PASS iret ss absent
;> PASS iret ss of code
;> PASS iret ss rpl
;> PASS iret cs of data
;> PASS iret eip beyond
;> PASS retf ss null
;> PASS retf ss absent
;> PASS retf ss of code
;> PASS retf cs absent
;> PASS push below
;> PASS push at the bottom
;> PASS pop over the end
;> PASS call below
;> PASS ret over the end
;> PASS retf over the end
;> PASS iret over the end
;> PASS pushad below
;> PASS popad over the end
;> PASS enter below
;> PASS leave over the end
;> PASS by ebp
;> PASS by esp with an index
;> PASS ss of ebx
;> PASS not by ds
;> PASS ltr absent
;> PASS ltr busy
;> PASS ltr of data
;> PASS ltr null
;> PASS lldt absent
;> PASS lss absent
%include "guest32.inc"

%define TSS 0x18
%define LDT 0x20
%define UDATA 0x28
%define UCODE 0x30
%define CODE1 0x38
%define DATA1 0x40
%define GATE 0x48
%define READONLY1 0x50
%define ABSENT1 0x58
%define SMALL1 0x60             ; 256 bytes
%define CODE1_SMALL 0x68
%define CODE1_ABSENT 0x70
%define USMALL 0x78             ; 256 bytes
%define UDATA_ABSENT 0x80
%define TSS_ABSENT 0x88
%define LDT_ABSENT 0x90
%define UCODE_SMALL 0x98
%define UCODE_ABSENT 0xa0
%define DATA_ABSENT 0xa8

%define KSP (SCRATCH + 0)
%define FAR (SCRATCH + 16)
%define ESP0 0x190000
%define USTACK 0x192000
%define ESP1 0x194000

	align 8
gdt2:	dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
	dq 0, 0                 ; TSS, LDT
	dq 0x00cff3000000ffff, 0x00cffb000000ffff
	dq 0x00cfbb000000ffff, 0x00cfb3000000ffff
	dq 0                    ; GATE
	dq 0x00cfb1000000ffff, 0x00cf33000000ffff, 0x0040b319000000ff
	dq 0x0040bb0000000fff, 0x00cf3b000000ffff, 0x0040f319000000ff, 0x00cf73000000ffff
	dq 0x0000091000000067, 0x0000021000000007
	dq 0x0040fb0000000fff, 0x00cf7b000000ffff, 0x00cf13000000ffff
gdt2_ptr:
	dw $ - gdt2 - 1
	dd gdt2
	align 4
tss:	dd 0, ESP0, DATA
.esp1:	dd ESP1
.ss1:	dd DATA1 | 1
	times 20 dd 0
	dw 0, 0x68
tss_end:
%include "prot.inc"

%define INT_VECTOR 0x84
%define IRQ_VECTOR 0x86
%define TSS_FOR_1 17            ; ESP1 and SS1 lie at 12 to 17

%macro TSS_LIMIT 1
	SYSTEM_SEGMENT TSS, tss, %1, 0x89
	mov eax, TSS
	ltr ax
%endmacro
%macro STACK1 1-2 ESP1          ; SS1, ESP1
	mov dword [tss.ss1], %1
	mov dword [tss.esp1], %2
%endmacro
%macro GATE_SEGMENT 2           ; vector, selector
	mov word [idt + (%1) * 8 + 2], %2
%endmacro
%macro SELF_IPI 0
	mov dword [LAPIC + 0x300], 0x40000 | IRQ_VECTOR
	jmp $
%endmacro
; Of an instruction of user mode on a stack of 256 bytes.
%macro SMALL_RAISES 6+          ; name, vector, error, ESP, EBP, instruction
	mov dword [FAULT_VECTOR], -1
	mov dword [FAULT_RESUME], %%on
	mov dword [TRY_AT], %%here
	jmp %%go
%%start:
	mov ecx, USMALL | 3
	mov ss, ecx
	mov esp, %4
	mov ebp, %5
%%here:	%6
%%on:	int 0x82
%%go:	mov edi, %%start
	call user_run
	mov dword [FAULT_RESUME], 0
	call pack
	CHECK %1, %2 | (%3) << 8
%endmacro

main:	lgdt [gdt2_ptr]
	TSS_LIMIT tss_end - tss - 1
	xor eax, eax
	lldt ax
	GATE_TO 0x82, back_home, 0xee
	call test_int
	call test_exception
	call test_interrupt
	call test_call
	call test_return
	call test_limits
	call test_tables
	ret

; From level 3 to level 1 and home.
to_level1:
	int 0x82

test_int:
	GATE_TO INT_VECTOR, to_level1, 0xee
	GATE_SEGMENT INT_VECTOR, CODE1
	USER_RAISES "int inwards", -1, 0, 0, int INT_VECTOR
	TSS_LIMIT TSS_FOR_1 - 1
	USER_RAISES "int tss limit", 10, TSS, 0, int INT_VECTOR
	TSS_LIMIT TSS_FOR_1
	USER_RAISES "int tss long enough", -1, 0, 0, int INT_VECTOR
	TSS_LIMIT tss_end - tss - 1
	STACK1 0
	USER_RAISES "int ss null", 10, 0, 0, int INT_VECTOR
	STACK1 0x4ff8 | 1
	USER_RAISES "int ss beyond the gdt", 10, 0x4ff8, 0, int INT_VECTOR
	STACK1 8 | 4 | 1
	USER_RAISES "int ss in no ldt", 10, 8 | 4, 0, int INT_VECTOR
	STACK1 DATA1
	USER_RAISES "int ss rpl", 10, DATA1, 0, int INT_VECTOR
	STACK1 UDATA | 1
	USER_RAISES "int ss dpl", 10, UDATA, 0, int INT_VECTOR
	STACK1 CODE1 | 1
	USER_RAISES "int ss of code", 10, CODE1, 0, int INT_VECTOR
	STACK1 READONLY1 | 1
	USER_RAISES "int ss read-only", 10, READONLY1, 0, int INT_VECTOR
	STACK1 TSS | 1
	USER_RAISES "int ss of a tss", 10, TSS, 0, int INT_VECTOR
	STACK1 ABSENT1 | 1
	USER_RAISES "int ss absent", 12, ABSENT1, 0, int INT_VECTOR
	STACK1 SMALL1 | 1, 19
	USER_RAISES "int stack too small", 12, SMALL1, 0, int INT_VECTOR
	STACK1 SMALL1 | 1, 20
	USER_RAISES "int stack large enough", -1, 0, 0, int INT_VECTOR
	STACK1 DATA1 | 1
	GATE_SEGMENT INT_VECTOR, CODE1_SMALL
	USER_RAISES "int eip beyond", 13, 0, 0, int INT_VECTOR
	GATE_SEGMENT INT_VECTOR, CODE1_ABSENT
	USER_RAISES "int cs absent", 11, CODE1_ABSENT, 0, int INT_VECTOR
	GATE_SEGMENT INT_VECTOR, CODE1
	GATE_OFF INT_VECTOR
	USER_RAISES "int gate absent", 11, INT_VECTOR * 8 + 2, 0, int INT_VECTOR
	ret

; An exception is no instruction of the program: EXT.
test_exception:
	GATE_SEGMENT 6, CODE1
	TSS_LIMIT TSS_FOR_1 - 1
	USER_RAISES "#UD tss limit", 10, TSS + 1, 0, ud2
	TSS_LIMIT tss_end - tss - 1
	STACK1 0
	USER_RAISES "#UD ss null", 10, 1, 0, ud2
	STACK1 DATA1
	USER_RAISES "#UD ss rpl", 10, DATA1 + 1, 0, ud2
	STACK1 ABSENT1 | 1
	USER_RAISES "#UD ss absent", 12, ABSENT1 + 1, 0, ud2
	STACK1 SMALL1 | 1, 19
	USER_RAISES "#UD stack too small", 12, SMALL1 + 1, 0, ud2
	STACK1 DATA1 | 1
	GATE_SEGMENT 6, CODE1_SMALL
	USER_RAISES "#UD eip beyond", 13, 1, 0, ud2
	GATE_SEGMENT 6, CODE1_ABSENT
	USER_RAISES "#UD cs absent", 11, CODE1_ABSENT + 1, 0, ud2
	GATE_SEGMENT 6, CODE32
	; one contributory exception on another
	STACK1 DATA1
	GATE_SEGMENT 13, CODE1
	USER_RAISES "#GP ss rpl", 8, 0, 0, hlt
	GATE_SEGMENT 13, CODE32
	STACK1 DATA1 | 1
	ret

; So is an interrupt; the one from the local APIC comes behind the store that asks for it.
test_interrupt:
	or dword [LAPIC + 0xf0], 0x100
	GATE_TO IRQ_VECTOR, to_level1, 0x8e
	GATE_SEGMENT IRQ_VECTOR, CODE1
	STACK1 DATA1
	mov dword [user_flags], 0x202
	USER_RAISES "interrupt ss rpl", 10, DATA1 + 1, 10, SELF_IPI
	mov dword [user_flags], 2
	mov dword [LAPIC + 0xb0], 0
	STACK1 DATA1 | 1
	ret

test_call:
	CALL_GATE to_level1, CODE1, 0xec00
	FAR_POINTER 0, GATE
	TSS_LIMIT TSS_FOR_1 - 1
	USER_RAISES "call tss limit", 10, TSS, 0, call far [FAR]
	TSS_LIMIT TSS_FOR_1
	USER_RAISES "call tss long enough", -1, 0, 0, call far [FAR]
	TSS_LIMIT tss_end - tss - 1
	STACK1 0
	USER_RAISES "call ss null", 10, 0, 0, call far [FAR]
	STACK1 0x4ff8 | 1
	USER_RAISES "call ss beyond the gdt", 10, 0x4ff8, 0, call far [FAR]
	STACK1 DATA1
	USER_RAISES "call ss rpl", 10, DATA1, 0, call far [FAR]
	STACK1 UDATA | 1
	USER_RAISES "call ss dpl", 10, UDATA, 0, call far [FAR]
	STACK1 CODE1 | 1
	USER_RAISES "call ss of code", 10, CODE1, 0, call far [FAR]
	STACK1 ABSENT1 | 1
	USER_RAISES "call ss absent", 12, ABSENT1, 0, call far [FAR]
	STACK1 SMALL1 | 1, 15
	USER_RAISES "call stack too small", 12, SMALL1, 0, call far [FAR]
	STACK1 SMALL1 | 1, 16
	USER_RAISES "call stack large enough", -1, 0, 0, call far [FAR]
	STACK1 DATA1 | 1
	CALL_GATE to_level1, CODE1_SMALL, 0xec00
	USER_RAISES "call eip beyond", 13, 0, 0, call far [FAR]
	CALL_GATE to_level1, CODE1_ABSENT, 0xec00
	USER_RAISES "call cs absent", 11, CODE1_ABSENT, 0, call far [FAR]
	ret

%macro IRET_RAISES 5            ; name, vector, error, SS, CS
	mov ebx, esp
	push %4
	push USTACK
	push 2
	push %5
	push to_level1
	RAISES %1, %2, %3, 0, iretd
	mov esp, ebx
%endmacro
%macro RETF_RAISES 5
	mov ebx, esp
	push %4
	push USTACK
	push %5
	push to_level1
	RAISES %1, %2, %3, 0, retf
	mov esp, ebx
%endmacro

test_return:
	IRET_RAISES "iret ss null", 13, 0, 0, UCODE | 3
	IRET_RAISES "iret ss absent", 12, UDATA_ABSENT, UDATA_ABSENT | 3, UCODE | 3
	IRET_RAISES "iret ss of code", 13, UCODE, UCODE | 3, UCODE | 3
	IRET_RAISES "iret ss rpl", 13, UDATA, UDATA, UCODE | 3
	IRET_RAISES "iret cs of data", 13, UDATA, UDATA | 3, UDATA | 3
	IRET_RAISES "iret eip beyond", 13, 0, UDATA | 3, UCODE_SMALL | 3
	RETF_RAISES "retf ss null", 13, 0, 0, UCODE | 3
	RETF_RAISES "retf ss absent", 12, UDATA_ABSENT, UDATA_ABSENT | 3, UCODE | 3
	RETF_RAISES "retf ss of code", 13, UCODE, UCODE | 3, UCODE | 3
	RETF_RAISES "retf cs absent", 11, UCODE_ABSENT, UDATA | 3, UCODE_ABSENT | 3
	ret

test_limits:
	SMALL_RAISES "push below", 12, 0, 3, 0, push eax
	SMALL_RAISES "push at the bottom", -1, 0, 4, 0, push eax
	SMALL_RAISES "pop over the end", 12, 0, 0xfd, 0, pop eax
	SMALL_RAISES "call below", 12, 0, 3, 0, call to_level1
	SMALL_RAISES "ret over the end", 12, 0, 0xfd, 0, ret
	SMALL_RAISES "retf over the end", 12, 0, 0xf9, 0, retf
	SMALL_RAISES "iret over the end", 12, 0, 0xf5, 0, iretd
	SMALL_RAISES "pushad below", 12, 0, 31, 0, pushad
	SMALL_RAISES "popad over the end", 12, 0, 0xe1, 0, popad
	SMALL_RAISES "enter below", 12, 0, 7, 0, enter 4, 0
	SMALL_RAISES "leave over the end", 12, 0, 0x80, 0xfd, leave
	SMALL_RAISES "by ebp", 12, 0, 0x80, 0xfe, mov eax, [ebp - 1]
	SMALL_RAISES "by esp with an index", 12, 0, 0x80, 0x80, mov [esp + ebp], al
	mov ebx, 0x100
	SMALL_RAISES "ss of ebx", 12, 0, 0x80, 0, mov al, [ss:ebx]
	SMALL_RAISES "not by ds", -1, 0, 0x80, 0x1000, mov al, [ds:ebp]
	ret

test_tables:
	mov ecx, TSS_ABSENT
	RAISES "ltr absent", 11, TSS_ABSENT, 0, ltr cx
	mov ecx, TSS
	RAISES "ltr busy", 13, TSS, 0, ltr cx
	mov ecx, DATA
	RAISES "ltr of data", 13, DATA, 0, ltr cx
	xor ecx, ecx
	RAISES "ltr null", 13, 0, 0, ltr cx
	mov ecx, LDT_ABSENT
	RAISES "lldt absent", 11, LDT_ABSENT, 0, lldt cx
	mov dword [FAR], STACK_TOP
	mov word [FAR + 4], DATA_ABSENT
	RAISES "lss absent", 12, DATA_ABSENT, 0, lss ecx, [FAR]
	ret
END_GUEST
