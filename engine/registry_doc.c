// Registry records as JSON and back. Rows come from a file: every member is
// checked before the model sees it.
#include "registry_internal.h"

#include "jtext.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const state_names[] = {
    "PENDING",	 "PARKED",	"RUNNING",    "SUSPENDING",
    "SUSPENDED", "TERMINATING", "TERMINATED",
};
_Static_assert(ARRAY_SIZE(state_names) == VM_NUM_STATES, "a name per state");

const char *eng_state_name(enum vm_state s)
{
	return state_names[s];
}

int eng_state_parse(const char *name, enum vm_state *out)
{
	for (unsigned i = 0; i < VM_NUM_STATES; i++) {
		if (strcmp(name, state_names[i]) == 0) {
			*out = (enum vm_state)i;
			return 0;
		}
	}
	return -EINVAL;
}

static const char *const version_states[] = {"PENDING", "IN_PROGRESS",
					     "SUCCESSFUL", "FAILED"};
_Static_assert(ARRAY_SIZE(version_states) == VER_NUM_STATES,
	       "a name per state");

const char *eng_version_state_name(enum version_state s)
{
	return version_states[s];
}

static bool take_version_state(const char *name, enum version_state *out)
{
	for (unsigned i = 0; i < VER_NUM_STATES; i++) {
		if (strcmp(name, version_states[i]) == 0) {
			*out = (enum version_state)i;
			return true;
		}
	}
	return false;
}

static void put_id(struct jtext *t, const char *key, bool has,
		   const struct pgc_id *id)
{
	if (has)
		jt_hex(t, key, id->b, sizeof(id->b));
	else
		jt_null(t, key);
}

char *reg_doc_vm(const struct reg_vm *vm)
{
	struct jtext t = {0};

	jt_open(&t, NULL);
	jt_int(&t, "seq", (int64_t)vm->seq);
	jt_str(&t, "name", vm->name);
	jt_str(&t, "endpoint", vm->endpoint);
	jt_str(&t, "image", vm->image);
	jt_str(&t, "version", vm->version);
	put_id(&t, "base", true, &vm->base);
	jt_bool(&t, "baseIsOwn", vm->base_is_own);
	put_id(&t, "own", vm->has_own, &vm->own);
	jt_int(&t, "memoryMiB", vm->mem_mib);
	jt_int(&t, "vcpus", vm->vcpus);
	jt_bool(&t, "agent", vm->agent);
	jt_bool(&t, "cold", vm->cold);
	jt_bool(&t, "parked", vm->parked);
	jt_bool(&t, "pooled", vm->pooled);
	jt_str(&t, "state", eng_state_name(vm->state));
	jt_str(&t, "code", vm->code);
	jt_str(&t, "reason", vm->reason);
	jt_int(&t, "maxDurationS", vm->max_duration_s);
	jt_int(&t, "created", (int64_t)vm->created_ms);
	jt_int(&t, "started", (int64_t)vm->started_ms);
	jt_int(&t, "suspended", (int64_t)vm->suspended_ms);
	jt_int(&t, "ended", (int64_t)vm->ended_ms);
	jt_int(&t, "suspends", vm->suspends);
	jt_int(&t, "resumes", vm->resumes);
	jt_json(&t, "labels", vm->labels);
	jt_json(&t, "extra", vm->extra);
	jt_json(&t, "timings", vm->timings);
	jt_close(&t);
	return jt_take(&t);
}

char *reg_doc_image(const struct reg_image *im)
{
	struct jtext t = {0};

	jt_open(&t, NULL);
	jt_int(&t, "created", (int64_t)im->created_ms);
	jt_int(&t, "updated", (int64_t)im->updated_ms);
	jt_int(&t, "lastMajor", im->last_major);
	if (im->tags)
		jt_json(&t, "tags", im->tags);
	jt_close(&t);
	return jt_take(&t);
}

char *reg_doc_version(const struct reg_version *v)
{
	struct jtext t = {0};

	jt_open(&t, NULL);
	put_id(&t, "snap", true, &v->snap);
	put_id(&t, "disk", v->has_disk, &v->disk);
	jt_int(&t, "memoryMiB", v->mem_mib);
	jt_int(&t, "vcpus", v->vcpus);
	jt_bool(&t, "agent", v->agent);
	jt_bool(&t, "active", v->active);
	jt_int(&t, "created", (int64_t)v->created_ms);
	jt_json(&t, "spec", v->spec);
	jt_json(&t, "sizes", v->sizes);
	jt_str(&t, "state", version_states[v->state]);
	jt_int(&t, "updated", (int64_t)v->updated_ms);
	jt_str(&t, "build", v->build_id);
	jt_str(&t, "reason", v->reason);
	if (v->aws)
		jt_json(&t, "aws", v->aws);
	jt_close(&t);
	return jt_take(&t);
}

char *reg_doc_token(const struct reg_token *tok)
{
	struct jtext t = {0};

	jt_open(&t, NULL);
	jt_hex(&t, "params", tok->params, sizeof(tok->params));
	jt_str(&t, "vm", tok->vm);
	jt_int(&t, "created", (int64_t)tok->created_ms);
	jt_close(&t);
	return jt_take(&t);
}

