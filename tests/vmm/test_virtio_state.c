// Saved sections: traffic that goes on in another device as if nothing had
// happened, what the guest learns of streams that cannot go on, and sections
// made by somebody else.
#include "virt_disk.h"
#include "virt_vsock.h"

#include <linux/virtio_blk.h>

enum { MEM = 16 << 20, CAP = 16384 };
#define BLK_FEATURES (VSK_FEATURES | 0xffffffull)

// --- disk -------------------------------------------------------------------

struct machine {
	struct rig r;
	struct drv d;
	struct disk *k;
};

static void machine_init(struct machine *m, struct disk *k)
{
	memset(m, 0, sizeof(*m));
	rig_init(&m->r, MEM);
	m->k = k;
	k->dev = vio_blk_create(&m->r.host, DISK_BYTES, &disk_ops, k);
	m->d.rig = &m->r;
	m->d.dev = k->dev;
	m->d.heap = 0x100000;
}

static void machine_fini(struct machine *m)
{
	vio_destroy(m->d.dev);
	rig_fini(&m->r);
}

// Parks, saves, checks, and loads into a new machine with a copy of the memory.
static void move_on(struct machine *m)
{
	struct machine *n = calloc(1, sizeof(*n));
	uint8_t buf[CAP], again[CAP];
	struct wire_reader r;
	struct err e = ERR_INIT;
	size_t len;

	while (!vio_quiesce(m->d.dev))
		disk_complete_all(m->k);
	len = rig_save(m->d.dev, buf, sizeof(buf));
	cr_assert_eq(rig_save(m->d.dev, again, sizeof(again)), len);
	cr_assert_eq(memcmp(buf, again, len), 0, "saving changes nothing");
	r = wire_reader_of(buf, len);
	cr_assert_eq(vio_check(VIO_BLK, &r, MEM, &e), 0, "%s", e.msg);
	machine_init(n, m->k);
	rig_copy_memory(&n->r, &m->r, MEM);
	drv_move(&n->d, &m->d, &n->r, m->k->dev);
	r = wire_reader_of(buf, len);
	cr_assert_eq(vio_load(n->d.dev, &r, &e), 0, "%s", e.msg);
	cr_assert_eq(rig_save(n->d.dev, again, sizeof(again)), len);
	cr_assert_eq(memcmp(buf, again, len), 0, "a loaded state saves alike");
	vio_resume(n->d.dev);
	vio_destroy(m->d.dev);
	rig_fini(&m->r);
	m->r = n->r;
	m->d = n->d;
	m->d.rig = &m->r;
	// The device keeps the address of its machine: make a new one in place.
	vio_destroy(n->d.dev);
	m->r.host.mem = &m->r.mem;
	m->r.host.vm = (struct vmm *)(void *)&m->r;
	m->k->dev = vio_blk_create(&m->r.host, DISK_BYTES, &disk_ops, m->k);
	m->d.dev = m->k->dev;
	r = wire_reader_of(buf, len);
	cr_assert_eq(vio_load(m->d.dev, &r, &e), 0);
	vio_resume(m->d.dev);
	free(n);
}

// 600 requests with random completion; moved every `every` steps (0: never).
// Leaves disk, memory and the drivers' view for comparison.
static void traffic(struct machine *m, unsigned every)
{
	uint64_t seed = 0x7ea4;
	uint64_t slot[64];
	uint16_t head;
	uint32_t len;

	for (unsigned i = 0; i < 64; i++)
		slot[i] = drv_alloc(&m->d, 16 + 4096 + 16);
	for (unsigned i = 0; i < 600; i++) {
		uint64_t at = slot[i % 64];
		bool write = rnd_below(&seed, 2);
		struct virtio_blk_outhdr h = {write, 0,
					      rnd_below(&seed, 250) * 8};
		struct seg s[3] = {{at, 16, false},
				   {at + 16, 4096, !write},
				   {at + 4112, 1, true}};

		while (m->d.q[0].nfree < 3 || m->k->nheld > 40) {
			disk_complete(m->k, 0);
			while (drv_used(&m->d, 0, &head, &len))
				;
		}
		memcpy(drv_ptr(&m->d, at, 16), &h, 16);
		if (write)
			memset(drv_ptr(&m->d, at + 16, 4096), (int)i, 4096);
		drv_add(&m->d, 0, s, 3);
		drv_kick(&m->d, 0);
		// In order, so that the two runs differ in nothing else.
		while (m->k->nheld) {
			unsigned oldest = 0;

			disk_complete(m->k, oldest);
		}
		if (every && i % every == every - 1) {
			move_on(m);
			rig_run(&m->r);
		}
		while (drv_used(&m->d, 0, &head, &len))
			cr_assert_leq(len, 4097);
	}
}

