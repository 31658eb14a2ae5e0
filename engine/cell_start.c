// Handing a microVM to its shell: the overlay, the START message, and for a
// resumed one the laying of its own pages.
//
// A resumed microVM maps its image's templates like any clone. Its own pages
// are laid over them after CP_MAPPED, before any vCPU runs: UFFDIO_COPY where
// the template is mapped, process_vm_writev where anonymous memory is (an
// extent of zeroes in the image, not registered). A page that became zero is
// copied as a page of zeroes and never mapped as the zero page: the next
// capture takes the zero page for "not written", and would bring the image's
// page back.
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "cells_priv.h"

enum {
	LAY_PAGES = 256, // read and laid at once
	LAY_JOBS = 2,
	MAKING_MS = 1, // at least, until a VM that is made now runs
};

int overlay_make(uint64_t bytes, int *out, struct err *e)
{
	cleanup_fd int fd =
	    memfd_create("thaw-overlay", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return err_sys(e, "cannot make the disk's overlay");
	if (fchmod(fd, 0) < 0 || ftruncate(fd, (off_t)bytes) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) <
		0)
		return err_sys(e, "cannot set the disk's overlay up");
	*out = fd_steal(&fd);
	return 0;
}

int cell_make_overlay(struct eng_cell *cell, struct err *e)
{
	return overlay_make(cell->base->disk_bytes, &cell->overlay, e);
}

static int simple_send(int sock, enum cp_type type)
{
	uint8_t buf[CP_HEAD];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, type);
	return cp_send(sock, &w, NULL, 0);
}

// Tells the device thread to look how the start goes: on a later turn, when the
// vCPU-0 thread has had its head start.
static void send_starting(void *ctx)
{
	struct eng_cell *cell = ctx;

	if (!cell->ended && cell->proc && cell->state == CELL_STARTING)
		(void)simple_send(cell->proc->ctl, CP_STARTING);
	eng_timer_destroy(ptr_steal(cell->starting));
	cell_release(cell);
}

// Of a cell that has no VM yet, which takes a millisecond to make; until then
// the order, and the looks that follow it, would only be in its way.
static bool makes_vm(const struct eng_cell *cell)
{
	const struct cell_proc *p = cell->proc;

	return (p->blank || !p->class->vcpus) && !p->snap && !cell->own;
}

static void starting_soon(struct eng_cell *cell)
{
	cell_hold(cell);
	if (makes_vm(cell))
		cell->starting = eng_timer_create(cell->c->loop, send_starting,
						  cell, "cell starting");
	if (cell->starting)
		eng_timer_set(cell->starting, MAKING_MS);
	else
		eng_loop_defer(cell->c->loop, send_starting, cell,
			       "cell starting");
}

static int add_disk(struct eng_cell *cell, struct cp_start *s, int *fds,
		    unsigned *nfds, struct err *e)
{
	struct pgc_template *t;
	int rc;

	if (!cell->has_disk)
		return 0;
	rc = cell_make_overlay(cell, e);
	if (!rc)
		rc = eng_snap_template(cell->base, PGC_DISK, !cell->record, &t,
				       e);
	if (rc)
		return rc;
	s->flags |= CP_F_DISK;
	s->disk_bytes = cell->base->disk_bytes;
	fds[(*nfds)++] = pgc_template_fd(t);
	fds[(*nfds)++] = cell->overlay;
	return 0;
}

static int add_thaw(struct eng_cell *cell, struct cp_start *s, int *fds,
		    unsigned *nfds, struct err *e)
{
	const struct eng_snap *base = cell->base;
	const struct eng_snap *state = cell->own ? cell->own : base;
	struct pgc_template *t;
	int rc = eng_snap_template(cell->base, PGC_MEM, !cell->record, &t, e);

	if (rc)
		return rc;
	if (cell->record) {
		size_t pages = ((size_t)cell->mem_mib << 20) / PGC_PAGE;

		cell->recorded_map = calloc(pages / 8 + 1, 1);
		if (!cell->recorded_map)
			return err_set(e, -ENOMEM, "out of memory");
	}
	if (cell->own)
		s->flags |= CP_F_TWO_STEP;
	s->state_len = state->state_len;
	s->nzero = base->nzero;
	memcpy(s->zero, base->zero, base->nzero * sizeof(base->zero[0]));
	s->mailbox = cell->mailbox;
	s->mailbox_len = cell->mailbox_len;
	fds[(*nfds)++] = state->state_fd;
	fds[(*nfds)++] = pgc_template_fd(t);
	return 0;
}

