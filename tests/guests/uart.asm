; The 16550 at COM2: scratch, divisor latch, FIFO identification, loopback of data and modem lines, and its
; interrupts on IRQ 3: transmitter empty, data available at the trigger level, timeout, line status.
;> PASS scratch
;> PASS divisor latch
;> PASS dlab hides
;> PASS iir none
;> PASS fifo enabled
;> PASS loop modem
;> PASS loop data ready
;> PASS loop data
;> PASS fifo holds 16
;> PASS fifo order
;> PASS overrun
;> PASS overrun cleared
;> PASS thre irq
;> PASS thre iir
;> PASS thre cleared by reading
;> PASS rx irq
;> PASS rx timeout iir
;> PASS rx iir after read
;> PASS rx trigger iir
;> PASS fifo reset
;> PASS modem status irq
%include "guest64.inc"
%define COM2 0x2f8
hook:	INB COM2 + 2
	and eax, 0x0f
	mov [SCRATCH], eax
	inc qword [SCRATCH + 8]
	mov dx, COM2 + 1        ; one is enough: others are asked for anew
	xor eax, eax
	out dx, al
	ret
; Lets what is pending in, then enables interrupt %1.
%macro REARM 1
	DRAIN_IRQ
	CLEAR_IRQ 0x73
	OUTB COM2 + 1, %1
%endmacro
; Waits for the transmitter to be empty, which in loopback is when all has come back. Reading the line
; status clears its error bits: they gather at SCRATCH + 16.
drained:
	INB COM2 + 5
	or [SCRATCH + 16], eax
	test al, 0x40
	jz drained
	ret
main:	OUTB COM2 + 7, 0x5a
	INB COM2 + 7
	CHECK "scratch", 0x5a
	OUTB COM2 + 3, 0x83
	OUTB COM2, 1
	OUTB COM2 + 1, 0
	INB COM2
	CHECK "divisor latch", 1
	OUTB COM2 + 3, 0x03
	OUTB COM2 + 1, 0
	INB COM2 + 1
	CHECK "dlab hides", 0
	OUTB COM2 + 2, 0x07
	INB COM2 + 2
	and eax, 0x0f
	CHECK "iir none", 1
	INB COM2 + 2
	and eax, 0xc0
	CHECK "fifo enabled", 0xc0
	OUTB COM2 + 4, 0x1f     ; loopback, all four outputs
	INB COM2 + 6
	and eax, 0xf0
	CHECK "loop modem", 0xf0
	OUTB COM2 + 4, 0x10
	INB COM2 + 6
	OUTB COM2, 0xc3
	call drained
	INB COM2 + 5
	and eax, 1
	CHECK "loop data ready", 1
	INB COM2
	CHECK "loop data", 0xc3
	mov ebx, 0x40
.fill:	call drained
	mov dx, COM2
	mov al, bl
	out dx, al
	inc ebx
	cmp ebx, 0x50
	jb .fill
	call drained
	INB COM2 + 5
	and eax, 3
	CHECK "fifo holds 16", 1
	INB COM2
	CHECK "fifo order", 0x40
	OUTB COM2, 0x99
	call drained
	OUTB COM2, 0x98         ; the 17th
	mov dword [SCRATCH + 16], 0
	call drained
	mov eax, [SCRATCH + 16]
	and eax, 2
	CHECK "overrun", 2
	INB COM2 + 5
	and eax, 2
	CHECK "overrun cleared", 0

	OUTB COM2 + 2, 0x07
	OUTB COM2 + 4, 0x0b     ; OUT2 gates the interrupt on a PC
	call lapic_enable
	HOOK_IRQ 0x73, hook
	mov ecx, 3
	mov eax, 0x73
	xor edx, edx
	call ioapic_pin
	REARM 2
	WAIT_IRQ 0x73, 1
	cli
	mov eax, 1
	CHECK "thre irq", 1
	mov eax, [SCRATCH]
	CHECK "thre iir", 2
	OUTB COM2 + 1, 2        ; enabling it anew asks again; reading IIR takes it back
	INB COM2 + 2
	INB COM2 + 2
	and eax, 0x0f
	CHECK "thre cleared by reading", 1
	OUTB COM2 + 1, 0
	OUTB COM2 + 4, 0x1b
	OUTB COM2 + 2, 0x47     ; trigger level 4
	OUTB COM2, 0x11
	call drained
	REARM 1
	WAIT_IRQ 0x73, 1
	cli
	mov eax, 1
	CHECK "rx irq", 1
	mov eax, [SCRATCH]
	CHECK "rx timeout iir", 0x0c
	INB COM2
	OUTB COM2 + 1, 1
	INB COM2 + 2
	and eax, 0x0f
	CHECK "rx iir after read", 1
	OUTB COM2 + 1, 0
	mov ebx, 4
.four:	OUTB COM2, 0x22
	call drained
	dec ebx
	jnz .four
	OUTB COM2 + 1, 1
	INB COM2 + 2
	and eax, 0x0f
	CHECK "rx trigger iir", 4
	OUTB COM2 + 1, 0
	OUTB COM2 + 2, 0x43
	INB COM2 + 5
	and eax, 1
	CHECK "fifo reset", 0
	INB COM2 + 6
	OUTB COM2 + 1, 8
	OUTB COM2 + 4, 0x1a     ; DTR falls: DSR changes
	INB COM2 + 2
	and eax, 0x0f
	CHECK "modem status irq", 0
	OUTB COM2 + 1, 0
	OUTB COM2 + 4, 0
	ret
END_GUEST
