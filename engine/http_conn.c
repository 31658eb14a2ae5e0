// A connection of the API over TCP. One meaning for each message (front/head.c
// refuses every other), one request at a time, and a bound on all that a stranger
// can make us hold.
//
//   HEAD     collecting a head; nothing of it yet: the connection is idle
//   BODY     collecting its body
//   HANDLED  the request is the handler's; the peer's bytes wait
//   ANSWER   flushing; then HEAD again, or
//   LINGER   our side is shut: what still comes is thrown away, so that no reset
//            overtakes the answer
//   DEAD     waiting to be freed: libevent may be inside a callback of it
//
// A whole request must come within REQUEST_MS of its first byte, a connection's
// first within REQUEST_MS of its beginning; between two there may be IDLE_MS. All
// bodies together hold at most BODIES_MAX.
#include "http_tcp_internal.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>

enum {
	REQUEST_MS = 30000,
	IDLE_MS = 60000,
	FLUSH_MS = 30000,
	LINGER_MS = 2000,
	BODIES_MAX = 64 * 1024 * 1024,
	READ_MAX = 64 * 1024, // bytes that wait while a request is handled
};

_Static_assert((int)HTTP_MAX_FIELDS == (int)HEAD_FIELDS, "one head");

// --- connections ----------------------------------------------------------------

static void drop_body(struct http_conn *c)
{
	c->srv->bodies -= c->cap;
	free(c->data);
	c->data = NULL;
	c->len = c->cap = 0;
	body_end(&c->body);
	head_free(&c->head);
}

static void conn_free(struct http_conn *c)
{
	drop_body(c);
	head_in_reset(&c->in);
	eng_timer_destroy(c->timer);
	bufferevent_free(c->bev);
	free(c);
}

void http_conns_reap(void *srv)
{
	struct http_tcp *s = srv;
	struct http_conn *c;

	while ((c = TAILQ_FIRST(&s->dead))) {
		TAILQ_REMOVE(&s->dead, c, link);
		conn_free(c);
	}
}

void http_conn_kill(struct http_conn *c)
{
	struct http_tcp *s = c->srv;

	if (c->state == DEAD)
		return;
	c->state = DEAD;
	if (c->req)
		c->req->conn = NULL; // its answer goes nowhere
	c->req = NULL;
	bufferevent_disable(c->bev, EV_READ | EV_WRITE);
	eng_timer_stop(c->timer);
	TAILQ_REMOVE(&s->conns, c, link);
	TAILQ_INSERT_TAIL(&s->dead, c, link);
	s->n--;
	eng_timer_set(s->reap_timer, 0);
}

static void enter(struct http_conn *c, enum conn_state state, unsigned ms)
{
	c->state = state;
	TAILQ_REMOVE(&c->srv->conns, c, link);
	TAILQ_INSERT_TAIL(&c->srv->conns, c, link);
	if (ms)
		eng_timer_set(c->timer, ms);
	else
		eng_timer_stop(c->timer);
}

static void timed_out(void *ctx)
{
	http_conn_kill(ctx);
}

// --- answers ----------------------------------------------------------------------

static void put_date(struct evbuffer *out)
{
	char text[64];
	time_t now = time(NULL);
	struct tm tm;

	gmtime_r(&now, &tm);
	strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &tm);
	evbuffer_add_printf(out, "Date: %s\r\n", text);
}

static void put_answer(struct http_conn *c, const char *id,
		       const struct http_answer *an)
{
	struct evbuffer *out = bufferevent_get_output(c->bev);
	size_t n = an->json ? strlen(an->json) : 0;

	evbuffer_add_printf(out, "HTTP/1.1 %d %s\r\nx-amzn-RequestId: %s\r\n",
			    an->status, http_reason(an->status), id);
	put_date(out);
	if (an->type)
		evbuffer_add_printf(out, "x-amzn-ErrorType: %s\r\n", an->type);
	if (an->retry_after_s)
		evbuffer_add_printf(out, "Retry-After: %u\r\n",
				    an->retry_after_s);
	if (an->json)
		evbuffer_add_printf(out, "Content-Type: application/json\r\n");
	if (an->status != 204)
		evbuffer_add_printf(out, "Content-Length: %zu\r\n", n);
	if (c->close)
		evbuffer_add_printf(out, "Connection: close\r\n");
	evbuffer_add(out, "\r\n", 2);
	evbuffer_add(out, an->json, n);
	enter(c, ANSWER, FLUSH_MS);
}

