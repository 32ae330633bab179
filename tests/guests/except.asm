; Exceptions in 64-bit mode: vector, error code, saved RIP, CR2.
;> PASS #DE
;> PASS #DE rip
;> PASS #BP
;> PASS #UD
;> PASS #GP noncanonical
;> PASS #GP error
;> PASS #GP selector
;> PASS #GP selector error
;> PASS #PF
;> PASS #PF error
;> PASS #PF cr2
;> PASS #PF write error
;> PASS #NM
;> PASS int 0x80
%include "guest64.inc"
main:	xor ecx, ecx
	xor edx, edx
	mov eax, 1
	TRY div ecx
	CHECK "#DE", 0
	mov rax, [FAULT_RIP]
	CHECK "#DE rip", [TRY_AT]
	TRY int3
	CHECK "#BP", 3
	TRY ud2
	CHECK "#UD", 6
	mov rsi, 0x8000000000000000
	TRY mov rax, [rsi]
	CHECK "#GP noncanonical", 13
	mov eax, [FAULT_ERROR]
	CHECK "#GP error", 0
	mov ecx, 0x1234
	TRY mov ds, ecx
	CHECK "#GP selector", 13
	mov eax, [FAULT_ERROR]
	CHECK "#GP selector error", 0x1234
	mov rsi, 0x123456789a
	TRY mov rax, [rsi]
	CHECK "#PF", 14
	mov eax, [FAULT_ERROR]
	CHECK "#PF error", 0
	mov rax, [FAULT_CR2]
	CHECK "#PF cr2", rsi
	TRY mov [rsi], rax
	mov eax, [FAULT_ERROR]
	CHECK "#PF write error", 2
	mov rax, cr0
	or eax, 8               ; TS
	mov cr0, rax
	TRY movaps xmm0, xmm1
	mov rbx, rax
	clts
	mov rax, rbx
	CHECK "#NM", 7
	HOOK_IRQ 0x80, nothing
	int 0x80
	mov rax, [IRQ_COUNT + 0x80 * 8]
	CHECK "int 0x80", 1
nothing:
	ret
END_GUEST
