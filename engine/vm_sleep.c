// Suspend and resume, as chains of callbacks (states: vm.c; the other operations:
// vm_ops.c).
//
//   suspend  SUSPENDING -> [suspend hook -> agent: FREEZE] -> capture -> cell gone
//            -> SUSPENDED; failed: [agent: UNFREEZE] -> RUNNING
//   resume   cell_thaw(own) -> started -> [agent: THAW -> resume hook] -> RUNNING
//            failed: SUSPENDED, as before
#include "vm_internal.h"

#include <errno.h>
#include <stdio.h>

#define FREEZE_MS 60000

static int wrong_state(const struct reg_vm *r, const char *verb, struct err *e)
{
	const struct eng_vm *v = r->live;
	bool resuming = v && v->op == OP_RESUME;

	return err_set(e, -EBUSY, "MicroVM %s cannot be %s: it is %s%s", r->id,
		       verb, eng_state_name(r->state),
		       resuming ? " and being resumed" : "");
}

// --- suspend ----------------------------------------------------------------

static void suspend_failed(struct eng_vm *v, const char *why)
{
	char text[256];

	snprintf(text, sizeof(text), "suspend failed: %s", why);
	v->has_cap = false;
	v->op = OP_NONE;
	vm_set_state(v, VM_RUNNING, "suspend-failed", "%s", text);
	if (v->r->agent)
		vm_log_attach(v);
	vm_op_ended(v, text);
}

static void unfrozen(struct eng_vm *v, int rc, const char *why)
{
	if (rc)
		log_warn("%s: its application may still be frozen: %s",
			 v->r->id, why ? why : err_name(rc));
	suspend_failed(v, v->op_error);
}

static void back_to_running(struct eng_vm *v, const char *why)
{
	snprintf(v->op_error, sizeof(v->op_error), "%s", why);
	if (v->r->agent)
		vm_talk_with_role(v, FREEZE_MS, vm_encode_unfreeze, unfrozen);
	else
		suspend_failed(v, v->op_error);
}

static void note_suspend(struct eng_vm *v, const struct eng_capture_stats *st)
{
	json_t *t =
	    json_pack("{s:I,s:I,s:I,s:I,s:I}", "parked",
		      (json_int_t)(st->parked_ns / 1000), "capture",
		      (json_int_t)(st->total_ns / 1000), "total",
		      (json_int_t)((util_now_ns() - v->t0) / 1000),
		      "dirtyMemoryPages", (json_int_t)st->dirty_mem_pages,
		      "dirtyDiskPages", (json_int_t)st->dirty_disk_pages);

	if (v->freeze_ns)
		vm_note(t, "freeze", v->freeze_ns, v->t0);
	json_object_set_new(v->r->timings, "suspend", t);
}

static void captured(void *ctx, int rc, const char *why,
		     const struct eng_capture_stats *st)
{
	struct eng_vm *v = ctx;

	if (v->op != OP_SUSPEND) // terminate came in between
		return;
	if (rc) {
		back_to_running(v, why ? why : err_name(rc));
		return;
	}
	v->captured = true; // the cell's end follows
	if (st)
		note_suspend(v, st);
}

static void capture(struct eng_vm *v)
{
	struct eng_capture_req q = {
	    // A cold run has no memory snapshot to be a child of.
	    .image = v->r->cold && !v->r->base_is_own,
	    .keep_running = false,
	};
	struct err e = ERR_INIT;

	util_random(v->cap_id.b, sizeof(v->cap_id.b));
	q.id = v->cap_id;
	v->has_cap = true;
	v->captured = false;
	if (eng_cell_capture(v->cell, &q, captured, v, &e))
		back_to_running(v, e.msg);
}

static void frozen(struct eng_vm *v, int rc, const char *why)
{
	if (rc) {
		back_to_running(v, why ? why : err_name(rc));
		return;
	}
	v->freeze_ns = util_now_ns();
	vm_log_detach(v);
	capture(v);
}

void vm_suspended(struct eng_vm *v)
{
	struct reg_vm *r = v->r;
	struct pgc_id old = r->own;
	bool drop_old = r->has_own;
	uint64_t seq;

	if (r->cold && !r->base_is_own) {
		// Complete, without a parent: it is its own base from now on.
		r->base = v->cap_id;
		r->base_is_own = true;
	} else {
		r->own = v->cap_id;
		r->has_own = true;
	}
	v->has_cap = false;
	v->op = OP_NONE;
	r->suspends++;
	seq =
	    vm_set_state(v, VM_SUSPENDED, v->sleep_code, "%s", v->sleep_reason);
	vm_op_ended(v, NULL);
	eng_snaps_drop(v->m, seq, &old, drop_old);
}

static void freeze(struct eng_vm *v)
{
	if (v->r->agent)
		vm_talk_start(v, FREEZE_MS, vm_encode_freeze, frozen);
	else
		capture(v);
}

static void hooked(struct eng_vm *v, const char *why)
{
	if (why)
		suspend_failed(v, why);
	else
		freeze(v);
}

int vm_suspend(struct eng_vm *v, const char *code, const char *reason,
	       struct err *e)
{
	struct eng_vms *m = v->m;
	struct reg_vm *r = v->r;

	if (!eng_reg_healthy(m->env.reg, e))
		return -EIO;
	if (vm_ends_suspended(r)) {
		eng_vm_terminate(m, r, code,
				 "its suspendedDurationSeconds is 0");
		return 0;
	}
	vm_pool_unpark(m); // it may just have been claimed
	v->op = OP_SUSPEND;
	v->op_error[0] = '\0';
	v->t0 = util_now_ns();
	v->freeze_ns = 0;
	snprintf(v->sleep_code, sizeof(v->sleep_code), "%s", code);
	snprintf(v->sleep_reason, sizeof(v->sleep_reason), "%s", reason);
	vm_set_state(v, VM_SUSPENDING, code, "%s", reason);
	if (!vm_hook_start(v, VM_HOOK_SUSPEND, hooked))
		freeze(v);
	return 0;
}

int eng_vm_suspend(struct eng_vms *m, struct reg_vm *r, struct err *e)
{
	struct eng_vm *v = r->live;

	(void)m;
	if (r->state != VM_RUNNING || v->op != OP_NONE)
		return wrong_state(r, "suspended", e);
	return vm_suspend(v, "requested", "", e);
}

// --- resume -----------------------------------------------------------------

int eng_vm_resume(struct eng_vms *m, struct reg_vm *r, uint64_t t0,
		  struct err *e)
{
	struct eng_vm *v = r->live;
	int rc;

	if (r->state != VM_SUSPENDED || v->op != OP_NONE || vm_due(v))
		return wrong_state(r, "resumed", e);
	rc = vm_may_start(m, e);
	if (!rc && eng_vms_fits(m, r->mem_mib, e)) {
		e->code = -EAGAIN; // the same sentence, another kind of "no"
		rc = -EAGAIN;
	}
	if (rc)
		return rc;
	v->t0 = t0;
	v->op_error[0] = '\0';
	v->end_reason[0] = '\0';
	rc = vm_start_thaw(v, NULL, 0, t0, e);
	if (rc)
		return rc;
	v->op = OP_RESUME;
	json_object_del(r->timings, "resume");
	return 0;
}

void vm_resume_failed(struct eng_vm *v, const char *why)
{
	char text[300];

	snprintf(text, sizeof(text), "resume failed: %s", why);
	log_warn("%s: %s", v->r->id, text);
	vm_op_ended(v, text);
}
