#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define OPERATIONS 400 /* of an input: what is behind them is not looked at */
#define REST_SECONDS 10
#define LOOP_US 200 /* in which the loop's thread hears of what the host sent */
/* In a row, so that a device is not caught between two rounds of endless work. */
#define REST_LOOKS 8
#define LOOK_US 20

uint8_t take8(struct input *in)
{
	return in->at < in->end ? *in->at++ : 0;
}

uint16_t take16(struct input *in)
{
	uint16_t low = take8(in);

	return (uint16_t)(low | take8(in) << 8);
}

uint32_t take32(struct input *in)
{
	uint32_t low = take16(in);

	return low | (uint32_t)take16(in) << 16;
}

uint64_t take64(struct input *in)
{
	uint64_t low = take32(in);

	return low | (uint64_t)take32(in) << 32;
}

uint64_t take_address(struct machine *m, struct input *in)
{
	uint8_t kind = take8(in);

	switch (kind & 15) {
	case 10:
		return FUZZ_RAM - take8(in);
	case 11:
		return fuzz_bar(m, kind >> 4) + take16(in);
	case 12:
		return UINT64_MAX - take8(in);
	case 13:
		return take64(in);
	default:
		return ((uint64_t)(kind & 15) << 16 | take16(in)) % FUZZ_RAM;
	}
}

uint32_t take_length(struct input *in)
{
	uint8_t kind = take8(in);

	switch (kind) {
	case 255:
		return take32(in);
	case 254:
		return take16(in);
	case 240 ... 253:
		return 512u << (kind - 240);
	default:
		return kind;
	}
}

uint64_t fuzz_config(unsigned reg)
{
	return PCI_ECAM_BASE + (FUZZ_SLOT << 15) + (reg & 0xfff);
}

uint64_t fuzz_bar(struct machine *m, unsigned n)
{
	uint64_t low = fixture_read(m->f, fuzz_config(PCI_BAR(n % PCI_BARS)), 4);

	if ((low & 7) == 4)
		low |= fixture_read(m->f, fuzz_config(PCI_BAR(n % PCI_BARS + 1)), 4) << 32;
	return low & 1 ? low & ~3ull : low & ~15ull;
}

void fuzz_poke(struct machine *m, uint64_t gpa, const void *bytes, size_t len)
{
	memory_write(&m->f->vm.memory, gpa, bytes, len);
}

static uint64_t nanoseconds(clockid_t clock)
{
	struct timespec now = {0};

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * NS_PER_SEC + (uint64_t)now.tv_nsec;
}

uint64_t fuzz_thread_time(pthread_t thread)
{
	clockid_t clock;

	return pthread_getcpuclockid(thread, &clock) == 0 ? nanoseconds(clock) : 0;
}

void fuzz_rest(struct machine *m)
{
	uint64_t end = nanoseconds(CLOCK_MONOTONIC) + REST_SECONDS * NS_PER_SEC, before = 0, worked;
	unsigned looks = 0;

	while (fuzz_target.at_rest && looks < REST_LOOKS) {
		bool rest = fuzz_target.at_rest(m, &worked);

		looks = rest && worked == before ? looks + 1 : 0;
		before = worked;
		if (nanoseconds(CLOCK_MONOTONIC) > end) {
			fprintf(stderr, "the device does not come to rest\n");
			abort();
		}
		usleep(LOOK_US);
	}
}

const char *fuzz_image(struct machine *m, const char *name, size_t size, char path[128])
{
	int fd;

	snprintf(path, 128, "%s/%s", m->directory, name);
	fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size) != 0)
		abort();
	close(fd);
	return path;
}

struct device *fuzz_device(struct machine *m, const char *name, unsigned slot,
			   const char *const options[][2])
{
	struct error err = {""};
	struct device *device;
	struct config *node;
	char path[32];

	snprintf(path, sizeof(path), "pci.0.%u.0", slot);
	node = config_make(m->f->vm.config, path, &err);
	for (unsigned i = 0; options && options[i][0]; i++)
		if (config_set(node, options[i][0], options[i][1], &err))
			abort();
	if (device_create(device_class_find(DEVICE_PCI, name), &m->f->vm, node, &device, &err)) {
		fprintf(stderr, "%s: %s\n", name, err.text);
		abort();
	}
	return device;
}

static struct sockaddr_un socket_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	return address;
}

int fuzz_listen(const char *path)
{
	struct sockaddr_un address = socket_at(path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 1))
		abort();
	return fd;
}

