; With -e a port that nobody claims ends the VM with status 4.
;> touching a port
%include "exits.inc"
main:	LAST_WORDS "touching a port"
	mov dx, 0x5f0
	in al, dx
	jmp came_back
END_GUEST
