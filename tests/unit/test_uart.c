/*
 * The 16550A and the COM ports, programmed by port I/O as a driver would, with a client on a UNIX socket
 * at the other end. Register and bit numbers are the data sheet's (PC16550D, table 2).
 */
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "bus/pci.h"
#include "tests/unit/fixture.h"

#define COM1 0x3f8
#define COM3 0x3e8
enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR, FCR = IIR };
#define CHAR_NS 86806u /* 8N1 at 115200 baud: 10 bits, rounded up */

struct line {
	struct fixture *f;
	struct device *device;
	struct config *config;
	struct loop_event tick;
	char dir[32], path[48];
	int client;
};

static void on_tick(void *arg)
{
	loop_stop(((struct line *)arg)->f->vm.loop);
}

static void turn(struct line *l)
{
	loop_event_post(&l->tick);
	assert_int_equal(loop_run(l->f->vm.loop), 0);
}

#define UNTIL(l, condition)                                        \
	do {                                                       \
		time_t end = time(NULL) + 20;                      \
		while (!(condition)) {                             \
			if (time(NULL) > end)                      \
				fail_msg("never: %s", #condition); \
			turn(l);                                   \
		}                                                  \
	} while (0)

static struct device *com(struct line *l, const char *name, const char *console)
{
	struct error err = {0};

	l->config = config_create();
	if (console)
		assert_int_equal(config_set(l->config, "path", console, &err), 0);
	return fixture_device(l->f, device_class_find(DEVICE_LPC, name), l->config);
}

static uint8_t in(struct line *l, unsigned reg)
{
	return fixture_inb(l->f, (uint16_t)(COM1 + reg));
}

static void out(struct line *l, unsigned reg, uint8_t value)
{
	fixture_outb(l->f, (uint16_t)(COM1 + reg), value);
}

static bool irq(struct line *l)
{
	return irq_line_level(&l->f->vm.irq, 4);
}

static void start(struct line *l, const char *console)
{
	struct error err = {0};

	memset(l, 0, sizeof(*l));
	l->client = -1;
	l->f = fixture_create();
	assert_int_equal(loop_event_init(l->f->vm.loop, &l->tick, on_tick, l, &err), 0);
	fixture_watch_lines(l->f);
	l->device = com(l, "com1", console);
}

/* With a client that is connected. */
static void start_connected(struct line *l)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	char dir[] = "/tmp/skep-uart-XXXXXX", spec[64], c;

	assert_non_null(mkdtemp(dir));
	snprintf(spec, sizeof(spec), "unix=%s/com1", dir);
	start(l, spec);
	strcpy(l->dir, dir);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/com1", dir);
	l->client = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(connect(l->client, (struct sockaddr *)&addr, sizeof(addr)), 0);
	/* until something gets through */
	UNTIL(l, (out(l, DATA, '!'), turn(l), recv(l->client, &c, 1, MSG_DONTWAIT) == 1));
	for (unsigned i = 0; i < 4; i++)
		turn(l);
	while (recv(l->client, &c, 1, MSG_DONTWAIT) == 1)
		;
}

static void end(struct line *l)
{
	loop_event_destroy(&l->tick);
	fixture_destroy(l->f);
	config_destroy(l->config);
	if (l->client >= 0)
		close(l->client);
	if (l->dir[0])
		assert_int_equal(rmdir(l->dir), 0);
}

static void type(struct line *l, const char *text)
{
	assert_int_equal(write(l->client, text, strlen(text)), strlen(text));
	for (unsigned i = 0; i < 4; i++)
		turn(l);
}

/* 115200 8N1, FIFOs with a trigger level, DTR RTS OUT2. */
static void program(struct line *l, uint8_t fcr, uint8_t ier)
{
	out(l, LCR, 0x83);
	out(l, DATA, 1);
	out(l, IER, 0);
	out(l, LCR, 0x03);
	out(l, FCR, fcr);
	out(l, MCR, 0x0b);
	out(l, IER, ier);
}

static void reset_state(void **state)
{
	static const uint8_t reset[] = {0, 0, 0x01, 0, 0, 0x60, 0xb0, 0};
	struct line l;

	(void)state;
	start(&l, NULL);
	for (unsigned again = 0; again < 2; again++) {
		for (unsigned i = 0; i < 8; i++)
			assert_int_equal(in(&l, i), reset[i]);
		assert_false(irq(&l));
		program(&l, 0xc7, 0x0f);
		out(&l, SCR, 0x5a);
		assert_true(irq(&l));
		devices_reset(&l.f->vm);
	}
	end(&l);
}

