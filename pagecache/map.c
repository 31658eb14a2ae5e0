// Snapshot files: which page of which stream is stored where, and the blobs.
//
// A map is either complete, or tells only how it differs from its *base*,
// another complete map: a suspended microVM so costs what it wrote. The base is
// named by file uid, not by snapshot: removing a snapshot only takes its name
// away (snaps/ID.snap becomes snaps/UID.base) and collection deletes the file
// when no other needs it. Bases never have bases.
//
// In memory a map is its file, read once and checked whole (map_parse), with
// the runs unpacked for bisection; entries are used in place. Being bound means
// that all its packs are pinned and open, and every location lies inside its
// pack. Open maps are shared by uid.
#include <limits.h>

#include "pgc_internal.h"

// --- writing -----------------------------------------------------------------

void map_reseal(uint8_t *buf, size_t len)
{
	hash128(buf + 216, buf + SNAP_HEADER, len - SNAP_HEADER);
	put_le64(buf + 248, hash64(buf, SNAP_HEADER - 8));
}

static void put_header(const struct map *m, const struct mapsrc *src,
		       uint8_t *h, size_t len)
{
	memcpy(h, SNAP_MAGIC, 8);
	put_le32(h + 8, FORMAT_VERSION);
	put_le32(h + 12, FORMAT_VERSION);
	put_le64(h + 16, len);
	memcpy(h + 24, m->uid, 16);
	memcpy(h + 40, m->id.b, 16);
	put_le32(h + 56, (m->has_parent ? (uint32_t)SNAP_F_PARENT : 0u) |
			     (m->has_base ? (uint32_t)SNAP_F_BASE : 0u));
	if (m->has_parent)
		memcpy(h + 64, m->parent.b, 16);
	if (m->has_base) {
		memcpy(h + 80, m->base_id.b, 16);
		memcpy(h + 96, m->base_uid, 16);
	}
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		put_le64(h + 112 + 8 * st, m->st[st].npages);
		put_le64(h + 128 + 8 * st, m->st[st].nonzero);
		put_le64(h + 144 + 8 * st, m->st[st].own);
		put_le32(h + 176 + 4 * st, src->nruns[st]);
		put_le32(h + 184 + 4 * st, src->nents[st]);
	}
	put_le64(h + 160, m->stored_bytes);
	put_le64(h + 168, m->unique_bytes);
	put_le32(h + 192, m->npacks);
	put_le32(h + 196, m->nblobs);
}

int map_serialise(const struct map *m, const struct mapsrc *src, uint8_t **out,
		  size_t *len)
{
	size_t n = SNAP_HEADER + 8 * (size_t)m->npacks +
		   SNAP_BLOB_ENT * (size_t)m->nblobs;
	uint8_t *buf, *p;

	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		n += 4 * (size_t)src->nruns[st] +
		     SNAP_ENT * (size_t)src->nents[st];
	for (uint32_t i = 0; i < m->nblobs; i++)
		n += m->blobs[i].len;
	buf = calloc(1, n);
	if (!buf)
		return -ENOMEM;
	put_header(m, src, buf, n);
	p = buf + SNAP_HEADER;
	for (uint32_t i = 0; i < m->npacks; i++, p += 8)
		put_le64(p, m->pack_uids[i]);
	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		for (uint32_t i = 0; i < src->nruns[st]; i++, p += 4)
			put_le32(p, src->runs[st][i]);
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		size_t bytes = SNAP_ENT * (size_t)src->nents[st];

		if (bytes)
			memcpy(p, src->ents[st], bytes);
		p += bytes;
	}
	for (uint32_t i = 0; i < m->nblobs; i++, p += SNAP_BLOB_ENT) {
		memcpy(p, m->blobs[i].name, SNAP_BLOB_NAME);
		put_le64(p + SNAP_BLOB_NAME, m->blobs[i].len);
	}
	for (uint32_t i = 0; i < m->nblobs; i++) {
		if (m->blobs[i].len)
			memcpy(p, m->blobs[i].p, m->blobs[i].len);
		p += m->blobs[i].len;
	}
	map_reseal(buf, n);
	*out = buf;
	*len = n;
	return 0;
}

