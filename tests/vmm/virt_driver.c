#include "virt_driver.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>

// --- the machine ------------------------------------------------------------

static void on_irq(struct vmm *vm, unsigned index)
{
	(void)index;
	((struct rig *)(void *)vm)->irqs++;
}

static void on_status(struct vmm *vm, unsigned index, bool ok)
{
	struct rig *r = (void *)vm;

	(void)index;
	if (ok)
		r->status_up++;
	else
		r->status_down++;
}

static int on_watch(struct vmm *vm, int fd, uint32_t events,
		    void (*cb)(void *ctx, uint32_t events), void *ctx)
{
	struct rig *r = (void *)vm;
	struct epoll_event ev = {.events = events};
	unsigned i, spare = RIG_WATCHES;

	for (i = 0; i < RIG_WATCHES && r->watches[i].fd != fd; i++)
		if (r->watches[i].fd < 0 && spare == RIG_WATCHES)
			spare = i;
	if (events == 0) {
		if (i == RIG_WATCHES)
			return 0;
		r->watches[i].fd = -1;
		r->watches[i].gen++;
		r->nwatches--;
		epoll_ctl(r->epfd, EPOLL_CTL_DEL, fd, NULL);
		return 0;
	}
	if (i == RIG_WATCHES) {
		i = spare;
		r->nwatches++;
		ev.data.u64 = (uint64_t)r->watches[i].gen << 32 | i;
		if (epoll_ctl(r->epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
			return -errno;
	} else {
		ev.data.u64 = (uint64_t)r->watches[i].gen << 32 | i;
		if (epoll_ctl(r->epfd, EPOLL_CTL_MOD, fd, &ev) < 0)
			return -errno;
	}
	r->watches[i].fd = fd;
	r->watches[i].cb = cb;
	r->watches[i].ctx = ctx;
	return 0;
}

void rig_init(struct rig *r, uint64_t mem_bytes)
{
	memset(r, 0, sizeof(*r));
	r->map = mmap(NULL, mem_bytes + 8192, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	cr_assert_neq((void *)r->map, MAP_FAILED);
	r->mem.base = r->map + 4096;
	r->mem.bytes = mem_bytes;
	cr_assert_eq(mprotect(r->mem.base, mem_bytes, PROT_READ | PROT_WRITE),
		     0);
	r->epfd = epoll_create1(EPOLL_CLOEXEC);
	for (unsigned i = 0; i < RIG_WATCHES; i++)
		r->watches[i].fd = -1;
	r->host = (struct vio_host){.mem = &r->mem,
				    .vm = (struct vmm *)(void *)r,
				    .irq = on_irq,
				    .status = on_status,
				    .watch = on_watch};
}

void rig_fini(struct rig *r)
{
	munmap(r->map, r->mem.bytes + 8192);
	close(r->epfd);
}

int rig_step(struct rig *r)
{
	struct epoll_event ev[32];
	int n = epoll_wait(r->epfd, ev, ARRAY_SIZE(ev), 0);

	for (int i = 0; i < n; i++) {
		struct rig_watch *w = &r->watches[(uint32_t)ev[i].data.u64];

		if (w->fd >= 0 && w->gen == (uint32_t)(ev[i].data.u64 >> 32))
			w->cb(w->ctx, ev[i].events);
	}
	return n;
}

void rig_run(struct rig *r)
{
	for (int i = 0; i < 20000; i++)
		if (rig_step(r) == 0)
			return;
	cr_assert_fail("the machine's epoll never becomes idle");
}

// --- registers --------------------------------------------------------------

uint32_t drv_read(struct drv *d, uint64_t off)
{
	uint32_t v = 0xdeadbeef;

	vio_mmio_read(d->dev, off, &v, 4);
	return v;
}

void drv_write(struct drv *d, uint64_t off, uint32_t v)
{
	vio_mmio_write(d->dev, off, &v, 4);
}

bool drv_negotiate(struct drv *d, uint64_t features)
{
	uint64_t offer;

	drv_write(d, VIRTIO_MMIO_STATUS, 0);
	drv_write(d, VIRTIO_MMIO_STATUS, 1);
	drv_write(d, VIRTIO_MMIO_STATUS, 3);
	drv_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	offer = (uint64_t)drv_read(d, VIRTIO_MMIO_DEVICE_FEATURES) << 32;
	drv_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	offer |= drv_read(d, VIRTIO_MMIO_DEVICE_FEATURES);
	d->features = features & offer;
	drv_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	drv_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)d->features);
	drv_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	drv_write(d, VIRTIO_MMIO_DRIVER_FEATURES,
		  (uint32_t)(d->features >> 32));
	drv_write(d, VIRTIO_MMIO_STATUS, 0xb);
	return drv_read(d, VIRTIO_MMIO_STATUS) == 0xb;
}

void drv_queue_setup(struct drv *d, unsigned q, unsigned qsize)
{
	struct drv_queue *dq = &d->q[q];

	memset(dq, 0, sizeof(*dq));
	dq->num = qsize;
	dq->desc = 0x10000 + q * 0x10000ull;
	dq->avail = dq->desc + 0x4000;
	dq->used = dq->desc + 0x8000;
	memset(drv_ptr(d, dq->desc, 0x10000), 0, 0x10000);
	for (unsigned i = 0; i < qsize; i++)
		dq->free[dq->nfree++] = (uint16_t)(qsize - 1 - i);
	drv_write(d, VIRTIO_MMIO_QUEUE_SEL, q);
	drv_write(d, VIRTIO_MMIO_QUEUE_NUM, qsize);
	drv_write(d, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)dq->desc);
	drv_write(d, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(dq->desc >> 32));
	drv_write(d, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)dq->avail);
	drv_write(d, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (uint32_t)(dq->avail >> 32));
	drv_write(d, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)dq->used);
	drv_write(d, VIRTIO_MMIO_QUEUE_USED_HIGH, (uint32_t)(dq->used >> 32));
	drv_write(d, VIRTIO_MMIO_QUEUE_READY, 1);
}

