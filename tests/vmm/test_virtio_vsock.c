// vsock, one behaviour a test; long transfers and hostile guests are in
// test_virtio_vsock_load.c.
#include "virt_vsock.h"

enum {
	OP_REQUEST = VIRTIO_VSOCK_OP_REQUEST,
	OP_RST = VIRTIO_VSOCK_OP_RST,
	OP_SHUTDOWN = VIRTIO_VSOCK_OP_SHUTDOWN,
	OP_RW = VIRTIO_VSOCK_OP_RW,
	RCV = 1,
	SEND = 2,
};

static void host_send(const struct conn *c, const char *text)
{
	cr_assert_eq(send(c->fd, text, strlen(text), MSG_NOSIGNAL),
		     (ssize_t)strlen(text));
}

static void host_expect(const struct conn *c, const char *text)
{
	char buf[256] = "";

	cr_assert_eq(recv(c->fd, buf, sizeof(buf), 0), (ssize_t)strlen(text));
	cr_assert_str_eq(buf, text);
}

static void guest_expect(struct guest *g, struct conn *c, const char *text)
{
	struct pkt p = rx_expect(g, OP_RW);

	cr_assert_eq(p.h.len, strlen(text));
	cr_assert_eq(memcmp(p.data, text, p.h.len), 0);
	cr_assert_eq(p.h.src_port, c->host_port);
	cr_assert_eq(p.h.dst_port, c->guest_port);
	c->fwd_cnt += p.h.len;
}

Test(vsock, no_driver_no_stream)
{
	struct guest *g = guest_new(4);
	struct err e = ERR_INIT;
	uint64_t cid;
	int sv[2];

	vio_mmio_read(g->d.dev, 0x100, &cid, 8);
	cr_assert_eq(cid, CID);
	drv_write(&g->d, VIRTIO_MMIO_STATUS, 0);
	socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
	cr_assert_eq(vio_vsock_connect(g->d.dev, 1, sv[1], &e), -ENOTCONN);
	cr_assert_neq(e.msg[0], 0);
	cr_assert_eq(host_state(sv[0]), 0, "the descriptor was not consumed");
	close(sv[0]);
	guest_free(g);
}

Test(vsock, connects_and_moves_bytes_both_ways)
{
	struct guest *g = guest_new(8);
	struct conn c = dial(g);
	struct pkt p = rx_expect(g, OP_REQUEST);

	cr_assert_eq(p.h.dst_port, 1000);
	cr_assert_geq(p.h.src_port, 1024);
	cr_assert_eq(p.h.len, 0);
	cr_assert_eq(p.h.buf_alloc, 256 * 1024);
	c.host_port = p.h.src_port;
	host_send(&c, "early"); // before the answer: waits
	rx_none(g);
	tx(g, &c, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0);
	guest_expect(g, &c, "early");
	host_send(&c, "ping");
	guest_expect(g, &c, "ping");
	tx(g, &c, OP_RW, 0, "pong", 4);
	host_expect(&c, "pong");
	for (int i = 0; i < 48; i++) { // no buffer is lost: all eight are there
		g->hold_rx = i >= 40;
		host_send(&c, "again");
		guest_expect(g, &c, "again");
	}
	rx_none(g);
	close(c.fd);
	guest_free(g);
}

Test(vsock, a_refusal_closes_the_socket)
{
	struct guest *g = guest_new(8);
	struct conn c = dial(g);

	c.host_port = rx_expect(g, OP_REQUEST).h.src_port;
	cr_assert_eq(host_state(c.fd), -1);
	tx(g, &c, OP_RST, 0, NULL, 0);
	cr_assert_eq(host_state(c.fd), 0);
	rx_none(g);
	close(c.fd);
	guest_free(g);
}

Test(vsock, the_host_gives_up_before_the_answer)
{
	struct guest *g = guest_new(8);
	struct conn c = dial(g);

	c.host_port = rx_expect(g, OP_REQUEST).h.src_port;
	close(c.fd);
	cr_assert_eq(rx_expect(g, OP_RST).h.src_port, c.host_port);
	tx(g, &c, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0); // crossed the RST
	rx_expect(g, OP_RST);
	guest_free(g);
}

