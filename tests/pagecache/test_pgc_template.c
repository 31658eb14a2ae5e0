// Templates: filling, prefetch, what clones see, what must never be installed.
// Built a second time with NO_URING for the fallback.
#include <dirent.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "pgc_test.h"

enum { N = 1000 }; // pages; the last cluster is not whole

struct fix {
	char dir[64];
	struct pgc_store *s;
	struct pgc_id id;
	uint8_t *pages;
	struct pgc_snap *sn;
	struct pgc_template *t;
};

static struct pgc_store *open_mode(const char *dir)
{
	struct pgc_options o = {.struct_size = sizeof(o)};
	struct pgc_store *s;

#ifdef NO_URING
	o.no_uring = true;
#endif
	ok(pgc_store_open(&s, dir, &o, e));
	return s;
}

static void setup(struct fix *f)
{
	strcpy(f->dir, tmp_store());
	f->s = open_mode(f->dir);
	f->id = id_of(1);
	f->pages = mixed(N, 5);
	memset(f->pages + 64 * PGC_PAGE, 0, 32 * PGC_PAGE); // 2 zero clusters
	publish(f->s, &f->id, NULL, f->pages, N, false);
	f->sn = open_snap(f->s, &f->id);
	ok(pgc_template_open(f->sn, PGC_MEM, &f->t, e));
}

// Its working set from now on: the snapshot is opened anew.
static void record(struct fix *f, const uint32_t *ws, size_t n)
{
	pgc_template_close(f->t);
	pgc_snap_unref(f->sn);
	ok(pgc_snap_set_workset(f->s, &f->id, PGC_MEM, ws, n, e));
	f->sn = open_snap(f->s, &f->id);
	ok(pgc_template_open(f->sn, PGC_MEM, &f->t, e));
}

static void teardown(struct fix *f)
{
	pgc_template_close(f->t);
	pgc_snap_unref(f->sn);
	pgc_store_close(f->s);
	rm_tree(f->dir);
	free(f->pages);
}

static bool is_zero(const struct fix *f, uint64_t pgno)
{
	return page_is_zero(f->pages + pgno * PGC_PAGE);
}

// Every page through the read-only descriptor: right, or not filled (zeroes).
static void check_fd(const struct fix *f, bool filled)
{
	uint8_t got[PGC_PAGE];

	for (uint64_t i = 0; i < N; i++) {
		enum pgc_have h = pgc_template_have(f->t, i);

		cr_assert(!util_pread_all(pgc_template_fd(f->t), got, PGC_PAGE,
					  (off_t)(i * PGC_PAGE)));
		if (filled)
			cr_assert_eq(h, is_zero(f, i) ? PGC_ZERO : PGC_FILLED);
		if (h == PGC_FILLED || h == PGC_ZERO)
			cr_assert(
			    !memcmp(got, f->pages + i * PGC_PAGE, PGC_PAGE),
			    "page %d", (int)i);
		else
			cr_assert(page_is_zero(got));
	}
}

// Pages that are not there yet.
static unsigned lacking(const struct fix *f)
{
	unsigned n = 0;

	for (uint64_t i = 0; i < N; i++) {
		enum pgc_have h = pgc_template_have(f->t, i);

		n += h == PGC_FILLING || h == PGC_MISSING;
	}
	return n;
}

Test(template, fill_all)
{
	struct fix f;
	struct pgc_store_stats st;
	uint64_t nonzero = 0;
	int worst = 0;

	setup(&f);
	pgc_store_get_stats(f.s, &st);
#ifdef NO_URING
	cr_assert(!st.uring);
#else
	if (getenv("PGC_EXPECT_URING")) // run where the kernel refuses it
		cr_assert_eq(st.uring, *getenv("PGC_EXPECT_URING") == '1');
#endif
	check_fd(&f, false);
	cr_assert_eq(pgc_template_fill(f.t, 0, N, false, NULL), 0);
	cr_assert_eq(drain_n(f.s, 61, &worst), 61); // 63 less 2 of zeroes
	cr_assert_eq(worst, 0);
	check_fd(&f, true);
	cr_assert_eq(pgc_template_fill(f.t, 0, N, true, NULL), 1);
	for (uint64_t i = 0; i < N; i++)
		nonzero += !is_zero(&f, i);
	cr_assert_eq(pgc_template_resident(f.t), nonzero * PGC_PAGE);
	teardown(&f);
}

