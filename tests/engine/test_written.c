// The list of written pages in a microVM's own snapshot: what of it is as in the
// parent, and lists that are not right.
#include "written.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

enum { PAGES = 64 };

static char dir[64];
static struct pgc_store *store;
static struct pgc_id parent;

static struct pgc_builder *begin(struct pgc_id *id, const struct pgc_id *of)
{
	const uint64_t npages[PGC_NUM_STREAMS] = {PAGES, 0};
	struct err e = ERR_INIT;
	struct pgc_builder *b;

	util_random(id->b, sizeof(id->b));
	cr_assert_eq(pgc_builder_begin(store, id, of, npages, &b, &e), 0, "%s",
		     e.msg);
	return b;
}

static void put(struct pgc_builder *b, uint64_t pgno, uint8_t fill)
{
	uint8_t page[PGC_PAGE];
	struct err e = ERR_INIT;

	memset(page, fill, sizeof(page));
	cr_assert_eq(pgc_builder_put(b, PGC_MEM, pgno, page, 1, &e), 0);
}

static struct pgc_snap *commit(struct pgc_builder *b, const struct pgc_id *id)
{
	struct err e = ERR_INIT;
	struct pgc_snap *sn;

	cr_assert_eq(pgc_builder_commit(b, &e), 0, "%s", e.msg);
	cr_assert_eq(pgc_snap_open(store, id, &sn, &e), 0, "%s", e.msg);
	return sn;
}

static void setup(void)
{
	struct err e = ERR_INIT;
	struct pgc_builder *b;

	strcpy(dir, "/tmp/thaw-written-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(pgc_store_open(&store, dir, NULL, &e), 0, "%s", e.msg);
	b = begin(&parent, NULL);
	for (uint8_t i = 0; i < PAGES; i++)
		put(b, i, (uint8_t)(i + 1));
	pgc_snap_unref(commit(b, &parent));
}

static void teardown(void)
{
	char cmd[96];

	pgc_store_close(store);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	cr_assert_eq(system(cmd), 0);
}

TestSuite(written, .init = setup, .fini = teardown, .timeout = 120);

Test(written, what_is_as_in_the_parent)
{
	struct pagescan_run runs[] = {{0, 2}, {4, 3}, {PAGES - 1, 1}};
	struct pagescan all = {.runs = runs, .n = ARRAY_SIZE(runs)};
	struct err e = ERR_INIT;
	struct pgc_id id;
	struct pgc_builder *b = begin(&id, &parent);
	struct pgc_snap *sn;
	uint32_t *got;
	size_t n;

	put(b, 0, 1);	// as it was
	put(b, 1, 100); // changed
	put(b, 5, 101);
	cr_assert_eq(written_put(b, &all, &e), 0, "%s", e.msg);
	sn = commit(b, &id);
	got = written_as_parent(sn, &n);
	cr_assert_eq(n, 4u);
	cr_expect_eq(got[0], 0u | PGC_WRITTEN);
	cr_expect_eq(got[1], 4u | PGC_WRITTEN);
	cr_expect_eq(got[2], 6u | PGC_WRITTEN);
	cr_expect_eq(got[3], (PAGES - 1u) | PGC_WRITTEN);
	free(got);
	pgc_snap_unref(sn);
}

static void expect_none(const uint32_t *words, size_t bytes)
{
	uint8_t buf[64];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct err e = ERR_INIT;
	struct pgc_id id;
	struct pgc_builder *b = begin(&id, &parent);
	struct pgc_snap *sn;
	size_t n = 99;

	for (size_t i = 0; i < (bytes + 3) / 4; i++)
		wire_put_u32(&w, words[i]);
	if (bytes)
		cr_assert_eq(pgc_builder_blob(b, "written", buf, bytes, &e), 0);
	sn = commit(b, &id);
	cr_expect_null(written_as_parent(sn, &n), "a list of %zu bytes", bytes);
	cr_expect_eq(n, 0u);
	pgc_snap_unref(sn);
}

Test(written, a_list_that_is_not_right_counts_as_none)
{
	expect_none(NULL, 0);
	expect_none((uint32_t[]){0, 1, 2, 1}, 15);	    // cut off
	expect_none((uint32_t[]){0, 1, 2, 0}, 16);	    // an empty run
	expect_none((uint32_t[]){2, 2, 3, 1}, 16);	    // twice
	expect_none((uint32_t[]){3, 1, 2, 1}, 16);	    // backwards
	expect_none((uint32_t[]){0, 1, PAGES, 1}, 16);	    // beyond the end
	expect_none((uint32_t[]){0, 1, PAGES - 1, 2}, 16);  // partly
	expect_none((uint32_t[]){0, 1, 1, UINT32_MAX}, 16); // far
	expect_none((uint32_t[]){UINT32_MAX, UINT32_MAX}, 8);
}
