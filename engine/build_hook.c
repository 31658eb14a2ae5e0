// The lifecycle hooks of a build: `ready`, which the application is asked before
// it is frozen, and `validate`, which a thawed copy is asked while its working
// set is recorded. 200 is yes; 503, and nobody listening yet, means to ask again
// until the hook's time is over; anything else fails the build. (Those of
// running microVMs are vm_hooks.c's.)
#include <errno.h>
#include <stdio.h>

#include "build_internal.h"

enum { CONNECT_MS = 60000 };

static const struct {
	const char *name, *title;
} hooks[] = {
    [BUILD_HOOK_READY] = {"ready", "Ready"},
    [BUILD_HOOK_VALIDATE] = {"validate", "Validate"},
};

static unsigned seconds_of(const struct eng_build *b, enum build_hook which)
{
	return which == BUILD_HOOK_READY ? b->req.ready_hook_s
					 : b->req.validate_hook_s;
}

// "PT5M", "PT1H30S", as ISO 8601 has it.
static void iso_duration(unsigned seconds, char *out, size_t cap)
{
	const unsigned parts[] = {seconds / 3600, seconds / 60 % 60,
				  seconds % 60};
	size_t n = (size_t)snprintf(out, cap, "PT");

	for (size_t i = 0; i < ARRAY_SIZE(parts) && n < cap; i++)
		if (parts[i] || (i == 2 && !seconds))
			n += (size_t)snprintf(out + n, cap - n, "%u%c",
					      parts[i], "HMS"[i]);
}

void build_hook_late(struct eng_build *b, enum build_hook which)
{
	char text[40];

	iso_duration(seconds_of(b, which), text, sizeof(text));
	build_fail(b, -ETIMEDOUT, "%s hook invocation timed out after %s",
		   hooks[which].title, text);
}

static void answered(void *ctx, int status, const char *why)
{
	struct eng_build *b = ctx;
	enum build_hook which = b->asked_hook;

	b->hook = NULL;
	if (status == -ETIMEDOUT)
		build_hook_late(b, which);
	else if (status == 200)
		b->hook_done(b, true);
	else if (status == 503 || status == -EPIPE)
		b->hook_done(b, false);
	else if (status < 0)
		build_fail(b, status, "%s hook on port %u: %s",
			   hooks[which].title, b->req.hook_port, why);
	else
		build_fail(b, -ECHILD,
			   "%s hook returned HTTP status %d. Please check your "
			   "hook endpoint and application logs for more "
			   "details.",
			   hooks[which].title, status);
}

static void connected(void *ctx, const struct eng_agent_answer *a)
{
	struct eng_build *b = ctx;
	struct hook_ask ask = {.name = hooks[b->asked_hook].name,
			       .port = b->req.hook_port,
			       .body = "{}"};
	uint64_t now = util_now_ns();
	struct err e = ERR_INIT;

	b->call = NULL;
	if (a->rc) { // nobody listens yet
		b->hook_done(b, false);
		return;
	}
	ask.timeout_ms =
	    now < b->hook_by_ns ? (b->hook_by_ns - now) / 1000000 + 1 : 1;
	if (eng_hook_call(&b->hook, b->env->loop, a->fd, &ask, answered, b, &e))
		build_fail(b, e.code, "%s", e.msg);
}

void build_hook_ask(struct eng_build *b, enum build_hook which, uint64_t by_ns,
		    void (*done)(struct eng_build *b, bool yes))
{
	uint8_t buf[32];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	if (util_now_ns() >= by_ns) {
		build_hook_late(b, which);
		return;
	}
	b->asked_hook = which;
	b->hook_by_ns = by_ns;
	b->hook_done = done;
	eng_agent_put_connect(&w, b->req.hook_port);
	build_agent(b, &w, CONNECT_MS, connected);
}
