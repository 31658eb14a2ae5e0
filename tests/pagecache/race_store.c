// Threads against each other on one store: builders with and without parents,
// readers, removals, collections, working sets, and the owner thread filling a
// template all the while. A plain program, because Criterion cannot run under
// ThreadSanitizer: race_store DIR [rounds]. Exits 0 when everything was right.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pagecache.h"

enum { THREADS = 4, N = 64, WINDOW = 3 };

static struct pgc_store *store;
static atomic_uint faults;
static atomic_bool stop;
static unsigned rounds = 40;

#define check(cond)                                                            \
	do {                                                                   \
		if (!(cond)) {                                                 \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, \
				#cond, e.msg);                                 \
			atomic_fetch_add(&faults, 1);                          \
		}                                                              \
	} while (0)

static struct pgc_id name(unsigned thread, unsigned round)
{
	struct pgc_id id = {{0x77, (uint8_t)thread}};

	id.b[14] = (uint8_t)(round >> 8);
	id.b[15] = (uint8_t)round;
	return id;
}

// Threads build the same pages but for one byte, a few rounds apart: packs are
// shared, die, and are wanted again.
static void pages_of(uint8_t *p, unsigned thread, unsigned round)
{
	for (size_t i = 0; i < N; i++) {
		uint64_t x = (round / 4 + i) * 0x9e3779b97f4a7c15u | 1;

		for (size_t k = 0; k < PGC_PAGE; k += 8) {
			if (k % 64 == 0) {
				x ^= x << 13;
				x ^= x >> 7;
			}
			memcpy(p + i * PGC_PAGE + k, &x, 8);
		}
	}
	p[5 * PGC_PAGE] = (uint8_t)thread;
	p[6 * PGC_PAGE] = (uint8_t)round;
}

static void build(unsigned thread, unsigned round, const uint8_t *p)
{
	struct pgc_id id = name(thread, round), prev = name(thread, round - 1);
	const struct pgc_id *parent = round % 4 ? &prev : NULL;
	uint64_t np[2] = {N, N};
	struct err e = ERR_INIT;
	struct pgc_builder *b;

	check(!pgc_builder_begin(store, &id, parent, np, &b, &e));
	check(!pgc_builder_put(b, PGC_MEM, 0, p, N, &e));
	check(!pgc_builder_put(b, PGC_DISK, 0, p + PGC_PAGE, N - 1, &e));
	check(!pgc_builder_commit(b, &e));
}

static void verify(unsigned thread, unsigned round, uint8_t *p, uint8_t *got)
{
	struct pgc_id id = name(thread, round);
	struct err e = ERR_INIT;
	struct pgc_snap *sn;

	int rc = pgc_snap_open(store, &id, &sn, &e);

	check(!rc && !e.code);
	if (rc)
		return;
	pages_of(p, thread, round);
	check(!pgc_snap_read(sn, PGC_MEM, 0, got, N, &e));
	check(!memcmp(p, got, (size_t)N * PGC_PAGE));
	pgc_snap_unref(sn);
}

static void *worker(void *arg)
{
	unsigned thread = *(unsigned *)arg;
	uint8_t *p = malloc((size_t)N * PGC_PAGE * 2), *got = p + N * PGC_PAGE;
	const uint32_t ws[] = {3, 2, 1};
	struct err e = ERR_INIT;

	for (unsigned r = 0; p && r < rounds; r++) {
		struct pgc_id id = name(thread, r);

		pages_of(p, thread, r);
		build(thread, r, p);
		check(!pgc_snap_set_workset(store, &id, PGC_MEM, ws, 3, &e));
		if (r >= WINDOW) {
			id = name(thread, r - WINDOW);
			check(!pgc_snap_remove(store, &id, &e));
			verify(thread, r - WINDOW + 1, p, got);
		}
		verify(thread, r, p, got);
	}
	free(p);
	return NULL;
}

static void *collector(void *arg)
{
	unsigned *n = arg;
	struct err e = ERR_INIT;

	do {
		struct pgc_store_stats st;

		check(!pgc_gc(store, NULL, &e));
		pgc_store_get_stats(store, &st);
		++*n;
	} while (!atomic_load(&stop));
	return NULL;
}

// The loop's part: a template of a snapshot that stays.
static void owner(void)
{
	struct pgc_id id = name(200, 0);
	uint8_t *p = malloc((size_t)N * PGC_PAGE), got[PGC_PAGE];
	struct err e = ERR_INIT;
	struct pgc_template *t;
	struct pgc_snap *sn;
	struct pgc_done d[8];

	pages_of(p, 200, 0);
	check(!pgc_snap_open(store, &id, &sn, &e));
	check(!pgc_template_open(sn, PGC_MEM, &t, &e));
	for (unsigned i = 0; i < N; i++) {
		check(pgc_template_fill(t, i, 1, i & 1, &e) >= 0);
		while (pgc_template_have(t, i) == PGC_FILLING)
			pgc_drain(store, d, 8);
		check(!util_pread_all(pgc_template_fd(t), got, PGC_PAGE,
				      (off_t)i * PGC_PAGE));
		check(!memcmp(got, p + (size_t)i * PGC_PAGE, PGC_PAGE));
	}
	pgc_template_close(t);
	pgc_snap_unref(sn);
	free(p);
}

static void count(void *ctx, const char *what)
{
	fprintf(stderr, "%s\n", what);
	++*(unsigned *)ctx;
}

int main(int argc, char **argv)
{
	uint8_t *p = malloc((size_t)N * PGC_PAGE);
	unsigned number[THREADS], collections = 0, bad = 0;
	pthread_t t[THREADS], gc;
	struct err e = ERR_INIT;

	if (argc < 2 || !p || pgc_store_open(&store, argv[1], NULL, &e)) {
		fprintf(stderr, "race_store: %s\n", e.msg);
		return 2;
	}
	if (argc > 2)
		rounds = (unsigned)atoi(argv[2]);
	pages_of(p, 200, 0);
	build(200, 0, p);
	pthread_create(&gc, NULL, collector, &collections);
	for (unsigned i = 0; i < THREADS; i++) {
		number[i] = i;
		pthread_create(&t[i], NULL, worker, &number[i]);
	}
	for (unsigned i = 0; i < 5; i++)
		owner();
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	atomic_store(&stop, true);
	pthread_join(gc, NULL);
	check(!pgc_fsck(store, count, &bad, &e));
	check(bad == 0);
	pgc_store_close(store);
	free(p);
	printf("%u builds, %u collections, %u faults\n", THREADS * rounds,
	       collections, atomic_load(&faults));
	return atomic_load(&faults) || !collections;
}
