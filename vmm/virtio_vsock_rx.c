// vsock, towards the guest: everything that takes a buffer from the RX queue.
//
// Three kinds wait for buffers, and are served in this order: owed RSTs, owed
// control packets (`ctls`, by stream), and data of streams that ran out of
// buffers (`stalls`, round robin). All three are bounded by the number of
// streams; a guest that never offers a buffer holds up only itself.
#include "virtio_vsock.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

enum {
	HDR = sizeof(struct virtio_vsock_hdr),
	BURST_MIN = 4,	    // chains
	READS_PER_CALL = 4, // bursts, then other sockets get their turn
};

static struct virtio_vsock_hdr header(const struct vio_vsock *v, uint32_t local,
				      uint32_t guest, uint16_t op)
{
	return (struct virtio_vsock_hdr){
	    .src_cid = VSK_HOST_CID,
	    .dst_cid = v->cid,
	    .src_port = local,
	    .dst_port = guest,
	    .type = VIRTIO_VSOCK_TYPE_STREAM,
	    .op = op,
	};
}

// Header of a packet of stream s; it tells our credit, so that is told now.
static struct virtio_vsock_hdr stream_header(struct vsk_stream *s, uint16_t op)
{
	struct virtio_vsock_hdr h =
	    header(s->v, s->local_port, s->guest_port, op);

	h.buf_alloc = s->buf_alloc;
	h.fwd_cnt = s->fwd_cnt;
	s->fwd_told = s->fwd_cnt;
	s->ctl &= ~(unsigned)VSK_CTL_CREDIT;
	return h;
}

// Takes the next RX chain with its segments at segs[at..]; only the writable
// part counts. One that cannot hold a header breaks the device.
static bool take(struct vio_vsock *v, struct virtq_chain *c, unsigned at)
{
	struct vio_dev *d = &v->dev;

	do {
		if (vio_pop(d, VSK_RX, c, v->segs + at, VSK_SEGS - at)) {
			if (c->in_len >= HDR)
				return true;
			vio_break(d);
		}
	} while (vio_listen(d, VSK_RX));
	return false;
}

// A packet without payload; false when there is no buffer for it.
static bool send_plain(struct vio_vsock *v, const struct virtio_vsock_hdr *h)
{
	struct virtq_chain c;

	if (!take(v, &c, 0))
		return false;
	virtq_iov_write(v->segs + c.out_n, c.in_n, 0, h, HDR);
	virtq_push(&v->dev.vq[VSK_RX], c.head, HDR);
	return true;
}

// --- RSTs -------------------------------------------------------------------

void vsk_owe_rst(struct vio_vsock *v, uint32_t local, uint32_t guest)
{
	if (v->rst_n == VSK_RSTS_MAX)
		abort(); // vsk_open() and the TX queue keep it below
	v->rsts[(v->rst_at + v->rst_n) % VSK_RSTS_MAX] =
	    (struct vsk_pair){local, guest};
	v->rst_n++;
}

bool vsk_rst_owed(const struct vio_vsock *v, uint32_t local, uint32_t guest)
{
	for (unsigned i = 0; i < v->rst_n; i++) {
		const struct vsk_pair *p =
		    &v->rsts[(v->rst_at + i) % VSK_RSTS_MAX];

		if (p->local_port == local && p->guest_port == guest)
			return true;
	}
	return false;
}

static bool send_rsts(struct vio_vsock *v)
{
	while (v->rst_n) {
		const struct vsk_pair *p = &v->rsts[v->rst_at];
		struct virtio_vsock_hdr h = header(
		    v, p->local_port, p->guest_port, VIRTIO_VSOCK_OP_RST);

		if (!send_plain(v, &h))
			return false;
		v->rst_at = (v->rst_at + 1) % VSK_RSTS_MAX;
		v->rst_n--;
	}
	return true;
}

// --- control packets --------------------------------------------------------

