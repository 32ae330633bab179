#include "base/uuid.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

/* Two hexadecimal digits, or -1. */
static int hex_byte(const char *text)
{
	int value = 0;

	for (unsigned i = 0; i < 2; i++) {
		int c = tolower((unsigned char)text[i]);

		if (!isxdigit(c))
			return -1;
		value = value << 4 | (isdigit(c) ? c - '0' : c - 'a' + 10);
	}
	return value;
}

int uuid_parse(const char *text, uint8_t out[16], struct error *err)
{
	static const uint8_t at[16] = {0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34};
	bool good = strlen(text) == 36 && text[8] == '-' && text[13] == '-' && text[18] == '-' &&
		    text[23] == '-';

	for (unsigned i = 0; i < 16 && good; i++) {
		int byte = hex_byte(text + at[i]);

		good = byte >= 0;
		out[i] = (uint8_t)byte;
	}
	if (good)
		return 0;
	return error_set(err, EINVAL,
			 "\"%.60s\" is no UUID: 32 hexadecimal digits as 8-4-4-4-12 are, such as "
			 "123e4567-e89b-12d3-a456-426614174000",
			 text);
}
