// Collection: frees everything that is dead, nothing that lives, beside
// builders, removals and open snapshots.
#include <pthread.h>

#include "pgc_test.h"

enum { N = 600 };

Test(gc, an_empty_store_and_one_without_garbage)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1);
	uint8_t *p = mixed(N, 0);
	uint64_t freed = 1;

	ok(pgc_gc(s, &freed, e));
	cr_assert_eq(freed, 0);
	publish(s, &a, NULL, p, N, true);
	ok(pgc_gc(s, &freed, e));
	cr_assert_eq(freed, 0);
	ok(pgc_gc(s, NULL, e));
	expect_memory(s, &a, p, N);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(gc, removed_snapshots_leave_no_byte)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_store_stats st;
	uint64_t freed, packs;
	struct pgc_id id;

	for (unsigned i = 1; i <= 4; i++) {
		uint8_t *p = mixed(N, i);

		id = id_of(i);
		publish(s, &id, NULL, p, N, true);
		free(p);
	}
	pgc_store_get_stats(s, &st);
	packs = st.pack_bytes + st.map_bytes;
	for (unsigned i = 1; i <= 4; i++) {
		id = id_of(i);
		ok(pgc_snap_remove(s, &id, e));
	}
	ok(pgc_gc(s, &freed, e));
	cr_assert_eq(freed, packs);
	pgc_store_get_stats(s, &st);
	cr_assert_eq(st.pack_bytes + st.map_bytes + st.pages, 0);
	pgc_store_close(s);
	s = open_store(dir);
	pgc_store_get_stats(s, &st);
	cr_assert_eq(st.pack_bytes + st.map_bytes, 0);
	pgc_store_close(s);
	rm_tree(dir);
}

// One page in ten of a pack lives on: it moves, the rest is freed.
Test(gc, mostly_dead_packs_are_rewritten)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2), d = id_of(3);
	uint8_t *p = many(RANDOM, N, 0), *q = calloc(N, PGC_PAGE);
	struct pgc_store_stats one, two;
	uint64_t freed;
	struct pgc_snap *sn;

	publish(s, &a, NULL, p, N, false);
	for (unsigned i = 0; i < N; i += 10)
		memcpy(q + i * PGC_PAGE, p + i * PGC_PAGE, PGC_PAGE);
	publish(s, &c, NULL, q, N, true);
	publish(s, &d, &c, q, N, true);
	pgc_store_get_stats(s, &one);
	cr_assert_eq(one.packs, 1);
	ok(pgc_snap_remove(s, &a, e));
	ok(pgc_gc(s, &freed, e));
	pgc_store_get_stats(s, &two);
	cr_assert_eq(two.packs, 1);
	cr_assert_eq(two.pages, N / 10);
	cr_assert_lt(two.pack_bytes, one.pack_bytes / 5);
	cr_assert_leq(freed, one.pack_bytes + one.map_bytes - two.pack_bytes);
	cr_assert_gt(freed, one.pack_bytes - two.pack_bytes);
	for (int round = 0; round < 2; round++) {
		sn = open_snap(s, round ? &d : &c);
		expect_pages(sn, PGC_MEM, q, N);
		pgc_snap_unref(sn);
	}
	publish(s, &a, NULL, q, N, false); // found at its new place
	pgc_store_get_stats(s, &one);
	cr_assert_eq(one.pages, two.pages);
	cr_assert_eq(fsck_faults(s), 0);
	pgc_store_close(s);
	s = open_store(dir);
	expect_memory(s, &d, q, N);
	ok(pgc_gc(s, &freed, e));
	cr_assert_eq(freed, 0);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(q);
}