int fuzz_connect(const char *path)
{
	struct sockaddr_un address = socket_at(path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		abort();
	return fd;
}

static void *run_loop(void *arg)
{
	loop_run(arg);
	return NULL;
}

/* The process ends with it; only what would be left on the disk is removed. */
static void remove_directory(struct machine *m)
{
	char command[96];

	snprintf(command, sizeof(command), "rm -rf %s", m->directory);
	if (system(command) != 0)
		fprintf(stderr, "%s is left\n", m->directory);
}

static struct machine machine;

static void at_exit(void)
{
	remove_directory(&machine);
}

static struct machine *machine_make(void)
{
	struct machine *m = &machine;
	struct error err = {""};

	strcpy(m->directory, "/tmp/skep-fuzz-XXXXXX");
	if (!mkdtemp(m->directory))
		abort();
	atexit(at_exit);
	m->peer[0] = m->peer[1] = -1;
	m->f = fixture_create();
	m->f->vm.config = config_create();
	if (memory_create(&m->f->vm.memory, &m->f->vm, FUZZ_RAM, false, false, &err))
		abort();
	fixture_device(m->f, &pci_bus_class, NULL);
	if (pthread_create(&m->loop, NULL, run_loop, m->f->vm.loop))
		abort();
	fuzz_target.set_up(m);
	return m;
}

static void begin(struct machine *m)
{
	devices_reset(&m->f->vm);
	devices_resume(&m->f->vm);
	memset(m->f->vm.memory.base, 0, FUZZ_RAM);
	fixture_write(m->f, fuzz_config(PCI_COMMAND), 2, 7);
}

static void access_bar(struct machine *m, struct input *in, bool write)
{
	static const unsigned sizes[4] = {1, 2, 4, 8};
	uint8_t how = take8(in);
	unsigned n = (how & 15) % PCI_BARS, size = sizes[how >> 4 & 3];
	uint64_t address = fuzz_bar(m, n) + take16(in);
	bool io = fixture_read(m->f, fuzz_config(PCI_BAR(n)), 4) & 1;

	if (io && write)
		fixture_out(m->f, (uint16_t)address, size > 4 ? 4 : size, take32(in));
	else if (io)
		fixture_in(m->f, (uint16_t)address, size > 4 ? 4 : size);
	else if (write)
		fixture_write(m->f, address, size, size == 8 ? take64(in) : take32(in));
	else
		fixture_read(m->f, address, size);
}

static void access_config(struct machine *m, struct input *in)
{
	uint8_t how = take8(in);
	unsigned size = 1u << (how & 3), reg = take8(in) | (how & 0xf0) << 4;

	if (how & 4)
		fixture_write(m->f, fuzz_config(reg), size, take64(in));
	else
		fixture_read(m->f, fuzz_config(reg), size);
}

static void write_memory(struct machine *m, struct input *in)
{
	uint64_t gpa = take_address(m, in);
	uint8_t bytes[64];
	unsigned len = take8(in) % sizeof(bytes);

	for (unsigned i = 0; i < len; i++)
		bytes[i] = take8(in);
	fuzz_poke(m, gpa, bytes, len);
}

static void pause_and_resume(struct machine *m, bool restore)
{
	struct error err = {""};
	uint8_t *bytes;
	size_t len;

	devices_quiesce(&m->f->vm);
	if (restore && device_save(m->device, &bytes, &len) == 0) {
		if (device_restore(m->device, bytes, len, &err) != 0)
			abort(); /* it does not take its own state */
		free(bytes);
	}
	devices_resume(&m->f->vm);
}

static void host_sends(struct machine *m, struct input *in)
{
	uint8_t how = take8(in), bytes[1024];
	int fd = m->peer[how & 1];

	if (fd < 0)
		return;
	if (how & 2) {
		while (recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
			;
	} else {
		/* After its length, as a network's peer does; to a console it is text as any other. */
		unsigned len = 14 + take8(in) * (how & 4 ? 3 : 1);
		uint8_t frame[4 + sizeof(bytes)] = {0, 0, (uint8_t)(len >> 8), (uint8_t)len};

		memset(frame + 4, how & 8 ? 0xff : take8(in), len);
		if (send(fd, frame, 4 + len, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
			return; /* nobody reads: the guest has no buffers */
		usleep(LOOP_US);
	}
}

static void operation(struct machine *m, struct input *in)
{
	uint8_t op = take8(in);

	switch (op & 15) {
	case 0:
		access_bar(m, in, true);
		break;
	case 1:
		access_bar(m, in, false);
		break;
	case 2:
		access_config(m, in);
		break;
	case 3:
		write_memory(m, in);
		break;
	case 4:
		fuzz_rest(m);
		break;
	case 5:
		host_sends(m, in);
		break;
	case 6:
		if (op & 0x10)
			pause_and_resume(m, op & 0x20);
		else
			fixture_advance(m->f, take16(in) * NS_PER_US);
		break;
	default:
		if (fuzz_target.operation)
			fuzz_target.operation(m, in);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct input in = {bytes, bytes + size};
	static struct machine *m;

	if (!m)
		m = machine_make();
	begin(m);
	for (unsigned i = 0; i < OPERATIONS && in.at < in.end; i++)
		operation(m, &in);
	fuzz_rest(m);
	devices_quiesce(&m->f->vm);
	fixture_forget(m->f);
	return 0;
}
