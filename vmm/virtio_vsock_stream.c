// vsock streams: their table, their sockets, and how they end.
//
// Ends, as told to each side:
//
//   guest SHUTDOWN(SEND)      -> shutdown(SHUT_WR) once the buffer is written
//   guest SHUTDOWN(RCV)       -> shutdown(SHUT_RD)
//   guest SHUTDOWN(both)      -> RST to the guest at once; LINGER until written
//   guest RST                 -> LINGER until written
//   socket end of file        -> SHUTDOWN(SEND) to the guest
//   socket cannot be written  -> SHUTDOWN(RCV) to the guest
//   both, or EPOLLHUP         -> SHUTDOWN(both), socket closed, CLOSING
//
// The machine's epoll is level-triggered and always reports EPOLLHUP, so a
// socket is watched only while an event can lead to something: vsk_rearm() is
// the one place that decides. EPOLLPRI stands for "nothing but a hang-up".
#include "virtio_vsock.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { BOTH = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND };

static void socket_event(void *ctx, uint32_t events);

// --- the table --------------------------------------------------------------

struct vsk_stream *vsk_find(struct vio_vsock *v, uint32_t local, uint32_t guest)
{
	struct vsk_stream *s = v->hash[local % VSK_HASH];

	while (s && (s->local_port != local || s->guest_port != guest))
		s = s->hash_next;
	return s;
}

static bool port_used(const struct vio_vsock *v, uint32_t port)
{
	const struct vsk_stream *s = v->hash[port % VSK_HASH];

	for (; s; s = s->hash_next)
		if (s->local_port == port)
			return true;
	for (unsigned i = 0; i < v->rst_n; i++)
		if (v->rsts[(v->rst_at + i) % VSK_RSTS_MAX].local_port == port)
			return true;
	return false;
}

static uint32_t take_port(struct vio_vsock *v)
{
	uint32_t port;

	do {
		port = v->next_port;
		// The last number is VMADDR_PORT_ANY.
		v->next_port = port >= UINT32_MAX - 1 ? VSK_PORT_MIN : port + 1;
	} while (port_used(v, port));
	return port;
}

static void hash_remove(struct vsk_stream *s)
{
	struct vsk_stream **at = &s->v->hash[s->local_port % VSK_HASH];

	while (*at != s)
		at = &(*at)->hash_next;
	*at = s->hash_next;
	s->v->live--;
}

// Slots are never given back before the device goes: an event that was fetched
// before its stream ended finds a stream, if not its own, and that is harmless.
static struct vsk_stream *slot_take(struct vio_vsock *v)
{
	struct vsk_stream *s = v->free;

	if (s) {
		v->free = s->hash_next;
		return s;
	}
	if (v->nslots == VSK_STREAMS_MAX)
		return NULL;
	s = calloc(1, sizeof(*s));
	if (s)
		v->slots[v->nslots++] = s;
	return s;
}

bool vsk_reclaim(struct vio_vsock *v)
{
	for (unsigned i = 0; i < v->nslots; i++) {
		if (v->slots[i]->state == VSK_CLOSING) {
			vsk_kill(v->slots[i]);
			return true;
		}
	}
	return false;
}

struct vsk_stream *vsk_open(struct vio_vsock *v, uint32_t guest_port, int fd)
{
	struct vsk_stream *s;

	// Every stream may end in an RST that has to wait: room for it first.
	if (v->live + v->rst_n >= VSK_STREAMS_MAX)
		return NULL;
	s = slot_take(v);
	if (!s)
		return NULL;
	*s = (struct vsk_stream){
	    .v = v,
	    .state = VSK_CONNECTING,
	    .fd = fd,
	    .local_port = take_port(v),
	    .guest_port = guest_port,
	    .buf_alloc = v->live < VSK_FEW ? VSK_BUF_FEW : VSK_BUF_MANY,
	    .burst = 4,
	};
	s->hash_next = v->hash[s->local_port % VSK_HASH];
	v->hash[s->local_port % VSK_HASH] = s;
	v->live++;
	return s;
}

static void buf_drop(struct vsk_stream *s)
{
	struct vio_vsock *v = s->v;

	s->buf_len = 0;
	s->buf_at = 0;
	if (s->buf && s->buf_alloc == VSK_BUF_FEW && !v->spare)
		v->spare = s->buf;
	else
		free(s->buf);
	s->buf = NULL;
}

