// The write set: pages that an image's clones make their own soon after a thaw
// are given to each as its own, ahead of its vCPU.
//
// A page that a guest first reads and then writes costs it two faults of the guest,
// one of the host, and a copy under the notifiers of KVM. A private copy that is
// there already costs a fraction, on another core. A worker makes them, in the
// order in which they were needed before: from the template where its cluster
// is filled (it waits for prefetch), zeroes where the image has a page of zeroes
// outside of the anonymous extents. UFFDIO_COPY puts a page only where there is none, so
// whatever the guest or a fault was first with stays (EEXIST).
//
// The list is a hint, the contents are not: a page is read from the template only
// while that is pinned and the page's cluster is filled.
#include <errno.h>
#include <stdatomic.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cells_priv.h"

enum {
	CL = PGC_CLUSTER_PAGES,
	PAUSE_US = 100,
	PATIENCE_US = 50000, // without progress
};

struct lay_list {
	unsigned refs; // the loop's
	size_t n;
	uint32_t *pgnos;
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
	*l = (struct lay_list){1, n, pgnos};
}

void lay_loaded(struct eng_snap *sn)
{
	const uint32_t *all;
	size_t n = pgc_snap_workset(sn->sn, PGC_MEM, &all), k = 0;
	uint32_t *pgnos = malloc(n * sizeof(*pgnos) + 1);

	for (size_t i = 0; pgnos && i < n; i++)
		if (all[i] & PGC_WRITTEN)
			pgnos[k++] = all[i] & ~PGC_WRITTEN;
	lay_replace(sn, pgnos, pgnos ? k : 0);
}

// --- on a worker ------------------------------------------------------------

struct lay_set {
	struct cell_job job;
	struct lay_list *list;
	struct pgc_template *t;
	atomic_bool stop; // the cell ends
	bool mapped;	  // a page went in
	uint64_t laid;
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

// Gives `n` pages from buf; those that are there already are left alone.
static int give(struct lay_set *s, uint64_t pgno, uint64_t n)
{
	const struct cell_proc *p = s->job.proc;
	uint64_t at = 0, len = n * PGC_PAGE;

	while (at < len) {
		struct uffdio_copy c = {
		    .dst = p->mem_base + pgno * PGC_PAGE + at,
		    .src = (uintptr_t)s->buf + at,
		    .len = len - at,
		};
		int rc = ioctl(p->uffd, UFFDIO_COPY, &c) < 0 ? errno : 0;

		if (c.copy > 0) {
			s->mapped = true;
			s->waited_us = 0;
			s->laid += (uint64_t)c.copy / PGC_PAGE;
			at += (uint64_t)c.copy;
		} else if (rc == EEXIST) {
			at += PGC_PAGE;
		} else if (rc == ENOENT && !s->mapped) {
			if (!wait_a_little(s)) // the cell maps its memory now
				return -ENOENT;
		} else if (rc != EAGAIN && rc != EINTR) {
			return -rc;
		}
	}
	return 0;
}

// How many of the list's pages from `i` on are neighbours of one cluster and
// alike.
static size_t run_at(const struct lay_set *s, size_t i, enum pgc_have *have)
{
	const struct lay_list *l = s->list;
	size_t n = 1;

	*have = pgc_template_have(s->t, l->pgnos[i]);
	while (i + n < l->n && l->pgnos[i + n] == l->pgnos[i] + n &&
	       l->pgnos[i + n] / CL == l->pgnos[i] / CL &&
	       pgc_template_have(s->t, l->pgnos[i + n]) == *have)
		n++;
	return n;
}

static void lay_work(struct cell_job *j)
{
	struct lay_set *s = (struct lay_set *)j;
	const struct eng_snap *sn = j->cell->base;
	const struct lay_list *l = s->list;
	size_t n;

	for (size_t i = 0; i < l->n && !atomic_load(&s->stop); i += n) {
		enum pgc_have have;
		uint64_t end;
		int rc = 0;

		n = run_at(s, i, &have);
		if (have == PGC_MISSING || have == PGC_FILLING) {
			n = 0;
			if (!wait_a_little(s))
				return;
			continue;
		}
		if (have == PGC_ZERO) {
			if (eng_snap_in_zero(sn, l->pgnos[i], &end))
				continue; // anonymous: nothing to gain
			memset(s->buf, 0, n * PGC_PAGE);
		} else {
			rc = util_pread_all(
			    pgc_template_fd(s->t), s->buf, n * PGC_PAGE,
			    (off_t)((uint64_t)l->pgnos[i] * PGC_PAGE));
		}
		if (rc || give(s, l->pgnos[i], n))
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
	struct eng_snap *sn = cell->base;
	struct lay_set *s;

	if (!sn || !sn->lay || cell->own || cell->record || cell->is_boot)
		return;
	if (!c->layers && eng_jobs_create(&c->layers, c->loop, 1, NULL))
		return;
	s = malloc(sizeof(*s));
	if (!s)
		return;
	memset(s, 0, offsetof(struct lay_set, buf));
	s->job.pool = c->layers;
	s->list = sn->lay;
	s->list->refs++;
	s->t = sn->tmpl[PGC_MEM];
	pgc_template_pin(s->t);
	cell->lay = s;
	cell_job_run(cell, &s->job, lay_work, lay_done);
}

void lay_stop(struct eng_cell *cell)
{
	if (cell->lay)
		atomic_store(&cell->lay->stop, true);
}
