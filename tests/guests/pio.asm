; Port I/O in every size, as single, string and REP forms, both directions of DF, on the test device's
; 32-bit register at 0xE0, and a port that nobody claims.
;> PASS out8 in8
;> PASS out16 in16
;> PASS out32 in32
;> PASS bytes of a dword
;> PASS imm8 port
;> PASS outsb
;> PASS outsd si
;> PASS insw
;> PASS insw di
;> PASS rep outsb last
;> PASS rep outsb count
;> PASS rep insd first
;> PASS rep insd last
;> PASS rep insd end
;> PASS rep insd rdi
;> PASS std outsw
;> PASS std outsw rsi
;> PASS std insb low
;> PASS std insb rdi
;> PASS rep count 0
;> PASS unclaimed in8
;> PASS unclaimed in16
;> PASS unclaimed in32
;> PASS 32-bit address
%include "guest64.inc"
main:
	mov dx, TESTDEV_PORT
	mov eax, 0xdeadbe5a
	out dx, al
	mov eax, -1
	in al, dx
	CHECK "out8 in8", 0xffffff5a
	mov ax, 0xa55a
	out dx, ax
	mov eax, -1
	in ax, dx
	CHECK "out16 in16", 0xffffa55a
	mov eax, 0x12345678
	out dx, eax
	mov rax, -1
	in eax, dx
	CHECK "out32 in32", 0x12345678
	mov dx, TESTDEV_PORT + 2
	xor eax, eax
	in al, dx
	CHECK "bytes of a dword", 0x34
	mov eax, 0x77
	out TESTDEV_PORT, al
	xor eax, eax
	in al, TESTDEV_PORT
	CHECK "imm8 port", 0x77

	cld
	mov dx, TESTDEV_PORT
	mov esi, data
	outsb
	xor eax, eax
	in al, dx
	CHECK "outsb", 0x11
	mov esi, data
	outsd
	lea rax, [rsi - data]
	CHECK "outsd si", 4
	mov edi, SCRATCH
	mov qword [rdi], 0
	insw
	mov rax, [SCRATCH]
	CHECK "insw", 0x2211
	lea rax, [rdi - SCRATCH]
	CHECK "insw di", 2

	mov esi, data
	mov ecx, 16
	rep outsb
	xor eax, eax
	in al, dx
	CHECK "rep outsb last", 0xff
	lea rax, [rsi - data + rcx]
	CHECK "rep outsb count", 16
	mov eax, 0xcafef00d
	out dx, eax
	mov edi, SCRATCH
	mov ecx, 1500           ; over a page boundary, and more than an engine buffers
	mov dword [SCRATCH + 6000], 0x5a5a5a5a
	rep insd
	mov eax, [SCRATCH]
	CHECK "rep insd first", 0xcafef00d
	mov eax, [SCRATCH + 5996]
	CHECK "rep insd last", 0xcafef00d
	mov eax, [SCRATCH + 6000]
	CHECK "rep insd end", 0x5a5a5a5a
	lea rax, [rdi - SCRATCH]
	CHECK "rep insd rdi", 6000

	std
	mov esi, data + 6
	mov ecx, 3
	rep outsw
	xor eax, eax
	in ax, dx
	cld
	CHECK "std outsw", 0x4433
	lea rax, [rsi - data]
	CHECK "std outsw rsi", 0
	mov edi, SCRATCH + 3
	mov qword [SCRATCH], 0
	mov ecx, 3
	std
	rep insb
	cld
	mov eax, [SCRATCH]
	CHECK "std insb low", 0x33333300
	lea rax, [rdi - SCRATCH]
	CHECK "std insb rdi", 0
	mov edi, SCRATCH
	xor ecx, ecx
	mov dword [SCRATCH], 0x01020304
	rep insd
	mov eax, [SCRATCH]
	CHECK "rep count 0", 0x01020304

	mov dx, 0x5f0           ; nobody's
	mov eax, 0x0
	out dx, eax
	xor eax, eax
	in al, dx
	CHECK "unclaimed in8", 0xff
	xor eax, eax
	in ax, dx
	CHECK "unclaimed in16", 0xffff
	xor eax, eax
	in eax, dx
	CHECK "unclaimed in32", 0xffffffff

	mov rdi, 0xffffffff00000000 + SCRATCH
	mov dx, TESTDEV_PORT
	mov eax, 0x99
	out dx, al
	a32 insb
	movzx eax, byte [SCRATCH]
	CHECK "32-bit address", 0x99
	ret
data:	db 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88
	db 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xf0, 0xff
END_GUEST
