; The ACPI PM block: SCI_EN by SMI_CMD, the PM timer, PM1 registers, and the power button by SCI. The runner
; presses it (SIGTERM) when it sees the line "ready for the power button".
;> PASS sci off
;> PASS acpi on
;> PASS acpi off
;> PASS timer runs
;> PASS status write 1 clears
;> PASS enable readable
;> ready for the power button
;> PASS button sci
;> PASS button status
;> PASS button cleared
;> PASS line low again
%include "guest64.inc"
hook:	mov dx, PM1_STS
	xor eax, eax
	in ax, dx
	or [SCRATCH], eax
	inc qword [SCRATCH + 8]
	out dx, ax              ; write 1 to clear
	ret
sci_en:	mov dx, PM1_CNT
	xor eax, eax
	in ax, dx
	and eax, 1
	ret
main:	call sci_en
	CHECK "sci off", 0
	mov al, 0xa0
	out SMI_CMD, al
	call sci_en
	CHECK "acpi on", 1
	mov al, 0xa1
	out SMI_CMD, al
	call sci_en
	CHECK "acpi off", 0
	mov al, 0xa0
	out SMI_CMD, al
	mov dx, PM_TMR
	in eax, dx
	mov ebx, eax
	mov ecx, 2000000
.runs:	in eax, dx
	cmp eax, ebx
	loope .runs
	sub eax, ebx
	and eax, 0xffffff
	CHECK "timer runs", 1, 0xffffff
	mov dx, PM1_STS
	mov ax, 0xffff
	out dx, ax
	xor eax, eax
	in ax, dx
	and eax, 0x721          ; timer, global, buttons, RTC
	CHECK "status write 1 clears", 0
	mov dx, PM1_EN
	mov ax, 0x100
	out dx, ax
	xor eax, eax
	in ax, dx
	CHECK "enable readable", 0x100

	call lapic_enable
	mov qword [SCRATCH], 0
	mov qword [SCRATCH + 8], 0
	HOOK_IRQ 0x79, hook
	mov ecx, 9
	mov eax, 0x8079
	xor edx, edx
	call ioapic_pin
	PRINT {"ready for the power button", 10}
	WAIT_IRQ 0x79, 1
	mov eax, 10000000
	call delay_ns
	cli
	mov eax, 1
	CHECK "button sci", 1
	mov eax, [SCRATCH]
	and eax, 0x100
	CHECK "button status", 0x100
	mov dx, PM1_STS
	xor eax, eax
	in ax, dx
	and eax, 0x100
	CHECK "button cleared", 0
	mov rax, [SCRATCH + 8]
	CHECK "line low again", 1
	ret
END_GUEST
