// The store's files (pagecache/map.c, index.c, pack.c, codec.c, workset.c, snap.c, fsck.c,
// and engine/written.c): those of a small store with a few fields changed, bytes added or
// cut off, parts copied from elsewhere, and all checksums made right again. What is
// opened is read and walked; what comes out of it without an error is bounded, covers
// what it says it has, and each page is one that the store was given.
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "pgc_internal.h"
#include "written.h"

enum { N = 48, FILES = 6, FILE_MAX = 1 << 18, EDITS_MAX = 16 };

enum {
	S_REFUSED,
	S_OPENED,
	S_READ,
	S_READ_FAILS,
	S_CHILD,
	S_BASE_REFUSED,
	S_WORKSET,
	S_WORKSET_BAD,
	S_WORKSET_READ,
	S_INDEX,
	S_INDEX_REFUSED,
	S_FOUND,
	S_SCANNED,
	S_SCAN_FAILS,
	S_TOO_LONG,
	S_REOPENED,
	S_WRITTEN,
};
struct fuzz_state fuzz_states[] = {
    [S_REFUSED] = {"a snapshot that is refused", 0},
    [S_OPENED] = {"a changed one that is opened", 0},
    [S_READ] = {"a changed one that is read", 0},
    [S_READ_FAILS] = {"a page that is not what its key says", 0},
    [S_CHILD] = {"one that builds on another", 0},
    [S_BASE_REFUSED] = {"one that builds on what it cannot", 0},
    [S_WORKSET] = {"a working set", 0},
    [S_WORKSET_BAD] = {"a working set that is refused", 0},
    [S_WORKSET_READ] = {"frames of a changed working set", 0},
    [S_INDEX] = {"a changed index that is loaded", 0},
    [S_INDEX_REFUSED] = {"an index that is refused", 0},
    [S_FOUND] = {"a page that it finds", 0},
    [S_SCANNED] = {"a changed pack, to its end", 0},
    [S_SCAN_FAILS] = {"a pack that is damaged", 0},
    [S_TOO_LONG] = {"a pack that is too long", 0},
    [S_REOPENED] = {"a changed store that is opened", 0},
    [S_WRITTEN] = {"a list of written pages", 0},
    {0},
};
const size_t fuzz_around = 100;

static void seen(int s)
{
	fuzz_states[s].seen++;
}

// --- the store --------------------------------------------------------------

enum { F_PARENT, F_CHILD, F_WS, F_CHILD_WS, F_INDEX, F_PACK };

static struct file {
	char path[80]; // in the store's folder
	size_t len;
	uint8_t *good;
} files[FILES];

static struct pgc_store *store;
static char dir[64];
static const struct pgc_id ids[2] = {{{1}}, {{2}}};
static uint8_t pages[2][N][PGC_PAGE]; // what the two have in memory

#define ok(x) fuzz_must((x) == 0)

// Incompressible, text, sparse and zero pages in turn.
static void make_page(uint8_t *p, unsigned i, uint64_t salt)
{
	uint64_t x = salt * 1000003 + i + 1;

	memset(p, 0, PGC_PAGE);
	for (size_t k = 0; i % 4 != 3 && k < PGC_PAGE; k += 8) {
		uint64_t v;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		v = i % 4 == 0	 ? x
		    : i % 4 == 1 ? 0x6161616161616161u + (x & 0x0f0003000f)
				 : (k % 512 ? 0 : x);
		memcpy(p + k, &v, 8);
	}
}

