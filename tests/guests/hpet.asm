; The HPET: capabilities, counter, one-shot and periodic comparators, edge and level delivery by the I/O APIC.
;> PASS vendor and timers
;> PASS period
;> PASS stopped
;> PASS counter write
;> PASS runs
;> PASS 64-bit read
;> PASS int route cap
;> PASS one-shot irq
;> PASS one-shot once
;> PASS periodic 5
;> PASS level status
;> PASS level again until cleared
;> PASS level cleared
;> PASS status clear
;> PASS msi capability
%include "guest64.inc"

; ECX = milliseconds -> RAX = ticks; main keeps the ticks of one in R9.
ticks:	mov eax, ecx
	imul rax, r9
	ret
level_hook:
	; Only the third call clears the status.
	inc qword [SCRATCH]
	cmp qword [SCRATCH], 3
	jb .out
	mov ecx, HPET
	mov eax, 1
	mov [rcx + 0x20], eax
.out:	ret

main:	mov r8d, HPET
	mov rax, [r8]
	mov rbx, rax
	and eax, 0x1f00
	shr eax, 8
	CHECK "vendor and timers", 2, 31
	shr rbx, 32
	mov rax, rbx
	CHECK "period", 10000, 100000000 ; fs; at most 100 ns
	mov rax, 1000000000000  ; ticks a millisecond
	xor edx, edx
	div rbx
	mov r9, rax

	mov dword [r8 + 0x10], 0
	mov rax, [r8 + 0xf0]
	mov rbx, rax
	mov eax, 1000000
	call delay_ns
	mov rax, [r8 + 0xf0]
	sub rax, rbx
	CHECK "stopped", 0
	mov rax, 0x00000000ffffff00
	mov [r8 + 0xf0], rax
	mov rax, [r8 + 0xf0]
	CHECK "counter write", 0xffffff00
	mov dword [r8 + 0x10], 1
	mov eax, 1000000
	call delay_ns
	mov eax, [r8 + 0xf0]
	mov ecx, [r8 + 0xf4]
	shl rcx, 32
	or rax, rcx
	mov rcx, 0xffffff00
	sub rax, rcx
	CHECK "runs", r9, 0xffffffff
	mov rbx, [r8 + 0xf0]
	mov rax, [r8 + 0xf0]
	sub rax, rbx
	imul rcx, r9, 100
	CHECK "64-bit read", 0, rcx

	mov ecx, [r8 + 0x104]
	xor eax, eax
	and ecx, 0x00f00000
	setnz al
	CHECK "int route cap", 1

	; The pin: the highest that timer 0 can have.
	call lapic_enable
	mov eax, [r8 + 0x104]
	bsr r10d, eax
	mov ecx, r10d
	mov eax, 0x40           ; edge, vector 0x40
	xor edx, edx
	call ioapic_pin
	; One-shot in 2 ms.
	mov eax, r10d
	shl eax, 9
	or eax, 4
	mov [r8 + 0x100], eax
	mov ecx, 2
	call ticks
	add rax, [r8 + 0xf0]
	mov [r8 + 0x108], rax
	WAIT_IRQ 0x40, 1
	mov eax, 1
	CHECK "one-shot irq", 1
	mov eax, 5000000
	call delay_ns
	cli
	mov rax, [IRQ_COUNT + 0x40 * 8]
	CHECK "one-shot once", 1
	; Periodic, 3 ms.
	CLEAR_IRQ 0x40
	mov eax, r10d
	shl eax, 9
	or eax, 0x4c            ; periodic, write accumulator too, enabled
	mov [r8 + 0x100], eax
	mov ecx, 3
	call ticks
	mov rbx, rax
	add rax, [r8 + 0xf0]
	mov [r8 + 0x108], rax
	mov [r8 + 0x108], rbx
	WAIT_IRQ 0x40, 5
	cli
	mov rax, [IRQ_COUNT + 0x40 * 8]
	CHECK "periodic 5", 5, 15
	mov dword [r8 + 0x100], 0
	; Level-triggered on both sides.
	mov ecx, r10d
	mov eax, 0x8050
	xor edx, edx
	call ioapic_pin
	mov qword [SCRATCH], 0
	HOOK_IRQ 0x50, level_hook
	mov eax, r10d
	shl eax, 9
	or eax, 6
	mov [r8 + 0x100], eax
	mov ecx, 1
	call ticks
	add rax, [r8 + 0xf0]
	mov [r8 + 0x108], rax
	mov ecx, 2000
.status:
	mov eax, 1000
	call delay_ns
	mov eax, [r8 + 0x20]
	test al, 1
	loopz .status
	and eax, 1
	CHECK "level status", 1
	WAIT_IRQ 0x50, 3
	mov eax, 1000000
	call delay_ns
	cli
	mov rax, [IRQ_COUNT + 0x50 * 8]
	CHECK "level again until cleared", 3
	mov rax, [SCRATCH]
	CHECK "level cleared", 3
	mov eax, [r8 + 0x20]
	and eax, 1
	CHECK "status clear", 0
	mov eax, [r8 + 0x100]
	shr eax, 15             ; without the capability the enable bit cannot stick
	and eax, 1
	or dword [r8 + 0x100], 1 << 14
	mov ecx, [r8 + 0x100]
	shr ecx, 14
	and ecx, 1
	cmp ecx, eax
	sete al
	movzx eax, al
	CHECK "msi capability", 1
	mov dword [r8 + 0x100], 0
	ret
END_GUEST
