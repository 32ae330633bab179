; MSRs without -w: one that nobody knows is #GP(0) for RDMSR and WRMSR, and the guest goes on.
;> PASS known msr
;> PASS rdmsr vector
;> PASS rdmsr error
;> PASS rdmsr edx kept
;> PASS wrmsr vector
;> PASS wrmsr error
;> PASS goes on
%include "guest64.inc"
main:	mov ecx, 0x277          ; PAT, kept by every engine
	rdmsr
	shl rdx, 32
	or rax, rdx
	CHECK "known msr", qword [pat]
	mov ecx, 0xc0de
	mov edx, 0x1234
	TRY rdmsr
	CHECK "rdmsr vector", 13
	mov eax, [FAULT_ERROR]
	CHECK "rdmsr error", 0
	mov rax, rdx
	CHECK "rdmsr edx kept", 0x1234
	xor eax, eax
	TRY wrmsr
	CHECK "wrmsr vector", 13
	mov eax, [FAULT_ERROR]
	CHECK "wrmsr error", 0
	mov eax, 1
	CHECK "goes on", 1
	ret
pat:	dq 0x0007040600070406
END_GUEST
