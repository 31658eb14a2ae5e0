// The write set, put into a clone's page tables ahead of its vCPU, by a worker.
//
// These are pages that an image's clones make their own soon after a thaw:
// each clone is given them as its own. A page that a guest first reads and then
// writes costs it two faults of the guest, one of the host, and a copy under the
// notifiers of KVM; a private copy that is there already costs a fraction,
// on another core. UFFDIO_COPY puts a page only where there is none, so whatever
// the guest or a fault was first with stays (EEXIST).
//
// The read set is not put anywhere: the host's fault maps sixteen pages at once,
// and a worker that did it ahead took more from the vCPU than it gave
// (docs/PERFORMANCE.md). Cells that are prepared get it while nobody waits
// (cell_prepare.c).
//
// In the order in which the pages were needed before, as soon as the template has
// each: the worker waits for prefetch.
//
// A resumed microVM is given what it wrote before its suspend and left as it was
// (written.h), while its guest goes on already; its own pages were laid before
// (cell_start.c). What of it the template lacks is left out: nobody may be
// bringing it.
//
// The list is a hint, the contents are not: a page is read from the template only
// while that is pinned and the page is filled.
#include <errno.h>
#include <stdatomic.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cells_priv.h"
#include "written.h"

enum {
	CL = PGC_CLUSTER_PAGES,
	PAUSE_US = 50,
	PATIENCE_US = 50000, // without progress
	THREADS = 2,	     // of all cells
};

struct lay_list {
	unsigned refs; // the loop's
	size_t n, nwritten;
	uint32_t *pgnos; // the written ones with PGC_WRITTEN
};

static void list_put(struct lay_list *l)
{
	if (!l || --l->refs)
		return;
	free(l->pgnos);
	free(l);
}

void lay_replace(struct eng_snap *sn, uint32_t *pgnos, size_t n)
{
	struct lay_list *l = n ? calloc(1, sizeof(*l)) : NULL;

	list_put(sn->lay);
	sn->lay = l;
	if (!l) {
		free(pgnos);
		return;
	}
	*l = (struct lay_list){1, n, 0, pgnos};
	for (size_t i = 0; i < n; i++)
		l->nwritten += pgnos[i] & PGC_WRITTEN ? 1 : 0;
}

uint32_t *lay_list(const struct pgc_snap *sn, size_t *n)
{
	const uint32_t *all;
	uint32_t *pgnos;

	if (pgc_snap_parent(sn, &(struct pgc_id){0}))
		return written_as_parent(sn, n);
	*n = pgc_snap_workset(sn, PGC_MEM, &all);
	pgnos = *n ? malloc(*n * sizeof(*pgnos)) : NULL;
	if (pgnos)
		memcpy(pgnos, all, *n * sizeof(*pgnos));
	else
		*n = 0;
	return pgnos;
}

// --- on a worker ------------------------------------------------------------

struct lay_set {
	struct cell_job job;
	struct lay_list *list;
	struct pgc_template *t;
	atomic_bool stop; // the cell ends
	bool prefetched;  // what the template lacks is on its way
	bool mapped;	  // a page went in
	unsigned waited_us;
	uint8_t buf[CL * PGC_PAGE];
};

// False: no patience is left.
static bool wait_a_little(struct lay_set *s)
{
	if (atomic_load(&s->stop) || s->waited_us >= PATIENCE_US)
		return false;
	usleep(PAUSE_US);
	s->waited_us += PAUSE_US;
	return true;
}

// What a call for `len` bytes said: how many of them are dealt with, or -errno.
static int64_t outcome(struct lay_set *s, int64_t done, int rc)
{
	if (done > 0) {
		s->mapped = true;
		s->waited_us = 0;
		return done;
	}
	if (rc == EEXIST)
		return PGC_PAGE;	// left alone
	if (rc == ENOENT && !s->mapped) // the cell maps its memory now
		return wait_a_little(s) ? 0 : -ENOENT;
	return rc == EAGAIN || rc == EINTR ? 0 : -rc;
}

