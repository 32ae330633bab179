/*
 * The interrupt controller pair of a PC: two Intel 8259A (data sheet 231468-003), cascaded on IR2 of the
 * first, with the edge/level control registers 4D0 and 4D1 of the PIIX and ICH south bridges.
 *
 * ICW1 to ICW4, OCW1 to OCW3: fully nested, special fully nested, automatic EOI, all EOI and rotation
 * commands, special mask mode, poll, spurious IR7.
 *
 * As in the south bridges, ELCR decides what is edge and what is level (ICW1.LTIM is ignored), IR0, IR1,
 * IR2, IR8 and IR13 are always edge. An edge stays latched when its line falls before the acknowledge,
 * since lines here are pulsed; a level does not, and then IR7 is given. Left out: the 8085 mode of ICW4
 * and buffered mode (accepted, no effect), and the slave's identification in ICW3: the slave always
 * answers the master's IR2.
 */
#include "chipset/pic.h"

#include <errno.h>

#include "bus/io.h"
#include "bus/irq.h"
#include "vmm/vm.h"

#define MASTER 0
#define SLAVE 1
#define CASCADE 2 /* the master's input that the slave drives */
#define SPURIOUS 7
#define NONE 8 /* no input; also a priority below every other */

#define ICW1_IC4 0x01
#define ICW1_SNGL 0x02
#define ICW1 0x10 /* tells it from an OCW */
#define ICW4_AEOI 0x02
#define ICW4_SFNM 0x10
#define OCW3 0x08
#define OCW3_RIS 0x01
#define OCW3_RR 0x02
#define OCW3_POLL 0x04
#define OCW3_SMM 0x20
#define OCW3_ESMM 0x40
#define POLL_INT 0x80

/* What the next write to the odd port is. Until its first ICW1 a chip requests nothing. */
enum pic_step { STEP_READY, STEP_OFF, STEP_ICW2, STEP_ICW3, STEP_ICW4 };

struct pic_state {
	uint8_t lines[2]; /* levels of the inputs */
	uint8_t edges[2]; /* latched rising edges */
	uint8_t isr[2], imr[2], elcr[2];
	uint8_t step[2]; /* enum pic_step */
	uint8_t base[2]; /* vector of IR0 */
	uint8_t icw1[2], icw3[2], icw4[2];
	uint8_t lowest[2]; /* the input of lowest priority */
	bool rotate_aeoi[2], special_mask[2], read_isr[2], poll[2];
};

struct pic {
	struct device device;
	struct pic_state state;
	struct io_range command[2], elcr;
};

static bool pic_check(const void *state)
{
	const struct pic_state *s = state;

	for (unsigned chip = 0; chip < 2; chip++) {
		if (s->step[chip] > STEP_ICW4 || s->lowest[chip] > 7 || s->base[chip] & 7)
			return false;
	}
	return !(s->elcr[MASTER] & ~0xf8) && !(s->elcr[SLAVE] & ~0xde) &&
	       !(s->edges[MASTER] & (1 << CASCADE)) && !(s->lines[MASTER] & (1 << CASCADE));
}

static const struct state_field pic_fields[] = {
	STATE_ARRAY(struct pic_state, lines),
	STATE_ARRAY(struct pic_state, edges),
	STATE_ARRAY(struct pic_state, isr),
	STATE_ARRAY(struct pic_state, imr),
	STATE_ARRAY(struct pic_state, elcr),
	STATE_ARRAY_OPT(struct pic_state, step, STEP_OFF, 0),
	STATE_ARRAY(struct pic_state, base),
	STATE_ARRAY(struct pic_state, icw1),
	STATE_ARRAY(struct pic_state, icw3),
	STATE_ARRAY(struct pic_state, icw4),
	STATE_ARRAY_OPT(struct pic_state, lowest, 7, 0),
	STATE_ARRAY(struct pic_state, rotate_aeoi),
	STATE_ARRAY(struct pic_state, special_mask),
	STATE_ARRAY(struct pic_state, read_isr),
	STATE_ARRAY(struct pic_state, poll),
};
static const struct state_table pic_table =
	STATE_TABLE("pic", struct pic_state, pic_fields, 1, pic_check);

