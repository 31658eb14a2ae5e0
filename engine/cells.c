// Cells as the engine sees them: the handles, from request to end.
//
// A thaw goes OPENING (its snapshots) -> WAITING (a shell of its class,
// cell_pool.c) -> STARTING [-> LAYING] -> RUNNING. With a snapshot that is open
// and a shell that is ready, the START leaves within eng_cell_thaw() itself.
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cells_priv.h"
#include "vmm.h"

// --- holds and the end ------------------------------------------------------

static void cell_free(struct eng_cell *cell)
{
	*cell->prev = cell->next;
	if (cell->next)
		cell->next->prev = cell->prev;
	cell->c->ncells--;
	eng_snap_put(cell->base);
	eng_snap_put(cell->own);
	fd_close(&cell->overlay);
	fd_close(&cell->kernel_fd);
	fd_close(&cell->initrd_fd);
	fd_close(&cell->claim_fd);
	free(cell->mailbox);
	free(cell->cmdline);
	free(cell->recorded);
	free(cell->recorded_map);
	free(cell);
}

static void say_gone(void *ctx)
{
	struct eng_cell *cell = ctx;
	const struct eng_cell_events *ev = cell->ev;

	cell->c->jobs_running--;
	if (ev && ev->gone)
		ev->gone(cell->ctx, cell->why, cell->detail);
	cell_free(cell);
}

static void maybe_gone(struct eng_cell *cell)
{
	if (!cell->ended || cell->holds)
		return;
	cell->c->jobs_running++; // the deferred call
	eng_loop_defer(cell->c->loop, say_gone, cell, "cell gone");
}

void cell_hold(struct eng_cell *cell)
{
	cell->holds++;
}

void cell_release(struct eng_cell *cell)
{
	cell->holds--;
	maybe_gone(cell);
}

void cell_end(struct eng_cell *cell, enum eng_end why, const char *fmt, ...)
{
	va_list ap;

	if (cell->ended)
		return;
	cell->ended = true;
	cell->why = why;
	va_start(ap, fmt);
	vsnprintf(cell->detail, sizeof(cell->detail), fmt, ap);
	va_end(ap);
	cell_stop_waiting(cell);
	lay_stop(cell);
	if (cell->proc) {
		learn_ending(cell);
		proc_kill(cell->proc);
	} else {
		maybe_gone(cell);
	}
}

static void cell_job_work(void *ctx)
{
	struct cell_job *j = ctx;

	j->work(j);
}

static void cell_job_done(void *ctx)
{
	struct cell_job *j = ctx;
	struct eng_cell *cell = j->cell;
	struct cell_proc *p = j->proc;

	cell->c->jobs_running--;
	j->done(j); // frees j
	if (p)
		proc_job_done(p);
	cell_release(cell);
}

void cell_job_run_named(struct eng_cell *cell, struct cell_job *j,
			void (*work)(struct cell_job *j),
			void (*done)(struct cell_job *j), const char *name)
{
	j->work = work;
	j->done = done;
	j->cell = cell;
	j->proc = cell->proc;
	cell_hold(cell);
	if (j->proc)
		j->proc->jobs++;
	cell->c->jobs_running++;
	eng_job_run_named(j->pool ? j->pool : cell->c->jobs, cell_job_work,
			  cell_job_done, j, name);
}

// --- requests ---------------------------------------------------------------

static struct eng_cell *cell_new(struct eng_cells *c,
				 const struct eng_cell_events *ev, void *ctx,
				 uint64_t t0, struct err *e)
{
	struct eng_cell *cell;

	if (c->stopping || c->keeper_lost) {
		err_set(e, -ESHUTDOWN,
			c->stopping ? "thawd is shutting down"
				    : "the descriptor keeper is gone; "
				      "restart thawd");
		return NULL;
	}
	cell = calloc(1, sizeof(*cell));
	if (!cell) {
		err_set(e, -ENOMEM, "no memory for a cell");
		return NULL;
	}
	cell->c = c;
	cell->ev = ev;
	cell->ctx = ctx;
	cell->times.t0 = t0;
	cell->overlay = cell->kernel_fd = cell->initrd_fd = -1;
	cell->claim_fd = -1;
	cell->next = c->cells;
	cell->prev = &c->cells;
	if (cell->next)
		cell->next->prev = &cell->next;
	c->cells = cell;
	c->ncells++;
	return cell;
}

