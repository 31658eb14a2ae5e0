// CONNECT: raw bytes between the host's stream and a TCP port of the guest.
//
// Two queues of bytes, each with its own end: the end of one direction is
// handed on (SHUT_WR) when its last byte is, the other direction lives on. An
// error on either socket ends both. A direction is read only when its queue is
// empty, so each holds at most AG_IO_BUF bytes.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ag.h"
#include "util.h"
#include "wire.h"

struct lane {
	size_t off, len;
	bool eof;  // its source has ended
	bool shut; // and its sink was told
	uint8_t buf[AG_IO_BUF];
};

struct ag_forward {
	struct conn *c;
	struct watch tcp;
	uint16_t port;
	bool ipv6, open;
	bool host_gone; // nobody reads what the guest sends
	struct lane in; // host to guest
	struct lane out;
};

static uint32_t interest(const struct lane *from, const struct lane *to)
{
	return (!from->eof && !from->len ? (uint32_t)EPOLLIN : 0) |
	       (to->len ? (uint32_t)EPOLLOUT : 0);
}

static void update(struct conn *c)
{
	struct ag_forward *f = c->fwd;

	uint32_t host = interest(&f->in, &f->out);
	uint32_t tcp = interest(&f->out, &f->in);

	if (f->host_gone) {
		host &= (uint32_t)EPOLLIN;
		tcp &= (uint32_t)EPOLLOUT;
	}
	ag_watch_set(c->a, &c->w, host);
	ag_watch_set(c->a, &f->tcp, tcp);
}

// Moves what can be moved one way: 0, or -errno.
static int move(struct lane *l, int from, int to)
{
	// A bounded number of turns: the other streams want theirs.
	for (int i = 0; i < 8; i++) {
		ssize_t n;

		if (!l->len && !l->eof) {
			n = read(from, l->buf, sizeof(l->buf));
			if (n < 0 && errno != EAGAIN && errno != EINTR)
				return -errno;
			if (n < 0)
				break;
			l->eof = n == 0;
			l->off = 0;
			l->len = (size_t)n;
		}
		if (!l->len)
			break;
		n = send(to, l->buf + l->off, l->len, MSG_NOSIGNAL);
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		if (n < 0)
			break;
		l->off += (size_t)n;
		l->len -= (size_t)n;
	}
	if (l->eof && !l->len && !l->shut) {
		l->shut = true;
		// ENOTCONN: the other side is gone, and needs no telling.
		shutdown(to, SHUT_WR);
	}
	return 0;
}

static void relay(struct conn *c)
{
	struct ag_forward *f = c->fwd;

	// A host that closed may have sent before: that is still delivered.
	if (move(&f->in, c->w.fd, f->tcp.fd) < 0 ||
	    (!f->host_gone && move(&f->out, f->tcp.fd, c->w.fd) < 0) ||
	    (f->in.shut && (f->out.shut || f->host_gone)))
		ag_conn_end(c);
	else
		update(c);
}

void ag_forward_conn_event(struct conn *c, uint32_t events)
{
	struct ag_forward *f = c->fwd;

	if (!f->open) { // the host left, or sent before our OK
		ag_conn_end(c);
		return;
	}
	if (events & (EPOLLHUP | EPOLLERR))
		f->host_gone = true;
	relay(c);
}

static int connect_now(struct conn *c);

static void connected(struct conn *c)
{
	struct ag_forward *f = c->fwd;
	int one = 1;

	setsockopt(f->tcp.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	f->open = true;
	c->deadline_ns = 0;
	// The OK goes into an empty socket buffer, before any raw byte.
	if (ag_out_init(&c->out, AGENT_FRAME_HEAD) < 0 ||
	    ag_out_frame(&c->out, AGENT_OK, NULL, 0) < 0 ||
	    ag_out_flush(&c->out, c->w.fd) < 0 || c->out.len) {
		ag_conn_end(c);
		return;
	}
	ag_out_fini(&c->out);
	update(c);
}

static void failed(struct conn *c, int err)
{
	struct ag_forward *f = c->fwd;
	uint16_t port = f->port;

	ag_watch_close(c->a, &f->tcp);
	if (!f->ipv6) {
		f->ipv6 = true;
		if (connect_now(c) == 0)
			return;
	}
	ag_forward_close(c);
	ag_conn_error(c, err, "port %u in the guest: %s", port, strerror(err));
}

static void on_tcp(struct watch *w, uint32_t events)
{
	struct conn *c = w->ctx;
	int err = 0;
	socklen_t len = sizeof(err);

	(void)events;
	if (c->fwd->open) {
		relay(c);
		return;
	}
	if (getsockopt(w->fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
		err = errno;
	if (err)
		failed(c, err);
	else
		connected(c);
}

// Begins a connection: 0 (on_tcp() has the outcome) or -errno.
static int connect_now(struct conn *c)
{
	struct ag_forward *f = c->fwd;
	struct sockaddr_in v4 = {.sin_family = AF_INET,
				 .sin_port = htons(f->port),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
				  .sin6_port = htons(f->port),
				  .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	cleanup_fd int fd =
	    socket(f->ipv6 ? AF_INET6 : AF_INET,
		   SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int rc;

	if (fd < 0)
		return -errno;
	if (f->ipv6)
		rc = connect(fd, (struct sockaddr *)&v6, sizeof(v6));
	else
		rc = connect(fd, (struct sockaddr *)&v4, sizeof(v4));
	if (rc < 0 && errno != EINPROGRESS)
		return -errno;
	ag_watch_init(&f->tcp, fd_steal(&fd), on_tcp, c);
	ag_watch_set(c->a, &f->tcp, EPOLLOUT);
	return 0;
}

void ag_open_connect(struct conn *c)
{
	struct agent *a = c->a;
	struct wire_reader r = wire_reader_of(c->in.payload, c->in.len);
	struct ag_forward *f;
	int rc;

	if (a->freezing || a->off || a->nconns > AG_CONN_MAX) {
		ag_conn_error(c, EBUSY,
			      "frozen, powering off, or too many "
			      "streams");
		return;
	}
	f = calloc(1, sizeof(*f));
	if (!f) {
		ag_conn_error(c, ENOMEM, "no memory for a stream");
		return;
	}
	f->c = c;
	f->tcp.fd = -1;
	f->port = wire_get_u16(&r);
	c->fwd = f;
	c->kind = CONN_FORWARD;
	c->deadline_ns = ag_deadline(AG_CONNECT_MS);
	rc = connect_now(c);
	if (rc < 0)
		failed(c, -rc);
}

void ag_forward_timeout(struct conn *c)
{
	ag_forward_close(c);
	ag_conn_error(c, ETIMEDOUT, "nobody accepts on the guest's port");
}

// The memory stays until the loop's sweep: events for it may be at hand.
void ag_forward_close(struct conn *c)
{
	if (c->fwd)
		ag_watch_close(c->a, &c->fwd->tcp);
}