char *reg_doc_pool(const struct reg_pool *p)
{
	struct jtext t = {0};

	jt_open(&t, NULL);
	jt_int(&t, "size", p->size);
	jt_int(&t, "hits", (int64_t)p->hits);
	jt_int(&t, "misses", (int64_t)p->misses);
	jt_int(&t, "wasted", (int64_t)p->wasted);
	jt_int(&t, "created", (int64_t)p->created_ms);
	jt_int(&t, "updated", (int64_t)p->updated_ms);
	jt_close(&t);
	return jt_take(&t);
}

// --- back --------------------------------------------------------------------

static bool take_text(char *dst, size_t cap, const char *src)
{
	if (!src || strlen(src) >= cap)
		return false;
	strcpy(dst, src);
	return true;
}

static bool take_id(json_t *j, bool *has, struct pgc_id *out)
{
	if (json_is_null(j) && has) {
		*has = false;
		return true;
	}
	if (has)
		*has = true;
	return json_is_string(j) &&
	       !util_unhex(out->b, sizeof(out->b), json_string_value(j));
}

static bool take_size(json_int_t mem, json_int_t vcpus, uint32_t *mem_out,
		      unsigned *vcpus_out)
{
	if (mem < 1 || mem > 1 << 20 || vcpus < 1 || vcpus > 64)
		return false;
	*mem_out = (uint32_t)mem;
	*vcpus_out = (unsigned)vcpus;
	return true;
}

static int bad_row(struct err *e, const char *what, const char *key,
		   const char *why)
{
	return err_set(e, -EBADMSG, "%s row \"%.64s\" is malformed: %s", what,
		       key, why);
}

struct vm_row { // as JSON unpacks it
	const char *name, *endpoint, *image, *version, *state, *code, *reason;
	json_t *base, *own, *labels, *extra, *timings;
	json_int_t seq, mem, vcpus, max, created, started, suspended, ended;
	json_int_t suspends, resumes;
	int base_is_own, agent, cold, parked, pooled;
};

static bool vm_of_row(struct reg_vm *vm, const char *key,
		      const struct vm_row *w)
{
	if (!take_text(vm->id, sizeof(vm->id), key) ||
	    !take_text(vm->name, sizeof(vm->name), w->name) ||
	    !take_text(vm->endpoint, sizeof(vm->endpoint), w->endpoint) ||
	    !take_text(vm->image, sizeof(vm->image), w->image) ||
	    !take_text(vm->version, sizeof(vm->version), w->version) ||
	    !take_text(vm->code, sizeof(vm->code), w->code) ||
	    !take_text(vm->reason, sizeof(vm->reason), w->reason) ||
	    !take_id(w->base, NULL, &vm->base) ||
	    !take_id(w->own, &vm->has_own, &vm->own) ||
	    !take_size(w->mem, w->vcpus, &vm->mem_mib, &vm->vcpus) ||
	    eng_state_parse(w->state, &vm->state) || w->seq < 1 || w->max < 1 ||
	    w->max > 1 << 30 || !json_is_object(w->labels) ||
	    !json_is_object(w->extra) || !json_is_object(w->timings))
		return false;
	vm->seq = (uint64_t)w->seq;
	vm->max_duration_s = (uint32_t)w->max;
	vm->base_is_own = w->base_is_own;
	vm->agent = w->agent;
	vm->cold = w->cold;
	vm->parked = w->parked;
	vm->pooled = w->pooled;
	vm->created_ms = (uint64_t)w->created;
	vm->started_ms = (uint64_t)w->started;
	vm->suspended_ms = (uint64_t)w->suspended;
	vm->ended_ms = (uint64_t)w->ended;
	vm->suspends = (unsigned)w->suspends;
	vm->resumes = (unsigned)w->resumes;
	vm->labels = json_incref(w->labels);
	vm->extra = json_incref(w->extra);
	vm->timings = json_incref(w->timings);
	return true;
}

int reg_undoc_vm(struct reg_vm *vm, const char *key, json_t *doc, struct err *e)
{
	struct vm_row w = {0};
	json_error_t je;

	w.endpoint = strlen(key) > 8 ? key + 8 : ""; // it had none yet

	if (json_unpack_ex(
		doc, &je, 0,
		"{s:I,s:s,s?s,s:s,s:s,s:o,s:b,s:o,s:I,s:I,s:b,s:b,s?b,s?b,s:s,"
		"s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:o,s:o}",
		"seq", &w.seq, "name", &w.name, "endpoint", &w.endpoint,
		"image", &w.image, "version", &w.version, "base", &w.base,
		"baseIsOwn", &w.base_is_own, "own", &w.own, "memoryMiB", &w.mem,
		"vcpus", &w.vcpus, "agent", &w.agent, "cold", &w.cold, "parked",
		&w.parked, "pooled", &w.pooled, "state", &w.state, "code",
		&w.code, "reason", &w.reason, "maxDurationS", &w.max, "created",
		&w.created, "started", &w.started, "suspended", &w.suspended,
		"ended", &w.ended, "suspends", &w.suspends, "resumes",
		&w.resumes, "labels", &w.labels, "extra", &w.extra, "timings",
		&w.timings))
		return bad_row(e, "microvms", key, je.text);
	if (!vm_of_row(vm, key, &w))
		return bad_row(e, "microvms", key, "a value is out of range");
	return 0;
}

