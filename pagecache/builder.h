// A snapshot being built: shared by builder.c (putting) and commit.c
// (publishing).
#ifndef PGC_BUILDER_H
#define PGC_BUILDER_H

#include "pgc_internal.h"

enum {
	BCHUNK = 512,  // pages whose entries are allocated together
	LOC_UNSET = 0, // not put: the parent's page, or zero
	LOC_ZERO = 1,  // put, and zero
};

struct bent {
	uint64_t loc, key;
};

struct pgc_builder {
	struct pgc_store *s;
	struct pgc_id id;
	struct map *parent;
	uint64_t npages[PGC_NUM_STREAMS];
	struct bent **chunks[PGC_NUM_STREAMS];
	struct packwriter w;
	struct ktab own;    // records of w
	struct pack **pins; // by slot: other packs that are referred to
	uint32_t npins;
	struct mblob *blobs; // p is ours
	uint32_t nblobs;
	int broken; // first error of a put: the builder can only be aborted
	// The last stretch of a pack that was read to compare bytes.
	uint32_t win_slot, win_off, win_len;
	uint8_t *win;
	uint8_t page[PGC_PAGE], rec[REC_HEADER + PGC_PAGE];
};

static inline uint64_t bchunks(uint64_t npages)
{
	return (npages + BCHUNK - 1) / BCHUNK;
}

void builder_free(struct pgc_builder *b, bool published);

#endif
