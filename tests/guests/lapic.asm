; The local APIC in depth, in xAPIC mode: errors, priorities, software disable, the timer's three modes, the messages a CPU
; sends itself, LINT0 as ExtINT, relocation and disable by IA32_APIC_BASE. (IPIs among CPUs: ipi; against other clocks:
; timers.)
;> PASS highest lvt
;> PASS version
;> PASS no error
;> PASS esr before it is written
;> PASS send illegal vector
;> PASS esr is cleared
;> PASS illegal register
;> PASS illegal register written
;> PASS error interrupt
;> PASS .. and its reason
;> PASS cr8 is tpr's class
;> PASS ppr is tpr
;> PASS tpr is cr8
;> PASS tpr holds its class back
;> PASS tpr lets the next in
;> PASS irr of what waits
;> PASS tpr lets it in
;> PASS order
;> PASS ppr in service
;> PASS isr
;> PASS the higher goes first
;> PASS disable masks
;> PASS no unmasking while disabled
;> PASS disabled takes none
;> PASS disabled takes nmi
;> PASS enabled is masked still
;> PASS what was sent before is lost
;> PASS enabled takes it
;> PASS one-shot
;> PASS one-shot is over
;> PASS initial count stays
;> PASS masked
;> PASS periodic counts
;> PASS stopped
;> PASS stopped count
;> PASS divide bits
;> PASS illegal vector of the timer
;> PASS deadline in another mode
;> PASS deadline is armed
;> PASS deadline is over
;> PASS deadline of the past
;> PASS no count in deadline mode
;> PASS no initial count either
;> PASS deadline far away
;> PASS deadline disarmed
;> PASS another mode disarms
;> PASS physical
;> PASS physical to all
;> PASS shorthand self
;> PASS shorthand all
;> PASS lowest priority
;> PASS id
;> PASS logical flat
;> PASS logical to all
;> PASS logical cluster
;> PASS another cluster
;> PASS nobody there
;> PASS delivered
;> PASS icr high
;> PASS ldr
;> PASS dfr
;> PASS lint0 masked
;> PASS lint0 extint
;> PASS base
;> PASS base reserved bit
;> PASS base too high
;> PASS moved
;> PASS nothing where it was
;> PASS moved works
;> PASS over ram
;> PASS ram is back
;> PASS tpr was written there
;> PASS cpuid while off
;> PASS off
;> PASS cpuid when on again
;> PASS svr as after reset
;> PASS tpr as after reset
;> PASS on again
%include "guest64.inc"

%define NOTE (SCRATCH + 0)
%define NOTE2 (SCRATCH + 8)
%define ORDER (SCRATCH + 16)    ; the vectors taken, two digits each
%define MOVED 0xd0000000
%define ONRAM 0x3f0000
%define ICR_SELF 0x44000

%macro WRITE 2                  ; register, value
	mov eax, %1
	mov edx, %2
	call lapic_write
%endmacro
%macro READ 1
	mov eax, %1
	call lapic_read
%endmacro
%macro REGISTER 3-4             ; name, register, value or bounds
	READ %2
%if %0 = 4
	CHECK %1, %3, %4
%else
	CHECK %1, %3
%endif
%endmacro
%macro SELF 1
	WRITE 0x300, ICR_SELF | %1
%endmacro
%macro ESR_IS 2                 ; ESR tells when it is written
	WRITE 0x280, 0
	REGISTER %1, 0x280, %2
%endmacro
%macro TAKEN 3                  ; name, vector, how often since CLEAR_IRQ
	mov rax, [IRQ_COUNT + (%2) * 8]
	CHECK %1, %3
%endmacro
; Interrupts on for a moment.
%macro LET_IN 0
	sti
	mov eax, 200000
	call delay_ns
	cli
%endmacro

main:	call lapic_enable
	READ 0x30
	movzx ecx, al
	shr eax, 16
	and eax, 0xff
	CHECK "highest lvt", 4, 6
	mov eax, ecx
	CHECK "version", 0x10, 0x1f
	call test_errors
	call test_priorities
	call test_disable
	call test_timer
	call test_deadline
	call test_messages
	call test_extint
	call test_base
	ret

