; The 8254: latches, read-back, modes 0, 2 and 3 on channel 2 by port 0x61, channel 0's rate against the PM
; timer, its interrupt through the PIC and ExtINT, and the refresh toggle of channel 1.
;> PASS status after mode
;> PASS null count clears
;> PASS ch2 stopped without gate
;> PASS ch2 counts with gate
;> PASS latch holds
;> PASS mode 0 out low
;> PASS mode 0 out high
;> PASS mode 3 out toggles
;> PASS mode 3 rate
;> PASS lsb only
;> PASS bcd counts
;> PASS refresh toggles
;> PASS ch0 rate
;> PASS irq0 10 ticks
;> PASS irq0 period
;> PASS one shot once
%include "guest64.inc"

; Latches channel AL and reads its count into EAX.
pit_count:
	shl al, 6
	out 0x43, al
	shr al, 6
	add al, 0x40
	movzx edx, al
	in al, dx
	movzx ecx, al
	in al, dx
	movzx eax, al
	shl eax, 8
	or eax, ecx
	ret
; Read-back of channel 2's status: EAX.
status2:
	mov al, 0xe8
	out 0x43, al
	xor eax, eax
	in al, 0x42
	ret
gate2:	in al, 0x61             ; CL = bits 0 and 1
	and al, 0xfc
	or al, cl
	out 0x61, al
	ret
; The count of channel 0 in EAX and the PM timer in EBX, read at one time: again if the host was away in between.
pit_and_pm:
	mov r9d, 1000
.again:	call pm_now
	mov ebx, eax
	xor eax, eax
	call pit_count
	mov r10d, eax
	call pm_now
	sub eax, ebx
	and eax, 0xffffff
	cmp eax, 1500
	jb .near
	dec r9d
	jnz .again
.near:	mov eax, r10d
	ret
pm_now:	mov dx, PM_TMR
	in eax, dx
	and eax, 0xffffff
	ret

main:	xor ecx, ecx
	call gate2
	mov al, 0xb4            ; channel 2, 16 bits, mode 2
	out 0x43, al
	call status2
	CHECK "status after mode", 0xf4
	mov al, 0
	out 0x42, al
	out 0x42, al            ; 65536: 55 ms
	mov eax, 1000000
	call delay_ns
	call status2
	and eax, 0x7f
	CHECK "null count clears", 0x34
	mov al, 2
	call pit_count
	mov ebx, eax
	mov eax, 1000000
	call delay_ns
	mov al, 2
	call pit_count
	sub eax, ebx
	CHECK "ch2 stopped without gate", 0
	mov ecx, 1
	call gate2
	mov eax, 1000000        ; 1193 ticks
	call delay_ns
	mov al, 2
	call pit_count
	CHECK "ch2 counts with gate", 1, 0x10000 - 1190
	mov al, 0x80
	out 0x43, al
	mov eax, 1000000
	call delay_ns
	mov al, 0x80            ; a second latch before the read is ignored
	out 0x43, al
	xor ebx, ebx
	in al, 0x42
	mov bl, al
	in al, 0x42
	mov bh, al
	mov al, 2
	call pit_count          ; mode 2 counts down; the latched value is at least 1 ms older
	xchg eax, ebx
	sub eax, ebx
	and eax, 0xffff
	CHECK "latch holds", 1190, 0xffff

	mov al, 0xb0            ; mode 0: low until the count has run out
	out 0x43, al
	mov al, 0xff
	out 0x42, al
	out 0x42, al            ; 55 ms
	in al, 0x61
	and eax, 0x20
	CHECK "mode 0 out low", 0
	mov al, 0xb0
	out 0x43, al
	mov al, 0x10
	out 0x42, al
	mov al, 0
	out 0x42, al            ; 13 us
	mov eax, 2000000
	call delay_ns
	in al, 0x61
	and eax, 0x20
	CHECK "mode 0 out high", 0x20

	mov al, 0xb6            ; mode 3, 2386 = 2 ms
	out 0x43, al
	mov al, 2386 & 255
	out 0x42, al
	mov al, 2386 >> 8
	out 0x42, al
	xor ebx, ebx            ; ten changes of OUT, one a ms unless the host was away
	call pm_now
	mov r8d, eax
	in al, 0x61
	mov cl, al
