// The store's folder: opening, locking, recovering; small file helpers.
//
//	lock           flock()ed by the one process that has the store open
//	index          page id -> location; may be lost (index.c)
//	packs/UID.pack pages (pack.c)
//	snaps/ID.snap  a published snapshot (map.c)
//	snaps/ID.mem.ws, ID.disk.ws  its working sets (workset.c)
//	snaps/UID.base a removed snapshot that others build on
//	tmp/           what is not published yet; emptied at open
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "pgc_internal.h"

// --- file helpers ------------------------------------------------------------

int store_sync_dir(int fd, const char *what, struct err *e)
{
	return fsync(fd) ? err_sys(e, "cannot write folder %s to disk", what)
			 : 0;
}

int store_write_tmp(struct pgc_store *s, const char *name, const void *buf,
		    size_t len, struct err *e)
{
	cleanup_fd int fd = openat(
	    s->tmp_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int rc;

	if (fd < 0)
		return err_sys(e, "cannot create tmp/%s", name);
	rc = util_write_all(fd, buf, len);
	if (rc)
		rc = err_wrap(e, rc, "cannot write tmp/%s", name);
	else if (fsync(fd))
		rc = err_sys(e, "cannot write tmp/%s to disk", name);
	if (rc)
		unlinkat(s->tmp_fd, name, 0);
	return rc;
}

int store_slurp(struct pgc_store *s, const char *path, size_t max,
		uint8_t **buf, size_t *len, struct err *e)
{
	cleanup_fd int fd =
	    openat(s->dirfd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat sb;
	uint8_t *p;
	int rc;

	if (fd < 0)
		return err_sys(e, "cannot open %s", path);
	if (fstat(fd, &sb))
		return err_sys(e, "cannot examine %s", path);
	*len = MIN((size_t)sb.st_size, max);
	p = malloc(*len + 1);
	if (!p)
		return err_set(e, -ENOMEM, "no memory to read %s", path);
	rc = util_pread_all(fd, p, *len, 0);
	if (rc) {
		free(p);
		return err_wrap(e, rc, "cannot read %s", path);
	}
	*buf = p;
	return 0;
}

static DIR *open_dir(int at, const char *name, struct err *e)
{
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);

	if (!d) {
		err_sys(e, "cannot list folder %s", name);
		fd_close(&fd);
	}
	return d;
}

// Parses HEX(2n digits)SUFFIX.
static bool parse_name(const char *name, void *bytes, size_t n,
		       const char *suffix)
{
	char hex[33];

	if (strlen(name) != 2 * n + strlen(suffix) ||
	    strcmp(name + 2 * n, suffix))
		return false;
	memcpy(hex, name, 2 * n);
	hex[2 * n] = '\0';
	return !util_unhex(bytes, n, hex);
}

int store_each(struct pgc_store *s, const char *suffix,
	       int (*cb)(void *ctx, const uint8_t name[16]), void *ctx,
	       struct err *e)
{
	DIR *d = open_dir(s->dirfd, "snaps", e);
	struct dirent *de;
	uint8_t name[16];
	int rc = 0;

	if (!d)
		return e ? e->code : -EIO;
	while (!rc && (de = readdir(d)))
		if (parse_name(de->d_name, name, 16, suffix))
			rc = cb(ctx, name);
	closedir(d);
	return rc;
}

// --- opening -----------------------------------------------------------------

static int open_folder(struct pgc_store *s, const char *name, int *fd,
		       struct err *e)
{
	if (mkdirat(s->dirfd, name, 0700) && errno != EEXIST)
		return err_sys(e, "cannot make %s/%s", s->dir, name);
	*fd = openat(s->dirfd, name,
		     O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	return *fd < 0 ? err_sys(e, "cannot open %s/%s", s->dir, name) : 0;
}

static int open_folders(struct pgc_store *s, struct err *e)
{
	int rc;

	if (mkdir(s->dir, 0700) && errno != EEXIST)
		return err_sys(e, "cannot make the store %s", s->dir);
	s->dirfd = open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->dirfd < 0)
		return err_sys(e, "cannot open the store %s", s->dir);
	s->lock_fd = openat(s->dirfd, "lock",
			    O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (s->lock_fd < 0)
		return err_sys(e, "cannot open %s/lock", s->dir);
	if (flock(s->lock_fd, LOCK_EX | LOCK_NB))
		return errno == EWOULDBLOCK
			   ? err_set(e, -EBUSY,
				     "the store %s is in use by another "
				     "process; stop that one first",
				     s->dir)
			   : err_sys(e, "cannot lock the store %s", s->dir);
	rc = open_folder(s, "packs", &s->packs_fd, e);
	if (!rc)
		rc = open_folder(s, "snaps", &s->snaps_fd, e);
	if (!rc)
		rc = open_folder(s, "tmp", &s->tmp_fd, e);
	return rc ? rc : store_sync_dir(s->dirfd, s->dir, e);
}

static int empty_tmp(struct pgc_store *s, struct err *e)
{
	DIR *d = open_dir(s->dirfd, "tmp", e);
	struct dirent *de;

	if (!d)
		return e ? e->code : -EIO;
	while ((de = readdir(d)))
		if (strcmp(de->d_name, ".") && strcmp(de->d_name, ".."))
			unlinkat(s->tmp_fd, de->d_name, 0);
	closedir(d);
	return 0;
}

static int by_u64(const void *pa, const void *pb)
{
	uint64_t a = *(const uint64_t *)pa, b = *(const uint64_t *)pb;

	return a < b ? -1 : a > b;
}

// In order of uid, so that what follows from it is reproducible.
static int list_packs(struct pgc_store *s, uint64_t **out, size_t *n,
		      struct err *e)
{
	DIR *d = open_dir(s->dirfd, "packs", e);
	uint64_t *all = NULL, *grown;
	struct dirent *de;
	size_t cap = 0;
	uint8_t b[8];

	if (!d)
		return e ? e->code : -EIO;
	*n = 0;
	while ((de = readdir(d))) {
		if (!parse_name(de->d_name, b, 8, ".pack"))
			continue;
		if (*n == cap) {
			cap = cap ? cap * 2 : 64;
			grown = realloc(all, cap * sizeof(*all));
			if (!grown) {
				free(all);
				closedir(d);
				return err_set(e, -ENOMEM,
					       "no memory to list packs");
			}
			all = grown;
		}
		all[*n] = 0;
		for (int i = 0; i < 8; i++)
			all[*n] = all[*n] << 8 | b[i];
		++*n;
	}
	closedir(d);
	if (*n)
		qsort(all, *n, sizeof(*all), by_u64);
	*out = all;
	return 0;
}

static int find_packs(struct pgc_store *s, struct err *e)
{
	cleanup_free uint64_t *uids = NULL;
	size_t n = 0;
	int rc = list_packs(s, &uids, &n, e);

	for (size_t i = 0; i < n && !rc; i++) {
		struct pack *p;
		struct stat sb;
		char path[64];

		pack_path(path, sizeof(path), "", uids[i]);
		if (fstatat(s->packs_fd, path, &sb, AT_SYMLINK_NOFOLLOW))
			return err_sys(e, "cannot examine pack %s", path);
		p = pack_add(s, uids[i], (uint64_t)sb.st_size, false);
		if (!p)
			return err_set(e, -ENOMEM, "no memory for packs");
		p->records = pack_peek_records(s, uids[i]);
	}
	return rc;
}

static int recover(struct pgc_store *s, struct err *e)
{
	struct err ie = ERR_INIT;
	int rc = empty_tmp(s, e), irc;

	if (!rc)
		rc = find_packs(s, e);
	if (rc)
		return rc;
	irc = index_load(s, &ie);
	if (irc && s->opt.keep_index && (irc != -ENOENT || s->packs.n > 1))
		return err_wrap(e, irc, "%s", ie.msg);
	rc = index_catch_up(s, e);
	if (rc)
		return rc;
	// A store that cannot be written to can still be read.
	(void)index_merge(s, irc != 0 && s->packs.n > 1, NULL);
	index_relax(s);
	return 0;
}

int pgc_store_open(struct pgc_store **out, const char *dir,
		   const struct pgc_options *opt, struct err *e)
{
	struct pgc_store *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return err_set(e, -ENOMEM, "no memory for a store");
	s->dirfd = s->packs_fd = s->snaps_fd = s->tmp_fd = s->lock_fd = -1;
	if (opt)
		memcpy(&s->opt, opt, MIN(opt->struct_size, sizeof(s->opt)));
	s->gc_gen = 1;
	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->names_lock, NULL);
	pthread_mutex_init(&s->gc_lock, NULL);
	pthread_mutex_init(&s->merge_lock, NULL);
	rc = index_init(&s->index);
	s->dir = strdup(dir);
	if (rc || !s->dir) {
		pgc_store_close(s);
		return err_set(e, -ENOMEM, "no memory for a store");
	}
	rc = open_folders(s, e);
	if (!rc)
		rc = recover(s, e);
	if (!rc)
		rc = filler_create(&s->filler, s, s->opt.no_uring, e);
	if (rc) {
		pgc_store_close(s);
		return rc;
	}
	*out = s;
	return 0;
}

void pgc_store_close(struct pgc_store *s)
{
	if (!s)
		return;
	filler_destroy(s->filler);
	index_fini(&s->index);
	for (uint32_t i = 1; i < s->packs.n; i++) {
		if (s->packs.slot[i])
			fd_close(&s->packs.slot[i]->fd);
		free(s->packs.slot[i]);
	}
	free(s->packs.slot);
	fd_close(&s->tmp_fd);
	fd_close(&s->snaps_fd);
	fd_close(&s->packs_fd);
	fd_close(&s->dirfd);
	fd_close(&s->lock_fd); // and with it the lock
	pthread_mutex_destroy(&s->lock);
	pthread_mutex_destroy(&s->names_lock);
	pthread_mutex_destroy(&s->gc_lock);
	pthread_mutex_destroy(&s->merge_lock);
	free(s->dir);
	free(s);
}

static void stat_snaps(struct pgc_store *s, struct pgc_store_stats *out)
{
	DIR *d = open_dir(s->dirfd, "snaps", NULL);
	struct dirent *de;
	struct stat sb;
	uint8_t name[16];

	while (d && (de = readdir(d))) {
		size_t len = strlen(de->d_name);

		if (fstatat(s->snaps_fd, de->d_name, &sb,
			    AT_SYMLINK_NOFOLLOW) ||
		    !S_ISREG(sb.st_mode))
			continue;
		if (len > 3 && !strcmp(de->d_name + len - 3, ".ws"))
			out->workset_bytes += (uint64_t)sb.st_size;
		else
			out->map_bytes += (uint64_t)sb.st_size;
		out->snapshots += parse_name(de->d_name, name, 16, ".snap");
	}
	if (d)
		closedir(d);
}

void pgc_store_get_stats(struct pgc_store *s, struct pgc_store_stats *out)
{
	memset(out, 0, sizeof(*out));
	must_lock(&s->lock);
	for (uint32_t i = 1; i < s->packs.n; i++) {
		const struct pack *p = s->packs.slot[i];

		if (!p || p->building)
			continue;
		out->packs++;
		out->pages += p->records;
		out->pack_bytes += p->size;
		out->stored_bytes +=
		    p->size -
		    MIN(p->size, PACK_HEADER + p->records * REC_HEADER);
	}
	must_unlock(&s->lock);
	out->raw_bytes = out->pages * PGC_PAGE;
	pthread_rwlock_rdlock(&s->index.lock);
	out->index_bytes = s->index.map_len;
	pthread_rwlock_unlock(&s->index.lock);
	stat_snaps(s, out);
	out->uring = filler_is_uring(s->filler);
}
