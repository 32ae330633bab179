/*
 * virtio-console: serial ports without a UART (Virtual I/O Device 1.2, section 5.3), up to 16. Each has a name and a console
 * of the host (backend/console/console.h). The port named "console" is what the guest calls a console, hvc0; the
 * others are /dev/virtio-ports/NAME. It is port 0, which is the first one where none is named so, and the only one for a driver
 * without MULTIPORT. Input for a port waits until
 * the driver has it open. Left out: the size of the terminal, emergency write, hot-plugging ports; to the driver the host's
 * side is always open, and what is written while nobody is there is dropped.
 *
 * Keys: NAME=CONSOLE, where a path is short for unix=PATH, as in bhyve.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/console/console.h"
#include "devices/virtio/virtio.h"

#define CONSOLE_PORTS 16
#define CONSOLE_QUEUE_SIZE 64
#define CONSOLE_NAME "console"
#define PORT_NAME_MAX 63

#define CONSOLE_F_MULTIPORT (1ull << 1)

/* 5.3.4: struct virtio_console_config */
#define CONFIG_MAX_PORTS 4
#define CONFIG_LEN 12

#define QUEUE_CONTROL_RX 2
#define QUEUE_CONTROL_TX 3

/* 5.3.6.2 */
enum control_event {
	CONTROL_DEVICE_READY,
	CONTROL_DEVICE_ADD,
	CONTROL_DEVICE_REMOVE,
	CONTROL_PORT_READY,
	CONTROL_CONSOLE_PORT,
	CONTROL_RESIZE,
	CONTROL_PORT_OPEN,
	CONTROL_PORT_NAME,
};

/* Those that the driver is told */
#define CONTROL_DUE                                                                        \
	(1u << CONTROL_DEVICE_ADD | 1u << CONTROL_CONSOLE_PORT | 1u << CONTROL_PORT_OPEN | \
	 1u << CONTROL_PORT_NAME)

struct control {
	uint32_t id;
	uint16_t event, value;
};

struct console_state {
	struct virtio_state virtio;
	uint8_t due
		[CONSOLE_PORTS]; /* a bit for each control event that the driver has to be told */
	uint32_t written
		[CONSOLE_PORTS];   /* bytes of the next request that the host has taken already */
	bool open[CONSOLE_PORTS];  /* somebody in the guest has it open */
	bool added[CONSOLE_PORTS]; /* the driver was told that there is such a port */
};

struct port {
	struct vconsole *owner;
	unsigned index;
	char name[PORT_NAME_MAX + 1];
	struct console *console;
};

struct vconsole {
	struct virtio_device dev;
	struct console_state state;
	struct port port[CONSOLE_PORTS];
	unsigned ports;
};

static const struct device_class console_class;

/* Port 0 has the first two queues, the control queues follow, then the other ports (5.3.2). */
static unsigned queue_rx(unsigned port)
{
	return port == 0 ? 0 : 2 + 2 * port;
}

static struct port *queue_port(struct vconsole *vc, unsigned queue)
{
	return &vc->port[queue < 2 ? 0 : queue / 2 - 1];
}

/* --- bytes ----------------------------------------------------------------------------------------- */

/* A driver throws away what comes for a port that nobody in the guest has open, so input stays with the host until the
 * driver says that somebody has. */
static bool port_is_open(struct port *port)
{
	struct vconsole *vc = port->owner;
	bool open;

	pthread_mutex_lock(&vc->dev.device.lock);
	open = vc->state.open[port->index] || !virtio_has(&vc->dev, CONSOLE_F_MULTIPORT);
	pthread_mutex_unlock(&vc->dev.device.lock);
	return open;
}

static void port_receive(struct port *port, unsigned queue)
{
	struct virtqueue *vq = &port->owner->dev.queue[queue];
	struct virtio_chain chain;
	bool more = port_is_open(port);

	for (unsigned i = 0; i < CONSOLE_QUEUE_SIZE && more && console_readable(port->console);
	     i++) {
		uint64_t got = 0;

		if (!virtqueue_pop(vq, &chain))
			break;
		if (chain.writable_len == 0) {
			/* It could be offered again and again, and the input would never be taken. */
			virtio_broken(&port->owner->dev, "queue %u: a buffer without room", queue);
			virtqueue_push(vq, &chain, 0);
			return;
		}
		for (unsigned s = chain.readable; s < chain.segs && more; s++) {
			size_t n = console_read(port->console, chain.iov[s].iov_base,
						chain.iov[s].iov_len);

			got += n;
			more = n == chain.iov[s].iov_len;
		}
		if (got)
			virtqueue_push(vq, &chain, got);
		else
			virtqueue_unpop(vq, &chain);
	}
	virtqueue_signal(vq);
	if (more && console_readable(port->console) && virtqueue_ready(vq))
		virtio_kick(&port->owner->dev, queue);
}

