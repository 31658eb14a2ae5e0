// Everything that was written comes out of a process and into a snapshot, in one
// round or in many, and nothing else does.
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "capcopy.h"

TestSuite(capcopy, .timeout = 300);

enum { PAGES = 8192, AFTER = 64, BLOCKS = 4096, MIB = 1 << 20 };

struct other { // the process that is copied from
	pid_t pid;
	int pagemap, overlay;
	uint8_t *mem; // the same address in both
};

static struct pgc_store *store;
static struct eng_loop *looper;
static struct eng_jobs *jobs;
static char dir[] = "/tmp/thaw-capcopy-XXXXXX";

// Runs of all lengths, single pages, and a long one.
static bool is_written(uint64_t pgno)
{
	return (pgno >= 2000 && pgno < 4600) || pgno * pgno % 101 < 30;
}

static void pattern(uint8_t *page, unsigned st, uint64_t pgno)
{
	uint64_t x = (pgno + 1) * 0x9e3779b97f4a7c15u + st;

	for (size_t i = 0; i < PGC_PAGE; i += sizeof(x)) {
		memcpy(page + i, &x, sizeof(x));
		x = x * 6364136223846793005u + 1442695040888963407u;
	}
}

static void start(struct other *o)
{
	int fd = memfd_create("template", MFD_CLOEXEC), ready[2];
	uint8_t page[PGC_PAGE];
	char path[64], c;

	cr_assert_eq(ftruncate(fd, PAGES * PGC_PAGE), 0);
	o->mem = mmap(NULL, (PAGES + AFTER) * PGC_PAGE, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert(o->mem != MAP_FAILED);
	cr_assert(mmap(o->mem, PAGES * PGC_PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_FIXED, fd, 0) != MAP_FAILED);
	cr_assert_eq(pipe2(ready, O_CLOEXEC), 0);
	o->pid = fork();
	cr_assert_geq(o->pid, 0);
	if (o->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (uint64_t k = 0; k < PAGES; k++) {
			if (is_written(k))
				pattern(o->mem + k * PGC_PAGE, PGC_MEM, k);
			else
				(void)*(volatile uint8_t *)(o->mem +
							    k * PGC_PAGE);
		}
		(void)!write(ready[1], "x", 1);
		for (;;)
			pause();
	}
	cr_assert_eq(read(ready[0], &c, 1), 1);
	close(ready[0]);
	close(ready[1]);
	close(fd);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)o->pid);
	o->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	o->overlay = memfd_create("overlay", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(o->overlay, BLOCKS * PGC_PAGE), 0);
	for (uint64_t k = 0; k < BLOCKS; k++) {
		if (!is_written(k))
			continue;
		pattern(page, PGC_DISK, k);
		cr_assert_eq(
		    pwrite(o->overlay, page, PGC_PAGE, (off_t)k * PGC_PAGE),
		    PGC_PAGE);
	}
}

static void end(struct other *o)
{
	if (o->pid) {
		kill(o->pid, SIGKILL);
		waitpid(o->pid, NULL, 0);
	}
	munmap(o->mem, (PAGES + AFTER) * PGC_PAGE);
	close(o->pagemap);
	close(o->overlay);
}

static void setup(void)
{
	struct err e = ERR_INIT;

	if (geteuid() != 0)
		cr_skip_test("needs root");
	cr_assert(mkdtemp(dir));
	cr_assert_eq(pgc_store_open(&store, dir, NULL, &e), 0, "%s", e.msg);
	cr_assert_eq(eng_loop_create(&looper, &e), 0);
	cr_assert_eq(eng_jobs_create(&jobs, looper, 1, &e), 0);
}

static void teardown(void)
{
	char cmd[64];

	eng_jobs_destroy(jobs);
	eng_loop_destroy(looper);
	pgc_store_close(store);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	cr_assert_eq(system(cmd), 0);
}