static void socket_close(struct vsk_stream *s)
{
	struct vio_dev *d = &s->v->dev;

	if (s->fd < 0)
		return;
	if (s->armed)
		d->host.watch(d->host.vm, s->fd, 0, NULL, NULL);
	s->armed = 0;
	fd_close(&s->fd);
}

static void lists_leave(struct vsk_stream *s)
{
	if (s->ctl_queued)
		TAILQ_REMOVE(&s->v->ctls, s, ctl_link);
	if (s->stalled)
		TAILQ_REMOVE(&s->v->stalls, s, stall_link);
	s->ctl_queued = false;
	s->stalled = false;
	s->ctl = 0;
}

void vsk_free(struct vsk_stream *s)
{
	lists_leave(s);
	socket_close(s);
	buf_drop(s);
	if (s->state != VSK_LINGER)
		hash_remove(s);
	s->state = VSK_FREE;
	s->hash_next = s->v->free;
	s->v->free = s;
}

void vsk_forget(struct vsk_stream *s)
{
	if (!s->buf_len || s->fd < 0) {
		vsk_free(s);
		return;
	}
	lists_leave(s);
	hash_remove(s);
	s->state = VSK_LINGER;
	vsk_rearm(s);
}

void vsk_kill(struct vsk_stream *s)
{
	if (s->request_sent)
		vsk_owe_rst(s->v, s->local_port, s->guest_port);
	vsk_free(s);
}

// --- guest to socket --------------------------------------------------------

// Both directions are over for the host: the guest is told, and asked to agree.
static void host_gone(struct vsk_stream *s)
{
	buf_drop(s);
	socket_close(s);
	s->state = VSK_CLOSING;
	s->shut = BOTH;
	vsk_owe(s, VSK_CTL_SHUTDOWN);
}

static void tell_shutdown(struct vsk_stream *s, uint32_t flag)
{
	if (s->shut & flag)
		return;
	s->shut |= flag;
	if (s->shut == BOTH)
		host_gone(s);
	else
		vsk_owe(s, VSK_CTL_SHUTDOWN);
}

static void write_failed(struct vsk_stream *s)
{
	buf_drop(s);
	s->write_dead = true;
	if (s->state == VSK_OPEN)
		tell_shutdown(s, VIRTIO_VSOCK_SHUTDOWN_RCV);
}

// Bytes written (0: it takes none now), or -errno.
static ssize_t socket_write(struct vsk_stream *s, struct iovec *iov, unsigned n)
{
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = n};
	ssize_t rc;

	do
		rc = sendmsg(s->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (rc < 0 && errno == EINTR);
	if (rc < 0)
		return errno == EAGAIN ? 0 : -errno;
	return rc;
}

static void consumed(struct vsk_stream *s, uint32_t n)
{
	s->fwd_cnt += n;
	if (s->state == VSK_OPEN &&
	    s->fwd_cnt - s->fwd_told >= s->buf_alloc / 2)
		vsk_owe(s, VSK_CTL_CREDIT);
}

// After the last byte: pass the guest's end of stream on.
static void written_out(struct vsk_stream *s)
{
	if (s->buf)
		buf_drop(s);
	if (!s->write_dead && (s->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND))
		shutdown(s->fd, SHUT_WR);
}

static void flush(struct vsk_stream *s)
{
	while (s->buf_len) {
		uint32_t first = MIN(s->buf_len, s->buf_alloc - s->buf_at);
		struct iovec iov[2] = {
		    {s->buf + s->buf_at, first},
		    {s->buf, s->buf_len - first},
		};
		ssize_t n = socket_write(s, iov, s->buf_len > first ? 2 : 1);

		if (n == 0)
			return;
		if (n < 0) {
			write_failed(s);
			return;
		}
		s->buf_at = (s->buf_at + (uint32_t)n) % s->buf_alloc;
		s->buf_len -= (uint32_t)n;
		consumed(s, (uint32_t)n);
	}
	written_out(s);
}

// Appends to the ring. The caller checked that it fits.
static bool buffer(struct vsk_stream *s, const struct iovec *iov, unsigned n,
		   size_t off, uint32_t len)
{
	struct vio_vsock *v = s->v;
	uint32_t end, first;

	if (!s->buf && s->buf_alloc == VSK_BUF_FEW)
		s->buf = ptr_steal(v->spare);
	if (!s->buf)
		s->buf = malloc(s->buf_alloc);
	if (!s->buf)
		return false;
	end = (s->buf_at + s->buf_len) % s->buf_alloc;
	first = MIN(len, s->buf_alloc - end);
	virtq_iov_read(iov, n, off, s->buf + end, first);
	virtq_iov_read(iov, n, off + first, s->buf, len - first);
	s->buf_len += len;
	return true;
}

