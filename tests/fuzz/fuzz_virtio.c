// The virtio devices behind their registers and rings (vmm/virtio_*.c, virtq.c), in a
// whole machine: a guest that builds valid rings and chains, and now and then something
// else; a host that reads, writes and hangs up; resets, pauses and moves to another
// machine in between. The input is the program of all three.
#include "machine.h"

#include <linux/virtio_blk.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/socket.h>

#include "virtio_vsock.h"

enum { HOSTS = 4, OPS_MAX = 400, PORTS = 0x40000000, GUEST_PORT = 1000 };

enum {
	S_READ,
	S_WRITE,
	S_FLUSH,
	S_ID,
	S_INDIRECT,
	S_HIGH,
	S_BROKEN,
	S_RESET_IN_FLIGHT,
	S_GEOMETRY,
	S_QUEUE_OFF,
	S_RNG,
	S_OPEN,
	S_TO_HOST,
	S_TO_GUEST,
	S_BUFFERED,
	S_STALLED,
	S_LINGER,
	S_CLOSING,
	S_RSTS_WAIT,
	S_MOVED,
	S_MOVED_STREAMS,
	S_MOVED_BROKEN,
};
struct fuzz_state fuzz_states[] = {
    [S_READ] = {"a read of the disk", 0},
    [S_WRITE] = {"a write", 0},
    [S_FLUSH] = {"a flush", 0},
    [S_ID] = {"the disk's name", 0},
    [S_INDIRECT] = {"an indirect chain", 0},
    [S_HIGH] = {"a queue beyond 4 GiB", 0},
    [S_BROKEN] = {"a device that needs a reset", 0},
    [S_RESET_IN_FLIGHT] = {"a reset with requests in flight", 0},
    [S_GEOMETRY] = {"a queue's place rewritten while it is live", 0},
    [S_QUEUE_OFF] = {"a live queue switched off", 0},
    [S_RNG] = {"random bytes", 0},
    [S_OPEN] = {"an open stream", 0},
    [S_TO_HOST] = {"bytes for the host", 0},
    [S_TO_GUEST] = {"bytes for the guest", 0},
    [S_BUFFERED] = {"bytes that the host does not take", 0},
    [S_STALLED] = {"bytes that the guest has no buffer for", 0},
    [S_LINGER] = {"a stream that the guest has forgotten", 0},
    [S_CLOSING] = {"a stream that the host has closed", 0},
    [S_RSTS_WAIT] = {"as many answers as may wait", 0},
    [S_MOVED] = {"a move", 0},
    [S_MOVED_STREAMS] = {"a move with streams", 0},
    [S_MOVED_BROKEN] = {"a move of a device that needs a reset", 0},
    {0},
};
const size_t fuzz_around = 20;

static void seen(int s)
{
	fuzz_states[s].seen++;
}

struct ring {
	unsigned num;
	uint64_t desc, avail, used;
	uint16_t idx, next;
};

struct guest {
	struct machine m;
	struct fuzz_in *in;
	unsigned dev;
	uint64_t win, area; // its registers; where its rings and buffers are
	struct ring q[VIO_MAX_QUEUES];
	bool indirect;
	unsigned turn;
	int hosts[HOSTS];
};

static uint8_t next(struct guest *g)
{
	return in_u8(g->in);
}

static void wr(struct guest *g, uint64_t reg, uint32_t v)
{
	machine_wr32(&g->m, g->win + reg, v);
}

static struct vio_dev *device(struct guest *g)
{
	return g->m.vm->vio[g->dev];
}

// --- the driver -------------------------------------------------------------

static void put(struct guest *g, uint64_t gpa, const void *p, size_t n)
{
	void *at = machine_at(&g->m, gpa, n);

	if (at)
		memcpy(at, p, n);
}

static void put16(struct guest *g, uint64_t gpa, uint16_t v)
{
	put(g, gpa, &v, sizeof(v));
}

static void queue_init(struct guest *g, unsigned i, unsigned num)
{
	struct ring *q = &g->q[i];

	*q = (struct ring){.num = num, .desc = g->area + 0x4000 * i};
	q->avail = q->desc + 0x1000;
	q->used = q->desc + 0x2000;
	put(g, q->avail, "\0\0\0", 4);
	put(g, q->used, "\0\0\0", 4);
	wr(g, VIRTIO_MMIO_QUEUE_SEL, i);
	wr(g, VIRTIO_MMIO_QUEUE_NUM, num);
	wr(g, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)q->desc);
	wr(g, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(q->desc >> 32));
	wr(g, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)q->avail);
	wr(g, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (uint32_t)(q->avail >> 32));
	wr(g, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)q->used);
	wr(g, VIRTIO_MMIO_QUEUE_USED_HIGH, (uint32_t)(q->used >> 32));
	wr(g, VIRTIO_MMIO_QUEUE_READY, 1);
}

