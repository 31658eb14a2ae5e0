// Extent requests of a cell's disk.
//
// A block of a thawed disk is in the template (filled here on request), or, for
// a resumed microVM, its own: then a worker reads it into the overlay, or it is
// zero. A request is answered once, when everything that it asked for is there;
// each of its extents says from where it is to be read. What cannot be had is
// answered BAD, cluster by cluster, and becomes an I/O error in the guest.
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "cells_priv.h"

enum { CL = PGC_CLUSTER_PAGES, REQS_PER_TURN = 8 };

struct seg { // never crosses a cluster when kind is TEMPLATE
	uint32_t block, blocks;
	enum cp_block kind;
};

struct disk_req {
	struct eng_cell *cell;
	uint32_t tag;
	unsigned due; // clusters and jobs that are still to come
	uint32_t nseg, cap;
	struct seg *segs;
};

struct own_job { // reads own blocks into the overlay
	struct cell_job job;
	struct disk_req *dr;
	struct seg *segs; // copies of the request's OVERLAY segments, in order
	uint32_t n;
};

static void req_free(struct disk_req *dr)
{
	free(dr->segs);
	free(dr);
}

static int add_seg(struct disk_req *dr, uint64_t block, uint64_t blocks,
		   enum cp_block kind)
{
	if (dr->nseg == dr->cap) {
		uint32_t cap = dr->cap ? dr->cap * 2 : 8;
		struct seg *s = realloc(dr->segs, cap * sizeof(*s));

		if (!s)
			return -ENOMEM;
		dr->segs = s;
		dr->cap = cap;
	}
	dr->segs[dr->nseg++] =
	    (struct seg){(uint32_t)block, (uint32_t)blocks, kind};
	return 0;
}

// Neighbours of one kind go as one extent.
static uint32_t merge_segs(struct disk_req *dr)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < dr->nseg; i++) {
		struct seg *last = n ? &dr->segs[n - 1] : NULL;
		const struct seg *s = &dr->segs[i];

		if (last && last->kind == s->kind &&
		    last->block + last->blocks == s->block)
			last->blocks += s->blocks;
		else
			dr->segs[n++] = *s;
	}
	return n;
}

static void answer(struct disk_req *dr)
{
	static uint8_t buf[CP_HEAD + 8 + CP_MAX_REQ_BLOCKS * 12];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct cell_proc *p = dr->cell->proc;

	dr->nseg = merge_segs(dr);
	cp_begin(&w, CP_EXTENTS_ACK);
	wire_put_u32(&w, dr->tag);
	wire_put_u32(&w, dr->nseg);
	for (uint32_t i = 0; i < dr->nseg; i++) {
		wire_put_u32(&w, dr->segs[i].block);
		wire_put_u32(&w, dr->segs[i].blocks);
		wire_put_u32(&w, dr->segs[i].kind);
	}
	if (p && !p->dying) {
		p->disk_reqs--;
		if (cp_send(p->disk, &w, NULL, 0))
			proc_violation(p, "it does not read its disk's socket");
	}
}

// One thing less to wait for. The last one answers and lets go.
static void req_step(struct disk_req *dr)
{
	struct eng_cell *cell = dr->cell;

	if (--dr->due)
		return;
	answer(dr);
	req_free(dr);
	cell_release(cell);
}

void disk_fill_done(struct disk_req *dr, uint32_t cluster, int rc)
{
	for (uint32_t i = 0; rc && i < dr->nseg; i++) {
		if (dr->segs[i].kind == CP_BLK_TEMPLATE &&
		    dr->segs[i].block / CL == cluster)
			dr->segs[i].kind = CP_BLK_BAD;
	}
	req_step(dr);
}

// --- sorting what was asked for ---------------------------------------------

static int ask_template(struct disk_req *dr, uint64_t block, uint64_t blocks)
{
	struct eng_snap *base = dr->cell->base;
	struct pgc_template *t = base->tmpl[PGC_DISK];
	uint64_t end = block + blocks;
	// The whole first, so that it is read as one.
	int rc = pgc_template_fill(t, block, blocks, true, NULL);

	while (block < end) {
		uint64_t stop = MIN(end, (block / CL + 1) * CL);
		enum cp_block kind = CP_BLK_TEMPLATE;
		int one = rc == 1 ? 1
				  : pgc_template_fill(t, block, stop - block,
						      true, NULL);

		if (one < 0)
			kind = CP_BLK_BAD;
		if (add_seg(dr, block, stop - block, kind))
			return -ENOMEM;
		if (one == 0) {
			if (faults_wait(base, PGC_DISK, block, stop - block,
					NULL, dr))
				return -ENOMEM;
			dr->due++;
		}
		block = stop;
	}
	return 0;
}

static int sort_extent(struct disk_req *dr, uint64_t block, uint64_t blocks,
		       bool *own)
{
	struct eng_snap *os = dr->cell->own;
	uint64_t end = block + blocks;

	while (block < end) {
		struct pgc_run run = {block, end - block, PGC_RUN_PARENT};
		uint64_t n;
		int rc;

		if (os && !pgc_snap_run(os->sn, PGC_DISK, block, &run))
			return -EBADMSG;
		n = MIN(run.npages, end - block);
		if (run.kind == PGC_RUN_PARENT)
			rc = ask_template(dr, block, n);
		else if (run.kind == PGC_RUN_ZERO)
			rc = add_seg(dr, block, n, CP_BLK_ZERO);
		else
			rc = add_seg(dr, block, n, CP_BLK_OVERLAY);
		if (rc)
			return rc;
		*own |= run.kind == PGC_RUN_OWN;
		block += n;
	}
	return 0;
}

