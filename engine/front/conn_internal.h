// Between the files of a client's connection in HTTP/1.1 (conn*.c); the states are
// told in conn.c.
#ifndef THAW_FRONT_CONN_INTERNAL_H
#define THAW_FRONT_CONN_INTERNAL_H

#include "front_internal.h"

enum conn_state {
	CONN_OPENING,
	CONN_HEAD,
	CONN_BUSY,
	CONN_RELAY,
	CONN_FLUSH,
	CONN_LINGER,
	CONN_H2,
	CONN_DEAD,
};

struct conn {
	struct conn *next, **link; // all, or the dead
	struct front *f;
	struct place place;
	enum conn_state state;
	struct bufferevent *bev; // NULL while `sniff`
	struct eng_watch *sniff;
	int fd; // while there is no bev
	bool tls, first, pumping;
	bool eof;	// the client sends no more
	bool guest_end; // in a relay: the guest sends no more
	bool said_bye;
	bool cut; // the last answer is not whole
	struct deadline limit;
	struct head_in in;
	struct xchg *x;
	struct body body;
	// Of the current request and its answer.
	bool close, to_head, te_trailers, upgrade, old;
	bool chunked; // towards the client
	struct h2 *h2;
};

static inline struct evbuffer *conn_input(struct conn *c)
{
	return bufferevent_get_input(c->bev);
}

static inline size_t conn_unsent(struct conn *c)
{
	return evbuffer_get_length(bufferevent_get_output(c->bev));
}

// --- conn.c ----------------------------------------------------------------------

// Lets the answer go out and ends; what the client still says is thrown away.
void conn_wind_up(struct conn *c);
void conn_become_h2(struct conn *c);

// --- conn_request.c ----------------------------------------------------------------

// Does all that can be done with what came: call it when bytes came or can go.
void conn_pump(struct conn *c);
void conn_bad_body(struct conn *c, int status, const char *text);

// --- conn_answer.c -----------------------------------------------------------------

extern const struct down_ops conn_ops;
void conn_refuse(struct conn *c, int status, const char *text); // and ends
// In a relay: passes the guest's end of file on once the client has it all.
void conn_relay_ends(struct conn *c);

#endif
