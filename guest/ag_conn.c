// The host's streams: accepting them, reading their openings, answering.
//
// Only the host may open one. A guest's own processes could reach the vsock
// port by the local address, and would then command as root: the peer's CID
// decides.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "ag.h"
#include "util.h"
#include "wire.h"

enum { REPLY_CAP = 1024, ERROR_TEXT_MAX = 400 };

void ag_conn_end(struct conn *c)
{
	struct agent *a = c->a;

	if (c->dead)
		return;
	c->dead = true;
	ag_control_conn_gone(c);
	ag_app_conn_gone(c);
	ag_exec_close(c);
	ag_forward_close(c);
	ag_watch_close(a, &c->w);
}

void ag_conn_end_others(struct agent *a, struct conn *keep)
{
	for (struct conn *c = a->conns; c; c = c->next) {
		if (c != keep)
			ag_conn_end(c);
	}
}

void ag_conn_sweep(struct agent *a)
{
	for (struct conn **at = &a->conns; *at;) {
		struct conn *c = *at;

		if (!c->dead) {
			at = &c->next;
			continue;
		}
		*at = c->next;
		a->nconns--;
		ag_reader_reset(&c->in);
		ag_out_fini(&c->out);
		free(c->exec);
		free(c->fwd);
		free(c);
	}
}

// Sends what is queued, then closes. A host that does not read its answer is
// given as long as for an opening.
static void reply(struct conn *c)
{
	c->kind = CONN_REPLY;
	c->end_after_flush = true;
	c->deadline_ns = ag_deadline(AG_OPENING_MS);
	if (ag_out_flush(&c->out, c->w.fd) < 0 || !c->out.len)
		ag_conn_end(c);
	else
		ag_watch_set(c->a, &c->w, EPOLLOUT);
}

void ag_conn_answer(struct conn *c, unsigned type, const void *p, size_t len)
{
	if (c->dead)
		return;
	if ((!c->out.buf && ag_out_init(&c->out, REPLY_CAP) < 0) ||
	    ag_out_frame(&c->out, type, p, len) < 0)
		ag_conn_end(c);
	else
		reply(c);
}

void ag_conn_ok(struct conn *c)
{
	ag_conn_answer(c, AGENT_OK, NULL, 0);
}

