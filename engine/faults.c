// Page faults of clones, served on the loop.
//
// An event names an address; its page lies in a 64 KiB cluster of the template.
// If the page is filled, what the template has of the cluster is given to the
// cell at once: filled pages by UFFDIO_CONTINUE, zero pages by UFFDIO_ZEROPAGE,
// then one UFFDIO_WAKE. Else the store is asked for it, and the proc waits in
// the cluster's list, which all clones share. A page that cannot be had ends
// every cell that waits for it, before anything is woken: no guest reads a zero
// for data. A cell that records gets single pages, so that its list names what
// was needed and nothing else.
//
// Races that are normal: a page is there already (EEXIST: another vCPU's fault,
// or a write that copied it); the address space is going away (ESRCH: the cell
// is dying); a mapping changes at this moment (EAGAIN: tried again). Everything
// else is a cell that did something it never does, and ends it.
#include <errno.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>

#include "cells_priv.h"

enum { EVENTS_PER_TURN = 32, CL = PGC_CLUSTER_PAGES, AGAIN_MAX = 100 };

struct snap_waiter {
	struct snap_waiter *next;
	uint64_t pgno, npages;	// in one cluster
	struct cell_proc *proc; // a memory fault, or
	struct disk_req *disk;	// a disk request
};

static struct snap_waiter **bucket(struct eng_snap *sn, enum pgc_stream st,
				   uint64_t cluster)
{
	return &sn->wait[st][cluster % SNAP_WAIT_BUCKETS];
}

static void wait_again(struct eng_snap *sn, enum pgc_stream st,
		       struct snap_waiter *w)
{
	struct snap_waiter **b = bucket(sn, st, w->pgno / CL);

	w->next = *b;
	*b = w;
}

int faults_wait(struct eng_snap *sn, enum pgc_stream st, uint64_t pgno,
		uint64_t npages, struct cell_proc *p, struct disk_req *dr)
{
	struct snap_waiter *w;

	// One wake serves all of a cell's faults on a page. A disk request
	// counts what it waits for, and may name a cluster twice.
	for (w = *bucket(sn, st, pgno / CL); p && w; w = w->next) {
		if (w->pgno == pgno && w->proc == p)
			return 0;
	}
	w = malloc(sizeof(*w));
	if (!w)
		return -ENOMEM;
	*w = (struct snap_waiter){NULL, pgno, npages, p, dr};
	wait_again(sn, st, w);
	return 0;
}

void faults_forget_proc(struct eng_snap *sn, const struct cell_proc *p)
{
	for (int i = 0; i < SNAP_WAIT_BUCKETS; i++) {
		struct snap_waiter **at = &sn->wait[PGC_MEM][i], *w;

		while ((w = *at)) {
			if (w->proc == p) {
				*at = w->next;
				free(w);
			} else {
				at = &w->next;
			}
		}
	}
}

// --- giving pages -----------------------------------------------------------

static int install(int uffd, uint64_t at, uint64_t len, bool zero,
		   uint64_t *done)
{
	int64_t n;
	int rc;

	if (zero) {
		struct uffdio_zeropage z = {
		    .range = {at, len},
		    .mode = UFFDIO_ZEROPAGE_MODE_DONTWAKE,
		};
		rc = ioctl(uffd, UFFDIO_ZEROPAGE, &z) < 0 ? -errno : 0;
		n = z.zeropage;
	} else {
		struct uffdio_continue m = {
		    .range = {at, len},
		    .mode = UFFDIO_CONTINUE_MODE_DONTWAKE,
		};
		rc = ioctl(uffd, UFFDIO_CONTINUE, &m) < 0 ? -errno : 0;
		n = m.mapped;
	}
	*done = n > 0 ? (uint64_t)n : 0;
	if (*done == len)
		return 0;
	// A part was done: the rest of the range answers on the next call.
	return n < 0 ? (int)n : rc ? (*done ? 0 : rc) : 0;
}

// Gives pages [at, at+len) of equal kind. 0, -ESRCH, or what went wrong.
static int install_run(struct cell_proc *p, uint64_t at, uint64_t len,
		       bool zero)
{
	unsigned again = 0;

	while (len) {
		uint64_t done = 0;
		int rc = install(p->uffd, at, len, zero, &done);

		if (rc == -EEXIST)
			done = PGC_PAGE; // that page is there: the next one
		else if (rc == -EAGAIN && again++ < AGAIN_MAX)
			continue;
		else if (rc)
			return rc;
		at += done;
		len -= MIN(done, len);
	}
	return 0;
}

