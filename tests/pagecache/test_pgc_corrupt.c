// Damaged files: every flip and every cut is noticed, never a wrong byte.
#include "pgc_test.h"

enum { N = 120 };

struct fix {
	char dir[64];
	uint8_t *p;
	struct pgc_id a, c;
};

static void setup(struct fix *f)
{
	uint32_t ws[] = {3, 1, 2};
	struct pgc_store *s;
	uint64_t np[2] = {N, N};
	struct pgc_builder *b;

	strcpy(f->dir, tmp_store());
	f->p = mixed(N, 2);
	f->a = id_of(1);
	f->c = id_of(2);
	s = open_store(f->dir);
	publish(s, &f->a, NULL, f->p, N, true);
	ok(pgc_snap_set_workset(s, &f->a, PGC_MEM, ws, 3, e));
	ok(pgc_builder_begin(s, &f->c, &f->a, np, &b, e));
	ok(pgc_builder_commit(b, e)); // all of it from the parent
	pgc_store_close(s);
	s = open_store(f->dir);
	pgc_store_close(s);
}

static void teardown(struct fix *f)
{
	rm_tree(f->dir);
	free(f->p);
}

// Opens the store, reads everything; counts errors. Bytes that come back
// without an error must be right.
static unsigned read_all(struct fix *f)
{
	uint8_t *got = malloc(N * PGC_PAGE);
	struct pgc_store *s = open_store(f->dir);
	unsigned errors = 0;

	for (int k = 0; k < 4; k++) {
		struct err e = ERR_INIT;
		struct pgc_snap *sn;
		int rc = pgc_snap_open(s, k < 2 ? &f->a : &f->c, &sn, &e);

		if (!rc) {
			memset(got, 0xee, N * PGC_PAGE);
			rc = pgc_snap_read(sn, (enum pgc_stream)(k & 1), 0, got,
					   N, &e);
			pgc_snap_unref(sn);
		}
		if (rc) {
			cr_assert(rc == -EBADMSG || rc == -ENOTSUP, "%d %s", rc,
				  e.msg);
			cr_assert(e.msg[0]);
			errors++;
			continue;
		}
		for (unsigned i = 0; i < N; i++)
			cr_assert(
			    !memcmp(got + i * PGC_PAGE,
				    f->p + (k & 1 ? N - 1 - i : i) * PGC_PAGE,
				    PGC_PAGE));
	}
	pgc_store_close(s);
	free(got);
	return errors;
}

static unsigned fsck_dir(struct fix *f)
{
	struct pgc_store *s = open_store(f->dir);
	unsigned n = fsck_faults(s);

	pgc_store_close(s);
	return n;
}

Test(corrupt, sound_to_begin_with)
{
	struct fix f;

	setup(&f);
	cr_assert_eq(read_all(&f), 0);
	cr_assert_eq(fsck_dir(&f), 0);
	teardown(&f);
}

Test(corrupt, bit_flips_in_a_pack, .timeout = 300)
{
	char path[PATH_MAX];
	uint8_t *good;
	struct fix f;
	size_t len;

	setup(&f);
	cr_assert(find_file(path, f.dir, "packs", ".pack"));
	good = slurp(path, &len);
	for (size_t at = 0; at < len; at += at < 200 ? 1 : 331) {
		good[at] ^= (uint8_t)(1u << at % 8);
		spew(path, good, len);
		cr_assert_gt(read_all(&f), 0, "byte %zu", at);
		cr_assert_gt(fsck_dir(&f), 0, "byte %zu", at);
		good[at] ^= (uint8_t)(1u << at % 8);
	}
	spew(path, good, len);
	cr_assert_eq(read_all(&f), 0);
	teardown(&f);
	free(good);
}