Test(vsock, guests_cannot_open_streams)
{
	struct guest *g = guest_new(8);
	struct conn c = {.host_port = 52, .guest_port = 4000};
	struct pkt p;

	tx(g, &c, OP_REQUEST, 0, NULL, 0);
	p = rx_expect(g, OP_RST);
	cr_assert_eq(p.h.src_port, 52);
	cr_assert_eq(p.h.dst_port, 4000);
	rx_none(g);
	guest_free(g);
}

Test(vsock, unknown_streams_get_a_reset_and_resets_get_nothing)
{
	struct guest *g = guest_new(8);
	struct conn c = connect_stream(g, 65536);
	struct conn other = c;
	struct virtio_vsock_hdr h;

	other.guest_port++;
	tx(g, &other, OP_RW, 0, "x", 1);
	rx_expect(g, OP_RST);
	tx(g, &other, OP_RST, 0, NULL, 0);
	rx_none(g);
	h = hdr_of(&c, OP_RST); // not for us, or not from there
	h.dst_cid = 3;
	tx_raw(g, &h, NULL, 0);
	h.dst_cid = 2;
	h.src_cid = 3;
	tx_raw(g, &h, NULL, 0);
	h.src_cid = CID | 1ull << 32;
	tx_raw(g, &h, NULL, 0);
	drv_kick(&g->d, VQ_TX);
	rx_none(g);
	tx(g, &c, OP_RW, 0, "fine", 4);
	host_expect(&c, "fine");
	close(c.fd);
	guest_free(g);
}

Test(vsock, operations_out_of_place_end_the_stream)
{
	static const uint16_t ops[] = {0, OP_REQUEST, VIRTIO_VSOCK_OP_RESPONSE,
				       8, 65535};
	struct guest *g = guest_new(8);

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		struct conn c = connect_stream(g, 65536);

		tx(g, &c, ops[i], 0, NULL, 0);
		rx_expect(g, OP_RST);
		cr_assert_eq(host_state(c.fd), 0);
		close(c.fd);
	}
	for (int i = 0; i < 2; i++) { // before the answer; and a wrong type
		struct conn c = dial(g);
		struct virtio_vsock_hdr h;

		c.host_port = rx_expect(g, OP_REQUEST).h.src_port;
		h = hdr_of(&c, i ? VIRTIO_VSOCK_OP_RESPONSE : OP_RW);
		h.type = i ? 2 : 1;
		tx_raw(g, &h, NULL, 0);
		drv_kick(&g->d, VQ_TX);
		rx_expect(g, OP_RST);
		close(c.fd);
	}
	guest_free(g);
}

Test(vsock, host_half_close)
{
	struct guest *g = guest_new(8);
	struct conn c = connect_stream(g, 65536);
	struct pkt p;

	host_send(&c, "last words");
	shutdown(c.fd, SHUT_WR);
	guest_expect(g, &c, "last words");
	p = rx_expect(g, OP_SHUTDOWN);
	cr_assert_eq(p.h.flags, SEND);
	tx(g, &c, OP_RW, 0, "answer", 6);
	host_expect(&c, "answer");
	cr_assert_eq(host_state(c.fd), -1);
	tx(g, &c, OP_SHUTDOWN, RCV | SEND, NULL, 0);
	rx_expect(g, OP_RST);
	cr_assert_eq(host_state(c.fd), 0);
	close(c.fd);
	rx_none(g);
	guest_free(g);
}

Test(vsock, host_closes_after_half_close)
{
	struct guest *g = guest_new(8);
	struct conn c = connect_stream(g, 65536);

	shutdown(c.fd, SHUT_WR);
	cr_assert_eq(rx_expect(g, OP_SHUTDOWN).h.flags, SEND);
	close(c.fd);
	cr_assert_eq(rx_expect(g, OP_SHUTDOWN).h.flags, RCV | SEND);
	tx(g, &c, OP_RST, 0, NULL, 0);
	rx_none(g);
	guest_free(g);
}

