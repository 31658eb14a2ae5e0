// Different pages with the same key: found out by their bytes, stored apart.
#include "pgc_test.h"

enum { N = 200 };

static void collide(uint64_t mask)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2);
	uint8_t *p = mixed(N, 0), *q = mixed(N, 1);
	uint64_t freed;

	pgc_test_hooks.hash_mask = mask;
	publish(s, &a, NULL, p, N, true);
	publish(s, &c, &a, q, N, true); // every page against the parent's too
	pgc_store_close(s);
	s = open_store(dir);
	expect_memory(s, &a, p, N);
	expect_memory(s, &c, q, N);
	cr_assert_eq(fsck_faults(s), 0);
	ok(pgc_snap_remove(s, &a, e));
	ok(pgc_gc(s, &freed, e));
	expect_memory(s, &c, q, N);
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
	free(q);
	pgc_test_hooks.hash_mask = 0;
}

Test(collisions, all_pages_have_one_id)
{
	collide(UINT64_MAX);
}

Test(collisions, a_few_pages_share_each_id)
{
	collide(~UINT64_C(63));
}

// Collisions do not stop deduplication of what is really the same.
Test(collisions, equal_pages_still_meet)
{
	char *dir = tmp_store();
	struct pgc_store *s = open_store(dir);
	struct pgc_id a = id_of(1), c = id_of(2);
	uint8_t *p = malloc(4 * PGC_PAGE);
	struct pgc_store_stats one, two;

	pgc_test_hooks.hash_mask = UINT64_MAX;
	for (unsigned i = 0; i < 4; i++)
		fill_page(p + i * PGC_PAGE, TEXT, i + 1);
	publish(s, &a, NULL, p, 4, true);
	pgc_store_get_stats(s, &one);
	publish(s, &c, NULL, p, 4, true);
	pgc_store_get_stats(s, &two);
	cr_assert_eq(one.pages, 4);
	cr_assert_eq(two.pages, 4);
	pgc_test_hooks.hash_mask = 0;
	pgc_store_close(s);
	rm_tree(dir);
	free(p);
}
