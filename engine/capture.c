// Capturing a running microVM.
//
//   prepare (worker): what it wrote so far is counted and room made for the copy;
//         the guest runs
//   PAUSE -> the cell parks its vCPUs, quiets its devices, sends its state
//   secure (copier): state checked, written pages and blocks listed, the pages
//         copied out of the cell
//   UNPAUSE, with keep_running
//   build (worker): hash, deduplicate, compress, publish, all from the copy
//   done; without keep_running the cell is ended now, and not before
//
// The guest is *secured* when nothing of the snapshot is left in the cell: its
// memory is in the copy, and so are its disk's blocks, with keep_running;
// without, they stay in the overlay, which is thawd's own memfd. A guest that wrote
// more than the copy has room for is secured in rounds: copy, build, copy on;
// parked all the while. `parked_ns` runs from the order to pause until it is
// secured, or until it may go on where it does.
//
// Secured is not published. The cell stands still until the snapshot is durable;
// whatever fails before, the guest is unparked and nothing was published. What
// the cell says (its state) is hostile; what it wrote is read by thawd itself.
//
// A parked guest waits for as little as possible: copiers are workers for the
// secure step only, so none waits behind somebody's hashing, and PARKING guests
// at most are between their order to pause and their first copy. Who comes later
// waits its turn and runs. A guest that does not stop at once keeps no place.
//
// A snapshot of a thawed microVM has its image as parent and holds the written
// pages. Blocks of a resumed one's disk that it never loaded are referred to in
// its own older snapshot. An image stands alone: there, first everything is
// referred to (its base), then what was written is put over it.
#include <errno.h>
#include <string.h>
#include <stdio.h>

#include "capcopy.h"
#include "capture.h"
#include "cells_priv.h"
#include "vmm.h"
#include "written.h"

enum {
	PAUSE_TIMEOUT_MS = 10000,
	ANSWER_TIMEOUT_MS = 30000,
	COPIERS = 2,
	PARKING = 2,
	PLACE_MS = 50, // after which a guest that does not stop has no place
	SPARE_BYTES = 2 << 20, // of the copy, for what it writes meanwhile
};

enum capture_step { PREPARING, PAUSING, SECURING, BUILDING };

struct capture {
	struct cell_job job; // first: of all workers' steps
	struct eng_cell *cell;
	struct pgc_id id;
	struct capture *next; // in the queue of those that wait for a place
	bool image, keep_running, parked, published, has_place;
	enum capture_step step;
	char *config;
	void (*done)(void *ctx, int rc, const char *why,
		     const struct eng_capture_stats *st);
	void *ctx;
	struct eng_timer *timer; // for the answer to PAUSE
	int state_fd;
	uint8_t *state;
	uint32_t state_len;
	struct capcopy copy;
	struct pgc_builder *builder;
	struct eng_capture_stats st;
	uint64_t asked_ns, paused_ns, secured_ns, unparked_ns;
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
	pgc_builder_abort(cap->builder);
	capcopy_free(&cap->copy);
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

// --- places ---------------------------------------------------------------

static void order_pause(struct capture *cap);

static void place_give(struct eng_cells *c)
{
	while (c->capture_queue && c->capture_parking < PARKING) {
		struct capture *cap = c->capture_queue;

		c->capture_queue = cap->next;
		c->capture_parking++;
		cap->has_place = true;
		order_pause(cap);
	}
}

static void place_free(struct capture *cap)
{
	struct eng_cells *c = cap->cell->c;

	if (!cap->has_place)
		return;
	cap->has_place = false;
	c->capture_parking--;
	place_give(c);
}

static void place_wait(struct capture *cap)
{
	struct capture **at = &cap->cell->c->capture_queue;

	while (*at)
		at = &(*at)->next;
	cap->next = NULL;
	*at = cap;
	place_give(cap->cell->c);
}

static void place_leave(struct capture *cap)
{
	struct capture **at = &cap->cell->c->capture_queue;

	while (*at && *at != cap)
		at = &(*at)->next;
	if (*at)
		*at = cap->next;
	place_free(cap);
}

// --- the end ----------------------------------------------------------------

static uint64_t parked_ns(const struct capture *cap, int rc, uint64_t now)
{
	uint64_t end =
	    rc || cap->keep_running ? cap->unparked_ns : cap->secured_ns;

	if (!cap->paused_ns)
		return 0;
	return (end ? end : now) - cap->paused_ns;
}

static void finish(struct capture *cap, int rc, const char *why)
{
	struct eng_cell *cell = cap->cell;
	struct eng_capture_stats *st = &cap->st;
	uint64_t now = util_now_ns();

	place_leave(cap);
	if (rc)
		unpark(cap);
	st->total_ns = now - cap->asked_ns;
	st->parked_ns = parked_ns(cap, rc, now);
	st->dirty_mem_pages = cap->copy.list[PGC_MEM].pages;
	st->dirty_disk_pages = cap->copy.list[PGC_DISK].pages;
	cell->capture = NULL;
	if (cell->ev) // else thawd is shutting down
		cap->done(cap->ctx, rc, rc ? why : "", st);
	if (!rc && !cap->keep_running)
		cell_end(cell, ENG_END_KILLED, "it was suspended");
	capture_free(cap);
	cell_release(cell);
}

// --- the secure step --------------------------------------------------------

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

static int scan(const struct capture *cap, struct pagescan *mem, struct err *e)
{
	const struct cell_proc *p = cap->job.proc;

	return pagescan_run(p->pagemap, p->mem_base, p->mem_bytes, scan_how,
			    mem, e);
}

static int scan_disk(const struct capture *cap, struct pagescan *disk,
		     struct err *e)
{
	const struct eng_cell *cell = cap->cell;

