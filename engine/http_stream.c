// Connections taken over from evhttp: chunked answers that go on for as long
// as there is something to say, and upgrades that carry bytes both ways.
//
// evhttp has no notion of either, and does not notice a peer that leaves while
// its request is being worked on. So the bufferevent under the connection gets
// our callbacks, and the evhttp_connection is kept only to own it.
//
//   TAKEN    nothing written yet; the peer's bytes wait
//   BODY     chunked body; the peer's bytes are discarded
//   RELAY    after 101; `far` is the other end
//   ENDING   flushing what is queued, at most END_FLUSH_MS
//   CLOSED   waiting for the deferred closed() and free
//
// Every way out leads through finish(), once, and frees on a later turn, since
// libevent may still be inside a callback of the bufferevent.
#include "http_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>

#define RELAY_HIGH (256 * 1024) // stop reading one end at this backlog
#define RELAY_LOW (64 * 1024)	// and go on below this one
#define END_FLUSH_MS 30000

enum stream_state { ST_TAKEN, ST_BODY, ST_RELAY, ST_ENDING, ST_CLOSED };

struct relay_end {
	struct bufferevent *bev;
	bool eof;  // nothing more will be read from it
	bool shut; // we sent it our end of file
};

struct http_stream {
	struct http_stream *next, **link; // in the server's list
	struct http_server *srv;
	struct http_req *req;
	struct evhttp_connection *conn;
	struct bufferevent *bev; // the peer's; conn owns it
	struct relay_end near, far;
	bool half_close, draining;
	enum stream_state state;
	struct http_stream_ops ops;
	void *ctx;
	struct eng_timer *end_timer;
};

static void stream_free(struct http_stream *st)
{
	*st->link = st->next;
	if (st->next)
		st->next->link = st->link;
	eng_timer_destroy(st->end_timer);
	if (st->far.bev)
		bufferevent_free(st->far.bev);
	evhttp_connection_free(st->conn); // the request's buffers go with it
	http_req_free(st->req);
	free(st);
}

static void closed_later(void *ctx)
{
	struct http_stream *st = ctx;

	if (st->ops.closed)
		st->ops.closed(st->ctx);
	stream_free(st);
}

static void finish(struct http_stream *st)
{
	if (st->state == ST_CLOSED)
		return;
	st->state = ST_CLOSED;
	bufferevent_disable(st->bev, EV_READ | EV_WRITE);
	if (st->far.bev)
		bufferevent_disable(st->far.bev, EV_READ | EV_WRITE);
	eng_loop_defer(st->srv->loop, closed_later, st, "http stream end");
}

static size_t backlog(struct bufferevent *bev)
{
	return evbuffer_get_length(bufferevent_get_output(bev));
}

size_t http_stream_backlog(const struct http_stream *st)
{
	return backlog(st->bev);
}

static void end_timed_out(void *ctx)
{
	finish(ctx);
}

// Flushes and finishes.
static void wind_up(struct http_stream *st)
{
	if (st->state == ST_CLOSED || st->state == ST_ENDING)
		return;
	st->state = ST_ENDING;
	if (!backlog(st->bev))
		finish(st);
	else
		eng_timer_set(st->end_timer, END_FLUSH_MS);
}

// --- relay ----------------------------------------------------------------

static struct relay_end *other_end(struct http_stream *st, struct relay_end *a)
{
	return a == &st->near ? &st->far : &st->near;
}

// Everything that `from` had to say has reached the kernel of the other end.
static void pass_eof(struct http_stream *st, struct relay_end *from)
{
	struct relay_end *to = other_end(st, from);

	if (!from->eof || to->shut || backlog(to->bev))
		return;
	to->shut = true;
	if (!st->half_close) {
		finish(st);
		return;
	}
	shutdown(bufferevent_getfd(to->bev), SHUT_WR);
	if (st->near.shut && st->far.shut)
		finish(st);
}