Test(virtio_state, blk_traffic_goes_on_as_if_uninterrupted)
{
	struct machine a, b;
	struct disk *ka = calloc(1, sizeof(*ka)), *kb = calloc(1, sizeof(*kb));
	uint8_t sa[CAP], sb[CAP];
	size_t la, lb;

	machine_init(&a, ka);
	machine_init(&b, kb);
	cr_assert(drv_init(&a.d, &a.r, a.d.dev, BLK_FEATURES, 128));
	cr_assert(drv_init(&b.d, &b.r, b.d.dev, BLK_FEATURES, 128));
	ka->defer = kb->defer = true;
	traffic(&a, 0);
	traffic(&b, 7);
	cr_assert_eq(ka->submits, 600);
	cr_assert_eq(kb->submits, 600);
	cr_assert_eq(memcmp(ka->bytes, kb->bytes, DISK_BYTES), 0);
	cr_assert_eq(memcmp(a.r.mem.base, b.r.mem.base, MEM), 0);
	la = rig_save(a.d.dev, sa, CAP);
	lb = rig_save(b.d.dev, sb, CAP);
	cr_assert_eq(la, lb);
	cr_assert_eq(memcmp(sa, sb, la), 0);
	machine_fini(&a);
	machine_fini(&b);
	free(ka);
	free(kb);
}

// A request that was made available, but not taken, before the save.
Test(virtio_state, requests_in_the_ring_are_served_after_the_load)
{
	struct disk *k = calloc(1, sizeof(*k));
	struct machine m;
	struct virtio_blk_outhdr h = {VIRTIO_BLK_T_IN, 0, 5};
	uint16_t head;
	uint32_t len;

	machine_init(&m, k);
	cr_assert(drv_init(&m.d, &m.r, m.d.dev, BLK_FEATURES, 64));
	memset(k->bytes + 2560, 0x77, 512);
	for (unsigned i = 0; i < 3; i++) {
		uint64_t at = drv_alloc(&m.d, 1024);
		struct seg s[3] = {
		    {at, 16, false}, {at + 16, 512, true}, {at + 528, 1, true}};

		memcpy(drv_ptr(&m.d, at, 16), &h, 16);
		vio_quiesce(m.d.dev);
		drv_add(&m.d, 0, s, 3);
		drv_kick(&m.d, 0);
		move_on(&m);
		rig_run(&m.r);
		cr_assert(drv_used(&m.d, 0, &head, &len));
		cr_assert_eq(len, 513);
		cr_assert_eq(*(uint8_t *)drv_ptr(&m.d, at + 16, 1), 0x77);
	}
	machine_fini(&m);
	free(k);
}