static void add_boot(struct eng_cell *cell, struct cp_start *s, int *fds,
		     unsigned *nfds)
{
	snprintf(s->cmdline, sizeof(s->cmdline), "%s", cell->cmdline);
	fds[(*nfds)++] = cell->kernel_fd;
	if (cell->initrd_fd >= 0) {
		s->flags |= CP_F_INITRD;
		fds[(*nfds)++] = cell->initrd_fd;
	}
}

static int send_start(struct eng_cell *cell, struct err *e)
{
	static uint8_t buf[CP_MSG_MAX]; // the loop's, used in one go
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct cp_start s;
	int fds[CP_MAX_FDS], rc = 0;
	unsigned nfds = 0;

	s.flags = s.state_len = s.nzero = 0;
	s.mem_mib = cell->mem_mib;
	s.vcpus = cell->vcpus;
	s.disk_bytes = 0;
	s.mailbox_len = 0;
	s.mailbox = NULL;
	s.cmdline[0] = '\0';
	if (cell->is_boot)
		add_boot(cell, &s, fds, &nfds);
	else
		rc = add_thaw(cell, &s, fds, &nfds, e);
	if (!rc)
		rc = add_disk(cell, &s, fds, &nfds, e);
	if (rc)
		return rc;
	cp_put_start(&w, cell->is_boot ? CP_START_BOOT : CP_START_THAW, &s);
	cell->times.handed = util_now_ns();
	rc = cp_send(cell->proc->boot, &w, fds, nfds);
	return rc ? err_set(e, rc, "the shell takes no start: %s",
			    strerror(-rc))
		  : 0;
}

int cell_send_start(struct eng_cell *cell, struct err *e)
{
	int rc =
	    cell->proc->snap ? prepared_send_run(cell, e) : send_start(cell, e);

	if (rc)
		return rc;
	proc_expect_start(cell->proc, true);
	if (!cell->own)
		starting_soon(cell);
	if (cell->base && cell->base->tmpl[PGC_MEM])
		pgc_template_exact(cell->base->tmpl[PGC_MEM], cell->record);
	if (!cell->own)
		lay_start(cell);
	fd_close(&cell->kernel_fd);
	fd_close(&cell->initrd_fd);
	return 0;
}

// --- a resumed microVM's own pages ------------------------------------------

// By two workers: each takes every other chunk, in the same order.
struct laying { // the loop's
	unsigned due;
	int rc;
	char why[ERR_MSG_MAX];
};

struct lay_job {
	struct cell_job job;
	struct laying *all;
	unsigned part, parts, chunk; // its number, of so many; chunks seen
	int rc;
	struct err err;
};

static int copy_pages(int uffd, uint64_t at, const void *src, uint64_t len)
{
	unsigned again = 0;

	while (len) {
		struct uffdio_copy c = {
		    .dst = at,
		    .src = (uintptr_t)src,
		    .len = len,
		    .mode = UFFDIO_COPY_MODE_DONTWAKE,
		};
		int rc = ioctl(uffd, UFFDIO_COPY, &c) < 0 ? -errno : 0;
		uint64_t done = c.copy > 0 ? (uint64_t)c.copy : 0;

		if (rc == -EAGAIN && !done && again++ < 100)
			continue;
		if (rc && !done)
			return rc;
		at += done;
		src = (const char *)src + done;
		len -= done;
	}
	return 0;
}

static int write_pages(pid_t pid, uint64_t at, const void *src, uint64_t len)
{
	struct iovec l = {(void *)(uintptr_t)src, len};
	struct iovec r = {(void *)(uintptr_t)at, len};
	ssize_t n = process_vm_writev(pid, &l, 1, &r, 1, 0);

	if (n < 0)
		return -errno;
	return (uint64_t)n == len ? 0 : -EFAULT;
}

