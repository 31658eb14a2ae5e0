// Filling templates: from "these clusters, please" to installed pages.
//
// A cluster's states (template.cl):
//	MISSING  nobody asked, or the last try failed
//	QUEUED   in a request; no read yet
//	READING  in a batch; its completion will be reported
//	FILLED   all its non-zero pages are in the memfd
// Only this file moves them. Requests wait in two queues (urgent, background);
// a background cluster that becomes urgent is simply queued again, and whoever
// reaches it first takes it. From the queues come *batches*: some clusters, the
// reads for their records, one buffer. A batch whose reads are done is *ready*;
// draining decodes and installs it cluster by cluster, urgent batches first, a
// bounded number a call. Prefetch makes batches of its own, larger, in pack
// order, and only while nothing urgent is under way.
#include <stdlib.h>

#include "pgc_internal.h"

enum {
	BATCH_CLUSTERS = 16,	// of a request: 1 MiB of pages
	PREFETCH_CLUSTERS = 32, // of a prefetch
	MAX_BATCHES = 24,	// in flight for urgent requests
	MAX_BACKGROUND = 4,	// in flight when others want more
	MAX_PREFETCH = 2,	// in flight for prefetch
	PREFETCH_WINDOW = 256,	// clusters sorted together into pack order
	FILL_GAP = 4096,	// neighbours this close are one read
	PREFETCH_GAP = 65536,
	DRAIN_MAX = 64,		   // clusters installed by one drain,
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
	bool urgent, prefetch;
	int rc;
	unsigned pending, nclusters, at;
	uint64_t clusters[PREFETCH_CLUSTERS];
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
	unsigned nrequest, nprefetch;	     // batches of each sort, any state
	uint8_t *pages;			     // one decoded cluster
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

void filler_forget(struct filler *f, struct pgc_template *t)
{
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

	plan_layout(p, b->prefetch ? PREFETCH_GAP : FILL_GAP);
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
	b->prefetch ? f->nprefetch++ : f->nrequest++;
	if (!b->rc)
		b->rc = batch_reads(f, b);
	if (b->rc) {
		ready_add(f, b);
		return;
	}
	b->next = f->active;
	f->active = b;
}

static struct batch *batch_new(struct pgc_template *t, bool urgent,
			       bool prefetch)
{
	struct batch *b = calloc(1, sizeof(*b));

	if (b) {
		b->t = t;
		b->snap = pgc_snap_ref(t->snap);
		b->urgent = urgent;
		b->prefetch = prefetch;
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
			b = batch_new(r->t, urgent, false);
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

static bool pump_prefetch(struct filler *f)
{
	for (struct pgc_template *t = f->s->templates; t; t = t->next) {
		struct batch *b = NULL;

		while (t->pf_at < t->pf_n &&
		       (!b || b->nclusters < PREFETCH_CLUSTERS)) {
			uint32_t c = t->pf[t->pf_at];

			if (t->cl[c] == CL_MISSING) {
				if (!b)
					b = batch_new(t, false, true);
				if (!b)
					return false;
				b->clusters[b->nclusters++] = c;
			}
			t->pf_at++;
		}
		if (t->pf_at == t->pf_n) {
			free(t->pf);
			t->pf = NULL;
			t->pf_n = t->pf_at = 0;
		}
		if (b) {
			batch_start(f, b);
			return true;
		}
	}
	return false;
}

void filler_pump(struct filler *f)
{
	while (f->nrequest < MAX_BATCHES && pump_request(f, true))
		;
	while (f->nrequest < MAX_BACKGROUND && !f->queue[1] &&
	       pump_request(f, false))
		;
	while (f->nrequest == 0 && f->nprefetch < MAX_PREFETCH &&
	       pump_prefetch(f))
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

static int decode(struct filler *f, struct batch *b, uint64_t cluster,
		  char *why, size_t nwhy)
{
	uint64_t at = cluster * PGC_CLUSTER_PAGES;
	const struct plan_page *g = first_of(&b->plan, at);
	const struct plan_page *end = b->plan.pages + b->plan.npages;

	for (; g < end && g->pgno < at + PGC_CLUSTER_PAGES; g++) {
		const char *text = "";
		int rc =
		    rec_decode(b->buf + g->pos, g->pack->uid, g->loc, g->key,
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
		out->rc = decode(f, b, cluster, out->why, sizeof(out->why));
	if (!out->rc)
		out->rc = template_install(t, cluster, f->pages, out->why,
					   sizeof(out->why));
	t->cl[cluster] = out->rc ? CL_MISSING : CL_FILLED;
}

// The next ready batch: urgent, else of a request, else of prefetch.
static struct batch **pick(struct filler *f)
{
	struct batch **best = NULL;
	int rank = 3;

	for (struct batch **at = &f->ready; *at; at = &(*at)->next) {
		int r = (*at)->urgent || !(*at)->t ? 0
			: (*at)->prefetch	   ? 2
						   : 1;

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
			b->prefetch ? f->nprefetch-- : f->nrequest--;
			batch_free(b);
		}
	}
	filler_pump(f);
	if (f->ready)
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

// --- prefetch ----------------------------------------------------------------

struct pf_key {
	uint64_t loc;
	uint32_t cluster;
};

static int by_loc(const void *a, const void *b)
{
	uint64_t x = ((const struct pf_key *)a)->loc;
	uint64_t y = ((const struct pf_key *)b)->loc;

	return x < y ? -1 : x > y;
}

// Location of a cluster's first record; 0: it has none.
static uint64_t cluster_loc(const struct pgc_template *t, uint64_t cluster)
{
	uint64_t pgno = cluster * PGC_CLUSTER_PAGES;
	uint64_t end = MIN(pgno + PGC_CLUSTER_PAGES, t->npages);

	while (pgno < end) {
		struct mseg g;

		map_seg(t->snap->map, t->st, pgno, &g);
		if (g.data)
			return seg_loc(&g, 0);
		pgno += g.npages;
	}
	return 0;
}

int pgc_template_prefetch(struct pgc_template *t, struct err *e)
{
	const uint32_t *ws = t->snap->ws[t->st];
	size_t nws = t->snap->nws[t->st], n = 0;
	cleanup_free struct pf_key *keys = NULL;
	cleanup_free uint8_t *seen = NULL;
	uint32_t *list;

	if (!nws || t->pf)
		return 0;
	keys = malloc(MIN(nws, t->nclusters) * sizeof(*keys));
	seen = calloc(1, t->nclusters + 1);
	list = malloc(MIN(nws, t->nclusters) * sizeof(*list));
	if (!keys || !seen || !list) {
		free(list);
		return err_set(e, -ENOMEM, "no memory to prefetch");
	}
	for (size_t i = 0; i < nws; i++) {
		uint32_t c = ws[i] / PGC_CLUSTER_PAGES;
		uint64_t loc;

		if (seen[c] || t->cl[c] != CL_MISSING)
			continue;
		seen[c] = 1;
		loc = cluster_loc(t, c);
		if (loc)
			keys[n++] = (struct pf_key){loc, c};
	}
	for (size_t i = 0; i < n; i += PREFETCH_WINDOW)
		qsort(keys + i, MIN(n - i, (size_t)PREFETCH_WINDOW),
		      sizeof(*keys), by_loc);
	for (size_t i = 0; i < n; i++)
		list[i] = keys[i].cluster;
	t->pf = list;
	t->pf_n = n;
	t->pf_at = 0;
	filler_pump(t->s->filler);
	return 0;
}