Test(virtio_state, an_interrupt_that_was_not_acknowledged_is_raised_again)
{
	struct rig r;
	struct drv d = {0}, n;
	struct vio_dev *dev, *dev2;
	struct seg s;
	uint8_t buf[CAP];
	struct wire_reader rd;
	size_t len;
	unsigned irqs;
	uint16_t head;
	uint32_t used;

	rig_init(&r, MEM);
	dev = vio_rng_create(&r.host);
	dev2 = vio_rng_create(&r.host);
	cr_assert(drv_init(&d, &r, dev, VSK_FEATURES, 16));
	s = (struct seg){drv_alloc(&d, 64), 64, true};
	drv_add(&d, 0, &s, 1);
	drv_kick(&d, 0);
	cr_assert(vio_quiesce(dev));
	len = rig_save(dev, buf, CAP);
	irqs = r.irqs;
	rd = wire_reader_of(buf, len);
	cr_assert_eq(vio_load(dev2, &rd, NULL), 0);
	rig_run(&r);
	drv_move(&n, &d, &r, dev2);
	drv_add(&n, 0, &s, 1);
	drv_kick(&n, 0);
	vio_notify(dev2, 0);
	cr_assert(drv_used(&n, 0, &head, &used));
	cr_assert_not(drv_used(&n, 0, &head, &used));
	cr_assert_eq(r.irqs, irqs, "before the machine is whole");
	vio_resume(dev2);
	rig_run(&r);
	cr_assert(drv_used(&n, 0, &head, &used));
	cr_assert_geq(r.irqs, irqs + 1);
	cr_assert_eq(drv_read(&n, VIRTIO_MMIO_INTERRUPT_STATUS), 1);
	vio_destroy(dev);
	vio_destroy(dev2);
	rig_fini(&r);
}

Test(virtio_state, every_stage_of_the_handshake_survives)
{
	static const uint32_t stages[] = {0, 1, 3, 0xb, 0xf, 0x8b};

	for (size_t i = 0; i < ARRAY_SIZE(stages); i++) {
		struct rig r;
		struct drv d = {0}, n;
		struct vio_dev *dev, *dev2;
		struct wire_reader rd;
		struct err e = ERR_INIT;
		uint8_t buf[CAP];

		rig_init(&r, MEM);
		dev = vio_rng_create(&r.host);
		dev2 = vio_rng_create(&r.host);
		d.rig = &r;
		d.dev = dev;
		d.nq = 1;
		if (stages[i] & 8)
			cr_assert(drv_negotiate(&d, VSK_FEATURES));
		if (stages[i] & 8)
			drv_queue_setup(&d, 0, 32);
		drv_write(&d, VIRTIO_MMIO_STATUS, stages[i]);
		cr_assert_eq(drv_read(&d, VIRTIO_MMIO_STATUS), stages[i]);
		rd = wire_reader_of(buf, rig_save(dev, buf, CAP));
		cr_assert_eq(vio_load(dev2, &rd, &e), 0, "%s", e.msg);
		vio_resume(dev2);
		rig_run(&r);
		drv_move(&n, &d, &r, dev2);
		cr_assert_eq(drv_read(&n, VIRTIO_MMIO_STATUS), stages[i]);
		drv_write(&n, VIRTIO_MMIO_STATUS, stages[i] | 4);
		if (stages[i] == 0xb)
			cr_assert_eq(drv_read(&n, VIRTIO_MMIO_STATUS), 0xf);
		vio_destroy(dev);
		vio_destroy(dev2);
		rig_fini(&r);
	}
}

// --- vsock ------------------------------------------------------------------

// A restored copy of g, in a machine of its own.
static struct guest *thaw(struct guest *g)
{
	struct guest *n = calloc(1, sizeof(*n));
	struct wire_reader r;
	struct err e = ERR_INIT;
	uint8_t buf[CAP];

	cr_assert(vio_quiesce(g->d.dev));
	r = wire_reader_of(buf, rig_save(g->d.dev, buf, CAP));
	rig_init(&n->r, g->r.mem.bytes);
	rig_copy_memory(&n->r, &g->r, g->r.mem.bytes);
	memcpy(n->rx_gpa, g->rx_gpa, sizeof(n->rx_gpa));
	memcpy(n->tx_gpa, g->tx_gpa, sizeof(n->tx_gpa));
	n->tx_next = g->tx_next;
	drv_move(&n->d, &g->d, &n->r, vio_vsock_create(&n->r.host, 1234));
	cr_assert_eq(vio_load(n->d.dev, &r, &e), 0, "%s", e.msg);
	return n;
}

