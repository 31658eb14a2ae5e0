// The registry's model in memory, its transactions, and its newest events.
#include "registry_internal.h"

#include "jtext.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

void *reg_must(void *p)
{
	if (!p)
		abort(); // out of memory for a few bytes: nothing to save
	return p;
}

// --- the model --------------------------------------------------------------

static void version_free(struct reg_version *v)
{
	json_decref(v->aws);
	json_decref(v->spec);
	json_decref(v->sizes);
	free(v);
}

static void image_free(struct reg_image *im)
{
	for (size_t i = 0; i < im->nversions; i++)
		version_free(im->versions[i]);
	free(im->versions);
	json_decref(im->tags);
	free(im);
}

static void vm_free(struct reg_vm *vm)
{
	json_decref(vm->labels);
	json_decref(vm->extra);
	json_decref(vm->timings);
	free(vm);
}

struct reg_image *const *eng_reg_images(const struct eng_reg *r, size_t *n)
{
	*n = r->nimages;
	return r->images;
}

struct reg_vm *const *eng_reg_vms(const struct eng_reg *r, size_t *n)
{
	*n = r->nvms;
	return r->vms;
}

struct reg_image *eng_reg_image(const struct eng_reg *r, const char *name)
{
	for (size_t i = 0; i < r->nimages; i++) {
		if (strcmp(r->images[i]->name, name) == 0)
			return r->images[i];
	}
	return NULL;
}

struct reg_version *eng_reg_version(const struct reg_image *im,
				    const char *version)
{
	for (size_t i = 0; i < im->nversions; i++) {
		if (strcmp(im->versions[i]->version, version) == 0)
			return im->versions[i];
	}
	return NULL;
}

struct reg_vm *eng_reg_vm(const struct eng_reg *r, const char *id)
{
	for (size_t i = r->nvms; i-- > 0;) { // newest first
		if (strcmp(r->vms[i]->id, id) == 0)
			return r->vms[i];
	}
	return NULL;
}

struct reg_pool *const *eng_reg_pools(const struct eng_reg *r, size_t *n)
{
	*n = r->npools;
	return r->pools;
}

struct reg_pool *eng_reg_pool(const struct eng_reg *r, const char *image)
{
	for (size_t i = 0; i < r->npools; i++) {
		if (strcmp(r->pools[i]->image, image) == 0)
			return r->pools[i];
	}
	return NULL;
}

void reg_pools_push(struct eng_reg *r, struct reg_pool *p)
{
	r->pools =
	    reg_must(realloc(r->pools, (r->npools + 1) * sizeof(*r->pools)));
	r->pools[r->npools++] = p;
}

struct reg_pool *eng_reg_pool_add(struct eng_reg *r, const char *image)
{
	struct reg_pool *p = reg_must(calloc(1, sizeof(*p)));

	snprintf(p->image, sizeof(p->image), "%s", image);
	p->created_ms = p->updated_ms = util_wall_ns() / 1000000;
	reg_pools_push(r, p);
	return p;
}

void reg_images_push(struct eng_reg *r, struct reg_image *im)
{
	r->images =
	    reg_must(realloc(r->images, (r->nimages + 1) * sizeof(*r->images)));
	r->images[r->nimages++] = im;
}

void reg_versions_push(struct reg_image *im, struct reg_version *v)
{
	im->versions = reg_must(
	    realloc(im->versions, (im->nversions + 1) * sizeof(*im->versions)));
	im->versions[im->nversions++] = v;
}

void reg_vms_push(struct eng_reg *r, struct reg_vm *vm)
{
	if ((r->nvms & (r->nvms - 1)) == 0) // grow at powers of two
		r->vms = reg_must(
		    realloc(r->vms, MAX(16u, r->nvms * 2) * sizeof(*r->vms)));
	r->vms[r->nvms++] = vm;
}

struct reg_image *eng_reg_image_add(struct eng_reg *r, const char *name)
{
	struct reg_image *im = reg_must(calloc(1, sizeof(*im)));

	snprintf(im->name, sizeof(im->name), "%s", name);
	im->created_ms = im->updated_ms = util_wall_ns() / 1000000;
	reg_images_push(r, im);
	return im;
}

void eng_reg_uuid(char out[REG_UUID_LEN + 1])
{
	uint8_t b[16];

	util_random(b, sizeof(b)); // 122 random bits: no clash
	b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
	b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
	snprintf(out, REG_UUID_LEN + 1,
		 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
		 "%02x%02x%02x%02x%02x%02x",
		 b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9],
		 b[10], b[11], b[12], b[13], b[14], b[15]);
}

