/*
 * -s and -l: the devices of the command line, looked up in the registry.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/config.h"
#include "cmd/options.h"
#include "cmd/options_internal.h"
#include "vmm/device.h"

#define PCI_BUS_MAX 255
#define PCI_SLOT_MAX 31
#define PCI_FUNC_MAX 7

struct pci_place {
	unsigned bus, slot, func;
};

/* The names of a kind, for the message that refuses another: "a, b, c". */
static const char *class_names(enum device_kind kind, char *buf, size_t size)
{
	const struct device_class *cls;
	size_t used = 0;

	buf[0] = '\0';
	for (size_t i = 0; (cls = device_class_at(kind, i)) != NULL && used < size; i++)
		used += (size_t)snprintf(buf + used, size - used, "%s%s", i == 0 ? "" : ", ",
					 cls->name);
	return buf;
}

/* "slot", "slot:func" or "bus:slot:func". */
static int place_parse(const char *text, struct pci_place *out, struct error *err)
{
	static const char form[] = "a place is [bus:]slot[:function], bus 0-255, slot 0-31, "
				   "function 0-7";
	char copy[32], *part[3], *rest = copy;
	unsigned n = 0;
	uint64_t bus = 0, slot, func = 0;

	if (strlen(text) >= sizeof(copy))
		return error_set(err, EINVAL, "'%.40s' is not a place: %s", text, form);
	strcpy(copy, text);
	for (char *p; (p = strsep(&rest, ":")) != NULL; part[n++] = p)
		if (n == 3)
			return error_set(err, EINVAL, "'%s' is not a place: %s", text, form);
	if (n == 3 && number_parse(part[0], 0, PCI_BUS_MAX, &bus, NULL) != 0)
		return error_set(err, EINVAL, "bad bus '%s': %s", part[0], form);
	if (number_parse(part[n == 3], 0, PCI_SLOT_MAX, &slot, NULL) != 0)
		return error_set(err, EINVAL, "bad slot '%s': %s", part[n == 3], form);
	if (n >= 2 && number_parse(part[n - 1], 0, PCI_FUNC_MAX, &func, NULL) != 0)
		return error_set(err, EINVAL, "bad function '%s': %s", part[n - 1], form);
	*out = (struct pci_place){(unsigned)bus, (unsigned)slot, (unsigned)func};
	return 0;
}

/* Splits "a,rest" in place; the rest is NULL if there is no comma. */
static char *split_comma(char *text)
{
	char *comma = strchr(text, ',');

	if (comma == NULL)
		return NULL;
	*comma = '\0';
	return comma + 1;
}

static int set_class_config(struct config *node, const struct device_class *cls, const char *conf,
			    struct error *err)
{
	if (conf == NULL || conf[0] == '\0')
		return 0;
	if (cls->parse != NULL)
		return cls->parse(node, conf, err);
	return config_set_list(node, conf, cls->config_key, err);
}

static int pci_add(struct config *root, const struct pci_place *place,
		   const struct device_class *cls, const char *conf, struct error *err)
{
	char path[48];

	snprintf(path, sizeof(path), "pci.%u.%u.%u", place->bus, place->slot, place->func);

	struct config *node = config_make(root, path, err);

	if (node == NULL)
		return -EINVAL;

	const char *there = config_get(node, "device");

	if (there != NULL)
		return error_set(
			err, EEXIST,
			"slot %u:%u:%u holds a %s already: two devices cannot share a slot "
			"and function",
			place->bus, place->slot, place->func, there);

	int rc = config_set(node, "device", cls->name, err);

	return rc != 0 ? rc : set_class_config(node, cls, conf, err);
}

int options_set_pci(struct config *root, const char *arg, struct error *err)
{
	char *copy = strdup(arg), names[512];
	struct pci_place place = {0};

	if (copy == NULL)
		return error_set(err, ENOMEM, "out of memory");

	char *emulation = split_comma(copy);
	char *conf = emulation != NULL ? split_comma(emulation) : NULL;
	int rc = place_parse(copy, &place, err);

	if (rc == 0 && (emulation == NULL || emulation[0] == '\0'))
		rc = error_set(err, EINVAL,
			       "no device named: [bus:]slot[:function],device[,conf], "
			       "such as 0,hostbridge; -s help lists the devices");
	if (rc == 0) {
		const struct device_class *cls = device_class_find(DEVICE_PCI, emulation);

		if (cls == NULL)
			rc = error_set(err, ENODEV, "there is no PCI device '%s'; there are: %s",
				       emulation, class_names(DEVICE_PCI, names, sizeof(names)));
		else
			rc = pci_add(root, &place, cls, conf, err);
	}
	free(copy);
	return rc;
}

/* bootrom,ROM: not a device on the bridge, but where bhyve's users look for it. */
static int set_bootrom(struct config *root, char *conf, struct error *err)
{
	if (conf == NULL || conf[0] == '\0')
		return error_set(err, EINVAL, "bootrom: no file: bootrom,FILE");

	char *rest = split_comma(conf);
	int rc = config_set(root, "bootrom", conf, err);

	for (char *item; rc == 0 && rest != NULL;) {
		item = rest;
		rest = split_comma(item);
		if (strncmp(item, "fwcfg=", 6) == 0)
			rc = config_set(root, "lpc.fwcfg", item + 6, err);
		else
			rc = config_set(root, "bootvars", item, err);
	}
	return rc;
}

static int lpc_flag(struct config *root, const struct device_class *cls, struct error *err)
{
	char path[48];

	snprintf(path, sizeof(path), "lpc.%s", cls->name);
	return config_set(root, path, "true", err);
}

