// The operations on a microVM, each a chain of callbacks (states: vm.c).
//
//   run      cell_thaw -> started -> [agent: THAW -> run hook] -> RUNNING
//   park     cell_thaw -> started -> [agent: RENEW] -> cell_park -> PARKED
//   claim    cell_unpark -> [PENDING -> agent: THAW -> run hook] -> RUNNING
//            cell_boot -> vsock_up -> agent: START -> run hook -> RUNNING  (cold)
//   suspend, resume  vm_sleep.c
//   end      TERMINATING -> [terminate hook] -> kill -> cell gone -> TERMINATED
// The cell's end, at any point, comes to vm_cell_gone(), which knows from `op`
// what it means.
#include "vm_internal.h"

#include "build.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define HANDSHAKE_MS 60000
#define BOOT_MS 300000 // emulated machines take 20 s and more
#define PARK_MS 120000 // more than the handshake and the stop

// --- timings ----------------------------------------------------------------

void vm_note(json_t *t, const char *key, uint64_t ns, uint64_t t0)
{
	if (ns >= t0 && ns)
		json_object_set_new(
		    t, key, json_integer((json_int_t)((ns - t0) / 1000)));
}

static json_t *timings_of(struct eng_vm *v)
{
	const char *op = v->op == OP_RESUME ? "resume"
			 : v->r->pooled	    ? "claim"
					    : "run";
	json_t *t = json_object_get(v->r->timings, op);

	if (!t) {
		t = json_object();
		json_object_set_new(v->r->timings, op, t);
	}
	return t;
}

void vm_note_now(struct eng_vm *v, const char *key)
{
	vm_note(timings_of(v), key, util_now_ns(), v->t0);
}

void vm_note_t0(struct eng_vm *v)
{
	json_object_set_new(timings_of(v), "t0Ns",
			    json_integer((json_int_t)v->t0));
}

// A guest that had not left when it was reported as started has by now.
void eng_vm_late_timings(const struct reg_vm *r, json_t *timings)
{
	json_t *last = json_object_get(timings, "resume");
	struct eng_cell_times t;

	if (!r->live || !r->live->cell)
		return;
	if (!last)
		last = json_object_get(timings, "run");
	eng_cell_get_times(r->live->cell, &t);
	if (last && !json_object_get(last, "firstExit"))
		vm_note(last, "firstExit", t.first_exit, t.t0);
}

// --- starting ---------------------------------------------------------------

void vm_fail_start(struct eng_vm *v, const char *why)
{
	// The reason is kept for vm_cell_gone(), which follows the kill.
	snprintf(v->end_reason, sizeof(v->end_reason), "%s", why);
	eng_cell_kill(v->cell);
}

void vm_now_running(struct eng_vm *v)
{
	bool resumed = v->op == OP_RESUME;

	vm_note_now(v, "running");
	if (resumed)
		v->r->resumes++;
	v->op = OP_NONE;
	vm_set_state(v, VM_RUNNING,
		     resumed	    ? "resumed"
		     : v->r->pooled ? "claimed"
				    : "started",
		     "%s", "");
	if (resumed)
		vm_op_ended(v, NULL);
	if (v->r->agent)
		vm_log_attach(v);
}

static void hooked(struct eng_vm *v, const char *why)
{
	free(ptr_steal(v->payload)); // it may be secret
	v->payload_len = 0;
	if (!why) {
		vm_note_now(v, "hook");
		vm_now_running(v);
	} else if (v->op == OP_RESUME) {
		vm_fail_start(v, why);
	} else {
		eng_vm_terminate(v->m, v->r, "run-hook-failed", why);
	}
}

static void handshake_done(struct eng_vm *v, int rc, const char *why)
{
	char text[256];

	if (!rc) {
		vm_note_now(v, "agent");
		if (vm_hook_start(
			v, v->op == OP_RESUME ? VM_HOOK_RESUME : VM_HOOK_RUN,
			hooked))
			vm_log_attach(v); // what the application says of it
		else
			vm_now_running(v);
		return;
	}
	snprintf(text, sizeof(text), "the guest's agent did not answer: %s",
		 why ? why : err_name(rc));
	vm_fail_start(v, text);
}

