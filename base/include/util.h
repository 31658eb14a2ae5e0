// Small things that every room needs: sizes, checked sums, scoped clean-up.
#ifndef THAW_UTIL_H
#define THAW_UTIL_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define ALIGN_UP(x, a) (((x) + ((a)-1)) & ~((__typeof__(x))(a)-1))
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a)-1))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#define PAGE_SIZE_4K 4096u

// Scoped ownership: `cleanup_fd int fd = -1;` closes at the end of the scope;
// fd_steal() hands the descriptor over and leaves -1 behind.
static inline void cleanup_fd_fn(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}
static inline void cleanup_free_fn(void *p)
{
	free(*(void **)p);
}
#define cleanup_fd __attribute__((cleanup(cleanup_fd_fn)))
#define cleanup_free __attribute__((cleanup(cleanup_free_fn)))

static inline int fd_steal(int *fd)
{
	int v = *fd;
	*fd = -1;
	return v;
}
static inline void fd_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}
#define ptr_steal(p)                             \
	({                                       \
		__typeof__(p) ptr_steal_v = (p); \
		(p) = NULL;                      \
		ptr_steal_v;                     \
	})

// Monotonic (CLOCK_MONOTONIC) and wall (CLOCK_REALTIME) time in nanoseconds.
uint64_t util_now_ns(void);
uint64_t util_wall_ns(void);

// All of `len` bytes or an error: 0, -errno, or -EPIPE/-ENODATA at the end of
// the stream. They retry EINTR; they block if the descriptor does.
int util_write_all(int fd, const void *buf, size_t len);
int util_read_all(int fd, void *buf, size_t len);
int util_pread_all(int fd, void *buf, size_t len, off_t off);
int util_pwrite_all(int fd, const void *buf, size_t len, off_t off);

// When memory is short, this process and those that it starts go before others.
void util_oom_first(void);

// Removes `name`, an entry of the folder `dir`, and everything below, following
// no links. Uses a bounded number of descriptors however deep the tree is. -EXDEV:
// something is mounted in it; that, and the folders above it, are left.
int util_rmtree(int dir, const char *name, struct err *e);
// The same with the entries of `dir` that begin with `prefix`; all are tried.
int util_sweep(const char *dir, const char *prefix, struct err *e);

// Fills `buf` from getrandom(2); aborts if the kernel cannot.
void util_random(void *buf, size_t len);

// Lower-case hex of `len` bytes into dst, which has room for 2*len+1.
void util_hex(char *dst, const void *src, size_t len);
int util_hex_digit(char c); // its value, or -1
// Parses exactly 2*len hex digits; 0 or -EINVAL.
int util_unhex(void *dst, size_t len, const char *text);

// "512M", "4GiB", "65536" to bytes; 0 or -EINVAL (also on overflow).
int util_parse_size(const char *text, uint64_t *out);

#endif
