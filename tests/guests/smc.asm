; Code that is rewritten, in each way that one CPU can: what runs afterwards is what memory holds. (SDM vol. 3, 9.1.3
; and 12.6: the same linear address needs nothing, another one a serializing instruction.)
;> PASS next block
;> PASS loop's own immediate
;> PASS behind a page edge
;> PASS before a page edge
;> PASS opcode over a page edge
;> PASS string copy
;> PASS string fill
;> PASS push
;> PASS xchg
;> PASS cmpxchg16b
;> PASS sse store
;> PASS fxsave
;> PASS ins
;> PASS another mapping
;> PASS remapped
;> PASS mapped back
;> PASS nop to jump
;> PASS call target
;> PASS data beside code
;> PASS new copy each time
%include "guest64.inc"
%define PD1 (page_dirs + 4096)          ; the gigabyte from 0x40000000
%define ALIAS 0x40000000                ; maps the 2 MiB from BUFFER
%define BUFFER 0x400000
%define OTHER 0x600000

main:
	; the instruction at the next jump's target; smc_next.asm has the one right behind the store
	mov dword [.imm2 + 1], 0x2345
	jmp .imm2
	align 16
.imm2:	mov eax, 1
	CHECK "next block", 0x2345
	mov ecx, 1000
	xor edx, edx
.loop:	mov eax, 0
	add edx, eax
	inc dword [.loop + 1]
	dec ecx
	jnz .loop
	mov eax, edx
	CHECK "loop's own immediate", 999 * 1000 / 2

	; B8 imm32 with two bytes before the edge
	mov edi, BUFFER + 0x1000 - 2
	PUT_FN 0x11223344
	call rdi
	mov byte [BUFFER + 0x1000], 0x99
	call rdi
	CHECK "behind a page edge", 0x11229944
	mov byte [BUFFER + 0xfff], 0x77
	call rdi
	CHECK "before a page edge", 0x11229977
	; 66 0F B6 C1 (movzx ax, cl) becomes 66 0F B7 (movzx ax, cx): the opcode's last byte is behind the edge
	mov edi, BUFFER + 0x2000 - 2
	mov dword [rdi], 0xc1b60f66
	mov byte [rdi + 4], 0xc3
	mov ecx, 0x1234
	xor eax, eax
	call rdi
	mov byte [BUFFER + 0x2000], 0xb7
	call rdi
	CHECK "opcode over a page edge", 0x1234

	mov edi, BUFFER
	PUT_FN 1
	mov edi, BUFFER + 0x100
	PUT_FN 2
	call rdi
	mov ecx, 6
	mov esi, BUFFER
	rep movsb
	mov edi, BUFFER + 0x100
	call rdi
	CHECK "string copy", 1

	; a page of RETs over its first and its last function
	mov edi, BUFFER + 0x3000
	PUT_FN 1
	call rdi
	mov edi, BUFFER + 0x3ff0
	PUT_FN 2
	call rdi
	mov edi, BUFFER + 0x3000
	mov ecx, 1024
	mov eax, 0xc3c3c3c3
	rep stosd
	mov eax, 5
	mov edi, BUFFER + 0x3000
	call rdi
	mov edi, BUFFER + 0x3ff0
	call rdi
	CHECK "string fill", 5

	; two quadwords pushed onto code: mov eax, 3; ret
	mov edi, BUFFER + 0x200
	PUT_FN 4
	call rdi
	mov rbx, rsp
	lea rsp, [rdi + 8]
	mov rax, 0x0000c300000003b8
	push rax
	mov rsp, rbx
	call rdi
	CHECK "push", 3
	mov eax, 5
	xchg [rdi + 1], eax
	call rdi
	CHECK "xchg", 5
	mov rax, [rdi]
	mov rdx, [rdi + 8]
	mov rbx, 0x0000c300000006b8
	xor ecx, ecx
	lock cmpxchg16b [rdi]
	call rdi
	CHECK "cmpxchg16b", 6
	mov rax, 0x0000c300000007b8
	movq xmm0, rax
	movdqa [rdi], xmm0
	call rdi
	CHECK "sse store", 7
	; FXSAVE puts XMM0 160 bytes further
	mov rax, 0x0000c300000008b8
	movq xmm0, rax
	fxsave [rdi - 160]
	call rdi
	CHECK "fxsave", 8
	; INS, whose data the machine writes and not the CPU: port 0xe0 of the test device gives back what it was given
	mov dx, TESTDEV_PORT
	mov eax, 9
	out dx, eax
	lea rsi, [rdi + 1]
	xchg rsi, rdi
	insd
	mov rdi, rsi
	call rdi
	CHECK "ins", 9
	call other_mapping
	call jumps
	ret

; The same bytes by two addresses, and an address with other bytes.
other_mapping:
	mov qword [PD1], BUFFER + 0x83
	mov rax, cr3
	mov cr3, rax
	mov edi, BUFFER + 0x400
	PUT_FN 0x31
	call rdi
	mov dword [ALIAS + 0x401], 0x32
	cpuid
	mov edi, BUFFER + 0x400
	call rdi
	CHECK "another mapping", 0x32
	mov edi, OTHER + 0x400
	PUT_FN 0x33
	mov edi, ALIAS + 0x400
	call rdi
	mov qword [PD1], OTHER + 0x83
	invlpg [rdi]
	call rdi
	CHECK "remapped", 0x33
	mov qword [PD1], BUFFER + 0x83
	invlpg [rdi]
	call rdi
	CHECK "mapped back", 0x32
	ret

jumps:
	; two-byte nop becomes jmp +5, over a mov eax, imm32
	mov edi, BUFFER + 0x500
	mov word [rdi], 0x9066
	lea rdi, [rdi + 2]
	PUT_FN 0x41
	sub edi, 2
	call rdi
	mov word [rdi], 0x05eb
	mov eax, 0x42
	call rdi
	CHECK "nop to jump", 0x42
	; a call's target changes
	mov edi, BUFFER + 0x600
	PUT_FN 0x43
	mov edi, BUFFER + 0x610
	PUT_FN 0x44
	mov edi, BUFFER + 0x620
	mov byte [rdi], 0xe9                    ; jmp rel32
	mov dword [rdi + 1], -0x25
	call rdi
	mov dword [rdi + 1], -0x15
	call rdi
	CHECK "call target", 0x44
	; data that changes in the page that code runs from does the code no harm
	mov edi, BUFFER + 0x700
	PUT_FN 0x45
	mov ecx, 2000
	xor edx, edx
.beside:call rdi
	add edx, eax
	inc dword [rdi + 0x40]
	loop .beside
	mov eax, edx
	add eax, [rdi + 0x40]
	CHECK "data beside code", 2000 * 0x45 + 2000
	; a small compiler at work: code written, run once, and written over
	mov ecx, 2000
	xor edx, edx
.fresh:	PUT_FN ecx
	call rdi
	add edx, eax
	loop .fresh
	mov eax, edx
	CHECK "new copy each time", 2000 * 2001 / 2
	ret
END_GUEST