Test(template, zero_pages_are_holes_and_need_no_fill)
{
	struct fix f;
	struct pgc_done d[4];

	setup(&f);
	cr_assert_eq(pgc_template_fill(f.t, 64, 32, true, NULL), 1);
	cr_assert_eq(pgc_template_have(f.t, 70), PGC_ZERO);
	cr_assert_eq(pgc_drain(f.s, d, 4), 0);
	cr_assert_eq(pgc_template_fill(f.t, 0, 1, true, NULL), 0);
	cr_assert_eq(drain_n(f.s, 1, NULL), 1);
	// Page 3 of the cluster is zero: a hole, also in the filled cluster.
	cr_assert(is_zero(&f, 3));
	cr_assert_eq(lseek(pgc_template_fd(f.t), 3 * PGC_PAGE, SEEK_DATA),
		     4 * PGC_PAGE);
	teardown(&f);
}

Test(template, one_page_brings_its_cluster_and_no_other)
{
	struct fix f;
	struct pgc_done d[8];
	struct pollfd p;
	size_t n;

	setup(&f);
	cr_assert_eq(pgc_template_have(f.t, 33), PGC_MISSING);
	cr_assert_eq(pgc_template_fill(f.t, 33, 1, true, NULL), 0);
	cr_assert_eq(pgc_template_have(f.t, 33), PGC_FILLING);
	p = (struct pollfd){pgc_event_fd(f.s), POLLIN, 0};
	for (n = 0; !n; n = pgc_drain(f.s, d, 8)) // its reads end one by one
		cr_assert_eq(poll(&p, 1, 120000), 1);
	cr_assert_eq(n, 1);
	cr_assert(d[0].t == f.t && d[0].pgno == 32 && d[0].npages == 16 &&
		  d[0].rc == 0);
	cr_assert_eq(pgc_template_have(f.t, 33), PGC_FILLED);
	cr_assert_eq(pgc_template_have(f.t, 48), PGC_MISSING);
	cr_assert_eq(pgc_drain(f.s, d, 8), 0);
	cr_assert_eq(poll(&p, 1, 0), 0); // nothing due, not readable
	cr_assert_eq(pgc_template_fill(f.t, 33, 1, true, NULL), 1);
	// The last cluster is clipped to the stream.
	cr_assert_eq(pgc_template_fill(f.t, N - 2, 1, true, NULL), 0);
	for (n = 0; !n;)
		n = pgc_drain(f.s, d, 8);
	cr_assert_eq(d[0].pgno, 992);
	cr_assert_eq(d[0].npages, 8);
	check_fd(&f, false);
	cr_assert_eq(pgc_template_fill(f.t, N, 1, true, NULL), -EINVAL);
	teardown(&f);
}

Test(template, event_stays_readable_while_something_is_due)
{
	struct fix f;
	struct pgc_done d;
	size_t n = 0;

	setup(&f);
	cr_assert_eq(pgc_template_fill(f.t, 0, N, true, NULL), 0);
	while (n < 61) { // one at a time: each must be announced
		struct pollfd p = {pgc_event_fd(f.s), POLLIN, 0};

		cr_assert_eq(poll(&p, 1, 120000), 1, "after %zu", n);
		n += pgc_drain(f.s, &d, 1);
	}
	check_fd(&f, true);
	teardown(&f);
}

