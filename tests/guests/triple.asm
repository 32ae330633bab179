; A triple fault: no entry in the IDT that INT3 or #DF could use.
;> triple fault
%include "exits.inc"
main:	LAST_WORDS "triple fault"
	lidt [.none]
	int3
.none:	dw 15
	dq 0
	jmp came_back
END_GUEST
