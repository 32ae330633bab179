; Four CPUs, all in HLT with interrupts off in the end, an AP in wait-for-SIPI among them: the VM has halted.
;> PASS aps up
;> halt
%include "smp.inc"
ap_main:
	cli
	hlt
	jmp ap_main
main:	call lapic_enable
	call start_aps
	mov edi, AP_COUNT
	mov esi, 3
	call await
	mov rax, [AP_COUNT]
	CHECK "aps up", 3
	mov edx, 3
	mov eax, ICR_INIT
	call ipi
	PRINT {"halt", 10}
	cli
	hlt
	jmp finish
END_GUEST
