#include <assert.h>

#include "bus/irq.h"

void irq_router_init(struct irq_router *router)
{
	*router = (struct irq_router){0};
	pthread_mutex_init(&router->lock, NULL);
}

void irq_router_destroy(struct irq_router *router)
{
	pthread_mutex_destroy(&router->lock);
}

void irq_router_add_sink(struct irq_router *router,
			 void (*set)(void *arg, unsigned gsi, bool level), void *arg)
{
	assert(router->nsinks < IRQ_SINKS);
	router->sink[router->nsinks++] = (struct irq_sink){.set = set, .arg = arg};
}

void irq_router_del_sink(struct irq_router *router, void *arg)
{
	pthread_mutex_lock(&router->lock);
	for (unsigned i = 0; i < router->nsinks; i++) {
		if (router->sink[i].arg != arg)
			continue;
		router->sink[i] = router->sink[--router->nsinks];
		break;
	}
	pthread_mutex_unlock(&router->lock);
}

/* Under the lock. */
static bool line_level(const struct irq_router *router, unsigned gsi)
{
	return router->holders[gsi] || (!router->replaced && router->replaceable[gsi]);
}

bool irq_line_level(struct irq_router *router, unsigned gsi)
{
	bool level;

	pthread_mutex_lock(&router->lock);
	level = gsi < IRQ_LINES && line_level(router, gsi);
	pthread_mutex_unlock(&router->lock);
	return level;
}

void irq_source_init(struct irq_source *source, struct irq_router *router, unsigned gsi)
{
	assert(gsi < IRQ_LINES);
	*source = (struct irq_source){.router = router, .gsi = gsi};
}

void irq_source_init_replaceable(struct irq_source *source, struct irq_router *router, unsigned gsi)
{
	irq_source_init(source, router, gsi);
	source->replaceable = true;
}

/* Under the router's lock, so that the sinks see the changes of a line in the order they happened. */
static void line_tell(struct irq_router *router, unsigned gsi, bool before)
{
	bool level = line_level(router, gsi);

	if (level == before)
		return;
	for (unsigned i = 0; i < router->nsinks; i++)
		router->sink[i].set(router->sink[i].arg, gsi, level);
}

/* Under the lock. */
static void source_set_locked(struct irq_source *source, bool level)
{
	struct irq_router *router = source->router;
	bool before = line_level(router, source->gsi);
	unsigned *count = source->replaceable ? router->replaceable : router->holders;

	if (source->level == level)
		return;
	source->level = level;
	count[source->gsi] += level ? 1 : -1u;
	line_tell(router, source->gsi, before);
}

void irq_source_set(struct irq_source *source, bool level)
{
	pthread_mutex_lock(&source->router->lock);
	source_set_locked(source, level);
	pthread_mutex_unlock(&source->router->lock);
}

void irq_source_pulse(struct irq_source *source)
{
	pthread_mutex_lock(&source->router->lock);
	source_set_locked(source, true);
	source_set_locked(source, false);
	pthread_mutex_unlock(&source->router->lock);
}

void irq_router_replace(struct irq_router *router, bool replaced)
{
	bool before[IRQ_LINES];

	pthread_mutex_lock(&router->lock);
	for (unsigned gsi = 0; gsi < IRQ_LINES; gsi++)
		before[gsi] = line_level(router, gsi);
	router->replaced = replaced;
	for (unsigned gsi = 0; gsi < IRQ_LINES; gsi++)
		line_tell(router, gsi, before[gsi]);
	pthread_mutex_unlock(&router->lock);
}
