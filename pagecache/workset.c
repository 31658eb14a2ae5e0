// The working set: what a thaw needs, in order of first access, with its pages.
//
// A side file of its snapshot, so that recording it never touches the
// snapshot's own file. It holds the pages a second time, contiguous and in
// the order in which they were needed, a cluster a frame: large reads and large
// decodes instead of small scattered ones. Nothing in it is believed: which
// pages a cluster has is the map's word, and every page that comes out of a
// frame is compared with the map's key. A file that is not right counts as
// none, and a frame that is not right is read from the packs instead.
//
// `written` pages are those that the guest made its own; what reads it must
// not take more from that than a hint.
#include <fcntl.h>
#include <lz4.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "pgc_internal.h"

void ws_path(char *dst, size_t n, const struct pgc_id *id, enum pgc_stream st)
{
	static const char *const tail[PGC_NUM_STREAMS] = {"mem", "disk"};
	char hex[33];

	util_hex(hex, id->b, 16);
	snprintf(dst, n, "snaps/%s.%s.ws", hex, tail[st]);
}

void ws_unref(struct workset *w)
{
	if (!w || atomic_fetch_sub(&w->refs, 1) != 1)
		return;
	fd_close(&w->fd);
	free(w->e);
	free(w->pgnos);
	free(w);
}

static uint64_t clusters_of(const struct map *m, enum pgc_stream st)
{
	return (m->st[st].npages + PGC_CLUSTER_PAGES - 1) / PGC_CLUSTER_PAGES;
}

uint16_t map_cluster(const struct map *m, enum pgc_stream st, uint64_t cluster)
{
	uint64_t first = cluster * PGC_CLUSTER_PAGES, at = first;
	uint64_t end = MIN(first + PGC_CLUSTER_PAGES, m->st[st].npages);
	uint32_t mask = 0;

	while (at < end) {
		struct mseg g;
		uint64_t k;

		map_seg(m, st, at, &g);
		k = MIN(g.npages, end - at);
		if (g.data)
			mask |= ((1u << k) - 1) << (at - first);
		at += k;
	}
	return (uint16_t)mask;
}

// --- reading -----------------------------------------------------------------

static int ws_bad(struct err *e, const char *path, const char *why)
{
	return err_set(e, -EBADMSG,
		       "working set %s is corrupt: %s; record it again", path,
		       why);
}

static int check_header(const uint8_t *h, const struct map *m,
			enum pgc_stream st, uint64_t size, const char *path,
			struct err *e)
{
	uint64_t n = le32(h + 36);

	if (memcmp(h, WS_MAGIC, 8))
		return ws_bad(e, path, "its header is damaged");
	if (le32(h + 8) != WS_VERSION || le32(h + 12) > WS_VERSION)
		return err_set(e, -ENOTSUP,
			       "working set %s has version %u; this program "
			       "reads %d: record it again",
			       path, le32(h + 8), WS_VERSION);
	if (le64(h + 120) != hash64(h, WS_HEADER - 8))
		return ws_bad(e, path, "its header is damaged");
	for (unsigned i = 72; i < 120; i++)
		if (h[i])
			return ws_bad(e, path, "reserved bytes are not zero");
	if (le32(h + 32) != (uint32_t)st || le64(h + 40) != size ||
	    n > clusters_of(m, st) ||
	    le64(h + 48) != ALIGN_UP(WS_HEADER + n * WS_ENT, WS_ALIGN) ||
	    le64(h + 48) > size)
		return ws_bad(e, path, "its length is wrong");
	return memcmp(h + 16, m->uid, 16) ? -ENOENT : 0; // of an older snapshot
}

// One entry of the table; `seen` has a byte for each cluster.
static bool take_entry(struct workset *w, const uint8_t *p, const struct map *m,
		       enum pgc_stream st, uint8_t *seen, uint64_t *off)
{
	struct ws_ent *x = &w->e[w->n];
	uint32_t len = le32(p + 4);
	uint64_t first, there;
	uint32_t npages;

	*x = (struct ws_ent){
	    .cluster = le32(p),
	    .len = len & ~WS_RAW,
	    .raw = len & WS_RAW,
	    .named = le16(p + 8),
	    .written = le16(p + 10),
	    .check = le32(p + 12),
	    .off = *off,
	};
	if (x->cluster >= clusters_of(m, st) || seen[x->cluster])
		return false;
	seen[x->cluster] = 1;
	first = (uint64_t)x->cluster * PGC_CLUSTER_PAGES;
	there = MIN(m->st[st].npages - first, (uint64_t)PGC_CLUSTER_PAGES);
	npages = (uint32_t)__builtin_popcount(map_cluster(m, st, x->cluster));
	if ((uint32_t)(x->named | x->written) >> there || !x->named ||
	    (x->written & ~x->named) || x->len > npages * PGC_PAGE ||
	    !x->len != !npages ||
	    x->raw != (x->len == npages * PGC_PAGE && x->len))
		return false;
	*off += x->len;
	w->n++;
	w->npgnos += (size_t)__builtin_popcount(x->named);
	return true;
}

