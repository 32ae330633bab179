#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <urcu/urcu-memb.h>

#include "bus/io.h"

/* What look-ups read. Immutable once published, but for a range that io_range_del() had no memory to
 * leave out: its pointer becomes NULL. */
struct io_entry {
	uint64_t base, last;
	const struct io_range *range;
};

struct io_table {
	struct rcu_head rcu;
	size_t n;
	struct io_entry entry[]; /* sorted by base, not overlapping */
};

static struct io_table *table_alloc(size_t n)
{
	struct io_table *table = malloc(sizeof(*table) + n * sizeof(table->entry[0]));

	if (table)
		table->n = 0;
	return table;
}

static void table_free_rcu(struct rcu_head *head)
{
	free(caa_container_of(head, struct io_table, rcu));
}

/* Under bus->lock. A writer may be a handler, inside a read-side section: so it never waits. */
static void table_publish(struct io_bus *bus, struct io_table *table)
{
	struct io_table *old = rcu_xchg_pointer(&bus->table, table);

	urcu_memb_call_rcu(&old->rcu, table_free_rcu);
}

int io_bus_init(struct io_bus *bus, const char *name, uint64_t limit)
{
	*bus = (struct io_bus){.name = name, .limit = limit, .table = table_alloc(0)};
	if (!bus->table)
		return -ENOMEM;
	pthread_mutex_init(&bus->lock, NULL);
	return 0;
}

void io_bus_destroy(struct io_bus *bus)
{
	if (!bus->table)
		return;
	/* Older tables are freed by liburcu's thread and name no bus. To wait for it takes 10 ms, its nap. */
	free(bus->table);
	bus->table = NULL;
	pthread_mutex_destroy(&bus->lock);
}

