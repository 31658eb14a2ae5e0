// Parents, runs, references: exactly as pagecache.h says; and maps that build
// on maps which were removed.
#include "pgc_test.h"

enum { N = 2000 };

static void expect_run(struct pgc_snap *sn, enum pgc_stream st, uint64_t pgno,
		       uint64_t n, enum pgc_run_kind k)
{
	struct pgc_run r;

	cr_assert(pgc_snap_run(sn, st, pgno, &r));
	cr_assert(r.pgno == pgno && r.npages == n && r.kind == k,
		  "at %d: %d+%d kind %d", (int)pgno, (int)r.pgno, (int)r.npages,
		  (int)r.kind);
}

Test(maps, runs_without_a_parent)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1);
	uint8_t *p = many(TEXT, 10, 0);
	uint64_t np[2] = {40, 0};
	struct pgc_builder *b;
	struct pgc_snap *sn;
	struct pgc_run r;

	ok(pgc_builder_begin(s, &id, NULL, np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 5, p, 10, e));
	ok(pgc_builder_put(b, PGC_MEM, 20, p, 1, e)); // repeats a page
	memset(p, 0, PGC_PAGE);
	ok(pgc_builder_put(b, PGC_MEM, 39, p, 1, e)); // zero, explicitly
	ok(pgc_builder_commit(b, e));
	sn = open_snap(s, &id);
	expect_run(sn, PGC_MEM, 0, 5, PGC_RUN_ZERO);
	expect_run(sn, PGC_MEM, 5, 10, PGC_RUN_OWN);
	expect_run(sn, PGC_MEM, 9, 6, PGC_RUN_OWN); // clipped
	expect_run(sn, PGC_MEM, 15, 5, PGC_RUN_ZERO);
	expect_run(sn, PGC_MEM, 20, 1, PGC_RUN_OWN);
	expect_run(sn, PGC_MEM, 21, 19, PGC_RUN_ZERO);
	cr_assert(!pgc_snap_run(sn, PGC_MEM, 40, &r));
	cr_assert(!pgc_snap_run(sn, PGC_DISK, 0, &r));
	cr_assert(!pgc_snap_parent(sn, NULL));
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(maps, runs_with_a_parent)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2), got;
	uint8_t *p = many(TEXT, 100, 0), *q = many(TEXT, 100, 1);
	uint64_t np[2] = {100, 0};
	struct pgc_snap_stats ss;
	struct pgc_builder *b;
	struct pgc_snap *sn;

	memset(p + 50 * PGC_PAGE, 0, 10 * PGC_PAGE);
	publish(s, &a, NULL, p, 100, false);
	ok(pgc_builder_begin(s, &c, &a, np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 10, q + 10 * PGC_PAGE, 5, e)); // new
	ok(pgc_builder_put(b, PGC_MEM, 20, p + 20 * PGC_PAGE, 5, e)); // same
	memset(q, 0, PGC_PAGE);
	ok(pgc_builder_put(b, PGC_MEM, 30, q, 1, e));		 // became zero
	ok(pgc_builder_put(b, PGC_MEM, 55, q, 1, e));		 // was zero
	ok(pgc_builder_put(b, PGC_MEM, 56, q + PGC_PAGE, 1, e)); // was zero
	ok(pgc_builder_put(b, PGC_MEM, 70, p, 1, e)); // the parent's, elsewhere
	ok(pgc_builder_commit(b, e));
	memcpy(p + 10 * PGC_PAGE, q + 10 * PGC_PAGE, 5 * PGC_PAGE);
	memset(p + 30 * PGC_PAGE, 0, PGC_PAGE);
	memcpy(p + 56 * PGC_PAGE, q + PGC_PAGE, PGC_PAGE);
	memcpy(p + 70 * PGC_PAGE, p, PGC_PAGE);
	sn = open_snap(s, &c);
	expect_pages(sn, PGC_MEM, p, 100);
	expect_run(sn, PGC_MEM, 0, 10, PGC_RUN_PARENT);
	expect_run(sn, PGC_MEM, 10, 5, PGC_RUN_OWN);
	expect_run(sn, PGC_MEM, 15, 15, PGC_RUN_PARENT);
	expect_run(sn, PGC_MEM, 30, 1, PGC_RUN_ZERO);
	expect_run(sn, PGC_MEM, 31, 25, PGC_RUN_PARENT); // zero in both: too
	expect_run(sn, PGC_MEM, 56, 1, PGC_RUN_OWN);
	expect_run(sn, PGC_MEM, 57, 13, PGC_RUN_PARENT);
	expect_run(sn, PGC_MEM, 70, 1, PGC_RUN_OWN);
	expect_run(sn, PGC_MEM, 71, 29, PGC_RUN_PARENT);
	cr_assert(pgc_snap_parent(sn, &got) && !memcmp(&got, &a, 16));
	pgc_snap_get_stats(sn, &ss);
	cr_assert_eq(ss.own[PGC_MEM], 5 + 1 + 1 + 1);
	cr_assert_eq(ss.nonzero[PGC_MEM], 90 - 1 + 1);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(q);
}

