// Capturing a running microVM.
//
//   PAUSE -> the cell parks its vCPUs, quiets its devices, sends its state
//   copy (worker): state checked, written pages and blocks listed; with
//         keep_running also copied, because the guest goes on after this
//   UNPAUSE, with keep_running
//   build (worker): hash, deduplicate, compress, publish; without keep_running
//         straight from the parked cell's memory, a few pages at a time
//   done; without keep_running the cell is ended now, and not before
//
// Whatever fails, the guest is unparked and nothing was published. What the
// cell says (its state) is hostile; what it wrote is read by thawd itself.
//
// A snapshot of a thawed microVM has its image as parent and holds the written
// pages. Blocks of a resumed one's disk that it never loaded are referred to in
// its own older snapshot. An image stands alone: there, first everything is
// referred to (its base), then what was written is put over it.
#include <errno.h>
#include <string.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "capture.h"
#include "cells_priv.h"
#include "vmm.h"

enum {
	PAUSE_TIMEOUT_MS = 10000,
	ANSWER_TIMEOUT_MS = 30000,
	READ_IOVS = 512,
	BOUNCE_PAGES = 256, // read and put at once
};

struct capture {
	struct cell_job job; // first: of both workers' steps
	struct eng_cell *cell;
	struct pgc_id id;
	bool image, keep_running, parked;
	char *config;
	void (*done)(void *ctx, int rc, const char *why,
		     const struct eng_capture_stats *st);
	void *ctx;
	struct eng_timer *timer; // for the answer to PAUSE
	int state_fd;
	uint8_t *state;
	uint32_t state_len;
	struct pagescan mem, disk;
	uint8_t *copy; // of all listed pages, memory first; or NULL
	size_t copy_len;
	uint64_t asked_ns, unparked_ns;
	int rc;
	struct err err;
};

static enum pagescan_how scan_how = PAGESCAN_BEST;

void eng_capture_scan_how(enum pagescan_how how)
{
	scan_how = how;
}

static void capture_free(struct capture *cap)
{
	eng_timer_destroy(cap->timer);
	fd_close(&cap->state_fd);
	free(cap->state);
	free(cap->config);
	pagescan_free(&cap->mem);
	pagescan_free(&cap->disk);
	if (cap->copy)
		munmap(cap->copy, cap->copy_len);
	free(cap);
}

static int order(struct eng_cell *cell, enum cp_type type, uint32_t arg)
{
	uint8_t buf[CP_HEAD + 4];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, type);
	if (type == CP_PAUSE)
		wire_put_u32(&w, arg);
	return cp_send(cell->proc->ctl, &w, NULL, 0);
}

static void unpark(struct capture *cap)
{
	struct eng_cell *cell = cap->cell;

	if (!cap->parked)
		return;
	cap->parked = false;
	cap->unparked_ns = util_now_ns();
	if (cell->proc && !cell->ended && order(cell, CP_UNPAUSE, 0))
		cell_end(cell, ENG_END_FATAL,
			 "the cell does not take the order to go on");
}

static void finish(struct capture *cap, int rc, const char *why)
{
	struct eng_cell *cell = cap->cell;
	struct eng_capture_stats st = {
	    .dirty_mem_pages = cap->mem.pages,
	    .dirty_disk_pages = cap->disk.pages,
	};
	uint64_t now = util_now_ns();

	if (rc)
		unpark(cap);
	st.total_ns = now - cap->asked_ns;
	st.parked_ns =
	    (cap->unparked_ns ? cap->unparked_ns : now) - cap->asked_ns;
	cell->capture = NULL;
	if (cell->ev) // else thawd is shutting down
		cap->done(cap->ctx, rc, rc ? why : "", &st);
	if (!rc && !cap->keep_running)
		cell_end(cell, ENG_END_KILLED, "it was suspended");
	capture_free(cap);
	cell_release(cell);
}

// --- the copy step ----------------------------------------------------------

