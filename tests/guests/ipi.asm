; IPIs among four CPUs: fixed, self, to all but self, to all, logical, NMI; HLT is woken by them.
;> PASS aps up
;> PASS fixed to each
;> PASS self
;> PASS others
;> PASS all
;> PASS logical pair
;> PASS nmi to one
;> PASS nmi to others
;> PASS priority holds back
;> PASS priority lets in
;> PASS ap to bsp
%include "smp.inc"
; IRQ_COUNT counts a vector over all CPUs; this is by CPU: a qword each.
%define BY_CPU (SCRATCH)
hook:	call apic_id
	lock inc qword [BY_CPU + rbx * 8]
	ret
; APs: in HLT with interrupts on.
ap_main:
	cmp dword [X2APIC], 0
	jnz .idle
	mov ecx, ebx            ; flat logical id: bit n
	mov edx, 1 << 24
	shl edx, cl
	mov eax, 0xd0
	call lapic_write
.idle:	sti
	hlt
	jmp .idle
; Sends EAX to APIC id EDX and waits until vector ECX was taken ESI times in all.
send:	call ipi
	lea edi, [IRQ_COUNT + rcx * 8]
	sti
	call await
	cli
	ret
; The counts by CPU as nibbles into EAX, cleared.
counts:	xor eax, eax
	xor ecx, ecx
.next:	shl eax, 4
	mov rdx, [BY_CPU + rcx * 8]
	mov qword [BY_CPU + rcx * 8], 0
	or eax, edx
	inc ecx
	cmp ecx, 4
	jb .next
	ret
main:
%ifdef EXPECT_X2APIC
	mov eax, [X2APIC]
	CHECK "x2apic mode", 1
%endif
	call lapic_enable
	HOOK_IRQ 2, hook
%assign v 0x40
%rep 8
	HOOK_IRQ v, hook
%assign v v + 1
%endrep
	mov qword [BY_CPU], 0
	mov qword [BY_CPU + 8], 0
	mov qword [BY_CPU + 16], 0
	mov qword [BY_CPU + 24], 0
	call start_aps
	mov edi, AP_COUNT
	mov esi, 3
	call await
	mov rax, [AP_COUNT]
	CHECK "aps up", 3
	mov eax, 20000000       ; the slowest reaches its HLT
	call delay_ns
	mov eax, ICR_FIXED | 0x40
	mov ecx, 0x40
	mov edx, 1
	mov esi, 1
	call send
	mov edx, 2
	mov esi, 2
	call send
	mov edx, 3
	mov esi, 3
	call send
	call counts
	CHECK "fixed to each", 0x0111
	mov eax, ICR_FIXED | ICR_SELF | 0x41
	mov ecx, 0x41
	mov esi, 1
	call send
	call counts
	CHECK "self", 0x1000
	mov eax, ICR_FIXED | ICR_OTHERS | 0x42
	mov ecx, 0x42
	mov esi, 3
	call send
	call counts
	CHECK "others", 0x0111
	mov eax, ICR_FIXED | ICR_ALL | 0x43
	mov ecx, 0x43
	mov esi, 4
	call send
	call counts
	CHECK "all", 0x1111
	; CPUs 1 and 3: flat logical ids, in x2APIC the cluster's.
	mov eax, ICR_FIXED | 0x800 | 0x44
	mov edx, 0xa
	mov ecx, 0x44
	mov esi, 2
	call send
	call counts
	CHECK "logical pair", 0x0101
	mov eax, ICR_NMI
	mov edx, 2
	mov ecx, 2
	mov esi, 1
	call send
	call counts
	CHECK "nmi to one", 0x0010
	mov eax, ICR_NMI | ICR_OTHERS
	mov ecx, 2
	mov esi, 4
	call send
	call counts
	CHECK "nmi to others", 0x0111
	; The task priority holds vectors of its class and below.
	mov eax, 5
	mov cr8, rax
	mov eax, ICR_FIXED | ICR_SELF | 0x45
	call ipi
	sti
	nop
	mov eax, 1000000
	call delay_ns
	mov rax, [IRQ_COUNT + 0x45 * 8]
	CHECK "priority holds back", 0
	xor eax, eax
	mov cr8, rax
	mov edi, IRQ_COUNT + 0x45 * 8
	mov esi, 1
	call await
	cli
	mov rax, [IRQ_COUNT + 0x45 * 8]
	CHECK "priority lets in", 1
	; CPU 1 answers 0x46 with 0x47 to the BSP.
	HOOK_IRQ 0x46, answer
	mov eax, ICR_FIXED | 0x46
	mov edx, 1
	mov ecx, 0x47
	mov esi, 1
	call send
	call counts
	CHECK "ap to bsp", 0x2000 ; and the held one before it
	ret
answer:	mov eax, ICR_FIXED | 0x47
	xor edx, edx
	jmp ipi
END_GUEST