Test(vsock, guest_half_close)
{
	struct guest *g = guest_new(8);
	struct conn c = connect_stream(g, 65536);

	tx(g, &c, OP_RW, 0, "bye", 3);
	tx(g, &c, OP_SHUTDOWN, SEND, NULL, 0);
	host_expect(&c, "bye");
	cr_assert_eq(host_state(c.fd), 0);
	host_send(&c, "still here");
	guest_expect(g, &c, "still here");
	rx_none(g);
	tx(g, &c, OP_RW, 0, "liar", 4); // it said that it would not
	rx_expect(g, OP_RST);
	close(c.fd);
	guest_free(g);
}

Test(vsock, guest_stops_receiving)
{
	struct guest *g = guest_new(8);
	struct conn c = connect_stream(g, 65536);

	tx(g, &c, OP_SHUTDOWN, RCV, NULL, 0);
	cr_assert_lt(send(c.fd, "x", 1, MSG_NOSIGNAL), 0);
	cr_assert_eq(errno, EPIPE);
	tx(g, &c, OP_RW, 0, "more", 4);
	host_expect(&c, "more");
	tx(g, &c, OP_SHUTDOWN, SEND, NULL, 0); // both now, in two steps
	rx_expect(g, OP_RST);
	cr_assert_eq(host_state(c.fd), 0);
	close(c.fd);
	guest_free(g);
}

