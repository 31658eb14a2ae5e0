// Putting pages: zero test, hash, deduplicate, compress, append.
//
// A page is deduplicated against, in this order, the parent's page of the same
// number, what this builder stored, and the index. Keys only propose: the old
// record is read, verified and compared byte by byte. Whatever a builder refers
// to is pinned until its snapshot is published, so that collection beside it
// takes nothing away. What two builders store at the same time is not
// deduplicated between them.
#include <fcntl.h>
#include <stdlib.h>

#include "builder.h"

enum { WINDOW = 128 * 1024 };

static int check_begin(struct pgc_store *s, const struct pgc_id *id,
		       const uint64_t *npages, struct err *e)
{
	char path[64];

	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		if (npages[st] > PGC_STREAM_MAX_PAGES)
			return err_set(e, -EINVAL,
				       "a stream of %llu pages is too long "
				       "(at most %u)",
				       (unsigned long long)npages[st],
				       PGC_STREAM_MAX_PAGES);
	snap_path(path, sizeof(path), id);
	if (!faccessat(s->dirfd, path, F_OK, 0))
		return err_set(e, -EEXIST, "snapshot %s exists already", path);
	return 0;
}

int pgc_builder_begin(struct pgc_store *s, const struct pgc_id *id,
		      const struct pgc_id *parent,
		      const uint64_t npages[PGC_NUM_STREAMS],
		      struct pgc_builder **out, struct err *e)
{
	struct pgc_builder *b;
	int rc = check_begin(s, id, npages, e);

	if (rc)
		return rc;
	b = calloc(1, sizeof(*b));
	if (!b)
		return err_set(e, -ENOMEM, "no memory for a builder");
	b->s = s;
	b->id = *id;
	must_lock(&s->lock);
	s->builders++;
	must_unlock(&s->lock);
	rc = pw_init(&b->w, s);
	if (!rc && parent)
		rc = map_open(s, parent, &b->parent, e);
	for (int st = 0; st < PGC_NUM_STREAMS && !rc; st++) {
		b->npages[st] = npages[st];
		if (b->parent && b->parent->st[st].npages != npages[st])
			rc = err_set(
			    e, -EINVAL,
			    "a snapshot must be as long as its parent "
			    "(%llu pages, not %llu)",
			    (unsigned long long)b->parent->st[st].npages,
			    (unsigned long long)npages[st]);
		b->chunks[st] =
		    calloc(bchunks(npages[st]) + 1, sizeof(*b->chunks[st]));
		if (!b->chunks[st])
			rc = err_set(e, -ENOMEM, "no memory for a builder");
	}
	b->win = rc ? NULL : malloc(WINDOW);
	if (!rc && !b->win)
		rc = err_set(e, -ENOMEM, "no memory for a builder");
	if (rc) {
		builder_free(b, false);
		return rc;
	}
	*out = b;
	return 0;
}

void builder_free(struct pgc_builder *b, bool published)
{
	bool last;

	pw_fini(&b->w, published);
	for (uint32_t i = 0; i < b->npins; i++)
		pack_unpin(b->s, b->pins[i]);
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		for (uint64_t c = 0;
		     b->chunks[st] && c < bchunks(b->npages[st]); c++)
			free(b->chunks[st][c]);
		free(b->chunks[st]);
	}
	for (uint32_t i = 0; i < b->nblobs; i++)
		free((void *)(uintptr_t)b->blobs[i].p);
	free(b->blobs);
	free(b->pins);
	free(b->win);
	ktab_free(&b->own);
	map_unref(b->parent);
	must_lock(&b->s->lock);
	last = --b->s->builders == 0;
	must_unlock(&b->s->lock);
	if (last)
		index_relax(b->s);
	free(b);
}

void pgc_builder_abort(struct pgc_builder *b)
{
	if (b)
		builder_free(b, false);
}

// The pack at `slot`, pinned by this builder; NULL when it is gone.
static struct pack *pin(struct pgc_builder *b, uint32_t slot)
{
	struct pack **grown;
	uint32_t n;

