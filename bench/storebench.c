// thaw-bench-store [--json FILE] NAME=STORE_DIR...: what a store's pages cost to get at,
// everything in the page cache: reading them in clusters (decode) and one at a time
// (lookup), and finding out that a page is stored already. A client of pagecache
// alone: it works on a copy of a store, on any host, with or without KVM.
//
// The floor of a decode is lz4 alone on the same pages, each compressed by itself.
#include <errno.h>
#include <lz4.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "pagecache.h"

enum {
	MAX_PAGES = 1 << 15, // 128 MiB of one image are enough
	BATCH = 64,	     // clusters, or pages, a sample
};

struct image {
	const char *name;
	struct pgc_store *store;
	struct pgc_snap *snap;
	uint32_t *pgnos; // of memory, those that are stored, in order
	size_t n;
	uint8_t *page; // their contents
};

static int biggest(void *ctx, const struct pgc_id *id)
{
	struct image *im = ctx;
	struct pgc_snap *sn;
	struct err e = ERR_INIT;

	if (pgc_snap_open(im->store, id, &sn, &e))
		return 0;
	if (!im->snap ||
	    pgc_snap_pages(sn, PGC_MEM) > pgc_snap_pages(im->snap, PGC_MEM)) {
		pgc_snap_unref(im->snap);
		im->snap = sn;
	} else {
		pgc_snap_unref(sn);
	}
	return 0;
}

// Whole clusters, whose pages are all stored, so that one read decodes them all.
static void collect(struct image *im)
{
	uint64_t at = 0, end = pgc_snap_pages(im->snap, PGC_MEM);
	struct pgc_run run;

	while (at < end && pgc_snap_run(im->snap, PGC_MEM, at, &run)) {
		uint64_t p = (run.pgno + PGC_CLUSTER_PAGES - 1) /
			     PGC_CLUSTER_PAGES * PGC_CLUSTER_PAGES;

		at = run.pgno + run.npages;
		if (run.kind == PGC_RUN_ZERO)
			continue;
		for (; p + PGC_CLUSTER_PAGES <= at; p += PGC_CLUSTER_PAGES) {
			for (unsigned i = 0; i < PGC_CLUSTER_PAGES; i++) {
				if (im->n < MAX_PAGES)
					im->pgnos[im->n++] = (uint32_t)(p + i);
			}
		}
	}
}

static int open_image(struct image *im, const char *dir, struct err *e)
{
	int rc = pgc_store_open(&im->store, dir, NULL, e);

	if (rc)
		return rc;
	rc = pgc_store_list(im->store, biggest, im, e);
	if (rc)
		return rc;
	im->pgnos = calloc(MAX_PAGES, sizeof(*im->pgnos));
	im->page = calloc(MAX_PAGES, PGC_PAGE);
	if (!im->pgnos || !im->page)
		return err_set(e, -ENOMEM, "no memory for pages");
	if (im->snap)
		collect(im);
	return im->n >= BATCH * PGC_CLUSTER_PAGES
		   ? 0
		   : err_set(e, -ENOENT, "%s holds no image of a size", dir);
}

static void close_image(struct image *im)
{
	pgc_snap_unref(im->snap);
	pgc_store_close(im->store);
	free(im->pgnos);
	free(im->page);
}

// The second pass counts: after the first one all is in the page cache.
static int decode(struct image *im, struct result *r, struct err *e)
{
	int rc = 0;

	for (int pass = 0; pass < 2; pass++) {
		uint64_t t0 = util_now_ns();
		size_t done = 0;

		for (size_t i = 0; i < im->n && !rc; i += PGC_CLUSTER_PAGES) {
			rc = pgc_snap_read(im->snap, PGC_MEM, im->pgnos[i],
					   im->page + i * PGC_PAGE,
					   PGC_CLUSTER_PAGES, e);
			done += PGC_CLUSTER_PAGES;
			if (done < BATCH * PGC_CLUSTER_PAGES)
				continue;
			if (pass)
				samples_add(&r->samples,
					    (double)(util_now_ns() - t0) /
						(double)done);
			done = 0;
			t0 = util_now_ns();
		}
	}
	return rc;
}

static int decode_floor(const struct image *im, struct result *r, struct err *e)
{
	enum { CAP = LZ4_COMPRESSBOUND(PGC_PAGE) };
	static char packed[BATCH * PGC_CLUSTER_PAGES][CAP];
	static char out[PGC_PAGE];
	int len[BATCH * PGC_CLUSTER_PAGES];
	double sum = 0, all = 0;

	for (size_t i = 0; i + ARRAY_SIZE(len) <= im->n; i += ARRAY_SIZE(len)) {
		uint64_t t0;

		for (size_t k = 0; k < ARRAY_SIZE(len); k++) {
			len[k] = LZ4_compress_default((const char *)im->page +
							  (i + k) * PGC_PAGE,
						      packed[k], PGC_PAGE, CAP);
			sum += MIN(len[k], PGC_PAGE);
			all += PGC_PAGE;
		}
		t0 = util_now_ns();
		for (size_t k = 0; k < ARRAY_SIZE(len); k++) {
			if (LZ4_decompress_safe(packed[k], out, len[k],
						PGC_PAGE) != PGC_PAGE)
				return err_set(e, -EIO, "lz4 lost a page");
		}
		samples_add(&r->floor, (double)(util_now_ns() - t0) /
					   (double)ARRAY_SIZE(len));
	}
	result_number(r, "lz4_ratio", all / MAX(sum, 1));
	return 0;
}

