// RunMicrovm, GetMicrovm, ListMicrovms, SuspendMicrovm, ResumeMicrovm,
// TerminateMicrovm, and thaw's inspect.
//
// Answers: run and resume are held until the microVM runs (or failed), for at
// most START_HOLD_MS; terminate until it is TERMINATED; suspend is answered
// when SUSPENDING is durable. ?wait=STATE&timeout=S overrides all of these.
#include "api.h"
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
	if (vm->suspended_ms)
		jt_seconds(t, "suspendedAt", vm->suspended_ms);
	if (pid)
		jt_int(t, "pid", pid);
}

// All but what "thaw" has besides: its timings, and what inspect adds.
static void open_shape(struct jtext *t, const struct reg_vm *vm)
{
	char endpoint[REG_ID_LEN + 12];
	const char *key;
	json_t *v;

	jt_open(t, NULL);
	put_item(t, vm);
	// The host name that the endpoint will have; nothing answers there yet.
	snprintf(endpoint, sizeof(endpoint), "%s.localhost", vm->id);
	jt_str(t, "endpoint", endpoint);
	jt_int(t, "maximumDurationInSeconds", vm->max_duration_s);
	if (vm->reason[0])
		jt_str(t, "stateReason", vm->reason);
	if (vm->ended_ms)
		jt_seconds(t, "terminatedAt", vm->ended_ms);
	json_object_foreach(vm->extra, key, v) // of the keys in echoed()
	    jt_json(t, key, v);
	open_thaw(t, vm);
}

static char *vm_shape(const struct reg_vm *vm)
{
	struct jtext t = {0};

	open_shape(&t, vm);
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
		api_answer_text(h->a, h->r, vm->txn, 200, vm_shape(vm));
	free(h);
}

static void digest(json_t *body, uint8_t out[16])
{
	cleanup_free char *text =
	    json_dumps(body, JSON_COMPACT | JSON_SORT_KEYS);
	uint64_t h[2] = {0xcbf29ce484222325u, 0x84222325cbf29ce4u};

	for (const char *p = text; p && *p; p++) {
		h[0] = (h[0] ^ (uint8_t)*p) * 0x100000001b3u;
		h[1] = (h[1] ^ (uint8_t)(*p + 101)) * 0x100000001b3u;
	}
	memcpy(out, h, 16);
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
			       "clientToken %.128s was used before with other "
			       "parameters, for %s",
			       token, t->vm);
	*vm = eng_reg_vm(a->reg, t->vm);
	if (!*vm)
		return err_set(e, -EBUSY,
			       "clientToken %.128s was used before, for %s, "
			       "which ended long ago",
			       token, t->vm);
	return 1;
}

static const struct check_field run_fields[] = {
    {"imageIdentifier", CHECK_STRING, true, 1, 256},
    {"imageVersion", CHECK_NOBLANK, false, 1, 2048},
    {"ingressNetworkConnectors", CHECK_CONNECTORS, false, 0, 10},
    {"egressNetworkConnectors", CHECK_CONNECTORS, false, 0, 10},
    {"executionRoleArn", CHECK_ROLE, false, 20, 2048},
    {"idlePolicy", CHECK_IDLE, false, 0, 0},
    {"logging", CHECK_LOGGING, false, 0, 0},
    {"runHookPayload", CHECK_BYTES, false, 0, 4096},
    {"maximumDurationInSeconds", CHECK_INT, false, 1, 28800},
    {"clientToken", CHECK_STRING, false, 1, REG_TOKEN_MAX},
    {"name", CHECK_NAME, false, 1, REG_NAME_MAX},
    {"labels", CHECK_LABELS, false, 0, 64},
    {"cold", CHECK_BOOL, false, 0, 0},
    {"parked", CHECK_BOOL, false, 0, 0},
};

