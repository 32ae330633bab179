; Real mode takes PIC interrupts: the PIT on IRQ 0, a masked one that waits, the slave by IRQ 8, priorities and
; a spurious IRQ 7.
;> PASS irq 0
;> PASS irq 0 again
;> PASS masked
;> PASS imr readable
;> PASS irr
;> PASS unmasked
;> PASS isr empty
;> PASS irq 8 by the slave
%include "guest16.inc"
main:	call virtual_wire
	mov al, 0x34
	out 0x43, al
	mov al, 1193 & 255
	out 0x40, al
	mov al, 1193 >> 8
	out 0x40, al
	mov al, 0xfe
	out 0x21, al
	WAIT_IRQ 0x20, 1
	mov eax, 1
	CHECK "irq 0", 1
	WAIT_IRQ 0x20, 5
	CHECK "irq 0 again", 1
	cli
	mov al, 0xff
	out 0x21, al
	sti
	in al, 0x61
	cli
	mov word [IRQ_COUNT + 0x40], 0
	sti
	mov al, 0x0a            ; OCW3: IRR next
	out 0x20, al
	mov ecx, 50000000       ; it comes, but stays there
.spin:	in al, 0x20
	test al, 1
	jnz .spun
	dec ecx
	jnz .spin
.spun:	cli
	movzx eax, word [IRQ_COUNT + 0x40]
	CHECK "masked", 0
	xor eax, eax
	in al, 0x21
	CHECK "imr readable", 0xff
	mov al, 0x0a            ; OCW3: IRR next
	out 0x20, al
	; the thread that raises the line may have to wait for a CPU, on a busy host
	mov ecx, 2000000
	xor eax, eax
.irr:	in al, 0x20
	and al, 1
	jnz .raised
	dec ecx
	jnz .irr
.raised:
	CHECK "irr", 1
	mov al, 0xfe
	out 0x21, al
	WAIT_IRQ 0x20, 1
	cli
	mov eax, 1
	CHECK "unmasked", 1
	mov al, 0xff
	out 0x21, al
	sti
	in al, 0x61
	cli
	mov al, 0x0b            ; ISR
	out 0x20, al
	xor eax, eax
	in al, 0x20
	CHECK "isr empty", 0
	mov al, 0x0c            ; RTC: drop what is pending, periodic 1024 Hz
	out 0x70, al
	in al, 0x71
	mov al, 0x0a
	out 0x70, al
	mov al, 0x26
	out 0x71, al
	mov al, 0x0b
	out 0x70, al
	mov al, 0x42
	out 0x71, al
	mov al, 0xfb
	out 0x21, al
	mov al, 0xfe
	out 0xa1, al
	WAIT_IRQ 0x28, 1
	cli
	mov eax, 1
	CHECK "irq 8 by the slave", 1
	ret
END_GUEST
