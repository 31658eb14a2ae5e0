// Collection: frees what no published and no open snapshot refers to.
//
// Marking reads every map, of snapshots and of bases that are still built upon,
// and notes in one bitmap a pack which records are referred to. Then packs
// without any are deleted, and the live records of packs that are mostly dead
// are moved to new packs: new packs are made durable, then each map that refers
// to an old one is replaced by a copy with new locations, then the old packs
// are deleted. At each of these moments every map is right.
//
// Beside it, others pin packs and publish. What they let go of after this
// collection began (pack.touched) it leaves alone: their references may be too
// new for its survey. Pinned packs it leaves alone too.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "pgc_internal.h"

struct mapname { // a map file, by what it may be called
	uint8_t uid[16];
	struct pgc_id id;
	bool is_base;
};

struct mark {
	uint8_t *bits; // one for each 16 bytes of pack; records are longer
	uint64_t live; // bytes of records referred to
	bool moving;
};

struct gc {
	struct pgc_store *s;
	uint64_t gen, freed, added;
	struct mapname *maps;
	size_t nmaps, cap;
	uint8_t *needed; // uids (16 bytes each) that others build on
	size_t nneeded;
	struct mark *marks; // by slot
	uint32_t nslots;
	struct ktab moved; // old location -> new location
	struct packwriter w;
	struct err *e;
};

// --- which maps there are ----------------------------------------------------

static int note_map(struct gc *g, const struct mapname *n)
{
	if (g->nmaps == g->cap) {
		size_t cap = g->cap ? g->cap * 2 : 64;
		struct mapname *grown = realloc(g->maps, cap * sizeof(*grown));

		if (!grown)
			return err_set(g->e, -ENOMEM, "no memory to collect");
		g->maps = grown;
		g->cap = cap;
	}
	g->maps[g->nmaps++] = *n;
	return 0;
}

static int note_needed(struct gc *g, const uint8_t uid[16])
{
	uint8_t *grown = realloc(g->needed, (g->nneeded + 1) * 16);

	if (!grown)
		return err_set(g->e, -ENOMEM, "no memory to collect");
	g->needed = grown;
	memcpy(grown + g->nneeded++ * 16, uid, 16);
	return 0;
}

static bool is_needed(const struct gc *g, const uint8_t uid[16])
{
	for (size_t i = 0; i < g->nneeded; i++)
		if (!memcmp(g->needed + i * 16, uid, 16))
			return true;
	return false;
}

// Unreadable maps stop a collection: what they refer to is not known.
static int see_snap(void *ctx, const uint8_t name[16])
{
	struct gc *g = ctx;
	struct mapname n = {.is_base = false};
	cleanup_free uint8_t *h = NULL;
	char path[64];
	size_t len;
	int rc;

	memcpy(n.id.b, name, 16);
	snap_path(path, sizeof(path), &n.id);
	rc = store_slurp(g->s, path, SNAP_HEADER, &h, &len, g->e);
	if (rc)
		return rc;
	if (len < SNAP_HEADER || le64(h + 248) != hash64(h, SNAP_HEADER - 8))
		return err_set(g->e, -EBADMSG,
			       "cannot collect: snapshot %s is corrupt; remove "
			       "it first",
			       path);
	memcpy(n.uid, h + 24, 16);
	rc = note_map(g, &n);
	if (!rc && (le32(h + 56) & SNAP_F_BASE))
		rc = note_needed(g, h + 96);
	return rc;
}

static int see_base(void *ctx, const uint8_t uid[16])
{
	struct gc *g = ctx;
	struct mapname n = {.is_base = true};
	char path[64];
	uint8_t *h;
	size_t len;

	memcpy(n.uid, uid, 16);
	if (is_needed(g, uid))
		return note_map(g, &n);
	base_path(path, sizeof(path), uid);
	if (!store_slurp(g->s, path, SNAP_HEADER, &h, &len, NULL)) {
		if (len == SNAP_HEADER)
			g->freed += le64(h + 16);
		free(h);
	}
	if (unlinkat(g->s->dirfd, path, 0) && errno != ENOENT)
		return err_sys(g->e, "cannot delete %s", path);
	return 0;
}