static void list(struct capcopy *c, const struct other *o)
{
	struct err e = ERR_INIT;

	cr_assert_eq(pagescan_run(o->pagemap, (uintptr_t)o->mem,
				  PAGES * PGC_PAGE, PAGESCAN_BEST,
				  &c->list[PGC_MEM], &e),
		     0, "%s", e.msg);
	cr_assert_eq(pagescan_file(o->overlay, BLOCKS * PGC_PAGE,
				   &c->list[PGC_DISK], &e),
		     0, "%s", e.msg);
}

static void check_stream(struct pgc_snap *sn, enum pgc_stream st, uint64_t n)
{
	static const uint8_t zero[PGC_PAGE];
	uint8_t got[PGC_PAGE], want[PGC_PAGE];
	struct err e = ERR_INIT;

	for (uint64_t k = 0; k < n; k++) {
		cr_assert_eq(pgc_snap_read(sn, st, k, got, 1, &e), 0, "%s",
			     e.msg);
		pattern(want, st, k);
		cr_assert_arr_eq(got, is_written(k) ? want : zero, PGC_PAGE,
				 "stream %d, page %lu", st, (unsigned long)k);
	}
}

// The budget, and whether the arena was made ahead; rounds at least.
struct shape {
	uint64_t budget, prepare;
	unsigned rounds;
	bool helper;
};

static void whole(const struct shape *s)
{
	uint64_t npages[PGC_NUM_STREAMS] = {PAGES, BLOCKS};
	struct pgc_id id = {{7}};
	struct capcopy c = {0};
	struct pgc_builder *b = NULL;
	struct pgc_snap *sn = NULL;
	struct err e = ERR_INIT;
	struct other o;
	unsigned rounds = 0;
	struct capcopy_src src = {0};

	setup();
	start(&o);
	src = (struct capcopy_src){o.pid, (uintptr_t)o.mem, o.overlay,
				   s->helper ? jobs : NULL};
	capcopy_set_budget(s->budget);
	if (s->prepare)
		capcopy_prepare(&c, s->prepare, true);
	list(&c, &o);
	cr_assert_eq(pgc_builder_begin(store, &id, NULL, npages, &b, &e), 0,
		     "%s", e.msg);
	cr_assert(!capcopy_is_out(&c, PGC_MEM) && !capcopy_is_done(&c));
	while (!capcopy_is_done(&c)) {
		// First memory alone, as a suspend does it.
		enum pgc_stream last =
		    capcopy_is_out(&c, PGC_MEM) ? PGC_DISK : PGC_MEM;

		cr_assert_lt(rounds++, 10000u);
		cr_assert_eq(capcopy_fill(&c, &src, last, &e), 0, "%s", e.msg);
		cr_assert(last == PGC_DISK || !capcopy_is_out(&c, PGC_DISK));
		if (capcopy_is_out(&c, PGC_MEM) && o.pid) {
			// Nothing of it is needed any more.
			kill(o.pid, SIGKILL);
			waitpid(o.pid, NULL, 0);
			o.pid = 0;
		}
		cr_assert_eq(capcopy_put(&c, b, &e), 0, "%s", e.msg);
	}
	cr_assert_geq(rounds, s->rounds, "%u rounds", rounds);
	capcopy_free(&c);
	cr_assert_eq(pgc_builder_commit(b, &e), 0, "%s", e.msg);
	cr_assert_eq(pgc_snap_open(store, &id, &sn, &e), 0, "%s", e.msg);
	check_stream(sn, PGC_MEM, PAGES);
	check_stream(sn, PGC_DISK, BLOCKS);
	pgc_snap_unref(sn);
	end(&o);
	teardown();
}

ParameterizedTestParameters(capcopy, all_of_it)
{
	static struct shape shapes[] = {
	    {0, 64 * MIB, 2, true},	   // room for all
	    {0, 64 * MIB, 2, false},	   // by one thread
	    {0, 0, 5, true},		   // none prepared: a small one
	    {5 * MIB, 64 * MIB, 5, true},  // more than the budget
	    {MIB / 2, 64 * MIB, 20, true}, // and much more
	};

	return cr_make_param_array(struct shape, shapes, ARRAY_SIZE(shapes));
}