/* What the host does not take now stays in the queue; on_writable comes back for it. */
static void port_transmit(struct port *port, unsigned queue)
{
	struct virtqueue *vq = &port->owner->dev.queue[queue];
	uint32_t *written = &port->owner->state.written[port->index];
	struct virtio_chain chain;

	for (unsigned i = 0; i < CONSOLE_QUEUE_SIZE && virtqueue_pop(vq, &chain); i++) {
		struct iovec part[VIRTIO_SEGS];
		unsigned n = virtio_iov_part(chain.iov, chain.readable, *written,
					     chain.readable_len, part);

		for (unsigned s = 0; s < n; s++) {
			size_t took =
				console_write(port->console, part[s].iov_base, part[s].iov_len);

			*written += (uint32_t)took;
			if (took < part[s].iov_len) {
				virtqueue_unpop(vq, &chain);
				virtqueue_signal(vq);
				return;
			}
		}
		*written = 0;
		virtqueue_push(vq, &chain, 0);
	}
	virtqueue_signal(vq);
	if (virtqueue_ready(vq))
		virtio_kick(&port->owner->dev, queue);
}

/* --- control queues -------------------------------------------------------------------------------- */

static void due_set(struct vconsole *vc, unsigned port, uint8_t bits)
{
	pthread_mutex_lock(&vc->dev.device.lock);
	vc->state.due[port] |= bits;
	pthread_mutex_unlock(&vc->dev.device.lock);
	virtio_kick(&vc->dev, QUEUE_CONTROL_RX);
}

static void port_set_open(struct vconsole *vc, unsigned port, bool open)
{
	pthread_mutex_lock(&vc->dev.device.lock);
	vc->state.open[port] = open;
	pthread_mutex_unlock(&vc->dev.device.lock);
	if (open)
		virtio_kick(&vc->dev, queue_rx(port));
}

static bool port_added(struct vconsole *vc, unsigned port)
{
	bool added;

	pthread_mutex_lock(&vc->dev.device.lock);
	added = vc->state.added[port];
	pthread_mutex_unlock(&vc->dev.device.lock);
	return added;
}

static void control_received(struct vconsole *vc, const struct control *control)
{
	if (control->event == CONTROL_DEVICE_READY && control->value == 1) {
		for (unsigned i = 0; i < vc->ports; i++)
			if (!port_added(vc, i))
				due_set(vc, i, 1u << CONTROL_DEVICE_ADD);
	} else if (control->id >= vc->ports) {
		; /* there is no such port */
	} else if (control->event == CONTROL_PORT_READY && control->value == 1) {
		bool console = strcmp(vc->port[control->id].name, CONSOLE_NAME) == 0;

		due_set(vc, control->id,
			(uint8_t)(1u << CONTROL_PORT_NAME | 1u << CONTROL_PORT_OPEN |
				  (console ? 1u << CONTROL_CONSOLE_PORT : 0)));
	} else if (control->event == CONTROL_PORT_OPEN) {
		port_set_open(vc, control->id, control->value == 1);
	}
}

static void control_transmit(struct vconsole *vc)
{
	struct virtqueue *vq = &vc->dev.queue[QUEUE_CONTROL_TX];
	struct virtio_chain chain;
	struct control control;

	for (unsigned i = 0; i < CONSOLE_QUEUE_SIZE && virtqueue_pop(vq, &chain); i++) {
		if (virtio_chain_read(&chain, 0, &control, sizeof(control)) == sizeof(control))
			control_received(vc, &control);
		virtqueue_push(vq, &chain, 0);
	}
	virtqueue_signal(vq);
	if (virtqueue_ready(vq))
		virtio_kick(&vc->dev, QUEUE_CONTROL_TX);
}

/* The lowest event that is due, in the order of the specification's numbers, or -1. */
static int due_next(struct vconsole *vc, unsigned port)
{
	int event;

	pthread_mutex_lock(&vc->dev.device.lock);
	event = vc->state.due[port] ? __builtin_ctz(vc->state.due[port]) : -1;
	pthread_mutex_unlock(&vc->dev.device.lock);
	return event;
}

