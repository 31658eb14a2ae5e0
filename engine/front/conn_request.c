// What a client says in HTTP/1.1: heads, bodies, and bytes after 101.
//
// One loop takes steps until it must wait for bytes or for the guest. A step
// looks at the input's front and drains what it took; it may begin an exchange,
// which may be answered before the step returns, so a state is looked at anew
// behind everything that can end one.
#include "conn_internal.h"

#include <errno.h>
#include <string.h>

static const char h2_preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

static void start(struct conn *c)
{
	struct head h;
	const char *why = "malformed";
	int rc = head_parse_request(&h, &c->in, &why);

	c->to_head = false;
	c->body = (struct body){.done = true};
	if (rc) {
		conn_refuse(c, rc, why);
		return;
	}
	c->first = false;
	c->close = h.close;
	c->old = !h.minor;
	c->to_head = strcmp(h.method, "HEAD") == 0;
	c->te_trailers = h.te_trailers;
	c->upgrade = h.upgrade != NULL;
	c->chunked = false;
	body_begin(&c->body, h.framing, h.length);
	c->state = CONN_BUSY;
	deadline_in(&c->limit, c->body.done ? 0 : c->f->lim.body_ms);
	c->x = xchg_create(&c->place, &conn_ops, c, &h);
	if (!c->x) {
		conn_ops.fail(c, 500, "no memory for another request");
		return;
	}
	xchg_start(c->x);
}

// The start of HTTP/2 with prior knowledge: wait, yes, or no.
enum preface { PREFACE_NO, PREFACE_WAIT, PREFACE_YES };
static enum preface preface(struct conn *c, struct evbuffer *in)
{
	char got[sizeof(h2_preface) - 1];
	ssize_t n;

	if (!c->first || c->tls || c->in.len)
		return PREFACE_NO;
	n = evbuffer_copyout(in, got, sizeof(got));
	if (n < 4)
		return n <= 0 || memcmp(got, h2_preface, (size_t)n) == 0
			   ? PREFACE_WAIT
			   : PREFACE_NO;
	if (memcmp(got, h2_preface, (size_t)n) != 0)
		return PREFACE_NO;
	return n == sizeof(got) ? PREFACE_YES : PREFACE_WAIT;
}

// --- steps -------------------------------------------------------------------------

// Each of these is one step; false: wait.
static bool step_head(struct conn *c)
{
	struct evbuffer *in = conn_input(c);
	enum preface pre = preface(c, in);
	const char *p = NULL;
	size_t n;
	ssize_t took;

	if (conn_unsent(c) >= FRONT_HIGH)
		return false; // answers that nobody reads: no more of them
	if (pre != PREFACE_NO) {
		if (pre == PREFACE_YES)
			conn_become_h2(c);
		return false;
	}
	n = front_peek(in, &p);
	if (!n)
		return false;
	if (!c->in.len && !c->first)
		deadline_in(&c->limit, c->f->lim.head_ms);
	took = head_in_feed(&c->in, p, n);
	if (took == -E2BIG) {
		conn_refuse(c, 431, "the request's head is larger than 64 KiB");
		return false;
	}
	if (took < 0) {
		conn_refuse(c, 400,
			    "control characters or bare line ends in the "
			    "request's head");
		return false;
	}
	evbuffer_drain(in, (size_t)took);
	if (c->in.done)
		start(c);
	return true;
}

void conn_bad_body(struct conn *c, int status, const char *text)
{
	struct xchg *x = ptr_steal(c->x);
	bool answered = x->answered;

	xchg_drop(x);
	if (answered)
		conn_kill(c);
	else
		conn_refuse(c, status, text);
}

static bool step_body(struct conn *c)
{
	struct evbuffer *in = conn_input(c);
	size_t have = evbuffer_get_length(in), n;
	const char *p = NULL;
	ssize_t took;

	if (c->body.done || xchg_full(c->x) || !have)
		return false;
	if (c->body.left) {
		n = (size_t)MIN((uint64_t)have, c->body.left);
		body_took(&c->body, n);
		xchg_body(c->x, in, n);
	} else {
		n = front_peek(in, &p);
		took = body_frame(&c->body, p, n);
		if (took < 0) {
			conn_bad_body(c, 400,
				      "the request's body is malformed");
			return false;
		}
		evbuffer_drain(in, (size_t)took);
	}
	if (!c->x)
		return true; // it has ended meanwhile
	if (c->body.done) {
		deadline_in(&c->limit, 0);
		xchg_body_end(c->x); // trailers of a request end here
	}
	return true;
}

static bool step_relay(struct conn *c)
{
	struct evbuffer *in = conn_input(c);
	size_t have = evbuffer_get_length(in);

	if (!have || xchg_full(c->x))
		return false;
	xchg_body(c->x, in, have);
	return true;
}

// The client's end of file, once everything before it was looked at.
static void client_ended(struct conn *c)
{
	if (c->state == CONN_HEAD) {
		conn_wind_up(c);
	} else if (c->state == CONN_BUSY && !c->body.done) {
		conn_kill(c);
	} else if (c->state == CONN_BUSY) {
		deadline_in(&c->limit, c->f->lim.half_closed_ms);
	} else if (c->state == CONN_RELAY) {
		xchg_body_end(c->x);
		conn_relay_ends(c);
	}
}

void conn_pump(struct conn *c)
{
	bool go_on = true;

	if (c->pumping)
		return;
	c->pumping = true;
	while (go_on) {
		if (c->state == CONN_HEAD)
			go_on = step_head(c);
		else if (c->state == CONN_BUSY && c->x)
			go_on = step_body(c);
		else if (c->state == CONN_RELAY)
			go_on = step_relay(c);
		else
			go_on = false;
	}
	c->pumping = false;
	// Behind a body that still waits for its guest the end is not seen yet.
	if (c->bev && c->eof && !evbuffer_get_length(conn_input(c)))
		client_ended(c);
}