Test(corrupt, packs_cut_off_or_longer)
{
	char path[PATH_MAX];
	uint8_t *good;
	struct fix f;
	size_t len;

	setup(&f);
	cr_assert(find_file(path, f.dir, "packs", ".pack"));
	good = slurp(path, &len);
	for (size_t n = 0; n < len; n += n < 128 ? 7 : 4096) {
		spew(path, good, n);
		cr_assert_eq(read_all(&f), 4, "%zu", n);
		cr_assert_gt(fsck_dir(&f), 0, "%zu", n);
	}
	good[len] = 0;
	spew(path, good, len + 1);
	cr_assert_eq(read_all(&f), 4);
	cr_assert_gt(fsck_dir(&f), 0);
	teardown(&f);
	free(good);
}

Test(corrupt, a_pack_deleted_or_swapped_for_another)
{
	char path[PATH_MAX], other[PATH_MAX];
	struct pgc_id x = id_of(7);
	struct pgc_store *s;
	uint8_t *good, *wrong;
	size_t len, wlen;
	struct fix f;

	setup(&f);
	cr_assert(find_file(path, f.dir, "packs", ".pack"));
	good = slurp(path, &len);
	cr_assert(!unlink(path));
	cr_assert_eq(read_all(&f), 4);
	cr_assert_gt(fsck_dir(&f), 0);
	s = open_store(f.dir);
	memset(f.p, 7, N * PGC_PAGE);
	publish(s, &x, NULL, f.p, N, false);
	pgc_store_close(s);
	cr_assert(find_file(other, f.dir, "packs", ".pack"));
	wrong = slurp(other, &wlen);
	spew(path, wrong, wlen); // sound in itself, but not this pack
	cr_assert_eq(read_all(&f), 4);
	cr_assert_gt(fsck_dir(&f), 0);
	teardown(&f);
	free(good);
	free(wrong);
}

// Two whole records of equal length change places; even with their checks made
// right again, the map knows which page belongs where.
Test(corrupt, records_swapped_inside_a_pack)
{
	char path[PATH_MAX];
	uint8_t *good, tmp[PGC_PAGE + REC_HEADER];
	size_t len, at = PACK_HEADER, first = 0;
	struct page_id id[2];
	uint32_t n, size = 0;
	uint64_t uid;
	struct fix f;

	setup(&f);
	cr_assert(find_file(path, f.dir, "packs", ".pack"));
	good = slurp(path, &len);
	uid = le64(good + 16);
	for (; at < len; at += REC_HEADER + n) { // two raw ones
		cr_assert(!rec_parse(good + at, len - at, uid, at, &id[1], &n));
		if (n != PGC_PAGE)
			continue;
		if (first)
			break;
		first = at;
		id[0] = id[1];
	}
	cr_assert(first && at < len);
	size = REC_HEADER + PGC_PAGE;
	memcpy(tmp, good + at, size);
	memcpy(good + at, good + first, size);
	memcpy(good + first, tmp, size);
	memcpy(tmp, good + at + REC_HEADER, PGC_PAGE);
	rec_make(good + at, &id[0], tmp, PGC_PAGE, uid, at);
	memcpy(tmp, good + first + REC_HEADER, PGC_PAGE);
	rec_make(good + first, &id[1], tmp, PGC_PAGE, uid, first);
	spew(path, good, len);
	cr_assert_eq(read_all(&f), 4);
	cr_assert_gt(fsck_dir(&f), 0);
	teardown(&f);
	free(good);
}

static void snap_file(struct fix *f, const struct pgc_id *id, char *path)
{
	char rel[64];

	snap_path(rel, sizeof(rel), id);
	text(path, PATH_MAX, "%s/%s", f->dir, rel);
}

