; CMOS memory sizes, for -m 64M.
;> PASS base memory
;> PASS extended memory
;> PASS above 16 MiB
;> PASS above 4 GiB
%include "guest64.inc"
cmos2:	mov ecx, eax            ; registers AL (low) and AL + 1 -> EAX
	out 0x70, al
	in al, 0x71
	movzx ebx, al
	lea eax, [ecx + 1]
	out 0x70, al
	in al, 0x71
	movzx eax, al
	shl eax, 8
	or eax, ebx
	ret
main:	mov eax, 0x15
	call cmos2
	CHECK "base memory", 640
	mov eax, 0x17
	call cmos2
	CHECK "extended memory", 63 * 1024, 65535
	mov eax, 0x34
	call cmos2
	CHECK "above 16 MiB", 48 * 16
	mov eax, 0x5b
	call cmos2
	CHECK "above 4 GiB", 0
	ret
END_GUEST
