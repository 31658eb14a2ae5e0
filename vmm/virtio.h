// What a virtio device is to the rest of the vmm: an MMIO window, an interrupt
// line, a doorbell descriptor per queue, and a section in the saved state.
//
// The machine (vmm.c) owns an array of these in fixed order: 0 blk, 1 vsock,
// 2 rng. Window i is at VIRTIO_MMIO_BASE + i * VIRTIO_MMIO_STRIDE, its GSI is
// VIRTIO_MMIO_GSI + i (edge-triggered, described in the DSDT as LNRO0005).
//
// Threads: vio_mmio_read/write come from vCPU threads (registers; guarded by
// dev->lock); everything else runs on the device thread. Queue notifications
// arrive as ioeventfds that the machine watches and turns into vio_notify().
#ifndef THAW_VIRTIO_H
#define THAW_VIRTIO_H

#include "guestmem.h"

#define VIRTIO_MMIO_BASE 0xd0000000ull
#define VIRTIO_MMIO_STRIDE 0x1000ull
#define VIRTIO_MMIO_GSI 5u

enum { VIO_BLK, VIO_VSOCK, VIO_RNG, VIO_NUM };
enum { VIO_MAX_QUEUES = 3 };

struct vio_dev; // virtio_mmio.c; one per device

// What a device needs of its machine.
struct vio_host {
	struct guestmem *mem;
	struct vmm *vm;
	// Raises the device's interrupt line once (an irqfd write).
	void (*irq)(struct vmm *vm, unsigned index);
	// The guest set DRIVER_OK / reset the device (vCPU thread, lock held):
	// the machine adds or drops the queue's ioeventfds, and emits
	// VMM_EV_VSOCK_UP.
	void (*status)(struct vmm *vm, unsigned index, bool driver_ok);
	// Adds a descriptor to the machine's epoll (device thread) or changes
	// its events (EPOLLIN/EPOLLOUT bits; 0 removes). cb runs on the device
	// thread from vmm_dispatch().
	int (*watch)(struct vmm *vm, int fd, uint32_t events,
		     void (*cb)(void *ctx, uint32_t events), void *ctx);
};

struct vio_dev *vio_blk_create(const struct vio_host *h, uint64_t bytes,
			       const struct vmm_disk_ops *ops, void *ctx);
struct vio_dev *vio_vsock_create(const struct vio_host *h, uint64_t guest_cid);
struct vio_dev *vio_rng_create(const struct vio_host *h);
void vio_destroy(struct vio_dev *d); // NULL is fine

// Register access, virtio 1.2 section 4.2.2; `off` inside the window, len 1..8.
void vio_mmio_read(struct vio_dev *d, uint64_t off, void *data, unsigned len);
void vio_mmio_write(struct vio_dev *d, uint64_t off, const void *data,
		    unsigned len);
unsigned vio_num_queues(const struct vio_dev *d);

// Device thread: the guest rang queue q.
void vio_notify(struct vio_dev *d, unsigned q);

// Quiesce: stop taking new requests. Returns true when nothing is in flight;
// the machine keeps dispatching and asks again until it is. vio_resume() undoes
// it and looks at every queue again (a notification may have come meanwhile).
bool vio_quiesce(struct vio_dev *d);
void vio_resume(struct vio_dev *d);

// Section payload (docs/STATE_FORMAT.md). Save needs a quiesced device. Check is
// pure (no device): hostile input; 0, -EBADMSG. Load checks again, then applies.
void vio_save(struct vio_dev *d, struct wire_writer *w);
int vio_check(unsigned index, struct wire_reader *r, uint64_t mem_bytes,
	      struct err *e);
int vio_load(struct vio_dev *d, struct wire_reader *r, struct err *e);

// Size of the disk in a saved blk section, for vmm_state_info.
int vio_blk_saved_bytes(const void *section, size_t len, uint64_t *bytes);

// vsock: vmm_vsock_connect() and vmm_vsock_close_all() land here.
int vio_vsock_connect(struct vio_dev *d, uint32_t port, int fd, struct err *e);
void vio_vsock_close_all(struct vio_dev *d);
// blk: completion of a request (vmm_disk_done()).
void vio_blk_done(struct vio_dev *d, struct vmm_disk_req *req, int rc);

#endif
