/*
 * Scan codes of the PC keyboard's sets 1, 2 and 3.
 */
#ifndef CHIPSET_SCANCODE_H
#define CHIPSET_SCANCODE_H

#include <stdbool.h>
#include <stdint.h>

#define SCANCODE_MAX 8 /* bytes of the longest sequence */
#define SCANCODE_BREAK 0xf0

/* A byte of set 2 as the 8042 turns it into set 1; breaks (SCANCODE_BREAK first) are the caller's. */
uint8_t scancode_translate(uint8_t set2);
/* The bytes that a keyboard sends in `set` (1, 2 or 3) for a key, named as in ps2.h. Returns how many, 0
 * if there is no such key. */
unsigned scancode_sequence(unsigned set, uint16_t key, bool down, uint8_t out[SCANCODE_MAX]);

#endif
