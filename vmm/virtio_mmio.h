// What the transport (virtio_mmio.c, virtio_state.c) and the devices
// (virtio_blk.c, virtio_vsock*.c, virtio_rng.c) know of each other. The
// machine sees virtio.h only.
#ifndef THAW_VIRTIO_MMIO_H
#define THAW_VIRTIO_MMIO_H

#include <pthread.h>

#include "virtio.h"
#include "virtq.h"

#define VIO_F_INDIRECT (1ull << 28)
#define VIO_F_EVENT_IDX (1ull << 29)
#define VIO_F_VERSION_1 (1ull << 32)
#define VIO_F_RING (VIO_F_INDIRECT | VIO_F_EVENT_IDX | VIO_F_VERSION_1)

// Device status bits (virtio 1.2 section 2.1).
enum {
	VIO_S_ACK = 1,
	VIO_S_DRIVER = 2,
	VIO_S_DRIVER_OK = 4,
	VIO_S_FEATURES_OK = 8,
	VIO_S_NEEDS_RESET = 0x40,
	VIO_S_FAILED = 0x80,
};

// One kind of device. Every function is called with dev->lock held; all but
// `config` on the device thread.
struct vio_class {
	uint32_t device_id; // virtio 1.2 section 5
	uint64_t features;  // offered
	unsigned nqueues;
	uint16_t queue_size; // QueueNumMax of every queue
	// Looks at queue q until it is empty or may not be taken from. Work
	// that is left on purpose is announced by vio_again().
	void (*process)(struct vio_dev *d, unsigned q);
	// The device was reset: forget every chain and connection. The queues
	// are gone already. May be NULL.
	void (*reset)(struct vio_dev *d);
	// vio_resume() after a quiesce or a load; queues are looked at
	// afterwards. May be NULL.
	void (*resume)(struct vio_dev *d);
	// Requests whose memory somebody else still writes. May be NULL: none.
	unsigned (*in_flight)(const struct vio_dev *d);
	// Fills the configuration space; returns its size, at most 64.
	size_t (*config)(const struct vio_dev *d, uint8_t *space);
	// The device's own part of the section. `check` is pure.
	void (*save)(struct vio_dev *d, struct wire_writer *w);
	int (*check)(struct wire_reader *r, struct err *e);
	int (*load)(struct vio_dev *d, struct wire_reader *r, struct err *e);
	void (*destroy)(struct vio_dev *d); // frees the device itself
};

extern const struct vio_class vio_blk_class;
extern const struct vio_class vio_vsock_class;
extern const struct vio_class vio_rng_class;

// The head of every device. The register file, guarded by `lock` (recursive: a
// disk may complete a request from within its submission).
struct vio_dev {
	const struct vio_class *cls;
	struct vio_host host;
	unsigned index;
	pthread_mutex_t lock;

	uint32_t status;
	uint32_t reset_status; // status before a reset that is not over yet
	uint32_t device_features_sel, driver_features_sel, queue_sel;
	uint64_t driver_features;
	uint32_t interrupt; // InterruptStatus; atomic, also without the lock
	struct virtq vq[VIO_MAX_QUEUES];
	uint32_t generation; // counts resets; tells old requests from new ones

	// Device thread's bookkeeping.
	int kick_fd;	  // wakes the device thread from a vCPU thread
	uint32_t pending; // bit q: look at queue q (atomic)
	bool reset_todo;  // cls->reset has not run yet for the last reset
	bool resume_todo; // cls->resume has not run yet
	bool quiesced;
	bool loaded; // a state was loaded: raise the line once when resumed
};

// Sets up the head; 0 or -errno. The caller's struct starts with it.
int vio_dev_init(struct vio_dev *d, const struct vio_class *cls, unsigned index,
		 const struct vio_host *h);
// Releases what vio_dev_init() took.
void vio_dev_fini(struct vio_dev *d);

// Brackets of every entry on the device thread: the lock, and a reset that a
// vCPU thread left to be finished.
void vio_enter(struct vio_dev *d);
void vio_leave(struct vio_dev *d);

static inline bool vio_running(const struct vio_dev *d)
{
	return (d->status & VIO_S_DRIVER_OK) &&
	       !(d->status & VIO_S_NEEDS_RESET);
}

// The driver broke a rule: DEVICE_NEEDS_RESET, and an interrupt that says so.
void vio_break(struct vio_dev *d);
// virtq_pop() on queue q that turns a broken queue into vio_break(): 1 or 0.
int vio_pop(struct vio_dev *d, unsigned q, struct virtq_chain *c,
	    struct iovec *iov, unsigned max_iov);
// virtq_listen(), but false once the device is broken.
bool vio_listen(struct vio_dev *d, unsigned q);
// Interrupts the driver if it wants to hear of what was pushed to queue q.
void vio_signal(struct vio_dev *d, unsigned q);
// Has the device thread call process(q) again, soon.
void vio_again(struct vio_dev *d, unsigned q);

// For tests: the kinds by machine index.
const struct vio_class *vio_class_of(unsigned index);

#endif
