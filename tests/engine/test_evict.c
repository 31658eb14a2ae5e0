// How much templates may hold when the host runs short of memory.
#include <criterion/criterion.h>

#include "cells_priv.h"
#include "procstate.h"

enum { MIB = 1 << 20 };

Test(evict, a_sixteenth_of_the_host_stays_available)
{
	const uint64_t gib = 1024ull * MIB;

	cr_assert_eq(evict_pressed(16 * gib, 8 * gib, gib), UINT64_MAX);
	cr_assert_eq(evict_pressed(16 * gib, gib, gib), UINT64_MAX);
	// What is missing to it is given back, as far as there is so much.
	cr_assert_eq(evict_pressed(16 * gib, gib - 100 * MIB, 2 * gib),
		     2 * gib - 100 * MIB);
	cr_assert_eq(evict_pressed(16 * gib, 0, gib / 2), 0u);
	// Nothing is known: no pressure.
	cr_assert_eq(evict_pressed(0, 0, gib), UINT64_MAX);
}

Test(evict, the_hosts_memory_is_read)
{
	uint64_t total = 0, available = eng_host_memory(&total);

	cr_assert_gt(available, 0u);
	cr_assert_gt(total, available);
}
