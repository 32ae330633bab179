/*
 * The ACPI fixed hardware of the machine (ACPI 6.5, section 4.8), at bhyve's addresses: PM1 event and
 * control blocks, the 32-bit PM timer, SMI_CMD, a GPE0 block and the power button.
 *
 * SLP_EN with the SLP_TYP of \_S5 powers off; it is the only sleep state, other values do nothing.
 * SCI_EN is the firmware's: only SMI_CMD changes it. Left out: SMIs (events raise nothing until ACPI is
 * enabled, GBL_RLS is dropped), the sleep button, the RTC's wake status (there is nothing to wake from; its
 * enable bit holds what is written, as Linux expects even where the FADT says that it is not there) and GPE
 * sources: GPE0 is there for a driver to program, its status bits stay clear.
 */
#include "chipset/pm.h"

#include <errno.h>

#include "bus/io.h"
#include "bus/irq.h"
#include "vmm/vm.h"

/* PM1 status and enable (tables 4.13 and 4.14) */
#define PM1_TMR 0x0001
#define PM1_GBL 0x0020
#define PM1_PWRBTN 0x0100
#define PM1_RTC 0x0400
#define PM1_STATUS_BITS (PM1_TMR | PM1_PWRBTN) /* those that anything here sets */
#define PM1_ENABLE_BITS (PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_RTC)
/* PM1 control (table 4.15) */
#define PM1_SCI_EN 0x0001
#define PM1_BM_RLD 0x0002
#define PM1_SLP_TYP_SHIFT 10
#define PM1_SLP_TYP 0x1c00
#define PM1_SLP_EN 0x2000

struct pm_state {
	uint16_t pm1_status, pm1_enable, pm1_control;
	uint16_t gpe0_enable;
	uint8_t smi_command, smi_data;
	/* How often bit 31 of the timer had changed when TMR_STS was last looked at. */
	uint64_t timer_halves;
};

struct pm {
	struct device device;
	struct pm_state state;
	struct irq_source sci;
	struct vtimer timer;
	struct io_range pm1, timer_range, gpe0, smi;
};

static bool pm_check(const void *state)
{
	const struct pm_state *s = state;

	return !(s->pm1_status & ~PM1_STATUS_BITS) && !(s->pm1_enable & ~PM1_ENABLE_BITS) &&
	       !(s->pm1_control & ~(PM1_SCI_EN | PM1_BM_RLD | PM1_SLP_TYP));
}

static const struct state_field pm_fields[] = {
	STATE(struct pm_state, pm1_status),   STATE(struct pm_state, pm1_enable),
	STATE(struct pm_state, pm1_control),  STATE(struct pm_state, gpe0_enable),
	STATE(struct pm_state, smi_command),  STATE(struct pm_state, smi_data),
	STATE(struct pm_state, timer_halves),
};
static const struct state_table pm_table =
	STATE_TABLE("pm", struct pm_state, pm_fields, 1, pm_check);

static uint64_t pm_ticks(struct pm *pm)
{
	return mul_div_u64(vclock_now(pm->device.vm->clock), PM_TIMER_HZ, NS_PER_SEC);
}

/* TMR_STS is set whenever bit 31 changes, in either direction (section 4.8.1.1). */
static void pm_timer_advance(struct pm *pm)
{
	uint64_t halves = pm_ticks(pm) >> 31;

	if (halves > pm->state.timer_halves)
		pm->state.pm1_status |= PM1_TMR;
	pm->state.timer_halves = halves;
}

/* The SCI follows the state; the timer is armed only while its overflow would change the SCI. */
static void pm_update(struct pm *pm)
{
	struct pm_state *s = &pm->state;
	bool enabled = s->pm1_control & PM1_SCI_EN;

	irq_source_set(&pm->sci, enabled && (s->pm1_status & s->pm1_enable));
	if (enabled && (s->pm1_enable & PM1_TMR) && !(s->pm1_status & PM1_TMR))
		vtimer_arm(&pm->timer,
			   mul_div_u64_up((s->timer_halves + 1) << 31, NS_PER_SEC, PM_TIMER_HZ));
	else
		vtimer_disarm(&pm->timer);
}

