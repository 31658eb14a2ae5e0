// Shells and blanks: prepared, taken, replaced, limited.
#include <criterion/criterion.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "cell_rig.h"
#include "cells_priv.h"

TestSuite(cell_shells, .timeout = 300);

static struct rig rig;
static struct rig_vm vm[7];

static bool two_ready(void *arg)
{
	(void)arg;
	return eng_cells_ready(rig.cells) == 2;
}

Test(cell_shells, refilled_after_use_and_death)
{
	struct rig_opts o = {.shells = 2};
	struct eng_thaw_req req = {0};
	struct pgc_id img;
	uint64_t returned;

	rig_open(&rig, &o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	cr_assert_eq(eng_cells_ready(rig.cells), 0u);
	eng_cells_want(rig.cells, 64, 1);
	cr_assert(rig_until(&rig, two_ready, NULL, RIG_MS));
	rig_thaw(&rig, &vm[0], &img, NULL); // opens the snapshot
	req.base = img;
	req.t0 = util_now_ns();
	rig_launch(&rig, &vm[1], &req);
	returned = util_now_ns();
	cr_assert(rig_until(&rig, rig_is_started, &vm[1], RIG_MS));
	// Handed over within the call, to a shell that was there before it.
	cr_assert_geq(vm[1].times.handed, req.t0);
	cr_assert_leq(vm[1].times.handed, returned);
	cr_assert_gt(vm[1].times.mapped, vm[1].times.handed);
	cr_assert_gt(vm[1].times.loaded, vm[1].times.mapped);
	cr_assert_str_eq(rig_cmd(&vm[1], "check 7 16M 1M"), "GOOD 256");
	eng_cell_get_times(vm[1].cell, &vm[1].times);
	cr_assert_gt(vm[1].times.first_exit, vm[1].times.loaded);
	cr_assert(rig_until(&rig, two_ready, NULL, RIG_MS));
	cr_log_info("from a shell, us: handed %lu, mapped %lu, loaded %lu, "
		    "first exit %lu",
		    (vm[1].times.handed - vm[1].times.t0) / 1000,
		    (vm[1].times.mapped - vm[1].times.t0) / 1000,
		    (vm[1].times.loaded - vm[1].times.t0) / 1000,
		    (vm[1].times.first_exit - vm[1].times.t0) / 1000);
	rig_kill(&vm[0]);
	rig_kill(&vm[1]);
	rig_close(&rig);
}

Test(cell_shells, other_classes_make_room)
{
	struct rig_opts o = {.shells = 2, .max_cells = 2};
	struct pgc_id img;

	rig_open(&rig, &o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	eng_cells_want(rig.cells, 128, 1);
	cr_assert(rig_until(&rig, two_ready, NULL, RIG_MS));
	rig_thaw(&rig, &vm[0], &img, NULL);
	cr_assert(!vm[0].gone, "%s", vm[0].detail);
	rig_thaw(&rig, &vm[1], &img, NULL);
	cr_assert(!vm[1].gone, "%s", vm[1].detail);
	cr_assert_eq(eng_cells_ready(rig.cells), 0u);
	// Now all places are microVMs: one more is refused, with a reason.
	rig_thaw(&rig, &vm[2], &img, NULL);
	cr_assert(vm[2].gone);
	cr_assert_eq(vm[2].why, ENG_END_START);
	cr_assert(strstr(vm[2].detail, "2 cells are in use"), "%s",
		  vm[2].detail);
	// A place comes back with the end of one.
	rig_kill(&vm[0]);
	rig_thaw(&rig, &vm[2], &img, NULL);
	cr_assert(!vm[2].gone, "%s", vm[2].detail);
	cr_assert_str_eq(rig_cmd(&vm[2], "check 7 16M 1M"), "GOOD 256");
	rig_kill(&vm[1]);
	rig_kill(&vm[2]);
	rig_close(&rig);
}

Test(cell_shells, what_cannot_start_says_why)
{
	struct rig_opts o = {.cell = "ring3.elf"}; // no program of this host
	struct rig_opts none = {0};
	struct pgc_id nobody = {{1, 2, 3}};

	rig_open(&rig, &none);
	rig_thaw(&rig, &vm[0], &nobody, NULL);
	cr_assert_eq(vm[0].why, ENG_END_START);
	cr_assert(vm[0].detail[0]);
	rig_close(&rig);

	rig_open(&rig, &o);
	{
		struct rig_vm *v = &vm[1];
		struct eng_boot_req req = {.mem_mib = 64,
					   .vcpus = 1,
					   .kernel_path = "/bin/true",
					   .cmdline = ""};
		struct err e = ERR_INIT;

		rig_boot_req(&rig, v, &req);
		cr_assert(rig_until(&rig, rig_is_gone, v, RIG_MS));
		cr_assert_eq(v->why, ENG_END_START);
		cr_assert(strstr(v->detail, "could not start"), "%s",
			  v->detail);
		req.kernel_path = "/nonexistent";
		cr_assert_neq(
		    eng_cell_boot(rig.cells, &req, NULL, NULL, &v->cell, &e),
		    0);
		cr_assert(strstr(e.msg, "/nonexistent"), "%s", e.msg);
		req.kernel_path = "/tmp";
		cr_assert_neq(
		    eng_cell_boot(rig.cells, &req, NULL, NULL, &v->cell, &e),
		    0);
	}
	rig_close(&rig);
}

static bool blanks_ready(void *want)
{
	return eng_cells_blanks_ready(rig.cells) == *(unsigned *)want;
}

static void await_blanks(unsigned n)
{
	cr_assert(rig_until(&rig, blanks_ready, &n, RIG_MS), "%u of %u blanks",
		  eng_cells_blanks_ready(rig.cells), n);
}

// Proportional memory of a process, in KiB, outside of [from, to).
static unsigned long pss_outside(pid_t pid, uint64_t from, uint64_t to)
{
	char path[64], line[512];
	unsigned long sum = 0, kib, lo, hi;
	bool counts = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	f = fopen(path, "r");
	cr_assert(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &lo, &hi) == 2)
			counts = hi <= from || lo >= to;
		else if (sscanf(line, "Pss: %lu kB", &kib) == 1 && counts)
			sum += kib;
		else if (sscanf(line, "VmPTE: %lu kB", &kib) == 1)
			sum += kib;
	}
	fclose(f);
	return sum;
}