void http_conn_answer(struct http_req *r, const struct http_answer *an)
{
	struct http_conn *c = r->conn;

	c->req = NULL;
	drop_body(c);
	put_answer(c, r->id, an);
}

// What is no request that a handler could see.
static void refuse(struct http_conn *c, int status, const char *type,
		   const char *why)
{
	cleanup_free char *json = http_json_text(http_error_body(why, NULL));
	char id[HTTP_ID];

	http_request_id(id);
	c->close = true;
	drop_body(c);
	put_answer(c, id,
		   &(struct http_answer){
		       .status = status, .type = type, .json = json});
}

// --- a request --------------------------------------------------------------------

static enum http_method method_of(const char *name)
{
	for (enum http_method m = HTTP_GET; m <= HTTP_DELETE; m++) {
		if (!strcmp(http_method_name(m), name))
			return m;
	}
	return 0;
}

static struct http_req *request_of(struct http_conn *c)
{
	struct http_req *r = calloc(1, sizeof(*r));

	if (!r)
		abort();
	r->conn = c;
	r->method = method_of(c->head.method);
	r->t0 = util_now_ns();
	r->uid = c->srv->cfg.uid;
	r->gid = c->srv->cfg.gid;
	r->remote = true;
	r->body = c->len ? c->data : "";
	r->body_len = c->len;
	http_request_id(r->id);
	return r;
}

static bool admitted(struct http_conn *c, struct http_req *r)
{
	cleanup_free char *path = strdup(c->head.target);
	struct http_field f[HEAD_FIELDS];
	struct http_wire w = {.method = c->head.method,
			      .path = path,
			      .fields = f,
			      .nfields = c->head.n};
	char *query = path ? strchr(path, '?') : NULL;

	if (!path)
		abort();
	if (query)
		*query++ = '\0';
	w.query = query;
	for (unsigned i = 0; i < c->head.n; i++)
		f[i] =
		    (struct http_field){c->head.f[i].name, c->head.f[i].value};
	return c->srv->cfg.admit(c->srv->cfg.ctx, r, &w);
}

static void handle(struct http_conn *c)
{
	struct http_req *r = request_of(c);

	c->req = r;
	c->close = c->head.close;
	enter(c, HANDLED, 0);
	if (!admitted(c, r))
		return; // it was answered
	c->known = true;
	if (!r->method)
		http_error(r, 405, "ValidationException", 0, NULL,
			   "this method is not served");
	else if (!http_parse_target(r, c->head.target))
		http_error(r, 400, "ValidationException", 0, NULL,
			   HTTP_BAD_TARGET);
	else
		c->srv->cfg.handle(c->srv->cfg.ctx, r);
}

static bool grow(struct http_conn *c, size_t want)
{
	size_t to = c->cap ? c->cap : 4096;
	char *p;

	while (to < want)
		to *= 2;
	if (c->srv->bodies + (to - c->cap) > BODIES_MAX)
		return false;
	p = realloc(c->data, to);
	if (!p)
		return false;
	c->srv->bodies += to - c->cap;
	c->data = p;
	c->cap = to;
	return true;
}

// Takes data of the body; how many bytes, or -1 after refusing it.
static ssize_t take_data(struct http_conn *c, const char *p, size_t n)
{
	if (n > c->body.left)
		n = (size_t)c->body.left;
	if (c->len + n > HTTP_MAX_BODY) {
		refuse(c, 413, "RequestEntityTooLargeException",
		       "a body has at most 1 MiB");
		return -1;
	}
	if (c->len + n > c->cap && !grow(c, c->len + n)) {
		refuse(c, 503, "ThrottlingException",
		       "too many requests are being read; try again");
		return -1;
	}
	memcpy(c->data + c->len, p, n);
	c->len += n;
	body_took(&c->body, n);
	return (ssize_t)n;
}

static ssize_t take_body(struct http_conn *c, const char *p, size_t n)
{
	ssize_t took = body_frame(&c->body, p, n);

	if (took < 0)
		refuse(c, 400, "ValidationException",
		       "the body's chunks are malformed");
	else if (!took && c->body.left)
		took = take_data(c, p, n);
	if (c->state == BODY && c->body.done)
		handle(c);
	return took;
}

