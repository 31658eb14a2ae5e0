// thaw-cell MEM_MIB VCPUS UID: one microVM in a jail. Started by thawd only,
// with the descriptors of cellproto.h; says nothing on the terminal. With 0 MiB
// and 0 vCPUs it is a blank: it has addresses for the largest guest and makes
// its VM when START says of which size.
//
// Life: jail, userfaultfd, shell (KVM VM and vCPUs), HELLO; then it waits.
// START (cell_start.c) makes it a microVM; the device thread here reports, and
// obeys PAUSE, UNPAUSE, PARK, CONNECT and MAILBOX. It ends by being killed, or when
// thawd is gone.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "cell.h"
#include "jail.h"

enum {
	STACK_BYTES = 128 * 1024,
	MAX_STASHED = 32,	// messages that wait for the end of a pause
	MAX_FILE_SHIFT = 38,	// 256 GiB: the longest disk
	READY_GAP_NS = 1000000, // a guest that rings in a loop is slowed down
};

struct stashed {
	struct stashed *next;
	int type, fd;
	uint32_t port;
	size_t len;
	uint8_t bytes[];
};

struct device_thread {
	struct cell *cell;
	bool starting, started, first_exit_sent, paused;
	bool parked; // paused, and the vCPU-0 thread ends that by itself
	unsigned polls;
	int exit_fd; // vmm_first_exit_fd()
	uint64_t last_ready;
	struct stashed *stash, **stash_tail;
	unsigned nstash;
};

static void send_or_exit(const struct wire_writer *w, const int *fd)
{
	if (cp_send(CP_FD_CTL, w, fd, fd ? 1 : 0))
		_exit(0); // thawd is gone
}

void cell_die(const struct err *e)
{
	uint8_t buf[CP_HEAD + CP_TEXT_MAX];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, CP_FAILED);
	cp_put_text(&w, e->msg);
	(void)cp_send(CP_FD_CTL, &w, NULL, 0);
	_exit(1);
}

// --- reports ----------------------------------------------------------------

static void report_event(enum cp_event kind, const char *text)
{
	uint8_t buf[CP_HEAD + 4 + CP_TEXT_MAX];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, CP_EVENT);
	wire_put_u32(&w, kind);
	cp_put_text(&w, text);
	send_or_exit(&w, NULL);
}

static void report_rc(enum cp_type type, int rc, const char *text)
{
	uint8_t buf[CP_HEAD + 4 + CP_TEXT_MAX];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, type);
	wire_put_u32(&w, (uint32_t)rc);
	cp_put_text(&w, rc ? text : "");
	send_or_exit(&w, NULL);
}

// Nothing on the vCPU-0 thread's way to the guest waits for the device thread, or
// wakes it. The first exit does; for a guest that does not leave, the device thread
// looks how it goes when thawd has told it to (STARTING).
static void report_start(struct device_thread *d)
{
	struct cell *c = d->cell;
	uint8_t buf[CP_HEAD + 24];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	uint64_t exit_ns;

	if (atomic_load_explicit(&c->phase, memory_order_acquire) !=
	    CELL_RUNNING)
		return;
	exit_ns = vmm_first_exit_ns(c->vm);
	if (!d->started) {
		// A guest that exits at once is reported with its exit.
		if (!exit_ns && util_now_ns() - c->loaded_ns < 300000)
			return;
		cp_begin(&w, CP_STARTED);
		wire_put_u64(&w, c->mapped_ns);
		wire_put_u64(&w, c->loaded_ns);
		wire_put_u64(&w, exit_ns);
		send_or_exit(&w, NULL);
		d->started = true;
	} else if (exit_ns) {
		cp_begin(&w, CP_FIRST_EXIT);
		wire_put_u64(&w, exit_ns);
		send_or_exit(&w, NULL);
	}
	d->first_exit_sent = exit_ns != 0;
}

static void drain_events(struct device_thread *d)
{
	static const enum cp_event kinds[] = {
	    [VMM_EV_READY] = CP_EV_READY,
	    [VMM_EV_POWEROFF] = CP_EV_POWEROFF,
	    [VMM_EV_RESET] = CP_EV_RESET,
	    [VMM_EV_FATAL] = CP_EV_FATAL,
	    [VMM_EV_VSOCK_UP] = CP_EV_VSOCK_UP,
	};
	struct vmm_event ev;

	while (vmm_next_event(d->cell->vm, &ev)) {
		if (ev.kind == VMM_EV_DOORBELL)
			continue; // no meaning yet
		if (ev.kind == VMM_EV_READY) {
			uint64_t now = util_now_ns();

			if (now - d->last_ready < READY_GAP_NS)
				continue;
			d->last_ready = now;
		}
		report_event(kinds[ev.kind], ev.text);
	}
}

