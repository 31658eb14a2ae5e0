// The thaw-cell process, once it runs: listened to, killed, buried. (Its birth:
// cell_birth.c.)
//
// Death. From the order to kill on, only its last words are heard: its sockets
// are at their end long before the pidfd tells. A proc with jobs is not reaped
// before the last one ended, so its pid stays its own; its userfaultfd is closed
// after that, when all of its threads are long dead. Slow parts (unmapping,
// closing the VM) happen in the dying process.
#include <errno.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "cells_priv.h"
#include "procstate.h"

enum {
	HELLO_TIMEOUT_MS = 60000,
	START_TIMEOUT_MS = 120000,
	MSGS_PER_TURN = 16,
	CREDIT_PER_MS = 20,
	CONSOLE_CHUNK = 16384,
	CONSOLE_LAST = 65536, // read at most so much after its death
	LINGER_MS = 1,	      // at first; twice as long each time
	LINGER_MAX_MS = 32,
	KILL_MS = 8, // what a process takes to die
};

// --- what thawd has of it ----------------------------------------------------

static void close_descriptors(struct cell_proc *p)
{
	eng_watch_destroy(p->w_ctl);
	eng_watch_destroy(p->w_disk);
	eng_watch_destroy(p->w_console);
	eng_watch_destroy(p->w_uffd);
	eng_watch_destroy(p->w_pidfd);
	eng_timer_destroy(p->timer);
	eng_timer_destroy(p->linger);
	fd_close(&p->ctl);
	fd_close(&p->boot);
	fd_close(&p->disk);
	fd_close(&p->console);
	fd_close(&p->uffd);
	fd_close(&p->pagemap);
	fd_close(&p->statm);
	fd_close(&p->pidfd);
	fd_close(&p->overlay);
}

void proc_free(struct cell_proc *p)
{
	close_descriptors(p);
	eng_snap_put(p->snap);
	if (p->slot < p->c->cfg.max_cells)
		p->c->slots[p->slot] = 0;
	free(p->child);
	free(p);
}

static void pidfd_ready(void *ctx, unsigned what);
static void ctl_ready(void *ctx, unsigned what);
static void disk_ready(void *ctx, unsigned what);
static void console_ready(void *ctx, unsigned what);
static void uffd_ready(void *ctx, unsigned what);
static void proc_linger(void *ctx);
static void birth_late(void *ctx);

int proc_watch(struct cell_proc *p, struct err *e)
{
	struct eng_loop *l = p->c->loop;

	p->w_pidfd = eng_watch_create(l, p->pidfd, ENG_READ, pidfd_ready, p,
				      "cell ended");
	p->w_ctl =
	    eng_watch_create(l, p->ctl, ENG_READ, ctl_ready, p, "cell message");
	p->w_disk =
	    eng_watch_create(l, p->disk, ENG_READ, disk_ready, p, "cell disk");
	p->w_console = eng_watch_create(l, p->console, ENG_READ, console_ready,
					p, "cell console");
	p->timer = eng_timer_create(l, birth_late, p, "cell birth");
	p->linger = eng_timer_create(l, proc_linger, p, "cell linger");
	if (!p->w_pidfd || !p->w_ctl || !p->w_disk || !p->w_console ||
	    !p->timer || !p->linger)
		return err_set(e, -ENOMEM, "no memory to watch a cell");
	eng_timer_set(p->timer, HELLO_TIMEOUT_MS);
	return 0;
}

int proc_watch_uffd(struct cell_proc *p, int fd, struct err *e)
{
	p->w_uffd = eng_watch_create(p->c->loop, fd, ENG_READ, uffd_ready, p,
				     "page faults");
	if (!p->w_uffd)
		return err_set(e, -ENOMEM, "no memory to watch a cell");
	p->uffd = fd;
	return 0;
}

// "size resident shared ..." in pages; shared is what belongs to files.
uint64_t proc_private_bytes(const struct cell_proc *p)
{
	char buf[128];
	unsigned long long resident, shared, bytes;
	ssize_t n = pread(p->statm, buf, sizeof(buf) - 1, 0);

	if (n <= 0)
		return 0;
	buf[n] = '\0';
	if (sscanf(buf, "%*s %llu %llu", &resident, &shared) != 2 ||
	    shared > resident)
		return 0;
	bytes = (resident - shared) * PGC_PAGE;
	return bytes > p->rss_birth ? bytes - p->rss_birth : 0;
}

static void birth_late(void *ctx)
{
	struct cell_proc *p = ctx;

	snprintf(p->failed, sizeof(p->failed), "it was not %s in %d s",
		 p->cell ? "running" : "ready",
		 (p->child ? HELLO_TIMEOUT_MS : START_TIMEOUT_MS) / 1000);
	proc_kill(p);
}

void proc_expect_start(struct cell_proc *p, bool on)
{
	if (on)
		eng_timer_set(p->timer, START_TIMEOUT_MS);
	else
		eng_timer_stop(p->timer);
}

// --- listening --------------------------------------------------------------

