/* Samples of guest blocks, and the map of the code cache for perf(1): see profile.h. */
#include "engine/soft/profile.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "vmm/vm.h"

#define SAMPLE_NS 1000000   /* of a thread's CPU time; the host's tick may be coarser */
#define SAMPLES_MAX 4000000 /* an hour of one CPU; memory is taken as they come */
#define LINES_MAX 1000	    /* blocks in the file */

struct sample {
	uint64_t rip, gpa; /* of the block */
	uint16_t len, ninsns;
	bool translated; /* false: the thread was in the engine's or the monitor's own code */
	bool user;
};

struct soft_profile {
	FILE *file; /* NULL: no samples */
	FILE *map;  /* NULL: no map */
	struct sample *samples;
	_Atomic uint32_t nsamples; /* asked for: more than SAMPLES_MAX were not kept */
	timer_t timer[64];
	bool timer_made[64];
};

static int map_open(struct soft_profile *profile, struct error *err)
{
	char path[64];
	int fd;

	/* Where perf looks for it. Everybody can write there, so nobody's link is followed. */
	snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)getpid());
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
	if (fd >= 0)
		profile->map = fdopen(fd, "w");
	if (!profile->map) {
		int error = errno;

		if (fd >= 0)
			close(fd);
		return error_set(err, error, "soft.perfmap: cannot write %s: %s", path,
				 strerror(error));
	}
	setlinebuf(profile->map);
	return 0;
}

static void take_sample(int signo, siginfo_t *info, void *context)
{
	const ucontext_t *uc = context;
	struct soft_cpu *cpu = info->si_value.sival_ptr;
	struct soft_profile *profile;
	const struct soft_block *block;
	struct sample *sample;
	uint32_t n;

	(void)signo;
	if (info->si_code != SI_TIMER) /* somebody's kill(2) */
		return;
	profile = cpu->svm->profile;
	n = atomic_fetch_add(&profile->nsamples, 1);
	if (n >= SAMPLES_MAX) {
		atomic_store(&profile->nsamples, SAMPLES_MAX + 1);
		return;
	}
	sample = &profile->samples[n];
	block = block_at(cpu->svm, (void *)(uintptr_t)uc->uc_mcontext.gregs[REG_RIP]);
	if (!block)
		return;
	sample->rip = cpu->page_rip + (block->key.gpa & 0xfff);
	sample->gpa = block->key.gpa;
	sample->len = block->len;
	sample->ninsns = block->ninsns;
	sample->user = block->key.mode & MODE_USER;
	sample->translated = true;
}

static int samples_open(struct soft_profile *profile, const char *path, struct error *err)
{
	struct sigaction action = {.sa_sigaction = take_sample,
				   .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
	void *p;

	profile->file = fopen(path, "we");
	if (!profile->file)
		return error_set(err, errno, "soft.profile: cannot write %s: %s", path,
				 strerror(errno));
	p = mmap(NULL, SAMPLES_MAX * sizeof(*profile->samples), PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return error_set(err, ENOMEM, "soft.profile: out of memory");
	profile->samples = p;
	sigfillset(&action.sa_mask);
	if (sigaction(SIGPROF, &action, NULL))
		return error_set(err, errno, "soft.profile: cannot handle SIGPROF: %s",
				 strerror(errno));
	return 0;
}

static void profile_free(struct soft_profile *profile)
{
	if (profile->map)
		fclose(profile->map);
	if (profile->file)
		fclose(profile->file);
	if (profile->samples)
		munmap(profile->samples, SAMPLES_MAX * sizeof(*profile->samples));
	free(profile);
}

int profile_open(struct soft_profile **out, const char *path, bool map, struct error *err)
{
	struct soft_profile *profile;
	int ret = 0;

	if (!path && !map)
		return 0;
	profile = calloc(1, sizeof(*profile));
	if (!profile)
		return error_set(err, ENOMEM, "out of memory");
	if (map)
		ret = map_open(profile, err);
	if (!ret && path)
		ret = samples_open(profile, path, err);
	if (ret)
		profile_free(profile);
	else
		*out = profile;
	return ret;
}

int profile_thread_enter(struct soft_cpu *cpu)
{
	struct soft_profile *profile = cpu->svm->profile;
	const struct itimerspec every = {.it_interval.tv_nsec = SAMPLE_NS,
					 .it_value.tv_nsec = SAMPLE_NS};
	unsigned index = cpu->vcpu->index;
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID,
				 .sigev_signo = SIGPROF,
				 .sigev_value.sival_ptr = cpu};
	sigset_t set;

	if (!profile || !profile->file)
		return 0;
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &profile->timer[index]))
		return -errno;
	profile->timer_made[index] = true;
	sigemptyset(&set);
	sigaddset(&set, SIGPROF);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	return timer_settime(profile->timer[index], 0, &every, NULL) ? -errno : 0;
}

