// Structural ring fuzzer: a guest that mostly does the right thing, and now and
// then the wrong one, so that the inputs get past the first check. Fixed seeds;
// a floor on what has to be reached, since a fuzzer that reaches nothing finds
// nothing. Run it under ASan and UBSan (THAW_SANITIZE).
#include "virt_disk.h"
#include "virt_vsock.h"

#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <pthread.h>
#include <stdatomic.h>

enum { MEM = 8 << 20, STEPS = 200000, CAP = 16384, HOSTS = 24 };
#define FEATURES (VSK_FEATURES | 0xffffffull)

struct fuzz {
	struct rig r;
	struct drv d;
	struct disk *k;
	uint64_t seed;
	int hosts[HOSTS];
	unsigned nhosts;
	uint32_t ports[HOSTS];
	bool racing; // a second thread writes rings and registers
	atomic_bool stop;
	// reached
	unsigned done, broke, moved, resets, mutations, connected;
};

static uint64_t below(struct fuzz *f, uint64_t n)
{
	return rnd_below(&f->seed, n);
}

static uint64_t odd_gpa(struct fuzz *f)
{
	static const uint64_t special[] = {
	    0,		MEM - 1,	 MEM,		MEM - 16,
	    MEM - 4096, 0xd0000000,	 0xffffffffull, 1ull << 32,
	    UINT64_MAX, UINT64_MAX - 15, 1ull << 63,
	};

	return below(f, 2) ? special[below(f, ARRAY_SIZE(special))]
			   : rnd(&f->seed) >> below(f, 64);
}

static uint64_t buffer_at(struct fuzz *f)
{
	return 0x100000 + below(f, 64) * 0x10000;
}

// One descriptor, index entry or field of the rings gets another value.
static void mutate(struct fuzz *f, unsigned q)
{
	struct drv_queue *dq = &f->d.q[q];
	uint64_t v = below(f, 2) ? odd_gpa(f) : below(f, 300);
	uint64_t at = dq->desc + 16 * below(f, dq->num);

	f->mutations++;
	switch (below(f, 6)) {
	case 0:
		memcpy(drv_ptr(&f->d, at, 8), &v, 8);
		break;
	case 1:
		memcpy(drv_ptr(&f->d, at + 8, 4), &v, 4);
		break;
	case 2:
		memcpy(drv_ptr(&f->d, at + 12, 2), &v, 2);
		break;
	case 3:
		memcpy(drv_ptr(&f->d, at + 14, 2), &v, 2);
		break;
	case 4: // flags, index, entries, event index
		memcpy(drv_ptr(&f->d, dq->avail + 2 * below(f, dq->num + 3), 2),
		       &v, 2);
		break;
	default:
		drv_publish(&f->d, q, (uint16_t)v);
	}
}

static void blk_chain(struct fuzz *f)
{
	static const uint32_t types[] = {0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 77};
	struct virtio_blk_outhdr h = {types[below(f, ARRAY_SIZE(types))], 0,
				      below(f, DISK_BYTES / 512 + 2)};
	uint64_t at = buffer_at(f);
	bool in = h.type != VIRTIO_BLK_T_OUT;
	struct seg s[12] = {{at, 16, false}};
	unsigned n = 1, parts = (unsigned)below(f, 9);

	memcpy(drv_ptr(&f->d, at, 16), &h, 16);
	for (; parts; parts--)
		s[n++] =
		    (struct seg){buffer_at(f), 512 * (uint32_t)below(f, 9), in};
	s[n++] = (struct seg){at + 16, 1, true};
	if (below(f, 2))
		drv_add(&f->d, 0, s, n);
	else
		drv_add_indirect(&f->d, 0, s, n);
}

static void rng_chain(struct fuzz *f)
{
	struct seg s[4];
	unsigned n = 1 + (unsigned)below(f, 4);

	for (unsigned i = 0; i < n; i++)
		s[i] = (struct seg){buffer_at(f), (uint32_t)below(f, 5000),
				    i || below(f, 2)};
	drv_add(&f->d, 0, s, n);
}

