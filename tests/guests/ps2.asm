; The 8042 and its PS/2 keyboard: self test, command byte, keyboard commands, the interrupt on IRQ 1.
;> PASS self test
;> PASS interface test
;> PASS command byte
;> PASS status system flag
;> PASS kbd reset ack
;> PASS kbd reset done
;> PASS kbd identify ack
;> PASS kbd identify 1
;> PASS kbd identify 2
;> PASS kbd echo
;> PASS kbd leds ack
;> PASS kbd leds data ack
;> PASS kbd scan set ack
;> PASS kbd scan set data ack
;> PASS kbd scan set
;> PASS kbd unknown resend
;> PASS disabled clock bit
;> PASS irq 1
;> PASS irq data
;> PASS output port a20
%include "guest64.inc"
command:                        ; AL to the controller
	push rax
	call ready
	pop rax
	out 0x64, al
ready:	mov ecx, 100000
.wait:	in al, 0x64
	test al, 2
	loopnz .wait
	ret
data:	push rax                ; AL to the data port
	call ready
	pop rax
	out 0x60, al
	jmp ready
; The next byte in EAX, -1 if none comes.
get:	mov ecx, 100000
.wait:	in al, 0x64
	test al, 1
	loopz .wait
	mov eax, -1
	jz .out
	xor eax, eax
	in al, 0x60
.out:	ret
%macro EXPECT 2
	call get
	CHECK %1, %2
%endmacro
hook:	xor eax, eax
	in al, 0x60
	mov [SCRATCH], eax
	ret
main:	mov ecx, 32
.flush:	in al, 0x60
	loop .flush
	mov al, 0xaa
	call command
	EXPECT "self test", 0x55
	mov al, 0xab
	call command
	EXPECT "interface test", 0
	mov al, 0x60
	call command
	mov al, 0x24            ; no translation, no interrupts, mouse off
	call data
	mov al, 0x20
	call command
	EXPECT "command byte", 0x24
	in al, 0x64
	and eax, 4
	CHECK "status system flag", 4
	mov al, 0xae
	call command
	mov al, 0xff
	call data
	EXPECT "kbd reset ack", 0xfa
	EXPECT "kbd reset done", 0xaa
	mov al, 0xf2
	call data
	EXPECT "kbd identify ack", 0xfa
	EXPECT "kbd identify 1", 0xab
	EXPECT "kbd identify 2", 0x83
	mov al, 0xee
	call data
	EXPECT "kbd echo", 0xee
	mov al, 0xed
	call data
	EXPECT "kbd leds ack", 0xfa
	mov al, 2
	call data
	EXPECT "kbd leds data ack", 0xfa
	mov al, 0xf0
	call data
	EXPECT "kbd scan set ack", 0xfa
	mov al, 0
	call data
	EXPECT "kbd scan set data ack", 0xfa
	EXPECT "kbd scan set", 2
	mov al, 0xe1
	call data
	EXPECT "kbd unknown resend", 0xfe
	mov al, 0xad
	call command
	mov al, 0x20
	call command
	call get
	and eax, 0x10
	CHECK "disabled clock bit", 0x10
	mov al, 0xae
	call command
	; IRQ 1 by the I/O APIC.
	call lapic_enable
	mov al, 0x60
	call command
	mov al, 0x25
	call data
	HOOK_IRQ 0x71, hook
	mov ecx, 1
	mov eax, 0x71
	xor edx, edx
	call ioapic_pin
	mov al, 0xee
	call data
	WAIT_IRQ 0x71, 1
	cli
	mov eax, 1
	CHECK "irq 1", 1
	mov eax, [SCRATCH]
	CHECK "irq data", 0xee
	mov al, 0x60
	call command
	mov al, 0x24
	call data
	mov al, 0xd0
	call command
	call get
	and eax, 3
	CHECK "output port a20", 3
	ret
END_GUEST
