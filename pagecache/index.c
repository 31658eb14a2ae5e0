// The index: where is a page with this key stored? Only deduplication asks;
// maps hold locations themselves. So the index may be lost, stale or wrong
// without harm: every answer is a candidate whose bytes are compared.
//
// It has two levels. The file is sorted by key, immutable, replaced as a whole
// by rename, mapped and searched by interpolation (keys are hashes, so evenly
// spread): no heap for it, and no resident memory while nobody builds. The
// *delta* is a small hash table of what was published since. When the delta
// outgrows its limit, both are merged into a new file. The file lists the packs
// that it covers; at open, packs that it does not list are scanned into the
// delta, so a crash at any point costs at most one scan of the last packs.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "pgc_internal.h"

enum {
	DELTA_MIN = 32768, // entries; merged later than that never
	MERGE_BUF = 1024 * 1024,
};

// --- hash tables -------------------------------------------------------------

// Guests choose page contents, so they could choose keys that crowd one place
// of the table or share a key: the first is met by a random multiplier, the
// second by a limit, beyond which pages are merely not deduplicated.
static size_t ktab_slot(const struct ktab *t, uint64_t key)
{
	return (size_t)(key * t->mul >> 20);
}

static void ktab_put(struct ktab *t, uint64_t key, uint64_t loc)
{
	size_t mask = t->cap - 1, i = ktab_slot(t, key);
	unsigned alike = 0;

	for (; t->e[i & mask].loc; i++)
		if (t->e[i & mask].key == key &&
		    ++alike == INDEX_MAX_CANDIDATES)
			return;
	t->e[i & mask] = (struct kent){key, loc};
	t->n++;
}

static int ktab_grow(struct ktab *t, size_t cap)
{
	struct ktab bigger = {calloc(cap, sizeof(struct kent)), 0, cap, t->mul};

	if (!bigger.e)
		return -ENOMEM;
	if (!bigger.mul) {
		util_random(&bigger.mul, sizeof(bigger.mul));
		bigger.mul |= 1;
	}
	for (size_t i = 0; i < t->cap; i++)
		if (t->e[i].loc)
			ktab_put(&bigger, t->e[i].key, t->e[i].loc);
	free(t->e);
	*t = bigger;
	return 0;
}

int ktab_add(struct ktab *t, uint64_t key, uint64_t loc)
{
	if (t->n + 1 > t->cap - t->cap / 4) {
		int rc = ktab_grow(t, t->cap ? t->cap * 2 : 256);

		if (rc)
			return rc;
	}
	ktab_put(t, key, loc);
	return 0;
}

size_t ktab_find(const struct ktab *t, uint64_t key, uint64_t *locs, size_t max)
{
	size_t mask = t->cap - 1, n = 0;

	if (!t->cap)
		return 0;
	for (size_t i = ktab_slot(t, key); t->e[i & mask].loc && n < max; i++)
		if (t->e[i & mask].key == key)
			locs[n++] = t->e[i & mask].loc;
	return n;
}

void ktab_free(struct ktab *t)
{
	free(t->e);
	memset(t, 0, sizeof(*t));
}

// --- the file ----------------------------------------------------------------

int index_init(struct index *ix)
{
	memset(ix, 0, sizeof(*ix));
	return -pthread_rwlock_init(&ix->lock, NULL);
}

static void file_unmap(struct index *ix)
{
	if (ix->map)
		munmap((void *)(uintptr_t)ix->map, ix->map_len);
	free(ix->slots);
	ix->map = ix->ents = NULL;
	ix->map_len = 0;
	ix->count = ix->npacks = 0;
	ix->slots = NULL;
}

void index_fini(struct index *ix)
{
	file_unmap(ix);
	ktab_free(&ix->delta);
	pthread_rwlock_destroy(&ix->lock);
}

static int index_bad(struct err *e, const char *why)
{
	return err_set(e, -EBADMSG,
		       "the page index is corrupt: %s; it is rebuilt from the "
		       "packs at the next start",
		       why);
}

static size_t ents_at(uint64_t npacks)
{
	return (size_t)ALIGN_UP(INDEX_HEADER + 8 * npacks, 16);
}

