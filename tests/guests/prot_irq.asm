; 32-bit protected mode takes interrupts: the PIT by the PIC and ExtINT, and by the I/O APIC.
;> PASS pic irq 0
;> PASS ioapic pin 2
;> PASS lapic timer
%include "guest32.inc"
main:	mov dword [LAPIC + 0xf0], 0x1ff
	mov dword [LAPIC + 0x350], 0x700
	mov al, 0x34
	out 0x43, al
	mov al, 1193 & 255
	out 0x40, al
	mov al, 1193 >> 8
	out 0x40, al
	mov al, 0xfe
	out 0x21, al
	WAIT_IRQ 0x20, 3
	cli
	mov eax, 1
	CHECK "pic irq 0", 1
	mov al, 0xff
	out 0x21, al
	mov byte [IOAPIC], 0x15
	mov dword [IOAPIC + 0x10], 0
	mov byte [IOAPIC], 0x14
	mov dword [IOAPIC + 0x10], 0x60
	WAIT_IRQ 0x60, 3
	cli
	mov byte [IOAPIC], 0x14
	mov dword [IOAPIC + 0x10], 0x10060
	mov eax, 1
	CHECK "ioapic pin 2", 1
	mov dword [LAPIC + 0x3e0], 3
	mov dword [LAPIC + 0x320], 0x20061
	mov dword [LAPIC + 0x380], 100000
	WAIT_IRQ 0x61, 3
	cli
	mov eax, 1
	CHECK "lapic timer", 1
	ret
END_GUEST
