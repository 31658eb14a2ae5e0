// A machine without KVM (memory, an epoll, a counting interrupt line) and a
// guest driver that speaks virtio-mmio to a device in it: what the virtio tests
// share. The driver is plain code of ours, so that each test can bend it.
#ifndef THAW_TEST_VIRT_DRIVER_H
#define THAW_TEST_VIRT_DRIVER_H

#include "virtio_mmio.h"

enum { RIG_WATCHES = 2048, DRV_QSIZE_MAX = 256 };

struct rig_watch {
	int fd;
	uint32_t gen;
	void (*cb)(void *ctx, uint32_t events);
	void *ctx;
};

struct rig {
	uint8_t *map; // guard page, RAM, guard page
	struct guestmem mem;
	struct vio_host host;
	int epfd;
	struct rig_watch watches[RIG_WATCHES];
	unsigned nwatches; // in use
	unsigned irqs, status_up, status_down;
};

void rig_init(struct rig *r, uint64_t mem_bytes);
void rig_fini(struct rig *r);
// Dispatches until nothing is ready, at most `rounds` times.
void rig_run(struct rig *r);
// One round; the number of events.
int rig_step(struct rig *r);

struct seg {
	uint64_t gpa;
	uint32_t len;
	bool write;
};

struct drv_queue {
	unsigned num;
	uint64_t desc, avail, used;
	uint16_t avail_idx, used_seen;
	uint16_t free[DRV_QSIZE_MAX];
	uint16_t next[DRV_QSIZE_MAX]; // our own record of chains
	uint16_t len[DRV_QSIZE_MAX];
	unsigned nfree;
	uint16_t rung; // avail_idx at the last look at avail_event
};

struct drv {
	struct rig *rig;
	struct vio_dev *dev;
	unsigned nq;
	uint64_t features;
	struct drv_queue q[VIO_MAX_QUEUES];
	uint64_t heap; // next free guest address
	bool polite;   // rings only when the event index asks for it
};

uint32_t drv_read(struct drv *d, uint64_t off);
void drv_write(struct drv *d, uint64_t off, uint32_t v);

// Reset, negotiation of `features` (of those offered), queues of `qsize`
// entries, DRIVER_OK. False: the device refused.
bool drv_init(struct drv *d, struct rig *r, struct vio_dev *dev,
	      uint64_t features, unsigned qsize);
// The steps of it: up to FEATURES_OK; one queue; DRIVER_OK.
bool drv_negotiate(struct drv *d, uint64_t features);
void drv_queue_setup(struct drv *d, unsigned q, unsigned qsize);
// A driver that is like `from`, on a device that was loaded into rig r.
void drv_move(struct drv *d, const struct drv *from, struct rig *r,
	      struct vio_dev *dev);

uint64_t drv_alloc(struct drv *d, uint64_t len); // 16-aligned, never freed
void *drv_ptr(struct drv *d, uint64_t gpa, uint64_t len);

// Makes a chain available; its head, or -1 when the ring is full.
int drv_add(struct drv *d, unsigned q, const struct seg *s, unsigned n);
int drv_add_indirect(struct drv *d, unsigned q, const struct seg *s,
		     unsigned n);
// Writes one raw descriptor; publishes a raw head.
void drv_desc(struct drv *d, unsigned q, unsigned i, uint64_t gpa, uint32_t len,
	      uint16_t flags, uint16_t next);
void drv_publish(struct drv *d, unsigned q, uint16_t head);
// Rings, and lets the machine work.
void drv_kick(struct drv *d, unsigned q);
// Asks for an interrupt at the next used element (event index); true when there
// is one already.
bool drv_used_listen(struct drv *d, unsigned q);
// Next used element: true and its head and length.
bool drv_used(struct drv *d, unsigned q, uint16_t *head, uint32_t *len);
bool drv_needs_reset(struct drv *d);

// A device's state through a section into another device.
size_t rig_save(struct vio_dev *dev, void *buf, size_t cap);
void rig_copy_memory(struct rig *to, const struct rig *from, uint64_t bytes);

// Deterministic random numbers (splitmix64).
uint64_t rnd(uint64_t *state);
static inline uint64_t rnd_below(uint64_t *state, uint64_t n)
{
	return rnd(state) % n;
}

#endif
