// RunMicrovm, GetMicrovm, ListMicrovms, SuspendMicrovm, ResumeMicrovm,
// TerminateMicrovm, and thaw's inspect.
//
// Answers: run and resume are held until the microVM runs (or failed), for at
// most START_HOLD_MS; terminate until it is TERMINATED; suspend is answered
// when SUSPENDING is durable. ?wait=STATE&timeout=S overrides all of these.
#include "api.h"

#include "endpoint.h"
#include "jtext.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define START_HOLD_MS 10000
#define END_HOLD_MS 10000
#define ANY_BUT_PENDING (~(1u << VM_PENDING))

// --- shapes ------------------------------------------------------------------

// The first members of a microVM, with "thaw" open as the last.
static void put_item(struct jtext *t, const struct reg_vm *vm)
{
	char arn[ARN_PREFIX_MAX + REG_NAME_MAX + 1];

	snprintf(arn, sizeof(arn), "%s%s", eng_arn_prefix(), vm->image);
	jt_str(t, "microvmId", vm->id);
	jt_str(t, "state", eng_state_name(vm->state));
	jt_str(t, "imageArn", arn);
	jt_str(t, "imageVersion", vm->version);
	jt_seconds(t, "startedAt",
		   vm->started_ms ? vm->started_ms : vm->created_ms);
}

// What it was run with, and the names where it named none.
static void put_logging(struct jtext *t, const struct reg_vm *vm)
{
	char buf[ENG_LOG_GROUP];
	const char *group, *stream;
	bool kept = eng_vm_log_names(vm, buf, &group, &stream);

	jt_open(t, "logging");
	jt_open(t, kept ? "cloudWatch" : "disabled");
	if (kept) {
		jt_str(t, "logGroup", group);
		jt_str(t, "logStream", stream);
	}
	jt_close(t);
	jt_close(t);
}

static void open_thaw(struct jtext *t, const struct reg_vm *vm)
{
	pid_t pid = eng_vm_pid(vm);

	jt_open(t, "thaw");
	jt_str(t, "name", vm->name);
	jt_json(t, "labels", vm->labels);
	jt_int(t, "memoryMiB", vm->mem_mib);
	jt_int(t, "vcpus", vm->vcpus);
	jt_bool(t, "agent", vm->agent);
	jt_bool(t, "cold", vm->cold);
	jt_seconds(t, "createdAt", vm->created_ms);
	jt_int(t, "suspends", vm->suspends);
	jt_int(t, "resumes", vm->resumes);
	jt_bool(t, "pooled", vm->pooled);
	jt_str(t, "reason", vm->code);
	put_logging(t, vm);
	if (vm->suspended_ms)
		jt_seconds(t, "suspendedAt", vm->suspended_ms);
	if (pid)
		jt_int(t, "pid", pid);
}

// All but what "thaw" has besides: its timings, and what inspect adds.
static void open_shape(struct api *a, struct jtext *t, const struct reg_vm *vm)
{
	char endpoint[REG_UUID_LEN + 300];
	const char *key;
	json_t *v;

	jt_open(t, NULL);
	put_item(t, vm);
	snprintf(endpoint, sizeof(endpoint), "%s.%s", vm->endpoint,
		 eng_endpoint_suffix(a->endpoint));
	jt_str(t, "endpoint", endpoint);
	jt_int(t, "maximumDurationInSeconds", vm->max_duration_s);
	if (vm->reason[0])
		jt_str(t, "stateReason", vm->reason);
	if (vm->ended_ms)
		jt_seconds(t, "terminatedAt", vm->ended_ms);
	json_object_foreach(vm->extra, key, v) // of the keys in kept()
	{
		if (strcmp(key, "logging"))
			jt_json(t, key, v);
	}
	open_thaw(t, vm);
}

static char *vm_shape(struct api *a, const struct reg_vm *vm)
{
	struct jtext t = {0};

	open_shape(a, &t, vm);
	jt_json(&t, "timings", vm->timings);
	jt_close(&t);
	jt_close(&t);
	return jt_take(&t);
}

// --- run ---------------------------------------------------------------------

struct held {
	struct api *a;
	struct http_req *r;
	bool full; // answer with the whole shape, not {}
};

static struct held *hold(struct api *a, struct http_req *r, bool full)
{
	struct held *h = malloc(sizeof(*h));