Test(corrupt, bit_flips_and_cuts_in_a_snapshot, .timeout = 300)
{
	char path[PATH_MAX];
	uint8_t *good;
	struct fix f;
	size_t len;

	setup(&f);
	for (int k = 0; k < 2; k++) {
		snap_file(&f, k ? &f.c : &f.a, path);
		good = slurp(path, &len);
		for (size_t at = 0; at < len; at += at < 400 ? 1 : 29) {
			good[at] ^= (uint8_t)(1u << at % 8);
			spew(path, good, len);
			// The child builds on the first one's map.
			cr_assert_eq(read_all(&f), k ? 2 : 4, "byte %zu", at);
			good[at] ^= (uint8_t)(1u << at % 8);
		}
		for (size_t n = 0; n < len; n += 61) {
			spew(path, good, n);
			cr_assert_eq(read_all(&f), k ? 2 : 4, "cut at %zu", n);
			cr_assert_gt(fsck_dir(&f), 0);
		}
		spew(path, good, len);
		free(good);
	}
	cr_assert_eq(read_all(&f), 0);
	teardown(&f);
}

// Mutations whose checksums are right: the parser's own checks must hold, and
// whatever it accepts must be safe to use.
Test(corrupt, hostile_snapshots_with_right_checksums, .timeout = 300)
{
	uint8_t *good, *bad, *got = malloc(N * PGC_PAGE);
	unsigned accepted = 0, refused = 0;
	char path[PATH_MAX];
	struct pgc_store *s;
	uint64_t x = 88172645463325252u;
	struct fix f;
	size_t len;

	setup(&f);
	for (int k = 0; k < 2; k++) {
		snap_file(&f, k ? &f.c : &f.a, path);
		good = slurp(path, &len);
		bad = malloc(len);
		s = open_store(f.dir);
		for (int i = 0; i < 4000; i++) {
			size_t at;
			struct pgc_snap *sn;
			struct pgc_run r;

			memcpy(bad, good, len);
			for (int m = 0; m <= i % 3; m++) {
				x ^= x << 13;
				x ^= x >> 7;
				x ^= x << 17;
				at = x % (i % 2 ? len : MIN(len, 600));
				bad[at] = (uint8_t)(x >> 32);
				if (x >> 60 == 0)
					bad[at] = 0xff;
			}
			if (!memcmp(bad, good, len))
				continue;
			map_reseal(bad, len);
			spew(path, bad, len);
			if (pgc_snap_open(s, k ? &f.c : &f.a, &sn, NULL)) {
				refused++;
				continue;
			}
			accepted++;
			for (int st = 0; st < 2; st++) {
				uint64_t n =
				    MIN(pgc_snap_pages(sn, (enum pgc_stream)st),
					(uint64_t)N);

				(void)pgc_snap_read(sn, (enum pgc_stream)st, 0,
						    got, n, NULL);
				pgc_snap_run(sn, (enum pgc_stream)st, 0, &r);
			}
			pgc_snap_unref(sn);
		}
		pgc_store_close(s);
		spew(path, good, len);
		free(good);
		free(bad);
	}
	cr_assert_gt(refused, 2000);
	cr_assert_gt(accepted, 100); // harmless fields: statistics, keys
	teardown(&f);
	free(got);
}

Test(corrupt, newer_versions_are_refused_by_name)
{
	char path[PATH_MAX];
	struct err e = ERR_INIT;
	struct pgc_store *s;
	struct pgc_snap *sn;
	struct fix f;
	uint8_t *p;
	size_t len;

	setup(&f);
	snap_file(&f, &f.a, path);
	p = slurp(path, &len);
	put_le32(p + 8, 9);
	put_le32(p + 12, 8);
	map_reseal(p, len);
	spew(path, p, len);
	s = open_store(f.dir);
	cr_assert_eq(pgc_snap_open(s, &f.a, &sn, &e), -ENOTSUP);
	cr_assert(strstr(e.msg, "version 9") && strstr(e.msg, "from 8"));
	put_le32(p + 12, 1); // newer, but readable by version 1
	map_reseal(p, len);
	spew(path, p, len);
	ok(pgc_snap_open(s, &f.a, &sn, e));
	pgc_snap_unref(sn);
	pgc_store_close(s);
	teardown(&f);
	free(p);
}

