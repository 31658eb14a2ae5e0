// vsock under load: long transfers compared byte by byte, many streams, and
// guests that do not play along.
#include <stdio.h>
#include <sys/resource.h>

#include "virt_vsock.h"

enum { OP_RST = VIRTIO_VSOCK_OP_RST, OP_RW = VIRTIO_VSOCK_OP_RW };

static uint8_t pattern(uint64_t at, unsigned stream)
{
	return (uint8_t)(at * 31 + (at >> 11) + stream * 7);
}

static void check_bytes(const uint8_t *p, size_t n, uint64_t at, unsigned id)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != pattern(at + i, id))
			cr_assert_fail("stream %u differs at byte %llu", id,
				       (unsigned long long)(at + i));
}

static long rss_kib(void)
{
	long size = 0, pages = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	cr_assert_eq(fscanf(f, "%ld %ld", &size, &pages), 2);
	fclose(f);
	return pages * 4;
}

struct flow {
	struct conn c;
	uint64_t to_guest, from_guest;	    // bytes written by the sender
	uint64_t got_by_guest, got_by_host; // ... and taken by the receiver
	uint32_t peer_alloc, peer_fwd;	    // the device's credit
};

static void flow_to_guest(struct flow *f, unsigned id, uint64_t total,
			  uint64_t *seed)
{
	uint8_t buf[20000];
	uint64_t want = 1 + rnd_below(seed, sizeof(buf));
	size_t n = MIN(total - f->to_guest, want);
	ssize_t rc;

	for (size_t i = 0; i < n; i++)
		buf[i] = pattern(f->to_guest + i, id);
	rc = send(f->c.fd, buf, n, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (rc > 0)
		f->to_guest += (uint64_t)rc;
}

static void flow_from_guest(struct guest *g, struct flow *f, unsigned id,
			    uint64_t total, uint64_t *seed)
{
	static uint8_t buf[65536];
	uint32_t room = f->peer_alloc - ((uint32_t)f->from_guest - f->peer_fwd);
	uint64_t want = 1 + rnd_below(seed, sizeof(buf));
	uint32_t n = (uint32_t)MIN(total - f->from_guest, want);

	n = MIN(n, room);
	if (!n)
		return;
	for (uint32_t i = 0; i < n; i++)
		buf[i] = pattern(f->from_guest + i, id);
	tx_add(g, &f->c, OP_RW, 0, buf, n);
	f->from_guest += n;
}

static void flow_host_reads(struct flow *f, unsigned id, uint64_t *seed)
{
	uint8_t buf[30000];
	ssize_t n =
	    recv(f->c.fd, buf, 1 + rnd_below(seed, sizeof(buf)), MSG_DONTWAIT);

	if (n > 0)
		check_bytes(buf, (size_t)n, f->got_by_host, id);
	if (n > 0)
		f->got_by_host += (uint64_t)n;
}

// Takes every packet that is there and credits it.
static void guest_reads(struct guest *g, struct flow *f, unsigned n)
{
	struct pkt p;

	while (rx_next(g, &p)) {
		unsigned id = 0;

		while (id < n && f[id].c.host_port != p.h.src_port)
			id++;
		cr_assert_lt(id, n);
		f[id].peer_alloc = p.h.buf_alloc;
		f[id].peer_fwd = p.h.fwd_cnt;
		if (p.h.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST)
			tx_add(g, &f[id].c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0,
			       NULL, 0);
		if (p.h.op != OP_RW)
			continue;
		check_bytes(p.data, p.h.len, f[id].got_by_guest, id);
		f[id].got_by_guest += p.h.len;
		f[id].c.fwd_cnt = (uint32_t)f[id].got_by_guest;
		cr_assert_leq(f[id].got_by_guest, f[id].to_guest);
	}
}

static void flow_start(struct guest *g, struct flow *f, uint32_t buf_alloc)
{
	memset(f, 0, sizeof(*f));
	f->c = dial(g);
	f->c.buf_alloc = buf_alloc;
	for (;;) {
		struct pkt p;

		rig_run(&g->r);
		cr_assert(rx_next(g, &p));
		if (p.h.op != VIRTIO_VSOCK_OP_REQUEST)
			continue;
		f->c.host_port = p.h.src_port;
		f->peer_alloc = p.h.buf_alloc;
		break;
	}
	tx(g, &f->c, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0);
}

// Firecracker #5485: after a partial write, the iovec was used again from its
// start. Small socket buffers make nearly every write partial.
Test(vsock_load, firecracker_5485_bulk_both_ways_keeps_every_byte)
{
	enum { TOTAL = 6 << 20 };
	struct guest *g = guest_new_features(64, VSK_FEATURES);
	uint64_t seed = 0xb01c;
	struct flow f;
	unsigned turn = 0;

	flow_start(g, &f, 30000);
	while (f.got_by_guest < TOTAL || f.got_by_host < TOTAL) {
		cr_assert_lt(turn++, 200000, "stuck at %llu and %llu",
			     (unsigned long long)f.got_by_guest,
			     (unsigned long long)f.got_by_host);
		flow_to_guest(&f, 0, TOTAL, &seed);
		flow_from_guest(g, &f, 0, TOTAL, &seed);
		drv_kick(&g->d, VQ_TX);
		if (rnd_below(&seed, 3))
			flow_host_reads(&f, 0, &seed);
		if (rnd_below(&seed, 3))
			guest_reads(g, &f, 1);
		if (rnd_below(&seed, 4) == 0)
			tx_add(g, &f.c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL,
			       0);
	}
	close(f.c.fd);
	guest_free(g);
}

Test(vsock_load, three_hundred_streams)
{
	enum { N = 300, TOTAL = 40000 };
	struct guest *g = guest_new(80);
	struct flow *f = calloc(N, sizeof(*f));
	uint64_t seed = 0x300;
	unsigned turn = 0, done = 0;

	for (unsigned i = 0; i < N; i++)
		flow_start(g, &f[i], 9000);
	while (done < N) {
		cr_assert_lt(turn++, 20000, "%u of %u", done, N);
		for (unsigned i = 0; i < N; i++) {
			flow_to_guest(&f[i], i, TOTAL, &seed);
			if (rnd_below(&seed, 8) == 0)
				flow_from_guest(g, &f[i], i, TOTAL, &seed);
			if (i % 16 == 0) {
				drv_kick(&g->d, VQ_TX);
				guest_reads(g, f, N);
			}
			flow_host_reads(&f[i], i, &seed);
			if (rnd_below(&seed, 8) == 0)
				tx_add(g, &f[i].c,
				       VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL,
				       0);
		}
		done = 0;
		for (unsigned i = 0; i < N; i++)
			done += f[i].got_by_guest == TOTAL &&
				f[i].got_by_host == TOTAL;
	}
	for (unsigned i = 0; i < N; i++)
		close(f[i].c.fd);
	free(f);
	guest_free(g);
}

// The table holds 1024 streams; the next one is refused, not fatal.
Test(vsock_load, the_stream_table_is_bounded)
{
	struct rlimit files = {4096, 4096};
	struct guest *g = guest_new(120);
	struct err e = ERR_INIT;
	unsigned n = 0;
	int *fds = calloc(1100, sizeof(int));

	setrlimit(RLIMIT_NOFILE, &files);
	for (; n < 1100; n++) {
		int sv[2];

		cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
		fds[n] = sv[0];
		if (vio_vsock_connect(g->d.dev, 1, sv[1], &e) < 0)
			break;
	}
	cr_assert_eq(n, 1024);
	cr_assert_eq(e.code, -EAGAIN);
	cr_assert_eq(host_state(fds[n]), 0, "the refused socket is closed");
	for (unsigned i = 0; i <= n; i++)
		close(fds[i]);
	free(fds);
	rig_run(&g->r);
	guest_free(g);
}

// Streams whose end the guest never acknowledges make room for new ones.
Test(vsock_load, unanswered_shutdowns_are_reclaimed)
{
	struct guest *g = guest_new(120);
	struct conn c;
	struct pkt p;

	for (unsigned i = 0; i < 3000; i++) {
		c = dial(g);
		do {
			rig_run(&g->r);
			cr_assert(rx_next(g, &p), "stream %u", i);
		} while (p.h.op != VIRTIO_VSOCK_OP_REQUEST);
		c.host_port = p.h.src_port;
		tx(g, &c, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0);
		close(c.fd);
		rig_run(&g->r);
	}
	guest_free(g);
}

// A guest that never offers an RX buffer: requests and data wait, memory does
// not grow, and in the end connecting is refused.
Test(vsock_load, a_guest_that_never_reads_grows_nothing)
{
	struct guest *g = guest_new(0);
	long before;
	unsigned refused = 0;
	struct conn c = {.host_port = 9, .guest_port = 9};

	for (unsigned i = 0; i < 100; i++) { // warm up
		int sv[2];

		cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
		vio_vsock_connect(g->d.dev, 1, sv[1], NULL);
		close(sv[0]);
		rig_run(&g->r);
	}
	before = rss_kib();
	for (unsigned i = 0; i < 20000; i++) {
		int sv[2];

		cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
		refused += vio_vsock_connect(g->d.dev, 1, sv[1], NULL) < 0;
		close(sv[0]);
		rig_step(&g->r);
		// ... and floods us with packets that want an answer.
		c.guest_port = i;
		if (g->d.q[VQ_TX].nfree > 4)
			tx_add(g, &c, VIRTIO_VSOCK_OP_REQUEST, 0, NULL, 0);
		drv_kick(&g->d, VQ_TX);
		tx_reap(g);
	}
	cr_assert_lt(rss_kib() - before, 8192);
	// 64 answers wait, the rest of the flood stands in its own ring.
	cr_assert_leq(g->d.q[VQ_TX].nfree, 4);
	rx_fill(g, 100); // it thinks better of it
	for (unsigned i = 0; i < 100; i++) {
		struct pkt p;

		rig_run(&g->r);
		cr_assert(rx_next(g, &p));
		cr_assert_eq(p.h.op, OP_RST);
	}
	(void)refused;
	guest_free(g);
}

// A guest that takes no credit leaves the host's bytes in the host's socket.
Test(vsock_load, a_guest_without_credit_grows_nothing)
{
	struct guest *g = guest_new(100);
	struct conn c = connect_stream(g, 0);
	static uint8_t block[65536];
	long before = rss_kib();
	uint64_t sent = 0;

	for (unsigned i = 0; i < 2000; i++) {
		ssize_t n = send(c.fd, block, sizeof(block),
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		sent += n > 0 ? (uint64_t)n : 0;
		rig_run(&g->r);
	}
	cr_assert_lt(sent, 1 << 20, "somebody buffered it");
	cr_assert_lt(rss_kib() - before, 4096);
	rx_expect(g, VIRTIO_VSOCK_OP_CREDIT_REQUEST);
	rx_none(g);
	close(c.fd);
	guest_free(g);
}

// Rings without event index and without indirect tables.
Test(vsock_load, plain_rings)
{
	enum { TOTAL = 1 << 20 };
	struct guest *g = guest_new_features(40, VIO_F_VERSION_1);
	uint64_t seed = 0x91a1;
	struct flow f;
	unsigned turn = 0;

	flow_start(g, &f, 50000);
	while (f.got_by_guest < TOTAL || f.got_by_host < TOTAL) {
		cr_assert_lt(turn++, 20000);
		flow_to_guest(&f, 0, TOTAL, &seed);
		flow_from_guest(g, &f, 0, TOTAL, &seed);
		drv_kick(&g->d, VQ_TX);
		flow_host_reads(&f, 0, &seed);
		guest_reads(g, &f, 1);
		tx_add(g, &f.c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
		drv_kick(&g->d, VQ_TX);
	}
	close(f.c.fd);
	guest_free(g);
}

// A driver that rings only when avail_event asks, and looks only after an
// interrupt that used_event asked for, as Linux does: one lost wake-up on
// either side and this stands still.
Test(vsock_load, no_wake_up_is_lost_with_the_event_index)
{
	enum { TOTAL = 4 << 20 };
	struct guest *g = guest_new(30);
	uint64_t seed = 0xe1d, last = 0;
	unsigned turn = 0, idle = 0, irqs;
	struct flow f;

	flow_start(g, &f, 40000);
	g->d.polite = true;
	g->d.q[VQ_RX].rung = g->d.q[VQ_RX].avail_idx;
	g->d.q[VQ_TX].rung = g->d.q[VQ_TX].avail_idx;
	irqs = g->r.irqs - 1;
	while (f.got_by_guest < TOTAL || f.got_by_host < TOTAL) {
		uint64_t now = f.got_by_guest + f.got_by_host;

		idle = now == last ? idle + 1 : 0;
		last = now;
		cr_assert_lt(idle, 200, "stands at %llu and %llu",
			     (unsigned long long)f.got_by_guest,
			     (unsigned long long)f.got_by_host);
		cr_assert_lt(turn++, 200000);
		flow_to_guest(&f, 0, TOTAL, &seed);
		if (g->d.q[VQ_TX].nfree > 8)
			flow_from_guest(g, &f, 0, TOTAL, &seed);
		drv_kick(&g->d, VQ_TX);
		flow_host_reads(&f, 0, &seed);
		if (g->r.irqs == irqs)
			continue;
		irqs = g->r.irqs;
		do
			guest_reads(g, &f, 1);
		while (drv_used_listen(&g->d, VQ_RX));
		tx_reap(g);
		drv_used_listen(&g->d, VQ_TX);
		if (g->d.q[VQ_TX].nfree > 8)
			tx_add(g, &f.c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL,
			       0);
	}
	cr_assert_lt(irqs, turn * 2 + 100);
	close(f.c.fd);
	guest_free(g);
}
