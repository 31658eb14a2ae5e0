// The guest's side of an exchange in HTTP/2 without TLS, by prior knowledge: for
// gRPC, whose trailers HTTP/1.1 applications do not send, and for clients that
// ask for it (X-aws-proxy-force-h2). One request a stream of bytes, as in guest.c.
//
// The answer's fields are written out as an HTTP/1.1 head for the one parser.
// Callbacks of nghttp2 may end the exchange; what belongs to it is freed when
// nghttp2 has returned (`busy`, `dead`).
#include "front_internal.h"
#include "h2_fields.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { GUEST_WINDOW = 256 * 1024 };

struct h2guest {
	nghttp2_session *s;
	int32_t id;
	struct evbuffer *out, *in; // of the request, of the answer
	bool out_end, in_end, failed, busy, dead;
	struct h2_text fields; // of the head being collected
	int status;
	struct head trailers;
};

static void guest_free(struct h2guest *g)
{
	nghttp2_session_del(g->s);
	if (g->in)
		evbuffer_free(g->in);
	if (g->out)
		evbuffer_free(g->out);
	h2_text_free(&g->fields);
	head_free(&g->trailers);
	free(g);
}

static void closed(struct xchg *x)
{
	struct h2guest *g = x->h2;

	if (!g)
		return;
	if (g->busy) {
		g->dead = true;
		return;
	}
	x->h2 = NULL;
	guest_free(g);
}

// Ends a section in which callbacks ran; false: the exchange is over.
static bool leave(struct xchg *x)
{
	struct h2guest *g = x->h2;

	g->busy = false;
	if (!g->dead)
		return true;
	x->h2 = NULL;
	guest_free(g);
	return false;
}

// --- the answer's fields -----------------------------------------------------------------

static int on_header(nghttp2_session *s, const nghttp2_frame *frame,
		     const uint8_t *name, size_t nn, const uint8_t *value,
		     size_t vn, uint8_t flags, void *ctx)
{
	struct xchg *x = ctx;
	struct h2guest *g = x->h2;

	(void)s;
	(void)frame;
	(void)flags;
	if (!h2_text_admit(&g->fields, name, nn, value, vn, 0) || !nn)
		return 0;
	if (name[0] != ':')
		h2_text_put(&g->fields, name, nn, value, vn);
	else if (nn == 7 && vn == 3 && memcmp(name, ":status", 7) == 0)
		g->status = atoi((const char *)value);
	return 0;
}

// The collected text as a head; 0, or not.
static int parse(struct xchg *x, struct head *h, bool trailers)
{
	struct h2guest *g = x->h2;
	struct head_in in = {.trailers = trailers};
	struct head_out o = {.p = NULL};
	bool bad = g->fields.bad || g->fields.too_large;
	const char *why;
	int rc = -EBADMSG;

	if (!trailers)
		head_put(&o, "HTTP/1.1 %03d \r\n", g->status);
	head_put(&o, "%s\r\n", g->fields.lines.p ? g->fields.lines.p : "");
	if (h2_text_whole(&in, &o) && !bad)
		rc = trailers ? head_parse_trailers(h, &in, &why)
			      : head_parse_response(h, &in, x->to_head, &why);
	head_in_reset(&in);
	h2_text_free(&g->fields);
	g->status = 0;
	return rc;
}

static int take_head(struct xchg *x, bool last)
{
	struct head h;
	bool go_on;

	if (x->answered)
		return parse(x, &x->h2->trailers, true) ? -EBADMSG : 0;
	if (parse(x, &h, false))
		return -EBADMSG;
	if (h.status == 101 || (h.status < 200 && last)) {
		head_free(&h);
		return -EBADMSG;
	}
	// In HTTP/2 the stream's end says it, whatever the fields do.
	if (h.framing != FRAMING_NONE && !h.has_length)
		h.framing = last ? FRAMING_LENGTH : FRAMING_CHUNKED;
	go_on = xchg_answer(x, &h);
	head_free(&h);
	return go_on ? 0 : -ECANCELED;
}