static void build(const struct pgc_id *id, const struct pgc_id *parent,
		  const uint8_t (*p)[PGC_PAGE], unsigned from, unsigned to)
{
	static const uint32_t written[] = {1, 3, 5, 2, 20, 6};
	static const uint32_t ws[] = {3, 1, 2 | PGC_WRITTEN, 17, 40, 41, 42};
	uint64_t np[PGC_NUM_STREAMS] = {N, N};
	struct pgc_builder *b;

	ok(pgc_builder_begin(store, id, parent, np, &b, NULL));
	ok(pgc_builder_put(b, PGC_MEM, from, p[from], to - from, NULL));
	for (unsigned i = from; i < to; i++)
		ok(pgc_builder_put(b, PGC_DISK, N - 1 - i, p[i], 1, NULL));
	ok(pgc_builder_blob(b, "state", "a state", 7, NULL));
	ok(pgc_builder_blob(b, "written", written, sizeof(written), NULL));
	ok(pgc_builder_commit(b, NULL));
	ok(pgc_snap_set_workset(store, id, PGC_MEM, ws, ARRAY_SIZE(ws), NULL));
}

static void slurp(unsigned i)
{
	cleanup_fd int fd = openat(store->dirfd, files[i].path, O_RDONLY);
	struct stat st;

	fuzz_must(fd >= 0 && !fstat(fd, &st));
	fuzz_must(st.st_size > 0 && st.st_size < FILE_MAX);
	files[i].len = (size_t)st.st_size;
	files[i].good = malloc(files[i].len);
	ok(util_pread_all(fd, files[i].good, files[i].len, 0));
}

// As everything is put there: whole. Readers may have the old one mapped. `hole`: so
// many zeroes follow.
static void put_file(unsigned i, const uint8_t *p, size_t len, size_t hole)
{
	int fd = openat(store->dirfd, "tmp/new", O_CREAT | O_WRONLY, 0600);

	fuzz_must(fd >= 0);
	ok(util_pwrite_all(fd, p, len, 0));
	ok(ftruncate(fd, (off_t)(len + hole)));
	close(fd);
	ok(renameat(store->dirfd, "tmp/new", store->dirfd, files[i].path));
}

static void open_store(void)
{
	struct pgc_options opt = {
	    .struct_size = sizeof(opt), .no_uring = true, .keep_index = false};

	ok(pgc_store_open(&store, dir, &opt, NULL));
}

static int remove_one(const char *p, const struct stat *st, int type,
		      struct FTW *f)
{
	(void)st, (void)type, (void)f;
	return remove(p);
}

