; The I/O APIC: identification, redirection entries and their read-only bits, masks, edges, levels with
; remote IRR and EOI, on the PIT's pin 2 and the keyboard controller's pin 1.
;> PASS version
;> PASS 24 entries
;> PASS id
;> PASS reset masked
;> PASS rte writable
;> PASS rte read-only bits
;> PASS destination
;> PASS beyond the end
;> PASS edge irq
;> PASS masked none
;> PASS level irq
;> PASS level repeats
;> PASS remote irr in service
;> PASS remote irr after eoi
%include "guest64.inc"

level_hook:
	mov ecx, 0x12           ; pin 1
	call ioapic_read
	shr eax, 14
	and eax, 1
	or [SCRATCH], eax
	inc qword [SCRATCH + 8]
	cmp qword [SCRATCH + 8], 2
	jb .out
	in al, 0x60             ; the second time takes the byte: the line falls
.out:	ret

main:	call lapic_enable
	mov ecx, 1
	call ioapic_read
	mov ebx, eax
	and eax, 0xff
	CHECK "version", 0x11, 0x20
	mov eax, ebx
	shr eax, 16
	and eax, 0xff
	CHECK "24 entries", 23
	xor ecx, ecx
	mov edx, 0x0f000000
	call ioapic_write
	call ioapic_read
	CHECK "id", 0x0f000000
	xor edx, edx
	call ioapic_write
	mov ecx, 0x10 + 2 * 20
	call ioapic_read
	and eax, 0x10000
	CHECK "reset masked", 0x10000
	mov edx, 0x1afef
	call ioapic_write
	call ioapic_read
	and eax, ~0x5000
	CHECK "rte writable", 0x1afef
	mov edx, 0xfffef000
	call ioapic_write
	call ioapic_read
	and eax, 0x5000         ; delivery status, remote IRR
	CHECK "rte read-only bits", 0
	mov edx, 0x10000
	call ioapic_write
	inc ecx
	mov edx, 0xab000000
	call ioapic_write
	call ioapic_read
	shr eax, 24
	CHECK "destination", 0xab
	xor edx, edx
	call ioapic_write
	mov ecx, 0x80
	call ioapic_write
	mov eax, 1
	CHECK "beyond the end", 1

	; Edges: the PIT at 1 kHz on pin 2.
	mov al, 0x34
	out 0x43, al
	mov al, 1193 & 255
	out 0x40, al
	mov al, 1193 >> 8
	out 0x40, al
	mov ecx, 2
	mov eax, 0x60
	xor edx, edx
	call ioapic_pin
	WAIT_IRQ 0x60, 3
	mov eax, 1
	CHECK "edge irq", 1
	cli
	mov eax, 0x10060
	call ioapic_pin
	DRAIN_IRQ
	CLEAR_IRQ 0x60
	mov eax, 5000000
	sti
	call delay_ns
	cli
	mov rax, [IRQ_COUNT + 0x60 * 8]
	CHECK "masked none", 0

	; Levels: IRQ 1 stays up while a byte is in the keyboard controller's output buffer.
	mov qword [SCRATCH], 0
	mov qword [SCRATCH + 8], 0
	HOOK_IRQ 0x70, level_hook
	mov ecx, 100
.flush:	in al, 0x64
	test al, 1
	jz .empty
	in al, 0x60
	loop .flush
.empty:	mov al, 0x60            ; command byte: keyboard interrupt on
	out 0x64, al
	call kbd_ready
	mov al, 0x61
	out 0x60, al
	call kbd_ready
	mov ecx, 1
	mov eax, 0x8070
	xor edx, edx
	call ioapic_pin
	mov al, 0xd2            ; the next byte comes back as if from the keyboard
	out 0x64, al
	call kbd_ready
	mov al, 0x55
	out 0x60, al
	WAIT_IRQ 0x70, 2
	mov eax, 1
	CHECK "level irq", 1
	mov eax, 2000000
	call delay_ns
	cli
	mov rax, [IRQ_COUNT + 0x70 * 8]
	CHECK "level repeats", 2
	mov rax, [SCRATCH]
	CHECK "remote irr in service", 1
	mov ecx, 0x12
	call ioapic_read
	shr eax, 14
	and eax, 1
	CHECK "remote irr after eoi", 0
	ret
kbd_ready:
	in al, 0x64
	test al, 2
	jnz kbd_ready
	ret
END_GUEST
