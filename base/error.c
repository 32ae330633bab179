#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

int error_set(struct error *err, int errnum, const char *fmt, ...)
{
	struct error made; /* the arguments may be parts of err->text */
	va_list ap;

	if (err) {
		va_start(ap, fmt);
		vsnprintf(made.text, sizeof(made.text), fmt, ap);
		va_end(ap);
		memcpy(err->text, made.text, strlen(made.text) + 1);
	}
	return -errnum;
}

void error_prefix(struct error *err, const char *fmt, ...)
{
	struct error made;
	va_list ap;
	size_t len;

	if (!err)
		return;
	va_start(ap, fmt);
	vsnprintf(made.text, sizeof(made.text), fmt, ap);
	va_end(ap);
	len = strlen(made.text);
	for (const char *part = ": "; *part && len + 1 < sizeof(made.text); part++)
		made.text[len++] = *part;
	for (const char *part = err->text; *part && len + 1 < sizeof(made.text); part++)
		made.text[len++] = *part;
	made.text[len] = '\0';
	memcpy(err->text, made.text, len + 1);
}