static bool control_send(struct vconsole *vc, unsigned port, int event)
{
	struct virtqueue *vq = &vc->dev.queue[QUEUE_CONTROL_RX];
	struct control control = {.id = port, .event = (uint16_t)event, .value = 1};
	struct virtio_chain chain;
	uint64_t done;

	if (!virtqueue_pop(vq, &chain))
		return false;
	done = virtio_chain_write(&chain, 0, &control, sizeof(control));
	if (event == CONTROL_PORT_NAME)
		done += virtio_chain_write(&chain, done, vc->port[port].name,
					   strlen(vc->port[port].name));
	virtqueue_push(vq, &chain, done);
	pthread_mutex_lock(&vc->dev.device.lock);
	vc->state.due[port] &= (uint8_t) ~(1u << event);
	vc->state.added[port] |= event == CONTROL_DEVICE_ADD;
	pthread_mutex_unlock(&vc->dev.device.lock);
	return true;
}

static void control_receive(struct vconsole *vc)
{
	bool room = true;

	for (unsigned i = 0; i < vc->ports && room; i++) {
		int event;

		while (room && (event = due_next(vc, i)) >= 0)
			room = control_send(vc, i, event);
	}
	virtqueue_signal(&vc->dev.queue[QUEUE_CONTROL_RX]);
}

/* --- the device ------------------------------------------------------------------------------------ */

static void console_notify(struct virtio_device *dev, unsigned queue)
{
	struct vconsole *vc = (struct vconsole *)dev;

	if (queue == QUEUE_CONTROL_RX)
		control_receive(vc);
	else if (queue == QUEUE_CONTROL_TX)
		control_transmit(vc);
	else if (!queue_port(vc, queue)->console)
		; /* a queue of a port that is not there */
	else if (queue & 1)
		port_transmit(queue_port(vc, queue), queue);
	else
		port_receive(queue_port(vc, queue), queue);
}

static void console_reset(struct virtio_device *dev)
{
	struct vconsole *vc = (struct vconsole *)dev;

	memset(vc->state.due, 0, sizeof(vc->state.due));
	memset(vc->state.written, 0, sizeof(vc->state.written));
	memset(vc->state.open, 0, sizeof(vc->state.open));
	memset(vc->state.added, 0, sizeof(vc->state.added));
}

static const struct virtio_type console_type = {
	.type = VIRTIO_TYPE_CONSOLE,
	.cls = 0x07, /* simple communication controller, other */
	.subclass = 0x80,
	.notify = console_notify,
	.reset = console_reset,
};

static void on_readable(void *arg)
{
	struct port *port = arg;

	virtio_kick(&port->owner->dev, queue_rx(port->index));
}

static void on_writable(void *arg)
{
	struct port *port = arg;

	virtio_kick(&port->owner->dev, queue_rx(port->index) + 1);
}

static int port_open(struct vconsole *vc, const char *name, struct config *leaf, struct error *err)
{
	struct port *port = &vc->port[vc->ports];
	const struct console_events events = {on_readable, on_writable, port};
	struct vm *vm = vc->dev.device.vm;
	const struct console_escape escape = {vm_quit, vm_command, vm};
	const char *spec = config_get(leaf, NULL);
	char path[256];
	int rc;

	port->owner = vc;
	port->index = vc->ports++;
	strcpy(port->name, name);
	if (spec[0] == '/' && strncmp(spec, "/dev/", 5) != 0) {
		snprintf(path, sizeof(path), "unix=%s", spec);
		spec = path;
	}
	rc = console_open(&port->console, spec, vm->loop, vm->log, &events, &escape, err);
	if (rc)
		error_prefix(err, "port %s", port->name);
	return rc;
}

/* What every PCI device has, and no port. */
static bool is_reserved(struct config *child)
{
	return strcmp(config_name(child), "device") == 0 ||
	       strcmp(config_name(child), "pcireg") == 0;
}

/* A name with dots, as org.qemu.guest_agent.0 is, is a path in the tree. */
static unsigned count_leaves(struct config *node)
{
	unsigned n = 0;

	for (struct config *c = config_first(node); c; c = config_next(c))
		n += config_is_leaf(c) ? 1 : count_leaves(c);
	return n;
}

static unsigned count_ports(struct config *config)
{
	unsigned n = 0;

	for (struct config *c = config_first(config); c; c = config_next(c))
		n += is_reserved(c) ? 0 : config_is_leaf(c) ? 1 : count_leaves(c);
	return n;
}