Test(template, a_drain_is_bounded)
{
	struct fix f;
	struct pgc_done d[200];
	uint8_t *big = malloc(4000 * PGC_PAGE);
	struct pgc_id id = id_of(2);
	struct pgc_template *t;
	struct pgc_snap *sn;
	size_t total = 0, most = 0;
	uint64_t until;

	setup(&f);
	for (uint64_t i = 0; i < 4000; i++)
		fill_page(big + i * PGC_PAGE, TEXT, i + 9);
	publish(f.s, &id, NULL, big, 4000, false);
	sn = open_snap(f.s, &id);
	ok(pgc_template_open(sn, PGC_MEM, &t, e));
	cr_assert_eq(pgc_template_fill(t, 0, 4000, true, NULL), 0);
	until = util_now_ns() + 120000000000u;
	while (total < 250 && util_now_ns() < until) {
		size_t n = pgc_drain(f.s, d, 200);

		usleep(n ? 20000 : 100); // let reads pile up
		total += n;
		most = MAX(most, n);
	}
	cr_assert_eq(total, 250);
	cr_assert_leq(most, 64);
	pgc_template_close(t);
	pgc_snap_unref(sn);
	teardown(&f);
	free(big);
}

// How many clusters came before one that is urgent, and was asked for last.
static size_t before_the_urgent(void)
{
	struct fix f;
	struct pgc_done d[8];
	uint32_t ws[N];
	bool seen = false;
	size_t before = 0, total = 0;

	setup(&f);
	for (uint32_t i = 0; i < N; i++)
		ws[i] = i;
	record(&f, ws, 960);
	cr_assert_eq(pgc_template_fill(f.t, 0, 900, false, NULL), 0);
	ok(pgc_template_prefetch(f.t, e)); // what is left: 912 to 959
	cr_assert_eq(pgc_template_fill(f.t, 960, 16, true, NULL), 0);
	usleep(500000); // let what was given to the disk arrive
	while (!seen) {
		size_t n = pgc_drain(f.s, d, 8);

		for (size_t i = 0; i < n && !seen; i++) {
			seen = d[i].pgno == 960;
			before += !seen;
		}
		total += n;
	}
	cr_assert_eq(pgc_template_fill(f.t, 976, N - 976, false, NULL), 0);
	cr_assert_eq(drain_n(f.s, 61 - total, NULL), 61 - total);
	check_fd(&f, true);
	teardown(&f);
	return before;
}

// What is urgent is first of what the disk has given; a disk may give it late, but
// not every time.
Test(template, urgent_goes_before_background_and_prefetch)
{
	size_t before;

	for (int i = 0; (before = before_the_urgent()) && i < 20; i++)
		;
	cr_assert_eq(before, 0, "%zu", before);
}

// A working set's file that is wrong in a frame, or cut off after it was opened,
// costs time and never a byte.
Test(template, prefetch_from_a_damaged_file_falls_back_to_the_packs)
{
	char path[PATH_MAX];
	uint32_t ws[N];
	uint8_t *good;
	struct fix f;
	size_t len;

	setup(&f);
	for (uint32_t i = 0; i < N; i++)
		ws[i] = N - 1 - i;
	ok(pgc_snap_set_workset(f.s, &f.id, PGC_MEM, ws, N, e));
	cr_assert(find_file(path, f.dir, "snaps", ".mem.ws"));
	good = slurp(path, &len);
	for (int how = 0; how < 3; how++) {
		uint8_t *bad = malloc(len);
		int worst = 0;

		pgc_template_close(f.t);
		pgc_snap_unref(f.sn);
		memcpy(bad, good, len);
		for (size_t at = le64(good + 48); how == 1 && at < len;
		     at += 20011) // seldom more than one byte of a frame
			bad[at] ^= 1;
		spew(path, bad, len);
		f.sn = open_snap(f.s, &f.id);
		if (how == 2)
			cr_assert(!truncate(path, (off_t)(len / 3)));
		ok(pgc_template_open(f.sn, PGC_MEM, &f.t, e));
		ok(pgc_template_prefetch(f.t, e));
		if (how == 0) { // all of it, and by nobody else
			while (lacking(&f))
				cr_assert(drain_n(f.s, 1, &worst));
		} else {
			usleep(50000);
			while (!pgc_template_fill(f.t, 0, N, true, NULL))
				drain_n(f.s, 1, &worst);
		}
		cr_assert_eq(worst, 0);
		check_fd(&f, true);
		free(bad);
	}
	free(good);
	teardown(&f);
}