static void registers_keep_what_they_have(void **state)
{
	struct line l;

	(void)state;
	start(&l, NULL);
	for (unsigned v = 0; v < 256; v++) {
		out(&l, SCR, (uint8_t)v);
		assert_int_equal(in(&l, SCR), v);
		out(&l, LCR, (uint8_t)v & 0x7f);
		assert_int_equal(in(&l, LCR), v & 0x7f);
	}
	out(&l, IER, 0xf5);
	assert_int_equal(in(&l, IER), 0x05);
	out(&l, MCR, 0xe3);
	assert_int_equal(in(&l, MCR), 0x03);
	out(&l, LCR, 0x80);
	out(&l, DATA, 0x34);
	out(&l, IER, 0x12);
	assert_int_equal(in(&l, DATA), 0x34);
	assert_int_equal(in(&l, IER), 0x12);
	out(&l, LCR, 0);
	assert_int_equal(in(&l, IER), 0x05);
	/* a 16-bit read takes both registers, as on the ISA bus */
	assert_int_equal(fixture_in(l.f, COM1 + SCR - 1, 2), 0xffb0);
	/* how drivers tell a 16550A from its elders */
	out(&l, FCR, 0x01);
	assert_int_equal(in(&l, IIR), 0xc1);
	out(&l, FCR, 0x00);
	assert_int_equal(in(&l, IIR), 0x01);
	/* without bit 0 nothing of it is programmed */
	out(&l, FCR, 0xc6);
	assert_int_equal(in(&l, IIR), 0x01);
	end(&l);
}

static void thr_empty_interrupt(void **state)
{
	struct line l;

	(void)state;
	start(&l, NULL);
	program(&l, 0x01, 0x00);
	assert_false(irq(&l));
	/* enabling it while THR is empty */
	out(&l, IER, 0x02);
	assert_true(irq(&l));
	assert_int_equal(in(&l, IIR), 0xc2);
	assert_false(irq(&l));
	assert_int_equal(in(&l, IIR), 0xc1);
	/* again only by a change */
	out(&l, IER, 0x02);
	assert_false(irq(&l));
	out(&l, IER, 0x00);
	out(&l, IER, 0x02);
	assert_true(irq(&l));
	/* Linux's test for a broken THRE: off and on once more */
	assert_int_equal(in(&l, IIR), 0xc2);
	out(&l, IER, 0x00);
	out(&l, IER, 0x02);
	assert_int_equal(in(&l, IIR), 0xc2);
	/* a character sent; each one is an edge, IIR read or not */
	fixture_forget(l.f);
	out(&l, DATA, 'a');
	assert_true(irq(&l));
	out(&l, DATA, 'b');
	assert_true(irq(&l));
	assert_int_equal(l.f->rises[4], 2);
	/* no interrupt passes a closed OUT2 gate */
	out(&l, MCR, 0x03);
	assert_false(irq(&l));
	assert_int_equal(in(&l, IIR), 0xc2);
	end(&l);
}

static void modem_loopback(void **state)
{
	struct line l;

	(void)state;
	start(&l, NULL);
	assert_int_equal(in(&l, MSR), 0xb0);
	out(&l, MCR, 0x10);
	assert_int_equal(in(&l, MSR), 0x0b); /* CTS, DSR and DCD fell */
	assert_int_equal(in(&l, MSR), 0x00);
	out(&l, MCR, 0x11);
	assert_int_equal(in(&l, MSR), 0x22); /* DTR -> DSR */
	out(&l, MCR, 0x12);
	assert_int_equal(in(&l, MSR), 0x13); /* RTS -> CTS, DSR fell */
	out(&l, MCR, 0x14);
	assert_int_equal(in(&l, MSR), 0x41); /* OUT1 -> RI: no delta when it comes */
	out(&l, MCR, 0x10);
	assert_int_equal(in(&l, MSR), 0x04); /* TERI when it goes */
	out(&l, IER, 0x08);
	assert_false(irq(&l));
	out(&l, MCR, 0x18);
	assert_true(irq(&l));
	assert_int_equal(in(&l, IIR), 0x00);
	assert_int_equal(in(&l, MSR), 0x88);
	assert_false(irq(&l));
	end(&l);
}

