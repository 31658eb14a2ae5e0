// Pools: microVMs thawed ahead of need, parked, and claimed.
//
// Theory of operation. A parked run (vm_run.parked) is a run that stops short:
// when its guest is thawed, and its agent has renewed identity, clock and
// entropy but left the application frozen, the cell is parked: no vCPU runs.
// A plain run of the same version takes it out of the list, on the loop, in
// one go: so it has one claimant. It gets name, labels, token and payload from
// the claim, its duration begins, and the rest is as in any run.
//
// m->pool holds every microVM with r->parked, from birth to claim or end, the
// oldest first. r->parked says "nobody's yet": lists leave those out.
//
// Who fills a pool is a client (thaw-pool). Limits are kept here, whoever that
// is and whether it lives or not: never more than the pool's size, none of a
// version that a plain run would not take, and before a run or resume is
// refused for memory, parked ones are given up.
//
// Counts. Each microVM that leaves PARKED is a hit or wasted; a plain run that
// found none although its image has a pool is a miss. They are written at most
// once a second: a kill -9 may forget the last second's.
#include "image.h"
#include "vm_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define COUNTS_MS 1000

// --- counts ------------------------------------------------------------------

static void write_counts(void *ctx)
{
	struct eng_vms *m = ctx;
	struct reg_pool *const *pools;
	struct reg_txn *t;
	size_t n;

	if (!m->pools_dirty)
		return;
	m->pools_dirty = false;
	pools = eng_reg_pools(m->env.reg, &n);
	t = eng_reg_begin(m->env.reg);
	for (size_t i = 0; i < n; i++)
		eng_reg_put_pool(t, pools[i]);
	eng_reg_commit(t);
}

static void count(struct eng_vms *m, uint64_t *what)
{
	++*what;
	if (m->pools_dirty)
		return;
	m->pools_dirty = true;
	if (!m->pool_timer)
		m->pool_timer = eng_timer_create(m->env.loop, write_counts, m,
						 "pool counts");
	eng_timer_set(m->pool_timer, COUNTS_MS);
}

void vm_pool_fini(struct eng_vms *m)
{
	write_counts(m);
}

void vm_pool_ended(struct eng_vm *v)
{
	struct reg_pool *p = eng_reg_pool(v->m->env.reg, v->r->image);

	if (p)
		count(v->m, &p->wasted);
}

// --- the list ----------------------------------------------------------------

void vm_pool_join(struct eng_vm *v)
{
	struct eng_vms *m = v->m;

	v->pool_link = m->pool_tail;
	*m->pool_tail = v;
	m->pool_tail = &v->pool_next;
}

void vm_pool_leave(struct eng_vm *v)
{
	if (!v->pool_link)
		return;
	*v->pool_link = v->pool_next;
	if (v->pool_next)
		v->pool_next->pool_link = v->pool_link;
	if (v->m->pool_tail == &v->pool_next)
		v->m->pool_tail = v->pool_link;
	v->pool_link = NULL;
	v->pool_next = NULL;
}

static const char *version_to_run(struct eng_vms *m, const char *image)
{
	const struct reg_image *im = eng_reg_image(m->env.reg, image);
	const struct reg_version *ver = im ? eng_image_latest(im) : NULL;

	return ver ? ver->version : "";
}

static bool is_of(const struct eng_vm *v, const char *image,
		  const char *version)
{
	return !v->given_up && strcmp(v->r->image, image) == 0 &&
	       (!version || strcmp(v->r->version, version) == 0);
}

void eng_pool_count(struct eng_vms *m, const char *image,
		    struct pool_counts *out)
{
	*out = (struct pool_counts){.version = version_to_run(m, image)};
	for (struct eng_vm *v = m->pool; v; v = v->pool_next) {
		if (!is_of(v, image, out->version))
			continue;
		out->parked += v->r->state == VM_PARKED;
		out->starting += v->r->state == VM_PENDING;
	}
}

// --- giving up ---------------------------------------------------------------

static void give_up(struct eng_vm *v, const char *code, const char *reason)
{
	v->given_up = true; // from here on its memory is not counted
	eng_vm_terminate(v->m, v->r, code, reason);
}

