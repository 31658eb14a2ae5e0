// The index: lost, damaged, stale, merged; never more than a help.
#include "pgc_test.h"

enum { N = 500 };

static void index_path(char *dst, const char *dir)
{
	text(dst, PATH_MAX, "%s/index", dir);
}

// After whatever happened to the index: contents right, and duplicates found.
static void expect_dedup(const char *dir, const uint8_t *p, unsigned id)
{
	struct pgc_store *s = open_store(dir);
	struct pgc_store_stats one, two;
	struct pgc_id a = id_of(1), c = id_of(id);

	pgc_store_get_stats(s, &one);
	publish(s, &c, NULL, p, N, true);
	pgc_store_get_stats(s, &two);
	cr_assert_eq(one.pages, two.pages);
	expect_memory(s, &a, p, N);
	cr_assert_eq(fsck_faults(s), 0);
	pgc_store_close(s);
}

static char *store_with_index(uint8_t **p)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1);

	*p = mixed(N, 0);
	publish(s, &a, NULL, *p, N, true);
	pgc_store_close(s);
	s = open_store(dir); // writes the index, as there was none
	pgc_store_close(s);
	return dir;
}

Test(index, rebuilt_when_missing)
{
	uint8_t *p;
	char *dir = store_with_index(&p), path[PATH_MAX];
	size_t n1, n2;
	uint8_t *a, *b;

	index_path(path, dir);
	a = slurp(path, &n1);
	cr_assert(!unlink(path));
	expect_dedup(dir, p, 2);
	b = slurp(path, &n2);
	cr_assert(n1 == n2 && !memcmp(a, b, n1)); // from the packs alone
	rm_tree(dir);
	free(a);
	free(b);
	free(p);
}

Test(index, rebuilt_when_damaged_anywhere)
{
	uint8_t *p, *good, *bad;
	char *dir = store_with_index(&p), path[PATH_MAX];
	struct pgc_options keep = {.struct_size = sizeof(keep),
				   .keep_index = true};
	struct pgc_store *s;
	unsigned id = 10;
	size_t len;

	index_path(path, dir);
	good = slurp(path, &len);
	bad = malloc(len);
	for (size_t at = 0; at < len; at += at < 80 ? 1 : 397) {
		memcpy(bad, good, len);
		bad[at] ^= (uint8_t)(1 << at % 8);
		spew(path, bad, len);
		cr_assert(pgc_store_open(&s, dir, &keep, NULL) < 0, "byte %zu",
			  at);
		s = open_store(dir);
		pgc_store_close(s);
		free(bad);
		bad = slurp(path, &len);
		cr_assert(!memcmp(bad, good, len));
	}
	for (size_t n = 0; n < len; n += 997) {
		spew(path, good, n);
		cr_assert(pgc_store_open(&s, dir, &keep, NULL) < 0, "%zu", n);
	}
	expect_dedup(dir, p, id++);
	rm_tree(dir);
	free(p);
	free(good);
	free(bad);
}

// An index that lies (checksums right, locations wrong) costs only duplicates.
Test(index, wrong_answers_are_harmless)
{
	uint8_t *p, *f;
	char *dir = store_with_index(&p), path[PATH_MAX];
	struct pgc_id a = id_of(1), c = id_of(2);
	struct pgc_store *s;
	uint64_t count, at;
	size_t len;

	index_path(path, dir);
	f = slurp(path, &len);
	count = le64(f + 16);
	at = len - count * INDEX_ENT;
	for (uint64_t i = 0; i + 1 < count; i += 2) { // swap locations
		uint64_t x = le64(f + at + i * 16 + 8);
		uint64_t y = le64(f + at + i * 16 + 24);

		put_le64(f + at + i * 16 + 8, i % 4 ? y : x | 0xfffffffffff);
		put_le64(f + at + i * 16 + 24, x);
	}
	hash128(f + 24, f + INDEX_HEADER, len - INDEX_HEADER);
	put_le64(f + 56, hash64(f, INDEX_HEADER - 8));
	spew(path, f, len);
	s = open_store(dir);
	publish(s, &c, NULL, p, N, true);
	expect_memory(s, &c, p, N);
	expect_memory(s, &a, p, N);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(f);
}

