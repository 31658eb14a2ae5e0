// Faults: filled once for all clones; a page that cannot be had ends the cell
// and is never a zero.
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cell_rig.h"
#include "cells_priv.h"

TestSuite(cell_faults, .timeout = 300);

static struct rig rig;
static struct rig_vm a, b;

Test(cell_faults, second_clone_raises_none)
{
	struct pgc_id img;
	struct eng_cell_usage u;

	if (!rig_usable())
		cr_skip_test("needs root, /dev/kvm and /dev/userfaultfd");
	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 16M");
	rig_thaw(&rig, &a, &img, NULL);
	cr_assert_str_eq(rig_cmd(&a, "check 7 16M 16M"), "GOOD 4096");
	eng_cell_usage(a.cell, &u);
	cr_assert_geq(u.faults, 256u - 1); // a cluster is 16 pages
	cr_assert_leq(u.faults, 256u + 60);
	cr_assert_geq(eng_template_bytes(rig.cells, &img), 16u << 20);
	rig_thaw(&rig, &b, &img, NULL);
	cr_assert_str_eq(rig_cmd(&b, "check 7 16M 16M"), "GOOD 4096");
	eng_cell_usage(b.cell, &u);
	cr_assert_eq(u.faults, 0, "%lu faults", (unsigned long)u.faults);
	cr_assert_leq(u.private_bytes, 2u << 20);
	// Dropped with the last clone, it is cold again.
	rig_kill(&a);
	eng_template_drop(rig.cells, &img);
	cr_assert_geq(eng_template_bytes(rig.cells, &img), 16u << 20);
	rig_kill(&b);
	cr_assert_eq(eng_template_bytes(rig.cells, &img), 0u);
	rig_close(&rig);
}

static bool is_prefetched(void *img)
{
	const struct eng_snap *sn = eng_snap_find(rig.cells, img);

	return !pgc_template_prefetching(sn->tmpl[PGC_MEM]);
}

Test(cell_faults, recorded_order_is_prefetched)
{
	struct pgc_id img;
	struct eng_thaw_req req = {.record = true};
	struct eng_cell_usage u;
	const uint32_t *pgnos;
	size_t n;
	struct err e = ERR_INIT;
	bool found = false;

	if (!rig_usable())
		cr_skip_test("needs root, /dev/kvm and /dev/userfaultfd");
	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 4M");
	rig_thaw(&rig, &a, &img, NULL); // not recording
	cr_assert_eq(eng_cell_recorded(a.cell, &pgnos), 0u);
	rig_kill(&a);
	eng_template_drop(rig.cells, &img);
	req.base = img;
	memset(&a, 0, sizeof(a));
	rig_thaw_req(&rig, &a, &req);
	cr_assert_str_eq(rig_cmd(&a, "check 7 18M 1M"), "GOOD 256");
	cr_assert_str_eq(rig_cmd(&a, "check 7 16M 1M"), "GOOD 256");
	n = eng_cell_recorded(a.cell, &pgnos);
	cr_assert_geq(n, 512u);	      // two times 1 MiB by single pages,
	cr_assert_leq(n, 512u + 64u); // and little beside
	for (size_t i = 0; i + 1 < n; i++) {
		// 18M is needed before 16M.
		found |= pgnos[i] == (18u << 20) / 4096;
		if (pgnos[i] == (16u << 20) / 4096)
			cr_assert(found);
	}
	cr_assert(found);
	cr_assert_eq(
	    pgc_snap_set_workset(rig.store, &img, PGC_MEM, pgnos, n, &e), 0,
	    "%s", e.msg);
	rig_kill(&a);
	eng_template_drop(rig.cells, &img);
	rig_thaw(&rig, &b, &img, NULL);
	cr_assert(rig_until(&rig, is_prefetched, &img, RIG_MS));
	cr_assert_str_eq(rig_cmd(&b, "echo up"), "up"); // what it needs itself
	eng_cell_usage(b.cell, &u);
	n = u.faults;
	cr_assert_str_eq(rig_cmd(&b, "check 7 18M 1M"), "GOOD 256");
	cr_assert_str_eq(rig_cmd(&b, "check 7 16M 1M"), "GOOD 256");
	eng_cell_usage(b.cell, &u);
	cr_assert_eq(u.faults, n, "%lu faults on what was prefetched",
		     (unsigned long)(u.faults - n));
	rig_kill(&b);
	rig_close(&rig);
}