static int take_table(struct workset *w, const uint8_t *h, const uint8_t *table,
		      const struct map *m, enum pgc_stream st, const char *path,
		      struct err *e)
{
	size_t n = le32(h + 36), at = 0;
	uint64_t off = le64(h + 48);
	cleanup_free uint8_t *seen = calloc(1, clusters_of(m, st) + 1);
	uint8_t sum[16];

	hash128(sum, table, n * WS_ENT);
	if (memcmp(sum, h + 56, 16))
		return ws_bad(e, path, "its checksum does not match");
	w->e = calloc(n + 1, sizeof(*w->e));
	if (!seen || !w->e)
		return err_set(e, -ENOMEM, "no memory for a working set");
	for (size_t i = 0; i < n; i++)
		if (!take_entry(w, table + i * WS_ENT, m, st, seen, &off))
			return ws_bad(e, path, "an entry makes no sense");
	if (ALIGN_UP(off, (uint64_t)WS_ALIGN) != le64(h + 40))
		return ws_bad(e, path, "its length is wrong");
	w->pgnos = malloc(w->npgnos * sizeof(*w->pgnos) + 1);
	if (!w->pgnos)
		return err_set(e, -ENOMEM, "no memory for a working set");
	for (size_t i = 0; i < n; i++)
		for (uint32_t k = 0; k < PGC_CLUSTER_PAGES; k++)
			if (w->e[i].named >> k & 1)
				w->pgnos[at++] =
				    (w->e[i].cluster * PGC_CLUSTER_PAGES + k) |
				    (w->e[i].written >> k & 1 ? PGC_WRITTEN
							      : 0);
	return 0;
}

static int ws_read(struct workset *w, const struct map *m, enum pgc_stream st,
		   const char *path, struct err *e)
{
	cleanup_free uint8_t *table = NULL;
	uint8_t h[WS_HEADER];
	struct stat sb;
	size_t len;
	int rc;

	if (fstat(w->fd, &sb))
		return err_sys(e, "cannot examine %s", path);
	rc = util_pread_all(w->fd, h, sizeof(h), 0);
	if (rc == -ENODATA)
		return ws_bad(e, path, "its header is damaged");
	if (!rc)
		rc = check_header(h, m, st, (uint64_t)sb.st_size, path, e);
	if (rc)
		return rc;
	len = le32(h + 36) * (size_t)WS_ENT;
	table = malloc(len + 1);
	if (!table)
		return err_set(e, -ENOMEM, "no memory for a working set");
	rc = util_pread_all(w->fd, table, len, WS_HEADER);
	if (rc)
		return err_wrap(e, rc, "cannot read %s", path);
	w->bytes = (uint64_t)sb.st_size;
	return take_table(w, h, table, m, st, path, e);
}

int ws_load(struct pgc_store *s, const struct map *m, enum pgc_stream st,
	    struct workset **out, struct err *e)
{
	struct workset *w = calloc(1, sizeof(*w));
	char path[64];
	int rc;

	if (!w)
		return err_set(e, -ENOMEM, "no memory for a working set");
	atomic_init(&w->refs, 1);
	ws_path(path, sizeof(path), &m->id, st);
	w->fd = openat(s->dirfd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	rc = w->fd < 0 ? err_sys(e, "cannot open %s", path)
		       : ws_read(w, m, st, path, e);
	if (rc) {
		ws_unref(w);
		return rc;
	}
	// Its frames are read once each, so the page cache would only cost a
	// copy. EINVAL: a file system without direct reads.
	(void)fcntl(w->fd, F_SETFL, O_DIRECT);
	*out = w;
	return 0;
}

int ws_decode(const struct map *m, enum pgc_stream st, const struct ws_ent *x,
	      const uint8_t *data, uint8_t *pages, const char **why)
{
	uint64_t at = (uint64_t)x->cluster * PGC_CLUSTER_PAGES;
	uint64_t end = MIN(at + PGC_CLUSTER_PAGES, m->st[st].npages);
	int raw = __builtin_popcount(map_cluster(m, st, x->cluster)) * PGC_PAGE;

	*why = "its compressed data is damaged";
	if (x->raw)
		memcpy(pages, data, x->len);
	else if (LZ4_decompress_safe((const char *)data, (char *)pages,
				     (int)x->len, raw) != raw)
		return -EBADMSG;
	*why = "a page does not match its checksum";
	while (at < end) {
		struct mseg g;
		uint64_t k;

		map_seg(m, st, at, &g);
		k = MIN(g.npages, end - at);
		for (uint64_t i = 0; g.data && i < k; i++) {
			if (page_id_of(pages).lo != seg_key(&g, i))
				return -EBADMSG;
			pages += PGC_PAGE;
		}
		at += k;
	}
	return 0;
}

int ws_verify(struct pgc_store *s, const struct map *m, enum pgc_stream st,
	      struct err *e)
{
	cleanup_free uint8_t *pages = malloc(2 * WS_FRAME_MAX);
	struct workset *w;
	char path[64];
	int rc = pages ? ws_load(s, m, st, &w, e) : -ENOMEM;

