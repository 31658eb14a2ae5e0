// How much memory templates may take: a budget, and less when the host runs short.
//
// A template is a cache: what leaves it comes again from the store, by a
// fault that the guest does not notice. So when all of them together hold more
// than they may, some is given back, down to a sixteenth below the limit, in
// bounded pieces, a turn of the loop each:
//   1. images that no microVM uses, the one used longest ago first: forgotten whole,
//      with their prepared cells;
//   2. clusters of the memory templates of images in use, again by image, and
//      in each those that were filled longest ago.
// Not what is pinned, and not the disks of images in use: those who read one by
// descriptor do not fault. They count, but cannot give.
//
// The limit is the budget; and when the host's available memory is less than a
// sixteenth of all, what is held now less what is missing to that. That is looked
// at once a second while there are templates, because others may take the memory.
#include <errno.h>

#include "cells_priv.h"
#include "procstate.h"

enum {
	CHECK_MS = 1000,
	TURN_BYTES = 4 << 20,
	RESERVE = 16, // one part of so many of the host's memory, as above
};

struct evict {
	struct eng_cells *c;
	struct eng_timer *timer;
	uint64_t total, pressed; // the host's memory; the limit by pressure
	uint64_t bytes, images;
	bool running, armed;
};

static uint64_t held(const struct eng_cells *c)
{
	uint64_t n = 0;

	for (const struct eng_snap *sn = c->snaps; sn; sn = sn->next)
		for (int st = 0; st < PGC_NUM_STREAMS; st++)
			if (sn->tmpl[st] && !sn->evicted)
				n += pgc_template_resident(sn->tmpl[st]);
	return n;
}

static uint64_t limit_of(const struct evict *ev)
{
	return MIN(ev->c->cfg.template_budget, ev->pressed);
}

uint64_t evict_pressed(uint64_t total, uint64_t available, uint64_t have)
{
	uint64_t missing =
	    total / RESERVE > available ? total / RESERVE - available : 0;

	if (!missing)
		return UINT64_MAX;
	return have > missing ? have - missing : 0;
}

// --- what goes ---------------------------------------------------------------

static bool in_use(const struct eng_cells *c, const struct eng_snap *sn)
{
	for (const struct eng_cell *cell = c->cells; cell; cell = cell->next)
		if (cell->base == sn || cell->own == sn)
			return true;
	return sn->state != SNAP_READY || sn->loads;
}

// The image used longest ago of those that can give and were not `after`.
static struct eng_snap *oldest(const struct eng_cells *c, bool used,
			       uint64_t after)
{
	struct eng_snap *best = NULL;

	for (struct eng_snap *sn = c->snaps; sn; sn = sn->next) {
		if (!sn->tmpl[PGC_MEM] && !sn->tmpl[PGC_DISK])
			continue;
		if (sn->evicted || sn->used_ns <= after ||
		    (best && sn->used_ns >= best->used_ns))
			continue;
		if (in_use(c, sn) == used)
			best = sn;
	}
	return best;
}

// True when something went.
static bool evict_image(struct evict *ev)
{
	struct eng_snap *sn = oldest(ev->c, false, 0);
	uint64_t n = 0;

	if (!sn)
		return false;
	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		n += sn->tmpl[st] ? pgc_template_resident(sn->tmpl[st]) : 0;
	ev->bytes += n;
	ev->images++;
	log_info("the template of an image that nobody uses is given back: "
		 "%llu KiB",
		 (unsigned long long)(n >> 10));
	eng_snap_evict(sn);
	return true;
}

static bool evict_clusters(struct evict *ev, uint64_t want)
{
	struct eng_snap *sn = NULL;
	uint64_t n = 0;

	while (n < want && (sn = oldest(ev->c, true, sn ? sn->used_ns : 0)))
		if (sn->tmpl[PGC_MEM])
			n += pgc_template_evict(sn->tmpl[PGC_MEM], want - n);
	ev->bytes += n;
	return n != 0;
}

static void evict_some(void *ctx);

static void go_on(struct evict *ev)
{
	if (ev->running || ev->c->stopping)
		return;
	ev->running = true;
	ev->c->jobs_running++;
	eng_loop_defer(ev->c->loop, evict_some, ev, "template eviction");
}

static void evict_some(void *ctx)
{
	struct evict *ev = ctx;
	uint64_t have = held(ev->c), limit = limit_of(ev);
	uint64_t goal = limit - limit / 16;

	ev->running = false;
	ev->c->jobs_running--;
	if (ev->c->stopping || have <= goal)
		return;
	if (!evict_image(ev) &&
	    !evict_clusters(ev, MIN(have - goal, (uint64_t)TURN_BYTES)))
		return; // pinned, or a disk in use: the timer tries again
	go_on(ev);
}

// --- when --------------------------------------------------------------------

void evict_check(struct eng_cells *c)
{
	struct evict *ev = c->evict;
	uint64_t have = held(c);

	if (have && !ev->armed)
		eng_timer_set(ev->timer, CHECK_MS);
	ev->armed = ev->armed || have;
	if (have > limit_of(ev))
		go_on(ev);
}

static void on_time(void *ctx)
{
	struct evict *ev = ctx;

	ev->armed = false;
	ev->pressed =
	    evict_pressed(ev->total, eng_host_memory(NULL), held(ev->c));
	evict_check(ev->c);
}

// --- the rest ----------------------------------------------------------------

int evict_create(struct eng_cells *c, struct err *e)
{
	struct evict *ev = calloc(1, sizeof(*ev));

	c->evict = ev;
	if (ev)
		ev->timer =
		    eng_timer_create(c->loop, on_time, ev, "template budget");
	if (!ev || !ev->timer)
		return err_set(e, -ENOMEM, "no memory for the cells");
	ev->c = c;
	ev->pressed = UINT64_MAX;
	(void)eng_host_memory(&ev->total);
	if (!c->cfg.template_budget)
		c->cfg.template_budget = ev->total ? ev->total / 2 : UINT64_MAX;
	return 0;
}

void evict_destroy(struct eng_cells *c)
{
	if (!c->evict)
		return;
	eng_timer_destroy(c->evict->timer);
	free(c->evict);
}

void eng_template_get_stats(const struct eng_cells *c,
			    struct eng_template_stats *out)
{
	*out = (struct eng_template_stats){
	    .resident = held(c),
	    .budget = limit_of(c->evict),
	    .evicted = c->evict->bytes,
	    .evicted_images = c->evict->images,
	};
}
