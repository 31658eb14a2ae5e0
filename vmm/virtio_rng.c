// virtio-rng (virtio 1.2 section 5.4): one queue; each chain's writable bytes
// are filled from getrandom(2). A guest that asks for more than REQUEST_MAX
// bytes gets that many (used.len says so), and REQUESTS_MAX requests in a row
// let the device thread's other work go first.
#include "virtio_mmio.h"

#include <string.h>

enum {
	REQUEST_MAX = 64 * 1024,
	REQUESTS_MAX = 16,
	CHUNK = 4096,
};

struct vio_rng {
	struct vio_dev dev;
	struct iovec iov[VIRTQ_MAX_SEGS];
};

static uint32_t fill(const struct iovec *iov, unsigned n, uint64_t want)
{
	uint8_t buf[CHUNK];
	size_t done = 0;

	want = MIN(want, (uint64_t)REQUEST_MAX);
	while (done < want) {
		size_t part = MIN(sizeof(buf), (size_t)want - done);

		util_random(buf, part);
		done += virtq_iov_write(iov, n, done, buf, part);
	}
	explicit_bzero(buf, sizeof(buf));
	return (uint32_t)done;
}

static void rng_process(struct vio_dev *d, unsigned q)
{
	struct vio_rng *r = (struct vio_rng *)d;
	struct virtq_chain c;
	unsigned served = 0;

	virtq_quiet(&d->vq[q]);
	do {
		while (served < REQUESTS_MAX &&
		       vio_pop(d, q, &c, r->iov, VIRTQ_MAX_SEGS)) {
			virtq_push(&d->vq[q], c.head,
				   fill(r->iov + c.out_n, c.in_n, c.in_len));
			served++;
		}
		if (served == REQUESTS_MAX) {
			vio_again(d, q);
			break;
		}
	} while (vio_listen(d, q));
	vio_signal(d, q);
}

static void rng_save(struct vio_dev *d, struct wire_writer *w)
{
	(void)d;
	(void)w;
}

static int rng_check(struct wire_reader *r, struct err *e)
{
	(void)r;
	(void)e;
	return 0;
}

static int rng_load(struct vio_dev *d, struct wire_reader *r, struct err *e)
{
	(void)d;
	(void)r;
	(void)e;
	return 0;
}

static void rng_destroy(struct vio_dev *d)
{
	vio_dev_fini(d);
	free(d);
}

const struct vio_class vio_rng_class = {
    .device_id = 4,
    .features = VIO_F_RING,
    .nqueues = 1,
    .queue_size = 64,
    .process = rng_process,
    .save = rng_save,
    .check = rng_check,
    .load = rng_load,
    .destroy = rng_destroy,
};

struct vio_dev *vio_rng_create(const struct vio_host *h)
{
	struct vio_rng *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	if (vio_dev_init(&r->dev, &vio_rng_class, VIO_RNG, h) < 0) {
		free(r);
		return NULL;
	}
	return &r->dev;
}
