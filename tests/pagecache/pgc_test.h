// Shared by the store's tests: temporary stores, page patterns, short cuts.
#ifndef PGC_TEST_H
#define PGC_TEST_H

#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "pgc_internal.h"

#define ok(expr)                                                             \
	do {                                                                 \
		struct err ok_e = ERR_INIT;                                  \
		struct err *e = &ok_e;                                       \
		int ok_rc = (expr);                                          \
		cr_assert_eq(ok_rc, 0, "%s: %d %s", #expr, ok_rc, ok_e.msg); \
	} while (0)

// snprintf() that must fit.
__attribute__((format(printf, 3, 4))) static inline void
text(char *dst, size_t n, const char *fmt, ...)
{
	va_list ap;
	int k;

	va_start(ap, fmt);
	k = vsnprintf(dst, n, fmt, ap);
	va_end(ap);
	cr_assert(k >= 0 && (size_t)k < n);
}

static inline int rm_one(const char *p, const struct stat *sb, int t,
			 struct FTW *f)
{
	(void)sb;
	(void)t;
	(void)f;
	return remove(p);
}

static inline void rm_tree(const char *dir)
{
	nftw(dir, rm_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline char *tmp_store(void)
{
	static char dir[64];
	const char *base = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm";

	text(dir, sizeof(dir), "%s/pgc-XXXXXX", base);
	cr_assert(mkdtemp(dir));
	return dir;
}

static inline struct pgc_store *open_store(const char *dir)
{
	struct pgc_store *s = NULL;

	ok(pgc_store_open(&s, dir, NULL, e));
	return s;
}

static inline struct pgc_id id_of(unsigned n)
{
	struct pgc_id id = {{0x11, 0x22}};

	id.b[14] = (uint8_t)(n >> 8);
	id.b[15] = (uint8_t)n;
	return id;
}

// Page of a kind by seed: incompressible, text-like, sparse, or zero.
enum pattern { RANDOM, TEXT, SPARSE, ZERO };
static inline void fill_page(uint8_t *p, enum pattern k, uint64_t seed)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;

	memset(p, 0, PGC_PAGE);
	for (size_t i = 0; k != ZERO && i < PGC_PAGE; i += 8) {
		uint64_t v;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		v = k == RANDOM ? x
		    : k == TEXT ? 0x6161616161616161u + (x & 0x0f0003000f)
				: (i % 512 == 0 ? x : 0);
		memcpy(p + i, &v, 8);
	}
}

// `n` different pages of one kind; no two salts have a page in common.
static inline uint8_t *many(enum pattern k, uint64_t n, uint64_t salt)
{
	uint8_t *p = malloc(n * PGC_PAGE);

	cr_assert(p);
	for (uint64_t i = 0; i < n; i++)
		fill_page(p + i * PGC_PAGE, k, i + salt * 77777 + 1);
	return p;
}

// The page of a mixed stream: kinds alternate, every seventh repeats page 3's.
static inline void mixed_page(uint8_t *p, uint64_t pgno, uint64_t salt)
{
	if (pgno % 7 == 6)
		fill_page(p, TEXT, 3);
	else
		fill_page(p, (enum pattern)(pgno % 4), pgno + salt * 100003);
}

static inline uint8_t *mixed(uint64_t n, uint64_t salt)
{
	uint8_t *p = malloc(n * PGC_PAGE + 1);

	cr_assert(p);
	for (uint64_t i = 0; i < n; i++)
		mixed_page(p + i * PGC_PAGE, i, salt);
	return p;
}

// Publishes a snapshot with `n` memory pages from `pages` and, if disk, the
// same pages reversed as its disk.
static inline void publish(struct pgc_store *s, const struct pgc_id *id,
			   const struct pgc_id *parent, const uint8_t *pages,
			   uint64_t n, bool disk)
{
	uint64_t np[2] = {n, disk ? n : 0};
	struct pgc_builder *b;

	ok(pgc_builder_begin(s, id, parent, np, &b, e));
	ok(pgc_builder_put(b, PGC_MEM, 0, pages, n, e));
	for (uint64_t i = 0; disk && i < n; i++)
		ok(pgc_builder_put(b, PGC_DISK, i,
				   pages + (n - 1 - i) * PGC_PAGE, 1, e));
	ok(pgc_builder_blob(b, "state", "cpu state", 9, e));
	ok(pgc_builder_commit(b, e));
}

static inline struct pgc_snap *open_snap(struct pgc_store *s,
					 const struct pgc_id *id)
{
	struct pgc_snap *sn = NULL;

	ok(pgc_snap_open(s, id, &sn, e));
	return sn;
}

static inline void expect_pages(struct pgc_snap *sn, enum pgc_stream st,
				const uint8_t *pages, uint64_t n)
{
	uint8_t *got = malloc(n * PGC_PAGE + 1);

	ok(pgc_snap_read(sn, st, 0, got, n, e));
	for (uint64_t i = 0; i < n; i++)
		cr_assert(
		    !memcmp(got + i * PGC_PAGE, pages + i * PGC_PAGE, PGC_PAGE),
		    "page %llu differs", (unsigned long long)i);
	free(got);
}

// The snapshot's memory begins with these pages.
static inline void expect_memory(struct pgc_store *s, const struct pgc_id *id,
				 const uint8_t *pages, uint64_t n)
{
	struct pgc_snap *sn = open_snap(s, id);

	expect_pages(sn, PGC_MEM, pages, n);
	pgc_snap_unref(sn);
}

static inline void count_bad(void *ctx, const char *what)
{
	(void)what;
	++*(unsigned *)ctx;
}

static inline unsigned fsck_faults(struct pgc_store *s)
{
	unsigned n = 0;

	ok(pgc_fsck(s, count_bad, &n, e));
	return n;
}

// The path of the only (or first) file in dir/sub whose name ends in suffix.
static inline bool find_file(char *out, const char *dir, const char *sub,
			     const char *suffix)
{
	char path[PATH_MAX];
	struct dirent *de;
	bool found = false;
	DIR *d;

	text(path, sizeof(path), "%s/%s", dir, sub);
	d = opendir(path);
	while (d && !found && (de = readdir(d))) {
		size_t n = strlen(de->d_name), k = strlen(suffix);

		if (de->d_name[0] == '.' || n < k ||
		    strcmp(de->d_name + n - k, suffix))
			continue;
		text(out, PATH_MAX, "%s/%s/%.200s", dir, sub, de->d_name);
		found = true;
	}
	if (d)
		closedir(d);
	return found;
}

static inline uint8_t *slurp(const char *path, size_t *len)
{
	cleanup_fd int fd = open(path, O_RDONLY);
	struct stat sb;
	uint8_t *p;

	cr_assert(fd >= 0 && !fstat(fd, &sb), "%s", path);
	*len = (size_t)sb.st_size;
	p = malloc(*len + 1);
	cr_assert(!util_pread_all(fd, p, *len, 0));
	return p;
}

static inline void spew(const char *path, const void *p, size_t len)
{
	cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	cr_assert(fd >= 0 && !util_pwrite_all(fd, p, len, 0), "%s", path);
}

static inline void copy_tree(const char *from, const char *to)
{
	char cmd[2 * PATH_MAX];

	text(cmd, sizeof(cmd), "rm -rf '%s' && cp -a '%s' '%s'", to, from, to);
	cr_assert_eq(system(cmd), 0);
}

// Drains until `n` completions came (or 2 minutes passed); returns how many.
static inline size_t drain_n(struct pgc_store *s, size_t n, int *worst)
{
	uint64_t until = util_now_ns() + 120000000000u;
	struct pgc_done d[8];
	size_t got = 0;

	while (got < n && util_now_ns() < until) {
		size_t k = pgc_drain(s, d, ARRAY_SIZE(d));

		for (size_t i = 0; i < k; i++)
			if (worst && d[i].rc)
				*worst = d[i].rc;
		got += k;
		if (!k)
			usleep(200);
	}
	return got;
}

#endif
