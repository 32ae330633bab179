/*
 * ThreadSanitizer does not see the quick files, nor what translated code does: an order that they make is told to it here.
 * Both are nothing without it.
 */
#ifndef ENGINE_SOFT_TSAN_H
#define ENGINE_SOFT_TSAN_H

#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define TOLD_TO_TSAN
#endif
#endif

#ifdef TOLD_TO_TSAN
#include <sanitizer/tsan_interface.h>
#endif

/* What this thread did so far comes before .. */
static inline void tsan_before(void *order)
{
#ifdef TOLD_TO_TSAN
	__tsan_release(order);
#else
	(void)order;
#endif
}

/* .. what the caller does from here on. */
static inline void tsan_after(void *order)
{
#ifdef TOLD_TO_TSAN
	__tsan_acquire(order);
#else
	(void)order;
#endif
}

#endif
