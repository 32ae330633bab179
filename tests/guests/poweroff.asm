; Power-off by ACPI: SLP_TYP 5 and SLP_EN in PM1_CNT.
;> power off
%include "exits.inc"
main:	LAST_WORDS "power off"
	mov dx, PM1_CNT
	in ax, dx
	and ax, 0xc3ff
	or ax, 5 << 10 | 1 << 13
	out dx, ax
	jmp came_back
END_GUEST
