#include "base/spin.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define FIRST_NS 10000u
#define ASIDE_NS 20000u /* looks that take longer were interrupted by somebody who needs the CPU */
#define LOOKS 16	/* between two looks at the clock */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void shrink(struct spin *spin)
{
	spin->window = spin->window / 2 < FIRST_NS ? 0 : spin->window / 2;
}

/* CPUs that one cpu.max of control groups (Linux, cgroup-v2.rst) allows at the same time, `cpus` if it says nothing. */
static unsigned quota(const char *path, unsigned cpus)
{
	FILE *f = fopen(path, "re");
	unsigned long runtime, period;

	if (f == NULL)
		return cpus;
	if (fscanf(f, "%lu %lu", &runtime, &period) == 2 && period > 0 && runtime / period < cpus)
		cpus = runtime / period > 1 ? (unsigned)(runtime / period) : 1;
	fclose(f);
	return cpus;
}

/* Of this process' group and those above it. A container sees its own as the root. */
static unsigned quotas(unsigned cpus)
{
	char group[256] = "", path[320], *slash;
	FILE *f = fopen("/proc/self/cgroup", "re");

	while (f != NULL && fscanf(f, "0::%255[^\n]", group) != 1 && fscanf(f, "%*[^\n]\n") == 0)
		;
	if (f != NULL)
		fclose(f);
	do {
		snprintf(path, sizeof(path), "/sys/fs/cgroup%s/cpu.max", group);
		cpus = quota(path, cpus);
		slash = strrchr(group, '/');
		if (slash != NULL)
			*slash = '\0';
	} while (slash != NULL);
	return cpus;
}

void spin_room_init(struct spin_room *room)
{
	cpu_set_t set;
	int cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;

	*room = (struct spin_room){.most = quotas((unsigned)cpus) - 1};
}

static bool look(struct spin *spin, bool (*found)(void *arg), void *arg)
{
	uint64_t now = spin->began, last;

	do {
		for (unsigned i = 0; i < LOOKS; i++) {
			if (found(arg))
				return true;
			__builtin_ia32_pause();
		}
		last = now;
		now = now_ns();
		if (now - last > ASIDE_NS) {
			shrink(spin);
			break;
		}
	} while (now - spin->began < spin->window);
	return false;
}

static bool enter(_Atomic unsigned *those, unsigned most)
{
	if (atomic_fetch_add(those, 1) < most)
		return true;
	atomic_fetch_sub(those, 1);
	return false;
}

bool spin_wait(struct spin *spin, struct spin_room *room, bool kernel, bool (*found)(void *arg),
	       void *arg)
{
	bool yes = found(arg);

	if (yes)
		return true;
	spin->began = now_ns();
	if (spin->window == 0)
		return false;
	if (enter(&room->inside, room->most)) {
		yes = look(spin, found, arg);
		atomic_fetch_sub(&room->inside, 1);
	} else if (kernel && room->most > 0 && enter(&room->awaiting, 1)) {
		yes = look(spin, found, arg);
		atomic_fetch_sub(&room->awaiting, 1);
	}
	return yes;
}

void spin_slept(struct spin *spin)
{
	uint64_t all = now_ns() - spin->began;

	if (all > SPIN_MAX_NS)
		shrink(spin);
	else if (spin->window == 0)
		spin->window = FIRST_NS;
	else
		spin->window = spin->window < SPIN_MAX_NS / 2 ? 2 * spin->window : SPIN_MAX_NS;
}