/* Places below the top priority of the most urgent of `bits`; NONE if there are none. */
static unsigned pic_priority(const struct pic_state *s, unsigned chip, uint8_t bits)
{
	for (unsigned n = 0; n < 8; n++) {
		if (bits & 1u << ((s->lowest[chip] + 1u + n) & 7))
			return n;
	}
	return NONE;
}

static unsigned pic_input(const struct pic_state *s, unsigned chip, unsigned priority)
{
	return (s->lowest[chip] + 1u + priority) & 7;
}

static bool pic_cascaded(const struct pic_state *s)
{
	return !(s->icw1[MASTER] & ICW1_SNGL);
}

static unsigned pic_pending(const struct pic_state *s, unsigned chip);

static uint8_t pic_irr(const struct pic_state *s, unsigned chip)
{
	uint8_t irr = s->edges[chip] | (s->lines[chip] & s->elcr[chip]);

	if (chip == MASTER && pic_cascaded(s) && pic_pending(s, SLAVE) != NONE)
		irr |= 1 << CASCADE;
	return irr;
}

/* The input that the chip requests service for, or NONE: the most urgent one that is not masked, if it is
 * more urgent than what is in service (data sheet, "Fully Nested Mode"). */
static unsigned pic_pending(const struct pic_state *s, unsigned chip)
{
	uint8_t in_service = s->isr[chip];
	unsigned request, serving;

	if (s->step[chip] != STEP_READY)
		return NONE;
	if (s->special_mask[chip])
		in_service &= ~s->imr[chip];
	request = pic_priority(s, chip, pic_irr(s, chip) & ~s->imr[chip]);
	serving = pic_priority(s, chip, in_service);
	if (request == NONE)
		return NONE;
	if (request < serving)
		return pic_input(s, chip, request);
	/* "Special Fully Nested Mode": a slave in service may interrupt itself. */
	if (request == serving && chip == MASTER && (s->icw4[MASTER] & ICW4_SFNM) &&
	    pic_cascaded(s) && pic_input(s, chip, request) == CASCADE)
		return CASCADE;
	return NONE;
}

static void pic_update(struct pic *pic)
{
	vm_extint_set(pic->device.vm, pic_pending(&pic->state, MASTER) != NONE);
}

/* What INTA does to one chip. Returns the input, IR7 if the request has gone. */
static unsigned pic_accept(struct pic_state *s, unsigned chip)
{
	unsigned input = pic_pending(s, chip);

	if (input == NONE)
		return SPURIOUS;
	s->edges[chip] &= ~(1u << input);
	if (!(s->icw4[chip] & ICW4_AEOI))
		s->isr[chip] |= 1u << input;
	else if (s->rotate_aeoi[chip])
		s->lowest[chip] = input;
	return input;
}

static uint8_t pic_acknowledge(void *arg)
{
	struct pic *pic = arg;
	struct pic_state *s = &pic->state;
	unsigned input, chip = MASTER;
	uint8_t vector;

	pthread_mutex_lock(&pic->device.lock);
	input = pic_accept(s, MASTER);
	if (input == CASCADE && pic_cascaded(s)) {
		chip = SLAVE;
		input = pic_accept(s, SLAVE);
	}
	vector = s->base[chip] + input;
	pic_update(pic);
	pthread_mutex_unlock(&pic->device.lock);
	return vector;
}

/* A sink of the lines: ISA IRQ 0 is GSI 2, and no line goes to the input that the slave drives. */
static void pic_line(void *arg, unsigned gsi, bool level)
{
	struct pic *pic = arg;
	struct pic_state *s = &pic->state;
	unsigned irq = gsi == irq_isa_gsi(0) ? 0 : gsi;
	uint8_t bit = 1u << (irq & 7);
	unsigned chip = irq >> 3;

	if (gsi == 0 || irq >= 16)
		return;
	pthread_mutex_lock(&pic->device.lock);
	if (level && !(s->lines[chip] & bit) && !(s->elcr[chip] & bit))
		s->edges[chip] |= bit;
	if (level)
		s->lines[chip] |= bit;
	else
		s->lines[chip] &= ~bit;
	pic_update(pic);
	pthread_mutex_unlock(&pic->device.lock);
}

