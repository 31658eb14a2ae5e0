// Network connectors of microVMs: AWS's managed ones, by the last part of their
// ARNs. What none of them opens is closed.
#include "shape.h"
#include "vm.h"

#include <errno.h>
#include <string.h>

#define MANAGED                                     \
	"arn:aws[a-z\\-]*:lambda:[a-z0-9\\-]+:aws:" \
	"network-connector:aws-network-connector:[A-Z_]+"

// "" when it is none of AWS's own.
static const char *name_of(const json_t *v)
{
	const char *s = json_string_value(v);

	return s && shape_match(MANAGED, s) ? strrchr(s, ':') + 1 : "";
}

static bool has(const json_t *list, const char *name)
{
	const json_t *v;
	size_t i;

	json_array_foreach(list, i, v)
	{
		if (strcmp(name_of(v), name) == 0)
			return true;
	}
	return false;
}

static int check_ingress(const json_t *list, struct err *e)
{
	const json_t *v;
	size_t i;

	json_array_foreach(list, i, v)
	{
		const char *name = name_of(v);

		if (strcmp(name, "ALL_INGRESS") &&
		    strcmp(name, "HTTP_INGRESS") &&
		    strcmp(name, "SHELL_INGRESS"))
			return err_set(
			    e, -EINVAL,
			    "ingressNetworkConnectors: %.200s is not "
			    "one of AWS's managed connectors "
			    "ALL_INGRESS, HTTP_INGRESS and "
			    "SHELL_INGRESS, the only ones there are",
			    json_string_value(v));
	}
	return 0;
}

static int check_egress(const json_t *list, bool accept, struct err *e)
{
	const json_t *v;
	size_t i;

	json_array_foreach(list, i, v)
	{
		if (strcmp(name_of(v), "INTERNET_EGRESS"))
			return err_set(e, -EINVAL,
				       "egressNetworkConnectors: %.200s is not "
				       "AWS's managed connector "
				       "INTERNET_EGRESS, the only one there is",
				       json_string_value(v));
		if (!accept)
			return err_set(
			    e, -EINVAL,
			    "egressNetworkConnectors: thaw serves no egress "
			    "yet; leave INTERNET_EGRESS out, or start thawd "
			    "with --unserved-egress=accept and do without");
	}
	return 0;
}

int eng_net_check(const json_t *ingress, const json_t *egress, bool accept,
		  struct err *e)
{
	int rc = check_ingress(ingress, e);

	return rc ? rc : check_egress(egress, accept, e);
}

static const json_t *ingress_of(const struct reg_vm *vm)
{
	return json_object_get(vm->extra, "ingressNetworkConnectors");
}

bool eng_vm_may_http(const struct reg_vm *vm)
{
	const json_t *list = ingress_of(vm);

	return !list || has(list, "ALL_INGRESS") || has(list, "HTTP_INGRESS");
}

int eng_vm_may_shell(const struct reg_vm *vm, struct err *e)
{
	const json_t *list = ingress_of(vm);

	if (!has(list, "SHELL_INGRESS"))
		return err_set(e, -EINVAL,
			       "Shell access requires SHELL_INGRESS network "
			       "connector to be configured on the MicroVM.");
	if (has(list, "ALL_INGRESS"))
		return err_set(e, -EINVAL,
			       "ALL_INGRESS cannot be combined with other "
			       "ingress network connectors; use HTTP_INGRESS "
			       "and/or SHELL_INGRESS instead");
	return 0;
}
