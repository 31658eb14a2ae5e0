// Filling templates: from "these clusters, please" to installed pages.
//
// What requests do with a cluster (template.cl; only this file and template.c's
// requests move it, on the owner's thread):
//	IDLE     nothing
//	QUEUED   in a request; no read yet
//	READING  in a batch; its completion will be reported
// Which pages are there is another matter (template.in): prefetch brings single
// pages, so a cluster may have some of its pages when it is asked for; a fill
// then brings the rest.
//
// Requests wait in two queues (urgent, background);
// a background cluster that becomes urgent is simply queued again, and whoever
// reaches it first takes it. From the queues come *batches*: some clusters, the
// reads for their records, one buffer. A batch whose reads are done is *ready*;
// draining decodes and installs it cluster by cluster, urgent batches first, a
// bounded number a call. Prefetch has its own way (prefetch.c): it marks pages as
// coming, and what it is done with is reported here.
#include <stdlib.h>

#include "pgc_internal.h"

enum {
	BATCH_CLUSTERS = 16,	   // of a request: 1 MiB of pages
	MAX_BATCHES = 24,	   // in flight for urgent requests
	MAX_BACKGROUND = 4,	   // in flight when others want more
	FILL_GAP = 4096,	   // neighbours this close are one read
	DRAIN_MAX = 32,		   // clusters installed by one drain,
	DRAIN_MAX_BACKGROUND = 16, // of them such that nobody waits for
	DRAIN_NS = 2000000,	   // and after so long it is enough
};

struct request {
	struct request *next;
	struct pgc_template *t;
	uint64_t first, count;
};

struct batch {
	struct batch *next;
	struct pgc_template *t; // NULL: closed meanwhile, drop the pages
	struct pgc_snap *snap;	// keeps the packs' descriptors
	bool urgent;
	int rc;
	unsigned pending, nclusters, at;
	uint64_t clusters[BATCH_CLUSTERS];
	struct plan plan;
	struct io_read *reads;
	uint8_t *buf;
};

struct filler {
	struct pgc_store *s;
	struct io *io;
	struct request *queue[2], **tail[2]; // [urgent]
	struct batch *active;		     // reads under way
	struct batch *ready;		     // reads done, or failed at birth
	unsigned nrequest;		     // batches, any state
	uint8_t *pages;			     // one decoded cluster
	struct prefetcher *pf;
	struct pf_slice *slice; // being reported
};

int filler_create(struct filler **out, struct pgc_store *s, bool no_uring,
		  struct err *e)
{
	struct filler *f = calloc(1, sizeof(*f));
	int rc;

	if (!f)
		return err_set(e, -ENOMEM, "no memory for page reads");
	f->s = s;
	for (int i = 0; i < 2; i++)
		f->tail[i] = &f->queue[i];
	f->pages = malloc((size_t)PGC_CLUSTER_PAGES * PGC_PAGE);
	rc = f->pages ? io_create(&f->io, no_uring, e)
		      : err_set(e, -ENOMEM, "no memory for page reads");
	if (!rc)
		rc = pf_create(&f->pf, f->io, e);
	if (rc) {
		filler_destroy(f);
		return rc;
	}
	*out = f;
	return 0;
}

static void batch_free(struct batch *b)
{
	plan_fini(&b->plan);
	free(b->reads);
	free(b->buf);
	pgc_snap_unref(b->snap);
	free(b);
}

static void batches_free(struct batch *b)
{
	while (b) {
		struct batch *next = b->next;

		batch_free(b);
		b = next;
	}
}

void filler_destroy(struct filler *f)
{
	if (!f)
		return;
	pf_destroy(f->pf); // its workers poke io
	pf_slice_free(f->slice);
	io_destroy(f->io);
	batches_free(f->active);
	batches_free(f->ready);
	for (int i = 0; i < 2; i++) {
		while (f->queue[i]) {
			struct request *r = f->queue[i];

			f->queue[i] = r->next;
			free(r);
		}
	}
	free(f->pages);
	free(f);
}

int filler_fd(const struct filler *f)
{
	return io_fd(f->io);
}

bool filler_is_uring(const struct filler *f)
{
	return io_is_uring(f->io);
}

struct prefetcher *filler_prefetcher(struct filler *f)
{
	return f->pf;
}