	if (!h)
		abort();
	*h = (struct held){a, r, full};
	return h;
}

static void fail_vm(struct api *a, struct http_req *r, int code,
		    const struct reg_vm *vm, const char *fmt, const char *why)
{
	struct err e = ERR_INIT;
	char text[300];

	snprintf(text, sizeof(text), fmt, vm->id); // both formats have one %s
	err_set(&e, code, "%s: %s", text, why);
	api_fail(a, r, &e, "microvm", vm->id);
}

static void run_over(void *ctx, struct reg_vm *vm, enum vm_wait_end how)
{
	struct held *h = ctx;

	(void)how; // the shape says how far it came
	if (vm->state == VM_TERMINATED && !vm->started_ms)
		fail_vm(h->a, h->r, -EIO, vm, "MicroVM %s did not start",
			vm->reason);
	else
		api_answer_text(h->a, h->r, vm->txn, 200, vm_shape(h->a, vm));
	free(h);
}

// How many of its bytes a message has room for: whole characters.
static int shown(const char *token)
{
	size_t n = strnlen(token, 64);

	while (n && ((uint8_t)token[n] & 0xc0) == 0x80)
		n--;
	return (int)n;
}

// 1: replayed (*vm is what the first one made), 0: new, -errno.
static int replayed(struct api *a, const char *token, const uint8_t params[16],
		    struct reg_vm **vm, struct err *e)
{
	const struct reg_token *t = token ? eng_reg_token(a->reg, token) : NULL;

	if (!t)
		return 0;
	if (memcmp(t->params, params, 16))
		return err_set(e, -EBUSY,
			       "clientToken %.*s was used before with other "
			       "parameters, for %s",
			       shown(token), token, t->vm);
	*vm = eng_reg_vm(a->reg, t->vm);
	if (!*vm)
		return err_set(e, -EBUSY,
			       "clientToken %.*s was used before, for %s, "
			       "which ended long ago",
			       shown(token), token, t->vm);
	return 1;
}

static int check_run(struct api *a, json_t *in, struct err *e)
{
	int rc = eng_net_check(json_object_get(in, "ingressNetworkConnectors"),
			       json_object_get(in, "egressNetworkConnectors"),
			       a->cfg->accept_egress, e);

	if (rc)
		return rc;
	if (json_object_get(in, "kmsKeyIdentifier"))
		return err_set(e, -EINVAL,
			       "kmsKeyIdentifier: thaw knows no KMS and "
			       "encrypts no snapshots; leave it out");
	if (json_is_true(json_object_get(in, "parked")) &&
	    json_object_size(in) != 2)
		return err_set(e, -EINVAL,
			       "parked goes with imageIdentifier alone: all "
			       "else comes with the run that claims it");
	return 0;
}

// What GetMicrovm says again; and its logging, which it does not: the image's
// where it has none of its own.
static json_t *kept(json_t *body, const struct reg_version *version)
{
	static const char *const keys[] = {
	    "ingressNetworkConnectors", "egressNetworkConnectors",
	    "executionRoleArn", "idlePolicy", "logging"};
	json_t *of_image = json_object_get(version->aws, "logging");
	json_t *out = json_object();

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		json_t *v = json_object_get(body, keys[i]);

		if (v)
			json_object_set(out, keys[i], v);
	}
	if (of_image && !json_object_get(out, "logging"))
		json_object_set(out, "logging", of_image);
	return out;
}

static int find_version(struct api *a, const struct http_req *r, json_t *body,
			struct vm_run *rq, struct err *e)
{
	const char *id = api_member(body, "imageIdentifier");
	const char *version = api_member(body, "imageVersion");
	struct reg_version *v = NULL;
	struct reg_image *im;
	int rc = eng_image_find(a->reg, id, !r->remote, &im, e);

	if (!rc)
		rc = eng_image_pick(im, version, &v, e);
	if (rc)
		return rc;
	rq->image = im;
	rq->version = v;
	eng_cells_want(a->cells, v->mem_mib, v->vcpus);
	return 0;
}

