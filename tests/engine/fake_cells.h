// What a test tells the fake guests of fake_cells.c.
#ifndef THAW_FAKE_CELLS_H
#define THAW_FAKE_CELLS_H

#include "pagecache.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The application's server of lifecycle hooks.
struct fake_hooks {
	unsigned port;	    // 0: there is none, every port echoes
	const char *answer; // to a whole request; "": it closes; NULL: nothing
	bool refuses;	    // nobody listens there
	unsigned asked;	    // requests so far
	char path[128], body[8192]; // of the last one
};
extern struct fake_hooks fake_hooks;

// The agent of all of them: what it was told, in order.
struct fake_agent {
	char heard[64];	    // S, F, T, U, R (RENEW), C (ROLE)
	uint8_t role[8192]; // the last one's payload
	size_t role_len;
	uint32_t start_flags; // of the last START
	bool old;	      // it does not know ROLE
	bool stuck;	      // it answers no FREEZE but with an error
};
extern struct fake_agent fake_agent;

// A snapshot as a fake guest's capture makes it; `parent` and `config` may be NULL.
int fake_snapshot(struct pgc_store *store, const struct pgc_id *id,
		  const struct pgc_id *parent, const char *config,
		  struct err *e);

// Bytes between a stream of the engine's and 127.0.0.1:PORT of this host, each
// end of file by itself (fake_bridge.c). NULL: nobody listens there. `fd` stays
// the caller's; ended() once, when both are through.
struct eng_loop;
struct fake_bridge;
struct fake_bridge *fake_bridge_create(struct eng_loop *l, int fd,
				       unsigned port, void (*ended)(void *ctx),
				       void *ctx);
// Begins, with what was read off `fd` already.
void fake_bridge_start(struct fake_bridge *b, const void *early, size_t n);
void fake_bridge_free(struct fake_bridge *b); // NULL is fine

#endif
