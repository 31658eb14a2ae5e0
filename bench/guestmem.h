// What the ring-3 guest's `fill` leaves in its memory (tests/ring3/ring3.c), told by
// the host: the bench checks sums with it, so that a copy that reads wrong pages
// fast is no result.
#ifndef THAW_BENCH_GUESTMEM_H
#define THAW_BENCH_GUESTMEM_H

#include <stddef.h>
#include <stdint.h>

// `bytes` (whole pages) as `fill SEED` leaves them at guest address `start`.
void guestmem_fill(uint64_t seed, uint64_t start, void *to, size_t bytes);
// What `touch` answers there: the sum of the pages' first words.
uint64_t guestmem_sum(uint64_t seed, uint64_t start, uint64_t bytes);
// The same of `touch ... scattered` and `sparse`: of each `block` pages a run.
enum { GUESTMEM_RUN = 4 };
uint64_t guestmem_sum_scattered(uint64_t seed, uint64_t start, uint64_t bytes,
				unsigned block);

#endif
