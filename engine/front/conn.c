// A client's connection, spoken to in HTTP/1.1 (in HTTP/2: h2.c).
//
//   OPENING  TLS handshake, or the first byte that tells TLS from plain text
//   HEAD     collecting a request's head (none yet: idle)
//   BUSY     `x` is the exchange; its body goes on while the guest takes it,
//            and what is pipelined behind waits in the input buffer
//   RELAY    after 101: bytes both ways
//   FLUSH    the last answer goes out
//   LINGER   our end of file is sent; what still comes is thrown away, so that
//            the peer reads the answer instead of a reset
//   H2       everything is h2.c's
//   DEAD     on the list of the dead
//
// Requests are answered in order because the next head is not looked at before
// the answer is complete. Reading is never switched off: the input has a high
// watermark, so a client that is not listened to fills it and its own window,
// and an end of file is seen as early as it can be. Nor is a head looked at while
// FRONT_HIGH bytes of earlier answers wait.
//
// A client that sends its end of file behind a whole request gets its answer,
// for half_closed_ms: it may have gone, and nobody can tell before writing.
//
// The states are moved by what comes (conn_request.c), by what is answered
// (conn_answer.c), and by time and the socket's end (here).
#include "conn_internal.h"

#include <errno.h>
#include <sys/socket.h>

// --- life ----------------------------------------------------------------------------

static void unlink_conn(struct conn *c)
{
	*c->link = c->next;
	if (c->next)
		c->next->link = c->link;
}

static void link_conn(struct conn *c, struct conn **list)
{
	c->next = *list;
	c->link = list;
	if (c->next)
		c->next->link = &c->next;
	*list = c;
}

void conn_kill(struct conn *c)
{
	struct front *f = c->f;
	struct xchg *x = ptr_steal(c->x);

	if (c->state == CONN_DEAD)
		return;
	c->state = CONN_DEAD;
	if (x)
		xchg_drop(x);
	h2_destroy(ptr_steal(c->h2));
	place_fini(&c->place); // behind its exchanges
	deadline_fini(&c->limit);
	eng_watch_destroy(ptr_steal(c->sniff));
	if (c->bev)
		bufferevent_free(c->bev);
	c->bev = NULL;
	fd_close(&c->fd);
	unlink_conn(c);
	link_conn(c, &f->dead_conns);
	f->stats.conns--;
	front_reap_later(f);
}

void conn_free(struct conn *c)
{
	unlink_conn(c);
	head_in_reset(&c->in);
	body_end(&c->body);
	free(c);
}

// Our end of file; the peer's is awaited for a moment.
static void linger(struct conn *c)
{
	static const struct linger reset = {1, 0};

	if (c->cut) {
		if (c->old)
			setsockopt(bufferevent_getfd(c->bev), SOL_SOCKET,
				   SO_LINGER, &reset, sizeof(reset));
		conn_kill(c);
		return;
	}
	c->state = CONN_LINGER;
	if (!c->said_bye) {
		front_tls_bye(c->bev);
		shutdown(bufferevent_getfd(c->bev), SHUT_WR);
	}
	c->said_bye = true;
	if (c->eof)
		conn_kill(c);
	else
		deadline_in(&c->limit, FRONT_LINGER_MS);
}

void conn_wind_up(struct conn *c)
{
	struct evbuffer *in = conn_input(c);

	c->state = CONN_FLUSH;
	evbuffer_drain(in, evbuffer_get_length(in));
	bufferevent_setwatermark(c->bev, EV_WRITE, 0, 0);
	deadline_in(&c->limit, c->f->lim.stall_ms);
	if (!conn_unsent(c))
		linger(c);
}

void conn_become_h2(struct conn *c)
{
	c->state = CONN_H2;
	deadline_in(&c->limit, c->f->lim.head_ms);
	c->h2 = h2_create(c->f, c, c->bev);
	if (!c->h2 || !h2_read(c->h2))
		conn_kill(c);
}

// --- events --------------------------------------------------------------------------

static void limit_passed(void *ctx)
{
	struct conn *c = ctx;

	if (c->state == CONN_HEAD && (c->in.len || c->first)) {
		conn_refuse(c, 408, "the request's head did not come in time");
	} else if (c->state == CONN_HEAD) {
		conn_wind_up(c);
	} else if (c->state == CONN_BUSY && !c->body.done) {
		// Silent while the guest would take more? Else go on waiting.
		if (xchg_full(c->x))
			deadline_in(&c->limit, c->f->lim.body_ms);
		else
			conn_bad_body(c, 408, "the body did not come in time");
	} else if (c->state == CONN_H2 && !h2_idle(c->h2)) {
		deadline_in(&c->limit, c->f->lim.idle_ms);
	} else {
		conn_kill(c);
	}
}

