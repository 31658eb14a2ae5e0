// What is put comes back: contents, blobs, statistics, names, locks.
#include <pthread.h>

#include "pgc_test.h"

enum { N = 300 };

Test(roundtrip, every_kind_of_page)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1);
	uint8_t *p = mixed(N, 0), *rev = malloc(N * PGC_PAGE);
	struct pgc_snap *sn;

	for (unsigned i = 0; i < N; i++)
		memcpy(rev + i * PGC_PAGE, p + (N - 1 - i) * PGC_PAGE,
		       PGC_PAGE);
	publish(s, &id, NULL, p, N, true);
	sn = open_snap(s, &id);
	expect_pages(sn, PGC_MEM, p, N);
	expect_pages(sn, PGC_DISK, rev, N);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	s = open_store(dir); // and after a restart
	sn = open_snap(s, &id);
	expect_pages(sn, PGC_MEM, p, N);
	cr_assert_eq(fsck_faults(s), 0);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(rev);
}

Test(roundtrip, single_pages_anywhere)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1);
	uint8_t *p = mixed(N, 0), got[PGC_PAGE];
	struct pgc_snap *sn;

	publish(s, &id, NULL, p, N, false);
	sn = open_snap(s, &id);
	for (unsigned i = 0; i < N; i++) {
		ok(pgc_snap_read(sn, PGC_MEM, i, got, 1, e));
		cr_assert(!memcmp(got, p + i * PGC_PAGE, PGC_PAGE), "%u", i);
	}
	cr_assert_eq(pgc_snap_read(sn, PGC_MEM, N, got, 1, NULL), -EINVAL);
	cr_assert_eq(pgc_snap_read(sn, PGC_MEM, UINT64_MAX, got, 1, NULL),
		     -EINVAL);
	cr_assert_eq(pgc_snap_read(sn, PGC_DISK, 0, got, 1, NULL), -EINVAL);
	ok(pgc_snap_read(sn, PGC_MEM, N, got, 0, e));
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(roundtrip, last_put_of_a_page_counts)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1);
	uint8_t *p = mixed(8, 0);
	uint64_t np[2] = {8, 0};
	struct pgc_builder *b;
	struct pgc_snap *sn;

	ok(pgc_builder_begin(s, &id, NULL, np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 0, p, 8, e));
	fill_page(p + 2 * PGC_PAGE, RANDOM, 77);
	fill_page(p + 1 * PGC_PAGE, ZERO, 0);
	ok(pgc_builder_put(b, PGC_MEM, 1, p + PGC_PAGE, 2, e));
	ok(pgc_builder_commit(b, e));
	sn = open_snap(s, &id);
	expect_pages(sn, PGC_MEM, p, 8);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(roundtrip, put_beyond_the_end_is_refused)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1);
	uint64_t np[2] = {4, 0}, big[2] = {PGC_STREAM_MAX_PAGES + 1ull, 0};
	uint8_t *p = mixed(4, 0);
	struct pgc_builder *b;

	cr_assert_eq(pgc_builder_begin(s, &id, NULL, big, &b, NULL), -EINVAL);
	ok(pgc_builder_begin(s, &id, NULL, np, &b, e));
	cr_assert_eq(pgc_builder_put(b, PGC_MEM, 2, p, 3, NULL), -EINVAL);
	cr_assert_eq(pgc_builder_put(b, PGC_MEM, 5, p, 0, NULL), -EINVAL);
	cr_assert_eq(pgc_builder_put(b, PGC_DISK, 0, p, 1, NULL), -EINVAL);
	ok(pgc_builder_put(b, PGC_MEM, 1, p, 3, e)); // still usable
	ok(pgc_builder_commit(b, e));
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(roundtrip, zero_pages_cost_nothing)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1);
	uint8_t *p = calloc(N, PGC_PAGE);
	struct pgc_store_stats st;
	struct pgc_snap_stats ss;
	struct pgc_snap *sn;

	publish(s, &id, NULL, p, N, true);
	pgc_store_get_stats(s, &st);
	cr_assert_eq(st.pages, 0);
	cr_assert_eq(st.packs, 0);
	sn = open_snap(s, &id);
	pgc_snap_get_stats(sn, &ss);
	cr_assert_eq(ss.nonzero[PGC_MEM], 0);
	cr_assert_eq(ss.unique_bytes, 0);
	cr_assert_eq(ss.stored_bytes, 0);
	expect_pages(sn, PGC_MEM, p, N);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

