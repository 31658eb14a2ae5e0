// The second life of an image's guest: a copy is thawed, greeted, asked whether
// its port answers, and sent one request, while the order in which it needs
// pages is noted. It proves that the image can be thawed at all, and gives the
// working set that every later thaw has prefetched. The copy is thrown away: what
// the request does to it is nobody's.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "build_internal.h"

enum {
	RETRY_MS = 20,
	PROBE_MS = 50,
	HOOK_RETRY_MS = 250,
	CALL_MS = 60000,
	RECORD_S = 120,
	// How long a guest without an agent is watched: at least this, and as
	// long as it needs pages that it did not need before.
	ALONE_MS = 300,
	ALONE_MORE_MS = 100,
	ALONE_MOST = 100, // times
};

static void greet(struct eng_build *b);
static void ask(struct eng_build *b);

// --- publishing ----------------------------------------------------------

static void publish_job(void *ctx)
{
	struct eng_build *b = ctx;
	struct pgc_snap *sn = NULL;
	int rc = 0;

	if (b->workset_len)
		rc = pgc_snap_set_workset(b->env->store, &b->image_id, PGC_MEM,
					  b->workset, b->workset_len,
					  &b->job_err);
	if (!rc)
		rc = pgc_snap_open(b->env->store, &b->image_id, &sn,
				   &b->job_err);
	if (rc) {
		b->job_err.code = rc;
		return;
	}
	pgc_snap_get_stats(sn, &b->res.stats);
	pgc_snap_unref(sn);
}

static void publish_done(void *ctx)
{
	struct eng_build *b = ctx;

	b->job = false;
	if (b->stage == BUILD_CLEAR) { // cancelled meanwhile
		build_settle(b);
		return;
	}
	if (b->job_err.code) {
		build_fail(b, b->job_err.code, "writing the working set: %s",
			   b->job_err.msg);
		return;
	}
	b->res.snap = b->image_id;
	b->res.has_disk = b->have_disk;
	b->res.disk = b->disk_id;
	b->stage = BUILD_CLEAR;
	build_settle(b);
}

static void publish(struct eng_build *b)
{
	b->stage = BUILD_PUBLISH;
	b->job = true;
	eng_job_run(b->env->jobs, publish_job, publish_done, b);
}

// --- recording -----------------------------------------------------------

static void enough(struct eng_build *b)
{
	const uint32_t *pgnos;
	size_t n = eng_cell_recorded(b->cell, &pgnos);

	eng_timer_stop(b->step);
	eng_timer_stop(b->deadline);
	b->workset = n ? malloc(n * sizeof(*pgnos)) : NULL;
	if (b->workset) {
		memcpy(b->workset, pgnos, n * sizeof(*pgnos));
		b->workset_len = n;
	}
	if (!build_progress(b, "record", 100, "working set: %zu KiB",
			    n * (PGC_PAGE / 1024)))
		return;
	// gone() goes on; a copy that ends by itself now is as good.
	b->recorded = true;
	eng_cell_kill(b->cell);
}

// Nothing of the request can fail the build: without it less is recorded.
static void answered(void *ctx, size_t got)
{
	struct eng_build *b = ctx;

	b->ask = NULL;
	if (build_progress(b, "record", -1, "its answer has %zu bytes", got))
		enough(b);
}

static void connected(void *ctx, const struct eng_agent_answer *a)
{
	struct eng_build *b = ctx;

	b->call = NULL;
	if (a->rc || build_ask_start(&b->ask, b->env->loop, a->fd,
				     b->req.record_path, answered, b))
		enough(b);
}

static void request(struct eng_build *b)
{
	uint8_t buf[32];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	eng_agent_put_connect(&w, b->req.ready_port);
	build_agent(b, &w, CALL_MS, connected);
}

static void validated(struct eng_build *b, bool yes)
{
	if (yes)
		enough(b);
	else
		eng_timer_set(b->step, HOOK_RETRY_MS);
}

// Does a copy have to listen on the port? The image did when it was frozen.
static bool must_listen(const struct eng_build *b)
{
	return !b->req.ready_hook_s && !b->by_quiet;
}

