// Split virtqueue, device side. The theory is in virtq.h.
//
// Memory order. The driver publishes a chain by a store to avail->idx after
// everything else; our acquire load of idx orders the reads behind it. We
// publish by a release store to used->idx. The two "is anybody asleep"
// protocols (interrupt suppression, notification suppression) are store-then-
// load on both sides, which takes a full fence.
#include "virtq.h"

#include <errno.h>
#include <linux/virtio_ring.h>
#include <string.h>

enum { DESC_SIZE = 16 };

// Offsets in the avail and used areas (virtio 1.2 section 2.7.6, 2.7.8).
enum { RING_FLAGS = 0, RING_IDX = 2, RING_ENTRIES = 4 };

static uint64_t avail_bytes(uint32_t num)
{
	return RING_ENTRIES + 2ull * num + 2;
}

static uint64_t used_bytes(uint32_t num)
{
	return RING_ENTRIES + 8ull * num + 2;
}

static uint16_t load16(const uint8_t *p)
{
	return __atomic_load_n((const uint16_t *)(const void *)p,
			       __ATOMIC_RELAXED);
}

static uint16_t load16_acquire(const uint8_t *p)
{
	return __atomic_load_n((const uint16_t *)(const void *)p,
			       __ATOMIC_ACQUIRE);
}

static void store16(uint8_t *p, uint16_t v)
{
	__atomic_store_n((uint16_t *)(void *)p, v, __ATOMIC_RELAXED);
}

// memcpy that the compiler cannot repeat: what is judged afterwards is the
// copy.
static void copy_once(void *dst, const void *src, size_t len)
{
	memcpy(dst, src, len);
	__asm__ volatile("" : : "r"(dst) : "memory");
}

void virtq_reset(struct virtq *q)
{
	memset(q, 0, sizeof(*q));
}

static bool range_ok(uint64_t mem_bytes, uint64_t gpa, uint64_t len)
{
	uint64_t low = MIN(mem_bytes, VMM_LOW_MAX);

	if (gpa <= low)
		return len <= low - gpa;
	if (mem_bytes <= VMM_LOW_MAX || gpa < (4ull << 30))
		return false;
	gpa -= 4ull << 30;
	return gpa <= mem_bytes - low && len <= mem_bytes - low - gpa;
}

int virtq_geom_check(const struct virtq_geom *g, uint64_t mem_bytes)
{
	if (g->num == 0 || g->num > VIRTQ_MAX_SIZE || (g->num & (g->num - 1)))
		return -EINVAL;
	if ((g->desc & 15) || (g->avail & 1) || (g->used & 3))
		return -EINVAL;
	if (!range_ok(mem_bytes, g->desc, (uint64_t)DESC_SIZE * g->num) ||
	    !range_ok(mem_bytes, g->avail, avail_bytes(g->num)) ||
	    !range_ok(mem_bytes, g->used, used_bytes(g->num)))
		return -EINVAL;
	return 0;
}

int virtq_latch(struct virtq *q, const struct guestmem *gm, bool indirect,
		bool event_idx)
{
	const struct virtq_geom *g = &q->geom;

	if (virtq_geom_check(g, gm->bytes) < 0)
		return -EINVAL;
	q->desc = gm_ptr(gm, g->desc, (uint64_t)DESC_SIZE * g->num);
	q->avail = gm_ptr(gm, g->avail, avail_bytes(g->num));
	q->used = gm_ptr(gm, g->used, used_bytes(g->num));
	if (!q->desc || !q->avail || !q->used)
		return -EINVAL;
	q->gm = gm;
	q->indirect = indirect;
	q->event_idx = event_idx;
	q->last_signalled = q->used_idx;
	q->broken = false;
	q->live = true;
	return 0;
}

static int broken(struct virtq *q)
{
	q->broken = true;
	return -EPROTO;
}

// A chain while it is gathered. Direct and indirect descriptors go through the
// same door, so that order and bounds hold across both.
struct gather {
	struct virtq_chain *c;
	struct iovec *iov;
	unsigned max;
};

// Appends one buffer descriptor that was copied already.
static int gather_add(const struct guestmem *gm, struct gather *g,
		      const struct vring_desc *d)
{
	bool in = d->flags & VRING_DESC_F_WRITE;
	struct virtq_chain *c = g->c;
	unsigned n = c->out_n + c->in_n;
	void *p;

	if (!in && c->in_n)
		return -EPROTO; // readable after writable
	p = gm_ptr(gm, d->addr, d->len);
	if (!p)
		return -EPROTO;
	if (d->len == 0)
		return 0;
	if (n >= g->max || n >= VIRTQ_MAX_SEGS)
		return -EPROTO;
	g->iov[n] = (struct iovec){p, d->len};
	if (in) {
		c->in_n++;
		c->in_len += d->len;
	} else {
		c->out_n++;
		c->out_len += d->len;
	}
	return 0;
}

// The table that an indirect descriptor names (virtio 1.2 section 2.7.5.3).
static int gather_indirect(const struct guestmem *gm, struct gather *g,
			   const struct vring_desc *ind)
{
	uint32_t count = ind->len / DESC_SIZE;
	const uint8_t *table;
	uint32_t i = 0;

	if (ind->len == 0 || ind->len % DESC_SIZE || count > 65535)
		return -EPROTO;
	table = gm_ptr(gm, ind->addr, ind->len);
	if (!table)
		return -EPROTO;
	for (uint32_t seen = 0; seen < count && seen < VIRTQ_MAX_SEGS; seen++) {
		struct vring_desc d;
		int rc;

		copy_once(&d, table + (size_t)DESC_SIZE * i, sizeof(d));
		if (d.flags & VRING_DESC_F_INDIRECT)
			return -EPROTO;
		rc = gather_add(gm, g, &d);
		if (rc < 0)
			return rc;
		if (!(d.flags & VRING_DESC_F_NEXT))
			return 0;
		i = d.next;
		if (i >= count)
			return -EPROTO;
	}
	return -EPROTO; // a loop, or longer than we take
}

