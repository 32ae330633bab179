; HLT with interrupts off on the only CPU.
;> halt
%include "exits.inc"
main:	LAST_WORDS "halt"
	cli
	hlt
	jmp came_back
END_GUEST
