// Building an image: the pipeline's frame.
//
// Theory. A build is a chain of stages (build_internal.h), each of which waits
// for one thing: the disk program, a cell, the agent, a worker. Whatever ends
// it, it ends through build_fail() or the last stage, then waits in BUILD_CLEAR
// until nothing of it runs any more, removes what a failed build had published,
// and only then calls done(). So a failure leaves nothing: the disk stage
// cleans its own directory, cells die with their memory, snapshots are
// unpublished.
//
// A capture cannot be called back. A build that is cancelled during one kills
// the cell; if the snapshot was published all the same, it is removed at the
// end.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "build_internal.h"

enum {
	ARGS_MAX = 1024,
	MEM_MIN_MIB = 64,
	MEM_MAX_MIB = 32768,
	VCPUS_MAX = 16,
	READY_DEFAULT_S = 300,
};

// --- the request ---------------------------------------------------------

static void free_list(const char *const *list)
{
	if (!list)
		return;
	for (const char *const *p = list; *p; p++)
		free((void *)*p);
	free((void *)list);
}

static const char *const *copy_list(const char *const *list)
{
	size_t n = 0;
	char **out;

	while (list && list[n])
		n++;
	out = calloc(n + 1, sizeof(*out));
	for (size_t i = 0; out && i < n; i++) {
		out[i] = strdup(list[i]);
		if (!out[i]) {
			free_list((const char *const *)out);
			return NULL;
		}
	}
	return (const char *const *)out;
}

static const char *copy_text(const char *s)
{
	return s ? strdup(s) : NULL;
}

static void free_req(struct eng_build_req *r)
{
	const char *const texts[] = {r->name,	r->rootfs,     r->user,
				     r->cwd,	r->kernel,     r->cmdline,
				     r->config, r->record_path};

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		free((void *)texts[i]);
	free_list(r->argv);
	free_list(r->env);
}

static int copy_req(struct eng_build_req *to, const struct eng_build_req *from,
		    struct err *e)
{
	*to = *from;
	to->name = copy_text(from->name ? from->name : "");
	to->rootfs = copy_text(from->rootfs);
	to->user = copy_text(from->user);
	to->cwd = copy_text(from->cwd);
	to->kernel = copy_text(from->kernel);
	to->cmdline = copy_text(from->cmdline);
	to->config = copy_text(from->config);
	to->record_path = copy_text(from->record_path);
	to->argv = copy_list(from->argv);
	to->env = copy_list(from->env);
	if (!to->name || !to->argv || !to->env ||
	    !to->rootfs != !from->rootfs || !to->user != !from->user ||
	    !to->record_path != !from->record_path || !to->cwd != !from->cwd ||
	    !to->kernel != !from->kernel || !to->cmdline != !from->cmdline ||
	    !to->config != !from->config)
		return err_set(e, -ENOMEM, "out of memory");
	if (!to->ready_timeout_s)
		to->ready_timeout_s = READY_DEFAULT_S;
	return 0;
}

static int check_req(const struct eng_build_env *env,
		     const struct eng_build_req *r, struct err *e)
{
	size_t n = 0;

	if (!r->rootfs == !r->kernel)
		return err_set(e, -EINVAL,
			       "an image is built from a root file system or "
			       "from a kernel: give one of them");
	if ((r->rootfs && r->rootfs[0] != '/') ||
	    (r->kernel && r->kernel[0] != '/'))
		return err_set(e, -EINVAL,
			       "'%s' is not an absolute path, and this is "
			       "another process than yours",
			       r->rootfs ? r->rootfs : r->kernel);
	if (r->rootfs && (!r->argv || !r->argv[0] || !r->argv[0][0]))
		return err_set(e, -EINVAL,
			       "an image needs an entrypoint: the program to "
			       "start in it");
	while (r->argv && r->argv[n])
		if (++n > ARGS_MAX)
			return err_set(e, -EINVAL,
				       "the entrypoint has more than %d "
				       "arguments",
				       ARGS_MAX);
	if (r->mem_mib < MEM_MIN_MIB || r->mem_mib > MEM_MAX_MIB)
		return err_set(e, -EINVAL,
			       "memory must be %d to %d MiB, not %u",
			       MEM_MIN_MIB, MEM_MAX_MIB, r->mem_mib);
	if (!r->vcpus || r->vcpus > VCPUS_MAX)
		return err_set(e, -EINVAL, "vCPUs must be 1 to %d, not %u",
			       VCPUS_MAX, r->vcpus);
	if (r->disk_mib > (uint64_t)PGC_STREAM_MAX_PAGES / 256)
		return err_set(e, -EINVAL,
			       "a disk has at most %u MiB", // 256 pages a MiB
			       PGC_STREAM_MAX_PAGES / 256);
	if (r->rootfs && (!env->kernel_path || !env->initrd_path))
		return err_set(e, -ENOENT,
			       "no guest kernel is installed: run "
			       "scripts/guest-kernel, or start thawd with "
			       "--kernel and --initrd");
	return 0;
}