static int on_frame(nghttp2_session *s, const nghttp2_frame *frame, void *ctx)
{
	struct xchg *x = ctx;
	struct h2guest *g = x->h2;
	bool last = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
	int rc = 0;

	(void)s;
	if (frame->hd.stream_id != g->id)
		return 0;
	if (frame->hd.type == NGHTTP2_HEADERS)
		rc = take_head(x, last);
	if (rc == -EBADMSG)
		xchg_fail(x, 502, "the application's answer is malformed");
	if (rc)
		return NGHTTP2_ERR_CALLBACK_FAILURE;
	if (last && (frame->hd.type == NGHTTP2_HEADERS ||
		     frame->hd.type == NGHTTP2_DATA))
		g->in_end = true;
	return 0;
}

static int on_chunk(nghttp2_session *s, uint8_t flags, int32_t id,
		    const uint8_t *p, size_t n, void *ctx)
{
	struct xchg *x = ctx;

	(void)flags;
	(void)id;
	nghttp2_session_consume_connection(s, n);
	return evbuffer_add(x->h2->in, p, n) ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_close(nghttp2_session *s, int32_t id, uint32_t code, void *ctx)
{
	struct h2guest *g = ((struct xchg *)ctx)->h2;

	(void)s;
	if (id == g->id && !g->in_end)
		g->failed = true;
	if (id == g->id && code && code != NGHTTP2_NO_ERROR)
		g->failed = true;
	return 0;
}

// --- the request ---------------------------------------------------------------------------

static ssize_t on_send(nghttp2_session *s, const uint8_t *p, size_t n,
		       int flags, void *ctx)
{
	struct xchg *x = ctx;
	struct evbuffer *out = bufferevent_get_output(x->bev);

	(void)s;
	(void)flags;
	if (x->up_deaf)
		return (ssize_t)n;
	if (evbuffer_get_length(out) >= FRONT_HIGH)
		return NGHTTP2_ERR_WOULDBLOCK;
	return evbuffer_add(out, p, n) ? NGHTTP2_ERR_CALLBACK_FAILURE
				       : (ssize_t)n;
}

static ssize_t source(nghttp2_session *s, int32_t id, uint8_t *buf, size_t len,
		      uint32_t *flags, nghttp2_data_source *src, void *ctx)
{
	struct h2guest *g = src->ptr;
	int n = evbuffer_remove(g->out, buf, len);

	(void)s;
	(void)id;
	(void)ctx;
	if (n < 0)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	if (evbuffer_get_length(g->out) || !g->out_end)
		return n ? n : NGHTTP2_ERR_DEFERRED;
	*flags |= NGHTTP2_DATA_FLAG_EOF;
	return n;
}

static int submit(struct xchg *x)
{
	struct h2guest *g = x->h2;
	nghttp2_data_provider body = {.source.ptr = g, .read_callback = source};
	char authority[32], length[24];
	struct head *h = &x->req;
	struct h2_pairs p = {.n = 0};

	snprintf(authority, sizeof(authority), "localhost:%u", x->route.port);
	h2_pair(&p, ":method", h->method);
	h2_pair(&p, ":scheme", "http");
	h2_pair(&p, ":authority", authority);
	h2_pair(&p, ":path", h->target);
	h2_pairs_of(&p, h);
	if (h->te_trailers)
		h2_pair(&p, "te", "trailers");
	h2_pair_length(&p, h, length);
	g->out_end = x->req_end;
	g->id = nghttp2_submit_request(g->s, NULL, p.nv, p.n,
				       x->req_end ? NULL : &body, NULL);
	return g->id < 0 ? -ENOMEM : 0;
}

static int make_session(struct xchg *x)
{
	static const nghttp2_settings_entry settings[] = {
	    {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
	    {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, GUEST_WINDOW},
	};
	nghttp2_session_callbacks *cb = NULL;
	nghttp2_option *opt = NULL;
	int rc = -1;

	if (!nghttp2_session_callbacks_new(&cb) && !nghttp2_option_new(&opt)) {
		nghttp2_option_set_no_auto_window_update(opt, 1);
		nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
		nghttp2_session_callbacks_set_on_frame_recv_callback(cb,
								     on_frame);
		nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
		    cb, on_chunk);
		nghttp2_session_callbacks_set_on_stream_close_callback(
		    cb, on_close);
		nghttp2_session_callbacks_set_send_callback(cb, on_send);
		rc = nghttp2_session_client_new2(&x->h2->s, cb, x, opt);
	}
	nghttp2_option_del(opt);
	nghttp2_session_callbacks_del(cb);
	if (!rc)
		rc = nghttp2_submit_settings(x->h2->s, NGHTTP2_FLAG_NONE,
					     settings, ARRAY_SIZE(settings));
	return rc ? -ENOMEM : 0;
}

// --- between the two --------------------------------------------------------------------------

static void send_out(struct xchg *x)
{
	struct h2guest *g = x->h2;

	if (!g || g->busy)
		return;
	g->busy = true;
	if (nghttp2_session_send(g->s))
		xchg_fail(x, 502, "the application's stream broke");
	leave(x);
}

static void data(struct xchg *x, struct evbuffer *in, size_t n)
{
	evbuffer_remove_buffer(in, x->h2->out, n);
	nghttp2_session_resume_data(x->h2->s, x->h2->id);
	send_out(x);
}

static void end(struct xchg *x)
{
	x->h2->out_end = true;
	nghttp2_session_resume_data(x->h2->s, x->h2->id);
	send_out(x);
}

static bool full(struct xchg *x)
{
	return evbuffer_get_length(x->h2->out) +
		   evbuffer_get_length(bufferevent_get_output(x->bev)) >=
	       FRONT_HIGH;
}

static int start(struct xchg *x)
{
	int rc;

	x->h2 = calloc(1, sizeof(*x->h2));
	if (!x->h2)
		return -ENOMEM;
	x->h2->in = evbuffer_new();
	x->h2->out = evbuffer_new();
	if (!x->h2->in || !x->h2->out)
		return -ENOMEM;
	rc = make_session(x);
	if (!rc)
		rc = submit(x);
	if (!rc)
		send_out(x);
	return rc;
}

// Hands the answer down as the client takes it, and its end.
static void deliver(struct xchg *x)
{
	struct h2guest *g = x->h2;
	size_t n = g ? evbuffer_get_length(g->in) : 0;

	if (!g || g->busy)
		return;
	if (n && x->answered && !x->down->full(x->down_ctx)) {
		g->busy = true;
		x->down->data(x->down_ctx, g->in, n);
		if (!leave(x))
			return;
		nghttp2_session_consume_stream(g->s, g->id, n);
		send_out(x);
	}
	if (x->state != XCHG_TALKING || evbuffer_get_length(g->in))
		return;
	if (g->failed || (g->in_end && !x->answered)) {
		xchg_fail(x, 502, "the application reset the request");
	} else if (g->in_end) {
		g->busy = true; // the trailers are g's
		xchg_finish(x, g->trailers.n ? &g->trailers : NULL);
		leave(x);
	}
}

static void receive(struct xchg *x)
{
	struct evbuffer *in = bufferevent_get_input(x->bev);
	struct h2guest *g = x->h2;
	const char *p;
	size_t have;
	ssize_t n = 0;

	if (g->busy)
		return;
	g->busy = true;
	while (x->state == XCHG_TALKING && n >= 0 &&
	       (have = front_peek(in, &p))) {
		n = nghttp2_session_mem_recv(g->s, (const uint8_t *)p, have);
		if (n > 0 && x->state == XCHG_TALKING)
			evbuffer_drain(in, (size_t)n);
	}
	if (n < 0)
		xchg_fail(x, 502, "the application does not speak HTTP/2");
	if (!leave(x))
		return;
	send_out(x);
	deliver(x);
	// It broke the rules of the connection, which closes no stream of ours.
	if (x->state == XCHG_TALKING && !x->h2->in_end &&
	    !nghttp2_session_want_read(x->h2->s))
		xchg_fail(x, 502, "the application breaks HTTP/2");
	if (x->state == XCHG_TALKING && !xchg_full(x))
		x->down->more(x->down_ctx); // its window may have grown
}

static void eof(struct xchg *x, bool clean)
{
	(void)clean;
	if (x->bev)
		receive(x);
	if (x->state == XCHG_TALKING && !x->h2->in_end)
		xchg_fail(x, 502,
			  "the application closed the connection before its "
			  "answer was complete");
}

const struct up_ops h2guest_ops = {
    .start = start,
    .data = data,
    .end = end,
    .full = full,
    .drained = deliver,
    .read = receive,
    .wrote = send_out,
    .eof = eof,
    .close = closed,
};
