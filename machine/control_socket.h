/*
 * Where the control sockets of running VMs are: NAME.sock in $XDG_RUNTIME_DIR/skep, in /run/skep, or, where
 * neither can be written, in /tmp/skep-UID. A running VM holds a lock on NAME.lock beside its socket, so that
 * a name is taken exactly as long as its process lives, however that ends; a socket without a locked
 * file beside it is stale.
 *
 * The protocol: a client sends one line, a command, and gets "ok\n" and the answer, or "error " and one
 * line for a person; then the server closes.
 */
#ifndef MACHINE_CONTROL_SOCKET_H
#define MACHINE_CONTROL_SOCKET_H

#include <stddef.h>
#include <sys/un.h>

#include "base/error.h"

#define CONTROL_DIRS 3
#define CONTROL_PATH_MAX sizeof(((struct sockaddr_un *)0)->sun_path)
#define CONTROL_COMMAND_MAX 64 /* bytes of a command line with its newline */

struct control_dirs {
	char path[CONTROL_DIRS][CONTROL_PATH_MAX]; /* empty: that one cannot be */
};

/* The directories in the order in which they are tried. */
void control_dirs(struct control_dirs *dirs);

/* A VM's claim on its name. */
struct control_socket {
	int fd; /* listening, non-blocking; -1: none */
	int lock_fd;
	char path[CONTROL_PATH_MAX];
	char lock_path[CONTROL_PATH_MAX];
};

/* Takes the name in the first directory that can be used, and listens there, mode 0600. A stale socket is
 * replaced. -EEXIST: a VM of this name runs; -EACCES: no directory can be used. With text. */
int control_socket_claim(struct control_socket *sock, const char *name, struct error *err);
/* Removes the socket and gives the name back. No-op for one that was not claimed (zeroed with fd -1). */
void control_socket_release(struct control_socket *sock);

/* Connects to the VM of this name; the descriptor, or -ENOENT with text if none runs. */
int control_socket_connect(const char *name, struct error *err);

#endif
