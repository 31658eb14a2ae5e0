// Saved sections of virtio devices (docs/VIRTIO.md). A section is the
// transport's part, then the device's own part, and nothing after it.
//
// Check and load share one parser, so that what is checked is what is applied;
// load repeats the check against its own VM and only then changes the device.
#include "virtio_mmio.h"

#include <errno.h>
#include <string.h>

static void put_queue(struct wire_writer *w, const struct virtq *q, bool broken)
{
	// After NEEDS_RESET a taken chain may never be given back: nobody will
	// look at the ring again, so that its position is not worth a rule. A
	// queue that is not live has none.
	uint16_t used = q->live ? q->used_idx : 0;
	uint16_t at = !q->live || broken ? used : q->last_avail;

	wire_put_u32(w, q->geom.num);
	wire_put_u32(w, (q->geom.ready ? 1u : 0u) | (q->live ? 2u : 0u));
	wire_put_u64(w, q->geom.desc);
	wire_put_u64(w, q->geom.avail);
	wire_put_u64(w, q->geom.used);
	wire_put_u16(w, at);
	wire_put_u16(w, used);
}

void vio_save(struct vio_dev *d, struct wire_writer *w)
{
	vio_enter(d);
	wire_put_u32(w, d->cls->device_id);
	wire_put_u32(w, d->status);
	wire_put_u64(w, d->driver_features);
	wire_put_u32(w, d->device_features_sel);
	wire_put_u32(w, d->driver_features_sel);
	wire_put_u32(w, d->queue_sel);
	wire_put_u32(w, __atomic_load_n(&d->interrupt, __ATOMIC_SEQ_CST));
	wire_put_u32(w, d->cls->nqueues);
	for (unsigned q = 0; q < d->cls->nqueues; q++)
		put_queue(w, &d->vq[q], d->status & VIO_S_NEEDS_RESET);
	d->cls->save(d, w);
	vio_leave(d);
}

// The transport's part, parsed.
struct saved {
	uint32_t status, interrupt;
	uint64_t driver_features;
	uint32_t device_features_sel, driver_features_sel, queue_sel;
	struct virtq_geom geom[VIO_MAX_QUEUES];
	bool live[VIO_MAX_QUEUES];
	uint16_t last_avail[VIO_MAX_QUEUES], used_idx[VIO_MAX_QUEUES];
};

static int check_status(const struct vio_class *cls, const struct saved *s,
			struct err *e)
{
	uint32_t v = s->status & ~(uint32_t)(VIO_S_FAILED | VIO_S_NEEDS_RESET);
	bool feat = v & VIO_S_FEATURES_OK;

	if (s->status > 0xff ||
	    (v != 0 && v != 1 && v != 3 && v != 0xb && v != 0xf))
		return err_set(e, -EBADMSG,
			       "the device status %#x cannot be reached",
			       s->status);
	if ((s->status & VIO_S_NEEDS_RESET) && v != 0xf)
		return err_set(e, -EBADMSG,
			       "status %#x: reset needed before "
			       "the driver started",
			       s->status);
	if (feat && (!(s->driver_features & VIO_F_VERSION_1) ||
		     (s->driver_features & ~cls->features)))
		return err_set(e, -EBADMSG,
			       "the features %#llx were never offered",
			       (unsigned long long)s->driver_features);
	if (s->interrupt > 3)
		return err_set(e, -EBADMSG, "the interrupt status is %#x",
			       s->interrupt);
	return 0;
}

static int check_queue(const struct vio_class *cls, const struct saved *s,
		       unsigned q, uint64_t mem_bytes, struct err *e)
{
	const struct virtq_geom *g = &s->geom[q];
	bool ok = s->status & VIO_S_DRIVER_OK;

	if (g->num > cls->queue_size)
		return err_set(e, -EBADMSG, "queue %u has %u entries", q,
			       g->num);
	if (!s->live[q]) {
		if (ok && g->ready && !(s->status & VIO_S_NEEDS_RESET))
			return err_set(e, -EBADMSG,
				       "queue %u is ready but dead", q);
		return 0;
	}
	if (!ok || !g->ready)
		return err_set(e, -EBADMSG,
			       "queue %u is in use in a state without queues",
			       q);
	if (virtq_geom_check(g, mem_bytes) < 0)
		return err_set(e, -EBADMSG, "queue %u lies outside of memory",
			       q);
	if (s->last_avail[q] != s->used_idx[q])
		return err_set(e, -EBADMSG,
			       "queue %u was saved with requests in flight", q);
	return 0;
}

