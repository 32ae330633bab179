; Where interrupts that rain down may not fall: between STI and the instruction behind it, between MOV SS and the
; next, between an instruction's store to a device and its end; and single steps that they neither add nor swallow. Two
; CPUs: the second sends the interrupts.
;> PASS in the shadow of sti
;> PASS in the shadow of mov ss
;> PASS behind a store to a device
;> PASS steps
;> PASS steps at a place of their own
%include "smp.inc"
%define RAIN (SCRATCH + 0)              ; the AP sends while this is not 0
%define TAKEN (SCRATCH + 8)
%define EARLY (SCRATCH + 16)            ; interrupts that came where none may
%define STEPS (SCRATCH + 24)
%define LAST (SCRATCH + 32)             ; where the last step was seen
%define TWICE (SCRATCH + 40)            ; steps that got nowhere
%define SOURCE (SCRATCH + 48)
%define IPI_VECTOR 0x70
%define ROUNDS 20000
%define ENOUGH 100

ap_main:
	cmp qword [RAIN], 0
	je .dry
	xor edx, edx
	mov eax, ICR_FIXED | IPI_VECTOR
	call ipi
.dry:	pause
	jmp ap_main

; Straight from the gate, so that what was interrupted is on the stack.
on_rain:
	push rax
	push rdx
	inc qword [TAKEN]
	mov rax, [rsp + 16]
	cmp rax, [EARLY + 0x100]
	jne .fine
	inc qword [EARLY]
.fine:	mov eax, 0xb0
	xor edx, edx
	call lapic_write
	pop rdx
	pop rax
	iretq
; The store that was interrupted has not been made yet.
on_store:
	push rax
	push rdx
	inc qword [TAKEN]
	mov rax, [rsp + 16]
	cmp rax, [EARLY + 0x100]
	jne on_rain.fine
	mov eax, TESTDEV_MEM
	cmp byte [rax], 0
	je on_rain.fine
	inc qword [EARLY]
	jmp on_rain.fine
on_step:
	push rax
	mov rax, [rsp + 8]
	cmp rax, [LAST]
	jne .moved
	inc qword [TWICE]
.moved:	mov [LAST], rax
	inc qword [STEPS]
	pop rax
	iretq

%macro GATE 2                           ; vector, routine
	mov eax, %2
	mov [idt + %1 * 16], ax
	shr eax, 16
	mov [idt + %1 * 16 + 6], ax
%endmacro

main:	call lapic_enable
	GATE IPI_VECTOR, on_rain
	GATE 1, on_step
	mov qword [TAKEN], 0
	mov qword [EARLY], 0
	mov qword [STEPS], 0
	mov qword [LAST], 0
	mov qword [TWICE], 0
	mov qword [RAIN], 0
	call start_aps
	mov edi, AP_COUNT
	mov esi, 1
	call await
	mov qword [RAIN], 1

	mov qword [EARLY + 0x100], .behind_sti
	mov ebx, ROUNDS
.next:	cli
	mov ecx, 8                      ; one comes meanwhile
.wait:	loop .wait
	sti
.behind_sti:
	nop
	nop
	dec ebx
	jnz .next
	mov ebx, 1
	cmp qword [TAKEN], ENOUGH
	jb .next
	cli
	mov rax, [EARLY]
	CHECK "in the shadow of sti", 0

	mov qword [EARLY], 0
	mov qword [EARLY + 0x100], .behind_ss
	mov ebx, ROUNDS
	mov edx, ss
	sti
.again:	mov ss, edx
.behind_ss:
	nop
	dec ebx
	jnz .again
	mov ebx, 1
	cmp qword [TAKEN], ENOUGH * 2
	jb .again
	cli
	mov rax, [EARLY]
	CHECK "in the shadow of mov ss", 0

	mov qword [EARLY], 0
	mov qword [EARLY + 0x100], .store
	GATE IPI_VECTOR, on_store
	mov byte [SOURCE], 1
	mov ebx, ROUNDS
	sti
.device:
	mov edi, TESTDEV_MEM
	mov esi, SOURCE
	mov byte [rdi], 0
.store:	movsb
	dec ebx
	jnz .device
	mov ebx, 1
	cmp qword [TAKEN], ENOUGH * 3
	jb .device
	cli
	mov rax, [EARLY]
	CHECK "behind a store to a device", 0

	GATE IPI_VECTOR, on_rain
	mov qword [EARLY + 0x100], 0
	mov ecx, ROUNDS
	sti
	pushfq
	or dword [rsp], 0x100
	popfq
.step:	nop
	dec ecx
	jnz .step
	pushfq
	and dword [rsp], ~0x100
	popfq                           ; is the last that is stepped
	cli
	mov rax, [STEPS]
	CHECK "steps", ROUNDS * 3 + 3
	mov rax, [TWICE]
	CHECK "steps at a place of their own", 0
	mov qword [RAIN], 0
	ret
END_GUEST