void vsk_owe(struct vsk_stream *s, unsigned ctl)
{
	s->ctl |= ctl;
	if (s->ctl_queued)
		return;
	TAILQ_INSERT_TAIL(&s->v->ctls, s, ctl_link);
	s->ctl_queued = true;
}

static bool send_ctl(struct vsk_stream *s)
{
	static const struct {
		unsigned bit;
		uint16_t op;
	} order[] = {
	    {VSK_CTL_REQUEST, VIRTIO_VSOCK_OP_REQUEST},
	    {VSK_CTL_CREDIT_REQ, VIRTIO_VSOCK_OP_CREDIT_REQUEST},
	    {VSK_CTL_SHUTDOWN, VIRTIO_VSOCK_OP_SHUTDOWN},
	    {VSK_CTL_CREDIT, VIRTIO_VSOCK_OP_CREDIT_UPDATE},
	};

	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		uint32_t told = s->fwd_told;
		unsigned ctl = s->ctl;
		struct virtio_vsock_hdr h;

		if (!(s->ctl & order[i].bit))
			continue;
		h = stream_header(s, order[i].op);
		if (order[i].op == VIRTIO_VSOCK_OP_SHUTDOWN)
			h.flags = s->shut;
		if (!send_plain(s->v, &h)) {
			s->fwd_told = told;
			s->ctl = ctl;
			return false;
		}
		s->ctl &= ~order[i].bit;
		if (order[i].bit == VSK_CTL_REQUEST)
			s->request_sent = true;
	}
	return true;
}

static bool send_ctls(struct vio_vsock *v)
{
	struct vsk_stream *s;

	while ((s = TAILQ_FIRST(&v->ctls))) {
		if (!send_ctl(s))
			return false;
		TAILQ_REMOVE(&v->ctls, s, ctl_link);
		s->ctl_queued = false;
	}
	return true;
}

// --- data -------------------------------------------------------------------

uint32_t vsk_credit(const struct vsk_stream *s)
{
	uint32_t out = s->tx_cnt - s->peer_fwd;

	return out < s->peer_alloc ? s->peer_alloc - out : 0;
}

static void stall(struct vsk_stream *s)
{
	if (s->stalled)
		return;
	s->stalled = true;
	TAILQ_INSERT_TAIL(&s->v->stalls, s, stall_link);
}

// RX chains gathered for one read: v->chains[0..n), their segments side by side
// in v->segs, and the payload parts of those in v->data.
struct batch {
	unsigned n, nseg, ndata;
	size_t room;
};

static size_t payload_room(const struct virtq_chain *c)
{
	return (size_t)MIN(c->in_len - HDR, (uint64_t)VSK_PACKET_MAX);
}

static void gather(struct vio_vsock *v, struct batch *b, unsigned chains,
		   size_t want)
{
	while (b->n < chains && b->room < want &&
	       VSK_SEGS - b->nseg >= VIRTQ_MAX_SEGS) {
		struct virtq_chain *c = &v->chains[b->n];
		size_t room;

		if (!take(v, c, b->nseg))
			return;
		room = MIN(payload_room(c), want - b->room);
		b->ndata +=
		    virtq_iov_slice(v->segs + b->nseg + c->out_n, c->in_n, HDR,
				    room, v->data + b->ndata);
		b->room += room;
		b->nseg += c->out_n + c->in_n;
		b->n++;
	}
}

// Gives the gathered chains to the guest with `got` bytes spread over them, and
// puts those that were not needed back.
static void give(struct vsk_stream *s, const struct batch *b, size_t got,
		 size_t want)
{
	struct vio_vsock *v = s->v;
	unsigned seg = 0, i;

	for (i = 0; i < b->n && got; i++) {
		const struct virtq_chain *c = &v->chains[i];
		size_t room = MIN(payload_room(c), want);
		uint32_t len = (uint32_t)MIN(room, got);

		if (len) {
			struct virtio_vsock_hdr h =
			    stream_header(s, VIRTIO_VSOCK_OP_RW);

			h.len = len;
			virtq_iov_write(v->segs + seg + c->out_n, c->in_n, 0,
					&h, HDR);
		}
		virtq_push(&v->dev.vq[VSK_RX], c->head, len ? HDR + len : 0);
		seg += c->out_n + c->in_n;
		got -= len;
		want -= len;
		s->tx_cnt += len;
	}
	virtq_unpop(&v->dev.vq[VSK_RX], b->n - i);
}

