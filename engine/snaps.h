// Opened snapshots, shared by every clone: the store's handle, the state record
// (validated once, sealed), the templates, and how guest memory is laid out.
#ifndef THAW_ENG_SNAPS_H
#define THAW_ENG_SNAPS_H

#include "cellproto.h"
#include "cells.h"

enum { SNAP_WAIT_BUCKETS = 256 };

struct snap_waiter;

enum snap_state { SNAP_LOADING, SNAP_READY, SNAP_FAILED };

struct eng_snap {
	struct eng_snap *next;
	struct eng_cells *c;
	struct pgc_id id;
	enum snap_state state;
	unsigned refs;
	bool drop;	  // forget with the last reference
	bool evicted;	  // so too, unless somebody asks for it before that
	uint64_t used_ns; // when it was asked for or let go last
	struct err err;	  // when FAILED
	struct pgc_snap *sn;
	int state_fd; // sealed memfd, or -1: no state (a disk)
	uint32_t state_len, mem_mib;
	unsigned vcpus;
	uint64_t disk_bytes;
	struct pgc_template *tmpl[PGC_NUM_STREAMS]; // NULL until needed
	uint64_t tmpl_id[PGC_NUM_STREAMS];	    // the keeper's
	uint32_t nzero;
	struct cp_zero_extent zero[CP_MAX_ZERO_EXTENTS]; // by page number
	struct snap_waiter *wait[PGC_NUM_STREAMS][SNAP_WAIT_BUCKETS];
	struct snap_load *loads; // who waits for LOADING to end
	struct learn *learn;	 // learn.c; NULL: nothing yet
	struct lay_list *lay;	 // lay.c; NULL: no working set
};

// Takes a reference. The snapshot may be LOADING: then cb(ctx) is called on the
// loop when it is READY or FAILED, never from within.
struct eng_snap *eng_snap_get(struct eng_cells *c, const struct pgc_id *id,
			      void (*cb)(void *ctx), void *ctx, struct err *e);
void eng_snap_put(struct eng_snap *sn); // NULL is fine
// Ends its prepared cells, and forgets it as soon as no cell uses it.
void eng_snap_evict(struct eng_snap *sn);

// The template of a stream, opened (and known to the keeper) when first asked
// for; then its working set is prefetched if `prefetch`. READY snapshots only.
int eng_snap_template(struct eng_snap *sn, enum pgc_stream st, bool prefetch,
		      struct pgc_template **out, struct err *e);

// Whether page `pgno` of memory lies in one of the anonymous zero extents.
// *end: where that answer changes.
bool eng_snap_in_zero(const struct eng_snap *sn, uint64_t pgno, uint64_t *end);

struct eng_snap *eng_snap_find(const struct eng_cells *c,
			       const struct pgc_id *id);
// Forgets every snapshot without a reference.
void eng_snap_forget_all(struct eng_cells *c);

#endif