static void data_loopback(void **state)
{
	struct line l;

	(void)state;
	start_connected(&l);
	program(&l, 0x07, 0x05);
	out(&l, MCR, 0x1b);
	in(&l, MSR);
	for (unsigned i = 0; i < 16; i++)
		out(&l, DATA, (uint8_t)(0x41 + i));
	assert_int_equal(in(&l, IIR), 0xc4);
	assert_int_equal(in(&l, LSR), 0x61);
	/* the 17th is lost and that is the first thing to hear of */
	out(&l, DATA, 'x');
	assert_true(irq(&l));
	assert_int_equal(in(&l, IIR), 0xc6);
	assert_int_equal(in(&l, LSR), 0x63);
	assert_int_equal(in(&l, IIR), 0xc4);
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(in(&l, DATA), 0x41 + i);
	assert_int_equal(in(&l, LSR), 0x60);
	assert_false(irq(&l));
	/* a break behind a good character: bit 7 first, BI when it is at the top */
	out(&l, DATA, 'y');
	out(&l, LCR, 0x43);
	out(&l, LCR, 0x03);
	assert_int_equal(in(&l, LSR), 0xe1);
	assert_int_equal(in(&l, DATA), 'y');
	assert_int_equal(in(&l, IIR), 0xc6);
	assert_int_equal(in(&l, LSR), 0xf9);
	assert_int_equal(in(&l, LSR), 0x61);
	assert_int_equal(in(&l, DATA), 0);
	assert_int_equal(in(&l, LSR), 0x60);
	/* nothing of all this got out, and what was typed meanwhile comes in afterwards */
	type(&l, "z");
	assert_int_equal(in(&l, LSR), 0x60);
	char c;
	assert_int_equal(recv(l.client, &c, 1, MSG_DONTWAIT), -1);
	out(&l, MCR, 0x0b);
	fixture_advance(l.f, NS_PER_MS);
	assert_int_equal(in(&l, DATA), 'z');
	end(&l);
}

static void trigger_levels_and_character_timeout(void **state)
{
	static const uint8_t fcr[] = {0x07, 0x47, 0x87, 0xc7}, level[] = {1, 4, 8, 14};
	struct line l;

	(void)state;
	start_connected(&l);
	for (unsigned i = 0; i < 4; i++) {
		program(&l, fcr[i], 0x01);
		fixture_advance(l.f, NS_PER_SEC);
		if (level[i] > 1) {
			/* one less than the level: silence, then the timeout after 4 character times */
			type(&l, &"0123456789abc"[14 - level[i]]);
			assert_int_equal(in(&l, LSR), 0x61);
			assert_false(irq(&l));
			fixture_advance(l.f, 4 * CHAR_NS - 8);
			assert_false(irq(&l));
			fixture_advance(l.f, 16);
			assert_true(irq(&l));
			assert_int_equal(in(&l, IIR), 0xcc);
			/* reading one takes it away and starts the wait again */
			in(&l, DATA);
			assert_false(irq(&l));
			fixture_advance(l.f, 4 * CHAR_NS);
			assert_int_equal(irq(&l), level[i] > 2);
			while (in(&l, LSR) & 1)
				in(&l, DATA);
			assert_false(irq(&l));
			fixture_advance(l.f, NS_PER_SEC);
			assert_false(irq(&l));
		}
		type(&l, &"0123456789abcd"[14 - level[i]]);
		assert_true(irq(&l));
		assert_int_equal(in(&l, IIR), 0xc4);
		in(&l, DATA);
		assert_false(irq(&l));
		out(&l, FCR, fcr[i] | 2);
		assert_int_equal(in(&l, LSR), 0x60);
	}
	/* without FIFOs each character is one interrupt */
	program(&l, 0, 0x01);
	fixture_advance(l.f, NS_PER_SEC);
	type(&l, "ab");
	assert_int_equal(in(&l, IIR), 0x04);
	assert_int_equal(in(&l, DATA), 'a');
	assert_false(irq(&l));
	fixture_advance(l.f, 2 * CHAR_NS);
	assert_true(irq(&l));
	assert_int_equal(in(&l, DATA), 'b');
	end(&l);
}

