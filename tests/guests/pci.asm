; PCI configuration by 0xCF8/0xCFC: the host bridge, the LPC bridge, sizes, what is absent.
;> PASS address register
;> PASS address byte write ignored
;> PASS host bridge id
;> PASS host bridge class
;> PASS lpc id
;> PASS lpc class
;> PASS lpc header
;> PASS byte access
;> PASS word access
;> PASS id read-only
;> PASS command writable
;> PASS interrupt line writable
;> PASS absent slot
;> PASS absent bus
;> PASS absent function
;> PASS disabled
%include "guest64.inc"
; Configuration dword at address EAX -> EAX.
cfg:	mov dx, 0xcf8
	out dx, eax
	mov dx, 0xcfc
	in eax, dx
	ret
%define LPC 0x80000000 | LPC_SLOT << 11
%ifndef LPC_SLOT
%define LPC_SLOT 31
%endif
main:	mov dx, 0xcf8
	mov eax, 0x80001234
	out dx, eax
	xor eax, eax
	in eax, dx
	CHECK "address register", 0x80001234
	mov al, 0x55
	out dx, al
	in eax, dx
	CHECK "address byte write ignored", 0x80001234
	mov eax, 0x80000000
	call cfg
	CHECK "host bridge id", 0x12751275
	mov eax, 0x80000008
	call cfg
	shr eax, 16
	CHECK "host bridge class", 0x0600
	mov eax, LPC
	call cfg
	CHECK "lpc id", 0x70008086
	mov eax, (LPC) + 8
	call cfg
	shr eax, 16
	CHECK "lpc class", 0x0601
	mov eax, (LPC) + 0xc
	call cfg
	shr eax, 16
	and eax, 0x7f
	CHECK "lpc header", 0
	mov eax, LPC
	call cfg
	xor eax, eax
	mov dx, 0xcfd
	in al, dx
	CHECK "byte access", 0x80
	mov dx, 0xcfe
	xor eax, eax
	in ax, dx
	CHECK "word access", 0x7000
	mov dx, 0xcfc
	xor eax, eax
	out dx, eax
	in eax, dx
	CHECK "id read-only", 0x70008086
	mov eax, (LPC) + 4
	call cfg
	mov ax, 0
	out dx, ax
	in ax, dx
	mov ebx, eax
	mov ax, 7
	out dx, ax
	xor eax, eax
	in ax, dx
	and ebx, 7
	xor eax, ebx
	and eax, 7
	CHECK "command writable", 0, 7
	mov eax, 0x8000003c
	call cfg
	mov al, 0x5a
	out dx, al
	xor eax, eax
	in al, dx
	CHECK "interrupt line writable", 0x5a
	mov eax, 0x80000000 | 9 << 11
	call cfg
	CHECK "absent slot", 0xffffffff
	mov eax, 0x80050000
	call cfg
	CHECK "absent bus", 0xffffffff
	mov eax, (LPC) | 5 << 8
	call cfg
	CHECK "absent function", 0xffffffff
	xor eax, eax
	call cfg
	CHECK "disabled", 0xffffffff
	ret
END_GUEST
