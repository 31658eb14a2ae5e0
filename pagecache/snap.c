// Opened snapshots: handles over shared maps, reading pages, names in snaps/.
#include <fcntl.h>
#include <stdlib.h>

#include "pgc_internal.h"

void snap_path(char *dst, size_t n, const struct pgc_id *id)
{
	char hex[33];

	util_hex(hex, id->b, 16);
	snprintf(dst, n, "snaps/%s.snap", hex);
}

void base_path(char *dst, size_t n, const uint8_t uid[16])
{
	char hex[33];

	util_hex(hex, uid, 16);
	snprintf(dst, n, "snaps/%s.base", hex);
}

int pgc_snap_open(struct pgc_store *s, const struct pgc_id *id,
		  struct pgc_snap **out, struct err *e)
{
	struct pgc_snap *sn = calloc(1, sizeof(*sn));
	int rc;

	if (!sn)
		return err_set(e, -ENOMEM, "no memory for a snapshot");
	rc = map_open(s, id, &sn->map, e);
	if (rc) {
		free(sn);
		return rc;
	}
	atomic_init(&sn->refs, 1);
	// A working set only makes a thaw faster: a damaged one counts as none
	// here, and pgc_fsck() tells.
	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		(void)ws_load(s, sn->map, (enum pgc_stream)st, &sn->ws[st],
			      NULL);
	*out = sn;
	return 0;
}

struct pgc_snap *pgc_snap_ref(struct pgc_snap *sn)
{
	atomic_fetch_add(&sn->refs, 1);
	return sn;
}

void pgc_snap_unref(struct pgc_snap *sn)
{
	if (!sn || atomic_fetch_sub(&sn->refs, 1) != 1)
		return;
	map_unref(sn->map);
	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		ws_unref(sn->ws[st]);
	free(sn);
}

const struct pgc_id *pgc_snap_id(const struct pgc_snap *sn)
{
	return &sn->map->id;
}

bool pgc_snap_parent(const struct pgc_snap *sn, struct pgc_id *out)
{
	if (sn->map->has_parent && out)
		*out = sn->map->parent;
	return sn->map->has_parent;
}

uint64_t pgc_snap_pages(const struct pgc_snap *sn, enum pgc_stream st)
{
	return sn->map->st[st].npages;
}

const void *pgc_snap_blob(const struct pgc_snap *sn, const char *name,
			  size_t *len)
{
	for (uint32_t i = 0; i < sn->map->nblobs; i++) {
		const struct mblob *b = &sn->map->blobs[i];

		if (!strcmp(b->name, name)) {
			if (len)
				*len = b->len;
			return b->p;
		}
	}
	return NULL;
}

void pgc_snap_get_stats(const struct pgc_snap *sn, struct pgc_snap_stats *out)
{
	const struct map *m = sn->map;

	memset(out, 0, sizeof(*out));
	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		out->pages[st] = m->st[st].npages;
		out->nonzero[st] = m->st[st].nonzero;
		out->own[st] = m->st[st].own;
	}
	out->stored_bytes = m->stored_bytes;
	out->unique_bytes = m->unique_bytes;
	out->map_bytes = m->len;
	for (int st = 0; st < PGC_NUM_STREAMS; st++)
		out->workset_bytes += sn->ws[st] ? sn->ws[st]->bytes : 0;
}

static enum pgc_run_kind kind_of(const struct map *m, const struct mseg *g)
{
	if (m->has_parent && g->same)
		return PGC_RUN_PARENT;
	return g->data ? PGC_RUN_OWN : PGC_RUN_ZERO;
}

bool pgc_snap_run(const struct pgc_snap *sn, enum pgc_stream st, uint64_t pgno,
		  struct pgc_run *out)
{
	const struct map *m = sn->map;
	uint64_t end = m->st[st].npages;
	struct mseg g;

	if (pgno >= end)
		return false;
	map_seg(m, st, pgno, &g);
	*out = (struct pgc_run){pgno, g.npages, kind_of(m, &g)};
	while (pgno + out->npages < end) {
		map_seg(m, st, pgno + out->npages, &g);
		if (kind_of(m, &g) != out->kind)
			break;
		out->npages += g.npages;
	}
	return true;
}

// --- reading -----------------------------------------------------------------

enum { READ_CHUNK = 256, READ_GAP = 8192 };

static const char *const stream_name[PGC_NUM_STREAMS] = {"memory", "disk"};

