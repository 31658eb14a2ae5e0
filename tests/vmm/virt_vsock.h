// The guest's half of vsock, packet by packet.
#ifndef THAW_TEST_VIRT_VSOCK_H
#define THAW_TEST_VIRT_VSOCK_H

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_vsock.h>
#include <string.h>
#include <sys/socket.h>

#include "virt_driver.h"

enum {
	CID = 77,
	VQ_RX = 0,
	VQ_TX = 1,
	HDR = sizeof(struct virtio_vsock_hdr),
	RX_DATA = 4096,
};
#define VSK_FEATURES (VIO_F_VERSION_1 | VIO_F_INDIRECT | VIO_F_EVENT_IDX)

struct guest {
	struct rig r;
	struct drv d;
	uint64_t rx_gpa[DRV_QSIZE_MAX];
	uint64_t tx_gpa[64];
	unsigned tx_next;
	bool hold_rx; // do not offer a taken buffer again
};

struct pkt {
	struct virtio_vsock_hdr h;
	uint8_t data[RX_DATA];
};

// One end of a stream as the guest sees it.
struct conn {
	uint32_t host_port, guest_port, buf_alloc, fwd_cnt;
	int fd; // the host program's end
};

static inline void rx_offer(struct guest *g, uint64_t gpa)
{
	struct seg s[2] = {{gpa, HDR, true}, {gpa + HDR, RX_DATA, true}};
	int head = drv_add(&g->d, VQ_RX, s, 2);

	cr_assert_geq(head, 0);
	g->rx_gpa[head] = gpa;
}

static inline void rx_fill(struct guest *g, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		rx_offer(g, drv_alloc(&g->d, HDR + RX_DATA));
	drv_kick(&g->d, VQ_RX);
}

static inline struct guest *guest_new_features(unsigned rx, uint64_t features)
{
	struct guest *g = calloc(1, sizeof(*g));

	rig_init(&g->r, 64 << 20);
	g->d.heap = 0x100000;
	g->d.dev = vio_vsock_create(&g->r.host, CID);
	cr_assert_not_null(g->d.dev);
	cr_assert(drv_init(&g->d, &g->r, g->d.dev, features, 256));
	for (unsigned i = 0; i < 64; i++)
		g->tx_gpa[i] = drv_alloc(&g->d, 65536 + 64);
	if (rx)
		rx_fill(g, rx);
	return g;
}

static inline struct guest *guest_new(unsigned rx)
{
	return guest_new_features(rx, VSK_FEATURES);
}

static inline void guest_free(struct guest *g)
{
	vio_destroy(g->d.dev);
	cr_assert_eq(g->r.nwatches, 0, "%u watches left", g->r.nwatches);
	rig_fini(&g->r);
	free(g);
}

// Next packet that the device sent.
static inline bool rx_next(struct guest *g, struct pkt *p)
{
	uint16_t head;
	uint32_t len;

	if (!drv_used(&g->d, VQ_RX, &head, &len))
		return false;
	cr_assert_geq(len, HDR);
	memcpy(&p->h, drv_ptr(&g->d, g->rx_gpa[head], HDR), HDR);
	cr_assert_eq(len, HDR + p->h.len);
	cr_assert_eq(p->h.src_cid, 2);
	cr_assert_eq(p->h.dst_cid, CID);
	cr_assert_eq(p->h.type, 1);
	memcpy(p->data, drv_ptr(&g->d, g->rx_gpa[head] + HDR, p->h.len),
	       p->h.len);
	if (!g->hold_rx) {
		rx_offer(g, g->rx_gpa[head]);
		drv_kick(&g->d, VQ_RX);
	}
	return true;
}

// The next packet, which has to be this one.
static inline struct pkt rx_expect(struct guest *g, uint16_t op)
{
	struct pkt p = {0};

	rig_run(&g->r);
	cr_assert(rx_next(g, &p), "no packet, but operation %u expected", op);
	cr_assert_eq(p.h.op, op, "operation %u, expected %u", p.h.op, op);
	return p;
}

static inline void rx_none(struct guest *g)
{
	struct pkt p;

	rig_run(&g->r);
	cr_assert_not(rx_next(g, &p), "an unexpected packet, operation %u",
		      p.h.op);
}

static inline void tx_reap(struct guest *g)
{
	uint16_t head;
	uint32_t len;

	while (drv_used(&g->d, VQ_TX, &head, &len))
		;
}

static inline void tx_raw(struct guest *g, const struct virtio_vsock_hdr *h,
			  const void *data, uint32_t len)
{
	uint64_t gpa = g->tx_gpa[g->tx_next++ % 64];
	struct seg s[2] = {{gpa, HDR, false}, {gpa + HDR, len, false}};

	tx_reap(g);
	memcpy(drv_ptr(&g->d, gpa, HDR), h, HDR);
	if (len)
		memcpy(drv_ptr(&g->d, gpa + HDR, len), data, len);
	cr_assert_geq(drv_add(&g->d, VQ_TX, s, len ? 2 : 1), 0);
}

static inline struct virtio_vsock_hdr hdr_of(const struct conn *c, uint16_t op)
{
	return (struct virtio_vsock_hdr){.src_cid = CID,
					 .dst_cid = 2,
					 .src_port = c->guest_port,
					 .dst_port = c->host_port,
					 .type = 1,
					 .op = op,
					 .buf_alloc = c->buf_alloc,
					 .fwd_cnt = c->fwd_cnt};
}

static inline void tx_add(struct guest *g, const struct conn *c, uint16_t op,
			  uint32_t flags, const void *data, uint32_t len)
{
	struct virtio_vsock_hdr h = hdr_of(c, op);

	h.flags = flags;
	h.len = len;
	tx_raw(g, &h, data, len);
}

static inline void tx(struct guest *g, const struct conn *c, uint16_t op,
		      uint32_t flags, const void *data, uint32_t len)
{
	tx_add(g, c, op, flags, data, len);
	drv_kick(&g->d, VQ_TX);
}

// A host program asks for guest port 1000; what the guest sees of it.
static inline struct conn dial(struct guest *g)
{
	struct conn c = {.guest_port = 1000, .buf_alloc = 1 << 20};
	int sv[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv),
		     0);
	c.fd = sv[0];
	cr_assert_eq(vio_vsock_connect(g->d.dev, 1000, sv[1], NULL), 0);
	return c;
}

static inline struct conn connect_stream(struct guest *g, uint32_t buf_alloc)
{
	struct conn c = dial(g);
	struct pkt p = rx_expect(g, VIRTIO_VSOCK_OP_REQUEST);

	cr_assert_eq(p.h.dst_port, 1000);
	c.host_port = p.h.src_port;
	c.buf_alloc = buf_alloc;
	tx(g, &c, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0);
	return c;
}

// 1: bytes, 0: end of file, -1: nothing yet, -2: connection lost
static inline int host_state(int fd)
{
	char c;
	ssize_t n = recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN ? -1 : -2;
	return n > 0;
}

#endif
