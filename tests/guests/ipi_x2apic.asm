; ipi.asm with -x: the same by x2APIC registers.
;> PASS x2apic mode
;> PASS aps up
;> PASS fixed to each
;> PASS self
;> PASS others
;> PASS all
;> PASS logical pair
;> PASS nmi to one
;> PASS nmi to others
;> PASS priority holds back
;> PASS priority lets in
;> PASS ap to bsp
%define EXPECT_X2APIC
%include "ipi.asm"