static void vsock_chain(struct fuzz *f)
{
	uint64_t at = buffer_at(f);
	uint32_t len = (uint32_t)below(f, 3) ? (uint32_t)below(f, 5000) : 0;
	unsigned host = (unsigned)below(f, HOSTS);
	struct virtio_vsock_hdr h = {
	    .src_cid = CID,
	    .dst_cid = 2,
	    .src_port = 1000,
	    .dst_port = f->ports[host],
	    .len = len,
	    .type = 1,
	    .op = (uint16_t)below(f, 9),
	    .flags = (uint32_t)below(f, 4),
	    .buf_alloc = (uint32_t)below(f, 100000),
	    .fwd_cnt = (uint32_t)below(f, 4000),
	};
	struct seg s[3] = {{at, HDR, false}, {at + HDR, len, false}};

	if (below(f, 4)) { // mostly a stream that lives
		h.op = below(f, 6) ? VIRTIO_VSOCK_OP_RW
				   : VIRTIO_VSOCK_OP_CREDIT_UPDATE;
		h.fwd_cnt = 0;
		h.buf_alloc = 1 << 30;
	}
	if (below(f, 50) == 0)
		h.len = (uint32_t)rnd(&f->seed);
	memcpy(drv_ptr(&f->d, at, HDR), &h, HDR);
	if (below(f, 3)) {
		drv_add(&f->d, VQ_TX, s, len ? 2 : 1);
	} else { // a header in pieces
		s[0].len = 7;
		s[1] = (struct seg){at + 7, HDR - 7, false};
		s[2] = (struct seg){at + HDR, len, false};
		drv_add(&f->d, VQ_TX, s, 3);
	}
}

static void vsock_rx_chain(struct fuzz *f)
{
	uint64_t at = buffer_at(f);
	struct seg s[3] = {{at, HDR, true},
			   {at + HDR, 1 + (uint32_t)below(f, 3000), true},
			   {buffer_at(f), 1 + (uint32_t)below(f, 70000), true}};

	drv_add(&f->d, VQ_RX, s, 2 + (unsigned)below(f, 2));
}

// Takes used elements; answers REQUESTs so that streams come to life.
static void take_used(struct fuzz *f, unsigned q)
{
	struct drv_queue *dq = &f->d.q[q];
	struct virtio_vsock_hdr h;
	struct vring_desc desc;
	uint16_t head;
	uint32_t len;

	for (unsigned i = 0; i < 300; i++) {
		if (!drv_used(&f->d, q, &head, &len))
			return;
		f->done++;
		if (q != VQ_RX || f->k || len < HDR || head >= dq->num)
			continue;
		memcpy(&desc, drv_ptr(&f->d, dq->desc + 16ull * head, 16), 16);
		if (desc.addr > MEM - HDR)
			continue;
		memcpy(&h, drv_ptr(&f->d, desc.addr, HDR), HDR);
		if (h.op != VIRTIO_VSOCK_OP_REQUEST)
			continue;
		f->ports[f->connected++ % HOSTS] = h.src_port;
		h = (struct virtio_vsock_hdr){.src_cid = CID,
					      .dst_cid = 2,
					      .src_port = h.dst_port,
					      .dst_port = h.src_port,
					      .type = 1,
					      .op = VIRTIO_VSOCK_OP_RESPONSE,
					      .buf_alloc = 50000};
		memcpy(drv_ptr(&f->d, 0x90000, HDR), &h, HDR);
		drv_add(&f->d, VQ_TX, &(struct seg){0x90000, HDR, false}, 1);
	}
}

static void host_acts(struct fuzz *f)
{
	static uint8_t block[20000];
	unsigned i = (unsigned)below(f, HOSTS);
	int sv[2];

	if (f->hosts[i] < 0) {
		if (below(f, 4) || !vio_running(f->d.dev))
			return;
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv))
			cr_assert_fail("socketpair");
		f->hosts[i] = sv[0];
		vio_vsock_connect(f->d.dev, 1000, sv[1], NULL);
		return;
	}
	switch (below(f, 12)) {
	case 0:
		close(f->hosts[i]);
		f->hosts[i] = -1;
		break;
	case 1:
		shutdown(f->hosts[i], (int)below(f, 3));
		break;
	case 2:
	case 3:
	case 4:
	case 5:
		if (recv(f->hosts[i], block, sizeof(block), 0) == 0) {
			close(f->hosts[i]);
			f->hosts[i] = -1;
		}
		break;
	default:
		send(f->hosts[i], block, below(f, sizeof(block)), MSG_NOSIGNAL);
	}
}