static void pic_write_icw1(struct pic_state *s, unsigned chip, uint8_t value)
{
	s->icw1[chip] = value;
	s->edges[chip] = 0;
	s->isr[chip] = 0;
	s->imr[chip] = 0;
	s->lowest[chip] = 7;
	s->rotate_aeoi[chip] = false;
	s->special_mask[chip] = false;
	s->read_isr[chip] = false;
	s->poll[chip] = false;
	if (!(value & ICW1_IC4))
		s->icw4[chip] = 0;
	s->step[chip] = STEP_ICW2;
}

/* Data sheet, figure 8 "Operation Command Word Format". */
static void pic_write_ocw2(struct pic_state *s, unsigned chip, uint8_t value)
{
	bool rotate = value & 0x80, specific = value & 0x40, eoi = value & 0x20;
	uint8_t in_service = s->isr[chip];
	unsigned input = value & 7, priority;

	if (!specific && !eoi) {
		s->rotate_aeoi[chip] = rotate;
		return;
	}
	if (!specific) {
		/* A masked bit is not cleared by a non-specific EOI in special mask mode. */
		if (s->special_mask[chip])
			in_service &= ~s->imr[chip];
		priority = pic_priority(s, chip, in_service);
		if (priority == NONE)
			return;
		input = pic_input(s, chip, priority);
	}
	if (eoi)
		s->isr[chip] &= ~(1u << input);
	if (rotate)
		s->lowest[chip] = input;
}

static void pic_write_ocw3(struct pic_state *s, unsigned chip, uint8_t value)
{
	s->poll[chip] = value & OCW3_POLL;
	if (value & OCW3_RR)
		s->read_isr[chip] = value & OCW3_RIS;
	if (value & OCW3_ESMM)
		s->special_mask[chip] = value & OCW3_SMM;
}

static void pic_write_command(struct pic_state *s, unsigned chip, uint8_t value)
{
	if (value & ICW1)
		pic_write_icw1(s, chip, value);
	else if (value & OCW3)
		pic_write_ocw3(s, chip, value);
	else
		pic_write_ocw2(s, chip, value);
}

static void pic_write_data(struct pic_state *s, unsigned chip, uint8_t value)
{
	bool more = s->icw1[chip] & ICW1_IC4;

	switch (s->step[chip]) {
	case STEP_ICW2:
		s->base[chip] = value & 0xf8;
		s->step[chip] = STEP_ICW3;
		if (s->icw1[chip] & ICW1_SNGL)
			s->step[chip] = more ? STEP_ICW4 : STEP_READY;
		break;
	case STEP_ICW3:
		s->icw3[chip] = value;
		s->step[chip] = more ? STEP_ICW4 : STEP_READY;
		break;
	case STEP_ICW4:
		s->icw4[chip] = value;
		s->step[chip] = STEP_READY;
		break;
	default:
		s->imr[chip] = value;
		break;
	}
}

static void pic_write(struct pic *pic, unsigned chip, uint64_t offset, uint64_t value)
{
	pthread_mutex_lock(&pic->device.lock);
	if (offset)
		pic_write_data(&pic->state, chip, value);
	else
		pic_write_command(&pic->state, chip, value);
	pic_update(pic);
	pthread_mutex_unlock(&pic->device.lock);
}

static uint64_t pic_read(struct pic *pic, unsigned chip, uint64_t offset)
{
	struct pic_state *s = &pic->state;
	uint64_t value;

	pthread_mutex_lock(&pic->device.lock);
	if (s->poll[chip]) {
		/* "Poll Command": the read is the acknowledge. */
		s->poll[chip] = false;
		value = pic_pending(s, chip) == NONE ? 0 : POLL_INT | pic_accept(s, chip);
		pic_update(pic);
	} else if (offset) {
		value = s->imr[chip];
	} else {
		value = s->read_isr[chip] ? s->isr[chip] : pic_irr(s, chip);
	}
	pthread_mutex_unlock(&pic->device.lock);
	return value;
}

