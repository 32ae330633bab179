/*
 * The choice of an engine.
 */
#include "vmm/engine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* In the order in which "auto" tries them. */
static const struct engine *const engines[] = {
	&engine_kvm,
	&engine_soft,
};
#define ENGINES (sizeof(engines) / sizeof(engines[0]))

static const struct engine *engine_find(const char *name)
{
	for (unsigned i = 0; i < ENGINES; i++) {
		if (strcmp(engines[i]->name, name) == 0)
			return engines[i];
	}
	return NULL;
}

/* The first whose probe passes; if none does, one that is only slow. The start line tells why those before
 * it were passed over. */
static int engine_choose_auto(const struct engine **engine, char *why, size_t why_size,
			      struct error *err)
{
	const struct engine *slow = NULL;
	struct error refused = {.text = ""}, slow_text = {.text = ""};
	const char *phrase = "";
	int r = 0;

	for (unsigned i = 0; i < ENGINES; i++) {
		struct error *text = i == 0 ? &refused : err;

		r = engines[i]->probe(&phrase, text);
		if (r == -ETIME && !slow) {
			slow = engines[i];
			slow_text = *text;
		}
		if (r)
			continue;
		*engine = engines[i];
		snprintf(why, why_size, "%s%s%s", phrase, refused.text[0] ? "; " : "",
			 refused.text);
		return 0;
	}
	if (slow) {
		*engine = slow;
		snprintf(why, why_size, "slow: %s; there is no other engine", slow_text.text);
		return 0;
	}
	error_prefix(err, "%s; and the %s engine", refused.text, engines[ENGINES - 1]->name);
	return r;
}

/* A forced engine need not pass its speed test: it only has to work at all, which vm_create() finds. */
int engine_choose(const char *name, const struct engine **engine, char *why, size_t why_size,
		  struct error *err)
{
	const struct engine *found;

	if (strcmp(name, "auto") == 0)
		return engine_choose_auto(engine, why, why_size, err);
	found = engine_find(name);
	if (!found)
		return error_set(err, EINVAL, "-E %s: no such engine; it is auto, kvm or soft",
				 name);
	*engine = found;
	snprintf(why, why_size, "asked for by -E");
	return 0;
}
