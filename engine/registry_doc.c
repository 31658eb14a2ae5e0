// Registry records as JSON and back. Rows come from a file: every member is
// checked before the model sees it.
#include "registry_internal.h"

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

static json_t *id_json(bool has, const struct pgc_id *id)
{
	char hex[2 * sizeof(id->b) + 1];

	if (!has)
		return json_null();
	util_hex(hex, id->b, sizeof(id->b));
	return json_string(hex);
}

static json_t *object_or_empty(json_t *j)
{
	return j ? json_deep_copy(j) : json_object();
}

// Text that may hold bytes of a guest or a path: keep the row valid.
static json_t *text_json(const char *s)
{
	json_t *j = json_string(s);

	return j ? j : json_string("(not UTF-8)");
}

json_t *reg_doc_vm(const struct reg_vm *vm)
{
	return json_pack(
	    "{s:I,s:s,s:s,s:s,s:o,s:b,s:o,s:i,s:i,s:b,s:b,s:b,s:b,s:s,s:s,"
	    "s:o,s:I,s:I,s:I,s:I,s:I,s:i,s:i,s:o,s:o,s:o}",
	    "seq", (json_int_t)vm->seq, "name", vm->name, "image", vm->image,
	    "version", vm->version, "base", id_json(true, &vm->base),
	    "baseIsOwn", vm->base_is_own, "own", id_json(vm->has_own, &vm->own),
	    "memoryMiB", (int)vm->mem_mib, "vcpus", (int)vm->vcpus, "agent",
	    vm->agent, "cold", vm->cold, "parked", vm->parked, "pooled",
	    vm->pooled, "state", eng_state_name(vm->state),
	    "code", vm->code, "reason", text_json(vm->reason), "maxDurationS",
	    (json_int_t)vm->max_duration_s, "created",
	    (json_int_t)vm->created_ms, "started", (json_int_t)vm->started_ms,
	    "suspended", (json_int_t)vm->suspended_ms, "ended",
	    (json_int_t)vm->ended_ms, "suspends", (int)vm->suspends, "resumes",
	    (int)vm->resumes, "labels", object_or_empty(vm->labels), "extra",
	    object_or_empty(vm->extra), "timings",
	    object_or_empty(vm->timings));
}

json_t *reg_doc_image(const struct reg_image *im)
{
	return json_pack("{s:I,s:I,s:i}", "created", (json_int_t)im->created_ms,
			 "updated", (json_int_t)im->updated_ms, "lastMajor",
			 (int)im->last_major);
}

json_t *reg_doc_version(const struct reg_version *v)
{
	return json_pack(
	    "{s:o,s:o,s:i,s:i,s:b,s:b,s:I,s:o,s:o}", "snap",
	    id_json(true, &v->snap), "disk", id_json(v->has_disk, &v->disk),
	    "memoryMiB", (int)v->mem_mib, "vcpus", (int)v->vcpus, "agent",
	    v->agent, "active", v->active, "created", (json_int_t)v->created_ms,
	    "spec", object_or_empty(v->spec), "sizes",
	    object_or_empty(v->sizes));
}

json_t *reg_doc_token(const struct reg_token *t)
{
	char hex[2 * sizeof(t->params) + 1];

	util_hex(hex, t->params, sizeof(t->params));
	return json_pack("{s:s,s:s,s:I}", "params", hex, "vm", t->vm, "created",
			 (json_int_t)t->created_ms);
}

json_t *reg_doc_pool(const struct reg_pool *p)
{
	return json_pack(
	    "{s:I,s:I,s:I,s:I,s:I,s:I}", "size", (json_int_t)p->size, "hits",
	    (json_int_t)p->hits, "misses", (json_int_t)p->misses, "wasted",
	    (json_int_t)p->wasted, "created", (json_int_t)p->created_ms,
	    "updated", (json_int_t)p->updated_ms);
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
	const char *name, *image, *version, *state, *code, *reason;
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

	if (json_unpack_ex(
		doc, &je, 0,
		"{s:I,s:s,s:s,s:s,s:o,s:b,s:o,s:I,s:I,s:b,s:b,s?b,s?b,s:s,"
		"s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:o,s:o}",
		"seq", &w.seq, "name", &w.name, "image", &w.image, "version",
		&w.version, "base", &w.base, "baseIsOwn", &w.base_is_own, "own",
		&w.own, "memoryMiB", &w.mem, "vcpus", &w.vcpus, "agent",
		&w.agent, "cold", &w.cold, "parked", &w.parked, "pooled",
		&w.pooled, "state", &w.state, "code", &w.code,
		"reason", &w.reason, "maxDurationS", &w.max, "created",
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
	json_error_t je;

	if (json_unpack_ex(doc, &je, 0, "{s:I,s:I,s:I}", "created", &created,
			   "updated", &updated, "lastMajor", &major))
		return bad_row(e, "images", key, je.text);
	if (!take_text(im->name, sizeof(im->name), key) || major < 0 ||
	    major > 1 << 30)
		return bad_row(e, "images", key, "a value is out of range");
	im->created_ms = (uint64_t)created;
	im->updated_ms = (uint64_t)updated;
	im->last_major = (unsigned)major;
	return 0;
}

int reg_undoc_version(struct reg_version *v, const char *version, json_t *doc,
		      struct err *e)
{
	json_t *snap, *disk, *spec, *sizes;
	json_int_t mem, vcpus, created;
	int agent, active;
	json_error_t je;

	if (json_unpack_ex(doc, &je, 0, "{s:o,s:o,s:I,s:I,s:b,s:b,s:I,s:o,s:o}",
			   "snap", &snap, "disk", &disk, "memoryMiB", &mem,
			   "vcpus", &vcpus, "agent", &agent, "active", &active,
			   "created", &created, "spec", &spec, "sizes", &sizes))
		return bad_row(e, "versions", version, je.text);
	if (!take_text(v->version, sizeof(v->version), version) ||
	    !take_id(snap, NULL, &v->snap) ||
	    !take_id(disk, &v->has_disk, &v->disk) ||
	    !take_size(mem, vcpus, &v->mem_mib, &v->vcpus) ||
	    !json_is_object(spec) || !json_is_object(sizes))
		return bad_row(e, "versions", version,
			       "a value is out of range");
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

	if (json_unpack_ex(doc, &je, 0, "{s:s,s:s,s:I}", "params", &params,
			   "vm", &vm, "created", &created))
		return bad_row(e, "tokens", key, je.text);
	if (!take_text(t->token, sizeof(t->token), key) ||
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
