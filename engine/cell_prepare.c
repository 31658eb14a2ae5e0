// Prepared cells: shells that have an image in place before anybody asks.
//
// A shell of an image that was thawed lately is told PREPARE: it maps and
// registers the template, attaches a disk, loads the state up to the clocks, and
// lets KVM do what it does at a first run. It then waits for RUN, which brings
// the payload. It has run no guest code and touches no guest memory, so it has
// no faults; its image is settled for good: it serves that image or is ended.
//
// Invariants. A set belongs to one snapshot and holds a reference to it, so the
// template and the state that its cells have are the snapshot's. A set is ended,
// with its cells, when its image is dropped. A cell is taken for a plain thaw of
// that very snapshot only: not for a resume (its own state), nor for a recording
// (whose faults count). Prepared cells hold places like all others and are the
// first to be ended when somebody needs one. They hold no guest memory of their
// own, so the memory budget does not count them: what costs memory is counted
// from RUN on, by the microVM's record.
//
// Once prepared, the pages of the recorded working set that the template has are
// mapped into the cell's page tables (UFFDIO_CONTINUE, which never instantiates
// a page), a few clusters a turn. What is evicted later goes from these page
// tables too, and faults as everywhere.
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "cells_priv.h"

enum {
	MAX_IMAGES = 8, // with prepared cells; those thawed last
	MAX_FAILURES = 3,
	MAX_POPULATE = 8192, // pages
	POPULATE_RUNS = 16,  // calls in one turn
};

struct prepared_set {
	struct prepared_set *next; // the one thawed last comes first
	struct eng_snap *sn;
	struct cell_proc *ready; // by next_ready
	unsigned nready, npreparing, failures;
};

static struct prepared_set *set_of(const struct eng_cells *c,
				   const struct eng_snap *sn)
{
	struct prepared_set *s = c->prepared;

	while (s && s->sn != sn)
		s = s->next;
	return s;
}

static unsigned set_lacks(const struct eng_cells *c,
			  const struct prepared_set *s)
{
	unsigned have = s->nready + s->npreparing;

	return s->failures < MAX_FAILURES && have < c->cfg.shells
		   ? c->cfg.shells - have
		   : 0;
}

static bool of_class(const struct prepared_set *s, const struct cell_class *k)
{
	return s->sn->mem_mib == k->mem_mib && s->sn->vcpus == k->vcpus;
}

unsigned prepared_lacks(const struct eng_cells *c, const struct cell_class *k)
{
	unsigned n = 0;

	for (const struct prepared_set *s = c->prepared; s; s = s->next)
		n += of_class(s, k) ? set_lacks(c, s) : 0;
	return n;
}

unsigned eng_cells_prepared_ready(const struct eng_cells *c)
{
	unsigned n = 0;

	for (const struct prepared_set *s = c->prepared; s; s = s->next)
		n += s->nready;
	return n;
}

unsigned eng_cells_prepared_of(const struct eng_cells *c,
			       const struct pgc_id *snap)
{
	for (const struct prepared_set *s = c->prepared; s; s = s->next) {
		if (memcmp(&s->sn->id, snap, sizeof(*snap)) == 0)
			return s->nready;
	}
	return 0;
}

// --- sets -------------------------------------------------------------------

// Those that are being prepared end when they say so: nobody has them then.
static void set_end(struct eng_cells *c, struct prepared_set *s)
{
	struct prepared_set **at = &c->prepared;

	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	for (struct cell_proc *p = c->procs; p; p = p->next) {
		if (p->set != s)
			continue;
		p->set = NULL;
		p->next_ready = NULL;
		proc_kill(p);
	}
	eng_snap_put(s->sn);
	free(s);
}

void prepared_forget(struct eng_cells *c, const struct eng_snap *sn)
{
	struct prepared_set *s = set_of(c, sn);

	if (s)
		set_end(c, s);
}

void prepared_forget_all(struct eng_cells *c)
{
	while (c->prepared)
		set_end(c, c->prepared);
}

static bool is_plain(const struct eng_cell *cell)
{
	return !cell->is_boot && !cell->has_own && !cell->record;
}

static struct prepared_set *set_new(struct eng_cells *c, struct eng_snap *sn)
{
	struct prepared_set *s = calloc(1, sizeof(*s)), *last = c->prepared;
	unsigned n = 0;

