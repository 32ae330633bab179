; The MC146818 RTC: registers, BCD and binary, update cycle, and its three interrupts on IRQ 8; the CMOS.
;> PASS valid ram and time
;> PASS status A reset
;> PASS ranges bcd
;> PASS century
;> PASS cmos ram
;> PASS second ticks
;> PASS binary equals bcd
;> PASS periodic 16
;> PASS periodic flags
;> PASS periodic rate
;> PASS update irq
;> PASS update flag
;> PASS alarm irq
;> PASS alarm flag
;> PASS flags cleared by reading
;> PASS set mode freezes
%include "guest64.inc"

; CMOS register AL -> EAX.
cmos:	out 0x70, al
	xor eax, eax
	in al, 0x71
	ret
; CMOS register AL := AH.
cmos_write:
	out 0x70, al
	mov al, ah
	out 0x71, al
	ret
; Takes the interrupt: register C is read, which lets the line fall; its flags gather at SCRATCH.
hook:	mov al, 0x0c
	call cmos
	or [SCRATCH], eax
	ret
; Waits for the end of an update.
edge:	mov al, 0
	call cmos
	mov ebx, eax
.wait:	mov al, 0
	call cmos
	cmp eax, ebx
	je .wait
	ret
frombcd:
	mov ecx, eax
	shr ecx, 4
	and eax, 15
	imul ecx, ecx, 10
	add eax, ecx
	ret

main:	mov al, 0x0d
	call cmos
	CHECK "valid ram and time", 0x80
	mov ax, 0x260a
	call cmos_write
	mov al, 0x0a
	call cmos
	and eax, 0x7f
	CHECK "status A reset", 0x26
	mov ax, 0x020b          ; 24 hours, BCD
	call cmos_write
	; No part of the time is beyond its range: seconds | minutes, hours, day, month.
	call edge
	mov al, 0
	call cmos
	call frombcd
	mov ebx, eax
	mov al, 2
	call cmos
	call frombcd
	cmp eax, ebx
	cmovb eax, ebx
	mov ebx, eax            ; at most 59
	mov al, 4
	call cmos
	call frombcd
	imul eax, eax, 2        ; at most 46
	cmp eax, ebx
	cmova ebx, eax
	mov al, 8
	call cmos
	call frombcd
	dec eax
	imul eax, eax, 5        ; 0..55
	cmp eax, ebx
	cmova ebx, eax
	mov eax, ebx
	CHECK "ranges bcd", 0, 59
	mov al, 0x32
	call cmos
	CHECK "century", 0x20
	mov ax, 0xa540
	call cmos_write
	mov ax, 0x5a41
	call cmos_write
	mov al, 0x40
	call cmos
	CHECK "cmos ram", 0xa5
	call edge
	mov eax, 1
	CHECK "second ticks", 1
	mov al, 2
	call cmos
	call frombcd
	mov ebx, eax
	mov ax, 0x060b          ; binary
	call cmos_write
	mov al, 2
	call cmos
	sub eax, ebx
	CHECK "binary equals bcd", 0

	; Interrupts by the I/O APIC, pin 8.
	call lapic_enable
	HOOK_IRQ 0x78, hook
	mov ecx, 8
	mov eax, 0x78
	xor edx, edx
	call ioapic_pin
	mov qword [SCRATCH], 0
	mov al, 0x0c
	call cmos
	mov ax, 0x2a0a          ; 64 Hz
	call cmos_write
	mov ax, 0x460b          ; PIE
	call cmos_write
	WAIT_IRQ 0x78, 1
	mov dx, PM_TMR
	in eax, dx
	mov ebx, eax
	WAIT_IRQ 0x78, 17
	mov dx, PM_TMR
	in eax, dx
	sub eax, ebx
	and eax, 0xffffff
	mov ebx, eax
	cli
	mov eax, 16
	CHECK "periodic 16", 16
	mov eax, [SCRATCH]
	and eax, 0xc0
	CHECK "periodic flags", 0xc0
	mov eax, ebx
	CHECK "periodic rate", 700000, 3000000 ; a quarter second, 894886, or later on a busy host
	mov ax, 0x260a
	call cmos_write
	mov ax, 0x060b
	call cmos_write
	DRAIN_IRQ
	mov ax, 0x160b          ; UIE
	call cmos_write
	mov al, 0x0c
	call cmos
	mov qword [SCRATCH], 0
	CLEAR_IRQ 0x78
	WAIT_IRQ 0x78, 1
	cli
	mov eax, 1
	CHECK "update irq", 1
	mov eax, [SCRATCH]
	and eax, 0x90
	CHECK "update flag", 0x90
	; The alarm: every second (all "don't care"), then once for a second to come.
	mov ax, 0xc003
	call cmos_write
	mov ax, 0xc005
	call cmos_write
	mov al, 0
	call cmos
	add eax, 2
	cmp eax, 60
	jb .second
	sub eax, 60
.second:
	mov ah, al
	mov al, 1
	call cmos_write
	mov ax, 0x060b
	call cmos_write
	DRAIN_IRQ
	mov ax, 0x260b          ; AIE
	call cmos_write
	mov al, 0x0c
	call cmos
	mov qword [SCRATCH], 0
	CLEAR_IRQ 0x78
	WAIT_IRQ 0x78, 1
	cli
	mov al, 0
	call cmos
	mov ebx, eax
	mov al, 1
	call cmos
	sub eax, ebx
	CHECK "alarm irq", 0
	mov eax, [SCRATCH]
	and eax, 0xa0
	CHECK "alarm flag", 0xa0
	mov al, 0x0c
	call cmos
	and eax, 0xa0
	CHECK "flags cleared by reading", 0
	mov ax, 0x860b          ; SET
	call cmos_write
	mov ax, 0x2100          ; 33 seconds
	call cmos_write
	mov rax, 1200000000
	call delay_ns
	mov al, 0
	call cmos
	CHECK "set mode freezes", 0x21
	mov ax, 0x060b
	call cmos_write
	ret
END_GUEST
