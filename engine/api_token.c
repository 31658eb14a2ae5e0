// CreateMicrovmAuthToken and CreateMicrovmShellAuthToken (docs/AUTH.md).
#include "api.h"

#include "endpoint.h"

#include <errno.h>
#include <string.h>

// One PortSpecification: a union of which `in` has exactly one member.
static int ports_of(const json_t *spec, struct token_ports *p, struct err *e)
{
	const json_t *port = json_object_get(spec, "port");
	const json_t *range = json_object_get(spec, "range");
	json_int_t lo = 1, hi = 65535;

	if (port) {
		lo = hi = json_integer_value(port);
	} else if (range) {
		lo = json_integer_value(json_object_get(range, "startPort"));
		hi = json_integer_value(json_object_get(range, "endPort"));
	}
	if (lo > hi)
		return err_set(e, -EINVAL,
			       "1 validation error detected: Value at "
			       "'allowedPorts' failed to satisfy constraint: "
			       "startPort %lld of a range is greater than its "
			       "endPort %lld",
			       (long long)lo, (long long)hi);
	*p = (struct token_ports){(uint16_t)lo, (uint16_t)hi};
	return 0;
}

static int all_ports(const json_t *list, struct token_ports **out, unsigned *n,
		     struct err *e)
{
	size_t count = json_array_size(list), i;
	const json_t *spec;
	int rc = 0;

	// One more than a token takes is enough to be refused for.
	*n = (unsigned)MIN(count, (size_t)TOKEN_PORTS_MAX + 1);
	*out = calloc(*n ? *n : 1, sizeof(**out));
	if (!*out)
		return err_set(e, -ENOMEM, "no memory for a token");
	json_array_foreach(list, i, spec)
	{
		if (i == *n || rc)
			break;
		rc = ports_of(spec, &(*out)[i], e);
	}
	return rc;
}

static void issue(struct api *a, struct http_req *r, json_t *in,
		  enum token_kind kind)
{
	struct reg_vm *vm =
	    api_vm_of(a, r, api_member(in, "microvmIdentifier"));
	json_int_t minutes =
	    json_integer_value(json_object_get(in, "expirationInMinutes"));
	cleanup_free struct token_ports *ports = NULL;
	char token[TOKEN_TEXT_MAX + 1];
	struct err e = ERR_INIT;
	unsigned n = 0;
	int rc = 0;

	if (!vm)
		return;
	if (kind == TOKEN_APP)
		rc = all_ports(json_object_get(in, "allowedPorts"), &ports, &n,
			       &e);
	if (!rc)
		rc = eng_endpoint_token(a->endpoint, vm, kind,
					minutes > 0 ? (uint64_t)minutes : 0,
					ports, n, token, &e);
	if (rc)
		api_fail(a, r, &e, "microvm", vm->id);
	else
		api_answer(a, r, 200,
			   json_pack("{s:{s:s}}", "authToken",
				     "X-aws-proxy-auth", token));
}

void api_create_auth_token(struct api *a, struct http_req *r, json_t *in)
{
	issue(a, r, in, TOKEN_APP);
}

void api_create_shell_auth_token(struct api *a, struct http_req *r, json_t *in)
{
	issue(a, r, in, TOKEN_SHELL);
}