	if (!s)
		return NULL; // prepared cells are a convenience
	for (; last; last = last->next) {
		if (++n >= MAX_IMAGES) {
			while (last->next)
				last = last->next;
			set_end(c, last);
			break;
		}
	}
	s->sn = sn;
	sn->refs++;
	return s;
}

void prepared_used(struct eng_cell *cell)
{
	struct eng_cells *c = cell->c;
	struct prepared_set **at = &c->prepared, *s;

	if (!is_plain(cell) || !c->cfg.shells || c->stopping ||
	    cell->base->drop || !cell->base->tmpl[PGC_MEM])
		return;
	while (*at && (*at)->sn != cell->base)
		at = &(*at)->next;
	s = *at;
	if (s)
		*at = s->next;
	else
		s = set_new(c, cell->base);
	if (!s)
		return;
	s->next = c->prepared;
	c->prepared = s;
}

struct cell_proc *prepared_take(struct eng_cell *cell)
{
	struct prepared_set *s =
	    is_plain(cell) ? set_of(cell->c, cell->base) : NULL;
	struct cell_proc *p = s ? s->ready : NULL;

	if (!p)
		return NULL;
	s->ready = p->next_ready;
	s->nready--;
	p->set = NULL;
	return p;
}

bool prepared_evict(struct eng_cells *c)
{
	struct prepared_set *last = NULL;
	struct cell_proc *p;

	for (struct prepared_set *s = c->prepared; s; s = s->next) {
		if (s->ready)
			last = s;
	}
	if (!last)
		return false;
	p = last->ready;
	last->ready = p->next_ready;
	last->nready--;
	p->set = NULL;
	proc_kill(p);
	return true;
}

// --- preparing --------------------------------------------------------------

static int send_prepare(struct cell_proc *p, struct eng_snap *sn, struct err *e)
{
	static uint8_t buf[CP_MSG_MAX]; // the loop's, used in one go
	static struct cp_start s;
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	int fds[CP_MAX_FDS], rc = 0;
	unsigned nfds = 0;

	memset(&s, 0, sizeof(s));
	s.mem_mib = sn->mem_mib;
	s.vcpus = sn->vcpus;
	s.state_len = sn->state_len;
	s.nzero = sn->nzero;
	memcpy(s.zero, sn->zero, sn->nzero * sizeof(sn->zero[0]));
	fds[nfds++] = sn->state_fd;
	fds[nfds++] = pgc_template_fd(sn->tmpl[PGC_MEM]);
	if (sn->disk_bytes) {
		struct pgc_template *t;

		rc = eng_snap_template(sn, PGC_DISK, true, &t, e);
		if (!rc)
			rc = overlay_make(sn->disk_bytes, &p->overlay, e);
		if (rc)
			return rc;
		s.flags |= CP_F_DISK;
		s.disk_bytes = sn->disk_bytes;
		fds[nfds++] = pgc_template_fd(t);
		fds[nfds++] = p->overlay;
	}
	cp_put_start(&w, CP_PREPARE, &s);
	rc = cp_send(p->boot, &w, fds, nfds);
	return rc ? err_set(e, rc, "the shell takes no image: %s",
			    strerror(-rc))
		  : 0;
}

bool prepared_assign(struct cell_proc *p)
{
	struct eng_cells *c = p->c;
	struct prepared_set *s = c->prepared;
	struct err e = ERR_INIT;

	while (s && !(of_class(s, p->class) && set_lacks(c, s)))
		s = s->next;
	if (!s)
		return false;
	p->state = PROC_PREPARING;
	p->set = s;
	p->snap = s->sn;
	p->snap->refs++;
	p->mem_bytes = (uint64_t)s->sn->mem_mib << 20; // a blank's, from now on
	s->npreparing++;
	if (send_prepare(p, s->sn, &e)) {
		snprintf(p->failed, sizeof(p->failed), "%.299s", e.msg);
		proc_kill(p);
		return true;
	}
	proc_expect_start(p, true);
	return true;
}

// --- page tables ------------------------------------------------------------

struct populate {
	struct cell_proc *p;
	struct eng_snap *sn; // a reference
	const uint32_t *pgnos;
	size_t n, at;
};

static void populate_some(void *ctx);

