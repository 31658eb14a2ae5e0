// Private to thaw-pool: requests to thawd, its events, and the filling of pools.
#ifndef THAW_POOL_H
#define THAW_POOL_H

#include <jansson.h>

#include "../httpc.h"

// --- requests and events (thawd.c) -------------------------------------------

struct thawd {
	const char *socket;
	struct httpc events; // fd -1: not connected
	char *line;
	size_t cap;
	uint64_t heard_ns; // when it last said something
};

// One exchange. The answer's status, or -errno with `e`; *out (may be NULL) is
// its body, an empty object when there was none, for the caller to decref.
int thawd_call(struct thawd *t, const char *method, const char *path,
	       const json_t *body, json_t **out, struct err *e);
// Follows events from now on: what is read after this is no older than they.
int thawd_follow(struct thawd *t, struct err *e);
void thawd_unfollow(struct thawd *t);
// Whether an event may be there without waiting for the descriptor.
bool thawd_has_event(const struct thawd *t);
// Reads one: NULL with `e` when the stream ended, or is silent for too long.
json_t *thawd_event(struct thawd *t, struct err *e);

// --- pools (fill.c) ----------------------------------------------------------

struct pool {
	struct pool *next;
	char image[65];
	unsigned size, parked, starting;
	uint64_t claimed_ns; // the latest claim
	uint64_t not_before_ns, backoff_ns;
	bool seen; // in the list that is being read
};

struct fill {
	struct thawd *t;
	struct pool *pools;
	bool stale; // the pools are to be read again
};

void fill_event(struct fill *f, const json_t *event);
// Does one thing that is due: reads the pools, or parks one microVM. 1: it did,
// 0: nothing is due until *at_ns (UINT64_MAX: until an event), -errno: thawd is
// gone.
int fill_step(struct fill *f, uint64_t now_ns, uint64_t *at_ns, struct err *e);
void fill_free(struct fill *f);

#endif