test_errors:
	WRITE 0x280, 0
	WRITE 0x280, 0
	ESR_IS "no error", 0
	SELF 0x08
	REGISTER "esr before it is written", 0x280, 0
	ESR_IS "send illegal vector", 0x20
	ESR_IS "esr is cleared", 0
	READ 0x40
	ESR_IS "illegal register", 0x80
	WRITE 0x400, 1
	ESR_IS "illegal register written", 0x80
	CLEAR_IRQ 0x51
	WRITE 0x370, 0x51
	SELF 0x03
	LET_IN
	TAKEN "error interrupt", 0x51, 1
	ESR_IS ".. and its reason", 0x20
	WRITE 0x370, 0x10051
	ret

; A handler that lets others in: notes the order, PPR and ISR.
nest:	push rdi
	mov rax, [ORDER]
	shl rax, 8
	or rax, rdi
	mov [ORDER], rax
	cmp edi, 0x62
	jne .out
	READ 0xa0
	mov [NOTE], rax
	READ 0x130              ; ISR of 0x60 to 0x7f
	mov [NOTE2], rax
	SELF 0x55               ; waits for this one's end
	SELF 0x6f               ; of the same class: waits
	SELF 0x71               ; at once
	sti
	mov eax, 200000
	call delay_ns
	cli
.out:	pop rdi
	ret

test_priorities:
	WRITE 0x80, 0x53
	mov rax, cr8
	CHECK "cr8 is tpr's class", 5
	REGISTER "ppr is tpr", 0xa0, 0x53
	mov eax, 10
	mov cr8, rax
	REGISTER "tpr is cr8", 0x80, 0xa0
	WRITE 0x80, 0x4f
	CLEAR_IRQ 0x4f
	CLEAR_IRQ 0x50
	SELF 0x4f
	SELF 0x50
	LET_IN
	TAKEN "tpr holds its class back", 0x4f, 0
	TAKEN "tpr lets the next in", 0x50, 1
	READ 0x220              ; IRR of 0x40 to 0x5f
	CHECK "irr of what waits", 0x8000
	WRITE 0x80, 0
	LET_IN
	TAKEN "tpr lets it in", 0x4f, 1
	HOOK_IRQ 0x55, nest
	HOOK_IRQ 0x62, nest
	HOOK_IRQ 0x6f, nest
	HOOK_IRQ 0x71, nest
	mov qword [ORDER], 0
	SELF 0x62
	LET_IN
	LET_IN
	mov rax, [ORDER]
	CHECK "order", 0x62716f55
	mov rax, [NOTE]
	CHECK "ppr in service", 0x60
	mov rax, [NOTE2]
	CHECK "isr", 4
	; two at once: the higher goes first
	mov qword [ORDER], 0
	SELF 0x55
	SELF 0x71
	LET_IN
	mov rax, [ORDER]
	CHECK "the higher goes first", 0x7155
	ret

test_disable:
	WRITE 0x320, 0x41
	WRITE 0xf0, 0xff        ; off
	READ 0x320
	and eax, 0x10000
	CHECK "disable masks", 0x10000
	WRITE 0x320, 0x41
	READ 0x320
	and eax, 0x10000
	CHECK "no unmasking while disabled", 0x10000
	CLEAR_IRQ 0x56
	SELF 0x56
	LET_IN
	TAKEN "disabled takes none", 0x56, 0
	CLEAR_IRQ 2
	HOOK_IRQ 2, nothing
	SELF 0x400
	LET_IN
	TAKEN "disabled takes nmi", 2, 1
	HOOK_IRQ 2, 0
	WRITE 0xf0, 0x1ff
	READ 0x320
	and eax, 0x10000
	CHECK "enabled is masked still", 0x10000
	LET_IN
	TAKEN "what was sent before is lost", 0x56, 0
	SELF 0x56
	LET_IN
	TAKEN "enabled takes it", 0x56, 1
nothing:
	ret

