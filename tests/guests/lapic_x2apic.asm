; x2APIC: its registers by MSR, what they refuse, and the transitions between the modes.
;> PASS mode at start
;> PASS id
;> PASS version
;> PASS ldr
;> PASS ldr is read-only
;> PASS id is read-only
;> PASS no dfr
;> PASS no icr high
;> PASS eoi cannot be read
;> PASS no register
;> PASS eoi takes zero
;> PASS esr takes zero
;> PASS tpr reserved
;> PASS tpr upper half
;> PASS svr reserved
;> PASS lvt reserved
;> PASS divide reserved
;> PASS tpr
;> PASS self ipi
;> PASS self ipi cannot be read
;> PASS icr physical
;> PASS icr logical
;> PASS icr to all
;> PASS 255 is nobody
;> PASS icr upper half
;> PASS send illegal vector
;> PASS nothing in memory
;> PASS x2apic to xapic
;> PASS x2apic without enable
;> PASS off: no msr
;> PASS off to x2apic
;> PASS off to xapic
;> PASS xapic: no msr
;> PASS xapic to x2apic keeps tpr
;> PASS xapic to x2apic keeps svr
;> PASS ldr again
%include "guest64.inc"

%macro MSR_READ 1
	mov ecx, %1
	rdmsr
%endmacro
%macro MSR_WRITE 3              ; MSR, low, high
	mov ecx, %1
	mov eax, %2
	mov edx, %3
	wrmsr
%endmacro
%macro READ_RAISES 2
	mov ecx, %2
	TRY rdmsr
	CHECK %1, 13
%endmacro
%macro WRITE_RAISES 4
	mov ecx, %2
	mov eax, %3
	mov edx, %4
	TRY wrmsr
	CHECK %1, 13
%endmacro
%macro LET_IN 0
	sti
	mov eax, 200000
	call delay_ns
	cli
%endmacro
%macro TAKEN 3
	mov rax, [IRQ_COUNT + (%2) * 8]
	CHECK %1, %3
%endmacro
%define BASE_MSR 0x1b

main:	mov eax, [X2APIC]
	CHECK "mode at start", 1
	call lapic_enable
	MSR_READ 0x802
	CHECK "id", 0
	MSR_READ 0x803
	and eax, 0xf0
	CHECK "version", 0x10
	MSR_READ 0x80d
	CHECK "ldr", 1
	WRITE_RAISES "ldr is read-only", 0x80d, 2, 0
	WRITE_RAISES "id is read-only", 0x802, 2, 0
	READ_RAISES "no dfr", 0x80e
	READ_RAISES "no icr high", 0x831
	READ_RAISES "eoi cannot be read", 0x80b
	READ_RAISES "no register", 0x804
	WRITE_RAISES "eoi takes zero", 0x80b, 1, 0
	WRITE_RAISES "esr takes zero", 0x828, 1, 0
	WRITE_RAISES "tpr reserved", 0x808, 0x100, 0
	WRITE_RAISES "tpr upper half", 0x808, 0, 1
	WRITE_RAISES "svr reserved", 0x80f, 0x10000, 0
	WRITE_RAISES "lvt reserved", 0x832, 0x80000041, 0
	WRITE_RAISES "divide reserved", 0x83e, 0x10, 0
	MSR_WRITE 0x808, 0x50, 0
	mov rax, cr8
	CHECK "tpr", 5
	MSR_WRITE 0x808, 0, 0
	CLEAR_IRQ 0x57
	MSR_WRITE 0x83f, 0x57, 0
	LET_IN
	TAKEN "self ipi", 0x57, 1
	READ_RAISES "self ipi cannot be read", 0x83f
	CLEAR_IRQ 0x57
	MSR_WRITE 0x830, 0x4057, 0
	LET_IN
	TAKEN "icr physical", 0x57, 1
	CLEAR_IRQ 0x57
	MSR_WRITE 0x830, 0x4857, 1
	LET_IN
	TAKEN "icr logical", 0x57, 1
	CLEAR_IRQ 0x57
	MSR_WRITE 0x830, 0x4057, 0xffffffff
	LET_IN
	TAKEN "icr to all", 0x57, 1
	CLEAR_IRQ 0x57
	MSR_WRITE 0x830, 0x4057, 0xff
	LET_IN
	TAKEN "255 is nobody", 0x57, 0
	MSR_READ 0x830
	mov eax, edx
	CHECK "icr upper half", 0xff
	MSR_WRITE 0x828, 0, 0
	MSR_WRITE 0x83f, 0x05, 0
	MSR_WRITE 0x828, 0, 0
	MSR_READ 0x828
	CHECK "send illegal vector", 0x20
	mov ebx, LAPIC
	mov eax, [rbx + 0x30]
	and eax, 0xff
	cmp eax, 0xff
	sete cl
	test eax, eax
	sete dl
	or cl, dl
	movzx eax, cl
	CHECK "nothing in memory", 1
	; transitions: SDM vol. 3, figure 11-27
	WRITE_RAISES "x2apic to xapic", BASE_MSR, LAPIC + 0x900, 0
	WRITE_RAISES "x2apic without enable", BASE_MSR, LAPIC + 0x500, 0
	MSR_WRITE BASE_MSR, LAPIC + 0x100, 0
	READ_RAISES "off: no msr", 0x802
	WRITE_RAISES "off to x2apic", BASE_MSR, LAPIC + 0xd00, 0
	MSR_WRITE BASE_MSR, LAPIC + 0x900, 0
	mov ebx, LAPIC
	mov eax, [rbx + 0x30]
	and eax, 0xf0
	CHECK "off to xapic", 0x10
	READ_RAISES "xapic: no msr", 0x802
	mov dword [rbx + 0xf0], 0x1ff
	mov dword [rbx + 0x80], 0x20
	MSR_WRITE BASE_MSR, LAPIC + 0xd00, 0
	MSR_READ 0x808
	CHECK "xapic to x2apic keeps tpr", 0x20
	MSR_READ 0x80f
	CHECK "xapic to x2apic keeps svr", 0x1ff
	MSR_READ 0x80d
	CHECK "ldr again", 1
	ret
END_GUEST
