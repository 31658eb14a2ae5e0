// What a client is told in HTTP/1.1: the answers of its exchange, and our own.
//
// An answer whose length is not known comes in chunks; to HTTP/1.0, up to the end
// of the connection. One that breaks off is shown by its end: no last chunk, no
// goodbye, or a reset.
#include "conn_internal.h"

#include <sys/socket.h>

static void put_error(struct conn *c, int status, const char *text)
{
	struct head_out body = {.p = NULL}, o = {.p = NULL};

	front_error_body(&body, text);
	head_put(&o,
		 "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\n"
		 "Content-Length: %zu\r\n",
		 status, front_reason(status), body.len);
	if (status == 503 || status == 429)
		head_put(&o, "Retry-After: 1\r\n");
	head_put(&o, "Connection: %s\r\n\r\n",
		 c->close ? "close" : "keep-alive");
	if (!c->to_head && !body.bad)
		head_put(&o, "%s", body.p);
	free(body.p);
	if (!front_put_out(c->bev, &o))
		c->close = true;
}

// The answer is complete.
static void next(struct conn *c)
{
	c->x = NULL;
	if (c->close || !c->body.done ||
	    (c->eof && !evbuffer_get_length(conn_input(c)))) {
		conn_wind_up(c);
		return;
	}
	body_end(&c->body);
	c->state = CONN_HEAD;
	deadline_in(&c->limit, c->f->lim.idle_ms);
	conn_pump(c);
}

void conn_refuse(struct conn *c, int status, const char *text)
{
	c->close = true;
	c->f->stats.refused++;
	put_error(c, status, text);
	conn_wind_up(c);
}

static void put_status(struct head_out *o, const struct head *h)
{
	head_put(o, "HTTP/1.1 %d %s\r\n", h->status, h->reason);
	head_put_fields(o, h);
}

static void put_framing(struct conn *c, struct head_out *o,
			const struct head *h)
{
	bool unknown =
	    h->framing == FRAMING_CHUNKED || h->framing == FRAMING_CLOSE;

	c->chunked = unknown && !c->old;
	if (!c->body.done || c->upgrade || (unknown && c->old))
		c->close = true;
	if (c->chunked)
		head_put(o, "Transfer-Encoding: chunked\r\n");
	else if (h->has_length)
		head_put(o, "Content-Length: %llu\r\n",
			 (unsigned long long)h->length);
	else if (h->framing == FRAMING_LENGTH)
		head_put(o, "Content-Length: 0\r\n");
	head_put(o, "Connection: %s\r\n\r\n",
		 c->close ? "close" : "keep-alive");
}

static void on_head(void *ctx, const struct head *h)
{
	struct conn *c = ctx;
	struct head_out o = {.p = NULL};

	if (h->status < 200 && h->status != 101) {
		if (c->old)
			return;
		put_status(&o, h);
		head_put(&o, "\r\n");
	} else if (h->status == 101) {
		put_status(&o, h);
		head_put(&o, "Connection: Upgrade\r\nUpgrade: %s\r\n\r\n",
			 h->upgrade);
		c->state = CONN_RELAY;
		c->chunked = false;
		deadline_in(&c->limit, 0);
	} else {
		put_status(&o, h);
		put_framing(c, &o, h);
	}
	front_put_out(c->bev, &o);
	if (c->state == CONN_RELAY)
		conn_pump(c); // what came behind the handshake
}

static void on_data(void *ctx, struct evbuffer *in, size_t n)
{
	struct conn *c = ctx;
	struct evbuffer *out = bufferevent_get_output(c->bev);

	if (c->chunked)
		evbuffer_add_printf(out, "%zx\r\n", n);
	evbuffer_remove_buffer(in, out, n);
	if (c->chunked)
		evbuffer_add(out, "\r\n", 2);
}

// In a relay: the guest's end of file, once the client has it all.
void conn_relay_ends(struct conn *c)
{
	struct xchg *x = c->x;

	if (!c->guest_end || conn_unsent(c))
		return;
	if (c->eof && !evbuffer_get_length(conn_input(c))) {
		c->x = NULL;
		xchg_release(x);
		conn_wind_up(c);
	} else if (!c->said_bye) {
		c->said_bye = true;
		front_tls_bye(c->bev);
		shutdown(bufferevent_getfd(c->bev), SHUT_WR);
	}
}

static void on_end(void *ctx, const struct head *trailers)
{
	struct conn *c = ctx;
	struct head_out o = {.p = NULL};

	if (c->state == CONN_RELAY) {
		c->guest_end = true;
		bufferevent_setwatermark(c->bev, EV_WRITE, 0, 0);
		conn_relay_ends(c);
		return;
	}
	if (c->chunked) {
		head_put(&o, "0\r\n");
		if (trailers && c->te_trailers)
			head_put_fields(&o, trailers);
		head_put(&o, "\r\n");
		front_put_out(c->bev, &o);
	}
	next(c);
}

static void on_fail(void *ctx, int status, const char *text)
{
	struct conn *c = ctx;

	if (!c->body.done || c->upgrade || status == 408)
		c->close = true;
	put_error(c, status, text);
	next(c);
}

// The client gets what is there, and must see that something is missing: no last
// chunk, no goodbye; and where only the connection's end ends the body, a reset.
static void on_cut(void *ctx)
{
	struct conn *c = ctx;

	c->x = NULL;
	c->cut = true;
	conn_wind_up(c);
}

static bool on_full(void *ctx)
{
	return conn_unsent(ctx) >= FRONT_HIGH;
}

static void on_more(void *ctx)
{
	conn_pump(ctx);
}

const struct down_ops conn_ops = {
    .head = on_head,
    .data = on_data,
    .end = on_end,
    .fail = on_fail,
    .cut = on_cut,
    .full = on_full,
    .more = on_more,
};
