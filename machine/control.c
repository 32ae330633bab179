#include "machine/control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm/vm.h"

#define CLIENTS 8

struct client {
	struct control *control;
	struct loop_fd node;
	int fd;		  /* -1: free */
	uint64_t arrived; /* a sequence number: the smallest is the oldest */
	char in[CONTROL_COMMAND_MAX];
	size_t in_len;
	char *out; /* NULL while the command is awaited */
	size_t out_len, out_done;
};

struct control {
	struct vm *vm;
	struct loop_fd listener;
	bool listening;
	int reserve; /* a descriptor to give up when there are no others */
	bool paused; /* by us: vm_pause() nests */
	uint64_t arrivals;
	struct client client[CLIENTS];
};

/* A command: writes its answer to `out`, or refuses with text. */
struct command {
	const char *name;
	int (*run)(struct control *control, FILE *out, struct error *err);
	const char *help;
};

static int run_status(struct control *control, FILE *out, struct error *err)
{
	struct vm *vm = control->vm;
	uint64_t ms = vclock_now(vm->clock) / 1000000;

	(void)err;
	fprintf(out, "name %s\n", vm->name);
	fprintf(out, "state %s\n", vm_paused(vm) ? "paused" : "running");
	fprintf(out, "engine %s\n", vm->engine->name);
	fprintf(out, "vcpus %u\n", vm->topology.cpus);
	fprintf(out, "memory %llu\n", (unsigned long long)vm->memory.size);
	fprintf(out, "time %llu.%03u\n", (unsigned long long)(ms / 1000), (unsigned)(ms % 1000));
	fprintf(out, "process %d\n", (int)getpid());
	return 0;
}

static int run_pause(struct control *control, FILE *out, struct error *err)
{
	(void)out;
	if (control->paused)
		return error_set(err, EALREADY, "the VM is paused already");
	vm_pause(control->vm);
	control->paused = true;
	return 0;
}

static int run_resume(struct control *control, FILE *out, struct error *err)
{
	(void)out;
	if (!control->paused)
		return error_set(err, EALREADY, "the VM is not paused");
	control->paused = false;
	vm_resume(control->vm);
	return 0;
}

static int run_powerbutton(struct control *control, FILE *out, struct error *err)
{
	struct vm *vm = control->vm;

	(void)out;
	if (vm->power_button == NULL || !vm->power_button(vm->power_button_arg))
		return error_set(
			err, ENOTCONN,
			"the guest has not enabled ACPI and would not notice; stop ends it");
	return 0;
}

/* The chipset's NMI goes to every LINT1; systems let it in at the boot processor alone. */
static int run_nmi(struct control *control, FILE *out, struct error *err)
{
	struct vm *vm = control->vm;

	(void)out;
	(void)err;
	vm->engine->nmi_send(&vm->vcpu[0]);
	return 0;
}

static int run_reset(struct control *control, FILE *out, struct error *err)
{
	(void)out;
	(void)err;
	vm_request(control->vm, VM_END_RESET);
	return 0;
}

static int run_stop(struct control *control, FILE *out, struct error *err)
{
	(void)out;
	(void)err;
	vm_request(control->vm, VM_END_POWEROFF);
	return 0;
}

static int run_stats(struct control *control, FILE *out, struct error *err)
{
	(void)err;
	vm_print_stats(control->vm, out);
	return 0;
}

static int run_regs(struct control *control, FILE *out, struct error *err)
{
	struct vm *vm = control->vm;

	(void)err;
	for (unsigned i = 0; i < vm->topology.cpus; i++)
		vcpu_print(&vm->vcpu[i], NULL, out);
	return 0;
}

