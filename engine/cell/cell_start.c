// The vCPU-0 thread: from START to the guest's first instruction.
//
// A thaw in order: map the template privately over the memory reservation,
// register the mapping for missing pages, lay anonymous mappings over the long
// runs of zeroes, close the template and the userfaultfd. No guest code has run
// and nothing has touched the memory before it is registered, so no hole of the
// template can be read as zeroes. thawd and the keeper hold the userfaultfd.
//
// A PREPARE does all of that ahead, for one image, and loads all of the state that
// does not depend on the moment. Then the thread says PREPARED and waits on; what
// is left for RUN is the clocks and the first KVM_RUN. Until then
// nothing touches guest memory, so that a prepared cell never has a fault.
//
// The final filter of system calls (jail_final.c) is set before vmm_start(), the only
// way into the guest; for a PREPARE earlier, before PREPARED is said. So what follows
// either is what that filter allows.
#include <errno.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "cell.h"
#include "jail.h"

enum {
	PAGE = 4096,
	WARM_STACK = 48 * 1024,
	SMALL_STATE = 16 * 1024, // one of a vCPU or two
};

struct start { // a START message, taken apart
	int type;
	struct cp_start s;
	int fds[CP_MAX_FDS];
	unsigned nfds, next;
};

static int map_fixed(void *at, size_t len, int fd, struct err *e)
{
	int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;

	if (fd < 0)
		flags |= MAP_ANONYMOUS;
	if (mmap(at, len, PROT_READ | PROT_WRITE, flags, fd, 0) == MAP_FAILED)
		return err_sys(e, "cannot map guest memory");
	return 0;
}

static int map_template(struct cell *c, const struct start *st, int fd,
			struct err *e)
{
	char *base = c->vm ? vmm_mem_base(c->vm) : c->mem_at;
	uint64_t bytes = (uint64_t)st->s.mem_mib << 20;
	struct uffdio_register reg = {
	    .range = {(uintptr_t)base, bytes},
	    .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int rc = map_fixed(base, bytes, fd, e);

	if (rc)
		return rc;
	if (ioctl(c->uffd, UFFDIO_REGISTER, &reg) < 0)
		return err_sys(e, "cannot register guest memory");
	for (uint32_t i = 0; i < st->s.nzero; i++) {
		uint64_t at = (uint64_t)st->s.zero[i].pgno * PAGE;
		uint64_t len = (uint64_t)st->s.zero[i].npages * PAGE;

		if (at >= bytes || len == 0 || len > bytes - at)
			return err_set(e, -EBADMSG,
				       "a zero extent outside of "
				       "guest memory");
		rc = map_fixed(base + at, len, -1, e);
		if (rc)
			return rc;
	}
	return 0;
}

static int take_fd(struct start *st, int *fd, struct err *e)
{
	if (st->next >= st->nfds)
		return err_set(e, -EBADMSG, "a start without a descriptor");
	*fd = fd_steal(&st->fds[st->next++]);
	return 0;
}

static int attach_disk(struct cell *c, struct start *st, struct err *e)
{
	int rc, tmpl = -1, overlay = -1;

	if (!(st->s.flags & CP_F_DISK))
		return 0;
	rc = take_fd(st, &tmpl, e);
	if (!rc)
		rc = take_fd(st, &overlay, e);
	if (!rc)
		rc = blk_attach(&c->disk, c->vm, st->s.disk_bytes, tmpl,
				overlay, CP_FD_DISK, e);
	return rc; // on an error the process ends
}

static int apply_state(struct cell *c, const struct start *st, const void *p,
		       struct err *e)
{
	return st->type == CP_PREPARE
		   ? vmm_state_prepare(c->vm, p, st->s.state_len, e)
		   : vmm_state_load(c->vm, p, st->s.state_len, e);
}

// The state arrives sealed: what is validated cannot change any more. A small
// one is read, which is faster than to map it, into memory that is there.
static _Alignas(64) uint8_t small_state[SMALL_STATE];

static int load_state(struct cell *c, const struct start *st, int fd,
		      struct err *e)
{
	size_t len = st->s.state_len;
	void *p;
	int rc;

