// The endpoint: engine/front knows HTTP, this knows microVMs.
//
// Who may. A request names a microVM by its host name and shows a token. The
// token must be good for that microVM and that port (or the shell), and the
// microVM's ingress connectors must open what it asks for. A microVM that is
// parked, ending or ended has no host name: its tokens, however long they would
// still live, lead nowhere, and no other microVM ever has its id.
//
// What is held. front asks for a stream; vm_traffic.c gives one when the microVM
// runs, which is after its run or resume hook said 200, and resumes it for that
// where it may. The stream is a connection of the guest's own: it ends with the
// suspend or the end of the microVM, and front tells the client.
#include "endpoint.h"

#include "shell.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

// Less than front's own limit, for here is known what is waited for.
#define OPEN_MS 59000

struct eng_endpoint {
	struct eng_loop *loop;
	struct eng_vms *vms;
	const struct eng_config *cfg;
	struct token_ring ring;
	struct front *front; // NULL: not served
	struct eng_shells *shells;
	char suffix[300];
};

// --- what front asks -----------------------------------------------------------

static bool has_endpoint(const struct reg_vm *vm)
{
	return vm->live && vm->state != VM_PARKED &&
	       vm->state != VM_TERMINATING && vm->state != VM_TERMINATED;
}

static void *find(void *ctx, const char *label)
{
	struct eng_endpoint *ep = ctx;
	char uuid[REG_UUID_LEN + 1];
	struct reg_vm *vm;

	if (strlen(label) != REG_UUID_LEN)
		return NULL;
	for (size_t i = 0; i <= REG_UUID_LEN; i++) // host names have no case
		uuid[i] = label[i] >= 'A' && label[i] <= 'Z'
			      ? (char)(label[i] - 'A' + 'a')
			      : label[i];
	vm = eng_vm_by_endpoint(ep->vms, uuid);
	return vm && has_endpoint(vm) ? vm : NULL;
}

static enum front_verdict allow(void *ctx, void *p, const char *token, size_t n,
				unsigned port, bool shell)
{
	struct eng_endpoint *ep = ctx;
	struct reg_vm *vm = p;
	struct token_ask ask = {vm->id, shell ? TOKEN_SHELL : TOKEN_APP, port};
	struct err e = ERR_INIT;
	enum token_verdict v;

	if (!token)
		return FRONT_UNAUTHORIZED;
	v = token_check(&ep->ring, token, n, &ask, (uint64_t)time(NULL), &e);
	if (v != TOKEN_OK && v != TOKEN_PORT)
		return FRONT_FORBIDDEN;
	if (shell ? eng_vm_may_shell(vm, &e) != 0 : !eng_vm_may_http(vm))
		return FRONT_FORBIDDEN;
	return v == TOKEN_PORT ? FRONT_PORT : FRONT_OK;
}

// NULL only for want of memory: front's own limit ends that request.
static void *open_port(void *ctx, void *vm, unsigned port, front_opened *cb,
		       void *arg)
{
	struct eng_endpoint *ep = ctx;
	struct vm_opening *o = NULL;
	struct err e = ERR_INIT;

	if (eng_vm_open(ep->vms, vm, port, OPEN_MS, cb, arg, &o, &e))
		log_warn("endpoint: %s", e.msg);
	return o;
}

static void *open_shell(void *ctx, void *vm, front_opened *cb, void *arg)
{
	struct eng_endpoint *ep = ctx;

	return eng_shell_open(ep->shells, vm, OPEN_MS, cb, arg);
}

static void cancel(void *ctx, void *opening, bool shell)
{
	(void)ctx;
	if (shell)
		eng_shell_cancel(opening);
	else
		eng_vm_open_cancel(opening);
}

static void traffic(void *ctx, void *vm)
{
	(void)ctx;
	eng_vm_traffic(vm);
}

static const struct front_ops ops = {
    .find = find,
    .allow = allow,
    .open = open_port,
    .shell = open_shell,
    .cancel = cancel,
    .traffic = traffic,
};

void eng_endpoint_vm_gone(struct eng_endpoint *ep, struct reg_vm *vm)
{
	if (ep && ep->front)
		front_vm_gone(ep->front, vm);
}

// --- tokens ----------------------------------------------------------------------

static int may_have(const struct reg_vm *vm, enum token_kind kind,
		    struct err *e)
{
	if (!has_endpoint(vm))
		return err_set(e, -EBUSY,
			       "MicroVM %s is %s: no token can be good for it",
			       vm->id, eng_state_name(vm->state));
	if (kind == TOKEN_SHELL)
		return eng_vm_may_shell(vm, e);
	if (!eng_vm_may_http(vm))
		return err_set(e, -EINVAL,
			       "HTTP access requires HTTP_INGRESS or "
			       "ALL_INGRESS network connector to be configured "
			       "on the MicroVM.");
	return 0;
}