static int read_own(const struct own_job *oj, const struct seg *s, void *buf)
{
	struct eng_cell *cell = oj->job.cell;

	for (uint32_t k = 0; k < s->blocks; k += CL) {
		uint32_t n = MIN(s->blocks - k, (uint32_t)CL);
		struct err e = ERR_INIT;
		int rc = pgc_snap_read(cell->own->sn, PGC_DISK, s->block + k,
				       buf, n, &e);

		if (!rc)
			rc = util_pwrite_all(cell->overlay, buf,
					     (size_t)n * PGC_PAGE,
					     (off_t)(s->block + k) * PGC_PAGE);
		if (rc) {
			log_warn("a cell's own disk blocks from %u on: %s",
				 s->block + k, e.code ? e.msg : strerror(-rc));
			return rc;
		}
	}
	return 0;
}

// Touches nothing of the request but OVERLAY segments, whose place and length
// are fixed by now; the kinds of others may change on the loop meanwhile.
static void own_work(struct cell_job *j)
{
	struct own_job *oj = (struct own_job *)j;
	cleanup_free void *buf = malloc(CL * PGC_PAGE);

	for (uint32_t i = 0; i < oj->n; i++) {
		struct seg *s = &oj->segs[i];

		if (!buf || read_own(oj, s, buf))
			s->kind = CP_BLK_BAD;
	}
}

static void own_done(struct cell_job *j)
{
	struct own_job *oj = (struct own_job *)j;
	struct disk_req *dr = oj->dr;

	for (uint32_t i = 0, k = 0; i < dr->nseg && k < oj->n; i++) {
		if (dr->segs[i].block == oj->segs[k].block)
			dr->segs[i].kind = oj->segs[k++].kind;
	}
	free(oj->segs);
	free(oj);
	req_step(dr);
}

static int load_own(struct disk_req *dr)
{
	struct own_job *oj = calloc(1, sizeof(*oj));

	if (!oj)
		return -ENOMEM;
	oj->segs = calloc(dr->nseg, sizeof(*oj->segs));
	if (!oj->segs) {
		free(oj);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < dr->nseg; i++) {
		if (dr->segs[i].kind == CP_BLK_OVERLAY)
			oj->segs[oj->n++] = dr->segs[i];
	}
	oj->dr = dr;
	dr->due++;
	cell_job_run(dr->cell, &oj->job, own_work, own_done);
	return 0;
}

// --- requests ---------------------------------------------------------------

static int parse_extents(struct disk_req *dr, struct wire_reader *r, bool *own)
{
	uint64_t disk = dr->cell->base->disk_bytes / PGC_PAGE, total = 0;
	uint32_t n;

	dr->tag = wire_get_u32(r);
	n = wire_get_u32(r);
	if (n == 0 || n > CP_MAX_EXTENTS)
		return -EBADMSG;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t block = wire_get_u32(r), blocks = wire_get_u32(r);
		int rc;

		total += blocks;
		if (r->bad || blocks == 0 || block >= disk ||
		    blocks > disk - block || total > CP_MAX_REQ_BLOCKS)
			return -EBADMSG;
		rc = sort_extent(dr, block, blocks, own);
		if (rc)
			return rc == -EBADMSG ? -EIO : rc;
	}
	return cp_ok(r) ? 0 : -EBADMSG;
}

static void one_request(struct cell_proc *p, struct wire_reader *r)
{
	struct eng_cell *cell = p->cell;
	struct disk_req *dr = calloc(1, sizeof(*dr));
	bool own = false;
	int rc;

	if (!dr) {
		cell_end(cell, ENG_END_FATAL, "thawd is out of memory");
		return;
	}
	dr->cell = cell;
	dr->due = 1; // this function's
	cell_hold(cell);
	p->disk_reqs++;
	rc = parse_extents(dr, r, &own);
	if (!rc && own)
		rc = load_own(dr);
	if (rc == -EBADMSG)
		proc_violation(p, "a disk request that makes no sense");
	else if (rc)
		cell_end(cell, ENG_END_FATAL, "a disk request failed: %s",
			 strerror(-rc));
	req_step(dr);
}

void disk_read_requests(struct cell_proc *p)
{
	uint8_t buf[CP_HEAD + 8 + CP_MAX_EXTENTS * 8];

	for (int i = 0; i < REQS_PER_TURN && !p->dying; i++) {
		int fds[CP_MAX_FDS];
		unsigned nfds;
		struct wire_reader r;
		ssize_t n = cp_recv(p->disk, MSG_DONTWAIT, buf, sizeof(buf),
				    fds, &nfds);

		if (n == -EAGAIN)
			return;
		if (n == 0 || (n < 0 && n != -EMSGSIZE)) {
			eng_watch_set(p->w_disk, 0); // ctl ends too
			return;
		}
		r = wire_reader_of(buf, n > 0 ? (size_t)n : 0);
		if (nfds || cp_head(&r) != CP_EXTENTS || !p->cell ||
		    !p->cell->has_disk || p->cell->overlay < 0 ||
		    p->disk_reqs >= CP_MAX_DISK_REQS)
			proc_violation(p, "a disk request that may not be");
		else if (proc_credit(p))
			one_request(p, &r);
		cp_close_fds(fds, nfds);
	}
}