// A page is zero only if all of it is: one byte anywhere is data.
Test(roundtrip, one_byte_anywhere_is_not_a_zero_page)
{
	static const unsigned at[] = {0,  7,	8,    15,   16,	  63,
				      64, 2047, 2048, 4087, 4088, 4095};
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1);
	uint8_t *p = calloc(ARRAY_SIZE(at), PGC_PAGE);
	struct pgc_snap *sn;

	for (unsigned i = 0; i < ARRAY_SIZE(at); i++)
		p[i * PGC_PAGE + at[i]] = 0x80;
	publish(s, &id, NULL, p, ARRAY_SIZE(at), false);
	sn = open_snap(s, &id);
	expect_pages(sn, PGC_MEM, p, ARRAY_SIZE(at));
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(roundtrip, incompressible_pages_are_stored_raw)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1);
	uint8_t *p = malloc(64 * PGC_PAGE);
	struct pgc_store_stats st;
	struct pgc_snap *sn;

	for (unsigned i = 0; i < 64; i++)
		fill_page(p + i * PGC_PAGE, RANDOM, i + 1);
	publish(s, &id, NULL, p, 64, false);
	pgc_store_get_stats(s, &st);
	cr_assert_eq(st.pages, 64);
	cr_assert_eq(st.stored_bytes, 64 * PGC_PAGE);
	sn = open_snap(s, &id);
	expect_pages(sn, PGC_MEM, p, 64);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(roundtrip, blobs)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1), child = id_of(2);
	uint64_t np[2] = {1, 0};
	uint8_t *big = malloc(PGC_BLOB_MAX);
	struct pgc_builder *b;
	struct pgc_snap *sn;
	const void *v;
	size_t len;

	memset(big, 0xa5, PGC_BLOB_MAX);
	ok(pgc_builder_begin(s, &id, NULL, np, &b, e));
	ok(pgc_builder_blob(b, "state", "old", 3, e));
	ok(pgc_builder_blob(b, "big", big, PGC_BLOB_MAX, e));
	ok(pgc_builder_blob(b, "empty", NULL, 0, e));
	ok(pgc_builder_blob(b, "state", "newer", 5, e));
	cr_assert_eq(pgc_builder_blob(b, "", "x", 1, NULL), -EINVAL);
	cr_assert_eq(pgc_builder_blob(b, "0123456789abcdef0123456789abcdef",
				      "x", 1, NULL),
		     -EINVAL);
	cr_assert_eq(pgc_builder_blob(b, "x", big, PGC_BLOB_MAX + 1ul, NULL),
		     -EINVAL);
	ok(pgc_builder_commit(b, e));
	sn = open_snap(s, &id);
	v = pgc_snap_blob(sn, "state", &len);
	cr_assert(v && len == 5 && !memcmp(v, "newer", 5));
	v = pgc_snap_blob(sn, "big", &len);
	cr_assert(v && len == PGC_BLOB_MAX && !memcmp(v, big, len));
	cr_assert(pgc_snap_blob(sn, "empty", &len) && len == 0);
	cr_assert_null(pgc_snap_blob(sn, "none", &len));
	pgc_snap_unref(sn);
	ok(pgc_builder_begin(s, &child, &id, np, &b, e));
	ok(pgc_builder_commit(b, e));
	sn = open_snap(s, &child);
	cr_assert_null(pgc_snap_blob(sn, "state", &len)); // not inherited
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(big);
}

