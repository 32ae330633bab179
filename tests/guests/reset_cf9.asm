; Reset by the reset control register at 0xCF9: full reset.
;> reset by port 0xcf9
%include "exits.inc"
main:	LAST_WORDS "reset by port 0xcf9"
	mov dx, 0xcf9
	mov al, 2
	out dx, al
	mov al, 6
	out dx, al
	jmp came_back
END_GUEST