// The state comes in a memfd that the cell may still write: one copy of it is
// checked and kept.
static int take_state(struct capture *cap)
{
	const struct eng_cell *cell = cap->cell;
	struct vmm_state_info info;
	int rc;

	if (cap->state_len == 0 || cap->state_len > VMM_STATE_MAX)
		return err_set(&cap->err, -EBADMSG, "a state of %u bytes",
			       cap->state_len);
	cap->state = malloc(cap->state_len);
	if (!cap->state)
		return err_set(&cap->err, -ENOMEM, "no memory for the state");
	rc = util_pread_all(cap->state_fd, cap->state, cap->state_len, 0);
	if (rc)
		return err_set(&cap->err, rc, "the state cannot be read: %s",
			       strerror(-rc));
	rc = vmm_state_check(cap->state, cap->state_len, &info, &cap->err);
	if (rc)
		return err_wrap(&cap->err, rc, "the state that the cell saved");
	if (info.mem_bytes != cap->job.proc->mem_bytes ||
	    info.vcpus != cell->vcpus ||
	    info.disk_bytes != (cell->has_disk ? cell->base->disk_bytes : 0))
		return err_set(&cap->err, -EBADMSG,
			       "the state that the cell saved is of another "
			       "machine");
	return 0;
}

// After the process let its memory go, a scan finds nothing, without an error.
// Memory that is there after the scan was there during it.
static bool has_memory(const struct cell_proc *p)
{
	char buf[16];
	ssize_t n = pread(p->statm, buf, sizeof(buf) - 1, 0);

	return n > 0 && buf[0] != '0';
}

// Reads listed pages from the parked cell into dst, several runs a call.
static int read_runs(const struct capture *cap, const struct pagescan_run *runs,
		     size_t n, uint8_t *dst)
{
	const struct cell_proc *p = cap->job.proc;

	while (n) {
		struct iovec r[READ_IOVS], l = {dst, 0};
		size_t k = 0;
		ssize_t got;

		for (; k < n && k < READ_IOVS && l.iov_len < (64u << 20); k++) {
			size_t len = (size_t)runs[k].npages * PGC_PAGE;

			r[k].iov_base =
			    (void *)(uintptr_t)(p->mem_base +
						(uint64_t)runs[k].pgno *
						    PGC_PAGE);
			r[k].iov_len = len;
			l.iov_len += len;
		}
		got = process_vm_readv(p->pid, &l, 1, r, k, 0);
		if (got < 0)
			return -errno;
		if ((size_t)got != l.iov_len)
			return -EFAULT;
		dst += got;
		runs += k;
		n -= k;
	}
	return 0;
}

// One run can be gigabytes: process_vm_readv moves at most 2 GiB a call.
static int read_long_run(const struct capture *cap, struct pagescan_run run,
			 uint8_t *dst)
{
	while (run.npages) {
		struct pagescan_run part = {run.pgno,
					    MIN(run.npages, 1u << 16)};
		int rc = read_runs(cap, &part, 1, dst);

		if (rc)
			return rc;
		run.pgno += part.npages;
		run.npages -= part.npages;
		dst += (size_t)part.npages * PGC_PAGE;
	}
	return 0;
}

static int read_disk(const struct capture *cap, uint32_t block, uint32_t n,
		     uint8_t *dst)
{
	return util_pread_all(cap->cell->overlay, dst, (size_t)n * PGC_PAGE,
			      (off_t)block * PGC_PAGE);
}