void proc_kill(struct cell_proc *p)
{
	if (!p->exited)
		syscall(SYS_pidfd_send_signal, p->pidfd, SIGKILL, NULL, 0);
	p->dying = true;
	// Its requests are not answered any more, and its end of the socket may
	// be closed long before it is dead.
	if (p->w_disk)
		eng_watch_set(p->w_disk, 0);
	if (p->linger) {
		p->linger_ms = KILL_MS;
		eng_timer_set(p->linger, p->linger_ms);
	}
}

void proc_violation(struct cell_proc *p, const char *what)
{
	if (p->dying)
		return;
	log_warn("cell %d: %s; killed", p->pid, what);
	if (p->cell)
		cell_end(p->cell, ENG_END_FATAL, "the cell misbehaved: %s",
			 what);
	else
		snprintf(p->failed, sizeof(p->failed), "it misbehaved: %s",
			 what);
	proc_kill(p);
}

bool proc_credit(struct cell_proc *p)
{
	uint64_t ms = util_now_ns() / 1000000;
	uint64_t gain = (ms - p->credit_at) * CREDIT_PER_MS;

	p->credit = (unsigned)MIN((uint64_t)PROC_CREDIT_MAX, p->credit + gain);
	p->credit_at = ms;
	if (p->credit == 0) {
		proc_violation(p, "it floods thawd with messages");
		return false;
	}
	p->credit--;
	return true;
}

static void one_message(struct cell_proc *p, struct wire_reader *r, int *fds,
			unsigned nfds)
{
	int type = cp_head(r);

	if (type == CP_FAILED) {
		cp_get_text(r, p->failed);
	} else if (type == CP_HELLO && p->state == PROC_SPAWNING && !p->dying) {
		proc_hello(p, r, fds, nfds);
	} else if (p->dying) {
		// Only last words count.
	} else if (type == CP_PREPARED && p->state == PROC_PREPARING &&
		   cp_ok(r) && nfds == 0) {
		prepared_done(p);
	} else if (!p->cell || !cell_message(p->cell, type, r, fds, nfds)) {
		proc_violation(p, "a message that makes no sense");
	}
}

// Up to `max` messages; false when there are no more for now.
static bool read_ctl(struct cell_proc *p, unsigned max)
{
	uint8_t buf[CP_HEAD + 64 + CP_TEXT_MAX];

	for (unsigned i = 0; i < max; i++) {
		int fds[CP_MAX_FDS];
		unsigned nfds;
		struct wire_reader r;
		ssize_t n =
		    cp_recv(p->ctl, MSG_DONTWAIT, buf, sizeof(buf), fds, &nfds);

		if (n == -EAGAIN)
			return false;
		// The kernel says once, ahead of all that the cell said, that
		// it died with something unread.
		if (n == -ECONNRESET)
			continue;
		if (n == -EMSGSIZE) {
			proc_violation(p, "a message too long");
			return false;
		}
		if (n <= 0) { // its end is closed: it is dead, or will be
			eng_watch_set(p->w_ctl, 0);
			proc_kill(p);
			return false;
		}
		r = wire_reader_of(buf, (size_t)n);
		if (proc_credit(p))
			one_message(p, &r, fds, nfds);
		cp_close_fds(fds, nfds);
	}
	return true;
}

static void ctl_ready(void *ctx, unsigned what)
{
	(void)what;
	(void)read_ctl(ctx, MSGS_PER_TURN);
}

static void disk_ready(void *ctx, unsigned what)
{
	(void)what;
	disk_read_requests(ctx);
}

static void uffd_ready(void *ctx, unsigned what)
{
	(void)what;
	faults_read(ctx);
}

// Bytes read; 0 at the end or when there are none for now.
static size_t read_console(struct cell_proc *p)
{
	char buf[CONSOLE_CHUNK];
	ssize_t n = read(p->console, buf, sizeof(buf));

	if (n == 0 && p->w_console)
		eng_watch_set(p->w_console, 0);
	if (n <= 0)
		return 0;
	if (p->cell && p->cell->ev && p->cell->ev->console)
		p->cell->ev->console(p->cell->ctx, buf, (size_t)n);
	return (size_t)n;
}

static void console_ready(void *ctx, unsigned what)
{
	(void)what;
	(void)read_console(ctx);
}

// --- death ------------------------------------------------------------------

static void describe_death(struct cell_proc *p, const siginfo_t *si,
			   char dst[ERR_MSG_MAX])
{
	const char *sig;

	if (p->failed[0]) {
		snprintf(dst, ERR_MSG_MAX, "%s", p->failed);
	} else if (si->si_code == CLD_EXITED && si->si_status == 127) {
		snprintf(dst, ERR_MSG_MAX, "thaw-cell cannot be executed");
	} else if (si->si_code == CLD_EXITED) {
		snprintf(dst, ERR_MSG_MAX, "its process exited with status %d",
			 si->si_status);
	} else if (si->si_status == SIGSYS) {
		snprintf(dst, ERR_MSG_MAX,
			 "its process called what its filter "
			 "refuses (SIGSYS)");
	} else {
		sig = sigabbrev_np(si->si_status);
		snprintf(dst, ERR_MSG_MAX, "its process was killed by SIG%s",
			 sig ? sig : "?");
	}
}

