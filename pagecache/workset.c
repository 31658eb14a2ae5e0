// The working set: what a thaw needs, in order of first access, with its pages.
//
// A side file of its snapshot, so that recording it never touches the
// snapshot's own file. It holds the pages a second time, contiguous and in
// the order in which they were needed, sixteen a frame wherever they lie: large
// reads and large decodes instead of small scattered ones, and nothing beside
// what was named. Nothing in it is believed: which pages are zero is the map's
// word, and every page that comes out of a frame is compared with the map's key.
// A file that is not right counts as none, and the pages of a frame that is not
// right are read from the packs instead.
//
// Order. What was named of a cluster comes together, at its first mention:
// neighbours are installed by one call, which costs half.
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
	free(w->frames);
	free(w->pgnos);
	free(w);
}

unsigned ws_frame_pages(const struct workset *w, size_t frame,
			const uint32_t **pgnos)
{
	size_t at = frame * WS_FRAME_PAGES;

	*pgnos = w->pgnos + at;
	return (unsigned)MIN(w->npgnos - at, (size_t)WS_FRAME_PAGES);
}

// Whether a page is not zero; then *key is its key. `g` remembers the last
// stretch, in which the next page often lies.
static bool page_key(const struct map *m, enum pgc_stream st, uint64_t pgno,
		     struct mseg *g, uint64_t *key)
{
	if (!g->npages || pgno < g->pgno || pgno - g->pgno >= g->npages)
		map_seg(m, st, pgno, g);
	if (g->data)
		*key = seg_key(g, pgno - g->pgno);
	return g->data;
}

static unsigned count_data(const struct map *m, enum pgc_stream st,
			   const uint32_t *pgnos, unsigned n, struct mseg *g)
{
	unsigned data = 0;
	uint64_t key;

	for (unsigned i = 0; i < n; i++)
		data += page_key(m, st, pgnos[i] & ~PGC_WRITTEN, g, &key);
	return data;
}

static uint64_t frames_of(uint64_t npages)
{
	return (npages + WS_FRAME_PAGES - 1) / WS_FRAME_PAGES;
}

static uint64_t table_bytes(uint64_t npages)
{
	return npages * sizeof(uint32_t) + frames_of(npages) * WS_ENT;
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
	    n > m->st[st].npages ||
	    le64(h + 48) !=
		ALIGN_UP(WS_HEADER + table_bytes(n), (uint64_t)WS_ALIGN) ||
	    le64(h + 48) > size)
		return ws_bad(e, path, "its length is wrong");
	return memcmp(h + 16, m->uid, 16) ? -ENOENT : 0; // of an older snapshot
}

static bool take_pages(struct workset *w, const uint8_t *p, const struct map *m,
		       enum pgc_stream st, uint8_t *seen)
{
	for (size_t i = 0; i < w->npgnos; i++) {
		uint32_t pgno = le32(p + i * sizeof(pgno)), k;

		w->pgnos[i] = pgno;
		k = pgno & ~PGC_WRITTEN;
		if (k >= m->st[st].npages || seen[k / 8] >> k % 8 & 1)
			return false;
		seen[k / 8] |= (uint8_t)(1u << k % 8);
	}
	return true;
}

static bool take_frames(struct workset *w, const uint8_t *p,
			const struct map *m, enum pgc_stream st, uint64_t *off)
{
	struct mseg g = {0};

	for (size_t i = 0; i < w->n; i++, p += WS_ENT) {
		struct ws_frame *x = &w->frames[i];
		const uint32_t *pgnos;
		unsigned n = ws_frame_pages(w, i, &pgnos), raw;

		raw = count_data(m, st, pgnos, n, &g) * PGC_PAGE;
		*x = (struct ws_frame){
		    .len = le32(p) & ~WS_RAW,
		    .raw = le32(p) & WS_RAW,
		    .check = le32(p + 4),
		    .off = *off,
		};
		if (x->len > raw || !x->len != !raw ||
		    x->raw != (x->len == raw && x->len))
			return false;
		*off += x->len;
	}
	return true;
}

static int take_table(struct workset *w, const uint8_t *h, const uint8_t *table,
		      const struct map *m, enum pgc_stream st, const char *path,
		      struct err *e)
{
	cleanup_free uint8_t *seen = calloc(1, m->st[st].npages / 8 + 1);
	uint64_t off = le64(h + 48);
	uint8_t sum[16];

