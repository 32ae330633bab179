; Any port, any MMIO address, any size, any order: 12000 accesses by a generator of pseudo-random numbers, all
; platform devices included, leave the monitor alive. Spared are the ports that end the VM by design (0x64, 0x92,
; 0xCF9, 0xF4, PM1_CNT), COM1, which reports, and the local APIC's page.
;> PASS ports survived
;> PASS string ports survived
;> PASS mmio survived
%include "guest64.inc"
; R12 = the generator's state -> EAX.
random:	mov rax, 6364136223846793005
	imul r12, rax
	mov rax, 1442695040888963407
	add r12, rax
	mov rax, r12
	shr rax, 33
	ret
; A port in DX, with three more that may be touched.
port:	call random
	mov edx, eax
	shr eax, 16
	test al, 3
	jz .any
	and edx, 0xfff          ; most devices are here
.any:	movzx edx, dx
	mov esi, spared
.next:	lodsw
	cmp ax, 0xffff
	je .ok
	sub ax, dx
	cmp ax, 4               ; spared - port in 0..3
	jae .next
	jmp port
.ok:	ret
spared:	dw 0x64, 0x92, 0xcf9, EXIT_PORT, EXIT_PORT + 1, EXIT_PORT + 2, EXIT_PORT + 3, PM1_CNT, PM1_CNT + 1, COM1, COM1 + 1, COM1 + 2, COM1 + 3, COM1 + 4
	dw COM1 + 5, COM1 + 6, COM1 + 7, 0xffff
; An MMIO address in RBX.
address:
	call random
	mov ecx, eax
	and ecx, 3
	mov ebx, [pages + rcx * 4]
	shr eax, 4
	and eax, 0xfff
	add ebx, eax
	ret
pages:	dd IOAPIC, HPET, TESTDEV_MEM, 0xe0000000

main:	cli
	mov r12d, 2026
	mov r13d, 6000
.ports:	call port
	call random
	mov ecx, eax
	and ecx, 7
	shr eax, 3
	cmp ecx, 1
	jb .out8
	je .out16
	cmp ecx, 3
	jb .out32
	je .in8
	cmp ecx, 5
	jb .in16
	in eax, dx
	jmp .again
.out8:	out dx, al
	jmp .again
.out16:	out dx, ax
	jmp .again
.out32:	out dx, eax
	jmp .again
.in8:	in al, dx
	jmp .again
.in16:	in ax, dx
.again:	dec r13d
	jnz .ports
	mov eax, 1
	CHECK "ports survived", 1
	mov r13d, 400
.strings:
	call port
	call random
	mov ecx, eax
	and ecx, 0x3f
	mov esi, IMAGE
	mov edi, SCRATCH
	test eax, 0x1000
	jz .ins
	test eax, 0x2000
	jz .outsb
	rep outsd
	jmp .sdone
.outsb:	rep outsb
	jmp .sdone
.ins:	test eax, 0x2000
	jz .insw
	rep insd
	jmp .sdone
.insw:	rep insw
.sdone:	dec r13d
	jnz .strings
	mov eax, 1
	CHECK "string ports survived", 1
	mov r13d, 6000
.mmio:	call address
	call random
	mov ecx, eax
	and ecx, 7
	cmp ecx, 1
	jb .w1
	je .w2
	cmp ecx, 3
	jb .w4
	je .w8
	cmp ecx, 5
	jb .r1
	je .r2
	cmp ecx, 7
	jb .r4
	mov rax, [rbx]
	jmp .mnext
.r4:	mov eax, [rbx]
	jmp .mnext
.r2:	mov ax, [rbx]
	jmp .mnext
.r1:	mov al, [rbx]
	jmp .mnext
.w1:	mov [rbx], al
	jmp .mnext
.w2:	mov [rbx], ax
	jmp .mnext
.w4:	mov [rbx], eax
	jmp .mnext
.w8:	mov [rbx], rax
.mnext:	dec r13d
	jnz .mmio
	mov eax, 1
	CHECK "mmio survived", 1
	ret
END_GUEST
