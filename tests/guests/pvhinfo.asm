; What PVH hands over: hvm_start_info version 1 with command line, one module (two files joined, the second at
; a multiple of 4), the memory map of -m 64M, and the RSDP. The machine state of the PVH ABI was checked by
; getting here.
;> PASS magic
;> PASS version
;> command line: one two=3 "four five"
;> PASS modules
;> PASS module size
;> PASS module start
;> PASS module padding
;> PASS module second
;> PASS memmap entries
;> ram 0 9fc00
;> reserved 9fc00 60400
;> ram 100000 3f00000
;> reserved e0000000 10000000
;> PASS rsdp signature
;> PASS rsdp checksum
;> PASS rsdp extended checksum
%include "guest64.inc"
main:	mov r8, [START_INFO]
	mov eax, [r8]
	CHECK "magic", 0x336ec578
	mov eax, [r8 + 4]
	CHECK "version", 1
	PRINT "command line: "
	mov rsi, [r8 + 24]
	call puts
	call newline
	mov eax, [r8 + 12]
	CHECK "modules", 1
	mov r9, [r8 + 16]
	mov rax, [r9 + 8]
	CHECK "module size", 8 + 6
	mov r9, [r9]
	mov eax, [r9]
	CHECK "module start", "one!"
	mov eax, [r9 + 4]
	CHECK "module padding", 0x0000000a
	mov eax, [r9 + 8]
	CHECK "module second", "two!"
	mov ebx, [r8 + 48]
	mov eax, ebx
	CHECK "memmap entries", 4
	mov r9, [r8 + 40]
.entry:	mov eax, [r9 + 16]
	cmp eax, 1
	jne .reserved
	PRINT "ram "
	jmp .range
.reserved:
	PRINT "reserved "
.range:	mov rax, [r9]
	call puthex
	PRINT " "
	mov rax, [r9 + 8]
	call puthex
	call newline
	add r9, 24
	dec ebx
	jnz .entry
	mov r9, [r8 + 32]
	mov rax, [r9]
	mov rcx, "RSD PTR "
	CHECK "rsdp signature", rcx
	mov ecx, 20
	call sum
	CHECK "rsdp checksum", 0
	mov ecx, 36
	call sum
	CHECK "rsdp extended checksum", 0
	ret
sum:	xor eax, eax
.next:	add al, [r9 + rcx - 1]
	loop .next
	ret
END_GUEST