bool vm_pool_yield(struct eng_vms *m, uint64_t bytes)
{
	uint64_t have = 0;

	for (struct eng_vm *v = m->pool; v; v = v->pool_next)
		have += v->given_up ? 0 : (uint64_t)v->r->mem_mib << 20;
	if (have < bytes)
		return false;
	for (struct eng_vm *v = m->pool, *next; v && bytes; v = next) {
		uint64_t mem = (uint64_t)v->r->mem_mib << 20;

		next = v->pool_next;
		if (v->given_up)
			continue;
		give_up(v, "pool-memory", "its memory was needed");
		bytes -= MIN(bytes, mem);
	}
	return true;
}

void eng_pool_trim(struct eng_vms *m, const char *image)
{
	const struct reg_pool *p = eng_reg_pool(m->env.reg, image);
	const char *version = version_to_run(m, image);
	unsigned left = p ? p->size : 0;

	for (struct eng_vm *v = m->pool, *next; v; v = next) {
		next = v->pool_next;
		if (!is_of(v, image, NULL))
			continue;
		if (strcmp(v->r->version, version))
			give_up(v, "pool-stale",
				"another version of its image is active");
		else if (left)
			left--;
		else
			give_up(v, "pool-shrunk",
				"its pool holds fewer microVMs now");
	}
}

struct reg_vm *eng_pool_clear(struct eng_vms *m, const char *image,
			      const char *version)
{
	struct reg_vm *one = NULL;

	for (struct eng_vm *v = m->pool, *next; v; v = next) {
		next = v->pool_next;
		if (strcmp(v->r->image, image) ||
		    (version && strcmp(v->r->version, version)))
			continue;
		give_up(v, "pool-stale", "its image is being deleted");
		one = v->r;
	}
	return one;
}

// --- parking -----------------------------------------------------------------

int vm_pool_room(struct eng_vms *m, const struct vm_run *rq, struct err *e)
{
	const char *image = rq->image->name;
	const struct reg_pool *p = eng_reg_pool(m->env.reg, image);
	struct pool_counts c;

	if (!p)
		return err_set(e, -EBUSY,
			       "MicroVM image %s has no pool; PUT "
			       "/thaw/v1/pools/%s makes one",
			       image, image);
	eng_pool_count(m, image, &c);
	if (c.parked + c.starting < p->size)
		return 0;
	return err_set(e, -EBUSY,
		       "the pool of MicroVM image %s is full: %u of %u", image,
		       c.parked + c.starting, p->size);
}

void vm_pool_park(struct eng_vm *v)
{
	struct err e = ERR_INIT;

	if (eng_cell_park(v->cell, &e))
		vm_fail_start(v, e.msg);
}

void vm_pool_parked(void *vm, int rc, const char *why)
{
	struct eng_vm *v = vm;

	if (v->op != OP_START || !v->r->parked) // terminated meanwhile
		return;
	if (rc) {
		vm_fail_start(v, why);
		return;
	}
	vm_note_now(v, "parked");
	v->op = OP_NONE;
	eng_timer_stop(v->deadline);
	vm_set_state(v, VM_PARKED, "parked", "%s", "");
	eng_pool_trim(v->m, v->r->image); // it may have shrunk meanwhile
}

// --- claiming ----------------------------------------------------------------

// From here on it is the claimant's.
static void adopt(struct eng_vm *v, const struct vm_run *rq)
{
	struct reg_vm *r = v->r;

	vm_pool_leave(v);
	snprintf(r->name, sizeof(r->name), "%s", rq->name ? rq->name : "");
	if (rq->labels) {
		json_decref(r->labels);
		r->labels = json_deep_copy(rq->labels);
	}
	if (rq->extra) {
		json_decref(r->extra);
		r->extra = json_deep_copy(rq->extra);
	}
	r->max_duration_s = rq->max_duration_s;
	r->parked = false;
	r->pooled = true;
	v->t0 = rq->t0;
}