void filler_forget(struct filler *f, struct pgc_template *t)
{
	pf_forget(f->pf, t);
	if (f->slice && f->slice->t == t) {
		pf_slice_free(f->slice);
		f->slice = NULL;
	}
	for (int i = 0; i < 2; i++) {
		struct request **at = &f->queue[i];

		while (*at) {
			struct request *r = *at;

			if (r->t == t) {
				*at = r->next;
				free(r);
			} else {
				at = &r->next;
			}
		}
		f->tail[i] = at;
	}
	for (struct batch *b = f->active; b; b = b->next)
		if (b->t == t)
			b->t = NULL;
	for (struct batch *b = f->ready; b; b = b->next)
		if (b->t == t)
			b->t = NULL;
}

// A batch that already reads one of these clusters goes before others, and in
// it those clusters before the rest.
static void hurry(struct filler *f, struct batch *b,
		  const struct pgc_template *t, uint64_t first, uint64_t count)
{
	unsigned front = b->at;

	for (unsigned i = b->at; i < b->nclusters && b->t == t; i++) {
		uint64_t c = b->clusters[i];

		if (c < first || c - first >= count)
			continue;
		b->clusters[i] = b->clusters[front];
		b->clusters[front++] = c;
	}
	if (front > b->at && !b->urgent) {
		b->urgent = true;
		io_hurry(f->io, b);
	}
}

int filler_request(struct filler *f, struct pgc_template *t, uint64_t first,
		   uint64_t count, bool urgent)
{
	struct request *r = malloc(sizeof(*r));

	if (!r)
		return -ENOMEM;
	*r = (struct request){NULL, t, first, count};
	*f->tail[urgent] = r;
	f->tail[urgent] = &r->next;
	if (!urgent)
		return 0;
	for (struct batch *b = f->active; b; b = b->next)
		hurry(f, b, t, first, count);
	for (struct batch *b = f->ready; b; b = b->next)
		hurry(f, b, t, first, count);
	return 0;
}

// --- batches -----------------------------------------------------------------

static int batch_reads(struct filler *f, struct batch *b)
{
	struct plan *p = &b->plan;

	plan_layout(p, FILL_GAP);
	b->buf = malloc(p->bytes + 1);
	b->reads = calloc(p->nreads + 1, sizeof(*b->reads));
	if (!b->buf || !b->reads)
		return -ENOMEM;
	b->pending = p->nreads;
	for (uint32_t i = 0; i < p->nreads; i++) {
		b->reads[i] = (struct io_read){
		    .batch = b,
		    .fd = p->reads[i].pack->fd,
		    .off = p->reads[i].off,
		    .len = p->reads[i].len,
		    .buf = b->buf + p->reads[i].pos,
		    .urgent = b->urgent,
		};
	}
	plan_by_page(p);
	for (uint32_t i = 0; i < p->nreads; i++)
		io_queue(f->io, &b->reads[i]);
	return 0;
}

static void ready_add(struct filler *f, struct batch *b)
{
	struct batch **at = &f->ready;

	while (*at)
		at = &(*at)->next;
	b->next = NULL;
	*at = b;
	io_poke(f->io);
}

// Starts reading the clusters listed in b. A batch that fails here reports that
// through its completions, like one that fails later.
static void batch_start(struct filler *f, struct batch *b)
{
	struct pgc_template *t = b->t;

	b->rc = plan_init(&b->plan, b->nclusters * PGC_CLUSTER_PAGES);
	for (unsigned i = 0; i < b->nclusters; i++) {
		uint64_t at = b->clusters[i] * PGC_CLUSTER_PAGES;

		t->cl[b->clusters[i]] = CL_READING;
		if (!b->rc)
			plan_add(
			    &b->plan, t->snap->map, t->st, at,
			    MIN((uint64_t)PGC_CLUSTER_PAGES, t->npages - at));
	}
	f->nrequest++;
	if (!b->rc)
		b->rc = batch_reads(f, b);
	if (b->rc) {
		ready_add(f, b);
		return;
	}
	b->next = f->active;
	f->active = b;
}

static struct batch *batch_new(struct pgc_template *t, bool urgent)
{
	struct batch *b = calloc(1, sizeof(*b));

	if (b) {
		b->t = t;
		b->snap = pgc_snap_ref(t->snap);
		b->urgent = urgent;
	}
	return b;
}