// What is evicted is a hole again, comes back right, and disks stay.
Test(template, evicted_pages_come_back)
{
	struct pgc_done d[64];
	uint64_t all, freed;
	struct fix f;

	setup(&f);
	cr_assert_eq(pgc_template_fill(f.t, 0, N, false, NULL), 0);
	cr_assert_eq(drain_n(f.s, 61, NULL), 61);
	all = pgc_template_resident(f.t);
	pgc_template_pin(f.t);
	cr_assert_eq(pgc_template_evict(f.t, all), 0);
	pgc_template_unpin(f.t);
	freed = pgc_template_evict(f.t, all / 2);
	cr_assert_geq(freed, all / 2);
	cr_assert_leq(freed, all / 2 + PGC_CLUSTER_PAGES * PGC_PAGE);
	cr_assert_eq(pgc_template_resident(f.t), all - freed);
	check_fd(&f, false);
	cr_assert_eq(pgc_template_evict(f.t, UINT64_MAX), all - freed);
	cr_assert_eq(pgc_template_resident(f.t), 0);
	cr_assert_eq(lseek(pgc_template_fd(f.t), 0, SEEK_DATA), -1);
	for (int round = 0; round < 3; round++) {
		cr_assert_eq(pgc_template_fill(f.t, 0, N, true, NULL), 0);
		cr_assert_eq(drain_n(f.s, 61, NULL), 61);
		check_fd(&f, true);
		cr_assert_eq(pgc_template_evict(f.t, UINT64_MAX), all);
	}
	while (pgc_drain(f.s, d, 64))
		;
	teardown(&f);
}

Test(template, prefetch_fills_the_working_set_only)
{
	struct fix f;
	uint32_t ws[] = {999, 5, 130, 131, 129, 70, 500, 5};
	static const uint32_t want[] = {5, 70, 129, 130, 131, 500, 999};
	struct pgc_done d[8];
	uint64_t data = 0;

	setup(&f);
	ok(pgc_template_prefetch(f.t, e)); // none recorded: nothing happens
	cr_assert_eq(pgc_drain(f.s, d, 8), 0);
	record(&f, ws, ARRAY_SIZE(ws));
	ok(pgc_template_prefetch(f.t, e));
	cr_assert_eq(drain_n(f.s, 5, NULL), 5); // 129 to 131 come together
	for (size_t i = 0; i < ARRAY_SIZE(want); i++) {
		cr_assert_eq(pgc_template_have(f.t, want[i]),
			     is_zero(&f, want[i]) ? PGC_ZERO : PGC_FILLED);
		data += !is_zero(&f, want[i]);
	}
	cr_assert_eq(pgc_template_resident(f.t), data * PGC_PAGE);
	cr_assert_eq(pgc_template_have(f.t, 4), PGC_MISSING);
	cr_assert_eq(pgc_template_have(f.t, 128), PGC_MISSING);
	cr_assert_eq(pgc_template_have(f.t, 996), PGC_MISSING);
	cr_assert_eq(pgc_drain(f.s, d, 8), 0);
	check_fd(&f, false);
	teardown(&f);
}

// Those of io_uring are the kernel's, and come and go.
static unsigned threads_of_this(void)
{
	DIR *d = opendir("/proc/self/task");
	struct dirent *de;
	unsigned n = 0;

	cr_assert(d);
	while ((de = readdir(d))) {
		char path[PATH_MAX], name[5] = "";
		int fd;

		text(path, sizeof(path), "/proc/self/task/%.20s/comm",
		     de->d_name);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			continue; // "." and ".."
		n += read(fd, name, 4) == 4 && strcmp(name, "iou-");
		close(fd);
	}
	closedir(d);
	return n;
}

// Reads overlap decoding on two processors: as many as that are worth it, made
// with the first working set and no more with the next.
Test(template, four_threads_prefetch)
{
	struct fix f;
	uint32_t ws[] = {5, 130, 500};
	unsigned before;

	setup(&f);
	record(&f, ws, ARRAY_SIZE(ws));
	before = threads_of_this();
	cr_assert_gt(before, 0u);
	for (int i = 0; i < 2; i++) {
		ok(pgc_template_prefetch(f.t, e));
		cr_assert_eq(threads_of_this(), before + 4);
	}
	teardown(&f);
}