static int check_run(json_t *body, struct err *e)
{
	int rc = check_object(body, "", run_fields, ARRAY_SIZE(run_fields), e);
	const char *token;

	if (rc)
		return rc;
	if (json_array_size(json_object_get(body, "egressNetworkConnectors")))
		return err_set(e, -EINVAL,
			       "egressNetworkConnectors: thaw serves no egress "
			       "yet; leave the member out");
	if (json_is_true(json_object_get(body, "parked")) &&
	    json_object_size(body) != 2)
		return err_set(e, -EINVAL,
			       "parked goes with imageIdentifier alone: all "
			       "else comes with the run that claims it");
	token = json_string_value(json_object_get(body, "clientToken"));
	if (token && strlen(token) > REG_TOKEN_MAX)
		return err_set(e, -EINVAL,
			       "1 validation error detected: Value at "
			       "'clientToken' failed to satisfy constraint: "
			       "Member must have at most %d bytes",
			       REG_TOKEN_MAX);
	return 0;
}

static json_t *echoed(json_t *body)
{
	static const char *const keys[] = {"ingressNetworkConnectors",
					   "egressNetworkConnectors",
					   "executionRoleArn", "idlePolicy"};
	json_t *out = json_object();

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		json_t *v = json_object_get(body, keys[i]);

		if (v)
			json_object_set(out, keys[i], v);
	}
	return out;
}

static int find_version(struct api *a, json_t *body, struct vm_run *rq,
			struct err *e)
{
	const char *id =
	    json_string_value(json_object_get(body, "imageIdentifier"));
	const char *version =
	    json_string_value(json_object_get(body, "imageVersion"));
	struct reg_version *v = NULL;
	struct reg_image *im;
	int rc = eng_image_find(a->reg, id, &im, e);

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
	int rc = find_version(a, body, &rq, e);

	if (rc)
		return rc;
	memcpy(rq.params, params, 16);
	rq.extra = extra = echoed(body);
	rc = eng_vm_run(a->vms, &rq, vm, e);
	json_decref(extra);
	return rc;
}

