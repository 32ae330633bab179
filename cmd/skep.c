/*
 * skep: runs a virtual machine.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/console/console.h"
#include "base/config.h"
#include "base/log.h"
#include "base/loop.h"
#include "cmd/options.h"
#include "cmd/title.h"
#include "machine/control.h"
#include "machine/control_socket.h"
#include "machine/pc.h"

/* bhyve's status after config.dump=1; 0 would make scripts that restart a VM that rebooted loop. */
#define STATUS_DUMPED 1
#define STATUS_REFUSED VM_END_ERROR

static const int end_signals[] = {SIGTERM, SIGINT, SIGHUP};
#define END_SIGNALS (sizeof(end_signals) / sizeof(end_signals[0]))

struct run {
	int argc;
	char **argv;
	struct config *config;
	struct log log;
	struct control_socket sock;
	struct pc *pc;
	struct control *control;
	struct loop_signal signal[END_SIGNALS];
	bool end_asked; /* a signal has pressed the power button */
};

/* The first asks the guest to shut down, if it listens; the second does not ask. */
static void on_end_signal(void *arg, int signo)
{
	struct run *run = arg;
	struct vm *vm = pc_vm(run->pc);

	if (!run->end_asked && vm->power_button != NULL && vm->power_button(vm->power_button_arg)) {
		run->end_asked = true;
		log_info(&run->log, "%s: pressed the power button; once more ends the VM at once",
			 strsignal(signo));
		return;
	}
	log_info(&run->log, "%s: the VM ends", strsignal(signo));
	vm_request(vm, VM_END_POWEROFF);
}

/* The way out when skep itself fails or is killed: the shell's terminal must not stay raw. */
static void on_crash(int signo)
{
	console_restore_terminal();
	raise(signo); /* the default action, by SA_RESETHAND, once this returns */
}

/* Does this signal's default action end the process? (signal(7); the real-time ones do.) */
static bool signal_ends(int signo)
{
	switch (signo) {
	case SIGKILL: /* cannot be taken */
	case SIGCHLD:
	case SIGCONT:
	case SIGSTOP:
	case SIGTSTP:
	case SIGTTIN:
	case SIGTTOU:
	case SIGURG:
	case SIGWINCH:
		return false;
	default:
		return true;
	}
}

static void signals_prepare(void)
{
	struct sigaction crash = {.sa_handler = on_crash, .sa_flags = SA_RESETHAND}, old;
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < END_SIGNALS; i++)
		sigaddset(&set, end_signals[i]);
	pthread_sigmask(SIG_BLOCK, &set, NULL); /* threads inherit it; the event loop takes them */
	/* A reader that went and a file that may not grow are the console's to deal with. */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	for (int signo = 1; signo <= SIGRTMAX; signo++)
		/* A sanitizer's own handler tells more. */
		if (signal_ends(signo) && !sigismember(&set, signo) &&
		    sigaction(signo, NULL, &old) == 0 && old.sa_handler == SIG_DFL)
			sigaction(signo, &crash, NULL);
}

static int signals_take(struct run *run, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < END_SIGNALS && rc == 0; i++)
		rc = loop_signal_add(pc_vm(run->pc)->loop, &run->signal[i], end_signals[i],
				     on_end_signal, run, err);
	return rc;
}

/* A VM without a control socket is better than none, unless its name is taken. */
static int claim_name(struct run *run, const char *name, struct error *err)
{
	int rc = control_socket_claim(&run->sock, name, err);

	if (rc != -EACCES)
		return rc;
	log_warn(&run->log,
		 "%s: skepctl cannot reach this VM; set XDG_RUNTIME_DIR to a directory of "
		 "yours",
		 err->text);
	err->text[0] = '\0';
	return 0;
}

static int start(struct run *run, struct error *err)
{
	const char *name = config_get(run->config, "name");
	char text[512];
	bool quiet;
	int rc = config_get_bool(run->config, "quiet", false, &quiet, err);

	if (rc == 0)
		rc = claim_name(run, name, err);
	if (rc == 0)
		rc = pc_create(&run->pc, run->config, &run->log, err);
	if (rc == 0)
		rc = control_create(&run->control, pc_vm(run->pc), &run->sock, err);
	if (rc == 0)
		rc = signals_take(run, err);
	if (rc != 0)
		return rc;
	snprintf(text, sizeof(text), "skep: %s", name);
	title_set(run->argc, run->argv, text);
	if (!quiet)
		log_info(&run->log, "%s", pc_describe(run->pc, text, sizeof(text)));
	return 0;
}

static void finish(struct run *run)
{
	control_destroy(run->control);
	if (run->pc != NULL)
		for (size_t i = 0; i < END_SIGNALS; i++)
			loop_signal_del(&run->signal[i]);
	if (run->pc != NULL)
		pc_destroy(run->pc);
	control_socket_release(&run->sock);
	console_restore_terminal();
}

static int run_vm(struct config *config, int argc, char *argv[])
{
	struct run *run = calloc(1, sizeof(*run));
	struct error err = {""};
	bool stats = false;
	int status = STATUS_REFUSED;

	if (run == NULL) {
		fprintf(stderr, "skep: out of memory\n");
		return STATUS_REFUSED;
	}
	run->argc = argc;
	run->argv = argv;
	run->config = config;
	run->sock.fd = -1;
	log_init(&run->log, STDERR_FILENO, LOG_INFO);
	signals_prepare();

	int rc = config_get_bool(config, "stats", false, &stats, &err);

	if (rc == 0)
		rc = start(run, &err);
	if (rc == 0) {
		status = vm_run(pc_vm(run->pc)) & 0xff;
		console_restore_terminal();
		if (stats)
			vm_print_stats(pc_vm(run->pc), stderr);
	}
	finish(run);
	if (rc != 0)
		fprintf(stderr, "skep: %s\n", err.text);
	free(run);
	return status;
}

int main(int argc, char *argv[])
{
	struct config *config = config_create();
	enum options_action action;
	struct error err = {""};
	int status = 0;

	if (config == NULL || options_parse(config, argc, argv, &action, &err) != 0) {
		fprintf(stderr, "skep: %s\n", config != NULL ? err.text : "out of memory");
		config_destroy(config);
		return STATUS_REFUSED;
	}
	switch (action) {
	case OPTIONS_RUN:
		status = run_vm(config, argc, argv);
		break;
	case OPTIONS_HELP:
		options_usage(stdout);
		break;
	case OPTIONS_PCI_HELP:
		options_pci_help(stdout);
		break;
	case OPTIONS_LPC_HELP:
		options_lpc_help(stdout);
		break;
	case OPTIONS_DUMP:
		config_dump(config, stdout);
		status = STATUS_DUMPED;
		break;
	}
	config_destroy(config);
	return status;
}
