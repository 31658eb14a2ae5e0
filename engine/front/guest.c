// The guest's side of an exchange in HTTP/1.1.
//
// The request's head is written from what was understood, with Host
// localhost:PORT (what applications see on AWS) and Connection: close, for the
// stream is used once. The answer is read as strictly as the request was: a
// guest is hostile. A shell's stream has no heads at all; its 101 is ours.
//
//   head   collecting it in x->in; interim ones pass and it goes on
//   body   x->body says where it ends; data moves while the client has room
//   relay  after 101: bytes as they are, both ways, ends of file one by one
#include "front_internal.h"

#include <errno.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

static void pump(struct xchg *x);

static void request_head(struct xchg *x, struct head_out *o)
{
	const struct head *h = &x->req;
	const char *upgrade = h->upgrade;

	head_put(o, "%s %s HTTP/1.1\r\nHost: localhost:%u\r\n", h->method,
		 h->target, x->route.port);
	head_put_fields(o, h);
	if (x->route.protocols)
		head_put(o, "Sec-WebSocket-Protocol: %s\r\n",
			 x->route.protocols);
	if (h->te_trailers)
		head_put(o, "TE: trailers\r\n");
	if (x->chunked)
		head_put(o, "Transfer-Encoding: chunked\r\n");
	else if (h->has_length)
		head_put(o, "Content-Length: %llu\r\n",
			 (unsigned long long)h->length);
	if (upgrade)
		head_put(o, "Connection: Upgrade\r\nUpgrade: %s\r\n\r\n",
			 upgrade);
	else
		head_put(o, "Connection: close%s\r\n\r\n",
			 h->te_trailers ? ", TE" : "");
}

static int start_shell(struct xchg *x)
{
	struct head h = {.minor = 1,
			 .status = 101,
			 .reason = "Switching Protocols",
			 .upgrade = "websocket"};
	char accept[29];
	bool again;

	if (!route_accept(head_get(&x->req, "sec-websocket-key", &again),
			  accept))
		return -EINVAL;
	h.f[h.n++] = (struct head_field){.name = "Sec-WebSocket-Accept",
					 .value = accept};
	xchg_answer(x, &h);
	return 0;
}

static int start(struct xchg *x)
{
	struct head_out o = {.p = NULL};

	if (x->shell)
		return start_shell(x);
	x->chunked = x->req.framing == FRAMING_CHUNKED;
	request_head(x, &o);
	return front_put_out(x->bev, &o) ? 0 : -ENOMEM;
}

// --- towards the guest ---------------------------------------------------------------

static void data(struct xchg *x, struct evbuffer *in, size_t n)
{
	struct evbuffer *out = bufferevent_get_output(x->bev);

	if (!n)
		return;
	if (x->chunked && !x->relay)
		evbuffer_add_printf(out, "%zx\r\n", n);
	evbuffer_remove_buffer(in, out, n);
	if (x->chunked && !x->relay)
		evbuffer_add(out, "\r\n", 2);
}

// In a relay, the client's end of file once it has caught up.
static void pass_eof(struct xchg *x)
{
	if (x->relay && x->req_end &&
	    !evbuffer_get_length(bufferevent_get_output(x->bev)))
		shutdown(bufferevent_getfd(x->bev), SHUT_WR);
}

static void end(struct xchg *x)
{
	if (x->relay) {
		bufferevent_setwatermark(x->bev, EV_WRITE, 0, 0);
		pass_eof(x);
	} else if (x->chunked) {
		bufferevent_write(x->bev, "0\r\n\r\n", 5);
	}
}

static bool full(struct xchg *x)
{
	return evbuffer_get_length(bufferevent_get_output(x->bev)) >=
	       FRONT_HIGH;
}

// --- from the guest ------------------------------------------------------------------

// Each of these is one step; false: wait, or the exchange is over.
static bool step_head(struct xchg *x, struct evbuffer *in)
{
	const char *p, *why;
	size_t n = front_peek(in, &p);
	ssize_t took;
	struct head h;
	bool go_on;

	if (!n)
		return false;
	took = head_in_feed(&x->in, p, n);
	if (took < 0) {
		xchg_fail(x, 502, "the application's answer is malformed");
		return false;
	}
	evbuffer_drain(in, (size_t)took);
	if (!x->in.done)
		return true;
	if (head_parse_response(&h, &x->in, x->to_head, &why)) {
		xchg_fail(x, 502, why);
		return false;
	}
	go_on = xchg_answer(x, &h);
	if (go_on && x->answered && !x->relay)
		body_begin(&x->body, h.framing, h.length);
	head_free(&h);
	return go_on;
}

static void finish(struct xchg *x)
{
	struct head trailers = {.text = NULL};
	const char *why;

	if (x->body.trailers.done &&
	    head_parse_trailers(&trailers, &x->body.trailers, &why)) {
		xchg_fail(x, 502, why);
		return;
	}
	xchg_finish(x, trailers.n ? &trailers : NULL);
	head_free(&trailers);
}

static bool step_body(struct xchg *x, struct evbuffer *in)
{
	size_t have = evbuffer_get_length(in), n;
	const char *p = NULL;
	ssize_t took;

	if (x->body.done) {
		finish(x);
		return false;
	}
	if (!have || x->down->full(x->down_ctx))
		return false;
	if (x->body.left) {
		n = (size_t)MIN((uint64_t)have, x->body.left);
		x->down->data(x->down_ctx, in, n);
		body_took(&x->body, n);
		return x->state == XCHG_TALKING;
	}
	n = front_peek(in, &p);
	took = body_frame(&x->body, p, n);
	if (took < 0) {
		xchg_fail(x, 502, "the application's body is malformed");
		return false;
	}
	evbuffer_drain(in, (size_t)took);
	return true;
}

static bool step_relay(struct xchg *x, struct evbuffer *in)
{
	size_t have = evbuffer_get_length(in);

	if (have && !x->down->full(x->down_ctx))
		x->down->data(x->down_ctx, in, have);
	return false;
}

// The stream has ended and everything it brought was looked at.
static void ended(struct xchg *x)
{
	if (x->relay) {
		if (x->up_clean)
			xchg_finish(x, NULL);
		else
			xchg_fail(x, 502, "the application's stream broke");
	} else if (!x->answered) {
		xchg_fail(x, 502,
			  "the application closed the connection without an "
			  "answer");
	} else if (x->body.framing == FRAMING_CLOSE && x->up_clean) {
		xchg_finish(x, NULL);
	} else {
		xchg_fail(x, 502, "the application's answer was cut short");
	}
}

static void pump(struct xchg *x)
{
	struct evbuffer *in = bufferevent_get_input(x->bev);
	bool go_on = true;

	if (x->pumping)
		return;
	x->pumping = true;
	while (go_on && x->state == XCHG_TALKING) {
		if (x->relay)
			go_on = step_relay(x, in);
		else if (x->answered)
			go_on = step_body(x, in);
		else
			go_on = step_head(x, in);
	}
	x->pumping = false;
	if (x->state == XCHG_TALKING && x->up_eof && x->down_ctx &&
	    !evbuffer_get_length(in))
		ended(x);
}

static void wrote(struct xchg *x)
{
	pass_eof(x);
}

static void eof(struct xchg *x, bool clean)
{
	(void)clean;
	pump(x);
}

static void closed(struct xchg *x)
{
	(void)x;
}

const struct up_ops guest_ops = {
    .start = start,
    .data = data,
    .end = end,
    .full = full,
    .drained = pump,
    .read = pump,
    .wrote = wrote,
    .eof = eof,
    .close = closed,
};