struct reg_version *eng_reg_version_add(struct reg_image *im)
{
	struct reg_version *v = reg_must(calloc(1, sizeof(*v)));

	snprintf(v->version, sizeof(v->version), "%u.0", ++im->last_major);
	v->created_ms = im->updated_ms = util_wall_ns() / 1000000;
	v->active = true;
	v->state = VER_SUCCESSFUL;
	eng_reg_uuid(v->build_id);
	reg_versions_push(im, v);
	return v;
}

struct reg_vm *eng_reg_vm_add(struct eng_reg *r)
{
	struct reg_vm *vm = reg_must(calloc(1, sizeof(*vm)));
	char uuid[REG_UUID_LEN + 1];

	eng_reg_uuid(uuid);
	snprintf(vm->id, sizeof(vm->id), "microvm-%s", uuid);
	eng_reg_uuid(vm->endpoint);
	vm->seq = r->next_vm_seq++;
	vm->created_ms = util_wall_ns() / 1000000;
	reg_vms_push(r, vm);
	return vm;
}

// --- tokens ------------------------------------------------------------------

static size_t bucket_of(const char *token)
{
	uint64_t h = 0xcbf29ce484222325u;

	for (; *token; token++)
		h = (h ^ (uint8_t)*token) * 0x100000001b3u;
	return (size_t)(h ^ h >> 32) % TOKEN_BUCKETS;
}

const struct reg_token *eng_reg_token(const struct eng_reg *r,
				      const char *token)
{
	for (struct reg_tok *t = r->buckets[bucket_of(token)]; t;
	     t = t->chain) {
		if (strcmp(t->t.token, token) == 0)
			return &t->t;
	}
	return NULL;
}

void reg_token_push(struct eng_reg *r, struct reg_tok *t)
{
	struct reg_tok **b = &r->buckets[bucket_of(t->t.token)];

	t->chain = *b;
	*b = t;
	t->older = r->newest;
	if (r->newest)
		r->newest->newer = t;
	else
		r->oldest = t;
	r->newest = t;
	r->ntokens++;
}

static void token_drop_oldest(struct eng_reg *r)
{
	struct reg_tok *t = r->oldest, **p;

	for (p = &r->buckets[bucket_of(t->t.token)]; *p != t;)
		p = &(*p)->chain;
	*p = t->chain;
	r->oldest = t->newer;
	if (r->oldest)
		r->oldest->older = NULL;
	else
		r->newest = NULL;
	r->ntokens--;
	free(t->t.token);
	free(t);
}

// --- commits -----------------------------------------------------------------

static void committed(void *ctx, uint64_t seq, uint64_t last_event)
{
	struct eng_reg *r = ctx;
	struct reg_after **p = &r->afters, *due = NULL, **due_tail = &due;
	bool events = last_event > r->last_event;

	r->durable = MAX(r->durable, seq);
	if (events)
		r->last_event = last_event;
	while (*p) {
		struct reg_after *a = *p;

		if (a->seq > r->durable) {
			p = &a->next;
			continue;
		}
		*p = a->next;
		a->next = NULL;
		*due_tail = a;
		due_tail = &a->next;
	}
	r->after_tail = p;
	while (due) {
		struct reg_after *a = due;

		due = a->next;
		a->cb(a->ctx);
		free(a);
	}
	if (events && r->on_events)
		r->on_events(r->on_events_ctx);
}

void eng_reg_after(struct eng_reg *r, uint64_t seq, void (*cb)(void *ctx),
		   void *ctx)
{
	struct reg_after *a;

	if (seq <= r->durable) {
		cb(ctx);
		return;
	}
	a = reg_must(calloc(1, sizeof(*a)));
	a->seq = seq;
	a->cb = cb;
	a->ctx = ctx;
	*r->after_tail = a;
	r->after_tail = &a->next;
}

uint64_t eng_reg_queued(const struct eng_reg *r)
{
	return r->queued;
}

uint64_t eng_reg_durable(const struct eng_reg *r)
{
	return r->durable;
}

bool eng_reg_healthy(const struct eng_reg *r, struct err *e)
{
	return reg_db_healthy(r->db, e);
}

// --- transactions ------------------------------------------------------------

struct reg_txn *eng_reg_begin(struct eng_reg *r)
{
	struct reg_txn *t = reg_must(calloc(1, sizeof(*t)));

	t->reg = r;
	t->tail = &t->ops;
	return t;
}

static struct reg_op *add_op(struct reg_txn *t, enum reg_table table)
{
	struct reg_op *op = reg_must(calloc(1, sizeof(*op)));