// `how`: features and sizes. The usual ones are the small numbers.
static void init(struct guest *g, uint8_t how)
{
	static const uint16_t sizes[] = {32, 256, 8, 1};
	uint64_t features = ~0ull;

	if (how & 4)
		features &= ~VIO_F_EVENT_IDX;
	if (how & 8)
		features &= ~VIO_F_INDIRECT;
	g->indirect = !(how & 8);
	wr(g, VIRTIO_MMIO_STATUS, 0);
	wr(g, VIRTIO_MMIO_STATUS, VIO_S_ACK);
	wr(g, VIRTIO_MMIO_STATUS, VIO_S_ACK | VIO_S_DRIVER);
	for (uint32_t i = 0; i < 2; i++) {
		uint32_t part = (uint32_t)(features >> 32 * i);

		wr(g, VIRTIO_MMIO_DEVICE_FEATURES_SEL, i);
		part &=
		    machine_rd32(&g->m, g->win + VIRTIO_MMIO_DEVICE_FEATURES);
		wr(g, VIRTIO_MMIO_DRIVER_FEATURES_SEL, i);
		wr(g, VIRTIO_MMIO_DRIVER_FEATURES, part);
	}
	wr(g, VIRTIO_MMIO_STATUS, 0xb);
	for (unsigned i = 0; i < vio_num_queues(device(g)); i++) {
		if (!(how & 0x40) || i)
			queue_init(g, i, sizes[how & 3]);
	}
	wr(g, VIRTIO_MMIO_STATUS, how & 0x80 ? 0xb : 0xf);
	if (g->area >> 32 && vio_running(device(g)))
		seen(S_HIGH);
}

struct seg {
	uint64_t gpa;
	uint32_t len;
	bool write;
};

static struct vring_desc desc_of(const struct seg *s, bool more, unsigned next)
{
	return (struct vring_desc){
	    .addr = s->gpa,
	    .len = s->len,
	    .flags = (uint16_t)((s->write ? VRING_DESC_F_WRITE : 0) |
				(more ? VRING_DESC_F_NEXT : 0)),
	    .next = (uint16_t)next,
	};
}

static void publish(struct guest *g, struct ring *q, uint16_t head)
{
	put16(g, q->avail + 4 + 2 * (q->idx % q->num), head);
	put16(g, q->avail + 2, ++q->idx);
}

static void add(struct guest *g, unsigned i, const struct seg *s, unsigned n,
		bool indirect)
{
	struct ring *q = &g->q[i];
	uint16_t head = q->next;
	uint64_t table = g->area + 0x80000 + 0x1000 * i + 256 * (g->turn % 16);

	if (!q->num)
		return;
	head %= (uint16_t)q->num;
	for (unsigned k = 0; k < n; k++) {
		unsigned to =
		    indirect ? k + 1 : (unsigned)(head + k + 1) % q->num;
		struct vring_desc d = desc_of(&s[k], k + 1 < n, to);
		uint64_t at = indirect ? table + 16 * k
				       : q->desc + 16 * ((head + k) % q->num);

		put(g, at, &d, sizeof(d));
	}
	if (indirect) {
		struct vring_desc d = {.addr = table,
				       .len = 16 * n,
				       .flags = VRING_DESC_F_INDIRECT};

		put(g, q->desc + 16 * head, &d, sizeof(d));
		q->next = (uint16_t)(head + 1);
		if (g->indirect)
			seen(S_INDIRECT);
	} else {
		q->next = (uint16_t)(head + n);
	}
	publish(g, q, head);
}

// The next buffer. They are used again, in turn.
static uint64_t buffer(struct guest *g)
{
	return g->area + 0x100000 + 0x11000 * (g->turn++ % 32);
}

static uint32_t length(uint8_t sel)
{
	static const uint32_t len[] = {512, 4096, 1536, 65536};

	return len[sel & 3];
}

