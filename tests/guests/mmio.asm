; MMIO in every size and by many instructions, on the test device's memory at 0xFF000000, and an address
; that nobody claims.
;> PASS mov 8
;> PASS mov 16
;> PASS mov 32
;> PASS mov 64
;> PASS mov imm
;> PASS movzx
;> PASS movsx
;> PASS movsxd
;> PASS add from
;> PASS or to
;> PASS and to
;> PASS cmp zf
;> PASS test sf
;> PASS xchg
;> PASS xchg stored
;> PASS lock xadd
;> PASS lock xadd stored
;> PASS inc
;> PASS rep stosd first
;> PASS rep stosd last
;> PASS rep movsq from
;> PASS rep movsb to
;> PASS std movsw
;> PASS push from
;> PASS sse store load
;> PASS bt
;> PASS unclaimed 8
;> PASS unclaimed 32
;> PASS unclaimed 64
%include "guest64.inc"
main:
	mov r8d, TESTDEV_MEM
	mov rax, 0x1122334455667788
	mov [r8], rax
	mov al, 0x5a
	mov [r8], al
	xor eax, eax
	mov al, [r8]
	CHECK "mov 8", 0x5a
	mov ax, 0xbeef
	mov [r8 + 2], ax
	xor eax, eax
	mov ax, [r8 + 2]
	CHECK "mov 16", 0xbeef
	mov eax, 0xcafebabe
	mov [r8 + 4], eax
	mov rax, -1
	mov eax, [r8 + 4]
	CHECK "mov 32", 0xcafebabe
	mov rax, 0x0123456789abcdef
	mov [r8 + 8], rax
	xor eax, eax
	mov rax, [r8 + 8]
	mov rcx, 0x0123456789abcdef
	CHECK "mov 64", rcx
	mov dword [r8], 0x80f1
	mov eax, [r8]
	CHECK "mov imm", 0x80f1
	movzx eax, word [r8]
	CHECK "movzx", 0x80f1
	movsx rax, byte [r8]
	CHECK "movsx", -15
	mov dword [r8], 0x80000000
	movsxd rax, dword [r8]
	CHECK "movsxd", -0x80000000
	mov dword [r8], 40
	mov eax, 2
	add eax, [r8]
	CHECK "add from", 42
	or dword [r8], 0x100
	mov eax, [r8]
	CHECK "or to", 0x128
	and byte [r8], 0x20
	mov eax, [r8]
	CHECK "and to", 0x120
	xor eax, eax
	cmp dword [r8], 0x120
	setz al
	CHECK "cmp zf", 1
	mov byte [r8], 0x80
	xor eax, eax
	test byte [r8], 0xff
	sets al
	CHECK "test sf", 1
	mov dword [r8], 7
	mov eax, 9
	xchg eax, [r8]
	CHECK "xchg", 7
	mov eax, [r8]
	CHECK "xchg stored", 9
	mov eax, 3
	lock xadd [r8], eax
	CHECK "lock xadd", 9
	mov eax, [r8]
	CHECK "lock xadd stored", 12
	inc dword [r8]
	mov eax, [r8]
	CHECK "inc", 13

	cld
	mov eax, 0x6b6b6b6b
	lea edi, [r8 + 0x10]
	mov ecx, 6
	rep stosd
	mov eax, [r8 + 0x10]
	CHECK "rep stosd first", 0x6b6b6b6b
	mov eax, [r8 + 0x24]
	CHECK "rep stosd last", 0x6b6b6b6b
	mov dword [r8 + 0x14], 0x12345678
	lea esi, [r8 + 0x10]
	mov edi, SCRATCH
	mov ecx, 3
	rep movsq
	mov rax, [SCRATCH]
	mov rcx, 0x123456786b6b6b6b
	CHECK "rep movsq from", rcx
	mov esi, data
	lea edi, [r8 + 0x21]
	mov ecx, 5
	rep movsb
	mov rax, [r8 + 0x20]
	shr rax, 8
	mov rdx, 0xffffffffff
	and rax, rdx
	mov rcx, 0x0504030201
	CHECK "rep movsb to", rcx
	std
	lea esi, [r8 + 0x24]
	mov edi, SCRATCH + 2
	mov ecx, 2
	rep movsw
	cld
	mov eax, [SCRATCH]
	CHECK "std movsw", 0x05040302
	mov dword [r8], 0x13572468
	mov dword [r8 + 4], 0
	push qword [r8]
	pop rax
	CHECK "push from", 0x13572468
	movdqu xmm0, [data]
	movdqu [r8 + 0x40], xmm0
	movdqu xmm1, [r8 + 0x40]
	movdqu [SCRATCH], xmm1
	mov rax, [SCRATCH + 8]
	CHECK "sse store load", qword [data + 8]
	mov dword [r8], 0x10
	xor eax, eax
	bt dword [r8], 4
	setc al
	CHECK "bt", 1

	mov r8d, 0xfd000000     ; nobody's
	mov qword [r8], 0
	xor eax, eax
	mov al, [r8]
	CHECK "unclaimed 8", 0xff
	mov eax, [r8]
	CHECK "unclaimed 32", 0xffffffff
	mov rax, [r8]
	CHECK "unclaimed 64", -1
	ret
	align 16
data:	db 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0
END_GUEST