// Takes queued clusters off the head request; false when the queue is empty.
static bool pump_request(struct filler *f, bool urgent)
{
	struct batch *b = NULL;
	struct request *r;

	while ((r = f->queue[urgent]) &&
	       (!b || b->nclusters < BATCH_CLUSTERS) && (!b || b->t == r->t)) {
		uint64_t c = r->first;

		if (r->count == 0) {
			f->queue[urgent] = r->next;
			if (!r->next)
				f->tail[urgent] = &f->queue[urgent];
			free(r);
			if (b)
				break; // one request's clusters belong together
			continue;
		}
		r->first++;
		r->count--;
		if (r->t->cl[c] != CL_QUEUED)
			continue;
		if (!b)
			b = batch_new(r->t, urgent);
		if (!b) { // tried again at the next drain
			r->first--;
			r->count++;
			io_poke(f->io);
			return false;
		}
		b->clusters[b->nclusters++] = c;
	}
	if (b)
		batch_start(f, b);
	return b != NULL;
}

void filler_pump(struct filler *f)
{
	while (f->nrequest < MAX_BATCHES && pump_request(f, true))
		;
	while (f->nrequest < MAX_BACKGROUND && !f->queue[1] &&
	       pump_request(f, false))
		;
	io_submit(f->io);
}

// --- completion --------------------------------------------------------------

static void reap(struct filler *f)
{
	struct io_read *r, *next;

	for (r = io_reap(f->io); r; r = next) {
		struct batch *b = r->batch, **at;

		next = r->next;
		if (r->rc && !b->rc)
			b->rc = r->rc == -ENODATA ? -EBADMSG : -EIO;
		if (--b->pending)
			continue;
		for (at = &f->active; *at != b; at = &(*at)->next)
			;
		*at = b->next;
		ready_add(f, b);
	}
}

static const struct plan_page *first_of(const struct plan *p, uint64_t pgno)
{
	uint32_t lo = 0, hi = p->npages;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (p->pages[mid].pgno < pgno)
			lo = mid + 1;
		else
			hi = mid;
	}
	return p->pages + lo;
}

// Decodes those pages of a cluster that are in `mask`.
static int decode(struct filler *f, struct batch *b, uint64_t cluster,
		  uint16_t mask, char *why, size_t nwhy)
{
	uint64_t at = cluster * PGC_CLUSTER_PAGES;
	const struct plan_page *g = first_of(&b->plan, at);
	const struct plan_page *end = b->plan.pages + b->plan.npages;

	for (; g < end && g->pgno < at + PGC_CLUSTER_PAGES; g++) {
		const char *text = "";
		int rc;

		if (!(mask >> (g->pgno - at) & 1))
			continue;
		rc = rec_decode(b->buf + g->pos, g->pack->uid, g->loc, g->key,
				f->pages + (g->pgno - at) * PGC_PAGE, &text);
		if (rc) {
			snprintf(why, nwhy,
				 "page %llu is corrupt: %s (pack %016llx, "
				 "byte %u)",
				 (unsigned long long)g->pgno, text,
				 (unsigned long long)g->pack->uid,
				 loc_off(g->loc));
			return rc;
		}
	}
	return 0;
}

// Decodes and installs what the cluster lacks.
static int install(struct filler *f, struct batch *b, uint64_t cluster,
		   struct pgc_done *out)
{
	uint16_t mask = template_lacks(b->t, out->pgno, out->npages);
	int rc;

	if (b->t->exact)
		mask &= b->t->want[cluster];
	b->t->want[cluster] = 0;
	rc = decode(f, b, cluster, mask, out->why, sizeof(out->why));
	for (unsigned i = 0, k; mask >> i && !rc; i += k) {
		k = 1;
		if (!(mask >> i & 1))
			continue;
		while (mask >> (i + k) & 1)
			k++;
		rc = template_install(b->t, out->pgno + i, k,
				      f->pages + i * PGC_PAGE, out->why,
				      sizeof(out->why));
	}
	return rc;
}

static void finish_cluster(struct filler *f, struct batch *b, uint64_t cluster,
			   struct pgc_done *out)
{
	struct pgc_template *t = b->t;
	uint64_t at = cluster * PGC_CLUSTER_PAGES;

	memset(out, 0, sizeof(*out));
	out->t = t;
	out->pgno = at;
	out->npages = MIN((uint64_t)PGC_CLUSTER_PAGES, t->npages - at);
	out->rc = b->rc;
	if (b->rc)
		snprintf(out->why, sizeof(out->why),
			 "pages from %llu cannot be read: %s",
			 (unsigned long long)at,
			 b->rc == -EBADMSG ? "their pack is cut off"
					   : strerror(-b->rc));
	else
		out->rc = install(f, b, cluster, out);
	t->cl[cluster] = CL_IDLE;
	if (!out->rc)
		template_filled(t, cluster);
}