/* A read and an arrival each put the timeout off. */
static void timeout_is_put_off(void **state)
{
	struct line l;

	(void)state;
	start_connected(&l);
	program(&l, 0xc7, 0x01);
	fixture_advance(l.f, NS_PER_SEC);
	type(&l, "abc");
	fixture_advance(l.f, 3 * CHAR_NS);
	assert_int_equal(in(&l, DATA), 'a');
	fixture_advance(l.f, 3 * CHAR_NS);
	assert_false(irq(&l));
	type(&l, "d");
	fixture_advance(l.f, 4 * CHAR_NS - 8);
	assert_false(irq(&l));
	fixture_advance(l.f, 16);
	assert_int_equal(in(&l, IIR), 0xcc);
	end(&l);
}

/* The timeout follows the programmed speed, word and stop bits. */
static void timeout_at_300_baud(void **state)
{
	struct line l;

	(void)state;
	start_connected(&l);
	program(&l, 0x87, 0x01);
	out(&l, LCR, 0x9f); /* 8E2: 12 bits */
	out(&l, DATA, 0x80);
	out(&l, IER, 0x01); /* 115200 / 384 */
	out(&l, LCR, 0x1f);
	type(&l, "x");
	fixture_advance(l.f, 159 * NS_PER_MS);
	assert_false(irq(&l));
	fixture_advance(l.f, 2 * NS_PER_MS);
	assert_true(irq(&l));
	end(&l);
}

static uint8_t pattern(unsigned at)
{
	return (uint8_t)((at * 2654435761u) >> 24);
}

static void paste_arrives_whole(void **state)
{
	const unsigned len = 65536;
	struct line l;
	unsigned sent = 0, got = 0;
	uint8_t bytes[1024];
	uint64_t begin;

	(void)state;
	start_connected(&l);
	program(&l, 0x87, 0x05);
	begin = vclock_now(l.f->vm.clock);
	while (got < len) {
		unsigned n = 0;
		ssize_t done;

		for (; n < sizeof(bytes) && sent + n < len; n++)
			bytes[n] = pattern(sent + n);
		done = n ? send(l.client, bytes, n, MSG_DONTWAIT) : 0;
		sent += done > 0 ? (unsigned)done : 0;
		turn(&l);
		fixture_advance(l.f, 100 * NS_PER_US);
		if (!irq(&l))
			continue;
		assert_int_equal(in(&l, IIR) & 0x06, 0x04);
		for (unsigned i = 0; i < 256 && (in(&l, LSR) & 1); i++, got++)
			assert_int_equal(in(&l, DATA), pattern(got));
		assert_int_equal(in(&l, LSR) & 0x9e, 0);
	}
	/* no faster than a line of 115200 baud, or a guest's driver would drown */
	assert_true(vclock_now(l.f->vm.clock) - begin > (uint64_t)(len - 64) * (CHAR_NS - 1));
	end(&l);
}

static void rts_stops_the_sender(void **state)
{
	struct line l;

	(void)state;
	start_connected(&l);
	/* who never raises it gets input all the same */
	out(&l, IER, 0x01);
	type(&l, "a");
	assert_int_equal(in(&l, DATA), 'a');
	program(&l, 0x07, 0x01);
	out(&l, MCR, 0x09);
	fixture_advance(l.f, NS_PER_SEC);
	type(&l, "bc");
	fixture_advance(l.f, NS_PER_SEC);
	assert_int_equal(in(&l, LSR), 0x60);
	out(&l, MCR, 0x0b);
	fixture_advance(l.f, NS_PER_MS);
	assert_int_equal(in(&l, DATA), 'b');
	/* who polls means nothing by it */
	out(&l, IER, 0x00);
	out(&l, MCR, 0x08);
	fixture_advance(l.f, NS_PER_MS);
	assert_int_equal(in(&l, DATA), 'c');
	end(&l);
}

/* Sends the pattern by interrupts, as Linux does, to a client that reads only when THRE stays away. */
static void slow_reader_loses_nothing(void **state)
{
	const unsigned len = 1u << 20;
	unsigned sent = 0, got = 0, waits = 0;
	uint8_t bytes[65536];
	struct line l;

	(void)state;
	start_connected(&l);
	program(&l, 0x07, 0x02);
	while (got < len) {
		if (sent < len && irq(&l)) {
			assert_int_equal(in(&l, IIR), 0xc2);
			assert_true(in(&l, LSR) & 0x20);
			for (unsigned i = 0; i < 16; i++, sent++)
				out(&l, DATA, pattern(sent));
			if (!(sent % 4096))
				turn(&l);
			continue;
		}
		if (sent < len) {
			/* both say so: the transmitter is not empty */
			assert_int_equal(in(&l, LSR) & 0x60, 0);
			waits++;
			fixture_save_restore(l.f);
			assert_int_equal(in(&l, LSR) & 0x60, 0);
		}
		turn(&l);
		ssize_t n = recv(l.client, bytes, sizeof(bytes), MSG_DONTWAIT);
		for (ssize_t i = 0; i < n; i++, got++)
			assert_int_equal(bytes[i], pattern(got));
	}
	assert_true(waits > 0);
	assert_int_equal(sent, len);
	end(&l);
}

