; Nearly all of its time is in one small block: what a profile must show.
%include "guest64.inc"
main:	PRINT {"spinning", 10}
	mov ecx, 200000000
.spin:	dec ecx
	jnz .spin
	PRINT {"spun", 10}
	mov dx, PM1_CNT
	mov ax, 5 << 10 | 1 << 13
	out dx, ax
.stop:	hlt
	jmp .stop
END_GUEST
