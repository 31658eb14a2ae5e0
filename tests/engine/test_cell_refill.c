// Shells are not refilled beneath a thaw that loads its working set. Whether it does
// is what the test says (CMakeLists.txt wraps the function that tells), and what
// time it is, too: so the states between are held still and looked at.
#include <criterion/criterion.h>
#include <string.h>

#include "cell_rig.h"
#include "cells_priv.h"

TestSuite(cell_refill, .timeout = 300);

enum { MS = 1000000, COLD_MS = 200 };

static struct rig rig;
static struct rig_vm vm[2];
static struct pgc_id img;
static bool loading;
static uint64_t now; // 0: it goes on

bool __wrap_pgc_template_prefetching(const struct pgc_template *t);
bool __wrap_pgc_template_prefetching(const struct pgc_template *t)
{
	(void)t;
	return loading;
}

uint64_t __real_util_now_ns(void);
uint64_t __wrap_util_now_ns(void);
uint64_t __wrap_util_now_ns(void)
{
	return now ? now : __real_util_now_ns();
}

// A shell, and a cell that is prepared for the image: nothing is lacking.
static bool all_ready(void *arg)
{
	(void)arg;
	return eng_cells_ready(rig.cells) == 1 &&
	       eng_cells_prepared_ready(rig.cells) == 1;
}

static unsigned spawning(void)
{
	unsigned n = 0;

	for (struct cell_proc *p = rig.cells->procs; p; p = p->next)
		n += p->state == PROC_SPAWNING;
	return n;
}

// A thaw that took one of the two: now one is lacking. The time stands still since.
static void thaw_one(struct rig_vm *v)
{
	cr_assert(rig_until(&rig, all_ready, NULL, RIG_MS));
	cr_assert_eq(spawning(), 0u);
	now = __real_util_now_ns();
	rig_launch(&rig, v, &(struct eng_thaw_req){.base = img, .t0 = now});
	cr_assert(v->cell->proc, "it waits for a process");
	cr_assert_eq(eng_cells_prepared_ready(rig.cells), 0u);
}

// What the refill's timer does. True: it was put off, to `ms` from now.
static bool refill_waits(uint64_t ms)
{
	unsigned had = spawning();

	shells_refill(rig.cells);
	if (spawning() != had)
		return false;
	cr_assert_eq(rig.cells->refill_ns, now + ms * MS);
	return true;
}

static void open_rig(void)
{
	struct rig_opts o = {.shells = 1};

	rig_open(&rig, &o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	eng_cells_want(rig.cells, 64, 1);
	rig_thaw(&rig, &vm[0], &img, NULL); // opens the snapshot
	rig_kill(&vm[0]);
}

static void close_rig(void)
{
	now = 0;
	loading = false;
	for (int i = 0; i < 2; i++)
		if (vm[i].cell)
			rig_kill(&vm[i]);
	rig_close(&rig);
}

Test(cell_refill, waits_while_a_working_set_loads_and_as_long_again)
{
	open_rig();
	loading = true;
	thaw_one(&vm[0]);
	cr_assert_eq(rig.cells->cold_ns, now);
	cr_assert(refill_waits(2), "a shell was made beneath a cold thaw");
	now += 30 * MS;
	cr_assert(refill_waits(2), "a shell was made beneath a cold thaw");
	now += 2 * MS;
	loading = false; // 32 ms after it began
	cr_assert(refill_waits(32), "the guest had no time to catch up");
	now += 32 * MS;
	cr_assert_not(refill_waits(0), "a refill waits on");
	close_rig();
}

Test(cell_refill, no_longer_than_a_limit)
{
	open_rig();
	loading = true;
	thaw_one(&vm[0]);
	now += (COLD_MS - 1) * MS;
	cr_assert(refill_waits(2), "a shell was made beneath a cold thaw");
	now += MS;
	cr_assert_not(refill_waits(0), "a prefetch that hangs holds refills");
	close_rig();
}

Test(cell_refill, a_warm_thaw_waits_for_nothing)
{
	open_rig();
	thaw_one(&vm[0]);
	cr_assert_eq(rig.cells->cold_ns, 0u);
	cr_assert_not(refill_waits(0), "a refill waits for a warm thaw");
	close_rig();
}

// Shells are in demand then.
Test(cell_refill, another_thaw_that_is_warm_ends_the_wait)
{
	open_rig();
	loading = true;
	thaw_one(&vm[0]);
	now += 10 * MS;
	cr_assert(refill_waits(2));
	loading = false;
	rig_launch(&rig, &vm[1],
		   &(struct eng_thaw_req){.base = img, .t0 = now});
	cr_assert(vm[1].cell->proc, "it waits for a process");
	cr_assert_eq(rig.cells->cold_ns, 0u);
	cr_assert_not(refill_waits(0), "shells that are in demand wait");
	close_rig();
}

Test(cell_refill, not_for_an_image_that_went_away)
{
	open_rig();
	loading = true;
	thaw_one(&vm[0]);
	cr_assert(refill_waits(2));
	memset(&rig.cells->cold, 0xff, sizeof(rig.cells->cold));
	cr_assert_not(refill_waits(0),
		      "it waits for an image that is not there");
	close_rig();
}
