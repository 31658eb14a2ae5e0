// virtio over MMIO, version 2 (virtio 1.2 section 4.2): the register file, the
// status state machine, and the hand-over between vCPU threads and the device
// thread.
//
// States of a device, by its status register:
//
//   0 -> ACK -> DRIVER -> FEATURES_OK -> DRIVER_OK       each needs the former
//   any -> 0                                             a reset
//   DRIVER_OK -> +NEEDS_RESET                            vio_break()
//
// - Feature bits can be written until FEATURES_OK, which is refused unless they
//   are a subset of the offer that has VERSION_1.
// - Queues can be programmed between FEATURES_OK and DRIVER_OK, while not
// ready.
//   DRIVER_OK latches them. After it, only "QueueReady = 0" has an effect: that
//   queue is dead until the reset.
// - With NEEDS_RESET no queue is touched any more.
//
// Reset with requests in flight. A disk request writes guest memory that cannot
// be taken back, so a reset orphans it: it completes into nothing (its
// generation is old). Until the last one has, Status reads as before the reset,
// which is how a driver that cares sees that the reset is not over (2.4.2);
// a driver that does not look may go on at once and harms only itself.
//
// Threads. Register accesses come from vCPU threads under `lock`. They never
// touch a ring or a socket: they leave a bit in `pending`, or `reset_todo`, and
// ring kick_fd. InterruptStatus and InterruptACK do not take the lock, so that
// a guest's interrupt handler never waits for a burst of I/O.
#include "virtio_mmio.h"

#include <errno.h>
#include <linux/virtio_mmio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#define MMIO_MAGIC 0x74726976u	// "virt"
#define MMIO_VENDOR 0x77616874u // "thaw"

enum { CONFIG_MAX = 64 };

static void kicked(void *ctx, uint32_t events);

const struct vio_class *vio_class_of(unsigned index)
{
	static const struct vio_class *const classes[VIO_NUM] = {
	    [VIO_BLK] = &vio_blk_class,
	    [VIO_VSOCK] = &vio_vsock_class,
	    [VIO_RNG] = &vio_rng_class,
	};

	return index < VIO_NUM ? classes[index] : NULL;
}

static unsigned in_flight(const struct vio_dev *d)
{
	return d->cls->in_flight ? d->cls->in_flight(d) : 0;
}

// --- life -------------------------------------------------------------------

int vio_dev_init(struct vio_dev *d, const struct vio_class *cls, unsigned index,
		 const struct vio_host *h)
{
	pthread_mutexattr_t attr;
	int rc;

	d->cls = cls;
	d->index = index;
	d->host = *h;
	d->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (d->kick_fd < 0)
		return -errno;
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&d->lock, &attr);
	pthread_mutexattr_destroy(&attr);
	rc = h->watch(h->vm, d->kick_fd, EPOLLIN, kicked, d);
	if (rc < 0) {
		fd_close(&d->kick_fd);
		pthread_mutex_destroy(&d->lock);
	}
	return rc < 0 ? rc : 0;
}

void vio_dev_fini(struct vio_dev *d)
{
	if (d->kick_fd < 0)
		return;
	d->host.watch(d->host.vm, d->kick_fd, 0, NULL, NULL);
	fd_close(&d->kick_fd);
	pthread_mutex_destroy(&d->lock);
}

void vio_destroy(struct vio_dev *d)
{
	if (d)
		d->cls->destroy(d);
}

unsigned vio_num_queues(const struct vio_dev *d)
{
	return d->cls->nqueues;
}

// --- the device thread ------------------------------------------------------

static void kick(struct vio_dev *d)
{
	uint64_t one = 1;
	// It cannot fail but for a full counter, and then it is rung already.
	ssize_t n = write(d->kick_fd, &one, sizeof(one));

	(void)n;
}

void vio_enter(struct vio_dev *d)
{
	pthread_mutex_lock(&d->lock);
	if (d->reset_todo) {
		d->reset_todo = false;
		if (d->cls->reset)
			d->cls->reset(d);
	}
}

void vio_leave(struct vio_dev *d)
{
	pthread_mutex_unlock(&d->lock);
}

static void raise_line(struct vio_dev *d, uint32_t cause)
{
	__atomic_fetch_or(&d->interrupt, cause, __ATOMIC_SEQ_CST);
	d->host.irq(d->host.vm, d->index);
}

