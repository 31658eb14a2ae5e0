// Opening reads and validates the whole map and state, so it is a worker's; the
// result is immutable but for the templates. A template, once filled, is what
// makes the next thaw fast: snapshots with one stay after their last clone,
// until eng_template_drop().
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "cells_priv.h"
#include "vmm.h"

struct snap_load {
	struct snap_load *next;
	void (*cb)(void *ctx);
	void *ctx;
};

struct eng_snap *eng_snap_find(const struct eng_cells *c,
			       const struct pgc_id *id)
{
	struct eng_snap *sn = c->snaps;

	while (sn && memcmp(&sn->id, id, sizeof(*id)) != 0)
		sn = sn->next;
	return sn;
}

// --- loading (on a worker) --------------------------------------------------

static int by_length(const void *a, const void *b)
{
	const struct cp_zero_extent *x = a, *y = b;

	return x->npages < y->npages ? 1 : x->npages > y->npages ? -1 : 0;
}

static int by_page(const void *a, const void *b)
{
	const struct cp_zero_extent *x = a, *y = b;

	return x->pgno > y->pgno ? 1 : x->pgno < y->pgno ? -1 : 0;
}

// The longest runs of zero pages, in whole clusters: those become anonymous
// memory, which costs no event and leaves nothing in the template.
static int find_zero_extents(struct eng_snap *sn, struct err *e)
{
	const uint32_t cl = PGC_CLUSTER_PAGES;
	struct cp_zero_extent *all = NULL;
	size_t n = 0, cap = 0;
	struct pgc_run run;

	for (uint64_t at = 0; pgc_snap_run(sn->sn, PGC_MEM, at, &run);
	     at = run.pgno + run.npages) {
		uint64_t from = ALIGN_UP(run.pgno, (uint64_t)cl);
		uint64_t to = ALIGN_DOWN(run.pgno + run.npages, (uint64_t)cl);

		if (run.kind != PGC_RUN_ZERO || to <= from)
			continue;
		if (n == cap) {
			struct cp_zero_extent *m;

			cap = cap ? cap * 2 : 256;
			m = realloc(all, cap * sizeof(*m));
			if (!m) {
				free(all);
				return err_set(e, -ENOMEM, "out of memory");
			}
			all = m;
		}
		all[n++] = (struct cp_zero_extent){(uint32_t)from,
						   (uint32_t)(to - from)};
	}
	if (n > CP_MAX_ZERO_EXTENTS)
		qsort(all, n, sizeof(*all), by_length);
	sn->nzero = (uint32_t)MIN(n, (size_t)CP_MAX_ZERO_EXTENTS);
	if (n)
		memcpy(sn->zero, all, sn->nzero * sizeof(*all));
	qsort(sn->zero, sn->nzero, sizeof(*all), by_page);
	free(all);
	return 0;
}

