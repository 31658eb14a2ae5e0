// Several clients of one thawd at once.
#ifndef THAW_BENCH_CLIENTS_H
#define THAW_BENCH_CLIENTS_H

#include "bench.h"

enum { MAX_CLIENTS = 16 };

struct client {
	const struct daemon *d;
	void *ctx;	      // shared by all
	unsigned index;	      // 0..n-1
	struct samples us;    // what `run` adds
	struct samples stamp; // and, if it likes, when: CLOCK_MONOTONIC us
	struct err e;
	int rc;
};

// Runs `run` in n threads that begin together; the samples of all are added to
// `us` and `stamp` (NULL: not wanted). 0, or the first client's error.
int clients_run(const struct daemon *d, unsigned n, int (*run)(struct client *),
		void *ctx, struct samples *us, struct samples *stamp,
		struct err *e);

#endif