static void small(unsigned blanks)
{
	struct rig_opts o = {.blanks = blanks};
	struct pgc_id img;
	struct cell_proc *p;
	unsigned long kib;

	rig_open(&rig, blanks ? &o : NULL);
	rig_image(&rig, &img, 256, 4, "fill 7 16M 1M");
	if (blanks)
		await_blanks(blanks);
	rig_thaw(&rig, &vm[0], &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm[0], "check 7 16M 1M"), "GOOD 256");
	p = vm[0].cell->proc;
	kib = pss_outside(p->pid, p->mem_base, p->mem_base + p->mem_bytes);
	cr_log_info("a cell with 4 vCPUs: %lu KiB beside its guest", kib);
#ifndef __SANITIZE_ADDRESS__
	cr_assert_leq(kib, 3u * 1024); // the kernel's part comes on top
#endif
	rig_kill(&vm[0]);
	rig_close(&rig);
}

Test(cell_shells, a_cell_is_small)
{
	small(0);
}

Test(cell_shells, a_cell_from_a_blank_is_small)
{
	small(1);
}

// The blank that the next one to come will get.
static pid_t next_blank(void)
{
	cr_assert(rig.cells->blank && rig.cells->blank->ready);
	return rig.cells->blank->ready->pid;
}

// An image, a suspended microVM and a boot, each from a blank.
static void from_blanks(uint32_t mem_mib, unsigned vcpus)
{
	struct rig_opts o = {.blanks = 2};
	struct pgc_id img, own;
	pid_t pid;

	rig_open(&rig, &o);
	await_blanks(2);
	cr_assert_eq(eng_cells_ready(rig.cells), 0u); // those are not shells
	pid = next_blank();
	rig_boot(&rig, &vm[0], mem_mib, vcpus, "fill 7 16M 4M");
	cr_assert_eq(eng_cell_pid(vm[0].cell), pid);
	cr_assert_eq(rig_capture(&vm[0], &img, true, false), 0, "%s",
		     vm[0].capture_why);
	await_blanks(2);
	pid = next_blank();
	rig_thaw(&rig, &vm[0], &img, NULL);
	cr_assert(!vm[0].gone, "%s", vm[0].detail);
	cr_assert_eq(eng_cell_pid(vm[0].cell), pid);
	cr_assert_eq(vm[0].cell->proc->mem_bytes, (uint64_t)mem_mib << 20);
	cr_assert_str_eq(rig_cmd(&vm[0], "check 7 16M 4M"), "GOOD 1024");
	cr_assert_str_eq(rig_cmd(&vm[0], "fill 8 18M 1M"), "FILLED 256");
	cr_assert_eq(rig_capture(&vm[0], &own, false, false), 0, "%s",
		     vm[0].capture_why);
	await_blanks(2);
	pid = next_blank();
	rig_thaw(&rig, &vm[1], &img, &own);
	cr_assert(!vm[1].gone, "%s", vm[1].detail);
	cr_assert_eq(eng_cell_pid(vm[1].cell), pid);
	cr_assert_str_eq(rig_cmd(&vm[1], "check 7 16M 2M"), "GOOD 512");
	cr_assert_str_eq(rig_cmd(&vm[1], "check 8 18M 1M"), "GOOD 256");
	cr_assert_str_eq(rig_cmd(&vm[1], "check 7 19M 1M"), "GOOD 256");
	await_blanks(2); // refilled after each
	rig_kill(&vm[1]);
	rig_close(&rig);
}

Test(cell_shells, a_blank_becomes_any_machine)
{
	from_blanks(64, 1);
}

Test(cell_shells, a_blank_with_two_vcpus)
{
	from_blanks(128, 2);
}

// Above 3 GiB guest memory is in two slots.
Test(cell_shells, a_blank_of_four_gib)
{
	from_blanks(4096, 1);
}

static bool two_prepared(void *arg)
{
	(void)arg;
	return eng_cells_prepared_ready(rig.cells) == 2;
}

