// Prefetch: a snapshot's working set from its file into a template, by threads
// of its own, so that the loop is free for faults.
//
// Threads. The owner adds jobs and takes slices; a few workers, made with the
// first job, do the rest under one lock. A job is one template's working set, read
// in its order. A worker takes the next *slice* of it (some hundred KiB, a
// contiguous stretch of the file), marks its pages as coming (so that a fault on
// one waits for it), reads with one pread, decodes, verifies, installs, and hands
// the slice back for the owner to tell who waits. Several workers are what keeps
// the disk busy while others decode. A page that somebody else brought meanwhile
// stays as it is.
//
// Pages that cannot be had from the file (damaged, cut off, unreadable) are asked
// for from the packs; the file is then given up.
#include <signal.h>
#include <stdlib.h>

#include "pgc_internal.h"

enum {
	MAX_THREADS = 4,
	SLICE_BYTES = 256 * 1024, // of the file, from the fifth slice on;
	SLICE_FIRST = 64 * 1024,  // the first come sooner
	READ_BUF = SLICE_BYTES + WS_FRAME_MAX + 2 * WS_ALIGN,
};

struct pf_job {
	struct pf_job *next;
	struct pgc_template *t; // NULL: closed, drop it
	struct workset *w;
	size_t at;
	unsigned running, slices;
	bool broken;
};

struct prefetcher {
	struct io *io;
	pthread_mutex_t lock;
	pthread_cond_t work, idle;
	struct pf_job *jobs;
	struct pf_slice *done, **done_tail;
	pthread_t threads[MAX_THREADS];
	unsigned nthreads;
	bool stop;
};

int pf_create(struct prefetcher **out, struct io *io, struct err *e)
{
	struct prefetcher *f = calloc(1, sizeof(*f));

	if (!f)
		return err_set(e, -ENOMEM, "no memory to prefetch");
	f->io = io;
	f->done_tail = &f->done;
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->work, NULL);
	pthread_cond_init(&f->idle, NULL);
	*out = f;
	return 0;
}

void pf_slice_free(struct pf_slice *sl)
{
	if (!sl)
		return;
	for (unsigned i = 0; i < sl->n; i++)
		free(sl->c[i].why);
	ws_unref(sl->w);
	free(sl);
}

