/*
 * Checksums that a guest leaves to its NIC: the internet checksum (RFC 1071) over memory in parts.
 */
#include <string.h>

#include "backend/net/internal.h"

/* The sum of the 16-bit words, the first byte of each the lower one; a last odd byte counts as such. Wider words add up to
 * the same, since 2^16 is 1 modulo 2^16 - 1. */
static uint64_t sum_bytes(const uint8_t *bytes, size_t n)
{
	uint64_t sum = 0, rest = 0;
	uint32_t word;

	for (; n >= 4; bytes += 4, n -= 4) {
		memcpy(&word, bytes, 4);
		sum += word;
	}
	memcpy(&rest, bytes, n);
	return sum + rest;
}

static uint16_t fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

uint16_t checksum_sum(const struct iovec *iov, unsigned iovs, size_t start)
{
	uint64_t sum = 0;
	bool odd = false;

	for (unsigned i = 0; i < iovs; i++) {
		size_t n = iov[i].iov_len;
		uint16_t part;

		if (start >= n) {
			start -= n;
			continue;
		}
		part = fold(sum_bytes((const uint8_t *)iov[i].iov_base + start, n - start));
		/* Behind an odd number of bytes the halves change places. */
		sum += odd ? (uint16_t)(part << 8 | part >> 8) : part;
		odd ^= (n - start) & 1;
		start = 0;
	}
	return fold(sum);
}

unsigned checksum_place(const struct iovec *iov, unsigned iovs, size_t at, void *bytes,
			struct iovec *out)
{
	size_t from = at, to = at + 2, here = 0;
	unsigned n = 0;
	bool placed = false;

	for (unsigned i = 0; i < iovs; i++) {
		uint8_t *base = iov[i].iov_base;
		size_t end = here + iov[i].iov_len;

		if (here < from)
			out[n++] = (struct iovec){base, (end < from ? end : from) - here};
		if (!placed && end > from) {
			out[n++] = (struct iovec){bytes, 2};
			placed = true;
		}
		if (end > to) {
			size_t skip = here < to ? to - here : 0;

			out[n++] = (struct iovec){base + skip, end - here - skip};
		}
		here = end;
	}
	return here >= to ? n : 0;
}