// Flips one byte of each 4 KiB of a pack's second half.
static void corrupt_packs(const char *dir)
{
	char path[400];
	struct dirent *d;
	DIR *dp;

	snprintf(path, sizeof(path), "%s/store/packs", dir);
	dp = opendir(path);
	cr_assert(dp);
	while ((d = readdir(dp))) {
		struct stat sb;
		int fd;

		if (d->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/store/packs/%s", dir,
			 d->d_name);
		fd = open(path, O_RDWR);
		cr_assert(fd >= 0 && fstat(fd, &sb) == 0);
		for (off_t at = sb.st_size / 2; at < sb.st_size; at += 1000) {
			uint8_t x;

			cr_assert_eq(pread(fd, &x, 1, at), 1);
			x ^= 0x10;
			cr_assert_eq(pwrite(fd, &x, 1, at), 1);
		}
		close(fd);
	}
	closedir(dp);
}

Test(cell_faults, corrupt_page_ends_the_cell)
{
	struct pgc_id img;
	const char *line;

	if (!rig_usable())
		cr_skip_test("needs root, /dev/kvm and /dev/userfaultfd");
	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 16M");
	corrupt_packs(rig.dir);
	rig_thaw(&rig, &a, &img, NULL);
	line = rig_cmd(&a, "check 7 16M 16M");
	cr_assert_str_eq(line, "(gone)", "the guest read: %s", line);
	cr_assert(!strstr(a.text, "BAD"), "%s", a.text);
	cr_assert(rig_until(&rig, rig_is_gone, &a, RIG_MS));
	cr_assert_eq(a.why, ENG_END_MEMORY);
	cr_assert(strstr(a.detail, "page"), "%s", a.detail);
	rig_close(&rig);
}

Test(cell_faults, crash_of_one_is_its_own)
{
	struct pgc_id img;

	if (!rig_usable())
		cr_skip_test("needs root, /dev/kvm and /dev/userfaultfd");
	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 4M");
	rig_thaw(&rig, &a, &img, NULL);
	rig_thaw(&rig, &b, &img, NULL);
	cr_assert_neq(eng_cell_pid(a.cell), eng_cell_pid(b.cell));
	kill(eng_cell_pid(a.cell), SIGKILL);
	cr_assert(rig_until(&rig, rig_is_gone, &a, RIG_MS));
	cr_assert_eq(a.why, ENG_END_CRASHED);
	cr_assert(strstr(a.detail, "SIGKILL"), "%s", a.detail);
	cr_assert_str_eq(rig_cmd(&b, "check 7 16M 4M"), "GOOD 1024");
	rig_kill(&b);
	cr_assert_eq(b.why, ENG_END_KILLED);
	rig_close(&rig);
}

Test(cell_faults, the_guest_ends_itself)
{
	struct pgc_id img;

	if (!rig_usable())
		cr_skip_test("needs root, /dev/kvm and /dev/userfaultfd");
	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "");
	rig_thaw(&rig, &a, &img, NULL);
	cr_assert_eq(eng_cell_mailbox(a.cell, "off\n", 4, NULL), 0);
	cr_assert(rig_until(&rig, rig_is_gone, &a, RIG_MS));
	cr_assert_eq(a.why, ENG_END_POWEROFF);
	rig_thaw(&rig, &a, &img, NULL);
	cr_assert_eq(eng_cell_mailbox(a.cell, "crash\n", 6, NULL), 0);
	cr_assert(rig_until(&rig, rig_is_gone, &a, RIG_MS));
	cr_assert_eq(a.why, ENG_END_RESET);
	rig_close(&rig);
}
