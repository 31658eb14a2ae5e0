// Shared by the files of this folder only.
//
//   front.c    listener, limits, life        places.c   who makes room for whom
//   conn*.c    a client in HTTP/1.1          h2*.c      a client in HTTP/2
//   guest.c    the guest in HTTP/1.1         h2guest.c  the guest in HTTP/2
//   proxy.c    one request and its answer    route.c    what it asks of us
//   tls.c      certificates, handshakes      head*.c, body.c  messages as bytes
//
// An exchange (struct xchg) stands between a client's side (struct down_ops) and
// a guest's side (struct up_ops). Bytes are moved, not copied, and neither side
// holds more than FRONT_HIGH and what one read brings.
#ifndef THAW_FRONT_INTERNAL_H
#define THAW_FRONT_INTERNAL_H

#include "front.h"
#include "head.h"
#include "route.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>

struct conn;
struct xchg;
struct front_tls;
struct h2;
struct h2guest;

enum {
	FRONT_HIGH = 256 * 1024, // a side with this backlog gets no more
	FRONT_LOW = 64 * 1024,	 // and again from here
	FRONT_LINGER_MS = 2000,
	FRONT_BUCKETS = 256,
	INTERIM_MAX = 16, // 1xx answers to one request
};

// A time limit that is moved often: the timer under it is armed rarely.
struct deadline {
	struct eng_timer *timer;
	uint64_t due, armed; // ns; 0: not
	void (*cb)(void *ctx);
	void *ctx;
};
int deadline_init(struct deadline *d, struct eng_loop *l, void (*cb)(void *),
		  void *ctx, const char *name);
void deadline_in(struct deadline *d, unsigned ms); // 0: never
void deadline_fini(struct deadline *d);

// Connections that could make room, oldest first.
struct places {
	struct place *first, **last;
	unsigned n;
};

// A connection's place (places.c tells the states).
struct place {
	struct front *f;
	struct conn *conn;
	struct place *next, **link; // among the strangers or waiting, if link
	struct vm_load *load;	    // waits for it; NULL: a stranger
	unsigned busy;		    // its exchanges
};

// A microVM that has exchanges or connections that wait for it.
struct vm_load {
	struct vm_load *next;
	void *vm;
	unsigned n; // exchanges
	struct places waiting;
};

struct front {
	struct eng_loop *loop;
	const struct front_ops *ops;
	void *ctx;
	char *domain;
	struct front_limits lim;
	bool plain, stopped, reaping;
	unsigned port;
	char address[ADDR_TEXT];
	struct evconnlistener *listener;
	struct eng_timer *accept_timer, *reap_timer;
	struct front_tls *tls;
	struct conn *conns, *dead_conns;
	struct places strangers;
	struct xchg *xchgs, *dead_xchgs;
	struct vm_load *load[FRONT_BUCKETS];
	struct front_stats stats;
};

// Frees what is dead on a later turn.
void front_reap_later(struct front *f);
bool front_put_out(struct bufferevent *bev, struct head_out *o); // frees it
// The first contiguous bytes, or 0.
size_t front_peek(struct evbuffer *in, const char **p);

// --- places --------------------------------------------------------------------

void place_init(struct place *p, struct front *f, struct conn *c);
void place_fini(struct place *p);
// The token of a request was good. False: the microVM has too many exchanges.
bool place_take(struct place *p, void *vm);
// The client's part in what place_take() counted is over, and: all of it is.
void place_done(struct place *p, void *vm);
void place_load_drop(struct front *f, void *vm);
// For a newcomer; false: there is none. Only where no connection is at work.
bool places_make_room(struct front *f);
void places_vm_gone(struct front *f, void *vm); // it has no exchange any more

// --- the client's side ---------------------------------------------------------

struct down_ops {
	// Interim heads and one final one. h->framing says whether a body
	// follows; after 101 bytes follow as they are.
	void (*head)(void *down, const struct head *h);
	void (*data)(void *down, struct evbuffer *in, size_t n); // moves n
	// Of these one, and the exchange is forgotten:
	void (*end)(void *down, const struct head *trailers);	// may be NULL
	void (*fail)(void *down, int status, const char *text); // no head yet
	void (*cut)(void *down); // in the middle of the answer
	// After 101 end() is only the guest's end of file, and the client's
	// side ends the exchange by xchg_release() or xchg_drop().
	bool (*full)(void *down);
	void (*more)(void *down); // body bytes are welcome (again)
};