/* The number of entries whose base is not above addr. */
static size_t table_rank(const struct io_table *table, uint64_t addr)
{
	size_t low = 0, high = table->n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (table->entry[mid].base <= addr)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* A copy of the entry at addr; its range is NULL if there is none. Base and size are the entry's, not the
 * range's: those an owner may change after io_range_del() while an access is still under way. */
static struct io_entry table_find(const struct io_table *table, uint64_t addr)
{
	size_t rank = table_rank(table, addr);
	struct io_entry found = {0};

	if (rank && table->entry[rank - 1].last >= addr) {
		found.base = table->entry[rank - 1].base;
		found.last = table->entry[rank - 1].last;
		found.range = uatomic_read(&table->entry[rank - 1].range);
	}
	return found;
}

static int range_check(const struct io_bus *bus, const struct io_range *range, struct error *err)
{
	if (!range->size || range->size - 1 > bus->limit ||
	    range->base > bus->limit - (range->size - 1))
		return error_set(err, EINVAL,
				 "%s: %s range of 0x%" PRIx64 " bytes at 0x%" PRIx64
				 " does not lie in 0 to 0x%" PRIx64,
				 range->name, bus->name, range->size, range->base, bus->limit);
	if (!range->ops || !(range->ops->sizes & (IO_1 | IO_2 | IO_4 | IO_8)))
		return error_set(err, EINVAL, "%s: %s range declares no access size", range->name,
				 bus->name);
	return 0;
}

/* Under bus->lock: the range of the table that [base, last] meets. */
static const struct io_entry *find_overlap(const struct io_table *table, uint64_t base,
					   uint64_t last)
{
	for (size_t rank = table_rank(table, last); rank; rank--) {
		const struct io_entry *e = &table->entry[rank - 1];

		if (e->last < base)
			break;
		if (e->range)
			return e;
	}
	return NULL;
}

int io_range_add(struct io_bus *bus, const struct io_range *range, struct error *err)
{
	const struct io_entry *other;
	struct io_table *old, *new;
	struct io_entry entry;
	size_t i = 0;
	int rc = range_check(bus, range, err);

	if (rc)
		return rc;
	entry = (struct io_entry){range->base, range->base + (range->size - 1), range};
	pthread_mutex_lock(&bus->lock);
	old = bus->table;
	other = find_overlap(old, entry.base, entry.last);
	if (other) {
		rc = error_set(err, EEXIST,
			       "%s: %s range 0x%" PRIx64 "-0x%" PRIx64
			       " overlaps that of %s at 0x%" PRIx64 "-0x%" PRIx64,
			       range->name, bus->name, entry.base, entry.last, other->range->name,
			       other->base, other->last);
		goto out;
	}
	new = table_alloc(old->n + 1);
	if (!new) {
		rc = error_set(err, ENOMEM, "%s: no memory for a %s range", range->name, bus->name);
		goto out;
	}
	for (; i < old->n && old->entry[i].base < entry.base; i++)
		if (old->entry[i].range)
			new->entry[new->n++] = old->entry[i];
	new->entry[new->n++] = entry;
	for (; i < old->n; i++)
		if (old->entry[i].range)
			new->entry[new->n++] = old->entry[i];
	table_publish(bus, new);
out:
	pthread_mutex_unlock(&bus->lock);
	return rc;
}

void io_range_del(struct io_bus *bus, const struct io_range *range)
{
	struct io_table *old, *new;
	size_t at = 0;

	pthread_mutex_lock(&bus->lock);
	old = bus->table;
	while (at < old->n && old->entry[at].range != range)
		at++;
	if (at == old->n)
		goto out;
	new = table_alloc(old->n - 1);
	if (!new) {
		uatomic_set(&old->entry[at].range, NULL);
		goto out;
	}
	for (size_t i = 0; i < old->n; i++)
		if (i != at && old->entry[i].range)
			new->entry[new->n++] = old->entry[i];
	table_publish(bus, new);
out:
	pthread_mutex_unlock(&bus->lock);
}

void io_bus_synchronize(struct io_bus *bus)
{
	(void)bus; /* one grace period serves all buses */
	urcu_memb_synchronize_rcu();
}

void io_thread_enter(void)
{
	urcu_memb_register_thread();
}

void io_thread_leave(void)
{
	urcu_memb_unregister_thread();
}

static uint64_t ones(unsigned bytes)
{
	return bytes >= 8 ? UINT64_MAX : (1ull << (8 * bytes)) - 1;
}

/* The widest declared size that is not above `bytes`, or 0. */
static unsigned widest_size(unsigned sizes, unsigned bytes)
{
	for (unsigned size = 8; size; size /= 2)
		if (size <= bytes && (sizes & size))
			return size;
	return 0;
}

/* `bytes` is narrower than any declared size: *taken of them come out of the aligned unit around. */
static uint64_t read_narrow(const struct io_entry *e, uint64_t offset, unsigned bytes,
			    unsigned *taken)
{
	unsigned unit = e->range->ops->sizes & -e->range->ops->sizes;
	unsigned skip = (unsigned)(offset & (unit - 1));

	*taken = bytes < unit - skip ? bytes : unit - skip;
	offset -= skip;
	if (e->last - e->base - offset < unit - 1)
		return UINT64_MAX;
	return e->range->ops->read(e->range->arg, offset, unit) >> (8 * skip);
}

/* All of it lies in the range. */
static uint64_t entry_read(const struct io_entry *e, uint64_t addr, unsigned size)
{
	const struct io_ops *ops = e->range->ops;
	uint64_t offset = addr - e->base, value = 0;
	unsigned done = 0, part;

	if (!ops->read)
		return ones(size);
	while (done < size) {
		uint64_t piece;

		part = widest_size(ops->sizes, size - done);
		if (part)
			piece = ops->read(e->range->arg, offset + done, part);
		else
			piece = read_narrow(e, offset + done, size - done, &part);
		value |= (piece & ones(part)) << (8 * done);
		done += part;
	}
	return value;
}

static void entry_write(const struct io_entry *e, uint64_t addr, unsigned size, uint64_t value)
{
	const struct io_ops *ops = e->range->ops;
	uint64_t offset = addr - e->base;
	unsigned done = 0, part;

	if (!ops->write)
		return;
	while (done < size) {
		part = widest_size(ops->sizes, size - done);
		if (!part)
			return;
		ops->write(e->range->arg, offset + done, part, (value >> (8 * done)) & ones(part));
		done += part;
	}
}

static bool entry_has(const struct io_entry *e, uint64_t addr, unsigned size)
{
	return e->range && e->last - addr >= size - 1;
}

static struct io_entry find_byte(const struct io_bus *bus, const struct io_table *table,
				 uint64_t addr, unsigned i)
{
	if (addr > bus->limit || bus->limit - addr < i)
		return (struct io_entry){0};
	return table_find(table, addr + i);
}

/* An access of which not every byte belongs to the range of the first one. All bytes go by one table:
 * otherwise a range that comes or goes meanwhile would get a part of an access that is whole in it. */
static bool read_bytes(const struct io_bus *bus, const struct io_table *table, uint64_t addr,
		       unsigned size, uint64_t *value)
{
	bool claimed = false;

	*value = 0;
	for (unsigned i = 0; i < size; i++) {
		struct io_entry e = find_byte(bus, table, addr, i);
		uint64_t byte = 0xff;

		if (e.range) {
			byte = entry_read(&e, addr + i, 1);
			claimed = true;
		}
		*value |= byte << (8 * i);
	}
	return claimed;
}

static bool write_bytes(const struct io_bus *bus, const struct io_table *table, uint64_t addr,
			unsigned size, uint64_t value)
{
	bool claimed = false;

	for (unsigned i = 0; i < size; i++) {
		struct io_entry e = find_byte(bus, table, addr, i);

		if (!e.range)
			continue;
		entry_write(&e, addr + i, 1, (value >> (8 * i)) & 0xff);
		claimed = true;
	}
	return claimed;
}

static unsigned size_bound(unsigned size)
{
	return size < 1 ? 1 : size > 8 ? 8 : size;
}

bool io_bus_read(struct io_bus *bus, uint64_t addr, unsigned size, uint64_t *value)
{
	const struct io_table *table;
	struct io_entry e;
	bool claimed = true;

	size = size_bound(size);
	urcu_memb_read_lock();
	table = rcu_dereference(bus->table);
	e = table_find(table, addr);
	if (entry_has(&e, addr, size))
		*value = entry_read(&e, addr, size);
	else
		claimed = read_bytes(bus, table, addr, size, value);
	urcu_memb_read_unlock();
	if (!claimed)
		bus->unclaimed++;
	return claimed;
}

bool io_bus_write(struct io_bus *bus, uint64_t addr, unsigned size, uint64_t value)
{
	const struct io_table *table;
	struct io_entry e;
	bool claimed = true;

	size = size_bound(size);
	urcu_memb_read_lock();
	table = rcu_dereference(bus->table);
	e = table_find(table, addr);
	if (entry_has(&e, addr, size))
		entry_write(&e, addr, size, value);
	else
		claimed = write_bytes(bus, table, addr, size, value);
	urcu_memb_read_unlock();
	if (!claimed)
		bus->unclaimed++;
	return claimed;
}