static int seal_state(const void *state, size_t len, int *out, struct err *e)
{
	cleanup_fd int fd =
	    memfd_create("thaw-state", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int rc;

	if (fd < 0)
		return err_sys(e, "cannot make a memfd for the state");
	rc = util_pwrite_all(fd, state, len, 0);
	if (rc)
		return err_set(e, rc, "cannot write the state: %s",
			       strerror(-rc));
	if (fchmod(fd, 0) < 0 ||
	    fcntl(fd, F_ADD_SEALS,
		  F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return err_sys(e, "cannot seal the state");
	*out = fd_steal(&fd);
	return 0;
}

static int load_state(struct eng_snap *sn, struct err *e)
{
	struct vmm_state_info info;
	size_t len;
	const void *state = pgc_snap_blob(sn->sn, "state", &len);
	uint64_t mem = pgc_snap_pages(sn->sn, PGC_MEM) * PGC_PAGE;
	int rc;

	if (!state)
		return 0; // a disk alone
	rc = vmm_state_check(state, len, &info, e);
	if (!rc)
		rc = vmm_state_host_check(sn->c->cfg.kvm_fd, state, len, e);
	if (rc)
		return err_wrap(e, rc, "the snapshot's saved state");
	if (info.mem_bytes != mem || info.disk_bytes != sn->disk_bytes ||
	    mem >> 20 > VMM_MAX_MEM_MIB)
		return err_set(e, -EBADMSG,
			       "the snapshot's saved state is of another size "
			       "than its memory or disk");
	sn->mem_mib = (uint32_t)(mem >> 20);
	sn->vcpus = info.vcpus;
	sn->state_len = (uint32_t)len;
	rc = seal_state(state, len, &sn->state_fd, e);
	if (!rc)
		rc = find_zero_extents(sn, e);
	return rc;
}

struct load_job {
	struct eng_snap *sn;
	uint32_t *lay; // its list, for lay.c
	size_t nlay;
	int rc;
	struct err err;
};

static void load_work(void *ctx)
{
	struct load_job *j = ctx;
	struct eng_snap *sn = j->sn;

	j->rc = pgc_snap_open(sn->c->store, &sn->id, &sn->sn, &j->err);
	if (j->rc)
		return;
	sn->disk_bytes = pgc_snap_pages(sn->sn, PGC_DISK) * PGC_PAGE;
	j->rc = load_state(sn, &j->err);
	if (!j->rc)
		j->lay = lay_list(sn->sn, &j->nlay);
}

static void load_done(void *ctx)
{
	struct load_job *j = ctx;
	struct eng_snap *sn = j->sn;
	struct snap_load *l;

	sn->c->jobs_running--;
	sn->state = j->rc ? SNAP_FAILED : SNAP_READY;
	sn->err = j->err;
	lay_replace(sn, j->lay, j->nlay);
	free(j);
	while ((l = sn->loads)) {
		sn->loads = l->next;
		l->cb(l->ctx);
		free(l);
	}
	eng_snap_put(sn); // the job's
}

// --- references -------------------------------------------------------------

struct tmpl_free {
	struct eng_cells *c;
	struct pgc_template *t;
};

static void tmpl_free_work(void *ctx)
{
	struct tmpl_free *j = ctx;

	pgc_template_free(j->t);
}

static void tmpl_free_done(void *ctx)
{
	struct tmpl_free *j = ctx;

	j->c->jobs_running--;
	free(j);
}

// A template's memory takes long to give back: that is a worker's.
static void close_template(struct eng_cells *c, struct pgc_template *t)
{
	struct tmpl_free *j = c->stopping ? NULL : malloc(sizeof(*j));

	if (!j) {
		pgc_template_close(t);
		return;
	}
	pgc_template_detach(t);
	*j = (struct tmpl_free){c, t};
	c->jobs_running++;
	eng_job_run(c->jobs, tmpl_free_work, tmpl_free_done, j);
}

static void snap_free(struct eng_snap *sn)
{
	struct eng_snap **p = &sn->c->snaps;

	while (*p != sn)
		p = &(*p)->next;
	*p = sn->next;
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		if (!sn->tmpl[st])
			continue;
		if (!sn->c->keeper_lost)
			eng_keeper_drop(sn->c->cfg.keeper_fd, false,
					sn->tmpl_id[st]);
		close_template(sn->c, sn->tmpl[st]);
	}
	learn_free(sn->learn);
	lay_replace(sn, NULL, 0);
	pgc_snap_unref(sn->sn);
	fd_close(&sn->state_fd);
	free(sn);
}

static int wait_for(struct eng_snap *sn, void (*cb)(void *ctx), void *ctx,
		    struct err *e)
{
	struct snap_load *l = malloc(sizeof(*l)), **tail = &sn->loads;

	if (!l)
		return err_set(e, -ENOMEM, "out of memory");
	*l = (struct snap_load){NULL, cb, ctx};
	while (*tail)
		tail = &(*tail)->next;
	*tail = l;
	return 0;
}

struct eng_snap *eng_snap_get(struct eng_cells *c, const struct pgc_id *id,
			      void (*cb)(void *ctx), void *ctx, struct err *e)
{
	struct eng_snap *sn = eng_snap_find(c, id);
	struct load_job *j;

	if (sn) {
		if (sn->state == SNAP_LOADING && wait_for(sn, cb, ctx, e))
			return NULL;
		sn->refs++;
		sn->evicted = false;
		sn->used_ns = util_now_ns();
		return sn;
	}
	sn = calloc(1, sizeof(*sn));
	j = calloc(1, sizeof(*j));
	if (!sn || !j || (sn->id = *id, wait_for(sn, cb, ctx, e))) {
		free(sn);
		free(j);
		err_set(e, -ENOMEM, "out of memory");
		return NULL;
	}
	sn->c = c;
	sn->used_ns = util_now_ns();
	sn->state_fd = -1;
	sn->refs = 2; // the caller's, and the job's
	sn->next = c->snaps;
	c->snaps = sn;
	j->sn = sn;
	c->jobs_running++;
	eng_job_run(c->jobs, load_work, load_done, j);
	return sn;
}

static bool worth_keeping(const struct eng_snap *sn)
{
	return !sn->drop && !sn->evicted && sn->state == SNAP_READY &&
	       (sn->tmpl[PGC_MEM] || sn->tmpl[PGC_DISK]);
}

void eng_snap_put(struct eng_snap *sn)
{
	if (!sn)
		return;
	sn->used_ns = util_now_ns();
	if (--sn->refs == 0 && !worth_keeping(sn))
		snap_free(sn);
}

void eng_snap_evict(struct eng_snap *sn)
{
	sn->refs++; // prepared cells have theirs
	prepared_forget(sn->c, sn);
	sn->evicted = true;
	eng_snap_put(sn);
}

void eng_snap_forget_all(struct eng_cells *c)
{
	struct eng_snap *sn = c->snaps, *next;

	for (; sn; sn = next) {
		next = sn->next;
		if (sn->refs == 0)
			snap_free(sn);
	}
}

uint64_t eng_template_bytes(const struct eng_cells *c, const struct pgc_id *id)
{
	const struct eng_snap *sn = eng_snap_find(c, id);
	uint64_t bytes = 0;

	for (int st = 0; sn && st < PGC_NUM_STREAMS; st++) {
		if (sn->tmpl[st])
			bytes += pgc_template_resident(sn->tmpl[st]);
	}
	return bytes;
}

void eng_template_release(struct eng_cells *c, const struct pgc_id *id)
{
	struct eng_snap *sn = eng_snap_find(c, id);

	if (sn)
		eng_snap_evict(sn);
}

void eng_template_drop(struct eng_cells *c, const struct pgc_id *id)
{
	struct eng_snap *sn = eng_snap_find(c, id);

	if (!sn)
		return;
	sn->drop = true;
	sn->refs++; // prepared cells have theirs
	prepared_forget(c, sn);
	sn->refs--;
	if (sn->refs == 0)
		snap_free(sn);
}

// --- templates --------------------------------------------------------------

int eng_snap_template(struct eng_snap *sn, enum pgc_stream st, bool prefetch,
		      struct pgc_template **out, struct err *e)
{
	struct pgc_template *t = sn->tmpl[st];
	struct eng_cells *c = sn->c;
	int rc, memfd, uffd;

	*out = t;
	if (t)
		return 0;
	rc = pgc_template_open(sn->sn, st, &t, e);
	if (rc)
		return rc;
	pgc_template_guards(t, &memfd, &uffd);
	sn->tmpl_id[st] = ++c->next_template_id;
	rc = eng_keeper_hold(c->cfg.keeper_fd, ENG_KEEP_TMPL_MEMFD,
			     sn->tmpl_id[st], memfd);
	if (!rc)
		rc = eng_keeper_hold(c->cfg.keeper_fd, ENG_KEEP_TMPL_UFFD,
				     sn->tmpl_id[st], uffd);
	if (rc) {
		pgc_template_close(t);
		return err_set(e, rc,
			       "the descriptor keeper does not take a "
			       "template: %s",
			       strerror(-rc));
	}
	sn->tmpl[st] = *out = t;
	// Without a prefetch every page still comes, by faults.
	if (prefetch && pgc_template_prefetch(t, e))
		log_warn("prefetch of a working set: %s", e->msg);
	return 0;
}

bool eng_snap_in_zero(const struct eng_snap *sn, uint64_t pgno, uint64_t *end)
{
	uint32_t lo = 0, hi = sn->nzero;

	while (lo < hi) { // first extent that ends after pgno
		uint32_t mid = (lo + hi) / 2;
		const struct cp_zero_extent *z = &sn->zero[mid];

		if ((uint64_t)z->pgno + z->npages <= pgno)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo == sn->nzero) {
		*end = UINT64_MAX;
		return false;
	}
	if (pgno < sn->zero[lo].pgno) {
		*end = sn->zero[lo].pgno;
		return false;
	}
	*end = (uint64_t)sn->zero[lo].pgno + sn->zero[lo].npages;
	return true;
}
