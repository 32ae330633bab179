; Multiboot 1: the machine state at the entry and what the information structure says about -m 64M, the command
; line and two modules.
;> PASS magic
;> PASS flags
;> PASS interrupts off
;> PASS no paging
;> PASS lower memory
;> PASS upper memory
;> command line: multiboot test
;> PASS modules
;> PASS module 1
;> PASS module 1 size
;> PASS module 2
;> PASS module aligned
;> memory 0 9fc00 1
;> memory 9fc00 60400 2
;> memory 100000 3f00000 1
;> memory e0000000 10000000 2
%include "guest32.inc"
main:	mov eax, [MB_MAGIC]
	CHECK "magic", 0x2badb002
	mov ebp, [MB_INFO]
	mov eax, [ebp]
	and eax, 0x4d
	CHECK "flags", 0x4d
	mov eax, [ENTRY_FLAGS]
	and eax, 0x200
	CHECK "interrupts off", 0
	mov eax, [ENTRY_CR0]
	and eax, 0x80000001
	CHECK "no paging", 1
	mov eax, [ebp + 4]
	CHECK "lower memory", 639
	mov eax, [ebp + 8]
	CHECK "upper memory", 63 * 1024
	PRINT "command line: "
	mov esi, [ebp + 16]
	call puts
	call newline
	mov eax, [ebp + 20]
	CHECK "modules", 2
	mov edi, [ebp + 24]
	mov esi, [edi]
	mov eax, [esi]
	CHECK "module 1", "one!"
	mov eax, [edi + 4]
	sub eax, [edi]
	CHECK "module 1 size", 5
	mov esi, [edi + 16]
	mov eax, [esi]
	CHECK "module 2", "two!"
	mov eax, esi
	and eax, 0xfff
	CHECK "module aligned", 0
	mov esi, [ebp + 48]
	mov edi, [ebp + 44]
	add edi, esi
.entry:	PRINT "memory "
	mov eax, [esi + 4]
	call puthex
	PRINT " "
	mov eax, [esi + 12]
	call puthex
	PRINT " "
	mov eax, [esi + 20]
	call puthex
	call newline
	add esi, [esi]
	add esi, 4
	cmp esi, edi
	jb .entry
	ret
END_GUEST