static void relay_move(struct http_stream *st, struct relay_end *from)
{
	struct relay_end *to = other_end(st, from);
	struct evbuffer *in = bufferevent_get_input(from->bev);

	if (st->ops.moved && evbuffer_get_length(in))
		st->ops.moved(st->ctx);
	if (to->shut)
		evbuffer_drain(in, evbuffer_get_length(in));
	else
		bufferevent_write_buffer(to->bev, in);
	if (backlog(to->bev) >= RELAY_HIGH)
		bufferevent_disable(from->bev, EV_READ);
}

// `to` took bytes: its other end may speak again.
static void relay_resume(struct http_stream *st, struct relay_end *to)
{
	struct relay_end *from = other_end(st, to);

	if (!from->eof)
		bufferevent_enable(from->bev, EV_READ);
	pass_eof(st, from);
}

static struct relay_end *end_of(struct http_stream *st, struct bufferevent *b)
{
	return b == st->bev ? &st->near : &st->far;
}

// --- callbacks of either bufferevent ---------------------------------------

static void on_read(struct bufferevent *bev, void *ctx)
{
	struct http_stream *st = ctx;
	struct evbuffer *in = bufferevent_get_input(bev);

	eng_turn_begin(st->srv->loop, "http stream read");
	if (st->state == ST_RELAY)
		relay_move(st, end_of(st, bev));
	else if (st->state != ST_TAKEN) // nothing to say to a body
		evbuffer_drain(in, evbuffer_get_length(in));
	eng_turn_end(st->srv->loop);
}

static void on_write(struct bufferevent *bev, void *ctx)
{
	struct http_stream *st = ctx;

	eng_turn_begin(st->srv->loop, "http stream write");
	if (st->state == ST_RELAY)
		relay_resume(st, end_of(st, bev));
	else if (st->state == ST_ENDING && !backlog(bev))
		finish(st);
	else if (st->state == ST_BODY && st->ops.drained && !backlog(bev))
		st->ops.drained(st->ctx);
	eng_turn_end(st->srv->loop);
}

static void on_event(struct bufferevent *bev, short what, void *ctx)
{
	struct http_stream *st = ctx;
	struct relay_end *end = end_of(st, bev);

	eng_turn_begin(st->srv->loop, "http stream event");
	if (st->state == ST_RELAY && (what & BEV_EVENT_EOF) &&
	    (what & BEV_EVENT_READING)) {
		relay_move(st, end);
		end->eof = true;
		bufferevent_disable(bev, EV_READ);
		pass_eof(st, end);
	} else {
		finish(st);
	}
	eng_turn_end(st->srv->loop);
}

// --- taking over -------------------------------------------------------------

struct http_stream *http_stream_take(struct http_req *r,
				     const struct http_stream_ops *ops,
				     void *ctx)
{
	static const struct timeval never = {.tv_sec = 10L * 365 * 24 * 3600};
	struct http_server *s = r->srv;
	struct evhttp_connection *conn;
	struct http_stream *st;

	if (!r->ev) {
		http_error(r, 501, "ValidationException", 0, NULL,
			   "streams are of the Unix socket");
		return NULL;
	}
	conn = evhttp_request_get_connection(r->ev);
	if (!conn) {
		evhttp_request_free(r->ev);
		http_req_free(r);
		return NULL;
	}
	st = calloc(1, sizeof(*st));
	if (!st)
		abort();
	st->srv = s;
	st->req = r;
	st->conn = conn;
	st->ops = *ops;
	st->ctx = ctx;
	st->end_timer =
	    eng_timer_create(s->loop, end_timed_out, st, "http stream flush");
	st->bev = evhttp_connection_get_bufferevent(conn);
	st->near.bev = st->bev;
	st->next = s->streams;
	st->link = &s->streams;
	if (st->next)
		st->next->link = &st->next;
	s->streams = st;
	bufferevent_setcb(st->bev, on_read, on_write, on_event, st);
	// Not NULL: an event that is not pending now would keep the old timeout,
	// and take it up again at its next run (libevent 2.1).
	bufferevent_set_timeouts(st->bev, &never, &never);
	// Bounds what a peer can make us hold; an upgrade's first bytes stay
	// in the input buffer until the relay begins.
	bufferevent_setwatermark(st->bev, EV_READ, 0, RELAY_LOW);
	bufferevent_enable(st->bev, EV_READ | EV_WRITE);
	return st;
}

