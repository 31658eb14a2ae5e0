// Classes of shells, blanks, and how a cell finds its process.
//
// A class is a size: memory and vCPUs, because KVM slots and vCPUs are made
// before a request comes. A *blank* has neither and becomes what its START
// says; blanks are a class too, that of size 0. Who finds no shell takes a
// blank. For a plain thaw, a shell that has the image already (cell_prepare.c)
// comes before both. Who finds none waits in its class, and a process is
// started for it at once; a blank that gets ready before that goes to who
// waits, too. So nobody waits while a blank is ready.
//
// What is started for a class because somebody waits, or to be prepared, starts
// without a size as well: memory that is laid out before there is a VM costs
// less.
//
// Refilling is done by a timer, one spawn a turn, and starts a little after a
// process was taken, out of the way of the thaw. A thaw that loads its working set
// needs all processors for longer: what refills wait for then is that it is loaded,
// and as long again, in which the guest catches up; not when another thaw shows
// that shells are in demand. When all places are taken, a shell of the class wanted longest ago makes room. A shell that gets ready
// when enough are there, because who it was made for got another, is ended.
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>

#include "cells_priv.h"

enum {
	REFILL_MS = 4,
	NEXT_MS = 1, // from one to the next
	COLD_STEP_MS = 2,
	COLD_MS = 200, // the longest that they wait for a thaw's loading
	RETRY_MS = 1000,
	FDS_OF_CELL = 10, // in thawd
	FDS_AHEAD = 16384,
};

static struct cell_class *class_of(struct eng_cells *c, uint32_t mem_mib,
				   unsigned vcpus)
{
	struct cell_class *k = c->classes;

	while (k && (k->mem_mib != mem_mib || k->vcpus != vcpus))
		k = k->next;
	if (k)
		return k;
	k = calloc(1, sizeof(*k));
	if (!k)
		return NULL;
	k->mem_mib = mem_mib;
	k->vcpus = vcpus;
	k->waiting_tail = &k->waiting;
	k->next = c->classes;
	c->classes = k;
	return k;
}

static const char *name_of(const struct cell_class *k)
{
	return k->vcpus ? "a shell" : "a blank cell";
}

static unsigned count_waiting(const struct cell_class *k)
{
	unsigned n = 0;

	for (struct eng_cell *w = k->waiting; w; w = w->next_waiting)
		n++;
	return n;
}

void cell_stop_waiting(struct eng_cell *cell)
{
	struct cell_class *k;
	struct eng_cell **at;

	if (!cell->waiting)
		return;
	cell->waiting = false;
	for (k = cell->c->classes; k; k = k->next) {
		for (at = &k->waiting; *at; at = &(*at)->next_waiting) {
			if (*at != cell)
				continue;
			*at = cell->next_waiting;
			if (!*at)
				k->waiting_tail = at;
			return;
		}
	}
}

static struct cell_proc *take_ready(struct cell_class *k)
{
	struct cell_proc *p = k->ready;

	if (p) {
		k->ready = p->next_ready;
		k->nready--;
	}
	return p;
}

// Ends one shell nobody waits for: a prepared one, or of another class than
// `keep` the one wanted longest ago. False when there is none.
static bool evict_shell(struct eng_cells *c, const struct cell_class *keep)
{
	struct cell_class *oldest = NULL;
	struct cell_proc *p;

	if (prepared_evict(c))
		return true;
	for (struct cell_class *k = c->classes; k; k = k->next) {
		if (k != keep && k->nready &&
		    (!oldest || k->wanted_at < oldest->wanted_at))
			oldest = k;
	}
	if (!oldest)
		return false;
	p = take_ready(oldest);
	proc_kill(p);
	return true;
}

// Whether who got no place has one to wait for: a place that becomes free, or a
// process that is being born (a blank serves all; a shell of another class is
// ended once it is ready, see serve_waiting()).
static bool hope(const struct eng_cells *c)
{
	for (const struct cell_proc *p = c->procs; p; p = p->next) {
		if (p->dying || p->state == PROC_SPAWNING ||
		    p->state == PROC_PREPARING)
			return true;
	}
	return false;
}

// How many of a class are kept ready.
static unsigned class_size(const struct eng_cells *c,
			   const struct cell_class *k)
{
	if (!k->wanted)
		return 0;
	return k == c->blank ? c->cfg.blanks : c->cfg.shells;
}

static unsigned class_lacks(const struct eng_cells *c,
			    const struct cell_class *k)
{
	unsigned have = k->nready + k->nspawning;
	unsigned size = class_size(c, k);

	if (k->wanted)
		size += prepared_lacks(c, k);

	return have < size ? size - have : 0;
}

