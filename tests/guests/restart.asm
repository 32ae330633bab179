; With reboot=restart a reset gives back RAM as at start, even if another CPU was in the midst of an INS then: what
; its instruction still had to store belongs to the machine that is gone. The CMOS memory counts the rounds.
;> PASS rounds with bytes of the last one
%include "smp.inc"
%define TARGET 0x300000                 ; a page for the AP's INS
%define BEAT (SCRATCH)
%define ROUNDS 30
%define CMOS_ROUND 0x50
%define CMOS_DIRTY 0x51
%define CMOS_PATTERN 0x52
; AL = the register BL; and back
cmos_read:
	mov al, bl
	out 0x70, al
	in al, 0x71
	ret
cmos_write:
	xchg al, bl
	out 0x70, al
	xchg al, bl
	out 0x71, al
	ret
ap_main:
	mov edi, TARGET
	mov ecx, 4096
	mov edx, 0x71
	rep insb
	inc qword [BEAT]
	jmp ap_main
main:	mov edi, TARGET
	mov ecx, 1024
	xor eax, eax
	repe scasd
	je .clean
	mov bl, CMOS_DIRTY
	call cmos_read
	inc al
	call cmos_write
.clean:	mov bl, CMOS_ROUND
	call cmos_read
	cmp al, ROUNDS
	je .done
	inc al
	call cmos_write
	mov bl, CMOS_PATTERN
	mov al, 0xa5
	call cmos_write
	call lapic_enable
	mov qword [BEAT], 0
	call start_aps
.beat:	pause
	cmp qword [BEAT], 2
	jb .beat
	mov edx, 0xcf9
	mov al, 6
	out dx, al
.stop:	pause
	jmp .stop
.done:	mov bl, CMOS_DIRTY
	call cmos_read
	movzx eax, al
	CHECK "rounds with bytes of the last one", 0
	ret
END_GUEST
