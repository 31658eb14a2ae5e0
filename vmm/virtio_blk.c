// virtio-blk (virtio 1.2 section 5.2): one queue, asynchronous requests through
// vmm_disk_ops.
//
// A request is: 16 bytes of header, data, one status byte; the driver may cut
// these into descriptors as it likes. IN, OUT, FLUSH and GET_ID are served.
// DISCARD, WRITE_ZEROES and the rest are not offered and end in UNSUPP; the
// write cache is always on, so FLUSH is what makes data durable.
//
// At most REQS_MAX requests are in flight; the ring waits meanwhile. A request
// goes FREE -> FLYING (submitted) -> FREE (vio_blk_done). One that a reset
// orphaned stays FLYING until its owner completes it, and then touches neither
// ring nor status byte; its generation tells.
#include "virtio_mmio.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <stddef.h>
#include <string.h>

#define BLK_FEATURES                                                    \
	(VIO_F_RING | 1ull << VIRTIO_BLK_F_SIZE_MAX |                   \
	 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | \
	 1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_TOPOLOGY)

enum {
	SECTOR = 512,
	REQS_MAX = 64,
	// What the configuration space promises, and what is enforced: no
	// request moves more than SEG_MAX * SIZE_MAX bytes (about 4 MiB).
	SEG_MAX = VIRTQ_MAX_SEGS - 2,
	SIZE_MAX_BYTES = 32 * 1024,
	REQ_MAX_BYTES = SEG_MAX * SIZE_MAX_BYTES,
};

static const char disk_id[VIRTIO_BLK_ID_BYTES] = "thaw-disk";

struct blk_req {
	struct vmm_disk_req r; // first: vmm_disk_done() gives it back
	struct blk_req *next_free;
	uint32_t generation;
	uint32_t type;
	uint16_t head;
	bool flying;
	uint8_t *status;      // last writable byte, in guest memory
	uint32_t data_in_len; // bytes the device writes before it
	struct iovec iov[VIRTQ_MAX_SEGS];
};

struct vio_blk {
	struct vio_dev dev;
	uint64_t bytes;
	const struct vmm_disk_ops *ops;
	void *ctx;
	struct blk_req *free;
	unsigned flying;
	bool processing; // within blk_process: done() leaves the rest to it
	struct iovec iov[VIRTQ_MAX_SEGS];
	struct blk_req reqs[REQS_MAX];
};

static struct blk_req *req_take(struct vio_blk *b)
{
	struct blk_req *q = b->free;

	b->free = q->next_free;
	q->flying = true;
	q->generation = b->dev.generation;
	b->flying++;
	return q;
}

static void req_give(struct vio_blk *b, struct blk_req *q)
{
	q->flying = false;
	q->next_free = b->free;
	b->free = q;
	b->flying--;
}

// Writes the status byte and gives the chain back.
static void finish(struct vio_blk *b, uint16_t head, uint8_t *status_at,
		   uint8_t status, uint32_t data_len)
{
	*status_at = status;
	virtq_push(&b->dev.vq[0], head, data_len + 1);
}

// A taken chain, understood.
struct parsed {
	struct virtio_blk_outhdr hdr; // our copy
	uint8_t *status;
	uint64_t out_len, in_len; // data alone
};

// -EPROTO: there is no header or no place for a status.
static int parse(const struct iovec *iov, const struct virtq_chain *c,
		 struct parsed *p)
{
	const struct iovec *last = &iov[c->out_n + c->in_n - 1];

	if (c->out_len < sizeof(p->hdr) || c->in_len < 1)
		return -EPROTO;
	virtq_iov_read(iov, c->out_n, 0, &p->hdr, sizeof(p->hdr));
	p->status = (uint8_t *)last->iov_base + last->iov_len - 1;
	p->out_len = c->out_len - sizeof(p->hdr);
	p->in_len = c->in_len - 1;
	return 0;
}

static bool range_ok(const struct vio_blk *b, const struct blk_req *q)
{
	uint64_t sector = q->r.off; // still in sectors
	uint64_t sectors = b->bytes / SECTOR;

	return q->r.len && q->r.len % SECTOR == 0 &&
	       q->r.len <= REQ_MAX_BYTES && sector <= sectors &&
	       q->r.len / SECTOR <= sectors - sector;
}

// IN and OUT. Returns a status when it is over already, -1 when it flies.
static int start_rw(struct vio_blk *b, const struct virtq_chain *c,
		    const struct parsed *p, struct blk_req *q)
{
	bool write = p->hdr.type == VIRTIO_BLK_T_OUT;
	uint64_t len = write ? p->out_len : p->in_len;

	if (write ? p->in_len != 0 : p->out_len != 0)
		return VIRTIO_BLK_S_IOERR;
	q->r = (struct vmm_disk_req){
	    .write = write, .off = p->hdr.sector, .len = len};
	if (!range_ok(b, q))
		return VIRTIO_BLK_S_IOERR;
	q->r.off *= SECTOR;
	q->r.iov = q->iov;
	q->r.niov = (int)(write ? virtq_iov_slice(b->iov, c->out_n,
						  sizeof(p->hdr), len, q->iov)
				: virtq_iov_slice(b->iov + c->out_n, c->in_n, 0,
						  len, q->iov));
	q->data_in_len = write ? 0 : (uint32_t)len;
	b->ops->submit(b->ctx, &q->r);
	return -1;
}

static int start_flush(struct vio_blk *b, struct blk_req *q)
{
	if (!b->bytes)
		return VIRTIO_BLK_S_OK;
	q->r = (struct vmm_disk_req){.iov = q->iov};
	b->ops->flush(b->ctx, &q->r);
	return -1;
}