// --- orders -----------------------------------------------------------------

// By way of the heap: the final filter lets no descriptor be mapped.
static int save_state(struct cell *c, int *fd, size_t *len, struct err *e)
{
	cleanup_free uint8_t *buf = malloc(VMM_STATE_MAX);
	struct wire_writer w = wire_writer_of(buf, VMM_STATE_MAX);
	cleanup_fd int m = -1;
	int rc;

	if (!buf)
		return err_set(e, -ENOMEM, "no memory for the state");
	rc = vmm_state_save(c->vm, &w, e);
	if (!rc && w.bad)
		rc = err_set(e, -E2BIG, "the state has %zu bytes", w.len);
	if (rc)
		return rc;
	m = memfd_create("state", MFD_CLOEXEC);
	if (m < 0)
		return err_sys(e, "cannot make room for the state");
	rc = util_write_all(m, buf, w.len);
	if (rc)
		return err_set(e, rc, "cannot write the state");
	*len = w.len;
	*fd = fd_steal(&m);
	return 0;
}

// Stops the guest, with its disk requests done and its events told.
static int stop_guest(struct device_thread *d, uint32_t timeout_ms,
		      struct err *e)
{
	int rc;

	blk_eager(d->cell->disk, true);
	rc = vmm_pause(d->cell->vm, (int)MIN(timeout_ms, 60000u), e);
	blk_eager(d->cell->disk, false);
	drain_events(d);
	return rc;
}

static void do_pause(struct device_thread *d, uint32_t timeout_ms)
{
	uint8_t buf[CP_HEAD + 8];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct err e = ERR_INIT;
	cleanup_fd int fd = -1;
	size_t len = 0;
	int rc = stop_guest(d, timeout_ms, &e);

	if (rc) {
		report_rc(CP_PAUSED, rc, e.msg);
		return;
	}
	rc = save_state(d->cell, &fd, &len, &e);
	if (rc) {
		vmm_unpause(d->cell->vm, NULL);
		report_rc(CP_PAUSED, rc, e.msg);
		return;
	}
	d->paused = true;
	cp_begin(&w, CP_PAUSED);
	wire_put_u32(&w, 0);
	wire_put_u32(&w, (uint32_t)len);
	send_or_exit(&w, &fd);
}

static void do_order(struct device_thread *d, int type, uint32_t port, int fd,
		     const void *bytes, size_t len)
{
	// What fails here shows where it was asked for: a stream at its end, a
	// guest that waits for its mailbox.
	if (type == CP_CONNECT)
		(void)vmm_vsock_connect(d->cell->vm, port, fd, NULL);
	else
		(void)vmm_mailbox_put(d->cell->vm, bytes, len);
}

// Devices stand still during a pause; orders that would move them wait.
static void stash(struct device_thread *d, int type, uint32_t port, int fd,
		  const void *bytes, size_t len)
{
	struct stashed *s =
	    d->nstash < MAX_STASHED ? malloc(sizeof(*s) + len) : NULL;

	if (!s) {
		fd_close(&fd);
		return;
	}
	*s = (struct stashed){NULL, type, fd, port, len};
	if (len)
		memcpy(s->bytes, bytes, len);
	*d->stash_tail = s;
	d->stash_tail = &s->next;
	d->nstash++;
}

static void do_stashed(struct device_thread *d)
{
	struct stashed *s;

	while ((s = d->stash)) {
		d->stash = s->next;
		do_order(d, s->type, s->port, s->fd, s->bytes, s->len);
		free(s);
	}
	d->stash_tail = &d->stash;
	d->nstash = 0;
}

static void do_unpause(struct device_thread *d)
{
	struct err e = ERR_INIT;
	int rc = vmm_unpause(d->cell->vm, &e);

	d->paused = false;
	report_rc(CP_UNPAUSED, rc, e.msg);
	do_stashed(d);
}

static void do_park(struct device_thread *d, uint32_t timeout_ms, int fd)
{
	struct err e = ERR_INIT;
	int rc = stop_guest(d, timeout_ms, &e);

	if (rc) {
		close(fd);
	} else {
		d->paused = d->parked = true;
		d->cell->claim_fd = fd;
		vmm_pause_in(d->cell->vm, cell_parked, d->cell);
	}
	report_rc(CP_PARKED, rc, e.msg);
}

