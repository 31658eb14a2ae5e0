// One stream of a client in HTTP/2: its request's head, the bytes both ways, and
// the answer.
//
//   fields   collected until the head's frame ends (h2_stream_start())
//   x        the exchange; NULL before, and once it has said its last: the answer
//            then goes out of `out` by itself
//   in       bytes of the request that the guest has not taken: their part of the
//            stream's window is not given back
//   out      bytes of the answer that the stream's window has not taken
//
// A stream is freed when nghttp2 says that it is closed, and nowhere else.
#include "h2_internal.h"

#include <stdio.h>
#include <string.h>

static void forget(struct h2_stream *st)
{
	if (st->x) {
		st->h2->open--;
		conn_h2_activity(st->h2->conn); // idle from now on
	}
	st->x = NULL;
}

static void head_done(struct h2_stream *st)
{
	free(st->method);
	free(st->path);
	free(st->host);
	free(st->cookie.p);
	st->method = st->path = st->host = NULL;
	st->cookie = (struct head_out){.p = NULL};
	h2_text_free(&st->fields);
}

void h2_stream_free(struct h2_stream *st)
{
	struct xchg *x = st->x;

	forget(st);
	if (x)
		xchg_drop(x);
	*st->link = st->next;
	if (st->next)
		st->next->link = st->link;
	head_done(st);
	head_free(&st->trailers);
	if (st->in)
		evbuffer_free(st->in);
	if (st->out)
		evbuffer_free(st->out);
	free(st);
}

struct h2_stream *h2_stream_new(struct h2 *h, int32_t id)
{
	struct h2_stream *st = calloc(1, sizeof(*st));

	if (!st)
		return NULL;
	st->h2 = h;
	st->id = id;
	st->in = evbuffer_new();
	st->out = evbuffer_new();
	st->next = h->streams;
	st->link = &h->streams;
	if (st->next)
		st->next->link = &st->next;
	h->streams = st;
	if (!st->in || !st->out) {
		h2_stream_free(st);
		return NULL;
	}
	return st;
}

void h2_stream_push(struct h2_stream *st)
{
	size_t n;

	while (st->x && (n = evbuffer_get_length(st->in)) &&
	       !xchg_full(st->x)) {
		xchg_body(st->x, st->in, n);
		nghttp2_session_consume_stream(st->h2->s, st->id, n);
	}
	if (st->x && st->in_end && !st->in_told &&
	    !evbuffer_get_length(st->in)) {
		st->in_told = true;
		xchg_body_end(st->x);
	}
}

// --- the answer ----------------------------------------------------------------------

static ssize_t source(nghttp2_session *s, int32_t id, uint8_t *buf, size_t len,
		      uint32_t *flags, nghttp2_data_source *src, void *ctx)
{
	struct h2_stream *st = src->ptr;
	struct h2_pairs p = {.n = 0};
	int n = evbuffer_remove(st->out, buf, len);

	(void)ctx;
	if (n < 0)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	st->drained = true;
	if (n) {
		conn_h2_activity(st->h2->conn);
		st->since = evbuffer_get_length(st->out) ? util_now_ns() : 0;
	}
	if (evbuffer_get_length(st->out) || !st->out_end)
		return n ? n : NGHTTP2_ERR_DEFERRED;
	*flags |= NGHTTP2_DATA_FLAG_EOF;
	if (st->trailers.n) {
		*flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
		h2_pairs_of(&p, &st->trailers);
		nghttp2_submit_trailer(s, id, p.nv, p.n);
	}
	return n;
}

static void on_head(void *ctx, const struct head *h)
{
	struct h2_stream *st = ctx;
	struct h2_pairs p = {.n = 0};
	nghttp2_data_provider body = {.source.ptr = st,
				      .read_callback = source};
	char status[8], length[24];
	bool none = h->framing == FRAMING_NONE ||
		    (h->framing == FRAMING_LENGTH && !h->length);

	snprintf(status, sizeof(status), "%d", h->status);
	h2_pair(&p, ":status", status);
	h2_pairs_of(&p, h);
	if (h->status < 200) {
		nghttp2_submit_headers(st->h2->s, NGHTTP2_FLAG_NONE, st->id,
				       NULL, p.nv, p.n, NULL);
	} else {
		h2_pair_length(&p, h, length);
		nghttp2_submit_response(st->h2->s, st->id, p.nv, p.n,
					none ? NULL : &body);
	}
	h2_kick(st->h2);
}

static void waits(struct h2_stream *st)
{
	if (!st->since)
		st->since = util_now_ns();
	h2_waits(st->h2);
}

bool h2_stream_stalled(struct h2_stream *st, uint64_t ns)
{
	nghttp2_session *s = st->h2->s;

	return st->since && util_now_ns() - st->since >= ns &&
	       (nghttp2_session_get_stream_remote_window_size(s, st->id) <= 0 ||
		nghttp2_session_get_remote_window_size(s) <= 0);
}

void h2_stream_reset(struct h2_stream *st)
{
	struct xchg *x = st->x;

	forget(st);
	if (x)
		xchg_drop(x);
	evbuffer_drain(st->out, evbuffer_get_length(st->out));
	st->since = 0;
	nghttp2_submit_rst_stream(st->h2->s, NGHTTP2_FLAG_NONE, st->id,
				  NGHTTP2_CANCEL);
	h2_kick(st->h2);
}

static void on_data(void *ctx, struct evbuffer *in, size_t n)
{
	struct h2_stream *st = ctx;

	evbuffer_remove_buffer(in, st->out, n);
	waits(st);
	nghttp2_session_resume_data(st->h2->s, st->id);
	h2_kick(st->h2);
}

