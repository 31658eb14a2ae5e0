// Which pages count as written, by both ways of asking the kernel.
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "pagescan.h"

enum { PAGE = 4096, PAGES = 5000 }; // more than one batch

ParameterizedTestParameters(pagescan, memory)
{
	static int how[] = {PAGESCAN_IOCTL, PAGESCAN_READ, PAGESCAN_BEST};

	return cr_make_param_array(int, how, ARRAY_SIZE(how));
}

static bool covers(const struct pagescan *s, uint64_t pgno)
{
	for (size_t i = 0; i < s->n; i++) {
		if (pgno >= s->runs[i].pgno &&
		    pgno - s->runs[i].pgno < s->runs[i].npages)
			return true;
	}
	return false;
}

// Template half: untouched, read, written. Anonymous half: untouched, read (the
// zero page), written, written with zeroes.
ParameterizedTest(int *how, pagescan, memory)
{
	int fd = memfd_create("t", MFD_CLOEXEC), pm;
	volatile char *p;
	struct pagescan s;
	struct err e = ERR_INIT;
	uint64_t expect = 0;
	int rc;

	if (geteuid() != 0)
		cr_skip_test("needs root");
	cr_assert_eq(ftruncate(fd, PAGES * PAGE), 0);
	cr_assert_eq(pwrite(fd, "data", 4, 0), 4);
	p = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd,
		 0);
	cr_assert(p != MAP_FAILED);
	cr_assert(mmap((char *)p + PAGES / 2 * PAGE, PAGES / 2 * PAGE,
		       PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		       0) != MAP_FAILED);
	madvise((char *)p, PAGES * PAGE, MADV_NOHUGEPAGE);
	for (uint64_t k = 0; k < PAGES; k++) {
		if (k % 7 == 1)
			(void)p[k * PAGE];
		if (k % 7 == 3 || k % 7 == 4) {
			p[k * PAGE] = k % 7 == 3 ? 1 : 0;
			expect++;
		}
	}
	pm = open("/proc/self/pagemap", O_RDONLY);
	cr_assert_geq(pm, 0);
	rc = pagescan_run(pm, (uintptr_t)p, PAGES * PAGE,
			  (enum pagescan_how) * how, &s, &e);
	if (rc == -ENOTTY && *how == PAGESCAN_IOCTL)
		return; // before Linux 6.7; PAGESCAN_BEST is tried, too
	cr_assert_eq(rc, 0, "%s", e.msg);
	cr_assert_eq(s.pages, expect, "%lu, not %lu", (unsigned long)s.pages,
		     (unsigned long)expect);
	for (uint64_t k = 0; k < PAGES; k++)
		cr_assert_eq(covers(&s, k), k % 7 == 3 || k % 7 == 4,
			     "page %lu", (unsigned long)k);
	pagescan_free(&s);
	// A part of it: page numbers count from its start.
	cr_assert_eq(pagescan_run(pm, (uintptr_t)p + 3 * PAGE, 2 * PAGE,
				  (enum pagescan_how) * how, &s, &e),
		     0);
	cr_assert_eq(s.n, 1u);
	cr_assert_eq(s.runs[0].pgno, 0u);
	cr_assert_eq(s.runs[0].npages, 2u);
	pagescan_free(&s);
	close(pm);
	close(fd);
	munmap((char *)p, PAGES * PAGE);
}

Test(pagescan, sparse_file)
{
	int fd = memfd_create("t", MFD_CLOEXEC);
	char page[PAGE] = {0};
	struct pagescan s;
	struct err e = ERR_INIT;

	cr_assert_eq(ftruncate(fd, PAGES * PAGE), 0);
	cr_assert_eq(pagescan_file(fd, PAGES * PAGE, &s, &e), 0, "%s", e.msg);
	cr_assert_eq(s.pages, 0u);
	// Zeroes that were written count; a few bytes count as their block.
	cr_assert_eq(pwrite(fd, page, PAGE, 7 * PAGE), PAGE);
	cr_assert_eq(pwrite(fd, page, PAGE, 8 * PAGE), PAGE);
	cr_assert_eq(pwrite(fd, "x", 1, 100 * PAGE + 5), 1);
	cr_assert_eq(pwrite(fd, "x", 1, PAGES * PAGE - 1), 1);
	cr_assert_eq(pagescan_file(fd, PAGES * PAGE, &s, &e), 0, "%s", e.msg);
	cr_assert_eq(s.pages, 4u);
	cr_assert_eq(s.n, 3u);
	cr_assert_eq(s.runs[0].pgno, 7u);
	cr_assert_eq(s.runs[0].npages, 2u);
	cr_assert_eq(s.runs[1].pgno, 100u);
	cr_assert_eq(s.runs[2].pgno, (uint32_t)PAGES - 1);
	pagescan_free(&s);
	cr_assert_neq(pagescan_file(-1, PAGE, &s, &e), 0);
	close(fd);
}
