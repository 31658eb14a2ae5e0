// Suspend and resume: nothing lost, in memory, whatever the page was before.
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "capture.h"
#include "cell_rig.h"

TestSuite(cell_resume, .timeout = 300);

static struct rig rig;
static struct rig_vm vm, other;

static void suspend(struct pgc_id *own)
{
	cr_assert_eq(rig_capture(&vm, own, false, false), 0, "%s",
		     vm.capture_why);
	cr_assert_eq(vm.why, ENG_END_KILLED);
}

// What a suspend can meet: pages of the image written, zeroed, left alone; zero
// pages of the image written, and written and zeroed again.
static void twice(enum pagescan_how how, unsigned vcpus)
{
	struct pgc_id img, own1, own2;

	eng_capture_scan_how(how);
	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, vcpus, "fill 7 16M 8M");
	rig_thaw(&rig, &vm, &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm, "count 5"), "COUNT 5");
	cr_assert_str_eq(rig_cmd(&vm, "fill 8 18M 1M"), "FILLED 256");
	cr_assert_str_eq(rig_cmd(&vm, "zero 20M 1M"), "ZEROED");
	cr_assert_str_eq(rig_cmd(&vm, "fill 9 40M 2M"), "FILLED 512");
	cr_assert_str_eq(rig_cmd(&vm, "poke 52M 77"), "POKED");
	suspend(&own1);
	cr_assert_geq(vm.st.dirty_mem_pages, 256u + 256 + 512 + 1);
	cr_assert_leq(vm.st.dirty_mem_pages, 256u + 256 + 512 + 100,
		      "%lu pages for what was written",
		      (unsigned long)vm.st.dirty_mem_pages);

	for (int round = 0; round < 2; round++) {
		rig_thaw(&rig, &vm, &img, round ? &own2 : &own1);
		cr_assert(!vm.gone, "%s", vm.detail);
		cr_assert_str_eq(rig_cmd(&vm, "count 5"),
				 round ? "COUNT 15" : "COUNT 10");
		cr_assert_str_eq(rig_cmd(&vm, "check 7 16M 2M"), "GOOD 512");
		cr_assert_str_eq(rig_cmd(&vm, "check 8 18M 1M"), "GOOD 256");
		cr_assert_str_eq(rig_cmd(&vm, "check 7 19M 1M"), "GOOD 256");
		cr_assert_str_eq(rig_cmd(&vm, "iszero 20M 1M"), "ZERO");
		cr_assert_str_eq(rig_cmd(&vm, "check 7 21M 3M"), "GOOD 768");
		cr_assert_str_eq(
		    rig_cmd(&vm, round ? "iszero 40M 2M" : "check 9 40M 2M"),
		    round ? "ZERO" : "GOOD 512");
		cr_assert_str_eq(rig_cmd(&vm, "peek 52M"), "VALUE 77");
		cr_assert_str_eq(rig_cmd(&vm, "iszero 53M 1M"), "ZERO");
		if (round == 0) {
			rig_cmd(&vm, "zero 40M 2M");
			suspend(&own2);
		}
	}
	// The image is as it was.
	rig_thaw(&rig, &other, &img, NULL);
	cr_assert_str_eq(rig_cmd(&other, "check 7 16M 8M"), "GOOD 2048");
	cr_assert_str_eq(rig_cmd(&other, "iszero 40M 4M"), "ZERO");
	cr_assert_str_eq(rig_cmd(&other, "count 1"), "COUNT 1");
	rig_kill(&vm);
	rig_kill(&other);
	rig_close(&rig);
}

Test(cell_resume, twice_by_ioctl)
{
	struct pagescan s;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	bool has =
	    pagescan_run(fd, 0, 4096, PAGESCAN_IOCTL, &s, NULL) != -ENOTTY;

	// Linux 6.7 and newer have it.
	close(fd);
	twice(has ? PAGESCAN_IOCTL : PAGESCAN_BEST, 1);
}

Test(cell_resume, twice_by_reading)
{
	twice(PAGESCAN_READ, 2);
}

static bool has_mib_of_its_own(void *arg)
{
	struct eng_cell_usage u;

	eng_cell_usage(arg, &u);
	return u.private_bytes >= 1 << 20;
}

// What it wrote and left as it was is its own again before it asks: what such a
// write costs a guest is then paid beside it.
Test(cell_resume, written_as_it_was)
{
	struct pgc_id img, own;

	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 4M; fill 8 30M 1M");
	rig_thaw(&rig, &vm, &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm, "fill 7 17M 1M"), "FILLED 256");
	suspend(&own);
	rig_thaw(&rig, &vm, &img, &own);
	cr_assert(rig_until(&rig, has_mib_of_its_own, vm.cell, RIG_MS));
	cr_assert_str_eq(rig_cmd(&vm, "check 7 16M 4M"), "GOOD 1024");
	cr_assert_str_eq(rig_cmd(&vm, "fill 9 17M 1M"), "FILLED 256");
	cr_assert_str_eq(rig_cmd(&vm, "check 9 17M 1M"), "GOOD 256");
	cr_assert_str_eq(rig_cmd(&vm, "check 8 30M 1M"), "GOOD 256");
	rig_thaw(&rig, &other, &img, NULL);
	cr_assert_str_eq(rig_cmd(&other, "check 7 16M 4M"), "GOOD 1024");
	rig_kill(&vm);
	rig_kill(&other);
	rig_close(&rig);
}

// An image of a resumed microVM stands alone: everything is in it.
Test(cell_resume, fork_of_everything)
{
	struct pgc_id img, own, fork;
	struct err e = ERR_INIT;

	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 4M");
	rig_thaw(&rig, &vm, &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm, "fill 8 30M 1M"), "FILLED 256");
	suspend(&own);
	rig_thaw(&rig, &vm, &img, &own);
	cr_assert_eq(rig_capture(&vm, &fork, true, true), 0, "%s",
		     vm.capture_why);
	cr_assert(!vm.gone);
	cr_assert_str_eq(rig_cmd(&vm, "fill 9 16M 1M"), "FILLED 256");
	rig_kill(&vm);
	eng_template_drop(rig.cells, &img);
	cr_assert_eq(pgc_snap_remove(rig.store, &img, &e), 0, "%s", e.msg);
	cr_assert_eq(pgc_snap_remove(rig.store, &own, &e), 0, "%s", e.msg);
	cr_assert_eq(pgc_gc(rig.store, NULL, &e), 0, "%s", e.msg);
	rig_thaw(&rig, &vm, &fork, NULL);
	cr_assert(!vm.gone, "%s", vm.detail);
	cr_assert_str_eq(rig_cmd(&vm, "check 7 16M 4M"), "GOOD 1024");
	cr_assert_str_eq(rig_cmd(&vm, "check 8 30M 1M"), "GOOD 256");
	rig_kill(&vm);
	rig_close(&rig);
}
