// Prepared cells: only for their image, only with its bytes, and never in the way.
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "cell_rig.h"
#include "cells_priv.h"

TestSuite(cell_prepared, .timeout = 300);

static struct rig rig;
static struct rig_vm vm[4];

static const struct cell_proc *prepared_for(const struct pgc_id *img)
{
	for (struct cell_proc *p = rig.cells->procs; p; p = p->next) {
		if (p->state == PROC_PREPARED && !p->dying &&
		    memcmp(&p->snap->id, img, sizeof(*img)) == 0)
			return p;
	}
	return NULL;
}

static bool is_prepared(void *img)
{
	return prepared_for(img) != NULL;
}

static bool none_prepared(void *arg)
{
	(void)arg;
	return eng_cells_prepared_ready(rig.cells) == 0;
}

static bool process_gone(void *pid)
{
	return kill(*(pid_t *)pid, 0) < 0 && errno == ESRCH;
}

// A cell for `img` that waits; thaws it once, so that it counts as in use.
static pid_t prepare(const struct pgc_id *img, struct rig_vm *v)
{
	rig_thaw(&rig, v, img, NULL);
	cr_assert(!v->gone, "%s", v->detail);
	cr_assert(rig_until(&rig, is_prepared, (void *)(uintptr_t)img, RIG_MS));
	return prepared_for(img)->pid;
}

static void open_rig(struct rig_opts *o)
{
	rig_open(&rig, o);
	eng_cells_want(rig.cells, 64, 1);
}

Test(cell_prepared, serves_its_own_image_only)
{
	struct rig_opts o = {.shells = 1};
	struct pgc_id a, b;
	pid_t for_a, for_b;

	open_rig(&o);
	rig_image(&rig, &a, 64, 1, "fill 7 16M 1M");
	rig_image(&rig, &b, 64, 1, "fill 8 16M 1M");
	for_a = prepare(&a, &vm[0]);
	for_b = prepare(&b, &vm[1]);
	cr_assert_neq(for_a, for_b);
	rig_kill(&vm[0]);
	rig_kill(&vm[1]);

	rig_launch(&rig, &vm[0], &(struct eng_thaw_req){.base = a});
	cr_assert_eq(eng_cell_pid(vm[0].cell), for_a);
	// Nothing is prepared for it now: the other image's stays.
	rig_launch(&rig, &vm[1], &(struct eng_thaw_req){.base = a});
	cr_assert_neq(eng_cell_pid(vm[1].cell), for_b);
	rig_launch(&rig, &vm[2], &(struct eng_thaw_req){.base = b});
	cr_assert_eq(eng_cell_pid(vm[2].cell), for_b);
	for (int i = 0; i < 3; i++) {
		cr_assert(rig_until(&rig, rig_is_started, &vm[i], RIG_MS));
		cr_assert_str_eq(
		    rig_cmd(&vm[i], "check %d 16M 1M", i < 2 ? 7 : 8),
		    "GOOD 256");
		// What one writes is its own.
		cr_assert_str_eq(rig_cmd(&vm[i], "fill %d 16M 1M", 20 + i),
				 "FILLED 256");
	}
	for (int i = 0; i < 3; i++)
		cr_assert_str_eq(rig_cmd(&vm[i], "check %d 16M 1M", 20 + i),
				 "GOOD 256");
	for (int i = 0; i < 3; i++)
		rig_kill(&vm[i]);
	rig_close(&rig);
}

static bool has_answered(void *v)
{
	return strchr(((struct rig_vm *)v)->text, '\n') != NULL;
}

