// A capture that fails harms nobody; one beside the guest stands still shortly.
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>

#include "cell_rig.h"

TestSuite(capture, .timeout = 120);

static struct rig rig;
static struct rig_vm vm, clone_vm;

Test(capture, store_full)
{
	char store[] = "/tmp/thaw-small-XXXXXX";
	struct rig_opts o = {.store = store};
	struct pgc_id img, own;

	if (!rig_usable())
		cr_skip_test("needs root, /dev/kvm and /dev/userfaultfd");
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

Test(capture, beside_a_running_guest)
{
	struct pgc_id img, snap, again;
	struct eng_capture_req req = {.image = true};
	struct err e = ERR_INIT;

	if (!rig_usable())
		cr_skip_test("needs root, /dev/kvm and /dev/userfaultfd");
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

	if (!rig_usable())
		cr_skip_test("needs root, /dev/kvm and /dev/userfaultfd");
	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	for (int i = 0; i < 20; i++) {
		struct err e = ERR_INIT;
		struct pgc_snap *sn = NULL;

		rig_thaw(&rig, &vm, &img, NULL);
		rig_cmd(&vm, "fill 8 16M 16M");
		vm.kill_after_us = (unsigned)i * 500;
		rc = rig_capture(&vm, &id, false, false);
		cr_assert(rig_until(&rig, rig_is_gone, &vm, 10000));
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
