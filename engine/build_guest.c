// The first life of an image's guest: boot, start, readiness, freeze, capture.
//
// With an agent: the kernel's vsock driver appears (vsock_up), the agent takes
// START, PROBE is repeated until the application is ready, FREEZE stops and
// syncs it, and the cell is captured. No stream is open then. Without an agent
// the READY doorbell stands for all of that.
//
// Ready means: the ready hook says 200; without one, the port accepts; without a
// port, the application has used no CPU to speak of for 2 s, or 10 s have passed
// since it was started. Where the port is only likely (port_optional), quiet for
// 10 s will do as well, and in the end the timeout.
//
// Many a server listens first and goes on starting: it says so, loads what it
// serves with, starts its workers. What it would do after the freeze every copy did
// again, in memory of its own (docs/PERFORMANCE.md, "Copies"). So one that is ready
// is let come to rest first, for 10 s at most: some never do.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "build_internal.h"

enum {
	RETRY_MS = 50,
	PROBE_MS = 100,
	QUIET_PROBE_MS = 250,
	LAST_WORDS_MS = 300,   // output still on its way when it has ended
	BOOT_S = 300,	       // an emulated machine may be 30 times slower
	AGENT_CALL_MS = 60000, // one answer, likewise
	FREEZE_MS = 300000,    // syncs the disk
	QUIET_MS = 2000,
	QUIET_MAX_MS = 10000,
	QUIET_LONG_MS = 10000, // where there is a port that may yet come
	HOOK_RETRY_MS = 250,
	QUIET_CPU_US_PER_S = 20000, // 2 % of a CPU is rest
	REST_MS = 300, // of it; what was written meanwhile is heard, too
	REST_MAX_MS = 10000,
	START_MAX = 256 * 1024,
};

// The console stays for what breaks before the agent is up (without errors like
// "PCI: no config space", which are right and of no use). After a panic or a
// reboot the VM ends by a triple fault, which needs no device. Trusting the
// CPU's random numbers and skipping self-tests only saves boot time: the agent
// reseeds after every thaw. Nothing probes for buses and timers that a cell
// lacks.
const char eng_guest_cmdline[] =
    "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t random.trust_cpu=on "
    "8250.nr_uarts=1 cryptomgr.notests no_timer_check pci=off "
    "i8042.noaux i8042.nokbd";

static void probe(struct eng_build *b);
static void come_to_rest(struct eng_build *b);
static void start_app(struct eng_build *b);

static uint64_t ms_since(uint64_t t)
{
	return (util_now_ns() - t) / 1000000;
}

static void fail_with_output(struct eng_build *b, int rc, const char *what)
{
	char tail[300];

	build_tail_text(&b->tail, tail, sizeof(tail));
	if (tail[0])
		build_fail(b, rc, "%s; its last output: %s", what, tail);
	else
		build_fail(b, rc, "%s; it wrote nothing", what);
}

// --- capture -------------------------------------------------------------

static void captured(void *ctx, int rc, const char *why,
		     const struct eng_capture_stats *st)
{
	struct eng_build *b = ctx;

	b->have_image = rc == 0;
	if (st)
		b->res.disk_dirty_bytes = st->dirty_disk_pages * PGC_PAGE;
	if (rc) // also after a cancel: build_fail() knows
		build_fail(b, rc, "taking the snapshot: %s", why);
	else
		b->res.capture_ms = ms_since(b->t_capture);
}

static void capture(struct eng_build *b)
{
	struct eng_capture_req req = {
	    .id = b->image_id, .image = true, .config = b->req.config};
	struct err e = ERR_INIT;
	int rc;

	b->stage = BUILD_CAPTURE;
	b->t_capture = util_now_ns();
	eng_timer_stop(b->deadline);
	if (!build_progress(b, "capture", -1, "taking the snapshot"))
		return;
	rc = eng_cell_capture(b->cell, &req, captured, b, &e);
	if (rc)
		build_fail(b, rc, "taking the snapshot: %s", e.msg);
}

