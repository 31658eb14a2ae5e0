// One cold thaw, shared by cold.workingset and the comparison with the peers.
#ifndef THAW_BENCH_COLD_H
#define THAW_BENCH_COLD_H

#include "bench.h"

enum { COLD_MIB = 24 };

// What is still in memory when a thaw begins.
enum cold_state {
	COLD_DROPPED,	// nothing of the image
	COLD_PAGECACHE, // the store's files; no template
	COLD_TEMPLATE,	// the template, complete
};

struct cold_sample {
	double t1_ms, t5_ms;
	double cpu_ms; // of thawd and the cell
	double faults, fault_pages;
	double read_bytes; // from disks, by anybody
};

// Where the pages of a working set lie, and in which order the guest needs them.
struct cold_order {
	const char *name; // the guest's word for it, too
	unsigned spread;  // it lies in this many times its size of memory...
	unsigned block;	  // ...a run of pages in each so many; 0: in one range
	unsigned guest_mib; // that the guest has
};
enum { COLD_SEQ, COLD_RAND, COLD_SCATTERED, COLD_SPARSE, COLD_ORDERS };
// Sparse is scattered over nearly all of the smallest guest that AWS has.
extern const struct cold_order cold_orders[COLD_ORDERS];
// The guest's answer to its touch of that.
int cold_parse(const char *answer, unsigned seed, unsigned mib,
	       const struct cold_order *order, double *ns, struct err *e);
// Builds the image whose copies touch `mib` in this order at once.
int cold_build(const struct daemon *d, unsigned mib,
	       const struct cold_order *order, struct err *e);
// Brings thawd and the host into that state; right before cold_once().
int cold_forget(struct daemon *d, enum cold_state state, struct err *e);
int cold_once(const struct daemon *d, unsigned mib,
	      const struct cold_order *order, struct cold_sample *out,
	      struct err *e);
// Medians as members of the result.
void cold_details(struct result *r, const struct cold_sample *s, size_t n);

#endif
