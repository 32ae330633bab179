; A triple fault: no IDT.
;> triple fault
%include "exits.inc"
main:	LAST_WORDS "triple fault"
	lidt [.none]
	int3
.none:	dw 0
	dq 0
	jmp came_back
END_GUEST
