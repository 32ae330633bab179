/*
 * Interrupt lines. There are 24, the I/O APIC's pins (GSIs); the first 16 also reach the PIC pair.
 * ISA IRQ n is GSI n but for IRQ 0, the PIT, which is GSI 2 (as the MADT and the MP table say).
 *
 * A line may be shared: each source holds it up on its own, the line is the OR of them. Lines carry
 * levels; what an edge is the controllers decide.
 *
 * Legacy replacement (IA-PC HPET 1.0a, LEG_RT_CNF): the HPET can take the lines of the PIT and the RTC
 * over. Those two make their sources replaceable; while the HPET has switched, such sources keep their
 * level but do not reach the line.
 *
 * Any thread, under device locks. Sinks are called under the lines' lock and take their own; so nothing
 * here is called under a sink's lock: a controller keeps the levels it was told.
 */
#ifndef BUS_IRQ_H
#define BUS_IRQ_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define IRQ_LINES 24
#define IRQ_SINKS 4 /* PIC, I/O APIC, and room for whoever watches */

struct irq_sink {
	/* The level of the line changed. */
	void (*set)(void *arg, unsigned gsi, bool level);
	void *arg;
};

struct irq_router {
	pthread_mutex_t lock;
	unsigned holders[IRQ_LINES];     /* sources that hold the line up, but for */
	unsigned replaceable[IRQ_LINES]; /* those of the replaceable kind, which count while !replaced */
	bool replaced;
	struct irq_sink sink[IRQ_SINKS];
	unsigned nsinks;
};

/* One device's hold on one line; embedded in the device. */
struct irq_source {
	struct irq_router *router;
	unsigned gsi;
	bool level;
	bool replaceable;
};

void irq_router_init(struct irq_router *router);
void irq_router_destroy(struct irq_router *router);
/* Before the VM runs; at most IRQ_SINKS. */
void irq_router_add_sink(struct irq_router *router, void (*set)(void *arg, unsigned gsi, bool level),
			 void *arg);
/* The sink with that `arg` is not called any more. No-op if it is not there. */
void irq_router_del_sink(struct irq_router *router, void *arg);
bool irq_line_level(struct irq_router *router, unsigned gsi);

static inline unsigned irq_isa_gsi(unsigned isa_irq)
{
	return isa_irq == 0 ? 2 : isa_irq;
}

/* The line stays low. gsi < IRQ_LINES. */
void irq_source_init(struct irq_source *source, struct irq_router *router, unsigned gsi);
/* The same for the PIT's and the RTC's interrupt, which the HPET may replace. */
void irq_source_init_replaceable(struct irq_source *source, struct irq_router *router, unsigned gsi);
void irq_source_set(struct irq_source *source, bool level);
/* Up and down again: one edge. */
void irq_source_pulse(struct irq_source *source);
/* The HPET's switch: cuts the replaceable sources off from their lines, or connects them again at the
 * level they have. */
void irq_router_replace(struct irq_router *router, bool replaced);

#endif