// Lays `n` pages from `src` at `pgno`, each part the way its mapping wants.
static int lay_pages(const struct lay_job *lj, uint64_t pgno, const void *src,
		     uint64_t n)
{
	const struct cell_proc *p = lj->job.proc;

	while (n) {
		uint64_t end, part, at = p->mem_base + pgno * PGC_PAGE;
		bool anon = eng_snap_in_zero(lj->job.cell->base, pgno, &end);
		int rc;

		part = MIN(n, end - pgno);
		rc = anon ? write_pages(p->pid, at, src, part * PGC_PAGE)
			  : copy_pages(p->uffd, at, src, part * PGC_PAGE);
		if (rc)
			return rc;
		pgno += part;
		src = (const char *)src + part * PGC_PAGE;
		n -= part;
	}
	return 0;
}

static int lay_run(struct lay_job *lj, const struct pgc_run *run, void *buf)
{
	struct eng_cell *cell = lj->job.cell;

	for (uint64_t k = 0; k < run->npages; k += LAY_PAGES) {
		uint64_t n = MIN(run->npages - k, (uint64_t)LAY_PAGES);
		int rc;

		if (lj->chunk++ % lj->parts != lj->part)
			continue;
		if (run->kind == PGC_RUN_ZERO) {
			memset(buf, 0, n * PGC_PAGE);
		} else {
			rc = pgc_snap_read(cell->own->sn, PGC_MEM,
					   run->pgno + k, buf, n, &lj->err);
			if (rc)
				return rc;
		}
		rc = lay_pages(lj, run->pgno + k, buf, n);
		if (rc)
			return err_set(&lj->err, rc,
				       "memory page %llu could not be laid: %s",
				       (unsigned long long)(run->pgno + k),
				       strerror(-rc));
	}
	return 0;
}

static void lay_work(struct cell_job *j)
{
	struct lay_job *lj = (struct lay_job *)j;
	cleanup_free void *buf = malloc(LAY_PAGES * PGC_PAGE);
	struct pgc_run run;

	if (!buf) {
		lj->rc = err_set(&lj->err, -ENOMEM, "out of memory");
		return;
	}
	for (uint64_t at = 0; pgc_snap_run(j->cell->own->sn, PGC_MEM, at, &run);
	     at = run.pgno + run.npages) {
		if (run.kind == PGC_RUN_PARENT)
			continue;
		lj->rc = lay_run(lj, &run, buf);
		if (lj->rc)
			return;
	}
}

static void all_laid(struct eng_cell *cell, const struct laying *all)
{
	int rc = all->rc;

	if (rc) {
		cell_end(cell,
			 rc == -EBADMSG || rc == -EIO ? ENG_END_MEMORY
						      : ENG_END_START,
			 "%s", all->why);
	} else if (!cell->ended) {
		cell->state = CELL_STARTING;
		proc_expect_start(cell->proc, true);
		if (simple_send(cell->proc->boot, CP_GO))
			cell_end(cell, ENG_END_START, "the shell takes no GO");
		else
			lay_start(cell);
		starting_soon(cell);
	}
}

static void lay_done(struct cell_job *j)
{
	struct lay_job *lj = (struct lay_job *)j;
	struct laying *all = lj->all;

	if (lj->rc && !all->rc) {
		all->rc = lj->rc;
		snprintf(all->why, sizeof(all->why), "%s", lj->err.msg);
	}
	if (--all->due == 0) {
		all_laid(j->cell, all);
		free(all);
	}
	free(lj);
}

void cell_mapped(struct eng_cell *cell)
{
	struct laying *all = calloc(1, sizeof(*all));
	struct lay_job *lj[LAY_JOBS] = {NULL};
	struct pgc_snap_stats st;
	unsigned n;
	bool ok = all != NULL;

	pgc_snap_get_stats(cell->own->sn, &st);
	n = st.own[PGC_MEM] > LAY_PAGES ? LAY_JOBS : 1;
	for (unsigned i = 0; i < n; i++) {
		lj[i] = calloc(1, sizeof(*lj[i]));
		ok = ok && lj[i];
	}
	if (!ok) {
		for (unsigned i = 0; i < n; i++)
			free(lj[i]);
		free(all);
		cell_end(cell, ENG_END_START, "out of memory");
		return;
	}
	cell->state = CELL_LAYING;
	proc_expect_start(cell->proc, false);
	all->due = n;
	for (unsigned i = 0; i < n; i++) {
		lj[i]->all = all;
		lj[i]->part = i;
		lj[i]->parts = n;
		cell_job_run(cell, &lj[i]->job, lay_work, lay_done);
	}
}
