; Real mode from the reset vector: the reset state, segments, string I/O with 16-bit wrap, INT and faults by the
; IVT, a round trip through protected mode, big real mode.
;> PASS reset eax
;> PASS reset cr0
;> PASS segment arithmetic
;> PASS outsb es override
;> PASS insw wraps di
;> PASS rep outsw cx
;> PASS int n
;> PASS int pushes flags
;> PASS #DE
;> PASS #UD
;> PASS #BP
;> PASS protected mode
;> PASS big real mode
;> PASS rom at 4 GiB
%include "guest16.inc"
main:	mov eax, [RESET_EAX]
	CHECK "reset eax", 0
	mov eax, [RESET_CR0]
	CHECK "reset cr0", 0x60000010
	mov ax, 0x1234
	mov es, ax
	mov word [es:0x10], 0xbeef
	xor eax, eax
	mov bx, 0x1000
	mov fs, bx
	mov ax, [fs:0x2350]
	CHECK "segment arithmetic", 0xbeef
	mov byte [es:0x20], 0x77
	mov si, 0x20
	mov dx, TESTDEV_PORT
	es outsb
	xor eax, eax
	in al, dx
	CHECK "outsb es override", 0x77
	mov ax, 0x4321
	out dx, ax
	mov di, 0xfffe
	insw
	movzx eax, di
	mov bx, [es:0xfffe]
	shl ebx, 16
	or eax, ebx
	CHECK "insw wraps di", 0x43210000
	push word 0
	pop es
	mov dword [SCRATCH], 0x22221111
	mov word [SCRATCH + 4], 0x3333
	mov si, SCRATCH
	mov cx, 3
	rep outsw
	xor eax, eax
	in ax, dx
	shl ecx, 16
	or eax, ecx
	CHECK "rep outsw cx", 0x3333
	int 0x60
	movzx eax, word [IRQ_COUNT + 0x60 * 2]
	CHECK "int n", 1
	stc
	int 0x61
	setc al
	movzx eax, al
	CHECK "int pushes flags", 1
	xor cx, cx
	TRY div cx
	CHECK "#DE", 0
	TRY ud2
	CHECK "#UD", 6
	TRY int3
	CHECK "#BP", 3
	; Into 32-bit protected mode and back.
	lgdt [cs:gdt_ptr]
	mov eax, cr0
	or al, 1
	mov cr0, eax
	jmp 0x08:protected
	bits 32
protected:
	mov ax, 0x10
	mov fs, ax
	mov eax, [fs:dword 0xffffe000] ; over 1 MiB: the ROM itself
	mov ecx, eax
	mov ax, 0x20
	mov ds, ax
	jmp 0x18:leave32
	bits 16
leave32:
	mov eax, cr0
	and al, 0xfe
	mov cr0, eax
	jmp 0xf000:real
real:	xor ax, ax
	mov ds, ax
	mov eax, ecx
	CHECK "protected mode", [cs:image]
	; FS keeps its 4 GiB limit until it is loaded.
	mov edi, 0x180000
	mov dword [fs:edi], 0x600dcafe
	mov eax, [fs:edi]
	CHECK "big real mode", 0x600dcafe
	mov edi, 0xfffffff0
	movzx eax, byte [fs:edi]
	CHECK "rom at 4 GiB", 0xea
	ret
	align 8
gdt:	dq 0
	dq 0x00cf9b0f0000ffff   ; 0x08: code, 32 bits, base 0xf0000
	dq 0x00cf93000000ffff   ; 0x10: data, flat
	dq 0x00009b0f0000ffff   ; 0x18: code, 16 bits, base 0xf0000
	dq 0x000093000000ffff   ; 0x20: data, 64 KiB
gdt_ptr:
	dw 39
	dd 0xf0000 + gdt
END_GUEST
