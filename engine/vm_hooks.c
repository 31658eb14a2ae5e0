// Lifecycle hooks of running microVMs: run, resume, suspend, terminate (those of
// builds are image_aws.c's). Which an image has, on which port, and how long each
// may take is in its version's `aws`, as CreateMicrovmImage was given it.
//
//   hook        called                            an answer other than 200
//   run         PENDING, after the handshake      TERMINATING, with the reason
//   resume      SUSPENDED, after the handshake    SUSPENDED, as before
//   suspend     SUSPENDING, before the freeze     RUNNING, with the reason
//   terminate   TERMINATING, before the kill      the same: it is killed
//
// A microVM has one call at a time: a stream through the agent to the port, then
// the call itself (hook.c). The guest gets CONNECT_MS for the first, of which it
// knows nothing, and the hook's timeout for the second; before an end both
// together may take no longer than the timeout. A guest that was booted (a cold
// run) has an application that has only just been started: its port is tried
// until somebody listens.
//
// `done` never comes from within vm_hook_start().
#include "vm_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define CONNECT_MS 10000
#define LISTEN_MS 60000 // for an application that was just started
#define RETRY_MS 50
#define STOPPING_MS 8000 // thawd itself has 10 s to stop

static const char *const names[] = {
    [VM_HOOK_RUN] = "run",
    [VM_HOOK_RESUME] = "resume",
    [VM_HOOK_SUSPEND] = "suspend",
    [VM_HOOK_TERMINATE] = "terminate",
};
static const char *const titles[] = {
    [VM_HOOK_RUN] = "Run",
    [VM_HOOK_RESUME] = "Resume",
    [VM_HOOK_SUSPEND] = "Suspend",
    [VM_HOOK_TERMINATE] = "Terminate",
};

// --- configuration -----------------------------------------------------------

static const json_t *hooks_of(const struct reg_version *ver)
{
	return ver ? json_object_get(ver->aws, "hooks") : NULL;
}

static bool enabled(const json_t *hooks, enum vm_hook which)
{
	const char *s = json_string_value(json_object_get(
	    json_object_get(hooks, "microvmHooks"), names[which]));

	return s && strcmp(s, "ENABLED") == 0;
}

bool vm_has_hooks(const struct reg_version *ver)
{
	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		if (enabled(hooks_of(ver), (enum vm_hook)i))
			return true;
	}
	return false;
}

bool vm_has_hook(const struct reg_version *ver, enum vm_hook which)
{
	return enabled(hooks_of(ver), which);
}

static unsigned port_of(const json_t *hooks)
{
	json_int_t n = json_integer_value(json_object_get(hooks, "port"));

	return n >= 1 && n <= 65535 ? (unsigned)n : HOOK_PORT;
}

static unsigned timeout_of(const json_t *hooks, enum vm_hook which)
{
	char key[40];
	json_int_t n;

	snprintf(key, sizeof(key), "%sTimeoutInSeconds", names[which]);
	n = json_integer_value(
	    json_object_get(json_object_get(hooks, "microvmHooks"), key));
	return n >= 1 && n <= 60 ? (unsigned)n : 1;
}

// --- one call ----------------------------------------------------------------

static void over(struct eng_vm *v, const char *why)
{
	void (*done)(struct eng_vm * v, const char *why) = v->hook.done;

	v->hook.done = NULL;
	eng_timer_stop(v->hook.timer);
	if (why)
		log_info("%s: %s", v->r->id, why);
	done(v, why);
}

static void failed(struct eng_vm *v, const char *what)
{
	char text[256];

	snprintf(text, sizeof(text),
		 "%s lifecycle hook could not be called on port %u: %.100s. "
		 "Please check your hook endpoint and application logs for "
		 "more details.",
		 titles[v->hook.which], v->hook.port, what);
	over(v, text);
}

static void timed_out(struct eng_vm *v)
{
	unsigned s = v->hook.timeout_s;
	char text[120];

	snprintf(text, sizeof(text),
		 "%s hook invocation timed out after PT%u%s",
		 titles[v->hook.which], s == 60 ? 1 : s, s == 60 ? "M" : "S");
	over(v, text);
}

static void answered(void *ctx, int status, const char *why)
{
	struct eng_vm *v = ctx;
	char text[200];

	v->hook.ask = NULL;
	if (status == 200) {
		over(v, NULL);
	} else if (status == -ETIMEDOUT) {
		timed_out(v);
	} else if (status < 0) {
		failed(v, why);
	} else {
		snprintf(text, sizeof(text),
			 "%s lifecycle hook returned HTTP status %d. Please "
			 "check your hook endpoint and application logs for "
			 "more details.",
			 titles[v->hook.which], status);
		over(v, text);
	}
}