	if (slot >= b->npins) {
		n = ALIGN_UP(slot + 1, 64u);
		grown = realloc(b->pins, n * sizeof(*grown));
		if (!grown)
			return NULL;
		memset(grown + b->npins, 0, (n - b->npins) * sizeof(*grown));
		b->pins = grown;
		b->npins = n;
	}
	if (!b->pins[slot]) {
		struct pack *p = pack_pin(b->s, slot);

		if (p && pack_open(b->s, p, NULL)) {
			pack_unpin(b->s, p);
			p = NULL;
		}
		b->pins[slot] = p;
	}
	return b->pins[slot];
}

// The bytes of a published record. Neighbours of the last one are read
// together: an image that repeats another one asks for them in order.
static const uint8_t *fetch(struct pgc_builder *b, const struct pack *p,
			    uint64_t loc)
{
	uint32_t off = loc_off(loc), size = loc_size(loc);
	uint32_t end = b->win_off + b->win_len, want = size;

	if (off + (uint64_t)size > p->size)
		return NULL;
	if (b->win_slot == p->slot && off >= b->win_off && off + size <= end)
		return b->win + (off - b->win_off);
	if (b->win_slot == p->slot && off >= b->win_off && off <= end + WINDOW)
		want = (uint32_t)MIN((uint64_t)WINDOW, p->size - off);
	b->win_slot = 0;
	if (pack_read(p, off, b->win, want))
		return NULL;
	b->win_slot = p->slot;
	b->win_off = off;
	b->win_len = want;
	return b->win;
}

// Is the record at loc this very page? One that cannot be read or is corrupt is
// not: the page is then stored anew.
static bool same_page(struct pgc_builder *b, uint64_t loc, uint64_t key,
		      const void *page)
{
	const struct pack *p = NULL;
	const uint8_t *rec;
	uint64_t uid = 0;

	for (uint32_t i = 0; i < b->w.n && !uid; i++)
		if (b->w.packs[i]->slot == loc_pack(loc))
			uid = b->w.packs[i]->uid;
	if (uid) {
		rec = pw_read(&b->w, loc, b->rec) ? NULL : b->rec;
	} else {
		p = pin(b, loc_pack(loc));
		if (!p)
			return false;
		uid = p->uid;
		rec = fetch(b, p, loc);
	}
	return rec && !rec_decode(rec, uid, loc, key, b->page, NULL) &&
	       !memcmp(b->page, page, PGC_PAGE);
}

static uint64_t find_same(struct pgc_builder *b, enum pgc_stream st,
			  uint64_t pgno, uint64_t key, const void *page)
{
	uint64_t locs[INDEX_MAX_CANDIDATES];
	struct mseg g;
	size_t n;

	if (b->parent) {
		map_seg(b->parent, st, pgno, &g);
		if (g.data && seg_key(&g, 0) == key &&
		    same_page(b, seg_loc(&g, 0), key, page))
			return seg_loc(&g, 0);
	}
	n = ktab_find(&b->own, key, locs, ARRAY_SIZE(locs));
	for (size_t i = 0; i < n; i++)
		if (same_page(b, locs[i], key, page))
			return locs[i];
	n = index_find(b->s, key, locs);
	for (size_t i = 0; i < n; i++)
		if (same_page(b, locs[i], key, page))
			return locs[i];
	return 0;
}

static struct bent *entry(struct pgc_builder *b, enum pgc_stream st,
			  uint64_t pgno)
{
	struct bent **c = &b->chunks[st][pgno / BCHUNK];

	if (!*c)
		*c = calloc(BCHUNK, sizeof(**c));
	return *c ? *c + pgno % BCHUNK : NULL;
}

static int put_one(struct pgc_builder *b, enum pgc_stream st, uint64_t pgno,
		   const uint8_t *page, struct err *e)
{
	struct bent *ent = entry(b, st, pgno);
	uint8_t data[PGC_PAGE];
	struct page_id id;
	uint64_t loc;
	uint32_t len;
	int rc;

	if (!ent)
		return err_set(e, -ENOMEM, "no memory for a builder");
	if (page_is_zero(page)) {
		*ent = (struct bent){LOC_ZERO, 0};
		return 0;
	}
	id = page_id_of(page);
	loc = find_same(b, st, pgno, id.lo, page);
	if (!loc) {
		len = page_encode(data, page);
		rc = pw_append(&b->w, &id, data, len, &loc, e);
		if (rc)
			return rc;
		rc = ktab_add(&b->own, id.lo, loc);
		if (rc)
			return err_set(e, rc, "no memory for a builder");
	}
	*ent = (struct bent){loc, id.lo};
	return 0;
}