static int lookup(struct image *im, struct result *r, struct err *e)
{
	uint8_t page[PGC_PAGE];
	uint64_t seed = 1;
	int rc = 0;

	for (unsigned s = 0; s < 200 && !rc; s++) {
		uint64_t t0 = util_now_ns();

		for (unsigned k = 0; k < BATCH && !rc; k++) {
			size_t i;

			seed = seed * 6364136223846793005ull + 1;
			i = (size_t)(seed >> 33) % im->n;
			rc = pgc_snap_read(im->snap, PGC_MEM, im->pgnos[i],
					   page, 1, e);
			if (!rc && memcmp(page, im->page + i * PGC_PAGE,
					  PGC_PAGE) != 0)
				rc = err_set(e, -EIO, "another page came");
		}
		samples_add(&r->samples, (double)(util_now_ns() - t0) / BATCH);
	}
	return rc;
}

// That nothing was stored again shows in the published snapshot, which goes then.
static int check_found(struct image *im, const struct pgc_id *id, struct err *e)
{
	struct pgc_snap_stats st;
	struct pgc_snap *sn;
	int rc = pgc_snap_open(im->store, id, &sn, e);

	if (rc)
		return rc;
	pgc_snap_get_stats(sn, &st);
	pgc_snap_unref(sn);
	if (st.stored_bytes)
		rc = err_set(e, -EIO, "pages of the store were not found");
	return rc ? rc : pgc_snap_remove(im->store, id, e);
}

// Puts pages that are stored into a new snapshot: each is hashed, found in the
// index and compared.
static int found(struct image *im, struct result *r, struct err *e)
{
	uint64_t npages[PGC_NUM_STREAMS] = {im->n, 0};
	struct pgc_builder *b;
	struct pgc_id id;
	int rc;

	util_random(&id, sizeof(id));
	rc = pgc_builder_begin(im->store, &id, NULL, npages, &b, e);
	if (rc)
		return rc;
	for (size_t i = 0; i + BATCH <= im->n && !rc; i += BATCH) {
		uint64_t t0 = util_now_ns();

		rc = pgc_builder_put(b, PGC_MEM, i, im->page + i * PGC_PAGE,
				     BATCH, e);
		samples_add(&r->samples, (double)(util_now_ns() - t0) / BATCH);
	}
	if (rc) {
		pgc_builder_abort(b);
		return rc;
	}
	rc = pgc_builder_commit(b, e);
	return rc ? rc : check_found(im, &id, e);
}

static int measure(struct report *rep, const char *name, const char *dir,
		   struct err *e)
{
	struct image im = {.name = name};
	struct result *r[3];
	int rc = open_image(&im, dir, e);

	if (!rc) {
		r[0] =
		    report_add(rep, "ns/page", "guest.%s.store.decode", name);
		r[1] =
		    report_add(rep, "ns/page", "guest.%s.store.lookup", name);
		r[2] = report_add(rep, "ns/page", "guest.%s.store.found", name);
		rc = decode(&im, r[0], e);
		result_number(r[0], "pages", (double)im.n);
	}
	if (!rc)
		rc = decode_floor(&im, r[0], e);
	if (!rc)
		rc = lookup(&im, r[1], e);
	if (!rc)
		rc = found(&im, r[2], e);
	close_image(&im);
	return rc;
}

int main(int argc, char **argv)
{
	static struct report r;
	struct err e = ERR_INIT;
	const char *json = NULL;
	int at = 1;

	if (argc > 2 && strcmp(argv[1], "--json") == 0) {
		json = argv[2];
		at = 3;
	}
	if (at == argc || argv[at][0] == '-') {
		fprintf(stderr, "usage: thaw-bench-store [--json FILE] "
				"NAME=STORE_DIR...\n");
		return 2;
	}
	for (; at < argc; at++) {
		char *dir = strchr(argv[at], '=');

		if (!dir) {
			fprintf(stderr, "thaw-bench-store: %s: NAME=DIR\n",
				argv[at]);
			return 2;
		}
		*dir++ = '\0';
		if (measure(&r, argv[at], dir, &e)) {
			fprintf(stderr, "thaw-bench-store: %s\n", e.msg);
			return 1;
		}
	}
	report_table(stdout, &r);
	if (json && report_save(json, &r, &e)) {
		fprintf(stderr, "thaw-bench-store: %s\n", e.msg);
		return 1;
	}
	report_free(&r);
	return 0;
}