// Firecracker #5688: a local port that the guest may remember came again.
Test(virtio_state, firecracker_5688_local_ports_go_on)
{
	struct guest *g = guest_new(32), *n;
	uint32_t used[8], fresh;
	struct conn c;

	for (int i = 0; i < 8; i++) {
		c = connect_stream(g, 65536);
		used[i] = c.host_port;
		tx(g, &c, VIRTIO_VSOCK_OP_RST, 0, NULL, 0);
		close(c.fd);
	}
	n = thaw(g);
	vio_resume(n->d.dev);
	rig_run(&n->r);
	for (int i = 0; i < 8; i++) {
		c = connect_stream(n, 65536);
		fresh = c.host_port;
		cr_assert_eq(fresh, used[7] + 1 + (uint32_t)i);
		close(c.fd);
		rx_expect(n, VIRTIO_VSOCK_OP_SHUTDOWN);
		for (int k = 0; k < 8; k++)
			cr_assert_neq(fresh, used[k]);
	}
	guest_free(n);
	guest_free(g);
}

// What was open is reset, precisely, before anything new is said; and a stream
// made right after the load is not touched.
Test(virtio_state, streams_of_before_are_reset_in_order)
{
	struct guest *g = guest_new(32), *n;
	struct conn a = connect_stream(g, 65536), b = connect_stream(g, 65536);
	struct conn half = dial(g), fresh;
	uint64_t cid;
	struct pkt p;
	uint32_t seen = 0;

	half.host_port = rx_expect(g, VIRTIO_VSOCK_OP_REQUEST).h.src_port;
	n = thaw(g);
	vio_mmio_read(n->d.dev, 0x100, &cid, 8);
	cr_assert_eq(cid, CID, "the guest keeps its address");
	fresh = dial(n); // before the device even runs
	vio_resume(n->d.dev);
	rig_run(&n->r);
	for (int i = 0; i < 3; i++) {
		p = rx_expect(n, VIRTIO_VSOCK_OP_RST);
		cr_assert_eq(p.h.dst_port, 1000);
		seen |= p.h.src_port == a.host_port ? 1u : 0;
		seen |= p.h.src_port == b.host_port ? 2u : 0;
		seen |= p.h.src_port == half.host_port ? 4u : 0;
	}
	cr_assert_eq(seen, 7);
	p = rx_expect(n, VIRTIO_VSOCK_OP_REQUEST);
	fresh.host_port = p.h.src_port;
	tx(n, &fresh, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0);
	cr_assert_eq(send(fresh.fd, "hello", 5, 0), 5);
	cr_assert_eq(rx_expect(n, VIRTIO_VSOCK_OP_RW).h.len, 5);
	rx_none(n);
	// The source goes on, undisturbed.
	vio_resume(g->d.dev);
	cr_assert_eq(send(a.fd, "x", 1, 0), 1);
	rx_expect(g, VIRTIO_VSOCK_OP_RW);
	rx_none(g);
	close(fresh.fd);
	close(a.fd);
	close(b.fd);
	close(half.fd);
	guest_free(n);
	guest_free(g);
}