bool drv_init(struct drv *d, struct rig *r, struct vio_dev *dev,
	      uint64_t features, unsigned qsize)
{
	d->rig = r;
	d->dev = dev;
	d->nq = vio_num_queues(dev);
	if (!d->heap)
		d->heap = 0x100000;
	if (!drv_negotiate(d, features))
		return false;
	for (unsigned q = 0; q < d->nq; q++)
		drv_queue_setup(d, q, qsize);
	drv_write(d, VIRTIO_MMIO_STATUS, 0xf);
	rig_run(r);
	return drv_read(d, VIRTIO_MMIO_STATUS) == 0xf;
}

void drv_move(struct drv *d, const struct drv *from, struct rig *r,
	      struct vio_dev *dev)
{
	*d = *from;
	d->rig = r;
	d->dev = dev;
}

// --- rings ------------------------------------------------------------------

uint64_t drv_alloc(struct drv *d, uint64_t len)
{
	uint64_t at = d->heap;

	d->heap = ALIGN_UP(d->heap + len, 16ull);
	cr_assert_leq(d->heap, MIN(d->rig->mem.bytes, VMM_LOW_MAX));
	return at;
}

void *drv_ptr(struct drv *d, uint64_t gpa, uint64_t len)
{
	void *p = gm_ptr(&d->rig->mem, gpa, len);

	cr_assert_not_null(p);
	return p;
}

void drv_desc(struct drv *d, unsigned q, unsigned i, uint64_t gpa, uint32_t len,
	      uint16_t flags, uint16_t next)
{
	struct vring_desc desc = {gpa, len, flags, next};

	memcpy(drv_ptr(d, d->q[q].desc + 16ull * i, 16), &desc, 16);
}

void drv_publish(struct drv *d, unsigned q, uint16_t head)
{
	struct drv_queue *dq = &d->q[q];
	uint8_t *avail = drv_ptr(d, dq->avail, 6 + 2ull * dq->num);

	memcpy(avail + 4 + 2 * (dq->avail_idx % dq->num), &head, 2);
	dq->avail_idx++;
	__atomic_store_n((uint16_t *)(void *)(avail + 2), dq->avail_idx,
			 __ATOMIC_RELEASE);
}

static uint16_t seg_flags(const struct seg *s, bool more)
{
	return (uint16_t)((s->write ? VRING_DESC_F_WRITE : 0) |
			  (more ? VRING_DESC_F_NEXT : 0));
}

