/*
 * The 8042 keyboard controller of a PC and a 101/102-key keyboard (IBM Personal System/2 Hardware
 * Interface Technical Reference, "Keyboard and Auxiliary Device Controller" and "Keyboards").
 *
 * Controller: its memory and command byte, self and interface tests, both ports' enables, translation,
 * output port, loop-back commands, pulse of the output port; 0xFE, like every pulse of bit 0, resets the
 * machine. Keyboard: reset, identify, echo, LEDs, scan code sets 1 to 3, typematic rate, enable, disable,
 * defaults, resend. It starts as a PC's firmware leaves it: translation and IRQ 1 on, set 2, scanning.
 *
 * Left out: the mouse. The auxiliary port passes its tests, and what is sent through it times out, as on a
 * PC where none is plugged in. Typematic repeat (who calls ps2_key() repeats), the key types of set 3 (all
 * keys make and break) and masking by A20 (the bit is kept). Bytes arrive at once, not at the serial
 * line's pace.
 */
#include "chipset/ps2.h"

#include <errno.h>

#include "bus/io.h"
#include "bus/irq.h"
#include "chipset/scancode.h"
#include "vmm/vm.h"

#define STATUS_FULL 0x01
#define STATUS_SYSTEM 0x04
#define STATUS_COMMAND 0x08
#define STATUS_UNLOCKED 0x10
#define STATUS_AUX 0x20
#define STATUS_TIMEOUT 0x40

#define BYTE_KBD_IRQ 0x01
#define BYTE_AUX_IRQ 0x02
#define BYTE_SYSTEM 0x04
#define BYTE_KBD_OFF 0x10
#define BYTE_AUX_OFF 0x20
#define BYTE_TRANSLATE 0x40

#define OUT_PORT_RESET 0x01 /* low resets */
#define OUT_PORT_A20 0x02
#define OUT_PORT_KBD_FULL 0x10
#define OUT_PORT_AUX_FULL 0x20
#define OUT_PORT_START 0xc3

#define KBD_ACK 0xfa
#define KBD_RESEND 0xfe
#define KBD_TYPEMATIC 0x2b /* 10.9 characters a second after 500 ms */

#define RING 16

/* Bytes under way, oldest first: what a device sends in the low byte; STATUS_AUX and STATUS_TIMEOUT as they
 * will show in the status register in the high one. */
struct ps2_ring {
	uint16_t data[RING];
	uint8_t head, count;
};

struct ps2_state {
	uint8_t ram[32];   /* [0] is the command byte */
	uint8_t command;   /* a controller command that waits for its data; 0: none */
	bool command_last; /* the last write was to the command port */
	uint8_t out_port;
	/* the output buffer */
	bool full;
	uint8_t data, flags;
	bool key_break;		/* translation: SCANCODE_BREAK has passed */
	struct ps2_ring reply;	/* the controller's */
	struct ps2_ring answer; /* the keyboard's, to commands */
	struct ps2_ring typed;
	/* the keyboard */
	uint8_t kbd_command; /* that waits for its argument; 0: none */
	uint8_t set, leds, typematic, last_sent;
	bool scanning;
};

struct ps2 {
	struct device device;
	struct ps2_state state;
	struct irq_source kbd_irq, aux_irq;
	struct io_range data, command;
};

static bool ring_ok(const struct ps2_ring *ring)
{
	return ring->head < RING && ring->count <= RING;
}

static bool ps2_check(const void *state)
{
	const struct ps2_state *s = state;

	return ring_ok(&s->reply) && ring_ok(&s->answer) && ring_ok(&s->typed) && s->set >= 1 &&
	       s->set <= 3 && !(s->flags & ~(STATUS_AUX | STATUS_TIMEOUT)) && s->leds <= 7 &&
	       (s->out_port & OUT_PORT_RESET);
}

#define RING_FIELDS(ring)                                                             \
	STATE_ARRAY(struct ps2_state, ring.data), STATE(struct ps2_state, ring.head), \
		STATE(struct ps2_state, ring.count)

static const struct state_field ps2_fields[] = {
	STATE_ARRAY(struct ps2_state, ram),
	STATE(struct ps2_state, command),
	STATE(struct ps2_state, command_last),
	STATE_AT(struct ps2_state, out_port, OUT_PORT_START),
	STATE(struct ps2_state, full),
	STATE(struct ps2_state, data),
	STATE(struct ps2_state, flags),
	STATE(struct ps2_state, key_break),
	RING_FIELDS(reply),
	RING_FIELDS(answer),
	RING_FIELDS(typed),
	STATE(struct ps2_state, kbd_command),
	STATE_AT(struct ps2_state, set, 2),
	STATE(struct ps2_state, leds),
	STATE_AT(struct ps2_state, typematic, KBD_TYPEMATIC),
	STATE(struct ps2_state, last_sent),
	STATE_AT(struct ps2_state, scanning, true),
};
static const struct state_table ps2_table =
	STATE_TABLE("ps2", struct ps2_state, ps2_fields, 1, ps2_check);