void vm_handshake(struct eng_vm *v)
{
	vm_talk_with_role(v, HANDSHAKE_MS, vm_encode_thaw, handshake_done);
}

static void renewed(struct eng_vm *v, int rc, const char *why)
{
	if (!rc) {
		vm_note_now(v, "agent");
		vm_pool_park(v);
	} else {
		handshake_done(v, rc, why);
	}
}

static void boot_mailbox(struct eng_vm *v)
{
	struct err e = ERR_INIT;

	if (v->payload_len &&
	    eng_cell_mailbox(v->cell, v->payload, v->payload_len, &e))
		log_warn("%s: its payload was lost: %s", v->r->id, e.msg);
	free(ptr_steal(v->payload));
	v->payload_len = 0;
}

static void cell_started(void *ctx, const struct eng_cell_times *t)
{
	struct eng_vm *v = ctx;
	json_t *out;

	if (v->op != OP_START && v->op != OP_RESUME)
		return;
	out = timings_of(v);
	vm_note_t0(v);
	vm_note(out, "handed", t->handed, v->t0);
	vm_note(out, "mapped", t->mapped, v->t0);
	vm_note(out, "loaded", t->loaded, v->t0);
	vm_note(out, "firstExit", t->first_exit, v->t0);
	vm_note_now(v, "started");
	if (v->r->cold && v->op == OP_START) {
		if (!v->r->agent) { // with one: when vsock is up
			boot_mailbox(v);
			vm_now_running(v);
		}
		return;
	}
	if (v->r->parked && v->r->agent)
		vm_talk_start(v, HANDSHAKE_MS, vm_encode_renew, renewed);
	else if (v->r->parked)
		vm_pool_park(v);
	else if (v->r->agent)
		vm_handshake(v);
	else
		vm_now_running(v);
}

static void cell_vsock_up(void *ctx)
{
	struct eng_vm *v = ctx;

	if (v->op == OP_START && v->r->cold && v->r->agent) {
		vm_note_now(v, "vsockUp");
		vm_talk_with_role(v, BOOT_MS, vm_encode_start, handshake_done);
	}
}

static void cell_console(void *ctx, const void *bytes, size_t n)
{
	vm_log_bytes(ctx, bytes, n);
}

static const struct eng_cell_events cell_events = {
    .started = cell_started,
    .vsock_up = cell_vsock_up,
    .console = cell_console,
    .parked = vm_pool_parked,
    .gone = vm_cell_gone,
};

static int start_cold(struct eng_vm *v, const struct vm_run *rq, struct err *e)
{
	const struct reg_version *ver = rq->version;
	const char *kernel =
	    json_string_value(json_object_get(ver->spec, "kernel"));
	const char *cmdline =
	    json_string_value(json_object_get(ver->spec, "cmdline"));
	struct eng_boot_req b = {
	    .mem_mib = ver->mem_mib,
	    .vcpus = ver->vcpus,
	    .kernel_path = ver->agent ? v->m->env.kernel_path : kernel,
	    .initrd_path = ver->agent ? v->m->env.initrd_path : NULL,
	    .cmdline =
		ver->agent ? eng_guest_cmdline : (cmdline ? cmdline : ""),
	    .has_disk = ver->has_disk,
	    .disk = ver->disk,
	    .t0 = rq->t0,
	};

	if (!b.kernel_path)
		return err_set(e, -EINVAL,
			       "a cold run needs a guest kernel; start thawd "
			       "with --kernel and --initrd");
	return eng_cell_boot(v->m->env.cells, &b, &cell_events, v, &v->cell, e);
}

