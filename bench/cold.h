// One cold thaw, shared by cold.workingset and the comparison with the peers.
#ifndef THAW_BENCH_COLD_H
#define THAW_BENCH_COLD_H

#include "bench.h"

enum { COLD_MEM_MIB = 256, COLD_MIB = 24 };

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

// "seq", "rand", and "scattered": the working set is not one range then, but
// spread over eight times as much memory.
extern const char *const cold_orders[3];
// How much memory the working set lies in.
unsigned cold_span(unsigned mib, const char *order);
// The guest's answer to its touch of that.
int cold_parse(const char *answer, unsigned seed, unsigned mib,
	       const char *order, double *ns, struct err *e);
// Builds the image whose copies touch `mib` in this order at once.
int cold_build(const struct daemon *d, unsigned mib, const char *order,
	       struct err *e);
// Brings thawd and the host into that state; right before cold_once().
int cold_forget(struct daemon *d, enum cold_state state, struct err *e);
int cold_once(const struct daemon *d, unsigned mib, const char *order,
	      struct cold_sample *out, struct err *e);
// Medians as members of the result.
void cold_details(struct result *r, const struct cold_sample *s, size_t n);

#endif
