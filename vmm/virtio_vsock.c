// virtio-vsock (virtio 1.2 section 5.10): streams that the host opens into the
// guest, bridged to host stream sockets.
//
// Goals
// - A stream is as good as a socket: all bytes, in order, each direction's end
//   on its own; 64 KiB packets from the guest go to sendmsg() from guest
//   memory, bytes for the guest come by one recvmsg() into many RX buffers.
// - Whatever the guest does, memory is bounded: at most VSK_STREAMS_MAX
//   streams, each with at most buf_alloc bytes buffered (towards a socket that
//   is not read; nothing is buffered towards the guest), VSK_RSTS_MAX owed
//   RSTs. That is 8 MiB + 62 MiB, and only when a host program lets all its
//   sockets stand unread.
// - A guest cannot open a stream: its REQUEST is answered by RST.
//
// Credit. Ours is honest: buf_alloc is the size of the stream's ring, fwd_cnt
// counts bytes that a socket took. A guest that sends more is reset. The
// guest's is believed: a lie costs only the guest.
//
// Where packets wait. Everything towards the guest needs one of its RX buffers
// (virtio_vsock_rx.c). The TX queue is read until it is empty, except that it
// waits while VSK_REPLIES_MAX RSTs do.
//
// Snapshots. Host sockets cannot be saved; what the guest believes can. A
// section holds the local port counter (so that a port is not used again
// towards a guest that may remember it), and one RST for each stream that the
// guest may know of. A loaded device sends those RSTs first. This is what
// TRANSPORT_RESET does in other machines, but precise and in order: an event
// travels in another queue than packets, and a guest that handles it late tears
// down streams made after the restore. Here the RX queue's order rules that
// out. TX descriptors that were not taken at the save are in the ring and are
// taken after the load; if they are of a stream that is gone they find its RST
// owed, or get one.
#include "virtio_vsock.h"

#include <errno.h>
#include <string.h>

enum {
	HDR = sizeof(struct virtio_vsock_hdr),
	TX_BURST = 128, // packets, then other work gets its turn
	CID_MIN = 3,
};

// --- packets from the guest -------------------------------------------------

struct packet {
	struct virtio_vsock_hdr h; // our copy
	const struct iovec *iov;
	unsigned niov;
};

static void reply_rst(struct vio_vsock *v, const struct virtio_vsock_hdr *h)
{
	if (h->op != VIRTIO_VSOCK_OP_RST &&
	    !vsk_rst_owed(v, h->dst_port, h->src_port))
		vsk_owe_rst(v, h->dst_port, h->src_port);
}

static void take_credit(struct vsk_stream *s, const struct virtio_vsock_hdr *h)
{
	s->peer_alloc = h->buf_alloc;
	s->peer_fwd = h->fwd_cnt;
	if (vsk_credit(s))
		s->credit_asked = false;
}

// Packets of a stream in CONNECTING: only an answer is right.
static bool on_connecting(struct vsk_stream *s, const struct packet *p)
{
	if (p->h.op != VIRTIO_VSOCK_OP_RESPONSE || !s->request_sent)
		return false;
	s->state = VSK_OPEN;
	return true;
}

// Packets of an OPEN or CLOSING stream; false: the guest broke the protocol.
static bool on_open(struct vsk_stream *s, const struct packet *p)
{
	switch (p->h.op) {
	case VIRTIO_VSOCK_OP_RW:
		if (s->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND)
			return false;
		return vsk_deliver(s, p->iov, p->niov, HDR, p->h.len);
	case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
		return true;
	case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
		vsk_owe(s, VSK_CTL_CREDIT);
		return true;
	case VIRTIO_VSOCK_OP_SHUTDOWN:
		vsk_guest_shutdown(s, p->h.flags);
		return true;
	default:
		return false;
	}
}

static void handle(struct vio_vsock *v, const struct packet *p)
{
	const struct virtio_vsock_hdr *h = &p->h;
	struct vsk_stream *s;
	bool had_credit, ok;
	enum vsk_state was;

	if (h->src_cid != v->cid || h->dst_cid != VSK_HOST_CID)
		return;
	s = vsk_find(v, h->dst_port, h->src_port);
	if (!s) {
		reply_rst(v, h);
		return;
	}
	if (h->op == VIRTIO_VSOCK_OP_RST) {
		vsk_forget(s);
		return;
	}
	was = s->state;
	had_credit = vsk_credit(s) > 0;
	take_credit(s, h);
	ok = h->type == VIRTIO_VSOCK_TYPE_STREAM &&
	     (was == VSK_CONNECTING ? on_connecting(s, p) : on_open(s, p));
	if (!ok) {
		vsk_kill(s);
		return;
	}
	if (s->state == VSK_OPEN && (was != VSK_OPEN || !had_credit))
		vsk_read(s);
	vsk_rearm(s);
}

