// What an image's microVMs need soon after their thaw, learned from them.
//
// A fault in the first seconds of a clone names a page that its image's
// working set lacks, or has in it too late. Its whole cluster is learned: that is
// what the clone is given, so which other pages of it were needed is not seen.
// Pages that a clone owns at that age are such that the next one will write, too.
// Both are gathered here, for each image, and a few seconds later, or when a
// clone ends, a worker writes the working set anew: what it had, in its order,
// then what was learned, in the order of the faults. So an image is refined by
// its first real thaws; then nothing is learned any more, and nothing is written.
//
// Everything of this is a hint. Not learned: from resumed microVMs (they are
// elsewhere), from old ones, and more than LEARN_MAX of an image.
#include <errno.h>
#include <string.h>

#include "cells_priv.h"
#include "pagescan.h"

enum {
	LEARN_S = 10,	     // of a clone's life
	SAVE_MS = 2000,	     // after the first thing learned
	LEARN_MAX = 262144,  // pages: 1 GiB
	WRITTEN_MAX = 16384, // pages: 64 MiB
	SCANS_MAX = 4,	     // of clones' page tables, of one image
	SCAN_MIB_MAX = 1024, // such a scan is the loop's: larger ones are not;
	READ_MIB_MAX = 512,  // without PAGEMAP_SCAN it takes longer
	CL = PGC_CLUSTER_PAGES,
};

struct learn {
	struct eng_snap *sn;
	struct eng_timer *timer;
	uint64_t npages;
	uint32_t *order; // pages: those of the working set, then new ones
	size_t n, cap, saved;
	uint8_t *known;	  // a bit for each page that is in `order`
	uint8_t *written; // a bit for each page
	size_t nwritten, saved_written;
	unsigned scans;
	bool saving;
};

static bool has(const uint8_t *bits, uint64_t i)
{
	return bits[i / 8] & (1u << (i % 8));
}

static void put(uint8_t *bits, uint64_t i)
{
	bits[i / 8] |= (uint8_t)(1u << (i % 8));
}

static void add_page(struct learn *l, uint32_t pgno)
{
	if (pgno >= l->npages || has(l->known, pgno) || l->n == LEARN_MAX)
		return;
	if (l->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 256;
		uint32_t *m = realloc(l->order, cap * sizeof(*m));

		if (!m)
			return;
		l->order = m;
		l->cap = cap;
	}
	put(l->known, pgno);
	l->order[l->n++] = pgno;
}

static void add_written(struct learn *l, uint32_t pgno)
{
	if (pgno >= l->npages || has(l->written, pgno) ||
	    l->nwritten == WRITTEN_MAX)
		return;
	add_page(l, pgno);
	if (!has(l->known, pgno))
		return;
	put(l->written, pgno);
	l->nwritten++;
}

static void on_time(void *ctx);

void learn_free(struct learn *l)
{
	if (!l)
		return;
	eng_timer_destroy(l->timer);
	free(l->order);
	free(l->known);
	free(l->written);
	free(l);
}

static struct learn *learn_of(struct eng_snap *sn)
{
	struct learn *l = sn->learn;
	const uint32_t *pgnos;
	size_t n;

	if (l)
		return l;
	l = calloc(1, sizeof(*l));
	if (!l)
		return NULL;
	l->sn = sn;
	l->npages = pgc_snap_pages(sn->sn, PGC_MEM);
	l->known = calloc(1, l->npages / 8 + 2);
	l->written = calloc(1, l->npages / 8 + 2);
	l->timer = eng_timer_create(sn->c->loop, on_time, l, "working set");
	if (!l->known || !l->written || !l->timer) {
		learn_free(l);
		return NULL;
	}
	n = pgc_snap_workset(sn->sn, PGC_MEM, &pgnos);
	for (size_t i = 0; i < n; i++) {
		add_page(l, pgnos[i] & ~PGC_WRITTEN);
		if (pgnos[i] & PGC_WRITTEN)
			add_written(l, pgnos[i] & ~PGC_WRITTEN);
	}
	l->saved = l->n;
	l->saved_written = l->nwritten;
	sn->learn = l;
	return l;
}

static bool teaches(const struct eng_cell *cell)
{
	return cell->base && !cell->is_boot && !cell->own && !cell->record &&
	       !cell->c->stopping && !cell->base->drop && cell->proc &&
	       util_now_ns() - cell->times.handed < LEARN_S * 1000000000ull;
}