static int get_id(struct vio_blk *b, const struct virtq_chain *c,
		  const struct parsed *p)
{
	if (p->in_len < sizeof(disk_id))
		return VIRTIO_BLK_S_IOERR;
	virtq_iov_write(b->iov + c->out_n, c->in_n, 0, disk_id,
			sizeof(disk_id));
	return VIRTIO_BLK_S_OK;
}

static void start(struct vio_blk *b, const struct virtq_chain *c)
{
	struct blk_req *q;
	struct parsed p;
	uint32_t wrote = 0;
	int status;

	if (c->out_n + c->in_n == 0 || parse(b->iov, c, &p) < 0) {
		vio_break(&b->dev);
		return;
	}
	q = req_take(b);
	q->head = c->head;
	q->type = p.hdr.type;
	q->status = p.status;
	q->data_in_len = 0;
	switch (p.hdr.type) {
	case VIRTIO_BLK_T_IN:
	case VIRTIO_BLK_T_OUT: // an empty disk has no valid range
		status = start_rw(b, c, &p, q);
		break;
	case VIRTIO_BLK_T_FLUSH:
		status = start_flush(b, q);
		break;
	case VIRTIO_BLK_T_GET_ID:
		status = get_id(b, c, &p);
		wrote = status == VIRTIO_BLK_S_OK ? sizeof(disk_id) : 0;
		break;
	default:
		status = VIRTIO_BLK_S_UNSUPP;
	}
	if (status < 0)
		return;
	req_give(b, q);
	finish(b, c->head, p.status, (uint8_t)status, wrote);
}

static void blk_process(struct vio_dev *d, unsigned qi)
{
	struct vio_blk *b = (struct vio_blk *)d;
	struct virtq_chain c;

	if (b->processing)
		return;
	b->processing = true;
	virtq_quiet(&d->vq[qi]);
	do {
		while (b->free && vio_pop(d, qi, &c, b->iov, VIRTQ_MAX_SEGS))
			start(b, &c);
	} while (b->free && vio_listen(d, qi));
	b->processing = false;
	vio_signal(d, qi);
}

void vio_blk_done(struct vio_dev *d, struct vmm_disk_req *req, int rc)
{
	struct vio_blk *b = (struct vio_blk *)d;
	struct blk_req *q = (struct blk_req *)req;
	bool was_full;

	vio_enter(d);
	if (!q->flying)
		abort(); // our own caller completed a request twice
	was_full = !b->free;
	if (q->generation == d->generation && vio_running(d) && d->vq[0].live) {
		if (rc < 0)
			finish(b, q->head, q->status, VIRTIO_BLK_S_IOERR, 0);
		else
			finish(b, q->head, q->status, VIRTIO_BLK_S_OK,
			       q->data_in_len);
	}
	req_give(b, q);
	if (!b->processing) {
		vio_signal(d, 0);
		if (was_full && !d->quiesced)
			blk_process(d, 0);
	}
	vio_leave(d);
}

static unsigned blk_in_flight(const struct vio_dev *d)
{
	return ((const struct vio_blk *)d)->flying;
}

static size_t blk_config(const struct vio_dev *d, uint8_t *space)
{
	struct virtio_blk_config c = {
	    .capacity = ((const struct vio_blk *)d)->bytes / SECTOR,
	    .size_max = SIZE_MAX_BYTES,
	    .seg_max = SEG_MAX,
	    .blk_size = SECTOR,
	    .physical_block_exp = 3, // 4 KiB, the grain of the overlay
	    .min_io_size = 8,
	    .opt_io_size = 128,
	};
	size_t size = offsetof(struct virtio_blk_config, wce);

	memcpy(space, &c, size);
	return size;
}

static void blk_save(struct vio_dev *d, struct wire_writer *w)
{
	wire_put_u64(w, ((struct vio_blk *)d)->bytes);
}

static int blk_check(struct wire_reader *r, struct err *e)
{
	uint64_t bytes = wire_get_u64(r);

	if (r->bad || bytes % 4096 || bytes > 1ull << 46)
		return err_set(e, -EBADMSG,
			       "the saved disk size %llu is impossible",
			       (unsigned long long)bytes);
	return 0;
}

static int blk_load(struct vio_dev *d, struct wire_reader *r, struct err *e)
{
	struct vio_blk *b = (struct vio_blk *)d;
	uint64_t bytes = wire_get_u64(r);

	if (b->flying)
		return err_set(e, -EBUSY, "the disk has requests in flight");
	if (bytes != b->bytes)
		return err_set(e, -EINVAL,
			       "the state was saved with a disk of %llu bytes, "
			       "this one has %llu",
			       (unsigned long long)bytes,
			       (unsigned long long)b->bytes);
	return 0;
}

static void blk_destroy(struct vio_dev *d)
{
	vio_dev_fini(d);
	free(d);
}

const struct vio_class vio_blk_class = {
    .device_id = 2,
    .features = BLK_FEATURES,
    .nqueues = 1,
    .queue_size = 256,
    .process = blk_process,
    .in_flight = blk_in_flight,
    .config = blk_config,
    .save = blk_save,
    .check = blk_check,
    .load = blk_load,
    .destroy = blk_destroy,
};

struct vio_dev *vio_blk_create(const struct vio_host *h, uint64_t bytes,
			       const struct vmm_disk_ops *ops, void *ctx)
{
	struct vio_blk *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->bytes = bytes;
	b->ops = ops;
	b->ctx = ctx;
	for (unsigned i = REQS_MAX; i-- > 0;) {
		b->reqs[i].next_free = b->free;
		b->free = &b->reqs[i];
	}
	if (vio_dev_init(&b->dev, &vio_blk_class, VIO_BLK, h) < 0) {
		free(b);
		return NULL;
	}
	return &b->dev;
}