// --- parsing -----------------------------------------------------------------

void map_free(struct map *m)
{
	if (!m)
		return;
	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		free(m->st[st].runs);
	free(m->pack_uids);
	free(m->packs);
	free(m->blobs);
	free(m->buf);
	free(m);
}

static int corrupt(struct err *e, const char *what, const char *why)
{
	return err_set(e, -EBADMSG, "snapshot %s is corrupt: %s", what, why);
}

static bool all_zero(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (p[i])
			return false;
	return true;
}

static int parse_header(struct map *m, const char *what, struct err *e)
{
	const uint8_t *h = m->buf;
	uint32_t flags;
	uint8_t sum[16];

	if (m->len < SNAP_HEADER || memcmp(h, SNAP_MAGIC, 8) ||
	    le64(h + 248) != hash64(h, SNAP_HEADER - 8))
		return corrupt(e, what, "its header is damaged");
	if (le32(h + 12) > FORMAT_VERSION || le32(h + 8) < FORMAT_VERSION)
		return err_set(e, -ENOTSUP,
			       "snapshot %s has format version %u (readable "
			       "from %u on); this program reads %u: update it",
			       what, le32(h + 8), le32(h + 12), FORMAT_VERSION);
	if (le64(h + 16) != m->len)
		return corrupt(e, what, "its length is wrong");
	hash128(sum, h + SNAP_HEADER, m->len - SNAP_HEADER);
	if (memcmp(sum, h + 216, 16))
		return corrupt(e, what, "its checksum does not match");
	flags = le32(h + 56);
	if (flags & ~(uint32_t)(SNAP_F_PARENT | SNAP_F_BASE) ||
	    ((flags & SNAP_F_BASE) && !(flags & SNAP_F_PARENT)) ||
	    le32(h + 60) || !all_zero(h + 200, 16) || !all_zero(h + 232, 16))
		return corrupt(e, what, "reserved bits are set");
	memcpy(m->uid, h + 24, 16);
	memcpy(m->id.b, h + 40, 16);
	m->has_parent = flags & SNAP_F_PARENT;
	m->has_base = flags & SNAP_F_BASE;
	memcpy(m->parent.b, h + 64, 16);
	memcpy(m->base_id.b, h + 80, 16);
	memcpy(m->base_uid, h + 96, 16);
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		m->st[st].npages = le64(h + 112 + 8 * st);
		m->st[st].nonzero = le64(h + 128 + 8 * st);
		m->st[st].own = le64(h + 144 + 8 * st);
		m->st[st].nruns = le32(h + 176 + 4 * st);
		m->st[st].nents = le32(h + 184 + 4 * st);
		if (m->st[st].npages > PGC_STREAM_MAX_PAGES)
			return corrupt(e, what, "a stream is too long");
	}
	m->stored_bytes = le64(h + 160);
	m->unique_bytes = le64(h + 168);
	m->npacks = le32(h + 192);
	m->nblobs = le32(h + 196);
	if (m->nblobs > SNAP_MAX_BLOBS)
		return corrupt(e, what, "it has too many blobs");
	return 0;
}

static bool run_valid(const struct map *m, uint32_t v)
{
	bool same = v & RUN_SAME;

	if ((v & RUN_RESERVED) || RUN_COUNT(v) == 0 || RUN_KIND(v) > RUN_K_BASE)
		return false;
	if (same && !m->has_parent)
		return false;
	return RUN_KIND(v) != RUN_K_BASE || (same && m->has_base);
}