static void frozen(void *ctx, const struct eng_agent_answer *a)
{
	struct eng_build *b = ctx;

	b->call = NULL;
	if (a->rc)
		build_fail(b, a->rc, "freezing the application: %s", a->why);
	else
		capture(b);
}

static void freeze(struct eng_build *b)
{
	uint8_t buf[64];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	b->stage = BUILD_FREEZE;
	if (!build_progress(b, "freeze", -1, "freezing the application"))
		return;
	// A snapshot has no open streams in it.
	eng_agent_log_close(ptr_steal(b->log));
	eng_agent_put_freeze(&w, AGENT_FREEZE_SYNC | AGENT_FREEZE_COMPACT);
	build_agent(b, &w, FREEZE_MS, frozen);
}

static void ready(struct eng_build *b, const char *how)
{
	b->res.boot_ms = ms_since(b->t_boot);
	eng_timer_stop(b->deadline);
	b->is_ready = true;
	if (!build_progress(b, "ready", 100, "%s: ready after %llu ms", how,
			    (unsigned long long)b->res.boot_ms))
		return;
	if (b->req.kernel)
		capture(b);
	else
		come_to_rest(b);
}

// --- readiness -----------------------------------------------------------

static void app_ended(struct eng_build *b, uint32_t code)
{
	char what[120];

	snprintf(what, sizeof(what),
		 "the application ended with code %u %s it was ready", code,
		 b->is_ready ? "once" : "before");
	fail_with_output(b, -ECHILD, what);
}

// For how long it has used no CPU to speak of.
static uint64_t quiet_ms(struct eng_build *b, const struct eng_probe *p)
{
	uint64_t now = util_now_ns(), ms, used;

	ms = (now - b->quiet_since_ns) / 1000000;
	used = p->app_cpu_us - b->quiet_cpu_us;
	if (p->app_cpu_us < b->quiet_cpu_us ||
	    used > ms * QUIET_CPU_US_PER_S / 1000 + 1000) {
		b->quiet_since_ns = now;
		b->quiet_cpu_us = p->app_cpu_us;
		return 0;
	}
	return ms;
}

static bool is_quiet(const struct eng_build *b, uint64_t quiet)
{
	if (b->req.ready_port)
		return quiet >= QUIET_LONG_MS;
	return ms_since(b->t_app) >= QUIET_MAX_MS || quiet >= QUIET_MS;
}

static void come_to_rest(struct eng_build *b)
{
	b->t_ready = util_now_ns();
	eng_timer_set(b->step, REST_MS);
}

static void rest(struct eng_build *b, uint64_t quiet)
{
	if (quiet >= REST_MS || ms_since(b->t_ready) >= REST_MAX_MS)
		freeze(b);
	else
		eng_timer_set(b->step, PROBE_MS);
}

static void hook_said(struct eng_build *b, bool yes)
{
	if (yes)
		ready(b, "the ready hook said so");
	else
		eng_timer_set(b->step, HOOK_RETRY_MS);
}

// The application runs: is it ready?
static void judge(struct eng_build *b, const struct eng_probe *p,
		  uint64_t quiet)
{
	uint64_t by = b->t_app + b->req.ready_hook_s * 1000000000ull;
	char text[80];

	if (b->req.ready_hook_s) {
		build_hook_ask(b, BUILD_HOOK_READY, by, hook_said);
		return;
	}
	snprintf(text, sizeof(text), "port %u accepts", b->req.ready_port);
	if (b->req.ready_port && p->listening) {
		ready(b, text);
	} else if ((!b->req.ready_port || b->req.port_optional) &&
		   is_quiet(b, quiet)) {
		b->by_quiet = true;
		ready(b, "it is quiet");
	} else {
		eng_timer_set(b->step,
			      b->req.ready_port ? PROBE_MS : QUIET_PROBE_MS);
	}
}