// Never later than it is due already: thaws that come one after the other would
// put it off for as long as they come.
static void refill_soon(struct eng_cells *c, uint64_t ms)
{
	uint64_t due = util_now_ns() + ms * 1000000;

	if (c->stopping || c->keeper_lost ||
	    (c->refill_ns && c->refill_ns <= due))
		return;
	c->refill_ns = due;
	eng_timer_set(c->refill, ms);
}

static void note_cold(struct eng_cell *cell)
{
	const struct eng_snap *sn = cell->is_boot ? NULL : cell->base;

	cell->c->cold_ns = 0;
	if (!sn || !sn->tmpl[PGC_MEM] ||
	    !pgc_template_prefetching(sn->tmpl[PGC_MEM]))
		return;
	cell->c->cold = sn->id;
	cell->c->cold_ns = util_now_ns();
}

// Whether a refill would be in the way; then it is put off.
static bool wait_for_cold(struct eng_cells *c)
{
	const struct eng_snap *sn =
	    c->cold_ns ? eng_snap_find(c, &c->cold) : NULL;
	uint64_t ms = (util_now_ns() - c->cold_ns) / 1000000;

	if (!sn || !sn->tmpl[PGC_MEM] || ms >= COLD_MS) {
		c->cold_ns = 0;
		return false;
	}
	if (pgc_template_prefetching(sn->tmpl[PGC_MEM])) {
		refill_soon(c, COLD_STEP_MS);
	} else {
		c->cold_ns = 0;
		refill_soon(c, MAX(ms, (uint64_t)REFILL_MS));
	}
	return true;
}

void shells_refill(void *ctx)
{
	struct eng_cells *c = ctx;
	struct cell_class *k, *neediest = NULL;
	struct cell_proc *p;
	struct err e = ERR_INIT;
	bool blank;

	c->refill_ns = 0;
	if (c->stopping || c->keeper_lost || wait_for_cold(c))
		return;
	for (k = c->classes; k; k = k->next) {
		if (class_lacks(c, k) &&
		    (!neediest || class_lacks(c, k) > class_lacks(c, neediest)))
			neediest = k;
	}
	if (!neediest || c->nprocs >= c->cfg.max_cells)
		return;
	// What is to be prepared lays its memory out before it has a VM.
	blank =
	    neediest->nready + neediest->nspawning >= class_size(c, neediest);
	if (proc_spawn(c, neediest, blank, &p, &e)) {
		log_warn("preparing %s: %s", name_of(neediest), e.msg);
		refill_soon(c, RETRY_MS);
		return;
	}
	refill_soon(c, NEXT_MS);
}

static void bind_proc(struct eng_cell *cell, struct cell_proc *p)
{
	struct err e = ERR_INIT;

	cell->proc = p;
	cell_hold(cell);
	p->cell = cell;
	p->mem_bytes = (uint64_t)cell->mem_mib << 20; // a blank's, from now on
	p->state = PROC_BOUND;
	cell->state = CELL_STARTING;
	if (cell_send_start(cell, &e))
		cell_end(cell, ENG_END_START, "%s", e.msg);
	else
		prepared_used(cell);
	note_cold(cell);
	refill_soon(cell->c, REFILL_MS);
}

// Whom a process that got ready is for: who asked first, of its class or, if it
// is a blank, of all.
static struct eng_cell *first_waiting(const struct cell_proc *p)
{
	struct eng_cell *first = p->class->waiting;

	if (p->class != p->c->blank)
		return first;
	for (struct cell_class *k = p->c->classes; k; k = k->next) {
		if (k->waiting &&
		    (!first || k->waiting->times.t0 < first->times.t0))
			first = k->waiting;
	}
	return first;
}

static bool spawn_for_waiting(struct eng_cells *c, struct cell_class *k,
			      struct err *e);

// A place, or a shell whose place may be had, became free: for who waits, of
// whatever class.
static void serve_waiting(struct eng_cells *c)
{
	struct err e = ERR_INIT;

	for (struct cell_class *k = c->classes; k && !c->stopping;
	     k = k->next) {
		if (count_waiting(k) > k->nspawning &&
		    !spawn_for_waiting(c, k, &e) && !hope(c))
			cell_end(k->waiting, ENG_END_START, "%s", e.msg);
	}
}

void class_proc_ready(struct cell_proc *p)
{
	struct cell_class *k = p->class;
	struct eng_cell *w = first_waiting(p);

	p->c->spawn_failures = 0;
	if (w) {
		cell_stop_waiting(w);
		bind_proc(w, p);
		return;
	}
	if (k->wanted && prepared_assign(p))
		return;
	if (k->nready >= class_size(p->c, k)) {
		proc_kill(p);
		return;
	}
	p->next_ready = k->ready;
	k->ready = p;
	k->nready++;
	serve_waiting(p->c);
}