const struct http_req *http_stream_req(const struct http_stream *st)
{
	return st->req;
}

void http_streams_drop(struct http_server *s)
{
	// The loop runs no more: deferred calls are dropped with it.
	while (s->streams) {
		struct http_stream *st = s->streams;

		st->state = ST_CLOSED;
		closed_later(st);
	}
}

// --- bodies --------------------------------------------------------------

static void put(struct http_stream *st, const void *p, size_t n)
{
	bufferevent_write(st->bev, p, n);
}

static void put_text(struct http_stream *st, const char *t)
{
	put(st, t, strlen(t));
}

static void put_head(struct http_stream *st, int status, const char *ctype)
{
	char line[256];

	snprintf(line, sizeof(line),
		 "HTTP/1.1 %d %s\r\nx-amzn-RequestId: %s\r\n"
		 "Content-Type: %s\r\nConnection: close\r\n",
		 status, http_reason(status), st->req->id, ctype);
	put_text(st, line);
}

void http_stream_begin(struct http_stream *st, const char *content_type)
{
	if (st->state != ST_TAKEN)
		return;
	st->state = ST_BODY;
	put_head(st, 200, content_type);
	put_text(st, "Transfer-Encoding: chunked\r\n\r\n");
}

void http_stream_write(struct http_stream *st, const void *p, size_t n)
{
	char head[24];

	if (st->state != ST_BODY || !n)
		return;
	snprintf(head, sizeof(head), "%zx\r\n", n);
	put_text(st, head);
	put(st, p, n);
	put_text(st, "\r\n");
}

void http_stream_json(struct http_stream *st, json_t *line)
{
	cleanup_free char *text = http_json_text(line);
	size_t n = text ? strlen(text) : 0;

	if (!text)
		return;
	text[n] = '\n'; // over the terminator: the length goes along
	http_stream_write(st, text, n + 1);
}

void http_stream_end(struct http_stream *st)
{
	if (st->state == ST_BODY)
		put_text(st, "0\r\n\r\n");
	wind_up(st);
}

static void whole(struct http_stream *st, int status, const char *type,
		  json_t *body)
{
	cleanup_free char *text = http_json_text(body);
	char line[160];

	if (st->state != ST_TAKEN)
		return;
	put_head(st, status, "application/json");
	if (type) {
		snprintf(line, sizeof(line), "x-amzn-ErrorType: %s\r\n", type);
		put_text(st, line);
	}
	snprintf(line, sizeof(line), "Content-Length: %zu\r\n\r\n",
		 text ? strlen(text) : 0);
	put_text(st, line);
	if (text)
		put_text(st, text);
	wind_up(st);
}

void http_stream_fail(struct http_stream *st, int status, const char *type,
		      const char *message)
{
	whole(st, status, type, http_error_body(message, NULL));
}

void http_stream_reply(struct http_stream *st, int status, json_t *body)
{
	whole(st, status, NULL, body);
}

void http_stream_relay(struct http_stream *st, const char *protocol, int fd,
		       bool half_close)
{
	char line[160];

	if (st->state != ST_TAKEN) {
		close(fd);
		return;
	}
	st->far.bev = bufferevent_socket_new(eng_loop_base(st->srv->loop), fd,
					     BEV_OPT_CLOSE_ON_FREE);
	if (!st->far.bev) {
		close(fd);
		finish(st);
		return;
	}
	st->state = ST_RELAY;
	st->half_close = half_close;
	snprintf(line, sizeof(line),
		 "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
		 "Upgrade: %s\r\nx-amzn-RequestId: %s\r\n\r\n",
		 protocol, st->req->id);
	put_text(st, line);
	bufferevent_setcb(st->far.bev, on_read, on_write, on_event, st);
	bufferevent_setwatermark(st->far.bev, EV_READ, 0, RELAY_LOW);
	bufferevent_setwatermark(st->far.bev, EV_WRITE, RELAY_LOW / 2, 0);
	bufferevent_setwatermark(st->bev, EV_WRITE, RELAY_LOW / 2, 0);
	bufferevent_enable(st->far.bev, EV_READ | EV_WRITE);
	relay_move(st, &st->near); // bytes that followed the request's head
}
