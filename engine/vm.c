// microVMs: their states, who waits for them, and what they are promised.
//
// Theory of operation. A microVM is a record in the registry (struct reg_vm)
// and, until it has ended, a live part (struct eng_vm) with its cell, timers
// and waiters. Operations are chains of callbacks on the loop (vm_ops.c,
// vm_sleep.c); at most one runs at a time on a microVM (`op`), and only terminate
// may cut into another. Time ends some of them too (vm_idle.c). Every chain ends in vm_set_state(), the one writer of the
// state, which puts record and event into one registry transaction.
//
// States, what holds in them, and who leaves them:
//   PENDING      cell starting; op START. Leaves: the handshake and the run hook
//                (RUNNING), or the stop of one for a pool (PARKED); the cell's
//                end (TERMINATED), terminate.
//   PARKED       cell stopped, its agent done with all but the application; op
//                NONE; in m->pool. Leaves: the claim that takes it out of there
//                (RUNNING; with an agent PENDING), terminate, the cell's end.
//   RUNNING      cell runs guest code; op NONE. Leaves: suspend, terminate, the
//                cell's end.
//   SUSPENDING   cell frozen or parked, after the suspend hook; op SUSPEND. No
//                conversation but the hook's and the freeze's. Leaves: snapshot published and cell dead
//                (SUSPENDED), failure (RUNNING, guest unharmed), terminate, the
//                cell's end.
//   SUSPENDED    no cell, `own` is published and durable in the registry. Or op
//                RESUME: a cell is thawing `own`; its failure leaves the state
//                as it is. `own` stays until the next suspend is durable.
//                Leaves: resume (RUNNING), terminate.
//   TERMINATING  the terminate hook runs, or cell being killed; op TERMINATE. Leaves: its end.
//   TERMINATED   nothing but the record. Its snapshots are removed.
#include "vm_internal.h"

#include "jtext.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

#define S(x) (1u << VM_##x)
static const unsigned may_follow[VM_NUM_STATES] = {
    [VM_PENDING] = S(PARKED) | S(RUNNING) | S(TERMINATING) | S(TERMINATED),
    [VM_PARKED] = S(PENDING) | S(RUNNING) | S(TERMINATING) | S(TERMINATED),
    [VM_RUNNING] = S(SUSPENDING) | S(TERMINATING) | S(TERMINATED),
    [VM_SUSPENDING] =
	S(RUNNING) | S(SUSPENDED) | S(TERMINATING) | S(TERMINATED),
    [VM_SUSPENDED] = S(RUNNING) | S(TERMINATING) | S(TERMINATED),
    [VM_TERMINATING] = S(TERMINATED),
    [VM_TERMINATED] = 0,
};
#undef S

static uint64_t wall_ms(void)
{
	return util_wall_ns() / 1000000;
}

// --- the one writer ----------------------------------------------------------

static void put_event(struct reg_txn *txn, const struct reg_vm *r,
		      const char *from)
{
	struct jtext t = {0};

	jt_open(&t, NULL);
	jt_str(&t, "type", "microvm.state");
	jt_str(&t, "id", r->id);
	jt_str(&t, "image", r->image);
	jt_str(&t, "version", r->version);
	if (from)
		jt_str(&t, "from", from);
	else
		jt_null(&t, "from");
	jt_str(&t, "to", eng_state_name(r->state));
	jt_str(&t, "reason", r->code);
	if (r->name[0])
		jt_str(&t, "name", r->name);
	if (r->reason[0])
		jt_str(&t, "detail", r->reason);
	eng_reg_event_text(txn, &t);
}

static void stamp(struct reg_vm *r, enum vm_state to)
{
	uint64_t now = wall_ms();

	if (to == VM_RUNNING && r->live)
		eng_vm_traffic(r); // idle from here on
	if (to == VM_RUNNING && !r->started_ms)
		r->started_ms = now;
	if (to == VM_SUSPENDED)
		r->suspended_ms = now;
	if (to == VM_TERMINATED)
		r->ended_ms = now;
}

