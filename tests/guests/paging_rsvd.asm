; Reserved bits in paging structures, and #SS of an address that is not canonical.
;> PASS reserved bit
;> PASS reserved bit write
;> PASS reserved bit of a large page
;> PASS large bit at the top
;> PASS user reserved
;> PASS nx bit with nx off
;> PASS not canonical stack
%define ONLY_RESERVED
%include "paging.asm"