static int gather_chain(const struct virtq *q, struct gather *g)
{
	uint32_t i = g->c->head;

	for (uint32_t seen = 0; seen < q->geom.num && seen < VIRTQ_MAX_SEGS;
	     seen++) {
		struct vring_desc d;
		int rc;

		copy_once(&d, q->desc + (size_t)DESC_SIZE * i, sizeof(d));
		if (d.flags & VRING_DESC_F_INDIRECT) {
			if (!q->indirect || (d.flags & VRING_DESC_F_NEXT))
				return -EPROTO;
			return gather_indirect(q->gm, g, &d);
		}
		rc = gather_add(q->gm, g, &d);
		if (rc < 0)
			return rc;
		if (!(d.flags & VRING_DESC_F_NEXT))
			return 0;
		i = d.next;
		if (i >= q->geom.num)
			return -EPROTO;
	}
	return -EPROTO;
}

int virtq_pop(struct virtq *q, struct virtq_chain *c, struct iovec *iov,
	      unsigned max_iov)
{
	struct gather g = {c, iov, max_iov};
	uint16_t pending, slot;

	if (!q->live || q->broken)
		return 0;
	pending =
	    (uint16_t)(load16_acquire(q->avail + RING_IDX) - q->last_avail);
	if (pending == 0)
		return 0;
	if (pending > q->geom.num)
		return broken(q);
	slot = (uint16_t)(q->last_avail & (q->geom.num - 1));
	*c = (struct virtq_chain){0};
	c->head = load16(q->avail + RING_ENTRIES + 2u * slot);
	if (c->head >= q->geom.num)
		return broken(q);
	if (gather_chain(q, &g) < 0)
		return broken(q);
	q->last_avail++;
	return 1;
}

void virtq_unpop(struct virtq *q, unsigned n)
{
	q->last_avail = (uint16_t)(q->last_avail - n);
}

void virtq_push(struct virtq *q, uint16_t head, uint32_t written)
{
	struct vring_used_elem e = {head, written};
	uint16_t slot;

	if (!q->live || q->broken)
		return;
	slot = (uint16_t)(q->used_idx & (q->geom.num - 1));
	memcpy(q->used + RING_ENTRIES + 8u * slot, &e, sizeof(e));
	q->used_idx++;
	__atomic_store_n((uint16_t *)(void *)(q->used + RING_IDX), q->used_idx,
			 __ATOMIC_RELEASE);
}

bool virtq_should_signal(struct virtq *q)
{
	uint16_t old = q->last_signalled, now = q->used_idx, event;

	if (!q->live || q->broken || old == now)
		return false;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	q->last_signalled = now;
	if (!q->event_idx)
		return !(load16(q->avail + RING_FLAGS) &
			 VRING_AVAIL_F_NO_INTERRUPT);
	event = load16(q->avail + RING_ENTRIES + 2u * q->geom.num);
	return vring_need_event(event, now, old);
}

void virtq_quiet(struct virtq *q)
{
	if (q->live && !q->event_idx)
		store16(q->used + RING_FLAGS, VRING_USED_F_NO_NOTIFY);
}

bool virtq_listen(struct virtq *q)
{
	if (!q->live || q->broken)
		return false;
	if (q->event_idx)
		store16(q->used + RING_ENTRIES + 8u * q->geom.num,
			q->last_avail);
	else
		store16(q->used + RING_FLAGS, 0);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return load16_acquire(q->avail + RING_IDX) != q->last_avail;
}

// --- scattered ranges -------------------------------------------------------

unsigned virtq_iov_slice(const struct iovec *iov, unsigned n, size_t off,
			 size_t len, struct iovec *out)
{
	unsigned k = 0;

	for (unsigned i = 0; i < n && len; i++) {
		size_t part;

		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		part = MIN(iov[i].iov_len - off, len);
		out[k].iov_base = (uint8_t *)iov[i].iov_base + off;
		out[k].iov_len = part;
		k++;
		len -= part;
		off = 0;
	}
	return k;
}

// Shared walk of the two copies; exactly one of dst and src is given.
static size_t iov_copy(const struct iovec *iov, unsigned n, size_t off,
		       uint8_t *dst, const uint8_t *src, size_t len)
{
	size_t done = 0;

	for (unsigned i = 0; i < n && done < len; i++) {
		uint8_t *p = iov[i].iov_base;
		size_t part;

		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		part = MIN(iov[i].iov_len - off, len - done);
		if (dst)
			copy_once(dst + done, p + off, part);
		else
			memcpy(p + off, src + done, part);
		done += part;
		off = 0;
	}
	return done;
}

size_t virtq_iov_read(const struct iovec *iov, unsigned n, size_t off,
		      void *dst, size_t len)
{
	return iov_copy(iov, n, off, dst, NULL, len);
}

size_t virtq_iov_write(const struct iovec *iov, unsigned n, size_t off,
		       const void *src, size_t len)
{
	return iov_copy(iov, n, off, NULL, src, len);
}