static bool ring_put(struct ps2_ring *ring, uint16_t value)
{
	if (ring->count == RING)
		return false;
	ring->data[(ring->head + ring->count++) % RING] = value;
	return true;
}

static bool ring_get(struct ps2_ring *ring, uint16_t *value)
{
	if (!ring->count)
		return false;
	*value = ring->data[ring->head];
	ring->head = (ring->head + 1) % RING;
	ring->count--;
	return true;
}

static void ring_clear(struct ps2_ring *ring)
{
	ring->count = 0;
}

/* The controller's translation; false: the byte is a break prefix, which gives nothing yet. */
static bool ps2_translate(struct ps2_state *s, uint16_t *value)
{
	if (!(s->ram[0] & BYTE_TRANSLATE))
		return true;
	if (*value == SCANCODE_BREAK) {
		s->key_break = true;
		return false;
	}
	*value = scancode_translate((uint8_t)*value) | (s->key_break ? 0x80 : 0);
	s->key_break = false;
	return true;
}

/* The next byte for the output buffer: the controller's own first, then the keyboard's, unless its clock
 * line is held. */
static bool ps2_next(struct ps2_state *s, uint16_t *value)
{
	if (ring_get(&s->reply, value))
		return true;
	if (s->ram[0] & BYTE_KBD_OFF)
		return false;
	while (ring_get(&s->answer, value) || ring_get(&s->typed, value)) {
		s->last_sent = (uint8_t)*value;
		if (ps2_translate(s, value))
			return true;
	}
	return false;
}

static void ps2_update(struct ps2 *ps2)
{
	struct ps2_state *s = &ps2->state;
	uint16_t value;
	bool aux;

	if (!s->full && ps2_next(s, &value)) {
		s->full = true;
		s->data = (uint8_t)value;
		s->flags = value >> 8;
	}
	aux = s->flags & STATUS_AUX;
	irq_source_set(&ps2->kbd_irq, s->full && !aux && (s->ram[0] & BYTE_KBD_IRQ));
	irq_source_set(&ps2->aux_irq, s->full && aux && (s->ram[0] & BYTE_AUX_IRQ));
}

/* The keyboard's side */

static void kbd_defaults(struct ps2_state *s)
{
	s->set = 2;
	s->typematic = KBD_TYPEMATIC;
	s->scanning = true;
	ring_clear(&s->typed);
}

static void kbd_argument(struct ps2_state *s, uint8_t value)
{
	uint8_t command = s->kbd_command;

	s->kbd_command = 0;
	switch (command) {
	case 0xed:
		s->leds = value & 7;
		break;
	case 0xf0:
		if (value > 3) {
			ring_put(&s->answer, KBD_RESEND);
			return;
		}
		ring_put(&s->answer, KBD_ACK);
		if (value)
			s->set = value;
		else
			ring_put(&s->answer, s->set);
		return;
	case 0xf3:
		s->typematic = value & 0x7f;
		break;
	default: /* 0xfb to 0xfd: a key whose type is set; more may follow */
		s->kbd_command = command;
		break;
	}
	ring_put(&s->answer, KBD_ACK);
}

static void kbd_command(struct ps2_state *s, uint8_t value)
{
	switch (value) {
	case 0xee: /* echo */
		ring_put(&s->answer, 0xee);
		return;
	case 0xfe: /* resend */
		ring_put(&s->answer, s->last_sent);
		return;
	case 0xed:	    /* LEDs */
	case 0xf0:	    /* scan code set */
	case 0xf3:	    /* typematic rate and delay */
	case 0xfb ... 0xfd: /* the type of one key */
		s->kbd_command = value;
		break;
	case 0xf2:
		ring_put(&s->answer, KBD_ACK);
		ring_put(&s->answer, 0xab);
		ring_put(&s->answer, 0x83);
		return;
	case 0xf4:
		s->scanning = true;
		ring_clear(&s->typed);
		break;
	case 0xf5:
		kbd_defaults(s);
		s->scanning = false;
		break;
	case 0xf6:
		kbd_defaults(s);
		break;
	case 0xf7 ... 0xfa: /* the type of all keys */
		break;
	case 0xff:
		ring_clear(&s->answer);
		kbd_defaults(s);
		s->leds = 0;
		ring_put(&s->answer, KBD_ACK);
		ring_put(&s->answer, 0xaa);
		return;
	default:
		ring_put(&s->answer, KBD_RESEND);
		return;
	}
	ring_put(&s->answer, KBD_ACK);
}

