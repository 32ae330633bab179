; All clocks against each other over a tenth of a second: HPET, PM timer, PIT, and the TSC and the local
; APIC timer (whose frequencies nobody tells) against themselves. A sample reads all between two reads of
; the HPET; of several samples the one that took least counts, and what it took still widens the tolerance, so a
; busy host does not matter.
;> PASS pm timer against hpet
;> PASS pit against hpet
;> PASS tsc steady
;> PASS tsc forward
;> PASS lapic timer steady
;> PASS lapic one-shot
%include "guest64.inc"
%define TOLERANCE 20            ; thousandths, and what the samples took: see main

; A sample at RDI: HPET, PM timer, PIT, TSC, LAPIC timer. R8 = HPET, clobbers much.
sample:	mov r11, -1             ; the shortest so far
	mov r13d, 12
.again:	mov r10, [r8 + 0xf0]
	mov dx, PM_TMR
	in eax, dx
	mov r14d, eax
	xor eax, eax
	out 0x43, al
	in al, 0x40
	mov bl, al
	in al, 0x40
	mov bh, al
	movzx r15d, bx
	mov eax, 0x390
	call lapic_read
	mov ebp, eax
	rdtsc
	shl rdx, 32
	or rax, rdx
	mov r12, rax
	mov rax, [r8 + 0xf0]
	sub rax, r10
	cmp rax, r11
	jae .next
	mov r11, rax            ; now RAX becomes the middle
	shr rax, 1
	add rax, r10
	mov [rdi], rax
	mov [rdi + 8], r14
	mov [rdi + 16], r15
	mov [rdi + 24], r12
	mov [rdi + 32], rbp
	mov [rdi + 40], r11
.next:	dec r13d
	jnz .again
	ret

; RAX / RCX in thousandths -> RAX.
permille:
	imul rax, rax, 1000
	xor edx, edx
	div rcx
	ret

; HPET ticks from sample A to B -> RAX.
%macro HPET_TICKS 2
	mov rax, [%2]
	sub rax, [%1]
%endmacro
; RAX is 1000 within the tolerance.
%macro WITHIN 1
	mov r10d, 1000
	mov r11d, 1000
	sub r10, [SCRATCH + 264]
	add r11, [SCRATCH + 264]
	CHECK %1, r10, r11
%endmacro
%define S1 SCRATCH
%define S2 (SCRATCH + 64)
%define S3 (SCRATCH + 128)

main:	mov r8d, HPET
	mov rbx, [r8]
	shr rbx, 32
	mov [SCRATCH + 256], rbx ; fs a tick
	mov dword [r8 + 0x10], 1
	mov al, 0x34
	out 0x43, al
	xor eax, eax
	out 0x40, al
	out 0x40, al
	call lapic_enable
	mov eax, 0x3e0
	mov edx, 0x3            ; divide by 16
	call lapic_write
	mov eax, 0x320
	mov edx, 0x10041
	call lapic_write
	mov eax, 0x380
	mov edx, -1
	call lapic_write
	mov edi, S1
	call sample
	mov eax, 45000000
	call delay_ns
	mov edi, S2
	call sample
	mov eax, 45000000
	call delay_ns
	mov edi, S3
	call sample

	; R9: a sample is off by half its length at most, and a ratio has two of them in numerator and denominator.
	mov rax, [S1 + 40]
	add rax, [S2 + 40]
	add rax, [S3 + 40]
	add rax, rax
	mov rbx, rax
	HPET_TICKS S1, S2
	mov rcx, rax
	mov rax, rbx
	call permille
	lea r9, [rax + TOLERANCE]
	cmp r9, 900
	jb .tolerable
	mov r9d, 900
.tolerable:
	mov [SCRATCH + 264], r9

	; PM timer: ticks * 279365113 fs / (HPET ticks * period)
	HPET_TICKS S1, S3
	imul rax, [SCRATCH + 256]
	mov ecx, 1000000
	xor edx, edx
	div rcx
	mov rbx, rax            ; ns by the HPET
	mov eax, [S3 + 8]
	sub eax, [S1 + 8]
	and eax, 0xffffff
	imul rax, rax, 279365
	mov ecx, 1000
	xor edx, edx
	div rcx
	mov rcx, rbx
	call permille
	WITHIN "pm timer against hpet"
	; PIT: modulo 65536 (55 ms), between S1 and S2
	HPET_TICKS S1, S2
	imul rax, [SCRATCH + 256]
	mov ecx, 838095345
	xor edx, edx
	div rcx
	mov rbx, rax            ; PIT ticks by the HPET
	mov eax, [S1 + 16]
	sub eax, [S2 + 16]
	sub eax, ebx
	movsx rax, ax           ; the difference, modulo 65536
	imul rax, rax, 1000
	cqo
	idiv rbx
	add rax, 1000
	WITHIN "pit against hpet"
	; TSC and LAPIC timer: the ratio to the HPET in both halves
	mov rax, [S2 + 24]
	sub rax, [S1 + 24]
	mov rbx, rax
	HPET_TICKS S2, S3
	mul rbx
	mov r10, rax            ; tsc1 * hpet2
	mov r11, rdx
	mov rax, [S3 + 24]
	sub rax, [S2 + 24]
	mov rbx, rax
	HPET_TICKS S1, S2
	mul rbx                 ; tsc2 * hpet1
	call ratio
	WITHIN "tsc steady"
	xor eax, eax
	mov rcx, [S3 + 24]
	cmp rcx, [S2 + 24]
	seta al
	CHECK "tsc forward", 1
	mov eax, [S1 + 32]
	sub eax, [S2 + 32]
	mov ebx, eax
	HPET_TICKS S2, S3
	mul rbx
	mov r10, rax
	mov r11, rdx
	mov eax, [S2 + 32]
	sub eax, [S3 + 32]
	mov ebx, eax
	HPET_TICKS S1, S2
	mul rbx
	call ratio
	WITHIN "lapic timer steady"
	; One shot in as many ticks as S1..S2 took: not earlier than that, and not very much later.
	mov edi, [S1 + 32]
	sub edi, [S2 + 32]
	mov eax, 0x320
	mov edx, 0x41
	call lapic_write
	mov r9, [r8 + 0xf0]
	mov eax, 0x380
	mov edx, edi
	call lapic_write
	WAIT_IRQ 0x41, 1
	cli
	mov rax, [r8 + 0xf0]
	sub rax, r9
	mov rbx, rax
	HPET_TICKS S1, S2
	mov rcx, rax
	mov rax, rbx
	call permille
	mov r9d, 1000
	sub r9, [SCRATCH + 264]
	CHECK "lapic one-shot", r9, 20000
	ret
; R11:R10 / RDX:RAX in thousandths -> RAX; both are cut to 50 bits first.
ratio:	mov rcx, rax
	mov rbx, rdx
.cut:	mov rsi, rbx
	or rsi, r11
	mov rdi, rcx
	or rdi, r10
	shr rdi, 50
	or rsi, rdi
	jz .small
	shrd r10, r11, 1
	shr r11, 1
	shrd rcx, rbx, 1
	shr rbx, 1
	jmp .cut
.small:	mov rax, r10
	jmp permille
END_GUEST