void vio_break(struct vio_dev *d)
{
	if (d->status & VIO_S_NEEDS_RESET)
		return;
	d->status |= VIO_S_NEEDS_RESET;
	d->reset_todo = true; // connections and the like are over
	kick(d);
	if (d->status & VIO_S_DRIVER_OK)
		raise_line(d, VIRTIO_MMIO_INT_CONFIG);
}

int vio_pop(struct vio_dev *d, unsigned q, struct virtq_chain *c,
	    struct iovec *iov, unsigned max_iov)
{
	int rc;

	if (!vio_running(d))
		return 0;
	rc = virtq_pop(&d->vq[q], c, iov, max_iov);
	if (rc < 0) {
		vio_break(d);
		return 0;
	}
	return rc;
}

bool vio_listen(struct vio_dev *d, unsigned q)
{
	return vio_running(d) && virtq_listen(&d->vq[q]);
}

void vio_signal(struct vio_dev *d, unsigned q)
{
	if (vio_running(d) && virtq_should_signal(&d->vq[q]))
		raise_line(d, VIRTIO_MMIO_INT_VRING);
}

void vio_again(struct vio_dev *d, unsigned q)
{
	__atomic_fetch_or(&d->pending, 1u << q, __ATOMIC_SEQ_CST);
	kick(d);
}

// Lock held. Does what resume and the pending bits ask for.
static void work(struct vio_dev *d)
{
	uint32_t todo;

	if (d->quiesced)
		return;
	if (d->resume_todo) {
		d->resume_todo = false;
		if (d->loaded && vio_running(d) &&
		    __atomic_load_n(&d->interrupt, __ATOMIC_SEQ_CST))
			d->host.irq(d->host.vm, d->index);
		d->loaded = false;
		if (d->cls->resume)
			d->cls->resume(d);
	}
	todo = __atomic_exchange_n(&d->pending, 0, __ATOMIC_SEQ_CST);
	for (unsigned q = 0; q < d->cls->nqueues && vio_running(d); q++)
		if (todo & (1u << q))
			d->cls->process(d, q);
}

static void kicked(void *ctx, uint32_t events)
{
	struct vio_dev *d = ctx;
	uint64_t count;
	ssize_t n = read(d->kick_fd, &count, sizeof(count));

	(void)events;
	(void)n;
	vio_enter(d);
	work(d);
	vio_leave(d);
}

void vio_notify(struct vio_dev *d, unsigned q)
{
	if (q >= d->cls->nqueues)
		return;
	vio_enter(d);
	__atomic_fetch_or(&d->pending, 1u << q, __ATOMIC_SEQ_CST);
	work(d);
	vio_leave(d);
}

bool vio_quiesce(struct vio_dev *d)
{
	bool quiet;

	vio_enter(d);
	d->quiesced = true;
	quiet = in_flight(d) == 0;
	vio_leave(d);
	return quiet;
}

void vio_resume(struct vio_dev *d)
{
	bool driven;

	pthread_mutex_lock(&d->lock);
	d->quiesced = false;
	d->resume_todo = true;
	__atomic_fetch_or(&d->pending, (1u << d->cls->nqueues) - 1,
			  __ATOMIC_SEQ_CST);
	driven = d->status & VIO_S_DRIVER_OK;
	pthread_mutex_unlock(&d->lock);
	if (driven) // else its driver's first notification is the kick
		kick(d);
}

// --- status -----------------------------------------------------------------

static void reset(struct vio_dev *d)
{
	bool was_ok = d->status & VIO_S_DRIVER_OK;

	if (d->status)
		d->reset_status = d->status;
	d->status = 0;
	d->device_features_sel = 0;
	d->driver_features_sel = 0;
	d->queue_sel = 0;
	d->driver_features = 0;
	__atomic_store_n(&d->interrupt, 0, __ATOMIC_SEQ_CST);
	for (unsigned q = 0; q < VIO_MAX_QUEUES; q++)
		virtq_reset(&d->vq[q]);
	d->generation++;
	if (!was_ok)
		return;
	d->reset_todo = true;
	d->host.status(d->host.vm, d->index, false);
	kick(d);
}

