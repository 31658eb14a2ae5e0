// The device thread's epoll: queue doorbells, the console, the event queue and
// whatever devices or the caller watch.
//
// A queue's notifications arrive on an eventfd. At first the vCPU thread writes
// it after an MMIO exit; a queue that proves busy gets an ioeventfd, so that
// KVM writes it without an exit. Registering one costs an SRCU grace period now
// and makes closing the VM slow (docs/KVM.md): a guest that answers one request
// and is gone never pays it.
//
// A watch's slot is reused, so epoll's data carries a generation beside the
// slot: an event that was harvested before its watch was removed is dropped.
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <sys/ioctl.h>

#include "vmm_internal.h"

enum { BUSY_KICKS = 256, WATCH_MIN = 32, WATCH_MAX = 65536 };

static int find_slot(struct vmm *vm, int fd)
{
	for (unsigned i = 0; i < vm->nwatches; i++)
		if (vm->watches[i].fd == fd)
			return (int)i;
	return -1;
}

static int grow(struct vmm *vm)
{
	unsigned n = vm->nwatches ? vm->nwatches * 2 : WATCH_MIN;
	struct watch *w;

	if (n > WATCH_MAX)
		return -ENOMEM;
	w = reallocarray(vm->watches, n, sizeof(*w));
	if (!w)
		return -ENOMEM;
	for (unsigned i = vm->nwatches; i < n; i++)
		w[i] = (struct watch){.fd = -1};
	vm->watches = w;
	vm->nwatches = n;
	return 0;
}