// One chain. A header that does not fit its chain is nobody's packet.
static void on_chain(struct vio_vsock *v, const struct virtq_chain *c)
{
	struct packet p = {.iov = v->tx_segs, .niov = c->out_n};

	if (c->out_len < HDR)
		return;
	virtq_iov_read(p.iov, p.niov, 0, &p.h, HDR);
	if (p.h.len > c->out_len - HDR)
		p.h.op = VIRTIO_VSOCK_OP_INVALID; // ends its stream
	handle(v, &p);
}

static void tx_process(struct vio_vsock *v)
{
	struct vio_dev *d = &v->dev;
	struct virtq_chain c;
	unsigned n = 0;

	virtq_quiet(&d->vq[VSK_TX]);
	do {
		while (n < TX_BURST && v->rst_n < VSK_REPLIES_MAX &&
		       vio_pop(d, VSK_TX, &c, v->tx_segs, VIRTQ_MAX_SEGS)) {
			on_chain(v, &c);
			virtq_push(&d->vq[VSK_TX], c.head, 0);
			n++;
		}
		if (v->rst_n >= VSK_REPLIES_MAX) {
			v->tx_blocked = true;
			break;
		}
		if (n == TX_BURST) {
			vio_again(d, VSK_TX);
			break;
		}
	} while (vio_listen(d, VSK_TX));
	vio_signal(d, VSK_TX);
}

static void vsock_process(struct vio_dev *d, unsigned q)
{
	struct vio_vsock *v = (struct vio_vsock *)d;

	if (q == VSK_TX)
		tx_process(v);
	// Event buffers stay where they are: see Snapshots.
	if (q != VSK_EV)
		vsk_pump(v);
}

// --- from the machine -------------------------------------------------------

static struct vsk_stream *open_stream(struct vio_vsock *v, uint32_t port,
				      int fd)
{
	struct vsk_stream *s = vsk_open(v, port, fd);

	if (s || !vsk_reclaim(v))
		return s;
	vsk_pump(v);
	return vsk_open(v, port, fd);
}

int vio_vsock_connect(struct vio_dev *d, uint32_t port, int fd, struct err *e)
{
	struct vio_vsock *v = (struct vio_vsock *)d;
	struct vsk_stream *s = NULL;
	int rc = 0;

	vio_enter(d);
	if (!vio_running(d))
		rc = err_set(e, -ENOTCONN,
			     "the guest has no vsock driver running (yet)");
	else if (!(s = open_stream(v, port, fd)))
		rc = err_set(e, -EAGAIN,
			     "the guest has %u vsock streams open or does not "
			     "read its receive queue; close some",
			     v->live);
	if (rc < 0) {
		close(fd);
	} else {
		vsk_owe(s, VSK_CTL_REQUEST);
		vsk_rearm(s);
		vsk_pump(v);
	}
	vio_leave(d);
	return rc;
}

void vio_vsock_close_all(struct vio_dev *d)
{
	struct vio_vsock *v = (struct vio_vsock *)d;

	vio_enter(d);
	for (unsigned i = 0; i < v->nslots; i++) {
		struct vsk_stream *s = v->slots[i];

		if (s->state == VSK_LINGER)
			vsk_free(s);
		else if (s->state != VSK_FREE)
			vsk_kill(s);
	}
	vsk_pump(v);
	vio_leave(d);
}

static void vsock_reset(struct vio_dev *d)
{
	struct vio_vsock *v = (struct vio_vsock *)d;

	for (unsigned i = 0; i < v->nslots; i++)
		if (v->slots[i]->state != VSK_FREE)
			vsk_free(v->slots[i]);
	v->rst_n = 0;
	v->tx_blocked = false;
}

static void vsock_resume(struct vio_dev *d)
{
	struct vio_vsock *v = (struct vio_vsock *)d;

	for (unsigned i = 0; i < v->nslots; i++)
		vsk_rearm(v->slots[i]);
	vsk_pump(v);
}