static int see_workset(void *ctx, const uint8_t name[16])
{
	struct gc *g = ctx;
	struct pgc_id id;
	char path[64];

	memcpy(id.b, name, 16);
	snap_path(path, sizeof(path), &id);
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		struct stat sb;

		if (!faccessat(g->s->dirfd, path, F_OK, 0) || errno != ENOENT)
			break;
		ws_path(path, sizeof(path), &id, (enum pgc_stream)st);
		if (!fstatat(g->s->dirfd, path, &sb, AT_SYMLINK_NOFOLLOW) &&
		    !unlinkat(g->s->dirfd, path, 0))
			g->freed += (uint64_t)sb.st_size;
		snap_path(path, sizeof(path), &id);
	}
	return 0;
}

// With names_lock: nothing is published or renamed meanwhile, and a base that
// is going to be built upon is open, because its builder has it open.
static int survey(struct gc *g)
{
	struct pgc_store *s = g->s;
	int rc;

	must_lock(&s->names_lock);
	rc = store_each(s, ".snap", see_snap, g, g->e);
	must_lock(&s->lock);
	for (struct map *m = s->maps; m && !rc; m = m->next)
		rc = note_needed(g, m->uid);
	must_unlock(&s->lock);
	if (!rc)
		rc = store_each(s, ".base", see_base, g, g->e);
	// Those whose removal a crash cut short.
	if (!rc)
		rc = store_each(s, ".mem.ws", see_workset, g, g->e);
	if (!rc)
		rc = store_each(s, ".disk.ws", see_workset, g, g->e);
	must_unlock(&s->names_lock);
	return rc ? rc : store_sync_dir(s->snaps_fd, "snaps", g->e);
}

// A removal may have renamed it since the survey.
static int load_map(struct gc *g, const struct mapname *n, struct map **out)
{
	char path[64];
	int rc = -ENOENT;

	if (!n->is_base) {
		snap_path(path, sizeof(path), &n->id);
		rc = map_read_file(out, g->s, path, g->e);
		if (!rc && memcmp((*out)->uid, n->uid, 16)) {
			map_free(*out);
			rc = -ENOENT;
		}
	}
	if (rc == -ENOENT) {
		base_path(path, sizeof(path), n->uid);
		rc = map_read_file(out, g->s, path, g->e);
	}
	return rc;
}

// --- marking -----------------------------------------------------------------

static uint32_t slot_of(struct gc *g, uint64_t uid)
{
	uint32_t k = 0;

	must_lock(&g->s->lock);
	for (uint32_t i = 1; i < g->nslots && !k; i++)
		if (g->s->packs.slot[i] && g->s->packs.slot[i]->uid == uid)
			k = i;
	must_unlock(&g->s->lock);
	return k;
}

static int mark_loc(struct gc *g, uint32_t slot, uint64_t loc)
{
	struct mark *m = &g->marks[slot];
	uint32_t bit = loc_off(loc) / 16;

	if (!m->bits)
		m->bits = calloc(1, PACK_MAX / 16 / 8);
	if (!m->bits)
		return -ENOMEM;
	if (loc_off(loc) >= PACK_MAX)
		return -EBADMSG;
	if (!(m->bits[bit / 8] & 1u << bit % 8)) {
		m->bits[bit / 8] |= (uint8_t)(1u << bit % 8);
		m->live += loc_size(loc);
	}
	return 0;
}

static int mark_map(struct gc *g, const struct map *m)
{
	cleanup_free uint32_t *slots = calloc(m->npacks + 1, sizeof(*slots));
	int rc = slots ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < m->npacks && !rc; i++)
		slots[i] = slot_of(g, m->pack_uids[i]);
	for (int st = 0; st < PGC_NUM_STREAMS && !rc; st++) {
		const uint8_t *p = m->st[st].ents;

		for (uint32_t i = 0; i < m->st[st].nents && !rc;
		     i++, p += SNAP_ENT) {
			uint64_t loc = le64(p);
			uint32_t slot = slots[loc_pack(loc)];

			if (slot) // else the pack is lost: fsck tells
				rc = mark_loc(g, slot, loc);
		}
	}
	return rc ? err_set(g->e, rc,
			    "cannot collect: no memory, or a map "
			    "points beyond its packs")
		  : 0;
}

