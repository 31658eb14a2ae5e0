// Routing of thaw's own calls (the contract's: api_ops.c), and what all calls share.
#include "api.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

// A path pattern: "*" stands for one segment, "" ends it. `query` lists the
// parameters that the call knows.
struct route {
	enum http_method method;
	const char *path[HTTP_MAX_SEGS];
	api_call *call;
	const char *query[8];
};

static const struct route routes[] = {
    {HTTP_GET, {"thaw", "v1", "images"}, api_thaw_images, {0}},
    {HTTP_POST, {"thaw", "v1", "images"}, api_build_image, {0}},
    {HTTP_GET, {"thaw", "v1", "images", "*"}, api_thaw_image, {0}},
    {HTTP_GET,
     {"thaw", "v1", "images", "*", "versions", "*", "log"},
     api_build_log,
     {"follow", "tail"}},
    {HTTP_POST,
     {"thaw", "v1", "images", "*", "versions", "*", "cancel"},
     api_cancel_build,
     {0}},
    {HTTP_GET, {"thaw", "v1", "microvms", "*"}, api_inspect_microvm, {0}},
    {HTTP_POST, {"thaw", "v1", "microvms", "*", "exec"}, api_exec, {0}},
    {HTTP_POST,
     {"thaw", "v1", "microvms", "*", "forward"},
     api_forward,
     {"port"}},
    {HTTP_GET,
     {"thaw", "v1", "microvms", "*", "logs"},
     api_logs,
     {"follow", "tail"}},
    {HTTP_POST, {"thaw", "v1", "microvms", "*", "mailbox"}, api_mailbox, {0}},
    {HTTP_GET, {"thaw", "v1", "pools"}, api_list_pools, {0}},
    {HTTP_GET, {"thaw", "v1", "pools", "*"}, api_get_pool, {0}},
    {HTTP_PUT, {"thaw", "v1", "pools", "*"}, api_put_pool, {0}},
    {HTTP_DELETE, {"thaw", "v1", "pools", "*"}, api_delete_pool, {0}},
    {HTTP_GET,
     {"thaw", "v1", "events"},
     api_events,
     {"since", "follow", "heartbeat"}},
    {HTTP_GET, {"thaw", "v1", "host"}, api_host, {0}},
    {HTTP_GET, {"thaw", "v1", "stats"}, api_stats, {0}},
    {HTTP_GET, {"thaw", "v1", "doctor"}, api_doctor, {0}},
    {HTTP_GET, {"thaw", "v1", "version"}, api_version, {0}},
};

static bool path_matches(const struct route *rt, const struct http_req *r)
{
	for (unsigned i = 0; i < HTTP_MAX_SEGS; i++) {
		if (!rt->path[i])
			return r->nseg == i;
		if (i == r->nseg)
			return false;
		if (rt->path[i][0] == '*' ? !r->seg[i][0]
					  : strcmp(rt->path[i], r->seg[i]) != 0)
			return false;
	}
	return r->nseg == HTTP_MAX_SEGS;
}

static int known_query(const struct route *rt, const struct http_req *r,
		       struct err *e)
{
	for (unsigned i = 0; i < r->nquery; i++) {
		bool known = false;

		for (unsigned k = 0; k < ARRAY_SIZE(rt->query); k++)
			known |= rt->query[k] &&
				 !strcmp(rt->query[k], r->query[i].k);
		if (!known)
			return err_set(e, -EINVAL,
				       "the query parameter \"%.60s\" is "
				       "unknown here",
				       r->query[i].k);
	}
	return 0;
}

void api_no_route(struct api *a, struct http_req *r, bool path_known)
{
	char text[200];

	a->errors++;
	if (path_known) {
		http_error(r, 405, "ValidationException", 0, NULL,
			   "this path has no such method");
		return;
	}
	snprintf(text, sizeof(text),
		 "there is no such path; see docs/API.md for those there are");
	http_error(r, 404, "ResourceNotFoundException", 0, NULL, text);
}

void api_handle(void *ctx, struct http_req *r)
{
	struct api *a = ctx;
	struct err e = ERR_INIT;
	bool path_known = false;

	a->requests++;
	if (r->remote || strcmp(r->seg[0], "thaw")) {
		api_contract(a, r);
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(routes); i++) {
		if (!path_matches(&routes[i], r))
			continue;
		path_known = true;
		if (routes[i].method != r->method)
			continue;
		if (known_query(&routes[i], r, &e))
			api_fail(a, r, &e, NULL, NULL);
		else
			routes[i].call(a, r);
		return;
	}
	api_no_route(a, r, path_known);
}

// --- errors ------------------------------------------------------------------

static const struct {
	int code, status;
	const char *type;
	unsigned retry_after;
} exceptions[] = {
    {-EINVAL, 400, "ValidationException", 0},
    {-EDQUOT, 402, "ServiceQuotaExceededException", 0},
    {-EACCES, 403, "AccessDeniedException", 0},
    {-ENOENT, 404, "ResourceNotFoundException", 0},
    {-EBUSY, 409, "ConflictException", 0},
    {-EAGAIN, 429, "ThrottlingException", 5},
    {-ECONNREFUSED, 502, "InternalServerException", 0},
    {-ETIMEDOUT, 504, "InternalServerException", 0},
    {0, 500, "InternalServerException", 0}, // everything else
};

static size_t exception_of(int code)
{
	size_t i = 0;

	while (exceptions[i].code && exceptions[i].code != code)
		i++;
	return i;
}

static bool tagging(const struct http_req *r)
{
	return r->op && shape_error_of(r->op, "ServiceException");
}