static void gather_undo(struct vio_vsock *v, const struct batch *b)
{
	virtq_unpop(&v->dev.vq[VSK_RX], b->n);
}

// One burst. True when another one may find more.
static bool read_burst(struct vsk_stream *s)
{
	struct vio_vsock *v = s->v;
	size_t want = MIN(vsk_credit(s), (size_t)VSK_CHAINS * VSK_PACKET_MAX);
	struct batch b = {0};
	struct msghdr m = {.msg_iov = v->data};
	ssize_t got;

	if (want == 0) {
		if (!s->credit_asked) {
			s->credit_asked = true;
			vsk_owe(s, VSK_CTL_CREDIT_REQ);
		}
		return false;
	}
	gather(v, &b, s->burst, want);
	if (!vio_running(&v->dev))
		return false; // broken on the way: nothing may be touched
	if (b.n == 0) {
		stall(s);
		return false;
	}
	if (b.room == 0) { // buffers of headers only: the guest's own fault
		vio_break(&v->dev);
		return false;
	}
	m.msg_iovlen = b.ndata;
	do
		got = recvmsg(s->fd, &m, MSG_DONTWAIT);
	while (got < 0 && errno == EINTR);
	if (got <= 0) {
		int why = errno;

		gather_undo(v, &b);
		s->burst = BURST_MIN;
		if (got < 0 && why == EAGAIN)
			return false;
		s->host_hup = s->host_hup || got < 0;
		vsk_host_eof(s);
		return false;
	}
	give(s, &b, (size_t)got, want);
	if ((size_t)got < b.room) {
		s->burst = MAX(s->burst / 2, (unsigned)BURST_MIN);
		return false;
	}
	s->burst = MIN(s->burst * 2, (unsigned)VSK_CHAINS);
	return true;
}

void vsk_read(struct vsk_stream *s)
{
	for (int i = 0; i < READS_PER_CALL; i++) {
		if (s->state != VSK_OPEN || s->host_eof || s->stalled ||
		    (s->guest_shut & VIRTIO_VSOCK_SHUTDOWN_RCV))
			return;
		if (!read_burst(s))
			return;
	}
}

// Streams that ran out of buffers, once each.
static void read_stalled(struct vio_vsock *v)
{
	struct vsk_list todo = TAILQ_HEAD_INITIALIZER(todo);
	struct vsk_stream *s;

	TAILQ_CONCAT(&todo, &v->stalls, stall_link);
	while ((s = TAILQ_FIRST(&todo))) {
		TAILQ_REMOVE(&todo, s, stall_link);
		s->stalled = false;
		vsk_read(s);
		vsk_rearm(s);
	}
}

void vsk_pump(struct vio_vsock *v)
{
	struct vio_dev *d = &v->dev;

	if (d->quiesced || !vio_running(d))
		return;
	if (send_rsts(v) && send_ctls(v) && !TAILQ_EMPTY(&v->stalls)) {
		read_stalled(v);
		send_ctls(v);
	}
	if (!v->rst_n && TAILQ_EMPTY(&v->ctls) && TAILQ_EMPTY(&v->stalls))
		virtq_quiet(&d->vq[VSK_RX]);
	if (v->tx_blocked && v->rst_n < VSK_REPLIES_MAX) {
		v->tx_blocked = false;
		vio_again(d, VSK_TX);
	}
	vio_signal(d, VSK_RX);
}