void ag_conn_error(struct conn *c, int err, const char *fmt, ...)
{
	uint8_t buf[4 + ERROR_TEXT_MAX];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	char text[ERROR_TEXT_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	wire_put_u32(&w, (uint32_t)(err < 0 ? -err : err));
	wire_put_bytes(&w, text, strlen(text));
	ag_conn_answer(c, AGENT_ERROR, buf, w.len);
}

int ag_conn_read(struct conn *c)
{
	for (;;) {
		size_t want;
		void *to = ag_reader_next(&c->in, &want);
		ssize_t n = read(c->w.fd, to, want);
		int rc;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		if (n == 0)
			return -EPIPE;
		rc = ag_reader_add(&c->in, (size_t)n);
		if (rc)
			return rc;
	}
}

static void dispatch(struct conn *c)
{
	switch (c->in.type) {
	case AGENT_START:
		return ag_open_start(c);
	case AGENT_FREEZE:
		return ag_open_freeze(c);
	case AGENT_THAW:
	case AGENT_RENEW:
		return ag_open_thaw(c);
	case AGENT_UNFREEZE:
		return ag_open_unfreeze(c);
	case AGENT_EXEC:
		return ag_open_exec(c);
	case AGENT_CONNECT:
		return ag_open_connect(c);
	case AGENT_LOG:
		return ag_open_log(c);
	case AGENT_PROBE:
		return ag_open_probe(c);
	case AGENT_POWEROFF:
		return ag_open_poweroff(c);
	case AGENT_ROLE:
		return ag_open_role(c);
	default:
		return ag_conn_error(c, EPROTO,
				     "frame type %u does not open a stream",
				     c->in.type);
	}
}

static void on_opening(struct conn *c)
{
	int rc = ag_conn_read(c);

	if (rc == 0)
		return;
	if (rc == -EPROTO) {
		ag_conn_error(c, EPROTO, "this is no frame of the protocol");
		return;
	}
	if (rc < 0) {
		ag_conn_end(c);
		return;
	}
	// From here each kind arms what it needs.
	ag_watch_set(c->a, &c->w, 0);
	c->deadline_ns = 0;
	dispatch(c);
	// Kinds that read on start their next frame with an empty reader.
	if (!c->dead)
		ag_reader_reset(&c->in);
}

static void on_conn(struct watch *w, uint32_t events)
{
	struct conn *c = w->ctx;

	switch (c->kind) {
	case CONN_OPENING:
		return on_opening(c);
	case CONN_REPLY:
		if (ag_out_flush(&c->out, c->w.fd) < 0 || !c->out.len)
			ag_conn_end(c);
		return;
	case CONN_WAIT:
		// Nothing may come before our answer but the end.
		return ag_conn_end(c);
	case CONN_EXEC:
		return ag_exec_conn_event(c, events);
	case CONN_FORWARD:
		return ag_forward_conn_event(c, events);
	case CONN_LOG:
		return ag_log_conn_event(c, events);
	}
}

static bool peer_may_command(const struct agent *a, int fd)
{
	struct sockaddr_vm sa = {.svm_family = 0};
	struct ucred cred = {.uid = (uid_t)-1};
	socklen_t len;

	if (!a->vsock) {
		len = sizeof(cred);
		return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) ==
			   0 &&
		       cred.uid == geteuid();
	}
	len = sizeof(sa);
	return getpeername(fd, (struct sockaddr *)&sa, &len) == 0 &&
	       sa.svm_family == AF_VSOCK && sa.svm_cid == VMADDR_CID_HOST;
}

static void on_listener(struct watch *w, uint32_t events)
{
	struct agent *a = w->ctx;
	int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct conn *c;

	(void)events;
	if (fd < 0)
		return;
	if (a->nconns >= AG_CONN_HARD_MAX || !peer_may_command(a, fd) ||
	    !(c = calloc(1, sizeof(*c)))) {
		close(fd);
		return;
	}
	c->a = a;
	c->kind = CONN_OPENING;
	c->deadline_ns = ag_deadline(AG_OPENING_MS);
	c->next = a->conns;
	a->conns = c;
	a->nconns++;
	ag_watch_init(&c->w, fd, on_conn, c);
	ag_watch_set(a, &c->w, EPOLLIN);
}

void ag_conn_timers(struct agent *a, uint64_t now)
{
	for (struct conn *c = a->conns; c; c = c->next) {
		if (c->dead || !c->deadline_ns || c->deadline_ns > now)
			continue;
		c->deadline_ns = 0;
		if (c->kind == CONN_EXEC)
			ag_exec_timeout(c);
		else if (c->kind == CONN_FORWARD)
			ag_forward_timeout(c);
		else
			ag_conn_end(c);
	}
}

static int listen_on(struct agent *a, int fd)
{
	if (listen(fd, 64) < 0)
		return -errno;
	ag_watch_init(&a->listener, fd, on_listener, a);
	ag_watch_set(a, &a->listener, EPOLLIN);
	return 0;
}

int ag_listen_vsock(struct agent *a)
{
	struct sockaddr_vm sa = {.svm_family = AF_VSOCK,
				 .svm_cid = VMADDR_CID_ANY,
				 .svm_port = AGENT_PORT};
	cleanup_fd int fd =
	    socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int rc;

	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return -errno;
	a->vsock = true;
	rc = listen_on(a, fd);
	if (rc == 0)
		fd_steal(&fd);
	return rc;
}

int ag_listen_unix(struct agent *a, const char *path)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	cleanup_fd int fd =
	    socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int rc;

	if (strlen(path) >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	strcpy(sa.sun_path, path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return -errno;
	rc = listen_on(a, fd);
	if (rc == 0)
		fd_steal(&fd);
	return rc;
}