// Damage to a working set costs only the working set, and fsck tells.
Test(corrupt, a_damaged_working_set_is_ignored_and_reported)
{
	char path[PATH_MAX];
	struct pgc_store *s;
	struct pgc_snap *sn;
	const uint32_t *ws;
	struct fix f;
	uint8_t *good;
	size_t len, frame, table, data, frames;

	setup(&f);
	cr_assert(find_file(path, f.dir, "snaps", ".ws"));
	good = slurp(path, &len);
	s = open_store(f.dir);
	frame = WS_HEADER + le32(good + 36) * sizeof(uint32_t);
	table = frame + WS_ENT; // of 3 pages
	data = le64(good + 48);
	frames = le32(good + frame) & ~WS_RAW;
	for (size_t at = 0; at < data + frames; at += at < table ? 1 : 41) {
		if (at >= table && at < data)
			at = data; // padding
		good[at] ^= (uint8_t)(1u << at % 8);
		spew(path, good, len);
		sn = open_snap(s, &f.a);
		// Frames are looked at when they are used.
		cr_assert_eq(pgc_snap_workset(sn, PGC_MEM, &ws) == 0,
			     at < table, "%zu", at);
		pgc_snap_unref(sn);
		cr_assert_eq(fsck_faults(s), 1, "%zu", at);
		good[at] ^= (uint8_t)(1u << at % 8);
	}
	for (size_t n = 0; n < len; n += n < table ? 1 : 509) {
		spew(path, good, n);
		sn = open_snap(s, &f.a);
		cr_assert_eq(pgc_snap_workset(sn, PGC_MEM, &ws), 0);
		pgc_snap_unref(sn);
		cr_assert_eq(fsck_faults(s), 1);
	}
	pgc_store_close(s);
	teardown(&f);
	free(good);
}

// Whole, but of another version, it counts as none; the snapshot is as before.
Test(corrupt, a_working_set_of_another_version_counts_as_none)
{
	static const uint32_t versions[] = {1, WS_VERSION - 1, WS_VERSION + 1};
	char path[PATH_MAX];
	struct pgc_store *s;
	struct pgc_snap *sn;
	const uint32_t *ws;
	struct fix f;
	uint8_t *p;
	size_t len;

	setup(&f);
	cr_assert(find_file(path, f.dir, "snaps", ".ws"));
	p = slurp(path, &len);
	s = open_store(f.dir);
	for (size_t i = 0; i < ARRAY_SIZE(versions); i++) {
		put_le32(p + 8, versions[i]);
		put_le32(p + 12, versions[i]);
		put_le64(p + 120, hash64(p, WS_HEADER - 8));
		spew(path, p, len);
		sn = open_snap(s, &f.a);
		cr_assert_eq(pgc_snap_workset(sn, PGC_MEM, &ws), 0);
		pgc_snap_unref(sn);
	}
	put_le32(p + 8, WS_VERSION);
	put_le32(p + 12, WS_VERSION);
	put_le64(p + 120, hash64(p, WS_HEADER - 8));
	spew(path, p, len);
	sn = open_snap(s, &f.a);
	cr_assert_eq(pgc_snap_workset(sn, PGC_MEM, &ws), 3);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	teardown(&f);
	free(p);
}

// A corrupt old record is not deduplicated against: the page is stored anew.
Test(corrupt, building_over_a_corrupt_record_heals)
{
	struct pgc_id x = id_of(9);
	char path[PATH_MAX];
	struct pgc_store *s;
	struct pgc_snap *sn;
	struct fix f;
	uint8_t *p;
	size_t len;

	setup(&f);
	cr_assert(find_file(path, f.dir, "packs", ".pack"));
	p = slurp(path, &len);
	p[PACK_HEADER + REC_HEADER + 5] ^= 1;
	spew(path, p, len);
	cr_assert_gt(read_all(&f), 0);
	s = open_store(f.dir);
	publish(s, &x, NULL, f.p, N, true);
	sn = open_snap(s, &x);
	expect_pages(sn, PGC_MEM, f.p, N);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	teardown(&f);
	free(p);
}