// A page put like the grandparent's differs from the parent's, so it is OWN.
Test(maps, a_chain_of_parents)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id ids[6];
	uint8_t *p = many(TEXT, N, 0), *first = many(TEXT, N, 0),
		page[PGC_PAGE];
	uint64_t np[2] = {N, 0};
	struct pgc_builder *b;
	struct pgc_snap *sn;

	ids[0] = id_of(1);
	publish(s, &ids[0], NULL, p, N, false);
	for (unsigned k = 1; k < 6; k++) {
		ids[k] = id_of(k + 1);
		ok(pgc_builder_begin(s, &ids[k], &ids[k - 1], np, &b, e));
		for (unsigned i = 0; i < 40; i++) {
			unsigned at = (k * 331 + i * 17) % N;

			fill_page(page, i % 5 ? TEXT : ZERO, k * 1000 + i);
			memcpy(p + at * PGC_PAGE, page, PGC_PAGE);
			ok(pgc_builder_put(b, PGC_MEM, at, page, 1, e));
		}
		ok(pgc_builder_commit(b, e));
		sn = open_snap(s, &ids[k]);
		expect_pages(sn, PGC_MEM, p, N);
		expect_run(sn, PGC_MEM, (k * 331 + 17) % N, 1, PGC_RUN_OWN);
		pgc_snap_unref(sn);
	}
	ids[0] = id_of(50);
	ok(pgc_builder_begin(s, &ids[0], &ids[5], np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 331 + 17, first + (331 + 17) * PGC_PAGE,
			   1, e));
	ok(pgc_builder_commit(b, e));
	memcpy(p + (331 + 17) * PGC_PAGE, first + (331 + 17) * PGC_PAGE,
	       PGC_PAGE);
	sn = open_snap(s, &ids[0]);
	expect_pages(sn, PGC_MEM, p, N);
	expect_run(sn, PGC_MEM, 331 + 17, 1, PGC_RUN_OWN);
	expect_run(sn, PGC_MEM, 331 + 18, N - 331 - 18, PGC_RUN_PARENT);
	pgc_snap_unref(sn);
	cr_assert_eq(fsck_faults(s), 0);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(first);
}