.toggle:
	in al, 0x61
	xor cl, al
	and cl, 0x20
	jz .same
	inc ebx
.same:	mov cl, al
	call pm_now
	sub eax, r8d
	and eax, 0xffffff
	cmp ebx, 10
	je .toggled
	cmp eax, 3579545
	jb .toggle
.toggled:
	xchg eax, ebx
	CHECK "mode 3 out toggles", 10
	mov eax, ebx
	CHECK "mode 3 rate", 31000, 3579545 ; nine of the ten are whole: 32216

	mov al, 0x94            ; channel 2, low byte only, mode 2: wraps at 100
	out 0x43, al
	mov al, 100
	out 0x42, al
	mov eax, 1000000
	call delay_ns
	xor eax, eax
	in al, 0x42
	CHECK "lsb only", 1, 100
	mov al, 0xb5            ; BCD, mode 2, 9999
	out 0x43, al
	mov al, 0x99
	out 0x42, al
	out 0x42, al
	mov eax, 300000
	call delay_ns
	mov al, 2
	call pit_count
	mov ecx, eax
	and eax, 0x0f
	shr ecx, 4
	and ecx, 0x0f
	cmp eax, ecx
	cmovb eax, ecx
	CHECK "bcd counts", 0, 9

	mov ecx, 100000
	in al, 0x61
	mov bl, al
.refresh:
	in al, 0x61
	xor al, bl
	test al, 0x10
	loopz .refresh
	and eax, 0x10
	CHECK "refresh toggles", 0x10

	; Channel 0 in mode 2 from 65536: reads 30 ms apart, or more, by the PM timer, of which it has a third.
	mov al, 0x34
	out 0x43, al
	xor eax, eax
	out 0x40, al
	out 0x40, al
	mov eax, 1000000
	call delay_ns
	call pit_and_pm
	mov r8d, ebx
	mov r11d, eax
	mov eax, 30000000
	call delay_ns
	call pit_and_pm
	sub r11d, eax
	mov eax, ebx
	sub eax, r8d
	and eax, 0xffffff
	mov ecx, 3
	xor edx, edx
	div ecx
	sub eax, r11d
	add eax, 600
	movzx eax, ax           ; the count may have wrapped
	CHECK "ch0 rate", 0, 1200

	; 10 interrupts of 100 Hz.
	call lapic_enable
	mov eax, 0x350
	mov edx, 0x700          ; LINT0: ExtINT
	call lapic_write
	mov al, 0x34
	out 0x43, al
	mov al, 11932 & 255
	out 0x40, al
	mov al, 11932 >> 8
	out 0x40, al
	mov al, 0xfe
	out 0x21, al
	WAIT_IRQ 0x20, 1
	call pm_now
	mov r8d, eax
	WAIT_IRQ 0x20, 11
	mov rax, [IRQ_COUNT + 0x20 * 8]
	CHECK "irq0 10 ticks", 11, 20
	call pm_now
	sub eax, r8d
	and eax, 0xffffff
	; 357954: half of that if the first was late and the others catch up, more if the host was away.
	CHECK "irq0 period", 170000, 7000000
	cli
	mov al, 0xff
	out 0x21, al
	mov al, 0x30            ; mode 0: one interrupt
	out 0x43, al
	mov al, 0
	out 0x40, al
	mov al, 4
	out 0x40, al
	CLEAR_IRQ 0x20
	mov al, 0xfe
	out 0x21, al
	WAIT_IRQ 0x20, 1
	mov eax, 10000000
	call delay_ns
	mov rax, [IRQ_COUNT + 0x20 * 8]
	CHECK "one shot once", 1, 2 ; a tick of the old programming may have been pending
	cli
	ret
END_GUEST
