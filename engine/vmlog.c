// Logs on disk. A hostile guest can write without end: bytes above a rate are
// dropped and counted, so that neither the disk nor the loop is taken over.
#include "vmlog.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define HALF (VMLOG_CAP / 2)
#define RATE (1024u * 1024u)	   // bytes a second
#define BURST (2u * 1024u * 1024u) // and at once

struct vmlog_follower {
	struct vmlog_follower *next, **link;
	void (*cb)(void *ctx, bool more);
	void *ctx;
};

struct vmlog {
	struct eng_loop *loop;
	char *path, *old_path;
	int fd, old_fd;	   // old_fd -1: none
	uint64_t base;	   // position of the first byte of `fd`
	uint64_t size;	   // bytes in `fd`
	uint64_t old_size; // bytes in `old_fd`, which end at base
	uint64_t allowance, stamp_ns, dropped;
	struct vmlog_follower *followers;
};

static uint64_t size_of(int fd)
{
	struct stat st;

	return fd >= 0 && !fstat(fd, &st) ? (uint64_t)st.st_size : 0;
}

int vmlog_open(struct vmlog **out, struct eng_loop *l, const char *dir,
	       const char *id, struct err *e)
{
	struct vmlog *lg = calloc(1, sizeof(*lg));
	int rc = 0;

	if (!lg)
		return err_set(e, -ENOMEM, "open a log");
	lg->loop = l;
	lg->fd = lg->old_fd = -1;
	if (asprintf(&lg->path, "%s/%s.log", dir, id) < 0 ||
	    asprintf(&lg->old_path, "%s/%s.log.1", dir, id) < 0)
		abort();
	lg->fd =
	    open(lg->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (lg->fd < 0)
		rc = err_sys(e, "open %s", lg->path);
	lg->old_fd = open(lg->old_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	lg->size = size_of(lg->fd);
	lg->old_size = lg->base = size_of(lg->old_fd);
	lg->allowance = BURST;
	lg->stamp_ns = util_now_ns();
	if (rc) {
		vmlog_close(lg);
		return rc;
	}
	*out = lg;
	return 0;
}

static void tell(struct vmlog *lg, bool more)
{
	struct vmlog_follower *f = lg->followers;

	while (f) {
		struct vmlog_follower *next = f->next;

		f->cb(f->ctx, more);
		f = next;
	}
}

void vmlog_close(struct vmlog *lg)
{
	if (!lg)
		return;
	tell(lg, false);
	while (lg->followers)
		vmlog_unfollow(lg->followers);
	fd_close(&lg->fd);
	fd_close(&lg->old_fd);
	free(lg->path);
	free(lg->old_path);
	free(lg);
}

// The older half goes; the file becomes the older half.
static void rotate(struct vmlog *lg)
{
	int fd;

	if (rename(lg->path, lg->old_path))
		return; // then this file grows on; the rate still holds
	fd = open(lg->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	fd_close(&lg->old_fd);
	lg->old_fd = lg->fd;
	lg->old_size = lg->size;
	lg->base += lg->size;
	lg->size = 0;
	lg->fd = fd;
}

static void append(struct vmlog *lg, const void *p, size_t n)
{
	ssize_t w;

	if (lg->size >= HALF)
		rotate(lg);
	w = pwrite(lg->fd, p, n, (off_t)lg->size);
	if (w > 0)
		lg->size += (uint64_t)w; // a full disk loses log, not guests
}

// How many of `n` bytes the rate lets through.
static size_t allowed(struct vmlog *lg, size_t n)
{
	uint64_t now = util_now_ns();

	lg->allowance =
	    MIN((uint64_t)BURST,
		lg->allowance + (now - lg->stamp_ns) / 1000 * RATE / 1000000);
	lg->stamp_ns = now;
	n = MIN(n, (size_t)lg->allowance);
	lg->allowance -= n;
	return n;
}

void vmlog_write(struct vmlog *lg, const void *p, size_t n)
{
	size_t take = allowed(lg, n);
	char note[80];

	if (take && lg->dropped) {
		int len = snprintf(note, sizeof(note),
				   "\n[thaw: %llu bytes of log dropped: the "
				   "guest writes too fast]\n",
				   (unsigned long long)lg->dropped);

		lg->dropped = 0;
		append(lg, note, MIN((size_t)len, sizeof(note) - 1));
	}
	if (take)
		append(lg, p, take);
	lg->dropped += n - take;
	if (take)
		tell(lg, true);
}

uint64_t vmlog_start(const struct vmlog *lg)
{
	return lg->base - lg->old_size;
}

uint64_t vmlog_end(const struct vmlog *lg)
{
	return lg->base + lg->size;
}

size_t vmlog_read(const struct vmlog *lg, uint64_t *pos, void *buf, size_t cap)
{
	ssize_t n;

	if (*pos < vmlog_start(lg))
		*pos = vmlog_start(lg);
	if (*pos >= vmlog_end(lg))
		return 0;
	if (*pos < lg->base)
		n = pread(lg->old_fd, buf, MIN(cap, lg->base - *pos),
			  (off_t)(*pos - vmlog_start(lg)));
	else
		n = pread(lg->fd, buf, MIN(cap, vmlog_end(lg) - *pos),
			  (off_t)(*pos - lg->base));
	if (n <= 0)
		return 0;
	*pos += (uint64_t)n;
	return (size_t)n;
}

uint64_t vmlog_tail(const struct vmlog *lg, unsigned lines)
{
	uint64_t at = vmlog_end(lg), start = vmlog_start(lg), from = at;
	char buf[4096];

	if (!lines)
		return at;
	while (at > start) {
		uint64_t pos =
		    at - start > sizeof(buf) ? at - sizeof(buf) : start;
		uint64_t block = pos;
		size_t n = vmlog_read(lg, &pos, buf, (size_t)(at - block));

		for (size_t i = n; i-- > 0;) {
			// The newline that ends the last line begins nothing.
			if (buf[i] != '\n' || block + i + 1 == vmlog_end(lg))
				continue;
			if (lines-- <= 1)
				return block + i + 1;
		}
		from = at = block;
	}
	return from;
}

struct vmlog_follower *vmlog_follow(struct vmlog *lg,
				    void (*cb)(void *ctx, bool more), void *ctx)
{
	struct vmlog_follower *f = calloc(1, sizeof(*f));

	if (!f)
		abort();
	f->cb = cb;
	f->ctx = ctx;
	f->next = lg->followers;
	f->link = &lg->followers;
	if (f->next)
		f->next->link = &f->next;
	lg->followers = f;
	return f;
}

void vmlog_unfollow(struct vmlog_follower *f)
{
	if (!f)
		return;
	*f->link = f->next;
	if (f->next)
		f->next->link = f->link;
	free(f);
}

void vmlog_remove(const char *dir, const char *id)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s.log", dir, id);
	unlink(path);
	snprintf(path, sizeof(path), "%s/%s.log.1", dir, id);
	unlink(path);
}