static void blk_chain(struct guest *g)
{
	static const uint32_t types[] = {
	    VIRTIO_BLK_T_IN,	 VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH,
	    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,  VIRTIO_BLK_T_OUT,
	    VIRTIO_BLK_T_DISCARD};
	uint8_t what = next(g), how = next(g), at = next(g);
	struct virtio_blk_outhdr h = {
	    .type = types[what % 7],
	    .sector = at == 0xff ? UINT64_MAX : at / 2,
	};
	bool in = h.type != VIRTIO_BLK_T_OUT;
	uint64_t p = buffer(g);
	struct seg s[8] = {{p, sizeof(h), false}};
	unsigned n = 1, data = how & 3;

	put(g, p, &h, sizeof(h));
	if (how & 0x20) { // the header in two
		s[0].len = 7;
		s[n++] = (struct seg){p + 7, sizeof(h) - 7, false};
	}
	if (h.type == VIRTIO_BLK_T_FLUSH)
		data = 0;
	for (; data; data--)
		s[n++] = (struct seg){buffer(g), length(how >> 2), in};
	if (how & 0x40)
		s[n - 1].len += at;
	if (!(how & 0x80))
		s[n++] = (struct seg){p + 32, 1, true};
	if (h.type == VIRTIO_BLK_T_GET_ID && !(how & 0x80)) {
		s[n - 1].len = 21;
		seen(S_ID);
	}
	add(g, 0, s, n, how & 0x10);
}

static void rng_chain(struct guest *g)
{
	uint8_t how = next(g);
	struct seg s[4];
	unsigned n = 1 + (how & 3);

	for (unsigned i = 0; i < n; i++)
		s[i] = (struct seg){buffer(g), length(how >> 2),
				    i || !(how & 0x20)};
	add(g, 0, s, n, how & 0x10);
}

static void vsock_rx(struct guest *g)
{
	uint8_t how = next(g);
	unsigned count = 1 + (how >> 4);

	for (; count; count--) {
		uint64_t p = buffer(g);
		struct seg s[2] = {{p, 44, true}, {p + 44, 20000, true}};

		if (how & 4)
			s[0].len = 44 + length(how);
		if (how & 8)
			s[1].len = 1;
		add(g, VSK_RX, s, how & 4 ? 1 : 2, how & 2);
	}
}

static void vsock_tx(struct guest *g)
{
	uint8_t what = next(g), how = next(g), credit = next(g);
	unsigned count = what & 0x80 ? 70 : 1;
	struct virtio_vsock_hdr h = {
	    .src_cid = VMM_GUEST_CID,
	    .dst_cid = credit == 0xff ? 7 : VSK_HOST_CID,
	    .src_port = GUEST_PORT,
	    .dst_port = PORTS + (what >> 4 & 7),
	    .type = credit == 0xfe ? 2 : VIRTIO_VSOCK_TYPE_STREAM,
	    .op = what & 15,
	    .flags = how >> 6,
	    .buf_alloc = credit < 200 ? 1u << (credit & 31) : credit,
	    .fwd_cnt = credit & 0x40 ? 1u << (credit & 15) : 0,
	};
	uint64_t p = buffer(g);
	struct seg s[3] = {{p, sizeof(h), false}};
	unsigned n = 1;

	if (h.op == VIRTIO_VSOCK_OP_RW)
		h.len = how & 4 ? how : length(how);
	if (how & 8) { // the header in two
		s[0].len = 13;
		s[n++] = (struct seg){p + 13, sizeof(h) - 13, false};
	}
	if (h.len)
		s[n++] = (struct seg){p + sizeof(h), h.len, false};
	if (how & 0x20)
		h.len++; // more than the chain has
	if (count > 1) { // of many streams that are none
		s[0].len = sizeof(h);
		n = 1;
		h.len = 0;
	}
	for (; count; count--) {
		put(g, p, &h, sizeof(h));
		s[0].gpa = p;
		add(g, VSK_TX, s, n, how & 0x10);
		p += 64;
		h.dst_port = PORTS + 100 + count;
	}
}

static void chain(struct guest *g)
{
	if (g->dev == VIO_BLK)
		blk_chain(g);
	else if (g->dev == VIO_RNG)
		rng_chain(g);
	else
		vsock_tx(g);
}

// --- breaking rules ---------------------------------------------------------

static uint64_t strange_address(struct guest *g, uint64_t v)
{
	uint64_t mem = vmm_mem_bytes(g->m.vm), low = MIN(mem, VMM_LOW_MAX);
	const uint64_t places[] = {
	    v,	     low - v,	   low + v,	 (4ull << 30) - v,
	    g->area, g->q[0].desc, g->q[0].used, (4ull << 30) + mem - low - v,
	};

	return places[next(g) % ARRAY_SIZE(places)];
}

