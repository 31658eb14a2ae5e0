// A page of a MAP_PRIVATE mapping is this process's own when it is anonymous:
// present or swapped out, and not the file's. The zero page is neither: it is
// mapped by UFFDIO_ZEROPAGE or by reading untouched anonymous memory, and means
// "nothing written here".
//
// PAGEMAP_SCAN tells all of it. /proc/PID/pagemap lacks a bit for the zero
// page, but shows page frames to root: the zero page's frame is learned from a
// page of ours that was read and never written.
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "pagescan.h"

// From Linux 6.7's <linux/fs.h>, which Debian 12 does not have yet.
struct scan_region {
	uint64_t start, end, categories;
};
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages,
	    category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)
enum {
	SCAN_FILE = 1 << 2,
	SCAN_PRESENT = 1 << 3,
	SCAN_SWAPPED = 1 << 4,
	SCAN_PFNZERO = 1 << 5,
};

#define PM_PRESENT (1ull << 63)
#define PM_SWAPPED (1ull << 62)
#define PM_FILE (1ull << 61)
#define PM_PFN ((1ull << 55) - 1)

enum { PAGE = 4096, BATCH = 4096 };

static int add_run(struct pagescan *s, uint64_t pgno, uint64_t n, struct err *e)
{
	struct pagescan_run *last = s->n ? &s->runs[s->n - 1] : NULL;

	s->pages += n;
	if (last && last->pgno + last->npages == pgno) {
		last->npages += (uint32_t)n;
		return 0;
	}
	if (s->n == s->cap) {
		size_t cap = s->cap ? s->cap * 2 : 256;
		struct pagescan_run *m = realloc(s->runs, cap * sizeof(*m));

		if (!m)
			return err_set(e, -ENOMEM,
				       "no memory to list written pages");
		s->runs = m;
		s->cap = cap;
	}
	s->runs[s->n++] = (struct pagescan_run){(uint32_t)pgno, (uint32_t)n};
	return 0;
}

static int scan_ioctl(int pagemap, uint64_t base, uint64_t bytes,
		      struct pagescan *s, struct err *e)
{
	struct scan_region vec[256];
	struct scan_arg a = {
	    .size = sizeof(a),
	    .start = base,
	    .end = base + bytes,
	    .vec = (uintptr_t)vec,
	    .vec_len = ARRAY_SIZE(vec),
	    .category_inverted = SCAN_FILE | SCAN_PFNZERO,
	    .category_mask = SCAN_FILE | SCAN_PFNZERO,
	    .category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED,
	};

	while (a.start < base + bytes) {
		int n = ioctl(pagemap, SCAN_IOCTL, &a);

		if (n < 0)
			return err_sys(e, "cannot scan a cell's page map");
		for (int i = 0; i < n; i++) {
			int rc = add_run(s, (vec[i].start - base) / PAGE,
					 (vec[i].end - vec[i].start) / PAGE, e);

			if (rc)
				return rc;
		}
		if (a.walk_end <= a.start)
			return err_set(e, -EIO,
				       "the scan of a cell's page map "
				       "stands still");
		a.start = a.walk_end;
	}
	return 0;
}

static int zero_frame(uint64_t *pfn, struct err *e)
{
	cleanup_fd int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	volatile char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t entry = 0;
	int rc;

	if (fd < 0 || p == MAP_FAILED)
		return err_sys(e, "cannot look at this process's page map");
	(void)p[0];
	rc = util_pread_all(fd, &entry, sizeof(entry),
			    (off_t)((uintptr_t)p / PAGE * sizeof(entry)));
	munmap((void *)(uintptr_t)p, PAGE);
	if (rc)
		return err_set(e, rc, "cannot read this process's page map");
	*pfn = entry & PM_PFN;
	if (!(entry & PM_PRESENT) || *pfn == 0)
		return err_set(e, -EPERM,
			       "page frames are hidden: thawd needs "
			       "CAP_SYS_ADMIN");
	return 0;
}

static bool is_written(uint64_t entry, uint64_t zero)
{
	if (entry & PM_FILE)
		return false;
	if (entry & PM_SWAPPED)
		return true;
	return (entry & PM_PRESENT) && (entry & PM_PFN) != zero;
}

static int scan_read(int pagemap, uint64_t base, uint64_t bytes,
		     struct pagescan *s, struct err *e)
{
	cleanup_free uint64_t *buf = malloc(BATCH * sizeof(*buf));
	uint64_t zero = 0, pages = bytes / PAGE;
	int rc = zero_frame(&zero, e);

	if (rc)
		return rc;
	if (!buf)
		return err_set(e, -ENOMEM, "no memory to list written pages");
	for (uint64_t at = 0; at < pages; at += BATCH) {
		uint64_t n = MIN(pages - at, (uint64_t)BATCH);

		rc = util_pread_all(pagemap, buf, n * sizeof(*buf),
				    (off_t)((base / PAGE + at) * sizeof(*buf)));
		if (rc)
			return err_set(e, rc,
				       "cannot read a cell's page map: %s",
				       strerror(-rc));
		for (uint64_t k = 0; k < n && !rc; k++) {
			if (is_written(buf[k], zero))
				rc = add_run(s, at + k, 1, e);
		}
		if (rc)
			return rc;
	}
	return 0;
}

int pagescan_run(int pagemap, uint64_t base, uint64_t bytes,
		 enum pagescan_how how, struct pagescan *out, struct err *e)
{
	int rc;

	*out = (struct pagescan){0};
	if (how == PAGESCAN_READ) {
		rc = scan_read(pagemap, base, bytes, out, e);
	} else {
		rc = scan_ioctl(pagemap, base, bytes, out, e);
		if (rc == -ENOTTY && how == PAGESCAN_BEST) {
			pagescan_free(out);
			rc = scan_read(pagemap, base, bytes, out, e);
		}
	}
	if (rc)
		pagescan_free(out);
	return rc;
}

int pagescan_file(int fd, uint64_t bytes, struct pagescan *out, struct err *e)
{
	off_t at = 0;
	int rc = 0;

	*out = (struct pagescan){0};
	while (!rc && (uint64_t)at < bytes) {
		off_t data = lseek(fd, at, SEEK_DATA), hole;

		if (data < 0 && errno == ENXIO)
			break; // only a hole is left
		hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
		if (hole < 0) {
			rc = err_sys(e, "cannot list a disk's written blocks");
			break;
		}
		data = ALIGN_DOWN(data, (off_t)PAGE);
		hole = ALIGN_UP(hole, (off_t)PAGE);
		rc = add_run(out, (uint64_t)data / PAGE,
			     (uint64_t)(hole - data) / PAGE, e);
		at = hole;
	}
	if (rc)
		pagescan_free(out);
	return rc;
}

void pagescan_free(struct pagescan *s)
{
	free(s->runs);
	*s = (struct pagescan){0};
}
