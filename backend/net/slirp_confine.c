/*
 * Landlock (Linux, Documentation/userspace-api/landlock.rst) and seccomp (seccomp_filter.rst). The filter is written by
 * hand: it is a list of numbers and a few checks of arguments, which is no work for a library.
 */
#include "backend/net/slirp_confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define X32_BIT 0x40000000u

/* Whatever their arguments. */
static const uint16_t allowed[] = {
	/* the sockets there are */
	SYS_accept,
	SYS_accept4,
	SYS_bind,
	SYS_close,
	SYS_connect,
	SYS_getpeername,
	SYS_getsockname,
	SYS_getsockopt,
	SYS_ioctl, /* FIONREAD, and none that means anything on what can be opened here */
	SYS_listen,
	SYS_recvfrom,
	SYS_recvmsg,
	SYS_sendmsg,
	SYS_sendto,
	SYS_setsockopt,
	SYS_shutdown,
	SYS_fcntl,
	SYS_poll,
	SYS_ppoll,
	/* /etc/resolv.conf, and a word of the libraries' on stderr */
	SYS_fstat,
	SYS_lseek,
	SYS_newfstatat,
	SYS_read,
	SYS_stat,
	SYS_write,
	SYS_writev,
	/* memory, time, and what the C library does by itself */
	SYS_brk,
	SYS_clock_gettime,
	SYS_clock_nanosleep,
	SYS_exit,
	SYS_exit_group,
	SYS_futex,
	SYS_getpid,
	SYS_getrandom,
	SYS_gettid,
	SYS_gettimeofday,
	SYS_madvise,
	SYS_mremap,
	SYS_munmap,
	SYS_restart_syscall,
	SYS_rt_sigaction,
	SYS_rt_sigprocmask,
	SYS_rt_sigreturn,
	SYS_sched_yield,
	SYS_sigaltstack,
	SYS_time,
};

/* Only if this argument, masked, is one of these values. The upper halves of these arguments mean nothing to the kernel. */
struct checked {
	uint16_t call;
	uint8_t arg, values;
	uint32_t mask, value[2];
};

#define WRITES (O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND | (O_TMPFILE & ~O_DIRECTORY))

static const struct checked checked[] = {
	{SYS_open, 1, 1, WRITES, {O_RDONLY}},
	{SYS_openat, 2, 1, WRITES, {O_RDONLY}},
	{SYS_mmap, 2, 1, PROT_EXEC, {0}},
	{SYS_mprotect, 2, 1, PROT_EXEC, {0}},
	{SYS_socket, 0, 2, ~0u, {AF_INET, AF_INET6}},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define LOAD(field) \
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, field))
#define LOAD_ARG(n)                        \
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, \
		 (uint32_t)(offsetof(struct seccomp_data, args) + 8 * (n)))
/* Skips instructions if A is, or is not, the value. */
#define IF_EQUAL(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define ANSWER(action) BPF_STMT(BPF_RET | BPF_K, action)

struct program {
	struct sock_filter code[8 + 2 * COUNT(allowed) + 8 * COUNT(checked)];
	unsigned short n;
};

static void emit(struct program *p, struct sock_filter instruction)
{
	p->code[p->n++] = instruction;
}

static void emit_checked(struct program *p, const struct checked *c)
{
	emit(p, (struct sock_filter)IF_EQUAL(c->call, 0, (uint8_t)(4 + c->values)));
	emit(p, (struct sock_filter)LOAD_ARG(c->arg));
	emit(p, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, c->mask));
	for (unsigned i = 0; i < c->values; i++)
		emit(p, (struct sock_filter)IF_EQUAL(c->value[i], (uint8_t)(c->values - i), 0));
	emit(p, (struct sock_filter)ANSWER(SECCOMP_RET_KILL_PROCESS));
	emit(p, (struct sock_filter)ANSWER(SECCOMP_RET_ALLOW));
}

static int filter_calls(void)
{
	struct program p = {.n = 0};
	struct sock_fprog fprog = {.filter = p.code};

	emit(&p, (struct sock_filter)LOAD(arch));
	emit(&p, (struct sock_filter)IF_EQUAL(AUDIT_ARCH_X86_64, 1, 0));
	emit(&p, (struct sock_filter)ANSWER(SECCOMP_RET_KILL_PROCESS));
	emit(&p, (struct sock_filter)LOAD(nr));
	/* Numbers of the x32 ABI are above the list and so are not on it. */
	_Static_assert(SYS_openat < X32_BIT, "x32");
	for (unsigned i = 0; i < COUNT(allowed); i++) {
		emit(&p, (struct sock_filter)IF_EQUAL(allowed[i], 0, 1));
		emit(&p, (struct sock_filter)ANSWER(SECCOMP_RET_ALLOW));
	}
	for (unsigned i = 0; i < COUNT(checked); i++)
		emit_checked(&p, &checked[i]);
	emit(&p, (struct sock_filter)ANSWER(SECCOMP_RET_KILL_PROCESS));
	fprog.len = p.n;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &fprog) == 0 ? 0 : -errno;
}

/* A kernel without Landlock: the filter alone. */
static void confine_files(void)
{
	struct landlock_ruleset_attr attr = {
		.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE |
				     LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR |
				     LANDLOCK_ACCESS_FS_REMOVE_DIR |
				     LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR |
				     LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |
				     LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |
				     LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM,
	};
	/* resolv.conf may be a link into /run. */
	static const char *const readable[] = {"/etc", "/run/systemd/resolve", "/run/resolvconf"};
	int set = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);

	for (unsigned i = 0; set >= 0 && i < COUNT(readable); i++) {
		struct landlock_path_beneath_attr rule = {
			.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE |
					  LANDLOCK_ACCESS_FS_READ_DIR,
			.parent_fd = open(readable[i], O_PATH | O_CLOEXEC),
		};

		if (rule.parent_fd < 0)
			continue;
		syscall(SYS_landlock_add_rule, set, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
		close(rule.parent_fd);
	}
	if (set >= 0) {
		syscall(SYS_landlock_restrict_self, set, 0);
		close(set);
	}
}

int slirp_confine(void)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		return -errno;
	prctl(PR_SET_DUMPABLE, 0);
	confine_files();
	return filter_calls();
}
