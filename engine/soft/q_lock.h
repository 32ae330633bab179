/*
 * A lock that quick code may take: no libc, general registers only. Not recursive, not fair; waiters sleep in
 * the kernel after a short spin.
 */
#ifndef ENGINE_SOFT_Q_LOCK_H
#define ENGINE_SOFT_Q_LOCK_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

struct soft_lock {
	_Atomic uint32_t word; /* 0 free, 1 held, 2 held and somebody waits */
};

static inline long soft_futex(_Atomic uint32_t *word, int op, uint32_t value)
{
	long ret;
	register long timeout __asm__("r10") = 0;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"((long)SYS_futex), "D"(word), "S"((long)(op | FUTEX_PRIVATE_FLAG)),
			   "d"((long)value), "r"(timeout)
			 : "rcx", "r11", "memory");
	return ret;
}

static inline void soft_lock_init(struct soft_lock *lock)
{
	atomic_init(&lock->word, 0);
}

static inline bool soft_lock_try(struct soft_lock *lock)
{
	uint32_t free = 0;

	return atomic_compare_exchange_strong(&lock->word, &free, 1);
}

static inline void soft_lock_acquire(struct soft_lock *lock)
{
	uint32_t seen = 0;

	for (unsigned i = 0; i < 100; i++) {
		seen = 0;
		if (atomic_compare_exchange_strong(&lock->word, &seen, 1))
			return;
		__builtin_ia32_pause();
	}
	while (atomic_exchange(&lock->word, 2) != 0)
		soft_futex(&lock->word, FUTEX_WAIT, 2);
}

static inline void soft_lock_release(struct soft_lock *lock)
{
	if (atomic_exchange(&lock->word, 0) == 2)
		soft_futex(&lock->word, FUTEX_WAKE, 1);
}

#endif