int vm_start_thaw(struct eng_vm *v, const void *payload, size_t len,
		  uint64_t t0, struct err *e)
{
	struct eng_thaw_req q = {
	    .base = v->r->base,
	    .has_own = v->r->has_own,
	    .own = v->r->own,
	    .mailbox = len ? payload : NULL,
	    .mailbox_len = len,
	    .t0 = t0,
	};

	return eng_cell_thaw(v->m->env.cells, &q, &cell_events, v, &v->cell, e);
}

static struct reg_vm *make_record(struct eng_vms *m, const struct vm_run *rq)
{
	struct reg_vm *r = eng_reg_vm_add(m->env.reg);

	snprintf(r->name, sizeof(r->name), "%s", rq->name ? rq->name : "");
	strcpy(r->image, rq->image->name);
	strcpy(r->version, rq->version->version);
	r->base = rq->version->snap;
	r->mem_mib = rq->version->mem_mib;
	r->vcpus = rq->version->vcpus;
	r->agent = rq->version->agent;
	r->cold = rq->cold;
	r->parked = rq->parked;
	r->max_duration_s = rq->max_duration_s;
	r->labels = rq->labels ? json_deep_copy(rq->labels) : json_object();
	r->extra = rq->extra ? json_deep_copy(rq->extra) : json_object();
	r->timings = json_object();
	return r;
}

int vm_name_free(struct eng_vms *m, const char *name, struct err *e)
{
	size_t n;
	struct reg_vm *const *vms = eng_reg_vms(m->env.reg, &n);

	for (size_t i = 0; name && name[0] && i < n; i++) {
		if (vms[i]->live && strcmp(vms[i]->name, name) == 0)
			return err_set(e, -EBUSY,
				       "the name %s is taken by %s, which is "
				       "%s",
				       name, vms[i]->id,
				       eng_state_name(vms[i]->state));
	}
	return 0;
}

int vm_may_start(struct eng_vms *m, struct err *e)
{
	if (m->stopping)
		return err_set(e, -ESHUTDOWN, "thawd is stopping");
	return eng_reg_healthy(m->env.reg, e) ? 0 : -EIO;
}

// Takes the record of a run that never began out again; nobody saw it.
static void unmake(struct eng_vm *v)
{
	struct reg_txn *t = eng_reg_begin(v->m->env.reg);

	vm_pool_leave(v);
	eng_timer_destroy(v->deadline);
	v->r->live = NULL;
	eng_reg_del_vm(t, v->r);
	eng_reg_commit(t);
	free(v);
}

void vm_keep_payload(struct eng_vm *v, const struct vm_run *rq)
{
	if (!rq->payload_len)
		return;
	v->payload = malloc(rq->payload_len);
	if (!v->payload)
		abort();
	memcpy(v->payload, rq->payload, rq->payload_len);
	v->payload_len = rq->payload_len;
}

static int can_hook(const struct vm_run *rq, struct err *e)
{
	if (rq->version->agent || !vm_has_hooks(rq->version))
		return 0;
	return err_set(e, -EINVAL,
		       "MicroVM image %s version %s has hooks ENABLED, but no "
		       "agent through which they could be called",
		       rq->image->name, rq->version->version);
}

int eng_vm_run(struct eng_vms *m, const struct vm_run *rq, struct reg_vm **out,
	       struct err *e)
{
	bool mailbox = !rq->version->agent;
	struct eng_vm *v;
	int rc = vm_may_start(m, e);

