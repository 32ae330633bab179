; A store to the instruction that comes right behind it, which an Intel or AMD CPU sees (SDM vol. 3, 12.6).
;> PASS immediate
;> PASS opcode
;> PASS twice in a row
;> PASS wide store
%include "guest64.inc"
main:	mov dword [.imm + 1], 0x1234
.imm:	mov eax, 1
	CHECK "immediate", 0x1234
	mov eax, 5
	mov byte [.op], 0xfe            ; inc al becomes dec al by its second byte
	mov byte [.op + 1], 0xc8
.op:	inc al
	CHECK "opcode", 4
	xor eax, eax
	mov byte [.add1 + 2], 3
.add1:	add eax, byte 1
	mov byte [.add2 + 2], 4
.add2:	add eax, byte 1
	CHECK "twice in a row", 7
	mov rax, 0x90909000004321b8     ; mov eax, 0x4321; nop; nop; nop
	movq xmm0, rax
	movq [.wide], xmm0
.wide:	mov eax, 2
	nop
	nop
	nop
	CHECK "wide store", 0x4321
	ret
END_GUEST