static bool keep_trailers(struct h2_stream *st, const struct head *from)
{
	struct head_in in = {.trailers = true};
	struct head_out o = {.p = NULL};
	const char *why;
	bool good;

	head_put_fields(&o, from);
	head_put(&o, "\r\n");
	good = h2_text_whole(&in, &o) &&
	       !head_parse_trailers(&st->trailers, &in, &why);
	head_in_reset(&in);
	return good;
}

static void on_cut(void *ctx)
{
	struct h2_stream *st = ctx;

	forget(st);
	nghttp2_submit_rst_stream(st->h2->s, NGHTTP2_FLAG_NONE, st->id,
				  NGHTTP2_INTERNAL_ERROR);
	h2_kick(st->h2);
}

static void on_end(void *ctx, const struct head *trailers)
{
	struct h2_stream *st = ctx;

	if (trailers && !keep_trailers(st, trailers)) {
		on_cut(st);
		return;
	}
	forget(st);
	st->out_end = true;
	nghttp2_session_resume_data(st->h2->s, st->id);
	h2_kick(st->h2);
}

static void on_fail(void *ctx, int status, const char *text)
{
	struct h2_stream *st = ctx;
	struct head h = {.status = status, .framing = FRAMING_CLOSE};
	char type[] = "content-type", retry[] = "retry-after";
	struct head_out o = {.p = NULL};

	forget(st);
	h.f[h.n++] =
	    (struct head_field){.name = type, .value = "application/json"};
	if (status == 503 || status == 429)
		h.f[h.n++] = (struct head_field){.name = retry, .value = "1"};
	front_error_body(&o, text);
	if (!o.bad)
		evbuffer_add(st->out, o.p, o.len);
	free(o.p);
	waits(st);
	st->out_end = true;
	on_head(st, &h);
}

bool h2_stream_full(struct h2_stream *st)
{
	return evbuffer_get_length(st->out) >= FRONT_HIGH;
}

static bool on_full(void *ctx)
{
	return h2_stream_full(ctx);
}

static void on_more(void *ctx)
{
	struct h2_stream *st = ctx;

	h2_stream_push(st);
	h2_kick(st->h2); // windows to give back
}

static const struct down_ops h2_ops = {
    .head = on_head,
    .data = on_data,
    .end = on_end,
    .fail = on_fail,
    .cut = on_cut,
    .full = on_full,
    .more = on_more,
};

// --- the request ---------------------------------------------------------------------

static bool is(const uint8_t *name, size_t n, const char *what)
{
	return n == strlen(what) && memcmp(name, what, n) == 0;
}

static void pseudo(struct h2_stream *st, char **to, const uint8_t *v, size_t n)
{
	if (*to && (strlen(*to) != n || memcmp(*to, v, n) != 0))
		st->fields.bad = true; // Host is not :authority
	if (!*to)
		*to = strndup((const char *)v, n);
	st->fields.bad |= !*to;
}

void h2_stream_field(struct h2_stream *st, const uint8_t *name, size_t nn,
		     const uint8_t *value, size_t vn)
{
	struct h2_text *t = &st->fields;

	if (!h2_text_admit(t, name, nn, value, vn, st->cookie.len))
		return;
	st->has_length |= is(name, nn, "content-length");
	if (is(name, nn, ":method"))
		pseudo(st, &st->method, value, vn);
	else if (is(name, nn, ":path"))
		pseudo(st, &st->path, value, vn);
	else if (is(name, nn, ":authority") || is(name, nn, "host"))
		pseudo(st, &st->host, value, vn);
	else if (is(name, nn, "cookie"))
		head_put(&st->cookie, "%s%.*s", st->cookie.len ? "; " : "",
			 (int)vn, (const char *)value);
	else if (nn && name[0] != ':')
		h2_text_put(t, name, nn, value, vn);
}

// 0, or the status that refuses it.
static int head_of(struct h2_stream *st, struct head *h, const char **why)
{
	struct head_out o = {.p = NULL};
	struct head_in in = {.buf = NULL};
	int rc = 400;

	*why = "a malformed request";
	if (st->fields.too_large) {
		*why = "the request's head is larger than 64 KiB";
		return 431;
	}
	if (st->fields.bad || st->cookie.bad || !st->method || !st->path ||
	    !st->host)
		return 400;
	head_put(&o, "%s %s HTTP/1.1\r\nhost: %s\r\n%s", st->method, st->path,
		 st->host, st->fields.lines.p ? st->fields.lines.p : "");
	if (st->cookie.len)
		head_put(&o, "cookie: %s\r\n", st->cookie.p);
	if (!st->in_end && !st->has_length)
		head_put(&o, "transfer-encoding: chunked\r\n");
	head_put(&o, "\r\n");
	if (h2_text_whole(&in, &o))
		rc = head_parse_request(h, &in, why);
	head_in_reset(&in);
	return rc;
}

void h2_stream_start(struct h2_stream *st)
{
	const char *why;
	struct head h;
	int rc = head_of(st, &h, &why);

	st->started = true;
	head_done(st);
	if (rc) {
		st->h2->f->stats.refused++;
		on_fail(st, rc, why);
		return;
	}
	h.upgrade = NULL;
	st->x = xchg_create(conn_place(st->h2->conn), &h2_ops, st, &h);
	if (!st->x) {
		on_fail(st, 500, "no memory for another request");
		return;
	}
	st->h2->open++;
	xchg_start(st->x);
}