ParameterizedTest(struct shape *s, capcopy, all_of_it)
{
	whole(s);
}

// When a fill ends, what its two threads read is there.
Test(capcopy, both_are_waited_for)
{
	struct capcopy c = {0};
	struct capcopy_src src;
	struct err e = ERR_INIT;
	struct other o;

	setup();
	start(&o);
	src = (struct capcopy_src){o.pid, (uintptr_t)o.mem, o.overlay, jobs};
	capcopy_prepare(&c, 64 * MIB, true);
	list(&c, &o);
	for (int i = 0; i < 100; i++) {
		uint64_t n = c.list[PGC_MEM].pages;

		memset(c.arena, 0, n * PGC_PAGE);
		c.in = (struct capcopy_pos){0};
		cr_assert_eq(capcopy_fill(&c, &src, PGC_MEM, &e), 0);
		// From the end: there it is that somebody is late.
		for (uint64_t k = n; k-- > 0;)
			cr_assert(c.arena[k * PGC_PAGE] ||
				      c.arena[k * PGC_PAGE + 1] ||
				      c.arena[k * PGC_PAGE + 9],
				  "page %lu of %lu", (unsigned long)k,
				  (unsigned long)n);
	}
	capcopy_free(&c);
	end(&o);
	teardown();
}

// What one has, another cannot; what it gives back, it can.
Test(capcopy, budget)
{
	struct capcopy a = {0}, b = {0};

	capcopy_set_budget(10 * MIB);
	capcopy_prepare(&a, 7 * MIB, true);
	cr_assert_eq(a.bytes, 8u * MIB);
	capcopy_prepare(&b, 7 * MIB, true);
	cr_assert_eq(b.bytes, 2u * MIB);
	capcopy_free(&a);
	capcopy_prepare(&b, 7 * MIB, false);
	cr_assert_eq(b.bytes, 8u * MIB);
	capcopy_prepare(&b, 3 * MIB, false); // it is larger than that
	cr_assert_eq(b.bytes, 8u * MIB);
	capcopy_prepare(&b, 100 * MIB, false);
	cr_assert_eq(b.bytes, 10u * MIB);
	capcopy_free(&b);
	capcopy_prepare(&a, 10 * MIB, false);
	cr_assert_eq(a.bytes, 10u * MIB);
	capcopy_free(&a);
	capcopy_set_budget(0);
	cr_assert_geq(capcopy_budget(), 16u * MIB);
}

// A process that is gone, or unmaps what was listed, is an error: never zeroes.
Test(capcopy, nobody_there)
{
	struct capcopy c = {0};
	struct capcopy_src src;
	struct err e = ERR_INIT;
	struct other o;

	setup();
	start(&o);
	src = (struct capcopy_src){o.pid, (uintptr_t)o.mem, o.overlay, jobs};
	list(&c, &o);
	src.mem_base += (uint64_t)PAGES * PGC_PAGE << 10;
	cr_assert_eq(capcopy_fill(&c, &src, PGC_MEM, &e), -EFAULT);
	cr_assert(strlen(e.msg) > 10);
	capcopy_free(&c);
	// A part of it is there.
	list(&c, &o);
	src.mem_base = (uintptr_t)o.mem + AFTER / 2 * PGC_PAGE;
	capcopy_prepare(&c, 64 * MIB, false);
	cr_assert_eq(capcopy_fill(&c, &src, PGC_MEM, &e), -EFAULT);
	capcopy_free(&c);
	list(&c, &o);
	src.mem_base = (uintptr_t)o.mem;
	kill(o.pid, SIGKILL);
	waitpid(o.pid, NULL, 0);
	o.pid = 0;
	cr_assert_eq(capcopy_fill(&c, &src, PGC_MEM, &e), -ESRCH);
	capcopy_free(&c);
	end(&o);
	teardown();
}