/* A port without a back end is there, with nothing on its wire. */
static int lpc_add(struct config *root, const struct device_class *cls, const char *conf,
		   struct error *err)
{
	char path[48];

	snprintf(path, sizeof(path), "lpc.%s", cls->name);

	struct config *node = config_make(root, path, err);

	if (node == NULL)
		return -EINVAL;
	if (conf == NULL || conf[0] == '\0')
		return config_set(node, cls->config_key, "null", err);
	return set_class_config(node, cls, conf, err);
}

int options_set_lpc(struct config *root, const char *arg, struct error *err)
{
	char *copy = strdup(arg), names[512];
	const struct device_class *cls;
	int rc;

	if (copy == NULL)
		return error_set(err, ENOMEM, "out of memory");

	char *conf = split_comma(copy);

	if (strcmp(copy, "bootrom") == 0) {
		rc = set_bootrom(root, conf, err);
	} else if ((cls = device_class_find(DEVICE_LPC, copy)) == NULL) {
		rc = error_set(err, ENODEV, "there is no LPC device '%s'; there are: bootrom, %s",
			       copy, class_names(DEVICE_LPC, names, sizeof(names)));
	} else if (cls->config_key == NULL && conf != NULL) {
		rc = error_set(err, EINVAL, "%s takes no configuration: '%s'", cls->name, conf);
	} else if (cls->config_key == NULL) {
		rc = lpc_flag(root, cls, err);
	} else {
		rc = lpc_add(root, cls, conf, err);
	}
	free(copy);
	return rc;
}

/* Calls fn for the node of each function in the tree until it gives true. */
static bool pci_any(struct config *root, bool (*fn)(struct config *func))
{
	struct config *pci = config_find(root, "pci");

	if (pci == NULL)
		return false;
	for (struct config *bus = config_first(pci); bus != NULL; bus = config_next(bus))
		for (struct config *slot = config_first(bus); slot != NULL;
		     slot = config_next(slot))
			for (struct config *func = config_first(slot); func != NULL;
			     func = config_next(func))
				if (fn(func))
					return true;
	return false;
}

static bool is_hostbridge(struct config *func)
{
	const char *device = config_get_default(func, "device", "");

	return strcmp(device, "hostbridge") == 0 || strcmp(device, "amd_hostbridge") == 0;
}

static bool is_lpc(struct config *func)
{
	return strcmp(config_get_default(func, "device", ""), "lpc") == 0;
}

static bool slot_is_free(struct config *root, unsigned slot)
{
	char path[32];

	snprintf(path, sizeof(path), "pci.0.%u", slot);
	return config_find(root, path) == NULL;
}

/* Where bhyve's scripts put them: the host bridge at 0:0, the LPC bridge at 0:31. Who has put another
 * device at 0:0 is left without a host bridge; the LPC bridge, which the COM ports need, moves. */
static int default_bridges(struct config *root, struct error *err)
{
	int rc = 0;

	if (!pci_any(root, is_hostbridge) && slot_is_free(root, 0))
		rc = config_set(root, "pci.0.0.0.device", "hostbridge", err);
	if (rc != 0 || pci_any(root, is_lpc))
		return rc;
	for (unsigned slot = PCI_SLOT_MAX; slot > 0; slot--) {
		char path[32];

		if (!slot_is_free(root, slot))
			continue;
		snprintf(path, sizeof(path), "pci.0.%u.0.device", slot);
		return config_set(root, path, "lpc", err);
	}
	return error_set(err, ENOSPC, "-s: no slot of bus 0 is free for the lpc bridge");
}

/* Does a function's node hold a console of that kind: uart's path, a port of virtio-console? */
static bool function_has_stdio(struct config *func)
{
	for (struct config *key = config_first(func); key != NULL; key = config_next(key))
		if (config_is_leaf(key) && strcmp(config_get(key, NULL), "stdio") == 0)
			return true;
	return false;
}

/* Only one console can have the terminal: has the command line given it away? */
static bool stdio_taken(struct config *root)
{
	struct config *lpc = config_find(root, "lpc"), *cons = config_find(root, "bvmcons");
	bool there = false;

	if (pci_any(root, function_has_stdio))
		return true;

	for (lpc = lpc != NULL ? config_first(lpc) : NULL; lpc != NULL; lpc = config_next(lpc))
		if (!config_is_leaf(lpc) &&
		    strcmp(config_get_default(lpc, "path", ""), "stdio") == 0)
			return true;
	if (cons != NULL && !config_is_leaf(cons))
		return strcmp(config_get_default(cons, "path", "stdio"), "stdio") == 0;
	return config_get_bool(root, "bvmcons", false, &there, NULL) == 0 && there;
}

int options_default_devices(struct config *root, struct error *err)
{
	int rc = default_bridges(root, err);

	if (rc == 0 && config_get(root, "boot.kernel") != NULL &&
	    config_find(root, "lpc.com1") == NULL && !stdio_taken(root))
		rc = config_set(root, "lpc.com1.path", "stdio", err);
	return rc;
}

static void print_classes(enum device_kind kind, FILE *out)
{
	const struct device_class *cls;

	for (size_t i = 0; (cls = device_class_at(kind, i)) != NULL; i++)
		fprintf(out, "  %s\n", cls->help);
}

void options_pci_help(FILE *out)
{
	fprintf(out, "-s [bus:]slot[:function],device[,conf]; the devices:\n");
	print_classes(DEVICE_PCI, out);
}

void options_lpc_help(FILE *out)
{
	fprintf(out, "-l device[,conf]; the devices:\n");
	fprintf(out,
		"  bootrom,FILE  a boot ROM: FILE ends at 4 GiB, started at the reset vector\n");
	print_classes(DEVICE_LPC, out);
}
