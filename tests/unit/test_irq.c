/* Interrupt lines: shared levels, pulses, legacy replacement. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "bus/irq.h"

struct record {
	char text[256];
};

static void record_set(void *arg, unsigned gsi, bool level)
{
	struct record *r = arg;
	size_t len = strlen(r->text);

	snprintf(r->text + len, sizeof(r->text) - len, "%u%c ", gsi, level ? '+' : '-');
}

static void expect(struct record *r, const char *want)
{
	assert_string_equal(r->text, want);
	r->text[0] = '\0';
}

static void test_shared(void **state)
{
	struct record pic = {""}, ioapic = {""};
	struct irq_router router;
	struct irq_source a, b, other;

	(void)state;
	irq_router_init(&router);
	irq_router_add_sink(&router, record_set, &pic);
	irq_router_add_sink(&router, record_set, &ioapic);
	irq_source_init(&a, &router, 5);
	irq_source_init(&b, &router, 5);
	irq_source_init(&other, &router, 23);
	irq_source_set(&a, true);
	irq_source_set(&a, true);
	expect(&pic, "5+ ");
	expect(&ioapic, "5+ ");
	irq_source_set(&b, true);
	irq_source_set(&a, false);
	expect(&pic, "");
	assert_true(irq_line_level(&router, 5));
	irq_source_set(&b, false);
	irq_source_set(&b, false);
	expect(&pic, "5- ");
	assert_false(irq_line_level(&router, 5));
	irq_source_pulse(&other);
	expect(&pic, "23+ 23- ");
	irq_source_set(&a, true);
	expect(&pic, "5+ ");
	irq_source_pulse(&b); /* the line is up: no edge to see */
	expect(&pic, "");
	assert_false(irq_line_level(&router, 24));
	assert_int_equal(irq_isa_gsi(0), 2);
	assert_int_equal(irq_isa_gsi(9), 9);
	irq_router_destroy(&router);
}

static void test_legacy_replacement(void **state)
{
	struct record r = {""};
	struct irq_router router;
	struct irq_source pit, hpet, rtc;

	(void)state;
	irq_router_init(&router);
	irq_router_add_sink(&router, record_set, &r);
	irq_source_init_replaceable(&pit, &router, 2);
	irq_source_init_replaceable(&rtc, &router, 8);
	irq_source_init(&hpet, &router, 2);
	irq_source_set(&pit, true);
	expect(&r, "2+ ");
	irq_router_replace(&router, true);
	expect(&r, "2- ");
	irq_router_replace(&router, true);
	irq_source_set(&rtc, true);
	irq_source_pulse(&pit);
	expect(&r, "");
	irq_source_pulse(&hpet);
	expect(&r, "2+ 2- ");
	irq_router_replace(&router, false);
	expect(&r, "8+ "); /* the level it has; the PIT's pulse ended low */
	irq_source_set(&rtc, false);
	expect(&r, "8- ");
	irq_source_set(&hpet, true);
	irq_source_set(&pit, true);
	irq_router_replace(&router, true);
	expect(&r, "2+ "); /* the HPET holds it up */
	irq_router_destroy(&router);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_shared),
		cmocka_unit_test(test_legacy_replacement),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
