; What is on stdin comes in at COM1, by the received-data interrupt on IRQ 4.
;> one!
;> PASS bytes
;> PASS by interrupt
%include "guest64.inc"
hook:	INB COM1 + 2            ; IIR
	and al, 0x0e
	cmp al, 4
	je .take
	cmp al, 0x0c
	jne .out
.take:	INB COM1 + 5
	test al, 1
	jz .out
	INB COM1
	mov rcx, [SCRATCH]
	cmp rcx, 64
	jae .take
	mov [SCRATCH + 64 + rcx], al
	inc qword [SCRATCH]
	jmp .take
.out:	ret
main:	mov qword [SCRATCH], 0
	call lapic_enable
	HOOK_IRQ 0x74, hook
	mov ecx, 4
	mov eax, 0x74
	xor edx, edx
	call ioapic_pin
	OUTB COM1 + 4, 0x0b
	OUTB COM1 + 1, 1
.wait:	cli
	cmp qword [SCRATCH], 5
	jae .all
	sti
	hlt
	jmp .wait
.all:	OUTB COM1 + 1, 0
	mov byte [SCRATCH + 64 + 5], 0
	mov esi, SCRATCH + 64
	call puts
	mov rax, [SCRATCH]
	CHECK "bytes", 5
	mov rax, [IRQ_COUNT + 0x74 * 8]
	CHECK "by interrupt", 1, 5
	ret
END_GUEST