// Whatever comes while it is parked came after its UNPARK: thawd orders nothing
// of a parked cell, and the guest of one does nothing.
static void leave_park(struct device_thread *d)
{
	vmm_await_unpause(d->cell->vm);
	d->paused = d->parked = false;
}

static int obey(struct device_thread *d, int type, struct wire_reader *r,
		int *fds, unsigned nfds)
{
	uint32_t arg = 0;
	size_t len = 0;
	const void *bytes = NULL;

	if (type == CP_PAUSE || type == CP_CONNECT || type == CP_PARK)
		arg = wire_get_u32(r);
	if (type == CP_MAILBOX) {
		len = wire_left(r);
		bytes = wire_borrow(r, len);
	}
	if (!cp_ok(r) || nfds != (type == CP_CONNECT || type == CP_PARK))
		return -EBADMSG;
	if (type == CP_STARTING)
		d->starting = true;
	else if (!d->started)
		return -EBADMSG; // thawd waits for STARTED
	else if (type == CP_PAUSE)
		do_pause(d, arg);
	else if (type == CP_UNPAUSE)
		do_unpause(d);
	else if (type == CP_PARK)
		do_park(d, arg, fd_steal(&fds[0]));
	else if (type != CP_CONNECT && type != CP_MAILBOX)
		return -EBADMSG;
	else if (d->paused)
		stash(d, type, arg, nfds ? fd_steal(&fds[0]) : -1, bytes, len);
	else
		do_order(d, type, arg, nfds ? fd_steal(&fds[0]) : -1, bytes,
			 len);
	return 0;
}

static void read_orders(struct device_thread *d)
{
	static uint8_t buf[CP_HEAD + CP_MAILBOX_CHUNK];
	int fds[CP_MAX_FDS], type;
	unsigned nfds;
	struct wire_reader r;
	ssize_t n =
	    cp_recv(CP_FD_CTL, MSG_DONTWAIT, buf, sizeof(buf), fds, &nfds);
	struct err e = ERR_INIT;

	if (n == -EAGAIN)
		return;
	if (n <= 0)
		_exit(0);
	r = wire_reader_of(buf, (size_t)n);
	type = cp_head(&r);
	if (obey(d, type, &r, fds, nfds)) {
		err_set(&e, -EBADMSG,
			"thawd sent a message of type %d that "
			"makes no sense here",
			type);
		cell_die(&e);
	}
}

// Microseconds to sleep before looking at the start again; -1: until something
// happens, as the first exit.
static int64_t patience_us(struct device_thread *d)
{
	if (!d->starting || d->started)
		return -1;
	return d->polls++ < 50 ? 100 : 1000;
}

static void device_loop(struct device_thread *d)
{
	for (;;) {
		int64_t us = patience_us(d);
		struct timespec ts = {us / 1000000, (us % 1000000) * 1000};
		bool devices =
		    d->starting && (!d->paused || d->parked) &&
		    atomic_load_explicit(&d->cell->phase,
					 memory_order_acquire) == CELL_RUNNING;
		// Before RUNNING a blank has no VM, or one half made.
		struct pollfd p[3] = {
		    {CP_FD_CTL, POLLIN, 0},
		    {devices ? vmm_event_fd(d->cell->vm) : -1, POLLIN, 0},
		    {d->first_exit_sent || d->paused ? -1 : d->exit_fd, POLLIN,
		     0},
		};

		if (ppoll(p, ARRAY_SIZE(p), us < 0 ? NULL : &ts, NULL) < 0 &&
		    errno != EINTR)
			_exit(1);
		if (p[2].revents & POLLIN)
			d->starting = true;
		if (d->starting && !d->first_exit_sent)
			report_start(d);
		if (d->parked && (p[0].revents || p[1].revents))
			leave_park(d);
		if (devices && (p[1].revents & POLLIN)) {
			vmm_dispatch(d->cell->vm);
			blk_flush(d->cell->disk);
		}
		if (d->started)
			drain_events(d);
		if (p[0].revents)
			read_orders(d);
	}
}

// --- birth ------------------------------------------------------------------

