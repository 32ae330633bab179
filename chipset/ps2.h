/*
 * The keyboard controller and the keyboard.
 */
#ifndef CHIPSET_PS2_H
#define CHIPSET_PS2_H

#include <stdbool.h>

#include "vmm/device.h"

#define PS2_DATA_PORT 0x60
#define PS2_COMMAND_PORT 0x64
#define PS2_KEYBOARD_IRQ 1
#define PS2_AUX_IRQ 12

extern const struct device_class ps2_class;

/* Keys are named by the make code of scan code set 1, as the PC/XT and RFB's extended key event do:
 * 0x01 (Esc) to 0x58 (F12); 0xe0 in the high byte for those with that prefix (0xe048: cursor up). */
#define PS2_KEY_PRINT_SCREEN 0xe037
#define PS2_KEY_PAUSE 0xe046

/* A key went down (or repeats: the keyboard makes no repeats of its own) or up. -EINVAL: no such key.
 * A guest that does not fetch what was typed loses the rest of it, as with a real keyboard. Any thread;
 * takes the device's lock. */
int ps2_key(struct device *ps2, uint16_t key, bool down);

#endif
