// The copy between a parked guest and the builder.
//
// Where the time goes, for 24 MB (docs/PERFORMANCE.md): moving the bytes takes 3
// to 5 ms, and the faults of a destination that is not there yet take 15 more.
// So the arena is made, of huge pages where they can be had, and touched before
// the guest is asked to stop.
//
// Memory is bounded: all arenas share a budget, and who finds it spent gets
// ARENA_MIN and goes through it in rounds, with the guest parked.
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include "capcopy.h"
#include "procstate.h"

#ifndef MADV_POPULATE_WRITE // Linux 5.14
#define MADV_POPULATE_WRITE 23
#endif

enum {
	PIECE_PAGES = 256, // read at once
	HELP_PIECES = 8,   // from here on, two threads read
	PUT_PAGES = 256,
	ARENA_MIN = PUT_PAGES * PGC_PAGE,
	HUGE_PAGE = 2 << 20,
	HURRY_NICE = -10,
};

#define ARENA_MAX (1ull << 30)

static _Atomic uint64_t budget_set, budget_used;

// --- the budget -------------------------------------------------------------

// A sixteenth of the machine, and never more than a quarter of what is free.
uint64_t capcopy_budget(void)
{
	uint64_t set = atomic_load(&budget_set);
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t total = (uint64_t)sysconf(_SC_PHYS_PAGES) * page;

	return set ? set : MIN(total / 16, ARENA_MAX);
}

void capcopy_set_budget(uint64_t bytes)
{
	atomic_store(&budget_set, bytes);
}

static uint64_t take(uint64_t want)
{
	uint64_t limit = capcopy_budget();
	uint64_t used = atomic_load(&budget_used), got;

	do {
		got = used < limit ? MIN(want, limit - used) : 0;
		got = ALIGN_DOWN(got, (uint64_t)PGC_PAGE);
	} while (
	    !atomic_compare_exchange_weak(&budget_used, &used, used + got));
	return got;
}

// --- the arena --------------------------------------------------------------

static int make_arena(struct capcopy *c, size_t bytes)
{
	// Room to begin at a huge page.
	size_t len = bytes + HUGE_PAGE;
	uint8_t *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t head;

	if (p == MAP_FAILED)
		return -errno;
	head = ALIGN_UP((uintptr_t)p, (uintptr_t)HUGE_PAGE) - (uintptr_t)p;
	if (head)
		munmap(p, head);
	if (head < HUGE_PAGE)
		munmap(p + head + bytes, HUGE_PAGE - head);
	c->arena = p + head;
	c->bytes = bytes;
	madvise(c->arena, bytes, MADV_HUGEPAGE);
	return 0;
}

static void drop_arena(struct capcopy *c)
{
	if (c->arena)
		munmap(c->arena, c->bytes);
	atomic_fetch_sub(&budget_used, c->taken);
	c->arena = NULL;
	c->bytes = c->taken = 0;
}

void capcopy_prepare(struct capcopy *c, uint64_t bytes, bool touch)
{
	uint64_t want = ALIGN_UP(bytes, (uint64_t)HUGE_PAGE);

	if (bytes <= c->bytes)
		return;
	want = MIN(want, eng_host_memory(NULL) / 4);
	drop_arena(c);
	c->taken = take(want);
	if (c->taken < ARENA_MIN || make_arena(c, c->taken))
		return;
	// Without it (an old kernel, no memory) the copy makes the pages.
	if (touch)
		(void)madvise(c->arena, c->bytes, MADV_POPULATE_WRITE);
}

void capcopy_free(struct capcopy *c)
{
	drop_arena(c);
	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		pagescan_free(&c->list[st]);
	*c = (struct capcopy){0};
}

void capcopy_hurry(void)
{
	static __thread bool done;

	if (!done) // it works without, too
		setpriority(PRIO_PROCESS, (id_t)gettid(), HURRY_NICE);
	done = true;
}

// --- positions --------------------------------------------------------------

