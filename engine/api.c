// Routing, and what all calls share.
#include "api.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define AWS "2025-09-09"

// A path pattern: "*" stands for one segment, "" ends it. `query` lists the
// parameters that the call knows.
struct route {
	enum http_method method;
	const char *path[HTTP_MAX_SEGS];
	api_call *call;
	const char *query[8];
};

static const struct route routes[] = {
    // AWS's operations
    {HTTP_POST, {AWS, "microvms"}, api_run_microvm, {"wait", "timeout"}},
    {HTTP_GET,
     {AWS, "microvms"},
     api_list_microvms,
     {"maxResults", "nextToken", "imageIdentifier", "imageVersion", "label",
      "state"}},
    {HTTP_GET, {AWS, "microvms", "*"}, api_get_microvm, {"wait", "timeout"}},
    {HTTP_DELETE,
     {AWS, "microvms", "*"},
     api_terminate_microvm,
     {"wait", "timeout"}},
    {HTTP_POST,
     {AWS, "microvms", "*", "suspend"},
     api_suspend_microvm,
     {"wait", "timeout"}},
    {HTTP_POST,
     {AWS, "microvms", "*", "resume"},
     api_resume_microvm,
     {"wait", "timeout"}},
    {HTTP_GET,
     {AWS, "microvm-images"},
     api_list_images,
     {"maxResults", "nextToken", "nameFilter"}},
    {HTTP_GET, {AWS, "microvm-images", "*"}, api_get_image, {0}},
    {HTTP_DELETE, {AWS, "microvm-images", "*"}, api_delete_image, {0}},
    {HTTP_GET,
     {AWS, "microvm-images", "*", "versions"},
     api_list_versions,
     {"maxResults", "nextToken"}},
    {HTTP_GET,
     {AWS, "microvm-images", "*", "versions", "*"},
     api_get_version,
     {0}},
    {HTTP_PATCH,
     {AWS, "microvm-images", "*", "versions", "*"},
     api_update_version,
     {0}},
    {HTTP_DELETE,
     {AWS, "microvm-images", "*", "versions", "*"},
     api_delete_version,
     {0}},
    // thaw's own
    {HTTP_GET, {"thaw", "v1", "images"}, api_thaw_images, {0}},
    {HTTP_POST, {"thaw", "v1", "images"}, api_build_image, {0}},
    {HTTP_GET, {"thaw", "v1", "images", "*"}, api_thaw_image, {0}},
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

static void no_route(struct api *a, struct http_req *r, bool path_known)
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
	no_route(a, r, path_known);
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

void api_fail(struct api *a, struct http_req *r, const struct err *e,
	      const char *resource_type, const char *resource_id)
{
	size_t i = exception_of(e->code);
	json_t *extra = NULL;

	a->errors++;
	if (resource_id)
		extra =
		    json_pack("{s:o,s:s}", "resourceId", api_text(resource_id),
			      "resourceType", resource_type);
	if (exceptions[i].status == 402)
		extra = json_pack("{s:s,s:s}", "serviceCode", "lambda",
				  "quotaCode", "thaw-memory-budget");
	http_error(r, exceptions[i].status, exceptions[i].type,
		   exceptions[i].retry_after, extra, e->msg);
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
	answer_at(a, seq, (struct answer){r, status, body, NULL});
}

void api_answer_text(struct api *a, struct http_req *r, uint64_t seq,
		     int status, char *text)
{
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

int api_wait_params(const struct http_req *r, unsigned *mask, uint64_t *ms,
		    struct err *e)
{
	const char *wait = http_query(r, "wait");
	const char *timeout = http_query(r, "timeout");
	enum vm_state s = VM_PENDING;
	long seconds = 30;

	*mask = 0;
	if (wait && eng_state_parse(wait, &s))
		return err_set(e, -EINVAL,
			       "wait takes a state (PENDING, PARKED, "
			       "RUNNING, SUSPENDING, SUSPENDED, TERMINATING, "
			       "TERMINATED), not \"%.40s\"",
			       wait);
	if (wait)
		*mask = 1u << s;
	if (timeout && check_number(timeout, 0, 3600, &seconds))
		return err_set(e, -EINVAL,
			       "timeout takes seconds from 0 to 3600, not "
			       "\"%.40s\"",
			       timeout);
	if (timeout && !wait)
		return err_set(e, -EINVAL, "timeout needs wait=STATE");
	*ms = (uint64_t)seconds * 1000;
	return 0;
}

// Tokens are URL-safe without padding; what is in them is ours to change.
int api_page_params(const struct http_req *r, size_t *max, uint64_t *after,
		    struct err *e)
{
	const char *m = http_query(r, "maxResults");
	const char *t = http_query(r, "nextToken");
	uint8_t raw[8];
	long n = 50;

	if (m && check_number(m, 1, 50, &n))
		return err_set(e, -EINVAL,
			       "1 validation error detected: Value at "
			       "'maxResults' failed to satisfy constraint: "
			       "Member must be between 1 and 50");
	*max = (size_t)n;
	*after = 0;
	if (!t)
		return 0;
	if (strlen(t) != 18 || strncmp(t, "p1", 2) ||
	    util_unhex(raw, sizeof(raw), t + 2))
		return err_set(e, -EINVAL, "nextToken is invalid");
	for (size_t i = 0; i < sizeof(raw); i++)
		*after = *after << 8 | raw[i];
	return 0;
}

json_t *api_next_token(uint64_t after)
{
	return json_sprintf("p1%016llx", (unsigned long long)after);
}

struct reg_vm *api_vm_of(struct api *a, struct http_req *r, unsigned seg)
{
	struct err e = ERR_INIT;
	struct reg_vm *vm = NULL;

	if (strlen(r->seg[seg]) > 256)
		err_set(&e, -EINVAL,
			"1 validation error detected: Value at "
			"'microvmIdentifier' failed to satisfy constraint: "
			"Member must have between 1 and 256 characters");
	else if (!eng_vm_find(a->vms, r->seg[seg], &vm, &e))
		return vm;
	api_fail(a, r, &e, e.code == -ENOENT ? "microvm" : NULL,
		 e.code == -ENOENT ? r->seg[seg] : NULL);
	return NULL;
}