static uint64_t master_read(void *arg, uint64_t offset, unsigned size)
{
	(void)size;
	return pic_read(arg, MASTER, offset);
}

static void master_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	(void)size;
	pic_write(arg, MASTER, offset, value);
}

static uint64_t slave_read(void *arg, uint64_t offset, unsigned size)
{
	(void)size;
	return pic_read(arg, SLAVE, offset);
}

static void slave_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	(void)size;
	pic_write(arg, SLAVE, offset, value);
}

static uint64_t elcr_read(void *arg, uint64_t offset, unsigned size)
{
	struct pic *pic = arg;
	uint8_t value;

	(void)size;
	pthread_mutex_lock(&pic->device.lock);
	value = pic->state.elcr[offset];
	pthread_mutex_unlock(&pic->device.lock);
	return value;
}

static void elcr_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	static const uint8_t writable[2] = {0xf8, 0xde};
	struct pic *pic = arg;

	(void)size;
	pthread_mutex_lock(&pic->device.lock);
	pic->state.elcr[offset] = value & writable[offset];
	/* A level input has no latch. */
	pic->state.edges[offset] &= ~pic->state.elcr[offset];
	pic_update(pic);
	pthread_mutex_unlock(&pic->device.lock);
}

static const struct io_ops master_ops = {IO_1, master_read, master_write};
static const struct io_ops slave_ops = {IO_1, slave_read, slave_write};
static const struct io_ops elcr_ops = {IO_1, elcr_read, elcr_write};

/* After a reset the lines come up again as their devices raise them. */
static void pic_resume(struct device *device)
{
	struct pic *pic = (struct pic *)device;

	pthread_mutex_lock(&device->lock);
	pic_update(pic);
	pthread_mutex_unlock(&device->lock);
}

static void pic_destroy(struct device *device)
{
	struct pic *pic = (struct pic *)device;
	struct io_bus *bus = &device->vm->pio;

	io_range_del(bus, &pic->command[MASTER]);
	io_range_del(bus, &pic->command[SLAVE]);
	io_range_del(bus, &pic->elcr);
	io_bus_synchronize(bus);
	irq_router_del_sink(&device->vm->irq, pic);
	vm_extint_set(device->vm, false);
	device->vm->extint.acknowledge = NULL;
	device_free(device);
}

static int pic_create(struct vm *vm, struct config *config, struct device **out, struct error *err)
{
	struct pic *pic = device_alloc(&pic_class, vm, sizeof(*pic), "pic");
	struct io_range *ranges[3];
	int rc;

	(void)config;
	if (!pic)
		return error_set(err, ENOMEM, "no memory for the interrupt controller");
	pic->command[MASTER] = (struct io_range){"pic", 0x20, 2, &master_ops, pic};
	pic->command[SLAVE] = (struct io_range){"pic", 0xa0, 2, &slave_ops, pic};
	pic->elcr = (struct io_range){"elcr", 0x4d0, 2, &elcr_ops, pic};
	ranges[0] = &pic->command[MASTER];
	ranges[1] = &pic->command[SLAVE];
	ranges[2] = &pic->elcr;
	for (unsigned i = 0; i < 3; i++) {
		rc = io_range_add(&vm->pio, ranges[i], err);
		if (rc) {
			while (i--)
				io_range_del(&vm->pio, ranges[i]);
			device_free(&pic->device);
			return rc;
		}
	}
	vm->extint.arg = pic;
	vm->extint.acknowledge = pic_acknowledge;
	irq_router_add_sink(&vm->irq, pic_line, pic);
	*out = &pic->device;
	return 0;
}

const struct device_class pic_class = {
	.name = "pic",
	.help = "pic  two 8259A interrupt controllers",
	.kind = DEVICE_CHIPSET,
	.create = pic_create,
	.destroy = pic_destroy,
	.reset = pic_resume,
	.resume = pic_resume,
	.table = &pic_table,
	.state_offset = offsetof(struct pic, state),
};
DEVICE_REGISTER(pic_class);
