/* UUIDs as text: 8-4-4-4-12 hexadecimal digits (RFC 4122, section 3). */
#ifndef BASE_UUID_H
#define BASE_UUID_H

#include <stdint.h>

#include "base/error.h"

/* The 16 bytes in the order of the text, in either case. -EINVAL with text. */
int uuid_parse(const char *text, uint8_t out[16], struct error *err);

#endif