void profile_thread_leave(struct soft_cpu *cpu)
{
	struct soft_profile *profile = cpu->svm->profile;
	unsigned index = cpu->vcpu->index;

	if (!profile || !profile->timer_made[index])
		return;
	timer_delete(profile->timer[index]);
	profile->timer_made[index] = false;
}

void profile_block(struct soft_cpu *cpu, const struct soft_block *block)
{
	struct soft_vm *svm = cpu->svm;
	const char *whose = block->key.mode & MODE_USER ? "user" : "kernel";

	if (!svm->profile->map)
		return;
	fprintf(svm->profile->map, "%" PRIxPTR " %x %s 0x%" PRIx64 "\n",
		(uintptr_t)svm->code_rx + block->start, block->code_len, whose, cpu->rip);
	fprintf(svm->profile->map, "%" PRIxPTR " %x %s-cold 0x%" PRIx64 "\n",
		(uintptr_t)svm->code_rx + block->cold, block->cold_len, whose, cpu->rip);
}

/* ---- the file ------------------------------------------------------------------------------------------- */

/* A block is the same if its code is and it was executed at the same address. */
static int compare_blocks(const void *a, const void *b)
{
	const struct sample *x = a, *y = b;

	if (x->rip != y->rip)
		return x->rip < y->rip ? -1 : 1;
	if (x->gpa != y->gpa)
		return x->gpa < y->gpa ? -1 : 1;
	if (x->translated != y->translated)
		return x->translated - y->translated;
	return x->user - y->user;
}

struct hot {
	const struct sample *sample;
	uint32_t count;
};

static int compare_hot(const void *a, const void *b)
{
	const struct hot *x = a, *y = b;

	return (x->count < y->count) - (x->count > y->count);
}

static double per_cent(uint32_t part, uint32_t whole)
{
	return whole ? part * 100.0 / whole : 0;
}

static void print_hot(FILE *f, const struct hot *hot, uint32_t nhot, uint32_t nsamples)
{
	fprintf(f, "#samples       %%  CPL %18s %16s  bytes  insns\n", "guest RIP",
		"guest-physical");
	for (uint32_t i = 0; i < nhot && i < LINES_MAX; i++) {
		const struct sample *s = hot[i].sample;

		fprintf(f, "%8u  %6.2f    %d %#18" PRIx64 " %#16" PRIx64 "  %5u  %5u\n",
			hot[i].count, per_cent(hot[i].count, nsamples), s->user ? 3 : 0, s->rip,
			s->gpa, s->len, s->ninsns);
	}
}

static void print_profile(FILE *f, struct sample *samples, uint32_t n)
{
	struct hot *hot = calloc(n ? n : 1, sizeof(*hot));
	uint32_t nhot = 0, user = 0, kernel = 0;

	if (!hot) {
		fprintf(f, "# out of memory\n");
		return;
	}
	qsort(samples, n, sizeof(*samples), compare_blocks);
	for (uint32_t i = 0; i < n; i++) {
		if (!samples[i].translated)
			continue;
		*(samples[i].user ? &user : &kernel) += 1;
		if (!nhot || compare_blocks(hot[nhot - 1].sample, &samples[i]))
			hot[nhot++].sample = &samples[i];
		hot[nhot - 1].count++;
	}
	qsort(hot, nhot, sizeof(*hot), compare_hot);
	fprintf(f,
		"# %u samples: %.1f %% in translated user code, %.1f %% in translated kernel code, "
		"%.1f %% in skep itself\n",
		n, per_cent(user, n), per_cent(kernel, n), per_cent(n - user - kernel, n));
	print_hot(f, hot, nhot, n);
	free(hot);
}

void profile_close(struct soft_profile *profile)
{
	uint32_t n;

	if (!profile)
		return;
	n = atomic_load(&profile->nsamples);
	if (profile->file) {
		if (n > SAMPLES_MAX)
			fprintf(profile->file, "# only the first %u samples were kept\n",
				SAMPLES_MAX);
		print_profile(profile->file, profile->samples, n < SAMPLES_MAX ? n : SAMPLES_MAX);
	}
	profile_free(profile);
}