static char *body_of(const struct eng_vm *v)
{
	json_t *j = json_pack("{s:s}", "microvmId", v->r->id);
	json_t *payload;
	char *text;

	if (v->hook.which == VM_HOOK_RUN) {
		payload = v->payload_len
			      ? json_stringn(v->payload, v->payload_len)
			      : json_string("");
		json_object_set_new(j, "runHookPayload", payload);
	}
	text = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	if (!text)
		abort();
	return text;
}

static uint64_t left_ms(uint64_t by_ns)
{
	uint64_t now = util_now_ns();

	return now < by_ns ? (by_ns - now) / 1000000 + 1 : 1;
}

static void call_it(struct eng_vm *v, int fd)
{
	cleanup_free char *body = body_of(v);
	struct hook_ask ask = {
	    .name = names[v->hook.which],
	    .port = v->hook.port,
	    .body = body,
	    .timeout_ms = 1000ull * v->hook.timeout_s,
	};
	struct err e = ERR_INIT;

	if (v->hook.tight)
		ask.timeout_ms = left_ms(v->hook.by_ns);
	if (eng_hook_call(&v->hook.ask, v->m->env.loop, fd, &ask, answered, v,
			  &e))
		failed(v, e.msg);
}

static void connected(void *ctx, const struct eng_agent_answer *a)
{
	struct eng_vm *v = ctx;

	v->hook.call = NULL;
	if (!a->rc && a->type == AGENT_OK && a->fd >= 0) {
		call_it(v, a->fd);
		return;
	}
	if (a->fd >= 0)
		close(a->fd);
	if (v->hook.starting && a->rc && util_now_ns() < v->hook.by_ns)
		eng_timer_set(v->hook.timer, RETRY_MS);
	else if (a->rc == -ETIMEDOUT && v->hook.tight)
		timed_out(v);
	else
		failed(v, a->why && a->why[0] ? a->why : "nobody listens");
}

static void try_connect(void *ctx)
{
	struct eng_vm *v = ctx;
	struct err e = ERR_INIT;
	struct wire_writer w;
	uint8_t buf[64];
	int fd;

	if (!v->hook.done)
		return;
	if (eng_cell_connect(v->cell, AGENT_PORT, &fd, &e)) {
		failed(v, e.msg);
		return;
	}
	w = wire_writer_of(buf, sizeof(buf));
	eng_agent_put_connect(&w, (uint16_t)v->hook.port);
	v->hook.call =
	    eng_agent_call(v->m->env.loop, fd, buf, w.len,
			   left_ms(v->hook.by_ns), true, connected, v, &e);
	if (!v->hook.call)
		failed(v, e.msg);
}

bool vm_hook_start(struct eng_vm *v, enum vm_hook which,
		   void (*done)(struct eng_vm *v, const char *why))
{
	const json_t *hooks = hooks_of(vm_version_of(v));
	uint64_t ms;

	if (!v->r->agent || !enabled(hooks, which))
		return false;
	vm_hook_stop(v);
	v->hook.which = which;
	v->hook.port = port_of(hooks);
	v->hook.timeout_s = timeout_of(hooks, which);
	v->hook.tight = which == VM_HOOK_TERMINATE;
	v->hook.starting = which == VM_HOOK_RUN && v->r->cold;
	v->hook.done = done;
	ms = v->hook.starting ? LISTEN_MS : CONNECT_MS;
	if (v->hook.tight)
		ms = 1000ull * v->hook.timeout_s;
	if (v->m->stopping)
		ms = MIN(ms, (uint64_t)STOPPING_MS);
	v->hook.by_ns = util_now_ns() + ms * 1000000;
	if (!v->hook.timer)
		v->hook.timer = eng_timer_create(v->m->env.loop, try_connect, v,
						 "microvm hook");
	eng_timer_set(v->hook.timer, 0);
	return true;
}

void vm_hook_stop(struct eng_vm *v)
{
	eng_agent_cancel(ptr_steal(v->hook.call));
	eng_hook_cancel(ptr_steal(v->hook.ask));
	v->hook.done = NULL;
	if (v->hook.timer)
		eng_timer_stop(v->hook.timer);
}