// While a page cannot be installed its working set is being loaded: what the engine
// lets its refills wait for.
Test(template, prefetching_until_all_is_in)
{
	struct fix f;
	uint32_t ws[] = {5, 130, 500};

	setup(&f);
	record(&f, ws, ARRAY_SIZE(ws));
	cr_assert_not(pgc_template_prefetching(f.t));
	for (int i = 0; i < INSTALL_LOCKS; i++)
		must_lock(&f.t->install[i]);
	ok(pgc_template_prefetch(f.t, e));
	cr_assert(pgc_template_prefetching(f.t));
	usleep(20000);
	cr_assert(pgc_template_prefetching(f.t));
	for (int i = 0; i < INSTALL_LOCKS; i++)
		must_unlock(&f.t->install[i]);
	cr_assert_eq(drain_n(f.s, 3, NULL), 3);
	cr_assert_not(pgc_template_prefetching(f.t));
	teardown(&f);
}

// A cluster of which a prefetch brought a part gets the rest by a fill, and gives
// all of it back when it is evicted.
Test(template, a_part_by_prefetch_and_the_rest_by_a_fill)
{
	struct fix f;
	uint32_t ws[] = {5, 6, 13};
	uint64_t all;

	setup(&f);
	record(&f, ws, ARRAY_SIZE(ws));
	for (int round = 0; round < 3; round++) {
		ok(pgc_template_prefetch(f.t, e));
		cr_assert_eq(drain_n(f.s, 2, NULL), 2);
		cr_assert_eq(pgc_template_fill(f.t, 5, 2, true, NULL), 1);
		cr_assert_eq(pgc_template_fill(f.t, 5, 6, true, NULL), 0);
		cr_assert_eq(drain_n(f.s, 1, NULL), 1);
		cr_assert_eq(pgc_template_fill(f.t, 0, 16, true, NULL), 1);
		check_fd(&f, false);
		all = pgc_template_resident(f.t);
		cr_assert_geq(all, 8 * PGC_PAGE);
		cr_assert_eq(pgc_template_evict(f.t, UINT64_MAX), all);
		cr_assert_eq(pgc_template_have(f.t, 5), PGC_MISSING);
	}
	teardown(&f);
}

Test(template, exact_fills_bring_nothing_else)
{
	struct fix f;

	setup(&f);
	pgc_template_exact(f.t, true);
	cr_assert_eq(pgc_template_fill(f.t, 5, 2, true, NULL), 0);
	cr_assert_eq(drain_n(f.s, 1, NULL), 1);
	cr_assert_eq(pgc_template_fill(f.t, 5, 2, true, NULL), 1);
	cr_assert_eq(pgc_template_have(f.t, 4), PGC_MISSING);
	cr_assert_eq(pgc_template_resident(f.t), 2 * PGC_PAGE);
	pgc_template_exact(f.t, false);
	cr_assert_eq(pgc_template_fill(f.t, 4, 1, true, NULL), 0);
	cr_assert_eq(drain_n(f.s, 1, NULL), 1);
	cr_assert_eq(pgc_template_fill(f.t, 0, 16, true, NULL), 1);
	check_fd(&f, false);
	teardown(&f);
}

// Both at once over the same clusters: each page is installed once, by whoever
// comes first (twice would look like tampering).
Test(template, prefetch_and_fills_at_once)
{
	uint32_t ws[N / 2];
	struct fix f;
	int worst = 0;

	setup(&f);
	pgc_template_close(f.t);
	pgc_snap_unref(f.sn);
	for (uint32_t i = 0; i < N / 2; i++)
		ws[i] = 2 * (i * 7 % (N / 2));
	ok(pgc_snap_set_workset(f.s, &f.id, PGC_MEM, ws, N / 2, e));
	f.sn = open_snap(f.s, &f.id);
	for (int round = 0; round < 20; round++) {
		ok(pgc_template_open(f.sn, PGC_MEM, &f.t, e));
		ok(pgc_template_prefetch(f.t, e));
		for (uint64_t i = 0; i < N; i++)
			cr_assert_geq(pgc_template_fill(f.t, i, 1, true, NULL),
				      0);
		while (!pgc_template_fill(f.t, 0, N, true, NULL))
			cr_assert(drain_n(f.s, 1, &worst));
		cr_assert_eq(worst, 0);
		check_fd(&f, true);
		if (round < 19)
			pgc_template_close(f.t);
	}
	teardown(&f);
}

