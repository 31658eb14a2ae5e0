// Conversations with the agent of one microVM, and its log.
//
// A thawed guest answers at once. A booting one is not listening yet: the
// stream ends at once or never, so a conversation is tried again until its
// deadline. Only an answer of the agent itself (OK or ERROR) ends it early.
#include "vm_internal.h"
#include "jtext.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define RETRY_MS 20
#define TRY_MS 20000 // one try; emulated machines are slow
#define LOG_RETRY_MS 500
#define LOG_YIELD_MS 300

static void attempt(void *ctx);

static void talk_over(struct eng_vm *v, int rc, const char *why)
{
	void (*done)(struct eng_vm *, int, const char *) = v->talk.done;

	v->talk.done = NULL;
	eng_timer_stop(v->talk.retry);
	done(v, rc, why);
}

static void try_again(struct eng_vm *v, int rc, const char *why)
{
	snprintf(v->talk.why, sizeof(v->talk.why), "%s", why ? why : "");
	if (util_now_ns() >= v->talk.deadline_ns)
		talk_over(v, rc, v->talk.why);
	else
		eng_timer_set(v->talk.retry, RETRY_MS);
}

static void answered(void *ctx, const struct eng_agent_answer *a)
{
	struct eng_vm *v = ctx;

	v->talk.call = NULL;
	if (!a->rc && a->type == AGENT_OK)
		talk_over(v, 0, NULL);
	else if (!a->rc)
		talk_over(v, -EPROTO, "the agent's answer makes no sense");
	else if (a->rc == -EPIPE || a->rc == -ETIMEDOUT)
		try_again(v, a->rc, a->why);
	else
		talk_over(v, a->rc, a->why);
}

static void attempt(void *ctx)
{
	struct eng_vm *v = ctx;
	uint8_t buf[64 * 1024];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	uint64_t now = util_now_ns();
	struct err e = ERR_INIT;
	uint64_t ms;
	int fd, rc;

	rc = eng_cell_connect(v->cell, AGENT_PORT, &fd, &e);
	if (rc) {
		try_again(v, rc, e.msg);
		return;
	}
	v->talk.encode(v, &w);
	if (w.bad) {
		close(fd);
		talk_over(v, -E2BIG, "the message to the agent is too long");
		return;
	}
	ms = now < v->talk.deadline_ns
		 ? (v->talk.deadline_ns - now) / 1000000 + 1
		 : 1;
	v->talk.call =
	    eng_agent_call(v->m->env.loop, fd, buf, w.len,
			   MIN(ms, (uint64_t)TRY_MS), false, answered, v, &e);
	explicit_bzero(buf, w.len); // a thaw's entropy, a role's credentials
	if (!v->talk.call)
		try_again(v, e.code ? e.code : -EIO, e.msg);
}

void vm_talk_start(struct eng_vm *v, uint64_t timeout_ms,
		   void (*encode)(struct eng_vm *v, struct wire_writer *w),
		   void (*done)(struct eng_vm *v, int rc, const char *why))
{
	vm_talk_stop(v);
	v->talk.encode = encode;
	v->talk.done = done;
	v->talk.deadline_ns = util_now_ns() + timeout_ms * 1000000;
	v->talk.why[0] = '\0';
	if (!v->talk.retry)
		v->talk.retry =
		    eng_timer_create(v->m->env.loop, attempt, v, "agent retry");
	attempt(v);
}

void vm_talk_stop(struct eng_vm *v)
{
	eng_agent_cancel(v->talk.call);
	v->talk.call = NULL;
	v->talk.done = NULL;
	if (v->talk.retry)
		eng_timer_stop(v->talk.retry);
}

// --- what the agent is told -------------------------------------------------

static const char *host_name(const struct reg_vm *r, char buf[32])
{
	if (r->name[0])
		return r->name;
	snprintf(buf, 32, "%.16s", r->id); // microvm- and 8 digits
	return buf;
}

// The same for the microVM's whole life, suspends included.
static void machine_id(const struct reg_vm *r, uint8_t out[16])
{
	size_t n = 0;
	char two[3] = "";

	for (const char *p = r->id + 8; n < 16 && p[0] && p[1]; p++) {
		if (*p == '-')
			continue;
		two[0] = *p++;
		two[1] = *p;
		if (util_unhex(&out[n++], 1, two))
			break;
	}
}

void vm_encode_thaw(struct eng_vm *v, struct wire_writer *w)
{
	uint8_t id[16] = {0};
	char buf[32];

	machine_id(v->r, id);
	eng_agent_put_thaw(w, id, host_name(v->r, buf));
}

// Ahead of a claim, whose THAW renews all of it once more.
void vm_encode_renew(struct eng_vm *v, struct wire_writer *w)
{
	uint8_t id[16] = {0};
	char buf[32];

	machine_id(v->r, id);
	eng_agent_put_renew(w, id, host_name(v->r, buf));
}