// What pages [*k, end) begin with: how many are alike. *kind is theirs.
static uint64_t next_alike(struct pgc_template *t, uint64_t k, uint64_t end,
			   enum pgc_have *kind)
{
	uint64_t n = 1;

	*kind = pgc_template_have(t, k);
	while (k + n < end && pgc_template_have(t, k + n) == *kind)
		n++;
	return n;
}

// The page is filled: gives what the template has of its cluster to the cell,
// and wakes its faults.
static void give_cluster(struct cell_proc *p, struct pgc_template *t,
			 uint64_t pgno)
{
	bool one = p->cell->record;
	uint64_t first = one ? pgno : ALIGN_DOWN(pgno, (uint64_t)CL), n;
	uint64_t end = MIN(first + (one ? 1 : CL), p->mem_bytes / PGC_PAGE);
	struct uffdio_range wake = {p->mem_base + first * PGC_PAGE,
				    (end - first) * PGC_PAGE};

	for (uint64_t k = first; k < end; k += n) {
		enum pgc_have kind;
		int rc;

		n = next_alike(t, k, end, &kind);
		if (kind != PGC_ZERO && kind != PGC_FILLED)
			continue; // it is asked for when it is needed
		rc = install_run(p, p->mem_base + k * PGC_PAGE, n * PGC_PAGE,
				 kind == PGC_ZERO);
		if (rc == -ESRCH)
			return; // it is dying
		if (rc) {
			cell_end(p->cell, ENG_END_MEMORY,
				 "memory page %llu could not be given to the "
				 "guest: %s",
				 (unsigned long long)k, strerror(-rc));
			return;
		}
		p->cell->fault_pages += n;
	}
	(void)ioctl(p->uffd, UFFDIO_WAKE, &wake); // ESRCH: it is dying
}

// No guest code can run any more, but a worker of the kernel still waits in a
// fault of the memory: it gets a private page of zeroes, which nobody reads and
// which leaves the template as it is.
static void give_grave(struct cell_proc *p, uint64_t addr)
{
	static const _Alignas(PGC_PAGE) uint8_t zeroes[PGC_PAGE];
	struct uffdio_copy c = {
	    .dst = ALIGN_DOWN(addr, (uint64_t)PGC_PAGE),
	    .src = (uintptr_t)zeroes,
	    .len = PGC_PAGE,
	};

	// ESRCH: gone meanwhile; EEXIST: another worker's page.
	if (ioctl(p->uffd, UFFDIO_COPY, &c) < 0) {
		struct uffdio_range wake = {c.dst, PGC_PAGE};

		(void)ioctl(p->uffd, UFFDIO_WAKE, &wake);
	}
}

// --- events -----------------------------------------------------------------

static void record(struct eng_cell *cell, uint32_t pgno)
{
	if (!cell->record ||
	    (cell->recorded_map[pgno / 8] & (1u << (pgno % 8))))
		return;
	if (cell->nrecorded == cell->cap_recorded) {
		size_t cap = cell->cap_recorded ? cell->cap_recorded * 2 : 256;
		uint32_t *m = realloc(cell->recorded, cap * sizeof(*m));

		if (!m)
			return; // a hint less
		cell->recorded = m;
		cell->cap_recorded = cap;
	}
	cell->recorded[cell->nrecorded++] = pgno;
	cell->recorded_map[pgno / 8] |= (uint8_t)(1u << (pgno % 8));
}

static void serve(struct cell_proc *p, const struct uffd_msg *m)
{
	struct eng_cell *cell = p->cell;
	uint64_t addr = m->arg.pagefault.address;
	struct pgc_template *t;
	struct err e = ERR_INIT;
	uint32_t pgno;
	int rc;

	if (m->event != UFFD_EVENT_PAGEFAULT || !cell || !cell->base ||
	    cell->is_boot || cell->state < CELL_STARTING) {
		proc_violation(p, "an unexpected userfaultfd event");
		return;
	}
	if (addr < p->mem_base || addr - p->mem_base >= p->mem_bytes) {
		proc_violation(p, "a fault outside of its memory");
		return;
	}
	if (cell->ended) {
		// While guest code may run nothing is given: proc_linger()
		// wakes the fault once none can, and it comes again.
		if (proc_past_guest(p))
			give_grave(p, addr);
		return;
	}
	t = cell->base->tmpl[PGC_MEM];
	pgno = (uint32_t)((addr - p->mem_base) / PGC_PAGE);
	cell->faults++;
	record(cell, pgno);
	learn_fault(cell, pgno);
	rc = pgc_template_fill(t, pgno, 1, true, &e);
	if (rc == 1)
		give_cluster(p, t, pgno);
	else if (rc == 0)
		rc = faults_wait(cell->base, PGC_MEM, pgno, 1, p, NULL);
	if (rc < 0)
		cell_end(cell, ENG_END_MEMORY, "memory page %u: %s", pgno,
			 e.code ? e.msg : strerror(-rc));
}