static bool features_ok(const struct vio_dev *d)
{
	return (d->driver_features & VIO_F_VERSION_1) &&
	       (d->driver_features & ~d->cls->features) == 0;
}

// Latches the queues; false when one of them is impossible.
static bool latch_queues(struct vio_dev *d)
{
	for (unsigned q = 0; q < d->cls->nqueues; q++) {
		struct virtq *vq = &d->vq[q];

		if (!vq->geom.ready)
			continue;
		if (vq->geom.num > d->cls->queue_size ||
		    virtq_latch(vq, d->host.mem,
				d->driver_features & VIO_F_INDIRECT,
				d->driver_features & VIO_F_EVENT_IDX) < 0)
			return false;
	}
	return true;
}

static void driver_ok(struct vio_dev *d)
{
	d->status |= VIO_S_DRIVER_OK;
	if (!latch_queues(d)) {
		vio_break(d);
		return;
	}
	d->host.status(d->host.vm, d->index, true);
	// A driver may have filled a ring before DRIVER_OK.
	__atomic_fetch_or(&d->pending, (1u << d->cls->nqueues) - 1,
			  __ATOMIC_SEQ_CST);
	kick(d);
}

static void write_status(struct vio_dev *d, uint32_t v)
{
	uint32_t s = d->status & ~(uint32_t)VIO_S_NEEDS_RESET;

	if (v == 0) {
		reset(d);
		return;
	}
	v &= ~(uint32_t)VIO_S_NEEDS_RESET;
	if ((v & s) != s)
		return; // the driver must not clear bits (3.1.1)
	if (v & VIO_S_FAILED)
		d->status |= VIO_S_FAILED;
	if (v & VIO_S_ACK)
		d->status |= VIO_S_ACK;
	if ((v & VIO_S_DRIVER) && (d->status & VIO_S_ACK))
		d->status |= VIO_S_DRIVER;
	if ((v & VIO_S_FEATURES_OK) && !(s & VIO_S_FEATURES_OK) &&
	    (d->status & VIO_S_DRIVER) && features_ok(d))
		d->status |= VIO_S_FEATURES_OK;
	if ((v & VIO_S_DRIVER_OK) && !(s & VIO_S_DRIVER_OK) &&
	    (d->status & VIO_S_FEATURES_OK) && !(d->status & VIO_S_FAILED))
		driver_ok(d);
}

static uint32_t read_status(const struct vio_dev *d)
{
	if (d->status == 0 && in_flight(d) > 0)
		return d->reset_status;
	return d->status;
}

// --- registers --------------------------------------------------------------

static struct virtq *selected(struct vio_dev *d)
{
	return d->queue_sel < d->cls->nqueues ? &d->vq[d->queue_sel] : NULL;
}

// The selected queue, if the driver may program it now.
static struct virtq *programmable(struct vio_dev *d)
{
	struct virtq *vq = selected(d);

	if (!vq || vq->geom.ready || !(d->status & VIO_S_FEATURES_OK) ||
	    (d->status & VIO_S_DRIVER_OK))
		return NULL;
	return vq;
}

static void write_ready(struct vio_dev *d, uint32_t v)
{
	struct virtq *vq = selected(d);

	if (!vq)
		return;
	if (v == 0) {
		vq->geom.ready = false;
		vq->live = false;
	} else if (v == 1 && programmable(d)) {
		vq->geom.ready = true;
	}
}

static void set_low(uint64_t *v, uint32_t low)
{
	*v = (*v & 0xffffffff00000000ull) | low;
}

static void set_high(uint64_t *v, uint32_t high)
{
	*v = (*v & 0xffffffffull) | ((uint64_t)high << 32);
}

static void write_queue(struct vio_dev *d, uint64_t off, uint32_t v)
{
	struct virtq *vq = programmable(d);

	if (!vq)
		return;
	switch (off) {
	case VIRTIO_MMIO_QUEUE_NUM:
		if (v <= d->cls->queue_size)
			vq->geom.num = v;
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
		set_low(&vq->geom.desc, v);
		break;
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		set_high(&vq->geom.desc, v);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
		set_low(&vq->geom.avail, v);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
		set_high(&vq->geom.avail, v);
		break;
	case VIRTIO_MMIO_QUEUE_USED_LOW:
		set_low(&vq->geom.used, v);
		break;
	case VIRTIO_MMIO_QUEUE_USED_HIGH:
		set_high(&vq->geom.used, v);
		break;
	}
}