static void probed(void *ctx, const struct eng_agent_answer *a)
{
	struct eng_build *b = ctx;
	struct eng_probe p;
	uint64_t quiet;
	const char *why;
	int rc = eng_agent_probed(a, &p, &why);

	b->call = NULL;
	if (rc) {
		build_fail(b, rc, "asking the agent about the application: %s",
			   why);
		return;
	}
	if (!p.app_running) {
		// Its last output comes by another stream: give it a moment.
		if (b->step_deadline_ns) {
			app_ended(b, p.app_exit);
			return;
		}
		b->step_deadline_ns = util_now_ns();
		eng_timer_set(b->step, LAST_WORDS_MS);
		return;
	}
	quiet = quiet_ms(b, &p);
	if (b->is_ready)
		rest(b, quiet);
	else
		judge(b, &p, quiet);
}

static void probe(struct eng_build *b)
{
	uint8_t buf[32];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	eng_agent_put_probe(&w, b->req.ready_port);
	build_agent(b, &w, AGENT_CALL_MS, probed);
}

// --- start ---------------------------------------------------------------

static void on_log(void *ctx, unsigned stream, const void *p, size_t n)
{
	if (stream != 3) // the agent's own lines are on the console already
		build_output(ctx, p, n);
}

static void on_log_closed(void *ctx)
{
	struct eng_build *b = ctx;

	b->log = NULL; // its output is lost, not the build
}

static void follow_log(struct eng_build *b)
{
	struct err e = ERR_INIT;
	int fd;

	if (eng_cell_connect(b->cell, AGENT_PORT, &fd, &e) == 0)
		b->log = eng_agent_log_open(b->env->loop, fd, on_log,
					    on_log_closed, b, &e);
}

static void started(void *ctx, const struct eng_agent_answer *a)
{
	char text[80] = "waiting until it is quiet";
	struct eng_build *b = ctx;

	b->call = NULL;
	if (a->rc == -EPIPE || a->rc == -ECONNRESET ||
	    a->rc == -ECONNREFUSED) { // the agent does not listen yet
		eng_timer_set(b->step, RETRY_MS);
		return;
	}
	if (a->rc) {
		build_fail(b, a->rc, "starting '%s' in the guest: %s",
			   b->req.argv[0], a->why);
		return;
	}
	b->stage = BUILD_READY;
	b->t_app = b->quiet_since_ns = util_now_ns();
	b->step_deadline_ns = 0;
	eng_timer_set(b->deadline,
		      1000ull * (b->req.ready_hook_s ? b->req.ready_hook_s
						     : b->req.ready_timeout_s));
	if (b->req.ready_hook_s)
		snprintf(text, sizeof(text), "asking the ready hook on port %u",
			 b->req.hook_port);
	else if (b->req.ready_port)
		snprintf(text, sizeof(text), "waiting for port %u%s",
			 b->req.ready_port,
			 b->req.port_optional ? ", or until it is quiet" : "");
	if (!build_progress(b, "ready", -1, "%s", text))
		return;
	follow_log(b);
	probe(b);
}

static void start_app(struct eng_build *b)
{
	cleanup_free uint8_t *buf = malloc(START_MAX);
	struct wire_writer w = wire_writer_of(buf, START_MAX);
	struct eng_app_spec app = {.argv = b->req.argv,
				   .env = b->req.env,
				   .user = b->req.user,
				   .cwd = b->req.cwd,
				   .hostname = b->req.name,
				   .all_caps = b->req.all_caps};

	if (!buf) {
		build_fail(b, -ENOMEM, "out of memory");
		return;
	}
	eng_agent_put_start(&w, &app);
	build_agent(b, &w, AGENT_CALL_MS, started);
}

void build_guest_step(struct eng_build *b)
{
	if (b->call || b->hook)
		return;
	if (b->stage == BUILD_BOOT)
		start_app(b);
	else if (b->stage == BUILD_READY)
		probe(b);
}

