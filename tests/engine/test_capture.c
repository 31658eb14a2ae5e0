// A capture that fails harms nobody; one beside the guest stands still shortly.
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>

#include "capcopy.h"
#include "cell_rig.h"

TestSuite(capture, .timeout = 300);

static struct rig rig;
static struct rig_vm vm, clone_vm;

// When pages went to the store (CMakeLists.txt wraps the function).
static uint64_t put_ns[8192];
static unsigned nputs;

int __real_pgc_builder_put(struct pgc_builder *b, enum pgc_stream st,
			   uint64_t pgno, const void *pages, uint64_t npages,
			   struct err *e);
int __wrap_pgc_builder_put(struct pgc_builder *b, enum pgc_stream st,
			   uint64_t pgno, const void *pages, uint64_t npages,
			   struct err *e);
int __wrap_pgc_builder_put(struct pgc_builder *b, enum pgc_stream st,
			   uint64_t pgno, const void *pages, uint64_t npages,
			   struct err *e)
{
	unsigned n = __atomic_fetch_add(&nputs, 1, __ATOMIC_SEQ_CST);

	if (n < ARRAY_SIZE(put_ns))
		put_ns[n] = util_now_ns();
	return __real_pgc_builder_put(b, st, pgno, pages, npages, e);
}

Test(capture, store_full)
{
	char store[] = "/tmp/thaw-small-XXXXXX";
	struct rig_opts o = {.store = store};
	struct pgc_id img, own;

	rig_need();
	cr_assert(mkdtemp(store));
	cr_assert_eq(mount("small", store, "tmpfs", 0, "size=12m"), 0);
	rig_open(&rig, &o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	rig_thaw(&rig, &vm, &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm, "fill 8 20M 24M"), "FILLED 6144");
	for (int keep = 0; keep < 2; keep++) {
		int rc = rig_capture(&vm, &own, false, keep);

		cr_assert_eq(rc, -ENOSPC, "%d: %s", rc, vm.capture_why);
		cr_assert(!vm.gone, "%s", vm.detail);
		cr_assert(strlen(vm.capture_why) > 10);
		cr_assert_str_eq(rig_cmd(&vm, "check 8 20M 24M"), "GOOD 6144");
		cr_assert_str_eq(rig_cmd(&vm, "check 7 16M 1M"), "GOOD 256");
	}
	// With room, the same microVM is suspended and comes back.
	cr_assert_eq(mount("small", store, "tmpfs", MS_REMOUNT, "size=200m"),
		     0);
	cr_assert_eq(rig_capture(&vm, &own, false, false), 0, "%s",
		     vm.capture_why);
	rig_thaw(&rig, &vm, &img, &own);
	cr_assert_str_eq(rig_cmd(&vm, "check 8 20M 24M"), "GOOD 6144");
	rig_kill(&vm);
	rig_close(&rig);
	cr_assert_eq(umount(store), 0);
	cr_assert_eq(rmdir(store), 0);
}

