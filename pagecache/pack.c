// The registry of packs: which there are, who pins them, their descriptors.
//
// A pack gets a slot when it is found at open or begun by a builder, and slots
// are not reused: a location that names a collected pack finds NULL, never
// another pack. Whoever follows locations pins the pack first; a pinned pack
// is neither collected nor closed. `touched` is the collection that ran (or had
// last run) at the last unpin: a collection only takes packs that nobody let
// go of since it began, because what let go may have published a reference
// that the collection's survey did not see.
#include <fcntl.h>
#include <sys/stat.h>

#include "pgc_internal.h"

void pack_path(char *dst, size_t n, const char *folder, uint64_t uid)
{
	snprintf(dst, n, "%s%016llx.pack", folder, (unsigned long long)uid);
}

struct pack *pack_add(struct pgc_store *s, uint64_t uid, uint64_t size,
		      bool building)
{
	struct pack *p = calloc(1, sizeof(*p)), **grown;
	uint32_t cap;

	if (!p)
		return NULL;
	p->uid = uid;
	p->size = size;
	p->fd = -1;
	p->building = building;
	p->pins = building ? 1 : 0;
	must_lock(&s->lock);
	if (s->packs.n == s->packs.cap) {
		cap = s->packs.cap ? s->packs.cap * 2 : 64;
		grown = cap <= LOC_PACK_MAX
			    ? realloc(s->packs.slot, cap * sizeof(*grown))
			    : NULL;
		if (!grown) {
			must_unlock(&s->lock);
			free(p);
			return NULL;
		}
		s->packs.slot = grown;
		s->packs.cap = cap;
	}
	if (s->packs.n == 0)
		s->packs.slot[s->packs.n++] = NULL; // slot 0 is never used
	p->slot = s->packs.n;
	s->packs.slot[s->packs.n++] = p;
	must_unlock(&s->lock);
	return p;
}

struct pack *pack_pin(struct pgc_store *s, uint32_t slot)
{
	struct pack *p = NULL;

	must_lock(&s->lock);
	if (slot < s->packs.n)
		p = s->packs.slot[slot];
	if (p && p->building)
		p = NULL;
	if (p)
		p->pins++;
	must_unlock(&s->lock);
	return p;
}

struct pack *pack_pin_uid(struct pgc_store *s, uint64_t uid)
{
	struct pack *p = NULL;

	must_lock(&s->lock);
	for (uint32_t i = 1; i < s->packs.n && !p; i++) {
		struct pack *q = s->packs.slot[i];

		if (q && q->uid == uid && !q->building)
			p = q;
	}
	if (p)
		p->pins++;
	must_unlock(&s->lock);
	return p;
}

void pack_unpin(struct pgc_store *s, struct pack *p)
{
	if (!p)
		return;
	must_lock(&s->lock);
	p->touched = s->gc_gen;
	if (--p->pins == 0)
		fd_close(&p->fd);
	must_unlock(&s->lock);
}

void pack_unpin_quietly(struct pgc_store *s, struct pack *p)
{
	must_lock(&s->lock);
	if (--p->pins == 0)
		fd_close(&p->fd);
	must_unlock(&s->lock);
}

uint64_t pack_peek_records(struct pgc_store *s, uint64_t uid)
{
	cleanup_fd int fd = -1;
	uint8_t h[PACK_HEADER];
	char path[64];

	pack_path(path, sizeof(path), "", uid);
	fd = openat(s->packs_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || util_pread_all(fd, h, sizeof(h), 0) ||
	    le64(h + 56) != hash64(h, PACK_HEADER - 8))
		return 0;
	return le64(h + 32);
}

static int header_check(const uint8_t *h, const struct pack *p, uint64_t size,
			struct err *e)
{
	unsigned long long uid = p->uid;

	if (memcmp(h, PACK_MAGIC, 8) ||
	    le64(h + 56) != hash64(h, PACK_HEADER - 8))
		return err_set(e, -EBADMSG,
			       "pack %016llx is corrupt: its header is damaged",
			       uid);
	if (le32(h + 12) > FORMAT_VERSION || le32(h + 8) < FORMAT_VERSION)
		return err_set(e, -ENOTSUP,
			       "pack %016llx has format version %u (readable "
			       "from %u on); this program reads %u: update it",
			       uid, le32(h + 8), le32(h + 12), FORMAT_VERSION);
	if (le64(h + 16) != p->uid || le64(h + 40) || le64(h + 48))
		return err_set(e, -EBADMSG,
			       "pack %016llx is corrupt: its header belongs "
			       "to another pack",
			       uid);
	if (size > PACK_MAX)
		return err_set(e, -EBADMSG,
			       "pack %016llx is corrupt: it is too long", uid);
	if (le64(h + 24) != size)
		return err_set(e, -EBADMSG,
			       "pack %016llx is corrupt: it has %llu bytes "
			       "instead of %llu",
			       uid, (unsigned long long)size,
			       (unsigned long long)le64(h + 24));
	return 0;
}