	if (rc)
		return rc;
	(void)fcntl(w->fd, F_SETFL, 0);
	ws_path(path, sizeof(path), &m->id, st);
	for (size_t i = 0; i < w->n && !rc; i++) {
		const struct ws_ent *x = &w->e[i];
		uint8_t *data = pages + WS_FRAME_MAX;
		const char *why = "it cannot be read";

		rc = util_pread_all(w->fd, data, x->len, (off_t)x->off);
		if (!rc && x->check != (uint32_t)hash64(data, x->len))
			rc = ws_bad(e, path, "a frame is damaged");
		else if (rc || ws_decode(m, st, x, data, pages, &why))
			rc = ws_bad(e, path, why);
	}
	ws_unref(w);
	return rc;
}

// --- writing -----------------------------------------------------------------

struct ws_writer {
	struct pgc_store *s;
	struct pgc_snap snap; // of the map alone
	enum pgc_stream st;
	int fd;
	struct ws_ent *e;
	size_t n;
	uint64_t data, off, flushed; // file offsets
	uint8_t *buf;		     // bytes [flushed, off)
	uint8_t pages[WS_FRAME_MAX];
};

enum { WRITE_BUF = 1 << 20 };

// Clusters in order of first mention, with which of their pages are meant.
static int list_clusters(struct ws_writer *w, const uint32_t *pgnos, size_t n,
			 struct err *e)
{
	const struct map *m = w->snap.map;
	uint64_t nclusters = clusters_of(m, w->st);
	cleanup_free uint32_t *at = calloc(nclusters + 1, sizeof(*at));

	w->e = calloc(MIN(n, nclusters) + 1, sizeof(*w->e));
	if (!at || !w->e)
		return err_set(e, -ENOMEM, "no memory for a working set");
	for (size_t i = 0; i < n; i++) {
		uint32_t pgno = pgnos[i] & ~PGC_WRITTEN;
		uint32_t c = pgno / PGC_CLUSTER_PAGES;
		uint16_t bit = (uint16_t)(1u << pgno % PGC_CLUSTER_PAGES);
		struct ws_ent *x;

		if (pgno >= m->st[w->st].npages)
			return err_set(e, -EINVAL,
				       "working set page %u is beyond the end",
				       pgno);
		if (!at[c]) {
			at[c] = (uint32_t)++w->n;
			w->e[w->n - 1].cluster = c;
		}
		x = &w->e[at[c] - 1];
		x->named |= bit;
		x->written |= pgnos[i] & PGC_WRITTEN ? bit : 0;
	}
	return 0;
}

static int flush(struct ws_writer *w, struct err *e)
{
	int rc = util_pwrite_all(w->fd, w->buf, w->off - w->flushed,
				 (off_t)w->flushed);

	w->flushed = w->off;
	return rc ? err_wrap(e, rc, "cannot write a working set") : 0;
}

static int put_frame(struct ws_writer *w, struct ws_ent *x, struct err *e)
{
	const struct map *m = w->snap.map;
	uint64_t first = (uint64_t)x->cluster * PGC_CLUSTER_PAGES;
	uint64_t n =
	    MIN(m->st[w->st].npages - first, (uint64_t)PGC_CLUSTER_PAGES);
	uint16_t mask = map_cluster(m, w->st, x->cluster);
	uint8_t *to = w->buf + (w->off - w->flushed);
	uint32_t raw = 0;
	int rc = pgc_snap_read(&w->snap, w->st, first, w->pages, n, e), len;

	if (rc || !mask)
		return rc;
	for (uint32_t k = 0; k < n; k++) {
		if (!(mask >> k & 1))
			continue;
		memmove(w->pages + raw, w->pages + k * PGC_PAGE, PGC_PAGE);
		raw += PGC_PAGE;
	}
	len = LZ4_compress_default((const char *)w->pages, (char *)to, (int)raw,
				   (int)raw - 1);
	x->raw = len <= 0;
	x->len = x->raw ? raw : (uint32_t)len;
	if (x->raw)
		memcpy(to, w->pages, raw);
	x->check = (uint32_t)hash64(to, x->len);
	x->off = w->off;
	w->off += x->len;
	return w->off - w->flushed > WRITE_BUF - WS_FRAME_MAX ? flush(w, e) : 0;
}

static int put_head(struct ws_writer *w, struct err *e)
{
	cleanup_free uint8_t *buf = calloc(1, w->data);
	uint8_t *p = buf + WS_HEADER;
	int rc;

	if (!buf)
		return err_set(e, -ENOMEM, "no memory for a working set");
	for (size_t i = 0; i < w->n; i++, p += WS_ENT) {
		const struct ws_ent *x = &w->e[i];

		put_le32(p, x->cluster);
		put_le32(p + 4, x->len | (x->raw ? WS_RAW : 0));
		put_le16(p + 8, x->named);
		put_le16(p + 10, x->written);
		put_le32(p + 12, x->check);
	}
	memcpy(buf, WS_MAGIC, 8);
	put_le32(buf + 8, WS_VERSION);
	put_le32(buf + 12, WS_VERSION);
	memcpy(buf + 16, w->snap.map->uid, 16);
	put_le32(buf + 32, (uint32_t)w->st);
	put_le32(buf + 36, (uint32_t)w->n);
	put_le64(buf + 40, w->off);
	put_le64(buf + 48, w->data);
	hash128(buf + 56, buf + WS_HEADER, w->n * WS_ENT);
	put_le64(buf + 120, hash64(buf, WS_HEADER - 8));
	rc = util_pwrite_all(w->fd, buf, w->data, 0);
	return rc ? err_wrap(e, rc, "cannot write a working set") : 0;
}

static int write_file(struct ws_writer *w, struct err *e)
{
	int rc = 0;

	w->buf = malloc(WRITE_BUF + WS_ALIGN);
	if (!w->buf)
		return err_set(e, -ENOMEM, "no memory for a working set");
	w->data = ALIGN_UP(WS_HEADER + w->n * WS_ENT, (uint64_t)WS_ALIGN);
	w->off = w->flushed = w->data;
	for (size_t i = 0; i < w->n && !rc; i++)
		rc = put_frame(w, &w->e[i], e);
	if (!rc) { // whole blocks, for direct reads
		uint64_t end = ALIGN_UP(w->off, (uint64_t)WS_ALIGN);

		memset(w->buf + (w->off - w->flushed), 0, end - w->off);
		w->off = end;
		rc = flush(w, e);
	}
	if (!rc)
		rc = put_head(w, e);
	if (!rc && fsync(w->fd))
		rc = err_sys(e, "cannot write a working set to disk");
	return rc;
}

static int ws_publish(struct pgc_store *s, const struct map *m,
		      enum pgc_stream st, const char *tmp, struct err *e)
{
	char path[64], snap[64];
	int rc;