	if (len == 0 || len > VMM_STATE_MAX)
		return err_set(e, -EBADMSG, "a state of %zu bytes", len);
	if (len <= sizeof(small_state)) {
		rc = util_pread_all(fd, small_state, len, 0);
		if (rc)
			return err_set(e, rc, "cannot read the saved state");
		return apply_state(c, st, small_state, e);
	}
	p = mmap(NULL, len, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (p == MAP_FAILED)
		return err_sys(e, "cannot map the saved state");
	rc = apply_state(c, st, p, e);
	munmap(p, len);
	return rc;
}

static void say(enum cp_type type)
{
	uint8_t buf[CP_HEAD];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, type);
	if (cp_send(CP_FD_CTL, &w, NULL, 0))
		_exit(0);
}

static int wait_go(struct err *e)
{
	uint8_t buf[CP_HEAD];
	struct wire_reader r;
	int fds[CP_MAX_FDS];
	unsigned nfds;
	ssize_t n;

	say(CP_MAPPED);
	n = cp_recv(CP_FD_BOOT, 0, buf, sizeof(buf), fds, &nfds);
	if (n <= 0)
		_exit(0);
	r = wire_reader_of(buf, (size_t)n);
	if (cp_head(&r) != CP_GO || !cp_ok(&r) || nfds)
		return err_set(e, -EBADMSG, "expected GO");
	return 0;
}

static int put_mail(struct cell *c, const void *bytes, size_t n, struct err *e)
{
	int rc = n ? vmm_mailbox_put(c->vm, bytes, n) : 0;

	return rc ? err_set(e, rc, "the mailbox cannot take %zu bytes", n) : 0;
}

static int start_thaw(struct cell *c, struct start *st, struct err *e)
{
	int state = -1, tmpl = -1;
	int rc = take_fd(st, &state, e);

	if (!rc)
		rc = take_fd(st, &tmpl, e);
	if (rc)
		return rc;
	// A page of a clone is one page, not a huge page of mostly zeroes.
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	rc = map_template(c, st, tmpl, e);
	if (rc)
		return rc;
	fd_close(&tmpl);
	fd_close(&c->uffd);
	// A blank's memory is laid out before there is a VM, which every change
	// of a mapping would be told of.
	if (!c->vm)
		rc = cell_make_vm(c, st->s.mem_mib, st->s.vcpus, e);
	if (rc)
		return rc;
	c->mapped_ns = util_now_ns();
	if ((st->s.flags & CP_F_TWO_STEP) && (rc = wait_go(e)))
		return rc;
	rc = attach_disk(c, st, e);
	if (!rc)
		rc = load_state(c, st, state, e);
	fd_close(&state);
	return rc ? rc : put_mail(c, st->s.mailbox, st->s.mailbox_len, e);
}

static int map_file(int fd, const void **p, size_t *len, struct err *e)
{
	struct stat sb;

	if (fstat(fd, &sb) < 0)
		return err_sys(e, "cannot examine a boot file");
	*len = (size_t)sb.st_size;
	*p = mmap(NULL, *len, PROT_READ, MAP_PRIVATE, fd, 0);
	if (*p == MAP_FAILED)
		return err_sys(e, "cannot map a boot file");
	close(fd);
	return 0;
}

static int start_boot(struct cell *c, struct start *st, struct err *e)
{
	struct vmm_boot boot = {.cmdline = st->s.cmdline};
	int rc, fd = -1;

	fd_close(&c->uffd);
	if (!c->vm && (rc = cell_make_vm(c, st->s.mem_mib, st->s.vcpus, e)))
		return rc;
	rc = map_fixed(vmm_mem_base(c->vm), vmm_mem_bytes(c->vm), -1, e);
	if (!rc)
		rc = take_fd(st, &fd, e);
	if (!rc)
		rc = map_file(fd, &boot.kernel, &boot.kernel_len, e);
	if (!rc && (st->s.flags & CP_F_INITRD)) {
		rc = take_fd(st, &fd, e);
		if (!rc)
			rc = map_file(fd, &boot.initrd, &boot.initrd_len, e);
	}
	c->mapped_ns = util_now_ns();
	if (!rc)
		rc = attach_disk(c, st, e);
	if (!rc)
		rc = vmm_boot(c->vm, &boot, e);
	if (rc)
		return rc;
	munmap((void *)(uintptr_t)boot.kernel, boot.kernel_len);
	if (boot.initrd)
		munmap((void *)(uintptr_t)boot.initrd, boot.initrd_len);
	return 0;
}

// Most starts are a few hundred bytes; the pages beyond are not touched.
static uint8_t start_msg[CP_MSG_MAX];
static struct start start;

// What the way to the guest will touch is there before the request is.
static void __attribute__((noinline)) warm_up(void)
{
	volatile char stack[WARM_STACK];

	for (size_t i = 0; i < sizeof(stack); i += PAGE)
		stack[i] = 0;
	for (size_t i = 0; i < 2 * PAGE; i += PAGE)
		((volatile uint8_t *)start_msg)[i] = 0;
	memset(&start, 0, sizeof(start));
	memset(small_state, 0, sizeof(small_state));
	(void)util_now_ns(); // the vDSO and its data
}

// A shell has its size; a blank takes it on.
static int take_size(struct cell *c, const struct start *st, struct err *e)
{
	if (!c->vm) { // the VM follows
		if (st->s.mem_mib < VMM_MIN_MEM_MIB ||
		    st->s.mem_mib > VMM_MAX_MEM_MIB || st->s.vcpus < 1 ||
		    st->s.vcpus > VMM_MAX_VCPUS)
			return err_set(e, -EBADMSG,
				       "a start of %u MiB and %u vCPUs",
				       st->s.mem_mib, st->s.vcpus);
		return jail_threads(st->s.vcpus + 1, e);
	}
	if (st->s.mem_mib != c->mem_mib || st->s.vcpus != c->vcpus)
		return err_set(e, -EBADMSG,
			       "a start of %u MiB and %u vCPUs for a shell of "
			       "%u and %u",
			       st->s.mem_mib, st->s.vcpus, c->mem_mib,
			       c->vcpus);
	return 0;
}

static ssize_t receive(struct wire_reader *r)
{
	ssize_t n = cp_recv(CP_FD_BOOT, 0, start_msg, sizeof(start_msg),
			    start.fds, &start.nfds);

	if (n <= 0)
		_exit(0); // thawd has no more use for this shell
	*r = wire_reader_of(start_msg, (size_t)n);
	start.type = cp_head(r);
	return n;
}

// The last of what needs more than the final filter allows is done: the C library's
// part of a new thread's start, too.
static int confine(struct cell *c, struct err *e)
{
	vmm_await_vcpus(c->vm);
	return jail_final(e);
}

static int run_prepared(struct cell *c, struct err *e)
{
	struct wire_reader r;
	size_t n;
	int rc;

	rc = vmm_warm(c->vm, e);
	if (rc)
		return rc;
	warm_up();
	rc = confine(c, e);
	if (rc)
		return rc;
	say(CP_PREPARED);
	receive(&r);
	if (start.type != CP_RUN || start.nfds)
		return err_set(e, -EBADMSG,
			       "expected the run of a prepared "
			       "cell");
	c->mapped_ns = util_now_ns();
	n = wire_left(&r);
	rc = put_mail(c, wire_borrow(&r, n), n, e);
	return rc ? rc : vmm_state_finish(c->vm, e);
}

static int receive_start(struct cell *c, struct err *e)
{
	struct wire_reader r;
	int rc;

	receive(&r);
	if ((start.type != CP_START_THAW && start.type != CP_START_BOOT &&
	     start.type != CP_PREPARE) ||
	    cp_get_start(&r, (enum cp_type)start.type, &start.s))
		return err_set(e, -EBADMSG, "expected a start");
	rc = take_size(c, &start, e);
	if (rc)
		return rc;
	rc = start.type == CP_START_BOOT ? start_boot(c, &start, e)
					 : start_thaw(c, &start, e);
	if (!rc && start.next != start.nfds)
		rc = err_set(e, -EBADMSG, "a start with spare descriptors");
	if (!rc && start.type == CP_PREPARE)
		rc = run_prepared(c, e);
	return rc;
}

void cell_parked(void *arg)
{
	struct cell *c = arg;
	struct err e = ERR_INIT;
	struct wire_reader r;
	size_t len;
	ssize_t n = cp_recv(c->claim_fd, 0, start_msg, sizeof(start_msg),
			    start.fds, &start.nfds);

	if (n <= 0)
		_exit(0); // thawd is gone
	r = wire_reader_of(start_msg, (size_t)n);
	if (cp_head(&r) != CP_UNPARK || start.nfds) {
		err_set(&e, -EBADMSG, "expected UNPARK");
		cell_die(&e);
	}
	len = wire_left(&r);
	// Somebody waits for this guest: no answer, and the mail before it goes
	// on.
	if (put_mail(c, wire_borrow(&r, len), len, &e) ||
	    vmm_unpause(c->vm, &e))
		cell_die(&e);
	fd_close(&c->claim_fd);
}

void *cell_vcpu0(void *arg)
{
	struct cell *c = arg;
	struct err e = ERR_INIT;

	warm_up();
	if ((c->vm && vmm_warm(c->vm, &e)) || receive_start(c, &e))
		cell_die(&e);
	if (confine(c, &e)) // a prepared one is already
		cell_die(&e);
	c->loaded_ns = util_now_ns();
	atomic_store_explicit(&c->phase, CELL_RUNNING, memory_order_release);
	if (vmm_start(c->vm, &e))
		cell_die(&e);
	vmm_vcpu_run(c->vm, 0); // how it ended comes as an event
	return NULL;
}
