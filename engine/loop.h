// (interface) The only place that knows how events are armed: descriptor
// watches, timers, deferred calls, and the length of each turn. One thread.
#ifndef THAW_ENG_LOOP_H
#define THAW_ENG_LOOP_H

#include "base.h"

struct event_base;
struct eng_loop;
struct eng_watch;
struct eng_timer;

int eng_loop_create(struct eng_loop **out, struct err *e);
void eng_loop_destroy(struct eng_loop *l); // NULL is fine
struct event_base *
eng_loop_base(struct eng_loop *l);     // for evhttp, bufferevents
void eng_loop_run(struct eng_loop *l); // until eng_loop_stop()
void eng_loop_stop(struct eng_loop *l);
// Waits for one event at least and serves what is due: for an orderly end, when
// eng_loop_run() has returned and something still has to come.
void eng_loop_once(struct eng_loop *l);

enum { ENG_READ = 1, ENG_WRITE = 2 };

// Level-triggered. `name` is a string constant, shown as the longest turn's
// name. The descriptor stays the caller's. Destroy before closing it. A watch
// may be destroyed in its own callback.
struct eng_watch *eng_watch_create(struct eng_loop *l, int fd, unsigned what,
				   void (*cb)(void *ctx, unsigned what),
				   void *ctx, const char *name);
void eng_watch_set(struct eng_watch *w, unsigned what); // 0: none, for now
void eng_watch_destroy(struct eng_watch *w);		// NULL is fine

// One-shot; set again to rearm.
struct eng_timer *eng_timer_create(struct eng_loop *l, void (*cb)(void *ctx),
				   void *ctx, const char *name);
void eng_timer_set(struct eng_timer *t, uint64_t after_ms);
void eng_timer_stop(struct eng_timer *t);
void eng_timer_destroy(struct eng_timer *t); // NULL is fine

// Calls cb on a later turn (never from within this call). Cannot be cancelled.
void eng_loop_defer(struct eng_loop *l, void (*cb)(void *ctx), void *ctx,
		    const char *name);

// Every callback into the engine is a turn. Watches, timers and deferred calls
// stamp themselves; callbacks that libevent calls directly (evhttp,
// bufferevents) bracket themselves with these.
void eng_turn_begin(struct eng_loop *l, const char *name);
void eng_turn_end(struct eng_loop *l);
struct eng_turn_stats {
	uint64_t turns;
	uint64_t longest_ns;
	// What the loop's thread ran of it: the rest it slept in a call, or was
	// not let run on a busy machine.
	uint64_t longest_cpu_ns;
	const char *longest_name;
	uint64_t over_10ms; // turns longer than 10 ms
};
void eng_loop_turn_stats(const struct eng_loop *l, struct eng_turn_stats *out);

#endif
