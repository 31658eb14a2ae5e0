// Freeze, thaw, probe, power off: the conversations of one answer.
//
// A freeze has three moments. `freezing` is set when the host asks; from then
// on no program is started and no other stream lives. The cgroup reports that
// it is frozen, in its own time. Then, if asked for, the disk is synced and the
// memory compacted, and the OK is the last byte before the capture. A freeze that
// takes too long, or whose stream ends before the OK, is undone: nobody else
// would.
//
// A thaw does everything that must be new before the first instruction of the
// application, then unfreezes. If any of it fails the application stays frozen
// and the host is told: a clone with its brother's random numbers must not run.
//
// Powering off goes TERM (to the application's first process), KILL (to all of
// its cgroup), sync, OK, off; each step ends early when its aim is reached.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "ag.h"
#include "ag_probe.h"
#include "util.h"
#include "wire.h"

enum { OFF_FLUSH_MS = 500, OFF_KILL_MS = 2000, OFF_MAX_MS = 600000 };

static int unfreeze(struct agent *a)
{
	int rc = a->cg.usable ? ag_cgroup_write(a, "cgroup.freeze", "0") : 0;

	if (rc < 0)
		return rc;
	a->freezing = a->frozen = false;
	ag_imds_resume(a);
	return 0;
}

// --- freeze ------------------------------------------------------------------

static void freeze_done(struct agent *a)
{
	struct conn *c = ptr_steal(a->freezer);

	ag_imds_wipe(a);
	// The whole system's, and the loop waits: nothing else is to be served
	// before the answer.
	if (a->freeze_flags & AGENT_FREEZE_SYNC)
		sync();
	if (a->freeze_flags & AGENT_FREEZE_COMPACT)
		ag_compact(a);
	ag_machine_id_warm();
	a->frozen = true;
	ag_conn_ok(c);
}

static void freeze_undo(struct agent *a, const char *why)
{
	int rc = unfreeze(a);

	a->freezer = NULL;
	if (rc < 0)
		ag_say(a, "unfreezing (%s): %s", why, strerror(-rc));
}

void ag_open_freeze(struct conn *c)
{
	struct agent *a = c->a;
	struct wire_reader r = wire_reader_of(c->in.payload, c->in.len);
	uint32_t flags = wire_get_u32(&r);
	int rc;

	if (flags & ~(AGENT_FREEZE_SYNC | AGENT_FREEZE_COMPACT)) {
		ag_conn_error(c, EPROTO, "freeze: unknown flags");
		return;
	}
	if (a->off) {
		ag_conn_error(c, EBUSY, "powering off");
		return;
	}
	ag_conn_end_others(a, c);
	rc = ag_cgroup_write(a, "cgroup.freeze", "1");
	if (rc < 0) {
		ag_conn_error(c, rc, "freezing the application's cgroup: %s",
			      strerror(-rc));
		return;
	}
	a->freezing = true;
	ag_imds_pause(a);
	a->freeze_flags = flags;
	a->freezer = c;
	a->freeze_deadline_ns = ag_deadline(AG_FREEZE_MS);
	c->kind = CONN_WAIT;
	ag_watch_set(a, &c->w, EPOLLIN | EPOLLRDHUP);
	// It may be frozen already: then no event would come.
	a->cg.events.cb(&a->cg.events, 0);
}

void ag_open_unfreeze(struct conn *c)
{
	int rc = unfreeze(c->a);

	if (rc < 0)
		ag_conn_error(c, rc, "unfreezing: %s", strerror(-rc));
	else
		ag_conn_ok(c);
}

// --- thaw --------------------------------------------------------------------

static int set_clock(struct agent *a, uint64_t wall_ns, char *err, size_t size)
{
	struct timespec ts = {.tv_sec = (time_t)(wall_ns / 1000000000u),
			      .tv_nsec = (long)(wall_ns % 1000000000u)};
	int rc;

	if (a->keep_clock || clock_settime(CLOCK_REALTIME, &ts) == 0)
		return 0;
	rc = -errno;
	snprintf(err, size, "setting the clock: %s", strerror(errno));
	return rc;
}

static int renew(struct agent *a, const struct ag_thaw *t, bool go_on,
		 char *err, size_t size)
{
	int rc = ag_entropy(t->entropy, err, size);

	if (rc == 0)
		rc = set_clock(a, t->wall_ns, err, size);
	if (rc == 0)
		rc = ag_machine_id(t->machine_id, err, size);
	if (rc < 0)
		return rc;
	if (t->hostname[0] &&
	    sethostname(t->hostname, strlen(t->hostname)) < 0) {
		rc = -errno;
		snprintf(err, size, "the host name: %s", strerror(-rc));
		return rc;
	}
	ag_imds_identity(a, t->machine_id);
	rc = ag_boot_id_renew(a);
	if (rc == 0 && go_on)
		rc = unfreeze(a);
	if (rc < 0)
		snprintf(err, size, "boot id or unfreezing: %s", strerror(-rc));
	return rc;
}