static void waiter_finish(struct vm_waiter *w, enum vm_wait_end how)
{
	if (w->done)
		return;
	w->done = true;
	eng_timer_stop(w->timer);
	w->cb(w->ctx, w->v->r, how);
}

// Waiters that are done are freed here and nowhere else.
static void waiters_sweep(struct eng_vm *v)
{
	struct vm_waiter **p = &v->waiters;

	while (*p) {
		struct vm_waiter *w = *p;

		if (!w->done) {
			p = &w->next;
			continue;
		}
		*p = w->next;
		eng_timer_destroy(w->timer);
		free(w);
	}
}

static void waiters_tell(struct eng_vm *v)
{
	enum vm_state s = v->r->state;

	for (struct vm_waiter *w = v->waiters; w; w = w->next) {
		if (w->mask & 1u << s)
			waiter_finish(w, VM_WAIT_REACHED);
		else if (s == VM_TERMINATED)
			waiter_finish(w, VM_WAIT_ENDED);
	}
	waiters_sweep(v);
	vm_traffic_tell(v);
}

static uint64_t write_state(struct eng_vm *v, const char *from,
			    const char *token, const uint8_t *params)
{
	struct reg_txn *t = eng_reg_begin(v->m->env.reg);

	eng_reg_put_vm(t, v->r);
	if (token)
		eng_reg_put_token(t, token, params, v->r->id,
				  util_wall_ns() / 1000000);
	put_event(t, v->r, from);
	v->r->txn = eng_reg_commit(t);
	return v->r->txn;
}

uint64_t vm_set_state(struct eng_vm *v, enum vm_state to, const char *code,
		      const char *fmt, ...)
{
	struct reg_vm *r = v->r;
	enum vm_state from = r->state;
	uint64_t seq;
	va_list ap;

	if (!(may_follow[from] & 1u << to)) {
		log_err("%s: a transition from %s to %s was asked for; this is "
			"a bug",
			r->id, eng_state_name(from), eng_state_name(to));
		abort();
	}
	r->state = to;
	snprintf(r->code, sizeof(r->code), "%s", code);
	va_start(ap, fmt);
	vsnprintf(r->reason, sizeof(r->reason), fmt, ap);
	va_end(ap);
	stamp(r, to);
	log_info("%s: %s -> %s (%s)%s%s", r->id, eng_state_name(from),
		 eng_state_name(to), code, r->reason[0] ? ": " : "", r->reason);
	if (from == VM_PARKED)
		vm_pool_ended(v);
	seq = write_state(v, eng_state_name(from), NULL, NULL);
	vm_arm(v);
	waiters_tell(v);
	return seq;
}

void vm_set_claimed(struct eng_vm *v, enum vm_state to, const struct vm_run *rq)
{
	v->r->state = to;
	strcpy(v->r->code, "claimed");
	v->r->reason[0] = '\0';
	stamp(v->r, to);
	log_info("%s: PARKED -> %s (claimed)", v->r->id, eng_state_name(to));
	write_state(v, "PARKED", rq->token, rq->params);
	vm_arm(v);
	waiters_tell(v);
}

uint64_t vm_born(struct eng_vm *v, const char *token, const uint8_t params[16])
{
	v->r->state = VM_PENDING;
	snprintf(v->r->code, sizeof(v->r->code), "requested");
	log_debug("%s: PENDING, image %s %s", v->r->id, v->r->image,
		  v->r->version);
	return write_state(v, NULL, token, params);
}

void vm_op_ended(struct eng_vm *v, const char *why)
{
	v->op = OP_NONE;
	snprintf(v->op_error, sizeof(v->op_error), "%s", why ? why : "");
	vm_arm(v);
	for (struct vm_waiter *w = v->waiters; w; w = w->next) {
		if (w->op_end)
			waiter_finish(w, VM_WAIT_OP);
	}
	waiters_sweep(v);
	vm_traffic_tell(v);
}