Test(roundtrip, dedup_inside_and_across_snapshots_and_streams)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), b = id_of(2);
	struct pgc_store_stats one, two;
	uint8_t *p = mixed(N, 0);
	struct pgc_snap_stats ss;
	struct pgc_snap *sn;

	publish(s, &a, NULL, p, N, true); // disk repeats memory
	pgc_store_get_stats(s, &one);
	publish(s, &b, NULL, p, N, true);
	pgc_store_get_stats(s, &two);
	cr_assert_eq(one.pages, two.pages);
	cr_assert_eq(one.pack_bytes, two.pack_bytes);
	cr_assert_lt(one.pages, (uint64_t)N * 3 / 4); // zero and repeated ones
	sn = open_snap(s, &b);
	pgc_snap_get_stats(sn, &ss);
	cr_assert_eq(ss.stored_bytes, 0);
	cr_assert_eq(ss.unique_bytes, two.stored_bytes);
	expect_pages(sn, PGC_MEM, p, N);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	s = open_store(dir); // the index finds them after a restart as well
	b = id_of(3);
	publish(s, &b, NULL, p, N, true);
	pgc_store_get_stats(s, &two);
	cr_assert_eq(one.pages, two.pages);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(roundtrip, names_are_exclusive_and_aborts_leave_nothing)
{
	char *dir = tmp_store(), path[PATH_MAX];
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1), none = id_of(9);
	uint64_t np[2] = {64, 0};
	uint8_t *p = mixed(64, 0);
	struct pgc_builder *b, *b2;
	struct pgc_store_stats st;
	struct pgc_snap *sn;

	ok(pgc_builder_begin(s, &id, NULL, np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 0, p, 64, e));
	cr_assert_eq(pgc_snap_open(s, &id, &sn, NULL), -ENOENT);
	pgc_builder_abort(b);
	pgc_builder_abort(NULL);
	cr_assert(!find_file(path, dir, "tmp", ".pack"));
	ok(pgc_builder_begin(s, &id, NULL, np, &b, e));
	ok(pgc_builder_begin(s, &id, NULL, np, &b2, e));
	ok(pgc_builder_put(b2, PGC_MEM, 0, p, 64, e));
	ok(pgc_builder_commit(b, e));
	cr_assert_eq(pgc_builder_commit(b2, NULL), -EEXIST);
	cr_assert_eq(pgc_builder_begin(s, &id, NULL, np, &b, NULL), -EEXIST);
	cr_assert_eq(pgc_builder_begin(s, &none, &none, np, &b, NULL), -ENOENT);
	pgc_store_get_stats(s, &st);
	cr_assert_eq(st.packs, 0);
	cr_assert_eq(st.snapshots, 1);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(roundtrip, one_store_one_process)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir), *s2;
	struct err e = ERR_INIT;

	cr_assert_eq(pgc_store_open(&s2, dir, NULL, &e), -EBUSY);
	cr_assert(strstr(e.msg, "in use"));
	pgc_store_close(s);
	s = open_store(dir);
	pgc_store_close(s);
	pgc_store_close(NULL);
	rm_tree(dir);
}

static int collect_ids(void *ctx, const struct pgc_id *id)
{
	((unsigned *)ctx)[id->b[15]]++;
	return id->b[15] == 99;
}

Test(roundtrip, list_and_remove)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	unsigned seen[256] = {0};
	uint8_t *p = mixed(16, 0);
	struct pgc_snap *sn;
	struct pgc_id id;

	for (unsigned i = 1; i <= 5; i++) {
		id = id_of(i);
		publish(s, &id, NULL, p, 16, false);
	}
	id = id_of(3);
	ok(pgc_snap_remove(s, &id, e));
	cr_assert_eq(pgc_snap_remove(s, &id, NULL), -ENOENT);
	cr_assert_eq(pgc_snap_open(s, &id, &sn, NULL), -ENOENT);
	ok(pgc_store_list(s, collect_ids, seen, e));
	cr_assert(seen[1] == 1 && seen[2] == 1 && !seen[3] && seen[5] == 1);
	publish(s, &id, NULL, p, 16, false); // the name is free again
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

Test(roundtrip, worksets)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1);
	uint8_t *p = mixed(64, 0);
	uint32_t ws[] = {60, 7, 3 | PGC_WRITTEN, 61, 3}, beyond[] = {64};
	// By clusters in order of mention, nothing beside.
	uint32_t want[] = {60, 61, 3 | PGC_WRITTEN, 7};
	const uint32_t *got;
	struct pgc_snap *old, *sn;
	char path[PATH_MAX];
	uint8_t *side;
	size_t len;

	publish(s, &id, NULL, p, 64, true);
	old = open_snap(s, &id);
	cr_assert_eq(pgc_snap_workset(old, PGC_MEM, &got), 0);
	ok(pgc_snap_set_workset(s, &id, PGC_MEM, ws, 5, e));
	cr_assert_eq(pgc_snap_set_workset(s, &id, PGC_MEM, beyond, 1, NULL),
		     -EINVAL);
	cr_assert_eq(pgc_snap_workset(old, PGC_MEM, &got), 0); // keeps the old
	sn = open_snap(s, &id);
	cr_assert_eq(pgc_snap_workset(sn, PGC_MEM, &got), 4);
	cr_assert(!memcmp(got, want, sizeof(want)));
	cr_assert_eq(pgc_snap_workset(sn, PGC_DISK, &got), 0);
	pgc_snap_unref(sn);
	ok(pgc_snap_set_workset(s, &id, PGC_MEM, ws, 1, e));
	sn = open_snap(s, &id);
	cr_assert_eq(pgc_snap_workset(sn, PGC_MEM, &got), 1);
	pgc_snap_unref(sn);
	pgc_snap_unref(old);
	cr_assert(find_file(path, dir, "snaps", ".ws"));
	side = slurp(path, &len);
	ok(pgc_snap_remove(s, &id, e));
	cr_assert(access(path, F_OK));
	publish(s, &id, NULL, p, 64, true); // another one of the same name
	spew(path, side, len);		    // with the first one's list
	sn = open_snap(s, &id);
	cr_assert_eq(pgc_snap_workset(sn, PGC_MEM, &got), 0);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(side);
}

