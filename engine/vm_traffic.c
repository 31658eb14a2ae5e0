// What comes from outside for a microVM: streams to its ports, and waking it.
//
// An opening goes from step to step until it can say how it ended. Where it
// stands follows from the microVM alone, so a step is the same for all of them:
//
//   PENDING, SUSPENDING, SUSPENDED and being resumed   wait for a transition
//   SUSPENDED              resume it, if its idle policy lets traffic do that
//   RUNNING                ask the agent for the port; for a wake: done
//   all others             over
//
// A step never runs from within a call of the engine: transitions only set its
// timer. That is also what makes cancelling simple. The stream of a microVM that
// is suspended while its agent is asked ends; that opening is back at the start.
//
// v->openings holds them while the microVM lives. One whose microVM has ended has
// no `v`, and its last step is due.
#include "vm_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ASK_MS 20000 // the agent, for a port; at most

struct vm_opening {
	struct vm_opening *next, **link; // in v->openings
	struct eng_vm *v;		 // NULL: it has ended
	struct eng_loop *loop;
	unsigned port; // 0: a wake
	uint64_t until_ns;
	struct eng_timer *step, *deadline;
	struct eng_agent_call *call;
	bool resuming; // a resume has been seen since it was last not SUSPENDED
	char why[300];
	void (*cb)(void *ctx, int rc, const char *why);
	void *ctx;
};

void eng_vm_traffic(struct reg_vm *vm)
{
	if (vm->live)
		vm->live->traffic_ns = util_now_ns();
}

static void unlink_opening(struct vm_opening *o)
{
	if (!o->v)
		return;
	*o->link = o->next;
	if (o->next)
		o->next->link = o->link;
	o->v = NULL;
}

static void opening_free(struct vm_opening *o)
{
	unlink_opening(o);
	eng_agent_cancel(o->call);
	eng_timer_destroy(o->step);
	eng_timer_destroy(o->deadline);
	free(o);
}

void eng_vm_open_cancel(struct vm_opening *o)
{
	if (o)
		opening_free(o);
}

static void finish(struct vm_opening *o, int rc, const char *why)
{
	void (*cb)(void *ctx, int rc, const char *why) = o->cb;
	void *ctx = o->ctx;
	char text[sizeof(o->why)];

	snprintf(text, sizeof(text), "%s", why ? why : "");
	if (o->v)
		eng_vm_traffic(o->v->r);
	opening_free(o);
	cb(ctx, rc, text[0] ? text : NULL);
}

// --- its steps ---------------------------------------------------------------

static void asked(void *ctx, const struct eng_agent_answer *a)
{
	struct vm_opening *o = ctx;
	char why[200];

	o->call = NULL;
	if (!a->rc && a->type == AGENT_OK && a->fd >= 0) {
		finish(o, a->fd, NULL);
		return;
	}
	if (a->fd >= 0)
		close(a->fd);
	if (!o->v || o->v->r->state != VM_RUNNING) {
		eng_timer_set(o->step, 0);
		return;
	}
	snprintf(why, sizeof(why), "port %u of the guest cannot be reached: %s",
		 o->port, a->why ? a->why : "the agent gave no reason");
	finish(o, a->rc ? a->rc : -EPROTO, why);
}

static void ask_agent(struct vm_opening *o)
{
	uint64_t now = util_now_ns(), ms;
	struct err e = ERR_INIT;
	struct wire_writer w;
	uint8_t buf[64];
	int fd, rc;

	rc = eng_cell_connect(o->v->cell, AGENT_PORT, &fd, &e);
	if (rc) {
		finish(o, rc, e.msg);
		return;
	}
	w = wire_writer_of(buf, sizeof(buf));
	eng_agent_put_connect(&w, (uint16_t)o->port);
	ms = now < o->until_ns ? (o->until_ns - now) / 1000000 + 1 : 1;
	o->call = eng_agent_call(o->loop, fd, buf, w.len,
				 MIN(ms, (uint64_t)ASK_MS), true, asked, o, &e);
	if (!o->call)
		finish(o, e.code ? e.code : -EIO, e.msg);
}

static void resume_it(struct vm_opening *o)
{
	struct eng_vm *v = o->v;
	struct err e = ERR_INIT;
	char why[300];
	int rc;

	if (v->op == OP_RESUME) {
		o->resuming = true;
	} else if (o->resuming) {
		snprintf(why, sizeof(why), "%s",
			 v->op_error[0] ? v->op_error : "it was not resumed");
		finish(o, -EIO, why);
	} else if (!vm_wakes(v->r)) {
		snprintf(why, sizeof(why),
			 "MicroVM %s is SUSPENDED, and its idlePolicy does not "
			 "let traffic resume it",
			 v->r->id);
		finish(o, -EBUSY, why);
	} else {
		o->resuming = true;
		rc = eng_vm_resume(v->m, v->r, util_now_ns(), &e);
		if (rc)
			finish(o, rc == -EAGAIN ? -EDQUOT : rc, e.msg);
	}
}