static int mark_all(struct gc *g)
{
	int rc = 0;

	for (size_t i = 0; i < g->nmaps && !rc; i++) {
		struct map *m;

		rc = load_map(g, &g->maps[i], &m);
		if (rc == -ENOENT) {
			rc = 0; // an unneeded base, gone
			continue;
		}
		if (rc)
			return err_wrap(g->e, rc, "cannot collect");
		rc = mark_map(g, m);
		map_free(m);
	}
	return rc;
}

// --- deleting and moving -----------------------------------------------------

// A pin of ours for a pack that nobody else has or had since we began; else
// NULL.
static struct pack *claim(struct gc *g, uint32_t slot)
{
	struct pack *p;

	must_lock(&g->s->lock);
	p = g->s->packs.slot[slot];
	if (p && (p->building || p->keep || p->pins || p->touched >= g->gen))
		p = NULL;
	if (p)
		p->pins++;
	must_unlock(&g->s->lock);
	return p;
}

static void delete_dead(struct gc *g)
{
	for (uint32_t k = 1; k < g->nslots; k++) {
		struct pack *p;

		if (g->marks[k].live || g->marks[k].moving)
			continue;
		p = claim(g, k);
		if (p) {
			pack_unpin_quietly(g->s, p);
			g->freed += pack_doom(g->s, p, g->gen);
		}
	}
}

struct move_ctx {
	struct gc *g;
	struct mark *mark;
	struct ktab moved;
	uint64_t uid;
	uint8_t page[PGC_PAGE];
};

static int move_one(void *ctx, const struct rec_info *r)
{
	struct move_ctx *c = ctx;
	uint32_t bit = loc_off(r->loc) / 16;
	uint64_t to;
	int rc;

	if (!(c->mark->bits[bit / 8] & 1u << bit % 8))
		return 0;
	if (rec_decode(r->rec, c->uid, r->loc, r->id.lo, c->page, NULL))
		return -EBADMSG; // leave this pack as it is
	rc = pw_append(&c->g->w, &r->id, r->rec + REC_HEADER, loc_len(r->loc),
		       &to, c->g->e);
	return rc ? rc : ktab_add(&c->moved, r->loc, to);
}

// Copies a pack's live records. A damaged pack stays where it is.
static int move_pack(struct gc *g, uint32_t slot)
{
	struct move_ctx c = {.g = g, .mark = &g->marks[slot]};
	struct pack *p = claim(g, slot);
	int rc;

	if (!p)
		return 0;
	c.uid = p->uid;
	rc = pack_scan(g->s, p, move_one, &c, NULL);
	for (size_t i = 0; i < c.moved.cap && !rc; i++)
		if (c.moved.e[i].loc)
			rc = ktab_add(&g->moved, c.moved.e[i].key,
				      c.moved.e[i].loc);
	ktab_free(&c.moved);
	if (rc) {
		pack_unpin_quietly(g->s, p);
		return rc == -EBADMSG ? 0 : rc;
	}
	g->marks[slot].moving = true; // and keeps our pin
	return 0;
}

struct rewrite {
	struct gc *g;
	const struct map *m;
	uint32_t *slots;   // the map's packs -> slots
	uint32_t *new_idx; // slot -> index in uids + 1
	uint64_t *uids;
	uint32_t npacks;
	bool changed;
	uint32_t nslots;
};

static uint64_t relocate(struct rewrite *r, uint64_t loc)
{
	uint32_t slot = r->slots[loc_pack(loc)];
	uint64_t uid = r->m->pack_uids[loc_pack(loc)], to;

	if (slot && r->g->marks[slot].moving &&
	    ktab_find(&r->g->moved, loc_with_pack(loc, slot), &to, 1)) {
		loc = to;
		slot = loc_pack(to);
		for (uint32_t i = 0; i < r->g->w.n; i++)
			if (r->g->w.packs[i]->slot == slot)
				uid = r->g->w.packs[i]->uid;
		r->changed = true;
	}
	if (!slot) { // lost: keep its name
		for (uint32_t i = 0; i < r->npacks; i++)
			if (r->uids[i] == uid)
				return loc_with_pack(loc, i);
		r->uids[r->npacks++] = uid;
		return loc_with_pack(loc, r->npacks - 1);
	}
	if (!r->new_idx[slot]) {
		r->uids[r->npacks++] = uid;
		r->new_idx[slot] = r->npacks;
	}
	return loc_with_pack(loc, r->new_idx[slot] - 1);
}

