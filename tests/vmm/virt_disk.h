// A disk in memory behind vmm_disk_ops, that completes at once or when told.
#ifndef THAW_TEST_VIRT_DISK_H
#define THAW_TEST_VIRT_DISK_H

#include <string.h>

#include "virt_driver.h"

enum { DISK_BYTES = 1 << 20, DISK_HELD = 512 };

struct disk {
	struct vio_dev *dev;
	uint8_t bytes[DISK_BYTES];
	bool defer; // hold requests until disk_complete()
	int fail;   // -errno for each request
	struct vmm_disk_req *held[DISK_HELD];
	unsigned nheld, most, submits, flushes;
};

static inline void disk_move(struct disk *k, const struct vmm_disk_req *r)
{
	uint64_t off = r->off;

	if (k->fail)
		return;
	for (int i = 0; i < r->niov; i++) {
		if (r->write)
			memcpy(k->bytes + off, r->iov[i].iov_base,
			       r->iov[i].iov_len);
		else
			memcpy(r->iov[i].iov_base, k->bytes + off,
			       r->iov[i].iov_len);
		off += r->iov[i].iov_len;
	}
}

static inline void disk_take(struct disk *k, struct vmm_disk_req *r)
{
	uint64_t sum = 0;

	for (int i = 0; i < r->niov; i++)
		sum += r->iov[i].iov_len;
	// What vmm.h promises to whoever is behind the device.
	if (sum != r->len || r->off % 512 || r->len % 512 ||
	    r->off + r->len > DISK_BYTES)
		abort();
	if (!k->defer) {
		disk_move(k, r);
		vio_blk_done(k->dev, r, k->fail);
		return;
	}
	k->held[k->nheld++] = r;
	k->most = MAX(k->most, k->nheld);
}

static inline void disk_submit(void *ctx, struct vmm_disk_req *r)
{
	((struct disk *)ctx)->submits++;
	disk_take(ctx, r);
}

static inline void disk_flush(void *ctx, struct vmm_disk_req *r)
{
	((struct disk *)ctx)->flushes++;
	disk_take(ctx, r);
}

// Completes the i-th held request.
static inline void disk_complete(struct disk *k, unsigned i)
{
	struct vmm_disk_req *r = k->held[i];

	k->held[i] = k->held[--k->nheld];
	disk_move(k, r);
	vio_blk_done(k->dev, r, k->fail);
}

static inline void disk_complete_all(struct disk *k)
{
	while (k->nheld)
		disk_complete(k, 0);
}

static const struct vmm_disk_ops disk_ops = {disk_submit, disk_flush};

#endif