static int run_now(struct api *a, struct http_req *r, json_t *body,
		   const char *token, const uint8_t params[16],
		   struct reg_vm **vm, struct err *e)
{
	json_t *payload = json_object_get(body, "runHookPayload");
	json_t *max = json_object_get(body, "maximumDurationInSeconds");
	json_t *extra;
	struct vm_run rq = {
	    .name = json_string_value(json_object_get(body, "name")),
	    .labels = json_object_get(body, "labels"),
	    .cold = json_is_true(json_object_get(body, "cold")),
	    .parked = json_is_true(json_object_get(body, "parked")),
	    .payload = json_string_value(payload),
	    .payload_len = json_string_length(payload),
	    .max_duration_s = max ? (uint32_t)json_integer_value(max) : 28800,
	    .token = token,
	    .t0 = r->t0,
	};
	int rc = find_version(a, r, body, &rq, e);

	if (rc)
		return rc;
	memcpy(rq.params, params, 16);
	rq.extra = extra = kept(body, rq.version);
	rc = eng_vm_run(a->vms, &rq, vm, e);
	json_decref(extra);
	return rc;
}

// 404 is about the image; 409 about the microVM that has the token or the name, or
// else the image, whose pool is full.
static void refuse_run(struct api *a, struct http_req *r, json_t *in,
		       const char *token, const struct err *e)
{
	const struct reg_token *t = token ? eng_reg_token(a->reg, token) : NULL;
	const char *image = api_member(in, "imageIdentifier");
	const char *name = api_member(in, "name");

	if (e->code == -EBUSY && t)
		api_fail(a, r, e, "microvm", t->vm);
	else if (e->code == -EBUSY && name)
		api_fail(a, r, e, "microvm", name);
	else if (e->code == -EBUSY || e->code == -ENOENT)
		api_fail(a, r, e, "microvm-image", image);
	else
		api_fail(a, r, e, NULL, NULL);
}

void api_run_microvm(struct api *a, struct http_req *r, json_t *in)
{
	struct err e = ERR_INIT;
	struct reg_vm *vm = NULL;
	cleanup_free char *token = NULL;
	uint8_t params[16];
	unsigned mask = 0;
	uint64_t ms = 0;
	int rc = api_wait_of(in, &mask, &ms, &e);

	json_object_del(in, "wait");
	json_object_del(in, "timeout");
	if (!rc)
		rc = check_run(a, in, &e);
	if (!rc) {
		const char *t = api_member(in, "clientToken");

		token = t ? strdup(t) : NULL;
		json_object_del(in, "clientToken");
		eng_reg_params(in, params);
		rc = replayed(a, token, params, &vm, &e);
	}
	if (rc == 0)
		rc = run_now(a, r, in, token, params, &vm, &e);
	if (rc < 0) {
		if (!e.code)
			e.code = rc;
		refuse_run(a, r, in, token, &e);
		return;
	}
	eng_vm_wait(a->vms, vm, mask ? mask : ANY_BUT_PENDING, false,
		    mask ? ms : START_HOLD_MS, run_over, hold(a, r, true));
}

// The microVM that is meant, and members wait and timeout; answers by itself and
// returns NULL otherwise.
struct wait {
	unsigned mask; // 0: not asked for
	uint64_t ms;
};

static struct reg_vm *vm_and_wait(struct api *a, struct http_req *r, json_t *in,
				  struct wait *w)
{
	struct err e = ERR_INIT;

	if (!api_wait_of(in, &w->mask, &w->ms, &e))
		return api_vm_of(a, r, api_member(in, "microvmIdentifier"));
	api_fail(a, r, &e, NULL, NULL);
	return NULL;
}

// --- get and list -----------------------------------------------------------

static void get_over(void *ctx, struct reg_vm *vm, enum vm_wait_end how)
{
	struct held *h = ctx;

	(void)how;
	api_answer_text(h->a, h->r, vm->txn, 200, vm_shape(h->a, vm));
	free(h);
}

void api_get_microvm(struct api *a, struct http_req *r, json_t *in)
{
	struct wait w;
	struct reg_vm *vm = vm_and_wait(a, r, in, &w);

	if (!vm)
		return;
	if (!w.mask)
		api_answer_text(a, r, vm->txn, 200, vm_shape(a, vm));
	else
		eng_vm_wait(a->vms, vm, w.mask, false, w.ms, get_over,
			    hold(a, r, true));
}

struct list_filter {
	const char *image, *version, *group, *stream;
	unsigned states; // mask; 0: all
	const json_t *labels;
};

