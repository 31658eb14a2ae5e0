// Publishing a snapshot: packs to disk and into packs/, then the map, whose
// rename into snaps/ is the one moment at which the snapshot begins to exist.
//
// After a crash before it, tmp/ is emptied at the next start and packs that
// nobody refers to are collected. Nothing is ever repaired.
#include <fcntl.h>
#include <stdlib.h>

#include "builder.h"

// --- the set of locations, for unique_bytes ----------------------------------

struct locset {
	uint64_t *e;
	size_t n, cap;
	uint64_t bytes;
};

static int locset_grow(struct locset *t)
{
	size_t cap = t->cap ? t->cap * 2 : 4096, mask = cap - 1;
	uint64_t *e = calloc(cap, sizeof(*e));

	if (!e)
		return -ENOMEM;
	for (size_t k = 0; k < t->cap; k++) {
		size_t i = (size_t)(t->e[k] * 0x9e3779b97f4a7c15u >> 20);

		if (!t->e[k])
			continue;
		while (e[i & mask])
			i++;
		e[i & mask] = t->e[k];
	}
	free(t->e);
	t->e = e;
	t->cap = cap;
	return 0;
}

static int locset_add(struct locset *t, uint64_t loc)
{
	size_t i = (size_t)(loc * 0x9e3779b97f4a7c15u >> 20);

	if (t->n >= t->cap / 2 && locset_grow(t))
		return -ENOMEM;
	for (; t->e[i & (t->cap - 1)]; i++)
		if (t->e[i & (t->cap - 1)] == loc)
			return 0;
	t->e[i & (t->cap - 1)] = loc;
	t->n++;
	t->bytes += loc_len(loc);
	return 0;
}

// --- emitting a map ----------------------------------------------------------

struct emit {
	struct pgc_builder *b;
	const struct map *base; // NULL: a complete map
	struct locset seen;
	uint32_t *pack_of; // slot -> index in uids + 1
	uint64_t *uids;
	uint32_t npacks, nslots;
	uint32_t *runs[PGC_NUM_STREAMS];
	uint32_t nruns[PGC_NUM_STREAMS];
	size_t run_cap[PGC_NUM_STREAMS];
	uint8_t *ents[PGC_NUM_STREAMS];
	uint32_t nents[PGC_NUM_STREAMS];
	size_t ent_cap[PGC_NUM_STREAMS];
	uint64_t own[PGC_NUM_STREAMS], nonzero[PGC_NUM_STREAMS];
	int rc;
};

static void emit_fini(struct emit *em)
{
	free(em->seen.e);
	free(em->pack_of);
	free(em->uids);
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		free(em->runs[st]);
		free(em->ents[st]);
	}
	memset(em, 0, sizeof(*em));
}

static int emit_init(struct emit *em, struct pgc_builder *b,
		     const struct map *base)
{
	memset(em, 0, sizeof(*em));
	em->b = b;
	em->base = base;
	must_lock(&b->s->lock);
	em->nslots = b->s->packs.n; // none is referred to that comes later
	must_unlock(&b->s->lock);
	em->pack_of = calloc((size_t)em->nslots + 1, sizeof(*em->pack_of));
	em->uids = calloc((size_t)em->nslots + 1, sizeof(*em->uids));
	em->rc = em->pack_of && em->uids ? 0 : -ENOMEM;
	return em->rc;
}

static void emit_run(struct emit *em, enum pgc_stream st, uint32_t kind,
		     uint64_t n)
{
	uint32_t *last, v = (kind & 3) << 28 | (kind & RUN_SAME);

	if (em->rc || !n)
		return;
	last = em->nruns[st] ? &em->runs[st][em->nruns[st] - 1] : NULL;
	if (last && (*last & ~0x7ffffffu) == v) {
		*last += (uint32_t)n;
		return;
	}
	if (em->nruns[st] == em->run_cap[st]) {
		size_t cap = em->run_cap[st] ? em->run_cap[st] * 2 : 256;
		uint32_t *grown = realloc(em->runs[st], cap * sizeof(*grown));

		if (!grown) {
			em->rc = -ENOMEM;
			return;
		}
		em->runs[st] = grown;
		em->run_cap[st] = cap;
	}
	em->runs[st][em->nruns[st]++] = v | (uint32_t)n;
}

static uint32_t emit_pack(struct emit *em, uint32_t slot, uint64_t uid)
{
	if (!em->pack_of[slot]) {
		em->uids[em->npacks++] = uid;
		em->pack_of[slot] = em->npacks;
	}
	return em->pack_of[slot] - 1;
}

