// The API over TCP: a server of its own, for here anybody may connect. Here it
// listens and keeps its connections few; one of them is http_conn.c.
//
// Of MAX_CONNS connections the oldest that has not shown a good signature yet
// makes room for a new one, be it that its refusal is still on the way; else the
// one that is idle, or done with, longest.
#include "http_tcp_internal.h"

#include <errno.h>
#include <string.h>

#include <event2/event.h>

enum {
	MAX_CONNS = 256,
	PAUSE_MS = 200,
};

// --- accepting --------------------------------------------------------------------

static bool make_room(struct http_tcp *s)
{
	struct http_conn *c, *idle = NULL;

	TAILQ_FOREACH(c, &s->conns, link)
	{
		if (!c->known && c->state != HANDLED)
			break;
		if (!idle &&
		    (c->state == LINGER || (c->state == HEAD && !c->in.len)))
			idle = c;
	}
	if (!c)
		c = idle;
	if (c)
		http_conn_kill(c);
	return c != NULL;
}

static void on_accept(struct evconnlistener *lev, evutil_socket_t fd,
		      struct sockaddr *sa, int len, void *ctx)
{
	struct http_tcp *s = ctx;

	(void)lev;
	(void)sa;
	(void)len;
	eng_turn_begin(s->loop, "http tcp accept");
	if (s->n < MAX_CONNS || make_room(s))
		http_conn_add(s, fd);
	else
		close(fd);
	eng_turn_end(s->loop);
}

static void accept_again(void *ctx)
{
	struct http_tcp *s = ctx;

	if (!s->stopped)
		evconnlistener_enable(s->listener);
}

// Out of descriptors: libevent would spin on the level-triggered listener.
static void accept_error(struct evconnlistener *lev, void *ctx)
{
	struct http_tcp *s = ctx;

	log_warn("accepting a connection failed: %s; trying again in %d ms",
		 strerror(errno), PAUSE_MS);
	evconnlistener_disable(lev);
	eng_timer_set(s->accept_timer, PAUSE_MS);
}

// --- life ---------------------------------------------------------------------------

static int start(struct http_tcp *s, struct err *e)
{
	struct sockaddr_storage sa;
	int len = addr_parse(s->cfg.listen, &sa);

	if (len < 0)
		return err_set(e, -EINVAL,
			       "--listen takes PORT, ADDRESS:PORT or "
			       "[ADDRESS]:PORT, not \"%.60s\"",
			       s->cfg.listen);
	s->accept_timer =
	    eng_timer_create(s->loop, accept_again, s, "http tcp accept");
	s->reap_timer =
	    eng_timer_create(s->loop, http_conns_reap, s, "http tcp reap");
	if (!s->accept_timer || !s->reap_timer)
		return err_set(e, -ENOMEM, "make the TCP server");
	s->listener = evconnlistener_new_bind(
	    eng_loop_base(s->loop), on_accept, s,
	    LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE,
	    512, (struct sockaddr *)&sa, len);
	if (!s->listener)
		return err_sys(e, "listen on %s", s->cfg.listen);
	evconnlistener_set_error_cb(s->listener, accept_error);
	addr_bound(evconnlistener_get_fd(s->listener), s->address);
	if (!addr_is_loopback(&sa))
		log_warn("%s is not of this host alone: whoever is on the way "
			 "can read what is said there",
			 s->address);
	return 0;
}

int http_tcp_create(struct http_tcp **out, struct eng_loop *l,
		    const struct http_tcp_config *cfg, struct err *e)
{
	struct http_tcp *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return err_set(e, -ENOMEM, "make the TCP server");
	TAILQ_INIT(&s->conns);
	TAILQ_INIT(&s->dead);
	s->loop = l;
	s->cfg = *cfg;
	rc = start(s, e);
	if (rc)
		http_tcp_destroy(s);
	else
		*out = s;
	return rc;
}

const char *http_tcp_address(const struct http_tcp *s)
{
	return s->address;
}

void http_tcp_stop(struct http_tcp *s)
{
	if (!s || s->stopped)
		return;
	s->stopped = true;
	evconnlistener_disable(s->listener);
}

void http_tcp_destroy(struct http_tcp *s)
{
	struct http_conn *c;

	if (!s)
		return;
	while ((c = TAILQ_FIRST(&s->conns)))
		http_conn_kill(c);
	http_conns_reap(s);
	if (s->listener)
		evconnlistener_free(s->listener);
	eng_timer_destroy(s->accept_timer);
	eng_timer_destroy(s->reap_timer);
	free(s);
}