static void pm_timer_fired(void *arg)
{
	struct pm *pm = arg;

	pthread_mutex_lock(&pm->device.lock);
	pm_timer_advance(pm);
	pm_update(pm);
	pthread_mutex_unlock(&pm->device.lock);
}

static uint64_t pm1_read(void *arg, uint64_t offset, unsigned size)
{
	struct pm *pm = arg;
	uint64_t block;

	pthread_mutex_lock(&pm->device.lock);
	pm_timer_advance(pm);
	block = pm->state.pm1_status | (uint64_t)pm->state.pm1_enable << 16 |
		(uint64_t)pm->state.pm1_control << 32;
	pthread_mutex_unlock(&pm->device.lock);
	return block >> (8 * offset) & ((1ull << (8 * size)) - 1);
}

static void pm1_write_control(struct pm *pm, uint16_t value)
{
	struct pm_state *s = &pm->state;
	const uint16_t writable = PM1_BM_RLD | PM1_SLP_TYP;

	s->pm1_control = (s->pm1_control & ~writable) | (value & writable);
	if ((value & PM1_SLP_EN) && (value & PM1_SLP_TYP) >> PM1_SLP_TYP_SHIFT == PM_SLP_TYP_S5)
		vm_request(pm->device.vm, VM_END_POWEROFF);
}

static void pm1_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct pm *pm = arg;
	struct pm_state *s = &pm->state;
	/* The three registers as one number: `mask` are its bytes that are written. */
	uint64_t mask = ((1ull << (8 * size)) - 1) << (8 * offset);

	value <<= 8 * offset;
	value &= mask;
	pthread_mutex_lock(&pm->device.lock);
	pm_timer_advance(pm);
	s->pm1_status &= ~(uint16_t)value;
	s->pm1_enable = ((s->pm1_enable & ~(mask >> 16)) | value >> 16) & PM1_ENABLE_BITS;
	if (mask >> 32)
		pm1_write_control(pm, (uint16_t)((s->pm1_control & ~(mask >> 32)) | value >> 32));
	pm_update(pm);
	pthread_mutex_unlock(&pm->device.lock);
}

static uint64_t pm_timer_read(void *arg, uint64_t offset, unsigned size)
{
	return ((uint32_t)pm_ticks(arg) >> (8 * offset)) & ((1ull << (8 * size)) - 1);
}

static uint64_t gpe0_read(void *arg, uint64_t offset, unsigned size)
{
	struct pm *pm = arg;
	uint32_t block;

	pthread_mutex_lock(&pm->device.lock);
	block = (uint32_t)pm->state.gpe0_enable << 16;
	pthread_mutex_unlock(&pm->device.lock);
	return block >> (8 * offset) & ((1ull << (8 * size)) - 1);
}

static void gpe0_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct pm *pm = arg;
	uint64_t mask = ((1ull << (8 * size)) - 1) << (8 * offset);

	value = value << (8 * offset) & mask;
	pthread_mutex_lock(&pm->device.lock);
	pm->state.gpe0_enable = (pm->state.gpe0_enable & ~(mask >> 16)) | value >> 16;
	pthread_mutex_unlock(&pm->device.lock);
}

static uint64_t smi_read(void *arg, uint64_t offset, unsigned size)
{
	struct pm *pm = arg;
	uint8_t value;

	(void)size;
	pthread_mutex_lock(&pm->device.lock);
	value = offset ? pm->state.smi_data : pm->state.smi_command;
	pthread_mutex_unlock(&pm->device.lock);
	return value;
}

static void smi_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct pm *pm = arg;
	struct pm_state *s = &pm->state;

	(void)size;
	pthread_mutex_lock(&pm->device.lock);
	if (offset) {
		s->smi_data = (uint8_t)value;
	} else {
		s->smi_command = (uint8_t)value;
		if (s->smi_command == PM_ACPI_ENABLE)
			s->pm1_control |= PM1_SCI_EN;
		else if (s->smi_command == PM_ACPI_DISABLE)
			s->pm1_control &= ~PM1_SCI_EN;
		pm_timer_advance(pm);
		pm_update(pm);
	}
	pthread_mutex_unlock(&pm->device.lock);
}

