// The working set: which pages a thaw needs, in order of first access. A side
// file of its snapshot, so that recording it never touches the snapshot's own
// file.
#include <fcntl.h>
#include <stdlib.h>

#include "pgc_internal.h"

void ws_path(char *dst, size_t n, const struct pgc_id *id, enum pgc_stream st)
{
	static const char *const tail[PGC_NUM_STREAMS] = {"mem", "disk"};
	char hex[33];

	util_hex(hex, id->b, 16);
	snprintf(dst, n, "snaps/%s.%s.ws", hex, tail[st]);
}

static int ws_bad(struct err *e, const char *path, const char *why)
{
	return err_set(e, -EBADMSG,
		       "working set %s is corrupt: %s; record it again", path,
		       why);
}

int ws_load(struct pgc_store *s, const struct map *m, enum pgc_stream st,
	    uint32_t **out, size_t *n, struct err *e)
{
	cleanup_free uint8_t *buf = NULL;
	uint32_t *list;
	char path[64];
	size_t len, count;
	int rc;

	ws_path(path, sizeof(path), &m->id, st);
	rc = store_slurp(s, path, WS_HEADER + 4 * (size_t)m->st[st].npages + 1,
			 &buf, &len, e);
	if (rc)
		return rc;
	if (len < WS_HEADER || memcmp(buf, WS_MAGIC, 8) ||
	    le64(buf + 56) != hash64(buf, WS_HEADER - 8))
		return ws_bad(e, path, "its header is damaged");
	if (le32(buf + 8) != FORMAT_VERSION)
		return err_set(e, -ENOTSUP, "working set %s has version %u",
			       path, le32(buf + 8));
	count = le32(buf + 12);
	if (len != WS_HEADER + 4 * count || le32(buf + 32) != (uint32_t)st ||
	    le32(buf + 36) || le64(buf + 48))
		return ws_bad(e, path, "its length is wrong");
	if (memcmp(buf + 16, m->uid, 16))
		return -ENOENT; // an older snapshot's of the same name
	if (le64(buf + 40) != hash64(buf + WS_HEADER, 4 * count))
		return ws_bad(e, path, "its checksum does not match");
	list = malloc(4 * count + 4);
	if (!list)
		return err_set(e, -ENOMEM, "no memory for a working set");
	for (size_t i = 0; i < count; i++) {
		list[i] = le32(buf + WS_HEADER + 4 * i);
		if (list[i] >= m->st[st].npages) {
			free(list);
			return ws_bad(e, path, "a page number is too large");
		}
	}
	*out = list;
	*n = count;
	return 0;
}

static uint8_t *ws_build(const struct map *m, enum pgc_stream st,
			 const uint32_t *pgnos, size_t n)
{
	uint8_t *buf = calloc(1, WS_HEADER + 4 * n);

	if (!buf)
		return NULL;
	memcpy(buf, WS_MAGIC, 8);
	put_le32(buf + 8, FORMAT_VERSION);
	put_le32(buf + 12, (uint32_t)n);
	memcpy(buf + 16, m->uid, 16);
	put_le32(buf + 32, (uint32_t)st);
	for (size_t i = 0; i < n; i++)
		put_le32(buf + WS_HEADER + 4 * i, pgnos[i]);
	put_le64(buf + 40, hash64(buf + WS_HEADER, 4 * n));
	put_le64(buf + 56, hash64(buf, WS_HEADER - 8));
	return buf;
}

static int ws_publish(struct pgc_store *s, const struct map *m,
		      enum pgc_stream st, const uint8_t *buf, size_t len,
		      struct err *e)
{
	char tmp[64], path[64], snap[64];
	int rc;

	snprintf(tmp, sizeof(tmp), "ws.%016llx",
		 (unsigned long long)new_uid64());
	rc = store_write_tmp(s, tmp, buf, len, e);
	if (rc)
		return rc;
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
	if (rc)
		unlinkat(s->tmp_fd, tmp, 0);
	return rc;
}

int pgc_snap_set_workset(struct pgc_store *s, const struct pgc_id *id,
			 enum pgc_stream st, const uint32_t *pgnos, size_t n,
			 struct err *e)
{
	cleanup_free uint8_t *buf = NULL;
	struct map *m;
	int rc = map_open(s, id, &m, e);

	if (rc)
		return rc;
	if (n > m->st[st].npages)
		rc =
		    err_set(e, -EINVAL, "a working set longer than its stream");
	for (size_t i = 0; i < n && !rc; i++)
		if (pgnos[i] >= m->st[st].npages)
			rc = err_set(e, -EINVAL,
				     "working set page %u is beyond the end",
				     pgnos[i]);
	if (!rc) {
		buf = ws_build(m, st, pgnos, n);
		rc = buf ? ws_publish(s, m, st, buf, WS_HEADER + 4 * n, e)
			 : err_set(e, -ENOMEM, "no memory for a working set");
	}
	map_unref(m);
	return rc;
}
