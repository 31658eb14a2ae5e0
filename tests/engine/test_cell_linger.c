// A dying cell whose memory somebody still reads: KVM's own workers do that
// now and then; here it is a thread of the test, in process_vm_readv(), which
// holds the memory and waits in a fault of it in the same way.
#include <criterion/criterion.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cell_rig.h"
#include "cells_priv.h"

TestSuite(cell_linger, .timeout = 300);

enum { FIRST = 16 << 20, READS = 16 };

static struct rig rig;
static struct rig_vm vm;

struct reader {
	pthread_t thread;
	pid_t pid;
	uint64_t base;
	ssize_t got;
	uint8_t pages[READS][PGC_PAGE];
};

// A page of each of some clusters that were never needed before.
static void *read_memory(void *arg)
{
	struct reader *r = arg;
	struct iovec to = {r->pages, sizeof(r->pages)}, from[READS];

	for (unsigned i = 0; i < READS; i++)
		from[i] = (struct iovec){
		    (void *)(uintptr_t)(r->base + FIRST +
					(uint64_t)i * PGC_CLUSTER_PAGES *
					    PGC_PAGE),
		    PGC_PAGE};
	r->got = process_vm_readv(r->pid, &to, 1, from, READS, 0);
	return NULL;
}

// The loop does not turn meanwhile, so the fault stays unanswered.
static void start_reading(struct reader *r)
{
	struct pollfd p = {vm.cell->proc->uffd, POLLIN, 0};

	r->pid = vm.cell->proc->pid;
	r->base = vm.cell->proc->mem_base;
	cr_assert_eq(pthread_create(&r->thread, NULL, read_memory, r), 0);
	cr_assert_eq(poll(&p, 1, RIG_MS), 1, "the read raises no fault");
}

// All that the template holds of what was read is the image's.
static void check_template(const struct pgc_id *img)
{
	int fd = pgc_template_fd(eng_snap_find(rig.cells, img)->tmpl[PGC_MEM]);

	for (unsigned i = 0; i < READS; i++) {
		off_t at = FIRST + (off_t)i * PGC_CLUSTER_PAGES * PGC_PAGE;

		cr_assert_neq(lseek(fd, at, SEEK_DATA), at,
			      "a reader of a dead cell's memory put page %u "
			      "into the template",
			      i);
	}
}

static struct reader reader;

// A clone of an image whose memory the template lacks, with a reader in it.
static void open_with_reader(struct pgc_id *img)
{
	rig_open(&rig, NULL);
	rig_image(&rig, img, 64, 1, "fill 7 16M 16M");
	rig_thaw(&rig, &vm, img, NULL);
	start_reading(&reader);
}

static void await_end(void)
{
	cr_assert(rig_until(&rig, rig_is_gone, &vm, RIG_MS),
		  "the dying cell waits for its reader for ever");
	cr_assert_eq(pthread_join(reader.thread, NULL), 0);
}

// The image is as it was for whoever comes next.
static void thaw_again(const struct pgc_id *img)
{
	rig_thaw(&rig, &vm, img, NULL);
	cr_assert_str_eq(rig_cmd(&vm, "check 7 16M 16M"), "GOOD 4096");
	rig_kill(&vm);
	rig_close(&rig);
}

Test(cell_linger, ended_by_thawd)
{
	struct pgc_id img;

	open_with_reader(&img);
	eng_cell_kill(vm.cell);
	await_end();
	// Zeroes, of pages that were nobody's but the dead cell's. On a busy
	// machine the read may end early: the memory went away under it.
	for (ssize_t i = 0; i < reader.got; i++)
		cr_assert_eq(((uint8_t *)reader.pages)[i], 0);
	check_template(&img);
	thaw_again(&img);
}

Test(cell_linger, killed_by_somebody)
{
	struct pgc_id img;

	open_with_reader(&img);
	kill(reader.pid, SIGKILL);
	await_end();
	thaw_again(&img);
}

// The sockets of a dying process are at their end long before it is dead.
Test(cell_linger, the_loop_does_not_turn_for_the_dying)
{
	enum { CELLS = 12, TURNS = 60 };
	struct eng_turn_stats before, after;
	unsigned ticks;
	struct pgc_id img;

	if (!rig_usable())
		cr_skip_test("needs root, /dev/kvm and /dev/userfaultfd");
	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	eng_loop_turn_stats(rig.loop, &before);
	ticks = rig.ticks;
	for (int i = 0; i < CELLS; i++) {
		rig_thaw(&rig, &vm, &img, NULL);
		rig_kill(&vm);
	}
	eng_loop_turn_stats(rig.loop, &after);
	cr_assert_lt(after.turns - before.turns - (rig.ticks - ticks),
		     CELLS * TURNS);
	rig_close(&rig);
}