Test(template, closing_with_reads_in_flight)
{
	struct fix f;
	struct pgc_done d[8];

	setup(&f);
	for (int i = 0; i < 30; i++) {
		cr_assert_eq(pgc_template_fill(f.t, 0, N, i & 1, NULL), 0);
		if (i % 3 == 0)
			pgc_drain(f.s, d, 2);
		pgc_template_close(f.t);
		ok(pgc_template_open(f.sn, PGC_MEM, &f.t, e));
	}
	usleep(20000);
	while (pgc_drain(f.s, d, 8))
		;
	check_fd(&f, false);
	cr_assert_eq(pgc_template_fill(f.t, 0, N, true, NULL), 0);
	cr_assert_eq(drain_n(f.s, 61, NULL), 61);
	check_fd(&f, true);
	cr_assert_eq(pgc_template_fill(f.t, 0, 1, true, NULL), 1);
	teardown(&f);
}

Test(template, store_closes_with_reads_in_flight)
{
	struct fix f;

	setup(&f);
	cr_assert_eq(pgc_template_fill(f.t, 0, N, true, NULL), 0);
	teardown(&f);
}

Test(template, two_streams_and_a_child)
{
	struct fix f;
	struct pgc_id id = id_of(2), child = id_of(3);
	uint64_t np[2] = {N, N};
	struct pgc_template *m, *k;
	struct pgc_builder *b;
	struct pgc_snap *sn;
	uint8_t got[PGC_PAGE], page[PGC_PAGE];

	setup(&f);
	publish(f.s, &id, NULL, f.pages, N, true);
	fill_page(page, RANDOM, 4242);
	ok(pgc_builder_begin(f.s, &child, &id, np, &b, e));
	ok(pgc_builder_put(b, PGC_DISK, 7, page, 1, e));
	ok(pgc_builder_commit(b, e));
	sn = open_snap(f.s, &child);
	ok(pgc_template_open(sn, PGC_MEM, &m, e));
	ok(pgc_template_open(sn, PGC_DISK, &k, e));
	cr_assert_eq(pgc_template_fill(m, 0, 16, true, NULL), 0);
	cr_assert_eq(pgc_template_fill(k, 7, 1, true, NULL), 0);
	cr_assert_eq(drain_n(f.s, 2, NULL), 2);
	util_pread_all(pgc_template_fd(k), got, PGC_PAGE, 7 * PGC_PAGE);
	cr_assert(!memcmp(got, page, PGC_PAGE));
	util_pread_all(pgc_template_fd(m), got, PGC_PAGE, 5 * PGC_PAGE);
	cr_assert(!memcmp(got, f.pages + 5 * PGC_PAGE, PGC_PAGE));
	util_pread_all(pgc_template_fd(k), got, PGC_PAGE, 5 * PGC_PAGE);
	cr_assert(!memcmp(got, f.pages + (N - 1 - 5) * PGC_PAGE, PGC_PAGE));
	pgc_template_close(m);
	pgc_template_close(k);
	pgc_snap_unref(sn);
	teardown(&f);
}

// --- clones ------------------------------------------------------------------

struct clone {
	int uffd, ask, answer;
	uint8_t *mem;
};

// In the child: each missing page is asked for by number; zero pages (answer 0)
// are zero-filled, others (1) woken when the template has them.
static void *clone_pager(void *arg)
{
	struct clone *c = arg;
	struct uffd_msg m;

	while (read(c->uffd, &m, sizeof(m)) == sizeof(m)) {
		uintptr_t at = ALIGN_DOWN((uintptr_t)m.arg.pagefault.address,
					  (uintptr_t)PGC_PAGE);
		uint32_t pgno = (uint32_t)((at - (uintptr_t)c->mem) / PGC_PAGE);
		struct uffdio_range r = {at, PGC_PAGE};
		struct uffdio_zeropage z = {.range = r};
		uint8_t filled;

		if (write(c->ask, &pgno, 4) != 4 ||
		    read(c->answer, &filled, 1) != 1)
			_exit(10);
		if (filled ? ioctl(c->uffd, UFFDIO_WAKE, &r)
			   : ioctl(c->uffd, UFFDIO_ZEROPAGE, &z))
			_exit(11);
	}
	return NULL;
}