static int read_chunk(struct pgc_snap *sn, enum pgc_stream st, uint64_t pgno,
		      uint8_t *dst, size_t n, struct plan *p, uint8_t **buf,
		      size_t *cap, struct err *e)
{
	int rc = 0;

	p->npages = 0;
	plan_add(p, sn->map, st, pgno, n);
	plan_layout(p, READ_GAP);
	if (p->bytes > *cap) {
		free(*buf);
		*buf = malloc(p->bytes);
		*cap = *buf ? p->bytes : 0;
		if (!*buf)
			return err_set(e, -ENOMEM, "no memory to read pages");
	}
	for (uint32_t i = 0; i < p->nreads; i++) {
		const struct plan_read *r = &p->reads[i];

		rc = pack_read(r->pack, r->off, *buf + r->pos, r->len);
		if (rc == -ENODATA)
			rc = err_set(e, -EBADMSG,
				     "pack %016llx is corrupt: it is cut off",
				     (unsigned long long)r->pack->uid);
		else if (rc)
			rc = err_wrap(e, rc, "cannot read pack %016llx",
				      (unsigned long long)r->pack->uid);
		if (rc)
			return rc;
	}
	memset(dst, 0, n * PGC_PAGE);
	for (uint32_t i = 0; i < p->npages; i++) {
		const struct plan_page *g = &p->pages[i];
		const char *why = "";
		char hex[33];

		rc = rec_decode(*buf + g->pos, g->pack->uid, g->loc, g->key,
				dst + (g->pgno - pgno) * PGC_PAGE, &why);
		if (rc) {
			util_hex(hex, sn->map->id.b, 16);
			return err_set(e, rc,
				       "%s page %llu of snapshot %s is "
				       "corrupt: %s (pack %016llx, byte %u)",
				       stream_name[st],
				       (unsigned long long)g->pgno, hex, why,
				       (unsigned long long)g->pack->uid,
				       loc_off(g->loc));
		}
	}
	return 0;
}

int pgc_snap_read(struct pgc_snap *sn, enum pgc_stream st, uint64_t pgno,
		  void *dst, size_t n, struct err *e)
{
	uint64_t npages = sn->map->st[st].npages;
	cleanup_free uint8_t *buf = NULL;
	uint8_t *to = dst;
	size_t cap = 0;
	struct plan p;
	int rc;

	if (pgno > npages || n > npages - pgno)
		return err_set(e, -EINVAL, "pages beyond the end of a stream");
	if (n == 0)
		return 0;
	rc = plan_init(&p, READ_CHUNK);
	if (rc)
		return err_set(e, rc, "no memory to read pages");
	while (n && !rc) {
		size_t k = MIN(n, (size_t)READ_CHUNK);

		rc = read_chunk(sn, st, pgno, to, k, &p, &buf, &cap, e);
		pgno += k;
		to += k * PGC_PAGE;
		n -= k;
	}
	plan_fini(&p);
	return rc;
}

// --- names -------------------------------------------------------------------

struct list_ctx {
	int (*cb)(void *ctx, const struct pgc_id *id);
	void *ctx;
};

static int list_one(void *ctx, const uint8_t name[16])
{
	struct list_ctx *c = ctx;
	struct pgc_id id;

	memcpy(id.b, name, 16);
	return c->cb(c->ctx, &id) ? 1 : 0;
}

int pgc_store_list(struct pgc_store *s,
		   int (*cb)(void *ctx, const struct pgc_id *id), void *ctx,
		   struct err *e)
{
	struct list_ctx c = {cb, ctx};
	int rc = store_each(s, ".snap", list_one, &c, e);

	return rc < 0 ? rc : 0;
}

// The name goes at once, durably; the file stays until collection finds that no
// other map builds on it.
// Not made durable: after a power cut one may be there again.
static int unlink_worksets(struct pgc_store *s, const struct pgc_id *id)
{
	char path[64];
	int rc = 0;

	for (int st = 0; st < PGC_NUM_STREAMS; st++) {
		ws_path(path, sizeof(path), id, (enum pgc_stream)st);
		if (unlinkat(s->dirfd, path, 0) && errno != ENOENT)
			rc = -errno;
	}
	return rc;
}

int pgc_snap_remove(struct pgc_store *s, const struct pgc_id *id, struct err *e)
{
	char from[64], to[64];
	uint8_t uid[16];
	uint8_t *buf;
	size_t len;
	int rc;

	snap_path(from, sizeof(from), id);
	must_lock(&s->names_lock);
	rc = store_slurp(s, from, SNAP_HEADER, &buf, &len, e);
	if (rc) {
		must_unlock(&s->names_lock);
		return rc;
	}
	if (len == SNAP_HEADER &&
	    le64(buf + 248) == hash64(buf, SNAP_HEADER - 8))
		memcpy(uid, buf + 24, 16);
	else
		new_uid128(uid); // damaged: nothing can build on it any more
	free(buf);
	base_path(to, sizeof(to), uid);
	if (renameat(s->dirfd, from, s->dirfd, to))
		rc = err_sys(e, "cannot remove snapshot %s", from);
	if (!rc) {
		rc = store_sync_dir(s->snaps_fd, "snaps", e);
		if (rc) // not known to be durable: it stays, for another try
			(void)renameat(s->dirfd, to, s->dirfd, from);
	}
	if (!rc)
		(void)unlink_worksets(s, id);
	must_unlock(&s->names_lock);
	return rc;
}

int pgc_snap_drop_worksets(struct pgc_store *s, const struct pgc_id *id,
			   struct err *e)
{
	int rc;

	must_lock(&s->names_lock);
	rc = unlink_worksets(s, id);
	must_unlock(&s->names_lock);
	return rc ? err_set(e, rc, "cannot remove a working set: %s",
			    strerror(-rc))
		  : 0;
}