// --- the frame -----------------------------------------------------------

static void build_free(struct eng_build *b)
{
	eng_agent_cancel(b->call);
	eng_agent_log_close(b->log);
	build_ask_cancel(b->ask);
	eng_hook_cancel(b->hook);
	eng_timer_destroy(b->step);
	eng_timer_destroy(b->deadline);
	free_req(&b->req);
	free(b->workset);
	free(b);
}

bool build_progress(struct eng_build *b, const char *stage, int percent,
		    const char *fmt, ...)
{
	char text[300];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	b->ev.progress(b->ctx, stage, percent, text);
	return b->stage != BUILD_CLEAR;
}

void build_output(struct eng_build *b, const void *p, size_t n)
{
	build_tail_add(&b->tail, p, n);
	b->ev.log(b->ctx, p, n);
}

const char *build_end_text(enum eng_end why)
{
	static const char *const texts[] = {
	    [ENG_END_KILLED] = "was killed",
	    [ENG_END_POWEROFF] = "powered off",
	    [ENG_END_RESET] = "asked for a reset or triple-faulted",
	    [ENG_END_CRASHED] = "lost its process",
	    [ENG_END_MEMORY] = "needed a page that could not be read",
	    [ENG_END_FATAL] = "was given up by KVM or a device",
	    [ENG_END_START] = "did not start",
	};

	return (size_t)why < ARRAY_SIZE(texts) && texts[why] ? texts[why]
							     : "ended";
}

static void finish(void *ctx)
{
	struct eng_build *b = ctx;
	struct eng_build_events ev = b->ev;
	struct eng_build_result res = b->res;
	struct err err = b->err;
	void *up = b->ctx;
	bool failed = b->failed;

	build_free(b);
	ev.done(up, failed ? err.code : 0, failed ? err.msg : "",
		failed ? NULL : &res);
}

// Best effort: what cannot be unpublished now is without a name, and goes with
// the next start's sweep of unknown snapshots.
static void unpublish(struct eng_build *b)
{
	if (b->have_image) {
		eng_template_drop(b->env->cells, &b->image_id);
		pgc_snap_remove(b->env->store, &b->image_id, NULL);
	}
	if (b->have_disk) {
		eng_template_drop(b->env->cells, &b->disk_id);
		pgc_snap_remove(b->env->store, &b->disk_id, NULL);
	}
}

void build_settle(struct eng_build *b)
{
	if (b->stage != BUILD_CLEAR || b->disk || b->cell || b->job)
		return;
	if (b->failed)
		unpublish(b);
	b->res.total_ms = (util_now_ns() - b->t0) / 1000000;
	eng_loop_defer(b->env->loop, finish, b, "build done");
	b->job = true; // nothing settles twice
}

static void enter_clear(struct eng_build *b)
{
	b->stage = BUILD_CLEAR;
	eng_timer_stop(b->step);
	eng_timer_stop(b->deadline);
	eng_agent_cancel(ptr_steal(b->call));
	eng_agent_log_close(ptr_steal(b->log));
	build_ask_cancel(ptr_steal(b->ask));
	eng_hook_cancel(ptr_steal(b->hook));
	if (b->disk)
		build_disk_cancel(b->disk);
	if (b->cell)
		eng_cell_kill(b->cell);
	build_settle(b);
}

void build_fail(struct eng_build *b, int rc, const char *fmt, ...)
{
	char text[ERR_MSG_MAX];
	va_list ap;

	if (b->stage == BUILD_CLEAR)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	err_set(&b->err, rc < 0 ? rc : -EIO, "%s", text);
	b->failed = true;
	enter_clear(b);
}