// --- the live part ----------------------------------------------------------

static void live_free(void *ctx)
{
	struct eng_vm *v = ctx;

	vm_talk_stop(v);
	vm_hook_stop(v);
	vm_log_detach(v);
	eng_timer_destroy(v->talk.retry);
	eng_timer_destroy(v->hook.timer);
	eng_timer_destroy(v->log_retry);
	eng_timer_destroy(v->deadline);
	for (struct vm_waiter *w = v->waiters; w; w = w->next)
		w->done = true;
	waiters_sweep(v);
	vm_traffic_end(v);
	vmlog_close(v->log);
	free(v->payload);
	free(v);
}

struct eng_vm *vm_live_new(struct eng_vms *m, struct reg_vm *r)
{
	struct eng_vm *v = calloc(1, sizeof(*v));

	if (!v)
		abort();
	v->m = m;
	v->r = r;
	r->live = v;
	v->deadline = eng_timer_create(m->env.loop, vm_timer_fired, v,
				       "microvm deadline");
	return v;
}

// Old ended microVMs go, with their logs.
static void prune(struct eng_vms *m)
{
	size_t n, ended = 0;
	struct reg_vm *const *vms = eng_reg_vms(m->env.reg, &n);
	struct reg_txn *t;

	for (size_t i = 0; i < n; i++)
		ended += !vms[i]->live;
	if (ended <= REG_KEEP_ENDED)
		return;
	for (size_t i = 0; i < n; i++) {
		struct reg_vm *r = vms[i];

		if (r->live)
			continue;
		vmlog_remove(m->env.log_dir, r->id);
		t = eng_reg_begin(m->env.reg);
		eng_reg_del_vm(t, r);
		eng_reg_commit(t);
		return; // one goes for each that comes
	}
}

void vm_ended(struct eng_vm *v, const char *code, const char *reason)
{
	struct reg_vm *r = v->r;
	struct pgc_id ids[3];
	uint64_t seq;
	size_t n = 0;

	if (r->has_own)
		ids[n++] = r->own;
	if (r->base_is_own)
		ids[n++] = r->base;
	if (v->has_cap)
		ids[n++] = v->cap_id;
	r->has_own = false;
	v->op = OP_NONE;
	vm_pool_leave(v);
	vm_talk_stop(v);
	vm_hook_stop(v);
	vm_log_detach(v);
	eng_timer_stop(v->deadline);
	seq = vm_set_state(v, VM_TERMINATED, code, "%s", reason);
	vm_op_ended(v, reason);
	vm_traffic_end(v);
	for (unsigned i = 0; i < v->m->nends; i++)
		v->m->ends[i].cb(v->m->ends[i].ctx, r);
	eng_snaps_drop(v->m, seq, ids, n);
	r->live = NULL;
	eng_loop_defer(v->m->env.loop, live_free, v, "microvm end");
	prune(v->m);
}

// --- waiting ----------------------------------------------------------------

static void wait_timed_out(void *ctx)
{
	struct vm_waiter *w = ctx;
	struct eng_vm *v = w->v;

	waiter_finish(w, VM_WAIT_TIMEOUT);
	waiters_sweep(v);
}

void eng_vm_wait(struct eng_vms *m, struct reg_vm *vm, unsigned mask,
		 bool op_end, uint64_t timeout_ms,
		 void (*cb)(void *ctx, struct reg_vm *vm, enum vm_wait_end how),
		 void *ctx)
{
	struct eng_vm *v = vm->live;
	struct vm_waiter *w;

	if (mask & 1u << vm->state) {
		cb(ctx, vm, VM_WAIT_REACHED);
		return;
	}
	if (!v) {
		cb(ctx, vm, VM_WAIT_ENDED);
		return;
	}
	w = calloc(1, sizeof(*w));
	if (!w)
		abort();
	w->v = v;
	w->mask = mask;
	w->op_end = op_end;
	w->cb = cb;
	w->ctx = ctx;
	w->timer =
	    eng_timer_create(m->env.loop, wait_timed_out, w, "microvm wait");
	eng_timer_set(w->timer, timeout_ms);
	w->next = v->waiters;
	v->waiters = w;
}