// Steps over ends: afterwards `pos` is at a page, or at the end of all.
static bool at_page(const struct capcopy *c, struct capcopy_pos *pos)
{
	while (pos->st < PGC_NUM_STREAMS) {
		const struct pagescan *s = &c->list[pos->st];

		if (pos->run == s->n) {
			*pos = (struct capcopy_pos){.st = pos->st + 1};
		} else if (pos->off == s->runs[pos->run].npages) {
			pos->run++;
			pos->off = 0;
		} else {
			return true;
		}
	}
	return false;
}

// The run at `pos`, at most `max` pages of it, and steps over that.
static struct pagescan_run next_part(const struct capcopy *c,
				     struct capcopy_pos *pos, uint64_t max)
{
	const struct pagescan_run *run = &c->list[pos->st].runs[pos->run];
	uint32_t n = (uint32_t)MIN((uint64_t)(run->npages - pos->off), max);
	struct pagescan_run part = {run->pgno + pos->off, n};

	pos->off += n;
	return part;
}

static bool same_pos(const struct capcopy_pos *a, const struct capcopy_pos *b)
{
	return a->st == b->st && a->run == b->run && a->off == b->off;
}

bool capcopy_is_out(const struct capcopy *c, enum pgc_stream st)
{
	struct capcopy_pos pos = c->in;

	at_page(c, &pos);
	return pos.st > st;
}

bool capcopy_is_done(const struct capcopy *c)
{
	struct capcopy_pos in = c->in, out = c->out;

	at_page(c, &in);
	at_page(c, &out);
	return in.st == PGC_NUM_STREAMS && same_pos(&in, &out);
}

// --- reading ----------------------------------------------------------------
//
// Much memory is read by two threads. It is cut into pieces, and each thread takes
// the next one until there is none. The second is a job like others: it may come
// late, when all is taken, or even after the capture. So what they share is
// counted, and whoever finds nothing to take touches nothing else.

struct piece {
	struct capcopy_pos pos;
	uint32_t pages;
	uint8_t *dst;
};

struct team {
	_Atomic unsigned refs;
	const struct capcopy *c;
	pid_t pid;
	uint64_t mem_base;
	_Atomic size_t next;
	size_t n;
	pthread_mutex_t lock;
	pthread_cond_t all_done;
	size_t done; // under lock
	int rc;	     // under lock; the first failure
	struct piece piece[];
};

static int read_runs(pid_t pid, const struct iovec *r, unsigned long n,
		     uint8_t *dst, size_t len)
{
	struct iovec l = {dst, len};
	ssize_t got = process_vm_readv(pid, &l, 1, r, n, 0);

	if (got < 0)
		return -errno;
	return (size_t)got == len ? 0 : -EFAULT;
}

static int read_piece(const struct team *t, const struct piece *p)
{
	struct iovec r[PIECE_PAGES];
	struct capcopy_pos pos = p->pos;
	uint64_t left = p->pages;
	unsigned long k = 0;

	while (left) {
		struct pagescan_run part;

		at_page(t->c, &pos);
		part = next_part(t->c, &pos, left);
		r[k].iov_base =
		    (void *)(uintptr_t)(t->mem_base +
					(uint64_t)part.pgno * PGC_PAGE);
		r[k++].iov_len = (size_t)part.npages * PGC_PAGE;
		left -= part.npages;
	}
	return read_runs(t->pid, r, k, p->dst, (size_t)p->pages * PGC_PAGE);
}

static void team_put(struct team *t)
{
	if (atomic_fetch_sub(&t->refs, 1) > 1)
		return;
	pthread_cond_destroy(&t->all_done);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

static void team_work(struct team *t)
{
	size_t i;

	while ((i = atomic_fetch_add(&t->next, 1)) < t->n) {
		int rc = read_piece(t, &t->piece[i]);

		pthread_mutex_lock(&t->lock);
		if (rc && !t->rc)
			t->rc = rc;
		if (++t->done == t->n)
			pthread_cond_broadcast(&t->all_done);
		pthread_mutex_unlock(&t->lock);
	}
}

static void team_job(void *ctx)
{
	capcopy_hurry();
	team_work(ctx);
	team_put(ctx);
}

static struct team *team_new(const struct capcopy *c,
			     const struct capcopy_src *src, size_t max)
{
	struct team *t = malloc(sizeof(*t) + max * sizeof(t->piece[0]));

	if (!t)
		return NULL;
	*t = (struct team){
	    .refs = 1, .c = c, .pid = src->pid, .mem_base = src->mem_base};
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->all_done, NULL);
	return t;
}