test_timer:
	WRITE 0x3e0, 0xb        ; by 1
	WRITE 0x320, 0x41
	CLEAR_IRQ 0x41
	WRITE 0x380, 1000
	WAIT_IRQ 0x41, 1
	LET_IN
	TAKEN "one-shot", 0x41, 1
	REGISTER "one-shot is over", 0x390, 0
	REGISTER "initial count stays", 0x380, 1000
	WRITE 0x320, 0x10041
	CLEAR_IRQ 0x41
	WRITE 0x380, 1000
	LET_IN
	TAKEN "masked", 0x41, 0
	WRITE 0x320, 0x20041    ; periodic
	WRITE 0x3e0, 0xb
	WRITE 0x380, 100000
	WAIT_IRQ 0x41, 4
	cli
	REGISTER "periodic counts", 0x390, 1, 100000
	WRITE 0x380, 0
	LET_IN
	CLEAR_IRQ 0x41
	LET_IN
	LET_IN
	TAKEN "stopped", 0x41, 0
	REGISTER "stopped count", 0x390, 0
	WRITE 0x3e0, 0xffffffff
	REGISTER "divide bits", 0x3e0, 0xb
	WRITE 0x320, 0x05       ; a vector that is none
	WRITE 0x380, 100
	mov ebx, 5000           ; up to 5 s
.wait:	mov eax, 1000000
	call delay_ns
	WRITE 0x280, 0
	READ 0x280
	test eax, eax
	jnz .told
	dec ebx
	jnz .wait
.told:	CHECK "illegal vector of the timer", 0x40
	WRITE 0x320, 0x10041
	ret

%define DEADLINE 0x6e0
; The MSR := now + RBX
arm:	rdtsc
	shl rdx, 32
	add rax, rdx
	add rax, rbx
	mov rdx, rax
	shr rdx, 32
	mov ecx, DEADLINE
	wrmsr
	ret
%macro ARMED 2
	mov ecx, DEADLINE
	rdmsr
	or eax, edx
	setnz al
	movzx eax, al
	CHECK %1, %2
%endmacro
test_deadline:
	mov ebx, 1000000000
	call arm
	ARMED "deadline in another mode", 0
	WRITE 0x320, 0x40041
	CLEAR_IRQ 0x41
	mov rbx, 1 << 40
	call arm
	ARMED "deadline is armed", 1
	mov ebx, 200000
	call arm
	WAIT_IRQ 0x41, 1
	cli
	ARMED "deadline is over", 0
	CLEAR_IRQ 0x41
	mov rbx, -1000
	call arm
	WAIT_IRQ 0x41, 1
	LET_IN
	TAKEN "deadline of the past", 0x41, 1
	CLEAR_IRQ 0x41
	mov rbx, 1 << 40
	call arm
	WRITE 0x380, 1
	LET_IN
	TAKEN "no count in deadline mode", 0x41, 0
	REGISTER "no initial count either", 0x380, 0
	ARMED "deadline far away", 1
	xor eax, eax
	xor edx, edx
	mov ecx, DEADLINE
	wrmsr
	ARMED "deadline disarmed", 0
	mov rbx, 1 << 40
	call arm
	WRITE 0x320, 0x10041
	ARMED "another mode disarms", 0
	ret

%macro MESSAGE 3                ; name, ICR high, ICR low with vector 0x57
	CLEAR_IRQ 0x57
	WRITE 0x310, %2
	WRITE 0x300, %3
	LET_IN
	TAKEN %1, 0x57, 1
%endmacro
test_messages:
	MESSAGE "physical", 0, 0x4057
	MESSAGE "physical to all", 0xff000000, 0x4057
	MESSAGE "shorthand self", 0, 0x44057
	MESSAGE "shorthand all", 0, 0x84057
	MESSAGE "lowest priority", 0, 0x4157
	READ 0x20
	CHECK "id", 0
	WRITE 0xd0, 0x21000000
	WRITE 0xe0, 0xffffffff
	MESSAGE "logical flat", 0x20000000, 0x4857
	MESSAGE "logical to all", 0xff000000, 0x4857
	WRITE 0xe0, 0x0fffffff
	MESSAGE "logical cluster", 0x23000000, 0x4857
	CLEAR_IRQ 0x57
	WRITE 0x310, 0x31000000
	WRITE 0x300, 0x4857
	LET_IN
	TAKEN "another cluster", 0x57, 0
	CLEAR_IRQ 0x57
	WRITE 0x310, 0x05000000
	WRITE 0x300, 0x4057
	WRITE 0x300, 0xc4057    ; all others
	LET_IN
	TAKEN "nobody there", 0x57, 0
	READ 0x300
	and eax, 0x1000
	CHECK "delivered", 0
	REGISTER "icr high", 0x310, 0x05000000
	REGISTER "ldr", 0xd0, 0x21000000
	REGISTER "dfr", 0xe0, 0x0fffffff
	WRITE 0xe0, 0xffffffff
	ret

