#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ag.h"
#include "util.h"

void ag_watch_init(struct watch *w, int fd,
		   void (*cb)(struct watch *, uint32_t), void *ctx)
{
	*w = (struct watch){.fd = fd, .cb = cb, .ctx = ctx};
}

void ag_watch_set(struct agent *a, struct watch *w, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = w};
	int op = !w->armed ? EPOLL_CTL_ADD
		 : events  ? EPOLL_CTL_MOD
			   : EPOLL_CTL_DEL;

	if (w->fd < 0 || events == w->armed)
		return;
	// It fails only without memory; an ADD that failed is tried again at
	// the next change, as `armed` stays what it was.
	if (epoll_ctl(a->epoll, op, w->fd, &ev) == 0)
		w->armed = events;
}

void ag_watch_close(struct agent *a, struct watch *w)
{
	if (w->fd < 0)
		return;
	ag_watch_set(a, w, 0);
	close(w->fd);
	w->fd = -1;
	w->armed = 0;
}

uint64_t ag_deadline(uint64_t ms)
{
	return util_now_ns() + ms * 1000000u;
}

void ag_say(struct agent *a, const char *fmt, ...)
{
	char line[512] = "thaw-agent: ";
	size_t n = strlen(line);
	va_list ap;
	int k;

	va_start(ap, fmt);
	k = vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
	va_end(ap);
	if (k < 0)
		return;
	n = MIN(n + (size_t)k, sizeof(line) - 2);
	line[n++] = '\n';
	// The console may be gone or full; the ring has the line as well.
	if (write(STDERR_FILENO, line, n) < 0)
		errno = 0;
	ag_ring_put(&a->app.ring, AG_LOG_AGENT, line, n);
	ag_log_pump(a);
}

static void on_signal(struct watch *w, uint32_t events)
{
	struct agent *a = w->ctx;
	struct signalfd_siginfo si;
	pid_t pid;
	int status;

	(void)events;
	while (read(w->fd, &si, sizeof(si)) == (ssize_t)sizeof(si)) {
		if (si.ssi_signo == SIGTERM && !a->init)
			a->quit = true;
	}
	// Orphans of the whole guest come to PID 1, too.
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (!ag_app_reaped(a, pid, status))
			ag_exec_reaped(a, pid, status);
	}
}

static int open_signals(struct agent *a)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	ag_watch_init(&a->signals,
		      signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), on_signal,
		      a);
	if (a->signals.fd < 0)
		return -errno;
	ag_watch_set(a, &a->signals, EPOLLIN);
	return 0;
}

static int wait_ms(const struct agent *a)
{
	uint64_t first = ag_control_deadline(a), now;

	first = MIN(first, ag_imds_deadline(a));
	if (a->app.held)
		first = MIN(first, a->app.stall_ns);
	for (const struct conn *c = a->conns; c; c = c->next) {
		if (c->deadline_ns)
			first = MIN(first, c->deadline_ns);
	}
	if (first == UINT64_MAX)
		return -1;
	now = util_now_ns();
	if (first <= now)
		return 0;
	// Rounded up: a timer that is early would only be asked for again.
	return (int)MIN((first - now) / 1000000u + 1, (uint64_t)INT_MAX);
}

void ag_loop(struct agent *a)
{
	struct epoll_event ev[32];

	if (open_signals(a) < 0)
		ag_say(a, "no signalfd: %s", strerror(errno));
	// Children that ended before signals were watched.
	on_signal(&a->signals, 0);
	while (!a->quit) {
		int n = epoll_wait(a->epoll, ev, ARRAY_SIZE(ev), wait_ms(a));
		uint64_t now;

		for (int i = 0; i < n; i++) {
			struct watch *w = ev[i].data.ptr;

			if (w->fd >= 0 && w->armed)
				w->cb(w, ev[i].events);
		}
		now = util_now_ns();
		ag_conn_timers(a, now);
		ag_app_timers(a, now);
		ag_control_timers(a, now);
		ag_imds_timers(a, now);
		ag_conn_sweep(a);
		ag_imds_sweep(a);
	}
}
