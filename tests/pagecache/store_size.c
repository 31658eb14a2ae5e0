// store-size DIR: what a store holds, counted from the pages up.
//
// Reads every page of every published snapshot through the public interface and
// prints, as JSON, the sum of the lz4 sizes of the unique non-zero pages (their
// raw size where that is smaller): the least that a store of 4 KiB pages without
// any bookkeeping would take. The test compares it with the files' sizes.
#include <lz4.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "pagecache.h"

struct totals {
	struct pgc_store *store;
	XXH128_hash_t *seen; // open addressing; {0,0} is empty
	uint64_t slots, used;
	uint64_t nonzero, unique_lz4;
};

static void die(const struct err *e)
{
	fprintf(stderr, "store-size: %s\n", e->msg);
	exit(1);
}

// True the first time a hash is seen.
static bool first_time(struct totals *t, XXH128_hash_t h)
{
	uint64_t at = h.low64 & (t->slots - 1);

	while (t->seen[at].low64 || t->seen[at].high64) {
		if (XXH128_isEqual(t->seen[at], h))
			return false;
		at = (at + 1) & (t->slots - 1);
	}
	if (++t->used * 2 > t->slots) {
		fprintf(stderr, "store-size: too many pages\n");
		exit(1);
	}
	t->seen[at] = h;
	return true;
}

static void count_page(struct totals *t, const char *page)
{
	static const char zero[PGC_PAGE];
	char out[LZ4_COMPRESSBOUND(PGC_PAGE)];
	int n;

	if (memcmp(page, zero, PGC_PAGE) == 0)
		return;
	t->nonzero++;
	if (!first_time(t, XXH3_128bits(page, PGC_PAGE)))
		return;
	n = LZ4_compress_default(page, out, PGC_PAGE, sizeof(out));
	t->unique_lz4 += (uint64_t)MIN(n, PGC_PAGE);
}

static int count_snapshot(void *ctx, const struct pgc_id *id)
{
	static char buf[PGC_CLUSTER_PAGES * PGC_PAGE];
	struct totals *t = ctx;
	struct pgc_snap *sn;
	struct err e = ERR_INIT;

	if (pgc_snap_open(t->store, id, &sn, &e))
		die(&e);
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		uint64_t end = pgc_snap_pages(sn, (enum pgc_stream)st);

		for (uint64_t at = 0; at < end; at += PGC_CLUSTER_PAGES) {
			size_t n =
			    (size_t)MIN(end - at, (uint64_t)PGC_CLUSTER_PAGES);

			if (pgc_snap_read(sn, (enum pgc_stream)st, at, buf, n,
					  &e))
				die(&e);
			for (size_t i = 0; i < n; i++)
				count_page(t, buf + i * PGC_PAGE);
		}
	}
	pgc_snap_unref(sn);
	return 0;
}

int main(int argc, char **argv)
{
	struct totals t = {.slots = 1u << 21};
	struct err e = ERR_INIT;

	if (argc != 2) {
		fprintf(stderr, "usage: store-size STORE_DIR\n");
		return 2;
	}
	t.seen = calloc(t.slots, sizeof(*t.seen));
	if (!t.seen)
		return 1;
	if (pgc_store_open(&t.store, argv[1], NULL, &e) ||
	    pgc_store_list(t.store, count_snapshot, &t, &e))
		die(&e);
	printf("{\"nonzeroBytes\": %llu, \"uniquePages\": %llu, "
	       "\"uniqueLz4Bytes\": %llu}\n",
	       (unsigned long long)t.nonzero * PGC_PAGE,
	       (unsigned long long)t.used, (unsigned long long)t.unique_lz4);
	pgc_store_close(t.store);
	free(t.seen);
	return 0;
}