Test(maps, a_child_costs_what_it_changed)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2);
	uint8_t *p = many(TEXT, N, 0), page[PGC_PAGE];
	uint64_t np[2] = {N, 0};
	struct pgc_snap_stats one, two;
	struct pgc_builder *b;
	struct pgc_snap *sn;

	publish(s, &a, NULL, p, N, false);
	sn = open_snap(s, &a);
	pgc_snap_get_stats(sn, &one);
	pgc_snap_unref(sn);
	ok(pgc_builder_begin(s, &c, &a, np, &b, e));
	fill_page(page, TEXT, 99999);
	ok(pgc_builder_put(b, PGC_MEM, 1000, page, 1, e));
	ok(pgc_builder_put(b, PGC_MEM, 0, p, 600, e)); // unchanged ones
	ok(pgc_builder_commit(b, e));
	sn = open_snap(s, &c);
	pgc_snap_get_stats(sn, &two);
	cr_assert_lt(two.map_bytes, 400);
	cr_assert_gt(one.map_bytes, N * 16);
	cr_assert_gt(two.unique_bytes, one.unique_bytes * 99 / 100);
	cr_assert_lt(two.stored_bytes, PGC_PAGE);
	cr_assert_gt(two.stored_bytes, 0);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(maps, children_survive_their_parents_removal)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2), d = id_of(3);
	uint8_t *p = many(TEXT, N, 0), *q = many(TEXT, N, 1);
	uint64_t np[2] = {N, 0}, freed;
	struct pgc_builder *b;
	char path[PATH_MAX];

	publish(s, &a, NULL, p, N, false);
	ok(pgc_builder_begin(s, &c, &a, np, &b, e));
	memcpy(p + 7 * PGC_PAGE, q, PGC_PAGE);
	ok(pgc_builder_put(b, PGC_MEM, 7, q, 1, e));
	ok(pgc_builder_commit(b, e));
	ok(pgc_snap_remove(s, &a, e));
	publish(s, &a, NULL, q, N, false); // the name gets another content
	ok(pgc_gc(s, &freed, e));
	expect_memory(s, &c, p, N);
	pgc_store_close(s);
	s = open_store(dir);
	ok(pgc_gc(s, &freed, e));
	expect_memory(s, &c, p, N);
	// A grandchild still builds on the removed map, by way of the child.
	ok(pgc_builder_begin(s, &d, &c, np, &b, e));
	ok(pgc_builder_commit(b, e));
	ok(pgc_snap_remove(s, &c, e));
	ok(pgc_gc(s, &freed, e));
	expect_memory(s, &d, p, N);
	cr_assert_eq(fsck_faults(s), 0);
	ok(pgc_snap_remove(s, &d, e));
	ok(pgc_gc(s, &freed, e));
	cr_assert(!find_file(path, dir, "snaps", ".base"));
	expect_memory(s, &a, q, N);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(q);
}

// A parent is removed and collected while a child of it is being built.
Test(maps, a_parent_removed_under_its_builder)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2);
	uint8_t *p = many(TEXT, N, 0);
	uint64_t np[2] = {N, 0};
	struct pgc_builder *b;

	publish(s, &a, NULL, p, N, false);
	ok(pgc_builder_begin(s, &c, &a, np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 7, p, 1, e));
	ok(pgc_snap_remove(s, &a, e));
	ok(pgc_gc(s, NULL, e));
	ok(pgc_builder_commit(b, e));
	ok(pgc_gc(s, NULL, e));
	pgc_store_close(s);
	s = open_store(dir);
	memcpy(p + 7 * PGC_PAGE, p, PGC_PAGE);
	expect_memory(s, &c, p, N);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(maps, a_child_that_rewrites_most_stands_alone)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2);
	uint8_t *p = many(TEXT, N, 0), *q = many(TEXT, N, 1);
	struct pgc_snap *sn;
	char path[PATH_MAX];
	uint64_t freed;

	publish(s, &a, NULL, p, N, false);
	publish(s, &c, &a, q, N, false);
	ok(pgc_snap_remove(s, &a, e));
	ok(pgc_gc(s, &freed, e));
	cr_assert(!find_file(path, dir, "snaps", ".base"));
	cr_assert_gt(freed, 100000);
	sn = open_snap(s, &c);
	expect_pages(sn, PGC_MEM, q, N);
	expect_run(sn, PGC_MEM, 0, N, PGC_RUN_OWN);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(q);
}

