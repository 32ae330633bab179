; Reset by port 0x92 bit 0 (INIT now).
;> reset by port 0x92
%include "exits.inc"
main:	LAST_WORDS "reset by port 0x92"
	in al, 0x92
	or al, 1
	out 0x92, al
	jmp came_back
END_GUEST