	w->npgnos = le32(h + 36);
	w->n = frames_of(w->npgnos);
	hash128(sum, table, table_bytes(w->npgnos));
	if (memcmp(sum, h + 56, 16))
		return ws_bad(e, path, "its checksum does not match");
	w->frames = malloc(w->n * sizeof(*w->frames) + 1);
	w->pgnos = malloc(w->npgnos * sizeof(*w->pgnos) + 1);
	if (!seen || !w->frames || !w->pgnos)
		return err_set(e, -ENOMEM, "no memory for a working set");
	if (!take_pages(w, table, m, st, seen) ||
	    !take_frames(w, table + w->npgnos * sizeof(*w->pgnos), m, st, &off))
		return ws_bad(e, path, "an entry makes no sense");
	if (ALIGN_UP(off, (uint64_t)WS_ALIGN) != le64(h + 40))
		return ws_bad(e, path, "its length is wrong");
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
	len = table_bytes(le32(h + 36));
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

int ws_decode(const struct map *m, enum pgc_stream st, const struct workset *w,
	      size_t frame, const uint8_t *data, uint8_t *pages,
	      const char **why)
{
	const struct ws_frame *x = &w->frames[frame];
	const uint32_t *pgnos;
	unsigned n = ws_frame_pages(w, frame, &pgnos);
	struct mseg g = {0};
	int raw = (int)count_data(m, st, pgnos, n, &g) * PGC_PAGE;

	*why = "its compressed data is damaged";
	if (x->raw)
		memcpy(pages, data, x->len);
	else if (x->len &&
		 LZ4_decompress_safe((const char *)data, (char *)pages,
				     (int)x->len, raw) != raw)
		return -EBADMSG;
	*why = "a page does not match its checksum";
	for (unsigned i = 0; i < n; i++) {
		uint64_t key;

		if (!page_key(m, st, pgnos[i] & ~PGC_WRITTEN, &g, &key))
			continue;
		if (page_id_of(pages).lo != key)
			return -EBADMSG;
		pages += PGC_PAGE;
	}
	return 0;
}

int ws_verify(struct pgc_store *s, const struct map *m, enum pgc_stream st,
	      struct err *e)
{
	cleanup_free uint8_t *pages = malloc(2 * WS_FRAME_MAX);
	struct workset *w = NULL;
	char path[64];
	int rc = pages ? ws_load(s, m, st, &w, e) : -ENOMEM;

	if (rc)
		return rc;
	(void)fcntl(w->fd, F_SETFL, 0);
	ws_path(path, sizeof(path), &m->id, st);
	for (size_t i = 0; i < w->n && !rc; i++) {
		const struct ws_frame *x = &w->frames[i];
		uint8_t *data = pages + WS_FRAME_MAX;
		const char *why = "it cannot be read";

		rc = util_pread_all(w->fd, data, x->len, (off_t)x->off);
		if (!rc && x->check != (uint32_t)hash64(data, x->len))
			rc = ws_bad(e, path, "a frame is damaged");
		else if (rc || ws_decode(m, st, w, i, data, pages, &why))
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
	struct workset w;      // its list and frames
	uint64_t off, flushed; // file offsets
	uint64_t data;	       // where the frames begin
	uint8_t *buf;	       // bytes [flushed, off)
	uint8_t pages[WS_FRAME_MAX];
};

enum {
	WRITE_BUF = 1 << 20,
	GROUP = PGC_CLUSTER_PAGES,
	SPARSE = 4, // pages named of a cluster: with more, all of it is
};

// Marks what is named: two bits a page, named and written.
static int mark_pages(uint8_t *marks, uint64_t npages, const uint32_t *pgnos,
		      size_t n, struct err *e)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t pgno = pgnos[i] & ~PGC_WRITTEN;

		if (pgno >= npages)
			return err_set(e, -EINVAL,
				       "working set page %u is beyond the end",
				       pgno);
		marks[pgno] |= pgnos[i] & PGC_WRITTEN ? 3 : 1;
	}
	return 0;
}

// What is meant of the cluster from `first`: a mark for each of its pages. Where
// many are named the rest comes, too: it costs little beside them, the next
// clone may need it, and a whole cluster is read, decoded and given in one go.
static unsigned fill_group(uint8_t *marks, uint64_t first, uint64_t npages)
{
	uint64_t end = MIN(first + GROUP, npages);
	unsigned named = 0;

	for (uint64_t k = first; k < end; k++)
		named += marks[k] != 0;
	for (uint64_t k = first; k < end && named > SPARSE; k++)
		marks[k] |= 1;
	return named;
}

// The list: clusters in order of first mention, in each what is meant of it.
static int list_pages(struct ws_writer *w, const uint32_t *pgnos, size_t n,
		      struct err *e)
{
	uint64_t npages = w->snap.map->st[w->st].npages;
	cleanup_free uint8_t *marks = calloc(1, npages + 1);
	struct workset *ws = &w->w;
	// Of a cluster one page at least is named.
	size_t max = MIN((uint64_t)n * GROUP, npages);
	int rc;