	ws_path(path, sizeof(path), &m->id, st);
	snap_path(snap, sizeof(snap), &m->id);
	must_lock(&s->names_lock);
	if (faccessat(s->dirfd, snap, F_OK, 0))
		rc = err_set(e, -ENOENT, "snapshot %s was removed", snap);
	else if (renameat(s->tmp_fd, tmp, s->dirfd, path))
		rc = err_sys(e, "cannot publish working set %s", path);
	else
		rc = store_sync_dir(s->snaps_fd, "snaps", e);
	must_unlock(&s->names_lock);
	return rc;
}

int pgc_snap_set_workset(struct pgc_store *s, const struct pgc_id *id,
			 enum pgc_stream st, const uint32_t *pgnos, size_t n,
			 struct err *e)
{
	struct ws_writer *w = calloc(1, sizeof(*w));
	char tmp[64];
	int rc;

	if (!w)
		return err_set(e, -ENOMEM, "no memory for a working set");
	w->s = s;
	w->st = st;
	w->fd = -1;
	rc = map_open(s, id, &w->snap.map, e);
	if (rc) {
		free(w);
		return rc;
	}
	snprintf(tmp, sizeof(tmp), "ws.%016llx",
		 (unsigned long long)new_uid64());
	rc = list_clusters(w, pgnos, n, e);
	if (!rc) {
		w->fd = openat(s->tmp_fd, tmp,
			       O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		rc = w->fd < 0 ? err_sys(e, "cannot create tmp/%s", tmp)
			       : write_file(w, e);
	}
	if (!rc)
		rc = ws_publish(s, w->snap.map, st, tmp, e);
	if (rc && w->fd >= 0)
		unlinkat(s->tmp_fd, tmp, 0);
	fd_close(&w->fd);
	map_unref(w->snap.map);
	free(w->buf);
	free(w->e);
	free(w);
	return rc;
}

size_t pgc_snap_workset(const struct pgc_snap *sn, enum pgc_stream st,
			const uint32_t **pgnos)
{
	*pgnos = sn->ws[st] ? sn->ws[st]->pgnos : NULL;
	return sn->ws[st] ? sn->ws[st]->npgnos : 0;
}