const char *eng_vm_op_error(const struct reg_vm *vm)
{
	return vm->live ? vm->live->op_error : vm->reason;
}

struct eng_cell *eng_vm_cell(const struct reg_vm *vm)
{
	return vm->state == VM_RUNNING && vm->live ? vm->live->cell : NULL;
}

pid_t eng_vm_pid(const struct reg_vm *vm)
{
	return vm->live && vm->live->cell ? eng_cell_pid(vm->live->cell) : 0;
}

struct vmlog *eng_vm_log(struct eng_vms *m, struct reg_vm *vm, bool *owned,
			 struct err *e)
{
	struct vmlog *lg = NULL;

	*owned = !vm->live;
	if (vm->live && vm->live->log)
		return vm->live->log;
	if (vmlog_open(&lg, m->env.loop, m->env.log_dir, vm->id, e))
		return NULL;
	if (vm->live)
		vm->live->log = lg;
	return lg;
}

// --- finding ----------------------------------------------------------------

static int ambiguous(struct eng_vms *m, const char *text, const char *prefix,
		     size_t len, struct err *e)
{
	size_t n, shown = 0, at;
	struct reg_vm *const *vms = eng_reg_vms(m->env.reg, &n);
	char list[220] = "";

	for (size_t i = 0; i < n && shown < 4; i++) {
		if (strncmp(vms[i]->id, prefix, len))
			continue;
		at = strlen(list);
		snprintf(list + at, sizeof(list) - at, "%s%s",
			 shown++ ? ", " : "", vms[i]->id);
	}
	return err_set(e, -EINVAL,
		       "\"%.60s\" is ambiguous: it begins %s and maybe more; "
		       "give more of the id",
		       text, list);
}

int eng_vm_find(struct eng_vms *m, const char *text, struct reg_vm **out,
		struct err *e)
{
	size_t n, hits = 0, len;
	struct reg_vm *const *vms = eng_reg_vms(m->env.reg, &n);
	struct reg_vm *named = NULL, *hit = NULL;
	char prefix[300];

	snprintf(prefix, sizeof(prefix), "%s%.256s",
		 strncmp(text, "microvm-", 8) ? "microvm-" : "", text);
	len = strlen(prefix);
	for (size_t i = n; i-- > 0;) { // newest first
		struct reg_vm *r = vms[i];

		if (strcmp(r->id, text) == 0) {
			*out = r;
			return 0;
		}
		// Of those with one name, the live one, else the newest.
		if (r->name[0] && strcmp(r->name, text) == 0 &&
		    (!named || (r->live && !named->live)))
			named = r;
		if (len > 8 && strncmp(r->id, prefix, len) == 0) {
			hit = r;
			hits++;
		}
	}
	if (named)
		hit = named;
	else if (hits > 1)
		return ambiguous(m, text, prefix, len, e);
	if (!hit)
		return err_set(e, -ENOENT, "MicroVM %.100s does not exist",
			       text);
	*out = hit;
	return 0;
}

struct reg_vm *eng_vm_by_endpoint(struct eng_vms *m, const char *uuid)
{
	size_t n;
	struct reg_vm *const *vms = eng_reg_vms(m->env.reg, &n);

	while (n-- > 0) { // newest first
		if (strcmp(vms[n]->endpoint, uuid) == 0)
			return vms[n];
	}
	return NULL;
}

// --- the host's promises ----------------------------------------------------

static bool holds_memory(const struct reg_vm *r)
{
	return r->live && !r->live->given_up &&
	       (r->live->cell || r->state == VM_PENDING);
}