static size_t vsock_config(const struct vio_dev *d, uint8_t *space)
{
	memcpy(space, &((const struct vio_vsock *)d)->cid, sizeof(uint64_t));
	return sizeof(uint64_t);
}

// --- section ----------------------------------------------------------------

static bool guest_knows(const struct vsk_stream *s)
{
	return s->state == VSK_OPEN || s->state == VSK_CLOSING ||
	       (s->state == VSK_CONNECTING && s->request_sent);
}

static void put_pair(struct wire_writer *w, uint32_t local, uint32_t guest)
{
	wire_put_u32(w, local);
	wire_put_u32(w, guest);
}

static void vsock_save(struct vio_dev *d, struct wire_writer *w)
{
	const struct vio_vsock *v = (struct vio_vsock *)d;
	uint32_t n = v->rst_n;

	for (unsigned i = 0; i < v->nslots; i++)
		n += guest_knows(v->slots[i]);
	wire_put_u64(w, v->cid);
	wire_put_u32(w, v->next_port);
	wire_put_u32(w, n);
	for (unsigned i = 0; i < v->rst_n; i++) {
		const struct vsk_pair *p =
		    &v->rsts[(v->rst_at + i) % VSK_RSTS_MAX];

		put_pair(w, p->local_port, p->guest_port);
	}
	for (unsigned i = 0; i < v->nslots; i++)
		if (guest_knows(v->slots[i]))
			put_pair(w, v->slots[i]->local_port,
				 v->slots[i]->guest_port);
}

static int vsock_check(struct wire_reader *r, struct err *e)
{
	uint64_t cid = wire_get_u64(r);
	uint32_t port = wire_get_u32(r), n = wire_get_u32(r);

	if (r->bad || cid < CID_MIN || cid >= UINT32_MAX)
		return err_set(e, -EBADMSG, "the vsock CID %llu is reserved",
			       (unsigned long long)cid);
	if (port < VSK_PORT_MIN || port == UINT32_MAX)
		return err_set(e, -EBADMSG, "the vsock port counter is at %u",
			       port);
	if (n > VSK_RSTS_MAX)
		return err_set(e, -EBADMSG, "%u vsock streams were open", n);
	for (uint32_t i = 0; i < n; i++) {
		wire_get_u32(r);
		wire_get_u32(r);
	}
	return 0; // the caller checks r->bad and the end
}

static int vsock_load(struct vio_dev *d, struct wire_reader *r, struct err *e)
{
	struct vio_vsock *v = (struct vio_vsock *)d;
	uint32_t n;

	(void)e;
	vsock_reset(d);
	v->cid = wire_get_u64(r);
	v->next_port = wire_get_u32(r);
	n = wire_get_u32(r);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t local = wire_get_u32(r), guest = wire_get_u32(r);

		vsk_owe_rst(v, local, guest);
	}
	return 0;
}

// --- life -------------------------------------------------------------------

static void vsock_destroy(struct vio_dev *d)
{
	struct vio_vsock *v = (struct vio_vsock *)d;

	vsock_reset(d);
	for (unsigned i = 0; i < v->nslots; i++)
		free(v->slots[i]);
	free(v->spare);
	vio_dev_fini(d);
	free(v);
}

const struct vio_class vio_vsock_class = {
    .device_id = 19,
    .features = VIO_F_RING,
    .nqueues = VSK_NQUEUES,
    .queue_size = 256,
    .process = vsock_process,
    .reset = vsock_reset,
    .resume = vsock_resume,
    .config = vsock_config,
    .save = vsock_save,
    .check = vsock_check,
    .load = vsock_load,
    .destroy = vsock_destroy,
};

struct vio_dev *vio_vsock_create(const struct vio_host *h, uint64_t guest_cid)
{
	struct vio_vsock *v = calloc(1, sizeof(*v));
	uint32_t port;

	if (!v)
		return NULL;
	v->cid = guest_cid;
	util_random(&port, sizeof(port));
	v->next_port = 0x40000000u + (port & 0x3fffffffu);
	TAILQ_INIT(&v->ctls);
	TAILQ_INIT(&v->stalls);
	if (vio_dev_init(&v->dev, &vio_vsock_class, VIO_VSOCK, h) < 0) {
		free(v);
		return NULL;
	}
	return &v->dev;
}