void class_proc_prepared(struct cell_proc *p, const struct eng_snap *sn)
{
	struct cell_class *k = p->class;
	struct eng_cell *w = k->waiting;

	while (w && (w->base != sn || prepared_take(w) != p))
		w = w->next_waiting;
	if (w) {
		cell_stop_waiting(w);
		bind_proc(w, p);
	} else {
		serve_waiting(p->c);
	}
}

void class_proc_gone(struct cell_proc *p, const char *why)
{
	struct eng_cells *c = p->c;
	struct cell_class *k = p->class;

	if (p->state == PROC_SPAWNING) {
		struct eng_cell *w = k->waiting;

		k->nspawning--;
		c->spawn_failures++;
		if (w && !c->stopping)
			cell_end(w, ENG_END_START, "a cell could not start: %s",
				 why);
		else if (!c->stopping)
			log_warn("%s could not start: %s", name_of(k), why);
	} else if (p->state == PROC_PREPARING || p->state == PROC_PREPARED) {
		prepared_gone(p, why);
	} else if (p->state == PROC_READY) {
		for (struct cell_proc **at = &k->ready; *at;
		     at = &(*at)->next_ready) {
			if (*at == p) {
				*at = p->next_ready;
				k->nready--;
				if (!p->dying || p->failed[0])
					log_warn("%s died: %s", name_of(k),
						 why);
				break;
			}
		}
	}
	serve_waiting(c);
	refill_soon(c, c->spawn_failures ? RETRY_MS : REFILL_MS);
}

// A process for a cell that waits: false when there is no place at the moment.
static bool spawn_for_waiting(struct eng_cells *c, struct cell_class *k,
			      struct err *e)
{
	struct cell_proc *p;

	// A blank: memory that is laid out before there is a VM costs less.
	if (proc_spawn(c, k, true, &p, e) == 0)
		return true;
	(void)evict_shell(c, k); // its place comes back when it is reaped
	return false;
}

// The cell knows its class: a shell, or a place in the queue.
void cell_find_proc(struct eng_cell *cell)
{
	struct eng_cells *c = cell->c;
	struct cell_class *k = class_of(c, cell->mem_mib, cell->vcpus);
	struct cell_proc *p;
	struct err e = ERR_INIT;

	if (!k) {
		cell_end(cell, ENG_END_START, "out of memory");
		return;
	}
	p = prepared_take(cell);
	if (!p)
		p = take_ready(k);
	if (!p && c->blank)
		p = take_ready(c->blank);
	if (p) {
		bind_proc(cell, p);
		return;
	}
	cell->state = CELL_WAITING;
	cell->waiting = true;
	cell->next_waiting = NULL;
	*k->waiting_tail = cell;
	k->waiting_tail = &cell->next_waiting;
	if (count_waiting(k) > k->nspawning && !spawn_for_waiting(c, k, &e) &&
	    !hope(c))
		cell_end(cell, ENG_END_START, "%s", e.msg);
}

void eng_cells_want(struct eng_cells *c, uint32_t mem_mib, unsigned vcpus)
{
	struct cell_class *k = class_of(c, mem_mib, vcpus);

	if (!k)
		return;
	// Not at once: this may be part of a thaw, whose cell is woken on the
	// loop's own processor and would wait there until the spawn is over.
	refill_soon(c, k->wanted ? REFILL_MS : 0);
	k->wanted = true;
	k->wanted_at = util_now_ns();
}

unsigned eng_cells_ready(const struct eng_cells *c)
{
	unsigned n = 0;

	for (const struct cell_class *k = c->classes; k; k = k->next)
		n += k == c->blank ? 0 : k->nready;
	return n;
}

unsigned eng_cells_blanks_ready(const struct eng_cells *c)
{
	return c->blank ? c->blank->nready : 0;
}

// A descriptor table that is full is doubled, and in a process with several
// threads that waits for a grace period of RCU, 8 ms and more: once, now.
static void grow_descriptor_table(const struct eng_cells *c)
{
	struct rlimit lim;
	rlim_t want = (rlim_t)c->cfg.max_cells * FDS_OF_CELL;
	int fd;

	if (getrlimit(RLIMIT_NOFILE, &lim) < 0)
		return;
	want = MIN(want, MIN(lim.rlim_cur, (rlim_t)FDS_AHEAD));
	fd = fcntl(c->null_fd, F_DUPFD_CLOEXEC, (int)want - 1);
	if (fd >= 0)
		close(fd);
}

int blanks_want(struct eng_cells *c, struct err *e)
{
	grow_descriptor_table(c);
	if (!c->cfg.blanks)
		return 0;
	c->blank = class_of(c, 0, 0);
	if (!c->blank)
		return err_set(e, -ENOMEM, "no memory for the cells");
	eng_cells_want(c, 0, 0);
	return 0;
}
