#include "guestmem.h"

enum { PAGE = 4096, WORDS = PAGE / 8 };

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ull;
	return x ^ x >> 33;
}

void guestmem_fill(uint64_t seed, uint64_t start, void *to, size_t bytes)
{
	uint64_t *w = to;

	for (uint64_t a = 0; a < bytes; a += PAGE, w += WORDS) {
		uint64_t base = mix(seed ^ mix(start + a));

		for (uint64_t i = 0; i < WORDS; i++)
			w[i] = i < WORDS / 2 ? base : mix(base + i);
	}
}

uint64_t guestmem_sum(uint64_t seed, uint64_t start, uint64_t bytes)
{
	uint64_t sum = 0;

	for (uint64_t a = 0; a < bytes; a += PAGE)
		sum += mix(seed ^ mix(start + a));
	return sum;
}

uint64_t guestmem_sum_scattered(uint64_t seed, uint64_t start, uint64_t bytes,
				unsigned block)
{
	uint64_t sum = 0;

	for (uint64_t b = 0; b < bytes / PAGE / block; b++)
		sum += guestmem_sum(
		    seed,
		    start + (b * block + mix(b) % (block - GUESTMEM_RUN + 1)) *
				PAGE,
		    GUESTMEM_RUN * PAGE);
	return sum;
}