// The operations on tags have names of their own for the same.
static const char *type_for(const struct http_req *r, const char *type)
{
	static const struct {
		const char *type, *tagging;
	} names[] = {
	    {"ValidationException", "InvalidParameterValueException"},
	    {"ConflictException", "ResourceConflictException"},
	    {"ThrottlingException", "TooManyRequestsException"},
	    {"InternalServerException", "ServiceException"},
	};

	for (size_t i = 0; tagging(r) && i < ARRAY_SIZE(names); i++) {
		if (!strcmp(names[i].type, type))
			return names[i].tagging;
	}
	return type;
}

// Adds a member where the exception has one of this name. thaw's own calls do
// as AWS's RunMicrovm.
static void put_extra(json_t *extra, const struct http_req *r, const char *type,
		      const char *name, json_t *value)
{
	const struct shape_op *op = r->op ? r->op : shape_op("RunMicrovm");
	const struct shape_error *x = shape_error_of(op, type);

	if (x && shape_has(x->shape, name))
		json_object_set_new(extra, name, value);
	else
		json_decref(value);
}

void api_fail(struct api *a, struct http_req *r, const struct err *e,
	      const char *resource_type, const char *resource_id)
{
	size_t i = exception_of(e->code);
	const char *type = type_for(r, exceptions[i].type);
	json_t *extra = json_object();

	a->errors++;
	if (resource_id) {
		put_extra(extra, r, type, "resourceId", api_text(resource_id));
		put_extra(extra, r, type, "resourceType",
			  json_string(resource_type));
	}
	if (exceptions[i].status == 402) {
		put_extra(extra, r, type, "serviceCode", json_string("lambda"));
		put_extra(extra, r, type, "quotaCode",
			  json_string("thaw-memory-budget"));
	}
	if (tagging(r))
		put_extra(extra, r, type, "Type", json_string("User"));
	api_check_error(r, exceptions[i].status, type, extra);
	http_error(r, exceptions[i].status, type, exceptions[i].retry_after,
		   extra, e->msg);
}

void api_fail_stream(struct api *a, struct http_stream *st, const struct err *e)
{
	size_t i = exception_of(e->code);

	a->errors++;
	http_stream_fail(st, exceptions[i].status, exceptions[i].type, e->msg);
}

// --- answers ----------------------------------------------------------------

struct answer {
	struct http_req *r;
	int status;
	json_t *body;
	char *text; // instead of it
};

static void send_answer(void *ctx)
{
	struct answer *an = ctx;

	if (an->text)
		http_reply_text(an->r, an->status, an->text);
	else
		http_reply(an->r, an->status, an->body);
	free(an);
}

static void answer_at(struct api *a, uint64_t seq, struct answer answer)
{
	struct answer *an = malloc(sizeof(*an));

	if (!an)
		abort();
	*an = answer;
	eng_reg_after(a->reg, seq, send_answer, an);
}

void api_answer(struct api *a, struct http_req *r, int status, json_t *body)
{
	api_answer_at(a, r, eng_reg_queued(a->reg), status, body);
}

void api_answer_at(struct api *a, struct http_req *r, uint64_t seq, int status,
		   json_t *body)
{
	api_check_answer(r, status, body, NULL);
	answer_at(a, seq, (struct answer){r, status, body, NULL});
}

void api_answer_text(struct api *a, struct http_req *r, uint64_t seq,
		     int status, char *text)
{
	api_check_answer(r, status, NULL, text);
	answer_at(a, seq, (struct answer){r, status, NULL, text});
}

json_t *api_bytes(const void *p, size_t n)
{
	json_t *j = json_stringn(p, n);
	char *copy;

	if (j)
		return j;
	copy = malloc(n + 1);
	if (!copy)
		abort();
	memcpy(copy, p, n);
	for (size_t i = 0; i < n; i++) {
		if (copy[i] & 0x80)
			copy[i] = '?';
	}
	j = json_stringn(copy, n);
	free(copy);
	return j;
}

json_t *api_text(const char *s)
{
	return api_bytes(s, strlen(s));
}

json_t *api_seconds(uint64_t ms)
{
	return json_real((double)ms / 1000.0);
}

// --- parameters -------------------------------------------------------------

int api_wait_of(json_t *in, unsigned *mask, uint64_t *ms, struct err *e)
{
	const char *wait = api_member(in, "wait");
	const json_t *timeout = json_object_get(in, "timeout");
	enum vm_state s = VM_PENDING;

	*mask = 0;
	*ms = (uint64_t)(timeout ? json_integer_value(timeout) : 30) * 1000;
	if (timeout && !wait)
		return err_set(e, -EINVAL, "timeout needs wait=STATE");
	if (!wait)
		return 0;
	if (eng_state_parse(wait, &s))
		return err_set(e, -EINVAL, "wait: there is no state %.40s",
			       wait);
	*mask = 1u << s;
	return 0;
}

struct reg_vm *api_vm_of(struct api *a, struct http_req *r, const char *id)
{
	struct err e = ERR_INIT;
	struct reg_vm *vm = NULL;

	if (strlen(id) > 1024) // 256 characters
		err_set(&e, -EINVAL,
			"1 validation error detected: Value at "
			"'microvmIdentifier' failed to satisfy constraint: "
			"Member must have between 1 and 256 characters");
	else if (!eng_vm_find(a->vms, id, &vm, &e))
		return vm;
	api_fail(a, r, &e, "microvm", e.code == -ENOENT ? id : NULL);
	return NULL;
}
