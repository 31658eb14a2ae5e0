// A client's connection in HTTP/2 (RFC 9113), by nghttp2; each stream is an
// exchange of its own.
//
// A request's fields are written out as an HTTP/1.1 head and go through the one
// parser there is, so that HTTP/2 opens no way around it. nghttp2 holds the
// framing to the standard: pseudo-fields, lower case, no connection fields,
// DATA as long as Content-Length says.
//
// Back-pressure: the connection's window is given back at once and a stream's
// only when the guest took the bytes, so no stream holds up another and the
// bytes waiting are at most H2_STREAMS * H2_WINDOW. An answer waits in `out`, up
// to FRONT_HIGH, until the stream's window takes it; a client that gives no window
// for stall_ms has the stream reset, whatever else it says meanwhile.
//
// The exchanges' callbacks only queue frames. They go out in flush(): after
// bytes came, after output drained, and on the turn that h2_kick() asks for; so
// nghttp2 is never entered twice, and only these places end the connection.
#include "h2_internal.h"

enum { H2_STREAMS = 100, H2_WINDOW = 128 * 1024 };

void h2_kick(struct h2 *h)
{
	if (!h->kicked)
		eng_timer_set(h->kick, 0);
	h->kicked = true;
}

// --- callbacks of nghttp2 --------------------------------------------------------------

static int on_header(nghttp2_session *s, const nghttp2_frame *frame,
		     const uint8_t *name, size_t nn, const uint8_t *value,
		     size_t vn, uint8_t flags, void *ctx)
{
	struct h2_stream *st =
	    nghttp2_session_get_stream_user_data(s, frame->hd.stream_id);

	(void)flags;
	(void)ctx;
	if (st && !st->started) // trailers of a request end here
		h2_stream_field(st, name, nn, value, vn);
	return 0;
}

static int on_begin(nghttp2_session *s, const nghttp2_frame *frame, void *ctx)
{
	struct h2_stream *st;

	if (frame->hd.type != NGHTTP2_HEADERS ||
	    frame->headers.cat != NGHTTP2_HCAT_REQUEST)
		return 0;
	st = h2_stream_new(ctx, frame->hd.stream_id);
	if (!st)
		return NGHTTP2_ERR_CALLBACK_FAILURE;
	nghttp2_session_set_stream_user_data(s, st->id, st);
	return 0;
}

static int on_frame(nghttp2_session *s, const nghttp2_frame *frame, void *ctx)
{
	struct h2_stream *st =
	    nghttp2_session_get_stream_user_data(s, frame->hd.stream_id);

	(void)ctx;
	if (!st || (frame->hd.type != NGHTTP2_HEADERS &&
		    frame->hd.type != NGHTTP2_DATA))
		return 0;
	if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
		st->in_end = true;
	if (!st->started)
		h2_stream_start(st);
	h2_stream_push(st);
	return 0;
}

static int on_chunk(nghttp2_session *s, uint8_t flags, int32_t id,
		    const uint8_t *p, size_t n, void *ctx)
{
	struct h2_stream *st = nghttp2_session_get_stream_user_data(s, id);

	(void)flags;
	(void)ctx;
	nghttp2_session_consume_connection(s, n);
	if (!st || !st->x) { // answered already: thrown away
		nghttp2_session_consume_stream(s, id, n);
		return 0;
	}
	if (evbuffer_add(st->in, p, n))
		return NGHTTP2_ERR_CALLBACK_FAILURE;
	h2_stream_push(st);
	return 0;
}

