; Reset out of real mode by port 0x64.
;> reset from real mode
%include "guest16.inc"
main:	PRINT {"reset from real mode", 10}
.drain:	mov dx, COM1 + 5
	in al, dx
	test al, 0x40
	jz .drain
	mov al, 0xfe
	out 0x64, al
.stop:	hlt
	jmp .stop
END_GUEST