struct conn *conn_accept(struct front *f, int fd);
void conn_kill(struct conn *c);
void conn_free(struct conn *c);
struct place *conn_place(struct conn *c);

// --- the guest's side ------------------------------------------------------------

struct up_ops {
	int (*start)(struct xchg *x); // the stream is there: -errno
	void (*data)(struct xchg *x, struct evbuffer *in, size_t n); // moves n
	void (*end)(struct xchg *x); // of the request's body
	bool (*full)(struct xchg *x);
	void (*drained)(struct xchg *x); // the client's side took bytes
	void (*read)(struct xchg *x);	 // bytes came
	void (*wrote)(struct xchg *x);	 // the output fell to FRONT_LOW
	// The stream ended: clean, or by an error.
	void (*eof)(struct xchg *x, bool clean);
	void (*close)(struct xchg *x);
};
extern const struct up_ops guest_ops, h2guest_ops;

// ROUTED   nothing asked of the engine yet
// OPENING  `opening` may call back; no body byte is taken
// TALKING  `bev` is the guest's; up is set
// FLUSHING relay only: nobody at the client's side, the rest goes out
// DEAD     on the list of the dead; touched no more
enum xchg_state {
	XCHG_ROUTED,
	XCHG_OPENING,
	XCHG_TALKING,
	XCHG_FLUSHING,
	XCHG_DEAD,
};

struct xchg {
	struct xchg *next, **link;
	struct front *f;
	enum xchg_state state;
	const struct down_ops *down;
	void *down_ctx;	     // NULL: gone
	struct place *place; // the client's; NULL: given back
	const struct up_ops *up;
	struct head req;
	struct route route;
	void *vm, *opening;
	bool loaded, shell;
	bool to_head;
	bool req_end;  // the request's body has ended
	bool answered; // a final head (or 101) went down
	bool relay;    // after 101
	bool end_said; // the guest's end of file, in a relay
	struct bufferevent *bev;
	bool up_eof, up_clean; // the guest's stream has ended
	bool up_deaf;	       // the guest takes no more bytes
	struct deadline limit;
	// guest.c
	struct head_in in;
	struct body body;
	bool chunked; // towards the guest
	bool pumping;
	unsigned interims;
	// h2guest.c
	struct h2guest *h2;
};

// Consumes the head. NULL: no memory (the head is freed).
struct xchg *xchg_create(struct place *p, const struct down_ops *down,
			 void *down_ctx, struct head *req);
void xchg_start(struct xchg *x); // may fail() before it returns
// Bytes of the request's body are taken while it is not full.
bool xchg_full(const struct xchg *x);
void xchg_body(struct xchg *x, struct evbuffer *in, size_t n);
void xchg_body_end(struct xchg *x);
void xchg_drained(struct xchg *x);
void xchg_drop(struct xchg *x);	   // the client is gone: at once
void xchg_release(struct xchg *x); // and: but the guest gets what is queued
void xchg_free(struct xchg *x);	   // of a dead one

// For the guest's side: each ends the exchange.
void xchg_fail(struct xchg *x, int status, const char *text); // or cuts
void xchg_finish(struct xchg *x, const struct head *trailers);
void xchg_active(struct xchg *x); // bytes moved: the limit begins anew
// Hands a head down, if it is in order; false: the exchange is over.
bool xchg_answer(struct xchg *x, struct head *h);

// The body of an error, JSON; text is escaped.
void front_error_body(struct head_out *o, const char *text);
const char *front_reason(int status);

// --- TLS -----------------------------------------------------------------------

int front_tls_create(struct front_tls **out, const struct front_config *cfg,
		     struct err *e);
void front_tls_destroy(struct front_tls *t);
const char *front_tls_ca_path(const struct front_tls *t);
struct bufferevent *front_tls_accept(struct front_tls *t,
				     struct event_base *base, int fd);
bool front_tls_is_h2(struct bufferevent *bev); // what ALPN chose
// Says goodbye, so that the peer can tell an end from a cut.
void front_tls_bye(struct bufferevent *bev);

// --- HTTP/2 clients ----------------------------------------------------------------

struct h2 *h2_create(struct front *f, struct conn *c, struct bufferevent *bev);
// Each returns false when the connection is to be closed.
bool h2_read(struct h2 *h);
bool h2_wrote(struct h2 *h);
void h2_destroy(struct h2 *h); // its exchanges are dropped
bool h2_idle(const struct h2 *h);
void conn_h2_activity(struct conn *c);

#endif