static void on_read(struct bufferevent *bev, void *ctx)
{
	struct conn *c = ctx;
	struct evbuffer *in = bufferevent_get_input(bev);

	eng_turn_begin(c->f->loop, "front client read");
	if (c->state == CONN_LINGER || c->state == CONN_FLUSH) {
		evbuffer_drain(in, evbuffer_get_length(in));
	} else if (c->state == CONN_H2) {
		if (!h2_read(c->h2))
			conn_kill(c);
	} else {
		if (c->state == CONN_BUSY && !c->body.done)
			deadline_in(&c->limit, c->f->lim.body_ms);
		conn_pump(c);
	}
	eng_turn_end(c->f->loop);
}

static void on_write(struct bufferevent *bev, void *ctx)
{
	struct conn *c = ctx;

	(void)bev;
	eng_turn_begin(c->f->loop, "front client write");
	if (c->state == CONN_FLUSH && !conn_unsent(c)) {
		linger(c);
	} else if (c->state == CONN_H2) {
		if (!h2_wrote(c->h2))
			conn_kill(c);
	} else if (c->state == CONN_HEAD) {
		conn_pump(c);
	} else if (c->x) {
		xchg_drained(c->x);
		if (c->state == CONN_RELAY)
			conn_relay_ends(c);
	}
	eng_turn_end(c->f->loop);
}

static void connected(struct conn *c)
{
	if (c->tls && front_tls_is_h2(c->bev)) {
		conn_become_h2(c);
		return;
	}
	c->state = CONN_HEAD;
	conn_pump(c);
}

static void on_event(struct bufferevent *bev, short what, void *ctx)
{
	struct conn *c = ctx;

	(void)bev;
	eng_turn_begin(c->f->loop, "front client event");
	if (what & BEV_EVENT_CONNECTED) {
		connected(c);
	} else if (!(what & BEV_EVENT_EOF) || (what & BEV_EVENT_WRITING) ||
		   c->state == CONN_OPENING || c->state == CONN_H2 ||
		   c->state == CONN_LINGER) {
		conn_kill(c);
	} else {
		c->eof = true;
		conn_pump(c);
	}
	eng_turn_end(c->f->loop);
}

static bool adopt(struct conn *c, struct bufferevent *bev)
{
	struct timeval stall = {c->f->lim.stall_ms / 1000,
				(suseconds_t)(c->f->lim.stall_ms % 1000) *
				    1000};

	if (!bev)
		return false;
	c->bev = bev;
	c->fd = -1; // the bufferevent's
	bufferevent_setcb(bev, on_read, on_write, on_event, c);
	bufferevent_setwatermark(bev, EV_READ, 0, FRONT_LOW);
	bufferevent_setwatermark(bev, EV_WRITE, FRONT_LOW, 0);
	bufferevent_set_timeouts(bev, NULL, &stall);
	bufferevent_enable(bev, EV_READ | EV_WRITE);
	return true;
}

static bool open_tls(struct conn *c)
{
	c->tls = true;
	return adopt(
	    c, front_tls_accept(c->f->tls, eng_loop_base(c->f->loop), c->fd));
}

static bool open_plain(struct conn *c)
{
	if (!adopt(c, bufferevent_socket_new(eng_loop_base(c->f->loop), c->fd,
					     BEV_OPT_CLOSE_ON_FREE)))
		return false;
	connected(c);
	return true;
}

// The first byte of TLS is 22; of HTTP, a letter.
static void on_sniff(void *ctx, unsigned what)
{
	struct conn *c = ctx;
	unsigned char byte;
	ssize_t n = recv(c->fd, &byte, 1, MSG_PEEK);

	(void)what;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	eng_watch_destroy(ptr_steal(c->sniff));
	if (n <= 0 || !(byte == 22 ? open_tls(c) : open_plain(c)))
		conn_kill(c);
}

struct conn *conn_accept(struct front *f, int fd)
{
	struct conn *c = calloc(1, sizeof(*c));
	bool good = true;

	if (!c || deadline_init(&c->limit, f->loop, limit_passed, c,
				"front connection")) {
		free(c);
		return NULL;
	}
	c->f = f;
	c->fd = fd;
	c->first = true;
	c->body.done = true;
	link_conn(c, &f->conns);
	f->stats.conns++;
	place_init(&c->place, f, c);
	deadline_in(&c->limit, f->lim.head_ms);
	if (!f->plain) {
		good = open_tls(c);
	} else if (!f->tls) {
		good = open_plain(c);
	} else {
		c->sniff = eng_watch_create(f->loop, fd, ENG_READ, on_sniff, c,
					    "front first byte");
		good = c->sniff != NULL;
	}
	if (!good)
		conn_kill(c); // closes fd
	return c;
}

// --- for HTTP/2 ----------------------------------------------------------------------

struct place *conn_place(struct conn *c)
{
	return &c->place;
}

void conn_h2_activity(struct conn *c)
{
	deadline_in(&c->limit, c->f->lim.idle_ms);
}