// The file image of `m` with new locations; *buf NULL when nothing moved.
static int rewrite_map(struct gc *g, const struct map *m, uint8_t **buf,
		       size_t *len)
{
	struct rewrite r = {.g = g, .m = m};
	uint8_t *ents[PGC_NUM_STREAMS] = {NULL, NULL};
	uint32_t *runs[PGC_NUM_STREAMS] = {NULL, NULL};
	struct mapsrc src = {0};
	struct map copy = *m;
	int rc = -ENOMEM;

	*buf = NULL;
	r.nslots = g->nslots + g->w.n + 1;
	must_lock(&g->s->lock);
	r.nslots = MAX(r.nslots, g->s->packs.n);
	must_unlock(&g->s->lock);
	r.slots = calloc(m->npacks + 1, sizeof(*r.slots));
	r.new_idx = calloc(r.nslots, sizeof(*r.new_idx));
	r.uids = calloc(m->npacks + g->w.n + 1, sizeof(*r.uids));
	if (!r.slots || !r.new_idx || !r.uids)
		goto out;
	for (uint32_t i = 0; i < m->npacks; i++)
		r.slots[i] = slot_of(g, m->pack_uids[i]);
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		const struct mstream *t = &m->st[st];

		ents[st] = malloc((size_t)t->nents * SNAP_ENT + 1);
		runs[st] = malloc((size_t)t->nruns * 4 + 4);
		if (!ents[st] || !runs[st])
			goto out;
		for (uint32_t i = 0; i < t->nents; i++) {
			const uint8_t *p = t->ents + (size_t)i * SNAP_ENT;
			uint8_t *q = ents[st] + (size_t)i * SNAP_ENT;

			put_le64(q, relocate(&r, le64(p)));
			memcpy(q + 8, p + 8, 8);
		}
		for (uint32_t i = 0; i < t->nruns; i++)
			runs[st][i] = (t->runs[i].kind & 3) << 28 |
				      (t->runs[i].kind & RUN_SAME) |
				      (t->runs[i + 1].start - t->runs[i].start);
		src.ents[st] = ents[st];
		src.nents[st] = t->nents;
		src.runs[st] = runs[st];
		src.nruns[st] = t->nruns;
	}
	copy.npacks = r.npacks;
	copy.pack_uids = r.uids;
	rc = r.changed ? map_serialise(&copy, &src, buf, len) : 0;
out:
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		free(ents[st]);
		free(runs[st]);
	}
	free(r.slots);
	free(r.new_idx);
	free(r.uids);
	return rc ? err_set(g->e, rc, "no memory to collect") : 0;
}

static bool has_uid(struct gc *g, const char *path, const uint8_t uid[16])
{
	cleanup_free uint8_t *h = NULL;
	size_t len;

	return !store_slurp(g->s, path, SNAP_HEADER, &h, &len, NULL) &&
	       len == SNAP_HEADER && !memcmp(h + 24, uid, 16);
}

// Puts the new image in the map's place, wherever a removal has put that.
static int replace_map(struct gc *g, const struct mapname *n,
		       const uint8_t *buf, size_t len)
{
	struct pgc_store *s = g->s;
	char tmp[64], path[64];
	int rc;

	snprintf(tmp, sizeof(tmp), "gc.%016llx",
		 (unsigned long long)new_uid64());
	rc = store_write_tmp(s, tmp, buf, len, g->e);
	if (rc)
		return rc;
	must_lock(&s->names_lock);
	snap_path(path, sizeof(path), &n->id);
	if (n->is_base || !has_uid(g, path, n->uid))
		base_path(path, sizeof(path), n->uid);
	if (!has_uid(g, path, n->uid))
		unlinkat(s->tmp_fd, tmp, 0);
	else if (renameat(s->tmp_fd, tmp, s->dirfd, path))
		rc = err_sys(g->e, "cannot replace %s", path);
	must_unlock(&s->names_lock);
	if (rc)
		unlinkat(s->tmp_fd, tmp, 0);
	return rc;
}

