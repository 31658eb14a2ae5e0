// The format, byte for byte: what is written today equals
// tests/golden/store/good-v1, and each bad-* store there fails in the way that
// its README says. Set PGC_GOLDEN_WRITE=1 to write them anew (after a change of
// the format version).
#include "pgc_test.h"

enum { N = 24 };

static void golden_pages(uint8_t *p)
{
	for (unsigned i = 0; i < N; i++)
		fill_page(p + i * PGC_PAGE, (enum pattern)(i % 4), i / 8 * 8);
	fill_page(p + 8 * PGC_PAGE, RANDOM, 99);
}

static void make_good(const char *dir)
{
	uint8_t p[N * PGC_PAGE], page[PGC_PAGE];
	struct pgc_id a = id_of(1), c = id_of(2);
	uint64_t np[2] = {N, 8};
	uint32_t ws[] = {9 | PGC_WRITTEN, 17, 0};
	struct pgc_builder *b;
	struct pgc_store *s;

	pgc_test_hooks.uid_seed = 0x1122334455667700;
	golden_pages(p);
	s = open_store(dir);
	ok(pgc_builder_begin(s, &a, NULL, np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 0, p, N, e));
	ok(pgc_builder_put(b, PGC_DISK, 2, p + 4 * PGC_PAGE, 4, e));
	ok(pgc_builder_blob(b, "state", "golden state", 12, e));
	ok(pgc_builder_blob(b, "config", "{}", 2, e));
	ok(pgc_builder_commit(b, e));
	ok(pgc_snap_set_workset(s, &a, PGC_MEM, ws, 3, e));
	fill_page(page, SPARSE, 1234);
	ok(pgc_builder_begin(s, &c, &a, np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 5, page, 1, e));
	memset(page, 0, PGC_PAGE);
	ok(pgc_builder_put(b, PGC_MEM, 6, page, 1, e));
	ok(pgc_builder_commit(b, e));
	pgc_store_close(s);
	s = open_store(dir); // writes the index
	pgc_store_close(s);
	pgc_test_hooks.uid_seed = 0;
}

static const char *const files[] = {
    "index",
    "packs/1122334455667700.pack",
    "packs/1122334455667705.pack",
    "snaps/11220000000000000000000000000001.snap",
    "snaps/11220000000000000000000000000001.mem.ws",
    "snaps/11220000000000000000000000000002.snap",
};

// A bad store is the good one with one change to one file.
struct bad {
	const char *name;
	unsigned file; // in files[]
	enum { FLIP, CUT, DELETE, VERSION, RESERVED } how;
	unsigned at;
	int rc_parent, rc_child; // of open or read
	const char *says;	 // in the sentence of the first that fails
	int fsck;		 // at least so many faults
};
static const struct bad bads[] = {
    {"bad-pack-data", 1, FLIP, 100, -EBADMSG, -EBADMSG, "its checksum", 1},
    {"bad-pack-header", 1, FLIP, 24, -EBADMSG, -EBADMSG, "header is damaged",
     1},
    {"bad-pack-cut", 1, CUT, 5000, -EBADMSG, -EBADMSG, "instead of", 1},
    {"bad-pack-missing", 1, DELETE, 0, -EBADMSG, -EBADMSG, "is missing", 1},
    {"bad-child-pack-data", 2, FLIP, 90, 0, -EBADMSG, "page 5 ", 1},
    {"bad-snap-data", 3, FLIP, 300, -EBADMSG, -EBADMSG, "checksum", 1},
    {"bad-snap-cut", 3, CUT, 200, -EBADMSG, -EBADMSG, "header is damaged", 1},
    {"bad-snap-version", 3, VERSION, 0, -ENOTSUP, -ENOTSUP, "version 2", 1},
    {"bad-snap-reserved", 3, RESERVED, 56, -EBADMSG, -EBADMSG, "reserved", 1},
    {"bad-base-missing", 3, DELETE, 0, -ENOENT, -EBADMSG, "No such file", 1},
    {"bad-child-data", 5, FLIP, 270, 0, -EBADMSG, "checksum", 1},
    {"bad-ws-table", 4, FLIP, 130, 0, 0, NULL, 1},
    {"bad-ws-frame", 4, FLIP, 4100, 0, 0, NULL, 1},
    {"bad-ws-cut", 4, CUT, 8192, 0, 0, NULL, 1},
    {"bad-ws-version", 4, FLIP, 8, 0, 0, NULL, 1},
    {"bad-index-data", 0, FLIP, 90, 0, 0, NULL, 0}, // rebuilt at open
};

static void make_bad(const struct bad *b, const char *dir)
{
	char path[PATH_MAX];
	uint8_t *p;
	size_t len;

	text(path, sizeof(path), "%s/%s", dir, files[b->file]);
	p = slurp(path, &len);
	switch (b->how) {
	case FLIP:
		p[b->at] ^= 0x10;
		break;
	case CUT:
		len = b->at;
		break;
	case VERSION:
		put_le32(p + 8, 2);
		put_le32(p + 12, 2);
		map_reseal(p, len);
		break;
	case RESERVED:
		p[b->at] |= 0x80;
		map_reseal(p, len);
		break;
	case DELETE:
		break;
	}
	cr_assert(!unlink(path));
	if (b->how != DELETE)
		spew(path, p, len);
	free(p);
}