static void poke_register(struct fuzz *f)
{
	uint64_t off = below(f, 0x108) & ~3ull;

	if (off != VIRTIO_MMIO_STATUS || below(f, 16) == 0)
		drv_write(&f->d, off, (uint32_t)odd_gpa(f));
	drv_read(&f->d, off);
}

static struct vio_dev *make(struct fuzz *f, unsigned index)
{
	if (index == VIO_BLK)
		return vio_blk_create(&f->r.host, DISK_BYTES, &disk_ops, f->k);
	if (index == VIO_VSOCK)
		return vio_vsock_create(&f->r.host, CID);
	return vio_rng_create(&f->r.host);
}

// The state into a new device on the same memory.
static void move_on(struct fuzz *f, unsigned index)
{
	struct vio_dev *n;
	struct wire_reader r;
	struct err e = ERR_INIT;
	uint8_t buf[CAP];

	while (!vio_quiesce(f->d.dev))
		disk_complete_all(f->k);
	r = wire_reader_of(buf, rig_save(f->d.dev, buf, sizeof(buf)));
	n = make(f, index);
	cr_assert_eq(vio_load(n, &r, &e), 0, "our own section: %s", e.msg);
	vio_destroy(f->d.dev);
	f->d.dev = n;
	if (f->k)
		f->k->dev = n;
	vio_resume(n);
	f->moved++;
}

static void start_over(struct fuzz *f)
{
	f->d.heap = 0x800000 - 0x100000; // indirect tables
	// Under race it may be broken again before it is up.
	cr_assert(drv_init(&f->d, &f->r, f->d.dev, FEATURES, 64) || f->racing);
	f->resets++;
}

static void step(struct fuzz *f, unsigned index)
{
	uint64_t what = below(f, 100);
	unsigned q = (unsigned)below(f, f->d.nq);

	if (f->d.heap > 0x800000 - 0x1000)
		f->d.heap = 0x800000 - 0x100000;
	if (what < 40) {
		if (index == VIO_BLK)
			blk_chain(f);
		else if (index == VIO_RNG)
			rng_chain(f);
		else if (below(f, 3))
			vsock_chain(f);
		else
			vsock_rx_chain(f);
	} else if (what < 60) {
		drv_write(&f->d, VIRTIO_MMIO_QUEUE_NOTIFY, q);
		rig_step(&f->r);
	} else if (what < 75) {
		take_used(f, q);
	} else if (what < 95) {
		if (index == VIO_VSOCK)
			host_acts(f);
		else if (index == VIO_BLK && f->k->nheld)
			disk_complete(f->k, (unsigned)below(f, f->k->nheld));
		rig_step(&f->r);
	} else if (what < 97 && below(f, 4) == 0) {
		mutate(f, q);
	} else if (what == 97 && below(f, 20) == 0) {
		poke_register(f);
	} else if (what == 98 && below(f, 20) == 0) {
		move_on(f, index);
	} else if (what == 99 && below(f, 100) == 0) {
		start_over(f);
	}
	if (!vio_running(f->d.dev)) {
		f->broke += drv_needs_reset(&f->d);
		rig_run(&f->r);
		start_over(f);
	}
}

// Another vCPU: descriptors and avail rings change while they are parsed, and
// registers while the device thread works. The used ring is left alone, since
// our driver believes it.
static void *scribble(void *arg)
{
	struct fuzz *f = arg;
	uint64_t seed = 0xbad;

	while (!f->stop) {
		uint64_t q = rnd_below(&seed, f->d.nq);
		uint64_t off = rnd_below(&seed, 2)
				   ? rnd_below(&seed, 0x400)
				   : 0x4000 + rnd_below(&seed, 0x90);
		uint64_t v = rnd(&seed) >> (8 * rnd_below(&seed, 8));

		memcpy(f->r.mem.base + 0x10000 + q * 0x10000 + (off & ~1ull),
		       &v, 2);
		off = rnd_below(&seed, 0x110) & ~3ull;
		if (off != VIRTIO_MMIO_STATUS || rnd_below(&seed, 50) == 0)
			vio_mmio_write(f->d.dev, off, &v, 4);
		vio_mmio_read(f->d.dev, off, &v, 4);
		for (uint64_t i = rnd_below(&seed, 4000); i; i--)
			__asm__ volatile("pause");
	}
	return NULL;
}

