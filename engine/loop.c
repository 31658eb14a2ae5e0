// The event loop over libevent: watches, timers, deferred calls, turn lengths.
//
// A *turn* is one callback into the engine. Its length is how long every other
// microVM's page faults waited, so the longest one is kept with its name. The
// wrappers here stamp each callback; nested stamps (an evhttp callback that
// calls one of ours) count as the outer turn.
//
// An object destroyed inside its own callback is only marked; the wrapper that
// called it frees it.
#include <errno.h>
#include <event2/event.h>
#include <stdlib.h>
#include <time.h>

#include "loop.h"

enum { CPU_CLOCK_NS = 1000000 };

struct eng_loop {
	struct event_base *base;
	struct event *deferred_ev; // armed while the list below is not empty
	struct deferred *deferred, **deferred_tail;
	unsigned depth;
	uint64_t turn_start;
	uint64_t cpu_at,
	    cpu_then; // the thread's CPU time, and when it was read
	const char *turn_name;
	struct eng_turn_stats stats;
};

struct eng_watch {
	struct eng_loop *loop;
	struct event *ev;
	int fd;
	unsigned what;
	void (*cb)(void *ctx, unsigned what);
	void *ctx;
	const char *name;
	bool running, dead;
};

struct eng_timer {
	struct eng_loop *loop;
	struct event *ev;
	void (*cb)(void *ctx);
	void *ctx;
	const char *name;
	bool running, dead;
};

struct deferred {
	struct deferred *next;
	void (*cb)(void *ctx);
	void *ctx;
	const char *name;
};

static void deferred_fired(evutil_socket_t fd, short what, void *arg);

// A timer that is due at once fires in the next pass over the descriptors,
// where an activated event would run again in this one.
static const struct timeval soon = {0, 0};

static void libevent_log(int severity, const char *msg)
{
	if (severity >= EVENT_LOG_WARN)
		log_warn("libevent: %s", msg);
}

int eng_loop_create(struct eng_loop **out, struct err *e)
{
	struct eng_loop *l;

	*out = NULL;
	event_set_log_callback(libevent_log);
	l = calloc(1, sizeof(*l));
	if (!l)
		return err_set(e, -ENOMEM, "no memory for the event loop");
	l->base = event_base_new();
	if (!l->base) {
		free(l);
		return err_set(e, -ENOMEM, "libevent gives no event base");
	}
	l->deferred_tail = &l->deferred;
	l->deferred_ev = event_new(l->base, -1, 0, deferred_fired, l);
	if (!l->deferred_ev) {
		event_base_free(l->base);
		free(l);
		return err_set(e, -ENOMEM, "no memory for the event loop");
	}
	*out = l;
	return 0;
}

void eng_loop_destroy(struct eng_loop *l)
{
	struct deferred *d;

	if (!l)
		return;
	while ((d = l->deferred)) {
		l->deferred = d->next;
		free(d);
	}
	event_free(l->deferred_ev);
	event_base_free(l->base);
	free(l);
}

struct event_base *eng_loop_base(struct eng_loop *l)
{
	return l->base;
}

void eng_loop_run(struct eng_loop *l)
{
	event_base_loop(l->base, EVLOOP_NO_EXIT_ON_EMPTY);
}

void eng_loop_stop(struct eng_loop *l)
{
	event_base_loopbreak(l->base);
}

void eng_loop_once(struct eng_loop *l)
{
	event_base_loop(l->base, EVLOOP_ONCE);
}

static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

void eng_turn_begin(struct eng_loop *l, const char *name)
{
	if (l->depth++)
		return;
	l->turn_name = name;
	l->turn_start = util_now_ns();
	// The clock of a thread's CPU time is a system call, dearer than most
	// turns. One that was read lately will do: a turn whose length matters
	// is longer than what it is wrong by.
	if (l->turn_start - l->cpu_at > CPU_CLOCK_NS) {
		l->cpu_at = l->turn_start;
		l->cpu_then = cpu_ns();
	}
}

void eng_turn_end(struct eng_loop *l)
{
	uint64_t took;

	if (--l->depth)
		return;
	took = util_now_ns() - l->turn_start;
	l->stats.turns++;
	if (took > 10000000)
		l->stats.over_10ms++;
	if (took > l->stats.longest_ns) {
		l->stats.longest_ns = took;
		l->stats.longest_cpu_ns = MIN(took, cpu_ns() - l->cpu_then);
		l->stats.longest_name = l->turn_name;
	}
}

void eng_loop_turn_stats(const struct eng_loop *l, struct eng_turn_stats *out)
{
	*out = l->stats;
}

// --- watches -----------------------------------------------------------------