// Best is a cell with the image in place, then a shell of the class; with none,
// and no blank, a process is made.
Test(cell_shells, prepared_before_shells_before_blanks_before_none)
{
	struct rig_opts o = {.shells = 2, .blanks = 1}, none = {0};
	struct pgc_id img;
	pid_t blank;

	rig_open(&rig, &o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	eng_cells_want(rig.cells, 64, 1);
	cr_assert(rig_until(&rig, two_ready, NULL, RIG_MS));
	await_blanks(1);
	blank = next_blank();
	rig_thaw(&rig, &vm[0], &img, NULL); // opens the snapshot
	cr_assert_eq(eng_cells_blanks_ready(rig.cells), 1u);
	cr_assert(rig_until(&rig, two_ready, NULL, RIG_MS));
	cr_assert(rig_until(&rig, two_prepared, NULL, RIG_MS));
	// Five at once: two prepared ones, two shells, then the blank; one more.
	for (int i = 1; i < 6; i++) {
		const unsigned left[] = {2, 2, 2, 1, 0, 0};

		rig_launch(&rig, &vm[i], &(struct eng_thaw_req){.base = img});
		cr_assert_eq(eng_cells_prepared_ready(rig.cells),
			     i < 2 ? 1u : 0u);
		cr_assert_eq(eng_cells_ready(rig.cells), left[i]);
		cr_assert_eq(eng_cell_pid(vm[i].cell) == blank, i == 5);
	}
	rig_launch(&rig, &vm[6], &(struct eng_thaw_req){.base = img});
	cr_assert_eq(eng_cell_pid(vm[6].cell), 0);
	for (int i = 0; i < 7; i++) {
		cr_assert(rig_until(&rig, rig_is_started, &vm[i], RIG_MS), "%s",
			  vm[i].detail);
		cr_assert_str_eq(rig_cmd(&vm[i], "check 7 16M 1M"), "GOOD 256");
	}
	await_blanks(1);
	cr_assert(rig_until(&rig, two_ready, NULL, RIG_MS));
	for (int i = 0; i < 7; i++)
		rig_kill(&vm[i]);
	rig_close(&rig);

	rig_open(&rig, &none);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	rig_thaw(&rig, &vm[0], &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm[0], "check 7 16M 1M"), "GOOD 256");
	cr_assert_eq(eng_cells_blanks_ready(rig.cells), 0u);
	rig_kill(&vm[0]);
	rig_close(&rig);
}

// Destroying with everything under way: nothing is left, nobody is called.
Test(cell_shells, destroyed_in_the_middle)
{
	struct rig_opts o = {.shells = 3};
	struct pgc_id img;
	struct eng_thaw_req req = {0};
	pid_t pid;

	rig_open(&rig, &o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	rig_thaw(&rig, &vm[0], &img, NULL);
	pid = eng_cell_pid(vm[0].cell);
	req.base = img;
	eng_cells_want(rig.cells, 64, 2);
	rig_launch(&rig, &vm[1], &req); // not yet started
	rig_turn(&rig, 5);
	rig_launch(&rig, &vm[2], &req);
	rig_close(&rig);
	cr_assert(!vm[0].gone && !vm[1].gone && !vm[2].gone);
	cr_assert_neq(kill(pid, 0), 0);
}

// Criterion's worker has one, too, opened before.
static int loops_epoll(void)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *de;
	char to[32];
	int fd = -1;

	cr_assert_not_null(d);
	while ((de = readdir(d))) {
		ssize_t n = readlinkat(dirfd(d), de->d_name, to, sizeof(to));

		if (n > 0 && !strncmp(to, "anon_inode:[eventpoll]", (size_t)n))
			fd = MAX(fd, atoi(de->d_name));
	}
	closedir(d);
	cr_assert_geq(fd, 0);
	return fd;
}

// epoll tells of numbers whose descriptors were closed while another process
// (one that is being started) had copies: nobody takes it for an end of who
// has the number now.
Test(cell_shells, events_of_closed_descriptors_harm_nobody)
{
	enum { STALE = 40 };
	int epfd, p[2], fd[STALE];

	rig_open(&rig, NULL);
	epfd = loops_epoll();
	cr_assert_eq(pipe(p), 0);
	cr_assert_eq(write(p[1], "x", 1), 1);
	for (unsigned i = 0; i < STALE; i++) {
		struct epoll_event ev = {.events = EPOLLIN};

		fd[i] = dup(p[0]);
		ev.data.fd = fd[i];
		cr_assert_eq(epoll_ctl(epfd, EPOLL_CTL_ADD, fd[i], &ev), 0);
	}
	for (unsigned i = 0; i < STALE; i++)
		close(fd[i]);
	rig_boot(&rig, &vm[0], 64, 1, "fill 7 16M 1M");
	rig_turn(&rig, 20);
	cr_assert_str_eq(rig_cmd(&vm[0], "check 7 16M 1M"), "GOOD 256");
	cr_assert(!vm[0].gone);
	rig_kill(&vm[0]);
	close(p[0]);
	close(p[1]);
	rig_close(&rig);
}