// -ENOENT: no image of that name is or was here. Of one that was deleted there may
// be records still: its whole name goes before what begins so.
static int named_image(struct api *a, const char *id, bool begin,
		       const char **name, struct err *e)
{
	struct reg_vm *const *vms;
	struct reg_image *im;
	size_t n;
	int rc;

	*name = eng_image_bare(id);
	vms = eng_reg_vms(a->reg, &n);
	for (size_t i = 0; i < n; i++) {
		if (!strcmp(vms[i]->image, *name))
			return 0;
	}
	rc = eng_image_find(a->reg, id, begin, &im, e);
	if (!rc)
		*name = im->name;
	return rc;
}

static int list_filter_of(struct api *a, const struct http_req *r, json_t *in,
			  struct list_filter *f, struct err *e)
{
	const char *id = api_member(in, "imageIdentifier");
	const json_t *v;
	enum vm_state s;
	size_t i;
	int rc;

	*f = (struct list_filter){
	    .version = api_member(in, "imageVersion"),
	    .group = api_member(in, "logGroup"),
	    .stream = api_member(in, "logStream"),
	    .labels = json_object_get(in, "label"),
	};
	rc = id ? named_image(a, id, !r->remote, &f->image, e) : 0;
	json_array_foreach(json_object_get(in, "state"), i, v)
	{
		if (!eng_state_parse(json_string_value(v), &s))
			f->states |= 1u << s;
	}
	return rc;
}

static bool label_matches(const struct reg_vm *vm, const char *kv)
{
	const char *eq = strchr(kv, '='), *have;
	char key[64];

	if (eq - kv >= (long)sizeof(key))
		return false;
	memcpy(key, kv, (size_t)(eq - kv));
	key[eq - kv] = '\0';
	have = json_string_value(json_object_get(vm->labels, key));
	return have && strcmp(have, eq + 1) == 0;
}

static bool logs_to(const struct reg_vm *vm, const struct list_filter *f)
{
	char buf[ENG_LOG_GROUP];
	const char *group, *stream;

	return eng_vm_log_names(vm, buf, &group, &stream) &&
	       (!f->group || !strcmp(group, f->group)) &&
	       (!f->stream || !strcmp(stream, f->stream));
}

static bool listed(const struct reg_vm *vm, const struct list_filter *f)
{
	const json_t *kv;
	size_t i;

	if (vm->parked && !(f->states & 1u << VM_PARKED))
		return false; // nobody's yet, or never anybody's
	if ((f->image && strcmp(vm->image, f->image)) ||
	    (f->version && strcmp(vm->version, f->version)) ||
	    (f->states && !(f->states & 1u << vm->state)) ||
	    ((f->group || f->stream) && !logs_to(vm, f)))
		return false;
	json_array_foreach(f->labels, i, kv)
	{
		if (!label_matches(vm, json_string_value(kv)))
			return false;
	}
	return true;
}

void api_list_microvms(struct api *a, struct http_req *r, json_t *in)
{
	struct err e = ERR_INIT;
	struct reg_vm *const *vms;
	struct list_filter f;
	struct api_page p;
	size_t n, found = 0;
	uint64_t seq = 0;
	struct jtext t = {0};
	char token[SHAPE_PAGE_TEXT];

	if (api_page_of(a, r, in, &p, &e) || list_filter_of(a, r, in, &f, &e)) {
		api_fail(a, r, &e, "microvm-image",
			 api_member(in, "imageIdentifier"));
		return;
	}
	vms = eng_reg_vms(a->reg, &n);
	jt_open(&t, NULL);
	jt_open_list(&t, "items");
	for (size_t i = 0; i < n && found <= p.max; i++) {
		if (vms[i]->seq <= p.after || !listed(vms[i], &f) ||
		    found++ == p.max)
			continue;
		jt_open(&t, NULL);
		put_item(&t, vms[i]);
		open_thaw(&t, vms[i]);
		jt_close(&t);
		jt_close(&t);
		seq = MAX(seq, vms[i]->txn);
		p.after = vms[i]->seq;
	}
	jt_close_list(&t);
	if (found > p.max) {
		api_page_next(a, r, in, p.after, token);
		jt_str(&t, "nextToken", token);
	}
	jt_close(&t);
	api_answer_text(a, r, seq, 200, jt_take(&t));
}