int eng_endpoint_token(const struct eng_endpoint *ep, const struct reg_vm *vm,
		       enum token_kind kind, uint64_t minutes,
		       const struct token_ports *ports, unsigned nports,
		       char out[TOKEN_TEXT_MAX + 1], struct err *e)
{
	struct token_claims c = {.kind = kind, .nports = nports};
	int rc = may_have(vm, kind, e);

	if (rc)
		return rc;
	if (minutes < 1 || minutes > TOKEN_LIFE_MAX_S / 60)
		return err_set(e, -EINVAL,
			       "1 validation error detected: Value at "
			       "'expirationInMinutes' failed to satisfy "
			       "constraint: Member must be between 1 and %d",
			       TOKEN_LIFE_MAX_S / 60);
	if (nports > TOKEN_PORTS_MAX)
		return err_set(e, -EINVAL,
			       "1 validation error detected: Value at "
			       "'allowedPorts' failed to satisfy constraint: "
			       "Member must have between 1 and %d entries",
			       TOKEN_PORTS_MAX);
	snprintf(c.vm, sizeof(c.vm), "%s", vm->id);
	c.issued_s = (uint64_t)time(NULL);
	c.expires_s = c.issued_s + minutes * 60;
	if (nports)
		memcpy(c.ports, ports, nports * sizeof(*ports));
	rc = token_issue(&ep->ring, &c, out, TOKEN_TEXT_MAX + 1, e);
	return rc < 0 ? rc : 0;
}

// --- what it says of itself ------------------------------------------------------

const char *eng_endpoint_suffix(const struct eng_endpoint *ep)
{
	return ep->suffix;
}

const char *eng_endpoint_where(const struct eng_endpoint *ep)
{
	return ep->front ? front_address(ep->front) : NULL;
}

const char *eng_endpoint_ca(const struct eng_endpoint *ep)
{
	return ep->front ? front_ca_path(ep->front) : NULL;
}

void eng_endpoint_stats(const struct eng_endpoint *ep, struct front_stats *out)
{
	*out = (struct front_stats){0};
	if (ep->front)
		front_stats(ep->front, out);
}

// --- life ----------------------------------------------------------------------------

static int serve(struct eng_endpoint *ep, struct err *e)
{
	const struct eng_config *cfg = ep->cfg;
	cleanup_free char *dir = NULL, *ca = NULL;
	struct front_config fc = {
	    .listen = cfg->endpoint_listen,
	    .domain = cfg->endpoint_domain,
	    .cert = cfg->endpoint_cert,
	    .key = cfg->endpoint_key,
	    .plain = cfg->endpoint_plain,
	    .ops = &ops,
	    .ctx = ep,
	    .loop = ep->loop,
	};
	unsigned port;
	int rc;

	ep->shells = eng_shells_create(ep->loop, ep->vms);
	if (!ep->shells)
		return err_set(e, -ENOMEM, "no memory for the endpoint");
	// The state is root's alone; who uses the endpoint need not be root.
	if (asprintf(&dir, "%s/endpoint", cfg->state_dir) < 0 ||
	    asprintf(&ca, "%s.ca.pem", cfg->socket_path) < 0)
		abort();
	fc.tls_dir = dir;
	fc.ca_copy = ca;
	rc = front_create(&ep->front, &fc, e);
	if (rc)
		return rc;
	port = front_port(ep->front);
	if (port != 443)
		snprintf(ep->suffix, sizeof(ep->suffix), "%s:%u",
			 cfg->endpoint_domain, port);
	log_info("the endpoint is at %s: https://UUID.%s/%s%s",
		 front_address(ep->front), ep->suffix,
		 cfg->endpoint_plain ? ", without TLS too" : "",
		 eng_endpoint_ca(ep) ? "" : ", with the certificate given");
	return 0;
}

int eng_endpoint_create(struct eng_endpoint **out, struct eng_loop *l,
			struct eng_vms *vms, const struct eng_config *cfg,
			struct err *e)
{
	struct eng_endpoint *ep = calloc(1, sizeof(*ep));
	int rc;

	*out = NULL;
	if (!ep)
		return err_set(e, -ENOMEM, "no memory for the endpoint");
	ep->loop = l;
	ep->vms = vms;
	ep->cfg = cfg;
	snprintf(ep->suffix, sizeof(ep->suffix), "%s", cfg->endpoint_domain);
	rc = token_ring_open(&ep->ring, cfg->state_dir, e);
	if (!rc && cfg->endpoint_listen)
		rc = serve(ep, e);
	if (rc) {
		eng_endpoint_destroy(ep);
		return rc;
	}
	*out = ep;
	return 0;
}

void eng_endpoint_stop(struct eng_endpoint *ep)
{
	if (ep->front)
		front_stop(ep->front);
}

void eng_endpoint_destroy(struct eng_endpoint *ep)
{
	if (!ep)
		return;
	front_destroy(ep->front);
	eng_shells_destroy(ep->shells);
	token_ring_wipe(&ep->ring);
	free(ep);
}