// Firecracker #5958: a TX descriptor that was in flight at the snapshot.
Test(virtio_state, firecracker_5958_tx_in_flight_at_the_save)
{
	struct guest *g = guest_new(32), *n;
	struct conn a = connect_stream(g, 65536), fresh;
	struct conn own = {.host_port = 7, .guest_port = 4001};
	uint16_t head;
	uint32_t len;
	unsigned back = 0;
	bool answered = false;

	tx_reap(g);
	vio_quiesce(g->d.dev);
	tx(g, &a, VIRTIO_VSOCK_OP_RW, 0, "late", 4);
	tx(g, &own, VIRTIO_VSOCK_OP_REQUEST, 0, NULL, 0);
	cr_assert_not(drv_used(&g->d, VQ_TX, &head, &len));
	n = thaw(g);
	vio_resume(n->d.dev);
	rig_run(&n->r);
	while (drv_used(&n->d, VQ_TX, &head, &len))
		back++;
	cr_assert_eq(back, 2, "%u descriptors came back", back);
	cr_assert_eq(rx_expect(n, VIRTIO_VSOCK_OP_RST).h.src_port, a.host_port);
	for (struct pkt p; rx_next(n, &p); answered |= p.h.dst_port == 4001)
		cr_assert_eq(p.h.op, VIRTIO_VSOCK_OP_RST);
	cr_assert(answered);
	fresh = connect_stream(n, 65536);
	tx(n, &fresh, VIRTIO_VSOCK_OP_RW, 0, "ok", 2);
	cr_assert_eq(host_state(fresh.fd), 1);
	close(fresh.fd);
	close(a.fd);
	guest_free(n);
	guest_free(g);
}

Test(virtio_state, closed_streams_leave_nothing_behind)
{
	struct guest *g = guest_new(32), *n;
	struct conn a = connect_stream(g, 65536);
	uint8_t buf[CAP];
	size_t empty = rig_save(g->d.dev, buf, CAP);

	vio_vsock_close_all(g->d.dev);
	rx_expect(g, VIRTIO_VSOCK_OP_RST);
	cr_assert_eq(rig_save(g->d.dev, buf, CAP), empty - 8);
	n = thaw(g);
	vio_resume(n->d.dev);
	rx_none(n);
	close(a.fd);
	guest_free(n);
	guest_free(g);
}

// --- hostile sections -------------------------------------------------------

// Offsets in a section (docs/VIRTIO.md).
enum {
	AT_ID = 0,
	AT_STATUS = 4,
	AT_FEATURES = 8,
	AT_INTERRUPT = 28,
	AT_NQUEUES = 32,
	AT_Q0 = 36,
	Q_NUM = 0,
	Q_FLAGS = 4,
	Q_DESC = 8,
	Q_AVAIL = 16,
	Q_USED = 24,
	Q_LAST = 32,
	Q_IDX = 34,
	Q_SIZE = 36,
	BLK_BYTES = AT_Q0 + Q_SIZE,
	VSK_CID = AT_Q0 + 3 * Q_SIZE,
	VSK_PORT = VSK_CID + 8,
	VSK_COUNT = VSK_CID + 12,
};

static int check(unsigned index, const uint8_t *buf, size_t len)
{
	struct wire_reader r = wire_reader_of(buf, len);
	struct err e = ERR_INIT;
	int rc = vio_check(index, &r, MEM, &e);

	cr_assert(rc == 0 || (rc == -EBADMSG && e.msg[0]));
	return rc;
}

struct bad {
	const char *what;
	unsigned at;
	uint64_t value;
	unsigned width;
};

static void refuse_all(unsigned index, const uint8_t *good, size_t len,
		       const struct bad *bad, size_t n)
{
	uint8_t buf[CAP];

	cr_assert_eq(check(index, good, len), 0);
	for (size_t i = 0; i < n; i++) {
		memcpy(buf, good, len);
		memcpy(buf + bad[i].at, &bad[i].value, bad[i].width);
		cr_assert_eq(check(index, buf, len), -EBADMSG, "%s",
			     bad[i].what);
	}
	for (size_t cut = 0; cut < len; cut++)
		cr_assert_eq(check(index, good, cut), -EBADMSG, "cut at %zu",
			     cut);
	memcpy(buf, good, len);
	buf[len] = 0;
	cr_assert_eq(check(index, buf, len + 1), -EBADMSG, "one byte more");
	for (unsigned other = 0; other < 5; other++)
		if (other != index)
			cr_assert_eq(check(other, good, len), -EBADMSG);
}