// All of it is out of the guest and in the store but for the last step: the guest
// goes on, and can be suspended when that is possible again.
Test(capture, not_published)
{
	char store[] = "/tmp/thaw-mounted-XXXXXX", snaps[64];
	struct rig_opts o = {.store = store};
	struct pgc_id img, own;
	struct pgc_snap *sn = NULL;
	struct err e = ERR_INIT;

	rig_need();
	cr_assert(mkdtemp(store));
	snprintf(snaps, sizeof(snaps), "%s/snaps", store);
	rig_open(&rig, &o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	rig_thaw(&rig, &vm, &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm, "fill 8 20M 24M"), "FILLED 6144");
	cr_assert_str_eq(rig_cmd(&vm, "count 3"), "COUNT 3");
	// Another mount: what was written elsewhere cannot be renamed to here.
	cr_assert_eq(mount(snaps, snaps, NULL, MS_BIND, NULL), 0);
	for (int keep = 0; keep < 2; keep++) {
		int rc = rig_capture(&vm, &own, false, keep);

		cr_assert_eq(rc, -EXDEV, "%d: %s", rc, vm.capture_why);
		cr_assert_geq(vm.st.dirty_mem_pages, 6144u);
		// It stood still until that was known, or until it was secured.
		cr_assert_gt(vm.st.parked_ns, 0u);
		cr_assert_leq(vm.st.parked_ns, vm.st.total_ns);
		cr_assert(!vm.gone, "%s", vm.detail);
		cr_assert_eq(pgc_snap_open(rig.store, &own, &sn, &e), -ENOENT);
		cr_assert_str_eq(rig_cmd(&vm, "count 1"),
				 keep ? "COUNT 5" : "COUNT 4");
		cr_assert_str_eq(rig_cmd(&vm, "check 8 20M 24M"), "GOOD 6144");
		cr_assert_str_eq(rig_cmd(&vm, "check 7 16M 1M"), "GOOD 256");
	}
	cr_assert_eq(umount(snaps), 0);
	cr_assert_eq(rig_capture(&vm, &own, false, false), 0, "%s",
		     vm.capture_why);
	rig_thaw(&rig, &vm, &img, &own);
	cr_assert_str_eq(rig_cmd(&vm, "count 1"), "COUNT 6");
	cr_assert_str_eq(rig_cmd(&vm, "check 8 20M 24M"), "GOOD 6144");
	rig_kill(&vm);
	rig_close(&rig);
	snprintf(snaps, sizeof(snaps), "rm -rf %s", store);
	cr_assert_eq(system(snaps), 0);
}

// More was written than there is room for: it is secured in rounds.
Test(capture, larger_than_the_copy)
{
	struct pgc_id img, snap, own;

	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 8M");
	rig_thaw(&rig, &vm, &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm, "fill 8 20M 40M"), "FILLED 10240");
	capcopy_set_budget(3 << 20);
	nputs = 0;
	cr_assert_eq(rig_capture(&vm, &snap, false, true), 0, "%s",
		     vm.capture_why);
	cr_assert_geq(vm.st.dirty_mem_pages, 10240u);
	// It stands still until the last round, and that is told.
	cr_assert_geq(nputs, 10u);
	cr_assert_lt(nputs, ARRAY_SIZE(put_ns));
	cr_assert_gt(vm.st.parked_ns, put_ns[nputs / 2] - put_ns[0]);
	cr_assert_leq(vm.st.parked_ns, vm.st.total_ns);
	cr_assert_str_eq(rig_cmd(&vm, "fill 5 20M 40M"), "FILLED 10240");
	cr_assert_eq(rig_capture(&vm, &own, false, false), 0, "%s",
		     vm.capture_why);
	rig_thaw(&rig, &vm, &img, &snap);
	cr_assert_str_eq(rig_cmd(&vm, "check 8 20M 40M"), "GOOD 10240");
	rig_kill(&vm);
	rig_thaw(&rig, &vm, &img, &own);
	cr_assert_str_eq(rig_cmd(&vm, "check 5 20M 40M"), "GOOD 10240");
	cr_assert_str_eq(rig_cmd(&vm, "check 7 16M 4M"), "GOOD 1024");
	rig_kill(&vm);
	rig_close(&rig);
}

// A suspend's guest is parked for the copy, not for hashing and publishing.
Test(capture, secured_before_published)
{
	struct pgc_id img, own;

	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	for (int i = 0; i < 5; i++) {
		uint64_t asked;

		rig_thaw(&rig, &vm, &img, NULL);
		cr_assert_str_eq(rig_cmd(&vm, "fill %d 20M 24M", i + 10),
				 "FILLED 6144");
		nputs = 0;
		asked = util_now_ns();
		cr_assert_eq(rig_capture(&vm, &own, false, false), 0, "%s",
			     vm.capture_why);
		cr_assert_gt(vm.st.parked_ns, 0u);
		cr_assert_gt(nputs, 0u);
		cr_assert_leq(vm.st.parked_ns, put_ns[0] - asked);
	}
	rig_close(&rig);
}

