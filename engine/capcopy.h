// What a capture publishes, on its way out of a parked cell: the lists of written
// pages, and the copy ("arena") that stands between the guest and the builder.
//
// Memory pages come first, then disk blocks, each in ascending order. The arena
// holds the next part of them: capcopy_fill() reads as much as there is room
// for, capcopy_put() gives it to a builder. Written memory that fits is thus
// out of the guest in one fill; more takes several rounds.
#ifndef THAW_ENG_CAPCOPY_H
#define THAW_ENG_CAPCOPY_H

#include "jobs.h"
#include "pagecache.h"
#include "pagescan.h"

struct capcopy_src { // a parked cell
	pid_t pid;
	uint64_t mem_base;
	int overlay;		 // -1: no disk
	struct eng_jobs *helper; // takes a half of much memory; or NULL
};

struct capcopy_pos {
	unsigned st; // stream; PGC_NUM_STREAMS at the end
	size_t run;
	uint32_t off; // pages of the run that are behind
};

struct capcopy {
	struct pagescan list[PGC_NUM_STREAMS]; // set by the caller
	uint8_t *arena;			       // NULL: none yet
	size_t bytes, taken;		       // mapped; of the budget
	struct capcopy_pos in, out; // next page to be read, to be put
};

// Bytes that all arenas of this process together may have.
uint64_t capcopy_budget(void);
void capcopy_set_budget(uint64_t bytes); // tests; 0: from the machine's memory

// Makes the arena one of at least `bytes`; `touch`: with its pages present. Not
// while it holds anything. Best effort: where there is no room it stays smaller,
// and without one capcopy_fill() makes a small one.
void capcopy_prepare(struct capcopy *c, uint64_t bytes, bool touch);
// Reads on, until the arena is full or all of the streams up to `last` is read.
// Not while it holds anything. -errno.
int capcopy_fill(struct capcopy *c, const struct capcopy_src *src,
		 enum pgc_stream last, struct err *e);
// All pages of the stream were read.
bool capcopy_is_out(const struct capcopy *c, enum pgc_stream st);
// Puts what the arena holds and empties it.
int capcopy_put(struct capcopy *c, struct pgc_builder *b, struct err *e);
// All was read and put.
bool capcopy_is_done(const struct capcopy *c);
void capcopy_free(struct capcopy *c);

// This thread is one for whom parked guests wait: it goes before those that hash.
void capcopy_hurry(void);

#endif