void api_run_microvm(struct api *a, struct http_req *r)
{
	struct err e = ERR_INIT;
	struct reg_vm *vm = NULL;
	cleanup_free char *token = NULL;
	uint8_t params[16];
	unsigned mask = 0;
	uint64_t ms = 0;
	json_t *body = check_body(r->body, r->body_len, &e), *t;
	int rc = body ? check_run(body, &e) : -EINVAL;

	if (!rc)
		rc = api_wait_params(r, &mask, &ms, &e);
	if (!rc) {
		t = json_object_get(body, "clientToken");
		token = t ? strdup(json_string_value(t)) : NULL;
		json_object_del(body, "clientToken");
		digest(body, params);
		rc = replayed(a, token, params, &vm, &e);
	}
	if (rc == 0)
		rc = run_now(a, r, body, token, params, &vm, &e);
	json_decref(body);
	if (rc < 0) {
		if (!e.code)
			e.code = rc;
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
	eng_vm_wait(a->vms, vm, mask ? mask : ANY_BUT_PENDING, false,
		    mask ? ms : START_HOLD_MS, run_over, hold(a, r, true));
}

// The microVM of seg[2] and ?wait=; answers by itself and returns NULL otherwise.
struct wait {
	unsigned mask; // 0: not asked for
	uint64_t ms;
};

static struct reg_vm *vm_and_wait(struct api *a, struct http_req *r,
				  struct wait *w)
{
	struct err e = ERR_INIT;

	if (!api_wait_params(r, &w->mask, &w->ms, &e))
		return api_vm_of(a, r, 2);
	api_fail(a, r, &e, NULL, NULL);
	return NULL;
}

// --- get and list -----------------------------------------------------------

static void get_over(void *ctx, struct reg_vm *vm, enum vm_wait_end how)
{
	struct held *h = ctx;

	(void)how;
	api_answer_text(h->a, h->r, vm->txn, 200, vm_shape(vm));
	free(h);
}

void api_get_microvm(struct api *a, struct http_req *r)
{
	struct wait w;
	struct reg_vm *vm = vm_and_wait(a, r, &w);

	if (!vm)
		return;
	if (!w.mask)
		api_answer_text(a, r, vm->txn, 200, vm_shape(vm));
	else
		eng_vm_wait(a->vms, vm, w.mask, false, w.ms, get_over,
			    hold(a, r, true));
}

struct list_filter {
	const char *image, *version;
	unsigned states; // mask; 0: all
	const char *labels[HTTP_MAX_QUERY];
	unsigned nlabels;
};

static int list_filter_of(struct api *a, const struct http_req *r,
			  struct list_filter *f, struct err *e)
{
	const char *id = http_query(r, "imageIdentifier");
	struct reg_image *im;
	enum vm_state s;

	memset(f, 0, sizeof(*f));
	f->version = http_query(r, "imageVersion");
	if (id && (!*id || strlen(id) > 256))
		return err_set(e, -EINVAL,
			       "imageIdentifier must have between 1 and 256 "
			       "characters");
	if (id)
		f->image = eng_image_find(a->reg, id, &im, e) ? id : im->name;
	for (unsigned i = 0; i < r->nquery; i++) {
		const char *v = r->query[i].v;

		if (!strcmp(r->query[i].k, "label")) {
			if (!strchr(v, '='))
				return err_set(e, -EINVAL,
					       "label takes KEY=VALUE, not "
					       "\"%.60s\"",
					       v);
			f->labels[f->nlabels++] = v;
		} else if (!strcmp(r->query[i].k, "state")) {
			if (eng_state_parse(v, &s))
				return err_set(e, -EINVAL,
					       "state takes a state, not "
					       "\"%.40s\"",
					       v);
			f->states |= 1u << s;
		}
	}
	return 0;
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

static bool listed(const struct reg_vm *vm, const struct list_filter *f)
{
	if (vm->parked && !(f->states & 1u << VM_PARKED))
		return false; // nobody's yet, or never anybody's
	if ((f->image && strcmp(vm->image, f->image)) ||
	    (f->version && strcmp(vm->version, f->version)) ||
	    (f->states && !(f->states & 1u << vm->state)))
		return false;
	for (unsigned i = 0; i < f->nlabels; i++) {
		if (!label_matches(vm, f->labels[i]))
			return false;
	}
	return true;
}

void api_list_microvms(struct api *a, struct http_req *r)
{
	struct err e = ERR_INIT;
	struct reg_vm *const *vms;
	struct list_filter f;
	size_t n, max = 0;
	uint64_t after = 0, seq = 0;
	struct jtext t = {0};
	size_t found = 0;
	bool more = false;

	if (api_page_params(r, &max, &after, &e) ||
	    list_filter_of(a, r, &f, &e)) {
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
	vms = eng_reg_vms(a->reg, &n);
	jt_open(&t, NULL);
	jt_open_list(&t, "items");
	for (size_t i = 0; i < n && !more; i++) {
		if (vms[i]->seq <= after || !listed(vms[i], &f))
			continue;
		more = found++ == max;
		if (more)
			break;
		jt_open(&t, NULL);
		put_item(&t, vms[i]);
		open_thaw(&t, vms[i]);
		jt_close(&t);
		jt_close(&t);
		seq = MAX(seq, vms[i]->txn);
		after = vms[i]->seq;
	}
	jt_close_list(&t);
	if (more) {
		json_t *token = api_next_token(after);

		jt_json(&t, "nextToken", token);
		json_decref(token);
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
	struct reg_vm *vm = api_vm_of(a, r, 3);
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
	open_shape(&t, vm);
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

void api_suspend_microvm(struct api *a, struct http_req *r)
{
	struct wait w;
	struct reg_vm *vm = vm_and_wait(a, r, &w);
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

void api_resume_microvm(struct api *a, struct http_req *r)
{
	struct wait w;
	struct reg_vm *vm = vm_and_wait(a, r, &w);
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

void api_terminate_microvm(struct api *a, struct http_req *r)
{
	struct wait w;
	struct reg_vm *vm = vm_and_wait(a, r, &w);

	if (!vm)
		return;
	eng_vm_terminate(a->vms, vm, "requested", "");
	eng_vm_wait(a->vms, vm, w.mask ? w.mask : 1u << VM_TERMINATED, false,
		    w.mask ? w.ms : END_HOLD_MS, terminate_over,
		    hold(a, r, false));
}
