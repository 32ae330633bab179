/*
 * The control server: what skepctl(8) talks to. It runs on the event loop, answers one command a
 * connection, holds a few connections with bounded buffers, and drops the oldest when another comes: a client
 * that says nothing or reads nothing keeps nobody else out.
 */
#ifndef MACHINE_CONTROL_H
#define MACHINE_CONTROL_H

#include "base/error.h"
#include "machine/control_socket.h"

struct control;
struct vm;

/* Serves a claimed socket, which it does not own, if there is one (its fd is not -1), and the prompts of consoles
 * (vm->command). */
int control_create(struct control **out, struct vm *vm, const struct control_socket *sock,
		   struct error *err);
/* On the loop thread or after vm_run(). Drops the connections; takes back a pause. */
void control_destroy(struct control *control);

#endif