static const struct command commands[] = {
	{"status", run_status, "what the VM is and whether it runs"},
	{"pause", run_pause, "the VM stands still, its clock too"},
	{"resume", run_resume, "and goes on"},
	{"powerbutton", run_powerbutton, "press it: a guest that minds it powers off"},
	{"nmi", run_nmi, "press the NMI button"},
	{"reset", run_reset, "press the reset button"},
	{"stop", run_stop, "end the VM at once"},
	{"stats", run_stats, "counters"},
	{"regs", run_regs, "the vCPUs' registers"},
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static int command_run(struct control *control, const char *line, FILE *out, struct error *err)
{
	char names[COMMANDS * 16] = "";

	for (size_t i = 0; i < COMMANDS; i++) {
		if (strcmp(commands[i].name, line) == 0)
			return commands[i].run(control, out, err);
		strncat(names, " ", sizeof(names) - strlen(names) - 1);
		strncat(names, commands[i].name, sizeof(names) - strlen(names) - 1);
	}
	return error_set(err, EINVAL, "unknown command; there are:%s", names);
}

/* A line of a console's prompt. */
static void prompt_command(void *arg, const char *line, FILE *out)
{
	struct error err = {""};
	char *body = NULL;
	size_t len = 0;
	FILE *answer;

	if (strcmp(line, "help") == 0) {
		for (size_t i = 0; i < COMMANDS; i++)
			fprintf(out, "%-12s%s\n", commands[i].name, commands[i].help);
		fprintf(out, "^A c or ^D: back to the guest; ^A x: quit\n");
		return;
	}
	answer = open_memstream(&body, &len);
	if (answer == NULL)
		return;
	int rc = command_run(arg, line, answer, &err);

	if (fclose(answer) == 0)
		fprintf(out, "%s", rc != 0 ? err.text : len != 0 ? body : "ok");
	if (rc != 0 || len == 0)
		fputc('\n', out);
	free(body);
}

static void client_drop(struct client *client)
{
	loop_fd_del(&client->node);
	close(client->fd);
	free(client->out);
	client->fd = -1;
	client->out = NULL;
}

static void client_send(struct client *client)
{
	while (client->out_done < client->out_len) {
		ssize_t n = send(client->fd, client->out + client->out_done,
				 client->out_len - client->out_done, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			loop_fd_set(&client->node, EPOLLOUT);
			return;
		}
		if (n < 0)
			break;
		client->out_done += (size_t)n;
	}
	client_drop(client);
}

/* Runs the command; the whole answer is made at once, so that it is of one moment. */
static void client_answer(struct client *client, const char *line)
{
	struct error err = {""};
	char *body = NULL;
	size_t body_len = 0;
	FILE *out = open_memstream(&body, &body_len);

	if (out == NULL) {
		client_drop(client);
		return;
	}

	int rc = command_run(client->control, line, out, &err);

	if (fclose(out) != 0 || (rc == 0 && asprintf(&client->out, "ok\n%s", body) < 0) ||
	    (rc != 0 && asprintf(&client->out, "error %s\n", err.text) < 0)) {
		client->out = NULL;
		free(body);
		client_drop(client);
		return;
	}
	free(body);
	client->out_len = strlen(client->out);
	client->out_done = 0;
	client_send(client);
}

static void client_receive(struct client *client)
{
	ssize_t n = recv(client->fd, client->in + client->in_len,
			 sizeof(client->in) - client->in_len, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		client_drop(client);
		return;
	}
	client->in_len += (size_t)n;

	char *newline = memchr(client->in, '\n', client->in_len);

	if (newline == NULL && client->in_len < sizeof(client->in))
		return;
	if (newline == NULL)
		newline = client->in; /* too long to be a command: the empty one is refused too */
	*newline = '\0';
	client_answer(client, client->in);
}

static void client_event(void *arg, uint32_t events)
{
	struct client *client = arg;

	if (client->out != NULL && (events & (EPOLLERR | EPOLLHUP)) != 0)
		client_drop(client);
	else if (client->out != NULL)
		client_send(client);
	else
		client_receive(client);
}

static struct client *client_slot(struct control *control)
{
	struct client *oldest = &control->client[0];

	for (unsigned i = 0; i < CLIENTS; i++) {
		struct client *client = &control->client[i];

		if (client->fd < 0)
			return client;
		if (client->arrived < oldest->arrived)
			oldest = client;
	}
	client_drop(oldest);
	return oldest;
}

/* Out of descriptors: takes the caller with the one in reserve and hangs up. Left waiting, it would keep the
 * level-triggered loop spinning. */
static void refuse_one(struct control *control, int listener)
{
	close(control->reserve);

	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

	if (fd >= 0)
		close(fd);
	control->reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void accept_event(void *arg, uint32_t events)
{
	struct control *control = arg;
	int fd = accept4(control->listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	(void)events;
	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE)
			refuse_one(control, control->listener.fd);
		return;
	}

	struct client *client = client_slot(control);

	client->fd = fd;
	client->arrived = ++control->arrivals;
	client->in_len = client->out_len = client->out_done = 0;
	if (loop_fd_add(control->vm->loop, &client->node, fd, EPOLLIN, client_event, client) != 0) {
		close(fd);
		client->fd = -1;
	}
}

int control_create(struct control **out, struct vm *vm, const struct control_socket *sock,
		   struct error *err)
{
	struct control *control = calloc(1, sizeof(*control));

	if (control == NULL)
		return error_set(err, ENOMEM, "out of memory");
	control->vm = vm;
	for (unsigned i = 0; i < CLIENTS; i++) {
		control->client[i].control = control;
		control->client[i].fd = -1;
	}
	control->reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);

	int rc = sock->fd < 0 ? 0
			      : loop_fd_add(vm->loop, &control->listener, sock->fd, EPOLLIN,
					    accept_event, control);

	control->listening = rc == 0 && sock->fd >= 0;
	if (rc != 0) {
		close(control->reserve);
		free(control);
		return error_set(err, -rc, "control socket %s: %s", sock->path, strerror(-rc));
	}
	vm->command_arg = control;
	vm->command = prompt_command;
	*out = control;
	return 0;
}

void control_destroy(struct control *control)
{
	if (control == NULL)
		return;
	control->vm->command = NULL;
	if (control->listening)
		loop_fd_del(&control->listener);
	for (unsigned i = 0; i < CLIENTS; i++)
		if (control->client[i].fd >= 0)
			client_drop(&control->client[i]);
	if (control->paused)
		vm_resume(control->vm);
	if (control->reserve >= 0)
		close(control->reserve);
	free(control);
}
