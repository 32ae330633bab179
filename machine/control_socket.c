#include "machine/control_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define BACKLOG 8

void control_dirs(struct control_dirs *dirs)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	int n = 0;

	memset(dirs, 0, sizeof(*dirs));
	if (runtime != NULL && runtime[0] == '/')
		n = snprintf(dirs->path[0], CONTROL_PATH_MAX, "%s/skep", runtime);
	if (n < 0 || (size_t)n >= CONTROL_PATH_MAX)
		dirs->path[0][0] = '\0';
	snprintf(dirs->path[1], CONTROL_PATH_MAX, "/run/skep");
	snprintf(dirs->path[2], CONTROL_PATH_MAX, "/tmp/skep-%u", (unsigned)geteuid());
}

/* A directory that belongs to somebody else is none: anybody can make a name in /tmp, and there be asked, or
 * answer, in our place. */
static int dir_check(const char *path)
{
	struct stat st;

	if (lstat(path, &st) != 0)
		return -errno;
	if (!S_ISDIR(st.st_mode))
		return -ENOTDIR;
	return st.st_uid == geteuid() || st.st_uid == 0 ? 0 : -EPERM;
}

/* A directory of ours, made if need be. */
static int dir_use(const char *path)
{
	int rc;

	if (path[0] == '\0')
		return -ENAMETOOLONG;
	if (mkdir(path, 0700) != 0 && errno != EEXIST)
		return -errno;
	rc = dir_check(path);
	if (rc != 0)
		return rc;
	return access(path, W_OK | X_OK) == 0 ? 0 : -errno;
}

static int path_make(char out[CONTROL_PATH_MAX], const char *dir, const char *name,
		     const char *suffix, struct error *err)
{
	int n = snprintf(out, CONTROL_PATH_MAX, "%s/%s.%s", dir, name, suffix);

	if (n < 0 || (size_t)n >= CONTROL_PATH_MAX)
		return error_set(err, ENAMETOOLONG,
				 "the path of the control socket, %s/%s.%s, is longer than the %zu "
				 "bytes of a socket's name: choose a shorter name",
				 dir, name, suffix, CONTROL_PATH_MAX - 1);
	return 0;
}

/* Opens and locks the file; who let go of it may have removed it in between, hence the comparison. */
static int lock_take(const char *path, int *out)
{
	for (;;) {
		struct stat opened, named;
		int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

		if (fd < 0)
			return -errno;
		if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
			int rc = -errno;

			close(fd);
			return rc;
		}
		if (fstat(fd, &opened) == 0 && stat(path, &named) == 0 &&
		    opened.st_ino == named.st_ino && opened.st_dev == named.st_dev) {
			*out = fd;
			return 0;
		}
		close(fd);
	}
}

static void lock_describe(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	ssize_t n = fd >= 0 ? read(fd, buf, size - 1) : -1;

	buf[n > 0 ? n : 0] = '\0';
	buf[strspn(buf, "0123456789")] = '\0';
	if (buf[0] == '\0')
		snprintf(buf, size, "unknown");
	if (fd >= 0)
		close(fd);
}

static int listen_at(const char *path, struct error *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int rc;

	if (fd < 0)
		return error_set(err, errno, "control socket: %s", strerror(errno));
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	unlink(path);
	/* bind(2) makes the file with the socket's own mode: there is no moment with a wider one. */
	if (fchmod(fd, 0600) != 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0 ||
	    listen(fd, BACKLOG) != 0) {
		rc = error_set(err, errno, "control socket %s: %s", path, strerror(errno));
		close(fd);
		return rc;
	}
	return fd;
}

static int claim_in(struct control_socket *sock, const char *dir, const char *name,
		    struct error *err)
{
	char text[24];
	int rc = path_make(sock->path, dir, name, "sock", err);

	if (rc == 0)
		rc = path_make(sock->lock_path, dir, name, "lock", err);
	if (rc != 0)
		return rc;
	rc = lock_take(sock->lock_path, &sock->lock_fd);
	if (rc == -EWOULDBLOCK) {
		lock_describe(sock->lock_path, text, sizeof(text));
		return error_set(
			err, EEXIST,
			"a VM named '%s' is running (process %s): choose another name, or end "
			"it with skepctl %s stop",
			name, text, name);
	}
	if (rc != 0)
		return error_set(err, -rc, "%s: %s", sock->lock_path, strerror(-rc));
	snprintf(text, sizeof(text), "%d\n", (int)getpid());
	if (ftruncate(sock->lock_fd, 0) != 0 || write(sock->lock_fd, text, strlen(text)) < 0)
		rc = error_set(err, errno, "%s: %s", sock->lock_path, strerror(errno));
	else
		rc = sock->fd = listen_at(sock->path, err);
	if (rc < 0) {
		unlink(sock->lock_path);
		close(sock->lock_fd);
		sock->fd = -1;
		return rc;
	}
	return 0;
}

int control_socket_claim(struct control_socket *sock, const char *name, struct error *err)
{
	struct control_dirs dirs;
	char why[3 * CONTROL_PATH_MAX + 128] = "";
	size_t used = 0;

	*sock = (struct control_socket){.fd = -1, .lock_fd = -1};
	control_dirs(&dirs);
	for (unsigned i = 0; i < CONTROL_DIRS; i++) {
		int rc = dir_use(dirs.path[i]);

		if (rc == 0)
			return claim_in(sock, dirs.path[i], name, err);
		if (dirs.path[i][0] != '\0' && used < sizeof(why))
			used += (size_t)snprintf(why + used, sizeof(why) - used, "%s%s: %s",
						 used == 0 ? "" : "; ", dirs.path[i],
						 strerror(-rc));
	}
	return error_set(err, EACCES, "no directory for a control socket (%s)", why);
}

void control_socket_release(struct control_socket *sock)
{
	if (sock->fd < 0)
		return;
	/* In this order: while the lock is held nobody else can have made the two. */
	unlink(sock->path);
	unlink(sock->lock_path);
	close(sock->fd);
	close(sock->lock_fd);
	sock->fd = -1;
}

static int connect_to(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0) {
		int rc = -errno;

		close(fd);
		return rc;
	}
	return fd;
}

int control_socket_connect(const char *name, struct error *err)
{
	struct control_dirs dirs;
	char path[CONTROL_PATH_MAX];

	control_dirs(&dirs);
	for (unsigned i = 0; i < CONTROL_DIRS; i++) {
		if (dirs.path[i][0] == '\0' || dir_check(dirs.path[i]) != 0 ||
		    path_make(path, dirs.path[i], name, "sock", err) != 0)
			continue;

		int fd = connect_to(path);

		if (fd >= 0)
			return fd;
		if (fd != -ENOENT && fd != -ECONNREFUSED && fd != -ENOTDIR)
			return error_set(err, -fd, "%s: %s", path, strerror(-fd));
	}
	return error_set(err, ENOENT,
			 "no VM named '%s' is running; skepctl list shows those that are", name);
}