Test(gc, open_snapshots_keep_their_packs_where_they_are)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2);
	uint8_t *p = many(RANDOM, N, 0), *q = calloc(N, PGC_PAGE);
	struct pgc_store_stats st;
	uint64_t freed;
	struct pgc_snap *sn;

	publish(s, &a, NULL, p, N, false);
	memcpy(q, p, PGC_PAGE);
	publish(s, &c, NULL, q, N, false);
	sn = open_snap(s, &c);
	ok(pgc_snap_remove(s, &a, e));
	ok(pgc_gc(s, &freed, e));
	pgc_store_get_stats(s, &st);
	cr_assert_eq(st.pages, N);
	expect_pages(sn, PGC_MEM, q, N);
	pgc_snap_unref(sn);
	ok(pgc_gc(s, &freed, e));
	pgc_store_get_stats(s, &st);
	cr_assert_eq(st.pages, 1);
	expect_memory(s, &c, q, N);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(q);
}

Test(gc, a_damaged_snapshot_stops_it_before_it_frees)
{
	char *dir = tmp_store(), path[PATH_MAX], rel[64];
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2);
	uint8_t *p = mixed(N, 0), *f;
	struct pgc_store_stats one, two;
	struct err err = ERR_INIT;
	uint64_t freed;
	size_t len;

	publish(s, &a, NULL, p, N, false);
	publish(s, &c, NULL, p, N, true);
	ok(pgc_snap_remove(s, &a, e));
	snap_path(rel, sizeof(rel), &c);
	text(path, sizeof(path), "%s/%s", dir, rel);
	pgc_store_get_stats(s, &one);
	for (unsigned at = 30; at < 2000; at += 1000) { // header, body
		f = slurp(path, &len);
		f[at] ^= 1;
		spew(path, f, len);
		cr_assert_eq(pgc_gc(s, &freed, &err), -EBADMSG);
		cr_assert(strstr(err.msg, "corrupt"));
		f[at] ^= 1;
		spew(path, f, len);
		free(f);
	}
	pgc_store_get_stats(s, &two);
	cr_assert_eq(one.pack_bytes, two.pack_bytes);
	ok(pgc_snap_remove(s, &c, e));
	ok(pgc_gc(s, &freed, e));
	pgc_store_get_stats(s, &two);
	cr_assert_eq(two.pack_bytes, 0);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

// --- what happens between its survey and its deletions -----------------------

// The pages of a removed snapshot are found again by a new one: all of them, or
// only a few (which makes the pack one to rewrite); or others come and go.
struct meanwhile {
	struct pgc_store *s;
	const uint8_t *p;
	int what;
};

static void publish_again(void *ctx)
{
	struct meanwhile *m = ctx;
	struct pgc_id id = id_of(9), keep = id_of(8);

	pgc_test_hooks.gc_marked = NULL;
	if (m->what == 0) {
		publish(m->s, &id, NULL, m->p, N, false);
	} else if (m->what == 1) {
		publish(m->s, &id, NULL, m->p + 3 * PGC_PAGE, 5, false);
	} else if (m->what == 2) {
		struct pgc_snap *sn = open_snap(m->s, &keep);

		expect_pages(sn, PGC_MEM, m->p, 1);
		pgc_snap_unref(sn);
		publish(m->s, &id, &keep, m->p, 1, false);
	} else {
		ok(pgc_snap_remove(m->s, &keep, e));
	}
}