static void remove_store(void)
{
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void begin(void)
{
	pgc_test_hooks.uid_seed = 1;
	snprintf(dir, sizeof(dir), "%s/fuzz-store-XXXXXX",
		 access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
	fuzz_must(mkdtemp(dir));
	atexit(remove_store);
	for (unsigned i = 0; i < N; i++) {
		make_page(pages[0][i], i, 1);
		make_page(pages[1][i], i, i >= 16 && i < 24 ? 2 : 1);
	}
	open_store();
	build(&ids[0], NULL, pages[0], 0, N);
	build(&ids[1], &ids[0], pages[1], 16, 24);
	pgc_store_close(store);
	open_store(); // makes the index
	snap_path(files[F_PARENT].path, 80, &ids[0]);
	snap_path(files[F_CHILD].path, 80, &ids[1]);
	ws_path(files[F_WS].path, 80, &ids[0], PGC_MEM);
	ws_path(files[F_CHILD_WS].path, 80, &ids[1], PGC_MEM);
	snprintf(files[F_INDEX].path, 80, "index");
	pack_path(files[F_PACK].path, 80, "packs/", store->packs.slot[1]->uid);
	for (unsigned i = 0; i < FILES; i++)
		slurp(i);
}

// --- changing a file --------------------------------------------------------

// What is interesting in each, by its offset.
static const uint16_t fields[FILES][28] = {
    [F_PARENT] = {8,   12,  16,	 24,  40,  56,	60,  64,  80,  96,
		  112, 120, 128, 136, 144, 152, 160, 168, 176, 180,
		  184, 188, 192, 196, 200, 232, 256, 264},
    [F_WS] = {8, 12, 16, 32, 36, 40, 48, 72, 128, 132, 136, 140, 144},
    [F_INDEX] = {8, 12, 16, 24, 40, 48, 64, 72, 80, 88, 96, 104},
    [F_PACK] = {8, 12, 16, 24, 32, 40, 48, 64, 72, 80, 82},
};

static unsigned kind_of(unsigned file)
{
	return file == F_CHILD ? F_PARENT : file == F_CHILD_WS ? F_WS : file;
}

static size_t place(struct fuzz_in *in, unsigned file, size_t len)
{
	uint8_t v = in_u8(in);
	const uint16_t *f = fields[kind_of(file)];
	size_t at = v < 0x80 ? f[v % 28] : in_u16(in);

	if (v >= 0xc0) // from the end
		at = len - MIN(len, at);
	return MIN(at, len);
}

static size_t hole; // behind the pack

static void edit(struct fuzz_in *in, unsigned file, uint8_t *b, size_t *len)
{
	uint8_t what = in_u8(in);
	size_t at = place(in, file, *len), width = 1u << (what >> 3 & 3);
	const struct file *from;
	uint64_t v;
	size_t to;

	switch (what & 7) {
	default:
		v = in_odd(in);
		memcpy(b + at, &v, MIN(width, *len - at));
		break;
	case 4: // a field of this or another file
		from = what & 0x80 ? &files[in_u8(in) % FILES] : NULL;
		width = what & 0x40 ? 16 : width;
		to = place(in, file, from ? from->len : *len);
		width = MIN(width, (from ? from->len : *len) - to);
		memmove(b + at, (from ? from->good : b) + to,
			MIN(width, *len - at));
		break;
	case 5:
		at -= at == *len && at;
		b[at] ^= (uint8_t)(1u << (what >> 3 & 7));
		break;
	case 6:
		*len = at;
		break;
	case 7:
		if (file == F_PACK && (what & 0x40) && *len >= PACK_HEADER) {
			hole = PACK_MAX - *len + in_u8(in);
			put_le64(b + 24, *len + hole);
			break;
		}
		to = in_u16(in);
		to = MIN(to, FILE_MAX - *len);
		memset(b + *len, what & 0x80 ? 0xff : 0, to);
		*len += to;
		break;
	}
}

// A record's check, as codec.c has it.
static void seal_record(uint8_t *rec, uint64_t uid, uint64_t off, uint32_t len)
{
	uint64_t h = XXH3_64bits_withSeed(rec, REC_HEADER - 2, uid ^ off);

	if (len < PGC_PAGE)
		h ^= XXH3_64bits(rec + REC_HEADER, len);
	put_le16(rec + 18, (uint16_t)h);
}

static void seal_pack(uint8_t *b, size_t len)
{
	size_t at = PACK_HEADER;

	put_le64(b + 56, hash64(b, PACK_HEADER - 8));
	while (at + REC_HEADER < len) {
		uint32_t n = (le16(b + at + 16) & 0xfffu) + 1;

		if (n > len - at - REC_HEADER)
			break;
		seal_record(b + at, le64(b + 16), at, n);
		at += REC_HEADER + n;
	}
}

static void seal_workset(uint8_t *b, size_t len)
{
	uint64_t n = le32(b + 36), frames, at = le64(b + 48);

	if (len < WS_HEADER)
		return;
	frames = (n + WS_FRAME_PAGES - 1) / WS_FRAME_PAGES;
	if (n < N * 4 && WS_HEADER + n * 4 + frames * WS_ENT <= len) {
		uint8_t *f = b + WS_HEADER + n * 4;

		for (; frames; frames--, f += WS_ENT) {
			uint32_t k = le32(f) & ~WS_RAW;

			if (at > len || k > len - at)
				break;
			put_le32(f + 4, (uint32_t)hash64(b + at, k));
			at += k;
		}
		hash128(b + 56, b + WS_HEADER,
			(size_t)(f - b) - WS_HEADER + frames * WS_ENT);
	}
	put_le64(b + 120, hash64(b, WS_HEADER - 8));
}

static void seal(unsigned file, uint8_t *b, size_t len)
{
	switch (kind_of(file)) {
	case F_PARENT:
		if (len >= SNAP_HEADER)
			map_reseal(b, len);
		break;
	case F_WS:
		seal_workset(b, len);
		break;
	case F_INDEX:
		if (len < INDEX_HEADER)
			break;
		hash128(b + 24, b + INDEX_HEADER, len - INDEX_HEADER);
		put_le64(b + 56, hash64(b, INDEX_HEADER - 8));
		break;
	case F_PACK:
		if (len >= PACK_HEADER)
			seal_pack(b, len);
		break;
	}
}

// --- using it ---------------------------------------------------------------

// Whatever a page is said to be, it is one of those that were put, or zero.
static bool known(const uint8_t *page)
{
	if (page_is_zero(page))
		return true;
	for (unsigned i = 0; i < 2 * N; i++)
		if (!memcmp(page, pages[i / N][i % N], PGC_PAGE))
			return true;
	return false;
}

static void walk(struct pgc_snap *sn, enum pgc_stream st)
{
	uint64_t at = 0, end = pgc_snap_pages(sn, st);
	struct pgc_run run;

	while (pgc_snap_run(sn, st, at, &run)) {
		fuzz_must(run.pgno == at && run.npages);
		fuzz_must(run.npages <= end - at);
		at += run.npages;
	}
	fuzz_must(at == end);
}

// `changed`: a pack was, which may hold pages of anybody's choice.
static void read_pages(struct pgc_snap *sn, enum pgc_stream st, uint64_t from,
		       bool changed)
{
	static uint8_t got[N][PGC_PAGE];
	uint64_t end = pgc_snap_pages(sn, st), n;
	struct err e = ERR_INIT;
	int rc;

	from = end ? from % end : 0;
	n = MIN((uint64_t)N, end - from);
	rc = pgc_snap_read(sn, st, from, got, n, &e);
	if (rc) {
		fuzz_must(rc == -EBADMSG && e.msg[0]);
		seen(S_READ_FAILS);
		return;
	}
	seen(S_READ);
	for (uint64_t i = 0; i < n && !changed; i++)
		fuzz_must(known(got[i]));
}

static void use_workset(struct pgc_snap *sn)
{
	const uint32_t *list;
	size_t n = pgc_snap_workset(sn, PGC_MEM, &list);
	struct err e = ERR_INIT;
	int rc = ws_verify(store, sn->map, PGC_MEM, &e);

	for (size_t i = 0; i < n; i++)
		fuzz_must((list[i] & ~PGC_WRITTEN) <
			  pgc_snap_pages(sn, PGC_MEM));
	if (n)
		seen(S_WORKSET);
	if (!rc)
		seen(S_WORKSET_READ);
	else
		seen(S_WORKSET_BAD);
}

static void use_written(struct pgc_snap *sn)
{
	size_t n, len;
	uint32_t *list = written_as_parent(sn, &n);

	pgc_snap_blob(sn, "written", &len);
	for (size_t i = 0; i < n; i++)
		fuzz_must((list[i] & ~PGC_WRITTEN) <
			  pgc_snap_pages(sn, PGC_MEM));
	if (n)
		seen(S_WRITTEN);
	free(list);
}

static void use_snap(unsigned which, uint64_t from, bool pack_changed)
{
	struct err e = ERR_INIT;
	struct pgc_snap_stats stats;
	struct pgc_snap *sn;
	int rc = pgc_snap_open(store, &ids[which], &sn, &e);

	if (rc) {
		fuzz_must((rc == -EBADMSG || rc == -ENOTSUP) && e.msg[0]);
		seen(strstr(e.msg, "build") ? S_BASE_REFUSED : S_REFUSED);
		return;
	}
	seen(sn->map->has_base ? S_CHILD : S_OPENED);
	pgc_snap_get_stats(sn, &stats);
	for (int k = 0; k < PGC_NUM_STREAMS; k++) {
		walk(sn, (enum pgc_stream)k);
		read_pages(sn, (enum pgc_stream)k, from, pack_changed);
	}
	use_workset(sn);
	use_written(sn);
	pgc_snap_unref(sn);
}

// Finds every page by the index, as a builder does, which believes nothing.
static void use_index(void)
{
	uint64_t locs[INDEX_MAX_CANDIDATES];
	uint64_t np[PGC_NUM_STREAMS] = {N, 0};
	struct pgc_id id = {{9}};
	struct pgc_builder *b;

	for (unsigned i = 0; i < N; i++) {
		size_t n = index_find(store, page_id_of(pages[0][i]).lo, locs);

		fuzz_must(n <= INDEX_MAX_CANDIDATES);
		if (n)
			seen(S_FOUND);
	}
	index_find(store, 0, locs);
	index_find(store, UINT64_MAX, locs);
	ok(pgc_builder_begin(store, &id, NULL, np, &b, NULL));
	ok(pgc_builder_put(b, PGC_MEM, 0, pages[0], 8, NULL));
	pgc_builder_abort(b);
}

static int count_record(void *ctx, const struct rec_info *r)
{
	size_t *n = ctx;

	fuzz_must(loc_size(r->loc) <= REC_HEADER + PGC_PAGE);
	++*n;
	return 0;
}

static void use_pack(void)
{
	struct pack *p = pack_pin(store, 1);
	size_t n = 0;

	fuzz_must(p);
	if (p->size > PACK_MAX) {
		fuzz_must(pack_open(store, p, NULL));
		seen(S_TOO_LONG);
	}
	if (pack_scan(store, p, count_record, &n, NULL))
		seen(S_SCAN_FAILS);
	else
		seen(S_SCANNED);
	pack_unpin(store, p);
}

static void count_bad(void *ctx, const char *what)
{
	fuzz_must(what[0]);
	++*(unsigned *)ctx;
}

static void use(unsigned file, uint8_t how, uint64_t from)
{
	bool pack_changed = file == F_PACK;
	unsigned bad = 0;

	if (how & 0x40) { // all of it anew, the index from the packs if need be
		pgc_store_close(store);
		open_store();
		seen(S_REOPENED);
	}
	if (file == F_INDEX) {
		if (!index_load(store, NULL))
			seen(S_INDEX);
		else
			seen(S_INDEX_REFUSED);
		use_index();
	}
	if (file == F_PACK)
		use_pack();
	if (file != F_INDEX) {
		use_snap(0, from, pack_changed);
		use_snap(1, from, pack_changed);
	}
	if (how & 0x20)
		ok(pgc_fsck(store, count_bad, &bad, NULL));
}

// The two files of snapshots can be changed together, each by half of the edits.
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static uint8_t b[2][FILE_MAX];
	struct fuzz_in in = {data, data + n};
	uint8_t how = in_u8(&in);
	unsigned file = (how & 15u) % FILES, other = file ^ 1;
	bool both = (how & 0x80) && file < F_INDEX;
	size_t len[2];
	uint64_t from = in_u16(&in);

	if (!store)
		begin();
	hole = 0;
	memcpy(b[0], files[file].good, len[0] = files[file].len);
	memcpy(b[1], files[other].good, len[1] = files[other].len);
	for (unsigned i = 0; i < EDITS_MAX && in_left(&in); i++) {
		if (both && i % 2)
			edit(&in, other, b[1], &len[1]);
		else
			edit(&in, file, b[0], &len[0]);
	}
	if (!(how & 0x10)) {
		seal(file, b[0], len[0]);
		seal(other, b[1], len[1]);
	}
	put_file(file, b[0], len[0], hole);
	if (both)
		put_file(other, b[1], len[1], 0);
	use(file, how, from);
	put_file(file, files[file].good, files[file].len, 0);
	if (both)
		put_file(other, files[other].good, files[other].len, 0);
	if (how & 0x40) {
		put_file(F_INDEX, files[F_INDEX].good, files[F_INDEX].len, 0);
		pgc_store_close(store);
		open_store();
	}
	if (file == F_INDEX)
		ok(index_load(store, NULL));
	return 0;
}