static const struct bad transport[] = {
    {"id", AT_ID, 1, 4},
    {"status beyond a byte", AT_STATUS, 0x10f, 4},
    {"status without ACK", AT_STATUS, 0xe, 4},
    {"DRIVER_OK without FEATURES_OK", AT_STATUS, 7, 4},
    {"reset needed too early", AT_STATUS, 0x43, 4},
    {"queue in use before DRIVER_OK", AT_STATUS, 0xb, 4},
    {"queue in use in state 0", AT_STATUS, 0, 4},
    {"features without VERSION_1", AT_FEATURES, VIO_F_INDIRECT, 8},
    {"features never offered", AT_FEATURES, VIO_F_VERSION_1 | 1ull << 63, 8},
    {"interrupt", AT_INTERRUPT, 4, 4},
    {"no queues", AT_NQUEUES, 0, 4},
    {"many queues", AT_NQUEUES, 4, 4},
    {"4 billion queues", AT_NQUEUES, ~0u, 4},
    {"queue size 0", AT_Q0 + Q_NUM, 0, 4},
    {"queue size 3", AT_Q0 + Q_NUM, 3, 4},
    {"queue size beyond the maximum", AT_Q0 + Q_NUM, 512, 4},
    {"queue size 2^31", AT_Q0 + Q_NUM, 1u << 31, 4},
    {"reserved flags", AT_Q0 + Q_FLAGS, 7, 4},
    {"live but not ready", AT_Q0 + Q_FLAGS, 2, 4},
    {"ready but dead", AT_Q0 + Q_FLAGS, 1, 4},
    {"desc outside", AT_Q0 + Q_DESC, MEM, 8},
    {"desc at the end", AT_Q0 + Q_DESC, MEM - 16, 8},
    {"desc wraps", AT_Q0 + Q_DESC, ~15ull, 8},
    {"desc unaligned", AT_Q0 + Q_DESC, 0x10008, 8},
    {"desc in the gap", AT_Q0 + Q_DESC, 0xd0000000, 8},
    {"avail outside", AT_Q0 + Q_AVAIL, MEM - 2, 8},
    {"avail unaligned", AT_Q0 + Q_AVAIL, 0x14001, 8},
    {"used outside", AT_Q0 + Q_USED, MEM - 4, 8},
    {"used unaligned", AT_Q0 + Q_USED, 0x18002, 8},
    {"requests in flight", AT_Q0 + Q_LAST, 9, 2},
    {"more used than taken", AT_Q0 + Q_IDX, 9, 2},
};

Test(virtio_state, hostile_blk_sections)
{
	static const struct bad own[] = {
	    {"disk not of whole blocks", BLK_BYTES, 1000, 8},
	    {"disk of 2^63 bytes", BLK_BYTES, 1ull << 63, 8},
	};
	struct disk *k = calloc(1, sizeof(*k));
	struct machine m;
	uint8_t buf[CAP];
	uint64_t bytes = 0;
	size_t len;

	machine_init(&m, k);
	cr_assert(drv_init(&m.d, &m.r, m.d.dev, BLK_FEATURES, 64));
	len = rig_save(m.d.dev, buf, CAP);
	cr_assert_eq(len, BLK_BYTES + 8);
	refuse_all(VIO_BLK, buf, len, transport, ARRAY_SIZE(transport));
	refuse_all(VIO_BLK, buf, len, own, ARRAY_SIZE(own));
	cr_assert_eq(vio_blk_saved_bytes(buf, len, &bytes), 0);
	cr_assert_eq(bytes, DISK_BYTES);
	cr_assert_eq(vio_blk_saved_bytes(buf, len - 1, &bytes), -EBADMSG);
	cr_assert_eq(vio_blk_saved_bytes(buf, 0, &bytes), -EBADMSG);
	machine_fini(&m);
	free(k);
}

