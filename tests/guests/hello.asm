; The smallest one: a line, and power-off. Every CPU option runs it (-H, -P, -e ...).
;> hello from long mode
%include "guest64.inc"
main:	PRINT {"hello from long mode", 10}
	mov rax, 1000000        ; 1 ms in PAUSE
	call delay_ns
	mov al, 0x34            ; a few timer ticks in HLT
	out 0x43, al
	mov al, 1193 & 255
	out 0x40, al
	mov al, 1193 >> 8
	out 0x40, al
	call lapic_enable
	mov ecx, 2
	mov eax, 0x60
	xor edx, edx
	call ioapic_pin
	WAIT_IRQ 0x60, 3
	cli
	mov dx, PM1_CNT
	mov ax, 5 << 10 | 1 << 13
	out dx, ax
.stop:	hlt
	jmp .stop
END_GUEST