/* A command byte ends the wait for an argument; arguments are below it. */
static void kbd_receive(struct ps2_state *s, uint8_t value)
{
	if (s->kbd_command && value < 0xed) {
		kbd_argument(s, value);
	} else {
		s->kbd_command = 0;
		kbd_command(s, value);
	}
}

int ps2_key(struct device *device, uint16_t key, bool down)
{
	struct ps2 *ps2 = (struct ps2 *)device;
	struct ps2_state *s = &ps2->state;
	uint8_t bytes[SCANCODE_MAX];
	unsigned n;

	if (!scancode_sequence(2, key, true, bytes))
		return -EINVAL;
	pthread_mutex_lock(&device->lock);
	n = scancode_sequence(s->set, key, down, bytes);
	if (s->scanning && n) {
		/* A sequence is never cut: instead of one that does not fit comes the overrun code, for
		 * which the last place is kept. */
		if (s->typed.count + n < RING) {
			for (unsigned i = 0; i < n; i++)
				ring_put(&s->typed, bytes[i]);
		} else {
			ring_put(&s->typed, s->set == 1 ? 0xff : 0);
		}
		ps2_update(ps2);
	}
	pthread_mutex_unlock(&device->lock);
	return 0;
}

/* The controller's side */

static void write_out_port(struct ps2 *ps2, uint8_t value)
{
	ps2->state.out_port = value | OUT_PORT_RESET;
	if (!(value & OUT_PORT_RESET))
		vm_request(ps2->device.vm, VM_END_RESET);
}

static uint8_t read_out_port(const struct ps2_state *s)
{
	uint8_t value = s->out_port & ~(OUT_PORT_KBD_FULL | OUT_PORT_AUX_FULL);

	if (s->full)
		value |= s->flags & STATUS_AUX ? OUT_PORT_AUX_FULL : OUT_PORT_KBD_FULL;
	return value;
}

static void controller_command(struct ps2 *ps2, uint8_t value)
{
	struct ps2_state *s = &ps2->state;

	s->command = 0;
	switch (value) {
	case 0x20 ... 0x3f:
		ring_put(&s->reply, s->ram[value & 0x1f]);
		break;
	case 0x60 ... 0x7f: /* write memory */
	case 0xd1:	    /* write the output port */
	case 0xd2:	    /* as if the keyboard had sent it */
	case 0xd3:	    /* as if the auxiliary device had */
	case 0xd4:	    /* send to the auxiliary device */
		s->command = value;
		break;
	case 0xa4: /* is there a password? */
		ring_put(&s->reply, 0xf1);
		break;
	case 0xa7:
		s->ram[0] |= BYTE_AUX_OFF;
		break;
	case 0xa8:
		s->ram[0] &= ~BYTE_AUX_OFF;
		break;
	case 0xa9: /* test of the auxiliary interface */
	case 0xab: /* of the keyboard's */
	case 0xe0: /* test inputs: both clocks low */
		ring_put(&s->reply, 0x00);
		break;
	case 0xaa: /* self test */
		s->ram[0] |= BYTE_SYSTEM;
		ring_put(&s->reply, 0x55);
		break;
	case 0xad:
		s->ram[0] |= BYTE_KBD_OFF;
		break;
	case 0xae:
		s->ram[0] &= ~BYTE_KBD_OFF;
		break;
	case 0xc0: /* input port: keyboard not inhibited */
		ring_put(&s->reply, 0x80);
		break;
	case 0xd0:
		ring_put(&s->reply, read_out_port(s));
		break;
	case 0xdd:
		s->out_port &= ~OUT_PORT_A20;
		break;
	case 0xdf:
		s->out_port |= OUT_PORT_A20;
		break;
	case 0xf0 ... 0xff: /* pulses the output port's bits that are 0 here */
		if (!(value & OUT_PORT_RESET))
			vm_request(ps2->device.vm, VM_END_RESET);
		break;
	default:
		break;
	}
}

static void controller_data(struct ps2 *ps2, uint8_t value)
{
	struct ps2_state *s = &ps2->state;
	uint8_t command = s->command;

	s->command = 0;
	switch (command) {
	case 0x60 ... 0x7f:
		s->ram[command & 0x1f] = value;
		break;
	case 0xd1:
		write_out_port(ps2, value);
		break;
	case 0xd2:
		ring_put(&s->reply, value);
		break;
	case 0xd3:
		ring_put(&s->reply, STATUS_AUX << 8 | value);
		break;
	case 0xd4:
		/* Nobody is there to clock the byte in. */
		ring_put(&s->reply, (STATUS_AUX | STATUS_TIMEOUT) << 8 | KBD_RESEND);
		break;
	default:
		/* To the keyboard, whose clock line is let go for that. */
		s->ram[0] &= ~BYTE_KBD_OFF;
		kbd_receive(s, value);
		break;
	}
}