	op->table = table;
	*t->tail = op;
	t->tail = &op->next;
	return op;
}

static void op_put(struct reg_txn *t, enum reg_table table, const char *key,
		   char *doc)
{
	struct reg_op *op = add_op(t, table);

	op->what = REG_PUT;
	op->key = reg_must(strdup(key));
	op->doc = doc;
}

static void op_del(struct reg_txn *t, enum reg_table table, const char *key)
{
	struct reg_op *op = add_op(t, table);

	op->what = REG_DEL;
	op->key = reg_must(strdup(key));
}

static void version_key(char *key, size_t cap, const struct reg_image *im,
			const struct reg_version *v)
{
	snprintf(key, cap, "%s/%s", im->name, v->version);
}

void eng_reg_put_vm(struct reg_txn *t, const struct reg_vm *vm)
{
	op_put(t, REG_VMS, vm->id, reg_doc_vm(vm));
}

void eng_reg_put_image(struct reg_txn *t, const struct reg_image *im)
{
	op_put(t, REG_IMAGES, im->name, reg_doc_image(im));
}

void eng_reg_put_version(struct reg_txn *t, const struct reg_image *im,
			 const struct reg_version *v)
{
	char key[REG_NAME_MAX + 20];

	version_key(key, sizeof(key), im, v);
	op_put(t, REG_VERSIONS, key, reg_doc_version(v));
}

void eng_reg_del_vm(struct reg_txn *t, struct reg_vm *vm)
{
	struct eng_reg *r = t->reg;
	size_t i = 0;

	op_del(t, REG_VMS, vm->id);
	while (i < r->nvms && r->vms[i] != vm)
		i++;
	if (i == r->nvms)
		return;
	r->nvms--;
	memmove(&r->vms[i], &r->vms[i + 1], (r->nvms - i) * sizeof(*r->vms));
	vm_free(vm);
}

void eng_reg_put_pool(struct reg_txn *t, const struct reg_pool *p)
{
	op_put(t, REG_POOLS, p->image, reg_doc_pool(p));
}

void eng_reg_del_pool(struct reg_txn *t, struct reg_pool *p)
{
	struct eng_reg *r = t->reg;
	size_t i = 0;

	op_del(t, REG_POOLS, p->image);
	while (i < r->npools && r->pools[i] != p)
		i++;
	if (i == r->npools)
		return;
	r->npools--;
	memmove(&r->pools[i], &r->pools[i + 1],
		(r->npools - i) * sizeof(*r->pools));
	free(p);
}

void eng_reg_del_version(struct reg_txn *t, struct reg_image *im,
			 struct reg_version *v)
{
	char key[REG_NAME_MAX + 20];
	size_t i = 0;

	version_key(key, sizeof(key), im, v);
	op_del(t, REG_VERSIONS, key);
	while (i < im->nversions && im->versions[i] != v)
		i++;
	if (i == im->nversions)
		return;
	im->nversions--;
	memmove(&im->versions[i], &im->versions[i + 1],
		(im->nversions - i) * sizeof(*im->versions));
	version_free(v);
}

void eng_reg_del_image(struct reg_txn *t, struct reg_image *im)
{
	struct eng_reg *r = t->reg;
	size_t i = 0;

	while (im->nversions)
		eng_reg_del_version(t, im, im->versions[0]);
	op_del(t, REG_IMAGES, im->name);
	while (i < r->nimages && r->images[i] != im)
		i++;
	if (i == r->nimages)
		return;
	r->nimages--;
	memmove(&r->images[i], &r->images[i + 1],
		(r->nimages - i) * sizeof(*r->images));
	image_free(im);
}

void eng_reg_put_token(struct reg_txn *t, const char *token,
		       const uint8_t params[16], const char *vm,
		       uint64_t created_ms)
{
	struct eng_reg *r = t->reg;
	struct reg_tok *n = reg_must(calloc(1, sizeof(*n)));

	n->t.token = reg_must(strdup(token));
	memcpy(n->t.params, params, sizeof(n->t.params));
	snprintf(n->t.vm, sizeof(n->t.vm), "%s", vm);
	n->t.created_ms = created_ms;
	reg_token_push(r, n);
	op_put(t, REG_TOKENS, n->t.token, reg_doc_token(&n->t));
	while (r->ntokens > REG_KEEP_TOKENS) {
		op_del(t, REG_TOKENS, r->oldest->t.token);
		token_drop_oldest(r);
	}
}