// Unpacks the runs; they must cover the stream exactly.
static int parse_runs(struct map *m, struct mstream *t, const uint8_t *p,
		      const char *what, struct err *e)
{
	uint64_t page = 0, ent = 0;

	t->runs = calloc((size_t)t->nruns + 1, sizeof(*t->runs));
	if (!t->runs)
		return err_set(e, -ENOMEM, "no memory for snapshot %s", what);
	for (uint32_t i = 0; i < t->nruns; i++, p += 4) {
		uint32_t v = le32(p);

		if (!run_valid(m, v) || page + RUN_COUNT(v) > t->npages)
			return corrupt(e, what, "its map is inconsistent");
		t->runs[i] = (struct mrun){(uint32_t)page, (uint32_t)ent,
					   RUN_KIND(v) | (v & RUN_SAME)};
		page += RUN_COUNT(v);
		if (RUN_KIND(v) == RUN_K_DATA)
			ent += RUN_COUNT(v);
	}
	t->runs[t->nruns].start = (uint32_t)page;
	if (page != t->npages || ent != t->nents)
		return corrupt(e, what, "its map does not cover its pages");
	return 0;
}

static int parse_ents(struct map *m, const char *what, struct err *e)
{
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		const uint8_t *p = m->st[st].ents;

		for (uint32_t i = 0; i < m->st[st].nents; i++, p += SNAP_ENT) {
			uint64_t loc = le64(p);

			if (loc_pack(loc) >= m->npacks ||
			    loc_off(loc) < PACK_HEADER)
				return corrupt(e, what,
					       "a page is nowhere stored");
		}
	}
	return 0;
}

static int parse_blobs(struct map *m, struct wire_reader *r, const char *what,
		       struct err *e)
{
	m->blobs = calloc((size_t)m->nblobs + 1, sizeof(*m->blobs));
	if (!m->blobs)
		return err_set(e, -ENOMEM, "no memory for snapshot %s", what);
	for (uint32_t i = 0; i < m->nblobs; i++) {
		wire_get_bytes(r, m->blobs[i].name, SNAP_BLOB_NAME);
		m->blobs[i].len = wire_get_u64(r);
		if (m->blobs[i].len > PGC_BLOB_MAX || !m->blobs[i].name[0] ||
		    m->blobs[i].name[SNAP_BLOB_NAME - 1])
			return corrupt(e, what, "a blob is malformed");
	}
	for (uint32_t i = 0; i < m->nblobs; i++)
		m->blobs[i].p = wire_borrow(r, m->blobs[i].len);
	if (r->bad || wire_left(r))
		return corrupt(e, what, "its parts do not fill it");
	return 0;
}

static int parse_body(struct map *m, const char *what, struct err *e)
{
	struct wire_reader r =
	    wire_reader_of(m->buf + SNAP_HEADER, m->len - SNAP_HEADER);
	const uint8_t *uids, *runs[PGC_NUM_STREAMS];
	int rc;

	uids = wire_borrow(&r, 8 * (size_t)m->npacks);
	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		runs[st] = wire_borrow(&r, 4 * (size_t)m->st[st].nruns);
	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		m->st[st].ents =
		    wire_borrow(&r, SNAP_ENT * (size_t)m->st[st].nents);
	if (r.bad)
		return corrupt(e, what, "it is cut off");
	m->pack_uids = calloc((size_t)m->npacks + 1, sizeof(*m->pack_uids));
	m->packs = calloc((size_t)m->npacks + 1, sizeof(*m->packs));
	if (!m->pack_uids || !m->packs)
		return err_set(e, -ENOMEM, "no memory for snapshot %s", what);
	for (uint32_t i = 0; i < m->npacks; i++)
		m->pack_uids[i] = le64(uids + 8 * (size_t)i);
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		rc = parse_runs(m, &m->st[st], runs[st], what, e);
		if (rc)
			return rc;
	}
	rc = parse_ents(m, what, e);
	return rc ? rc : parse_blobs(m, &r, what, e);
}

int map_parse(struct map **out, uint8_t *buf, size_t len, const char *what,
	      struct err *e)
{
	struct map *m = calloc(1, sizeof(*m));
	int rc;

	if (!m) {
		free(buf);
		return err_set(e, -ENOMEM, "no memory for snapshot %s", what);
	}
	m->buf = buf;
	m->len = len;
	m->refs = 1;
	rc = parse_header(m, what, e);
	if (!rc)
		rc = parse_body(m, what, e);
	if (rc) {
		map_free(m);
		return rc;
	}
	*out = m;
	return 0;
}

