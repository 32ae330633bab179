/*
 * How long a thread looks for work before it sleeps (base/spin.h).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/spin.h"

static bool count_down(void *arg)
{
	unsigned *left = arg;

	return *left == 0 || --*left == 0;
}

static bool never(void *arg)
{
	++*(uint64_t *)arg;
	return false;
}

static void sleep_for(struct spin *spin, struct spin_room *room, unsigned us)
{
	uint64_t looks = 0;

	assert_false(spin_wait(spin, room, false, never, &looks));
	assert_true(looks > 0);
	if (us)
		usleep(us);
	spin_slept(spin);
}

/* Short sleeps make it look, long ones end that. */
static void test_window(void **state)
{
	struct spin_room room = {.most = 1};
	struct spin spin = {0};

	(void)state;
	for (unsigned i = 0; i < 100000 && spin.window < SPIN_MAX_NS; i++)
		sleep_for(&spin, &room, 0);
	assert_int_equal(spin.window, SPIN_MAX_NS);
	for (unsigned i = 0; i < 6; i++)
		sleep_for(&spin, &room, 1000);
	assert_int_equal(spin.window, 0);
	sleep_for(&spin, &room, 1000);
	assert_int_equal(spin.window, 0);
	assert_int_equal(room.inside, 0);
}

static void test_found(void **state)
{
	struct spin_room room = {.most = 1};
	struct spin spin = {.window = 1000000000};
	unsigned left = 1000;

	(void)state;
	assert_true(spin_wait(&spin, &room, false, count_down, &left));
	assert_int_equal(left, 0);
	spin.window = 0;
	assert_true(spin_wait(&spin, &room, false, count_down, &left));
	left = 2;
	assert_false(spin_wait(&spin, &room, false, count_down, &left));
}

/* Where others look already, or there is no CPU to spare, it looks once; but one more may look for what the kernel does. */
static void test_room(void **state)
{
	struct spin_room room = {.inside = 1, .most = 1};
	struct spin spin = {.window = SPIN_MAX_NS};
	uint64_t looks = 0;

	(void)state;
	assert_false(spin_wait(&spin, &room, false, never, &looks));
	assert_int_equal(looks, 1);
	assert_int_equal(room.inside, 1);
	assert_false(spin_wait(&spin, &room, true, never, &looks));
	assert_true(looks > 2);
	assert_int_equal(room.inside, 1);
	assert_int_equal(room.awaiting, 0);
	spin.window = SPIN_MAX_NS;
	room.awaiting = 1;
	looks = 0;
	assert_false(spin_wait(&spin, &room, true, never, &looks));
	assert_int_equal(looks, 1);
	room = (struct spin_room){0};
	assert_false(spin_wait(&spin, &room, false, never, &looks));
	assert_int_equal(looks, 2);
	assert_false(spin_wait(&spin, &room, true, never, &looks));
	assert_int_equal(looks, 3);
	spin_room_init(&room);
	assert_int_equal(room.inside, 0);
	assert_true(room.most < (unsigned)sysconf(_SC_NPROCESSORS_CONF));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_window),
		cmocka_unit_test(test_found),
		cmocka_unit_test(test_room),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
