// The metadata service at 169.254.169.254, port 80: sockets and their limits.
//
// Its clients are the application's programs, and hostile. A connection is one
// request and its answer, in IMDS_MS; there are IMDS_CONNS of them, and another
// one ends the oldest, so that who holds them all keeps nobody out. Each has its
// two buffers and no more. One is accepted a turn, and none is waited for: the
// host's streams go on.
//
// Credentials are here only while the application may ask for them. A freeze wipes
// them, so that no snapshot has them; thawd gives them anew (ROLE) before the
// application goes on. From the freeze's beginning to its end nobody is answered,
// for the answer would be that there are none: a request waits, an answer that is
// not out yet is taken back by the end of its connection.
//
// Nothing is bound to port 80, which the application may want: see ag_steer.c.
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ag.h"
#include "ag_steer.h"
#include "util.h"

enum { IMDS_CONNS = 16, IMDS_MS = 5000 };

#define IMDS_ADDR 0xa9fea9feu // 169.254.169.254

struct imds_conn {
	struct imds_conn *next; // older
	struct agent *a;
	struct watch w;
	uint64_t deadline_ns;
	enum { IMDS_READ, IMDS_WRITE, IMDS_DRAIN, IMDS_DEAD } state;
	size_t in_len, off, out_len;
	char in[AG_META_HEAD_MAX];
	char out[AG_META_OUT_MAX];
};

static void end(struct imds_conn *c)
{
	if (c->state == IMDS_DEAD)
		return;
	ag_watch_close(c->a, &c->w);
	c->state = IMDS_DEAD;
	c->a->imds.nconns--;
}

void ag_imds_sweep(struct agent *a)
{
	for (struct imds_conn **at = &a->imds.conns; *at;) {
		struct imds_conn *c = *at;

		if (c->state != IMDS_DEAD) {
			at = &c->next;
			continue;
		}
		*at = c->next;
		explicit_bzero(c, sizeof(*c));
		free(c);
	}
}

// --- one request ---------------------------------------------------------------

static void flush(struct imds_conn *c)
{
	while (c->off < c->out_len) {
		ssize_t n = send(c->w.fd, c->out + c->off, c->out_len - c->off,
				 MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			ag_watch_set(c->a, &c->w, EPOLLOUT);
			return;
		}
		if (n < 0) {
			end(c);
			return;
		}
		c->off += (size_t)n;
	}
	explicit_bzero(c->out, c->out_len);
	// The client closes: closing first, with something of its unread, would
	// take the answer from it.
	c->state = IMDS_DRAIN;
	if (shutdown(c->w.fd, SHUT_WR) < 0)
		end(c);
	else
		ag_watch_set(c->a, &c->w, EPOLLIN);
}

static void answer(struct imds_conn *c, size_t head)
{
	c->out_len = head ? ag_meta_answer(&c->a->imds.meta, c->in, head,
					   util_now_ns(), time(NULL), c->out)
			  : ag_meta_too_long(c->out);
	c->state = IMDS_WRITE;
	flush(c);
}

// The length of a complete head, or 0.
static size_t head_of(const struct imds_conn *c)
{
	static const char empty[] = "\r\n\r\n";
	const char *at = memmem(c->in, c->in_len, empty, 4);

	return at ? (size_t)(at - c->in) + 4 : 0;
}

static void on_client(struct watch *w, uint32_t events)
{
	struct imds_conn *c = w->ctx;
	bool drain = c->state == IMDS_DRAIN;
	size_t at = drain ? 0 : c->in_len, head;
	ssize_t n;

	(void)events;
	if (c->state == IMDS_WRITE) {
		flush(c);
		return;
	}
	n = recv(w->fd, c->in + at, sizeof(c->in) - at, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		end(c);
		return;
	}
	if (drain)
		return;
	c->in_len += (size_t)n;
	head = head_of(c);
	if (head || c->in_len == sizeof(c->in))
		answer(c, head);
}

static void end_oldest(struct agent *a)
{
	struct imds_conn *oldest = NULL;

	for (struct imds_conn *c = a->imds.conns; c; c = c->next) {
		if (c->state != IMDS_DEAD)
			oldest = c;
	}
	if (oldest)
		end(oldest);
}

static void on_imds(struct watch *w, uint32_t events)
{
	struct agent *a = w->ctx;
	int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct imds_conn *c;

	(void)events;
	if (fd < 0)
		return;
	c = calloc(1, sizeof(*c));
	if (!c) {
		close(fd);
		return;
	}
	if (a->imds.nconns >= IMDS_CONNS)
		end_oldest(a);
	c->a = a;
	c->deadline_ns = ag_deadline(IMDS_MS);
	c->next = a->imds.conns;
	a->imds.conns = c;
	a->imds.nconns++;
	ag_watch_init(&c->w, fd, on_client, c);
	ag_watch_set(a, &c->w, EPOLLIN);
}