void pf_destroy(struct prefetcher *f)
{
	if (!f)
		return;
	must_lock(&f->lock);
	f->stop = true;
	pthread_cond_broadcast(&f->work);
	must_unlock(&f->lock);
	for (unsigned i = 0; i < f->nthreads; i++)
		pthread_join(f->threads[i], NULL);
	while (f->jobs) {
		struct pf_job *j = f->jobs;

		f->jobs = j->next;
		ws_unref(j->w);
		free(j);
	}
	while (f->done) {
		struct pf_slice *sl = f->done;

		f->done = sl->next;
		pf_slice_free(sl);
	}
	pthread_cond_destroy(&f->work);
	pthread_cond_destroy(&f->idle);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

// --- workers -----------------------------------------------------------------

// Marks pages of a frame as coming, or (off) as not coming any more. True: some
// of them are to be brought.
static bool mark_coming(struct pgc_template *t, const struct workset *w,
			size_t frame, bool on)
{
	const uint32_t *pgnos;
	unsigned n = ws_frame_pages(w, frame, &pgnos);
	bool some = false;

	for (unsigned i = 0; i < n; i++) {
		uint32_t pgno = pgnos[i] & ~PGC_WRITTEN;
		uint32_t c = pgno / PGC_CLUSTER_PAGES;
		uint16_t bit = (uint16_t)(1u << pgno % PGC_CLUSTER_PAGES);

		if (!on)
			atomic_fetch_and(&t->coming[c], (uint16_t)~bit);
		else if (t->cl[c] != CL_IDLE || !template_lacks(t, pgno, 1))
			continue; // somebody else does
		else
			atomic_fetch_or(&t->coming[c], bit);
		some = true;
	}
	return some;
}

// The next slice of a job: its frames that have something to bring.
static struct pf_slice *take_slice(struct pf_job *j)
{
	unsigned step = MIN(j->slices / 2, 2u);
	uint64_t limit = MIN((uint64_t)SLICE_FIRST << step, SLICE_BYTES);
	struct pf_slice *sl = calloc(1, sizeof(*sl));
	uint64_t bytes = 0;

	if (!sl)
		return NULL; // these pages come by faults
	sl->t = j->t;
	atomic_fetch_add(&j->w->refs, 1);
	sl->w = j->w;
	while (j->at < j->w->n && sl->n < PF_SLICE_MAX && bytes < limit) {
		size_t frame = j->at++;
		uint32_t len = j->w->frames[frame].len;

		if (!len || !mark_coming(j->t, j->w, frame, true)) {
			if (sl->n && len)
				break; // what is read stays without gaps
			continue;
		}
		sl->c[sl->n++].frame = frame;
		bytes += len;
	}
	j->slices++;
	return sl;
}

// Installs a frame's decoded pages, neighbours together.
static int install_frame(struct pgc_template *t, const struct workset *w,
			 size_t frame, const uint8_t *pages, char *text,
			 size_t ntext)
{
	const uint32_t *pgnos;
	unsigned n = ws_frame_pages(w, frame, &pgnos), i = 0, k;
	struct mseg g = {0};
	int rc = 0;

	for (; i < n && !rc; i += k) {
		uint64_t pgno = pgnos[i] & ~PGC_WRITTEN, most;

		k = 1;
		map_seg(t->snap->map, t->st, pgno, &g);
		if (!g.data)
			continue;
		most =
		    MIN(g.npages, PGC_CLUSTER_PAGES - pgno % PGC_CLUSTER_PAGES);
		while (i + k < n && k < most &&
		       (pgnos[i + k] & ~PGC_WRITTEN) == pgno + k)
			k++;
		rc = template_install(t, pgno, k, pages, text, ntext);
		pages += k * PGC_PAGE;
	}
	return rc;
}

static int fill_one(struct pgc_template *t, const struct workset *w,
		    size_t frame, const uint8_t *data, uint8_t *pages,
		    char **out)
{
	char text[sizeof(((struct pgc_done *)0)->why)];
	const char *why;
	int rc = ws_decode(t->snap->map, t->st, w, frame, data, pages, &why);

	if (rc)
		return rc; // from the packs, then
	rc = install_frame(t, w, frame, pages, text, sizeof(text));
	if (rc)
		*out = strdup(text);
	return rc;
}

static void fill_slice(struct pf_slice *sl, uint8_t *buf, uint8_t *pages)
{
	const struct ws_frame *frames = sl->w->frames;
	const struct ws_frame *first = &frames[sl->c[0].frame];
	const struct ws_frame *last = &frames[sl->c[sl->n - 1].frame];
	uint64_t from = ALIGN_DOWN(first->off, (uint64_t)WS_ALIGN);
	uint64_t to = ALIGN_UP(last->off + last->len, (uint64_t)WS_ALIGN);
	int rc = util_pread_all(sl->w->fd, buf, to - from, (off_t)from);

	for (unsigned i = 0; i < sl->n; i++) {
		size_t k = sl->c[i].frame;
		int one =
		    rc ? -EBADMSG
		       : fill_one(sl->t, sl->w, k, buf + (frames[k].off - from),
				  pages, &sl->c[i].why);

		sl->c[i].rc = one;
		sl->c[i].from_packs = one && !sl->c[i].why;
		mark_coming(sl->t, sl->w, k, false);
	}
}

static struct pf_job *next_job(struct prefetcher *f)
{
	struct pf_job *j = f->jobs;

	while (j && (!j->t || j->broken || j->at >= j->w->n))
		j = j->next;
	return j;
}

static void reap_job(struct prefetcher *f, struct pf_job *j)
{
	struct pf_job **at = &f->jobs;

	if (j->running || (j->t && !j->broken && j->at < j->w->n))
		return;
	while (*at != j)
		at = &(*at)->next;
	*at = j->next;
	ws_unref(j->w);
	free(j);
	pthread_cond_broadcast(&f->idle);
}

static void hand_back(struct prefetcher *f, struct pf_slice *sl)
{
	sl->next = NULL;
	*f->done_tail = sl;
	f->done_tail = &sl->next;
	io_poke(f->io);
}

static void *pf_thread(void *arg)
{
	struct prefetcher *f = arg;
	uint8_t *buf = aligned_alloc(WS_ALIGN, READ_BUF);
	uint8_t *pages = aligned_alloc(WS_ALIGN, WS_FRAME_MAX);

	must_lock(&f->lock);
	while (buf && pages && !f->stop) {
		struct pf_job *j = next_job(f);
		struct pf_slice *sl;

		if (!j) {
			pthread_cond_wait(&f->work, &f->lock);
			continue;
		}
		sl = take_slice(j);
		if (!sl || !sl->n) {
			j->broken = j->broken || !sl;
			pf_slice_free(sl);
			reap_job(f, j);
			continue;
		}
		j->running++;
		must_unlock(&f->lock);
		fill_slice(sl, buf, pages);
		must_lock(&f->lock);
		for (unsigned i = 0; i < sl->n; i++)
			j->broken = j->broken || sl->c[i].rc;
		j->running--;
		if (j->t)
			hand_back(f, sl);
		else
			pf_slice_free(sl);
		reap_job(f, j);
	}
	must_unlock(&f->lock);
	free(buf);
	free(pages);
	return NULL;
}

static void threads_start(struct prefetcher *f)
{
	sigset_t all, old;

	sigfillset(&all); // signals are the loop's
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (f->nthreads < MAX_THREADS &&
	       !pthread_create(&f->threads[f->nthreads], NULL, pf_thread, f))
		f->nthreads++;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

// --- the owner's side --------------------------------------------------------

struct pf_slice *pf_take(struct prefetcher *f)
{
	struct pf_slice *sl;

	must_lock(&f->lock);
	sl = f->done;
	if (sl) {
		f->done = sl->next;
		if (!f->done)
			f->done_tail = &f->done;
	}
	must_unlock(&f->lock);
	return sl;
}

static bool is_listed(const struct prefetcher *f, const struct pf_job *j)
{
	const struct pf_job *k = f->jobs;

	while (k && k != j)
		k = k->next;
	return k;
}

// Afterwards no worker has the template, and none of its slices is left.
void pf_forget(struct prefetcher *f, const struct pgc_template *t)
{
	struct pf_slice **at, *sl;
	struct pf_job *j;

	must_lock(&f->lock);
	for (j = f->jobs; j && j->t != t; j = j->next)
		;
	if (j) {
		j->t = NULL;
		reap_job(f, j);
		while (is_listed(f, j)) // for a slice of each worker
			pthread_cond_wait(&f->idle, &f->lock);
	}
	for (at = &f->done; (sl = *at);) {
		if (sl->t == t) {
			*at = sl->next;
			pf_slice_free(sl);
		} else {
			at = &sl->next;
		}
	}
	f->done_tail = at;
	must_unlock(&f->lock);
}

int pgc_template_prefetch(struct pgc_template *t, struct err *e)
{
	struct prefetcher *f = filler_prefetcher(t->s->filler);
	struct workset *w = t->snap->ws[t->st];
	struct pf_job *j, **at;
	bool busy = false;

	if (!w || !w->n)
		return 0;
	j = calloc(1, sizeof(*j));
	if (!j)
		return err_set(e, -ENOMEM, "no memory to prefetch");
	threads_start(f);
	if (!f->nthreads) {
		free(j);
		return err_set(e, -EAGAIN, "no thread to prefetch with");
	}
	j->t = t;
	j->w = w;
	must_lock(&f->lock);
	for (at = &f->jobs; *at; at = &(*at)->next)
		busy = busy || (*at)->t == t;
	if (busy) {
		free(j);
	} else {
		atomic_fetch_add(&w->refs, 1);
		*at = j;
		pthread_cond_broadcast(&f->work);
	}
	must_unlock(&f->lock);
	return 0;
}

bool pgc_template_prefetching(const struct pgc_template *t)
{
	struct prefetcher *f = filler_prefetcher(t->s->filler);
	const struct pf_job *j;

	must_lock(&f->lock);
	for (j = f->jobs; j && j->t != t; j = j->next)
		;
	must_unlock(&f->lock);
	return j;
}
