/*
 * The init of a guest that writes records to an ext4 file system on /dev/vda, each with fsync(2), and is killed while it does:
 * says how many of an earlier life are there ("kept N"), goes on behind them, and says each that fsync has confirmed
 * ("done N"). With the word "check" on the kernel's command line it says how many are there and powers off.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RECORD 512

static void die(const char *what)
{
	printf("failed: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	exit(1);
}

/* /modules/0.ko and so on, in the order in which they need each other. */
static void load_modules(void)
{
	char path[32];

	for (unsigned i = 0;; i++) {
		int fd;

		snprintf(path, sizeof(path), "/modules/%u.ko", i);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			return;
		if (syscall(SYS_finit_module, fd, "", 0) != 0)
			die(path);
		close(fd);
	}
}

/* Fills a record whose every byte depends on its number; FNV-1a of the rest is its last eight. */
static void record_make(uint8_t *record, uint64_t n)
{
	uint64_t x = n * 0x9e3779b97f4a7c15ull + 1, sum = 0xcbf29ce484222325ull;

	for (unsigned i = 0; i < RECORD - 8; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		record[i] = (uint8_t)x;
		sum = (sum ^ record[i]) * 0x100000001b3ull;
	}
	memcpy(record + RECORD - 8, &sum, 8);
}

static uint64_t count(int fd)
{
	uint8_t record[RECORD], wanted[RECORD];
	uint64_t n = 0;

	for (;; n++) {
		record_make(wanted, n);
		if (pread(fd, record, RECORD, (off_t)(n * RECORD)) != RECORD ||
		    memcmp(record, wanted, RECORD) != 0)
			return n;
	}
}

int main(int argc, char **argv)
{
	uint8_t record[RECORD];
	uint64_t n;
	int fd;

	mkdir("/dev", 0755);
	mkdir("/mnt", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	load_modules();
	for (unsigned i = 0; i < 1000 && access("/dev/vda", F_OK) != 0; i++)
		usleep(10000);
	if (mount("/dev/vda", "/mnt", "ext4", 0, "errors=panic") != 0)
		die("mount");
	fd = open("/mnt/records", O_RDWR | O_CREAT, 0600);
	if (fd < 0)
		die("open");
	n = count(fd);
	printf("kept %llu\n", (unsigned long long)n);
	fflush(stdout);
	if (argc > 1 && strcmp(argv[1], "check") == 0) {
		umount("/mnt");
		reboot(RB_POWER_OFF);
	}
	for (;; n++) {
		record_make(record, n);
		if (pwrite(fd, record, RECORD, (off_t)(n * RECORD)) != RECORD || fsync(fd) != 0)
			die("write");
		printf("done %llu\n", (unsigned long long)n);
		fflush(stdout);
	}
}