// An answer that is complete before its request: the rest is not wanted.
static int on_sent(nghttp2_session *s, const nghttp2_frame *frame, void *ctx)
{
	struct h2_stream *st =
	    nghttp2_session_get_stream_user_data(s, frame->hd.stream_id);

	(void)ctx;
	if (st && !st->in_end &&
	    (frame->hd.type == NGHTTP2_HEADERS ||
	     frame->hd.type == NGHTTP2_DATA) &&
	    (frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
		nghttp2_submit_rst_stream(s, NGHTTP2_FLAG_NONE, st->id,
					  NGHTTP2_NO_ERROR);
	return 0;
}

static int on_close(nghttp2_session *s, int32_t id, uint32_t code, void *ctx)
{
	struct h2_stream *st = nghttp2_session_get_stream_user_data(s, id);

	(void)code;
	(void)ctx;
	if (st)
		h2_stream_free(st);
	return 0;
}

static ssize_t on_send(nghttp2_session *s, const uint8_t *p, size_t n,
		       int flags, void *ctx)
{
	struct h2 *h = ctx;
	struct evbuffer *out = bufferevent_get_output(h->bev);

	(void)s;
	(void)flags;
	if (evbuffer_get_length(out) >= FRONT_HIGH)
		return NGHTTP2_ERR_WOULDBLOCK;
	return evbuffer_add(out, p, n) ? NGHTTP2_ERR_CALLBACK_FAILURE
				       : (ssize_t)n;
}

// --- the connection ------------------------------------------------------------------------

static bool backlog(struct h2 *h)
{
	return evbuffer_get_length(bufferevent_get_output(h->bev)) >=
	       FRONT_HIGH;
}

// Sends what may be sent, and lets guests refill what went; false: it is over.
static bool flush(struct h2 *h)
{
	bool again = true;

	while (again) {
		again = false;
		if (nghttp2_session_send(h->s))
			return false;
		for (struct h2_stream *st = h->streams; st; st = st->next) {
			if (!st->drained || !st->x || h2_stream_full(st))
				continue;
			st->drained = false;
			again |= evbuffer_get_length(st->out) > 0;
			xchg_drained(st->x);
			again |= evbuffer_get_length(st->out) > 0;
		}
		if (backlog(h))
			break;
	}
	return nghttp2_session_want_read(h->s) ||
	       nghttp2_session_want_write(h->s) ||
	       evbuffer_get_length(bufferevent_get_output(h->bev));
}

// While what we have to say waits, nothing is listened to: a client that reads
// nothing could have us queue answers, resets and acknowledgements without end.
static bool receive(struct h2 *h)
{
	struct evbuffer *in = bufferevent_get_input(h->bev);
	const char *p;
	size_t have;

	while (!backlog(h) && (have = front_peek(in, &p))) {
		ssize_t n =
		    nghttp2_session_mem_recv(h->s, (const uint8_t *)p, have);

		if (n < 0)
			return false;
		evbuffer_drain(in, (size_t)n);
		if (!flush(h))
			return false;
	}
	return true;
}

bool h2_read(struct h2 *h)
{
	bool good = receive(h);

	if (h->open)
		conn_h2_activity(h->conn);
	return good && flush(h);
}

bool h2_wrote(struct h2 *h)
{
	return flush(h) && receive(h);
}

bool h2_idle(const struct h2 *h)
{
	return !h->open;
}

void h2_waits(struct h2 *h)
{
	if (!h->stall.due)
		deadline_in(&h->stall, h->f->lim.stall_ms);
}

static void look_for_stalls(void *ctx)
{
	struct h2 *h = ctx;
	unsigned ms = h->f->lim.stall_ms;
	bool again = false;

	for (struct h2_stream *st = h->streams; st; st = st->next) {
		if (h2_stream_stalled(st, ms * 1000000ull))
			h2_stream_reset(st);
		again |= st->since != 0;
	}
	if (again)
		deadline_in(&h->stall, ms / 4 + 1);
}

static void kicked(void *ctx)
{
	struct h2 *h = ctx;

	h->kicked = false;
	if (!flush(h))
		conn_kill(h->conn);
}

static int make_session(struct h2 *h)
{
	static const nghttp2_settings_entry settings[] = {
	    {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, H2_STREAMS},
	    {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, H2_WINDOW},
	    {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, HEAD_MAX},
	};
	nghttp2_session_callbacks *cb = NULL;
	nghttp2_option *opt = NULL;
	int rc = -1;

	if (!nghttp2_session_callbacks_new(&cb) && !nghttp2_option_new(&opt)) {
		nghttp2_option_set_no_auto_window_update(opt, 1);
		nghttp2_session_callbacks_set_on_begin_headers_callback(
		    cb, on_begin);
		nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
		nghttp2_session_callbacks_set_on_frame_recv_callback(cb,
								     on_frame);
		nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
		    cb, on_chunk);
		nghttp2_session_callbacks_set_on_frame_send_callback(cb,
								     on_sent);
		nghttp2_session_callbacks_set_on_stream_close_callback(
		    cb, on_close);
		nghttp2_session_callbacks_set_send_callback(cb, on_send);
		rc = nghttp2_session_server_new2(&h->s, cb, h, opt);
	}
	nghttp2_option_del(opt);
	nghttp2_session_callbacks_del(cb);
	if (!rc)
		rc = nghttp2_submit_settings(h->s, NGHTTP2_FLAG_NONE, settings,
					     ARRAY_SIZE(settings));
	return rc;
}

struct h2 *h2_create(struct front *f, struct conn *c, struct bufferevent *bev)
{
	struct h2 *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	h->f = f;
	h->conn = c;
	h->bev = bev;
	h->kick = eng_timer_create(f->loop, kicked, h, "front h2");
	if (!h->kick || make_session(h) ||
	    deadline_init(&h->stall, f->loop, look_for_stalls, h,
			  "front h2 stall")) {
		h2_destroy(h);
		return NULL;
	}
	return h;
}

void h2_destroy(struct h2 *h)
{
	if (!h)
		return;
	while (h->streams)
		h2_stream_free(h->streams);
	nghttp2_session_del(h->s);
	eng_timer_destroy(h->kick);
	deadline_fini(&h->stall);
	free(h);
}