// Reads the file through (not through the mapping, which would make all of it
// resident) and compares sizes and checksums.
static int file_check(int fd, uint8_t h[INDEX_HEADER], uint64_t *size,
		      struct err *e)
{
	cleanup_free uint8_t *buf = malloc(MERGE_BUF);
	XXH3_state_t *x = XXH3_createState();
	uint64_t npacks, count, off = INDEX_HEADER;
	XXH128_hash_t sum;
	struct stat sb;
	int rc = -ENOMEM;

	if (!buf || !x)
		goto out;
	XXH3_128bits_reset(x);
	if (fstat(fd, &sb)) {
		rc = err_sys(e, "cannot examine the page index");
		goto out;
	}
	*size = (uint64_t)sb.st_size;
	rc = util_pread_all(fd, h, INDEX_HEADER, 0);
	if (rc == -ENODATA || (!rc && memcmp(h, INDEX_MAGIC, 8)) ||
	    (!rc && le64(h + 56) != hash64(h, INDEX_HEADER - 8))) {
		rc = index_bad(e, "its header is damaged");
		goto out;
	}
	npacks = le32(h + 12);
	count = le64(h + 16);
	if (!rc && le32(h + 8) != FORMAT_VERSION)
		rc = err_set(e, -ENOTSUP, "the page index has version %u",
			     le32(h + 8));
	if (!rc && (count > UINT64_MAX / 32 ||
		    ents_at(npacks) + count * INDEX_ENT != *size))
		rc = index_bad(e, "its size is wrong");
	while (!rc && off < *size) {
		size_t n = (size_t)MIN((uint64_t)MERGE_BUF, *size - off);

		rc = util_pread_all(fd, buf, n, (off_t)off);
		if (!rc)
			XXH3_128bits_update(x, buf, n);
		off += n;
	}
	if (rc)
		goto out;
	sum = XXH3_128bits_digest(x);
	if (sum.low64 != le64(h + 24) || sum.high64 != le64(h + 32))
		rc = index_bad(e, "its checksum does not match");
out:
	XXH3_freeState(x);
	return rc;
}