static void asked(void *ctx, const struct eng_agent_answer *a)
{
	struct eng_build *b = ctx;
	struct eng_probe p;
	const char *why;
	int rc = eng_agent_probed(a, &p, &why);

	b->call = NULL;
	if (rc) {
		build_fail(b, rc, "a thawed copy does not answer: %s", why);
		return;
	}
	if (!p.app_running)
		build_fail(b, -ECHILD,
			   "in a thawed copy the application ended with code "
			   "%u at once",
			   p.app_exit);
	else if (b->req.validate_hook_s)
		build_hook_ask(b, BUILD_HOOK_VALIDATE, b->step_deadline_ns,
			       validated);
	else if (b->req.ready_port && !p.listening && must_listen(b))
		eng_timer_set(b->step, PROBE_MS);
	else if (b->req.ready_port && p.listening && b->req.record_path &&
		 b->req.record_path[0])
		request(b);
	else
		enough(b);
}

static void ask(struct eng_build *b)
{
	uint8_t buf[32];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	eng_agent_put_probe(&w, b->req.ready_port);
	build_agent(b, &w, CALL_MS, asked);
}

static void greeted(void *ctx, const struct eng_agent_answer *a)
{
	struct eng_build *b = ctx;

	b->call = NULL;
	if (a->rc == -EPIPE || a->rc == -ECONNRESET) {
		eng_timer_set(b->step, RETRY_MS);
		return;
	}
	if (a->rc) {
		build_fail(b, a->rc, "waking the agent of a thawed copy: %s",
			   a->why);
		return;
	}
	b->greeted = true;
	b->step_deadline_ns =
	    util_now_ns() + b->req.validate_hook_s * 1000000000ull;
	if (b->req.validate_hook_s &&
	    !build_progress(b, "record", -1,
			    "asking a copy's validate hook on port %u",
			    b->req.hook_port))
		return;
	ask(b);
}

static void greet(struct eng_build *b)
{
	uint8_t buf[1024], machine_id[16];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	util_random(machine_id, sizeof(machine_id));
	eng_agent_put_thaw(&w, machine_id, b->req.name);
	build_agent(b, &w, CALL_MS, greeted);
}

static void watch_alone(struct eng_build *b)
{
	const uint32_t *pgnos;
	size_t n = eng_cell_recorded(b->cell, &pgnos);

	if (n == b->watched || ++b->watches > ALONE_MOST) {
		enough(b);
		return;
	}
	b->watched = n;
	eng_timer_set(b->step, ALONE_MORE_MS);
}

void build_record_step(struct eng_build *b)
{
	if (b->call || b->ask || b->hook || b->recorded)
		return;
	if (b->req.kernel)
		watch_alone(b);
	else if (b->greeted)
		ask(b);
	else
		greet(b);
}

void build_record_late(struct eng_build *b)
{
	build_fail(b, -ETIMEDOUT,
		   "a thawed copy did not answer within %d s: the image would "
		   "be of no use",
		   RECORD_S);
}

static void on_started(void *ctx, const struct eng_cell_times *t)
{
	struct eng_build *b = ctx;

	(void)t;
	if (b->stage != BUILD_RECORD)
		return;
	if (b->req.kernel)
		eng_timer_set(b->step, ALONE_MS);
	else
		greet(b);
}

static void on_output(void *ctx, const void *p, size_t n)
{
	build_output(ctx, p, n);
}

static void ignore(void *ctx)
{
	(void)ctx;
}

static void on_gone(void *ctx, enum eng_end why, const char *detail)
{
	struct eng_build *b = ctx;

	b->cell = NULL;
	eng_agent_cancel(ptr_steal(b->call));
	build_ask_cancel(ptr_steal(b->ask));
	eng_hook_cancel(ptr_steal(b->hook));
	if (b->stage == BUILD_CLEAR)
		build_settle(b);
	else if (b->recorded || (b->req.kernel && why == ENG_END_POWEROFF))
		publish(b);
	else
		build_fail(b, -EIO, "a thawed copy %s%s%s", build_end_text(why),
			   detail && *detail ? ": " : "", detail ? detail : "");
}

void build_record_enter(struct eng_build *b)
{
	static const struct eng_cell_events ev = {
	    .started = on_started,
	    .ready = ignore,
	    .vsock_up = ignore,
	    .console = on_output,
	    .gone = on_gone,
	};
	struct eng_thaw_req req = {
	    .base = b->image_id, .record = true, .t0 = util_now_ns()};
	struct err e = ERR_INIT;
	int rc;

	b->stage = BUILD_RECORD;
	if (!build_progress(b, "record", -1, "thawing a copy"))
		return;
	eng_timer_set(b->deadline,
		      1000ull * (RECORD_S + b->req.validate_hook_s));
	rc = eng_cell_thaw(b->env->cells, &req, &ev, b, &b->cell, &e);
	if (rc)
		build_fail(b, rc, "thawing a copy: %s", e.msg);
}