static bool snap_usable(struct eng_cell *cell, const struct eng_snap *sn,
			bool need_state)
{
	if (sn->state == SNAP_FAILED) {
		cell_end(cell, ENG_END_START, "%s", sn->err.msg);
		return false;
	}
	if (need_state && sn->state_fd < 0) {
		cell_end(cell, ENG_END_START,
			 "the snapshot holds no CPU state: it is only a disk");
		return false;
	}
	return true;
}

static bool check_own(struct eng_cell *cell)
{
	struct pgc_id parent;

	if (pgc_snap_parent(cell->own->sn, &parent) &&
	    memcmp(&parent, &cell->base_id, sizeof(parent)) == 0 &&
	    cell->own->mem_mib == cell->base->mem_mib &&
	    cell->own->disk_bytes == cell->base->disk_bytes)
		return true;
	cell_end(cell, ENG_END_START,
		 "the suspended snapshot does not belong to its image");
	return false;
}

// Its snapshots are open: what they say decides what it needs.
static void snaps_open(struct eng_cell *cell)
{
	struct eng_snap *sn = cell->base;

	if (cell->ended)
		return;
	if ((sn && sn->state == SNAP_LOADING) ||
	    (cell->own && cell->own->state == SNAP_LOADING))
		return; // the other one's callback follows
	if (sn && !snap_usable(cell, sn, !cell->is_boot))
		return;
	if (cell->own &&
	    (!snap_usable(cell, cell->own, true) || !check_own(cell)))
		return;
	cell->has_disk = sn && sn->disk_bytes;
	if (cell->is_boot && sn && !sn->disk_bytes) {
		cell_end(cell, ENG_END_START, "the snapshot holds no disk");
		return;
	}
	if (!cell->is_boot) {
		const struct eng_snap *st = cell->own ? cell->own : sn;

		cell->mem_mib = st->mem_mib;
		cell->vcpus = st->vcpus;
	}
	cell_find_proc(cell);
}

static void snap_came(void *ctx)
{
	struct eng_cell *cell = ctx;

	snaps_open(cell);
	cell_release(cell);
}

// Each snapshot that is loading holds the cell until its callback.
static struct eng_snap *get_snap(struct eng_cell *cell, const struct pgc_id *id,
				 struct err *e)
{
	struct eng_snap *sn = eng_snap_get(cell->c, id, snap_came, cell, e);

	if (sn && sn->state == SNAP_LOADING)
		cell_hold(cell);
	return sn;
}

// From a filled-in handle to its life. A failure that comes later than this
// call arrives as gone().
static int launch(struct eng_cell *cell, bool has_base, struct eng_cell **out,
		  struct err *e)
{
	if (has_base)
		cell->base = get_snap(cell, &cell->base_id, e);
	if (cell->has_own && cell->base)
		cell->own = get_snap(cell, &cell->own_id, e);
	if ((has_base && !cell->base) || (cell->has_own && !cell->own)) {
		cell->ev = NULL; // nobody has the handle
		cell_end(cell, ENG_END_START, "out of memory");
		return -ENOMEM;
	}
	*out = cell;
	snaps_open(cell);
	return 0;
}

int eng_cell_thaw(struct eng_cells *c, const struct eng_thaw_req *req,
		  const struct eng_cell_events *ev, void *ctx,
		  struct eng_cell **out, struct err *e)
{
	struct eng_cell *cell;

	*out = NULL;
	if (req->mailbox_len > CP_MAILBOX_MAX)
		return err_set(e, -E2BIG,
			       "%zu bytes for the mailbox: at most %d fit",
			       req->mailbox_len, CP_MAILBOX_MAX);
	cell = cell_new(c, ev, ctx, req->t0, e);
	if (!cell)
		return -ESHUTDOWN;
	cell->base_id = req->base;
	cell->own_id = req->own;
	cell->has_own = req->has_own;
	cell->record = req->record;
	if (req->mailbox_len) {
		cell->mailbox = malloc(req->mailbox_len);
		if (!cell->mailbox) {
			cell_free(cell);
			return err_set(e, -ENOMEM, "out of memory");
		}
		memcpy(cell->mailbox, req->mailbox, req->mailbox_len);
		cell->mailbox_len = req->mailbox_len;
	}
	return launch(cell, true, out, e);
}