static void bend(struct guest *g)
{
	uint8_t what = next(g), which = next(g);
	struct ring *q = &g->q[(what >> 4) % vio_num_queues(device(g))];
	uint64_t v = in_odd(g->in);
	uint64_t d = q->num ? q->desc + 16 * (which % q->num) : 0;

	if (what & 0x80) // an indirect table
		d = g->area + 0x80000 + 16 * which;
	switch (q->num ? what & 7 : 8) {
	case 0:
		v = strange_address(g, v);
		put(g, d, &v, 8);
		break;
	case 1:
		put(g, d + 8, &v, 4);
		break;
	case 2:
		put16(g, d + 12, (uint16_t)v);
		break;
	case 3:
		put16(g, d + 14, (uint16_t)v);
		break;
	case 4: // flags, index, entries, event
		put16(g, q->avail + 2 * (which % (q->num + 3)), (uint16_t)v);
		break;
	case 5:
		publish(g, q, (uint16_t)v);
		break;
	case 6:
		q->idx = (uint16_t)(q->idx + v);
		put16(g, q->avail + 2, q->idx);
		break;
	case 7: // its own record of what is used
		put16(g, q->used + 2 * (which % (4 * q->num + 3)), (uint16_t)v);
		break;
	}
}

static void reg(struct guest *g)
{
	uint8_t what = next(g), how = next(g);
	uint64_t off = (uint64_t)(what % 68) * 4, v = in_odd(g->in);
	unsigned len = how & 3 ? 4 : 1u << (how >> 2 & 3);
	struct vio_dev *d = device(g);

	if (how & 0x80)
		v = strange_address(g, v);
	if (how & 0x40)
		off += how >> 4 & 3;
	if (len == 4 && off >= VIRTIO_MMIO_QUEUE_NUM && vio_running(d) &&
	    (off == VIRTIO_MMIO_QUEUE_NUM || off >= VIRTIO_MMIO_QUEUE_DESC_LOW))
		seen(S_GEOMETRY);
	machine_mmio(&g->m, how & 0x10, g->win + off, &v, len);
}

static void queue_off(struct guest *g)
{
	struct vio_dev *d = device(g);
	unsigned i = next(g) % vio_num_queues(d);

	if (vio_running(d) && d->vq[i].live)
		seen(S_QUEUE_OFF);
	wr(g, VIRTIO_MMIO_QUEUE_SEL, i);
	wr(g, VIRTIO_MMIO_QUEUE_READY, 0);
}

// --- the host ---------------------------------------------------------------