// Gives pages from buf.
static int64_t copy(struct lay_set *s, uint64_t dst, uint64_t at, uint64_t len)
{
	struct uffdio_copy c = {
	    .dst = dst + at,
	    .src = (uintptr_t)s->buf + at,
	    .len = len - at,
	};
	int rc = ioctl(s->job.proc->uffd, UFFDIO_COPY, &c) < 0 ? errno : 0;

	return outcome(s, c.copy, rc);
}

// How many of the list's pages from `i` on are neighbours of one cluster and
// alike.
static size_t run_at(const struct lay_set *s, size_t i, enum pgc_have *have)
{
	const struct lay_list *l = s->list;
	uint32_t first = l->pgnos[i], k;
	size_t n = 1;

	*have = pgc_template_have(s->t, first & ~PGC_WRITTEN);
	for (; i + n < l->n; n++) {
		k = l->pgnos[i + n];
		if (k != first + n || k % CL == 0 ||
		    pgc_template_have(s->t, k & ~PGC_WRITTEN) != *have)
			break;
	}
	return n;
}

// One run of pages that the template has. 0, or why this is the end.
static int lay_run(struct lay_set *s, uint32_t first, size_t n,
		   enum pgc_have have)
{
	uint64_t pgno = first & ~PGC_WRITTEN, at = 0, len = n * PGC_PAGE, end;
	uint64_t dst = s->job.proc->mem_base + pgno * PGC_PAGE;

	if (have == PGC_ZERO && eng_snap_in_zero(s->job.cell->base, pgno, &end))
		return 0; // anonymous: nothing to gain
	if (have == PGC_ZERO)
		memset(s->buf, 0, len);
	else if (util_pread_all(pgc_template_fd(s->t), s->buf, len,
				(off_t)(pgno * PGC_PAGE)))
		return -EIO;
	while (at < len) {
		int64_t did = copy(s, dst, at, len);

		if (did < 0)
			return (int)did;
		at += (uint64_t)did;
	}
	return 0;
}

static void lay_work(struct cell_job *j)
{
	struct lay_set *s = (struct lay_set *)j;
	const struct lay_list *l = s->list;
	size_t n;

	for (size_t i = 0; i < l->n && !atomic_load(&s->stop); i += n) {
		enum pgc_have have;

		n = 1;
		if (!(l->pgnos[i] & PGC_WRITTEN))
			continue;
		n = run_at(s, i, &have);
		if (have == PGC_MISSING && !s->prefetched)
			continue;
		if (have == PGC_MISSING || have == PGC_FILLING) {
			n = 0;
			if (!wait_a_little(s))
				return;
			continue;
		}
		if (lay_run(s, l->pgnos[i], n, have))
			return;
	}
}

// --- on the loop ------------------------------------------------------------

static void lay_done(struct cell_job *j)
{
	struct lay_set *s = (struct lay_set *)j;

	j->cell->lay = NULL;
	pgc_template_unpin(s->t);
	list_put(s->list);
	free(s);
}

void lay_start(struct eng_cell *cell)
{
	struct eng_cells *c = cell->c;
	struct eng_snap *sn = cell->own ? cell->own : cell->base;
	struct lay_set *s;

	if (!sn || !sn->lay || !sn->lay->nwritten || cell->record ||
	    cell->is_boot)
		return;
	if (!c->layers && eng_jobs_create(&c->layers, c->loop, THREADS, NULL))
		return;
	s = malloc(sizeof(*s));
	if (!s)
		return;
	memset(s, 0, offsetof(struct lay_set, buf));
	s->job.pool = c->layers;
	s->list = sn->lay;
	s->list->refs++;
	s->t = cell->base->tmpl[PGC_MEM];
	s->prefetched = !cell->own;
	pgc_template_pin(s->t);
	cell->lay = s;
	cell_job_run(cell, &s->job, lay_work, lay_done);
}

void lay_stop(struct eng_cell *cell)
{
	if (cell->lay)
		atomic_store(&cell->lay->stop, true);
}