static int open_boot_file(const char *path, int *fd, struct err *e)
{
	struct stat sb;

	*fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (*fd < 0)
		return err_sys(e, "cannot open %s", path);
	if (fstat(*fd, &sb) < 0)
		return err_sys(e, "cannot examine %s", path);
	if (!S_ISREG(sb.st_mode) || sb.st_size == 0)
		return err_set(e, -EINVAL, "%s is no file with contents", path);
	return 0;
}

int eng_cell_boot(struct eng_cells *c, const struct eng_boot_req *req,
		  const struct eng_cell_events *ev, void *ctx,
		  struct eng_cell **out, struct err *e)
{
	struct eng_cell *cell;
	int rc = 0;

	*out = NULL;
	if (strlen(req->cmdline) >= CP_CMDLINE_MAX)
		return err_set(e, -E2BIG, "a command line of %zu bytes",
			       strlen(req->cmdline));
	if (req->mem_mib < VMM_MIN_MEM_MIB || req->mem_mib > VMM_MAX_MEM_MIB ||
	    req->vcpus < 1 || req->vcpus > VMM_MAX_VCPUS)
		return err_set(e, -EINVAL, "%u MiB of memory and %u vCPUs",
			       req->mem_mib, req->vcpus);
	cell = cell_new(c, ev, ctx, req->t0, e);
	if (!cell)
		return -ESHUTDOWN;
	cell->is_boot = true;
	cell->mem_mib = req->mem_mib;
	cell->vcpus = req->vcpus;
	cell->base_id = req->disk;
	cell->cmdline = strdup(req->cmdline);
	if (!cell->cmdline)
		rc = err_set(e, -ENOMEM, "out of memory");
	if (!rc)
		rc = open_boot_file(req->kernel_path, &cell->kernel_fd, e);
	if (!rc && req->initrd_path)
		rc = open_boot_file(req->initrd_path, &cell->initrd_fd, e);
	if (rc) {
		cell_free(cell);
		return rc;
	}
	return launch(cell, req->has_disk, out, e);
}

// --- the rest of a handle ---------------------------------------------------

void eng_cell_kill(struct eng_cell *cell)
{
	cell_end(cell, ENG_END_KILLED, "it was ended on request");
}

pid_t eng_cell_pid(const struct eng_cell *cell)
{
	return cell->proc ? cell->proc->pid : 0;
}

void eng_cell_get_times(const struct eng_cell *cell, struct eng_cell_times *t)
{
	*t = cell->times;
}

void eng_cell_usage(const struct eng_cell *cell, struct eng_cell_usage *out)
{
	struct stat sb;

	*out = (struct eng_cell_usage){.faults = cell->faults,
				       .fault_pages = cell->fault_pages};
	if (cell->proc && cell->proc->statm >= 0)
		out->private_bytes = proc_private_bytes(cell->proc);
	if (cell->overlay >= 0 && fstat(cell->overlay, &sb) == 0)
		out->overlay_bytes = (uint64_t)sb.st_blocks * 512;
}

size_t eng_cell_recorded(const struct eng_cell *cell, const uint32_t **pgnos)
{
	*pgnos = cell->recorded;
	return cell->nrecorded;
}

// --- all of them ------------------------------------------------------------

static void store_ready(void *ctx, unsigned what)
{
	(void)what;
	faults_drain(ctx);
	evict_check(ctx);
}

// Without the keeper, thawd's own death could close a userfaultfd under a
// running guest: so nothing runs without it.
static void keeper_ready(void *ctx, unsigned what)
{
	struct eng_cells *c = ctx;
	struct eng_cell *next;

	(void)what;
	eng_watch_set(c->keeper_watch, 0);
	log_err("the descriptor keeper is gone: every microVM is ended; "
		"restart thawd");
	c->keeper_lost = true;
	for (struct eng_cell *cell = c->cells; cell; cell = next) {
		next = cell->next;
		cell_end(cell, ENG_END_FATAL, "thawd's descriptor keeper died");
	}
	for (struct cell_proc *p = c->procs; p; p = p->next)
		proc_kill(p);
}