static int replace_maps(struct gc *g)
{
	int rc = 0;

	for (size_t i = 0; i < g->nmaps && !rc; i++) {
		struct map *m;
		uint8_t *buf;
		size_t len;

		rc = load_map(g, &g->maps[i], &m);
		if (rc == -ENOENT) {
			rc = 0;
			continue;
		}
		if (rc)
			break;
		rc = rewrite_map(g, m, &buf, &len);
		map_free(m);
		if (!rc && buf)
			rc = replace_map(g, &g->maps[i], buf, len);
		free(buf);
	}
	return rc ? rc : store_sync_dir(g->s->snaps_fd, "snaps", g->e);
}

static int catch_new(struct gc *g)
{
	struct ktab t = {0};
	int rc = 0;

	for (size_t i = 0; i < g->moved.cap && !rc; i++) {
		uint8_t rec[REC_HEADER];
		uint64_t to = g->moved.e[i].loc;

		if (to && !pw_read_header(&g->w, to, rec))
			rc = ktab_add(&t, le64(rec), to);
	}
	if (!rc)
		rc = index_take(g->s, &t, g->w.packs, g->w.n);
	ktab_free(&t);
	return rc;
}

// Moves what lives in mostly dead packs, then deletes those.
static int compact(struct gc *g)
{
	int rc = pw_init(&g->w, g->s);
	bool published = false;

	for (uint32_t k = 1; k < g->nslots && !rc; k++) {
		struct pack *p;
		uint64_t size;

		must_lock(&g->s->lock);
		p = g->s->packs.slot[k];
		size = p && !p->building ? p->size : 0;
		must_unlock(&g->s->lock);
		if (p && g->marks[k].live && g->marks[k].live < size / 2)
			rc = move_pack(g, k);
	}
	if (!rc)
		rc = pw_seal(&g->w, g->e);
	if (!rc && g->w.n) {
		rc = pw_publish(&g->w, g->e);
		published = !rc;
	}
	if (published) {
		pw_release(&g->w);
		g->added = g->w.appended + (uint64_t)g->w.n * PACK_HEADER;
		(void)catch_new(g); // what is missed is scanned at next start
		rc = replace_maps(g);
	}
	for (uint32_t k = 1; k < g->nslots; k++) {
		struct pack *p;

		if (!g->marks[k].moving)
			continue;
		must_lock(&g->s->lock);
		p = g->s->packs.slot[k];
		must_unlock(&g->s->lock);
		pack_unpin_quietly(g->s, p);
		if (!rc)
			g->freed += pack_doom(g->s, p, g->gen);
	}
	pw_fini(&g->w, published);
	return rc;
}

static void gc_fini(struct gc *g)
{
	for (uint32_t k = 0; g->marks && k < g->nslots; k++)
		free(g->marks[k].bits);
	free(g->marks);
	free(g->maps);
	free(g->needed);
	ktab_free(&g->moved);
}

int pgc_gc(struct pgc_store *s, uint64_t *freed_bytes, struct err *e)
{
	struct err own = ERR_INIT;
	struct gc g = {.s = s, .e = e ? e : &own};
	int rc;

	must_lock(&s->gc_lock);
	must_lock(&s->lock);
	g.gen = ++s->gc_gen;
	g.nslots = s->packs.n;
	must_unlock(&s->lock);
	g.marks = calloc((size_t)g.nslots + 1, sizeof(*g.marks));
	rc = g.marks ? survey(&g) : err_set(e, -ENOMEM, "no memory to collect");
	if (!rc)
		rc = mark_all(&g);
	if (pgc_test_hooks.gc_marked)
		pgc_test_hooks.gc_marked(pgc_test_hooks.gc_ctx);
	if (!rc) {
		delete_dead(&g);
		rc = compact(&g);
	}
	if (!rc)
		(void)index_merge(s, false, NULL);
	index_relax(s);
	gc_fini(&g);
	must_unlock(&s->gc_lock);
	if (freed_bytes)
		*freed_bytes = g.freed > g.added ? g.freed - g.added : 0;
	return rc;
}