int reg_undoc_image(struct reg_image *im, const char *key, json_t *doc,
		    struct err *e)
{
	json_int_t created, updated, major;
	json_t *tags = NULL;
	json_error_t je;

	if (json_unpack_ex(doc, &je, 0, "{s:I,s:I,s:I,s?o}", "created",
			   &created, "updated", &updated, "lastMajor", &major,
			   "tags", &tags))
		return bad_row(e, "images", key, je.text);
	if (!take_text(im->name, sizeof(im->name), key) || major < 0 ||
	    major > 1 << 30 || (tags && !json_is_object(tags)))
		return bad_row(e, "images", key, "a value is out of range");
	im->tags = json_incref(tags);
	im->created_ms = (uint64_t)created;
	im->updated_ms = (uint64_t)updated;
	im->last_major = (unsigned)major;
	return 0;
}

int reg_undoc_version(struct reg_version *v, const char *version, json_t *doc,
		      struct err *e)
{
	const char *state = "SUCCESSFUL", *build = "", *reason = "";
	json_t *snap, *disk, *spec, *sizes, *aws = NULL;
	json_int_t mem, vcpus, created, updated = 0;
	int agent, active;
	json_error_t je;

	if (json_unpack_ex(doc, &je, 0,
			   "{s:o,s:o,s:I,s:I,s:b,s:b,s:I,s:o,s:o,s?s,s?I,s?s,"
			   "s?s,s?o}",
			   "snap", &snap, "disk", &disk, "memoryMiB", &mem,
			   "vcpus", &vcpus, "agent", &agent, "active", &active,
			   "created", &created, "spec", &spec, "sizes", &sizes,
			   "state", &state, "updated", &updated, "build",
			   &build, "reason", &reason, "aws", &aws))
		return bad_row(e, "versions", version, je.text);
	if (!take_text(v->version, sizeof(v->version), version) ||
	    !take_text(v->build_id, sizeof(v->build_id), build) ||
	    !take_text(v->reason, sizeof(v->reason), reason) ||
	    !take_version_state(state, &v->state) ||
	    !take_id(snap, NULL, &v->snap) ||
	    !take_id(disk, &v->has_disk, &v->disk) ||
	    !take_size(mem, vcpus, &v->mem_mib, &v->vcpus) || updated < 0 ||
	    !json_is_object(spec) || !json_is_object(sizes) ||
	    (aws && !json_is_object(aws)))
		return bad_row(e, "versions", version,
			       "a value is out of range");
	v->updated_ms = (uint64_t)updated;
	v->aws = json_incref(aws);
	v->agent = agent;
	v->active = active;
	v->created_ms = (uint64_t)created;
	v->spec = json_incref(spec);
	v->sizes = json_incref(sizes);
	return 0;
}

int reg_undoc_token(struct reg_token *t, const char *key, json_t *doc,
		    struct err *e)
{
	const char *params, *vm;
	json_int_t created;
	json_error_t je;

	t->token = reg_must(strdup(key));
	if (json_unpack_ex(doc, &je, 0, "{s:s,s:s,s:I}", "params", &params,
			   "vm", &vm, "created", &created))
		return bad_row(e, "tokens", key, je.text);
	if (strlen(key) > REG_TOKEN_MAX ||
	    !take_text(t->vm, sizeof(t->vm), vm) ||
	    util_unhex(t->params, sizeof(t->params), params))
		return bad_row(e, "tokens", key, "a value is out of range");
	t->created_ms = (uint64_t)created;
	return 0;
}

int reg_undoc_pool(struct reg_pool *p, const char *key, json_t *doc,
		   struct err *e)
{
	json_int_t size, hits, misses, wasted, created, updated;
	json_error_t je;

	if (json_unpack_ex(doc, &je, 0, "{s:I,s:I,s:I,s:I,s:I,s:I}", "size",
			   &size, "hits", &hits, "misses", &misses, "wasted",
			   &wasted, "created", &created, "updated", &updated))
		return bad_row(e, "pools", key, je.text);
	if (!take_text(p->image, sizeof(p->image), key) || size < 0 ||
	    size > REG_POOL_MAX || hits < 0 || misses < 0 || wasted < 0)
		return bad_row(e, "pools", key, "a value is out of range");
	p->size = (unsigned)size;
	p->hits = (uint64_t)hits;
	p->misses = (uint64_t)misses;
	p->wasted = (uint64_t)wasted;
	p->created_ms = (uint64_t)created;
	p->updated_ms = (uint64_t)updated;
	return 0;
}