static void while_collecting(int what)
{
	static const uint64_t left[] = {N, 5, 1, 0};
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	uint8_t *p = many(RANDOM, N, 0);
	struct meanwhile m = {s, p, what};
	struct pgc_id a = id_of(1), keep = id_of(8), id = id_of(9);
	struct pgc_store_stats st;
	struct pgc_snap *sn;

	publish(s, &a, NULL, p, N, false);
	if (what >= 2)
		publish(s, &keep, NULL, p, 1, false);
	ok(pgc_snap_remove(s, &a, e));
	pgc_test_hooks.gc_ctx = &m;
	pgc_test_hooks.gc_marked = publish_again;
	ok(pgc_gc(s, NULL, e));
	cr_assert_null(pgc_test_hooks.gc_marked);
	if (what < 3) {
		sn = open_snap(s, &id);
		expect_pages(sn, PGC_MEM, p + (what == 1 ? 3 * PGC_PAGE : 0),
			     left[what]);
		pgc_snap_unref(sn);
	}
	cr_assert_eq(fsck_faults(s), 0);
	ok(pgc_gc(s, NULL, e)); // the next one finishes the work
	pgc_store_get_stats(s, &st);
	cr_assert_eq(st.pages, left[what]);
	cr_assert_eq(fsck_faults(s), 0);
	pgc_store_close(s);
	s = open_store(dir);
	cr_assert_eq(fsck_faults(s), 0);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(gc, dead_pages_found_again_meanwhile)
{
	while_collecting(0);
}

Test(gc, a_few_dead_pages_found_again_meanwhile)
{
	while_collecting(1);
}

Test(gc, a_reader_and_a_child_meanwhile)
{
	while_collecting(2);
}

Test(gc, a_removal_meanwhile)
{
	while_collecting(3);
}

// --- races -------------------------------------------------------------------

struct race {
	struct pgc_store *s;
	atomic_bool stop;
	atomic_uint rounds, collections;
	unsigned n;
};

// Publishes pages that others publish too, opens, verifies, removes: so that
// packs are shared, die, and are found again all the time. Never so far ahead of
// the collector that it has nothing to race with.
static void *committer(void *arg)
{
	struct race *r = arg;
	unsigned me = atomic_fetch_add(&r->rounds, 1) % 4;

	for (unsigned i = 0; i < 60; i++) {
		struct pgc_id id = id_of(1000 * (me + 1) + i);
		struct pgc_id prev = id_of(1000 * (me + 1) + i - 1);
		uint8_t *p = mixed(40, i / 3);
		struct pgc_snap *sn;

		while (atomic_load(&r->collections) < i / 5)
			usleep(100);
		p[1] = (uint8_t)me;
		publish(r->s, &id, i % 3 == 1 ? &prev : NULL, p, 40, true);
		if (i)
			ok(pgc_snap_remove(r->s, &prev, e));
		sn = open_snap(r->s, &id);
		expect_pages(sn, PGC_MEM, p, 40);
		pgc_snap_unref(sn);
		free(p);
	}
	return NULL;
}

static void *collector(void *arg)
{
	struct race *r = arg;

	while (!atomic_load(&r->stop)) {
		uint64_t freed;

		ok(pgc_gc(r->s, &freed, e));
		atomic_fetch_add(&r->collections, 1);
	}
	return NULL;
}

Test(gc, races_with_builders_and_removals, .timeout = 300)
{
	char *dir = tmp_store();
	struct race r = {.s = open_store(dir)};
	struct pgc_store_stats st;
	pthread_t t[5];
	uint64_t freed;

	pthread_create(&t[4], NULL, collector, &r);
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, committer, &r);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	atomic_store(&r.stop, true);
	pthread_join(t[4], NULL);
	cr_assert_gt(atomic_load(&r.collections), 10);
	cr_assert_eq(fsck_faults(r.s), 0);
	for (unsigned me = 0; me < 4; me++) { // the last of each is still there
		struct pgc_id id = id_of(1000 * (me + 1) + 59);
		uint8_t *p = mixed(40, 59 / 3);
		struct pgc_snap *sn = open_snap(r.s, &id);

		p[1] = (uint8_t)me;
		expect_pages(sn, PGC_MEM, p, 40);
		pgc_snap_unref(sn);
		ok(pgc_snap_remove(r.s, &id, e));
		free(p);
	}
	ok(pgc_gc(r.s, &freed, e));
	pgc_store_get_stats(r.s, &st);
	cr_assert_eq(st.pack_bytes + st.map_bytes, 0);
	pgc_store_close(r.s);
	rm_tree(dir);
}