void learn_fault(struct eng_cell *cell, uint32_t pgno)
{
	uint32_t first = pgno / CL * CL;
	struct learn *l;

	if (!teaches(cell) || !(l = learn_of(cell->base)))
		return;
	if (l->n == l->saved)
		eng_timer_set(l->timer, SAVE_MS);
	for (uint32_t k = first; k < first + CL; k++)
		add_page(l, k);
}

// --- writing it down --------------------------------------------------------

struct save_job { // it holds no snapshot: that may be dropped meanwhile
	struct eng_cells *c;
	struct pgc_id id;
	size_t n, written;
	uint32_t *pgnos;
	int rc;
	struct err err;
};

static void save_work(void *ctx)
{
	struct save_job *j = ctx;

	j->rc = pgc_snap_set_workset(j->c->store, &j->id, PGC_MEM, j->pgnos,
				     j->n, &j->err);
}

static void save_done(void *ctx)
{
	struct save_job *j = ctx;
	struct eng_snap *sn = eng_snap_find(j->c, &j->id);
	struct learn *l = sn ? sn->learn : NULL;

	j->c->jobs_running--;
	if (j->rc && j->rc != -ENOENT) // removed meanwhile
		log_warn("writing a working set: %s", j->err.msg);
	if (!j->rc)
		log_info("working set: %zu KiB, %zu KiB of them written",
			 j->n * (PGC_PAGE / 1024),
			 j->written * (PGC_PAGE / 1024));
	free(j->pgnos);
	free(j);
	if (!l)
		return;
	l->saving = false;
	if (l->n > l->saved || l->nwritten > l->saved_written)
		eng_timer_set(l->timer, SAVE_MS);
}

static size_t list_pages(const struct learn *l, uint32_t *pgnos)
{
	for (size_t i = 0; i < l->n; i++)
		pgnos[i] = l->order[i] |
			   (has(l->written, l->order[i]) ? PGC_WRITTEN : 0);
	return l->n;
}

// Thaws to come are given what will be written.
static void use_now(struct learn *l, const uint32_t *pgnos, size_t n)
{
	uint32_t *lay = malloc(n * sizeof(*lay) + 1);

	if (!lay)
		return;
	memcpy(lay, pgnos, n * sizeof(*lay));
	lay_replace(l->sn, lay, n);
}

static void save(struct learn *l)
{
	struct save_job *j;

	if (l->saving || l->sn->drop ||
	    (l->n == l->saved && l->nwritten == l->saved_written))
		return;
	j = calloc(1, sizeof(*j));
	if (j)
		j->pgnos = malloc(l->n * sizeof(*j->pgnos) + 1);
	if (!j || !j->pgnos) {
		free(j);
		return;
	}
	j->c = l->sn->c;
	j->id = l->sn->id;
	j->n = list_pages(l, j->pgnos);
	use_now(l, j->pgnos, j->n);
	l->saved = l->n;
	j->written = l->saved_written = l->nwritten;
	l->saving = true;
	l->sn->c->jobs_running++;
	eng_job_run(l->sn->c->jobs, save_work, save_done, j);
}

// The guest runs meanwhile, so what is found is a hint like the rest.
static int scan_cell(const struct cell_proc *p, uint32_t mem_mib,
		     struct pagescan *ps)
{
	int rc = pagescan_run(p->pagemap, p->mem_base, p->mem_bytes,
			      PAGESCAN_IOCTL, ps, NULL);

	if (rc == -ENOTTY && mem_mib <= READ_MIB_MAX)
		rc = pagescan_run(p->pagemap, p->mem_base, p->mem_bytes,
				  PAGESCAN_READ, ps, NULL);
	return rc;
}

static void scan(struct learn *l, const struct eng_cell *cell)
{
	struct pagescan ps;

	if (l->scans == SCANS_MAX || cell->mem_mib > SCAN_MIB_MAX ||
	    cell->state != CELL_RUNNING || cell->proc->dying ||
	    scan_cell(cell->proc, cell->mem_mib, &ps))
		return;
	l->scans++;
	for (size_t i = 0; i < ps.n; i++)
		for (uint32_t k = 0; k < ps.runs[i].npages; k++)
			add_written(l, ps.runs[i].pgno + k);
	pagescan_free(&ps);
}

static void on_time(void *ctx)
{
	struct learn *l = ctx;

	for (struct eng_cell *cell = l->sn->c->cells; cell; cell = cell->next)
		if (cell->base == l->sn && !cell->ended && teaches(cell))
			scan(l, cell);
	save(l);
}

void learn_ending(struct eng_cell *cell)
{
	struct learn *l;

	if (!teaches(cell) || cell->state != CELL_RUNNING ||
	    !(l = learn_of(cell->base)))
		return;
	scan(l, cell);
	save(l);
}