static void settle_cell(struct cell_proc *p, const char *text)
{
	struct eng_cell *cell = p->cell;

	// What the cell said of itself before it died is the better reason.
	if (cell->state < CELL_RUNNING && p->failed[0])
		cell_end(cell, ENG_END_START, "%s", text);
	else if (p->failed[0])
		cell_end(cell, ENG_END_FATAL, "%s", text);
	else
		cell_end(cell, ENG_END_CRASHED, "%s", text);
	if (cell->base) {
		faults_forget_proc(cell->base, p);
	}
	capture_cell_ended(cell);
	p->cell = NULL;
	cell->proc = NULL;
	cell_release(cell);
}

static void proc_reap(struct cell_proc *p)
{
	char text[ERR_MSG_MAX];
	struct eng_cells *c = p->c;
	siginfo_t si = {0};
	size_t got = 0, n;

	while (got < CONSOLE_LAST && (n = read_console(p)))
		got += n;
	if (waitid((idtype_t)P_PIDFD, (id_t)p->pidfd, &si, WEXITED) < 0)
		si.si_code = CLD_KILLED;
	describe_death(p, &si, text);
	if (!c->keeper_lost && eng_keeper_drop(c->cfg.keeper_fd, true, p->id))
		log_warn("the descriptor keeper keeps those of a dead cell");
	*p->prev = p->next;
	if (p->next)
		p->next->prev = p->prev;
	c->nprocs--;
	c->slots[p->slot] = 0; // who waits for a place gets this one
	p->slot = UINT32_MAX;
	if (p->cell)
		settle_cell(p, text);
	class_proc_gone(p, text);
	proc_free(p);
}

// The kernel faults on behalf of a guest in workers of its own (KVM's
// asynchronous page faults, whatever the guest's CPUID says). Such a worker
// keeps the memory alive, may wait in a fault of it, and outlives the process
// (Linux 6.1) or holds its exit up (6.8 and later). If its userfaultfd closed
// then, the fault would put a page of zeroes into the template. So a dying cell
// lingers: once no guest code can run any more its faults get private zeroes
// (faults.c), and its descriptors close only when its memory is gone.
static bool memory_gone(const struct cell_proc *p)
{
	struct uffdio_continue probe = {
	    .range = {p->mem_base, PGC_PAGE},
	    .mode = UFFDIO_CONTINUE_MODE_DONTWAKE,
	};

	return p->uffd < 0 || p->mem_bytes == 0 ||
	       (ioctl(p->uffd, UFFDIO_CONTINUE, &probe) < 0 && errno == ESRCH);
}

static void wake_all(struct cell_proc *p)
{
	struct uffdio_range all = {p->mem_base, p->mem_bytes};

	if (p->uffd >= 0 && p->mem_bytes)
		(void)ioctl(p->uffd, UFFDIO_WAKE, &all);
}

// What waits in a fault of this memory asks anew, and is answered by
// faults.c's rule for the dead.
static void proc_linger(void *ctx)
{
	struct cell_proc *p = ctx;

	if (p->exited && p->jobs == 0 && memory_gone(p)) {
		proc_reap(p);
		return;
	}
	if (proc_past_guest(p))
		wake_all(p);
	eng_timer_set(p->linger, p->linger_ms);
	p->linger_ms = MIN(2 * p->linger_ms, (unsigned)LINGER_MAX_MS);
}

bool proc_past_guest(const struct cell_proc *p)
{
	return p->exited || eng_pid_exiting(p->pid);
}

// Whether the process has ended, without waiting for it or collecting it.
static bool proc_ended(const struct cell_proc *p)
{
	siginfo_t si = {0};

	return waitid((idtype_t)P_PIDFD, (id_t)p->pidfd, &si,
		      WEXITED | WNOHANG | WNOWAIT) < 0 ||
	       si.si_pid != 0;
}

// epoll may tell of a descriptor that had this number before: its registration
// lives on while a process that is being started has a copy of it.
static void pidfd_ready(void *ctx, unsigned what)
{
	struct cell_proc *p = ctx;
	unsigned rounds = 0;

	(void)what;
	if (!proc_ended(p))
		return;
	eng_watch_set(p->w_pidfd, 0);
	p->exited = true;
	// What it said before it died is heard as if it still lived.
	while (read_ctl(p, MSGS_PER_TURN) && ++rounds < 8)
		;
	p->dying = true;
	eng_watch_set(p->w_ctl, 0);
	eng_watch_set(p->w_disk, 0);
	p->linger_ms = LINGER_MS;
	proc_linger(p);
}

void proc_job_done(struct cell_proc *p)
{
	if (--p->jobs == 0 && p->exited)
		proc_linger(p);
}
