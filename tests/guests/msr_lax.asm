; MSRs with -w: one that nobody knows reads 0 and drops writes.
;> PASS rdmsr no fault
;> PASS rdmsr eax
;> PASS rdmsr edx
;> PASS wrmsr no fault
;> PASS dropped
%include "guest64.inc"
main:	mov ecx, 0xc0de
	mov edx, 0x1234
	mov eax, 0x1234
	TRY_KEEP rdmsr
	mov [SCRATCH], eax
	mov eax, [FAULT_VECTOR]
	CHECK "rdmsr no fault", 0xffffffff
	mov eax, [SCRATCH]
	CHECK "rdmsr eax", 0
	mov eax, edx
	CHECK "rdmsr edx", 0
	mov edx, 5
	TRY wrmsr
	CHECK "wrmsr no fault", 0xffffffff
	rdmsr
	CHECK "dropped", 0
	ret
END_GUEST