void build_agent(struct eng_build *b, struct wire_writer *w,
		 uint64_t timeout_ms,
		 void (*cb)(void *ctx, const struct eng_agent_answer *a))
{
	struct err e = ERR_INIT;
	int fd, rc;

	if (w->bad) {
		build_fail(b, -E2BIG,
			   "the entrypoint and environment are too long");
		return;
	}
	rc = eng_cell_connect(b->cell, AGENT_PORT, &fd, &e);
	if (rc) {
		build_fail(b, rc, "reaching the agent: %s", e.msg);
		return;
	}
	b->call =
	    eng_agent_call(b->env->loop, fd, w->buf, w->len, timeout_ms,
			   w->len && w->buf[0] == AGENT_CONNECT, cb, b, &e);
	if (!b->call)
		build_fail(b, e.code, "reaching the agent: %s", e.msg);
}

// --- the ends of the chain -----------------------------------------------

static void disk_progress(void *ctx, const char *stage, int percent,
			  const char *text)
{
	struct eng_build *b = ctx;

	b->ev.progress(b->ctx, stage, percent, text);
}

static void disk_done(void *ctx, int rc, const char *why)
{
	struct eng_build *b = ctx;

	b->disk = NULL;
	b->have_disk = rc == 0;
	if (b->stage == BUILD_CLEAR)
		build_settle(b);
	else if (rc)
		build_fail(b, rc, "%s", why);
	else
		build_boot_enter(b);
}

static void begin(void *ctx)
{
	static const struct build_disk_events ev = {disk_progress, disk_done};
	struct eng_build *b = ctx;
	struct build_disk_req req = {b->req.rootfs, b->req.peer_uid,
				     b->req.peer_gid, b->req.disk_mib,
				     b->disk_id};
	struct err e = ERR_INIT;
	int rc;

	b->job = false;
	if (b->stage == BUILD_CLEAR) { // cancelled before it began
		build_settle(b);
		return;
	}
	if (b->req.kernel) {
		build_boot_enter(b);
		return;
	}
	if (!build_progress(b, "disk", 0, "reading %s", b->req.rootfs))
		return;
	rc = build_disk_start(&b->disk, b->env, &req, &ev, b, &e);
	if (rc)
		build_fail(b, rc, "%s", e.msg);
}

static void on_step(void *ctx);
static void on_deadline(void *ctx);

int eng_build_start(struct eng_build **out, const struct eng_build_env *env,
		    const struct eng_build_req *req,
		    const struct eng_build_events *ev, void *ctx, struct err *e)
{
	struct eng_build *b;
	int rc = check_req(env, req, e);

	if (rc)
		return rc;
	b = calloc(1, sizeof(*b));
	if (!b)
		return err_set(e, -ENOMEM, "out of memory");
	b->env = env;
	b->ev = *ev;
	b->ctx = ctx;
	b->t0 = util_now_ns();
	b->stage = BUILD_DISK;
	rc = copy_req(&b->req, req, e);
	b->step = eng_timer_create(env->loop, on_step, b, "build step");
	b->deadline =
	    eng_timer_create(env->loop, on_deadline, b, "build deadline");
	if (!rc && (!b->step || !b->deadline))
		rc = err_set(e, -ENOMEM, "out of memory");
	if (rc) {
		build_free(b);
		return rc;
	}
	util_random(b->disk_id.b, sizeof(b->disk_id.b));
	util_random(b->image_id.b, sizeof(b->image_id.b));
	b->job = true; // the deferred call
	eng_loop_defer(env->loop, begin, b, "build begin");
	*out = b;
	return 0;
}

void eng_build_cancel(struct eng_build *b)
{
	build_fail(b, -ECANCELED, "cancelled");
}

static void on_step(void *ctx)
{
	struct eng_build *b = ctx;

	if (b->stage == BUILD_RECORD)
		build_record_step(b);
	else
		build_guest_step(b);
}

static void on_deadline(void *ctx)
{
	struct eng_build *b = ctx;

	if (b->stage == BUILD_RECORD)
		build_record_late(b);
	else
		build_guest_late(b);
}