static bool pm_power_button(void *arg)
{
	struct pm *pm = arg;
	bool listens;

	pthread_mutex_lock(&pm->device.lock);
	listens = pm->state.pm1_control & PM1_SCI_EN;
	if (listens) {
		pm->state.pm1_status |= PM1_PWRBTN;
		pm_update(pm);
	}
	pthread_mutex_unlock(&pm->device.lock);
	return listens;
}

static const struct io_ops pm1_ops = {IO_1 | IO_2, pm1_read, pm1_write};
static const struct io_ops pm_timer_ops = {IO_1 | IO_2 | IO_4, pm_timer_read, NULL};
static const struct io_ops gpe0_ops = {IO_1 | IO_2 | IO_4, gpe0_read, gpe0_write};
static const struct io_ops smi_ops = {IO_1, smi_read, smi_write};

static void pm_reset(struct device *device)
{
	struct pm *pm = (struct pm *)device;

	pthread_mutex_lock(&device->lock);
	/* The timer runs on over a reset, as its oscillator does: what it did before counts no more. */
	pm->state.timer_halves = pm_ticks(pm) >> 31;
	pm_update(pm);
	pthread_mutex_unlock(&device->lock);
}

static void pm_quiesce(struct device *device)
{
	struct pm *pm = (struct pm *)device;

	pthread_mutex_lock(&device->lock);
	vtimer_disarm(&pm->timer);
	pthread_mutex_unlock(&device->lock);
}

static void pm_resume(struct device *device)
{
	struct pm *pm = (struct pm *)device;

	pthread_mutex_lock(&device->lock);
	pm_timer_advance(pm);
	pm_update(pm);
	pthread_mutex_unlock(&device->lock);
}

static void pm_destroy(struct device *device)
{
	struct pm *pm = (struct pm *)device;
	struct vm *vm = device->vm;

	if (vm->power_button_arg == pm) {
		vm->power_button = NULL;
		vm->power_button_arg = NULL;
	}
	io_range_del(&vm->pio, &pm->pm1);
	io_range_del(&vm->pio, &pm->timer_range);
	io_range_del(&vm->pio, &pm->gpe0);
	io_range_del(&vm->pio, &pm->smi);
	io_bus_synchronize(&vm->pio);
	vtimer_destroy(&pm->timer);
	irq_source_set(&pm->sci, false);
	device_free(device);
}

static int pm_create(struct vm *vm, struct config *config, struct device **out, struct error *err)
{
	struct pm *pm = device_alloc(&pm_class, vm, sizeof(*pm), "pm");
	int rc;

	(void)config;
	if (!pm)
		return error_set(err, ENOMEM, "pm: out of memory");
	irq_source_init(&pm->sci, &vm->irq, irq_isa_gsi(PM_SCI_IRQ));
	vtimer_init(&pm->timer, vm->clock, pm_timer_fired, pm);
	pm->pm1 = (struct io_range){"pm1", PM1_EVENT_PORT, 6, &pm1_ops, pm};
	pm->timer_range = (struct io_range){"pm timer", PM_TIMER_PORT, 4, &pm_timer_ops, pm};
	pm->gpe0 = (struct io_range){"gpe0", PM_GPE0_PORT, 4, &gpe0_ops, pm};
	pm->smi = (struct io_range){"smi command", PM_SMI_PORT, 2, &smi_ops, pm};
	rc = io_range_add(&vm->pio, &pm->pm1, err);
	if (!rc)
		rc = io_range_add(&vm->pio, &pm->timer_range, err);
	if (!rc)
		rc = io_range_add(&vm->pio, &pm->gpe0, err);
	if (!rc)
		rc = io_range_add(&vm->pio, &pm->smi, err);
	if (rc) {
		pm_destroy(&pm->device);
		return rc;
	}
	pm_reset(&pm->device);
	vm->power_button_arg = pm;
	vm->power_button = pm_power_button;
	*out = &pm->device;
	return 0;
}

const struct device_class pm_class = {
	.name = "pm",
	.help = "pm: ACPI power management block",
	.kind = DEVICE_CHIPSET,
	.create = pm_create,
	.destroy = pm_destroy,
	.reset = pm_reset,
	.quiesce = pm_quiesce,
	.resume = pm_resume,
	.table = &pm_table,
	.state_offset = offsetof(struct pm, state),
};
DEVICE_REGISTER(pm_class);