int map_read_file(struct map **out, struct pgc_store *s, const char *path,
		  struct err *e)
{
	uint8_t *buf;
	size_t len;
	int rc = store_slurp(s, path, SIZE_MAX, &buf, &len, e);

	return rc ? rc : map_parse(out, buf, len, path, e);
}

// --- open maps ---------------------------------------------------------------

static void unbind(struct map *m)
{
	for (uint32_t i = 0; i < m->npacks; i++)
		pack_unpin(m->s, m->packs[i]);
}

// Pins and opens the packs; every record must lie inside its pack.
// -ESTALE: a pack is not there (collected since the file was read, or lost).
static int bind(struct pgc_store *s, struct map *m, const char *what,
		struct err *e)
{
	m->s = s;
	for (uint32_t i = 0; i < m->npacks; i++) {
		int rc;

		m->packs[i] = pack_pin_uid(s, m->pack_uids[i]);
		if (!m->packs[i])
			return err_set(e, -ESTALE,
				       "snapshot %s is corrupt: its pack "
				       "%016llx is missing",
				       what,
				       (unsigned long long)m->pack_uids[i]);
		rc = pack_open(s, m->packs[i], e);
		if (rc)
			return err_wrap(e, rc, "snapshot %s", what);
	}
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		const uint8_t *p = m->st[st].ents;

		for (uint32_t i = 0; i < m->st[st].nents; i++, p += SNAP_ENT) {
			uint64_t loc = le64(p);

			if (loc_off(loc) + (uint64_t)loc_size(loc) >
			    m->packs[loc_pack(loc)]->size)
				return corrupt(e, what,
					       "a page lies outside its pack");
		}
	}
	return 0;
}

static struct map *find_open(struct pgc_store *s, const uint8_t uid[16])
{
	struct map *m;

	must_lock(&s->lock);
	for (m = s->maps; m && memcmp(m->uid, uid, 16); m = m->next)
		;
	if (m)
		m->refs++;
	must_unlock(&s->lock);
	return m;
}

struct map *map_ref(struct map *m)
{
	must_lock(&m->s->lock);
	m->refs++;
	must_unlock(&m->s->lock);
	return m;
}

void map_unref(struct map *m)
{
	struct map *base, **at;
	struct pgc_store *s;
	bool last;

	if (!m)
		return;
	s = m->s;
	must_lock(&s->lock);
	last = --m->refs == 0;
	if (last) {
		for (at = &s->maps; *at && *at != m; at = &(*at)->next)
			;
		if (*at)
			*at = m->next;
	}
	must_unlock(&s->lock);
	if (!last)
		return;
	base = m->base;
	unbind(m);
	map_free(m);
	map_unref(base);
}

// The uid in the first bytes of a snapshot file, unverified: a hint for
// sharing.
static int peek_uid(struct pgc_store *s, const char *path, uint8_t uid[16],
		    struct err *e)
{
	uint8_t *buf;
	size_t len;
	int rc = store_slurp(s, path, SNAP_HEADER, &buf, &len, e);

	if (rc)
		return rc;
	memset(uid, 0, 16);
	if (len == SNAP_HEADER &&
	    le64(buf + 248) == hash64(buf, SNAP_HEADER - 8))
		memcpy(uid, buf + 24, 16);
	free(buf);
	return 0;
}

static int open_path(struct pgc_store *s, const char *path,
		     const struct pgc_id *id, const uint8_t *want_uid,
		     struct map **out, struct err *e);

static int open_base(struct pgc_store *s, struct map *m, const char *what,
		     struct err *e)
{
	char path[64];
	int rc;

	snap_path(path, sizeof(path), &m->base_id);
	rc = open_path(s, path, &m->base_id, m->base_uid, &m->base, e);
	if (rc == -ENOENT || rc == -ESRCH) { // removed: look where it went
		base_path(path, sizeof(path), m->base_uid);
		rc = open_path(s, path, &m->base_id, m->base_uid, &m->base, e);
	}
	if (rc == -ENOENT || rc == -ESRCH)
		return corrupt(e, what, "the map that it builds on is missing");
	if (rc)
		return err_wrap(e, rc, "snapshot %s builds on", what);
	if (m->base->has_base)
		return corrupt(e, what, "the map it builds on is not complete");
	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		if (m->base->st[st].npages != m->st[st].npages)
			return corrupt(e, what,
				       "the map it builds on has another size");
	return 0;
}