static int check_range(struct pgc_builder *b, enum pgc_stream st, uint64_t pgno,
		       uint64_t n, struct err *e)
{
	if (b->broken)
		return err_set(e, b->broken,
			       "this snapshot failed before; begin it anew");
	if ((unsigned)st >= PGC_NUM_STREAMS || pgno > b->npages[st] ||
	    n > b->npages[st] - pgno)
		return err_set(e, -EINVAL, "pages beyond the end of a stream");
	return 0;
}

int pgc_builder_put(struct pgc_builder *b, enum pgc_stream st, uint64_t pgno,
		    const void *pages, size_t n, struct err *e)
{
	const uint8_t *p = pages;
	int rc = check_range(b, st, pgno, n, e);

	if (rc)
		return rc;
	for (size_t i = 0; i < n && !rc; i++)
		rc = put_one(b, st, pgno + i, p + i * PGC_PAGE, e);
	b->broken = rc;
	return rc;
}

int pgc_builder_ref(struct pgc_builder *b, enum pgc_stream st, uint64_t pgno,
		    uint64_t n, const struct pgc_snap *from, struct err *e)
{
	uint64_t end = pgno + n;
	int rc = check_range(b, st, pgno, n, e);

	if (rc)
		return rc;
	if (end > from->map->st[st].npages)
		return err_set(e, -EINVAL,
			       "pages beyond the end of the other snapshot");
	while (pgno < end) {
		struct mseg g;
		uint64_t k;

		map_seg(from->map, st, pgno, &g);
		k = MIN(g.npages, end - pgno);
		for (uint64_t i = 0; i < k; i++) {
			struct bent *ent = entry(b, st, pgno + i);

			if (!ent ||
			    (g.data && !pin(b, loc_pack(seg_loc(&g, i))))) {
				b->broken = -ENOMEM;
				return err_set(e, -ENOMEM,
					       "no memory for a builder");
			}
			*ent = g.data ? (struct bent){seg_loc(&g, i),
						      seg_key(&g, i)}
				      : (struct bent){LOC_ZERO, 0};
		}
		pgno += k;
	}
	return 0;
}

int pgc_builder_blob(struct pgc_builder *b, const char *name, const void *p,
		     size_t len, struct err *e)
{
	struct mblob *grown, *at = NULL;
	uint8_t *copy;

	if (!name[0] || strlen(name) >= SNAP_BLOB_NAME || len > PGC_BLOB_MAX)
		return err_set(e, -EINVAL,
			       "blob names have 1 to %d characters, blobs at "
			       "most %d bytes",
			       SNAP_BLOB_NAME - 1, PGC_BLOB_MAX);
	for (uint32_t i = 0; i < b->nblobs; i++)
		if (!strcmp(b->blobs[i].name, name))
			at = &b->blobs[i];
	if (!at && b->nblobs == SNAP_MAX_BLOBS)
		return err_set(e, -E2BIG, "at most %d blobs in a snapshot",
			       SNAP_MAX_BLOBS);
	copy = malloc(len + 1);
	grown =
	    at ? b->blobs : realloc(b->blobs, (b->nblobs + 1) * sizeof(*grown));
	if (grown)
		b->blobs = grown;
	if (!copy || !grown) {
		free(copy);
		return err_set(e, -ENOMEM, "no memory for a blob");
	}
	if (len)
		memcpy(copy, p, len);
	if (!at) {
		at = &b->blobs[b->nblobs++];
		memset(at, 0, sizeof(*at));
		strcpy(at->name, name); // fits: its length was checked
	}
	free((void *)(uintptr_t)at->p);
	at->p = copy;
	at->len = len;
	return 0;
}