static void clone_main(const struct fix *f, int ask, int answer)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct clone c = {.ask = ask, .answer = answer};
	struct uffdio_register reg = {0};
	pthread_t th;

	c.mem = mmap(NULL, N * PGC_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE,
		     pgc_template_fd(f->t), 0);
	c.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1);
	reg.range.start = (uintptr_t)c.mem;
	reg.range.len = N * PGC_PAGE;
	reg.mode = UFFDIO_REGISTER_MODE_MISSING;
	if (c.mem == MAP_FAILED || ioctl(c.uffd, UFFDIO_API, &api) ||
	    ioctl(c.uffd, UFFDIO_REGISTER, &reg))
		_exit(12);
	pthread_create(&th, NULL, clone_pager, &c);
	for (uint64_t i = 0; i < N; i++) {
		uint64_t k = i * 377 % N;
		uint8_t *p = c.mem + k * PGC_PAGE;

		if (i % 3 == 0)
			p[100] = f->pages[k * PGC_PAGE + 100]; // write first
		if (memcmp(p, f->pages + k * PGC_PAGE, PGC_PAGE))
			_exit(13);
		p[0] ^= 0xff; // private: the template must not see it
	}
	_exit(0);
}

Test(template, a_clone_reads_right_data_and_writes_stay_its_own)
{
	int ask[2], answer[2], status;
	struct fix f;
	struct pgc_done d[16];
	uint32_t pgno;
	pid_t pid;

	setup(&f);
	cr_assert(!pipe(ask) && !pipe(answer));
	pid = fork();
	if (!pid) {
		close(ask[0]);
		close(answer[1]);
		clone_main(&f, ask[1], answer[0]);
	}
	close(ask[1]);
	close(answer[0]);
	while (read(ask[0], &pgno, 4) == 4) {
		uint8_t filled = pgc_template_have(f.t, pgno) != PGC_ZERO;
		int rc = pgc_template_fill(f.t, pgno, 1, true, NULL);

		cr_assert_geq(rc, 0);
		while (!rc && pgc_template_have(f.t, pgno) == PGC_FILLING)
			pgc_drain(f.s, d, 16);
		cr_assert_neq(pgc_template_have(f.t, pgno), PGC_MISSING);
		cr_assert_eq(write(answer[1], &filled, 1), 1);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%x", status);
	check_fd(&f, false);
	close(ask[0]);
	close(answer[1]);
	teardown(&f);
}

Test(template, others_can_neither_write_nor_reopen_it)
{
	struct fix f;
	int status, memfd, uffd;
	char path[64];
	pid_t pid;

	setup(&f);
	cr_assert_eq(write(pgc_template_fd(f.t), "x", 1), -1);
	cr_assert_eq(errno, EBADF);
	cr_assert_eq(mmap(NULL, PGC_PAGE, PROT_WRITE, MAP_SHARED,
			  pgc_template_fd(f.t), 0),
		     MAP_FAILED);
	pgc_template_guards(f.t, &memfd, &uffd);
	cr_assert(fcntl(uffd, F_GETFD) >= 0);
	cr_assert_eq(ftruncate(memfd, 0), -1);
	cr_assert_eq(ftruncate(memfd, (N + 1) * PGC_PAGE), -1);
	cr_assert_eq(fcntl(memfd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	cr_assert_eq(fcntl(memfd, F_GET_SEALS) &
			 (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL |
			  F_SEAL_WRITE | F_SEAL_FUTURE_WRITE),
		     F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	text(path, sizeof(path), "/proc/self/fd/%d", pgc_template_fd(f.t));
	if (getuid()) {
		teardown(&f);
		cr_skip_test("needs root to become another user");
	}
	pid = fork();
	if (!pid) {
		if (setgid(54321) || setuid(54321))
			_exit(2);
		if (open(path, O_RDWR) >= 0 || open(path, O_RDONLY) >= 0)
			_exit(1);
		_exit(0);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%x", status);
	teardown(&f);
}

// A page that somebody instantiated by reading an unregistered mapping is
// noticed.
Test(template, a_planted_zero_page_fails_the_fill)
{
	struct fix f;
	struct pgc_done d[4];
	volatile uint8_t *m;
	size_t n = 0;

	setup(&f);
	m = mmap(NULL, N * PGC_PAGE, PROT_READ, MAP_PRIVATE,
		 pgc_template_fd(f.t), 0);
	cr_assert_neq(m, MAP_FAILED);
	cr_assert_eq(m[0], 0);
	cr_assert_eq(pgc_template_fill(f.t, 0, 1, true, NULL), 0);
	while (!n)
		n = pgc_drain(f.s, d, 4);
	cr_assert_eq(d[0].rc, -EIO);
	cr_assert(strstr(d[0].why, "cannot be trusted"));
	cr_assert_eq(pgc_template_have(f.t, 0), PGC_MISSING);
	munmap((void *)(uintptr_t)m, N * PGC_PAGE);
	teardown(&f);
}

// --- damage ------------------------------------------------------------------

static uint64_t record_of(struct fix *f, uint64_t pgno)
{
	struct mseg g;

	map_seg(f->sn->map, PGC_MEM, pgno, &g);
	return seg_loc(&g, 0);
}

static struct pgc_done fill_one(struct fix *f, uint64_t pgno)
{
	struct pgc_done d = {0};
	uint64_t until = util_now_ns() + 120000000000u;
	size_t n = 0;

	cr_assert_eq(pgc_template_fill(f->t, pgno, 1, true, NULL), 0);
	while (!n && util_now_ns() < until) {
		n = pgc_drain(f->s, &d, 1);
		if (!n)
			usleep(100);
	}
	cr_assert_eq(n, 1);
	return d;
}

Test(template, a_corrupt_page_is_never_installed)
{
	char path[PATH_MAX];
	uint8_t *pack, got[PGC_CLUSTER_PAGES * PGC_PAGE];
	struct pgc_done d;
	struct fix f;
	size_t len;
	uint64_t loc;

	setup(&f);
	cr_assert(find_file(path, f.dir, "packs", ".pack"));
	pack = slurp(path, &len);
	loc = record_of(&f, 37);
	for (unsigned k = 0; k < loc_size(loc); k += 41) {
		pack[loc_off(loc) + k] ^= (uint8_t)(1u << k % 8);
		spew(path, pack, len);
		d = fill_one(&f, 33);
		cr_assert_eq(d.rc, -EBADMSG, "byte %u: %d", k, d.rc);
		cr_assert(strstr(d.why, "page 37"), "%s", d.why);
		cr_assert_eq(pgc_template_have(f.t, 33), PGC_MISSING);
		util_pread_all(pgc_template_fd(f.t), got, sizeof(got),
			       32 * PGC_PAGE);
		for (unsigned i = 0; i < PGC_CLUSTER_PAGES; i++)
			cr_assert(page_is_zero(got + i * PGC_PAGE));
		pack[loc_off(loc) + k] ^= (uint8_t)(1u << k % 8);
	}
	spew(path, pack, len);
	cr_assert_eq(fill_one(&f, 33).rc, 0); // mended: another try succeeds
	cr_assert_eq(fill_one(&f, 200).rc, 0);
	check_fd(&f, false);
	free(pack);
	teardown(&f);
}

Test(template, a_pack_cut_off_while_open)
{
	char path[PATH_MAX];
	struct fix f;

	setup(&f);
	cr_assert(find_file(path, f.dir, "packs", ".pack"));
	cr_assert(!truncate(path, loc_off(record_of(&f, 500)) + 30));
	cr_assert_eq(fill_one(&f, 500).rc, -EBADMSG);
	cr_assert_eq(fill_one(&f, 900).rc, -EBADMSG);
	cr_assert_eq(fill_one(&f, 200).rc, 0);
	check_fd(&f, false);
	teardown(&f);
}