static void watch_free(struct eng_watch *w)
{
	if (w->ev)
		event_free(w->ev);
	free(w);
}

static void watch_fired(evutil_socket_t fd, short what, void *arg)
{
	struct eng_watch *w = arg;
	struct eng_loop *l = w->loop;

	(void)fd;
	eng_turn_begin(l, w->name);
	w->running = true;
	w->cb(w->ctx, (what & EV_READ ? ENG_READ : 0u) |
			  (what & EV_WRITE ? ENG_WRITE : 0u));
	w->running = false;
	if (w->dead)
		watch_free(w);
	eng_turn_end(l);
}

struct eng_watch *eng_watch_create(struct eng_loop *l, int fd, unsigned what,
				   void (*cb)(void *ctx, unsigned what),
				   void *ctx, const char *name)
{
	struct eng_watch *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	*w = (struct eng_watch){
	    .loop = l, .fd = fd, .cb = cb, .ctx = ctx, .name = name};
	eng_watch_set(w, what);
	if (what && !w->ev) {
		free(w);
		return NULL;
	}
	return w;
}

void eng_watch_set(struct eng_watch *w, unsigned what)
{
	short flags = (short)((what & ENG_READ ? EV_READ : 0) |
			      (what & ENG_WRITE ? EV_WRITE : 0) | EV_PERSIST);

	if (w->what == what)
		return;
	if (w->ev) {
		event_free(w->ev);
		w->ev = NULL;
	}
	w->what = what;
	if (!what)
		return;
	w->ev = event_new(w->loop->base, w->fd, flags, watch_fired, w);
	if (w->ev && event_add(w->ev, NULL) < 0) {
		event_free(w->ev);
		w->ev = NULL;
	}
}

void eng_watch_destroy(struct eng_watch *w)
{
	if (!w)
		return;
	if (!w->running) {
		watch_free(w);
		return;
	}
	// In its own callback: disarm now, so that the descriptor may be
	// closed and its number reused; the wrapper frees the rest.
	if (w->ev)
		event_del(w->ev);
	w->dead = true;
}

// --- timers --------------------------------------------------------------------

static void timer_free(struct eng_timer *t)
{
	event_free(t->ev);
	free(t);
}

static void timer_fired(evutil_socket_t fd, short what, void *arg)
{
	struct eng_timer *t = arg;
	struct eng_loop *l = t->loop;

	(void)fd;
	(void)what;
	eng_turn_begin(l, t->name);
	t->running = true;
	t->cb(t->ctx);
	t->running = false;
	if (t->dead)
		timer_free(t);
	eng_turn_end(l);
}

struct eng_timer *eng_timer_create(struct eng_loop *l, void (*cb)(void *ctx),
				   void *ctx, const char *name)
{
	struct eng_timer *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	*t = (struct eng_timer){.loop = l, .cb = cb, .ctx = ctx, .name = name};
	t->ev = event_new(l->base, -1, 0, timer_fired, t);
	if (!t->ev) {
		free(t);
		return NULL;
	}
	return t;
}

void eng_timer_set(struct eng_timer *t, uint64_t after_ms)
{
	struct timeval tv = {(time_t)(after_ms / 1000),
			     (suseconds_t)(after_ms % 1000) * 1000};

	event_add(t->ev, &tv);
}

void eng_timer_stop(struct eng_timer *t)
{
	event_del(t->ev);
}

void eng_timer_destroy(struct eng_timer *t)
{
	if (!t)
		return;
	event_del(t->ev);
	if (t->running)
		t->dead = true;
	else
		timer_free(t);
}

// --- deferred calls ------------------------------------------------------------

// One call each time, so that each is a turn and descriptors get their share.
static void deferred_fired(evutil_socket_t fd, short what, void *arg)
{
	struct eng_loop *l = arg;
	struct deferred *d = l->deferred;

	(void)fd;
	(void)what;
	if (!d)
		return;
	l->deferred = d->next;
	if (!l->deferred)
		l->deferred_tail = &l->deferred;
	else
		event_add(l->deferred_ev, &soon);
	eng_turn_begin(l, d->name);
	d->cb(d->ctx);
	eng_turn_end(l);
	free(d);
}

void eng_loop_defer(struct eng_loop *l, void (*cb)(void *ctx), void *ctx,
		    const char *name)
{
	struct deferred *d = malloc(sizeof(*d));

	// A deferred call that is lost would leave its owner waiting for ever;
	// there is no way on without memory for it.
	if (!d)
		abort();
	*d = (struct deferred){NULL, cb, ctx, name};
	*l->deferred_tail = d;
	l->deferred_tail = &d->next;
	event_add(l->deferred_ev, &soon);
}