static void write_features(struct vio_dev *d, uint32_t v)
{
	if (d->status & VIO_S_FEATURES_OK)
		return;
	if (d->driver_features_sel == 0)
		set_low(&d->driver_features, v);
	else if (d->driver_features_sel == 1)
		set_high(&d->driver_features, v);
}

static void write_locked(struct vio_dev *d, uint64_t off, uint32_t v)
{
	switch (off) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		d->device_features_sel = v;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		d->driver_features_sel = v;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		write_features(d, v);
		break;
	case VIRTIO_MMIO_QUEUE_SEL:
		d->queue_sel = v;
		break;
	case VIRTIO_MMIO_QUEUE_READY:
		write_ready(d, v);
		break;
	case VIRTIO_MMIO_QUEUE_NOTIFY:
		if (v < d->cls->nqueues && vio_running(d))
			vio_again(d, v);
		break;
	case VIRTIO_MMIO_STATUS:
		write_status(d, v);
		break;
	default:
		write_queue(d, off, v);
		break;
	}
}

void vio_mmio_write(struct vio_dev *d, uint64_t off, const void *data,
		    unsigned len)
{
	uint32_t v;

	// No device here has a writable configuration field.
	if (len != 4 || off >= VIRTIO_MMIO_CONFIG)
		return;
	memcpy(&v, data, sizeof(v));
	if (off == VIRTIO_MMIO_INTERRUPT_ACK) {
		__atomic_fetch_and(&d->interrupt, ~v, __ATOMIC_SEQ_CST);
		return;
	}
	pthread_mutex_lock(&d->lock);
	write_locked(d, off, v);
	pthread_mutex_unlock(&d->lock);
}

static uint32_t offered(const struct vio_dev *d)
{
	if (d->device_features_sel == 0)
		return (uint32_t)d->cls->features;
	if (d->device_features_sel == 1)
		return (uint32_t)(d->cls->features >> 32);
	return 0;
}

static uint32_t read_locked(struct vio_dev *d, uint64_t off)
{
	const struct virtq *vq = selected(d);

	switch (off) {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return MMIO_MAGIC;
	case VIRTIO_MMIO_VERSION:
		return 2;
	case VIRTIO_MMIO_DEVICE_ID:
		return d->cls->device_id;
	case VIRTIO_MMIO_VENDOR_ID:
		return MMIO_VENDOR;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return offered(d);
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
		return vq ? d->cls->queue_size : 0;
	case VIRTIO_MMIO_QUEUE_READY:
		return vq && vq->geom.ready;
	case VIRTIO_MMIO_STATUS:
		return read_status(d);
	case VIRTIO_MMIO_SHM_LEN_LOW: // no shared memory regions: -1 (4.2.2)
	case VIRTIO_MMIO_SHM_LEN_HIGH:
	case VIRTIO_MMIO_SHM_BASE_LOW:
	case VIRTIO_MMIO_SHM_BASE_HIGH:
		return ~0u;
	default: // also ConfigGeneration: the space never changes
		return 0;
	}
}

static void read_config(struct vio_dev *d, uint64_t off, void *data,
			unsigned len)
{
	uint8_t space[CONFIG_MAX] = {0};
	size_t size = d->cls->config ? d->cls->config(d, space) : 0;

	if (off < size && len <= size - off)
		memcpy(data, space + off, len);
}

void vio_mmio_read(struct vio_dev *d, uint64_t off, void *data, unsigned len)
{
	uint32_t v;

	if (len > 8)
		return;
	memset(data, 0, len);
	if (off >= VIRTIO_MMIO_CONFIG) {
		pthread_mutex_lock(&d->lock);
		read_config(d, off - VIRTIO_MMIO_CONFIG, data, len);
		pthread_mutex_unlock(&d->lock);
		return;
	}
	if (len != 4)
		return;
	if (off == VIRTIO_MMIO_INTERRUPT_STATUS) {
		v = __atomic_load_n(&d->interrupt, __ATOMIC_SEQ_CST);
	} else {
		pthread_mutex_lock(&d->lock);
		v = read_locked(d, off);
		pthread_mutex_unlock(&d->lock);
	}
	memcpy(data, &v, sizeof(v));
}