static uint64_t data_read(void *arg, uint64_t offset, unsigned size)
{
	struct ps2 *ps2 = arg;
	struct ps2_state *s = &ps2->state;
	uint8_t value;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&ps2->device.lock);
	value = s->data;
	if (s->full) {
		/* The line goes down before the next byte, which is an edge of its own. */
		s->full = false;
		irq_source_set(&ps2->kbd_irq, false);
		irq_source_set(&ps2->aux_irq, false);
		ps2_update(ps2);
	}
	pthread_mutex_unlock(&ps2->device.lock);
	return value;
}

static uint64_t status_read(void *arg, uint64_t offset, unsigned size)
{
	struct ps2 *ps2 = arg;
	const struct ps2_state *s = &ps2->state;
	uint8_t value = STATUS_UNLOCKED;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&ps2->device.lock);
	if (s->full)
		value |= STATUS_FULL | s->flags;
	value |= s->ram[0] & BYTE_SYSTEM ? STATUS_SYSTEM : 0;
	value |= s->command_last ? STATUS_COMMAND : 0;
	pthread_mutex_unlock(&ps2->device.lock);
	return value;
}

static void data_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct ps2 *ps2 = arg;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&ps2->device.lock);
	ps2->state.command_last = false;
	controller_data(ps2, (uint8_t)value);
	ps2_update(ps2);
	pthread_mutex_unlock(&ps2->device.lock);
}

static void command_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct ps2 *ps2 = arg;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&ps2->device.lock);
	ps2->state.command_last = true;
	controller_command(ps2, (uint8_t)value);
	ps2_update(ps2);
	pthread_mutex_unlock(&ps2->device.lock);
}

static const struct io_ops data_ops = {IO_1, data_read, data_write};
static const struct io_ops command_ops = {IO_1, status_read, command_write};

static void ps2_reset(struct device *device)
{
	struct ps2 *ps2 = (struct ps2 *)device;

	pthread_mutex_lock(&device->lock);
	ps2->state.ram[0] = BYTE_TRANSLATE | BYTE_AUX_OFF | BYTE_SYSTEM | BYTE_KBD_IRQ;
	ps2_update(ps2);
	pthread_mutex_unlock(&device->lock);
}

static void ps2_resume(struct device *device)
{
	struct ps2 *ps2 = (struct ps2 *)device;

	pthread_mutex_lock(&device->lock);
	ps2_update(ps2);
	pthread_mutex_unlock(&device->lock);
}

static void ps2_destroy(struct device *device)
{
	struct ps2 *ps2 = (struct ps2 *)device;
	struct vm *vm = device->vm;

	io_range_del(&vm->pio, &ps2->data);
	io_range_del(&vm->pio, &ps2->command);
	io_bus_synchronize(&vm->pio);
	irq_source_set(&ps2->kbd_irq, false);
	irq_source_set(&ps2->aux_irq, false);
	device_free(device);
}

static int ps2_create(struct vm *vm, struct config *config, struct device **out, struct error *err)
{
	struct ps2 *ps2 = device_alloc(&ps2_class, vm, sizeof(*ps2), "ps2");
	int rc;

	(void)config;
	if (!ps2)
		return error_set(err, ENOMEM, "ps2: out of memory");
	irq_source_init(&ps2->kbd_irq, &vm->irq, irq_isa_gsi(PS2_KEYBOARD_IRQ));
	irq_source_init(&ps2->aux_irq, &vm->irq, irq_isa_gsi(PS2_AUX_IRQ));
	ps2->data = (struct io_range){"8042 data", PS2_DATA_PORT, 1, &data_ops, ps2};
	ps2->command = (struct io_range){"8042 command", PS2_COMMAND_PORT, 1, &command_ops, ps2};
	rc = io_range_add(&vm->pio, &ps2->data, err);
	if (!rc)
		rc = io_range_add(&vm->pio, &ps2->command, err);
	if (rc) {
		ps2_destroy(&ps2->device);
		return rc;
	}
	ps2_reset(&ps2->device);
	*out = &ps2->device;
	return 0;
}

const struct device_class ps2_class = {
	.name = "ps2",
	.help = "ps2: 8042 keyboard controller with a PS/2 keyboard",
	.kind = DEVICE_CHIPSET,
	.create = ps2_create,
	.destroy = ps2_destroy,
	.reset = ps2_reset,
	.resume = ps2_resume,
	.table = &ps2_table,
	.state_offset = offsetof(struct ps2, state),
};
DEVICE_REGISTER(ps2_class);