static void emit_ent(struct emit *em, enum pgc_stream st, uint64_t loc,
		     uint64_t key, uint64_t uid)
{
	uint8_t *p;

	if (em->rc)
		return;
	if (em->nents[st] == em->ent_cap[st]) {
		size_t cap = em->ent_cap[st] ? em->ent_cap[st] * 2 : 1024;
		uint8_t *grown = realloc(em->ents[st], cap * SNAP_ENT);

		if (!grown) {
			em->rc = -ENOMEM;
			return;
		}
		em->ents[st] = grown;
		em->ent_cap[st] = cap;
	}
	p = em->ents[st] + (size_t)em->nents[st]++ * SNAP_ENT;
	put_le64(p, loc_with_pack(loc, emit_pack(em, loc_pack(loc), uid)));
	put_le64(p + 8, key);
}

static void emit_seen(struct emit *em, enum pgc_stream st, uint64_t loc)
{
	em->nonzero[st]++;
	if (!em->rc)
		em->rc = locset_add(&em->seen, loc);
}

// Pages that were not put: the parent's.
static void emit_inherited(struct emit *em, enum pgc_stream st, uint64_t pgno,
			   uint64_t n)
{
	const struct map *parent = em->b->parent;

	if (!parent) {
		emit_run(em, st, RUN_K_ZERO, n);
		return;
	}
	while (n && !em->rc) {
		struct mseg g;
		uint64_t k;

		map_seg(parent, st, pgno, &g);
		k = MIN(g.npages, n);
		for (uint64_t i = 0; g.data && i < k; i++)
			emit_seen(em, st, seg_loc(&g, i));
		if (em->base && g.owner == em->base) {
			emit_run(em, st, RUN_K_BASE | RUN_SAME, k);
		} else if (!g.data) {
			emit_run(em, st, RUN_K_ZERO | RUN_SAME, k);
		} else {
			emit_run(em, st, RUN_K_DATA | RUN_SAME, k);
			for (uint64_t i = 0; i < k; i++)
				emit_ent(em, st, seg_loc(&g, i), seg_key(&g, i),
					 seg_pack(&g, i)->uid);
		}
		pgno += k;
		n -= k;
	}
}

static uint64_t uid_of_slot(struct pgc_builder *b, uint32_t slot)
{
	for (uint32_t i = 0; i < b->w.n; i++)
		if (b->w.packs[i]->slot == slot)
			return b->w.packs[i]->uid;
	return slot < b->npins && b->pins[slot] ? b->pins[slot]->uid : 0;
}

static void emit_put(struct emit *em, enum pgc_stream st, uint64_t pgno,
		     const struct bent *ent)
{
	bool zero = ent->loc == LOC_ZERO, same = false;
	uint32_t kind = zero ? RUN_K_ZERO : RUN_K_DATA;
	struct mseg g = {0};

	if (!zero)
		emit_seen(em, st, ent->loc);
	if (em->b->parent) {
		map_seg(em->b->parent, st, pgno, &g);
		same = g.data ? !zero && seg_loc(&g, 0) == ent->loc : zero;
	}
	if (!em->b->parent ? !zero : !same)
		em->own[st]++;
	if (same && em->base && g.owner == em->base) {
		emit_run(em, st, RUN_K_BASE | RUN_SAME, 1);
		return;
	}
	emit_run(em, st, same ? kind | RUN_SAME : kind, 1);
	if (!zero)
		emit_ent(em, st, ent->loc, ent->key,
			 same ? seg_pack(&g, 0)->uid
			      : uid_of_slot(em->b, loc_pack(ent->loc)));
}

static void emit_stream(struct emit *em, enum pgc_stream st)
{
	struct pgc_builder *b = em->b;
	uint64_t npages = b->npages[st];

	for (uint64_t at = 0; at < npages && !em->rc; at += BCHUNK) {
		uint64_t n = MIN(npages - at, (uint64_t)BCHUNK);
		const struct bent *ents = b->chunks[st][at / BCHUNK];

		if (!ents) {
			emit_inherited(em, st, at, n);
			continue;
		}
		for (uint64_t i = 0; i < n; i++) {
			if (ents[i].loc == LOC_UNSET)
				emit_inherited(em, st, at + i, 1);
			else
				emit_put(em, st, at + i, &ents[i]);
		}
	}
}