	if (!rc)
		rc = vm_name_free(m, rq->name, e);
	if (!rc)
		rc = can_hook(rq, e);
	if (!rc && rq->parked)
		rc = vm_pool_room(m, rq, e);
	if (rc)
		return rc;
	if (!rq->parked && !rq->cold && vm_pool_claim(m, rq, out))
		return 0;
	rc = vm_fits(m, rq->version->mem_mib, !rq->parked, e);
	if (rc)
		return rc;
	v = vm_live_new(m, make_record(m, rq));
	v->op = OP_START;
	if (rq->parked)
		vm_pool_join(v);
	v->t0 = rq->t0;
	// The restore goes first and the commit runs beside it.
	rc = rq->cold ? start_cold(v, rq, e)
		      : vm_start_thaw(v, rq->payload,
				      mailbox ? rq->payload_len : 0, rq->t0, e);
	if (rc) {
		unmake(v);
		return rc;
	}
	if (rq->cold || vm_has_hook(rq->version, VM_HOOK_RUN))
		vm_keep_payload(v, rq);
	if (rq->parked)
		eng_timer_set(v->deadline, PARK_MS);
	else
		vm_arm(v);
	vm_born(v, rq->token, rq->params);
	*out = v->r;
	return 0;
}

// --- the end -----------------------------------------------------------------

static void end_hooked(struct eng_vm *v, const char *why)
{
	(void)why; // it ends all the same
	if (v->cell)
		eng_cell_kill(v->cell);
}

void eng_vm_terminate(struct eng_vms *m, struct reg_vm *r, const char *code,
		      const char *reason)
{
	struct eng_vm *v = r->live;
	bool ran = r->state == VM_RUNNING;

	(void)m;
	if (!v || r->state == VM_TERMINATED || r->state == VM_TERMINATING)
		return;
	snprintf(v->end_code, sizeof(v->end_code), "%s", code);
	snprintf(v->end_reason, sizeof(v->end_reason), "%s", reason);
	v->op = OP_TERMINATE;
	vm_talk_stop(v);
	vm_hook_stop(v);
	vm_set_state(v, VM_TERMINATING, code, "%s", reason);
	if (ran && v->cell && vm_hook_start(v, VM_HOOK_TERMINATE, end_hooked))
		return; // with its log, to the end
	vm_log_detach(v);
	if (v->cell)
		eng_cell_kill(v->cell);
	else
		vm_ended(v, code, reason);
}

static const struct {
	const char *code, *text;
} endings[] = {
    [ENG_END_KILLED] = {"killed", "its cell was ended"},
    [ENG_END_POWEROFF] = {"guest-poweroff", "the guest powered off"},
    [ENG_END_RESET] = {"guest-reset",
		       "the guest asked for a reset or triple-faulted"},
    [ENG_END_CRASHED] = {"cell-crashed", "its cell died"},
    [ENG_END_MEMORY] = {"memory-lost", "a page of it could not be had"},
    [ENG_END_FATAL] = {"vmm-failed", "its virtual machine cannot go on"},
    [ENG_END_START] = {"start-failed", "it could not be started"},
};

static void why_ended(char *text, size_t cap, struct eng_vm *v,
		      enum eng_end why, const char *detail)
{
	if (why == ENG_END_KILLED && v->end_reason[0])
		snprintf(text, cap, "%s", v->end_reason);
	else if (detail && detail[0])
		snprintf(text, cap, "%s: %s", endings[why].text, detail);
	else
		snprintf(text, cap, "%s", endings[why].text);
}

void vm_cell_gone(void *ctx, enum eng_end why, const char *detail)
{
	struct eng_vm *v = ctx;
	char text[256];

	v->cell = NULL;
	vm_talk_stop(v);
	vm_hook_stop(v);
	vm_log_detach(v);
	why_ended(text, sizeof(text), v, why, detail);
	switch (v->op) {
	case OP_TERMINATE:
		vm_ended(v, v->end_code, v->end_reason);
		break;
	case OP_SUSPEND:
		if (v->captured)
			vm_suspended(v);
		else
			vm_ended(v, endings[why].code, text);
		break;
	case OP_RESUME:
		vm_resume_failed(v, text);
		break;
	case OP_START:
		vm_ended(v,
			 why == ENG_END_KILLED ? "start-failed"
					       : endings[why].code,
			 text);
		break;
	default:
		vm_ended(v, endings[why].code, text);
		break;
	}
}