static void nobody_connected_never_stops_the_guest(void **state)
{
	struct line l;

	(void)state;
	start(&l, "tcp=0");
	program(&l, 0x07, 0x00);
	for (unsigned i = 0; i < 200000; i++) {
		out(&l, DATA, 'x');
		assert_int_equal(in(&l, LSR), 0x60);
	}
	end(&l);
}

static void state_survives_in_mid_operation(void **state)
{
	struct line l;

	(void)state;
	start_connected(&l);
	program(&l, 0x87, 0x03);
	fixture_advance(l.f, NS_PER_SEC);
	type(&l, "12345");
	fixture_advance(l.f, 2 * CHAR_NS);
	assert_int_equal(in(&l, DATA), '1');
	assert_true(irq(&l)); /* THRE */
	fixture_save_restore(l.f);
	assert_true(irq(&l));
	assert_int_equal(in(&l, IIR), 0xc2);
	assert_false(irq(&l));
	fixture_advance(l.f, 2 * CHAR_NS);
	fixture_save_restore(l.f);
	/* the character timeout ends when it would have */
	fixture_advance(l.f, 2 * CHAR_NS - 16);
	assert_false(irq(&l));
	fixture_advance(l.f, 16);
	assert_int_equal(in(&l, IIR), 0xcc);
	fixture_save_restore(l.f);
	assert_int_equal(in(&l, IIR), 0xcc);
	for (char c = '2'; c <= '5'; c++) {
		fixture_save_restore(l.f);
		assert_int_equal(in(&l, DATA), c);
	}
	assert_int_equal(in(&l, LSR), 0x60);
	/* what was typed while the VM stood still comes when it goes on */
	devices_quiesce(&l.f->vm);
	type(&l, "6");
	fixture_advance(l.f, NS_PER_SEC);
	devices_resume(&l.f->vm);
	assert_int_equal(in(&l, DATA), '6');
	end(&l);
}

static void ports_and_interrupts(void **state)
{
	static const struct {
		const char *name;
		uint16_t port;
		unsigned irq;
	} want[] = {{"com1", 0x3f8, 4}, {"com2", 0x2f8, 3}, {"com3", 0x3e8, 4}, {"com4", 0x2e8, 3}};
	struct fixture *f = fixture_create();
	struct device *device[4];

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		const struct device_class *cls = device_class_find(DEVICE_LPC, want[i].name);

		assert_non_null(cls);
		assert_int_equal(fixture_inb(f, want[i].port + LSR), 0xff);
		device[i] = fixture_device(f, cls, NULL);
		assert_int_equal(fixture_inb(f, want[i].port + LSR), 0x60);
		assert_false(irq_line_level(&f->vm.irq, want[i].irq) && i < 2);
		fixture_outb(f, want[i].port + MCR, 0x08);
		fixture_outb(f, want[i].port + IER, 0x02);
		assert_true(irq_line_level(&f->vm.irq, want[i].irq));
	}
	/* COM1's line stays up while COM3 holds it */
	assert_int_equal(fixture_inb(f, 0x3f8 + IIR), 0x02);
	assert_true(irq_line_level(&f->vm.irq, 4));
	device_destroy(device[2]);
	assert_false(irq_line_level(&f->vm.irq, 4));
	assert_int_equal(fixture_inb(f, COM3 + LSR), 0xff);
	fixture_destroy(f);
}