static void step(void *ctx)
{
	struct vm_opening *o = ctx;
	struct eng_vm *v = o->v;
	char why[160];

	if (!v) {
		finish(o, -ENOENT, o->why);
		return;
	}
	if (o->port && !v->r->agent) {
		finish(o, -ECONNREFUSED,
		       "its guest has no agent, and so no TCP ports");
		return;
	}
	if (o->call)
		return; // its answer comes, or the stream's end
	if (v->r->state != VM_SUSPENDED)
		o->resuming = false;
	switch (v->r->state) {
	case VM_PENDING:
	case VM_SUSPENDING:
		return;
	case VM_SUSPENDED:
		resume_it(o);
		return;
	case VM_RUNNING:
		if (o->port)
			ask_agent(o);
		else
			finish(o, 0, NULL);
		return;
	default:
		snprintf(why, sizeof(why), "MicroVM %s is %s", v->r->id,
			 eng_state_name(v->r->state));
		finish(o, v->r->state == VM_PARKED ? -EBUSY : -ENOENT, why);
	}
}

// What it is that has not come.
static const char *awaited(const struct vm_opening *o)
{
	const struct eng_vm *v = o->v;

	if (o->call)
		return ", but its agent did not answer in time";
	if (v->op != OP_START && v->op != OP_RESUME)
		return "";
	return v->talk.done   ? ": it started, but its agent does not answer"
	       : v->hook.done ? ": its hook has not ended"
			      : ": its virtual machine has not started";
}

static void too_late(void *ctx)
{
	struct vm_opening *o = ctx;
	const char *last;
	char why[300];

	if (!o->v) {
		finish(o, -ENOENT, o->why);
		return;
	}
	last = o->v->talk.done ? o->v->talk.why : "";
	snprintf(why, sizeof(why), "MicroVM %s was still %s%s%s%.120s",
		 o->v->r->id, eng_state_name(o->v->r->state), awaited(o),
		 last[0] ? "; the last try: " : "", last);
	log_warn("%s", why);
	finish(o, -ETIMEDOUT, why);
}

// --- what vm.c tells -----------------------------------------------------------

void vm_traffic_tell(struct eng_vm *v)
{
	for (struct vm_opening *o = v->openings; o; o = o->next)
		eng_timer_set(o->step, 0);
}

void vm_traffic_end(struct eng_vm *v)
{
	struct vm_opening *o;

	while ((o = v->openings)) {
		snprintf(o->why, sizeof(o->why), "MicroVM %s has ended%s%.200s",
			 v->r->id, v->r->reason[0] ? ": " : "", v->r->reason);
		eng_agent_cancel(ptr_steal(o->call));
		eng_timer_set(o->step, 0);
		unlink_opening(o);
	}
}

// --- asking --------------------------------------------------------------------

static int open_or_wake(struct eng_vms *m, struct reg_vm *vm, unsigned port,
			uint64_t timeout_ms,
			void (*cb)(void *ctx, int rc, const char *why),
			void *ctx, struct vm_opening **out, struct err *e)
{
	struct vm_opening *o = calloc(1, sizeof(*o));
	struct eng_vm *v = vm->live;

	if (!o)
		return err_set(e, -ENOMEM, "reach MicroVM %s: no memory",
			       vm->id);
	o->loop = m->env.loop;
	o->port = port;
	o->until_ns = util_now_ns() + timeout_ms * 1000000;
	o->cb = cb;
	o->ctx = ctx;
	o->step = eng_timer_create(o->loop, step, o, "opening");
	o->deadline = eng_timer_create(o->loop, too_late, o, "opening late");
	if (!o->step || !o->deadline) {
		opening_free(o);
		return err_set(e, -ENOMEM, "reach MicroVM %s: no memory",
			       vm->id);
	}
	if (v) {
		o->v = v;
		o->next = v->openings;
		o->link = &v->openings;
		if (o->next)
			o->next->link = &o->next;
		v->openings = o;
		eng_vm_traffic(vm);
	} else {
		snprintf(o->why, sizeof(o->why), "MicroVM %s has ended",
			 vm->id);
	}
	eng_timer_set(o->step, 0);
	eng_timer_set(o->deadline, timeout_ms);
	*out = o;
	return 0;
}

int eng_vm_open(struct eng_vms *m, struct reg_vm *vm, unsigned port,
		uint64_t timeout_ms,
		void (*cb)(void *ctx, int fd, const char *why), void *ctx,
		struct vm_opening **out, struct err *e)
{
	if (port < 1 || port > 65535)
		return err_set(e, -EINVAL, "%u is no TCP port", port);
	return open_or_wake(m, vm, port, timeout_ms, cb, ctx, out, e);
}

int eng_vm_wake(struct eng_vms *m, struct reg_vm *vm, uint64_t timeout_ms,
		void (*cb)(void *ctx, int rc, const char *why), void *ctx,
		struct vm_opening **out, struct err *e)
{
	return open_or_wake(m, vm, 0, timeout_ms, cb, ctx, out, e);
}

// --- ends ----------------------------------------------------------------------

void eng_vms_on_end(struct eng_vms *m, void (*cb)(void *ctx, struct reg_vm *vm),
		    void *ctx)
{
	if (m->nends == ARRAY_SIZE(m->ends))
		abort(); // a bug: they are set at start, each once
	m->ends[m->nends++] = (struct vm_end_cb){cb, ctx};
}