/* The ports at and below `child`, whose name is `above` and its own. */
static int open_port(struct vconsole *vc, const char *above, struct config *child,
		     struct error *err)
{
	char name[PORT_NAME_MAX + 1];
	int rc = 0, n = snprintf(name, sizeof(name), "%s%s", above, config_name(child));

	if ((size_t)n >= sizeof(name))
		return error_set(err, EINVAL, "port %s%s: a name has %d characters at most", above,
				 config_name(child), PORT_NAME_MAX);
	if (config_is_leaf(child))
		return port_open(vc, name, child, err);
	for (struct config *c = config_first(child); c && !rc; c = config_next(c)) {
		char path[PORT_NAME_MAX + 2];

		snprintf(path, sizeof(path), "%s.", name);
		rc = open_port(vc, path, c, err);
	}
	return rc;
}

/* The console first. */
static int open_ports(struct vconsole *vc, struct config *config, struct error *err)
{
	struct config *console = config_find(config, CONSOLE_NAME);
	int rc = 0;

	if (console && config_is_leaf(console))
		rc = open_port(vc, "", console, err);
	for (struct config *c = config_first(config); c && !rc; c = config_next(c))
		if (!is_reserved(c) && (c != console || !config_is_leaf(c)))
			rc = open_port(vc, "", c, err);
	return rc;
}

static void console_destroy(struct device *device)
{
	struct vconsole *vc = (struct vconsole *)device;

	/* Its workers write to the consoles, whose callbacks wake the workers: neither is gone before both are still. */
	if (vc->dev.ready)
		virtio_quiesce(device);
	for (unsigned i = 0; i < vc->ports; i++)
		if (vc->port[i].console)
			console_close(vc->port[i].console);
	virtio_destroy(&vc->dev);
	device_free(device);
}

static int console_create(struct vm *vm, struct config *config, struct device **out,
			  struct error *err)
{
	unsigned ports = count_ports(config);
	struct vconsole *vc;
	char path[64];
	int rc;

	if (ports == 0 || ports > CONSOLE_PORTS)
		return error_set(err, EINVAL,
				 "%u ports: 1 to %d, as console=CONSOLE or NAME=PATH, are needed",
				 ports, CONSOLE_PORTS);
	vc = device_alloc(&console_class, vm, sizeof(*vc), "%s",
			  config_path(config, path, sizeof(path)));
	if (!vc)
		return error_set(err, ENOMEM, "out of memory");
	vc->dev.type = &console_type;
	vc->dev.state = &vc->state.virtio;
	vc->dev.features = CONSOLE_F_MULTIPORT;
	vc->dev.workers = 1;
	vc->dev.config_len = CONFIG_LEN;
	vc->dev.config[CONFIG_MAX_PORTS] = (uint8_t)ports;
	vc->dev.queues = 2 + 2 * ports;
	for (unsigned q = 0; q < vc->dev.queues; q++)
		vc->dev.queue_max[q] = CONSOLE_QUEUE_SIZE;
	rc = virtio_init(&vc->dev, config, err);
	if (!rc)
		rc = open_ports(vc, config, err);
	if (rc) {
		console_destroy(&vc->dev.device);
		return rc;
	}
	*out = &vc->dev.device;
	return 0;
}

static bool console_check(const void *state)
{
	const struct console_state *s = state;

	for (unsigned i = 0; i < CONSOLE_PORTS; i++)
		if (s->due[i] & ~CONTROL_DUE)
			return false;
	return virtio_state_check(&s->virtio);
}

static const struct state_field console_fields[] = {
	VIRTIO_FIELDS(struct console_state, virtio), STATE_ARRAY(struct console_state, due),
	STATE_ARRAY(struct console_state, written),  STATE_ARRAY(struct console_state, open),
	STATE_ARRAY(struct console_state, added),
};

static const struct state_table console_table =
	STATE_TABLE("virtio-console", struct console_state, console_fields, 1, console_check);

static const struct device_class console_class = {
	.name = "virtio-console",
	.help = "virtio-console,console=stdio|tcp=..|unix=..|pty|..[,NAME=PATH]  hvc0, and ports "
		"on UNIX sockets",
	.kind = DEVICE_PCI,
	.create = console_create,
	.destroy = console_destroy,
	.reset = virtio_reset,
	.quiesce = virtio_quiesce,
	.resume = virtio_resume,
	.table = &console_table,
	.state_offset = offsetof(struct vconsole, state),
};
DEVICE_REGISTER(console_class);