void vm_encode_freeze(struct eng_vm *v, struct wire_writer *w)
{
	(void)v;
	eng_agent_put_freeze(w, false);
}

void vm_encode_unfreeze(struct eng_vm *v, struct wire_writer *w)
{
	(void)v;
	eng_agent_put_unfreeze(w);
}

static const char *spec_text(json_t *spec, const char *key)
{
	const char *s = json_string_value(json_object_get(spec, key));

	return s ? s : "";
}

struct reg_version *vm_version_of(const struct eng_vm *v)
{
	struct reg_image *im = eng_reg_image(v->m->env.reg, v->r->image);

	return im ? eng_reg_version(im, v->r->version) : NULL;
}

// thaw's own images have them all; those of CreateMicrovmImage as asked there.
static bool all_caps(const struct reg_version *ver)
{
	const char *asked = json_string_value(json_array_get(
	    json_object_get(ver->aws, "additionalOsCapabilities"), 0));

	return !ver->aws || (asked && strcmp(asked, "ALL") == 0);
}

void vm_encode_start(struct eng_vm *v, struct wire_writer *w)
{
	struct reg_version *ver = vm_version_of(v);
	cleanup_free const char **argv = NULL, **env = NULL;
	char buf[32];

	if (!ver) { // an image cannot go while a microVM of it lives
		w->bad = true;
		return;
	}
	argv = jt_texts(json_object_get(ver->spec, "entrypoint"));
	env = jt_texts(json_object_get(ver->spec, "env"));
	eng_agent_put_start(w,
			    &(struct eng_app_spec){
				.argv = argv,
				.env = env,
				.user = spec_text(ver->spec, "user"),
				.cwd = spec_text(ver->spec, "workingDirectory"),
				.hostname = host_name(v->r, buf),
				.all_caps = all_caps(ver),
			    });
}

// --- the log -----------------------------------------------------------------

// It runs, or its hook does.
static bool has_log(const struct eng_vm *v)
{
	return v->cell && (v->r->state == VM_RUNNING || v->hook.done);
}

static bool disabled(const struct reg_vm *r)
{
	return json_object_get(json_object_get(r->extra, "logging"),
			       "disabled");
}

bool eng_vm_log_names(const struct reg_vm *r, char buf[ENG_LOG_GROUP],
		      const char **group, const char **stream)
{
	const json_t *set =
	    json_object_get(json_object_get(r->extra, "logging"), "cloudWatch");

	*group = json_string_value(json_object_get(set, "logGroup"));
	*stream = json_string_value(json_object_get(set, "logStream"));
	if (!*group) {
		snprintf(buf, ENG_LOG_GROUP, "%s%s", ENG_LOG_DEFAULT, r->image);
		*group = buf;
	}
	if (!*stream)
		*stream = r->id;
	return !disabled(r);
}

void vm_log_bytes(struct eng_vm *v, const void *p, size_t n)
{
	struct err e = ERR_INIT;
	bool owned;
	struct vmlog *lg;

	if (disabled(v->r))
		return;
	lg = eng_vm_log(v->m, v->r, &owned, &e);
	if (lg)
		vmlog_write(lg, p, n);
	else
		log_warn("%s: its log is lost: %s", v->r->id, e.msg);
}

static void log_came(void *ctx, unsigned stream, const void *p, size_t n)
{
	(void)stream;
	vm_log_bytes(ctx, p, n);
}

static void log_closed(void *ctx)
{
	struct eng_vm *v = ctx;

	v->agent_log = NULL;
	if (has_log(v))
		eng_timer_set(v->log_retry, LOG_RETRY_MS);
}

static void log_again(void *ctx)
{
	struct eng_vm *v = ctx;
	struct err e = ERR_INIT;
	int fd;

	if (!has_log(v) || v->agent_log)
		return;
	if (!eng_cell_connect(v->cell, AGENT_PORT, &fd, &e))
		v->agent_log = eng_agent_log_open(v->m->env.loop, fd, log_came,
						  log_closed, v, &e);
	if (!v->agent_log)
		eng_timer_set(v->log_retry, LOG_RETRY_MS);
}

void vm_log_attach(struct eng_vm *v)
{
	if (disabled(v->r))
		return;
	if (!v->log_retry)
		v->log_retry =
		    eng_timer_create(v->m->env.loop, log_again, v, "agent log");
	// Not on the way to RUNNING: the answer goes first, and so does what
	// somebody waits for from outside.
	eng_timer_set(v->log_retry, v->openings ? LOG_YIELD_MS : 1);
}

void vm_log_detach(struct eng_vm *v)
{
	if (v->log_retry)
		eng_timer_stop(v->log_retry);
	eng_agent_log_close(v->agent_log);
	v->agent_log = NULL;
}