// Steps over the pages of the next piece; false at the end of memory.
static bool cut_piece(struct capcopy *c, uint8_t *dst, uint64_t room,
		      struct piece *p)
{
	*p = (struct piece){c->in, 0, dst};
	room = MIN(room, (uint64_t)PIECE_PAGES);
	while (p->pages < room && at_page(c, &c->in) && c->in.st == PGC_MEM)
		p->pages += next_part(c, &c->in, room - p->pages).npages;
	return p->pages > 0;
}

// Reads memory pages, as many as there is room for; their number or -errno.
static ssize_t read_memory(struct capcopy *c, const struct capcopy_src *src,
			   uint8_t *dst, uint64_t room)
{
	size_t max = room / PIECE_PAGES + 1;
	struct team *t = team_new(c, src, max);
	uint64_t pages = 0;
	int rc;

	if (!t)
		return -ENOMEM;
	while (t->n < max && cut_piece(c, dst + pages * PGC_PAGE, room - pages,
				       &t->piece[t->n]))
		pages += t->piece[t->n++].pages;
	if (src->helper && t->n >= HELP_PIECES) {
		atomic_fetch_add(&t->refs, 1);
		eng_job_run(src->helper, team_job, NULL, t);
	}
	team_work(t);
	pthread_mutex_lock(&t->lock);
	while (t->done < t->n)
		pthread_cond_wait(&t->all_done, &t->lock);
	rc = t->rc;
	pthread_mutex_unlock(&t->lock);
	team_put(t);
	return rc ? rc : (ssize_t)pages;
}

static ssize_t read_disk(struct capcopy *c, const struct capcopy_src *src,
			 uint8_t *dst, uint64_t room)
{
	struct pagescan_run part = next_part(c, &c->in, room);
	int rc =
	    util_pread_all(src->overlay, dst, (size_t)part.npages * PGC_PAGE,
			   (off_t)part.pgno * PGC_PAGE);

	return rc ? rc : (ssize_t)part.npages;
}

int capcopy_fill(struct capcopy *c, const struct capcopy_src *src,
		 enum pgc_stream last, struct err *e)
{
	uint8_t *at, *end;

	if (!c->arena && make_arena(c, ARENA_MIN))
		return err_set(e, -ENOMEM, "no memory for a copy");
	at = c->arena;
	end = c->arena + c->bytes;
	c->out = c->in;
	// in is at a page, or at the end, when this ends: out will meet it.
	while (at_page(c, &c->in) && c->in.st <= last && at < end) {
		bool mem = c->in.st == PGC_MEM;
		uint64_t room = (uint64_t)(end - at) / PGC_PAGE;
		ssize_t got = mem ? read_memory(c, src, at, room)
				  : read_disk(c, src, at, room);

		if (got < 0)
			return err_set(e, (int)got, "cannot read %s: %s",
				       mem ? "the guest's memory"
					   : "the disk's written blocks",
				       strerror((int)-got));
		at += (size_t)got * PGC_PAGE;
	}
	return 0;
}

int capcopy_put(struct capcopy *c, struct pgc_builder *b, struct err *e)
{
	const uint8_t *at = c->arena;

	while (at_page(c, &c->out) && !same_pos(&c->out, &c->in)) {
		enum pgc_stream st = (enum pgc_stream)c->out.st;
		uint64_t max = PUT_PAGES;
		struct pagescan_run part;
		int rc;

		// The arena may end within a run.
		if (c->in.st == c->out.st && c->in.run == c->out.run)
			max = MIN(max, (uint64_t)(c->in.off - c->out.off));
		part = next_part(c, &c->out, max);
		rc = pgc_builder_put(b, st, part.pgno, at, part.npages, e);
		if (rc)
			return rc;
		at += (size_t)part.npages * PGC_PAGE;
	}
	return 0;
}