// Few pages named of a cluster are what they are; with more, all of it is meant.
Test(roundtrip, working_sets_round_up_where_many_are_named)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1);
	uint8_t *p = mixed(64, 0);
	const uint32_t ws[] = {33, 35, 37, 39, 1, 3 | PGC_WRITTEN,
			       5,  7,  15, 60};
	const uint32_t *got;
	struct pgc_snap *sn;

	publish(s, &id, NULL, p, 64, true);
	ok(pgc_snap_set_workset(s, &id, PGC_MEM, ws, ARRAY_SIZE(ws), e));
	sn = open_snap(s, &id);
	cr_assert_eq(pgc_snap_workset(sn, PGC_MEM, &got), 4 + 16 + 1);
	cr_assert(!memcmp(got, ws, 4 * sizeof(*ws)));
	for (uint32_t i = 0; i < 16; i++)
		cr_assert_eq(got[4 + i], i == 3 ? 3 | PGC_WRITTEN : i);
	cr_assert_eq(got[20], 60);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

// Everything on disk against the sum of the compressed unique pages.
Test(roundtrip, stored_size_stays_within_a_tenth)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id id = id_of(1), child = id_of(2);
	enum { M = 20000 };
	uint64_t np[2] = {M, M}, total;
	struct pgc_store_stats st;
	struct pgc_builder *b;
	uint8_t page[PGC_PAGE];

	ok(pgc_builder_begin(s, &id, NULL, np, &b, e));
	for (unsigned i = 0; i < M; i++) {
		fill_page(page, RANDOM, i + 1); // about a third compresses away
		memset(page + 1400, 0, PGC_PAGE - 1400);
		ok(pgc_builder_put(b, PGC_MEM, i, page, 1, e));
		ok(pgc_builder_put(b, PGC_DISK, M - 1 - i, page, 1, e));
	}
	ok(pgc_builder_commit(b, e));
	ok(pgc_builder_begin(s, &child, &id, np, &b, e));
	for (unsigned i = 0; i < 100; i++) {
		fill_page(page, TEXT, i + 1);
		ok(pgc_builder_put(b, PGC_MEM, i * 199, page, 1, e));
	}
	ok(pgc_builder_commit(b, e));
	pgc_store_close(s);
	s = open_store(dir);
	pgc_store_get_stats(s, &st);
	total = st.pack_bytes + st.map_bytes + st.index_bytes;
	cr_assert_gt(st.index_bytes, 0);
	cr_assert_leq(total * 100, st.stored_bytes * 110, "%llu for %llu",
		      (unsigned long long)total,
		      (unsigned long long)st.stored_bytes);
	pgc_store_close(s);
	rm_tree(dir);
}

struct worker {
	struct pgc_store *s;
	unsigned n;
};

static void *build_some(void *arg)
{
	struct worker *w = arg;

	for (unsigned i = 0; i < 6; i++) {
		struct pgc_id id = id_of(w->n * 100 + i);
		uint8_t *p = mixed(200, i); // the same pages in every thread

		p[0] = (uint8_t)w->n;
		publish(w->s, &id, NULL, p, 200, true);
		free(p);
	}
	return NULL;
}

Test(roundtrip, several_builders_at_once)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	pthread_t t[4];
	struct worker w[4];

	for (unsigned i = 0; i < 4; i++) {
		w[i] = (struct worker){s, i};
		pthread_create(&t[i], NULL, build_some, &w[i]);
	}
	for (unsigned i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	for (unsigned k = 0; k < 24; k++) {
		struct pgc_id id = id_of(k / 6 * 100 + k % 6);
		struct pgc_snap *sn = open_snap(s, &id);
		uint8_t *p = mixed(200, k % 6);

		p[0] = (uint8_t)(k / 6);
		expect_pages(sn, PGC_MEM, p, 200);
		pgc_snap_unref(sn);
		free(p);
	}
	cr_assert_eq(fsck_faults(s), 0);
	pgc_store_close(s);
	rm_tree(dir);
}