void eng_vms_totals(struct eng_vms *m, struct vm_totals *out)
{
	size_t n;
	struct reg_vm *const *vms = eng_reg_vms(m->env.reg, &n);

	memset(out, 0, sizeof(*out));
	out->memory_total = m->memory_total;
	out->memory_budget = m->env.memory_budget;
	out->vcpus_total = m->vcpus_total;
	out->memory_committed = (uint64_t)m->reserved_mib << 20;
	out->vcpus_committed = (unsigned)m->reserved_vcpus;
	for (size_t i = 0; i < n; i++) {
		out->by_state[vms[i]->state]++;
		if (!holds_memory(vms[i]))
			continue;
		out->memory_committed += (uint64_t)vms[i]->mem_mib << 20;
		out->vcpus_committed += vms[i]->vcpus;
	}
}

int vm_fits(struct eng_vms *m, uint32_t mem_mib, bool yield, struct err *e)
{
	struct vm_totals t;
	uint64_t want;

	if (!m->env.memory_budget)
		return 0;
	eng_vms_totals(m, &t);
	want = t.memory_committed + ((uint64_t)mem_mib << 20);
	if (want <= t.memory_budget ||
	    (yield && vm_pool_yield(m, want - t.memory_budget)))
		return 0;
	return err_set(e, -EDQUOT,
		       "%u MiB do not fit the memory budget of this host: "
		       "%llu of %llu MiB are committed; suspend or terminate "
		       "microVMs, or raise --memory-budget",
		       mem_mib, (unsigned long long)(t.memory_committed >> 20),
		       (unsigned long long)(t.memory_budget >> 20));
}

int eng_vms_fits(struct eng_vms *m, uint32_t mem_mib, struct err *e)
{
	return vm_fits(m, mem_mib, true, e);
}

void eng_vms_reserve(struct eng_vms *m, int64_t mem_mib, int vcpus)
{
	m->reserved_mib += mem_mib;
	m->reserved_vcpus += vcpus;
}

// --- life --------------------------------------------------------------------

int eng_vms_create(struct eng_vms **out, const struct eng_vms_env *env,
		   struct err *e)
{
	struct eng_vms *m = calloc(1, sizeof(*m));
	struct sysinfo si;

	if (!m)
		return err_set(e, -ENOMEM, "make the microVM table");
	m->env = *env;
	m->pool_tail = &m->pool;
	if (!sysinfo(&si))
		m->memory_total = (uint64_t)si.totalram * si.mem_unit;
	m->vcpus_total = (unsigned)MAX(1l, sysconf(_SC_NPROCESSORS_ONLN));
	if (vm_roles_start(m, e)) {
		free(m);
		return -ENOMEM;
	}
	*out = m;
	return 0;
}

void eng_vms_stop(struct eng_vms *m)
{
	size_t n;
	struct reg_vm *const *vms = eng_reg_vms(m->env.reg, &n);

	m->stopping = true;
	for (size_t i = n; i-- > 0;) {
		struct reg_vm *r = vms[i];

		if (r->live && r->live->cell && r->live->op != OP_RESUME)
			eng_vm_terminate(m, r, "thawd-stopped",
					 "thawd was stopped");
		else if (r->live && r->live->cell)
			eng_cell_kill(r->live->cell); // stays SUSPENDED
	}
	vm_pool_fini(m);
}

bool eng_vms_busy(const struct eng_vms *m)
{
	size_t n;
	struct reg_vm *const *vms = eng_reg_vms(m->env.reg, &n);

	for (size_t i = 0; i < n; i++) {
		if (vms[i]->live && vms[i]->live->cell)
			return true;
	}
	return false;
}

void eng_vms_destroy(struct eng_vms *m)
{
	size_t n;
	struct reg_vm *const *vms;

	if (!m)
		return;
	vms = eng_reg_vms(m->env.reg, &n);
	for (size_t i = 0; i < n; i++) {
		if (vms[i]->live)
			live_free(vms[i]->live);
		vms[i]->live = NULL;
	}
	eng_timer_destroy(m->gc_timer);
	eng_timer_destroy(m->pool_timer);
	vm_roles_stop(m);
	vm_store_fini(m);
	free(m);
}