void ag_open_thaw(struct conn *c)
{
	struct ag_thaw t;
	char err[200] = "";
	const char *why;
	int rc = ag_thaw_parse(&t, c->in.payload, c->in.len, &why);

	if (rc < 0) {
		ag_conn_error(c, rc, "thaw: %s", why);
		return;
	}
	rc = renew(c->a, &t, c->in.type == AGENT_THAW, err, sizeof(err));
	explicit_bzero(&t, sizeof(t));
	explicit_bzero(c->in.payload, c->in.len);
	if (rc < 0)
		ag_conn_error(c, rc, "thaw: %s", err);
	else
		ag_conn_ok(c);
}

// --- probe -------------------------------------------------------------------

void ag_open_probe(struct conn *c)
{
	struct agent *a = c->a;
	struct wire_reader r = wire_reader_of(c->in.payload, c->in.len);
	uint16_t port = wire_get_u16(&r);
	uint8_t buf[22];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	bool running =
	    a->app.state == APP_RUNNING || a->app.state == APP_STARTING;

	wire_put_u8(&w, port && ag_tcp_listens(port));
	wire_put_u8(&w, running);
	wire_put_u32(&w, a->app.state == APP_ENDED  ? (uint32_t)a->app.status
			 : a->app.state == APP_NONE ? UINT32_MAX
						    : 0);
	wire_put_u64(&w, ag_cgroup_cpu_us(a));
	wire_put_u64(&w, util_now_ns() / 1000000u);
	ag_conn_answer(c, AGENT_PROBED, buf, w.len);
}

// --- power off ---------------------------------------------------------------

static void power_off(struct agent *a)
{
	a->off_deadline_ns = 0;
	a->quit = true;
	if (!a->init)
		return;
	reboot(RB_POWER_OFF);
	// Without a way to power off the kernel comes back; end it anyhow.
	reboot(RB_AUTOBOOT);
}

static void off_flush(struct agent *a)
{
	struct conn *c = a->off_conn;

	if (a->init) {
		sync();
		mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	}
	a->off = OFF_FLUSH;
	// Room for the answer to leave the guest: power_off() comes when the
	// host has closed its side, or soon.
	a->off_deadline_ns = ag_deadline(OFF_FLUSH_MS);
	if (!c || ag_out_init(&c->out, 64) < 0 ||
	    ag_out_frame(&c->out, AGENT_OK, NULL, 0) < 0 ||
	    ag_out_flush(&c->out, c->w.fd) < 0 ||
	    shutdown(c->w.fd, SHUT_WR) < 0)
		power_off(a);
}

static void off_kill(struct agent *a)
{
	unfreeze(a);
	a->off = OFF_KILL;
	a->off_deadline_ns = ag_deadline(OFF_KILL_MS);
	if (a->app.pid > 0)
		kill(-a->app.pid, SIGKILL);
	// Programs that left the application's session are in the cgroup yet.
	if (ag_cgroup_write(a, "cgroup.kill", "1") < 0 || !a->cg.populated)
		off_flush(a);
}

void ag_open_poweroff(struct conn *c)
{
	struct agent *a = c->a;
	struct wire_reader r = wire_reader_of(c->in.payload, c->in.len);
	uint32_t ms = wire_get_u32(&r);

	if (a->off) {
		ag_conn_error(c, EALREADY, "powering off already");
		return;
	}
	a->off = OFF_TERM;
	a->off_conn = c;
	c->kind = CONN_WAIT;
	ag_watch_set(a, &c->w, EPOLLIN | EPOLLRDHUP);
	ag_conn_end_others(a, c);
	unfreeze(a);
	if (a->app.pid <= 0 || !ms) {
		off_kill(a);
		return;
	}
	a->off_deadline_ns = ag_deadline(MIN(ms, (uint32_t)OFF_MAX_MS));
	kill(a->app.pid, SIGTERM);
}

// --- what moves them on ------------------------------------------------------

// The cgroup changed, or the application's first process ended.
void ag_control_cgroup_event(struct agent *a)
{
	if (a->freezer && a->cg.frozen)
		freeze_done(a);
	if (a->off == OFF_TERM && a->app.pid <= 0)
		off_kill(a);
	else if (a->off == OFF_KILL && !a->cg.populated)
		off_flush(a);
}

void ag_control_conn_gone(struct conn *c)
{
	struct agent *a = c->a;

	if (a->freezer == c)
		freeze_undo(a, "the host left");
	if (a->off_conn != c)
		return;
	a->off_conn = NULL; // powering off goes on without it
	if (a->off == OFF_FLUSH)
		power_off(a);
}

uint64_t ag_control_deadline(const struct agent *a)
{
	uint64_t first = UINT64_MAX;

	if (a->freezer)
		first = a->freeze_deadline_ns;
	if (a->off_deadline_ns)
		first = MIN(first, a->off_deadline_ns);
	return first;
}

void ag_control_timers(struct agent *a, uint64_t now)
{
	if (a->freezer && now >= a->freeze_deadline_ns) {
		struct conn *c = a->freezer;

		freeze_undo(a, "it took too long");
		ag_conn_error(c, ETIMEDOUT,
			      "the application's cgroup did not freeze in %d "
			      "s: a process hangs in the kernel",
			      AG_FREEZE_MS / 1000);
	}
	if (!a->off_deadline_ns || now < a->off_deadline_ns)
		return;
	if (a->off == OFF_TERM)
		off_kill(a);
	else if (a->off == OFF_KILL)
		off_flush(a);
	else
		power_off(a);
}