void eng_reg_params(const json_t *in, uint8_t out[16])
{
	cleanup_free char *text = json_dumps(in, JSON_COMPACT | JSON_SORT_KEYS);
	uint64_t h[2] = {0xcbf29ce484222325u, 0x84222325cbf29ce4u};

	for (const char *p = text; p && *p; p++) {
		h[0] = (h[0] ^ (uint8_t)*p) * 0x100000001b3u;
		h[1] = (h[1] ^ (uint8_t)(*p + 101)) * 0x100000001b3u;
	}
	memcpy(out, h, 16);
}

uint64_t eng_reg_event_text(struct reg_txn *t, struct jtext *ev)
{
	struct eng_reg *r = t->reg;
	uint64_t cursor = r->next_event++;
	struct reg_op *op = add_op(t, REG_EVENTS);
	size_t slot = cursor % RECENT;

	jt_int(ev, "cursor", (int64_t)cursor);
	jt_seconds(ev, "time", util_wall_ns() / 1000000);
	jt_close(ev);
	op->what = REG_PUT;
	op->cursor = cursor;
	op->doc = jt_take(ev);
	t->last_event = cursor;
	free(r->recent[slot].text);
	r->recent[slot].cursor = cursor;
	r->recent[slot].text = reg_must(strdup(op->doc));
	if (cursor % PRUNE_EVERY == 0 && cursor > REG_KEEP_EVENTS) {
		op = add_op(t, REG_EVENTS);
		op->what = REG_DEL_UPTO;
		op->cursor = cursor - REG_KEEP_EVENTS;
		r->first_event = MAX(r->first_event, op->cursor + 1);
	}
	return cursor;
}

uint64_t eng_reg_event(struct reg_txn *t, json_t *ev)
{
	struct jtext text = {0};
	const char *key;
	json_t *v;

	jt_open(&text, NULL);
	json_object_foreach(ev, key, v)
	    jt_json(&text, key, v); // keys are ours: none needs an escape
	json_decref(ev);
	return eng_reg_event_text(t, &text);
}

uint64_t eng_reg_commit(struct reg_txn *t)
{
	struct eng_reg *r = t->reg;

	t->seq = ++r->queued;
	reg_db_put(r->db, t); // from here on it is the writer's
	return r->queued;
}

// --- events ------------------------------------------------------------------

uint64_t eng_reg_first_event(const struct eng_reg *r)
{
	return r->first_event;
}

uint64_t eng_reg_last_event(const struct eng_reg *r)
{
	return r->last_event;
}

const char *eng_reg_recent_event(const struct eng_reg *r, uint64_t cursor)
{
	size_t slot = cursor % RECENT;

	if (cursor > r->last_event || r->recent[slot].cursor != cursor)
		return NULL;
	return r->recent[slot].text;
}

void eng_reg_read_events(struct eng_reg *r, uint64_t from, size_t max,
			 void (*cb)(void *ctx, const struct reg_events *ev),
			 void *ctx)
{
	reg_db_read(r->db, from, max, cb, ctx);
}

void eng_reg_on_events(struct eng_reg *r, void (*cb)(void *ctx), void *ctx)
{
	r->on_events = cb;
	r->on_events_ctx = ctx;
}

void eng_reg_get_stats(const struct eng_reg *r, struct reg_stats *out)
{
	reg_db_get_stats(r->db, out);
	out->tokens = r->ntokens;
}

// --- life --------------------------------------------------------------------

int eng_reg_open(struct eng_reg **out, struct eng_loop *l, const char *path,
		 bool *fresh, struct err *e)
{
	struct eng_reg *r = reg_must(calloc(1, sizeof(*r)));
	int rc;

	r->after_tail = &r->afters;
	r->next_vm_seq = 1;
	rc = reg_db_open(&r->db, l, path, fresh, e);
	if (!rc)
		rc = reg_load(r, e);
	if (!rc)
		rc = reg_db_start(r->db, committed, r, e);
	if (rc) {
		eng_reg_close(r);
		return rc;
	}
	*out = r;
	return 0;
}

void eng_reg_close(struct eng_reg *r)
{
	if (!r)
		return;
	reg_db_close(r->db); // commits what is queued
	for (size_t i = 0; i < r->nimages; i++)
		image_free(r->images[i]);
	for (size_t i = 0; i < r->nvms; i++)
		vm_free(r->vms[i]);
	while (r->oldest)
		token_drop_oldest(r);
	for (size_t i = 0; i < RECENT; i++)
		free(r->recent[i].text);
	while (r->afters) {
		struct reg_after *a = r->afters;

		r->afters = a->next;
		free(a);
	}
	for (size_t i = 0; i < r->npools; i++)
		free(r->pools[i]);
	free(r->pools);
	free(r->images);
	free(r->vms);
	free(r);
}
