// The application and its output.
//
// Its stdout and stderr are pipes. What comes out goes into a ring of 64 KiB
// and from there to the LOG stream, record by record; a record leaves the ring
// only when the socket took all of its frame, so that a stream that ends (every
// freeze ends them) loses nothing. While a reader is there and the ring is
// full, the pipes are not read: the application is held back as by any pipe. A
// reader that takes nothing for AG_LOG_STALL_MS, or none at all, does not hold
// it: the oldest output goes, and the next reader is told how much.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ag.h"
#include "ag_spawn.h"
#include "util.h"

static const char default_path[] =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static void update_pipes(struct agent *a)
{
	for (int i = 0; i < 2; i++)
		ag_watch_set(a, &a->app.out[i], a->app.held ? 0 : EPOLLIN);
}

void ag_app_init(struct agent *a)
{
	a->app.err.fd = a->app.out[0].fd = a->app.out[1].fd = -1;
}

// --- the LOG stream ----------------------------------------------------------

static void hold(struct agent *a, bool yes)
{
	if (yes && !a->app.held)
		a->app.stall_ns = ag_deadline(AG_LOG_STALL_MS);
	a->app.held = yes;
	update_pipes(a);
}

static void next_record(struct agent *a, struct conn *c)
{
	uint8_t *p = ag_out_payload(&c->out);
	unsigned stream;
	size_t n = ag_ring_peek(&a->app.ring, &stream, p + 1);

	if (!n)
		return;
	p[0] = (uint8_t)stream;
	ag_out_commit(&c->out, AGENT_LOGDATA, n + 1);
	a->app.in_flight = true;
}

void ag_log_pump(struct agent *a)
{
	struct conn *c = a->app.reader;

	if (!c || c->dead)
		return;
	for (;;) {
		if (!c->out.len) {
			if (a->app.in_flight)
				ag_ring_consume(&a->app.ring);
			a->app.in_flight = false;
			next_record(a, c);
			if (!c->out.len)
				break;
		}
		if (ag_out_flush(&c->out, c->w.fd) < 0) {
			ag_conn_end(c);
			return;
		}
		if (c->out.len)
			break;
		a->app.stalled = false; // it took something
		hold(a, false);
	}
	ag_watch_set(a, &c->w,
		     (uint32_t)EPOLLIN | (c->out.len ? (uint32_t)EPOLLOUT : 0));
}

void ag_open_log(struct conn *c)
{
	struct agent *a = c->a;

	if (ag_out_init(&c->out, AGENT_FRAME_HEAD + 1 + AG_RECORD_MAX) < 0) {
		ag_conn_end(c);
		return;
	}
	if (a->app.reader)
		ag_conn_end(a->app.reader);
	c->kind = CONN_LOG;
	a->app.reader = c;
	ag_log_pump(a);
}

void ag_log_conn_event(struct conn *c, uint32_t events)
{
	// The host has nothing to say here: whatever comes is the end.
	if (events & ~(uint32_t)EPOLLOUT)
		ag_conn_end(c);
	else
		ag_log_pump(c->a);
}

void ag_app_conn_gone(struct conn *c)
{
	struct app *app = &c->a->app;

	if (app->starter == c)
		app->starter = NULL;
	if (app->reader != c)
		return;
	app->reader = NULL;
	app->in_flight = app->stalled = false;
	ag_ring_unpeek(&app->ring);
	hold(c->a, false);
}

void ag_app_timers(struct agent *a, uint64_t now)
{
	if (!a->app.held || now < a->app.stall_ns)
		return;
	// Keep the stream, but hold back no longer until it takes something.
	hold(a, false);
	a->app.stalled = true;
}

static void on_output(struct watch *w, uint32_t events)
{
	struct agent *a = w->ctx;
	unsigned stream = w == &a->app.out[0] ? AG_LOG_STDOUT : AG_LOG_STDERR;
	uint8_t buf[AG_RECORD_MAX];
	ssize_t n;

	(void)events;
	if (a->app.reader && !a->app.stalled &&
	    ag_ring_room(&a->app.ring) < sizeof(buf)) {
		hold(a, true);
		return;
	}
	n = read(w->fd, buf, sizeof(buf));
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		ag_watch_close(a, w);
		return;
	}
	ag_ring_put(&a->app.ring, stream, buf, (size_t)n);
	ag_log_pump(a);
}

// --- its life ----------------------------------------------------------------

static void start_failed(struct agent *a, int err, const char *text)
{
	struct app *app = &a->app;
	struct conn *c = app->starter;

	app->state = APP_NONE;
	app->starter = NULL;
	ag_watch_close(a, &app->err);
	ag_watch_close(a, &app->out[0]);
	ag_watch_close(a, &app->out[1]);
	ag_spec_fini(&app->spec);
	ag_say(a, "the application did not start: %s%s%s", text,
	       a->root_why ? "; " : "", a->root_why ? a->root_why : "");
	if (c)
		ag_conn_error(c, err, "%s%s%s", text, a->root_why ? "; " : "",
			      a->root_why ? a->root_why : "");
}