// Puts a bound map among the open ones, or drops it for one that came first.
static struct map *share(struct pgc_store *s, struct map *m)
{
	struct map *other;

	must_lock(&s->lock);
	for (other = s->maps; other && memcmp(other->uid, m->uid, 16);
	     other = other->next)
		;
	if (other) {
		other->refs++;
	} else {
		m->next = s->maps;
		s->maps = m;
	}
	must_unlock(&s->lock);
	if (!other)
		return m;
	map_unref(m);
	return other;
}

// want_uid NULL: whatever the name has; else -ESRCH when it has another.
// -ESTALE: packs are missing.
static int open_path(struct pgc_store *s, const char *path,
		     const struct pgc_id *id, const uint8_t *want_uid,
		     struct map **out, struct err *e)
{
	uint8_t uid[16];
	struct map *m;
	int rc = peek_uid(s, path, uid, e);

	if (rc)
		return rc;
	m = find_open(s, uid);
	if (!m) {
		rc = map_read_file(&m, s, path, e);
		if (rc)
			return rc;
		m->s = s;
		if (id && memcmp(m->id.b, id->b, 16))
			rc = corrupt(e, path, "it belongs to another id");
		else if (want_uid && memcmp(m->uid, want_uid, 16))
			rc = -ESRCH;
		else if (want_uid && m->has_base) // a circle would not end
			rc = corrupt(e, path,
				     "it is built on, and is not complete");
		if (!rc)
			rc = bind(s, m, path, e);
		if (!rc && m->has_base)
			rc = open_base(s, m, path, e);
		if (rc) {
			map_unref(m);
			return rc;
		}
		m = share(s, m);
	}
	if (want_uid && memcmp(m->uid, want_uid, 16)) {
		map_unref(m);
		return -ESRCH;
	}
	*out = m;
	return 0;
}

int map_open(struct pgc_store *s, const struct pgc_id *id, struct map **out,
	     struct err *e)
{
	struct err own = ERR_INIT; // tries that fail leave nothing in *e
	char path[64];
	int rc = 0;

	snap_path(path, sizeof(path), id);
	// A collection may move pages to another pack and delete the old one
	// between our reading the file and pinning: then the file is new too.
	for (int tries = 0; tries < 4; tries++) {
		rc = open_path(s, path, id, NULL, out, &own);
		if (rc != -ESTALE)
			break;
	}
	if (rc == -ESTALE)
		rc = -EBADMSG;
	if (rc && e) {
		*e = own;
		e->code = rc;
	}
	return rc;
}

int map_open_base(struct pgc_store *s, const uint8_t uid[16], struct map **out,
		  struct err *e)
{
	char path[64];

	base_path(path, sizeof(path), uid);
	return open_path(s, path, NULL, NULL, out, e);
}

// --- looking up --------------------------------------------------------------

static uint32_t run_at(const struct mstream *t, uint64_t pgno)
{
	uint32_t lo = 0,
		 hi = t->nruns; // runs[lo].start <= pgno < runs[hi].start

	while (hi - lo > 1) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (t->runs[mid].start <= pgno)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

void map_seg(const struct map *m, enum pgc_stream st, uint64_t pgno,
	     struct mseg *out)
{
	const struct mstream *t = &m->st[st];
	uint32_t i = run_at(t, pgno);
	const struct mrun *r = &t->runs[i];
	uint64_t n = t->runs[i + 1].start - pgno;
	bool same = r->kind & RUN_SAME;

	if ((r->kind & 3) == RUN_K_BASE) {
		map_seg(m->base, st, pgno, out);
		out->npages = MIN(out->npages, n);
		out->same = same;
		return;
	}
	*out =
	    (struct mseg){pgno, n, (r->kind & 3) == RUN_K_DATA, same, m, NULL};
	if (out->data)
		out->ents = t->ents + (r->first + (pgno - r->start)) * SNAP_ENT;
}
