// The listener, what all connections share, and the end.
//
// Nothing is freed in its own callback: connections and exchanges that ended go
// to the lists of the dead and are freed on a later turn.
#include "front_internal.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#define ACCEPT_PAUSE_MS 200

// --- deadlines -------------------------------------------------------------------

static void deadline_arm(struct deadline *d, uint64_t now)
{
	uint64_t in = d->due > now ? d->due - now : 0;

	d->armed = d->due;
	eng_timer_set(d->timer, (in + 999999) / 1000000);
}

static void deadline_fired(void *ctx)
{
	struct deadline *d = ctx;
	uint64_t now = util_now_ns();

	d->armed = 0;
	if (!d->due)
		return;
	if (now < d->due) {
		deadline_arm(d, now);
		return;
	}
	d->due = 0;
	d->cb(d->ctx);
}

int deadline_init(struct deadline *d, struct eng_loop *l, void (*cb)(void *),
		  void *ctx, const char *name)
{
	*d = (struct deadline){.cb = cb, .ctx = ctx};
	d->timer = eng_timer_create(l, deadline_fired, d, name);
	return d->timer ? 0 : -ENOMEM;
}

void deadline_in(struct deadline *d, unsigned ms)
{
	uint64_t now;

	d->due = 0;
	if (!ms || !d->timer)
		return;
	now = util_now_ns();
	d->due = now + ms * 1000000ull;
	if (!d->armed || d->due < d->armed)
		deadline_arm(d, now);
}

void deadline_fini(struct deadline *d)
{
	eng_timer_destroy(d->timer);
	*d = (struct deadline){.timer = NULL};
}

// --- the dead ----------------------------------------------------------------------

static void reap(struct front *f)
{
	struct conn *c;
	struct xchg *x;

	while ((x = f->dead_xchgs)) {
		f->dead_xchgs = x->next;
		xchg_free(x);
	}
	while ((c = f->dead_conns))
		conn_free(c); // unlinks itself
}

static void reap_turn(void *ctx)
{
	struct front *f = ctx;

	f->reaping = false;
	reap(f);
}

// A timer rather than eng_loop_defer(): it can be taken back by front_destroy().
void front_reap_later(struct front *f)
{
	if (f->reaping)
		return;
	f->reaping = true;
	eng_timer_set(f->reap_timer, 0);
}

// --- accepting ---------------------------------------------------------------------

static void on_accept(struct evconnlistener *lev, evutil_socket_t fd,
		      struct sockaddr *sa, int len, void *ctx)
{
	struct front *f = ctx;
	int on = 1;

	(void)lev;
	(void)sa;
	(void)len;
	eng_turn_begin(f->loop, "front accept");
	f->stats.accepted++;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (!places_make_room(f) || !conn_accept(f, fd))
		close(fd);
	eng_turn_end(f->loop);
}

static void accept_again(void *ctx)
{
	struct front *f = ctx;

	if (!f->stopped)
		evconnlistener_enable(f->listener);
}

// Out of descriptors: libevent would spin on the level-triggered listener.
static void accept_error(struct evconnlistener *lev, void *ctx)
{
	struct front *f = ctx;

	evconnlistener_disable(lev);
	eng_timer_set(f->accept_timer, ACCEPT_PAUSE_MS);
}

static int listen_on(struct front *f, const char *where, struct err *e)
{
	struct sockaddr_storage ss;
	int len = addr_parse(where, &ss);

	if (len < 0)
		return err_set(e, -EINVAL,
			       "the endpoint's address %s is not IP:PORT "
			       "(8443, 127.0.0.1:8443, [::1]:8443)",
			       where);
	if (f->plain && !addr_is_loopback(&ss))
		return err_set(e, -EPERM,
			       "the endpoint is not served without TLS at %s: "
			       "tokens would cross the network readable; use a "
			       "loopback address",
			       where);
	f->listener = evconnlistener_new_bind(
	    eng_loop_base(f->loop), on_accept, f,
	    LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE,
	    512, (struct sockaddr *)&ss, len);
	if (!f->listener)
		return err_sys(e, "listen on %s for the endpoint", where);
	evconnlistener_set_error_cb(f->listener, accept_error);
	f->port = addr_bound(evconnlistener_get_fd(f->listener), f->address);
	return 0;
}