uint64_t ag_imds_deadline(const struct agent *a)
{
	uint64_t first = UINT64_MAX;

	for (const struct imds_conn *c = a->imds.conns; c; c = c->next) {
		if (c->state != IMDS_DEAD)
			first = MIN(first, c->deadline_ns);
	}
	return first;
}

void ag_imds_timers(struct agent *a, uint64_t now)
{
	for (struct imds_conn *c = a->imds.conns; c; c = c->next) {
		if (now >= c->deadline_ns)
			end(c);
	}
}

// --- what the host says --------------------------------------------------------

void ag_open_role(struct conn *c)
{
	struct agent *a = c->a;
	const char *why;
	int rc = ag_meta_role(&a->imds.meta, c->in.payload, c->in.len,
			      time(NULL), &why);

	explicit_bzero(c->in.payload, c->in.len);
	if (rc < 0)
		ag_conn_error(c, rc, "role: %s", why);
	else if (a->imds.listener.fd < 0)
		ag_conn_error(c, ENOTSUP,
			      "role: nobody could ask for it: the metadata "
			      "service could not be started");
	else
		ag_conn_ok(c);
}

void ag_imds_pause(struct agent *a)
{
	ag_watch_set(a, &a->imds.listener, 0);
	for (struct imds_conn *c = a->imds.conns; c; c = c->next) {
		if (c->state != IMDS_READ) {
			end(c);
			explicit_bzero(c->out, sizeof(c->out));
			continue;
		}
		ag_watch_set(a, &c->w, 0);
		c->deadline_ns = UINT64_MAX;
	}
}

void ag_imds_wipe(struct agent *a)
{
	ag_meta_forget_role(&a->imds.meta);
}

void ag_imds_resume(struct agent *a)
{
	ag_watch_set(a, &a->imds.listener, EPOLLIN);
	for (struct imds_conn *c = a->imds.conns; c; c = c->next) {
		if (c->state != IMDS_READ || c->w.armed)
			continue;
		ag_watch_set(a, &c->w, EPOLLIN);
		c->deadline_ns = ag_deadline(IMDS_MS);
	}
}

void ag_imds_identity(struct agent *a, const uint8_t machine_id[16])
{
	if (memcmp(a->imds.identity, machine_id, 16) == 0)
		return;
	memcpy(a->imds.identity, machine_id, 16);
	ag_meta_forget_tokens(&a->imds.meta);
}

// --- its address ---------------------------------------------------------------

static int add_address(void)
{
	cleanup_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq r = {.ifr_name = "lo:imds"};
	struct sockaddr_in sa = {.sin_family = AF_INET,
				 .sin_addr.s_addr = htonl(IMDS_ADDR)};

	memcpy(&r.ifr_addr, &sa, sizeof(sa));
	if (fd < 0 || ioctl(fd, SIOCSIFADDR, &r) < 0)
		return -errno;
	// By its class it would be a network of 65534 addresses.
	sa.sin_addr.s_addr = INADDR_BROADCAST;
	memcpy(&r.ifr_netmask, &sa, sizeof(sa));
	return ioctl(fd, SIOCSIFNETMASK, &r) < 0 ? -errno : 0;
}

static int listen_there(struct agent *a)
{
	struct sockaddr_in sa = {.sin_family = AF_INET,
				 .sin_port = htons(AGENT_IMDS_PORT),
				 .sin_addr.s_addr = htonl(IMDS_ADDR)};
	cleanup_fd int fd =
	    socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int one = 1;

	if (fd < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
	    bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 ||
	    listen(fd, 64) < 0)
		return -errno;
	ag_watch_init(&a->imds.listener, fd_steal(&fd), on_imds, a);
	ag_watch_set(a, &a->imds.listener, EPOLLIN);
	return 0;
}

int ag_imds_open(struct agent *a)
{
	int rc = add_address();

	if (rc == 0)
		rc = listen_there(a);
	if (rc < 0)
		return rc;
	a->imds.steer_fd = ag_steer(IMDS_ADDR, 80, a->imds.listener.fd);
	if (a->imds.steer_fd < 0)
		ag_watch_close(a, &a->imds.listener);
	return MIN(a->imds.steer_fd, 0);
}

void ag_imds_close(struct agent *a)
{
	for (struct imds_conn *c = a->imds.conns; c; c = c->next)
		end(c);
	ag_imds_sweep(a);
	ag_imds_wipe(a);
	ag_watch_close(a, &a->imds.listener);
}