static int cells_setup(struct eng_cells *c, struct err *e)
{
	int rc;

	c->cell_fd = open(c->cfg.cell_path, O_RDONLY | O_CLOEXEC);
	if (c->cell_fd < 0)
		return err_sys(e, "cannot open %s", c->cfg.cell_path);
	c->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (c->null_fd < 0)
		return err_sys(e, "cannot open /dev/null");
	if ((rc = cell_ns_make(c->ns, e)) ||
	    (rc = vmm_prepare(c->cfg.kvm_fd, e)) ||
	    (rc = vmm_facts_save(&c->host_fd, e)))
		return rc;
	c->slots = calloc(c->cfg.max_cells, 1);
	c->store_watch =
	    eng_watch_create(c->loop, pgc_event_fd(c->store), ENG_READ,
			     store_ready, c, "page store");
	c->keeper_watch = eng_watch_create(c->loop, c->cfg.keeper_fd, ENG_READ,
					   keeper_ready, c, "keeper");
	c->refill = eng_timer_create(c->loop, shells_refill, c, "shells");
	if (!c->slots || !c->store_watch || !c->keeper_watch || !c->refill)
		return err_set(e, -ENOMEM, "no memory for the cells");
	rc = evict_create(c, e);
	return rc ? rc : blanks_want(c, e);
}

static void cells_free(struct eng_cells *c)
{
	struct cell_class *k;

	eng_snap_forget_all(c);
	while ((k = c->classes)) {
		c->classes = k->next;
		free(k);
	}
	eng_watch_destroy(c->store_watch);
	eng_watch_destroy(c->keeper_watch);
	eng_timer_destroy(c->refill);
	evict_destroy(c);
	fd_close(&c->cell_fd);
	fd_close(&c->null_fd);
	fd_close(&c->host_fd);
	for (int i = 0; i < CP_NUM_NS; i++)
		fd_close(&c->ns[i]);
	eng_jobs_destroy(c->copiers);
	eng_jobs_destroy(c->layers);
	free(c->slots);
	free(c);
}

int eng_cells_create(struct eng_cells **out, struct eng_loop *l,
		     struct eng_jobs *j, struct pgc_store *s,
		     const struct eng_cells_config *cfg, struct err *e)
{
	struct eng_cells *c;
	int rc;

	*out = NULL;
	if (cfg->struct_size != sizeof(*cfg) || cfg->max_cells == 0 ||
	    cfg->max_cells > 65536 || cfg->uid_base == 0 ||
	    cfg->uid_base > UINT32_MAX - cfg->max_cells - 1)
		return err_set(e, -EINVAL,
			       "the cells' configuration makes no "
			       "sense");
	c = calloc(1, sizeof(*c));
	if (!c)
		return err_set(e, -ENOMEM, "no memory for the cells");
	c->loop = l;
	c->jobs = j;
	c->store = s;
	c->cfg = *cfg;
	c->cell_fd = c->null_fd = c->host_fd = -1;
	for (int i = 0; i < CP_NUM_NS; i++)
		c->ns[i] = -1;
	rc = cells_setup(c, e);
	if (rc) {
		cells_free(c);
		return rc;
	}
	*out = c;
	return 0;
}

// Turns the loop until the last process is reaped and the last job is done:
// they end the way they always do, but nobody is told.
void eng_cells_destroy(struct eng_cells *c)
{
	struct eng_cell *next;

	if (!c)
		return;
	c->stopping = true;
	prepared_forget_all(c);
	for (struct eng_cell *cell = c->cells; cell; cell = next) {
		next = cell->next;
		cell->ev = NULL;
		cell_end(cell, ENG_END_KILLED, "thawd is shutting down");
	}
	for (struct cell_proc *p = c->procs; p; p = p->next)
		proc_kill(p);
	while (c->procs || c->cells || c->jobs_running)
		eng_loop_once(c->loop);
	cells_free(c);
}