Test(cell_prepared, payload_and_times)
{
	static const char mail[] = "check 7 16M 1M\n";
	struct rig_opts o = {.shells = 1};
	struct pgc_id img;
	struct eng_thaw_req req = {.mailbox = mail,
				   .mailbox_len = sizeof(mail) - 1};
	pid_t pid;

	open_rig(&o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	pid = prepare(&img, &vm[0]);
	req.base = img;
	req.t0 = util_now_ns();
	rig_launch(&rig, &vm[1], &req);
	cr_assert_eq(eng_cell_pid(vm[1].cell), pid);
	cr_assert(rig_until(&rig, rig_is_started, &vm[1], RIG_MS));
	cr_assert(rig_until(&rig, has_answered, &vm[1], RIG_MS));
	cr_assert(strstr(vm[1].text, "GOOD 256"), "%s", vm[1].text);
	eng_cell_get_times(vm[1].cell, &vm[1].times);
	cr_assert_geq(vm[1].times.handed, req.t0);
	cr_assert_geq(vm[1].times.mapped, vm[1].times.handed);
	cr_assert_geq(vm[1].times.loaded, vm[1].times.mapped);
	cr_assert_gt(vm[1].times.first_exit, vm[1].times.loaded);
	rig_kill(&vm[0]);
	rig_kill(&vm[1]);
	rig_close(&rig);
}

// A microVM's own state, and a recording, are not what it has in place.
Test(cell_prepared, not_for_a_resume_or_a_recording)
{
	struct rig_opts o = {.shells = 1};
	struct pgc_id img, own;
	struct eng_thaw_req req = {.record = true};
	pid_t pid;

	open_rig(&o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	rig_thaw(&rig, &vm[0], &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm[0], "fill 9 16M 1M"), "FILLED 256");
	cr_assert_eq(rig_capture(&vm[0], &own, false, false), 0);
	pid = prepare(&img, &vm[1]);
	rig_thaw(&rig, &vm[0], &img, &own);
	cr_assert_neq(eng_cell_pid(vm[0].cell), pid);
	cr_assert_str_eq(rig_cmd(&vm[0], "check 9 16M 1M"), "GOOD 256");
	req.base = img;
	rig_thaw_req(&rig, &vm[2], &req);
	cr_assert_neq(eng_cell_pid(vm[2].cell), pid);
	cr_assert_eq(prepared_for(&img)->pid, pid);
	for (int i = 0; i < 3; i++)
		rig_kill(&vm[i]);
	rig_close(&rig);
}

// A recording needs the template page by page; nobody after it does.
Test(cell_prepared, a_recording_slows_nobody_after_it)
{
	struct rig_opts o = {.shells = 1};
	struct eng_thaw_req req = {.record = true};
	struct eng_cell_usage u;
	struct pgc_id img;
	pid_t pid;

	open_rig(&o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 4M");
	pid = prepare(&img, &vm[0]);
	req.base = img;
	rig_thaw_req(&rig, &vm[1], &req);
	cr_assert_str_eq(rig_cmd(&vm[1], "check 7 16M 1M"), "GOOD 256");
	eng_cell_usage(vm[1].cell, &u);
	cr_assert_geq(u.faults, 256u);
	rig_kill(&vm[1]);
	rig_thaw(&rig, &vm[2], &img, NULL);
	cr_assert_eq(eng_cell_pid(vm[2].cell), pid);
	cr_assert_str_eq(rig_cmd(&vm[2], "check 7 16M 4M"), "GOOD 1024");
	eng_cell_usage(vm[2].cell, &u); // a cluster is 16 pages
	cr_assert_leq(u.faults, 48u + 60, "%lu faults",
		      (unsigned long)u.faults);
	rig_kill(&vm[0]);
	rig_kill(&vm[2]);
	rig_close(&rig);
}

static bool is_dropped(void *img)
{
	return eng_snap_find(rig.cells, img) == NULL;
}

Test(cell_prepared, ends_with_its_image)
{
	struct rig_opts o = {.shells = 1};
	struct pgc_id img;
	pid_t pid;

	open_rig(&o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	pid = prepare(&img, &vm[0]);
	rig_kill(&vm[0]);
	eng_template_drop(rig.cells, &img);
	cr_assert_eq(eng_cells_prepared_ready(rig.cells), 0u);
	// Its mapping is the last; then the template goes, and not before.
	cr_assert(rig_until(&rig, process_gone, &pid, RIG_MS));
	cr_assert(rig_until(&rig, is_dropped, &img, RIG_MS));
	rig_turn(&rig, 50);
	cr_assert_eq(eng_cells_prepared_ready(rig.cells), 0u);
	// It is still in the store: from there it comes back, cold.
	rig_thaw(&rig, &vm[0], &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm[0], "check 7 16M 1M"), "GOOD 256");
	rig_kill(&vm[0]);
	rig_close(&rig);
}

static bool is_evicted(void *img)
{
	static uint64_t freed;
	const struct eng_snap *sn = eng_snap_find(rig.cells, img);

	freed += pgc_template_evict(sn->tmpl[PGC_MEM], 1u << 30);
	return freed >= 4u << 20;
}

// Pages that went away while it waited come back as what they were.
Test(cell_prepared, template_evicted_meanwhile)
{
	struct rig_opts o = {.shells = 1};
	struct pgc_id img;
	struct eng_cell_usage u;
	pid_t pid;

	open_rig(&o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 4M");
	rig_thaw(&rig, &vm[0], &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm[0], "check 7 16M 4M"), "GOOD 1024");
	pid = prepare(&img, &vm[1]);
	rig_turn(&rig, 50);
	cr_assert(rig_until(&rig, is_evicted, &img, RIG_MS));
	rig_thaw(&rig, &vm[2], &img, NULL);
	cr_assert_eq(eng_cell_pid(vm[2].cell), pid);
	cr_assert_str_eq(rig_cmd(&vm[2], "check 7 16M 4M"), "GOOD 1024");
	eng_cell_usage(vm[2].cell, &u);
	cr_assert_gt(u.faults, 0u);
	for (int i = 0; i < 3; i++)
		rig_kill(&vm[i]);
	rig_close(&rig);
}

Test(cell_prepared, killed_and_replaced)
{
	struct rig_opts o = {.shells = 1};
	struct pgc_id img;
	pid_t pid;

	open_rig(&o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	pid = prepare(&img, &vm[0]);
	kill(pid, SIGKILL);
	cr_assert(rig_until(&rig, none_prepared, NULL, RIG_MS));
	cr_assert(rig_until(&rig, is_prepared, &img, RIG_MS));
	cr_assert_neq(prepared_for(&img)->pid, pid);
	pid = prepared_for(&img)->pid;
	rig_thaw(&rig, &vm[1], &img, NULL);
	cr_assert_eq(eng_cell_pid(vm[1].cell), pid);
	cr_assert_str_eq(rig_cmd(&vm[1], "check 7 16M 1M"), "GOOD 256");
	rig_kill(&vm[0]);
	rig_kill(&vm[1]);
	rig_close(&rig);
}

// Somebody who needs a place gets that of a prepared cell.
Test(cell_prepared, makes_room)
{
	struct rig_opts o = {.shells = 1, .max_cells = 3};
	struct pgc_id img;
	pid_t pid;

	open_rig(&o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	pid = prepare(&img, &vm[0]);
	// One microVM, one prepared, one shell. The first boot has the shell.
	rig_boot(&rig, &vm[1], 64, 1, "fill 5 16M 1M");
	cr_assert_neq(eng_cell_pid(vm[1].cell), pid);
	rig_boot(&rig, &vm[2], 64, 1, "fill 6 16M 1M");
	cr_assert(process_gone(&pid));
	cr_assert_str_eq(rig_cmd(&vm[2], "check 6 16M 1M"), "GOOD 256");
	for (int i = 0; i < 3; i++)
		rig_kill(&vm[i]);
	rig_close(&rig);
}

// Destroyed while one is being prepared, and others wait: nothing is left.
Test(cell_prepared, destroyed_in_the_middle)
{
	struct rig_opts o = {.shells = 3};
	struct pgc_id img;
	pid_t pid;

	open_rig(&o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	pid = prepare(&img, &vm[0]);
	rig_close(&rig);
	cr_assert(process_gone(&pid));
}