void faults_read(struct cell_proc *p)
{
	struct uffd_msg msgs[EVENTS_PER_TURN];
	ssize_t n = read(p->uffd, msgs, sizeof(msgs));

	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR)
			proc_violation(p, "its userfaultfd cannot be read");
		return;
	}
	for (size_t i = 0; i < (size_t)n / sizeof(msgs[0]); i++)
		serve(p, &msgs[i]);
}

// --- completions ------------------------------------------------------------

static struct eng_snap *
snap_of(struct eng_cells *c, const struct pgc_template *t, enum pgc_stream *st)
{
	for (struct eng_snap *sn = c->snaps; sn; sn = sn->next) {
		for (int i = 0; i < PGC_NUM_STREAMS; i++) {
			if (sn->tmpl[i] == t) {
				*st = (enum pgc_stream)i;
				return sn;
			}
		}
	}
	return NULL;
}

static struct snap_waiter *take_waiters(struct eng_snap *sn, enum pgc_stream st,
					uint64_t cluster)
{
	struct snap_waiter **at = bucket(sn, st, cluster), *w, *out = NULL;

	while ((w = *at)) {
		if (w->pgno / CL == cluster) {
			*at = w->next;
			w->next = out;
			out = w;
		} else {
			at = &w->next;
		}
	}
	return out;
}

// Something came of the cluster that `w` waits for, or could not be had.
// Consumes w.
static void waiter_step(struct eng_snap *sn, enum pgc_stream st,
			struct snap_waiter *w, int rc, const char *why)
{
	struct err e = ERR_INIT;

	// A part came, perhaps another one; perhaps it is evicted again.
	if (!rc) {
		rc = pgc_template_fill(sn->tmpl[st], w->pgno, w->npages, true,
				       &e);
		if (rc == 0) {
			wait_again(sn, st, w);
			return;
		}
		why = e.msg;
		rc = MIN(rc, 0);
	}
	if (w->disk)
		disk_fill_done(w->disk, (uint32_t)(w->pgno / CL), rc);
	else if (w->proc->cell->ended)
		; // as in serve(): it will be woken and ask again
	else if (rc)
		cell_end(w->proc->cell, ENG_END_MEMORY,
			 "a page of its memory could not be had: %s", why);
	else
		give_cluster(w->proc, sn->tmpl[st], w->pgno);
	free(w);
}

static void cluster_done(struct eng_snap *sn, enum pgc_stream st,
			 uint64_t cluster, int rc, const char *why)
{
	struct snap_waiter *w = take_waiters(sn, st, cluster), *next;

	for (; w; w = next) {
		next = w->next;
		waiter_step(sn, st, w, rc, why);
	}
}

// A guest that reads a bad disk in a loop does not fill the log.
static void log_bad_fill(const char *why)
{
	static uint64_t next_ns, unsaid;
	uint64_t now = util_now_ns();

	if (now < next_ns) {
		unsaid++;
		return;
	}
	log_err("filling a template: %s (%llu more since the last such line)",
		why, (unsigned long long)unsaid);
	next_ns = now + 1000000000;
	unsaid = 0;
}

void faults_drain(struct eng_cells *c)
{
	struct pgc_done done[16];
	size_t n = pgc_drain(c->store, done, ARRAY_SIZE(done));

	for (size_t i = 0; i < n; i++) {
		enum pgc_stream st = PGC_MEM;
		struct eng_snap *sn = snap_of(c, done[i].t, &st);
		if (!sn)
			continue; // a template closed meanwhile
		if (done[i].rc)
			log_bad_fill(done[i].why);
		cluster_done(sn, st, done[i].pgno / CL, done[i].rc,
			     done[i].why);
	}
}