// A guest without an agent is ready when it rings: its timeout is the
// request's. With one, the timeout counts from the application's start.
static unsigned boot_seconds(const struct eng_build *b)
{
	return b->req.kernel ? b->req.ready_timeout_s
			     : MAX((unsigned)BOOT_S, b->req.ready_timeout_s);
}

void build_guest_late(struct eng_build *b)
{
	char what[160];

	if (b->stage == BUILD_READY && b->req.ready_hook_s) {
		build_hook_late(b, BUILD_HOOK_READY);
		return;
	}
	if (b->stage == BUILD_READY && b->req.port_optional) {
		eng_agent_cancel(ptr_steal(b->call));
		b->by_quiet = true;
		ready(b, "neither listening nor quiet, it is taken as it is");
		return;
	}
	if (b->stage == BUILD_BOOT)
		snprintf(what, sizeof(what),
			 "the guest's %s did not come up within %u s",
			 b->req.kernel ? "kernel" : "agent", boot_seconds(b));
	else
		snprintf(what, sizeof(what),
			 "nothing listened on port %u within %u s (raise it "
			 "with --ready-timeout)",
			 b->req.ready_port, b->req.ready_timeout_s);
	fail_with_output(b, -ETIMEDOUT, what);
}

// --- boot ----------------------------------------------------------------

static void on_vsock_up(void *ctx)
{
	struct eng_build *b = ctx;

	if (b->stage == BUILD_BOOT && !b->req.kernel && !b->call)
		start_app(b);
}

static void on_doorbell(void *ctx)
{
	struct eng_build *b = ctx;

	if (b->stage == BUILD_BOOT && b->req.kernel)
		ready(b, "the guest said so");
}

static void on_console(void *ctx, const void *p, size_t n)
{
	build_output(ctx, p, n);
}

static void on_started(void *ctx, const struct eng_cell_times *t)
{
	(void)ctx;
	(void)t;
}

static void on_gone(void *ctx, enum eng_end why, const char *detail)
{
	struct eng_build *b = ctx;
	char what[200];

	b->cell = NULL;
	eng_agent_cancel(ptr_steal(b->call));
	eng_agent_log_close(ptr_steal(b->log));
	eng_hook_cancel(ptr_steal(b->hook));
	if (b->stage == BUILD_CLEAR) {
		build_settle(b);
	} else if (b->stage == BUILD_CAPTURE && b->have_image) {
		build_record_enter(b);
	} else {
		snprintf(what, sizeof(what), "the guest %s%s%s",
			 build_end_text(why), detail && *detail ? ": " : "",
			 detail ? detail : "");
		fail_with_output(b, -ECHILD, what);
	}
}

void build_boot_enter(struct eng_build *b)
{
	static const struct eng_cell_events ev = {
	    .started = on_started,
	    .ready = on_doorbell,
	    .vsock_up = on_vsock_up,
	    .console = on_console,
	    .gone = on_gone,
	};
	const char *cmdline = b->req.cmdline;
	struct eng_boot_req req = {
	    .mem_mib = b->req.mem_mib,
	    .vcpus = b->req.vcpus,
	    .kernel_path = b->req.kernel ? b->req.kernel : b->env->kernel_path,
	    .initrd_path = b->req.kernel ? NULL : b->env->initrd_path,
	    .has_disk = b->have_disk,
	    .disk = b->disk_id,
	    .t0 = util_now_ns(),
	};
	struct err e = ERR_INIT;
	int rc;

	if (!cmdline)
		cmdline = b->req.kernel ? "" : eng_guest_cmdline;
	req.cmdline = cmdline;
	b->stage = BUILD_BOOT;
	b->t_boot = req.t0;
	if (!build_progress(b, "boot", -1, "booting"))
		return;
	eng_timer_set(b->deadline, 1000 * (uint64_t)boot_seconds(b));
	rc = eng_cell_boot(b->env->cells, &req, &ev, b, &b->cell, &e);
	if (rc)
		build_fail(b, rc, "starting a VM: %s", e.msg);
}