static void on_exec_result(struct watch *w, uint32_t events)
{
	struct agent *a = w->ctx;
	struct ag_spawn_error e;
	ssize_t n = read(w->fd, &e, sizeof(e));
	struct conn *c = a->app.starter;

	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n == (ssize_t)sizeof(e)) {
		e.text[sizeof(e.text) - 1] = '\0';
		start_failed(a, e.err, e.text);
		return;
	}
	ag_watch_close(a, w);
	if (a->app.state == APP_STARTING)
		a->app.state = APP_RUNNING;
	a->app.starter = NULL;
	if (c)
		ag_conn_ok(c);
}

// The application's environment: its own over our defaults.
static char **app_env(const struct ag_spec *spec)
{
	static char hostname[10 + AG_HOSTNAME_MAX];
	char *defaults[3] = {(char *)default_path, NULL, NULL};

	if (spec->hostname[0]) {
		snprintf(hostname, sizeof(hostname), "HOSTNAME=%s",
			 spec->hostname);
		defaults[1] = hostname;
	}
	return ag_env_merge(defaults, spec->env, 2);
}

static int run(struct agent *a)
{
	struct app *app = &a->app;
	cleanup_free char **env = app_env(&app->spec);
	cleanup_fd int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	cleanup_fd int out = -1, err = -1;
	int p[2], result;
	pid_t pid;

	if (!env)
		return -ENOMEM;
	if (null < 0 || pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	out = p[1];
	ag_watch_init(&app->out[0], p[0], on_output, a);
	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	err = p[1];
	ag_watch_init(&app->out[1], p[0], on_output, a);
	for (int i = 0; i < 2; i++)
		fcntl(app->out[i].fd, F_SETFL, O_NONBLOCK);
	pid =
	    ag_spawn(&(struct ag_spawn){.argv = app->spec.argv,
					.env = env,
					.user = app->spec.user,
					.cwd = app->spec.cwd,
					.all_caps = app->spec.all_caps,
					.fds = {null, out, err},
					.cgroup_procs = ag_cgroup_procs_fd(a)},
		     &result);
	if (pid < 0)
		return pid;
	app->pid = pid;
	ag_watch_init(&app->err, result, on_exec_result, a);
	ag_watch_set(a, &app->err, EPOLLIN);
	update_pipes(a);
	return 0;
}

void ag_open_start(struct conn *c)
{
	struct agent *a = c->a;
	struct ag_spec spec;
	const char *why;
	int rc;

	if (a->app.state != APP_NONE) {
		ag_conn_error(c, EALREADY, "the application was started");
		return;
	}
	if (a->freezing || a->off) {
		ag_conn_error(c, EBUSY, "frozen, or powering off");
		return;
	}
	rc = ag_spec_app(&spec, c->in.payload, c->in.len, &why);
	if (rc < 0) {
		ag_conn_error(c, rc, "start: %s", why);
		return;
	}
	if (spec.hostname[0] &&
	    sethostname(spec.hostname, strlen(spec.hostname)) < 0)
		ag_say(a, "cannot set the host name: %s", strerror(errno));
	a->app.spec = spec;
	a->app.state = APP_STARTING;
	a->app.starter = c;
	c->kind = CONN_WAIT;
	rc = run(a);
	if (rc < 0)
		start_failed(a, -rc, strerror(-rc));
	else
		ag_watch_set(a, &c->w, EPOLLIN | EPOLLRDHUP);
}

static void say_end(struct agent *a, int status)
{
	if (WIFSIGNALED(status))
		ag_say(a, "the application was ended by signal %d (%s)",
		       WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		ag_say(a, "the application ended with exit code %d",
		       WEXITSTATUS(status));
}

bool ag_app_reaped(struct agent *a, pid_t pid, int status)
{
	struct app *app = &a->app;

	if (pid != app->pid || !pid)
		return false;
	app->pid = 0;
	// A failed exec says so in its pipe, before it ends.
	if (app->err.fd >= 0)
		on_exec_result(&app->err, 0);
	if (app->state != APP_STARTING && app->state != APP_RUNNING)
		return true;
	app->state = APP_ENDED;
	app->status =
	    WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
	// What it wrote before comes first.
	for (int i = 0; i < 2; i++) {
		for (int k = 0; k < 64 && app->out[i].fd >= 0; k++) {
			if (app->held)
				break;
			on_output(&app->out[i], 0);
		}
	}
	say_end(a, status);
	ag_control_cgroup_event(a);
	return true;
}