int vmm_watch(struct vmm *vm, int fd, uint32_t events,
	      void (*cb)(void *ctx, uint32_t events), void *ctx)
{
	struct epoll_event ev = {.events = events};
	int slot, op = EPOLL_CTL_MOD;

	if (fd < 0)
		return -EBADF;
	slot = find_slot(vm, fd);
	if (events == 0) {
		if (slot < 0)
			return 0;
		vm->watches[slot].fd = -1;
		vm->watches[slot].gen++;
		epoll_ctl(vm->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
		return 0;
	}
	if (slot < 0) {
		op = EPOLL_CTL_ADD;
		slot = find_slot(vm, -1);
		if (slot < 0) {
			slot = (int)vm->nwatches;
			if (grow(vm) < 0)
				return -ENOMEM;
		}
	}
	ev.data.u64 = (uint64_t)vm->watches[slot].gen << 32 | (uint32_t)slot;
	if (epoll_ctl(vm->epoll_fd, op, fd, &ev) < 0)
		return -errno;
	vm->watches[slot].fd = fd;
	vm->watches[slot].cb = cb;
	vm->watches[slot].ctx = ctx;
	return 0;
}

// --- the machine's own descriptors ------------------------------------------

static void on_console_fd(void *ctx, uint32_t events)
{
	struct vmm *vm = ctx;

	(void)events;
	if (!console_flush(&vm->console))
		vmm_watch(vm, vm->console.fd, 0, NULL, NULL);
}

static void console_out(struct vmm *vm)
{
	// A full pipe: wait for room. A file cannot be watched, nor be full.
	if (console_flush(&vm->console))
		vmm_watch(vm, vm->console.fd, EPOLLOUT, on_console_fd, vm);
}

static void on_wake(void *ctx, uint32_t events)
{
	struct vmm *vm = ctx;
	eventfd_t n;

	(void)events;
	eventfd_read(vm->wake_fd, &n); // vmm_next_event() has the rest
	console_out(vm); // what was written before it is heard before it
	if (!atomic_exchange(&vm->resume_devices, false))
		return;
	for (unsigned i = 0; i < VIO_NUM; i++)
		if (vm->vio[i])
			vio_resume(vm->vio[i]);
}

static void on_console(void *ctx, uint32_t events)
{
	struct vmm *vm = ctx;
	eventfd_t n;

	(void)events;
	eventfd_read(vm->console_wake, &n);
	console_out(vm);
}

static void on_console_late(void *ctx, uint32_t events)
{
	struct vmm *vm = ctx;

	(void)events;
	console_timed(&vm->console);
	console_out(vm);
}

static void arm_ioeventfd(struct vmm *vm, unsigned index, unsigned q)
{
	struct kvm_ioeventfd io = {
	    .datamatch = q,
	    .addr = VIRTIO_MMIO_BASE + index * VIRTIO_MMIO_STRIDE + 0x50,
	    .len = 4,
	    .fd = vm->kick[index][q],
	    .flags = KVM_IOEVENTFD_FLAG_DATAMATCH,
	};

	// A refusal leaves the slow way, which is complete.
	ioctl(vm->fd, KVM_IOEVENTFD, &io);
	vm->ioeventfd[index][q] = true;
}

static void queue_kicked(struct vmm *vm, unsigned index, unsigned q)
{
	eventfd_t n;

	if (eventfd_read(vm->kick[index][q], &n) < 0)
		return;
	if (!vm->ioeventfd[index][q] && ++vm->kicks[index][q] == BUSY_KICKS)
		arm_ioeventfd(vm, index, q);
	vio_notify(vm->vio[index], q);
}

static void on_kick(void *ctx, uint32_t events)
{
	struct kick_ref *ref = ctx;

	(void)events;
	queue_kicked(ref->vm, ref->index, ref->q);
}

int loop_watch_vio(struct vmm *vm, unsigned index, struct err *e)
{
	unsigned n = vio_num_queues(vm->vio[index]);

	for (unsigned q = 0; q < MIN(n, (unsigned)VIO_MAX_QUEUES); q++) {
		struct kick_ref *ref = &vm->kick_refs[index][q];
		int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		int rc;

		if (fd < 0)
			return err_sys(e, "eventfd");
		vm->kick[index][q] = fd;
		*ref = (struct kick_ref){vm, index, q};
		rc = vmm_watch(vm, fd, EPOLLIN, on_kick, ref);
		if (rc)
			return err_set(e, rc, "watching a queue");
	}
	return 0;
}

int loop_init(struct vmm *vm, struct err *e)
{
	int rc;

	vm->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (vm->epoll_fd < 0)
		return err_sys(e, "epoll_create1");
	vm->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	vm->console_wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	vm->console_late =
	    timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	vm->exit_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (vm->exit_fd < 0 || vm->wake_fd < 0 || vm->console_wake < 0 ||
	    vm->console_late < 0)
		return err_sys(e, "eventfd, timerfd");
	rc = vmm_watch(vm, vm->wake_fd, EPOLLIN, on_wake, vm);
	if (rc == 0)
		rc = vmm_watch(vm, vm->console_wake, EPOLLIN, on_console, vm);
	if (rc == 0)
		rc = vmm_watch(vm, vm->console_late, EPOLLIN, on_console_late,
			       vm);
	return rc ? err_set(e, rc, "watching descriptors") : 0;
}

void loop_fini(struct vmm *vm)
{
	for (unsigned i = 0; i < VIO_NUM; i++)
		for (unsigned q = 0; q < VIO_MAX_QUEUES; q++)
			fd_close(&vm->kick[i][q]);
	fd_close(&vm->exit_fd);
	fd_close(&vm->wake_fd);
	fd_close(&vm->console_wake);
	fd_close(&vm->console_late);
	fd_close(&vm->epoll_fd);
	free(vm->watches);
}

void loop_wait(struct vmm *vm, int timeout_ms)
{
	struct epoll_event ev[32];
	int n = epoll_wait(vm->epoll_fd, ev, ARRAY_SIZE(ev), timeout_ms);

	for (int i = 0; i < n; i++) {
		uint32_t slot = (uint32_t)ev[i].data.u64;
		uint32_t gen = (uint32_t)(ev[i].data.u64 >> 32);
		struct watch *w = &vm->watches[slot];

		if (w->fd >= 0 && w->gen == gen)
			w->cb(w->ctx, ev[i].events);
	}
}

int vmm_event_fd(const struct vmm *vm)
{
	return vm->epoll_fd;
}

void vmm_dispatch(struct vmm *vm)
{
	loop_wait(vm, 0);
}