// What the host wrote before it closed arrives, and then the end.
Test(vsock, host_close_delivers_everything_first)
{
	struct guest *g = guest_new(2);
	struct conn c = connect_stream(g, 100);
	struct pkt p;
	char text[1000];
	size_t got = 0;

	memset(text, 'q', sizeof(text));
	cr_assert_eq(send(c.fd, text, 1000, 0), 1000);
	close(c.fd);
	while (got < 1000) {
		rig_run(&g->r);
		cr_assert(rx_next(g, &p));
		if (p.h.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST) {
			c.fwd_cnt = (uint32_t)got;
			tx(g, &c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
			continue;
		}
		cr_assert_eq(p.h.op, OP_RW);
		got += p.h.len;
		cr_assert_leq(got - c.fwd_cnt, 100, "more than the credit");
	}
	c.fwd_cnt = 1000;
	tx(g, &c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
	do {
		rig_run(&g->r);
		cr_assert(rx_next(g, &p));
	} while (p.h.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST);
	cr_assert_eq(p.h.op, OP_SHUTDOWN);
	cr_assert_eq(p.h.flags, RCV | SEND);
	guest_free(g);
}

// The guest closes while its last bytes wait for a slow host program: they are
// not lost, even though the guest has forgotten the stream.
Test(vsock, guest_close_lingers_until_written)
{
	struct guest *g = guest_new(8);
	struct conn c = connect_stream(g, 65536);
	static uint8_t block[65536], got[65536];
	unsigned sent = 0, end = 0;
	int small = 4096;

	setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	for (unsigned i = 0; i < sizeof(block); i++)
		block[i] = (uint8_t)(i * 13);
	for (; sent < 4; sent++) {
		tx(g, &c, OP_RW, 0, block, sizeof(block));
		rig_run(&g->r);
	}
	tx(g, &c, OP_SHUTDOWN, RCV | SEND, NULL, 0);
	for (;;) { // maybe a credit update before it
		struct pkt p;

		rig_run(&g->r);
		cr_assert(rx_next(g, &p));
		if (p.h.op == OP_RST)
			break;
		cr_assert_eq(p.h.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	}
	while (end < 4 * sizeof(block)) {
		ssize_t n = recv(c.fd, got, sizeof(got), MSG_DONTWAIT);

		if (n < 0) {
			cr_assert_eq(errno, EAGAIN);
			rig_run(&g->r);
			continue;
		}
		cr_assert_gt(n, 0, "the end after %u bytes", end);
		for (ssize_t i = 0; i < n; i++, end++)
			cr_assert_eq(got[i], block[end % sizeof(block)]);
	}
	rig_run(&g->r);
	cr_assert_eq(host_state(c.fd), 0);
	close(c.fd);
	guest_free(g);
}

Test(vsock, a_dead_host_program_is_told)
{
	struct guest *g = guest_new(8);
	struct conn c = connect_stream(g, 65536);

	close(c.fd);
	cr_assert_eq(rx_expect(g, OP_SHUTDOWN).h.flags, RCV | SEND);
	tx(g, &c, OP_RW, 0, "on its way", 10); // crossed it
	rx_none(g);
	tx(g, &c, OP_SHUTDOWN, RCV | SEND, NULL, 0);
	rx_expect(g, OP_RST);
	guest_free(g);
}

Test(vsock, credit_stops_and_starts)
{
	struct guest *g = guest_new(16);
	struct conn c = connect_stream(g, 10);
	struct pkt p;

	host_send(&c, "0123456789abcdefghij");
	guest_expect(g, &c, "0123456789");
	rx_expect(g, VIRTIO_VSOCK_OP_CREDIT_REQUEST);
	rx_none(g);
	c.fwd_cnt = 4;
	tx(g, &c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
	p = rx_expect(g, OP_RW);
	cr_assert_eq(p.h.len, 4);
	cr_assert_eq(memcmp(p.data, "abcd", 4), 0);
	rx_expect(g, VIRTIO_VSOCK_OP_CREDIT_REQUEST);
	c.buf_alloc = 5; // shrinks below what is out: no credit
	tx(g, &c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
	rx_none(g);
	c.fwd_cnt = 1000; // nonsense: more than was ever sent
	tx(g, &c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
	rx_none(g);
	c.fwd_cnt = 14;
	c.buf_alloc = 100;
	tx(g, &c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
	p = rx_expect(g, OP_RW);
	cr_assert_eq(p.h.len, 6);
	close(c.fd);
	guest_free(g);
}

Test(vsock, our_credit_is_told_when_asked_and_when_due)
{
	struct guest *g = guest_new(16);
	struct conn c = connect_stream(g, 65536);
	static uint8_t block[65536], sink[65536];
	struct pkt p;

	tx(g, &c, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0, NULL, 0);
	p = rx_expect(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	cr_assert_eq(p.h.buf_alloc, 256 * 1024);
	cr_assert_eq(p.h.fwd_cnt, 0);
	for (int i = 0; i < 2; i++) {
		tx(g, &c, OP_RW, 0, block, sizeof(block));
		while (recv(c.fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
			rig_run(&g->r);
	}
	p = rx_expect(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	cr_assert_eq(p.h.fwd_cnt, 131072);
	rx_none(g);
	close(c.fd);
	guest_free(g);
}

// The bound of what is buffered towards the host is what was advertised.
Test(vsock, more_than_its_credit_resets_the_stream)
{
	struct guest *g = guest_new(16);
	struct conn c = connect_stream(g, 65536);
	static uint8_t block[65536];
	struct pkt p = {0};
	unsigned sent = 0;

	while (sent < 64 && p.h.op != OP_RST) {
		tx(g, &c, OP_RW, 0, block, sizeof(block));
		sent++;
		while (rx_next(g, &p) && p.h.op != OP_RST)
			;
	}
	cr_assert_eq(p.h.op, OP_RST);
	// 256 KiB of ours and what the kernel's socket buffers hold.
	cr_assert_geq(sent, 5);
	cr_assert_leq(sent, 16, "%u blocks were taken", sent);
	close(c.fd);
	guest_free(g);
}

Test(vsock, malformed_packets)
{
	struct guest *g = guest_new(8);
	struct conn c = connect_stream(g, 65536);
	struct virtio_vsock_hdr h = hdr_of(&c, OP_RW);
	struct seg s;

	h.len = 5; // more than the chain has
	tx_raw(g, &h, "1234", 4);
	drv_kick(&g->d, VQ_TX);
	rx_expect(g, OP_RST);
	cr_assert_eq(host_state(c.fd), 0);
	close(c.fd);
	c = connect_stream(g, 65536);
	h = hdr_of(&c, OP_RW);
	h.len = ~0u;
	tx_raw(g, &h, "1234", 4);
	drv_kick(&g->d, VQ_TX);
	rx_expect(g, OP_RST);
	close(c.fd);
	c = connect_stream(g, 65536);
	s = (struct seg){drv_alloc(&g->d, 64), HDR - 1, false};
	drv_add(&g->d, VQ_TX, &s, 1); // not even a header: dropped
	drv_kick(&g->d, VQ_TX);
	rx_none(g);
	h = hdr_of(&c, OP_RW);
	h.len = 2; // less than the chain has: the rest is padding
	tx_raw(g, &h, "okxx", 4);
	drv_kick(&g->d, VQ_TX);
	host_expect(&c, "ok");
	close(c.fd);
	guest_free(g);
}

Test(vsock, rx_buffers_without_room_need_a_reset)
{
	for (int i = 0; i < 2; i++) {
		struct guest *g = guest_new(0);
		struct seg s = {drv_alloc(&g->d, 64), i ? HDR : HDR - 1, true};
		struct conn c;

		for (int k = 0; k < 3; k++)
			drv_add(&g->d, VQ_RX, &s, 1);
		c = dial(g);
		rig_run(&g->r);
		cr_assert_eq(drv_needs_reset(&g->d), i == 0);
		if (i) { // enough for control packets, not for data
			struct virtio_vsock_hdr h;

			memcpy(&h, drv_ptr(&g->d, s.gpa, HDR), HDR);
			c.host_port = h.src_port;
			tx(g, &c, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0);
			cr_assert(drv_needs_reset(&g->d));
		}
		rig_run(&g->r);
		cr_assert_eq(host_state(c.fd), 0,
			     "a broken device left its socket open");
		close(c.fd);
		guest_free(g);
	}
}

Test(vsock, reset_closes_every_socket)
{
	struct guest *g = guest_new(32);
	struct conn c[5];

	for (int i = 0; i < 5; i++)
		c[i] = connect_stream(g, 65536);
	drv_write(&g->d, VIRTIO_MMIO_STATUS, 0);
	rig_run(&g->r);
	for (int i = 0; i < 5; i++) {
		cr_assert_eq(host_state(c[i].fd), 0);
		close(c[i].fd);
	}
	cr_assert(drv_init(&g->d, &g->r, g->d.dev, VSK_FEATURES, 256));
	rx_fill(g, 8);
	c[0] = connect_stream(g, 65536);
	host_send(&c[0], "new");
	guest_expect(g, &c[0], "new");
	close(c[0].fd);
	guest_free(g);
}

Test(vsock, close_all_tells_the_guest)
{
	struct guest *g = guest_new(32);
	struct conn a = connect_stream(g, 65536), b = connect_stream(g, 65536);
	struct conn half = dial(g); // REQUEST sent, not answered

	rx_expect(g, OP_REQUEST);
	vio_vsock_close_all(g->d.dev);
	for (int i = 0; i < 3; i++)
		rx_expect(g, OP_RST);
	rx_none(g);
	cr_assert_eq(host_state(a.fd), 0);
	cr_assert_eq(host_state(b.fd), 0);
	cr_assert_eq(host_state(half.fd), 0);
	close(a.fd);
	close(b.fd);
	close(half.fd);
	guest_free(g);
}

Test(vsock, quiesced_streams_hold_still_and_go_on)
{
	struct guest *g = guest_new(8);
	struct conn c = connect_stream(g, 65536), late;

	cr_assert(vio_quiesce(g->d.dev));
	host_send(&c, "one");
	tx(g, &c, OP_RW, 0, "two", 3);
	late = dial(g);
	rx_none(g);
	cr_assert_eq(host_state(c.fd), -1);
	vio_resume(g->d.dev);
	rig_run(&g->r);
	host_expect(&c, "two");
	for (int i = 0; i < 2; i++) {
		struct pkt p;

		cr_assert(rx_next(g, &p));
		cr_assert(p.h.op == OP_REQUEST || p.h.op == OP_RW);
	}
	rx_none(g);
	close(late.fd);
	close(c.fd);
	guest_free(g);
}
