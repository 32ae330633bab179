; Small things: port 0x80, port 0x84 area, bvmcons, the notification port.
;> PASS port 80 keeps
;> PASS port 84 reads
;> PASS bvmcons signature
;> PASS bvmcons no input
;> PASS notification
%include "guest64.inc"
main:	mov al, 0x3c
	out 0x80, al
	xor eax, eax
	in al, 0x80
	CHECK "port 80 keeps", 0x3c
	xor eax, eax
	in al, 0x84
	CHECK "port 84 reads", 0, 0xff
	mov dx, 0x220
	xor eax, eax
	in ax, dx
	CHECK "bvmcons signature", 0x6276
	in eax, dx
	CHECK "bvmcons no input", 0xffffffff
	mov dx, 0x488
	mov eax, 0x1234
	out dx, eax
	out dx, ax
	out dx, al
	mov eax, 1
	CHECK "notification", 1
	ret
END_GUEST