static void get_queue(struct wire_reader *r, struct saved *s, unsigned q)
{
	struct virtq_geom *g = &s->geom[q];
	uint32_t flags;

	g->num = wire_get_u32(r);
	flags = wire_get_u32(r);
	g->ready = flags & 1;
	s->live[q] = flags & 2;
	if (flags > 3)
		r->bad = true; // reserved means refused
	g->desc = wire_get_u64(r);
	g->avail = wire_get_u64(r);
	g->used = wire_get_u64(r);
	s->last_avail[q] = wire_get_u16(r);
	s->used_idx[q] = wire_get_u16(r);
}

static int parse(const struct vio_class *cls, struct wire_reader *r,
		 uint64_t mem_bytes, struct saved *s, struct err *e)
{
	uint32_t id, n;
	int rc;

	memset(s, 0, sizeof(*s));
	id = wire_get_u32(r);
	s->status = wire_get_u32(r);
	s->driver_features = wire_get_u64(r);
	s->device_features_sel = wire_get_u32(r);
	s->driver_features_sel = wire_get_u32(r);
	s->queue_sel = wire_get_u32(r);
	s->interrupt = wire_get_u32(r);
	n = wire_get_u32(r);
	if (r->bad || id != cls->device_id || n != cls->nqueues)
		return err_set(e, -EBADMSG,
			       "not the section of virtio device %u",
			       cls->device_id);
	for (unsigned q = 0; q < n; q++)
		get_queue(r, s, q);
	if (r->bad)
		return err_set(e, -EBADMSG,
			       "the section of virtio device %u is malformed",
			       cls->device_id);
	rc = check_status(cls, s, e);
	for (unsigned q = 0; rc == 0 && q < n; q++)
		rc = check_queue(cls, s, q, mem_bytes, e);
	return rc;
}

// All of a section; consumes it.
static int check(const struct vio_class *cls, struct wire_reader *r,
		 uint64_t mem_bytes, struct saved *s, struct err *e)
{
	int rc = parse(cls, r, mem_bytes, s, e);

	if (rc == 0)
		rc = cls->check(r, e);
	if (rc < 0)
		return rc;
	if (r->bad || wire_left(r) != 0)
		return err_set(e, -EBADMSG,
			       "the section of virtio device %u has the wrong "
			       "length",
			       cls->device_id);
	return 0;
}

int vio_check(unsigned index, struct wire_reader *r, uint64_t mem_bytes,
	      struct err *e)
{
	const struct vio_class *cls = vio_class_of(index);
	struct saved s;

	if (!cls)
		return err_set(e, -EBADMSG, "there is no virtio device %u",
			       index);
	return check(cls, r, mem_bytes, &s, e);
}

static void apply(struct vio_dev *d, const struct saved *s)
{
	d->status = s->status;
	d->reset_status = 0;
	d->driver_features = s->driver_features;
	d->device_features_sel = s->device_features_sel;
	d->driver_features_sel = s->driver_features_sel;
	d->queue_sel = s->queue_sel;
	__atomic_store_n(&d->interrupt, s->interrupt, __ATOMIC_SEQ_CST);
	d->generation++;
	for (unsigned q = 0; q < d->cls->nqueues; q++) {
		struct virtq *vq = &d->vq[q];

		virtq_reset(vq);
		vq->geom = s->geom[q];
		if (!s->live[q])
			continue;
		// Checked against this memory size already: cannot fail.
		if (virtq_latch(vq, d->host.mem,
				s->driver_features & VIO_F_INDIRECT,
				s->driver_features & VIO_F_EVENT_IDX) < 0)
			abort();
		vq->last_avail = s->last_avail[q];
		vq->used_idx = s->used_idx[q];
		vq->last_signalled = s->used_idx[q];
	}
	d->quiesced = true;
	d->loaded = true;
}

// Leaves the device quiesced: vio_resume() starts it, once the rest of the
// machine is in place (an interrupt raised before would be lost).
int vio_load(struct vio_dev *d, struct wire_reader *r, struct err *e)
{
	struct wire_reader probe = *r;
	struct saved s;
	int rc;

	rc = check(d->cls, &probe, d->host.mem->bytes, &s, e);
	if (rc < 0)
		return rc;
	vio_enter(d);
	rc = parse(d->cls, r, d->host.mem->bytes, &s, e);
	if (rc == 0)
		rc = d->cls->load(d, r, e);
	if (rc == 0)
		apply(d, &s);
	vio_leave(d);
	return rc;
}

int vio_blk_saved_bytes(const void *section, size_t len, uint64_t *bytes)
{
	struct wire_reader r = wire_reader_of(section, len);
	struct saved s;

	if (parse(&vio_blk_class, &r, UINT64_MAX, &s, NULL) < 0)
		return -EBADMSG;
	*bytes = wire_get_u64(&r);
	return r.bad ? -EBADMSG : 0;
}