static void put_usage(struct jtext *t, const struct eng_cell *cell)
{
	struct eng_cell_usage u;

	eng_cell_usage(cell, &u);
	jt_open(t, "usage");
	jt_int(t, "privateBytes", (int64_t)u.private_bytes);
	jt_int(t, "overlayBytes", (int64_t)u.overlay_bytes);
	jt_int(t, "faults", (int64_t)u.faults);
	jt_int(t, "faultPages", (int64_t)u.fault_pages);
	jt_close(t);
}

void api_inspect_microvm(struct api *a, struct http_req *r)
{
	struct reg_vm *vm = api_vm_of(a, r, r->seg[3]);
	struct jtext t = {0};
	struct eng_cell *cell;
	char log[4096];
	json_t *timings;

	if (!vm)
		return;
	cell = eng_vm_cell(vm);
	timings = vm->timings ? json_deep_copy(vm->timings) : json_object();
	if (cell)
		eng_vm_late_timings(vm, timings);
	snprintf(log, sizeof(log), "%s/%s.log", a->cfg->log_dir, vm->id);
	open_shape(a, &t, vm);
	jt_json(&t, "timings", timings);
	json_decref(timings);
	jt_hex(&t, "base", vm->base.b, sizeof(vm->base.b));
	if (vm->has_own)
		jt_hex(&t, "snapshot", vm->own.b, sizeof(vm->own.b));
	jt_str(&t, "log", log);
	if (cell)
		put_usage(&t, cell);
	jt_close(&t);
	jt_close(&t);
	api_answer_text(a, r, vm->txn, 200, jt_take(&t));
}

// --- suspend, resume, terminate ---------------------------------------------

// An operation ended, or its target state came, or time is up.
static void op_over(void *ctx, struct reg_vm *vm, enum vm_wait_end how)
{
	struct held *h = ctx;
	const char *why = eng_vm_op_error(vm);

	if (how == VM_WAIT_ENDED)
		fail_vm(h->a, h->r, -EBUSY, vm, "MicroVM %s is TERMINATED",
			vm->reason);
	else if (how == VM_WAIT_OP && why[0])
		fail_vm(h->a, h->r, -EIO, vm, "MicroVM %s", why);
	else
		api_answer_at(h->a, h->r, vm->txn, 200, json_object());
	free(h);
}

void api_suspend_microvm(struct api *a, struct http_req *r, json_t *in)
{
	struct wait w;
	struct reg_vm *vm = vm_and_wait(a, r, in, &w);
	struct err e = ERR_INIT;

	if (!vm)
		return;
	if (eng_vm_suspend(a->vms, vm, &e)) {
		api_fail(a, r, &e, "microvm", vm->id);
		return;
	}
	if (w.mask)
		eng_vm_wait(a->vms, vm, w.mask, true, w.ms, op_over,
			    hold(a, r, false));
	else
		api_answer_at(a, r, vm->txn, 200, json_object());
}

void api_resume_microvm(struct api *a, struct http_req *r, json_t *in)
{
	struct wait w;
	struct reg_vm *vm = vm_and_wait(a, r, in, &w);
	struct err e = ERR_INIT;

	if (!vm)
		return;
	if (eng_vm_resume(a->vms, vm, r->t0, &e)) {
		api_fail(a, r, &e, "microvm", vm->id);
		return;
	}
	eng_vm_wait(a->vms, vm, w.mask ? w.mask : 1u << VM_RUNNING, true,
		    w.mask ? w.ms : START_HOLD_MS, op_over, hold(a, r, false));
}

static void terminate_over(void *ctx, struct reg_vm *vm, enum vm_wait_end how)
{
	struct held *h = ctx;

	(void)how; // TERMINATING is as good: it cannot come back
	api_answer_at(h->a, h->r, vm->txn, 200, json_object());
	free(h);
}

void api_terminate_microvm(struct api *a, struct http_req *r, json_t *in)
{
	struct wait w;
	struct reg_vm *vm = vm_and_wait(a, r, in, &w);

	if (!vm)
		return;
	eng_vm_terminate(a->vms, vm, "requested", "");
	eng_vm_wait(a->vms, vm, w.mask ? w.mask : 1u << VM_TERMINATED, false,
		    w.mask ? w.ms : END_HOLD_MS, terminate_over,
		    hold(a, r, false));
}