static void host_opens(struct guest *g, unsigned i)
{
	struct vio_vsock *v = (struct vio_vsock *)g->m.vm->vio[VIO_VSOCK];
	int sv[2], small = 4608;

	// A port that the guest can guess.
	v->next_port = PORTS + v->next_port % 8;
	fuzz_must(!socketpair(
	    AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv));
	setsockopt(sv[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	g->hosts[i] = sv[0];
	vmm_vsock_connect(g->m.vm, GUEST_PORT, sv[1], NULL);
}

static void host(struct guest *g)
{
	static uint8_t block[65536];
	uint8_t what = next(g);
	int *fd = &g->hosts[what % HOSTS];
	ssize_t n;

	if (*fd < 0) {
		host_opens(g, what % HOSTS);
		return;
	}
	switch (what / HOSTS % 8) {
	case 0:
		fd_close(fd);
		break;
	case 1:
		shutdown(*fd, SHUT_WR);
		break;
	case 2:
		shutdown(*fd, SHUT_RD);
		break;
	case 3:
	case 4:
		n = recv(*fd, block, sizeof(block), 0);
		if (n > 0)
			seen(S_TO_HOST);
		break;
	case 5:
		if (what & 0x80)
			vmm_vsock_close_all(g->m.vm);
		break;
	default:
		send(*fd, block, 1ull << (what >> 5) * 2, MSG_NOSIGNAL);
	}
}

// --- what was reached -------------------------------------------------------

static unsigned look_at_streams(const struct vio_vsock *v)
{
	unsigned n = 0;

	for (unsigned i = 0; i < v->nslots; i++) {
		const struct vsk_stream *s = v->slots[i];

		n += s->state != VSK_FREE;
		if (s->state == VSK_OPEN)
			seen(S_OPEN);
		if (s->state == VSK_OPEN && s->tx_cnt)
			seen(S_TO_GUEST);
		if (s->state == VSK_LINGER)
			seen(S_LINGER);
		if (s->state == VSK_CLOSING)
			seen(S_CLOSING);
		if (s->state != VSK_FREE && s->buf_len)
			seen(S_BUFFERED);
		if (s->state != VSK_FREE && s->stalled)
			seen(S_STALLED);
	}
	if (v->rst_n >= VSK_REPLIES_MAX)
		seen(S_RSTS_WAIT);
	fuzz_must(v->live + v->rst_n <= VSK_RSTS_MAX);
	return n;
}

static bool broken(struct guest *g)
{
	return device(g)->status & VIO_S_NEEDS_RESET;
}

static void work(struct guest *g)
{
	machine_work(&g->m);
	look_at_streams((struct vio_vsock *)g->m.vm->vio[VIO_VSOCK]);
	if (broken(g))
		seen(S_BROKEN);
	if (g->dev == VIO_RNG && device(g)->vq[0].used_idx)
		seen(S_RNG);
	fuzz_states[S_READ].seen += g->m.reads > 0;
	fuzz_states[S_WRITE].seen += g->m.writes > 0;
	fuzz_states[S_FLUSH].seen += g->m.flushes > 0;
}

static void move(struct guest *g, bool in_two_steps)
{
	unsigned streams =
	    look_at_streams((struct vio_vsock *)g->m.vm->vio[VIO_VSOCK]);

	seen(S_MOVED);
	if (streams)
		seen(S_MOVED_STREAMS);
	if (broken(g))
		seen(S_MOVED_BROKEN);
	machine_move(&g->m, in_two_steps);
	work(g);
}

static void reset(struct guest *g, uint8_t how)
{
	if (g->m.nflying)
		seen(S_RESET_IN_FLIGHT);
	if (how & 0x20)
		wr(g, VIRTIO_MMIO_STATUS, 0);
	else
		init(g, how);
}

// --- the program ------------------------------------------------------------

static void pause_and_go_on(struct guest *g)
{
	machine_disk_done_all(&g->m);
	if (vmm_pause(g->m.vm, 0, NULL) == 0) {
		chain(g); // made available meanwhile
		wr(g, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
		machine_work(&g->m);
		fuzz_must(!vmm_unpause(g->m.vm, NULL));
	}
}

static void step(struct guest *g)
{
	uint8_t op = next(g);

	switch (op % 24) {
	default:
		chain(g);
		break;
	case 6:
	case 7:
	case 8:
	case 9:
		wr(g, VIRTIO_MMIO_QUEUE_NOTIFY, op / 24 % 3);
		work(g);
		break;
	case 10:
	case 11:
		if (g->dev == VIO_VSOCK)
			vsock_rx(g);
		else
			chain(g);
		break;
	case 12:
	case 13:
	case 14:
		host(g);
		work(g);
		break;
	case 15:
		machine_disk_done(&g->m, op / 24);
		break;
	case 16:
		g->m.slow_disk = op & 0x20;
		g->m.fail = op & 0x40 ? -5 : 0;
		break;
	case 17:
	case 18:
		bend(g);
		break;
	case 19:
		reg(g);
		break;
	case 20:
		reset(g, next(g));
		break;
	case 21:
		move(g, op & 0x20);
		break;
	case 22:
		if (op & 0x20)
			queue_off(g);
		else
			machine_rd32(&g->m,
				     g->win + VIRTIO_MMIO_INTERRUPT_STATUS);
		wr(g, VIRTIO_MMIO_INTERRUPT_ACK, 3);
		break;
	case 23:
		pause_and_go_on(g);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static struct guest g;
	struct fuzz_in in = {data, data + n};
	uint8_t first = in_u8(&in);

	g = (struct guest){.in = &in, .dev = first % VIO_NUM};
	machine_begin(&g.m, first & 0x40 ? MACHINE_LARGE : MACHINE_SMALL,
		      MACHINE_DISK, -1);
	g.win = VIRTIO_MMIO_BASE + g.dev * VIRTIO_MMIO_STRIDE;
	g.area =
	    first & 0x40 && first & 0x80 ? VMM_HIGH_BASE + 0x10000 : 0x10000;
	g.m.slow_disk = first & 0x20;
	((struct vio_vsock *)g.m.vm->vio[VIO_VSOCK])->next_port = PORTS;
	for (unsigned i = 0; i < HOSTS; i++)
		g.hosts[i] = -1;
	init(&g, in_u8(&in));
	for (unsigned i = 0; i < OPS_MAX && in_left(&in); i++)
		step(&g);
	work(&g);
	machine_end(&g.m);
	for (unsigned i = 0; i < HOSTS; i++)
		fd_close(&g.hosts[i]);
	return 0;
}