Test(maps, references_to_another_snapshot)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2);
	uint8_t *p = mixed(N, 0), *q = many(TEXT, 10, 3);
	uint64_t np[2] = {N, N}, freed;
	struct pgc_snap *from, *sn;
	struct pgc_builder *b;
	struct pgc_snap_stats ss;

	publish(s, &a, NULL, p, N, false);
	from = open_snap(s, &a);
	ok(pgc_builder_begin(s, &c, NULL, np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 100, q, 10, e));
	ok(pgc_builder_ref(b, PGC_MEM, 0, N, from, e));
	ok(pgc_builder_put(b, PGC_MEM, 500, q, 10, e)); // over a reference
	cr_assert_eq(pgc_builder_ref(b, PGC_DISK, 0, 1, from, NULL), -EINVAL);
	cr_assert_eq(pgc_builder_ref(b, PGC_MEM, 1, N, from, NULL), -EINVAL);
	pgc_snap_unref(from);
	ok(pgc_snap_remove(s, &a, e));
	ok(pgc_gc(s, &freed, e)); // must spare what the builder refers to
	ok(pgc_builder_commit(b, e));
	memcpy(p + 500 * PGC_PAGE, q, 10 * PGC_PAGE);
	sn = open_snap(s, &c);
	expect_pages(sn, PGC_MEM, p, N);
	pgc_snap_get_stats(sn, &ss);
	cr_assert_eq(ss.nonzero[PGC_DISK], 0);
	pgc_snap_unref(sn);
	ok(pgc_gc(s, &freed, e));
	cr_assert_eq(fsck_faults(s), 0);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(q);
}

Test(maps, a_ref_of_the_parents_page_is_the_parents)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2);
	uint8_t *p = many(TEXT, N, 0), *q = many(TEXT, N, 1);
	uint64_t np[2] = {N, 0};
	struct pgc_builder *b;
	struct pgc_snap *from, *sn;

	publish(s, &a, NULL, p, N, false);
	from = open_snap(s, &a);
	ok(pgc_builder_begin(s, &c, &a, np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 0, q, 50, e));
	ok(pgc_builder_ref(b, PGC_MEM, 10, 20, from, e)); // back again
	ok(pgc_builder_commit(b, e));
	sn = open_snap(s, &c);
	expect_run(sn, PGC_MEM, 0, 10, PGC_RUN_OWN);
	expect_run(sn, PGC_MEM, 10, 20, PGC_RUN_PARENT);
	expect_run(sn, PGC_MEM, 30, 20, PGC_RUN_OWN);
	expect_run(sn, PGC_MEM, 50, N - 50, PGC_RUN_PARENT);
	pgc_snap_unref(sn);
	pgc_snap_unref(from);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(q);
}

Test(maps, lengths_must_equal_the_parents)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2);
	uint8_t *p = many(TEXT, 8, 0);
	uint64_t np[2] = {9, 0};
	struct pgc_builder *b;

	publish(s, &a, NULL, p, 8, false);
	cr_assert_eq(pgc_builder_begin(s, &c, &a, np, &b, NULL), -EINVAL);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(maps, handles_outlive_removal_and_collection)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1);
	uint8_t *p = mixed(N, 0);
	struct pgc_store_stats st;
	struct pgc_snap *sn, *two;
	uint64_t freed;

	publish(s, &a, NULL, p, N, true);
	sn = open_snap(s, &a);
	two = pgc_snap_ref(sn);
	ok(pgc_snap_remove(s, &a, e));
	ok(pgc_gc(s, &freed, e));
	expect_pages(sn, PGC_MEM, p, N);
	pgc_snap_unref(sn);
	expect_pages(two, PGC_MEM, p, N);
	pgc_snap_unref(two);
	pgc_snap_unref(NULL);
	ok(pgc_gc(s, &freed, e));
	cr_assert_gt(freed, 0);
	pgc_store_get_stats(s, &st);
	cr_assert(st.packs == 0 && st.map_bytes == 0 && st.pages == 0);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}