static int emit_all(struct emit *em, struct pgc_builder *b)
{
	const struct map *base = NULL;
	uint64_t ents = 0, nonzero = 0;

	if (b->parent)
		base = b->parent->base ? b->parent->base : b->parent;
	for (;;) {
		if (!emit_init(em, b, base))
			for (int st = 0; st < PGC_NUM_STREAMS; st++)
				emit_stream(em, (enum pgc_stream)st);
		for (int st = 0; st < PGC_NUM_STREAMS; st++) {
			ents += em->nents[st];
			nonzero += em->nonzero[st];
		}
		// A map that repeats most of its base gains nothing from it,
		// and would keep it from being collected.
		if (em->rc || !base || ents <= nonzero / 2)
			return em->rc;
		emit_fini(em);
		base = NULL;
		ents = nonzero = 0;
	}
}

static int build_map(struct pgc_builder *b, uint8_t **buf, size_t *len)
{
	struct emit em;
	struct mapsrc src;
	struct map m;
	int rc = emit_all(&em, b);

	if (rc) {
		emit_fini(&em);
		return rc;
	}
	memset(&m, 0, sizeof(m));
	new_uid128(m.uid);
	m.id = b->id;
	m.has_parent = b->parent != NULL;
	if (b->parent)
		m.parent = b->parent->id;
	m.has_base = em.base != NULL;
	if (em.base) {
		m.base_id = em.base->id;
		memcpy(m.base_uid, em.base->uid, 16);
	}
	m.stored_bytes = b->w.appended;
	m.unique_bytes = em.seen.bytes;
	m.npacks = em.npacks;
	m.pack_uids = em.uids;
	m.nblobs = b->nblobs;
	m.blobs = b->blobs;
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		m.st[st].npages = b->npages[st];
		m.st[st].nonzero = em.nonzero[st];
		m.st[st].own = em.own[st];
		src.runs[st] = em.runs[st];
		src.nruns[st] = em.nruns[st];
		src.ents[st] = em.ents[st];
		src.nents[st] = em.nents[st];
	}
	rc = map_serialise(&m, &src, buf, len);
	emit_fini(&em);
	return rc;
}

// --- publishing --------------------------------------------------------------

// names_lock is held. When the folder cannot be synced, the name is taken back;
// if that cannot be made durable either, the packs stay until the next start,
// because the name may reappear.
static int name_it(struct pgc_builder *b, const char *tmp, bool *keep,
		   struct err *e)
{
	struct pgc_store *s = b->s;
	char path[64];
	int rc;

	snap_path(path, sizeof(path), &b->id);
	if (!faccessat(s->dirfd, path, F_OK, 0))
		return err_set(e, -EEXIST, "snapshot %s exists already", path);
	if (renameat(s->tmp_fd, tmp, s->dirfd, path))
		return err_sys(e, "cannot publish snapshot %s", path);
	rc = store_sync_dir(s->snaps_fd, "snaps", e);
	if (rc) {
		*keep = unlinkat(s->dirfd, path, 0) ||
			store_sync_dir(s->snaps_fd, "snaps", NULL);
		return rc;
	}
	return 0;
}

static int publish(struct pgc_builder *b, bool *keep, struct err *e)
{
	struct pgc_store *s = b->s;
	uint8_t *buf = NULL;
	char tmp[64];
	size_t len;
	int rc = pw_seal(&b->w, e);

	if (!rc)
		rc = pw_publish(&b->w, e);
	if (rc)
		return rc;
	rc = build_map(b, &buf, &len);
	if (rc)
		return err_set(e, rc, "no memory for the snapshot's map");
	snprintf(tmp, sizeof(tmp), "snap.%016llx",
		 (unsigned long long)new_uid64());
	rc = store_write_tmp(s, tmp, buf, len, e);
	free(buf);
	if (rc)
		return rc;
	must_lock(&s->names_lock);
	rc = name_it(b, tmp, keep, e);
	must_unlock(&s->names_lock);
	if (rc)
		unlinkat(s->tmp_fd, tmp, 0);
	return rc;
}

int pgc_builder_commit(struct pgc_builder *b, struct err *e)
{
	struct pgc_store *s = b->s;
	bool keep = false;
	int rc;

	if (b->broken) {
		rc = err_set(e, b->broken,
			     "this snapshot failed before; begin it anew");
		builder_free(b, false);
		return rc;
	}
	rc = publish(b, &keep, e);
	if (rc && !keep) {
		builder_free(b, false);
		return rc;
	}
	for (uint32_t i = 0; keep && i < b->w.n; i++)
		b->w.packs[i]->keep = true;
	pw_release(&b->w);
	// The index only serves deduplication: what it cannot take in now is
	// scanned at the next start.
	if (!rc && !index_take(s, &b->own, b->w.packs, b->w.n))
		(void)index_merge(s, false, NULL);
	builder_free(b, true);
	return rc;
}
