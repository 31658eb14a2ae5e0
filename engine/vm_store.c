// Snapshots of microVMs in the store: dropping them when nobody refers to them
// any more, and what is found at start.
#include "vm_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define GC_DELAY_MS 2000 // several removals, one collection

// --- garbage ----------------------------------------------------------------

struct gc_job {
	struct eng_vms *m;
	int rc;
	uint64_t freed;
	struct err e;
};

static void gc_work(void *ctx)
{
	struct gc_job *j = ctx;

	j->rc = pgc_gc(j->m->env.store, &j->freed, &j->e);
}

static void gc_done(void *ctx)
{
	struct gc_job *j = ctx;
	struct eng_vms *m = j->m;

	if (j->rc)
		log_warn("collecting garbage in the store: %s", j->e.msg);
	else if (j->freed)
		log_info("store: %llu KiB freed",
			 (unsigned long long)(j->freed >> 10));
	free(j);
	m->gc = NULL;
	m->gc_running = false;
	if (m->gc_again)
		eng_timer_set(m->gc_timer, GC_DELAY_MS);
	m->gc_again = false;
}

static void gc_due(void *ctx)
{
	struct eng_vms *m = ctx;
	struct gc_job *j;

	if (m->gc_running) {
		m->gc_again = true;
		return;
	}
	j = calloc(1, sizeof(*j));
	if (!j)
		return; // the next removal asks again
	j->m = m;
	m->gc = j;
	m->gc_running = true;
	eng_job_run(m->env.jobs, gc_work, gc_done, j);
}

static void gc_soon(struct eng_vms *m)
{
	if (!m->gc_timer)
		m->gc_timer =
		    eng_timer_create(m->env.loop, gc_due, m, "store garbage");
	eng_timer_set(m->gc_timer, GC_DELAY_MS);
}

// --- dropping ---------------------------------------------------------------

struct snaps_drop {
	struct snaps_drop *next, **link;
	struct eng_vms *m;
	size_t n;
	struct pgc_id ids[8];
	struct err e;
	int rc;
};

static void drop_free(struct snaps_drop *d)
{
	*d->link = d->next;
	if (d->next)
		d->next->link = d->link;
	free(d);
}

static void drop_work(void *ctx)
{
	struct snaps_drop *d = ctx;

	for (size_t i = 0; i < d->n; i++) {
		struct err e = ERR_INIT;
		int rc = pgc_snap_remove(d->m->env.store, &d->ids[i], &e);

		if (rc && rc != -ENOENT) {
			d->rc = rc;
			d->e = e;
		}
	}
}

static void drop_done(void *ctx)
{
	struct snaps_drop *d = ctx;

	if (d->rc) // the next start finds and removes it
		log_warn("a snapshot could not be removed: %s", d->e.msg);
	gc_soon(d->m);
	drop_free(d);
}

static void drop_durable(void *ctx)
{
	struct snaps_drop *d = ctx;

	for (size_t i = 0; i < d->n; i++)
		eng_template_drop(d->m->env.cells, &d->ids[i]);
	eng_job_run(d->m->env.jobs, drop_work, drop_done, d);
}

void eng_snaps_drop(struct eng_vms *m, uint64_t seq, const struct pgc_id *ids,
		    size_t n)
{
	while (n) {
		struct snaps_drop *d = calloc(1, sizeof(*d));

		if (!d)
			abort();
		d->m = m;
		d->next = m->drops;
		d->link = &m->drops;
		if (d->next)
			d->next->link = &d->next;
		m->drops = d;
		d->n = MIN(n, ARRAY_SIZE(d->ids));
		memcpy(d->ids, ids, d->n * sizeof(*ids));
		ids += d->n;
		n -= d->n;
		eng_reg_after(m->env.reg, seq, drop_durable, d);
	}
}

void vm_store_fini(struct eng_vms *m)
{
	while (m->drops)
		drop_free(m->drops);
	free(m->gc);
}

// --- at start ---------------------------------------------------------------

struct id_set {
	struct pgc_id *ids;
	size_t n;
};

static int collect_id(void *ctx, const struct pgc_id *id)
{
	struct id_set *s = ctx;

	if ((s->n & (s->n - 1)) == 0) {
		struct pgc_id *ids =
		    realloc(s->ids, MAX((size_t)16, s->n * 2) * sizeof(*ids));

		if (!ids)
			return -ENOMEM;
		s->ids = ids;
	}
	s->ids[s->n++] = *id;
	return 0;
}

static int by_bytes(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct pgc_id));
}