// --- life ----------------------------------------------------------------------------

static void default_to(unsigned *v, unsigned d)
{
	if (!*v)
		*v = d;
}

static void set_limits(struct front_limits *l)
{
	default_to(&l->head_ms, 10000);
	default_to(&l->idle_ms, 60000);
	default_to(&l->body_ms, 30000);
	default_to(&l->stall_ms, 60000);
	default_to(&l->open_ms, 60000);
	default_to(&l->answer_ms, 900000);
	default_to(&l->relay_ms, 3600000);
	default_to(&l->half_closed_ms, 60000);
	default_to(&l->max_conns, 4096);
	default_to(&l->max_strangers, 256);
	default_to(&l->max_per_vm, 512);
}

static int start(struct front *f, const struct front_config *cfg, struct err *e)
{
	int rc;

	f->domain = strdup(cfg->domain);
	f->accept_timer =
	    eng_timer_create(f->loop, accept_again, f, "front accept");
	f->reap_timer = eng_timer_create(f->loop, reap_turn, f, "front reap");
	if (!f->domain || !f->accept_timer || !f->reap_timer)
		return err_set(e, -ENOMEM, "no memory for the endpoint");
	if (cfg->cert || cfg->tls_dir) {
		rc = front_tls_create(&f->tls, cfg, e);
		if (rc)
			return rc;
	} else if (!f->plain) {
		return err_set(e, -EINVAL,
			       "the endpoint has neither a certificate nor a "
			       "folder to make one in");
	}
	return listen_on(f, cfg->listen, e);
}

int front_create(struct front **out, const struct front_config *cfg,
		 struct err *e)
{
	struct front *f = calloc(1, sizeof(*f));
	int rc;

	*out = NULL;
	if (!f)
		return err_set(e, -ENOMEM, "no memory for the endpoint");
	f->loop = cfg->loop;
	f->ops = cfg->ops;
	f->ctx = cfg->ctx;
	f->plain = cfg->plain;
	f->lim = cfg->limits;
	f->strangers.last = &f->strangers.first;
	set_limits(&f->lim);
	rc = start(f, cfg, e);
	if (rc) {
		front_destroy(f);
		return rc;
	}
	*out = f;
	return 0;
}

unsigned front_port(const struct front *f)
{
	return f->port;
}

const char *front_address(const struct front *f)
{
	return f->address;
}

const char *front_ca_path(const struct front *f)
{
	return f->tls ? front_tls_ca_path(f->tls) : NULL;
}

void front_stats(const struct front *f, struct front_stats *out)
{
	*out = f->stats;
	out->strangers = f->strangers.n;
}

void front_vm_gone(struct front *f, void *vm)
{
	struct xchg *x = f->xchgs;

	while (x) {
		if (x->vm != vm || x->state == XCHG_DEAD) {
			x = x->next;
			continue;
		}
		xchg_fail(x, 404, "this microVM is no more");
		x = f->xchgs; // failing one may start or end others
	}
	places_vm_gone(f, vm); // their connections wait for it by now
}

void front_stop(struct front *f)
{
	f->stopped = true;
	evconnlistener_disable(f->listener);
}

void front_destroy(struct front *f)
{
	if (!f)
		return;
	if (f->listener)
		evconnlistener_free(f->listener);
	while (f->conns)
		conn_kill(f->conns);
	while (f->xchgs) // those that only flush
		xchg_drop(f->xchgs);
	reap(f);
	front_tls_destroy(f->tls);
	eng_timer_destroy(f->accept_timer);
	eng_timer_destroy(f->reap_timer);
	free(f->domain);
	free(f);
}