; The PIT's interrupt by way of the PIC.
pit_once:
	mov al, 0x30
	out 0x43, al
	mov al, 0x40
	out 0x40, al
	mov al, 0
	out 0x40, al
	mov eax, 1000000
	call delay_ns
	ret
test_extint:
	mov al, 0xfe
	out 0x21, al
	CLEAR_IRQ 0x20
	WRITE 0x350, 0x10700
	call pit_once
	LET_IN
	TAKEN "lint0 masked", 0x20, 0
	WRITE 0x350, 0x700
	WAIT_IRQ 0x20, 1
	LET_IN
	TAKEN "lint0 extint", 0x20, 1
	mov al, 0xff
	out 0x21, al
	WRITE 0x350, 0x10000
	ret

%macro BASE 2                   ; address, flags
	mov ecx, 0x1b
	mov eax, %1 + %2
	xor edx, edx
	wrmsr
%endmacro
test_base:
	mov ecx, 0x1b
	rdmsr
	CHECK "base", LAPIC + 0x900
	mov eax, LAPIC + 0x901
	TRY wrmsr
	CHECK "base reserved bit", 13
	mov ecx, 0x1b
	mov eax, LAPIC + 0x900
	mov edx, 0x100000       ; more address lines than there are
	TRY wrmsr
	CHECK "base too high", 13
	BASE MOVED, 0x900
	mov rbx, MOVED
	mov eax, [rbx + 0x30]
	and eax, 0xf0
	CHECK "moved", 0x10
	mov ebx, LAPIC
	mov eax, [rbx + 0x30]
	and eax, 0xff
	cmp eax, 0xff           ; nothing, or the chipset's all ones
	sete cl
	test eax, eax
	sete dl
	or cl, dl
	movzx eax, cl
	CHECK "nothing where it was", 1
	mov rbx, MOVED
	CLEAR_IRQ 0x58
	mov dword [rbx + 0x310], 0
	mov dword [rbx + 0x300], 0x44058
	sti
	mov eax, 200000
	call delay_ns
	cli
	TAKEN "moved works", 0x58, 1
	mov dword [rbx + 0xb0], 0 ; the handler's EOI went nowhere
	; over RAM, which comes back as it was
	mov ebx, ONRAM
	mov dword [rbx + 0x30], 0x12345678
	BASE ONRAM, 0x900
	mov ebx, ONRAM
	mov eax, [rbx + 0x30]
	and eax, 0xf0
	CHECK "over ram", 0x10
	mov dword [rbx + 0x80], 0x30
	BASE LAPIC, 0x900
	mov eax, [rbx + 0x30]
	CHECK "ram is back", 0x12345678
	REGISTER "tpr was written there", 0x80, 0x30
	; off, which CPUID tells, and on: as after reset
	BASE LAPIC, 0x100
	mov eax, 1
	cpuid
	mov eax, edx
	shr eax, 9
	and eax, 1
	CHECK "cpuid while off", 0
	mov ebx, LAPIC
	mov eax, [rbx + 0x30]
	and eax, 0xff
	cmp eax, 0xff
	sete cl
	test eax, eax
	sete dl
	or cl, dl
	movzx eax, cl
	CHECK "off", 1
	BASE LAPIC, 0x900
	mov eax, 1
	cpuid
	mov eax, edx
	shr eax, 9
	and eax, 1
	CHECK "cpuid when on again", 1
	REGISTER "svr as after reset", 0xf0, 0xff
	REGISTER "tpr as after reset", 0x80, 0
	call lapic_enable
	CLEAR_IRQ 0x58
	SELF 0x58
	LET_IN
	TAKEN "on again", 0x58, 1
	ret
END_GUEST
