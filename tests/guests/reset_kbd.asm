; Reset by the keyboard controller: command 0xFE pulses the reset line.
;> reset by port 0x64
%include "exits.inc"
main:	LAST_WORDS "reset by port 0x64"
	mov al, 0xfe
	out 0x64, al
	jmp came_back
END_GUEST