Test(index, stale_after_packs_came_and_went)
{
	uint8_t *p, *q = mixed(N, 9), *old;
	char *dir = store_with_index(&p), path[PATH_MAX];
	struct pgc_id a = id_of(1), c = id_of(2);
	struct pgc_store *s;
	uint64_t freed;
	size_t len;

	index_path(path, dir);
	old = slurp(path, &len);
	s = open_store(dir);
	publish(s, &c, NULL, q, N, false);
	ok(pgc_snap_remove(s, &a, e));
	ok(pgc_gc(s, &freed, e));
	cr_assert_gt(freed, 0);
	pgc_store_close(s);
	spew(path, old, len); // names a pack that is gone, lacks one that came
	s = open_store(dir);
	expect_memory(s, &c, q, N);
	publish(s, &a, NULL, p, N, true); // nothing of it may be found
	expect_memory(s, &a, p, N);
	pgc_store_close(s);
	expect_dedup(dir, p, 3);
	rm_tree(dir);
	free(p);
	free(q);
	free(old);
}

Test(index, forgets_what_was_collected)
{
	uint8_t *p;
	char *dir = store_with_index(&p);
	struct pgc_id a = id_of(1);
	struct pgc_store_stats st;
	struct pgc_store *s = open_store(dir);

	ok(pgc_snap_remove(s, &a, e));
	ok(pgc_gc(s, NULL, e));
	pgc_store_get_stats(s, &st);
	cr_assert_eq(st.index_bytes, INDEX_HEADER);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}

// Enough pages for merges while building goes on.
Test(index, merges_by_itself_and_finds_everything)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	enum { M = 12000 };
	uint64_t np[2] = {M, 0};
	struct pgc_store_stats st, again;
	struct pgc_builder *b;
	uint8_t page[PGC_PAGE] = {0};

	for (unsigned k = 0; k < 8; k++) {
		struct pgc_id id = id_of(k % 4 + k / 4 * 100);

		ok(pgc_builder_begin(s, &id, NULL, np, &b, e));
		for (unsigned i = 0; i < M; i++) {
			put_le64(page, 1 + i + k % 4 * (uint64_t)M);
			ok(pgc_builder_put(b, PGC_MEM, i, page, 1, e));
		}
		ok(pgc_builder_commit(b, e));
		if (k == 3)
			pgc_store_get_stats(s, &st);
	}
	pgc_store_get_stats(s, &again);
	cr_assert_eq(st.pages, 4 * M);
	cr_assert_gt(st.index_bytes, 30000 * 16);
	cr_assert_eq(again.pages, st.pages);
	cr_assert_leq(st.index_bytes, (4 * M + 10) * 16);
	cr_assert_leq(s->index.delta.n, 32768);
	pgc_store_close(s);
	rm_tree(dir);
}

// A damaged pack does not keep the store from opening; others are indexed.
Test(index, catching_up_passes_damaged_packs)
{
	char *dir = tmp_store(), path[PATH_MAX];
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2);
	uint8_t *p = mixed(N, 0), *q = mixed(N, 4), *f;
	size_t len;

	publish(s, &a, NULL, p, N, false);
	cr_assert(find_file(path, dir, "packs", ".pack"));
	publish(s, &c, NULL, q, N, false);
	pgc_store_close(s);
	f = slurp(path, &len);
	f[PACK_HEADER + 3] ^= 4;
	spew(path, f, len);
	s = open_store(dir);
	expect_memory(s, &c, q, N);
	cr_assert_gt(fsck_faults(s), 0);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(q);
	free(f);
}