static int file_open(struct pgc_store *s, struct err *e)
{
	int fd = openat(s->dirfd, "index", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	return fd >= 0 ? fd : err_sys(e, "cannot open the page index");
}

static int by_uid(const void *pa, const void *pb)
{
	uint64_t a = (*(struct pack *const *)pa)->uid;
	uint64_t b = (*(struct pack *const *)pb)->uid;

	return a < b ? -1 : a > b;
}

// Slot of each pack of the file's table; 0 for those that are gone. Marks the
// others as indexed. The caller holds index.lock for writing.
static int bind_slots(struct pgc_store *s, struct index *ix)
{
	cleanup_free struct pack **all = NULL;
	uint32_t n = 0;

	must_lock(&s->lock);
	all = malloc((s->packs.n + 1) * sizeof(struct pack *));
	for (uint32_t k = 1; all && k < s->packs.n; k++)
		if (s->packs.slot[k] && !s->packs.slot[k]->building)
			all[n++] = s->packs.slot[k];
	if (all)
		qsort(all, n, sizeof(struct pack *), by_uid);
	for (uint32_t i = 0; all && i < ix->npacks; i++) {
		struct pack want = {
		    .uid = le64(ix->map + INDEX_HEADER + 8 * (size_t)i)};
		struct pack *wp = &want, **p;

		p = bsearch(&wp, all, n, sizeof(struct pack *), by_uid);
		if (p) {
			ix->slots[i] = (*p)->slot;
			(*p)->indexed = true;
		}
	}
	must_unlock(&s->lock);
	return all ? 0 : -ENOMEM;
}

int index_load(struct pgc_store *s, struct err *e)
{
	cleanup_fd int fd = file_open(s, e);
	struct index *ix = &s->index;
	uint8_t h[INDEX_HEADER];
	uint64_t size;
	uint32_t *slots;
	void *map;
	int rc;

	if (fd < 0)
		return fd;
	rc = file_check(fd, h, &size, e);
	if (rc)
		return rc;
	slots = calloc((size_t)le32(h + 12) + 1, sizeof(*slots));
	map = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
	if (!slots || map == MAP_FAILED) {
		free(slots);
		if (map != MAP_FAILED)
			munmap(map, (size_t)size);
		return err_set(e, -ENOMEM, "no memory for the page index");
	}
	madvise(map, (size_t)size, MADV_RANDOM);
	pthread_rwlock_wrlock(&ix->lock);
	file_unmap(ix);
	ix->map = map;
	ix->map_len = (size_t)size;
	ix->npacks = le32(h + 12);
	ix->count = le64(h + 16);
	ix->ents = ix->map + ents_at(ix->npacks);
	ix->slots = slots;
	rc = bind_slots(s, ix);
	if (rc)
		file_unmap(ix);
	pthread_rwlock_unlock(&ix->lock);
	return rc ? err_set(e, rc, "no memory for the page index") : 0;
}

int index_verify(struct pgc_store *s, struct err *e)
{
	cleanup_fd int fd = file_open(s, e);
	uint8_t h[INDEX_HEADER];
	uint64_t size;

	if (fd < 0)
		return fd;
	return file_check(fd, h, &size, e);
}

void index_relax(struct pgc_store *s)
{
	pthread_rwlock_rdlock(&s->index.lock);
	if (s->index.map)
		madvise((void *)(uintptr_t)s->index.map, s->index.map_len,
			MADV_DONTNEED);
	pthread_rwlock_unlock(&s->index.lock);
}

// --- looking up --------------------------------------------------------------

static uint64_t ent_key(const struct index *ix, uint64_t i)
{
	return le64(ix->ents + i * INDEX_ENT);
}

// First entry whose key is >= key. Interpolation halves the error like a root
// each step; after a few steps bisection bounds the worst case.
static uint64_t lower_bound(const struct index *ix, uint64_t key)
{
	uint64_t lo = 0, hi = ix->count;	// answer in [lo, hi]
	uint64_t lokey = 0, hikey = UINT64_MAX; // keys around
	unsigned step = 0;

	while (lo < hi) {
		uint64_t span = hi - lo, at = lo + span / 2;

		if (step++ < 5 && hikey > lokey && key >= lokey && span > 8) {
			double f =
			    (double)(key - lokey) / (double)(hikey - lokey);
			uint64_t guess = lo + (uint64_t)(f * (double)span);

			at = MIN(guess, hi - 1);
		}
		if (ent_key(ix, at) < key) {
			lokey = ent_key(ix, at);
			lo = at + 1;
		} else {
			hikey = ent_key(ix, at);
			hi = at;
		}
	}
	return lo;
}

size_t index_find(struct pgc_store *s, uint64_t key,
		  uint64_t locs[INDEX_MAX_CANDIDATES])
{
	struct index *ix = &s->index;
	size_t n;

	pthread_rwlock_rdlock(&ix->lock);
	n = ktab_find(&ix->delta, key, locs, INDEX_MAX_CANDIDATES);
	for (uint64_t i = lower_bound(ix, key);
	     n < INDEX_MAX_CANDIDATES && i < ix->count && ent_key(ix, i) == key;
	     i++) {
		uint64_t loc = le64(ix->ents + i * INDEX_ENT + 8);

		if (loc_pack(loc) < ix->npacks && ix->slots[loc_pack(loc)])
			locs[n++] =
			    loc_with_pack(loc, ix->slots[loc_pack(loc)]);
	}
	pthread_rwlock_unlock(&ix->lock);
	return n;
}

int index_take(struct pgc_store *s, const struct ktab *t,
	       struct pack *const *packs, uint32_t npacks)
{
	struct index *ix = &s->index;
	int rc = 0;

	pthread_rwlock_wrlock(&ix->lock);
	for (size_t i = 0; i < t->cap && !rc; i++)
		if (t->e[i].loc)
			rc = ktab_add(&ix->delta, t->e[i].key, t->e[i].loc);
	must_lock(&s->lock);
	for (uint32_t i = 0; i < npacks && !rc; i++)
		packs[i]->indexed = true;
	must_unlock(&s->lock);
	pthread_rwlock_unlock(&ix->lock);
	return rc;
}

// --- catching up -------------------------------------------------------------

static int catch_up_one(void *ctx, const struct rec_info *r)
{
	return ktab_add(ctx, r->id.lo, r->loc);
}

int index_catch_up(struct pgc_store *s, struct err *e)
{
	for (uint32_t k = 1; k < s->packs.n; k++) {
		struct pack *p = pack_pin(s, k);
		struct ktab t = {0};
		int rc = 0;

		if (p && !p->indexed) {
			rc = pack_scan(s, p, catch_up_one, &t, NULL);
			// A damaged pack is only deduplicated against less: its
			// pages tell when they are read, and fsck tells.
			if (rc != -ENOMEM)
				rc = index_take(s, &t, &p, 1);
		}
		ktab_free(&t);
		pack_unpin(s, p);
		if (rc)
			return err_set(e, rc, "no memory for the page index");
	}
	return 0;
}

// --- merging -----------------------------------------------------------------

struct merge {
	struct pgc_store *s;
	struct kent *ents; // copy of the delta, sorted
	size_t n;
	uint32_t nslots, npacks;
	uint32_t *pack_of; // slot -> index in the new table + 1; 0: dropped
	uint64_t *uids;
	int fd;
	uint8_t *buf;
	size_t fill;
	uint64_t off, count;
	XXH3_state_t *sum;
	int rc;
};

static int kent_cmp(const void *pa, const void *pb)
{
	const struct kent *a = pa, *b = pb;

	if (a->key != b->key)
		return a->key < b->key ? -1 : 1;
	return a->loc < b->loc ? -1 : a->loc > b->loc;
}

// Copies the delta and numbers the packs that will be covered. Both locks, so
// that the packs marked `indexed` are exactly those whose entries are seen.
static int merge_prepare(struct merge *m)
{
	struct pgc_store *s = m->s;
	struct index *ix = &s->index;
	int rc = 0;

	pthread_rwlock_rdlock(&ix->lock);
	must_lock(&s->lock);
	m->nslots = s->packs.n;
	m->ents = malloc((ix->delta.n + 1) * sizeof(*m->ents));
	m->pack_of = calloc(m->nslots + 1, sizeof(*m->pack_of));
	m->uids = calloc(m->nslots + 1, sizeof(*m->uids));
	if (!m->ents || !m->pack_of || !m->uids)
		rc = -ENOMEM;
	for (size_t i = 0; i < ix->delta.cap && !rc; i++)
		if (ix->delta.e[i].loc)
			m->ents[m->n++] = ix->delta.e[i];
	for (uint32_t k = 1; k < m->nslots && !rc; k++) {
		struct pack *p = s->packs.slot[k];

		if (p && p->indexed && !p->building) {
			m->uids[m->npacks++] = p->uid;
			m->pack_of[k] = m->npacks;
		}
	}
	must_unlock(&s->lock);
	pthread_rwlock_unlock(&ix->lock);
	if (!rc)
		qsort(m->ents, m->n, sizeof(*m->ents), kent_cmp);
	return rc;
}

static void merge_flush(struct merge *m)
{
	if (!m->rc)
		m->rc = util_pwrite_all(m->fd, m->buf, m->fill, (off_t)m->off);
	XXH3_128bits_update(m->sum, m->buf, m->fill);
	m->off += m->fill;
	m->fill = 0;
}

static void merge_emit(struct merge *m, uint64_t key, uint64_t loc)
{
	uint32_t slot = loc_pack(loc);

	if (slot >= m->nslots || !m->pack_of[slot])
		return; // its pack is gone
	if (m->fill + INDEX_ENT > MERGE_BUF)
		merge_flush(m);
	put_le64(m->buf + m->fill, key);
	put_le64(m->buf + m->fill + 8,
		 loc_with_pack(loc, m->pack_of[slot] - 1));
	m->fill += INDEX_ENT;
	m->count++;
}

static void merge_body(struct merge *m)
{
	const struct index *ix = &m->s->index;
	size_t d = 0;

	m->off = INDEX_HEADER;
	for (uint32_t i = 0; i < m->npacks; i++) {
		if (m->fill + 8 > MERGE_BUF)
			merge_flush(m);
		put_le64(m->buf + m->fill, m->uids[i]);
		m->fill += 8;
	}
	if (m->npacks % 2) { // entries are 16-aligned; MERGE_BUF is too
		put_le64(m->buf + m->fill, 0);
		m->fill += 8;
	}
	for (uint64_t i = 0; i < ix->count; i++) {
		uint64_t key = ent_key(ix, i);
		uint64_t loc = le64(ix->ents + i * INDEX_ENT + 8);

		for (; d < m->n && m->ents[d].key < key; d++)
			merge_emit(m, m->ents[d].key, m->ents[d].loc);
		if (loc_pack(loc) < ix->npacks && ix->slots[loc_pack(loc)])
			merge_emit(
			    m, key,
			    loc_with_pack(loc, ix->slots[loc_pack(loc)]));
	}
	for (; d < m->n; d++)
		merge_emit(m, m->ents[d].key, m->ents[d].loc);
	merge_flush(m);
}

static void merge_header(struct merge *m)
{
	XXH128_hash_t sum = XXH3_128bits_digest(m->sum);
	uint8_t h[INDEX_HEADER] = {0};

	memcpy(h, INDEX_MAGIC, 8);
	put_le32(h + 8, FORMAT_VERSION);
	put_le32(h + 12, m->npacks);
	put_le64(h + 16, m->count);
	put_le64(h + 24, sum.low64);
	put_le64(h + 32, sum.high64);
	put_le64(h + 56, hash64(h, INDEX_HEADER - 8));
	if (!m->rc)
		m->rc = util_pwrite_all(m->fd, h, sizeof(h), 0);
}

// Entries that came into the delta while the file was written stay in it.
static void drop_merged(struct merge *m)
{
	struct index *ix = &m->s->index;
	struct ktab left = {0};
	int rc = 0;

	pthread_rwlock_wrlock(&ix->lock);
	for (size_t i = 0; i < ix->delta.cap && !rc; i++) {
		const struct kent *k = &ix->delta.e[i];

		if (k->loc && !bsearch(k, m->ents, m->n, sizeof(*k), kent_cmp))
			rc = ktab_add(&left, k->key, k->loc);
	}
	if (rc) {
		ktab_free(&left); // entries twice do no harm
	} else {
		ktab_free(&ix->delta);
		ix->delta = left;
	}
	pthread_rwlock_unlock(&ix->lock);
}

static int merge_write(struct merge *m, struct err *e)
{
	struct pgc_store *s = m->s;
	char tmp[40];

	// The base file's mapping stays while merge_lock is held: only a merge
	// replaces it.
	snprintf(tmp, sizeof(tmp), "index.%016llx",
		 (unsigned long long)new_uid64());
	m->fd =
	    openat(s->tmp_fd, tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (m->fd < 0)
		return err_sys(e, "cannot create the page index");
	merge_body(m);
	merge_header(m);
	if (!m->rc && fsync(m->fd))
		m->rc = -errno;
	if (!m->rc && renameat(s->tmp_fd, tmp, s->dirfd, "index"))
		m->rc = -errno;
	if (m->rc) {
		unlinkat(s->tmp_fd, tmp, 0);
		return err_wrap(e, m->rc, "cannot write the page index");
	}
	return store_sync_dir(s->dirfd, "store", e);
}

static bool merge_due(struct pgc_store *s)
{
	struct index *ix = &s->index;
	uint64_t gone = 0;
	bool due;

	pthread_rwlock_rdlock(&ix->lock);
	must_lock(&s->lock);
	for (uint32_t i = 0; i < ix->npacks; i++)
		gone += !ix->slots[i] || !s->packs.slot[ix->slots[i]];
	must_unlock(&s->lock);
	due = ix->delta.n > MAX((uint64_t)DELTA_MIN, ix->count / 16) ||
	      gone > ix->npacks / 4;
	pthread_rwlock_unlock(&ix->lock);
	return due;
}

int index_merge(struct pgc_store *s, bool force, struct err *e)
{
	struct merge m = {.s = s, .fd = -1};
	int rc;

	if (!force && !merge_due(s))
		return 0;
	must_lock(&s->merge_lock);
	m.buf = malloc(MERGE_BUF);
	m.sum = XXH3_createState();
	rc = m.buf && m.sum ? merge_prepare(&m) : -ENOMEM;
	if (rc) {
		rc = err_set(e, rc, "no memory to merge the page index");
	} else {
		XXH3_128bits_reset(m.sum);
		rc = merge_write(&m, e);
	}
	if (!rc)
		rc = index_load(s, e);
	if (!rc)
		drop_merged(&m);
	must_unlock(&s->merge_lock);
	fd_close(&m.fd);
	XXH3_freeState(m.sum);
	free(m.buf);
	free(m.ents);
	free(m.pack_of);
	free(m.uids);
	return rc;
}