static int copy_all(struct capture *cap)
{
	uint8_t *at;
	int rc = 0;

	cap->copy_len = (cap->mem.pages + cap->disk.pages) * PGC_PAGE;
	if (!cap->copy_len)
		return 0;
	at = mmap(NULL, cap->copy_len, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		return err_sys(&cap->err, "no memory for the copy");
	cap->copy = at;
	for (size_t i = 0; i < cap->mem.n && !rc;) {
		const struct pagescan_run *run = &cap->mem.runs[i];
		size_t k = 0;
		uint64_t pages = 0;

		if (run->npages > 1u << 12) {
			rc = read_long_run(cap, *run, at);
			pages = run->npages;
			k = 1;
		} else {
			for (; i + k < cap->mem.n && k < READ_IOVS &&
			       run[k].npages <= 1u << 12;
			     k++)
				pages += run[k].npages;
			rc = read_runs(cap, run, k, at);
		}
		i += k;
		at += pages * PGC_PAGE;
	}
	if (rc)
		return err_set(&cap->err, rc,
			       "cannot read the guest's memory: %s",
			       strerror(-rc));
	for (size_t i = 0; i < cap->disk.n && !rc; i++) {
		rc = read_disk(cap, cap->disk.runs[i].pgno,
			       cap->disk.runs[i].npages, at);
		at += (size_t)cap->disk.runs[i].npages * PGC_PAGE;
	}
	if (rc)
		return err_set(&cap->err, rc,
			       "cannot read the disk's written blocks: %s",
			       strerror(-rc));
	return 0;
}

static void copy_work(struct cell_job *j)
{
	struct capture *cap = (struct capture *)j;
	const struct cell_proc *p = j->proc;

	cap->rc = take_state(cap);
	if (!cap->rc)
		cap->rc = pagescan_run(p->pagemap, p->mem_base, p->mem_bytes,
				       scan_how, &cap->mem, &cap->err);
	if (!cap->rc && !has_memory(p))
		cap->rc = err_set(&cap->err, -ESRCH, "the cell died");
	if (!cap->rc && cap->cell->has_disk)
		cap->rc = pagescan_file(cap->cell->overlay,
					cap->cell->base->disk_bytes, &cap->disk,
					&cap->err);
	if (!cap->rc && cap->keep_running)
		cap->rc = copy_all(cap);
}

// --- the build step ---------------------------------------------------------

static int begin_build(struct capture *cap, struct pgc_builder **b)
{
	struct eng_cell *cell = cap->cell;
	uint64_t npages[PGC_NUM_STREAMS] = {
	    [PGC_MEM] = cap->job.proc->mem_bytes / PGC_PAGE,
	    [PGC_DISK] = cell->has_disk ? cell->base->disk_bytes / PGC_PAGE : 0,
	};
	int rc = pgc_builder_begin(cell->c->store, &cap->id,
				   cap->image ? NULL : &cell->base_id, npages,
				   b, &cap->err);

	if (rc || !cap->image)
		return rc;
	if (!cell->is_boot)
		rc = pgc_builder_ref(*b, PGC_MEM, 0, npages[PGC_MEM],
				     cell->base->sn, &cap->err);
	if (!rc && cell->has_disk)
		rc = pgc_builder_ref(*b, PGC_DISK, 0, npages[PGC_DISK],
				     cell->base->sn, &cap->err);
	return rc;
}

static int refer_to_own_disk(struct capture *cap, struct pgc_builder *b)
{
	const struct eng_cell *cell = cap->cell;
	struct pgc_run run;
	int rc = 0;

	if (!cell->own || !cell->has_disk)
		return 0;
	for (uint64_t at = 0;
	     !rc && pgc_snap_run(cell->own->sn, PGC_DISK, at, &run);
	     at = run.pgno + run.npages) {
		if (run.kind != PGC_RUN_PARENT)
			rc = pgc_builder_ref(b, PGC_DISK, run.pgno, run.npages,
					     cell->own->sn, &cap->err);
	}
	return rc;
}

// Puts listed pages: from the copy, or straight from the parked cell.
static int put_runs(struct capture *cap, struct pgc_builder *b,
		    enum pgc_stream st, const struct pagescan *s,
		    const uint8_t *copy, uint8_t *bounce)
{
	for (size_t i = 0; i < s->n; i++) {
		struct pagescan_run run = s->runs[i];

		while (run.npages) {
			struct pagescan_run part = {
			    run.pgno, MIN(run.npages, (uint32_t)BOUNCE_PAGES)};
			const uint8_t *src = copy ? copy : bounce;
			int rc = 0;

			if (!copy && st == PGC_MEM)
				rc = read_runs(cap, &part, 1, bounce);
			else if (!copy)
				rc = read_disk(cap, part.pgno, part.npages,
					       bounce);
			if (rc)
				return err_set(&cap->err, rc,
					       "cannot read what the guest "
					       "wrote: %s",
					       strerror(-rc));
			rc = pgc_builder_put(b, st, part.pgno, src, part.npages,
					     &cap->err);
			if (rc)
				return rc;
			run.pgno += part.npages;
			run.npages -= part.npages;
			if (copy)
				copy += (size_t)part.npages * PGC_PAGE;
		}
	}
	return 0;
}

static int fill_builder(struct capture *cap, struct pgc_builder *b)
{
	cleanup_free uint8_t *bounce = malloc(BOUNCE_PAGES * PGC_PAGE);
	const uint8_t *disk_copy =
	    cap->copy ? cap->copy + cap->mem.pages * PGC_PAGE : NULL;
	int rc;

	if (!bounce)
		return err_set(&cap->err, -ENOMEM, "out of memory");
	if ((rc = put_runs(cap, b, PGC_MEM, &cap->mem, cap->copy, bounce)) ||
	    (rc = refer_to_own_disk(cap, b)) ||
	    (rc = put_runs(cap, b, PGC_DISK, &cap->disk, disk_copy, bounce)) ||
	    (rc = pgc_builder_blob(b, "state", cap->state, cap->state_len,
				   &cap->err)))
		return rc;
	if (cap->config)
		rc = pgc_builder_blob(b, "config", cap->config,
				      strlen(cap->config), &cap->err);
	return rc;
}

static void build_work(struct cell_job *j)
{
	struct capture *cap = (struct capture *)j;
	struct pgc_builder *b = NULL;

	cap->rc = begin_build(cap, &b);
	if (!cap->rc)
		cap->rc = fill_builder(cap, b);
	if (cap->rc)
		pgc_builder_abort(b);
	else
		cap->rc = pgc_builder_commit(b, &cap->err);
}

static void build_done(struct cell_job *j)
{
	struct capture *cap = (struct capture *)j;

	finish(cap, cap->rc, cap->err.msg);
}

static void copy_done(struct cell_job *j)
{
	struct capture *cap = (struct capture *)j;

	if (cap->rc) {
		finish(cap, cap->rc, cap->err.msg);
		return;
	}
	if (cap->keep_running)
		unpark(cap);
	if (!cap->job.cell->proc) { // cannot be: the job holds it
		finish(cap, -ESRCH, "the cell died");
		return;
	}
	cell_job_run(cap->cell, &cap->job, build_work, build_done);
}

// --- messages and the API ---------------------------------------------------

void capture_paused(struct eng_cell *cell, int rc, const char *why,
		    uint32_t state_len, int fd)
{
	struct capture *cap = cell->capture;

	eng_timer_stop(cap->timer);
	if (cap->parked || cap->state_fd >= 0) {
		fd_close(&fd);
		proc_violation(cell->proc, "it paused twice");
		return;
	}
	if (rc) {
		finish(cap, rc < 0 ? rc : -EIO, why);
		return;
	}
	cap->parked = true;
	cap->state_fd = fd;
	cap->state_len = state_len;
	cell_job_run(cell, &cap->job, copy_work, copy_done);
}

void capture_unpaused(struct eng_cell *cell, int rc, const char *why)
{
	if (rc)
		cell_end(cell, ENG_END_FATAL,
			 "the guest could not go on after a pause: %s", why);
}

// Its proc is dead and no job runs: what waits for an answer waits in vain.
void capture_cell_ended(struct eng_cell *cell)
{
	if (cell->capture)
		finish(cell->capture, -ESRCH, cell->detail);
}

static void answer_late(void *ctx)
{
	struct capture *cap = ctx;

	cell_end(cap->cell, ENG_END_FATAL,
		 "the cell did not answer an order to pause");
}

int eng_cell_capture(struct eng_cell *cell, const struct eng_capture_req *req,
		     void (*done)(void *ctx, int rc, const char *why,
				  const struct eng_capture_stats *st),
		     void *ctx, struct err *e)
{
	struct capture *cap;
	int rc;

	if (cell->ended || !cell->proc || cell->state != CELL_RUNNING)
		return err_set(e, -ENOTCONN, "the microVM does not run");
	if (cell->capture)
		return err_set(e, -EBUSY, "a capture of it is under way");
	if (cell->is_boot && !req->image)
		return err_set(e, -EINVAL,
			       "a booted microVM has no image that "
			       "its snapshot could refer to");
	cap = calloc(1, sizeof(*cap));
	if (!cap)
		return err_set(e, -ENOMEM, "no memory for a capture");
	cap->cell = cell;
	cap->id = req->id;
	cap->image = req->image;
	cap->keep_running = req->keep_running;
	cap->done = done;
	cap->ctx = ctx;
	cap->state_fd = -1;
	cap->asked_ns = util_now_ns();
	cap->timer =
	    eng_timer_create(cell->c->loop, answer_late, cap, "capture late");
	if (req->config)
		cap->config = strdup(req->config);
	if (!cap->timer || (req->config && !cap->config)) {
		capture_free(cap);
		return err_set(e, -ENOMEM, "no memory for a capture");
	}
	rc = order(cell, CP_PAUSE, PAUSE_TIMEOUT_MS);
	if (rc) {
		capture_free(cap);
		return err_set(e, rc, "the cell takes no order: %s",
			       strerror(-rc));
	}
	eng_timer_set(cap->timer, ANSWER_TIMEOUT_MS);
	cell->capture = cap;
	cell_hold(cell);
	return 0;
}