// The next pages of a slice's frame, neighbours in one cluster; false: no more.
static bool next_pages(struct pf_slice *sl, uint64_t *first, uint64_t *n)
{
	const uint32_t *pgnos;
	unsigned all = ws_frame_pages(sl->w, sl->c[sl->at].frame, &pgnos);

	if (sl->page == all)
		return false;
	*first = pgnos[sl->page++] & ~PGC_WRITTEN;
	for (*n = 1; sl->page < all; (*n)++, sl->page++) {
		uint64_t next = pgnos[sl->page] & ~PGC_WRITTEN;

		if (next != *first + *n || next % PGC_CLUSTER_PAGES == 0)
			break;
	}
	return true;
}

// Pages that could not be had from the working set's file are asked for from the
// packs, and nothing is said yet: somebody may wait for them.
static int from_packs(struct filler *f, struct pgc_template *t, uint64_t c)
{
	t->want[c] = UINT16_MAX;
	if (t->cl[c] != CL_IDLE)
		return 0; // was asked for meanwhile
	t->cl[c] = CL_QUEUED;
	if (!filler_request(f, t, c, 1, true))
		return 0;
	t->cl[c] = CL_IDLE;
	return -ENOMEM;
}

// The next pages that prefetch has dealt with.
static bool report_slice(struct filler *f, struct pgc_done *out)
{
	while (f->slice || (f->slice = pf_take(f->pf))) {
		struct pf_slice *sl = f->slice;
		struct pgc_template *t = sl->t;
		uint64_t first, n;
		int rc;

		if (sl->at == sl->n) {
			pf_slice_free(sl);
			f->slice = NULL;
			continue;
		}
		if (!next_pages(sl, &first, &n)) {
			sl->at++;
			sl->page = 0;
			continue;
		}
		rc = sl->c[sl->at].rc;
		if (sl->c[sl->at].from_packs) {
			if (!template_lacks(t, first, n))
				rc = 0;
			else if (!(rc = from_packs(f, t,
						   first / PGC_CLUSTER_PAGES)))
				continue;
		}
		memset(out, 0, sizeof(*out));
		out->t = t;
		out->pgno = first;
		out->npages = n;
		out->rc = rc;
		if (sl->c[sl->at].why)
			snprintf(out->why, sizeof(out->why), "%s",
				 sl->c[sl->at].why);
		if (!rc)
			template_filled(t, first / PGC_CLUSTER_PAGES);
		return true;
	}
	return false;
}

// The next ready batch: urgent, else of a request.
static struct batch **pick(struct filler *f)
{
	struct batch **best = NULL;
	int rank = 2;

	for (struct batch **at = &f->ready; *at; at = &(*at)->next) {
		int r = (*at)->urgent || !(*at)->t ? 0 : 1;

		if (r < rank) {
			rank = r;
			best = at;
		}
	}
	return best;
}

size_t filler_drain(struct filler *f, struct pgc_done *out, size_t max)
{
	unsigned work = 0, background = 0;
	uint64_t enough = util_now_ns() + DRAIN_NS;
	struct batch **at, *b;
	size_t n = 0;

	io_clear(f->io);
	reap(f);
	while (n < max && work < DRAIN_MAX &&
	       background < DRAIN_MAX_BACKGROUND && (at = pick(f)) &&
	       (!work || util_now_ns() < enough)) {
		b = *at;
		if (b->t && b->at < b->nclusters) {
			finish_cluster(f, b, b->clusters[b->at++], &out[n++]);
			work++;
			background += !b->urgent;
		}
		if (!b->t || b->at == b->nclusters) {
			*at = b->next;
			f->nrequest--;
			batch_free(b);
		}
	}
	while (n < max && report_slice(f, &out[n]))
		n++;
	filler_pump(f);
	if (f->ready || n == max)
		io_poke(f->io);
	return n;
}

int pgc_event_fd(const struct pgc_store *s)
{
	return filler_fd(s->filler);
}

size_t pgc_drain(struct pgc_store *s, struct pgc_done *out, size_t max)
{
	return filler_drain(s->filler, out, max);
}