static bool in_set(const struct id_set *s, const struct pgc_id *id)
{
	return s->n && bsearch(id, s->ids, s->n, sizeof(*id), by_bytes);
}

static void end_record(struct eng_vms *m, struct reg_vm *r, const char *code,
		       const char *reason)
{
	struct eng_vm *v = vm_live_new(m, r);

	vm_ended(v, code, reason);
}

static void recover_vm(struct eng_vms *m, struct reg_vm *r,
		       const struct id_set *have)
{
	char text[160];

	if (r->state == VM_TERMINATED)
		return;
	if (r->state != VM_SUSPENDED) {
		snprintf(text, sizeof(text),
			 "thawd ended unexpectedly while it was %s",
			 eng_state_name(r->state));
		end_record(m, r, "thawd-killed", text);
		return;
	}
	if ((r->has_own && !in_set(have, &r->own)) || !in_set(have, &r->base)) {
		end_record(m, r, "snapshot-lost",
			   "its snapshot is missing from the store");
		return;
	}
	vm_arm(vm_live_new(m, r));
}

static void recover_version(struct reg_image *im, struct reg_version *ver,
			    const struct id_set *have)
{
	if (ver->state != VER_SUCCESSFUL)
		return; // it has none
	ver->broken = !in_set(have, &ver->snap) ||
		      (ver->has_disk && !in_set(have, &ver->disk));
	if (ver->broken)
		log_err("image %s version %s: its snapshot is missing from the "
			"store; delete the version and build it again",
			im->name, ver->version);
}

static void refer(struct id_set *s, const struct pgc_id *id)
{
	if (collect_id(s, id))
		abort();
}

// Everything that the registry refers to.
static void all_refs(struct eng_vms *m, struct id_set *out)
{
	size_t nim, nvm;
	struct reg_image *const *ims = eng_reg_images(m->env.reg, &nim);
	struct reg_vm *const *vms = eng_reg_vms(m->env.reg, &nvm);

	for (size_t i = 0; i < nim; i++) {
		for (size_t k = 0; k < ims[i]->nversions; k++) {
			struct reg_version *ver = ims[i]->versions[k];

			if (ver->state == VER_SUCCESSFUL)
				refer(out, &ver->snap);
			if (ver->has_disk)
				refer(out, &ver->disk);
		}
	}
	for (size_t i = 0; i < nvm; i++) {
		if (vms[i]->state != VM_SUSPENDED)
			continue;
		refer(out, &vms[i]->base);
		if (vms[i]->has_own)
			refer(out, &vms[i]->own);
	}
	if (out->n)
		qsort(out->ids, out->n, sizeof(*out->ids), by_bytes);
}

static void drop_orphans(struct eng_vms *m, const struct id_set *have)
{
	struct id_set refs = {0};
	size_t orphans = 0;

	all_refs(m, &refs);
	for (size_t i = 0; i < have->n; i++) {
		if (in_set(&refs, &have->ids[i]))
			continue;
		orphans++;
		eng_snaps_drop(m, eng_reg_queued(m->env.reg), &have->ids[i], 1);
	}
	if (orphans) {
		struct reg_txn *t = eng_reg_begin(m->env.reg);

		log_info("removing %zu snapshots that nothing refers to",
			 orphans);
		eng_reg_event(t, json_pack("{s:s,s:I}", "type",
					   "store.orphans-removed", "count",
					   (json_int_t)orphans));
		eng_reg_commit(t);
	}
	free(refs.ids);
}

int eng_vms_recover(struct eng_vms *m, bool fresh_registry, struct err *e)
{
	struct id_set have = {0};
	size_t n;
	struct reg_image *const *ims;
	struct reg_vm *const *vms;
	int rc = pgc_store_list(m->env.store, collect_id, &have, e);

	if (rc) {
		free(have.ids);
		return rc;
	}
	if (have.n)
		qsort(have.ids, have.n, sizeof(*have.ids), by_bytes);
	ims = eng_reg_images(m->env.reg, &n);
	for (size_t i = 0; i < n; i++) {
		for (size_t k = 0; k < ims[i]->nversions; k++)
			recover_version(ims[i], ims[i]->versions[k], &have);
	}
	vms = eng_reg_vms(m->env.reg, &n);
	for (size_t i = n; i-- > 0;) // pruning may shorten the array
		recover_vm(m, vms[i], &have);
	if (fresh_registry && have.n)
		log_warn("the registry is new but the store holds %zu "
			 "snapshots; they are kept",
			 have.n);
	else
		drop_orphans(m, &have);
	free(have.ids);
	return 0;
}