static void populate_end(struct populate *po)
{
	struct cell_proc *p = po->p;

	eng_snap_put(po->sn);
	free(po);
	p->c->jobs_running--;
	proc_job_done(p);
}

// A run of neighbouring pages that are filled, from po->at on, which moves on.
static uint32_t next_run(struct populate *po, uint32_t *first)
{
	uint32_t len = 0;
	uint64_t end;

	for (; po->at < po->n && len < PGC_CLUSTER_PAGES; po->at++) {
		uint32_t pgno = po->pgnos[po->at];
		enum pgc_have have;

		if (len && pgno != *first + len)
			break;
		have = pgc_template_have(po->sn->tmpl[PGC_MEM],
					 pgno & ~PGC_WRITTEN);
		// Written ones get their own page at once, or soon.
		if ((pgno & PGC_WRITTEN) || have != PGC_FILLED ||
		    eng_snap_in_zero(po->sn, pgno, &end)) {
			po->at++;
			break;
		}
		if (!len)
			*first = pgno;
		len++;
	}
	return len;
}

static void populate_some(void *ctx)
{
	struct populate *po = ctx;
	struct cell_proc *p = po->p;

	for (unsigned i = 0; i < POPULATE_RUNS && po->at < po->n; i++) {
		uint32_t first = 0, len = next_run(po, &first);
		struct uffdio_continue m = {
		    .range = {p->mem_base + (uint64_t)first * PGC_PAGE,
			      (uint64_t)len * PGC_PAGE},
		    .mode = UFFDIO_CONTINUE_MODE_DONTWAKE,
		};

		if (p->dying || p->cell) // its guest is faster by now
			po->at = po->n;
		else if (len) // EEXIST and the like: its faults will do
			(void)ioctl(p->uffd, UFFDIO_CONTINUE, &m);
	}
	if (po->at < po->n)
		eng_loop_defer(p->c->loop, populate_some, po, "populate");
	else
		populate_end(po);
}

// With what was recorded, not with what running copies were seen to need: a page
// that is mapped already and then written costs its guest twice as much as one
// that is not (docs/PERFORMANCE.md), and one copy's reads are another's writes.
static void populate(struct cell_proc *p, struct eng_snap *sn)
{
	struct populate *po = calloc(1, sizeof(*po));

	if (!po)
		return;
	po->p = p;
	po->sn = sn;
	po->n = pgc_snap_workset(sn->sn, PGC_MEM, &po->pgnos);
	po->n = MIN(po->n, (size_t)MAX_POPULATE);
	sn->refs++;
	p->jobs++;
	p->c->jobs_running++;
	eng_loop_defer(p->c->loop, populate_some, po, "populate");
}

// --- ready, and gone --------------------------------------------------------

void prepared_done(struct cell_proc *p)
{
	struct prepared_set *s = p->set;

	proc_expect_start(p, false);
	p->state = PROC_PREPARED;
	if (!s)
		return; // its image is gone; it is being killed
	s->npreparing--;
	s->failures = 0;
	p->next_ready = s->ready;
	s->ready = p;
	s->nready++;
	populate(p, s->sn);
	class_proc_prepared(p, s->sn);
}

void prepared_gone(struct cell_proc *p, const char *why)
{
	struct prepared_set *s = p->set;

	if (!s)
		return;
	if (p->state == PROC_PREPARING) {
		s->npreparing--;
		s->failures++;
		log_warn("a cell could not be prepared: %s", why);
		return;
	}
	for (struct cell_proc **at = &s->ready; *at; at = &(*at)->next_ready) {
		if (*at != p)
			continue;
		*at = p->next_ready;
		s->nready--;
		log_warn("a prepared cell died: %s", why);
		return;
	}
}

// --- use --------------------------------------------------------------------

int prepared_send_run(struct eng_cell *cell, struct err *e)
{
	static uint8_t buf[CP_HEAD + CP_MAILBOX_MAX];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct cell_proc *p = cell->proc;
	int rc;

	cell->overlay = fd_steal(&p->overlay);
	cp_begin(&w, CP_RUN);
	if (cell->mailbox_len)
		wire_put_bytes(&w, cell->mailbox, cell->mailbox_len);
	cell->times.handed = util_now_ns();
	rc = cp_send(p->boot, &w, NULL, 0);
	return rc ? err_set(e, rc, "the prepared cell does not run: %s",
			    strerror(-rc))
		  : 0;
}
