// Crashes and failing syscalls, exhaustively: each operation on a small store
// is killed before every one of its syscalls that change the file system, and
// each of those is made to fail with ENOSPC, EIO and EINTR. After it: what was
// acknowledged is there and right, what failed is not visible, everything opens
// without repair, and collection leaves no byte behind.
#include "tracer.h"

enum { N = 40 };

// Shared with the child: what it was told succeeded.
struct shared {
	int acked, failed, retried;
};

struct world {
	char base[64], dir[80];
	struct shared *sh;
	const struct op *op;
	uint8_t *p, *q;
};

struct op {
	const char *name;
	int (*run)(struct world *w, struct pgc_store *s);
};

// Snapshots of the base store: 1 (mostly dead packs come from the removed 2),
// 3 with parent 1, 4 to be removed.
static void make_base(struct world *w)
{
	struct pgc_id id1 = id_of(1), id2 = id_of(2), id3 = id_of(3),
		      id4 = id_of(4);
	struct pgc_store *s;
	struct pgc_builder *b;
	uint64_t np[2] = {N, N};
	uint8_t *r;

	strcpy(w->base, tmp_store());
	text(w->dir, sizeof(w->dir), "%s.w", w->base);
	w->p = mixed(N, 0);
	w->q = mixed(N, 1);
	s = open_store(w->base);
	r = mixed(N, 2);
	publish(s, &id2, NULL, r, N, true);
	memcpy(w->p, r, 2 * PGC_PAGE); // keeps a little of 2's pack alive
	publish(s, &id1, NULL, w->p, N, true);
	ok(pgc_builder_begin(s, &id3, &id1, np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 3, w->q, 1, e));
	ok(pgc_builder_commit(b, e));
	publish(s, &id4, NULL, w->q, N, false);
	ok(pgc_snap_remove(s, &id2, e));
	pgc_store_close(s);
	s = open_store(w->base); // writes an index
	pgc_store_close(s);
	free(r);
	w->sh = mmap(NULL, PGC_PAGE, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void drop_base(struct world *w)
{
	rm_tree(w->base);
	rm_tree(w->dir);
	munmap(w->sh, PGC_PAGE);
	free(w->p);
	free(w->q);
}

// --- operations (in the child) -----------------------------------------------

static int op_commit(struct world *w, struct pgc_store *s)
{
	struct pgc_id id = id_of(5), parent = id_of(1);
	uint64_t np[2] = {N, N};
	struct pgc_builder *b;
	int rc = pgc_builder_begin(s, &id, &parent, np, &b, NULL);

	if (rc)
		return rc;
	rc = pgc_builder_put(b, PGC_MEM, 0, w->q, N, NULL);
	if (!rc) {
		w->q[9] ^= 0x5a; // a page that is new for sure
		rc = pgc_builder_put(b, PGC_DISK, 0, w->q, N, NULL);
		w->q[9] ^= 0x5a;
	}
	if (rc) {
		pgc_builder_abort(b);
		return rc;
	}
	return pgc_builder_commit(b, NULL);
}

static int op_remove(struct world *w, struct pgc_store *s)
{
	struct pgc_id id = id_of(4);

	(void)w;
	return pgc_snap_remove(s, &id, NULL);
}

static int op_gc(struct world *w, struct pgc_store *s)
{
	(void)w;
	return pgc_gc(s, NULL, NULL);
}

static int op_workset(struct world *w, struct pgc_store *s)
{
	const uint32_t ws[] = {5, 4, 3};
	struct pgc_id id = id_of(1);

	(void)w;
	return pgc_snap_set_workset(s, &id, PGC_MEM, ws, 3, NULL);
}

static const struct op commit_op = {"commit", op_commit};
static const struct op remove_op = {"remove", op_remove};
static const struct op gc_op = {"gc", op_gc};
static const struct op workset_op = {"workset", op_workset};
static const struct op open_op = {"open", NULL};

// Exit codes: 0 done, 1 store did not open, 2 failed again after its failure.
static int child(void *ctx)
{
	struct pgc_options o = {.struct_size = sizeof(o), .no_uring = true};
	struct world *w = ctx;
	struct pgc_store *s;

	if (pgc_store_open(&s, w->dir, &o, NULL)) {
		if (!w->op->run)
			w->sh->failed = 1;
		return 1;
	}
	if (!w->op->run || !w->op->run(w, s)) {
		w->sh->acked = 1;
	} else {
		w->sh->failed = 1;
		if (w->op->run(w, s)) // the trouble is over now
			return 2;
		w->sh->retried = 1;
	}
	pgc_store_close(s);
	return 0;
}

// --- what must hold afterwards -----------------------------------------------

static bool exists(struct pgc_store *s, unsigned n)
{
	struct pgc_id id = id_of(n);
	struct pgc_snap *sn;

	if (pgc_snap_open(s, &id, &sn, NULL))
		return false;
	pgc_snap_unref(sn);
	return true;
}

static void expect_snap(struct world *w, struct pgc_store *s, unsigned n)
{
	struct pgc_id id = id_of(n);
	uint8_t *copy = malloc(N * PGC_PAGE);
	struct pgc_snap *sn = open_snap(s, &id);

	memcpy(copy, n >= 4 ? w->q : w->p, N * PGC_PAGE);
	if (n == 3)
		memcpy(copy + 3 * PGC_PAGE, w->q, PGC_PAGE);
	expect_pages(sn, PGC_MEM, copy, N);
	if (n == 5) {
		copy[9] ^= 0x5a;
		expect_pages(sn, PGC_DISK, copy, N);
	}
	pgc_snap_unref(sn);
	free(copy);
}

static int remove_any(void *ctx, const struct pgc_id *id)
{
	ok(pgc_snap_remove(ctx, id, e));
	return 0;
}

// Everything removed and collected: nothing may be left over.
static void expect_no_leak(struct pgc_store *s, const char *what, unsigned at)
{
	struct pgc_store_stats st;

	ok(pgc_store_list(s, remove_any, s, e));
	ok(pgc_gc(s, NULL, e));
	pgc_store_get_stats(s, &st);
	cr_assert_eq(st.pack_bytes + st.map_bytes, 0, "%s %u leaks", what, at);
}

static void expect_sound(struct world *w, unsigned at)
{
	struct pgc_store *s = open_store(w->dir);
	char path[PATH_MAX];
	bool acked = w->sh->acked || w->sh->retried;

	cr_assert(!find_file(path, w->dir, "tmp", ""), "leftover: %s", path);
	expect_snap(w, s, 1);
	expect_snap(w, s, 3);
	if (w->op == &remove_op) {
		if (acked)
			cr_assert(!exists(s, 4), "removed, yet there: %u", at);
	} else {
		cr_assert(exists(s, 4));
	}
	if (exists(s, 4))
		expect_snap(w, s, 4);
	if (w->op == &commit_op && acked)
		cr_assert(exists(s, 5), "acknowledged, yet lost: %u", at);
	if (exists(s, 5))
		expect_snap(w, s, 5);
	cr_assert_eq(fsck_faults(s), 0, "%s %u", w->op->name, at);
	ok(pgc_gc(s, NULL, e));
	expect_snap(w, s, 1);
	expect_snap(w, s, 3);
	expect_no_leak(s, w->op->name, at);
	pgc_store_close(s);
}

// Interferes at every syscall in turn; returns how many there were.
static unsigned exhaust(const struct op *op, int error)
{
	struct world w = {.op = op};
	struct trace t = {0};
	unsigned n, failed = 0;

	make_base(&w);
	copy_tree(w.base, w.dir);
	run_traced(&t, child, &w); // undisturbed
	cr_assert_eq(t.code, 0);
	cr_assert_eq(t.disorder, 0, "renamed before it was durable");
	for (unsigned i = 0; i < t.ndirty; i++)
		cr_assert(!t.dirty[i][0] || strstr(t.dirty[i], "/lock"),
			  "%s was not fsynced", t.dirty[i]);
	n = t.count;
	for (unsigned at = 1; at <= n; at++) {
		copy_tree(w.base, w.dir);
		memset(w.sh, 0, sizeof(*w.sh));
		t = (struct trace){.at = at, .error = error};
		run_traced(&t, child, &w);
		if (!error)
			cr_assert(t.killed, "%u", at);
		else
			cr_assert(t.code == 0 || (t.code == 1 && at <= 12),
				  "%s at %u: exit %d", op->name, at, t.code);
		failed += (unsigned)w.sh->failed;
		expect_sound(&w, at);
	}
	// EINTR is retried where it can happen, hints and tidying may fail.
	if (error == ENOSPC || error == EIO)
		cr_assert_gt(failed, 0);
	drop_base(&w);
	return n;
}

#define EXHAUST(op, least)                                  \
	Test(crash, op##_killed, .timeout = 300)            \
	{                                                   \
		cr_assert_geq(exhaust(&op##_op, 0), least); \
	}                                                   \
	Test(crash, op##_enospc, .timeout = 300)            \
	{                                                   \
		exhaust(&op##_op, ENOSPC);                  \
	}                                                   \
	Test(crash, op##_eio, .timeout = 300)               \
	{                                                   \
		exhaust(&op##_op, EIO);                     \
	}

EXHAUST(commit, 12)
EXHAUST(remove, 5)
EXHAUST(gc, 14)
EXHAUST(workset, 7)

Test(crash, commit_eintr, .timeout = 300)
{
	exhaust(&commit_op, EINTR);
}

// The index is missing, so that opening writes one.
Test(crash, open_killed_while_it_rebuilds, .timeout = 300)
{
	struct world w = {.op = &open_op};
	struct trace t = {0};
	char path[PATH_MAX];
	unsigned n;

	make_base(&w);
	text(path, sizeof(path), "%s/index", w.base);
	cr_assert(!unlink(path));
	copy_tree(w.base, w.dir);
	run_traced(&t, child, &w);
	n = t.count;
	cr_assert_geq(n, 8);
	for (unsigned at = 1; at <= n; at++) {
		copy_tree(w.base, w.dir);
		t = (struct trace){.at = at};
		run_traced(&t, child, &w);
		cr_assert(t.killed);
		expect_sound(&w, at);
	}
	drop_base(&w);
}
