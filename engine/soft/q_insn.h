/* The instructions in C, by file; helpers.c has the table. All quick but do_cpuid(). */
#ifndef ENGINE_SOFT_Q_INSN_H
#define ENGINE_SOFT_Q_INSN_H

#include "engine/soft/q_helper.h"

/* q_stack.c */
HELPER(do_push);
HELPER(do_pop);
HELPER(do_pusha);
HELPER(do_popa);
HELPER(do_enter);
HELPER(do_leave);
HELPER(do_pushf);
HELPER(do_popf);
/* RFLAGS as POPF may change them at this CPL; the mode is not updated. True: leave translated code, something waits
 * for IF. */
bool flags_load(struct soft_cpu *cpu, uint64_t value, unsigned size);

/* q_segment.c */
HELPER(do_mov_from_seg);
HELPER(do_mov_to_seg);
HELPER(do_load_far_pointer);
HELPER(do_sgdt_sidt);
HELPER(do_lgdt_lidt);
HELPER(do_sldt_str);
HELPER(do_lldt);
HELPER(do_ltr);
HELPER(do_lar_lsl);
HELPER(do_verr_verw);
HELPER(do_arpl);
HELPER(do_swapgs);
HELPER(do_rdfsgsbase);
HELPER(do_wrfsgsbase);
/* The end of an instruction that loaded a segment register (insn->segreg, or X86_SS for LSS). */
enum soft_next segment_loaded(struct soft_cpu *cpu, const struct insn *insn);

/* q_branch.c */
HELPER(do_jmp);
HELPER(do_call);
HELPER(do_ret);

/* q_far.c */
HELPER(do_far_jmp);
HELPER(do_far_call);
HELPER(do_far_ret);
HELPER(do_iret);

/* q_syscall.c */
HELPER(do_int);
HELPER(do_syscall);
HELPER(do_sysret);
HELPER(do_sysenter);
HELPER(do_sysexit);
HELPER(do_hlt);
HELPER(do_cli);
HELPER(do_sti);
HELPER(do_clac_stac);
HELPER(do_cld_std);
HELPER(do_hypercall);
HELPER(do_ud);

/* q_control.c */
HELPER(do_mov_from_cr);
HELPER(do_mov_to_cr);
HELPER(do_mov_dr);
HELPER(do_clts);
HELPER(do_smsw);
HELPER(do_lmsw);
HELPER(do_invlpg);
HELPER(do_invpcid);
HELPER(do_wbinvd);
HELPER(do_xgetbv);
HELPER(do_xsetbv);
HELPER(do_cache_line);

/* q_msr.c, cpuid.c */
HELPER(do_rdtsc);
HELPER(do_rdpid);
HELPER(do_rdpmc);
HELPER(do_random);
HELPER(do_rdmsr);
HELPER(do_wrmsr);
HELPER(do_cpuid);

/* q_io.c */
HELPER(do_in);
HELPER(do_out);
HELPER(do_ins);
HELPER(do_outs);

/* q_bcd.c */
HELPER(do_bound);

#endif