static void begin_body(struct http_conn *c)
{
	const struct head *h = &c->head;

	if (h->framing == FRAMING_LENGTH && h->length > HTTP_MAX_BODY) {
		refuse(c, 413, "RequestEntityTooLargeException",
		       "a body has at most 1 MiB");
		return;
	}
	c->state = BODY; // the time runs on
	body_begin(&c->body, h->framing, h->length);
	if (c->body.done)
		handle(c);
	else if (h->expect_continue)
		bufferevent_write(c->bev, "HTTP/1.1 100 Continue\r\n\r\n", 25);
}

static ssize_t take_head(struct http_conn *c, const char *p, size_t n)
{
	bool first = !c->in.len;
	ssize_t took = head_in_feed(&c->in, p, n);
	const char *why = "the request's head is malformed";
	int status;

	if (took < 0) {
		refuse(c, took == -E2BIG ? 431 : 400, "ValidationException",
		       why);
		return took;
	}
	if (first)
		eng_timer_set(c->timer, REQUEST_MS);
	if (!c->in.done)
		return took;
	status = head_parse_request(&c->head, &c->in, &why);
	if (status)
		refuse(c, status, "ValidationException", why);
	else
		begin_body(c);
	return took;
}

static void take(struct http_conn *c)
{
	struct evbuffer *in = bufferevent_get_input(c->bev);
	struct evbuffer_iovec v;
	ssize_t took = 1;

	while (took > 0 && (c->state == HEAD || c->state == BODY) &&
	       evbuffer_peek(in, -1, NULL, &v, 1) > 0) {
		took = c->state == HEAD ? take_head(c, v.iov_base, v.iov_len)
					: take_body(c, v.iov_base, v.iov_len);
		if (took > 0)
			evbuffer_drain(in, (size_t)took);
	}
	if (c->state == LINGER || c->state == DEAD ||
	    (c->state == ANSWER && c->close))
		evbuffer_drain(in, evbuffer_get_length(in));
}

// --- libevent ---------------------------------------------------------------------

static void on_read(struct bufferevent *bev, void *ctx)
{
	struct http_conn *c = ctx;

	(void)bev;
	eng_turn_begin(c->srv->loop, "http tcp read");
	take(c);
	eng_turn_end(c->srv->loop);
}

static void answered(struct http_conn *c)
{
	if (!c->close) {
		enter(c, HEAD, IDLE_MS);
		take(c); // what came meanwhile
		return;
	}
	shutdown(bufferevent_getfd(c->bev), SHUT_WR);
	enter(c, LINGER, LINGER_MS);
}

static void on_write(struct bufferevent *bev, void *ctx)
{
	struct http_conn *c = ctx;

	(void)bev;
	eng_turn_begin(c->srv->loop, "http tcp write");
	if (c->state == ANSWER)
		answered(c);
	eng_turn_end(c->srv->loop);
}

static void on_event(struct bufferevent *bev, short what, void *ctx)
{
	struct http_conn *c = ctx;

	eng_turn_begin(c->srv->loop, "http tcp event");
	if ((what & BEV_EVENT_EOF) &&
	    (c->state == HANDLED || c->state == ANSWER)) {
		c->close = true; // it may still read its answer
		bufferevent_disable(bev, EV_READ);
	} else {
		http_conn_kill(c);
	}
	eng_turn_end(c->srv->loop);
}

void http_conn_add(struct http_tcp *s, int fd)
{
	struct http_conn *c = calloc(1, sizeof(*c));
	int on = 1;

	if (!c)
		abort();
	c->srv = s;
	c->bev = bufferevent_socket_new(eng_loop_base(s->loop), fd,
					BEV_OPT_CLOSE_ON_FREE);
	c->timer = eng_timer_create(s->loop, timed_out, c, "http tcp");
	if (!c->bev || !c->timer)
		abort();
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	bufferevent_setcb(c->bev, on_read, on_write, on_event, c);
	bufferevent_setwatermark(c->bev, EV_READ, 0, READ_MAX);
	bufferevent_enable(c->bev, EV_READ | EV_WRITE);
	TAILQ_INSERT_TAIL(&s->conns, c, link);
	s->n++;
	eng_timer_set(c->timer, REQUEST_MS);
}