// The same steps against that thread, for about half a second, or until some of
// them meet it.
static void race(unsigned index, struct fuzz *f)
{
	uint64_t end = util_now_ns() + 500000000;
	pthread_t t;

	f->racing = true;
	pthread_create(&t, NULL, scribble, f);
	while (util_now_ns() < end || f->done < 100 || f->broke < 3) {
		// The device is not replaced under the other thread's feet.
		uint64_t at = f->seed;

		if (rnd_below(&at, 100) == 98)
			rnd(&f->seed);
		else
			step(f, index);
	}
	f->stop = true;
	pthread_join(t, NULL);
	f->racing = false;
	rig_run(&f->r);
	start_over(f);
}

static void fuzz(unsigned index, uint64_t seed, bool racing, struct fuzz *f)
{
	memset(f, 0, sizeof(*f));
	f->seed = seed;
	rig_init(&f->r, MEM);
	if (index == VIO_BLK) {
		f->k = calloc(1, sizeof(*f->k));
		f->k->defer = true;
	}
	f->d.rig = &f->r;
	f->d.dev = make(f, index);
	f->d.nq = vio_num_queues(f->d.dev);
	if (f->k)
		f->k->dev = f->d.dev;
	for (unsigned i = 0; i < HOSTS; i++)
		f->hosts[i] = -1;
	start_over(f);
	if (racing)
		race(index, f);
	for (unsigned i = 0; i < (racing ? 100u : STEPS); i++)
		step(f, index);
	if (f->k)
		disk_complete_all(f->k);
	rig_run(&f->r);
	vio_destroy(f->d.dev);
	for (unsigned i = 0; i < HOSTS; i++)
		if (f->hosts[i] >= 0)
			close(f->hosts[i]);
	cr_assert_eq(f->r.nwatches, 0);
	cr_log_info("done %u broke %u moved %u resets %u mutations %u "
		    "connected %u",
		    f->done, f->broke, f->moved, f->resets, f->mutations,
		    f->connected);
	rig_fini(&f->r);
	free(f->k);
}

// The floors are about half of what these seeds reach.
static void reached(const struct fuzz *f, unsigned done)
{
	cr_assert_gt(f->done, done, "%u chains came back", f->done);
	cr_assert_gt(f->broke, 50, "%u needed a reset", f->broke);
	cr_assert_gt(f->moved, 30, "%u states were moved", f->moved);
	cr_assert_gt(f->mutations, 500);
}

Test(virtio_fuzz, blk)
{
	struct fuzz f;

	for (uint64_t seed = 1; seed <= 3; seed++) {
		fuzz(VIO_BLK, seed, false, &f);
		reached(&f, 30000);
	}
}

Test(virtio_fuzz, rng)
{
	struct fuzz f;

	fuzz(VIO_RNG, 11, false, &f);
	reached(&f, 30000);
}

Test(virtio_fuzz, vsock)
{
	struct fuzz f;

	for (uint64_t seed = 21; seed <= 24; seed++) {
		fuzz(VIO_VSOCK, seed, false, &f);
		reached(&f, 30000);
		cr_assert_gt(f.connected, 300, "%u streams", f.connected);
	}
}

Test(virtio_fuzz, rings_change_while_they_are_parsed)
{
	struct fuzz f;
	unsigned broke = 0;

	for (unsigned index = 0; index < VIO_NUM; index++) {
		fuzz(index, 31 + index, true, &f);
		cr_assert_gt(f.done, 50, "device %u: %u", index, f.done);
		broke += f.broke;
	}
	cr_assert_gt(broke, 5);
}