bool vsk_deliver(struct vsk_stream *s, const struct iovec *iov, unsigned n,
		 size_t off, uint32_t len)
{
	struct iovec part[VIRTQ_MAX_SEGS];
	ssize_t done = 0;

	s->rx_cnt += len;
	if (s->rx_cnt - s->fwd_cnt > s->buf_alloc)
		return false; // more than it was given credit for
	if (s->write_dead || s->fd < 0) {
		consumed(s, len);
		return true;
	}
	if (!s->buf_len) {
		done = socket_write(s, part,
				    virtq_iov_slice(iov, n, off, len, part));
		if (done < 0) {
			consumed(s, len);
			write_failed(s);
			return true;
		}
		consumed(s, (uint32_t)done);
	}
	if ((uint32_t)done < len &&
	    !buffer(s, iov, n, off + (size_t)done, len - (uint32_t)done))
		return false;
	return true;
}

void vsk_guest_shutdown(struct vsk_stream *s, uint32_t flags)
{
	uint32_t fresh = flags & BOTH & ~s->guest_shut;

	s->guest_shut |= fresh;
	if (s->guest_shut == BOTH) {
		// It is done; bytes that it sent still reach the host.
		vsk_owe_rst(s->v, s->local_port, s->guest_port);
		vsk_forget(s);
		return;
	}
	if (s->fd < 0)
		return;
	if (fresh & VIRTIO_VSOCK_SHUTDOWN_RCV)
		shutdown(s->fd, SHUT_RD);
	if ((fresh & VIRTIO_VSOCK_SHUTDOWN_SEND) && !s->buf_len)
		written_out(s);
}

// --- socket to guest --------------------------------------------------------

void vsk_host_eof(struct vsk_stream *s)
{
	s->host_eof = true;
	if (s->host_hup)
		host_gone(s);
	else
		tell_shutdown(s, VIRTIO_VSOCK_SHUTDOWN_SEND);
}

static bool wants_read(const struct vsk_stream *s)
{
	return s->state == VSK_OPEN && !s->host_eof &&
	       !(s->guest_shut & VIRTIO_VSOCK_SHUTDOWN_RCV);
}

void vsk_rearm(struct vsk_stream *s)
{
	struct vio_dev *d = &s->v->dev;
	uint32_t want = 0;

	if (s->state == VSK_FREE || s->fd < 0)
		return;
	if (!d->quiesced) {
		if (wants_read(s) && !s->stalled && vsk_credit(s) > 0)
			want |= EPOLLIN;
		if (s->buf_len)
			want |= EPOLLOUT;
		// Nothing to move, and the hang-up would be news.
		if (!want && !wants_read(s) && !s->host_hup)
			want = EPOLLPRI;
	}
	if (want == s->armed)
		return;
	if (d->host.watch(d->host.vm, s->fd, want, socket_event, s) < 0) {
		// Unwatched it would hang for ever.
		if (s->state == VSK_LINGER)
			vsk_free(s);
		else
			vsk_kill(s);
		return;
	}
	s->armed = want;
}

static void on_event(struct vsk_stream *s, uint32_t events)
{
	bool hup = events & (EPOLLHUP | EPOLLERR);

	if (s->buf_len && (hup || (events & EPOLLOUT)))
		flush(s);
	if (s->state == VSK_LINGER) {
		if (!s->buf_len)
			vsk_free(s);
		return;
	}
	if (s->fd < 0)
		return;
	s->host_hup = s->host_hup || hup;
	if (s->state == VSK_CONNECTING) {
		if (hup)
			vsk_kill(s); // nobody waits for the answer
		return;
	}
	if (wants_read(s)) {
		if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
			vsk_read(s);
	} else if (hup) {
		host_gone(s);
	}
}

static void socket_event(void *ctx, uint32_t events)
{
	struct vsk_stream *s = ctx;
	struct vio_vsock *v = s->v;

	vio_enter(&v->dev);
	if (s->state != VSK_FREE && !v->dev.quiesced)
		on_event(s, events);
	vsk_rearm(s);
	vsk_pump(v);
	vio_leave(&v->dev);
}