// Several at once: each has its own.
Test(capture, side_by_side)
{
	enum { N = 6 };
	static struct rig_vm vms[N];
	struct pgc_id img, own[N];

	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	capcopy_set_budget(20 << 20); // not for all of them
	for (int i = 0; i < N; i++) {
		rig_thaw(&rig, &vms[i], &img, NULL);
		cr_assert_str_eq(rig_cmd(&vms[i], "fill %d 20M 8M", i + 10),
				 "FILLED 2048");
	}
	for (int i = 0; i < N; i++)
		rig_capture_begin(&vms[i], &own[i], false, false);
	for (int i = 0; i < N; i++) {
		cr_assert(rig_until(&rig, rig_is_gone, &vms[i], RIG_MS));
		cr_assert(vms[i].captured);
		cr_assert_eq(vms[i].rc, 0, "%s", vms[i].capture_why);
		cr_assert_leq(vms[i].st.parked_ns, vms[i].st.total_ns);
	}
	for (int i = 0; i < N; i++) {
		rig_thaw(&rig, &vms[i], &img, &own[i]);
		cr_assert_str_eq(rig_cmd(&vms[i], "check %d 20M 8M", i + 10),
				 "GOOD 2048");
		rig_kill(&vms[i]);
	}
	rig_close(&rig);
}

Test(capture, beside_a_running_guest)
{
	struct pgc_id img, snap, again;
	struct eng_capture_req req = {.image = true};
	struct err e = ERR_INIT;

	rig_open(&rig, NULL);
	rig_boot(&rig, &vm, 64, 2, "fill 7 16M 8M");
	// A booted one has no image to refer to.
	req.image = false;
	cr_assert_eq(eng_cell_capture(vm.cell, &req, NULL, NULL, &e), -EINVAL);
	cr_assert_eq(rig_capture(&vm, &img, true, true), 0, "%s",
		     vm.capture_why);
	cr_assert_str_eq(rig_cmd(&vm, "fill 9 16M 8M"), "FILLED 2048");
	cr_assert_leq(vm.st.parked_ns, vm.st.total_ns);
	rig_thaw(&rig, &clone_vm, &img, NULL);
	cr_assert_str_eq(rig_cmd(&clone_vm, "check 7 16M 8M"), "GOOD 2048");
	cr_assert_str_eq(rig_cmd(&clone_vm, "fill 5 16M 1M"), "FILLED 256");
	cr_assert_eq(rig_capture(&clone_vm, &snap, false, true), 0, "%s",
		     clone_vm.capture_why);
	cr_assert_str_eq(rig_cmd(&clone_vm, "fill 6 16M 1M"), "FILLED 256");
	cr_assert_eq(rig_capture(&clone_vm, &again, false, false), 0, "%s",
		     clone_vm.capture_why);
	rig_thaw(&rig, &clone_vm, &img, &snap);
	cr_assert_str_eq(rig_cmd(&clone_vm, "check 5 16M 1M"), "GOOD 256");
	rig_kill(&clone_vm);
	rig_thaw(&rig, &clone_vm, &img, &again);
	cr_assert_str_eq(rig_cmd(&clone_vm, "check 6 16M 1M"), "GOOD 256");
	cr_assert_str_eq(rig_cmd(&vm, "check 9 16M 8M"), "GOOD 2048");
	rig_kill(&clone_vm);
	rig_kill(&vm);
	rig_close(&rig);
}

// The cell dies while it is being captured: the capture fails, then it is gone.
Test(capture, of_a_dying_cell)
{
	struct pgc_id img, id;
	int rc;

	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	for (int i = 0; i < 20; i++) {
		struct err e = ERR_INIT;
		struct pgc_snap *sn = NULL;

		rig_thaw(&rig, &vm, &img, NULL);
		rig_cmd(&vm, "fill 8 16M 16M");
		vm.kill_after_us = (unsigned)i * 500;
		rc = rig_capture(&vm, &id, false, false);
		cr_assert(rig_until(&rig, rig_is_gone, &vm, RIG_MS));
		cr_assert_eq(pgc_snap_open(rig.store, &id, &sn, &e) == 0,
			     rc == 0);
		pgc_snap_unref(sn);
		if (rc == 0) { // it was late: what was published is whole
			rig_thaw(&rig, &vm, &img, &id);
			cr_assert_str_eq(rig_cmd(&vm, "check 8 16M 16M"),
					 "GOOD 4096");
			rig_kill(&vm);
		}
	}
	rig_close(&rig);
}
