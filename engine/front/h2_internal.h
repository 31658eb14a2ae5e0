// Between h2.c and h2_stream.c; who may enter nghttp2 when is told in h2.c.
#ifndef THAW_FRONT_H2_INTERNAL_H
#define THAW_FRONT_H2_INTERNAL_H

#include "front_internal.h"
#include "h2_fields.h"

struct h2_stream {
	struct h2_stream *next, **link;
	struct h2 *h2;
	int32_t id;
	// The request's head, being collected.
	char *method, *path, *host;
	struct h2_text fields;
	struct head_out cookie;
	bool has_length, started;
	struct xchg *x;
	struct evbuffer *in, *out;
	bool in_end;  // the client has sent it all
	bool in_told; // and the exchange knows
	bool out_end, drained;
	uint64_t since; // ns: bytes of `out` wait, and none has gone since
	struct head trailers; // of the answer; its text is ours
};

struct h2 {
	struct front *f;
	struct conn *conn;
	struct bufferevent *bev;
	nghttp2_session *s;
	struct h2_stream *streams;
	unsigned open; // exchanges
	struct eng_timer *kick;
	bool kicked;
	struct deadline stall; // armed while a stream may wait for its client
};

// --- h2.c ------------------------------------------------------------------------

void h2_kick(struct h2 *h);  // sends on a later turn what is queued by then
void h2_waits(struct h2 *h); // some stream does: how long is watched

// --- h2_stream.c -------------------------------------------------------------------

struct h2_stream *h2_stream_new(struct h2 *h, int32_t id);
void h2_stream_free(struct h2_stream *st); // its exchange is dropped
// One field of the request's head.
void h2_stream_field(struct h2_stream *st, const uint8_t *name, size_t nn,
		     const uint8_t *value, size_t vn);
// The head is whole: the exchange begins, or the answer is a refusal.
void h2_stream_start(struct h2_stream *st);
// Gives the request's bytes to the guest as it takes them.
void h2_stream_push(struct h2_stream *st);
bool h2_stream_full(struct h2_stream *st); // of the answer
// Nothing of it has gone for so long (ns), for want of a window.
bool h2_stream_stalled(struct h2_stream *st, uint64_t ns);
void h2_stream_reset(struct h2_stream *st); // the client takes no more of it

#endif
