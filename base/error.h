/*
 * Error text for a person.
 *
 * A function that can be refused because of what a user asked takes a `struct error *` as its last
 * argument and returns 0 or a negative errno. The text is written once, by the code that knows the
 * cause: what was wrong, where, and what would be right, as one line without a trailing newline or a
 * "skep:" prefix. Callers pass it on untouched, or put the name of the option in front.
 */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

struct error {
	char text[1024]; /* NUL-terminated; empty when nothing was reported */
};

/* Stores the text (cut to fit) and returns -errnum. `err` may be NULL. */
int error_set(struct error *err, int errnum, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Puts "prefix: " in front of the text that is there. */
void error_prefix(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