	if (!cell->has_disk)
		return 0;
	return pagescan_file(cell->overlay, cell->base->disk_bytes, disk, e);
}

// The last stream that has to be in the copy before the guest is secured.
static enum pgc_stream last_to_secure(const struct capture *cap)
{
	return cap->keep_running ? PGC_DISK : PGC_MEM;
}

static uint64_t bytes_to_secure(const struct capture *cap,
				const struct pagescan *mem,
				const struct pagescan *disk)
{
	uint64_t pages = mem->pages + (cap->keep_running ? disk->pages : 0);

	return pages * PGC_PAGE;
}

// The guest runs: what it has written by now tells how much room it takes.
static void prepare_work(struct cell_job *j)
{
	struct capture *cap = (struct capture *)j;
	struct pagescan mem = {0}, disk = {0};
	uint64_t bytes;

	// A failure shows again in the scan that counts.
	if (scan(cap, &mem, NULL) == 0 && scan_disk(cap, &disk, NULL) == 0) {
		bytes = bytes_to_secure(cap, &mem, &disk);
		capcopy_prepare(&cap->copy, bytes + bytes / 8 + SPARE_BYTES,
				true);
	}
	pagescan_free(&mem);
	pagescan_free(&disk);
}

static int copy_on(struct capture *cap, enum pgc_stream last)
{
	struct capcopy_src src = {
	    .pid = cap->job.proc->pid,
	    .mem_base = cap->job.proc->mem_base,
	    .overlay = cap->cell->overlay,
	    .helper = cap->cell->c->copiers,
	};
	int rc = capcopy_fill(&cap->copy, &src, last, &cap->err);

	if (!rc && !cap->secured_ns &&
	    capcopy_is_out(&cap->copy, last_to_secure(cap)))
		cap->secured_ns = util_now_ns();
	return rc;
}

static int list_written(struct capture *cap)
{
	struct pagescan *mem = &cap->copy.list[PGC_MEM];
	struct pagescan *disk = &cap->copy.list[PGC_DISK];
	int rc = scan(cap, mem, &cap->err);

	if (!rc && !has_memory(cap->job.proc))
		rc = err_set(&cap->err, -ESRCH, "the cell died");
	if (!rc)
		rc = scan_disk(cap, disk, &cap->err);
	if (!rc) // it may have written more than there is room for
		capcopy_prepare(&cap->copy, bytes_to_secure(cap, mem, disk),
				false);
	return rc;
}

static void secure_work(struct cell_job *j)
{
	struct capture *cap = (struct capture *)j;

	capcopy_hurry();
	cap->rc = take_state(cap);
	if (!cap->rc)
		cap->rc = list_written(cap);
	if (!cap->rc)
		cap->rc = copy_on(cap, last_to_secure(cap));
}

// --- the build step ---------------------------------------------------------

static int begin_build(struct capture *cap)
{
	struct eng_cell *cell = cap->cell;
	uint64_t npages[PGC_NUM_STREAMS] = {
	    [PGC_MEM] = cap->job.proc->mem_bytes / PGC_PAGE,
	    [PGC_DISK] = cell->has_disk ? cell->base->disk_bytes / PGC_PAGE : 0,
	};
	int rc = pgc_builder_begin(cell->c->store, &cap->id,
				   cap->image ? NULL : &cell->base_id, npages,
				   &cap->builder, &cap->err);

	if (rc || !cap->image)
		return rc;
	if (!cell->is_boot)
		rc = pgc_builder_ref(cap->builder, PGC_MEM, 0, npages[PGC_MEM],
				     cell->base->sn, &cap->err);
	if (!rc && cell->has_disk)
		rc =
		    pgc_builder_ref(cap->builder, PGC_DISK, 0, npages[PGC_DISK],
				    cell->base->sn, &cap->err);
	return rc;
}

static int refer_to_own_disk(struct capture *cap)
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
			rc = pgc_builder_ref(cap->builder, PGC_DISK, run.pgno,
					     run.npages, cell->own->sn,
					     &cap->err);
	}
	return rc;
}

