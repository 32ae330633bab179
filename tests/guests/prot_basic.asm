; 32-bit protected mode: string I/O, MMIO, faults with error codes, 32-bit paging with 4 MiB pages.
;> PASS rep outsd
;> PASS rep insb
;> PASS mmio
;> PASS mmio bytes
;> PASS #DE
;> PASS #UD
;> PASS #GP limit
;> PASS int n
;> PASS #BR
;> PASS into
;> PASS paging alias
;> PASS #PF
;> PASS #PF error
;> PASS #PF cr2
;> PASS write protect error
;> PASS paging off
%include "guest32.inc"
%define PD 0x190000
main:	mov dx, TESTDEV_PORT
	mov esi, data
	mov ecx, 3
	rep outsd
	in eax, dx
	CHECK "rep outsd", 0x33333333
	mov edi, SCRATCH
	mov ecx, 4097
	mov dword [SCRATCH + 4096], 0
	rep insb
	mov eax, [SCRATCH + 4096]
	CHECK "rep insb", 0x33
	mov dword [TESTDEV_MEM + 8], 0x12345678
	mov eax, [TESTDEV_MEM + 8]
	CHECK "mmio", 0x12345678
	xor eax, eax
	mov al, [TESTDEV_MEM + 9]
	mov ah, [TESTDEV_MEM + 11]
	CHECK "mmio bytes", 0x1256
	xor ecx, ecx
	xor edx, edx
	TRY div ecx
	CHECK "#DE", 0
	TRY ud2
	CHECK "#UD", 6
	mov eax, 0x1000
	TRY mov fs, eax
	CHECK "#GP limit", 13
	int 0x2f                ; a software interrupt; the EOI it gets does no harm
	mov eax, [IRQ_COUNT + 0x2f * 4]
	CHECK "int n", 1
	mov eax, 5
	TRY bound eax, [bounds]
	CHECK "#BR", 5
	mov al, 0x7f
	add al, 1
	TRY into
	CHECK "into", 4
	; Page directory: 0-4 MiB to itself, 4-8 MiB to 0 too, 8-12 MiB read-only, the MMIO area to itself.
	mov edi, PD
	xor eax, eax
	mov ecx, 1024
	rep stosd
	mov dword [PD], 0x83
	mov dword [PD + 4], 0x83
	mov dword [PD + 8], 0x81
	mov eax, cr4
	or eax, 0x10
	mov cr4, eax
	mov eax, PD
	mov cr3, eax
	mov eax, cr0
	or eax, 0x80010000      ; PG, WP
	mov cr0, eax
	mov dword [SCRATCH], 0xabcd1234
	mov eax, [SCRATCH + 0x400000]
	CHECK "paging alias", 0xabcd1234
	TRY mov eax, [0x12345678]
	CHECK "#PF", 14
	mov eax, [FAULT_ERROR]
	CHECK "#PF error", 0
	mov eax, cr2
	CHECK "#PF cr2", 0x12345678
	TRY mov [SCRATCH + 0x800000], eax
	mov eax, [FAULT_ERROR]
	CHECK "write protect error", 3
	mov eax, cr0
	and eax, 0x7fffffff
	mov cr0, eax
	mov eax, [SCRATCH]
	CHECK "paging off", 0xabcd1234
	ret
data:	dd 0x11111111, 0x22222222, 0x33333333
bounds:	dd 6, 10
END_GUEST
