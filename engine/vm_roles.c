// Credentials of execution roles on their way into guests.
//
// A microVM's agent is told them (AGENT_ROLE) when it has a cell and its
// application does not run yet: before the THAW of a run, claim or resume, before
// the START of a cold run, and before the UNFREEZE of a suspend that failed, for
// the freeze wiped them. So an application never sees a moment without, and a
// snapshot never has any.
//
// While it runs it is told again when the role's file has changed. A timer looks
// every LOOK_MS, as long as any role is mapped, and compares what each microVM was
// told last (role_version) with what the file has; who cannot be told now (an
// operation holds the conversation, the guest does not answer) is met by the next
// look.
//
// What an agent refuses is refused once: one from before AGENT_ROLE stays in its
// image, and the log says so.
#include "vm_internal.h"

#include "roles.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LOOK_MS 2000
#define RENEW_MS 10000

static const char *role_of(const struct eng_vm *v)
{
	return json_string_value(
	    json_object_get(v->r->extra, "executionRoleArn"));
}

// NULL: it has no role, or one without credentials here.
static const struct eng_creds *creds_of(const struct eng_vm *v,
					uint32_t *version)
{
	const char *arn = role_of(v);

	if (!arn || !v->r->agent)
		return NULL;
	return eng_roles_get(v->m->env.roles, arn, version);
}

static void encode_role(struct eng_vm *v, struct wire_writer *w)
{
	const struct eng_creds *c = creds_of(v, &v->role.told);

	if (c)
		eng_agent_put_role(w, v->r->id, v->m->env.region, c);
	else // its file is mapped as long as thawd runs
		w->bad = true;
}

// What the agent made of it.
static void told(struct eng_vm *v, int rc, const char *why)
{
	char line[200];

	if (rc == -EPIPE || rc == -ETIMEDOUT)
		return; // it was not heard; who asked for it goes on, or tries again
	v->role.version = v->role.told;
	v->role.refused = rc != 0;
	if (!rc)
		return;
	snprintf(line, sizeof(line),
		 "thawd: no credentials of its execution role here: the agent "
		 "of its image refuses them (%.80s); build the image anew\n",
		 why ? why : err_name(rc));
	log_warn("%s: %.*s", v->r->id, (int)strlen(line) - 1, line);
	vm_log_bytes(v, line, strlen(line));
}

static void go_on(struct eng_vm *v, int rc, const char *why)
{
	uint64_t now = util_now_ns(), ms = 1000;

	told(v, rc, why);
	if (now < v->role.by_ns)
		ms = MAX(ms, (v->role.by_ns - now) / 1000000);
	vm_talk_start(v, ms, v->role.encode, v->role.done);
}

void vm_talk_with_role(struct eng_vm *v, uint64_t timeout_ms,
		       void (*encode)(struct eng_vm *v, struct wire_writer *w),
		       void (*done)(struct eng_vm *v, int rc, const char *why))
{
	struct eng_vms *m = v->m;
	uint32_t version;

	if (m->env.roles && eng_roles_refresh(m->env.roles))
		m->roles_owed = true;
	if (v->role.refused || !creds_of(v, &version)) {
		if (!v->role.refused && role_of(v))
			log_info("%s: it has no credentials: no --role maps %s",
				 v->r->id, role_of(v));
		vm_talk_start(v, timeout_ms, encode, done);
		return;
	}
	v->role.version = 0;
	v->role.by_ns = util_now_ns() + timeout_ms * 1000000;
	v->role.encode = encode;
	v->role.done = done;
	vm_talk_start(v, timeout_ms, encode_role, go_on);
}

// --- renewal -----------------------------------------------------------------

static void renew(struct eng_vm *v)
{
	uint32_t version;

	if (!v->cell || v->role.refused || !creds_of(v, &version) ||
	    version == v->role.version)
		return;
	v->m->roles_owed = true; // until the next look finds it told
	if (v->r->state == VM_RUNNING && v->op == OP_NONE && !v->talk.done)
		vm_talk_start(v, RENEW_MS, encode_role, told);
}

static void look(void *ctx)
{
	struct eng_vms *m = ctx;
	struct reg_vm *const *vms;
	size_t n;

	eng_timer_set(m->roles_timer, LOOK_MS);
	if (!eng_roles_refresh(m->env.roles) && !m->roles_owed)
		return;
	m->roles_owed = false;
	vms = eng_reg_vms(m->env.reg, &n);
	for (size_t i = 0; i < n; i++) {
		if (vms[i]->live)
			renew(vms[i]->live);
	}
}

int vm_roles_start(struct eng_vms *m, struct err *e)
{
	if (!m->env.roles)
		return 0;
	m->roles_timer = eng_timer_create(m->env.loop, look, m, "roles");
	if (!m->roles_timer)
		return err_set(e, -ENOMEM, "no memory for a timer");
	eng_timer_set(m->roles_timer, LOOK_MS);
	return 0;
}

void vm_roles_stop(struct eng_vms *m)
{
	eng_timer_destroy(m->roles_timer);
	m->roles_timer = NULL;
}
