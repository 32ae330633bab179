/*
 * The benchmark program: one static binary that is measured as a process of the host and as /init of a guest, so
 * that both execute the same bytes. `rows NAME,NAME..` runs these rows; as /init it takes the list from bench=
 * on the kernel's command line. Each row runs in a process of its own, so that no row's memory weighs on the next, and
 * prints "ROW name nanoseconds": the time of one operation, or of one run of a program. BENCH-END comes last.
 *
 * What disturbs a row on a busy machine only ever adds to its time, and comes in pieces of milliseconds. So a row is
 * measured in many short batches, and the figure is the time that a tenth of them kept to.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BATCH_NS 2000000ull /* a batch is at least as long */
#define BATCHES 200
#define BATCHES_MIN 3
#define ROW_NS 500000000ull	 /* no new batch after this */
#define PROGRAM_RUNS 3		 /* the fastest of them counts; of a program ... */
#define PROGRAM_NS 1500000000ull /* ... no new run after this */
#define TSC_NS 40000000ull
#define LINE 64

static volatile uint64_t sink;

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Pages of 4 KiB on both sides: hosts and guests differ in when they give out huge ones. */
static void *map_pages(size_t len)
{
	uint8_t *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		perror("rows: mmap");
		exit(1);
	}
	madvise(p, len, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < len; i += 4096)
		p[i] = 1;
	return p;
}

/* ---- user code -------------------------------------------------------------------------------------- */

static void row_loop(unsigned n)
{
	uint64_t x = sink | 1;

	for (unsigned i = 0; i < n * 1000; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		x += i & 5 ? 3 : x >> 60;
	}
	sink = x;
}

static void row_crc(unsigned n)
{
	static uint32_t table[256];
	static uint8_t data[1000];
	uint32_t crc = ~0u;

	if (!table[1])
		for (unsigned i = 0; i < 256; i++) {
			uint32_t c = i;

			for (unsigned k = 0; k < 8; k++)
				c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
			table[i] = c;
			data[i] = (uint8_t)(i * 7);
		}
	while (n--)
		for (unsigned i = 0; i < sizeof(data); i++)
			crc = table[(crc ^ data[i]) & 255] ^ crc >> 8;
	sink = crc;
}

