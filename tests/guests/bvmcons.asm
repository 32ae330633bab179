; Output by bvmcons alone (-b): 32-bit OUTs to port 0x220, which is then what stdout shows.
;> hello from bvmcons
%include "guest64.inc"
main:	mov dx, 0x220
	mov esi, text
	mov ecx, text_end - text
.next:	lodsb
	movzx eax, al
	out dx, eax
	loop .next
	ret
text:	db "hello from bvmcons", 10
text_end:
END_GUEST