static int pack_open_file(struct pgc_store *s, const struct pack *p,
			  struct err *e)
{
	cleanup_fd int fd = -1;
	uint8_t h[PACK_HEADER];
	struct stat sb;
	char path[64];
	int rc;

	pack_path(path, sizeof(path), "", p->uid);
	fd = openat(s->packs_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return errno == ENOENT
			   ? err_set(e, -EBADMSG, "pack %s is missing", path)
			   : err_sys(e, "cannot open pack %s", path);
	if (fstat(fd, &sb))
		return err_sys(e, "cannot examine pack %s", path);
	rc = util_pread_all(fd, h, sizeof(h), 0);
	if (rc == -ENODATA)
		return err_set(e, -EBADMSG, "pack %s is corrupt: it is cut off",
			       path);
	if (rc)
		return err_wrap(e, rc, "cannot read pack %s", path);
	rc = header_check(h, p, (uint64_t)sb.st_size, e);
	return rc ? rc : fd_steal(&fd);
}

int pack_open(struct pgc_store *s, struct pack *p, struct err *e)
{
	int fd, rc = 0;

	must_lock(&s->lock);
	if (p->fd < 0) {
		fd = pack_open_file(s, p, e);
		if (fd < 0)
			rc = fd;
		else
			p->fd = fd;
	}
	must_unlock(&s->lock);
	return rc;
}

uint64_t pack_doom(struct pgc_store *s, struct pack *p, uint64_t gen)
{
	uint64_t size = 0;
	char path[64];

	must_lock(&s->lock);
	if (!p->pins && !p->building && !p->keep && p->touched < gen) {
		s->packs.slot[p->slot] = NULL;
		size = p->size;
	}
	must_unlock(&s->lock);
	if (!size)
		return 0;
	pack_path(path, sizeof(path), "", p->uid);
	if (unlinkat(s->packs_fd, path, 0) && errno != ENOENT)
		size = 0; // found again, and collected, after the next start
	free(p);
	return size;
}

void pack_drop(struct pgc_store *s, struct pack *p)
{
	must_lock(&s->lock);
	s->packs.slot[p->slot] = NULL;
	must_unlock(&s->lock);
	fd_close(&p->fd);
	free(p);
}

int pack_read(const struct pack *p, uint64_t off, void *buf, size_t len)
{
	return util_pread_all(p->fd, buf, len, (off_t)off);
}

enum { SCAN_BUF = 1024 * 1024 };

// One record at buf (avail bytes, all there are): its size, or -EBADMSG.
static int scan_one(const struct pack *p, const uint8_t *buf, size_t avail,
		    uint64_t off, struct rec_info *r)
{
	uint32_t len;

	if (rec_parse(buf, avail, p->uid, off, &r->id, &len))
		return -EBADMSG;
	r->loc = loc_make(p->slot, off, len);
	r->rec = buf;
	return (int)(REC_HEADER + len);
}

int pack_scan(struct pgc_store *s, struct pack *p,
	      int (*cb)(void *ctx, const struct rec_info *r), void *ctx,
	      struct err *e)
{
	cleanup_free uint8_t *buf = malloc(SCAN_BUF);
	uint64_t off = PACK_HEADER, base = PACK_HEADER;
	size_t have = 0;
	int rc = pack_open(s, p, e);

	if (rc)
		return rc;
	if (!buf)
		return err_set(e, -ENOMEM, "no memory to scan a pack");
	while (off < p->size) {
		struct rec_info r;
		int n;

		if (off + REC_HEADER + PGC_PAGE > base + have &&
		    base + have < p->size) {
			base = off;
			have = (size_t)MIN((uint64_t)SCAN_BUF, p->size - base);
			rc = pack_read(p, base, buf, have);
			if (rc)
				return err_wrap(e, rc,
						"cannot read pack %016llx",
						(unsigned long long)p->uid);
		}
		n = scan_one(p, buf + (off - base), (size_t)(base + have - off),
			     off, &r);
		if (n < 0)
			return err_set(e, n,
				       "pack %016llx is corrupt: the record "
				       "at byte %llu is damaged",
				       (unsigned long long)p->uid,
				       (unsigned long long)off);
		rc = cb(ctx, &r);
		if (rc)
			return rc;
		off += (uint64_t)n;
	}
	return 0;
}