static unsigned arg_num(const char *text, unsigned long max)
{
	char *end;
	unsigned long v;
	struct err e = ERR_INIT;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || *end || end == text || v > max) {
		err_set(&e, -EINVAL, "thaw-cell: bad argument");
		cell_die(&e);
	}
	return (unsigned)v;
}

static void start_vcpu0(struct cell *c)
{
	struct err e = ERR_INIT;
	pthread_attr_t attr;
	pthread_t t;
	int rc;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	rc = pthread_create(&t, &attr, cell_vcpu0, c);
	pthread_attr_destroy(&attr);
	if (rc) {
		err_set(&e, -rc, "cannot start the vCPU-0 thread: error %d",
			rc);
		cell_die(&e);
	}
}

static void hello(struct cell *c)
{
	uint8_t buf[CP_HEAD + 20];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, CP_HELLO);
	wire_put_u64(&w, c->vm ? (uintptr_t)vmm_mem_base(c->vm)
			       : (uintptr_t)c->mem_at);
	wire_put_u64(&w, (uint64_t)c->mem_mib << 20);
	wire_put_u32(&w, c->vcpus);
	send_or_exit(&w, &c->uffd);
}

int cell_make_vm(struct cell *c, uint32_t mem_mib, uint32_t vcpus,
		 struct err *e)
{
	struct vmm_config cfg = {
	    .struct_size = sizeof(cfg),
	    .kvm_fd = CP_FD_KVM,
	    .mem_bytes = (uint64_t)mem_mib << 20,
	    .vcpus = vcpus,
	    .console_fd = CP_FD_CONSOLE,
	    .mem_at = c->mem_at,
	    .begun = ptr_steal(c->begun),
	};
	int rc = vmm_create(&c->vm, &cfg, e);

	close(CP_FD_KVM);
	if (!rc && vcpus > 1)
		rc = vmm_spawn_vcpus(c->vm, 1, e);
	c->mem_mib = mem_mib;
	c->vcpus = vcpus;
	return rc;
}

static void make_uffd(struct cell *c)
{
	struct err e = ERR_INIT;

	// Faults of KVM are the kernel's: only this device grants those.
	c->uffd =
	    ioctl(CP_FD_UFFD, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	if (c->uffd < 0) {
		err_sys(&e, "cannot make a userfaultfd");
		cell_die(&e);
	}
	close(CP_FD_UFFD);
}

// What a VM costs that does not depend on its size. Of memory only addresses: none
// is promised, and no page tables are made.
static void make_blank(struct cell *c)
{
	struct err e = ERR_INIT;

	c->mem_at = mmap(NULL, (uint64_t)VMM_MAX_MEM_MIB << 20, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (c->mem_at == MAP_FAILED) {
		err_sys(&e, "cannot reserve addresses for guest memory");
		cell_die(&e);
	}
	if (vmm_begin(&c->begun, CP_FD_KVM, CP_FD_CONSOLE, &e))
		cell_die(&e);
}

int main(int argc, char **argv)
{
	static struct cell cell = {.uffd = -1};
	static struct device_thread dev = {.cell = &cell};
	struct jail_config jail = {.first_closed = CP_FD_END,
				   .max_file = 1ull << MAX_FILE_SHIFT};
	struct err e = ERR_INIT;
	unsigned mem_mib, vcpus;

	if (argc != 4)
		return 2;
	mem_mib = arg_num(argv[1], VMM_MAX_MEM_MIB);
	vcpus = arg_num(argv[2], VMM_MAX_VCPUS);
	jail.uid = arg_num(argv[3], UINT_MAX - 1);
	jail.threads = (vcpus ? vcpus : VMM_MAX_VCPUS) + 1;
	if (jail_enter(&jail, &e))
		cell_die(&e);
	if (vmm_facts_load(CP_FD_HOST, &e))
		cell_die(&e);
	close(CP_FD_HOST);
#ifdef __GLIBC__ // musl's allocator has one arena, and keeps no top
	mallopt(M_ARENA_MAX, 1);
#endif
	make_uffd(&cell);
	if (mem_mib == 0 && vcpus == 0)
		make_blank(&cell);
	else if (cell_make_vm(&cell, mem_mib, vcpus, &e))
		cell_die(&e);
	dev.exit_fd = vmm_first_exit_fd(cell.vm ? cell.vm : cell.begun);
	start_vcpu0(&cell);
#ifdef __GLIBC__
	malloc_trim(0);
#endif
	hello(&cell);
	dev.stash_tail = &dev.stash;
	device_loop(&dev);
}
