; INIT-SIPI-SIPI starts the three APs of -c 4; INIT puts one back into wait-for-SIPI, from which it starts again.
;> PASS aps up
;> PASS apic ids
;> PASS bsp flag
;> PASS locked counter
;> PASS init stops
;> PASS starts again
;> PASS one sipi is one start
%include "smp.inc"
%define COUNTER (SCRATCH)
%define BEAT (SCRATCH + 64)             ; a qword an AP
ap_main:
	mov ecx, 1000
.add:	lock inc qword [COUNTER]
	loop .add
.beat:	inc qword [BEAT + rbx * 8]
	pause
	jmp .beat
main:	call lapic_enable
	mov qword [COUNTER], 0
	call start_aps
	mov edi, AP_COUNT
	mov esi, 3
	call await
	mov rax, [AP_COUNT]
	CHECK "aps up", 3
	mov rax, [AP_SEEN]
	CHECK "apic ids", 0xe
	mov ecx, 0x1b
	rdmsr
	and eax, 0x900
	CHECK "bsp flag", 0x900
	mov edi, COUNTER
	mov esi, 3000
	call await
	mov rax, [COUNTER]
	CHECK "locked counter", 3000
	; CPU 2 is stopped.
	mov edx, 2
	mov eax, ICR_INIT
	call ipi
	mov eax, 20000000
	call delay_ns
	mov rbx, [BEAT + 16]
	mov eax, 20000000
	call delay_ns
	mov rax, [BEAT + 16]
	sub rax, rbx
	CHECK "init stops", 0
	mov edx, 2
	mov eax, ICR_SIPI | TRAMPOLINE >> 12
	call ipi
	mov edi, AP_COUNT
	mov esi, 4
	call await
	mov rax, [AP_COUNT]
	CHECK "starts again", 4
	mov edx, 2
	mov eax, ICR_SIPI | TRAMPOLINE >> 12
	call ipi
	mov eax, 20000000
	call delay_ns
	mov rax, [AP_COUNT]
	CHECK "one sipi is one start", 4
	ret
END_GUEST