static void unpark(struct eng_vm *v)
{
	struct err e = ERR_INIT;
	bool mailbox = !v->r->agent; // else it is the run hook's
	int rc = eng_cell_unpark(v->cell, mailbox ? v->payload : NULL,
				 mailbox ? v->payload_len : 0, &e);

	if (mailbox) {
		free(ptr_steal(v->payload));
		v->payload_len = 0;
	}
	if (rc) {
		eng_vm_terminate(v->m, v->r, "cell-crashed", e.msg);
		return;
	}
	vm_note_now(v, "handed");
	if (v->r->agent)
		vm_handshake(v);
}

void vm_pool_unpark(struct eng_vms *m)
{
	struct eng_vm *v;

	while ((v = m->claimed)) {
		vm_pool_leave(v);
		if (v->cell && v->op != OP_TERMINATE)
			unpark(v);
	}
}

static void unpark_due(void *ctx)
{
	struct eng_vms *m = ctx;

	m->unparking = false;
	vm_pool_unpark(m);
}

// The order to go on wakes two threads, and takes the loop's processor with
// them: so it comes after what the loop has to do for this claim and for those
// that came with it, beside their commit.
static void unpark_soon(struct eng_vm *v, const struct vm_run *rq)
{
	struct eng_vms *m = v->m;

	vm_keep_payload(v, rq);
	v->pool_next = m->claimed;
	v->pool_link = &m->claimed;
	if (v->pool_next)
		v->pool_next->pool_link = &v->pool_next;
	m->claimed = v;
	if (!m->unparking)
		eng_loop_defer(m->env.loop, unpark_due, m, "claims");
	m->unparking = true;
}

static void claim(struct eng_vm *v, const struct vm_run *rq)
{
	adopt(v, rq);
	v->op = v->r->agent ? OP_START : OP_NONE;
	vm_note_t0(v);
	vm_note_now(v, "claimed");
	vm_set_claimed(v, v->r->agent ? VM_PENDING : VM_RUNNING, rq);
	unpark_soon(v, rq);
}

bool vm_pool_claim(struct eng_vms *m, const struct vm_run *rq,
		   struct reg_vm **out)
{
	struct reg_pool *p = eng_reg_pool(m->env.reg, rq->image->name);
	struct eng_vm *v = m->pool;

	while (v && (v->r->state != VM_PARKED || !eng_cell_is_parked(v->cell) ||
		     !is_of(v, rq->image->name, rq->version->version)))
		v = v->pool_next;
	if (!v && p && p->size)
		count(m, &p->misses);
	if (!v)
		return false;
	if (p)
		count(m, &p->hits);
	claim(v, rq);
	*out = v->r;
	return true;
}

// --- the pools ---------------------------------------------------------------

static json_t *pool_event(const char *type, const struct reg_pool *p)
{
	return json_pack("{s:s,s:s,s:i}", "type", type, "image", p->image,
			 "size", (int)p->size);
}

int eng_pool_set(struct eng_vms *m, const char *image, unsigned size,
		 struct reg_pool **out, uint64_t *seq, struct err *e)
{
	struct reg_pool *p = eng_reg_pool(m->env.reg, image);
	struct reg_txn *t;

	if (!eng_reg_healthy(m->env.reg, e))
		return -EIO;
	if (!p)
		p = eng_reg_pool_add(m->env.reg, image);
	p->size = size;
	p->updated_ms = util_wall_ns() / 1000000;
	t = eng_reg_begin(m->env.reg);
	eng_reg_put_pool(t, p);
	eng_reg_event(t, pool_event("pool.set", p));
	*seq = eng_reg_commit(t);
	*out = p;
	eng_pool_trim(m, image);
	return 0;
}

int eng_pool_delete(struct eng_vms *m, struct reg_pool *p, uint64_t *seq,
		    struct err *e)
{
	char image[REG_NAME_MAX + 1];
	struct reg_txn *t;

	if (!eng_reg_healthy(m->env.reg, e))
		return -EIO;
	strcpy(image, p->image);
	p->size = 0;
	t = eng_reg_begin(m->env.reg);
	eng_reg_event(t, pool_event("pool.deleted", p));
	eng_reg_del_pool(t, p);
	*seq = eng_reg_commit(t);
	eng_pool_trim(m, image);
	return 0;
}
