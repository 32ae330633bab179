; Reset by a triple fault with an empty IDT, as Linux and FreeBSD do it when nothing else helps.
;> reset by triple fault
%include "exits.inc"
main:	LAST_WORDS "reset by triple fault"
	lidt [.none]
	int3
.none:	dw 0
	dq 0
	jmp came_back
END_GUEST