static int publish(struct capture *cap)
{
	int rc = pgc_builder_blob(cap->builder, "state", cap->state,
				  cap->state_len, &cap->err);

	if (!rc && cap->config)
		rc = pgc_builder_blob(cap->builder, "config", cap->config,
				      strlen(cap->config), &cap->err);
	if (!rc && !cap->image)
		rc = written_put(cap->builder, &cap->copy.list[PGC_MEM],
				 &cap->err);
	if (!rc) {
		rc = pgc_builder_commit(ptr_steal(cap->builder), &cap->err);
		cap->published = rc == 0;
	}
	return rc;
}

// A round: what was copied goes to the builder. Then either all is there and is
// published, or the next part is copied, for another round.
static void build_work(struct cell_job *j)
{
	struct capture *cap = (struct capture *)j;
	int rc = 0;

	if (!cap->builder) {
		rc = begin_build(cap);
		if (!rc)
			rc = refer_to_own_disk(cap);
	}
	if (!rc)
		rc = capcopy_put(&cap->copy, cap->builder, &cap->err);
	if (!rc && capcopy_is_done(&cap->copy))
		rc = publish(cap);
	else if (!rc)
		rc = copy_on(cap, PGC_DISK);
	if (rc)
		pgc_builder_abort(ptr_steal(cap->builder));
	cap->rc = rc;
}

static void build_done(struct cell_job *j);

// After each step that follows a pause.
static void build_on(struct capture *cap)
{
	place_free(cap);
	if (cap->rc || cap->published) {
		finish(cap, cap->rc, cap->err.msg);
		return;
	}
	if (cap->keep_running && cap->secured_ns)
		unpark(cap);
	cap->step = BUILDING;
	cap->job.pool = NULL;
	cell_job_run(cap->cell, &cap->job, build_work, build_done);
}

static void build_done(struct cell_job *j)
{
	build_on((struct capture *)j);
}

static void secure_done(struct cell_job *j)
{
	build_on((struct capture *)j);
}

// --- messages and the API ---------------------------------------------------

void capture_paused(struct eng_cell *cell, int rc, const char *why,
		    uint32_t state_len, int fd)
{
	struct capture *cap = cell->capture;

	if (cap->step != PAUSING) {
		fd_close(&fd);
		proc_violation(cell->proc, "it paused without being asked");
		return;
	}
	eng_timer_stop(cap->timer);
	if (rc) {
		finish(cap, rc < 0 ? rc : -EIO, why);
		return;
	}
	cap->parked = true;
	cap->step = SECURING;
	cap->state_fd = fd;
	cap->state_len = state_len;
	cap->job.pool = cell->c->copiers;
	cell_job_run(cell, &cap->job, secure_work, secure_done);
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

	if (cap->has_place) {
		eng_timer_set(cap->timer, ANSWER_TIMEOUT_MS - PLACE_MS);
		place_free(cap);
		return;
	}
	cell_end(cap->cell, ENG_END_FATAL,
		 "the cell did not answer an order to pause");
}

static void order_pause(struct capture *cap)
{
	struct eng_cell *cell = cap->cell;
	int rc;

	if (cell->ended) {
		finish(cap, -ESRCH, cell->detail);
		return;
	}
	cap->step = PAUSING;
	cap->paused_ns = util_now_ns();
	rc = order(cell, CP_PAUSE, PAUSE_TIMEOUT_MS);
	if (rc) {
		err_set(&cap->err, rc, "the cell takes no order: %s",
			strerror(-rc));
		finish(cap, rc, cap->err.msg);
		return;
	}
	eng_timer_set(cap->timer, PLACE_MS);
}

static void prepare_done(struct cell_job *j)
{
	place_wait((struct capture *)j);
}

static int check_request(const struct eng_cell *cell,
			 const struct eng_capture_req *req, struct err *e)
{
	if (cell->ended || !cell->proc || cell->state != CELL_RUNNING ||
	    cell->parking || cell->parked)
		return err_set(e, -ENOTCONN, "the microVM does not run");
	if (cell->capture)
		return err_set(e, -EBUSY, "a capture of it is under way");
	if (cell->is_boot && !req->image)
		return err_set(e, -EINVAL,
			       "a booted microVM has no image that "
			       "its snapshot could refer to");
	return 0;
}

int eng_cell_capture(struct eng_cell *cell, const struct eng_capture_req *req,
		     void (*done)(void *ctx, int rc, const char *why,
				  const struct eng_capture_stats *st),
		     void *ctx, struct err *e)
{
	struct eng_cells *c = cell->c;
	struct capture *cap;
	int rc = check_request(cell, req, e);

	if (!rc && !c->copiers)
		rc = eng_jobs_create(&c->copiers, c->loop, COPIERS, e);
	if (rc)
		return rc;
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
	    eng_timer_create(c->loop, answer_late, cap, "capture late");
	if (req->config)
		cap->config = strdup(req->config);
	if (!cap->timer || (req->config && !cap->config)) {
		capture_free(cap);
		return err_set(e, -ENOMEM, "no memory for a capture");
	}
	cell->capture = cap;
	cell_hold(cell);
	cell_job_run(cell, &cap->job, prepare_work, prepare_done);
	return 0;
}
