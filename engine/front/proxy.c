// One exchange: a request, the way to its guest, and the answer.
//
//   start    route, microVM, token, load: each may refuse, with a small body
//   open     the engine connects to the guest's port; a suspended microVM is
//            resumed meanwhile, and the client's body waits in its socket
//   talk     guest.c or h2guest.c speaks to the guest on a stream of its own:
//            one request a stream, so that nothing which a guest does with it
//            can reach another request
//   end      one of xchg_finish(), xchg_fail(), xchg_drop(), xchg_release()
//
// Every way out leads through over(), once. The client's side forgets the
// exchange before or in the call that tells it so.
#include "front_internal.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

const char *front_reason(int status)
{
	static const struct {
		int status;
		const char *reason;
	} known[] = {
	    {400, "Bad Request"},
	    {401, "Unauthorized"},
	    {403, "Forbidden"},
	    {404, "Not Found"},
	    {408, "Request Timeout"},
	    {417, "Expectation Failed"},
	    {426, "Upgrade Required"},
	    {429, "Too Many Requests"},
	    {431, "Request Header Fields Too Large"},
	    {500, "Internal Server Error"},
	    {501, "Not Implemented"},
	    {502, "Bad Gateway"},
	    {503, "Service Unavailable"},
	    {504, "Gateway Timeout"},
	    {505, "HTTP Version Not Supported"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
		if (known[i].status == status)
			return known[i].reason;
	}
	return "Error";
}

void front_error_body(struct head_out *o, const char *text)
{
	head_put(o, "{\"message\":\"");
	for (size_t n = 0; *text && n < 300; text++, n++) {
		unsigned char c = (unsigned char)*text;

		if (c == '"' || c == '\\')
			head_put(o, "\\%c", c);
		else
			head_put(o, "%c", c < 0x20 || c >= 0x7f ? '?' : c);
	}
	head_put(o, "\"}\n");
}

bool front_put_out(struct bufferevent *bev, struct head_out *o)
{
	bool good = !o->bad && !bufferevent_write(bev, o->p, o->len);

	free(o->p);
	*o = (struct head_out){.p = NULL};
	return good;
}

size_t front_peek(struct evbuffer *in, const char **p)
{
	struct evbuffer_iovec v;

	if (evbuffer_peek(in, -1, NULL, &v, 1) < 1)
		return 0;
	*p = v.iov_base;
	return v.iov_len;
}

// --- the end -------------------------------------------------------------------------

// Its client's connection is done with it.
static void let_go(struct xchg *x)
{
	struct place *p = ptr_steal(x->place);

	if (x->loaded && p)
		place_done(p, x->vm);
}

static void over(struct xchg *x)
{
	struct front *f = x->f;

	if (x->state == XCHG_DEAD)
		return;
	if (x->state == XCHG_OPENING) {
		f->ops->cancel(f->ctx, x->opening, x->shell);
		f->stats.opening--;
	}
	if (x->up)
		x->up->close(x);
	x->state = XCHG_DEAD;
	x->down_ctx = NULL;
	deadline_fini(&x->limit);
	if (x->bev)
		bufferevent_free(x->bev);
	x->bev = NULL;
	let_go(x);
	if (x->loaded)
		place_load_drop(f, x->vm);
	x->vm = NULL;
	*x->link = x->next;
	if (x->next)
		x->next->link = x->link;
	f->stats.exchanges--;
	x->next = f->dead_xchgs;
	f->dead_xchgs = x;
	front_reap_later(f);
}

void xchg_free(struct xchg *x)
{
	head_free(&x->req);
	route_free(&x->route);
	head_in_reset(&x->in);
	body_end(&x->body);
	free(x);
}

void xchg_fail(struct xchg *x, int status, const char *text)
{
	void *down = x->down_ctx;
	bool answered = x->answered;
	char copy[320];

	if (x->state == XCHG_DEAD)
		return;
	x->f->stats.refused++;
	snprintf(copy, sizeof(copy), "%s", text); // may live in x
	over(x);
	if (!down)
		return;
	if (answered)
		x->down->cut(down);
	else
		x->down->fail(down, status, copy);
}

void xchg_finish(struct xchg *x, const struct head *trailers)
{
	void *down = x->down_ctx;

	if (x->relay && down) { // end of file only: the client may go on
		if (x->end_said)
			return;
		x->end_said = true;
		deadline_in(&x->limit, x->f->lim.half_closed_ms);
		x->down->end(down, NULL);
		return;
	}
	over(x);
	if (down)
		x->down->end(down, trailers);
}

void xchg_drop(struct xchg *x)
{
	over(x);
}

static bool flushed(struct xchg *x)
{
	return !evbuffer_get_length(bufferevent_get_output(x->bev));
}

void xchg_release(struct xchg *x)
{
	if (x->state != XCHG_TALKING || flushed(x)) {
		over(x);
		return;
	}
	let_go(x);
	x->down_ctx = NULL;
	x->state = XCHG_FLUSHING;
	bufferevent_setwatermark(x->bev, EV_WRITE, 0, 0);
	deadline_in(&x->limit, x->f->lim.half_closed_ms);
}

static void limit_passed(void *ctx)
{
	struct xchg *x = ctx;

	if (x->state == XCHG_OPENING)
		xchg_fail(x, 504, "the microVM was not ready in time");
	else if (x->state == XCHG_FLUSHING)
		over(x);
	else
		xchg_fail(x, 504, "the application did not answer in time");
}

void xchg_active(struct xchg *x)
{
	const struct front_limits *l = &x->f->lim;
	unsigned ms = !x->relay	   ? l->answer_ms
		      : x->req_end ? l->half_closed_ms
				   : l->relay_ms;

	if (x->vm)
		x->f->ops->traffic(x->f->ctx, x->vm);
	if (x->state == XCHG_TALKING && !(x->relay && x->up_eof))
		deadline_in(&x->limit, ms);
}

// --- the guest's stream --------------------------------------------------------------

static void on_read(struct bufferevent *bev, void *ctx)
{
	struct xchg *x = ctx;

	eng_turn_begin(x->f->loop, "front guest read");
	if (x->state == XCHG_FLUSHING) {
		struct evbuffer *in = bufferevent_get_input(bev);

		evbuffer_drain(in, evbuffer_get_length(in));
	} else if (x->state == XCHG_TALKING) {
		xchg_active(x);
		x->up->read(x);
	}
	eng_turn_end(x->f->loop);
}

static void on_write(struct bufferevent *bev, void *ctx)
{
	struct xchg *x = ctx;

	(void)bev;
	eng_turn_begin(x->f->loop, "front guest write");
	if (x->state == XCHG_FLUSHING && flushed(x)) {
		over(x);
	} else if (x->state == XCHG_TALKING) {
		xchg_active(x);
		x->up->wrote(x);
		if (x->state == XCHG_TALKING && x->down_ctx && !xchg_full(x))
			x->down->more(x->down_ctx);
	}
	eng_turn_end(x->f->loop);
}

// The guest hears no more; what it has said before is still to be read (an
// early 413, for one).
static void deaf(struct xchg *x)
{
	struct evbuffer *out = bufferevent_get_output(x->bev);

	x->up_deaf = true;
	bufferevent_disable(x->bev, EV_WRITE);
	evbuffer_drain(out, evbuffer_get_length(out));
	if (x->down_ctx)
		x->down->more(x->down_ctx);
}

static void on_event(struct bufferevent *bev, short what, void *ctx)
{
	struct xchg *x = ctx;
	bool writing = (what & BEV_EVENT_WRITING) != 0;

	(void)bev;
	eng_turn_begin(x->f->loop, "front guest event");
	if (x->state == XCHG_FLUSHING) {
		over(x);
	} else if (x->state == XCHG_TALKING && writing && !x->relay) {
		deaf(x);
	} else if (x->state == XCHG_TALKING) {
		x->up_eof = true;
		x->up_clean = !writing && (what & BEV_EVENT_EOF);
		x->up->eof(x, x->up_clean);
	}
	eng_turn_end(x->f->loop);
}

static int talk(struct xchg *x, int fd)
{
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	x->bev = bufferevent_socket_new(eng_loop_base(x->f->loop), fd,
					BEV_OPT_CLOSE_ON_FREE);
	if (!x->bev) {
		close(fd);
		return -ENOMEM;
	}
	x->state = XCHG_TALKING;
	x->up = x->route.h2 ? &h2guest_ops : &guest_ops;
	bufferevent_setcb(x->bev, on_read, on_write, on_event, x);
	bufferevent_setwatermark(x->bev, EV_READ, 0, FRONT_LOW);
	bufferevent_setwatermark(x->bev, EV_WRITE, FRONT_LOW, 0);
	bufferevent_enable(x->bev, EV_READ | EV_WRITE);
	xchg_active(x);
	return x->up->start(x);
}

static void begin(struct xchg *x, int fd)
{
	static const struct head go_on = {
	    .minor = 1, .status = 100, .reason = "Continue"};

	if (talk(x, fd)) {
		xchg_fail(x, 500, "no memory for another request");
		return;
	}
	if (x->state == XCHG_TALKING && x->req.expect_continue && !x->answered)
		x->down->head(x->down_ctx, &go_on);
	if (x->state == XCHG_TALKING && x->down_ctx)
		x->down->more(x->down_ctx);
}

static void refused(struct xchg *x, int rc, const char *why)
{
	char text[96];

	switch (rc) {
	case -ENOENT:
		xchg_fail(x, 404, why ? why : "this microVM is no more");
		return;
	case -EDQUOT:
		xchg_fail(x, 429, why ? why : "too many requests");
		return;
	case -EBUSY:
		xchg_fail(x, 503, why ? why : "the microVM is not ready");
		return;
	case -ETIMEDOUT:
		xchg_fail(x, 504,
			  why ? why : "the microVM was not ready in time");
		return;
	case -ECONNREFUSED:
		snprintf(text, sizeof(text), "nothing listens on port %u",
			 x->route.port);
		xchg_fail(x, 502, why ? why : text);
		return;
	default:
		xchg_fail(x, 502, why ? why : "the microVM is not reachable");
	}
}

static void opened(void *arg, int fd, const char *why)
{
	struct xchg *x = arg;

	eng_turn_begin(x->f->loop, "front opened");
	if (x->state == XCHG_OPENING) {
		x->opening = NULL;
		x->state = XCHG_ROUTED;
		x->f->stats.opening--;
		if (fd < 0)
			refused(x, fd, why);
		else
			begin(x, fd);
	} else if (fd >= 0) {
		close(fd);
	}
	eng_turn_end(x->f->loop);
}

// --- the start -----------------------------------------------------------------------

struct xchg *xchg_create(struct place *p, const struct down_ops *down,
			 void *down_ctx, struct head *req)
{
	struct front *f = p->f;
	struct xchg *x = calloc(1, sizeof(*x));

	if (!x || deadline_init(&x->limit, f->loop, limit_passed, x,
				"front exchange")) {
		free(x);
		head_free(req);
		return NULL;
	}
	x->f = f;
	x->down = down;
	x->down_ctx = down_ctx;
	x->place = p;
	x->req = *req;
	*req = (struct head){.text = NULL};
	x->to_head = strcmp(x->req.method, "HEAD") == 0;
	x->req_end = x->req.framing == FRAMING_NONE ||
		     (x->req.framing == FRAMING_LENGTH && !x->req.length);
	x->next = f->xchgs;
	x->link = &f->xchgs;
	if (x->next)
		x->next->link = &x->next;
	f->xchgs = x;
	f->stats.exchanges++;
	f->stats.requests++;
	return x;
}

static enum front_verdict ask(struct xchg *x, unsigned port, bool shell)
{
	const struct route *r = &x->route;

	return x->f->ops->allow(x->f->ctx, x->vm,
				r->token_len ? r->token : NULL, r->token_len,
				port, shell);
}

static bool allowed(struct xchg *x)
{
	enum front_verdict v;

	if (x->route.shell_path && x->f->ops->shell &&
	    ask(x, ROUTE_PORT_SHELL, true) == FRONT_OK) {
		x->shell = true;
		return true;
	}
	v = ask(x, x->route.port, false);
	switch (v) {
	case FRONT_OK:
		return true;
	case FRONT_UNAUTHORIZED:
		xchg_fail(x, 401, "no token: send it as X-aws-proxy-auth");
		return false;
	case FRONT_PORT:
		xchg_fail(x, 403, "Access to port denied");
		return false;
	case FRONT_FORBIDDEN:
		break;
	}
	xchg_fail(x, 403, "the token is not valid for this microVM");
	return false;
}

// A shell's handshake is answered here; it must be one.
static bool shell_ready(struct xchg *x)
{
	bool again, key_again;
	char accept[29];
	const char *v = head_get(&x->req, "sec-websocket-version", &again);
	const char *k = head_get(&x->req, "sec-websocket-key", &key_again);

	if (v && !again && strcmp(v, "13") == 0 && !key_again &&
	    route_accept(k, accept))
		return true;
	xchg_fail(x, 400, "not a WebSocket handshake of version 13");
	return false;
}

void xchg_start(struct xchg *x)
{
	struct front *f = x->f;
	const char *why = "malformed";
	int rc = route_of(&x->route, &x->req, f->domain, &why);

	if (rc) {
		xchg_fail(x, rc, why);
		return;
	}
	x->vm = f->ops->find(f->ctx, x->route.label);
	if (!x->vm) {
		xchg_fail(x, 404, "no microVM has this host name");
		return;
	}
	if (!allowed(x) || (x->shell && !shell_ready(x)))
		return;
	x->loaded = place_take(x->place, x->vm);
	if (!x->loaded) {
		xchg_fail(x, 429, "too many requests to this microVM at once");
		return;
	}
	f->ops->traffic(f->ctx, x->vm);
	x->state = XCHG_OPENING;
	f->stats.opening++;
	deadline_in(&x->limit, f->lim.open_ms);
	if (x->shell)
		x->opening = f->ops->shell(f->ctx, x->vm, opened, x);
	else
		x->opening =
		    f->ops->open(f->ctx, x->vm, x->route.port, opened, x);
}

// --- between the sides -----------------------------------------------------------------

bool xchg_full(const struct xchg *x)
{
	if (x->state != XCHG_TALKING)
		return true;
	return !x->up_deaf && x->up->full((struct xchg *)x);
}

void xchg_body(struct xchg *x, struct evbuffer *in, size_t n)
{
	xchg_active(x);
	if (x->up_deaf)
		evbuffer_drain(in, n);
	else
		x->up->data(x, in, n);
}

void xchg_body_end(struct xchg *x)
{
	if (x->req_end && !x->relay)
		return;
	if (!x->req_end && x->relay)
		deadline_in(&x->limit, x->f->lim.half_closed_ms);
	x->req_end = true;
	if (x->state == XCHG_TALKING && !x->up_deaf)
		x->up->end(x);
}

void xchg_drained(struct xchg *x)
{
	if (x->state == XCHG_TALKING)
		x->up->drained(x);
}

static bool add_field(struct head *h, const char *name, const char *value)
{
	if (h->n == HEAD_FIELDS)
		return false;
	h->f[h->n++] = (struct head_field){.name = name, .value = value};
	return true;
}

static bool switched(struct xchg *x, struct head *h)
{
	bool again;

	if (!x->req.upgrade || !h->upgrade ||
	    strcasecmp(x->req.upgrade, h->upgrade) != 0)
		return false;
	if (x->route.websocket && x->route.base &&
	    !head_get(h, "sec-websocket-protocol", &again) &&
	    !add_field(h, "Sec-WebSocket-Protocol", "lambda-microvms"))
		return false;
	x->relay = true;
	x->req_end = false;
	return true;
}

bool xchg_answer(struct xchg *x, struct head *h)
{
	if (h->status == 101 && !switched(x, h)) {
		xchg_fail(x, 502, "the application changed protocols unasked");
		return false;
	}
	if (h->status < 200 && h->status != 101) {
		if (++x->interims > INTERIM_MAX) {
			xchg_fail(x, 502, "too many interim answers");
			return false;
		}
		if (h->status != 100) // that one was ours to say
			x->down->head(x->down_ctx, h);
		return x->state == XCHG_TALKING;
	}
	x->answered = true;
	x->down->head(x->down_ctx, h);
	return x->state == XCHG_TALKING;
}
