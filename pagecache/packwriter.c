// Appending records to new packs, in tmp/, until they are published.
//
// A pack's file is written once, front to back: its header's place first, then
// records, at last the header. It is fsynced, renamed into packs/ and the
// folder fsynced before any snapshot refers to it; from then on it never
// changes.
#include <fcntl.h>

#include "pgc_internal.h"

enum {
	PW_BUF = 512 * 1024,
	PW_KICK = 4 * 1024 * 1024, // write-back begins every so many bytes
};

int pw_init(struct packwriter *w, struct pgc_store *s)
{
	memset(w, 0, sizeof(*w));
	w->s = s;
	return 0;
}

static int pw_flush(struct packwriter *w, struct err *e)
{
	int rc =
	    util_pwrite_all(w->cur->fd, w->buf, w->buffered, (off_t)w->flushed);

	if (rc)
		return err_wrap(e, rc, "cannot write pack %016llx",
				(unsigned long long)w->cur->uid);
	w->flushed += w->buffered;
	w->buffered = 0;
	if (w->flushed - w->kicked >= PW_KICK) {
		// Only a hint, so that the fsync at the end finds little left.
		(void)sync_file_range(w->cur->fd, (off_t)w->kicked,
				      (off_t)(w->flushed - w->kicked),
				      SYNC_FILE_RANGE_WRITE);
		w->kicked = w->flushed;
	}
	return 0;
}

static int pw_begin(struct packwriter *w, struct err *e)
{
	cleanup_fd int fd = -1;
	struct pack *p, **grown;
	char path[64];
	uint64_t uid = new_uid64();

	if (!w->buf)
		w->buf = malloc(PW_BUF);
	grown = realloc(w->packs, (w->n + 1) * sizeof(*grown));
	if (grown)
		w->packs = grown;
	if (!w->buf || !grown)
		return err_set(e, -ENOMEM, "no memory for a pack");
	pack_path(path, sizeof(path), "", uid);
	fd = openat(w->s->tmp_fd, path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
		    0600);
	if (fd < 0)
		return err_sys(e, "cannot create pack %s", path);
	p = pack_add(w->s, uid, 0, true);
	if (!p) {
		unlinkat(w->s->tmp_fd, path, 0);
		return err_set(e, -ENOMEM, "no memory for a pack");
	}
	p->fd = fd_steal(&fd);
	w->packs[w->n++] = w->cur = p;
	memset(w->buf, 0, PACK_HEADER);
	w->buffered = PACK_HEADER;
	w->flushed = w->kicked = w->records = 0;
	return 0;
}

int pw_seal(struct packwriter *w, struct err *e)
{
	uint8_t h[PACK_HEADER] = {0};
	struct pack *p = w->cur;
	int rc;

	if (!p)
		return 0;
	p->size = w->flushed + w->buffered;
	p->records = w->records;
	memcpy(h, PACK_MAGIC, 8);
	put_le32(h + 8, FORMAT_VERSION);
	put_le32(h + 12, FORMAT_VERSION);
	put_le64(h + 16, p->uid);
	put_le64(h + 24, p->size);
	put_le64(h + 32, w->records);
	put_le64(h + 56, hash64(h, PACK_HEADER - 8));
	if (w->flushed == 0) {
		memcpy(w->buf, h, PACK_HEADER);
	} else {
		rc = util_pwrite_all(p->fd, h, PACK_HEADER, 0);
		if (rc)
			return err_wrap(e, rc, "cannot write pack %016llx",
					(unsigned long long)p->uid);
	}
	rc = pw_flush(w, e);
	if (rc)
		return rc;
	w->cur = NULL;
	return 0;
}

int pw_append(struct packwriter *w, const struct page_id *id, const void *data,
	      uint32_t len, uint64_t *loc, struct err *e)
{
	size_t need = REC_HEADER + len;
	uint64_t off;
	int rc;

	if (w->cur && w->flushed + w->buffered + need > PACK_MAX) {
		rc = pw_seal(w, e);
		if (rc)
			return rc;
	}
	if (!w->cur) {
		rc = pw_begin(w, e);
		if (rc)
			return rc;
	}
	if (w->buffered + need > PW_BUF) {
		rc = pw_flush(w, e);
		if (rc)
			return rc;
	}
	off = w->flushed + w->buffered;
	rec_make(w->buf + w->buffered, id, data, len, w->cur->uid, off);
	w->buffered += need;
	w->appended += need;
	w->records++;
	*loc = loc_make(w->cur->slot, off, len);
	return 0;
}

static int read_some(struct packwriter *w, uint64_t loc, void *buf, size_t n)
{
	uint64_t off = loc_off(loc);

	for (uint32_t i = 0; i < w->n; i++) {
		if (w->packs[i]->slot != loc_pack(loc))
			continue;
		if (w->packs[i] != w->cur || off < w->flushed)
			return pack_read(w->packs[i], off, buf, n);
		memcpy(buf, w->buf + (off - w->flushed), n);
		return 0;
	}
	return -ENOENT;
}

int pw_read(struct packwriter *w, uint64_t loc, void *buf)
{
	return read_some(w, loc, buf, loc_size(loc));
}

int pw_read_header(struct packwriter *w, uint64_t loc, void *buf)
{
	return read_some(w, loc, buf, REC_HEADER);
}

int pw_publish(struct packwriter *w, struct err *e)
{
	char path[64];
	int rc;

	if (!w->n)
		return 0;
	for (uint32_t i = 0; i < w->n; i++) {
		pack_path(path, sizeof(path), "", w->packs[i]->uid);
		if (fsync(w->packs[i]->fd))
			return err_sys(e, "cannot write pack %s to disk", path);
		if (renameat(w->s->tmp_fd, path, w->s->packs_fd, path))
			return err_sys(e, "cannot publish pack %s", path);
	}
	rc = store_sync_dir(w->s->packs_fd, "packs", e);
	return rc;
}

void pw_release(struct packwriter *w)
{
	must_lock(&w->s->lock);
	for (uint32_t i = 0; i < w->n; i++)
		w->packs[i]->building = false;
	must_unlock(&w->s->lock);
}

void pw_fini(struct packwriter *w, bool published)
{
	char path[64];

	for (uint32_t i = 0; i < w->n; i++) {
		struct pack *p = w->packs[i];

		if (published) {
			pack_unpin(w->s, p);
			continue;
		}
		pack_path(path, sizeof(path), "", p->uid);
		// It is in one of the two places; the other says ENOENT.
		unlinkat(w->s->tmp_fd, path, 0);
		unlinkat(w->s->packs_fd, path, 0);
		pack_drop(w->s, p);
	}
	free(w->packs);
	free(w->buf);
	memset(w, 0, sizeof(*w));
}