	ws->pgnos = calloc(max + 1, sizeof(*ws->pgnos));
	ws->frames = calloc(frames_of(max) + 1, sizeof(*ws->frames));
	if (!marks || !ws->pgnos || !ws->frames)
		return err_set(e, -ENOMEM, "no memory for a working set");
	rc = mark_pages(marks, npages, pgnos, n, e);
	for (size_t i = 0; i < n && !rc; i++) {
		uint32_t first = (pgnos[i] & ~PGC_WRITTEN) / GROUP * GROUP;

		if (!fill_group(marks, first, npages))
			continue; // it is in the list
		for (uint32_t k = first; k < first + GROUP && k < npages; k++) {
			if (marks[k])
				ws->pgnos[ws->npgnos++] =
				    k | (marks[k] & 2 ? PGC_WRITTEN : 0);
			marks[k] = 0;
		}
	}
	ws->n = frames_of(ws->npgnos);
	return rc;
}

static int flush(struct ws_writer *w, struct err *e)
{
	int rc = util_pwrite_all(w->fd, w->buf, w->off - w->flushed,
				 (off_t)w->flushed);

	w->flushed = w->off;
	return rc ? err_wrap(e, rc, "cannot write a working set") : 0;
}

// Reads the frame's pages that are not zero, one after the other, neighbours
// together; *raw: how many bytes.
static int read_pages(struct ws_writer *w, const uint32_t *pgnos, unsigned n,
		      uint32_t *raw, struct err *e)
{
	struct mseg g = {0};
	uint64_t key;
	int rc = 0;

	*raw = 0;
	for (unsigned i = 0, k; i < n && !rc; i += k) {
		uint32_t pgno = pgnos[i] & ~PGC_WRITTEN;

		k = 1;
		if (!page_key(w->snap.map, w->st, pgno, &g, &key))
			continue;
		while (i + k < n && (pgnos[i + k] & ~PGC_WRITTEN) == pgno + k &&
		       pgno + k < g.pgno + g.npages)
			k++;
		rc =
		    pgc_snap_read(&w->snap, w->st, pgno, w->pages + *raw, k, e);
		*raw += k * PGC_PAGE;
	}
	return rc;
}

static int put_frame(struct ws_writer *w, size_t frame, struct err *e)
{
	struct ws_frame *x = &w->w.frames[frame];
	const uint32_t *pgnos;
	unsigned n = ws_frame_pages(&w->w, frame, &pgnos);
	uint8_t *to = w->buf + (w->off - w->flushed);
	uint32_t raw;
	int rc = read_pages(w, pgnos, n, &raw, e), len;

	x->off = w->off;
	if (rc || !raw)
		return rc;
	len = LZ4_compress_default((const char *)w->pages, (char *)to, (int)raw,
				   (int)raw - 1);
	x->raw = len <= 0;
	x->len = x->raw ? raw : (uint32_t)len;
	if (x->raw)
		memcpy(to, w->pages, raw);
	x->check = (uint32_t)hash64(to, x->len);
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
	for (size_t i = 0; i < w->w.npgnos; i++, p += sizeof(uint32_t))
		put_le32(p, w->w.pgnos[i]);
	for (size_t i = 0; i < w->w.n; i++, p += WS_ENT) {
		const struct ws_frame *x = &w->w.frames[i];

		put_le32(p, x->len | (x->raw ? WS_RAW : 0));
		put_le32(p + 4, x->check);
	}
	memcpy(buf, WS_MAGIC, 8);
	put_le32(buf + 8, WS_VERSION);
	put_le32(buf + 12, WS_VERSION);
	memcpy(buf + 16, w->snap.map->uid, 16);
	put_le32(buf + 32, (uint32_t)w->st);
	put_le32(buf + 36, (uint32_t)w->w.npgnos);
	put_le64(buf + 40, w->off);
	put_le64(buf + 48, w->data);
	hash128(buf + 56, buf + WS_HEADER, table_bytes(w->w.npgnos));
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
	w->data =
	    ALIGN_UP(WS_HEADER + table_bytes(w->w.npgnos), (uint64_t)WS_ALIGN);
	w->off = w->flushed = w->data;
	for (size_t i = 0; i < w->w.n && !rc; i++)
		rc = put_frame(w, i, e);
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
	rc = list_pages(w, pgnos, n, e);
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
	free(w->w.pgnos);
	free(w->w.frames);
	free(w);
	return rc;
}

size_t pgc_snap_workset(const struct pgc_snap *sn, enum pgc_stream st,
			const uint32_t **pgnos)
{
	*pgnos = sn->ws[st] ? sn->ws[st]->pgnos : NULL;
	return sn->ws[st] ? sn->ws[st]->npgnos : 0;
}