static __attribute__((noinline)) unsigned fib(unsigned n)
{
	__asm__ volatile(""); /* keeps the calls calls */
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static void row_calls(unsigned n)
{
	while (n--)
		sink += fib(18);
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void row_qsort(unsigned n)
{
	static uint32_t v[20000];
	uint32_t x = 12345;

	while (n--) {
		for (unsigned i = 0; i < 20000; i++)
			v[i] = x = x * 1664525u + 1013904223u;
		qsort(v, 20000, sizeof(v[0]), compare);
	}
	sink = v[77];
}

static void row_dgemm(unsigned n)
{
	enum { N = 96 };
	static double a[N][N], b[N][N], c[N][N];

	for (unsigned i = 0; i < N; i++)
		for (unsigned j = 0; j < N; j++)
			a[i][j] = i + j, b[i][j] = i - j * 0.5, c[i][j] = 0;
	while (n--)
		for (unsigned i = 0; i < N; i++)
			for (unsigned k = 0; k < N; k++)
				for (unsigned j = 0; j < N; j++)
					c[i][j] += a[i][k] * b[k][j];
	sink = (uint64_t)c[3][4];
}

static void row_sincos(unsigned n)
{
	double x = 0.1, sum = 0;

	for (unsigned i = 0; i < n * 1000; i++, x += 0.37)
		sum += sin(x) + sqrt(x);
	sink = (uint64_t)sum;
}

typedef uint64_t vec __attribute__((vector_size(16)));

static void row_simdcopy(unsigned n)
{
	static vec from[1024], to[1024];

	while (n--) {
		for (unsigned i = 0; i < 1024; i++)
			to[i] = from[i] + (vec){1, 2};
		__asm__ volatile("" ::: "memory");
	}
	sink = to[5][0];
}

static void row_memcpy(unsigned n)
{
	static uint8_t *from, *to;

	if (!from) {
		from = map_pages(8 << 20);
		to = map_pages(8 << 20);
		memset(from, 1, 8 << 20);
		memset(to, 1, 8 << 20);
	}
	while (n--) {
		memcpy(to, from, 8 << 20);
		__asm__ volatile("" ::: "memory");
	}
}

/* One cycle through all lines, in an order that no prefetcher knows: a linear congruential generator whose
 * period is the (power of two) number of lines. */
static void chase(unsigned n, size_t bytes)
{
	static void **at;

	if (!at) {
		size_t lines = bytes / LINE;
		uint8_t *p = map_pages(bytes);

		for (size_t i = 0; i < lines; i++) {
			size_t next = (i * 1664525 + 1013904223) % lines;

			*(void **)(p + i * LINE) = p + next * LINE;
		}
		at = (void **)p;
	}
	for (unsigned i = 0; i < n * 1000; i++)
		at = *at;
	sink = (uintptr_t)at;
}

static void row_chase64k(unsigned n)
{
	chase(n, 64 << 10);
}

static void row_chase8m(unsigned n)
{
	chase(n, 8 << 20);
}

static void row_chase256m(unsigned n)
{
	chase(n, 256 << 20);
}

/* One load from each of 16384 pages, over and over. */
static void row_stride(unsigned n)
{
	static volatile uint8_t *p;
	unsigned sum = 0;

	if (!p)
		p = map_pages(64 << 20);
	while (n--)
		for (size_t i = 0; i < 16384; i++)
			sum += p[i * 4096 + i % 64 * 64];
	sink = sum;
}

/* ---- the kernel's ------------------------------------------------------------------------------------ */

static void row_syscall(unsigned n)
{
	while (n--)
		syscall(SYS_getppid);
}

static void on_signal(int sig)
{
	sink += (unsigned)sig;
}

static void row_signal(unsigned n)
{
	signal(SIGUSR1, on_signal);
	while (n--)
		raise(SIGUSR1);
}

static void row_pagefault(unsigned n)
{
	while (n--) {
		uint8_t *p = mmap(NULL, 512 * 4096, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		madvise(p, 512 * 4096, MADV_NOHUGEPAGE);
		for (unsigned i = 0; i < 512; i++)
			p[i * 4096] = 1;
		munmap(p, 512 * 4096);
	}
}

static void row_mmap(unsigned n)
{
	while (n--)
		munmap(mmap(NULL, 65536, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 65536);
}

static void row_fork(unsigned n)
{
	while (n--) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		waitpid(pid, NULL, 0);
	}
}

static void row_exec(unsigned n)
{
	while (n--) {
		pid_t pid = vfork();

		if (!pid) {
			execl("/init", "rows", "nothing", (char *)NULL);
			_exit(1);
		}
		waitpid(pid, NULL, 0);
	}
}

static void pin(pthread_t thread, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	pthread_setaffinity_np(thread, sizeof(set), &set);
}

/* For rows that prepare something first: a batch is what lies between the two. */
static uint64_t batch_from, batch_to;

/* Two processes on one CPU: two context switches there and back. */
static void row_pipe(unsigned n)
{
	int there[2], back[2];
	char c = 0;
	bool up;

	if (pipe(there) || pipe(back))
		return;
	pin(pthread_self(), 0);
	pid_t pid = fork();
	if (!pid) {
		close(there[1]);
		while (read(there[0], &c, 1) == 1 && write(back[1], &c, 1) == 1)
			;
		_exit(0);
	}
	up = write(there[1], &c, 1) == 1 && read(back[0], &c, 1) == 1;
	batch_from = now();
	while (up && n-- && write(there[1], &c, 1) == 1 && read(back[0], &c, 1) == 1)
		;
	batch_to = now();
	close(there[0]), close(there[1]);
	waitpid(pid, NULL, 0);
	close(back[0]), close(back[1]);
}

static void *thread_nothing(void *arg)
{
	return arg;
}

static void row_thread(unsigned n)
{
	pthread_t t;

	while (n--)
		if (!pthread_create(&t, NULL, thread_nothing, NULL))
			pthread_join(t, NULL);
}

static _Atomic uint32_t turn;

static void hand_over(uint32_t me, unsigned n)
{
	while (n--) {
		while (atomic_load(&turn) != me)
			syscall(SYS_futex, &turn, FUTEX_WAIT, !me, NULL, NULL, 0);
		atomic_store(&turn, !me);
		syscall(SYS_futex, &turn, FUTEX_WAKE, 1, NULL, NULL, 0);
	}
}

static void *futex_other(void *arg)
{
	pin(pthread_self(), 1);
	hand_over(1, *(unsigned *)arg);
	return NULL;
}

/* Two threads on two CPUs wake each other. */
static void row_futex(unsigned n)
{
	pthread_t t;

	pin(pthread_self(), 0);
	n += 1;
	if (pthread_create(&t, NULL, futex_other, &n))
		return;
	hand_over(0, 1);
	batch_from = now();
	hand_over(0, n - 1);
	batch_to = now();
	pthread_join(t, NULL);
}

static void row_timer(unsigned n)
{
	struct timespec ts = {.tv_nsec = 1000};

	prctl(PR_SET_TIMERSLACK, 1);
	while (n--)
		clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
}

/* ---- programs ------------------------------------------------------------------------------------------ */

static uint64_t run(const char *const argv[])
{
	uint64_t start = now();
	pid_t pid = vfork();
	int status = 1;

	if (!pid) {
		int null = open("/dev/null", O_RDWR | O_CREAT, 0600);

		dup2(null, 0), dup2(null, 1), dup2(null, 2);
		execv(argv[0], (char **)argv);
		_exit(127);
	}
	waitpid(pid, &status, 0);
	return status ? 0 : now() - start;
}

static const struct program {
	const char *name;
	bool first; /* its first run counts, with whatever it takes to load and translate it */
	const char *argv[10];
} programs[] = {
	{"gzip", false, {"/bin/gzip", "-9", "-k", "-f", "/data/text"}},
	{"xz", false, {"/bin/xz", "-1", "-k", "-f", "/data/text"}},
	{"python-start", false, {"/bin/python3", "-c", "0"}},
	{"python-loop",
	 false,
	 {"/bin/python3", "-c", "s=0\nfor i in range(1000000):\n s=(s*3+i)&65535\n"}},
	{"gcc",
	 true,
	 {"/bin/cc1", "-quiet", "-fpreprocessed", "-O2", "/data/source.i", "-o", "/data/source.s"}},
	{"gcc-again",
	 false,
	 {"/bin/cc1", "-quiet", "-fpreprocessed", "-O2", "/data/source.i", "-o", "/data/source.s"}},
};

static uint64_t run_program(const struct program *program)
{
	uint64_t begin = now(), best = run(program->argv);

	for (unsigned i = 1; i < PROGRAM_RUNS && !program->first; i++) {
		uint64_t took;

		if (!best || now() - begin > PROGRAM_NS)
			break;
		took = run(program->argv);
		best = took < best ? took : best;
	}
	return best;
}

/* openssl says itself how much it did in a second. */
static uint64_t openssl_ns(const char *cipher)
{
	char line[256];
	volatile double last = 0;
	int out[2];
	pid_t pid;

	if (access("/bin/openssl", X_OK) || pipe(out))
		return 0;
	pid = vfork();
	if (!pid) {
		dup2(out[1], 1);
		close(out[0]), close(out[1]);
		dup2(open("/dev/null", O_RDWR), 2);
		execl("/bin/openssl", "openssl", "speed", "-elapsed", "-mr", "-seconds", "1",
		      "-bytes", "8192", "-evp", cipher, (char *)NULL);
		_exit(127);
	}
	close(out[1]);
	FILE *f = fdopen(out[0], "r");
	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, "+F:", 3) && strrchr(line, ':'))
			last = atof(strrchr(line, ':') + 1);
	if (f)
		fclose(f);
	waitpid(pid, NULL, 0);
	return last > 0 ? (uint64_t)(8192e9 / last) : 0;
}

/* ---- scaling: the time of one thread and of two, as thousandths of one --------------------------------- */

static _Atomic unsigned ready;

static void *scale_work(void *arg)
{
	int cpu = (int)(intptr_t)arg;

	pin(pthread_self(), cpu);
	atomic_fetch_add(&ready, 1);
	while (atomic_load(&ready) < 2)
		;
	uint64_t x = 1;
	for (unsigned i = 0; i < 50000000; i++)
		x = (x ^ x >> 7) * 9 + i;
	sink = x;
	return NULL;
}

static uint64_t scale_ns(bool two)
{
	pthread_t a, b;
	uint64_t start;

	atomic_store(&ready, !two);
	start = now();
	if (two && pthread_create(&b, NULL, scale_work, (void *)1))
		return 0;
	if (pthread_create(&a, NULL, scale_work, (void *)0))
		return 0;
	pthread_join(a, NULL);
	if (two)
		pthread_join(b, NULL);
	return now() - start;
}

static uint64_t scale(void)
{
	uint64_t best[2] = {~0ull, ~0ull};

	for (unsigned i = 0; i < 6; i++) {
		uint64_t took = scale_ns(i & 1);

		best[i & 1] = took < best[i & 1] ? took : best[i & 1];
	}
	return best[1] * 1000 / best[0];
}

/* ---- whole systems: a fixed piece of everything --------------------------------------------------------- */

static void row_mix(unsigned n)
{
	while (n--) {
		row_loop(10000);
		row_qsort(20);
		row_simdcopy(10000);
		row_syscall(20000);
		row_pagefault(20);
		row_fork(50);
		row_exec(20);
		row_thread(50);
	}
}

/* As many processes as a guest with four CPUs has. */
static void row_mix4(unsigned n)
{
	while (n--) {
		for (unsigned i = 0; i < 4; i++)
			if (!fork()) {
				row_mix(1);
				_exit(0);
			}
		for (unsigned i = 0; i < 4; i++)
			wait(NULL);
	}
}

/* ---- rows --------------------------------------------------------------------------------------------- */

static const struct row {
	const char *name;
	void (*fn)(unsigned n);
	unsigned per; /* operations in a unit of n */
} rows[] = {
	{"loop", row_loop, 1000},
	{"crc", row_crc, 1000},
	{"calls", row_calls, 8361},
	{"qsort", row_qsort, 1},
	{"dgemm", row_dgemm, 1},
	{"sincos", row_sincos, 1000},
	{"simdcopy", row_simdcopy, 1},
	{"memcpy", row_memcpy, 1},
	{"chase64k", row_chase64k, 1000},
	{"chase8m", row_chase8m, 1000},
	{"chase256m", row_chase256m, 1000},
	{"stride", row_stride, 16384},
	{"syscall", row_syscall, 1},
	{"signal", row_signal, 1},
	{"pagefault", row_pagefault, 512},
	{"mmap", row_mmap, 1},
	{"fork", row_fork, 1},
	{"exec", row_exec, 1},
	{"pipe", row_pipe, 1},
	{"thread", row_thread, 1},
	{"futex", row_futex, 1},
	{"timer", row_timer, 1},
	{"mix4", row_mix4, 1},
};

static uint64_t batch(const struct row *row, unsigned n)
{
	batch_from = now();
	batch_to = 0;
	row->fn(n);
	return (batch_to ? batch_to : now()) - batch_from;
}

/* How often in a batch, as the row itself tells; by three runs, as one may have been interrupted. */
static unsigned batch_size(const struct row *row)
{
	unsigned n = 1;

	row->fn(1); /* what is made once, and the translation */
	for (;;) {
		uint64_t took = ~0ull;

		for (unsigned i = 0; i < 3 && took >= BATCH_NS; i++)
			took = batch(row, n);
		if (took >= BATCH_NS)
			return n;
		n = took < BATCH_NS / 16 ? n * 8 : n * 2;
	}
}

static int compare_times(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static double measure(const struct row *row)
{
	uint64_t begin = now(), took[BATCHES];
	unsigned n = batch_size(row), batches = 0;

	while (batches < BATCHES && (batches < BATCHES_MIN || now() - begin < ROW_NS))
		took[batches++] = batch(row, n);
	qsort(took, batches, sizeof(took[0]), compare_times);
	return (double)took[batches / 10] / n / row->per;
}

/* TSC ticks in a million: a kernel that is told needs not find out. */
static double tsc_khz(void)
{
	uint64_t start = now(), tsc = __builtin_ia32_rdtsc(), took;

	do
		took = now() - start;
	while (took < TSC_NS);
	return (double)(__builtin_ia32_rdtsc() - tsc) * 1e6 / (double)took;
}

static double value_of(const char *name)
{
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (!strcmp(rows[i].name, name))
			return measure(&rows[i]);
	for (unsigned i = 0; i < sizeof(programs) / sizeof(programs[0]); i++)
		if (!strcmp(programs[i].name, name) && !access(programs[i].argv[0], X_OK))
			return (double)run_program(&programs[i]);
	if (!strcmp(name, "aes-gcm"))
		return (double)openssl_ns("aes-128-gcm");
	if (!strcmp(name, "sha256"))
		return (double)openssl_ns("sha256");
	if (!strcmp(name, "scale"))
		return (double)scale();
	if (!strcmp(name, "tsc-khz"))
		return tsc_khz();
	if (!strcmp(name, "work"))
		row_mix(4);
	if (!strcmp(name, "sleep"))
		sleep(1000);
	return 0;
}

static void run_named(const char *name)
{
	pid_t pid = fork();

	if (!pid) {
		printf("ROW %s %.3f\n", name, value_of(name));
		fflush(stdout);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
}

static const char *init_list(char *line, int size)
{
	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	FILE *f = fopen("/proc/cmdline", "r");
	if (!f || !fgets(line, size, f))
		return "";
	fclose(f);
	char *list = strstr(line, "bench=");
	if (!list)
		return "";
	list[strcspn(list, " \n")] = 0;
	return list + strlen("bench=");
}

int main(int argc, char **argv)
{
	char line[2048], list[2048];
	bool init = getpid() == 1;

	if (argc > 1 && !strcmp(argv[1], "nothing"))
		return 0;
	if (init)
		printf("BENCH-INIT\n");
	fflush(stdout);
	snprintf(list, sizeof(list), "%s",
		 init	    ? init_list(line, sizeof(line))
		 : argc > 1 ? argv[1]
			    : "");
	for (char *save, *name = strtok_r(list, ",", &save); name;
	     name = strtok_r(NULL, ",", &save))
		run_named(name);
	printf("BENCH-END\n");
	fflush(stdout);
	if (init)
		reboot(RB_POWER_OFF);
	return 0;
}