/* The same registers in an I/O BAR, the same interrupt as INTx, which PCI's command register gates. */
static void pci_function(void **state)
{
	const uint64_t ecam = PCI_ECAM_BASE + (5 << 15);
	struct line l;
	struct error err = {0};
	struct config *node;
	uint16_t port;
	unsigned gsi = PCI_INTX_GSI_BASE + pci_intx_wire(5, 1);

	(void)state;
	memset(&l, 0, sizeof(l));
	l.client = -1;
	l.f = fixture_create();
	assert_int_equal(loop_event_init(l.f->vm.loop, &l.tick, on_tick, &l, &err), 0);
	fixture_device(l.f, &pci_bus_class, NULL);
	l.config = l.f->vm.config = config_create();
	node = config_make(l.config, "pci.0.5.0", &err);
	assert_int_equal(config_set(node, "path", "null", &err), 0);
	fixture_device(l.f, device_class_find(DEVICE_PCI, "uart"), node);
	assert_int_equal(fixture_read(l.f, ecam + 8, 4) >> 8, 0x070002);
	port = fixture_read(l.f, ecam + PCI_BAR(0), 4) & ~3u;
	fixture_outb(l.f, port + SCR, 0x5a);
	assert_int_equal(fixture_inb(l.f, port + SCR), 0x5a);
	assert_int_equal(fixture_inb(l.f, port + LSR), 0x60);
	fixture_outb(l.f, port + MCR, 0x08);
	fixture_outb(l.f, port + IER, 0x02); /* THR is empty */
	assert_true(irq_line_level(&l.f->vm.irq, gsi));
	assert_true(fixture_read(l.f, ecam + PCI_STATUS, 2) & PCI_STATUS_INTX);
	fixture_write(l.f, ecam + PCI_COMMAND, 2, PCI_COMMAND_IO | PCI_COMMAND_INTX_DISABLE);
	assert_false(irq_line_level(&l.f->vm.irq, gsi));
	fixture_write(l.f, ecam + PCI_COMMAND, 2, PCI_COMMAND_IO);
	fixture_save_restore(l.f);
	assert_true(irq_line_level(&l.f->vm.irq, gsi));
	assert_int_equal(fixture_inb(l.f, port + SCR), 0x5a);
	assert_int_equal(fixture_inb(l.f, port + IIR) & 0x0f, 0x02); /* reading it takes it away */
	assert_false(irq_line_level(&l.f->vm.irq, gsi));
	fixture_fuzz_pio(l.f, port, 8, 20000, 3);
	end(&l);
}

static void hostile_guest(void **state)
{
	struct line l;
	char junk[4096];

	(void)state;
	start_connected(&l);
	memset(junk, 0x5a, sizeof(junk));
	for (unsigned i = 0; i < 40; i++) {
		send(l.client, junk, sizeof(junk), MSG_DONTWAIT);
		turn(&l);
		fixture_fuzz_pio(l.f, COM1, 8, 2000, 0x1234567 + i);
		fixture_save_restore(l.f);
		recv(l.client, junk, sizeof(junk), MSG_DONTWAIT);
	}
	assert_true(fixture_fuzz_state(l.f, l.device, 2000, 99) > 0);
	fixture_fuzz_pio(l.f, COM1, 8, 2000, 5);
	/* it still works */
	devices_reset(&l.f->vm);
	program(&l, 0x07, 0x00);
	out(&l, DATA, 'k');
	assert_int_equal(l.f->end, VM_END_NONE);
	end(&l);
}

static void bad_console_names_the_port(void **state)
{
	struct fixture *f = fixture_create();
	struct config *config = config_create();
	struct device *device;
	struct error err = {0};

	(void)state;
	config_set(config, "path", "/nowhere/tty", &err);
	assert_true(device_create(device_class_find(DEVICE_LPC, "com2"), &f->vm, config, &device,
				  &err) < 0);
	assert_non_null(strstr(err.text, "com2"));
	assert_non_null(strstr(err.text, "/nowhere/tty"));
	config_destroy(config);
	fixture_destroy(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reset_state),
		cmocka_unit_test(registers_keep_what_they_have),
		cmocka_unit_test(thr_empty_interrupt),
		cmocka_unit_test(modem_loopback),
		cmocka_unit_test(data_loopback),
		cmocka_unit_test(trigger_levels_and_character_timeout),
		cmocka_unit_test(timeout_is_put_off),
		cmocka_unit_test(timeout_at_300_baud),
		cmocka_unit_test(paste_arrives_whole),
		cmocka_unit_test(rts_stops_the_sender),
		cmocka_unit_test(slow_reader_loses_nothing),
		cmocka_unit_test(nobody_connected_never_stops_the_guest),
		cmocka_unit_test(state_survives_in_mid_operation),
		cmocka_unit_test(ports_and_interrupts),
		cmocka_unit_test(pci_function),
		cmocka_unit_test(hostile_guest),
		cmocka_unit_test(bad_console_names_the_port),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