Test(virtio_state, hostile_vsock_sections)
{
	static const struct bad own[] = {
	    {"CID 0", VSK_CID, 0, 8},
	    {"CID 2", VSK_CID, 2, 8},
	    {"CID any", VSK_CID, UINT32_MAX, 8},
	    {"CID of 64 bits", VSK_CID, 1ull << 32, 8},
	    {"port 0", VSK_PORT, 0, 4},
	    {"port any", VSK_PORT, UINT32_MAX, 4},
	    {"one stream missing", VSK_COUNT, 2, 4},
	    {"one stream too many", VSK_COUNT, 0, 4},
	    {"a million streams", VSK_COUNT, 1000000, 4},
	    {"4 billion streams", VSK_COUNT, ~0u, 4},
	    {"second queue outside", AT_Q0 + Q_SIZE + Q_DESC, MEM * 4ull, 8},
	    {"third queue in flight", AT_Q0 + 2 * Q_SIZE + Q_LAST, 1, 2},
	};
	struct guest *g = guest_new(0);
	struct seg s;
	uint8_t *buf = malloc(CAP);
	struct conn c;
	size_t len;

	s = (struct seg){drv_alloc(&g->d, 4200), 4200, true};
	drv_add(&g->d, VQ_RX, &s, 1);
	c = dial(g);
	rig_run(&g->r);
	cr_assert(vio_quiesce(g->d.dev));
	len = rig_save(g->d.dev, buf, CAP);
	cr_assert_eq(len, VSK_COUNT + 4 + 8);
	// drv_init() put the rings low: they fit in MEM as well.
	refuse_all(VIO_VSOCK, buf, len, own, ARRAY_SIZE(own));
	refuse_all(VIO_VSOCK, buf, len, transport, ARRAY_SIZE(transport));
	free(buf);
	close(c.fd);
	guest_free(g);
}

Test(virtio_state, a_section_for_another_disk_changes_nothing)
{
	struct disk *k = calloc(1, sizeof(*k));
	struct machine m;
	struct vio_dev *small;
	uint8_t buf[CAP], before[CAP], after[CAP];
	struct wire_reader r;
	struct err e = ERR_INIT;
	size_t len;

	machine_init(&m, k);
	cr_assert(drv_init(&m.d, &m.r, m.d.dev, BLK_FEATURES, 64));
	small = vio_blk_create(&m.r.host, 4096, &disk_ops, k);
	len = rig_save(m.d.dev, buf, CAP);
	rig_save(small, before, CAP);
	r = wire_reader_of(buf, len);
	cr_assert_lt(vio_load(small, &r, &e), 0);
	cr_assert_neq(e.msg[0], 0);
	cr_assert_eq(rig_save(small, after, CAP), len);
	cr_assert_eq(memcmp(before, after, len), 0);
	vio_destroy(small);
	machine_fini(&m);
	free(k);
}

// Sections with a few random bytes changed: refused, or loaded into a device
// that works on, under the sanitizers, without harm.
Test(virtio_state, mutated_sections)
{
	struct guest *g = guest_new(32);
	struct conn c = connect_stream(g, 65536);
	uint64_t seed = 0x51a7e;
	uint8_t good[CAP], buf[CAP];
	unsigned loaded = 0, refused = 0;
	size_t len;

	vio_quiesce(g->d.dev);
	len = rig_save(g->d.dev, good, CAP);
	for (unsigned i = 0; i < 3000; i++) {
		struct vio_dev *dev;
		struct wire_reader r;

		memcpy(buf, good, len);
		for (uint64_t k = 1 + rnd_below(&seed, 3); k; k--)
			buf[rnd_below(&seed, len)] = (uint8_t)rnd(&seed);
		dev = vio_vsock_create(&g->r.host, 3);
		r = wire_reader_of(buf, len);
		if (vio_load(dev, &r, NULL) == 0) {
			loaded++;
			vio_resume(dev);
			rig_run(&g->r);
			vio_notify(dev, VQ_TX);
			vio_notify(dev, VQ_RX);
			rig_run(&g->r);
		} else {
			refused++;
		}
		vio_destroy(dev);
	}
	cr_assert_gt(loaded, 100, "%u", loaded);
	cr_assert_gt(refused, 100, "%u", refused);
	close(c.fd);
	guest_free(g);
}