int drv_add(struct drv *d, unsigned q, const struct seg *s, unsigned n)
{
	struct drv_queue *dq = &d->q[q];
	uint16_t head, at;

	if (dq->nfree < n || n == 0)
		return -1;
	head = at = dq->free[--dq->nfree];
	dq->len[head] = (uint16_t)n;
	for (unsigned i = 0; i < n; i++) {
		uint16_t next = i + 1 < n ? dq->free[--dq->nfree] : 0;

		drv_desc(d, q, at, s[i].gpa, s[i].len,
			 seg_flags(&s[i], i + 1 < n), next);
		dq->next[at] = next;
		at = next;
	}
	drv_publish(d, q, head);
	return head;
}

int drv_add_indirect(struct drv *d, unsigned q, const struct seg *s, unsigned n)
{
	struct drv_queue *dq = &d->q[q];
	uint64_t table;
	uint16_t head;

	if (dq->nfree < 1)
		return -1;
	head = dq->free[--dq->nfree];
	dq->len[head] = 1;
	// One table for each head, where the ring's own area ends.
	table = drv_alloc(d, 16ull * n);
	for (unsigned i = 0; i < n; i++) {
		struct vring_desc desc = {s[i].gpa, s[i].len,
					  seg_flags(&s[i], i + 1 < n),
					  (uint16_t)(i + 1)};

		memcpy(drv_ptr(d, table + 16ull * i, 16), &desc, 16);
	}
	drv_desc(d, q, head, table, 16u * n, VRING_DESC_F_INDIRECT, 0);
	drv_publish(d, q, head);
	return head;
}

// What Linux does (virtqueue_kick_prepare_split).
static bool asked_to_ring(struct drv *d, unsigned q)
{
	struct drv_queue *dq = &d->q[q];
	uint16_t event, old = dq->rung;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	memcpy(&event, drv_ptr(d, dq->used + 4 + 8ull * dq->num, 2), 2);
	dq->rung = dq->avail_idx;
	return vring_need_event(event, dq->avail_idx, old);
}

bool drv_used_listen(struct drv *d, unsigned q)
{
	struct drv_queue *dq = &d->q[q];
	uint16_t idx;

	memcpy(drv_ptr(d, dq->avail + 4 + 2ull * dq->num, 2), &dq->used_seen,
	       2);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	memcpy(&idx, drv_ptr(d, dq->used + 2, 2), 2);
	return idx != dq->used_seen;
}

void drv_kick(struct drv *d, unsigned q)
{
	if (!d->polite || asked_to_ring(d, q))
		drv_write(d, VIRTIO_MMIO_QUEUE_NOTIFY, q);
	rig_run(d->rig);
}

bool drv_used(struct drv *d, unsigned q, uint16_t *head, uint32_t *len)
{
	struct drv_queue *dq = &d->q[q];
	uint8_t *used = drv_ptr(d, dq->used, 4 + 8ull * dq->num);
	uint32_t e[2];
	uint16_t idx, at;

	idx = __atomic_load_n((uint16_t *)(void *)(used + 2), __ATOMIC_ACQUIRE);
	if (idx == dq->used_seen)
		return false;
	memcpy(e, used + 4 + 8 * (dq->used_seen % dq->num), 8);
	dq->used_seen++;
	*head = (uint16_t)e[0];
	*len = e[1];
	at = *head;
	for (unsigned i = dq->len[*head]; i; i--) {
		dq->free[dq->nfree++] = at;
		at = dq->next[at];
	}
	dq->len[*head] = 0;
	return true;
}

bool drv_needs_reset(struct drv *d)
{
	return drv_read(d, VIRTIO_MMIO_STATUS) & VIO_S_NEEDS_RESET;
}

// --- state ------------------------------------------------------------------

size_t rig_save(struct vio_dev *dev, void *buf, size_t cap)
{
	struct wire_writer w = wire_writer_of(buf, cap);

	vio_save(dev, &w);
	cr_assert_not(w.bad);
	return w.len;
}

void rig_copy_memory(struct rig *to, const struct rig *from, uint64_t bytes)
{
	memcpy(to->mem.base, from->mem.base, bytes);
}

uint64_t rnd(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}