// Only the files: locks and empty folders are not kept in the repository.
static void copy_golden(const char *name, const char *to)
{
	char cmd[2 * PATH_MAX];

	text(cmd, sizeof(cmd), "rm -rf '%s' && cp -a '%s/%s' '%s'", to,
	     GOLDEN_DIR, name, to);
	cr_assert_eq(system(cmd), 0);
}

static void write_golden(void)
{
	char cmd[PATH_MAX], dir[PATH_MAX];

	text(dir, sizeof(dir), "%s/good-v1", GOLDEN_DIR);
	text(cmd, sizeof(cmd), "rm -rf '%s'/good-v1 '%s'/bad-*", GOLDEN_DIR,
	     GOLDEN_DIR);
	cr_assert_eq(system(cmd), 0);
	make_good(dir);
	text(cmd, sizeof(cmd), "cd '%s'/good-v1 && rm lock && rmdir tmp",
	     GOLDEN_DIR);
	cr_assert_eq(system(cmd), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bads); i++) {
		text(dir, sizeof(dir), "%s/%s", GOLDEN_DIR, bads[i].name);
		copy_golden("good-v1", dir);
		make_bad(&bads[i], dir);
	}
}

Test(golden, what_is_written_is_the_format)
{
	char *dir = tmp_store(), path[PATH_MAX];

	if (getenv("PGC_GOLDEN_WRITE"))
		write_golden();
	make_good(dir);
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		uint8_t *want, *got;
		size_t nwant, ngot;

		text(path, sizeof(path), "%s/good-v1/%s", GOLDEN_DIR, files[i]);
		want = slurp(path, &nwant);
		text(path, sizeof(path), "%s/%s", dir, files[i]);
		got = slurp(path, &ngot);
		cr_assert(nwant == ngot && !memcmp(want, got, ngot), "%s",
			  files[i]);
		free(want);
		free(got);
	}
	rm_tree(dir);
}

Test(golden, the_good_store_is_read)
{
	char *dir = tmp_store();
	uint8_t p[N * PGC_PAGE], disk[8 * PGC_PAGE] = {0};
	struct pgc_id a = id_of(1), c = id_of(2), got;
	struct pgc_store *s;
	struct pgc_snap *sn;
	const uint32_t *ws;
	size_t len;

	golden_pages(p);
	memcpy(disk + 2 * PGC_PAGE, p + 4 * PGC_PAGE, 4 * PGC_PAGE);
	copy_golden("good-v1", dir);
	s = open_store(dir);
	sn = open_snap(s, &a);
	expect_pages(sn, PGC_MEM, p, N);
	expect_pages(sn, PGC_DISK, disk, 8);
	cr_assert(
	    !memcmp(pgc_snap_blob(sn, "state", &len), "golden state", 12));
	cr_assert_eq(len, 12);
	cr_assert_eq(pgc_snap_workset(sn, PGC_MEM, &ws), 3);
	cr_assert(ws[0] == 0 && ws[1] == (9 | PGC_WRITTEN) && ws[2] == 17);
	pgc_snap_unref(sn);
	sn = open_snap(s, &c);
	cr_assert(pgc_snap_parent(sn, &got) && !memcmp(&got, &a, 16));
	fill_page(p + 5 * PGC_PAGE, SPARSE, 1234);
	fill_page(p + 6 * PGC_PAGE, ZERO, 0);
	expect_pages(sn, PGC_MEM, p, N);
	pgc_snap_unref(sn);
	cr_assert_eq(fsck_faults(s), 0);
	pgc_store_close(s);
	rm_tree(dir);
}

static int read_snap(struct pgc_store *s, unsigned n, struct err *e)
{
	uint8_t got[N * PGC_PAGE];
	struct pgc_id id = id_of(n);
	struct pgc_snap *sn;
	int rc = pgc_snap_open(s, &id, &sn, e);

	if (rc)
		return rc;
	rc = pgc_snap_read(sn, PGC_MEM, 0, got, N, e);
	if (!rc)
		rc = pgc_snap_read(sn, PGC_DISK, 0, got, 8, e);
	pgc_snap_unref(sn);
	return rc;
}

Test(golden, each_bad_store_fails_in_its_own_way)
{
	char *dir = tmp_store();

	for (size_t i = 0; i < ARRAY_SIZE(bads); i++) {
		const struct bad *b = &bads[i];
		struct err e1 = ERR_INIT, e2 = ERR_INIT;
		struct pgc_store *s;
		int rc;

		copy_golden(b->name, dir);
		s = open_store(dir);
		rc = read_snap(s, 1, &e1);
		cr_assert_eq(rc, b->rc_parent, "%s: %d %s", b->name, rc,
			     e1.msg);
		rc = read_snap(s, 2, &e2);
		cr_assert_eq(rc, b->rc_child, "%s: %d %s", b->name, rc, e2.msg);
		if (b->says)
			cr_assert(
			    strstr(b->rc_parent ? e1.msg : e2.msg, b->says),
			    "%s: %s", b->name, b->rc_parent ? e1.msg : e2.msg);
		cr_assert_geq((int)fsck_faults(s), b->fsck, "%s", b->name);
		pgc_store_close(s);
	}
	rm_tree(dir);
}
