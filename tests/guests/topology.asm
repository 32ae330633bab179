; Two packages of three cores: APIC ids have two bits for the core, so the second package begins at 4.
;> PASS aps up
;> PASS apic ids
;> PASS cpuid ids
;> PASS ipi by id
;> PASS package bits
;> PASS cores a package
%include "smp.inc"
%define CPUID_IDS (SCRATCH)
%define WOKEN (SCRATCH + 8)
ap_main:
	mov esi, ebx
	mov eax, 1
	cpuid
	shr ebx, 24
	cmp ebx, esi
	jne .wait
	lock bts [CPUID_IDS], rbx
.wait:	cmp esi, 6
	jne .stop
	sti
	hlt
	cli
	inc qword [WOKEN]
.stop:	cli
	hlt
	jmp .stop
main:	call lapic_enable
	mov qword [CPUID_IDS], 0
	mov qword [WOKEN], 0
	call start_aps
	mov edi, AP_COUNT
	mov esi, 5
	call await
	mov rax, [AP_COUNT]
	CHECK "aps up", 5
	mov rax, [AP_SEEN]
	CHECK "apic ids", 0x76
	mov edi, CPUID_IDS
	mov esi, 0x76
	call await
	mov rax, [CPUID_IDS]
	CHECK "cpuid ids", 0x76
	mov edx, 6
	mov eax, ICR_FIXED | 0x60
	call ipi
	mov edi, WOKEN
	mov esi, 1
	call await
	mov rax, [WOKEN]
	CHECK "ipi by id", 1
	; Leaf 0xB, where the CPU has it.
	xor eax, eax
	cpuid
	mov r8d, 2
	mov r9d, 3
	cmp eax, 0xb
	jb .none
	mov eax, 0xb
	mov ecx, 1
	cpuid
	and eax, 0x1f
	and ebx, 0xffff
	mov r8d, eax
	mov r9d, ebx
.none:	mov eax, r8d
	CHECK "package bits", 2
	mov eax, r9d
	CHECK "cores a package", 3
	ret
END_GUEST
